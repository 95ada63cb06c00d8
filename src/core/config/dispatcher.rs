//! `ctrl-exec.conf` and `ctrl-exec.toml`: from raw values to [`DispatcherConfig`] (spec/dispatcher.md 2.2, spec/api.md 13).

use super::diagnostics::{Report, Severity};
use super::raw::{RawDocument, RawValue, Style};
use super::reader::Reader;
use super::source::SourceFile;
use super::{ApiTls, AuthDefault, DispatcherConfig, agent};
use crate::core::paths::Paths;
use crate::core::types::DispatcherId;

const DAY: u64 = 86_400;
/// Longest certificate life and the like: a hundred years.
const MAX_DAYS: u64 = 36_500;
const MAX_PARALLEL: usize = 1024;

/// Validates everything; what cannot be used is reported and has its default in the answer.
pub(super) fn build(
    raw: RawDocument,
    source: &SourceFile,
    paths: &Paths,
    host_name: &str,
    report: &mut Report,
) -> DispatcherConfig {
    let mut config = DispatcherConfig::defaults(paths, &source.path, host_name);
    require(&raw, source, report);
    let mut r = Reader::new(source, report, raw.style, raw.top, String::new());
    files(&mut r, &mut config, paths);
    exchange(&mut r, &mut config);
    identity(&mut r, &mut config);
    pairing(&mut r, &mut config);
    rotation(&mut r, &mut config, paths);
    api(&mut r, &mut config, paths);
    r.finish();
    config
}

/// The original insists on three keys (a value of `0` counts as missing); with TOML they have their defaults.
fn require(raw: &RawDocument, source: &SourceFile, report: &mut Report) {
    if raw.style == Style::Toml {
        return;
    }
    for key in ["cert", "key", "ca"] {
        let zero = RawValue::Text("0".to_owned());
        let value = raw.top.entries.get(key).map(|e| &e.value.value);
        if value.is_none_or(|v| *v == zero) {
            let message = format!("Missing '{key}' in {}", source.path.display());
            report.add(source.of_file(Severity::Error, message));
        }
    }
}

fn files(r: &mut Reader<'_>, config: &mut DispatcherConfig, paths: &Paths) {
    let mut set = |key, field: &mut std::path::PathBuf| {
        if let Some(path) = r.path(key, paths) {
            *field = path;
        }
    };
    set("cert", &mut config.cert);
    set("key", &mut config.key);
    set("ca", &mut config.ca);
    set("ca_dir", &mut config.ca_dir);
    set("registry_dir", &mut config.registry_dir);
    set("pairing_dir", &mut config.pairing_dir);
    config.auth_hook = agent::auth_hook(r, paths, false);
}

fn exchange(r: &mut Reader<'_>, config: &mut DispatcherConfig) {
    let default = config.read_timeout;
    if r.style == Style::Conf && r.has("timeout") {
        let span = r.value_span("timeout").unwrap_or_default();
        let newer = r.has("read_timeout");
        let seconds = r.seconds("timeout", 1..=DAY, default);
        if newer {
            r.warn(&span, "'timeout' is ignored because 'read_timeout' is set");
        } else {
            r.warn(&span, "'timeout' is deprecated; write 'read_timeout'");
            config.read_timeout = seconds;
        }
    }
    config.read_timeout = r.seconds("read_timeout", 1..=DAY, config.read_timeout);
    config.connect_timeout = r.seconds("connect_timeout", 1..=600, config.connect_timeout);
    config.max_parallel = max_parallel(r, config.max_parallel);
}

/// The original takes any text here and acts as if it were 1; existing files keep that meaning, with a warning.
fn max_parallel(r: &mut Reader<'_>, default: usize) -> usize {
    if r.style == Style::Toml {
        return r.size("max_parallel", 1..=1024, default);
    }
    let read = r.read("max_parallel", |r, value| {
        let RawValue::Text(text) = &value.value else {
            return None;
        };
        let digits = text.bytes().all(|b| b.is_ascii_digit());
        let number = match digits.then(|| text.parse::<usize>().unwrap_or(usize::MAX)) {
            Some(n) if (1..=MAX_PARALLEL).contains(&n) => return Some(n),
            Some(n) if n > MAX_PARALLEL => MAX_PARALLEL,
            _ => 1,
        };
        let message = format!(
            "'max_parallel' must be a whole number from 1 to {MAX_PARALLEL}, not '{text}': {number} is used"
        );
        r.warn(&value.span, &message);
        Some(number)
    });
    read.unwrap_or(default)
}

