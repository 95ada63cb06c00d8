//! Typed configuration. Two front ends (TOML for new installs, the original's `.conf` grammars) produce the same values; every rule
//! after that exists once.

pub mod diagnostics;
pub mod error;
pub mod source;

mod agent;
mod api_listener;
mod cidr;
mod conf_grammar;
mod convert;
mod convert_security;
mod defaults;
mod dispatcher;
mod executor;
mod hook;
mod load;
mod profiles;
mod raw;
mod reader;
mod scripts;
mod scripts_conf;
mod security;
mod tags;
#[cfg(test)]
mod testing;
mod toml_front;
mod values;
mod words;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use crate::core::types::{AbsolutePath, DispatcherId, ProfileName, ScriptName};

pub use cidr::CidrError;
pub use convert::{convert_agent, convert_allowlist, convert_dispatcher};
pub use error::{ConfigError, UndefinedProfiles};
pub use load::{
    Loaded, in_force, load_agent, load_allowlist, load_dispatcher, parse_agent, parse_allowlist,
};
pub use scripts::{DEFAULT_PROFILE, check_profiles};
pub use security::{
    Annotations, Baseline, Devices, ExecutorConfig, Groups, Leftovers, LimitKind, Network,
    OnDisconnect, Ports, ProfileConfig, Protected, Scope, ScriptTrust, Syscalls, Want,
};

/// `limit/window/block` of the rate limiter: more than `limit` events within `window` block the source for `block`. Limit 0 = off.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct RateSpec {
    pub limit: u32,
    pub window: Duration,
    pub block: Duration,
}

impl RateSpec {
    pub const fn new(limit: u32, window_s: u64, block_s: u64) -> Self {
        Self {
            limit,
            window: Duration::from_secs(window_s),
            block: Duration::from_secs(block_s),
        }
    }
}

/// An address range, IPv4 or IPv6, any prefix length.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Cidr {
    pub network: std::net::IpAddr,
    pub prefix: u8,
}

/// Where to look for the auth hook and how long it may take (spec/api.md 10-11).
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct HookConfig {
    pub path: PathBuf,
    pub timeout: Duration,
}

/// What the API does with a request when no auth hook is configured (spec/api.md 10).
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum AuthDefault {
    #[default]
    Deny,
    Allow,
}

/// Who may see the agent's metrics (key `metrics` of `agent.*`, ours).
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum MetricsAudience {
    /// Nobody: there is no such path.
    #[default]
    Off,
    /// Trusted dispatchers.
    Dispatchers,
    /// Whoever holds a certificate of the CA that is not revoked.
    Ca,
}

impl MetricsAudience {
    pub const ALL: [Self; 3] = [Self::Off, Self::Dispatchers, Self::Ca];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Dispatchers => "dispatchers",
            Self::Ca => "ca",
        }
    }
}

/// Certificate and key of the API server.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ApiTls {
    pub cert: PathBuf,
    pub key: PathBuf,
}

/// Who may show a certificate to the API.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ApiClients {
    /// PEM file with the CA certificates that client certificates must come from.
    pub ca: PathBuf,
    /// Whether a handshake without a certificate fails.
    pub required: bool,
}

