//! Typed values as TOML text, for `config convert`: what was read from a `.conf`, written the new way. Keys that have their default
//! are left out, except the few that say who we are.

use std::path::Path;
use std::time::Duration;

use toml::Value;

use super::{AgentConfig, Allowlist, AuthDefault, DispatcherConfig, ProfileConfig, RateSpec};
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
    w.path_unless("pairing_dir", &config.pairing_dir, &d.pairing_dir);
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
    if let Some(tls) = &api.tls {
        w.path("api_cert", &tls.cert);
        w.path("api_key", &tls.key);
    }
    w.count("api_max_children", api.max_children, ad.max_children);
    if api.auth_default == AuthDefault::Allow {
        w.set("api_auth_default", "allow");
    }
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
    if !config.tags.is_empty() {
        w.section(&["tags"]);
        for (name, value) in &config.tags {
            w.set(name, value.as_str());
        }
    }
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
    }
    w.text
}

fn absolute(paths: &[AbsolutePath]) -> Vec<String> {
    paths.iter().map(ToString::to_string).collect()
}

struct Writer {
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

    fn section(&mut self, names: &[&str]) {
        let names: Vec<String> = names.iter().map(|name| key_text(name)).collect();
        self.text.push_str(&format!("\n[{}]\n", names.join(".")));
    }

    fn set(&mut self, key: &str, value: impl Into<Value>) {
        let value: Value = value.into();
        self.text
            .push_str(&format!("{} = {value}\n", key_text(key)));
    }

    fn unless<T: PartialEq + Clone + Into<Value>>(&mut self, key: &str, value: &T, default: &T) {
        if value != default {
            self.set(key, value.clone());
        }
    }

    fn count(&mut self, key: &str, value: usize, default: usize) {
        if value != default {
            self.set(key, i64::try_from(value).unwrap_or(i64::MAX));
        }
    }

    fn seconds(&mut self, key: &str, value: Duration, default: Duration) {
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

    fn profile(&mut self, profile: &ProfileConfig) {
        if let Some(user) = &profile.run_as {
            self.set("run_as", user.as_str());
        }
        if !profile.caps.is_empty() {
            self.set("caps", profile.caps.clone());
        }
        if !profile.writable.is_empty() {
            self.set("writable", absolute(&profile.writable));
        }
        self.set("no_new_privileges", profile.no_new_privileges);
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
