//! Authorisation by an external hook (spec/api.md 10-12): one routine for command line, API and agent.
//!
//! Only a hook that ends by itself with status 0 allows. Whatever else happens, in the hook or on the way to it, denies.

mod process;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::core::clock::Clock;
use crate::core::config::HookConfig;
use crate::core::logging::{Action, Priority};
use crate::core::secure_open::{self, OpenError};
use crate::core::types::Secret;
use process::Outcome;

/// What the caller wants to do; the words of `ENVEXEC_ACTION`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum HookAction {
    /// Gate 1 of the API, every request.
    Api,
    Run,
    Ping,
    Status,
    /// API: `DELETE /runs/{reqid}` (ours).
    Cancel,
    /// API: `/metrics` (ours).
    Metrics,
    /// Agent: `/capabilities`.
    Discovery,
    /// Agent: `/rotate-serial`.
    Rotate,
    /// Agent: `/revoke`.
    Revoke,
    /// Agent: `/ca`.
    Ca,
}

impl HookAction {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Api => "api",
            Self::Run => "run",
            Self::Ping => "ping",
            Self::Status => "status",
            Self::Cancel => "cancel",
            Self::Metrics => "metrics",
            Self::Discovery => "discovery",
            Self::Rotate => "rotate",
            Self::Revoke => "revoke",
            Self::Ca => "ca",
        }
    }
}

/// Who asks; decides what happens when no hook is configured.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Caller {
    /// Always allowed without a hook.
    Cli,
    /// Always allowed without a hook, and nothing is logged: the serial map has decided.
    Agent,
    /// As `api_auth_default` says.
    Api { default_allow: bool },
}

/// Who submitted the run whose status is asked for, as recorded.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default)]
pub struct Submitter {
    pub username: String,
    pub source_ip: String,
}

/// What the API knows of a request besides; new fields of the contract, beside those of the original and never in their place.
#[derive(Clone, Debug, Default)]
pub struct HttpContext {
    pub method: String,
    pub path: String,
    /// The action that gate 2 of this route will ask about; empty for routes without one and for unknown paths.
    pub route_action: &'static str,
    /// Of `Authorization: Bearer`.
    pub bearer: Secret<String>,
    /// Subject CN of the client's verified certificate.
    pub client_name: String,
    /// SHA-256 of that certificate, lower-case hex.
    pub client_fingerprint: String,
    /// User at the other end of the unix socket: a name, or a number where there is no name.
    pub peer_user: String,
}

/// What the hook is told. Texts are empty when they do not apply.
#[derive(Clone, Debug)]
pub struct HookContext {
    pub action: HookAction,
    pub script: String,
    /// As typed, before resolution.
    pub hosts: Vec<String>,
    pub args: Vec<String>,
    /// As claimed, never verified.
    pub username: String,
    pub token: Secret<String>,
    /// `127.0.0.1` for the command line.
    pub source_ip: String,
    pub dispatcher: String,
    /// Two lower-case hex digits per byte, as TLS libraries print it.
    pub dispatcher_serial: String,
    pub reqid: String,
    pub submitter: Option<Submitter>,
    /// Only from the API.
    pub http: Option<Arc<HttpContext>>,
}

impl HookContext {
    /// A context that says nothing but the action.
    pub fn new(action: HookAction) -> Self {
        Self {
            action,
            script: String::new(),
            hosts: Vec::new(),
            args: Vec::new(),
            username: String::new(),
            token: Secret::default(),
            source_ip: String::new(),
            dispatcher: String::new(),
            dispatcher_serial: String::new(),
            reqid: String::new(),
            submitter: None,
            http: None,
        }
    }
}

/// The answer.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Decision {
    Allowed,
    /// `reason` and `code` as in spec/api.md 10.3. The reason may name the hook's path: tell it only those who may know.
    Denied {
        reason: String,
        code: i32,
    },
}

