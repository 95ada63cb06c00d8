//! `ca-change.json`, beside `rotation.json`: there as long as a change goes on.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::core::config::DispatcherConfig;
use crate::core::durable::{self, DurableError};
use crate::core::registry::AgentRecord;
use crate::core::secure_open::{self, OpenError, Trust};
use crate::core::types::AgentName;

const MAX_STATE: u64 = 1024 * 1024;

/// How far a change has come.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    Announcing,
    Changed,
    Withdrawing,
    Aborting,
}

impl Phase {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Announcing => "announcing",
            Self::Changed => "changed",
            Self::Withdrawing => "withdrawing",
            Self::Aborting => "aborting",
        }
    }
}

/// The whole file.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct State {
    pub phase: Phase,
    /// SHA-256 fingerprints, hex.
    pub old: String,
    pub new: String,
    /// The new CA as PEM, and what the old one says of it.
    pub new_ca: String,
    pub endorsement: String,
    /// `YYYY-MM-DDTHH:MM:SSZ`.
    pub since: String,
    /// Agents that are not waited for any more: they have to be paired again.
    #[serde(default)]
    pub given_up: Vec<AgentName>,
    /// While the change is taken back: agents that may have heard of the new CA and have not confirmed that they do not trust it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pending: Vec<AgentName>,
}

impl State {
    /// These are not waited for any more. Returns whether that is news.
    pub(super) fn give_up(&mut self, agents: &[AgentName]) -> bool {
        let before = self.given_up.len();
        self.given_up.extend(agents.iter().cloned());
        self.given_up.sort();
        self.given_up.dedup();
        self.given_up.len() > before
    }

    pub(super) fn is_given_up(&self, agent: &AgentRecord) -> bool {
        names(agent).any(|name| self.given_up.contains(name))
    }

    pub(super) fn is_pending(&self, agent: &AgentRecord) -> bool {
        names(agent).any(|name| self.pending.contains(name))
    }

    /// This one has confirmed. Returns whether that was waited for.
    pub(super) fn confirm(&mut self, agent: &AgentRecord) -> bool {
        let before = self.pending.len();
        self.pending.retain(|n| !names(agent).any(|name| name == n));
        self.pending.len() < before
    }
}

/// Every name under which an agent may have been written down.
fn names(agent: &AgentRecord) -> impl Iterator<Item = &AgentName> {
    std::iter::once(&agent.name).chain(&agent.formerly)
}

/// Why the state cannot be used. The change stands still then; nothing is undone.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error("'{}' is damaged ({reason}): restore it from a backup; docs/recovery.md says what it holds", .path.display())]
    Damaged { path: PathBuf, reason: String },
    #[error(transparent)]
    Write(#[from] DurableError),
}

impl State {
    /// The file of this dispatcher.
    pub fn path(config: &DispatcherConfig) -> PathBuf {
        config.rotation.file.with_file_name("ca-change.json")
    }

    /// Where the files of the new CA lie until it signs.
    pub fn next_dir(config: &DispatcherConfig) -> PathBuf {
        config.ca_dir.join("ca-next")
    }

    /// `None`: no change goes on.
    ///
    /// # Errors
    /// It is there and cannot be read.
    pub fn load(config: &DispatcherConfig) -> Result<Option<Self>, StateError> {
        let path = Self::path(config);
        let bytes = match secure_open::read_trusted(&path, MAX_STATE, Trust::Public) {
            Ok(bytes) => bytes,
            Err(e) if e.is_not_found() => return Ok(None),
            Err(e) => return Err(e.into()),
        };
        serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|e| StateError::Damaged {
                path,
                reason: e.to_string(),
            })
    }

    /// # Errors
    /// It cannot be written; the old one stays.
    pub fn save(&self, path: &Path) -> Result<(), StateError> {
        let mut bytes = serde_json::to_vec_pretty(self).unwrap_or_default();
        bytes.push(b'\n');
        if let Some(dir) = path.parent() {
            durable::create_dir(dir, 0o750)?;
        }
        durable::replace_keeping_owner(path, &bytes, 0o640)?;
        Ok(())
    }
}
