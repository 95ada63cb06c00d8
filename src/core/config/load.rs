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
        agent_of(source, is_toml, paths, report)
    })
}

/// The agent's configuration from bytes in memory; `.toml` at the end of `path` decides the grammar, and diagnostics name it. Nothing is
/// asked about who could have written them: for tests and fuzzing, and whoever has judged the file already.
///
/// # Errors
/// [`ConfigError::Invalid`]
pub fn parse_agent(
    paths: &Paths,
    path: &Path,
    bytes: &[u8],
) -> Result<Loaded<AgentConfig>, ConfigError> {
    let source = SourceFile::new(path, bytes);
    judged(&source, Report::default(), |source, report| {
        agent_of(source, is_toml(path), paths, report)
    })
}

fn agent_of(source: &SourceFile, is_toml: bool, paths: &Paths, report: &mut Report) -> AgentConfig {
    let raw = if is_toml {
        refuse_blank(source, report);
        toml_front::document(source, report, true)
    } else {
        conf_grammar::agent(source, report)
    };
    agent::build(raw, source, paths, last_capability(), report)
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
        allowlist_of(source, is_toml, paths, agent, report)
    })
}

/// The allowlist from bytes in memory, as [`parse_agent`].
///
/// # Errors
/// [`ConfigError::Invalid`]
pub fn parse_allowlist(
    paths: &Paths,
    path: &Path,
    bytes: &[u8],
    agent: &AgentConfig,
) -> Result<Loaded<Allowlist>, ConfigError> {
    let source = SourceFile::new(path, bytes);
    judged(&source, Report::default(), |source, report| {
        allowlist_of(source, is_toml(path), paths, agent, report)
    })
}

fn allowlist_of(
    source: &SourceFile,
    is_toml: bool,
    paths: &Paths,
    agent: &AgentConfig,
    report: &mut Report,
) -> Allowlist {
    let raw = if is_toml {
        let tables = toml_front::scripts(source, report);
        scripts::from_toml(tables, source, report)
    } else {
        scripts_conf::read(source, agent.executor.baseline, report)
    };
    let allowlist = scripts::build(raw, source, report);
    scripts::check_against_agent(&allowlist, agent, paths, source, report);
    allowlist
}

fn is_toml(path: &Path) -> bool {
    path.extension()
        .is_some_and(|e| e.eq_ignore_ascii_case("toml"))
}

/// Number of the last capability of the running kernel, if it tells.
fn last_capability() -> Option<u8> {
    let text = std::fs::read_to_string("/proc/sys/kernel/cap_last_cap").ok()?;
    text.trim().parse().ok()
}

/// An empty file is what a crash or a full disk leaves: not the same as "all defaults, please".
fn refuse_blank(source: &SourceFile, report: &mut Report) {
    if source.is_blank() {
        let message =
            "the file is empty: set at least one key, or write a comment if every default is meant";
        report.add(source.of_file(Severity::Error, message));
    }
}

/// Which file counts where `named` is given: service files name the usual `.conf`, but with the usual `.toml` beside it that one is
/// read, as by everybody who names no file. Two rules for one host would be one too many. Any other path is taken as it is.
pub fn in_force(paths: &Paths, named: PathBuf) -> PathBuf {
    let usual = [
        (paths.agent_conf(), paths.agent_toml()),
        (paths.scripts_conf(), paths.scripts_toml()),
    ];
    for (conf, toml) in usual {
        if named == conf && exists(&toml) {
            return toml;
        }
    }
    named
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
            is_toml: is_toml(path),
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
        judged(&source, report, |source, report| {
            parse(source, self.is_toml, report)
        })
    }
}

