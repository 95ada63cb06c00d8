//! The record of a run (spec/agent.md 12.3): what is written, and what is read of a file that anybody may have written.

use serde::{Deserialize, Serialize};

use crate::core::exec::{Outcome, lossy};
use crate::core::types::{DispatcherId, ReqId, ScriptName};

/// Which run: a dispatcher's own name for it. Both parts are also file names.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Key {
    pub owner: DispatcherId,
    pub reqid: ReqId,
}

#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    Running,
    Done,
}

/// Who runs the script. Absent in records of the original.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Via {
    /// A supervisor of the agent's own.
    Agent,
    /// The root executor.
    Executor,
}

/// The whole record. Fields that say nothing are absent.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Record {
    pub reqid: ReqId,
    pub script: ScriptName,
    pub owner: DispatcherId,
    pub status: Status,
    /// `YYYY-MM-DDTHH:MM:SSZ`
    pub started: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub finished: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stdout: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stderr: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub via: Option<Via>,
    /// Signal that ended the script.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub timed_out: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub truncated: bool,
    /// The script was ended on request.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub cancelled: bool,
    /// Nobody knows how the run ended, or whether it did.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub lost: bool,
}

impl Record {
    /// A run that begins.
    pub fn running(key: &Key, script: &ScriptName, started: String, via: Via) -> Self {
        Self {
            reqid: key.reqid.clone(),
            script: script.clone(),
            owner: key.owner.clone(),
            status: Status::Running,
            started,
            finished: None,
            exit: None,
            stdout: None,
            stderr: None,
            via: Some(via),
            signal: None,
            timed_out: false,
            truncated: false,
            cancelled: false,
            lost: false,
        }
    }

    /// The same run, ended.
    #[must_use]
    pub fn done(self, outcome: Outcome, finished: String) -> Self {
        Self {
            status: Status::Done,
            finished: Some(finished),
            exit: Some(outcome.exit),
            stdout: Some(lossy(outcome.stdout)),
            stderr: Some(lossy(outcome.stderr)),
            signal: outcome.signal,
            timed_out: outcome.timed_out,
            truncated: outcome.truncated,
            cancelled: outcome.cancelled,
            ..self
        }
    }

    /// The same run, lost; `stdout` and `stderr` are what is known of its output.
    #[must_use]
    pub fn lost(self, stdout: Vec<u8>, mut stderr: Vec<u8>, why: &str, finished: String) -> Self {
        if stderr.last().is_some_and(|&last| last != b'\n') {
            stderr.push(b'\n');
        }
        stderr.extend_from_slice(why.as_bytes());
        stderr.push(b'\n');
        let outcome = Outcome {
            exit: -1,
            stdout,
            stderr,
            ..Outcome::default()
        };
        Self {
            lost: true,
            ..self.done(outcome, finished)
        }
    }
}

/// What the store itself needs of a record; the output in it is passed over, not kept.
#[derive(Clone, Debug, Deserialize, PartialEq)]
pub struct Head {
    pub reqid: ReqId,
    pub script: ScriptName,
    /// As it stands in the file: not yet known to be the one whose directory it lies in.
    #[serde(default)]
    pub owner: String,
    pub status: Status,
    #[serde(default)]
    pub started: String,
    #[serde(default)]
    pub via: Option<Via>,
}

impl Head {
    /// The record of the run while it was going on.
    pub fn to_running(&self, key: &Key) -> Record {
        Record {
            via: self.via,
            ..Record::running(key, &self.script, self.started.clone(), Via::Agent)
        }
    }
}
