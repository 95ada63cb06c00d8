//! Seasons in the life of a fleet: ten agents that the original has left and ten that we paired, one dispatcher. Its certificate is rotated,
//! theirs are renewed, the CA is replaced, a host is revoked, one sleeps through a season, one wakes up in 1970; and all the time commands and
//! agents are killed in the middle of what they do. Nobody may be lost.

mod common;

use std::collections::BTreeMap;
use std::fmt::Write as _;

use common::fleet::{
    DISPATCHER_CONF, legacy_agent, legacy_dispatcher, legacy_map, legacy_record, new_agent, pair,
    register, start_pairing,
};
use common::openssl::{Authority, Dates, Leaf, serial_of, text_of};
use common::rotating::{kept, record_path};
use common::{Agent, Fate, Host, PATIENCE, SharedClock, free_port, tls};
use rustix::process::Signal;
use serde_json::Value;

const OLD: usize = 10;
const NEW: usize = 10;
/// A certificate lasts 60 days and is replaced when 30 are left; an old serial is trusted for 10 days more.
const LIFE: u32 = 60;
const UNTIL_DUE: i64 = 31;
const UNTIL_OVER: i64 = 11;
/// Commands that are killed, per storm.
const STORM: usize = 14;

struct Member {
    host: Host,
    agent: Option<Agent>,
}

struct Fleet {
    dispatcher: Host,
    members: Vec<Member>,
    clock: SharedClock,
    /// Of the one whose clock runs wild.
    wild_clock: SharedClock,
    wild: usize,
    is_wild: bool,
    /// Sleeps; nobody wakes it by chance.
    asleep: Option<usize>,
    revoked: Option<usize>,
    fate: Fate,
}

impl Fleet {
    fn build() -> Self {
        let fate = Fate::new("lifecycle");
        let (clock, wild_clock) = (SharedClock::new(), SharedClock::new());
        let authority = Authority::shared();
        let leaf = authority.issue("ctrl-exec-dispatcher", "02", Dates::Days(LIFE));
        let mut dispatcher = legacy_dispatcher(authority, &leaf);
        let conf = format!("{DISPATCHER_CONF}cert_days = {LIFE}\ncert_overlap_days = 10\n");
        dispatcher.write("etc/ctrl-exec/ctrl-exec.conf", conf, 0o640);
        clock.give(&mut dispatcher);

        let mut hosts = Vec::new();
        for at in 0..OLD {
            let name = format!("old{at}.test");
            let leaf = authority.issue(&name, &format!("{:02X}", at + 3), Dates::Days(LIFE));
            let port = free_port();
            let map = legacy_map(&[("2", "ctl")]);
            hosts.push(legacy_agent(&name, authority, &leaf, port, &map));
            register(&dispatcher, &legacy_record(&name, port, &leaf, "2"));
        }
        let port = free_port();
        let mut pairing = start_pairing(&dispatcher, port, &[]);
        for at in 0..NEW {
            let host = new_agent(&format!("new{at}.test"), free_port());
            pair(&dispatcher, &host, port);
            hosts.push(host);
        }
        pairing.signal(Signal::TERM);
        assert!(pairing.wait(PATIENCE).success());

        let wild = OLD + 3;
        let members = hosts.into_iter().enumerate().map(|(at, mut host)| {
            let time = if at == wild { &wild_clock } else { &clock };
            time.give(&mut host);
            Member { host, agent: None }
        });
        Self {
            members: members.collect(),
            dispatcher,
            clock,
            wild_clock,
            wild,
            is_wild: false,
            asleep: None,
            revoked: None,
            fate,
        }
    }

    fn name(&self, at: usize) -> &str {
        self.members[at].host.name()
    }

    fn pass_days(&self, days: i64) {
        self.clock.pass_days(days);
        if !self.is_wild {
            self.wild_clock.set(self.clock.seconds());
        }
    }

    /// Those that are to be reached.
    fn awake(&self) -> Vec<usize> {
        (0..self.members.len())
            .filter(|at| Some(*at) != self.asleep && Some(*at) != self.revoked)
            .collect()
    }

