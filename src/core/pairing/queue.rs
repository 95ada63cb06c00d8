//! The queue directory between the listener and the operator's commands (spec/pairing.md 5).
//!
//! File names are the original's: `<id>.json` waits, `<id>.approved` and `<id>.denied` hold the verdict until the connection has
//! delivered it. A request that is over is renamed to `<id>.<outcome>` ([`Outcome`]), which the original does not look at; it stays there for a
//! while so that `list-requests` can tell what became of it.
//!
//! Every change of state happens under one lock, so each request has one fate: [`Queue::claim`] (a person) and [`Queue::withdraw`] (the listener) exclude
//! each other. Peers of the original do not take the lock; against those the window is as small as they made it.

mod expiry;
mod owned_file;

use std::fs::OpenOptions;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use self::owned_file::{own_uid, read_owned};
use super::APPROVAL_WINDOW;
use super::ids::{Outcome, PairingId, SessionId};
use super::record::{Record, RecordError};
use crate::core::durable::{self, DurableError, Lock, Owner, crash};
use crate::core::ratelimit::source_key;
use crate::core::types;

/// What keeps the queue from being used.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    #[error("No pending request '{0}'")]
    Unknown(PairingId),
    #[error("request '{id}' is over: {}", .outcome.as_str())]
    Over { id: PairingId, outcome: Outcome },
    #[error("request '{0}' is already decided")]
    Decided(PairingId),
    #[error("request '{0}' is older than 10 minutes: let the agent ask again")]
    TooOld(PairingId),
    #[error(
        "the pairing session that took request '{0}' has ended: start pairing mode and let the agent ask again"
    )]
    SessionGone(PairingId),
    #[error("request '{id}': {error}")]
    Record { id: PairingId, error: RecordError },
    #[error("the pairing queue is full")]
    Full,
    #[error("this address holds as many places of the pairing queue as one address may")]
    SourceFull,
    #[error("cannot use '{}': {source}", .path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("'{}' is not trusted: {reason}", .path.display())]
    Untrusted { path: PathBuf, reason: &'static str },
    #[error(transparent)]
    Durable(#[from] DurableError),
}

/// How long a change waits for another one; the longest waits itself for the lock of the CA's serial (30 s).
const LOCK_PATIENCE: Duration = Duration::from_secs(40);
/// How long a verdict may lie uncollected, and how long the note of an outcome stays.
const GRACE: Duration = Duration::from_secs(60);

/// A verdict that lies in the queue.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct StoredVerdict {
    pub approved: bool,
    /// The exact bytes for the agent.
    pub body: Vec<u8>,
}

/// What became of a withdrawal.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Withdrawal {
    Withdrawn,
    /// A person decided first.
    Overtaken(StoredVerdict),
}

/// One line of `list-requests`.
#[derive(Debug)]
pub struct Listing {
    /// Waiting, oldest first.
    pub pending: Vec<Record>,
    /// Over, but not for long, oldest first.
    pub over: Vec<(Record, Outcome)>,
    /// Files that are no requests, with the reason.
    pub unreadable: Vec<(PairingId, String)>,
}

/// How much may wait.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Requests in all (`pairing_max_queue`).
    pub depth: usize,
}

impl Limits {
    /// Places that one address may hold: all but two, so that none can fill the queue alone. This host itself is not limited.
    fn per_source(self, source: IpAddr) -> usize {
        if source.is_loopback() || self.depth < 4 {
            self.depth
        } else {
            self.depth - 2
        }
    }
}

/// The directory.
#[derive(Clone, Debug)]
pub struct Queue {
    dir: PathBuf,
}

