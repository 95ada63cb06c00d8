//! `ctrl-exec install` and `uninstall` on simulated Debian, Alpine and OpenWrt roots, on hosts of 0.12.3, and on a throw-away copy of
//! this very system (spec/operations.md 2-7, 17).

mod common;

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use common::process::{Run, run};
use common::{binary, root_or_skip};
use tempfile::TempDir;

const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nnobody:*:65534:65534:nobody:/:/bin/false\n";
const GROUP: &str = "root:x:0:\nnogroup:x:65534:";
const SHADOW: &str = "root:!:0:0:99999:7:::\n";

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum System {
    Debian,
    Alpine,
    OpenWrt,
}

/// The root of a system, as far as an installation looks at it.
struct Root(TempDir);

/// Kind, owner, group, mode and content (or target) of everything below a directory.
type Tree = BTreeMap<String, (char, u32, u32, u32, Vec<u8>)>;

impl Root {
    fn new(system: System) -> Self {
        Self::below(&std::env::temp_dir(), system)
    }

    fn below(dir: &Path, system: System) -> Self {
        let folder = tempfile::Builder::new()
            .prefix("ce-install-")
            .tempdir_in(dir);
        let root = Self(folder.expect("a folder"));
        root.write(
            match system {
                System::Debian => "etc/debian_version",
                System::Alpine => "etc/alpine-release",
                System::OpenWrt => "etc/openwrt_release",
            },
            "13\n",
            0o644,
        );
        root.write("etc/passwd", PASSWD, 0o644);
        root.write("etc/group", GROUP, 0o644);
        root.write("etc/shadow", SHADOW, 0o640);
        if system == System::OpenWrt {
            std::fs::create_dir(root.path("tmp")).expect("tmp");
            symlink("tmp", root.path("var")).expect("var");
        }
        root
    }

    fn path(&self, path: &str) -> std::path::PathBuf {
        self.0.path().join(path.trim_start_matches('/'))
    }

    fn write(&self, path: &str, text: &str, mode: u32) {
        let path = self.path(path);
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("folders");
        std::fs::write(&path, text).expect("written");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("mode");
    }

