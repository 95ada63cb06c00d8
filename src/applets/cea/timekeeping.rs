//! What time it is at least, on hosts that boot in the past (spec/operations.md 16.1, spec/swarm.md COM-8).
//!
//! The floor is the newest of: the times of our own files, the beginning of the certificate in use, what we have written down ourselves, and
//! what a trusted dispatcher says. The last one counts only while the system's clock is known to be behind, and never beyond the end of that
//! dispatcher's certificate: a dispatcher whose clock is wrong must not take a sound host with it.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, UNIX_EPOCH};

use crate::applets::Context;
use crate::core::clock::{self, Clock};
use crate::core::config::AgentConfig;
use crate::core::durable;
use crate::core::logging::Action;
use crate::core::paths::Platform;
use crate::core::secure_open::{self, Trust};
use crate::core::types::DispatcherId;

/// The floor is written down at most this often without a reason.
const PAUSE: Duration = Duration::from_secs(3600);
/// A clock that is set back by a moment (NTP does that) is not behind; only from so many seconds on is somebody else believed.
const NOTICEABLE_LAG: i64 = 60;
/// A rise that is worth a line in the log, seconds.
const NOTABLE: i64 = 3600;

/// The clock of a process, its floor taken from what lies on disk.
pub(super) fn clock(context: &Context, config: &AgentConfig) -> Clock {
    let clock = Clock::with_floor_from(
        &context.time,
        &[
            &config.cert,
            &config.ca,
            &config.trusted_dispatchers_path,
            &config.source,
        ],
    );
    if let Some(unix) = written_down(&config.clock_floor()) {
        clock.raise(unix);
    }
    clock
}

fn written_down(path: &Path) -> Option<i64> {
    let text = secure_open::read_trusted(path, 64, Trust::State).ok()?;
    clock::parse_iso(str::from_utf8(&text).ok()?.trim_end())
}

/// Who says what time it is, and until when we believe it.
pub(super) struct Witness<'a> {
    pub(super) dispatcher: &'a DispatcherId,
    /// The `Date` of the request, if there is one.
    pub(super) date: Option<i64>,
    /// End of the dispatcher's certificate.
    pub(super) not_after: i64,
}

impl Witness<'_> {
    /// The latest time that a rise may reach; `None`: it says nothing that we do not know.
    fn rise(&self, clock: &Clock) -> Option<i64> {
        let said = self.date?.min(self.not_after);
        (clock.lag() >= NOTICEABLE_LAG && said > clock.now()).then_some(said)
    }

    /// While our clock is sound: what both of us say holds, should it jump back later. An hour less, or a clock that is set right by a
    /// second would count as one that is behind. Our clock alone says nothing: it may be ahead and be set right.
    fn remember(&self, clock: &Clock) {
        if self.date.is_some() {
            clock.raise(self.safe_floor(clock).saturating_sub(NOTABLE));
        }
    }

    /// What may be written down: no later than what any of the two of us believes.
    fn safe_floor(&self, clock: &Clock) -> i64 {
        let now = clock.now().min(self.not_after);
        self.date.map_or(now, |date| date.min(now))
    }
}

/// The `Date` of a request in the one form that HTTP still writes.
pub(super) fn date_of(headers: &hyper::HeaderMap) -> Option<i64> {
    let text = headers.get(hyper::header::DATE)?.to_str().ok()?;
    let time = httpdate::parse_http_date(text).ok()?;
    i64::try_from(time.duration_since(UNIX_EPOCH).ok()?.as_secs()).ok()
}

/// Remembers when the floor was last written down; a start counts as that, so that a host that only answers changes nothing on its disk.
pub(super) struct Timekeeper {
    written: Mutex<Instant>,
}

