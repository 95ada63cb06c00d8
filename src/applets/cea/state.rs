//! What the daemon knows: one immutable picture of everything read from disk, replaced as a whole, and what lives beside it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use std::time::Instant;

use tokio::sync::OnceCell;

use crate::applets::cea::admission::Admission;
use crate::applets::cea::isolation::Isolation;
use crate::applets::cea::jobs::Jobs;
use crate::applets::cea::material::Material;
use crate::applets::cea::revocations::Revocations;
use crate::applets::cea::timekeeping::{self, Timekeeper};
use crate::applets::cea::{Files, material, scripts};
use crate::applets::{Context, VERSION};
use crate::complain;
use crate::core::clock::Clock;
use crate::core::config::diagnostics::Diagnostic;
use crate::core::config::{self, AgentConfig, Allowlist};
use crate::core::hostname;
use crate::core::logging::Action;
use crate::core::metrics::AgentMetrics;
use crate::core::pki::PeerIdentity;
use crate::core::profile::schema::Schema;
use crate::core::task;
use crate::core::tls;
use crate::core::trust::TrustMap;
use crate::core::types::{DispatcherId, ScriptName};

/// Everything that is read from disk. A request uses one of these from its beginning to its end.
///
/// Cheap to clone: a dispatcher that changes one part puts a copy in force that shares the others.
#[derive(Clone)]
pub(super) struct Snapshot {
    pub(super) config: Arc<AgentConfig>,
    pub(super) allowlist: Arc<Allowlist>,
    pub(super) sidecars: Arc<BTreeMap<ScriptName, Schema>>,
    pub(super) trust: Arc<TrustMap>,
    pub(super) revoked: Arc<Revocations>,
    pub(super) material: Arc<Material>,
    pub(super) tls: Arc<rustls::ServerConfig>,
    pub(super) clock: Clock,
}

