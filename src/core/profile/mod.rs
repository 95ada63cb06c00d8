//! From the name of a script to the decision whether and how it may run. Agent, executor and checks all ask here
//! (spec/executor.md 5).

pub mod lint;
pub mod protected;
pub mod schema;

use std::path::{Path, PathBuf};

use crate::core::config::{AgentConfig, Allowlist, ProfileConfig};
use crate::core::types::{AbsolutePath, ProfileName, ScriptName};

/// A script that may run, and under which profile.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Resolved {
    pub name: ScriptName,
    /// The literal path of the allowlist; also argv\[0\].
    pub path: AbsolutePath,
    /// Defined in the agent's configuration.
    pub profile: ProfileName,
}

/// Why a script may not run. The texts are those of the executor's answers (spec/executor.md 4.3).
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Refusal {
    /// Not a script name, or not on the allowlist.
    #[error("script not permitted")]
    NotPermitted,
    /// Outside the approved directories, or not there at all while directories are approved.
    #[error("script not in script_dirs")]
    NotInScriptDirs,
    /// Its profile is not defined.
    #[error("undefined profile")]
    UndefinedProfile,
}

impl Refusal {
    /// The word behind `DENY` in the output of `resolve`, also REASON of `exec-deny` (spec/executor.md 2.2, 12).
    pub fn deny_word(self) -> &'static str {
        match self {
            Self::NotPermitted => "not-allowlisted",
            Self::NotInScriptDirs => "not-in-script-dirs",
            Self::UndefinedProfile => "undefined-profile",
        }
    }
}

/// The line of `resolve` for a script that may run, without newline (spec/executor.md 2.2): every list in the order of the file, `run_as`
/// empty when it is not set.
pub fn ok_line(resolved: &Resolved, profile: &ProfileConfig) -> String {
    let caps: Vec<String> = profile.caps.iter().map(ToString::to_string).collect();
    let writable: Vec<String> = profile.writable.iter().map(ToString::to_string).collect();
    format!(
        "OK path={}|profile={}|run_as={}|nnp={}|caps={}|writable={}",
        resolved.path,
        resolved.profile,
        profile.run_as.as_deref().unwrap_or_default(),
        u8::from(profile.no_new_privileges),
        caps.join(","),
        writable.join(":"),
    )
}

/// Decides about one request. Looks at the file system only when `script_dirs` is set.
///
/// # Errors
/// The first refusal in the order of [`Refusal`].
pub fn resolve(
    name: &str,
    allowlist: &Allowlist,
    config: &AgentConfig,
) -> Result<Resolved, Refusal> {
    resolve_with(name, allowlist, config, real_path)
}

/// The decision itself; `real_path` answers where a path leads once links and `..` are gone, `None` when it leads nowhere.
fn resolve_with(
    name: &str,
    allowlist: &Allowlist,
    config: &AgentConfig,
    real_path: impl Fn(&Path) -> Option<PathBuf>,
) -> Result<Resolved, Refusal> {
    let name = ScriptName::new(name).map_err(|_| Refusal::NotPermitted)?;
    let entry = allowlist.scripts.get(&name).ok_or(Refusal::NotPermitted)?;
    if !inside(&entry.path, &config.script_dirs, real_path) {
        return Err(Refusal::NotInScriptDirs);
    }
    if !config.profiles.contains_key(&entry.profile) {
        return Err(Refusal::UndefinedProfile);
    }
    Ok(Resolved {
        name,
        path: entry.path.clone(),
        profile: entry.profile.clone(),
    })
}

/// Whether a script lies in one of the approved directories, or none are named (spec/agent.md 4.3). A path that does not resolve
/// lies nowhere.
pub fn in_script_dirs(path: &AbsolutePath, dirs: &[AbsolutePath]) -> bool {
    inside(path, dirs, real_path)
}

fn inside(
    path: &AbsolutePath,
    dirs: &[AbsolutePath],
    real_path: impl Fn(&Path) -> Option<PathBuf>,
) -> bool {
    if dirs.is_empty() {
        return true;
    }
    let Some(script) = real_path(path.as_path()) else {
        return false;
    };
    dirs.iter()
        .filter_map(|dir| real_path(dir.as_path()))
        .any(|dir| script.starts_with(dir))
}

