//! What stands between a parsed request and its handler (spec/agent.md 7.2 steps 9-15, 9.1). The order: overload, revocation,
//! number of headers, announced size, route, trust, budget; only then the body is read.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::{FromRequest, FromRequestParts};
use axum::response::Response;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::http::request::Parts;
use hyper::{Method, Request, StatusCode};
use serde_json::json;
use tokio::time::timeout;
use tower_service::Service as _;

use crate::applets::cea::connection::Child;
use crate::applets::cea::state::{Agent, Snapshot};
use crate::applets::cea::timekeeping::{self, Witness};
use crate::applets::cea::{handlers, reply};
use crate::core::http_body::Polite;
use crate::core::logging::Action;
use crate::core::metrics::{AgentMetrics, AgentRefusal};
use crate::core::pki::{Certificate, PeerIdentity};
use crate::core::types::DispatcherId;
use crate::core::wire::{self, errors};

/// Longest time for a body to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// What is taken of an unwanted body.
const UNWANTED_BYTES: u64 = 4 * wire::MAX_REQUEST_BODY;

/// The other end of a connection.
#[derive(Clone)]
pub(super) struct Peer {
    /// For log lines and contexts.
    pub(super) address: Arc<str>,
    pub(super) certificate: Arc<Certificate>,
    pub(super) identity: Arc<PeerIdentity>,
    /// The place that this connection takes; a run keeps it although its connection ends.
    pub(super) _child: Arc<Child>,
    /// There is no place for this one: it is only told so.
    pub(super) overloaded: bool,
}

impl Peer {
    /// The serial as log lines show it.
    pub(super) fn serial(&self) -> String {
        self.identity.serial.two_digit_hex()
    }
}

/// Answers one request, whatever it is.
pub(super) async fn answer(
    agent: &Arc<Agent>,
    mut router: axum::Router,
    peer: Peer,
    request: Request<Incoming>,
) -> Response {
    let snapshot = agent.snapshot();
    let route = handlers::route_of(request.uri().path());
    let counted = |response: Response| {
        let code = response.status().as_u16();
        agent.metrics.answered(route, code);
        response
    };
    if let Some(refusal) = refuse_early(agent, &snapshot, &peer, &request) {
        drop(Polite::new(request.into_body(), UNWANTED_BYTES));
        return counted(refusal);
    }
    let stranger = snapshot.dispatcher(&peer.identity).is_none();
    let mut request = request.map(|body| Body::new(Polite::new(body, UNWANTED_BYTES)));
    request.extensions_mut().insert(peer);
    request.extensions_mut().insert(snapshot);
    let Ok(response) = router.call(request).await;
    if stranger {
        // Whoever we do not serve shall not keep a place that others could have.
        return counted(reply::and_close(response));
    }
    counted(response)
}

/// The refusals that need nothing but the head of the request.
fn refuse_early<B>(
    agent: &Agent,
    snapshot: &Snapshot,
    peer: &Peer,
    request: &Request<B>,
) -> Option<Response> {
    if peer.overloaded {
        let busy = reply::error(StatusCode::SERVICE_UNAVAILABLE, "agent overloaded");
        return Some(reply::and_close(busy));
    }
    let serial = &peer.identity.serial;
    if snapshot.revoked.contains(serial) {
        Action::new("revoked-cert")
            .field("PEER", &peer.address)
            .field("SERIAL", peer.serial())
            .warning();
        agent.metrics.refused(AgentRefusal::Revoked);
        let revoked = reply::error(StatusCode::FORBIDDEN, errors::CERTIFICATE_REVOKED);
        return Some(reply::and_close(revoked));
    }
    if request.headers().len() > wire::MAX_HEADERS {
        return Some(reply::error(
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            errors::TOO_MANY_HEADERS,
        ));
    }
    let announced = request
        .headers()
        .get(hyper::header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok()?.trim().parse::<u64>().ok());
    if announced.is_some_and(|length| length > wire::MAX_REQUEST_BODY) {
        return Some(too_large());
    }
    // A query or HEAD reaches no route of the original either.
    if request.uri().query().is_some() || request.method() == Method::HEAD {
        return Some(handlers::not_found());
    }
    None
}