    fn start(&mut self, at: usize) {
        let member = &mut self.members[at];
        if member.agent.is_none() {
            member.agent = Some(Agent::start(&member.host));
        }
    }

    fn start_all(&mut self) {
        for at in 0..self.members.len() {
            if Some(at) != self.asleep {
                self.start(at);
            }
        }
    }

    /// What the hosts have logged last, for a test that fails.
    fn tell(&self, hosts: &[usize]) -> String {
        let mut text = String::new();
        let involved = hosts.iter().map(|at| (&self.members[*at].host, 40));
        for (host, count) in std::iter::once((&self.dispatcher, 120)).chain(involved) {
            let lines = host.log_lines();
            let _ = writeln!(text, "--- log of {}", host.name());
            for line in &lines[lines.len().saturating_sub(count)..] {
                let _ = writeln!(text, "  <{}> {}", line.priority, line.text);
            }
        }
        for at in hosts {
            let host = &self.members[*at].host;
            let record = record_path(host.name());
            let _ = writeln!(
                text,
                "--- {}: {}",
                host.name(),
                self.dispatcher.read(&record)
            );
            text.push_str(&host.read("var/lib/ctrl-exec-agent/ctrl-exec-dispatchers"));
        }
        let state =
            std::fs::read_to_string(self.dispatcher.path("var/lib/ctrl-exec/rotation.json"));
        let _ = writeln!(
            text,
            "--- rotation.json {state:?}\n--- kept {:?}",
            kept(&self.dispatcher)
        );
        text
    }

    /// Each of them answers, to a ping and to a run.
    #[track_caller]
    fn answer(&self, which: &[usize], when: &str) {
        let names: Vec<&str> = which.iter().map(|at| self.name(*at)).collect();
        let ping = self
            .dispatcher
            .ced(&[&["ping", "--json", "--check"], names.as_slice()].concat());
        let run = [&["run", "--json"], names.as_slice(), &["true"]].concat();
        let run = self.dispatcher.ced(&run);
        for done in [&ping, &run] {
            let silent: Vec<usize> = which
                .iter()
                .copied()
                .filter(|at| !answers(&done.json(), self.name(*at)))
                .collect();
            assert!(
                silent.is_empty() && done.code() == 0,
                "{when}: {}{}\n{}",
                done.out(),
                done.err(),
                self.tell(&silent)
            );
        }
    }

    /// Runs a command of the dispatcher and kills it, if it is still there, after a moment.
    fn kill_in_the_middle(&mut self, words: &[&str]) {
        let mut command = self.dispatcher.start("ced", words);
        // Mostly in its first steps, now and then far in.
        let longest = if self.fate.one_in(3) { 2500 } else { 400 };
        std::thread::sleep(self.fate.millis(longest));
        command.signal(Signal::KILL);
        command.wait(PATIENCE);
        assert!(!command.err().contains("panicked at"), "{}", command.err());
        self.files_are_whole();
    }

    /// Whatever was killed: every file of state can be read.
    #[track_caller]
    fn files_are_whole(&self) {
        for file in ["rotation.json", "ca-change.json"] {
            let path = self.dispatcher.path("var/lib/ctrl-exec").join(file);
            if let Ok(text) = std::fs::read(&path) {
                let parsed = serde_json::from_slice::<Value>(&text);
                assert!(parsed.is_ok(), "{file}: {parsed:?}");
            }
        }
        let status = self.dispatcher.ced(&["serial-status", "--json"]).ok();
        assert_eq!(status.err(), "", "{}", self.tell(&[]));
        let agents = status.json()["agents"].as_array().map(Vec::len);
        assert_eq!(agents, Some(self.members.len()), "a record is lost");
    }

    /// Commands and agents are killed, again and again. `also` is a command that takes part.
    fn storm(&mut self, also: &[&str]) {
        for _ in 0..STORM {
            let awake = self.awake();
            if self.fate.one_in(2) {
                let at = awake[self.fate.below(awake.len())];
                self.members[at].agent = None;
                // Half of them stay away for the next command.
                if self.fate.one_in(2) {
                    self.start(at);
                }
            }
            let at = awake[self.fate.below(awake.len())];
            let one = self.name(at).to_owned();
            let words: &[&str] = match self.fate.below(10) {
                0 => &["rotate-cert"],
                1 => &["ping", &one],
                2..=5 if !also.is_empty() => also,
                _ => &["maintain"],
            };
            self.kill_in_the_middle(words);
            if self.fate.one_in(3) {
                self.start_all();
            }
        }
        self.start_all();
    }

