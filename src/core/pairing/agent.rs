//! The agent's side of one pairing: a pure machine (picture and reasons: module [`super`]).

use super::code::{CodeKind, Commitment, Exchange, Nonce, PairingCode};
use super::framing::FrameError;
use super::message::{
    self, Acknowledgement, Approval, PATH_DONE, PATH_PAIR, PATH_REVEAL, PairRequest, Receipt,
    ResponseError, Reveal, Verdict,
};
use crate::core::types::ReqId;
use crate::core::wire::LookupBy;

/// Who vouches that the dispatcher is the right one, apart from the code.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Vouched {
    /// A pinned fingerprint, or a CA that this host already has.
    ByKey,
    /// The person at the terminal will be asked.
    ByPerson,
    /// Nobody: unattended, without a pin.
    ByNobody,
}

/// What the agent brings to the connection.
#[derive(Clone, Debug)]
pub struct Offer {
    pub hostname: String,
    pub csr_pem: String,
    /// Echoed in the approval: 32 hex digits.
    pub echo: String,
    pub agent_nonce: Nonce,
    /// SHA-256 of the DER of the TLS server certificate that we saw.
    pub server_cert: [u8; 32],
    /// The dispatcher chose our ALPN protocol: it speaks the bound code, and a basic answer is an attack.
    pub speaks_bound: bool,
    /// `pairing_require_bound_code`.
    pub require_bound: bool,
    pub vouched: Vouched,
    pub ip: Option<std::net::IpAddr>,
    pub port: u16,
    pub lookup_by: Option<LookupBy>,
}

impl Offer {
    fn exchange(&self) -> Exchange<'_> {
        Exchange {
            csr_pem: &self.csr_pem,
            server_cert: &self.server_cert,
        }
    }
}

#[derive(Clone, Debug)]
pub enum AgentState {
    /// Connected, key and request made.
    Ready(Box<Offer>),
    AwaitingAcknowledgement(Box<Offer>),
    AwaitingVerdict(Box<Waiting>),
    /// The rim checks what was delivered ([`super::delivery`]).
    Verifying(Box<Waiting>),
    /// The person at the terminal compares the codes.
    Confirming(Box<Waiting>),
    /// The rim writes ([`super::install`]).
    Storing(Box<Waiting>),
    Finished,
}

/// What is known once the dispatcher has acknowledged.
#[derive(Clone, Debug)]
pub struct Waiting {
    offer: Offer,
    pub reqid: ReqId,
    pub code: PairingCode,
    pub kind: CodeKind,
}

#[derive(Clone, Debug)]
pub enum AgentEvent {
    /// Begin.
    Connected,
    /// Body of the next response.
    Response(Vec<u8>),
    /// Bytes that are no response.
    BadResponse(FrameError),
    /// The dispatcher closed the connection, or it broke.
    Closed,
    /// The time that we give it is over.
    Deadline,
    /// The delivery passed every check, or why it did not.
    Verified(Result<(), String>),
    /// The person's answer.
    Confirmed(bool),
    /// The files are in place, or why they are not.
    Stored(Result<(), String>),
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub enum AgentEffect {
    /// Send this body as a request to this path.
    Send { path: &'static str, body: Vec<u8> },
    /// Show the code and how far it can be trusted; in the background print the id.
    Announce {
        reqid: ReqId,
        code: PairingCode,
        kind: CodeKind,
    },
    /// Check the delivery; answer with `Verified`.
    Verify(Box<Approval>),
    /// Ask the person whether the dispatcher shows the code; answer with `Confirmed`.
    Ask { code: PairingCode, kind: CodeKind },
    /// Say that nobody has vouched for the dispatcher.
    WarnUnvouched,
    /// Write the files; answer with `Stored`.
    Store,
    /// It is over.
    Finish(Result<(), PairingFailure>),
}

/// Why an agent is not paired. Where the original has a text for it, it is that text.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum PairingFailure {
    #[error("no response from ctrl-exec")]
    NoResponse,
    #[error("no Content-Length in pairing {0}")]
    NoLength(&'static str),
    #[error("bad pairing {which}: {error}")]
    BadFrame {
        which: &'static str,
        error: FrameError,
    },
    #[error(transparent)]
    Response(#[from] ResponseError),
    /// Refused or denied by the dispatcher, with its reason.
    #[error("{0}")]
    Denied(String),
    #[error("nonce mismatch in pairing result")]
    NonceMismatch,
    #[error("the dispatcher closed the connection before it decided")]
    ConnectionLost,
    #[error("no decision within the time")]
    TimedOut,
    #[error(
        "the dispatcher said that it speaks the bound pairing code and then did not: somebody may be in between"
    )]
    Downgraded,
    #[error(
        "the dispatcher is an older release whose pairing code does not protect against an active attacker, and pairing_require_bound_code is set"
    )]
    NotBound,
    #[error(
        "nobody can vouch for the dispatcher here and pairing_require_bound_code is set: run this at a terminal, or give --dispatcher-fingerprint or --ca-fingerprint"
    )]
    NobodyVouches,
    #[error("the code was not confirmed: nothing was stored")]
    NotConfirmed,
    #[error("what the dispatcher sent was refused, nothing was stored: {0}")]
    Refused(String),
    #[error("the certificate could not be stored: {0}")]
    NotStored(String),
}

