//! Asynchronous runs: the agents take the script over and answer at once (spec/dispatcher.md 10.2).
//!
//! The record is written before anything is sent, with every host as accepted, and settled afterwards: a dispatcher that dies half-way must not
//! leave runs behind that nobody can find.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Map, Value};

use super::ask::{HostResult, text};
use super::objects::fields;
use super::{keep, log_not_recorded};
use crate::core::client::error::ExchangeError;
use crate::core::client::exchange::Answer;
use crate::core::logging::Action;
use crate::core::registry::{self, Registry, Target};
use crate::core::runs::{AsyncRun, Body, Entry, Record, RunError, Status, Store};
use crate::core::types::{AgentName, ReqId};
use crate::core::wire::errors;

/// One host under two ports.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("'{0}' is named with two ports: an asynchronous run has one result for each host")]
pub struct TwoPorts(pub AgentName);

/// A record has one entry for each host, so nobody is asked twice.
///
/// # Errors
/// It is not clear at which port a host is to be asked.
pub fn once_each(targets: Vec<Target>) -> Result<Vec<Target>, TwoPorts> {
    let mut chosen: Vec<Target> = Vec::with_capacity(targets.len());
    for target in targets {
        match chosen.iter().find(|t| t.name == target.name) {
            None => chosen.push(target),
            Some(same) if same.port == target.port => {}
            Some(_) => return Err(TwoPorts(target.name)),
        }
    }
    Ok(chosen)
}

/// What became of one submission.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// `Accepted`, `Busy` or `Error`.
    pub status: Status,
    /// Empty when accepted.
    pub error: String,
    /// The agent may have taken the run although its answer did not arrive.
    pub unknown: bool,
}

/// Only 202 means that the agent has the run.
pub fn judge(answer: &Result<Answer, ExchangeError>) -> Verdict {
    let (status, error) = match answer {
        Ok(answer) if answer.status == 202 => (Status::Accepted, String::new()),
        Ok(answer) => {
            let exit = answer.body.get("exit").and_then(Value::as_i64);
            let error = match (text(&answer.body, "error"), exit) {
                ("", Some(exit)) if exit >= 0 => format!(
                    "the agent does not know asynchronous runs: it ran the script at once (exit {exit})"
                ),
                ("", _) => "the agent did not say that it has accepted the run".to_owned(),
                (error, _) => error.to_owned(),
            };
            (Status::Error, error)
        }
        Err(ExchangeError::Busy(words)) if words.is_empty() => {
            (Status::Busy, errors::SCRIPT_BUSY.to_owned())
        }
        Err(ExchangeError::Busy(words)) => (Status::Busy, words.clone()),
        Err(error) => (Status::Error, error.to_string()),
    };
    let unknown = matches!(
        answer,
        Err(ExchangeError::Closed
            | ExchangeError::Lost(_)
            | ExchangeError::ReadTimeout(_)
            | ExchangeError::NoRoom)
    );
    Verdict {
        status,
        error,
        unknown,
    }
}

/// The object of one host (spec/api.md 6.3).
pub fn submit_object(
    result: &HostResult,
    verdict: &Verdict,
    script: &str,
    reqid: &ReqId,
) -> Map<String, Value> {
    let mut object = result.object(Some(reqid.as_str()), |_| {
        fields([("script", script.into())])
    });
    object.insert("status".to_owned(), verdict.status.as_str().into());
    object.insert("reqid".to_owned(), reqid.as_str().into());
    if !verdict.error.is_empty() {
        object.insert("error".to_owned(), verdict.error.as_str().into());
    }
    object
}

/// The line of one host in the log (spec/operations.md 11.2).
pub fn log_submit(result: &HostResult, verdict: &Verdict, script: &str, reqid: &ReqId) {
    let line = Action::new("run-async")
        .field("REQID", reqid)
        .field("RTT", &result.rtt)
        .field("SCRIPT", script)
        .field("TARGET", result.target.authority());
    match verdict.status {
        Status::Accepted => line.field("STATUS", "accepted").info(),
        Status::Busy => line.field("STATUS", "busy").warning(),
        _ => line.field("ERROR", &verdict.error).err(),
    }
}

/// A submission under way: [`new`](Self::new), [`record`](Self::record), send to [`targets`](Self::targets), then [`settle`](Self::settle)
/// or [`abandon`](Self::abandon). All four work on files.
#[derive(Debug)]
pub struct Submission {
    /// May be added to before it is recorded: who submitted it.
    pub record: Record,
    targets: Vec<Target>,
    /// Ports of hosts that are not addressed at the one of the registry: whoever asks for the result later must know them.
    ports: BTreeMap<String, u16>,
    recorded: bool,
}

/// What became of a submission on all hosts.
#[derive(Debug)]
pub struct Settled {
    /// In the order of the results.
    pub objects: Vec<Map<String, Value>>,
    /// Whether at least one host has the run.
    pub accepted: bool,
    /// The record is not up to date; that is in the log already. Nothing, when it was not there to begin with.
    pub problem: Option<RunError>,
}

