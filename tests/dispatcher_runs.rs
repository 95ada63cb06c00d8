//! Runs as the dispatcher keeps them: one of a script on a host at a time, asynchronous runs from their submission to their end, records of
//! both kinds (spec/dispatcher.md 10.2-10.4, 10.9, 11, 13).

#![allow(clippy::unwrap_used, reason = "helpers of tests stop as tests do")]

mod common;

use std::time::{Duration, SystemTime};

use common::fleet::{allow, legacy_map, legacy_record, register};
use common::syslog::{ERR, INFO, WARNING};
use common::{Agent, Daemon, Legacy, PATIENCE, Paired, Run, python, wait_until};
use rustix::process::Signal;
use serde_json::{Value, json};

const RUNS: &str = "var/lib/ctrl-exec/runs";
const LOCKS: &str = "var/lib/ctrl-exec/locks";

/// Two agents whose scripts `slow` and `slow2` say `begun`, wait for the file `go` of their host, and end with 0 on the first host, 5 on the
/// second.
struct Stage {
    fleet: Paired,
    agents: Vec<Agent>,
}

impl Stage {
    fn new() -> Self {
        let fleet = Paired::new(&["web1.test", "web2.test"]);
        for (host, exit) in fleet.agents.iter().zip([0, 5]) {
            for name in ["slow", "slow2"] {
                let go = host.path("tmp/go");
                let body = format!(
                    "echo begun; echo warn >&2; i=0; while [ ! -e {} ] && [ $i -lt 1200 ]; do sleep 0.05; i=$((i+1)); done; \
                     echo ended; exit {exit}",
                    go.display()
                );
                allow(host, name, &body);
            }
        }
        let agents = fleet.start();
        Self { fleet, agents }
    }

    fn ced(&self, words: &[&str]) -> Run {
        self.fleet.ced(words)
    }

    fn go(&self, host: usize) {
        self.fleet.agents[host].write("tmp/go", "", 0o644);
    }

    /// Submits and answers the request id.
    #[track_caller]
    fn submit(&self, words: &[&str]) -> String {
        let told = self
            .ced(&[&["run", "--async", "--json"], words].concat())
            .ok()
            .json();
        assert_eq!(told["ok"], 1);
        told["reqid"].as_str().unwrap().to_owned()
    }

    fn record(&self, reqid: &str) -> Value {
        self.fleet.dispatcher.json(&format!("{RUNS}/{reqid}.json"))
    }

    #[track_caller]
    fn status(&self, reqid: &str) -> Value {
        self.ced(&["status", "--json", reqid]).ok().json()
    }

    /// A synchronous run in the background that has begun.
    #[track_caller]
    fn begin(&self, words: &[&str]) -> Daemon {
        let run = self.fleet.dispatcher.start("ced", words);
        wait_until("the locks are held", PATIENCE, || {
            let held = self.ced(&["list-locks", "--json"]).ok().json();
            (held["locks"] != json!([])).then_some(())
        });
        run
    }

    /// The runs that are on record; tests have only a few.
    fn recorded(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.fleet.dispatcher.path(RUNS)).unwrap();
        entries
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.ends_with(".json"))
            .collect()
    }
}

