//! Structured action lines (spec/operations.md 11): `ACTION=name`, then the other keys in ascending order.
//!
//! A value that is plain (no blanks, quotes, backslashes or control characters) stands as it is. Any other value is put in double
//! quotes and escaped, so that no value can forge a key or a line: that is the one deviation from the original's format.

mod background;
mod syslog;

use std::fmt::{self, Display, Formatter, Write as _};
use std::ops::Range;
use std::path::PathBuf;

use background::Background;
use syslog::Logger;

/// How urgent a line is; the names of the original.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Priority {
    Info,
    Warning,
    Err,
}

impl Priority {
    fn level(self) -> log::Level {
        match self {
            Self::Info => log::Level::Info,
            Self::Warning => log::Level::Warn,
            Self::Err => log::Level::Error,
        }
    }
}

/// One line in the making. Nothing is written before [`Action::info`], [`Action::warning`] or [`Action::err`].
///
/// A server writes several of them for each request: so all values stand in one text, and the line is put together where it is needed.
#[derive(Clone, Debug)]
#[must_use = "an action line is written by .info(), .warning() or .err()"]
pub struct Action {
    name: &'static str,
    /// The values, one behind the other.
    values: String,
    /// Sorted by key, each key once, and where its value stands.
    fields: Vec<(&'static str, Range<usize>)>,
}

/// Longest value that is written; the rest is replaced by `...` (a line stays below what syslog daemons take).
const MAX_VALUE: usize = 480;
/// Room for the values and the number of keys of an ordinary line.
const ORDINARY: (usize, usize) = (128, 8);

impl Action {
    pub fn new(name: &'static str) -> Self {
        Self {
            name,
            values: String::with_capacity(ORDINARY.0),
            fields: Vec::with_capacity(ORDINARY.1),
        }
    }

    /// Adds `KEY=value`. Keys are upper-case words.
    pub fn field(mut self, key: &'static str, value: impl Display) -> Self {
        self.put(key, &value);
        self
    }

    fn put(&mut self, key: &'static str, value: &dyn Display) {
        debug_assert!(key.bytes().all(|b| b.is_ascii_uppercase() || b == b'_'));
        let start = self.values.len();
        // Only a value that cannot be shown fails here, and then it is left out.
        let _ = write!(self.values, "{value}");
        let stands = start..self.values.len();
        match self.fields.binary_search_by_key(&key, |(key, _)| key) {
            Ok(at) => self.fields[at].1 = stands,
            Err(at) => self.fields.insert(at, (key, stands)),
        }
    }

    pub fn info(self) {
        self.emit(Priority::Info);
    }

    pub fn warning(self) {
        self.emit(Priority::Warning);
    }

    pub fn err(self) {
        self.emit(Priority::Err);
    }

    pub fn emit(self, priority: Priority) {
        log::log!(target: "action", priority.level(), "{self}");
    }
}

/// The line as it is written, without program name and priority.
impl Display for Action {
    fn fmt(&self, out: &mut Formatter<'_>) -> fmt::Result {
        out.write_str("ACTION=")?;
        escape(self.name, out)?;
        for (key, stands) in &self.fields {
            out.write_char(' ')?;
            out.write_str(key)?;
            out.write_char('=')?;
            escape(self.values.get(stands.clone()).unwrap_or_default(), out)?;
        }
        Ok(())
    }
}

fn escape(value: &str, out: &mut Formatter<'_>) -> fmt::Result {
    // Nearly everything is ASCII, and that is told without tables.
    let simple = |b: u8| b.is_ascii_graphic() && b != b'"' && b != b'\\';
    if value.len() <= MAX_VALUE && value.bytes().all(simple) {
        return out.write_str(value);
    }
    // Besides control characters: what reorders or hides text (bidirectional overrides, zero-width characters, line separators).
    let visible = |c: char| matches!(c, '"' | '\'' | '\\' | ' ') || c.escape_debug().len() == 1;
    let plain = |c: char| match c.is_ascii() {
        true => c.is_ascii_graphic() && c != '"' && c != '\\',
        false => !c.is_whitespace() && visible(c),
    };
    if value.len() <= MAX_VALUE && value.chars().all(plain) {
        return out.write_str(value);
    }
    out.write_char('"')?;
    for (at, c) in value.char_indices() {
        if at >= MAX_VALUE {
            out.write_str("...")?;
            break;
        }
        match c {
            '"' => out.write_str("\\\"")?,
            '\\' => out.write_str("\\\\")?,
            '\n' => out.write_str("\\n")?,
            '\r' => out.write_str("\\r")?,
            '\t' => out.write_str("\\t")?,
            c if !visible(c) => write!(out, "\\u{{{:x}}}", u32::from(c))?,
            c => out.write_char(c)?,
        }
    }
    out.write_char('"')
}

/// Where lines go.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Sink {
    /// The local syslog socket, with stderr as the fallback.
    Syslog(PathBuf),
    /// One line on stdout (`CTRL_EXEC_LOG=stdout`, for containers).
    Stdout,
    /// One line on stderr (`CTRL_EXEC_LOG=stderr`).
    Stderr,
}

