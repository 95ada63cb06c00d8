//! The power goes out after every effect of an approval.

use std::time::Duration;

use super::approval::Approved;
use super::ids::Outcome;
use crate::core::testing::{Asked, World, every_prefix};

/// A fleet with one request of `agent`, which nobody has decided on.
fn office(agent: &str) -> (World, Asked) {
    let world = World::new(&["a"]);
    world.at(1);
    world.good_pass("at first");
    // From here on its old pairing, if it has one, is what it is about to leave.
    world.host_to_be(agent);
    let asked = world.ask(agent);
    (world, asked)
}

#[test]
fn every_prefix_of_an_approval_pairs_the_agent_in_the_end() {
    for (agent, replace) in [("new", false), ("a", true)] {
        let (world, asked) = office(agent);
        let effects = every_prefix(
            &format!("approve {agent}"),
            &world,
            |world| {
                let approved = world.decide(&asked, replace).ok()?;
                world.collect(&asked).ok()?;
                world.desk().settle(&approved, Duration::ZERO)
            },
            |world, done, context| {
                let queue = world.desk().queue();
                if queue.verdict(&asked.id).unwrap().is_none()
                    && done.is_none()
                    && world.host(agent).leaving
                {
                    world
                        .decide(&asked, replace)
                        .unwrap_or_else(|e| panic!("{context}: {e}"));
                }
                if queue.is_open(&asked.id) {
                    world.collect(&asked).unwrap();
                }
                world.good_pass(context);
                let host = world.host(agent);
                assert!(!host.leaving, "{context}");
                let serial = host.certificate.serial.to_string();
                assert_eq!(world.record(agent).cert_serial, Some(serial), "{context}");
                world.check_settled(context);
            },
        );
        assert!(effects > 6, "hardly any effects: {effects}");
    }
}

#[test]
fn every_prefix_of_an_approval_that_does_not_reach_the_agent_is_taken_back() {
    for (agent, replace) in [("new", false), ("a", true)] {
        let (world, asked) = office(agent);
        let before = world.registry().list().unwrap().agents;
        let all = |world: &World| world.registry().list().unwrap().agents;
        every_prefix(
            &format!("approve {agent}, who is gone"),
            &world,
            |world| -> Option<Approved> {
                let approved = world.decide(&asked, replace).ok()?;
                let queue = world.desk().queue();
                if queue.conclude(&asked.id, Outcome::Undelivered).is_ok() {
                    world.desk().settle(&approved, Duration::ZERO);
                }
                Some(approved)
            },
            |world, approved, context| {
                // The command waits for the end as long as its host has power.
                let Some(approved) = approved else {
                    return;
                };
                let queue = world.desk().queue();
                queue.conclude(&asked.id, Outcome::Undelivered).unwrap();
                let outcome = world.desk().settle(&approved, Duration::ZERO);
                assert_eq!(outcome, Some(Outcome::Undelivered), "{context}");
                assert_eq!(all(world), before, "{context}");
            },
        );
    }
}
