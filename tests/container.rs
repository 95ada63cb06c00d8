//! `ctrl-exec container` as the first process of a PID namespace, in a file system with nothing in it but the binary: what a container
//! runtime makes of an image from scratch, with the capabilities that runtimes give (spec/operations.md 8, 16.4). Needs root.

mod common;

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use common::process::{Run, run};
use common::{Daemon, PATIENCE, binary, root_or_skip, wait_until};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// What Docker and Podman leave to a container (Docker's list).
const USUAL: &str = "-all,+audit_write,+chown,+dac_override,+fowner,+fsetid,+kill,+mknod,+net_bind_service,+net_raw,+setfcap,+setgid,\
                     +setpcap,+setuid,+sys_chroot";

/// Run by the first process before it becomes ours: the mounts that every runtime makes.
const ENTER: &str = r#"
mount --make-rprivate /
mount --bind "$IMAGE" "$IMAGE"
cd "$IMAGE"
mkdir -p proc dev
mount -t proc proc proc
mount -t tmpfs -o mode=755 tmpfs dev
for node in null zero full random urandom; do : > "dev/$node"; mount --bind "/dev/$node" "dev/$node"; done
if [ -d usr ]; then mount --bind -o ro /usr usr; fi
unset IMAGE
exec setpriv --bounding-set="$CAPS" -- chroot . /ctrl-exec container "$@"
"#;

const UIDS: [(&str, u32); 2] = [("ctrl-exec-agent", 9443), ("ctrl-exec", 9445)];

/// A network that the containers of a test share; gone when dropped.
struct Pod(String);

impl Pod {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let pod = Self(format!("ce-pod-{}-{number}", std::process::id()));
        run(Command::new("ip").args(["netns", "add", &pod.0])).ok();
        run(Command::new("ip").args(["-n", &pod.0, "link", "set", "lo", "up"])).ok();
        pod
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        let _ = Command::new("ip")
            .args(["netns", "delete", &self.0])
            .output();
    }
}

/// The file system of a container: the binary and what it is linked with.
struct Image(TempDir);

impl Image {
    fn scratch() -> Self {
        let image = Self(
            tempfile::Builder::new()
                .prefix("ce-img-")
                .tempdir()
                .expect("a folder"),
        );
        std::fs::set_permissions(image.0.path(), std::fs::Permissions::from_mode(0o755))
            .expect("ours");
        let binary = binary();
        std::fs::copy(&binary, image.path("ctrl-exec")).expect("the binary");
        std::fs::set_permissions(
            image.path("ctrl-exec"),
            std::fs::Permissions::from_mode(0o755),
        )
        .expect("ours");
        // Nothing for the static binary, which says so and fails.
        let linked = run(Command::new("ldd").arg(&binary)).out();
        for library in linked
            .split_whitespace()
            .filter(|word| word.starts_with('/'))
        {
            let place = image.path(library);
            std::fs::create_dir_all(place.parent().expect("below the root")).expect("a folder");
            std::fs::copy(library, place).expect("a library");
        }
        image
    }

    /// With the programs of this machine, for scripts; still without accounts.
    fn with_programs() -> Self {
        let image = Self(
            tempfile::Builder::new()
                .prefix("ce-img-")
                .tempdir()
                .expect("a folder"),
        );
        std::fs::set_permissions(image.0.path(), std::fs::Permissions::from_mode(0o755))
            .expect("ours");
        std::fs::copy(binary(), image.path("ctrl-exec")).expect("the binary");
        std::fs::create_dir(image.path("usr")).expect("a folder");
        for name in ["bin", "sbin", "lib", "lib64"] {
            std::os::unix::fs::symlink(format!("usr/{name}"), image.path(name)).expect("a link");
        }
        image
    }

    fn path(&self, path: &str) -> PathBuf {
        self.0.path().join(path.trim_start_matches('/'))
    }

