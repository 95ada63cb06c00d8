//! The original's `scripts.conf` (spec/agent.md 4.1, spec/executor.md 6). A line that does not fit loses its script, with a warning.

use std::collections::BTreeMap;

use super::conf_grammar::{is_text, span_of};
use super::diagnostics::{Report, Severity};
use super::raw::{Located, is_blank};
use super::reader::COMMENT_HINT;
use super::source::{Line, SourceFile};
use crate::core::types::ScriptName;

/// A script as written, with a name that is valid.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct RawScript {
    pub(super) name: ScriptName,
    pub(super) path: Located<String>,
    pub(super) profile: Option<Located<String>>,
}

/// Reads the lines. A name that stands on two lines is refused altogether: the original's two programs disagree about which line
/// counts (spec/executor.md 8).
pub(super) fn read(source: &SourceFile, report: &mut Report) -> Vec<RawScript> {
    let mut lines: BTreeMap<ScriptName, (usize, Option<RawScript>)> = BTreeMap::new();
    for line in source.lines() {
        let content = line.text.trim_matches(is_blank);
        if content.is_empty() || !is_text(source, report, line) || content.starts_with('#') {
            continue;
        }
        let Some(name) = name(line) else {
            let message = format!("Allowlist: skipping malformed line: {content}");
            report.add(source.diagnostic(Severity::Warning, &span_of(line), message));
            continue;
        };
        let script = match script(line, &name, source, report) {
            Ok(script) => Some(script),
            Err(why) => {
                let message = format!("Allowlist: skipping '{name}' - {why}");
                report.add(source.diagnostic(Severity::Warning, &span_of(line), message));
                None
            }
        };
        let number = source.line_number(line.start);
        if let Some((first, earlier)) = lines.get_mut(&name) {
            *earlier = None;
            let message = format!(
                "Allowlist: skipping '{name}' - the name stands in line {first} too; a script of two lines is refused, remove one of them"
            );
            report.add(source.diagnostic(Severity::Warning, &span_of(line), message));
        } else {
            lines.insert(name, (number, script));
        }
    }
    lines
        .into_values()
        .filter_map(|(_, script)| script)
        .collect()
}

fn name(line: Line<'_>) -> Option<ScriptName> {
    let (left, _) = line.text.split_once('=')?;
    ScriptName::new(left.trim_matches(is_blank)).ok()
}

fn script(
    line: Line<'_>,
    name: &ScriptName,
    source: &SourceFile,
    report: &mut Report,
) -> Result<RawScript, String> {
    let value_start = line.text.find('=').map_or(line.text.len(), |at| at + 1);
    let mut path: Option<Located<String>> = None;
    let mut profile = None;
    let mut bare = 0;
    for token in tokens(line.text, value_start) {
        let span = line.start + token.span.start..line.start + token.span.end;
        let token = Located::new(token.value, span);
        match annotation(&token.value) {
            Some(("profile", value)) => {
                let start = token.span.end - value.len();
                profile = Some(Located::new(value.to_owned(), start..token.span.end));
            }
            Some((key, _)) => {
                let message =
                    format!("annotation '{key}=' of '{name}' is ignored; only 'profile=' is known");
                report.add(source.diagnostic(Severity::Warning, &token.span, message));
            }
            None => {
                bare += 1;
                path.get_or_insert(token);
            }
        }
    }
    match path {
        None => Err("no script path".to_owned()),
        Some(_) if bare > 1 => {
            let hint = if line.text.contains(" #") || line.text.contains("\t#") {
                format!(" ({COMMENT_HINT})")
            } else {
                String::new()
            };
            Err(format!("more than one path on the line{hint}"))
        }
        Some(path) if !path.value.starts_with('/') => {
            Err(format!("path must be absolute: {}", path.value))
        }
        Some(path) => Ok(RawScript {
            name: name.clone(),
            path,
            profile,
        }),
    }
}

/// `[a-z_]+=...`
fn annotation(token: &str) -> Option<(&str, &str)> {
    let (key, value) = token.split_once('=')?;
    let fits = !key.is_empty() && key.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
    fits.then_some((key, value))
}

