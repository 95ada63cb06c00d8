use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value, json};
use tokio::sync::Semaphore;

use super::objects::{capabilities_object, ping_object, run_object};
use super::submit::{Submission, judge, once_each, submit_object};
use super::tags::learn_tags;
use super::*;
use crate::core::authhook::Submitter;
use crate::core::client::error::ExchangeError;
use crate::core::client::exchange::{Answer, Client};
use crate::core::clock::Clock;
use crate::core::registry::{AgentRecord, Registry, Target};
use crate::core::revocation::Revocations;
use crate::core::runs::{Body, Status};
use crate::core::types::AgentName;
use crate::core::wire;

fn target(name: &str) -> Target {
    Target::of(AgentRecord::new(AgentName::new(name).unwrap()))
}

fn result(name: &str, answer: Result<(u16, Value), ExchangeError>) -> Arc<HostResult> {
    Arc::new(HostResult {
        target: target(name),
        answer: answer
            .map(|(status, body)| Answer::of_somebody(status, body.as_object().cloned().unwrap())),
        rtt: "7ms".to_owned(),
    })
}

fn reqid() -> ReqId {
    ReqId::new("00c0ffee00c0ffee").unwrap()
}

fn as_value(object: Map<String, Value>) -> Value {
    Value::Object(object)
}

/// The table of spec/dispatcher.md 6.1.
#[test]
fn objects_carry_what_the_agent_said_and_what_only_we_know() {
    let said = json!({"host": "other", "exit": 3, "stdout": "x", "reqid": "forged", "rtt": "0ms", "new": [1]});
    let reached = result("web1", Ok((200, said)));
    assert_eq!(
        as_value(run_object(&reached, "job", &reqid())),
        json!({"host": "web1", "reported_hostname": "other", "exit": 3, "stdout": "x", "reqid": "00c0ffee00c0ffee", "rtt": "7ms", "new": [1]})
    );
    assert_eq!((reached.exit(), reached.reported()), (3, Some("other")));
    let away = result("web1", Err(ExchangeError::InvalidJson));
    assert_eq!(
        as_value(run_object(&away, "job", &reqid())),
        json!({"host": "web1", "script": "job", "exit": -1, "error": "invalid JSON response", "reqid": "00c0ffee00c0ffee", "rtt": "7ms"})
    );
    let failed =
        json!({"host": "web1", "status": "error", "error": "invalid JSON response", "rtt": "7ms"});
    assert_eq!(as_value(ping_object(&away, &reqid())), failed);
    assert_eq!(as_value(capabilities_object(&away)), failed);
    assert_eq!(
        as_value(submit_object(&away, &judge(&away.answer), "job", &reqid())),
        json!({"host": "web1", "script": "job", "status": "error", "error": "invalid JSON response", "reqid": "00c0ffee00c0ffee", "rtt": "7ms"})
    );
}

#[test]
fn capabilities_are_ok_only_when_the_agent_says_so() {
    let said = json!({"status": "ok", "host": "web1", "version": "1", "scripts": [], "tags": {}});
    let ok = capabilities_object(&result("web1", Ok((200, said))));
    assert_eq!(
        as_value(ok),
        json!({"host": "web1", "status": "ok", "version": "1", "scripts": [], "tags": {}, "rtt": "7ms"})
    );
    let odd = capabilities_object(&result("web1", Ok((200, json!({"scripts": []})))));
    assert_eq!(
        (&odd["status"], odd["error"].is_string()),
        (&json!("error"), true)
    );
}

#[test]
fn tags_are_written_where_they_differ_and_only_of_agents_that_are_well() {
    let home = tempfile::tempdir().unwrap();
    let registry = Registry::new(home.path());
    for name in ["web1", "web2", "web3"] {
        let record = AgentRecord::new(AgentName::new(name).unwrap());
        registry.register(record, false).unwrap();
    }
    let told = |name, status: &str, tags: Value| {
        result(name, Ok((200, json!({"status": status, "tags": tags}))))
    };
    let all = [
        told("web1", "ok", json!({"role": "db", "rack": 7, "odd": {}})),
        told("web2", "error", json!({"role": "db"})),
        told("web3", "ok", json!({"long": "x".repeat(70_000)})),
        told("gone", "ok", json!({"role": "db"})),
        result("web2", Err(ExchangeError::Closed)),
    ];
    assert_eq!(learn_tags(&registry, &all), 1);
    let tags = |name: &str| {
        registry
            .get(&AgentName::new(name).unwrap())
            .unwrap()
            .unwrap()
            .tags
    };
    assert_eq!(
        tags("web1"),
        [("role", "db"), ("rack", "7")]
            .map(|(k, v)| (k.into(), v.into()))
            .into()
    );
    assert!(tags("web2").is_empty() && tags("web3").is_empty());

    // Nothing new, so not even the lock is taken.
    std::fs::remove_file(home.path().join(".registry.lock")).unwrap();
    let known = Arc::new(HostResult {
        target: Target::of(
            registry
                .get(&AgentName::new("web1").unwrap())
                .unwrap()
                .unwrap(),
        ),
        answer: all[0].answer.clone(),
        rtt: String::new(),
    });
    assert_eq!(learn_tags(&registry, &[known]), 0);
    assert!(!home.path().join(".registry.lock").exists());
}

