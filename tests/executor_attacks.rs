//! Attacks from inside a script (spec/executor.md 14, 19): what each identity can and cannot do under each baseline. Where an attack is
//! not stopped the table says so, and the test insists on that too: docs/security.md shows this table.

#![allow(clippy::unwrap_used, reason = "helpers of tests stop as tests do")]

mod common;

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::PathBuf;
use std::process::Command;

use common::executor::{Ask, Executor, controller, landlock_abi};
use common::{Daemon, process, root_or_skip};

const ATTACK: &str = include_str!("common/attack.py");
/// Beside what the attack itself does: user and system calls of a plain process, without any sandbox.
const DOCUMENT: &str = include_str!("../docs/security.md");

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Who {
    Nobody,
    Root,
    /// Root with CAP_CHOWN.
    RootCap,
}

impl Who {
    const ALL: [Self; 3] = [Self::Nobody, Self::Root, Self::RootCap];

    fn lines(self) -> &'static str {
        match self {
            Self::Nobody => "run_as = nobody",
            Self::Root => "run_as = root",
            Self::RootCap => "run_as = root\ncaps = CAP_CHOWN",
        }
    }

    fn is_root(self) -> bool {
        self != Self::Nobody
    }
}

/// Under which profile an attack runs.
#[derive(Clone, Copy, Debug)]
struct Combo {
    strict: bool,
    who: Who,
    writable: bool,
}

impl Combo {
    fn all() -> impl Iterator<Item = Self> {
        [false, true].into_iter().flat_map(|strict| {
            Who::ALL.into_iter().flat_map(move |who| {
                [false, true].map(|writable| Self {
                    strict,
                    who,
                    writable,
                })
            })
        })
    }

    fn name(self) -> String {
        let who = match self.who {
            Who::Nobody => "nobody",
            Who::Root => "root",
            Who::RootCap => "rootcap",
        };
        format!("{who}{}", if self.writable { "-w" } else { "" })
    }
}

/// What the machine itself offers.
#[derive(Debug)]
struct Machine {
    landlock: u32,
    memory: bool,
    pids: bool,
    hard_links_protected: bool,
}

impl Machine {
    /// The one that the documentation speaks of: Linux 6.12 or newer, cgroup v2 delegated.
    const FULL: Self = Self {
        landlock: 7,
        memory: true,
        pids: true,
        hard_links_protected: true,
    };

    fn this() -> Self {
        let protected = std::fs::read_to_string("/proc/sys/fs/protected_hardlinks")
            .is_ok_and(|t| t.trim() == "1");
        Self {
            landlock: landlock_abi(),
            memory: controller("memory"),
            pids: controller("pids"),
            hard_links_protected: protected,
        }
    }
}

/// Is the attack open?
type Open = fn(Combo, &Machine) -> bool;

struct Row {
    name: &'static str,
    /// For people: what the script tries.
    what: &'static str,
    open: Open,
}

fn never(_: Combo, _: &Machine) -> bool {
    false
}
fn always(_: Combo, _: &Machine) -> bool {
    true
}
fn compat(combo: Combo, _: &Machine) -> bool {
    !combo.strict
}
fn as_root(combo: Combo, _: &Machine) -> bool {
    combo.who.is_root() && !combo.writable
}
/// Only a PID namespace stops signals among processes of root: in `compat` a script may have to signal its daemons.
fn signal_to_root(combo: Combo, _: &Machine) -> bool {
    combo.who.is_root() && !combo.strict
}
fn own_tmp(combo: Combo, _: &Machine) -> bool {
    !combo.strict && !combo.writable
}

/// Open to everybody by its mode; it trusts uid 0.
fn managers_bus(combo: Combo, _: &Machine) -> bool {
    !(combo.strict && combo.who.is_root())
}

const fn row(name: &'static str, what: &'static str, open: Open) -> Row {
    Row { name, what, open }
}

