//! Asynchronous runs: how they begin, how they are doing, how they are ended (spec/agent.md 12, spec/executor.md 13).
//!
//! Without an executor a run belongs to a supervisor process of its own ([`supervisor`]), which needs the agent for nothing. With an
//! executor it belongs to that, and a task of the agent waits for its end ([`executor`]). The agent itself can be restarted at any time: all
//! it knows is in the store ([`crate::core::jobs`]). No waiting run holds a connection or a place among `max_children`.

mod direct;
mod executor;
pub(super) mod supervisor;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::core::task::spawn_blocking;
use tokio::time::{Instant, sleep};

use crate::applets::cea::state::{Agent, Snapshot};
use crate::core::exec::lossy;
use crate::core::jobs::{Claim, Found, Head, JobError, Key, Record, Status, Store, Via};
use crate::core::logging::Action;
use crate::core::types::{ScriptName, Secret};

/// Pause between two sweeps over the store when nothing is submitted.
const SWEEP_PAUSE: Duration = Duration::from_secs(3600);
/// A submit sweeps only when the last sweep is longer ago than this: walking thousands of files for each of thousands of runs helps nobody.
const SWEEP_HASTE: Duration = Duration::from_secs(60);

/// What the agent remembers about runs. Nothing of it is needed after a restart.
#[derive(Default)]
pub(super) struct Jobs {
    swept: std::sync::Mutex<Option<Instant>>,
    known: executor::Known,
}

/// A run that was checked and may begin.
pub(super) struct Submission {
    pub(super) key: Key,
    pub(super) script: ScriptName,
    pub(super) path: PathBuf,
    pub(super) args: Vec<String>,
    /// For the executor's log.
    pub(super) username: String,
    pub(super) peer_ip: String,
    /// What the script gets on its stdin.
    pub(super) context: Secret<String>,
}

/// What became of a [`Submission`].
#[derive(Debug)]
pub(super) enum Submitted {
    Accepted,
    /// The script runs already.
    Busy,
    /// It does not run, for this reason: a sentence for the caller.
    Refused(String),
}

/// What became of the wish to end a run.
#[derive(Debug)]
pub(super) enum Cancelled {
    Cancelling,
    /// It has ended already.
    Done,
    Unknown,
    /// It goes on, for this reason.
    Failed(String),
}

pub(super) fn store_of(snapshot: &Snapshot) -> Store {
    let config = &snapshot.config;
    Store::new(&config.async_runs_dir, config.max_output)
}

/// Begins a run.
pub(super) async fn submit(
    agent: &Arc<Agent>,
    snapshot: &Arc<Snapshot>,
    submission: Submission,
) -> Submitted {
    let store = store_of(snapshot);
    sweep_if_due(agent, &store).await;
    match &snapshot.config.executor_socket {
        Some(socket) => executor::submit(agent, snapshot, store, socket, submission).await,
        None => direct::submit(agent, snapshot, &store, submission).await,
    }
}

/// The body of `/result`: the stored record, and what a script has said so far that still runs. `None`: no such run.
///
/// # Errors
/// The record cannot be read, or is not what its name says.
pub(super) async fn look(
    snapshot: &Arc<Snapshot>,
    key: &Key,
) -> Result<Option<(Status, Vec<u8>)>, JobError> {
    let store = store_of(snapshot);
    let Some(found) = settled(snapshot, &store, key).await? else {
        return Ok(None);
    };
    if found.head.status == Status::Done {
        return Ok(Some((Status::Done, found.bytes)));
    }
    let so_far = match found.head.via {
        Some(Via::Executor) => executor::peek(snapshot, key).await,
        Some(Via::Agent) | None => store.progress(key),
    };
    Ok(Some((Status::Running, with_output(found, so_far))))
}

/// The record with the output so far: fields that other peers ignore.
fn with_output(found: Found, so_far: Option<(Vec<u8>, Vec<u8>)>) -> Vec<u8> {
    let Some((stdout, stderr)) = so_far else {
        return found.bytes;
    };
    let Ok(mut record) =
        serde_json::from_slice::<serde_json::Map<String, serde_json::Value>>(&found.bytes)
    else {
        return found.bytes;
    };
    record.insert("stdout".to_owned(), lossy(stdout).into());
    record.insert("stderr".to_owned(), lossy(stderr).into());
    serde_json::to_vec(&record).unwrap_or(found.bytes)
}

