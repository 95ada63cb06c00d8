//! `ced run HOST... SCRIPT [-- ARG...]` (spec/dispatcher.md 10.1); what is particular to `--async` is in `submit`.

use std::path::PathBuf;
use std::time::SystemTime;

use argh::FromArgs;
use serde_json::{Map, Value, json};

use crate::applets::ced::Call;
use crate::applets::ced::common::{self, Claims};
use crate::applets::ced::dispatch::{dispatch, label};
use crate::applets::ced::{show, submit};
use crate::applets::{AppError, Context, Exit};
use crate::core::authhook::{Decision, HookAction};
use crate::core::config::DispatcherConfig;
use crate::core::config::diagnostics::printable;
use crate::core::dispatch::objects::{log_run, run_object};
use crate::core::dispatch::submit::once_each;
use crate::core::dispatch::{HostResult, Job, keep, text};
use crate::core::locks::{self, LockError, Pair};
use crate::core::logging::Action;
use crate::core::registry::Target;
use crate::core::runs::{Body, Record, SyncRun};
use crate::core::terminal;
use crate::core::types::ReqId;
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
    /// do not wait: the agents run the script by themselves; 'ced status', 'wait' and 'cancel' take the request id that is printed
    #[argh(switch, long = "async")]
    asynchronous: bool,
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
    let mut targets = common::resolve(&config, &hosts, args.port)?;
    if args.asynchronous {
        targets = once_each(targets).map_err(|e| AppError::usage(e.to_string()))?;
    }
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

    let plan = Plan {
        reqid: common::new_reqid()?,
        script,
        targets,
        asynchronous: args.asynchronous,
        json: args.json,
    };
    let job = plan.job(&claims, script_args)?;
    // After the hook, so that nobody learns what runs who may not run it.
    let locked = locks::acquire(
        &config.locks_dir,
        plan.targets.iter().map(|t| t.name.as_str()),
        &plan.script,
    );
    let _locks = match locked {
        Ok(locks) => locks,
        Err(LockError::Held(conflicts)) => return Ok(locked_out(args.json, &conflicts)),
        Err(error) => return Err(AppError::failed(error.to_string())),
    };
    Action::new("dispatch")
        .field("HOSTS", plan.names().join(","))
        .field("MODE", if plan.asynchronous { "async" } else { "sync" })
        .field("REQID", &plan.reqid)
        .field("SCRIPT", &plan.script)
        .info();
    if plan.asynchronous {
        submit::submit(context, &config, &plan, &job)
    } else {
        run(context, &config, plan, &job)
    }
}

/// What is to run where.
pub(super) struct Plan {
    pub(super) reqid: ReqId,
    /// As typed.
    pub(super) script: String,
    pub(super) targets: Vec<Target>,
    asynchronous: bool,
    pub(super) json: bool,
}

impl Plan {
    fn job(&self, claims: &Claims, args: Vec<String>) -> Result<Job, AppError> {
        let request = wire::RunRequest {
            script: self.script.clone(),
            args,
            reqid: self.reqid.to_string(),
            username: claims.username.clone(),
            token: claims.token.clone(),
            asynchronous: self.asynchronous,
        };
        Job::run(&request).map_err(|e| AppError::failed(e.to_string()))
    }

    fn names(&self) -> Vec<String> {
        self.targets.iter().map(|t| t.name.to_string()).collect()
    }
}

/// Runs the script and waits for it.
fn run(
    context: &Context,
    config: &DispatcherConfig,
    plan: Plan,
    job: &Job,
) -> Result<Exit, AppError> {
    let reqid = &plan.reqid;
    let results = dispatch(context, config, plan.targets.clone(), job, |result| {
        log_run(result, &plan.script, reqid);
        if !plan.json {
            print(result, reqid.as_str());
        }
    })?;
    let objects: Vec<Map<String, Value>> = results
        .iter()
        .map(|r| run_object(r, &plan.script, reqid))
        .collect();
    if plan.json {
        show::results(None, &objects);
    }
    let good = results.iter().all(|r| r.exit() == 0);
    let completed = common::clock(context, config).now();
    let store = common::run_store(config);
    // Ages of files are told by the clock of the kernel, whatever ours says.
    store.purge(SystemTime::now());
    let record = Record::new(
        plan.reqid.clone(),
        plan.script.as_str(),
        Body::Sync(SyncRun::new(plan.names(), objects, completed)),
    );
    if let Err(error) = keep(&store, &record) {
        common::warn_not_recorded(&error, &plan.reqid);
    }
    let answered = results.iter().filter(|r| r.answer.is_ok());
    common::catch_up(context, config, answered.map(|r| &r.target))?;
    Ok(if good { Exit::Success } else { Exit::Failure })
}

fn locked_out(as_json: bool, conflicts: &[Pair]) -> Exit {
    let words: Vec<String> = conflicts.iter().map(Pair::to_string).collect();
    if as_json {
        say!(
            "{}",
            json!({"ok": 0, "error": "locked", "code": 4, "conflicts": words})
        );
    } else {
        complain!("Locked: already running: {}", printable(&words.join(", ")));
    }
    Exit::Failure
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

fn print(result: &HostResult, reqid: &str) {
    let (error, output) = match &result.answer {
        Ok(answer) => (
            text(&answer.body, "error").to_owned(),
            show::output(&answer.body),
        ),
        Err(error) => (error.to_string(), String::new()),
    };
    let heading = show::heading(&label(result), result.exit(), &result.rtt, reqid);
    let text = format!("{heading}{}{output}", show::error(&error));
    terminal::stdout_bytes(text.as_bytes());
}
