//! What is removed from the queue, and when (spec/pairing.md 5, 18.4).

use std::io;
use std::time::{Duration, SystemTime};

use super::{GRACE, Queue, QueueError};
use crate::core::durable::{self, DurableError};
use crate::core::pairing::APPROVAL_WINDOW;
use crate::core::pairing::ids::{Outcome, PairingId, SessionId};

impl Queue {
    /// Removes what nobody waits for any more: requests older than the window, uncollected verdicts, notes, left-over temporary files.
    ///
    /// # Errors
    /// The directory cannot be read or a file not be removed. A directory that we may not write to is left as it is.
    pub fn expire(&self, now: SystemTime) -> Result<(), QueueError> {
        if !self.dir.is_dir() {
            return Ok(());
        }
        match self.lock() {
            Ok(_lock) => self.sweep(now),
            Err(QueueError::Durable(DurableError::Lock { source, .. }))
                if source.kind() == io::ErrorKind::PermissionDenied =>
            {
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    pub(super) fn sweep(&self, now: SystemTime) -> Result<(), QueueError> {
        let files = self.files()?;
        for (id, extension) in &files {
            let Some(age) = self.age(id, extension, now) else {
                continue;
            };
            let decided = || {
                files
                    .iter()
                    .any(|(other, e)| other == id && (e == "approved" || e == "denied"))
            };
            let stale = match extension.as_str() {
                "json" => age > APPROVAL_WINDOW + GRACE || (age > APPROVAL_WINDOW && !decided()),
                "approved" | "denied" => {
                    age > GRACE && !self.is_open(id) || age > APPROVAL_WINDOW + GRACE
                }
                other if Outcome::ALL.iter().any(|o| o.as_str() == other) => {
                    age > APPROVAL_WINDOW + GRACE
                }
                _ => false,
            };
            if stale {
                durable::remove(&self.path(id, extension))?;
            } else if extension == "json" && !decided() && self.is_orphan(id) {
                self.retire(id, Outcome::SessionEnded)?;
            }
        }
        self.sweep_hidden(now)
    }

    /// A request whose listener was killed: nobody can deliver an answer, so it must not take a place. One of the original's listener names no
    /// session, and a file that cannot be read is left for `list-requests` to complain about.
    fn is_orphan(&self, id: &PairingId) -> bool {
        let session = match self.read_record(id, "json") {
            Ok(Some(record)) => record.session,
            _ => None,
        };
        session.is_some_and(|session| !self.session_lives(&session))
    }

    /// Temporary files of interrupted writes, and locks of sessions that are dead.
    fn sweep_hidden(&self, now: SystemTime) -> Result<(), QueueError> {
        let failed = |source| QueueError::Io {
            path: self.dir.clone(),
            source,
        };
        for entry in std::fs::read_dir(&self.dir).map_err(failed)?.flatten() {
            let name = entry.file_name();
            let Some(name) = name.to_str().filter(|n| n.starts_with('.')) else {
                continue;
            };
            let session = name
                .strip_prefix(".session-")
                .and_then(|n| n.strip_suffix(".lock"))
                .and_then(SessionId::from_hex);
            let stale = match session {
                Some(session) => !self.session_lives(&session),
                None => name.ends_with(".tmp"),
            };
            let old = entry
                .metadata()
                .ok()
                .and_then(|m| m.modified().ok())
                .and_then(|m| now.duration_since(m).ok())
                .is_some_and(|age| age > APPROVAL_WINDOW);
            if stale && old {
                durable::remove(&entry.path())?;
            }
        }
        Ok(())
    }

    /// Age by the file's time. A file from the future is as old as can be: somebody set a clock, and doubt refuses.
    pub(super) fn age(&self, id: &PairingId, extension: &str, now: SystemTime) -> Option<Duration> {
        let modified = std::fs::symlink_metadata(self.path(id, extension))
            .ok()?
            .modified()
            .ok()?;
        match now.duration_since(modified) {
            Ok(age) => Some(age),
            Err(ahead) if ahead.duration() < GRACE => Some(Duration::ZERO),
            Err(_) => Some(Duration::MAX),
        }
    }
}
