//! A dispatcher host in a temporary directory and its agents in memory, for trying the long protocols with a power cut after every effect.

mod chaos;
mod check;
mod host;
mod network;
mod pairing;
mod prefix;

pub(crate) use host::{Host, Release};
pub(crate) use network::Memory;
pub(crate) use pairing::Asked;
pub(crate) use prefix::every_prefix;

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::path::Path;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use crate::core::ca_change::Change;
use crate::core::clock::Clock;
use crate::core::config::DispatcherConfig;
use crate::core::durable;
use crate::core::keyring;
use crate::core::maintenance::{Maintenance, Summary};
use crate::core::paths::{Paths, Platform};
use crate::core::pki::succession::Trusted;
use crate::core::pki::{Authority, CertRequest, Certificate, KeyType, PrivateKey, csr, keys};
use crate::core::registry::{AgentRecord, Registry, SerialStatus};
use crate::core::rotation::{Issuer, Rotation, State};
use crate::core::types::{AgentName, Serial};
use crate::core::wire::LookupBy;

pub(crate) const NOW: i64 = 1_800_000_000;
pub(crate) const DAY: i64 = 86_400;

pub(crate) fn name(text: &str) -> AgentName {
    AgentName::new(text).unwrap()
}

/// A dispatcher host with agents.
pub(crate) struct World {
    dir: tempfile::TempDir,
    pub(crate) memory: Memory,
    /// Every certificate that was ever seen: no serial may stand for two.
    seen: Mutex<BTreeMap<Serial, Certificate>>,
    /// Entries of the journal when it was looked at last.
    revoked: Mutex<Vec<String>>,
}

/// In memory where that is possible: thousands of files are synced.
fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").unwrap_or_else(|_| tempfile::tempdir().unwrap())
}

fn config_in(dir: &Path) -> DispatcherConfig {
    let paths = Paths::new(dir, Platform::Standard);
    let mut config = DispatcherConfig::defaults(&paths, &paths.dispatcher_toml(), "ctl");
    config.cert_days = 400;
    // What agents are verified against is a file of its own, as it may be.
    config.ca = config.ca_dir.join("agents-ca.crt");
    config
}

impl World {
    /// Agents of our release, paired `NOW`.
    pub(crate) fn new(agents: &[&str]) -> Self {
        let dir = scratch();
        let config = config_in(dir.path());
        let clock = Clock::fixed(NOW);
        std::fs::create_dir_all(&config.ca_dir).unwrap();
        let kind = KeyType::EcdsaP256;
        let ca = Authority::create(&config.ca_dir, kind, "test CA", 4000, clock).unwrap();
        let ca_pem = ca.certificate().to_pem();
        durable::replace(&config.ca, ca_pem.as_bytes(), 0o644).unwrap();
        let key = PrivateKey::generate(kind).unwrap();
        let certificate = ca
            .issue_dispatcher(key.public(), &config.dispatcher_id, 400)
            .unwrap();
        durable::replace(&config.key, key.to_pkcs8_pem().expose().as_bytes(), 0o600).unwrap();
        durable::replace(&config.cert, certificate.to_pem().as_bytes(), 0o644).unwrap();
        let world = Self {
            memory: Memory {
                config,
                hosts: Arc::default(),
                now: Arc::new(AtomicI64::new(NOW)),
                wrongs: Arc::default(),
            },
            dir,
            seen: Mutex::default(),
            revoked: Mutex::default(),
        };
        for agent in agents {
            world.pair(agent, &ca, &certificate);
        }
        world
    }

    fn pair(&self, agent: &str, ca: &Authority, dispatcher: &Certificate) {
        let key = PrivateKey::generate(KeyType::EcdsaP256).unwrap();
        let request = csr::create_pem(&key, &name(agent)).unwrap();
        let request = CertRequest::parse_pem(&request).unwrap();
        let certificate = ca.issue_agent(&request, &name(agent), 400).unwrap();
        let mut hosts = self.hosts();
        let address = format!("192.0.2.{}", hosts.len() + 1);
        let mut record = AgentRecord::new(name(agent));
        record.lookup_by = LookupBy::Ip;
        record.ip.clone_from(&address);
        record.dispatcher_serial = dispatcher.serial.legacy();
        record.serial_status = SerialStatus::Current;
        record.cert_serial = Some(certificate.serial.to_string());
        record.cert_spki = Some(keys::spki_sha256(&certificate.spki));
        record.tags = BTreeMap::from([("site".to_owned(), address.clone())]);
        self.registry().register(record, false).unwrap();
        let host = Host {
            name: name(agent),
            release: Release::Ours,
            up: true,
            leaving: false,
            tagged: true,
            serials: BTreeSet::from([dispatcher.serial.clone()]),
            trusted: Trusted::live(vec![ca.certificate().clone()]),
            key,
            certificate,
            staged: None,
            revoked: BTreeSet::new(),
        };
        hosts.insert(address, host);
    }

