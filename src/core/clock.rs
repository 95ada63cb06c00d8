//! The wall clock, with a floor for hosts that boot in the past (spec/operations.md 16.1 "Clock", spec/swarm.md COM-8).
//!
//! Certificates, expiry and time stamps take the time from here; durations and deadlines use the monotonic clock instead.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::pki_types::UnixTime;
use time::OffsetDateTime;

/// When this binary was made, seconds since 1970: no correct clock shows less. 0 in builds that were not told.
const BUILT: i64 = match option_env!("CTRL_EXEC_BUILD_EPOCH") {
    Some(text) => match i64::from_str_radix(text, 10) {
        Ok(unix) => unix,
        Err(_) => panic!("CTRL_EXEC_BUILD_EPOCH must be whole seconds since 1970"),
    },
    None => 0,
};

/// Where the time of day comes from. Made once in `main` and handed down.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub enum TimeSource {
    /// The system's clock.
    #[default]
    System,
    /// The system's clock plus the whole seconds that stand in a file, looked at each time: for rehearsing what happens in a year's time
    /// (`CTRL_EXEC_CLOCK_OFFSET_FILE`). A file that cannot be read counts as 0.
    Shifted(PathBuf),
}

impl TimeSource {
    /// Seconds since 1970, without any floor.
    pub fn now(&self) -> i64 {
        let system = unix_seconds(SystemTime::now());
        match self {
            Self::System => system,
            Self::Shifted(file) => system.saturating_add(offset_in(file)),
        }
    }
}

fn offset_in(file: &Path) -> i64 {
    std::fs::read_to_string(file)
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(0)
}

/// A number is never half changed, whatever panics elsewhere.
fn locked(floor: &Mutex<i64>) -> MutexGuard<'_, i64> {
    floor.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Tells the time. Cheap to clone; clones share their floor.
#[derive(Clone, Debug)]
pub struct Clock(Kind);

#[derive(Clone, Debug)]
enum Kind {
    Running {
        source: TimeSource,
        /// Not an atomic: 32-bit MIPS has none of 64 bits.
        floor: Arc<Mutex<i64>>,
    },
    Fixed(i64),
}

impl Clock {
    /// The time of `source`, but never earlier than `floor_unix` (seconds since 1970) nor than the making of this binary.
    pub fn new(source: TimeSource, floor_unix: i64) -> Self {
        Self(Kind::Running {
            source,
            floor: Arc::new(Mutex::new(floor_unix.max(BUILT))),
        })
    }

    /// The system's clock, but never earlier than `floor_unix`.
    pub fn system(floor_unix: i64) -> Self {
        Self::new(TimeSource::System, floor_unix)
    }

    /// A clock that stands still at `unix` seconds.
    pub fn fixed(unix: i64) -> Self {
        Self(Kind::Fixed(unix))
    }

    /// The time of `source` with the newest modification time of `paths` as floor: what we wrote ourselves was not written in the future.
    ///
    /// Paths that cannot be read do not count. Hand in only files that nobody else may touch: whoever sets the floor can make
    /// certificates expire, though never make an expired one valid.
    pub fn with_floor_from(source: &TimeSource, paths: &[&Path]) -> Self {
        let modified = |path: &&Path| {
            let time = std::fs::metadata(path).ok()?.modified().ok()?;
            Some(unix_seconds(time))
        };
        let floor = paths.iter().filter_map(modified).max().unwrap_or(0);
        Self::new(source.clone(), floor)
    }

    /// Seconds since 1970.
    pub fn now(&self) -> i64 {
        match &self.0 {
            Kind::Running { source, floor } => source.now().max(*locked(floor)),
            Kind::Fixed(unix) => *unix,
        }
    }

    /// Whether the clock of the system is behind the floor, so that [`now`](Self::now) is only a lower bound of the real time.
    pub fn is_behind(&self) -> bool {
        match &self.0 {
            Kind::Running { source, floor } => source.now() < *locked(floor),
            Kind::Fixed(_) => false,
        }
    }

    /// Seconds by which the clock of the system is behind the floor; 0 if it is not.
    pub fn lag(&self) -> i64 {
        match &self.0 {
            Kind::Running { source, floor } => locked(floor).saturating_sub(source.now()).max(0),
            Kind::Fixed(_) => 0,
        }
    }

    /// The time that this clock never falls below.
    pub fn floor(&self) -> i64 {
        match &self.0 {
            Kind::Running { floor, .. } => *locked(floor),
            Kind::Fixed(unix) => *unix,
        }
    }

    /// It is at least `unix` by now, as somebody says whom we believe. Holds for all clones; never lowers the floor.
    pub fn raise(&self, unix: i64) {
        if let Kind::Running { floor, .. } = &self.0 {
            let mut floor = locked(floor);
            *floor = unix.max(*floor);
        }
    }

    /// [`now`](Self::now) as `YYYY-MM-DDTHH:MM:SSZ`.
    pub fn iso_now(&self) -> String {
        iso(self.now())
    }
}

impl rustls::time_provider::TimeProvider for Clock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(unix_time(self.now()))
    }
}

/// Seconds since 1970 as rustls takes them; before 1970 counts as 1970.
pub fn unix_time(unix: i64) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(unix).unwrap_or(0)))
}

fn unix_seconds(time: SystemTime) -> i64 {
    let seconds = |d: Duration| i64::try_from(d.as_secs()).unwrap_or(i64::MAX);
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => seconds(after),
        Err(before) => -seconds(before.duration()),
    }
}