    fn read(&self, path: &str) -> String {
        std::fs::read_to_string(self.path(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
    }

    fn write(&self, path: &str, text: &str, mode: u32) {
        let path = self.path(path);
        std::fs::create_dir_all(path.parent().expect("below the root")).expect("a folder");
        std::fs::write(&path, text).expect("written");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("ours");
    }

    /// Owner and permission bits.
    fn owner(&self, path: &str) -> (u32, u32, u32) {
        let meta = std::fs::metadata(self.path(path)).unwrap_or_else(|e| panic!("{path}: {e}"));
        (meta.uid(), meta.gid(), meta.mode() & 0o7777)
    }
}

/// A container that runs; killed with all that is in it when dropped.
struct Container {
    daemon: Daemon,
    /// Its first process, as we see it.
    first: Pid,
}

fn command(pod: &Pod, image: &Image, caps: &str, role: &str, env: &[(&str, &str)]) -> Command {
    let mut command = Command::new("ip");
    command
        .args(["netns", "exec", &pod.0])
        .args([
            "unshare",
            "--pid",
            "--mount",
            "--uts",
            "--ipc",
            "--fork",
            "--kill-child",
            "--",
        ])
        .args(["sh", "-euc", ENTER, "sh", role])
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .env("IMAGE", image.0.path())
        .env("CAPS", caps)
        .envs(env.iter().copied())
        .stdin(std::process::Stdio::null());
    command
}

impl Container {
    #[track_caller]
    fn start(pod: &Pod, image: &Image, role: &str, env: &[(&str, &str)]) -> Self {
        let caps = format!("{USUAL},+sys_admin");
        Self::start_with(pod, image, &caps, role, env)
    }

    #[track_caller]
    fn start_with(pod: &Pod, image: &Image, caps: &str, role: &str, env: &[(&str, &str)]) -> Self {
        let daemon = Daemon::start(&mut command(pod, image, caps, role, env));
        let outer = daemon.pid();
        // Not the shell that makes the mounts.
        let is_ours = |pid: &i32| {
            std::fs::read(format!("/proc/{pid}/cmdline"))
                .is_ok_and(|words| words.starts_with(b"/ctrl-exec\0"))
        };
        let first = wait_until("the first process", PATIENCE, || {
            children(outer).into_iter().find(is_ours)
        });
        Self {
            daemon,
            first: Pid::from_raw(first).expect("not 0"),
        }
    }

    /// As `docker exec`.
    #[track_caller]
    fn exec(&self, words: &[&str]) -> Run {
        let pid = self.first.as_raw_nonzero().to_string();
        run(Command::new("nsenter")
            .args([
                "--target",
                &pid,
                "--pid",
                "--mount",
                "--net",
                "--root",
                "--wd=/",
                "/ctrl-exec",
            ])
            .args(words)
            .env_clear())
    }

    fn signal(&self, signal: Signal) {
        kill_process(self.first, signal).expect("it runs");
    }

    /// As `docker stop`: how long it took, and its status.
    #[track_caller]
    fn stop(mut self) -> (Duration, Option<i32>) {
        let began = Instant::now();
        self.signal(Signal::TERM);
        let status = self.daemon.wait(PATIENCE);
        (began.elapsed(), status.code())
    }

    #[track_caller]
    fn wait_for(&mut self, text: &str) {
        self.daemon.wait_for_text(text);
    }

    fn said(&self) -> String {
        self.daemon.out() + &self.daemon.err()
    }

    /// Pid of a program in it, as we see it.
    fn find(&self, name: &str) -> Option<Pid> {
        children(self.first.as_raw_nonzero().get().unsigned_abs())
            .into_iter()
            .find(|pid| {
                std::fs::read(format!("/proc/{pid}/cmdline"))
                    .is_ok_and(|words| words.split(|b| *b == 0).next() == Some(name.as_bytes()))
            })
            .and_then(Pid::from_raw)
    }

    #[track_caller]
    fn program(&self, name: &str) -> Pid {
        wait_until(&format!("{name} runs"), PATIENCE, || self.find(name))
    }

    /// Owner of a program.
    #[track_caller]
    fn uid_of(&self, name: &str) -> u32 {
        let pid = self.program(name).as_raw_nonzero();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
        let line = status
            .lines()
            .find(|line| line.starts_with("Uid:"))
            .expect("a line");
        line.split_whitespace()
            .nth(2)
            .and_then(|uid| uid.parse().ok())
            .expect("a number")
    }
}

fn children(pid: u32) -> Vec<i32> {
    std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))
        .unwrap_or_default()
        .split_whitespace()
        .filter_map(|pid| pid.parse().ok())
        .collect()
}

const DISPATCHER: &[(&str, &str)] = &[("CTRL_EXEC_HOSTNAME", "ctl.test")];
const AGENT: &[(&str, &str)] = &[
    ("CTRL_EXEC_HOSTNAME", "web.test"),
    ("DISPATCHER_HOST", "127.0.0.1"),
];

