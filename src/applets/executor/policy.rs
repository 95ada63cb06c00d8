//! Both files as one value, and when they are read again (spec/executor.md 3.4, 7.6).

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::house::Policy;
use crate::core::config::{
    AgentConfig, Allowlist, Baseline, ConfigError, Loaded, in_force, load_agent, load_allowlist,
};
use crate::core::paths::Paths;
use crate::core::profile::protected::{conflicts, protected_paths};
use crate::core::sandbox::ProtectedPaths;
use crate::core::secure_open;
use crate::core::types::{hex, sha256};

/// For the hash only; the configuration has its own limit.
const MAX_BYTES: u64 = 4 * 1024 * 1024;

/// What changes when somebody touches a file.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Stamp {
    place: (u64, u64),
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    /// `None`: not there, which is a state like any other.
    fn of(path: &Path) -> Option<Self> {
        let meta = std::fs::metadata(path).ok()?;
        Some(Self {
            place: (meta.dev(), meta.ino()),
            size: meta.size(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        })
    }
}

/// The two files and how they looked when they were read last.
#[derive(Debug)]
pub(super) struct Source {
    paths: Paths,
    config: PathBuf,
    allowlist: PathBuf,
    socket: PathBuf,
    binary: Option<PathBuf>,
    seen: [Option<Stamp>; 2],
}

/// What reading the files again has come to.
#[derive(Debug, Default, Eq, PartialEq)]
pub(super) struct Reloaded {
    /// Empty: everything is new. Else what of the old is still in force is kept, or everything is refused.
    pub(super) failures: Vec<String>,
    pub(super) warnings: Vec<String>,
}

impl Source {
    /// `socket`: where we listen. Which of two forms of a file counts is decided here, once: [`in_force`].
    pub(super) fn new(paths: Paths, config: PathBuf, allowlist: PathBuf, socket: PathBuf) -> Self {
        Self {
            config: in_force(&paths, config),
            allowlist: in_force(&paths, allowlist),
            paths,
            socket,
            binary: std::env::current_exe().ok(),
            seen: [None; 2],
        }
    }

    /// What scripts must not see or change under these two.
    pub(super) fn protected(&self, config: &AgentConfig, allowlist: &Allowlist) -> ProtectedPaths {
        let (socket, binary) = (Some(self.socket.as_path()), self.binary.as_deref());
        protected_paths(config, allowlist, &self.paths, socket, binary)
    }

    /// A profile must not be able to write to what decides about rights; the agent's file alone does not tell all of it.
    fn check_writable(&self, config: &AgentConfig, allowlist: &Allowlist) -> Result<(), String> {
        match conflicts(config, &self.protected(config, allowlist)) {
            found if found.is_empty() => Ok(()),
            found => Err(found.join("\n")),
        }
    }

    fn stamps(&self) -> [Option<Stamp>; 2] {
        [&self.config, &self.allowlist].map(|path| Stamp::of(path))
    }

    /// The first reading: everything must be in order.
    ///
    /// # Errors
    /// A file that cannot be used, or in `strict` one that others could have written.
    pub(super) fn load(&mut self) -> Result<(Policy, Reloaded), String> {
        // Before the content: what changes in between is read again for the first request.
        self.seen = self.stamps();
        let Loaded {
            value: config,
            warnings,
        } = self.read_config().map_err(|e| e.to_string())?;
        let mut said: Vec<String> = warnings.iter().map(ToString::to_string).collect();
        let allowlist = self.read_allowlist(&config).map_err(|e| e.to_string())?;
        said.extend(allowlist.warnings.iter().map(ToString::to_string));
        self.distrust(config.executor.baseline, &mut said)?;
        self.check_writable(&config, &allowlist.value)?;
        let policy = Policy {
            hash: self.hash(),
            config,
            allowlist: allowlist.value,
            refuse_all: None,
        };
        let told = Reloaded {
            failures: Vec::new(),
            warnings: said,
        };
        Ok((policy, told))
    }

    /// Whether the files must be looked at again. A trust that was lost may come back without a change of the files themselves.
    pub(super) fn has_changed(&self, policy: &Policy) -> bool {
        policy.refuse_all.is_some() || self.stamps() != self.seen
    }

