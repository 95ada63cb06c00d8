//! Accepts connections and sees them through the handshake, each in a task of its own: nothing that a peer does or omits to do keeps
//! others waiting or ends the daemon (spec/agent.md 7.2, weaknesses W1 and W3 of 19.2).

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;

use crate::applets::cea::admission::{Door, Failure};
use crate::applets::cea::connection::{self, Children};
use crate::applets::cea::state::Agent;
use crate::core::logging::Action;
use crate::core::metrics::AgentRefusal;
use crate::core::pki::PeerIdentity;
use crate::core::serving::handshakes::{HANDSHAKE_TIMEOUT, Handshakes, Place};
use crate::core::task;
use crate::core::tls;

/// Pause after an accept that failed (out of descriptors): trying at once again would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);
/// Longest that a connection waits for other handshakes of its address.
const DOOR_TIMEOUT: Duration = Duration::from_secs(5);
/// A failing accept is logged this often and no more.
const ACCEPT_LOG_PAUSE: Duration = Duration::from_secs(60);

/// What every connection needs.
#[derive(Clone)]
pub(super) struct House {
    pub(super) agent: Arc<Agent>,
    pub(super) router: axum::Router,
    pub(super) children: Children,
    pub(super) stop: watch::Receiver<bool>,
    /// Told of every connection that has ended.
    pub(super) work: Arc<Notify>,
    /// Held by every task; when all are gone, the last request is answered.
    pub(super) _presence: mpsc::Sender<()>,
}

/// Serves until told to stop. Returns at once then; requests in flight go on.
pub(super) async fn accept_loop(listener: TcpListener, house: House) {
    let mut handshakes = Handshakes::default();
    let mut stop = house.stop.clone();
    let mut complained: Option<Instant> = None;
    loop {
        let next = async {
            handshakes.make_room().await;
            listener.accept().await
        };
        let accepted = tokio::select! {
            () = told_to_stop(&mut stop) => return,
            next = next => next,
        };
        match accepted {
            Ok((stream, address)) => {
                let address = address.ip().to_canonical();
                let door = may_enter(&house.agent, address);
                if door != Door::Shut {
                    let work = house.work.clone();
                    let served = receive(house.clone(), stream, address, door, handshakes.enter());
                    task::spawn(async move {
                        served.await;
                        work.notify_one();
                    });
                }
            }
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

/// The cheap refusals, before any cryptography.
fn may_enter(agent: &Agent, address: IpAddr) -> Door {
    let snapshot = agent.snapshot();
    let allowed = &snapshot.config.allowed_ips;
    if !allowed.is_empty() && !allowed.iter().any(|range| range.contains(address)) {
        Action::new("ip-block").field("PEER", address).warning();
        agent.metrics.refused(AgentRefusal::Ip);
        return Door::Shut;
    }
    let door = agent.admission().at_the_door(address, Instant::now());
    if door == Door::Shut {
        agent.metrics.refused(AgentRefusal::Rate);
    }
    door
}

/// Whether a connection that has to wait came in after all.
async fn wait_at_the_door(agent: &Agent, address: IpAddr, place: &mut Place) -> bool {
    let late = sleep(DOOR_TIMEOUT);
    tokio::pin!(late);
    loop {
        // Made before the question: what ends in between is not missed.
        let ended = agent.door.notified();
        match agent.admission().ask_again(address, Instant::now()) {
            Door::Open => return true,
            Door::Shut => return false,
            Door::Wait => {}
        }
        tokio::select! {
            () = ended => {}
            () = &mut late => break,
            () = place.told_to_give_way() => break,
        }
    }
    agent.admission().give_up(address);
    false
}

async fn receive(house: House, stream: TcpStream, address: IpAddr, door: Door, mut place: Place) {
    let agent = &house.agent;
    if door == Door::Wait && !wait_at_the_door(agent, address, &mut place).await {
        agent.metrics.refused(AgentRefusal::Rate);
        return;
    }
    let snapshot = agent.snapshot();
    let _ = stream.set_nodelay(true);
    let acceptor = TlsAcceptor::from(snapshot.tls.clone());
    let accepted = tokio::select! {
        accepted = timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)) => accepted.map_err(|_| "handshake timed out"),
        () = place.told_to_give_way() => Err("handshake too slow while others were waiting"),
    };
    drop(place);
    agent.admission().handshake_over(address);
    agent.door.notify_waiters();

    let failed = |failure, reason: String| {
        Action::new("tls-failure")
            .field("PEER", address)
            .field("REASON", reason)
            .warning();
        agent.metrics.refused(AgentRefusal::Tls);
        let now = Instant::now();
        agent.admission().handshake_failed(address, failure, now);
    };
    let stream = match accepted {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return failed(sort(&error), tls::classify(&error).to_string()),
        Err(late) => return failed(Failure::Disconnected, late.to_owned()),
    };
    let certificate = match tls::peer_certificate(stream.get_ref().1) {
        Ok(certificate) => Arc::new(certificate),
        Err(error) => return failed(Failure::Probe, error.to_string()),
    };
    let identity = Arc::new(PeerIdentity::from_certificate(&certificate));

    let welcome = {
        let now = Instant::now();
        let mut admission = agent.admission();
        if snapshot.dispatcher(&identity).is_some() {
            admission.trusted_arrived(address, now);
            agent.door.notify_waiters();
            true
        } else {
            admission.stranger_arrived(address, now)
        }
    };
    if !welcome {
        agent.metrics.refused(AgentRefusal::Rate);
    } else {
        connection::serve(house.clone(), stream, address, certificate, identity).await;
    }
}

fn sort(error: &std::io::Error) -> Failure {
    use std::io::ErrorKind;
    if tls::classify(error).is_about_time() {
        return Failure::Clock;
    }
    match error.kind() {
        ErrorKind::UnexpectedEof
        | ErrorKind::ConnectionReset
        | ErrorKind::ConnectionAborted
        | ErrorKind::BrokenPipe
        | ErrorKind::TimedOut => Failure::Disconnected,
        _ => Failure::Probe,
    }
}

/// Ends when the daemon is told to stop.
pub(super) async fn told_to_stop(stop: &mut watch::Receiver<bool>) {
    // An error means that the daemon itself is gone: as good as the word.
    let _ = stop.wait_for(|stop| *stop).await;
}
