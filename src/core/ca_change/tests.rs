//! Changes of the CA over agents in memory: the power goes out after every effect (files and messages) of every command.

use super::*;
use crate::core::pairing::approval::ApproveError;
use crate::core::pki::{Authority, Certificate, KeyType};
use crate::core::registry::SerialStatus;
use crate::core::testing::{Release, World, every_prefix, name};
use crate::core::types::AgentName;

fn ca(world: &World) -> Certificate {
    let signing = Authority::load(&world.config().ca_dir, world.clock()).unwrap();
    signing.certificate().clone()
}

fn state(world: &World) -> Option<State> {
    State::load(world.config()).unwrap()
}

fn phase(world: &World) -> Option<Phase> {
    state(world).map(|s| s.phase)
}

/// The commands, as the operator types them: a pass before and after.
fn start_without(world: &World, without: &[AgentName]) -> Result<(), ChangeError> {
    world.pass(false);
    world.with_change(|change| {
        change.start(KeyType::EcdsaP256, 3650, without)?;
        world.run(change.advance()).map(drop)
    })?;
    world.pass(false);
    Ok(())
}

fn start(world: &World) -> Result<(), ChangeError> {
    start_without(world, &[])
}

fn finish_without(world: &World, without: &[AgentName]) -> Result<Outcome, ChangeError> {
    let before = world.pass(false).ca;
    if before.over {
        return Ok(before);
    }
    let outcome = world.with_change(|change| world.run(change.finish(without)))?;
    if !outcome.over {
        world.pass(false);
    }
    Ok(outcome)
}

fn finish(world: &World) -> Result<Outcome, ChangeError> {
    finish_without(world, &[])
}

fn abort(world: &World) -> Result<Outcome, ChangeError> {
    let before = world.pass(false).ca;
    if before.over {
        return Ok(before);
    }
    let outcome = world.with_change(|change| world.run(change.abort(&[])))?;
    if !outcome.over {
        world.pass(false);
    }
    Ok(outcome)
}

/// Agents whose certificates are older than a second, and known to take a new CA.
fn fleet(agents: &[&str]) -> World {
    let world = World::new(agents);
    world.at(1);
    world.good_pass("at first");
    world
}

/// The new CA signs, everybody who is up has followed.
fn changed(agents: &[&str], down: &[&str]) -> World {
    let world = fleet(agents);
    world.down(down);
    start(&world).unwrap();
    assert_eq!(phase(&world), Some(Phase::Changed));
    world.check("changed");
    world
}

fn lagging(world: &World) -> Vec<AgentName> {
    let state = state(world).unwrap();
    let lagging = world.with_change(|change| change.lagging(&state)).unwrap();
    lagging.into_iter().map(|l| l.agent).collect()
}

#[test]
fn every_prefix_of_a_change_leaves_everybody_reachable_and_who_was_away_catches_up() {
    let world = fleet(&["a", "late"]);
    let old = ca(&world);
    world.down(&["late"]);
    let effects = every_prefix(
        "start",
        &world,
        |world| start(world).is_ok(),
        |world, _, context| {
            if state(world).is_none() {
                start(world).unwrap_or_else(|e| panic!("{context}: {e}"));
            }
            world.good_pass(context);
            assert_eq!(phase(world), Some(Phase::Changed), "{context}");
            assert_ne!(ca(world), old, "{context}");
            assert_eq!(lagging(world), [name("late")], "{context}");
            let error = finish(world).unwrap_err();
            assert!(
                matches!(error, ChangeError::NotFollowed(_)),
                "{context}: {error}"
            );
            world.check(context);
            // Long after the overlap.
            world.at(60);
            world.good_pass(context);
            world.check(context);
            world.down(&[]);
            world.good_pass(context);
            assert_eq!(lagging(world), [], "{context}");
            world.tick();
            assert!(finish(world).unwrap().over, "{context}");
            world.good_pass(context);
            world.check_one_ca(&ca(world), context);
            assert_eq!(world.kept(), [], "{context}");
        },
    );
    assert!(effects > 30, "hardly any effects: {effects}");
}

