//! What the handlers that ask agents share.

use std::sync::Arc;

use axum::response::Response;
use hyper::StatusCode;
use tokio::sync::OwnedSemaphorePermit;

use crate::applets::api::call::Call;
use crate::applets::api::reply;
use crate::core::config::DispatcherConfig;
use crate::core::dispatch::{HostResult, blocking, text};
use crate::core::metrics::{ApiMetrics, Outcome};
use crate::core::registry::{self, NotAnAgent, Registry, Target, UnknownAgents};
use crate::core::task;
use crate::core::types::ReqId;

pub(super) fn registry(config: &DispatcherConfig) -> Registry {
    Registry::new(config.registry_dir.clone())
}

/// Looks every name up; one unknown name refuses the whole request.
///
/// # Errors
/// The answer: 404, or 500 when a record is there and cannot be read.
pub(super) async fn resolve(call: &Call, hosts: Vec<String>) -> Result<Vec<Target>, Response> {
    let registry = registry(&call.snapshot.config);
    blocking(move || resolve_now(&hosts, &registry)).await
}

/// As [`resolve`], where waiting for the disk holds up nobody.
///
/// # Errors
/// As [`resolve`].
pub(super) fn resolve_now(hosts: &[String], registry: &Registry) -> Result<Vec<Target>, Response> {
    registry::resolve(hosts, registry, None).map_err(|unknown| unknown_agents(&unknown))
}

fn unknown_agents(unknown: &UnknownAgents) -> Response {
    let unreadable = |why: &NotAnAgent| matches!(why, NotAnAgent::Unreadable(_));
    if let Some(damaged) = unknown.unknown.iter().find(|u| unreadable(&u.why)) {
        // The path in the error's text is not the client's business.
        let detail = format!("the registry record of {} cannot be read", damaged.word);
        return reply::error(StatusCode::INTERNAL_SERVER_ERROR, "server error", &detail);
    }
    let words: Vec<&str> = unknown.unknown.iter().map(|u| u.word.as_str()).collect();
    let detail = format!("not a registered agent: {}", words.join(", "));
    reply::error(StatusCode::NOT_FOUND, "unknown agent", &detail)
}

/// # Errors
/// The answer: 500.
pub(super) fn new_reqid() -> Result<ReqId, Response> {
    ReqId::generate().map_err(|_| server_error("the system gives no random bytes"))
}

pub(super) fn server_error(detail: &str) -> Response {
    reply::error(StatusCode::INTERNAL_SERVER_ERROR, "server error", detail)
}

/// A place among the requests that are worked on.
///
/// # Errors
/// The answer: 503.
pub(super) fn begin(call: &Call) -> Result<OwnedSemaphorePermit, Response> {
    call.api.begin_work().ok_or_else(reply::overloaded)
}

/// Does the work in a task of its own, so that it comes to its end although the client goes away.
pub(super) async fn see_through(work: impl Future<Output = Response> + Send + 'static) -> Response {
    match task::spawn(work).await {
        Ok(response) => response,
        Err(_) => server_error("the request was given up"),
    }
}

/// What became of a script on one host, for the metrics.
pub(super) fn count(metrics: &Arc<ApiMetrics>, script: &str, result: &HostResult) {
    let outcome = match &result.answer {
        Err(_) => Outcome::Unreachable,
        Ok(answer) if !text(&answer.body, "error").is_empty() => Outcome::Refused,
        Ok(_) if result.exit() == 0 => Outcome::Ok,
        Ok(_) => Outcome::Failed,
    };
    metrics.result(script, outcome);
}