/// Both containers, paired.
#[track_caller]
fn pair(pod: &Pod, control: &Image, web: &Image) -> (Container, Container) {
    let mut dispatcher = Container::start(pod, control, "dispatcher", DISPATCHER);
    dispatcher.wait_for("CHILD=ced-api");
    let healthy = || (dispatcher.exec(&["container", "healthcheck"]).code() == 0).then_some(());
    wait_until("the dispatcher is healthy", PATIENCE, healthy);
    dispatcher.exec(&["ced", "pairing-mode", "start"]).ok();
    let mut agent = Container::start(pod, web, "agent", AGENT);
    agent.wait_for("Pairing code: ");
    let sick = agent.exec(&["container", "healthcheck"]).expect_code(1);
    assert!(sick.err().contains("not paired yet"), "{}", sick.err());
    let listing = dispatcher
        .exec(&["ced", "list-requests", "--json"])
        .ok()
        .json();
    let id = listing["requests"][0]["id"]
        .as_str()
        .expect("a request")
        .to_owned();
    dispatcher.exec(&["ced", "approve", &id]).ok();
    agent.wait_for("listening on ");
    let healthy = || (agent.exec(&["container", "healthcheck"]).code() == 0).then_some(());
    wait_until("the agent is healthy", PATIENCE, healthy);
    (dispatcher, agent)
}

#[test]
fn two_containers_pair_run_and_outlive_their_replacement() {
    if !root_or_skip("two_containers_pair_run_and_outlive_their_replacement") {
        return;
    }
    let (pod, control, web) = (Pod::new(), Image::scratch(), Image::scratch());
    // The name server of the container network.
    control.write("etc/hosts", "127.0.0.1 web.test\n", 0o644);
    let (dispatcher, mut agent) = pair(&pod, &control, &web);

    // Everybody is who they should be, without a line in /etc/passwd.
    assert!(!web.path("etc/passwd").exists());
    let [(_, front), (_, api)] = UIDS;
    assert_eq!(agent.uid_of("cea"), front);
    assert_eq!(agent.uid_of("ctrl-exec-exec"), 0);
    assert_eq!(dispatcher.uid_of("ced-api"), api);
    assert_eq!(
        control.owner("etc/ctrl-exec/dispatcher.key"),
        (api, api, 0o600)
    );
    assert_eq!(control.owner("etc/ctrl-exec/ca.key"), (0, 0, 0o600));
    assert_eq!(
        web.owner("etc/ctrl-exec-agent/agent.key"),
        (0, front, 0o640)
    );
    let state = "var/lib/ctrl-exec-agent";
    assert_eq!(web.owner(state), (front, front, 0o750));

    // A script, in a file system that has no shell: the binary itself. It counts after a HUP to the container.
    dispatcher
        .exec(&["ced", "ping", "--check", "web.test"])
        .ok();
    let denied = dispatcher
        .exec(&["ced", "run", "web.test", "version"])
        .expect_code(1);
    assert!(
        denied.out().contains("script not permitted"),
        "{}",
        denied.out()
    );
    let list = "[scripts.version]\npath = \"/opt/ctrl-exec-scripts/tool\"\n";
    std::fs::copy(
        web.path("ctrl-exec"),
        web.path("opt/ctrl-exec-scripts/ctrl-exec"),
    )
    .expect("a script");
    let list = list.replace("tool", "ctrl-exec");
    web.write("etc/ctrl-exec-agent/scripts.toml", &list, 0o640);
    agent.signal(Signal::HUP);
    agent.wait_for("ACTION=config-reload");
    dispatcher
        .exec(&["ced", "run", "web.test", "version", "--", "--version"])
        .ok()
        .out_has("ctrl-exec ");
    let ran = agent.said();
    assert!(
        ran.contains("ACTION=run ") && ran.contains("SCRIPT=version"),
        "{ran}"
    );

    // Idle, they end at once.
    let (took, status) = agent.stop();
    assert!(took < Duration::from_secs(1), "{took:?}");
    assert_eq!(status, Some(0));
    // Another container with the same volumes needs nothing but them.
    let mut agent = Container::start(&pod, &web, "agent", &AGENT[..1]);
    agent.wait_for("listening on ");
    dispatcher
        .exec(&["ced", "ping", "--check", "web.test"])
        .ok();
    let (took, status) = dispatcher.stop();
    assert!(took < Duration::from_secs(1), "{took:?}");
    assert_eq!(status, Some(0));
    let dispatcher = Container::start(
        &pod,
        &control,
        "dispatcher",
        &[("CTRL_EXEC_HOSTNAME", "another.test")],
    );
    dispatcher
        .exec(&["ced", "ping", "--check", "web.test"])
        .ok();
    assert!(
        control
            .read("etc/ctrl-exec/ctrl-exec.toml")
            .contains("dispatcher_id = \"ctl\"")
    );

    // What is lost is said: the certificate alone is worth nothing.
    agent.stop();
    std::fs::remove_dir_all(web.path(state)).expect("it is there");
    let mut agent = Container::start(&pod, &web, "agent", &AGENT[..1]);
    agent.wait_for("paired but trusts nobody");
    agent.wait_for("listening on ");
    dispatcher
        .exec(&["ced", "ping", "--check", "web.test"])
        .expect_code(1);
}