/// The `api_*` keys of the dispatcher's file (spec/api.md 1, 13).
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ApiSettings {
    /// Default 7445; 0 lets the kernel pick.
    pub port: u16,
    /// Default 127.0.0.1.
    pub bind: std::net::IpAddr,
    /// Whether there is a TCP listener at all (key `api_tcp`), default on.
    pub tcp: bool,
    /// Unix socket beside or instead of it (key `api_socket`); `None` = none.
    pub socket: Option<PathBuf>,
    /// Mode of the unix socket (key `api_socket_mode`), default 0660.
    pub socket_mode: u32,
    /// `None` = plain HTTP. One of the two keys without the other is an error.
    pub tls: Option<ApiTls>,
    /// Client certificates (keys `api_client_ca`, `api_client_cert`); only with TLS.
    pub clients: Option<ApiClients>,
    /// Concurrent requests, 1..=65535, default 64.
    pub max_children: usize,
    /// Open connections, 1..=65535, default 1024; idle ones count.
    pub max_connections: usize,
    /// Default deny.
    pub auth_default: AuthDefault,
    /// Hide why a request was denied (key `auth_deny_generic`), default off.
    pub auth_deny_generic: bool,
    /// Refused requests of one address before it is answered without asking the hook (key `api_refusal_limit`, ours); default 20/60/60, limit 0
    /// = `None`.
    pub refusal_limit: Option<RateSpec>,
    /// Memory for the large answers of agents (key `api_answer_memory`, MiB, ours), bytes; default 128 MiB.
    pub answer_memory: usize,
    /// Serve `/metrics` (key `api_metrics`, ours), default on; gate 1 and gate 2 apply.
    pub metrics: bool,
}

/// When and how the dispatcher changes its own certificate (spec/dispatcher.md 2.2).
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RotationSettings {
    /// Rotate when this many whole days or fewer are left, default 90.
    pub renewal_days: u32,
    /// Days in which old and new serial are both trusted, default 30.
    pub overlap_days: u32,
    /// Pause of the check loop, default 14400 s.
    pub check_interval: Duration,
    /// State of a rotation under way (key `rotation_file`).
    pub file: PathBuf,
}

/// `ctrl-exec.toml` or `ctrl-exec.conf`. Paths already carry the root prefix.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct DispatcherConfig {
    /// The file this came from.
    pub source: PathBuf,
    pub cert: PathBuf,
    pub key: PathBuf,
    pub ca: PathBuf,
    /// Directory of `ca.key`, `ca.crt`, `ca.serial`; default `/etc/ctrl-exec`.
    pub ca_dir: PathBuf,
    pub registry_dir: PathBuf,
    /// Journal of revoked certificates (key `revoked_file`, ours), default `/etc/ctrl-exec/revoked.jsonl`.
    pub revoked_file: PathBuf,
    pub pairing_dir: PathBuf,
    pub auth_hook: Option<HookConfig>,
    /// Longest silence of an agent during an exchange (key `read_timeout`, alias `timeout`), default 60 s.
    pub read_timeout: Duration,
    /// Longest TCP connect plus TLS handshake (key `connect_timeout`, ours), default 10 s.
    pub connect_timeout: Duration,
    /// Locks per script and host (key `locks_dir`, ours); default `/var/lib/ctrl-exec/locks`, also where that is a RAM disk.
    pub locks_dir: PathBuf,
    /// Records of runs (key `runs_dir`, ours); default `/var/lib/ctrl-exec/runs`, also where that is a RAM disk.
    pub runs_dir: PathBuf,
    /// How long a record is kept after its last change (key `run_retention`, ours), default 86400 s.
    pub run_retention: Duration,
    /// Concurrent exchanges, 1..=1024, default 64.
    pub max_parallel: usize,
    /// Lifetime of certificates we sign for agents (key `cert_days`), default 825 at pairing.
    pub cert_days: u32,
    /// Sanitised; default the host name, filled in by the front end.
    pub dispatcher_id: DispatcherId,
    /// Owner of new dispatcher keys, default `ctrl-exec`; silently skipped when unknown or when we are not root.
    pub service_user: String,
    /// Pairing session length 1..=600 s, default 600.
    pub pairing_timeout: Duration,
    /// Default 10.
    pub pairing_max_queue: usize,
    /// `None` when `pairing_rate_limit_disable` is on. Default 10/60/300.
    pub pairing_rate_limit: Option<RateSpec>,
    /// Refuse agents that cannot bind the pairing code to the certificates (key `pairing_require_bound_code`, ours), default off.
    pub pairing_require_bound_code: bool,
    /// Address the pairing listener binds to (key `pairing_bind`, ours); default all, IPv6 and IPv4.
    pub pairing_bind: Option<std::net::IpAddr>,
    /// Default pairing port 7444 (key `pairing_port`, ours).
    pub pairing_port: u16,
    pub rotation: RotationSettings,
    pub api: ApiSettings,
}

