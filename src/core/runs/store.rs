//! Records on the disk: reading, merging, listing, retention.

use std::collections::BTreeMap;
use std::fs::{DirEntry, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::{Body, Entry, Fetched, Record, State};
use crate::core::durable::{self, DurableError, Lock};
use crate::core::types::ReqId;

const FILE_MODE: u32 = 0o640;
const LOCK: &str = ".runs.lock";
/// The lock is held for one file's reading and writing.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longest file that is read: all the text that a record keeps with every byte escaped, and what is around it.
const MAX_FILE: u64 = 416 * 1024 * 1024;
/// Most entries of the directory that are looked at.
const MAX_ENTRIES: usize = 100_000;
/// Bytes of records that [`Store::tally`] reads at most; a common one has a KiB or two.
const MAX_TALLIED: u64 = 16 * 1024 * 1024;
/// A temporary file is seconds old, or left over from a crash.
const TEMPORARY_AGE: Duration = Duration::from_secs(3600);

/// Why a record cannot be had or kept. Every sentence names the path.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error(transparent)]
    Durable(#[from] DurableError),
    #[error("cannot read '{}': {source}", .path.display())]
    Read { path: PathBuf, source: io::Error },
    /// Damaged, or put there by somebody else.
    #[error("'{}' is no record of this run: {reason}", .path.display())]
    Damaged { path: PathBuf, reason: String },
}

/// `runs_dir`. Cheap to make; knows no state of its own.
#[derive(Clone, Debug)]
pub struct Store {
    dir: PathBuf,
    retention: Duration,
}

/// A record after merging; `problem` says why the file did not take part.
#[derive(Debug)]
pub struct Merged {
    pub record: Record,
    pub problem: Option<RunError>,
}

/// All runs, newest first, and what could not be read.
#[derive(Debug, Default)]
pub struct Listing<T> {
    pub runs: Vec<T>,
    pub damaged: Vec<RunError>,
}

/// How many runs are on record, by their state.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Tally {
    pub running: usize,
    pub done: usize,
    pub failed: usize,
    pub expired: usize,
    /// Too large, or too many, to be looked at for a number.
    pub unread: usize,
    /// Why the first of the damaged ones cannot be used.
    pub damaged: Option<String>,
}

/// As it is written.
fn bytes_of(record: &Record) -> Vec<u8> {
    // Text keys and values that came from JSON always serialise.
    serde_json::to_vec(record).unwrap_or_default()
}

impl Store {
    /// `retention`: how long a record is kept after its last change.
    pub fn new(dir: impl Into<PathBuf>, retention: Duration) -> Self {
        Self {
            dir: dir.into(),
            retention,
        }
    }

    fn file(&self, reqid: &ReqId) -> PathBuf {
        self.dir.join(format!("{reqid}.json"))
    }

    fn lock(&self) -> Result<Lock, RunError> {
        durable::create_shared_dir(&self.dir)?;
        Ok(Lock::exclusive(&self.dir.join(LOCK), 0o660, PATIENCE)?)
    }

