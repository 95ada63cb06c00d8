//! Rotation of the dispatcher's certificate with the real binary, over agents that apply the original's serial rules to the letter.

mod common;

use common::Rotating;
use common::fleet::legacy_map;
use common::rotating::{kept, record_path};
use common::sim::{DISPATCHER, Plan};
use serde_json::{Value, json};

/// The serial of the dispatcher's certificate, and what pairing has left in the agents' maps for it. Where the original itself would lock
/// the dispatcher out (16, 20, 1234567890), our form with colons was sent, of which one pass takes the colons.
const AWKWARD: &[(&str, &str)] = &[
    ("02", "2"),
    ("0A", "a"),
    ("10", "10"),
    ("16", "16"),
    ("20", "20"),
    ("00AB12", "ab12"),
    ("1234567890", "1234567890"),
    ("DEADBEEF", "deadbeef"),
];

#[test]
fn agents_of_the_original_follow_whatever_the_old_serial_looks_like() {
    for (serial, row) in AWKWARD {
        let world = Rotating::with(serial, &Plan::new(3, row));
        let (host, fleet) = (&world.host, &world.fleet);
        world.ping_all();
        fleet[2].set_up(false);
        let out = host.ced(&["rotate-cert"]).ok().out();
        assert!(
            out.contains("Updated: 2") && out.contains("Failed:  1"),
            "{serial}: {out}"
        );
        let new = world.state()["current_serial"].clone();
        for round in 0..2 {
            for name in &fleet.names()[..2] {
                host.ced(&["ping", "--check", name]).ok();
            }
            // The one that was away hears of it at its first contact.
            if round == 0 {
                fleet[2].set_up(true);
                world.ping_all();
            }
        }
        assert_eq!(world.record(2)["serial_status"], "current", "{serial}");
        assert_eq!(world.record(2)["dispatcher_serial"], new, "{serial}");
        let status: Value = host.ced(&["serial-status", "--json"]).ok().json();
        assert_eq!(status["state"]["current_serial"], new);

        // The overlap is over.
        world.pass_days(31);
        assert_eq!(world.maintain()["withdrawn"], 3, "{serial}");
        assert!(fleet.trusting(serial).is_empty(), "{serial}");
        assert!(world.kept().is_empty(), "{serial}");
        world.ping_all();
    }
}

#[test]
fn what_is_due_is_rotated_once_and_the_old_serial_goes_when_the_overlap_is_over() {
    let world = Rotating::new(3);
    let (host, fleet) = (&world.host, &world.fleet);
    // 825 days of life, rotated when 90 are left.
    world.pass_days(733);
    assert_eq!(world.maintain()["rotated"], Value::Null);
    assert!(!host.exists("var/lib/ctrl-exec/rotation.json"));
    world.pass_days(3);
    let done = world.maintain();
    let new = world.serial();
    assert_eq!(done["rotated"], json!(new));
    assert_eq!(
        (&done["announced"], &done["withdrawn"]),
        (&json!(3), &json!(0))
    );
    assert_ne!(new, "2");
    assert_eq!(world.kept(), ["2"], "the old pair, for whoever needs it");
    for serial in ["2", &new] {
        assert_eq!(fleet.trusting(serial).len(), 3, "{serial}");
    }
    let state = world.state();
    assert_eq!(
        (&state["current_serial"], &state["previous_serial"]),
        (&json!(new), &json!("2"))
    );
    assert_eq!(state["retiring"][0]["pending"].as_array().unwrap().len(), 3);

    // Nothing happens twice, and nothing before its time.
    fleet.agents().iter().for_each(|a| a.forget_requests());
    world.pass_days(29);
    let idle = world.maintain();
    assert_eq!(
        (&idle["rotated"], &idle["announced"], &idle["withdrawn"]),
        (&Value::Null, &json!(0), &json!(0))
    );
    assert!(
        fleet
            .agents()
            .iter()
            .all(|a| a.requests_for("/rotate-serial").is_empty())
    );

    world.pass_days(2);
    assert_eq!(world.maintain()["withdrawn"], 3);
    assert!(fleet.trusting("2").is_empty());
    assert_eq!(fleet.trusting(&new).len(), 3);
    assert!(world.kept().is_empty(), "the old key is gone");
    let state = world.state();
    assert!(state.get("previous_serial").is_none() && state.get("retiring").is_none());
    assert!(state["previous_retired"].is_string());
    for agent in fleet.agents() {
        let [remove] = &agent.requests_for("/rotate-serial")[..] else {
            panic!("{:?}", agent.requests());
        };
        assert_eq!((remove.serial.as_str(), remove.status), (&*new, 200));
        assert_eq!(remove.body["action"], "remove");
    }
    world.ping_all();
    assert_eq!(host.log_of("cert-rotated").len(), 1);
}

