//! `ced rotate-cert` and `ced serial-status`: the dispatcher's own certificate (spec/dispatcher.md 10.10, 10.13).

use std::path::PathBuf;
use std::time::Duration;

use argh::FromArgs;
use serde_json::{Value, json};

use crate::applets::ced::{Call, common};
use crate::applets::{AppError, Context, Exit};
use crate::core::client::fleet::Live;
use crate::core::config::DispatcherConfig;
use crate::core::config::diagnostics::printable;
use crate::core::keyring::PairStore;
use crate::core::logging::Action;
use crate::core::registry::{Registry, SerialStatus};
use crate::core::rotation::{Issuer, Report, Rotation, State};
use crate::core::{clock, keyring};
use crate::{complain, say};

/// How long `rotate-cert` waits for a maintenance that is under way.
const PATIENCE: Duration = Duration::from_secs(60);

/// Replace the dispatcher's own certificate now, and tell every agent. A rotation that is not over is continued.
#[derive(FromArgs)]
#[argh(help_triggers("-h", "--help"))]
struct RotateArgs {
    /// configuration file (default /etc/ctrl-exec/ctrl-exec.toml, else ctrl-exec.conf)
    #[argh(option)]
    config: Option<PathBuf>,
    /// print one JSON object instead of text
    #[argh(switch)]
    json: bool,
}

pub(super) fn rotate(context: &Context, call: &Call) -> Result<Exit, AppError> {
    let args: RotateArgs = call.parse()?;
    let config = common::load_config(context, args.config.as_deref())?;
    let failed = |e: &dyn std::fmt::Display| AppError::failed(format!("Rotation failed: {e}"));
    let (clock, network) = common::network(context, &config);
    let _lock = Rotation::<Live>::lock(&config, PATIENCE).map_err(|e| {
        failed(&format!(
            "a maintenance is under way ({e}): try again later"
        ))
    })?;
    let rotation = Rotation {
        config: &config,
        clock: &clock,
        network: &network,
        issuer: Issuer::Present,
    };
    let report = common::block_on(rotation.advance(true))?.map_err(|e| {
        Action::new("cert-rotation-fail").field("ERROR", &e).err();
        failed(&e)
    })?;
    if args.json {
        say!("{}", as_json(&report));
    } else {
        print(&report, &config);
    }
    Ok(Exit::Success)
}

fn as_json(report: &Report) -> Value {
    let failed: Vec<Value> = report
        .announced
        .iter()
        .filter_map(|a| {
            let error = a.result.as_ref().err()?;
            Some(json!({ "agent": a.agent, "error": error }))
        })
        .collect();
    json!({
        "ok": 1,
        "began": report.began.as_ref().map(ToString::to_string),
        "promoted": report.promoted.as_ref().map(ToString::to_string),
        "updated": report.announced.len() - failed.len(),
        "failed": failed,
        "state": report.state,
    })
}

fn print(report: &Report, config: &DispatcherConfig) {
    let state = report.state.clone().unwrap_or_default();
    let updated = report.announced.iter().filter(|a| a.result.is_ok()).count();
    if report.began.is_none() {
        say!("A rotation is not over yet: it was continued, no new certificate was made.");
    }
    match &state.next_serial {
        // Nobody has heard of it: the old one stays until somebody has.
        Some(next) => {
            say!("New serial:       {next} (announced, not in use yet)");
            say!("Old serial:       {} (still in use)", state.current_serial);
        }
        None => {
            let old = state.previous_serial.as_deref().filter(|s| !s.is_empty());
            say!("New serial:       {}", state.current_serial);
            say!("Old serial:       {}", old.unwrap_or("(none)"));
            say!("Overlap expires:  {}", state.overlap_expires);
        }
    }
    say!("Agents pending:   {}", report.announced.len());
    if report.announced.is_empty() {
        return;
    }
    say!("  Updated: {updated}");
    say!("  Failed:  {}", report.announced.len() - updated);
    for told in &report.announced {
        if let Err(error) = &told.result {
            say!("  {:<30}  {}", told.agent, printable(error));
        }
    }
    if updated < report.announced.len() {
        say!(
            "Those are told at their next contact and by every 'ced maintain'. Until then they are called with the old certificate, which is kept for {} days and longer if it is needed.",
            config.rotation.overlap_days
        );
    }
}

/// Show which of this dispatcher's serials are in use and how far each agent has followed.
#[derive(FromArgs)]
#[argh(help_triggers("-h", "--help"))]
struct StatusArgs {
    /// configuration file (default /etc/ctrl-exec/ctrl-exec.toml, else ctrl-exec.conf)
    #[argh(option)]
    config: Option<PathBuf>,
    /// print one JSON object instead of text
    #[argh(switch)]
    json: bool,
}