#[test]
fn an_asynchronous_run_from_its_submission_to_its_end() {
    let stage = Stage::new();
    let dispatcher = &stage.fleet.dispatcher;
    let run = stage
        .ced(&["run", "--async", "web1.test", "web2.test", "slow"])
        .ok();
    let out = run.out();
    let reqid = out
        .strip_prefix("Submitted async run  req:")
        .and_then(|rest| rest.get(..16))
        .unwrap_or_else(|| panic!("{out}"))
        .to_owned();
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(lines.len(), 4, "{out}");
    for (line, host) in lines[1..3].iter().zip(["web1.test", "web2.test"]) {
        assert!(
            line.starts_with(&format!("==> {host}  [accepted  ")) && line.ends_with("ms]"),
            "{out}"
        );
    }
    assert_eq!(
        lines[3],
        format!("Check progress with: ctrl-exec-dispatcher status {reqid}")
    );
    dispatcher.wait_for_log(&["ACTION=dispatch", "MODE=async", &reqid, "SCRIPT=slow"]);
    for host in 0..2 {
        let target = format!("TARGET=127.0.0.1:{}", stage.fleet.ports[host]);
        let line = dispatcher.wait_for_log(&["ACTION=run-async", "STATUS=accepted", &target]);
        assert_eq!(line.priority, INFO);
    }
    let record = stage.record(&reqid);
    assert_eq!(
        (&record["mode"], &record["script"], &record["complete"]),
        (&json!("async"), &json!("slow"), &json!(false))
    );
    assert_eq!(record["pending"], json!(["web1.test", "web2.test"]));
    assert_eq!(record["hosts"]["web1.test"], json!({"status": "accepted"}));
    assert!(record["created"].as_i64().unwrap() > 1_700_000_000);
    assert_eq!(dispatcher.mode(&format!("{RUNS}/{reqid}.json")), 0o640);
    assert_eq!(dispatcher.mode(RUNS), 0o2770);

    // Busy on both hosts, so nobody has accepted; the locks of the dispatcher were free.
    let busy = stage
        .ced(&["run", "--async", "web2.test", "web1.test", "slow"])
        .expect_code(1)
        .out();
    assert!(
        busy.contains("==> web2.test  [BUSY: script already running]\n==> web1.test  [BUSY: "),
        "{busy}"
    );
    let line = dispatcher.wait_for_log(&["ACTION=run-async", "STATUS=busy"]);
    assert_eq!(line.priority, WARNING);
    // One accepts, one refuses in a 200, one is not there.
    allow(&stage.fleet.agents[0], "only1", "exit 0");
    stage.agents[0].hup();
    stage.fleet.agents[0].wait_for_log(&["ACTION=config-reload"]);
    let mut gone = dispatcher.json("var/lib/ctrl-exec/agents/web1.test.json");
    gone["hostname"] = json!("gone.test");
    gone["port"] = json!(common::free_port());
    register(dispatcher, &gone);
    let mixed = stage
        .ced(&[
            "run",
            "--async",
            "--json",
            "web1.test",
            "web2.test",
            "gone.test",
            "only1",
        ])
        .ok()
        .json();
    let told: Vec<(&str, &str)> = mixed["results"]
        .as_array()
        .unwrap()
        .iter()
        .map(|r| {
            assert_eq!(
                (&r["reqid"], &r["script"]),
                (&mixed["reqid"], &json!("only1"))
            );
            (
                r["status"].as_str().unwrap(),
                r["error"].as_str().unwrap_or_default(),
            )
        })
        .collect();
    assert_eq!(told[0], ("accepted", ""));
    assert_eq!(told[1], ("error", "script not permitted"));
    assert!(
        told[2].0 == "error" && told[2].1.contains("connection refused"),
        "{told:?}"
    );
    let line = dispatcher.wait_for_log(&["ACTION=run-async", "ERROR=\"script not permitted\""]);
    assert_eq!(line.priority, ERR);
    let kept = stage.record(mixed["reqid"].as_str().unwrap());
    assert_eq!(kept["pending"], json!(["web1.test"]));
    assert_eq!(
        kept["hosts"]["web2.test"],
        json!({"status": "error", "error": "script not permitted"})
    );

    // While it goes on.
    let out = stage.ced(&["status", &reqid]).ok().out();
    assert_eq!(
        out,
        format!(
            "Request {reqid}  (script: slow)  [PENDING]\n==> web1.test  [running]\n==> web2.test  [running]\n"
        )
    );
    dispatcher.wait_for_log(&["ACTION=result", "STATUS=running", &reqid]);
    let start = std::time::Instant::now();
    let pending = stage
        .ced(&["wait", &reqid, "--timeout", "1"])
        .expect_code(2);
    assert!(pending.out().contains("[PENDING]"), "{}", pending.out());
    assert!(start.elapsed() >= Duration::from_secs(1));
    stage
        .ced(&["wait", &reqid, "--timeout", "0", "--json"])
        .expect_code(2);

    // One ends, then the other.
    stage.go(0);
    wait_until("the first has ended", PATIENCE, || {
        (stage.status(&reqid)["pending"] == json!(["web2.test"])).then_some(())
    });
    let first = stage.record(&reqid);
    assert_eq!(
        first["hosts"]["web1.test"],
        json!({"status": "done", "exit": 0, "stdout": "begun\nended\n", "stderr": "warn\n"})
    );
    stage.go(1);
    let out = stage.ced(&["wait", &reqid]).expect_code(1).out();
    assert_eq!(
        out,
        format!(
            "Request {reqid}  (script: slow)  [COMPLETE]\n\
             ==> web1.test  [done  exit:0]\nbegun\nended\n    STDERR: warn\n\
             ==> web2.test  [done  exit:5]\nbegun\nended\n    STDERR: warn\n"
        )
    );
    // Over is over: nobody is asked any more, not even with the agents gone.
    drop(stage.agents);
    let last = stage.fleet.ced(&["status", "--json", &reqid]).ok().json();
    assert_eq!((&last["ok"], &last["complete"]), (&json!(1), &json!(true)));
    assert_eq!(last["hosts"]["web2.test"]["exit"], 5);
}

