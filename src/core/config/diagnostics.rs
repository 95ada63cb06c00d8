//! What is wrong with a configuration file, and where: `file:line:column: error: message`, the line, a caret.
//!
//! Reporting never fails and never trusts what it prints: control characters are escaped, long lines are cut around the caret.

use std::collections::BTreeSet;
use std::fmt::{self, Write as _};
use std::path::{Path, PathBuf};

/// Characters of a source line that are shown around the caret.
const WINDOW: usize = 100;
/// Longest message; a line of the file that is quoted in it may be long.
const MAX_MESSAGE: usize = 600;
/// Most diagnostics that are kept for one file; a binary file would have one per line.
const MAX_DIAGNOSTICS: usize = 200;

/// Whether the file can be used all the same.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Severity {
    Error,
    Warning,
}

/// A place in a file. Both count from 1, columns in characters.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Position {
    pub line: usize,
    pub column: usize,
}

/// One mistake. `Display` is the full text, with the source line and the caret where there is one; it has no final newline.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Diagnostic {
    pub path: PathBuf,
    /// `None` when the file as a whole is meant (a missing key).
    pub position: Option<Position>,
    pub severity: Severity,
    /// One sentence without a position, not escaped.
    pub message: String,
    /// The part of the source line that is shown.
    pub excerpt: Option<Excerpt>,
}

/// A source line as it is shown: printable, cut around the place when it is long.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Excerpt {
    pub text: String,
    /// Characters of `text` before the caret.
    pub caret: usize,
}

impl Diagnostic {
    /// About a file as a whole.
    pub fn of_file(path: &Path, severity: Severity, message: impl Into<String>) -> Self {
        Self {
            path: path.to_owned(),
            position: None,
            severity,
            message: message.into(),
            excerpt: None,
        }
    }

    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }

    /// The first line only: position, severity and message. For logs.
    pub fn headline(&self) -> String {
        let word = match self.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        let path = printable(&self.path.to_string_lossy());
        let place = match self.position {
            Some(Position { line, column }) => format!("{path}:{line}:{column}"),
            None => path,
        };
        let mut message: String = printable(&self.message);
        if message.chars().count() > MAX_MESSAGE {
            message = message.chars().take(MAX_MESSAGE).collect();
            message.push_str("...");
        }
        format!("{place}: {word}: {message}")
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.headline())?;
        if let Some(Excerpt { text, caret }) = &self.excerpt {
            write!(f, "\n  {text}\n  {:caret$}^", "", caret = *caret)?;
        }
        Ok(())
    }
}

/// Text that a terminal can be shown: control, bidirectional and invisible characters appear as escapes, tabs as one blank.
pub fn printable(text: &str) -> String {
    text.chars().fold(String::new(), |mut out, c| {
        push_printable(&mut out, c);
        out
    })
}

fn push_printable(out: &mut String, c: char) {
    let plain = matches!(c, '"' | '\'' | '\\') || c.escape_debug().len() == 1;
    if c == '\t' {
        out.push(' ');
    } else if plain {
        out.push(c);
    } else {
        let _ = write!(out, "{}", c.escape_debug());
    }
}

impl Excerpt {
    /// The part of a line around a column (from 1).
    pub fn new(line: &str, column: usize) -> Self {
        let at = column.saturating_sub(1);
        let length = line.chars().count();
        let start = if length <= WINDOW {
            0
        } else {
            at.min(length)
                .saturating_sub(WINDOW / 2)
                .min(length - WINDOW)
        };
        let mut text = String::new();
        let mut caret = None;
        if start > 0 {
            text.push_str("...");
        }
        for (index, c) in line.chars().enumerate().skip(start).take(WINDOW) {
            if index == at {
                caret = Some(text.chars().count());
            }
            push_printable(&mut text, c);
        }
        let caret = caret.unwrap_or_else(|| text.chars().count());
        if start + WINDOW < length {
            text.push_str("...");
        }
        Self { text, caret }
    }
}

/// Collects everything that is wrong with one file, so that one run shows it all.
#[derive(Debug, Default)]
pub struct Report {
    diagnostics: Vec<Diagnostic>,
    dropped: usize,
    failed: bool,
    muted: BTreeSet<usize>,
}

