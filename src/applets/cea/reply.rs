//! Answers: always JSON with an exact length (spec/agent.md 8).

use axum::body::Body;
use axum::response::Response;
use hyper::StatusCode;
use hyper::header::{CONNECTION, CONTENT_TYPE, HeaderValue};
use serde::Serialize;
use serde_json::json;

/// A JSON answer.
pub(super) fn json(status: StatusCode, body: &impl Serialize) -> Response {
    // Our reply types are maps with text keys: serialising them cannot fail.
    let bytes = serde_json::to_vec(body).unwrap_or_else(|_| b"{}".to_vec());
    stored(status, bytes)
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

/// `{"error": text}`.
pub(super) fn error(status: StatusCode, text: &str) -> Response {
    json(status, &json!({ "error": text }))
}

/// The same answer, after which the connection ends.
pub(super) fn and_close(mut response: Response) -> Response {
    response
        .headers_mut()
        .insert(CONNECTION, HeaderValue::from_static("close"));
    response
}

/// An answer for a peer that sent nothing to parse, as raw bytes.
pub(super) fn raw_bad_request(error: &str) -> Vec<u8> {
    let body = json!({ "error": error }).to_string();
    format!(
        "HTTP/1.0 400 Bad Request\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_raw_answer_has_the_framing_of_the_original() {
        assert_eq!(
            String::from_utf8(raw_bad_request("empty request")).unwrap(),
            "HTTP/1.0 400 Bad Request\r\nContent-Type: application/json\r\nContent-Length: 25\r\n\r\n{\"error\":\"empty request\"}"
        );
    }
}
