//! Typed values as TOML text, for `config convert`: what was read from a `.conf`, written the new way. Keys that have their default
//! are left out, except the few that say who we are.

use std::path::Path;
use std::time::Duration;

use toml::Value;

use super::{AgentConfig, Allowlist, AuthDefault, DispatcherConfig, RateSpec};
use crate::core::paths::Paths;
use crate::core::types::AbsolutePath;

/// Rate of a limiter that is switched off.
const OFF: &str = "0/60/300";

/// `ctrl-exec.toml` with this meaning. Loading it below the same `paths` gives an equal value (but for `source`).
pub fn convert_dispatcher(config: &DispatcherConfig, paths: &Paths) -> String {
    let d = DispatcherConfig::defaults(paths, &config.source, config.dispatcher_id.as_str());
    let mut w = Writer::new("ctrl-exec.toml - dispatcher and API", &config.source, paths);
    w.path("cert", &config.cert);
    w.path("key", &config.key);
    w.path("ca", &config.ca);
    w.path_unless("ca_dir", &config.ca_dir, &d.ca_dir);
    w.path_unless("registry_dir", &config.registry_dir, &d.registry_dir);
    w.path_unless("revoked_file", &config.revoked_file, &d.revoked_file);
    w.path_unless("pairing_dir", &config.pairing_dir, &d.pairing_dir);
    w.path_unless("locks_dir", &config.locks_dir, &d.locks_dir);
    w.path_unless("runs_dir", &config.runs_dir, &d.runs_dir);
    w.seconds("run_retention", config.run_retention, d.run_retention);
    w.set("dispatcher_id", config.dispatcher_id.as_str());
    w.unless("service_user", &config.service_user, &d.service_user);
    w.hook(config.auth_hook.as_ref());
    w.seconds("read_timeout", config.read_timeout, d.read_timeout);
    w.seconds("connect_timeout", config.connect_timeout, d.connect_timeout);
    w.count("max_parallel", config.max_parallel, d.max_parallel);
    w.unless("cert_days", &config.cert_days, &d.cert_days);
    w.seconds("pairing_timeout", config.pairing_timeout, d.pairing_timeout);
    w.count(
        "pairing_max_queue",
        config.pairing_max_queue,
        d.pairing_max_queue,
    );
    w.rate(
        "pairing_rate_limit_volume",
        config.pairing_rate_limit,
        d.pairing_rate_limit,
    );
    w.unless(
        "pairing_require_bound_code",
        &config.pairing_require_bound_code,
        &d.pairing_require_bound_code,
    );
    w.address("pairing_bind", config.pairing_bind, d.pairing_bind);
    w.unless(
        "pairing_port",
        &u32::from(config.pairing_port),
        &u32::from(d.pairing_port),
    );
    let (rotation, rd) = (&config.rotation, &d.rotation);
    w.unless(
        "cert_renewal_days",
        &rotation.renewal_days,
        &rd.renewal_days,
    );
    w.unless(
        "cert_overlap_days",
        &rotation.overlap_days,
        &rd.overlap_days,
    );
    w.seconds(
        "cert_check_interval",
        rotation.check_interval,
        rd.check_interval,
    );
    w.path_unless("rotation_file", &rotation.file, &rd.file);
    let (api, ad) = (&config.api, &d.api);
    w.unless("api_port", &u32::from(api.port), &u32::from(ad.port));
    w.address("api_bind", Some(api.bind), Some(ad.bind));
    w.unless("api_tcp", &api.tcp, &ad.tcp);
    if let Some(socket) = &api.socket {
        w.path("api_socket", socket);
    }
    if api.socket_mode != ad.socket_mode {
        w.set("api_socket_mode", format!("{:04o}", api.socket_mode));
    }
    if let Some(tls) = &api.tls {
        w.path("api_cert", &tls.cert);
        w.path("api_key", &tls.key);
    }
    if let Some(clients) = &api.clients {
        w.path("api_client_ca", &clients.ca);
        if clients.required {
            w.set("api_client_cert", "required");
        }
    }
    w.count("api_max_children", api.max_children, ad.max_children);
    w.count(
        "api_max_connections",
        api.max_connections,
        ad.max_connections,
    );
    if api.auth_default == AuthDefault::Allow {
        w.set("api_auth_default", "allow");
    }
    w.rate("api_refusal_limit", api.refusal_limit, ad.refusal_limit);
    // Whole MiB in the file.
    w.count(
        "api_answer_memory",
        api.answer_memory >> 20,
        ad.answer_memory >> 20,
    );
    w.unless("api_metrics", &api.metrics, &ad.metrics);
    w.unless(
        "auth_deny_generic",
        &api.auth_deny_generic,
        &ad.auth_deny_generic,
    );
    w.text
}

