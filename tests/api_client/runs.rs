//! Runs, and what becomes of them (spec/api.md 5.4, 5.6, 6).

use serde_json::{Value, json};

use crate::stub::{Stub, json};

const REQID: &str = "0123456789abcdef";

fn sync() -> Value {
    json!({"ok": true, "reqid": REQID, "results": [
        {"host": "web1", "script": "disk", "exit": 0, "stdout": "one\u{1b}[1m\ntwo", "stderr": "warn\n", "reqid": REQID, "rtt": "12ms"},
        {"host": "web2", "script": "disk", "exit": 3, "stdout": "", "stderr": "", "reqid": REQID, "rtt": "8ms", "signal": 9},
        {"host": "web3", "script": "disk", "exit": -1, "error": "script not permitted\u{7}", "reqid": REQID, "rtt": "2ms"}]})
}

#[test]
fn a_run_is_shown_host_by_host() {
    let stub = Stub::new(&[json(200, &sync())]);
    let run = stub
        .api(&[
            "run", "web1", "web2", "web3", "disk", "--", "-x", "--", "a b",
        ])
        .expect_code(1);
    assert_eq!(
        run.out(),
        format!(
            "reqid: {REQID}\n==> web1 [ok 12ms]\none\u{1b}[1m\ntwo\n==> web2 [exit:3 8ms]\n    NOTE: ended by signal 9\n\
             ==> web3 [error 2ms]\n    ERROR: script not permitted\\u{{7}}\n"
        )
    );
    assert_eq!(run.err(), "warn\n");
    let heard = stub.only();
    assert_eq!(heard.what, "POST /run");
    assert_eq!(
        heard.json(),
        json!({"hosts": ["web1", "web2", "web3"], "script": "disk", "args": ["-x", "--", "a b"]})
    );
}

#[test]
fn the_originals_form_names_the_script_by_an_option() {
    let good = json!({"ok": true, "reqid": REQID, "results": [{"host": "a", "exit": 0, "stdout": "", "stderr": "", "rtt": "1ms"}]});
    let stub = Stub::new(&[json(200, &good)]);
    stub.api(&["run", "a", "--script", "disk"]).ok();
    assert_eq!(
        stub.only().json(),
        json!({"hosts": ["a"], "script": "disk"})
    );
    // An empty list of results is no success.
    let none = json!({"ok": true, "reqid": REQID, "results": []});
    Stub::new(&[json(200, &none)])
        .api(&["run", "a", "disk"])
        .expect_code(1);
}

#[test]
fn asynchronous_means_asynchronous() {
    let accepted = |more: &[Value]| {
        let mut results = vec![
            json!({"host": "web1", "script": "disk", "status": "accepted", "reqid": REQID, "rtt": "5ms"}),
        ];
        results.extend_from_slice(more);
        json!({"ok": true, "async": true, "reqid": REQID, "results": results})
    };
    let others = [
        json!({"host": "web2", "script": "disk", "status": "busy", "error": "script already running", "reqid": REQID, "rtt": "4ms"}),
        // An agent that refuses inside a 200 answer.
        json!({"host": "web3", "script": "disk", "exit": -1, "error": "not permitted", "reqid": REQID, "rtt": "3ms"}),
    ];
    let stub = Stub::new(&[
        json(202, &accepted(&[])),
        json(202, &accepted(&others)),
        json(200, &sync()),
    ]);
    let run = stub.api(&["run", "--async", "web1", "disk"]).ok();
    assert_eq!(
        run.out(),
        format!("reqid: {REQID}\n==> web1 [accepted 5ms]\n")
    );
    assert_eq!(
        stub.only().json(),
        json!({"hosts": ["web1"], "script": "disk", "async": true})
    );
    let run = stub
        .api(&["run", "web1", "web2", "web3", "disk", "--async"])
        .expect_code(1);
    assert!(run.out().ends_with(
        "==> web2 [busy 4ms]\n    ERROR: script already running\n==> web3 [error 3ms]\n    ERROR: not permitted\n"
    ), "{}", run.out());
    stub.api(&["run", "--async", "web1", "disk"])
        .expect_code(1)
        .err_has("does not know asynchronous runs");
}

