//! What the server knows: one picture of everything that is read from disk, replaced as a whole, and what lives beside it.

use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};

use rustls::ServerConfig;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::applets::Context;
use crate::applets::api::identities::{Identities, Stamp};
use crate::applets::api::material;
use crate::core::client::exchange::Client;
use crate::core::clock::Clock;
use crate::core::config::{self, DispatcherConfig};
use crate::core::hostname;

/// Requests that are worked on at the same time, those included whose clients have gone.
const MAX_WORK: u32 = 1 << 16;

/// Everything that is read from disk. A request uses one of these from its beginning to its end.
pub(super) struct Snapshot {
    pub(super) config: Arc<DispatcherConfig>,
    pub(super) clock: Clock,
    pub(super) client: Client,
    /// What the files of `client` looked like when it was read.
    pub(super) stamp: Stamp,
    /// `None`: plain HTTP.
    pub(super) tls: Option<Arc<ServerConfig>>,
}

/// Why there is no [`Snapshot`]: a text with file, line and what to do.
#[derive(Debug)]
pub(super) enum LoadError {
    /// The configuration cannot be used.
    Config(String),
    /// A file that it names cannot.
    Material(String),
}

impl Snapshot {
    /// Reads everything. The texts are warnings for the person who starts or reloads the server.
    ///
    /// # Errors
    /// See [`LoadError`]: nothing half-read is ever used.
    pub(super) fn load(
        context: &Context,
        file: Option<&PathBuf>,
    ) -> Result<(Self, Vec<String>), LoadError> {
        let host = hostname::short(context.var("CTRL_EXEC_HOSTNAME"));
        let loaded = config::load_dispatcher(&context.paths, file.map(PathBuf::as_path), &host)
            .map_err(|e| LoadError::Config(e.to_string()))?;
        let mut warnings: Vec<String> = loaded.warnings.iter().map(ToString::to_string).collect();
        let config = loaded.value;
        let clock = Clock::with_floor_from(&context.time, &[&config.cert, &config.ca]);
        let stamp = Stamp::of(&config);
        let (client, unusable) =
            Client::load(&config, clock.clone()).map_err(|e| LoadError::Material(e.to_string()))?;
        warnings.extend(unusable);
        let tls = material::tls(&config.api, &clock).map_err(LoadError::Material)?;
        let snapshot = Self {
            config: Arc::new(config),
            clock,
            client,
            stamp,
            tls,
        };
        Ok((snapshot, warnings))
    }
}

/// The server.
pub(super) struct Api {
    pub(super) context: Context,
    /// `--config`.
    pub(super) file: Option<PathBuf>,
    snapshot: RwLock<Arc<Snapshot>>,
    pub(super) identities: Identities,
    /// Exchanges with agents, over all requests (`max_parallel`).
    pub(super) exchanges: Arc<Semaphore>,
    work: Arc<Semaphore>,
}

impl Api {
    pub(super) fn new(context: Context, file: Option<PathBuf>, snapshot: Snapshot) -> Self {
        Self {
            context,
            file,
            exchanges: Arc::new(Semaphore::new(snapshot.config.max_parallel)),
            identities: Identities::default(),
            work: Arc::new(Semaphore::new(MAX_WORK as usize)),
            snapshot: RwLock::new(Arc::new(snapshot)),
        }
    }

    /// The present picture.
    pub(super) fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshot
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// The picture for the requests that come.
    pub(super) fn put_in_force(&self, fresh: Snapshot) {
        *self
            .snapshot
            .write()
            .unwrap_or_else(PoisonError::into_inner) = Arc::new(fresh);
    }

    /// To be held by every task that must end before the server does. `None`: there are too many.
    pub(super) fn begin_work(&self) -> Option<OwnedSemaphorePermit> {
        self.work.clone().try_acquire_owned().ok()
    }

    /// Returns when no task holds any of it any more.
    pub(super) async fn work_is_done(&self) {
        // It is never closed.
        let _ = self.work.acquire_many(MAX_WORK).await;
    }
}
