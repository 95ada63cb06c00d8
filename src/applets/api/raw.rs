//! Answers to what is not a request that could be read: bytes, because HTTP is not in the room yet or has left it (spec/api.md 7).

use serde_json::json;

/// For a peer that has closed without a byte.
pub(super) fn empty_request() -> Vec<u8> {
    answer("400 Bad Request", "bad request", "empty request")
}

/// In place of the bare status with which HTTP refuses what it cannot read.
pub(super) fn refusal(status: u16) -> Vec<u8> {
    match status {
        414 | 431 => answer(
            "431 Request Header Fields Too Large",
            "request header fields too large",
            "more than 64 KiB or 100 lines of headers",
        ),
        _ => answer("400 Bad Request", "bad request", "malformed request"),
    }
}

/// As the original frames all its answers.
fn answer(status: &str, error: &str, detail: &str) -> Vec<u8> {
    let body = json!({"ok": false, "error": error, "detail": detail}).to_string();
    format!(
        "HTTP/1.0 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_length_is_exact_and_the_body_is_json() {
        for (bytes, status) in [
            (empty_request(), "400 Bad Request"),
            (refusal(400), "400 Bad Request"),
            (refusal(431), "431 Request Header Fields Too Large"),
        ] {
            let text = String::from_utf8(bytes).unwrap();
            let (head, body) = text.split_once("\r\n\r\n").unwrap();
            assert!(
                head.starts_with(&format!("HTTP/1.0 {status}\r\n")),
                "{head}"
            );
            assert!(head.ends_with(&format!("Content-Length: {}", body.len())));
            let body: serde_json::Value = serde_json::from_str(body).unwrap();
            assert_eq!(body["ok"], false);
        }
    }
}
