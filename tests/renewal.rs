//! Renewal of agents' certificates with the real binary: agents of the original, which keep what they get for their next start.

mod common;

use std::collections::BTreeSet;

use common::Rotating;
use common::fleet::DISPATCHER_CONF;
use common::openssl::{openssl, text_of};
use common::rotating::record_path;
use common::sim::Plan;
use serde_json::{Value, json};

/// Agents whose certificates last so many days.
fn lasting(count: usize, days: u32) -> Rotating {
    let plan = Plan {
        days,
        ..Plan::new(count, "2")
    };
    Rotating::with("02", &plan)
}

/// A request for a certificate by openssl, with a key of its own.
fn foreign_request(cn: &str) -> String {
    let dir = tempfile::tempdir().expect("a directory");
    let at = |name: &str| dir.path().join(name).to_str().expect("UTF-8").to_owned();
    let subject = format!("/CN={cn}");
    openssl(&[
        "req",
        "-new",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-sha256",
        "-subj",
        &subject,
        "-keyout",
        &at("key"),
        "-out",
        &at("csr"),
    ]);
    std::fs::read_to_string(at("csr")).expect("written")
}

fn renewals(world: &Rotating, at: usize) -> (usize, usize) {
    let agent = &world.fleet[at];
    (
        agent.requests_for("/renew").len(),
        agent.requests_for("/renew-complete").len(),
    )
}

#[test]
fn the_registry_shows_the_certificate_in_use_until_the_new_one_is() {
    let world = lasting(2, 100);
    let agent = &world.fleet[0];
    let (old, serial) = (agent.expiry(), agent.presented_serial());
    world.pass_days(48);
    let early = world.maintain();
    assert_eq!((&early["staged"], renewals(&world, 0)), (&json!(0), (0, 0)));
    world.pass_days(4);
    let done = world.maintain();
    assert_eq!(
        (&done["staged"], &done["renewed"], &done["renewal_failed"]),
        (&json!(2), &json!(0), &json!([]))
    );
    assert!(agent.staged());
    let record = world.record(0);
    assert_eq!(record["expiry"], old);
    assert_eq!(record["cert_serial"], serial);
    assert_ne!(record["staged_expiry"], record["expiry"]);
    assert!(record["staged_expiry"].is_string());
    let out = world.host.ced(&["list-agents"]).ok().out();
    let year_of = |text: &str| text.rsplit(' ').nth(1).map(str::to_owned);
    assert!(out.contains(&year_of(&old).expect("a year")), "{out}");

    // What is staged is not renewed again, however often it is asked.
    world.ping_all();
    world.pass_days(10);
    assert_eq!(world.maintain()["staged"], 0);
    assert_eq!(renewals(&world, 0), (1, 1));

    // What it got is strict, for its own key and name.
    let der = agent.staged_certificate().expect("staged");
    let file = world.host.path("tmp/staged.crt");
    let pem = ::pem::encode(&::pem::Pem::new("CERTIFICATE", der));
    std::fs::write(&file, pem).expect("written");
    let text = text_of(&file);
    for part in [
        "Version: 3",
        "CN = sim0000.test",
        "DNS:sim0000.test",
        "TLS Web Server Authentication",
    ] {
        let loose = part.replace(" = ", "=");
        assert!(
            text.contains(part) || text.contains(&loose),
            "{part}\n{text}"
        );
    }

    assert!(agent.adopt());
    world.ping_all();
    let record = world.record(0);
    assert_eq!(record["expiry"], agent.expiry());
    assert_eq!(record["cert_serial"], agent.presented_serial());
    assert_ne!(record["cert_serial"], serial);
    assert!(record.get("staged_expiry").is_none(), "{record}");
    assert_eq!(renewals(&world, 0), (1, 1));
}

#[test]
fn a_renamed_agent_goes_on_being_renewed() {
    let world = lasting(1, 100);
    world
        .host
        .ced(&["edit-agent", "sim0000.test", "--rename", "web.test"])
        .ok();
    world.pass_days(60);
    assert_eq!(world.maintain()["staged"], 1);
    assert!(world.fleet[0].adopt());
    world.host.ced(&["ping", "--check", "web.test"]).ok();
    let record = world.host.json(&record_path("web.test"));
    assert_eq!(record["expiry"], world.fleet[0].expiry());
    assert_eq!(record["cert_cn"], "sim0000.test");
    // And once more, from ours to ours.
    world.pass_days(500);
    assert_eq!(world.maintain()["staged"], 1);
}

#[test]
fn an_answer_of_two_hundred_that_says_error_is_no_success() {
    let world = lasting(1, 100);
    // The agent's clock stands where it was: it takes the new certificate for one of the future.
    world.clock.pass_days(60);
    let old = world.fleet[0].expiry();
    let done = world.maintain();
    assert_eq!((&done["staged"], &done["renewed"]), (&json!(0), &json!(0)));
    let failed = &done["renewal_failed"][0];
    assert_eq!(failed["agent"], "sim0000.test");
    assert!(
        failed["error"]
            .as_str()
            .expect("a text")
            .contains("renewed cert does not verify against the agent CA"),
        "{failed}"
    );
    let record = world.record(0);
    assert_eq!(record["expiry"], old);
    assert!(record.get("staged_expiry").is_none());
    assert!(world.host.log_of("renew-complete").is_empty());
    assert!(
        world
            .host
            .log_of("renew")
            .iter()
            .any(|l| l.text.contains("ERROR="))
    );
    // In `ping` it is a warning; the ping itself is a success.
    world
        .host
        .ced(&["ping", "--check", "sim0000.test"])
        .ok()
        .err_has("Warning: the certificate of 'sim0000.test' is due and was not renewed: renew-complete failed");
    world.fleet.set_clock_offset(world.clock.seconds());
    assert_eq!(world.maintain()["staged"], 1);
}

