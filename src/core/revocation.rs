//! What this dispatcher has revoked: the journal `revoked.jsonl`, one JSON object per line, only ever appended to (spec/swarm.md PKI-20, 21).
//!
//! It counts at once for everything on this host: no connection to a revoked peer is used. Agents get the serials by `/revoke`; how many
//! entries each has confirmed stands in its registry record, so that a late agent gets what it lacks.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::core::durable::{self, DurableError, Lock};
use crate::core::pki::PeerIdentity;
use crate::core::registry::AgentRecord;
use crate::core::secure_open::{self, OpenError, Trust};
use crate::core::types::{AgentName, Serial};

/// Largest journal; an entry has some 250 bytes.
const MAX_JOURNAL: u64 = 16 * 1024 * 1024;
const PATIENCE: Duration = Duration::from_secs(10);
const MODE: u32 = 0o640;

/// Why the journal cannot be used. Then nothing is sent to anybody: who is revoked is not known.
#[derive(Debug, thiserror::Error)]
pub enum RevocationError {
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error("'{}' line {line}: {reason}; mend or remove that line (nothing is sent to any agent until then)", .path.display())]
    Damaged {
        path: PathBuf,
        line: usize,
        reason: String,
    },
    #[error(transparent)]
    Write(#[from] DurableError),
}

/// One revocation.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Entry {
    /// Minimal hex.
    pub serial: String,
    /// SHA-256 of the public key where it was known: every other certificate for the same key is revoked too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spki: Option<String>,
    /// Registry name of the agent, if it was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<AgentName>,
    /// `YYYY-MM-DDTHH:MM:SSZ`.
    pub time: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// The journal as it was when it was read.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Revocations {
    entries: Vec<Entry>,
    serials: Vec<Serial>,
}

impl Revocations {
    /// Reads the journal; an absent one revokes nobody.
    ///
    /// # Errors
    /// It is there and cannot be read, must not be trusted, or holds a line that says nothing.
    pub fn load(path: &Path) -> Result<Self, RevocationError> {
        match secure_open::read_trusted(path, MAX_JOURNAL, Trust::Public) {
            Ok(bytes) => Self::parse(path, &bytes),
            // A link that leads nowhere is a journal that got lost, not a host without one.
            Err(e) if e.is_not_found() && path.symlink_metadata().is_err() => Ok(Self::default()),
            Err(e) => Err(e.into()),
        }
    }

    fn parse(path: &Path, bytes: &[u8]) -> Result<Self, RevocationError> {
        let mut all = Self::default();
        for (at, line) in bytes.split(|&b| b == b'\n').enumerate() {
            if line.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            let damaged = |reason: String| RevocationError::Damaged {
                path: path.to_owned(),
                line: at + 1,
                reason,
            };
            let entry: Entry = serde_json::from_slice(line).map_err(|e| damaged(e.to_string()))?;
            let serial = Serial::parse_hex(&entry.serial).map_err(|e| damaged(e.to_string()))?;
            all.entries.push(entry);
            all.serials.push(serial);
        }
        Ok(all)
    }

    /// In the order in which they were revoked.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Number of entries, as agents confirm them.
    pub fn count(&self) -> u64 {
        self.entries.len() as u64
    }

    /// All revoked serials, each once, in the order of the journal.
    pub fn serials(&self) -> Vec<String> {
        let mut seen = std::collections::HashSet::new();
        self.serials
            .iter()
            .filter(|serial| seen.insert(*serial))
            .map(ToString::to_string)
            .collect()
    }

    /// The entry by which a certificate is revoked: its serial or its key.
    pub fn find(&self, serial: &Serial, spki: &str) -> Option<&Entry> {
        self.entries
            .iter()
            .zip(&self.serials)
            .find(|(entry, revoked)| *revoked == serial || entry.spki.as_deref() == Some(spki))
            .map(|(entry, _)| entry)
    }

