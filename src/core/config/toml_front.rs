//! The TOML front end: fills the same raw values as the `.conf` grammars, with all syntax errors of the file in one run.

use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::diagnostics::{Report, Severity};
use super::raw::{Located, RawDocument, RawEntry, RawProfile, RawTable, RawValue, Style};
use super::source::SourceFile;
use crate::core::types::{ProfileName, ScriptName};

/// A script table as written.
pub(super) type RawScriptTable = (Located<ScriptName>, RawTable);

/// Reads `agent.toml` or `ctrl-exec.toml`.
pub(super) fn document(source: &SourceFile, report: &mut Report, agent: bool) -> RawDocument {
    let mut document = RawDocument::new(Style::Toml);
    document.top = parse(source, report);
    if !agent {
        return document;
    }
    if let Some(tags) = document.top.entries.remove("tags") {
        let hint = "'tags' must be a table: [tags]";
        document.tags = table_or_error(source, report, tags.value, hint).unwrap_or_default();
    }
    if let Some(executor) = document.top.entries.remove("executor") {
        let hint = "'executor' must be a table: [executor]";
        document.executor =
            table_or_error(source, report, executor.value, hint).unwrap_or_default();
    }
    if let Some(profiles) = document.top.entries.remove("profile") {
        let hint = "'profile' must be a table of profiles: [profile.NAME]";
        let profiles = table_or_error(source, report, profiles.value, hint).unwrap_or_default();
        for (name, entry) in profiles.entries {
            let span = entry.key_span;
            if let Err(wrong) = ProfileName::new(&name) {
                report.add(source.diagnostic(Severity::Error, &span, wrong.to_string()));
                continue;
            }
            let hint =
                format!("Profile section needs a name ([profile.<name>]): '{name}' is not a table");
            if let Some(table) = table_or_error(source, report, entry.value, &hint) {
                let profile = RawProfile {
                    name_span: span,
                    table,
                };
                document.profiles.insert(name, profile);
            }
        }
    }
    document
}

/// Reads `scripts.toml`: `[scripts.NAME]` tables and nothing else.
pub(super) fn scripts(source: &SourceFile, report: &mut Report) -> Vec<RawScriptTable> {
    let mut top = parse(source, report);
    let scripts = top.entries.remove("scripts");
    for (key, entry) in top.entries {
        let message = format!("unknown key '{key}'; allowed: [scripts.NAME] tables");
        report.add(source.diagnostic(Severity::Error, &entry.key_span, message));
    }
    let hint = "'scripts' must be a table of scripts: [scripts.NAME]";
    let scripts = scripts
        .and_then(|entry| table_or_error(source, report, entry.value, hint))
        .unwrap_or_default();
    let mut found = Vec::new();
    for (name, entry) in scripts.entries {
        let span = entry.key_span;
        let hint = format!("script '{name}' must be a table with 'path' and 'profile'");
        let table = table_or_error(source, report, entry.value, &hint);
        match (ScriptName::new(&name), table) {
            (Ok(name), Some(table)) => found.push((Located::new(name, span), table)),
            (Ok(_), None) => {}
            (Err(wrong), _) => {
                report.add(source.diagnostic(Severity::Error, &span, wrong.to_string()));
            }
        }
    }
    found
}

fn table_or_error(
    source: &SourceFile,
    report: &mut Report,
    value: Located<RawValue>,
    hint: &str,
) -> Option<RawTable> {
    if let RawValue::Table(table) = value.value {
        return Some(table);
    }
    report.add(source.diagnostic(Severity::Error, &value.span, hint));
    None
}

fn parse(source: &SourceFile, report: &mut Report) -> RawTable {
    for line in source.broken_lines() {
        let message = format!("the line is not valid UTF-8 in '{}'", source.path.display());
        let at = line.start + line.text.find('\u{fffd}').unwrap_or(0);
        report.add(source.diagnostic(Severity::Error, &(at..at), message));
    }
    let (document, mut errors) = DeTable::parse_recoverable(&source.text);
    errors.sort_by_key(|error| error.span().map(|span| span.start));
    if let Some(first) = errors.first() {
        if let Some(hint) = ini_hint(source) {
            // Dozens of followers would only hide what is wrong.
            add_syntax_error(source, report, first);
            report.add(source.of_file(Severity::Error, hint));
            return RawTable::default();
        }
        let line_of = |e: &toml::de::Error| source.line_number(e.span().unwrap_or(0..0).start);
        let said = |e: &toml::de::Error, words: &str| e.message().contains(words);
        let unclosed = errors.iter().any(|e| said(e, "unclosed array"));
        let open_line = errors
            .iter()
            .find(|e| unclosed && said(e, "array"))
            .map(line_of);
        for error in &errors {
            if open_line.is_some_and(|line| line_of(error) >= line) {
                // Everything below was taken for a part of the array.
                let message =
                    "an array that begins in this line or above is not closed, expected `,` or `]`";
                let span = error.span().unwrap_or(0..0);
                report.add(source.diagnostic(Severity::Error, &span, message));
                return RawTable::default();
            }
            add_syntax_error(source, report, error);
        }
    }
    table(document.into_inner())
}

