//! `GET /openapi.json` and `GET /openapi-live.json` (spec/api.md 8).

use std::sync::Arc;
use std::time::Duration;

use axum::response::Response;
use hyper::StatusCode;
use hyper::body::Bytes;
use hyper::header::{CACHE_CONTROL, ETAG, HeaderValue};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;

use super::common;
use crate::applets::api::call::Call;
use crate::applets::api::{openapi, reply};
use crate::core::authhook::{HookAction, HookContext};
use crate::core::dispatch::{HostResult, Job, ask_all, blocking, objects};
use crate::core::logging::Action;
use crate::core::registry::Target;

/// Longest time for all agents together. Known clients wait 30 s for an answer; with a shorter `read_timeout` no agent is waited for longer
/// than that.
const LONGEST_SWEEP: Duration = Duration::from_secs(25);

pub(in crate::applets::api) async fn openapi(call: Call) -> Response {
    let document = openapi::document();
    let known = knows(&call.if_none_match, &document.etag);
    let mut response = if known {
        let mut response = Response::default();
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        response
    } else {
        reply::stored(StatusCode::OK, document.bytes.to_vec())
    };
    let headers = response.headers_mut();
    if let Ok(etag) = HeaderValue::from_str(&document.etag) {
        headers.insert(ETAG, etag);
    }
    // It changes with the release; who keeps it asks whether it still holds.
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

/// Whether the client has what `etag` names: one in its list is the same, be it weak, or it has anything.
fn knows(if_none_match: &[HeaderValue], etag: &str) -> bool {
    if_none_match
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .any(|tag| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == etag)
}

/// The description with the hosts and scripts that there are. It tells all of them, so gate 2 is asked about all; then the fleet is, unless
/// somebody else has just done so.
pub(in crate::applets::api) async fn live(call: Call) -> Response {
    told(call).await.unwrap_or_else(|refusal| refusal)
}

async fn told(call: Call) -> Result<Response, Response> {
    let registry = common::registry(&call.snapshot.config);
    let listing = blocking(move || registry.list())
        .await
        .map_err(|_| common::server_error("the registry cannot be read"))?;
    // A host whose record is damaged cannot be asked for anything, so it is no choice.
    let targets: Vec<Target> = listing.agents.into_iter().map(Target::of).collect();
    let names: Vec<String> = targets.iter().map(|t| t.name.to_string()).collect();
    let asked = HookContext {
        hosts: names.clone(),
        token: call.bearer.clone(),
        ..call.asks(HookAction::Ping)
    };
    call.authorise(&asked).await?;
    let place = common::begin(&call)?;
    let kept = call.api.live.clone();
    let document = kept
        .or_make(names.clone(), sweep(call, names, targets, place))
        .await
        .ok_or_else(|| common::server_error("the request was given up"))?;
    let mut response = reply::stored(StatusCode::OK, document);
    // It is for those whom gate 2 lets see it, and true for a moment.
    let headers = response.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

/// Asks all agents what they can run, as long as [`LONGEST_SWEEP`]; whoever has not answered by then is a host without scripts.
async fn sweep(
    call: Call,
    names: Vec<String>,
    targets: Vec<Target>,
    place: OwnedSemaphorePermit,
) -> Bytes {
    let _place = place;
    let client = call.api.client().await;
    let limit = call.snapshot.config.read_timeout.min(LONGEST_SWEEP);
    let mut heard: Vec<Arc<HostResult>> = Vec::with_capacity(targets.len());
    let mut hear = |_: usize, result: &Arc<HostResult>| {
        objects::log_capabilities(result);
        heard.push(result.clone());
    };
    let job = Job::capabilities();
    let all = ask_all(&client, targets, &call.api.exchanges, &job, &mut hear);
    if timeout(limit, all).await.is_err() {
        Action::new("api-live-incomplete")
            .field("HEARD", heard.len())
            .field("HOSTS", names.len())
            .field("TIMEOUT", limit.as_secs())
            .warning();
    }
    call.api.answered(&heard);
    // They come as they answer; which body of a version counts must not depend on that.
    heard.sort_by(|a, b| a.host().cmp(b.host()));
    let capabilities: Vec<_> = heard
        .iter()
        .map(|result| {
            (
                result.host().to_owned(),
                objects::capabilities_object(result),
            )
        })
        .collect();
    let now = call.snapshot.clock.now();
    let document = openapi::live::live(openapi::build(), &names, &capabilities, now);
    document.to_string().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_is_known_if_it_is_in_the_list() {
        let known = |lines: &[&'static str]| {
            let lines: Vec<_> = lines.iter().map(|l| HeaderValue::from_static(l)).collect();
            knows(&lines, "\"ab\"")
        };
        assert!(!known(&[]));
        assert!(!known(&["\"abc\"", "ab"]));
        assert!(known(&["\"ab\""]));
        assert!(known(&["\"x\", W/\"ab\""]));
        assert!(known(&["\"x\"", "*"]));
    }
}