fn real_path(path: &Path) -> Option<PathBuf> {
    std::fs::canonicalize(path).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::config::{Annotations, ScriptEntry};
    use crate::core::paths::{Paths, Platform};

    fn agent(dirs: &[&str], profiles: &[&str]) -> AgentConfig {
        let paths = Paths::new("/", Platform::Standard);
        let mut config = AgentConfig::defaults(&paths, Path::new("agent.conf"));
        config.script_dirs = dirs.iter().map(|d| AbsolutePath::new(d).unwrap()).collect();
        for name in profiles {
            let name = ProfileName::new(name).unwrap();
            config.profiles.insert(name, ProfileConfig::default());
        }
        config
    }

    fn allow(name: &str, path: &str, profile: &str) -> Allowlist {
        let entry = ScriptEntry {
            path: AbsolutePath::new(path).unwrap(),
            profile: ProfileName::new(profile).unwrap(),
            annotations: Annotations::default(),
        };
        let mut allowlist = Allowlist::default();
        allowlist
            .scripts
            .insert(ScriptName::new(name).unwrap(), entry);
        allowlist
    }

    fn literal(path: &Path) -> Option<PathBuf> {
        Some(path.to_owned())
    }

    #[test]
    fn names_that_are_no_names_are_not_permitted() {
        let (list, config) = (allow("a", "/x", "default"), agent(&[], &["default"]));
        for name in [
            "",
            "../etc/passwd",
            "foo;bar",
            "a b",
            "foo/bar",
            "b",
            "A",
            "a\0",
        ] {
            assert_eq!(resolve(name, &list, &config), Err(Refusal::NotPermitted));
        }
        let resolved = resolve("a", &list, &config).unwrap();
        assert_eq!(resolved.path.to_string(), "/x");
        assert_eq!(resolved.profile.as_str(), "default");
    }

    #[test]
    fn refusals_come_in_the_order_of_the_original() {
        let list = allow("a", "/elsewhere/x", "nosuch");
        let config = agent(&["/opt"], &[]);
        let decide =
            |name, config: &AgentConfig| resolve_with(name, &list, config, literal).map(|r| r.name);
        assert_eq!(decide("b", &config), Err(Refusal::NotPermitted));
        assert_eq!(decide("a", &config), Err(Refusal::NotInScriptDirs));
        let config = agent(&["/elsewhere/"], &[]);
        assert_eq!(decide("a", &config), Err(Refusal::UndefinedProfile));
    }

    #[test]
    fn the_lines_of_resolve() {
        assert_eq!(Refusal::NotPermitted.deny_word(), "not-allowlisted");
        assert_eq!(Refusal::NotInScriptDirs.deny_word(), "not-in-script-dirs");
        assert_eq!(Refusal::UndefinedProfile.deny_word(), "undefined-profile");
        let config = agent(&[], &["p.1"]);
        let resolved = resolve("a", &allow("a", "/opt/../x y", "p.1"), &config).unwrap();
        let mut profile = ProfileConfig::default();
        assert_eq!(
            ok_line(&resolved, &profile),
            "OK path=/opt/../x y|profile=p.1|run_as=|nnp=1|caps=|writable="
        );
        profile.run_as = Some("nobody".to_owned());
        profile.no_new_privileges = false;
        profile.caps = vec![
            caps::Capability::CAP_NET_BIND_SERVICE,
            caps::Capability::CAP_CHOWN,
        ];
        profile.writable = ["/a", "/b"].map(|p| AbsolutePath::new(p).unwrap()).to_vec();
        assert_eq!(
            ok_line(&resolved, &profile),
            "OK path=/opt/../x y|profile=p.1|run_as=nobody|nnp=0|caps=CAP_NET_BIND_SERVICE,CAP_CHOWN|writable=/a:/b"
        );
    }

    #[test]
    fn there_is_no_implicit_default_profile() {
        let list = allow("a", "/x", "default");
        assert_eq!(
            resolve("a", &list, &agent(&[], &["other"])),
            Err(Refusal::UndefinedProfile)
        );
    }

    #[test]
    fn directories_are_compared_by_component() {
        let inside = |path: &str, dirs: &[&str]| {
            let dirs: Vec<_> = dirs.iter().map(|d| AbsolutePath::new(d).unwrap()).collect();
            inside(&AbsolutePath::new(path).unwrap(), &dirs, literal)
        };
        assert!(inside("/opt/s/x", &["/opt/s"]));
        assert!(inside("/opt/s/x", &["/no", "/opt/s/"]));
        assert!(inside("/opt/s", &["/opt/s"]));
        assert!(inside("/any/x", &["/"]));
        assert!(!inside("/opt/sx", &["/opt/s"]));
        assert!(!inside("/opt", &["/opt/s"]));
    }

    #[test]
    fn links_and_dots_do_not_lead_out() {
        let dir = tempfile::tempdir().unwrap();
        let base = std::fs::canonicalize(dir.path()).unwrap();
        let approved = base.join("approved");
        std::fs::create_dir(&approved).unwrap();
        std::fs::write(base.join("evil"), "").unwrap();
        std::fs::write(approved.join("good"), "").unwrap();
        std::os::unix::fs::symlink(base.join("evil"), approved.join("link")).unwrap();
        std::os::unix::fs::symlink(&approved, base.join("alias")).unwrap();
        let text = |p: PathBuf| p.to_string_lossy().into_owned();
        let dirs = [text(base.join("alias"))];
        let config = agent(&[&dirs[0]], &["default"]);
        let decide = |path: PathBuf| resolve("a", &allow("a", &text(path), "default"), &config);
        assert!(decide(approved.join("good")).is_ok());
        assert!(decide(base.join("alias/good")).is_ok());
        for refused in [
            "approved/link",
            "approved/../evil",
            "approved/absent",
            "evil",
        ] {
            assert_eq!(decide(base.join(refused)), Err(Refusal::NotInScriptDirs));
        }
    }
}