#[test]
fn hosts_at_other_ports_and_hosts_that_are_named_twice() {
    let stage = Stage::new();
    let port = stage.fleet.ports[0];
    let path = "var/lib/ctrl-exec/agents/web1.test.json";
    let mut record = stage.fleet.dispatcher.json(path);
    record["port"] = json!(common::free_port());
    register(&stage.fleet.dispatcher, &record);
    let word = format!("web1.test:{port}");
    let reqid = stage.submit(&[&word, &word, "true"]);
    let record = stage.record(&reqid);
    assert_eq!(record["pending"], json!(["web1.test"]));
    assert_eq!(record["hosts"]["web1.test"]["port"], port);
    stage.ced(&["wait", &reqid]).ok();
    stage
        .ced(&["run", "--async", &word, "web1.test", "true"])
        .expect_code(64)
        .err_has("'web1.test' is named with two ports");
    // Unknown options of other verbs, missing words.
    stage.ced(&["status"]).expect_code(64);
    stage.ced(&["wait", "a", "b"]).expect_code(64);
    stage
        .ced(&["wait", &reqid, "--timeout", "soon"])
        .expect_code(64);
    for verb in ["run", "status", "wait", "cancel", "jobs", "list-locks"] {
        stage.ced(&[verb, "--help"]).ok().out_has("--json");
    }
}

