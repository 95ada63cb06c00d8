//! What a profile promises is what a script finds (spec/executor.md 9, 11, 15, 17, 19 "invariants"): a script that looks at itself runs
//! under each of many profiles.

#![allow(clippy::unwrap_used, reason = "helpers of tests stop as tests do")]

mod common;

use std::collections::{BTreeMap, BTreeSet};

use common::executor::{Ask, Executor, Told, controller};
use common::root_or_skip;

const PROBE: &str = include_str!("common/probe.sh");
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What the probe printed.
struct Seen {
    sections: BTreeMap<String, Vec<String>>,
}

impl Seen {
    #[track_caller]
    fn of(told: &Told) -> Self {
        assert_eq!(told.exit, 0, "stdout {}\nstderr {}", told.out(), told.err());
        let mut sections: BTreeMap<String, Vec<String>> = BTreeMap::new();
        let mut name = String::new();
        for line in told.out().lines() {
            match line.strip_prefix("@@ ") {
                Some(next) => next.clone_into(&mut name),
                None => sections
                    .entry(name.clone())
                    .or_default()
                    .push(line.to_owned()),
            }
            sections.entry(name.clone()).or_default();
        }
        assert!(
            sections.contains_key("end"),
            "the probe did not end: {}",
            told.err()
        );
        Self { sections }
    }

    fn lines(&self, section: &str) -> &[String] {
        &self.sections[section]
    }

    fn word(&self, section: &str) -> &str {
        self.sections[section].first().map_or("", String::as_str)
    }

    /// Value of a line `KEY:\tvalue` of /proc/PID/status.
    #[track_caller]
    fn status(&self, key: &str) -> String {
        self.lines("status")
            .iter()
            .find_map(|line| line.strip_prefix(&format!("{key}:")))
            .unwrap_or_else(|| panic!("no {key} in status"))
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" ")
    }

    fn mask(&self, key: &str) -> u64 {
        u64::from_str_radix(&self.status(key), 16).unwrap()
    }

    /// Fields of /proc/PID/stat after the name: state is 0, ppid 1, pgrp 2, session 3.
    fn stat(&self, index: usize) -> i64 {
        let rest = self.word("stat").rsplit_once(')').unwrap().1;
        rest.split_whitespace().nth(index).unwrap().parse().unwrap()
    }

    /// Soft and hard limit.
    #[track_caller]
    fn limit(&self, name: &str) -> (String, String) {
        let line = self
            .lines("limits")
            .iter()
            .find(|line| line.starts_with(name))
            .unwrap();
        let mut words = line[name.len()..].split_whitespace();
        (
            words.next().unwrap().to_owned(),
            words.next().unwrap().to_owned(),
        )
    }

    /// Mount options of the topmost mount that holds the path.
    #[track_caller]
    fn mount(&self, path: &str) -> Mount {
        let mut best: Option<Mount> = None;
        for line in self.lines("mountinfo") {
            let words: Vec<&str> = line.split(' ').collect();
            let point = words[4];
            let holds = point == "/" || path == point || path.starts_with(&format!("{point}/"));
            if holds && best.as_ref().is_none_or(|b| b.point.len() <= point.len()) {
                let dash = words.iter().position(|w| *w == "-").unwrap();
                best = Some(Mount {
                    point: point.to_owned(),
                    options: words[5].split(',').map(str::to_owned).collect(),
                    kind: words[dash + 1].to_owned(),
                    super_options: words[dash + 3].to_owned(),
                });
            }
        }
        best.unwrap()
    }

    fn namespace(&self, name: &str) -> String {
        let line = self
            .lines("namespaces")
            .iter()
            .find_map(|l| l.strip_prefix(&format!("{name} ")));
        line.unwrap().to_owned()
    }

    fn environ(&self) -> BTreeSet<&str> {
        self.lines("environ").iter().map(String::as_str).collect()
    }
}

struct Mount {
    point: String,
    options: BTreeSet<String>,
    kind: String,
    super_options: String,
}

impl Mount {
    fn has(&self, option: &str) -> bool {
        self.options.contains(option)
    }
}

