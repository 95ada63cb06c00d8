//! Asynchronous runs: they outlive connections, the agent and its restarts, belong to one dispatcher, and end in a record whatever happens
//! (spec/agent.md 9.2, 9.5, 12).

#![allow(clippy::unwrap_used, reason = "helpers of tests stop as tests do")]

mod common;

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use common::fleet::legacy_map;
use common::openssl::{Authority, Dates, Leaf};
use common::syslog::{INFO, WARNING};
use common::{Agent, Legacy, PATIENCE, tls, wait_until};
use rustix::process::{Pid, Signal};
use serde_json::{Value, json};

const RUNS: &str = "var/lib/ctrl-exec-agent/runs";

/// An agent of the original's files, two dispatchers that it trusts.
struct Stage {
    fleet: Legacy,
    second: Leaf,
    agent: Agent,
}

/// Waits until the test says go, at most a minute.
fn waits_for(go: &std::path::Path) -> String {
    format!(
        "i=0; while [ ! -e {} ] && [ $i -lt 1200 ]; do sleep 0.05; i=$((i+1)); done",
        go.display()
    )
}

impl Stage {
    /// The scripts `slow` and `slow2` say `begun`, wait for the file `go`, say `ended` and end with 5.
    fn new(more: &[(&str, &str)]) -> Self {
        Self::with_conf("", more)
    }

    fn with_conf(conf: &str, more: &[(&str, &str)]) -> Self {
        let fleet = Legacy::new(&["web01.test"]);
        let host = &fleet.agents[0];
        let second = Authority::shared().issue("ctrl-exec-dispatcher", "5A", Dates::Days(825));
        host.write(
            "var/lib/ctrl-exec-agent/ctrl-exec-dispatchers",
            legacy_map(&[("2", "ctl"), ("5a", "second")]),
            0o644,
        );
        let slow = format!(
            "echo begun; echo warn >&2; {}; echo ended; exit 5",
            waits_for(&host.path("tmp/go"))
        );
        let mut scripts = vec![("slow", slow.as_str()), ("slow2", slow.as_str())];
        scripts.extend(more);
        let mut list = host.read("etc/ctrl-exec-agent/scripts.conf");
        for (name, body) in scripts {
            let path = host.script(name, body);
            list.push_str(&format!("{name} = {}\n", path.display()));
        }
        host.write("etc/ctrl-exec-agent/scripts.conf", list, 0o640);
        let before = host.read("etc/ctrl-exec-agent/agent.conf");
        host.write(
            "etc/ctrl-exec-agent/agent.conf",
            before.replace("\n[tags]", &format!("{conf}\n[tags]")),
            0o640,
        );
        let agent = Agent::start(host);
        Self {
            fleet,
            second,
            agent,
        }
    }

    fn host(&self) -> &common::Host {
        &self.fleet.agents[0]
    }

    #[track_caller]
    fn call(&self, who: &Leaf, method: &str, path: &str, body: &Value) -> (u16, Value) {
        let body = if method == "GET" {
            String::new()
        } else {
            body.to_string()
        };
        let reply = tls::request(
            self.agent.address(),
            Some(who),
            method,
            path,
            body.as_bytes(),
        )
        .unwrap();
        (reply.status, reply.json())
    }

    #[track_caller]
    fn submit_as(&self, who: &Leaf, script: &str, reqid: &str) -> (u16, Value) {
        let body = json!({"script": script, "args": ["a b"], "reqid": reqid, "async": true, "token": "s3cret"});
        self.call(who, "POST", "/run", &body)
    }

    #[track_caller]
    fn submit(&self, script: &str, reqid: &str) -> (u16, Value) {
        self.submit_as(&self.fleet.dispatcher_leaf, script, reqid)
    }

    #[track_caller]
    fn accepted(&self, script: &str, reqid: &str) {
        assert_eq!(
            self.submit(script, reqid),
            (
                202,
                json!({"script": script, "status": "accepted", "reqid": reqid})
            )
        );
    }

    #[track_caller]
    fn result_as(&self, who: &Leaf, reqid: &str) -> (u16, Value) {
        self.call(who, "GET", &format!("/result/{reqid}"), &Value::Null)
    }

    #[track_caller]
    fn result(&self, reqid: &str) -> Value {
        let (status, body) = self.result_as(&self.fleet.dispatcher_leaf, reqid);
        assert_eq!(status, 200, "{body}");
        assert_eq!(
            (&body["reqid"], &body["owner"]),
            (&json!(reqid), &json!("ctl"))
        );
        body
    }

