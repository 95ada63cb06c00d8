use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, SystemTime};

use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::*;
use crate::core::client::error::ExchangeError;
use crate::core::types::ReqId;

const DAY: Duration = Duration::from_secs(86_400);

fn reqid() -> ReqId {
    ReqId::new("0123456789abcdef").unwrap()
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(object) => object,
        other => panic!("{other}"),
    }
}

fn done(exit: i64) -> Fetched {
    Fetched::Done(object(json!({"exit": exit, "stdout": "o", "stderr": ""})))
}

fn failed(why: &str) -> Fetched {
    Fetched::Failed(why.to_owned())
}

fn accepted(hosts: &[&str]) -> Record {
    let hosts = hosts
        .iter()
        .map(|h| ((*h).to_owned(), Entry::new(Status::Accepted)))
        .collect();
    let run = AsyncRun { hosts, created: 7 };
    Record::new(reqid(), "backup", Body::Async(run))
}

fn entry(record: &Record, host: &str) -> Value {
    record.to_object()["hosts"][host].clone()
}

fn answers(of: &[(&str, Fetched)]) -> BTreeMap<String, Fetched> {
    of.iter()
        .map(|(host, fetched)| ((*host).to_owned(), fetched.clone()))
        .collect()
}

fn store() -> (tempfile::TempDir, Store) {
    let root = tempfile::tempdir().unwrap();
    let store = Store::new(root.path().join("runs"), DAY);
    (root, store)
}

