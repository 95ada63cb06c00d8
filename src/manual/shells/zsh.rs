//! zsh: one file for all command names, found by the completion system in `fpath`.

use std::fmt::Write as _;

use super::{function, names};
use crate::manual::values::{self, EVERYWHERE, Kind};
use crate::manual::{Opt, Program};

const HOSTS: &str = "\
# Hosts in the registry of this dispatcher; nobody is asked over the network.
_ctrl_exec_hosts() {
    local -a hosts lines
    lines=(\"${(@f)$(ced list-agents </dev/null 2>/dev/null)}\")
    hosts=(${${lines[3,-1]}%% *})
    compadd -a hosts
}

";

pub(super) fn script(programs: &[Program]) -> String {
    let all: Vec<&str> = programs.iter().flat_map(names).collect();
    let mut out = format!(
        "#compdef {}\n# Generated: do not edit.\n\n{HOSTS}",
        all.join(" ")
    );
    for program in programs {
        one(program, programs, &mut out);
    }
    out.push_str("case ${service:t} in\n");
    for program in programs {
        let all: Vec<&str> = names(program).collect();
        let _ = writeln!(
            out,
            "    {}) {} \"$@\" ;;",
            all.join("|"),
            function(program.name)
        );
    }
    out.push_str("esac\n");
    out
}

fn one(program: &Program, programs: &[Program], out: &mut String) {
    let _ = writeln!(out, "{}() {{", function(program.name));
    if program.verbs.is_empty() {
        let _ = writeln!(
            out,
            "    _arguments{}\n}}\n",
            specs(&program.help.options, "")
        );
        return;
    }
    out.push_str("    local state line\n    local -a verbs\n    verbs=(\n");
    for (name, summary) in words(program, programs) {
        let _ = writeln!(out, "        '{name}:{}'", plain(summary));
    }
    let _ = writeln!(
        out,
        "    )\n    _arguments -C{} '1: :->verb' '*:: :->words'\n    case $state in\n    verb) _describe -t verbs verb verbs ;;\n    words)\n        case $words[1] in",
        specs(&program.help.options, "")
    );
    verbs(program, out);
    if program.name == "ctrl-exec" {
        for other in programs.iter().filter(|other| other.name != program.name) {
            let all: Vec<&str> = names(other).collect();
            let _ = writeln!(
                out,
                "        {}) {} ;;",
                all.join("|"),
                function(other.name)
            );
            if other.name == "ced" {
                verbs(other, out);
            }
        }
    }
    out.push_str("        esac ;;\n    esac\n}\n\n");
}

/// What can be the first word.
fn words<'a>(program: &'a Program, programs: &'a [Program]) -> Vec<(&'a str, &'a str)> {
    let of = |program: &'a Program| program.verbs.iter().map(|verb| (verb.name, verb.summary));
    let mut words: Vec<_> = of(program).collect();
    if program.name == "ctrl-exec" {
        for other in programs.iter().filter(|other| other.name != program.name) {
            words.push((other.name, other.summary));
            if other.name == "ced" {
                words.extend(of(other));
            }
        }
    }
    words
}

fn verbs(program: &Program, out: &mut String) {
    for verb in &program.verbs {
        let arguments = match values::of_words(program, verb.name) {
            Kind::Nothing => "",
            Kind::Files => " '*:file:_files'",
            Kind::Hosts => " '*:host:_ctrl_exec_hosts'",
            Kind::Words(words) => &format!(" '*:word:({})'", words.join(" ")),
        };
        let _ = writeln!(
            out,
            "        {}) _arguments{} ;;",
            verb.name,
            specs(&verb.help.options, arguments)
        );
    }
}

fn specs(options: &[Opt], arguments: &str) -> String {
    let mut out = String::new();
    for option in options {
        spec(&option.name, &option.text, option, &mut out);
    }
    for (name, takes_value, text) in EVERYWHERE {
        let option = Opt {
            name: name.to_owned(),
            takes_value,
            text: text.to_owned(),
        };
        if !options.iter().any(|known| known.name == name) {
            spec(name, text, &option, &mut out);
        }
    }
    out.push_str(arguments);
    out
}

fn spec(name: &str, text: &str, option: &Opt, out: &mut String) {
    let value = match values::of_option(option) {
        _ if !option.takes_value => String::new(),
        Kind::Nothing => format!(":{name}: "),
        Kind::Files => format!(":{name}:_files"),
        Kind::Hosts => format!(":{name}:_ctrl_exec_hosts"),
        Kind::Words(words) => format!(":{name}:({})", words.join(" ")),
    };
    let _ = write!(out, " \\\n            '--{name}[{}]{value}'", plain(text));
}

/// Without what means something in a specification.
fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\'' => out.push('’'),
            '[' | ']' | ':' | '\\' => {
                out.push('\\');
                out.push(c);
            }
            c => out.push(c),
        }
    }
    out
}
