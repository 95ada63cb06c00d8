//! What no script may see or change, from the paths that are really in use (spec/executor.md 15.4).

use std::path::{Component, Path, PathBuf};

use crate::core::config::{AgentConfig, Allowlist};
use crate::core::paths::Paths;
use crate::core::sandbox::ProtectedPaths;
use crate::core::types::{AbsolutePath, ProfileName};

/// Computes the protected paths. Whether they exist is not looked at. `socket`: where the
/// executor listens; `binary`: our own executable.
///
/// A directory that others use too is never hidden as a whole: then the socket itself is.
pub fn protected_paths(
    config: &AgentConfig,
    allowlist: &Allowlist,
    paths: &Paths,
    socket: Option<&Path>,
    binary: Option<&Path>,
) -> ProtectedPaths {
    let mut hide = Vec::new();
    for socket in socket.into_iter().chain(config.executor_socket.as_deref()) {
        match socket.parent() {
            Some(dir) if is_private(dir, config, allowlist) => hide.push(dir.to_owned()),
            parent => {
                hide.push(socket.to_owned());
                hide.extend(parent.map(|dir| dir.join("jobs")));
            }
        }
    }
    hide.push(config.key.clone());
    hide.push(config.async_runs_dir.clone());
    // It may come later; what is not there when a run begins is passed over then.
    hide.push(paths.dispatcher_etc());

    // The two directories of the original first.
    let mut read_only = vec![paths.agent_etc(), paths.agent_state()];
    read_only.extend([
        config.source.clone(),
        allowlist.source.clone(),
        config.cert.clone(),
        config.ca.clone(),
        config.trusted_dispatchers_path.clone(),
        config.revoked_serials.clone(),
        config.cert_staging_path.clone(),
        config.staged_ca(),
        config.pushed_revocations(),
        config.clock_floor(),
    ]);
    read_only.extend(config.auth_hook.as_ref().map(|hook| hook.path.clone()));
    read_only.extend(binary.map(Path::to_owned));
    read_only.extend(
        config
            .script_dirs
            .iter()
            .map(|dir| dir.as_path().to_owned()),
    );
    // Also what lies beside the two files.
    for file in [&config.source, &allowlist.source] {
        let dir = file.parent().filter(|dir| is_theirs(dir, config));
        read_only.extend(dir.map(Path::to_owned));
    }
    for entry in allowlist.scripts.values() {
        read_only.push(entry.path.as_path().to_owned());
        let schema = entry.annotations.schema.as_ref();
        read_only.extend(schema.map(|path| path.as_path().to_owned()));
    }
    ProtectedPaths {
        hide: tidy(hide),
        read_only: tidy(read_only),
    }
}

/// Whether a directory can be hidden without taking away what scripts need: it is not one of the system's common directories, and
/// no script and no configuration lives in it.
fn is_private(dir: &Path, config: &AgentConfig, allowlist: &Allowlist) -> bool {
    let scripts = allowlist.scripts.values().map(|entry| &entry.path);
    let working = config.profiles.values().map(|profile| &profile.cwd);
    let used = config
        .script_dirs
        .iter()
        .chain(scripts)
        .chain(working)
        .map(AbsolutePath::as_path)
        .chain([config.source.as_path(), allowlist.source.as_path()])
        .any(|path| path.starts_with(dir));
    !is_common(dir) && !used
}

/// Whether the directory of a configuration can be read-only as a whole: no profile keeps its data in it.
fn is_theirs(dir: &Path, config: &AgentConfig) -> bool {
    let dir = real(dir);
    let mut data = config.profiles.values().flat_map(|p| &p.writable);
    !is_common(&dir) && !data.any(|path| real(path.as_path()).starts_with(&dir))
}

/// A directory that much of the system shares.
fn is_common(dir: &Path) -> bool {
    const COMMON: [&str; 5] = ["/var/run", "/var/tmp", "/var/lib", "/dev/shm", "/run/user"];
    let normal = |c: &Component<'_>| matches!(c, Component::Normal(_));
    let shallow = dir.components().filter(normal).count() < 2;
    shallow || COMMON.iter().any(|common| dir == Path::new(common))
}

/// Without the root directory, relative paths and repetitions, in the order given.
fn tidy(list: Vec<PathBuf>) -> Vec<PathBuf> {
    let mut tidy: Vec<PathBuf> = Vec::new();
    for path in list {
        if path.is_absolute() && path != Path::new("/") && !tidy.contains(&path) {
            tidy.push(path);
        }
    }
    tidy
}

