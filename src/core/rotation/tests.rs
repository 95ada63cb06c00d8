//! Rotations over agents in memory: every prefix of the effects (files and messages), what is left, and that the next pass goes on.

use std::collections::BTreeSet;

use serde_json::json;

use super::*;
use crate::core::durable;
use crate::core::keyring::Keyring;
use crate::core::pki::{KeyType, PrivateKey};
use crate::core::registry::SerialStatus;
use crate::core::testing::{DAY, NOW, World, every_prefix, name};
use crate::core::types::Serial;

fn advance(world: &World, begin: bool) -> Result<Report, RotationError> {
    world.with_rotation(|rotation| world.run(rotation.advance(begin)))
}

fn trusted(world: &World, agent: &str) -> BTreeSet<Serial> {
    world.host(agent).serials
}

/// As the operator or the timer does after a power cut.
fn go_on(world: &World, result: &Result<Report, RotationError>, context: &str) {
    let began = result.is_ok() || world.rotation_state() != State::default();
    advance(world, false).unwrap_or_else(|e| panic!("{context}: {e}"));
    if !began {
        advance(world, true).unwrap_or_else(|e| panic!("{context}: {e}"));
    }
}

#[test]
fn a_rotation_reaches_everybody_and_the_old_pair_goes_when_nobody_needs_it() {
    let world = World::new(&["a", "b", "c"]);
    let old = world.main();
    let report = advance(&world, true).unwrap();
    let new = world.main();
    assert_eq!(report.promoted.as_ref(), Some(&new));
    assert_eq!(report.announced.len(), 3);
    world.check_settled("rotated");
    assert_eq!(
        trusted(&world, "a"),
        BTreeSet::from([old.clone(), new.clone()])
    );
    assert_eq!(world.rotation_state().previous_serial, Some(old.legacy()));

    world.at(29);
    assert!(
        advance(&world, false).unwrap().withdrawn.is_empty(),
        "the overlap is not over"
    );
    assert_eq!(world.kept(), std::slice::from_ref(&old));

    world.at(31);
    assert_eq!(advance(&world, false).unwrap().withdrawn.len(), 3);
    for agent in ["a", "b", "c"] {
        assert_eq!(trusted(&world, agent), BTreeSet::from([new.clone()]));
    }
    let state = world.rotation_state();
    assert!(state.retiring.is_empty() && state.previous_serial.is_none());
    assert!(state.previous_retired.is_some());
    assert!(world.kept().is_empty());
}

#[test]
fn nothing_is_put_in_place_before_somebody_has_heard_of_it() {
    let world = World::new(&["a", "b"]);
    let old = world.main();
    world.down(&["a", "b"]);
    let report = advance(&world, true).unwrap();
    assert!(report.began.is_some() && report.promoted.is_none());
    assert_eq!(world.main(), old);
    assert!(
        advance(&world, true).unwrap().began.is_none(),
        "one rotation at a time"
    );
    world.down(&["b"]);
    assert!(advance(&world, false).unwrap().promoted.is_some());
    assert_eq!(world.record("b").serial_status, SerialStatus::Pending);
    world.check("one of two");

    // At the latest after the overlap, even if nobody can be reached.
    let alone = World::new(&["a"]);
    alone.down(&["a"]);
    advance(&alone, true).unwrap();
    alone.at(31);
    assert!(advance(&alone, false).unwrap().promoted.is_some());
    alone.check("after the overlap");
    world.at(0);
}

#[test]
fn an_agent_that_was_away_through_three_rotations_catches_up() {
    let world = World::new(&["a", "late"]);
    let first = world.main();
    world.down(&["late"]);
    for round in 0..3 {
        world.at(round * 5);
        assert!(advance(&world, true).unwrap().promoted.is_some());
        world.check("away");
    }
    world.at(20);
    world.down(&[]);
    advance(&world, false).unwrap();
    world.check_settled("back");
    assert!(
        trusted(&world, "late").contains(&first),
        "nothing is withdrawn before its time"
    );
    world.at(60);
    advance(&world, false).unwrap();
    assert_eq!(trusted(&world, "late"), BTreeSet::from([world.main()]));
    assert_eq!(trusted(&world, "a"), BTreeSet::from([world.main()]));
    assert!(world.kept().is_empty());
}

