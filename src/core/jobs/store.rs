//! Records on the disk, and who may write which of them.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize as _;

use super::{Head, Hold, Key, Record, Status, Via};
use crate::core::durable::{self, DurableError, Lock};
use crate::core::exec::tail::TAIL;
use crate::core::logging::Action;
use crate::core::types::{DispatcherId, ReqId, ScriptName};
use crate::core::wire;

/// Mode of records and of everything beside them; directories get 0750.
const FILE_MODE: u32 = 0o640;
const DIR_MODE: u32 = 0o750;
/// Directory of the per-script locks.
pub(super) const LOCKS: &str = ".locks";
/// Most directory entries that one walk over the store looks at.
pub(super) const MAX_ENTRIES: usize = 100_000;

/// Why a record cannot be had. Every sentence names the path.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    #[error(transparent)]
    Durable(#[from] DurableError),
    #[error("cannot use '{}': {source}", .path.display())]
    File { path: PathBuf, source: io::Error },
    /// It is there, and is no record of that run: somebody else wrote it, or changed it.
    #[error("'{}' is no record of this run: {reason}", .path.display())]
    Foreign { path: PathBuf, reason: String },
    /// The record names another owner than its directory.
    #[error("'{}' belongs to another dispatcher", .path.display())]
    NotOwner { path: PathBuf },
}

/// Why a run may not begin.
#[derive(Debug)]
pub enum Refusal {
    /// The script runs already, detached, for whomever.
    Busy,
    /// There is a run of this name already.
    Used,
    Failed(JobError),
}

impl<E: Into<JobError>> From<E> for Refusal {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

/// A record as it was found.
#[derive(Clone, Debug)]
pub struct Found {
    pub head: Head,
    /// The file, byte for byte: the body of `/result`.
    pub bytes: Vec<u8>,
}

/// `async_runs_dir`. Cheap to make; knows no state of its own.
#[derive(Clone, Debug)]
pub struct Store {
    root: PathBuf,
    max_record: u64,
}

/// The right to run a script detached and to write its record; both locks are held as long as this lives.
#[derive(Debug)]
pub struct Claim {
    _script: Lock,
    hold: Hold,
    store: Store,
    key: Key,
}

impl Store {
    /// `max_output` as configured, bytes: it bounds what a record may be long.
    pub fn new(root: impl Into<PathBuf>, max_output: usize) -> Self {
        // Two streams, every byte at worst a six-character escape; never less than what an earlier configuration may have left.
        let longest = max_output.saturating_mul(12).max(wire::MAX_REPLY_BODY);
        Self {
            root: root.into(),
            max_record: u64::try_from(longest)
                .unwrap_or(u64::MAX)
                .saturating_add(64 * 1024),
        }
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    pub(super) fn file(&self, key: &Key, extension: &str) -> PathBuf {
        let name = format!("{}.{extension}", key.reqid);
        self.root.join(key.owner.as_str()).join(name)
    }

    fn script_lock(&self, script: &ScriptName) -> PathBuf {
        self.root.join(LOCKS).join(format!("{script}.lock"))
    }

    /// Path of the sign of life of a run, for [`super::signal_holder`].
    pub fn live(&self, key: &Key) -> PathBuf {
        self.file(key, "live")
    }

    /// Takes the locks for a new run.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn claim(&self, key: &Key, script: &ScriptName) -> Result<Claim, Refusal> {
        let claim = self.reclaim(key, script)?;
        match std::fs::symlink_metadata(self.file(key, "json")) {
            Ok(_) => Err(Refusal::Used),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(claim),
            Err(source) => Err(Refusal::Failed(JobError::File {
                path: self.file(key, "json"),
                source,
            })),
        }
    }

    /// Takes the locks of a run that is already going on, after a restart of whoever held them.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn reclaim(&self, key: &Key, script: &ScriptName) -> Result<Claim, Refusal> {
        durable::create_dir(&self.root, DIR_MODE)?;
        durable::create_dir(&self.root.join(LOCKS), DIR_MODE)?;
        durable::create_dir(&self.root.join(key.owner.as_str()), DIR_MODE)?;
        let lock = self.script_lock(script);
        let script = match Lock::exclusive(&lock, FILE_MODE, Duration::ZERO) {
            Ok(lock) => lock,
            Err(DurableError::Lock { source, .. })
                if source.kind() == io::ErrorKind::WouldBlock =>
            {
                return Err(Refusal::Busy);
            }
            Err(error) => return Err(error.into()),
        };
        let live = self.live(key);
        let hold = Hold::take(&live)
            .map_err(|source| JobError::File { path: live, source })?
            .ok_or(Refusal::Used)?;
        Ok(Claim {
            _script: script,
            hold,
            store: self.clone(),
            key: key.clone(),
        })
    }