/// A profile and what must come of it. Defaults are those of `run_as = nobody` in `compat`.
#[derive(Clone)]
struct Case {
    name: &'static str,
    strict: bool,
    lines: &'static str,
    uid: u32,
    gid: u32,
    /// Supplementary groups beside the primary one.
    groups: &'static [u32],
    caps: u64,
    nnp: bool,
    seccomp: bool,
    umask: &'static str,
    cwd: &'static str,
    /// Beyond what the baseline gives.
    env: &'static [&'static str],
    nice: i64,
    oom: &'static str,
    private_pid: bool,
    private_net: bool,
    private_ipc: bool,
    nofile: Option<&'static str>,
    /// More to look at.
    also: fn(&Seen, &Executor),
}

const NOBODY: u32 = 65534;

fn compat(name: &'static str, lines: &'static str) -> Case {
    Case {
        name,
        strict: false,
        lines,
        uid: NOBODY,
        gid: NOBODY,
        groups: &[],
        caps: 0,
        nnp: true,
        seccomp: false,
        umask: "0022",
        cwd: "/",
        env: &[],
        nice: 0,
        oom: "0",
        private_pid: false,
        private_net: false,
        private_ipc: false,
        nofile: None,
        also: |_, _| {},
    }
}

fn strict(name: &'static str, lines: &'static str) -> Case {
    Case {
        strict: true,
        seccomp: true,
        umask: "0077",
        oom: "500",
        private_pid: true,
        private_ipc: true,
        nofile: Some("1024"),
        ..compat(name, lines)
    }
}

fn root(case: Case) -> Case {
    Case {
        uid: 0,
        gid: 0,
        ..case
    }
}

fn cases() -> Vec<Case> {
    vec![
        compat("nobody", "run_as = nobody"),
        Case {
            caps: 1 << 10,
            ..compat(
                "nobody-bind",
                "run_as = nobody\ncaps = CAP_NET_BIND_SERVICE",
            )
        },
        root(compat("root", "run_as = root")),
        root(compat("unset", "")),
        Case {
            caps: 1,
            ..root(compat("root-chown", "run_as = root\ncaps = CAP_CHOWN"))
        },
        Case {
            caps: 0b10_0001,
            ..root(compat(
                "root-two",
                "run_as = root\ncaps = CAP_CHOWN, CAP_KILL",
            ))
        },
        Case {
            uid: 4711,
            gid: 4711,
            ..compat("number", "run_as = 4711")
        },
        Case {
            uid: 4711,
            gid: 1,
            groups: &[2, 4712],
            ..compat("groups", "run_as = 4711\ngroup = 1\ngroups = 2,4712")
        },
        Case {
            uid: 1500,
            gid: 1500,
            groups: &[1600, 1601],
            ..compat("account", "run_as = svc")
        },
        Case {
            uid: 1500,
            gid: 1500,
            groups: &[1600, 1601],
            ..compat("account-by-number", "run_as = 1500")
        },
        Case {
            uid: 1500,
            gid: 1500,
            ..compat("no-groups", "run_as = svc\ngroups = none")
        },
        Case {
            also: writable_compat,
            ..root(compat("writable", "run_as = root\nwritable = $T/data/w"))
        },
        Case {
            also: writable_compat,
            caps: 1,
            ..root(compat(
                "writable-cap",
                "run_as = root\ncaps = CAP_CHOWN\nwritable = $T/data/w:$T/data/absent",
            ))
        },
        Case {
            nnp: false,
            ..compat("nnp-off", "run_as = nobody\nno_new_privileges = no")
        },
        Case {
            private_net: true,
            also: no_link_up,
            ..compat("no-network", "run_as = nobody\nnetwork = none")
        },
        Case {
            private_net: true,
            also: loopback_up,
            ..compat("loopback", "run_as = nobody\nnetwork = loopback")
        },
        Case {
            private_pid: true,
            also: alone,
            ..compat("processes", "run_as = nobody\nprocesses = private")
        },
        Case {
            private_ipc: true,
            ..compat("ipc", "run_as = nobody\nipc = private")
        },
        Case {
            nofile: Some("99"),
            also: |seen, _| {
                assert_eq!(seen.limit("Max core file size"), pair("0", "0"));
                assert_eq!(seen.limit("Max file size"), pair("1048576", "1048576"));
                assert_eq!(seen.limit("Max cpu time"), pair("7", "7"));
                assert_eq!(
                    seen.limit("Max address space"),
                    pair("268435456", "268435456")
                );
                assert_eq!(seen.limit("Max processes"), pair("5000", "5000"));
            },
            ..compat(
                "limits",
                "run_as = nobody\nlimit_nofile = 99\nlimit_fsize = 1048576\nlimit_cpu = 7\nlimit_as = 268435456\nlimit_nproc = 5000",
            )
        },
        Case {
            umask: "0027",
            cwd: "/usr",
            nice: 5,
            oom: "300",
            env: &["A=1", "B=two"],
            ..compat(
                "small-things",
                "run_as = nobody\numask = 0027\ncwd = /usr\nnice = 5\noom_score_adj = 300\nenv = A=1 B=two",
            )
        },
        Case {
            seccomp: true,
            ..compat(
                "filter",
                "run_as = nobody\nsyscalls = default\nuserns = deny",
            )
        },
        Case {
            seccomp: true,
            ..compat("filter-strict", "run_as = nobody\nsyscalls = strict")
        },
        Case {
            also: minimal_dev,
            ..compat("devices", "run_as = nobody\ndevices = minimal")
        },
        Case {
            also: private_tmp,
            ..strict("s-nobody", "run_as = nobody")
        },
        Case {
            also: private_tmp,
            ..root(strict("s-root", "run_as = root"))
        },
        Case {
            caps: 1,
            also: private_tmp,
            ..root(strict("s-root-chown", "run_as = root\ncaps = CAP_CHOWN"))
        },
        Case {
            caps: 1 << 5,
            private_pid: false,
            ..strict("s-kill", "run_as = nobody\ncaps = CAP_KILL")
        },
        Case {
            also: writable_strict,
            ..root(strict("s-writable", "run_as = root\nwritable = $T/data/w"))
        },
        Case {
            private_net: true,
            also: alone,
            ..strict(
                "s-sealed",
                "run_as = nobody\nnetwork = none\nsyscalls = strict\nlandlock = require\ntcp_connect = none\ntcp_bind = none",
            )
        },
        Case {
            nnp: false,
            ..strict(
                "s-setuid",
                "run_as = nobody\nno_new_privileges = no\nallow_setuid = yes",
            )
        },
    ]
}