/// `agent.toml` or `agent.conf`. Paths already carry the root prefix, except those of scripts.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct AgentConfig {
    pub source: PathBuf,
    /// 1..=65535; 0 lets the kernel pick (printed at start), for tests and the demo.
    pub port: u16,
    /// Listen address (key `bind`, ours); default all, IPv6 and IPv4.
    pub bind: Option<std::net::IpAddr>,
    pub cert: PathBuf,
    pub key: PathBuf,
    pub ca: PathBuf,
    pub trusted_dispatchers_path: PathBuf,
    pub revoked_serials: PathBuf,
    /// Empty = no limit. Script paths are the host's: never moved by the root prefix.
    pub script_dirs: Vec<AbsolutePath>,
    pub executor_socket: Option<PathBuf>,
    pub async_runs_dir: PathBuf,
    pub cert_staging_path: PathBuf,
    /// Default 10 s.
    pub stdin_timeout: Duration,
    /// Longest run of one script (key `run_timeout`, ours), default 3600 s; then its process group is killed.
    pub run_timeout: Duration,
    /// Bytes kept of each of stdout and stderr (key `max_output`, ours), default 8 MiB; the rest is dropped and said.
    pub max_output: usize,
    pub auth_hook: Option<HookConfig>,
    /// Empty = all sources. A list of which every entry is bad is an error, never an empty list.
    pub allowed_ips: Vec<Cidr>,
    /// `None` = switched off. Default 10/60/300.
    pub rate_limit_volume: Option<RateSpec>,
    /// `None` = switched off. Default 3/600/3600.
    pub rate_limit_probe: Option<RateSpec>,
    /// Budget of each trusted dispatcher of its own (key `rate_limit_dispatcher`, ours), default 6000/60/10; `None` = off.
    pub rate_limit_dispatcher: Option<RateSpec>,
    /// Concurrent connections, 1..=65535, default 256.
    pub max_children: usize,
    pub tags: BTreeMap<String, String>,
    pub profiles: BTreeMap<ProfileName, ProfileConfig>,
    /// `[executor]`
    pub executor: ExecutorConfig,
    /// Answer a denied hook like an unknown script (key `auth_deny_generic`, ours on the agent), default off.
    pub auth_deny_generic: bool,
    /// Refuse dispatchers that cannot bind the pairing code (key `pairing_require_bound_code`, ours), default off.
    pub pairing_require_bound_code: bool,
    /// Who gets `GET /metrics` (key `metrics`, ours), default off.
    pub metrics: MetricsAudience,
}

/// What the agent itself writes beside `cert_staging_path`, where its user may.
impl AgentConfig {
    /// CAs that a dispatcher has changed, until root puts them into `ca`.
    pub fn staged_ca(&self) -> PathBuf {
        self.cert_staging_path.with_file_name("ca.crt.staged")
    }

    /// Serials that dispatchers have revoked. Never the administrator's list, wherever that one lies.
    pub fn pushed_revocations(&self) -> PathBuf {
        let path = self.cert_staging_path.with_file_name("revoked-serials");
        if path == self.revoked_serials {
            path.with_file_name("revoked-serials.pushed")
        } else {
            path
        }
    }

    /// What time it was at least.
    pub fn clock_floor(&self) -> PathBuf {
        self.cert_staging_path.with_file_name("clock")
    }
}

/// One line of `scripts.conf` or one `[scripts.NAME]`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ScriptEntry {
    pub path: AbsolutePath,
    /// `default` when not named.
    pub profile: ProfileName,
    pub annotations: Annotations,
}

/// The allowlist: exactly these scripts may run.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Allowlist {
    pub source: PathBuf,
    pub scripts: BTreeMap<ScriptName, ScriptEntry>,
}