/// Every attack of spec/executor.md 19 that a script can start by itself; what concerns supervision is in executor_supervision.rs.
const ROWS: &[Row] = &[
    row("read-secret", "read the agent's private key", never),
    row(
        "list-secrets",
        "look into the directory of the executor's socket",
        never,
    ),
    row(
        "forge-reply",
        "write a forged answer to every open descriptor",
        never,
    ),
    row(
        "inherited-write",
        "write through a descriptor opened before the mounts changed",
        never,
    ),
    row(
        "executor-socket",
        "connect to the executor and run another script",
        never,
    ),
    row(
        "remount-control",
        "make the configuration directory writable again",
        never,
    ),
    row(
        "umount-control",
        "unmount what protects the configuration directory",
        never,
    ),
    row("user-namespace", "make a user namespace", compat),
    row(
        "user-namespace-remount",
        "undo the protection of mounts from within a user namespace",
        never,
    ),
    row(
        "sub-mount",
        "write below a file system mounted in a protected directory",
        never,
    ),
    row(
        "add-config",
        "put a file into the directory of the configuration",
        never,
    ),
    row("change-config", "change agent.conf", never),
    row("change-script", "change the running script", never),
    row("add-script", "put a file into the script directory", never),
    row("change-root-file", "change a file that root owns", as_root),
    row(
        "create-root-file",
        "create a file in a directory that root owns",
        as_root,
    ),
    row("chown-file", "give away a file that root owns", |c, _| {
        c.who == Who::RootCap && !c.writable
    }),
    row(
        "core-pattern",
        "have the kernel run a program (kernel.core_pattern)",
        never,
    ),
    row(
        "modprobe-path",
        "have the kernel run a program (kernel.modprobe)",
        never,
    ),
    row(
        "uevent-helper",
        "have the kernel run a program (uevent_helper)",
        never,
    ),
    row("sysrq", "write to /proc/sysrq-trigger", never),
    row(
        "cgroup-write",
        "leave its cgroup or change limits there",
        never,
    ),
    row("kill-executor", "signal the executor", signal_to_root),
    row(
        "kill-supervisor",
        "signal the process that watches the run",
        signal_to_root,
    ),
    row("kill-front-end", "signal the agent", never),
    row("trace-executor", "trace the executor", never),
    row("trace-front-end", "trace the agent", never),
    row("read-executor-memory", "read the executor's memory", never),
    row(
        "proc-executor",
        "use /proc/PID/root, cwd, fd, mem of the executor",
        never,
    ),
    row("proc-init-root", "use /proc/1/root", never),
    row(
        "steal-descriptor",
        "take a descriptor out of the executor",
        never,
    ),
    row("see-processes", "see other processes", compat),
    row("device-node", "make a device node", never),
    row("raw-disk", "read a disk below its file system", |c, _| {
        c.who.is_root() && !c.strict
    }),
    row("kernel-memory", "open /dev/mem", never),
    row(
        "open-by-handle",
        "open files by handle, past the mounts",
        never,
    ),
    row(
        "setuid-binary",
        "gain an identity from a set-user-id program",
        never,
    ),
    row(
        "file-capabilities",
        "gain capabilities from a program's file",
        never,
    ),
    row("become-root", "become root by asking", never),
    row("fork-bomb", "start 300 processes", |c, m| {
        !(c.strict && m.pids)
    }),
    row("memory-hog", "use 640 MiB", |c, m| !(c.strict && m.memory)),
    row("fill-tmp", "write 96 MiB to /tmp", compat),
    row("many-files", "open 1500 files", compat),
    row("core-dump", "leave a core dump", never),
    row(
        "manager-private",
        "reach systemd's private socket",
        |c, _| c.who.is_root() && !c.strict,
    ),
    row("manager-bus", "reach the system bus", managers_bus),
    row("manager-ubus", "reach OpenWrt's ubus", managers_bus),
    row(
        "abstract-socket",
        "reach an abstract socket of another process",
        |_, m| m.landlock < 6,
    ),
    row("tcp-connect", "connect by TCP (network = host)", always),
    row(
        "tcp6-connect",
        "connect by TCP over IPv6 (network = host)",
        always,
    ),
    row("tcp-bind", "listen on a TCP port (network = host)", always),
    row("udp-send", "send UDP (network = host)", always),
    row("raw-socket", "open a raw socket", never),
    row(
        "odd-socket",
        "open a socket of another family (vsock)",
        compat,
    ),
    row("terminal-input", "type into a terminal (TIOCSTI)", never),
    row("io-uring", "use io_uring", compat),
    row("key-ring", "use the kernel's key rings", compat),
    row("user-fault", "use userfaultfd", compat),
    row(
        "hard-link-out",
        "hard-link a file from outside into its own directory",
        |c, m| !c.writable && (c.who.is_root() || !m.hard_links_protected),
    ),
    row(
        "rename-in",
        "move a file from outside into its own directory",
        as_root,
    ),
    row("symlink-out", "write outside through a symlink", as_root),
    row("execute-written", "execute what it has written", always),
    row(
        "leave-setuid",
        "leave a set-user-id file for others",
        own_tmp,
    ),
    row("see-other-tmp", "see what others have in /tmp", own_tmp),
    row("see-other-shm", "see what others have in /dev/shm", compat),
];

