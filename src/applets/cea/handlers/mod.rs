//! The endpoints of port 7443 (spec/agent.md 9).

mod cancel;
mod capabilities;
mod ping;
mod result;
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
        .fallback(async || not_found())
        .method_not_allowed_fallback(async || not_found())
        .with_state(agent)
}

/// The answer to everything that does not exist, wrong methods included.
pub(super) fn not_found() -> Response {
    reply::error(StatusCode::NOT_FOUND, errors::NOT_FOUND)
}