/// `agent.toml` with this meaning. Loading it below the same `paths` gives an equal value (but for `source`).
pub fn convert_agent(config: &AgentConfig, paths: &Paths) -> String {
    let d = AgentConfig::defaults(paths, &config.source);
    let mut w = Writer::new("agent.toml - agent and executor", &config.source, paths);
    w.set("port", i64::from(config.port));
    w.address("bind", config.bind, d.bind);
    w.path("cert", &config.cert);
    w.path("key", &config.key);
    w.path("ca", &config.ca);
    w.path_unless(
        "trusted_dispatchers_path",
        &config.trusted_dispatchers_path,
        &d.trusted_dispatchers_path,
    );
    w.path_unless(
        "revoked_serials",
        &config.revoked_serials,
        &d.revoked_serials,
    );
    if !config.script_dirs.is_empty() {
        w.set("script_dirs", absolute(&config.script_dirs));
    }
    if let Some(socket) = &config.executor_socket {
        w.path("executor_socket", socket);
    }
    w.path_unless("async_runs_dir", &config.async_runs_dir, &d.async_runs_dir);
    w.path_unless(
        "cert_staging_path",
        &config.cert_staging_path,
        &d.cert_staging_path,
    );
    w.seconds("stdin_timeout", config.stdin_timeout, d.stdin_timeout);
    w.seconds("run_timeout", config.run_timeout, d.run_timeout);
    w.count("max_output", config.max_output, d.max_output);
    w.hook(config.auth_hook.as_ref());
    if !config.allowed_ips.is_empty() {
        let list: Vec<String> = config.allowed_ips.iter().map(ToString::to_string).collect();
        w.set("allowed_ips", list);
    }
    w.rate(
        "rate_limit_volume",
        config.rate_limit_volume,
        d.rate_limit_volume,
    );
    w.rate(
        "rate_limit_probe",
        config.rate_limit_probe,
        d.rate_limit_probe,
    );
    w.rate(
        "rate_limit_dispatcher",
        config.rate_limit_dispatcher,
        d.rate_limit_dispatcher,
    );
    w.count("max_children", config.max_children, d.max_children);
    w.unless(
        "auth_deny_generic",
        &config.auth_deny_generic,
        &d.auth_deny_generic,
    );
    w.unless(
        "pairing_require_bound_code",
        &config.pairing_require_bound_code,
        &d.pairing_require_bound_code,
    );
    if config.metrics != d.metrics {
        w.set("metrics", config.metrics.as_str());
    }
    if !config.tags.is_empty() {
        w.section(&["tags"]);
        for (name, value) in &config.tags {
            w.set(name, value.as_str());
        }
    }
    w.executor(&config.executor);
    for (name, profile) in &config.profiles {
        w.section(&["profile", name.as_str()]);
        w.profile(profile);
    }
    w.text
}

/// `scripts.toml` with this meaning.
pub fn convert_allowlist(allowlist: &Allowlist) -> String {
    let mut w = Writer::header(
        "scripts.toml - the scripts that may run here",
        &allowlist.source,
    );
    for (name, entry) in &allowlist.scripts {
        w.section(&["scripts", name.as_str()]);
        w.set("path", entry.path.to_string());
        w.set("profile", entry.profile.as_str());
        w.annotations(&entry.annotations);
    }
    w.text
}

pub(super) fn absolute(paths: &[AbsolutePath]) -> Vec<String> {
    paths.iter().map(ToString::to_string).collect()
}

pub(super) struct Writer {
    text: String,
    root: std::path::PathBuf,
}

impl Writer {
    fn new(title: &str, source: &Path, paths: &Paths) -> Self {
        let mut writer = Self::header(title, source);
        writer.root = paths.root().to_owned();
        writer
    }

    fn header(title: &str, source: &Path) -> Self {
        let source = super::diagnostics::printable(&source.to_string_lossy());
        Self {
            text: format!(
                "# {title}\n# Converted from {source}. Keys that are not here have their defaults; unknown keys are refused.\n\n"
            ),
            root: std::path::PathBuf::from("/"),
        }
    }

