//! What the operator types and reads: which agent is addressed, what is sent, how failures are told (spec/dispatcher.md 1, 5-10).

mod common;

use std::net::TcpListener;
use std::time::{Duration, Instant};

use common::fleet::{allow, legacy_record, new_dispatcher};
use common::syslog::{ERR, INFO};
use common::{Agent, Daemon, Host, Paired, free_port, python};
use serde_json::{Value, json};

/// Adds a registry record for a name, reached at an address and port, whose certificate carries `cert_cn`.
fn record(dispatcher: &Host, name: &str, address: &str, port: u16, cert_cn: &str) {
    let record = json!({
        "hostname": name, "ip": address, "paired": "2026-01-02T03:04:05Z", "expiry": "Jun  7 16:28:00 2028 GMT", "reqid": "0123456789abcdef",
        "lookup_by": "ip", "port": port, "tags": {}, "dispatcher_serial": "", "serial_status": "unknown", "serial_broadcast": "",
        "serial_confirmed": "", "cert_cn": cert_cn,
    });
    dispatcher.write(
        &format!("var/lib/ctrl-exec/agents/{name}.json"),
        record.to_string(),
        0o644,
    );
}

fn agent_log(fleet: &Paired, action: &str) -> usize {
    fleet.agents[0].log_of(action).len()
}

#[test]
fn addresses_come_from_the_registry_and_nowhere_else() {
    let fleet = Paired::new(&["web01.test"]);
    let agent = Agent::start(&fleet.agents[0]);
    let port = agent.port();
    let cn = "web01.test";
    record(&fleet.dispatcher, "by-ip", "127.0.0.1", port, cn);
    // Looked up by its name, the ip is not used.
    record(&fleet.dispatcher, "localhost", "192.0.2.1", port, cn);
    let path = "var/lib/ctrl-exec/agents/localhost.json";
    let by_name = fleet
        .dispatcher
        .read(path)
        .replace("\"lookup_by\":\"ip\"", "\"lookup_by\":\"hostname\"");
    fleet.dispatcher.write(path, by_name, 0o644);
    // Ports: the word wins over --port, which wins over the record, which wins over 7443.
    let wrong = free_port();
    record(&fleet.dispatcher, "wrong-port", "127.0.0.1", wrong, cn);
    let ok = |words: &[&str]| {
        let json = fleet
            .ced(&[&["ping", "--json"], words].concat())
            .ok()
            .json();
        json["results"]
            .as_array()
            .expect("results")
            .iter()
            .map(|r| {
                (
                    r["host"].as_str().expect("host").to_owned(),
                    r["status"] == "ok",
                )
            })
            .collect::<Vec<_>>()
    };
    let name = |n: &str, good| (n.to_owned(), good);
    let right = port.to_string();
    assert_eq!(
        ok(&["by-ip", "localhost", "wrong-port"]),
        [
            name("by-ip", true),
            name("localhost", true),
            name("wrong-port", false)
        ]
    );
    assert_eq!(
        ok(&[&format!("wrong-port:{port}"), "wrong-port"]),
        [name("wrong-port", true), name("wrong-port", false)]
    );
    assert_eq!(
        ok(&["--port", &right, "wrong-port", &format!("by-ip:{wrong}")]),
        [name("wrong-port", true), name("by-ip", false)]
    );
    // The same agent twice is asked twice.
    // Lines arrive a moment after the answers, so what was asked so far is waited for first.
    let asked = |pings: usize| {
        common::wait_until(&format!("{pings} pings"), common::PATIENCE, || {
            (agent_log(&fleet, "ping") == pings).then_some(())
        });
    };
    asked(4);
    assert_eq!(ok(&["by-ip", "by-ip"]).len(), 2);
    asked(6);

    // One unknown name refuses the whole call, before anything is sent or asked.
    fleet.dispatcher.clear_log();
    let before = agent_log(&fleet, "ping");
    let refused = fleet
        .ced(&["ping", "by-ip", "nobody", "127.0.0.1", "elsewhere:7450"])
        .expect_code(1);
    assert!(
        refused
            .err()
            .starts_with("Error: unknown agents: nobody, 127.0.0.1, elsewhere:7450\n"),
        "{}",
        refused.err()
    );
    assert!(refused.err().contains("list-agents"), "{}", refused.err());
    assert!(refused.out().is_empty(), "{}", refused.out());
    assert_eq!(agent_log(&fleet, "ping"), before);
    fleet
        .ced(&["run", "nobody", "hello"])
        .expect_code(1)
        .err_has("Error: unknown agent: nobody\n");
    for word in ["../rotation", "a/b", "", ".", "a b", "by-ip:"] {
        fleet
            .ced(&["ping", word])
            .expect_code(1)
            .err_has("unknown agent");
    }
    // What the port of a word may be.
    for word in ["by-ip:0", "by-ip:65536", "by-ip:99999999999999999999"] {
        let run = fleet.ced(&["ping", "--json", word]);
        assert!(
            run.code() == 1 || run.json()["results"][0]["status"] == "error",
            "{word}: {} {}",
            run.out(),
            run.err()
        );
    }
    // More hosts than allowed.
    let many: Vec<String> = (0..501).map(|n| format!("h{n}")).collect();
    let words: Vec<&str> = std::iter::once("ping")
        .chain(many.iter().map(String::as_str))
        .collect();
    fleet
        .ced(&words)
        .expect_code(1)
        .err_has("too many hosts (max 500)");
    fleet
        .ced(&words[..501])
        .expect_code(1)
        .err_has("unknown agents: h0, h1, ");
    fleet
        .ced(&["run", "hello"])
        .expect_code(64)
        .err_has("Need at least one host and a script name");
    fleet.ced(&["run"]).expect_code(64);
    fleet.ced(&["run", "--", "a", "b"]).expect_code(64);
    fleet.ced(&["ping"]).expect_code(64);
    fleet.ced(&["run", "by-ip", "true", "--"]).ok();
}

