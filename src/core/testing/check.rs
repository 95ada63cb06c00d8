//! What must hold whenever the power goes out.

use std::collections::BTreeSet;

use super::World;
use crate::core::ca_change;
use crate::core::client::open;
use crate::core::keyring::{Keyring, PairStore, names_serial};
use crate::core::pki::{Authority, Certificate, keys};
use crate::core::registry::{AgentRecord, SerialStatus};
use crate::core::revocation::Revocations;
use crate::core::types::{AgentName, Serial};

impl World {
    /// Nobody is lost, nothing is forgotten, and what the registry claims is true.
    pub(crate) fn check(&self, context: &str) {
        let wrongs = std::mem::take(&mut *self.memory.wrongs.lock().unwrap());
        assert!(wrongs.is_empty(), "{context}: {wrongs:?}");
        let keyring =
            Keyring::load(self.config()).unwrap_or_else(|e| panic!("{context}: no identity: {e}"));
        assert!(
            keyring.unusable.is_empty(),
            "{context}: {:?}",
            keyring.unusable
        );
        let held: Vec<&Certificate> = keyring
            .identities()
            .iter()
            .map(|i| i.certificate())
            .collect();
        let serials: BTreeSet<&Serial> = held.iter().map(|c| &c.serial).collect();
        assert_eq!(held.len(), serials.len(), "{context}: a serial twice");
        self.check_journal(context);
        let signing = Authority::load(&self.config().ca_dir, self.clock())
            .unwrap_or_else(|e| panic!("{context}: nobody can sign: {e}"));
        let cas = open::load_cas(self.config()).unwrap();
        let first = [signing.certificate().clone()];
        let hosts: Vec<_> = self.hosts().values().cloned().collect();
        let shown = hosts.iter().map(|h| &h.certificate);
        let all = held.iter().copied().chain(shown).chain(&cas).chain(&first);
        self.note(all, context);
        self.check_reach(&held, &cas, context);
        self.check_registry(context);
    }

    /// No serial stands for two certificates.
    fn note<'a>(&self, all: impl Iterator<Item = &'a Certificate>, context: &str) {
        let mut seen = self.seen.lock().unwrap();
        for certificate in all {
            let known = seen
                .entry(certificate.serial.clone())
                .or_insert_with(|| certificate.clone());
            assert_eq!(known.der, certificate.der, "{context}: a serial twice");
        }
    }

    fn check_journal(&self, context: &str) {
        let journal = Revocations::load(&self.config().revoked_file)
            .unwrap_or_else(|e| panic!("{context}: {e}"));
        let mut before = self.revoked.lock().unwrap();
        let now: Vec<String> = journal.entries().iter().map(|e| e.serial.clone()).collect();
        assert!(now.starts_with(&before), "{context}: {before:?} {now:?}");
        *before = now;
    }

    /// Every agent can be called: it admits one of our pairs, and we believe in what it shows.
    fn check_reach(&self, held: &[&Certificate], cas: &[Certificate], context: &str) {
        let now = self.now();
        let revoked = Revocations::load(&self.config().revoked_file).unwrap();
        let usable = |c: &&&Certificate| {
            revoked
                .find(&c.serial, &keys::spki_sha256(&c.spki))
                .is_none()
        };
        for host in self.hosts().values().filter(|h| !h.leaving) {
            let agent = &host.name;
            assert_eq!(host.certificate.spki, host.key.spki_der(), "{context}");
            assert!(
                held.iter().filter(usable).any(|c| host.admits(c, now)),
                "{context}: '{agent}' admits none of our pairs"
            );
            let believed =
                |c: &Certificate| cas.iter().any(|ca| c.verify_issued_by(ca, now).is_ok());
            assert!(
                believed(&host.certificate),
                "{context}: '{agent}' shows what we do not believe"
            );
        }
    }

    fn check_registry(&self, context: &str) {
        let listing = self.registry().list().unwrap();
        assert!(listing.unreadable.is_empty(), "{context}");
        let mut left: BTreeSet<AgentName> = self.hosts().values().map(|h| h.name.clone()).collect();
        for record in listing.agents {
            assert!(left.remove(&record.name), "{context}: {}", record.name);
            self.check_record(&record, context);
        }
        let leaving = |agent: &AgentName| self.host(agent.as_str()).leaving;
        left.retain(|agent| !leaving(agent));
        assert!(left.is_empty(), "{context}: lost {left:?}");
    }

    fn check_record(&self, record: &AgentRecord, context: &str) {
        let context = format!("{context}: '{}'", record.name);
        let host = self.host(record.name.as_str());
        if host.tagged {
            assert_eq!(record.tags["site"], record.ip, "{context}: lost its tags");
        }
        if host.leaving {
            return;
        }
        assert_eq!(
            record.cert_spki,
            Some(keys::spki_sha256(&host.certificate.spki)),
            "{context}"
        );
        if record.serial_status == SerialStatus::Current {
            let named = |s: &Serial| names_serial(&record.dispatcher_serial, s);
            assert!(host.serials.iter().any(named), "{context} is not current");
        }
        let journal = Revocations::load(&self.config().revoked_file).unwrap();
        let confirmed = usize::try_from(record.revocations).unwrap();
        for entry in &journal.entries()[..confirmed] {
            let serial = Serial::parse_hex(&entry.serial).unwrap();
            assert!(
                host.revoked.contains(&serial),
                "{context} has not confirmed"
            );
        }
    }

    /// Everybody has followed and nothing is left over but what waits for the overlap.
    pub(crate) fn check_settled(&self, context: &str) {
        self.check(context);
        let main = self.main();
        assert!(self.rotation_state().next_serial.is_none(), "{context}");
        for host in self.hosts().values().filter(|h| !h.leaving) {
            let record = self.registry().get(&host.name).unwrap().unwrap();
            let context = format!("{context}: {}", host.name);
            assert_eq!(record.serial_status, SerialStatus::Current, "{context}");
            assert_eq!(record.dispatcher_serial, main.legacy(), "{context}");
        }
    }

    /// No change of the CA goes on, and every believer believes in `ca` alone.
    pub(crate) fn check_one_ca(&self, ca: &Certificate, context: &str) {
        self.check_settled(context);
        let config = self.config();
        assert!(
            ca_change::State::load(config).unwrap().is_none(),
            "{context}"
        );
        assert!(!ca_change::State::next_dir(config).exists(), "{context}");
        for path in [&config.ca, &config.ca_dir.join("ca.crt")] {
            let pem = std::fs::read(path).unwrap();
            let cas = Certificate::all_from_pem(&pem).unwrap();
            assert_eq!(cas, std::slice::from_ref(ca), "{context}");
        }
        let signing = Authority::load(&config.ca_dir, self.clock()).unwrap();
        assert_eq!(signing.certificate(), ca, "{context}");
        let fingerprint = ca.fingerprint();
        for host in self.hosts().values().filter(|h| !h.leaving) {
            let agent = &host.name;
            assert_eq!(
                host.trusted.fingerprints(),
                [fingerprint.as_str()],
                "{context} {agent}"
            );
            assert!(
                host.certificate.verify_signed_by(ca).is_ok(),
                "{context} {agent}"
            );
            let record = self.registry().get(agent).unwrap().unwrap();
            assert_eq!(
                record.cert_ca.as_deref(),
                Some(fingerprint.as_str()),
                "{context} {agent}"
            );
        }
    }

    /// Pairs beside the configured one.
    pub(crate) fn kept(&self) -> Vec<Serial> {
        PairStore::of(self.config()).list().unwrap()
    }
}
