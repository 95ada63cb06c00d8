//! Detached runs (spec/executor.md 4.4, 13): where their results wait, and what can be asked about them.
//!
//! ```text
//! <jobs>/<hex of the dispatcher>/<reqid>/     0700
//!   lock            held by the supervisor as long as it lives; its number is in it and means something only so long
//!   stdout stderr   so far, bounded
//!   result          an encoded reply, put there by a rename at the end
//! ```
//!
//! A job is found only under the dispatcher that asked for it: that is the whole of its ownership.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::process::Signal;

use crate::core::durable;
use crate::core::exec::frame::{Kind, Reply, ReplyExtras, Request, encode_reply};
use crate::core::jobs::{Hold, KEPT, signal_holder};
use crate::core::types::{ReqId, hex};

/// Detached runs that are kept, going or over.
const MOST: usize = 256;
/// What is shown of each stream of a run that is still going.
const PEEK: u64 = 64 * 1024;
/// Its hexadecimal form must fit a file name.
const LONGEST_DISPATCHER: usize = 120;

/// Why a detached run is refused.
#[derive(Debug, thiserror::Error)]
pub(super) enum JobError {
    #[error("a detached run needs a request id and a dispatcher")]
    Nameless,
    #[error("a run with this request id is there already")]
    Exists,
    #[error("{MOST} detached runs are kept already: fetch or forget some")]
    TooMany,
    #[error("cannot keep the result in '{}': {source}", .path.display())]
    Io { path: PathBuf, source: io::Error },
}

/// A detached run that is ours. The lock goes when the process does.
#[derive(Debug)]
pub(super) struct Job {
    dir: PathBuf,
    _lock: Hold,
}

/// What is known about a job.
#[derive(Debug, Eq, PartialEq)]
pub(super) enum State {
    Running,
    /// The encoded reply.
    Over(Vec<u8>),
    Lost,
    Unknown,
}

/// The directory of a job; `None` for names that no job can have.
fn place(jobs: &Path, dispatcher: &str, reqid: &str) -> Option<PathBuf> {
    let named = !dispatcher.is_empty() && dispatcher.len() <= LONGEST_DISPATCHER;
    let reqid = ReqId::new(reqid).ok().filter(|_| named)?;
    Some(jobs.join(hex(dispatcher.as_bytes())).join(reqid.as_str()))
}

impl Job {
    /// Makes the directory of a new detached run, complete at once, and takes its lock.
    pub(super) fn begin(jobs: &Path, request: &Request) -> Result<Self, JobError> {
        let dir = place(jobs, &request.dispatcher, &request.reqid).ok_or(JobError::Nameless)?;
        let failed = |source| JobError::Io {
            path: dir.clone(),
            source,
        };
        let owner = dir.parent().unwrap_or(jobs);
        durable::create_dir(jobs, 0o700).map_err(|e| failed(io::Error::other(e)))?;
        // One at a time, so that the count holds.
        let _turn = durable::Lock::exclusive(&jobs.join(".turn"), 0o600, Duration::from_secs(5))
            .map_err(|e| failed(io::Error::other(e)))?;
        if sweep(jobs, SystemTime::now()) >= MOST {
            return Err(JobError::TooMany);
        }
        if fs::symlink_metadata(&dir).is_ok() {
            return Err(JobError::Exists);
        }
        durable::create_dir(owner, 0o700).map_err(|e| failed(io::Error::other(e)))?;
        // Under a name of its own until it is complete: whoever finds a job finds its lock held.
        let staging = owner.join(format!(".new-{}", std::process::id()));
        let _ = fs::remove_dir_all(&staging);
        let lock = fill(&staging).and_then(|lock| {
            fs::rename(&staging, &dir)?;
            Ok(lock)
        });
        match lock {
            Ok(lock) => Ok(Self { dir, _lock: lock }),
            Err(e) => {
                let _ = fs::remove_dir_all(&staging);
                Err(failed(e))
            }
        }
    }