    fn read(&self, path: &str) -> String {
        std::fs::read_to_string(self.path(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(binary());
        command
            .args(words)
            .env_clear()
            .env("CTRL_EXEC_ROOT", self.0.path())
            .stdin(Stdio::null());
        command
    }

    #[track_caller]
    fn run(&self, words: &[&str]) -> Run {
        run(&mut self.command(words))
    }

    /// First as a dry run, which changes nothing and says the same.
    #[track_caller]
    fn exactly(&self, words: &[&str]) -> String {
        let before = self.tree();
        let mut dry = words.to_vec();
        dry.push("--dry-run");
        let told = self.run(&dry).ok().out();
        assert!(self.tree() == before, "the dry run changed something");
        let done = self.run(words).ok();
        assert_eq!(done.out(), told);
        // Of what is released. A debug build has ten times the size, and is slow.
        let released = std::env::var_os("CTRL_EXEC_TEST_BIN").is_some_and(|bin| !bin.is_empty());
        let bound = Duration::from_secs(if released { 2 } else { 20 });
        assert!(done.took < bound, "{:?}", done.took);
        told
    }

    /// Numbers of a user or group.
    fn id(&self, file: &str, name: &str) -> u32 {
        self.read(file)
            .lines()
            .find_map(|line| {
                line.strip_prefix(name)?
                    .strip_prefix(":x:")?
                    .split(':')
                    .next()?
                    .parse()
                    .ok()
            })
            .unwrap_or_else(|| panic!("no {name} in {file}"))
    }

    #[track_caller]
    fn has(&self, path: &str, owner: &str, mode: u32) {
        let (user, group) = owner.split_once(':').expect("USER:GROUP");
        let meta =
            std::fs::symlink_metadata(self.path(path)).unwrap_or_else(|e| panic!("{path}: {e}"));
        let wanted = (
            self.id("etc/passwd", user),
            self.id("etc/group", group),
            mode,
        );
        assert_eq!(
            (meta.uid(), meta.gid(), meta.mode() & 0o7777),
            wanted,
            "{path}"
        );
    }

    fn leads(&self, path: &str) -> String {
        let target = std::fs::read_link(self.path(path)).unwrap_or_else(|e| panic!("{path}: {e}"));
        target.display().to_string()
    }

    fn tree(&self) -> Tree {
        let mut found = Tree::new();
        let mut open = vec![self.0.path().to_owned()];
        while let Some(dir) = open.pop() {
            for entry in std::fs::read_dir(dir).expect("a directory") {
                let path = entry.expect("an entry").path();
                let meta = std::fs::symlink_metadata(&path).expect("metadata");
                let (kind, content) = if meta.is_symlink() {
                    let to = std::fs::read_link(&path).expect("a link");
                    ('l', to.display().to_string().into_bytes())
                } else if meta.is_dir() {
                    open.push(path.clone());
                    ('d', Vec::new())
                } else if meta.len() < 1_000_000 {
                    ('f', std::fs::read(&path).expect("readable"))
                } else {
                    ('f', meta.len().to_string().into_bytes())
                };
                let name = path
                    .strip_prefix(self.0.path())
                    .expect("below")
                    .display()
                    .to_string();
                found.insert(
                    name,
                    (kind, meta.uid(), meta.gid(), meta.mode() & 0o7777, content),
                );
            }
        }
        found
    }

    /// The same without directories: those that hold others' files too stay.
    fn files(&self) -> Tree {
        let mut tree = self.tree();
        tree.retain(|_, (kind, ..)| *kind != 'd');
        tree
    }
}

#[test]
fn each_role_is_installed_found_complete_and_removed_on_each_system() {
    if !root_or_skip("each_role_is_installed_found_complete_and_removed_on_each_system") {
        return;
    }
    for (system, role) in [
        (System::Debian, "agent"),
        (System::Debian, "dispatcher"),
        (System::Debian, "api"),
        (System::Debian, "all"),
        (System::Alpine, "all"),
        (System::OpenWrt, "all"),
    ] {
        let root = Root::new(system);
        let before = root.files();
        root.exactly(&["install", "--role", role]);
        let after = root.tree();
        let again = root.run(&["install", "--role", role]).ok().out();
        assert!(
            again.starts_with("Nothing to do.\n"),
            "{system:?} {role}: {again}"
        );
        assert!(
            root.tree() == after,
            "{system:?} {role}: the second run changed something"
        );

        root.has("usr/bin/ctrl-exec", "root:root", 0o755);
        let agent = matches!(role, "agent" | "all");
        if agent {
            has_an_agent(&root, system);
        }
        if role != "agent" {
            has_a_dispatcher(&root, system);
        }
        if role == "all" {
            let ids = ["ctrl-exec", "ctrl-exec-agent"].map(|name| root.id("etc/passwd", name));
            assert_ne!(ids[0], ids[1]);
            assert!(!ids.contains(&9443));
        }
        assert_eq!(root.path("usr/bin/cea").is_symlink(), agent);
        assert_eq!(root.path("etc/ctrl-exec").exists(), role != "agent");

        let removed = root.exactly(&["uninstall"]);
        assert!(removed.contains("Kept, with the accounts:"), "{removed}");
        assert!(!root.path("usr/bin/ctrl-exec").exists());
        let left = root.files();
        assert!(
            left.keys().all(|name| before.contains_key(name)
                || name.starts_with("etc/ctrl-exec")
                || name.starts_with("etc/conf")),
            "{system:?} {role}: {:?}",
            left.keys()
        );
        // Configuration that was kept is taken up again.
        root.exactly(&["install", "--role", role]);
        root.exactly(&["uninstall", "--purge"]);
        let left = root.files();
        assert!(
            left == with_newline(before),
            "{system:?} {role}: {:?}",
            left.keys()
        );
        for dir in ["etc", "var/lib", "run", "opt"] {
            for entry in std::fs::read_dir(root.path(dir))
                .into_iter()
                .flatten()
                .flatten()
            {
                let name = entry.file_name();
                assert!(
                    !name.to_string_lossy().starts_with("ctrl-exec"),
                    "{dir}: {name:?}"
                );
            }
        }
    }
}

/// A file of accounts without a newline at its end gets one.
fn with_newline(mut files: Tree) -> Tree {
    if let Some((.., content)) = files.get_mut("etc/group") {
        content.push(b'\n');
    }
    files
}

fn has_an_agent(root: &Root, system: System) {
    let agent = "ctrl-exec-agent:ctrl-exec-agent";
    root.has("etc/ctrl-exec-agent", "root:ctrl-exec-agent", 0o750);
    root.has(
        "etc/ctrl-exec-agent/agent.toml",
        "root:ctrl-exec-agent",
        0o640,
    );
    root.has(
        "etc/ctrl-exec-agent/scripts.toml",
        "root:ctrl-exec-agent",
        0o640,
    );
    root.has("opt/ctrl-exec-scripts", "root:ctrl-exec-agent", 0o755);
    let state = match system {
        System::OpenWrt => "etc/ctrl-exec-agent/state",
        _ => "var/lib/ctrl-exec-agent",
    };
    root.has(state, agent, 0o750);
    root.has(&format!("{state}/runs"), agent, 0o750);
    assert_eq!(root.leads("usr/bin/ctrl-exec-agent"), "ctrl-exec");
    assert_eq!(root.leads("usr/sbin/ctrl-exec-exec"), "../bin/ctrl-exec");
    let (passwd, shadow) = (root.read("etc/passwd"), root.read("etc/shadow"));
    assert!(shadow.contains("\nctrl-exec-agent:!:"), "{shadow}");
    let shell = match system {
        System::Debian => "/usr/sbin/nologin",
        System::Alpine => "/sbin/nologin",
        System::OpenWrt => "/bin/false",
    };
    assert!(
        passwd.contains(&format!("/nonexistent:{shell}\n")),
        "{passwd}"
    );
    // What the repository ships is what is installed.
    let (installed, source, mode) = match system {
        System::Debian => (
            "etc/systemd/system/ctrl-exec-agent.service",
            "init/ctrl-exec-agent.service",
            0o644,
        ),
        System::Alpine => (
            "etc/init.d/ctrl-exec-agent",
            "openrc/ctrl-exec-agent",
            0o755,
        ),
        System::OpenWrt => ("etc/init.d/ctrl-exec-agent", "procd/ctrl-exec-agent", 0o755),
    };
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(source);
    assert_eq!(
        root.read(installed),
        std::fs::read_to_string(source).expect("the repository's")
    );
    root.has(installed, "root:root", mode);
    let more: &[&str] = match system {
        System::Debian => &["etc/systemd/system/ctrl-exec-agent-renew.timer"],
        System::Alpine => &["etc/conf.d/ctrl-exec-exec"],
        System::OpenWrt => &[
            "etc/config/ctrl-exec",
            "lib/upgrade/keep.d/ctrl-exec",
            "etc/hotplug.d/ntp/90-ctrl-exec",
        ],
    };
    for file in more {
        assert!(root.path(file).is_file(), "{file}");
    }
    assert!(!root.path("etc/uci-defaults").exists());
}

fn has_a_dispatcher(root: &Root, system: System) {
    let state = match system {
        System::OpenWrt => "etc/ctrl-exec/state",
        _ => "var/lib/ctrl-exec",
    };
    root.has("etc/ctrl-exec", "root:ctrl-exec", 0o2750);
    root.has("etc/ctrl-exec/ctrl-exec.toml", "root:ctrl-exec", 0o640);
    root.has(&format!("{state}/agents"), "root:ctrl-exec", 0o2770);
    root.has(&format!("{state}/pairing"), "root:root", 0o700);
    root.has("var/lib/ctrl-exec/runs", "root:ctrl-exec", 0o2770);
    root.has("var/lib/ctrl-exec/locks", "root:ctrl-exec", 0o2770);
    assert_eq!(root.leads("usr/bin/ced"), "ctrl-exec");
}

#[test]
fn what_is_seeded_is_valid() {
    if !root_or_skip("what_is_seeded_is_valid") {
        return;
    }
    for system in [System::Debian, System::OpenWrt] {
        // The executor trusts no directory that everybody may write to.
        let root = Root::below(Path::new("/var/lib"), system);
        root.run(&["install", "--role", "all"]).ok();
        for which in ["dispatcher", "agent", "scripts"] {
            let warned = root.run(&["config", "check", which]).ok().err();
            let expected = if which == "scripts" {
                "warning: no script is allowed: the allowlist is empty\n"
            } else {
                ""
            };
            assert!(
                warned.ends_with(expected) && warned.lines().count() < 2,
                "{which}: {warned}"
            );
            assert!(which == "scripts" || warned.is_empty(), "{which}: {warned}");
        }
        let etc = root.path("etc/ctrl-exec-agent");
        let file = |name: &str| etc.join(name).display().to_string();
        root.run(&[
            "ctrl-exec-exec",
            "check",
            &file("agent.toml"),
            &file("scripts.toml"),
            "--files",
        ])
        .ok();
        let socket = match system {
            System::OpenWrt => "\"/var/run/ctrl-exec-agent/exec.sock\"",
            _ => "\"/run/ctrl-exec-agent/exec.sock\"",
        };
        assert!(root.read("etc/ctrl-exec-agent/agent.toml").contains(socket));
    }
}

#[test]
fn what_the_agent_says_of_it_fits_what_is_there() {
    if !root_or_skip("what_the_agent_says_of_it_fits_what_is_there") {
        return;
    }
    let root = Root::below(Path::new("/var/lib"), System::Debian);
    root.run(&["install", "--role", "agent"]).ok();
    let script = root.path("opt/ctrl-exec-scripts/disk.sh");
    root.write("opt/ctrl-exec-scripts/disk.sh", "#!/bin/sh\n", 0o755);
    let allowed = format!("[scripts.disk]\npath = \"{}\"\n", script.display());
    root.write("etc/ctrl-exec-agent/scripts.toml", &allowed, 0o640);
    let own = root
        .read("etc/ctrl-exec-agent/agent.toml")
        .replace("/opt/", &format!("{}/opt/", root.0.path().display()));
    root.write("etc/ctrl-exec-agent/agent.toml", &own, 0o640);
    let told = root.run(&["cea", "self-check"]).expect_code(1).out();
    assert!(told.contains("scripts.toml (1 script)\n"), "{told}");
    // Each script once, with what the executor makes of it below.
    let path = script.display().to_string();
    assert_eq!(told.matches(&path).count(), 1, "{told}");
    assert!(told.contains("profile=default  [ok]\n"), "{told}");
    assert!(told.contains("    runs as       nobody"), "{told}");
    // Advice about the older syntax is for those who have it.
    let broken = own.replace("[profile.default]", "[profile.other]");
    root.write("etc/ctrl-exec-agent/agent.toml", &broken, 0o640);
    let refused = root.run(&["cea", "serve"]).expect_code(78).err();
    assert!(
        refused.contains("undefined profile")
            && refused.contains("[profile.NAME]")
            && !refused.contains(".conf"),
        "{refused}"
    );
}

#[test]
fn the_example_of_a_hook_decides_as_it_says() {
    if !root_or_skip("the_example_of_a_hook_decides_as_it_says") {
        return;
    }
    let root = Root::new(System::Debian);
    root.run(&["install", "--role", "dispatcher"]).ok();
    let tokens = root.path("tokens").display().to_string();
    // The advice beside it makes a file that the group of the API can run.
    let advice = root.read("etc/ctrl-exec/ctrl-exec.toml");
    let copy = advice
        .lines()
        .find_map(|line| line.strip_prefix("#   cp "))
        .expect("how to copy it")
        .replace(
            "/etc/ctrl-exec/",
            &format!("{}/", root.path("etc/ctrl-exec").display()),
        );
    run(Command::new("sh")
        .args(["-c", &format!("cp {copy}")])
        .current_dir(root.path("etc/ctrl-exec")))
    .ok();
    root.has("etc/ctrl-exec/auth-hook", "root:ctrl-exec", 0o750);
    // Packages have it where the advice says too.
    let packaged = include_str!("../dist/package/contents.py");
    assert!(packaged.contains("\"usr/share/ctrl-exec/examples/auth-hook.example\""));
    assert!(advice.contains(" /usr/share/ctrl-exec/examples;"));
    let hook = root.read("etc/ctrl-exec/auth-hook.example");
    assert!(hook.contains("tokens=/etc/ctrl-exec/tokens"));
    root.write(
        "hook",
        &hook.replace("/etc/ctrl-exec/tokens", &tokens),
        0o755,
    );
    let ask = |action: &str, token: &str| {
        run(Command::new(root.path("hook"))
            .env_clear()
            .env("ENVEXEC_ACTION", action)
            .env("ENVEXEC_TOKEN", token))
        .code()
    };
    assert_eq!([ask("api", ""), ask("ping", ""), ask("run", "")], [0, 0, 2]);
    assert_eq!(ask("run", "secret one"), 2);
    root.write("tokens", "other\nsecret one\n", 0o640);
    assert_eq!(
        [
            ask("run", "secret one"),
            ask("run", "secret"),
            ask("cancel", "")
        ],
        [0, 2, 2]
    );
}

#[test]
fn what_is_there_stays_as_it_is() {
    if !root_or_skip("what_is_there_stays_as_it_is") {
        return;
    }
    let root = Root::new(System::Alpine);
    for (file, text) in [
        ("etc/ctrl-exec-agent/agent.toml", "port = 7500\n"),
        ("etc/ctrl-exec-agent/scripts.conf", "# mine\n"),
        ("etc/ctrl-exec/ctrl-exec.conf", "# broken, and mine\n"),
        ("etc/conf.d/ctrl-exec-agent", "# mine\n"),
        ("etc/ctrl-exec/ca.key", "secret"),
        ("opt/ctrl-exec-scripts/disk.sh", "#!/bin/sh\n"),
    ] {
        root.write(file, text, 0o600);
    }
    std::fs::set_permissions(
        root.path("opt/ctrl-exec-scripts"),
        std::fs::Permissions::from_mode(0o755),
    )
    .expect("mode");
    let before = root.files();
    root.exactly(&["install", "--role", "all"]);
    for (name, (kind, _, _, _, content)) in &before {
        if !matches!(name.as_str(), "etc/passwd" | "etc/group" | "etc/shadow") {
            let after = &root.files()[name];
            assert_eq!((after.0, &after.4), (*kind, content), "{name}");
        }
    }
    for absent in [
        "etc/ctrl-exec-agent/scripts.toml",
        "etc/ctrl-exec/ctrl-exec.toml",
    ] {
        assert!(!root.path(absent).exists(), "{absent}");
    }
    // Its service can read it now, and a secret of root's stays one.
    root.has(
        "etc/ctrl-exec-agent/agent.toml",
        "root:ctrl-exec-agent",
        0o640,
    );
    root.has("etc/ctrl-exec/ca.key", "root:root", 0o600);
    root.has("opt/ctrl-exec-scripts", "root:root", 0o755);
    // Scripts are nobody's to remove.
    root.exactly(&["uninstall", "--purge"]);
    assert_eq!(root.read("opt/ctrl-exec-scripts/disk.sh"), "#!/bin/sh\n");
    assert!(!root.path("etc/ctrl-exec").exists());
}

/// A paired dispatcher and agent of 0.12.3, from the tarball.
fn old_host(system: System) -> Root {
    let root = Root::new(system);
    for name in ["dispatcher", "agent", "api"] {
        root.write(
            &format!("usr/local/bin/ctrl-exec-{name}"),
            &format!("#!/usr/bin/perl\n# {name}\n"),
            0o755,
        );
    }
    symlink(
        "/usr/local/bin/ctrl-exec-dispatcher",
        root.path("usr/local/bin/ced"),
    )
    .expect("ced");
    symlink("ctrl-exec-agent", root.path("usr/local/bin/cea")).expect("cea");
    root.write("usr/local/lib/ctrl-exec/VERSION", "0.12.3\n", 0o644);
    root.write(
        "usr/local/lib/ctrl-exec/Exec/Log.pm",
        "package Exec::Log;\n",
        0o644,
    );
    match system {
        System::OpenWrt => root.write(
            "etc/init.d/ctrl-exec-agent",
            "#!/bin/sh /etc/rc.common\n# old\n",
            0o755,
        ),
        _ => {
            root.write("usr/local/sbin/ctrl-exec-exec", "ELF", 0o755);
            for unit in [
                "agent.service",
                "exec.service",
                "maintenance.timer",
                "agent-renew.timer",
            ] {
                root.write(
                    &format!("etc/systemd/system/ctrl-exec-{unit}"),
                    "[Unit]\nDescription=old\n",
                    0o644,
                );
            }
        }
    }
    for (file, text, mode) in [
        (
            "etc/ctrl-exec/ctrl-exec.conf",
            "cert = /etc/ctrl-exec/ctrl-exec.crt\nkey = /etc/ctrl-exec/ctrl-exec.key\nca = /etc/ctrl-exec/ca.crt\n",
            0o640,
        ),
        ("etc/ctrl-exec/ctrl-exec.crt", "cert", 0o644),
        ("etc/ctrl-exec/ctrl-exec.key", "key", 0o600),
        ("etc/ctrl-exec/ca.key", "ca key", 0o600),
        ("var/lib/ctrl-exec/agents/web1.json", "{}", 0o644),
        ("var/lib/ctrl-exec/agents/.registry.lock", "", 0o600),
        (
            "var/lib/ctrl-exec/rotation.json",
            "{\"current_serial\":\"02\"}",
            0o640,
        ),
        ("var/lib/ctrl-exec/runs/0123.json", "{}", 0o640),
        (
            "etc/ctrl-exec-agent/agent.conf",
            "port = 7443\ncert = /etc/ctrl-exec-agent/agent.crt\nkey = /etc/ctrl-exec-agent/agent.key\nca = /etc/ctrl-exec-agent/ca.crt\n[profile default]\nrun_as = nobody\n",
            0o640,
        ),
        (
            "etc/ctrl-exec-agent/scripts.conf",
            "disk = /opt/ctrl-exec-scripts/disk.sh\n",
            0o640,
        ),
        ("etc/ctrl-exec-agent/agent.key", "key", 0o640),
        ("etc/ctrl-exec-agent/agent.crt", "cert", 0o640),
        ("etc/ctrl-exec-agent/ca.crt", "ca", 0o644),
        (
            "var/lib/ctrl-exec-agent/ctrl-exec-dispatchers",
            "02 ctl\n",
            0o644,
        ),
        (
            "etc/systemd/system/ctrl-exec-agent.service.d/50-ctrl-exec-sandbox.conf",
            "[Service]\n",
            0o644,
        ),
    ] {
        root.write(file, text, mode);
    }
    // One number for all accounts, and no line in shadow: so it made them on OpenWrt.
    root.write(
        "etc/passwd",
        &format!("{PASSWD}ctrl-exec-agent:x:9443:9443:a:/var/run/ctrl-exec-agent:/bin/false\n"),
        0o644,
    );
    root.write(
        "etc/group",
        &format!("{GROUP}\nctrl-exec-agent:x:9443:\n"),
        0o644,
    );
    root
}

#[test]
fn a_host_of_0_12_3_is_taken_over_and_given_back() {
    if !root_or_skip("a_host_of_0_12_3_is_taken_over_and_given_back") {
        return;
    }
    for system in [System::Debian, System::OpenWrt] {
        let root = old_host(system);
        let before = root.files();
        let told = root.exactly(&["install", "--role", "all"]);
        assert!(told.contains("50-ctrl-exec-sandbox.conf"), "{told}");
        let again = root.run(&["install", "--role", "all"]).ok().out();
        assert!(again.starts_with("Nothing to do.\n"), "{again}");

        for name in ["dispatcher", "agent", "api"] {
            assert_eq!(
                root.leads(&format!("usr/local/bin/ctrl-exec-{name}")),
                "/usr/bin/ctrl-exec"
            );
        }
        assert_eq!(
            root.leads("usr/local/bin/ced"),
            "/usr/local/bin/ctrl-exec-dispatcher"
        );
        for absent in [
            "etc/ctrl-exec/ctrl-exec.toml",
            "etc/ctrl-exec-agent/agent.toml",
            "etc/ctrl-exec-agent/scripts.toml",
        ] {
            assert!(!root.path(absent).exists(), "{absent}");
        }
        let after = root.files();
        for (name, (.., content)) in before
            .iter()
            .filter(|(name, _)| name.contains("etc/ctrl-exec") || name.contains("lib/ctrl-exec"))
        {
            assert_eq!(&after[name].4, content, "{name}");
        }
        root.has("etc/ctrl-exec/ctrl-exec.key", "ctrl-exec:ctrl-exec", 0o600);
        root.has("etc/ctrl-exec/ctrl-exec.conf", "root:ctrl-exec", 0o640);
        root.has("etc/ctrl-exec/ca.key", "root:root", 0o600);
        root.has(
            "etc/ctrl-exec-agent/agent.key",
            "root:ctrl-exec-agent",
            0o640,
        );
        root.has("var/lib/ctrl-exec/runs/0123.json", "root:ctrl-exec", 0o640);
        assert_eq!(root.id("etc/passwd", "ctrl-exec-agent"), 9443);
        assert_ne!(root.id("etc/passwd", "ctrl-exec"), 9443);
        // Where a reboot would take it, it has been moved to where none does.
        let state = match system {
            System::OpenWrt => ["etc/ctrl-exec-agent/state", "etc/ctrl-exec/state"],
            _ => ["var/lib/ctrl-exec-agent", "var/lib/ctrl-exec"],
        };
        assert_eq!(
            root.read(&format!("{}/ctrl-exec-dispatchers", state[0])),
            "02 ctl\n"
        );
        assert_eq!(root.read(&format!("{}/agents/web1.json", state[1])), "{}");
        assert!(root.path(&format!("{}/rotation.json", state[1])).is_file());

        let told = root.exactly(&["uninstall"]);
        assert!(
            told.contains("restore /usr/local/bin/ctrl-exec-agent"),
            "{told}"
        );
        let after = root.files();
        for (name, (kind, _, _, mode, content)) in &before {
            if !matches!(name.as_str(), "etc/passwd" | "etc/group" | "etc/shadow") {
                assert_eq!(
                    (&after[name].0, &after[name].3, &after[name].4),
                    (kind, mode, content),
                    "{name}"
                );
            }
        }
        let added: Vec<_> = after
            .keys()
            .filter(|name| !before.contains_key(*name))
            .collect();
        let ours = |name: &str| {
            name.contains("/state/")
                || name.ends_with("auth-hook.example")
                || name == "etc/config/ctrl-exec"
        };
        assert!(added.iter().all(|name| ours(name)), "{added:?}");

        root.exactly(&["install", "--role", "all"]);
        root.exactly(&["uninstall", "--purge"]);
        let left = root.files();
        let known = [
            "etc/debian_version",
            "etc/openwrt_release",
            "etc/passwd",
            "etc/group",
            "etc/shadow",
            "var",
            "etc/systemd/system/ctrl-exec-agent.service.d/50-ctrl-exec-sandbox.conf",
        ];
        assert!(
            left.keys().all(|name| known.contains(&name.as_str())),
            "{:?}",
            left.keys()
        );
        assert_eq!(root.read("etc/passwd"), PASSWD);
    }
}

#[test]
fn packages_and_obstacles_are_respected_and_named() {
    if !root_or_skip("packages_and_obstacles_are_respected_and_named") {
        return;
    }
    let root = Root::new(System::Debian);
    root.write("usr/bin/ctrl-exec-agent", "#!/usr/bin/perl\n", 0o755);
    root.write(
        "var/lib/dpkg/info/ctrl-exec-agent.list",
        "/usr/bin/ctrl-exec-agent\n",
        0o644,
    );
    let before = root.tree();
    let refused = root.run(&["install", "--role", "agent"]).expect_code(1);
    for part in [
        "'/usr/bin/ctrl-exec-agent'",
        "package 'ctrl-exec-agent'",
        "--take-over-packages",
    ] {
        assert!(refused.err().contains(part), "{}", refused.err());
    }
    assert!(root.tree() == before);
    let told = root.exactly(&["install", "--role", "agent", "--take-over-packages"]);
    assert!(
        told.contains("keep    /usr/bin/ctrl-exec-agent in "),
        "{told}"
    );
    root.exactly(&["uninstall"]);
    assert_eq!(root.read("usr/bin/ctrl-exec-agent"), "#!/usr/bin/perl\n");
    root.run(&["uninstall", "--purge"])
        .expect_code(1)
        .err_has("by the package 'ctrl-exec-agent'");
    assert!(root.path("etc/ctrl-exec-agent/agent.toml").is_file());

    // Packages of this program: of the same version, so that nothing but service files would be left to do.
    let root = Root::new(System::Debian);
    root.run(&["install", "--role", "agent"]).ok();
    std::fs::remove_dir_all(root.path("var/lib/ctrl-exec-install")).expect("removed");
    std::fs::remove_dir_all(root.path("etc/systemd")).expect("removed");
    for (list, line) in [
        (
            "var/lib/dpkg/info/ctrl-exec-runtime.list",
            "/.\n/usr/bin/ctrl-exec\n",
        ),
        (
            "lib/apk/db/installed",
            "P:ctrl-exec\nF:usr/bin\nR:ctrl-exec\n",
        ),
        ("usr/lib/opkg/info/ctrl-exec.list", "/usr/bin/ctrl-exec\n"),
    ] {
        root.write(list, line, 0o644);
        let before = root.tree();
        for more in ["--init=auto", "--take-over-packages"] {
            let refused = root
                .run(&["install", "--role", "agent", more])
                .expect_code(1)
                .err();
            let wanted = match list.split('/').nth(2) {
                Some("dpkg") => "dpkg (package ctrl-exec-runtime); upgrade it with apt, or",
                Some("db") => "apk (package ctrl-exec); upgrade it with apk, or",
                _ => "opkg (package ctrl-exec); upgrade it with opkg, or",
            };
            assert!(refused.contains(wanted), "{refused}");
            assert!(
                refused.starts_with("'/usr/bin/ctrl-exec' is managed by"),
                "{refused}"
            );
        }
        assert!(root.tree() == before);
        std::fs::remove_file(root.path(list)).expect("removed");
    }

    // A link that leads out of the root.
    let out = Root::new(System::Debian);
    symlink("/tmp", out.path("opt")).expect("a link");
    let before = out.tree();
    out.run(&["install", "--role", "agent"])
        .expect_code(1)
        .err_has("leads out of");
    assert!(out.tree() == before);
    // No root of any system.
    let nothing = tempfile::tempdir().expect("a folder");
    run(Command::new(binary())
        .args(["install", "--role", "agent", "--root"])
        .arg(nothing.path()))
    .expect_code(1)
    .err_has("/etc'");
    out.run(&["install", "--role", "king"])
        .expect_code(64)
        .err_has("agent, dispatcher, api or all");
    out.run(&["install"]).expect_code(64).err_has("role");
    out.run(&["install", "--role", "agent", "--init", "runit"])
        .expect_code(64)
        .err_has("openrc");
    out.run(&["uninstall"])
        .expect_code(1)
        .err_has("leads out of");
    out.run(&["install", "--help"])
        .ok()
        .out_has("--take-over-packages");
    out.run(&["uninstall", "--help"]).ok().out_has("--purge");
}

#[test]
fn a_purge_follows_no_links() {
    if !root_or_skip("a_purge_follows_no_links") {
        return;
    }
    let root = Root::new(System::Debian);
    root.run(&["install", "--role", "all"]).ok();
    let outside = tempfile::tempdir().expect("a folder");
    std::fs::write(outside.path().join("precious"), "x").expect("written");
    symlink(outside.path(), root.path("etc/ctrl-exec/elsewhere")).expect("a link");
    std::fs::remove_dir_all(root.path("var/lib/ctrl-exec-agent")).expect("removed");
    root.write("srv/precious", "x", 0o600);
    symlink("../../srv", root.path("var/lib/ctrl-exec-agent")).expect("a link");
    root.exactly(&["uninstall", "--purge"]);
    assert!(!root.path("etc/ctrl-exec").exists());
    assert!(!root.path("var/lib/ctrl-exec-agent").is_symlink());
    assert!(outside.path().join("precious").exists());
    assert_eq!(root.read("srv/precious"), "x");
}

#[test]
fn killed_anywhere_it_goes_on_from_there() {
    if !root_or_skip("killed_anywhere_it_goes_on_from_there") {
        return;
    }
    let whole = old_host(System::Debian);
    let took = whole.run(&["install", "--role", "all"]).ok().took;
    let wanted = whole.tree();
    let mut cut = 0;
    for part in 0..12 {
        let root = old_host(System::Debian);
        let mut child = root
            .command(&["install", "--role", "all"])
            .stdout(Stdio::null())
            .spawn()
            .expect("started");
        std::thread::sleep(took * part / 12);
        let _ = child.kill();
        let status = child.wait().expect("waited");
        cut += usize::from(!status.success());
        root.run(&["install", "--role", "all"]).ok();
        let (found, names): (Tree, fn(&Tree) -> Vec<&String>) =
            (root.tree(), |tree| tree.keys().collect());
        assert_eq!(names(&found), names(&wanted), "cut at {part}");
        assert!(found == wanted, "cut at {part}");
    }
    assert!(cut > 0, "nothing was interrupted");
}

/// Everything in one throw-away copy of this system: real programs for accounts, a stand-in for systemctl that notes what it is told.
const LIVE: &str = r#"
set -eu
work=$1 binary=$2
mount -t tmpfs none "$work"
mkdir "$work/upper" "$work/work" "$work/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$work/upper,workdir=$work/work" "$work/root"
mount --rbind /proc "$work/root/proc"
mount --rbind /dev "$work/root/dev"
mkdir -p "$work/root/run/systemd/system" "$work/root/root"
mount -t tmpfs none "$work/root/tmp"
cp "$binary" "$work/root/tmp/ctrl-exec"
cat >"$work/root/tmp/systemctl" <<'STUB'
#!/bin/sh
# enabled and active are directories of names
case "$1" in
is-enabled) [ -e "/tmp/enabled/$2" ]; exit ;;
is-active) [ -e "/tmp/active/$2" ]; exit ;;
enable) : >"/tmp/enabled/$2" ;;
disable) rm -f "/tmp/enabled/$2" ;;
start | restart)
    if [ -e /tmp/broken ]; then
        echo "Job for $2 failed because the control process exited with error code." >&2
        exit 1
    fi
    : >"/tmp/active/$2" ;;