impl Report {
    pub fn add(&mut self, diagnostic: Diagnostic) {
        self.failed |= diagnostic.is_error();
        let line = diagnostic.position.map(|p| p.line);
        if line.is_some_and(|line| self.muted.contains(&line)) {
            return;
        }
        if self.is_full() {
            self.count_only(diagnostic.severity);
        } else {
            self.diagnostics.push(diagnostic);
        }
    }

    /// Shows nothing more about a line: its syntax is wrong, so what follows from it would mislead.
    pub fn mute(&mut self, line: usize) {
        self.muted.insert(line);
    }

    /// Whether an error was added.
    pub fn failed(&self) -> bool {
        self.failed
    }

    /// Whether more of them would only be counted, so that nobody need look up places in a huge file.
    pub fn is_full(&self) -> bool {
        self.diagnostics.len() >= MAX_DIAGNOSTICS
    }

    /// Counts one that is not shown.
    pub fn count_only(&mut self, severity: Severity) {
        self.failed |= severity == Severity::Error;
        self.dropped += 1;
    }

    /// How many were added so far. Grows with every [`Report::add`].
    pub fn count(&self) -> usize {
        self.diagnostics.len() + self.dropped
    }

    /// All of them in the order of the file, those about the file as a whole last.
    pub fn into_diagnostics(mut self) -> Vec<Diagnostic> {
        self.diagnostics
            .sort_by_key(|d| (d.position.is_none(), d.position));
        if let (true, Some(last)) = (self.dropped > 0, self.diagnostics.last()) {
            let severity = if self.failed {
                Severity::Error
            } else {
                Severity::Warning
            };
            let more = format!("{} more mistakes are not shown", self.dropped);
            let path = last.path.clone();
            self.diagnostics
                .push(Diagnostic::of_file(&path, severity, more));
        }
        self.diagnostics
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(line: &str, column: usize) -> Diagnostic {
        Diagnostic {
            path: PathBuf::from("/etc/x.conf"),
            position: Some(Position { line: 3, column }),
            severity: Severity::Error,
            message: "wrong".to_owned(),
            excerpt: Some(Excerpt::new(line, column)),
        }
    }

    #[test]
    fn shows_position_line_and_caret() {
        assert_eq!(
            at("port = abc", 8).to_string(),
            "/etc/x.conf:3:8: error: wrong\n  port = abc\n         ^"
        );
    }

    #[test]
    fn tabs_and_control_characters_do_not_move_the_caret_away() {
        assert_eq!(
            at("\tport\u{1b}[31m= abc", 13).to_string(),
            "/etc/x.conf:3:13: error: wrong\n   port\\u{1b}[31m= abc\n                   ^"
        );
    }

    #[test]
    fn a_very_long_line_is_cut_around_the_caret() {
        let line = format!("{}X{}", "a".repeat(5000), "b".repeat(5000));
        let text = at(&line, 5001).to_string();
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[1].len() < 120, "{text}");
        assert_eq!(lines[1].find('X'), lines[2].find('^'));
    }

    #[test]
    fn a_caret_after_the_end_stands_after_the_end() {
        assert_eq!(
            at("key =", 6).to_string(),
            "/etc/x.conf:3:6: error: wrong\n  key =\n       ^"
        );
    }

    #[test]
    fn the_message_cannot_forge_lines() {
        let mut d = at("x", 1);
        d.message = "bad\nroot: fine \u{202e}".to_owned();
        assert!(d.headline().ends_with("bad\\nroot: fine \\u{202e}"));
    }

    #[test]
    fn mistakes_come_in_the_order_of_the_file_and_are_bounded() {
        let mut report = Report::default();
        report.add(Diagnostic::of_file(
            Path::new("f"),
            Severity::Warning,
            "whole",
        ));
        for line in (1..=300).rev() {
            let mut d = at("x", 1);
            d.position = Some(Position { line, column: 1 });
            report.add(d);
        }
        assert!(report.failed());
        let all = report.into_diagnostics();
        assert_eq!(all.len(), MAX_DIAGNOSTICS + 1);
        assert!(all.last().unwrap().message.contains("101 more mistakes"));
        assert!(all[0].position < all[1].position);
    }

    proptest! {
        #[test]
        fn rendering_never_fails_and_stays_small(line in "\\PC{0,300}|.{0,300}", column in 0usize..400) {
            let text = at(&line.replace('\n', " "), column).to_string();
            prop_assert_eq!(text.lines().count(), 3);
            prop_assert!(text.chars().all(|c| c == '\n' || !c.is_control()));
        }
    }
}
