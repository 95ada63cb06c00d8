//! The Landlock ruleset of a profile (spec/executor.md 15.6), made beforehand and entered in the child.

use std::path::Path;

use super::features::Features;
use super::{NotPrepared, Protections};
use crate::core::config::ProfileConfig;

/// A ruleset that waits to be entered.
#[derive(Debug)]
pub struct Ruleset(pub std::os::fd::OwnedFd);

/// `None`: the profile asks for nothing that Landlock does, or it is off, or it was tried and is not there.
///
/// # Errors
/// It is required and cannot be had.
pub fn ruleset(
    _profile: &ProfileConfig,
    _script: &Path,
    _features: &Features,
    _report: &mut Protections,
) -> Result<Option<Ruleset>, NotPrepared> {
    todo!()
}

impl Ruleset {
    /// One system call, for the child.
    ///
    /// # Errors
    /// The errno.
    pub fn enter(&self) -> Result<(), i32> {
        todo!()
    }
}
