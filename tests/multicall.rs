//! One file answers to all its names, says clearly what it does not know, and stays below the root it is given.

mod common;

use std::collections::BTreeSet;
use std::process::Command;

use common::process::run;
use common::{Host, binary};

#[test]
fn every_listed_name_is_linked_and_answers() {
    let host = Host::new("h.test");
    let listed: BTreeSet<String> = host
        .ctrl_exec(&["--list"])
        .ok()
        .out()
        .lines()
        .map(str::to_owned)
        .collect();
    for name in [
        "ced",
        "ctrl-exec-dispatcher",
        "cea",
        "ctrl-exec-agent",
        "ctrl-exec-exec",
        "ctrl-exec",
    ] {
        assert!(listed.contains(name), "{name} is missing among {listed:?}");
    }
    for name in &listed {
        let path = host.links().join(name);
        assert!(path.is_symlink(), "{} is not a link", path.display());
        assert_eq!(
            path.canonicalize().unwrap(),
            binary().canonicalize().unwrap()
        );
        let version = host.run(name, &["--version"]).ok();
        let words: Vec<String> = version
            .out()
            .split_whitespace()
            .map(str::to_owned)
            .collect();
        assert_eq!(words.len(), 2, "{}", version.out());
        assert!(words[0].starts_with("ctrl-exec"), "{words:?}");
        assert_eq!(words[1], env!("CARGO_PKG_VERSION"));
        host.run(name, &["--help"]).ok().out_has("Usage:");
    }
}

#[test]
fn aliases_report_the_name_of_the_original() {
    let host = Host::new("h.test");
    for (alias, expected) in [
        ("ced", "ctrl-exec-dispatcher "),
        ("ctrl-exec-dispatcher", "ctrl-exec-dispatcher "),
        ("cea", "ctrl-exec-agent "),
        ("ctrl-exec-agent", "ctrl-exec-agent "),
        ("ctrl-exec", "ctrl-exec "),
    ] {
        let out = host.run(alias, &["--version"]).ok().out();
        assert!(out.starts_with(expected), "{alias}: {out}");
    }
}

#[test]
fn the_first_word_may_name_the_program_or_a_verb_of_the_dispatcher() {
    let host = Host::new("h.test");
    let by_link = host.ced(&["list-agents"]).ok().out();
    assert_eq!(by_link, "No registered agents.\n");
    assert_eq!(host.ctrl_exec(&["ced", "list-agents"]).ok().out(), by_link);
    assert_eq!(host.ctrl_exec(&["list-agents"]).ok().out(), by_link);
    assert_eq!(
        host.ctrl_exec(&["ctrl-exec-dispatcher", "list-agents"])
            .ok()
            .out(),
        by_link
    );
    let agent = host.ctrl_exec(&["cea", "--version"]).ok().out();
    assert!(agent.starts_with("ctrl-exec-agent "), "{agent}");
}

#[test]
fn an_unknown_name_gets_a_list_of_the_known_ones() {
    let host = Host::new("h.test");
    host.ctrl_exec(&["nonsense"])
        .expect_code(64)
        .err_has("'nonsense' is not a program or verb of this binary")
        .err_has("ced")
        .err_has("cea");
    host.ced(&["nonsense"])
        .expect_code(64)
        .err_has("Unknown mode 'nonsense'")
        .err_has("list-agents");
    host.cea(&["nonsense"])
        .expect_code(64)
        .err_has("Unknown mode 'nonsense'")
        .err_has("serve");
    host.ced(&[]).expect_code(64).err_has("Usage:");
    // The agent prints its usage and never serves by accident.
    host.cea(&[]).ok().out_has("serve");

    // A link of a foreign name.
    let link = host.path("usr/bin/telnet");
    std::os::unix::fs::symlink(binary(), &link).unwrap();
    run(Command::new(link).arg("x").env_clear())
        .expect_code(64)
        .err_has("'telnet' is not a name that this program answers to")
        .err_has("ced, ctrl-exec-dispatcher, cea,")
        .err_has("any that begins with ctrl-exec")
        .err_has("ctrl-exec cea");
}

#[test]
fn a_renamed_copy_is_still_the_binary() {
    let host = Host::new("h.test");
    let copy = host.path("tmp/ctrl-exec-x86_64.new");
    std::fs::copy(binary(), &copy).unwrap();
    run(Command::new(&copy).arg("--version").env_clear())
        .ok()
        .out_has("ctrl-exec ");
    // Its links point to it by its own name, beside it.
    run(Command::new(&copy).arg("links").env_clear()).ok();
    let link = host.path("tmp/ced");
    assert_eq!(
        std::fs::read_link(&link).unwrap().to_str(),
        Some("ctrl-exec-x86_64.new")
    );
    run(Command::new(&link).arg("--version").env_clear())
        .ok()
        .out_has("ctrl-exec-dispatcher ");
}

