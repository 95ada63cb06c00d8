//! Years that pass in a test, and a dispatcher of the original with simulated agents that live through them.

use std::path::PathBuf;
use std::sync::atomic::{AtomicI64, Ordering};

use serde_json::Value;
use tempfile::TempDir;

use super::SimFleet;
use super::fleet::{DISPATCHER_CONF, legacy_dispatcher};
use super::host::Host;
use super::openssl::{Authority, Dates, serial_of};
use super::sim::Plan;
use super::sim::serials::left_by_pairing;

pub const DAY: i64 = 86_400;

/// A clock that hosts share: a file with the seconds that they add to the system's clock.
#[derive(Debug)]
pub struct SharedClock {
    dir: TempDir,
    seconds: AtomicI64,
}

impl SharedClock {
    pub fn new() -> Self {
        let dir = tempfile::Builder::new()
            .prefix("ce-clock-")
            .tempdir()
            .unwrap();
        let clock = Self {
            dir,
            seconds: AtomicI64::new(0),
        };
        clock.set(0);
        clock
    }

    pub fn file(&self) -> PathBuf {
        self.dir.path().join("offset")
    }

    /// Everything that the host starts from now on goes by this clock.
    pub fn give(&self, host: &mut Host) {
        host.set_env("CTRL_EXEC_CLOCK_OFFSET_FILE", self.file().to_str().unwrap());
    }

    pub fn seconds(&self) -> i64 {
        self.seconds.load(Ordering::Relaxed)
    }

    /// Sets how far the clock is off. Nobody ever finds half a file, which would count as no shift at all.
    pub fn set(&self, seconds: i64) {
        let new = self.dir.path().join("offset.new");
        std::fs::write(&new, seconds.to_string()).unwrap();
        std::fs::rename(new, self.file()).unwrap();
        self.seconds.store(seconds, Ordering::Relaxed);
    }

    pub fn pass_days(&self, days: i64) {
        self.set(self.seconds() + days * DAY);
    }
}

/// A dispatcher as the original leaves it, agents of the original, and one clock for all.
pub struct Rotating {
    pub host: Host,
    pub fleet: SimFleet,
    pub clock: SharedClock,
}

impl Rotating {
    /// So many agents; the dispatcher's certificate has the serial 2 and lasts 825 days, as do the agents'.
    #[track_caller]
    pub fn new(count: usize) -> Self {
        Self::with("02", &Plan::new(count, &left_by_pairing("02")))
    }

    #[track_caller]
    pub fn with(serial: &str, plan: &Plan) -> Self {
        let authority = Authority::shared();
        let leaf = authority.issue("ctrl-exec-dispatcher", serial, Dates::Days(825));
        let mut host = legacy_dispatcher(authority, &leaf);
        let clock = SharedClock::new();
        clock.give(&mut host);
        let fleet = SimFleet::start(plan, authority);
        fleet.register_all(&host);
        Self { host, fleet, clock }
    }

    /// Lines of `ctrl-exec.conf` beside those of the original.
    pub fn configure(&self, lines: &str) {
        let conf = format!("{DISPATCHER_CONF}{lines}");
        self.host.write("etc/ctrl-exec/ctrl-exec.conf", conf, 0o640);
    }

    /// So many days later, for everybody.
    pub fn pass_days(&self, days: i64) {
        self.clock.pass_days(days);
        self.fleet.set_clock_offset(self.clock.seconds());
    }

    /// What `ced maintain --json` says.
    #[track_caller]
    pub fn maintain(&self) -> Value {
        self.host.ced(&["maintain", "--json"]).ok().json()
    }

    /// What `ced rotate-cert --json` says.
    #[track_caller]
    pub fn rotate(&self) -> Value {
        self.host.ced(&["rotate-cert", "--json"]).ok().json()
    }

    /// Every agent must answer.
    #[track_caller]
    pub fn ping_all(&self) {
        let names = self.fleet.names();
        self.host
            .ced(&[&["ping", "--check"], names.as_slice()].concat())
            .ok();
    }

    /// Registry record of an agent.
    #[track_caller]
    pub fn record(&self, at: usize) -> Value {
        self.host.json(&record_path(self.fleet[at].name()))
    }

    #[track_caller]
    pub fn state(&self) -> Value {
        self.host.json("var/lib/ctrl-exec/rotation.json")
    }

    /// Serial of the dispatcher's certificate, minimal lower-case hex.
    #[track_caller]
    pub fn serial(&self) -> String {
        serial_of(&self.host.path("etc/ctrl-exec/dispatcher.crt"))
    }

    /// Serials of the pairs beside the configured one.
    pub fn kept(&self) -> Vec<String> {
        kept(&self.host)
    }
}

/// Serials of the pairs that a dispatcher keeps beside the configured one, minimal lower-case hex.
pub fn kept(host: &Host) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(host.path("etc/ctrl-exec/identities")) else {
        return Vec::new();
    };
    let mut names: Vec<String> = entries
        .filter_map(|e| {
            let name = e.unwrap().file_name().into_string().unwrap();
            name.strip_suffix(".pem")
                .filter(|s| !s.starts_with('.'))
                .map(str::to_owned)
        })
        .collect();
    names.sort();
    names
}

pub fn record_path(name: &str) -> String {
    format!("var/lib/ctrl-exec/agents/{name}.json")
}