pub(super) fn status(context: &Context, call: &Call) -> Result<Exit, AppError> {
    let args: StatusArgs = call.parse()?;
    let config = common::load_config(context, args.config.as_deref())?;
    let failed = |e: &dyn std::fmt::Display| AppError::failed(e.to_string());
    let state = State::load(&config.rotation.file).map_err(|e| failed(&e))?;
    let listing = Registry::new(config.registry_dir.clone())
        .list()
        .map_err(|e| failed(&e))?;
    for problem in &listing.unreadable {
        complain!("Warning: {problem}");
    }
    let kept = PairStore::of(&config).list().map_err(|e| failed(&e))?;
    if args.json {
        let kept: Vec<String> = kept.iter().map(ToString::to_string).collect();
        say!(
            "{}",
            json!({ "state": state, "agents": listing.agents, "kept": kept })
        );
        return Ok(Exit::Success);
    }
    match &state {
        Some(state) => print_state(
            state,
            &config,
            kept.len(),
            common::clock(context, &config).now(),
        ),
        None => {
            say!("No rotation has been performed.");
            if let Ok(certificate) = keyring::configured_certificate(&config) {
                say!("Serial:          {}", certificate.serial);
                say!("Valid until:     {}", certificate.expiry_text());
            }
        }
    }
    say!("");
    if listing.agents.is_empty() {
        say!("No registered agents.");
        return Ok(Exit::Success);
    }
    say!(
        "{:<30}  {:<10}  {:<24}  SERIAL",
        "HOSTNAME",
        "STATUS",
        "CONFIRMED"
    );
    say!("{}", "-".repeat(85));
    for agent in &listing.agents {
        let serial = agent.dispatcher_serial.escape_debug().to_string();
        let shown = match serial.char_indices().nth(16) {
            Some((cut, _)) => format!("{}...", &serial[..cut]),
            None => serial,
        };
        say!(
            "{:<30}  {:<10}  {:<24}  {shown}",
            agent.name,
            agent.serial_status.as_str(),
            agent.serial_confirmed.escape_debug().to_string(),
        );
    }
    let late = |status| {
        listing
            .agents
            .iter()
            .filter(|a| a.serial_status == status)
            .count()
    };
    let (pending, stale) = (late(SerialStatus::Pending), late(SerialStatus::Stale));
    if pending + stale > 0 {
        say!("");
        say!(
            "{pending} pending, {stale} stale: called with an older certificate until they have heard of the new one, at their next contact."
        );
    }
    Ok(Exit::Success)
}

fn print_state(state: &State, config: &DispatcherConfig, kept: usize, now: i64) {
    let or_none = |text: Option<&str>| {
        text.filter(|s| !s.is_empty())
            .unwrap_or("(none)")
            .to_owned()
    };
    say!("Current serial:  {}", or_none(Some(&state.current_serial)));
    say!(
        "Previous serial: {}",
        or_none(state.previous_serial.as_deref())
    );
    say!("Rotated at:      {}", or_none(Some(&state.rotated_at)));
    say!("Overlap expires: {}", or_none(Some(&state.overlap_expires)));
    if let Some(next) = &state.next_serial {
        let since = state.next_since.as_deref().unwrap_or("?");
        say!("Next serial:     {next} (being announced since {since}, not in use yet)");
    }
    for retiring in &state.retiring {
        let when = if retiring.is_over(now) {
            "is being withdrawn".to_owned()
        } else {
            format!("will be withdrawn after {}", retiring.until)
        };
        say!(
            "Old serial:      {} {when}; {} agent(s) may still trust it",
            retiring.serial,
            retiring.pending.len()
        );
    }
    if kept > 0 {
        say!("Older pairs:     {kept} kept for agents that need them");
    }
    if let Ok(certificate) = keyring::configured_certificate(config) {
        say!("Valid until:     {}", certificate.expiry_text());
        let days = (certificate.not_after - now) / 86_400;
        let half_life = (certificate.not_after - certificate.not_before) / 2;
        let before = (i64::from(config.rotation.renewal_days) * 86_400).min(half_life);
        let at = certificate.not_after - before;
        say!(
            "Next rotation:   {} ({days} days left; 'ced maintain' begins it)",
            clock::iso(at.max(now))
        );
        if !state.current_serial.is_empty()
            && !keyring::names_serial(&state.current_serial, &certificate.serial)
            && state.next_serial.as_deref() != Some(certificate.serial.to_string().as_str())
        {
            complain!(
                "Warning: '{}' has the serial {}, not the one of the last rotation: was it restored from a backup? See docs/recovery.md.",
                config.cert.display(),
                certificate.serial
            );
        }
    }
}
