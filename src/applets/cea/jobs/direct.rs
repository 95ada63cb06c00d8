//! Runs without an executor: this binary once more, as the supervisor of one run.

use std::io;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::core::task::spawn_blocking;
use rustix::process::Signal;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use super::{Cancelled, Submission, Submitted, supervisor};
use crate::applets::cea::state::{Agent, Snapshot};
use crate::applets::detach;
use crate::core::exec::runner::script_environment;
use crate::core::jobs::{Answer, Key, Order, Store, signal_holder};
use crate::core::logging::Action;
use crate::core::metrics::{RunEnd, RunMode};
use crate::core::task;
use crate::core::wire::errors;

/// Longest time for a supervisor to say whether the run begins.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest line that it says.
const MAX_ANSWER: u64 = 4096;

pub(super) async fn submit(
    agent: &Arc<Agent>,
    snapshot: &Snapshot,
    store: &Store,
    submission: Submission,
) -> Submitted {
    let (reqid, script) = (submission.key.reqid.clone(), submission.script.clone());
    let began = Instant::now();
    let failed = |why: &dyn std::fmt::Display| {
        Action::new("async-store-fail")
            .field("ERROR", why)
            .field("REQID", &reqid)
            .err();
        Submitted::Refused(format!("{}: {why}", errors::ASYNC_START))
    };
    let order = order(agent, snapshot, store, submission);
    let mut child = match start(agent) {
        Ok(child) => child,
        Err(error) => return failed(&error),
    };
    let answer = match timeout(ANSWER_TIMEOUT, ask(&mut child, &order)).await {
        Ok(answer) => answer,
        Err(_) => Err(io::Error::from(io::ErrorKind::TimedOut)),
    };
    let said = match answer {
        Ok(Answer::Accepted) => Submitted::Accepted,
        Ok(Answer::Busy) => Submitted::Busy,
        Ok(Answer::Used) => {
            Submitted::Refused(format!("{}: it is in use already", errors::ASYNC_REQID))
        }
        Ok(Answer::Failed(why)) => failed(&why),
        Err(error) => {
            // Whatever it is about to do, nobody would know of it.
            let _ = child.start_kill();
            failed(&format!("its supervisor gave no answer: {error}"))
        }
    };
    // Reaped whenever it ends; it does not care whether we are there to do so.
    let metrics = matches!(said, Submitted::Accepted).then(|| agent.metrics.clone());
    task::spawn(async move {
        let ended = child.wait().await;
        if let (Some(metrics), Ok(status)) = (metrics, ended) {
            let good = status.success();
            metrics.run(Some(&script), RunEnd::of(i32::from(!good)));
            metrics.took(RunMode::Async, began.elapsed());
        }
    });
    said
}

fn order(agent: &Agent, snapshot: &Snapshot, store: &Store, submission: Submission) -> Order {
    let config = &snapshot.config;
    let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    Order {
        runs: store.root().to_owned(),
        owner: submission.key.owner,
        reqid: submission.key.reqid,
        script: submission.script,
        started: snapshot.clock.iso_now(),
        path: submission.path,
        args: submission.args,
        env: script_environment(&agent.context.env),
        context: submission.context,
        stdin_timeout_ms: millis(config.stdin_timeout),
        run_timeout_ms: millis(config.run_timeout),
        max_output: config.max_output,
    }
}

fn start(agent: &Agent) -> io::Result<Child> {
    let command = detach::again(&agent.context, &[supervisor::MODE.to_owned()])
        .map_err(|error| io::Error::other(error.message().unwrap_or_default().to_owned()))?;
    let mut command = Command::from(command);
    command
        .stdin(Stdio::piped())
        .stderr(Stdio::null())
        .env_remove("NOTIFY_SOCKET")
        .kill_on_drop(false)
        .spawn()
}

async fn ask(child: &mut Child, order: &Order) -> io::Result<Answer> {
    let (Some(mut stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
        return Err(io::Error::other("it has no pipes"));
    };
    let bytes = zeroize::Zeroizing::new(serde_json::to_vec(order)?);
    stdin.write_all(&bytes).await?;
    drop(stdin);
    let mut said = String::new();
    stdout.take(MAX_ANSWER).read_to_string(&mut said).await?;
    Answer::from_line(&said).ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))
}

pub(super) async fn cancel(store: &Store, key: &Key) -> Cancelled {
    let live = store.live(key);
    match spawn_blocking(move || signal_holder(&live, Signal::USR1)).await {
        Ok(Ok(true)) => Cancelled::Cancelling,
        // Ended between our look at the record and this one.
        Ok(Ok(false)) => Cancelled::Done,
        Ok(Err(error)) => Cancelled::Failed(error.to_string()),
        Err(error) => Cancelled::Failed(error.to_string()),
    }
}
