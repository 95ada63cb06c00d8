//! Tests that play both machines against each other, against peers of the original, and against somebody in between.

use proptest::prelude::*;

use super::agent::{AgentEffect, AgentEvent, AgentState, Offer, PairingFailure, Vouched};
use super::code::{CodeKind, Commitment, Exchange, Nonce, PairingCode};
use super::dispatcher::{DispatcherEffect, DispatcherEvent, DispatcherState, NewRequest, Setup};
use super::ids::{Outcome, PairingId};
use super::message::{
    self, Approval, PATH_DONE, PATH_PAIR, PATH_REVEAL, Pending, Refusal, RequestRefusal, Reveal,
};

const OWN_CERT: [u8; 32] = [0xd1; 32];
const FOREIGN_CERT: [u8; 32] = [0xee; 32];
const SETUP: Setup = Setup {
    server_cert: OWN_CERT,
    require_bound: false,
};

fn offer(server_cert: [u8; 32], nonce: [u8; 32]) -> Offer {
    Offer {
        hostname: "web01.example.org".to_owned(),
        csr_pem: "request of web01\n".to_owned(),
        echo: "0f".repeat(16),
        agent_nonce: Nonce::from_bytes(nonce),
        server_cert,
        speaks_bound: false,
        require_bound: false,
        vouched: Vouched::ByPerson,
        ip: None,
        port: 7443,
        lookup_by: None,
    }
}

fn id() -> PairingId {
    PairingId::new("00ff").unwrap()
}

/// A machine and all that it asked for.
struct Agent {
    state: Option<AgentState>,
    done: Vec<AgentEffect>,
}

impl Agent {
    fn new(offer: Offer) -> Self {
        let mut agent = Self {
            state: Some(AgentState::Ready(Box::new(offer))),
            done: Vec::new(),
        };
        agent.on(AgentEvent::Connected);
        agent
    }

    fn on(&mut self, event: AgentEvent) -> Vec<AgentEffect> {
        let (state, effects) = self.state.take().unwrap().next(event);
        self.state = Some(state);
        self.done.extend(effects.clone());
        effects
    }

    fn sent(&self, wanted: &str) -> Option<Vec<u8>> {
        self.done.iter().find_map(|e| match e {
            AgentEffect::Send { path, body } if *path == wanted => Some(body.clone()),
            _ => None,
        })
    }

    fn code(&self) -> (PairingCode, CodeKind) {
        let announced = self.done.iter().find_map(|e| match e {
            AgentEffect::Announce { code, kind, .. } => Some((*code, *kind)),
            _ => None,
        });
        announced.unwrap()
    }

    fn failure(&self) -> Option<&PairingFailure> {
        match self.done.last() {
            Some(AgentEffect::Finish(Err(failure))) => Some(failure),
            _ => None,
        }
    }

    fn stored(&self) -> bool {
        self.done.contains(&AgentEffect::Store)
    }
}

struct Dispatcher {
    setup: Setup,
    state: Option<DispatcherState>,
    done: Vec<DispatcherEffect>,
}

impl Dispatcher {
    fn new(setup: Setup) -> Self {
        Self {
            setup,
            state: Some(DispatcherState::AwaitingRequest),
            done: Vec::new(),
        }
    }

    fn on(&mut self, event: DispatcherEvent) -> Vec<DispatcherEffect> {
        let (state, effects) = self.state.take().unwrap().next(&self.setup, event);
        self.state = Some(state);
        self.done.extend(effects.clone());
        effects
    }

    fn message(&mut self, path: &str, body: Vec<u8>) -> Vec<DispatcherEffect> {
        self.on(DispatcherEvent::Message {
            path: path.to_owned(),
            body,
        })
    }

    /// Takes the request, finds room, and returns the first response.
    fn accept(&mut self, request: Vec<u8>, nonce: [u8; 32]) -> Option<Vec<u8>> {
        self.message(PATH_PAIR, request);
        self.on(DispatcherEvent::Room {
            id: id(),
            dispatcher_nonce: Nonce::from_bytes(nonce),
        });
        if self.queued().is_some() {
            self.on(DispatcherEvent::Queued);
        }
        self.sent().into_iter().next()
    }