/// The protected path that a path lies in or is, once links and `..` are gone on both sides.
pub fn inside<'p>(path: &Path, protected: &'p ProtectedPaths) -> Option<&'p Path> {
    let path = real(path);
    protected
        .hide
        .iter()
        .chain(&protected.read_only)
        .map(PathBuf::as_path)
        .find(|dir| path.starts_with(dir) || path.starts_with(real(dir)))
}

/// What to say about a `writable` path inside a protected one.
pub fn conflict_text(profile: &ProfileName, path: &AbsolutePath, inside: &Path) -> String {
    format!(
        "Profile '{profile}': writable path '{path}' lies inside '{}', which no script may change: keep the data elsewhere",
        inside.display()
    )
}

/// All `writable` paths inside protected ones, as messages: for the executor, which knows more of the protected paths than the file
/// of the agent tells.
pub fn conflicts(config: &AgentConfig, protected: &ProtectedPaths) -> Vec<String> {
    let mut found = Vec::new();
    for (name, profile) in &config.profiles {
        for path in &profile.writable {
            if let Some(inside) = inside(path.as_path(), protected) {
                found.push(conflict_text(name, path, inside));
            }
        }
    }
    found
}

/// Where a path leads; what does not exist is taken as it is written below the last directory that does, with `..` resolved.
fn real(path: &Path) -> PathBuf {
    // Twice: behind a `..` of the part that does not exist another link may stand.
    resolve(&resolve(path))
}

fn resolve(path: &Path) -> PathBuf {
    for existing in path.ancestors() {
        if let Ok(real) = std::fs::canonicalize(existing) {
            let missing = path.strip_prefix(existing).unwrap_or(path);
            return plain(&real.join(missing));
        }
    }
    plain(path)
}

