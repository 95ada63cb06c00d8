//! Pairing: how an agent gets its certificate and learns whom to trust (spec/pairing.md).
//!
//! # The threat
//!
//! When the two meet for the first time neither can verify the other's certificate: the agent has none and knows no CA. Whoever sits
//! between them can answer both. He wants (a) a certificate of our CA in the agent's name, for a key of his, and (b) the agent to take
//! *his* CA, which is root on that host. What is left to tell friend from foe is a person who reads six digits on two screens.
//!
//! The original's code is a hash of the certificate request alone (*basic*). The man in the middle sees the request, and makes one of
//! his own with the same six digits in a second of work. The *bound* code of this release covers both certificates and two nonces,
//! in an order that leaves him one guess per attempt:
//!
//! ```text
//! agent                                                    dispatcher
//!   | TLS handshake; ALPN "ctrl-exec-pair/2" tells: one of ours  |
//!   |-- POST /pair {hostname, csr, nonce, pair_version: 2,       |
//!   |     commit = H(csr, certificate seen, agent nonce)} ------>|  the agent's nonce is fixed, and unknown to others
//!   |<- {status: pending, reqid, pair_version: 2,                |
//!   |     dispatcher_nonce} -------------------------------------|  the dispatcher's nonce is fixed
//!   |-- POST /pair/reveal {reqid, agent_nonce} ----------------->|  recomputes the commitment with its OWN certificate
//!   |   code = H(csr, certificate, both nonces, name) mod 10^6   |  same code, or refusal; only now is the request queued
//!   |<- {status: approved, cert, ca, nonce, ...} ----------------|  after `approve`
//!   |-- POST /pair/done {reqid, status: stored} ---------------->|  the receipt: `pair-delivered`
//! ```
//!
//! Towards each side the man in the middle must fix everything that enters that side's code before he learns that side's nonce, so
//! both codes are random to him and agree by luck only: one in a million per attempt. Attempts are few: the dispatcher counts the agents
//! that learned its nonce and went away ([`MAX_UNFINISHED`] per session), because giving up on a code that does not fit is exactly
//! what such an attacker does; those who stay are bounded by the queue. He can also pose as an older release towards one side. That
//! side then shows its code as *basic*, says so aloud, and refuses when its configuration asks for bound codes
//! (`pairing_require_bound_code`); and an agent that saw the ALPN never falls back.
//!
//! A code protects only the side on which somebody compared it. The dispatcher's operator compares before `approve`. But a man in the middle
//! need not involve the dispatcher at all to send the agent an approval of his own. So the agent, too, stores nothing before somebody vouches for
//! the dispatcher: a pinned fingerprint (`--dispatcher-fingerprint`, `--ca-fingerprint`), a CA that it already has, or the person at its terminal
//! who confirms that the dispatcher showed this code. Without any of them (an unattended first pairing, as existing automation does it) it says so,
//! and refuses when bound codes are required.
//!
//! # States
//!
//! Both ends are pure machines, [`agent::AgentState`] and [`dispatcher::DispatcherState`]: `next(state, event) -> (state, effects)`. They never read a clock,
//! a socket or a disk; the rims in the applets do, and report what happened as events.
//!
//! ```text
//! agent       Ready > AwaitingAcknowledgement > AwaitingVerdict > Verifying > [Confirming] > Storing > Finished
//! dispatcher  AwaitingRequest > AwaitingRoom > [AwaitingReveal] > Queueing > AwaitingVerdict > Delivering > [AwaitingReceipt] > Closed
//!                                                                              \ Withdrawing (deadline, hang-up, session end)
//! ```
//!
//! # Points of failure
//!
//! * Between listener and operator stands the queue directory ([`queue`]). A request has exactly one fate, decided under the queue's lock: approved or
//!   denied by a person, or withdrawn by the listener. Approval and time-out cannot both win; a withdrawn request cannot be approved,
//!   and an approval that found its agent gone is reported as not delivered.
//! * A request whose session is dead (killed listener) cannot be approved: the session's lock tells ([`queue::Session`]).
//! * What is signed is what was shown: the code is computed again from the record at approval, and a record that changed is refused ([`record`]).
//! * The agent checks everything it received ([`delivery`]) before it writes anything, and writes in an order in which every crash leaves the old
//!   pairing working or a host that says clearly that it is not paired ([`install`]).

pub mod agent;
#[cfg(feature = "dispatcher")]
pub mod approval;
pub mod code;
#[cfg(test)]
mod crash_tests;
pub mod delivery;
#[cfg(feature = "dispatcher")]
pub mod diagnostics;
#[cfg(feature = "dispatcher")]
pub mod dispatcher;
pub mod framing;
pub mod ids;
pub mod install;
pub mod message;
#[cfg(feature = "dispatcher")]
pub mod queue;
#[cfg(feature = "dispatcher")]
pub mod record;
#[cfg(test)]
mod simulation;

use std::time::Duration;

/// Largest header block of a message (spec/pairing.md 18.6).
pub const MAX_HEAD: usize = 8 * 1024;
/// Largest body of a message; this many bytes are still taken (spec/pairing.md 3.1).
pub const MAX_BODY: usize = 65_536;
/// Time for a TLS handshake, and for each message that the peer owes us.
pub const STEP_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a request waits for the operator, from queueing (spec/pairing.md 6).
pub const APPROVAL_WINDOW: Duration = Duration::from_secs(600);
/// How long the dispatcher waits for the agent's receipt; a person may have to confirm first.
pub const RECEIPT_TIMEOUT: Duration = Duration::from_secs(120);
/// Longest that an agent waits for a verdict: the window plus what clocks and networks may add.
pub const MAX_WAIT: Duration = Duration::from_secs(900);
/// Time for the two look-ups of the reverse name (spec/pairing.md 8).
pub const REVERSE_DNS_TIMEOUT: Duration = Duration::from_secs(2);
/// Agents of one session that may learn a nonce of ours and go away before the operator decides: an attacker's number of guesses at one
/// code of a million.
pub const MAX_UNFINISHED: usize = 64;