#[test]
fn every_prefix_of_a_late_agents_return_brings_it_along() {
    let world = changed(&["a", "late"], &["late"]);
    world.at(60);
    world.pass(false);
    world.down(&[]);
    let effects = every_prefix(
        "return",
        &world,
        |world| world.pass(false),
        |world, _, context| {
            world.good_pass(context);
            assert_eq!(lagging(world), [], "{context}");
            assert!(finish(world).unwrap().over, "{context}");
            world.check_one_ca(&ca(world), context);
        },
    );
    assert!(effects > 8, "hardly any effects: {effects}");
}

#[test]
fn every_prefix_of_the_end_can_be_gone_on_from() {
    let world = changed(&["a", "b"], &[]);
    let new = ca(&world);
    let effects = every_prefix(
        "finish",
        &world,
        |world| finish(world).is_ok(),
        |world, _, context| {
            assert_eq!(ca(world), new, "{context}");
            if state(world).is_some() {
                finish(world).unwrap_or_else(|e| panic!("{context}: {e}"));
            }
            world.check_one_ca(&new, context);
        },
    );
    assert!(effects > 10, "hardly any effects: {effects}");
}

#[test]
fn every_prefix_of_an_end_that_one_agent_sleeps_through() {
    let world = changed(&["a", "late"], &[]);
    let new = ca(&world);
    world.down(&["late"]);
    every_prefix(
        "finish without one",
        &world,
        |world| finish(world).is_ok(),
        |world, _, context| {
            assert!(state(world).is_some(), "{context}");
            let over = finish(world).unwrap().over;
            assert!(
                !over && phase(world) == Some(Phase::Withdrawing),
                "{context}"
            );
            world.check(context);
            world.down(&[]);
            world.good_pass(context);
            world.check_one_ca(&new, context);
        },
    );
    // Whoever never comes back can still be given up.
    finish(&world).unwrap();
    assert!(finish_without(&world, &[name("late")]).unwrap().over);
    world.change_host("late", |host| host.leaving = true);
    world.check_one_ca(&new, "given up");
}

/// What comes of `abort` after a start that was cut off: the old CA alone, or it is too late and the change goes through.
fn take_back(world: &World, old: &Certificate, context: &str) {
    match abort(world) {
        Ok(outcome) if outcome.over => {
            world.check_one_ca(old, context);
            assert_eq!(world.kept(), [], "{context}");
            let main = world.main();
            for host in world.hosts().values() {
                assert!(host.serials.iter().eq([&main]), "{context}: {}", host.name);
            }
        }
        Ok(_) => panic!("{context}: everybody is up, and it is not over"),
        Err(ChangeError::NotBegun) => world.check_settled(context),
        Err(ChangeError::TooLate) => {
            world.good_pass(context);
            assert!(finish(world).unwrap().over, "{context}");
            world.check_one_ca(&ca(world), context);
        }
        Err(error) => panic!("{context}: {error}"),
    }
}

#[test]
fn a_change_can_be_taken_back_wherever_it_was_cut_off() {
    let world = fleet(&["a", "b"]);
    let old = ca(&world);
    every_prefix(
        "start",
        &world,
        |world| start(world).is_ok(),
        |world, _, context| take_back(world, &old, context),
    );
}

/// Begun, known to `a` alone, and not in use here.
fn announced(known: impl Fn(&World) -> bool) -> World {
    let world = fleet(&["a", "b"]);
    let reached = std::cell::RefCell::new(None);
    every_prefix(
        "start",
        &world,
        |world| start(world).is_ok(),
        |world, _, _| {
            let announcing = phase(world) == Some(Phase::Announcing);
            if announcing && reached.borrow().is_none() && known(world) {
                *reached.borrow_mut() = Some(world.copy());
            }
        },
    );
    reached.into_inner().expect("there is such a moment")
}

fn knows_new_serial(world: &World, agent: &str) -> bool {
    let next = world.rotation_state().next_serial;
    let serials = world.host(agent).serials;
    next.is_some_and(|next| serials.iter().any(|s| s.to_string() == next))
}

#[test]
fn every_prefix_of_taking_a_change_back() {
    let moments: [(&str, World); 2] = [
        (
            "the new CA is known",
            announced(|w| w.host("a").trusted.cas.len() == 2),
        ),
        (
            "the new serial is known",
            announced(|w| knows_new_serial(w, "a")),
        ),
    ];
    for (what, world) in moments {
        let old = ca(&world);
        let effects = every_prefix(
            &format!("abort when {what}"),
            &world,
            |world| {
                world
                    .with_change(|change| world.run(change.abort(&[])))
                    .is_ok()
            },
            |world, _, context| take_back(world, &old, context),
        );
        assert!(effects > 5, "hardly any effects: {effects}");
    }
}

