//! `ced maintain` with the real binary: one at a time, whatever the registry looks like, for as long as it is told to stay.

mod common;

use std::net::TcpListener;
use std::time::Duration;

use common::fleet::register;
use common::rotating::record_path;
use common::sim::Plan;
use common::{PATIENCE, Rotating, wait_until};
use rustix::process::Signal;
use serde_json::json;

/// The lock that whoever changes certificates holds.
const LOCK: &str = "var/lib/ctrl-exec/.rotation.json.lock";

#[test]
fn while_another_pass_is_under_way_a_second_one_leaves_the_work_to_it() {
    let world = Rotating::new(1);
    world.maintain();
    let held = std::fs::File::open(world.host.path(LOCK)).expect("a pass has left it");
    held.lock().expect("nobody has it");
    world.fleet[0].forget_requests();
    // Both wait for half a minute first.
    let (text, json) = std::thread::scope(|scope| {
        let text = scope.spawn(|| world.host.ced(&["maintain"]).ok().out());
        let json = scope.spawn(|| world.host.ced(&["maintain", "--json"]).ok().json());
        (text.join().expect("ended"), json.join().expect("ended"))
    });
    assert!(
        text.starts_with("Another maintenance is under way and does the same work")
            && text.contains(LOCK),
        "{text}"
    );
    assert_eq!(
        json,
        json!({"ok": 1, "agents": 0, "pinged": 0, "busy": true})
    );
    // Who only wants to ping is not held up.
    world.ping_all();
    assert_eq!(world.fleet[0].requests().len(), 1);
    held.unlock().expect("freed");
    assert_eq!(world.maintain()["answered"], 1);
}

#[test]
fn one_damaged_record_keeps_nobody_else_from_being_looked_after() {
    let world = Rotating::new(3);
    let (host, fleet) = (&world.host, &world.fleet);
    let damaged = record_path(fleet[1].name());
    host.write(&damaged, "{\"hostname\": ", 0o644);
    host.write(&record_path("not a name"), "{}", 0o644);
    world.pass_days(740);
    let done = world.maintain();
    assert_eq!(
        (&done["agents"], &done["pinged"], &done["answered"]),
        (&json!(4), &json!(2), &json!(2))
    );
    assert_eq!(done["rotated"], json!(world.serial()));
    assert_eq!(
        (&done["announced"], &done["staged"]),
        (&json!(2), &json!(2))
    );
    let failed: Vec<&str> = done["failed"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|f| f["error"].as_str().expect("a text"))
        .collect();
    assert!(
        failed.len() == 2
            && failed.iter().any(|f| f.contains("sim0001.test.json"))
            && failed.iter().any(|f| f.contains("not a name")),
        "{failed:?}"
    );
    assert_eq!(
        host.read(&damaged),
        "{\"hostname\": ",
        "nobody overwrites it"
    );
    // Mended: the agent is told of what it has missed.
    register(host, &fleet[1].record());
    assert_eq!(world.maintain()["announced"], 1);
    assert_eq!(fleet.trusting(&world.serial()).len(), 3);
}

#[test]
fn six_hundred_agents_are_one_pass() {
    let plan = Plan {
        days: 3000,
        ..Plan::new(600, "2")
    };
    let world = Rotating::with("02", &plan);
    let fleet = &world.fleet;
    for some in [5, 250, 599] {
        fleet[some].set_up(false);
    }
    world.pass_days(740);
    let done = world.maintain();
    assert_eq!(
        (&done["agents"], &done["pinged"], &done["answered"]),
        (&json!(600), &json!(600), &json!(597))
    );
    let new = world.serial();
    assert_eq!(done["rotated"], json!(new));
    assert_eq!(done["announced"], 597);
    assert_eq!(done["failed"], json!([]));
    assert_eq!(fleet.trusting(&new).len(), 597);
    fleet.set_up(true);
    assert_eq!(world.maintain()["announced"], 3);
    assert_eq!(fleet.trusting(&new).len(), 600);
}

