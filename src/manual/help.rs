//! Reading a help text: that of argh, with its sections, and those that are written by hand, from which the options are taken.

/// A help text and what is in it.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Help {
    pub text: String,
    /// Without the word `Usage:`. Empty where the text has no sections.
    pub usage: String,
    pub about: String,
    /// Name and text of each word.
    pub words: Vec<(String, String)>,
    pub options: Vec<Opt>,
    /// As they stand there.
    pub notes: String,
    /// Made by argh: everything of the text is in the other fields.
    pub has_sections: bool,
}

#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Opt {
    /// Without the dashes.
    pub name: String,
    pub takes_value: bool,
    /// Empty where the text says nothing about it in particular.
    pub text: String,
}

/// What argh writes in every help.
const MARK: &str = "display usage information";

impl Help {
    pub fn read(text: &str) -> Self {
        if text.contains(MARK) {
            Self::of_argh(text)
        } else {
            Self::by_hand(text)
        }
    }

    fn of_argh(text: &str) -> Self {
        let mut help = Self {
            text: text.to_owned(),
            has_sections: true,
            ..Self::default()
        };
        let mut section = "";
        let mut items: Vec<(String, String)> = Vec::new();
        for line in text.lines() {
            if let Some(usage) = line.strip_prefix("Usage: ") {
                usage.clone_into(&mut help.usage);
                continue;
            }
            match (line, section) {
                ("Positional Arguments:" | "Options:" | "Notes:", _) => {
                    if section == "Positional Arguments:" {
                        help.words = std::mem::take(&mut items);
                    }
                    section = line;
                }
                ("", "") => {}
                (_, "") => {
                    if !help.about.is_empty() {
                        help.about.push(' ');
                    }
                    help.about.push_str(line.trim());
                }
                (_, "Notes:") => {
                    help.notes.push_str(line.strip_prefix("  ").unwrap_or(line));
                    help.notes.push('\n');
                }
                ("", _) => {}
                _ => item(line, &mut items),
            }
            if section == "Notes:" && help.options.is_empty() {
                help.take_options(&mut items);
            }
        }
        if section == "Positional Arguments:" {
            help.words = items;
        } else {
            help.take_options(&mut items);
        }
        help
    }

    fn take_options(&mut self, items: &mut Vec<(String, String)>) {
        for (name, text) in items.drain(..) {
            // `-h, --help` is everywhere.
            if let Some(name) = name.strip_prefix("--") {
                self.options.push(Opt {
                    name: name.to_owned(),
                    takes_value: self.usage.contains(&format!("--{name} <")),
                    text,
                });
            }
        }
    }

    /// Options are the words with two dashes; one that takes a value is somewhere followed by a word in capitals.
    fn by_hand(text: &str) -> Self {
        let mut help = Self {
            text: text.to_owned(),
            ..Self::default()
        };
        for line in text.lines() {
            let begins = line.starts_with("  --");
            let mut rest = line;
            while let Some(at) = rest.find("--") {
                rest = &rest[at + 2..];
                let end = rest
                    .find(|c: char| !c.is_ascii_lowercase() && c != '-')
                    .unwrap_or(rest.len());
                let (name, behind) = rest.split_at(end);
                rest = behind;
                if name.is_empty() || matches!(name, "help" | "version") {
                    continue;
                }
                let value = behind.strip_prefix([' ', '=']).unwrap_or_default();
                let takes_value = value.starts_with(|c: char| c.is_ascii_uppercase())
                    && value.chars().nth(1).is_none_or(|c| !c.is_ascii_lowercase());
                let text = match (begins, behind.split_once("  ")) {
                    (true, Some((_, text))) => text.trim().to_owned(),
                    _ => String::new(),
                };
                match help.options.iter_mut().find(|known| known.name == name) {
                    Some(known) => {
                        known.takes_value |= takes_value;
                        if known.text.is_empty() {
                            known.text = text;
                        }
                    }
                    None => help.options.push(Opt {
                        name: name.to_owned(),
                        takes_value,
                        text,
                    }),
                }
            }
        }
        help
    }
}

/// `  name    text`, or more text of the one before.
fn item(line: &str, items: &mut Vec<(String, String)>) {
    let begins = line.starts_with("  ") && !line.starts_with("   ");
    let line = line.trim();
    match (begins, items.last_mut()) {
        (true, _) | (false, None) => {
            let (name, text) = line.split_once("  ").unwrap_or((line, ""));
            items.push((name.to_owned(), text.trim().to_owned()));
        }
        (false, Some((_, text))) => {
            if !text.is_empty() {
                text.push(' ');
            }
            text.push_str(line);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_are_taken_apart() {
        let help = Help::read(
            "Usage: ced x [--config <config>] [--keep-certificate] [--] <name>\n\nAbout it.\n\nPositional Arguments:\n  name              \
             which\n\nOptions:\n  --config          a file that goes\n                    on\n  --keep-certificate\n                    \
             leave it\n  -h, --help        display usage information\n\nNotes:\n  One.\n    Two.\n",
        );
        assert_eq!(help.about, "About it.");
        assert_eq!(help.words, [("name".to_owned(), "which".to_owned())]);
        let opt = |name: &str, takes_value, text: &str| Opt {
            name: name.to_owned(),
            takes_value,
            text: text.to_owned(),
        };
        assert_eq!(
            help.options,
            [
                opt("config", true, "a file that goes on"),
                opt("keep-certificate", false, "leave it")
            ]
        );
        assert_eq!(help.notes, "One.\n  Two.\n");
    }

    #[test]
    fn options_of_a_text_by_hand_are_found() {
        let help = Help::read(
            "Usage: p serve <x> [--json | --unit]\n\nOptions:\n  --file FILE   the file (see --json)\n  --yes         do not ask\n  --a N, --b N\n  --version, --help",
        );
        let found: Vec<(&str, bool, &str)> = help
            .options
            .iter()
            .map(|o| (o.name.as_str(), o.takes_value, o.text.as_str()))
            .collect();
        assert_eq!(
            found,
            [
                ("json", false, ""),
                ("unit", false, ""),
                ("file", true, "the file (see --json)"),
                ("yes", false, "do not ask"),
                ("a", true, ""),
                ("b", true, "")
            ]
        );
    }
}
