//! One request to many agents, and what each host ended as.

use std::sync::Arc;
use std::time::Instant;

use hyper::Method;
use serde_json::{Map, Value, json};
use tokio::sync::Semaphore;

use crate::core::client::error::ExchangeError;
use crate::core::client::exchange::{Answer, Client};
use crate::core::client::fanout::fan_out_within;
use crate::core::client::fleet;
use crate::core::registry::Target;
use crate::core::types::ReqId;
use crate::core::wire;

/// One request for all.
#[derive(Clone)]
pub struct Job {
    method: Method,
    path: String,
    body: Option<Vec<u8>>,
}

/// The request is longer than agents take.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("request too large: {0} bytes with its arguments, agents take {max}", max = wire::MAX_REQUEST_BODY)]
pub struct TooLarge(pub usize);

impl Job {
    pub fn post(path: &str, body: Vec<u8>) -> Self {
        Self {
            method: Method::POST,
            path: path.to_owned(),
            body: Some(body),
        }
    }

    pub fn get(path: String) -> Self {
        Self {
            method: Method::GET,
            path,
            body: None,
        }
    }

    /// Runs a script, or has the agents take it over.
    ///
    /// # Errors
    /// No agent would take it.
    pub fn run(request: &wire::RunRequest) -> Result<Self, TooLarge> {
        // Texts and truth values always serialise.
        let body = serde_json::to_vec(request).unwrap_or_default();
        if body.len() as u64 > wire::MAX_REQUEST_BODY {
            return Err(TooLarge(body.len()));
        }
        Ok(Self::post("/run", body))
    }

    pub fn ping(reqid: &ReqId) -> Self {
        Self::about("/ping", reqid)
    }

    pub fn cancel(reqid: &ReqId) -> Self {
        Self::about("/cancel", reqid)
    }

    pub fn result(reqid: &ReqId) -> Self {
        Self::get(format!("/result/{reqid}"))
    }

    pub fn capabilities() -> Self {
        Self::get("/capabilities".to_owned())
    }

    fn about(path: &str, reqid: &ReqId) -> Self {
        let body = json!({"reqid": reqid.as_str()});
        Self::post(path, body.to_string().into_bytes())
    }
}

/// What one host ended as.
#[derive(Clone, Debug)]
pub struct HostResult {
    pub target: Target,
    pub answer: Result<Answer, ExchangeError>,
    /// Whole milliseconds plus `ms`.
    pub rtt: String,
}

/// One exchange with one agent.
pub async fn exchange(client: Client, target: Target, job: Job) -> Arc<HostResult> {
    let start = Instant::now();
    let answer = client
        .exchange(&target, job.method, &job.path, job.body)
        .await;
    Arc::new(HostResult {
        target,
        answer,
        rtt: format!("{}ms", start.elapsed().as_millis()),
    })
}

/// Sends the job to every target and hands each result, with the index of its target, to `on_result` as it comes. Returns the results in the
/// order of the targets.
///
/// `slots` is how many exchanges there may be at a time: of this call, or of all calls that share it. A call waits for one slot at a time, in
/// the order of asking, so a call with few hosts is not kept waiting until one with many is through.
pub async fn ask_all(
    client: &Client,
    targets: Vec<Target>,
    slots: &Arc<Semaphore>,
    job: &Job,
    on_result: &mut (dyn FnMut(usize, &Arc<HostResult>) + Send),
) -> Vec<Arc<HostResult>> {
    let spare = targets.clone();
    fan_out_within(
        targets,
        slots,
        |target| exchange(client.clone(), target, job.clone()),
        |index| HostResult::lost(spare[index].clone()),
        |index, result| on_result(index, result),
    )
    .await
}

impl HostResult {
    /// Of a worker that ended without a word.
    pub fn lost(target: Target) -> Arc<Self> {
        Arc::new(Self {
            target,
            answer: Err(fleet::no_worker()),
            rtt: "0ms".to_owned(),
        })
    }

    /// The name in the registry.
    pub fn host(&self) -> &str {
        self.target.name.as_str()
    }

    /// What the agent calls itself, where that is another name.
    pub fn reported(&self) -> Option<&str> {
        let body = &self.answer.as_ref().ok()?.body;
        let name = text(body, "host");
        (!name.is_empty() && name != self.host()).then_some(name)
    }

    /// The script's exit; a missing or unusable one counts as -1.
    pub fn exit(&self) -> i64 {
        let exit = self.answer.as_ref().ok().and_then(|a| a.body.get("exit"));
        exit.and_then(Value::as_i64).unwrap_or(-1)
    }

    /// The object of this host (spec/api.md 6). What the agent sent passes through, except the fields that only we can know; without an answer
    /// it begins with what `failure` makes of the error. `reqid` goes into an answer.
    pub fn object(
        &self,
        reqid: Option<&str>,
        failure: impl FnOnce(&ExchangeError) -> Map<String, Value>,
    ) -> Map<String, Value> {
        self.clone().into_object(reqid, failure)
    }

    /// The same without a copy of what the agent sent, which may be large.
    pub fn into_object(
        self,
        reqid: Option<&str>,
        failure: impl FnOnce(&ExchangeError) -> Map<String, Value>,
    ) -> Map<String, Value> {
        let reported = self.reported().map(str::to_owned);
        let mut object = match self.answer {
            Ok(answer) => {
                let mut object = answer.body;
                object.remove("host");
                if let Some(name) = reported {
                    object.insert("reported_hostname".to_owned(), name.into());
                }
                if let Some(reqid) = reqid {
                    object.insert("reqid".to_owned(), reqid.into());
                }
                object
            }
            Err(error) => failure(&error),
        };
        object.insert("rtt".to_owned(), self.rtt.into());
        object.insert("host".to_owned(), self.target.name.as_str().into());
        object
    }
}

/// A text of an answer; empty when it is missing or something else.
pub fn text<'a>(fields: &'a Map<String, Value>, name: &str) -> &'a str {
    fields.get(name).and_then(Value::as_str).unwrap_or_default()
}