    #[track_caller]
    fn done(&self, reqid: &str) -> Value {
        wait_until(&format!("end of {reqid}"), PATIENCE, || {
            let result = self.result(reqid);
            (result["status"] == "done").then_some(result)
        })
    }

    #[track_caller]
    fn cancel(&self, who: &Leaf, reqid: &str) -> (u16, Value) {
        self.call(who, "POST", "/cancel", &json!({ "reqid": reqid }))
    }

    fn go(&self) {
        self.host().write("tmp/go", "", 0o644);
    }

    fn file(&self, name: &str) -> PathBuf {
        self.host().path(RUNS).join("ctl").join(name)
    }

    /// The process that answers for a run.
    fn supervisor(&self, reqid: &str) -> Pid {
        let text = std::fs::read_to_string(self.file(&format!("{reqid}.live"))).unwrap();
        Pid::from_raw(text.trim().parse().unwrap()).unwrap()
    }

    #[track_caller]
    fn restart(&mut self) {
        self.agent.term();
        assert!(self.agent.daemon().wait(PATIENCE).success());
        self.host().clear_log();
        self.agent = Agent::start(&self.fleet.agents[0]);
    }
}

fn is_gone(pid: i32) -> Option<()> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    (stat.is_empty() || stat.contains(") Z ")).then_some(())
}

fn unknown(reqid: &str) -> (u16, Value) {
    (404, json!({"status": "unknown", "reqid": reqid}))
}

#[test]
fn a_run_is_accepted_shows_what_it_says_and_ends_in_a_record() {
    let stage = Stage::new(&[]);
    stage.accepted("slow", "r1");
    let line = stage.host().wait_for_log(&["ACTION=run-async", "REQID=r1"]);
    assert_eq!(line.priority, INFO);
    assert_eq!(
        (
            line.field("DISPATCHER").as_deref(),
            line.field("SCRIPT").as_deref()
        ),
        (Some("ctl"), Some("slow"))
    );
    let first = stage.result("r1");
    assert_eq!(
        (&first["status"], &first["script"], &first["via"]),
        (&json!("running"), &json!("slow"), &json!("agent"))
    );
    assert!(first.get("exit").is_none() && first.get("finished").is_none());
    let shown = wait_until("partial output", PATIENCE, || {
        let result = stage.result("r1");
        (result["stdout"] == "begun\n").then_some(result)
    });
    assert_eq!(
        (&shown["status"], &shown["stderr"]),
        (&json!("running"), &json!("warn\n"))
    );
    stage
        .host()
        .wait_for_log(&["ACTION=result", "REQID=r1", "STATUS=running"]);

    // The token is in no argument that others can read.
    let supervisor = stage.supervisor("r1").as_raw_nonzero();
    let words = std::fs::read_to_string(format!("/proc/{supervisor}/cmdline")).unwrap();
    assert!(
        words.contains("job-supervisor") && !words.contains("s3cret"),
        "{words:?}"
    );
    stage.go();
    let done = stage.done("r1");
    assert_eq!(
        (&done["exit"], &done["stdout"], &done["stderr"]),
        (&json!(5), &json!("begun\nended\n"), &json!("warn\n"))
    );
    assert_eq!(done["started"], first["started"]);
    assert!(done["finished"].as_str().unwrap() >= done["started"].as_str().unwrap());
    assert_eq!(stage.host().json(&format!("{RUNS}/ctl/r1.json")), done);
    assert_eq!(stage.host().mode(&format!("{RUNS}/ctl/r1.json")), 0o640);
    assert_eq!(stage.host().mode(RUNS), 0o750);
    wait_until("nothing but the record", PATIENCE, || {
        let left = std::fs::read_dir(stage.host().path(RUNS).join("ctl")).unwrap();
        (left.count() == 1).then_some(())
    });
    stage.host().wait_for_log(&[
        "ACTION=run-async-done",
        "DISPATCHER=ctl",
        "EXIT=5",
        "REQID=r1",
        "SCRIPT=slow",
    ]);
    assert!(
        !stage
            .host()
            .log_lines()
            .iter()
            .any(|line| line.text.contains("s3cret"))
    );
}

#[test]
fn the_script_gets_its_context_its_arguments_and_its_environment() {
    let stage = Stage::new(&[("show", "printf '[%s]' \"$@\"; cat; echo; env | sort")]);
    stage.accepted("show", "r1");
    let out = stage.done("r1")["stdout"].as_str().unwrap().to_owned();
    let (head, rest) = out.split_once('\n').unwrap();
    let context: Value = serde_json::from_str(head.strip_prefix("[a b]").unwrap()).unwrap();
    assert_eq!(
        (
            &context["script"],
            &context["args"],
            &context["reqid"],
            &context["dispatcher"],
            &context["token"]
        ),
        (
            &json!("show"),
            &json!(["a b"]),
            &json!("r1"),
            &json!("ctl"),
            &json!("s3cret")
        )
    );
    assert!(
        !rest.contains("CTRL_EXEC") && rest.contains("PATH=/usr/local/sbin:"),
        "{rest}"
    );
}

