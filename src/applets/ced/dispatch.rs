//! What the verbs that ask agents share: the fan-out over resolved targets and the object that each host ends as (spec/dispatcher.md 6.1).
//!
//! Order: results come in the order asked for. On a terminal, where a person waits, each host is printed as soon as it answers;
//! otherwise a host is printed as soon as all hosts before it have answered.

use std::io::IsTerminal as _;
use std::sync::Arc;
use std::time::Instant;

use hyper::Method;
use serde_json::{Map, Value, json};

use crate::applets::ced::common;
use crate::applets::{AppError, Context};
use crate::core::client::error::ExchangeError;
use crate::core::client::exchange::{Answer, Client};
use crate::core::client::fanout::fan_out;
use crate::core::config::DispatcherConfig;
use crate::core::registry::Target;

/// What one host ended as.
#[derive(Clone, Debug)]
pub(crate) struct HostResult {
    pub(crate) target: Target,
    pub(crate) answer: Result<Answer, ExchangeError>,
    /// Whole milliseconds plus `ms`.
    pub(crate) rtt: String,
}

/// One request for all.
#[derive(Clone)]
pub(crate) struct Job {
    method: Method,
    path: String,
    body: Option<Vec<u8>>,
}

impl Job {
    pub(crate) fn post(path: &str, body: Vec<u8>) -> Self {
        Self {
            method: Method::POST,
            path: path.to_owned(),
            body: Some(body),
        }
    }

    pub(crate) fn get(path: String) -> Self {
        Self {
            method: Method::GET,
            path,
            body: None,
        }
    }
}

/// Sends the job to every target and calls `show` for each result, in the order described above.
pub(crate) fn dispatch(
    context: &Context,
    config: &DispatcherConfig,
    targets: Vec<Target>,
    job: &Job,
    mut show: impl FnMut(&HostResult),
) -> Result<Vec<Arc<HostResult>>, AppError> {
    let client = common::client(context, config)?;
    let live = std::io::stdout().is_terminal();
    let mut waiting: Vec<Option<Arc<HostResult>>> = targets.iter().map(|_| None).collect();
    let mut next = 0;
    let spare = targets.clone();
    common::block_on(fan_out(
        targets,
        config.max_parallel,
        |target| exchange(client.clone(), target, job.clone()),
        |index| HostResult::lost(spare[index].clone()),
        |index, result| {
            if live {
                show(result);
                return;
            }
            waiting[index] = Some(result.clone());
            while let Some(ready) = waiting.get_mut(next).and_then(Option::take) {
                show(&ready);
                next += 1;
            }
        },
    ))
}

/// One exchange with one agent.
pub(super) async fn exchange(client: Client, target: Target, job: Job) -> Arc<HostResult> {
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

impl HostResult {
    /// Of a worker that ended without a word.
    pub(super) fn lost(target: Target) -> Arc<Self> {
        Arc::new(Self {
            target,
            answer: Err(ExchangeError::Lost("no response from worker".to_owned())),
            rtt: "0ms".to_owned(),
        })
    }

    pub(crate) fn host(&self) -> &str {
        self.target.name.as_str()
    }

    /// The per-host object of `--json`. What the agent sent passes through, except the fields that only we can know.
    pub(crate) fn object(
        &self,
        reqid: &str,
        failure: impl FnOnce(&ExchangeError) -> Value,
    ) -> Map<String, Value> {
        let mut object = match &self.answer {
            Ok(answer) => {
                let mut object = answer.body.clone();
                let reported = object.remove("host");
                if let Some(Value::String(name)) = reported
                    && !name.is_empty()
                    && name != self.host()
                {
                    object.insert("reported_hostname".to_owned(), Value::String(name));
                }
                object.insert("reqid".to_owned(), json!(reqid));
                object
            }
            Err(error) => match failure(error) {
                Value::Object(object) => object,
                other => Map::from_iter([("error".to_owned(), other)]),
            },
        };
        object.insert("rtt".to_owned(), json!(self.rtt));
        object.insert("host".to_owned(), json!(self.host()));
        object
    }

    /// `name` or `name (what the agent calls itself)`.
    pub(crate) fn label(&self) -> String {
        let reported = self
            .answer
            .as_ref()
            .ok()
            .and_then(|a| a.body.get("host"))
            .and_then(Value::as_str)
            .filter(|name| !name.is_empty() && *name != self.host());
        match reported {
            Some(name) => format!("{} ({})", self.host(), name.escape_debug()),
            None => self.host().to_owned(),
        }
    }
}
