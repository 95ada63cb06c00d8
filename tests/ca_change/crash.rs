//! Power that goes, and agents that may write little.

use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;

use crate::common::fleet::Paired;
use crate::common::{Agent, Host, PATIENCE};
use crate::{assert_over, certificates, passes, status, stolen_ca};

/// Kills a command after part of the time that it takes.
fn cut_off(ced: &Host, words: &[&str], after: Duration) {
    let mut run = ced.start("ced", words);
    std::thread::sleep(after);
    run.signal(Signal::KILL);
    run.wait(PATIENCE);
}

#[test]
fn whenever_the_power_goes_the_change_ends_as_it_should() {
    let fleet = Paired::new(&["a.test"]);
    let (ced, host) = (&fleet.dispatcher, &fleet.agents[0]);
    let agent = Agent::start(host);
    ced.ced(&["ping", "--check", "a.test"]).ok();
    let took = ced.ced(&["maintain"]).ok().took;
    let begun = || status(ced)["phase"] != Value::Null;
    for cycle in 0..3_u32 {
        let old = stolen_ca(ced);
        // Early, in the middle, late: other moments in every cycle. Start and finish are a pass each before and after their own work.
        let part = |k: u32| took * (k * 3 + cycle + 1) / 3;
        for k in 0..3 {
            cut_off(ced, &["rotate-ca", "start"], part(k));
        }
        if !begun() {
            ced.ced(&["rotate-ca", "start"]).ok();
        }
        for k in 0..2 {
            cut_off(ced, &["maintain"], part(k) / 2);
            // It stays a fleet that can be worked with all the time.
            ced.ced(&["run", "a.test", "true"]).ok();
        }
        passes(ced);
        for k in 0..2 {
            cut_off(ced, &["rotate-ca", "finish"], part(k));
            ced.ced(&["ping", "--check", "a.test"]).ok();
        }
        if begun() {
            ced.ced(&["rotate-ca", "finish"]).ok();
        }
        assert_over(ced, &old, &[(&agent, host)]);
    }
}

#[test]
fn agents_that_may_not_write_below_etc_follow_and_root_makes_it_permanent() {
    let mut fleet = Paired::new(&["a.test"]);
    let old = stolen_ca(&fleet.dispatcher);
    fleet.agents[0].confine_agent();
    let (ced, host) = (&fleet.dispatcher, &fleet.agents[0]);
    let before = host.read("etc/ctrl-exec-agent/ca.crt");
    let agent = Agent::start(host);
    ced.ced(&["rotate-ca", "start"])
        .ok()
        .out_has("Phase:    changed");
    drop(agent);
    let agent = Agent::start(host);
    ced.ced(&["run", "a.test", "hello"]).ok();
    passes(ced);
    ced.ced(&["rotate-ca", "finish"])
        .ok()
        .out_has("The change is over.");
    drop(agent);
    let agent = Agent::start(host);
    ced.ced(&["run", "a.test", "hello"]).ok();
    assert_eq!(host.read("etc/ctrl-exec-agent/ca.crt"), before);
    drop(agent);

    fleet.agents[0].unconfine_agent();
    fleet.agents[0].cea(&["promote-cert"]).ok();
    let pem = fleet.agents[0].read("etc/ctrl-exec-agent/ca.crt");
    assert_eq!(certificates(&pem), 1);
    assert_ne!(pem, before);
    fleet.agents[0].confine_agent();
    let (ced, host) = (&fleet.dispatcher, &fleet.agents[0]);
    let agent = Agent::start(host);
    assert_over(ced, &old, &[(&agent, host)]);
    drop(agent);
    fleet.agents[0].unconfine_agent();
}
