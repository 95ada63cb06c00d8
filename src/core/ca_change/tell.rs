//! Telling agents which CAs to trust, and writing down what they say.

use std::collections::HashMap;

use serde_json::{Value, json};

use super::drive::{Change, ChangeError, Outcome};
use super::state::State;
use crate::core::client::error::ExchangeError;
use crate::core::client::fanout::fan_out;
use crate::core::client::fleet::{self, Fleet, Network, Reply};
use crate::core::logging::Action;
use crate::core::registry::{AgentRecord, Target};
use crate::core::types::AgentName;

impl<N: Network> Change<'_, N> {
    pub(super) async fn tell_of_new(
        &self,
        state: &State,
        outcome: &mut Outcome,
    ) -> Result<(), ChangeError> {
        // Whoever was given up and turns out to know what a CA is (it was updated, or paired again) is taken along.
        let lacking = |a: &AgentRecord| {
            let able = !a.trusted_cas.is_empty() || !state.is_given_up(a);
            able && !a.trusted_cas.contains(&state.new)
        };
        let body = json!({
            "action": "add", "ca": state.new_ca, "endorsement": state.endorsement,
        });
        self.tell(lacking, &body, outcome).await
    }

    /// How many of those that are waited for may still trust it.
    pub(super) async fn tell_to_drop(
        &self,
        doomed: &str,
        state: &mut State,
        outcome: &mut Outcome,
    ) -> Result<usize, ChangeError> {
        let holds = |a: &AgentRecord| {
            let able = a.trusted_cas.len() > 1 || !state.is_given_up(a);
            state.is_pending(a) || able && a.trusted_cas.iter().any(|ca| ca == doomed)
        };
        let body = json!({ "action": "remove", "fingerprint": doomed });
        self.tell(holds, &body, outcome).await?;
        let (mut left, mut news) = (0, false);
        for agent in self.registry().list()?.agents {
            match outcome.told.iter().find(|(name, _)| *name == agent.name) {
                Some((_, Ok(()))) => news |= state.confirm(&agent),
                Some((_, Err(_))) if !state.is_given_up(&agent) => left += 1,
                _ => {}
            }
        }
        if news {
            state.save(&State::path(self.config))?;
        }
        Ok(left)
    }

    /// Posts to those that `concerned` picks, and writes down which CAs each says it trusts now.
    async fn tell(
        &self,
        concerned: impl Fn(&AgentRecord) -> bool,
        body: &Value,
        outcome: &mut Outcome,
    ) -> Result<(), ChangeError> {
        let registry = self.registry();
        let targets: Vec<Target> = registry
            .list()?
            .agents
            .into_iter()
            .filter(|a| concerned(a))
            .map(Target::of)
            .collect();
        if targets.is_empty() {
            return Ok(());
        }
        let names: Vec<AgentName> = targets.iter().map(|t| t.name.clone()).collect();
        let fleet = self.network.open()?;
        let replies = fan_out(
            targets,
            self.config.max_parallel,
            |target| {
                let sent = fleet.post(target, "/ca", body.clone());
                async move { std::sync::Arc::new(sent.await) }
            },
            |_| std::sync::Arc::new(Err(fleet::no_worker())),
            |_, _| {},
        )
        .await;
        let mut now_trusted: HashMap<AgentName, Vec<String>> = HashMap::new();
        for (name, reply) in names.into_iter().zip(replies) {
            let result = cas_of(&reply);
            if let Err(error) = &result {
                Action::new("ca-change-fail")
                    .field("AGENT", &name)
                    .field("ERROR", error)
                    .warning();
            }
            outcome.told.push((
                name.clone(),
                result.as_ref().map(drop).map_err(Clone::clone),
            ));
            if let Ok(cas) = result {
                now_trusted.insert(name, cas);
            }
        }
        registry.update_many(now_trusted.keys().cloned(), |record| {
            if let Some(cas) = now_trusted.get(&record.name) {
                record.trusted_cas.clone_from(cas);
            }
        })?;
        Ok(())
    }
}

fn cas_of(reply: &Reply) -> Result<Vec<String>, String> {
    if let Err(ExchangeError::NotFound { no_run: false, .. }) = reply {
        return Err("runs an older release that cannot change its CA: update it".to_owned());
    }
    let answer = fleet::accepted(reply)?;
    match answer.body.get("cas") {
        Some(Value::Array(cas)) => Ok(cas
            .iter()
            .filter_map(Value::as_str)
            .map(str::to_owned)
            .collect()),
        _ => Err("the answer does not say which CAs it trusts".to_owned()),
    }
}