#[test]
fn a_script_runs_once_at_a_time_and_a_request_id_counts_once() {
    let stage = Stage::new(&[]);
    stage.accepted("slow", "r1");
    let busy = |reqid: &str| {
        (
            409,
            json!({"script": "slow", "status": "busy", "reqid": reqid, "error": "script already running"}),
        )
    };
    assert_eq!(stage.submit("slow", "r2"), busy("r2"));
    assert_eq!(stage.submit_as(&stage.second, "slow", "r3"), busy("r3"));
    // The same request once more, because its answer was lost.
    assert_eq!(stage.submit("slow", "r1"), busy("r1"));
    let line = stage
        .host()
        .wait_for_log(&["ACTION=run-async-busy", "REQID=r2", "SCRIPT=slow"]);
    assert_eq!(line.priority, WARNING);
    assert_eq!(
        stage.result_as(&stage.fleet.dispatcher_leaf, "r2"),
        unknown("r2")
    );

    // Another script runs beside it, but not under the same name.
    stage.accepted("slow2", "r4");
    let used = "async run requires a valid reqid: it is in use already";
    let (status, body) = stage.submit("true", "r1");
    assert_eq!((status, &body["exit"]), (200, &json!(-1)));
    assert_eq!(body["error"], used);
    stage.go();
    stage.done("r1");
    stage.done("r4");
    let (_, body) = stage.submit("true", "r1");
    assert_eq!(body["error"], used);
    assert_eq!(stage.result("r1")["script"], "slow");
    // Free again, and the same name means nothing to another dispatcher.
    wait_until("the lock is free", PATIENCE, || {
        (stage.submit_as(&stage.second, "slow", "r1").0 == 202).then_some(())
    });
}

#[test]
fn refusals_are_those_of_a_run_and_leave_nothing_behind() {
    let stage = Stage::new(&[]);
    for (script, reqid, error) in [
        ("nonesuch", "r1", "script not permitted"),
        ("slow", "../evil", "async run requires a valid reqid"),
        ("slow", "", "async run requires a valid reqid"),
    ] {
        let (status, body) = stage.submit(script, reqid);
        assert_eq!(status, 200);
        assert_eq!(
            body,
            json!({"script": script, "reqid": reqid, "exit": -1, "error": error})
        );
    }
    assert!(!stage.host().exists(RUNS));
    // Where the store should be lies something else.
    stage.host().write(RUNS, "a file", 0o644);
    let (status, body) = stage.submit("slow", "r1");
    assert_eq!((status, &body["exit"]), (200, &json!(-1)));
    let error = body["error"].as_str().unwrap();
    assert!(error.starts_with("could not start async job: "), "{error}");
    stage
        .host()
        .wait_for_log(&["ACTION=async-store-fail", "REQID=r1"]);
}

#[test]
fn a_run_belongs_to_the_dispatcher_that_began_it() {
    let stage = Stage::new(&[]);
    stage.accepted("slow", "r1");
    assert_eq!(stage.result_as(&stage.second, "r1"), unknown("r1"));
    assert_eq!(stage.cancel(&stage.second, "r1"), unknown("r1"));
    assert_eq!(stage.result("r1")["status"], "running");
    let miss = stage
        .host()
        .wait_for_log(&["ACTION=result-miss", "DISPATCHER=second", "REQID=r1"]);
    assert_eq!(miss.priority, INFO);
    // A record in the wrong directory stays its owner's.
    stage.go();
    let done = stage.done("r1");
    let moved = format!("{RUNS}/second/r1.json");
    stage.host().write(&moved, done.to_string(), 0o640);
    assert_eq!(stage.result_as(&stage.second, "r1"), unknown("r1"));
    let deny = stage
        .host()
        .wait_for_log(&["ACTION=result-deny", "REASON=not-owner"]);
    assert_eq!(deny.priority, WARNING);
    // Whom nobody trusts learns nothing and ends nothing.
    let stranger = &stage.fleet.agent_leaves[0];
    assert_eq!(stage.result_as(stranger, "r1").0, 403);
    assert_eq!(stage.cancel(stranger, "r1").0, 403);
}

