//! The operator's keyboard during pairing mode (spec/pairing.md 7.1): what a line means. Pure; [`super::mode`] acts.
//!
//! Every command is about the requests that were shown last, in the order in which they were shown, never about whatever the queue
//! holds by now (spec/pairing.md 18.10).

use crate::core::pairing::diagnostics;
use crate::core::pairing::record::Record;

/// What the operator wants.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Command {
    /// The request as it was shown; `replace`: the name may be registered already.
    Approve {
        shown: Box<Record>,
        replace: bool,
    },
    Deny {
        shown: Box<Record>,
    },
    /// Show what waits.
    List,
    Quit,
    Nothing,
    /// Not understood, or not unambiguous; the text says what to do, and the list follows if true.
    Hint(String, bool),
}

/// Reads one line.
pub(super) fn parse(line: &str, shown: &[Record]) -> Command {
    let word = line.trim();
    match word {
        "" | "s" | "skip" => return Command::Nothing,
        "l" | "list" => return Command::List,
        "q" | "quit" => return Command::Quit,
        _ => {}
    }
    let (body, replace) = match word.strip_suffix('!') {
        Some(body) => (body, true),
        None => (word, false),
    };
    let mut chars = body.chars();
    let approve = match chars.next() {
        Some('a') => true,
        Some('A') if body.len() == 1 => true,
        Some('d') if !replace => false,
        Some('D') if body.len() == 1 && !replace => false,
        _ => return unknown(),
    };
    let number = chars.as_str();
    let chosen = if number.is_empty() {
        match shown {
            [] => return Command::Hint("No request is waiting.".to_owned(), false),
            [only] => only,
            _ => {
                let hint = "More than one request is waiting: use a number, for example a1 or d2.";
                return Command::Hint(hint.to_owned(), true);
            }
        }
    } else if number.bytes().all(|b| b.is_ascii_digit()) {
        let index = number.parse::<usize>().ok().and_then(|n| n.checked_sub(1));
        match index.and_then(|n| shown.get(n)) {
            Some(record) => record,
            None => return Command::Hint(format!("There is no request number {number}."), true),
        }
    } else {
        return unknown();
    };
    let shown = Box::new(chosen.clone());
    if approve {
        Command::Approve { shown, replace }
    } else {
        Command::Deny { shown }
    }
}

fn unknown() -> Command {
    let hint = "Unknown command. a = approve, d = deny, aN/dN = number N, a! = approve and replace a registered host, s = skip, l = list, q = quit";
    Command::Hint(hint.to_owned(), false)
}

/// What is shown of the waiting requests.
pub(super) fn show(pending: &[Record]) -> Vec<String> {
    match pending {
        [] => vec!["No pending pairing requests.".to_owned()],
        [only] => show_one(only),
        several => show_several(several),
    }
}

fn show_one(record: &Record) -> Vec<String> {
    let ip = record
        .source
        .map_or_else(|| "unknown".to_owned(), |ip| ip.to_string());
    let mut lines = vec![
        String::new(),
        format!("Pairing request from {} ({ip})", record.hostname),
        format!("  Id:            {}", record.id),
        format!("  Code:          {} ({})", record.code, record.kind()),
        format!("  Received:      {}", record.received),
    ];
    lines.extend(
        diagnostics::identity_lines(record)
            .into_iter()
            .map(|l| format!("  {l}")),
    );
    lines.push(format!("  {}", diagnostics::recommendation(record)));
    lines.push(format!("  {}", diagnostics::code_advice(record.kind())));
    lines.push("Approve, deny or skip? [a/d/s]".to_owned());
    lines
}

fn show_several(pending: &[Record]) -> Vec<String> {
    let mut lines = vec![
        String::new(),
        format!("{} pairing requests are waiting:", pending.len()),
    ];
    for (at, record) in pending.iter().enumerate() {
        let ip = record
            .source
            .map_or_else(|| "unknown".to_owned(), |ip| ip.to_string());
        lines.push(format!(
            "  {}. {:<24} {ip:<16} code {} ({})  {}  {}",
            at + 1,
            record.hostname.as_str(),
            record.code,
            record.kind(),
            record.received,
            record.id,
        ));
    }
    lines.push("Compare each code with the agent's screen. aN = approve, dN = deny, s = skip, l = list, q = quit".to_owned());
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::pairing::record;

    fn records(count: usize) -> Vec<Record> {
        (0..count)
            .map(|n| record::sample(&format!("{n:02x}"), &format!("web{n}"), n % 2 == 0))
            .collect()
    }

    fn approve(record: &Record, replace: bool) -> Command {
        Command::Approve {
            shown: Box::new(record.clone()),
            replace,
        }
    }

    #[test]
    fn a_letter_alone_means_the_only_request() {
        let one = records(1);
        for word in ["a", "A", "  a \n"] {
            assert_eq!(parse(word, &one), approve(&one[0], false));
        }
        assert_eq!(parse("a!", &one), approve(&one[0], true));
        assert_eq!(
            parse("D", &one),
            Command::Deny {
                shown: Box::new(one[0].clone())
            }
        );
        assert!(matches!(parse("a", &[]), Command::Hint(_, false)));
        assert!(matches!(parse("a", &records(2)), Command::Hint(_, true)));
    }

    #[test]
    fn numbers_count_from_one_and_never_wrap_around() {
        let three = records(3);
        assert_eq!(parse("a1", &three), approve(&three[0], false));
        assert_eq!(parse("a3!", &three), approve(&three[2], true));
        assert_eq!(
            parse("d2", &three),
            Command::Deny {
                shown: Box::new(three[1].clone())
            }
        );
        for bad in ["a0", "d0", "a4", "a99999999999999999999"] {
            assert!(
                matches!(parse(bad, &three), Command::Hint(_, true)),
                "{bad}"
            );
        }
        for bad in ["a-1", "A1", "d1!", "approve", "x", "a1x", "a 1"] {
            assert!(
                matches!(parse(bad, &three), Command::Hint(_, false)),
                "{bad}"
            );
        }
    }

    #[test]
    fn the_other_words_do_what_they_say() {
        for word in ["", "s", "skip"] {
            assert_eq!(parse(word, &records(1)), Command::Nothing);
        }
        assert_eq!(parse("l", &[]), Command::List);
        assert_eq!(parse("quit\n", &[]), Command::Quit);
    }

    #[test]
    fn what_is_shown_has_code_kind_and_id_of_each() {
        let two = records(2);
        let text = show(&two).join("\n");
        for record in &two {
            assert!(text.contains(&record.code.to_string()) && text.contains(record.id.as_str()));
        }
        assert!(text.contains("(bound)") && text.contains("(basic)"));
        assert!(show(&two[1..]).join("\n").contains("older release"));
    }
}