    /// The files that its streams go to.
    pub(super) fn files(&self) -> io::Result<(File, File)> {
        let open = |name| {
            OpenOptions::new()
                .read(true)
                .write(true)
                .create_new(true)
                .mode(0o600)
                .custom_flags(libc::O_NOFOLLOW)
                .open(self.dir.join(name))
        };
        Ok((open("stdout")?, open("stderr")?))
    }

    /// Keeps the result. The streams are in it, so their files go.
    pub(super) fn end(self, reply: &Reply) -> Result<(), JobError> {
        let path = self.dir.join("result");
        durable::replace(&path, &encode_reply(reply), 0o600).map_err(|e| JobError::Io {
            path,
            source: io::Error::other(e),
        })?;
        for name in ["stdout", "stderr"] {
            let _ = fs::remove_file(self.dir.join(name));
        }
        Ok(())
    }

    /// It did not come to pass.
    pub(super) fn drop_it(self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

fn fill(dir: &Path) -> io::Result<Hold> {
    use std::os::unix::fs::DirBuilderExt as _;
    fs::DirBuilder::new().mode(0o700).create(dir)?;
    // Nobody else knows the directory yet.
    Hold::take(&dir.join("lock"))?.ok_or_else(|| io::ErrorKind::AlreadyExists.into())
}

/// A job as others than its supervisor see it.
#[derive(Debug)]
pub(super) struct Seen {
    dir: Option<PathBuf>,
}

impl Seen {
    pub(super) fn of(jobs: &Path, request: &Request) -> Self {
        let dir = place(jobs, &request.dispatcher, &request.reqid);
        Self { dir }
    }

    pub(super) fn state(&self) -> State {
        let Some(dir) = self.dir.as_deref().filter(|dir| dir.is_dir()) else {
            return State::Unknown;
        };
        if is_held(dir) {
            return State::Running;
        }
        // Asked in this order: the result is there before the lock is free.
        match fs::read(dir.join("result")) {
            Ok(reply) => State::Over(reply),
            Err(_) if dir.is_dir() => State::Lost,
            Err(_) => State::Unknown,
        }
    }

    /// State and output so far, without waiting.
    pub(super) fn peek(&self) -> Reply {
        let tail = |name| {
            self.dir
                .as_ref()
                .map_or(Vec::new(), |dir| tail(&dir.join(name)))
        };
        Reply {
            stdout: tail("stdout"),
            stderr: tail("stderr"),
            ..answer(0, Kind::Running)
        }
    }

    /// Asks the supervisor to end the run. False when there was none to ask.
    pub(super) fn cancel(&self) -> bool {
        let asked = |dir: &PathBuf| signal_holder(&dir.join("lock"), Signal::USR1);
        self.dir
            .as_ref()
            .is_some_and(|dir| asked(dir).unwrap_or(false))
    }

    /// Removes a job that is over.
    pub(super) fn forget(&self) {
        if let Some(dir) = &self.dir {
            remove(dir);
        }
    }
}

/// An answer about a job.
pub(super) fn answer(exit: i32, kind: Kind) -> Reply {
    Reply {
        exit,
        extras: Some(ReplyExtras {
            kind,
            ..ReplyExtras::default()
        }),
        ..Reply::default()
    }
}

/// A lock that cannot be asked about counts as free: its run is then lost, not going on for ever.
fn is_held(dir: &Path) -> bool {
    Hold::is_held(&dir.join("lock")).unwrap_or(false)
}

fn tail(path: &Path) -> Vec<u8> {
    let read = || {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(PEEK)))?;
        let mut bytes = Vec::new();
        file.take(PEEK).read_to_end(&mut bytes)?;
        io::Result::Ok(bytes)
    };
    read().unwrap_or_default()
}

/// The result first: a removal that stops half-way leaves a job that is lost, not one without its output.
fn remove(dir: &Path) {
    let _ = fs::remove_file(dir.join("result"));
    let _ = fs::remove_dir_all(dir);
    if let Some(owner) = dir.parent() {
        // Only an empty one goes.
        let _ = fs::remove_dir(owner);
    }
}