#[test]
fn a_run_survives_the_restart_of_its_agent() {
    let mut stage = Stage::new(&[]);
    stage.accepted("slow", "r1");
    let supervisor = stage.supervisor("r1");
    stage.restart();
    assert_eq!(stage.result("r1")["status"], "running");
    assert_eq!(stage.supervisor("r1"), supervisor);
    assert_eq!(stage.submit("slow", "r2").0, 409);
    stage.go();
    let done = stage.done("r1");
    assert_eq!(
        (&done["exit"], &done["stdout"]),
        (&json!(5), &json!("begun\nended\n"))
    );
    assert!(done.get("lost").is_none());
}

#[test]
fn a_run_whose_supervisor_is_killed_is_lost_and_says_so() {
    let mut stage = Stage::new(&[("self", "echo $$; exec sleep 300")]);
    // The script ends with whoever answers for it, so that the next one does not run beside it.
    stage.accepted("self", "r0");
    let script = wait_until("partial output", PATIENCE, || {
        stage.result("r0")["stdout"]
            .as_str()?
            .trim()
            .parse::<i32>()
            .ok()
    });
    rustix::process::kill_process(stage.supervisor("r0"), Signal::KILL).unwrap();
    wait_until("the script is gone", PATIENCE, || is_gone(script));
    assert_eq!(stage.done("r0")["lost"], true);
    stage.accepted("slow", "r1");
    wait_until("partial output", PATIENCE, || {
        (stage.result("r1")["stdout"] == "begun\n").then_some(())
    });
    rustix::process::kill_process(stage.supervisor("r1"), Signal::KILL).unwrap();
    let lost = stage.done("r1");
    assert_eq!(
        (&lost["exit"], &lost["lost"], &lost["stdout"]),
        (&json!(-1), &json!(true), &json!("begun\n"))
    );
    let stderr = lost["stderr"].as_str().unwrap();
    assert!(stderr.starts_with("warn\nlost: "), "{stderr}");
    let line = stage
        .host()
        .wait_for_log(&["ACTION=run-async-lost", "REQID=r1", "SCRIPT=slow"]);
    assert_eq!(line.priority, WARNING);
    // Its lock is free, and its name stays used.
    stage.accepted("slow", "r2");

    // The same when nobody was there to see it: found at the start.
    stage.agent.term();
    assert!(stage.agent.daemon().wait(PATIENCE).success());
    rustix::process::kill_process(stage.supervisor("r2"), Signal::KILL).unwrap();
    stage.agent = Agent::start(&stage.fleet.agents[0]);
    stage
        .host()
        .wait_for_log(&["ACTION=run-async-lost", "REQID=r2"]);
    assert_eq!(stage.result("r2")["lost"], true);
    stage.go();
}

#[test]
fn a_run_is_ended_on_request_with_everything_that_it_started() {
    let stage = Stage::new(&[(
        "tree",
        "sleep 300 & echo $! ; echo begun; trap 'exit 0' TERM; wait",
    )]);
    let ctl = &stage.fleet.dispatcher_leaf;
    assert_eq!(stage.cancel(ctl, "r1"), unknown("r1"));
    stage.accepted("tree", "r1");
    let child = wait_until("partial output", PATIENCE, || {
        let result = stage.result("r1");
        let out = result["stdout"].as_str()?.to_owned();
        Some(out.split_once("\nbegun\n")?.0.parse::<i32>().unwrap())
    });
    assert_eq!(
        stage.cancel(ctl, "r1"),
        (202, json!({"status": "cancelling", "reqid": "r1"}))
    );
    stage
        .host()
        .wait_for_log(&["ACTION=cancel", "DISPATCHER=ctl", "REQID=r1"]);
    let done = stage.done("r1");
    // Never a success, whatever the script made of the signal.
    assert_eq!(
        (&done["exit"], &done["cancelled"]),
        (&json!(126), &json!(true))
    );
    assert!(done["stderr"].as_str().unwrap().ends_with("cancelled\n"));
    wait_until("the background child is gone", PATIENCE, || is_gone(child));
    assert_eq!(
        stage.cancel(ctl, "r1"),
        (
            409,
            json!({"status": "done", "reqid": "r1", "error": "run already ended"})
        )
    );
    for (body, error) in [
        (json!([1]), "invalid JSON"),
        (json!({}), "cancel requires a valid reqid"),
        (json!({"reqid": "../r1"}), "cancel requires a valid reqid"),
    ] {
        let answer = stage.call(ctl, "POST", "/cancel", &body);
        assert_eq!(answer, (400, json!({ "error": error })));
    }
    assert_eq!(
        stage.call(ctl, "GET", "/cancel", &Value::Null),
        (404, json!({"error": "not found"}))
    );
}

