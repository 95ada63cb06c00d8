//! `ctrl-exec-exec`: the root executor (spec/executor.md).
//!
//! `serve` is one process that listens ([`listener`]) and has each connection served by a [`supervisor`], one of its [`crew`]. Neither has a second thread.

mod check;
mod crew;
mod describe;
mod digest;
mod house;
mod jobs;
mod listener;
mod peer;
mod policy;
mod resolve;
mod startup;
mod supervisor;
mod trial;

use crate::applets::{AppError, Context, Exit, VERSION};
use crate::say;

/// Name in the log, in messages and in `--version`.
pub(super) const IDENT: &str = "ctrl-exec-exec";

const USAGE: &str = "\
Usage: ctrl-exec-exec serve <socket> <agent.toml> <scripts.toml> <peer-user> [options]
       ctrl-exec-exec resolve <agent.toml> <scripts.toml> <script-name>
       ctrl-exec-exec try <agent.toml> <scripts.toml> <script-name> [argument...]
       ctrl-exec-exec check <agent.toml> <scripts.toml> [--json | --unit | --kernel | --files]
       ctrl-exec-exec digest <path>
       ctrl-exec-exec --version | --help

serve runs the allowlisted scripts of the agent under their security profiles, in the foreground.
  --allow-root-peer         serve root as well as <peer-user>
  --unprivileged-test[=lax] without root, for tests: refuse every profile that needs rights (lax: ignore 'writable')
resolve prints what would be decided about a script: one line that begins with OK or DENY.
try runs one script as the service would, prints its output, and how it ended.
check shows how far each profile can be enforced here (--files: only whether serve could start); digest prints the annotation that pins a script.
A file that does not end in .toml is read in the syntax of 0.12.3 (agent.conf, scripts.conf).";

/// The verbs, for the manual: [`USAGE`] says the same in sentences.
pub(crate) static VERBS: &[(&str, &str)] = &[
    ("serve", "run the scripts of the agent under their profiles"),
    ("resolve", "print what would be decided about a script"),
    ("try", "run one script as the service would"),
    ("check", "show how far each profile can be enforced here"),
    ("digest", "print the annotation that pins a script"),
];

/// The original's status for a command line that it does not understand is 1.
fn usage() -> AppError {
    AppError::new(Exit::Failure, USAGE)
}

/// Entry of the applet; `args` are the words after the program's name.
///
/// # Errors
/// Whatever keeps it from its work, with the exit code for it (spec/executor.md 2).
pub fn main(context: &Context, args: Vec<String>) -> Result<Exit, AppError> {
    let mut words = args.into_iter();
    let Some(verb) = words.next() else {
        return Err(usage());
    };
    let rest: Vec<String> = words.collect();
    let help = |word: &str| matches!(word, "--help" | "-h");
    if help(&verb) || matches!(rest.as_slice(), [only] if help(only)) {
        return Err(AppError::help(USAGE));
    }
    match verb.as_str() {
        "--version" => {
            say!("{IDENT} {VERSION}");
            Ok(Exit::Success)
        }
        "resolve" => resolve::main(context, rest),
        "serve" => startup::main(context, rest),
        "check" => check::main(context, rest),
        "digest" => digest::main(context, rest),
        "try" => trial::main(context, rest),
        _ => Err(usage()),
    }
}

/// The first words are the operands, whatever they look like: a script may be called `--help`. Options follow.
fn operands<const N: usize>(words: Vec<String>) -> Result<([String; N], Vec<String>), AppError> {
    let mut words = words;
    if words.len() < N {
        return Err(usage());
    }
    let options = words.split_off(N);
    let operands = words.try_into().map_err(|_| usage())?;
    Ok((operands, options))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn operands_are_counted_and_options_follow() {
        let (found, rest) = operands(words("a b --c --d")).unwrap();
        assert_eq!(
            (found, rest),
            (["a", "b", "--c"].map(String::from), words("--d"))
        );
        assert_eq!(operands::<3>(words("a b")).unwrap_err(), usage());
        assert_eq!(usage().exit().code(), 1);
    }
}
