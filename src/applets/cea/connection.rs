//! One connection after its handshake: wait for a first byte, then HTTP until either side has had enough (spec/agent.md 7-8).

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use hyper::service::service_fn;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::time::timeout;

use crate::applets::cea::gate::{self, Peer};
use crate::applets::cea::listener::{House, told_to_stop};
use crate::applets::cea::reply;
use crate::core::logging::Action;
use crate::core::metrics::AgentRefusal;
use crate::core::pki::{Certificate, PeerIdentity};
use crate::core::serving::http1::{self, Answering};
use crate::core::serving::patience::{Deadlines, Patient, Phase};
use crate::core::stream::Stream;
use crate::core::wire::errors;

/// Connections beyond the limit that are told so at the same time; further ones are closed without a word.
const MAX_APOLOGIES: usize = 16;

/// Counts connections and the runs that outlive them.
#[derive(Clone, Default)]
pub(super) struct Children(Arc<AtomicUsize>);

/// One connection or run that counts. Shared by both; the place is free when the last of them is over.
pub(super) struct Child(Children);

impl Children {
    fn admit(&self) -> (Arc<Child>, usize) {
        let live = self.0.fetch_add(1, Ordering::Relaxed) + 1;
        (Arc::new(Child(self.clone())), live)
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

pub(super) async fn serve<S>(
    house: House,
    stream: S,
    address: IpAddr,
    certificate: Arc<Certificate>,
    identity: Arc<PeerIdentity>,
) where
    S: Stream,
{
    let limit = house.agent.snapshot().config.max_children;
    let (child, live) = house.children.admit();
    let overloaded = live > limit;
    if overloaded {
        Action::new("overload")
            .field("LIVE", live - 1)
            .field("PEER", address)
            .warning();
        house.agent.metrics.refused(AgentRefusal::Overload);
        if live > limit + MAX_APOLOGIES {
            return;
        }
    }
    let _open = house.agent.metrics.connection();
    let deadlines = Deadlines::default();
    let mut stop = house.stop.clone();
    let mut stream = BufReader::with_capacity(4096, stream);
    let first = tokio::select! {
        first = timeout(deadlines.header, stream.fill_buf()) => first,
        () = told_to_stop(&mut stop) => return,
    };
    match first {
        Ok(Ok([])) => {
            let farewell = async {
                stream
                    .write_all(&reply::raw_bad_request(errors::EMPTY_REQUEST))
                    .await?;
                stream.shutdown().await
            };
            let _ = timeout(deadlines.send, farewell).await;
            return;
        }
        Ok(Ok(_)) => {}
        Ok(Err(_)) | Err(_) => return,
    }

    let phase = Phase::new();
    let peer = Peer {
        address: address.to_string().into(),
        certificate,
        identity,
        _child: child,
        overloaded,
    };
    let answerer = {
        let (house, phase) = (house.clone(), phase.clone());
        service_fn(move |request| -> Answering {
            let (house, peer, phase) = (house.clone(), peer.clone(), phase.clone());
            Box::pin(async move {
                phase.request_begins();
                let response = gate::answer(&house.agent, house.router, peer, request).await;
                phase.answer_is_ready();
                Ok(response)
            })
        })
    };
    let stream = Patient::new(stream, phase, deadlines);
    let mut connection = std::pin::pin!(http1::speak(Box::new(stream), Box::new(answerer)));
    tokio::select! {
        _ = connection.as_mut() => return,
        () = told_to_stop(&mut stop) => {}
    }
    connection.as_mut().graceful_shutdown();
    let _ = connection.await;
}