/// Why there is no [`Snapshot`].
#[derive(Debug)]
pub(super) enum LoadError {
    /// `agent.*` or `scripts.*` cannot be used.
    Config(String),
    /// One of the three files of a pairing is not there.
    Unpaired { what: &'static str, path: PathBuf },
    /// A file with keys, certificates or serials is there and cannot be used.
    Material(String),
}

impl Snapshot {
    /// Reads everything, in the order of spec/agent.md 6.1. Warnings go to stderr. `old` is the clock of a picture that is replaced: what
    /// it has been told must not be forgotten.
    ///
    /// # Errors
    /// See [`LoadError`]: nothing half-read is ever used.
    pub(super) fn load(
        context: &Context,
        files: &Files,
        old: Option<&Clock>,
    ) -> Result<Self, LoadError> {
        let configuration = |e: &dyn std::fmt::Display| LoadError::Config(e.to_string());
        let unusable = |e: &dyn std::fmt::Display| LoadError::Material(e.to_string());

        let loaded = config::load_agent(&context.paths, files.config.as_deref())
            .map_err(|e| configuration(&e))?;
        warn(&loaded.warnings);
        let config = loaded.value;
        let loaded = config::load_allowlist(&context.paths, files.allowlist.as_deref(), &config)
            .map_err(|e| configuration(&e))?;
        warn(&loaded.warnings);
        let allowlist = loaded.value;
        let sidecars = scripts::load_sidecars(&allowlist);
        config::check_profiles(&allowlist, &config).map_err(|e| configuration(&e))?;
        if config.executor_socket.is_none() {
            warn_of_unenforced_profiles(&allowlist);
        }

        let revoked = Revocations::load(&config).map_err(|e| unusable(&e))?;
        if revoked.local.is_none() {
            Action::new("revoked-serials-absent")
                .field("PATH", config.revoked_serials.display())
                .field("REASON", "file not found - no serials revoked")
                .info();
        }
        if let Some(list) = &revoked.local {
            warn_of_lines(list.skipped(), &config.revoked_serials, "no serial");
        }
        let pushed = config.pushed_revocations();
        warn_of_lines(revoked.pushed.skipped(), &pushed, "no serial");
        let trust = TrustMap::load(&config.trusted_dispatchers_path).map_err(|e| unusable(&e))?;
        warn_of_lines(
            trust.skipped(),
            &config.trusted_dispatchers_path,
            "no serial and dispatcher id",
        );

        if let Some((what, path)) = missing(&config) {
            return Err(LoadError::Unpaired {
                what,
                path: path.to_owned(),
            });
        }
        let clock = timekeeping::clock(context, &config);
        if let Some(old) = old {
            clock.raise(old.floor());
        }
        let material = material::load(&config, |serial| revoked.contains(serial), &clock)
            .map_err(LoadError::Material)?;
        if old.is_none() && clock.is_behind() {
            Action::new("clock-unsynced")
                .field("TIME", clock.iso_now())
                .warning();
        }
        let tls = tls::server_config(&material.identity, &material.trusted.cas, clock.clone())
            .map_err(|e| unusable(&e))?;
        Ok(Self {
            config: Arc::new(config),
            allowlist: Arc::new(allowlist),
            sidecars: Arc::new(sidecars),
            trust: Arc::new(trust),
            revoked: Arc::new(revoked),
            material: Arc::new(material),
            tls,
            clock,
        })
    }
}

impl Snapshot {
    /// Which dispatcher a peer is; `None` for everybody who is not trusted.
    pub(super) fn dispatcher(&self, peer: &PeerIdentity) -> Option<&DispatcherId> {
        self.trust.lookup(peer)
    }
}

/// The first file of a pairing that is not there, in the order of the original: certificate, key, CA.
pub(super) fn missing(config: &AgentConfig) -> Option<(&'static str, &Path)> {
    [
        ("certificate", config.cert.as_path()),
        ("key", config.key.as_path()),
        ("CA certificate", config.ca.as_path()),
    ]
    .into_iter()
    .find(|(_, path)| !path.is_file())
}

fn warn(warnings: &[Diagnostic]) {
    for warning in warnings {
        complain!("{warning}");
    }
}

/// A line that says nothing is a serial that somebody believes revoked or trusted.
fn warn_of_lines(lines: &[usize], path: &Path, lacking: &str) {
    if let Some(first) = lines.first() {
        let count = lines.len();
        complain!(
            "Warning: '{}': {count} line(s) ignored because they hold {lacking}, the first is line {first}.",
            path.display()
        );
        Action::new("config-warn")
            .field("KEY", path.display())
            .field("MSG", format!("line {first} holds {lacking} - ignored"))
            .warning();
    }
}

fn warn_of_unenforced_profiles(allowlist: &Allowlist) {
    let named = allowlist
        .scripts
        .values()
        .filter(|entry| entry.profile.as_str() != "default")
        .count();
    if named > 0 {
        complain!(
            "Warning: {named} script(s) name a profile, but 'executor_socket' is not set: profiles are not enforced, every script runs as the agent's user."
        );
    }
}

/// The daemon.
pub(super) struct Agent {
    pub(super) context: Context,
    files: Files,
    snapshot: RwLock<Arc<Snapshot>>,
    pub(super) jobs: Jobs,
    pub(super) isolation: Isolation,
    admission: Mutex<Admission>,
    /// Told when a handshake has ended: who waits for that asks [`Admission::ask_again`].
    pub(super) door: tokio::sync::Notify,
    host: OnceCell<String>,
    pub(super) timekeeper: Timekeeper,
    pub(super) metrics: Arc<AgentMetrics>,
    /// Held by whoever changes what lies on disk, so that two dispatchers do not judge by the same past.
    pub(super) changes: tokio::sync::Mutex<()>,
}

impl Agent {
    pub(super) fn new(context: Context, files: Files, snapshot: Snapshot) -> Self {
        let admission = Mutex::new(Admission::new(&snapshot.config, Instant::now()));
        let metrics = Arc::new(AgentMetrics::new(VERSION, snapshot.clock.now()));
        metrics.allow(snapshot.allowlist.scripts.keys());
        Self {
            context,
            files,
            snapshot: RwLock::new(Arc::new(snapshot)),
            jobs: Jobs::default(),
            isolation: Isolation::default(),
            admission,
            door: tokio::sync::Notify::new(),
            host: OnceCell::new(),
            timekeeper: Timekeeper::new(Instant::now()),
            metrics,
            changes: tokio::sync::Mutex::new(()),
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

    /// The bookkeeping about addresses and dispatchers. Never held across an await.
    pub(super) fn admission(&self) -> MutexGuard<'_, Admission> {
        self.admission
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Name of this host, as ping and capabilities report it. Asked for once, when first needed: a name server that is not up yet
    /// must not keep the agent from starting.
    pub(super) async fn host(&self) -> &str {
        self.host
            .get_or_init(async || {
                let given = self.context.var("CTRL_EXEC_HOSTNAME").map(str::to_owned);
                task::spawn_blocking(move || hostname::fqdn(given.as_deref()))
                    .await
                    .unwrap_or_default()
            })
            .await
    }

    /// Reads everything anew and, if all of it is usable, puts it in force for the requests that come; otherwise nothing changes.
    /// Forgets all rate-limit state, as the original does.
    pub(super) fn reload(&self) {
        let old = self.snapshot();
        let fresh = match Snapshot::load(&self.context, &self.files, Some(&old.clock)) {
            Ok(fresh) => fresh,
            Err(error) => {
                let reason = error.one_line();
                complain!("reload failed, the old configuration stays in force: {reason}");
                Action::new("config-reload").field("ERROR", reason).err();
                return;
            }
        };
        if (fresh.config.port, fresh.config.bind) != (old.config.port, old.config.bind) {
            Action::new("config-reload")
                .field("KEY", "port, bind")
                .field("MSG", "the listening address changes only with a restart")
                .warning();
        }
        self.admission().forget(&fresh.config, Instant::now());
        let scripts = fresh.allowlist.scripts.len();
        self.metrics.allow(fresh.allowlist.scripts.keys());
        let dispatchers = fresh.trust.entries().len();
        self.put_in_force(fresh);
        complain!("configuration reloaded");
        Action::new("config-reload")
            .field("SCRIPTS", scripts)
            .field("TRUSTED", dispatchers)
            .info();
    }
}

impl LoadError {
    /// For a log line.
    pub(super) fn one_line(&self) -> String {
        match self {
            Self::Config(text) | Self::Material(text) => text.clone(),
            Self::Unpaired { what, path } => format!("{what} '{}' is missing", path.display()),
        }
    }
}
