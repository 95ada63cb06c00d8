//! What the agent tells the supervisor of a run that it starts, and the one line that it hears back. All of it goes over pipes: arguments
//! of a process can be read by everybody on the host.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Key;
use crate::core::exec::runner::RunSpec;
use crate::core::types::{DispatcherId, ReqId, ScriptName, Secret};

/// Longest order: a request body at its limit, every byte of it escaped, twice.
const MAX_ORDER: u64 = 16 * 1024 * 1024;

/// One detached run.
#[derive(Debug, Deserialize, Serialize)]
pub struct Order {
    /// `async_runs_dir`
    pub runs: PathBuf,
    pub owner: DispatcherId,
    pub reqid: ReqId,
    pub script: ScriptName,
    /// `YYYY-MM-DDTHH:MM:SSZ`; also the earliest time that the end can have.
    pub started: String,
    pub path: PathBuf,
    pub args: Vec<String>,
    pub env: BTreeMap<String, String>,
    /// Holds the token of the request.
    pub context: Secret<String>,
    pub stdin_timeout_ms: u64,
    pub run_timeout_ms: u64,
    pub max_output: usize,
}

/// Why there is no order.
#[derive(Debug, thiserror::Error)]
pub enum OrderError {
    #[error("cannot read the order: {0}")]
    Read(#[from] io::Error),
    /// Without the text of the parser: it may quote what is secret.
    #[error("what stands on stdin is no order")]
    NotAnOrder,
}

impl Order {
    /// Reads one order, to the end of the stream.
    ///
    /// # Errors
    /// See [`OrderError`].
    pub fn read(from: impl Read) -> Result<Self, OrderError> {
        let mut bytes = zeroize::Zeroizing::new(Vec::new());
        from.take(MAX_ORDER).read_to_end(&mut bytes)?;
        serde_json::from_slice(&bytes).map_err(|_| OrderError::NotAnOrder)
    }

    pub fn key(&self) -> Key {
        Key {
            owner: self.owner.clone(),
            reqid: self.reqid.clone(),
        }
    }

    /// What the runner needs of it.
    pub fn into_spec(self) -> RunSpec {
        RunSpec {
            path: self.path,
            args: self.args,
            env: self.env,
            context_json: self.context.expose().clone().into_bytes(),
            stdin_timeout: Duration::from_millis(self.stdin_timeout_ms),
            run_timeout: Duration::from_millis(self.run_timeout_ms),
            max_output: self.max_output,
        }
    }
}

/// What the supervisor makes of an order.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Answer {
    /// The record is written, the script is about to start.
    Accepted,
    /// The script runs already.
    Busy,
    /// There is a run of that name already.
    Used,
    /// It cannot be, for this reason.
    Failed(String),
}

impl Answer {
    /// One line, with its end.
    pub fn to_line(&self) -> String {
        match self {
            Self::Accepted => "accepted\n".to_owned(),
            Self::Busy => "busy\n".to_owned(),
            Self::Used => "used\n".to_owned(),
            Self::Failed(why) => format!("failed {}\n", why.replace(['\n', '\r'], " ")),
        }
    }

    /// `None`: the line is not one of these.
    pub fn from_line(line: &str) -> Option<Self> {
        match line.strip_suffix('\n')? {
            "accepted" => Some(Self::Accepted),
            "busy" => Some(Self::Busy),
            "used" => Some(Self::Used),
            other => other
                .strip_prefix("failed ")
                .map(|why| Self::Failed(why.to_owned())),
        }
    }
}
