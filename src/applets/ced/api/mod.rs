//! `ced api`: the dispatcher's work done by an API server, asked over HTTP (spec/integrations.md 3, spec/api.md).
//!
//! Needs no configuration, key or certificate of a dispatcher: a URL, and a token where the server wants one.

mod file;
mod fleet;
mod follow;
mod result;
mod run;
mod session;
mod settings;

use std::path::PathBuf;

use argh::FromArgs;

use crate::applets::ced::Call;
use crate::applets::ced::show::text;
use crate::applets::{AppError, Context, Exit, cli};
use crate::complain;
use session::Session;

/// Let an API server do it: ced api VERB [OPTION...] [WORD...]
#[derive(FromArgs)]
#[argh(
    help_triggers("-h", "--help"),
    note = "Verbs:\n  \
            health                       is the server there, and of which release?\n  \
            ping HOST...                 do these hosts answer?\n  \
            run HOST... SCRIPT [-- ARG...]\n                               \
            run a script and wait for it; also: run HOST... --script SCRIPT\n  \
            status REQID                 show how a run is doing\n  \
            wait REQID                   wait until a run has ended; status 2 when the time is over before that\n  \
            runs                         list the runs that the server has on record\n  \
            cancel REQID                 end an asynchronous run\n  \
            discovery [HOST...]          list the hosts (default all) and what may run there",
    note = "What is not given comes from the environment (CTRL_EXEC_API_URL, CTRL_EXEC_TOKEN, CTRL_EXEC_USERNAME, USER), \
            then from the file: lines 'url = ...', 'token = ...', 'username = ...', 'ca = ...', 'cert = ...', 'key = ...'. \
            A file with a token must be closed to other users."
)]
struct ApiArgs {
    /// http://HOST[:PORT], https://HOST[:PORT] or unix:/PATH (default http://localhost:7445; without a port: 80 or 443)
    #[argh(option)]
    url: Option<String>,
    /// token for the server; visible in the process list: prefer the variable CTRL_EXEC_TOKEN or the file
    #[argh(option)]
    token: Option<String>,
    /// name to claim towards hooks and scripts (default $USER)
    #[argh(option)]
    username: Option<String>,
    /// print the server's JSON object, on one line
    #[argh(switch)]
    json: bool,
    /// file of the CAs that may have issued the certificate of an https:// server (default: those of the system)
    #[argh(option)]
    ca: Option<PathBuf>,
    /// client certificate, for servers that ask for one
    #[argh(option)]
    cert: Option<PathBuf>,
    /// private key of the client certificate
    #[argh(option)]
    key: Option<PathBuf>,
    /// file to read instead of ~/.ctrl-exec-cli.conf
    #[argh(option)]
    config: Option<PathBuf>,
    /// seconds without a word of the server (default 120); wait: seconds to wait at most (default 300), 0 asks once
    #[argh(option)]
    timeout: Option<u64>,
    /// send a token also over http:// to another host, where everybody on the way can read it
    #[argh(switch)]
    allow_plain_http: bool,
    /// run: do not wait; 'status', 'wait' and 'cancel' take the request id that is printed
    #[argh(switch, long = "async")]
    asynchronous: bool,
    /// run: the script, when all words are hosts
    #[argh(option)]
    script: Option<String>,
    /// discovery: list the scripts of every host
    #[argh(switch)]
    scripts: bool,
    /// a verb and its words
    #[argh(positional)]
    words: Vec<String>,
}

/// Spelling of the options; [`ACCEPTED`] has the same names.
pub(super) const OPTIONS: &[cli::Opt] = &[
    cli::value("url"),
    cli::value("token"),
    cli::value("username"),
    cli::flag("json"),
    cli::value("ca"),
    cli::value("cert"),
    cli::value("key"),
    cli::value("config"),
    cli::value("timeout"),
    cli::flag("allow-plain-http"),
    cli::flag("async"),
    cli::value("script"),
    cli::flag("scripts"),
];

pub(super) const ACCEPTED: &[&str] = &[
    "url",
    "token",
    "username",
    "json",
    "ca",
    "cert",
    "key",
    "config",
    "timeout",
    "allow-plain-http",
    "async",
    "script",
    "scripts",
];

