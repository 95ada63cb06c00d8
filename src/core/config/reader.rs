//! Typed access to a raw section: every getter validates, reports what is wrong with its place, and remembers the key so that what
//! is left over at the end is known to be unknown.

use std::net::IpAddr;
use std::ops::{Range, RangeInclusive};
use std::path::PathBuf;
use std::time::Duration;

use super::RateSpec;
use super::diagnostics::{Report, Severity};
use super::raw::{Located, RawTable, RawValue, Style, is_blank};
use super::source::SourceFile;
use super::words::closest;
use crate::core::paths::Paths;
use crate::core::types::AbsolutePath;

/// Tests and users search for the middle part (spec/executor.md 7.3).
pub(super) const COMMENT_HINT: &str =
    "inline '# ...' comments are not supported on value lines; put the comment on its own line";
/// Longest path (PATH_MAX without its NUL).
const MAX_PATH: usize = 4095;
const DAY: u64 = 86_400;

pub(super) struct Reader<'a> {
    pub(super) source: &'a SourceFile,
    pub(super) report: &'a mut Report,
    pub(super) style: Style,
    table: RawTable,
    known: Vec<&'static str>,
    /// Precedes every message: empty, or `Profile 'x': `.
    context: String,
    /// Set while a value is read that holds ` #`: its messages get the hint.
    comment: Option<Range<usize>>,
    /// What an unknown key is.
    unknown: Severity,
}

impl<'a> Reader<'a> {
    pub(super) fn new(
        source: &'a SourceFile,
        report: &'a mut Report,
        style: Style,
        table: RawTable,
        context: String,
    ) -> Self {
        Self {
            source,
            report,
            style,
            table,
            known: Vec::new(),
            context,
            comment: None,
            unknown: match style {
                Style::Conf => Severity::Warning,
                Style::Toml => Severity::Error,
            },
        }
    }

    /// Makes unknown keys errors, also in a `.conf` file.
    pub(super) fn refuse_unknown(&mut self) {
        self.unknown = Severity::Error;
    }

    fn add(&mut self, severity: Severity, span: &Range<usize>, message: &str) {
        if self.report.is_full() {
            return self.report.count_only(severity);
        }
        let hint = match &self.comment {
            Some(_) => format!(" ({COMMENT_HINT})"),
            None => String::new(),
        };
        let message = format!("{}{message}{hint}", self.context);
        self.report
            .add(self.source.diagnostic(severity, span, message));
    }

    pub(super) fn error(&mut self, span: &Range<usize>, message: &str) {
        self.add(Severity::Error, span, message);
    }

    pub(super) fn warn(&mut self, span: &Range<usize>, message: &str) {
        self.add(Severity::Warning, span, message);
    }

    /// `in '<path>'`, the end of the original's texts.
    pub(super) fn in_file(&self) -> String {
        format!("in '{}'", self.source.path.display())
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.table.entries.contains_key(key)
    }

    /// Drops a key that was judged already.
    pub(super) fn forget(&mut self, key: &str) {
        self.table.entries.remove(key);
    }

    /// Where a value stands, as long as it was not read.
    pub(super) fn value_span(&self, key: &str) -> Option<Range<usize>> {
        self.table.entries.get(key).map(|e| e.value.span.clone())
    }

    /// Reads a key with `parse`, which reports itself and answers `None` when the value cannot be used.
    pub(super) fn read<T>(
        &mut self,
        key: &'static str,
        parse: impl FnOnce(&mut Self, &Located<RawValue>) -> Option<T>,
    ) -> Option<T> {
        self.known.push(key);
        let value = self.table.entries.remove(key)?.value;
        let before = self.report.count();
        if let RawValue::Text(text) = &value.value {
            if text.trim_matches(is_blank).is_empty() && self.style == Style::Conf {
                self.error(
                    &value.span,
                    &format!("'{key}' has no value {}", self.in_file()),
                );
                return None;
            }
            if text.chars().any(|c| c.is_control() && c != '\t') {
                self.error(
                    &value.span,
                    &format!("'{key}' holds a control character {}", self.in_file()),
                );
                return None;
            }
            self.comment = self.inline_comment(text, &value.span);
        }
        let result = parse(self, &value);
        let comment = self.comment.take();
        if let (Some(span), true) = (comment, self.report.count() == before) {
            self.error(&span, &format!("'{key}': {COMMENT_HINT}"));
            return None;
        }
        result
    }

    fn inline_comment(&self, text: &str, span: &Range<usize>) -> Option<Range<usize>> {
        if self.style == Style::Toml {
            return None;
        }
        let at = text
            .match_indices('#')
            .map(|(at, _)| at)
            .find(|&at| at == 0 || text[..at].ends_with(is_blank))?;
        Some(span.start + at..span.end)
    }

    pub(super) fn expected<T>(
        &mut self,
        key: &str,
        value: &Located<RawValue>,
        what: &str,
    ) -> Option<T> {
        let message = format!("'{key}' must be {what}, not {}", value.value.kind());
        self.error(&value.span, &message);
        None
    }