stop) rm -f "/tmp/active/$2" ;;
esac
echo "$*" >>/tmp/told
STUB
cat >"$work/root/tmp/play" <<'PLAY'
set -eu
cd /tmp
chmod 755 systemctl ctrl-exec
mkdir -p enabled active /usr/local/sbin /usr/local/bin /etc/ctrl-exec-agent /var/lib/ctrl-exec-agent
mv systemctl /usr/local/sbin/systemctl
fail() { echo "FAILED: $*"; cat out told 2>/dev/null; exit 1; }
there() { [ -e "$1" ] || [ -L "$1" ] || fail "$1 is not there"; }
gone() { [ ! -e "$1" ] && [ ! -L "$1" ] || fail "$1 is there"; }
said() { grep -qe "$1" out || fail "it did not say: $1"; }

# A running, paired agent from before the rule that broke hosts.
printf '#!/usr/bin/perl\n' >/usr/local/bin/ctrl-exec-agent
printf '[Unit]\nDescription=old\n' >/etc/systemd/system/ctrl-exec-agent.service
for file in agent.crt agent.key ca.crt; do echo x >/etc/ctrl-exec-agent/$file; done
printf 'port = 7443\ncert = /etc/ctrl-exec-agent/agent.crt\nkey = /etc/ctrl-exec-agent/agent.key\nca = /etc/ctrl-exec-agent/ca.crt\n' >/etc/ctrl-exec-agent/agent.conf
echo 'disk = /opt/ctrl-exec-scripts/disk.sh' >/etc/ctrl-exec-agent/scripts.conf
: >enabled/ctrl-exec-agent.service
: >active/ctrl-exec-agent.service
: >told