impl Queue {
    /// For the operator's commands: nothing is created.
    pub fn at(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
        }
    }

    /// For the listener: creates the directory with mode 0700, and closes one of ours that a package left open to the group,
    /// because whoever can write there decides what is signed (spec/pairing.md 18.5).
    ///
    /// # Errors
    /// It cannot be created or closed.
    pub fn create(dir: &Path) -> Result<Self, QueueError> {
        durable::create_dir(dir, 0o700)?;
        let failed = |source| QueueError::Io {
            path: dir.to_owned(),
            source,
        };
        let metadata = std::fs::metadata(dir).map_err(failed)?;
        if metadata.mode() & 0o077 != 0 && metadata.uid() == own_uid() {
            std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o700))
                .map_err(failed)?;
        }
        Ok(Self::at(dir))
    }

    fn path(&self, id: &PairingId, extension: &str) -> PathBuf {
        self.dir.join(format!("{id}.{extension}"))
    }

    fn lock(&self) -> Result<Lock, QueueError> {
        Ok(Lock::exclusive(
            &self.dir.join(".queue.lock"),
            0o600,
            LOCK_PATIENCE,
        )?)
    }

    /// Whether there is room for one more from this source. Advice only: [`Queue::enqueue`] decides.
    ///
    /// # Errors
    /// [`QueueError::Full`], [`QueueError::SourceFull`], or the directory cannot be read.
    pub fn check_room(&self, limits: Limits, source: IpAddr) -> Result<(), QueueError> {
        let waiting = self.listing()?.pending;
        if waiting.len() >= limits.depth {
            return Err(QueueError::Full);
        }
        let key = source_key(source);
        let same = waiting
            .iter()
            .filter(|r| r.source.is_some_and(|s| source_key(s) == key))
            .count();
        if same >= limits.per_source(source) {
            return Err(QueueError::SourceFull);
        }
        Ok(())
    }

    /// Puts a request into the queue, counting and writing under the lock.
    ///
    /// # Errors
    /// As [`Queue::check_room`], and when it cannot be written.
    pub fn enqueue(
        &self,
        record: &Record,
        limits: Limits,
        now: SystemTime,
    ) -> Result<(), QueueError> {
        let _lock = self.lock()?;
        self.sweep(now)?;
        let source = record.source.unwrap_or(IpAddr::from([0, 0, 0, 0]));
        self.check_room(limits, source)?;
        Ok(durable::replace(
            &self.path(&record.id, "json"),
            &record.to_json(),
            0o600,
        )?)
    }

    /// Everything in the queue.
    ///
    /// # Errors
    /// The directory cannot be read. One that does not exist is empty.
    pub fn listing(&self) -> Result<Listing, QueueError> {
        let mut listing = Listing {
            pending: Vec::new(),
            over: Vec::new(),
            unreadable: Vec::new(),
        };
        for (id, extension) in self.files()? {
            let outcome = Outcome::ALL.into_iter().find(|o| o.as_str() == extension);
            if extension != "json" && outcome.is_none() {
                continue;
            }
            match (self.read_record(&id, &extension), outcome) {
                (Ok(Some(record)), None) => listing.pending.push(record),
                (Ok(Some(record)), Some(outcome)) => listing.over.push((record, outcome)),
                (Ok(None), _) => {}
                (Err(error), _) => listing.unreadable.push((id, error.to_string())),
            }
        }
        listing
            .pending
            .sort_by(|a, b| (&a.received, &a.id).cmp(&(&b.received, &b.id)));
        listing
            .over
            .sort_by(|(a, _), (b, _)| (&a.received, &a.id).cmp(&(&b.received, &b.id)));
        listing.unreadable.sort();
        Ok(listing)
    }

    /// Files of the form `<id>.<extension>`.
    fn files(&self) -> Result<Vec<(PairingId, String)>, QueueError> {
        let failed = |source| QueueError::Io {
            path: self.dir.clone(),
            source,
        };
        let entries = match std::fs::read_dir(&self.dir) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(failed)?,
        };
        let mut files = Vec::new();
        for entry in entries {
            let name = entry.map_err(failed)?.file_name();
            let parts = name.to_str().and_then(|n| n.split_once('.'));
            if let Some((stem, extension)) = parts
                && let Ok(id) = PairingId::new(stem)
            {
                files.push((id, extension.to_owned()));
            }
        }
        Ok(files)
    }

    fn read_record(&self, id: &PairingId, extension: &str) -> Result<Option<Record>, QueueError> {
        let Some(bytes) = read_owned(&self.path(id, extension))? else {
            return Ok(None);
        };
        Record::parse(id, &bytes)
            .map(Some)
            .map_err(|error| QueueError::Record {
                id: id.clone(),
                error,
            })
    }

    /// How a request ended, while the note of it is kept.
    pub fn outcome(&self, id: &PairingId) -> Option<Outcome> {
        Outcome::ALL
            .into_iter()
            .find(|outcome| self.path(id, outcome.as_str()).exists())
    }

    /// Whether the request still waits or its verdict is not yet collected.
    pub fn is_open(&self, id: &PairingId) -> bool {
        self.path(id, "json").exists()
    }

    /// Waits until the request is known, at most `patience` and only while a session is running: an agent announces its id when the
    /// listener has acknowledged it, which is a moment before the request is queued (reveal, reverse name).
    pub fn await_known(&self, id: &PairingId, patience: Duration) {
        let end = Instant::now() + patience;
        while !self.is_open(id)
            && self.outcome(id).is_none()
            && self.any_session_lives()
            && Instant::now() < end
        {
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn any_session_lives(&self) -> bool {
        let Ok(entries) = std::fs::read_dir(&self.dir) else {
            return false;
        };
        entries.flatten().any(|entry| {
            entry
                .file_name()
                .to_str()
                .and_then(|name| name.strip_prefix(".session-")?.strip_suffix(".lock"))
                .and_then(SessionId::from_hex)
                .is_some_and(|session| self.session_lives(&session))
        })
    }

    /// The verdict that lies there, if any.
    ///
    /// # Errors
    /// The file exists and is not to be trusted or cannot be read.
    pub fn verdict(&self, id: &PairingId) -> Result<Option<StoredVerdict>, QueueError> {
        for (extension, approved) in [("approved", true), ("denied", false)] {
            if let Some(body) = read_owned(&self.path(id, extension))? {
                return Ok(Some(StoredVerdict { approved, body }));
            }
        }
        Ok(None)
    }

    /// Takes a request for a decision; until the claim is dropped nobody else can decide on it.
    ///
    /// # Errors
    /// Unknown, over, decided, too old, changed, or its session is dead.
    pub fn claim(&self, id: &PairingId, now: SystemTime) -> Result<Claim<'_>, QueueError> {
        if !self.dir.is_dir() {
            return Err(QueueError::Unknown(id.clone()));
        }
        let lock = self.lock()?;
        let record = self.read_record(id, "json")?;
        if self.verdict(id)?.is_some() {
            return Err(QueueError::Decided(id.clone()));
        }
        let Some(record) = record else {
            return Err(match self.outcome(id) {
                Some(outcome) => QueueError::Over {
                    id: id.clone(),
                    outcome,
                },
                None => QueueError::Unknown(id.clone()),
            });
        };
        if self
            .age(id, "json", now)
            .is_none_or(|age| age >= APPROVAL_WINDOW)
        {
            return Err(QueueError::TooOld(id.clone()));
        }
        if let Some(session) = &record.session
            && !self.session_lives(session)
        {
            return Err(QueueError::SessionGone(id.clone()));
        }
        Ok(Claim {
            queue: self,
            record,
            _lock: lock,
        })
    }

    /// Denies a request whatever state its file is in. Returns the record when it could be read.
    ///
    /// # Errors
    /// Unknown, over or decided, or the verdict cannot be written.
    pub fn deny(&self, id: &PairingId, body: &[u8]) -> Result<Option<Record>, QueueError> {
        if !self.dir.is_dir() {
            return Err(QueueError::Unknown(id.clone()));
        }
        let _lock = self.lock()?;
        if !self.is_open(id) {
            return Err(match self.outcome(id) {
                Some(outcome) => QueueError::Over {
                    id: id.clone(),
                    outcome,
                },
                None => QueueError::Unknown(id.clone()),
            });
        }
        if self.verdict(id)?.is_some() {
            return Err(QueueError::Decided(id.clone()));
        }
        let record = self.read_record(id, "json").unwrap_or_default();
        durable::replace(&self.path(id, "denied"), body, 0o600)?;
        self.retire(id, Outcome::Denied)?;
        Ok(record)
    }

    /// The listener gives up on a request, unless a person was faster.
    ///
    /// # Errors
    /// The queue cannot be read or written.
    pub fn withdraw(&self, id: &PairingId, why: Outcome) -> Result<Withdrawal, QueueError> {
        let _lock = self.lock()?;
        if let Some(verdict) = self.verdict(id)? {
            return Ok(Withdrawal::Overtaken(verdict));
        }
        self.retire(id, why)?;
        Ok(Withdrawal::Withdrawn)
    }

    /// A decided request is over: removes its verdict and notes how it ended.
    ///
    /// # Errors
    /// A file cannot be renamed or removed.
    pub fn conclude(&self, id: &PairingId, outcome: Outcome) -> Result<(), QueueError> {
        let _lock = self.lock()?;
        // First the record: what is left of a crash in between is a verdict without a request, which expiry removes.
        self.retire(id, outcome)?;
        durable::remove(&self.path(id, "approved"))?;
        durable::remove(&self.path(id, "denied"))?;
        Ok(())
    }

    fn retire(&self, id: &PairingId, outcome: Outcome) -> Result<(), QueueError> {
        let from = self.path(id, "json");
        let to = self.path(id, outcome.as_str());
        match crash::effect().and_then(|()| std::fs::rename(&from, to)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(QueueError::Io {
                path: from,
                source: e,
            }),
            _ => Ok(()),
        }
    }

    /// Begins a session: as long as the value lives its requests can be approved.
    ///
    /// # Errors
    /// The lock file cannot be made.
    pub fn session(&self) -> Result<Session, QueueError> {
        let random = types::random::<8>().map_err(|_| QueueError::Io {
            path: self.dir.clone(),
            source: io::Error::other("the system gives no random bytes"),
        })?;
        let id = SessionId::from_bytes(random);
        let path = self.session_path(&id);
        let lock = Lock::exclusive(&path, 0o600, Duration::ZERO)?;
        Ok(Session {
            id,
            path,
            _lock: lock,
        })
    }

    fn session_path(&self, id: &SessionId) -> PathBuf {
        self.dir.join(format!(".session-{id}.lock"))
    }

    /// Whether somebody holds the session's lock. A file that cannot be opened counts as dead: its listener could not deliver to us either.
    fn session_lives(&self, id: &SessionId) -> bool {
        // A FIFO in its place must not hold us.
        OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(self.session_path(id))
            .is_ok_and(|file| matches!(file.try_lock(), Err(std::fs::TryLockError::WouldBlock)))
    }
}

