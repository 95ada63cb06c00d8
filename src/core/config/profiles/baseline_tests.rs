//! The rows of spec/executor.md 7.5, 8 and 11.2-11.3 that are about profiles, in both baselines.

use super::super::testing::*;
use super::super::*;

fn strict(lines: &str) -> Result<Loaded<AgentConfig>, ConfigError> {
    agent_lines(&format!("[executor]\nbaseline = strict\n{lines}"))
}

/// An error in `strict`, a warning with the old meaning in `compat`.
fn doubtful(lines: &str, part: &str) -> AgentConfig {
    let refused = errors(strict(lines));
    assert!(
        refused.iter().any(|s| s.contains(part)),
        "{lines}: {refused:#?}"
    );
    let loaded = agent_lines(lines).unwrap_or_else(|e| panic!("{lines}: {e}"));
    let said = warnings(&loaded);
    assert!(said.iter().any(|s| s.contains(part)), "{lines}: {said:#?}");
    loaded.value
}

fn first(config: &AgentConfig) -> &ProfileConfig {
    config.profiles.values().next().unwrap()
}

#[test]
fn root_only_by_its_name_in_strict() {
    let config = doubtful("[profile p]\n", "run_as is not set");
    assert_eq!(first(&config).run_as, None);
    assert!(strict("[profile p]\nrun_as = root\n").is_ok());
    doubtful("[profile p]\nrun-as = nobody\n", "unknown key 'run-as'");
    doubtful("[profile p]\nuser = nobody\n", "unknown key 'user'");
    let said = error(strict("[profile p]\nrun_as = nobody\nuesr = x\n"));
    assert!(
        said.contains("10:1: error: Profile 'p': unknown key 'uesr'"),
        "{said}"
    );
}

#[test]
fn script_dirs_must_be_named_in_strict() {
    let text = format!("{REQUIRED}[executor]\nbaseline = strict\n");
    assert!(error(agent_conf(&text)).contains("script_dirs is not set"));
    let text = "[executor]\nbaseline = \"strict\"\n";
    assert!(error(agent_toml(text)).contains("script_dirs is not set"));
    assert!(warnings(&agent_conf(REQUIRED).unwrap())[0].contains("script_dirs is not set"));
}

#[test]
fn no_new_privileges_off_needs_a_user_and_a_word() {
    const OFF: &str = "no_new_privileges = no\n";
    doubtful(
        &format!("[profile p]\nrun_as = nobody\n{OFF}"),
        "allow_setuid = yes",
    );
    for root in ["root", "0", "00"] {
        let lines = format!("[profile p]\nrun_as = {root}\nallow_setuid = yes\n{OFF}");
        let config = doubtful(&lines, "under run_as = root");
        assert!(!first(&config).no_new_privileges);
    }
    let lines = format!("[profile p]\nrun_as = nobody\nallow_setuid = yes\n{OFF}");
    for loaded in [strict(&lines), agent_lines(&lines)] {
        assert_eq!(warnings(&loaded.unwrap()), Vec::<String>::new());
    }
}

#[test]
fn capabilities_that_void_confinement_must_be_understood() {
    for caps in [
        "CAP_SYS_ADMIN",
        "CAP_SYS_PTRACE",
        "CAP_SYS_MODULE",
        "CAP_SYS_RAWIO",
        "CAP_MKNOD",
        "CAP_DAC_READ_SEARCH",
        "CAP_SETUID,CAP_SETGID",
        "CAP_BPF",
        "CAP_PERFMON",
        "CAP_MKNOD CAP_SYS_CHROOT",
        "CAP_MAC_ADMIN",
        "CAP_SYS_BOOT",
    ] {
        let lines = format!("[profile p]\nrun_as = a\ncaps = {caps}\n");
        let config = doubtful(&lines, "voids the confinement");
        assert!(!first(&config).caps.is_empty());
        let lines = format!("{lines}i_understand_unconfined = yes\n");
        assert!(warnings(&strict(&lines).unwrap()).is_empty());
    }
    for caps in [
        "CAP_SETUID",
        "CAP_SETGID",
        "CAP_SYS_CHROOT",
        "CAP_DAC_OVERRIDE",
    ] {
        assert!(strict(&format!("[profile p]\nrun_as = a\ncaps = {caps}\n")).is_ok());
    }
}

#[test]
fn all_capabilities_of_linux_are_known_and_those_of_a_newer_kernel_refused() {
    let all: Vec<String> = caps::all().iter().map(ToString::to_string).collect();
    assert_eq!(all.len(), 41);
    let text = format!(
        "{REQUIRED}[profile p]\nrun_as=a\ncaps = {}\n",
        all.join(",")
    );
    let judge = |last_cap| {
        let source = source::SourceFile::new(std::path::Path::new("a.conf"), text.as_bytes());
        let mut report = diagnostics::Report::default();
        let raw = conf_grammar::agent(&source, &mut report);
        let paths = crate::core::paths::Paths::new("/", crate::core::paths::Platform::Standard);
        agent::build(raw, &source, &paths, last_cap, &mut report);
        let said = report.into_diagnostics();
        let errors = said.iter().filter(|d| d.is_error());
        errors.map(|d| d.headline()).collect::<Vec<_>>()
    };
    assert_eq!(judge(Some(40)), Vec::<String>::new());
    assert_eq!(judge(None), Vec::<String>::new());
    let old = judge(Some(37));
    assert_eq!(old.len(), 3, "{old:#?}");
    for cap in ["CAP_PERFMON", "CAP_BPF", "CAP_CHECKPOINT_RESTORE"] {
        let part = format!("invalid capability '{cap}' (the running kernel does not have it)");
        assert!(old.iter().any(|s| s.contains(&part)), "{old:#?}");
    }
}

