//! When the next pass is: every so often, spread at random so that a fleet of dispatchers, or everything that a power cut has restarted,
//! does not begin at the same moment.

use std::time::Duration;

use crate::core::types;

/// Shortest pause, whatever the configuration says.
const LEAST: Duration = Duration::from_secs(1);

/// A pause and its spread.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Schedule {
    /// Mean pause between two passes.
    pub every: Duration,
}

impl Schedule {
    /// Pause before the first pass: at most a tenth of the interval, at most five minutes.
    pub fn first(&self) -> Duration {
        scale(
            (self.every / 10).min(Duration::from_secs(300)),
            random_share(),
        )
    }

    /// Pause before each further pass: three quarters to five quarters of the interval.
    pub fn next(&self) -> Duration {
        (self.every * 3 / 4 + scale(self.every / 2, random_share())).max(LEAST)
    }
}

/// 0 to 255 of 256.
fn random_share() -> u8 {
    // Without randomness everybody begins at the same time, which is no reason not to begin.
    types::random::<1>().map_or(128, |[byte]| byte)
}

fn scale(time: Duration, share: u8) -> Duration {
    time.mul_f64(f64::from(share) / 256.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_are_spread_and_bounded() {
        let schedule = Schedule {
            every: Duration::from_secs(14_400),
        };
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..200 {
            assert!(schedule.first() <= Duration::from_secs(300));
            let next = schedule.next();
            assert!(next >= Duration::from_secs(10_800) && next <= Duration::from_secs(18_000));
            seen.insert(next);
        }
        assert!(seen.len() > 50);
        let none = Schedule {
            every: Duration::ZERO,
        };
        assert_eq!(none.next(), LEAST);
    }
}