impl Sink {
    /// Reads the value of `CTRL_EXEC_LOG`; anything but the two words means the syslog socket at `socket`.
    pub fn from_word(word: Option<&str>, socket: PathBuf) -> Self {
        match word {
            Some("stdout") => Self::Stdout,
            Some("stderr") => Self::Stderr,
            _ => Self::Syslog(socket),
        }
    }
}

/// Program name on every line: `ctrl-exec-agent`, `ctrl-exec-dispatcher` or `ctrl-exec-api`.
pub fn init(ident: &'static str, sink: Sink) {
    install(Box::new(Logger::new(ident, sink)));
}

/// The same for a server that answers everybody on one thread: lines are written by another one, so that a syslog daemon that takes its time
/// holds up nobody. Whoever ends calls [`flush`].
///
/// # Errors
/// There is no thread to be had; then nothing is installed.
pub fn init_in_background(ident: &'static str, sink: Sink) -> std::io::Result<()> {
    install(Box::new(Background::start(Logger::new(ident, sink))?));
    Ok(())
}

/// Waits until all lines are written that were logged so far, but no longer than a second.
pub fn flush() {
    log::logger().flush();
}

fn install(logger: Box<dyn log::Log>) {
    // A second call in one process (tests) keeps the first logger.
    if log::set_boxed_logger(logger).is_ok() {
        log::set_max_level(log::LevelFilter::Info);
    }
}

/// Libraries (rustls, hyper) may log through the same façade; only our own lines belong to the audit trail.
fn is_ours(metadata: &log::Metadata<'_>) -> bool {
    metadata.target() == "action"
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn action_stands_first_and_the_other_keys_are_sorted() {
        let line = Action::new("run")
            .field("SCRIPT", "check-disk")
            .field("EXIT", 0)
            .field("PEER", "10.0.0.1")
            .to_string();
        assert_eq!(line, "ACTION=run EXIT=0 PEER=10.0.0.1 SCRIPT=check-disk");
    }

    #[test]
    fn a_value_cannot_forge_a_key_or_a_line() {
        let line = Action::new("deny")
            .field("SCRIPT", "x\" ACTION=run\nACTION=run EXIT=0")
            .to_string();
        assert_eq!(
            line,
            "ACTION=deny SCRIPT=\"x\\\" ACTION=run\\nACTION=run EXIT=0\""
        );
        assert_eq!(Action::new("a").field("K", "").to_string(), "ACTION=a K=");
        let line = Action::new("a")
            .field("K", "it's\u{202e}\u{200b}ü")
            .to_string();
        assert_eq!(line, "ACTION=a K=\"it's\\u{202e}\\u{200b}ü\"");
    }

    proptest! {
        #[test]
        fn no_value_breaks_the_line(value in ".*") {
            let line = Action::new("a").field("K", &value).to_string();
            let splits = |c: char| c.is_control() || ['\u{2028}', '\u{2029}'].contains(&c);
            prop_assert!(!line.chars().any(splits));
            // Outside the quotes there is exactly one blank: the one before K.
            let mut outside = 0;
            let (mut quoted, mut escaped) = (false, false);
            for c in line.chars() {
                match c {
                    _ if escaped => escaped = false,
                    '\\' if quoted => escaped = true,
                    '"' => quoted = !quoted,
                    c if c.is_whitespace() && !quoted => outside += 1,
                    _ => {}
                }
            }
            prop_assert_eq!(outside, 1);
            prop_assert!(!quoted);
        }
    }
}
