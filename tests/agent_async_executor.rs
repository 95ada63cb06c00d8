//! Asynchronous runs when a root executor runs the scripts (spec/executor.md 4.4, 13): against an executor of the original, which knows no
//! such thing, and against one that speaks the trailer as ours does.

#![allow(clippy::unwrap_used, reason = "helpers of tests stop as tests do")]

mod common;

use common::executor::Executor;
use common::prometheus::Metrics;
use common::{Agent, Daemon, Legacy, PATIENCE, python, root_or_skip, tls, wait_until};
use serde_json::{Value, json};

const RUNS: &str = "var/lib/ctrl-exec-agent/runs";

struct Stage {
    fleet: Legacy,
    agent: Agent,
    executor: Option<Daemon>,
}

impl Stage {
    fn new(kind: &str) -> Self {
        Self::with(|host| Some(start_stub(host, kind)))
    }

    fn with(executor: impl FnOnce(&common::Host) -> Option<Daemon>) -> Self {
        let fleet = Legacy::new(&["web01.test"]);
        let host = &fleet.agents[0];
        let conf = host.read("etc/ctrl-exec-agent/agent.conf");
        host.write(
            "etc/ctrl-exec-agent/agent.conf",
            conf.replace(
                "\n[tags]",
                "executor_socket = /run/exec.sock\nmetrics = dispatchers\n\n[tags]",
            ),
            0o640,
        );
        let executor = executor(host);
        let agent = Agent::start(host);
        Self {
            fleet,
            agent,
            executor,
        }
    }

    fn host(&self) -> &common::Host {
        &self.fleet.agents[0]
    }

    fn asked(&self, line: &str) -> bool {
        let path = self.host().path("tmp/asked");
        let asked = std::fs::read_to_string(path).unwrap_or_default();
        asked.lines().any(|l| l == line)
    }

    fn say(&self, name: &str) {
        self.host().write(&format!("tmp/{name}"), "", 0o644);
    }

    #[track_caller]
    fn call(&self, method: &str, path: &str, body: &str) -> (u16, Value) {
        let leaf = Some(&self.fleet.dispatcher_leaf);
        let reply =
            tls::request(self.agent.address(), leaf, method, path, body.as_bytes()).unwrap();
        (reply.status, reply.json())
    }

    #[track_caller]
    fn submit(&self, script: &str, reqid: &str) -> (u16, Value) {
        let body = json!({"script": script, "args": ["a", "b"], "reqid": reqid, "async": true});
        self.call("POST", "/run", &body.to_string())
    }

    #[track_caller]
    fn result(&self, reqid: &str) -> Value {
        let (status, body) = self.call("GET", &format!("/result/{reqid}"), "");
        assert_eq!(status, 200, "{body}");
        body
    }

    fn metrics(&self) -> Metrics {
        let leaf = Some(&self.fleet.dispatcher_leaf);
        let reply = tls::request(self.agent.address(), leaf, "GET", "/metrics", b"").unwrap();
        Metrics::read(&String::from_utf8(reply.body).unwrap())
    }

    #[track_caller]
    fn done(&self, reqid: &str) -> Value {
        wait_until(&format!("end of {reqid}"), PATIENCE, || {
            let result = self.result(reqid);
            (result["status"] == "done").then_some(result)
        })
    }
}

fn start_stub(host: &common::Host, kind: &str) -> Daemon {
    let (socket, home) = (host.path("run/exec.sock"), host.path("tmp"));
    python::start(
        host,
        python::STUB_EXECUTOR,
        &[python::text(&socket), python::text(&home), kind],
    )
}

