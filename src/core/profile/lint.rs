//! Profiles that are legal but weak (spec/executor.md 11.3, 15.8): what `check` shows beside the errors of the configuration.

use caps::Capability;

use crate::core::config::{
    Baseline, Leftovers, LimitKind, Ports, ProfileConfig, Scope, ScriptTrust, Want,
};
use crate::core::types::ProfileName;

/// How bad it is.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Level {
    Error,
    Warning,
}

/// One remark about a profile.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Finding {
    pub level: Level,
    /// One sentence that names the profile and says what to do.
    pub text: String,
}

/// Capabilities that void every other restriction of a profile, as messages name them.
pub fn unconfining(caps: &[Capability]) -> Vec<&'static str> {
    use Capability as C;
    const ALONE: [(C, &str); 10] = [
        (C::CAP_SYS_ADMIN, "CAP_SYS_ADMIN"),
        (C::CAP_SYS_PTRACE, "CAP_SYS_PTRACE"),
        (C::CAP_SYS_MODULE, "CAP_SYS_MODULE"),
        (C::CAP_SYS_RAWIO, "CAP_SYS_RAWIO"),
        // Also what makes CAP_SYS_CHROOT dangerous.
        (C::CAP_MKNOD, "CAP_MKNOD"),
        // Opening files by handle passes by what is hidden.
        (C::CAP_DAC_READ_SEARCH, "CAP_DAC_READ_SEARCH"),
        (C::CAP_BPF, "CAP_BPF"),
        (C::CAP_PERFMON, "CAP_PERFMON"),
        (C::CAP_MAC_ADMIN, "CAP_MAC_ADMIN"),
        (C::CAP_SYS_BOOT, "CAP_SYS_BOOT"),
    ];
    let mut found: Vec<&'static str> = ALONE
        .iter()
        .filter(|(cap, _)| caps.contains(cap))
        .map(|(_, name)| *name)
        .collect();
    if caps.contains(&C::CAP_SETUID) && caps.contains(&C::CAP_SETGID) {
        found.push("CAP_SETUID with CAP_SETGID");
    }
    found
}

/// Everything that should be said about a profile.
pub fn findings(name: &ProfileName, profile: &ProfileConfig) -> Vec<Finding> {
    let mut list = List {
        name,
        profile,
        found: Vec::new(),
    };
    list.identity();
    list.capabilities();
    list.limits();
    list.contradictions();
    list.found
}

struct List<'a> {
    name: &'a ProfileName,
    profile: &'a ProfileConfig,
    found: Vec<Finding>,
}

