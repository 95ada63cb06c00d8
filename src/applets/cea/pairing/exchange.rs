//! The connection to the dispatcher: does what the machine asks for, and tells it what happened.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::audience::Audience;
use super::plan::Plan;
use crate::applets::AppError;
use crate::core::hostname;
use crate::core::logging::Action;
use crate::core::pairing::agent::{
    AgentEffect, AgentEvent, AgentState, Offer, PairingFailure, Vouched,
};
use crate::core::pairing::code::{CodeKind, Nonce};
use crate::core::pairing::delivery::{self, Accepted, Expectation};
use crate::core::pairing::framing::{self, Direction, Framing};
use crate::core::pairing::install::Installation;
use crate::core::pairing::message::Approval;
use crate::core::pairing::{MAX_WAIT, STEP_TIMEOUT};
use crate::core::pki::{Certificate, KeyType, PrivateKey, csr};
use crate::core::task;
use crate::core::tls;
use crate::core::types::{self, ReqId};

/// Time to reach one address (spec/pairing.md 6).
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Time for the handshake: a listener of the original does one after another.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(30);
/// Time for the acknowledgement: ours looks up a name and takes a lock first.
const ACKNOWLEDGEMENT_TIMEOUT: Duration = Duration::from_secs(60);

/// A stored pairing, for what is said afterwards.
#[derive(Clone, Debug)]
pub(super) struct Done {
    pub(super) dispatcher: String,
    pub(super) expiry: String,
}

/// Why there is none.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    pub(super) text: String,
    /// `None`: the protocol had not begun.
    pub(super) cause: Option<PairingFailure>,
    /// Known once the dispatcher has acknowledged.
    pub(super) reqid: Option<ReqId>,
}

impl Failure {
    fn before(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            cause: None,
            reqid: None,
        }
    }
}

/// Pairs, or says why not.
///
/// # Errors
/// Only what has nothing to do with the dispatcher: no runtime, no random bytes, no detaching.
pub(super) fn run(plan: &Plan, audience: Audience) -> Result<Result<Done, Failure>, AppError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| AppError::failed(format!("cannot start the runtime: {e}")))?;
    let outcome = task::block_on(&runtime, pair(plan, audience));
    runtime.shutdown_background();
    outcome
}

async fn pair(plan: &Plan, audience: Audience) -> Result<Result<Done, Failure>, AppError> {
    audience.progress(&format!(
        "Asking {} port {} to pair '{}'.",
        plan.dispatcher, plan.port, plan.name
    ));
    // A key that was asked for is made before anybody waits; the default depends on the peer.
    let early_key = match plan.key_type {
        Some(kind) => Some(generate(kind).await?),
        None => None,
    };
    let stream = match connect(plan).await {
        Ok(stream) => stream,
        Err(failure) => return Ok(Err(failure)),
    };
    let (tcp, session) = stream.get_ref();
    let speaks_bound = session.alpn_protocol() == Some(tls::PAIRING_ALPN);
    let local_ip = tcp.local_addr().ok().map(|a| a.ip().to_canonical());
    let peer = session.peer_certificates().and_then(<[_]>::first);
    let peer = match peer.map(|der| Certificate::from_der(der)) {
        Some(Ok(peer)) => peer,
        Some(Err(error)) => {
            return Ok(Err(Failure::before(format!(
                "the certificate of '{}' cannot be read: {error}",
                plan.dispatcher
            ))));
        }
        None => return Ok(Err(Failure::before("the dispatcher showed no certificate"))),
    };
    let key = match early_key {
        Some(key) => key,
        None if speaks_bound => generate(KeyType::EcdsaP256).await?,
        // A dispatcher of the original signs RSA keys only. The least it takes: a router needs minutes for more, with the connection open.
        None => generate(KeyType::Rsa2048).await?,
    };
    let own_spki = key.spki_der();
    let mut exchange = Exchange {
        plan,
        audience,
        stream,
        framing: Framing::new(Direction::Responses),
        peer,
        key,
        own_spki,
        accepted: None,
        reqid: None,
        kind: CodeKind::Basic,
        vouched: Vouched::ByNobody,
    };
    let by_key = match delivery::check_peer(&exchange.expectation()) {
        Ok(by_key) => by_key,
        Err(error) => return Ok(Err(Failure::before(error.to_string()))),
    };
    exchange.vouched = match (by_key, audience.has_person()) {
        (true, _) => Vouched::ByKey,
        (false, true) => Vouched::ByPerson,
        (false, false) => Vouched::ByNobody,
    };
    let no_random = |_| AppError::failed("the system gives no random bytes");
    let offer = Offer {
        hostname: plan.name.to_string(),
        csr_pem: csr::create_pem(&exchange.key, &plan.name)
            .map_err(|e| AppError::failed(e.to_string()))?,
        echo: types::hex(&types::random::<16>().map_err(no_random)?),
        agent_nonce: Nonce::generate().map_err(no_random)?,
        server_cert: types::sha256(&[&exchange.peer.der]),
        speaks_bound,
        require_bound: plan.require_bound,
        vouched: exchange.vouched,
        ip: local_ip,
        port: plan.own_port,
        lookup_by: plan.lookup_by,
    };
    exchange.drive(AgentState::Ready(Box::new(offer))).await
}

