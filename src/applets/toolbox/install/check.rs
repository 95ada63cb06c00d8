//! Would a service start with the configuration that is there? Asked before a running one is touched (spec/operations.md 17.5).

use std::path::Path;

use super::services::Needs;
use super::world::{Failure, World};
use crate::core::config;
use crate::core::paths::Paths;

/// `EX_CONFIG`: with these files it would not start.
const UNUSABLE: i32 = 78;

/// Why it would not; `None` if it would. That something is not configured yet is no mistake.
///
/// # Errors
/// This program cannot be asked.
pub(super) fn problem(
    world: &World,
    paths: &Paths,
    host_name: &str,
    needs: Needs,
) -> Result<Option<String>, Failure> {
    let used = |toml: std::path::PathBuf, conf: std::path::PathBuf| {
        if toml.exists() { toml } else { conf }
    };
    let there = |file: &Path| file.exists();
    let agent = used(paths.agent_toml(), paths.agent_conf());
    let scripts = used(paths.scripts_toml(), paths.scripts_conf());
    match needs {
        Needs::Nothing => Ok(None),
        Needs::Agent if !there(&agent) => Ok(None),
        Needs::Agent => Ok(agent_problem(paths)),
        Needs::Executor if !there(&agent) || !there(&scripts) => Ok(None),
        // The executor judges stricter, and by itself.
        Needs::Executor => {
            let ended = world.run(&[
                "/proc/self/exe".to_owned(),
                "ctrl-exec-exec".to_owned(),
                "check".to_owned(),
                agent.display().to_string(),
                scripts.display().to_string(),
                "--files".to_owned(),
            ])?;
            Ok((ended.code == Some(UNUSABLE)).then_some(ended.complaint))
        }
        Needs::Dispatcher if !there(&used(paths.dispatcher_toml(), paths.dispatcher_conf())) => {
            Ok(None)
        }
        Needs::Dispatcher => Ok(config::load_dispatcher(paths, None, host_name)
            .err()
            .map(|error| error.to_string())),
    }
}

fn agent_problem(paths: &Paths) -> Option<String> {
    let agent = match config::load_agent(paths, None) {
        Ok(loaded) => loaded.value,
        Err(error) => return Some(error.to_string()),
    };
    match config::load_allowlist(paths, None, &agent) {
        Ok(loaded) => config::check_profiles(&loaded.value, &agent)
            .err()
            .map(|error| error.to_string()),
        Err(error) => Some(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::paths::Platform;

    #[test]
    fn the_upgrade_that_took_agents_off_the_air_is_seen_before() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::new(dir.path(), Platform::Standard);
        let world = World::new(Path::new("/")).unwrap();
        let ask = |needs| problem(&world, &paths, "h", needs).unwrap();
        assert_eq!(ask(Needs::Agent), None);
        let etc = paths.agent_etc();
        std::fs::create_dir_all(&etc).unwrap();
        let base = "port = 7443\ncert = /etc/ctrl-exec-agent/agent.crt\nkey = /etc/ctrl-exec-agent/agent.key\nca = /etc/ctrl-exec-agent/ca.crt\n";
        std::fs::write(etc.join("agent.conf"), base).unwrap();
        std::fs::write(etc.join("scripts.conf"), "disk = /opt/s/disk.sh\n").unwrap();
        let why = ask(Needs::Agent).unwrap();
        assert!(why.contains("default") && why.contains("disk"), "{why}");
        std::fs::write(
            etc.join("agent.conf"),
            format!("{base}[profile default]\nrun_as = nobody\n"),
        )
        .unwrap();
        assert_eq!(ask(Needs::Agent), None);
        std::fs::create_dir_all(paths.dispatcher_etc()).unwrap();
        assert_eq!(ask(Needs::Dispatcher), None);
        std::fs::write(paths.dispatcher_toml(), "certt = 1\n").unwrap();
        assert!(ask(Needs::Dispatcher).unwrap().contains("certt"));
    }
}
