//! `ced health`: what a monitoring system is told, in words, exit codes and numbers.

mod common;

use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::{Command, Stdio};

use common::fleet::new_dispatcher;
use common::process::Run;
use common::rotating::DAY;
use common::{Daemon, Host, PATIENCE, Paired, SharedClock, free_port, wait_until};
use serde_json::{Value, json};

const CONFIG: &str = "etc/ctrl-exec/ctrl-exec.toml";
const OK: i32 = 0;
const WARNING: i32 = 1;
const CRITICAL: i32 = 2;
const UNKNOWN: i32 = 3;

fn configure(host: &Host, lines: &str) {
    host.write(CONFIG, format!("# test\n{lines}"), 0o640);
}

/// The one check that is not ok, with its status; the exit code and both forms must agree.
#[track_caller]
fn problem(host: &Host, code: i32, name: &str) -> String {
    let json = host.ced(&["health", "--json"]).expect_code(code).json();
    let words = ["ok", "warning", "critical", "unknown"];
    let word = words[usize::try_from(code).expect("a code")];
    assert_eq!(json["status"], word, "{json:#}");
    assert_eq!(json["ok"], code == OK);
    let checks = json["checks"].as_array().expect("checks");
    let bad: Vec<&Value> = checks.iter().filter(|c| c["status"] != "ok").collect();
    assert_eq!(bad.len(), 1, "{bad:#?}");
    assert_eq!(
        (&bad[0]["name"], &bad[0]["status"]),
        (&json!(name), &json!(word))
    );
    let text = host.ced(&["health"]).expect_code(code);
    let first = first_line(&text);
    let begin = format!("CTRL-EXEC {} - {name}: ", word.to_uppercase());
    assert!(first.starts_with(&begin), "{first}");
    bad[0]["detail"].as_str().expect("a detail").to_owned()
}

fn first_line(run: &Run) -> String {
    run.out().lines().next().expect("a line").to_owned()
}

/// A value of the performance data.
#[track_caller]
fn number(run: &Run, label: &str) -> i64 {
    let first = first_line(run);
    let (_, data) = first.split_once(" | ").expect("performance data");
    let begin = format!("{label}=");
    let part = data.split(' ').find_map(|part| part.strip_prefix(&begin));
    let value = part.unwrap_or_else(|| panic!("no {label} in {data}"));
    let value = value.split(';').next().expect("a value");
    value.parse().expect("a number")
}

#[test]
fn a_dispatcher_that_was_just_set_up_is_well() {
    let host = new_dispatcher("ctl.test");
    host.clear_log();
    let text = host.ced(&["health"]).expect_code(OK);
    assert!(
        first_line(&text).starts_with("CTRL-EXEC OK - "),
        "{}",
        text.out()
    );
    assert_eq!(text.err(), "");
    assert!((823..=825).contains(&number(&text, "certificate_days")));
    assert!(number(&text, "ca_days") > 3640);
    assert_eq!(number(&text, "agents"), 0);
    assert!(
        first_line(&text).contains(";30:;7: ca_days="),
        "{}",
        text.out()
    );
    for line in text.out().lines().skip(1) {
        assert!(line.starts_with("[ok] ") && !line.contains('|'), "{line}");
    }
    let json = host.ced(&["health", "--json"]).expect_code(OK).json();
    assert_eq!((&json["ok"], &json["status"]), (&json!(true), &json!("ok")));
    assert!(json["checks"].as_array().expect("checks").len() > 8);
    // It only looks.
    assert_eq!(host.log_lines().len(), 0);
    assert!(!host.exists("var/lib/ctrl-exec/locks"));
}

#[test]
fn a_host_without_configuration_or_certificate_says_so() {
    let host = Host::new("ctl.test");
    let text = host.ced(&["health"]).expect_code(UNKNOWN);
    let first = first_line(&text);
    assert!(
        first.starts_with("CTRL-EXEC UNKNOWN - configuration: "),
        "{first}"
    );
    assert!(!first.contains('|'), "{first}");
    let json = host.ced(&["health", "--json"]).expect_code(UNKNOWN).json();
    assert_eq!(
        (&json["ok"], &json["status"]),
        (&json!(false), &json!("unknown"))
    );

    configure(&host, "max_parallel = 0\nnonsense = 1\n");
    let text = host.ced(&["health"]).expect_code(UNKNOWN);
    assert!(first_line(&text).contains("max_parallel"), "{}", text.out());

    configure(&host, "");
    let text = host.ced(&["health"]).expect_code(CRITICAL);
    assert!(first_line(&text).starts_with("CTRL-EXEC CRITICAL - certificate: "));
    assert!(first_line(&text).contains("; ca: "), "{}", text.out());
}

