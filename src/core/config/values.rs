//! The kinds of values that the executor's keys have, one grammar for each (spec/executor.md 15.1). In TOML a number may be an
//! integer or, where a suffix is possible, a text.

use std::ops::RangeInclusive;

use super::raw::{Located, RawValue, Style};
use super::reader::Reader;
use super::{Ports, Protected, Want};
use crate::core::types::AbsolutePath;

/// How a number may be written.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Unit {
    /// Digits only.
    Count,
    /// Digits, with K, M, G or T behind them for powers of 1024.
    Bytes,
}

impl Unit {
    fn parse(self, text: &str) -> Option<u64> {
        match self {
            Self::Count => digits(text),
            Self::Bytes => bytes(text),
        }
    }

    fn hint(self) -> &'static str {
        match self {
            Self::Count => "",
            Self::Bytes => " (K, M, G or T may follow)",
        }
    }
}

/// Decimal digits and nothing else. What does not fit 64 bits is no number.
pub(super) fn digits(text: &str) -> Option<u64> {
    let plain = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    plain.then(|| text.parse().ok()).flatten()
}

/// Digits with an optional suffix.
pub(super) fn bytes(text: &str) -> Option<u64> {
    let (number, shift) = match text.as_bytes().last()?.to_ascii_uppercase() {
        b'K' => (&text[..text.len() - 1], 10),
        b'M' => (&text[..text.len() - 1], 20),
        b'G' => (&text[..text.len() - 1], 30),
        b'T' => (&text[..text.len() - 1], 40),
        _ => (text, 0),
    };
    digits(number)?.checked_mul(1_u64 << shift)
}