#[test]
fn an_ipv6_address_is_dialled() {
    if TcpListener::bind("[::1]:0").is_err() {
        return;
    }
    let fleet = Paired::new(&["web01.test"]);
    let agent = Agent::start(&fleet.agents[0]);
    record(&fleet.dispatcher, "six", "::1", agent.port(), "web01.test");
    fleet.ced(&["run", "six", "hello"]).ok();
    let wrong = format!("six:{}", free_port());
    fleet
        .ced(&["run", &wrong, "hello"])
        .expect_code(1)
        .out_has("host '::1' did not respond on port");
}

#[test]
fn failures_have_the_texts_that_scripts_match() {
    let fleet = Paired::new(&["web01.test"]);
    let host = &fleet.dispatcher;
    let mut toml = host.read("etc/ctrl-exec/ctrl-exec.toml");
    toml.push_str("connect_timeout = 1\nread_timeout = 1\n");
    host.write("etc/ctrl-exec/ctrl-exec.toml", toml, 0o640);
    let error = |name: &str| {
        let answer = fleet
            .ced(&["run", "--json", name, "hello"])
            .expect_code(1)
            .json();
        let result = answer["results"][0].clone();
        assert_eq!(
            (
                result["exit"].as_i64(),
                result["host"].as_str(),
                result["script"].as_str()
            ),
            (Some(-1), Some(name), Some("hello")),
            "{result}"
        );
        assert!(
            result["rtt"].is_string() && result["reqid"].is_string(),
            "{result}"
        );
        result["error"].as_str().expect("an error").to_owned()
    };
    let closed = free_port();
    record(host, "refused", "127.0.0.1", closed, "web01.test");
    assert_eq!(
        error("refused"),
        format!(
            "host '127.0.0.1' did not respond on port {closed} - connection refused (agent not running, or wrong port?)"
        )
    );
    let line = host.wait_for_log(&["ACTION=run", "ERROR=", "refused"]);
    assert_eq!(
        (line.priority, line.field("TARGET")),
        (ERR, Some(format!("127.0.0.1:{closed}")))
    );

    record(host, "nowhere.invalid", "", 7443, "web01.test");
    let path = "var/lib/ctrl-exec/agents/nowhere.invalid.json";
    let by_name = host
        .read(path)
        .replace("\"lookup_by\":\"ip\"", "\"lookup_by\":\"hostname\"");
    host.write(path, by_name, 0o644);
    assert_eq!(
        error("nowhere.invalid"),
        "host 'nowhere.invalid' did not resolve - check the name or use an IP address"
    );

    // Accepts and never says a word: in TLS, then in HTTP.
    let silent = TcpListener::bind("127.0.0.1:0").expect("a port");
    record(
        host,
        "silent",
        "127.0.0.1",
        silent.local_addr().expect("bound").port(),
        "web01.test",
    );
    let start = Instant::now();
    assert_eq!(
        error("silent"),
        "host '127.0.0.1' did not respond - connection timed out"
    );
    assert!(
        start.elapsed() < Duration::from_secs(10),
        "{:?}",
        start.elapsed()
    );
    drop(silent);

    // Not TLS at all.
    let plain = TcpListener::bind("127.0.0.1:0").expect("a port");
    record(
        host,
        "plain",
        "127.0.0.1",
        plain.local_addr().expect("bound").port(),
        "web01.test",
    );
    let server = std::thread::spawn(move || {
        use std::io::{Read as _, Write as _};
        let (mut stream, _) = plain.accept().expect("a client");
        let _ = stream.read(&mut [0; 100]);
        let _ = stream.write_all(b"HTTP/1.0 400 Bad Request\r\n\r\n");
    });
    assert!(
        error("plain")
            .starts_with("TLS handshake with '127.0.0.1' failed - certificate or trust mismatch"),
        "{}",
        error("plain")
    );
    server.join().expect("the server ends");

    // A server of a foreign CA, and one whose certificate has ended.
    let foreign = common::openssl::Authority::foreign().issue(
        "web01.test",
        "09",
        common::openssl::Dates::Days(9),
    );
    let ours = common::openssl::Authority::at(&host.path("etc/ctrl-exec"));
    let expired = ours.issue("web01.test", "08", common::openssl::Dates::Expired);
    for leaf in [&foreign, &expired] {
        let (port, _server) = stub(&fleet, leaf, "ok-ping");
        record(host, "stranger", "127.0.0.1", port, "web01.test");
        assert!(
            error("stranger").starts_with(
                "TLS handshake with '127.0.0.1' failed - certificate or trust mismatch"
            ),
            "{}",
            error("stranger")
        );
    }
    // A failed host never stops the others.
    let _agent = Agent::start(&fleet.agents[0]);
    let out = fleet
        .ced(&["run", "refused", "web01.test", "nowhere.invalid", "hello"])
        .expect_code(1)
        .out();
    assert_eq!(
        (out.matches("[FAIL ").count(), out.matches("[OK ").count()),
        (2, 1),
        "{out}"
    );
}

