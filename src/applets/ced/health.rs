//! `ced health`: one line for a monitoring system, with exit codes and performance data as Nagios and its kin take them.

use std::path::PathBuf;

use argh::FromArgs;
use serde_json::{Value, json};

use crate::applets::ced::{Call, common};
use crate::applets::{AppError, Context, Exit};
use crate::core::config::{self, DispatcherConfig, Loaded};
use crate::core::health::{self, Check, Limits, Status};
use crate::core::hostname;
use crate::core::metrics::{self, FleetState};
use crate::core::registry::SerialStatus;
use crate::say;

const DAY: i64 = 86_400;

/// Tell whether this dispatcher is well: certificates, rotation, registry, files. No agent is contacted, nothing is changed. Exit: 0 ok, 1 warning, 2 critical, 3 unknown.
#[derive(FromArgs)]
#[argh(help_triggers("-h", "--help"))]
struct HealthArgs {
    /// configuration file (default /etc/ctrl-exec/ctrl-exec.toml, else ctrl-exec.conf)
    #[argh(option)]
    config: Option<PathBuf>,
    /// print one JSON object instead of text
    #[argh(switch)]
    json: bool,
    /// days left of a certificate below which to warn (default 30, less where cert_days is short)
    #[argh(option)]
    warning_days: Option<u32>,
    /// days left of a certificate below which it is critical (default 7, less where cert_days is short)
    #[argh(option)]
    critical_days: Option<u32>,
    /// ask the API on this host too
    #[argh(switch)]
    api: bool,
}

pub(super) fn main(context: &Context, call: &Call) -> Result<Exit, AppError> {
    let args: HealthArgs = call.parse()?;
    let loaded = config::load_dispatcher(
        &context.paths,
        args.config.as_deref(),
        &hostname::short(context.var("CTRL_EXEC_HOSTNAME")),
    );
    let (checks, data) = match loaded {
        Ok(loaded) => look(context, &args, &loaded),
        Err(error) => (vec![unknown(error.to_string())], String::new()),
    };
    let status = health::worst(&checks);
    if args.json {
        say!("{}", as_json(status, &checks));
    } else {
        print(status, &checks, &data);
    }
    Ok(match status {
        Status::Ok => Exit::Success,
        Status::Warning => Exit::Warning,
        Status::Critical => Exit::Critical,
        Status::Unknown => Exit::Unknown,
    })
}

fn unknown(reason: String) -> Check {
    Check::new("configuration", Status::Unknown, reason)
}

/// Everything that was found, and the performance data.
fn look(
    context: &Context,
    args: &HealthArgs,
    loaded: &Loaded<DispatcherConfig>,
) -> (Vec<Check>, String) {
    let config = &loaded.value;
    let default = Limits::of(config);
    let warning = args.warning_days.map_or(default.warning, i64::from);
    let limits = Limits {
        warning,
        critical: args
            .critical_days
            .map_or(default.critical.min(warning), i64::from),
    };
    if limits.critical > limits.warning {
        let reason = format!(
            "--critical-days ({}) must not be more than --warning-days ({})",
            limits.critical, limits.warning
        );
        return (vec![unknown(reason)], String::new());
    }
    let fleet = metrics::fleet(config, &common::clock(context, config));
    let mut probes = health::probe(config);
    if args.api {
        probes.api = Some(health::ask_api(&config.api));
    }
    let said = match loaded.warnings.len() {
        0 => config.source.display().to_string(),
        count => format!("{} ({count} warning(s))", config.source.display()),
    };
    let mut checks = vec![Check::new("configuration", Status::Ok, said)];
    checks.extend(health::judge(&fleet, &probes, limits));
    (checks, performance(&fleet, limits))
}

/// `label=value;warning;critical`, a range `N:` being broken by less than N.
fn performance(fleet: &FleetState, limits: Limits) -> String {
    let days = |end: i64| (end - fleet.now) / DAY;
    let below = format!(";{}:;{}:", limits.warning, limits.critical);
    let mut parts = Vec::new();
    let mut push = |label: &str, value: Option<i64>, range: &str| {
        parts.extend(value.map(|value| format!("{label}={value}{range}")));
    };
    let count = |count: usize| i64::try_from(count).ok();
    push("certificate_days", fleet.certificate.map(days), &below);
    push("ca_days", fleet.cas.iter().min().copied().map(days), "");
    let first = fleet.agents.iter().filter_map(|a| a.not_after).min();
    push("agent_certificate_days", first.map(days), &below);
    push("agents", count(fleet.agents.len()), "");
    for status in [SerialStatus::Pending, SerialStatus::Stale] {
        push(status.as_str(), count(fleet.agents_with(status)), "");
    }
    let waiting = fleet.waiting.as_ref();
    push("pairing_waiting", waiting.and_then(|w| count(w.len())), "");
    push("runs_running", count(fleet.runs.running), "");
    parts.join(" ")
}

fn print(status: Status, checks: &[Check], data: &str) {
    let mut problems: Vec<&Check> = checks.iter().filter(|c| c.status != Status::Ok).collect();
    problems.sort_by_key(|check| std::cmp::Reverse(check.status));
    let problems: Vec<String> = problems
        .into_iter()
        .map(|check| format!("{}: {}", check.name, plain(&check.detail)))
        .collect();
    let summary = if problems.is_empty() {
        let certificate = checks.iter().find(|check| check.name == "certificate");
        let detail = certificate.map_or("", |check| &check.detail);
        format!("{} checks; certificate: {}", checks.len(), plain(detail))
    } else {
        problems.join("; ")
    };
    let bar = if data.is_empty() { "" } else { " | " };
    let word = status.as_str().to_uppercase();
    say!("CTRL-EXEC {word} - {summary}{bar}{data}");
    for check in checks {
        let word = check.status.as_str();
        say!("[{word}] {}: {}", check.name, plain(&check.detail));
    }
}

/// One line without the bar that begins the performance data.
fn plain(text: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    let line = words.join(" ").replace('|', "/");
    config::diagnostics::printable(&line).to_string()
}

fn as_json(status: Status, checks: &[Check]) -> Value {
    let checks: Vec<Value> = checks
        .iter()
        .map(|c| json!({ "name": c.name, "status": c.status.as_str(), "detail": c.detail }))
        .collect();
    json!({ "ok": status == Status::Ok, "status": status.as_str(), "checks": checks })
}
