//! A request that has passed gate 1, as its handler gets it, and the question to gate 2.

use std::sync::Arc;
use std::time::Instant;

use axum::response::Response;
use hyper::StatusCode;
use hyper::body::Bytes;
use hyper::header::{ACCEPT, AUTHORIZATION, HeaderMap, HeaderValue};
use ring::digest;
use serde_json::{Map, Value, json};

use crate::applets::api::peer::{Origin, Peer};
use crate::applets::api::reply;
use crate::applets::api::state::{Api, Snapshot};
use crate::applets::api::throttle::{Fingerprint, Stranger};
use crate::applets::api::untold::Untold;
use crate::core::authhook::{self, Caller, Decision, HookAction, HookContext, HttpContext, Ruling};
use crate::core::config::AuthDefault;
use crate::core::logging::Action;
use crate::core::metrics::ApiRefusal;
use crate::core::types::{Secret, hex};

/// How the client wants its answer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Wanted {
    Json,
    /// `text/event-stream`.
    Events,
    /// `application/x-ndjson`.
    Lines,
}

impl Wanted {
    /// The first of the three that `Accept` names; quality values are not weighed, since nobody sends two of them.
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let named = headers
            .get_all(ACCEPT)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .filter_map(|range| {
                let kind = range.split(';').next().unwrap_or_default().trim();
                match kind.to_ascii_lowercase().as_str() {
                    "text/event-stream" => Some(Self::Events),
                    "application/x-ndjson" => Some(Self::Lines),
                    "application/json" | "application/*" | "*/*" => Some(Self::Json),
                    _ => None,
                }
            })
            .next();
        named.unwrap_or(Self::Json)
    }
}

/// `Authorization: Bearer <token>`: any case for both words, the token up to a blank, the last one wins (spec/api.md 2).
pub(super) fn bearer(headers: &HeaderMap) -> Secret<String> {
    let token = headers
        .get_all(AUTHORIZATION)
        .iter()
        .filter_map(|value| {
            let mut words = value.to_str().ok()?.split_ascii_whitespace();
            let scheme = words.next()?;
            scheme
                .eq_ignore_ascii_case("bearer")
                .then(|| words.next())?
        })
        .next_back();
    Secret::new(token.unwrap_or_default().to_owned())
}

/// A request for a route.
pub(super) struct Call {
    pub(super) api: Arc<Api>,
    pub(super) snapshot: Arc<Snapshot>,
    pub(super) peer: Peer,
    /// `{reqid}` of the path.
    pub(super) reqid: Option<String>,
    pub(super) query: String,
    /// `If-None-Match`, all of its lines.
    pub(super) if_none_match: Vec<HeaderValue>,
    pub(super) body: Bytes,
    pub(super) bearer: Secret<String>,
    pub(super) wanted: Wanted,
    pub(super) http: Arc<HttpContext>,
    pub(super) untold: Untold,
}

/// Names whoever shows a credential for an action, in the bookkeeping of refusals: certificate, token and bearer token together, so that no
/// known one can stand in front of a guess. `None`: nothing is shown.
pub(super) fn fingerprint(
    peer: &Peer,
    token: &Secret<String>,
    bearer: &Secret<String>,
    action: &str,
) -> Option<Fingerprint> {
    let certificate = peer.certificate.as_ref().map(|c| c.fingerprint());
    let (token, bearer) = (token.expose().as_bytes(), bearer.expose().as_bytes());
    let shown: &[&[u8]] = match (token.is_empty(), bearer.is_empty()) {
        (true, true) if certificate.is_none() => return None,
        (true, true) => &[],
        // The same wherever it stands.
        (false, false) if token != bearer => &[token, bearer],
        (false, _) => &[token],
        (true, false) => &[bearer],
    };
    let mut context = digest::Context::new(&digest::SHA256);
    for part in [
        action.as_bytes(),
        certificate.unwrap_or_default().as_bytes(),
    ] {
        context.update(part);
        context.update(b"\n");
    }
    for part in shown {
        context.update(&part.len().to_le_bytes());
        context.update(part);
    }
    let mut name = Fingerprint::default();
    name.copy_from_slice(context.finish().as_ref());
    Some(name)
}

/// What the hook is told of a request, whatever it asks for.
pub(super) fn hook_context(
    action: HookAction,
    peer: &Peer,
    http: &Arc<HttpContext>,
) -> HookContext {
    HookContext {
        source_ip: peer.source_ip(),
        http: Some(http.clone()),
        ..HookContext::new(action)
    }
}

/// The API's part of the context.
pub(super) fn http_context(
    method: &str,
    path: &str,
    route_action: &'static str,
    bearer: &Secret<String>,
    peer: &Peer,
) -> HttpContext {
    let (client_name, client_fingerprint) = match &peer.certificate {
        Some(certificate) => (
            certificate.subject_cn.clone().unwrap_or_default(),
            certificate.fingerprint(),
        ),
        None => Default::default(),
    };
    let peer_user = match &peer.origin {
        Origin::Inet(_) => String::new(),
        Origin::Local { uid, user } => user.clone().unwrap_or_else(|| uid.to_string()),
    };
    HttpContext {
        method: method.to_owned(),
        path: path.to_owned(),
        route_action,
        bearer: bearer.clone(),
        client_name,
        client_fingerprint,
        peer_user,
    }
}