/// A running listener. The kernel ends it together with the process.
#[derive(Debug)]
pub struct Session {
    pub id: SessionId,
    path: PathBuf,
    _lock: Lock,
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// A request that is being decided. Holds the queue's lock.
#[derive(Debug)]
pub struct Claim<'a> {
    queue: &'a Queue,
    pub record: Record,
    _lock: Lock,
}

impl Claim<'_> {
    /// Writes the approval to the disk without making it visible; [`durable::Prepared::commit`] is the moment of approval.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn prepare_approval(&self, body: &[u8]) -> Result<durable::Prepared, QueueError> {
        let path = self.queue.path(&self.record.id, "approved");
        Ok(durable::prepare(&path, body, 0o600, Owner::default())?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::pairing::message::parse_ip;
    use crate::core::pairing::record::tests::sample;

    const LIMITS: Limits = Limits { depth: 10 };

    struct Bench {
        _dir: tempfile::TempDir,
        queue: Queue,
        session: Session,
        now: SystemTime,
    }

    impl Bench {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let queue = Queue::create(&dir.path().join("pairing")).unwrap();
            let session = queue.session().unwrap();
            Self {
                _dir: dir,
                queue,
                session,
                now: SystemTime::now(),
            }
        }

        fn record(&self, id: &str, source: &str) -> Record {
            let mut record = sample(id, "web01", false);
            record.session = Some(self.session.id.clone());
            record.source = parse_ip(source);
            record
        }

        fn add(&self, id: &str) -> PairingId {
            let record = self.record(id, "127.0.0.1");
            self.queue.enqueue(&record, LIMITS, self.now).unwrap();
            record.id
        }

        fn after(&self, seconds: u64) -> SystemTime {
            self.now + Duration::from_secs(seconds)
        }

        fn names(&self) -> Vec<String> {
            let mut names: Vec<String> = std::fs::read_dir(&self.queue.dir)
                .unwrap()
                .map(|e| e.unwrap().file_name().into_string().unwrap())
                .filter(|n| !n.starts_with('.'))
                .collect();
            names.sort();
            names
        }

        fn approve(&self, id: &PairingId) -> Result<(), QueueError> {
            let claim = self.queue.claim(id, self.now)?;
            Ok(claim.prepare_approval(b"{}")?.commit()?)
        }
    }

    #[test]
    fn the_directory_and_its_files_are_closed_to_others() {
        let bench = Bench::new();
        let id = bench.add("0a");
        let mode = |p: &Path| std::fs::metadata(p).unwrap().mode() & 0o7777;
        assert_eq!(mode(&bench.queue.dir), 0o700);
        assert_eq!(mode(&bench.queue.path(&id, "json")), 0o600);
        std::fs::set_permissions(&bench.queue.dir, std::fs::Permissions::from_mode(0o2770))
            .unwrap();
        Queue::create(&bench.queue.dir).unwrap();
        assert_eq!(mode(&bench.queue.dir), 0o700);
    }

    #[test]
    fn ten_wait_and_the_eleventh_is_refused() {
        let bench = Bench::new();
        for n in 0..10 {
            bench.add(&format!("{n:02x}"));
        }
        let record = bench.record("ff", "127.0.0.1");
        let result = bench.queue.enqueue(&record, LIMITS, bench.now);
        assert!(matches!(result, Err(QueueError::Full)));
        assert_eq!(bench.queue.listing().unwrap().pending.len(), 10);
    }

    #[test]
    fn one_address_cannot_fill_the_queue_alone() {
        let bench = Bench::new();
        for n in 0..8 {
            let record = bench.record(&format!("{n:02x}"), "192.0.2.1");
            bench.queue.enqueue(&record, LIMITS, bench.now).unwrap();
        }
        let record = bench.record("ff", "192.0.2.1");
        let result = bench.queue.enqueue(&record, LIMITS, bench.now);
        assert!(matches!(result, Err(QueueError::SourceFull)));
        let record = bench.record("ff", "192.0.2.2");
        bench.queue.enqueue(&record, LIMITS, bench.now).unwrap();

        // The addresses of one IPv6 network are one source.
        let bench = Bench::new();
        for n in 0..8 {
            let record = bench.record(&format!("{n:02x}"), &format!("2001:db8::{n:x}"));
            bench.queue.enqueue(&record, LIMITS, bench.now).unwrap();
        }
        let record = bench.record("ff", "2001:db8::ff");
        let result = bench.queue.enqueue(&record, LIMITS, bench.now);
        assert!(matches!(result, Err(QueueError::SourceFull)));
    }

    #[test]
    fn approval_and_withdrawal_exclude_each_other() {
        let bench = Bench::new();
        let id = bench.add("0a");
        bench.approve(&id).unwrap();
        let overtaken = bench.queue.withdraw(&id, Outcome::TimedOut).unwrap();
        let verdict = StoredVerdict {
            approved: true,
            body: b"{}".to_vec(),
        };
        assert_eq!(overtaken, Withdrawal::Overtaken(verdict));
        bench.queue.conclude(&id, Outcome::Delivered).unwrap();
        assert_eq!(bench.names(), ["0a.delivered"]);

        let id = bench.add("0b");
        let withdrawn = bench.queue.withdraw(&id, Outcome::Abandoned).unwrap();
        assert_eq!(withdrawn, Withdrawal::Withdrawn);
        let error = bench.approve(&id).unwrap_err();
        assert_eq!(error.to_string(), "request '0b' is over: abandoned");
        assert!(bench.queue.deny(&id, b"{}").is_err());
    }

    #[test]
    fn two_approvals_or_an_approval_and_a_denial_do_not_both_count() {
        let bench = Bench::new();
        let id = bench.add("0a");
        bench.approve(&id).unwrap();
        assert!(matches!(bench.approve(&id), Err(QueueError::Decided(_))));
        assert!(matches!(
            bench.queue.deny(&id, b"{}"),
            Err(QueueError::Decided(_))
        ));
        let id = bench.add("0b");
        bench.queue.deny(&id, b"{}").unwrap();
        assert!(bench.approve(&id).is_err());
        assert!(matches!(
            bench.approve(&PairingId::new("0c").unwrap()),
            Err(QueueError::Unknown(_))
        ));
    }

    #[test]
    fn racing_deciders_have_exactly_one_winner() {
        let bench = Bench::new();
        for n in 0..20 {
            let id = bench.add(&format!("{n:02x}"));
            let barrier = std::sync::Barrier::new(3);
            let wins: usize = std::thread::scope(|scope| {
                let approve = || {
                    barrier.wait();
                    usize::from(bench.approve(&id).is_ok())
                };
                let (one, two) = (scope.spawn(approve), scope.spawn(approve));
                let give_up = scope.spawn(|| {
                    barrier.wait();
                    let result = bench.queue.withdraw(&id, Outcome::TimedOut).unwrap();
                    usize::from(result == Withdrawal::Withdrawn)
                });
                [one, two, give_up]
                    .into_iter()
                    .map(|t| t.join().unwrap())
                    .sum()
            });
            assert_eq!(wins, 1);
            bench.queue.conclude(&id, Outcome::Delivered).unwrap();
        }
    }

    #[test]
    fn a_request_of_a_dead_session_or_beyond_its_time_cannot_be_approved() {
        let bench = Bench::new();
        let id = bench.add("0a");
        let late = bench.queue.claim(&id, bench.after(601)).unwrap_err();
        assert!(matches!(late, QueueError::TooOld(_)), "{late}");
        let mut record = bench.record("0b", "127.0.0.1");
        record.session = SessionId::from_hex("dead");
        bench.queue.enqueue(&record, LIMITS, bench.now).unwrap();
        assert!(matches!(
            bench.approve(&record.id),
            Err(QueueError::SessionGone(_))
        ));
        // A listener of the original names no session.
        record.id = PairingId::new("0c").unwrap();
        record.session = None;
        bench.queue.enqueue(&record, LIMITS, bench.now).unwrap();
        bench.approve(&record.id).unwrap();
    }

    #[test]
    fn what_is_stale_goes_and_frees_its_place() {
        let bench = Bench::new();
        let old = bench.add("0a");
        let approved = bench.add("0b");
        bench.approve(&approved).unwrap();
        let denied = bench.add("0c");
        bench.queue.deny(&denied, b"{}").unwrap();
        let abandoned = bench.add("0d");
        bench
            .queue
            .withdraw(&abandoned, Outcome::Abandoned)
            .unwrap();
        bench.queue.expire(bench.after(59)).unwrap();
        assert_eq!(
            bench.names(),
            [
                "0a.json",
                "0b.approved",
                "0b.json",
                "0c.denied",
                "0c.rejected",
                "0d.abandoned"
            ]
        );
        bench.queue.expire(bench.after(61)).unwrap();
        assert!(!bench.queue.path(&denied, "denied").exists());
        bench.queue.expire(bench.after(601)).unwrap();
        assert!(!bench.queue.is_open(&old));
        // Approved and never collected: kept a little longer, then gone, so that nothing blocks the queue for ever.
        assert!(bench.queue.is_open(&approved));
        bench.queue.expire(bench.after(661)).unwrap();
        assert_eq!(bench.names(), Vec::<String>::new());
        assert!(bench.queue.session_lives(&bench.session.id));
    }

    #[test]
    fn a_file_that_others_could_have_written_is_not_read() {
        let bench = Bench::new();
        let id = bench.add("0a");
        let verdict = bench.queue.path(&id, "approved");
        std::fs::write(&verdict, b"{}").unwrap();
        std::fs::set_permissions(&verdict, std::fs::Permissions::from_mode(0o666)).unwrap();
        let error = bench.queue.verdict(&id).unwrap_err();
        assert!(matches!(error, QueueError::Untrusted { .. }), "{error}");
        std::fs::remove_file(&verdict).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", &verdict).unwrap();
        assert!(bench.queue.verdict(&id).is_err());
    }

    #[test]
    fn listings_are_in_order_and_name_what_is_broken() {
        let bench = Bench::new();
        for (id, received) in [
            ("0b", "2026-11-22T20:00:02Z"),
            ("0a", "2026-11-22T20:00:03Z"),
            ("0c", "2026-11-22T20:00:01Z"),
        ] {
            let mut record = bench.record(id, "127.0.0.1");
            record.received = received.to_owned();
            bench.queue.enqueue(&record, LIMITS, bench.now).unwrap();
        }
        durable::replace(&bench.queue.dir.join("0d.json"), b"{", 0o600).unwrap();
        durable::replace(&bench.queue.dir.join("README.json"), b"{", 0o600).unwrap();
        let listing = bench.queue.listing().unwrap();
        let ids: Vec<&str> = listing.pending.iter().map(|r| r.id.as_str()).collect();
        assert_eq!(ids, ["0c", "0b", "0a"]);
        assert_eq!(listing.unreadable.len(), 1);
        let nowhere = Queue::at(Path::new("/nonexistent"));
        assert!(nowhere.listing().unwrap().pending.is_empty());
    }
}
