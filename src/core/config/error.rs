//! Why a configuration cannot be used. The texts keep the words of the original because users and tools search for them
//! (spec/agent.md 3, spec/executor.md 7.3).

use std::path::PathBuf;

use super::diagnostics::Diagnostic;
use crate::core::types::{ProfileName, ScriptName};

/// Whose fault it is: always the configuration's.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ConfigError {
    /// Neither the TOML nor the `.conf` file exists.
    #[error(
        "Cannot open {kind} '{}': No such file or directory, and there is no '{}' either: create one of them (new installations use the .toml), or name another file",
        .conf.display(), .toml.display()
    )]
    Missing {
        kind: &'static str,
        toml: PathBuf,
        conf: PathBuf,
    },
    /// The file that was asked for cannot be opened or read.
    #[error("Cannot open {kind} '{}': {reason}", .path.display())]
    Open {
        kind: &'static str,
        path: PathBuf,
        reason: String,
    },
    /// The file is there, but the wrong people could have written it.
    #[error("refusing to read '{}': {reason}", .path.display())]
    Untrusted { path: PathBuf, reason: String },
    /// The content is wrong; everything that is wrong is listed, warnings included.
    #[error("{}", .diagnostics.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Invalid { diagnostics: Vec<Diagnostic> },
}

impl ConfigError {
    /// The diagnostics, where the file could be read.
    pub fn diagnostics(&self) -> &[Diagnostic] {
        match self {
            Self::Invalid { diagnostics } => diagnostics,
            _ => &[],
        }
    }
}

/// Scripts whose profile nobody defined (spec/agent.md 3.5: no implicit `default`).
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error(
    "script(s) reference an undefined profile: {}; define each one with a {} section in '{}' (a script that names no profile uses 'default', which must be defined too)",
    .missing.iter().map(|(script, profile)| format!("{script} -> {profile}")).collect::<Vec<_>>().join(", "),
    if .source_file.extension().is_some_and(|end| end == "toml") { "[profile.NAME]" } else { "[profile ...]" },
    .source_file.display()
)]
pub struct UndefinedProfiles {
    pub missing: Vec<(ScriptName, ProfileName)>,
    /// The agent configuration in which they should be.
    pub source_file: PathBuf,
}
