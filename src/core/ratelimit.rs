//! Rate limiting per source (spec/agent.md 16): too many connections (volume) or failed handshakes (probe) within a window block the
//! source for a while. Pure: the time is handed in, as what has passed since the program started.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use crate::core::config::RateSpec;

/// Most sources that are remembered.
pub const MAX_ENTRIES: usize = 1000;

/// Why a block started; its text is REASON of the `rate-block` line.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Reason {
    Volume,
    Probe,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Volume => "volume",
            Self::Probe => "probe",
        })
    }
}

/// What to do with a connection.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Verdict {
    Allow,
    /// Refuse without a word in the log.
    Blocked,
    /// Refuse, and write `rate-block` once.
    BlockStarts(Reason),
}

/// The table was full and somebody was forgotten: write `rate-evict` with this count.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Evicted {
    /// Entries before the pass ([`MAX_ENTRIES`]).
    pub count: usize,
}

#[derive(Debug, Default)]
struct Entry {
    connections: VecDeque<Duration>,
    failures: VecDeque<Duration>,
    blocked_until: Option<Duration>,
}

impl Entry {
    fn last_seen(&self) -> Duration {
        let last = |times: &VecDeque<Duration>| times.back().copied().unwrap_or_default();
        last(&self.connections).max(last(&self.failures))
    }
}

/// The state of one listener. Forgotten with the process.
#[derive(Debug)]
pub struct RateLimiter {
    volume: Option<RateSpec>,
    probe: Option<RateSpec>,
    entries: HashMap<String, Entry>,
    evicted: Option<Evicted>,
}

impl RateLimiter {
    /// `None`, or a limit of 0, switches that test off.
    pub fn new(volume: Option<RateSpec>, probe: Option<RateSpec>) -> Self {
        Self {
            volume: volume.filter(|spec| spec.limit > 0),
            probe: probe.filter(|spec| spec.limit > 0),
            entries: HashMap::new(),
            evicted: None,
        }
    }

    /// Judges a source. A block that is over is forgotten with all that led to it.
    pub fn check(&mut self, key: &str, now: Duration) -> Verdict {
        let Some(entry) = self.entries.get_mut(key) else {
            return Verdict::Allow;
        };
        match entry.blocked_until {
            Some(until) if now < until => return Verdict::Blocked,
            Some(_) => {
                self.entries.remove(key);
                return Verdict::Allow;
            }
            None => {}
        }
        let reached = |spec: Option<RateSpec>, times: &mut VecDeque<Duration>| {
            let spec = spec?;
            times.retain(|&at| now.saturating_sub(at) < spec.window);
            let full = u32::try_from(times.len()).map_or(true, |n| n >= spec.limit);
            full.then_some(spec.block)
        };
        let (block, reason) = if let Some(block) = reached(self.volume, &mut entry.connections) {
            (block, Reason::Volume)
        } else if let Some(block) = reached(self.probe, &mut entry.failures) {
            (block, Reason::Probe)
        } else {
            return Verdict::Allow;
        };
        *entry = Entry {
            blocked_until: Some(now.saturating_add(block)),
            ..Entry::default()
        };
        Verdict::BlockStarts(reason)
    }

    /// Books a connection that [`RateLimiter::check`] allowed.
    pub fn record_connection(&mut self, key: &str, now: Duration) {
        if let Some(spec) = self.volume {
            remember(&mut self.entry(key, now).connections, spec, now);
        }
    }

    /// Books a failed handshake and judges at once, so that the last tolerated failure starts the block.
    pub fn record_failure(&mut self, key: &str, now: Duration) -> Verdict {
        if let Some(spec) = self.probe {
            remember(&mut self.entry(key, now).failures, spec, now);
        }
        self.check(key, now)
    }

    /// Takes the notice of an eviction since the last call.
    pub fn take_eviction(&mut self) -> Option<Evicted> {
        self.evicted.take()
    }

