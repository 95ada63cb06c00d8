//! One cgroup v2 leaf per run (spec/executor.md 15.7, 15.8).

use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Duration;

use super::NotPrepared;
use crate::core::config::{ExecutorConfig, ProfileConfig};

/// The group below which runs get theirs.
#[derive(Debug)]
pub struct Hierarchy {
    _dir: std::path::PathBuf,
}

/// A run's own group.
#[derive(Debug)]
pub struct Leaf {
    _fd: OwnedFd,
}

/// What a run used.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Usage {
    pub cpu: Option<Duration>,
    /// Bytes.
    pub memory_peak: Option<u64>,
    pub oom_killed: bool,
}

impl Hierarchy {
    /// Finds or makes our groups, moves ourselves out of the way, and switches controllers on.
    ///
    /// # Errors
    /// Why there is no usable cgroup v2.
    pub fn set_up(_config: &ExecutorConfig) -> Result<Self, String> {
        todo!()
    }

    /// Makes the group of one run and writes the limits of its profile.
    ///
    /// # Errors
    /// Limits that the profile requires cannot be set.
    pub fn leaf(
        &self,
        _name: &str,
        _profile: &ProfileConfig,
        _report: &mut super::Protections,
    ) -> Result<Option<Leaf>, NotPrepared> {
        todo!()
    }
}

impl Leaf {
    /// For `clone3`.
    pub fn fd(&self) -> BorrowedFd<'_> {
        todo!()
    }
}