/// Ends a run.
///
/// # Errors
/// As [`look`].
pub(super) async fn cancel(snapshot: &Arc<Snapshot>, key: &Key) -> Result<Cancelled, JobError> {
    let store = store_of(snapshot);
    let Some(Found { head, .. }) = settled(snapshot, &store, key).await? else {
        return Ok(Cancelled::Unknown);
    };
    Ok(match (head.status, head.via) {
        (Status::Done, _) => Cancelled::Done,
        (Status::Running, Some(Via::Executor)) => executor::cancel(snapshot, key).await,
        (Status::Running, Some(Via::Agent)) => direct::cancel(&store, key).await,
        (Status::Running, None) => Cancelled::Failed(
            "the run was started by an earlier release that cannot end one".to_owned(),
        ),
    })
}

async fn settled(snapshot: &Snapshot, store: &Store, key: &Key) -> Result<Option<Found>, JobError> {
    let (store, key, now) = (store.clone(), key.clone(), snapshot.clock.iso_now());
    let path = store.root().to_owned();
    spawn_blocking(move || store.settled(&key, &now))
        .await
        .unwrap_or_else(|e| {
            Err(JobError::File {
                path,
                source: std::io::Error::other(e),
            })
        })
}

/// Picks up after a start: runs that were lost are brought to their end, those of the executor are waited for again, and what is old goes.
/// Then sweeps for as long as the agent lives.
pub(super) async fn look_after(agent: Arc<Agent>) {
    let snapshot = agent.snapshot();
    let store = store_of(&snapshot);
    let now = snapshot.clock.iso_now();
    let walk = move || {
        let running = store.running();
        running
            .into_iter()
            .filter(|(key, head)| {
                if head.via != Some(Via::Executor)
                    && let Err(error) = store.settled(key, &now)
                {
                    log_store_failure(key, &error);
                }
                head.via == Some(Via::Executor)
            })
            .collect::<Vec<(Key, Head)>>()
    };
    for (key, head) in spawn_blocking(walk).await.unwrap_or_default() {
        executor::resume(&agent, &snapshot, key, head);
    }
    drop(snapshot);
    loop {
        let store = store_of(&agent.snapshot());
        sweep(&agent, &store).await;
        sleep(SWEEP_PAUSE).await;
    }
}

async fn sweep_if_due(agent: &Agent, store: &Store) {
    let due = {
        let swept = agent.jobs.swept.lock();
        let swept = swept.unwrap_or_else(std::sync::PoisonError::into_inner);
        swept.is_none_or(|at| at.elapsed() > SWEEP_HASTE)
    };
    if due {
        sweep(agent, store).await;
    }
}

async fn sweep(agent: &Agent, store: &Store) {
    *agent
        .jobs
        .swept
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner) = Some(Instant::now());
    let store = store.clone();
    let Ok(swept) = spawn_blocking(move || store.sweep(SystemTime::now())).await else {
        return;
    };
    if swept.records > 0 || swept.incomplete {
        Action::new("async-sweep")
            .field("COUNT", swept.records)
            .field("INCOMPLETE", swept.incomplete)
            .info();
    }
}

fn log_store_failure(key: &Key, error: &dyn std::fmt::Display) {
    Action::new("async-store-fail")
        .field("ERROR", error)
        .field("REQID", &key.reqid)
        .err();
}

/// Writes the end of a run and gives its locks back. If there is no room for its output, at least for how it ended.
fn store_done(claim: Claim, done: Record) {
    let Err(error) = claim.write(&done) else {
        claim.end();
        return;
    };
    log_store_failure(claim.key(), &error);
    let why = format!("the output could not be stored: {error}\n");
    let short = Record {
        stdout: Some(String::new()),
        stderr: Some(why),
        truncated: true,
        ..done
    };
    match claim.write(&short) {
        Ok(()) => claim.end(),
        // The record stays `running` and is taken for lost as soon as the locks are free: now.
        Err(error) => log_store_failure(claim.key(), &error),
    }
}
