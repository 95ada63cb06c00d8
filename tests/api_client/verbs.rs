//! Each verb: what is sent, what is shown, how it ends (spec/integrations.md 3).

use serde_json::json;

use crate::stub::{Stub, json};

#[test]
fn health() {
    let stub = Stub::new(&[json(
        200,
        &json!({"ok": true, "version": "0.12.3\u{1b}[31m"}),
    )]);
    let run = stub.api(&["health"]).ok();
    assert_eq!(run.out(), "STATUS ok\nVERSION 0.12.3\\u{1b}[31m\n");
    let heard = stub.only();
    assert_eq!(heard.what, "GET /health");
    assert!(heard.body.is_empty());
    assert_eq!(heard.header("authorization"), None);
    assert!(
        heard
            .header("host")
            .is_some_and(|host| stub.url.ends_with(host))
    );
}

#[test]
fn the_servers_object_is_printed_on_one_line() {
    let object = json!({"ok": true, "version": "1", "more": [1, {"x": "é\n"}]});
    let stub = Stub::new(&[json(200, &object)]);
    let run = stub.api(&["--json", "health"]).ok();
    assert_eq!(run.json(), object);
    assert_eq!(run.out().lines().count(), 1);
    // Also when it is a refusal.
    let refusal = json!({"ok": false, "error": "locked", "code": 4, "conflicts": ["a:s"]});
    let stub = Stub::new(&[json(409, &refusal)]);
    let run = stub.api(&["run", "a", "s", "--json"]).expect_code(1);
    assert_eq!(run.json(), refusal);
    assert_eq!(run.err(), "");
}

#[test]
fn a_token_goes_with_every_request() {
    let answers = json(200, &json!({"ok": true, "results": [], "hosts": {}}));
    let stub = Stub::new(&[answers]);
    let claims = ["--token", "t0k", "--username", "who"];
    for words in [
        &["health"][..],
        &["ping", "a"],
        &["run", "a", "s"],
        &["status", "a1"],
        &["runs"],
        &["cancel", "a1"],
        &["discovery"],
        &["discovery", "a"],
    ] {
        stub.api(&[words, &claims].concat());
    }
    let heard = stub.heard();
    assert_eq!(heard.len(), 8);
    for heard in &heard {
        assert_eq!(
            heard.header("authorization"),
            Some("Bearer t0k"),
            "{heard:?}"
        );
        if heard.what.starts_with("POST") {
            assert_eq!(heard.header("content-type"), Some("application/json"));
            assert_eq!(heard.json()["token"], "t0k");
            assert_eq!(heard.json()["username"], "who");
        } else {
            assert!(heard.body.is_empty());
        }
    }
    let what: Vec<&str> = heard.iter().map(|h| h.what.as_str()).collect();
    assert_eq!(
        what,
        [
            "GET /health",
            "POST /ping",
            "POST /run",
            "GET /status/a1",
            "GET /runs?limit=500",
            "DELETE /runs/a1",
            "POST /discovery",
            "POST /discovery"
        ]
    );
}

