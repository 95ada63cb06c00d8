//! What stands between a parsed request and its handler (spec/api.md 3).

use std::sync::Arc;

use axum::response::Response;
use hyper::Request;
use hyper::body::Incoming;

use crate::applets::api::peer::Peer;
use crate::applets::api::reply;
use crate::applets::api::state::Api;

/// Answers one request, whatever it is.
pub(super) async fn answer(_api: &Arc<Api>, _peer: Peer, request: Request<Incoming>) -> Response {
    reply::not_found(&format!(
        "no route for {} {}",
        request.method(),
        request.uri().path()
    ))
}
