//! Rotations over agents in memory: every prefix of the effects (files and messages), what is left, and that the next pass goes on.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::{Arc, Mutex};

use serde_json::{Map, Value, json};

use super::*;
use crate::core::client::error::ExchangeError;
use crate::core::client::exchange::Answer;
use crate::core::client::fleet::{Fleet, Network, Reply};
use crate::core::client::open::ClientError;
use crate::core::clock::Clock;
use crate::core::config::DispatcherConfig;
use crate::core::durable::{self, crash};
use crate::core::keyring::{self, Keyring, PairStore};
use crate::core::paths::{Paths, Platform};
use crate::core::pki::{Authority, Certificate, KeyType, PrivateKey};
use crate::core::registry::{AgentRecord, Registry, SerialStatus, Target};
use crate::core::types::{AgentName, Serial};

const NOW: i64 = 1_800_000_000;
const DAY: i64 = 86_400;

/// Agents, each with the serials that it trusts.
type Maps = BTreeMap<AgentName, BTreeSet<Serial>>;

#[derive(Clone)]
struct Memory {
    config: DispatcherConfig,
    clock: Clock,
    maps: Arc<Mutex<Maps>>,
    down: Arc<Mutex<BTreeSet<AgentName>>>,
}

/// The agents, seen with the identities that were held when this was opened.
#[derive(Clone)]
struct Opened {
    memory: Memory,
    held: Vec<Certificate>,
}

impl Network for Memory {
    type Fleet = Opened;

    fn open(&self) -> Result<Opened, ClientError> {
        let keyring = Keyring::load(&self.config)?;
        let held = keyring.identities().iter().map(|i| i.certificate().clone());
        Ok(Opened {
            memory: self.clone(),
            held: held.collect(),
        })
    }
}

impl Opened {
    fn deliver(&self, by: &Certificate, target: &Target, body: &Value) -> Reply {
        let refused = || ExchangeError::Forbidden("serial mismatch".to_owned());
        let lost = |_| ExchangeError::Lost("cut".to_owned());
        if self.memory.down.lock().unwrap().contains(&target.name) {
            return Err(ExchangeError::Unreachable {
                host: target.address.clone(),
            });
        }
        let mut maps = self.memory.maps.lock().unwrap();
        let map = maps.get_mut(&target.name).unwrap();
        if !map.contains(&by.serial) || self.memory.clock.now() > by.not_after {
            return Err(refused());
        }
        crash::effect().map_err(lost)?;
        let serial = Serial::parse_hex(body["serial"].as_str().unwrap()).unwrap();
        match body["action"].as_str().unwrap() {
            "add" => map.insert(serial),
            "remove" => {
                assert_ne!(serial, by.serial, "asked to drop the serial that asks");
                map.remove(&serial)
            }
            other => panic!("{other}"),
        };
        crash::effect().map_err(lost)?;
        Ok(Answer {
            status: 200,
            body: Map::from_iter([("status".to_owned(), json!("ok"))]),
            peer: Arc::new(by.clone()),
            presented: by.serial.clone(),
        })
    }
}

impl Fleet for Opened {
    fn post(
        &self,
        target: Target,
        _: &'static str,
        body: Value,
    ) -> impl Future<Output = Reply> + Send + 'static {
        let this = self.clone();
        async move {
            let serials: Vec<&Serial> = this.held.iter().map(|c| &c.serial).collect();
            let mut last = Err(ExchangeError::Forbidden("serial mismatch".to_owned()));
            for at in keyring::order(&serials, &target.record) {
                last = this.deliver(&this.held[at], &target, &body);
                if !matches!(&last, Err(e) if e.is_about_our_identity()) {
                    break;
                }
            }
            last
        }
    }

    fn post_as(
        &self,
        serial: Serial,
        target: Target,
        _: &'static str,
        body: Value,
    ) -> impl Future<Output = Option<Reply>> + Send + 'static {
        let this = self.clone();
        async move {
            let by = this.held.iter().find(|c| c.serial == serial)?;
            Some(this.deliver(by, &target, &body))
        }
    }
}

/// A dispatcher host with agents.
struct World {
    _dir: tempfile::TempDir,
    memory: Memory,
}

fn name(text: &str) -> AgentName {
    AgentName::new(text).unwrap()
}

