//! What stands between a parsed request and its handler (spec/api.md 3). The order: number of headers, announced size, body, web pages,
//! throttle, gate 1, route.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::response::Response;
use hyper::body::Incoming;
use hyper::header::{
    ALLOW, CONNECTION, CONTENT_LENGTH, HeaderMap, HeaderValue, IF_NONE_MATCH, ORIGIN, RETRY_AFTER,
};
use hyper::http::request::Parts;
use hyper::{Method, Request, StatusCode, Version};
use serde_json::Value;

use crate::applets::api::call::{self, Call, Wanted};
use crate::applets::api::peer::Peer;
use crate::applets::api::routes::{self, Found};
use crate::applets::api::state::Api;
use crate::applets::api::throttle::{Door, Stranger};
use crate::applets::api::untold::{Begun, Untold};
use crate::applets::api::{path, reply};
use crate::core::authhook::{Decision, HookAction, HookContext};
use crate::core::http_body::{self, BodyError, Polite};
use crate::core::metrics::ApiRefusal;
use crate::core::serving::http1;
use crate::core::types::Secret;
use crate::core::wire;

/// Longest time for a body to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// What is taken of a body that nobody wants.
const UNWANTED_BYTES: u64 = 4 * wire::MAX_REQUEST_BODY;

/// Answers one request, whatever it is. In a box, because it is passed on through several futures and would be part of each.
pub(super) async fn answer(
    api: &Arc<Api>,
    peer: Peer,
    request: Box<Request<Incoming>>,
) -> Response {
    let began = Instant::now();
    let method = request.method().clone();
    let path = path::decode(request.uri().path()).into_owned();
    let version = request.version();
    let mut response = decide(api, peer, request, &path).await;
    if version < Version::HTTP_2 && response.status() == StatusCode::PAYLOAD_TOO_LARGE {
        and_close(&mut response);
    }
    let (template, status) = (routes::template(&path), response.status());
    api.metrics
        .answered(template, method.as_str(), status.as_str(), began.elapsed());
    response
}

async fn decide(
    api: &Arc<Api>,
    peer: Peer,
    request: Box<Request<Incoming>>,
    path: &str,
) -> Response {
    let (head, body) = request.into_parts();
    if let Some(refusal) = refuse_early(api, &head) {
        drop(Polite::new(body, UNWANTED_BYTES));
        return refusal;
    }
    let body = match http_body::read(body, wire::MAX_REQUEST_BODY, BODY_TIMEOUT).await {
        Ok(body) => body,
        Err(error) => return no_body(api, error),
    };
    let announced = announced(&head.headers).unwrap_or(body.len() as u64);
    let begun = Begun::new(api, &head, &peer, announced);
    if is_from_a_web_page(&head.headers) {
        begun.tell_of(Stranger::Refused);
        return reply::error(
            StatusCode::FORBIDDEN,
            "forbidden",
            "requests from web pages are not served",
        );
    }
    let found = routes::find(&head.method, path);
    let route_action = match &found {
        Found::Route(route, _) => route.action,
        Found::OtherMethods(_) | Found::Nothing => "",
    };
    let bearer = call::bearer(&head.headers);
    let token = body_token(&body);
    // Who may run scripts may do everything else. Other rights are no ticket: what everybody may do must not make a guess known.
    let credentials = || {
        [route_action, HookAction::Run.as_str()]
            .map(|action| call::fingerprint(&peer, &token, &bearer, action))
    };
    let door = api
        .throttle()
        .ask(|| peer.source(), credentials, Instant::now());
    if let Door::Closed(left) = door {
        api.metrics.refused(ApiRefusal::Throttled);
        begun.forget();
        return throttled(left);
    }
    let http = call::http_context(head.method.as_str(), path, route_action, &bearer, &peer);
    let http = Arc::new(http);
    let snapshot = api.snapshot();
    let asked = HookContext {
        token,
        ..call::hook_context(HookAction::Api, &peer, &http)
    };
    let ruling = call::rule(api, &snapshot, &peer, &asked).await;
    if let Decision::Denied { reason, code } = &ruling.decision {
        api.metrics.refused(ApiRefusal::Auth);
        let refusal = call::denied(&snapshot, reason, *code);
        if begun.tell_of(Stranger::Refused) {
            ruling.tell(&asked);
        }
        return refusal;
    }
    let untold = if route_action.is_empty() {
        if begun.tell_of(Stranger::Unasked) {
            ruling.tell(&asked);
        }
        Untold::nothing(api)
    } else {
        begun.wait(ruling.into_lines(&asked))
    };
    let no_route = || format!("no route for {} {path}", head.method);
    match found {
        Found::Nothing => reply::not_found(&no_route()),
        Found::OtherMethods(methods) => other_method(&head.method, &methods, &no_route()),
        Found::Route(route, reqid) => {
            let handler = route.handler;
            handler(Call {
                api: api.clone(),
                snapshot,
                peer,
                reqid,
                query: head.uri.query().unwrap_or_default().to_owned(),
                if_none_match: head
                    .headers
                    .get_all(IF_NONE_MATCH)
                    .iter()
                    .cloned()
                    .collect(),
                body,
                bearer,
                wanted: if route.streams {
                    Wanted::of(&head.headers)
                } else {
                    Wanted::Json
                },
                http,
                untold,
            })
            .await
        }
    }
}

