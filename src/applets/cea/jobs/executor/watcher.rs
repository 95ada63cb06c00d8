//! One task per run of the executor: waits for its end, writes it down, tells the executor that it may forget. It holds two locks and no
//! connection of a dispatcher.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::core::task::spawn_blocking;
use tokio::time::{Instant, sleep};

use super::{QUICK, ask, count_end, reason};
use crate::applets::cea::jobs::{log_store_failure, store_done, store_of};
use crate::applets::cea::state::{Agent, Snapshot};
use crate::core::exec::frame::{JobOrder, Kind, Reply, ReplyExtras};
use crate::core::exec::{Outcome, TRUNCATED_MARK};
use crate::core::jobs::{Claim, Head, Key, Record, Refusal, Status, Store};
use crate::core::logging::Action;
use crate::core::task;
use crate::core::types::ScriptName;

/// The executor answers a `Wait` after 30 s at the latest; some time for a loaded host comes on top.
const WAIT: Duration = Duration::from_secs(45);
/// Pauses after an answer that is none: from the one, doubled, to the other.
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// How long an executor may be away before its runs are given up.
const AWAY: Duration = Duration::from_secs(86_400);
/// How many answers in a row that are none are put down to an executor that is being replaced.
const REFUSALS: u32 = 5;

/// Follows a run that has just begun.
pub(super) fn start(
    agent: &Arc<Agent>,
    snapshot: &Snapshot,
    socket: &Path,
    claim: Claim,
    running: Record,
) {
    let watcher = Watcher {
        agent: agent.clone(),
        socket: socket.to_owned(),
        max_output: snapshot.config.max_output,
        running,
        began: Some(Instant::now()),
    };
    task::spawn(watcher.follow(claim));
}

/// Follows a run that an earlier agent began.
pub(in crate::applets::cea::jobs) fn resume(
    agent: &Arc<Agent>,
    snapshot: &Snapshot,
    key: Key,
    head: Head,
) {
    let watcher = Watcher {
        agent: agent.clone(),
        socket: snapshot.config.executor_socket.clone().unwrap_or_default(),
        max_output: snapshot.config.max_output,
        running: head.to_running(&key),
        began: None,
    };
    let store = store_of(snapshot);
    task::spawn(async move {
        // The agent before us may still be about to end, and hold the locks until then.
        let mut pause = PAUSE.0;
        loop {
            let (store, key, script) = (store.clone(), key.clone(), head.script.clone());
            match spawn_blocking(move || take_up(&store, &key, &script)).await {
                Ok(Ok(Some(claim))) => return watcher.follow(claim).await,
                Ok(Ok(None)) => return,
                Ok(Err(Refusal::Failed(error))) => log_store_failure(&watcher.key(), &error),
                Ok(Err(Refusal::Busy | Refusal::Used)) | Err(_) => {}
            }
            sleep(pause).await;
            pause = (pause * 2).min(PAUSE.1);
        }
    });
}

/// The locks of a run, unless it has ended while they were held by somebody else.
fn take_up(store: &Store, key: &Key, script: &ScriptName) -> Result<Option<Claim>, Refusal> {
    let claim = store.reclaim(key, script)?;
    let still = store
        .read(key)
        .map_err(Refusal::Failed)?
        .is_some_and(|found| found.head.status == Status::Running);
    if still {
        return Ok(Some(claim));
    }
    claim.end();
    Ok(None)
}

struct Watcher {
    agent: Arc<Agent>,
    socket: PathBuf,
    max_output: usize,
    running: Record,
    /// When it began; `None`: before this agent did.
    began: Option<Instant>,
}

/// What an answer to `Wait` means.
#[derive(Debug, PartialEq)]
pub(super) enum Answer {
    Running,
    Ended(Outcome),
    /// Nobody knows the run, or how it ended; what it had said is all there is.
    Lost {
        stdout: Vec<u8>,
        stderr: Vec<u8>,
    },
    /// It refuses to look, since it has too much to do: that says nothing of the run, which may well go on.
    Busy(String),
    /// An executor that does not understand: perhaps the next one is better.
    Puzzling(String),
}

pub(super) fn judge(reply: Reply, max_output: usize) -> Answer {
    let Some(extras) = reply.extras else {
        return Answer::Puzzling(reason(reply));
    };
    match extras.kind {
        Kind::Running => Answer::Running,
        Kind::Unknown | Kind::Lost => {
            let Outcome { stdout, stderr, .. } = outcome(reply, extras, max_output);
            Answer::Lost { stdout, stderr }
        }
        Kind::Denied => Answer::Busy(reason(reply)),
        _ => Answer::Ended(outcome(reply, extras, max_output)),
    }
}

