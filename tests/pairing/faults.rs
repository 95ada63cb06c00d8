//! Full disks and sudden death: what stood before still stands, or it is clear what is missing (spec/pairing.md 16, 18.13, 18.16).

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::common::fleet::{self, new_agent, new_dispatcher};
use crate::common::openssl::{key_matches, try_openssl};
use crate::common::{Agent, Host, PATIENCE, free_port, process, root_or_skip};
use crate::kit::{
    CA, CERT, Hall, KEY, configure, fails, map_of, names, pairing_of, record_path, succeeds,
};

/// A directory of a host on a file system of 256 KiB; its content is taken along, and gone when dropped.
struct Disk(PathBuf);

impl Disk {
    #[track_caller]
    fn under(host: &Host, path: &str) -> Self {
        let (at, aside) = (host.path(path), host.path("tmp/aside"));
        let copy = |from: &Path, to: &Path| {
            process::run(Command::new("cp").arg("-a").arg(from).arg(to)).ok();
        };
        std::fs::create_dir_all(&at).unwrap_or_else(|e| panic!("{}: {e}", at.display()));
        copy(&at, &aside);
        process::run(
            Command::new("mount")
                .args(["-t", "tmpfs", "-o", "size=256k,mode=755", "tmpfs"])
                .arg(&at),
        )
        .ok();
        let disk = Self(at);
        copy(&aside.join("."), &disk.0);
        std::fs::remove_dir_all(&aside).unwrap_or_else(|e| panic!("{}: {e}", aside.display()));
        disk
    }

    fn fill(&self) {
        use std::io::Write as _;
        let mut file =
            std::fs::File::create(self.0.join("ballast")).unwrap_or_else(|e| panic!("{e}"));
        while file.write_all(&[0; 4096]).is_ok() {}
        while file.write_all(&[0]).is_ok() {}
    }