#[test]
fn an_executor_of_the_original_gets_no_asynchronous_run() {
    let mut stage = Stage::new("original");
    let (status, body) = stage.submit("hello", "r1");
    assert_eq!((status, &body["exit"]), (200, &json!(-1)));
    let error = body["error"].as_str().unwrap();
    assert!(
        error.starts_with("async runs are not yet supported with the executor"),
        "{error}"
    );
    assert_eq!(
        (&body["script"], &body["reqid"]),
        (&json!("hello"), &json!("r1"))
    );
    assert!(!stage.asked("run ctl r1 hello"));
    assert!(!stage.host().exists(RUNS));
    assert_eq!(stage.call("GET", "/result/r1", "").0, 404);
    // Runs of the other kind work as ever.
    let sync = json!({"script": "hello", "reqid": "r2"}).to_string();
    assert_eq!(stage.call("POST", "/run", &sync).1["stdout"], "sync\n");
    // It is asked again only after a while: this answer needs no executor.
    stage.executor = None;
    let (_, body) = stage.submit("hello", "r3");
    assert!(body["error"].as_str().unwrap().starts_with("async runs"));
}

#[test]
fn without_an_executor_a_run_is_refused_with_the_reason() {
    let mut stage = Stage::new("ours");
    stage.executor = None;
    let (status, body) = stage.submit("hello", "r1");
    assert_eq!((status, &body["exit"]), (200, &json!(-1)));
    let error = body["error"].as_str().unwrap();
    assert!(error.starts_with("executor unreachable: "), "{error}");
    assert_eq!(stage.call("GET", "/result/r1", "").0, 404);
}

#[test]
fn a_run_of_the_executor_is_followed_to_its_end() {
    let stage = Stage::new("ours");
    let accepted = json!({"script": "hello", "status": "accepted", "reqid": "r1"});
    assert_eq!(stage.submit("hello", "r1"), (202, accepted));
    assert_eq!(stage.submit("hello", "r2").0, 409);
    let running = stage.result("r1");
    assert_eq!(
        (&running["status"], &running["via"], &running["stdout"]),
        (&json!("running"), &json!("executor"), &json!("begun\n"))
    );
    let order = stage.host().read("tmp/order");
    let (context, rest) = order.split_once('|').unwrap();
    let context: Value = serde_json::from_str(context).unwrap();
    assert_eq!(
        (&context["script"], &context["reqid"]),
        (&json!("hello"), &json!("r1"))
    );
    assert_eq!(rest, "a,b|127.0.0.1");
    let running = stage.metrics().value("ctrl_exec_agent_jobs_running");
    assert!((running - 1.0).abs() < f64::EPSILON, "{running}");
    stage.say("go");
    let done = stage.done("r1");
    assert_eq!(
        (&done["exit"], &done["stdout"], &done["stderr"]),
        (&json!(7), &json!("begun\nended\n"), &json!("warn\n"))
    );
    wait_until("the executor may forget", PATIENCE, || {
        stage.asked("forget ctl r1 .job").then_some(())
    });
    assert_eq!(stage.host().json(&format!("{RUNS}/ctl/r1.json")), done);
    stage
        .host()
        .wait_for_log(&["ACTION=run-async-done", "EXIT=7", "REQID=r1"]);
    // Its lock is free, its name is not.
    let (_, body) = stage.submit("hello", "r1");
    assert!(body["error"].as_str().unwrap().contains("in use already"));
    assert_eq!(stage.submit("hello", "r3").0, 202);
    stage.done("r3");
    let page = stage.metrics();
    for (outcome, count) in [
        ("failed", 2.0),
        ("busy", 1.0),
        ("refused", 1.0),
        ("ok", 0.0),
    ] {
        let series =
            format!("ctrl_exec_agent_run_results_total{{script=\"hello\",outcome=\"{outcome}\"}}");
        assert_eq!(page.value(&series), count, "{series}");
    }
    let took = "ctrl_exec_agent_run_duration_seconds_count{mode=\"async\"}";
    assert_eq!(page.value(took), 2.0);
}

#[test]
fn a_refusal_of_the_executor_is_told_at_once_and_leaves_nothing() {
    let stage = Stage::new("ours");
    stage.say("refuse");
    let (status, body) = stage.submit("hello", "r1");
    assert_eq!(status, 200);
    assert_eq!(
        body,
        json!({"script": "hello", "exit": -1, "error": "executor: undefined profile", "reqid": "r1"})
    );
    assert_eq!(stage.call("GET", "/result/r1", "").0, 404);
    stage
        .host()
        .wait_for_log(&["ACTION=run-async-refused", "REQID=r1"]);
}