fn record_of_sync() -> Value {
    let mut record = sync();
    record["script"] = "disk".into();
    record["mode"] = "sync".into();
    record["hosts"] = json!(["web1", "web2", "web3"]);
    record["completed"] = 1_700_000_000.into();
    record["complete"] = true.into();
    record
}

fn record_of_async(web2: &Value, complete: bool) -> Value {
    let pending: &[&str] = if complete { &[] } else { &["web2"] };
    json!({"ok": true, "reqid": REQID, "script": "disk", "mode": "async", "created": 1_700_000_000, "complete": complete, "pending": pending,
           "hosts": {"web1": {"status": "done", "exit": 0, "stdout": "out\n", "stderr": ""}, "web2": web2}})
}

#[test]
fn status_reads_both_shapes() {
    let running = json!({"status": "running", "fetch_error": "no response\u{1b}"});
    let failed = json!({"status": "error", "error": "why"});
    let expired = json!({"status": "expired"});
    let stub = Stub::new(&[
        json(200, &record_of_sync()),
        json(200, &record_of_async(&running, false)),
        json(200, &record_of_async(&failed, true)),
        json(200, &record_of_async(&expired, true)),
    ]);
    let run = stub.api(&["status", REQID]).expect_code(1);
    assert!(
        run.out().starts_with(&format!(
            "reqid: {REQID}\nscript: disk\nhosts: web1, web2, web3\ncompleted: 2023-11-14T22:13:20Z\n==> web1 [ok 12ms]\none"
        )),
        "{}",
        run.out()
    );
    let run = stub.api(&["status", REQID]).ok();
    assert_eq!(
        run.out(),
        format!(
            "reqid: {REQID}\nscript: disk\nhosts: web1, web2\ncreated: 2023-11-14T22:13:20Z\npending: web2\n==> web1 [ok]\nout\n\
             ==> web2 [running]\n    (fetch pending: no response\\u{{1b}})\n"
        )
    );
    stub.api(&["status", REQID])
        .expect_code(1)
        .out_has("==> web2 [error]\n    ERROR: why\n");
    stub.api(&["status", REQID])
        .expect_code(1)
        .out_has("==> web2 [expired]\n    the agent has no record");
    assert_eq!(stub.heard()[0].what, format!("GET /status/{REQID}"));
}

#[test]
fn a_record_of_another_run_or_none_at_all_is_refused() {
    let stub = Stub::new(&[
        json(200, &record_of_sync()),
        json(200, &json!({"ok": true})),
        json(
            404,
            &json!({"ok": false, "error": "not found", "detail": "no result for reqid ff"}),
        ),
    ]);
    for _ in 0..2 {
        stub.api(&["status", "ff"])
            .expect_code(1)
            .err_has("no record of request ff");
    }
    stub.api(&["status", "ff"])
        .expect_code(1)
        .err_has("not found: no result for reqid ff");
}

#[test]
fn wait_looks_until_the_run_has_ended() {
    let running = json(200, &record_of_async(&json!({"status": "running"}), false));
    let ended = |exit: i64| {
        let web2 = json!({"status": "done", "exit": exit, "stdout": "", "stderr": ""});
        json(200, &record_of_async(&web2, true))
    };
    let busy = json(503, &json!({"ok": false, "error": "service unavailable"}));
    let stub = Stub::new(&[busy, running.clone(), ended(0)]);
    let run = stub.api(&["wait", REQID]).ok();
    assert!(run.out().contains("complete: yes\n"), "{}", run.out());
    assert!(run.err().contains("busy; asking again"), "{}", run.err());
    assert_eq!(stub.heard().len(), 3);

    Stub::new(&[running.clone(), ended(4)])
        .api(&["wait", REQID, "--json"])
        .expect_code(1)
        .out_has("\"complete\":true");

    // The time is over before that.
    let stub = Stub::new(std::slice::from_ref(&running));
    stub.api(&["wait", REQID, "--timeout", "0"])
        .expect_code(2)
        .out_has("==> web2 [running]");
    assert_eq!(stub.heard().len(), 1);
    stub.api(&["wait", REQID, "--timeout", "1"])
        .expect_code(2)
        .out_has("pending: web2");
    assert!(stub.heard().len() > 2);
}