/// A container that ends by itself.
#[track_caller]
fn to_its_end(pod: &Pod, image: &Image, role: &str, env: &[(&str, &str)]) -> Run {
    let caps = format!("{USUAL},+sys_admin");
    run(&mut command(pod, image, &caps, role, env))
}

#[test]
fn what_a_container_cannot_do_without_is_said_and_nothing_is_guessed() {
    if !root_or_skip("what_a_container_cannot_do_without_is_said_and_nothing_is_guessed") {
        return;
    }
    let (pod, image) = (Pod::new(), Image::scratch());
    to_its_end(&pod, &image, "agent", &[])
        .expect_code(1)
        .err_has("set it to the name or address of the dispatcher (-e DISPATCHER_HOST=NAME)");
    to_its_end(&pod, &image, "agent", AGENT)
        .expect_code(1)
        .err_has("Pairing failed: cannot reach '127.0.0.1' port 7444");
    to_its_end(&pod, &image, "dispatcher", &[("API_PORT", "many")])
        .expect_code(78)
        .err_has("the variable API_PORT is 'many'");
    assert!(!image.path("etc/ctrl-exec/ctrl-exec.toml").exists());
    to_its_end(&pod, &image, "neither", &[]).expect_code(64);
}

#[test]
fn the_environment_counts_at_the_first_start_only() {
    if !root_or_skip("the_environment_counts_at_the_first_start_only") {
        return;
    }
    let (pod, image) = (Pod::new(), Image::scratch());
    let file = "etc/ctrl-exec/ctrl-exec.toml";
    let first = [
        ("API_BIND", "0.0.0.0"),
        ("API_PORT", "8445"),
        ("API_AUTH_DEFAULT", "allow"),
        ("READ_TIMEOUT", "90"),
        ("SYSLOG_HOST", "logs.example.org"),
    ];
    let mut container = Container::start(&pod, &image, "dispatcher", &first);
    container.wait_for("listening on 0.0.0.0:8445");
    container.wait_for("SYSLOG_HOST is 'logs.example.org', but this program forwards no log lines");
    container.exec(&["container", "healthcheck"]).ok();
    let text = image.read(file);
    for line in [
        "api_bind = \"0.0.0.0\"",
        "api_port = 8445",
        "api_auth_default = \"allow\"",
        "read_timeout = 90",
    ] {
        assert!(text.contains(line), "{text}");
    }
    assert_eq!(image.owner(file), (0, 9445, 0o640));
    let ca = image.read("etc/ctrl-exec/ca.crt");
    container.stop();

    let again = [("API_PORT", "9445")];
    let mut container = Container::start(&pod, &image, "dispatcher", &again);
    container.wait_for("listening on 0.0.0.0:8445");
    container.wait_for("so API_PORT counts no more");
    assert_eq!(image.read(file), text);
    assert_eq!(image.read("etc/ctrl-exec/ca.crt"), ca);
    container.stop();

    // What no other start would mend ends the container, with the status and the words of the program.
    let broken = format!("{text}api_cert = \"/none.crt\"\napi_key = \"/none.key\"\n");
    image.write(file, &broken, 0o640);
    let ended = to_its_end(&pod, &image, "dispatcher", &[]).expect_code(78);
    assert!(ended.err().contains("/none.crt"), "{}", ended.err());
    assert!(
        ended.err().contains("the container ends with status 78"),
        "{}",
        ended.err()
    );
}

