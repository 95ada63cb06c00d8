//! Kernels that lack something (spec/executor.md 15.1, 15.13, 19 "degraded kernels"): a filter makes system calls fail before the executor
//! starts. What is required refuses with a clear text, what is tried is logged, what has a fallback protects as before.

#![allow(clippy::unwrap_used, reason = "helpers of tests stop as tests do")]

mod common;

use std::time::Duration;

use common::executor::{Ask, Executor, Told, kind, landlock_abi};
use common::root_or_skip;

const SHIM: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/common/shim.py");
const ATTACK: &str = include_str!("common/attack.py");
const PROBE: &str = include_str!("common/probe.sh");
const ERRNOS: [&str; 2] = ["ENOSYS", "EPERM"];

/// An executor on a kernel where these calls fail.
fn without(baseline: &str, errno: &str, calls: &str) -> Executor {
    let mut executor = Executor::new(baseline);
    executor.prefix(&["/usr/bin/python3", SHIM, errno, calls]);
    executor
}

/// Something of the kernel that a key of a profile asks for.
struct Missing {
    calls: &'static str,
    /// As logs name it.
    feature: &'static str,
    require: &'static str,
    tried: &'static str,
    off: &'static str,
}

const MISSING: &[Missing] = &[
    Missing {
        calls: "landlock_create_ruleset",
        feature: "landlock",
        require: "landlock = require",
        tried: "landlock = try\nread = /usr:/lib:/lib64:/bin:/etc:/proc:/dev:/sys:/var",
        off: "landlock = off",
    },
    Missing {
        calls: "seccomp",
        feature: "syscalls",
        require: "syscalls = default",
        tried: "syscalls = default try",
        off: "syscalls = off",
    },
    Missing {
        calls: "unshare:NEWPID,clone:NEWPID",
        feature: "processes",
        require: "processes = private",
        tried: "processes = private try",
        off: "processes = host",
    },
    Missing {
        calls: "unshare:NEWIPC,clone:NEWIPC",
        feature: "ipc",
        require: "ipc = private",
        tried: "ipc = private try",
        off: "ipc = host",
    },
    Missing {
        calls: "unshare:NEWNET,clone:NEWNET",
        feature: "network",
        require: "network = none",
        tried: "network = none try",
        off: "network = host",
    },
];

#[test]
fn required_refuses_tried_is_logged_off_is_silent() {
    if !root_or_skip("required_refuses_tried_is_logged_off_is_silent") {
        return;
    }
    for errno in ERRNOS {
        for missing in MISSING {
            let label = format!("{errno} {}", missing.calls);
            println!("{label}");
            let mut executor = without("compat", errno, missing.calls);
            for (name, lines) in [
                ("must", missing.require),
                ("tried", missing.tried),
                ("off", missing.off),
            ] {
                executor.profile(name, &format!("run_as = nobody\n{lines}"));
                executor.shell(name, name, "echo ran");
            }
            executor.start();
            assert_eq!(executor.run("off").exit(0).out(), "ran\n", "{label}");
            let refused = executor.run("must").exit(126);
            let text = refused.err();
            assert_eq!(refused.out(), "", "{label}");
            assert!(
                text.starts_with("executor: ") && text.ends_with('\n') && text.lines().count() == 1,
                "{label}: {text:?}"
            );
            // It names the key and what is wrong with it here.
            assert!(text.contains(missing.feature), "{label}: {text:?}");
            assert!(
                matches!(refused.kind(), Some(kind::SETUP | kind::DENIED)),
                "{label}: {:?}",
                refused.kind()
            );
            executor.wait_for_log(&["ACTION=exec-deny", "REASON=feature-missing"]);

            for _ in 0..3 {
                assert_eq!(executor.run("tried").exit(0).out(), "ran\n", "{label}");
            }
            let line = executor.wait_for_log(&[
                "ACTION=exec-degraded",
                &format!("FEATURE={}", missing.feature),
            ]);
            let profiles = line
                .split("PROFILES=")
                .nth(1)
                .unwrap()
                .split(' ')
                .next()
                .unwrap();
            let named: Vec<&str> = profiles.trim_matches('"').split(',').collect();
            assert!(
                named.contains(&"tried") && !named.contains(&"off"),
                "{label}: {line}"
            );
            executor.wait_until_idle();
            let lines = executor
                .log()
                .lines()
                .filter(|l| {
                    l.contains("ACTION=exec-degraded")
                        && l.contains(&format!("FEATURE={}", missing.feature))
                })
                .count();
            assert_eq!(lines, 1, "{label}: once per feature:\n{}", executor.log());
        }
    }
}

