//! `ced rotate-ca`: replacing the CA of the fleet (core/ca_change).

use std::path::PathBuf;
use std::time::Duration;

use argh::FromArgs;
use serde_json::{Value, json};

use crate::applets::ced::{Call, common};
use crate::applets::{AppError, Context, Exit};
use crate::core::ca_change::{Change, ChangeError, Lagging, Outcome, Phase, State};
use crate::core::client::fleet::Live;
use crate::core::config::DispatcherConfig;
use crate::core::config::diagnostics::printable;
use crate::core::maintenance::Maintenance;
use crate::core::pki::{KeyType, ca};
use crate::core::registry::Registry;
use crate::core::rotation::Rotation;
use crate::core::types::AgentName;
use crate::{complain, say};

const PATIENCE: Duration = Duration::from_secs(60);

/// Replace the CA of the fleet without pairing anybody again: start, status, finish, abort.
#[derive(FromArgs)]
#[argh(help_triggers("-h", "--help"))]
struct Args {
    /// configuration file (default /etc/ctrl-exec/ctrl-exec.toml, else ctrl-exec.conf)
    #[argh(option)]
    config: Option<PathBuf>,
    /// print one JSON object instead of text
    #[argh(switch)]
    json: bool,
    /// start: key of the new CA: ecdsa-p256 (default), rsa-2048, rsa-3072 or rsa-4096
    #[argh(option, default = "KeyType::EcdsaP256")]
    key_type: KeyType,
    /// start, finish, abort: hosts that are given up and have to be paired again, separated by commas
    #[argh(option)]
    without: Option<String>,
    /// start, status, finish or abort
    #[argh(positional)]
    word: String,
}

pub(super) fn main(context: &Context, call: &Call) -> Result<Exit, AppError> {
    let args: Args = call.parse()?;
    let config = common::load_config(context, args.config.as_deref())?;
    let without = parse_hosts(args.without.as_deref())?;
    let failed = |e: &dyn std::fmt::Display| AppError::failed(e.to_string());
    let busy = |e: &dyn std::fmt::Display| {
        AppError::failed(format!(
            "{e}\nNothing was changed: try 'ced rotate-ca {}' again when it has ended.",
            args.word
        ))
    };
    let (clock, network) = common::network(context, &config);
    let change = Change {
        config: &config,
        clock: &clock,
        network: &network,
    };
    if args.word == "status" {
        return status(&change, &config, args.json);
    }
    if !matches!(args.word.as_str(), "start" | "finish" | "abort") {
        return Err(AppError::usage(format!(
            "unknown word '{}': use 'ced rotate-ca start', 'status', 'finish' or 'abort'",
            args.word.escape_debug()
        )));
    }
    refuse_strangers(&config, &without)?;
    let maintenance = Maintenance {
        config: &config,
        clock: &clock,
        network: &network,
    };
    // What each agent trusts now is what everything below is decided by.
    let before = State::load(&config).map_err(|e| failed(&e))?;
    let pass = common::block_on(maintenance.pass(false))?.map_err(|e| busy(&e))?;
    // One that was only waiting for agents' confirmation may have come to the end that is asked for.
    let ending = match before.map(|state| state.phase) {
        Some(Phase::Withdrawing) => "finish",
        Some(Phase::Aborting) => "abort",
        _ => "",
    };
    if pass.ca.over && args.word == ending {
        return report(&change, &args, &pass.ca);
    }
    let lock = Rotation::<Live>::lock(&config, PATIENCE).map_err(|e| busy(&e))?;
    let outcome = match args.word.as_str() {
        "start" => {
            let begun = change.start(args.key_type, ca::DEFAULT_CA_DAYS, &without);
            begun.map_err(|e| failed(&e))?;
            common::block_on(change.advance())?
        }
        "finish" => common::block_on(change.finish(&without))?,
        _ => common::block_on(change.abort(&without))?,
    };
    drop(lock);
    let outcome = outcome.map_err(|e| failed(&e))?;
    // Renewals under the new CA, and whatever else can be done at once.
    if !outcome.over
        && let Err(error) = common::block_on(maintenance.pass(false))?
    {
        complain!("Warning: {error}");
    }
    report(&change, &args, &outcome)
}

