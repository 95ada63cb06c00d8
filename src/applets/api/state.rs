//! What the server knows: one picture of everything that is read from disk, replaced as a whole, and what lives beside it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use rustls::ServerConfig;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::applets::api::identities::{Identities, Stamp};
use crate::applets::api::openapi::kept::Kept;
use crate::applets::api::throttle::Throttle;
use crate::applets::api::{material, owner};
use crate::applets::{Context, VERSION, api};
use crate::core::client::budget::Budget;
use crate::core::client::exchange::Client;
use crate::core::client::fleet::Live;
use crate::core::client::pool::Counters;
use crate::core::clock::Clock;
use crate::core::config::{self, DispatcherConfig};
use crate::core::dispatch::HostResult;
use crate::core::hostname;
use crate::core::maintenance::Maintenance;
use crate::core::metrics::ApiMetrics;
use crate::core::registry::AgentRecord;
use crate::core::runs::Store;
use crate::core::types::{AgentName, ReqId};

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
    /// The records of runs.
    pub(super) fn store(&self) -> Store {
        Store::new(&self.config.runs_dir, self.config.run_retention)
    }

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
    /// Of connections to agents, over all clients that follow one another.
    pub(super) connections: Arc<Counters>,
    /// Memory for large answers, over all requests.
    pub(super) budget: Budget,
    /// Exchanges with agents, over all requests (`max_parallel`).
    pub(super) exchanges: Arc<Semaphore>,
    work: Arc<Semaphore>,
    throttle: Mutex<Throttle>,
    owner_key: ring::hmac::Key,
    pub(super) metrics: Arc<ApiMetrics>,
    /// The description of what there is.
    pub(super) live: Kept,
    /// Held by whoever reads all records.
    pub(super) listing: Semaphore,
    /// Second since the start in which old records are removed next.
    purge: AtomicU64,
    started: Instant,
    /// Agents that have answered and were not told yet what they have missed.
    heard: Mutex<BTreeMap<AgentName, AgentRecord>>,
    /// Runs on agents of the original, and when these were last asked about them.
    asked: Mutex<BTreeMap<ReqId, Instant>>,
}

/// Agents of the original are asked about a run this often and no more: they take ten connections a minute, the submission among them.
const OLD_AGENTS_PAUSE: Duration = Duration::from_secs(8);

/// Old records are looked for this often at most.
const PURGE_PAUSE: u64 = 60;
/// Agents that are remembered at most for [`Api::catch_up`].
const MAX_HEARD: usize = 1000;

impl Api {
    /// # Errors
    /// The key that names owners of runs can neither be read nor made.
    pub(super) fn new(
        context: Context,
        file: Option<PathBuf>,
        snapshot: Snapshot,
    ) -> Result<Self, String> {
        let throttle = Throttle::new(snapshot.config.api.refusal_limit, Instant::now());
        let metrics = ApiMetrics::new(api::IDENT, VERSION, snapshot.clock.now());
        Ok(Self {
            owner_key: owner::key(&snapshot.config.runs_dir)?,
            throttle: Mutex::new(throttle),
            live: Kept::default(),
            listing: Semaphore::new(1),
            purge: AtomicU64::new(0),
            started: Instant::now(),
            heard: Mutex::default(),
            asked: Mutex::default(),
            metrics: Arc::new(metrics),
            context,
            file,
            exchanges: Arc::new(Semaphore::new(snapshot.config.max_parallel)),
            identities: Identities::default(),
            connections: Arc::default(),
            budget: Budget::new(snapshot.config.api.answer_memory),
            work: Arc::new(Semaphore::new(MAX_WORK as usize)),
            snapshot: RwLock::new(Arc::new(snapshot)),
        })
    }

    /// The bookkeeping about refusals. Never held across an await.
    pub(super) fn throttle(&self) -> MutexGuard<'_, Throttle> {
        self.throttle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes names of owners from their tokens.
    pub(super) fn owner_key(&self) -> &ring::hmac::Key {
        &self.owner_key
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

    /// Whether it is time to remove old records; then the caller does it.
    pub(super) fn purge_is_due(&self) -> bool {
        let now = self.started.elapsed().as_secs();
        let due = self.purge.load(Ordering::Relaxed);
        now >= due
            && self
                .purge
                .compare_exchange(due, now + PURGE_PAUSE, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
    }

    /// Whether the agents of a run may be asked about it once more. `patient`: none of them minds how often.
    pub(super) fn may_ask(&self, reqid: &ReqId, patient: bool) -> bool {
        if patient {
            return true;
        }
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked.retain(|_, at| at.elapsed() < OLD_AGENTS_PAUSE);
        if asked.contains_key(reqid) || asked.len() >= MAX_HEARD {
            return false;
        }
        asked.insert(reqid.clone(), Instant::now());
        true
    }

    /// Agents have been asked: those that answered will be told what they have missed.
    pub(super) fn answered(&self, results: &[Arc<HostResult>]) {
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        for result in results.iter().filter(|result| result.answer.is_ok()) {
            if heard.len() < MAX_HEARD {
                let record = &result.target.record;
                heard
                    .entry(record.name.clone())
                    .or_insert_with(|| record.clone());
            }
        }
    }

    /// Tells the agents that have answered lately what they have missed: a serial of ours, a revocation. What fails is in the log, and tried
    /// again after the next contact.
    pub(super) async fn catch_up(&self) {
        let heard = {
            let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut *heard)
        };
        if heard.is_empty() {
            return;
        }
        let snapshot = self.snapshot();
        let network = Live {
            config: snapshot.config.as_ref().clone(),
            clock: snapshot.clock.clone(),
        };
        let maintenance = Maintenance {
            config: &snapshot.config,
            clock: &snapshot.clock,
            network: &network,
        };
        maintenance.after_contact(heard.values()).await;
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
