//! Looking after a fleet (spec/dispatcher.md 17): ping everybody, renew what is due, rotate, tell late agents what they have missed, withdraw,
//! purge. The same pass for the timer, the operator, and the scheduler of every long-lived program.
//!
//! Each phase stands alone: what fails is logged with its name, and the rest goes on. One pass at a time: who comes second waits a moment,
//! then leaves it to the first.

mod contact;
mod revoke;
mod schedule;

pub use contact::{Contact, Seen, log_ping, ping_all};
pub use revoke::Told;
pub use schedule::Schedule;

use std::collections::HashSet;
use std::time::{Duration, SystemTime};

use crate::core::ca_change::{Change, Outcome};
use crate::core::client::fleet::Network;
use crate::core::client::open;
use crate::core::clock::Clock;
use crate::core::config::DispatcherConfig;
use crate::core::durable::DurableError;
use crate::core::keyring::names_serial;
use crate::core::logging::Action;
use crate::core::registry::{AgentRecord, Registry, SerialStatus, Target};
use crate::core::renewal;
use crate::core::revocation::Revocations;
use crate::core::rotation::{Issuer, Report, Rotation, RotationError, State};
use crate::core::runs::Store;
use crate::core::types::{AgentName, Serial};

/// From when on a CA that ends is told of: agents' certificates may last longer than that.
pub const CA_WARNING_DAYS: i64 = 400;
/// How long a pass waits for another one to end.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a pass has done.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    /// Agents in the registry.
    pub agents: usize,
    /// Agents that were asked.
    pub pinged: usize,
    pub answered: usize,
    /// Agents that show a renewed certificate.
    pub renewed: usize,
    /// Agents that have one and will adopt it at their next start.
    pub staged: usize,
    pub renewal_failed: Vec<(AgentName, String)>,
    pub rotation: Report,
    /// What a change of the CA has come to.
    pub ca: Outcome,
    /// Agents that were told what is revoked.
    pub revoked: Vec<(AgentName, Told)>,
    /// Old records of runs that were removed.
    pub purged: usize,
    /// Phases that failed, with the reason.
    pub failed: Vec<(&'static str, String)>,
}

/// Why there was no pass.
#[derive(Debug, thiserror::Error)]
pub enum MaintenanceError {
    #[error("another maintenance is under way: it does the same work ({0})")]
    Busy(DurableError),
}

/// A pass, or a part of one.
#[derive(Debug)]
pub struct Maintenance<'a, N> {
    pub config: &'a DispatcherConfig,
    pub clock: &'a Clock,
    pub network: &'a N,
}