/// Calls for which there is another way: nothing is lost without them.
const REPLACED: &[&str] = &[
    "mount_setattr",
    "close_range",
    "clone3",
    "pidfd_open,pidfd_send_signal",
    "openat2",
    "fsopen",
    "fsopen,open_tree,move_mount,mount_setattr",
    "mount_setattr,close_range,clone3,pidfd_open,pidfd_send_signal,openat2,fsopen,open_tree,move_mount,memfd_create",
];

#[test]
fn what_has_a_fallback_protects_as_before() {
    if !root_or_skip("what_has_a_fallback_protects_as_before") {
        return;
    }
    for errno in ERRNOS {
        for calls in REPLACED {
            let label = format!("{errno} {calls}");
            println!("{label}");
            let mut executor = without("strict", errno, calls);
            executor.profile("w", "run_as = root\nwritable = $T/data/w\ntimeout = 20");
            executor.profile("host", "run_as = root\nwritable = $T/data/w\nprocesses = host\nlandlock = off\ntimeout = 20");
            executor.profile("short", "run_as = nobody\ntimeout = 1\nkill_grace = 1");
            executor.before("mkdir \"$T/scripts/sub\"; mount -t tmpfs -o mode=1777 tmpfs \"$T/scripts/sub\"\nmkdir -p \"$T/data/w/deeper\"\nmount -t tmpfs -o noexec,nosuid,nodev tmpfs \"$T/data/w/deeper\"");
            for name in ["w", "host"] {
                executor.script(&format!("attack-{name}"), name, ATTACK);
                executor.script(&format!("probe-{name}"), name, PROBE);
                executor.shell(&format!("write-{name}"), name, "echo x >$1/data/w/file && echo x >$1/data/w/deeper/file && rm $1/data/w/file && echo written");
            }
            executor.shell("sleep", "short", "trap '' TERM; setsid sleep $1 & sleep $1");
            executor.start();
            for name in ["w", "host"] {
                stopped(&executor, name, &label);
                let probe = executor.run(&format!("probe-{name}")).exit(0);
                invariants(&executor, &probe, &label);
                let written = executor
                    .run_with(&format!("write-{name}"), &[&executor.text("")])
                    .exit(0);
                assert_eq!(written.out(), "written\n", "{label}");
            }
            let mark = format!("3600.9{}", std::process::id());
            let late = executor
                .run_with("sleep", &[&mark])
                .exit(126)
                .err_has("timed out after 1s");
            assert!(
                late.took < Duration::from_secs(15),
                "{label}: {:?}",
                late.took
            );
            common::wait_until("everything is gone", Duration::from_secs(5), || {
                common::executor::with_words(&mark).is_empty().then_some(())
            });
        }
    }
}

/// The attacks that the view of the file system stops.
#[track_caller]
fn stopped(executor: &Executor, profile: &str, label: &str) {
    let given = serde_json::json!({
        "key": executor.text("etc/agent.key"), "socket": executor.socket(), "etc": executor.text("etc"), "data": executor.text("data"),
        "other": "probe-host", "executor": executor.pid(),
    });
    let names = [
        "read-secret",
        "list-secrets",
        "executor-socket",
        "forge-reply",
        "inherited-write",
        "change-config",
        "change-script",
        "add-script",
        "sub-mount",
        "remount-control",
        "umount-control",
        "user-namespace-remount",
        "change-root-file",
        "create-root-file",
        "core-pattern",
        "trace-executor",
        "proc-executor",
        "symlink-out",
        "leave-setuid",
    ];
    let mut given = given;
    given["scratch"] = executor.text("data/w").into();
    let text = given.to_string();
    let mut args = vec![text.as_str()];
    args.extend(names);
    let told = executor
        .ask(&Ask::new(&format!("attack-{profile}")).args(&args))
        .exit(0);
    for name in names {
        let line = told
            .out()
            .lines()
            .find(|l| l.starts_with(&format!("{name} ")))
            .unwrap_or_default()
            .to_owned();
        assert!(
            line.starts_with(&format!("{name} stopped")),
            "{label}: {profile}: {line:?} {}",
            told.err()
        );
    }
}