impl World {
    fn new(agents: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::new(dir.path(), Platform::Standard);
        let mut config = DispatcherConfig::defaults(&paths, &paths.dispatcher_toml(), "ctl");
        config.cert_days = 400;
        let clock = Clock::fixed(NOW);
        std::fs::create_dir_all(&config.ca_dir).unwrap();
        let ca = Authority::create(
            &config.ca_dir,
            KeyType::EcdsaP256,
            "test CA",
            4000,
            clock.clone(),
        );
        let key = PrivateKey::generate(KeyType::EcdsaP256).unwrap();
        let certificate = ca
            .unwrap()
            .issue_dispatcher(key.public(), &config.dispatcher_id, 400)
            .unwrap();
        durable::replace(&config.key, key.to_pkcs8_pem().expose().as_bytes(), 0o600).unwrap();
        durable::replace(&config.cert, certificate.to_pem().as_bytes(), 0o644).unwrap();
        let registry = Registry::new(config.registry_dir.clone());
        let mut maps = Maps::new();
        for agent in agents {
            let mut record = AgentRecord::new(name(agent));
            record.dispatcher_serial = certificate.serial.legacy();
            record.serial_status = SerialStatus::Current;
            registry.register(record, false).unwrap();
            maps.insert(name(agent), BTreeSet::from([certificate.serial.clone()]));
        }
        Self {
            _dir: dir,
            memory: Memory {
                config,
                clock,
                maps: Arc::new(Mutex::new(maps)),
                down: Arc::default(),
            },
        }
    }

    fn at(&mut self, days: i64) {
        self.memory.clock = Clock::fixed(NOW + days * DAY);
    }

    fn down(&self, agents: &[&str]) {
        *self.memory.down.lock().unwrap() = agents.iter().map(|a| name(a)).collect();
    }