    pub(super) fn section(&mut self, names: &[&str]) {
        let names: Vec<String> = names.iter().map(|name| key_text(name)).collect();
        self.text.push_str(&format!("\n[{}]\n", names.join(".")));
    }

    pub(super) fn set(&mut self, key: &str, value: impl Into<Value>) {
        let value: Value = value.into();
        self.text
            .push_str(&format!("{} = {value}\n", key_text(key)));
    }

    pub(super) fn unless<T: PartialEq + Clone + Into<Value>>(
        &mut self,
        key: &str,
        value: &T,
        default: &T,
    ) {
        if value != default {
            self.set(key, value.clone());
        }
    }

    pub(super) fn count(&mut self, key: &str, value: usize, default: usize) {
        if value != default {
            self.set(key, i64::try_from(value).unwrap_or(i64::MAX));
        }
    }

    pub(super) fn seconds(&mut self, key: &str, value: Duration, default: Duration) {
        if value != default {
            self.set(key, i64::try_from(value.as_secs()).unwrap_or(i64::MAX));
        }
    }

    /// The root prefix is not part of the configuration: it comes back when the file is loaded.
    fn path(&mut self, key: &str, path: &Path) {
        let plain = match path.strip_prefix(&self.root) {
            Ok(rest) => Path::new("/").join(rest),
            Err(_) => path.to_owned(),
        };
        self.set(key, plain.to_string_lossy().into_owned());
    }

    fn path_unless(&mut self, key: &str, path: &Path, default: &Path) {
        if path != default {
            self.path(key, path);
        }
    }

    fn rate(&mut self, key: &str, rate: Option<RateSpec>, default: Option<RateSpec>) {
        if rate != default {
            self.set(key, rate.map_or(OFF.to_owned(), |r| r.to_string()));
        }
    }

    fn address(
        &mut self,
        key: &str,
        value: Option<std::net::IpAddr>,
        default: Option<std::net::IpAddr>,
    ) {
        if let (Some(address), true) = (value, value != default) {
            self.set(key, address.to_string());
        }
    }

    fn hook(&mut self, hook: Option<&super::HookConfig>) {
        if let Some(hook) = hook {
            self.path("auth_hook", &hook.path);
            self.seconds(
                "auth_hook_timeout",
                hook.timeout,
                super::defaults::HOOK_TIMEOUT,
            );
        }
    }
}

