//! Telling agents what is revoked: whoever has not confirmed all entries of the journal gets those that it lacks.

use std::collections::{HashMap, HashSet};

use serde_json::json;

use super::{Maintenance, Summary, failed};
use crate::core::client::error::ExchangeError;
use crate::core::client::fanout::fan_out;
use crate::core::client::fleet::{self, Fleet, Network, Reply};
use crate::core::logging::Action;
use crate::core::registry::{Registry, RegistryError, Target};
use crate::core::revocation::Revocations;
use crate::core::types::AgentName;

/// Most serials in one request; an agent takes twice as many.
const CHUNK: usize = 5000;

/// What became of one agent.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Told {
    /// It has confirmed everything.
    Confirmed,
    /// An agent of the original: it has no ears for this.
    Unable,
    Failed(String),
}

impl<N: Network> Maintenance<'_, N> {
    /// Tells every agent (of `only`, if given) what it lacks. Those that lack nothing are not called.
    ///
    /// # Errors
    /// The registry cannot be read or written; who has confirmed by then is told again, which changes nothing there.
    pub async fn push_revocations(
        &self,
        revoked: &Revocations,
        only: Option<&HashSet<AgentName>>,
        fleet: &N::Fleet,
    ) -> Result<Vec<(AgentName, Told)>, RegistryError> {
        let registry = Registry::new(self.config.registry_dir.clone());
        let late: Vec<Target> = registry
            .list()?
            .agents
            .into_iter()
            .filter(|a| a.revocations != revoked.count() && !revoked.concerns(a))
            .filter(|a| only.is_none_or(|only| only.contains(&a.name)))
            .map(Target::of)
            .collect();
        if late.is_empty() {
            return Ok(Vec::new());
        }
        let names: Vec<AgentName> = late.iter().map(|t| t.name.clone()).collect();
        let entries: Vec<String> = revoked.entries().iter().map(|e| e.serial.clone()).collect();
        let told = fan_out(
            late,
            self.config.max_parallel,
            |target| {
                // More than there are: the journal is another one than the agent has confirmed. It gets all of it.
                let known = usize::try_from(target.record.revocations).unwrap_or(0);
                let known = if known > entries.len() { 0 } else { known };
                let lacking = entries.get(known..).unwrap_or_default().to_vec();
                tell(fleet.clone(), target, lacking)
            },
            |_| Told::Failed("no response from worker".to_owned()),
            |_, _| {},
        )
        .await;
        let told: HashMap<AgentName, Told> = names.into_iter().zip(told).collect();
        let confirmed = told
            .iter()
            .filter(|(_, told)| **told == Told::Confirmed)
            .map(|(name, _)| name.clone());
        registry.update_many(confirmed, |record| record.revocations = revoked.count())?;
        for (agent, told) in &told {
            let line = |name| Action::new(name).field("AGENT", agent);
            match told {
                Told::Confirmed => line("revoke-confirmed")
                    .field("COUNT", revoked.count())
                    .info(),
                Told::Unable => {}
                Told::Failed(error) => line("revoke-push-fail").field("ERROR", error).warning(),
            }
        }
        let mut told: Vec<_> = told.into_iter().collect();
        told.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(told)
    }

    pub(super) async fn revoke_everywhere(
        &self,
        only: Option<&HashSet<AgentName>>,
        summary: &mut Summary,
    ) {
        let revoked = match Revocations::load(&self.config.revoked_file) {
            Ok(revoked) if revoked.count() == 0 => return,
            Ok(revoked) => revoked,
            Err(error) => return failed(summary, "revoke", &error),
        };
        let fleet = match self.network.open() {
            Ok(fleet) => fleet,
            Err(error) => return failed(summary, "revoke", &error),
        };
        match self.push_revocations(&revoked, only, &fleet).await {
            Ok(told) => summary.revoked = told,
            Err(error) => failed(summary, "revoke", &error),
        }
    }
}

async fn tell<F: Fleet>(fleet: F, target: Target, lacking: Vec<String>) -> Told {
    for serials in lacking.chunks(CHUNK) {
        let reply = fleet
            .post(target.clone(), "/revoke", json!({ "serials": serials }))
            .await;
        if is_unable(&reply) {
            return Told::Unable;
        }
        if let Err(error) = fleet::accepted(&reply) {
            return Told::Failed(error);
        }
    }
    Told::Confirmed
}

/// Whether an agent does not know a path that agents of ours know.
pub(super) fn is_unable(reply: &Reply) -> bool {
    matches!(reply, Err(ExchangeError::NotFound { no_run: false, .. }))
}
