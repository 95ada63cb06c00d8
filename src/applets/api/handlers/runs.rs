//! `GET /runs` and `DELETE /runs/{reqid}`: the caller's own runs. Whose a run is, is told by the credential that it was submitted with; who
//! shows none has the runs that were submitted without one.

use std::cmp::Reverse;

use axum::response::Response;
use serde_json::{Value, json};

use super::{common, status};
use crate::applets::api::call::Call;
use crate::applets::api::{path, reply};
use crate::core::authhook::{HookAction, HookContext};
use crate::core::dispatch::{blocking, cancel};
use crate::core::runs::{Record, State};
use crate::core::types::{ReqId, Secret};

/// Runs on one page.
const PAGE: usize = 50;
const MAX_PAGE: usize = 500;

pub(in crate::applets::api) async fn list(call: Call) -> Response {
    page(call).await.unwrap_or_else(|refusal| refusal)
}

pub(in crate::applets::api) async fn cancel(call: Call) -> Response {
    end(call).await.unwrap_or_else(|refusal| refusal)
}

/// Where a run stands in the list: newest first, then by reqid.
type Place = (Reverse<i64>, ReqId);

/// What the list shows of a run.
struct Shown {
    place: Place,
    object: Value,
}

/// Where a page begins.
enum After {
    /// Whether the run is still there or not: `next` of the page before.
    Place(Place),
    /// A run of the caller's.
    Run(String),
}

impl After {
    fn parse(text: String) -> Self {
        let place = text
            .rsplit_once('-')
            .and_then(|(time, reqid)| Some((Reverse(time.parse().ok()?), ReqId::new(reqid).ok()?)));
        place.map_or(Self::Run(text), Self::Place)
    }

    /// What follows; `None`: there is no such run.
    fn rest(self, mut runs: Vec<Shown>) -> Option<Vec<Shown>> {
        let first = match self {
            Self::Place(place) => runs.partition_point(|run| run.place <= place),
            Self::Run(reqid) => 1 + runs.iter().position(|run| run.place.1.as_str() == reqid)?,
        };
        Some(runs.split_off(first))
    }
}

fn cursor(place: &Place) -> String {
    format!("{}-{}", place.0.0, place.1)
}

fn shown(record: &Record) -> Shown {
    let state = record.state();
    let count = match state {
        State::Running(n) | State::Failed(n) | State::Expired(n) => n,
        State::Done => record.size(),
    };
    Shown {
        place: (Reverse(record.time()), record.reqid.clone()),
        object: json!({
            "reqid": record.reqid.as_str(), "script": record.script, "mode": record.mode(), "time": record.time(),
            "complete": record.is_complete(), "state": state.as_str(), "count": count, "hosts": record.size(),
        }),
    }
}

async fn page(call: Call) -> Result<Response, Response> {
    let limit = match path::values(&call.query, "limit").first() {
        None => PAGE,
        Some(text) => text
            .parse()
            .ok()
            .filter(|limit| (1..=MAX_PAGE).contains(limit))
            .ok_or_else(|| reply::bad_request(&format!("limit must be 1 to {MAX_PAGE}")))?,
    };
    let after = path::values(&call.query, "after").into_iter().next();
    let after = after.map(After::parse);
    let asked = HookContext {
        token: call.bearer.clone(),
        ..call.asks(HookAction::Status)
    };
    call.authorise(&asked).await?;
    let owner = call.owner(&Secret::default());
    // Reading all records is the dearest thing that can be asked for: one at a time.
    let Ok(_turn) = call.api.listing.acquire().await else {
        return Err(common::server_error("the server is about to stop"));
    };
    let store = call.snapshot.store();
    let listing = blocking(move || {
        store.list(|record| is_own(record, owner.as_deref()).then(|| shown(record)))
    })
    .await
    .map_err(|_| common::server_error("the records cannot be read"))?;
    let mut runs: Vec<Shown> = listing.runs.into_iter().flatten().collect();
    if let Some(after) = after {
        runs = after.rest(runs).ok_or_else(|| {
            reply::bad_request(
                "after must be the next of an earlier page, or the reqid of one of these runs",
            )
        })?;
    }
    let more = runs.len() > limit;
    runs.truncate(limit);
    let next = runs.last().filter(|_| more).map(|run| cursor(&run.place));
    let objects: Vec<Value> = runs.into_iter().map(|run| run.object).collect();
    let mut body = json!({"ok": true, "runs": objects});
    if let Some(next) = next {
        body["next"] = next.into();
    }
    Ok(reply::ok(&body))
}

