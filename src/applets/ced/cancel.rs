//! `ced cancel REQID`: ends an asynchronous run on every host where it still goes on. Ours; an agent of the original cannot do it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use argh::FromArgs;
use serde_json::{Value, json};

use crate::applets::ced::dispatch::{HostResult, Job};
use crate::applets::ced::follow::{self, Agents};
use crate::applets::ced::{Call, common, show};
use crate::applets::{AppError, Context, Exit};
use crate::core::client::error::ExchangeError;
use crate::core::client::exchange::Answer;
use crate::core::config::diagnostics::printable;
use crate::core::logging::Action;
use crate::core::runs::{Record, Store};
use crate::core::terminal;
use crate::core::types::ReqId;
use crate::say;

/// After these pauses the results are fetched: a script has two seconds between SIGTERM and SIGKILL.
const PAUSES: [Duration; 3] = [
    Duration::from_millis(300),
    Duration::from_millis(1000),
    Duration::from_millis(2500),
];

/// End an asynchronous run on every host where it still goes on, then show it: ced cancel REQID
#[derive(FromArgs)]
#[argh(help_triggers("-h", "--help"))]
struct CancelArgs {
    /// configuration file (default /etc/ctrl-exec/ctrl-exec.toml, else ctrl-exec.conf)
    #[argh(option)]
    config: Option<PathBuf>,
    /// print the record as one JSON object, with what each host said to it under "cancel"
    #[argh(switch)]
    json: bool,
    /// request id, as 'ced run' and 'ced jobs' show it
    #[argh(positional)]
    reqid: String,
}

/// What a host made of the wish.
#[derive(Clone, Debug, Eq, PartialEq)]
enum Reply {
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
            Ok(answer) => Self::Failed(match show::text(&answer.body, "error") {
                "" => "the agent did not say that it ends the run".to_owned(),
                error => error.to_owned(),
            }),
            Err(ExchangeError::Busy(_)) => Self::Ended,
            Err(ExchangeError::NotFound { no_run: true, .. }) => Self::Unknown,
            Err(ExchangeError::NotFound { no_run: false, .. }) => Self::Unsupported,
            Err(error) => Self::Failed(error.to_string()),
        }
    }

    fn is_good(&self) -> bool {
        matches!(self, Self::Cancelling | Self::Ended)
    }

    fn word(&self) -> &'static str {
        match self {
            Self::Cancelling => "cancelling",
            Self::Ended => "ended",
            Self::Unknown => "unknown",
            Self::Unsupported => "unsupported",
            Self::Failed(_) => "error",
        }
    }

    /// Why the run may still go on.
    fn error(&self) -> Option<&str> {
        match self {
            Self::Cancelling | Self::Ended => None,
            Self::Unknown => Some("the agent has no record of this run (any more)"),
            Self::Unsupported => Some(
                "this host's agent cannot cancel runs (it is of an earlier release): the script goes on to its end",
            ),
            Self::Failed(why) => Some(why),
        }
    }

    fn told(&self) -> String {
        match (self, self.error()) {
            (Self::Ended, _) => "had ended already".to_owned(),
            (_, None) => "being cancelled".to_owned(),
            (_, Some(error)) => format!("NOT CANCELLED: {}", printable(error)),
        }
    }
}

pub(super) fn main(context: &Context, call: &Call) -> Result<Exit, AppError> {
    let args: CancelArgs = call.parse()?;
    let config = common::load_config(context, args.config.as_deref())?;
    let store = common::run_store(&config);
    let mut record = follow::find(&store, &args.reqid, args.json)?;
    let mut replies = BTreeMap::new();
    if !record.is_complete() {
        let agents = Agents::new(context, &config)?;
        (replies, record) = common::block_on(cancel(&agents, &store, record, args.json))??;
    } else if !args.json {
        say!("Nothing to cancel: the run has ended on every host.");
    }
    if args.json {
        let mut shown = show::record_json(&record);
        let replies = replies.iter().map(|(host, reply)| {
            let mut object = json!({"status": reply.word()});
            if let Some(error) = reply.error() {
                object["error"] = error.into();
            }
            (host.clone(), object)
        });
        shown["cancel"] = Value::Object(replies.collect());
        say!("{shown}");
    } else {
        terminal::stdout_bytes(show::record(&record).as_bytes());
    }
    Ok(if replies.values().all(Reply::is_good) {
        Exit::Success
    } else {
        Exit::Failure
    })
}

/// Asks every pending host to end the run, then fetches what became of it.
async fn cancel(
    agents: &Agents,
    store: &Store,
    mut record: Record,
    quiet: bool,
) -> Result<(BTreeMap<String, Reply>, Record), AppError> {
    let reqid = record.reqid.clone();
    let body = serde_json::to_vec(&json!({"reqid": reqid.as_str()}))
        .map_err(|e| AppError::failed(format!("cannot encode the request: {e}")))?;
    let show = |host: &str, reply: &Reply| {
        if !quiet {
            say!("==> {}  [{}]", printable(host), reply.told());
        }
    };
    let (targets, lost) = agents.targets(&record);
    let mut replies = BTreeMap::new();
    for (host, why) in lost {
        let reply = Reply::Failed(why);
        show(&host, &reply);
        replies.insert(host, reply);
    }
    agents
        .ask(targets, &Job::post("/cancel", body), None, |result| {
            let reply = Reply::of(&result.answer);
            log(result, &reply, &reqid);
            show(result.host(), &reply);
            replies.insert(result.host().to_owned(), reply);
        })
        .await;
    for pause in PAUSES {
        tokio::time::sleep(pause).await;
        record = agents.refresh(store, record, None).await;
        // Only those that said that they end it are waited for.
        let awaited = |host: &&str| replies.get(*host).is_some_and(Reply::is_good);
        if !record.pending().iter().any(awaited) {
            break;
        }
    }
    Ok((replies, record))
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