    /// Reads again. A file with mistakes leaves its last good content in force, as in the original; an allowlist that cannot even be
    /// opened allows nothing; and in `strict` a file that must not be trusted any more ends all service until that is mended.
    pub(super) fn reload(&mut self, policy: &mut Policy) -> Reloaded {
        self.seen = self.stamps();
        let mut told = Reloaded::default();
        let mut untrusted = None;
        match self.read_config() {
            Ok(Loaded { value, warnings }) => {
                told.warnings
                    .extend(warnings.iter().map(ToString::to_string));
                match self.check_writable(&value, &policy.allowlist) {
                    Ok(()) => policy.config = value,
                    Err(conflict) => told.failures.push(conflict),
                }
            }
            Err(error) => {
                untrusted = lost_trust(&error);
                told.failures.push(error.to_string());
            }
        }
        // Also with the old configuration: a script that was taken off the list must not run because of a mistake elsewhere.
        match self.read_allowlist(&policy.config) {
            Ok(Loaded { value, warnings }) => {
                told.warnings
                    .extend(warnings.iter().map(ToString::to_string));
                let mut value = value;
                if let Err(conflict) = self.check_writable(&policy.config, &value) {
                    // A profile could write to what is new on the list: of that nothing counts.
                    let old = &policy.allowlist.scripts;
                    value
                        .scripts
                        .retain(|name, entry| old.get(name) == Some(&*entry));
                    told.failures.push(conflict);
                }
                policy.allowlist = value;
            }
            Err(error) => {
                untrusted = untrusted.or(lost_trust(&error));
                if matches!(
                    error,
                    ConfigError::Open { .. } | ConfigError::Missing { .. }
                ) {
                    policy.allowlist = Allowlist::default();
                }
                told.failures.push(error.to_string());
            }
        }
        let baseline = policy.config.executor.baseline;
        if let Err(reason) = self.distrust(baseline, &mut told.warnings) {
            told.failures.push(reason.clone());
            untrusted = untrusted.or(Some(reason));
        }
        policy.refuse_all = untrusted.filter(|_| baseline == Baseline::Strict);
        policy.hash = self.hash();
        told
    }

    fn read_config(&self) -> Result<Loaded<AgentConfig>, ConfigError> {
        load_agent(&self.paths, Some(&self.config))
    }

    fn read_allowlist(&self, config: &AgentConfig) -> Result<Loaded<Allowlist>, ConfigError> {
        load_allowlist(&self.paths, Some(&self.allowlist), config)
    }

    /// Whether somebody else than root could have written the files: an error in `strict`, a warning in `compat`.
    fn distrust(&self, baseline: Baseline, warnings: &mut Vec<String>) -> Result<(), String> {
        for path in [&self.config, &self.allowlist] {
            match secure_open::check_policy(path) {
                Ok(()) => {}
                // A file that is not there has been reported by whoever wanted to read it.
                Err(error) if error.is_not_found() => {}
                Err(error) if baseline == Baseline::Strict => return Err(error.to_string()),
                Err(error) => warnings.push(error.to_string()),
            }
        }
        Ok(())
    }

    /// Tells in the log which policy was in force.
    fn hash(&self) -> String {
        let bytes = |path| secure_open::read_bounded(path, MAX_BYTES).unwrap_or_default();
        let (config, allowlist) = (bytes(&self.config), bytes(&self.allowlist));
        let mut digits = hex(&sha256(&[&config, &[0], &allowlist]));
        digits.truncate(12);
        digits
    }
}

