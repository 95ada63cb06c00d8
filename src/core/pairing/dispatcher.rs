//! One connection of an agent, seen from the dispatcher: a pure machine (picture and reasons: module [`super`]).
//!
//! The rim feeds it what happened ([`DispatcherEvent`]) and does what it asks ([`DispatcherEffect`]), in order. Deadlines of the states are in
//! [`DispatcherState::deadline`]; when one passes the rim feeds [`DispatcherEvent::Deadline`]. The states that have one are those in which the rim
//! looks at the connection and at the session; in all others it is busy with an effect and answers that first.

use std::time::Duration;

use super::code::{CodeKind, Commitment, Exchange, Nonce, PairingCode};
use super::ids::{Outcome, PairingId};
use super::message::{
    self, APPROVAL_TIMEOUT, PATH_DONE, PATH_REVEAL, Pending, Receipt, ReceivedRequest, Refusal,
    RequestRefusal, Reveal, SESSION_ENDED,
};
use super::{APPROVAL_WINDOW, RECEIPT_TIMEOUT, STEP_TIMEOUT};

/// What does not change during the connection.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// SHA-256 of the DER of the certificate that this listener presents.
    pub server_cert: [u8; 32],
    /// `pairing_require_bound_code`.
    pub require_bound: bool,
}

/// The parts of a bound code, kept so that approval can compute it again.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Binding {
    pub agent_nonce: Nonce,
    pub dispatcher_nonce: Nonce,
    pub server_cert: [u8; 32],
}

/// A request that may be queued: everything but what only the rim knows (source, time, reverse name).
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct NewRequest {
    pub id: PairingId,
    pub request: ReceivedRequest,
    pub code: PairingCode,
    /// `None` for a basic code.
    pub binding: Option<Binding>,
}

impl NewRequest {
    pub fn kind(&self) -> CodeKind {
        match self.binding {
            Some(_) => CodeKind::Bound,
            None => CodeKind::Basic,
        }
    }
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub enum DispatcherState {
    AwaitingRequest,
    /// The rim looks whether the queue has room, before nonces are spent.
    AwaitingRoom(Box<ReceivedRequest>),
    /// The agent owes the nonce that it committed to.
    AwaitingReveal {
        request: Box<ReceivedRequest>,
        commitment: Commitment,
        id: PairingId,
        dispatcher_nonce: Nonce,
    },
    Queueing {
        id: PairingId,
        kind: CodeKind,
    },
    AwaitingVerdict {
        id: PairingId,
        kind: CodeKind,
    },
    /// The listener gives up on the request; the queue tells whether a person was faster.
    Withdrawing {
        id: PairingId,
        kind: CodeKind,
        why: Outcome,
    },
    /// The verdict is on its way to the agent.
    Delivering {
        id: PairingId,
        kind: CodeKind,
        approved: bool,
    },
    AwaitingReceipt {
        id: PairingId,
    },
    Closed,
}

#[derive(Clone, Debug)]
pub enum DispatcherEvent {
    /// A whole message of the agent: path of its request line, body.
    Message {
        path: String,
        body: Vec<u8>,
    },
    /// What arrived is no message; the reason for the wire.
    BadMessage(RequestRefusal),
    /// There is room in the queue; fresh random values for this connection.
    Room {
        id: PairingId,
        dispatcher_nonce: Nonce,
    },
    NoRoom(RequestRefusal),
    Queued,
    NotQueued(RequestRefusal),
    /// A person decided; the exact bytes for the agent.
    Verdict {
        approved: bool,
        body: Vec<u8>,
    },
    /// The request was taken out of the queue before anybody decided.
    Withdrawn,
    /// The queue could not be read or written any more.
    QueueBroken,
    /// The bytes of the verdict were handed to the connection.
    Sent,
    SendFailed,
    /// The agent closed the connection, or it broke.
    PeerClosed,
    /// The time of the present state is over.
    Deadline,
    /// The operator or the session's time-out ends the session.
    SessionEnded,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub enum DispatcherEffect {
    /// Look whether the request is acceptable and the queue has room; answer with `Room` or `NoRoom`.
    CheckRoom(Box<ReceivedRequest>),
    /// Send this body as a response. Failures of these sends show as `PeerClosed` later.
    Send(Vec<u8>),
    /// Put the request into the queue; answer with `Queued` or `NotQueued`.
    Enqueue(Box<NewRequest>),
    /// Take the request out of the queue unless it is decided; answer with `Withdrawn` or `Verdict`.
    Withdraw(PairingId, Outcome),
    /// Send this verdict; answer with `Sent` or `SendFailed`.
    Deliver(Vec<u8>),
    /// The request is over: remove its files, keep a note of how it ended.
    Conclude(PairingId, Outcome),
    /// An agent learned a nonce of ours, hence its code, and went away: it may have been a try.
    CountUnfinished,
    /// The request was refused; for the log.
    Refused(RequestRefusal),
    Close,
}

impl DispatcherState {
    /// How long the state may last; `None` for those that only wait for our own disk.
    pub fn deadline(&self) -> Option<Duration> {
        match self {
            Self::AwaitingRequest | Self::AwaitingReveal { .. } => Some(STEP_TIMEOUT),
            Self::AwaitingVerdict { .. } => Some(APPROVAL_WINDOW),
            Self::AwaitingReceipt { .. } => Some(RECEIPT_TIMEOUT),
            Self::AwaitingRoom(_)
            | Self::Queueing { .. }
            | Self::Withdrawing { .. }
            | Self::Delivering { .. }
            | Self::Closed => None,
        }
    }