    fn sent(&self) -> Vec<Vec<u8>> {
        let of = |e: &DispatcherEffect| match e {
            DispatcherEffect::Send(body) | DispatcherEffect::Deliver(body) => Some(body.clone()),
            _ => None,
        };
        self.done.iter().filter_map(of).collect()
    }

    fn queued(&self) -> Option<&NewRequest> {
        self.done.iter().find_map(|e| match e {
            DispatcherEffect::Enqueue(new) => Some(&**new),
            _ => None,
        })
    }

    fn refusal(&self) -> Option<RequestRefusal> {
        self.done.iter().find_map(|e| match e {
            DispatcherEffect::Refused(refusal) => Some(*refusal),
            _ => None,
        })
    }
}

fn approval(nonce: &str) -> Vec<u8> {
    message::to_json(&Approval {
        status: "approved".to_owned(),
        cert: "CERT".to_owned(),
        ca: "CA".to_owned(),
        nonce: nonce.to_owned(),
        ..Approval::default()
    })
}

/// Both of ours, up to the queued request.
fn meet(offer: Offer, setup: Setup, dispatcher_nonce: [u8; 32]) -> (Agent, Dispatcher) {
    let mut agent = Agent::new(offer);
    let mut dispatcher = Dispatcher::new(setup);
    let acknowledgement = dispatcher.accept(agent.sent(PATH_PAIR).unwrap(), dispatcher_nonce);
    agent.on(AgentEvent::Response(acknowledgement.unwrap()));
    dispatcher.message(PATH_REVEAL, agent.sent(PATH_REVEAL).unwrap());
    if dispatcher.queued().is_some() {
        dispatcher.on(DispatcherEvent::Queued);
    }
    (agent, dispatcher)
}

#[test]
fn two_of_ours_show_the_same_bound_code_and_the_receipt_ends_it() {
    let (mut agent, mut dispatcher) = meet(offer(OWN_CERT, [1; 32]), SETUP, [2; 32]);
    let queued = dispatcher.queued().unwrap();
    assert_eq!(agent.code(), (queued.code, CodeKind::Bound));

    let body = approval(&"0f".repeat(16));
    dispatcher.on(DispatcherEvent::Verdict {
        approved: true,
        body: body.clone(),
    });
    dispatcher.on(DispatcherEvent::Sent);
    let effects = agent.on(AgentEvent::Response(body));
    assert!(matches!(effects[..], [AgentEffect::Verify(_)]));
    let effects = agent.on(AgentEvent::Verified(Ok(())));
    assert!(matches!(
        effects[..],
        [AgentEffect::Ask {
            kind: CodeKind::Bound,
            ..
        }]
    ));
    assert_eq!(agent.on(AgentEvent::Confirmed(true)), [AgentEffect::Store]);
    agent.on(AgentEvent::Stored(Ok(())));
    assert_eq!(agent.done.last(), Some(&AgentEffect::Finish(Ok(()))));
    let effects = dispatcher.message(PATH_DONE, agent.sent(PATH_DONE).unwrap());
    assert_eq!(
        effects,
        [
            DispatcherEffect::Conclude(id(), Outcome::Delivered),
            DispatcherEffect::Close
        ]
    );
}

