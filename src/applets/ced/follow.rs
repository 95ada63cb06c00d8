//! Finding the record of a run, and bringing it up to date by asking the agents that have not told their end yet (spec/dispatcher.md 13).

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::json;

use crate::applets::ced::common;
use crate::applets::ced::dispatch::{HostResult, Job, exchange};
use crate::applets::{AppError, Context, Exit};
use crate::core::client::exchange::Client;
use crate::core::client::fanout::fan_out;
use crate::core::config::DispatcherConfig;
use crate::core::config::diagnostics::printable;
use crate::core::logging::Action;
use crate::core::registry::{self, Registry, Target};
use crate::core::runs::{Body, Fetched, Record, Store};
use crate::core::types::ReqId;
use crate::say;

/// The record of the request that was typed.
///
/// # Errors
/// There is none, or it cannot be read; with `as_json` that is said on stdout.
pub(super) fn find(store: &Store, word: &str, as_json: bool) -> Result<Record, AppError> {
    let (error, told) = match ReqId::new(word).map(|reqid| store.load(&reqid)) {
        Ok(Ok(Some(record))) => return Ok(record),
        Ok(Err(error)) => {
            let error = error.to_string();
            (error.clone(), error)
        }
        Ok(Ok(None)) | Err(_) => (
            "not found".to_owned(),
            format!("No such request: {}", printable(word)),
        ),
    };
    if as_json {
        say!("{}", json!({"ok": 0, "error": error, "reqid": word}));
        return Err(AppError::silent(Exit::Failure));
    }
    Err(AppError::failed(told))
}

/// Who can be asked about a run.
pub(super) struct Agents {
    client: Client,
    registry: Registry,
    max_parallel: usize,
}

impl Agents {
    pub(super) fn new(context: &Context, config: &DispatcherConfig) -> Result<Self, AppError> {
        Ok(Self {
            client: common::client(context, config)?,
            registry: Registry::new(config.registry_dir.clone()),
            max_parallel: config.max_parallel,
        })
    }

    /// Targets of the hosts that are pending, and why others have none: one that was unpaired must not keep the others from being asked.
    pub(super) fn targets(&self, record: &Record) -> (Vec<Target>, BTreeMap<String, String>) {
        let mut targets = Vec::new();
        let mut lost = BTreeMap::new();
        let Body::Async(run) = &record.body else {
            return (targets, lost);
        };
        for (host, entry) in run.hosts.iter().filter(|(_, entry)| entry.is_pending()) {
            match registry::resolve(std::slice::from_ref(host), &self.registry, entry.port()) {
                Ok(found) => targets.extend(found),
                Err(error) => {
                    let why = format!("{error} - unpaired or renamed since? It cannot be asked");
                    lost.insert(host.clone(), why);
                }
            }
        }
        (targets, lost)
    }

    /// Sends the job to every target and hands each result to `told`. What has not come within `limit` is given up.
    pub(super) async fn ask(
        &self,
        targets: Vec<Target>,
        job: &Job,
        limit: Option<Duration>,
        mut told: impl FnMut(&HostResult),
    ) {
        let spare = targets.clone();
        let all = fan_out(
            targets,
            self.max_parallel,
            |target| exchange(self.client.clone(), target, job.clone()),
            |index| HostResult::lost(spare[index].clone()),
            |_, result| told(result),
        );
        match limit {
            Some(limit) => {
                let _ = tokio::time::timeout(limit, all).await;
            }
            None => {
                all.await;
            }
        }
    }

    /// Asks every pending host once and takes in what they say.
    pub(super) async fn refresh(
        &self,
        store: &Store,
        record: Record,
        limit: Option<Duration>,
    ) -> Record {
        let reqid = record.reqid.clone();
        let (targets, lost) = self.targets(&record);
        let mut fetched: BTreeMap<String, Fetched> = lost
            .into_iter()
            .map(|(host, why)| (host, Fetched::Failed(why)))
            .collect();
        let job = Job::get(format!("/result/{reqid}"));
        self.ask(targets, &job, limit, |result| {
            let answer = result.answer.as_ref().map(|answer| &answer.body);
            let told = Fetched::of(answer, &reqid);
            log(result, &told, &reqid);
            fetched.insert(result.host().to_owned(), told);
        })
        .await;
        let merged = store.merge(record, &fetched);
        if let Some(error) = merged.problem {
            common::warn_not_recorded(&error, &reqid);
        }
        merged.record
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
