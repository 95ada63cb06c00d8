//! `ced ping HOST...` (spec/dispatcher.md 10.5).

use std::path::PathBuf;
use std::sync::Arc;

use argh::FromArgs;
use serde_json::{Value, json};

use crate::applets::ced::Call;
use crate::applets::ced::common::{self, Claims};
use crate::applets::ced::dispatch::{dispatch, label};
use crate::applets::ced::run::denied;
use crate::applets::ced::show;
use crate::applets::{AppError, Context, Exit};
use crate::core::authhook::{Decision, HookAction};
use crate::core::config::DispatcherConfig;
use crate::core::config::diagnostics::printable;
use crate::core::dispatch::objects::{is_ok, log_ping, ping_object};
use crate::core::dispatch::{HostResult, Job};
use crate::core::maintenance::{Maintenance, Seen};
use crate::{complain, say};

/// Ask paired hosts whether they answer, which release they run and when their certificate ends.
#[derive(FromArgs)]
#[argh(help_triggers("-h", "--help"))]
struct PingArgs {
    /// configuration file (default /etc/ctrl-exec/ctrl-exec.toml, else ctrl-exec.conf)
    #[argh(option)]
    config: Option<PathBuf>,
    /// print one JSON object instead of a table
    #[argh(switch)]
    json: bool,
    /// end with status 1 if any host did not answer (without it: 0, as scripts of older releases expect)
    #[argh(switch)]
    check: bool,
    /// port of hosts that name none
    #[argh(option)]
    port: Option<u16>,
    /// name to claim towards the hook (default $USER)
    #[argh(option)]
    username: Option<String>,
    /// token for the hook; visible in the process list: prefer the variable ENVEXEC_TOKEN
    #[argh(option)]
    token: Option<String>,
    /// hosts, each with an optional :PORT
    #[argh(positional)]
    hosts: Vec<String>,
}

pub(super) fn main(context: &Context, call: &Call) -> Result<Exit, AppError> {
    let args: PingArgs = call.parse()?;
    if args.hosts.is_empty() {
        return Err(AppError::usage(
            "Need at least one host: ced ping HOST[:PORT]...",
        ));
    }
    let config = common::load_config(context, args.config.as_deref())?;
    let targets = common::resolve(&config, &args.hosts, args.port)?;
    let claims = Claims::new(context, args.username, args.token);
    let decision = common::block_on(common::authorise(
        context,
        &config,
        &claims,
        HookAction::Ping,
        "",
        &args.hosts,
        &[],
    ))?;
    if let Decision::Denied { reason, code } = decision {
        return Ok(denied(args.json, &reason, code));
    }

    let reqid = common::new_reqid()?;
    if !args.json {
        say!("{}", show::ping_head());
    }
    let results = dispatch(context, &config, targets, &Job::ping(&reqid), |result| {
        log_ping(result, &reqid);
        if !args.json {
            print(result);
        }
    })?;
    let seen: Vec<Seen> = results.iter().filter_map(|r| seen(r)).collect();
    common::block_on(after(context, &config, &seen))?;
    if args.json {
        let objects: Vec<Value> = results
            .iter()
            .map(|r| Value::Object(ping_object(r, &reqid)))
            .collect();
        say!("{}", json!({"ok": 1, "results": objects}));
    }
    Ok(if args.check && !results.iter().all(|r| is_ok(r)) {
        Exit::Failure
    } else {
        Exit::Success
    })
}

fn text<'a>(result: &'a HostResult, name: &str) -> &'a str {
    result
        .answer
        .as_ref()
        .ok()
        .and_then(|a| a.body.get(name))
        .and_then(Value::as_str)
        .unwrap_or("?")
}

/// What the contact is good for besides: the registry learns, certificates that are due are renewed, late agents hear what they have missed.
async fn after(context: &Context, config: &DispatcherConfig, seen: &[Seen]) {
    if seen.is_empty() {
        return;
    }
    let (clock, network) = common::network(context, config);
    let maintenance = Maintenance {
        config,
        clock: &clock,
        network: &network,
    };
    let summary = maintenance.after_ping(seen).await;
    for (agent, error) in &summary.renewal_failed {
        complain!(
            "Warning: the certificate of '{agent}' is due and was not renewed: {}",
            printable(error)
        );
    }
}

fn seen(result: &HostResult) -> Option<Seen> {
    let answer = result.answer.as_ref().ok().filter(|_| is_ok(result))?;
    Some(Seen {
        target: result.target.clone(),
        shown: answer.peer.clone(),
        presented: answer.presented.clone(),
        body: Arc::new(answer.body.clone()),
    })
}

fn print(result: &HostResult) {
    let status = if is_ok(result) { "ok" } else { "error" };
    let row = show::ping_row(
        &label(result),
        status,
        &result.rtt,
        &text(result, "expiry").escape_debug().to_string(),
        &text(result, "version").escape_debug().to_string(),
    );
    say!("{row}");
    // The original hides the reason; it is what the operator needs next.
    if let Err(error) = &result.answer {
        say!("    {}", printable(&error.to_string()));
    }
}
