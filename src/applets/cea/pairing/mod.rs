//! `cea request-pairing` (spec/pairing.md 11, spec/agent.md 17): the rim around [`crate::core::pairing::agent`].

mod audience;
mod exchange;
mod plan;

use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::Stdio;

use self::audience::Audience;
use self::exchange::Failure;
use self::plan::Plan;
use crate::applets::detach::{self, READY};
use crate::applets::{AppError, Context, Exit};
use crate::core::logging::Action;
use crate::core::pairing::agent::PairingFailure;
use crate::{complain, say};

/// The options of the mode as they were typed; none is checked yet.
#[derive(Clone, Debug, Default)]
pub struct Options {
    pub config: Option<PathBuf>,
    pub dispatcher: Option<String>,
    pub port: Option<String>,
    pub background: bool,
    pub timeout: Option<String>,
    pub lookup_by: Option<String>,
    /// Kind of the new key; the default depends on the dispatcher.
    pub key_type: Option<String>,
    /// The dispatcher's certificate must have this SHA-256.
    pub dispatcher_fingerprint: Option<String>,
    /// The delivered CA must have this SHA-256.
    pub ca_fingerprint: Option<String>,
    /// Another CA may take the place of the one that this host has.
    pub replace_ca: bool,
    /// Do not ask whether the codes agree.
    pub yes: bool,
}

/// Asks a dispatcher to pair this host.
///
/// # Errors
/// Pairing is not possible or was refused; the text begins with `Pairing failed:` once the dispatcher has been asked.
pub fn request(context: &Context, options: &Options) -> Result<Exit, AppError> {
    let plan = Plan::new(context, options)?;
    // The process in the background has a parent that said it already.
    let said = detach::is_detached(context);
    for warning in plan.warnings.iter().filter(|_| !said) {
        complain!("Warning: {warning}");
    }
    if !plan.background {
        return foreground(&plan);
    }
    if detach::is_detached(context) {
        return Ok(child(&plan));
    }
    parent(context, options)
}

fn foreground(plan: &Plan) -> Result<Exit, AppError> {
    let outcome = exchange::run(plan, Audience::of_terminal(plan.ask))?;
    match outcome {
        Ok(done) => {
            for line in plan::advice(plan, &done) {
                say!("{line}");
            }
            Ok(Exit::Success)
        }
        Err(failure) => Err(AppError::failed(format!(
            "Pairing failed: {}",
            failure.text
        ))),
    }
}

/// Starts the process that asks and waits; prints the request's id as soon as it has one (spec/pairing.md 11.2).
fn parent(context: &Context, options: &Options) -> Result<Exit, AppError> {
    let mut command = detach::again(context, &words_of(options))?;
    command.stderr(Stdio::inherit());
    let failed = |e: std::io::Error| {
        AppError::failed(format!(
            "Pairing failed: cannot start the background process: {e}"
        ))
    };
    let mut child = command.spawn().map_err(failed)?;
    if let Some(stdout) = child.stdout.take() {
        // The child reports or ends; its own deadlines bound this.
        for line in BufReader::new(stdout).lines() {
            let line = line.map_err(failed)?;
            if let Some(reqid) = line.strip_prefix(READY) {
                say!("{reqid}");
                return Ok(Exit::Success);
            }
        }
    }
    // It has said why on the terminal.
    let _ = child.wait();
    Err(AppError::silent(Exit::Failure))
}

/// The process in the background. Its status is for whoever looks at processes; the log has the same.
fn child(plan: &Plan) -> Exit {
    let outcome = match exchange::run(plan, Audience::of_parent()) {
        Ok(outcome) => outcome,
        Err(error) => {
            complain!("{}", error.message().unwrap_or_default());
            return Exit::Denied;
        }
    };
    match outcome {
        Ok(_) => Exit::Success,
        Err(Failure {
            text,
            cause,
            reqid: None,
        }) => {
            complain!("Pairing failed: {text}");
            match cause {
                Some(PairingFailure::TimedOut) => Exit::TimedOut,
                _ => Exit::Denied,
            }
        }
        Err(Failure {
            cause: Some(PairingFailure::TimedOut),
            reqid: Some(reqid),
            ..
        }) => {
            Action::new("pair-timeout").field("REQID", reqid).warning();
            Exit::TimedOut
        }
        Err(Failure {
            text,
            reqid: Some(reqid),
            ..
        }) => {
            Action::new("pair-denied")
                .field("REASON", text)
                .field("REQID", reqid)
                .warning();
            Exit::Denied
        }
    }
}

/// The same command line for the process in the background.
fn words_of(options: &Options) -> Vec<String> {
    let mut words = vec!["request-pairing".to_owned(), "--background".to_owned()];
    let config = options
        .config
        .as_ref()
        .map(|path| path.display().to_string());
    for (name, value) in [
        ("--config", &config),
        ("--dispatcher", &options.dispatcher),
        ("--port", &options.port),
        ("--timeout", &options.timeout),
        ("--lookup-by", &options.lookup_by),
        ("--key-type", &options.key_type),
        ("--dispatcher-fingerprint", &options.dispatcher_fingerprint),
        ("--ca-fingerprint", &options.ca_fingerprint),
    ] {
        if let Some(value) = value {
            words.extend([name.to_owned(), value.clone()]);
        }
    }
    for (name, given) in [("--replace-ca", options.replace_ca), ("--yes", options.yes)] {
        if given {
            words.push(name.to_owned());
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_background_process_gets_every_option() {
        let options = Options {
            config: Some(PathBuf::from("/a.toml")),
            dispatcher: Some("hq".to_owned()),
            port: Some("7500".to_owned()),
            background: true,
            timeout: Some("60".to_owned()),
            lookup_by: Some("ip".to_owned()),
            key_type: Some("rsa-3072".to_owned()),
            dispatcher_fingerprint: Some("d".to_owned()),
            ca_fingerprint: Some("c".to_owned()),
            replace_ca: true,
            yes: true,
        };
        let expected = "request-pairing --background --config /a.toml --dispatcher hq --port 7500 --timeout 60 --lookup-by ip \
                        --key-type rsa-3072 --dispatcher-fingerprint d --ca-fingerprint c --replace-ca --yes";
        assert_eq!(words_of(&options).join(" "), expected);
    }
}