/// The calendar time in UTC of `unix` seconds, held within the years that the formats can write.
pub fn calendar(unix: i64) -> OffsetDateTime {
    const FIRST: i64 = -62_167_219_200; // 0000-01-01T00:00:00Z
    const LAST: i64 = 253_402_300_799; // 9999-12-31T23:59:59Z
    OffsetDateTime::from_unix_timestamp(unix.clamp(FIRST, LAST))
        .unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

/// `YYYY-MM-DDTHH:MM:SSZ`, the only form that the original reads back (spec/dispatcher.md 21.9).
pub fn iso(unix: i64) -> String {
    let t = calendar(unix);
    format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}Z",
        t.year(),
        u8::from(t.month()),
        t.day(),
        t.hour(),
        t.minute(),
        t.second()
    )
}

/// `Sun, 06 Nov 1994 08:49:37 GMT`, as HTTP has it (RFC 9110 5.6.7).
pub fn http_date(unix: i64) -> String {
    let seconds = u64::try_from(unix.clamp(0, 253_402_300_799)).unwrap_or(0);
    httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(seconds))
}

/// Reads exactly the form that [`iso`] writes; anything else is `None`.
pub fn parse_iso(text: &str) -> Option<i64> {
    const FORM: &[u8] = b"0000-00-00T00:00:00Z";
    let bytes = text.as_bytes();
    let fits = bytes.len() == FORM.len()
        && bytes.iter().zip(FORM).all(|(b, form)| match form {
            b'0' => b.is_ascii_digit(),
            other => b == other,
        });
    if !fits {
        return None;
    }
    let number = |from: usize, to: usize| text.get(from..to)?.parse::<u16>().ok();
    let small = |from: usize| u8::try_from(number(from, from + 2)?).ok();
    unix_of(
        i32::from(number(0, 4)?),
        small(5)?,
        small(8)?,
        (small(11)?, small(14)?, small(17)?),
    )
}

/// Seconds since 1970 of a calendar time in UTC; `None` if there is no such day or time.
pub fn unix_of(year: i32, month: u8, day: u8, (hour, minute, second): (u8, u8, u8)) -> Option<i64> {
    let month = time::Month::try_from(month).ok()?;
    let date = time::Date::from_calendar_date(year, month, day).ok()?;
    let time = time::Time::from_hms(hour, minute, second).ok()?;
    Some(OffsetDateTime::new_utc(date, time).unix_timestamp())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn time_does_not_fall_below_the_floor() {
        let floor = 4_102_444_800; // 2100
        let clock = Clock::system(floor);
        assert_eq!(clock.now(), floor);
        assert!(clock.is_behind());
        assert!(Clock::system(0).now() > 1_700_000_000);
        assert!(!Clock::system(0).is_behind());
    }

    #[test]
    fn the_floor_is_the_newest_readable_file() {
        let dir = tempfile::tempdir().unwrap();
        let (old, new) = (dir.path().join("old"), dir.path().join("new"));
        for (path, unix) in [(&old, 1_000_u64), (&new, 4_102_444_800)] {
            let file = std::fs::File::create(path).unwrap();
            file.set_modified(UNIX_EPOCH + Duration::from_secs(unix))
                .unwrap();
        }
        let from = |paths: &[&Path]| Clock::with_floor_from(&TimeSource::System, paths);
        let clock = from(&[&old, &new, &dir.path().join("absent")]);
        assert_eq!(clock.now(), 4_102_444_800);
        assert!(!from(&[&old]).is_behind());
    }

    #[test]
    fn a_raised_floor_holds_for_every_clone_and_never_falls() {
        let clock = Clock::new(TimeSource::System, 0);
        let clone = clock.clone();
        clock.raise(4_102_444_800);
        clock.raise(1);
        assert_eq!(clone.now(), 4_102_444_800);
        assert!(clone.is_behind());
    }

    #[test]
    fn a_shifted_clock_follows_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("offset");
        let clock = Clock::new(TimeSource::Shifted(file.clone()), 0);
        let real = TimeSource::System.now();
        assert!((clock.now() - real).abs() < 10, "no file: no shift");
        std::fs::write(&file, "86400\n").unwrap();
        assert!((clock.now() - real - 86_400).abs() < 10);
        std::fs::write(&file, "-4000000000").unwrap();
        assert_eq!(clock.now(), BUILT.max(0), "the floor holds");
        std::fs::write(&file, "soon").unwrap();
        assert!((clock.now() - real).abs() < 10);
    }

    #[test]
    fn iso_form_is_exact() {
        assert_eq!(iso(0), "1970-01-01T00:00:00Z");
        assert_eq!(iso(1_843_921_680), "2028-06-06T16:28:00Z");
        assert_eq!(Clock::fixed(951_827_696).iso_now(), "2000-02-29T12:34:56Z");
        for bad in [
            "",
            "2028-06-06",
            "2028-06-06T16:28:00",
            "2028-06-06 16:28:00Z",
            "2028-06-06T16:28:00+00:00",
            "2028-06-06T16:28:00.0Z",
            "2028-02-30T00:00:00Z",
            "2028-06-06T24:00:00Z",
            "+028-06-06T16:28:00Z",
            "2028-06-06T16:28:00Z\n",
        ] {
            assert_eq!(parse_iso(bad), None, "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn iso_round_trips(unix in 0_i64..253_402_300_799) {
            prop_assert_eq!(parse_iso(&iso(unix)), Some(unix));
        }

        #[test]
        fn any_text_and_any_second_is_survived(text in "\\PC{0,30}", unix in any::<i64>()) {
            let _ = parse_iso(&text);
            prop_assert!(parse_iso(&iso(unix)).is_some());
        }
    }
}
