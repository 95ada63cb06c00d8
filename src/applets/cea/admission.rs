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
use crate::core::ratelimit::{RateLimiter, Verdict, source_key};
use crate::core::types::DispatcherId;

/// How long the address of a trusted dispatcher is known as such after its last handshake.
const TRUST_MEMORY: Duration = Duration::from_secs(3600);
/// Most addresses that are remembered so.
const MAX_TRUSTED: usize = 1000;
/// Handshakes that one address may have under way at the same time; trusted addresses are not counted.
const MAX_PENDING: u32 = 32;
/// Connections of one address that may wait for one of these to end. A dispatcher that calls often when the agent has just started is
/// known after its first handshake, and then they all come in.
const MAX_WAITING: u32 = 32;

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

/// What becomes of a connection before its handshake.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Door {
    /// It may begin. Must be followed by [`Admission::handshake_over`].
    Open,
    /// Its address has as many under way as it may. Must be followed by [`Admission::ask_again`] until that says something else, or by
    /// [`Admission::give_up`].
    Wait,
    /// It is closed without a word.
    Shut,
}

/// Connections of one address before the end of their handshakes.
#[derive(Debug, Default)]
struct Pending {
    under_way: u32,
    waiting: u32,
    /// Whether the log has a line of those that were too many.
    told: bool,
}

/// Times are taken from the monotonic clock, so that a clock that is set neither frees nor blocks anybody.
pub(super) struct Admission {
    began: Instant,
    addresses: RateLimiter,
    dispatchers: RateLimiter,
    trusted: HashMap<IpAddr, Instant>,
    /// By [`source_key`]: whoever owns an IPv6 network must not count as many.
    pending: HashMap<String, Pending>,
}

impl Admission {
    pub(super) fn new(config: &AgentConfig, now: Instant) -> Self {
        Self {
            began: now,
            addresses: RateLimiter::new(config.rate_limit_volume, config.rate_limit_probe),
            dispatchers: RateLimiter::new(config.rate_limit_dispatcher, None),
            trusted: HashMap::new(),
            pending: HashMap::new(),
        }
    }

    /// Forgets all that was counted and takes over new limits; what is under way stays known.
    pub(super) fn forget(&mut self, config: &AgentConfig, now: Instant) {
        let fresh = Self::new(config, now);
        *self = Self {
            trusted: std::mem::take(&mut self.trusted),
            pending: std::mem::take(&mut self.pending),
            ..fresh
        };
    }

    /// A connection was accepted: may it begin a handshake?
    pub(super) fn at_the_door(&mut self, address: IpAddr, now: Instant) -> Door {
        if !self.judge_address(address, now) {
            return Door::Shut;
        }
        let trusted = self.is_trusted(address, now);
        let pending = self.pending.entry(source_key(address)).or_default();
        if pending.under_way < MAX_PENDING || trusted {
            pending.under_way += 1;
            return Door::Open;
        }
        if pending.waiting < MAX_WAITING {
            pending.waiting += 1;
            return Door::Wait;
        }
        if !std::mem::replace(&mut pending.told, true) {
            Action::new("handshake-limit")
                .field("PEER", address)
                .field("COUNT", pending.under_way + pending.waiting)
                .warning();
        }
        Door::Shut
    }

    /// A connection that waits asks again. Shut when its address was blocked meanwhile.
    pub(super) fn ask_again(&mut self, address: IpAddr, now: Instant) -> Door {
        if !self.judge_address(address, now) {
            self.give_up(address);
            return Door::Shut;
        }
        let trusted = self.is_trusted(address, now);
        match self.pending.get_mut(&source_key(address)) {
            Some(pending) if pending.under_way < MAX_PENDING || trusted => {
                pending.waiting -= 1;
                pending.under_way += 1;
                Door::Open
            }
            _ => Door::Wait,
        }
    }

    /// A connection waits no longer.
    pub(super) fn give_up(&mut self, address: IpAddr) {
        self.one_less(address, |pending| &mut pending.waiting);
    }

    /// A handshake has ended, in whatever way.
    pub(super) fn handshake_over(&mut self, address: IpAddr) {
        self.one_less(address, |pending| &mut pending.under_way);
    }

