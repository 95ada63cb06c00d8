//! The original's `agent.conf` (spec/agent.md 3.1) and `ctrl-exec.conf` (spec/dispatcher.md 2.1). They look alike and differ in
//! nearly every detail: each has its own function on purpose.

use super::diagnostics::{Report, Severity};
use super::raw::{Located, RawDocument, RawEntry, RawProfile, RawTable, RawValue, Style, is_blank};
use super::reader::COMMENT_HINT;
use super::source::{Line, SourceFile};
use super::words::closest;
use crate::core::types::ProfileName;

/// Where pairs go while an `agent.conf` is read.
enum Section {
    Top,
    Tags,
    Executor,
    Profile(String),
    /// Unknown, or a header that was reported already.
    Ignored,
}

/// Reads an `agent.conf`. Lines that do not fit are errors; unknown sections are warned about.
pub(super) fn agent(source: &SourceFile, report: &mut Report) -> RawDocument {
    let mut document = RawDocument::new(Style::Conf);
    let mut section = Section::Top;
    for line in source.lines() {
        let content = line.text.trim_matches(is_blank);
        if content.is_empty() || !is_text(source, report, line) || content.starts_with('#') {
            continue;
        }
        if content.starts_with('[') {
            section = header(source, report, line, &mut document);
            continue;
        }
        let Some((key, value)) = pair(line, true) else {
            let hint = if is_key_without_value(content) {
                " (the key has no value)"
            } else {
                ""
            };
            malformed(source, report, line, hint);
            continue;
        };
        let entry = entry(&key, value);
        match &section {
            Section::Top => document.top.insert(source, report, &key.value, entry),
            Section::Tags => document.tags.insert(source, report, &key.value, entry),
            Section::Executor => document.executor.insert(source, report, &key.value, entry),
            Section::Profile(name) => {
                if let Some(profile) = document.profiles.get_mut(name) {
                    profile.table.insert(source, report, &key.value, entry);
                }
            }
            Section::Ignored => {}
        }
    }
    document
}

/// Reads a `ctrl-exec.conf`. The original skips every line that does not fit; here each such line is warned about.
pub(super) fn dispatcher(source: &SourceFile, report: &mut Report) -> RawDocument {
    let mut document = RawDocument::new(Style::Conf);
    for line in source.lines() {
        let content = line.text.trim_matches(is_blank);
        if content.is_empty() || !is_text(source, report, line) || content.starts_with('#') {
            continue;
        }
        let mut skip = |why: &str| {
            let span = span_of(line);
            let message = format!("line ignored: {why}");
            report.add(source.diagnostic(Severity::Warning, &span, message));
        };
        if line.text.starts_with(is_blank) {
            skip("it begins with white space; a key must begin in the first column");
        } else if content.starts_with('[') {
            skip("this file has no sections");
        } else if let Some((key, value)) = pair(line, false) {
            let entry = entry(&key, value);
            document.top.insert(source, report, &key.value, entry);
        } else if is_key_without_value(content) {
            skip("the key has no value and stays unset");
        } else {
            skip("it is not of the form 'key = value'");
        }
    }
    document
}

/// Refuses bytes that no grammar of ours has: NUL anywhere, and what is not UTF-8 outside comments.
pub(super) fn is_text(source: &SourceFile, report: &mut Report, line: Line<'_>) -> bool {
    let comment = line.text.trim_start_matches(is_blank).starts_with('#');
    let fault = if let Some(at) = line.text.find('\0') {
        Some((at, "the line holds a NUL byte"))
    } else if line.not_utf8 && !comment {
        let at = line.text.find('\u{fffd}').unwrap_or(0);
        Some((at, "the line is not valid UTF-8"))
    } else {
        None
    };
    if let Some((at, why)) = fault {
        let span = line.start + at..line.start + line.text.len();
        let message = format!("{why} in '{}'", source.path.display());
        report.add(source.diagnostic(Severity::Error, &span, message));
    }
    fault.is_none()
}

/// The span of a line without surrounding blanks.
pub(super) fn span_of(line: Line<'_>) -> std::ops::Range<usize> {
    let lead = line.text.len() - line.text.trim_start_matches(is_blank).len();
    let end = line.text.trim_end_matches(is_blank).len().max(lead);
    line.start + lead..line.start + end
}

fn malformed(source: &SourceFile, report: &mut Report, line: Line<'_>, hint: &str) {
    let message = format!(
        "Malformed config line in '{}': {}{hint}",
        source.path.display(),
        line.text.trim_end_matches(is_blank)
    );
    report.add(source.diagnostic(Severity::Error, &span_of(line), message));
}

fn entry(key: &Located<String>, value: Located<String>) -> RawEntry {
    RawEntry {
        key_span: key.span.clone(),
        value: Located::new(RawValue::Text(value.value), value.span),
    }
}

