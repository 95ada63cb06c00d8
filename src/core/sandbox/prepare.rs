//! Everything that the child will need, made before the fork.

use std::time::Duration;

use super::cgroup::Leaf;
use super::features::Features;
use super::identity::Identity;
use super::script::Checked;
use super::{NotPrepared, ProtectedPaths, Protections};
use crate::core::config::ProfileConfig;
use crate::core::profile::Resolved;

/// One run as it was decided.
#[derive(Debug)]
pub struct RunOrder<'a> {
    pub script: &'a Resolved,
    pub profile: &'a ProfileConfig,
    pub args: &'a [Vec<u8>],
    /// Valid request id, or empty.
    pub reqid: &'a str,
    pub identity: Identity,
    pub checked: Checked,
    pub protected: &'a ProtectedPaths,
    pub features: &'a Features,
    pub leaf: Option<&'a Leaf>,
}

/// Ready to be started.
#[derive(Debug)]
pub struct Prepared {
    pub identity: Identity,
    pub timeout: Option<Duration>,
}

/// # Errors
/// Something that the profile requires cannot be had, or cannot be made.
pub fn prepare(_order: RunOrder<'_>, _report: &mut Protections) -> Result<Prepared, NotPrepared> {
    todo!()
}