#[test]
fn a_run_whose_acceptance_was_not_heard_is_not_denied() {
    let stage = Stage::new("ours");
    stage.say("hang-up");
    assert_eq!(stage.submit("hello", "r1").0, 202);
    assert_eq!(stage.result("r1")["status"], "running");
    stage.say("go");
    assert_eq!(stage.done("r1")["exit"], 7);
}

#[test]
fn a_run_of_the_executor_survives_the_restart_of_the_agent() {
    let mut stage = Stage::new("ours");
    assert_eq!(stage.submit("hello", "r1").0, 202);
    stage.agent.term();
    assert!(stage.agent.daemon().wait(PATIENCE).success());
    stage.host().clear_log();
    stage.agent = Agent::start(&stage.fleet.agents[0]);
    assert_eq!(stage.result("r1")["status"], "running");
    // The lock of the script is taken again.
    wait_until("the lock is held", PATIENCE, || {
        stage
            .host()
            .path(RUNS)
            .join("ctl/r1.live")
            .exists()
            .then_some(())
    });
    assert_eq!(stage.submit("hello", "r2").0, 409);
    stage.say("go");
    assert_eq!(stage.done("r1")["exit"], 7);
}

#[test]
fn a_run_that_the_executor_does_not_know_any_more_is_lost() {
    let mut stage = Stage::new("ours");
    assert_eq!(stage.submit("hello", "r1").0, 202);
    // The stub forgets everything; the agent waits while it is away.
    stage.executor = None;
    assert_eq!(stage.result("r1")["status"], "running");
    stage.executor = Some(start_stub(&stage.fleet.agents[0], "ours"));
    let lost = stage.done("r1");
    assert_eq!((&lost["exit"], &lost["lost"]), (&json!(-1), &json!(true)));
    stage
        .host()
        .wait_for_log(&["ACTION=run-async-lost", "REQID=r1"]);
}

#[test]
fn a_run_of_the_executor_is_ended_on_request() {
    let stage = Stage::new("ours");
    assert_eq!(stage.submit("hello", "r1").0, 202);
    let body = json!({"reqid": "r1"}).to_string();
    assert_eq!(
        stage.call("POST", "/cancel", &body),
        (202, json!({"status": "cancelling", "reqid": "r1"}))
    );
    let done = stage.done("r1");
    assert_eq!(
        (&done["exit"], &done["cancelled"]),
        (&json!(126), &json!(true))
    );
    assert_eq!(stage.call("POST", "/cancel", &body).0, 409);
}

#[test]
fn our_own_executor_keeps_a_run_and_ends_one() {
    if !root_or_skip("our_own_executor_keeps_a_run_and_ends_one") {
        return;
    }
    let mut executor = Executor::new("compat");
    executor.house("").profile("default", "");
    let go = executor.path("tmp-go");
    let waits = format!(
        "echo begun; i=0; while [ ! -e {} ] && [ $i -lt 600 ]; do sleep 0.1; i=$((i+1)); done; echo ended; exit 7",
        go.display()
    );
    executor.shell("hello", "default", &waits);
    executor.shell("true", "default", &waits);
    executor.start();
    let stage = Stage::with(|host| {
        std::os::unix::fs::symlink(executor.socket(), host.path("run/exec.sock")).unwrap();
        None
    });
    assert_eq!(stage.submit("hello", "r1").0, 202);
    assert_eq!(stage.submit("true", "r2").0, 202);
    wait_until("partial output", PATIENCE, || {
        (stage.result("r1")["stdout"] == "begun\n").then_some(())
    });
    let body = json!({"reqid": "r2"}).to_string();
    assert_eq!(stage.call("POST", "/cancel", &body).0, 202);
    assert_eq!(stage.done("r2")["cancelled"], true);
    std::fs::write(&go, "").unwrap();
    let done = stage.done("r1");
    assert_eq!(
        (&done["exit"], &done["stdout"]),
        (&json!(7), &json!("begun\nended\n"))
    );
}