    /// What follows from an event.
    pub fn next(self, setup: &Setup, event: DispatcherEvent) -> (Self, Vec<DispatcherEffect>) {
        use DispatcherEffect as Do;
        use DispatcherEvent as On;
        match (self, event) {
            (Self::AwaitingRequest, On::Message { body, .. }) => on_request(setup, &body),
            (Self::AwaitingRequest | Self::AwaitingRoom(_), On::BadMessage(refusal)) => {
                refuse(refusal)
            }
            (Self::AwaitingRequest | Self::AwaitingRoom(_), On::NoRoom(refusal)) => refuse(refusal),
            (Self::AwaitingRequest | Self::AwaitingRoom(_), On::SessionEnded) => {
                refuse(RequestRefusal::SessionEnded)
            }
            (Self::AwaitingRequest, On::PeerClosed | On::Deadline) => close(),

            (
                Self::AwaitingRoom(request),
                On::Room {
                    id,
                    dispatcher_nonce,
                },
            ) => on_room(request, id, dispatcher_nonce),
            (Self::AwaitingRoom(_), On::PeerClosed) => close(),

            (
                Self::AwaitingReveal {
                    request,
                    commitment,
                    id,
                    dispatcher_nonce,
                },
                On::Message { path, body },
            ) => on_reveal(
                setup,
                *request,
                &commitment,
                id,
                dispatcher_nonce,
                &path,
                &body,
            ),
            (Self::AwaitingReveal { .. }, On::SessionEnded) => refuse(RequestRefusal::SessionEnded),
            (Self::AwaitingReveal { .. }, On::PeerClosed | On::Deadline) => {
                (Self::Closed, vec![Do::CountUnfinished, Do::Close])
            }
            (Self::AwaitingReveal { .. }, On::BadMessage(refusal)) => unrevealed(refusal),

            // An old agent learns its id only now: acknowledged means queued (spec/pairing.md 3.2).
            (
                Self::Queueing {
                    id,
                    kind: kind @ CodeKind::Basic,
                },
                On::Queued,
            ) => {
                let body = message::to_json(&Pending::new(id.as_str(), None));
                (Self::AwaitingVerdict { id, kind }, vec![Do::Send(body)])
            }
            (Self::Queueing { id, kind }, On::Queued) => {
                (Self::AwaitingVerdict { id, kind }, Vec::new())
            }
            (Self::Queueing { .. }, On::NotQueued(refusal)) => refuse(refusal),

            (Self::AwaitingVerdict { id, kind }, On::Verdict { approved, body }) => {
                deliver(id, kind, approved, body)
            }
            (Self::AwaitingVerdict { id, kind }, On::Deadline) => {
                withdraw(id, kind, Outcome::TimedOut)
            }
            (Self::AwaitingVerdict { id, kind }, On::SessionEnded) => {
                withdraw(id, kind, Outcome::SessionEnded)
            }
            (
                Self::AwaitingVerdict { id, kind },
                // Nothing may come from the agent here; one that talks is not one of ours.
                On::PeerClosed | On::Message { .. } | On::BadMessage(_),
            ) => withdraw(id, kind, Outcome::Abandoned),
            (Self::AwaitingVerdict { .. } | Self::Withdrawing { .. }, On::QueueBroken) => (
                Self::Closed,
                vec![
                    Do::Send(message::to_json(&Refusal::error(
                        &RequestRefusal::Internal.to_string(),
                    ))),
                    Do::Close,
                ],
            ),

            (
                Self::Withdrawing {
                    id: _,
                    kind: _,
                    why,
                },
                On::Withdrawn,
            ) => match why {
                Outcome::TimedOut => deny(APPROVAL_TIMEOUT),
                Outcome::SessionEnded => deny(SESSION_ENDED),
                _ => close(),
            },
            // The person was faster: the decision stands.
            (
                Self::Withdrawing {
                    id,
                    why: Outcome::Abandoned,
                    ..
                },
                On::Verdict { approved, .. },
            ) => {
                let outcome = if approved {
                    Outcome::Undelivered
                } else {
                    Outcome::Abandoned
                };
                (Self::Closed, vec![Do::Conclude(id, outcome), Do::Close])
            }
            (Self::Withdrawing { id, kind, .. }, On::Verdict { approved, body }) => {
                deliver(id, kind, approved, body)
            }

            (
                Self::Delivering {
                    id,
                    kind: CodeKind::Bound,
                    approved: true,
                },
                On::Sent,
            ) => (Self::AwaitingReceipt { id }, Vec::new()),
            (Self::Delivering { id, approved, .. }, On::Sent) => {
                let outcome = if approved {
                    Outcome::Delivered
                } else {
                    Outcome::Denied
                };
                (Self::Closed, vec![Do::Conclude(id, outcome), Do::Close])
            }
            (Self::Delivering { id, approved, .. }, On::SendFailed) => {
                let outcome = if approved {
                    Outcome::Undelivered
                } else {
                    Outcome::Denied
                };
                (Self::Closed, vec![Do::Conclude(id, outcome), Do::Close])
            }

            (Self::AwaitingReceipt { id }, On::Message { path, body }) => {
                let outcome = on_receipt(&id, &path, &body);
                (Self::Closed, vec![Do::Conclude(id, outcome), Do::Close])
            }
            (
                Self::AwaitingReceipt { id },
                On::PeerClosed | On::Deadline | On::BadMessage(_) | On::SessionEnded,
            ) => {
                let effects = vec![Do::Conclude(id, Outcome::Unconfirmed), Do::Close];
                (Self::Closed, effects)
            }

            (Self::Closed, _) => (Self::Closed, Vec::new()),
            // Whatever else happens is noticed in the next state, which looks at the connection again.
            (state, _) => (state, Vec::new()),
        }
    }
}

type Step = (DispatcherState, Vec<DispatcherEffect>);

fn close() -> Step {
    (DispatcherState::Closed, vec![DispatcherEffect::Close])
}

fn refuse(refusal: RequestRefusal) -> Step {
    let body = message::to_json(&Refusal::error(&refusal.to_string()));
    let effects = vec![
        DispatcherEffect::Refused(refusal),
        DispatcherEffect::Send(body),
        DispatcherEffect::Close,
    ];
    (DispatcherState::Closed, effects)
}

fn unrevealed(refusal: RequestRefusal) -> Step {
    let (state, mut effects) = refuse(refusal);
    effects.insert(0, DispatcherEffect::CountUnfinished);
    (state, effects)
}

fn deny(reason: &str) -> Step {
    let body = message::to_json(&Refusal::denied(reason));
    (
        DispatcherState::Closed,
        vec![DispatcherEffect::Send(body), DispatcherEffect::Close],
    )
}

fn withdraw(id: PairingId, kind: CodeKind, why: Outcome) -> Step {
    let mut effects = Vec::new();
    if kind == CodeKind::Bound && why == Outcome::Abandoned {
        effects.push(DispatcherEffect::CountUnfinished);
    }
    effects.push(DispatcherEffect::Withdraw(id.clone(), why));
    (DispatcherState::Withdrawing { id, kind, why }, effects)
}

fn deliver(id: PairingId, kind: CodeKind, approved: bool, body: Vec<u8>) -> Step {
    (
        DispatcherState::Delivering { id, kind, approved },
        vec![DispatcherEffect::Deliver(body)],
    )
}

fn on_request(setup: &Setup, body: &[u8]) -> Step {
    match message::parse_request(body) {
        Ok(request) if setup.require_bound && request.commitment.is_none() => {
            refuse(RequestRefusal::NotBound)
        }
        Ok(request) => {
            let request = Box::new(request);
            let effects = vec![DispatcherEffect::CheckRoom(request.clone())];
            (DispatcherState::AwaitingRoom(request), effects)
        }
        Err(refusal) => refuse(refusal),
    }
}

fn on_room(request: Box<ReceivedRequest>, id: PairingId, dispatcher_nonce: Nonce) -> Step {
    let Some(commitment) = request.commitment.clone() else {
        let code = PairingCode::basic(&request.csr);
        return enqueue(NewRequest {
            id,
            request: *request,
            code,
            binding: None,
        });
    };
    let body = message::to_json(&Pending::new(id.as_str(), Some(&dispatcher_nonce)));
    (
        DispatcherState::AwaitingReveal {
            request,
            commitment,
            id,
            dispatcher_nonce,
        },
        vec![DispatcherEffect::Send(body)],
    )
}

fn on_reveal(
    setup: &Setup,
    request: ReceivedRequest,
    commitment: &Commitment,
    id: PairingId,
    dispatcher_nonce: Nonce,
    path: &str,
    body: &[u8],
) -> Step {
    let reveal: Option<Reveal> = serde_json::from_slice(body).ok();
    let agent_nonce = reveal
        .filter(|r| path == PATH_REVEAL && r.reqid == id.as_str())
        .and_then(|r| Nonce::from_hex(&r.agent_nonce));
    let Some(agent_nonce) = agent_nonce else {
        return unrevealed(RequestRefusal::Invalid);
    };
    let exchange = Exchange {
        csr_pem: &request.csr,
        server_cert: &setup.server_cert,
    };
    if Commitment::new(&exchange, &agent_nonce) != *commitment {
        return unrevealed(RequestRefusal::CommitmentMismatch);
    }
    let code = PairingCode::bound(
        &exchange,
        &agent_nonce,
        &dispatcher_nonce,
        request.hostname.as_str(),
    );
    let binding = Some(Binding {
        agent_nonce,
        dispatcher_nonce,
        server_cert: setup.server_cert,
    });
    enqueue(NewRequest {
        id,
        request,
        code,
        binding,
    })
}

fn enqueue(new: NewRequest) -> Step {
    (
        DispatcherState::Queueing {
            id: new.id.clone(),
            kind: new.kind(),
        },
        vec![DispatcherEffect::Enqueue(Box::new(new))],
    )
}

fn on_receipt(id: &PairingId, path: &str, body: &[u8]) -> Outcome {
    let receipt: Option<Receipt> = serde_json::from_slice(body).ok();
    match receipt.filter(|r| path == PATH_DONE && r.reqid == id.as_str()) {
        Some(r) if r.status == Receipt::STORED => Outcome::Delivered,
        Some(r) if r.status == Receipt::REFUSED => Outcome::RefusedByAgent,
        _ => Outcome::Unconfirmed,
    }
}
