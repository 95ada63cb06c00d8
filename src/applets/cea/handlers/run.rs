//! `POST /run` (spec/agent.md 9.2, 11). A refusal is HTTP 200 with `exit` -1 and `error`: peers depend on it.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::State;
use axum::response::Response;
use hyper::StatusCode;
use serde::Serialize;

use crate::applets::cea::gate::{Caller, Payload};
use crate::applets::cea::jobs::{self, Submission, Submitted};
use crate::applets::cea::lenient::{self, BadRun, RunRequest};
use crate::applets::cea::reply;
use crate::applets::cea::state::Agent;
use crate::core::authhook::{self, Decision, HookAction, HookContext};
use crate::core::exec::executor_client::run_by_executor;
use crate::core::exec::frame::{Request, RequestExtras};
use crate::core::exec::runner::{RunSpec, run_script, script_environment};
use crate::core::exec::{Outcome, lossy};
use crate::core::jobs::Key;
use crate::core::logging::Action;
use crate::core::metrics::{AgentRefusal, RunEnd, RunMode};
use crate::core::profile::{self, Resolved};
use crate::core::secure_open;
use crate::core::task;
use crate::core::types::{ReqId, ScriptName, Secret};
use crate::core::wire::{AsyncReply, RunRefusal, RunReply, errors};

/// What a script gets on its stdin (spec/agent.md 11.1).
#[derive(Serialize)]
struct ScriptContext<'a> {
    script: &'a str,
    args: &'a [String],
    reqid: &'a str,
    peer_ip: &'a str,
    username: &'a str,
    token: &'a str,
    dispatcher: &'a str,
    timestamp: String,
}

pub(super) async fn handle(
    State(agent): State<Arc<Agent>>,
    caller: Caller,
    Payload(body): Payload,
) -> Response {
    let request = match lenient::run_request(&body) {
        Ok(request) => request,
        Err(bad) => return refuse_body(bad),
    };
    drop(body);
    let permitted = match authorise(&caller, &request).await {
        Ok(permitted) => permitted,
        Err(refusal) => return refusal,
    };
    if request.asynchronous {
        return detach(agent, caller, request, permitted).await;
    }
    // In a task of its own: a client that goes away neither stops the script nor keeps its end out of the log.
    match task::spawn(run(agent, caller, request, permitted)).await {
        Ok(reply) => reply::ok(&reply),
        Err(_) => reply::error(StatusCode::INTERNAL_SERVER_ERROR, "the run was abandoned"),
    }
}

fn refuse_body(bad: BadRun) -> Response {
    let (error, reqid) = match bad {
        BadRun::NotJson => (errors::INVALID_JSON.to_owned(), None),
        BadRun::Args {
            reqid,
            nested: false,
        } => (errors::ARGS_NOT_ARRAY.to_owned(), Some(reqid)),
        BadRun::Args {
            reqid,
            nested: true,
        } => (
            format!("{} of strings", errors::ARGS_NOT_ARRAY),
            Some(reqid),
        ),
    };
    reply::ok(&RunRefusal {
        script: None,
        exit: -1,
        error,
        reqid,
    })
}

fn refuse(request: &RunRequest, error: impl Into<String>) -> Response {
    reply::ok(&RunRefusal {
        script: Some(request.script.clone()),
        exit: -1,
        error: error.into(),
        reqid: Some(request.reqid.clone()),
    })
}

/// Begins an asynchronous run (spec/agent.md 12.1).
async fn detach(
    agent: Arc<Agent>,
    caller: Caller,
    request: RunRequest,
    permitted: Resolved,
) -> Response {
    let Ok(reqid) = ReqId::new(&request.reqid) else {
        return refuse(&request, errors::ASYNC_REQID);
    };
    let script = permitted.name.clone();
    let count = |end| caller.metrics.run(Some(&script), end);
    let submission = Submission {
        key: Key {
            owner: caller.dispatcher.clone(),
            reqid,
        },
        script: permitted.name,
        path: permitted.path.as_path().to_owned(),
        args: request.args.clone(),
        username: request.username.clone(),
        peer_ip: caller.peer.address.to_string(),
        context: Secret::new(context_of(&caller, &request)),
    };
    // In a task of its own: a client that goes away must not stop it half-way.
    let snapshot = caller.snapshot.clone();
    let submit = async move { jobs::submit(&agent, &snapshot, submission).await };
    let submitted = task::spawn(submit).await;
    let log = |name| {
        Action::new(name)
            .field("PEER", &caller.peer.address)
            .field("REQID", &request.reqid)
            .field("SCRIPT", &request.script)
    };
    match submitted {
        Ok(Submitted::Accepted) => {
            log("run-async")
                .field("DISPATCHER", &caller.dispatcher)
                .info();
            answer_async(StatusCode::ACCEPTED, request, "accepted", None)
        }
        Ok(Submitted::Busy) => {
            log("run-async-busy").warning();
            count(RunEnd::Busy);
            let error = Some(errors::SCRIPT_BUSY);
            answer_async(StatusCode::CONFLICT, request, "busy", error)
        }
        Ok(Submitted::Refused(why)) => {
            log("run-async-refused").field("REASON", &why).warning();
            count(RunEnd::Refused);
            refuse(&request, why)
        }
        Err(_) => refuse(&request, errors::ASYNC_START),
    }
}

fn answer_async(
    code: StatusCode,
    request: RunRequest,
    status: &'static str,
    error: Option<&'static str>,
) -> Response {
    let body = AsyncReply {
        script: request.script,
        status,
        reqid: request.reqid,
        error,
    };
    reply::json(code, &body)
}

