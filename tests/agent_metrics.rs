//! `GET /metrics` of the agent: who gets it, and that what it says is right.

mod common;

use std::net::SocketAddr;

use common::fleet::write_agent_toml;
use common::openssl::Leaf;
use common::prometheus::Metrics;
use common::tls::{self, Reply};
use common::{Agent, PATIENCE, Paired, wait_until};
use serde_json::json;

const UNLIMITED: &str = "rate_limit_disable = true\n";

/// Two agents; the first one's metrics are for whom `lines` say.
fn fleet(lines: &str) -> (Paired, Agent) {
    let fleet = Paired::new(&["web1", "web2"]);
    let lines = format!("{UNLIMITED}{lines}");
    write_agent_toml(&fleet.agents[0], fleet.ports[0], &lines);
    let agent = Agent::start(&fleet.agents[0]);
    (fleet, agent)
}

fn get(address: SocketAddr, who: &Leaf, path: &str) -> Reply {
    tls::request(address, Some(who), "GET", path, b"").expect("an answer")
}

fn scrape(address: SocketAddr, who: &Leaf) -> Metrics {
    let reply = get(address, who, "/metrics");
    let body = String::from_utf8(reply.body.clone()).expect("text");
    assert_eq!(reply.status, 200, "{body}");
    assert_eq!(
        reply.header("content-type").as_deref(),
        Some("text/plain; version=0.0.4; charset=utf-8")
    );
    Metrics::read(&body)
}

/// What two answers have in common but for their date.
fn told(reply: &Reply) -> (u16, String, Vec<u8>) {
    (reply.status, reply.head.clone(), reply.body.clone())
}

#[test]
fn off_is_a_path_that_does_not_exist() {
    let (fleet, agent) = fleet("");
    for who in [fleet.dispatcher_leaf(), fleet.agent_leaf(1)] {
        let missing = get(agent.address(), &who, "/no-such-path");
        assert_eq!(missing.status, 404);
        assert_eq!(
            told(&get(agent.address(), &who, "/metrics")),
            told(&missing)
        );
    }
}

#[test]
fn dispatchers_are_those_that_are_trusted() {
    let (fleet, agent) = fleet("metrics = \"dispatchers\"\n");
    let page = scrape(agent.address(), &fleet.dispatcher_leaf());
    assert_eq!(page.value("ctrl_exec_agent_trusted_dispatchers"), 1.0);
    let refused = get(agent.address(), &fleet.agent_leaf(1), "/metrics");
    assert_eq!(refused.status, 403);
    assert_eq!(
        refused.json(),
        json!({"error": "serial mismatch", "status": "forbidden"})
    );
    fleet.agents[0].wait_for_log(&["ACTION=serial-reject"]);
    // Only this route, and only to be read.
    let who = fleet.dispatcher_leaf();
    for (method, path) in [
        ("POST", "/metrics"),
        ("GET", "/metrics?x=1"),
        ("GET", "/metrics/"),
    ] {
        let reply =
            tls::request(agent.address(), Some(&who), method, path, b"").expect("an answer");
        assert_eq!(reply.status, 404, "{method} {path}");
    }
    let page = scrape(agent.address(), &who);
    let refusals = |reason| {
        page.value(&format!(
            "ctrl_exec_agent_refusals_total{{reason=\"{reason}\"}}"
        ))
    };
    assert_eq!(refusals("untrusted"), 1.0);
    assert_eq!(refusals("hook"), 0.0);
}

#[test]
fn the_ca_opens_it_to_a_host_that_may_do_nothing_else_until_it_is_revoked() {
    let (fleet, agent) = fleet("metrics = \"ca\"\n");
    let scraper = fleet.agent_leaf(1);
    scrape(agent.address(), &scraper);
    scrape(agent.address(), &fleet.dispatcher_leaf());
    for (method, path) in [
        ("POST", "/ping"),
        ("POST", "/run"),
        ("GET", "/capabilities"),
    ] {
        let reply = tls::request(agent.address(), Some(&scraper), method, path, b"{}");
        assert_eq!(reply.expect("an answer").status, 403, "{path}");
    }
    tls::request(agent.address(), None, "GET", "/metrics", b"")
        .expect_err("a certificate is required");

    fleet.ced(&["revoke", "web2"]).ok();
    let refused = get(agent.address(), &scraper, "/metrics");
    assert_eq!(refused.status, 403);
    assert!(
        refused.json()["error"]
            .as_str()
            .expect("a text")
            .contains("revoked")
    );
    let page = scrape(agent.address(), &fleet.dispatcher_leaf());
    assert_eq!(
        page.value("ctrl_exec_agent_refusals_total{reason=\"revoked\"}"),
        1.0
    );
    assert_eq!(
        page.value("ctrl_exec_agent_refusals_total{reason=\"untrusted\"}"),
        3.0
    );
    assert_eq!(page.value("ctrl_exec_agent_revoked_serials"), 1.0);
    assert!(page.value("ctrl_exec_agent_refusals_total{reason=\"tls\"}") >= 1.0);
}

