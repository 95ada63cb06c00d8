//! Every default of the configuration, in one place.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::time::Duration;

use super::{
    AgentConfig, ApiSettings, AuthDefault, DispatcherConfig, ExecutorConfig, MetricsAudience,
    RateSpec, RotationSettings,
};
use crate::core::paths::Paths;
use crate::core::types::DispatcherId;
use crate::core::wire;

/// How long an auth hook may take unless told otherwise.
pub(super) const HOOK_TIMEOUT: Duration = Duration::from_secs(10);

impl DispatcherConfig {
    /// The configuration of an empty file. `host_name` becomes the dispatcher id.
    pub fn defaults(paths: &Paths, source: &Path, host_name: &str) -> Self {
        let etc = paths.dispatcher_etc();
        Self {
            source: source.to_owned(),
            cert: etc.join("dispatcher.crt"),
            key: etc.join("dispatcher.key"),
            ca: etc.join("ca.crt"),
            ca_dir: etc.clone(),
            registry_dir: paths.registry_dir(),
            revoked_file: etc.join("revoked.jsonl"),
            pairing_dir: paths.pairing_dir(),
            locks_dir: paths.locks_dir(),
            runs_dir: paths.runs_dir(),
            run_retention: Duration::from_secs(86_400),
            auth_hook: None,
            read_timeout: Duration::from_secs(60),
            connect_timeout: Duration::from_secs(10),
            max_parallel: 64,
            cert_days: 825,
            dispatcher_id: DispatcherId::sanitise(host_name),
            service_user: "ctrl-exec".to_owned(),
            pairing_timeout: Duration::from_secs(600),
            pairing_max_queue: 10,
            pairing_rate_limit: Some(RateSpec::new(10, 60, 300)),
            pairing_require_bound_code: false,
            pairing_bind: None,
            pairing_port: wire::PAIRING_PORT,
            rotation: RotationSettings {
                renewal_days: 90,
                overlap_days: 30,
                check_interval: Duration::from_secs(14_400),
                file: paths.dispatcher_state().join("rotation.json"),
            },
            api: ApiSettings {
                port: 7445,
                bind: IpAddr::V4(Ipv4Addr::LOCALHOST),
                tcp: true,
                socket: None,
                socket_mode: 0o660,
                tls: None,
                clients: None,
                max_children: 64,
                max_connections: 1024,
                auth_default: AuthDefault::Deny,
                auth_deny_generic: false,
                refusal_limit: Some(RateSpec::new(20, 60, 60)),
                answer_memory: 128 << 20,
                metrics: true,
            },
        }
    }
}

impl AgentConfig {
    /// The configuration of an empty file.
    pub fn defaults(paths: &Paths, source: &Path) -> Self {
        let etc = paths.agent_etc();
        Self {
            source: source.to_owned(),
            port: wire::AGENT_PORT,
            bind: None,
            cert: etc.join("agent.crt"),
            key: etc.join("agent.key"),
            ca: etc.join("ca.crt"),
            trusted_dispatchers_path: paths.trust_map(),
            revoked_serials: paths.revoked_serials(),
            script_dirs: Vec::new(),
            executor_socket: None,
            async_runs_dir: paths.async_runs_dir(),
            cert_staging_path: paths.staged_cert(),
            stdin_timeout: Duration::from_secs(10),
            run_timeout: Duration::from_secs(3600),
            max_output: 8 * 1024 * 1024,
            auth_hook: None,
            allowed_ips: Vec::new(),
            rate_limit_volume: Some(RateSpec::new(10, 60, 300)),
            rate_limit_probe: Some(RateSpec::new(3, 600, 3600)),
            rate_limit_dispatcher: Some(RateSpec::new(6000, 60, 10)),
            max_children: 256,
            tags: BTreeMap::new(),
            profiles: BTreeMap::new(),
            executor: ExecutorConfig::default(),
            auth_deny_generic: false,
            pairing_require_bound_code: false,
            metrics: MetricsAudience::Off,
        }
    }
}
