//! `GET /openapi.json` (spec/api.md 8.1).

use axum::response::Response;
use hyper::StatusCode;
use hyper::header::{CACHE_CONTROL, ETAG, HeaderValue};

use crate::applets::api::call::Call;
use crate::applets::api::openapi;
use crate::applets::api::reply;

pub(in crate::applets::api) async fn openapi(call: Call) -> Response {
    let document = openapi::document();
    let known = knows(&call.if_none_match, &document.etag);
    let mut response = if known {
        let mut response = Response::default();
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        response
    } else {
        reply::stored(StatusCode::OK, document.bytes.to_vec())
    };
    let headers = response.headers_mut();
    if let Ok(etag) = HeaderValue::from_str(&document.etag) {
        headers.insert(ETAG, etag);
    }
    // It changes with the release; who keeps it asks whether it still holds.
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

/// Whether the client has what `etag` names: one in its list is the same, be it weak, or it has anything.
fn knows(if_none_match: &[HeaderValue], etag: &str) -> bool {
    if_none_match
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .any(|tag| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == etag)
}

pub(in crate::applets::api) async fn live(_: Call) -> Response {
    reply::not_found("")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_is_known_if_it_is_in_the_list() {
        let known = |lines: &[&'static str]| {
            let lines: Vec<_> = lines.iter().map(|l| HeaderValue::from_static(l)).collect();
            knows(&lines, "\"ab\"")
        };
        assert!(!known(&[]));
        assert!(!known(&["\"abc\"", "ab"]));
        assert!(known(&["\"ab\""]));
        assert!(known(&["\"x\", W/\"ab\""]));
        assert!(known(&["\"x\"", "*"]));
    }
}
