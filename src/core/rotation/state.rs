//! `rotation.json`: the original's fields with their meaning, and ours beside them (spec/dispatcher.md 16.1, 21.9).

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::core::clock;
use crate::core::durable::{self, DurableError};
use crate::core::keyring::names_serial;
use crate::core::logging::Action;
use crate::core::secure_open::{self, OpenError};
use crate::core::types::{AgentName, Serial};

const MAX_STATE: u64 = 16 * 1024 * 1024;
const MODE: u32 = 0o640;

/// Why the state cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error("'{}' is damaged ({reason}): what it said is found out again from the certificate and the registry at the next 'ced maintain'", .path.display())]
    Damaged { path: PathBuf, reason: String },
    #[error(transparent)]
    Write(#[from] DurableError),
}

/// The whole file. Serials are canonical texts, as agents are told them; times are `YYYY-MM-DDTHH:MM:SSZ`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct State {
    #[serde(default)]
    pub current_serial: String,
    /// Empty if there was no certificate before; gone once it is retired.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous_serial: Option<String>,
    #[serde(default)]
    pub rotated_at: String,
    #[serde(default)]
    pub overlap_expires: String,
    /// A number, or text in files of the original.
    #[serde(default)]
    pub overlap_days: Value,
    /// When the previous serial was withdrawn everywhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous_retired: Option<String>,
    /// Ours: the serial that is being announced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_serial: Option<String>,
    /// Ours: since when.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_since: Option<String>,
    /// Ours: older serials that agents may still trust.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub retiring: Vec<Retiring>,
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// A serial on its way out.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Retiring {
    pub serial: String,
    /// Not withdrawn before this time.
    pub until: String,
    /// Agents that have not confirmed that they dropped it.
    pub pending: Vec<AgentName>,
}

impl Retiring {
    /// Whether the overlap is over.
    pub fn is_over(&self, now: i64) -> bool {
        clock::parse_iso(&self.until).is_none_or(|until| now > until)
    }
}

impl State {
    /// Reads the file; `None` if there is none. One that is damaged is logged and treated as absent, as in the original: whatever it said
    /// can be found out again from the certificate and the registry.
    ///
    /// # Errors
    /// It is there and cannot be read.
    pub fn load(path: &Path) -> Result<Option<Self>, StateError> {
        match Self::read(path) {
            Err(StateError::Damaged { path, reason }) => {
                Action::new("rotation-state-corrupt")
                    .field("ERROR", &reason)
                    .field("PATH", path.display())
                    .field("REASON", "treated as absent")
                    .err();
                Ok(None)
            }
            other => other,
        }
    }

    /// Reads the file for somebody who only looks; `None` if there is none.
    ///
    /// # Errors
    /// It is there and cannot be read, or is damaged.
    pub fn read(path: &Path) -> Result<Option<Self>, StateError> {
        let bytes = match secure_open::read_plain(path, MAX_STATE) {
            Ok(bytes) => bytes,
            Err(e) if e.is_not_found() => return Ok(None),
            Err(e) => return Err(e.into()),
        };
        serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|error| StateError::Damaged {
                path: path.to_owned(),
                reason: error.to_string(),
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
        durable::replace_keeping_owner(path, &bytes, MODE)?;
        Ok(())
    }

    /// The serial that agents are to be told: the announced one, else the present one.
    pub fn wanted(&self) -> Option<&str> {
        let present = Some(self.current_serial.as_str()).filter(|s| !s.is_empty());
        self.next_serial.as_deref().or(present)
    }

    /// The lock that whoever changes the state holds from reading to writing.
    pub fn lock_path(path: &Path) -> PathBuf {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        path.with_file_name(format!(".{name}.lock"))
    }

    /// Takes over what a rotation of the original has left: its previous serial becomes one that is to be withdrawn from everybody.
    pub fn adopt_previous(&mut self, agents: impl IntoIterator<Item = AgentName>) -> bool {
        let Some(previous) = self.previous_serial.clone().filter(|s| !s.is_empty()) else {
            return false;
        };
        // Ours stands there as the number itself, beside the text of the original.
        let known = |r: &Retiring| {
            r.serial == previous
                || Serial::parse_hex(&r.serial).is_ok_and(|s| names_serial(&previous, &s))
        };
        if previous == self.current_serial || self.retiring.iter().any(known) {
            return false;
        }
        self.retiring.push(Retiring {
            serial: previous,
            until: self.overlap_expires.clone(),
            pending: agents.into_iter().collect(),
        });
        true
    }
}

/// The text of a serial as state and registry have it.
pub(super) fn text(serial: &Serial) -> String {
    serial.legacy()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_the_original_is_read_and_written_back_with_its_fields() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rotation.json");
        std::fs::write(
            &path,
            r#"{"current_serial":"ab","previous_serial":"2","rotated_at":"2026-01-01T00:00:00Z","overlap_expires":"2026-01-31T00:00:00Z","overlap_days":"30","later":1}"#,
        )
        .unwrap();
        let mut state = State::load(&path).unwrap().unwrap();
        assert_eq!(state.overlap_days, Value::from("30"));
        assert_eq!(state.wanted(), Some("ab"));
        let name = AgentName::new("web1").unwrap();
        assert!(state.adopt_previous([name.clone()]));
        assert!(!state.adopt_previous([name.clone()]), "once");
        state.retiring[0].serial = "02".to_owned();
        assert!(!state.adopt_previous([name]), "the same number");
        state.save(&path).unwrap();
        let json: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        assert_eq!(json["later"], 1);
        assert_eq!(json["previous_serial"], "2");
        assert_eq!(json["retiring"][0]["serial"], "02");
        assert_eq!(State::load(&path).unwrap().unwrap(), state);
    }

    #[test]
    fn a_damaged_file_counts_as_none_and_an_unreadable_one_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rotation.json");
        assert!(State::load(&path).unwrap().is_none());
        for bad in ["", "{", "[]", "{\"current_serial\":1}"] {
            std::fs::write(&path, bad).unwrap();
            assert!(State::load(&path).unwrap().is_none(), "{bad}");
            let looked = State::read(&path);
            assert!(matches!(looked, Err(StateError::Damaged { .. })), "{bad}");
        }
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        assert!(State::load(&path).is_err());
    }
}