#[test]
fn doubt_about_a_value_is_an_error_in_both_baselines() {
    for line in [
        "no_new_privileges = yes  # comment",
        "no_new_privileges = ture",
        "no_new_privileges = enabled",
        "caps = CAP_NOSUCH",
        "writable = /a:/b # note",
        "writable = ",
        "run_as = ",
        "run_as =",
        "run_as = nobody # the user",
        "run_as = 4294967295",
        "hide = /a # b",
        "timeout = 5\t# five",
    ] {
        let lines = format!("[profile p]\n{line}\n");
        assert!(agent_lines(&lines).is_err(), "compat: {line}");
        assert!(strict(&lines).is_err(), "strict: {line}");
    }
}

#[test]
fn nothing_protected_is_writable() {
    let host = Host::new();
    for dir in ["/srv", "/usr/lib"] {
        std::fs::create_dir_all(host.at(dir)).unwrap();
    }
    let hook = host.write("/usr/lib/hook", "#!/bin/sh\n");
    std::fs::set_permissions(hook, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    std::os::unix::fs::symlink(host.at("/etc/ctrl-exec-agent"), host.at("/srv/link")).unwrap();
    let load = |path: &str, more: &str| {
        let text = format!(
            "{REQUIRED}script_dirs = {}\nexecutor_socket = /run/ctrl-exec-agent/exec.sock\nauth_hook = /usr/lib/hook\n{more}[profile p]\nrun_as = a\nwritable = /data:{}\n",
            host.at("/opt/scripts").display(),
            host.at(path).display()
        );
        host.write("/etc/ctrl-exec-agent/agent.conf", &text);
        host.agent()
    };
    for path in [
        "/etc/ctrl-exec-agent",
        "/etc/ctrl-exec-agent/agent.key",
        "/etc/ctrl-exec-agent/new/file",
        "/var/lib/ctrl-exec-agent/x",
        "/opt/scripts",
        "/opt/scripts/data",
        "/run/ctrl-exec-agent/x",
        "/srv/link",
        "/srv/../etc/ctrl-exec-agent/x",
        "/usr/lib/hook",
        "/etc/ctrl-exec/ca.key",
    ] {
        for baseline in ["", "[executor]\nbaseline = strict\n"] {
            let said = error(load(path, baseline));
            assert!(
                said.contains("Profile 'p': writable path '"),
                "{path}: {said}"
            );
            assert!(said.contains("lies inside '"), "{path}: {said}");
            assert!(said.contains(":18: error: "), "{path}: {said}");
        }
    }
    for path in ["/srv", "/opt", "/opt/scripts-data", "/var/lib"] {
        assert!(load(path, "").is_ok(), "{path}");
    }
}

#[test]
fn rows_of_the_table_of_divergences() {
    // [Profile x]: a profile, with a warning.
    let loaded = agent_lines("[Profile x]\nrun_as = a\n").unwrap();
    assert_eq!(loaded.value.profiles.len(), 1);
    assert!(warnings(&loaded)[0].contains("write it in lower case"));
    for bad in [
        "[profile a b]",
        "[profile a] text",
        "[profile a] # text",
        "no equals",
        "[profile a]\nrun_as = a\0",
        "[profile a]\ncaps = CAP_KILL\u{c}CAP_CHOWN",
        "[profile a]\ncaps = CAP_KILL\u{b}CAP_CHOWN",
        "[profile a]\nrun_as = 4294967295",
    ] {
        assert!(agent_lines(&format!("{bad}\n")).is_err(), "{bad}");
    }
    // [tags] script_dirs is a tag.
    let config = agent_lines("[tags]\nscript_dirs = /evil\n").unwrap().value;
    assert_eq!(config.tags["script_dirs"], "/evil");
    assert_eq!(config.script_dirs.len(), 1);
    // script_dirs = / allows everything, with a warning.
    let loaded = agent_conf(&format!(
        "{REQUIRED}script_dirs = /\n[profile p]\nrun_as = a\nwritable = /srv\n"
    ));
    assert!(warnings(&loaded.unwrap())[0].contains("allows every path"));
    // Names that share 127 bytes do not collide.
    let long = "p".repeat(127);
    let loaded = agent_lines(&format!("[profile {long}]\nrun_as = a\n")).unwrap();
    assert_eq!(loaded.value.profiles.len(), 1);
    assert!(agent_lines(&format!("[profile {long}p]\nrun_as = a\n")).is_err());
    assert!(agent_lines("[profile p]\nrun_as = 4294967294\n").is_ok());
}

#[test]
fn many_and_odd_files_are_fine() {
    let profiles: String = (0..65)
        .map(|n| format!("[profile p{n}]\nrun_as = a\n"))
        .collect();
    assert_eq!(agent_lines(&profiles).unwrap().value.profiles.len(), 65);
    let caps: Vec<String> = caps::all()
        .iter()
        .take(33)
        .map(ToString::to_string)
        .collect();
    let lines = format!("[profile p]\r\nrun_as = a\r\ncaps = {}", caps.join(" "));
    let config = agent_lines(&lines).unwrap().value;
    assert_eq!(first(&config).caps.len(), 33);
    let host = Host::new();
    let line = format!("x = {}\n", "y".repeat(10_000_000));
    host.write("/etc/ctrl-exec-agent/agent.conf", &line);
    assert!(host.agent().is_err());
}

#[test]
fn repeated_sections_and_keys_merge_and_the_last_wins() {
    let loaded =
        strict("[profile p]\nrun_as = a\ntimeout = 1\n[profile p]\ntimeout = 2\n").unwrap();
    assert_eq!(first(&loaded.value).timeout, Some(Duration::from_secs(2)));
    assert!(warnings(&loaded)[0].contains("'timeout' is set again in line 12, which wins"));
}