/// Asks the hook, or decides without one, and writes the `auth` lines (spec/operations.md 11.4).
///
/// Takes at most the hook's timeout plus a second. Must run on a tokio runtime with I/O and time; when the future is dropped the hook's
/// process group is killed.
pub async fn authorise(
    hook: Option<&HookConfig>,
    caller: Caller,
    context: &HookContext,
    clock: &Clock,
) -> Decision {
    rule(hook, caller, context, clock).await.tell(context)
}

/// The same without the lines: for a caller that may have too many refusals to tell.
pub async fn rule(
    hook: Option<&HookConfig>,
    caller: Caller,
    context: &HookContext,
    clock: &Clock,
) -> Ruling {
    match hook {
        None => without_hook(caller, context),
        Some(hook) => {
            let outcome = match secure_open::check_executable(&hook.path) {
                Err(e) => Outcome::Unusable(e),
                Ok(_) => match Input::new(context, &clock.iso_now()) {
                    Err(e) => Outcome::Unspeakable(e),
                    // In a box: every request of a server without a hook would be so much larger.
                    Ok(input) => Box::pin(process::run(hook, &input)).await,
                },
            };
            with_hook(hook, context, outcome)
        }
    }
}

/// A decision and the lines that tell it.
#[derive(Debug)]
pub struct Ruling {
    pub decision: Decision,
    lines: Lines,
}

/// What is to be said of a decision.
#[derive(Debug)]
enum Lines {
    /// It was allowed, and why without a hook. Made when it is written: where strangers ask, most are not.
    Pass(Option<&'static str>),
    Others(Vec<(Priority, Action)>),
}

impl Ruling {
    /// Writes the lines. `context`: what was ruled about.
    pub fn tell(self, context: &HookContext) -> Decision {
        let decision = self.decision.clone();
        for (priority, line) in self.into_lines(context) {
            line.emit(priority);
        }
        decision
    }

    /// The lines, for a caller that writes them later.
    pub fn into_lines(self, context: &HookContext) -> Vec<(Priority, Action)> {
        match self.lines {
            Lines::Others(lines) => lines,
            Lines::Pass(None) => vec![(Priority::Info, auth_line(context, "pass"))],
            Lines::Pass(Some(reason)) => {
                vec![(Priority::Info, hookless_line(context, "pass", reason))]
            }
        }
    }
}

/// Why a context cannot be handed to a process.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum BadContext {
    /// NUL ends a value in an environment; a hook must not judge half of it.
    Nul,
    TooLarge,
}

impl BadContext {
    fn log_reason(self) -> &'static str {
        match self {
            Self::Nul => "context-invalid",
            Self::TooLarge => "context-too-large",
        }
    }

    fn reason(self) -> &'static str {
        match self {
            Self::Nul => "a value contains a NUL character",
            Self::TooLarge => "context too large for the auth hook",
        }
    }
}

/// Longest `NAME=value` that Linux takes (MAX_ARG_STRLEN, 32 pages of 4 KiB, with the NUL).
const MAX_VARIABLE: usize = 128 * 1024 - 1;
/// Longest environment: below the quarter of the stack limit (8 MiB) that `execve(2)` grants.
const MAX_ENVIRONMENT: usize = 1024 * 1024;

/// Most bytes that JSON makes of one (`\u001f`).
const MAX_ESCAPE: usize = 6;

/// What the hook gets: environment and standard input. Wiped when dropped, for it holds the token.
struct Input {
    environment: BTreeMap<&'static str, Zeroizing<String>>,
    stdin: Zeroizing<Vec<u8>>,
}