/// `KEY = VALUE`; a value of nothing but blanks is one blank, as the original's pattern matches it.
fn pair(line: Line<'_>, hyphens: bool) -> Option<(Located<String>, Located<String>)> {
    let (left, right) = line.text.split_once('=')?;
    let key = left.trim_matches(is_blank);
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '_' || (hyphens && c == '-');
    if key.is_empty() || key.starts_with('-') || !key.chars().all(fits) || right.is_empty() {
        return None;
    }
    let key_start = line.start + left.find(key).unwrap_or(0);
    let mut value = right.trim_matches(is_blank);
    let lead = right.len() - right.trim_start_matches(is_blank).len();
    let mut value_start = line.start + left.len() + 1 + lead;
    if value.is_empty() {
        value = " ";
        value_start -= 1;
    }
    Some((
        Located::new(key.to_owned(), key_start..key_start + key.len()),
        Located::new(value.to_owned(), value_start..value_start + value.len()),
    ))
}

fn is_key_without_value(content: &str) -> bool {
    content
        .split_once('=')
        .is_some_and(|(key, value)| value.is_empty() && !key.trim_matches(is_blank).is_empty())
}

fn header(
    source: &SourceFile,
    report: &mut Report,
    line: Line<'_>,
    document: &mut RawDocument,
) -> Section {
    let span = span_of(line);
    let content = line.text.trim_matches(is_blank);
    let Some((name, sub)) = section_words(content) else {
        let comment = content
            .split_once(']')
            .is_some_and(|(_, rest)| rest.trim_start_matches(is_blank).starts_with('#'));
        let hint = if comment {
            format!(" ({COMMENT_HINT})")
        } else {
            String::new()
        };
        malformed(source, report, line, &hint);
        return Section::Ignored;
    };
    let lower = name.to_ascii_lowercase();
    let mut warn = |message: String| {
        report.add(source.diagnostic(Severity::Warning, &span, message));
    };
    if matches!(lower.as_str(), "tags" | "profile" | "executor") && lower != name {
        warn(format!(
            "section [{name}] is read as [{lower}]; the original's executor ignores it: write it in lower case"
        ));
    }
    match (lower.as_str(), sub) {
        ("tags", _) => Section::Tags,
        ("executor", None) => Section::Executor,
        ("executor", Some(sub)) => {
            let message = format!("[executor] takes no name, but is followed by '{sub}'");
            report.add(source.diagnostic(Severity::Error, &span, message));
            Section::Ignored
        }
        ("profile", None) => {
            let message = format!(
                "Profile section needs a name ([profile <name>]) in '{}'",
                source.path.display()
            );
            report.add(source.diagnostic(Severity::Error, &span, message));
            Section::Ignored
        }
        ("profile", Some(sub)) => match ProfileName::new(sub) {
            Ok(_) => {
                document
                    .profiles
                    .entry(sub.to_owned())
                    .or_insert_with(|| RawProfile {
                        name_span: span,
                        table: RawTable::default(),
                    });
                Section::Profile(sub.to_owned())
            }
            Err(wrong) => {
                let message = format!("{wrong} in '{}'", source.path.display());
                report.add(source.diagnostic(Severity::Error, &span, message));
                Section::Ignored
            }
        },
        _ => {
            if closest(&lower, &["executor"]).is_some() {
                // No older file has this section: passing over it would only drop the rules it was meant to set.
                let message = format!("unknown section [{name}]; did you mean [executor]?");
                report.add(source.diagnostic(Severity::Error, &span, message));
            } else {
                warn(format!("unknown section [{name}] is ignored"));
            }
            Section::Ignored
        }
    }
}

