//! THE TABLE: which names this binary answers to, and what each of them does.

#[cfg(feature = "api")]
pub mod api;
pub mod cea;
#[cfg(feature = "dispatcher")]
pub mod ced;
pub mod cli;
pub(crate) mod detach;
pub mod executor;
pub mod exit;
pub(crate) mod notify;
pub mod toolbox;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use crate::core::clock::TimeSource;
use crate::core::logging::Sink;
use crate::core::paths::{Paths, Platform};
use crate::{complain, say};

pub use exit::{AppError, Exit};

/// Release of this binary, as `--version`, ping and capabilities report it.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// What the outside world hands in, read once: nothing below asks the environment again.
#[derive(Clone, Debug)]
pub struct Context {
    /// The name that the program was called by, for messages.
    pub program: &'static str,
    pub env: BTreeMap<String, String>,
    pub paths: Paths,
    pub time: TimeSource,
}

impl Context {
    /// An environment variable that is set and not empty.
    pub fn var(&self, name: &str) -> Option<&str> {
        self.env
            .get(name)
            .map(String::as_str)
            .filter(|v| !v.is_empty())
    }
}

/// Set by whoever starts the agent in a container that cannot have an executor: why not, for everybody who asks for a run.
pub(crate) const NO_EXECUTOR: &str = "CTRL_EXEC_NO_EXECUTOR";

impl Context {
    /// What is said about a run where there can be no executor.
    pub(crate) fn no_executor(&self) -> Option<String> {
        let why = self.var(NO_EXECUTOR)?;
        Some(format!("executor unreachable: {why}"))
    }

    /// Where the action lines go: `CTRL_EXEC_LOG`, else the syslog socket.
    pub fn log_sink(&self) -> Sink {
        Sink::from_word(self.var("CTRL_EXEC_LOG"), self.paths.syslog_socket())
    }
}

/// One program of the binary.
#[derive(Debug)]
pub struct Applet {
    pub name: &'static str,
    pub aliases: &'static [&'static str],
    pub summary: &'static str,
    /// Gets the words after the program's name.
    pub entry: fn(&Context, Vec<String>) -> Result<Exit, AppError>,
}

pub static APPLETS: &[Applet] = &[
    #[cfg(feature = "dispatcher")]
    Applet {
        name: "ced",
        aliases: &["ctrl-exec-dispatcher"],
        summary: "dispatcher: pair agents, run allowlisted scripts on them",
        entry: ced::main,
    },
    Applet {
        name: "cea",
        aliases: &["ctrl-exec-agent"],
        summary: "agent: run allowlisted scripts for trusted dispatchers",
        entry: cea::main,
    },
    #[cfg(feature = "api")]
    Applet {
        name: "ced-api",
        aliases: &["ctrl-exec-api"],
        summary: "HTTP API of the dispatcher: ping, run, status, discovery",
        entry: api::main,
    },
    Applet {
        name: "ctrl-exec-exec",
        aliases: &[],
        summary: "root executor: run scripts for the agent under their security profiles",
        entry: executor::main,
    },
    Applet {
        name: "ctrl-exec",
        aliases: &[],
        summary: "this binary's own name: links, demo, configuration tools; also takes every word that ced takes",
        entry: toolbox::main,
    },
];

/// Names of programs and tools that this build was made without (Cargo features `dispatcher` and `api`).
pub static ELSEWHERE: &[&str] = &[
    #[cfg(not(feature = "dispatcher"))]
    "ced",
    #[cfg(not(feature = "dispatcher"))]
    "ctrl-exec-dispatcher",
    #[cfg(not(feature = "dispatcher"))]
    "container",
    #[cfg(not(feature = "dispatcher"))]
    "demo",
    #[cfg(not(feature = "api"))]
    "ced-api",
    #[cfg(not(feature = "api"))]
    "ctrl-exec-api",
];

/// The verbs of an applet that its help tells of, with a line about each.
pub fn verbs_of(applet: &str) -> Vec<(&'static str, &'static str)> {
    match applet {
        #[cfg(feature = "dispatcher")]
        "ced" => ced::verbs(),
        "cea" => cea::verbs(),
        "ctrl-exec-exec" => executor::VERBS.to_vec(),
        "ctrl-exec" => toolbox::verbs(),
        _ => Vec::new(),
    }
}