    fn one_less(&mut self, address: IpAddr, which: impl FnOnce(&mut Pending) -> &mut u32) {
        let key = source_key(address);
        if let Some(pending) = self.pending.get_mut(&key) {
            *which(pending) -= 1;
            if pending.under_way == 0 && pending.waiting == 0 {
                self.pending.remove(&key);
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
            let at = self.at(now);
            let verdict = self.addresses.record_failure(&source_key(address), at);
            log_eviction(&mut self.addresses);
            obey(verdict, |line| line.field("PEER", address));
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
            let at = self.at(now);
            self.addresses.record_connection(&source_key(address), at);
            log_eviction(&mut self.addresses);
        }
        welcome
    }

    /// Takes one request out of a dispatcher's budget; false when there is none left.
    pub(super) fn spend(&mut self, dispatcher: &DispatcherId, peer: &str, now: Instant) -> bool {
        let at = self.at(now);
        let verdict = self.dispatchers.check(dispatcher.as_str(), at);
        let welcome = obey(verdict, |line| {
            line.field("DISPATCHER", dispatcher).field("PEER", peer)
        });
        if welcome {
            self.dispatchers.record_connection(dispatcher.as_str(), at);
        }
        welcome
    }

    fn is_trusted(&self, address: IpAddr, now: Instant) -> bool {
        self.trusted
            .get(&address)
            .is_some_and(|seen| now.duration_since(*seen) < TRUST_MEMORY)
    }

    fn judge_address(&mut self, address: IpAddr, now: Instant) -> bool {
        let verdict = self.addresses.check(&source_key(address), self.at(now));
        obey(verdict, |line| line.field("PEER", address))
    }

    fn at(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.began)
    }
}

/// Whether the verdict is yes; writes the line of a block that begins.
fn obey(verdict: Verdict, whose: impl FnOnce(Action) -> Action) -> bool {
    if let Verdict::BlockStarts(reason) = verdict {
        whose(Action::new("rate-block"))
            .field("REASON", reason)
            .warning();
    }
    verdict == Verdict::Allow
}

