//! Answers: JSON with an exact length, in the forms of spec/api.md 7.

use axum::body::Body;
use axum::response::Response;
use hyper::StatusCode;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use serde::Serialize;
use serde_json::{Value, json};

/// A JSON answer.
pub(super) fn json(status: StatusCode, body: &impl Serialize) -> Response {
    // Our bodies are maps with text keys: serialising them cannot fail.
    stored(
        status,
        serde_json::to_vec(body).unwrap_or_else(|_| b"{}".to_vec()),
    )
}

/// An answer that is JSON already.
pub(super) fn stored(status: StatusCode, bytes: Vec<u8>) -> Response {
    let mut response = Response::new(Body::from(bytes));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// `200` with a body.
pub(super) fn ok(body: &impl Serialize) -> Response {
    json(StatusCode::OK, body)
}

/// A refusal of the catalogue: `{"ok":false,"error":class,"detail":text}`; an empty detail is left out.
pub(super) fn error(status: StatusCode, class: &str, detail: &str) -> Response {
    let mut body = json!({"ok": false, "error": class});
    if !detail.is_empty() {
        body["detail"] = Value::from(detail);
    }
    json(status, &body)
}

pub(super) fn bad_request(detail: &str) -> Response {
    error(StatusCode::BAD_REQUEST, "bad request", detail)
}

pub(super) fn not_found(detail: &str) -> Response {
    error(StatusCode::NOT_FOUND, "not found", detail)
}

pub(super) fn overloaded() -> Response {
    error(
        StatusCode::SERVICE_UNAVAILABLE,
        "service unavailable",
        "too many concurrent requests",
    )
}