#[test]
fn whoever_is_away_while_a_change_is_taken_back_is_told_later() {
    let world = announced(|w| knows_new_serial(w, "a") && knows_new_serial(w, "b"));
    let old = ca(&world);
    world.down(&["b"]);
    every_prefix(
        "abort with one away",
        &world,
        |world| {
            world
                .with_change(|change| world.run(change.abort(&[])))
                .is_ok()
        },
        |world, _, context| {
            if phase(world) == Some(Phase::Announcing) {
                let outcome = world.with_change(|change| world.run(change.abort(&[])));
                assert!(!outcome.unwrap().over, "{context}");
            }
            assert_eq!(phase(world), Some(Phase::Aborting), "{context}");
            let given_up = world.copy();
            let without = [name("b")];
            let outcome = given_up.with_change(|change| world.run(change.abort(&without)));
            assert!(outcome.unwrap().over, "{context}");
            world.at(60);
            world.good_pass(context);
            world.check(context);
            world.down(&[]);
            for _ in 0..2 {
                world.good_pass(context);
            }
            world.check_one_ca(&old, context);
            assert_eq!(world.kept(), [], "{context}");
        },
    );
}

#[test]
fn a_start_takes_what_it_is_told_whatever_an_earlier_one_has_left() {
    let world = fleet(&["a"]);
    let left = State::next_dir(world.config());
    std::fs::create_dir_all(&left).unwrap();
    Authority::create(&left, KeyType::EcdsaP256, "left over", 1, world.clock()).unwrap();
    world.at(10);
    start(&world).unwrap();
    assert!(!ca(&world).expiry_text().is_empty());
    assert!(ca(&world).not_after > world.now() + 3000 * 86_400);
    assert!(finish(&world).unwrap().over);
    world.check_one_ca(&ca(&world), "over");
}

#[test]
fn two_changes_one_after_the_other() {
    let world = fleet(&["a", "b"]);
    for round in 0..2_i64 {
        world.at(10 + 100 * round);
        start(&world).unwrap();
        world.tick();
        assert!(finish(&world).unwrap().over, "{round}");
        world.check_one_ca(&ca(&world), "over");
    }
}

#[test]
fn an_agent_that_was_given_up_and_can_follow_after_all_is_taken_along() {
    let world = World::new(&["a", "old"]);
    world.change_host("old", |host| host.release = Release::Original);
    world.at(1);
    world.good_pass("at first");
    let error = start(&world).unwrap_err();
    assert!(matches!(error, ChangeError::Unable(_)), "{error}");
    start_without(&world, &[name("old")]).unwrap();
    assert_eq!(phase(&world), Some(Phase::Changed));
    world.check("it is still called with what it trusts");
    assert_eq!(world.record("old").serial_status, SerialStatus::Pending);
    world.change_host("old", |host| host.release = Release::Ours);
    world.good_pass("updated");
    world.good_pass("updated");
    assert!(finish(&world).unwrap().over);
    world.check_one_ca(&ca(&world), "over");
}

#[test]
fn whoever_is_paired_in_the_middle_of_a_change_follows_too() {
    let world = fleet(&["a"]);
    let refused = std::cell::Cell::new(0);
    every_prefix(
        "start",
        &world,
        |world| start(world).is_ok(),
        |world, _, context| {
            let begun = state(world).is_some();
            for agent in ["new", "a"] {
                if let Err(error) = world.approve(agent) {
                    assert!(matches!(error, ApproveError::OtherCa), "{context}: {error}");
                    refused.set(refused.get() + 1);
                    world.good_pass(context);
                    world
                        .approve(agent)
                        .unwrap_or_else(|e| panic!("{context}: {e}"));
                }
                world.check(context);
            }
            world.tick();
            if !begun {
                return;
            }
            for _ in 0..2 {
                world.good_pass(context);
            }
            assert_eq!(lagging(world), [], "{context}");
            assert!(finish(world).unwrap().over, "{context}");
            world.check_one_ca(&ca(world), context);
        },
    );
    assert!(refused.get() > 0, "there is a moment for it");
}