fn pair(soft: &str, hard: &str) -> (String, String) {
    (soft.to_owned(), hard.to_owned())
}

fn writable(seen: &Seen, executor: &Executor) {
    assert!(seen.mount("/usr").has("ro"), "the rest is read-only");
    assert!(seen.mount("/var").has("ro"));
    let carved = seen.mount(&executor.text("data/w"));
    assert_eq!(carved.point, executor.text("data/w"));
    assert!(
        carved.has("rw") && carved.has("nosuid"),
        "{:?}",
        carved.options
    );
    assert!(seen.mount(&executor.text("data")).has("ro"));
    assert!(seen.mount(&executor.text("etc")).has("ro"));
    assert!(
        seen.mount(&executor.text("etc/sub")).has("ro"),
        "what is mounted below a protected directory"
    );
    private_tmp_flags(seen);
}

fn writable_compat(seen: &Seen, executor: &Executor) {
    writable(seen, executor);
}

fn writable_strict(seen: &Seen, executor: &Executor) {
    writable(seen, executor);
    private_tmp(seen, executor);
}

fn private_tmp_flags(seen: &Seen) {
    for dir in ["/tmp", "/var/tmp"] {
        let tmp = seen.mount(dir);
        assert_eq!((tmp.point.as_str(), tmp.kind.as_str()), (dir, "tmpfs"));
        assert!(
            tmp.has("rw") && tmp.has("nosuid") && tmp.has("nodev"),
            "{dir} {:?}",
            tmp.options
        );
        assert!(
            tmp.super_options.contains("size="),
            "{dir} is bounded: {}",
            tmp.super_options
        );
    }
}

fn private_tmp(seen: &Seen, executor: &Executor) {
    private_tmp_flags(seen);
    assert!(
        seen.mount("/tmp").super_options.contains("size=65536k"),
        "{}",
        seen.mount("/tmp").super_options
    );
    minimal_dev(seen, executor);
}

fn minimal_dev(seen: &Seen, _: &Executor) {
    let found: BTreeSet<&str> = seen.lines("dev").iter().map(String::as_str).collect();
    for needed in [
        "null", "zero", "full", "random", "urandom", "tty", "shm", "fd", "stdin", "stdout",
        "stderr",
    ] {
        assert!(found.contains(needed), "/dev lacks {needed}: {found:?}");
    }
    for name in &found {
        let known = [
            "null", "zero", "full", "random", "urandom", "tty", "shm", "fd", "stdin", "stdout",
            "stderr", "pts", "ptmx", "mqueue", "log",
        ];
        assert!(known.contains(name), "/dev/{name} does not belong there");
    }
}