#[test]
fn an_agent_whose_answer_to_the_new_serial_is_lost_is_told_again() {
    let world = Rotating::new(3);
    let (host, fleet) = (&world.host, &world.fleet);
    fleet[1].lose_reply_of("/rotate-serial");
    let done = world.rotate();
    assert_eq!(done["updated"], 2);
    assert_eq!(done["failed"][0]["agent"], fleet[1].name());
    let new = world.serial();
    assert_eq!(
        fleet.trusting(&new).len(),
        3,
        "it has taken it all the same"
    );
    assert_eq!(world.record(1)["serial_status"], "pending");
    assert_eq!(world.record(1)["dispatcher_serial"], "2");

    fleet[1].forget_requests();
    host.ced(&["ping", "--check", fleet[1].name()]).ok();
    let calls: Vec<(String, String)> = fleet[1]
        .requests()
        .into_iter()
        .map(|r| (r.path, r.serial))
        .collect();
    assert_eq!(
        calls,
        [
            ("/ping".to_owned(), "2".to_owned()),
            ("/rotate-serial".to_owned(), "2".to_owned())
        ],
        "with the serial that it is known to trust"
    );
    assert_eq!(world.record(1)["serial_status"], "current");
    assert_eq!(fleet[1].trusted().len(), 2);
    host.ced(&["ping", "--check", fleet[1].name()]).ok();
    assert_eq!(fleet[1].requests().last().unwrap().serial, new);
}

#[test]
fn an_agent_whose_answer_to_the_withdrawal_is_lost_is_asked_again() {
    let world = Rotating::new(3);
    let fleet = &world.fleet;
    world.rotate();
    world.pass_days(31);
    fleet[1].lose_reply_of("/rotate-serial");
    let text = world.host.ced(&["maintain"]).ok().out();
    assert!(
        text.contains("2 agent(s) have dropped an old serial")
            && text.contains("sim0001.test")
            && text.contains("still trusts an old serial"),
        "{text}"
    );
    assert_eq!(
        world.state()["retiring"][0]["pending"],
        json!([fleet[1].name()])
    );
    assert_eq!(world.kept(), ["2"]);
    assert_eq!(world.maintain()["withdrawn"], 1);
    assert!(fleet.trusting("2").is_empty());
    assert!(world.kept().is_empty());
    // Asked once each, but for the one.
    let asked: Vec<usize> = fleet
        .agents()
        .iter()
        .map(|a| {
            let mut removals = a.requests_for("/rotate-serial");
            removals.retain(|r| r.body["action"] == "remove");
            removals.len()
        })
        .collect();
    assert_eq!(asked, [1, 2, 1]);
    world.ping_all();
}