/// A misbehaving TLS server with this certificate.
fn stub(fleet: &Paired, leaf: &common::openssl::Leaf, behaviour: &str) -> (u16, Daemon) {
    let port = free_port();
    let ca = fleet.dispatcher.path("etc/ctrl-exec/ca.crt");
    let args = [
        &port.to_string(),
        python::text(&leaf.cert),
        python::text(&leaf.key),
        python::text(&ca),
        behaviour,
    ];
    (
        port,
        python::start(&fleet.dispatcher, python::STUB_SERVER, &args),
    )
}

#[test]
fn agents_that_misbehave_hurt_only_themselves() {
    let fleet = Paired::new(&["web01.test"]);
    let host = &fleet.dispatcher;
    let mut toml = host.read("etc/ctrl-exec/ctrl-exec.toml");
    toml.push_str("read_timeout = 2\nconnect_timeout = 5\n");
    host.write("etc/ctrl-exec/ctrl-exec.toml", toml, 0o640);
    let leaf = fleet.agent_leaf(0);
    for (behaviour, expected) in [
        ("array", "invalid JSON response"),
        ("garbage", "invalid JSON response"),
        ("empty", "invalid JSON response"),
        ("number", "invalid JSON response"),
        ("null", "invalid JSON response"),
        ("not-utf8", "invalid JSON response"),
        ("silent", "read timeout after 2s"),
        ("close-at-once", "closed the connection"),
        ("reset", ""),
        ("no-http", ""),
        ("short", ""),
        ("huge-length", ""),
        ("endless", "larger than"),
        ("endless-headers", ""),
        ("500", "500 Internal Server Error"),
        ("403", "forbidden: serial mismatch"),
        ("413", "request too large"),
        ("redirect", "302"),
        ("no-handshake", "timed out"),
    ] {
        let (port, _server) = stub(&fleet, &leaf, behaviour);
        record(host, "stub", "127.0.0.1", port, "web01.test");
        let start = Instant::now();
        let run = fleet
            .ced(&["run", "--json", "stub", "hello"])
            .expect_code(1);
        let result = run.json()["results"][0].clone();
        let error = result["error"]
            .as_str()
            .unwrap_or_else(|| panic!("{behaviour}: {result}"));
        assert!(
            !error.is_empty() && error.contains(expected),
            "{behaviour}: {error}"
        );
        assert_eq!(result["exit"], -1, "{behaviour}");
        assert!(
            start.elapsed() < Duration::from_secs(50),
            "{behaviour}: {:?}",
            start.elapsed()
        );
        let ping = fleet.ced(&["ping", "--json", "stub"]).ok().json();
        assert_eq!(ping["results"][0]["status"], "error", "{behaviour}: {ping}");
    }
    // What only the dispatcher can know, an agent cannot overwrite; what else it sends passes through.
    let (port, _server) = stub(&fleet, &leaf, "overwrite");
    record(host, "stub", "127.0.0.1", port, "web01.test");
    let result = fleet.ced(&["run", "--json", "stub", "hello"]).ok().json()["results"][0].clone();
    assert_eq!(
        (
            result["host"].as_str(),
            result["reported_hostname"].as_str()
        ),
        (Some("stub"), Some("liar"))
    );
    assert_ne!(result["reqid"], "ffffffffffffffff");
    assert_ne!(result["rtt"], "");
    assert_eq!(result["extra"], json!({"a": 1}));
    fleet
        .ced(&["run", "stub", "hello"])
        .ok()
        .out_has("==> stub (liar)  [OK  exit:0  ");
    drop(_server);
    // Control characters reach neither the terminal nor the log.
    let (port, _server) = stub(&fleet, &leaf, "escape");
    record(host, "stub", "127.0.0.1", port, "web01.test");
    let out = fleet.ced(&["run", "stub", "hello"]).expect_code(1).out();
    assert!(!out.contains('\u{1b}'), "{out:?}");
    assert!(host.log_lines().iter().all(|l| l.priority != 0));
    // An exit that is no number is not success.
    for behaviour in ["exit-text", "no-exit"] {
        let (port, _server) = stub(&fleet, &leaf, behaviour);
        record(host, "stub", "127.0.0.1", port, "web01.test");
        fleet.ced(&["run", "stub", "hello"]).expect_code(1);
    }
}