fn too_large() -> Response {
    reply::and_close(reply::error(
        StatusCode::PAYLOAD_TOO_LARGE,
        errors::REQUEST_TOO_LARGE,
    ))
}

/// A trusted dispatcher. A handler that takes one cannot forget to ask.
pub(super) struct Caller {
    pub(super) dispatcher: DispatcherId,
    pub(super) peer: Peer,
    pub(super) snapshot: Arc<Snapshot>,
    pub(super) metrics: Arc<AgentMetrics>,
    /// What time it is there, if the request says so.
    date: Option<i64>,
}

impl Caller {
    /// Whom to believe about the time, and how far.
    pub(super) fn witness(&self) -> Witness<'_> {
        Witness {
            dispatcher: &self.dispatcher,
            date: self.date,
            not_after: self.peer.certificate.not_after,
        }
    }
}

impl FromRequestParts<Arc<Agent>> for Caller {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, agent: &Arc<Agent>) -> Result<Self, Response> {
        let extensions = &mut parts.extensions;
        let (Some(peer), Some(snapshot)) = (
            extensions.remove::<Peer>(),
            extensions.remove::<Arc<Snapshot>>(),
        ) else {
            return Err(refuse_untrusted(parts.uri.path()));
        };
        let Some(dispatcher) = snapshot.dispatcher(&peer.identity).cloned() else {
            log_untrusted(parts.uri.path(), &peer, snapshot.trust.is_empty());
            agent.metrics.refused(AgentRefusal::Untrusted);
            return Err(refuse_untrusted(parts.uri.path()));
        };
        let now = Instant::now();
        if !agent.admission().spend(&dispatcher, &peer.address, now) {
            agent.metrics.refused(AgentRefusal::Rate);
            return Err(reply::error(
                StatusCode::TOO_MANY_REQUESTS,
                "rate limit exceeded",
            ));
        }
        let date = timekeeping::date_of(&parts.headers);
        let caller = Self {
            dispatcher,
            peer,
            snapshot,
            metrics: agent.metrics.clone(),
            date,
        };
        agent.heard(&caller);
        Ok(caller)
    }
}

const CAPABILITIES: &str = "/capabilities";

fn refuse_untrusted(path: &str) -> Response {
    if path == CAPABILITIES {
        return reply::error(StatusCode::FORBIDDEN, errors::FORBIDDEN);
    }
    let body = json!({ "error": errors::SERIAL_MISMATCH, "status": "forbidden" });
    reply::json(StatusCode::FORBIDDEN, &body)
}

fn log_untrusted(path: &str, peer: &Peer, nobody_is_trusted: bool) {
    let action = |name| {
        Action::new(name)
            .field("PEER", &peer.address)
            .field("PEER_SERIAL", peer.serial())
    };
    if path == CAPABILITIES {
        let reason = if nobody_is_trusted {
            "no trusted dispatchers stored"
        } else {
            "serial-mismatch"
        };
        action("capabilities-deny")
            .field("REASON", reason)
            .warning();
    } else {
        // The body is not read yet, so only `/result` names its request.
        let reqid = path.strip_prefix("/result/").unwrap_or("(none)");
        action("serial-reject").field("REQID", reqid).warning();
    }
}

/// The body, within its limits of size and time.
pub(super) struct Payload(pub(super) Bytes);

impl FromRequest<Arc<Agent>> for Payload {
    type Rejection = Response;

    async fn from_request(request: Request<Body>, _: &Arc<Agent>) -> Result<Self, Response> {
        let limit = usize::try_from(wire::MAX_REQUEST_BODY).unwrap_or(usize::MAX);
        let body = Limited::new(request.into_body(), limit);
        match timeout(BODY_TIMEOUT, body.collect()).await {
            Ok(Ok(collected)) => Ok(Self(collected.to_bytes())),
            Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large()),
            Ok(Err(_)) => Err(reply::and_close(reply::error(
                StatusCode::BAD_REQUEST,
                "incomplete request",
            ))),
            Err(_) => Err(reply::and_close(reply::error(
                StatusCode::REQUEST_TIMEOUT,
                "request timeout",
            ))),
        }
    }
}