#[test]
fn as_time_passes_a_certificate_becomes_a_warning_then_critical() {
    let mut host = new_dispatcher("ctl.test");
    let clock = SharedClock::new();
    clock.give(&mut host);
    clock.set(790 * DAY + DAY / 2);
    host.ced(&["health"]).expect_code(OK);
    clock.set(800 * DAY + DAY / 2);
    assert!(problem(&host, WARNING, "certificate").contains("24 days left"));
    host.ced(&["health", "--warning-days", "20"])
        .expect_code(OK);
    host.ced(&["health", "--critical-days", "25"])
        .expect_code(CRITICAL);
    let wrong = host
        .ced(&["health", "--critical-days", "31"])
        .expect_code(UNKNOWN);
    assert!(
        first_line(&wrong).contains("--critical-days"),
        "{}",
        wrong.out()
    );
    clock.set(820 * DAY + DAY / 2);
    assert!(problem(&host, CRITICAL, "certificate").contains("4 days left"));
    clock.set(830 * DAY + DAY / 2);
    assert!(problem(&host, CRITICAL, "certificate").contains("expired at "));
    assert!(number(&host.ced(&["health"]), "certificate_days") < 0);
}

#[test]
fn certificates_that_live_for_days_do_not_warn_all_their_life() {
    let host = Host::new("ctl.test");
    configure(&host, "cert_days = 20\ncert_renewal_days = 5\n");
    host.ced(&["setup-ca"]).ok();
    host.ced(&["setup-ctrl-exec"]).ok();
    host.ced(&["rotate-cert"]).ok();
    let text = host.ced(&["health"]).expect_code(OK);
    assert!((19..=20).contains(&number(&text, "certificate_days")));
    text.out_has(";6:;2:");
    host.ced(&["health", "--warning-days", "30"])
        .expect_code(WARNING);
}

#[test]
fn agents_are_judged_by_the_registry_alone() {
    let fleet = Paired::new(&["web1", "web2"]);
    let mut host = fleet.dispatcher;
    let text = host.ced(&["health"]).expect_code(OK);
    assert_eq!(number(&text, "agents"), 2);
    assert!(number(&text, "agent_certificate_days") > 800);

    let record = "var/lib/ctrl-exec/agents/web1.json";
    let change = |field: &str, value: &str| {
        let mut json = host.json(record);
        json[field] = value.into();
        host.write(record, json.to_string(), 0o644);
    };
    change("serial_status", "stale");
    assert!(problem(&host, WARNING, "agents").contains("1 agent(s) have missed a rotation: web1"));
    assert_eq!(number(&host.ced(&["health"]), "stale"), 1);

    // The overlap is over, and nobody has told the agent.
    change("serial_status", "pending");
    let rotation = json!({"current_serial": "ab", "previous_serial": "aa", "rotated_at": "2026-01-01T00:00:00Z",
        "overlap_expires": "2026-01-31T00:00:00Z", "overlap_days": 30});
    let state = "var/lib/ctrl-exec/rotation.json";
    host.write(state, rotation.to_string(), 0o640);
    assert!(problem(&host, WARNING, "rotation").contains("web1"));
    host.write(state, "{", 0o640);
    assert!(problem(&host, CRITICAL, "rotation").contains("is damaged"));
    std::fs::remove_file(host.path(state)).expect("it was there");
    change("serial_status", "current");

    // The registry may know a certificate that ends earlier than the dispatcher's.
    let soon = host.json("var/lib/ctrl-exec/agents/web2.json")["expiry"].clone();
    change("expiry", "Jan  1 00:00:00 2024 GMT");
    let detail = problem(&host, CRITICAL, "agent-certificates");
    assert!(
        detail.contains("1 agent(s)") && detail.contains("web1"),
        "{detail}"
    );
    change("expiry", soon.as_str().expect("a text"));
    host.ced(&["health"]).expect_code(OK);

    host.write("var/lib/ctrl-exec/agents/web2.json", "{", 0o644);
    assert!(problem(&host, WARNING, "registry").contains("web2.json"));
    host.ced(&["unpair", "web2"]).ok();
    let clock = SharedClock::new();
    clock.give(&mut host);
    clock.set(800 * DAY + DAY / 2);
    let text = host.ced(&["health"]).expect_code(WARNING);
    assert!(
        first_line(&text).contains("agent-certificates: 1 agent(s)"),
        "{}",
        text.out()
    );
}

