//! The dispatcher's registry: one JSON file per agent, `<registry_dir>/<name>.json` (spec/dispatcher.md 12).
//!
//! A name is a validated [`AgentName`] before it becomes a path, on reading as on writing, so no name leaves the directory. Every write is
//! an atomic replacement under `.registry.lock`; without the lock nothing is written.

mod record;
mod resolve;

pub use record::{AgentRecord, PeerCheck, SerialStatus};
pub use resolve::{
    HostPort, NotAnAgent, Target, UnknownAgent, UnknownAgents, resolve, split_host_port,
};

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::core::durable::{self, DurableError, Lock};
use crate::core::secure_open::{self, OpenError};
use crate::core::types::AgentName;

/// Largest record that is read; a common one has half a KiB.
const MAX_RECORD: u64 = 1024 * 1024;
/// Longest wait for another writer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Mode of a record, and of the directory if we make it (spec/dispatcher.md 4).
const RECORD_MODE: u32 = 0o644;
const DIRECTORY_MODE: u32 = 0o2770;

/// Why the registry could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    #[error("cannot list the registry '{}': {source}", .path.display())]
    List { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Read(#[from] OpenError),
    #[error("registry record '{}' is damaged: {reason}; restore it from a backup or pair the agent again", .path.display())]
    Damaged { path: PathBuf, reason: String },
    #[error("'{}' is not the name of an agent: rename or remove that file", .path.display())]
    BadName { path: PathBuf },
    #[error("No registry entry for '{name}' in '{}': list-agents shows who is registered", .path.display())]
    Missing { name: AgentName, path: PathBuf },
    #[error("agent '{name}' already exists in '{}' (paired {paired}, last address {address})", .path.display())]
    Exists {
        name: AgentName,
        path: PathBuf,
        paired: String,
        address: String,
    },
    #[error(transparent)]
    Write(#[from] DurableError),
}

/// What [`Registry::list`] found.
#[derive(Debug, Default)]
pub struct Listing {
    /// In ascending order of names.
    pub agents: Vec<AgentRecord>,
    /// Files that hold no record; they hide nobody else.
    pub unreadable: Vec<RegistryError>,
}

impl RegistryError {
    /// The record that cannot be used, if it is about one.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::List { path, .. }
            | Self::Damaged { path, .. }
            | Self::BadName { path }
            | Self::Missing { path, .. }
            | Self::Exists { path, .. } => Some(path),
            Self::Read(error) => Some(error.path()),
            Self::Write(_) => None,
        }
    }
}

/// The registry in one directory. Holds nothing in memory: every call sees the disk.
#[derive(Clone, Debug)]
pub struct Registry {
    dir: PathBuf,
}

impl Registry {
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The file of an agent.
    pub fn path_of(&self, name: &AgentName) -> PathBuf {
        self.dir.join(format!("{name}.json"))
    }