fn names(root: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(root.join("runs"))
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn records_have_the_fields_of_the_original() {
    let run = SyncRun::new(
        vec!["b".into(), "a".into()],
        vec![object(json!({"host": "b", "exit": 0})), Map::new()],
        9,
    );
    let sync = Record::new(reqid(), "backup", Body::Sync(run));
    assert_eq!(
        Value::Object(sync.to_object()),
        json!({"reqid": "0123456789abcdef", "script": "backup", "mode": "sync", "hosts": ["b", "a"],
               "results": [{"host": "b", "exit": 0}, {}], "completed": 9, "complete": true})
    );
    let mut record = accepted(&["web2", "web1", "db"]);
    if let Body::Async(run) = &mut record.body {
        run.advance(&answers(&[("web1", done(3))]));
    }
    assert_eq!(
        Value::Object(record.to_object()),
        json!({"reqid": "0123456789abcdef", "script": "backup", "mode": "async", "created": 7, "complete": false,
               "pending": ["db", "web2"], "hosts": {"db": {"status": "accepted"}, "web2": {"status": "accepted"},
               "web1": {"status": "done", "exit": 3, "stdout": "o", "stderr": ""}}})
    );
}

#[test]
fn what_others_write_is_read_and_what_we_do_not_know_stays() {
    let text = json!({"reqid": "0123456789abcdef", "script": "s", "mode": "async", "created": 5, "complete": 0, "pending": ["x"],
        "hosts": {"x": {"status": "accepted", "later": [1]}, "y": {"status": "paused"}},
        "submitter": {"username": "eve", "source_ip": "::1"}});
    let record = Record::parse(&reqid(), text.to_string().as_bytes()).unwrap();
    let written = record.to_object();
    assert_eq!(written["submitter"], text["submitter"]);
    assert_eq!(written["hosts"], text["hosts"]);
    assert_eq!(written["complete"], false);
    assert_eq!(record.pending(), ["x"]);
    let again = Record::parse(&reqid(), Value::Object(written).to_string().as_bytes());
    assert_eq!(again, Ok(record));

    for (bad, why) in [
        ("", "EOF"),
        ("[1]", "invalid type"),
        ("{}", "another request"),
        (r#"{"reqid":"other"}"#, "another request"),
        (r#"{"reqid":"0123456789abcdef"}"#, "no script"),
        (
            r#"{"reqid":"0123456789abcdef","script":"s","mode":"async","hosts":[]}"#,
            "neither",
        ),
        (
            r#"{"reqid":"0123456789abcdef","script":"s","mode":"async","hosts":{"a":1}}"#,
            "no object",
        ),
        (
            r#"{"reqid":"0123456789abcdef","script":"s","mode":"sync","hosts":[]}"#,
            "no results",
        ),
    ] {
        let said = Record::parse(&reqid(), bad.as_bytes()).unwrap_err();
        assert!(said.contains(why), "{bad}: {said}");
    }
}

#[test]
fn answers_are_judged_by_the_table() {
    let body = |value: Value| Fetched::of(Ok(&object(value)), &reqid());
    assert_eq!(body(json!({"status": "running"})), Fetched::Running);
    assert_eq!(body(json!({"status": "unknown"})), Fetched::Unknown);
    assert_eq!(body(json!({})), failed("fetch failed"));
    assert_eq!(body(json!({"status": "error", "error": "x"})), failed("x"));
    assert_eq!(
        body(json!({"status": "running", "reqid": "other"})),
        failed("the agent answered about another request")
    );
    // Notes are kept, whatever else the agent sends is not, and what is no number is no success.
    let told = json!({"status": "done", "exit": "0", "stdout": 1, "owner": "me", "lost": true, "signal": 9, "truncated": {"a": "b"}});
    assert_eq!(
        body(told),
        Fetched::Done(object(
            json!({"exit": -1, "stdout": "", "stderr": "", "lost": true, "signal": 9})
        ))
    );
    for no_run in [true, false] {
        let words = String::new();
        let error = ExchangeError::NotFound { words, no_run };
        assert_eq!(Fetched::of(Err(&error), &reqid()), Fetched::Unknown);
    }
    let error = ExchangeError::Closed;
    assert_eq!(
        Fetched::of(Err(&error), &reqid()),
        failed(&error.to_string())
    );
}

#[test]
fn a_host_goes_through_the_table_and_never_back() {
    let run = |steps: &[Fetched]| {
        let mut record = accepted(&["h"]);
        if let Body::Async(run) = &mut record.body {
            for step in steps {
                run.advance(&answers(&[("h", step.clone()), ("stranger", done(0))]));
            }
        }
        entry(&record, "h")
    };
    let good = json!({"status": "done", "exit": 0, "stdout": "o", "stderr": ""});
    assert_eq!(run(&[done(0)]), good);
    assert_eq!(run(&[Fetched::Running]), json!({"status": "running"}));
    assert_eq!(
        run(&[failed("a"), failed("b")]),
        json!({"status": "accepted", "fetch_error": "b"})
    );
    assert_eq!(
        run(&[failed("a"), Fetched::Running]),
        json!({"status": "running"})
    );
    assert_eq!(
        run(&[Fetched::Running, failed("a"), Fetched::Unknown]),
        json!({"status": "expired"})
    );
    assert_eq!(run(&[failed("a"), done(0)]), good);
    for late in [
        Fetched::Running,
        Fetched::Unknown,
        failed("a"),
        done(1),
        done(0),
    ] {
        assert_eq!(run(&[done(0), late]), good);
    }
    // Who asked in time beats who came too late.
    assert_eq!(run(&[Fetched::Unknown, Fetched::Running, done(0)]), good);
    assert_eq!(
        run(&[Fetched::Unknown, failed("a")]),
        json!({"status": "expired"})
    );
    for end in [Status::Busy, Status::Error, Status::Other("new".into())] {
        let mut record = accepted(&["h"]);
        if let Body::Async(run) = &mut record.body {
            run.hosts
                .insert("h".into(), Entry::new(end.clone()).with("error", "why"));
            run.advance(&answers(&[("h", done(0))]));
            run.advance(&answers(&[("h", failed("x"))]));
        }
        assert_eq!(
            entry(&record, "h"),
            json!({"status": end.as_str(), "error": "why"})
        );
    }
}

#[test]
fn a_submission_is_settled_whoever_looked_before() {
    for (looked, submitted, end) in [
        (None, Status::Busy, "busy"),
        (Some(Fetched::Unknown), Status::Accepted, "accepted"),
        (Some(Fetched::Unknown), Status::Error, "error"),
        (Some(Fetched::Running), Status::Accepted, "running"),
        (Some(done(0)), Status::Accepted, "done"),
        (Some(failed("x")), Status::Busy, "busy"),
    ] {
        let mut record = accepted(&["h"]);
        if let Body::Async(run) = &mut record.body {
            if let Some(looked) = looked {
                run.advance(&answers(&[("h", looked)]));
            }
            run.settle(BTreeMap::from([("h".to_owned(), Entry::new(submitted))]));
        }
        assert_eq!(entry(&record, "h")["status"], end);
    }
}

#[test]
fn a_run_has_one_word_for_all_its_hosts() {
    let state = |of: &[Fetched]| {
        let names = ["a", "b", "c"];
        let mut record = accepted(&names);
        let told: Vec<_> = names.into_iter().zip(of.iter().cloned()).collect();
        if let Body::Async(run) = &mut record.body {
            run.advance(&answers(&told));
        }
        record.state().told(record.size())
    };
    let gone = Fetched::Unknown;
    assert_eq!(state(&[]), "running 3/3");
    assert_eq!(state(&[done(0), Fetched::Running]), "running 2/3");
    assert_eq!(state(&[done(0), done(0), done(0)]), "done");
    assert_eq!(state(&[done(0), done(1), done(0)]), "failed 1/3");
    assert_eq!(state(&[done(0), done(1), gone.clone()]), "failed 2/3");
    assert_eq!(state(&[done(0), gone.clone(), done(0)]), "expired 1/3");
    assert_eq!(state(&[gone.clone(), gone.clone(), gone]), "expired");
    let sync = |exits: &[i64]| {
        let results = exits
            .iter()
            .map(|e| object(json!({"exit": e})))
            .collect::<Vec<_>>();
        let run = SyncRun::new(Vec::new(), results, 1);
        let record = Record::new(reqid(), "s", Body::Sync(run));
        record.state().told(record.size())
    };
    assert_eq!(
        (sync(&[0, 0]), sync(&[0, -1])),
        ("done".into(), "failed 1/2".into())
    );
}

#[test]
fn a_record_keeps_a_bounded_share_of_the_output() {
    let long = "é".repeat(40 * 1024 * 1024 / 2);
    let mut record = accepted(&["h"]);
    let result = object(json!({"exit": 0, "stdout": long, "stderr": "short"}));
    if let Body::Async(run) = &mut record.body {
        run.advance(&answers(&[("h", Fetched::Done(result))]));
    }
    let kept = entry(&record, "h");
    let text = kept["stdout"].as_str().unwrap();
    assert!(
        text.len() < 33 * 1024 * 1024 && text.ends_with("é\n[output truncated in the record]\n")
    );
    assert_eq!(
        (&kept["stderr"], &kept["truncated"]),
        (&json!("short"), &json!(true))
    );
}

#[test]
fn a_look_that_changes_nothing_keeps_nothing_alive() {
    use std::os::unix::fs::MetadataExt as _;
    let (root, store) = store();
    let record = accepted(&["a", "b"]);
    store.create(&record).unwrap();
    let path = root.path().join("runs/0123456789abcdef.json");
    let about = || std::fs::metadata(&path).unwrap();
    assert_eq!(about().mode() & 0o7777, 0o640);
    assert_eq!(
        std::fs::metadata(root.path().join("runs")).unwrap().mode() & 0o7777,
        0o2770
    );
    let before = about().ino();
    let merged = store.merge(record.clone(), &BTreeMap::new());
    assert!(merged.problem.is_none());
    assert_eq!(about().ino(), before);
    let merged = store.merge(record, &answers(&[("a", done(0))]));
    assert_ne!(about().ino(), before);
    assert_eq!(store.load(&reqid()).unwrap(), Some(merged.record));
}

#[test]
fn who_comes_with_old_knowledge_loses_nothing_of_the_others() {
    let (_root, store) = store();
    let hosts: Vec<String> = (0..8).map(|n| format!("h{n}")).collect();
    let words: Vec<&str> = hosts.iter().map(String::as_str).collect();
    let record = accepted(&words);
    store.create(&record).unwrap();
    std::thread::scope(|scope| {
        for host in &words {
            let (store, record) = (store.clone(), record.clone());
            scope.spawn(move || store.merge(record, &answers(&[(*host, done(0))])));
        }
    });
    let after = store.load(&reqid()).unwrap().unwrap();
    assert!(after.is_complete());
    assert_eq!(after.state(), State::Done);
}

#[test]
fn a_record_that_is_gone_is_told_once_more_and_not_brought_back() {
    let (root, store) = store();
    let merged = store.merge(accepted(&["a"]), &answers(&[("a", done(0))]));
    assert!(merged.problem.is_none() && merged.record.is_complete());
    assert_eq!(names(root.path()), [".runs.lock"]);
    let nowhere = Store::new("/proc/nowhere/runs", DAY);
    let merged = nowhere.merge(accepted(&["a"]), &answers(&[("a", done(0))]));
    assert!(merged.record.is_complete());
    assert!(
        merged
            .problem
            .unwrap()
            .to_string()
            .contains("/proc/nowhere")
    );
}

#[test]
fn old_records_and_left_over_files_go_and_nothing_else() {
    let (root, store) = store();
    let dir = root.path().join("runs");
    std::fs::create_dir(&dir).unwrap();
    let now = SystemTime::now();
    for (name, age) in [
        ("old.json", 86_401),
        ("corrupt.json", 86_401),
        ("young.json", 86_399),
        (".a.json.00112233.tmp", 3601),
        ("b.json.tmp", 3601),
        (".c.json.00112233.tmp", 60),
        ("notes.txt", 999_999),
        ("a.b.json", 999_999),
        (".runs.lock", 999_999),
        ("future.json", 0),
    ] {
        let file = std::fs::File::create(dir.join(name)).unwrap();
        let when = match name {
            "future.json" => now + DAY,
            _ => now - Duration::from_secs(age),
        };
        file.set_modified(when).unwrap();
    }
    assert_eq!(store.purge(now), 2);
    assert_eq!(
        names(root.path()),
        [
            ".c.json.00112233.tmp",
            ".runs.lock",
            "a.b.json",
            "future.json",
            "notes.txt",
            "young.json"
        ]
    );
    assert_eq!(Store::new("/nonexistent", DAY).purge(now), 0);
}

#[test]
fn damaged_files_hide_nobody() {
    let (root, store) = store();
    store.create(&accepted(&["a"])).unwrap();
    let mut newer = accepted(&["a"]);
    newer.reqid = ReqId::new("newer").unwrap();
    if let Body::Async(run) = &mut newer.body {
        run.created = 8;
    }
    store.create(&newer).unwrap();
    let dir = root.path().join("runs");
    std::fs::write(dir.join("broken.json"), "{").unwrap();
    std::os::unix::fs::symlink("/etc/passwd", dir.join("link.json")).unwrap();
    std::fs::create_dir(dir.join("folder.json")).unwrap();
    let listing = store.list(|r| r.reqid.to_string()).unwrap();
    assert_eq!(listing.runs, ["newer", "0123456789abcdef"]);
    assert_eq!(listing.damaged.len(), 3);
    let said = store.load(&ReqId::new("broken").unwrap()).unwrap_err();
    assert!(
        said.to_string().contains("broken.json' is no record"),
        "{said}"
    );
}

fn observation() -> impl Strategy<Value = Fetched> {
    prop_oneof![
        Just(Fetched::Running),
        Just(Fetched::Unknown),
        Just(failed("x")),
        Just(done(0)),
    ]
}

proptest! {
    /// The end does not depend on the order in which those who asked come to write.
    #[test]
    fn merging_knows_no_order(
        (one, other) in proptest::collection::vec(observation(), 0..7)
            .prop_flat_map(|seen| (Just(seen.clone()), Just(seen).prop_shuffle()))
    ) {
        let end = |steps: &[Fetched]| {
            let mut record = accepted(&["h"]);
            let mut best = 0;
            for step in steps {
                if let Body::Async(run) = &mut record.body {
                    run.advance(&answers(&[("h", step.clone())]));
                }
                let now = ["accepted", "running", "expired", "done"]
                    .iter()
                    .position(|word| entry(&record, "h")["status"] == **word)
                    .unwrap();
                assert!(now >= best, "went back");
                best = now;
            }
            let mut end = object(entry(&record, "h"));
            // Of several failures the last one is told.
            end.remove("fetch_error");
            end
        };
        prop_assert_eq!(end(&one), end(&other));
    }

    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), text in "\\PC{0,100}") {
        let _ = Record::parse(&reqid(), &bytes);
        let _ = Record::parse(&reqid(), text.as_bytes());
    }
}
