//! Whatever happens in whatever order, with power cuts in between: everybody stays reachable, and in the end everything comes to rest.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::{World, name};
use crate::core::ca_change::{Phase, State};
use crate::core::durable::crash;
use crate::core::maintenance::{Contact, Maintenance, Seen, ping_all};
use crate::core::pki::{Authority, KeyType};
use crate::core::registry::Target;

#[derive(Clone, Debug)]
enum Event {
    Pass {
        rotate: bool,
    },
    Rotate,
    Ping {
        agent: usize,
    },
    Start,
    Finish,
    Abort,
    Days(i64),
    /// Bits: who is up.
    Up(u8),
    Pair {
        agent: usize,
    },
}

const AGENTS: [&str; 3] = ["a", "b", "c"];

impl World {
    fn ping(&self, agent: &str) {
        let Ok(Some(record)) = self.registry().get(&name(agent)) else {
            return;
        };
        let targets = vec![Target::of(record)];
        let Ok(contacts) = self.run(ping_all(&self.memory, self.config(), targets)) else {
            return;
        };
        let seen: Vec<Seen> = contacts.into_iter().filter_map(Contact::seen).collect();
        let maintenance = Maintenance {
            config: self.config(),
            clock: &self.clock(),
            network: &self.memory,
        };
        self.run(maintenance.after_ping(&seen));
    }

    fn happen(&self, event: &Event) {
        match event {
            Event::Pass { rotate } => drop(self.pass(*rotate)),
            Event::Rotate => drop(self.with_rotation(|r| self.run(r.advance(true)))),
            Event::Ping { agent } => self.ping(AGENTS[*agent]),
            Event::Start => {
                let started = self.with_change(|c| c.start(KeyType::EcdsaP256, 3650, &[]));
                if started.is_ok() {
                    drop(self.with_change(|c| self.run(c.advance())));
                }
            }
            Event::Finish => drop(self.with_change(|c| self.run(c.finish(&[])))),
            Event::Abort => drop(self.with_change(|c| self.run(c.abort(&[])))),
            Event::Days(days) => drop(
                self.memory
                    .now
                    .fetch_add(days * super::DAY, std::sync::atomic::Ordering::SeqCst),
            ),
            Event::Up(bits) => {
                for (at, host) in self.hosts().values_mut().enumerate() {
                    host.up = bits & (1 << at) != 0;
                }
            }
            Event::Pair { .. } => {}
        }
    }

    /// Everybody is there again.
    fn come_to_rest(&self) {
        self.happen(&Event::Up(0xff));
        self.end_change();
        // What a start has left that was cut off before it began goes with the next one.
        if State::next_dir(self.config()).exists() {
            self.tick();
            self.happen(&Event::Start);
            self.end_change();
        }
        let signing = Authority::load(&self.config().ca_dir, self.clock()).unwrap();
        let ca = signing.certificate().clone();
        self.good_pass("at rest");
        self.check_one_ca(&ca, "at rest");
        self.happen(&Event::Days(40));
        self.good_pass("after the overlap");
        self.check_one_ca(&ca, "after the overlap");
        assert_eq!(self.kept(), []);
        let main = BTreeSet::from([self.main()]);
        for host in self.hosts().values() {
            assert_eq!(host.serials, main, "{}", host.name);
        }
    }

    fn end_change(&self) {
        for _ in 0..6 {
            self.tick();
            self.good_pass("coming to rest");
            let state = State::load(self.config()).unwrap();
            match state.map(|s| s.phase) {
                Some(Phase::Changed) => {
                    let over = self.with_change(|c| self.run(c.finish(&[])));
                    assert!(over.unwrap().over, "everybody has followed");
                }
                Some(_) => {}
                None => break,
            }
        }
    }
}

fn any_event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => any::<bool>().prop_map(|rotate| Event::Pass { rotate }),
        1 => Just(Event::Rotate),
        2 => (0..3_usize).prop_map(|agent| Event::Ping { agent }),
        3 => Just(Event::Start),
        2 => Just(Event::Finish),
        2 => Just(Event::Abort),
        2 => (1..20_i64).prop_map(Event::Days),
        3 => any::<u8>().prop_map(Event::Up),
        1 => (0..3_usize).prop_map(|agent| Event::Pair { agent }),
    ]
}

/// With the number of effects until the power goes out, if it does.
fn any_story() -> impl Strategy<Value = Vec<(Event, Option<u32>)>> {
    prop::collection::vec((any_event(), prop::option::of(0..40_u32)), 1..12)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), max_shrink_iters: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_story_ends_well(story in any_story()) {
        let world = World::new(&AGENTS[..2]);
        world.at(1);
        world.good_pass("at first");
        for (at, (event, cut)) in story.iter().enumerate() {
            let context = format!("{at}: {event:?}, {cut:?}");
            match (event, cut) {
                // Pairing is tried elsewhere; here only what it is amid everything else.
                (Event::Pair { agent }, _) => drop(world.approve(AGENTS[*agent])),
                (_, Some(effects)) => drop(crash::after(*effects, || world.happen(event))),
                (_, None) => world.happen(event),
            }
            world.check(&context);
            world.tick();
        }
        world.come_to_rest();
    }
}

/// More of them: `STORIES=1000 cargo test every_story`.
fn cases() -> u32 {
    let wanted = std::env::var("STORIES").ok();
    wanted.and_then(|n| n.parse().ok()).unwrap_or(40)
}
