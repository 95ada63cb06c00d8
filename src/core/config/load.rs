//! Which file is read, by which front end, and what comes out: the only door into the configuration.

use std::path::{Path, PathBuf};

use super::diagnostics::{Diagnostic, Report, Severity};
use super::error::ConfigError;
use super::source::{Kind, SourceFile};
use super::{
    AgentConfig, Allowlist, DispatcherConfig, agent, conf_grammar, dispatcher, scripts,
    scripts_conf, toml_front,
};
use crate::core::paths::Paths;

/// A configuration with everything that should be said about it all the same.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Loaded<T> {
    pub value: T,
    /// Warnings only; the caller logs or prints them.
    pub warnings: Vec<Diagnostic>,
}

/// Reads `ctrl-exec.toml` or `ctrl-exec.conf`. An `explicit` path is taken as it is (no root prefix); `.toml` at its end decides the
/// grammar. `host_name` is the dispatcher id of a file that names none.
///
/// # Errors
/// No file, one that cannot be trusted, or a content with errors (all of them are listed).
pub fn load_dispatcher(
    paths: &Paths,
    explicit: Option<&Path>,
    host_name: &str,
) -> Result<Loaded<DispatcherConfig>, ConfigError> {
    let toml = paths.dispatcher_toml();
    let chosen = choose(explicit, toml, paths.dispatcher_conf(), Kind::Config)?;
    chosen.load(Kind::Config, |source, is_toml, report| {
        let raw = if is_toml {
            refuse_blank(source, report);
            toml_front::document(source, report, false)
        } else {
            conf_grammar::dispatcher(source, report)
        };
        dispatcher::build(raw, source, paths, host_name, report)
    })
}

/// Reads `agent.toml` or `agent.conf`; `explicit` as for [`load_dispatcher`].
///
/// # Errors
/// As [`load_dispatcher`].
pub fn load_agent(
    paths: &Paths,
    explicit: Option<&Path>,
) -> Result<Loaded<AgentConfig>, ConfigError> {
    let chosen = choose(
        explicit,
        paths.agent_toml(),
        paths.agent_conf(),
        Kind::Config,
    )?;
    chosen.load(Kind::Config, |source, is_toml, report| {
        let raw = if is_toml {
            refuse_blank(source, report);
            toml_front::document(source, report, true)
        } else {
            conf_grammar::agent(source, report)
        };
        agent::build(raw, source, paths, report)
    })
}

/// Reads `scripts.toml` or `scripts.conf`; `explicit` as for [`load_dispatcher`]. Whether the profiles exist is
/// [`check_profiles`](super::check_profiles)' question.
///
/// # Errors
/// As [`load_dispatcher`]. Lines of a `.conf` that the original skips are warnings.
pub fn load_allowlist(
    paths: &Paths,
    explicit: Option<&Path>,
    agent: &AgentConfig,
) -> Result<Loaded<Allowlist>, ConfigError> {
    let toml = paths.scripts_toml();
    let chosen = choose(explicit, toml, paths.scripts_conf(), Kind::Allowlist)?;
    chosen.load(Kind::Allowlist, |source, is_toml, report| {
        let raw = if is_toml {
            let tables = toml_front::scripts(source, report);
            scripts::from_toml(tables, source, report)
        } else {
            scripts_conf::read(source, report)
        };
        let allowlist = scripts::build(raw, source, report);
        scripts::warn_outside_dirs(&allowlist, agent, source, report);
        allowlist
    })
}

/// An empty file is what a crash or a full disk leaves: not the same as "all defaults, please".
fn refuse_blank(source: &SourceFile, report: &mut Report) {
    if source.is_blank() {
        let message =
            "the file is empty: set at least one key, or write a comment if every default is meant";
        report.add(source.of_file(Severity::Error, message));
    }
}

struct Chosen {
    path: PathBuf,
    is_toml: bool,
    warnings: Vec<Diagnostic>,
}

fn choose(
    explicit: Option<&Path>,
    toml: PathBuf,
    conf: PathBuf,
    kind: Kind,
) -> Result<Chosen, ConfigError> {
    if let Some(path) = explicit {
        return Ok(Chosen {
            path: path.to_owned(),
            is_toml: path
                .extension()
                .is_some_and(|e| e.eq_ignore_ascii_case("toml")),
            warnings: Vec::new(),
        });
    }
    match (exists(&toml), exists(&conf)) {
        (true, both) => {
            let message = format!(
                "'{}' is ignored because '{}' exists; remove one of them",
                conf.display(),
                toml.display()
            );
            let warning = Diagnostic::of_file(&toml, Severity::Warning, message);
            Ok(Chosen {
                path: toml,
                is_toml: true,
                warnings: if both { vec![warning] } else { Vec::new() },
            })
        }
        (false, true) => Ok(Chosen {
            path: conf,
            is_toml: false,
            warnings: Vec::new(),
        }),
        (false, false) => Err(ConfigError::Missing {
            kind: kind.word(),
            toml,
            conf,
        }),
    }
}

/// A file that we may not look at, or a link into nowhere, counts as being there: to pass over it could drop rules.
fn exists(path: &Path) -> bool {
    match std::fs::symlink_metadata(path) {
        Ok(_) => true,
        Err(e) => !matches!(
            e.kind(),
            std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory
        ),
    }
}

impl Chosen {
    fn load<T>(
        self,
        kind: Kind,
        parse: impl FnOnce(&SourceFile, bool, &mut Report) -> T,
    ) -> Result<Loaded<T>, ConfigError> {
        let (source, about_mode) = SourceFile::read(&self.path, kind)?;
        let mut report = Report::default();
        for warning in self.warnings.into_iter().chain(about_mode) {
            report.add(warning);
        }
        let value = parse(&source, self.is_toml, &mut report);
        let failed = report.failed();
        let diagnostics = report.into_diagnostics();
        if failed {
            return Err(ConfigError::Invalid { diagnostics });
        }
        Ok(Loaded {
            value,
            warnings: diagnostics,
        })
    }
}
