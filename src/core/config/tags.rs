//! `[tags]` (spec/agent.md 3.4).

use std::collections::BTreeMap;

use super::diagnostics::{Report, Severity};
use super::raw::{RawTable, RawValue};
use super::source::SourceFile;

/// Tags are texts under names like those of keys; a tag named like a key is probably a key in the wrong place.
pub(super) fn build(
    raw: RawTable,
    known: &[&'static str],
    source: &SourceFile,
    report: &mut Report,
) -> BTreeMap<String, String> {
    let mut tags = BTreeMap::new();
    for (key, entry) in raw.entries {
        let fits = key
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
        let mut say = |severity, span, message: String| {
            report.add(source.diagnostic(severity, span, message));
        };
        if key.is_empty() || key.starts_with('-') || !fits {
            let message = format!(
                "invalid tag '{key}': use letters, digits, '_', '-', not beginning with '-'"
            );
            say(Severity::Error, &entry.key_span, message);
        } else if let RawValue::Text(value) = entry.value.value {
            if value.chars().any(|c| c.is_control() && c != '\t') {
                let message = format!("tag '{key}' holds a control character");
                say(Severity::Error, &entry.value.span, message);
            }
            if known.contains(&key.as_str()) {
                let message = format!(
                    "'{key}' below [tags] is only a tag: to set the key, move it above the first section"
                );
                say(Severity::Warning, &entry.key_span, message);
            }
            tags.insert(key, value);
        } else {
            let message = format!(
                "tag '{key}' must be a string, not {}",
                entry.value.value.kind()
            );
            say(Severity::Error, &entry.value.span, message);
        }
    }
    tags
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;

    #[test]
    fn tags_do_not_leak_and_are_not_settings() {
        let loaded =
            agent_lines("[tags]\nsite = a\nscript_dirs = /evil\n[tags]\nrole=b c\n").unwrap();
        let tags = &loaded.value.tags;
        assert_eq!((tags["site"].as_str(), tags["role"].as_str()), ("a", "b c"));
        assert_eq!(loaded.value.script_dirs[0].to_string(), "/opt");
        assert!(warnings(&loaded)[0].contains("'script_dirs' below [tags] is only a tag"));
        assert!(agent_lines("[tags]\n").unwrap().value.tags.is_empty());
    }
}
