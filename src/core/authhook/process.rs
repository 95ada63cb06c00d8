//! The hook as a process: clean environment, own process group, a deadline over everything.
//!
//! What a hook leaves running when it has answered in time is its own affair; at the deadline everything it started is killed.

use std::io;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal};
use tokio::io::AsyncWriteExt as _;
use tokio::process::{Child, Command};

use super::{BadContext, Input};
use crate::core::config::HookConfig;
use crate::core::secure_open::OpenError;

/// How the attempt to ask the hook ended.
#[derive(Debug)]
pub(super) enum Outcome {
    Exited(i32),
    Signalled(i32),
    TimedOut,
    NotStarted(io::Error),
    /// The hook's file is not there, not executable or must not be trusted.
    Unusable(OpenError),
    /// The context cannot be handed to a process.
    Unspeakable(BadContext),
}

/// The hook gets this and `ENVEXEC_*`, nothing of ours.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// How long a killed process may take to be gone (it may hang in the kernel); the runtime reaps it later.
const BURIAL: Duration = Duration::from_secs(1);
/// Pause before a start is tried again while somebody still has the file open for writing.
const BUSY_PAUSE: Duration = Duration::from_millis(20);
const BUSY_ATTEMPTS: usize = 25;

pub(super) async fn run(hook: &HookConfig, input: &Input) -> Outcome {
    // The deadline covers starting, feeding and waiting; the guard kills the group whichever way this is left early.
    let started = tokio::time::Instant::now();
    let mut child = match start(hook, input).await {
        Ok(child) => child,
        Err(e) => return Outcome::NotStarted(e),
    };
    let mut group = Group::of(&child);
    let Some(mut stdin) = child.stdin.take() else {
        return Outcome::NotStarted(io::Error::other("no pipe to the hook"));
    };
    let feed = async move {
        // A hook need not read: it closes the pipe or exits, and its status alone decides.
        let _ = stdin.write_all(&input.stdin).await;
    };
    let answer = async {
        tokio::pin!(feed);
        let mut fed = false;
        loop {
            // Not waiting for the pipe: a grandchild may hold its other end for ever.
            tokio::select! {
                status = child.wait() => break status,
                () = &mut feed, if !fed => fed = true,
            }
        }
    };
    let deadline = started + hook.timeout;
    match tokio::time::timeout_at(deadline, answer).await {
        Ok(Ok(status)) => {
            group.release();
            outcome(status)
        }
        Ok(Err(e)) => Outcome::NotStarted(e),
        Err(_) => {
            group.kill();
            let _ = tokio::time::timeout(BURIAL, child.wait()).await;
            Outcome::TimedOut
        }
    }
}

fn outcome(status: ExitStatus) -> Outcome {
    match status.code() {
        Some(code) => Outcome::Exited(code),
        None => Outcome::Signalled(status.signal().unwrap_or_default()),
    }
}

async fn start(hook: &HookConfig, input: &Input) -> io::Result<Child> {
    let mut command = Command::new(&hook.path);
    command
        .env_clear()
        .env("PATH", PATH)
        .envs(input.environment.iter().map(|(k, v)| (k, v.as_str())))
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .kill_on_drop(true);
    let mut result = command.spawn();
    for _ in 1..BUSY_ATTEMPTS {
        match result {
            Err(e) if e.kind() == io::ErrorKind::ExecutableFileBusy => {
                tokio::time::sleep(BUSY_PAUSE).await;
                result = command.spawn();
            }
            other => return other,
        }
    }
    result
}

/// The hook's process group. Killed when dropped, unless its leader has been reaped: from then on the number may be somebody else's.
struct Group(Option<Pid>);

impl Group {
    fn of(child: &Child) -> Self {
        let id = child.id().and_then(|id| i32::try_from(id).ok());
        Self(id.and_then(Pid::from_raw))
    }

    fn release(&mut self) {
        self.0 = None;
    }

    fn kill(&mut self) {
        if let Some(pid) = self.0.take() {
            // It may be gone already; there is nobody to tell.
            let _ = rustix::process::kill_process_group(pid, Signal::KILL);
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
    }
}