impl PairingFailure {
    fn no_message(error: FrameError, which: &'static str) -> Self {
        match error {
            FrameError::NoLength => Self::NoLength(which),
            error => Self::BadFrame { which, error },
        }
    }
}

impl AgentState {
    /// What follows from an event.
    pub fn next(self, event: AgentEvent) -> (Self, Vec<AgentEffect>) {
        use AgentEvent as On;
        match (self, event) {
            (Self::Ready(offer), On::Connected) => on_connected(offer),

            (Self::AwaitingAcknowledgement(offer), On::Response(body)) => {
                on_acknowledgement(*offer, &body)
            }
            (Self::AwaitingAcknowledgement(_), On::BadResponse(error)) => {
                fail(PairingFailure::no_message(error, "acknowledgement"))
            }
            (Self::AwaitingAcknowledgement(_), On::Closed) => fail(PairingFailure::NoResponse),

            (Self::AwaitingVerdict(waiting), On::Response(body)) => on_verdict(waiting, &body),
            (Self::AwaitingVerdict(_), On::BadResponse(error)) => {
                fail(PairingFailure::no_message(error, "result"))
            }
            (Self::AwaitingVerdict(_), On::Closed) => fail(PairingFailure::ConnectionLost),

            (
                Self::Ready(_) | Self::AwaitingAcknowledgement(_) | Self::AwaitingVerdict(_),
                On::Deadline,
            ) => fail(PairingFailure::TimedOut),

            (Self::Verifying(waiting), On::Verified(Ok(()))) => match waiting.offer.vouched {
                Vouched::ByKey => store(waiting, Vec::new()),
                Vouched::ByNobody => store(waiting, vec![AgentEffect::WarnUnvouched]),
                Vouched::ByPerson => {
                    let (code, kind) = (waiting.code, waiting.kind);
                    (
                        Self::Confirming(waiting),
                        vec![AgentEffect::Ask { code, kind }],
                    )
                }
            },
            (Self::Verifying(waiting), On::Verified(Err(reason))) => {
                give_back(&waiting, PairingFailure::Refused(reason))
            }

            (Self::Confirming(waiting), On::Confirmed(true)) => store(waiting, Vec::new()),
            (Self::Confirming(waiting), On::Confirmed(false) | On::Deadline) => {
                give_back(&waiting, PairingFailure::NotConfirmed)
            }

            (Self::Storing(waiting), On::Stored(Ok(()))) => {
                let mut effects = receipt(&waiting, Receipt::STORED, "");
                effects.push(AgentEffect::Finish(Ok(())));
                (Self::Finished, effects)
            }
            (Self::Storing(waiting), On::Stored(Err(reason))) => {
                give_back(&waiting, PairingFailure::NotStored(reason))
            }

            // Once the verdict is here the connection and its time do not matter any more.
            (state, _) => (state, Vec::new()),
        }
    }
}

type Step = (AgentState, Vec<AgentEffect>);

fn fail(failure: PairingFailure) -> Step {
    (
        AgentState::Finished,
        vec![AgentEffect::Finish(Err(failure))],
    )
}