/// A key, in quotes where TOML wants them.
fn key_text(key: &str) -> String {
    let bare = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
    if !key.is_empty() && key.bytes().all(bare) {
        key.to_owned()
    } else {
        Value::String(key.to_owned()).to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;
    use proptest::prelude::*;

    fn agent_round_trip(conf: &str) -> String {
        let host = Host::new();
        let path = host.write("/etc/ctrl-exec-agent/agent.conf", conf);
        let before = host.agent().unwrap_or_else(|e| panic!("{e}")).value;
        let text = convert_agent(&before, &host.paths());
        std::fs::remove_file(path).unwrap();
        let toml = host.write("/etc/ctrl-exec-agent/agent.toml", &text);
        let mut after = host.agent().unwrap_or_else(|e| panic!("{e}\n{text}")).value;
        assert_eq!(after.source, toml);
        after.source.clone_from(&before.source);
        assert_eq!(after, before, "{text}");
        text
    }

    #[test]
    fn agents_round_trip() {
        let text = agent_round_trip(&format!(
            "{REQUIRED}{DIRS}bind=::1\ntrusted_dispatchers_path=/t\nrevoked_serials=/r\nexecutor_socket=/run/x.sock\nasync_runs_dir=/runs\ncert_staging_path=/s\nstdin_timeout=1\nrun_timeout=2\nmax_output=4096\nallowed_ips=10.0.0.0/8, ::1\nrate_limit_volume=1/2/3\nrate_limit_probe=0/1/1\nmax_children=5\nauth_deny_generic=1\npairing_require_bound_code=1\nmetrics=ca\n[tags]\nsite=a \"quoted\" \\ é\n1-x=\t\n[profile a.b]\nrun_as=nobody\ncaps=CAP_KILL CAP_CHOWN\nwritable=/a b:/c\nno_new_privileges=no\n[profile root]\n"
        ));
        assert!(text.starts_with("# agent.toml - agent and executor\n# Converted from "));
        assert!(text.contains("rate_limit_probe = \"0/60/300\"\n"), "{text}");
        assert!(
            text.contains("[profile.\"a.b\"]\nrun_as = \"nobody\"\n"),
            "{text}"
        );
        assert!(
            text.contains("executor_socket = \"/run/x.sock\"\n"),
            "{text}"
        );
    }

    #[test]
    fn defaults_are_left_out() {
        let text = agent_round_trip(&format!("{REQUIRED}rate_limit_disable = yes\n"));
        assert_eq!(text.matches(" = ").count(), 7, "{text}");
        agent_round_trip(REQUIRED);
    }

    #[test]
    fn dispatchers_round_trip() {
        for extra in [
            "",
            "ca_dir=/ca\nregistry_dir=/r\nrevoked_file=/rev\npairing_dir=/p\nlocks_dir=/l\nruns_dir=/u\nrun_retention=61\nauth_hook=/h\nauth_hook_timeout=3\nread_timeout=1\nconnect_timeout=2\nmax_parallel=3\ncert_days=4\ndispatcher_id=x\nservice_user=u\npairing_timeout=5\npairing_max_queue=6\npairing_rate_limit_volume=7/8/9\npairing_require_bound_code=y\npairing_bind=127.0.0.1\npairing_port=10\ncert_renewal_days=11\ncert_overlap_days=12\ncert_check_interval=13\nrotation_file=/rot\napi_port=14\napi_bind=::1\napi_cert=/ac\napi_key=/ak\napi_max_children=15\napi_max_connections=16\napi_tcp=off\napi_socket=/run/s\napi_socket_mode=0600\napi_client_ca=/cca\napi_client_cert=required\napi_auth_default=allow\nauth_deny_generic=on\napi_refusal_limit=17/18/19\napi_answer_memory=20\napi_metrics=off\n",
            "pairing_rate_limit_disable=1\n",
        ] {
            let host = Host::new();
            let conf = format!("cert=/c\nkey=/k\nca=/a\n{extra}");
            let path = host.write("/etc/ctrl-exec/ctrl-exec.conf", &conf);
            let loaded = host.dispatcher().unwrap_or_else(|e| panic!("{e}"));
            assert!(loaded.warnings.is_empty(), "{:?}", loaded.warnings);
            let before = loaded.value;
            let text = convert_dispatcher(&before, &host.paths());
            std::fs::remove_file(path).unwrap();
            host.write("/etc/ctrl-exec/ctrl-exec.toml", &text);
            let mut after = host
                .dispatcher()
                .unwrap_or_else(|e| panic!("{e}\n{text}"))
                .value;
            after.source.clone_from(&before.source);
            assert_eq!(after, before, "{text}");
        }
    }

    #[test]
    fn allowlists_round_trip() {
        let host = Host::new();
        host.write("/etc/ctrl-exec-agent/agent.conf", REQUIRED);
        let scripts = format!(
            "a = /x/a\n-b_ = profile=p.q /x/b\"\\é\nc = /c digest=sha256:{} timeout=5 schema=/s\n",
            "aB".repeat(32)
        );
        let scripts = scripts.as_str();
        let conf = host.write("/etc/ctrl-exec-agent/scripts.conf", scripts);
        let before = host.allowlist().unwrap().value;
        let text = convert_allowlist(&before);
        std::fs::remove_file(conf).unwrap();
        host.write("/etc/ctrl-exec-agent/scripts.toml", &text);
        let after = host
            .allowlist()
            .unwrap_or_else(|e| panic!("{e}\n{text}"))
            .value;
        assert_eq!(after.scripts, before.scripts, "{text}");
        assert!(text.contains("\n[scripts.a]\npath = \"/x/a\"\nprofile = \"default\"\n"));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn whatever_loads_round_trips(
            tags in proptest::collection::btree_map("[a-zA-Z0-9_][a-zA-Z0-9_-]{0,6}", "[^\\x00-\\x1f\\x7f-\\x9f\\s](.{0,8}[^\\x00-\\x1f\\s])?", 0..4),
            dir in "/[^:\\s#\\x00-\\x1f\\x7f-\\x9f]{0,12}",
            limit in 0u32..5,
            port in 0u16..,
        ) {
            let mut conf = REQUIRED.replace("7443", &port.to_string());
            conf.push_str(&format!("rate_limit_volume={limit}/2/3\nscript_dirs={dir}\n[tags]\n"));
            for (key, value) in tags.iter().filter(|(_, v)| !v.chars().any(char::is_control)) {
                conf.push_str(&format!("{key}={value}\n"));
            }
            agent_round_trip(&conf);
        }
    }
}
