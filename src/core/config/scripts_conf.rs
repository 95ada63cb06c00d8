//! The original's `scripts.conf` (spec/agent.md 4.1, spec/executor.md 6). A line that does not fit loses its script, with a warning.

use std::collections::BTreeMap;

use super::Baseline;
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
    pub(super) digest: Option<Located<String>>,
    /// Seconds, as text.
    pub(super) timeout: Option<Located<String>>,
    pub(super) schema: Option<Located<String>>,
}

/// A line with nothing on it but what its tokens are.
#[derive(Debug, Default)]
struct Tokens {
    path: Option<Located<String>>,
    bare: usize,
    profile: Option<Located<String>>,
    digest: Option<Located<String>>,
    timeout: Option<Located<String>>,
    schema: Option<Located<String>>,
}

/// Reads the lines. A name that stands on two lines is refused altogether: the original's two programs disagree about which line
/// counts (spec/executor.md 8). In `strict` that and unknown annotations are errors.
pub(super) fn read(source: &SourceFile, baseline: Baseline, report: &mut Report) -> Vec<RawScript> {
    let doubt = match baseline {
        Baseline::Compat => Severity::Warning,
        Baseline::Strict => Severity::Error,
    };
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
        let script = match script(line, &name, source, doubt, report) {
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
            report.add(source.diagnostic(doubt, &span_of(line), message));
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
    doubt: Severity,
    report: &mut Report,
) -> Result<RawScript, String> {
    let value_start = line.text.find('=').map_or(line.text.len(), |at| at + 1);
    let mut found = Tokens::default();
    for token in tokens(line.text, value_start) {
        // As in TOML: it would reach terminals and logs, and no path needs it.
        if token.value.chars().any(char::is_control) {
            return Err("it holds a control character".to_owned());
        }
        let span = line.start + token.span.start..line.start + token.span.end;
        let token = Located::new(token.value, span);
        let mut say = |severity, span: &std::ops::Range<usize>, message: String| {
            report.add(source.diagnostic(severity, span, message));
        };
        let Some((key, value)) = annotation(&token.value) else {
            if let Some(hint) = misspelt_digest(&token.value) {
                say(
                    Severity::Error,
                    &token.span,
                    format!("Script '{name}': {hint}"),
                );
            }
            found.bare += 1;
            found.path.get_or_insert(token);
            continue;
        };
        let start = token.span.end - value.len();
        let value = Some(Located::new(value.to_owned(), start..token.span.end));
        let field = match key {
            // The last of several wins, as in the original.
            "profile" => {
                found.profile = value;
                continue;
            }
            "digest" => &mut found.digest,
            "timeout" => &mut found.timeout,
            "schema" => &mut found.schema,
            _ => {
                let what = match doubt {
                    Severity::Error => "unknown",
                    Severity::Warning => "ignored",
                };
                let message = format!(
                    "annotation '{key}=' of '{name}' is {what}; known are profile, digest, timeout, schema"
                );
                say(doubt, &token.span, message);
                continue;
            }
        };
        if field.is_some() {
            let message = format!("Script '{name}': '{key}=' stands on the line twice");
            say(Severity::Error, &token.span, message);
        }
        *field = value;
    }
    match found.path {
        None => Err("no script path".to_owned()),
        Some(_) if found.bare > 1 => {
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
            profile: found.profile,
            digest: found.digest,
            timeout: found.timeout,
            schema: found.schema,
        }),
    }
}

/// `sha256=...` and `sha256:...` are not annotations to the original but second paths: the whole line would be skipped.
fn misspelt_digest(token: &str) -> Option<String> {
    let lower = token.to_ascii_lowercase();
    let hash = ["sha256=", "sha256:", "digest:"]
        .iter()
        .find_map(|begin| lower.strip_prefix(begin))?;
    let hash = hash.trim_start_matches("sha256:");
    Some(format!(
        "'{token}' is no annotation (their names have no digits): write digest=sha256:{hash}"
    ))
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
        let scripts = read(&source, Baseline::Compat, &mut report)
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
            ("a = x/y", "'a' - path must be absolute: x/y"),
            ("a = /x\u{1b}[2J", "'a' - it holds a control character"),
            (
                "a = /x profile=\u{1d}",
                "'a' - it holds a control character",
            ),
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

    fn said(text: &str, baseline: Baseline) -> Vec<String> {
        let source = SourceFile::new(Path::new("s.conf"), text.as_bytes());
        let mut report = Report::default();
        read(&source, baseline, &mut report);
        let said = report.into_diagnostics();
        said.iter().map(|d| d.headline()).collect()
    }

    #[test]
    fn unknown_annotations_are_named_and_in_strict_refused() {
        let line = "a = /x digset=sha256:00 async=yes\n";
        let (list, warned) = scripts(line);
        assert_eq!(list.len(), 1);
        assert!(warned[0].contains("1:8: warning: annotation 'digset=' of 'a' is ignored"));
        assert_eq!(warned.len(), 2);
        let refused = said(line, Baseline::Strict);
        assert!(refused[0].contains("1:8: error: annotation 'digset=' of 'a' is unknown"));
        assert_eq!(refused.len(), 2);
    }

    #[test]
    fn two_lines_of_one_name_are_an_error_in_strict() {
        let refused = said("a = /x\na = /x\n", Baseline::Strict);
        assert_eq!(refused.len(), 1);
        assert!(refused[0].contains("2:1: error: "), "{refused:?}");
        assert!(refused[0].contains("stands in line 1 too"));
    }

    #[test]
    fn misspelt_digests_get_help_in_both_baselines() {
        for baseline in [Baseline::Compat, Baseline::Strict] {
            for token in [
                "sha256=FF00",
                "sha256:ff00",
                "digest:sha256:ff00",
                "SHA256=ff00",
            ] {
                let said = said(&format!("a = /x {token}\n"), baseline);
                assert!(said[1].contains("1:8: error: Script 'a': '"), "{said:?}");
                assert!(said[1].contains("write digest=sha256:ff00"), "{said:?}");
            }
            let twice = said("a = /x timeout=1 timeout=2\n", baseline);
            assert!(
                twice[0].contains("1:18: error: Script 'a': 'timeout=' stands on the line twice")
            );
        }
    }

    proptest! {
        #[test]
        fn no_input_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let source = SourceFile::new(Path::new("f"), &bytes);
            read(&source, Baseline::Strict, &mut Report::default());
        }

        #[test]
        fn no_likely_input_panics(text in "([=#/ \\t\\x0bé]|[a-z]{1,3}|profile=|\n){0,40}") {
            let (list, _) = scripts(&text);
            prop_assert!(list.iter().all(|s| s.1.starts_with('/')));
        }
    }
}