impl Input {
    fn new(context: &HookContext, timestamp: &str) -> Result<Self, BadContext> {
        let c = context;
        let submitter = c.submitter.clone().unwrap_or_default();
        let args_json = serde_json::to_string(&c.args).map_err(|_| BadContext::TooLarge)?;
        let pairs: [(&'static str, String); 14] = [
            ("ENVEXEC_ACTION", c.action.as_str().to_owned()),
            ("ENVEXEC_SCRIPT", c.script.clone()),
            ("ENVEXEC_HOSTS", c.hosts.join(",")),
            ("ENVEXEC_ARGS", c.args.join(" ")),
            ("ENVEXEC_ARGS_JSON", args_json),
            ("ENVEXEC_USERNAME", c.username.clone()),
            ("ENVEXEC_TOKEN", c.token.expose().clone()),
            ("ENVEXEC_SOURCE_IP", c.source_ip.clone()),
            ("ENVEXEC_DISPATCHER", c.dispatcher.clone()),
            ("ENVEXEC_DISPATCHER_SERIAL", c.dispatcher_serial.clone()),
            ("ENVEXEC_REQID", c.reqid.clone()),
            ("ENVEXEC_SUBMITTER", submitter.username.clone()),
            ("ENVEXEC_SUBMITTER_IP", submitter.source_ip.clone()),
            ("ENVEXEC_TIMESTAMP", timestamp.to_owned()),
        ];
        let http = c.http.as_ref().map_or_else(Vec::new, |http| {
            vec![
                ("ENVEXEC_METHOD", http.method.clone()),
                ("ENVEXEC_PATH", http.path.clone()),
                ("ENVEXEC_ROUTE_ACTION", http.route_action.to_owned()),
                ("ENVEXEC_BEARER", http.bearer.expose().clone()),
                ("ENVEXEC_CLIENT_NAME", http.client_name.clone()),
                (
                    "ENVEXEC_CLIENT_FINGERPRINT",
                    http.client_fingerprint.clone(),
                ),
                ("ENVEXEC_PEER_USER", http.peer_user.clone()),
            ]
        });
        let environment: BTreeMap<_, _> = pairs
            .into_iter()
            .chain(http)
            .map(|(key, value)| (key, Zeroizing::new(value)))
            .collect();
        if environment.values().any(|v| v.contains('\0')) {
            return Err(BadContext::Nul);
        }
        let sizes = environment.iter().map(|(k, v)| k.len() + v.len() + 1);
        let size: usize = sizes.clone().sum();
        if sizes.into_iter().any(|n| n > MAX_VARIABLE) || size > MAX_ENVIRONMENT {
            return Err(BadContext::TooLarge);
        }
        let told = Told {
            action: c.action.as_str(),
            script: &c.script,
            hosts: &c.hosts,
            args: &c.args,
            username: &c.username,
            token: &c.token,
            source_ip: &c.source_ip,
            dispatcher: &c.dispatcher,
            dispatcher_serial: &c.dispatcher_serial,
            reqid: &c.reqid,
            submitter: c.submitter.as_ref(),
            timestamp,
            http: c.http.as_ref().map(|http| ToldHttp {
                method: &http.method,
                path: &http.path,
                route_action: http.route_action,
                bearer: &http.bearer,
                client_name: &http.client_name,
                client_fingerprint: &http.client_fingerprint,
                peer_user: &http.peer_user,
            }),
        };
        // With room for all of it the buffer is not moved, which would leave the token behind.
        let room = MAX_ESCAPE * size + 1024;
        let mut stdin = Zeroizing::new(Vec::with_capacity(room));
        serde_json::to_writer(&mut *stdin, &told).map_err(|_| BadContext::TooLarge)?;
        Ok(Self { environment, stdin })
    }
}

/// The object on the hook's standard input; every member is always there.
#[derive(Serialize)]
struct Told<'a> {
    action: &'a str,
    script: &'a str,
    hosts: &'a [String],
    args: &'a [String],
    username: &'a str,
    token: &'a Secret<String>,
    source_ip: &'a str,
    dispatcher: &'a str,
    dispatcher_serial: &'a str,
    reqid: &'a str,
    submitter: Option<&'a Submitter>,
    timestamp: &'a str,
    #[serde(flatten)]
    http: Option<ToldHttp<'a>>,
}

/// The members that only the API adds.
#[derive(Serialize)]
struct ToldHttp<'a> {
    method: &'a str,
    path: &'a str,
    route_action: &'a str,
    bearer: &'a Secret<String>,
    client_name: &'a str,
    client_fingerprint: &'a str,
    peer_user: &'a str,
}