#[test]
fn wait_outlives_a_server_that_is_away_but_not_a_wrong_url() {
    let running = json(200, &record_of_async(&json!({"status": "accepted"}), false));
    let done = json!({"status": "done", "exit": 0, "stdout": "", "stderr": ""});
    let cut = crate::stub::raw("HTTP/1.0 200 OK\r\nContent-Type: applica");
    let stub = Stub::new(&[
        running,
        cut.clone(),
        json(200, &record_of_async(&done, true)),
    ]);
    stub.api(&["wait", REQID]).ok().err_has("asking again");
    let stub = Stub::new(&[cut]);
    stub.api(&["wait", REQID]).expect_code(1);
    assert_eq!(stub.heard().len(), 1);
    let gone = json!({"ok": false, "error": "not found", "detail": "no result for reqid ff"});
    Stub::new(&[json(404, &gone)])
        .api(&["wait", "ff"])
        .expect_code(1)
        .err_has("no result for reqid ff");
}

#[test]
fn runs_on_record_are_listed() {
    let list = json!({"ok": true, "runs": [
        {"reqid": REQID, "script": "disk\u{1b}", "mode": "sync", "time": 1, "age": 90, "state": "done", "count": 1, "hosts": 1},
        {"reqid": "ff", "script": "slow", "mode": "async", "time": 1, "age": 7200, "state": "running", "count": 2, "hosts": 3}], "next": "ff"});
    let stub = Stub::new(&[
        json(200, &list),
        json(200, &json!({"ok": true, "runs": []})),
        json(
            404,
            &json!({"ok": false, "error": "not found", "detail": "no route for GET /runs"}),
        ),
    ]);
    let run = stub.api(&["runs"]).ok();
    assert!(run.err().contains("more runs on record than these 2"));
    let out = run.out();
    let lines: Vec<&str> = out.lines().collect();
    assert!(
        lines[2].starts_with(REQID) && lines[2].contains("disk\\u{1b}"),
        "{out}"
    );
    assert!(
        lines[2].contains(" 90s ") && lines[2].ends_with("done"),
        "{out}"
    );
    assert!(
        lines[3].contains(" 2h ") && lines[3].ends_with("running 2/3"),
        "{out}"
    );
    assert_eq!(stub.api(&["runs"]).ok().out(), "No runs on record.\n");
    // A server of the original.
    stub.api(&["runs"])
        .expect_code(1)
        .err_has("release that does not know it");
}

#[test]
fn cancel_tells_what_each_host_made_of_it() {
    let stopped = json!({"status": "done", "exit": 126, "stdout": "", "stderr": "", "signal": 15, "cancelled": true});
    let mut all = record_of_async(&stopped, true);
    all["cancel"] = json!({"web2": {"status": "cancelling"}});
    let mut some = record_of_async(&json!({"status": "running"}), false);
    some["cancel"] = json!({"web2": {"status": "unsupported", "error": "cannot cancel\u{7}"}});
    let mut none = record_of_async(&stopped, true);
    none["cancel"] = json!({});
    let mut nobody = record_of_async(&json!({"status": "running"}), false);
    nobody["cancel"] = json!({});
    let stub = Stub::new(&[
        json(200, &all),
        json(200, &some),
        json(200, &none),
        json(200, &nobody),
    ]);
    stub.api(&["cancel", REQID])
        .ok()
        .out_has("==> web2 [cancelling]\n")
        .out_has(
            "==> web2 [exit:126]\n    NOTE: ended by signal 15\n    NOTE: cancelled on request\n",
        );
    stub.api(&["cancel", REQID])
        .expect_code(1)
        .out_has("==> web2 [unsupported]\n    ERROR: cannot cancel\\u{7}\n");
    stub.api(&["cancel", REQID])
        .ok()
        .out_has("Nothing to cancel");
    stub.api(&["cancel", REQID])
        .expect_code(1)
        .out_has("the server has asked nobody");
    assert_eq!(stub.heard()[0].what, format!("DELETE /runs/{REQID}"));
}
