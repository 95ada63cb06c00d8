//! What a dispatcher may change while the agent runs: first on disk, then in force, then the answer.
//!
//! The part that has changed is read back from the disk and put into the picture that requests are judged by; configuration and allowlist are
//! not read again, and what is known of addresses stays. Reading and replacing happen without a pause on the daemon's one thread, so neither a
//! reload nor another change can put an older state in force again.

use std::sync::Arc;
use std::time::Instant;

use crate::applets::cea::gate::Caller;
use crate::applets::cea::material;
use crate::applets::cea::revocations::Revocations;
use crate::applets::cea::state::{Agent, Snapshot};
use crate::applets::cea::timekeeping::Note;
use crate::core::task;
use crate::core::tls;
use crate::core::trust::{TrustError, TrustMap};

/// Runs a change in a task of its own: a client that goes away must not leave half of one.
///
/// # Errors
/// Those of the change, as a sentence.
pub(super) async fn to_the_end<T: Send + 'static>(
    work: impl Future<Output = Result<T, String>> + Send + 'static,
) -> Result<T, String> {
    task::spawn(work)
        .await
        .unwrap_or_else(|_| Err("the change was abandoned".to_owned()))
}

/// Work that waits for the disk or a lock, beside the daemon's thread.
///
/// # Errors
/// Those of the work, as a sentence.
pub(super) async fn on_disk<T: Send + 'static, E: std::fmt::Display + Send + 'static>(
    work: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, String> {
    match task::spawn_blocking(work).await {
        Ok(result) => result.map_err(|e| e.to_string()),
        Err(_) => Err("the change was abandoned".to_owned()),
    }
}

impl Agent {
    fn amend(&self, edit: impl FnOnce(&mut Snapshot)) {
        let mut fresh = Snapshot::clone(&self.snapshot());
        edit(&mut fresh);
        self.put_in_force(fresh);
    }

    /// Puts the trust map in force as it lies on disk.
    ///
    /// # Errors
    /// It cannot be read; the old one stays.
    pub(super) fn refresh_trust(&self) -> Result<(), TrustError> {
        let trust = TrustMap::load(&self.snapshot().config.trusted_dispatchers_path)?;
        self.amend(|snapshot| snapshot.trust = Arc::new(trust));
        Ok(())
    }

    /// Puts both revocation lists in force as they lie on disk.
    ///
    /// # Errors
    /// One cannot be read; the old ones stay.
    pub(super) fn refresh_revoked(&self) -> Result<(), TrustError> {
        let revoked = Revocations::load(&self.snapshot().config)?;
        self.amend(|snapshot| snapshot.revoked = Arc::new(revoked));
        Ok(())
    }

    /// Puts certificate and CAs in force, staged ones included: connections that begin from now on see them.
    ///
    /// # Errors
    /// A file cannot be used; what was in force stays.
    pub(super) fn refresh_material(&self) -> Result<(), String> {
        let old = self.snapshot();
        let fresh = material::load(&old.config, |s| old.revoked.contains(s), &old.clock)?;
        let tls = tls::server_config(&fresh.identity, &fresh.trusted.cas, old.clock.clone())
            .map_err(|e| e.to_string())?;
        self.amend(|snapshot| {
            snapshot.material = Arc::new(fresh);
            snapshot.tls = tls;
        });
        Ok(())
    }

    /// A trusted dispatcher has called: perhaps it knows better what time it is.
    pub(super) fn heard(&self, caller: &Caller) {
        let snapshot = &caller.snapshot;
        let witness = caller.witness();
        let platform = self.context.paths.platform();
        let now = Instant::now();
        if self
            .timekeeper
            .heard(&snapshot.clock, &witness, platform, now)
        {
            let note = Note::new(&snapshot.config, &snapshot.clock, &witness);
            // Nobody waits for it: without it the host only knows less after its next start.
            drop(task::spawn_blocking(move || note.write(false)));
        }
    }

    /// Writes the time down beside a change that is written anyway.
    pub(super) async fn note_time(&self, caller: &Caller) {
        let snapshot = &caller.snapshot;
        let note = Note::new(&snapshot.config, &snapshot.clock, &caller.witness());
        let _ = task::spawn_blocking(move || note.write(true)).await;
    }
}
