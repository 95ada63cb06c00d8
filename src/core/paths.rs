//! Every path of the system, from one root prefix and a platform profile (spec/operations.md 3, 17.6).
//!
//! The prefix moves what belongs to the system itself (configuration, keys, state, sockets, hooks), also where a
//! configuration file names it. Scripts belong to the host: their paths are never moved.

use std::path::{Path, PathBuf};

use crate::core::sys;

/// Where persistent state may live.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Platform {
    /// `/var/lib` survives a reboot.
    Standard,
    /// `/var` is a RAM disk (OpenWrt): persistent state goes below `/etc`.
    VolatileVar,
}

impl Platform {
    /// Looks at what `/var/lib` (or its nearest existing parent) is mounted on.
    pub fn detect() -> Self {
        let on_ram = ["/var/lib", "/var"]
            .iter()
            .map(Path::new)
            .find(|p| p.exists())
            .is_some_and(sys::is_ram_disk);
        if on_ram && !sys::is_ram_disk(Path::new("/etc")) {
            Self::VolatileVar
        } else {
            Self::Standard
        }
    }

    /// The value of `CTRL_EXEC_PLATFORM`: `standard` or `volatile-var`.
    pub fn from_word(word: &str) -> Option<Self> {
        match word {
            "standard" => Some(Self::Standard),
            "volatile-var" => Some(Self::VolatileVar),
            _ => None,
        }
    }
}

/// All locations. Cheap to clone; made once in `main` and handed down.
#[derive(Clone, Debug)]
pub struct Paths {
    root: PathBuf,
    platform: Platform,
}

impl Paths {
    pub fn new(root: impl Into<PathBuf>, platform: Platform) -> Self {
        Self {
            root: root.into(),
            platform,
        }
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn platform(&self) -> Platform {
        self.platform
    }

    /// Puts the root prefix before an absolute path of the system.
    pub fn resolve(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// Socket of the local syslog daemon.
    pub fn syslog_socket(&self) -> PathBuf {
        self.resolve("/dev/log")
    }

    // Dispatcher (spec/operations.md 3.1).

    pub fn dispatcher_etc(&self) -> PathBuf {
        self.resolve("/etc/ctrl-exec")
    }

    pub fn dispatcher_toml(&self) -> PathBuf {
        self.dispatcher_etc().join("ctrl-exec.toml")
    }

    pub fn dispatcher_conf(&self) -> PathBuf {
        self.dispatcher_etc().join("ctrl-exec.conf")
    }

    pub fn dispatcher_state(&self) -> PathBuf {
        self.resolve(match self.platform {
            Platform::Standard => "/var/lib/ctrl-exec",
            Platform::VolatileVar => "/etc/ctrl-exec/state",
        })
    }

    pub fn registry_dir(&self) -> PathBuf {
        self.dispatcher_state().join("agents")
    }

    pub fn pairing_dir(&self) -> PathBuf {
        self.dispatcher_state().join("pairing")
    }

    /// Held locks vanish with their processes, so a reboot may take their files too: no other place on any platform.
    pub fn locks_dir(&self) -> PathBuf {
        self.resolve("/var/lib/ctrl-exec/locks")
    }

    /// Records of a day: they are not worth wearing out the flash memory of a host whose `/var` is a RAM disk.
    pub fn runs_dir(&self) -> PathBuf {
        self.resolve("/var/lib/ctrl-exec/runs")
    }

    pub fn pairing_pid_file(&self) -> PathBuf {
        self.dispatcher_state().join("pairing-mode.pid")
    }

    // Agent (spec/operations.md 3.2).

    pub fn agent_etc(&self) -> PathBuf {
        self.resolve("/etc/ctrl-exec-agent")
    }

    pub fn agent_toml(&self) -> PathBuf {
        self.agent_etc().join("agent.toml")
    }

    pub fn agent_conf(&self) -> PathBuf {
        self.agent_etc().join("agent.conf")
    }

    pub fn scripts_toml(&self) -> PathBuf {
        self.agent_etc().join("scripts.toml")
    }

    pub fn scripts_conf(&self) -> PathBuf {
        self.agent_etc().join("scripts.conf")
    }

    pub fn agent_state(&self) -> PathBuf {
        self.resolve(match self.platform {
            Platform::Standard => "/var/lib/ctrl-exec-agent",
            Platform::VolatileVar => "/etc/ctrl-exec-agent/state",
        })
    }

    pub fn trust_map(&self) -> PathBuf {
        self.agent_state().join("ctrl-exec-dispatchers")
    }

    pub fn staged_cert(&self) -> PathBuf {
        self.agent_state().join("agent.crt.staged")
    }

    pub fn async_runs_dir(&self) -> PathBuf {
        self.agent_state().join("runs")
    }

    pub fn revoked_serials(&self) -> PathBuf {
        self.agent_etc().join("revoked-serials")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_prefix_moves_everything() {
        let paths = Paths::new("/tmp/fleet", Platform::Standard);
        assert_eq!(
            paths.trust_map(),
            Path::new("/tmp/fleet/var/lib/ctrl-exec-agent/ctrl-exec-dispatchers")
        );
        assert_eq!(
            paths.resolve("/etc/ctrl-exec/auth-hook"),
            Path::new("/tmp/fleet/etc/ctrl-exec/auth-hook")
        );
    }

    #[test]
    fn state_leaves_var_when_var_is_a_ram_disk() {
        let paths = Paths::new("/", Platform::VolatileVar);
        assert_eq!(
            paths.trust_map(),
            Path::new("/etc/ctrl-exec-agent/state/ctrl-exec-dispatchers")
        );
        assert_eq!(
            paths.registry_dir(),
            Path::new("/etc/ctrl-exec/state/agents")
        );
        assert_eq!(paths.locks_dir(), Path::new("/var/lib/ctrl-exec/locks"));
        assert_eq!(paths.runs_dir(), Path::new("/var/lib/ctrl-exec/runs"));
    }
}