    /// The record of a run, as it is. `None`: there is none.
    ///
    /// # Errors
    /// It cannot be read, or is not what its name says.
    pub fn read(&self, key: &Key) -> Result<Option<Found>, JobError> {
        let path = self.file(key, "json");
        let Some(bytes) = read_own(&path, self.max_record)? else {
            return Ok(None);
        };
        let foreign = |reason: String| JobError::Foreign {
            path: path.clone(),
            reason,
        };
        let head: Head = serde_json::from_slice(&bytes).map_err(|e| foreign(e.to_string()))?;
        if head.reqid != key.reqid {
            return Err(foreign("it names another request".to_owned()));
        }
        if head.owner != key.owner.as_str() {
            return Err(JobError::NotOwner { path });
        }
        Ok(Some(Found { head, bytes }))
    }

    /// The record of a run. One that says `running` although nobody answers for the run any more is first brought to its end as lost.
    ///
    /// Runs of the executor are left alone: whoever asks the executor knows better.
    ///
    /// # Errors
    /// As [`read`](Self::read), and when the end cannot be written.
    pub fn settled(&self, key: &Key, now: &str) -> Result<Option<Found>, JobError> {
        match self.read(key)? {
            Some(found) if found.head.status == Status::Running => match found.head.via {
                Some(Via::Executor) => Ok(Some(found)),
                // A supervisor of the original holds the lock of its script and nothing else.
                None if self.is_script_locked(&found.head.script)? => Ok(Some(found)),
                None | Some(Via::Agent) => self.settle(key, found, now),
            },
            other => Ok(other),
        }
    }

    fn settle(&self, key: &Key, found: Found, now: &str) -> Result<Option<Found>, JobError> {
        let live = self.live(key);
        let failed = |source| JobError::File {
            path: live.clone(),
            source,
        };
        if Hold::is_held(&live).map_err(failed)? {
            return Ok(Some(found));
        }
        let Some(hold) = Hold::take(&live).map_err(failed)? else {
            return Ok(Some(found));
        };
        // It may have ended just before we took the lock.
        let Some(found) = self
            .read(key)?
            .filter(|found| found.head.status == Status::Running)
        else {
            hold.retire();
            return self.read(key);
        };
        self.write_lost(
            key,
            &found.head,
            "lost: its supervisor ended before the script did (crash, kill or reboot); what the script had started may have gone on",
            now,
        )?;
        self.forget_progress(key);
        hold.retire();
        self.read(key)
    }

    /// Writes that a run is lost. For whoever answers for it.
    ///
    /// # Errors
    /// The record cannot be written.
    pub fn write_lost(&self, key: &Key, head: &Head, why: &str, now: &str) -> Result<(), JobError> {
        let (stdout, stderr) = self.progress(key).unwrap_or_default();
        let record = head
            .to_running(key)
            .lost(stdout, stderr, why, now.to_owned());
        self.write(&record)?;
        Action::new("run-async-lost")
            .field("DISPATCHER", &key.owner)
            .field("REQID", &key.reqid)
            .field("SCRIPT", &head.script)
            .warning();
        Ok(())
    }

    /// Whether anybody answers for a run of the agent's own.
    pub(super) fn is_alive(&self, key: &Key, head: &Head) -> bool {
        // What cannot be told counts as alive: it stays.
        match head.via {
            None => self.is_script_locked(&head.script).unwrap_or(true),
            Some(_) => Hold::is_held(&self.live(key)).unwrap_or(true),
        }
    }

    fn is_script_locked(&self, script: &ScriptName) -> Result<bool, JobError> {
        let path = self.script_lock(script);
        Hold::is_held(&path).map_err(|source| JobError::File { path, source })
    }

    /// Replaces a record atomically.
    fn write(&self, record: &Record) -> Result<(), JobError> {
        let path = self
            .root
            .join(record.owner.as_str())
            .join(format!("{}.json", record.reqid));
        let mut bytes = Vec::new();
        // Strings and numbers always serialise.
        let _ = record.serialize(&mut serde_json::Serializer::new(&mut bytes));
        Ok(durable::replace(&path, &bytes, FILE_MODE)?)
    }

    /// Puts the latest output of a running script where [`progress`](Self::progress) finds it. Not synced: it is worth nothing after a crash
    /// of the host, and flash memory has only so many writes.
    ///
    /// # Errors
    /// A file cannot be written or put in place.
    pub fn write_progress(&self, key: &Key, stdout: &[u8], stderr: &[u8]) -> io::Result<()> {
        for (extension, bytes) in [("out", stdout), ("err", stderr)] {
            let path = self.file(key, extension);
            let name = format!(".{}.{extension}.tmp", key.reqid);
            let temporary = path.with_file_name(name);
            let _ = std::fs::remove_file(&temporary);
            let mut file = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(FILE_MODE)
                .open(&temporary)?;
            io::Write::write_all(&mut file, bytes)?;
            std::fs::rename(&temporary, &path)?;
        }
        Ok(())
    }