impl Timekeeper {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            written: Mutex::new(now),
        }
    }

    /// A trusted dispatcher has called. Whether the floor should be written down: an hour has passed, or it has just risen by much.
    pub(super) fn heard(
        &self,
        clock: &Clock,
        witness: &Witness<'_>,
        platform: Platform,
        now: Instant,
    ) -> bool {
        witness.remember(clock);
        let mut notable = false;
        if let Some(unix) = witness.rise(clock) {
            notable = unix - clock.now() >= NOTABLE;
            clock.raise(unix);
            if notable {
                Action::new("clock-floor")
                    .field("DISPATCHER", witness.dispatcher)
                    .field("TIME", clock::iso(unix))
                    .info();
            }
        }
        // Flash does not like to be written every hour; there the floor is kept when something else is written anyway.
        if platform == Platform::VolatileVar {
            return false;
        }
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        let due = notable || now.duration_since(*written) >= PAUSE;
        if due {
            *written = now;
        }
        due
    }
}

/// What to write down, made while the witness is there.
pub(super) struct Note {
    path: PathBuf,
    unix: i64,
}

impl Note {
    pub(super) fn new(config: &AgentConfig, clock: &Clock, witness: &Witness<'_>) -> Self {
        Self {
            path: config.clock_floor(),
            unix: witness.safe_floor(clock),
        }
    }