#[test]
fn an_agent_that_is_away_for_three_rotations_finds_its_way_back() {
    let world = Rotating::new(2);
    let (host, fleet) = (&world.host, &world.fleet);
    world.ping_all();
    fleet[1].set_up(false);
    let mut serials = vec![world.serial()];
    for _ in 0..3 {
        assert_eq!(world.rotate()["updated"], 1);
        serials.push(world.serial());
        world.pass_days(40);
        world.maintain();
    }
    // All but the newest are withdrawn from the one that followed; the first pair is kept for the other.
    assert_eq!(fleet[0].trusted().len(), 1);
    assert!(fleet[0].trusts(&serials[3]));
    assert_eq!(world.record(1)["serial_status"], "stale");
    assert!(world.kept().contains(&"2".to_owned()), "{:?}", world.kept());
    let out = host.ced(&["serial-status"]).ok().out();
    assert!(out.contains("0 pending, 1 stale"), "{out}");

    fleet[1].set_up(true);
    let done = world.maintain();
    assert_eq!(
        (&done["answered"], &done["announced"]),
        (&json!(2), &json!(1))
    );
    assert_eq!(world.record(1)["serial_status"], "current");
    assert_eq!(fleet[1].trusted().len(), 1, "{:?}", fleet[1].trusted());
    assert!(fleet[1].trusts(&serials[3]));
    assert!(world.kept().is_empty(), "{:?}", world.kept());
    assert!(world.state().get("retiring").is_none());
    world.ping_all();
}

#[test]
fn a_second_rotation_at_once_is_a_rotation_of_its_own_and_loses_nobody() {
    let world = Rotating::new(2);
    let fleet = &world.fleet;
    world.rotate();
    let second = world.serial();
    world.rotate();
    let third = world.serial();
    assert_ne!(second, third);
    for serial in ["2", &second, &third] {
        assert_eq!(fleet.trusting(serial).len(), 2, "{serial}");
    }
    assert_eq!(world.state()["retiring"].as_array().unwrap().len(), 2);
    world.ping_all();
    world.pass_days(31);
    assert_eq!(world.maintain()["withdrawn"], 4);
    assert_eq!(fleet[0].trusted().len(), 1);
    assert!(world.kept().is_empty());
    world.ping_all();
}

#[test]
fn a_rotation_that_nobody_has_heard_of_is_continued_and_the_old_certificate_stays() {
    let world = Rotating::new(2);
    let (host, fleet) = (&world.host, &world.fleet);
    fleet.set_up(false);
    let out = host.ced(&["rotate-cert"]).ok().out();
    assert!(
        out.contains("(announced, not in use yet)") && out.contains("(still in use)"),
        "{out}"
    );
    let next = world.state()["next_serial"].clone();
    assert_eq!(world.serial(), "2");
    let again = host.ced(&["rotate-cert"]).ok().out();
    assert!(again.contains("A rotation is not over yet"), "{again}");
    assert_eq!(world.state()["next_serial"], next);
    let status = host.ced(&["serial-status"]).ok().out();
    assert!(
        status.contains("Current serial:  2")
            && status.contains("being announced since")
            && status.contains("2 pending, 0 stale"),
        "{status}"
    );
    fleet[0].set_up(true);
    assert_eq!(world.maintain()["rotated"], next);
    assert_eq!(json!(world.serial()), next);
    fleet[1].set_up(true);
    world.ping_all();
    assert_eq!(world.record(1)["serial_status"], "current");
}