    /// Writes the record of a new run. One that the agents take over is on the platter before they are asked. Of one that was waited for, who
    /// waited has the results: its record may be lost in a power cut, which can leave an empty file in its place, a damaged record like any
    /// other.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn create(&self, record: &Record) -> Result<(), RunError> {
        durable::create_shared_dir(&self.dir)?;
        match record.body {
            Body::Async(_) => self.write(record),
            Body::Sync(_) => Ok(durable::place(
                &self.file(&record.reqid),
                &bytes_of(record),
                FILE_MODE,
            )?),
        }
    }

    fn write(&self, record: &Record) -> Result<(), RunError> {
        let bytes = bytes_of(record);
        let file = self.file(&record.reqid);
        // The API's user must be able to read what root has brought up to date.
        Ok(durable::replace_keeping_owner(&file, &bytes, FILE_MODE)?)
    }

    /// The record of a run. `None`: there is none.
    ///
    /// # Errors
    /// It cannot be read, or is no record of this run.
    pub fn load(&self, reqid: &ReqId) -> Result<Option<Record>, RunError> {
        let path = self.file(reqid);
        let Some(bytes) = read(&path)? else {
            return Ok(None);
        };
        match Record::parse(reqid, &bytes) {
            Ok(record) => Ok(Some(record)),
            Err(reason) => Err(RunError::Damaged { path, reason }),
        }
    }

    /// Takes in what the agents have said.
    pub fn merge(&self, known: Record, fetched: &BTreeMap<String, Fetched>) -> Merged {
        self.update(known, |record| {
            if let Body::Async(run) = &mut record.body {
                run.advance(fetched);
            }
        })
    }

    /// Takes in what became of the submission of a run that [`create`](Self::create) has written.
    pub fn settle(&self, known: Record, submitted: BTreeMap<String, Entry>) -> Merged {
        self.update(known, |record| {
            if let Body::Async(run) = &mut record.body {
                run.settle(submitted.clone());
            }
        })
    }

    /// Changes the record as it is on the disk by now; written only if that makes a difference, so that looking keeps nothing alive.
    fn update(&self, mut known: Record, change: impl Fn(&mut Record)) -> Merged {
        let stored = || -> Result<Option<Record>, RunError> {
            let _lock = self.lock()?;
            let Some(before) = self.load(&known.reqid)? else {
                return Ok(None);
            };
            let mut after = before.clone();
            change(&mut after);
            if after != before {
                self.write(&after)?;
            }
            Ok(Some(after))
        };
        let problem = match stored() {
            Ok(Some(record)) => {
                return Merged {
                    record,
                    problem: None,
                };
            }
            // It came of age in the meantime: told once more, not brought back.
            Ok(None) => None,
            Err(error) => Some(error),
        };
        change(&mut known);
        Merged {
            record: known,
            problem,
        }
    }

    /// What `digest` makes of every record, newest first. One record is in memory at a time; one that cannot be read hides no other.
    ///
    /// # Errors
    /// The directory is there and cannot be read.
    pub fn list<T>(&self, digest: impl Fn(&Record) -> T) -> Result<Listing<T>, RunError> {
        let mut runs = Vec::new();
        let mut damaged = Vec::new();
        for entry in self.entries()? {
            let Some(reqid) = reqid_of(&entry) else {
                continue;
            };
            match self.load(&reqid) {
                Ok(Some(record)) => runs.push((record.time(), reqid, digest(&record))),
                Ok(None) => {}
                Err(error) => damaged.push(error),
            }
        }
        runs.sort_by(|(a, a_id, _), (b, b_id, _)| b.cmp(a).then(a_id.cmp(b_id)));
        Ok(Listing {
            runs: runs.into_iter().map(|(.., digest)| digest).collect(),
            damaged,
        })
    }

    /// Counts the runs by their state. Bounded: whoever asks for numbers asks often, so of records that together are larger than 16 MiB
    /// only as many are read as fit.
    ///
    /// # Errors
    /// The directory is there and cannot be read.
    pub fn tally(&self) -> Result<Tally, RunError> {
        let mut tally = Tally::default();
        let mut left = MAX_TALLIED;
        for entry in self.entries()? {
            let Some(reqid) = reqid_of(&entry) else {
                continue;
            };
            // Gone since the directory was read.
            let Ok(about) = entry.metadata() else {
                continue;
            };
            let Some(rest) = left.checked_sub(about.len()) else {
                tally.unread += 1;
                continue;
            };
            left = rest;
            match self.load(&reqid) {
                Ok(Some(record)) => match record.state() {
                    State::Running(_) => tally.running += 1,
                    State::Failed(_) => tally.failed += 1,
                    State::Expired(_) => tally.expired += 1,
                    State::Done => tally.done += 1,
                },
                Ok(None) => {}
                Err(error) => {
                    tally.damaged.get_or_insert_with(|| error.to_string());
                }
            }
        }
        Ok(tally)
    }

    /// Removes records that have not changed for longer than the retention, complete or not, and temporary files that a crash has left. Files
    /// with other names are none of ours and stay. Returns how many records went.
    pub fn purge(&self, now: SystemTime) -> usize {
        let mut removed = 0;
        for entry in self.entries().unwrap_or_default() {
            let limit = if reqid_of(&entry).is_some() {
                self.retention
            } else if is_temporary(&entry) {
                TEMPORARY_AGE
            } else {
                continue;
            };
            // Of the entry itself, should it be a link.
            let old = entry.metadata().is_ok_and(|about| {
                let age = about
                    .modified()
                    .and_then(|changed| now.duration_since(changed).map_err(io::Error::other));
                !about.is_dir() && age.is_ok_and(|age| age > limit)
            });
            if old && std::fs::remove_file(entry.path()).is_ok() && limit == self.retention {
                removed += 1;
            }
        }
        removed
    }

    fn entries(&self) -> Result<Vec<DirEntry>, RunError> {
        match std::fs::read_dir(&self.dir) {
            Ok(entries) => Ok(entries.take(MAX_ENTRIES).filter_map(Result::ok).collect()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(source) => Err(RunError::Read {
                path: self.dir.clone(),
                source,
            }),
        }
    }
}

fn reqid_of(entry: &DirEntry) -> Option<ReqId> {
    let name = entry.file_name();
    ReqId::new(name.to_str()?.strip_suffix(".json")?).ok()
}

/// Ours begin with a dot, the original's do not.
fn is_temporary(entry: &DirEntry) -> bool {
    entry
        .file_name()
        .to_str()
        .is_some_and(|name| name.ends_with(".tmp") && name.contains(".json"))
}

fn read(path: &Path) -> Result<Option<Vec<u8>>, RunError> {
    let failed = |source| RunError::Read {
        path: path.to_owned(),
        source,
    };
    let damaged = |reason: &str| RunError::Damaged {
        path: path.to_owned(),
        reason: reason.to_owned(),
    };
    // The API's user owns the directory too: a FIFO must not hold us, a link not lead us away.
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path);
    let file = match opened {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) if error.raw_os_error() == Some(libc::ELOOP) => {
            return Err(damaged("it is a symbolic link"));
        }
        Err(error) => return Err(failed(error)),
    };
    let about = file.metadata().map_err(failed)?;
    if !about.is_file() {
        return Err(damaged("it is not a plain file"));
    }
    if about.len() > MAX_FILE {
        return Err(damaged("it is too long"));
    }
    let mut bytes = Vec::with_capacity(usize::try_from(about.len()).unwrap_or(0));
    file.take(MAX_FILE)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    Ok(Some(bytes))
}
