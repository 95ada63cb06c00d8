//! What every connection needs.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::{mpsc, watch};

use crate::applets::api::peer::Peer;
use crate::applets::api::places::Places;
use crate::applets::api::rarely::Rarely;
use crate::applets::api::state::Api;
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