    /// Number of sources that are remembered, at most [`MAX_ENTRIES`].
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    fn entry(&mut self, key: &str, now: Duration) -> &mut Entry {
        if self.entries.len() >= MAX_ENTRIES && !self.entries.contains_key(key) {
            self.make_room(now);
        }
        self.entries.entry(key.to_owned()).or_default()
    }

    /// Forgets all whose block is over; if none was, the one whose block ends first. Never blocked counts as earliest, and among
    /// those the one that has been silent longest goes, so that a flood of new sources frees nobody from a block.
    fn make_room(&mut self, now: Duration) {
        let count = self.entries.len();
        self.entries
            .retain(|_, e| e.blocked_until.is_none_or(|until| now < until));
        if self.entries.len() >= MAX_ENTRIES {
            let first = self
                .entries
                .iter()
                .min_by_key(|(_, e)| (e.blocked_until.unwrap_or_default(), e.last_seen()))
                .map(|(key, _)| key.clone());
            if let Some(key) = first {
                self.entries.remove(&key);
            }
        }
        self.evicted = Some(Evicted { count });
    }
}

/// No more times are kept than the test looks at.
fn remember(times: &mut VecDeque<Duration>, spec: RateSpec, now: Duration) {
    times.push_back(now);
    if u32::try_from(times.len()).map_or(true, |n| n > spec.limit) {
        times.pop_front();
    }
}

