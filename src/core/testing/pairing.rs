//! Pairing in short: the request in the queue, the operator's decision, and what the agent makes of the verdict.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use super::host::{Host, Release};
use super::{World, name};
use crate::core::durable::crash;
use crate::core::pairing::approval::{ApproveError, Approved, Choice, Desk};
use crate::core::pairing::code::PairingCode;
use crate::core::pairing::ids::{Outcome, PairingId};
use crate::core::pairing::message::Approval;
use crate::core::pairing::queue::{Limits, Queue};
use crate::core::pairing::record::Record;
use crate::core::pki::succession::Trusted;
use crate::core::pki::{Certificate, KeyType, PrivateKey, csr};
use crate::core::types::Serial;
use crate::core::wire::LookupBy;

/// An agent that waits for its verdict.
#[derive(Clone)]
pub(crate) struct Asked {
    pub(crate) id: PairingId,
    agent: String,
    address: String,
    key: PrivateKey,
}

impl World {
    pub(crate) fn desk(&self) -> Desk {
        Desk {
            config: self.config().clone(),
            clock: self.clock(),
        }
    }

    /// A new host, or one that is there, asks to be paired with a new key.
    pub(crate) fn ask(&self, agent: &str) -> Asked {
        let known = self
            .hosts()
            .iter()
            .find(|(_, h)| h.name.as_str() == agent)
            .map(|(address, _)| address.clone());
        let next = format!("192.0.2.{}", self.hosts().len() + 1);
        let key = PrivateKey::generate(KeyType::EcdsaP256).unwrap();
        let csr = csr::create_pem(&key, &name(agent)).unwrap();
        let record = Record {
            id: PairingId::generate().unwrap(),
            hostname: name(agent),
            ip: None,
            source: Some(IpAddr::from([127, 0, 0, 1])),
            code: PairingCode::basic(&csr),
            csr,
            nonce: "00".repeat(16),
            lookup_by: None,
            port: None,
            received: self.clock().iso_now(),
            reverse: None,
            binding: None,
            session: None,
        };
        Queue::create(&self.config().pairing_dir)
            .unwrap()
            .enqueue(&record, Limits { depth: 10 }, SystemTime::now())
            .unwrap();
        Asked {
            id: record.id,
            agent: agent.to_owned(),
            address: known.unwrap_or(next),
            key,
        }
    }

    pub(crate) fn decide(&self, asked: &Asked, replace: bool) -> Result<Approved, ApproveError> {
        let choice = Choice {
            lookup_by: Some(LookupBy::Ip),
            ip: Some(asked.address.parse().unwrap()),
            replace,
            ..Choice::default()
        };
        self.desk().approve(&asked.id, &choice)
    }

    /// The listener hands the verdict over, the agent puts it into place and says so.
    pub(crate) fn collect(&self, asked: &Asked) -> std::io::Result<Outcome> {
        let queue = self.desk().queue();
        let verdict = queue.verdict(&asked.id).unwrap().unwrap();
        let approval: Approval = serde_json::from_slice(&verdict.body).unwrap();
        let certificate = |pem: &str| Certificate::from_pem(pem.as_bytes()).unwrap();
        let ca = certificate(&approval.ca);
        let served = std::fs::read(&self.config().cert).unwrap();
        let served = Certificate::from_pem(&served).unwrap();
        let outcome = if served.verify_issued_by(&ca, self.now()).is_ok() {
            crash::effect()?;
            let tagged = self.hosts().get(&asked.address).is_some_and(|h| h.tagged);
            let host = Host {
                name: name(&asked.agent),
                release: Release::Ours,
                up: true,
                leaving: false,
                tagged,
                serials: BTreeSet::from([Serial::parse_hex(&approval.dispatcher_serial).unwrap()]),
                trusted: Trusted::live(vec![ca]),
                key: asked.key.clone(),
                certificate: certificate(&approval.cert),
                staged: None,
                revoked: BTreeSet::new(),
            };
            self.hosts().insert(asked.address.clone(), host);
            crash::effect()?;
            Outcome::Delivered
        } else {
            Outcome::RefusedByAgent
        };
        let concluded = queue.conclude(&asked.id, outcome);
        concluded.map_err(std::io::Error::other)?;
        Ok(outcome)
    }

    /// All of it, for a host that may be registered already.
    pub(crate) fn approve(&self, agent: &str) -> Result<(), ApproveError> {
        let asked = self.ask(agent);
        let approved = self.decide(&asked, true)?;
        let outcome = self.collect(&asked).unwrap();
        let settled = self.desk().settle(&approved, Duration::ZERO);
        assert_eq!(settled, Some(outcome));
        assert_eq!(outcome, Outcome::Delivered, "{agent} refused");
        Ok(())
    }
}
