//! fish: a file per command, loaded when the command is typed for the first time.

use std::fmt::Write as _;

use super::quoted;
use crate::manual::values::{self, EVERYWHERE, Kind};
use crate::manual::{Opt, Program};

const HOSTS: &str = "(ced list-agents </dev/null 2>/dev/null | string match -rg '^([A-Za-z0-9._-]+) ' | tail -n +2)";

pub(super) fn script(program: &Program, programs: &[Program]) -> String {
    let name = program.name;
    let mut out =
        format!("# fish completion of {name}. Generated: do not edit.\ncomplete -c {name} -f\n");
    for (option, takes_value, text) in EVERYWHERE {
        let option = Opt {
            name: option.to_owned(),
            takes_value,
            text: text.to_owned(),
        };
        one_option(name, "", &option, &mut out);
    }
    verbs(name, program, &mut out);
    if name == "ctrl-exec" {
        for other in programs.iter().filter(|other| other.name != name) {
            let _ = writeln!(
                out,
                "complete -c {name} -n __fish_use_subcommand -a {} -d {}",
                other.name,
                quoted(other.summary)
            );
            if other.name == "ced" {
                verbs(name, other, &mut out);
            } else {
                options(name, other.name, &other.help.options, &mut out);
            }
        }
    }
    out
}

fn verbs(name: &str, program: &Program, out: &mut String) {
    for verb in &program.verbs {
        let _ = writeln!(
            out,
            "complete -c {name} -n __fish_use_subcommand -a {} -d {}",
            verb.name,
            quoted(verb.summary)
        );
        let proposed = match values::of_words(program, verb.name) {
            Kind::Nothing => None,
            Kind::Files => Some("-F".to_owned()),
            Kind::Hosts => Some(format!("-a \"{HOSTS}\"")),
            Kind::Words(words) => Some(format!("-a {}", quoted(&words.join(" ")))),
        };
        if let Some(proposed) = proposed {
            let _ = writeln!(
                out,
                "complete -c {name} -n '__fish_seen_subcommand_from {}' {proposed}",
                verb.name
            );
        }
        options(name, verb.name, &verb.help.options, out);
    }
    if program.name == name {
        let condition = match program.verbs.is_empty() {
            true => "",
            false => "-n __fish_use_subcommand ",
        };
        for option in &program.help.options {
            one_option(name, condition, option, out);
        }
    }
}

fn options(name: &str, verb: &str, options: &[Opt], out: &mut String) {
    let condition = format!("-n '__fish_seen_subcommand_from {verb}' ");
    for option in options {
        one_option(name, &condition, option, out);
    }
}

fn one_option(name: &str, condition: &str, option: &Opt, out: &mut String) {
    let value = match values::of_option(option) {
        _ if !option.takes_value => String::new(),
        Kind::Nothing => " -x".to_owned(),
        Kind::Files => " -r -F".to_owned(),
        Kind::Hosts => format!(" -x -a \"{HOSTS}\""),
        Kind::Words(words) => format!(" -x -a {}", quoted(&words.join(" "))),
    };
    let _ = write!(
        out,
        "complete -c {name} {condition}-l {}{value}",
        option.name
    );
    if !option.text.is_empty() {
        let _ = write!(out, " -d {}", quoted(&option.text));
    }
    out.push('\n');
}