fn parse_hosts(words: Option<&str>) -> Result<Vec<AgentName>, AppError> {
    words
        .unwrap_or_default()
        .split(',')
        .map(str::trim)
        .filter(|w| !w.is_empty())
        .map(|w| {
            w.parse()
                .map_err(|e| AppError::usage(format!("--without: {e}")))
        })
        .collect()
}

/// A name that was mistyped gives up nobody, and must not look as if it did.
fn refuse_strangers(config: &DispatcherConfig, without: &[AgentName]) -> Result<(), AppError> {
    let registry = Registry::new(config.registry_dir.clone());
    for name in without {
        // A damaged record is somebody's too.
        if let Ok(None) = registry.get(name) {
            return Err(AppError::failed(format!(
                "--without: '{name}' is no registered host ('ced list-agents' shows them)"
            )));
        }
    }
    Ok(())
}

fn report(change: &Change<'_, Live>, args: &Args, outcome: &Outcome) -> Result<Exit, AppError> {
    if args.json {
        return status(change, change.config, true);
    }
    match args.word.as_str() {
        "start" => {
            say!("The new CA is made and trusted beside the old one.");
        }
        "finish" if outcome.over => {
            say!(
                "The old CA is not trusted any more, here and on every agent. The change is over."
            );
        }
        "finish" => {
            say!("The old CA is not trusted here any more; some agents have not dropped it yet.");
        }
        _ if outcome.over => {
            say!("The change was taken back; the old CA stays.");
        }
        _ => {
            say!("The change is being taken back; some agents have not dropped the new CA yet.");
        }
    }
    for (agent, result) in &outcome.told {
        if let Err(error) = result {
            say!("  {agent:<30}  {}", printable(error));
        }
    }
    if outcome.over {
        return Ok(Exit::Success);
    }
    status(change, change.config, false)
}

fn status(
    change: &Change<'_, Live>,
    config: &DispatcherConfig,
    as_json: bool,
) -> Result<Exit, AppError> {
    let failed = |e: &dyn std::fmt::Display| AppError::failed(e.to_string());
    let Some(state) = State::load(config).map_err(|e| failed(&e))? else {
        if as_json {
            say!("{}", json!({ "ok": 1, "phase": null }));
        } else {
            say!("No change of the CA is going on.");
        }
        return Ok(Exit::Success);
    };
    let lagging = change
        .lagging(&state)
        .map_err(|e: ChangeError| failed(&e))?;
    if as_json {
        let agents: Vec<Value> = lagging
            .iter()
            .map(|l| json!({ "agent": l.agent, "lacks": l.lacks }))
            .collect();
        say!(
            "{}",
            json!({
                "ok": 1, "phase": state.phase.as_str(), "since": state.since, "old": state.old, "new": state.new,
                "lagging": agents, "given_up": state.given_up,
            })
        );
        return Ok(Exit::Success);
    }
    print(&state, &lagging);
    Ok(Exit::Success)
}

fn print(state: &State, lagging: &[Lagging]) {
    say!("Phase:    {} (since {})", state.phase.as_str(), state.since);
    say!("Old CA:   {}", state.old);
    say!("New CA:   {}", state.new);
    if !state.given_up.is_empty() {
        let names: Vec<&str> = state.given_up.iter().map(AgentName::as_str).collect();
        say!("Given up: {} (pair again)", names.join(", "));
    }
    match state.phase {
        Phase::Withdrawing | Phase::Aborting => {
            for Lagging { agent, lacks } in lagging {
                say!("  {agent:<30}  {lacks}");
            }
            say!("'ced maintain' goes on until every agent has confirmed.");
            return;
        }
        Phase::Announcing if lagging.is_empty() => {
            say!(
                "No agent has confirmed the dispatcher's new certificate yet: 'ced maintain' goes on."
            );
            return;
        }
        Phase::Announcing | Phase::Changed => {}
    }
    if lagging.is_empty() {
        say!("Every agent has followed. Next: ced rotate-ca finish");
        return;
    }
    say!("{} agent(s) have not followed yet:", lagging.len());
    for Lagging { agent, lacks } in lagging {
        say!("  {agent:<30}  {lacks}");
    }
    say!("'ced maintain' goes on with them whenever they answer. Then: ced rotate-ca finish");
}
