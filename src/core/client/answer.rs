//! What came back: an answer and what it means (spec/dispatcher.md 9.1), or how the connection broke.

use hyper::StatusCode;
use serde_json::{Map, Value};

use super::error::ExchangeError;
use crate::core::http_client::transport::{self, TransportError};

/// How a connection broke. An agent that refuses our certificate under TLS 1.3 says so only now, in place of an answer.
pub(super) fn of_http(host: &str, error: &hyper::Error) -> ExchangeError {
    match transport::of_http(error) {
        TransportError::Silence(time) => ExchangeError::ReadTimeout(time),
        TransportError::TooLarge(limit) => ExchangeError::ReplyTooLarge(limit),
        TransportError::Tls(failure) => ExchangeError::Tls {
            host: host.to_owned(),
            failure,
        },
        TransportError::Closed => ExchangeError::Closed,
        TransportError::NotHttp(why) | TransportError::Lost(why) => ExchangeError::Lost(why),
    }
}

/// Most values in one answer. A parsed value takes more than ten times the memory of its shortest text, so the limit of bytes alone would
/// let one agent take gigabytes; honest answers have few values, some of them long.
const MAX_PARTS: usize = 1_000_000;

/// Values in a JSON text, roughly: what begins or separates them, outside strings.
fn parts(json: &[u8]) -> usize {
    let (mut count, mut in_string, mut escaped) = (0, false, false);
    for byte in json {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'[' | b'{' | b',' if !in_string => count += 1,
            _ => {}
        }
    }
    count
}

/// The JSON object in an answer; `None` if it is none, or one of too many values.
pub(crate) fn object(bytes: &[u8]) -> Option<Map<String, Value>> {
    if parts(bytes) > MAX_PARTS {
        None
    } else {
        serde_json::from_slice(bytes).ok()
    }
}

/// Decides what an answer means (spec/dispatcher.md 9.1): any 2xx with a JSON object is success.
pub(super) fn judge(status: StatusCode, bytes: &[u8]) -> Result<Map<String, Value>, ExchangeError> {
    let parsed = object(bytes);
    if status.is_success() {
        return parsed.ok_or(ExchangeError::InvalidJson);
    }
    let words = parsed
        .as_ref()
        .and_then(|b| b.get("error"))
        .and_then(Value::as_str);
    let line = || match status.canonical_reason() {
        Some(reason) => format!("{} {reason}", status.as_u16()),
        None => status.as_u16().to_string(),
    };
    Err(match status.as_u16() {
        403 => ExchangeError::Forbidden(words.map_or_else(line, str::to_owned)),
        404 => ExchangeError::NotFound {
            words: words.unwrap_or_default().to_owned(),
            no_run: parsed
                .as_ref()
                .is_some_and(|b| b.get("status").and_then(Value::as_str) == Some("unknown")),
        },
        409 => ExchangeError::Busy(words.unwrap_or_default().to_owned()),
        413 => ExchangeError::TooLarge,
        _ => ExchangeError::Status(words.map_or_else(line, |w| format!("{}: {w}", line()))),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_of_too_many_values_is_not_taken_apart() {
        assert_eq!(parts(br#"{"a,[{":"\",[","b":[1,2]}"#), 4);
        let long = format!(r#"{{"stdout":"{}"}}"#, "[,".repeat(MAX_PARTS));
        assert!(judge(StatusCode::OK, long.as_bytes()).is_ok());
        let many = format!(r#"{{"x":[{}0]}}"#, "0,".repeat(MAX_PARTS));
        assert_eq!(
            judge(StatusCode::OK, many.as_bytes()).unwrap_err(),
            ExchangeError::InvalidJson
        );
    }

    #[test]
    fn answers_are_judged_by_status_and_body() {
        assert_eq!(judge(StatusCode::OK, b"{\"exit\":0}").unwrap()["exit"], 0);
        assert_eq!(
            judge(StatusCode::OK, b"[1]").unwrap_err(),
            ExchangeError::InvalidJson
        );
        assert_eq!(
            judge(StatusCode::OK, b"").unwrap_err(),
            ExchangeError::InvalidJson
        );
        assert_eq!(
            judge(StatusCode::FORBIDDEN, b"{\"error\":\"serial mismatch\"}").unwrap_err(),
            ExchangeError::Forbidden("serial mismatch".into())
        );
        assert_eq!(
            judge(StatusCode::FORBIDDEN, b"garbage").unwrap_err(),
            ExchangeError::Forbidden("403 Forbidden".into())
        );
        assert_eq!(
            judge(StatusCode::PAYLOAD_TOO_LARGE, b"").unwrap_err(),
            ExchangeError::TooLarge
        );
        assert_eq!(
            judge(StatusCode::NOT_FOUND, b"{\"error\":\"not found\"}")
                .unwrap_err()
                .to_string(),
            "404 Not Found: not found"
        );
        assert_eq!(
            judge(StatusCode::NOT_FOUND, b"{\"status\":\"unknown\"}").unwrap_err(),
            ExchangeError::NotFound {
                words: String::new(),
                no_run: true
            }
        );
        let busy = judge(
            StatusCode::CONFLICT,
            b"{\"error\":\"script already running\"}",
        )
        .unwrap_err();
        assert_eq!(busy, ExchangeError::Busy("script already running".into()));
        assert_eq!(
            busy.to_string(),
            "409 Conflict: script already running",
            "as other statuses read"
        );
    }
}
