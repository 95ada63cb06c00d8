//! Passes over agents in memory, and revocations, with a power cut after every effect.

use super::*;
use crate::core::keyring::PairStore;
use crate::core::pki::keys;
use crate::core::revocation::{self, Entry};
use crate::core::testing::{Release, World, every_prefix, name};

fn confirmed_certificates(world: &World, context: &str) {
    for host in world.hosts().values().filter(|h| !h.leaving) {
        let record = world.registry().get(&host.name).unwrap().unwrap();
        let serial = host.certificate.serial.to_string();
        assert_eq!(record.cert_serial, Some(serial), "{context} {}", host.name);
        assert_eq!(record.expiry, host.certificate.expiry_text(), "{context}");
    }
}

#[test]
fn every_prefix_of_renewals_leaves_each_agent_with_one_certificate_that_we_know() {
    let world = World::new(&["ours", "original"]);
    world.change_host("original", |host| host.release = Release::Original);
    world.at(210);
    let before = world.host("ours").certificate;
    let effects = every_prefix(
        "renewal",
        &world,
        |world| world.pass(false),
        |world, _, context| {
            world.good_pass(context);
            assert_ne!(world.host("ours").certificate, before, "{context}");
            let original = world.host("original");
            assert!(original.staged.is_some(), "{context}");
            world.change_host("original", super::super::testing::Host::restart);
            let summary = world.good_pass(context);
            assert_eq!((summary.renewed, summary.staged), (0, 0), "{context}");
            confirmed_certificates(world, context);
            assert_eq!(world.record("original").staged_expiry, None, "{context}");
        },
    );
    assert!(effects > 8, "hardly any effects: {effects}");
}

#[test]
fn every_prefix_of_a_pass_with_renewals_and_a_rotation() {
    let world = World::new(&["a", "b"]);
    world.at(320);
    let old = world.main();
    every_prefix(
        "pass",
        &world,
        |world| world.pass(true),
        |world, _, context| {
            let summary = world.pass(true);
            assert_eq!(summary.failed, [], "{context}");
            assert_ne!(world.main(), old, "{context}");
            world.check_settled(context);
            confirmed_certificates(world, context);
        },
    );
}

fn entry_of(world: &World, agent: &str) -> Entry {
    let shown = world.host(agent).certificate;
    Entry {
        serial: shown.serial.to_string(),
        spki: Some(keys::spki_sha256(&shown.spki)),
        agent: Some(name(agent)),
        time: world.clock().iso_now(),
        reason: None,
    }
}

fn push(world: &World) -> bool {
    let Ok(revoked) = Revocations::load(&world.config().revoked_file) else {
        return false;
    };
    let maintenance = Maintenance {
        config: world.config(),
        clock: &world.clock(),
        network: &world.memory,
    };
    let Ok(fleet) = world.memory.open() else {
        return false;
    };
    let told = world.run(maintenance.push_revocations(&revoked, None, &fleet));
    told.is_ok()
}

/// As `ced revoke`.
fn revoke(world: &World, entry: &Entry) -> bool {
    let serial = Serial::parse_hex(&entry.serial).unwrap();
    revocation::append(&world.config().revoked_file, entry).is_ok()
        && PairStore::of(world.config()).remove(&serial).is_ok()
        && push(world)
}

/// As `ced unpair --revoke`.
fn unpair(world: &World, entry: &Entry) -> bool {
    let agent = entry.agent.clone().unwrap();
    revocation::append(&world.config().revoked_file, entry).is_ok()
        && world.registry().remove(&agent).is_ok()
        && push(world)
}

fn everybody_refuses(world: &World, entry: &Entry, context: &str) {
    let serial = Serial::parse_hex(&entry.serial).unwrap();
    for host in world.hosts().values().filter(|h| !h.leaving) {
        let refuses = host.revoked.contains(&serial);
        assert!(refuses, "{context}: {}", host.name);
        assert_eq!(world.record(host.name.as_str()).revocations, 1, "{context}");
    }
}

fn is_revoked(world: &World, entry: &Entry) -> bool {
    let all = Revocations::load(&world.config().revoked_file).unwrap();
    all.entries().contains(entry)
}

#[test]
fn every_prefix_of_a_revocation_shuts_out_for_ever_or_not_at_all() {
    let world = World::new(&["a", "late", "thief"]);
    world.at(1);
    world.good_pass("at first");
    world.change_host("thief", |host| host.leaving = true);
    world.down(&["late"]);
    let entry = entry_of(&world, "thief");
    for (what, command) in [
        ("revoke", revoke as fn(&World, &Entry) -> bool),
        ("unpair --revoke", unpair),
    ] {
        let effects = every_prefix(
            what,
            &world,
            |world| command(world, &entry),
            |world, done, context| {
                assert!(!done || is_revoked(world, &entry), "{context}");
                let registered = || world.registry().get(&name("thief")).unwrap().is_some();
                if !is_revoked(world, &entry) || (what != "revoke" && registered()) {
                    assert!(command(world, &entry), "{context}");
                }
                world.good_pass(context);
                world.check(context);
                world.down(&[]);
                world.good_pass(context);
                everybody_refuses(world, &entry, context);
                assert_eq!(registered(), what == "revoke", "{context}");
                // It is renewed by nobody, and told nothing.
                world.at(300);
                world.good_pass(context);
                let thief = world.host("thief");
                assert_eq!(
                    thief.certificate.serial.to_string(),
                    entry.serial,
                    "{context}"
                );
                assert!(thief.revoked.is_empty(), "{context}");
            },
        );
        assert!(effects > 3, "hardly any effects: {effects}");
    }
}

#[test]
fn every_prefix_of_revoking_an_older_serial_of_ours() {
    let world = World::new(&["a", "b"]);
    let old = world.main();
    world.with_rotation(|rotation| world.run(rotation.advance(true)).unwrap());
    assert_ne!(world.main(), old);
    let entry = Entry {
        serial: old.to_string(),
        spki: None,
        agent: None,
        time: world.clock().iso_now(),
        reason: None,
    };
    every_prefix(
        "revoke",
        &world,
        |world| revoke(world, &entry),
        |world, _, context| {
            if !is_revoked(world, &entry) {
                assert!(revoke(world, &entry), "{context}");
            }
            world.good_pass(context);
            everybody_refuses(world, &entry, context);
            world.at(40);
            world.good_pass(context);
            world.check_settled(context);
            assert_eq!(world.kept(), [], "{context}");
            assert!(world.rotation_state().retiring.is_empty(), "{context}");
            assert!(!world.host("a").serials.contains(&old), "{context}");
        },
    );
}