/// Words from `from` on, with their byte ranges in `text`.
fn tokens(text: &str, from: usize) -> Vec<Located<String>> {
    let mut found = Vec::new();
    let mut at = from;
    while let Some(rest) = text.get(at..) {
        let begin = at + rest.len() - rest.trim_start_matches(is_blank).len();
        let word = text.get(begin..).unwrap_or_default();
        let word = word.split(is_blank).next().unwrap_or_default();
        if word.is_empty() {
            break;
        }
        at = begin + word.len();
        found.push(Located::new(word.to_owned(), begin..at));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::path::Path;

    type Shown = (String, String, Option<String>);

    fn scripts(text: &str) -> (Vec<Shown>, Vec<String>) {
        let source = SourceFile::new(Path::new("s.conf"), text.as_bytes());
        let mut report = Report::default();
        let scripts = read(&source, &mut report)
            .into_iter()
            .map(|s| {
                let profile = s.profile.map(|p| p.value);
                (s.name.to_string(), s.path.value, profile)
            })
            .collect();
        assert!(!report.failed());
        let said = report.into_diagnostics();
        (scripts, said.iter().map(|d| d.headline()).collect())
    }

    #[test]
    fn order_of_annotation_and_path_is_free() {
        let (list, said) = scripts(
            "# c\n\na = /p/a\nb=profile=x /p/b\r\nc = /p/c profile=x profile=y\nd-_1 = /p/k=v\ne = /e profile=",
        );
        assert!(said.is_empty(), "{said:?}");
        let show = |s: &Shown| format!("{} {} {:?}", s.0, s.1, s.2);
        let shown: Vec<String> = list.iter().map(show).collect();
        assert_eq!(
            shown,
            [
                "a /p/a None",
                "b /p/b Some(\"x\")",
                "c /p/c Some(\"y\")",
                "d-_1 /p/k=v None",
                "e /e Some(\"\")"
            ]
        );
    }

    #[test]
    fn lines_that_do_not_fit_lose_their_script_with_a_warning() {
        for (line, why) in [
            ("nonsense", "malformed line"),
            ("a b = /x", "malformed line"),
            ("= /x", "malformed line"),
            ("[section]", "malformed line"),
            ("a =", "'a' - no script path"),
            ("a = profile=x", "'a' - no script path"),
            ("a = /x /y", "'a' - more than one path on the line"),
            ("a = /x # note", "inline '# ...' comments are not supported"),
            ("a = /x sha256=ff", "more than one path"),
            ("a = x/y", "'a' - path must be absolute: x/y"),
        ] {
            let (list, said) = scripts(line);
            assert!(list.is_empty(), "{line}");
            assert_eq!(said.len(), 1, "{line}: {said:?}");
            assert!(said[0].starts_with("s.conf:1:1: warning: Allowlist: skipping "));
            assert!(said[0].contains(why), "{line}: {said:?}");
        }
    }

    #[test]
    fn a_name_on_two_lines_is_refused_whatever_the_lines_say() {
        for text in ["a = /x\na = /y\n", "a = /x\na =\n", "a =\na = /x\na = /y\n"] {
            let (list, said) = scripts(text);
            assert!(list.is_empty(), "{text}");
            assert!(said.iter().any(|s| s.contains("stands in line 1 too")));
        }
    }

    #[test]
    fn unknown_annotations_are_named() {
        let (list, said) = scripts("a = /x digest=sha256:00 timeout=3\n");
        assert_eq!(list.len(), 1);
        assert!(said[0].contains("1:8: warning: annotation 'digest=' of 'a' is ignored"));
        assert_eq!(said.len(), 2);
    }

    proptest! {
        #[test]
        fn no_input_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let source = SourceFile::new(Path::new("f"), &bytes);
            read(&source, &mut Report::default());
        }

        #[test]
        fn no_likely_input_panics(text in "([=#/ \\t\\x0bé]|[a-z]{1,3}|profile=|\n){0,40}") {
            let (list, _) = scripts(&text);
            prop_assert!(list.iter().all(|s| s.1.starts_with('/')));
        }
    }
}