#[track_caller]
fn invariants(executor: &Executor, probe: &Told, label: &str) {
    let out = probe.out();
    let section = |name: &str| -> Vec<String> {
        out.lines()
            .skip_while(|l| *l != format!("@@ {name}"))
            .skip(1)
            .take_while(|l| !l.starts_with("@@ "))
            .map(str::to_owned)
            .collect()
    };
    assert_eq!(section("fds"), ["0", "1", "2", "3"], "{label}");
    for line in section("status") {
        if line.starts_with("Cap") {
            assert!(line.ends_with("0000000000000000"), "{label}: {line}");
        }
        assert!(
            !line.starts_with("NoNewPrivs") || line.ends_with('1'),
            "{label}: {line}"
        );
    }
    for line in section("mountinfo") {
        let words: Vec<&str> = line.split(' ').collect();
        if words[4] == executor.text("data/w/deeper") {
            for flag in ["noexec", "nosuid", "nodev"] {
                assert!(
                    words[5].split(',').any(|w| w == flag),
                    "{label}: flags of the host are kept: {line}"
                );
            }
        }
    }
}

#[test]
fn a_kernel_without_mount_namespaces_does_not_start_it() {
    if !root_or_skip("a_kernel_without_mount_namespaces_does_not_start_it") {
        return;
    }
    for errno in ERRNOS {
        let mut executor = without("compat", errno, "unshare:NEWNS,clone:NEWNS");
        executor.profile("p", "run_as = nobody");
        executor.shell("hello", "p", "echo hello");
        let run = executor.start_and_end();
        assert!(run.code() == 1 || run.code() == 78, "{}", run.code());
        assert!(run.err().contains("mount namespace"), "{}", run.err());
        assert!(!executor.socket().exists(), "no socket is left behind");
    }
}

/// What a router with little flash offers: identities, capabilities, mounts, rlimits.
#[test]
fn the_smallest_kernel_still_confines() {
    if !root_or_skip("the_smallest_kernel_still_confines") {
        return;
    }
    let mut executor = without(
        "strict",
        "ENOSYS",
        "landlock_create_ruleset,seccomp,mount_setattr,close_range,clone3,pidfd_open,pidfd_send_signal,openat2,fsopen,open_tree,move_mount,memfd_create,unshare:NEWPID,clone:NEWPID,unshare:NEWNET,clone:NEWNET,unshare:NEWIPC,clone:NEWIPC",
    );
    if let Some(root) = common::executor::cgroup_root() {
        executor.before(&format!("mount -t tmpfs tmpfs {}", root.display()));
    }
    executor.profile("w", "run_as = root\nwritable = $T/data/w");
    executor.profile("short", "run_as = nobody\ntimeout = 1\nkill_grace = 1");
    executor
        .before("mkdir \"$T/scripts/sub\"; mount -t tmpfs -o mode=1777 tmpfs \"$T/scripts/sub\"");
    executor.script("attack-w", "w", ATTACK);
    executor.script("probe", "w", PROBE);
    executor.shell("sleep", "short", "trap '' TERM; setsid sleep $1 & sleep $1");
    executor.start();
    stopped(&executor, "w", "smallest kernel");
    let probe = executor.run("probe").exit(0);
    invariants(&executor, &probe, "smallest kernel");
    let mark = format!("3600.8{}", std::process::id());
    executor
        .run_with("sleep", &[&mark])
        .exit(126)
        .err_has("timed out after 1s");
    common::wait_until("everything is gone", Duration::from_secs(5), || {
        common::executor::with_words(&mark).is_empty().then_some(())
    });
    for feature in ["landlock", "syscalls", "processes", "cgroup"] {
        executor.wait_for_log(&["ACTION=exec-degraded", &format!("FEATURE={feature}")]);
    }
}

#[test]
fn ports_need_landlock_unless_none_are_wanted() {
    if !root_or_skip("ports_need_landlock_unless_none_are_wanted") || landlock_abi() == 0 {
        return;
    }
    let mut executor = without("compat", "ENOSYS", "landlock_create_ruleset");
    executor.profile(
        "must",
        "run_as = nobody\nlandlock = require\ntcp_connect = 80",
    );
    executor.profile("tried", "run_as = nobody\nlandlock = try\ntcp_connect = 80");
    executor.profile(
        "none",
        "run_as = nobody\nlandlock = try\ntcp_connect = none\ntcp_bind = none",
    );
    executor.shell("must", "must", "echo ran");
    executor.shell("tried", "tried", "echo ran");
    executor.shell("none", "none", "readlink /proc/self/ns/net");
    executor.start();
    executor.run("must").exit(126).err_has("landlock");
    executor.run("tried").exit(0);
    executor.wait_for_log(&["ACTION=exec-degraded"]);
    // No port at all is a network namespace.
    let host = std::fs::read_link("/proc/self/ns/net")
        .unwrap()
        .display()
        .to_string();
    assert_ne!(executor.run("none").exit(0).out().trim(), host);
}