#[test]
fn an_agent_of_the_original_gets_a_basic_code_and_exactly_the_old_answer() {
    let mut dispatcher = Dispatcher::new(SETUP);
    let request = br#"{"hostname":"web01","csr":"x339","nonce":"ab","port":7443}"#.to_vec();
    let acknowledgement = dispatcher.accept(request.clone(), [2; 32]).unwrap();
    assert_eq!(acknowledgement, br#"{"status":"pending","reqid":"00ff"}"#);
    let queued = dispatcher.queued().unwrap();
    assert_eq!(
        (queued.code.to_string().as_str(), queued.kind()),
        ("000065", CodeKind::Basic)
    );
    dispatcher.on(DispatcherEvent::Verdict {
        approved: true,
        body: approval("ab"),
    });
    let effects = dispatcher.on(DispatcherEvent::Sent);
    assert_eq!(
        effects[0],
        DispatcherEffect::Conclude(id(), Outcome::Delivered)
    );

    let mut strict = Dispatcher::new(Setup {
        require_bound: true,
        ..SETUP
    });
    strict.accept(request, [2; 32]);
    assert_eq!(strict.refusal(), Some(RequestRefusal::NotBound));
    assert!(strict.queued().is_none());
}

#[test]
fn a_dispatcher_of_the_original_gets_the_basic_code_unless_bound_ones_are_required() {
    let pending = message::to_json(&Pending::new("00ff", None));
    let mut agent = Agent::new(offer(OWN_CERT, [1; 32]));
    agent.on(AgentEvent::Response(pending.clone()));
    let (code, kind) = agent.code();
    assert_eq!(
        (code, kind),
        (PairingCode::basic("request of web01\n"), CodeKind::Basic)
    );
    assert_eq!(agent.sent(PATH_REVEAL), None);
    agent.on(AgentEvent::Response(approval(&"0f".repeat(16))));
    agent.on(AgentEvent::Verified(Ok(())));
    agent.on(AgentEvent::Confirmed(true));
    agent.on(AgentEvent::Stored(Ok(())));
    // A peer that does not know receipts gets none.
    assert_eq!(agent.sent(PATH_DONE), None);

    let mut strict = Agent::new(Offer {
        require_bound: true,
        ..offer(OWN_CERT, [1; 32])
    });
    strict.on(AgentEvent::Response(pending.clone()));
    assert_eq!(strict.failure(), Some(&PairingFailure::NotBound));
    let mut knowing = Agent::new(Offer {
        speaks_bound: true,
        ..offer(OWN_CERT, [1; 32])
    });
    knowing.on(AgentEvent::Response(pending));
    assert_eq!(knowing.failure(), Some(&PairingFailure::Downgraded));
}

#[test]
fn nothing_is_stored_unless_key_or_person_vouches_or_nobody_could() {
    let to_verified = |vouched| {
        let (mut agent, _) = meet(
            Offer {
                vouched,
                ..offer(OWN_CERT, [1; 32])
            },
            SETUP,
            [2; 32],
        );
        agent.on(AgentEvent::Response(approval(&"0f".repeat(16))));
        agent.on(AgentEvent::Verified(Ok(())));
        agent
    };
    assert!(to_verified(Vouched::ByKey).stored());
    let nobody = to_verified(Vouched::ByNobody);
    assert!(nobody.stored() && nobody.done.contains(&AgentEffect::WarnUnvouched));
    for event in [AgentEvent::Confirmed(false), AgentEvent::Deadline] {
        let mut agent = to_verified(Vouched::ByPerson);
        assert!(!agent.stored());
        agent.on(event);
        assert!(!agent.stored());
        assert_eq!(agent.failure(), Some(&PairingFailure::NotConfirmed));
        let receipt = String::from_utf8(agent.sent(PATH_DONE).unwrap()).unwrap();
        assert!(receipt.contains("refused"), "{receipt}");
    }
    let strict = Offer {
        require_bound: true,
        vouched: Vouched::ByNobody,
        ..offer(OWN_CERT, [1; 32])
    };
    let agent = Agent::new(strict);
    assert_eq!(agent.failure(), Some(&PairingFailure::NobodyVouches));
    assert_eq!(agent.sent(PATH_PAIR), None);
}

#[test]
fn a_wrong_echo_a_failed_check_and_a_denial_store_nothing() {
    let (mut agent, _) = meet(offer(OWN_CERT, [1; 32]), SETUP, [2; 32]);
    agent.on(AgentEvent::Response(approval("00")));
    assert_eq!(agent.failure(), Some(&PairingFailure::NonceMismatch));

    let (mut agent, _) = meet(offer(OWN_CERT, [1; 32]), SETUP, [2; 32]);
    agent.on(AgentEvent::Response(approval(&"0f".repeat(16))));
    agent.on(AgentEvent::Verified(Err("foreign".to_owned())));
    assert_eq!(
        agent.failure(),
        Some(&PairingFailure::Refused("foreign".to_owned()))
    );

    let (mut agent, _) = meet(offer(OWN_CERT, [1; 32]), SETUP, [2; 32]);
    let denial = Refusal::denied("rejected by operator");
    agent.on(AgentEvent::Response(message::to_json(&denial)));
    assert_eq!(agent.failure().unwrap().to_string(), "rejected by operator");
    assert!(!agent.stored());
}

#[test]
fn every_way_a_request_can_end_has_one_outcome() {
    use DispatcherEvent as On;
    let body = || approval("x");
    let verdict = |approved| On::Verdict {
        approved,
        body: body(),
    };
    let note = |outcome| DispatcherEffect::Conclude(id(), outcome);
    let withdraw = |why| DispatcherEffect::Withdraw(id(), why);
    for (events, expected) in [
        (
            vec![On::PeerClosed, On::Withdrawn],
            withdraw(Outcome::Abandoned),
        ),
        (
            vec![On::Deadline, On::Withdrawn],
            withdraw(Outcome::TimedOut),
        ),
        (
            vec![On::SessionEnded, On::Withdrawn],
            withdraw(Outcome::SessionEnded),
        ),
        (
            vec![On::PeerClosed, verdict(true)],
            note(Outcome::Undelivered),
        ),
        (
            vec![On::PeerClosed, verdict(false)],
            note(Outcome::Abandoned),
        ),
        (
            vec![On::Deadline, verdict(true), On::SendFailed],
            note(Outcome::Undelivered),
        ),
        (vec![verdict(false), On::Sent], note(Outcome::Denied)),
        (
            vec![verdict(true), On::SendFailed],
            note(Outcome::Undelivered),
        ),
        (
            vec![verdict(true), On::Sent, On::PeerClosed],
            note(Outcome::Unconfirmed),
        ),
        (
            vec![verdict(true), On::Sent, On::Deadline],
            note(Outcome::Unconfirmed),
        ),
        (
            vec![verdict(true), On::Sent, On::SessionEnded],
            note(Outcome::Unconfirmed),
        ),
    ] {
        let (_, mut dispatcher) = meet(offer(OWN_CERT, [1; 32]), SETUP, [2; 32]);
        let text = format!("{events:?}");
        for event in events {
            dispatcher.on(event);
        }
        assert_eq!(dispatcher.state, Some(DispatcherState::Closed), "{text}");
        let endings = |e: &&DispatcherEffect| {
            matches!(
                e,
                DispatcherEffect::Conclude(..) | DispatcherEffect::Withdraw(..)
            )
        };
        let seen: Vec<_> = dispatcher.done.iter().filter(endings).collect();
        assert_eq!(seen.last(), Some(&&expected), "{text}");
    }
}

#[test]
fn a_session_that_ends_denies_those_who_wait() {
    let (_, mut dispatcher) = meet(offer(OWN_CERT, [1; 32]), SETUP, [2; 32]);
    dispatcher.on(DispatcherEvent::SessionEnded);
    dispatcher.on(DispatcherEvent::Withdrawn);
    let last = dispatcher.sent().pop().unwrap();
    assert_eq!(
        last,
        br#"{"status":"denied","reason":"pairing session ended"}"#
    );
}

/// The man in the middle has an own certificate towards the agent and an own request towards the dispatcher. He runs both exchanges
/// as the protocol demands, with whatever nonces he likes.
fn man_in_the_middle(
    agent_nonce: [u8; 32],
    dispatcher_nonce: [u8; 32],
    his_nonces: ([u8; 32], [u8; 32]),
    his_csr: &str,
) -> (PairingCode, Option<PairingCode>) {
    let mut agent = Agent::new(offer(FOREIGN_CERT, agent_nonce));
    let fake = Pending::new("00ff", Some(&Nonce::from_bytes(his_nonces.0)));
    agent.on(AgentEvent::Response(message::to_json(&fake)));

    let his = Offer {
        csr_pem: his_csr.to_owned(),
        ..offer(OWN_CERT, his_nonces.1)
    };
    let (_, dispatcher) = meet(his, SETUP, dispatcher_nonce);
    (agent.code().0, dispatcher.queued().map(|q| q.code))
}

#[test]
fn the_man_in_the_middle_of_the_original_wins_and_against_the_bound_code_he_does_not() {
    // The original: a request of his own with the agent's code is a matter of trying.
    let victim = PairingCode::basic("request of web01\n");
    let ground = (0..).map(|n| format!("request of the attacker {n}\n"));
    let ground = ground
        .into_iter()
        .find(|csr| PairingCode::basic(csr) == victim);
    let his_csr = ground.unwrap();

    // The same request against the bound code, in many encounters. By luck alone one in a million would agree.
    let agreed = (0..2000_u32).filter(|n| {
        let fresh = |salt: u8| {
            let mut bytes = [salt; 32];
            bytes[..4].copy_from_slice(&n.to_be_bytes());
            bytes
        };
        let (at_agent, at_dispatcher) =
            man_in_the_middle(fresh(1), fresh(2), (fresh(3), fresh(4)), &his_csr);
        Some(at_agent) == at_dispatcher
    });
    assert_eq!(agreed.count(), 0);
}

#[test]
fn merely_relaying_is_noticed_because_the_commitment_covers_the_certificate() {
    // He passes on every byte between an agent that saw his certificate and the dispatcher.
    let (agent, dispatcher) = meet(offer(FOREIGN_CERT, [1; 32]), SETUP, [2; 32]);
    assert_eq!(
        dispatcher.refusal(),
        Some(RequestRefusal::CommitmentMismatch)
    );
    assert!(dispatcher.queued().is_none());
    assert!(dispatcher.done.contains(&DispatcherEffect::CountUnfinished));
    assert!(!agent.stored());
}

#[test]
fn grinding_after_the_fact_breaks_the_commitment() {
    // He has committed, learns the dispatcher's nonce, and would now like another nonce or another request that gives the agent's code.
    let his = offer(OWN_CERT, [7; 32]);
    let mut dispatcher = Dispatcher::new(SETUP);
    dispatcher
        .accept(Agent::new(his.clone()).sent(PATH_PAIR).unwrap(), [2; 32])
        .unwrap();
    let exchange = Exchange {
        csr_pem: &his.csr_pem,
        server_cert: &OWN_CERT,
    };
    let wanted = PairingCode::basic("whatever the agent shows");
    let better = (0_u64..).map(|n| {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&n.to_be_bytes());
        Nonce::from_bytes(bytes)
    });
    let theirs = Nonce::from_bytes([2; 32]);
    let better = better
        .into_iter()
        .find(|nonce| PairingCode::bound(&exchange, nonce, &theirs, &his.hostname) == wanted);
    let reveal = Reveal {
        reqid: "00ff".to_owned(),
        agent_nonce: better.unwrap().to_hex(),
    };
    dispatcher.message(PATH_REVEAL, message::to_json(&reveal));
    assert_eq!(
        dispatcher.refusal(),
        Some(RequestRefusal::CommitmentMismatch)
    );
    assert!(dispatcher.queued().is_none());
}