#[test]
fn the_wire_is_that_of_the_original() {
    let fleet = Paired::new(&["web01.test"]);
    let (port, mut server) = stub(&fleet, &fleet.agent_leaf(0), "echo-request");
    record(&fleet.dispatcher, "stub", "127.0.0.1", port, "web01.test");
    fleet.ced(&["ping", "stub"]).ok();
    server.wait_for_text("request ");
    let said = server.out();
    let line = said
        .lines()
        .find(|l| l.starts_with("request "))
        .expect("waited for");
    assert!(
        line.starts_with("request 'POST /ping HTTP/1.1\\r\\n"),
        "{line}"
    );
    let lower = line.to_ascii_lowercase();
    for header in [
        &format!("host: 127.0.0.1:{port}"),
        "connection: close",
        "content-type: application/json",
        "content-length: ",
    ] {
        assert!(lower.contains(header), "{header} is missing: {line}");
    }
    for header in ["transfer-encoding", "expect:", "accept-encoding"] {
        assert!(!lower.contains(header), "{line}");
    }
    assert!(line.matches("\\r\\n").count() <= 32);
}

#[test]
fn the_certificate_must_belong_to_the_agent_addressed() {
    let fleet = Paired::new(&["web01.test", "web02.test"]);
    let _agents = fleet.start();
    let dispatcher = &fleet.dispatcher;
    fleet.ced(&["run", "web01.test", "web02.test", "true"]).ok();
    // web02's address now leads to web01.
    let port = fleet.ports[0].to_string();
    fleet
        .ced(&["edit-agent", "web02.test", "--agent-port", &port])
        .ok();
    let before = fleet.agents[0].log_lines().len();
    let run = fleet
        .ced(&["run", "--json", "web02.test", "hello", "--", "secret"])
        .expect_code(1)
        .json();
    let error = run["results"][0]["error"].as_str().expect("an error");
    assert!(
        error.contains("'web02.test'")
            && error.contains("'web01.test'")
            && error.contains("--peer-check off"),
        "{error}"
    );
    assert_eq!(
        fleet.agents[0]
            .log_of("run")
            .iter()
            .filter(|l| l.text.contains("SCRIPT=hello"))
            .count(),
        0
    );
    assert!(
        fleet.agents[0].log_lines().len() <= before + 1,
        "the agent saw a request"
    );
    // The opt-out is per record, and said in its listing.
    fleet
        .ced(&["edit-agent", "web02.test", "--peer-check", "off"])
        .ok()
        .out_has("peer_check");
    fleet.ced(&["run", "web02.test", "hello"]).ok();
    let ping = fleet.ced(&["ping", "--json", "web02.test"]).ok().json();
    assert_eq!(
        ping["results"][0]["reported_hostname"], "web01.test",
        "{ping}"
    );
    fleet
        .ced(&["ping", "web02.test"])
        .ok()
        .out_has("web02.test (web01.test)");
    fleet
        .ced(&["edit-agent", "web02.test", "--peer-check", "strict"])
        .ok();
    fleet.ced(&["run", "web02.test", "hello"]).expect_code(1);
    let right = fleet.ports[1].to_string();
    fleet
        .ced(&["edit-agent", "web02.test", "--agent-port", &right])
        .ok();
    // Renamed: the record remembers which certificate belongs to it.
    fleet
        .ced(&["edit-agent", "web02.test", "--rename", "renamed"])
        .ok()
        .out_has("renamed from: web02.test");
    fleet.ced(&["run", "renamed", "hello"]).ok();
    fleet
        .ced(&["ping", "renamed"])
        .ok()
        .out_has("renamed (web02.test)");
    fleet
        .ced(&["run", "web02.test", "hello"])
        .expect_code(1)
        .err_has("unknown agent: web02.test");
    // A dispatcher's certificate is never an agent, whatever the record says.
    let (port, _server) = stub(&fleet, &fleet.dispatcher_leaf(), "ok-ping");
    record(
        dispatcher,
        "imposter",
        "127.0.0.1",
        port,
        "ctrl-exec-dispatcher",
    );
    fleet
        .ced(&["edit-agent", "imposter", "--peer-check", "off"])
        .ok();
    let ping = fleet.ced(&["ping", "--json", "imposter"]).ok().json();
    assert_eq!(ping["results"][0]["status"], "error", "{ping}");
}

