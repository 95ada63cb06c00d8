//! When what is due: the course of one run as a pure function of time (spec/executor.md 10).
//!
//! ```text
//! Running --main ended--> Draining --both streams closed, or the grace is over--> Finish
//!    |                        ^
//!    '--stop--> Stopping -----'  (nothing left, or SIGKILL after the grace)
//! ```

use std::time::{Duration, Instant};

use crate::core::exec::frame::Kind;

/// Between two looks at whether anything of a run that is being ended is left.
const LOOK: Duration = Duration::from_millis(25);

/// Why a run is ended before its time.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Stop {
    Timeout,
    Disconnect,
    Cancelled,
    Shutdown,
}

impl Stop {
    pub(super) fn kind(self) -> Kind {
        match self {
            Self::Timeout => Kind::Timeout,
            Self::Disconnect => Kind::Disconnect,
            Self::Cancelled => Kind::Cancelled,
            Self::Shutdown => Kind::Shutdown,
        }
    }
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Effect {
    Nothing,
    /// SIGTERM to everything.
    Terminate,
    /// SIGKILL to everything.
    Kill,
    Finish,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Phase {
    Running { deadline: Option<Instant> },
    Stopping { kill_at: Instant, ended: bool },
    Draining { until: Instant },
}

#[derive(Clone, Debug)]
pub(super) struct Course {
    phase: Phase,
    stop: Option<Stop>,
    kill_grace: Duration,
    drain_grace: Duration,
}

/// The sum, or a century from now: a deadline never overflows.
pub(super) fn after(now: Instant, wait: Duration) -> Instant {
    const CENTURY: Duration = Duration::from_secs(100 * 365 * 86_400);
    now.checked_add(wait.min(CENTURY)).unwrap_or(now)
}

/// The shortest of them that is not zero; zero means none.
pub(super) fn shortest(timeouts: &[Option<Duration>]) -> Option<Duration> {
    timeouts
        .iter()
        .flatten()
        .copied()
        .filter(|timeout| !timeout.is_zero())
        .min()
}

impl Course {
    pub(super) fn new(
        now: Instant,
        timeout: Option<Duration>,
        kill_grace: Duration,
        drain_grace: Duration,
    ) -> Self {
        Self {
            phase: Phase::Running {
                deadline: timeout.map(|timeout| after(now, timeout)),
            },
            stop: None,
            kill_grace,
            drain_grace,
        }
    }

    /// Why the run was ended, if it was.
    pub(super) fn stopped(&self) -> Option<Stop> {
        self.stop
    }

    /// Somebody wants the run to end. After its end this only cuts the waiting for output short.
    pub(super) fn stop(&mut self, why: Stop, now: Instant) -> Effect {
        match &mut self.phase {
            Phase::Running { .. } => {
                self.stop = Some(why);
                self.phase = Phase::Stopping {
                    kill_at: after(now, self.kill_grace),
                    ended: false,
                };
                Effect::Terminate
            }
            Phase::Stopping { .. } => Effect::Nothing,
            Phase::Draining { until } => {
                *until = now.min(*until);
                Effect::Nothing
            }
        }
    }

    pub(super) fn main_ended(&mut self, now: Instant) {
        match &mut self.phase {
            Phase::Running { .. } => {
                self.phase = Phase::Draining {
                    until: after(now, self.drain_grace),
                };
            }
            Phase::Stopping { ended, .. } => *ended = true,
            Phase::Draining { .. } => {}
        }
    }

    /// What is due now. `closed`: both output streams are at their end; `empty`: no process of the run is left (asked only when it
    /// matters).
    pub(super) fn due(
        &mut self,
        now: Instant,
        closed: bool,
        empty: impl FnOnce() -> bool,
    ) -> Effect {
        match self.phase {
            Phase::Running {
                deadline: Some(deadline),
            } if now >= deadline => self.stop(Stop::Timeout, now),
            Phase::Running { .. } => Effect::Nothing,
            Phase::Stopping { kill_at, ended } => {
                let gone = ended && empty();
                if !gone && now < kill_at {
                    return Effect::Nothing;
                }
                self.phase = Phase::Draining {
                    until: after(now, self.drain_grace),
                };
                if gone { Effect::Nothing } else { Effect::Kill }
            }
            Phase::Draining { until } if closed || now >= until => Effect::Finish,
            Phase::Draining { .. } => Effect::Nothing,
        }
    }

    /// How long nothing can be due. `None`: until something happens.
    pub(super) fn patience(&self, now: Instant) -> Option<Duration> {
        let left = |until: Instant| until.saturating_duration_since(now);
        match self.phase {
            Phase::Running { deadline } => deadline.map(left),
            Phase::Stopping { kill_at, ended } if ended => Some(left(kill_at).min(LOOK)),
            Phase::Stopping { kill_at, .. } => Some(left(kill_at)),
            Phase::Draining { until } => Some(left(until)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn course(timeout: Option<u64>) -> (Course, Instant) {
        let now = Instant::now();
        let timeout = timeout.map(Duration::from_secs);
        (Course::new(now, timeout, 5 * SECOND, SECOND), now)
    }

    #[test]
    fn the_shortest_timeout_counts_and_zero_is_none() {
        let s = |n| Some(Duration::from_secs(n));
        assert_eq!(shortest(&[s(300), None, s(20)]), s(20));
        assert_eq!(shortest(&[s(300), s(0), None]), s(300));
        assert_eq!(shortest(&[None, s(0)]), None);
        let now = Instant::now();
        assert!(after(now, Duration::MAX) > after(now, 1000 * SECOND));
    }

    #[test]
    fn a_run_is_over_when_its_streams_are_closed() {
        let (mut course, now) = course(None);
        assert_eq!(course.patience(now), None);
        assert_eq!(course.due(now, true, || true), Effect::Nothing);
        course.main_ended(now);
        assert_eq!(course.due(now, false, || true), Effect::Nothing);
        assert_eq!(course.patience(now), Some(SECOND));
        assert_eq!(course.due(now, true, || false), Effect::Finish);
        assert_eq!(course.stopped(), None);
    }

    #[test]
    fn a_child_that_holds_the_output_is_waited_for_only_so_long() {
        let (mut course, now) = course(Some(3));
        course.main_ended(now);
        let nearly = now + SECOND - Duration::from_millis(1);
        assert_eq!(course.due(nearly, false, || false), Effect::Nothing);
        assert_eq!(course.due(now + SECOND, false, || false), Effect::Finish);
        assert_eq!(course.stopped(), None);
    }

    #[test]
    fn a_timeout_asks_then_kills_then_drains() {
        let (mut course, now) = course(Some(3));
        assert_eq!(course.patience(now), Some(3 * SECOND));
        assert_eq!(
            course.due(now + 2 * SECOND, false, || false),
            Effect::Nothing
        );
        let at = now + 3 * SECOND;
        assert_eq!(course.due(at, false, || false), Effect::Terminate);
        assert_eq!(course.stopped(), Some(Stop::Timeout));
        assert_eq!(course.stop(Stop::Shutdown, at), Effect::Nothing);
        assert_eq!(course.stopped(), Some(Stop::Timeout));
        assert_eq!(course.patience(at), Some(5 * SECOND));
        course.main_ended(at + SECOND);
        assert_eq!(course.patience(at + SECOND), Some(LOOK));
        assert_eq!(course.due(at + SECOND, true, || false), Effect::Nothing);
        assert_eq!(course.due(at + 5 * SECOND, true, || false), Effect::Kill);
        assert_eq!(course.due(at + 5 * SECOND, true, || true), Effect::Finish);
    }

    #[test]
    fn a_run_that_obeys_is_not_killed() {
        let (mut course, now) = course(None);
        assert_eq!(course.stop(Stop::Cancelled, now), Effect::Terminate);
        course.main_ended(now);
        assert_eq!(course.due(now, false, || true), Effect::Nothing);
        assert_eq!(course.due(now, true, || true), Effect::Finish);
        assert_eq!(course.stopped(), Some(Stop::Cancelled));
    }

    #[test]
    fn a_stop_after_the_end_only_ends_the_waiting() {
        let (mut course, now) = course(None);
        course.main_ended(now);
        assert_eq!(course.stop(Stop::Shutdown, now), Effect::Nothing);
        assert_eq!(course.due(now, false, || false), Effect::Finish);
        assert_eq!(course.stopped(), None);
    }
}