/// Attacks that a machine may refuse by itself, to anybody.
const MAY_BE_ABSENT: &[&str] = &[
    "user-namespace",
    "io-uring",
    "key-ring",
    "user-fault",
    "raw-disk",
    "odd-socket",
    "tcp6-connect",
];

/// Everything that is attacked.
struct Scene {
    executor: Executor,
    given: serde_json::Value,
    front_end: Daemon,
    _bus: Vec<UnixListener>,
    _abstract: UnixListener,
    tcp: TcpListener,
    _tcp6: Option<TcpListener>,
    canaries: [PathBuf; 2],
}

impl Drop for Scene {
    fn drop(&mut self) {
        for path in &self.canaries {
            let _ = std::fs::remove_file(path);
        }
    }
}

impl Scene {
    /// Adds what is attacked; the caller adds profiles and starts.
    fn new(baseline: &str) -> Self {
        let mut executor = Executor::new(baseline);
        let id = format!(
            "{}-{baseline}-{:?}",
            std::process::id(),
            std::thread::current().id()
        );
        let id: String = id
            .chars()
            .filter(|c| c.is_ascii_alphanumeric() || *c == '-')
            .collect();
        executor.write("data/root-file2", "root's\n", 0o644);
        std::fs::set_permissions(
            executor.path("data/w"),
            std::fs::Permissions::from_mode(0o777),
        )
        .unwrap();
        for (from, to, mode) in [
            ("/usr/bin/id", "data/setuid-id", 0o4755),
            ("/bin/cat", "data/filecap-cat", 0o755),
        ] {
            std::fs::copy(from, executor.path(to)).unwrap();
            std::fs::set_permissions(executor.path(to), std::fs::Permissions::from_mode(mode))
                .unwrap();
        }
        // CAP_SETUID, permitted and effective, as setcap writes it.
        let set = "import os,sys,struct; os.setxattr(sys.argv[1], 'security.capability', struct.pack('<IIIII', 0x02000001, 1 << 7, 0, 0, 0))";
        process::run(
            Command::new("/usr/bin/python3")
                .args(["-c", set])
                .arg(executor.path("data/filecap-cat")),
        )
        .ok();
        // Sockets of managers, at their places in the executor's mount namespace.
        let mut bus = Vec::new();
        executor.before(
            "mount -t tmpfs -o mode=755 tmpfs /run; mkdir /run/systemd /run/dbus /run/ubus",
        );
        for (name, place) in [
            ("private", "/run/systemd/private"),
            ("bus", "/run/dbus/system_bus_socket"),
            ("ubus", "/run/ubus/ubus.sock"),
        ] {
            let path = executor.path("data").join(name);
            bus.push(UnixListener::bind(&path).unwrap());
            let mode = if name == "private" { 0o600 } else { 0o666 };
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            executor.before(&format!(
                "touch {place}; mount --bind \"$T/data/{name}\" {place}"
            ));
        }
        executor.before("mount -t tmpfs -o mode=1777 tmpfs \"$T/etc/sub\"; mkdir \"$T/scripts/sub\"; mount -t tmpfs -o mode=1777 tmpfs \"$T/scripts/sub\"");
        let name = format!("ce-test-{id}");
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let front_end = Daemon::start(Command::new("setpriv").args([
            "--reuid=4242",
            "--regid=4242",
            "--clear-groups",
            "sleep",
            "600",
        ]));
        let tcp = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let tcp6 = TcpListener::bind(("::1", 0)).ok();
        let canaries =
            ["/tmp", "/dev/shm"].map(|dir| PathBuf::from(dir).join(format!("ce-canary-{id}")));
        for path in &canaries {
            std::fs::write(path, "").unwrap();
        }
        let disk = disk();
        let given = serde_json::json!({
            "key": executor.text("etc/agent.key"), "socket": executor.socket(), "etc": executor.text("etc"), "data": executor.text("data"),
            "other": "attack-root", "scratch": "/tmp", "abstract": name, "port": tcp.local_addr().unwrap().port(),
            "port6": tcp6.as_ref().map_or(1, |t| t.local_addr().unwrap().port()), "front_end": front_end.pid(),
            "disk": [disk.1, disk.2], "disk_path": disk.0,
            "cgroup": executor.cgroup().map_or("/sys/fs/cgroup".to_owned(), |g| g.display().to_string()),
        });
        Self {
            _abstract: UnixListener::bind_addr(&address).unwrap(),
            executor,
            given,
            front_end,
            _bus: bus,
            tcp,
            _tcp6: tcp6,
            canaries,
        }
    }

