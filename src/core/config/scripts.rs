//! The allowlist: from raw entries to [`Allowlist`], and the check across both files of an agent.

use std::path::Path;

use super::diagnostics::{Report, Severity};
use super::error::UndefinedProfiles;
use super::raw::{Located, Style};
use super::reader::Reader;
use super::scripts_conf::RawScript;
use super::source::SourceFile;
use super::toml_front::RawScriptTable;
use super::{AgentConfig, Allowlist, ScriptEntry};
use crate::core::profile;
use crate::core::types::{AbsolutePath, ProfileName};

/// The profile of a script that names none. It must be defined like any other.
pub const DEFAULT_PROFILE: &str = "default";

/// Turns the tables of `scripts.toml` into the form that `scripts.conf` has.
pub(super) fn from_toml(
    tables: Vec<RawScriptTable>,
    source: &SourceFile,
    report: &mut Report,
) -> Vec<RawScript> {
    let mut scripts = Vec::new();
    for (name, table) in tables {
        let context = format!("Script '{}': ", name.value);
        let mut r = Reader::new(source, report, Style::Toml, table, context);
        if !r.has("path") {
            r.error(
                &name.span,
                "'path' is missing: name the absolute path of the script",
            );
        }
        let (path, profile) = (r.text("path"), r.text("profile"));
        r.finish();
        if let Some(path) = path {
            scripts.push(RawScript {
                name: name.value,
                path,
                profile,
            });
        }
    }
    scripts
}

/// Validates the entries.
pub(super) fn build(
    scripts: Vec<RawScript>,
    source: &SourceFile,
    report: &mut Report,
) -> Allowlist {
    let mut allowlist = Allowlist {
        source: source.path.clone(),
        scripts: std::collections::BTreeMap::new(),
    };
    for script in scripts {
        let mut error = |span, message: String| {
            report.add(source.diagnostic(Severity::Error, span, message));
        };
        let name = &script.name;
        let path = match AbsolutePath::new(&script.path.value) {
            Ok(path) if script.path.value.len() <= 4095 => path,
            Ok(_) => {
                error(
                    &script.path.span,
                    format!("Script '{name}': path is longer than 4095 bytes"),
                );
                continue;
            }
            Err(_) => {
                let message = format!(
                    "Script '{name}': path must be absolute: {}",
                    script.path.value
                );
                error(&script.path.span, message);
                continue;
            }
        };
        match profile_name(script.profile.as_ref()) {
            Ok(profile) => {
                let entry = ScriptEntry { path, profile };
                allowlist.scripts.insert(script.name, entry);
            }
            Err((span, why)) => {
                let message = format!("script(s) reference an undefined profile: {name} -> {why}");
                error(&span, message);
            }
        }
    }
    if allowlist.scripts.is_empty() && !report.failed() {
        let message = "no script is allowed: the allowlist is empty";
        report.add(source.of_file(Severity::Warning, message));
    }
    allowlist
}

/// A name that cannot be a profile's can never be defined, so the script could never run.
fn profile_name(
    written: Option<&Located<String>>,
) -> Result<ProfileName, (std::ops::Range<usize>, String)> {
    let (text, span) = match written {
        Some(located) => (located.value.as_str(), located.span.clone()),
        None => (DEFAULT_PROFILE, 0..0),
    };
    ProfileName::new(text).map_err(|wrong| (span, format!("'{text}' ({wrong})")))
}

/// Warns about scripts that `script_dirs` will refuse. They stay listed: the directories may appear later.
pub(super) fn warn_outside_dirs(
    allowlist: &Allowlist,
    agent: &AgentConfig,
    source: &SourceFile,
    report: &mut Report,
) {
    for (name, entry) in &allowlist.scripts {
        if !profile::in_script_dirs(&entry.path, &agent.script_dirs) {
            let message = format!(
                "Allowlist: '{name}' will be refused - path not in approved script_dirs: {}",
                entry.path
            );
            report.add(source.of_file(Severity::Warning, message));
        }
    }
}

/// Every profile that a script resolves to must be defined, `default` included (spec/agent.md 3.5).
///
/// # Errors
/// Some are not; the error lists each script with its profile.
pub fn check_profiles(allowlist: &Allowlist, agent: &AgentConfig) -> Result<(), UndefinedProfiles> {
    let missing: Vec<_> = allowlist
        .scripts
        .iter()
        .filter(|(_, entry)| !agent.profiles.contains_key(&entry.profile))
        .map(|(name, entry)| (name.clone(), entry.profile.clone()))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(UndefinedProfiles {
        missing,
        source_file: Path::to_owned(&agent.source),
    })
}
