//! The record of a run: what is read of a file that another program may have written, and what is written.

use std::collections::BTreeMap;
use std::fmt;

use serde::ser::SerializeMap as _;
use serde::{Serialize, Serializer};
use serde_json::{Map, Value, json};

use crate::core::authhook::Submitter;
use crate::core::types::ReqId;

/// Most text that one record keeps, bytes; every host has an equal share of it. Without a bound a few hosts that talk much could fill the
/// disk of a router, and everybody who lists runs would have to hold it in memory.
const MAX_TEXT: usize = 64 * 1024 * 1024;
/// What every stream may keep, however many hosts there are.
const MIN_STREAM: usize = 4096;
/// Ends a stream that was cut.
const CUT: &str = "\n[output truncated in the record]\n";

/// One run on one or many hosts.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    pub reqid: ReqId,
    /// As it was asked for; not necessarily the name of any script.
    pub script: String,
    pub body: Body,
    /// `submitter` and `owner` of the API, and fields that we do not know: they stay as they are.
    pub more: Map<String, Value>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Body {
    Sync(SyncRun),
    Async(AsyncRun),
}

/// A run that was waited for: it is complete.
#[derive(Clone, Debug, PartialEq)]
pub struct SyncRun {
    pub hosts: Vec<String>,
    /// The objects of `ced run --json`.
    pub results: Vec<Value>,
    /// Seconds since 1970.
    pub completed: i64,
}

/// A run that the agents have taken over.
#[derive(Clone, Debug, PartialEq)]
pub struct AsyncRun {
    /// By name in the registry.
    pub hosts: BTreeMap<String, Entry>,
    /// Seconds since 1970.
    pub created: i64,
}

/// What is known of one host of an asynchronous run.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    pub status: Status,
    /// `exit`, `stdout`, `stderr` when done; `error`; `fetch_error` while pending; ours: `port`, and what our agents add to a result.
    pub fields: Map<String, Value>,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Status {
    /// The agent has taken the run.
    Accepted,
    Running,
    Done,
    /// The agent runs the script already.
    Busy,
    /// The agent did not take the run.
    Error,
    /// The agent has no record of the run (any more).
    Expired,
    /// A word that we do not know: whoever wrote it knows what to do with it.
    Other(String),
}

impl Status {
    fn from_word(word: &str) -> Self {
        match word {
            "accepted" => Self::Accepted,
            "running" => Self::Running,
            "done" => Self::Done,
            "busy" => Self::Busy,
            "error" => Self::Error,
            "expired" => Self::Expired,
            other => Self::Other(other.to_owned()),
        }
    }

    pub fn as_str(&self) -> &str {
        match self {
            Self::Accepted => "accepted",
            Self::Running => "running",
            Self::Done => "done",
            Self::Busy => "busy",
            Self::Error => "error",
            Self::Expired => "expired",
            Self::Other(word) => word,
        }
    }
}

impl Entry {
    pub fn new(status: Status) -> Self {
        Self {
            status,
            fields: Map::new(),
        }
    }

    /// Adds a field.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.fields.insert(name.to_owned(), value.into());
        self
    }

    /// The agent may still have something to tell.
    pub fn is_pending(&self) -> bool {
        matches!(self.status, Status::Accepted | Status::Running)
    }

    /// The script's exit; a missing or unusable one counts as -1.
    pub fn exit(&self) -> i64 {
        exit_of(&self.fields)
    }

    pub fn text(&self, name: &str) -> &str {
        self.fields
            .get(name)
            .and_then(Value::as_str)
            .unwrap_or_default()
    }

    /// Port to ask at, where it is not that of the registry.
    pub fn port(&self) -> Option<u16> {
        let port = self.fields.get("port")?.as_u64()?;
        u16::try_from(port).ok().filter(|&port| port > 0)
    }

    fn outcome(&self) -> Outcome {
        match self.status {
            Status::Accepted | Status::Running => Outcome::Pending,
            Status::Done if self.exit() == 0 => Outcome::Good,
            Status::Expired => Outcome::Expired,
            _ => Outcome::Failed,
        }
    }

    fn parse(value: &Value) -> Result<Self, &'static str> {
        let mut fields = value
            .as_object()
            .cloned()
            .ok_or("the entry of a host is no object")?;
        let status = match fields.remove("status") {
            Some(Value::String(word)) => Status::from_word(&word),
            _ => return Err("the entry of a host has no status"),
        };
        Ok(Self { status, fields })
    }
}