/// Asks the hook as the API, and keeps the books about refusals. The lines are the caller's.
pub(super) async fn rule(
    api: &Api,
    snapshot: &Snapshot,
    peer: &Peer,
    asked: &HookContext,
) -> Ruling {
    let config = &snapshot.config;
    let caller = Caller::Api {
        default_allow: config.api.auth_default == AuthDefault::Allow,
    };
    let began = Instant::now();
    let ruling = authhook::rule(config.auth_hook.as_ref(), caller, asked, &snapshot.clock).await;
    if config.auth_hook.is_some() {
        api.metrics.hook(began.elapsed());
    }
    // Whoever is known but may not do this shows no wrong credential.
    const INSUFFICIENT: i32 = 3;
    if let Decision::Denied { code, .. } = &ruling.decision
        && *code != INSUFFICIENT
        && api
            .throttle()
            .refused(&peer.source(), Instant::now())
            .blocks
    {
        Action::new("api-throttle")
            .field("PEER", peer.source())
            .warning();
    }
    ruling
}

/// The answer to a denial (spec/api.md 7, 10.3). Where the hook lies is for the log only.
pub(super) fn denied(snapshot: &Snapshot, reason: &str, code: i32) -> Response {
    let hook = snapshot.config.auth_hook.as_ref();
    let path = hook.map(|hook| format!(": {}", hook.path.display()));
    let reason = path
        .and_then(|path| reason.strip_suffix(path.as_str()))
        .unwrap_or(reason);
    let body = if snapshot.config.api.auth_deny_generic {
        json!({"ok": false, "error": "forbidden"})
    } else {
        json!({"ok": false, "error": reason, "code": code})
    };
    reply::json(StatusCode::FORBIDDEN, &body)
}

impl Call {
    /// The body as an object.
    ///
    /// # Errors
    /// The answer: 400.
    pub(super) fn object(&self) -> Result<Map<String, Value>, Response> {
        // The original's language takes `0` for nothing.
        if self.body.is_empty() || &self.body[..] == b"0" {
            return Err(reply::bad_request("request body required"));
        }
        serde_json::from_slice(&self.body).map_err(|_| reply::bad_request("invalid JSON body"))
    }

    /// What the hook is told at gate 2, before the fields of the route.
    pub(super) fn asks(&self, action: HookAction) -> HookContext {
        hook_context(action, &self.peer, &self.http)
    }

    /// Gate 2, with its lines and those that have waited for it.
    pub(super) async fn ask(&self, asked: &HookContext) -> Decision {
        let ruling = rule(&self.api, &self.snapshot, &self.peer, asked).await;
        let allowed = ruling.decision == Decision::Allowed;
        if !allowed {
            self.api.metrics.refused(ApiRefusal::Auth);
        }
        if !allowed && !self.api.may_tell(Stranger::Refused) {
            self.untold.forget();
            return ruling.decision;
        }
        self.untold.tell();
        let decision = ruling.tell(asked);
        if allowed {
            self.accepted(&asked.token, asked.action);
        }
        decision
    }

    /// Gate 2.
    ///
    /// # Errors
    /// The answer: 403. A route that must not tell a refusal apart uses [`ask`](Self::ask).
    pub(super) async fn authorise(&self, asked: &HookContext) -> Result<(), Response> {
        match self.ask(asked).await {
            Decision::Allowed => Ok(()),
            Decision::Denied { reason, code } => Err(denied(&self.snapshot, &reason, code)),
        }
    }

    /// Gate 2 has let a credential pass.
    fn accepted(&self, token: &Secret<String>, action: HookAction) {
        let credential = fingerprint(&self.peer, token, &self.bearer, action.as_str());
        if let Some(credential) = credential {
            let source = self.peer.source();
            self.api
                .throttle()
                .accepted(&source, credential, Instant::now());
        }
    }

    /// Whose a run is: named by its credential, without telling it. `None`: the caller has shown none.
    ///
    /// The certificate first, then a token in the header or in the body, which is the same token, then the user of the unix socket.
    pub(super) fn owner(&self, token: &Secret<String>) -> Option<String> {
        if let Some(certificate) = &self.peer.certificate {
            return Some(format!("cert:{}", certificate.fingerprint()));
        }
        let secret = if self.bearer.expose().is_empty() {
            token
        } else {
            &self.bearer
        };
        if !secret.expose().is_empty() {
            let key = self.api.owner_key();
            let tag = ring::hmac::sign(key, secret.expose().as_bytes());
            return Some(format!("token:{}", hex(&tag.as_ref()[..16])));
        }
        match &self.peer.origin {
            Origin::Local { uid, .. } => Some(format!("uid:{uid}")),
            Origin::Inet(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: hyper::header::HeaderName, values: &[&'static str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(&name, HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn the_last_bearer_wins_and_ends_at_a_blank() {
        let token =
            |values: &[&'static str]| bearer(&headers(AUTHORIZATION, values)).expose().clone();
        assert_eq!(token(&["bEaReR  abc def"]), "abc");
        assert_eq!(token(&["Bearer a", "Bearer b", "Basic c"]), "b");
        assert_eq!(token(&["Bearer"]), "");
        assert_eq!(token(&["Basic eDp5"]), "");
        assert_eq!(token(&[]), "");
    }

    #[test]
    fn accept_decides() {
        let wanted = |values: &[&'static str]| Wanted::of(&headers(ACCEPT, values));
        assert_eq!(wanted(&[]), Wanted::Json);
        assert_eq!(wanted(&["*/*"]), Wanted::Json);
        assert_eq!(wanted(&["text/event-stream"]), Wanted::Events);
        assert_eq!(
            wanted(&["text/html, Application/X-NDJSON;q=0.5"]),
            Wanted::Lines
        );
        assert_eq!(
            wanted(&["application/json, text/event-stream"]),
            Wanted::Json
        );
        assert_eq!(wanted(&["image/png"]), Wanted::Json);
    }
}
