//! The file that is about to run: who could have changed it, and is it the one that was pinned (spec/executor.md 15.10).

use std::path::Path;

use super::{NotPrepared, Protections};
use crate::core::config::{Annotations, ExecutorConfig, ProfileConfig};

/// A script that passed.
#[derive(Debug, Default)]
pub struct Checked {
    /// What was read and judged, when a verified copy shall run.
    pub copy: Option<Vec<u8>>,
    /// Findings of `script_trust = warn`.
    pub warnings: Vec<String>,
}

/// Judges the script at `path` for a run as `uid`.
///
/// # Errors
/// `untrusted-script` or `digest-mismatch`, with the file or directory and what to do.
pub fn check(
    _path: &Path,
    _uid: u32,
    _profile: &ProfileConfig,
    _annotations: &Annotations,
    _executor: &ExecutorConfig,
    _report: &mut Protections,
) -> Result<Checked, NotPrepared> {
    todo!()
}
