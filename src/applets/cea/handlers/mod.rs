//! The endpoints of port 7443 (spec/agent.md 9).

mod authorities;
mod cancel;
mod capabilities;
mod metrics;
mod permission;
mod ping;
mod renew;
mod result;
mod revoke;
mod rotate;
mod run;

use std::sync::Arc;

use axum::Router;
use axum::response::Response;
use axum::routing::{get, post};
use hyper::StatusCode;

use crate::applets::cea::reply;
use crate::applets::cea::state::Agent;
use crate::core::wire::errors;

/// Every route; any other method or path is [`not_found`].
pub(super) fn router(agent: Arc<Agent>) -> Router {
    Router::new()
        .route("/metrics", get(metrics::handle))
        .route("/run", post(run::handle))
        .route("/cancel", post(cancel::handle))
        .route("/ping", post(ping::handle))
        .route("/capabilities", get(capabilities::handle))
        .route("/result/{reqid}", get(result::handle))
        .route("/rotate-serial", post(rotate::handle))
        .route("/renew", post(renew::begin))
        .route("/renew-complete", post(renew::complete))
        .route("/revoke", post(revoke::handle))
        .route("/ca", post(authorities::handle))
        .fallback(async || not_found())
        .method_not_allowed_fallback(async || not_found())
        .with_state(agent)
}

/// The route of a path, for counting: one of the router's, or `none`.
pub(super) fn route_of(path: &str) -> &'static str {
    const PLAIN: [&str; 10] = [
        "/metrics",
        "/run",
        "/cancel",
        "/ping",
        "/capabilities",
        "/rotate-serial",
        "/renew",
        "/renew-complete",
        "/revoke",
        "/ca",
    ];
    if path.starts_with("/result/") {
        return "/result/{reqid}";
    }
    let same = |route: &&str| *route == path;
    PLAIN.into_iter().find(same).unwrap_or("none")
}

/// The answer to everything that does not exist, wrong methods included.
pub(super) fn not_found() -> Response {
    reply::error(StatusCode::NOT_FOUND, errors::NOT_FOUND)
}