fn lost_trust(error: &ConfigError) -> Option<String> {
    matches!(error, ConfigError::Untrusted { .. }).then(|| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::paths::Platform;
    use crate::core::profile::{Refusal, resolve};
    use std::os::unix::fs::PermissionsExt as _;

    const CONFIG: &str = "port = 7443\ncert = /c\nkey = /k\nca = /a\n[profile default]\n";

    struct Files {
        dir: tempfile::TempDir,
    }

    impl Files {
        fn new() -> Self {
            let files = Self {
                dir: tempfile::tempdir().unwrap(),
            };
            files.write("agent.conf", CONFIG);
            files.write("scripts.conf", "a = /bin/true\n");
            files
        }

        fn write(&self, name: &str, text: &str) {
            std::fs::write(self.dir.path().join(name), text).unwrap();
        }

        fn source(&self) -> Source {
            let at = |name| self.dir.path().join(name);
            let paths = Paths::new("/", Platform::Standard);
            let socket = PathBuf::from("/run/ctrl-exec-agent/exec.sock");
            Source::new(paths, at("agent.conf"), at("scripts.conf"), socket)
        }
    }

    fn verdict(policy: &Policy, script: &str) -> Result<(), Refusal> {
        resolve(script, &policy.allowlist, &policy.config).map(|_| ())
    }

    #[test]
    fn every_kind_of_change_is_seen() {
        let files = Files::new();
        let mut source = files.source();
        let (mut policy, _) = source.load().unwrap();
        assert!(!source.has_changed(&policy));
        assert_eq!(policy.hash.len(), 12);
        let before = policy.hash.clone();

        // Same size, within the same second.
        files.write("scripts.conf", "b = /bin/true\n");
        assert!(source.has_changed(&policy));
        assert_eq!(source.reload(&mut policy).failures, Vec::<String>::new());
        assert!(!source.has_changed(&policy));
        assert_ne!(policy.hash, before);
        assert_eq!(verdict(&policy, "a"), Err(Refusal::NotPermitted));
        assert_eq!(verdict(&policy, "b"), Ok(()));

        // Rename-over.
        files.write(
            "new",
            &CONFIG.replace("[profile default]", "[profile other]"),
        );
        let at = |name| files.dir.path().join(name);
        std::fs::rename(at("new"), at("agent.conf")).unwrap();
        assert!(source.has_changed(&policy));
        source.reload(&mut policy);
        assert_eq!(verdict(&policy, "b"), Err(Refusal::UndefinedProfile));
    }

    #[test]
    fn a_file_with_mistakes_leaves_the_last_good_one_in_force_and_the_other_counts() {
        let files = Files::new();
        let mut source = files.source();
        let (mut policy, _) = source.load().unwrap();
        files.write("agent.conf", "nonsense\n");
        files.write("scripts.conf", "b = /bin/true\n");
        let told = source.reload(&mut policy);
        assert_eq!(told.failures.len(), 1, "{told:?}");
        assert_eq!(policy.refuse_all, None);
        assert_eq!(verdict(&policy, "a"), Err(Refusal::NotPermitted));
        assert_eq!(verdict(&policy, "b"), Ok(()));
        // Not tried again before something changes.
        assert!(!source.has_changed(&policy));
        files.write("agent.conf", CONFIG);
        assert!(source.has_changed(&policy));
        assert!(source.reload(&mut policy).failures.is_empty());
    }

    #[test]
    fn an_allowlist_that_is_gone_allows_nothing() {
        let files = Files::new();
        let mut source = files.source();
        let (mut policy, _) = source.load().unwrap();
        std::fs::remove_file(files.dir.path().join("scripts.conf")).unwrap();
        assert!(source.has_changed(&policy));
        assert_eq!(source.reload(&mut policy).failures.len(), 1);
        assert_eq!(verdict(&policy, "a"), Err(Refusal::NotPermitted));
        files.write("scripts.conf", "a = /bin/true\n");
        assert!(source.has_changed(&policy));
        source.reload(&mut policy);
        assert_eq!(verdict(&policy, "a"), Ok(()));
    }

    #[test]
    fn strict_stops_all_service_when_a_file_can_be_written_by_others() {
        let files = Files::new();
        let mut source = files.source();
        let (mut policy, told) = source.load().unwrap();
        // The temporary directory is enough for a warning.
        assert!(
            told.warnings
                .iter()
                .any(|w| w.contains("can be replaced by others"))
        );
        policy.config.executor.baseline = Baseline::Strict;
        let path = files.dir.path().join("agent.conf");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666)).unwrap();
        assert!(source.has_changed(&policy));
        source.reload(&mut policy);
        assert!(
            policy
                .refuse_all
                .as_ref()
                .is_some_and(|r| r.contains("0666"))
        );
        // Looked at for every request until it is mended.
        assert!(source.has_changed(&policy));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        source.reload(&mut policy);
        assert_eq!(policy.refuse_all, None);
    }

    #[test]
    fn a_script_that_a_profile_could_write_does_not_come_on_the_list_later() {
        let files = Files::new();
        let script = files.dir.path().join("x.sh");
        files.write(
            "agent.conf",
            &format!("{CONFIG}writable = {}\n", script.display()),
        );
        let mut source = files.source();
        let (mut policy, _) = source.load().unwrap();
        let list = format!("a = /bin/true\nb = {}\n", script.display());
        files.write("scripts.conf", &list);
        let told = source.reload(&mut policy);
        assert!(told.failures[0].contains("writable path"), "{told:?}");
        assert_eq!(verdict(&policy, "a"), Ok(()));
        assert_eq!(verdict(&policy, "b"), Err(Refusal::NotPermitted));
    }

    #[test]
    fn no_profile_may_write_where_rights_are_decided() {
        let files = Files::new();
        let mut source = files.source();
        let (mut policy, _) = source.load().unwrap();
        let writable = format!("{CONFIG}writable = /run/ctrl-exec-agent\n");
        files.write("agent.conf", &writable);
        let told = source.reload(&mut policy);
        assert_eq!(told.failures.len(), 1, "{told:?}");
        assert!(
            policy
                .config
                .profiles
                .values()
                .all(|p| p.writable.is_empty())
        );
        assert!(
            source
                .load()
                .unwrap_err()
                .contains("which no script may change")
        );
    }

    #[test]
    fn a_start_needs_both_files() {
        let files = Files::new();
        files.write("agent.conf", "port = x\n");
        assert!(files.source().load().is_err());
        files.write("agent.conf", CONFIG);
        std::fs::remove_file(files.dir.path().join("scripts.conf")).unwrap();
        assert!(
            files
                .source()
                .load()
                .unwrap_err()
                .starts_with("Cannot open allowlist")
        );
    }
}