    fn add(&mut self, name: &str, lines: &str) {
        self.executor.profile(name, lines);
        self.executor
            .script(&format!("attack-{name}"), name, ATTACK);
    }

    fn start(&mut self) {
        self.executor.start();
        self.given["executor"] = self.executor.pid().into();
        assert!(self.front_end.is_running());
    }

    /// Answers per attack whether it was open, and the reason.
    #[track_caller]
    fn attack(&self, profile: &str, only: &[&str]) -> BTreeMap<String, (bool, String)> {
        let given = self.given.to_string();
        let mut args = vec![given.as_str()];
        args.extend(only);
        let told = self
            .executor
            .ask(&Ask::new(&format!("attack-{profile}")).args(&args))
            .exit(0);
        let out = told.out();
        assert!(out.ends_with("end\n"), "{profile}: {out}\n{}", told.err());
        let mut found = BTreeMap::new();
        for line in out.lines().filter(|l| *l != "end") {
            let mut words = line.splitn(3, ' ');
            let (name, state) = (words.next().unwrap(), words.next().unwrap());
            let why = words.next().unwrap_or_default();
            assert!(state != "BROKEN", "{profile}: {line}: {}", told.err());
            found.insert(name.to_owned(), (state == "open", why.to_owned()));
        }
        found
    }

    /// Which attacks a process without any sandbox can do.
    fn without_sandbox(&self, only: &[&str]) -> Vec<String> {
        let mut command = Command::new("/usr/bin/python3");
        command
            .arg(self.executor.path("scripts/attack-root"))
            .arg(self.given.to_string())
            .args(only);
        let run = process::run(&mut command).ok();
        run.out()
            .lines()
            .filter_map(|line| line.split_once(" open").map(|(name, _)| name.to_owned()))
            .collect()
    }
}

/// A block device of this machine, with its numbers.
fn disk() -> (String, u64, u64) {
    for entry in std::fs::read_dir("/dev").unwrap().flatten() {
        let name = entry.file_name().display().to_string();
        let Ok(metadata) = entry.metadata() else {
            continue;
        };
        let real = !name.starts_with("loop") && !name.starts_with("ram");
        if metadata.file_type().is_block_device()
            && real
            && std::fs::File::open(entry.path()).is_ok()
        {
            let number = metadata.rdev();
            return (
                entry.path().display().to_string(),
                number >> 8 & 0xfff,
                number & 0xff,
            );
        }
    }
    ("/dev/absent".to_owned(), 7, 0)
}

