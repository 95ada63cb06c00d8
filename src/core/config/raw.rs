//! What both front ends fill: keys and values as they were written, each with its place in the file. Nothing is judged here.

use std::collections::BTreeMap;
use std::ops::Range;

use super::diagnostics::{Report, Severity};
use super::source::SourceFile;

/// Which front end read the file. Decides the spelling of values, never their meaning.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Style {
    Conf,
    Toml,
}

/// A value and the bytes of the file that it came from.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Located<T> {
    pub(super) value: T,
    pub(super) span: Range<usize>,
}

impl<T> Located<T> {
    pub(super) fn new(value: T, span: Range<usize>) -> Self {
        Self { value, span }
    }
}

/// A value as its grammar has it. In `.conf` files everything is `Text`, verbatim.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum RawValue {
    Text(String),
    Integer(i64),
    Boolean(bool),
    List(Vec<Located<RawValue>>),
    Table(RawTable),
    /// Something no key of ours takes (a date, a float), by its name.
    Other(&'static str),
}

impl RawValue {
    /// The kind of value with its article, for messages.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Text(_) => "a string",
            Self::Integer(_) => "an integer",
            Self::Boolean(_) => "a boolean",
            Self::List(_) => "an array",
            Self::Table(_) => "a table",
            Self::Other(kind) => kind,
        }
    }
}

/// A key with its value.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct RawEntry {
    pub(super) key_span: Range<usize>,
    pub(super) value: Located<RawValue>,
}

/// One section.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct RawTable {
    pub(super) entries: BTreeMap<String, RawEntry>,
}

impl RawTable {
    /// Adds a pair; the last of several wins, as in the original, and the earlier one is warned about.
    pub(super) fn insert(
        &mut self,
        source: &SourceFile,
        report: &mut Report,
        key: &str,
        entry: RawEntry,
    ) {
        let line = source.line_number(entry.key_span.start);
        if let Some(old) = self.entries.insert(key.to_owned(), entry) {
            report.add(source.diagnostic(
                Severity::Warning,
                &old.key_span,
                format!("'{key}' is set again in line {line}, which wins"),
            ));
        }
    }
}

/// A profile section as written.
#[derive(Clone, Debug)]
pub(super) struct RawProfile {
    pub(super) name_span: Range<usize>,
    pub(super) table: RawTable,
}

/// `agent.*` or `ctrl-exec.*` as written.
#[derive(Clone, Debug)]
pub(super) struct RawDocument {
    pub(super) style: Style,
    pub(super) top: RawTable,
    pub(super) tags: RawTable,
    /// `[executor]`
    pub(super) executor: RawTable,
    pub(super) profiles: BTreeMap<String, RawProfile>,
}

impl RawDocument {
    pub(super) fn new(style: Style) -> Self {
        Self {
            style,
            top: RawTable::default(),
            tags: RawTable::default(),
            executor: RawTable::default(),
            profiles: BTreeMap::new(),
        }
    }
}

/// White space of the original's grammars: ASCII, with the vertical tab.
pub(super) fn is_blank(c: char) -> bool {
    c.is_ascii_whitespace() || c == '\u{b}'
}