fn no_link_up(seen: &Seen, _: &Executor) {
    let links: Vec<&String> = seen
        .lines("links")
        .iter()
        .filter(|l| !l.trim_start().starts_with("lo:"))
        .collect();
    // Tunnels that some kernels put into every namespace carry nothing.
    assert!(
        links
            .iter()
            .all(|l| l.split_whitespace().nth(1) == Some("0")),
        "{links:?}"
    );
}

fn loopback_up(seen: &Seen, executor: &Executor) {
    no_link_up(seen, executor);
    assert!(
        seen.lines("fib").iter().any(|l| l.contains("127.0.0.1")),
        "loopback is up"
    );
}

fn alone(seen: &Seen, _: &Executor) {
    let count: u32 = seen.word("processes").parse().unwrap();
    assert!(count <= 8, "{count} processes are in sight");
}

#[test]
fn a_script_finds_what_its_profile_says() {
    if !root_or_skip("a_script_finds_what_its_profile_says") {
        return;
    }
    for baseline in ["compat", "strict"] {
        let cases: Vec<Case> = cases()
            .into_iter()
            .filter(|c| c.strict == (baseline == "strict"))
            .collect();
        let mut executor = Executor::new(baseline);
        accounts(&mut executor);
        executor.before("mount -t tmpfs -o mode=777 tmpfs \"$T/etc/sub\"");
        for case in &cases {
            executor.profile(case.name, case.lines);
            executor.script(case.name, case.name, PROBE);
        }
        executor.start();
        for case in &cases {
            println!("{baseline} {}", case.name);
            let ask = Ask::new(case.name)
                .args(&["one", "two words", ""])
                .stdin(b"{\"context\":1}");
            let told = executor.ask(&ask);
            check(case, &Seen::of(&told), &executor, &ask);
        }
        executor.wait_until_idle();
        assert_eq!(executor.stop(), 0);
        assert!(
            !executor.socket().exists(),
            "the socket goes with the executor"
        );
    }
}

/// An account of our own with groups, in the executor's mount namespace only.
fn accounts(executor: &mut Executor) {
    let passwd: String = std::fs::read_to_string("/etc/passwd")
        .unwrap()
        .lines()
        .filter(|line| !line.starts_with("nobody:"))
        .map(|line| format!("{line}\n"))
        .collect();
    let group = std::fs::read_to_string("/etc/group").unwrap();
    executor.write("state/passwd", format!("{passwd}nobody:x:65534:65534::/nonexistent:/bin/false\nsvc:x:1500:1500::/home/svc:/bin/false\n"), 0o644);
    executor.write(
        "state/group",
        format!("{group}svc:x:1500:\nextra:x:1600:svc\nmore:x:1601:nobody2,svc\n"),
        0o644,
    );
    executor.before(
        "mount --bind \"$T/state/passwd\" /etc/passwd\nmount --bind \"$T/state/group\" /etc/group",
    );
}

