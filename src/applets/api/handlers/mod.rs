//! What the routes do. Every handler checks in the order of spec/api.md 3: fields, gate 2, registry, then everything else.

mod common;
pub(super) mod discovery;
pub(super) mod documents;
pub(super) mod metrics;
pub(super) mod ping;
pub(super) mod run;
pub(super) mod runs;
pub(super) mod status;

use axum::response::Response;
use serde_json::{Value, json};

use crate::applets::VERSION;
use crate::applets::api::call::Call;
use crate::applets::api::reply;
use crate::applets::api::routes::ROUTES;

/// `GET /health`.
pub(super) async fn health(_: Call) -> Response {
    reply::ok(&json!({"ok": true, "version": VERSION}))
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