/// Allowlist and directories, the mode of the script, then the hook. What to run, or the refusal.
async fn authorise(caller: &Caller, request: &RunRequest) -> Result<Resolved, Response> {
    let snapshot = &caller.snapshot;
    let refused = |reason, script: Option<&ScriptName>| {
        caller.metrics.refused(reason);
        caller.metrics.run(script, RunEnd::Refused);
    };
    let deny = || {
        Action::new("deny")
            .field("PEER", &caller.peer.address)
            .field("REQID", &request.reqid)
            .field("SCRIPT", &request.script)
    };
    let resolved = profile::resolve(&request.script, &snapshot.allowlist, &snapshot.config);
    let permitted = resolved.map_err(|_| {
        deny().warning();
        refused(AgentRefusal::NotPermitted, None);
        refuse(request, errors::SCRIPT_NOT_PERMITTED)
    })?;
    secure_open::check_script(permitted.path.as_path()).map_err(|reason| {
        deny().field("REASON", reason).warning();
        refused(AgentRefusal::NotPermitted, Some(&permitted.name));
        refuse(request, errors::SCRIPT_NOT_PERMITTED)
    })?;

    let context = HookContext {
        script: request.script.clone(),
        args: request.args.clone(),
        username: request.username.clone(),
        token: request.token.clone(),
        source_ip: caller.peer.address.to_string(),
        dispatcher: caller.dispatcher.to_string(),
        dispatcher_serial: caller.peer.serial(),
        ..HookContext::new(HookAction::Run)
    };
    let hook = snapshot.config.auth_hook.as_ref();
    match authhook::authorise(hook, authhook::Caller::Agent, &context, &snapshot.clock).await {
        Decision::Allowed => Ok(permitted),
        Decision::Denied { reason, .. } => {
            deny()
                .field("DISPATCHER", &caller.dispatcher)
                .field("REASON", &reason)
                .warning();
            refused(AgentRefusal::Hook, Some(&permitted.name));
            Err(if snapshot.config.auth_deny_generic {
                refuse(request, errors::SCRIPT_NOT_PERMITTED)
            } else {
                refuse(request, format!("{}: {reason}", errors::NOT_AUTHORISED))
            })
        }
    }
}

/// What the script gets on its stdin.
fn context_of(caller: &Caller, request: &RunRequest) -> String {
    let context = ScriptContext {
        script: &request.script,
        args: &request.args,
        reqid: &request.reqid,
        peer_ip: &caller.peer.address,
        username: &request.username,
        token: request.token.expose(),
        dispatcher: caller.dispatcher.as_str(),
        timestamp: caller.snapshot.clock.iso_now(),
    };
    // A struct of strings always serialises.
    serde_json::to_string(&context).unwrap_or_default()
}

async fn run(
    agent: Arc<Agent>,
    caller: Caller,
    request: RunRequest,
    permitted: Resolved,
) -> RunReply {
    let began = Instant::now();
    let config = &caller.snapshot.config;
    let context_json = context_of(&caller, &request).into_bytes();
    let no_executor = agent.context.no_executor();
    let outcome = match (&config.executor_socket, no_executor) {
        (Some(_), Some(why)) => Outcome {
            exit: -1,
            stderr: why.into_bytes(),
            ..Outcome::default()
        },
        (Some(socket), None) => {
            let order = Request {
                reqid: request.reqid.clone(),
                dispatcher: caller.dispatcher.to_string(),
                script: request.script.clone(),
                stdin: context_json,
                args: request.args.iter().map(|a| a.as_bytes().to_vec()).collect(),
                extras: RequestExtras {
                    username: Some(request.username.clone()),
                    peer_ip: Some(caller.peer.address.to_string()),
                    ..RequestExtras::default()
                },
            };
            run_by_executor(socket, &order, config.run_timeout, config.max_output).await
        }
        (None, _) => {
            let spec = RunSpec {
                path: permitted.path.as_path().to_owned(),
                args: request.args.clone(),
                env: script_environment(&agent.context.env),
                context_json,
                stdin_timeout: config.stdin_timeout,
                run_timeout: config.run_timeout,
                max_output: config.max_output,
            };
            run_script(spec).await
        }
    };
    let end = RunEnd::of(outcome.exit);
    caller.metrics.run(Some(&permitted.name), end);
    if end != RunEnd::Refused {
        caller.metrics.took(RunMode::Sync, began.elapsed());
    }
    log_end(&caller, &request, &outcome);
    RunReply {
        script: request.script,
        exit: outcome.exit,
        stdout: lossy(outcome.stdout),
        stderr: lossy(outcome.stderr),
        reqid: request.reqid,
        signal: outcome.signal,
        truncated: outcome.truncated,
        timed_out: outcome.timed_out,
    }
}

fn log_end(caller: &Caller, request: &RunRequest, outcome: &Outcome) {
    if let Some(bytes) = outcome.stdin_unsent {
        Action::new("stdin-timeout")
            .field("BYTES", bytes)
            .field("REQID", &request.reqid)
            .field("SCRIPT", &request.script)
            .warning();
    }
    Action::new("run")
        .field("DISPATCHER", &caller.dispatcher)
        .field("EXIT", outcome.exit)
        .field("PEER", &caller.peer.address)
        .field("REQID", &request.reqid)
        .field("SCRIPT", &request.script)
        .info();
}
