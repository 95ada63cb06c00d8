//! What the agent tells about its scripts without running them: schema sidecars and whether a script can be executed.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;

use rustix::fs::Access;

use crate::core::config::{AgentConfig, Allowlist, ScriptEntry};
use crate::core::logging::Action;
use crate::core::profile::schema::{self, Schema, Sidecar};
use crate::core::types::ScriptName;

/// Reads the sidecar of every allowlisted script (spec/agent.md 4.4). A bad one costs a log line, never the script.
pub(super) fn load_sidecars(allowlist: &Allowlist) -> BTreeMap<ScriptName, Schema> {
    let mut usable = BTreeMap::new();
    for (name, entry) in &allowlist.scripts {
        match schema::load(&entry.path, entry.annotations.schema.as_ref()) {
            Sidecar::Absent => {}
            Sidecar::Skipped { reason } => Action::new("schema-skip")
                .field("REASON", reason)
                .field("SCRIPT", name)
                .warning(),
            Sidecar::Loaded(schema) => {
                if schema.version_derived {
                    Action::new("schema-version-derive")
                        .field("REASON", schema::DERIVE_REASON)
                        .field("SCRIPT", name)
                        .warning();
                }
                usable.insert(name.clone(), schema);
            }
        }
    }
    usable
}

/// Whether the script can be executed by whoever will run it.
///
/// Without an executor that is ourselves, so the kernel is asked. The executor runs it as somebody else: then a regular file with any
/// execute bit counts, as far as we can see it.
pub(super) fn is_executable(entry: &ScriptEntry, config: &AgentConfig) -> bool {
    let path = entry.path.as_path();
    let Ok(meta) = std::fs::metadata(path) else {
        return false;
    };
    meta.is_file()
        && match config.executor_socket {
            Some(_) => meta.permissions().mode() & 0o111 != 0,
            None => rustix::fs::access(path, Access::EXEC_OK).is_ok(),
        }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::paths::{Paths, Platform};
    use crate::core::types::{AbsolutePath, ProfileName};

    #[test]
    fn executable_means_a_regular_file_with_the_right_to_run_it() {
        let dir = tempfile::tempdir().unwrap();
        let config = AgentConfig::defaults(
            &Paths::new(dir.path(), Platform::Standard),
            std::path::Path::new("agent.conf"),
        );
        let entry = |path: &std::path::Path| ScriptEntry {
            path: AbsolutePath::new(path.to_str().unwrap()).unwrap(),
            profile: ProfileName::new("default").unwrap(),
            annotations: Default::default(),
        };
        let script = dir.path().join("script");
        std::fs::write(&script, "#!/bin/sh\n").unwrap();
        assert!(!is_executable(&entry(&script), &config));
        std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
        assert!(is_executable(&entry(&script), &config));
        assert!(!is_executable(&entry(dir.path()), &config));
        assert!(!is_executable(&entry(&dir.path().join("none")), &config));

        let mut by_executor = config;
        by_executor.executor_socket = Some("/run/exec.sock".into());
        assert!(is_executable(&entry(&script), &by_executor));
    }
}
