//! Files that are broken, missing, or that a stranger could have written: a clear error that names the file, never a guess, never a
//! half-written successor.

mod common;

use std::path::Path;
use std::process::Command;

use common::fleet::{new_agent, requests, start_pairing, wait_for_request};
use common::{Agent, Host, PATIENCE, Paired, free_port, root_or_skip};

/// Ways to break a file.
#[derive(Clone, Copy, Debug)]
enum Damage {
    Truncated,
    Empty,
    Noise,
    WorldWritable,
    Directory,
    Fifo,
    Dangling,
}

use Damage::{Dangling, Directory, Empty, Fifo, Noise, Truncated, WorldWritable};

/// Breaks a file, runs the test, and mends it.
fn with_damage(host: &Host, path: &str, damage: Damage, test: impl FnOnce()) {
    let at = host.path(path);
    let (content, mode) = (
        std::fs::read(&at).expect("a file to break"),
        host.mode(path),
    );
    match damage {
        Truncated => {
            host.write(path, &content[..content.len() * 2 / 3], mode);
        }
        Empty => {
            host.write(path, "", mode);
        }
        Noise => {
            host.write(path, [0xff, 0, 0xfe, b'\n', b'=', b'"'].repeat(50), mode);
        }
        WorldWritable => host.set_mode(path, mode | 0o002),
        Directory | Fifo | Dangling => {
            std::fs::remove_file(&at).expect("it is there");
            match damage {
                Directory => std::fs::create_dir(&at).expect("a free name"),
                Fifo => rustix::fs::mkfifoat(
                    rustix::fs::CWD,
                    &at,
                    rustix::fs::Mode::from_raw_mode(0o600),
                )
                .expect("a free name"),
                _ => std::os::unix::fs::symlink("/nonexistent/target", &at).expect("a free name"),
            }
        }
    }
    test();
    if at.is_dir() {
        std::fs::remove_dir(&at).expect("it is empty");
    } else {
        std::fs::remove_file(&at).expect("it is there");
    }
    host.write(path, content, mode);
}

#[test]
fn the_dispatchers_own_files() {
    let fleet = Paired::new(&["web01.test"]);
    let _agent = Agent::start(&fleet.agents[0]);
    let host = &fleet.dispatcher;
    for (path, damages, words) in [
        (
            "etc/ctrl-exec/ctrl-exec.toml",
            &[Truncated, Noise, WorldWritable, Directory, Fifo][..],
            &["run", "web01.test", "true"][..],
        ),
        (
            "etc/ctrl-exec/dispatcher.key",
            &[
                Truncated,
                Empty,
                Noise,
                WorldWritable,
                Directory,
                Fifo,
                Dangling,
            ],
            &["run", "web01.test", "true"],
        ),
        (
            "etc/ctrl-exec/dispatcher.crt",
            &[
                Truncated,
                Empty,
                Noise,
                WorldWritable,
                Directory,
                Fifo,
                Dangling,
            ],
            &["run", "web01.test", "true"],
        ),
        (
            "etc/ctrl-exec/ca.crt",
            &[
                Truncated,
                Empty,
                Noise,
                WorldWritable,
                Directory,
                Fifo,
                Dangling,
            ],
            &["run", "web01.test", "true"],
        ),
        (
            "etc/ctrl-exec/ca.key",
            &[
                Truncated,
                Empty,
                Noise,
                WorldWritable,
                Directory,
                Fifo,
                Dangling,
            ],
            &["setup-ctrl-exec", "--yes"],
        ),
        (
            "etc/ctrl-exec/dispatcher.key",
            &[Truncated, Empty, Directory],
            &["pairing-mode", "--timeout", "1"],
        ),
    ] {
        for damage in damages {
            if matches!(damage, Truncated) && path.ends_with(".toml") {
                // Cut in the middle of a value.
                let text = host.read(path);
                host.write(path, text.trim_end().trim_end_matches('"'), 0o640);
                let run = host.ced(words).expect_code(78).err_has(path);
                assert!(
                    run.err().contains("ctrl-exec.toml:"),
                    "no line: {}",
                    run.err()
                );
                host.write(path, text, 0o640);
                continue;
            }
            let certificate = host.read("etc/ctrl-exec/dispatcher.crt").len();
            with_damage(host, path, *damage, || {
                let run = host.ced(words);
                let name = path.rsplit('/').next().expect("a file name");
                assert!(
                    run.code() == 1 || run.code() == 78,
                    "{path} {damage:?}: {} {}{}",
                    run.code(),
                    run.out(),
                    run.err()
                );
                assert!(
                    run.err().contains(name),
                    "{path} {damage:?} is not named: {}",
                    run.err()
                );
                assert!(!run.err().contains("panicked"), "{}", run.err());
            });
            assert!(certificate > 0);
        }
    }
    // A key that does not belong to the certificate.
    let other =
        common::openssl::Authority::foreign().issue("x", "01", common::openssl::Dates::Days(1));
    let key = host.read("etc/ctrl-exec/dispatcher.key");
    host.write("etc/ctrl-exec/dispatcher.key", other.key_pem(), 0o600);
    host.ced(&["run", "web01.test", "true"])
        .expect_code(1)
        .err_has("dispatcher.key");
    host.write("etc/ctrl-exec/dispatcher.key", key, 0o600);
    fleet.ced(&["run", "web01.test", "true"]).ok();
}

