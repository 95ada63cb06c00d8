//! Pings, and what follows from an answer: the registry learns what was shown, and certificates that are due are renewed.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use serde_json::{Value, json};

use super::{Maintenance, Summary, failed};
use crate::core::client::fanout::fan_out;
use crate::core::client::fleet::{self, Fleet, Network, Reply};
use crate::core::client::open::{self, ClientError};
use crate::core::config::DispatcherConfig;
use crate::core::keyring;
use crate::core::logging::Action;
use crate::core::pki::ca::CaError;
use crate::core::pki::{Authority, Certificate};
use crate::core::registry::{AgentRecord, PeerCheck, Registry, Target};
use crate::core::renewal::{self, Renewed};
use crate::core::types::{AgentName, ReqId, Serial};

/// One agent that was asked, and what came back.
#[derive(Clone, Debug)]
pub struct Contact {
    pub target: Target,
    pub reply: Reply,
    /// Whole milliseconds plus `ms`.
    pub rtt: String,
}

/// An agent that has answered a ping.
#[derive(Clone, Debug)]
pub struct Seen {
    pub target: Target,
    /// The certificate that it has shown.
    pub shown: Arc<Certificate>,
    /// The serial of ours with which it let us in.
    pub presented: Serial,
    pub body: Arc<serde_json::Map<String, Value>>,
}

impl Contact {
    /// What is known of it now, if it answered as an agent does.
    pub fn seen(self) -> Option<Seen> {
        let answer = fleet::accepted(&self.reply).ok()?;
        Some(Seen {
            shown: answer.peer.clone(),
            presented: answer.presented.clone(),
            body: Arc::new(answer.body.clone()),
            target: self.target,
        })
    }
}

/// The line of one ping (spec/dispatcher.md 20).
pub fn log_ping(target: &Target, reply: &Reply, rtt: &str, reqid: &str) {
    let line = Action::new("ping")
        .field("REQID", reqid)
        .field("RTT", rtt)
        .field("TARGET", target.authority());
    match (reply, fleet::accepted(reply)) {
        (_, Ok(_)) => line.field("RESULT", "ok").info(),
        (Err(error), _) => line.field("ERROR", error).err(),
        (Ok(_), _) => line.field("ERROR", "the answer has no status ok").err(),
    }
}

/// Pings every target, `max_parallel` at a time, however many there are.
///
/// # Errors
/// There is no client.
pub async fn ping_all<N: Network>(
    network: &N,
    config: &DispatcherConfig,
    targets: Vec<Target>,
) -> Result<Vec<Contact>, ClientError> {
    let fleet = network.open()?;
    // Without a name a ping is as good as with one; it is for the log only.
    let reqid = ReqId::generate().map_or_else(|_| "none".to_owned(), |id| id.to_string());
    let spare = targets.clone();
    let contacts = fan_out(
        targets,
        config.max_parallel,
        |target| {
            let start = Instant::now();
            let sent = fleet.post(target.clone(), "/ping", json!({ "reqid": reqid }));
            async move {
                let reply = sent.await;
                Arc::new(Contact {
                    target,
                    reply,
                    rtt: format!("{}ms", start.elapsed().as_millis()),
                })
            }
        },
        |index| {
            Arc::new(Contact {
                target: spare[index].clone(),
                reply: Err(fleet::no_worker()),
                rtt: "0ms".to_owned(),
            })
        },
        |_, contact| log_ping(&contact.target, &contact.reply, &contact.rtt, &reqid),
    )
    .await;
    Ok(contacts.into_iter().map(Arc::unwrap_or_clone).collect())
}

/// One agent's renewal.
struct Due {
    target: Target,
    shown: Arc<Certificate>,
}