fn identity(r: &mut Reader<'_>, config: &mut DispatcherConfig) {
    if let Some(text) = r.text("dispatcher_id") {
        config.dispatcher_id = DispatcherId::sanitise(&text.value);
        if config.dispatcher_id.as_str() != text.value {
            let message = format!(
                "'dispatcher_id' is read as '{}': use 1 to 64 letters, digits, '.', '-', '_'",
                config.dispatcher_id
            );
            r.warn(&text.span, &message);
        }
    }
    if let Some(text) = r.text("service_user") {
        config.service_user = text.value;
    }
    config.cert_days = r.days("cert_days", 1..=MAX_DAYS, config.cert_days);
}

fn pairing(r: &mut Reader<'_>, config: &mut DispatcherConfig) {
    config.pairing_timeout = r.seconds("pairing_timeout", 1..=600, config.pairing_timeout);
    config.pairing_max_queue = r.size("pairing_max_queue", 1..=10_000, config.pairing_max_queue);
    let off = r.boolean("pairing_rate_limit_disable", false);
    config.pairing_rate_limit = r.rate("pairing_rate_limit_volume", config.pairing_rate_limit);
    if off {
        config.pairing_rate_limit = None;
    }
    config.pairing_require_bound_code = r.boolean(
        "pairing_require_bound_code",
        config.pairing_require_bound_code,
    );
    config.pairing_bind = r.address("pairing_bind");
    config.pairing_port = r.port("pairing_port", config.pairing_port);
}

fn rotation(r: &mut Reader<'_>, config: &mut DispatcherConfig, paths: &Paths) {
    let rotation = &mut config.rotation;
    rotation.renewal_days = r.days("cert_renewal_days", 0..=MAX_DAYS, rotation.renewal_days);
    rotation.overlap_days = r.days("cert_overlap_days", 0..=MAX_DAYS, rotation.overlap_days);
    rotation.check_interval =
        r.seconds("cert_check_interval", 1..=31 * DAY, rotation.check_interval);
    if let Some(path) = r.path("rotation_file", paths) {
        rotation.file = path;
    }
}

fn api(r: &mut Reader<'_>, config: &mut DispatcherConfig, paths: &Paths) {
    let api = &mut config.api;
    api.port = r.port("api_port", api.port);
    api.bind = r.address("api_bind").unwrap_or(api.bind);
    api.max_children = r.size("api_max_children", 1..=65_535, api.max_children);
    api.auth_deny_generic = r.boolean("auth_deny_generic", api.auth_deny_generic);
    api.auth_default = auth_default(r).unwrap_or(api.auth_default);
    let spans = (r.value_span("api_cert"), r.value_span("api_key"));
    api.tls = match (r.path("api_cert", paths), r.path("api_key", paths)) {
        (Some(cert), Some(key)) => Some(ApiTls { cert, key }),
        _ => None,
    };
    // The original falls back to plain HTTP without a word.
    let (span, message) = match spans {
        (Some(span), None) => (
            span,
            "'api_cert' needs 'api_key' too: without it the API would speak plain HTTP",
        ),
        (None, Some(span)) => (
            span,
            "'api_key' needs 'api_cert' too: without it the API would speak plain HTTP",
        ),
        _ => return,
    };
    r.error(&span, message);
}

/// The original reads every word but `allow` as `deny`; so do we, but a word that is neither is an error.
fn auth_default(r: &mut Reader<'_>) -> Option<AuthDefault> {
    let text = r.text("api_auth_default")?;
    match text.value.to_ascii_lowercase().as_str() {
        "allow" => Some(AuthDefault::Allow),
        "deny" => Some(AuthDefault::Deny),
        _ => {
            let message = format!(
                "'api_auth_default' must be allow or deny, not '{}'",
                text.value
            );
            r.error(&text.span, &message);
            None
        }
    }
}