#[test]
fn the_registry() {
    let fleet = Paired::new(&["web01.test", "web02.test"]);
    let _agents = fleet.start();
    let host = &fleet.dispatcher;
    let path = "var/lib/ctrl-exec/agents/web01.test.json";
    for damage in [Truncated, Empty, Noise, Directory, Fifo] {
        with_damage(host, path, damage, || {
            // The others go on; this one is named, not forgotten.
            let listed = host.ced(&["list-agents", "--json"]).ok();
            assert_eq!(
                listed.json().as_array().map(Vec::len),
                Some(1),
                "{damage:?}"
            );
            assert!(
                listed.err().contains("web01.test"),
                "{damage:?}: {}",
                listed.err()
            );
            host.ced(&["run", "web02.test", "true"]).ok();
            host.ced(&["run", "web01.test", "true"])
                .expect_code(1)
                .err_has("web01.test");
            host.ced(&["edit-agent", "web01.test", "--ip", "127.0.0.1"])
                .expect_code(1)
                .err_has("web01.test");
        });
    }
    host.ced(&["run", "web01.test", "true"]).ok();
    // A record whose content claims another name: the file name is the key, so at most the host of that name answers, and is shown
    // under it.
    let record = host.read(path);
    for claimed in ["../evil", "web02.test"] {
        host.write(path, record.replacen("web01.test", claimed, 1), 0o644);
        let run = host.ced(&["run", "--json", "web01.test", "true"]);
        assert!(
            run.code() == 1 || run.json()["results"][0]["host"] == "web01.test",
            "{claimed}: {}{}",
            run.out(),
            run.err()
        );
    }
    host.write(path, record, 0o644);
    // No registry at all is an empty one.
    std::fs::rename(
        host.path("var/lib/ctrl-exec/agents"),
        host.path("tmp/agents"),
    )
    .expect("it is there");
    host.ced(&["list-agents"])
        .ok()
        .out_has("No registered agents.");
    host.ced(&["run", "web01.test", "true"])
        .expect_code(1)
        .err_has("unknown agent: web01.test");
    host.write("var/lib/ctrl-exec/agents", "a file", 0o644);
    host.ced(&["list-agents"])
        .expect_code(1)
        .err_has("var/lib/ctrl-exec/agents");
}

#[test]
fn the_agents_files_at_start() {
    let fleet = Paired::new(&["web01.test"]);
    let host = &fleet.agents[0];
    host.write("etc/ctrl-exec-agent/revoked-serials", "# none\n", 0o640);
    for (path, damages) in [
        (
            "etc/ctrl-exec-agent/agent.toml",
            &[Noise, WorldWritable, Directory, Fifo][..],
        ),
        (
            "etc/ctrl-exec-agent/scripts.toml",
            &[Noise, WorldWritable, Directory, Fifo],
        ),
        (
            "etc/ctrl-exec-agent/agent.key",
            &[Truncated, Empty, Noise, WorldWritable],
        ),
        (
            "etc/ctrl-exec-agent/agent.crt",
            &[Truncated, Empty, Noise, WorldWritable],
        ),
        (
            "etc/ctrl-exec-agent/ca.crt",
            &[Truncated, Empty, Noise, WorldWritable],
        ),
        (
            "etc/ctrl-exec-agent/revoked-serials",
            &[WorldWritable, Directory, Fifo, Dangling],
        ),
        (
            "var/lib/ctrl-exec-agent/ctrl-exec-dispatchers",
            &[WorldWritable, Directory, Fifo],
        ),
    ] {
        for damage in damages {
            with_damage(host, path, *damage, || {
                let name = path.rsplit('/').next().expect("a file name");
                host.cea(&["serve"]).expect_code(78).err_has(name);
                let check = host.cea(&["self-check"]).expect_code(1);
                assert!(
                    format!("{}{}", check.out(), check.err()).contains(name),
                    "{path} {damage:?}: {}{}",
                    check.out(),
                    check.err()
                );
            });
        }
    }
    // A trust map cut in the middle, or empty, trusts nobody; it does not trust somebody else.
    for damage in [Truncated, Empty] {
        with_damage(
            host,
            "var/lib/ctrl-exec-agent/ctrl-exec-dispatchers",
            damage,
            || {
                let _agent = Agent::start(host);
                fleet
                    .ced(&["run", "web01.test", "true"])
                    .expect_code(1)
                    .out_has("forbidden: serial mismatch");
            },
        );
    }
    let _agent = Agent::start(host);
    fleet.ced(&["run", "web01.test", "true"]).ok();
}

