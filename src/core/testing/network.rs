//! The way to the agents in memory: the handshake in both directions, and what the real client refuses.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};

use serde_json::Value;

use super::host::{Host, IN_USE};
use crate::core::client::error::ExchangeError;
use crate::core::client::exchange::Answer;
use crate::core::client::fleet::{Fleet, Network, Reply};
use crate::core::client::open::{self, ClientError};
use crate::core::client::peer;
use crate::core::config::DispatcherConfig;
use crate::core::keyring::{self, Keyring};
use crate::core::pki::{Certificate, PeerIdentity, keys};
use crate::core::registry::Target;
use crate::core::revocation::Revocations;
use crate::core::tls::TlsFailure;
use crate::core::types::Serial;

/// What the agents and the time of day are, shared by all that is opened.
#[derive(Clone, Debug)]
pub(crate) struct Memory {
    pub(super) config: DispatcherConfig,
    /// By address.
    pub(super) hosts: Arc<Mutex<BTreeMap<String, Host>>>,
    /// Seconds since 1970.
    pub(super) now: Arc<AtomicI64>,
    /// What should never have been asked.
    pub(super) wrongs: Arc<Mutex<Vec<String>>>,
}

/// The agents, seen with what was held when this was opened.
#[derive(Clone, Debug)]
pub(crate) struct Opened {
    memory: Memory,
    held: Arc<[Certificate]>,
    cas: Arc<[Certificate]>,
    revoked: Arc<Revocations>,
}

impl Network for Memory {
    type Fleet = Opened;

    fn open(&self) -> Result<Opened, ClientError> {
        let keyring = Keyring::load(&self.config)?;
        let cas = open::load_cas(&self.config)?;
        let revoked = Revocations::load(&self.config.revoked_file)?;
        let held: Vec<Certificate> = keyring
            .identities()
            .iter()
            .map(|i| i.certificate().clone())
            .filter(|c| {
                let key = keys::spki_sha256(&c.spki);
                revoked.find(&c.serial, &key).is_none()
            })
            .collect();
        if held.is_empty() {
            return Err(ClientError::Revoked);
        }
        Ok(Opened {
            memory: self.clone(),
            held: held.into(),
            cas: cas.into(),
            revoked: Arc::new(revoked),
        })
    }
}

impl Opened {
    fn deliver(&self, by: &Certificate, target: &Target, path: &str, body: &Value) -> Reply {
        let host = || target.address.clone();
        let failed = |failure| {
            Err(ExchangeError::Tls {
                host: host(),
                failure,
            })
        };
        let now = self.memory.now.load(Ordering::SeqCst);
        let mut hosts = self.memory.hosts.lock().unwrap();
        let Some(agent) = hosts.get_mut(&target.address).filter(|h| h.up) else {
            return Err(ExchangeError::Unreachable { host: host() });
        };
        let shown = agent.certificate.clone();
        let ours = |ca: &Certificate| shown.verify_issued_by(ca, now).is_ok();
        if !self.cas.iter().any(ours) {
            return failed(TlsFailure::UnknownIssuer);
        }
        let identity = PeerIdentity::from_certificate(&shown);
        peer::check(&target.record, &identity).map_err(ExchangeError::WrongPeer)?;
        self.revoked
            .check(&target.name, &identity)
            .map_err(ExchangeError::Revoked)?;
        if !agent.believes(by, now) {
            return failed(TlsFailure::RefusedByPeer("unknown CA".to_owned()));
        }
        let wrong = |what: &str| {
            let what = format!("{} {path} {body}: {what}", agent.name);
            self.memory.wrongs.lock().unwrap().push(what);
        };
        let on_disk = Revocations::load(&self.memory.config.revoked_file).unwrap();
        if on_disk.find(&shown.serial, &identity.spki_sha256).is_some() {
            wrong("it is revoked");
        }
        let drops_caller = body["action"] == "remove"
            && body["serial"]
                .as_str()
                .and_then(|s| Serial::parse_hex(s).ok())
                .is_some_and(|s| s == by.serial);
        if drops_caller {
            wrong(IN_USE);
        }
        let body = agent.serve(by, path, body, now)?;
        Ok(Answer {
            status: 200,
            body,
            // As the handshake had it, whatever the request has changed.
            peer: Arc::new(shown),
            presented: by.serial.clone(),
            held: None,
        })
    }
}

impl Fleet for Opened {
    fn post(
        &self,
        target: Target,
        path: &'static str,
        body: Value,
    ) -> impl Future<Output = Reply> + Send + 'static {
        let this = self.clone();
        async move {
            let serials: Vec<&Serial> = this.held.iter().map(|c| &c.serial).collect();
            let mut first = None;
            for at in keyring::order(&serials, &target.record) {
                match this.deliver(&this.held[at], &target, path, &body) {
                    Err(error) if error.is_about_our_identity() => {
                        first.get_or_insert(error);
                    }
                    other => return other,
                }
            }
            Err(first.unwrap())
        }
    }

    fn post_as(
        &self,
        serial: Serial,
        target: Target,
        path: &'static str,
        body: Value,
    ) -> impl Future<Output = Option<Reply>> + Send + 'static {
        let this = self.clone();
        async move {
            let by = this.held.iter().find(|c| c.serial == serial)?;
            Some(this.deliver(by, &target, path, &body))
        }
    }
}