/// Are these words a call of `ced api`? Its options are others than those of the other verbs, and may stand before it too.
pub(super) fn is_meant(args: &[String]) -> bool {
    args.first().is_some_and(|word| word == "api")
        || cli::normalise(args.to_vec(), OPTIONS)
            .is_ok_and(|words| words.positional.first().is_some_and(|word| word == "api"))
}

/// What a verb of the API works with.
struct Asked {
    /// Words behind the verb.
    words: Vec<String>,
    /// What stands behind `--`.
    after_dashes: Option<Vec<String>>,
    asynchronous: bool,
    script: Option<String>,
    scripts: bool,
    timeout: Option<u64>,
}

impl Asked {
    /// The only word of a verb that takes one.
    fn only_word(&self, usage: &str) -> Result<&str, AppError> {
        match self.words.as_slice() {
            [word] => Ok(word),
            _ => Err(AppError::usage(format!("Usage: {usage}"))),
        }
    }

    fn no_words(&self, usage: &str) -> Result<(), AppError> {
        if self.words.is_empty() {
            Ok(())
        } else {
            Err(AppError::usage(format!("Usage: {usage}")))
        }
    }
}

type Entry = fn(&Context, &Session, &Asked) -> Result<Exit, AppError>;

/// Name and entry.
static VERBS: &[(&str, Entry)] = &[
    ("health", fleet::health),
    ("ping", fleet::ping),
    ("run", run::main),
    ("status", follow::status),
    ("wait", follow::wait),
    ("runs", follow::runs),
    ("cancel", follow::cancel),
    ("discovery", fleet::discovery),
];

pub(super) fn main(context: &Context, call: &Call) -> Result<Exit, AppError> {
    let mut args: ApiArgs = call.parse()?;
    if args.words.is_empty() {
        return Err(AppError::usage(format!(
            "Usage: ced api VERB [OPTION...] [WORD...] with one of {}\nTry: ced api --help",
            verbs()
        )));
    }
    let word = args.words.remove(0);
    let Some((verb, entry)) = VERBS.iter().find(|(name, _)| *name == word) else {
        return Err(AppError::usage(format!(
            "Unknown verb '{}': use one of {}",
            word.escape_debug(),
            verbs()
        )));
    };
    for (name, given, of) in [
        ("async", args.asynchronous, "run"),
        ("script", args.script.is_some(), "run"),
        ("scripts", args.scripts, "discovery"),
    ] {
        if given && *verb != of {
            complain!("Note: option '--{name}' has no effect with 'api {verb}'.");
        }
    }
    let asked = Asked {
        words: std::mem::take(&mut args.words),
        after_dashes: call.after_dashes.clone(),
        asynchronous: args.asynchronous,
        script: args.script.take(),
        scripts: args.scripts,
        timeout: args.timeout,
    };
    // To `wait` the time is that of the whole.
    let silence = args.timeout.filter(|_| *verb != "wait");
    let session = Session::open(context, args, silence)?;
    entry(context, &session, &asked)
}

fn verbs() -> String {
    let names: Vec<&str> = VERBS.iter().map(|(name, _)| *name).collect();
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_option_is_accepted_and_spelt_as_argh_knows_it() {
        let names: Vec<&str> = OPTIONS.iter().map(|o| o.name).collect();
        assert_eq!(names, ACCEPTED);
        let mut words = Vec::new();
        for option in OPTIONS {
            words.push(format!("--{}", option.name));
            if option.takes_value {
                words.push("7".to_owned());
            }
        }
        words.extend(["--".to_owned(), "health".to_owned()]);
        let args: ApiArgs = cli::parse(&["ced", "api"], &words).unwrap();
        assert_eq!(args.words, ["health"]);
        assert!(args.allow_plain_http && args.asynchronous && args.scripts);
    }

    #[test]
    fn options_may_stand_before_the_word_api() {
        let meant = |line: &str| {
            let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
            is_meant(&words)
        };
        assert!(meant("api"));
        assert!(meant("api health --nonsense"));
        assert!(meant("--json --url http://h api ping x"));
        assert!(!meant("run api script"));
        assert!(!meant("--username api ping h"));
        assert!(!meant("ping --port 1 api"));
    }
}