    /// The latest stdout and stderr of a running script, as far as they were written down.
    pub fn progress(&self, key: &Key) -> Option<(Vec<u8>, Vec<u8>)> {
        let limit = u64::try_from(TAIL).unwrap_or(u64::MAX);
        let read = |extension| read_own(&self.file(key, extension), limit).ok().flatten();
        Some((read("out")?, read("err")?))
    }

    pub(super) fn forget_progress(&self, key: &Key) {
        for extension in ["out", "err"] {
            let _ = std::fs::remove_file(self.file(key, extension));
        }
    }

    /// All runs whose record says `running`. What is no record is passed over, with a line in the log.
    pub fn running(&self) -> Vec<(Key, Head)> {
        let mut running = Vec::new();
        for key in self.keys() {
            match self.read(&key) {
                Ok(Some(found)) if found.head.status == Status::Running => {
                    running.push((key, found.head));
                }
                Ok(_) => {}
                Err(error) => log_skipped(&error),
            }
        }
        running
    }

    /// How many runs give a sign of life; no record is read.
    pub fn count_running(&self) -> usize {
        let alive = |entry: &std::fs::DirEntry| {
            let path = entry.path();
            path.extension().is_some_and(|e| e == "live") && Hold::is_held(&path).unwrap_or(false)
        };
        self.owners()
            .flat_map(|(_, dir)| entries(&dir))
            .take(MAX_ENTRIES)
            .filter(alive)
            .count()
    }

    fn keys(&self) -> impl Iterator<Item = Key> {
        self.owners()
            .flat_map(|(owner, dir)| {
                entries(&dir).filter_map(move |entry| {
                    let name = entry.file_name();
                    let reqid = name.to_str()?.strip_suffix(".json")?;
                    Some(Key {
                        owner: owner.clone(),
                        reqid: ReqId::new(reqid).ok()?,
                    })
                })
            })
            .take(MAX_ENTRIES)
    }

    /// The directories of the dispatchers; links are none.
    pub(super) fn owners(&self) -> impl Iterator<Item = (DispatcherId, PathBuf)> {
        entries(&self.root).filter_map(|entry| {
            let owner = DispatcherId::new(entry.file_name().to_str()?).ok()?;
            entry
                .file_type()
                .is_ok_and(|kind| kind.is_dir())
                .then(|| (owner, entry.path()))
        })
    }
}

impl Claim {
    pub fn key(&self) -> &Key {
        &self.key
    }

    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Writes the record of the run.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&self, record: &Record) -> Result<(), JobError> {
        self.store.write(record)
    }

    /// The run did not come to pass: nothing of it stays.
    pub fn withdraw(self) {
        let _ = durable::remove(&self.store.file(&self.key, "json"));
        self.end();
    }

    /// The record is written to its end: only that stays.
    pub fn end(self) {
        self.store.forget_progress(&self.key);
        self.hold.retire();
    }
}

pub(super) fn entries(dir: &Path) -> impl Iterator<Item = std::fs::DirEntry> + use<> {
    std::fs::read_dir(dir)
        .into_iter()
        .flatten()
        .take(MAX_ENTRIES)
        .filter_map(Result::ok)
}

pub(super) fn log_skipped(error: &JobError) {
    Action::new("async-record-skip")
        .field("REASON", error)
        .warning();
}

/// Reads a file of ours: plain, with one name, of our own user or root, and no longer than `limit`. `None`: it is not there.
fn read_own(path: &Path, limit: u64) -> Result<Option<Vec<u8>>, JobError> {
    let failed = |source| JobError::File {
        path: path.to_owned(),
        source,
    };
    let foreign = |reason: &str| JobError::Foreign {
        path: path.to_owned(),
        reason: reason.to_owned(),
    };
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path);
    let file: File = match opened {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) if error.raw_os_error() == Some(libc::ELOOP) => {
            return Err(foreign("it is a symbolic link"));
        }
        Err(error) => return Err(failed(error)),
    };
    let about = file.metadata().map_err(failed)?;
    let own = rustix::process::geteuid().as_raw();
    if !about.is_file() || about.nlink() > 1 {
        return Err(foreign("it is not a plain file with one name"));
    }
    if about.uid() != own && about.uid() != 0 {
        return Err(foreign("somebody else owns it"));
    }
    if about.len() > limit {
        return Err(foreign("it is too long"));
    }
    let mut bytes = Vec::with_capacity(usize::try_from(about.len()).unwrap_or(0));
    file.take(limit).read_to_end(&mut bytes).map_err(failed)?;
    Ok(Some(bytes))
}