/// The end of a run as the agent keeps it.
pub(super) fn outcome(reply: Reply, extras: ReplyExtras, max_output: usize) -> Outcome {
    let mut truncated = extras.truncated_stdout || extras.truncated_stderr;
    let mut cut = |mut stream: Vec<u8>| {
        if stream.len() > max_output.saturating_add(TRUNCATED_MARK.len()) {
            stream.truncate(max_output);
            stream.extend_from_slice(TRUNCATED_MARK);
            truncated = true;
        }
        stream
    };
    let (stdout, stderr) = (cut(reply.stdout), cut(reply.stderr));
    Outcome {
        exit: reply.exit,
        stdout,
        stderr,
        signal: extras.signal,
        truncated,
        timed_out: extras.timed_out || extras.kind == Kind::Timeout,
        cancelled: extras.kind == Kind::Cancelled,
        stdin_unsent: None,
    }
}

/// Nobody will know how the run ended.
struct Gone {
    why: String,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

impl Gone {
    fn because(why: impl Into<String>) -> Self {
        Self {
            why: why.into(),
            stdout: Vec::new(),
            stderr: Vec::new(),
        }
    }
}

impl Watcher {
    fn key(&self) -> Key {
        Key {
            owner: self.running.owner.clone(),
            reqid: self.running.reqid.clone(),
        }
    }

    async fn follow(self, claim: Claim) {
        let key = self.key();
        let end = self.end(&key).await;
        let now = self.agent.snapshot().clock.iso_now();
        let done = match end {
            Ok(outcome) => {
                Action::new("run-async-done")
                    .field("DISPATCHER", &key.owner)
                    .field("EXIT", outcome.exit)
                    .field("REQID", &key.reqid)
                    .field("SCRIPT", &self.running.script)
                    .info();
                count_end(&self.agent, &self.running.script, outcome.exit, self.began);
                self.running.done(outcome, now)
            }
            Err(Gone {
                why,
                stdout,
                stderr,
            }) => {
                Action::new("run-async-lost")
                    .field("DISPATCHER", &key.owner)
                    .field("REASON", &why)
                    .field("REQID", &key.reqid)
                    .field("SCRIPT", &self.running.script)
                    .warning();
                let why = format!("lost: {why}; the script may have gone on");
                self.running.lost(stdout, stderr, &why, now)
            }
        };
        let stored = spawn_blocking(move || store_done(claim, done)).await;
        if stored.is_ok() {
            // If it does not hear us it forgets by itself, a day later.
            let _ = ask(&self.socket, &key, JobOrder::Forget, QUICK).await;
        }
    }

    /// How the run ended, or why nobody will know.
    async fn end(&self, key: &Key) -> Result<Outcome, Gone> {
        let mut away_since = Instant::now();
        let mut pause = PAUSE.0;
        let mut refusals = 0;
        loop {
            // A reload may have moved the socket.
            let configured = self.agent.snapshot().config.executor_socket.clone();
            let socket = configured.as_deref().unwrap_or(&self.socket);
            if socket.as_os_str().is_empty() {
                return Err(Gone::because("there is no executor configured any more"));
            }
            let asked = Instant::now();
            let trouble = match ask(socket, key, JobOrder::Wait, WAIT).await {
                Ok(reply) => match judge(reply, self.max_output) {
                    Answer::Ended(outcome) => return Ok(outcome),
                    Answer::Lost { stdout, stderr } => {
                        return Err(Gone {
                            stdout,
                            stderr,
                            ..Gone::because("the executor knows nothing of its end")
                        });
                    }
                    Answer::Running => {
                        away_since = Instant::now();
                        pause = PAUSE.0;
                        refusals = 0;
                        // An executor that does not really wait must not make us spin.
                        sleep(PAUSE.0.saturating_sub(asked.elapsed())).await;
                        continue;
                    }
                    Answer::Busy(why) => {
                        refusals = 0;
                        why
                    }
                    Answer::Puzzling(why) => {
                        refusals += 1;
                        if refusals >= REFUSALS {
                            return Err(Gone::because(why));
                        }
                        why
                    }
                },
                Err(error) => error.to_string(),
            };
            if away_since.elapsed() > AWAY {
                return Err(Gone::because(trouble));
            }
            sleep(pause).await;
            pause = (pause * 2).min(PAUSE.1);
        }
    }
}
