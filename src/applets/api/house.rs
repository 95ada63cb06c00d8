//! What every connection needs.

use std::sync::Arc;
use std::time::Instant;

use axum::response::Response;
use hyper::body::Incoming;
use hyper::{Request, StatusCode};
use tokio::sync::{mpsc, watch};

use crate::applets::api::peer::Peer;
use crate::applets::api::places::Places;
use crate::applets::api::rarely::Rarely;
use crate::applets::api::state::Api;
use crate::applets::api::{gate, reply};
use crate::core::logging::Action;
use crate::core::metrics::ApiRefusal;

/// What every connection needs.
#[derive(Clone)]
pub(super) struct House {
    pub(super) api: Arc<Api>,
    pub(super) places: Arc<Places>,
    pub(super) complaints: Arc<Complaints>,
    pub(super) stop: watch::Receiver<bool>,
    /// Held by every task; when all are gone, the last request is answered.
    pub(super) _presence: mpsc::Sender<()>,
}

/// Lines that strangers can cause.
#[derive(Debug, Default)]
pub(super) struct Complaints {
    overload: Rarely,
    full: Rarely,
    handshake: Rarely,
}

impl House {
    /// Ends when the server is told to stop.
    pub(super) async fn told_to_stop(stop: &mut watch::Receiver<bool>) {
        // An error means that the server itself is gone: as good as the word.
        let _ = stop.wait_for(|stop| *stop).await;
    }

    /// Why the certificate that a peer has shown counts no more; `None`: it counts, or there is none.
    pub(super) async fn revocation(&self, peer: &Peer) -> Option<String> {
        let certificate = peer.certificate.as_ref()?;
        let client = self.api.client().await;
        let entry = client.revocation_of(certificate)?;
        Some(format!(
            "the client's certificate (serial {}) was revoked {}",
            certificate.serial, entry.time
        ))
    }

    /// The answer of the handlers, or of the listener where they are not to be asked; and whether the connection should end with it.
    pub(super) async fn answer(
        &self,
        peer: Peer,
        request: Box<Request<Incoming>>,
    ) -> (Response, bool) {
        // Revoked since the handshake.
        if self.revocation(&peer).await.is_some() {
            let refusal = reply::error(StatusCode::FORBIDDEN, "certificate revoked", "");
            return (refusal, true);
        }
        (gate::answer(&self.api, peer, request).await, false)
    }

    /// A request was refused because `live` are under way.
    pub(super) fn say_overloaded(&self, live: usize, peer: &Peer) {
        self.api.metrics.refused(ApiRefusal::Overload);
        if let Some(count) = self.complaints.overload.happened(Instant::now()) {
            Action::new("api-overload")
                .field("COUNT", count)
                .field("LIVE", live)
                .field("PEER", peer.source_ip())
                .warning();
        }
    }

    /// A connection was refused because there are too many, all of them busy or of others.
    pub(super) fn say_full(&self, peer: &Peer) {
        self.api.metrics.refused(ApiRefusal::Overload);
        if let Some(count) = self.complaints.full.happened(Instant::now()) {
            Action::new("api-full")
                .field("COUNT", count)
                .field("OPEN", self.places.open())
                .field("PEER", peer.source_ip())
                .warning();
        }
    }

    /// A handshake came to nothing.
    pub(super) fn say_no_tls(&self, peer: &Peer, reason: &str) {
        self.api.metrics.refused(ApiRefusal::Tls);
        if let Some(count) = self.complaints.handshake.happened(Instant::now()) {
            Action::new("tls-failure")
                .field("COUNT", count)
                .field("PEER", peer.source_ip())
                .field("REASON", reason)
                .warning();
        }
    }
}
