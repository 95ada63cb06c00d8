//! The dispatcher's identities as they are on disk now: another process rotates them (`ced maintain`), and revokes.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::applets::api::state::{Api, Snapshot};
use crate::core::client::exchange::Client;
use crate::core::client::pool::Pool;
use crate::core::config::DispatcherConfig;
use crate::core::logging::Action;
use crate::core::task;

/// The files are looked at this often and no more.
const PAUSE: Duration = Duration::from_secs(1);

/// What the files looked like; `None` for one that is not there.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Stamp(Vec<Option<[i64; 5]>>);

impl Stamp {
    /// Device, inode, time of the last change and size of everything that a [`Client`] is read from.
    pub(super) fn of(config: &DispatcherConfig) -> Self {
        let directory = config.key.parent().unwrap_or(Path::new("/"));
        let files = [
            &config.cert,
            &config.key,
            &config.ca,
            &config.revoked_file,
            &directory.join("identities"),
        ];
        let look = |path: &&std::path::PathBuf| {
            let meta = std::fs::metadata(path).ok()?;
            Some([
                meta.dev().cast_signed(),
                meta.ino().cast_signed(),
                meta.mtime(),
                meta.mtime_nsec(),
                meta.size().cast_signed(),
            ])
        };
        Self(files.iter().map(look).collect())
    }
}

/// The identities in force.
#[derive(Default)]
pub(super) struct Identities {
    present: Mutex<Option<Present>>,
    /// Held by whoever looks at the files.
    looking: tokio::sync::Mutex<()>,
}

#[derive(Clone)]
struct Present {
    /// The picture that they were made for.
    snapshot: Arc<Snapshot>,
    client: Client,
    stamp: Stamp,
    looked: Instant,
    /// A change that could not be used has been complained of.
    complained: bool,
}

impl Identities {
    /// What holds for this picture and was looked at lately.
    fn present(&self, snapshot: &Arc<Snapshot>) -> Option<Present> {
        let present = self.present.lock().unwrap_or_else(PoisonError::into_inner);
        let same = |p: &&Present| Arc::ptr_eq(&p.snapshot, snapshot);
        present.as_ref().filter(same).cloned()
    }

    fn put(&self, fresh: Present) {
        *self.present.lock().unwrap_or_else(PoisonError::into_inner) = Some(fresh);
    }
}

impl Api {
    /// The client for the next exchange, with the identities and revocations that are on disk.
    pub(super) async fn client(self: &Arc<Self>) -> Client {
        let snapshot = self.snapshot();
        let fresh = |known: &Present| known.looked.elapsed() < PAUSE;
        if let Some(known) = self.identities.present(&snapshot).filter(fresh) {
            return known.client;
        }
        let _looking = self.identities.looking.lock().await;
        let known = self.identities.present(&snapshot);
        if let Some(known) = known.as_ref().filter(|known| fresh(known)) {
            return known.client.clone();
        }
        let known = known.unwrap_or_else(|| Present {
            client: self.equip(snapshot.client.clone()),
            stamp: snapshot.stamp.clone(),
            looked: Instant::now(),
            complained: false,
            snapshot,
        });
        let client = known.client.clone();
        let api = self.clone();
        let looked = task::spawn_blocking(move || api.look(known)).await;
        let Ok(present) = looked else {
            return client;
        };
        let client = present.client.clone();
        self.identities.put(present);
        client
    }

    /// Reads what has changed.
    fn look(&self, mut known: Present) -> Present {
        let config = &known.snapshot.config;
        // Before it is read: what changes meanwhile is read again.
        let stamp = Stamp::of(config);
        if stamp != known.stamp || known.complained {
            match Client::load(config, known.snapshot.clock.clone()) {
                Ok((client, _)) => {
                    Action::new("identity-reload").info();
                    known.client = self.equip(client);
                    known.stamp = stamp;
                    known.complained = false;
                }
                Err(error) => {
                    if !known.complained {
                        Action::new("identity-reload").field("ERROR", error).err();
                    }
                    known.complained = true;
                }
            }
        }
        known.looked = Instant::now();
        known
    }

    /// With connections that are kept, and a share in the memory for large answers.
    fn equip(&self, client: Client) -> Client {
        client
            .with_pool(Pool::new(self.connections.clone()))
            .with_budget(self.budget.clone())
    }
}
