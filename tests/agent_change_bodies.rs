//! Whatever a trusted dispatcher sends to the paths by which it changes a host, short of an order that is in order: the agent answers, lives,
//! and its files stay as they are.

#![allow(clippy::unwrap_used, reason = "helpers of tests stop as tests do")]

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use common::openssl::Authority;
use common::{Agent, Legacy, tls};
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::{Config, TestRunner};
use serde_json::{Map, Value, json};

const PATHS: &[&str] = &[
    "/rotate-serial",
    "/renew",
    "/renew-complete",
    "/revoke",
    "/ca",
];

/// Any JSON in which no text and no number can be read as a serial.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        Just(json!(false)),
        (i64::MIN..0).prop_map(|n| json!(n)),
        "~\\PC{0,40}".prop_map(Value::String),
        Just(json!("")),
        Just(json!("~\u{0}\u{1b}[2J\nACTION=forged")),
    ];
    leaf.prop_recursive(4, 24, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::Array),
            prop::collection::vec(("\\PC{0,8}", inner), 0..6)
                .prop_map(|fields| Value::Object(Map::from_iter(fields))),
        ]
    })
}

/// A body with fields that mean something, of which each may hold anything, and some what nearly fits.
fn any_order(certificates: Vec<String>) -> impl Strategy<Value = Value> {
    let nearly = prop_oneof![
        select(vec!["add", "remove", "ADD", "add "]).prop_map(|a| ("action", json!(a))),
        select(vec!["xyz", "0", "0x", "-1", "ab cd"]).prop_map(|s| ("serial", json!(s))),
        Just(("serial", json!("f".repeat(65)))),
        Just(("serials", json!([]))),
        Just(("serials", json!(["dead", "beef", "xyz"]))),
        Just(("serials", json!(["dead", 5]))),
        Just(("serials", json!(vec!["dead"; 10_001]))),
        select(vec!["a".repeat(64), "A:".repeat(64), "a".repeat(63)])
            .prop_map(|f| ("fingerprint", json!(f))),
        (
            select(vec!["cert", "ca", "endorsement"]),
            select(certificates)
        )
            .prop_map(|(key, pem)| (key, json!(pem))),
    ];
    let keys = vec![
        "action",
        "serial",
        "serials",
        "fingerprint",
        "cert",
        "ca",
        "endorsement",
        "reqid",
        "token",
    ];
    let anything = (select(keys), any_json());
    let field = prop_oneof![3 => nearly, 2 => anything];
    prop::collection::vec(field, 0..7).prop_map(|fields| {
        let owned = fields.into_iter().map(|(k, v)| (k.to_owned(), v));
        Value::Object(owned.collect())
    })
}

/// Everything that lies in a directory, but for locks.
fn files(dir: &Path, all: &mut BTreeMap<PathBuf, Vec<u8>>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, all);
        } else if path.extension().is_none_or(|e| e != "lock") {
            all.insert(path.clone(), std::fs::read(&path).unwrap());
        }
    }
}

#[test]
fn no_body_makes_the_agent_fail_or_changes_its_files() {
    let fleet = Legacy::new(&["web1.test"]);
    let (host, who) = (&fleet.agents[0], &fleet.dispatcher_leaf);
    let mut agent = Agent::start(host);
    let state = || {
        let mut all = BTreeMap::new();
        files(&host.path("etc"), &mut all);
        files(&host.path("var/lib"), &mut all);
        all
    };
    let before = state();
    let own = Authority::shared().cert_pem();
    let certificates = vec![
        own.clone(),
        own.clone() + &own,
        own.replace('A', "B"),
        own.lines().take(5).collect::<Vec<_>>().join("\n"),
        Authority::foreign().cert_pem(),
        who.cert_pem(),
        who.key_pem(),
        fleet.agent_leaves[0].cert_pem(),
        "-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n".to_owned(),
        "-".repeat(70_000),
    ];
    let body = prop_oneof![
        6 => any_order(certificates).prop_map(|v| v.to_string().into_bytes()),
        2 => any_json().prop_map(|v| v.to_string().into_bytes()),
        1 => prop::collection::vec(any::<u8>(), 0..200),
        1 => Just(b"[".repeat(100_000)),
        1 => Just(br#"{"serial":{"a":"#.repeat(10_000)),
    ];
    let config = Config {
        cases: 300,
        failure_persistence: None,
        ..Config::default()
    };
    let address = agent.address();
    TestRunner::new(config)
        .run(&(select(PATHS), body), |(path, body)| {
            let reply = tls::request(address, Some(who), "POST", path, &body)
                .map_err(|e| TestCaseError::fail(format!("{path}: {e}")))?;
            prop_assert!(reply.status < 500, "{path}: {}", reply.head);
            let answer: Value = serde_json::from_slice(&reply.body)
                .map_err(|e| TestCaseError::fail(format!("{path}: no JSON: {e}")))?;
            prop_assert!(answer.is_object());
            prop_assert_eq!(state(), before.clone(), "{}: {}", path, answer);
            Ok(())
        })
        .unwrap_or_else(|e| panic!("{e}"));
    assert!(agent.is_running());
    assert!(
        host.log_lines().iter().all(|l| !l.text.contains('\n')),
        "a line of the log is one line"
    );
    assert!(host.log_of("forged").is_empty());
    fleet.ced(&["run", "web1.test", "hello"]).ok();
    // And what is in order does change them: the comparison sees it.
    let order = br#"{"serials":["dead"]}"#;
    let reply = tls::request(address, Some(who), "POST", "/revoke", order).unwrap();
    assert_eq!(reply.json()["revocations"], 1);
    assert_ne!(state(), before);
}