#[test]
fn results_come_in_the_order_asked_for() {
    let fleet = Paired::new(&["web01.test"]);
    allow(
        &fleet.agents[0],
        "nap",
        "sleep \"$(cat | sed 's/.*\"reqid\".*//' >/dev/null; echo 0)\"; echo done",
    );
    let agent = Agent::start(&fleet.agents[0]);
    let (slow_port, _slow) = stub(&fleet, &fleet.agent_leaf(0), "silent");
    record(
        &fleet.dispatcher,
        "slow",
        "127.0.0.1",
        slow_port,
        "web01.test",
    );
    for name in ["a", "b", "c"] {
        record(
            &fleet.dispatcher,
            name,
            "127.0.0.1",
            agent.port(),
            "web01.test",
        );
    }
    let mut toml = fleet.dispatcher.read("etc/ctrl-exec/ctrl-exec.toml");
    toml.push_str("read_timeout = 1\n");
    fleet
        .dispatcher
        .write("etc/ctrl-exec/ctrl-exec.toml", toml, 0o640);
    let names = |json: &Value| {
        json["results"]
            .as_array()
            .expect("results")
            .iter()
            .map(|r| r["host"].as_str().expect("host").to_owned())
            .collect::<Vec<_>>()
    };
    let json = fleet
        .ced(&["run", "--json", "c", "slow", "a", "b", "true"])
        .expect_code(1)
        .json();
    assert_eq!(names(&json), ["c", "slow", "a", "b"]);
    let out = fleet
        .ced(&["run", "c", "slow", "a", "b", "true"])
        .expect_code(1)
        .out();
    let order: Vec<&str> = out
        .lines()
        .filter_map(|l| l.strip_prefix("==> "))
        .filter_map(|l| l.split_whitespace().next())
        .collect();
    assert_eq!(order, ["c", "slow", "a", "b"]);
    // One request id for all hosts of a dispatch, another one for the next.
    let ids: Vec<&Value> = json["results"]
        .as_array()
        .expect("results")
        .iter()
        .map(|r| &r["reqid"])
        .collect();
    assert!(ids.windows(2).all(|w| w[0] == w[1]));
    assert_ne!(
        fleet.ced(&["run", "--json", "a", "true"]).ok().json()["results"][0]["reqid"],
        *ids[0]
    );
}

