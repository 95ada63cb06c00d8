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

use super::{Outcome, TRUNCATED_MARK};

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

/// Runs the script to its end. Dropping the returned future does not stop the script: it runs, and is reaped, in a task of its own.
///
/// Never fails: what goes wrong is an [`Outcome`] with exit 127 or -1 and the reason on stderr.
pub async fn run_script(spec: RunSpec) -> Outcome {
    match tokio::spawn(run(spec)).await {
        Ok(outcome) => outcome,
        Err(_) => Outcome::failed(-1, "the run was abandoned: the agent is stopping"),
    }
}

async fn run(spec: RunSpec) -> Outcome {
    let shown = spec.path.display().to_string();
    if spec.args.iter().any(|arg| arg.contains('\0')) {
        return Outcome::failed(
            127,
            format!("cannot execute '{shown}': an argument contains a NUL byte"),
        );
    }
    let mut child = match start(&spec) {
        Ok(child) => child,
        Err(error) => return not_started(&spec, &error),
    };
    let (Some(stdin), Some(stdout), Some(stderr)) =
        (child.stdin.take(), child.stdout.take(), child.stderr.take())
    else {
        return Outcome::failed(-1, format!("no pipes to '{shown}'"));
    };

    let mut out = Captured::new(spec.max_output);
    let mut err = Captured::new(spec.max_output);
    // The sender is dropped when the script has ended: that is the news.
    let (alive, mut ended) = watch::channel(());
    let mut ended_too = ended.clone();
    let life = async {
        let end = wait_or_end(&mut child, spec.run_timeout).await;
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
        timed_out: end.timed_out,
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
                Some(code) if !end.timed_out => code,
                _ => 126,
            };
        }
        Err(error) => {
            outcome.exit = -1;
            let line = format!("cannot wait for '{shown}': {error}\n");
            outcome.stderr.extend_from_slice(line.as_bytes());
        }
    }
    if end.timed_out {
        let line = format!("timed out after {}s\n", spec.run_timeout.as_secs_f64());
        outcome.stderr.extend_from_slice(line.as_bytes());
    }
    outcome
}

fn start(spec: &RunSpec) -> io::Result<Child> {
    // Every descriptor that we open is close-on-exec; the agent marks the ones it inherited at its start.
    Command::new(&spec.path)
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
    timed_out: bool,
}

async fn wait_or_end(child: &mut Child, run_timeout: Duration) -> End {
    if let Ok(status) = timeout(run_timeout, child.wait()).await {
        return End {
            status,
            timed_out: false,
        };
    }
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
        timed_out: true,
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
}

impl Captured {
    fn new(limit: usize) -> Self {
        Self {
            kept: Vec::new(),
            limit,
            dropped: false,
        }
    }