    /// Writes the floor down unless a later one stands there, or (without `at_once`) one of the last hour.
    pub(super) fn write(&self, at_once: bool) {
        let pause = if at_once { 1 } else { NOTABLE };
        if written_down(&self.path).is_some_and(|old| self.unix < old.saturating_add(pause)) {
            return;
        }
        let text = format!("{}\n", clock::iso(self.unix));
        if let Err(error) = durable::replace(&self.path, text.as_bytes(), 0o640) {
            Action::new("clock-floor").field("ERROR", error).warning();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::clock::TimeSource;
    use crate::core::paths::Paths;

    const YEAR: i64 = 365 * 86_400;

    fn behind(dir: &Path, floor: i64) -> Clock {
        let file = dir.join("offset");
        std::fs::write(&file, "-4000000000").unwrap();
        Clock::new(TimeSource::Shifted(file), floor)
    }

    #[test]
    fn a_dispatcher_moves_only_a_clock_that_is_behind_and_not_beyond_its_own_end() {
        let dir = tempfile::tempdir().unwrap();
        let id = DispatcherId::new("main").unwrap();
        let now = TimeSource::System.now();
        let witness = |date, not_after| Witness {
            dispatcher: &id,
            date: Some(date),
            not_after,
        };
        let began = Instant::now();
        let keeper = Timekeeper::new(began);
        let on = |clock: &Clock, w: Witness<'_>, platform| keeper.heard(clock, &w, platform, began);
        let tell = |clock: &Clock, w: Witness<'_>| on(clock, w, Platform::VolatileVar);
        let clock = behind(dir.path(), now - YEAR);
        assert!(
            !tell(&clock, witness(now, now + YEAR)),
            "nothing is due on flash"
        );
        assert_eq!(clock.now(), now);
        tell(&clock, witness(now - 100, now + YEAR));
        assert_eq!(clock.now(), now, "never back");
        tell(&clock, witness(now + 9 * YEAR, now + YEAR));
        assert_eq!(clock.now(), now + YEAR);
        let clock = behind(dir.path(), now - YEAR);
        assert!(on(&clock, witness(now, now + YEAR), Platform::Standard));

        for floor in [now - YEAR, now + 30] {
            let sound = Clock::new(TimeSource::System, floor);
            tell(&sound, witness(now + 9 * YEAR, now + 10 * YEAR));
            assert!((sound.now() - now).abs() < 60, "a sound clock is not moved");
        }
        let sound = Clock::new(TimeSource::System, now - YEAR);
        tell(&sound, witness(now + 9 * YEAR, now + 10 * YEAR));
        assert!((sound.now() - now).abs() < 60);
        let note = |w: Witness<'_>| w.safe_floor(&sound);
        assert!((note(witness(now + 9 * YEAR, now + 10 * YEAR)) - now).abs() < 60);
        assert_eq!(note(witness(now - YEAR, now + YEAR)), now - YEAR);
        assert_eq!(note(witness(now, now - 5)), now - 5);
    }

    #[test]
    fn a_clock_that_jumps_back_stays_where_both_have_seen_it() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("offset");
        std::fs::write(&file, "0").unwrap();
        let clock = Clock::new(TimeSource::Shifted(file.clone()), 0);
        let id = DispatcherId::new("main").unwrap();
        let now = TimeSource::System.now();
        let say = |date: Option<i64>| {
            let witness = Witness {
                dispatcher: &id,
                date,
                not_after: now + YEAR,
            };
            let began = Instant::now();
            Timekeeper::new(began).heard(&clock, &witness, Platform::VolatileVar, began);
        };
        let floor = clock.floor();
        say(None);
        assert_eq!(clock.floor(), floor, "our own word is not enough");
        say(Some(now - YEAR));
        std::fs::write(&file, (-2 * YEAR).to_string()).unwrap();
        assert_eq!(clock.now(), now - YEAR - NOTABLE, "the earlier one counts");
        std::fs::write(&file, "0").unwrap();
        say(Some(now + 9 * YEAR));
        std::fs::write(&file, "-4000000000").unwrap();
        assert!((clock.now() - now + NOTABLE).abs() < 60);
        say(Some(now));
        assert_eq!(clock.now(), now, "and then it is told");
    }

    #[test]
    fn the_floor_is_written_once_an_hour_and_never_lower() {
        let dir = tempfile::tempdir().unwrap();
        let note = |unix| Note {
            path: dir.path().join("clock"),
            unix,
        };
        let stands = || written_down(&dir.path().join("clock"));
        assert_eq!(stands(), None);
        for (unix, at_once, expected) in [
            (1_900_000_000, false, 1_900_000_000),
            (1_900_000_100, false, 1_900_000_000),
            (1_900_000_100, true, 1_900_000_100),
            (1_900_000_000, true, 1_900_000_100),
            (1_900_003_700, false, 1_900_003_700),
        ] {
            note(unix).write(at_once);
            assert_eq!(stands(), Some(expected), "{unix} {at_once}");
        }
        std::fs::write(dir.path().join("clock"), "next week").unwrap();
        assert_eq!(stands(), None);
        let began = Instant::now();
        let keeper = Timekeeper::new(began);
        let id = DispatcherId::new("main").unwrap();
        let witness = Witness {
            dispatcher: &id,
            date: None,
            not_after: 0,
        };
        let clock = Clock::system(0);
        let due = |after| keeper.heard(&clock, &witness, Platform::Standard, began + after);
        assert!(!due(Duration::ZERO), "a start changes nothing");
        assert!(due(PAUSE));
        assert!(!due(PAUSE + Duration::from_secs(1)));
        assert!(due(2 * PAUSE));
        let flash = Platform::VolatileVar;
        assert!(!keeper.heard(&clock, &witness, flash, began + 9 * PAUSE));
    }

    #[test]
    fn a_floor_that_was_written_down_survives_a_start() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::new(dir.path(), Platform::Standard);
        let mut config = AgentConfig::defaults(&paths, &dir.path().join("agent.conf"));
        config.cert_staging_path = dir.path().join("agent.crt.staged");
        let offset = dir.path().join("offset");
        std::fs::write(&offset, "-4000000000").unwrap();
        let context = Context {
            program: "cea",
            env: std::collections::BTreeMap::new(),
            paths,
            time: TimeSource::Shifted(offset),
        };
        durable::replace(&config.clock_floor(), b"2031-01-02T03:04:05Z\n", 0o640).unwrap();
        assert_eq!(clock(&context, &config).iso_now(), "2031-01-02T03:04:05Z");
    }

    #[test]
    fn dates_of_requests_are_read() {
        let date = |text: &str| {
            let mut headers = hyper::HeaderMap::new();
            headers.insert(hyper::header::DATE, text.parse().unwrap());
            date_of(&headers)
        };
        assert_eq!(date("Sun, 06 Nov 1994 08:49:37 GMT"), Some(784_111_777));
        for bad in ["", "yesterday", "1994-11-06T08:49:37Z"] {
            assert_eq!(date(bad), None, "{bad:?}");
        }
        assert_eq!(date_of(&hyper::HeaderMap::new()), None);
    }
}