#[test]
fn big_results_of_many_hosts_at_once_arrive_whole() {
    let fleet = Paired::new(&["web01.test"]);
    allow(
        &fleet.agents[0],
        "mebibyte",
        "head -c 1048576 /dev/zero | tr '\\0' m",
    );
    allow(
        &fleet.agents[0],
        "much",
        "head -c 204800 /dev/zero | tr '\\0' x; head -c 1000 /dev/zero | tr '\\0' y >&2",
    );
    let agent = Agent::start(&fleet.agents[0]);
    let one = fleet
        .ced(&["run", "--json", "web01.test", "mebibyte"])
        .ok()
        .json();
    assert_eq!(
        one["results"][0]["stdout"].as_str().map(str::len),
        Some(1_048_576)
    );
    let shown = fleet.ced(&["run", "web01.test", "mebibyte"]).ok();
    assert_eq!(
        shown.stdout.iter().filter(|&&b| b == b'm').count(),
        1_048_576
            + shown
                .out()
                .lines()
                .next()
                .expect("a heading")
                .matches('m')
                .count()
    );

    let names: Vec<String> = (1..=16).map(|n| format!("host{n:02}")).collect();
    for (index, name) in names.iter().enumerate() {
        record(
            &fleet.dispatcher,
            name,
            &format!("127.0.1.{}", index + 1),
            agent.port(),
            "web01.test",
        );
    }
    let words: Vec<&str> = ["run", "--json"]
        .into_iter()
        .chain(names.iter().map(String::as_str))
        .chain(["much"])
        .collect();
    let all = fleet.ced(&words).ok().json();
    let results = all["results"].as_array().expect("results");
    assert_eq!(results.len(), 16);
    for (result, name) in results.iter().zip(&names) {
        assert_eq!(result["host"], **name);
        assert!(
            result["stdout"]
                .as_str()
                .is_some_and(|s| s.len() == 204_800 && s.bytes().all(|b| b == b'x')),
            "{name}"
        );
        assert_eq!(
            result["stderr"].as_str().map(str::len),
            Some(1000),
            "{name}"
        );
    }
}

#[test]
fn requests_beyond_the_limit_are_not_sent() {
    let fleet = Paired::new(&["web01.test"]);
    let _agent = Agent::start(&fleet.agents[0]);
    let arg = "a".repeat(120_000);
    let args = [arg.as_str(); 9];
    fleet
        .ced(&[&["run", "web01.test", "true", "--"], &args[..8]].concat())
        .ok();
    fleet
        .ced(&[&["run", "web01.test", "true", "--"], &args[..]].concat())
        .expect_code(1)
        .err_has("request too large");
}

#[test]
fn ping_shows_a_table_and_the_reason_of_every_failure() {
    let fleet = Paired::new(&["web01.test"]);
    let _agent = Agent::start(&fleet.agents[0]);
    let closed = free_port();
    record(&fleet.dispatcher, "down", "127.0.0.1", closed, "down");
    let run = fleet.ced(&["ping", "web01.test", "down"]).ok();
    let out = run.out();
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(
        lines[0],
        format!(
            "{:<30}  {:<8}  {:<8}  {:<28}  VERSION",
            "HOST", "STATUS", "RTT", "CERT EXPIRY"
        )
    );
    assert_eq!(lines[1], "-".repeat(85));
    assert!(
        lines[2].starts_with(&format!("{:<30}  ok        ", "web01.test"))
            && lines[2].contains(" GMT  ")
            && lines[2].ends_with(env!("CARGO_PKG_VERSION")),
        "{}",
        lines[2]
    );
    assert!(
        lines[3].starts_with(&format!("{:<30}  error     ", "down")),
        "{}",
        lines[3]
    );
    assert!(lines[4].contains("connection refused"), "{out}");
    fleet.ced(&["ping", "--check", "web01.test"]).ok();
    fleet
        .ced(&["ping", "--check", "web01.test", "down"])
        .expect_code(1);
    let line = fleet.dispatcher.wait_for_log(&["ACTION=ping", "RESULT=ok"]);
    assert_eq!(line.priority, INFO);
    let json = fleet.ced(&["ping", "--json", "web01.test"]).ok().json();
    let result = &json["results"][0];
    assert_eq!(json["ok"], 1);
    assert_eq!(
        result["expiry"],
        common::openssl::expiry_of(&fleet.agents[0].path("etc/ctrl-exec-agent/agent.crt"))
    );
    assert_eq!(
        (result["version"].as_str(), result["staged"].as_bool()),
        (Some(env!("CARGO_PKG_VERSION")), Some(false))
    );
    assert!(result.get("reported_hostname").is_none(), "{result}");
}