    /// A text that is not empty.
    pub(super) fn text(&mut self, key: &'static str) -> Option<Located<String>> {
        self.read(key, |r, value| r.as_text(key, value))
    }

    pub(super) fn as_text(
        &mut self,
        key: &str,
        value: &Located<RawValue>,
    ) -> Option<Located<String>> {
        let RawValue::Text(text) = &value.value else {
            return self.expected(key, value, "a string");
        };
        if text.is_empty() {
            self.error(&value.span, &format!("'{key}' has no value"));
            return None;
        }
        Some(Located::new(text.clone(), value.span.clone()))
    }

    /// An absolute path of the system, moved by the root prefix.
    pub(super) fn path(&mut self, key: &'static str, paths: &Paths) -> Option<PathBuf> {
        self.read(key, |r, value| {
            let text = r.as_text(key, value)?;
            let path = r.absolute(&text, &format!("'{key}'"))?;
            Some(paths.resolve(path.as_path()))
        })
    }

    /// Judges one path; `what` begins the message.
    pub(super) fn absolute(&mut self, text: &Located<String>, what: &str) -> Option<AbsolutePath> {
        if text.value.len() > MAX_PATH {
            self.error(
                &text.span,
                &format!("{what} is longer than {MAX_PATH} bytes"),
            );
            return None;
        }
        match AbsolutePath::new(&text.value) {
            Ok(path) => Some(path),
            Err(_) => {
                let message = format!(
                    "{what} must be an absolute path: '{}' {}",
                    text.value,
                    self.in_file()
                );
                self.error(&text.span, &message);
                None
            }
        }
    }

    /// A whole number in a range; `wrong` replaces the begin of the message where the original has its own words.
    pub(super) fn integer(
        &mut self,
        key: &'static str,
        range: RangeInclusive<u64>,
        wrong: Option<String>,
    ) -> Option<u64> {
        self.read(key, |r, value| {
            let number = match &value.value {
                RawValue::Text(text) if r.style == Style::Conf => {
                    let digits = text.bytes().all(|b| b.is_ascii_digit());
                    digits.then(|| text.parse().unwrap_or(u64::MAX))
                }
                RawValue::Integer(number) => Some(u64::try_from(*number).unwrap_or(u64::MAX)),
                _ => None,
            };
            if let Some(number) = number.filter(|n| range.contains(n)) {
                return Some(number);
            }
            let found = match &value.value {
                RawValue::Text(text) => format!("'{text}'"),
                RawValue::Integer(number) => number.to_string(),
                other => other.kind().to_owned(),
            };
            let wrong = wrong.map(|w| format!("{w}: ")).unwrap_or_default();
            let message = format!(
                "{wrong}'{key}' must be a whole number from {} to {}, not {found}",
                range.start(),
                range.end()
            );
            r.error(&value.span, &message);
            None
        })
    }

    pub(super) fn seconds(
        &mut self,
        key: &'static str,
        range: RangeInclusive<u64>,
        default: Duration,
    ) -> Duration {
        self.integer(key, range, None)
            .map_or(default, Duration::from_secs)
    }

    pub(super) fn size(
        &mut self,
        key: &'static str,
        range: RangeInclusive<u64>,
        default: usize,
    ) -> usize {
        self.integer(key, range, None)
            .and_then(|n| usize::try_from(n).ok())
            .unwrap_or(default)
    }

    pub(super) fn days(
        &mut self,
        key: &'static str,
        range: RangeInclusive<u64>,
        default: u32,
    ) -> u32 {
        self.integer(key, range, None)
            .and_then(|n| u32::try_from(n).ok())
            .unwrap_or(default)
    }

    /// A port; 0 asks the kernel for one.
    pub(super) fn port(&mut self, key: &'static str, default: u16) -> u16 {
        let wrong = format!("{key} must be numeric {}", self.in_file());
        self.integer(key, 0..=65_535, Some(wrong))
            .and_then(|n| u16::try_from(n).ok())
            .unwrap_or(default)
    }

    /// A switch. The words are those of spec/executor.md 7.5 for every boolean; any other word is an error, never "off".
    pub(super) fn boolean(&mut self, key: &'static str, default: bool) -> bool {
        let read = self.read(key, |r, value| match &value.value {
            RawValue::Boolean(b) => Some(*b),
            RawValue::Text(text) if r.style == Style::Conf => {
                match text.to_ascii_lowercase().as_str() {
                    "1" | "y" | "yes" | "true" | "on" => Some(true),
                    "0" | "n" | "no" | "false" | "off" => Some(false),
                    _ => {
                        let message = format!(
                            "'{key}' must be one of 1 y yes true on, 0 n no false off, not '{text}' {}",
                            r.in_file()
                        );
                        r.error(&value.span, &message);
                        None
                    }
                }
            }
            _ => r.expected(key, value, "true or false"),
        });
        read.unwrap_or(default)
    }

