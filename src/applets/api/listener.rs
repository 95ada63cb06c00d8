//! Accepts connections and sees them through the handshake, each in a task of its own: nothing that a peer does or omits to do keeps
//! others waiting (spec/api.md 16.3).

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;

use crate::applets::api::house::House;
use crate::applets::api::peer::{Origin, Peer};
use crate::applets::api::places::Seat;
use crate::applets::api::wire::Wire;
use crate::applets::api::{connection, http2};
use crate::core::logging::Action;
use crate::core::serving::handshakes::{HANDSHAKE_TIMEOUT, Handshakes, Place};
use crate::core::sys;
use crate::core::sys::users::Database;
use crate::core::task;
use crate::core::tls;

/// Pause after an accept that failed (out of descriptors): trying at once again would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);
/// A failing accept is logged this often and no more.
const ACCEPT_LOG_PAUSE: Duration = Duration::from_secs(60);

/// A socket that listens.
#[derive(Debug)]
pub(super) enum Listening {
    Tcp(TcpListener),
    Unix(UnixListener),
}

enum Arrival {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Listening {
    async fn accept(&self) -> io::Result<(Arrival, Origin)> {
        match self {
            Self::Tcp(listener) => {
                let (stream, address) = listener.accept().await?;
                let _ = stream.set_nodelay(true);
                let origin = Origin::Inet(address.ip().to_canonical());
                Ok((Arrival::Tcp(stream), origin))
            }
            Self::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                let uid = sys::peer::credentials(&stream)?.uid;
                let users = Database::load().unwrap_or_default();
                let user = users.by_uid(uid).map(|account| account.name);
                Ok((Arrival::Unix(stream), Origin::Local { uid, user }))
            }
        }
    }
}

/// Serves until told to stop. Returns at once then; requests in flight go on.
pub(super) async fn accept_loop(listening: Listening, house: House) {
    let mut handshakes = Handshakes::default();
    let mut stop = house.stop.clone();
    let mut complained: Option<Instant> = None;
    loop {
        let next = async {
            handshakes.make_room().await;
            listening.accept().await
        };
        let accepted = tokio::select! {
            () = House::told_to_stop(&mut stop) => return,
            next = next => next,
        };
        match accepted {
            Ok((arrival, origin)) => receive(&house, arrival, origin, &mut handshakes),
            Err(error) => {
                if complained.is_none_or(|at| at.elapsed() > ACCEPT_LOG_PAUSE) {
                    complained = Some(Instant::now());
                    Action::new("accept-retry").field("REASON", error).warning();
                }
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// The cheap refusals, before any cryptography; then a task of its own.
fn receive(house: &House, arrival: Arrival, origin: Origin, handshakes: &mut Handshakes) {
    let source = match &origin {
        Origin::Inet(address) => Some(*address),
        Origin::Local { .. } => None,
    };
    let peer = Peer {
        origin,
        certificate: None,
    };
    let Some(seat) = house.places.enter(source) else {
        return house.say_full(&peer);
    };
    let house = house.clone();
    match (arrival, house.api.snapshot().tls.clone()) {
        (Arrival::Unix(stream), _) => {
            task::spawn(connection::serve(house, Wire::Unix(stream), peer, seat));
        }
        (Arrival::Tcp(stream), None) => {
            task::spawn(connection::serve(house, Wire::Tcp(stream), peer, seat));
        }
        (Arrival::Tcp(stream), Some(tls)) => {
            let place = handshakes.enter();
            task::spawn(secure(house, stream, tls, peer, (seat, place)));
        }
    }
}

async fn secure(
    house: House,
    stream: TcpStream,
    tls: Arc<ServerConfig>,
    mut peer: Peer,
    (seat, mut place): (Seat, Place),
) {
    let mut stop = house.stop.clone();
    let handshake = Box::pin(timeout(
        HANDSHAKE_TIMEOUT,
        TlsAcceptor::from(tls).accept(stream),
    ));
    let accepted = tokio::select! {
        accepted = handshake => accepted,
        () = place.told_to_give_way() => {
            return house.say_no_tls(&peer, "handshake too slow while others were waiting");
        }
        () = House::told_to_stop(&mut stop) => return,
    };
    drop(place);
    let stream = match accepted {
        Ok(Ok(stream)) => Box::new(stream),
        Ok(Err(error)) => return house.say_no_tls(&peer, &tls::classify(&error).to_string()),
        Err(_) => return house.say_no_tls(&peer, "handshake timed out"),
    };
    let connection = stream.get_ref().1;
    let is_http2 = connection.alpn_protocol() == Some(tls::HTTP2_ALPN);
    if connection.peer_certificates().is_some() {
        match tls::peer_certificate(connection) {
            Ok(certificate) => peer.certificate = Some(Arc::new(certificate)),
            Err(error) => return house.say_no_tls(&peer, &error.to_string()),
        }
    }
    if let Some(reason) = house.revocation(&peer).await {
        return house.say_no_tls(&peer, &reason);
    }
    let wire = Wire::Tls(stream);
    // In a task of its own: this one has room for a handshake, which a connection at rest would keep.
    if is_http2 {
        task::spawn(http2::serve(house, wire, peer, seat));
    } else {
        task::spawn(connection::serve(house, wire, peer, seat));
    }
}
