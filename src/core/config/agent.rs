//! `agent.conf` and `agent.toml`: from raw values to [`AgentConfig`] (spec/agent.md 3.2-3.4).

use std::path::Path;

use super::diagnostics::{Report, Severity};
use super::raw::{RawDocument, RawTable, RawValue, Style};
use super::reader::Reader;
use super::source::SourceFile;
use super::{AgentConfig, Cidr, HookConfig, defaults, profiles};
use crate::core::paths::Paths;
use crate::core::types::AbsolutePath;

const DAY: u64 = 86_400;

/// Validates everything; what cannot be used is reported and has its default in the answer.
pub(super) fn build(
    raw: RawDocument,
    source: &SourceFile,
    paths: &Paths,
    report: &mut Report,
) -> AgentConfig {
    let mut config = AgentConfig::defaults(paths, &source.path);
    let style = raw.style;
    require(&raw, source, report);
    let mut r = Reader::new(source, report, style, raw.top, String::new());
    network(&mut r, &mut config);
    files(&mut r, &mut config, paths);
    limits(&mut r, &mut config);
    config.auth_deny_generic = r.boolean("auth_deny_generic", config.auth_deny_generic);
    config.pairing_require_bound_code = r.boolean(
        "pairing_require_bound_code",
        config.pairing_require_bound_code,
    );
    let known = r.finish_with(&["tags", "profile"]);
    tags(raw.tags, &known, &mut config, source, report);
    config.profiles = profiles::build(raw.profiles, style, source, report);
    if config.script_dirs.is_empty() && !report.failed() {
        let message = "script_dirs is not set: every absolute path may be a script; name the directories that hold your scripts";
        report.add(source.of_file(Severity::Warning, message));
    }
    config
}

/// The original insists on four keys; with TOML they have their defaults.
fn require(raw: &RawDocument, source: &SourceFile, report: &mut Report) {
    if raw.style == Style::Toml {
        return;
    }
    for key in ["port", "cert", "key", "ca"] {
        if raw.top.entries.contains_key(key) {
            continue;
        }
        let below = std::iter::once(&raw.tags)
            .chain(raw.profiles.values().map(|p| &p.table))
            .find_map(|table| table.entries.get(key));
        let hint = below.map_or(String::new(), |entry| {
            format!(
                " (line {} sets it below a section header: move it above the first '[...]')",
                source.line_number(entry.key_span.start)
            )
        });
        let message = format!(
            "Missing required config key '{key}' in '{}'{hint}",
            source.path.display()
        );
        report.add(source.of_file(Severity::Error, message));
    }
}

fn network(r: &mut Reader<'_>, config: &mut AgentConfig) {
    config.port = r.port("port", config.port);
    config.bind = r.address("bind");
    config.allowed_ips = allowed_ips(r).unwrap_or_default();
}

/// Bad entries are dropped with a warning; a list of nothing but bad entries must not let everybody in (spec/agent.md 3.3, 19.2).
fn allowed_ips(r: &mut Reader<'_>) -> Option<Vec<Cidr>> {
    r.list("allowed_ips", |c| c == ',', |r, items| {
        let mut good = Vec::new();
        for item in &items.value {
            match Cidr::parse(&item.value) {
                Ok(cidr) => good.push(cidr),
                Err(why) => r.warn(
                    &item.span,
                    &format!("allowed_ips: entry '{}' is dropped: {why}", item.value),
                ),
            }
        }
        if good.is_empty() {
            let message = format!(
                "allowed_ips holds no usable address {}: correct it, or remove the key to accept all sources",
                r.in_file()
            );
            r.error(&items.span, &message);
        }
        Some(good)
    })
}

fn files(r: &mut Reader<'_>, config: &mut AgentConfig, paths: &Paths) {
    let mut set = |key, field: &mut std::path::PathBuf| {
        if let Some(path) = r.path(key, paths) {
            *field = path;
        }
    };
    set("cert", &mut config.cert);
    set("key", &mut config.key);
    set("ca", &mut config.ca);
    set(
        "trusted_dispatchers_path",
        &mut config.trusted_dispatchers_path,
    );
    set("revoked_serials", &mut config.revoked_serials);
    set("async_runs_dir", &mut config.async_runs_dir);
    set("cert_staging_path", &mut config.cert_staging_path);
    config.script_dirs = script_dirs(r).unwrap_or_default();
    config.executor_socket = executor_socket(r, paths);
    config.auth_hook = auth_hook(r, paths, true);
}