#[test]
fn files_that_are_broken_are_named() {
    let host = new_dispatcher("ctl.test");
    let state = "var/lib/ctrl-exec";
    for (file, content, code, name) in [
        (
            "etc/ctrl-exec/revoked.jsonl",
            "nonsense\n",
            CRITICAL,
            "revocations",
        ),
        (
            &format!("{state}/ca-change.json"),
            "{",
            CRITICAL,
            "ca-change",
        ),
        (
            &format!("{state}/runs/0011223344556677.json"),
            "{",
            WARNING,
            "runs",
        ),
        (
            &format!("{state}/agents/web9.json"),
            "",
            CRITICAL,
            "registry",
        ),
        (&format!("{state}/locks"), "", CRITICAL, "locks-directory"),
    ] {
        let path = host.write(file, content, 0o640);
        let detail = problem(&host, code, name);
        let named = path
            .file_name()
            .expect("a name")
            .to_string_lossy()
            .into_owned();
        assert!(detail.contains(&named), "{detail}");
        std::fs::remove_file(&path).expect("it was there");
        host.ced(&["health"]).expect_code(OK);
    }
}

#[test]
fn a_hook_that_cannot_be_started_is_critical() {
    let host = new_dispatcher("ctl.test");
    configure(&host, "auth_hook = \"/etc/ctrl-exec/auth-hook\"\n");
    problem(&host, CRITICAL, "hook");
    let hook = "etc/ctrl-exec/auth-hook";
    // What it would do if it were asked: nobody asks it.
    let mark = host.path("tmp/asked");
    let body = format!("#!/bin/sh\ntouch {}\nexit 1\n", mark.display());
    host.write(hook, &body, 0o644);
    problem(&host, CRITICAL, "hook");
    host.write(hook, &body, 0o757);
    assert!(problem(&host, CRITICAL, "hook").contains("auth-hook"));
    host.write(hook, &body, 0o755);
    host.ced(&["health"]).expect_code(OK);
    assert!(!mark.exists());
}

/// Answers every connection with these bytes, as often as it is asked.
fn answering(answer: &'static [u8]) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            let mut request = [0; 1024];
            let taken = stream.read(&mut request).unwrap_or(0);
            assert!(request[..taken].starts_with(b"GET /health HTTP/1.1\r\n"));
            let _ = stream.write_all(answer);
        }
    });
    port
}

#[test]
fn the_api_is_asked_when_that_is_wanted() {
    let host = new_dispatcher("ctl.test");
    let ask = |port: u16| {
        configure(
            &host,
            &format!("api_port = {port}\napi_bind = \"0.0.0.0\"\n"),
        );
        host.ced(&["health", "--api"])
    };
    ask(answering(b"HTTP/1.1 200 OK\r\n\r\n"))
        .expect_code(OK)
        .out_has("[ok] api: answers at 127.0.0.1:");
    ask(answering(b"HTTP/1.1 403 Forbidden\r\n\r\n"))
        .expect_code(OK)
        .out_has("HTTP 403");
    ask(answering(b"HTTP/1.1 500 Oops\r\n\r\n"))
        .expect_code(CRITICAL)
        .out_has("CRITICAL - api: ");
    ask(answering(b"")).expect_code(CRITICAL).out_has("no HTTP");
    let nobody = free_port();
    ask(nobody).expect_code(CRITICAL).out_has("does not answer");
    // Nobody asks it otherwise.
    host.ced(&["health"]).expect_code(OK);
}

#[test]
fn the_api_is_asked_over_tls_where_it_speaks_that() {
    let host = new_dispatcher("ctl.test");
    let (cert, key) = (
        host.path("etc/ctrl-exec/dispatcher.crt"),
        host.path("etc/ctrl-exec/dispatcher.key"),
    );
    host.write("tmp/health", "HTTP/1.0 200 OK\r\n\r\nwell", 0o644);
    let port = free_port();
    let accept = format!("127.0.0.1:{port}");
    let mut server = Command::new("openssl");
    server
        .args(["s_server", "-HTTP", "-quiet", "-accept", &accept])
        .arg("-cert")
        .arg(&cert)
        .arg("-key")
        .arg(&key)
        .current_dir(host.path("tmp"))
        .stdin(Stdio::null());
    let mut server = Daemon::start(&mut server);
    configure(
        &host,
        &format!(
            "api_port = {port}\napi_cert = \"/etc/ctrl-exec/dispatcher.crt\"\napi_key = \"/etc/ctrl-exec/dispatcher.key\"\n"
        ),
    );
    wait_until("the server answers", PATIENCE, || {
        assert!(server.is_running(), "{}", server.err());
        let run = host.ced(&["health", "--api"]);
        (run.code() == OK).then_some(run)
    })
    .out_has("[ok] api: answers at")
    .out_has("[ok] api-certificate: ");
}