#[test]
fn the_registry_is_listed_edited_and_shortened() {
    let host = new_dispatcher("ctl.test");
    assert_eq!(
        host.ced(&["list-agents"]).ok().out(),
        "No registered agents.\n"
    );
    assert_eq!(host.ced(&["list-agents", "--json"]).ok().json(), json!([]));
    let leaf = common::openssl::Authority::shared().issue(
        "b.test",
        "05",
        common::openssl::Dates::Days(825),
    );
    for (name, env) in [("b.test", "prod"), ("a.test", "test")] {
        let mut record = legacy_record(name, 7443, &leaf, "2");
        record["tags"] = json!({"env": env, "role": "db"});
        record["future_field"] = json!({"kept": [1, 2]});
        common::fleet::register(&host, &record);
    }
    // What is no record does not disturb.
    host.write("var/lib/ctrl-exec/agents/.registry.lock", "", 0o644);
    host.write("var/lib/ctrl-exec/agents/notes.txt", "x", 0o644);
    let out = host.ced(&["list-agents"]).ok().out();
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(lines.len(), 4, "{out}");
    assert!(
        lines[0].starts_with("HOSTNAME") && lines[0].ends_with("DAYS LEFT"),
        "{}",
        lines[0]
    );
    assert_eq!(lines[1].len(), 112);
    assert!(
        lines[2].starts_with("a.test ") && lines[2].contains(" GMT  82"),
        "{}",
        lines[2]
    );
    assert!(lines[3].starts_with("b.test "), "{}", lines[3]);
    let names = |filter: &str| {
        let json = host
            .ced(&["list-agents", "--json", "--tags", filter])
            .ok()
            .json();
        json.as_array()
            .expect("array")
            .iter()
            .map(|r| r["hostname"].as_str().expect("name").to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(names("env=prod"), ["b.test"]);
    assert_eq!(names("role=db,,env=test"), ["a.test"]);
    assert_eq!(names("role=db"), ["a.test", "b.test"]);
    assert!(names("env=none").is_empty());
    host.ced(&["list-agents", "--tags", "env"])
        .expect_code(64)
        .err_has("Invalid --tags filter: invalid tag filter 'env' (expected key=value)");

    // Edits keep what they do not know.
    host.ced(&["edit-agent", "b.test"])
        .expect_code(64)
        .err_has("Nothing to change");
    for (words, error) in [
        (
            ["--lookup-by", "dns"],
            "--lookup-by must be 'ip' or 'hostname'",
        ),
        (
            ["--agent-port", "0"],
            "--agent-port must be a port number (1-65535)",
        ),
        (
            ["--agent-port", "65536"],
            "--agent-port must be a port number (1-65535)",
        ),
        (["--ip", ""], "--ip must not be empty"),
    ] {
        host.ced(&["edit-agent", "b.test", words[0], words[1]])
            .expect_code(64)
            .err_has(error);
    }
    host.ced(&["edit-agent", "b.test", "--rename", "a.test"])
        .expect_code(1)
        .err_has("Edit failed: agent 'a.test' already exists");
    host.ced(&["edit-agent", "b.test", "--rename", "../x"])
        .expect_code(1)
        .err_has("Edit failed");
    host.ced(&["edit-agent", "nobody", "--ip", "192.0.2.1"])
        .expect_code(1)
        .err_has("'nobody'");
    let json = host
        .ced(&[
            "edit-agent",
            "b.test",
            "--json",
            "--rename",
            "c.test",
            "--ip",
            "192.0.2.9",
            "--agent-port",
            "7450",
            "--lookup-by",
            "hostname",
        ])
        .ok()
        .json();
    assert_eq!(
        (
            json["hostname"].as_str(),
            json["ip"].as_str(),
            json["port"].as_u64(),
            json["lookup_by"].as_str()
        ),
        (
            Some("c.test"),
            Some("192.0.2.9"),
            Some(7450),
            Some("hostname")
        )
    );
    let stored = host.json("var/lib/ctrl-exec/agents/c.test.json");
    assert_eq!(stored["future_field"], json!({"kept": [1, 2]}));
    assert_eq!(stored["tags"], json!({"env": "prod", "role": "db"}));
    assert!(!host.exists("var/lib/ctrl-exec/agents/b.test.json"));
    assert_eq!(host.mode("var/lib/ctrl-exec/agents/c.test.json"), 0o644);
    let line = host.wait_for_log(&["ACTION=edit-agent", "AGENT=c.test", "RENAMED_FROM=b.test"]);
    assert_eq!(
        (
            line.field("IP").as_deref(),
            line.field("PORT").as_deref(),
            line.field("LOOKUP_BY").as_deref()
        ),
        (Some("192.0.2.9"), Some("7450"), Some("hostname"))
    );

    host.write(
        "etc/ctrl-exec/victim.json",
        r#"{"hostname":"victim"}"#,
        0o644,
    );
    for bad in ["../../../../etc/ctrl-exec/victim", "..", "a/../c.test", ""] {
        host.ced(&["unpair", bad])
            .expect_code(1)
            .err_has("Unpair failed");
    }
    assert!(host.exists("etc/ctrl-exec/victim.json"));
    host.ced(&["unpair", "nobody"])
        .expect_code(1)
        .err_has("Unpair failed: No registry entry for 'nobody'");
    host.ced(&["unpair", "c.test"])
        .ok()
        .out_has("Unregistered 'c.test'.")
        .out_has(&leaf.expiry());
    assert!(!host.exists("var/lib/ctrl-exec/agents/c.test.json"));
    host.wait_for_log(&["ACTION=unpair", "AGENT=c.test"]);
}

#[test]
fn many_edits_at_once_lose_nothing() {
    let host = new_dispatcher("ctl.test");
    record(&host, "busy", "127.0.0.1", 7443, "busy");
    std::thread::scope(|scope| {
        for index in 0..8 {
            let host = &host;
            scope.spawn(move || {
                let other = format!("other{index}");
                record(host, &other, "127.0.0.1", 7443, "x");
                let port = (7500 + index).to_string();
                host.ced(&["edit-agent", "busy", "--agent-port", &port])
                    .ok();
                host.ced(&["edit-agent", &other, "--rename", &format!("new{index}")])
                    .ok();
            });
        }
    });
    let listed = host.ced(&["list-agents", "--json"]).ok().json();
    assert_eq!(listed.as_array().map(Vec::len), Some(9));
    assert!((7500..7508).contains(&listed[0]["port"].as_u64().expect("a port")));
    // Nothing temporary is left.
    let left: Vec<_> = std::fs::read_dir(host.path("var/lib/ctrl-exec/agents"))
        .expect("it is there")
        .filter_map(|e| e.ok()?.file_name().into_string().ok())
        .filter(|n| !n.ends_with(".json") && n != ".registry.lock")
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn setup_never_overwrites_a_ca_and_asks_before_it_cuts_agents_off() {
    let fleet = Paired::new(&["web01.test"]);
    let host = &fleet.dispatcher;
    for (path, mode) in [
        ("ca.key", 0o600),
        ("ca.serial", 0o600),
        ("ca.crt", 0o644),
        ("dispatcher.key", 0o600),
        ("dispatcher.crt", 0o644),
    ] {
        assert_eq!(host.mode(&format!("etc/ctrl-exec/{path}")), mode, "{path}");
    }
    let key = host.read("etc/ctrl-exec/ca.key");
    let cert = host.read("etc/ctrl-exec/dispatcher.crt");
    host.ced(&["setup-ca"]).expect_code(1).err_has("ca.key");
    std::fs::rename(host.path("etc/ctrl-exec/ca.key"), host.path("tmp/ca.key"))
        .expect("it is there");
    // Half a CA is still a CA.
    host.ced(&["setup-ca"]).expect_code(1).err_has("ca.crt");
    host.ced(&["setup-ctrl-exec", "--yes"])
        .expect_code(1)
        .err_has("ca.key");
    std::fs::rename(host.path("tmp/ca.key"), host.path("etc/ctrl-exec/ca.key"))
        .expect("it is there");
    assert_eq!(host.read("etc/ctrl-exec/ca.key"), key);

    for answer in [&b""[..], b"\n", b"n\n", b"yes\n"] {
        let mut command = host.command("ced");
        let run = common::process::run_with_input(command.arg("setup-ctrl-exec"), answer).ok();
        assert!(
            run.out().contains("Aborted.") && run.err().contains("1 registered agent"),
            "{}{}",
            run.out(),
            run.err()
        );
    }
    assert_eq!(host.read("etc/ctrl-exec/dispatcher.crt"), cert);
    let mut command = host.command("ced");
    common::process::run_with_input(command.arg("setup-ctrl-exec"), b"y\n").ok();
    assert_ne!(host.read("etc/ctrl-exec/dispatcher.crt"), cert);
    let _agent = Agent::start(&fleet.agents[0]);
    fleet
        .ced(&["run", "web01.test", "true"])
        .expect_code(1)
        .out_has("forbidden: serial mismatch");
    host.ced(&["setup-ctrl-exec", "--key-type", "dsa"])
        .expect_code(64);
}
