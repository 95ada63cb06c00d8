//! Whom a script runs as (spec/executor.md 11.1).

use super::NotPrepared;
use crate::core::config::ProfileConfig;

/// A user, complete.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Identity {
    pub uid: u32,
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Name of the account, where there is one.
    pub name: Option<String>,
    /// Its home directory, else `/`.
    pub home: String,
}

/// Looks the account up, anew for every run.
///
/// # Errors
/// There is no such user or group.
pub fn resolve(_profile: &ProfileConfig) -> Result<Identity, NotPrepared> {
    todo!()
}