#[test]
fn runs_requests_and_refusals_are_counted() {
    let (fleet, agent) = fleet("metrics = \"dispatchers\"\n");
    let who = fleet.dispatcher_leaf();
    let before = scrape(agent.address(), &who);
    for outcome in ["ok", "failed"] {
        let series =
            format!("ctrl_exec_agent_run_results_total{{script=\"fail\",outcome=\"{outcome}\"}}");
        assert_eq!(before.value(&series), 0.0);
    }
    fleet.ced(&["run", "web1", "hello"]).ok();
    fleet.ced(&["run", "web1", "hello"]).ok();
    fleet.ced(&["run", "web1", "fail"]).expect_code(1);
    fleet.ced(&["run", "web1", "no-such-script"]).expect_code(1);
    fleet.ced(&["run", "--async", "web1", "fail"]).ok();

    let result = |script: &str, outcome: &str| {
        format!("ctrl_exec_agent_run_results_total{{script=\"{script}\",outcome=\"{outcome}\"}}")
    };
    let page = wait_until("the asynchronous run has ended", PATIENCE, || {
        let page = scrape(agent.address(), &who);
        (page.value(&result("fail", "failed")) > 1.0).then_some(page)
    });
    assert_eq!(page.value(&result("hello", "ok")), 2.0);
    assert_eq!(page.value(&result("fail", "failed")), 2.0);
    assert_eq!(page.value(&result("other", "refused")), 1.0);
    let took = |mode| {
        page.value(&format!(
            "ctrl_exec_agent_run_duration_seconds_count{{mode=\"{mode}\"}}"
        ))
    };
    assert_eq!((took("sync"), took("async")), (3.0, 1.0));
    let requests = |route, code| {
        page.value(&format!(
            "ctrl_exec_agent_requests_total{{route=\"{route}\",code=\"{code}\"}}"
        ))
    };
    assert_eq!(requests("/run", 200), 4.0);
    assert_eq!(requests("/run", 202), 1.0);
    assert!(requests("/metrics", 200) >= 1.0);
    assert_eq!(
        page.value("ctrl_exec_agent_refusals_total{reason=\"not_permitted\"}"),
        1.0
    );
    assert_eq!(page.value("ctrl_exec_agent_connections_open"), 1.0);
    assert_eq!(page.value("ctrl_exec_agent_jobs_running"), 0.0);
    assert_eq!(page.value("ctrl_exec_clock_behind"), 0.0);
    let now = page.value("ctrl_exec_process_start_time_seconds");
    assert!(page.value("ctrl_exec_certificate_expiry_seconds{kind=\"agent\"}") > now);
    assert!(page.value("ctrl_exec_certificate_expiry_seconds{kind=\"ca\"}") > now);
}

#[test]
fn a_job_that_runs_is_shown_and_a_hook_that_refuses_counts() {
    let (fleet, agent) = fleet("metrics = \"dispatchers\"\n");
    let who = fleet.dispatcher_leaf();
    let gate = fleet.agents[0].path("tmp/gate");
    common::fleet::allow(
        &fleet.agents[0],
        "waits",
        &format!("while [ ! -e {} ]; do sleep 0.05; done", gate.display()),
    );
    agent.hup();
    fleet.agents[0].wait_for_log(&["ACTION=config-reload", "SCRIPTS"]);
    fleet.ced(&["run", "--async", "web1", "waits"]).ok();
    let jobs = || scrape(agent.address(), &who).value("ctrl_exec_agent_jobs_running");
    assert_eq!(jobs(), 1.0);
    fleet
        .ced(&["run", "--async", "web1", "waits"])
        .expect_code(1);
    std::fs::write(&gate, "").expect("the gate opens");
    wait_until("the run has ended", PATIENCE, || {
        (jobs() == 0.0).then_some(())
    });
    let page = scrape(agent.address(), &who);
    let busy = "ctrl_exec_agent_run_results_total{script=\"waits\",outcome=\"busy\"}";
    assert_eq!(page.value(busy), 1.0);

    let hook = fleet.agents[0].write("etc/ctrl-exec-agent/hook", "#!/bin/sh\nexit 3\n", 0o755);
    assert!(hook.exists());
    let lines = format!(
        "{UNLIMITED}metrics = \"dispatchers\"\nauth_hook = \"/etc/ctrl-exec-agent/hook\"\n"
    );
    write_agent_toml(&fleet.agents[0], fleet.ports[0], &lines);
    fleet.agents[0].clear_log();
    agent.hup();
    fleet.agents[0].wait_for_log(&["ACTION=config-reload", "SCRIPTS"]);
    fleet.ced(&["run", "web1", "hello"]).expect_code(1);
    let page = scrape(agent.address(), &who);
    assert_eq!(
        page.value("ctrl_exec_agent_refusals_total{reason=\"hook\"}"),
        1.0
    );
    assert_eq!(
        page.value("ctrl_exec_agent_run_results_total{script=\"hello\",outcome=\"refused\"}"),
        1.0
    );
}