#[test]
fn a_synchronous_run_leaves_a_record() {
    let stage = Stage::new();
    let told = stage
        .ced(&["run", "--json", "web2.test", "web1.test", "fail"])
        .expect_code(1)
        .json();
    let names = stage.recorded();
    assert_eq!(names.len(), 1, "{names:?}");
    let reqid = names[0].strip_suffix(".json").unwrap();
    let record = stage.record(reqid);
    assert_eq!(record["results"], told["results"]);
    assert_eq!(
        (&record["mode"], &record["complete"], &record["hosts"]),
        (
            &json!("sync"),
            &json!(true),
            &json!(["web2.test", "web1.test"])
        )
    );
    assert!(record["completed"].as_i64().unwrap() > 1_700_000_000);
    assert!(record.get("submitter").is_none() && record.get("pending").is_none());
    let shown = stage.ced(&["status", reqid]).ok().out();
    assert!(
        shown.starts_with(&format!(
            "Request {reqid}  (script: fail)  [COMPLETE]\n==> web2.test  [FAIL  exit:42  "
        )) && shown.contains("\nout\n    STDERR: err\n==> web1.test  [FAIL"),
        "{shown}"
    );
    // On such a record the original crashes here.
    assert_eq!(stage.ced(&["wait", reqid]).expect_code(1).out(), shown);
    let good = stage.ced(&["run", "web1.test", "hello"]).ok().out();
    let reqid = &good[good.find("req:").unwrap() + 4..][..16];
    let again = stage.ced(&["wait", reqid]).ok().out();
    assert_eq!(again.split_once('\n').unwrap().1, good);
    assert_eq!(
        stage.ced(&["cancel", reqid]).ok().out().lines().next(),
        Some("Nothing to cancel: the run has ended on every host.")
    );

    // Nowhere to write: the run goes on.
    let dispatcher = &stage.fleet.dispatcher;
    let toml = dispatcher.read("etc/ctrl-exec/ctrl-exec.toml");
    dispatcher.write("etc/ctrl-exec/blocked", "", 0o600);
    dispatcher.write(
        "etc/ctrl-exec/ctrl-exec.toml",
        format!("runs_dir = \"/etc/ctrl-exec/blocked/runs\"\n{toml}"),
        0o640,
    );
    stage
        .ced(&["run", "web1.test", "hello"])
        .ok()
        .err_has("could not be recorded: cannot create '")
        .out_has("[OK  exit:0");
    let line = dispatcher.wait_for_log(&["ACTION=run-store-fail", "ERROR="]);
    assert_eq!(line.priority, WARNING);
    stage
        .ced(&["run", "--async", "web1.test", "true"])
        .ok()
        .err_has("could not be recorded")
        .out_has("[accepted");
}

#[test]
fn what_is_not_there_and_what_cannot_be_read() {
    let stage = Stage::new();
    for word in ["0123456789abcdef", "../evil", "a b", ""] {
        for verb in ["status", "wait", "cancel"] {
            let run = stage.ced(&[verb, word]).expect_code(1);
            assert_eq!(run.err(), format!("No such request: {word}\n"));
            assert_eq!(
                stage.ced(&[verb, "--json", word]).expect_code(1).json(),
                json!({"ok": 0, "error": "not found", "reqid": word})
            );
        }
    }
    let dispatcher = &stage.fleet.dispatcher;
    dispatcher.write(&format!("{RUNS}/corrupt.json"), "{\"reqid\":", 0o640);
    for verb in ["status", "wait", "cancel"] {
        stage
            .ced(&[verb, "corrupt"])
            .expect_code(1)
            .err_has("runs/corrupt.json' is no record of this run: EOF");
        let told = stage
            .ced(&[verb, "--json", "corrupt"])
            .expect_code(1)
            .json();
        assert!(
            told["ok"] == 0 && told["error"].as_str().unwrap().contains("corrupt.json"),
            "{told}"
        );
    }
    // It hides nobody.
    stage.ced(&["run", "web1.test", "hello"]).ok();
    let jobs = stage
        .ced(&["jobs", "--json"])
        .ok()
        .err_has("corrupt.json' is no record")
        .json();
    assert_eq!(jobs["jobs"].as_array().unwrap().len(), 1, "{jobs}");
}

