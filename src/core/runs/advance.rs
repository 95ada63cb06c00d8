//! What an answer of an agent makes of what was known (the state table of spec/dispatcher.md 13). Pure.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::record::{AsyncRun, Entry, Status, bound, stream_share};
use crate::core::client::error::ExchangeError;
use crate::core::types::ReqId;

/// Fields of a result that are kept beside `exit`, `stdout` and `stderr`; those of our agents.
const KEPT: [&str; 5] = ["signal", "timed_out", "truncated", "cancelled", "lost"];

/// What an agent says about a run.
#[derive(Clone, Debug, PartialEq)]
pub enum Fetched {
    Running,
    /// `exit`, `stdout`, `stderr`, and those of [`KEPT`] that the agent sent.
    Done(Map<String, Value>),
    /// It has no record of the run (any more).
    Unknown,
    /// It could not be asked, or its answer makes no sense.
    Failed(String),
}

impl Fetched {
    /// Judges the answer to `GET /result/<reqid>`.
    pub fn of(answer: Result<&Map<String, Value>, &ExchangeError>, reqid: &ReqId) -> Self {
        let body = match answer {
            Ok(body) => body,
            Err(ExchangeError::NotFound { .. }) => return Self::Unknown,
            Err(error) => return Self::Failed(error.to_string()),
        };
        let text = |name: &str| body.get(name).and_then(Value::as_str);
        if text("reqid").is_some_and(|other| other != reqid.as_str()) {
            return Self::Failed("the agent answered about another request".to_owned());
        }
        match text("status") {
            Some("running") => Self::Running,
            Some("unknown") => Self::Unknown,
            Some("done") => {
                let mut result = Map::new();
                let exit = body.get("exit").and_then(Value::as_i64).unwrap_or(-1);
                result.insert("exit".to_owned(), exit.into());
                for stream in ["stdout", "stderr"] {
                    let said = text(stream).unwrap_or_default();
                    result.insert(stream.to_owned(), said.into());
                }
                for name in KEPT {
                    if let Some(value @ (Value::Bool(_) | Value::Number(_))) = body.get(name) {
                        result.insert(name.to_owned(), value.clone());
                    }
                }
                Self::Done(result)
            }
            _ => Self::Failed(match text("error") {
                Some(error) if !error.is_empty() => error.to_owned(),
                _ => "fetch failed".to_owned(),
            }),
        }
    }
}

/// How much is known. A host only ever goes up.
fn rank(status: &Status) -> u8 {
    match status {
        Status::Accepted => 0,
        Status::Running => 1,
        // Above what waits, below an end that somebody has seen: who asked in time knows more than who came too late.
        Status::Expired => 2,
        Status::Done | Status::Busy | Status::Error | Status::Other(_) => 3,
    }
}

impl Entry {
    /// The entry after an answer. `share`: bytes that a stream may keep.
    #[must_use]
    pub(super) fn advance(&self, fetched: &Fetched, share: usize) -> Self {
        let status = match fetched {
            Fetched::Failed(_) => self.status.clone(),
            Fetched::Running => Status::Running,
            Fetched::Unknown => Status::Expired,
            Fetched::Done(_) => Status::Done,
        };
        if rank(&status) < rank(&self.status) || (!self.is_pending() && status == self.status) {
            return self.clone();
        }
        match fetched {
            Fetched::Failed(error) => self.clone().with("fetch_error", error.as_str()),
            Fetched::Done(_) if rank(&self.status) == rank(&Status::Done) => self.clone(),
            Fetched::Done(result) => {
                let mut fields = result.clone();
                bound(&mut fields, share);
                Self { status, fields }
            }
            Fetched::Running | Fetched::Unknown => {
                let mut fields = self.fields.clone();
                fields.remove("fetch_error");
                Self { status, fields }
            }
        }
    }
}

impl AsyncRun {
    /// Takes in what the agents have said. Hosts that the run does not have are passed over.
    pub fn advance(&mut self, fetched: &BTreeMap<String, Fetched>) {
        let share = stream_share(self.hosts.len());
        for (host, answer) in fetched {
            if let Some(entry) = self.hosts.get_mut(host) {
                *entry = entry.advance(answer, share);
            }
        }
    }

    /// Takes in what became of the submission. Until then every host counted as `accepted`, so that a run whose dispatcher dies in the middle
    /// of it can be found; whoever asked too early may have taken such a host for expired.
    pub fn settle(&mut self, submitted: BTreeMap<String, Entry>) {
        for (host, entry) in submitted {
            let known = self.hosts.get(&host).map(|known| &known.status);
            let further = matches!(known, Some(Status::Done))
                || (known == Some(&Status::Running) && entry.is_pending());
            if !further {
                self.hosts.insert(host, entry);
            }
        }
    }
}
