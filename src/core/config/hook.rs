//! The keys of the auth hook, the same in both programs (spec/api.md 10-11).

use std::path::Path;

use super::HookConfig;
use super::reader::Reader;
use crate::core::paths::Paths;

/// `auth_hook` with `auth_hook_timeout`. The agent wants the hook executable at load (spec/agent.md 3.2), the dispatcher when it
/// calls it.
pub(super) fn read(
    r: &mut Reader<'_>,
    paths: &Paths,
    must_be_executable: bool,
) -> Option<HookConfig> {
    let span = r.value_span("auth_hook");
    let path = r.path("auth_hook", paths);
    let timeout = r.seconds("auth_hook_timeout", 1..=3600, super::defaults::HOOK_TIMEOUT);
    let path = path?;
    if let (true, false, Some(span)) = (must_be_executable, is_executable(&path), span) {
        let message = format!(
            "auth_hook '{}' is not executable {}",
            path.display(),
            r.in_file()
        );
        r.error(&span, &message);
    }
    Some(HookConfig { path, timeout })
}

fn is_executable(path: &Path) -> bool {
    path.is_file() && rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok()
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use std::time::Duration;

    #[test]
    fn hooks_must_be_executable_at_load() {
        let host = Host::new();
        let conf = format!("{REQUIRED}{DIRS}auth_hook = /hook\nauth_hook_timeout = 3\n");
        host.write("/etc/ctrl-exec-agent/agent.conf", &conf);
        let not = |r| error(r).contains("is not executable in '");
        assert!(not(host.agent()));
        host.write("/hook", "#!/bin/sh\n");
        assert!(not(host.agent()));
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(host.at("/hook"), mode).unwrap();
        let hook = host.agent().unwrap().value.auth_hook.unwrap();
        assert_eq!(hook.path, host.at("/hook"));
        assert_eq!(hook.timeout, Duration::from_secs(3));
    }
}