#[test]
fn one_run_of_a_script_on_a_host_at_a_time() {
    let stage = Stage::new();
    let dispatcher = &stage.fleet.dispatcher;
    assert_eq!(
        stage.ced(&["list-locks"]).ok().out(),
        "No locks currently held.\n"
    );
    assert_eq!(
        stage.ced(&["list-locks", "--json"]).ok().json(),
        json!({"ok": 1, "locks": []})
    );
    let port = stage.fleet.ports[0];
    let with_port = format!("web1.test:{port}");
    // Twice the same host is no conflict with oneself.
    let mut first = stage.begin(&["run", &with_port, "web1.test", "slow"]);
    assert_eq!(
        stage.ced(&["list-locks", "--json"]).ok().json()["locks"],
        json!([{"host": "web1.test", "script": "slow"}])
    );
    assert_eq!(
        stage.ced(&["list-locks"]).ok().out(),
        format!(
            "{:<30}  SCRIPT\n{}\n{:<30}  slow\n",
            "HOST",
            "-".repeat(50),
            "web1.test"
        )
    );
    dispatcher.wait_for_log(&["ACTION=lock-acquire", "HOST=web1.test", "SCRIPT=slow"]);

    let before = stage.fleet.agents[0].log_of("run").len();
    let refused = stage
        .ced(&["run", "web2.test", "web1.test", "slow"])
        .expect_code(1);
    assert_eq!(
        (refused.out().as_str(), refused.err().as_str()),
        ("", "Locked: already running: web1.test:slow\n")
    );
    assert_eq!(
        stage
            .ced(&["run", "--json", "web1.test", "slow"])
            .expect_code(1)
            .json(),
        json!({"ok": 0, "error": "locked", "code": 4, "conflicts": ["web1.test:slow"]})
    );
    stage
        .ced(&["run", "--async", "web1.test", "slow"])
        .expect_code(1)
        .err_has("Locked: ");
    let line = dispatcher.wait_for_log(&["ACTION=lock-conflict", "CONFLICTS=web1.test:slow"]);
    assert_eq!(line.priority, WARNING);
    assert_eq!(stage.fleet.agents[0].log_of("run").len(), before);
    // Another script, another host.
    stage.ced(&["run", "web1.test", "hello"]).ok();
    let mut second = dispatcher.start("ced", &["run", "web2.test", "slow"]);
    wait_until("both are held", PATIENCE, || {
        let held = stage.ced(&["list-locks", "--json"]).ok().json();
        (held["locks"].as_array().unwrap().len() == 2).then_some(())
    });
    assert_eq!(
        stage
            .ced(&["run", "--json", "web2.test", "web1.test", "slow"])
            .expect_code(1)
            .json()["conflicts"],
        json!(["web2.test:slow", "web1.test:slow"])
    );

    // However the holder ends.
    second.signal(Signal::KILL);
    second.wait(PATIENCE);
    stage.go(1);
    stage
        .ced(&["run", "web2.test", "slow"])
        .expect_code(1)
        .out_has("exit:5");
    stage.go(0);
    assert!(
        first.wait(PATIENCE).success(),
        "{}{}",
        first.out(),
        first.err()
    );
    dispatcher.wait_for_log(&["ACTION=lock-release", "HOSTS=web1.test", "SCRIPT=slow"]);
    stage.ced(&["run", "web1.test", "slow"]).ok();
    assert_eq!(
        dispatcher.mode(&format!("{LOCKS}/web1.test--slow.lock")),
        0o660
    );
    assert_eq!(dispatcher.mode(LOCKS), 0o2770);
    // No lock, no run.
    dispatcher.write(&format!("{LOCKS}/web1.test--hello.lock"), "", 0o660);
    std::fs::remove_file(dispatcher.path(&format!("{LOCKS}/web1.test--hello.lock"))).unwrap();
    std::fs::create_dir(dispatcher.path(&format!("{LOCKS}/web1.test--hello.lock"))).unwrap();
    stage
        .ced(&["run", "web1.test", "hello"])
        .expect_code(1)
        .err_has("web1.test--hello.lock")
        .err_has("locks_dir");
}

