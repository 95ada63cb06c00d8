//! `POST /run` (spec/api.md 5.4): waited for, told piece by piece, or handed to the agents.
//!
//! ```text
//! fields 400 -> gate 2 403 -> registry 404 -> locks 409 -> task { agents -> record -> answer }
//! ```
//! The locks are those of the command line, really held, and only of hosts that are registered: so unknown hosts are told before conflicts.

use std::path::Path;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use axum::response::Response;
use hyper::StatusCode;
use serde_json::{Map, Value, json};
use tokio::sync::OwnedSemaphorePermit;

use super::common;
use crate::applets::api::call::{Call, Wanted};
use crate::applets::api::fields::RunRequest;
use crate::applets::api::reply;
use crate::applets::api::stream::{self, Sender};
use crate::core::authhook::{HookAction, HookContext, Submitter};
use crate::core::client::budget::Held;
use crate::core::client::exchange::Client;
use crate::core::dispatch::submit::{self, Submission};
use crate::core::dispatch::{self, HostResult, Job, ask_all, blocking, objects};
use crate::core::locks::{self, LockError, Pair};
use crate::core::logging::Action;
use crate::core::metrics::RunMode;
use crate::core::registry::Target;
use crate::core::runs::{Body, Record, SyncRun};
use crate::core::task;
use crate::core::types::ReqId;
use crate::core::wire;

pub(in crate::applets::api) async fn run(call: Call) -> Response {
    answer(call).await.unwrap_or_else(|refusal| refusal)
}

/// A run that nothing stands against any more.
struct Run {
    call: Call,
    client: Client,
    reqid: ReqId,
    script: String,
    targets: Vec<Target>,
    job: Job,
    submitter: Submitter,
    owner: Option<String>,
    /// Freed when the run has ended.
    locks: Option<locks::Held>,
    _place: OwnedSemaphorePermit,
}

async fn answer(call: Call) -> Result<Response, Response> {
    let request =
        RunRequest::read(&call.object()?).map_err(|detail| reply::bad_request(&detail))?;
    let (hosts, script, args) = (request.hosts.0, request.script.0, request.args.0);
    let asked = HookContext {
        script: script.clone(),
        hosts: hosts.clone(),
        args: args.clone(),
        username: request.username.clone(),
        token: request.token.clone(),
        ..call.asks(HookAction::Run)
    };
    call.authorise(&asked).await?;
    let asynchronous = request.background.0;
    let reqid = common::new_reqid()?;
    let owner = call.owner(&request.token);
    let submitter = Submitter {
        username: request.username.clone(),
        source_ip: call.peer.source_ip(),
    };
    let job = Job::run(&wire::RunRequest {
        script: script.clone(),
        args,
        reqid: reqid.to_string(),
        username: request.username,
        token: request.token,
        asynchronous,
    })
    .map_err(|_| {
        let detail = format!("body exceeds {} bytes", wire::MAX_REQUEST_BODY);
        reply::error(StatusCode::PAYLOAD_TOO_LARGE, "payload too large", &detail)
    });
    let (api, snapshot, locked) = (call.api.clone(), call.snapshot.clone(), script.clone());
    // Names and locks in one visit to the disk: each costs two switches between threads.
    let ready = blocking(move || {
        let registry = common::registry(&snapshot.config);
        let mut targets = common::resolve_now(&hosts, &registry)?;
        if asynchronous {
            targets = submit::once_each(targets)
                .map_err(|twice| reply::bad_request(&twice.to_string()))?;
        }
        let job = job?;
        let place = api.begin_work().ok_or_else(reply::overloaded)?;
        let held = lock(&snapshot.config.locks_dir, &targets, &locked)?;
        Ok::<_, Response>((targets, job, place, held))
    });
    let (targets, job, place, held) = ready.await?;
    let client = call.api.client().await;
    let names: Vec<&str> = targets.iter().map(|t| t.name.as_str()).collect();
    Action::new("dispatch")
        .field("HOSTS", names.join(","))
        .field("MODE", if asynchronous { "async" } else { "sync" })
        .field("REQID", &reqid)
        .field("SCRIPT", &script)
        .info();
    let wanted = call.wanted;
    let run = Run {
        call,
        client,
        reqid,
        script,
        targets,
        job,
        submitter,
        owner,
        locks: Some(held),
        _place: place,
    };
    Ok(match (asynchronous, wanted) {
        (true, _) => common::see_through(run.submit()).await,
        (false, Wanted::Json) => common::see_through(run.wait(None)).await,
        (false, wanted) => {
            let (sender, response) = stream::open(wanted);
            task::spawn(run.wait(Some(sender)));
            response
        }
    })
}

fn lock(dir: &Path, targets: &[Target], script: &str) -> Result<locks::Held, Response> {
    match locks::acquire(dir, targets.iter().map(|t| t.name.as_str()), script) {
        Ok(held) => Ok(held),
        Err(LockError::Held(conflicts)) => {
            let words: Vec<String> = conflicts.iter().map(Pair::to_string).collect();
            let body = json!({"ok": false, "error": "locked", "code": 4, "conflicts": words});
            Err(reply::json(StatusCode::CONFLICT, &body))
        }
        Err(error) => {
            Action::new("lock-fail").field("ERROR", error).err();
            Err(common::server_error("the locks cannot be taken"))
        }
    }
}