#[test]
fn each_look_at_a_nonce_by_one_who_goes_away_is_counted() {
    let (_, mut queued) = meet(offer(OWN_CERT, [1; 32]), SETUP, [2; 32]);
    let effects = queued.on(DispatcherEvent::PeerClosed);
    assert!(effects.contains(&DispatcherEffect::CountUnfinished));
    for event in [DispatcherEvent::PeerClosed, DispatcherEvent::Deadline] {
        let mut dispatcher = Dispatcher::new(SETUP);
        let request = Agent::new(offer(OWN_CERT, [1; 32]))
            .sent(PATH_PAIR)
            .unwrap();
        dispatcher.accept(request, [2; 32]);
        let effects = dispatcher.on(event);
        assert_eq!(
            effects,
            [DispatcherEffect::CountUnfinished, DispatcherEffect::Close]
        );
    }
    for (path, reqid) in [(PATH_DONE, "00ff"), (PATH_REVEAL, "0100")] {
        let mut dispatcher = Dispatcher::new(SETUP);
        let request = Agent::new(offer(OWN_CERT, [1; 32]))
            .sent(PATH_PAIR)
            .unwrap();
        dispatcher.accept(request, [2; 32]);
        let nonce = Nonce::from_bytes([1; 32]).to_hex();
        let reveal = Reveal {
            reqid: reqid.to_owned(),
            agent_nonce: nonce,
        };
        dispatcher.message(path, message::to_json(&reveal));
        assert_eq!(dispatcher.refusal(), Some(RequestRefusal::Invalid));
    }
}