/// Runs of the command line belong to nobody here.
fn is_own(record: &Record, owner: Option<&str>) -> bool {
    match (record.owner(), owner) {
        (Some(theirs), Some(ours)) => same(theirs, ours),
        (None, None) => record.submitter().is_some(),
        _ => false,
    }
}

/// Takes the same time wherever they differ.
fn same(a: &str, b: &str) -> bool {
    a.len() == b.len()
        && a.bytes()
            .zip(b.bytes())
            .fold(0, |differences, (a, b)| differences | (a ^ b))
            == 0
}

async fn end(call: Call) -> Result<Response, Response> {
    let (reqid, record) = status::find(&call, HookAction::Cancel).await?;
    let owner = call.owner(&Secret::default());
    let Some(record) = record.filter(|record| is_own(record, owner.as_deref())) else {
        return Err(status::absent(&reqid));
    };
    let place = common::begin(&call)?;
    let agents = status::agents(&call).await;
    let work = async move {
        let _place = place;
        let store = call.snapshot.store();
        let cancelled = cancel::cancel(&agents, &store, record, &mut |_, _| {}).await;
        let replies = cancelled.replies.iter().map(|(host, reply)| {
            let mut object = json!({"status": reply.word()});
            if let Some(error) = reply.error() {
                object["error"] = error.into();
            }
            (host.clone(), object)
        });
        let mut body = status::told(&cancelled.record);
        body.insert("cancel".to_owned(), Value::Object(replies.collect()));
        reply::ok(&body)
    };
    Ok(common::see_through(work).await)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::authhook::Submitter;
    use crate::core::runs::{Body, SyncRun};

    #[test]
    fn a_page_begins_where_one_has_ended_even_if_that_run_is_gone() {
        let list = || -> Vec<Shown> {
            [(9, "b"), (7, "a"), (7, "c"), (-1, "a")]
                .into_iter()
                .map(|(time, id)| Shown {
                    place: (Reverse(time), ReqId::new(id).unwrap()),
                    object: Value::Null,
                })
                .collect()
        };
        let rest = |after: &str| {
            let rest = After::parse(after.to_owned()).rest(list())?;
            Some(
                rest.iter()
                    .map(|run| cursor(&run.place))
                    .collect::<Vec<_>>(),
            )
        };
        let all = ["9-b", "7-a", "7-c", "-1-a"].map(str::to_owned).to_vec();
        for (at, place) in all.iter().enumerate() {
            assert_eq!(rest(place), Some(all[at + 1..].to_vec()), "{place}");
        }
        assert_eq!(rest("10-a"), Some(all.clone()));
        assert_eq!(rest("7-b"), Some(all[2..].to_vec()));
        assert_eq!(rest("-2-a"), Some(Vec::new()));
        // A reqid alone is one of these runs.
        assert_eq!(rest("b"), Some(all[1..].to_vec()));
        for bad in ["d", "", "7-", "-a", "x-a", "99999999999999999999-a"] {
            assert_eq!(rest(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_run_is_seen_by_whoever_submitted_it() {
        let run = |owner: Option<&str>, by_api: bool| {
            let run = SyncRun::new(vec!["a".into()], Vec::new(), 1);
            let mut record = Record::new(ReqId::new("ab").unwrap(), "s", Body::Sync(run));
            if by_api {
                record.set_submitter(&Submitter::default());
            }
            if let Some(owner) = owner {
                record.set_owner(owner);
            }
            record
        };
        assert!(is_own(&run(Some("token:a"), true), Some("token:a")));
        assert!(!is_own(&run(Some("token:a"), true), Some("token:b")));
        assert!(!is_own(&run(Some("token:a"), true), None));
        assert!(!is_own(&run(None, true), Some("token:a")));
        assert!(is_own(&run(None, true), None));
        assert!(!is_own(&run(None, false), None), "of the command line");
    }
}