fn log_eviction(limiter: &mut RateLimiter) {
    if let Some(evicted) = limiter.take_eviction() {
        Action::new("rate-evict")
            .field("COUNT", evicted.count)
            .warning();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::config::RateSpec;
    use crate::core::paths::{Paths, Platform};

    const ADDRESS: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));

    fn admission(now: Instant) -> Admission {
        let paths = Paths::new("/nonexistent", Platform::Standard);
        let mut config = AgentConfig::defaults(&paths, std::path::Path::new("agent.conf"));
        config.rate_limit_volume = Some(RateSpec::new(10, 60, 300));
        config.rate_limit_probe = Some(RateSpec::new(3, 600, 3600));
        config.rate_limit_dispatcher = Some(RateSpec::new(20, 60, 10));
        Admission::new(&config, now)
    }

    #[test]
    fn a_trusted_dispatcher_is_never_blocked_by_the_volume_of_its_address() {
        let now = Instant::now();
        let mut door = admission(now);
        for _ in 0..200 {
            assert_eq!(door.at_the_door(ADDRESS, now), Door::Open);
            door.handshake_over(ADDRESS);
            door.trusted_arrived(ADDRESS, now);
        }
    }

    #[test]
    fn the_eleventh_connection_of_a_stranger_is_refused() {
        let now = Instant::now();
        let mut door = admission(now);
        for _ in 0..10 {
            assert_eq!(door.at_the_door(ADDRESS, now), Door::Open);
            door.handshake_over(ADDRESS);
            assert!(door.stranger_arrived(ADDRESS, now));
        }
        assert_eq!(door.at_the_door(ADDRESS, now), Door::Shut);
        assert_eq!(
            door.at_the_door(ADDRESS, now + Duration::from_secs(299)),
            Door::Shut
        );
        assert_eq!(
            door.at_the_door(ADDRESS, now + Duration::from_secs(301)),
            Door::Open
        );
    }

    #[test]
    fn the_third_probe_blocks_at_once_but_a_wrong_clock_is_no_probe() {
        let now = Instant::now();
        let mut door = admission(now);
        for _ in 0..50 {
            door.handshake_failed(ADDRESS, Failure::Clock, now);
        }
        for _ in 0..3 {
            assert_eq!(door.at_the_door(ADDRESS, now), Door::Open);
            door.handshake_over(ADDRESS);
            door.handshake_failed(ADDRESS, Failure::Probe, now);
        }
        assert_eq!(door.at_the_door(ADDRESS, now), Door::Shut);
    }

    #[test]
    fn whom_we_trust_may_hang_up_within_the_hour() {
        let now = Instant::now();
        let mut door = admission(now);
        door.trusted_arrived(ADDRESS, now);
        for _ in 0..50 {
            door.handshake_failed(ADDRESS, Failure::Disconnected, now);
        }
        assert_eq!(door.at_the_door(ADDRESS, now), Door::Open);
        let later = now + TRUST_MEMORY + Duration::from_secs(1);
        for _ in 0..3 {
            door.handshake_failed(ADDRESS, Failure::Disconnected, later);
        }
        assert_eq!(door.at_the_door(ADDRESS, later), Door::Shut);
    }

    /// With as many handshakes under way, and as many connections waiting, as it may have.
    fn crowded(now: Instant) -> Admission {
        let mut door = admission(now);
        for _ in 0..MAX_PENDING {
            assert_eq!(door.at_the_door(ADDRESS, now), Door::Open);
        }
        for _ in 0..MAX_WAITING {
            assert_eq!(door.at_the_door(ADDRESS, now), Door::Wait);
        }
        assert_eq!(door.at_the_door(ADDRESS, now), Door::Shut);
        door
    }

    #[test]
    fn one_address_cannot_take_all_handshakes() {
        let now = Instant::now();
        let mut door = crowded(now);
        let other = "192.0.2.2".parse().unwrap();
        assert_eq!(door.at_the_door(other, now), Door::Open);

        let host = |n: u32| format!("2001:db8::{n:x}").parse().unwrap();
        for n in 0..MAX_PENDING {
            assert_eq!(door.at_the_door(host(n), now), Door::Open);
        }
        assert_eq!(door.at_the_door(host(MAX_PENDING), now), Door::Wait);
    }

    #[test]
    fn who_waits_comes_in_for_each_handshake_that_ends_and_nothing_is_left_behind() {
        let now = Instant::now();
        let mut door = crowded(now);
        assert_eq!(door.ask_again(ADDRESS, now), Door::Wait);
        for _ in 0..MAX_WAITING {
            door.handshake_over(ADDRESS);
            assert_eq!(door.ask_again(ADDRESS, now), Door::Open);
            assert_eq!(door.at_the_door(ADDRESS, now), Door::Wait);
            door.give_up(ADDRESS);
        }
        for _ in 0..MAX_PENDING {
            door.handshake_over(ADDRESS);
        }
        assert!(door.pending.is_empty());
    }

    #[test]
    fn who_waits_comes_in_with_the_first_trusted_handshake_of_its_address() {
        let now = Instant::now();
        let mut door = crowded(now);
        door.trusted_arrived(ADDRESS, now);
        for _ in 0..MAX_WAITING {
            assert_eq!(door.ask_again(ADDRESS, now), Door::Open);
        }
        assert_eq!(door.at_the_door(ADDRESS, now), Door::Open);
    }

    #[test]
    fn who_waits_is_sent_away_with_its_address() {
        let now = Instant::now();
        let mut door = crowded(now);
        for _ in 0..3 {
            door.handshake_over(ADDRESS);
            door.handshake_failed(ADDRESS, Failure::Probe, now);
        }
        for _ in 0..MAX_WAITING {
            assert_eq!(door.ask_again(ADDRESS, now), Door::Shut);
        }
        for _ in 3..MAX_PENDING {
            door.handshake_over(ADDRESS);
        }
        assert!(door.pending.is_empty());
    }

    #[test]
    fn a_dispatcher_has_a_budget_of_its_own() {
        let now = Instant::now();
        let mut door = admission(now);
        let (one, two) = (
            DispatcherId::new("one").unwrap(),
            DispatcherId::new("two").unwrap(),
        );
        for _ in 0..20 {
            assert!(door.spend(&one, "192.0.2.1", now));
        }
        assert!(!door.spend(&one, "192.0.2.1", now));
        assert!(door.spend(&two, "192.0.2.1", now));
        assert!(door.spend(&one, "192.0.2.1", now + Duration::from_secs(11)));
    }

    #[test]
    fn a_reload_frees_everybody() {
        let now = Instant::now();
        let mut door = admission(now);
        for _ in 0..3 {
            door.handshake_failed(ADDRESS, Failure::Probe, now);
        }
        assert_eq!(door.at_the_door(ADDRESS, now), Door::Shut);
        let paths = Paths::new("/nonexistent", Platform::Standard);
        let config = AgentConfig::defaults(&paths, std::path::Path::new("agent.conf"));
        door.forget(&config, now);
        assert_eq!(door.at_the_door(ADDRESS, now), Door::Open);
    }
}
