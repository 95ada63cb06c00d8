//! `GET /result/<reqid>` (spec/agent.md 9.5). There are no asynchronous runs yet, so no run is known.

use axum::extract::FromRequestParts;
use axum::response::Response;
use hyper::StatusCode;
use hyper::http::request::Parts;
use serde_json::json;

use crate::applets::cea::gate::Caller;
use crate::applets::cea::{handlers, reply};
use crate::core::logging::Action;
use crate::core::types::ReqId;

/// The last part of the path, as it is spelt. Anything that is not a request id makes the path one that does not exist.
pub(super) struct Asked(ReqId);

impl<S: Sync> FromRequestParts<S> for Asked {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Response> {
        parts
            .uri
            .path()
            .strip_prefix("/result/")
            .and_then(|text| ReqId::new(text).ok())
            .map(Self)
            .ok_or_else(handlers::not_found)
    }
}

pub(super) async fn handle(Asked(reqid): Asked, caller: Caller) -> Response {
    Action::new("result-miss")
        .field("DISPATCHER", &caller.dispatcher)
        .field("PEER", &caller.peer.address)
        .field("REQID", &reqid)
        .info();
    let body = json!({ "status": "unknown", "reqid": reqid.as_str() });
    reply::json(StatusCode::NOT_FOUND, &body)
}
