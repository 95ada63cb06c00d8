//! Runs by the root executor: it keeps them going, the agent asks how they are and writes down how they end (spec/executor.md 4.4, 13).

mod watcher;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::core::task::spawn_blocking;
use tokio::time::Instant;

use super::{Cancelled, Submission, Submitted, log_store_failure, store_done};
use crate::applets::cea::state::{Agent, Snapshot};
use crate::core::exec::executor_client::{ExecutorError, call_raw};
use crate::core::exec::frame::{
    JOB_SCRIPT, JobOrder, Kind, Reply, ReplyExtras, Request, RequestExtras,
};
use crate::core::exec::{Outcome, lossy};
use crate::core::jobs::{Claim, Key, Record, Refusal, Store, Via};
use crate::core::metrics::{RunEnd, RunMode};
use crate::core::types::ScriptName;
use crate::core::wire::errors;

pub(super) use watcher::resume;

/// Longest wait for an answer that needs nothing but a look.
const QUICK: Duration = Duration::from_secs(5);
/// Longest wait for a run to begin: the executor takes the request, decides and starts a supervisor.
const BEGIN: Duration = Duration::from_secs(30);
/// How long it is believed what an executor said that it can do.
const KNOWN_FOR: Duration = Duration::from_secs(60);

/// What is known of the executor: whether it can do detached runs.
#[derive(Default)]
pub(in crate::applets::cea) struct Known(Mutex<Option<(PathBuf, Instant, bool)>>);

impl Known {
    fn slot(&self) -> MutexGuard<'_, Option<(PathBuf, Instant, bool)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn recall(&self, socket: &Path) -> Option<bool> {
        let slot = self.slot();
        let (of, at, able) = slot.as_ref()?;
        (of == socket && at.elapsed() < KNOWN_FOR).then_some(*able)
    }
}

/// One order about a run, or about the executor itself.
async fn ask(
    socket: &Path,
    key: &Key,
    job: JobOrder,
    deadline: Duration,
) -> Result<Reply, ExecutorError> {
    let request = Request {
        reqid: key.reqid.to_string(),
        dispatcher: key.owner.to_string(),
        script: JOB_SCRIPT.to_owned(),
        extras: RequestExtras {
            job: Some(job),
            ..RequestExtras::default()
        },
        ..Request::default()
    };
    call_raw(socket, &request, deadline).await
}

/// Whether the executor can do detached runs; one of the original cannot, and says so by answering without a trailer.
async fn can_detach(known: &Known, socket: &Path, key: &Key) -> Result<bool, String> {
    if let Some(able) = known.recall(socket) {
        return Ok(able);
    }
    let reply = ask(socket, key, JobOrder::Hello, QUICK)
        .await
        .map_err(|e| e.to_string())?;
    if reply.extras.is_some() && reply.exit != 0 {
        // It would know the order but does not serve us at the moment: nothing to remember.
        return Err(reason(reply));
    }
    let able = reply.extras.is_some();
    *known.slot() = Some((socket.to_owned(), Instant::now(), able));
    Ok(able)
}

pub(super) async fn submit(
    agent: &Arc<Agent>,
    snapshot: &Arc<Snapshot>,
    store: Store,
    socket: &Path,
    submission: Submission,
) -> Submitted {
    if let Some(why) = agent.context.no_executor() {
        return Submitted::Refused(why);
    }
    let key = submission.key.clone();
    match can_detach(&agent.jobs.known, socket, &key).await {
        Ok(true) => {}
        Ok(false) => return Submitted::Refused(errors::ASYNC_EXECUTOR.to_owned()),
        Err(why) => return Submitted::Refused(why),
    }
    let running = Record::running(
        &key,
        &submission.script,
        snapshot.clock.iso_now(),
        Via::Executor,
    );
    let claim = match claim(store, running.clone(), submission.script.clone()).await {
        Ok(claim) => claim,
        Err(refusal) => return refusal,
    };
    let script = submission.script.clone();
    let began = Instant::now();
    let request = detached(snapshot, submission);
    let max_output = snapshot.config.max_output;
    let reply = call_raw(socket, &request, BEGIN).await;
    if reply.is_err() {
        *agent.jobs.known.slot() = None;
    }
    match judge(reply, socket, &key, max_output).await {
        Begun::GoesOn => watcher::start(agent, snapshot, socket, claim, running),
        Begun::Ended(outcome) => {
            count_end(agent, &script, outcome.exit, Some(began));
            let done = running.done(outcome, snapshot.clock.iso_now());
            let _ = spawn_blocking(move || store_done(claim, done)).await;
        }
        Begun::Refused(why) => {
            let _ = spawn_blocking(move || claim.withdraw()).await;
            return Submitted::Refused(why);
        }
    }
    Submitted::Accepted
}

