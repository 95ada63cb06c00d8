//! `ced pairing-mode`, `list-requests`, `approve`, `deny` (spec/pairing.md 7): the rims around [`crate::core::pairing`].

mod background;
mod connection;
mod listener;
mod mode;
mod pid_file;
mod prompt;
mod requests;

use std::path::PathBuf;
use std::time::Duration;

use argh::FromArgs;

use crate::applets::ced::{Call, common};
use crate::applets::{AppError, Context, Exit, detach};
use crate::core::pairing::approval::Desk;

/// Take pairing requests of agents for a while: in the foreground, or with 'start' and 'stop' in the background.
#[derive(Clone, Debug, Default, FromArgs)]
#[argh(help_triggers("-h", "--help"))]
pub struct PairingModeArgs {
    /// configuration file (default /etc/ctrl-exec/ctrl-exec.toml, else ctrl-exec.conf)
    #[argh(option)]
    pub config: Option<PathBuf>,
    /// seconds until it stops by itself, 1 to 600 (default: pairing_timeout, else 600)
    #[argh(option)]
    pub timeout: Option<String>,
    /// port to listen on (default: pairing_port, else 7444; 0: any free port)
    #[argh(option)]
    pub port: Option<String>,
    /// start, stop, or nothing for the foreground
    #[argh(positional)]
    pub action: Option<String>,
}

/// Show the pairing requests that wait for a decision.
#[derive(Clone, Debug, Default, FromArgs)]
#[argh(help_triggers("-h", "--help"))]
pub struct ListRequestsArgs {
    /// configuration file (default /etc/ctrl-exec/ctrl-exec.toml, else ctrl-exec.conf; none is needed)
    #[argh(option)]
    pub config: Option<PathBuf>,
    /// print JSON
    #[argh(switch)]
    pub json: bool,
}

/// Approve a pairing request: sign the agent's certificate and register the agent.
#[derive(Clone, Debug, Default, FromArgs)]
#[argh(help_triggers("-h", "--help"))]
pub struct ApproveArgs {
    /// configuration file (default /etc/ctrl-exec/ctrl-exec.toml, else ctrl-exec.conf)
    #[argh(option)]
    pub config: Option<PathBuf>,
    /// print the result as JSON
    #[argh(switch)]
    pub json: bool,
    /// connect to the ip or to the hostname
    #[argh(option)]
    pub lookup_by: Option<String>,
    /// address of the agent
    #[argh(option)]
    pub ip: Option<String>,
    /// port of the agent
    #[argh(option)]
    pub agent_port: Option<String>,
    /// the name is registered already: replace that record
    #[argh(switch)]
    pub replace: bool,
    /// the six digits that the agent shows; the request is refused if it has others
    #[argh(option)]
    pub code: Option<String>,
    /// id of the request
    #[argh(positional)]
    pub reqid: String,
}

/// Deny a pairing request.
#[derive(Clone, Debug, Default, FromArgs)]
#[argh(help_triggers("-h", "--help"))]
pub struct DenyArgs {
    /// configuration file (default /etc/ctrl-exec/ctrl-exec.toml, else ctrl-exec.conf)
    #[argh(option)]
    pub config: Option<PathBuf>,
    /// id of the request
    #[argh(positional)]
    pub reqid: String,
}

/// Entries of the verb table.
pub(super) fn pairing_mode_verb(context: &Context, call: &Call) -> Result<Exit, AppError> {
    pairing_mode(context, &call.parse()?)
}

pub(super) fn list_requests_verb(context: &Context, call: &Call) -> Result<Exit, AppError> {
    list_requests(context, &call.parse()?)
}

pub(super) fn approve_verb(context: &Context, call: &Call) -> Result<Exit, AppError> {
    approve(context, &call.parse()?)
}

pub(super) fn deny_verb(context: &Context, call: &Call) -> Result<Exit, AppError> {
    deny(context, &call.parse()?)
}