#[test]
fn a_run_is_cancelled_where_it_still_goes_on() {
    let stage = Stage::new();
    let reqid = stage.submit(&["web1.test", "web2.test", "slow"]);
    wait_until("both run", PATIENCE, || {
        let hosts = stage.status(&reqid)["hosts"].clone();
        (hosts["web1.test"]["status"] == "running" && hosts["web2.test"]["status"] == "running")
            .then_some(())
    });
    // The second ends by itself, and nobody has looked since.
    stage.go(1);
    stage.fleet.agents[1].wait_for_log(&["ACTION=run-async-done", &reqid]);
    let out = stage.ced(&["cancel", &reqid]).ok().out();
    assert!(
        out.contains("==> web1.test  [being cancelled]\n")
            && out.contains("==> web2.test  [had ended already]\n"),
        "{out}"
    );
    assert!(
        out.contains("[COMPLETE]\n==> web1.test  [done  exit:"),
        "{out}"
    );
    assert!(
        out.contains("    NOTE: cancelled on request\n")
            && out.contains("==> web2.test  [done  exit:5]"),
        "{out}"
    );
    let record = stage.record(&reqid);
    assert_eq!(record["hosts"]["web1.test"]["cancelled"], true);
    let line = stage
        .fleet
        .dispatcher
        .wait_for_log(&["ACTION=cancel", "STATUS=cancelling", &reqid]);
    assert_eq!(line.priority, INFO);
    stage.fleet.agents[0].wait_for_log(&["ACTION=cancel", "STATUS=cancelling", &reqid]);
    let again = stage.ced(&["cancel", "--json", &reqid]).ok().json();
    assert_eq!((&again["ok"], &again["cancel"]), (&json!(1), &json!({})));
    assert_eq!(again["hosts"], record["hosts"]);
    stage.ced(&["wait", &reqid]).expect_code(1);
}

#[test]
fn what_becomes_of_hosts_that_cannot_tell_the_end() {
    let mut stage = Stage::new();
    let reqid = stage.submit(&["web1.test", "web2.test", "slow"]);
    // Not reached: pending, with the reason.
    stage.agents.remove(0);
    let status = stage.status(&reqid);
    assert_eq!(status["hosts"]["web1.test"]["status"], "accepted");
    assert!(
        status["hosts"]["web1.test"]["fetch_error"]
            .as_str()
            .unwrap()
            .contains("connection refused"),
        "{status}"
    );
    stage
        .ced(&["status", &reqid])
        .ok()
        .out_has("==> web1.test  [accepted]\n    (fetch pending: host '127.0.0.1' did not respond");
    let line = stage
        .fleet
        .dispatcher
        .wait_for_log(&["ACTION=result", "ERROR=", &reqid]);
    assert_eq!(line.priority, ERR);
    let cancelled = stage
        .ced(&["cancel", "--json", &reqid])
        .expect_code(1)
        .json();
    assert_eq!(cancelled["cancel"]["web1.test"]["status"], "error");
    assert_eq!(cancelled["cancel"]["web2.test"]["status"], "cancelling");
    assert_eq!(cancelled["pending"], json!(["web1.test"]));

    // Unpaired meanwhile: the same, and no other host suffers from it.
    let kept = stage
        .fleet
        .dispatcher
        .read("var/lib/ctrl-exec/agents/web1.test.json");
    stage.ced(&["unpair", "web1.test"]).ok();
    stage
        .ced(&["status", &reqid])
        .ok()
        .out_has("(fetch pending: unknown agent: web1.test - unpaired or renamed since?");
    stage
        .ced(&["cancel", &reqid])
        .expect_code(1)
        .out_has("==> web1.test  [NOT CANCELLED: unknown agent: web1.test");
    stage
        .ced(&["wait", &reqid, "--timeout", "0"])
        .expect_code(2);
    stage
        .fleet
        .dispatcher
        .write("var/lib/ctrl-exec/agents/web1.test.json", kept, 0o644);

    // Back again, with no record of the run.
    std::fs::remove_dir_all(stage.fleet.agents[0].path("var/lib/ctrl-exec-agent/runs")).unwrap();
    stage.agents.push(Agent::start(&stage.fleet.agents[0]));
    stage
        .ced(&["cancel", &reqid])
        .expect_code(1)
        .out_has("==> web1.test  [NOT CANCELLED: the agent has no record of this run (any more)]\n")
        .out_has("==> web1.test  [EXPIRED]\n");
    let entry = stage.record(&reqid)["hosts"]["web1.test"].clone();
    assert_eq!(entry, json!({"status": "expired"}));
    stage.ced(&["wait", &reqid]).expect_code(1);
}