/// Adds the first error of a line; the parser's further ones about the same line, and ours, would mislead.
fn add_syntax_error(source: &SourceFile, report: &mut Report, error: &toml::de::Error) {
    if report.is_full() {
        return report.count_only(Severity::Error);
    }
    let span = error.span().unwrap_or(0..0);
    let message = error.message().replace('\n', ", ");
    report.add(source.diagnostic(Severity::Error, &span, message));
    report.mute(source.line_number(span.start));
}

/// What to say when the content is a `.conf` under the name of a TOML file.
fn ini_hint(source: &SourceFile) -> Option<String> {
    let bare_path = |line: &str| {
        line.split_once('=')
            .is_some_and(|(_, value)| value.trim().starts_with('/'))
    };
    let spaced_section = |line: &str| {
        line.strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'))
            .is_some_and(|inner| inner.trim().starts_with("profile "))
    };
    let looks_so = source
        .lines()
        .map(|line| line.text.trim())
        .any(|line| bare_path(line) || spaced_section(line));
    looks_so.then(|| {
        "this looks like the .conf syntax, not TOML: give the file the extension .conf, or turn it into TOML with 'config convert' (in TOML a text stands in quotes and a profile is [profile.NAME])".to_owned()
    })
}

fn table(table: DeTable<'_>) -> RawTable {
    let mut raw = RawTable::default();
    for (key, value) in table {
        let entry = RawEntry {
            key_span: key.span(),
            value: value_of(value),
        };
        raw.entries.insert(key.into_inner().into_owned(), entry);
    }
    raw
}

fn value_of(value: Spanned<DeValue<'_>>) -> Located<RawValue> {
    let span: Range<usize> = value.span();
    let raw = match value.into_inner() {
        DeValue::String(text) => RawValue::Text(text.into_owned()),
        DeValue::Integer(number) => match i64::from_str_radix(number.as_str(), number.radix()) {
            Ok(number) => RawValue::Integer(number),
            Err(_) => RawValue::Other("an integer beyond 64 bits"),
        },
        DeValue::Boolean(b) => RawValue::Boolean(b),
        DeValue::Array(items) => RawValue::List(items.into_iter().map(value_of).collect()),
        DeValue::Table(inner) => RawValue::Table(table(inner)),
        DeValue::Float(_) => RawValue::Other("a float"),
        DeValue::Datetime(_) => RawValue::Other("a date"),
    };
    Located::new(raw, span)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::path::Path;

    fn said(text: &str) -> Vec<String> {
        let source = SourceFile::new(Path::new("a.toml"), text.as_bytes());
        let mut report = Report::default();
        document(&source, &mut report, true);
        let said = report.into_diagnostics();
        said.iter().map(|d| d.headline()).collect()
    }

    #[test]
    fn several_syntax_errors_come_in_one_run() {
        let said = said("port = \nbind = \"x\nok = 1\nok = 2\n");
        assert!(said.len() >= 3, "{said:#?}");
        assert!(said[0].starts_with("a.toml:1:"));
        assert!(said[1].starts_with("a.toml:2:"));
    }

    #[test]
    fn an_ini_file_gets_a_hint_instead_of_dozens_of_errors() {
        let said = said(
            "port = 7443\ncert = /etc/x.crt\nkey = /etc/x.key\n[profile default]\nrun_as = nobody\n",
        );
        assert_eq!(said.len(), 2, "{said:#?}");
        assert!(said[0].starts_with("a.toml:2:8: error: "), "{said:#?}");
        assert!(said[1].contains("looks like the .conf syntax"));
    }

    #[test]
    fn an_open_array_is_one_error_not_one_per_line() {
        let said = said(
            "cert = \"/etc/x\nbind = [ \"a\",\nport = 1\n[profile.default]\nrun_as = 1\nx = \n",
        );
        assert_eq!(said.len(), 2, "{said:#?}");
        assert!(said[0].starts_with("a.toml:1:15: error: invalid basic string"));
        assert!(said[1].starts_with("a.toml:3:"), "{said:#?}");
        assert!(said[1].contains("an array that begins in this line or above is not closed"));
    }

    #[test]
    fn tables_of_the_wrong_kind_are_named() {
        let said = said("tags = 1\n[profile]\nx = 2\n\"a/b\" = {}\n");
        assert_eq!(said.len(), 3, "{said:#?}");
        assert!(said[0].contains("1:8: error: 'tags' must be a table"));
        assert!(said[1].contains("3:5: error: Profile section needs a name"));
        assert!(said[2].contains("4:1: error: invalid profile name"));
    }

    #[test]
    fn bytes_that_are_not_utf8_are_an_error_with_the_line() {
        let source = SourceFile::new(Path::new("a.toml"), b"port = 1\n# \xff\n");
        let mut report = Report::default();
        document(&source, &mut report, true);
        assert!(report.failed());
        let said = report.into_diagnostics();
        assert!(said[0].headline().starts_with("a.toml:2:3: error: "));
    }

    proptest! {
        #[test]
        fn no_input_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let source = SourceFile::new(Path::new("f"), &bytes);
            document(&source, &mut Report::default(), true);
            scripts(&source, &mut Report::default());
        }

        #[test]
        fn no_likely_input_panics(text in "([\\[\\]{}=#\"', .\\n]|[a-z0-9]{1,3}|profile|tags|scripts){0,60}") {
            let source = SourceFile::new(Path::new("f"), text.as_bytes());
            document(&source, &mut Report::default(), true);
            scripts(&source, &mut Report::default());
        }
    }
}