#[test]
fn each_attack_is_stopped_where_the_table_says_so() {
    if !root_or_skip("each_attack_is_stopped_where_the_table_says_so") {
        return;
    }
    let machine = Machine::this();
    println!("{machine:?}");
    let mut wrong = Vec::new();
    for strict in [false, true] {
        let mut scene = Scene::new(if strict { "strict" } else { "compat" });
        let combos: Vec<Combo> = Combo::all().filter(|c| c.strict == strict).collect();
        for combo in &combos {
            let carved = if combo.writable {
                "\nwritable = $T/data/w"
            } else {
                ""
            };
            scene.add(&combo.name(), &format!("{}{carved}", combo.who.lines()));
        }
        scene.start();
        let possible = scene.without_sandbox(MAY_BE_ABSENT);
        for combo in combos {
            let found = scene.attack(&combo.name(), &[]);
            for row in ROWS {
                let (open, why) = found
                    .get(row.name)
                    .unwrap_or_else(|| panic!("attack.py knows no {}", row.name));
                let absent = MAY_BE_ABSENT.contains(&row.name)
                    && !possible.iter().any(|name| name == row.name);
                let expected = (row.open)(combo, &machine) && !absent;
                if *open != expected {
                    let word = if *open {
                        "is OPEN"
                    } else {
                        "is stopped, the table says open"
                    };
                    wrong.push(
                        format!(
                            "{} {} {word}: {why}",
                            if strict { "strict" } else { "compat" },
                            combo.name()
                        ) + " - "
                            + row.name,
                    );
                }
            }
            for name in found.keys() {
                assert!(
                    ROWS.iter().any(|row| row.name == name),
                    "{name} is not in the table"
                );
            }
        }
        assert!(scene.front_end.is_running());
        assert!(scene.executor.daemon().is_running());
    }
    assert!(
        wrong.is_empty(),
        "{} surprises:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}

/// Capabilities that void a protection do so, and only that one.
#[test]
fn what_one_capability_opens() {
    if !root_or_skip("what_one_capability_opens") {
        return;
    }
    let mut scene = Scene::new("compat");
    let rows: &[(&str, &[(&str, bool)])] = &[
        (
            "CAP_KILL",
            &[
                ("kill-executor", true),
                ("read-secret", false),
                ("executor-socket", false),
            ],
        ),
        (
            "CAP_DAC_OVERRIDE",
            &[
                ("executor-socket", false),
                ("read-secret", false),
                ("change-config", false),
                ("core-pattern", false),
            ],
        ),
        (
            "CAP_DAC_READ_SEARCH",
            &[("open-by-handle", true), ("read-secret", false)],
        ),
        (
            "CAP_MKNOD",
            &[("device-node", true), ("read-secret", false)],
        ),
        ("CAP_SYS_ADMIN", &[("remount-control", true)]),
        (
            "CAP_NET_RAW",
            &[("raw-socket", true), ("read-secret", false)],
        ),
    ];
    for (cap, _) in rows {
        scene.add(
            &cap.to_lowercase().replace('_', "-"),
            &format!("run_as = root\ncaps = {cap}"),
        );
    }
    scene.add("root", "run_as = root");
    scene.start();
    for (cap, attacks) in rows {
        let names: Vec<&str> = attacks.iter().map(|(name, _)| *name).collect();
        let found = scene.attack(&cap.to_lowercase().replace('_', "-"), &names);
        for (name, open) in *attacks {
            assert_eq!(found[*name].0, *open, "{cap}: {name}: {}", found[*name].1);
        }
    }
}

#[test]
fn without_no_new_privileges_a_set_user_id_program_works() {
    if !root_or_skip("without_no_new_privileges_a_set_user_id_program_works") {
        return;
    }
    for (baseline, more) in [("compat", ""), ("strict", "\nallow_setuid = yes")] {
        let mut scene = Scene::new(baseline);
        scene.add(
            "off",
            &format!("run_as = nobody\nno_new_privileges = no{more}"),
        );
        scene.add("root", "run_as = root");
        scene.start();
        let found = scene.attack(
            "off",
            &[
                "setuid-binary",
                "file-capabilities",
                "read-secret",
                "executor-socket",
                "change-config",
            ],
        );
        assert!(
            found["setuid-binary"].0,
            "{baseline}: {}",
            found["setuid-binary"].1
        );
        // The bounding set is empty all the same.
        for name in [
            "file-capabilities",
            "read-secret",
            "executor-socket",
            "change-config",
        ] {
            assert!(!found[name].0, "{baseline}: {name} is open");
        }
    }
}

/// A service manager trusts uid 0: in `compat` a profile of root that needs none hides its sockets.
#[test]
fn sockets_of_managers_can_be_hidden() {
    if !root_or_skip("sockets_of_managers_can_be_hidden") {
        return;
    }
    for baseline in ["compat", "strict"] {
        let mut scene = Scene::new(baseline);
        scene.add(
            "root",
            "run_as = root\nhide = /run/systemd/private:/run/dbus/system_bus_socket:/run/ubus",
        );
        scene.start();
        let names = ["manager-private", "manager-bus", "manager-ubus"];
        let found = scene.attack("root", &names);
        for name in names {
            assert!(!found[name].0, "{baseline}: {name} is open");
        }
    }
}

#[test]
fn ports_and_networks_are_bounded_as_the_profile_says() {
    if !root_or_skip("ports_and_networks_are_bounded_as_the_profile_says") {
        return;
    }
    let network = [
        "tcp-connect",
        "tcp6-connect",
        "tcp-bind",
        "udp-send",
        "abstract-socket",
    ];
    let mut scene = Scene::new("compat");
    let port = scene.tcp.local_addr().unwrap().port();
    scene.add(
        "list",
        &format!("run_as = nobody\ntcp_connect = {port}\ntcp_bind = none"),
    );
    scene.add(
        "other",
        &format!(
            "run_as = root\ntcp_connect = {}\ntcp_bind = none",
            if port == 9 { 10 } else { 9 }
        ),
    );
    scene.add("sealed", "run_as = root\nnetwork = none");
    scene.add("loopback", "run_as = nobody\nnetwork = loopback");
    scene.add("root", "run_as = root");
    scene.start();
    let abi = landlock_abi();
    for (profile, open) in [
        ("list", ["tcp-connect", "udp-send"].as_slice()),
        // Landlock knows TCP only.
        ("other", &["udp-send"]),
        // Whom nobody can reach may listen.
        ("sealed", &["tcp-bind"]),
        ("loopback", &["tcp-bind", "udp-send"]),
    ] {
        if abi < 4 && matches!(profile, "list" | "other") {
            let told = scene
                .executor
                .ask(&Ask::new(&format!("attack-{profile}")).args(&["{}"]));
            told.exit(126).err_has("tcp_");
            continue;
        }
        let found = scene.attack(profile, &network);
        for name in network {
            assert_eq!(
                found[name].0,
                open.contains(&name),
                "{profile}: {name}: {}",
                found[name].1
            );
        }
    }
}

#[test]
fn the_documentation_shows_this_table() {
    let table = table();
    println!("{table}");
    let begin = "<!-- attacks: begin -->\n";
    let Some((_, rest)) = DOCUMENT.split_once(begin) else {
        panic!("docs/security.md lacks the line {begin:?}");
    };
    let shown = rest.split_once("<!-- attacks: end -->").unwrap().0;
    assert_eq!(
        shown.trim(),
        table.trim(),
        "docs/security.md: put the printed table there"
    );
}

/// One line per attack: who is not stopped.
fn table() -> String {
    let mut text = String::from(
        "| A script tries to | `compat` | `compat`, `writable` | `strict` | `strict`, `writable` |\n| --- | --- | --- | --- | --- |\n",
    );
    for row in ROWS {
        text.push_str(&format!("| {} |", row.what));
        for (strict, writable) in [(false, false), (false, true), (true, false), (true, true)] {
            let open: Vec<Who> = Who::ALL
                .into_iter()
                .filter(|who| {
                    (row.open)(
                        Combo {
                            strict,
                            who: *who,
                            writable,
                        },
                        &Machine::FULL,
                    )
                })
                .collect();
            let cell = match open.as_slice() {
                [] => "stopped",
                [_, _, _] => "**open**",
                [Who::Nobody] => "**open** to `nobody`",
                [Who::Root, Who::RootCap] => "**open** to root",
                [Who::RootCap] => "**open** to root with `CAP_CHOWN`",
                _ => unreachable!("no row is like this"),
            };
            text.push_str(&format!(" {cell} |"));
        }
        text.push('\n');
    }
    text
}