#[test]
fn a_key_that_others_may_read_is_refused() {
    let fleet = Paired::new(&["web01.test"]);
    fleet
        .dispatcher
        .set_mode("etc/ctrl-exec/dispatcher.key", 0o604);
    fleet
        .ced(&["run", "web01.test", "true"])
        .expect_code(1)
        .err_has("dispatcher.key");
    fleet
        .dispatcher
        .set_mode("etc/ctrl-exec/dispatcher.key", 0o600);
    fleet.agents[0].set_mode("etc/ctrl-exec-agent/agent.key", 0o644);
    fleet.agents[0]
        .cea(&["serve"])
        .expect_code(78)
        .err_has("agent.key");
    // The group may: the original leaves it so.
    fleet.agents[0].set_mode("etc/ctrl-exec-agent/agent.key", 0o640);
    let _agent = Agent::start(&fleet.agents[0]);
}

#[test]
fn unreadable_files_are_named() {
    if common::is_root() {
        // Root reads everything; the rest of this file covers what root can see.
        return;
    }
    let fleet = Paired::new(&["web01.test"]);
    for path in [
        "etc/ctrl-exec/ctrl-exec.toml",
        "etc/ctrl-exec/dispatcher.key",
        "etc/ctrl-exec/dispatcher.crt",
    ] {
        let mode = fleet.dispatcher.mode(path);
        fleet.dispatcher.set_mode(path, 0);
        let run = fleet.ced(&["run", "web01.test", "true"]);
        assert!(run.code() != 0 && run.err().contains(path), "{}", run.err());
        fleet.dispatcher.set_mode(path, mode);
    }
}

/// A file system of 64 KiB, unmounted when dropped.
struct Tiny<'a>(&'a Path);

impl<'a> Tiny<'a> {
    fn mount(at: &'a Path) -> Self {
        std::fs::create_dir_all(at).expect("a directory");
        common::process::run(
            Command::new("mount")
                .args(["-t", "tmpfs", "-o", "size=64k,mode=755", "tmpfs"])
                .arg(at),
        )
        .ok();
        Self(at)
    }

    /// Leaves no byte free.
    fn fill(&self) {
        use std::io::Write as _;
        let mut file = std::fs::File::create(self.0.join("ballast")).expect("room for a name");
        while file.write_all(&[0; 4096]).is_ok() {}
        while file.write_all(&[0]).is_ok() {}
    }

    fn relieve(&self) {
        std::fs::remove_file(self.0.join("ballast")).expect("it is there");
    }
}

impl Drop for Tiny<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0).status();
    }
}

/// Names of everything in a directory but the ballast.
fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(dir)
        .expect("a directory")
        .filter_map(|e| e.ok()?.file_name().into_string().ok())
        .filter(|n| n != "ballast")
        .collect();
    names.sort();
    names
}

