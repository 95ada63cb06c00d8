//! A manual page in the macros of man(7).

use std::fmt::Write as _;

use super::values::EVERYWHERE;
use super::{Help, Program, release};

pub(super) fn page(program: &Program, all: &[Program]) -> String {
    let name = program.name;
    let mut out = String::new();
    let _ = writeln!(
        out,
        ".TH {} {} \"\" \"{}\" \"ctrl-exec\"",
        escape(&name.to_uppercase()),
        program.section,
        escape(&release())
    );
    out.push_str(".SH NAME\n");
    let mut names = vec![name];
    names.extend(program.aliases);
    let _ = writeln!(
        out,
        "{} \\- {}",
        escape(&names.join(", ")),
        escape(program.summary)
    );

    out.push_str(".SH SYNOPSIS\n");
    if program.help.has_sections {
        synopsis(&program.help.usage, &mut out);
    } else {
        let usage = program.help.text.lines();
        let usage: Vec<&str> = usage
            .skip_while(|line| !line.starts_with("Usage:"))
            .take_while(|line| !line.is_empty())
            .collect();
        verbatim(&usage.join("\n"), &mut out);
    }

    out.push_str(".SH DESCRIPTION\n");
    if program.help.has_sections {
        described(&program.help, &mut out);
    } else {
        verbatim(&program.help.text, &mut out);
    }

    if !program.verbs.is_empty() {
        out.push_str(".SH VERBS\n");
        for verb in &program.verbs {
            if verb.shares_help {
                let _ = writeln!(out, ".TP\n.B {}\n{}", escape(verb.name), line(verb.summary));
                continue;
            }
            let _ = writeln!(out, ".SS {}", escape(verb.name));
            let _ = writeln!(out, "{}\n.PP", line(verb.summary));
            if verb.help.has_sections {
                synopsis(&verb.help.usage, &mut out);
                out.push_str(".PP\n");
                described(&verb.help, &mut out);
            } else {
                verbatim(&verb.help.text, &mut out);
            }
        }
    }

    out.push_str(".SH OPTIONS OF ALL PROGRAMS\n");
    for (name, takes_value, text) in EVERYWHERE {
        option(name, takes_value, text, &mut out);
    }
    out.push_str(".SH SEE ALSO\n");
    let others: Vec<String> = all
        .iter()
        .filter(|other| other.name != name)
        .map(|other| format!("\\fB{}\\fR({})", escape(other.name), other.section))
        .collect();
    let _ = writeln!(out, "{}", others.join(",\n"));
    out
}

fn synopsis(usage: &str, out: &mut String) {
    let _ = writeln!(out, ".nh\n.ad l\n{}\n.ad\n.hy", line(usage));
}

fn described(help: &Help, out: &mut String) {
    let _ = writeln!(out, "{}", line(&help.about));
    for (name, text) in &help.words {
        let _ = writeln!(out, ".TP\n.I {}\n{}", escape(name), line(text));
    }
    for known in &help.options {
        option(&known.name, known.takes_value, &known.text, out);
    }
    if !help.notes.is_empty() {
        out.push_str(".PP\n");
        verbatim(&help.notes, out);
    }
}

fn option(name: &str, takes_value: bool, text: &str, out: &mut String) {
    let value = if takes_value {
        format!(" \\fI{}\\fR", escape(name))
    } else {
        String::new()
    };
    let name = escape(&format!("--{name}"));
    let _ = writeln!(out, ".TP\n\\fB{name}\\fR{value}\n{}", line(text));
}

/// Lines as they are.
fn verbatim(text: &str, out: &mut String) {
    out.push_str(".nf\n");
    for text in text.trim_end().lines() {
        let _ = writeln!(out, "{}", line(text));
    }
    out.push_str(".fi\n");
}

/// A line of text, which is never a request.
fn line(text: &str) -> String {
    let escaped = escape(text);
    if escaped.starts_with(['.', '\'']) {
        format!("\\&{escaped}")
    } else {
        escaped
    }
}

fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\e"),
            '-' => out.push_str("\\-"),
            '\'' => out.push_str("\\(aq"),
            '`' => out.push_str("\\(ga"),
            '^' => out.push_str("\\(ha"),
            '~' => out.push_str("\\(ti"),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_never_a_request_and_dashes_can_be_copied() {
        assert_eq!(line(".TH --x"), "\\&.TH \\-\\-x");
        assert_eq!(line("'a\\n'"), "\\(aqa\\en\\(aq");
    }
}
