//! What the routes do. Every handler checks in the order of spec/api.md 3: fields, gate 2, registry, then everything else.

mod common;
pub(super) mod discovery;
pub(super) mod documents;
pub(super) mod metrics;
pub(super) mod ping;
pub(super) mod run;
pub(super) mod runs;
pub(super) mod status;

use std::sync::LazyLock;

use axum::response::Response;
use hyper::StatusCode;
use hyper::body::Bytes;
use serde_json::{Value, json};

use crate::applets::VERSION;
use crate::applets::api::call::Call;
use crate::applets::api::reply;
use crate::applets::api::routes::ROUTES;

/// `GET /health`. Asked again and again, and always answered with the same words.
pub(super) async fn health(_: Call) -> Response {
    static BODY: LazyLock<Vec<u8>> =
        LazyLock::new(|| reply::text(&json!({"ok": true, "version": VERSION})));
    reply::stored(StatusCode::OK, Bytes::from_static(&BODY))
}

/// `GET /`.
pub(super) async fn index(_: Call) -> Response {
    let endpoints: Vec<Value> = ROUTES
        .iter()
        .filter(|route| route.path != "/")
        .map(|route| json!({"method": route.method.as_str(), "path": route.path}))
        .collect();
    reply::ok(&json!({
        "name": crate::applets::api::IDENT,
        "version": VERSION,
        "spec": "/openapi.json",
        "live_spec": "/openapi-live.json",
        "endpoints": endpoints,
    }))
}