/// `[NAME]` or `[NAME SUB]`, with blanks anywhere between.
fn section_words(content: &str) -> Option<(&str, Option<&str>)> {
    let inner = content.strip_prefix('[')?.strip_suffix(']')?;
    let mut words = inner.split(is_blank).filter(|w| !w.is_empty());
    let (name, sub) = (words.next()?, words.next());
    let name_fits = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    let sub_fits = sub.is_none_or(|s| {
        s.bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
    });
    (words.next().is_none() && name_fits && sub_fits).then_some((name, sub))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::path::Path;

    fn read(
        grammar: fn(&SourceFile, &mut Report) -> RawDocument,
        text: &str,
    ) -> (RawDocument, Vec<String>) {
        let source = SourceFile::new(Path::new("f.conf"), text.as_bytes());
        let mut report = Report::default();
        let document = grammar(&source, &mut report);
        let lines = report.into_diagnostics();
        (document, lines.iter().map(|d| d.headline()).collect())
    }

    fn top<'a>(document: &'a RawDocument, key: &str) -> Option<&'a str> {
        match &document.top.entries.get(key)?.value.value {
            RawValue::Text(text) => Some(text),
            _ => None,
        }
    }

    #[test]
    fn agent_pairs() {
        let (document, said) = read(
            agent,
            " \t\r\n# c\n  # c\n port=1\r\na-b  =  x = y # z  \nblank = \nlast = 1",
        );
        assert!(said.is_empty(), "{said:?}");
        assert_eq!(top(&document, "port"), Some("1"));
        assert_eq!(top(&document, "a-b"), Some("x = y # z"));
        assert_eq!(top(&document, "blank"), Some(" "));
        assert_eq!(top(&document, "last"), Some("1"));
    }

    #[test]
    fn every_malformed_agent_line_is_an_error_with_its_number() {
        let bad = "key =\n-k = 1\nno equals\nk.x = 1\n= 1\n[my-sect]\n[]\n[profile a b]\n[profile x] # c\n[a] b\n[open\n";
        let (_, said) = read(agent, bad);
        assert_eq!(said.len(), 11, "{said:#?}");
        for (index, line) in said.iter().enumerate() {
            assert!(line.starts_with(&format!("f.conf:{}:1: error: ", index + 1)));
            assert!(
                line.contains("Malformed config line in 'f.conf': "),
                "{line}"
            );
        }
        assert!(said[8].contains("inline '# ...' comments are not supported"));
    }

    #[test]
    fn agent_sections() {
        let (document, said) = read(
            agent,
            "[ tags more ]\nscript_dirs = /x\n[Profile p.1]\nrun_as=a\n[other]\nport=1\n[profile p.1]\nrun_as=b\ncaps=CAP_KILL\n[profile]\n",
        );
        assert!(document.tags.entries.contains_key("script_dirs"));
        assert!(document.top.entries.is_empty());
        assert_eq!(document.profiles["p.1"].table.entries.len(), 2);
        assert_eq!(said.len(), 4, "{said:#?}");
        assert!(said[0].contains("warning: section [Profile]"));
        assert!(said[1].contains("'run_as' is set again in line 8"));
        assert!(said[2].contains("unknown section [other]"));
        assert!(said[3].contains("Profile section needs a name ([profile <name>]) in 'f.conf'"));
    }

    #[test]
    fn profile_names_of_128_bytes_are_errors() {
        let (_, said) = read(agent, &format!("[profile {}]\n", "p".repeat(128)));
        assert!(said[0].contains("error: invalid profile name"), "{said:?}");
        let (_, said) = read(agent, &format!("[profile {}]\n", "p".repeat(127)));
        assert!(said.is_empty());
    }

    #[test]
    fn nul_and_bad_utf8_are_errors_but_not_latin1_in_comments() {
        let source = SourceFile::new(Path::new("f"), b"# f\xfcr\na = \xff\nb = \0\nc = 1\n");
        for grammar in [agent, dispatcher] {
            let mut report = Report::default();
            let document = grammar(&source, &mut report);
            let said: Vec<String> = report
                .into_diagnostics()
                .iter()
                .map(|d| d.headline())
                .collect();
            assert_eq!(said.len(), 2);
            assert!(said[0].starts_with("f:2:5: error: the line is not valid UTF-8"));
            assert!(said[1].starts_with("f:3:5: error: the line holds a NUL byte"));
            assert_eq!(document.top.entries.len(), 1);
        }
    }

    #[test]
    fn dispatcher_quirks() {
        let (document, said) = read(
            dispatcher,
            "cert=/c\r\n key = /k\n[x]\nwhat\na-b = 1\nauth_hook =\nca_dir =  \n#c\nca = /a # b \nca = /b\n",
        );
        assert_eq!(top(&document, "cert"), Some("/c"));
        assert_eq!(top(&document, "key"), None);
        assert_eq!(top(&document, "auth_hook"), None);
        assert_eq!(top(&document, "ca_dir"), Some(" "));
        assert_eq!(top(&document, "ca"), Some("/b"));
        assert!(said.iter().all(|s| s.contains("warning")), "{said:#?}");
        assert!(said[0].starts_with("f.conf:2:2: warning: line ignored: it begins"));
        assert!(said[4].contains("stays unset"));
        assert_eq!(said.len(), 6);
    }

    proptest! {
        #[test]
        fn no_input_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let source = SourceFile::new(Path::new("f"), &bytes);
            let mut report = Report::default();
            agent(&source, &mut report);
            dispatcher(&source, &mut report);
        }

        #[test]
        fn no_likely_input_panics(text in "([\\[\\]=#\\t \\r\\x0bé]|[a-z]{1,3}|profile|tags|\n){0,40}") {
            let (_, said) = read(agent, &text);
            let (_, _) = read(dispatcher, &text);
            prop_assert!(said.len() <= text.lines().count() + 1);
        }
    }
}
