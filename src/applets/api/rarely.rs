//! Log lines that strangers can cause: one per second at most, and how many were left out.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

const PAUSE: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
pub(super) struct Rarely(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    last: Option<Instant>,
    occurred: u64,
}

impl Rarely {
    /// How often it has happened since the last line, this time included, if there may be a line now.
    pub(super) fn happened(&self, now: Instant) -> Option<u64> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.occurred += 1;
        let due = state
            .last
            .is_none_or(|last| now.saturating_duration_since(last) >= PAUSE);
        due.then(|| {
            state.last = Some(now);
            std::mem::take(&mut state.occurred)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_is_told_at_once_and_the_rest_as_a_number() {
        let rarely = Rarely::default();
        let start = Instant::now();
        assert_eq!(rarely.happened(start), Some(1));
        for _ in 0..9 {
            assert_eq!(rarely.happened(start + PAUSE / 2), None);
        }
        assert_eq!(rarely.happened(start + PAUSE), Some(10));
    }
}
