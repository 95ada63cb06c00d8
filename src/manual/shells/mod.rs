//! Completions. Every shell gets what its own loader expects: bash a file per command name, zsh one for all, fish one per command.

mod bash;
mod fish;
mod zsh;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::{Entry, Program};

pub(super) fn files(programs: &[Program]) -> BTreeMap<PathBuf, Entry> {
    let mut files = BTreeMap::new();
    // One text for bash: the binary's own name takes the words of the other programs too.
    let bash = Path::new("completions/bash");
    let first = "ctrl-exec";
    files.insert(bash.join(first), Entry::Text(bash::script(programs)));
    let fish = Path::new("completions/fish");
    for program in programs {
        let text = fish::script(program, programs);
        files.insert(
            fish.join(format!("{}.fish", program.name)),
            Entry::Text(text),
        );
        for name in names(program).filter(|name| *name != first) {
            files.insert(bash.join(name), Entry::Link(first.to_owned()));
        }
        for alias in program.aliases {
            let text = format!("complete -c {alias} -w {}\n", program.name);
            files.insert(fish.join(format!("{alias}.fish")), Entry::Text(text));
        }
    }
    files.insert(
        PathBuf::from("completions/zsh/_ctrl-exec"),
        Entry::Text(zsh::script(programs)),
    );
    files
}

fn names(program: &Program) -> impl Iterator<Item = &'static str> {
    std::iter::once(program.name).chain(program.aliases.iter().copied())
}

/// The name of a shell function.
fn function(program: &str) -> String {
    format!("_{}", program.replace('-', "_"))
}

/// In single quotes. No text of ours has one by then.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "’"))
}