    fn advance(&self, begin: bool) -> Result<Report, RotationError> {
        let rotation = Rotation {
            config: &self.memory.config,
            clock: &self.memory.clock,
            network: &self.memory,
            issuer: Issuer::Present,
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        runtime.block_on(rotation.advance(begin))
    }

    fn main(&self) -> Serial {
        keyring::configured_certificate(&self.memory.config)
            .unwrap()
            .serial
    }

    fn state(&self) -> State {
        State::load(&self.memory.config.rotation.file)
            .unwrap()
            .unwrap_or_default()
    }

    fn trusted(&self, agent: &str) -> BTreeSet<Serial> {
        self.memory.maps.lock().unwrap()[&name(agent)].clone()
    }

    fn record(&self, agent: &str) -> AgentRecord {
        let registry = Registry::new(self.memory.config.registry_dir.clone());
        registry.get(&name(agent)).unwrap().unwrap()
    }

    /// What must hold whenever the power goes out: there is an identity with its key, and every agent trusts one that we hold.
    fn check(&self, context: &str) {
        let keyring = Keyring::load(&self.memory.config)
            .unwrap_or_else(|e| panic!("{context}: no identity: {e}"));
        assert!(
            keyring.unusable.is_empty(),
            "{context}: {:?}",
            keyring.unusable
        );
        let held: BTreeSet<Serial> = keyring
            .identities()
            .iter()
            .map(|i| i.certificate().serial.clone())
            .collect();
        assert_eq!(
            held.len(),
            keyring.identities().len(),
            "{context}: a serial twice"
        );
        for (agent, map) in self.memory.maps.lock().unwrap().iter() {
            assert!(
                map.iter().any(|s| held.contains(s)),
                "{context}: '{agent}' trusts none of the pairs that are left"
            );
        }
        let registered = Registry::new(self.memory.config.registry_dir.clone())
            .list()
            .unwrap();
        assert!(registered.unreadable.is_empty(), "{context}");
        let names: Vec<AgentName> = registered.agents.into_iter().map(|a| a.name).collect();
        let maps = self.memory.maps.lock().unwrap();
        assert!(names.iter().eq(maps.keys()), "{context}: {names:?}");
    }

    /// Everybody has followed and nothing is left over.
    fn check_settled(&self, context: &str) {
        let main = self.main();
        assert!(self.state().next_serial.is_none(), "{context}");
        for agent in self.memory.maps.lock().unwrap().keys() {
            let record = self.record(agent.as_str());
            assert_eq!(
                record.serial_status,
                SerialStatus::Current,
                "{context} {agent}"
            );
            assert_eq!(record.dispatcher_serial, main.legacy(), "{context} {agent}");
        }
    }
}

/// Lets the power go out after every effect of `work`, on a fresh world each time; then the next pass must bring about `after`.
fn every_prefix(
    what: &str,
    world: impl Fn() -> World,
    work: impl Fn(&World) -> Result<Report, RotationError>,
    after: impl Fn(&World, &str),
) {
    for effects in 0.. {
        let context = format!("{what}, power out after {effects} effects");
        let world = world();
        let (result, used_up) = crash::after(effects, || work(&world));
        world.check(&context);
        // As the operator or the timer does next.
        let began = result.is_ok() || world.state() != State::default();
        world
            .advance(false)
            .unwrap_or_else(|e| panic!("{context}: {e}"));
        if !began {
            world
                .advance(true)
                .unwrap_or_else(|e| panic!("{context}: {e}"));
        }
        world.check(&context);
        after(&world, &context);
        if !used_up {
            assert!(effects > 5, "{what} has hardly any effects: {effects}");
            return;
        }
        assert!(effects < 300, "{what} does not end");
    }
}

#[test]
fn a_rotation_reaches_everybody_and_the_old_pair_goes_when_nobody_needs_it() {
    let mut world = World::new(&["a", "b", "c"]);
    let old = world.main();
    let report = world.advance(true).unwrap();
    let new = world.main();
    assert_eq!(report.promoted.as_ref(), Some(&new));
    assert_eq!(report.announced.len(), 3);
    world.check_settled("rotated");
    assert_eq!(
        world.trusted("a"),
        BTreeSet::from([old.clone(), new.clone()])
    );
    assert_eq!(world.state().previous_serial, Some(old.legacy()));

    world.at(29);
    assert!(
        world.advance(false).unwrap().withdrawn.is_empty(),
        "the overlap is not over"
    );
    assert_eq!(
        PairStore::of(&world.memory.config).list().unwrap(),
        std::slice::from_ref(&old)
    );

    world.at(31);
    assert_eq!(world.advance(false).unwrap().withdrawn.len(), 3);
    for agent in ["a", "b", "c"] {
        assert_eq!(world.trusted(agent), BTreeSet::from([new.clone()]));
    }
    let state = world.state();
    assert!(state.retiring.is_empty() && state.previous_serial.is_none());
    assert!(state.previous_retired.is_some());
    assert!(
        PairStore::of(&world.memory.config)
            .list()
            .unwrap()
            .is_empty()
    );
}

#[test]
fn nothing_is_put_in_place_before_somebody_has_heard_of_it() {
    let mut world = World::new(&["a", "b"]);
    let old = world.main();
    world.down(&["a", "b"]);
    let report = world.advance(true).unwrap();
    assert!(report.began.is_some() && report.promoted.is_none());
    assert_eq!(world.main(), old);
    assert!(
        world.advance(true).unwrap().began.is_none(),
        "one rotation at a time"
    );
    world.down(&["b"]);
    assert!(world.advance(false).unwrap().promoted.is_some());
    assert_eq!(world.record("b").serial_status, SerialStatus::Pending);
    world.check("one of two");

    // At the latest after the overlap, even if nobody can be reached.
    let mut alone = World::new(&["a"]);
    alone.down(&["a"]);
    alone.advance(true).unwrap();
    alone.at(31);
    assert!(alone.advance(false).unwrap().promoted.is_some());
    alone.check("after the overlap");
    world.at(0);
}

#[test]
fn an_agent_that_was_away_through_three_rotations_catches_up() {
    let mut world = World::new(&["a", "late"]);
    let first = world.main();
    world.down(&["late"]);
    for round in 0..3 {
        world.at(round * 5);
        assert!(world.advance(true).unwrap().promoted.is_some());
        world.check("away");
    }
    world.at(20);
    world.down(&[]);
    world.advance(false).unwrap();
    world.check_settled("back");
    assert!(
        world.trusted("late").contains(&first),
        "nothing is withdrawn before its time"
    );
    world.at(60);
    world.advance(false).unwrap();
    assert_eq!(world.trusted("late"), BTreeSet::from([world.main()]));
    assert_eq!(world.trusted("a"), BTreeSet::from([world.main()]));
    assert!(
        PairStore::of(&world.memory.config)
            .list()
            .unwrap()
            .is_empty()
    );
}

#[test]
fn whoever_comes_back_after_the_overlap_is_stale_and_reached_all_the_same() {
    let mut world = World::new(&["a", "late"]);
    let first = world.main();
    world.down(&["late"]);
    world.advance(true).unwrap();
    world.at(40);
    let report = world.advance(false).unwrap();
    assert_eq!(report.stale, [name("late")]);
    assert_eq!(world.record("late").serial_status, SerialStatus::Stale);
    assert_eq!(world.trusted("a"), BTreeSet::from([world.main()]));
    world.check("the pair is kept for the one who is away");
    world.down(&[]);
    world.advance(false).unwrap();
    world.check_settled("back");
    assert!(
        !world.trusted("late").contains(&first),
        "and withdrawn at once"
    );

    // When the old certificate itself has run out, nothing can be done but to pair again.
    let mut world = World::new(&["a", "late"]);
    world.down(&["late"]);
    world.advance(true).unwrap();
    world.at(401);
    world.advance(false).unwrap();
    assert!(
        PairStore::of(&world.memory.config)
            .list()
            .unwrap()
            .is_empty()
    );
    assert!(world.state().retiring.is_empty());
}

#[test]
fn every_prefix_of_a_rotation_leaves_every_agent_reachable() {
    let make = || {
        let world = World::new(&["a", "b", "late"]);
        world.down(&["late"]);
        world
    };
    every_prefix(
        "rotation",
        make,
        |world| world.advance(true),
        |world, context| {
            assert!(world.state().next_serial.is_none(), "{context}");
            for agent in ["a", "b"] {
                let record = world.record(agent);
                assert_eq!(record.dispatcher_serial, world.main().legacy(), "{context}");
            }
            assert_eq!(
                world.record("late").serial_status,
                SerialStatus::Pending,
                "{context}"
            );
        },
    );
}

#[test]
fn every_prefix_of_withdrawal_leaves_every_agent_reachable() {
    let make = || {
        let mut world = World::new(&["a", "b", "late"]);
        world.down(&["late"]);
        world.advance(true).unwrap();
        world.at(31);
        world.down(&[]);
        world
    };
    every_prefix(
        "withdrawal",
        make,
        |world| world.advance(false),
        |world, context| {
            world.check_settled(context);
            for agent in ["a", "b", "late"] {
                assert_eq!(
                    world.trusted(agent),
                    BTreeSet::from([world.main()]),
                    "{context}"
                );
            }
            let kept = PairStore::of(&world.memory.config).list().unwrap();
            assert!(kept.is_empty(), "{context}: {kept:?}");
        },
    );
}

#[test]
fn two_halves_of_a_pair_are_put_right() {
    let world = World::new(&["a"]);
    world.advance(true).unwrap();
    // As if somebody had restored one file from a backup; the pair of the certificate is not kept any more.
    let key = PrivateKey::generate(KeyType::EcdsaP256).unwrap();
    let pem = key.to_pkcs8_pem();
    durable::replace(&world.memory.config.key, pem.expose().as_bytes(), 0o600).unwrap();
    let keyring = Keyring::load(&world.memory.config).unwrap();
    assert_eq!(
        keyring.unusable.len(),
        1,
        "told, and the older pair is still used"
    );
    let error = world.advance(true).unwrap_err().to_string();
    assert!(
        error.contains("dispatcher.key") && error.contains("does not belong"),
        "{error}"
    );
}

#[test]
fn a_certificate_that_lasts_shorter_than_its_threshold_is_not_rotated_for_ever() {
    let mut world = World::new(&[]);
    world.memory.config.rotation.renewal_days = 36_500;
    let rotation = Rotation {
        config: &world.memory.config,
        clock: &world.memory.clock,
        network: &world.memory,
        issuer: Issuer::Present,
    };
    let (left, threshold) = rotation.days_left().unwrap();
    assert_eq!((left, threshold), (400, 200));
}

#[test]
fn what_a_rotation_of_the_original_has_left_is_continued() {
    let mut world = World::new(&["a", "b"]);
    let main = world.main();
    std::fs::create_dir_all(world.memory.config.rotation.file.parent().unwrap()).unwrap();
    let text = json!({
        "current_serial": main.legacy(), "previous_serial": "2", "rotated_at": "2027-01-10T00:00:00Z",
        "overlap_expires": crate::core::clock::iso(NOW + DAY), "overlap_days": "30",
    });
    std::fs::write(&world.memory.config.rotation.file, text.to_string()).unwrap();
    let two = Serial::parse_hex("2").unwrap();
    for map in world.memory.maps.lock().unwrap().values_mut() {
        map.insert(two.clone());
    }
    world.advance(false).unwrap();
    assert!(world.trusted("a").contains(&two));
    world.at(2);
    world.advance(false).unwrap();
    assert_eq!(world.trusted("a"), BTreeSet::from([main.clone()]));
    assert!(world.state().previous_retired.is_some());
}