/// `pairing-mode [start|stop]` (spec/pairing.md 7.1).
///
/// # Errors
/// The words make no sense, or the session cannot begin.
pub fn pairing_mode(context: &Context, args: &PairingModeArgs) -> Result<Exit, AppError> {
    let background = match args.action.as_deref() {
        None => false,
        Some("start") => true,
        Some("stop") => return background::stop(context),
        Some(other) => {
            return Err(AppError::usage(format!(
                "unknown word '{}': use 'ced pairing-mode', 'ced pairing-mode start' or 'ced pairing-mode stop'",
                other.escape_debug()
            )));
        }
    };
    let timeout = args.timeout.as_deref().map(parse_timeout).transpose()?;
    let port = args.port.as_deref().map(parse_port).transpose()?;
    let config = common::load_config(context, args.config.as_deref())?;
    let detached = background && detach::is_detached(context);
    let plan = mode::Plan {
        port: port.unwrap_or(config.pairing_port),
        timeout: timeout.unwrap_or(config.pairing_timeout),
        detached,
        desk: Desk {
            clock: common::clock(context, &config),
            config,
        },
    };
    if detached {
        return background::serve(context, &plan);
    }
    if background {
        return background::start(context, &plan, &words_of(args));
    }
    let bound = mode::bind(&plan)?;
    mode::run(&plan, bound)?;
    Ok(Exit::Success)
}

/// The same command line for the process in the background.
fn words_of(args: &PairingModeArgs) -> Vec<String> {
    let mut words = vec!["pairing-mode".to_owned(), "start".to_owned()];
    for (name, value) in [("--timeout", &args.timeout), ("--port", &args.port)] {
        if let Some(value) = value {
            words.extend([name.to_owned(), value.clone()]);
        }
    }
    if let Some(config) = &args.config {
        words.extend(["--config".to_owned(), config.display().to_string()]);
    }
    words
}

fn parse_timeout(text: &str) -> Result<Duration, AppError> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return Err(AppError::usage(
            "Error: --timeout must be an integer number of seconds.",
        ));
    }
    match text.parse::<u64>() {
        Ok(seconds @ 1..=600) => Ok(Duration::from_secs(seconds)),
        _ => Err(AppError::usage(
            "Error: --timeout must be between 1 and 600 seconds.",
        )),
    }
}

fn parse_port(text: &str) -> Result<u16, AppError> {
    text.parse()
        .map_err(|_| AppError::usage("Error: --port must be a number from 0 to 65535."))
}

/// `list-requests` (spec/pairing.md 7.2).
///
/// # Errors
/// The queue cannot be read.
pub fn list_requests(context: &Context, args: &ListRequestsArgs) -> Result<Exit, AppError> {
    requests::list(context, args)
}

/// `approve` (spec/pairing.md 7.3, 9).
///
/// # Errors
/// Nothing was signed, and why.
pub fn approve(context: &Context, args: &ApproveArgs) -> Result<Exit, AppError> {
    requests::approve(context, args)
}

/// `deny` (spec/pairing.md 7.4, 10).
///
/// # Errors
/// There is no such request, or it is over.
pub fn deny(context: &Context, args: &DenyArgs) -> Result<Exit, AppError> {
    requests::deny(context, args)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_out_is_checked_as_in_the_original() {
        for good in ["1", "600", "0600"] {
            assert!(parse_timeout(good).is_ok(), "{good}");
        }
        for (bad, text) in [
            ("0", "between 1 and 600"),
            ("601", "between 1 and 600"),
            ("99999999999999999999999", "between 1 and 600"),
            ("", "an integer number"),
            ("ten", "an integer number"),
            ("-1", "an integer number"),
            ("1.5", "an integer number"),
        ] {
            let error = parse_timeout(bad).unwrap_err();
            assert!(error.message().unwrap().contains(text), "{bad}");
        }
    }

    #[test]
    fn the_background_process_gets_the_same_words() {
        let args = PairingModeArgs {
            config: Some(PathBuf::from("/x.toml")),
            timeout: Some("60".to_owned()),
            port: None,
            action: Some("start".to_owned()),
        };
        assert_eq!(
            words_of(&args),
            [
                "pairing-mode",
                "start",
                "--timeout",
                "60",
                "--config",
                "/x.toml"
            ]
        );
    }
}
