//! `cea`, the agent: a daemon that runs allowlisted scripts for trusted dispatchers, and the modes around it (spec/agent.md 2).

mod admission;
mod change;
mod checks;
mod connection;
mod gate;
mod handlers;
mod isolation;
mod jobs;
mod lenient;
mod listener;
mod material;
mod pairing;
mod promote;
mod reply;
mod revocations;
mod scripts;
mod self_ping;
mod serve;
mod state;
mod timekeeping;
#[cfg(test)]
mod wire_tests;

use std::path::PathBuf;

use crate::applets::{AppError, Context, Exit, VERSION, cli};
use crate::core::logging;
use crate::say;

/// Name in the log and in `--version`.
const IDENT: &str = "ctrl-exec-agent";

/// Options of all modes (spec/agent.md 2.1). A mode ignores those that do not concern it, as in the original.
const OPTIONS: &[cli::Opt] = &[
    cli::value("config"),
    cli::value("allowlist"),
    cli::value("dispatcher"),
    cli::value("port"),
    cli::flag("background"),
    cli::value("timeout"),
    cli::value("lookup-by"),
    cli::value("key-type"),
    cli::value("dispatcher-fingerprint"),
    cli::value("ca-fingerprint"),
    cli::flag("replace-ca"),
    cli::flag("yes"),
    cli::flag("files"),
];

/// The files that the modes read instead of the usual ones.
#[derive(Clone, Debug, Default)]
struct Files {
    config: Option<PathBuf>,
    allowlist: Option<PathBuf>,
}

struct Mode {
    name: &'static str,
    /// `None`: not in the usage text.
    summary: Option<&'static str>,
    entry: fn(&Context, &Files, &cli::Words) -> Result<Exit, AppError>,
}

static MODES: &[Mode] = &[
    Mode {
        name: "serve",
        summary: Some("run the agent in the foreground"),
        entry: |context, files, _| serve::serve(context, files),
    },
    Mode {
        name: "request-pairing",
        summary: Some("ask a dispatcher to pair this host (needs --dispatcher HOST)"),
        entry: |context, _, words| pairing::request(context, &pairing_options(words)),
    },
    Mode {
        name: "pairing-status",
        summary: Some("is this host paired, and until when is its certificate valid"),
        entry: |context, files, _| checks::pairing_status(context, files),
    },
    Mode {
        name: "self-check",
        summary: Some(
            "check configuration, allowlist, profiles, certificates and scripts, without the network",
        ),
        entry: |context, files, words| match given(words, "files") {
            true => serve::could_start(context, files),
            false => checks::self_check(context, files),
        },
    },
    Mode {
        name: "self-ping",
        summary: Some("ask the running agent on this host whether it answers"),
        entry: |context, files, _| self_ping::self_ping(context, files),
    },
    Mode {
        name: jobs::supervisor::MODE,
        summary: None,
        entry: |context, _, _| jobs::supervisor::supervise(context),
    },
    Mode {
        name: "promote-cert",
        summary: None,
        entry: |context, files, _| Ok(promote::promote(context, files)),
    },
    Mode {
        name: "cert-staged",
        summary: None,
        entry: |context, files, _| Ok(checks::cert_staged(context, files)),
    },
    Mode {
        name: "paired",
        summary: None,
        entry: |context, files, _| Ok(checks::paired(context, files)),
    },
];

/// Entry of the applet; `args` are the words after the program's name.
///
/// # Errors
/// Whatever keeps the mode from doing its work, with the exit code for it.
pub fn main(context: &Context, args: Vec<String>) -> Result<Exit, AppError> {
    let words = cli::normalise(args, OPTIONS)?;
    if words.version {
        say!("{IDENT} {VERSION}");
        return Ok(Exit::Success);
    }
    let Some(word) = words.positional.first() else {
        say!("{}", usage());
        return Ok(Exit::Success);
    };
    let Some(mode) = MODES.iter().find(|mode| mode.name == word) else {
        return Err(AppError::usage(format!(
            "Unknown mode '{}'\n\n{}",
            word.escape_debug(),
            usage()
        )));
    };
    if words.help {
        say!("{}", usage());
        return Ok(Exit::Success);
    }
    logging::init(IDENT, context.log_sink());
    (mode.entry)(context, &files(&words), &words)
}

/// The value of an option; as in the original, the last one of a repeated option counts.
fn value(words: &cli::Words, name: &str) -> Option<String> {
    let given = words.options.iter().rfind(|(option, _)| *option == name);
    given.and_then(|(_, value)| value.clone())
}

