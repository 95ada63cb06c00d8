//! `ced`, the dispatcher CLI: a table of verbs (spec/dispatcher.md 1, 10).

mod agents;
mod api;
mod cancel;
mod certificates;
mod common;
mod dispatch;
mod follow;
mod health;
mod jobs;
mod list_locks;
mod maintain;
pub mod pairing;
mod ping;
mod revocation;
mod rotate_ca;
mod run;
mod setup;
mod show;
mod status;
mod submit;

use crate::applets::{AppError, Context, Exit, VERSION, cli};
use crate::core::logging;
use crate::{complain, say};

/// One verb of `ced`.
struct Verb {
    name: &'static str,
    summary: &'static str,
    /// Options of [`OPTIONS`] (of [`api::OPTIONS`]) that mean something here.
    options: &'static [&'static str],
    entry: fn(&Context, &Call) -> Result<Exit, AppError>,
}

/// A verb with its words, ready for argh.
pub(crate) struct Call {
    verb: &'static str,
    args: Vec<String>,
    help: bool,
    /// What stands behind `--`.
    pub(crate) after_dashes: Option<Vec<String>>,
}

impl Call {
    /// Parses into the argument struct of the verb, or prints its help.
    pub(crate) fn parse<T: argh::FromArgs>(&self) -> Result<T, AppError> {
        let command = ["ced", self.verb];
        if self.help {
            return Err(cli::help::<T>(&command));
        }
        cli::parse(&command, &self.args)
    }
}

/// Every option of every verb: the original parses one set for all modes (spec/dispatcher.md 1.2).
const OPTIONS: &[cli::Opt] = &[
    cli::value("config"),
    cli::flag("json"),
    cli::value("port"),
    cli::value("username"),
    cli::value("token"),
    cli::flag("check"),
    cli::flag("async"),
    cli::value("tags"),
    cli::value("rename"),
    cli::value("ip"),
    cli::value("agent-port"),
    cli::value("lookup-by"),
    cli::value("cert-name"),
    cli::value("peer-check"),
    cli::value("key-type"),
    cli::flag("yes"),
    cli::value("timeout"),
    cli::flag("replace"),
    cli::value("code"),
    cli::flag("daemon"),
    cli::value("reason"),
    cli::flag("no-push"),
    cli::value("without"),
    cli::flag("force"),
    cli::flag("revoke"),
    cli::flag("keep-certificate"),
    cli::value("warning-days"),
    cli::value("critical-days"),
    cli::flag("api"),
];

