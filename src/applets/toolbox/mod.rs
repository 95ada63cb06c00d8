//! The bare `ctrl-exec` name: what concerns the binary itself. Any other word is a verb of the dispatcher.

mod config;
#[cfg(feature = "dispatcher")]
mod container;
#[cfg(feature = "dispatcher")]
mod demo;
mod install;
mod links;

#[cfg(feature = "dispatcher")]
use crate::applets::ced;
use crate::applets::{APPLETS, AppError, Context, ELSEWHERE, Exit, VERSION, find};
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
    #[cfg(feature = "dispatcher")]
    (
        "container",
        "be a whole container: agent or dispatcher, and its healthcheck",
        container::main,
    ),
    #[cfg(feature = "dispatcher")]
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

/// Names and summaries.
pub(crate) fn verbs() -> Vec<(&'static str, &'static str)> {
    let told = |(name, summary, _): &Tool| (*name, *summary);
    TOOLS.iter().map(told).collect()
}

pub fn main(context: &Context, args: Vec<String>) -> Result<Exit, AppError> {
    let Some(word) = args.first() else {
        return Err(AppError::help(usage()));
    };
    match word.as_str() {
        "--help" | "-h" => return Err(AppError::help(usage())),
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
    match find("ced") {
        Some(ced) if word.starts_with('-') || dispatcher_verbs().contains(&word.as_str()) => {
            (ced.entry)(context, args)
        }
        _ => Err(AppError::usage(unknown_name(word))),
    }
}

/// What early releases had under the bare name; nothing in a build without the dispatcher.
fn dispatcher_verbs() -> Vec<&'static str> {
    #[cfg(feature = "dispatcher")]
    return ced::verb_names();
    #[cfg(not(feature = "dispatcher"))]
    Vec::new()
}

/// The text for a name that leads nowhere.
pub fn unknown_name(name: &str) -> String {
    if ELSEWHERE.contains(&name) {
        return format!(
            "This build of ctrl-exec has no '{name}': it was made without the dispatcher or its API. \
             Use the full build on hosts that need it."
        );
    }
    format!(
        "'{}' is not a program or verb of this binary.\n\n{}",
        name.escape_debug(),
        usage()
    )
}

/// The text for a name of the file itself that leads nowhere.
pub fn unknown_program(name: &str) -> String {
    if ELSEWHERE.contains(&name) {
        return unknown_name(name);
    }
    let names: Vec<&str> = APPLETS
        .iter()
        .flat_map(|applet| std::iter::once(&applet.name).chain(applet.aliases))
        .copied()
        .collect();
    format!(
        "'{}' is not a name that this program answers to. Those are {}, and any that begins with ctrl-exec (as ctrl-exec-x86_64 does). \
         Under such a one the first word says what to be: ctrl-exec cea self-check. 'ctrl-exec links' makes links of the others.",
        name.escape_debug(),
        names.join(", ")
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
    let verbs = dispatcher_verbs();
    if !verbs.is_empty() {
        let _ = writeln!(text, "\nVerbs (of ced):\n  {}", verbs.join(", "));
    }
    text.push_str("\nOptions: --help, --version, --list (all names), --root DIR (everything below DIR instead of /)");
    text
}