#[track_caller]
fn check(case: &Case, seen: &Seen, executor: &Executor, ask: &Ask) {
    let name = case.name;
    // Identity: real, effective, saved and file-system ids.
    assert_eq!(
        seen.status("Uid"),
        vec![case.uid.to_string(); 4].join(" "),
        "{name}"
    );
    assert_eq!(
        seen.status("Gid"),
        vec![case.gid.to_string(); 4].join(" "),
        "{name}"
    );
    let mut groups: BTreeSet<u32> = seen
        .status("Groups")
        .split(' ')
        .filter_map(|g| g.parse().ok())
        .collect();
    groups.remove(&case.gid);
    assert_eq!(
        groups,
        case.groups.iter().copied().collect(),
        "{name}: supplementary groups"
    );
    // Capabilities.
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(seen.mask(set), case.caps, "{name}: {set}");
    }
    assert_eq!(
        seen.status("NoNewPrivs"),
        u8::from(case.nnp).to_string(),
        "{name}"
    );
    assert_eq!(
        seen.status("Seccomp"),
        if case.seccomp { "2" } else { "0" },
        "{name}"
    );
    // Descriptors: 3 is the listing itself.
    assert_eq!(seen.lines("fds"), ["0", "1", "2", "3"], "{name}");
    assert_eq!(seen.word("umask"), case.umask, "{name}");
    assert_eq!(seen.word("pwd"), case.cwd, "{name}");
    // Environment, exact.
    let reqid = format!("ENVEXEC_REQID={}", ask.reqid);
    let (script, profile) = (
        format!("ENVEXEC_SCRIPT={name}"),
        format!("ENVEXEC_PROFILE={name}"),
    );
    let mut environ: BTreeSet<&str> = [PATH].into();
    environ.extend(case.env);
    if case.strict {
        let (home, user, logname) = if case.uid == 0 {
            ("HOME=/root", "USER=root", "LOGNAME=root")
        } else {
            ("HOME=/nonexistent", "USER=nobody", "LOGNAME=nobody")
        };
        environ.extend([
            home,
            user,
            logname,
            "SHELL=/bin/sh",
            "LANG=C.UTF-8",
            "TMPDIR=/tmp",
            &reqid,
            &script,
            &profile,
        ]);
    }
    assert_eq!(seen.environ(), environ, "{name}");
    assert_eq!(
        seen.lines("environ").len(),
        environ.len(),
        "{name}: a variable stands twice"
    );
    // Arguments and stdin, byte for byte.
    assert_eq!(
        seen.lines("argv"),
        [
            executor.text(&format!("scripts/{name}")),
            "one".to_owned(),
            "two words".to_owned(),
            String::new()
        ],
        "{name}"
    );
    assert_eq!(seen.lines("stdin"), ["{\"context\":1}"], "{name}");
    // Session and signals.
    let session = seen.stat(3);
    let own = std::fs::read_to_string(format!("/proc/{}/stat", executor.pid())).unwrap();
    let executors: i64 = own
        .rsplit_once(')')
        .unwrap()
        .1
        .split_whitespace()
        .nth(3)
        .unwrap()
        .parse()
        .unwrap();
    assert!(
        session != 0 && session != executors,
        "{name}: session {session}"
    );
    assert_eq!(seen.stat(2), session, "{name}: leads its process group");
    for set in ["SigBlk", "ShdPnd", "SigIgn", "SigPnd"] {
        assert_eq!(seen.mask(set), 0, "{name}: {set}");
    }
    // Namespaces.
    let mine = |what: &str| {
        std::fs::read_link(format!("/proc/self/ns/{what}"))
            .unwrap()
            .display()
            .to_string()
    };
    assert_ne!(seen.namespace("mnt"), mine("mnt"), "{name}");
    assert_eq!(seen.namespace("user"), mine("user"), "{name}");
    for (what, private) in [
        ("pid", case.private_pid),
        ("net", case.private_net),
        ("ipc", case.private_ipc),
    ] {
        assert_eq!(
            seen.namespace(what) != mine(what),
            private,
            "{name}: {what} namespace"
        );
    }
    // Limits.
    assert_eq!(seen.limit("Max core file size"), pair("0", "0"), "{name}");
    if let Some(nofile) = case.nofile {
        assert_eq!(seen.limit("Max open files"), pair(nofile, nofile), "{name}");
    }
    // Nice is field 19 of stat, priority 18.
    assert_eq!(seen.stat(16), case.nice, "{name}: nice");
    assert_eq!(seen.word("oom"), case.oom, "{name}: oom_score_adj");
    assert_eq!(
        seen.word("dumpable"),
        case.uid.to_string(),
        "{name}: a script starts dumpable"
    );
    // The view: always protected, tunables never writable.
    assert!(
        seen.mount(&executor.text("etc/agent.conf")).has("ro"),
        "{name}: configuration"
    );
    assert!(
        seen.mount(&executor.text(&format!("scripts/{name}")))
            .has("ro"),
        "{name}: scripts"
    );
    assert!(seen.mount("/proc/sys").has("ro"), "{name}: /proc/sys");
    assert!(seen.mount("/sys/kernel").has("ro"), "{name}: /sys/kernel");
    if let Some(group) = executor.cgroup() {
        let base = group.file_name().unwrap().to_str().unwrap();
        let line = seen
            .lines("cgroup")
            .iter()
            .find(|l| l.starts_with("0::"))
            .unwrap();
        assert!(line.contains(base), "{name}: {line}");
    }
    (case.also)(seen, executor);
}

