//! What a run of a script would come to, without running it (spec/executor.md 15.12).
//!
//! It goes the way of a real run up to the fork and throws away what was prepared: there is no second opinion about what can be
//! enforced. Only the cgroup is not made, since that would change the host.

mod report;

use super::cgroup;
use super::features::Features;
use super::identity::{self, Identity};
use super::prepare::{RunOrder, prepare};
use super::script::{self, executable};
use super::view::Mounts;
use super::{Level, NotPrepared, ProtectedPaths, Protection, Protections};
use crate::core::config::{AgentConfig, Allowlist, ProfileConfig, ScriptTrust, Want};
use crate::core::profile;
use crate::core::types::ScriptName;

pub use report::wrapped;

/// Everything that can be said about one script of the allowlist.
#[derive(Debug)]
pub struct Assessment {
    pub name: ScriptName,
    pub path: String,
    pub profile: String,
    pub baseline: &'static str,
    pub identity: Option<Identity>,
    pub caps: Vec<String>,
    pub digest: bool,
    pub protections: Protections,
    /// Findings of the trust walk, whatever the profile says to them.
    pub trust: Vec<String>,
    /// `None`: there is nobody to ask for.
    pub executable: Option<Result<(), String>>,
    /// Why it would not run.
    pub errors: Vec<String>,
    pub warnings: Vec<String>,
}

/// What scripts are assessed by.
#[derive(Clone, Copy, Debug)]
pub struct House<'a> {
    pub config: &'a AgentConfig,
    pub allowlist: &'a Allowlist,
    pub features: &'a Features,
    pub protected: &'a ProtectedPaths,
    /// Controllers that the groups of runs have or can have; else why there are no groups.
    pub controllers: &'a Result<Vec<String>, String>,
}

/// Assesses every script of the allowlist, by name.
pub fn assess_all(house: House<'_>) -> Vec<Assessment> {
    house
        .allowlist
        .scripts
        .keys()
        .map(|name| assess(name, house))
        .collect()
}

/// Assesses one script. A name that is not on the list comes back as an error in the assessment.
pub fn assess(name: &ScriptName, house: House<'_>) -> Assessment {
    let entry = house.allowlist.scripts.get(name);
    let mut found = Assessment {
        name: name.clone(),
        path: entry.map(|e| e.path.to_string()).unwrap_or_default(),
        profile: entry.map(|e| e.profile.to_string()).unwrap_or_default(),
        baseline: "",
        identity: None,
        caps: Vec::new(),
        digest: entry.is_some_and(|e| e.annotations.digest.is_some()),
        protections: Protections::default(),
        trust: Vec::new(),
        executable: None,
        errors: Vec::new(),
        warnings: Vec::new(),
    };
    let resolved = profile::resolve(name.as_str(), house.allowlist, house.config);
    let profile = entry.and_then(|e| house.config.profiles.get(&e.profile));
    if let Some(profile) = profile {
        found.baseline = profile.baseline.word();
        found.caps = profile.caps.iter().map(ToString::to_string).collect();
    }
    match (resolved, profile, entry) {
        (Err(refusal), _, _) => found.errors.push(refusal.to_string()),
        (Ok(resolved), Some(profile), Some(entry)) => {
            if let Err(refused) = found.go(&resolved, profile, &entry.annotations, house) {
                found.errors.push(refused.text);
            }
        }
        // The resolution has found both.
        (Ok(_), _, _) => found.errors.push("undefined profile".to_owned()),
    }
    found
}

impl Assessment {
    /// The way of a run, as far as the fork.
    fn go(
        &mut self,
        script: &profile::Resolved,
        profile: &ProfileConfig,
        annotations: &crate::core::config::Annotations,
        house: House<'_>,
    ) -> Result<(), NotPrepared> {
        let identity = identity::resolve(profile)?;
        self.identity = Some(identity.clone());
        let path = script.path.as_path();
        let mut report = Protections::default();
        let checked = script::check(
            path,
            identity.uid,
            profile,
            annotations,
            &house.config.executor,
            &mut report,
        );
        match script::findings(path, identity.uid) {
            Ok(findings) => self.trust = findings.iter().map(ToString::to_string).collect(),
            Err(lost) => self.trust.push(lost),
        }
        // Of the walk, not of what `check` made of it: that may be refused already.
        if profile.script_trust == ScriptTrust::Warn {
            self.warnings.extend(self.trust.iter().cloned());
        }
        let mut left_out = Vec::new();
        let copied = checked.as_ref().is_ok_and(|c| c.copy.is_some());
        let outcome = checked.and_then(|checked| {
            let order = RunOrder {
                script,
                profile,
                args: &[],
                reqid: "",
                identity: identity.clone(),
                checked,
                protected: house.protected,
                features: house.features,
                bounding: house.features.bounding,
                mounts: &Mounts::read(),
                leaf: None,
            };
            let prepared = prepare(order, &mut report)
                .map(|prepared| left_out.extend(prepared.warnings().iter().cloned()));
            // After it: without a group it may have something to say about limits, but not about this.
            prepared.and_then(|()| cgroup_level(profile, house.controllers, &mut report))
        });
        self.warnings.append(&mut left_out);
        let runner = executable::Runner {
            identity: &identity,
            caps: &profile.caps,
            copied: copied && report.0.get(&Protection::VerifiedCopy) == Some(&Level::Enforced),
        };
        let executable = executable::executable(path, runner);
        if let Err(why) = &executable {
            self.errors.push(format!("not executable: {why}"));
        }
        self.executable = Some(executable);
        let degraded = report.degraded();
        // The findings stand there in full.
        let degraded = degraded.filter(|(p, _)| *p != Protection::ScriptTrust);
        self.warnings
            .extend(degraded.map(|(p, why)| format!("{} is degraded: {why}", p.name())));
        self.protections = report;
        outcome
    }
}