    /// Passes until there is nothing left to do; then everybody knows the same and answers.
    #[track_caller]
    fn settle(&mut self, when: &str) {
        self.start_all();
        let idle = ["announced", "withdrawn", "renewed", "staged"];
        let mut last = Value::Null;
        for _ in 0..8 {
            last = self.dispatcher.ced(&["maintain", "--json"]).ok().json();
            assert_eq!(
                last["failed"],
                Value::Array(Vec::new()),
                "{when}: {}",
                self.tell(&[])
            );
            if last["rotated"].is_null() && idle.iter().all(|key| last[key] == 0) {
                break;
            }
        }
        assert!(
            idle.iter().all(|key| last[key] == 0),
            "{when}: it never ends: {last}\n{}",
            self.tell(&[])
        );
        let awake = self.awake();
        self.answer(&awake, when);
        let late: Vec<usize> = awake
            .into_iter()
            .filter(|at| self.record(*at)["serial_status"] != "current")
            .collect();
        assert!(late.is_empty(), "{when}: {}", self.tell(&late));
    }

    fn record(&self, at: usize) -> Value {
        self.dispatcher.json(&record_path(self.name(at)))
    }

    fn serial(&self) -> String {
        serial_of(&self.dispatcher.path("etc/ctrl-exec/dispatcher.crt"))
    }

    /// The certificate becomes due, is replaced in a storm, and the overlap passes.
    #[track_caller]
    fn season(&mut self, when: &str) {
        let before = self.serial();
        self.pass_days(UNTIL_DUE);
        self.storm(&[]);
        self.settle(when);
        assert_ne!(self.serial(), before, "{when}: {}", self.tell(&[]));
        self.pass_days(UNTIL_OVER);
        self.settle(when);
    }

    /// Nothing old is left anywhere: no pair, no serial in anybody's map.
    #[track_caller]
    fn nothing_is_left_over(&self, when: &str) {
        assert!(
            kept(&self.dispatcher).is_empty(),
            "{when}: {}",
            self.tell(&[])
        );
        let many: Vec<usize> = self
            .awake()
            .into_iter()
            .filter(|at| {
                let host = &self.members[*at].host;
                let map = host.read("var/lib/ctrl-exec-agent/ctrl-exec-dispatchers");
                map.lines()
                    .filter(|l| !l.is_empty() && !l.starts_with('#'))
                    .count()
                    != 1
            })
            .collect();
        assert!(many.is_empty(), "{when}: {}", self.tell(&many));
    }

    fn leaf(&self, at: usize) -> Leaf {
        let host = &self.members[at].host;
        Leaf {
            cert: host.path("etc/ctrl-exec-agent/agent.crt"),
            key: host.path("etc/ctrl-exec-agent/agent.key"),
            cn: host.name().to_owned(),
        }
    }
}

/// Whether a host is among the results, without an error.
fn answers(results: &Value, name: &str) -> bool {
    let all = results["results"].as_array();
    all.is_some_and(|all| {
        all.iter()
            .any(|r| r["host"] == name && (r["status"] == "ok" || r["exit"] == 0))
    })
}

