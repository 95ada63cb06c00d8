//! What travels between dispatcher and agent on port 7443: request and reply types, limits, error bodies (spec/agent.md 8-9).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::core::types::Secret;

/// Largest request body an agent takes (spec/agent.md 7.2 step 12).
pub const MAX_REQUEST_BODY: u64 = 1_048_576;
/// Most header lines an agent takes (spec/agent.md 7.2 step 11).
pub const MAX_HEADERS: usize = 32;
/// Largest reply a dispatcher takes: two streams of 8 MiB, each byte at worst a six-character escape.
pub const MAX_REPLY_BODY: usize = 2 * 6 * 8 * 1024 * 1024 + 64 * 1024;
/// Most hosts of one dispatch (spec/dispatcher.md 5).
pub const MAX_HOSTS: usize = 500;
/// Port of the agent.
pub const AGENT_PORT: u16 = 7443;
/// Port of the pairing listener.
pub const PAIRING_PORT: u16 = 7444;

/// Whether an agent is addressed by its name or by its stored address.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum LookupBy {
    #[default]
    Hostname,
    Ip,
}

impl LookupBy {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Hostname => "hostname",
            Self::Ip => "ip",
        }
    }
}

/// `POST /run` as a dispatcher sends it (spec/dispatcher.md 7). The agent reads leniently instead, see the agent's handler.
#[derive(Clone, Debug, Serialize)]
pub struct RunRequest {
    pub script: String,
    pub args: Vec<String>,
    pub reqid: String,
    pub username: String,
    pub token: Secret<String>,
    /// Start it and answer at once. Absent otherwise: agents of early releases do not know it.
    #[serde(rename = "async", skip_serializing_if = "std::ops::Not::not")]
    pub asynchronous: bool,
}

/// Reply of `POST /run` after the script ran (spec/agent.md 9.2). Optional fields are ours and absent where they say nothing.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct RunReply {
    pub script: String,
    /// 0..=255, 126 killed by a signal, 127 could not be executed, -1 not run.
    pub exit: i32,
    pub stdout: String,
    pub stderr: String,
    pub reqid: String,
    /// Signal that ended the script.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// True when output beyond the agent's `max_output` was dropped.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub truncated: bool,
    /// True when the agent ended the script at its `run_timeout`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub timed_out: bool,
}

/// Reply of `POST /run` when the script was not run; HTTP 200 all the same (spec/agent.md 19.1 item 4).
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RunRefusal {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub script: Option<String>,
    pub exit: i32,
    pub error: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reqid: Option<String>,
}

/// Reply of `POST /run` to an asynchronous run: `accepted` with 202, `busy` with 409 (spec/agent.md 9.2).
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AsyncReply {
    pub script: String,
    pub status: &'static str,
    pub reqid: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<&'static str>,
}

/// Reply of `POST /ping` (spec/agent.md 9.3).
#[derive(Clone, Debug, Serialize)]
pub struct PingReply {
    pub status: &'static str,
    pub host: String,
    pub version: String,
    /// OpenSSL's notAfter text, or `unknown`.
    pub expiry: String,
    pub staged: bool,
    pub reqid: String,
    /// Serials in the list that dispatchers push (ours).
    pub revocations: usize,
    /// SHA-256 fingerprints of the CAs in force, hex (ours).
    pub cas: Vec<String>,
    /// The agent's time, seconds since 1970 (ours).
    pub time: i64,
}

/// Reply of `GET /capabilities` (spec/agent.md 9.4).
#[derive(Clone, Debug, Serialize)]
pub struct Capabilities {
    pub status: &'static str,
    pub host: String,
    pub version: String,
    pub tags: BTreeMap<String, String>,
    pub scripts: Vec<ScriptCapability>,
    /// What the executor says it can enforce (ours); absent without an executor of ours.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub isolation: Option<serde_json::Value>,
}

/// One allowlisted script as `/capabilities` shows it.
#[derive(Clone, Debug, Serialize)]
pub struct ScriptCapability {
    pub name: String,
    pub path: String,
    pub executable: bool,
    pub profile: String,
    /// The script is pinned to a digest (ours); absent when it is not.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub digest: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schema: Option<serde_json::Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schema_version: Option<serde_json::Value>,
}

/// Error bodies whose text peers and tests match (spec/agent.md 19.1 item 5).
pub mod errors {
    pub const SERIAL_MISMATCH: &str = "serial mismatch";
    pub const CERTIFICATE_REVOKED: &str = "certificate revoked";
    pub const SCRIPT_NOT_PERMITTED: &str = "script not permitted";
    pub const NOT_AUTHORISED: &str = "not authorised";
    pub const INVALID_JSON: &str = "invalid JSON";
    pub const ARGS_NOT_ARRAY: &str = "args must be an array";
    pub const SCRIPT_BUSY: &str = "script already running";
    pub const ASYNC_REQID: &str = "async run requires a valid reqid";
    pub const ASYNC_START: &str = "could not start async job";
    /// Said in full to people, matched by its beginning.
    pub const ASYNC_EXECUTOR: &str =
        "async runs are not yet supported with the executor on this host - run it synchronously";
    pub const CANCEL_REQID: &str = "cancel requires a valid reqid";
    pub const RUN_ENDED: &str = "run already ended";
    pub const FORBIDDEN: &str = "forbidden";
    pub const NOT_FOUND: &str = "not found";
    pub const REQUEST_TOO_LARGE: &str = "request too large";
    pub const TOO_MANY_HEADERS: &str = "too many headers";
    pub const EMPTY_REQUEST: &str = "empty request";
}
