//! `GET /status/{reqid}` (spec/api.md 5.6). The hook is asked before any agent is, and for runs that do not exist as well: a refusal and an
//! absence are told with the same words after the same work.

use std::time::{Duration, SystemTime};

use axum::response::Response;
use serde_json::{Map, Value};

use super::common;
use crate::applets::api::call::{Call, Wanted};
use crate::applets::api::reply;
use crate::applets::api::stream::{self, Sender};
use crate::core::authhook::{Decision, HookAction, HookContext};
use crate::core::dispatch::blocking;
use crate::core::dispatch::follow::Agents;
use crate::core::logging::Action;
use crate::core::runs::{Body, Record, RunError};
use crate::core::task;
use crate::core::types::{AgentName, ReqId};

/// Longest stream about one run; then the client asks again.
const LONGEST_STREAM: Duration = Duration::from_secs(3600);

pub(in crate::applets::api) async fn status(call: Call) -> Response {
    answer(call).await.unwrap_or_else(|refusal| refusal)
}

async fn answer(call: Call) -> Result<Response, Response> {
    let (reqid, record) = find(&call, HookAction::Status).await?;
    let Some(record) = record else {
        return Err(absent(&reqid));
    };
    if record.is_complete() && call.wanted == Wanted::Json {
        return Ok(reply::ok(&told(&record)));
    }
    if call.wanted == Wanted::Json && !call.api.may_ask(&reqid, is_patient(&call, &record).await) {
        return Ok(reply::ok(&told(&record)));
    }
    let place = common::begin(&call)?;
    let agents = agents(&call).await;
    if call.wanted == Wanted::Json {
        let work = async move {
            let _place = place;
            let store = call.snapshot.store();
            let record = agents.refresh(&store, record, None).await.record;
            reply::ok(&told(&record))
        };
        return Ok(common::see_through(work).await);
    }
    let (sender, response) = stream::open(call.wanted);
    task::spawn(async move {
        let _place = place;
        follow(&call, &agents, record, &sender).await;
    });
    Ok(response)
}

/// Whether all agents that would be asked are ours. Those of the original take ten connections a minute and then shut their dispatcher out for
/// five, and clients of this route like to ask every two seconds.
async fn is_patient(call: &Call, record: &Record) -> bool {
    let registry = common::registry(&call.snapshot.config);
    let pending: Vec<AgentName> = record
        .pending()
        .into_iter()
        .filter_map(|host| AgentName::new(host).ok())
        .collect();
    blocking(move || {
        let is_old = |name: &AgentName| {
            let record = registry.get(name).ok().flatten();
            record.is_some_and(|record| record.is_older_release())
        };
        !pending.iter().any(is_old)
    })
    .await
}

/// Asks gate 2, whether or not there is such a record.
///
/// # Errors
/// The answer to a refusal, which is that of [`absent`]; or 500 for a record that is there and cannot be read.
pub(super) async fn find(
    call: &Call,
    action: HookAction,
) -> Result<(ReqId, Option<Record>), Response> {
    let text = call.reqid.clone().unwrap_or_default();
    let Ok(reqid) = ReqId::new(&text) else {
        return Err(reply::not_found(&format!("no result for reqid {text}")));
    };
    let store = call.snapshot.store();
    let purge = call.api.purge_is_due();
    let wanted = reqid.clone();
    let loaded = blocking(move || {
        if purge {
            store.purge(SystemTime::now());
        }
        store.load(&wanted)
    })
    .await;
    let submitter = match &loaded {
        Ok(Some(record)) => record.submitter(),
        Ok(None) | Err(_) => None,
    };
    let asked = HookContext {
        reqid: text,
        submitter,
        token: call.bearer.clone(),
        ..call.asks(action)
    };
    if call.ask(&asked).await != Decision::Allowed {
        return Err(absent(&reqid));
    }
    match loaded {
        Ok(record) => Ok((reqid, record)),
        Err(error) => Err(unreadable(&error, &reqid)),
    }
}

pub(super) fn absent(reqid: &ReqId) -> Response {
    reply::not_found(&format!("no result for reqid {reqid}"))
}