    /// The entry by which a key is revoked.
    pub fn find_key(&self, spki: &str) -> Option<&Entry> {
        let same = |entry: &&Entry| entry.spki.as_deref() == Some(spki);
        self.entries.iter().find(same)
    }

    /// Whether a registered agent's certificate is revoked, as far as its record tells.
    pub fn concerns(&self, record: &AgentRecord) -> bool {
        let serial = record
            .cert_serial
            .as_deref()
            .and_then(|s| Serial::parse_hex(s).ok());
        let spki = record.cert_spki.as_deref().unwrap_or("unknown");
        self.find(&serial.unwrap_or_else(|| Serial::from_be_bytes(&[])), spki)
            .is_some()
    }

    /// Why a peer must not be talked to.
    ///
    /// # Errors
    /// The sentence for the operator.
    pub fn check(&self, name: &AgentName, peer: &PeerIdentity) -> Result<(), String> {
        match self.find(&peer.serial, &peer.spki_sha256) {
            None => Ok(()),
            Some(entry) => Err(format!(
                "host '{name}' answered with a revoked certificate (serial {}, revoked {}): nothing was sent; pair the host again with a new key",
                entry.serial, entry.time
            )),
        }
    }
}

/// Appends an entry, unless its serial is revoked already. Returns whether it was added.
///
/// # Errors
/// The journal cannot be locked, read or written; nothing is revoked then.
pub fn append(path: &Path, entry: &Entry) -> Result<bool, RevocationError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let _lock = Lock::exclusive(
        &path.with_file_name(format!(".{name}.lock")),
        0o660,
        PATIENCE,
    )?;
    let present = Revocations::load(path)?;
    let known = |serial: &Serial| Serial::parse_hex(&entry.serial).is_ok_and(|s| s == *serial);
    if present.serials.iter().any(known) {
        return Ok(false);
    }
    let mut text = String::new();
    for line in present.entries.iter().chain([entry]) {
        // Strings and nothing else: it always serialises.
        text.push_str(&serde_json::to_string(line).unwrap_or_default());
        text.push('\n');
    }
    durable::replace_keeping_owner(path, text.as_bytes(), MODE)?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(serial: &str, spki: Option<&str>) -> Entry {
        Entry {
            serial: serial.to_owned(),
            spki: spki.map(str::to_owned),
            agent: None,
            time: "2026-01-02T03:04:05Z".to_owned(),
            reason: None,
        }
    }

    #[test]
    fn a_journal_grows_and_an_entry_stands_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("revoked.jsonl");
        assert_eq!(Revocations::load(&path).unwrap().count(), 0);
        assert!(append(&path, &entry("ab", Some("key"))).unwrap());
        assert!(!append(&path, &entry("00AB", None)).unwrap());
        assert!(append(&path, &entry("cd", None)).unwrap());
        let all = Revocations::load(&path).unwrap();
        assert_eq!(
            (all.count(), all.serials()),
            (2, vec!["ab".to_owned(), "cd".to_owned()])
        );
        let serial = |hex| Serial::parse_hex(hex).unwrap();
        assert!(all.find(&serial("ab"), "").is_some());
        assert!(
            all.find(&serial("ef"), "key").is_some(),
            "another certificate for the same key"
        );
        assert!(all.find(&serial("ef"), "other").is_none());
    }

    #[test]
    fn what_cannot_be_read_stops_everything_and_names_the_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("revoked.jsonl");
        for bad in ["{\"serial\":\"xyz\",\"time\":\"\"}", "junk", "[]", "{}"] {
            let good = serde_json::to_string(&entry("ab", None)).unwrap();
            std::fs::write(&path, format!("{good}\n\n{bad}\n")).unwrap();
            let error = Revocations::load(&path).unwrap_err().to_string();
            assert!(error.contains("line 3"), "{error}");
            assert!(append(&path, &entry("cd", None)).is_err());
        }
        std::fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/nonexistent", &path).unwrap();
        assert!(Revocations::load(&path).is_err());
    }
}