impl<N: Network> Maintenance<'_, N> {
    /// Writes down what was shown.
    pub(super) fn learn(&self, seen: &[Seen], summary: &mut Summary) {
        let cas = open::load_cas(self.config).unwrap_or_default();
        let by_name: HashMap<&AgentName, &Seen> =
            seen.iter().map(|s| (&s.target.name, s)).collect();
        let update = |record: &mut AgentRecord| {
            // Without the check of the peer, what answered may be anybody of this CA.
            if record.peer_check == PeerCheck::Off {
                return;
            }
            if let Some(seen) = by_name.get(&record.name) {
                renewal::learn(record, &seen.shown, Some(&seen.body));
                // It was restored from a backup, or our registry was: what it trusts is what has just let us in, and it is told the rest.
                let believed = &seen.target.record.dispatcher_serial;
                if record.dispatcher_serial == *believed
                    && !keyring::names_serial(believed, &seen.presented)
                {
                    record.dispatcher_serial = seen.presented.legacy();
                }
                record.cert_ca = renewal::issuer_of(&seen.shown, &cas, self.clock);
            }
        };
        let names = seen.iter().map(|s| s.target.name.clone());
        let registry = Registry::new(self.config.registry_dir.clone());
        if let Err(error) = registry.update_many(names, update) {
            failed(summary, "registry", &error);
        }
    }

    /// Renews what is due, as far as this user may sign.
    pub(super) async fn renew(&self, seen: &[Seen], summary: &mut Summary) {
        if let Err(error) = self.renew_due(seen, summary).await {
            failed(summary, "renew", &error);
        }
    }

    async fn renew_due(&self, seen: &[Seen], summary: &mut Summary) -> Result<(), CaError> {
        let now = self.clock.now();
        // A ping is asked for often and a renewal due once in a year: the CA's key stays where it is until then.
        let one_ca = open::load_cas(self.config).is_ok_and(|cas| cas.len() == 1);
        if one_ca
            && !seen
                .iter()
                .any(|s| renewal::is_past_half_life(&s.shown, now))
        {
            return Ok(());
        }
        let authority = match Authority::load(&self.config.ca_dir, self.clock.clone()) {
            Ok(authority) => Arc::new(authority),
            // The API's user, or a host that only dispatches: signing is somebody else's. For root there is nobody else.
            Err(error)
                if error.is_absent_or_forbidden() && !rustix::process::geteuid().is_root() =>
            {
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let signing = authority.certificate();
        let ca = signing.fingerprint();
        let registry = Registry::new(self.config.registry_dir.clone());
        let trusts = |name: &AgentName| {
            let record = registry.get(name).ok().flatten();
            record.is_some_and(|r| r.trusted_cas.contains(&ca))
        };
        let due: Vec<Due> = seen
            .iter()
            .filter(|s| {
                let staged = s.body.get("staged").and_then(Value::as_bool) == Some(true);
                let same_ca = s.shown.issuer_der() == signing.subject_der();
                let follows = same_ca || trusts(&s.target.name);
                follows && renewal::is_due(&s.shown, staged, signing, now)
            })
            .map(|s| Due {
                target: s.target.clone(),
                shown: s.shown.clone(),
            })
            .collect();
        if due.is_empty() {
            return Ok(());
        }
        let fleet = match self.network.open() {
            Ok(fleet) => fleet,
            Err(error) => {
                failed(summary, "renew", &error);
                return Ok(());
            }
        };
        let days = self.config.cert_days;
        let names: Vec<AgentName> = due.iter().map(|d| d.target.name.clone()).collect();
        let results = fan_out(
            due,
            self.config.max_parallel,
            |Due { target, shown }| {
                let (fleet, authority) = (fleet.clone(), authority.clone());
                async move {
                    let renewed = renewal::renew(&fleet, &target, &shown, authority, days).await;
                    renewed.map_err(|error| {
                        Action::new("renew")
                            .field("ERROR", &error)
                            .field("TARGET", target.authority())
                            .err();
                        error.to_string()
                    })
                }
            },
            |_| Err("no response from worker".to_owned()),
            |_, _| {},
        )
        .await;
        let mut renewed = HashMap::new();
        for (name, result) in names.into_iter().zip(results) {
            match result {
                Ok(Renewed::Live(_)) => summary.renewed += 1,
                Ok(Renewed::Staged(_)) => summary.staged += 1,
                Err(error) => {
                    summary.renewal_failed.push((name, error));
                    continue;
                }
            }
            if let Ok(renewal) = result {
                renewed.insert(name, renewal);
            }
        }
        let update = |record: &mut AgentRecord| match renewed.get(&record.name) {
            Some(Renewed::Live(certificate)) => {
                renewal::learn(record, certificate, None);
                record.staged_expiry = None;
                record.cert_ca = Some(ca.clone());
            }
            Some(Renewed::Staged(certificate)) => {
                record.staged_expiry = Some(certificate.expiry_text());
            }
            None => {}
        };
        if let Err(error) = registry.update_many(renewed.keys().cloned(), update) {
            failed(summary, "registry", &error);
        }
        Ok(())
    }
}