/// Removes what is over and too old; answers how many jobs are left. Called with the turn held.
fn sweep(jobs: &Path, now: SystemTime) -> usize {
    let list = |dir: &Path| {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        entries
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
            .map(|entry| entry.path())
            .collect::<Vec<_>>()
    };
    let mut left = 0;
    for dir in list(jobs).iter().flat_map(|owner| list(owner)) {
        let age = fs::metadata(&dir)
            .and_then(|data| data.modified())
            .ok()
            .and_then(|changed| now.duration_since(changed).ok());
        if age.is_some_and(|age| age > KEPT) && !is_held(&dir) {
            remove(&dir);
        } else {
            left += 1;
        }
    }
    left
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn request(dispatcher: &str, reqid: &str) -> Request {
        Request {
            dispatcher: dispatcher.to_owned(),
            reqid: reqid.to_owned(),
            ..Request::default()
        }
    }

    #[test]
    fn names_that_would_leave_their_directory_are_no_jobs() {
        let jobs = Path::new("/j");
        assert_eq!(
            place(jobs, "d/..", "r1").unwrap(),
            Path::new("/j/642f2e2e/r1")
        );
        for (dispatcher, reqid) in [("", "r"), ("d", ""), ("d", ".."), ("d", "a/b"), ("d", ".x")] {
            assert_eq!(place(jobs, dispatcher, reqid), None);
        }
        assert_eq!(place(jobs, &"d".repeat(121), "r"), None);
    }

    #[test]
    fn a_job_goes_through_its_states() {
        let dir = tempfile::tempdir().unwrap();
        let jobs = dir.path().join("jobs");
        let ours = request("d1", "r1");
        let seen = Seen::of(&jobs, &ours);
        assert_eq!(seen.state(), State::Unknown);
        assert!(!seen.cancel());

        let job = Job::begin(&jobs, &ours).unwrap();
        assert!(matches!(Job::begin(&jobs, &ours), Err(JobError::Exists)));
        assert_eq!(seen.state(), State::Running);
        let (mut out, _err) = job.files().unwrap();
        out.write_all(&vec![b'x'; 70_000]).unwrap();
        out.write_all(b"end").unwrap();
        let peeked = seen.peek();
        assert_eq!(peeked.stdout.len(), 65_536);
        assert!(peeked.stdout.ends_with(b"xend"));
        assert_eq!(peeked.extras.unwrap().kind, Kind::Running);
        // Others cannot ask about it.
        let other = Seen::of(&jobs, &request("d2", "r1"));
        assert_eq!(other.state(), State::Unknown);

        drop(job);
        assert_eq!(seen.state(), State::Lost);
        assert!(!seen.cancel());
        seen.forget();
        assert_eq!(seen.state(), State::Unknown);
        assert_eq!(fs::read_dir(&jobs).unwrap().count(), 1, "only .turn");
    }

    #[test]
    fn old_jobs_are_swept_and_their_number_is_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let jobs = dir.path().join("jobs");
        let held = Job::begin(&jobs, &request("d", "held")).unwrap();
        drop(Job::begin(&jobs, &request("d", "over")).unwrap());
        let now = SystemTime::now();
        assert_eq!(sweep(&jobs, now), 2);
        let tomorrow = now + KEPT + Duration::from_secs(60);
        assert_eq!(sweep(&jobs, tomorrow), 1);
        assert_eq!(
            Seen::of(&jobs, &request("d", "held")).state(),
            State::Running
        );
        for number in 1..MOST {
            fs::create_dir(jobs.join("64").join(number.to_string())).unwrap();
        }
        let refused = Job::begin(&jobs, &request("e", "more"));
        assert!(matches!(refused, Err(JobError::TooMany)));
        held.drop_it();
        assert!(Job::begin(&jobs, &request("e", "more")).is_ok());
    }
}