#[test]
fn links_replace_our_own_links_and_nothing_else() {
    let host = Host::new("h.test");
    let dir = host.path("tmp/bin");
    std::fs::create_dir(&dir).unwrap();
    let dir_text = dir.to_str().unwrap();
    host.ctrl_exec(&["links", dir_text]).ok();
    host.ctrl_exec(&["links", dir_text]).ok();
    std::fs::remove_file(dir.join("ced")).unwrap();
    std::fs::write(dir.join("ced"), "someone's").unwrap();
    host.ctrl_exec(&["links", dir_text])
        .expect_code(1)
        .err_has("ced")
        .err_has("--force");
    assert_eq!(
        std::fs::read_to_string(dir.join("ced")).unwrap(),
        "someone's"
    );
    host.ctrl_exec(&["links", "--force", dir_text]).ok();
    assert!(dir.join("ced").is_symlink());
    host.ctrl_exec(&["links", "/nonexistent/dir"])
        .expect_code(1)
        .err_has("/nonexistent/dir");
}

#[test]
fn options_are_spelt_as_in_the_original_and_unknown_ones_refused() {
    let host = Host::new("h.test");
    for words in [
        &["list-agents", "--json"][..],
        &["--JSON", "list-agents"],
        &["-js", "list-agents"],
    ] {
        assert_eq!(host.ced(words).ok().out().trim(), "[]", "{words:?}");
    }
    host.ced(&["list-agents", "--nonsense"])
        .expect_code(64)
        .err_has("--nonsense");
    host.ced(&["list-agents", "--config"])
        .expect_code(64)
        .err_has("needs a value");
}

#[test]
fn everything_stays_below_the_root() {
    let host = Host::new("h.test");
    // The option wins over the variable.
    let other = host.path("tmp/other");
    std::fs::create_dir(&other).unwrap();
    host.ced(&["--root", other.to_str().unwrap(), "setup-ca"])
        .ok();
    assert!(other.join("etc/ctrl-exec/ca.crt").exists());
    assert!(!host.exists("etc/ctrl-exec/ca.crt"));
    host.ced(&["setup-ca"]).ok();
    assert!(host.exists("etc/ctrl-exec/ca.crt"));
    host.ced(&["--root", "relative", "list-agents"])
        .expect_code(64)
        .err_has("absolute");
    run(Command::new(binary())
        .args(["ced", "list-agents"])
        .env_clear()
        .env("CTRL_EXEC_ROOT", "relative"))
    .expect_code(64)
    .err_has("CTRL_EXEC_ROOT");
}

#[test]
fn arguments_that_are_not_utf8_are_refused_without_a_panic() {
    use std::os::unix::ffi::OsStrExt as _;
    let host = Host::new("h.test");
    let mut command = host.command("ced");
    command.arg(std::ffi::OsStr::from_bytes(b"run\xff"));
    run(&mut command).expect_code(64).err_has("UTF-8");
}

#[test]
fn a_closed_pipe_is_no_error_and_no_panic() {
    let host = Host::new("h.test");
    let mut command = Command::new("sh");
    command
        .arg("-c")
        .arg("{ sleep 0.2; \"$0\" --help; echo \"status $?\" >&2; } | true")
        .arg(host.links().join("ced"))
        .env("CTRL_EXEC_ROOT", host.path(""));
    let result = run(&mut command).ok();
    assert!(result.err().contains("status "), "{}", result.err());
    assert!(!result.err().contains("panicked"), "{}", result.err());
}

#[test]
fn the_action_log_can_go_to_stdout_and_falls_back_to_stderr() {
    let mut host = Host::new("h.test");
    host.write(
        "var/lib/ctrl-exec/agents/web.test.json",
        r#"{"hostname":"web.test","expiry":"Jun  7 16:28:00 2028 GMT"}"#,
        0o644,
    );
    host.ced(&["edit-agent", "web.test", "--agent-port", "7450"])
        .ok();
    let line = host.wait_for_log(&["ACTION=edit-agent", "AGENT=web.test", "PORT=7450"]);
    assert_eq!(
        (line.priority, line.ident.as_str()),
        (common::syslog::INFO, "ctrl-exec-dispatcher")
    );
    host.set_env("CTRL_EXEC_LOG", "stdout");
    host.ced(&["edit-agent", "web.test", "--agent-port", "7451"])
        .ok()
        .out_has("ctrl-exec-dispatcher: ACTION=edit-agent AGENT=web.test PORT=7451");
    host.set_env("CTRL_EXEC_LOG", "");
    std::fs::remove_file(host.path("dev/log")).unwrap();
    host.ced(&["edit-agent", "web.test", "--agent-port", "7452"])
        .ok()
        .err_has("ACTION=edit-agent AGENT=web.test PORT=7452");
}