async fn generate(kind: KeyType) -> Result<PrivateKey, AppError> {
    let made = task::spawn_blocking(move || PrivateKey::generate(kind)).await;
    match made {
        Ok(Ok(key)) => Ok(key),
        Ok(Err(error)) => Err(AppError::failed(format!("cannot make a key: {error}"))),
        Err(error) => Err(AppError::failed(format!("cannot make a key: {error}"))),
    }
}

/// Reaches the port, then shakes hands. The texts tell apart what a person can do about it (spec/pairing.md 11.1).
async fn connect(plan: &Plan) -> Result<TlsStream<TcpStream>, Failure> {
    let (host, port) = (plan.dispatcher.clone(), plan.port);
    let addresses = task::spawn_blocking(move || hostname::addresses(&host, port, CONNECT_TIMEOUT))
        .await
        .unwrap_or_default();
    if addresses.is_empty() {
        return Err(Failure::before(format!(
            "the name '{}' cannot be resolved: check it, or give the address of the dispatcher",
            plan.dispatcher
        )));
    }
    let (stream, address) = reach(&addresses).await.map_err(|error| {
        Failure::before(format!(
            "cannot reach '{}' port {} ({error}): is pairing mode running there (ced pairing-mode), and does a firewall allow it?",
            plan.dispatcher, plan.port
        ))
    })?;
    let config = tls::pairing_client_config().map_err(|e| Failure::before(e.to_string()))?;
    let name = ServerName::IpAddress(address.ip().into());
    let handshake = TlsConnector::from(Arc::clone(&config)).connect(name, stream);
    let shaken = timeout(HANDSHAKE_TIMEOUT, handshake)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    shaken.map_err(|error| {
        Failure::before(format!(
            "'{}' port {} answers, but is not a pairing listener, or refuses this host for a while ({error})",
            plan.dispatcher, plan.port
        ))
    })
}

async fn reach(addresses: &[SocketAddr]) -> io::Result<(TcpStream, SocketAddr)> {
    let mut last = io::ErrorKind::AddrNotAvailable.into();
    for address in addresses.iter().take(8) {
        match timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => return Ok((stream, *address)),
            Ok(Err(error)) => last = error,
            Err(_) => last = io::ErrorKind::TimedOut.into(),
        }
    }
    Err(last)
}

struct Exchange<'a> {
    plan: &'a Plan,
    audience: Audience,
    stream: TlsStream<TcpStream>,
    framing: Framing,
    peer: Certificate,
    key: PrivateKey,
    own_spki: Vec<u8>,
    accepted: Option<Accepted>,
    reqid: Option<ReqId>,
    kind: CodeKind,
    vouched: Vouched,
}

