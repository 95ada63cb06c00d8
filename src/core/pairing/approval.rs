//! The operator's decision (spec/pairing.md 9, 10): what is checked, signed and written, in which order.
//!
//! ```text
//! claim the request > check it > sign > write the verdict (invisible) > registry record > make the verdict visible > wait for the delivery
//! ```
//!
//! Whatever fails before the last-but-one step leaves the request waiting and the registry as it was. When the agent turns out to be gone, or
//! refuses, the registry record is taken back: it would name a certificate that nobody has.

use std::net::IpAddr;
use std::time::{Duration, Instant, SystemTime};

use super::code::{CodeKind, PairingCode};
use super::ids::{Outcome, PairingId};
use super::message::{self, Approval, REJECTED, Refusal};
use super::queue::{Queue, QueueError};
use super::record::Record;
use crate::core::clock::Clock;
use crate::core::config::DispatcherConfig;
use crate::core::durable::DurableError;
use crate::core::logging::Action;
use crate::core::pki::ca::CaError;
use crate::core::pki::cert::CertError;
use crate::core::pki::csr::CsrError;
use crate::core::pki::{Authority, CertRequest, Certificate, keys};
use crate::core::registry::{AgentRecord, Registry, RegistryError, SerialStatus};
use crate::core::revocation::{RevocationError, Revocations};
use crate::core::rotation;
use crate::core::secure_open::{self, OpenError};
use crate::core::types::{self, Serial};
use crate::core::wire::AGENT_PORT;
use crate::core::wire::LookupBy;

/// What the operator says besides the id; everything beats what the agent asked for.
#[derive(Clone, Debug, Default)]
pub struct Choice {
    pub lookup_by: Option<LookupBy>,
    pub ip: Option<IpAddr>,
    pub port: Option<u16>,
    /// The name may belong to a registered agent, whose record is replaced.
    pub replace: bool,
    /// The code that the agent shows; refused when it is another.
    pub code: Option<PairingCode>,
    /// The request as it was shown; refused when the file has another by now.
    pub shown: Option<Record>,
}

/// An approval whose verdict is visible to the listener.
#[derive(Clone, Debug)]
pub struct Approved {
    pub record: Record,
    pub agent: AgentRecord,
    /// What the registry had under this name.
    previous: Option<AgentRecord>,
}