/// Counts a run that has ended. `began`: unknown for one that an earlier agent began.
fn count_end(agent: &Agent, script: &ScriptName, exit: i32, began: Option<Instant>) {
    agent.metrics.run(Some(script), RunEnd::of(exit));
    if let Some(began) = began {
        agent.metrics.took(RunMode::Async, began.elapsed());
    }
}

/// Takes the locks and writes the first record, away from the threads that serve others.
async fn claim(store: Store, running: Record, script: ScriptName) -> Result<Claim, Submitted> {
    let key = Key {
        owner: running.owner.clone(),
        reqid: running.reqid.clone(),
    };
    let failed = |why: &dyn std::fmt::Display| {
        log_store_failure(&key, why);
        Submitted::Refused(format!("{}: {why}", errors::ASYNC_START))
    };
    let work = {
        let key = key.clone();
        move || {
            let claim = store.claim(&key, &script)?;
            match claim.write(&running) {
                Ok(()) => Ok(claim),
                Err(error) => {
                    claim.withdraw();
                    Err(Refusal::Failed(error))
                }
            }
        }
    };
    match spawn_blocking(work).await {
        Ok(Ok(claim)) => Ok(claim),
        Ok(Err(Refusal::Busy)) => Err(Submitted::Busy),
        Ok(Err(Refusal::Used)) => Err(Submitted::Refused(format!(
            "{}: it is in use already",
            errors::ASYNC_REQID
        ))),
        Ok(Err(Refusal::Failed(error))) => Err(failed(&error)),
        Err(error) => Err(failed(&error)),
    }
}

fn detached(snapshot: &Snapshot, submission: Submission) -> Request {
    let said = |text: String| (!text.is_empty()).then_some(text);
    Request {
        reqid: submission.key.reqid.to_string(),
        dispatcher: submission.key.owner.to_string(),
        script: submission.script.to_string(),
        stdin: submission.context.expose().clone().into_bytes(),
        args: submission
            .args
            .into_iter()
            .map(String::into_bytes)
            .collect(),
        extras: RequestExtras {
            timeout: Some(snapshot.config.run_timeout),
            username: said(submission.username),
            peer_ip: said(submission.peer_ip),
            detach: true,
            job: None,
        },
    }
}

/// What became of the wish to begin a run.
enum Begun {
    GoesOn,
    Ended(Outcome),
    Refused(String),
}

/// When the answer got lost the executor is asked once more; a run that may be going on is never denied.
async fn judge(
    reply: Result<Reply, ExecutorError>,
    socket: &Path,
    key: &Key,
    max_output: usize,
) -> Begun {
    match reply {
        Ok(reply) => match kind(&reply) {
            Some(Kind::Running) => Begun::GoesOn,
            // Replaced by one of the original since it was asked what it can do: that has run the script and told us how it ended.
            None if reply.exit >= 0 => {
                Begun::Ended(watcher::outcome(reply, ReplyExtras::default(), max_output))
            }
            _ => Begun::Refused(reason(reply)),
        },
        Err(error @ (ExecutorError::Unreachable(_) | ExecutorError::Write(_))) => {
            Begun::Refused(error.to_string())
        }
        Err(error) => match ask(socket, key, JobOrder::Peek, QUICK).await {
            Ok(reply) if kind(&reply) == Some(Kind::Unknown) => Begun::Refused(error.to_string()),
            _ => Begun::GoesOn,
        },
    }
}

fn kind(reply: &Reply) -> Option<Kind> {
    reply.extras.map(|extras| extras.kind)
}

/// The executor's own words for a refusal.
fn reason(reply: Reply) -> String {
    let text = lossy(reply.stderr);
    let text = text.trim();
    if text.is_empty() {
        format!("executor: refused (exit {})", reply.exit)
    } else {
        text.to_owned()
    }
}

/// What a run has said so far; `None` when that cannot be told now.
pub(super) async fn peek(snapshot: &Snapshot, key: &Key) -> Option<(Vec<u8>, Vec<u8>)> {
    let socket = snapshot.config.executor_socket.as_ref()?;
    let reply = ask(socket, key, JobOrder::Peek, QUICK).await.ok()?;
    match kind(&reply)? {
        Kind::Unknown | Kind::Denied | Kind::Lost => None,
        _ => Some((reply.stdout, reply.stderr)),
    }
}

/// Has the executor end a run; the watcher learns how it ended.
pub(super) async fn cancel(snapshot: &Snapshot, key: &Key) -> Cancelled {
    let Some(socket) = snapshot.config.executor_socket.as_ref() else {
        return Cancelled::Failed("there is no executor any more".to_owned());
    };
    match ask(socket, key, JobOrder::Cancel, QUICK).await {
        Ok(reply) => match kind(&reply) {
            Some(Kind::Running) => Cancelled::Cancelling,
            None | Some(Kind::Denied) => Cancelled::Failed(reason(reply)),
            // The end itself, which the watcher is about to write down.
            Some(_) => Cancelled::Done,
        },
        Err(error) => Cancelled::Failed(error.to_string()),
    }
}

#[cfg(test)]
mod tests;