    /// All agents. A directory that does not exist holds none.
    ///
    /// # Errors
    /// The directory itself cannot be read.
    pub fn list(&self) -> Result<Listing, RegistryError> {
        let failed = |source| RegistryError::List {
            path: self.dir.clone(),
            source,
        };
        let entries = match std::fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Listing::default()),
            Err(e) => return Err(failed(e)),
        };
        let mut listing = Listing::default();
        for entry in entries {
            let path = entry.map_err(failed)?.path();
            let file = path.file_name().unwrap_or_default().to_string_lossy();
            // Lock file, temporary files, and whatever else is not a record.
            let Some(stem) = file.strip_suffix(".json").filter(|s| !s.starts_with('.')) else {
                continue;
            };
            let Ok(name) = AgentName::new(stem) else {
                listing.unreadable.push(RegistryError::BadName { path });
                continue;
            };
            match self.get(&name) {
                Ok(Some(record)) => listing.agents.push(record),
                // Removed since the directory was read.
                Ok(None) => {}
                Err(e) => listing.unreadable.push(e),
            }
        }
        listing.agents.sort_by(|a, b| a.name.cmp(&b.name));
        listing.unreadable.sort_by_cached_key(ToString::to_string);
        Ok(listing)
    }

    /// One agent; `None` when it is not registered.
    ///
    /// # Errors
    /// Its record is there but cannot be read.
    pub fn get(&self, name: &AgentName) -> Result<Option<AgentRecord>, RegistryError> {
        let path = self.path_of(name);
        let bytes = match secure_open::read_plain(&path, MAX_RECORD) {
            Ok(bytes) => bytes,
            Err(e) if e.is_not_found() => return Ok(None),
            Err(e) => return Err(e.into()),
        };
        AgentRecord::parse(name, &bytes)
            .map(Some)
            .map_err(|reason| RegistryError::Damaged { path, reason })
    }

    /// Adds an agent under `record.name`. With `replace`, a record of that name is replaced; its cached tags and fields unknown to us
    /// stay, unless the new record has its own.
    ///
    /// # Errors
    /// The name is taken and `replace` is false; the directory cannot be locked or written.
    pub fn register(&self, mut record: AgentRecord, replace: bool) -> Result<(), RegistryError> {
        durable::create_dir(&self.dir, DIRECTORY_MODE)?;
        let _lock = self.lock()?;
        let path = self.path_of(&record.name);
        if !replace && path.symlink_metadata().is_ok() {
            let old = self.get(&record.name).ok().flatten();
            let old = old.unwrap_or_else(|| AgentRecord::new(record.name.clone()));
            return Err(RegistryError::Exists {
                name: record.name,
                path,
                paired: old.paired,
                address: old.ip,
            });
        }
        // A damaged record is as good as none when it is to be replaced.
        if let Ok(Some(old)) = self.get(&record.name) {
            record.inherit(old);
        }
        self.write(&record)
    }

    /// Changes one record and returns it as it is now. The name stays, whatever `change` does to it.
    ///
    /// # Errors
    /// The agent is not registered (it is not brought back to life); the record cannot be read, locked or written.
    pub fn update(
        &self,
        name: &AgentName,
        change: impl FnOnce(&mut AgentRecord),
    ) -> Result<AgentRecord, RegistryError> {
        let _lock = self.lock_for(name)?;
        let mut record = self.existing(name)?;
        change(&mut record);
        record.name = name.clone();
        self.write(&record)?;
        Ok(record)
    }

    /// Changes many records under one lock. Names that are not registered (any more) are passed over; records that stay as they were are
    /// not written. Returns how many were written.
    ///
    /// # Errors
    /// The directory cannot be locked, or the records cannot be written.
    pub fn update_many(
        &self,
        names: impl IntoIterator<Item = AgentName>,
        mut change: impl FnMut(&mut AgentRecord),
    ) -> Result<usize, RegistryError> {
        let names: Vec<AgentName> = names.into_iter().collect();
        if names.is_empty() || !self.dir.is_dir() {
            return Ok(0);
        }
        let _lock = self.lock()?;
        let mut files = Vec::new();
        for name in names {
            // A damaged record must not keep the others from being changed; listings tell of it.
            let Ok(Some(before)) = self.get(&name) else {
                continue;
            };
            let mut record = before.clone();
            change(&mut record);
            record.name = name;
            if record != before {
                files.push((self.path_of(&record.name), record.to_bytes()));
            }
        }
        let written = files.len();
        durable::replace_all(&self.dir, files, RECORD_MODE)?;
        Ok(written)
    }

    /// Gives an agent another name. Its certificate keeps the old one, which the record then remembers as `cert_cn`.
    ///
    /// A crash in between leaves both records, never none; the same rename then takes the old one away.
    ///
    /// # Errors
    /// `old` is not registered, `new` is; the records cannot be read, locked or written.
    pub fn rename(&self, old: &AgentName, new: &AgentName) -> Result<AgentRecord, RegistryError> {
        let _lock = self.lock_for(old)?;
        let mut record = self.existing(old)?;
        if old == new {
            return Ok(record);
        }
        record
            .cert_cn
            .get_or_insert_with(|| record.hostname.clone());
        let path = self.path_of(new);
        if path.symlink_metadata().is_ok() {
            match self.get(new) {
                Ok(Some(half)) if half.is_same_pairing(&record) => record = half,
                present => {
                    let present = present.ok().flatten();
                    let present = present.unwrap_or_else(|| AgentRecord::new(new.clone()));
                    return Err(RegistryError::Exists {
                        name: new.clone(),
                        path,
                        paired: present.paired,
                        address: present.ip,
                    });
                }
            }
        } else {
            record.was(old.clone());
            record.name = new.clone();
            record.hostname = new.to_string();
            self.write(&record)?;
        }
        durable::remove(&self.path_of(old))?;
        Ok(record)
    }

    /// Removes an agent and returns its record. A damaged record can be removed too and comes back empty.
    ///
    /// # Errors
    /// The agent is not registered; the directory cannot be locked or written.
    pub fn remove(&self, name: &AgentName) -> Result<AgentRecord, RegistryError> {
        let _lock = self.lock_for(name)?;
        let record = match self.existing(name) {
            Err(RegistryError::Damaged { .. }) => AgentRecord::new(name.clone()),
            other => other?,
        };
        durable::remove(&self.path_of(name))?;
        Ok(record)
    }

    fn existing(&self, name: &AgentName) -> Result<AgentRecord, RegistryError> {
        self.get(name)?.ok_or_else(|| self.missing(name))
    }

    fn missing(&self, name: &AgentName) -> RegistryError {
        RegistryError::Missing {
            name: name.clone(),
            path: self.dir.clone(),
        }
    }

    fn write(&self, record: &AgentRecord) -> Result<(), RegistryError> {
        let path = self.path_of(&record.name);
        Ok(durable::replace(&path, &record.to_bytes(), RECORD_MODE)?)
    }

    fn lock(&self) -> Result<Lock, RegistryError> {
        let path = self.dir.join(".registry.lock");
        Ok(Lock::exclusive(&path, 0o660, PATIENCE)?)
    }

    /// Where there is no directory there is no agent either.
    fn lock_for(&self, name: &AgentName) -> Result<Lock, RegistryError> {
        if self.dir.is_dir() {
            self.lock()
        } else {
            Err(self.missing(name))
        }
    }
}

#[cfg(test)]
mod crash_tests;
#[cfg(test)]
mod tests;
