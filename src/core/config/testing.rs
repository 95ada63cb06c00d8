//! A root of its own for each test, with the files of a host in it.

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use super::{
    AgentConfig, Allowlist, ConfigError, DispatcherConfig, Loaded, load_agent, load_allowlist,
    load_dispatcher,
};
use crate::core::paths::{Paths, Platform};

pub(super) struct Host {
    dir: tempfile::TempDir,
}

impl Host {
    pub(super) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for etc in ["etc/ctrl-exec", "etc/ctrl-exec-agent"] {
            std::fs::create_dir_all(dir.path().join(etc)).unwrap();
        }
        Self { dir }
    }

    pub(super) fn paths(&self) -> Paths {
        Paths::new(self.dir.path(), Platform::Standard)
    }

    pub(super) fn at(&self, path: &str) -> PathBuf {
        self.paths().resolve(path)
    }

    pub(super) fn write(&self, path: &str, text: &str) -> PathBuf {
        let path = self.at(path);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        path
    }

    pub(super) fn agent(&self) -> Result<Loaded<AgentConfig>, ConfigError> {
        load_agent(&self.paths(), None)
    }

    pub(super) fn allowlist(&self) -> Result<Loaded<Allowlist>, ConfigError> {
        load_allowlist(&self.paths(), None, &self.agent().unwrap().value)
    }

    pub(super) fn dispatcher(&self) -> Result<Loaded<DispatcherConfig>, ConfigError> {
        load_dispatcher(&self.paths(), None, "ctl.example")
    }
}

/// The keys that the original insists on.
pub(super) const REQUIRED: &str = "port = 7443\ncert = /etc/ctrl-exec-agent/agent.crt\nkey = /etc/ctrl-exec-agent/agent.key\nca = /etc/ctrl-exec-agent/ca.crt\n";
/// Keeps the warning about missing `script_dirs` away.
pub(super) const DIRS: &str = "script_dirs = /opt\n";

pub(super) fn agent_conf(text: &str) -> Result<Loaded<AgentConfig>, ConfigError> {
    let host = Host::new();
    host.write("/etc/ctrl-exec-agent/agent.conf", text);
    host.agent()
}

/// An `agent.conf` with the required keys, `script_dirs` and these lines (the first is line 6).
pub(super) fn agent_lines(text: &str) -> Result<Loaded<AgentConfig>, ConfigError> {
    agent_conf(&format!("{REQUIRED}{DIRS}{text}"))
}

pub(super) fn agent_toml(text: &str) -> Result<Loaded<AgentConfig>, ConfigError> {
    let host = Host::new();
    host.write("/etc/ctrl-exec-agent/agent.toml", text);
    host.agent()
}

pub(super) fn dispatcher_conf(text: &str) -> Result<Loaded<DispatcherConfig>, ConfigError> {
    let host = Host::new();
    host.write("/etc/ctrl-exec/ctrl-exec.conf", text);
    host.dispatcher()
}

pub(super) fn dispatcher_toml(text: &str) -> Result<Loaded<DispatcherConfig>, ConfigError> {
    let host = Host::new();
    host.write("/etc/ctrl-exec/ctrl-exec.toml", text);
    host.dispatcher()
}

pub(super) fn warnings<T>(loaded: &Loaded<T>) -> Vec<String> {
    assert!(loaded.warnings.iter().all(|w| !w.is_error()));
    loaded.warnings.iter().map(|w| w.headline()).collect()
}

/// The headlines of all errors of a file that must not load.
pub(super) fn errors<T: std::fmt::Debug>(result: Result<Loaded<T>, ConfigError>) -> Vec<String> {
    let error = result.unwrap_err();
    assert!(!error.diagnostics().is_empty(), "{error}");
    let errors = error.diagnostics().iter().filter(|d| d.is_error());
    errors.map(|d| d.headline()).collect()
}

/// The one error of a file that must not load.
pub(super) fn error<T: std::fmt::Debug>(result: Result<Loaded<T>, ConfigError>) -> String {
    let errors = errors(result);
    assert_eq!(errors.len(), 1, "{errors:#?}");
    errors.into_iter().next().unwrap()
}