/// A value only where nothing was an error.
fn judged<T>(
    source: &SourceFile,
    mut report: Report,
    parse: impl FnOnce(&SourceFile, &mut Report) -> T,
) -> Result<Loaded<T>, ConfigError> {
    let value = parse(source, &mut report);
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

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn neither_file_names_both_and_what_to_do() {
        let host = Host::new();
        let text = host.agent().unwrap_err().to_string();
        assert!(text.starts_with(&format!(
            "Cannot open config '{}': No such file",
            host.at("/etc/ctrl-exec-agent/agent.conf").display()
        )));
        assert!(text.contains("agent.toml") && text.contains("create one"));
        host.write("/etc/ctrl-exec-agent/agent.toml", "port = 1");
        let text = host.allowlist().unwrap_err().to_string();
        assert!(text.starts_with("Cannot open allowlist '"), "{text}");
        assert!(matches!(
            host.dispatcher(),
            Err(ConfigError::Missing { kind: "config", .. })
        ));
    }

    #[test]
    fn toml_wins_and_names_the_ignored_file() {
        let host = Host::new();
        host.write("/etc/ctrl-exec-agent/agent.conf", "nonsense");
        let toml = host.write(
            "/etc/ctrl-exec-agent/agent.toml",
            "port = 1\nscript_dirs = [\"/a\"]",
        );
        let loaded = host.agent().unwrap();
        assert_eq!((loaded.value.port, loaded.value.source), (1, toml));
        assert_eq!(loaded.warnings.len(), 1);
        let said = loaded.warnings[0].headline();
        assert!(said.contains("agent.conf' is ignored because"), "{said}");
    }

    #[test]
    fn where_the_usual_conf_is_named_the_usual_toml_counts_if_it_is_there() {
        let host = Host::new();
        let paths = host.paths();
        for (conf, toml) in [
            (paths.agent_conf(), paths.agent_toml()),
            (paths.scripts_conf(), paths.scripts_toml()),
        ] {
            assert_eq!(in_force(&paths, conf.clone()), conf, "neither is there");
            std::os::unix::fs::symlink("/nonexistent", &toml).unwrap();
            assert_eq!(
                in_force(&paths, conf.clone()),
                toml,
                "nor is it passed over"
            );
            let other = conf.with_file_name("other.conf");
            assert_eq!(in_force(&paths, other.clone()), other);
        }
    }

    #[test]
    fn a_dangling_link_does_not_fall_back_to_the_other_file() {
        let host = Host::new();
        host.write("/etc/ctrl-exec-agent/agent.conf", REQUIRED);
        let link = host.at("/etc/ctrl-exec-agent/agent.toml");
        std::os::unix::fs::symlink("/nonexistent/agent.toml", &link).unwrap();
        assert!(matches!(host.agent(), Err(ConfigError::Open { path, .. }) if path == link));
    }

    #[test]
    fn an_explicit_path_decides_by_its_extension_and_is_not_moved() {
        let host = Host::new();
        let paths = host.paths();
        let conf = host.write("/mine", REQUIRED);
        let toml = host.write("/mine.toml", "port = 9\n");
        let load = |path: &Path| load_agent(&paths, Some(path)).map(|l| l.value.port);
        assert_eq!(load(&conf), Ok(7443));
        assert_eq!(load(&toml), Ok(9));
        let absent = load(Path::new("/nonexistent/x.conf")).unwrap_err();
        assert_eq!(
            absent.to_string(),
            "Cannot open config '/nonexistent/x.conf': No such file or directory"
        );
        let loaded = load_agent(&paths, Some(&conf)).unwrap().value;
        assert_eq!(loaded.source, conf);
        assert_eq!(loaded.cert, host.at("/etc/ctrl-exec-agent/agent.crt"));
    }

    #[test]
    fn who_may_write_a_file_decides_whether_it_is_read() {
        let host = Host::new();
        let path = host.write(
            "/etc/ctrl-exec-agent/agent.conf",
            &format!("{REQUIRED}{DIRS}"),
        );
        assert!(host.agent().unwrap().warnings.is_empty());
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o642)).unwrap();
        let text = host.agent().unwrap_err().to_string();
        assert!(text.starts_with("refusing to read '"), "{text}");
        assert!(text.contains("mode 0642"), "{text}");
    }

    #[test]
    fn the_display_of_an_error_shows_every_line_with_a_caret() {
        let text = agent_lines("port = x\nmax_children = y\n")
            .unwrap_err()
            .to_string();
        assert_eq!(text.matches("error: ").count(), 2, "{text}");
        assert_eq!(text.matches('^').count(), 3, "{text}");
        assert!(text.contains("warning: 'port' is set again in line 6"));
    }

    #[test]
    fn several_toml_faults_of_both_kinds_come_together() {
        let all = errors(agent_toml("port = 99999\nbind = \nprot = 1\n"));
        assert_eq!(all.len(), 3, "{all:#?}");
        assert!(all[0].contains(":1:8:") && all[1].contains(":2:") && all[2].contains(":3:1:"));
    }

    #[test]
    fn a_file_full_of_mistakes_has_a_short_report() {
        for text in [
            "x\n".repeat(500_000),
            format!("[profile p]\ncaps = {}\n", "a ".repeat(500_000)),
            "x".repeat(1_000_000),
        ] {
            let error = agent_conf(&text).unwrap_err();
            assert!(error.diagnostics().len() <= 201);
            assert!(error.to_string().len() < 400_000);
        }
        for text in [
            format!("[profile.p]\ncaps = [{}]\n", "\"a\",".repeat(200_000)),
            "a=1 ".repeat(200_000),
            "[".repeat(1_000_000),
        ] {
            assert!(agent_toml(&text).is_err());
        }
    }
}