#[test]
fn a_submission_is_on_record_before_and_after() {
    let home = tempfile::tempdir().unwrap();
    let registry = Registry::new(home.path().join("agents"));
    let store = Store::new(home.path().join("runs"), Duration::from_secs(60));
    let targets = once_each(vec![target("web1"), target("web2"), target("web1")]).unwrap();
    let mut other_port = target("web1");
    other_port.port = 1;
    assert!(once_each(vec![target("web1"), other_port]).is_err());

    let mut submission = Submission::new(&registry, targets, reqid(), "job", 5);
    let who = Submitter {
        username: "ann".into(),
        source_ip: "::1".into(),
    };
    submission.record.set_submitter(&who);
    submission.record.set_owner("token:abc");
    submission.record(&store).unwrap();
    let stored = || store.load(&reqid()).unwrap().unwrap();
    assert_eq!(stored().pending(), ["web1", "web2"]);
    assert_eq!(
        (stored().submitter(), stored().owner().map(str::to_owned)),
        (Some(who), Some("token:abc".into()))
    );

    let results = [
        result("web1", Ok((202, json!({"status": "accepted"})))),
        result("web2", Err(ExchangeError::Busy(String::new()))),
    ];
    let settled = submission.settle(&store, &results);
    assert!(settled.accepted && settled.problem.is_none());
    assert_eq!(settled.objects[1]["error"], "script already running");
    let Body::Async(run) = stored().body else {
        panic!()
    };
    assert_eq!(run.hosts["web2"].status, Status::Busy);

    // Not recorded before, so not brought to life now.
    std::fs::remove_dir_all(home.path().join("runs")).unwrap();
    let unrecorded = Submission::new(&registry, vec![target("web1")], reqid(), "job", 5);
    assert!(unrecorded.settle(&store, &results).problem.is_none());
    assert!(store.load(&reqid()).unwrap().is_none());
}

#[test]
fn a_submitter_that_is_none_is_none() {
    let run = || crate::core::runs::SyncRun::new(Vec::new(), Vec::new(), 0);
    let mut record = Record::new(reqid(), "job", Body::Sync(run()));
    assert_eq!(record.submitter(), None);
    for odd in [json!("ann"), json!(["a", "b"]), json!({"username": 1})] {
        record.more.insert("submitter".to_owned(), odd);
        assert_eq!(record.submitter(), None);
    }
    record.more.insert(
        "submitter".to_owned(),
        json!({"username": "ann", "more": 1}),
    );
    assert_eq!(record.submitter().unwrap().username, "ann");
}

#[test]
fn a_request_that_no_agent_takes_is_not_made() {
    let request = |length: usize| wire::RunRequest {
        script: "job".into(),
        args: vec!["x".repeat(length)],
        reqid: reqid().to_string(),
        username: String::new(),
        token: crate::core::types::Secret::default(),
        asynchronous: false,
    };
    assert!(Job::run(&request(1000)).is_ok());
    let error = Job::run(&request(1_048_576)).err().unwrap();
    assert!(
        error
            .to_string()
            .ends_with("with its arguments, agents take 1048576")
    );
}

/// A server spawns all of them.
#[tokio::test]
async fn everything_that_waits_can_be_spawned() {
    let home = tempfile::tempdir().unwrap();
    let store = Store::new(home.path().join("runs"), Duration::from_secs(60));
    let second = Duration::from_secs(1);
    let client = Client::new(
        Vec::new(),
        Revocations::default(),
        Clock::system(0),
        second,
        second,
    );
    let agents = follow::Agents {
        client: client.clone(),
        registry: Registry::new(home.path().join("agents")),
        slots: Arc::new(Semaphore::new(1)),
    };
    let asked = tokio::spawn(async move {
        let mut seen = 0;
        let mut count = |_, _: &Arc<HostResult>| seen += 1;
        let slots = Arc::new(Semaphore::new(1));
        let targets = vec![target("web1"), target("web2")];
        let results = ask_all(&client, targets, &slots, &Job::capabilities(), &mut count).await;
        (
            seen,
            results
                .iter()
                .map(|r| r.host().to_owned())
                .collect::<Vec<_>>(),
        )
    });
    assert_eq!(
        asked.await.unwrap(),
        (2, vec!["web1".to_owned(), "web2".to_owned()])
    );

    let mut submission = Submission::new(&agents.registry, vec![target("web1")], reqid(), "job", 5);
    submission.record(&store).unwrap();
    let record = submission.record.clone();
    let cancelled = tokio::spawn(async move {
        let mut told = Vec::new();
        let mut tell =
            |host: &str, reply: &cancel::Reply| told.push((host.to_owned(), reply.word()));
        let cancelled = cancel::cancel(&agents, &store, record, &mut tell).await;
        (told, cancelled)
    });
    let (told, cancelled) = cancelled.await.unwrap();
    assert_eq!(told, [("web1".to_owned(), "error")], "it is not registered");
    assert!(cancelled.problem.is_none() && !cancelled.record.is_complete());
}
