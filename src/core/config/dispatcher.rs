//! `ctrl-exec.conf` and `ctrl-exec.toml`: from raw values to [`DispatcherConfig`] (spec/dispatcher.md 2.2, spec/api.md 13).

use super::diagnostics::{Report, Severity};
use super::raw::{RawDocument, RawValue, Style};
use super::reader::Reader;
use super::source::SourceFile;
use super::{ApiTls, AuthDefault, DispatcherConfig, api_listener, hook};
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
    set("revoked_file", &mut config.revoked_file);
    set("pairing_dir", &mut config.pairing_dir);
    set("locks_dir", &mut config.locks_dir);
    set("runs_dir", &mut config.runs_dir);
    config.run_retention = r.seconds("run_retention", 60..=366 * DAY, config.run_retention);
    config.auth_hook = hook::read(r, paths, false);
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
    api.refusal_limit = r.rate("api_refusal_limit", api.refusal_limit);
    api.answer_memory = r.size("api_answer_memory", 8..=2047, api.answer_memory >> 20) << 20;
    api.metrics = r.boolean("api_metrics", api.metrics);
    api.auth_default = auth_default(r).unwrap_or(api.auth_default);
    let spans = (r.value_span("api_cert"), r.value_span("api_key"));
    api.tls = match (r.path("api_cert", paths), r.path("api_key", paths)) {
        (Some(cert), Some(key)) => Some(ApiTls { cert, key }),
        _ => None,
    };
    api_listener::read(r, api, paths);
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

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;
    use crate::core::config::RateSpec;
    use std::time::Duration;

    const REQUIRED: &str = "cert = /c\nkey = /k\nca = /a\n";

    fn lines(
        text: &str,
    ) -> Result<super::super::Loaded<DispatcherConfig>, super::super::ConfigError> {
        dispatcher_conf(&format!("{REQUIRED}{text}\n"))
    }

    #[test]
    fn required_keys_are_named_all_at_once_and_zero_is_missing() {
        let all = errors(dispatcher_conf("key = /k\nca = 0\n"));
        assert_eq!(all.len(), 3, "{all:#?}");
        assert!(all[0].contains("'ca' must be an absolute path: '0'"));
        assert!(all[1].contains("Missing 'cert' in /"));
        assert!(all[2].contains("Missing 'ca' in /"));
        assert_eq!(errors(dispatcher_conf("")).len(), 3);
    }

    #[test]
    fn defaults_are_those_of_the_documentation() {
        let host = Host::new();
        let path = host.write("/etc/ctrl-exec/ctrl-exec.toml", "# all defaults\n");
        let loaded = host.dispatcher().unwrap();
        assert!(loaded.warnings.is_empty());
        let defaults = DispatcherConfig::defaults(&host.paths(), &path, "ctl.example");
        assert_eq!(loaded.value, defaults);
        assert_eq!(defaults.cert, host.at("/etc/ctrl-exec/dispatcher.crt"));
        assert_eq!(defaults.dispatcher_id.as_str(), "ctl.example");
        assert_eq!(defaults.read_timeout, Duration::from_secs(60));
        assert_eq!((defaults.max_parallel, defaults.cert_days), (64, 825));
        assert_eq!(
            defaults.pairing_rate_limit,
            Some(RateSpec::new(10, 60, 300))
        );
        assert!(error(dispatcher_toml("")).contains("the file is empty"));
    }

    #[test]
    fn indented_lines_are_skipped_as_ever_but_not_in_silence() {
        let loaded = lines(" max_parallel = 3\n[section]\nauth_hook =\nnot-a-key = 1").unwrap();
        assert_eq!(loaded.value.max_parallel, 64);
        assert_eq!(loaded.value.auth_hook, None);
        let said = warnings(&loaded);
        assert_eq!(said.len(), 4);
        assert!(said[0].contains("4:2: warning: line ignored: it begins with white space"));
        assert!(
            said[2].contains("6:1: warning: line ignored: the key has no value and stays unset")
        );
    }

    #[test]
    fn a_blank_hook_is_an_error_instead_of_a_hook_that_denies_everything() {
        assert!(error(lines("auth_hook =   ")).contains("'auth_hook' has no value"));
        let hook = lines("auth_hook = /hook\nauth_hook_timeout=2")
            .unwrap()
            .value;
        assert_eq!(hook.auth_hook.unwrap().timeout, Duration::from_secs(2));
    }

    #[test]
    fn the_last_of_several_wins_with_a_warning() {
        let loaded = lines("cert_days = 1\ncert_days = 2").unwrap();
        assert_eq!(loaded.value.cert_days, 2);
        assert!(warnings(&loaded)[0].contains("4:1: warning: 'cert_days' is set again in line 5"));
    }

    #[test]
    fn parallelism_keeps_its_old_meaning_in_old_files() {
        for (text, used) in [("0", 1), ("-4", 1), ("many", 1), ("7", 7), ("99999", 1024)] {
            let loaded = lines(&format!("max_parallel = {text}")).unwrap();
            assert_eq!(loaded.value.max_parallel, used, "{text}");
            assert_eq!(loaded.warnings.is_empty(), used == 7);
        }
        assert!(error(dispatcher_toml("max_parallel = 0")).contains("from 1 to 1024, not 0"));
    }

    #[test]
    fn the_old_name_of_read_timeout() {
        let loaded = lines("timeout = 5").unwrap();
        assert_eq!(loaded.value.read_timeout, Duration::from_secs(5));
        assert!(warnings(&loaded)[0].contains("deprecated"));
        let loaded = lines("timeout = 5\nread_timeout = 6").unwrap();
        assert_eq!(loaded.value.read_timeout, Duration::from_secs(6));
        assert!(error(dispatcher_toml("timeout = 5")).contains("unknown key 'timeout'"));
    }

    #[test]
    fn numbers_and_words_are_checked() {
        for bad in [
            "read_timeout = 0",
            "read_timeout = soon",
            "pairing_timeout = 601",
            "pairing_max_queue = 0",
            "cert_days = 0",
            "run_retention = 59",
            "runs_dir = relative",
            "locks_dir = relative",
            "api_port = 65536",
            "api_bind = localhost",
            "api_auth_default = maybe",
            "auth_deny_generic = perhaps",
            "pairing_rate_limit_disable = 2",
            "api_cert = /only/one",
            "api_key = /only/one",
            "ca_dir = relative",
            "registry_dir = /x # y",
        ] {
            let key = bad.split(' ').next().unwrap();
            let said = error(lines(bad));
            assert!(said.contains(&format!("'{key}'")), "{said}");
        }
        let loaded = lines("pairing_rate_limit_volume = fast").unwrap();
        assert_eq!(
            loaded.value.pairing_rate_limit,
            Some(RateSpec::new(10, 60, 300))
        );
        assert!(warnings(&loaded)[0].contains("the default 10/60/300 stays"));
        let off = lines("pairing_rate_limit_disable = on").unwrap().value;
        assert_eq!(off.pairing_rate_limit, None);
    }

    #[test]
    fn the_api_keys_are_known_here() {
        let api = lines(
            "api_bind = ::\napi_port = 0\napi_cert=/c\napi_key=/k\napi_auth_default = Allow\nauth_deny_generic = true",
        );
        let loaded = api.unwrap();
        assert!(loaded.warnings.is_empty());
        let api = loaded.value.api;
        assert_eq!((api.port, api.auth_default), (0, AuthDefault::Allow));
        assert!(api.tls.is_some() && api.auth_deny_generic && api.bind.is_ipv6());
    }

    #[test]
    fn ids_are_sanitised_and_unknown_keys_named() {
        let loaded = lines("dispatcher_id = my host!\npairing_queue = 1").unwrap();
        assert_eq!(loaded.value.dispatcher_id.as_str(), "my-host-");
        let said = warnings(&loaded);
        assert!(said[0].contains("4:17: warning: 'dispatcher_id' is read as 'my-host-'"));
        assert!(said[1].contains("5:1: warning: unknown key 'pairing_queue' is ignored"));
    }
}
