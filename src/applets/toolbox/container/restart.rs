//! What follows from the end of a program: a pure decision.

use std::fmt;
use std::time::{Duration, Instant};

/// Status of a failure without a better word.
pub(super) const FAILURE: u8 = 1;
/// `EX_USAGE` and `EX_CONFIG`: the next start would end in the same way.
const HOPELESS: [u8; 2] = [64, 78];
/// Pause after the first crash; it doubles with every further one.
const PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// Who has run for so long is no longer held responsible for what was before.
const GOOD_RUN: Duration = Duration::from_secs(120);
/// Crashes without a good run in between; then it is for whoever restarts containers.
const MOST_CRASHES: u32 = 8;

/// How a program ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Ended {
    Status(u8),
    Signal(u8),
}

impl Ended {
    /// As a shell would tell it.
    pub(super) fn status(self) -> u8 {
        match self {
            Self::Status(code) => code,
            Self::Signal(number) => 128_u8.saturating_add(number),
        }
    }
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status(code) => write!(f, "status {code}"),
            Self::Signal(number) => write!(f, "signal {number}"),
        }
    }
}

/// What is to be done.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Next {
    Restart(Duration),
    /// The container ends too.
    End,
}

/// What a program has been through.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Record {
    began: Option<Instant>,
    crashes: u32,
}

impl Record {
    pub(super) fn started(&mut self, now: Instant) {
        self.began = Some(now);
    }

    /// It has ended, and nobody had told it to.
    pub(super) fn ended(&mut self, ended: Ended, is_main: bool, now: Instant) -> Next {
        match ended {
            Ended::Status(0) if is_main => return Next::End,
            Ended::Status(code) if HOPELESS.contains(&code) => return Next::End,
            _ => {}
        }
        let ran = self.began.map(|began| now.duration_since(began));
        if ran.is_some_and(|ran| ran >= GOOD_RUN) {
            self.crashes = 0;
        }
        self.crashes += 1;
        if self.crashes >= MOST_CRASHES {
            return Next::End;
        }
        let pause = PAUSE * 2_u32.pow(self.crashes - 1);
        Next::Restart(pause.min(LONGEST_PAUSE))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crash_is_answered_with_longer_and_longer_pauses_and_then_given_up() {
        let mut record = Record::default();
        let now = Instant::now();
        let mut pauses = Vec::new();
        let last = loop {
            record.started(now);
            match record.ended(Ended::Signal(11), true, now) {
                Next::Restart(pause) => pauses.push(pause.as_secs()),
                Next::End => break Ended::Signal(11).status(),
            }
        };
        assert_eq!(pauses, [1, 2, 4, 8, 16, 30, 30]);
        assert_eq!(last, 139);
    }

    #[test]
    fn a_good_run_makes_up_for_what_was_before() {
        let mut record = Record::default();
        let mut now = Instant::now();
        for _ in 0..20 {
            record.started(now);
            now += GOOD_RUN;
            let next = record.ended(Ended::Status(1), true, now);
            assert_eq!(next, Next::Restart(PAUSE));
        }
    }

    #[test]
    fn what_another_start_would_not_mend_ends_the_container() {
        let now = Instant::now();
        for code in HOPELESS {
            let next = Record::default().ended(Ended::Status(code), false, now);
            assert_eq!(next, Next::End, "{code}");
        }
        // The main program has done what it was for; another one has no reason to end by itself.
        let done = Ended::Status(0);
        assert_eq!(Record::default().ended(done, true, now), Next::End);
        assert_eq!(
            Record::default().ended(done, false, now),
            Next::Restart(PAUSE)
        );
    }
}
