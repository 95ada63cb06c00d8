//! Runs a script as the agent's own user, without a shell (spec/agent.md 11.2).
//!
//! The script gets exactly the arguments, the environment and the descriptors 0 to 2 that it is due. Both output streams are
//! drained at the same time as its context is written, so no side can block the other. A run ends when the script itself has
//! ended *and* its output is at end of file; a background child that keeps the output open is waited for [`DRAIN_GRACE`] and no
//! longer (the original waits for ever), then what is there is taken. Such a child lives on with a closed pipe.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use super::tail::{Tails, Which};
use super::{Outcome, TRUNCATED_MARK};
use crate::core::sys;
use crate::core::task;

/// How long output is waited for after the script itself has ended.
pub const DRAIN_GRACE: Duration = Duration::from_secs(2);
/// Time between SIGTERM and SIGKILL at the deadline of a run.
pub const KILL_GRACE: Duration = Duration::from_secs(2);

/// Search path of every script.
pub const SCRIPT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Variables that a script inherits from the agent; nothing else passes (spec/agent.md 11.2).
const INHERITED: [&str; 7] = ["HOME", "LANG", "LC_ALL", "TZ", "TERM", "USER", "LOGNAME"];

/// One run.
#[derive(Clone, Debug)]
pub struct RunSpec {
    /// The script; also `argv[0]`.
    pub path: PathBuf,
    pub args: Vec<String>,
    /// The whole environment, see [`script_environment`].
    pub env: BTreeMap<String, String>,
    /// Written to the script's stdin, then closed.
    pub context_json: Vec<u8>,
    /// Longest time for the script to take its context; then the pipe is closed and the script goes on.
    pub stdin_timeout: Duration,
    /// Longest time for the script as a whole; then its process group gets SIGTERM and, [`KILL_GRACE`] later, SIGKILL.
    pub run_timeout: Duration,
    /// Bytes kept of each stream; the rest is read and dropped.
    pub max_output: usize,
}

/// The environment of a script, from the environment of the agent.
pub fn script_environment(agent: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let inherited = INHERITED
        .iter()
        .filter_map(|&key| agent.get(key).map(|value| (key.to_owned(), value.clone())));
    let path = ("PATH".to_owned(), SCRIPT_PATH.to_owned());
    inherited.chain([path]).collect()
}

/// How somebody follows a run and ends it.
#[derive(Clone, Debug)]
pub struct Watch {
    /// Gets the output as it comes.
    pub tails: Tails,
    /// `Some(why)`: the script is to be ended as at its deadline, and the sentence to be appended to its stderr.
    pub stop: watch::Receiver<Option<&'static str>>,
}

/// Runs the script to its end. Dropping the returned future does not stop the script: it runs, and is reaped, in a task of its own.
///
/// Never fails: what goes wrong is an [`Outcome`] with exit 127 or -1 and the reason on stderr.
pub async fn run_script(spec: RunSpec) -> Outcome {
    run_watched(spec, None).await
}

/// The same, followed.
pub async fn run_watched(spec: RunSpec, watch: Option<Watch>) -> Outcome {
    match task::spawn(run(spec, watch)).await {
        Ok(outcome) => outcome,
        Err(_) => Outcome::failed(-1, "the run was abandoned: the agent is stopping"),
    }
}

async fn run(spec: RunSpec, watch: Option<Watch>) -> Outcome {
    let shown = spec.path.display().to_string();
    if spec.args.iter().any(|arg| arg.contains('\0')) {
        return Outcome::failed(
            127,
            format!("cannot execute '{shown}': an argument contains a NUL byte"),
        );
    }
    let mut child = match start(&spec, watch.is_some()) {
        Ok(child) => child,
        Err(error) => return not_started(&spec, &error),
    };
    let (Some(stdin), Some(stdout), Some(stderr)) =
        (child.stdin.take(), child.stdout.take(), child.stderr.take())
    else {
        return Outcome::failed(-1, format!("no pipes to '{shown}'"));
    };

    let (tails, mut stop) = match watch {
        Some(watch) => (Some(watch.tails), Some(watch.stop)),
        None => (None, None),
    };
    let mut out = Captured::new(spec.max_output, Which::Out, tails.clone());
    let mut err = Captured::new(spec.max_output, Which::Err, tails);
    // The sender is dropped when the script has ended: that is the news.
    let (alive, mut ended) = watch::channel(());
    let mut ended_too = ended.clone();
    let life = async {
        let end = wait_or_end(&mut child, spec.run_timeout, stop.as_mut()).await;
        drop(alive);
        end
    };
    let capture = async {
        tokio::select! {
            () = async { tokio::join!(out.drain(stdout), err.drain(stderr)); } => {}
            () = async { let _ = ended.changed().await; sleep(DRAIN_GRACE).await; } => {}
        }
    };
    let feed = async {
        tokio::select! {
            unsent = feed(stdin, &spec.context_json, spec.stdin_timeout) => unsent,
            _ = ended_too.changed() => None,
        }
    };
    let (end, (), stdin_unsent) = tokio::join!(life, capture, feed);

    let mut outcome = Outcome {
        truncated: out.dropped || err.dropped,
        timed_out: end.cut_short == Some(Cut::Deadline),
        cancelled: matches!(end.cut_short, Some(Cut::Wish(_))),
        stdin_unsent,
        stdout: out.finish(),
        stderr: err.finish(),
        ..Outcome::default()
    };
    match end.status {
        Ok(status) => {
            outcome.signal = status.signal();
            // A run that was cut short is never a success, whatever the script made of SIGTERM.
            outcome.exit = match status.code() {
                Some(code) if end.cut_short.is_none() => code,
                _ => 126,
            };
        }
        Err(error) => {
            outcome.exit = -1;
            let line = format!("cannot wait for '{shown}': {error}\n");
            outcome.stderr.extend_from_slice(line.as_bytes());
        }
    }
    let line = match end.cut_short {
        Some(Cut::Deadline) => format!("timed out after {}s\n", spec.run_timeout.as_secs_f64()),
        Some(Cut::Wish(why)) => format!("{why}\n"),
        None => String::new(),
    };
    outcome.stderr.extend_from_slice(line.as_bytes());
    outcome
}