./ctrl-exec install --role agent >out 2>&1 && fail "it went ahead with a configuration that cannot work"
rc=0; ./ctrl-exec install --role agent >out 2>&1 || rc=$?
[ "$rc" -eq 78 ] || fail "exit $rc"
said 'ctrl-exec-agent.service runs, but would not start again'
said 'profile.*default'
said 'Nothing has been changed'
[ ! -s told ] || fail "something was told"
gone /usr/bin/ctrl-exec
gone /var/lib/ctrl-exec-install
grep -q perl /usr/local/bin/ctrl-exec-agent || fail "the program was replaced"

printf '[profile default]\nrun_as = nobody\n' >>/etc/ctrl-exec-agent/agent.conf
cksum /etc/ctrl-exec-agent/* >before
./ctrl-exec install --role agent --dry-run >dry 2>&1 || fail "dry run"
[ ! -s told ] || fail "the dry run told something"
gone /var/lib/ctrl-exec-install
./ctrl-exec install --role agent >out 2>&1 || fail "exit $?"
cmp dry out || fail "the dry run was not exact"
said '^run     useradd --system'
said 'Enabled: ctrl-exec-exec.service, ctrl-exec-agent-renew.timer'
[ "$(cat told)" = "daemon-reload
enable ctrl-exec-exec.service
enable ctrl-exec-agent-renew.timer
start ctrl-exec-exec.service
restart ctrl-exec-agent.service
start ctrl-exec-agent-renew.timer" ] || fail "told something else"
cksum /etc/ctrl-exec-agent/* >after
cmp before after || fail "configuration changed"
getent passwd ctrl-exec-agent | grep -q ':/nonexistent:/usr/sbin/nologin$' || fail "account"
[ "$(stat -c %U:%G:%a /var/lib/ctrl-exec-agent)" = ctrl-exec-agent:ctrl-exec-agent:750 ] || fail "state"
[ "$(/usr/local/bin/ctrl-exec-agent --version | cut -d' ' -f1)" = ctrl-exec-agent ] || fail "old name"
/usr/bin/ctrl-exec install --role agent >out 2>&1 || fail "again: exit $?"
said '^Nothing to do\.$'

# A newer release: another file.
cp ctrl-exec ctrl-exec.new
echo x >>ctrl-exec.new
: >told
: >broken
rc=0; ./ctrl-exec.new install --role agent >out 2>&1 || rc=$?
[ "$rc" -eq 1 ] || fail "broken: exit $rc"
said "'systemctl restart ctrl-exec-exec.service' failed: exit 1"
said 'Job for ctrl-exec-exec.service failed because the control process'
said 'See: journalctl -u ctrl-exec-exec.service'
rm broken
./ctrl-exec.new install --role agent >out 2>&1 || fail "newer: exit $?"
[ "$(cat told)" = "daemon-reload
restart ctrl-exec-exec.service
restart ctrl-exec-agent.service" ] || fail "newer: told something else"

: >told
/usr/bin/ctrl-exec uninstall --dry-run >dry 2>&1
/usr/bin/ctrl-exec uninstall >out 2>&1 || fail "uninstall: exit $?"
cmp dry out || fail "the dry run of uninstall was not exact"
grep -q perl /usr/local/bin/ctrl-exec-agent || fail "the old program is not back"
grep -q Description=old /etc/systemd/system/ctrl-exec-agent.service || fail "the old unit is not back"
there active/ctrl-exec-agent.service
there enabled/ctrl-exec-agent.service
gone active/ctrl-exec-exec.service
gone enabled/ctrl-exec-exec.service
gone enabled/ctrl-exec-agent-renew.timer
gone /usr/bin/ctrl-exec
gone /var/lib/ctrl-exec-install
cksum /etc/ctrl-exec-agent/* >after
cmp before after || fail "configuration changed on the way back"
tail -n 1 told | grep -q '^start ctrl-exec-agent.service' || fail "the old agent was not started"

./ctrl-exec install --role all >out 2>&1 || fail "all: exit $?"
there /etc/systemd/system/ctrl-exec-api.service
gone active/ctrl-exec-api.service
./ctrl-exec uninstall --purge >out 2>&1 || fail "purge: exit $?"
for path in /etc/ctrl-exec /etc/ctrl-exec-agent /var/lib/ctrl-exec /var/lib/ctrl-exec-agent /var/lib/ctrl-exec-install /opt/ctrl-exec-scripts \
    /usr/local/bin/ctrl-exec-agent /etc/systemd/system/ctrl-exec-agent.service; do gone $path; done
[ -z "$(ls enabled active | grep ctrl-exec)" ] || fail "services are left"
! getent passwd ctrl-exec && ! getent passwd ctrl-exec-agent || fail "users are left"
! getent group ctrl-exec && ! getent group ctrl-exec-agent || fail "groups are left"
echo PLAYED
PLAY
exec chroot "$work/root" env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin sh /tmp/play
"#;

#[test]
fn a_running_host_is_upgraded_and_given_back() {
    if !root_or_skip("a_running_host_is_upgraded_and_given_back") {
        return;
    }
    let work = tempfile::tempdir().expect("a folder");
    // The mounts go with the namespace, however it ends.
    let played = run(Command::new("unshare")
        .args([
            "--mount",
            "--propagation",
            "private",
            "sh",
            "-c",
            LIVE,
            "sh",
        ])
        .arg(work.path())
        .arg(binary().canonicalize().expect("the binary")))
    .ok();
    assert!(
        played.out().ends_with("PLAYED\n"),
        "{}\n{}",
        played.out(),
        played.err()
    );
}