#[test]
fn limits_of_a_group_are_written_where_the_kernel_has_them() {
    if !root_or_skip("limits_of_a_group_are_written_where_the_kernel_has_them") {
        return;
    }
    let mut executor = Executor::new("compat");
    executor.profile("try", "run_as = nobody\npids_max = 20\ncgroup = try");
    executor.profile("must", "run_as = nobody\npids_max = 20\ncgroup = require");
    for name in ["try", "must"] {
        executor.shell(
            name,
            name,
            "n=0; while [ $n -lt 40 ]; do sleep 3 & n=$((n+1)); done 2>&1; echo started",
        );
    }
    executor.start();
    if controller("pids") {
        for name in ["try", "must"] {
            let told = executor.run(name);
            assert!(
                told.exit != 0 || told.out().contains("fork") || told.out().contains("Cannot"),
                "{}",
                told.out()
            );
        }
    } else {
        executor.run("must").exit(126).err_has("pids");
        assert!(executor.run("try").exit(0).out().contains("started"));
        executor.wait_for_log(&["ACTION=exec-degraded", "FEATURE=cgroup"]);
    }
}

#[test]
fn what_cannot_be_resolved_is_not_run() {
    if !root_or_skip("what_cannot_be_resolved_is_not_run") {
        return;
    }
    let mut executor = Executor::new("compat");
    executor.profile("ghost", "run_as = nosuchuser");
    executor.profile("ghost-group", "run_as = nobody\ngroup = nosuchgroup");
    executor.profile("default", "run_as = nobody");
    executor.profile("setuid", "run_as = nobody");
    for name in ["ghost", "ghost-group"] {
        executor.shell(name, name, "id -u");
    }
    executor.shell("undefined", "nowhere", "id -u");
    executor.shell("private", "default", "id -u");
    executor.entry("outside", "/bin/true profile=default");
    std::fs::set_permissions(
        executor.path("scripts/private"),
        std::os::unix::fs::PermissionsExt::from_mode(0o750),
    )
    .unwrap();
    executor.start();
    executor
        .run("ghost")
        .exit(126)
        .err_has("executor: unknown run_as 'nosuchuser'");
    executor.run("ghost-group").exit(126).err_has("nosuchgroup");
    executor
        .run("private")
        .exit(126)
        .err_has("is not executable by the profile's run_as user");
    for (name, text) in [
        ("undefined", "executor: undefined profile\n"),
        ("outside", "executor: script not in script_dirs\n"),
        ("unlisted", "executor: script not permitted\n"),
        ("a b", "executor: script not permitted\n"),
    ] {
        let told = executor.run(name).exit(-1);
        assert_eq!((told.out().as_str(), told.err().as_str()), ("", text));
    }
    for reason in ["not-allowlisted", "not-in-script-dirs", "undefined-profile"] {
        executor.wait_for_log(&["ACTION=exec-deny", &format!("REASON={reason}")]);
    }
}

#[test]
fn uid_0_gets_nothing_at_exec_when_root_semantics_are_off() {
    if !root_or_skip("uid_0_gets_nothing_at_exec_when_root_semantics_are_off") {
        return;
    }
    let mut executor = Executor::new("compat");
    executor.profile(
        "off",
        "run_as = root\ncaps = CAP_CHOWN\nroot_semantics = off",
    );
    executor.script("off", "off", PROBE);
    executor.start();
    let seen = Seen::of(&executor.run("off"));
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(seen.mask(set), 1, "{set}");
    }
}

#[test]
fn a_changed_policy_counts_from_the_next_request_on() {
    if !root_or_skip("a_changed_policy_counts_from_the_next_request_on") {
        return;
    }
    let mut executor = Executor::new("compat");
    executor.profile("p", "run_as = nobody");
    executor.shell("who", "p", "id -u");
    executor.start();
    assert_eq!(executor.run("who").exit(0).out(), "65534\n");
    executor.profile("p2", "run_as = 4711");
    executor.shell("who2", "p2", "id -u");
    executor.write_config();
    assert_eq!(executor.run("who2").exit(0).out(), "4711\n");
    // A broken file leaves what was there in force, and says so.
    executor.write("etc/agent.conf", "port = 7443\n[profile p\n", 0o640);
    assert_eq!(executor.run("who2").exit(0).out(), "4711\n");
    executor.wait_for_log(&["ACTION=policy-reload-failed"]);
    executor.write_config();
    executor.run("who").exit(0);
    executor.wait_for_log(&["ACTION=policy-reload "]);
}