#[test]
fn whoever_comes_back_after_the_overlap_is_stale_and_reached_all_the_same() {
    let world = World::new(&["a", "late"]);
    let first = world.main();
    world.down(&["late"]);
    advance(&world, true).unwrap();
    world.at(40);
    let report = advance(&world, false).unwrap();
    assert_eq!(report.stale, [name("late")]);
    assert_eq!(world.record("late").serial_status, SerialStatus::Stale);
    assert_eq!(trusted(&world, "a"), BTreeSet::from([world.main()]));
    world.check("the pair is kept for the one who is away");
    world.down(&[]);
    advance(&world, false).unwrap();
    world.check_settled("back");
    assert!(
        !trusted(&world, "late").contains(&first),
        "and withdrawn at once"
    );

    // When the old certificate itself has run out, nothing can be done but to pair again.
    let world = World::new(&["a", "late"]);
    world.down(&["late"]);
    advance(&world, true).unwrap();
    world.at(401);
    advance(&world, false).unwrap();
    assert!(world.kept().is_empty());
    assert!(world.rotation_state().retiring.is_empty());
}

#[test]
fn every_prefix_of_a_rotation_leaves_every_agent_reachable() {
    let world = World::new(&["a", "b", "late"]);
    world.down(&["late"]);
    let effects = every_prefix(
        "rotation",
        &world,
        |world| advance(world, true),
        |world, result, context| {
            go_on(world, &result, context);
            assert!(world.rotation_state().next_serial.is_none(), "{context}");
            for agent in ["a", "b"] {
                let record = world.record(agent);
                assert_eq!(record.dispatcher_serial, world.main().legacy(), "{context}");
            }
            let late = world.record("late").serial_status;
            assert_eq!(late, SerialStatus::Pending, "{context}");
        },
    );
    assert!(effects > 5, "hardly any effects: {effects}");
}

#[test]
fn every_prefix_of_withdrawal_leaves_every_agent_reachable() {
    let world = World::new(&["a", "b", "late"]);
    world.down(&["late"]);
    advance(&world, true).unwrap();
    world.at(31);
    world.down(&[]);
    let effects = every_prefix(
        "withdrawal",
        &world,
        |world| advance(world, false),
        |world, result, context| {
            go_on(world, &result, context);
            world.check_settled(context);
            for agent in ["a", "b", "late"] {
                let main = BTreeSet::from([world.main()]);
                assert_eq!(trusted(world, agent), main, "{context}");
            }
            let kept = world.kept();
            assert!(kept.is_empty(), "{context}: {kept:?}");
        },
    );
    assert!(effects > 5, "hardly any effects: {effects}");
}

#[test]
fn two_halves_of_a_pair_are_put_right() {
    let world = World::new(&["a"]);
    advance(&world, true).unwrap();
    // As if somebody had restored one file from a backup; the pair of the certificate is not kept any more.
    let key = PrivateKey::generate(KeyType::EcdsaP256).unwrap();
    let pem = key.to_pkcs8_pem();
    durable::replace(&world.config().key, pem.expose().as_bytes(), 0o600).unwrap();
    let keyring = Keyring::load(world.config()).unwrap();
    assert_eq!(
        keyring.unusable.len(),
        1,
        "told, and the older pair is still used"
    );
    let error = advance(&world, true).unwrap_err().to_string();
    assert!(
        error.contains("dispatcher.key") && error.contains("does not belong"),
        "{error}"
    );
}

#[test]
fn a_certificate_that_lasts_shorter_than_its_threshold_is_not_rotated_for_ever() {
    let world = World::new(&[]);
    let mut config = world.config().clone();
    config.rotation.renewal_days = 36_500;
    let (left, threshold) = world
        .with_rotation(|rotation| {
            Rotation {
                config: &config,
                ..rotation
            }
            .days_left()
        })
        .unwrap();
    assert_eq!((left, threshold), (400, 200));
}

#[test]
fn what_a_rotation_of_the_original_has_left_is_continued() {
    let world = World::new(&["a", "b"]);
    let main = world.main();
    std::fs::create_dir_all(world.config().rotation.file.parent().unwrap()).unwrap();
    let text = json!({
        "current_serial": main.legacy(), "previous_serial": "2", "rotated_at": "2027-01-10T00:00:00Z",
        "overlap_expires": crate::core::clock::iso(NOW + DAY), "overlap_days": "30",
    });
    std::fs::write(&world.config().rotation.file, text.to_string()).unwrap();
    let two = Serial::parse_hex("2").unwrap();
    for host in world.hosts().values_mut() {
        host.serials.insert(two.clone());
    }
    advance(&world, false).unwrap();
    assert!(trusted(&world, "a").contains(&two));
    world.at(2);
    advance(&world, false).unwrap();
    assert_eq!(trusted(&world, "a"), BTreeSet::from([main.clone()]));
    assert!(world.rotation_state().previous_retired.is_some());
}
