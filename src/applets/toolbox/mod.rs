//! The bare `ctrl-exec` name: what concerns the binary itself. Any other word is a verb of the dispatcher.

mod config;
mod demo;
mod install;
mod links;

use crate::applets::{APPLETS, AppError, Context, Exit, VERSION, ced};
use crate::say;

type Tool = (
    &'static str,
    &'static str,
    fn(&Context, Vec<String>) -> Result<Exit, AppError>,
);

/// Word, summary, entry.
static TOOLS: &[Tool] = &[
    (
        "config",
        "check a configuration file, or print it as TOML",
        config::main,
    ),
    (
        "demo",
        "pair two hosts in a temporary folder and run scripts, step by step",
        demo::main,
    ),
    (
        "install",
        "make this host an agent, a dispatcher or both: accounts, folders, services",
        install::install,
    ),
    (
        "links",
        "create the symbolic links of all program names",
        links::main,
    ),
    (
        "uninstall",
        "take away what install has put here",
        install::uninstall,
    ),
];

pub fn main(context: &Context, args: Vec<String>) -> Result<Exit, AppError> {
    let Some(word) = args.first() else {
        say!("{}", usage());
        return Ok(Exit::Success);
    };
    match word.as_str() {
        "--help" | "-h" => {
            say!("{}", usage());
            return Ok(Exit::Success);
        }
        "--version" => {
            say!("ctrl-exec {VERSION}");
            return Ok(Exit::Success);
        }
        "--list" => {
            for applet in APPLETS {
                say!("{}", applet.name);
                for alias in applet.aliases {
                    say!("{alias}");
                }
            }
            return Ok(Exit::Success);
        }
        _ => {}
    }
    if let Some((_, _, entry)) = TOOLS.iter().find(|(name, _, _)| name == word) {
        return entry(context, args.into_iter().skip(1).collect());
    }
    if word.starts_with('-') || ced::is_verb(word) {
        return ced::main(context, args);
    }
    Err(AppError::usage(unknown_name(word)))
}

/// The text for a name that leads nowhere.
pub fn unknown_name(name: &str) -> String {
    format!(
        "'{}' is not a program or verb of this binary.\n\n{}",
        name.escape_debug(),
        usage()
    )
}

fn usage() -> String {
    use std::fmt::Write as _;
    let mut text = format!(
        "ctrl-exec {VERSION}: runs allowlisted scripts on remote hosts over mutual TLS\n\n\
         Usage: ctrl-exec PROGRAM|TOOL|VERB [ARGUMENT...]\n       PROGRAM [ARGUMENT...]   (by a link, see 'ctrl-exec links')\n\nPrograms:\n"
    );
    for applet in APPLETS.iter().filter(|a| a.name != "ctrl-exec") {
        let _ = write!(text, "  {:<14} {}", applet.name, applet.summary);
        if !applet.aliases.is_empty() {
            let _ = write!(text, " (also: {})", applet.aliases.join(", "));
        }
        text.push('\n');
    }
    text.push_str("\nTools:\n");
    for (name, summary, _) in TOOLS {
        let _ = writeln!(text, "  {name:<14} {summary}");
    }
    let _ = write!(
        text,
        "\nVerbs (of ced):\n  {}\n\nOptions: --help, --version, --list (all names), --root DIR (everything below DIR instead of /)",
        ced::verb_names().join(", ")
    );
    text
}
