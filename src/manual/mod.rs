//! Manual pages and shell completions, made of what the programs themselves say: the table of applets, their tables of verbs, and every
//! `--help`. No program calls this, so nothing of it is in the binary; `examples/manual.rs` writes the files.

mod help;
mod roff;
mod shells;
mod values;

use std::collections::BTreeMap;
use std::path::PathBuf;

pub use help::{Help, Opt};

use crate::applets::{APPLETS, Context, VERSION, verbs_of};
use crate::core::clock::TimeSource;
use crate::core::paths::{Paths, Platform};

/// A program with everything that is said about it.
#[derive(Clone, Debug)]
pub struct Program {
    pub name: &'static str,
    pub aliases: &'static [&'static str],
    pub summary: &'static str,
    /// Of the manual: 1 for what users call, 8 for what runs as a service or for root.
    pub section: u8,
    pub help: Help,
    pub verbs: Vec<Verb>,
}

#[derive(Clone, Debug)]
pub struct Verb {
    pub name: &'static str,
    pub summary: &'static str,
    pub help: Help,
    /// The verb has no help of its own: that of the program tells of it.
    pub shares_help: bool,
}

/// What stands below `share`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Entry {
    Text(String),
    /// A symbolic link beside its target.
    Link(String),
}

/// Everything that the binary knows of itself.
///
/// # Errors
/// A program or verb that does not answer `--help`: it would be missing in the manual.
pub fn programs() -> Result<Vec<Program>, String> {
    let mut programs = Vec::new();
    for applet in APPLETS {
        let help = ask(applet.name, &[])?;
        let mut verbs = Vec::new();
        for (name, summary) in verbs_of(applet.name) {
            let own = ask(applet.name, &[name])?;
            verbs.push(Verb {
                name,
                summary,
                shares_help: own.text == help.text,
                help: own,
            });
        }
        programs.push(Program {
            name: applet.name,
            aliases: applet.aliases,
            summary: applet.summary,
            section: if applet.name.starts_with("ced") { 1 } else { 8 },
            help,
            verbs,
        });
    }
    Ok(programs)
}

/// Paths below `share`, with what stands there.
pub fn files(programs: &[Program]) -> BTreeMap<PathBuf, Entry> {
    let mut files = BTreeMap::new();
    for program in programs {
        let dir = PathBuf::from(format!("man/man{}", program.section));
        let page = |name: &str| format!("{name}.{}", program.section);
        let text = roff::page(program, programs);
        files.insert(dir.join(page(program.name)), Entry::Text(text));
        for alias in program.aliases {
            files.insert(dir.join(page(alias)), Entry::Link(page(program.name)));
        }
    }
    files.extend(shells::files(programs));
    files
}

/// What a program says to `--help`.
fn ask(applet: &'static str, words: &[&str]) -> Result<Help, String> {
    let context = Context {
        program: applet,
        env: BTreeMap::from([("CTRL_EXEC_LOG".to_owned(), "stderr".to_owned())]),
        // Nothing is there: help needs nothing.
        paths: Paths::new("/nonexistent", Platform::Standard),
        time: TimeSource::System,
    };
    let entry = crate::applets::find(applet)
        .ok_or_else(|| format!("'{applet}' is not in the table"))?
        .entry;
    let words = words.iter().chain(&["--help"]);
    let words: Vec<String> = words.map(|word| (*word).to_owned()).collect();
    match entry(&context, words.clone()) {
        Err(said) if said.exit().code() == 0 => match said.message() {
            Some(text) => Ok(Help::read(text)),
            None => Err(format!("'{applet} {}' says nothing", words.join(" "))),
        },
        _ => Err(format!("'{applet} {}' gives no help", words.join(" "))),
    }
}

/// Name and release, for the foot of a page.
fn release() -> String {
    format!("ctrl-exec {VERSION}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_program_and_verb_explains_itself() {
        let programs = programs().unwrap();
        assert_eq!(programs.len(), APPLETS.len());
        let ced = programs.iter().find(|p| p.name == "ced").unwrap();
        assert!(ced.verbs.len() > 20);
        for verb in &ced.verbs {
            assert!(!verb.shares_help, "{}", verb.name);
            assert!(
                verb.help.options.iter().any(|o| o.name == "config"),
                "{}",
                verb.name
            );
        }
        let run = ced.verbs.iter().find(|v| v.name == "run").unwrap();
        let port = run.help.options.iter().find(|o| o.name == "port").unwrap();
        assert!(port.takes_value && port.text == "port of hosts that name none");
    }

    #[test]
    fn the_executor_knows_the_verbs_that_are_told_of() {
        let programs = programs().unwrap();
        let executor = programs
            .iter()
            .find(|p| p.name == "ctrl-exec-exec")
            .unwrap();
        for verb in &executor.verbs {
            let line = format!("ctrl-exec-exec {} ", verb.name);
            assert!(executor.help.text.contains(&line), "{line}");
        }
        let listed = executor.help.text.matches("ctrl-exec-exec ").count();
        assert_eq!(listed, executor.verbs.len() + 1, "one line for --version");
    }
}
