//! The store, without processes: locks, records, what others may have put there, retention.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use super::*;
use crate::core::exec::Outcome;
use crate::core::exec::tail::TAIL;
use crate::core::types::{DispatcherId, ReqId, ScriptName};

const NOW: &str = "2026-01-02T03:04:05Z";
const LATER: &str = "2026-01-02T03:05:00Z";

fn scene() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::new(dir.path().join("runs"), 1024);
    (dir, store)
}

fn key(owner: &str, reqid: &str) -> Key {
    Key {
        owner: DispatcherId::new(owner).unwrap(),
        reqid: ReqId::new(reqid).unwrap(),
    }
}

fn script(name: &str) -> ScriptName {
    ScriptName::new(name).unwrap()
}

fn begin(store: &Store, key: &Key, name: &str, via: Via) -> Claim {
    let claim = store.claim(key, &script(name)).unwrap();
    claim
        .write(&Record::running(key, &script(name), NOW.to_owned(), via))
        .unwrap();
    claim
}

fn end(claim: Claim, name: &str) {
    let outcome = Outcome {
        exit: 3,
        stdout: b"out\xff\n".to_vec(),
        stderr: b"err\n".to_vec(),
        ..Outcome::default()
    };
    let record = Record::running(claim.key(), &script(name), NOW.to_owned(), Via::Agent)
        .done(outcome, LATER.to_owned());
    claim.write(&record).unwrap();
    claim.end();
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn age(path: &Path, by: Duration) {
    let file = std::fs::File::open(path).unwrap();
    file.set_modified(SystemTime::now() - by).unwrap();
}

#[test]
fn a_run_has_the_record_of_the_original_from_its_beginning_to_its_end() {
    let (_dir, store) = scene();
    let run = key("main", "r1");
    assert!(store.read(&run).unwrap().is_none());
    assert!(store.settled(&run, NOW).unwrap().is_none());
    let claim = begin(&store, &run, "job", Via::Agent);
    let found = store.settled(&run, LATER).unwrap().unwrap();
    let shown: Value = serde_json::from_slice(&found.bytes).unwrap();
    assert_eq!(
        shown,
        json!({"reqid": "r1", "script": "job", "owner": "main", "status": "running", "started": NOW, "via": "agent"})
    );
    assert_eq!(store.running(), [(run.clone(), found.head)]);
    store.write_progress(&run, b"half", b"").unwrap();
    assert_eq!(store.progress(&run), Some((b"half".to_vec(), Vec::new())));
    end(claim, "job");
    let found = store.read(&run).unwrap().unwrap();
    let shown: Value = serde_json::from_slice(&found.bytes).unwrap();
    assert_eq!(
        shown,
        json!({"reqid": "r1", "script": "job", "owner": "main", "status": "done", "started": NOW, "finished": LATER,
               "exit": 3, "stdout": "out\u{fffd}\n", "stderr": "err\n", "via": "agent"})
    );
    assert_eq!(names(&store.root().join("main")), ["r1.json"]);
    assert_eq!(names(&store.root().join(".locks")), ["job.lock"]);
    let mode = |path: &str| std::fs::metadata(store.root().join(path)).unwrap().mode() & 0o7777;
    assert_eq!(
        (mode("main/r1.json"), mode("main"), mode(".locks")),
        (0o640, 0o750, 0o750)
    );
    assert!(store.running().is_empty());
}

#[test]
fn one_script_runs_once_at_a_time_whoever_asks() {
    let (_dir, store) = scene();
    let first = begin(&store, &key("main", "r1"), "job", Via::Agent);
    for (owner, reqid) in [("main", "r1"), ("main", "r2"), ("other", "r1")] {
        let refused = store.claim(&key(owner, reqid), &script("job"));
        assert!(matches!(refused, Err(Refusal::Busy)), "{refused:?}");
    }
    assert!(!store.root().join("main/r2.json").exists());
    let other = begin(&store, &key("main", "r2"), "job2", Via::Agent);
    // Another script under a name that is taken, running or done.
    let refused = store.claim(&key("main", "r1"), &script("job3"));
    assert!(matches!(refused, Err(Refusal::Used)), "{refused:?}");
    end(first, "job");
    let refused = store.claim(&key("main", "r1"), &script("job"));
    assert!(matches!(refused, Err(Refusal::Used)), "{refused:?}");
    // Names of different dispatchers have nothing to do with each other.
    let again = store.claim(&key("other", "r1"), &script("job")).unwrap();
    again.withdraw();
    assert!(names(&store.root().join("other")).is_empty());
    drop(other);
}

#[test]
fn a_running_record_without_its_lock_is_lost_exactly_once() {
    let (_dir, store) = scene();
    let run = key("main", "r1");
    let claim = begin(&store, &run, "job", Via::Agent);
    store.write_progress(&run, b"half", b"warning").unwrap();
    drop(claim);
    for _ in 0..2 {
        let found = store.settled(&run, LATER).unwrap().unwrap();
        let shown: Value = serde_json::from_slice(&found.bytes).unwrap();
        assert_eq!(
            (
                &shown["status"],
                &shown["exit"],
                &shown["lost"],
                &shown["finished"]
            ),
            (&json!("done"), &json!(-1), &json!(true), &json!(LATER))
        );
        assert_eq!(shown["stdout"], "half");
        let stderr = shown["stderr"].as_str().unwrap();
        assert!(stderr.starts_with("warning\nlost: "), "{stderr}");
    }
    assert_eq!(names(&store.root().join("main")), ["r1.json"]);

    // One of the executor is not for us to judge; one of the original is, by the lock of its script.
    let with_executor = key("main", "r2");
    drop(begin(&store, &with_executor, "job", Via::Executor));
    let found = store.settled(&with_executor, LATER).unwrap().unwrap();
    assert_eq!(found.head.status, Status::Running);
    let old = json!({"reqid": "r3", "script": "old", "owner": "main", "status": "running", "started": NOW});
    std::fs::write(store.root().join("main/r3.json"), old.to_string()).unwrap();
    let perl = store.claim(&key("perl", "x"), &script("old")).unwrap();
    let found = store.settled(&key("main", "r3"), LATER).unwrap().unwrap();
    assert_eq!(found.head.status, Status::Running);
    drop(perl);
    let found = store.settled(&key("main", "r3"), LATER).unwrap().unwrap();
    assert_eq!(found.head.status, Status::Done);
}

#[test]
fn what_others_put_there_is_not_believed() {
    let (dir, store) = scene();
    drop(begin(&store, &key("main", "good"), "job", Via::Executor));
    let here = store.root().join("main");
    let good = std::fs::read_to_string(here.join("good.json")).unwrap();
    let secret = dir.path().join("secret");
    std::fs::write(&secret, good.replace("good", "link")).unwrap();
    symlink(&secret, here.join("link.json")).unwrap();
    std::fs::hard_link(&secret, here.join("hard.json")).unwrap();
    std::fs::write(here.join("garbage.json"), "{\"reqid\":").unwrap();
    std::fs::write(here.join("empty.json"), "").unwrap();
    std::fs::write(here.join("renamed.json"), &good).unwrap();
    std::fs::create_dir(here.join("dir.json")).unwrap();
    std::fs::write(
        here.join("script.json"),
        good.replace("good", "script").replace("job", "../x"),
    )
    .unwrap();
    std::fs::write(
        here.join("foreign.json"),
        good.replace("good", "foreign").replace("main", "other"),
    )
    .unwrap();
    std::fs::write(here.join("not a name.json"), &good).unwrap();
    std::fs::write(here.join("long.json"), "").unwrap();
    std::fs::File::options()
        .write(true)
        .open(here.join("long.json"))
        .unwrap()
        .set_len(1 << 40)
        .unwrap();
    rustix::fs::mkfifoat(
        rustix::fs::CWD,
        here.join("fifo.json"),
        rustix::fs::Mode::from_raw_mode(0o600),
    )
    .unwrap();
    for name in [
        "link", "hard", "garbage", "empty", "renamed", "dir", "script", "long", "fifo",
    ] {
        let read = store.read(&key("main", name));
        assert!(
            matches!(read, Err(JobError::Foreign { .. })),
            "{name}: {read:?}"
        );
    }
    let read = store.read(&key("main", "foreign"));
    assert!(matches!(read, Err(JobError::NotOwner { .. })), "{read:?}");
    let running: Vec<String> = store
        .running()
        .iter()
        .map(|(key, _)| key.reqid.to_string())
        .collect();
    assert_eq!(running, ["good"]);

    // A sign of life that is a link or a FIFO is refused, not followed or waited for.
    symlink(&secret, store.live(&key("main", "linked"))).unwrap();
    let refused = store.claim(&key("main", "linked"), &script("job5"));
    assert!(matches!(refused, Err(Refusal::Failed(_))), "{refused:?}");
}

#[test]
fn a_directory_of_a_dispatcher_that_is_a_link_is_not_walked() {
    let (dir, store) = scene();
    drop(begin(&store, &key("main", "r1"), "job", Via::Executor));
    symlink(store.root().join("main"), store.root().join("twin")).unwrap();
    assert_eq!(store.running().len(), 1);
    drop(dir);
}

#[test]
fn retention_goes_by_age_and_spares_what_runs() {
    let (_dir, store) = scene();
    let here = store.root().join("main");
    let day = KEPT + Duration::from_secs(60);
    for name in ["old", "fresh"] {
        end(begin(&store, &key("main", name), "job", Via::Agent), "job");
    }
    let alive = begin(&store, &key("main", "alive"), "job", Via::Agent);
    drop(begin(&store, &key("main", "dead"), "job2", Via::Agent));
    drop(begin(&store, &key("main", "exec"), "job3", Via::Executor));
    std::fs::write(here.join("broken.json"), "no").unwrap();
    for name in ["old", "alive", "dead", "exec", "broken"] {
        age(&here.join(format!("{name}.json")), day);
    }
    std::fs::write(here.join("orphan.out"), "x").unwrap();
    std::fs::write(here.join(".r9.json.0011223344556677.tmp"), "x").unwrap();
    std::fs::write(here.join("notes.txt"), "x").unwrap();
    std::fs::write(store.root().join("flat.json"), "{}").unwrap();
    std::fs::write(store.root().join("flat2.json"), "{}").unwrap();
    for path in [
        here.join("orphan.out"),
        here.join(".r9.json.0011223344556677.tmp"),
        here.join("notes.txt"),
        store.root().join("flat.json"),
    ] {
        age(&path, day);
    }
    let swept = store.sweep(SystemTime::now());
    assert_eq!(
        swept,
        Swept {
            records: 4,
            incomplete: false
        }
    );
    let left = names(&here);
    assert_eq!(
        left,
        [
            "alive.json",
            "alive.live",
            "exec.json",
            "exec.live",
            "fresh.json",
            "notes.txt"
        ]
    );
    assert_eq!(names(store.root()), [".locks", "flat2.json", "main"]);
    drop(alive);
    // A clock that was set back removes nothing.
    let swept = store.sweep(SystemTime::now() - Duration::from_secs(10 * 86_400));
    assert_eq!(swept, Swept::default());
}

#[test]
fn the_holder_of_a_lock_is_signalled_and_nobody_else() {
    use std::process::{Command, Stdio};
    let (_dir, store) = scene();
    let run = key("main", "r1");
    let live = store.live(&run);
    assert!(!signal_holder(&live, rustix::process::Signal::TERM).unwrap());
    // Held by ourselves: never signalled.
    let claim = begin(&store, &run, "job", Via::Agent);
    assert!(signal_holder(&live, rustix::process::Signal::TERM).is_err());
    drop(claim);
    assert!(!signal_holder(&live, rustix::process::Signal::TERM).unwrap());
    // A number in a file that nobody holds is not believed.
    let mut sleeper = Command::new("sleep")
        .arg("30")
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    std::fs::write(&live, format!("{}\n", sleeper.id())).unwrap();
    assert!(!signal_holder(&live, rustix::process::Signal::TERM).unwrap());
    assert!(sleeper.try_wait().unwrap().is_none());
    let held = std::fs::File::open(&live).unwrap();
    held.lock().unwrap();
    assert!(signal_holder(&live, rustix::process::Signal::TERM).unwrap());
    let status = sleeper.wait().unwrap();
    assert_eq!(
        std::os::unix::process::ExitStatusExt::signal(&status),
        Some(15)
    );
    for nonsense in ["", "1\n", "0\n", "-5\n", "99999999999\n", "x\n"] {
        std::fs::write(&live, nonsense).unwrap();
        assert!(
            signal_holder(&live, rustix::process::Signal::TERM).is_err(),
            "{nonsense:?}"
        );
    }
}

#[test]
fn progress_is_bounded_when_it_is_read() {
    let (_dir, store) = scene();
    let run = key("main", "r1");
    let claim = begin(&store, &run, "job", Via::Agent);
    std::fs::write(store.file(&run, "out"), vec![b'x'; TAIL + 1]).unwrap();
    std::fs::write(store.file(&run, "err"), "").unwrap();
    assert_eq!(store.progress(&run), None);
    drop(claim);
}

#[test]
fn an_unwritable_store_refuses_and_says_where() {
    let (dir, store) = scene();
    std::fs::write(dir.path().join("runs"), "a file").unwrap();
    let Err(Refusal::Failed(error)) = store.claim(&key("main", "r1"), &script("job")) else {
        panic!("it was claimed");
    };
    assert!(error.to_string().contains("runs"), "{error}");
    std::fs::set_permissions(
        dir.path().join("runs"),
        std::fs::Permissions::from_mode(0o600),
    )
    .unwrap();
}

#[test]
fn answers_of_the_supervisor_survive_their_line() {
    for answer in [
        Answer::Accepted,
        Answer::Busy,
        Answer::Used,
        Answer::Failed("no room: two\nlines".to_owned()),
    ] {
        let line = answer.to_line();
        assert_eq!(line.matches('\n').count(), 1);
        let back = Answer::from_line(&line).unwrap();
        assert_eq!(back.to_line(), line);
    }
    for nonsense in ["", "accepted", "yes\n", "failed\n"] {
        assert_eq!(Answer::from_line(nonsense), None);
    }
}