/// `exit` of a result; a missing or unusable one counts as -1.
fn exit_of(fields: &Map<String, Value>) -> i64 {
    fields.get("exit").and_then(Value::as_i64).unwrap_or(-1)
}

enum Outcome {
    Pending,
    Good,
    Failed,
    Expired,
}

/// A run in one word, over all its hosts.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum State {
    /// So many hosts are not known to have ended.
    Running(usize),
    /// All have ended, on so many the script failed or was not run (those included whose result is gone).
    Failed(usize),
    /// All have ended, of so many the result is gone, the others are well.
    Expired(usize),
    /// All is well.
    Done,
}

impl State {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Running(_) => "running",
            Self::Failed(_) => "failed",
            Self::Expired(_) => "expired",
            Self::Done => "done",
        }
    }

    /// The word, with `number of such hosts/all hosts` where not all are meant.
    pub fn told(self, all: usize) -> String {
        match self {
            Self::Done => self.as_str().to_owned(),
            Self::Expired(some) if some == all => self.as_str().to_owned(),
            Self::Running(some) | Self::Failed(some) | Self::Expired(some) => {
                format!("{} {some}/{all}", self.as_str())
            }
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Written out as it stands, without a copy: the results may be large.
impl Serialize for Record {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut object = serializer.serialize_map(None)?;
        let ours = ["reqid", "script", "mode", "complete", "hosts"];
        for (name, value) in &self.more {
            if !ours.contains(&name.as_str()) {
                object.serialize_entry(name, value)?;
            }
        }
        object.serialize_entry("reqid", &self.reqid)?;
        object.serialize_entry("script", &self.script)?;
        object.serialize_entry("mode", self.mode())?;
        object.serialize_entry("complete", &self.is_complete())?;
        match &self.body {
            Body::Sync(run) => {
                object.serialize_entry("hosts", &run.hosts)?;
                object.serialize_entry("results", &run.results)?;
                object.serialize_entry("completed", &run.completed)?;
            }
            Body::Async(run) => {
                object.serialize_entry("hosts", &run.hosts)?;
                object.serialize_entry("pending", &self.pending())?;
                object.serialize_entry("created", &run.created)?;
            }
        }
        object.end()
    }
}

impl Serialize for Entry {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut object = serializer.serialize_map(None)?;
        for (name, value) in self.fields.iter().filter(|(name, _)| *name != "status") {
            object.serialize_entry(name, value)?;
        }
        object.serialize_entry("status", self.status.as_str())?;
        object.end()
    }
}

impl Record {
    pub fn new(reqid: ReqId, script: impl Into<String>, body: Body) -> Self {
        Self {
            reqid,
            script: script.into(),
            body,
            more: Map::new(),
        }
    }

    /// Reads what a file holds.
    ///
    /// # Errors
    /// Why it is no record of this run.
    pub fn parse(reqid: &ReqId, bytes: &[u8]) -> Result<Self, String> {
        let mut more: Map<String, Value> =
            serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
        // Derived from the hosts whenever they are written.
        for name in ["pending", "complete"] {
            more.remove(name);
        }
        if more.remove("reqid").as_ref().and_then(Value::as_str) != Some(reqid.as_str()) {
            return Err("it names another request".to_owned());
        }
        let Some(Value::String(script)) = more.remove("script") else {
            return Err("it names no script".to_owned());
        };
        let mut time = |name| more.remove(name).as_ref().and_then(Value::as_i64);
        let (created, completed) = (time("created"), time("completed"));
        let (mode, hosts) = (more.remove("mode"), more.remove("hosts"));
        let body = match (mode.as_ref().and_then(Value::as_str), hosts) {
            (Some("sync"), Some(Value::Array(hosts))) => Body::Sync(SyncRun {
                hosts: hosts
                    .into_iter()
                    .filter_map(|host| host.as_str().map(str::to_owned))
                    .collect(),
                results: match more.remove("results") {
                    Some(Value::Array(results)) => results,
                    _ => return Err("it has no results".to_owned()),
                },
                completed: completed.unwrap_or(0),
            }),
            (Some("async"), Some(Value::Object(hosts))) => Body::Async(AsyncRun {
                hosts: hosts
                    .into_iter()
                    .map(|(host, entry)| Ok((host, Entry::parse(&entry)?)))
                    .collect::<Result<_, &str>>()?,
                created: created.unwrap_or(0),
            }),
            _ => return Err("it has neither the hosts of a sync nor those of an async run".into()),
        };
        Ok(Self {
            reqid: reqid.clone(),
            script,
            body,
            more,
        })
    }