impl Run {
    /// Runs the script, tells results as they come if somebody wants that, and keeps the record before it answers.
    async fn wait(mut self, events: Option<Sender>) -> Response {
        let began = Instant::now();
        let api = &self.call.api;
        if let Some(events) = &events {
            let hosts: Vec<&str> = self.targets.iter().map(|t| t.name.as_str()).collect();
            events.send(
                "started",
                json!({"reqid": self.reqid.as_str(), "script": self.script, "hosts": hosts}),
            );
        }
        let mut told = |_: usize, result: &Arc<HostResult>| {
            objects::log_run(result, &self.script, &self.reqid);
            common::count(&api.metrics, &self.script, result);
            if let Some(events) = &events {
                let object = objects::run_object(result, &self.script, &self.reqid);
                let held = result.answer.as_ref().ok().and_then(|a| a.held.clone());
                events.send_holding("result", Value::Object(object), held);
            }
        };
        let targets = self.targets.clone();
        let results = ask_all(&self.client, targets, &api.exchanges, &self.job, &mut told).await;
        api.answered(&results);
        api.metrics.ran(RunMode::Sync, began.elapsed());
        // What the answers have reserved is held until the client has taken ours.
        let held: Vec<Held> = results
            .iter()
            .filter_map(|result| result.answer.as_ref().ok()?.held.clone())
            .collect();
        let results: Vec<Map<String, Value>> = results
            .into_iter()
            .map(Arc::unwrap_or_clone)
            .map(|result| objects::into_run_object(result, &self.script, &self.reqid))
            .collect();
        let body = json!({"ok": true, "reqid": self.reqid.as_str()});
        let answer = match &events {
            None => with_results(&body, &results),
            Some(_) => Vec::new(),
        };
        let names = self.targets.iter().map(|t| t.name.to_string()).collect();
        let completed = self.call.snapshot.clock.now();
        let run = SyncRun::new(names, results, completed);
        let mut record = Record::new(self.reqid.clone(), self.script.as_str(), Body::Sync(run));
        self.sign(&mut record);
        let store = self.call.snapshot.store();
        let purge = api.purge_is_due();
        let kept = blocking(move || {
            if purge {
                // Ages of files are told by the clock of the kernel, whatever ours says.
                store.purge(SystemTime::now());
            }
            dispatch::keep(&store, &record)
        })
        .await;
        // Whoever is told of the end may run it again.
        drop(self.locks.take());
        if let Some(events) = &events {
            let mut body = body;
            body["recorded"] = kept.is_ok().into();
            events.send("end", body);
        }
        reply::holding(StatusCode::OK, answer, held)
    }

    /// Hands the run to the agents.
    async fn submit(self) -> Response {
        let began = Instant::now();
        let api = &self.call.api;
        let config = &self.call.snapshot.config;
        let (registry, store) = (common::registry(config), self.call.snapshot.store());
        let (reqid, script, targets) = (
            self.reqid.clone(),
            self.script.clone(),
            self.targets.clone(),
        );
        let created = self.call.snapshot.clock.now();
        let purge = api.purge_is_due();
        let mut submission =
            blocking(move || Submission::new(&registry, targets, reqid, &script, created)).await;
        self.sign(&mut submission.record);
        let writing = store.clone();
        let submission = blocking(move || {
            if purge {
                writing.purge(SystemTime::now());
            }
            // What fails is in the log; the run goes on.
            let _ = submission.record(&writing);
            submission
        })
        .await;
        let mut told = |_: usize, result: &Arc<HostResult>| {
            let verdict = submit::judge(&result.answer);
            submit::log_submit(result, &verdict, &self.script, &self.reqid);
            common::count(&api.metrics, &self.script, result);
        };
        let targets = submission.targets().to_vec();
        let results = ask_all(&self.client, targets, &api.exchanges, &self.job, &mut told).await;
        api.answered(&results);
        api.metrics.ran(RunMode::Async, began.elapsed());
        let settled = blocking(move || submission.settle(&store, &results)).await;
        let body = json!({"ok": true, "async": true, "reqid": self.reqid.as_str()});
        reply::stored(StatusCode::ACCEPTED, with_results(&body, &settled.objects))
    }

    fn sign(&self, record: &mut Record) {
        record.set_submitter(&self.submitter);
        if let Some(owner) = &self.owner {
            record.set_owner(owner);
        }
    }
}

/// The body with its results: written out at once, because they may be large and one more copy would be too many.
fn with_results(body: &Value, results: &[Map<String, Value>]) -> Vec<u8> {
    let mut text = body.to_string();
    text.pop();
    let mut bytes = text.into_bytes();
    bytes.extend_from_slice(b",\"results\":");
    // Maps with text keys always serialise, and a vector takes all bytes.
    let _ = serde_json::to_writer(&mut bytes, results);
    bytes.push(b'}');
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_with_its_results_is_one_object() {
        let results = [Map::from_iter([("exit".to_owned(), json!(0))])];
        let bytes = with_results(&json!({"ok": true, "reqid": "ab"}), &results);
        let read: Value = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(
            read,
            json!({"ok": true, "reqid": "ab", "results": [{"exit": 0}]})
        );
    }
}