#[test]
fn an_agent_is_told_where_it_listens_and_under_the_name_that_it_has() {
    let world = Rotating::new(3);
    let (host, fleet) = (&world.host, &world.fleet);
    // By address with a port of its own; by a name that only the resolver knows; at an address that was mistyped.
    host.ced(&["edit-agent", fleet[1].name(), "--rename", "localhost"])
        .ok();
    host.ced(&["edit-agent", "localhost", "--lookup-by", "hostname"])
        .ok();
    let port = fleet[2].address().port().to_string();
    host.ced(&["edit-agent", fleet[2].name(), "--agent-port", "1"])
        .ok();
    let done = world.rotate();
    assert_eq!(done["updated"], 2);
    assert_eq!(done["failed"][0]["agent"], fleet[2].name());
    assert!(fleet[1].trusts(&world.serial()));
    let record = host.json(&record_path("localhost"));
    assert_eq!(
        (&record["serial_status"], &record["cert_cn"]),
        (&json!("current"), &json!(fleet[1].name()))
    );
    host.ced(&["edit-agent", fleet[2].name(), "--agent-port", &port])
        .ok();
    assert_eq!(world.maintain()["announced"], 1);
    host.ced(&["ping", "--check", "localhost", fleet[2].name()])
        .ok();
}

#[test]
fn a_pass_that_stays_works_when_it_is_told_and_ends_when_it_is_told() {
    let world = Rotating::new(1);
    world.configure("connect_timeout = 60\n");
    let passes = |world: &Rotating| world.host.log_of("maintain").len();
    let mut daemon = world.host.start("ced", &["maintain", "--daemon", "--json"]);
    world.host.wait_for_log(&["ACTION=maintain-start"]);
    daemon.signal(Signal::HUP);
    world.host.wait_for_log(&["ACTION=maintain", "PINGED=1"]);
    wait_until("it says what it has done", PATIENCE, || {
        daemon.out().contains("\"answered\":1").then_some(())
    });

    // A configuration with a mistake changes nothing; the last good one stays.
    world.configure("auth_hook_timeout = 0\nauth_hook =  \n");
    daemon.signal(Signal::HUP);
    daemon.wait_for_text("the last good configuration stays in force");
    wait_until("a second pass", PATIENCE, || {
        (passes(&world) >= 3).then_some(())
    });
    assert!(daemon.is_running());

    // In the middle of a pass that waits for an agent which says nothing.
    world.configure("connect_timeout = 60\n");
    let silent = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = silent.local_addr().expect("bound").port().to_string();
    let name = world.fleet[0].name().to_owned();
    world
        .host
        .ced(&["edit-agent", &name, "--agent-port", &port])
        .ok();
    let before = passes(&world);
    daemon.signal(Signal::HUP);
    // Held, or the agent would hang up instead of saying nothing.
    let _call = silent.accept().expect("it calls");
    daemon.signal(Signal::TERM);
    assert!(daemon.wait(Duration::from_secs(10)).success());
    assert_eq!(passes(&world), before);
    assert_eq!(world.host.log_of("maintain-stop").len(), 1);

    // The lock went with it.
    let address = world.fleet[0].address().port().to_string();
    world
        .host
        .ced(&["edit-agent", &name, "--agent-port", &address])
        .ok();
    assert_eq!(world.maintain()["answered"], 1);
}

#[test]
fn a_pass_without_anything_to_do_says_so_and_touches_nothing() {
    let world = Rotating::new(2);
    world.maintain();
    let before = [world.record(0), world.record(1)];
    let modified = |at: usize| {
        let path = world.host.path(&record_path(world.fleet[at].name()));
        std::fs::metadata(path).and_then(|m| m.modified()).ok()
    };
    let times = [modified(0), modified(1)];
    let out = world.host.ced(&["maintain"]).ok().out();
    assert_eq!(
        out,
        "Maintenance run: 2/2 agents pinged, 2 answered, 0 renewed, 0 told of the dispatcher's serial.\n"
    );
    assert_eq!([world.record(0), world.record(1)], before);
    assert_eq!([modified(0), modified(1)], times, "no record is written");
}