fn script_dirs(r: &mut Reader<'_>) -> Option<Vec<AbsolutePath>> {
    r.list(
        "script_dirs",
        |c| c == ':',
        |r, items| {
            if items.value.is_empty() {
                let message = format!(
                    "script_dirs names no directory {}: name one, or remove the key",
                    r.in_file()
                );
                r.error(&items.span, &message);
            }
            let mut dirs = Vec::new();
            for item in &items.value {
                let Some(dir) = r.absolute(item, "script_dirs: directory") else {
                    continue;
                };
                if dir.as_path() == Path::new("/") {
                    r.warn(&item.span, "script_dirs holds '/': it allows every path");
                }
                dirs.push(dir);
            }
            Some(dirs)
        },
    )
}

/// Empty or `0` = the agent runs scripts itself.
fn executor_socket(r: &mut Reader<'_>, paths: &Paths) -> Option<std::path::PathBuf> {
    r.read("executor_socket", |r, value| match &value.value {
        RawValue::Text(text) if text.is_empty() || text == "0" => None,
        RawValue::Text(text) => {
            let text = super::raw::Located::new(text.clone(), value.span.clone());
            let path = r.absolute(&text, "'executor_socket'")?;
            Some(paths.resolve(path.as_path()))
        }
        other => {
            let message = format!("'executor_socket' must be a string, not {}", other.kind());
            r.error(&value.span, &message);
            None
        }
    })
}

/// `auth_hook` with `auth_hook_timeout`. The agent wants the hook executable at load (spec/agent.md 3.2), the dispatcher when it
/// calls it.
pub(super) fn auth_hook(
    r: &mut Reader<'_>,
    paths: &Paths,
    must_be_executable: bool,
) -> Option<HookConfig> {
    let span = r.value_span("auth_hook");
    let path = r.path("auth_hook", paths);
    let timeout = r.seconds("auth_hook_timeout", 1..=3600, defaults::HOOK_TIMEOUT);
    let path = path?;
    if let (true, false, Some(span)) = (must_be_executable, is_executable(&path), span) {
        let message = format!(
            "auth_hook '{}' is not executable {}",
            path.display(),
            r.in_file()
        );
        r.error(&span, &message);
    }
    Some(HookConfig { path, timeout })
}

fn is_executable(path: &Path) -> bool {
    path.is_file() && rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok()
}

fn limits(r: &mut Reader<'_>, config: &mut AgentConfig) {
    config.stdin_timeout = r.seconds("stdin_timeout", 1..=DAY, config.stdin_timeout);
    config.run_timeout = r.seconds("run_timeout", 1..=31 * DAY, config.run_timeout);
    config.max_output = r.size("max_output", 1024..=1 << 30, config.max_output);
    config.max_children = r.size("max_children", 1..=65_535, config.max_children);
    let off = r.boolean("rate_limit_disable", false);
    config.rate_limit_volume = r.rate("rate_limit_volume", config.rate_limit_volume);
    config.rate_limit_probe = r.rate("rate_limit_probe", config.rate_limit_probe);
    config.rate_limit_dispatcher = r.rate("rate_limit_dispatcher", config.rate_limit_dispatcher);
    if off {
        config.rate_limit_volume = None;
        config.rate_limit_probe = None;
        config.rate_limit_dispatcher = None;
    }
}

fn tags(
    raw: RawTable,
    known: &[&'static str],
    config: &mut AgentConfig,
    source: &SourceFile,
    report: &mut Report,
) {
    for (key, entry) in raw.entries {
        let fits = key
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
        let mut say = |severity, span, message: String| {
            report.add(source.diagnostic(severity, span, message));
        };
        if key.is_empty() || key.starts_with('-') || !fits {
            let message = format!(
                "invalid tag '{key}': use letters, digits, '_', '-', not beginning with '-'"
            );
            say(Severity::Error, &entry.key_span, message);
        } else if let RawValue::Text(value) = entry.value.value {
            if value.chars().any(|c| c.is_control() && c != '\t') {
                let message = format!("tag '{key}' holds a control character");
                say(Severity::Error, &entry.value.span, message);
            }
            if known.contains(&key.as_str()) {
                let message = format!(
                    "'{key}' below [tags] is only a tag: to set the key, move it above the first section"
                );
                say(Severity::Warning, &entry.key_span, message);
            }
            config.tags.insert(key, value);
        } else {
            let message = format!(
                "tag '{key}' must be a string, not {}",
                entry.value.value.kind()
            );
            say(Severity::Error, &entry.value.span, message);
        }
    }
}