    /// Reads to the end of file. Safe to cancel: what was read so far stays.
    async fn drain(&mut self, mut stream: impl AsyncRead + Unpin) {
        let mut chunk = vec![0; 8192];
        while let Ok(n @ 1..) = stream.read(&mut chunk).await {
            let keep = n.min(self.limit - self.kept.len());
            self.kept.extend_from_slice(&chunk[..keep]);
            self.dropped |= keep < n;
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
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;
    use std::path::Path;

    struct Bench {
        dir: tempfile::TempDir,
    }

    impl Bench {
        fn new() -> Self {
            Self {
                dir: tempfile::tempdir().unwrap(),
            }
        }

        fn script(&self, body: &str) -> RunSpec {
            let path = self.dir.path().join("script");
            let staged = self.dir.path().join("staged");
            std::fs::write(&staged, format!("#!/bin/sh\n{body}\n")).unwrap();
            std::fs::set_permissions(&staged, std::fs::Permissions::from_mode(0o755)).unwrap();
            std::fs::rename(&staged, &path).unwrap();
            spec(&path)
        }
    }

    fn spec(path: &Path) -> RunSpec {
        RunSpec {
            path: path.to_owned(),
            args: Vec::new(),
            env: script_environment(&BTreeMap::new()),
            context_json: b"{}".to_vec(),
            stdin_timeout: Duration::from_secs(10),
            run_timeout: Duration::from_secs(30),
            max_output: 1 << 20,
        }
    }

    fn go(spec: RunSpec) -> Outcome {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        // Another test thread may be between fork and exec while it still holds our script open for writing.
        for _ in 0..50 {
            let outcome = runtime.block_on(run_script(spec.clone()));
            if outcome.exit == 127 && String::from_utf8_lossy(&outcome.stderr).contains("busy") {
                std::thread::sleep(Duration::from_millis(10));
                continue;
            }
            return outcome;
        }
        panic!("text file busy for half a second");
    }

    #[test]
    fn the_streams_stay_apart_and_the_exit_code_is_the_scripts() {
        let outcome = go(Bench::new().script("echo out; echo err >&2; exit 42"));
        assert_eq!(outcome.exit, 42);
        assert_eq!(outcome.stdout, b"out\n");
        assert_eq!(outcome.stderr, b"err\n");
        assert!(!outcome.truncated && !outcome.timed_out && outcome.stdin_unsent.is_none());
    }

    #[test]
    fn arguments_arrive_literally_and_argv0_is_the_path() {
        let bench = Bench::new();
        let mut spec = bench.script("printf '[%s]' \"$0\" \"$@\"");
        spec.args = ["a b", "$(id)", "", "grün 日本", "-x; rm"]
            .map(String::from)
            .to_vec();
        let path = spec.path.display().to_string();
        let outcome = go(spec);
        assert_eq!(
            String::from_utf8(outcome.stdout).unwrap(),
            format!("[{path}][a b][$(id)][][grün 日本][-x; rm]")
        );
    }

    #[test]
    fn the_environment_is_the_whitelist_and_nothing_else() {
        let agent: BTreeMap<String, String> = [
            ("LD_PRELOAD", "/evil.so"),
            ("BASH_ENV", "/evil.sh"),
            ("IFS", "x"),
            ("ENVEXEC_TOKEN", "secret"),
            ("HOME", "/home/a"),
            ("LANG", "C"),
            ("PATH", "/evil"),
        ]
        .map(|(k, v)| (k.to_owned(), v.to_owned()))
        .into();
        let mut spec = spec(Path::new("/usr/bin/env"));
        spec.env = script_environment(&agent);
        let outcome = go(spec);
        let mut lines: Vec<_> = std::str::from_utf8(&outcome.stdout)
            .unwrap()
            .lines()
            .collect();
        lines.sort_unstable();
        assert_eq!(
            lines,
            ["HOME=/home/a", "LANG=C", &format!("PATH={SCRIPT_PATH}")]
        );
    }

    #[test]
    fn the_context_arrives_whole_and_no_context_is_an_empty_stdin() {
        let bench = Bench::new();
        let mut spec = bench.script("cat");
        spec.context_json = vec![b'x'; 300 * 1024];
        assert_eq!(go(spec.clone()).stdout.len(), 300 * 1024);
        spec.context_json.clear();
        assert_eq!(go(spec).stdout, b"");
    }

    #[test]
    fn a_script_that_does_not_read_its_context_is_no_accident() {
        let bench = Bench::new();
        let mut spec = bench.script("exec 0<&-; echo fine");
        spec.context_json = vec![b'x'; 200 * 1024];
        for _ in 0..100 {
            let outcome = go(spec.clone());
            assert_eq!(
                (outcome.exit, outcome.stdout.as_slice()),
                (0, b"fine\n".as_slice())
            );
        }
    }

    #[test]
    fn a_script_that_never_reads_meets_the_stdin_deadline_and_goes_on() {
        let bench = Bench::new();
        let mut spec = bench.script("sleep 0.5; echo fine");
        spec.context_json = vec![b'x'; 200 * 1024];
        spec.stdin_timeout = Duration::from_millis(100);
        let outcome = go(spec);
        assert_eq!(outcome.stdout, b"fine\n");
        let unsent = outcome.stdin_unsent.unwrap();
        assert!(unsent > 0 && unsent < 200 * 1024, "{unsent}");
    }

    #[test]
    fn much_output_on_stderr_first_does_not_hang() {
        let outcome = go(Bench::new().script("head -c 200000 /dev/zero >&2; echo done"));
        assert_eq!(outcome.stderr.len(), 200_000);
        assert_eq!(outcome.stdout, b"done\n");
        let lines =
            go(Bench::new().script("i=0; while [ $i -lt 10000 ]; do echo $i; i=$((i+1)); done"));
        assert_eq!(lines.stdout.iter().filter(|&&b| b == b'\n').count(), 10_000);
    }

    #[test]
    fn output_beyond_the_limit_is_dropped_and_said() {
        let bench = Bench::new();
        let mut spec = bench.script("head -c 100000 /dev/zero; echo e >&2");
        spec.max_output = 1000;
        let outcome = go(spec.clone());
        assert!(outcome.truncated);
        assert_eq!(outcome.stdout.len(), 1000 + TRUNCATED_MARK.len());
        assert!(outcome.stdout.ends_with(TRUNCATED_MARK));
        assert_eq!(outcome.stderr, b"e\n");
        assert_eq!(outcome.exit, 0);
        spec.max_output = 100_000;
        assert!(!go(spec).truncated);
    }

    #[test]
    fn what_cannot_be_executed_is_127_with_path_and_reason() {
        let bench = Bench::new();
        let missing = go(spec(Path::new("/nonexistent/script")));
        assert_eq!(missing.exit, 127);
        let text = String::from_utf8(missing.stderr).unwrap();
        assert!(
            text.contains("/nonexistent/script") && text.contains("No such file"),
            "{text}"
        );

        let plain = bench.dir.path().join("plain");
        std::fs::write(&plain, "#!/bin/sh\n").unwrap();
        let refused = go(spec(&plain));
        assert_eq!(refused.exit, 127);
        assert!(String::from_utf8_lossy(&refused.stderr).contains("Permission denied"));

        let odd = bench.dir.path().join("odd");
        std::fs::write(&odd, "#!/nonexistent/interpreter\n").unwrap();
        std::fs::set_permissions(&odd, std::fs::Permissions::from_mode(0o755)).unwrap();
        let orphan = go(spec(&odd));
        assert_eq!(orphan.exit, 127);
        assert!(String::from_utf8_lossy(&orphan.stderr).contains("interpreter is missing"));
    }

    #[test]
    fn an_argument_with_nul_is_refused() {
        let bench = Bench::new();
        let mut spec = bench.script("echo ran");
        spec.args = vec!["a\0b".to_owned()];
        let outcome = go(spec);
        assert_eq!((outcome.exit, outcome.stdout.len()), (127, 0));
        assert!(String::from_utf8_lossy(&outcome.stderr).contains("NUL"));
    }

    #[test]
    fn death_by_signal_is_126_and_the_signal_is_told() {
        let outcome = go(Bench::new().script("kill -9 $$"));
        assert_eq!((outcome.exit, outcome.signal), (126, Some(9)));
        assert!(!outcome.timed_out);
    }

    #[test]
    fn a_run_ends_at_its_deadline_with_all_of_its_group() {
        let bench = Bench::new();
        let marker = bench.dir.path().join("late");
        let mut spec = bench.script(&format!("(sleep 3; touch {}) & sleep 60", marker.display()));
        spec.run_timeout = Duration::from_millis(200);
        let outcome = go(spec);
        assert_eq!((outcome.exit, outcome.signal), (126, Some(15)));
        assert!(outcome.timed_out);
        assert!(outcome.stderr.ends_with(b"timed out after 0.2s\n"));
        std::thread::sleep(Duration::from_millis(3300));
        assert!(
            !marker.exists(),
            "a child of the ended script went on working"
        );
    }

    #[test]
    fn a_script_that_ignores_sigterm_is_killed_and_one_that_exits_0_on_it_did_not_succeed() {
        let bench = Bench::new();
        let mut stubborn = bench.script("trap '' TERM; while :; do sleep 1; done");
        stubborn.run_timeout = Duration::from_millis(200);
        let outcome = go(stubborn);
        assert_eq!((outcome.exit, outcome.signal), (126, Some(9)));

        let mut polite = bench.script("trap 'exit 0' TERM; while :; do sleep 0.1; done");
        polite.run_timeout = Duration::from_millis(200);
        let outcome = go(polite);
        assert_eq!((outcome.exit, outcome.signal), (126, None));
        assert!(outcome.timed_out);
    }

    #[test]
    fn a_background_child_that_holds_the_output_does_not_hold_the_run() {
        let outcome = go(Bench::new().script("echo before; sleep 30 & exit 3"));
        assert_eq!(
            (outcome.exit, outcome.stdout.as_slice()),
            (3, b"before\n".as_slice())
        );
        assert!(!outcome.timed_out);
    }

    #[test]
    fn a_script_outlives_the_client_that_asked_for_it() {
        let bench = Bench::new();
        let marker = bench.dir.path().join("done");
        let spec = bench.script(&format!("sleep 0.3; touch {}", marker.display()));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            assert!(
                timeout(Duration::from_millis(100), run_script(spec))
                    .await
                    .is_err()
            );
            for _ in 0..100 {
                if marker.exists() {
                    return;
                }
                sleep(Duration::from_millis(50)).await;
            }
            panic!("the script was stopped");
        });
    }

    #[test]
    fn our_descriptors_stay_with_us_and_the_script_has_a_group_of_its_own() {
        let bench = Bench::new();
        let secret = bench.dir.path().join("held-open");
        let _held = std::fs::File::create(&secret).unwrap();
        let outcome = go(bench.script("ls -l /proc/$$/fd; ps -o pgid= -p $$; echo $$"));
        let text = String::from_utf8(outcome.stdout).unwrap();
        assert!(
            text.contains(" 0 -> pipe:") && text.contains(" 2 -> pipe:"),
            "{text}"
        );
        assert!(!text.contains("held-open"), "{text}");
        let mut words = text.split_whitespace().rev();
        assert_eq!(words.next(), words.next(), "{text}");
    }
}
