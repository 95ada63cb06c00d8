//! Ending an asynchronous run on every host where it still goes on. Ours; an agent of the original cannot do it.

use std::collections::BTreeMap;
use std::time::Duration;

use super::ask::{HostResult, Job, text};
use super::follow::Agents;
use crate::core::client::error::ExchangeError;
use crate::core::client::exchange::Answer;
use crate::core::logging::Action;
use crate::core::runs::{Record, RunError, Store};
use crate::core::types::ReqId;

/// After these pauses the results are fetched: a script has two seconds between SIGTERM and SIGKILL.
const PAUSES: [Duration; 3] = [
    Duration::from_millis(300),
    Duration::from_millis(1000),
    Duration::from_millis(2500),
];

/// What a host made of the wish.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Reply {
    /// The script is being ended.
    Cancelling,
    /// It had ended before.
    Ended,
    /// The agent knows no such run.
    Unknown,
    /// The agent cannot cancel anything.
    Unsupported,
    Failed(String),
}

impl Reply {
    fn of(answer: &Result<Answer, ExchangeError>) -> Self {
        match answer {
            Ok(answer) if answer.status == 202 => Self::Cancelling,
            Ok(answer) => Self::Failed(match text(&answer.body, "error") {
                "" => "the agent did not say that it ends the run".to_owned(),
                error => error.to_owned(),
            }),
            Err(ExchangeError::Busy(_)) => Self::Ended,
            Err(ExchangeError::NotFound { no_run: true, .. }) => Self::Unknown,
            Err(ExchangeError::NotFound { no_run: false, .. }) => Self::Unsupported,
            Err(error) => Self::Failed(error.to_string()),
        }
    }

    /// The script has ended or is about to.
    pub fn is_good(&self) -> bool {
        matches!(self, Self::Cancelling | Self::Ended)
    }

    /// `status` of the host's object, and STATUS of its line in the log.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Cancelling => "cancelling",
            Self::Ended => "ended",
            Self::Unknown => "unknown",
            Self::Unsupported => "unsupported",
            Self::Failed(_) => "error",
        }
    }

    /// Why the run may still go on.
    pub fn error(&self) -> Option<&str> {
        match self {
            Self::Cancelling | Self::Ended => None,
            Self::Unknown => Some("the agent has no record of this run (any more)"),
            Self::Unsupported => Some(
                "this host's agent cannot cancel runs (it is of an earlier release): the script goes on to its end",
            ),
            Self::Failed(why) => Some(why),
        }
    }
}

/// What came of it.
#[derive(Debug)]
pub struct Cancelled {
    /// By host, of those that were pending.
    pub replies: BTreeMap<String, Reply>,
    pub record: Record,
    /// The record's file is not up to date; that is in the log already.
    pub problem: Option<RunError>,
}

/// Asks every pending host to end the run, handing each reply to `told` as it comes, then fetches what became of it: for about four seconds, if
/// there is a host that said that it ends it.
pub async fn cancel(
    agents: &Agents,
    store: &Store,
    record: Record,
    told: &mut (dyn FnMut(&str, &Reply) + Send),
) -> Cancelled {
    let reqid = record.reqid.clone();
    let (mut record, targets, lost) = agents.targets(record).await;
    let mut replies = BTreeMap::new();
    for (host, why) in lost {
        let reply = Reply::Failed(why);
        told(&host, &reply);
        replies.insert(host, reply);
    }
    let mut taken = |result: &HostResult| {
        let reply = Reply::of(&result.answer);
        log(result, &reply, &reqid);
        told(result.host(), &reply);
        replies.insert(result.host().to_owned(), reply);
    };
    agents
        .ask(targets, &Job::cancel(&reqid), None, &mut taken)
        .await;
    let mut problem = None;
    for pause in PAUSES {
        tokio::time::sleep(pause).await;
        let merged = agents.refresh(store, record, None).await;
        (record, problem) = (merged.record, merged.problem);
        // Only those that said that they end it are waited for.
        let awaited = |host: &&str| replies.get(*host).is_some_and(Reply::is_good);
        if !record.pending().iter().any(awaited) {
            break;
        }
    }
    Cancelled {
        replies,
        record,
        problem,
    }
}

fn log(result: &HostResult, reply: &Reply, reqid: &ReqId) {
    let line = Action::new("cancel")
        .field("REQID", reqid)
        .field("RTT", &result.rtt)
        .field("STATUS", reply.word())
        .field("TARGET", result.target.authority());
    match reply.error() {
        None => line.info(),
        Some(error) => line.field("ERROR", error).warning(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn answers_of_agents_old_and_new() {
        let not_found = |no_run| {
            let words = "not found".to_owned();
            Reply::of(&Err(ExchangeError::NotFound { words, no_run }))
        };
        let answer = |status, body: Value| {
            let body = body.as_object().cloned().unwrap_or_default();
            Reply::of(&Ok(Answer::of_somebody(status, body)))
        };
        assert_eq!(answer(202, json!({})), Reply::Cancelling);
        assert_eq!(
            answer(200, json!({"error": "x"})),
            Reply::Failed("x".into())
        );
        assert_eq!(not_found(true), Reply::Unknown);
        assert_eq!(not_found(false), Reply::Unsupported);
        let ended = Reply::of(&Err(ExchangeError::Busy("run already ended".into())));
        assert_eq!(ended, Reply::Ended);
        // What is not known to have ended is no success.
        assert!(ended.is_good() && !not_found(true).is_good() && !not_found(false).is_good());
    }
}
