//! Retention: a record is kept for a day after its last change, a run that goes on for as long as it does (spec/agent.md 12.4).

use std::fs::DirEntry;
use std::time::{Duration, SystemTime};

use super::store::{MAX_ENTRIES, entries, log_skipped};
use super::{Hold, Key, Status, Store, Via};
use crate::core::types::{DispatcherId, ReqId};

/// How long a record is kept after it was last written.
pub const KEPT: Duration = Duration::from_secs(86_400);

/// What a sweep did.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Swept {
    /// Records removed.
    pub records: usize,
    /// There was more to look at than one sweep does.
    pub incomplete: bool,
}

impl Store {
    /// Removes what is older than [`KEPT`], temporary files included. Files with other names are none of ours and stay.
    pub fn sweep(&self, now: SystemTime) -> Swept {
        let mut swept = Swept::default();
        let mut seen = 0;
        // Records without owner, as very old agents wrote them.
        for entry in entries(self.root()) {
            seen += 1;
            if is_old(&entry, now) && is_record(&entry) {
                swept.records += usize::from(std::fs::remove_file(entry.path()).is_ok());
            }
        }
        for (owner, dir) in self.owners() {
            for entry in entries(&dir) {
                seen += 1;
                if seen > MAX_ENTRIES {
                    swept.incomplete = true;
                    return swept;
                }
                if is_old(&entry, now) {
                    swept.records += usize::from(self.sweep_file(&owner, &entry));
                }
            }
        }
        swept
    }

    /// True when a record was removed.
    fn sweep_file(&self, owner: &DispatcherId, entry: &DirEntry) -> bool {
        let name = entry.file_name();
        let Some(name) = name.to_str() else {
            return false;
        };
        if name.starts_with('.') && name.ends_with(".tmp") {
            let _ = std::fs::remove_file(entry.path());
            return false;
        }
        let Some((stem, extension)) = name.rsplit_once('.') else {
            return false;
        };
        let Ok(reqid) = ReqId::new(stem) else {
            return false;
        };
        let key = Key {
            owner: owner.clone(),
            reqid,
        };
        match extension {
            "json" => self.sweep_record(&key),
            // Beside a record they go with it; alone they are remains of a run that never got one.
            "live" | "out" | "err" if !self.file(&key, "json").exists() => {
                if let Ok(Some(hold)) = Hold::take(&self.live(&key)) {
                    self.forget_progress(&key);
                    hold.retire();
                }
                false
            }
            _ => false,
        }
    }

    fn sweep_record(&self, key: &Key) -> bool {
        match self.read(key) {
            // Whoever waits for the executor brings it to an end.
            Ok(Some(found))
                if found.head.status == Status::Running
                    && found.head.via == Some(Via::Executor) =>
            {
                return false;
            }
            Ok(Some(found)) if found.head.status == Status::Running => {
                // Nobody is asked for the time here: what is lost and that old goes at once.
                let alive = self.is_alive(key, &found.head);
                if alive {
                    return false;
                }
            }
            Ok(_) => {}
            Err(error) => log_skipped(&error),
        }
        let Ok(Some(hold)) = Hold::take(&self.live(key)) else {
            return false;
        };
        let removed = std::fs::remove_file(self.file(key, "json")).is_ok();
        self.forget_progress(key);
        hold.retire();
        removed
    }
}

fn is_old(entry: &DirEntry, now: SystemTime) -> bool {
    // Of the entry itself: a link has an age of its own.
    entry
        .metadata()
        .and_then(|about| about.modified())
        .is_ok_and(|changed| now.duration_since(changed).is_ok_and(|age| age > KEPT))
}

fn is_record(entry: &DirEntry) -> bool {
    entry
        .file_name()
        .to_str()
        .and_then(|name| name.strip_suffix(".json"))
        .is_some_and(|stem| ReqId::new(stem).is_ok())
        && entry.file_type().is_ok_and(|kind| !kind.is_dir())
}
