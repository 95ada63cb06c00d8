//! What can stand where: the words behind a verb and the values of options, as far as a shell can propose them.

use super::{Opt, Program};

/// What a shell can propose.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Kind {
    Nothing,
    Files,
    /// Names in the registry of this dispatcher.
    Hosts,
    Words(&'static [&'static str]),
}

const KEY_TYPES: &[&str] = &["ecdsa-p256", "rsa-2048", "rsa-3072", "rsa-4096"];

pub(super) fn of_option(option: &Opt) -> Kind {
    match option.name.as_str() {
        _ if !option.takes_value => Kind::Nothing,
        "config" | "allowlist" | "ca" | "cert" | "key" | "dir" | "root" => Kind::Files,
        "key-type" => Kind::Words(KEY_TYPES),
        "lookup-by" => Kind::Words(&["ip", "hostname"]),
        "peer-check" => Kind::Words(&["strict", "off"]),
        "without" => Kind::Hosts,
        _ => Kind::Nothing,
    }
}

pub(super) fn of_words(program: &Program, verb: &str) -> Kind {
    match (program.name, verb) {
        ("ced", "run" | "ping" | "edit-agent" | "unpair" | "revoke") => Kind::Hosts,
        ("ced", "pairing-mode") => Kind::Words(&["start", "stop"]),
        ("ced", "rotate-ca") => Kind::Words(&["start", "status", "finish", "abort"]),
        ("ced", "api") => Kind::Words(&[
            "health",
            "ping",
            "run",
            "status",
            "wait",
            "runs",
            "cancel",
            "discovery",
        ]),
        ("ctrl-exec", "config") => {
            Kind::Words(&["convert", "check", "dispatcher", "agent", "scripts"])
        }
        ("ctrl-exec", "container") => Kind::Words(&["agent", "dispatcher", "healthcheck"]),
        ("ctrl-exec", "links") | ("ctrl-exec-exec", _) => Kind::Files,
        _ => Kind::Nothing,
    }
}

/// Options that every program takes.
pub(super) const EVERYWHERE: [(&str, bool, &str); 3] = [
    ("help", false, "explain"),
    ("version", false, "show the release"),
    ("root", true, "prefix of every system path"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proposed_words_are_those_that_the_help_tells_of() {
        let mut proposed = 0;
        for program in crate::manual::programs().unwrap() {
            for verb in &program.verbs {
                let mut kinds: Vec<Kind> = verb.help.options.iter().map(of_option).collect();
                let options = kinds.len();
                kinds.push(of_words(&program, verb.name));
                for (at, kind) in kinds.into_iter().enumerate() {
                    let Kind::Words(words) = kind else { continue };
                    for word in words {
                        proposed += 1;
                        // 'lookup-by': "to the ip or to the hostname".
                        assert!(
                            verb.help.text.contains(word),
                            "{} {} ({at} of {options}): {word}",
                            program.name,
                            verb.name
                        );
                    }
                }
            }
        }
        assert!(proposed > 30);
    }
}