fn any_dispatcher_event() -> impl Strategy<Value = DispatcherEvent> {
    use DispatcherEvent as On;
    prop_oneof![
        prop::collection::vec(any::<u8>(), 0..20).prop_map(|body| On::Message {
            path: PATH_REVEAL.to_owned(),
            body
        }),
        Just(On::BadMessage(RequestRefusal::TooLarge)),
        any::<[u8; 32]>().prop_map(|n| On::Room {
            id: id(),
            dispatcher_nonce: Nonce::from_bytes(n)
        }),
        Just(On::NoRoom(RequestRefusal::QueueFull)),
        Just(On::Queued),
        Just(On::NotQueued(RequestRefusal::QueueFull)),
        any::<bool>().prop_map(|approved| On::Verdict {
            approved,
            body: Vec::new()
        }),
        Just(On::Withdrawn),
        Just(On::QueueBroken),
        Just(On::Sent),
        Just(On::SendFailed),
        Just(On::PeerClosed),
        Just(On::Deadline),
        Just(On::SessionEnded),
    ]
}

proptest! {
    /// Whatever happens in whatever order: nothing is delivered that no person decided, and an end is an end.
    #[test]
    fn no_order_of_events_delivers_without_a_verdict(
        events in prop::collection::vec(any_dispatcher_event(), 0..30), bound: bool,
    ) {
        let mut dispatcher = Dispatcher::new(SETUP);
        let request = if bound {
            Agent::new(offer(OWN_CERT, [1; 32])).sent(PATH_PAIR).unwrap()
        } else {
            br#"{"hostname":"web01","csr":"x","nonce":""}"#.to_vec()
        };
        dispatcher.message(PATH_PAIR, request);
        let (mut decided, mut closed) = (false, false);
        for event in events {
            decided |= matches!(event, DispatcherEvent::Verdict { .. });
            let effects = dispatcher.on(event);
            prop_assert!(!closed || effects.is_empty());
            for effect in effects {
                prop_assert!(decided || !matches!(effect, DispatcherEffect::Deliver(_)));
                // Without its reveal a bound request never reaches the queue.
                prop_assert!(!(bound && matches!(effect, DispatcherEffect::Enqueue(_))));
            }
            closed = dispatcher.state == Some(DispatcherState::Closed);
        }
    }

    #[test]
    fn honest_ends_always_agree(agent: [u8; 32], dispatcher: [u8; 32]) {
        let (agent, dispatcher) = meet(offer(OWN_CERT, agent), SETUP, dispatcher);
        prop_assert_eq!(agent.code().0, dispatcher.queued().unwrap().code);
    }

    #[test]
    fn no_response_makes_the_agent_store_unasked(
        bodies in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..60), 0..5),
    ) {
        let mut agent = Agent::new(offer(OWN_CERT, [1; 32]));
        for body in bodies {
            agent.on(AgentEvent::Response(body));
        }
        prop_assert!(!agent.stored());
    }
}

#[test]
fn the_commitment_is_what_the_module_comment_says() {
    let request = Agent::new(offer(OWN_CERT, [1; 32]))
        .sent(PATH_PAIR)
        .unwrap();
    let received = message::parse_request(&request).unwrap();
    let exchange = Exchange {
        csr_pem: &received.csr,
        server_cert: &OWN_CERT,
    };
    let expected = Commitment::new(&exchange, &Nonce::from_bytes([1; 32]));
    assert_eq!(received.commitment, Some(expected));
    assert!(
        !String::from_utf8(request)
            .unwrap()
            .contains(&"01".repeat(32))
    );
}