impl Submission {
    /// `targets` must be those of [`once_each`]; `created` is the time of day, seconds since 1970.
    pub fn new(
        registry: &Registry,
        targets: Vec<Target>,
        reqid: ReqId,
        script: &str,
        created: i64,
    ) -> Self {
        let ports = own_ports(registry, &targets);
        let hosts = targets
            .iter()
            .map(|t| (t.name.to_string(), entry(&ports, t, Status::Accepted)))
            .collect();
        let run = AsyncRun { hosts, created };
        Self {
            record: Record::new(reqid, script, Body::Async(run)),
            targets,
            ports,
            recorded: false,
        }
    }

    pub fn targets(&self) -> &[Target] {
        &self.targets
    }

    /// Writes the record.
    ///
    /// # Errors
    /// It cannot be written; that is in the log already. The run may go on, but nobody can ask about it later.
    pub fn record(&mut self, store: &Store) -> Result<(), RunError> {
        keep(store, &self.record)?;
        self.recorded = true;
        Ok(())
    }

    /// Writes down what the hosts have answered.
    pub fn settle(self, store: &Store, results: &[Arc<HostResult>]) -> Settled {
        let mut submitted = BTreeMap::new();
        let mut accepted = false;
        let mut objects = Vec::with_capacity(results.len());
        for result in results {
            let verdict = judge(&result.answer);
            accepted |= verdict.status == Status::Accepted;
            objects.push(submit_object(
                result,
                &verdict,
                &self.record.script,
                &self.record.reqid,
            ));
            // What may run is asked after: a host that does not know of it says so.
            let (stored, key) = if verdict.unknown {
                (Status::Accepted, "fetch_error")
            } else {
                (verdict.status, "error")
            };
            let mut entry = entry(&self.ports, &result.target, stored);
            if !verdict.error.is_empty() {
                entry = entry.with(key, verdict.error);
            }
            submitted.insert(result.host().to_owned(), entry);
        }
        Settled {
            objects,
            accepted,
            problem: self.write(store, submitted),
        }
    }

    /// Writes down that nothing was sent to any host, and why.
    pub fn abandon(self, store: &Store, why: &str) {
        let unsent = self.targets.iter().map(|t| {
            let entry = entry(&self.ports, t, Status::Error).with("error", why);
            (t.name.to_string(), entry)
        });
        let unsent = unsent.collect();
        self.write(store, unsent);
    }

    fn write(self, store: &Store, submitted: BTreeMap<String, Entry>) -> Option<RunError> {
        if !self.recorded {
            return None;
        }
        let reqid = self.record.reqid.clone();
        let problem = store.settle(self.record, submitted).problem;
        if let Some(error) = &problem {
            log_not_recorded(error, &reqid);
        }
        problem
    }
}

fn entry(ports: &BTreeMap<String, u16>, target: &Target, status: Status) -> Entry {
    let entry = Entry::new(status);
    match ports.get(target.name.as_str()) {
        Some(&port) => entry.with("port", port),
        None => entry,
    }
}

fn own_ports(registry: &Registry, targets: &[Target]) -> BTreeMap<String, u16> {
    targets
        .iter()
        .filter(|target| {
            let usual = registry::resolve(&[target.name.to_string()], registry, None);
            usual.is_ok_and(|usual| usual.iter().any(|u| u.port != target.port))
        })
        .map(|target| (target.name.to_string(), target.port))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn verdict(answer: Result<(u16, Value), ExchangeError>) -> (String, String) {
        let answer = answer.map(|(status, body)| {
            Answer::of_somebody(status, body.as_object().cloned().unwrap_or_default())
        });
        let verdict = judge(&answer);
        (verdict.status.as_str().to_owned(), verdict.error)
    }

    #[test]
    fn only_202_is_accepted() {
        let said = |status: &str, error: &str| (status.to_owned(), error.to_owned());
        assert_eq!(
            verdict(Ok((202, json!({"status": "accepted"})))),
            said("accepted", "")
        );
        assert_eq!(
            verdict(Ok((
                200,
                json!({"exit": -1, "error": "script not permitted"})
            ))),
            said("error", "script not permitted")
        );
        let (status, error) = verdict(Ok((200, json!({"exit": 0, "stdout": "x"}))));
        assert!(status == "error" && error.contains("ran the script at once (exit 0)"));
        assert_eq!(verdict(Ok((200, json!({"status": "accepted"})))).0, "error");
        assert_eq!(
            verdict(Err(ExchangeError::Busy(String::new()))),
            said("busy", "script already running")
        );
        assert_eq!(
            verdict(Err(ExchangeError::Busy("mine".into()))),
            said("busy", "mine")
        );
        assert_eq!(verdict(Err(ExchangeError::Closed)).0, "error");
    }
}