    fn relieve(&self) {
        std::fs::remove_file(self.0.join("ballast")).unwrap_or_else(|e| panic!("{e}"));
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_full_disk_on_the_agent_leaves_the_old_pairing() {
    if !root_or_skip("a_full_disk_on_the_agent_leaves_the_old_pairing") {
        return;
    }
    let hall = Hall::open();
    let agent = new_agent("web01.test", free_port());
    hall.pair(&agent, &["--lookup-by", "ip"]);
    let record = hall.host.json(&record_path("web01.test"));
    let before = pairing_of(&agent);
    {
        let disk = Disk::under(&agent, "etc/ctrl-exec-agent");
        let files = names(&agent, "etc/ctrl-exec-agent");
        let (mut request, id) = hall.ask_and_queue(&agent, &["--lookup-by", "ip"]);
        disk.fill();
        // The operator hears of it too, and the registry names the certificate that the agent really has.
        hall.host
            .ced(&["approve", &id, "--replace"])
            .expect_code(1)
            .out_has("the agent refused");
        let said = fails(&mut request);
        assert!(
            said.contains("could not be stored") && said.contains("etc/ctrl-exec-agent"),
            "{said}"
        );
        disk.relieve();
        assert_eq!(pairing_of(&agent), before);
        assert_eq!(
            names(&agent, "etc/ctrl-exec-agent"),
            files,
            "something was left behind"
        );
        assert_eq!(hall.host.json(&record_path("web01.test")), record);
        agent.cea(&["paired"]).ok();
        let served = Agent::start(&agent);
        hall.host.ced(&["run", "web01.test", "hello"]).ok();
        drop(served);
        // And when there is room again it works.
        hall.pair(&agent, &["--lookup-by", "ip"]);
        assert_ne!(pairing_of(&agent), before);
    }
    // The same for the directory of the map, on a host that was never paired.
    let fresh = new_agent("web02.test", free_port());
    let disk = Disk::under(&fresh, "var/lib/ctrl-exec-agent");
    let (mut request, id) = hall.ask_and_queue(&fresh, &[]);
    disk.fill();
    hall.host.ced(&["approve", &id]).expect_code(1);
    let said = fails(&mut request);
    assert!(said.contains("ctrl-exec-dispatchers"), "{said}");
    fresh.cea(&["paired"]).expect_code(1);
    assert!(
        !fresh.exists(CERT) && !fresh.exists(KEY),
        "{:?}",
        names(&fresh, "etc/ctrl-exec-agent")
    );
    assert!(!hall.registered("web02.test"));
    disk.relieve();
    hall.pair(&fresh, &[]);
}

#[test]
fn a_full_disk_on_the_dispatcher_leaves_the_old_record() {
    if !root_or_skip("a_full_disk_on_the_dispatcher_leaves_the_old_record") {
        return;
    }
    let host = new_dispatcher("ctl.test");
    configure(&host, "pairing_rate_limit_disable = true\n");
    let state = Disk::under(&host, "var/lib/ctrl-exec");
    let mut hall = Hall::of(host, &[]);
    let agent = new_agent("web01.test", free_port());
    hall.pair(&agent, &["--lookup-by", "ip"]);
    let (record, before) = (
        hall.host.json(&record_path("web01.test")),
        pairing_of(&agent),
    );

    let (mut request, id) = hall.ask_and_queue(&agent, &["--lookup-by", "ip"]);
    state.fill();
    let failed = hall.host.ced(&["approve", &id, "--replace"]).expect_code(1);
    assert!(
        failed.err().contains("var/lib/ctrl-exec") && failed.err().contains("space"),
        "{}",
        failed.err()
    );
    let denied = hall.host.ced(&["deny", &id]).expect_code(1);
    assert!(
        denied.err().contains("var/lib/ctrl-exec"),
        "{}",
        denied.err()
    );
    assert!(request.is_running() && hall.mode.is_running());
    assert_eq!(fleet::requests(&hall.host).len(), 1);
    state.relieve();
    assert_eq!(hall.host.json(&record_path("web01.test")), record);
    assert_eq!(pairing_of(&agent), before);
    assert!(
        hall.host.log_of("pair-approve").len() == 1,
        "the second one was never logged"
    );
    hall.host.ced(&["approve", &id, "--replace"]).ok();
    succeeds(&mut request);
    assert!(
        !names(&hall.host, "var/lib/ctrl-exec/agents")
            .iter()
            .any(|n| n.contains("tmp"))
    );
    // The listener's directory is under the mount: end it first.
    hall.close();
}

/// What a host says of itself is true: paired means that everything fits, unpaired that it says so.
#[track_caller]
fn assert_whole(agent: &Host, when: &str) -> bool {
    let run = agent.cea(&["paired"]);
    if run.code() == 0 {
        let [cert, key, ca] = [CERT, KEY, CA].map(|p| agent.path(p));
        assert!(
            key_matches(&cert, &key),
            "{when}: key and certificate do not fit"
        );
        let text = |p: &Path| p.to_str().unwrap_or_default().to_owned();
        let (fits, said) = try_openssl(&["verify", "-CAfile", &text(&ca), &text(&cert)]);
        assert!(fits, "{when}: {said}");
        assert!(!map_of(agent).is_empty(), "{when}: nobody is trusted");
        agent.cea(&["pairing-status"]).ok();
        drop(Agent::start(agent));
        true
    } else {
        run.expect_code(1);
        agent
            .cea(&["pairing-status"])
            .expect_code(1)
            .out_has("Not paired. Reason: missing file: ");
        agent
            .cea(&["serve"])
            .expect_code(78)
            .err_has("request-pairing");
        false
    }
}

#[test]
fn an_agent_that_is_killed_while_it_stores_is_paired_or_clearly_not() {
    let hall = Hall::open();
    let agent = new_agent("web01.test", free_port());
    let etc = agent.path("etc/ctrl-exec-agent");
    let begun = |prefix: &str| {
        std::fs::read_dir(&etc).is_ok_and(|entries| {
            entries.flatten().any(|e| {
                e.file_name()
                    .to_str()
                    .is_some_and(|n| n.starts_with(prefix))
            })
        })
    };
    // From an unpaired host on, each moment twice; a host that came out paired stays so for the next one.
    let moments: [(&str, &dyn Fn(u64) -> bool); 6] = [
        ("as the verdict comes", &|_| true),
        ("with the first file written", &|_| begun(".agent.key")),
        ("with the last file written", &|_| begun(".agent.crt")),
        ("with the certificate away", &|_| {
            !etc.join("agent.crt").exists()
        }),
        ("with the new key in place", &|changed| changed != 0),
        ("with the new CA in place", &|_| {
            !begun(".ca.crt") && begun(".agent.crt")
        }),
    ];
    let (mut paired, mut unpaired) = (0, 0);
    for (when, reached) in moments.iter().chain(&moments) {
        let key = std::fs::read(etc.join("agent.key")).ok();
        let (mut request, id) = hall.ask_and_queue(&agent, &["--lookup-by", "ip"]);
        // Stopped until the verdict is in its socket.
        request.signal(Signal::STOP);
        let mut approve = hall.host.start("ced", &["approve", "--replace", &id]);
        hall.host.wait_for_log(&["ACTION=pair-sent", &id]);
        request.signal(Signal::CONT);
        let end = Instant::now() + Duration::from_millis(300);
        loop {
            let changed = u64::from(std::fs::read(etc.join("agent.key")).ok() != key);
            if reached(changed) || Instant::now() >= end || !request.is_running() {
                break;
            }
        }
        if request.is_running() {
            request.signal(Signal::KILL);
        }
        request.wait(PATIENCE);
        approve.wait(PATIENCE);
        if assert_whole(&agent, when) {
            paired += 1
        } else {
            unpaired += 1
        }
    }
    println!("paired {paired} times, unpaired {unpaired} times");
    // Whatever was left, the next pairing works and leaves nothing of the broken ones that matters.
    hall.pair(&agent, &["--lookup-by", "ip"]);
    let served = Agent::start(&agent);
    hall.host.ced(&["run", "web01.test", "hello"]).ok();
    drop(served);
}
