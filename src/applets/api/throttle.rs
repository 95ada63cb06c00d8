//! What requests of strangers may cost (spec/api.md 16, items 14 and 22): per source a number of refusals, then an answer without asking the
//! hook; over all sources a number of log lines, then a count. Pure: time is handed in.
//!
//! A source that is blocked may hold people with good credentials (everybody behind one address, all users of this host): who has been let in
//! with a credential from there goes on.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::core::config::RateSpec;

/// Most sources and credentials that are remembered; when full, the oldest goes.
const MAX_SOURCES: usize = 4096;
const MAX_KNOWN: usize = 1024;
/// How long an accepted credential counts.
const KNOWN_FOR: Duration = Duration::from_secs(3600);
/// Requests of strangers whose lines are written: so many at once, and so many more every second.
const LINES_BURST: f64 = 200.0;
const LINES_PER_SECOND: f64 = 5.0;

/// Names a credential without being one.
pub(super) type Fingerprint = [u8; 32];

#[derive(Debug)]
struct Source {
    since: Instant,
    refusals: u32,
    blocked_until: Option<Instant>,
}

/// The bookkeeping of one server.
#[derive(Debug)]
pub(super) struct Throttle {
    rate: Option<RateSpec>,
    sources: HashMap<String, Source>,
    /// When a credential was last accepted; by source and credential together.
    known: HashMap<(String, Fingerprint), Instant>,
    refused: Lines,
    unasked: Lines,
}

/// Whom nobody has vouched for. Each kind has room of its own in the log: whoever polls what everybody may know hides no refusal.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Stranger {
    /// The hook said no.
    Refused,
    /// Let in by gate 1, and gate 2 was not asked: what everybody may know, no such route, a body that says nothing.
    Unasked,
}

impl Stranger {
    /// As the log says it.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Unasked => "unasked",
        }
    }
}

/// Room in the log.
#[derive(Debug)]
struct Lines {
    left: f64,
    refilled: Instant,
    /// Requests without lines since the last that had some.
    suppressed: u64,
}

impl Lines {
    fn new(now: Instant) -> Self {
        Self {
            left: LINES_BURST,
            refilled: now,
            suppressed: 0,
        }
    }

    fn take(&mut self, now: Instant) -> Option<u64> {
        let passed = now.saturating_duration_since(self.refilled).as_secs_f64();
        self.refilled = now;
        self.left = (self.left + passed * LINES_PER_SECOND).min(LINES_BURST);
        if self.left < 1.0 {
            self.suppressed += 1;
            return None;
        }
        self.left -= 1.0;
        Some(std::mem::take(&mut self.suppressed))
    }
}

/// What to do with a request of some source.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Door {
    Open,
    /// Not before this much time has passed.
    Closed(Duration),
}

/// What a refusal leads to.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Refused {
    /// The source is blocked from now on: said once.
    pub(super) blocks: bool,
}

impl Throttle {
    /// `rate`: refusals, window and block of one source; `None` switches it off.
    pub(super) fn new(rate: Option<RateSpec>, now: Instant) -> Self {
        Self {
            rate,
            sources: HashMap::new(),
            known: HashMap::new(),
            refused: Lines::new(now),
            unasked: Lines::new(now),
        }
    }

    /// Another configuration: what was counted under another rate is forgotten.
    pub(super) fn follow(&mut self, rate: Option<RateSpec>, now: Instant) {
        if rate != self.rate {
            *self = Self::new(rate, now);
        }
    }

    /// Whether the hook may be asked about a request. One of `credentials` that was accepted suffices. Neither is made where nobody has been
    /// refused.
    pub(super) fn ask<const N: usize>(
        &mut self,
        source: impl FnOnce() -> String,
        credentials: impl FnOnce() -> [Option<Fingerprint>; N],
        now: Instant,
    ) -> Door {
        if self.sources.is_empty() {
            return Door::Open;
        }
        let source = source();
        let Some(until) = self.sources.get(&source).and_then(|s| s.blocked_until) else {
            return Door::Open;
        };
        let left = until.saturating_duration_since(now);
        if left.is_zero() {
            self.sources.remove(&source);
            return Door::Open;
        }
        let good = credentials().into_iter().flatten().any(|credential| {
            self.known
                .get(&(source.clone(), credential))
                .is_some_and(|at| now.saturating_duration_since(*at) < KNOWN_FOR)
        });
        if good { Door::Open } else { Door::Closed(left) }
    }

    /// A credential was good for something that not everybody may do.
    pub(super) fn accepted(&mut self, source: &str, credential: Fingerprint, now: Instant) {
        let key = (source.to_owned(), credential);
        if self.known.len() >= MAX_KNOWN && !self.known.contains_key(&key) {
            let oldest = self.known.iter().min_by_key(|(_, at)| **at);
            if let Some(oldest) = oldest.map(|(key, _)| key.clone()) {
                self.known.remove(&oldest);
            }
        }
        self.known.insert(key, now);
    }