    /// As it is written, and as `status --json` shows it.
    pub fn to_object(&self) -> Map<String, Value> {
        match serde_json::to_value(self) {
            Ok(Value::Object(object)) => object,
            // A struct with text keys always becomes an object.
            _ => Map::new(),
        }
    }

    /// Who submitted the run by the API, as claimed (spec/api.md 9). `None`: it was the command line, or it cannot be told.
    pub fn submitter(&self) -> Option<Submitter> {
        let submitter @ Value::Object(_) = self.more.get("submitter")? else {
            return None;
        };
        serde_json::from_value(submitter.clone()).ok()
    }

    pub fn set_submitter(&mut self, submitter: &Submitter) {
        let submitter = json!({"username": submitter.username, "source_ip": submitter.source_ip});
        self.more.insert("submitter".to_owned(), submitter);
    }

    /// Who may ask about the run, in whatever way the API writes that down (ours).
    pub fn owner(&self) -> Option<&str> {
        self.more.get("owner").and_then(Value::as_str)
    }

    pub fn set_owner(&mut self, owner: &str) {
        self.more.insert("owner".to_owned(), owner.into());
    }

    pub fn mode(&self) -> &'static str {
        match self.body {
            Body::Sync(_) => "sync",
            Body::Async(_) => "async",
        }
    }

    /// When it was begun, or (sync) when it ended; seconds since 1970.
    pub fn time(&self) -> i64 {
        match &self.body {
            Body::Sync(run) => run.completed,
            Body::Async(run) => run.created,
        }
    }

    /// Hosts whose end is not known, sorted.
    pub fn pending(&self) -> Vec<&str> {
        match &self.body {
            Body::Sync(_) => Vec::new(),
            Body::Async(run) => run
                .hosts
                .iter()
                .filter(|(_, entry)| entry.is_pending())
                .map(|(host, _)| host.as_str())
                .collect(),
        }
    }

    pub fn is_complete(&self) -> bool {
        self.pending().is_empty()
    }

    /// How many hosts the run has.
    pub fn size(&self) -> usize {
        match &self.body {
            Body::Sync(run) => run.results.len(),
            Body::Async(run) => run.hosts.len(),
        }
    }

    pub fn state(&self) -> State {
        let outcomes: Vec<Outcome> = match &self.body {
            Body::Sync(run) => run
                .results
                .iter()
                .map(|result| match result.as_object().map(exit_of) {
                    Some(0) => Outcome::Good,
                    _ => Outcome::Failed,
                })
                .collect(),
            Body::Async(run) => run.hosts.values().map(Entry::outcome).collect(),
        };
        let count = |which: fn(&Outcome) -> bool| outcomes.iter().filter(|o| which(o)).count();
        let pending = count(|o| matches!(o, Outcome::Pending));
        let failed = count(|o| matches!(o, Outcome::Failed));
        let expired = count(|o| matches!(o, Outcome::Expired));
        match (pending, failed, expired) {
            (0, 0, 0) => State::Done,
            (0, 0, _) => State::Expired(expired),
            (0, ..) => State::Failed(failed + expired),
            _ => State::Running(pending),
        }
    }
}

/// Bytes that one stream of a run on so many hosts may keep.
pub(super) fn stream_share(hosts: usize) -> usize {
    (MAX_TEXT / (2 * hosts.max(1))).max(MIN_STREAM)
}

/// Cuts the streams of a result that are longer than their share, and says so where `truncated` is looked for.
pub(super) fn bound(result: &mut Map<String, Value>, share: usize) {
    let mut cut = false;
    for name in ["stdout", "stderr"] {
        if let Some(Value::String(text)) = result.get_mut(name)
            && text.len() > share
        {
            let mut end = share;
            while !text.is_char_boundary(end) {
                end -= 1;
            }
            text.truncate(end);
            text.push_str(CUT);
            cut = true;
        }
    }
    if cut {
        result.insert("truncated".to_owned(), true.into());
    }
}

impl SyncRun {
    /// A run that has just ended. Output beyond what a record keeps is cut.
    pub fn new(hosts: Vec<String>, mut results: Vec<Map<String, Value>>, completed: i64) -> Self {
        let share = stream_share(results.len());
        for result in &mut results {
            bound(result, share);
        }
        Self {
            hosts,
            results: results.into_iter().map(Value::Object).collect(),
            completed,
        }
    }
}