/// The refusals that need nothing but the head of the request.
fn refuse_early(api: &Api, head: &Parts) -> Option<Response> {
    let lines = head.headers.iter();
    let length: usize = lines
        .map(|(name, value)| name.as_str().len() + value.len())
        .sum();
    let long = length + head.uri.path().len() > http1::MAX_HEAD;
    if long || head.headers.len() > wire::MAX_HEADERS {
        api.metrics.refused(ApiRefusal::Headers);
        let why = match long {
            true => format!("more than {} bytes", http1::MAX_HEAD),
            false => format!("more than {} header lines", wire::MAX_HEADERS),
        };
        let mut refusal = reply::error(
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            "request header fields too large",
            &why,
        );
        if head.version < Version::HTTP_2 {
            and_close(&mut refusal);
        }
        return Some(refusal);
    }
    if announced(&head.headers).is_some_and(|length| length > wire::MAX_REQUEST_BODY) {
        return Some(no_body(api, BodyError::TooLarge));
    }
    None
}

fn announced(headers: &HeaderMap) -> Option<u64> {
    headers
        .get(CONTENT_LENGTH)?
        .to_str()
        .ok()?
        .trim()
        .parse()
        .ok()
}

fn no_body(api: &Api, error: BodyError) -> Response {
    match error {
        BodyError::TooLarge => {
            api.metrics.refused(ApiRefusal::TooLarge);
            reply::error(
                StatusCode::PAYLOAD_TOO_LARGE,
                "payload too large",
                &format!("body exceeds {} bytes", wire::MAX_REQUEST_BODY),
            )
        }
        BodyError::Incomplete => {
            api.metrics.refused(ApiRefusal::BadRequest);
            let mut refusal = reply::bad_request("incomplete request");
            and_close(&mut refusal);
            refusal
        }
        BodyError::Late => {
            api.metrics.refused(ApiRefusal::Timeout);
            let mut refusal = reply::error(
                StatusCode::REQUEST_TIMEOUT,
                "request timeout",
                &format!(
                    "the body did not arrive within {} s",
                    BODY_TIMEOUT.as_secs()
                ),
            );
            and_close(&mut refusal);
            refusal
        }
    }
}

fn and_close(response: &mut Response) {
    response
        .headers_mut()
        .insert(CONNECTION, HeaderValue::from_static("close"));
}

fn throttled(left: Duration) -> Response {
    let seconds = left.as_secs() + 1;
    let mut refusal = reply::error(
        StatusCode::TOO_MANY_REQUESTS,
        "too many requests",
        &format!("too many refused requests from this address; try again in {seconds} s"),
    );
    refusal
        .headers_mut()
        .insert(RETRY_AFTER, HeaderValue::from(seconds));
    refusal
}

/// A browser says so: no other client sends these. Our users have no pages; whoever opens one must not command the fleet with it, neither by
/// a request across sites nor under a name that was made to point here (spec/api.md 16, item 24).
fn is_from_a_web_page(headers: &HeaderMap) -> bool {
    let site = headers.get("sec-fetch-site");
    headers.contains_key(ORIGIN) || site.is_some_and(|site| site != "none")
}

/// The token of gate 1: a member of the body, when the body begins with an object and can be read.
fn body_token(body: &[u8]) -> Secret<String> {
    if body.first() != Some(&b'{') {
        return Secret::default();
    }
    let body: Option<serde_json::Map<String, Value>> = serde_json::from_slice(body).ok();
    match body.and_then(|mut body| body.remove("token")) {
        Some(Value::String(token)) => Secret::new(token),
        _ => Secret::default(),
    }
}

/// 405 with the words of the original's 404, so that who reads the body sees no difference; OPTIONS gets the list.
fn other_method(method: &Method, methods: &[&str], detail: &str) -> Response {
    let mut response = if method == Method::OPTIONS {
        let mut response = Response::default();
        *response.status_mut() = StatusCode::NO_CONTENT;
        response
    } else {
        reply::error(StatusCode::METHOD_NOT_ALLOWED, "not found", detail)
    };
    if let Ok(value) = HeaderValue::from_str(&methods.join(", ")) {
        response.headers_mut().insert(ALLOW, value);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_of_gate_1_is_that_of_an_object() {
        for (body, token) in [
            (r#"{"token":"t"}"#, "t"),
            (r#" {"token":"t"}"#, ""),
            (r#"{"token":7}"#, ""),
            (r#"{"token":"t""#, ""),
            ("[]", ""),
            ("", ""),
        ] {
            assert_eq!(body_token(body.as_bytes()).expose(), token, "{body}");
        }
    }

    #[test]
    fn only_browsers_are_web_pages() {
        let page = |name: &'static str, value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(name, HeaderValue::from_static(value));
            is_from_a_web_page(&headers)
        };
        assert!(page("origin", "http://127.0.0.1:7445"));
        assert!(page("origin", "null"));
        assert!(page("sec-fetch-site", "same-origin"));
        assert!(!page("sec-fetch-site", "none"));
        assert!(!page("referer", "http://x"));
    }
}