    /// Another world in which everything is as it is here.
    pub(crate) fn copy(&self) -> Self {
        let dir = scratch();
        copy_dir(self.dir.path(), dir.path());
        Self {
            memory: Memory {
                config: config_in(dir.path()),
                hosts: Arc::new(Mutex::new(self.hosts().clone())),
                now: Arc::new(AtomicI64::new(self.now())),
                wrongs: Arc::default(),
            },
            dir,
            seen: Mutex::new(self.seen.lock().unwrap().clone()),
            revoked: Mutex::new(self.revoked.lock().unwrap().clone()),
        }
    }

    pub(crate) fn config(&self) -> &DispatcherConfig {
        &self.memory.config
    }

    pub(crate) fn now(&self) -> i64 {
        self.memory.now.load(Ordering::SeqCst)
    }

    pub(crate) fn clock(&self) -> Clock {
        Clock::fixed(self.now())
    }

    /// So many days after the beginning.
    pub(crate) fn at(&self, days: i64) {
        self.memory.now.store(NOW + days * DAY, Ordering::SeqCst);
    }

    /// A little later.
    pub(crate) fn tick(&self) {
        self.memory.now.fetch_add(10, Ordering::SeqCst);
    }

    pub(crate) fn hosts(&self) -> MutexGuard<'_, BTreeMap<String, Host>> {
        self.memory.hosts.lock().unwrap()
    }

    pub(crate) fn host(&self, agent: &str) -> Host {
        let hosts = self.hosts();
        let found = hosts.values().find(|h| h.name.as_str() == agent);
        found.unwrap().clone()
    }

    pub(crate) fn change_host(&self, agent: &str, change: impl FnOnce(&mut Host)) {
        let mut hosts = self.hosts();
        let mut all = hosts.values_mut();
        change(all.find(|h| h.name.as_str() == agent).unwrap());
    }

    /// A host that is not paired yet, or about to be paired anew: whatever is registered for it holds only afterwards.
    pub(crate) fn host_to_be(&self, agent: &str) {
        if self.registry().get(&name(agent)).unwrap().is_none() {
            let mut host = self.hosts().values().next().unwrap().clone();
            host.name = name(agent);
            host.up = false;
            host.tagged = false;
            let address = format!("192.0.2.{}", self.hosts().len() + 1);
            self.hosts().insert(address, host);
        }
        self.change_host(agent, |host| host.leaving = true);
    }

    /// Only these are down.
    pub(crate) fn down(&self, agents: &[&str]) {
        for host in self.hosts().values_mut() {
            host.up = !agents.contains(&host.name.as_str());
        }
    }

    pub(crate) fn registry(&self) -> Registry {
        Registry::new(self.config().registry_dir.clone())
    }

    pub(crate) fn record(&self, agent: &str) -> AgentRecord {
        self.registry().get(&name(agent)).unwrap().unwrap()
    }

    /// Serial of the certificate at the configured path.
    pub(crate) fn main(&self) -> Serial {
        keyring::configured_certificate(self.config())
            .unwrap()
            .serial
    }

    pub(crate) fn rotation_state(&self) -> State {
        State::load(&self.config().rotation.file)
            .unwrap()
            .unwrap_or_default()
    }

    /// Runs it on this thread, which the power cuts are counted on.
    pub(crate) fn run<T>(&self, work: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        runtime.block_on(work)
    }

    /// As `ced maintain`.
    pub(crate) fn pass(&self, rotate: bool) -> Summary {
        let (config, clock, network) = (self.config(), &self.clock(), &self.memory);
        let maintenance = Maintenance {
            config,
            clock,
            network,
        };
        self.run(maintenance.pass(rotate)).unwrap()
    }

    /// A pass in which nothing fails.
    pub(crate) fn good_pass(&self, context: &str) -> Summary {
        let summary = self.pass(false);
        assert_eq!(summary.failed, [], "{context}");
        assert_eq!(summary.renewal_failed, [], "{context}");
        summary
    }

    pub(crate) fn with_rotation<T>(&self, work: impl FnOnce(Rotation<'_, Memory>) -> T) -> T {
        work(Rotation {
            config: self.config(),
            clock: &self.clock(),
            network: &self.memory,
            issuer: Issuer::Present,
        })
    }

    pub(crate) fn with_change<T>(&self, work: impl FnOnce(Change<'_, Memory>) -> T) -> T {
        work(Change {
            config: self.config(),
            clock: &self.clock(),
            network: &self.memory,
        })
    }
}

fn copy_dir(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            std::fs::create_dir(&target).unwrap();
            std::fs::set_permissions(&target, entry.metadata().unwrap().permissions()).unwrap();
            copy_dir(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), &target).unwrap();
        }
    }
}