fn plain(path: &Path) -> PathBuf {
    let mut plain = PathBuf::from("/");
    for part in path.components() {
        match part {
            Component::ParentDir => {
                plain.pop();
            }
            Component::Normal(name) => plain.push(name),
            _ => {}
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::config::{Annotations, HookConfig, ProfileConfig, ScriptEntry};
    use crate::core::paths::Platform;
    use crate::core::types::ScriptName;

    fn absolute(path: &str) -> AbsolutePath {
        AbsolutePath::new(path).unwrap()
    }

    fn agent(root: &Path) -> (AgentConfig, Paths) {
        let paths = Paths::new(root, Platform::Standard);
        let config = AgentConfig::defaults(&paths, &paths.agent_conf());
        (config, paths)
    }

    fn script(path: &str) -> Allowlist {
        let entry = ScriptEntry {
            path: absolute(path),
            profile: ProfileName::new("p").unwrap(),
            annotations: Annotations {
                schema: Some(absolute("/usr/share/x.json")),
                ..Annotations::default()
            },
        };
        Allowlist {
            source: "/mine/scripts.conf".into(),
            scripts: [(ScriptName::new("a").unwrap(), entry)].into(),
        }
    }

    #[test]
    fn the_paths_in_use_count_not_two_constants() {
        let root = tempfile::tempdir().unwrap();
        let (mut config, paths) = agent(root.path());
        config.script_dirs = vec![absolute("/opt/s"), absolute("/")];
        config.key = "/keys/agent.key".into();
        config.source = "/mine/agent.conf".into();
        config.trusted_dispatchers_path = "/mine/map".into();
        config.auth_hook = Some(HookConfig {
            path: "/mine/hook".into(),
            timeout: std::time::Duration::from_secs(1),
        });
        let allowlist = script("/srv/x.sh");
        let socket = Path::new("/run/ctrl-exec-agent/exec.sock");
        let binary = Path::new("/usr/bin/ctrl-exec");
        let got = protected_paths(&config, &allowlist, &paths, Some(socket), Some(binary));
        let has = |list: &[PathBuf], path: &str| list.contains(&PathBuf::from(path));
        assert!(has(&got.hide, "/run/ctrl-exec-agent"));
        assert!(has(&got.hide, "/keys/agent.key"));
        assert!(got.hide.contains(&config.async_runs_dir));
        assert!(
            got.hide.contains(&paths.dispatcher_etc()),
            "even before it is there"
        );
        assert_eq!(got.hide.len(), 4, "{got:?}");
        for path in [
            "/mine/agent.conf",
            "/mine/scripts.conf",
            "/mine/map",
            "/mine/hook",
            "/usr/bin/ctrl-exec",
            "/opt/s",
            "/srv/x.sh",
            "/usr/share/x.json",
        ] {
            assert!(has(&got.read_only, path), "{path}");
        }
        assert!(got.read_only.contains(&paths.agent_etc()));
        assert!(got.read_only.contains(&paths.agent_state()));
        assert!(
            !has(&got.read_only, "/"),
            "that would make everything read-only"
        );

        std::fs::create_dir_all(paths.dispatcher_etc()).unwrap();
        let got = protected_paths(&config, &allowlist, &paths, None, None);
        assert!(got.hide.contains(&paths.dispatcher_etc()));
        assert!(!has(&got.hide, "/run/ctrl-exec-agent"));
    }

    #[test]
    fn the_directory_of_a_configuration_counts_unless_others_use_it() {
        let root = tempfile::tempdir().unwrap();
        let (mut config, paths) = agent(root.path());
        let dirs = |config: &AgentConfig, source: &str| {
            let mut config = config.clone();
            config.source = source.into();
            protected_paths(&config, &script("/x"), &paths, None, None).read_only
        };
        for (source, dir, whole) in [
            ("/srv/agent/agent.conf", "/srv/agent", true),
            ("/etc/agent.conf", "/etc", false),
            ("/var/lib/agent.conf", "/var/lib", false),
        ] {
            let found = dirs(&config, source).contains(&PathBuf::from(dir));
            assert_eq!(found, whole, "{source}");
        }
        let profile = ProfileConfig {
            writable: vec![absolute("/srv/agent/data")],
            ..ProfileConfig::default()
        };
        config
            .profiles
            .insert(ProfileName::new("p").unwrap(), profile);
        let found = dirs(&config, "/srv/agent/agent.conf");
        assert!(!found.contains(&PathBuf::from("/srv/agent")), "{found:?}");
        assert!(found.contains(&PathBuf::from("/srv/agent/agent.conf")));
    }

    #[test]
    fn a_shared_directory_of_the_socket_is_not_hidden_as_a_whole() {
        let root = tempfile::tempdir().unwrap();
        let (config, paths) = agent(root.path());
        for (socket, scripts) in [
            ("/run/exec.sock", "/srv/x.sh"),
            ("/var/tmp/exec.sock", "/srv/x.sh"),
            ("/tmp/t/exec.sock", "/tmp/t/scripts/x.sh"),
        ] {
            let socket = Path::new(socket);
            let got = protected_paths(&config, &script(scripts), &paths, Some(socket), None);
            assert!(got.hide.contains(&socket.to_owned()), "{got:?}");
            assert!(got.hide.contains(&socket.parent().unwrap().join("jobs")));
            assert!(!got.hide.contains(&socket.parent().unwrap().to_owned()));
        }
    }

    #[test]
    fn links_and_dots_do_not_hide_where_a_path_leads() {
        let root = tempfile::tempdir().unwrap();
        let base = std::fs::canonicalize(root.path()).unwrap();
        std::fs::create_dir_all(base.join("secret/deep")).unwrap();
        std::fs::create_dir(base.join("open")).unwrap();
        std::os::unix::fs::symlink(base.join("secret"), base.join("link")).unwrap();
        let protected = ProtectedPaths {
            hide: Vec::new(),
            read_only: vec![base.join("secret")],
        };
        for bad in [
            "secret",
            "secret/",
            "secret/deep/new/file",
            "link",
            "link/deep",
            "open/../secret/x",
            "open/new/../../secret/x",
            "./secret",
        ] {
            assert!(inside(&base.join(bad), &protected).is_some(), "{bad}");
        }
        for good in ["open", "secrets", "open/secret", ""] {
            assert!(inside(&base.join(good), &protected).is_none(), "{good}");
        }
        let by_link = ProtectedPaths {
            hide: vec![base.join("link")],
            read_only: Vec::new(),
        };
        assert!(inside(&base.join("secret/x"), &by_link).is_some());
        assert!(inside(&base.join("link/x"), &by_link).is_some());
    }

    #[test]
    fn conflicts_name_profile_and_both_paths() {
        let root = tempfile::tempdir().unwrap();
        let (mut config, paths) = agent(root.path());
        let profile = ProfileConfig {
            writable: vec![absolute("/usr/bin/ctrl-exec"), absolute("/srv")],
            ..ProfileConfig::default()
        };
        config
            .profiles
            .insert(ProfileName::new("p").unwrap(), profile);
        let binary = Some(Path::new("/usr/bin/ctrl-exec"));
        let protected = protected_paths(&config, &script("/x"), &paths, None, binary);
        let said = conflicts(&config, &protected);
        assert_eq!(said.len(), 1, "{said:?}");
        assert!(said[0].contains("Profile 'p': writable path '/usr/bin/ctrl-exec' lies inside '"));
    }
}