/// Finds the applet that a name or alias stands for.
pub fn find(name: &str) -> Option<&'static Applet> {
    APPLETS
        .iter()
        .find(|a| a.name == name || a.aliases.contains(&name))
}

/// Entry of the process: dispatches on `argv[0]`, or on the first word when called by the binary's own (or any other) name.
pub fn main(argv: Vec<OsString>) -> ExitCode {
    #[cfg(panic = "immediate-abort")]
    crate::core::sys::trap::tell();
    match start(argv) {
        Ok(exit) => exit.into(),
        Err(error) => {
            match error.message() {
                // Help.
                Some(text) if error.exit() == Exit::Success => {
                    say!("{text}");
                }
                Some(text) => complain!("{text}"),
                None => {}
            }
            error.exit().into()
        }
    }
}

fn start(argv: Vec<OsString>) -> Result<Exit, AppError> {
    let mut words = Vec::with_capacity(argv.len());
    for (at, word) in argv.into_iter().enumerate() {
        match word.into_string() {
            Ok(word) => words.push(word),
            Err(word) => {
                return Err(AppError::usage(format!(
                    "argument {at} ({}) is not valid UTF-8",
                    word.to_string_lossy().escape_debug()
                )));
            }
        }
    }
    let called = words.first().cloned().unwrap_or_default();
    let called = called.rsplit('/').next().unwrap_or_default();
    let mut rest: Vec<String> = words.into_iter().skip(1).collect();

    // A link name first, then the first word; anything else is the toolbox, which also knows the dispatcher's verbs.
    let mut applet = find(called);
    if applet.is_none_or(|a| a.name == "ctrl-exec")
        && let Some(named) = rest.first().and_then(|word| find(word))
    {
        applet = Some(named);
        rest.remove(0);
    }
    let applet = match applet {
        Some(applet) => applet,
        // A renamed copy of the file (`ctrl-exec-x86_64`, `ctrl-exec.new`) is still this binary.
        None if (called.starts_with("ctrl-exec") && !ELSEWHERE.contains(&called))
            || called.is_empty() =>
        {
            &APPLETS[APPLETS.len() - 1]
        }
        None => return Err(AppError::usage(toolbox::unknown_program(called))),
    };

    let env: BTreeMap<String, String> = std::env::vars_os()
        .filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)))
        .collect();
    let (root, rest) = cli::take_root(rest)?;
    let root = root
        .or_else(|| {
            env.get("CTRL_EXEC_ROOT")
                .filter(|v| !v.is_empty())
                .map(PathBuf::from)
        })
        .unwrap_or_else(|| PathBuf::from("/"));
    if !root.is_absolute() {
        return Err(AppError::usage(format!(
            "the root prefix '{}' must be an absolute path (--root, CTRL_EXEC_ROOT)",
            root.display()
        )));
    }
    let platform = match env.get("CTRL_EXEC_PLATFORM").map(String::as_str) {
        Some(word) if !word.is_empty() => Platform::from_word(word).ok_or_else(|| {
            AppError::usage(format!(
                "CTRL_EXEC_PLATFORM is '{}': use 'standard' or 'volatile-var'",
                word.escape_debug()
            ))
        })?,
        // Below a prefix nothing is mounted specially; only the real root is looked at.
        _ if root == std::path::Path::new("/") => Platform::detect(),
        _ => Platform::Standard,
    };
    let time = match env.get("CTRL_EXEC_CLOCK_OFFSET_FILE") {
        Some(file) if !file.is_empty() => TimeSource::Shifted(PathBuf::from(file)),
        _ => TimeSource::System,
    };
    let context = Context {
        program: applet.name,
        time,
        env,
        paths: Paths::new(root, platform),
    };
    (applet.entry)(&context, rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_unique_and_leads_to_its_applet() {
        let mut seen = std::collections::BTreeSet::new();
        for applet in APPLETS {
            for name in std::iter::once(&applet.name).chain(applet.aliases) {
                assert!(seen.insert(*name), "{name} stands twice");
                assert_eq!(find(name).map(|a| a.name), Some(applet.name));
            }
        }
        assert!(find("nonsense").is_none());
    }

    #[test]
    fn the_last_applet_is_the_binary_itself() {
        assert_eq!(APPLETS.last().map(|a| a.name), Some("ctrl-exec"));
    }
}