impl Reader<'_> {
    /// A text or an integer, as text.
    pub(super) fn scalar(&mut self, key: &str, value: &Located<RawValue>) -> Option<String> {
        match &value.value {
            RawValue::Integer(number) => Some(number.to_string()),
            RawValue::Text(_) => self.as_text(key, value).map(|text| text.value),
            _ => self.expected(key, value, "a string or a number"),
        }
    }

    /// Reports that a value is not `what`.
    pub(super) fn not<T>(&mut self, key: &str, item: &Located<String>, what: &str) -> Option<T> {
        let message = format!("'{key}' must be {what}, not '{}'", item.value);
        self.error(&item.span, &message);
        None
    }

    fn scalar_located(&mut self, key: &str, value: &Located<RawValue>) -> Option<Located<String>> {
        let text = self.scalar(key, value)?;
        Some(Located::new(text, value.span.clone()))
    }

    /// A number in a range.
    pub(super) fn amount(
        &mut self,
        key: &'static str,
        unit: Unit,
        range: RangeInclusive<u64>,
    ) -> Option<u64> {
        self.read(key, |r, value| {
            let text = r.scalar_located(key, value)?;
            let number = unit.parse(&text.value).filter(|n| range.contains(n));
            number.or_else(|| r.not(key, &text, &number_words(unit, &range)))
        })
    }

    /// A number, or a word that means that there is no bound.
    pub(super) fn amount_or(
        &mut self,
        key: &'static str,
        unit: Unit,
        range: RangeInclusive<u64>,
        word: &str,
    ) -> Option<Option<u64>> {
        self.read(key, |r, value| {
            let text = r.scalar_located(key, value)?;
            if text.value == word {
                return Some(None);
            }
            match unit.parse(&text.value).filter(|n| range.contains(n)) {
                Some(number) => Some(Some(number)),
                None => {
                    let what = format!("'{word}' or {}", number_words(unit, &range));
                    r.not(key, &text, &what)
                }
            }
        })
    }

    /// A number that may be negative.
    pub(super) fn signed(&mut self, key: &'static str, range: RangeInclusive<i32>) -> Option<i32> {
        self.read(key, |r, value| {
            let text = r.scalar_located(key, value)?;
            let plain = !text.value.starts_with('+');
            let number = text
                .value
                .parse()
                .ok()
                .filter(|n| plain && range.contains(n));
            let (from, to) = (range.start(), range.end());
            number.or_else(|| r.not(key, &text, &format!("a whole number from {from} to {to}")))
        })
    }

    /// A file mode in octal digits. A TOML integer is refused: `22` would be read as decimal.
    pub(super) fn octal(&mut self, key: &'static str, most: u32) -> Option<u32> {
        self.read(key, |r, value| {
            let RawValue::Text(_) = value.value else {
                return r.expected(key, value, "a string of octal digits such as \"0027\"");
            };
            let text = r.as_text(key, value)?;
            let plain = text.value.len() <= 5 && text.value.bytes().all(|b| b.is_ascii_digit());
            let mode = u32::from_str_radix(&text.value, 8).ok();
            let mode = mode.filter(|mode| plain && *mode <= most);
            mode.or_else(|| r.not(key, &text, &format!("octal digits from 0 to {most:04o}")))
        })
    }

    /// One of a few words.
    pub(super) fn word<T: Copy>(&mut self, key: &'static str, words: &[(&str, T)]) -> Option<T> {
        self.read(key, |r, value| {
            let text = r.as_text(key, value)?;
            let found = words.iter().find(|(word, _)| *word == text.value);
            found
                .map(|(_, value)| *value)
                .or_else(|| r.not(key, &text, &one_of(words)))
        })
    }

    /// One of a few words; `try` behind it says that the run may go on without this protection.
    pub(super) fn protected<T: Copy>(
        &mut self,
        key: &'static str,
        words: &[(&str, T)],
    ) -> Option<Protected<T>> {
        self.read(key, |r, value| {
            let text = r.as_text(key, value)?;
            let mut parts = text
                .value
                .split([' ', '\t'])
                .filter(|part| !part.is_empty());
            let (first, second, third) = (parts.next(), parts.next(), parts.next());
            let found = words.iter().find(|(word, _)| Some(*word) == first);
            match (found, second, third) {
                (Some((_, value)), None, None) => Some(Protected::required(*value)),
                (Some((_, value)), Some("try"), None) => Some(Protected::tried(*value)),
                _ => {
                    let what = format!("{}, optionally with 'try' behind it", one_of(words));
                    r.not(key, &text, &what)
                }
            }
        })
    }

    /// `require`, `try`, `off`.
    pub(super) fn want(&mut self, key: &'static str) -> Option<Want> {
        let words = [
            ("require", Want::Require),
            ("try", Want::Try),
            ("off", Want::Off),
        ];
        self.word(key, &words)
    }

    /// Absolute paths: with `:` between them in `.conf`, an array in TOML.
    pub(super) fn paths(&mut self, key: &'static str) -> Option<Vec<Located<AbsolutePath>>> {
        self.list(
            key,
            |c| c == ':',
            |r, items| {
                if items.value.is_empty() && r.style == Style::Conf {
                    r.error(&items.span, &format!("'{key}' names no path"));
                }
                let mut found = Vec::new();
                for item in &items.value {
                    if !item.value.starts_with('/') {
                        // The original's words, which users search for (spec/executor.md 7.3).
                        let message = format!(
                            "{key} path must be absolute: '{}' {}",
                            item.value,
                            r.in_file()
                        );
                        r.error(&item.span, &message);
                    } else if let Some(path) = r.absolute(item, &format!("{key} path")) {
                        found.push(Located::new(path, item.span.clone()));
                    }
                }
                Some(found)
            },
        )
    }

    /// `any`, `none`, or ports: with commas or blanks between them in `.conf`, an array of numbers in TOML.
    pub(super) fn ports(&mut self, key: &'static str, least: u16) -> Option<Ports> {
        self.read(key, |r, value| {
            let items = match &value.value {
                RawValue::List(items) => items
                    .iter()
                    .filter_map(|item| r.scalar_located(key, item))
                    .collect(),
                RawValue::Text(text) if text == "any" => return Some(Ports::Any),
                RawValue::Text(text) if text == "none" => return Some(Ports::Only(Vec::new())),
                RawValue::Text(text) if r.style == Style::Conf => {
                    let separator = |c| matches!(c, ',' | ' ' | '\t');
                    super::reader::split(text, value.span.start, separator)
                }
                _ => return r.expected(key, value, "\"any\", \"none\" or an array of ports"),
            };
            if items.is_empty() {
                let message = format!("'{key}' names no port: write 'none' if that is meant");
                r.error(&value.span, &message);
                return None;
            }
            let mut ports = Vec::new();
            for item in &items {
                let port = digits(&item.value).and_then(|n| u16::try_from(n).ok());
                match port.filter(|port| *port >= least) {
                    Some(port) if ports.contains(&port) => {}
                    Some(port) => ports.push(port),
                    None => {
                        let what = format!("'any', 'none' or ports from {least} to 65535");
                        let _: Option<()> = r.not(key, item, &what);
                    }
                }
            }
            Some(Ports::Only(ports))
        })
    }
}

fn number_words(unit: Unit, range: &RangeInclusive<u64>) -> String {
    let (from, to) = (range.start(), range.end());
    format!("a whole number from {from} to {to}{}", unit.hint())
}

fn one_of<T>(words: &[(&str, T)]) -> String {
    let words: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
    match words.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
        _ => words.join(""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_have_suffixes_of_1024() {
        for (text, size) in [
            ("0", Some(0)),
            ("64K", Some(65_536)),
            ("64m", Some(64 << 20)),
            ("2G", Some(2 << 30)),
            ("1T", Some(1 << 40)),
            ("18446744073709551615", Some(u64::MAX)),
            ("18446744073709551616", None),
            ("18446744073709551615K", None),
            ("16777216T", None),
            ("K", None),
            ("", None),
            ("1KB", None),
            ("1.5G", None),
            ("-1", None),
            ("+1", None),
            ("0x10", None),
            ("1 K", None),
            ("١", None),
            ("1é", None),
        ] {
            assert_eq!(bytes(text), size, "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in ".{0,12}") {
            let _ = (bytes(&text), digits(&text));
        }

        #[test]
        fn digits_read_back(number: u64) {
            prop_assert_eq!(digits(&number.to_string()), Some(number));
            prop_assert_eq!(bytes(&number.to_string()), Some(number));
        }
    }
}
