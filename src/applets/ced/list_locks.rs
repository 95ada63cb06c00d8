//! `ced list-locks` (spec/dispatcher.md 10.9).

use std::path::PathBuf;

use argh::FromArgs;
use serde_json::json;

use crate::applets::ced::{Call, common};
use crate::applets::{AppError, Context, Exit};
use crate::core::config::diagnostics::printable;
use crate::core::locks;
use crate::say;

/// List which scripts are being run on which hosts by this dispatcher.
#[derive(FromArgs)]
#[argh(help_triggers("-h", "--help"))]
struct ListLocksArgs {
    /// configuration file (default /etc/ctrl-exec/ctrl-exec.toml, else ctrl-exec.conf)
    #[argh(option)]
    config: Option<PathBuf>,
    /// print one JSON object instead of a table
    #[argh(switch)]
    json: bool,
}

pub(super) fn main(context: &Context, call: &Call) -> Result<Exit, AppError> {
    let args: ListLocksArgs = call.parse()?;
    let config = common::load_config(context, args.config.as_deref())?;
    let held = locks::held(&config.locks_dir).map_err(|e| AppError::failed(e.to_string()))?;
    if args.json {
        let locks: Vec<_> = held
            .iter()
            .map(|pair| json!({"host": pair.host, "script": pair.script}))
            .collect();
        say!("{}", json!({"ok": 1, "locks": locks}));
        return Ok(Exit::Success);
    }
    if held.is_empty() {
        say!("No locks currently held.");
        return Ok(Exit::Success);
    }
    say!("{:<30}  SCRIPT", "HOST");
    say!("{}", "-".repeat(50));
    for pair in held {
        say!("{:<30}  {}", printable(&pair.host), printable(&pair.script));
    }
    Ok(Exit::Success)
}