/// Why a request is not approved. It still waits then.
#[derive(Debug, thiserror::Error)]
pub enum ApproveError {
    #[error(transparent)]
    Queue(#[from] QueueError),
    #[error("request '{0}' is not the one that was shown any more: look at it again")]
    NotAsShown(PairingId),
    #[error(
        "the agent shows another code than request '{0}' has: nothing was signed; compare again ('ced list-requests'), and deny it unless you mistyped"
    )]
    OtherCode(PairingId),
    #[error(
        "request '{0}' has a basic code, and pairing_require_bound_code is set: update ctrl-exec on the agent"
    )]
    NotBound(PairingId),
    #[error(
        "the dispatcher's certificate was replaced since request '{0}' came in: start pairing mode anew and let the agent ask again"
    )]
    CertificateChanged(PairingId),
    #[error("the certificate request of '{name}' is refused: {source}")]
    Csr { name: String, source: CsrError },
    #[error("'{name}' asks for a certificate for '{}': refused", .asked.escape_debug())]
    OtherName { name: String, asked: String },
    /// A host that is paired again makes a new key; only whoever has the stolen one asks with it.
    #[error(
        "'{name}' asks with a key that is revoked (with serial {serial}, {time}): a host that is paired again makes a new key, so this is somebody with the old one; deny it"
    )]
    Revoked {
        name: String,
        serial: String,
        time: String,
    },
    #[error(transparent)]
    Revocations(#[from] RevocationError),
    #[error(
        "the dispatcher's certificate is not of the CA that signs here, so agents could not verify it: if the CA is being changed, run 'ced maintain', then approve; else replace the certificate (ced rotate-cert)"
    )]
    OtherCa,
    #[error("{0}\nTo replace it: approve with --replace")]
    Registered(RegistryError),
    #[error("cannot read the dispatcher's certificate: {0}")]
    OpenCertificate(#[from] OpenError),
    #[error("the dispatcher's certificate '{path}': {source}")]
    Certificate { path: String, source: CertError },
    #[error(transparent)]
    Ca(#[from] CaError),
    #[error(transparent)]
    Registry(#[from] RegistryError),
    #[error(transparent)]
    Durable(#[from] DurableError),
}

const MAX_CERTIFICATE: u64 = 256 * 1024;

/// Everything that a decision needs.
#[derive(Clone, Debug)]
pub struct Desk {
    pub config: DispatcherConfig,
    pub clock: Clock,
}

impl Desk {
    pub fn queue(&self) -> Queue {
        Queue::at(&self.config.pairing_dir)
    }

    fn registry(&self) -> Registry {
        Registry::new(self.config.registry_dir.clone())
    }

    /// The certificate that the dispatcher presents to agents, and on the pairing port.
    fn served_certificate(&self) -> Result<Certificate, ApproveError> {
        let path = &self.config.cert;
        let pem = secure_open::read_trusted(path, MAX_CERTIFICATE, secure_open::Trust::Public)?;
        Certificate::from_pem(&pem).map_err(|source| ApproveError::Certificate {
            path: path.display().to_string(),
            source,
        })
    }

    /// Approves a request. Blocks on locks, at most about a minute.
    ///
    /// # Errors
    /// [`ApproveError`]; the request still waits and the registry is as it was.
    pub fn approve(&self, id: &PairingId, choice: &Choice) -> Result<Approved, ApproveError> {
        let queue = self.queue();
        let claim = queue.claim(id, SystemTime::now())?;
        let record = claim.record.clone();
        self.check_record(&record, choice)?;
        let served = self.served_certificate()?;
        if let Some(binding) = &record.binding
            && binding.server_cert != types::sha256(&[&served.der])
        {
            return Err(ApproveError::CertificateChanged(id.clone()));
        }
        let request = check_csr(&record)?;
        let revoked = Revocations::load(&self.config.revoked_file)?;
        if let Some(entry) = revoked.find_key(&keys::spki_sha256(request.spki())) {
            return Err(ApproveError::Revoked {
                name: record.hostname.to_string(),
                serial: entry.serial.clone(),
                time: entry.time.clone(),
            });
        }
        let registry = self.registry();
        let previous = match registry.get(&record.hostname) {
            Err(RegistryError::Damaged { .. }) if choice.replace => None,
            other => other?,
        };
        // Of this very request: an approval that was cut off before anybody could see it.
        let (half, previous) = match previous {
            Some(old) if old.reqid == id.to_string() => (true, None),
            other => (false, other),
        };
        if let Some(old) = previous.as_ref().filter(|_| !choice.replace) {
            return Err(ApproveError::Registered(RegistryError::Exists {
                name: record.hostname.clone(),
                path: registry.path_of(&record.hostname),
                paired: old.paired.clone(),
                address: old.ip.clone(),
            }));
        }

        let authority = Authority::load(&self.config.ca_dir, self.clock.clone())?;
        if served.verify_signed_by(authority.certificate()).is_err() {
            return Err(ApproveError::OtherCa);
        }
        let certificate =
            authority.issue_agent(&request, &record.hostname, self.config.cert_days)?;
        let approval = Approval {
            status: "approved".to_owned(),
            cert: certificate.to_pem(),
            ca: authority.certificate().to_pem(),
            nonce: record.nonce.clone(),
            dispatcher_serial: served.serial.for_agents(),
            dispatcher_id: self.config.dispatcher_id.to_string(),
        };
        let verdict = claim.prepare_approval(&message::to_json(&approval))?;
        let mut agent = self.agent_record(&record, choice, &certificate, &served.serial);
        // It trusts the CA that it gets with its certificate; while two are trusted here, that decides what it can follow to.
        agent.cert_ca = Some(authority.certificate().fingerprint());
        registry
            .register(agent.clone(), choice.replace || half)
            .map_err(|e| match e {
                RegistryError::Exists { .. } => ApproveError::Registered(e),
                other => other.into(),
            })?;
        let approved = Approved {
            record,
            agent,
            previous,
        };
        if let Err(error) = verdict.commit() {
            self.take_back(&approved);
            return Err(error.into());
        }
        Action::new("pair-approve")
            .field("AGENT", &approved.agent.name)
            .field("CODE", approved.record.kind())
            .field("REQID", id)
            .info();
        Ok(approved)
    }

    fn check_record(&self, record: &Record, choice: &Choice) -> Result<(), ApproveError> {
        let id = &record.id;
        if choice.shown.as_ref().is_some_and(|shown| shown != record) {
            return Err(ApproveError::NotAsShown(id.clone()));
        }
        if choice.code.is_some_and(|code| code != record.code) {
            return Err(ApproveError::OtherCode(id.clone()));
        }
        if self.config.pairing_require_bound_code && record.kind() == CodeKind::Basic {
            return Err(ApproveError::NotBound(id.clone()));
        }
        Ok(())
    }

    /// The registry record (spec/pairing.md 9.3), with the certificate pinned.
    fn agent_record(
        &self,
        record: &Record,
        choice: &Choice,
        certificate: &Certificate,
        served: &Serial,
    ) -> AgentRecord {
        let now = self.clock.iso_now();
        let ip = choice.ip.or(record.ip);
        let mut agent = AgentRecord::new(record.hostname.clone());
        agent.ip = ip.map_or_else(String::new, |ip| ip.to_string());
        agent.paired = now.clone();
        agent.expiry = certificate.expiry_text();
        agent.reqid = record.id.to_string();
        agent.lookup_by = choice.lookup_by.or(record.lookup_by).unwrap_or_default();
        agent.port = choice.port.or(record.port).unwrap_or(AGENT_PORT);
        // What a Perl dispatcher on the same registry would write (spec/dispatcher.md 14.5).
        agent.dispatcher_serial = served.legacy();
        // What it has been told is the certificate in use; one that is being announced it has yet to hear of.
        agent.serial_status = if self.is_announcing() {
            SerialStatus::Pending
        } else {
            SerialStatus::Current
        };
        agent.serial_confirmed = now;
        agent.cert_serial = Some(certificate.serial.to_string());
        agent.cert_spki = Some(keys::spki_sha256(&certificate.spki));
        agent
    }

    fn is_announcing(&self) -> bool {
        let state = rotation::State::load(&self.config.rotation.file);
        state.is_ok_and(|s| s.is_some_and(|s| s.next_serial.is_some()))
    }

    /// Puts the registry back to what it was before an approval that came to nothing. Never worse than leaving it: failures are logged by their effect.
    fn take_back(&self, approved: &Approved) {
        let registry = self.registry();
        let name = &approved.agent.name;
        // Somebody may have approved a later request of that name meanwhile.
        let ours = registry.get(name).ok().flatten();
        if ours.is_none_or(|r| r.reqid != approved.agent.reqid) {
            return;
        }
        let result = match &approved.previous {
            Some(old) => registry.register(old.clone(), true),
            None => registry.remove(name).map(drop),
        };
        if let Err(error) = result {
            Action::new("pair-undo-fail")
                .field("AGENT", name)
                .field("ERROR", error)
                .warning();
        }
    }

    /// Waits until the listener has told what became of an approval, at most `patience`. `None`: not known yet.
    ///
    /// An approval that did not reach the agent, or that the agent refused, is taken out of the registry again.
    pub fn settle(&self, approved: &Approved, patience: Duration) -> Option<Outcome> {
        let (queue, id) = (self.queue(), &approved.record.id);
        let deadline = Instant::now() + patience;
        let outcome = loop {
            if let Some(outcome) = queue.outcome(id) {
                break outcome;
            }
            // A listener of the original leaves no note: gone means delivered.
            if !queue.is_open(id) {
                break queue.outcome(id).unwrap_or(Outcome::Delivered);
            }
            if Instant::now() >= deadline {
                return None;
            }
            std::thread::sleep(Duration::from_millis(50));
        };
        if matches!(outcome, Outcome::Undelivered | Outcome::RefusedByAgent) {
            self.take_back(approved);
        }
        Some(outcome)
    }

    /// Denies a request. Returns it when its file could be read.
    ///
    /// # Errors
    /// There is no such request, it is over or decided, or the verdict cannot be written.
    pub fn deny(&self, id: &PairingId) -> Result<Option<Record>, QueueError> {
        let record = self
            .queue()
            .deny(id, &message::to_json(&Refusal::denied(REJECTED)))?;
        let name = record.as_ref().map_or("?", |r| r.hostname.as_str());
        Action::new("pair-deny")
            .field("AGENT", name)
            .field("REQID", id)
            .info();
        Ok(record)
    }
}

/// The request's own checks, and that it asks for its own name only (spec/pairing.md 18.8).
pub fn check_csr(record: &Record) -> Result<CertRequest, ApproveError> {
    let name = record.hostname.to_string();
    match CertRequest::parse_pem(&record.csr) {
        Ok(request) if request.cn == name => Ok(request),
        Ok(request) => Err(ApproveError::OtherName {
            name,
            asked: request.cn,
        }),
        Err(source) => Err(ApproveError::Csr { name, source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::pairing::ids::SessionId;
    use crate::core::pairing::queue::{Limits, Session};
    use crate::core::pairing::record::tests::sample;
    use crate::core::paths::{Paths, Platform};
    use crate::core::pki::{KeyType, PrivateKey, csr};
    use crate::core::types::{AgentName, DispatcherId, legacy_canonical};
    use proptest::prelude::*;

    const NOW: i64 = 1_800_000_000;

    struct Office {
        _dir: tempfile::TempDir,
        desk: Desk,
        session: Session,
    }

    impl Office {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let paths = Paths::new(dir.path(), Platform::Standard);
            let config = DispatcherConfig::defaults(&paths, &paths.dispatcher_toml(), "hq");
            std::fs::create_dir_all(&config.ca_dir).unwrap();
            let clock = Clock::fixed(NOW);
            let authority = Authority::create(
                &config.ca_dir,
                KeyType::EcdsaP256,
                "ctrl-exec CA",
                3650,
                clock.clone(),
            )
            .unwrap();
            let key = PrivateKey::generate(KeyType::EcdsaP256).unwrap();
            let id = DispatcherId::new("hq").unwrap();
            let served = authority.issue_dispatcher(key.public(), &id, 825).unwrap();
            std::fs::write(&config.cert, served.to_pem()).unwrap();
            let session = Queue::create(&config.pairing_dir)
                .unwrap()
                .session()
                .unwrap();
            Self {
                _dir: dir,
                desk: Desk { config, clock },
                session,
            }
        }

        fn request(&self, id: &str, host: &str, cn: &str) -> PairingId {
            let key = PrivateKey::generate(KeyType::EcdsaP256).unwrap();
            let csr = csr::create_pem(&key, &AgentName::new(cn).unwrap()).unwrap();
            self.enqueue(id, host, csr, self.session.id.clone())
        }

        fn enqueue(&self, id: &str, host: &str, csr: String, session: SessionId) -> PairingId {
            let mut record = sample(id, host, false);
            record.code = PairingCode::basic(&csr);
            record.csr = csr;
            record.session = Some(session);
            self.desk
                .queue()
                .enqueue(&record, Limits { depth: 10 }, SystemTime::now())
                .unwrap();
            record.id
        }

        fn approve(&self, id: &PairingId, choice: &Choice) -> Result<Approved, ApproveError> {
            self.desk.approve(id, choice)
        }

        fn registered(&self, name: &str) -> Option<AgentRecord> {
            self.desk
                .registry()
                .get(&AgentName::new(name).unwrap())
                .unwrap()
        }
    }

    #[test]
    fn an_approval_signs_registers_and_becomes_visible() {
        let office = Office::new();
        let id = office.request("0a", "web01", "web01");
        let approved = office.approve(&id, &Choice::default()).unwrap();
        let verdict = office.desk.queue().verdict(&id).unwrap().unwrap();
        let body: Approval = serde_json::from_slice(&verdict.body).unwrap();
        let certificate = Certificate::from_pem(body.cert.as_bytes()).unwrap();
        assert_eq!(certificate.subject_cn.as_deref(), Some("web01"));
        assert_eq!(
            (body.nonce, body.dispatcher_id.as_str()),
            ("00".repeat(16), "hq")
        );
        let agent = office.registered("web01").unwrap();
        assert_eq!(agent, approved.agent);
        assert_eq!(
            (agent.ip.as_str(), agent.port, agent.reqid.as_str()),
            ("192.0.2.7", 7443, "0a")
        );
        assert_eq!(agent.cert_serial, Some(certificate.serial.to_string()));
        assert_eq!(agent.expiry, certificate.expiry_text());
        assert_eq!(
            (agent.serial_status, agent.serial_confirmed.len()),
            (SerialStatus::Current, 20)
        );
        assert_eq!(office.desk.settle(&approved, Duration::ZERO), None);
    }

    #[test]
    fn the_operators_values_beat_the_agents() {
        let office = Office::new();
        let id = office.request("0a", "web01", "web01");
        let choice = Choice {
            lookup_by: Some(LookupBy::Ip),
            ip: message::parse_ip("2001:db8::7"),
            port: Some(7500),
            code: Some(office.desk.queue().listing().unwrap().pending[0].code),
            ..Choice::default()
        };
        let agent = office.approve(&id, &choice).unwrap().agent;
        assert_eq!(
            (agent.lookup_by, agent.ip.as_str(), agent.port),
            (LookupBy::Ip, "2001:db8::7", 7500)
        );
    }

    #[test]
    fn whatever_does_not_fit_signs_nothing_and_leaves_the_request_waiting() {
        let mut office = Office::new();
        let other_cn = office.request("0a", "web01", "ctrl-exec-dispatcher");
        let not_csr = office.enqueue("0b", "web02", "junk".to_owned(), office.session.id.clone());
        let fine = office.request("0c", "web03", "web03");
        let wrong: PairingCode = "000000".parse().unwrap();
        let with_code = Choice {
            code: Some(wrong),
            ..Choice::default()
        };
        let mut shown = office
            .desk
            .queue()
            .listing()
            .unwrap()
            .pending
            .pop()
            .unwrap();
        shown.csr.push('x');
        let with_shown = Choice {
            shown: Some(shown),
            ..Choice::default()
        };
        let plain = Choice::default();

        assert!(matches!(
            office.approve(&other_cn, &plain),
            Err(ApproveError::OtherName { .. })
        ));
        assert!(matches!(
            office.approve(&not_csr, &plain),
            Err(ApproveError::Csr { .. })
        ));
        assert!(matches!(
            office.approve(&fine, &with_code),
            Err(ApproveError::OtherCode(_))
        ));
        assert!(matches!(
            office.approve(&fine, &with_shown),
            Err(ApproveError::NotAsShown(_))
        ));
        office.desk.config.pairing_require_bound_code = true;
        assert!(matches!(
            office.approve(&fine, &plain),
            Err(ApproveError::NotBound(_))
        ));
        office.desk.config.pairing_require_bound_code = false;
        std::fs::rename(
            &office.desk.config.cert,
            office.desk.config.cert.with_extension("away"),
        )
        .unwrap();
        assert!(matches!(
            office.approve(&fine, &plain),
            Err(ApproveError::OpenCertificate(_))
        ));

        assert_eq!(office.desk.queue().listing().unwrap().pending.len(), 3);
        assert!(office.desk.registry().list().unwrap().agents.is_empty());
        for id in [&other_cn, &not_csr, &fine] {
            assert_eq!(office.desk.queue().verdict(id).unwrap(), None);
        }
    }

    #[test]
    fn a_bound_code_of_another_certificate_is_refused() {
        let office = Office::new();
        let mut record = sample("0a", "web01", true);
        record.session = Some(office.session.id.clone());
        office
            .desk
            .queue()
            .enqueue(&record, Limits { depth: 10 }, SystemTime::now())
            .unwrap();
        let result = office.approve(&record.id, &Choice::default());
        assert!(matches!(result, Err(ApproveError::CertificateChanged(_))));
    }

    #[test]
    fn a_registered_name_needs_a_word_and_comes_back_when_the_agent_was_gone() {
        let office = Office::new();
        let first = office.request("0a", "web01", "web01");
        office.approve(&first, &Choice::default()).unwrap();
        office
            .desk
            .queue()
            .conclude(&first, Outcome::Delivered)
            .unwrap();
        let old = office.registered("web01").unwrap();

        let second = office.request("0b", "web01", "web01");
        let error = office.approve(&second, &Choice::default()).unwrap_err();
        assert!(error.to_string().contains("--replace"), "{error}");
        let replace = Choice {
            replace: true,
            ..Choice::default()
        };
        let approved = office.approve(&second, &replace).unwrap();
        assert_eq!(office.registered("web01").unwrap().reqid, "0b");

        office
            .desk
            .queue()
            .conclude(&second, Outcome::Undelivered)
            .unwrap();
        assert_eq!(
            office.desk.settle(&approved, Duration::ZERO),
            Some(Outcome::Undelivered)
        );
        assert_eq!(office.registered("web01"), Some(old));

        let third = office.request("0c", "web09", "web09");
        let approved = office.approve(&third, &Choice::default()).unwrap();
        office
            .desk
            .queue()
            .conclude(&third, Outcome::RefusedByAgent)
            .unwrap();
        office.desk.settle(&approved, Duration::ZERO);
        assert_eq!(office.registered("web09"), None);
    }

    #[test]
    fn a_denial_is_the_text_that_agents_know() {
        let office = Office::new();
        let id = office.request("0a", "web01", "web01");
        assert_eq!(
            office.desk.deny(&id).unwrap().unwrap().hostname.as_str(),
            "web01"
        );
        let verdict = office.desk.queue().verdict(&id).unwrap().unwrap();
        assert_eq!(
            verdict.body,
            br#"{"status":"denied","reason":"rejected by operator"}"#
        );
        let unknown = office
            .desk
            .deny(&PairingId::new("ff").unwrap())
            .unwrap_err();
        assert_eq!(unknown.to_string(), "No pending request 'ff'");
    }

    proptest! {
        /// An agent of the original passes the serial through its function when it stores it and again when it loads it, and the live
        /// certificate's once (spec/agent.md 13.2).
        #[test]
        fn agents_of_the_original_recognise_every_serial_that_we_send(bytes in prop::collection::vec(any::<u8>(), 1..6)) {
            let serial = Serial::from_be_bytes(&bytes);
            prop_assume!(!serial.as_bytes().is_empty());
            let sent = serial.for_agents();
            prop_assert_eq!(legacy_canonical(&legacy_canonical(&sent)), serial.legacy());
            prop_assert_eq!(Serial::parse_hex(&sent), Ok(serial));
        }
    }
}