/// What can be known about the group of a run without making one: whether the controllers are there at all.
fn cgroup_level(
    profile: &ProfileConfig,
    controllers: &Result<Vec<String>, String>,
    report: &mut Protections,
) -> Result<(), NotPrepared> {
    if profile.cgroup == Want::Off {
        report.set(Protection::Cgroup, Level::Off);
        return Ok(());
    }
    match missing_controllers(profile, controllers) {
        Ok(()) => {
            report.set(Protection::Cgroup, Level::Enforced);
            Ok(())
        }
        Err(why) => cgroup::unavailable(&why, profile, report),
    }
}

fn missing_controllers(
    profile: &ProfileConfig,
    controllers: &Result<Vec<String>, String>,
) -> Result<(), String> {
    let there = controllers.as_ref().map_err(Clone::clone)?;
    let mut missing: Vec<&str> = profile
        .cgroup_limits
        .keys()
        .filter_map(|file| file.split('.').next())
        .filter(|controller| !there.iter().any(|t| t.as_str() == *controller))
        .collect();
    missing.dedup();
    if missing.is_empty() {
        Ok(())
    } else {
        Err(format!(
            "this host's cgroup v2 has no controller {}",
            missing.join(", ")
        ))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::core::config::{Annotations, Baseline, ScriptEntry};
    use crate::core::paths::{Paths, Platform};
    use crate::core::types::{AbsolutePath, ProfileName};

    fn assessed(path: &Path, profile: ProfileConfig) -> Assessment {
        let paths = Paths::new("/", Platform::Standard);
        let mut config = AgentConfig::defaults(&paths, Path::new("agent.conf"));
        let name = ProfileName::new("p").unwrap();
        config.profiles.insert(name.clone(), profile);
        let entry = ScriptEntry {
            path: AbsolutePath::new(path.to_str().unwrap()).unwrap(),
            profile: name,
            annotations: Annotations::default(),
        };
        let script = ScriptName::new("s").unwrap();
        let mut allowlist = Allowlist::default();
        allowlist.scripts.insert(script.clone(), entry);
        let house = House {
            config: &config,
            allowlist: &allowlist,
            features: &Features::unprivileged(),
            protected: &ProtectedPaths::default(),
            controllers: &Err("none".to_owned()),
        };
        let mut all = assess_all(house);
        assert_eq!(all.len(), 1);
        all.remove(0)
    }

    #[test]
    fn a_script_is_assessed_as_it_would_be_run() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        std::fs::write(&path, "#!/bin/sh\n").unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&path, mode).unwrap();
        let found = assessed(&path, ProfileConfig::new(Baseline::Compat));
        assert_eq!(found.errors, Vec::<String>::new());
        assert_eq!(found.executable, Some(Ok(())));
        // Temporary directories are writable by everybody.
        assert!(!found.trust.is_empty() && !found.warnings.is_empty());
        let level = &found.protections.0[&Protection::NoNewPrivileges];
        assert_eq!(*level, Level::Enforced);
        let lines = found.lines().join("\n");
        assert!(lines.contains("compat") && lines.contains("no_new_privileges"));
        assert!(
            lines
                .lines()
                .all(|l| l.len() <= 80 || !l.trim().contains(' ')),
            "{lines}"
        );
        assert_eq!(found.to_json()["executable"]["ok"], true);

        let enforced = ProfileConfig {
            script_trust: ScriptTrust::Enforce,
            ..ProfileConfig::new(Baseline::Compat)
        };
        let found = assessed(&path, enforced);
        assert_eq!(found.errors.len(), 1, "{:?}", found.errors);
    }

    #[test]
    fn what_is_not_there_is_an_error() {
        let found = assessed(
            Path::new("/nowhere/at/all"),
            ProfileConfig::new(Baseline::Compat),
        );
        assert!(!found.errors.is_empty());
        let unknown = ProfileConfig {
            run_as: Some("no-such-user-here".to_owned()),
            ..ProfileConfig::new(Baseline::Compat)
        };
        let found = assessed(Path::new("/bin/sh"), unknown);
        assert!(found.identity.is_none() && found.errors.len() == 1);
    }
}
