//! Serials that are refused: the list of the administrator, and the one that dispatchers push.

use crate::core::config::AgentConfig;
use crate::core::trust::{self, RevocationList, TrustError};
use crate::core::types::Serial;

/// Both lists as they were when they were read.
#[derive(Default)]
pub(super) struct Revocations {
    /// The administrator's. `None`: no such file, so nothing is revoked there.
    pub(super) local: Option<RevocationList>,
    /// The dispatchers'.
    pub(super) pushed: RevocationList,
}

impl Revocations {
    /// # Errors
    /// A list is there and cannot be read or must not be trusted.
    pub(super) fn load(config: &AgentConfig) -> Result<Self, TrustError> {
        Ok(Self {
            local: RevocationList::load(&config.revoked_serials)?,
            pushed: trust::load_pushed(&config.pushed_revocations())?,
        })
    }

    pub(super) fn contains(&self, serial: &Serial) -> bool {
        self.pushed.contains(serial) || self.local.as_ref().is_some_and(|l| l.contains(serial))
    }
}