static VERBS: &[Verb] = &[
    Verb {
        name: "run",
        summary: "run an allowlisted script on paired hosts",
        options: &["config", "json", "async", "port", "username", "token"],
        entry: run::main,
    },
    Verb {
        name: "status",
        summary: "show how a run is doing",
        options: &["config", "json"],
        entry: status::status,
    },
    Verb {
        name: "wait",
        summary: "wait until a run has ended on every host",
        options: &["config", "json", "timeout"],
        entry: status::wait,
    },
    Verb {
        name: "cancel",
        summary: "end an asynchronous run",
        options: &["config", "json"],
        entry: cancel::main,
    },
    Verb {
        name: "jobs",
        summary: "list the runs of the last day",
        options: &["config", "json"],
        entry: jobs::main,
    },
    Verb {
        name: "list-locks",
        summary: "list which scripts run on which hosts",
        options: &["config", "json"],
        entry: list_locks::main,
    },
    Verb {
        name: "ping",
        summary: "ask paired hosts whether they answer",
        options: &["config", "json", "check", "port", "username", "token"],
        entry: ping::main,
    },
    Verb {
        name: "list-agents",
        summary: "list the paired hosts",
        options: &["config", "json", "tags"],
        entry: agents::list,
    },
    Verb {
        name: "edit-agent",
        summary: "change how a paired host is addressed",
        options: &[
            "config",
            "json",
            "rename",
            "ip",
            "agent-port",
            "lookup-by",
            "cert-name",
            "peer-check",
        ],
        entry: agents::edit,
    },
    Verb {
        name: "unpair",
        summary: "forget a paired host",
        options: &["config", "revoke", "keep-certificate"],
        entry: agents::unpair,
    },
    Verb {
        name: "maintain",
        summary: "ping, renew, rotate, catch up: what the timer does",
        options: &["config", "json", "daemon"],
        entry: maintain::main,
    },
    Verb {
        name: "health",
        summary: "tell a monitoring system whether this dispatcher is well",
        options: &["config", "json", "warning-days", "critical-days", "api"],
        entry: health::main,
    },
    Verb {
        name: "rotate-cert",
        summary: "replace this dispatcher's certificate, tell every agent",
        options: &["config", "json"],
        entry: certificates::rotate,
    },
    Verb {
        name: "serial-status",
        summary: "show how far each agent has followed a rotation",
        options: &["config", "json"],
        entry: certificates::status,
    },
    Verb {
        name: "rotate-ca",
        summary: "replace the CA without pairing anybody again",
        options: &["config", "json", "key-type", "without"],
        entry: rotate_ca::main,
    },
    Verb {
        name: "revoke",
        summary: "shut a certificate out, here and on every agent",
        options: &["config", "json", "reason", "no-push", "force"],
        entry: revocation::revoke,
    },
    Verb {
        name: "list-revoked",
        summary: "show what is revoked, and who has not confirmed it",
        options: &["config", "json"],
        entry: revocation::list,
    },
    Verb {
        name: "api",
        summary: "let an API server do it: run, ping, status and more over HTTP",
        options: api::ACCEPTED,
        entry: api::main,
    },
    Verb {
        name: "setup-ca",
        summary: "create the private certificate authority",
        options: &["config", "key-type"],
        entry: setup::setup_ca,
    },
    Verb {
        name: "setup-ctrl-exec",
        summary: "create this dispatcher's own key and certificate",
        options: &["config", "key-type", "yes"],
        entry: setup::setup_dispatcher,
    },
    Verb {
        name: "pairing-mode",
        summary: "take pairing requests of agents for a while",
        options: &["config", "timeout", "port"],
        entry: pairing::pairing_mode_verb,
    },
    Verb {
        name: "list-requests",
        summary: "show the pairing requests that wait",
        options: &["config", "json"],
        entry: pairing::list_requests_verb,
    },
    Verb {
        name: "approve",
        summary: "approve a pairing request",
        options: &[
            "config",
            "json",
            "lookup-by",
            "ip",
            "agent-port",
            "replace",
            "code",
        ],
        entry: pairing::approve_verb,
    },
    Verb {
        name: "deny",
        summary: "deny a pairing request",
        options: &["config"],
        entry: pairing::deny_verb,
    },
];

/// Names and summaries.
pub(crate) fn verbs() -> Vec<(&'static str, &'static str)> {
    VERBS.iter().map(|v| (v.name, v.summary)).collect()
}

pub(crate) fn verb_names() -> Vec<&'static str> {
    VERBS.iter().map(|v| v.name).collect()
}

pub fn main(context: &Context, args: Vec<String>) -> Result<Exit, AppError> {
    let known = if api::is_meant(&args) {
        api::OPTIONS
    } else {
        OPTIONS
    };
    let words = cli::normalise(args, known)?;
    if words.version {
        say!("ctrl-exec-dispatcher {VERSION}");
        return Ok(Exit::Success);
    }
    let Some(word) = words.positional.first() else {
        if words.help {
            return Err(AppError::help(usage()));
        }
        return Err(AppError::usage(usage()));
    };
    let Some(verb) = VERBS.iter().find(|v| v.name == word) else {
        return Err(AppError::usage(format!(
            "Unknown mode '{}'\n\n{}",
            word.escape_debug(),
            usage()
        )));
    };
    logging::init("ctrl-exec-dispatcher", context.log_sink());
    let mut words = words;
    words.positional.remove(0);
    let (args, ignored) = words.for_argh(verb.options);
    for name in ignored {
        complain!(
            "Note: option '--{name}' has no effect with '{}'.",
            verb.name
        );
    }
    let call = Call {
        verb: verb.name,
        args,
        help: words.help,
        after_dashes: words.after_dashes,
    };
    (verb.entry)(context, &call)
}

fn usage() -> String {
    use std::fmt::Write as _;
    let mut text = String::from(
        "Usage: ced VERB [OPTION...] [WORD...]\n\nRuns allowlisted scripts on paired hosts over mutual TLS.\n\nVerbs:\n",
    );
    for verb in VERBS {
        let _ = writeln!(text, "  {:<16} {}", verb.name, verb.summary);
    }
    text.push_str(
        "\nOptions may stand anywhere before '--'. 'ced VERB --help' tells those of a verb.\n\
         Everywhere: --config FILE, --root DIR, --version, --help.",
    );
    text
}
