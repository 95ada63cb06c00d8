//! Answers: JSON with an exact length, in the forms of spec/api.md 7.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::Body;
use axum::response::Response;
use hyper::StatusCode;
use hyper::body::{Bytes, Frame, SizeHint};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use serde::Serialize;
use serde_json::{Value, json};

/// A JSON answer.
pub(super) fn json(status: StatusCode, body: &impl Serialize) -> Response {
    stored(status, text(body))
}

/// The text of a body. Ours are maps with text keys: serialising them cannot fail.
pub(super) fn text(body: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(body).unwrap_or_else(|_| b"{}".to_vec())
}

/// An answer that is JSON already.
pub(super) fn stored(status: StatusCode, bytes: impl Into<Bytes>) -> Response {
    let mut response = Response::new(Body::from(bytes.into()));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// JSON that keeps something until it is sent, or given up.
pub(super) fn holding<T: Send + Unpin + 'static>(
    status: StatusCode,
    bytes: Vec<u8>,
    held: T,
) -> Response {
    let body = Body::new(Holding {
        bytes: Some(bytes.into()),
        _held: held,
    });
    let (head, _) = stored(status, Vec::new()).into_parts();
    Response::from_parts(head, body)
}

struct Holding<T> {
    bytes: Option<Bytes>,
    _held: T,
}

/// What is handed to the connection at once: the rest waits here, with what it keeps, until the client has taken so much.
const PIECE: usize = 256 * 1024;

impl<T: Send + Unpin> hyper::body::Body for Holding<T> {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let Some(mut bytes) = self.bytes.take() else {
            return Poll::Ready(None);
        };
        let piece = bytes.split_to(bytes.len().min(PIECE));
        self.bytes = (!bytes.is_empty()).then_some(bytes);
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.bytes.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
    }
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