impl List<'_> {
    fn add(&mut self, level: Level, text: &str) {
        self.found.push(Finding {
            level,
            text: format!("Profile '{}': {text}", self.name),
        });
    }

    fn warn(&mut self, text: &str) {
        self.add(Level::Warning, text);
    }

    /// An error in `strict`, else a warning.
    fn weigh(&mut self, text: &str) {
        let level = match self.profile.baseline {
            Baseline::Strict => Level::Error,
            Baseline::Compat => Level::Warning,
        };
        self.add(level, text);
    }

    fn identity(&mut self) {
        let p = self.profile;
        if p.run_as.is_none() {
            self.weigh("run_as is not set, so scripts run as root; name the user");
        }
        if p.runs_as_root() && p.writable.is_empty() && p.processes.value == Scope::Host {
            self.warn(
                "uid 0 owns most files and may signal most processes of the system: use a service user with the capabilities it needs, or set writable or processes = private",
            );
        }
        if !p.no_new_privileges {
            if p.runs_as_root() {
                self.weigh("no_new_privileges is off for root: programs can take back what the profile takes away");
            } else if !p.allow_setuid {
                self.weigh("no_new_privileges is off without allow_setuid = yes: set-uid programs raise the rights of scripts");
            }
        }
    }

    fn capabilities(&mut self) {
        let p = self.profile;
        let voiding = unconfining(&p.caps);
        if !voiding.is_empty() {
            let text = format!(
                "{} voids the confinement of the profile",
                voiding.join(", ")
            );
            if p.i_understand_unconfined {
                self.warn(&text);
            } else {
                self.weigh(&text);
            }
        }
        if p.caps.contains(&Capability::CAP_DAC_OVERRIDE) {
            self.warn(
                "CAP_DAC_OVERRIDE passes by the modes of all files and sockets that the profile does not hide",
            );
        }
        if !p.root_semantics && !p.runs_as_root() {
            self.warn("root_semantics = off only means something for uid 0");
        }
    }

    fn limits(&mut self) {
        let p = self.profile;
        let bounded = |kind| matches!(p.limits.get(&kind), Some(Some(_)));
        if p.runs_as_root() && bounded(LimitKind::Nproc) {
            self.warn("limit_nproc has no effect on uid 0: use pids_max");
        }
        let bounding = p.cgroup_limits.iter().filter(|(_, value)| *value != "max");
        let set: Vec<&str> = bounding.map(|(file, _)| *file).collect();
        if p.cgroup == Want::Off && !set.is_empty() {
            let text = format!("{} cannot be held with cgroup = off", set.join(", "));
            self.warn(&text);
        }
        if p.timeout.is_none() {
            self.warn("there is no timeout: a script that hangs holds its place for ever");
        }
    }

    fn contradictions(&mut self) {
        let p = self.profile;
        if p.leftovers == Leftovers::Keep && p.timeout.is_some() {
            self.warn("leftovers = keep: the timeout does not end what a script leaves behind");
        }
        if p.leftovers == Leftovers::Keep && p.processes.value == Scope::Private {
            self.warn("leftovers = keep with processes = private: the run keeps its place among max_runs until the last process is gone");
        }
        if p.script_trust == ScriptTrust::Off {
            self.warn("script_trust = off: whoever can write a script or a directory above it has the rights of the profile");
        }
        if p.kernel_tunables_writable && p.runs_as_root() {
            self.warn("kernel_tunables = rw lets uid 0 have the kernel run a program as full root");
        }
        let landlock = !p.read.is_empty()
            || !p.execute.is_empty()
            || p.tcp_connect != Ports::Any
            || p.tcp_bind != Ports::Any;
        if landlock && p.landlock == Want::Off {
            self.warn("read, execute, tcp_connect and tcp_bind have no effect with landlock = off");
        }
        let hidden = p.writable.iter().find(|path| {
            p.hide
                .iter()
                .any(|hide| path.as_path().starts_with(hide.as_path()))
        });
        if let Some(path) = hidden {
            let text = format!("writable path '{path}' is hidden by 'hide'");
            self.warn(&text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::config::Protected;
    use crate::core::types::AbsolutePath;

    fn found(baseline: Baseline, change: fn(&mut ProfileConfig)) -> Vec<Finding> {
        let mut profile = ProfileConfig::new(baseline);
        profile.run_as = Some("nobody".to_owned());
        profile.timeout = Some(std::time::Duration::from_secs(1));
        profile.leftovers = Leftovers::Kill;
        change(&mut profile);
        findings(&ProfileName::new("p").unwrap(), &profile)
    }

    fn one(baseline: Baseline, change: fn(&mut ProfileConfig), level: Level, part: &str) {
        let found = found(baseline, change);
        assert_eq!(found.len(), 1, "{found:#?}");
        assert_eq!(found[0].level, level, "{found:?}");
        let text = &found[0].text;
        assert!(
            text.starts_with("Profile 'p': ") && text.contains(part),
            "{text}"
        );
    }

    #[test]
    fn a_sound_profile_gets_no_remark() {
        for baseline in [Baseline::Compat, Baseline::Strict] {
            assert_eq!(found(baseline, |_| {}), []);
        }
    }

    #[test]
    fn weak_profiles_are_named() {
        use Baseline::{Compat, Strict};
        use Level::{Error, Warning};
        one(
            Compat,
            |p| p.run_as = Some("0".to_owned()),
            Warning,
            "uid 0 owns",
        );
        assert_eq!(found(Strict, |p| p.run_as = Some("root".to_owned())), []);
        one(Strict, |p| p.run_as = None, Error, "run_as is not set");
        assert_eq!(found(Compat, |p| p.run_as = None).len(), 2);
        one(
            Strict,
            |p| p.no_new_privileges = false,
            Error,
            "allow_setuid",
        );
        one(
            Compat,
            |p| p.no_new_privileges = false,
            Warning,
            "allow_setuid",
        );
        one(
            Strict,
            |p| p.caps = vec![Capability::CAP_DAC_OVERRIDE],
            Warning,
            "CAP_DAC_OVERRIDE",
        );
        one(
            Strict,
            |p| p.caps = vec![Capability::CAP_MKNOD],
            Error,
            "CAP_MKNOD voids",
        );
        one(
            Compat,
            |p| p.caps = vec![Capability::CAP_BPF],
            Warning,
            "CAP_BPF voids",
        );
        let understood = |p: &mut ProfileConfig| {
            p.caps = vec![Capability::CAP_SETGID, Capability::CAP_SETUID];
            p.i_understand_unconfined = true;
        };
        one(
            Strict,
            understood,
            Warning,
            "CAP_SETUID with CAP_SETGID voids",
        );
        assert_eq!(found(Strict, |p| p.caps = vec![Capability::CAP_SETUID]), []);
        let nproc = |p: &mut ProfileConfig| {
            p.run_as = Some("root".to_owned());
            p.limits.insert(LimitKind::Nproc, Some(5));
        };
        one(Strict, nproc, Warning, "limit_nproc has no effect on uid 0");
        one(
            Strict,
            |p| p.cgroup = Want::Off,
            Warning,
            "memory.max, pids.max cannot be held",
        );
        one(Compat, |p| p.timeout = None, Warning, "no timeout");
        one(
            Compat,
            |p| p.leftovers = Leftovers::Keep,
            Warning,
            "leftovers = keep",
        );
        let kept = |p: &mut ProfileConfig| {
            p.timeout = None;
            p.leftovers = Leftovers::Keep;
            p.processes = Protected::required(Scope::Private);
        };
        assert_eq!(found(Compat, kept).len(), 2);
        one(
            Strict,
            |p| p.script_trust = ScriptTrust::Off,
            Warning,
            "script_trust = off",
        );
        one(
            Strict,
            |p| p.root_semantics = false,
            Warning,
            "root_semantics",
        );
        let ports = |p: &mut ProfileConfig| {
            p.landlock = Want::Off;
            p.tcp_bind = Ports::Only(vec![80]);
        };
        one(Strict, ports, Warning, "landlock = off");
        let hidden = |p: &mut ProfileConfig| {
            p.hide = vec![AbsolutePath::new("/srv").unwrap()];
            p.writable = vec![AbsolutePath::new("/srv/x").unwrap()];
        };
        one(Strict, hidden, Warning, "'/srv/x' is hidden");
    }
}