fn unreadable(error: &RunError, reqid: &ReqId) -> Response {
    Action::new("run-store-fail")
        .field("ERROR", error)
        .field("REQID", reqid)
        .warning();
    common::server_error("cannot read result")
}

pub(super) async fn agents(call: &Call) -> Agents {
    Agents {
        client: call.api.client().await,
        registry: common::registry(&call.snapshot.config),
        slots: call.api.exchanges.clone(),
    }
}

/// The record as clients see it: without who submitted it.
pub(super) fn told(record: &Record) -> Map<String, Value> {
    let mut object = record.to_object();
    object.remove("submitter");
    object.remove("owner");
    object.insert("ok".to_owned(), true.into());
    object
}

/// Tells what is known, then every change, until all hosts have ended.
async fn follow(call: &Call, agents: &Agents, mut record: Record, events: &Sender) {
    let store = call.snapshot.store();
    let began = tokio::time::Instant::now();
    events.send("status", Value::Object(told(&record)));
    for poll in 0.. {
        if record.is_complete() || events.is_over() || began.elapsed() >= LONGEST_STREAM {
            break;
        }
        tokio::time::sleep(pause(poll)).await;
        let before = record.clone();
        record = agents.refresh(&store, record, None).await.record;
        for (host, entry) in changes(&before, &record) {
            let mut entry = entry;
            entry.insert("host".to_owned(), host.into());
            events.send("host", Value::Object(entry));
        }
    }
    let mut end = Map::new();
    end.insert("ok".to_owned(), true.into());
    end.insert("reqid".to_owned(), record.reqid.as_str().into());
    end.insert("complete".to_owned(), record.is_complete().into());
    events.send("end", Value::Object(end));
}

/// As `ced wait`: an agent of the original blocks whoever asks it more than ten times a minute.
fn pause(poll: u32) -> Duration {
    Duration::from_secs(match poll {
        0..=2 => u64::from(poll) + 1,
        _ => 10,
    })
}

/// Hosts of which something else is known than before.
fn changes(before: &Record, after: &Record) -> Vec<(String, Map<String, Value>)> {
    let (Body::Async(old), Body::Async(new)) = (&before.body, &after.body) else {
        return Vec::new();
    };
    new.hosts
        .iter()
        .filter(|(host, entry)| old.hosts.get(*host) != Some(entry))
        .map(|(host, entry)| {
            let mut fields = entry.fields.clone();
            fields.insert("status".to_owned(), entry.status.as_str().into());
            (host.clone(), fields)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::runs::{AsyncRun, Entry, Status};

    fn record(entries: &[(&str, Entry)]) -> Record {
        let hosts = entries
            .iter()
            .map(|(host, entry)| ((*host).to_owned(), entry.clone()))
            .collect();
        let reqid = ReqId::new("00ff").unwrap();
        let mut record = Record::new(reqid, "s", Body::Async(AsyncRun { hosts, created: 1 }));
        record.set_owner("token:secret");
        record
    }

    #[test]
    fn only_changes_are_told_and_never_the_owner() {
        let before = record(&[
            ("a", Entry::new(Status::Running)),
            ("b", Entry::new(Status::Running)),
        ]);
        let done = Entry::new(Status::Done).with("exit", 0);
        let after = record(&[("a", done), ("b", Entry::new(Status::Running))]);
        let changes = changes(&before, &after);
        assert_eq!(changes.len(), 1);
        assert_eq!(
            (changes[0].0.as_str(), &changes[0].1["status"]),
            ("a", &Value::from("done"))
        );
        assert!(!Value::Object(told(&after)).to_string().contains("secret"));
    }

    #[test]
    fn no_stream_runs_into_the_rate_limit_of_an_agent() {
        let in_a_minute = (0..)
            .map(pause)
            .scan(0, |at, pause| {
                *at += pause.as_secs();
                Some(*at)
            })
            .take_while(|at| *at < 60)
            .count();
        assert!(in_a_minute < 10, "{in_a_minute}");
    }
}