#[test]
fn a_supervisor_that_is_told_to_stop_ends_its_script_and_says_why() {
    let stage = Stage::new(&[]);
    stage.accepted("slow", "r1");
    rustix::process::kill_process(stage.supervisor("r1"), Signal::TERM).unwrap();
    let done = stage.done("r1");
    assert_eq!(done["exit"], 126);
    let stderr = done["stderr"].as_str().unwrap();
    assert!(stderr.contains("told to stop"), "{stderr}");
    assert!(done.get("lost").is_none());
}

#[test]
fn the_limits_of_a_run_hold_for_an_asynchronous_one() {
    let stage = Stage::with_conf(
        "run_timeout = 1\nmax_output = 2048\n",
        &[("flood", "head -c 100000 /dev/zero | tr '\\0' x")],
    );
    stage.accepted("slow", "r1");
    stage.accepted("flood", "r2");
    let late = stage.done("r1");
    assert_eq!(
        (&late["exit"], &late["timed_out"]),
        (&json!(126), &json!(true))
    );
    assert!(
        late["stderr"]
            .as_str()
            .unwrap()
            .ends_with("timed out after 1s\n")
    );
    let flood = stage.done("r2");
    assert_eq!(
        (&flood["exit"], &flood["truncated"]),
        (&json!(0), &json!(true))
    );
    assert!(flood["stdout"].as_str().unwrap().len() < 2048 + 100);
}

#[test]
fn old_records_go_and_what_others_left_is_not_believed() {
    let mut stage = Stage::new(&[]);
    stage.accepted("true", "old");
    stage.accepted("hello", "fresh");
    stage.accepted("slow", "alive");
    stage.done("old");
    let fresh = stage.done("fresh");
    let age = |name: &str| {
        let file = std::fs::File::open(stage.file(name)).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(86_400 + 60))
            .unwrap();
    };
    age("old.json");
    age("alive.json");
    // Changed, cut, and a link to somewhere else.
    let text = fresh.to_string();
    std::fs::write(stage.file("renamed.json"), &text).unwrap();
    std::fs::write(stage.file("cut.json"), &text[..text.len() / 2]).unwrap();
    std::os::unix::fs::symlink("/etc/hostname", stage.file("link.json")).unwrap();
    stage.restart();
    wait_until("the sweep", PATIENCE, || {
        (!stage.file("old.json").exists()).then_some(())
    });
    let ctl = &stage.fleet.dispatcher_leaf;
    assert_eq!(stage.result_as(ctl, "old"), unknown("old"));
    assert_eq!(stage.result("alive")["status"], "running");
    assert_eq!(stage.result("fresh"), fresh);
    for name in ["renamed", "cut", "link"] {
        assert_eq!(stage.result_as(ctl, name), unknown(name));
        assert_eq!(stage.cancel(ctl, name), unknown(name));
        stage
            .host()
            .wait_for_log(&["ACTION=async-record-skip", &format!("{name}.json")]);
    }
    stage.go();
    stage.done("alive");
}

#[test]
fn a_record_of_the_original_is_shown_as_it_is() {
    let stage = Stage::new(&[]);
    let done = json!({"reqid": "0011aabb", "script": "slow", "owner": "ctl", "status": "done", "started": "2026-01-02T03:04:05Z",
        "finished": "2026-01-02T03:05:05Z", "exit": 0, "stdout": "x\n", "stderr": "", "more": [1]});
    stage.host().write(
        &format!("{RUNS}/ctl/0011aabb.json"),
        done.to_string(),
        0o640,
    );
    assert_eq!(stage.result("0011aabb"), done);
    // One that was running when the host went down.
    let running = json!({"reqid": "cc", "script": "slow", "owner": "ctl", "status": "running", "started": "2026-01-02T03:04:05Z"});
    stage
        .host()
        .write(&format!("{RUNS}/ctl/cc.json"), running.to_string(), 0o640);
    assert_eq!(stage.result("cc")["lost"], true);
}

#[test]
fn a_waiting_run_takes_no_place_from_anybody() {
    let stage = Stage::with_conf("max_children = 2\n", &[]);
    stage.accepted("slow", "r1");
    stage.accepted("slow2", "r2");
    for _ in 0..5 {
        assert_eq!(stage.result("r1")["status"], "running");
    }
    stage.go();
    stage.done("r1");
    stage.done("r2");
}

#[test]
fn nobody_starts_a_supervisor_by_hand() {
    let stage = Stage::new(&[]);
    stage
        .host()
        .cea(&["job-supervisor"])
        .expect_code(64)
        .err_has("never by hand");
    assert!(!stage.host().cea(&[]).ok().out().contains("job-supervisor"));
}