#[test]
fn a_full_disk_on_the_dispatcher_while_pairing() {
    if !root_or_skip("a_full_disk_on_the_dispatcher_while_pairing") {
        return;
    }
    let dispatcher = common::fleet::new_dispatcher("ctl.test");
    let state = dispatcher.path("var/lib/ctrl-exec");
    let disk = Tiny::mount(&state);
    let port = free_port();
    let port_text = port.to_string();
    let mut pairing = start_pairing(&dispatcher, port, &[]);
    let agent = new_agent("web01.test", free_port());
    let words = [
        "request-pairing",
        "--dispatcher",
        "127.0.0.1",
        "--port",
        &port_text,
        "--lookup-by",
        "ip",
    ];

    // Full when the request comes: refused, and the agent is told.
    disk.fill();
    let run = agent.cea(&words).expect_code(1);
    assert!(run.err().contains("Pairing failed"), "{}", run.err());
    assert!(pairing.is_running());
    disk.relieve();

    // Full when the operator approves: nothing is half done, and the request waits for a second try.
    let mut request = agent.start("cea", &words);
    let waiting = wait_for_request(&dispatcher, "web01.test");
    let id = waiting["id"].as_str().expect("an id").to_owned();
    let before = names(&state.join("agents"));
    disk.fill();
    let failed = dispatcher.ced(&["approve", &id]).expect_code(1);
    assert!(
        failed.err().contains("var/lib/ctrl-exec"),
        "the place is not named: {}",
        failed.err()
    );
    assert_eq!(
        names(&state.join("agents"))
            .iter()
            .filter(|n| n.ends_with(".json"))
            .count(),
        before.iter().filter(|n| n.ends_with(".json")).count()
    );
    assert!(request.is_running(), "{}{}", request.out(), request.err());
    disk.relieve();
    assert_eq!(requests(&dispatcher).len(), 1);
    dispatcher.ced(&["approve", &id]).ok();
    assert!(
        request.wait(PATIENCE).success(),
        "{}{}",
        request.out(),
        request.err()
    );
    let left: Vec<String> = [state.join("agents"), state.join("pairing")]
        .iter()
        .flat_map(|d| names(d))
        .filter(|n| n != "web01.test.json" && n != ".registry.lock" && n.contains("tmp"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
    let _agent = Agent::start(&agent);
    dispatcher.ced(&["run", "web01.test", "true"]).ok();
    drop(pairing);
    drop(_agent);
}

#[test]
fn a_full_disk_on_the_agent_while_pairing() {
    if !root_or_skip("a_full_disk_on_the_agent_while_pairing") {
        return;
    }
    let dispatcher = common::fleet::new_dispatcher("ctl.test");
    let agent = new_agent("web01.test", free_port());
    let (toml, scripts) = (
        agent.read("etc/ctrl-exec-agent/agent.toml"),
        agent.read("etc/ctrl-exec-agent/scripts.toml"),
    );
    let etc = agent.path("etc/ctrl-exec-agent");
    let disk = Tiny::mount(&etc);
    agent.write("etc/ctrl-exec-agent/agent.toml", toml, 0o640);
    agent.write("etc/ctrl-exec-agent/scripts.toml", scripts, 0o640);
    let port = free_port();
    let port_text = port.to_string();
    let _pairing = start_pairing(&dispatcher, port, &[]);
    common::fleet::pair(&dispatcher, &agent, port);
    let files = ["agent.crt", "agent.key", "ca.crt"]
        .map(|f| agent.read(&format!("etc/ctrl-exec-agent/{f}")));
    let listing = names(&etc);

    // Pairing anew with a full disk fails and leaves the old set complete: key and certificate still belong together.
    let mut request = agent.start(
        "cea",
        &[
            "request-pairing",
            "--dispatcher",
            "127.0.0.1",
            "--port",
            &port_text,
            "--lookup-by",
            "ip",
        ],
    );
    let waiting = wait_for_request(&dispatcher, "web01.test");
    disk.fill();
    dispatcher
        .ced(&[
            "approve",
            waiting["id"].as_str().expect("an id"),
            "--replace",
        ])
        .ok();
    assert_ne!(
        request.wait(PATIENCE).code(),
        Some(0),
        "{}{}",
        request.out(),
        request.err()
    );
    assert!(
        request.err().contains("etc/ctrl-exec-agent"),
        "the place is not named: {}",
        request.err()
    );
    disk.relieve();
    assert_eq!(
        ["agent.crt", "agent.key", "ca.crt"]
            .map(|f| agent.read(&format!("etc/ctrl-exec-agent/{f}"))),
        files
    );
    assert_eq!(names(&etc), listing);
    agent.cea(&["self-check"]).ok();
}

#[test]
fn a_full_disk_while_editing_the_registry() {
    if !root_or_skip("a_full_disk_while_editing_the_registry") {
        return;
    }
    let host = common::fleet::new_dispatcher("ctl.test");
    let agents = host.path("var/lib/ctrl-exec/agents");
    let disk = Tiny::mount(&agents);
    let record =
        r#"{"hostname":"web01.test","ip":"127.0.0.1","expiry":"Jun  7 16:28:00 2028 GMT"}"#;
    host.write("var/lib/ctrl-exec/agents/web01.test.json", record, 0o644);
    host.ced(&["list-agents"]).ok();
    disk.fill();
    host.ced(&["edit-agent", "web01.test", "--ip", "192.0.2.1"])
        .expect_code(1)
        .err_has("web01.test");
    assert_eq!(
        host.read("var/lib/ctrl-exec/agents/web01.test.json"),
        record
    );
    disk.relieve();
    assert!(
        names(&agents)
            .iter()
            .all(|n| n == "web01.test.json" || n == ".registry.lock"),
        "{:?}",
        names(&agents)
    );
    host.ced(&["edit-agent", "web01.test", "--ip", "192.0.2.1"])
        .ok();
}