/// The key of a source address: IPv4 as it is (also when mapped into IPv6), IPv6 by its /64, which one host owns whole.
pub fn source_key(address: IpAddr) -> String {
    match address.to_canonical() {
        IpAddr::V4(v4) => v4.to_string(),
        IpAddr::V6(v6) => {
            let network = v6.to_bits() & (u128::MAX << 64);
            format!("{}/64", std::net::Ipv6Addr::from_bits(network))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const VOLUME: RateSpec = RateSpec::new(10, 60, 300);
    const PROBE: RateSpec = RateSpec::new(3, 600, 3600);

    fn limiter() -> RateLimiter {
        RateLimiter::new(Some(VOLUME), Some(PROBE))
    }

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn the_eleventh_connection_starts_a_block_of_300_seconds() {
        let mut limiter = limiter();
        for n in 0..10 {
            assert_eq!(limiter.check("a", at(n)), Verdict::Allow);
            limiter.record_connection("a", at(n));
        }
        assert_eq!(
            limiter.check("a", at(10)),
            Verdict::BlockStarts(Reason::Volume)
        );
        assert_eq!(limiter.check("a", at(11)), Verdict::Blocked);
        assert_eq!(limiter.check("a", at(309)), Verdict::Blocked);
        assert_eq!(limiter.check("b", at(11)), Verdict::Allow);
        assert_eq!(limiter.check("a", at(310)), Verdict::Allow);
        assert!(limiter.is_empty());
    }

    #[test]
    fn times_outside_the_window_do_not_count() {
        let mut limiter = limiter();
        for _ in 0..10 {
            limiter.record_connection("a", at(0));
        }
        assert_eq!(limiter.check("a", at(60)), Verdict::Allow);
        for _ in 0..10 {
            limiter.record_connection("a", at(100));
        }
        assert_eq!(
            limiter.check("a", at(159)),
            Verdict::BlockStarts(Reason::Volume)
        );
    }

    #[test]
    fn the_third_failure_blocks_at_once_for_an_hour() {
        let mut limiter = limiter();
        assert_eq!(limiter.record_failure("a", at(0)), Verdict::Allow);
        assert_eq!(limiter.record_failure("a", at(1)), Verdict::Allow);
        assert_eq!(
            limiter.record_failure("a", at(2)),
            Verdict::BlockStarts(Reason::Probe)
        );
        assert_eq!(limiter.record_failure("a", at(3)), Verdict::Blocked);
        assert_eq!(limiter.check("a", at(3601)), Verdict::Blocked);
        assert_eq!(limiter.check("a", at(3602)), Verdict::Allow);
    }

    #[test]
    fn the_counters_are_independent() {
        let mut limiter = limiter();
        for n in 0..9 {
            limiter.record_connection("a", at(n));
        }
        assert_eq!(limiter.record_failure("a", at(9)), Verdict::Allow);
        assert_eq!(limiter.record_failure("a", at(9)), Verdict::Allow);
        assert_eq!(limiter.check("a", at(9)), Verdict::Allow);
    }

    #[test]
    fn what_is_switched_off_remembers_nobody() {
        for off in [None, Some(RateSpec::new(0, 60, 60))] {
            let mut limiter = RateLimiter::new(off, off);
            for _ in 0..100 {
                limiter.record_connection("a", at(0));
                assert_eq!(limiter.record_failure("a", at(0)), Verdict::Allow);
            }
            assert!(limiter.is_empty());
        }
    }

    fn blocked(limiter: &mut RateLimiter, key: &str, now: Duration) {
        for _ in 0..3 {
            let _ = limiter.record_failure(key, now);
        }
    }

    #[test]
    fn a_full_table_drops_expired_blocks_in_bulk() {
        let mut limiter = limiter();
        for n in 0..1000 {
            let when = if n < 400 { at(0) } else { at(3000) };
            blocked(&mut limiter, &n.to_string(), when);
        }
        assert_eq!(limiter.take_eviction(), None);
        limiter.record_connection("new", at(4000));
        assert_eq!(limiter.take_eviction(), Some(Evicted { count: 1000 }));
        assert_eq!(limiter.take_eviction(), None);
        assert_eq!(limiter.len(), 601);
    }

    #[test]
    fn a_full_table_drops_the_block_that_ends_first_else_the_longest_silent() {
        let mut limiter = limiter();
        for n in 0..1000_u32 {
            let when = at(if n == 500 { 10 } else { 20 });
            blocked(&mut limiter, &n.to_string(), when);
        }
        limiter.record_connection("new", at(30));
        assert_eq!(limiter.len(), 1000);
        assert_eq!(limiter.check("500", at(31)), Verdict::Allow);
        assert_eq!(limiter.check("499", at(31)), Verdict::Blocked);
        // Now "new" is the only one that was never blocked, so the next newcomer displaces it.
        limiter.record_connection("newer", at(32));
        assert!(limiter.take_eviction().is_some());
        assert!(!limiter.entries.contains_key("new"));
        assert_eq!(limiter.check("499", at(33)), Verdict::Blocked);
    }

    #[test]
    fn known_sources_evict_nobody() {
        let mut limiter = limiter();
        for n in 0..1000 {
            limiter.record_connection(&n.to_string(), at(0));
        }
        limiter.record_connection("7", at(1));
        assert_eq!(limiter.check("unknown", at(1)), Verdict::Allow);
        assert_eq!((limiter.len(), limiter.take_eviction()), (1000, None));
    }

    #[test]
    fn addresses_of_one_host_share_a_key() {
        let key = |text: &str| source_key(text.parse().unwrap());
        assert_eq!(key("192.0.2.1"), "192.0.2.1");
        assert_eq!(key("::ffff:192.0.2.1"), "192.0.2.1");
        assert_eq!(key("2001:db8::1"), key("2001:db8::ffff:1"));
        assert_ne!(key("2001:db8::1"), key("2001:db8:0:1::1"));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn memory_stays_bounded(events in proptest::collection::vec((0..2000_u16, any::<bool>(), 0..100_u64), 0..3000)) {
            let mut limiter = limiter();
            let mut now = at(0);
            for (key, failed, pause) in events {
                now += at(pause);
                let key = key.to_string();
                if failed {
                    let _ = limiter.record_failure(&key, now);
                } else {
                    limiter.record_connection(&key, now);
                }
                prop_assert!(limiter.len() <= MAX_ENTRIES);
            }
            for entry in limiter.entries.values() {
                prop_assert!(entry.connections.len() <= 10 && entry.failures.len() <= 3);
            }
        }
    }
}