fn files(words: &cli::Words) -> Files {
    Files {
        config: value(words, "config").map(PathBuf::from),
        allowlist: value(words, "allowlist").map(PathBuf::from),
    }
}

fn given(words: &cli::Words, name: &str) -> bool {
    words.options.iter().any(|(option, _)| *option == name)
}

fn pairing_options(words: &cli::Words) -> pairing::Options {
    let given = |name: &str| given(words, name);
    pairing::Options {
        config: value(words, "config").map(PathBuf::from),
        dispatcher: value(words, "dispatcher"),
        port: value(words, "port"),
        background: given("background"),
        timeout: value(words, "timeout"),
        lookup_by: value(words, "lookup-by"),
        key_type: value(words, "key-type"),
        dispatcher_fingerprint: value(words, "dispatcher-fingerprint"),
        ca_fingerprint: value(words, "ca-fingerprint"),
        replace_ca: given("replace-ca"),
        yes: given("yes"),
    }
}

fn usage() -> String {
    use std::fmt::Write as _;
    let mut text = String::from(
        "Usage: cea MODE [OPTION...]\n\nRuns allowlisted scripts for trusted dispatchers over mutual TLS.\n\nModes:\n",
    );
    for mode in MODES {
        if let Some(summary) = mode.summary {
            let _ = writeln!(text, "  {:<16} {summary}", mode.name);
        }
    }
    text.push_str(
        "\nOptions:\n\
         \x20 --config FILE      configuration (default /etc/ctrl-exec-agent/agent.toml, else agent.conf)\n\
         \x20 --allowlist FILE   scripts that may run (default scripts.toml beside it, else scripts.conf)\n\
         \x20 --dispatcher HOST  request-pairing: the dispatcher to ask\n\
         \x20 --port N           request-pairing: its pairing port (default 7444)\n\
         \x20 --background       request-pairing: print the request id and wait in the background\n\
         \x20 --timeout N        request-pairing --background: longest wait, 1 to 600 s (default 30)\n\
         \x20 --lookup-by KIND   request-pairing: 'ip' or 'hostname', how the dispatcher shall reach this host\n\
         \x20 --dispatcher-fingerprint SHA256, --ca-fingerprint SHA256\n\
         \x20                    request-pairing: accept no other dispatcher, no other CA ('ced pairing-mode' shows the former)\n\
         \x20 --replace-ca       request-pairing: this host leaves the fleet that it belongs to\n\
         \x20 --key-type KIND    request-pairing: ecdsa-p256, rsa-2048, rsa-3072, rsa-4096 (default: what the dispatcher can sign)\n\
         \x20 --yes              request-pairing: do not ask whether the codes agree\n\
         \x20 --files            self-check: only whether 'serve' could start (0 or 78), for start scripts\n\
         \x20 --root DIR         prefix of every system path\n\
         \x20 --version, --help",
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::paths::{Paths, Platform};

    fn call(args: &[&str]) -> Result<Exit, AppError> {
        let context = Context {
            time: crate::core::clock::TimeSource::System,
            program: "cea",
            env: std::collections::BTreeMap::from([(
                "CTRL_EXEC_LOG".to_owned(),
                "stderr".to_owned(),
            )]),
            paths: Paths::new("/nonexistent", Platform::Standard),
        };
        main(&context, args.iter().map(|s| (*s).to_owned()).collect())
    }

    #[test]
    fn without_a_mode_it_explains_itself_and_never_serves() {
        assert_eq!(call(&[]), Ok(Exit::Success));
        assert_eq!(call(&["--version"]), Ok(Exit::Success));
        assert_eq!(call(&["-VERS", "serve"]).unwrap_err().exit(), Exit::Usage);
        assert_eq!(call(&["serve", "--help"]), Ok(Exit::Success));
        let unknown = call(&["frobnicate"]).unwrap_err();
        assert_eq!(unknown.exit(), Exit::Usage);
        assert!(
            unknown
                .message()
                .unwrap()
                .starts_with("Unknown mode 'frobnicate'")
        );
    }

    #[test]
    fn the_exit_code_probes_say_no_without_a_configuration() {
        assert_eq!(call(&["paired"]), Ok(Exit::Failure));
        assert_eq!(call(&["cert-staged"]), Ok(Exit::Failure));
    }
}