    /// `limit/window/block`. A malformed one is warned about and the default stays (spec/agent.md 3.2); limit 0 = off.
    pub(super) fn rate(
        &mut self,
        key: &'static str,
        default: Option<RateSpec>,
    ) -> Option<RateSpec> {
        let read = self.read(key, |r, value| {
            let text = r.as_text(key, value)?;
            let spec = parse_rate(&text.value);
            if spec.is_none() {
                let shown = default.map_or("off".to_owned(), |d| d.to_string());
                let message = format!(
                    "'{key}' must be limit/window/block (three numbers, seconds), not '{}': the default {shown} stays",
                    text.value
                );
                r.warn(&text.span, &message);
            }
            spec
        });
        match read {
            Some(spec) if spec.limit == 0 => None,
            Some(spec) => Some(spec),
            None => default,
        }
    }

    /// Items of a list: an array of strings in TOML, text cut at `separator` in `.conf` (empty parts dropped). `judge` turns them
    /// into the value and reports what is wrong with them.
    pub(super) fn list<T>(
        &mut self,
        key: &'static str,
        separator: fn(char) -> bool,
        judge: impl FnOnce(&mut Self, Located<Vec<Located<String>>>) -> Option<T>,
    ) -> Option<T> {
        self.read(key, |r, value| {
            let items = match &value.value {
                RawValue::Text(text) if r.style == Style::Conf => {
                    split(text, value.span.start, separator)
                }
                RawValue::List(list) => list
                    .iter()
                    .filter_map(|item| r.as_text(key, item))
                    .collect(),
                _ => return r.expected(key, value, "an array of strings"),
            };
            judge(r, Located::new(items, value.span.clone()))
        })
    }

    pub(super) fn address(&mut self, key: &'static str) -> Option<IpAddr> {
        self.read(key, |r, value| {
            let text = r.as_text(key, value)?;
            let inner = text.value.trim_start_matches('[').trim_end_matches(']');
            if let Ok(address) = inner.parse() {
                return Some(address);
            }
            let message = format!(
                "'{key}' must be an IPv4 or IPv6 address, not '{}'",
                text.value
            );
            r.error(&text.span, &message);
            None
        })
    }

    /// Reports what nobody asked for: an error in TOML, a warning in `.conf` files, which the original reads without a word.
    pub(super) fn finish(self) {
        self.finish_with(&[]);
    }

    /// Like [`Reader::finish`], with names that are allowed beside the keys. Answers what is known.
    pub(super) fn finish_with(mut self, tables: &[&'static str]) -> Vec<&'static str> {
        let keys = self.known.clone();
        self.known.extend(tables);
        let left = std::mem::take(&mut self.table.entries);
        for (key, entry) in left {
            let message = match (self.unknown, closest(&key, &self.known)) {
                (Severity::Warning, None) => format!("unknown key '{key}' is ignored"),
                (Severity::Warning, Some(near)) => {
                    format!("unknown key '{key}' is ignored; did you mean '{near}'?")
                }
                (Severity::Error, Some(near)) => format!(
                    "unknown key '{key}'; did you mean '{near}'? Allowed: {}",
                    self.known.join(", ")
                ),
                (Severity::Error, None) => {
                    format!("unknown key '{key}'; allowed: {}", self.known.join(", "))
                }
            };
            self.add(self.unknown, &entry.key_span, &message);
        }
        keys
    }
}

pub(super) fn split(text: &str, start: usize, separator: fn(char) -> bool) -> Vec<Located<String>> {
    let mut items = Vec::new();
    let mut at = 0;
    for part in text.split(separator) {
        let item = part.trim_matches(|c| c == ' ' || c == '\t');
        if !item.is_empty() {
            let lead = part.find(item).unwrap_or(0);
            let begin = start + at + lead;
            items.push(Located::new(item.to_owned(), begin..begin + item.len()));
        }
        // Every separator in use is one ASCII character.
        at += part.len() + 1;
    }
    items
}

fn parse_rate(text: &str) -> Option<RateSpec> {
    let mut parts = text.split('/').map(|part| {
        let digits = !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
        digits.then(|| part.parse::<u32>().ok()).flatten()
    });
    let (limit, window, block) = (parts.next()??, parts.next()??, parts.next()??);
    let sane = parts.next().is_none()
        && window > 0
        && u64::from(window) <= 366 * DAY
        && u64::from(block) <= 366 * DAY;
    sane.then(|| RateSpec::new(limit, u64::from(window), u64::from(block)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rate_specs() {
        assert_eq!(parse_rate("10/60/300"), Some(RateSpec::new(10, 60, 300)));
        assert_eq!(parse_rate("0/60/300"), Some(RateSpec::new(0, 60, 300)));
        for bad in [
            "",
            "0",
            "1/2",
            "1/2/3/4",
            "a/b/c",
            "-1/2/3",
            "1/0/3",
            "1//3",
            "+1/2/3",
            "99999999999/1/1",
        ] {
            assert_eq!(parse_rate(bad), None, "{bad}");
        }
    }

    #[test]
    fn lists_know_where_their_items_stand() {
        let items = split(" a , ,bc", 10, |c| c == ',');
        assert_eq!(items[0], Located::new("a".to_owned(), 11..12));
        assert_eq!(items[1], Located::new("bc".to_owned(), 16..18));
    }
}