#[test]
fn ping_shows_every_host_and_fails_with_any() {
    let good = json!({"host": "web1", "status": "ok", "version": "0.12.3", "expiry": "Jan  1 00:00:00 2030 GMT", "staged": false,
                      "reqid": "a1", "rtt": "12ms", "reported_hostname": "w\u{7}"});
    let bad = json!({"host": "web2", "status": "error", "error": "host 'web2' did not resolve\u{1b}", "rtt": "3ms"});
    let stub = Stub::new(&[
        json(200, &json!({"ok": true, "results": [good.clone(), bad]})),
        json(200, &json!({"ok": true, "results": [good]})),
        json(200, &json!({"ok": true, "results": []})),
    ]);
    let out = stub.api(&["ping", "web1", "web2"]).expect_code(1).out();
    let lines: Vec<&str> = out.lines().collect();
    let columns = |line: &str| {
        line.split_whitespace()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    assert_eq!(
        columns(lines[0]),
        ["HOST", "STATUS", "RTT", "CERT", "EXPIRY", "VERSION"]
    );
    assert!(lines[2].starts_with("web1 (w\\u{7}) "), "{out}");
    assert!(
        lines[2].contains("ok") && lines[2].ends_with("0.12.3"),
        "{out}"
    );
    assert!(
        lines[3].starts_with("web2 ") && lines[3].contains("error"),
        "{out}"
    );
    assert_eq!(lines[4], "    host 'web2' did not resolve\\u{1b}");
    assert_eq!(
        stub.only().json(),
        json!({"hosts": ["web1", "web2"]}),
        "neither token nor user name is made up"
    );
    stub.api(&["ping", "web1"]).ok();
    stub.api(&["ping", "web1"]).expect_code(1);
    stub.api(&["ping"]).expect_code(64);
}

#[test]
fn discovery_counts_scripts_or_lists_them() {
    let hosts = json!({"ok": true, "hosts": {
        "web1": {"status": "ok", "version": "0.12.3", "rtt": "9ms", "tags": {}, "scripts": [
            {"name": "disk", "path": "/opt/disk.sh", "executable": true, "profile": "default"},
            {"name": "gone", "path": "/opt/gone\n.sh", "executable": false, "profile": "default"}]},
        "web2": {"status": "error", "error": "read timeout", "rtt": "1ms"}}});
    let stub = Stub::new(&[json(200, &hosts)]);
    let out = stub.api(&["discovery"]).expect_code(1).out();
    let line = |name: &str| {
        let line = out.lines().find(|l| l.starts_with(name)).map(str::to_owned);
        line.expect("every host has a line")
    };
    assert!(line("web1").ends_with('2') && line("web1").contains("ok"));
    assert!(line("web2").contains("error"));
    assert!(out.contains("    read timeout\n"), "{out}");
    let listed = stub.api(&["discovery", "--scripts", "web1"]).expect_code(1);
    let out = listed.out();
    assert!(out.starts_with("web1:\n  disk "), "{out}");
    assert!(out.contains("/opt/gone\\n.sh  [not executable]\n"), "{out}");
    assert!(out.contains("web2: error\n    read timeout\n"), "{out}");
    let heard = stub.heard();
    assert_eq!(heard[0].what, "GET /discovery");
    assert_eq!(heard[1].what, "POST /discovery");
    assert_eq!(heard[1].json(), json!({"hosts": ["web1"]}));
    let stub = Stub::new(&[json(200, &json!({"ok": true, "hosts": {}}))]);
    assert_eq!(stub.api(&["discovery"]).ok().out(), "No hosts.\n");
}

#[test]
fn refusals_are_told_in_words() {
    for (status, object, told) in [
        (
            403,
            json!({"ok": false, "error": "insufficient privilege", "code": 3}),
            "Denied: insufficient privilege\n",
        ),
        (
            403,
            json!({"ok": false, "error": "forbidden"}),
            "Denied: forbidden\n",
        ),
        (
            409,
            json!({"ok": false, "error": "locked", "code": 4, "conflicts": ["web1:disk", "web2:disk"]}),
            "Locked: already running: web1:disk, web2:disk\n",
        ),
        (
            404,
            json!({"ok": false, "error": "unknown agent", "detail": "not a registered agent: web\u{1b}9"}),
            "unknown agent: not a registered agent: web\\u{1b}9 (404)\n",
        ),
        (
            503,
            json!({"ok": false, "error": "service unavailable", "detail": "too many concurrent requests"}),
            "service unavailable: too many concurrent requests - try again in a moment\n",
        ),
        (
            400,
            json!({"ok": false, "error": "bad request", "detail": "args must be an array"}),
            "bad request: args must be an array (400)\n",
        ),
    ] {
        let stub = Stub::new(&[json(status, &object)]);
        let run = stub.api(&["run", "web1", "disk"]).expect_code(1);
        assert_eq!(run.err(), told);
        assert_eq!(run.out(), "");
    }
}

#[test]
fn words_that_make_no_sense_are_refused_before_anything_is_sent() {
    let stub = Stub::new(&[json(200, &json!({"ok": true}))]);
    for words in [
        &[][..],
        &["nonsense"],
        &["health", "x"],
        &["run", "web1"],
        &["run", "--script", "s"],
        &["status"],
        &["status", "a", "b"],
        &["status", "../x"],
        &["wait", "a/b"],
        &["health", "--timeout", "0"],
        &["health", "--timeout", "x"],
        &["health", "--nonsense"],
        &["health", "--token", "a\r\nX: y"],
    ] {
        stub.api(words).expect_code(64);
    }
    assert!(stub.heard().is_empty());
    stub.api(&["--help"]).ok().out_has("--allow-plain-http");
    stub.api(&["health", "--async"])
        .ok()
        .err_has("option '--async' has no effect with 'api health'");
}