#[test]
fn a_fleet_lives_through_everything_and_nobody_is_lost() {
    let mut fleet = Fleet::build();
    fleet.start_all();
    fleet.settle("at first");

    fleet.season("first season");
    fleet.nothing_is_left_over("first season");

    // One sleeps, one wakes up in 1970.
    let sleeper = 2;
    fleet.asleep = Some(sleeper);
    fleet.members[sleeper].agent = None;
    fleet.is_wild = true;
    let real = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .expect("after 1970");
    fleet
        .wild_clock
        .set(-i64::try_from(real.as_secs()).expect("seconds"));
    let wild = fleet.wild;
    fleet.answer(&[wild], "in 1970");
    fleet.members[wild].agent = None;
    fleet.start(wild);
    fleet.answer(&[wild], "started in 1970");
    fleet.season("second season");
    fleet.asleep = None;
    fleet.settle("the sleeper wakes up");
    fleet.nothing_is_left_over("the sleeper wakes up");
    fleet.is_wild = false;
    fleet.wild_clock.set(fleet.clock.seconds());
    fleet.settle("back from 1970");

    // Another CA.
    let start = ["rotate-ca", "start"];
    fleet.storm(&start);
    let begun = fleet
        .dispatcher
        .ced(&["rotate-ca", "status", "--json"])
        .ok();
    if begun.json()["phase"].is_null() {
        fleet.dispatcher.ced(&start).ok();
    }
    fleet.settle("a new CA");
    let finish = ["rotate-ca", "finish"];
    fleet.storm(&finish);
    fleet.settle("the old CA goes");
    let phase = |fleet: &Fleet| -> Value {
        fleet
            .dispatcher
            .ced(&["rotate-ca", "status", "--json"])
            .ok()
            .json()["phase"]
            .clone()
    };
    if !phase(&fleet).is_null() {
        let run = fleet.dispatcher.ced(&finish);
        assert_eq!(
            run.code(),
            0,
            "{}{}\n{}",
            run.out(),
            run.err(),
            fleet.tell(&[])
        );
    }
    fleet.settle("the old CA is gone");
    assert_eq!(phase(&fleet), Value::Null, "{}", fleet.tell(&[]));
    let ca = fleet.dispatcher.read("etc/ctrl-exec/ca.crt");
    assert_eq!(ca.matches("BEGIN CERTIFICATE").count(), 1);
    for at in fleet.awake() {
        let trusted = fleet.members[at].host.read("etc/ctrl-exec-agent/ca.crt");
        assert_eq!(trusted, ca, "{}", fleet.tell(&[at]));
    }

    // A host is shut out.
    let lost = 5;
    let name = fleet.name(lost).to_owned();
    let serial = serial_of(&fleet.leaf(lost).cert);
    fleet.revoked = Some(lost);
    let revoke = ["revoke", &name, "--reason", "stolen"];
    fleet.storm(&revoke);
    fleet.dispatcher.ced(&revoke).ok();
    fleet.settle("a host is revoked");

    fleet.season("third season");
    fleet.nothing_is_left_over("third season");
    fleet
        .dispatcher
        .ced(&["ping", "--check", &name])
        .expect_code(1)
        .out_has("revoked");
    let stolen = fleet.leaf(lost);
    assert_eq!(serial_of(&stolen.cert), serial, "it was not renewed");
    for at in fleet.awake() {
        let address = fleet.members[at].agent.as_ref().map(Agent::address);
        let reply = tls::request(address.expect("up"), Some(&stolen), "POST", "/ping", b"{}");
        assert!(
            reply.as_ref().map_or(true, |r| r.status == 403),
            "{}: {reply:?}\n{}",
            fleet.name(at),
            fleet.tell(&[at])
        );
        let list = fleet.members[at]
            .host
            .read("var/lib/ctrl-exec-agent/revoked-serials");
        assert!(list.contains(&serial), "{}: {list}", fleet.name(at));
    }

    certificates_are_in_order(&fleet);
    let living = fleet.awake();
    fleet.answer(&living, "at the end");
}

/// Nobody has a serial of somebody else; the registry says what the files say; the old ones have become strict.
fn certificates_are_in_order(fleet: &Fleet) {
    let mut owners: BTreeMap<String, String> = BTreeMap::new();
    owners.insert(fleet.serial(), "the dispatcher".to_owned());
    for at in fleet.awake() {
        let leaf = fleet.leaf(at);
        let (serial, record) = (serial_of(&leaf.cert), fleet.record(at));
        assert_eq!(record["cert_serial"], serial, "{}", fleet.tell(&[at]));
        assert_eq!(record["expiry"], leaf.expiry(), "{}", fleet.tell(&[at]));
        assert!(text_of(&leaf.cert).contains("Version: 3"), "{}", leaf.cn);
        let other = owners.insert(serial, leaf.cn);
        assert_eq!(other, None, "{}", fleet.tell(&[at]));
    }
}
