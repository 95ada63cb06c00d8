//! Who may come in: bookkeeping about addresses before and after the handshake, and about dispatchers per request
//! (spec/agent.md 16, with the weakness W11 of 19.2 mended).
//!
//! Addresses are limited in two ways: by volume (connections that did *not* turn out to be a trusted dispatcher's) and by probes
//! (handshakes that failed). A trusted dispatcher has a budget of its own per request and is never blocked by the volume of its
//! address; for an hour after its last handshake its address may also break off connections without being taken for a probe.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::core::config::AgentConfig;
use crate::core::logging::Action;
use crate::core::ratelimit::{RateLimiter, Verdict};
use crate::core::types::DispatcherId;

/// How long the address of a trusted dispatcher is known as such after its last handshake.
const TRUST_MEMORY: Duration = Duration::from_secs(3600);
/// Most addresses that are remembered so.
const MAX_TRUSTED: usize = 1000;
/// Handshakes that one address may have under way at the same time; trusted addresses are not counted.
const MAX_PENDING: u32 = 32;

/// How a handshake ended that did not bring a usable connection.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Failure {
    /// The peer broke off, or sent nothing in time.
    Disconnected,
    /// A certificate is not valid at this time; perhaps it is our clock that is wrong.
    Clock,
    /// Anything else.
    Probe,
}

pub(super) struct Admission {
    addresses: RateLimiter,
    dispatchers: RateLimiter,
    trusted: HashMap<IpAddr, Instant>,
    pending: HashMap<IpAddr, u32>,
}

impl Admission {
    pub(super) fn new(config: &AgentConfig) -> Self {
        Self {
            addresses: RateLimiter::new(config.rate_limit_volume, config.rate_limit_probe),
            dispatchers: RateLimiter::new(config.rate_limit_dispatcher, None),
            trusted: HashMap::new(),
            pending: HashMap::new(),
        }
    }

    /// A connection was accepted: may it begin a handshake? Every yes must be followed by [`handshake_over`](Self::handshake_over).
    pub(super) fn at_the_door(&mut self, address: IpAddr, now: Instant) -> bool {
        if !self.judge_address(address, now) {
            return false;
        }
        let trusted = self.is_trusted(address, now);
        let pending = self.pending.entry(address).or_default();
        if *pending >= MAX_PENDING && !trusted {
            return false;
        }
        *pending += 1;
        true
    }

    /// The handshake of [`at_the_door`](Self::at_the_door) has ended, in whatever way.
    pub(super) fn handshake_over(&mut self, address: IpAddr) {
        if let Some(pending) = self.pending.get_mut(&address) {
            *pending -= 1;
            if *pending == 0 {
                self.pending.remove(&address);
            }
        }
    }

    /// The handshake failed. Books it, and begins a block if it was one too many.
    pub(super) fn handshake_failed(&mut self, address: IpAddr, failure: Failure, now: Instant) {
        let excused = match failure {
            Failure::Clock => true,
            Failure::Disconnected => self.is_trusted(address, now),
            Failure::Probe => false,
        };
        if !excused {
            self.addresses.record_failure(&address.to_string(), now);
            self.judge_address(address, now);
        }
    }

    /// The peer turned out to be a trusted dispatcher.
    pub(super) fn trusted_arrived(&mut self, address: IpAddr, now: Instant) {
        if self.trusted.len() >= MAX_TRUSTED && !self.trusted.contains_key(&address) {
            self.trusted
                .retain(|_, seen| now.duration_since(*seen) < TRUST_MEMORY);
            if self.trusted.len() >= MAX_TRUSTED {
                return;
            }
        }
        self.trusted.insert(address, now);
    }

    /// The peer holds a certificate of our CA but is no trusted dispatcher. Counts the connection; false when it is one too many.
    pub(super) fn stranger_arrived(&mut self, address: IpAddr, now: Instant) -> bool {
        let welcome = self.judge_address(address, now);
        if welcome {
            self.addresses.record_connection(&address.to_string(), now);
        }
        welcome
    }

    /// Takes one request out of a dispatcher's budget; false when there is none left.
    pub(super) fn spend(&mut self, dispatcher: &DispatcherId, peer: &str, now: Instant) -> bool {
        match self.dispatchers.check(dispatcher.as_str(), now) {
            Verdict::Allow => {
                self.dispatchers.record_connection(dispatcher.as_str(), now);
                true
            }
            Verdict::Blocked => false,
            Verdict::BlockStarts(reason) => {
                Action::new("rate-block")
                    .field("DISPATCHER", dispatcher)
                    .field("PEER", peer)
                    .field("REASON", reason)
                    .warning();
                false
            }
        }
    }

    fn is_trusted(&self, address: IpAddr, now: Instant) -> bool {
        self.trusted
            .get(&address)
            .is_some_and(|seen| now.duration_since(*seen) < TRUST_MEMORY)
    }

    fn judge_address(&mut self, address: IpAddr, now: Instant) -> bool {
        match self.addresses.check(&address.to_string(), now) {
            Verdict::Allow => true,
            Verdict::Blocked => false,
            Verdict::BlockStarts(reason) => {
                Action::new("rate-block")
                    .field("PEER", address)
                    .field("REASON", reason)
                    .warning();
                false
            }
        }
    }
}