#[test]
fn an_operator_reads_where_a_rotation_stands() {
    let world = Rotating::new(2);
    let (host, fleet) = (&world.host, &world.fleet);
    let status = || host.ced(&["serial-status"]).ok().out();
    let before = status();
    assert!(
        before.contains("No rotation has been performed.")
            && before.contains("Serial:          2\n")
            && before.contains("HOSTNAME"),
        "{before}"
    );
    let json = |key: &str| host.ced(&["serial-status", "--json"]).ok().json()[key].clone();
    assert_eq!(json("state"), Value::Null);
    assert_eq!(json("kept"), json!([]));

    fleet[1].set_up(false);
    world.rotate();
    let new = world.serial();
    let during = status();
    for text in [
        &format!("Current serial:  {new}"),
        "Previous serial: 2",
        "Overlap expires: 20",
        "Old serial:      02 will be withdrawn after 20",
        "2 agent(s) may still trust it",
        "Older pairs:     1 kept",
        "Next rotation:   20",
        "1 pending, 0 stale",
    ] {
        assert!(during.contains(text), "{text}\n{during}");
    }
    let row = |name: &str| {
        let found = during.lines().find(|l| l.starts_with(name));
        found.unwrap().split_whitespace().nth(1).unwrap().to_owned()
    };
    assert_eq!(row(fleet[0].name()), "current");
    assert_eq!(row(fleet[1].name()), "pending");
    assert_eq!(json("state")["current_serial"], json!(new));
    assert_eq!(json("state")["overlap_days"], 30);
    assert_eq!(json("kept"), json!(["2"]));
    assert_eq!(json("agents")[1]["serial_status"], "pending");

    world.pass_days(31);
    world.maintain();
    let after = status();
    assert!(
        after.contains("Old serial:      02 is being withdrawn; 1 agent(s) may still trust it")
            && after.contains("0 pending, 1 stale"),
        "{after}"
    );
    fleet[1].set_up(true);
    world.maintain();
    let over = status();
    assert!(
        over.contains("Previous serial: (none)")
            && !over.contains("Old serial:")
            && !over.contains("Older pairs")
            && !over.contains("pending,"),
        "{over}"
    );
}

#[test]
fn a_rotation_of_the_original_is_brought_to_its_end() {
    // As the original leaves it: told everybody, withdrew nothing; the old key is gone.
    let plan = Plan {
        map: legacy_map(&[("2", DISPATCHER), ("ab12", DISPATCHER)]),
        ..Plan::new(2, "2")
    };
    let world = Rotating::with("AB12", &plan);
    for at in 0..2 {
        let mut record = world.record(at);
        record["dispatcher_serial"] = "ab12".into();
        record["colour"] = "red".into();
        let path = record_path(world.fleet[at].name());
        world.host.write(&path, record.to_string(), 0o644);
    }
    let file = json!({
        "current_serial": "ab12", "previous_serial": "2",
        "rotated_at": "2026-01-01T00:00:00Z", "overlap_expires": "2026-01-31T00:00:00Z",
        "overlap_days": "30", "later": {"unknown": [1]},
    });
    let path = "var/lib/ctrl-exec/rotation.json";
    world.host.write(path, file.to_string(), 0o640);
    let done = world.maintain();
    assert_eq!(
        (&done["withdrawn"], &done["rotated"], &done["announced"]),
        (&json!(2), &Value::Null, &json!(0))
    );
    assert!(world.fleet.trusting("02").is_empty());
    let state = world.state();
    assert!(state.get("previous_serial").is_none() && state["previous_retired"].is_string());
    assert_eq!(state["later"], file["later"]);
    assert_eq!(state["overlap_days"], "30");
    assert_eq!(world.host.mode(path), 0o640);
    assert_eq!(world.record(1)["colour"], "red");
    world.ping_all();

    // And the next one is ours.
    assert_eq!(world.rotate()["updated"], 2);
    assert_eq!(kept(&world.host), ["ab12"]);
    world.ping_all();
}

#[test]
fn an_agent_that_is_renamed_during_the_overlap_drops_the_old_serial_too() {
    let world = Rotating::new(2);
    let (host, fleet) = (&world.host, &world.fleet);
    world.ping_all();
    world.rotate();
    host.ced(&["edit-agent", fleet[1].name(), "--rename", "db.test"])
        .ok();
    host.ced(&["edit-agent", "db.test", "--rename", "db2.test"])
        .ok();
    host.ced(&["ping", "--check", "db2.test"]).ok();
    world.pass_days(31);
    assert_eq!(world.maintain()["withdrawn"], 2);
    assert!(
        fleet.trusting("02").is_empty(),
        "{:?}",
        fleet.trusting("02")
    );
    host.ced(&["ping", "--check", "db2.test", fleet[0].name()])
        .ok();
    // Told under its new name next time.
    assert_eq!(world.rotate()["updated"], 2);
}
