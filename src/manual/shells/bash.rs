//! bash: `complete -F` with a function per program. Needs nothing of the bash-completion package.

use std::fmt::Write as _;

use super::{function, names};
use crate::manual::values::{self, EVERYWHERE, Kind};
use crate::manual::{Opt, Program, Verb};

const HEAD: &str = "\
# bash completion of ctrl-exec and its programs. Generated: do not edit.

# Hosts in the registry of this dispatcher: two lines of heading, then a host on each. Nobody is asked over the network.
_ctrl_exec_hosts() {
    local name rest n=0
    while read -r name rest; do
        n=$((n + 1))
        [ $n -gt 2 ] && case $name in *[!A-Za-z0-9._-]*) ;; *) printf '%s\\n' \"$name\" ;; esac
    done < <(ced list-agents </dev/null 2>/dev/null)
}

_ctrl_exec_words() {
    COMPREPLY=($(compgen -W \"$1\" -- \"${COMP_WORDS[COMP_CWORD]}\"))
}

_ctrl_exec_files() {
    compopt -o filenames 2>/dev/null
    local IFS=$'\\n'
    COMPREPLY=($(compgen -f -- \"${COMP_WORDS[COMP_CWORD]}\"))
}

";

pub(super) fn script(programs: &[Program]) -> String {
    let mut out = String::from(HEAD);
    for program in programs {
        one(program, programs, &mut out);
    }
    for program in programs {
        let all: Vec<&str> = names(program).collect();
        let _ = writeln!(
            out,
            "complete -F {} {}",
            function(program.name),
            all.join(" ")
        );
    }
    out
}

/// The function reads the words behind the one at `_ctrl_exec_at`, which is the name of the program.
fn one(program: &Program, programs: &[Program], out: &mut String) {
    let _ = writeln!(out, "{}() {{", function(program.name));
    out.push_str("    local at=${_ctrl_exec_at:-0} cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]}\n");
    out.push_str("    local verb= options= i\n    COMPREPLY=()\n");
    let valued = valued(program, |_| true);
    let _ = writeln!(
        out,
        "    for ((i = at + 1; i < COMP_CWORD; i++)); do\n        case ${{COMP_WORDS[i]}} in\n            --) return ;;\n            {valued}) i=$((i + 1)) ;;\n            -*) ;;"
    );
    if program.name == "ctrl-exec" {
        for other in programs.iter().filter(|other| other.name != program.name) {
            let all: Vec<&str> = names(other).collect();
            let _ = writeln!(
                out,
                "            {}) local _ctrl_exec_at=$i; {}; return ;;",
                all.join("|"),
                function(other.name)
            );
        }
        if let Some(ced) = programs.iter().find(|other| other.name == "ced") {
            let verbs: Vec<&str> = ced.verbs.iter().map(|verb| verb.name).collect();
            let _ = writeln!(
                out,
                "            {}) local _ctrl_exec_at=$((i - 1)); _ced; return ;;",
                verbs.join("|")
            );
        }
    }
    out.push_str("            *) verb=${COMP_WORDS[i]}; break ;;\n        esac\n    done\n");
    // What stands behind the dashes is the script's affair.
    out.push_str(
        "    for ((; i < COMP_CWORD; i++)); do [ \"${COMP_WORDS[i]}\" = -- ] && return; done\n",
    );

    out.push_str("    case $prev in\n");
    for (kind, action) in [
        (Kind::Files, "_ctrl_exec_files".to_owned()),
        (
            Kind::Hosts,
            "_ctrl_exec_words \"$(_ctrl_exec_hosts)\"".to_owned(),
        ),
    ] {
        let options = self::valued(program, |option| values::of_option(option) == kind);
        if !options.is_empty() {
            let _ = writeln!(out, "        {options}) {action}; return ;;");
        }
    }
    for option in all_options(program) {
        if let Kind::Words(words) = values::of_option(&option) {
            let words = words.join(" ");
            let _ = writeln!(
                out,
                "        --{}) _ctrl_exec_words \"{words}\"; return ;;",
                option.name
            );
        }
    }
    let silent = self::valued(program, |option| values::of_option(option) == Kind::Nothing);
    if !silent.is_empty() {
        let _ = writeln!(out, "        {silent}) return ;;");
    }
    out.push_str("    esac\n    case $verb in\n");
    for verb in &program.verbs {
        let _ = writeln!(
            out,
            "        {}) options=\"{}\" ;;",
            verb.name,
            spelt(&verb.help.options)
        );
    }
    let _ = writeln!(
        out,
        "        *) options=\"{}\" ;;\n    esac",
        spelt(&program.help.options)
    );
    let everywhere: Vec<String> = EVERYWHERE
        .iter()
        .map(|(name, ..)| format!("--{name}"))
        .collect();
    let _ = writeln!(
        out,
        "    case $cur in -*) _ctrl_exec_words \"$options {}\"; return ;; esac",
        everywhere.join(" ")
    );
    out.push_str("    case $verb in\n");
    for verb in &program.verbs {
        arguments(program, verb, out);
    }
    let mut words: Vec<&str> = program.verbs.iter().map(|verb| verb.name).collect();
    if program.name == "ctrl-exec" {
        for other in programs.iter().filter(|other| other.name != program.name) {
            words.push(other.name);
            if other.name == "ced" {
                words.extend(other.verbs.iter().map(|verb| verb.name));
            }
        }
    }
    let _ = writeln!(
        out,
        "        '') _ctrl_exec_words \"{}\" ;;\n    esac\n}}\n",
        words.join(" ")
    );
}

fn arguments(program: &Program, verb: &Verb, out: &mut String) {
    let action = match values::of_words(program, verb.name) {
        Kind::Nothing => return,
        Kind::Files => "_ctrl_exec_files".to_owned(),
        Kind::Hosts => "_ctrl_exec_words \"$(_ctrl_exec_hosts)\"".to_owned(),
        Kind::Words(words) => format!("_ctrl_exec_words \"{}\"", words.join(" ")),
    };
    let _ = writeln!(out, "        {}) {action} ;;", verb.name);
}

fn spelt(options: &[Opt]) -> String {
    let all: Vec<String> = options
        .iter()
        .map(|option| format!("--{}", option.name))
        .collect();
    all.join(" ")
}

/// Every option of the program and its verbs, each once.
fn all_options(program: &Program) -> Vec<Opt> {
    let of_verbs = program.verbs.iter().flat_map(|verb| &verb.help.options);
    let root = Opt {
        name: "root".to_owned(),
        takes_value: true,
        text: String::new(),
    };
    let mut all: Vec<Opt> = vec![root];
    for option in program.help.options.iter().chain(of_verbs) {
        if !all.iter().any(|known| known.name == option.name) {
            all.push(option.clone());
        }
    }
    all
}

/// Options with a value that `wanted` says yes to, as a pattern.
fn valued(program: &Program, wanted: impl Fn(&Opt) -> bool) -> String {
    let all: Vec<String> = all_options(program)
        .iter()
        .filter(|option| option.takes_value && wanted(option))
        .map(|option| format!("--{}", option.name))
        .collect();
    all.join("|")
}
