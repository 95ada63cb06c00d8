//! Random choices that can be played again: what a test calls fate.

/// `CTRL_EXEC_TEST_SEED` plays a run again.
pub const SEED: &str = "CTRL_EXEC_TEST_SEED";

/// Numbers that look random (splitmix64) and follow from a seed.
#[derive(Debug)]
pub struct Fate(u64);

impl Fate {
    /// With the seed of the environment, else with one of its own; says which.
    pub fn new(test: &str) -> Self {
        let given = std::env::var(SEED).ok();
        let seed = given.map_or_else(
            || u64::from_ne_bytes(ctrl_exec::core::types::random::<8>().unwrap()),
            |text| text.parse().unwrap(),
        );
        println!("{test}: {SEED}={seed}");
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// 0 to `below` - 1.
    pub fn below(&mut self, below: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(below).unwrap()).unwrap()
    }

    /// True once in so many times.
    pub fn one_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }

    pub fn millis(&mut self, below: u64) -> std::time::Duration {
        std::time::Duration::from_millis(self.next() % below)
    }
}
