//! `GET /result/<reqid>` (spec/agent.md 9.5): how an asynchronous run of the caller's own is doing.

use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::response::Response;
use hyper::StatusCode;
use hyper::http::request::Parts;
use serde_json::json;

use crate::applets::cea::gate::Caller;
use crate::applets::cea::{handlers, jobs, reply};
use crate::core::jobs::{JobError, Key, Status};
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
    let key = Key {
        owner: caller.dispatcher.clone(),
        reqid,
    };
    let snapshot: Arc<_> = caller.snapshot.clone();
    let about = About {
        caller: &caller,
        reqid: &key.reqid,
    };
    match jobs::look(&snapshot, &key).await {
        Ok(Some((status, body))) => {
            let word = match status {
                Status::Running => "running",
                Status::Done => "done",
            };
            about.line("result").field("STATUS", word).info();
            reply::stored(StatusCode::OK, body)
        }
        Ok(None) => {
            about.line("result-miss").info();
            unknown(&key.reqid)
        }
        Err(error) => about.unusable("result-deny", &error),
    }
}

/// Somebody's question about a run, for log lines and refusals.
pub(super) struct About<'a> {
    pub(super) caller: &'a Caller,
    pub(super) reqid: &'a ReqId,
}

impl About<'_> {
    pub(super) fn line(&self, name: &'static str) -> Action {
        Action::new(name)
            .field("DISPATCHER", &self.caller.dispatcher)
            .field("PEER", &self.caller.peer.address)
            .field("REQID", self.reqid)
    }

    /// Somebody else's record, or none at all: for the caller there is no such run either way.
    pub(super) fn unusable(&self, deny: &'static str, error: &JobError) -> Response {
        if matches!(error, JobError::NotOwner { .. }) {
            self.line(deny).field("REASON", "not-owner").warning();
        } else {
            Action::new("async-record-skip")
                .field("REASON", error)
                .warning();
            self.line("result-miss").info();
        }
        unknown(self.reqid)
    }
}

/// The same body for a run that never was and for one of another dispatcher.
pub(super) fn unknown(reqid: &ReqId) -> Response {
    let body = json!({ "status": "unknown", "reqid": reqid.as_str() });
    reply::json(StatusCode::NOT_FOUND, &body)
}
