//! The endpoints of port 7443 (spec/agent.md 9).

mod authorities;
mod cancel;
mod capabilities;
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

/// The answer to everything that does not exist, wrong methods included.
pub(super) fn not_found() -> Response {
    reply::error(StatusCode::NOT_FOUND, errors::NOT_FOUND)
}
