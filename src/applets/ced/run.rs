//! `ced run HOST... SCRIPT [-- ARG...]` (spec/dispatcher.md 10.1).

use std::path::PathBuf;

use argh::FromArgs;
use serde_json::{Value, json};

use crate::applets::ced::Call;
use crate::applets::ced::common::{self, Claims};
use crate::applets::ced::dispatch::{HostResult, Job, dispatch};
use crate::applets::{AppError, Context, Exit};
use crate::core::authhook::{Decision, HookAction};
use crate::core::config::diagnostics::printable;
use crate::core::logging::Action;
use crate::core::terminal;
use crate::core::wire;
use crate::{complain, say};

/// Run an allowlisted script on paired hosts: ced run HOST[:PORT]... SCRIPT [-- ARG...]
#[derive(FromArgs)]
#[argh(help_triggers("-h", "--help"))]
struct RunArgs {
    /// configuration file (default /etc/ctrl-exec/ctrl-exec.toml, else ctrl-exec.conf)
    #[argh(option)]
    config: Option<PathBuf>,
    /// print one JSON object instead of text
    #[argh(switch)]
    json: bool,
    /// port of hosts that name none
    #[argh(option)]
    port: Option<u16>,
    /// name to claim towards hooks and scripts (default $USER)
    #[argh(option)]
    username: Option<String>,
    /// token for hooks and scripts; visible in the process list: prefer the variable ENVEXEC_TOKEN
    #[argh(option)]
    token: Option<String>,
    /// hosts, then the script; what stands behind -- goes to the script
    #[argh(positional)]
    words: Vec<String>,
}

pub(super) fn main(context: &Context, call: &Call) -> Result<Exit, AppError> {
    let mut args: RunArgs = call.parse()?;
    let script = args.words.pop().unwrap_or_default();
    let hosts = args.words;
    if hosts.is_empty() {
        return Err(AppError::usage(
            "Need at least one host and a script name: ced run HOST... SCRIPT [-- ARG...]",
        ));
    }
    let script_args = call.after_dashes.clone().unwrap_or_default();
    let config = common::load_config(context, args.config.as_deref())?;
    let targets = common::resolve(&config, &hosts, args.port)?;
    let claims = Claims::new(context, args.username, args.token);

    let decision = common::block_on(common::authorise(
        context,
        &config,
        &claims,
        HookAction::Run,
        &script,
        &hosts,
        &script_args,
    ))?;
    if let Decision::Denied { reason, code } = decision {
        return Ok(denied(args.json, &reason, code));
    }

    let reqid = common::new_reqid()?;
    let request = wire::RunRequest {
        script: script.clone(),
        args: script_args,
        reqid: reqid.to_string(),
        username: claims.username.clone(),
        token: claims.token.clone(),
    };
    let body = serde_json::to_vec(&request)
        .map_err(|e| AppError::failed(format!("cannot encode the request: {e}")))?;
    if body.len() as u64 > wire::MAX_REQUEST_BODY {
        return Err(AppError::failed(format!(
            "request too large: {} bytes with its arguments, agents take {}",
            body.len(),
            wire::MAX_REQUEST_BODY
        )));
    }
    let names: Vec<&str> = targets.iter().map(|t| t.name.as_str()).collect();
    Action::new("dispatch")
        .field("HOSTS", names.join(","))
        .field("MODE", "sync")
        .field("REQID", &reqid)
        .field("SCRIPT", &script)
        .info();

    let results = dispatch(
        context,
        &config,
        targets,
        &Job { path: "/run", body },
        |result| {
            log(result, reqid.as_str(), &script);
            if !args.json {
                print(result, reqid.as_str());
            }
        },
    )?;
    if args.json {
        let objects: Vec<Value> = results
            .iter()
            .map(|r| {
                Value::Object(r.object(reqid.as_str(), |error| {
                    json!({"script": script, "exit": -1, "error": error.to_string(), "reqid": reqid.as_str()})
                }))
            })
            .collect();
        say!("{}", json!({"ok": 1, "results": objects}));
    }
    Ok(if results.iter().all(|r| exit_of(r) == 0) {
        Exit::Success
    } else {
        Exit::Failure
    })
}

/// Says that the hook refused; shared with `ping`.
pub(super) fn denied(as_json: bool, reason: &str, code: i32) -> Exit {
    if as_json {
        say!("{}", json!({"ok": 0, "error": reason, "code": code}));
    } else {
        complain!("Denied: {reason}");
    }
    Exit::Failure
}

/// The script's exit; a missing or unusable one counts as -1.
fn exit_of(result: &HostResult) -> i64 {
    result
        .answer
        .as_ref()
        .ok()
        .and_then(|a| a.body.get("exit"))
        .and_then(Value::as_i64)
        .unwrap_or(-1)
}

fn log(result: &HostResult, reqid: &str, script: &str) {
    let line = Action::new("run")
        .field("REQID", reqid)
        .field("RTT", &result.rtt)
        .field("SCRIPT", script)
        .field("TARGET", result.target.authority());
    match &result.answer {
        Ok(_) => line.field("EXIT", exit_of(result)).info(),
        Err(error) => line.field("ERROR", error).err(),
    }
}

fn print(result: &HostResult, reqid: &str) {
    let exit = exit_of(result);
    let verdict = if exit == 0 { "OK" } else { "FAIL" };
    let mut text = format!(
        "==> {}  [{verdict}  exit:{exit}  {}  req:{reqid}]\n",
        result.label(),
        result.rtt
    );
    let field = |name: &str| {
        result
            .answer
            .as_ref()
            .ok()
            .and_then(|a| a.body.get(name))
            .and_then(Value::as_str)
            .unwrap_or_default()
    };
    let error = match &result.answer {
        Ok(_) => printable(field("error")),
        // May quote the agent.
        Err(error) => printable(&error.to_string()),
    };
    if !error.is_empty() {
        text.push_str(&format!("    ERROR: {error}\n"));
    }
    let flag = |name: &str| {
        result
            .answer
            .as_ref()
            .is_ok_and(|a| a.body.get(name) == Some(&Value::Bool(true)))
    };
    for (name, prefix) in [("stdout", ""), ("stderr", "    STDERR: ")] {
        let stream = field(name);
        if !stream.trim().is_empty() {
            text.push_str(prefix);
            text.push_str(stream);
            if !stream.ends_with('\n') {
                text.push('\n');
            }
        }
    }
    if let Some(signal) = result
        .answer
        .as_ref()
        .ok()
        .and_then(|a| a.body.get("signal"))
        .and_then(Value::as_i64)
    {
        text.push_str(&format!("    NOTE: ended by signal {signal}\n"));
    }
    if flag("timed_out") {
        text.push_str("    NOTE: the agent stopped the script at its run_timeout\n");
    }
    if flag("truncated") {
        text.push_str("    NOTE: output beyond the agent's max_output was dropped\n");
    }
    terminal::stdout_bytes(text.as_bytes());
}