    /// The hook said no.
    pub(super) fn refused(&mut self, source: &str, now: Instant) -> Refused {
        let Some(rate) = self.rate else {
            return Refused::default();
        };
        if !self.sources.contains_key(source) && self.sources.len() >= MAX_SOURCES {
            let oldest = self.sources.iter().min_by_key(|(_, s)| s.since);
            if let Some(oldest) = oldest.map(|(name, _)| name.clone()) {
                self.sources.remove(&oldest);
            }
        }
        let entry = self.sources.entry(source.to_owned()).or_insert(Source {
            since: now,
            refusals: 0,
            blocked_until: None,
        });
        if now.saturating_duration_since(entry.since) > rate.window {
            entry.since = now;
            entry.refusals = 0;
        }
        entry.refusals += 1;
        let blocks = entry.refusals >= rate.limit && entry.blocked_until.is_none();
        if blocks {
            entry.blocked_until = Some(now + rate.block);
        }
        Refused { blocks }
    }

    /// Whether the lines of one more request of a stranger are written. `Some(n)`: yes, after a word about the `n` requests whose lines were
    /// not.
    pub(super) fn may_tell(&mut self, of: Stranger, now: Instant) -> Option<u64> {
        match of {
            Stranger::Refused => self.refused.take(now),
            Stranger::Unasked => self.unasked.take(now),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: Fingerprint = [1; 32];
    const BAD: Fingerprint = [2; 32];

    #[test]
    fn a_source_is_blocked_but_not_who_was_let_in_from_there() {
        let start = Instant::now();
        let at = |s| start + Duration::from_secs(s);
        let mut throttle = Throttle::new(Some(RateSpec::new(3, 10, 60)), start);
        throttle.accepted("a", GOOD, at(0));
        assert!(!throttle.refused("a", at(0)).blocks);
        assert!(!throttle.refused("a", at(1)).blocks);
        assert_eq!(
            throttle.ask(|| "a".to_owned(), || [Some(BAD)], at(1)),
            Door::Open
        );
        assert!(throttle.refused("a", at(2)).blocks);
        assert!(!throttle.refused("a", at(2)).blocks, "said once");
        assert_eq!(
            throttle.ask(|| "a".to_owned(), || [Some(BAD)], at(12)),
            Door::Closed(Duration::from_secs(50))
        );
        assert_eq!(
            throttle.ask(|| "a".to_owned(), || [None], at(12)),
            Door::Closed(Duration::from_secs(50))
        );
        assert_eq!(
            throttle.ask(|| "a".to_owned(), || [Some(GOOD)], at(12)),
            Door::Open
        );
        assert_eq!(
            throttle.ask(|| "b".to_owned(), || [Some(BAD)], at(12)),
            Door::Open
        );
        assert_eq!(
            throttle.ask(|| "a".to_owned(), || [Some(BAD)], at(62)),
            Door::Open
        );
    }

    #[test]
    fn refusals_far_apart_block_nobody() {
        let start = Instant::now();
        let mut throttle = Throttle::new(Some(RateSpec::new(2, 10, 60)), start);
        for n in 0..50 {
            let now = start + Duration::from_secs(11 * n);
            assert!(!throttle.refused("a", now).blocks);
        }
        let mut off = Throttle::new(None, start);
        for _ in 0..1000 {
            assert!(!off.refused("a", start).blocks);
        }
    }

    #[test]
    fn memory_is_bounded() {
        let start = Instant::now();
        let mut throttle = Throttle::new(Some(RateSpec::new(1, 10, 60)), start);
        for n in 0..3 * MAX_SOURCES {
            let now = start + Duration::from_millis(n as u64);
            throttle.refused(&n.to_string(), now);
            throttle.accepted(&n.to_string(), GOOD, now);
        }
        assert_eq!(throttle.sources.len(), MAX_SOURCES);
        assert_eq!(throttle.known.len(), MAX_KNOWN);
        let last = (3 * MAX_SOURCES - 1).to_string();
        let now = start + Duration::from_secs(13);
        assert!(matches!(
            throttle.ask(|| last, || [Some(BAD)], now),
            Door::Closed(_)
        ));
    }

    #[test]
    fn lines_come_to_an_end_and_are_counted() {
        let start = Instant::now();
        let mut throttle = Throttle::new(None, start);
        let mut tell = |of, now| throttle.may_tell(of, now);
        let told = (0..1000)
            .filter(|_| tell(Stranger::Unasked, start).is_some())
            .count();
        assert_eq!(told, 200);
        assert_eq!(tell(Stranger::Refused, start), Some(0), "hides no refusal");
        let later = start + Duration::from_secs(1);
        assert_eq!(tell(Stranger::Unasked, later), Some(800));
        assert_eq!(tell(Stranger::Unasked, later), Some(0));
    }
}