#[test]
fn only_the_name_and_the_key_of_the_certificate_in_use_are_signed() {
    let world = lasting(1, 100);
    let agent = &world.fleet[0];
    world.pass_days(60);
    let refused = |why: &str| {
        let done = world.maintain();
        let error = done["renewal_failed"][0]["error"].clone();
        assert!(
            error.as_str().is_some_and(|e| e.contains(why)),
            "{why}: {done}"
        );
        assert!(!agent.staged());
        assert_eq!(agent.requests_for("/renew-complete").len(), 0);
    };
    agent.set_fqdn("ctl.test");
    refused(
        "the agent asks for 'ctl.test', its certificate is for 'sim0000.test' (if it was renamed: ced edit-agent NAME --cert-name CN",
    );
    agent.set_fqdn("sim0000.test");
    agent.request_with(&foreign_request("sim0000.test"));
    refused("the agent asks for a certificate for another key than the one it has shown");
    let half = foreign_request("sim0000.test").replace("A", "B");
    for bad in ["", "rubbish", half.as_str()] {
        agent.request_with(bad);
        let done = world.maintain();
        assert_eq!(
            done["renewal_failed"].as_array().map(Vec::len),
            Some(1),
            "{bad}"
        );
        assert!(!agent.staged());
    }
    let serial = |world: &Rotating| world.host.read("etc/ctrl-exec/ca.serial");
    let before = serial(&world);
    agent.set_fqdn("$(reboot)");
    let text = world.host.ced(&["maintain"]).ok().out();
    assert!(text.contains("not renewed: "), "{text}");
    assert_eq!(serial(&world), before, "nothing was signed");
    agent.set_fqdn("sim0000.test");
    assert_eq!(world.maintain()["staged"], 1);
}

#[test]
fn a_renewal_whose_last_answer_is_lost_is_found_at_the_next_contact() {
    let world = lasting(1, 100);
    let agent = &world.fleet[0];
    world.pass_days(60);
    let old = agent.expiry();
    agent.lose_reply_of("/renew-complete");
    let done = world.maintain();
    assert_eq!(done["renewal_failed"].as_array().map(Vec::len), Some(1));
    assert!(agent.staged());
    assert_eq!(world.record(0)["expiry"], old);
    // It says that it has one: no second is made.
    assert_eq!(world.maintain()["staged"], 0);
    assert_eq!(renewals(&world, 0), (1, 1));
    assert!(agent.adopt());
    world.ping_all();
    assert_eq!(world.record(0)["expiry"], agent.expiry());
    assert_ne!(world.record(0)["expiry"], old);

    // The answer before it: the renewal begins anew.
    world.pass_days(700);
    agent.lose_reply_of("/renew");
    assert_eq!(world.maintain()["staged"], 0);
    assert_eq!(world.maintain()["staged"], 1);
}

#[test]
fn a_ping_renews_what_is_due() {
    let world = lasting(2, 100);
    world.pass_days(60);
    let out: Value = world
        .host
        .ced(&["ping", "--json", "sim0001.test"])
        .ok()
        .json();
    assert_eq!(out["ok"], 1);
    assert!(world.fleet[1].staged() && !world.fleet[0].staged());
    assert!(world.record(1)["staged_expiry"].is_string());
}

#[test]
fn without_the_key_of_the_ca_a_ping_is_a_ping() {
    let world = lasting(1, 100);
    world.pass_days(60);
    std::fs::remove_file(world.host.path("etc/ctrl-exec/ca.key")).expect("removed");
    let run = world.host.ced(&["ping", "--check", "sim0000.test"]).ok();
    assert_eq!(run.err(), "");
    assert_eq!(renewals(&world, 0), (0, 0));
    assert_eq!(world.maintain()["renewal_failed"], json!([]));
}

#[test]
fn fifty_are_renewed_side_by_side_and_no_serial_is_given_twice() {
    let world = lasting(50, 20);
    world.pass_days(15);
    assert_eq!(world.maintain()["staged"], 50);
    let steps: Vec<String> = world
        .host
        .log_lines()
        .iter()
        .filter(|l| ["renew", "renew-complete"].contains(&l.action().as_str()))
        .map(|l| l.action())
        .collect();
    let first_end = steps.iter().position(|s| s == "renew-complete");
    assert!(
        first_end.is_some_and(|at| at > 1),
        "one after another: {steps:?}"
    );
    let mut serials = BTreeSet::new();
    for agent in world.fleet.agents() {
        serials.insert(agent.presented_serial());
        assert!(agent.adopt());
        serials.insert(agent.presented_serial());
    }
    serials.insert(world.serial());
    assert_eq!(serials.len(), 101);
    world.ping_all();
    let expiry = |at: usize| world.record(at)["expiry"].clone();
    assert!((0..50).all(|at| expiry(at) == world.fleet[at].expiry()));

    // `cert_days` is what new ones last.
    let conf = format!("{DISPATCHER_CONF}cert_days = 30\n");
    world
        .host
        .write("etc/ctrl-exec/ctrl-exec.conf", conf, 0o640);
    world.pass_days(500);
    assert_eq!(world.maintain()["staged"], 50);
}