#[test]
fn many_who_look_at_once_lose_nothing() {
    let stage = Stage::new();
    let reqid = stage.submit(&["web1.test", "web2.test", "slow"]);
    let words = ["status", "--json", reqid.as_str()];
    let looks: Vec<Daemon> = (0..8)
        .map(|n| {
            if n == 2 {
                stage.go(0);
            }
            if n == 5 {
                stage.go(1);
            }
            stage.fleet.dispatcher.start("ced", &words)
        })
        .collect();
    for mut look in looks {
        assert!(look.wait(PATIENCE).success(), "{}", look.err());
        let seen: Value = serde_json::from_str(&look.out()).unwrap();
        assert_eq!(seen["hosts"].as_object().unwrap().len(), 2);
    }
    let out = stage.ced(&["wait", &reqid]).expect_code(1).out();
    assert!(
        out.contains("web1.test  [done  exit:0]") && out.contains("web2.test  [done  exit:5]"),
        "{out}"
    );
    let entries = std::fs::read_dir(stage.fleet.dispatcher.path(RUNS)).unwrap();
    let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names.len(), 2, "{names:?}");
}

#[test]
fn runs_are_listed_and_old_ones_go() {
    let stage = Stage::new();
    assert_eq!(stage.ced(&["jobs"]).ok().out(), "No runs on record.\n");
    assert_eq!(
        stage.ced(&["jobs", "--json"]).ok().json(),
        json!({"ok": 1, "jobs": []})
    );
    stage.ced(&["run", "web1.test", "hello"]).ok();
    let old = stage.recorded().pop().unwrap();
    // Records are listed by their own time, in seconds.
    let path = format!("{RUNS}/{old}");
    let mut record = stage.fleet.dispatcher.json(&path);
    record["completed"] = json!(record["completed"].as_i64().unwrap() - 300);
    record["submitter"] = json!({"username": "eve"});
    stage
        .fleet
        .dispatcher
        .write(&path, record.to_string(), 0o640);
    let reqid = stage.submit(&["web1.test", "web2.test", "slow"]);
    let out = stage.ced(&["jobs"]).ok().out();
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(
        lines[0],
        format!(
            "{:<16}  {:>5}  MODE   {:<28}  STATE",
            "REQID", "AGE", "SCRIPT"
        )
    );
    assert!(
        lines[2].starts_with(&reqid) && lines[2].ends_with("  running 2/2"),
        "{out}"
    );
    assert!(
        lines[3].starts_with(old.trim_end_matches(".json"))
            && lines[3].contains("     5m  sync   hello ")
            && lines[3].ends_with("  done"),
        "{out}"
    );
    stage.go(0);
    stage.go(1);
    stage.ced(&["wait", &reqid]).expect_code(1);
    let jobs = stage.ced(&["jobs", "--json"]).ok().json();
    let job = &jobs["jobs"][0];
    assert_eq!(
        (&job["reqid"], &job["state"], &job["count"], &job["hosts"]),
        (&json!(reqid), &json!("failed"), &json!(1), &json!(2))
    );
    // Looking does not keep a record alive; the next run sweeps it out.
    let file = stage.fleet.dispatcher.path(&path);
    let long_ago = SystemTime::now() - Duration::from_secs(86_500);
    std::fs::File::options()
        .write(true)
        .open(&file)
        .unwrap()
        .set_modified(long_ago)
        .unwrap();
    stage
        .ced(&["status", "--json", old.trim_end_matches(".json")])
        .ok()
        .out_has("eve");
    assert!(file.exists());
    stage.ced(&["run", "web1.test", "hello"]).ok();
    assert!(!file.exists());
}