/// Tells the dispatcher that its certificate is not used.
fn give_back(waiting: &Waiting, failure: PairingFailure) -> Step {
    let mut effects = receipt(waiting, Receipt::REFUSED, &failure.to_string());
    effects.push(AgentEffect::Finish(Err(failure)));
    (AgentState::Finished, effects)
}

/// Only a dispatcher of the bound kind expects to hear from us again.
fn receipt(waiting: &Waiting, status: &str, reason: &str) -> Vec<AgentEffect> {
    if waiting.kind == CodeKind::Basic {
        return Vec::new();
    }
    vec![AgentEffect::Send {
        path: PATH_DONE,
        body: message::to_json(&Receipt {
            reqid: waiting.reqid.to_string(),
            status: status.to_owned(),
            reason: reason.to_owned(),
        }),
    }]
}

fn store(waiting: Box<Waiting>, mut effects: Vec<AgentEffect>) -> Step {
    effects.push(AgentEffect::Store);
    (AgentState::Storing(waiting), effects)
}

fn on_connected(offer: Box<Offer>) -> Step {
    if offer.require_bound && offer.vouched == Vouched::ByNobody {
        return fail(PairingFailure::NobodyVouches);
    }
    let request = PairRequest {
        hostname: offer.hostname.clone(),
        csr: offer.csr_pem.clone(),
        nonce: offer.echo.clone(),
        ip: offer.ip,
        port: offer.port,
        lookup_by: offer.lookup_by.map(LookupBy::as_str),
        pair_version: 2,
        commit: Commitment::new(&offer.exchange(), &offer.agent_nonce).to_hex(),
    };
    let send = AgentEffect::Send {
        path: PATH_PAIR,
        body: message::to_json(&request),
    };
    (AgentState::AwaitingAcknowledgement(offer), vec![send])
}

fn on_acknowledgement(offer: Offer, body: &[u8]) -> Step {
    match message::parse_acknowledgement(body) {
        Err(error) => fail(error.into()),
        Ok(Acknowledgement::Refused(reason)) => fail(PairingFailure::Denied(reason)),
        Ok(Acknowledgement::Basic { .. }) if offer.speaks_bound => fail(PairingFailure::Downgraded),
        Ok(Acknowledgement::Basic { .. }) if offer.require_bound => fail(PairingFailure::NotBound),
        Ok(Acknowledgement::Basic { reqid }) => {
            let code = PairingCode::basic(&offer.csr_pem);
            wait(offer, reqid, code, CodeKind::Basic, Vec::new())
        }
        Ok(Acknowledgement::Bound {
            reqid,
            dispatcher_nonce,
        }) => {
            let code = PairingCode::bound(
                &offer.exchange(),
                &offer.agent_nonce,
                &dispatcher_nonce,
                &offer.hostname,
            );
            let reveal = AgentEffect::Send {
                path: PATH_REVEAL,
                body: message::to_json(&Reveal {
                    reqid: reqid.to_string(),
                    agent_nonce: offer.agent_nonce.to_hex(),
                }),
            };
            wait(offer, reqid, code, CodeKind::Bound, vec![reveal])
        }
    }
}

fn wait(
    offer: Offer,
    reqid: ReqId,
    code: PairingCode,
    kind: CodeKind,
    mut effects: Vec<AgentEffect>,
) -> Step {
    effects.push(AgentEffect::Announce {
        reqid: reqid.clone(),
        code,
        kind,
    });
    let waiting = Waiting {
        offer,
        reqid,
        code,
        kind,
    };
    (AgentState::AwaitingVerdict(Box::new(waiting)), effects)
}

fn on_verdict(waiting: Box<Waiting>, body: &[u8]) -> Step {
    match message::parse_verdict(body) {
        Err(error) => fail(error.into()),
        Ok(Verdict::Denied(reason)) => fail(PairingFailure::Denied(reason)),
        Ok(Verdict::Approved(approval)) if approval.nonce != waiting.offer.echo => {
            give_back(&waiting, PairingFailure::NonceMismatch)
        }
        Ok(Verdict::Approved(approval)) => {
            let effects = vec![AgentEffect::Verify(approval)];
            (AgentState::Verifying(waiting), effects)
        }
    }
}
