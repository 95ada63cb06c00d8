//! The file system as a script sees it (spec/executor.md 15.4): a plan made beforehand, carried out in the child by system calls alone.

use super::features::Features;
use super::{NotPrepared, ProtectedPaths, Protections};
use crate::core::config::ProfileConfig;
use crate::core::sandbox::child::StepFailed;
use std::path::Path;

/// What a view is made from.
#[derive(Debug)]
pub struct ViewOrder<'a> {
    pub profile: &'a ProfileConfig,
    pub protected: &'a ProtectedPaths,
    pub script: &'a Path,
    /// The bytes that were checked, when exactly these shall run.
    pub copy: Option<Vec<u8>>,
    /// The script runs in a PID namespace of its own: `/proc` must be mounted anew.
    pub fresh_proc: bool,
    pub features: &'a Features,
    /// Text of `/proc/self/mountinfo`.
    pub mountinfo: &'a str,
}

/// The steps, ready to be carried out.
#[derive(Debug)]
pub struct MountPlan {
    _steps: Vec<()>,
}

/// # Errors
/// Something that the profile requires cannot be had.
pub fn plan(_order: ViewOrder<'_>, _report: &mut Protections) -> Result<MountPlan, NotPrepared> {
    todo!()
}

impl MountPlan {
    /// Carries the plan out, in the child, right after it got its mount namespace. System calls only.
    ///
    /// # Errors
    /// The first step that failed.
    pub fn apply(&self) -> Result<(), StepFailed> {
        todo!()
    }
}