impl Exchange<'_> {
    fn expectation(&self) -> Expectation<'_> {
        Expectation {
            own_spki: &self.own_spki,
            hostname: self.plan.name.as_str(),
            peer: &self.peer,
            known_ca: self.plan.known_ca.as_ref(),
            replace_ca: self.plan.replace_ca,
            pins: self.plan.pins,
            now: self.plan.clock.now(),
        }
    }

    async fn drive(&mut self, mut state: AgentState) -> Result<Result<Done, Failure>, AppError> {
        let mut events = VecDeque::from([AgentEvent::Connected]);
        let mut deadline = Instant::now() + ACKNOWLEDGEMENT_TIMEOUT;
        loop {
            let event = match events.pop_front() {
                Some(event) => event,
                None => self.receive(deadline).await,
            };
            let (next, effects) = state.next(event);
            state = next;
            for effect in effects {
                match effect {
                    AgentEffect::Send { path, body } => {
                        // What does not arrive shows as a closed connection.
                        let _ = self.send(path, &body).await;
                    }
                    AgentEffect::Announce { reqid, code, kind } => {
                        self.audience.announce(&reqid, code, kind)?;
                        self.reqid = Some(reqid);
                        self.kind = kind;
                        deadline = Instant::now() + self.plan.patience.min(MAX_WAIT);
                    }
                    AgentEffect::Verify(approval) => {
                        events.push_back(AgentEvent::Verified(self.verify(&approval)));
                    }
                    AgentEffect::Ask { code, kind } => {
                        events.push_back(AgentEvent::Confirmed(self.audience.ask(code, kind).await));
                    }
                    AgentEffect::WarnUnvouched => self.audience.warn(
                        "nobody on this host has confirmed the dispatcher: compare the codes yourself, or give --dispatcher-fingerprint next time",
                    ),
                    AgentEffect::Store => events.push_back(AgentEvent::Stored(self.store())),
                    AgentEffect::Finish(result) => {
                        let _ = timeout(STEP_TIMEOUT, self.stream.shutdown()).await;
                        return Ok(self.finish(result));
                    }
                }
            }
        }
    }

    async fn receive(&mut self, deadline: Instant) -> AgentEvent {
        let mut buffer = [0; 4096];
        loop {
            match self.framing.next_message() {
                Ok(Some(message)) => return AgentEvent::Response(message.body),
                Ok(None) => {}
                Err(error) => return AgentEvent::BadResponse(error),
            }
            match timeout_at(deadline, self.stream.read(&mut buffer)).await {
                Err(_) => return AgentEvent::Deadline,
                Ok(Ok(0) | Err(_)) => return AgentEvent::Closed,
                Ok(Ok(count)) => {
                    if let Err(error) = self.framing.feed(buffer.get(..count).unwrap_or_default()) {
                        return AgentEvent::BadResponse(error);
                    }
                }
            }
        }
    }

    async fn send(&mut self, path: &str, body: &[u8]) -> io::Result<()> {
        let bytes = framing::request(path, body);
        timeout(STEP_TIMEOUT, async {
            self.stream.write_all(&bytes).await?;
            self.stream.flush().await
        })
        .await?
    }

    fn verify(&mut self, approval: &Approval) -> Result<(), String> {
        let accepted = delivery::check(approval, &self.expectation()).map_err(|e| e.to_string())?;
        for warning in &accepted.warnings {
            self.audience.warn(warning);
        }
        self.accepted = Some(accepted);
        Ok(())
    }

    fn store(&self) -> Result<(), String> {
        let Some(accepted) = &self.accepted else {
            return Err("nothing was verified".to_owned());
        };
        Installation::prepare(&self.plan.targets, self.plan.owners, accepted, &self.key)
            .and_then(Installation::commit)
            .map_err(|e| e.to_string())
    }

    fn finish(&self, result: Result<(), PairingFailure>) -> Result<Done, Failure> {
        match (result, &self.accepted) {
            (Ok(()), Some(accepted)) => {
                Action::new("pair-complete")
                    .field("CODE", self.kind)
                    .field("DISPATCHER", &accepted.dispatcher)
                    .field("DISPATCHER_HOST", &self.plan.dispatcher)
                    .field("STATUS", "approved")
                    .field(
                        "VOUCHED",
                        match self.vouched {
                            Vouched::ByKey => "key",
                            Vouched::ByPerson => "person",
                            Vouched::ByNobody => "nobody",
                        },
                    )
                    .info();
                Ok(Done {
                    dispatcher: accepted.dispatcher.to_string(),
                    expiry: accepted.certificate.expiry_text(),
                })
            }
            (Ok(()), None) => Err(Failure::before("nothing was delivered")),
            (Err(cause), _) => Err(Failure {
                text: cause.to_string(),
                cause: Some(cause),
                reqid: self.reqid.clone(),
            }),
        }
    }
}
