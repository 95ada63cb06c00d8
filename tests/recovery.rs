//! What docs/recovery.md promises about clocks and backups, with the real binary and real agents.

mod common;

use common::rotating::{DAY, SharedClock};
use common::{Agent, Paired};

fn serial_status(fleet: &Paired, name: &str) -> (String, String) {
    let record = fleet
        .dispatcher
        .json(&format!("var/lib/ctrl-exec/agents/{name}.json"));
    let text = |key: &str| record[key].as_str().unwrap_or_default().to_owned();
    (text("serial_status"), text("dispatcher_serial"))
}

fn current(fleet: &Paired) -> String {
    let state = fleet.dispatcher.json("var/lib/ctrl-exec/rotation.json");
    state["current_serial"]
        .as_str()
        .expect("the state names the current serial")
        .to_owned()
}

#[test]
fn a_dispatcher_whose_clock_was_years_ahead_finds_its_way_back() {
    let mut fleet = Paired::new(&["a.test", "b.test"]);
    let clock = SharedClock::new();
    clock.give(&mut fleet.dispatcher);
    let _agents = fleet.start();
    fleet.ced(&["ping", "--check", "a.test", "b.test"]).ok();
    // Its own certificate seems to end: it rotates, to one that begins in the future. The agents' clocks are right.
    clock.set(750 * DAY);
    fleet.ced(&["maintain"]).ok().out_has("was rotated");
    clock.set(0);
    for _ in 0..2 {
        fleet.ced(&["ping", "--check", "a.test", "b.test"]).ok();
    }
    fleet.ced(&["run", "a.test", "b.test", "true"]).ok();
    fleet.ced(&["rotate-cert"]).ok().out_has("Updated: 2");
    fleet.ced(&["ping", "--check", "a.test", "b.test"]).ok();
    for name in ["a.test", "b.test"] {
        assert_eq!(
            serial_status(&fleet, name),
            ("current".to_owned(), current(&fleet))
        );
    }
}

#[test]
fn an_agent_restored_from_before_a_rotation_is_told_again_in_its_first_contact() {
    const MAP: &str = "var/lib/ctrl-exec-agent/ctrl-exec-dispatchers";
    let fleet = Paired::new(&["a.test", "b.test"]);
    let backup = fleet.agents[0].read(MAP);
    let mut agents = fleet.start();
    fleet.ced(&["rotate-cert"]).ok().out_has("Updated: 2");
    let told = current(&fleet);
    assert!(fleet.agents[0].read(MAP).contains(&told));

    drop(agents.remove(0));
    fleet.agents[0].write(MAP, &backup, 0o644);
    let _restored = Agent::start(&fleet.agents[0]);
    fleet.ced(&["ping", "--check", "a.test"]).ok();
    fleet.ced(&["maintain"]).ok();
    assert_eq!(
        serial_status(&fleet, "a.test"),
        ("current".to_owned(), told.clone())
    );
    assert!(fleet.agents[0].read(MAP).contains(&told));
}

#[test]
fn a_journal_older_than_the_registry_tells_every_agent_what_it_says_now() {
    const JOURNAL: &str = "etc/ctrl-exec/revoked.jsonl";
    let fleet = Paired::new(&["a.test"]);
    let _agents = fleet.start();
    fleet.ced(&["revoke", "0xaa01"]).ok();
    let backup = fleet.dispatcher.read(JOURNAL);
    for serial in ["0xaa02", "0xaa03"] {
        fleet
            .ced(&["revoke", serial])
            .ok()
            .out_has("Agents told: 1 of 1.");
    }
    fleet.dispatcher.write(JOURNAL, &backup, 0o640);
    fleet
        .ced(&["revoke", "0xbb01"])
        .ok()
        .out_has("Agents told: 1 of 1.");
    let pushed = fleet.agents[0].read("var/lib/ctrl-exec-agent/revoked-serials");
    for serial in ["aa01", "aa02", "aa03", "bb01"] {
        assert!(pushed.contains(serial), "{serial}: {pushed}");
    }
}