fn claimed_user(context: &HookContext) -> &str {
    if context.username.is_empty() {
        "(none)"
    } else {
        &context.username
    }
}

fn auth_line(context: &HookContext, result: &str) -> Action {
    Action::new("auth")
        .field("AUTHACTION", context.action.as_str())
        .field("IP", &context.source_ip)
        .field("RESULT", result)
        .field("USER", claimed_user(context))
}

fn hookless_line(context: &HookContext, result: &str, reason: &str) -> Action {
    auth_line(context, result)
        .field("DISPATCHER", &context.dispatcher)
        .field("REASON", reason)
}

fn without_hook(caller: Caller, context: &HookContext) -> Ruling {
    let (decision, lines) = match caller {
        Caller::Agent => (Decision::Allowed, Lines::Others(Vec::new())),
        Caller::Cli => (Decision::Allowed, Lines::Pass(Some("no-hook-cli"))),
        Caller::Api {
            default_allow: true,
        } => (Decision::Allowed, Lines::Pass(Some("no-hook-allow"))),
        Caller::Api {
            default_allow: false,
        } => {
            let line = hookless_line(context, "deny", "no-hook-deny");
            let lines = vec![(Priority::Warning, line)];
            (denied("no auth hook configured"), Lines::Others(lines))
        }
    };
    Ruling { decision, lines }
}

fn denied(reason: &str) -> Decision {
    Decision::Denied {
        reason: reason.to_owned(),
        code: 1,
    }
}

fn with_hook(hook: &HookConfig, context: &HookContext, outcome: Outcome) -> Ruling {
    let refusal = |reason: &str| {
        let line = auth_line(context, "deny").field("REASON", reason);
        (Priority::Warning, line)
    };
    let broken = |reason: &str| {
        Action::new("auth")
            .field("HOOK", hook.path.display())
            .field("REASON", reason)
            .field("RESULT", "error")
    };
    let (decision, lines) = match outcome {
        Outcome::Exited(0) => {
            return Ruling {
                decision: Decision::Allowed,
                lines: Lines::Pass(None),
            };
        }
        Outcome::Exited(code) => {
            let reason = match code {
                1 => "denied".to_owned(),
                2 => "bad credentials".to_owned(),
                3 => "insufficient privilege".to_owned(),
                n => format!("hook exited {n}"),
            };
            let lines = vec![refusal(&reason)];
            (Decision::Denied { reason, code }, lines)
        }
        Outcome::Signalled(signal) => {
            let (priority, line) = refusal("hook-signal");
            let line = line.field("SIGNAL", signal);
            (denied("denied"), vec![(priority, line)])
        }
        Outcome::TimedOut => {
            let slow = Action::new("auth-hook-timeout").field("TIMEOUT", hook.timeout.as_secs());
            let lines = vec![(Priority::Warning, slow), refusal("denied")];
            (denied("denied"), lines)
        }
        Outcome::NotStarted(error) => {
            let line = broken("hook-start-failed").field("ERROR", error);
            (denied("denied"), vec![(Priority::Err, line)])
        }
        Outcome::Unspeakable(why) => (denied(why.reason()), vec![refusal(why.log_reason())]),
        Outcome::Unusable(error) => {
            let line = match error {
                OpenError::Open { .. }
                | OpenError::NotRegular { .. }
                | OpenError::NotExecutable { .. } => broken("hook-not-executable"),
                doubtful => broken("hook-not-trusted").field("ERROR", doubtful),
            };
            let reason = unusable_reason(&hook.path);
            (denied(&reason), vec![(Priority::Err, line)])
        }
    };
    let lines = Lines::Others(lines);
    Ruling { decision, lines }
}

fn unusable_reason(path: &Path) -> String {
    format!("auth hook not found or not executable: {}", path.display())
}

#[cfg(test)]
mod tests;