#[test]
fn a_dispatcher_that_dies_while_it_submits_leaves_a_trace() {
    let stage = Stage::new();
    // Accepts the connection and never says a word, so the submission hangs after the first host has accepted.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut record = stage
        .fleet
        .dispatcher
        .json("var/lib/ctrl-exec/agents/web1.test.json");
    record["hostname"] = json!("silent.test");
    record["port"] = json!(silent.local_addr().unwrap().port());
    register(&stage.fleet.dispatcher, &record);
    let words = ["run", "--async", "web1.test", "silent.test", "slow"];
    let mut run = stage.fleet.dispatcher.start("ced", &words);
    stage.fleet.agents[0].wait_for_log(&["ACTION=run-async", "SCRIPT=slow"]);
    run.signal(Signal::KILL);
    run.wait(PATIENCE);
    drop(silent);
    let jobs = stage.ced(&["jobs", "--json"]).ok().json();
    let reqid = jobs["jobs"][0]["reqid"].as_str().unwrap();
    assert_eq!(
        stage.status(reqid)["hosts"]["web1.test"]["status"],
        "running"
    );
}

#[test]
fn a_silent_host_does_not_hold_who_waits() {
    let stage = Stage::new();
    let reqid = stage.submit(&["web1.test", "true"]);
    stage.ced(&["wait", &reqid]).ok();
    // Nobody accepts: the connection stands, and the handshake would be waited for 10 s.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let path = "var/lib/ctrl-exec/agents/web2.test.json";
    let mut agent = stage.fleet.dispatcher.json(path);
    agent["port"] = json!(silent.local_addr().unwrap().port());
    register(&stage.fleet.dispatcher, &agent);
    let mut record = stage.record(&reqid);
    record["hosts"]["web1.test"] = json!({"status": "running"});
    record["hosts"]["web2.test"] = json!({"status": "accepted"});
    let file = format!("{RUNS}/{reqid}.json");
    stage
        .fleet
        .dispatcher
        .write(&file, record.to_string(), 0o640);
    let run = stage
        .ced(&["wait", &reqid, "--timeout", "2"])
        .expect_code(2);
    assert!(
        (Duration::from_secs(2)..Duration::from_secs(8)).contains(&run.took),
        "{:?}",
        run.took
    );
    // Who has answered is not forgotten for the sake of who has not.
    run.out_has("==> web1.test  [done  exit:0]\n==> web2.test  [accepted]\n");
}

#[test]
fn an_agent_of_the_original_cannot_cancel_and_is_not_worn_out() {
    // Certificates and map of a legacy fleet, the stand-in instead of our agent.
    let fleet = Legacy::new(&["old01.test"]);
    let host = &fleet.agents[0];
    let leaf = &fleet.agent_leaves[0];
    let dir = host.path("tmp");
    host.write("tmp/agent.crt", leaf.cert_pem(), 0o644);
    host.write("tmp/agent.key", leaf.key_pem(), 0o600);
    host.write("tmp/ca.crt", host.read("etc/ctrl-exec-agent/ca.crt"), 0o644);
    host.write("tmp/map", legacy_map(&[("2", "ctl")]), 0o644);
    register(
        &fleet.dispatcher,
        &legacy_record("old01.test", fleet.ports[0], leaf, "2"),
    );
    let port = fleet.ports[0].to_string();
    let old = python::start(
        host,
        python::LEGACY_AGENT,
        &["serve", &port, python::text(&dir)],
    );
    let told = fleet
        .ced(&["run", "--async", "--json", "old01.test", "job"])
        .ok()
        .json();
    let reqid = told["reqid"].as_str().unwrap();
    let cancel = fleet.ced(&["cancel", reqid]).expect_code(1).out();
    assert!(
        cancel.contains("==> old01.test  [NOT CANCELLED: this host's agent cannot cancel runs (it is of an earlier release)")
            && cancel.contains("[PENDING]\n==> old01.test  [running]\n"),
        "{cancel}"
    );
    let before = old.out().matches("request GET /result/").count();
    fleet.ced(&["wait", reqid, "--timeout", "5"]).expect_code(2);
    let asked = old.out().matches("request GET /result/").count() - before;
    assert!(asked <= 4, "{asked} times");
    assert!(
        old.out()
            .contains(&format!("request GET /result/{reqid} HTTP/1.1")),
        "{}",
        old.out()
    );
}