impl<N: Network> Maintenance<'_, N> {
    /// The whole pass. With `rotate`, a rotation begins when it is due.
    ///
    /// # Errors
    /// Only when another pass is under way; whatever fails inside is in the summary.
    pub async fn pass(&self, rotate: bool) -> Result<Summary, MaintenanceError> {
        let _lock = Rotation::<N>::lock(self.config, PATIENCE).map_err(MaintenanceError::Busy)?;
        let mut summary = Summary::default();
        self.contact_everybody(&mut summary).await;
        let begin = rotate && self.is_rotation_due(&mut summary);
        self.rotate(begin, None, &mut summary).await;
        self.revoke_everywhere(None, &mut summary).await;
        self.look_at_cas(&mut summary);
        summary.purged = self.purge();
        Action::new("maintain")
            .field("AGENTS", summary.agents)
            .field("PINGED", summary.pinged)
            .info();
        Ok(summary)
    }

    /// After somebody has pinged a few agents: writes down what they have shown, renews, and tells them what they have missed. Quietly leaves
    /// out what this user may not do, and everything while a pass is under way.
    pub async fn after_ping(&self, seen: &[Seen]) -> Summary {
        let mut summary = Summary::default();
        let Ok(_lock) = Rotation::<N>::lock(self.config, Duration::ZERO) else {
            return summary;
        };
        self.learn(seen, &mut summary);
        self.renew(seen, &mut summary).await;
        // What it has just said counts, not what was known before: a host restored from a backup is told in this very contact.
        let records: Vec<AgentRecord> = seen
            .iter()
            .map(|s| {
                let mut record = s.target.record.clone();
                renewal::learn(&mut record, &s.shown, Some(&s.body));
                record
            })
            .collect();
        let only = self.late(&records);
        self.catch_up(&only, &mut summary).await;
        summary
    }

    /// After any other contact: tells those that have just answered what they have missed. Costs nothing where nobody has missed anything.
    pub async fn after_contact(&self, answered: impl IntoIterator<Item = &AgentRecord>) -> Summary {
        let mut summary = Summary::default();
        let only = self.late(answered);
        if !only.is_empty()
            && let Ok(_lock) = Rotation::<N>::lock(self.config, Duration::ZERO)
        {
            self.catch_up(&only, &mut summary).await;
        }
        summary
    }

    async fn catch_up(&self, only: &HashSet<AgentName>, summary: &mut Summary) {
        if !only.is_empty() {
            self.revoke_everywhere(Some(only), summary).await;
            self.rotate(false, Some(only.clone()), summary).await;
        }
    }

    /// Who has not confirmed a serial of ours or a revocation, or still has to drop a serial.
    fn late<'r>(&self, records: impl IntoIterator<Item = &'r AgentRecord>) -> HashSet<AgentName> {
        let revoked = Revocations::load(&self.config.revoked_file).map_or(0, |r| r.count());
        let state = State::load(&self.config.rotation.file)
            .ok()
            .flatten()
            .unwrap_or_default();
        let wanted = state.wanted().and_then(|text| Serial::parse_hex(text).ok());
        let now = self.clock.now();
        let withdrawing: HashSet<&AgentName> = state
            .retiring
            .iter()
            .filter(|r| r.is_over(now))
            .flat_map(|r| &r.pending)
            .collect();
        let is_late = |record: &&AgentRecord| {
            // One of an older release has no ears for it, and its rate limit counts every call.
            (record.revocations < revoked && !record.is_older_release())
                || withdrawing.contains(&record.name)
                || wanted.as_ref().is_some_and(|serial| {
                    record.serial_status != SerialStatus::Current
                        || !names_serial(&record.dispatcher_serial, serial)
                })
        };
        records
            .into_iter()
            .filter(is_late)
            .map(|record| record.name.clone())
            .collect()
    }

    async fn contact_everybody(&self, summary: &mut Summary) {
        let registry = Registry::new(self.config.registry_dir.clone());
        let listing = match registry.list() {
            Ok(listing) => listing,
            Err(error) => return failed(summary, "ping", &error),
        };
        for problem in &listing.unreadable {
            failed(summary, "ping", problem);
        }
        let targets: Vec<Target> = listing.agents.into_iter().map(Target::of).collect();
        summary.agents = targets.len() + listing.unreadable.len();
        match ping_all(self.network, self.config, targets).await {
            Ok(contacts) => {
                summary.pinged = contacts.len();
                let seen: Vec<Seen> = contacts.into_iter().filter_map(Contact::seen).collect();
                summary.answered = seen.len();
                self.learn(&seen, summary);
                self.change_ca(summary).await;
                self.renew(&seen, summary).await;
            }
            Err(error) => failed(summary, "ping", &error),
        }
    }

    /// Before the renewals: who has just heard of a new CA gets a certificate of it in the same pass.
    async fn change_ca(&self, summary: &mut Summary) {
        let change = Change {
            config: self.config,
            clock: self.clock,
            network: self.network,
        };
        match change.advance().await {
            Ok(outcome) => summary.ca = outcome,
            Err(error) => failed(summary, "ca", &error),
        }
    }

    /// A CA that ends takes the whole fleet with it, and nobody looks at a date ten years away.
    fn look_at_cas(&self, summary: &mut Summary) {
        let now = self.clock.now();
        for ca in open::load_cas(self.config).unwrap_or_default() {
            let left = (ca.not_after - now) / 86_400;
            if left < CA_WARNING_DAYS {
                let text = format!(
                    "the CA certificate {} ends at {} ({left} days left): replace it with 'ced rotate-ca start'",
                    ca.fingerprint(),
                    ca.expiry_text()
                );
                failed(summary, "ca", &text);
            }
        }
    }

    /// Old records of runs. Ages of files are told by the clock of the kernel, whatever ours says.
    fn purge(&self) -> usize {
        let store = Store::new(self.config.runs_dir.clone(), self.config.run_retention);
        store.purge(SystemTime::now())
    }

    fn rotation(&self) -> Rotation<'_, N> {
        Rotation {
            config: self.config,
            clock: self.clock,
            network: self.network,
            issuer: Issuer::Present,
        }
    }

    fn is_rotation_due(&self, summary: &mut Summary) -> bool {
        match self.rotation().days_left() {
            Ok((left, threshold)) => {
                Action::new("cert-check")
                    .field("DAYS_LEFT", left)
                    .field("THRESHOLD", threshold)
                    .info();
                let due = left <= threshold;
                if due {
                    Action::new("cert-renewal-start")
                        .field("DAYS_LEFT", left)
                        .info();
                }
                due
            }
            Err(error) => {
                failed(summary, "rotate", &error);
                false
            }
        }
    }

    async fn rotate(&self, begin: bool, only: Option<HashSet<AgentName>>, summary: &mut Summary) {
        match self.rotation().advance_for(begin, only).await {
            Ok(report) => summary.rotation = report,
            // A host that is not set up has nothing to rotate; `is_rotation_due` has said so.
            Err(RotationError::NoCertificate(_)) => {}
            Err(error) => {
                if begin {
                    Action::new("cert-rotation-fail")
                        .field("ERROR", &error)
                        .err();
                }
                failed(summary, "rotate", &error);
            }
        }
    }
}

fn failed(summary: &mut Summary, phase: &'static str, error: &dyn std::fmt::Display) {
    Action::new("maintain")
        .field("ERROR", error)
        .field("PHASE", phase)
        .err();
    summary.failed.push((phase, error.to_string()));
}

#[cfg(test)]
mod tests;
