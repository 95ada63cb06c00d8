//! Bringing the record of a run up to date by asking the agents that have not told their end yet (spec/dispatcher.md 13).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

use super::ask::{HostResult, Job, ask_all};
use super::{blocking, log_not_recorded};
use crate::core::client::exchange::Client;
use crate::core::logging::Action;
use crate::core::registry::{self, Registry, Target};
use crate::core::runs::{Body, Fetched, Merged, Record, Store};
use crate::core::types::ReqId;

/// Who can be asked about a run.
#[derive(Clone)]
pub struct Agents {
    pub client: Client,
    pub registry: Registry,
    /// See [`ask_all`].
    pub slots: Arc<Semaphore>,
}

/// Targets of the hosts that are pending, and why others have none: one that was unpaired must not keep the others from being asked. Works on
/// files.
pub fn targets(record: &Record, registry: &Registry) -> (Vec<Target>, BTreeMap<String, String>) {
    let mut targets = Vec::new();
    let mut lost = BTreeMap::new();
    let Body::Async(run) = &record.body else {
        return (targets, lost);
    };
    for (host, entry) in run.hosts.iter().filter(|(_, entry)| entry.is_pending()) {
        match registry::resolve(std::slice::from_ref(host), registry, entry.port()) {
            Ok(found) => targets.extend(found),
            Err(error) => {
                let why = format!("{error} - unpaired or renamed since? It cannot be asked");
                lost.insert(host.clone(), why);
            }
        }
    }
    (targets, lost)
}

impl Agents {
    /// [`targets`], off the runtime's threads.
    pub(super) async fn targets(
        &self,
        record: Record,
    ) -> (Record, Vec<Target>, BTreeMap<String, String>) {
        let registry = self.registry.clone();
        blocking(move || {
            let (targets, lost) = targets(&record, &registry);
            (record, targets, lost)
        })
        .await
    }

    /// Sends the job to every target and hands each result to `told`. What has not come within `limit` is given up.
    pub async fn ask(
        &self,
        targets: Vec<Target>,
        job: &Job,
        limit: Option<Duration>,
        told: &mut (dyn FnMut(&HostResult) + Send),
    ) {
        let mut on_result = |_, result: &Arc<HostResult>| told(result);
        let all = ask_all(&self.client, targets, &self.slots, job, &mut on_result);
        match limit {
            Some(limit) => {
                let _ = tokio::time::timeout(limit, all).await;
            }
            None => {
                all.await;
            }
        }
    }

    /// Asks every pending host once and takes in what they say, in the record's file too. A problem with that is in the log already.
    pub async fn refresh(&self, store: &Store, record: Record, limit: Option<Duration>) -> Merged {
        let reqid = record.reqid.clone();
        let (record, targets, lost) = self.targets(record).await;
        let mut fetched: BTreeMap<String, Fetched> = lost
            .into_iter()
            .map(|(host, why)| (host, Fetched::Failed(why)))
            .collect();
        let mut told = |result: &HostResult| {
            let answer = result.answer.as_ref().map(|answer| &answer.body);
            let told = Fetched::of(answer, &reqid);
            log(result, &told, &reqid);
            fetched.insert(result.host().to_owned(), told);
        };
        self.ask(targets, &Job::result(&reqid), limit, &mut told)
            .await;
        let store = store.clone();
        let merged = blocking(move || store.merge(record, &fetched)).await;
        if let Some(error) = &merged.problem {
            log_not_recorded(error, &reqid);
        }
        merged
    }
}

fn log(result: &HostResult, told: &Fetched, reqid: &ReqId) {
    let line = Action::new("result")
        .field("REQID", reqid)
        .field("RTT", &result.rtt)
        .field("TARGET", result.target.authority());
    match told {
        Fetched::Running => line.field("STATUS", "running").info(),
        Fetched::Done(_) => line.field("STATUS", "done").info(),
        Fetched::Failed(error) => line.field("ERROR", error).err(),
        Fetched::Unknown => {}
    }
}