#[test]
fn orphans_are_buried_and_what_crashes_is_started_again() {
    if !root_or_skip("orphans_are_buried_and_what_crashes_is_started_again") {
        return;
    }
    let (pod, image) = (Pod::new(), Image::with_programs());
    // A distribution's, without our account and with one of its numbers taken.
    let passwd = "root:x:0:0:root:/root:/bin/sh\nsomebody:x:9443:100::/:/bin/false";
    image.write("etc/passwd", passwd, 0o644);
    image.write("etc/group", "root:x:0:\n", 0o644);
    let mut container = Container::start(&pod, &image, "dispatcher", DISPATCHER);
    let api = container.program("ced-api");
    let maintenance = container.program("ced");
    container.wait_for("listening on ");
    assert_eq!(container.uid_of("ced-api"), 9444);
    let added =
        format!("{passwd}\nctrl-exec:x:9444:9444:ctrl-exec service:/nonexistent:/sbin/nologin\n");
    assert_eq!(image.read("etc/passwd"), added);
    assert_eq!(image.read("etc/group"), "root:x:0:\nctrl-exec:x:9444:\n");

    let pid = container.first.as_raw_nonzero().to_string();
    let orphans = "n=0; while [ $n -lt 200 ]; do (sleep 5 >/dev/null 2>&1 & exec true) & n=$((n+1)); done; wait";
    let entered = ["--target", &pid, "--pid", "--mount", "--root", "--wd=/"];
    run(Command::new("nsenter")
        .args(entered)
        .args(["/bin/sh", "-c", orphans]))
    .ok();
    let first = container.first.as_raw_nonzero().get().unsigned_abs();
    let had = children(first).len();
    assert!(had > 100, "only {had} orphans were ours to bury");
    wait_until("nobody but the two programs is left", PATIENCE, || {
        (children(first).len() == 2).then_some(())
    });
    assert_eq!(container.find("ced-api"), Some(api));
    assert_eq!(container.find("ced"), Some(maintenance));
    assert!(!container.said().contains("ACTION=child-end"));

    for (name, before) in [("ced-api", api), ("ced", maintenance)] {
        kill_process(before, Signal::KILL).expect("it runs");
        let line = format!("ACTION=child-end CHILD={name} RESTART=1 SIGNAL=9");
        container.wait_for(&line);
        wait_until("it runs again", PATIENCE, || {
            container.find(name).filter(|pid| *pid != before)
        });
    }
    let healthy = || (container.exec(&["container", "healthcheck"]).code() == 0).then_some(());
    wait_until("it is healthy", PATIENCE, healthy);

    // A reload reaches the API.
    container.signal(Signal::HUP);
    container.wait_for("ACTION=config-reload");
    let (took, status) = container.stop();
    assert!(took < Duration::from_secs(1), "{took:?}");
    assert_eq!(status, Some(0));
}

#[test]
fn a_running_script_is_waited_for_and_without_rights_none_is_run() {
    if !root_or_skip("a_running_script_is_waited_for_and_without_rights_none_is_run") {
        return;
    }
    let (pod, control, web) = (Pod::new(), Image::scratch(), Image::with_programs());
    control.write("etc/hosts", "127.0.0.1 web.test\n", 0o644);
    let slow = "#!/bin/sh\nid -u\nsleep 2\necho done\n";
    web.write("opt/ctrl-exec-scripts/slow", slow, 0o755);
    let list = "[scripts.slow]\npath = \"/opt/ctrl-exec-scripts/slow\"\n";
    web.write("etc/ctrl-exec-agent/scripts.toml", list, 0o640);
    let (dispatcher, mut agent) = pair(&pod, &control, &web);

    std::thread::scope(|scope| {
        let run = scope.spawn(|| dispatcher.exec(&["ced", "run", "web.test", "slow"]));
        wait_until("the script runs", PATIENCE, || {
            let executor = agent.program("ctrl-exec-exec").as_raw_nonzero().get();
            (!children(executor.unsigned_abs()).is_empty()).then_some(())
        });
        std::thread::sleep(Duration::from_millis(300));
        agent.signal(Signal::TERM);
        let run = run.join().expect("it ends").ok();
        assert!(
            run.out().contains("65534") && run.out().contains("done"),
            "{}",
            run.out()
        );
    });
    assert_eq!(agent.daemon.wait(PATIENCE).code(), Some(0));

    // The same container without what the executor needs.
    let env = &AGENT[..1];
    let mut agent = Container::start_with(&pod, &web, USUAL, "agent", env);
    agent.wait_for("every run is refused: this container lacks CAP_SYS_ADMIN (cap_add: SYS_ADMIN)");
    agent.wait_for("listening on ");
    dispatcher
        .exec(&["ced", "ping", "--check", "web.test"])
        .ok();
    for words in [
        &["ced", "run", "web.test", "slow"][..],
        &["ced", "run", "--async", "web.test", "slow"],
    ] {
        let refused = dispatcher.exec(words).expect_code(1);
        let said = refused.out() + &refused.err();
        assert!(
            said.contains("this container lacks CAP_SYS_ADMIN"),
            "{said}"
        );
    }
    assert!(agent.find("ctrl-exec-exec").is_none());
    agent
        .exec(&["container", "healthcheck"])
        .expect_code(1)
        .err_has("the executor does not run");
}