/// `watched`: somebody answers for the run and holds a lock for it; should that end without a word, the script is to end as well, so that it
/// does not go on while it counts as lost and the next one begins.
fn start(spec: &RunSpec, watched: bool) -> io::Result<Child> {
    // Every descriptor that we open is close-on-exec; the agent marks the ones it inherited at its start.
    let mut command = Command::new(&spec.path);
    if watched {
        sys::parent_death::tell_child(command.as_std_mut(), Signal::TERM);
    }
    command
        .args(&spec.args)
        .env_clear()
        .envs(&spec.env)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(false)
        .spawn()
}

/// 127 when the kernel refused the script itself, -1 when it had no room for another process or pipe.
fn not_started(spec: &RunSpec, error: &io::Error) -> Outcome {
    let shown = spec.path.display();
    match error.raw_os_error() {
        Some(libc::EAGAIN | libc::ENOMEM | libc::EMFILE | libc::ENFILE) => {
            Outcome::failed(-1, format!("fork failed: {error} (for '{shown}')"))
        }
        Some(libc::ENOENT) if spec.path.exists() => Outcome::failed(
            127,
            format!("cannot execute '{shown}': {error}: its interpreter is missing"),
        ),
        _ => Outcome::failed(127, format!("cannot execute '{shown}': {error}")),
    }
}

struct End {
    status: io::Result<ExitStatus>,
    cut_short: Option<Cut>,
}

/// Why a script was ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Cut {
    Deadline,
    Wish(&'static str),
}

/// Ends when somebody wishes the script to end; never when nobody can.
async fn wished(stop: Option<&mut watch::Receiver<Option<&'static str>>>) -> &'static str {
    if let Some(stop) = stop
        && let Ok(why) = stop.wait_for(Option::is_some).await
        && let Some(why) = *why
    {
        return why;
    }
    std::future::pending().await
}

async fn wait_or_end(
    child: &mut Child,
    run_timeout: Duration,
    stop: Option<&mut watch::Receiver<Option<&'static str>>>,
) -> End {
    let cut_short = tokio::select! {
        biased;
        status = child.wait() => return End { status, cut_short: None },
        () = sleep(run_timeout) => Cut::Deadline,
        why = wished(stop) => Cut::Wish(why),
    };
    if let Some(group) = child
        .id()
        .and_then(|id| i32::try_from(id).ok())
        .and_then(Pid::from_raw)
    {
        let _ = rustix::process::kill_process_group(group, Signal::TERM);
        // The leader is looked at but not reaped, so that its number cannot be given to another group before SIGKILL.
        let patience = Instant::now() + KILL_GRACE;
        while Instant::now() < patience && !has_ended(group) {
            sleep(Duration::from_millis(20)).await;
        }
        let _ = rustix::process::kill_process_group(group, Signal::KILL);
    }
    End {
        status: child.wait().await,
        cut_short: Some(cut_short),
    }
}

fn has_ended(leader: Pid) -> bool {
    let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    !matches!(rustix::process::waitid(WaitId::Pid(leader), look), Ok(None))
}

/// Writes the context and closes the pipe. `Some(unsent)` only when the deadline passed: a script that does not care to read, or
/// that ended early, closes its end and that is its right.
async fn feed(mut stdin: ChildStdin, context: &[u8], patience: Duration) -> Option<usize> {
    let mut sent = 0;
    let write_all = async {
        while sent < context.len() {
            match stdin.write(&context[sent..]).await {
                Ok(n) if n > 0 => sent += n,
                _ => break,
            }
        }
    };
    match timeout(patience, write_all).await {
        Ok(()) => None,
        Err(_) => Some(context.len() - sent),
    }
}

/// What is kept of one stream.
struct Captured {
    kept: Vec<u8>,
    limit: usize,
    dropped: bool,
    which: Which,
    tails: Option<Tails>,
}

impl Captured {
    fn new(limit: usize, which: Which, tails: Option<Tails>) -> Self {
        Self {
            kept: Vec::new(),
            limit,
            dropped: false,
            which,
            tails,
        }
    }

    /// Reads to the end of file. Safe to cancel: what was read so far stays.
    async fn drain(&mut self, mut stream: impl AsyncRead + Unpin) {
        let mut chunk = vec![0; 8192];
        while let Ok(n @ 1..) = stream.read(&mut chunk).await {
            let keep = n.min(self.limit - self.kept.len());
            self.kept.extend_from_slice(&chunk[..keep]);
            self.dropped |= keep < n;
            if let Some(tails) = &self.tails {
                tails.push(self.which, &chunk[..n]);
            }
        }
    }

    fn finish(mut self) -> Vec<u8> {
        if self.dropped {
            self.kept.extend_from_slice(TRUNCATED_MARK);
        }
        self.kept
    }
}

#[cfg(test)]
#[path = "runner_tests.rs"]
mod tests;
