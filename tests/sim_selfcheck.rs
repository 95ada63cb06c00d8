//! The simulated agents keep the original's rules (spec/agent.md 9, 13 to 16): what is tested against them is only worth as much.

mod common;

use std::io;
use std::path::Path;
use std::time::Duration;

use common::fleet::{legacy_dispatcher, legacy_map};
use common::openssl::{Authority, Dates, Leaf, serial_of};
use common::sim::serials::{TrustFile, canonical, left_by_pairing, live};
use common::sim::{Limit, MANY, Plan, SimAgent, SimFleet};
use common::tls::{self, Client, Reply, TLS12, TLS13};
use common::{PATIENCE, wait_until};
use serde_json::{Value, json};

fn try_call(agent: &SimAgent, leaf: &Leaf, path: &str, body: &Value) -> io::Result<Reply> {
    let (method, body) = match body {
        Value::Null => ("GET", String::new()),
        body => ("POST", body.to_string()),
    };
    tls::request(agent.address(), Some(leaf), method, path, body.as_bytes())
}

#[track_caller]
fn call(agent: &SimAgent, leaf: &Leaf, path: &str, body: &Value) -> (u16, Value) {
    let reply = try_call(agent, leaf, path, body).expect("an answer");
    (reply.status, reply.json())
}

/// Whether the agent takes the holder of this certificate for a dispatcher.
#[track_caller]
fn trusted(agent: &SimAgent, leaf: &Leaf) -> bool {
    let (status, body) = call(agent, leaf, "/ping", &json!({"reqid": "1"}));
    match status {
        200 => {
            assert_eq!(body["status"], "ok");
            true
        }
        _ => {
            assert_eq!(
                (status, body),
                (
                    403,
                    json!({"error": "serial mismatch", "status": "forbidden"})
                )
            );
            false
        }
    }
}

#[track_caller]
fn rotate(agent: &SimAgent, leaf: &Leaf, action: &str, serial: &str) -> Value {
    let body = json!({"serial": serial, "action": action});
    let (status, body) = call(agent, leaf, "/rotate-serial", &body);
    assert_eq!(status, 200, "{body}");
    body
}

fn leaf(serial: &str) -> Leaf {
    Authority::shared().issue("ctrl-exec-dispatcher", serial, Dates::Days(825))
}

#[test]
fn the_canonicaliser_is_that_of_the_original() {
    for (input, result) in [
        ("", ""),
        ("deadbeef", "deadbeef"),
        ("DEADBEEF", "deadbeef"),
        ("0xDEADBEEF", "deadbeef"),
        ("0XdeadBEEF", "deadbeef"),
        ("serial=DEADBEEF", "deadbeef"),
        ("DE:AD:BE:EF", "deadbeef"),
        ("00:DE:AD:BE:EF", "deadbeef"),
        ("3735928559", "deadbeef"),
        ("00aabbccdd", "aabbccdd"),
        ("0000aabbccdd", "aabbccdd"),
        ("00:0a", "a"),
        ("0a", "a"),
        ("00", "0"),
        ("0", "0"),
        ("00:00", "0"),
        ("255", "ff"),
        ("256", "100"),
        (
            "1234567890123456789012345678901234567890",
            "3a0c92075c0dbf3b8acbc5f96ce3f0ad2",
        ),
        ("1234", "4d2"),
        ("12:34", "1234"),
        ("not-a-serial", "nan"),
    ] {
        assert_eq!(canonical(input), result, "{input}");
    }
}

#[test]
fn hex_of_digits_only_is_misread_on_every_pass() {
    for (serial, once, twice) in [
        (0x02, "2", "2"),
        (0x09, "9", "9"),
        (0x0A, "a", "a"),
        (0x0F, "f", "f"),
        (0x10, "a", "a"),
        (0x12, "c", "c"),
        (0x16, "10", "a"),
        (0x19, "13", "d"),
        (0x1A, "1a", "1a"),
        (0x1F, "1f", "1f"),
        (0x20, "14", "e"),
        (0x64, "40", "28"),
    ] {
        assert_eq!(live(&[serial]), once, "{serial:02x}");
        assert_eq!(canonical(&live(&[serial])), twice, "{serial:02x}");
        assert_eq!(left_by_pairing(&format!("{serial:X}")), twice);
    }
    // The sign byte of DER is no digit of the serial.
    assert_eq!(live(&[0, 0xDE, 0xAD]), "dead");
    assert_eq!(live(&[]), "");
}

#[test]
fn the_trust_file_is_read_and_rewritten_as_the_original_does() {
    let text = "# comment\n\n 0C  main # mine\n16 main\nDE:AD:BE:EF spare\nbad\nff two words\n12 -x\nc later\n";
    let mut file = TrustFile::new(text);
    let rows = |file: &TrustFile| {
        let rows = file.raw();
        rows.into_iter()
            .map(|(s, i)| format!("{s} {i}"))
            .collect::<Vec<_>>()
    };
    assert_eq!(
        rows(&file),
        ["0C main", "16 main", "DE:AD:BE:EF spare", "c later"]
    );
    assert_eq!(file.find("c").as_deref(), Some("later"), "later lines win");
    assert_eq!(file.find("10").as_deref(), Some("main"));
    assert_eq!(file.find("16"), None);

    // Every rewrite passes every row once more.
    file.add("0x1F", "main").expect("added");
    assert_eq!(
        rows(&file),
        ["10 main", "1f main", "c later", "deadbeef spare"]
    );
    assert!(
        file.text().starts_with("# ") && !file.text().contains("# comment"),
        "{}",
        file.text()
    );
    file.add("junk!", "main").expect("nothing is checked");
    // Another's serial is taken over.
    file.add("DEADBEEF", "main").expect("no owner is asked");
    assert_eq!(
        rows(&file),
        ["1f main", "a main", "c later", "deadbeef main", "nan main"]
    );

    let before = file.text().to_owned();
    assert_eq!(
        file.add("", "main"),
        Err("invalid dispatcher serial".to_owned())
    );
    assert_eq!(
        file.add("1", "-"),
        Err("invalid dispatcher id '-'".to_owned())
    );
    assert_eq!(
        file.remove("0c", "main"),
        Err("serial not owned by 'main'".to_owned())
    );
    assert_eq!(file.remove("77", "main"), Ok(()));
    assert_eq!(file.text(), before);
    assert_eq!(file.remove("1F", "main"), Ok(()));
    assert_eq!(file.find("1f"), None);
}

#[test]
fn two_certificates_pass_for_one_dispatcher() {
    let fleet = SimFleet::new(1, Authority::shared(), &left_by_pairing("12"));
    let agent = &fleet[0];
    assert!(trusted(agent, &leaf("12")));
    // Anybody's certificate with serial 0x0C.
    let other = Authority::shared().issue("web07.test", "0C", Dates::Days(825));
    assert!(trusted(agent, &other));
    assert!(!trusted(agent, &leaf("0D")));
    assert_eq!(fleet.trusting("0c"), fleet.trusting("12"));
    assert!(fleet.trusting("0d").is_empty());
}

#[test]
fn a_serial_that_is_sent_after_one_pass_can_lock_its_owner_out() {
    let fleet = SimFleet::new(1, Authority::shared(), "2");
    let (agent, old, new) = (&fleet[0], leaf("02"), leaf("16"));
    // What the original's dispatcher sends for 0x16.
    assert_eq!(rotate(agent, &old, "add", "10")["status"], "ok");
    assert_eq!(
        agent.trusted(),
        [("2", "ctl"), ("a", "ctl")]
            .map(|(s, i)| (s.to_owned(), i.to_owned()))
            .into()
    );
    assert!(!trusted(agent, &new));

    // With colons the serial reaches the file as it is, and the pass of the next load makes of it what it makes of the live one.
    let reply = rotate(agent, &old, "add", "00:16");
    assert_eq!(
        reply,
        json!({"status": "ok", "action": "add", "serial": "00:16", "dispatcher": "ctl"})
    );
    assert!(agent.trusted().contains_key("16"));
    assert!(trusted(agent, &new) && agent.trusts("16"));
    // But any later change of the map passes the row once more.
    rotate(agent, &new, "remove", "2");
    assert!(!trusted(agent, &new));
}

#[test]
fn a_dispatcher_takes_away_only_what_is_its_own() {
    let plan = Plan {
        map: legacy_map(&[("2", "ctl"), ("5", "other")]),
        ..Plan::new(1, "2")
    };
    let fleet = SimFleet::start(&plan, Authority::shared());
    let (agent, ours, theirs) = (&fleet[0], leaf("02"), leaf("05"));
    assert_eq!(
        rotate(agent, &ours, "remove", "5"),
        json!({"status": "error", "error": "serial not owned by 'ctl'"})
    );
    assert_eq!(rotate(agent, &ours, "remove", "77")["status"], "ok");
    assert_eq!(
        rotate(agent, &ours, "replace", "5")["error"],
        "invalid action 'replace'"
    );
    assert_eq!(rotate(agent, &ours, "add", "")["error"], "serial required");
    assert!(trusted(agent, &theirs));
    // Its own it may take away, even the one it uses.
    assert_eq!(rotate(agent, &theirs, "remove", "05")["status"], "ok");
    assert!(!trusted(agent, &theirs));
    let serials: Vec<String> = agent
        .requests_for("/rotate-serial")
        .into_iter()
        .map(|r| r.serial)
        .collect();
    assert_eq!(serials, ["2", "2", "2", "2", "5"]);
}

#[test]
fn a_caller_proves_its_key_and_needs_a_place_in_the_map_for_most() {
    let fleet = SimFleet::new(1, Authority::shared(), "2");
    let agent = &fleet[0];
    let (ours, stranger) = (leaf("02"), leaf("07"));
    for version in [TLS12, TLS13] {
        let ping = |identity: Option<&Leaf>| {
            Client::connect(agent.address(), identity, version)?.request("POST", "/ping", b"{}")
        };
        assert_eq!(ping(Some(&ours)).expect("served").status, 200);
        assert_eq!(ping(None).expect("let in").status, 403);
        let stolen = Leaf {
            cert: ours.cert.clone(),
            ..stranger.clone()
        };
        ping(Some(&stolen)).expect_err("the key is another");
        let foreign = Authority::foreign().issue("ctrl-exec-dispatcher", "02", Dates::Days(9));
        ping(Some(&foreign)).expect_err("the CA is another");
    }
    let expired = Authority::shared().issue("ctrl-exec-dispatcher", "02", Dates::Expired);
    try_call(agent, &expired, "/ping", &json!({})).expect_err("its time is over");

    let before = agent.requests().len();
    assert_eq!(
        call(agent, &stranger, "/capabilities", &Value::Null),
        (403, json!({"error": "forbidden"}))
    );
    assert_eq!(
        call(agent, &stranger, "/nowhere", &json!({})),
        (404, json!({"error": "not found"}))
    );
    assert_eq!(call(agent, &stranger, "/renew", &json!({})).0, 200);
    assert_eq!(call(agent, &stranger, "/result/abc", &Value::Null).0, 403);
    assert_eq!(call(agent, &ours, "/ping?x", &json!({})).0, 404);
    let (status, listing) = call(agent, &ours, "/capabilities", &Value::Null);
    assert_eq!((status, &listing["host"]), (200, &json!("sim0000.test")));
    let seen = agent.requests();
    assert_eq!(seen.len(), before + 6);
    assert_eq!(
        (seen[before].serial.as_str(), seen[before].status),
        ("7", 403)
    );

    // One request, one answer, no more.
    let mut client = Client::connect(agent.address(), Some(&ours), TLS13).expect("connected");
    let reply = client.request("POST", "/ping", b"{}").expect("served");
    assert!(reply.head.starts_with("HTTP/1.0 200 OK\r\n"), "{reply:?}");
    assert!(client.wait_for_close() < PATIENCE);
    // A handler that the body kills.
    try_call(agent, &ours, "/ping", &json!([])).expect_err("no answer");
}

#[test]
fn a_certificate_is_renewed_staged_and_adopted() {
    let authority = Authority::shared();
    let plan = Plan {
        days: 20,
        first_serial: 0x31,
        ..Plan::new(2, "2")
    };
    let fleet = SimFleet::start(&plan, authority);
    let (agent, ours) = (&fleet[0], leaf("02"));
    let (_, ping) = call(agent, &ours, "/ping", &json!({"reqid": "r1"}));
    assert_eq!(
        ping,
        json!({"status": "ok", "host": "sim0000.test", "version": "0.12.3", "expiry": agent.expiry(), "staged": false, "reqid": "r1"})
    );
    assert_eq!(agent.presented_serial(), "31");
    assert_eq!(fleet[1].presented_serial(), "32");

    let dir = tempfile::tempdir().expect("a directory");
    let sign = |by: &Authority, csr: &str| {
        let at = dir.path().join("agent.csr");
        std::fs::write(&at, csr).expect("written");
        by.sign(&at, "41", Dates::Days(365))
    };
    let read = |path: &Path| std::fs::read_to_string(path).expect("PEM");
    let (_, renew) = call(agent, &ours, "/renew", &json!({"reqid": "r2"}));
    assert_eq!(renew["reqid"], "r2");
    let csr = renew["csr"].as_str().expect("a request");
    assert!(csr.starts_with("-----BEGIN CERTIFICATE REQUEST-----"));

    let complete = |cert: &str| {
        let body = json!({"cert": cert, "ca": authority.cert_pem(), "reqid": "r3"});
        call(agent, &ours, "/renew-complete", &body).1
    };
    for (cert, why) in [
        (String::new(), "cert required"),
        (
            read(&sign(Authority::foreign(), csr)),
            "renewed cert does not verify against the agent CA",
        ),
        (
            "rubbish".to_owned(),
            "renewed cert does not verify against the agent CA",
        ),
        (
            leaf("42").cert_pem(),
            "renewed cert public key does not match the agent key",
        ),
    ] {
        assert_eq!(complete(&cert), json!({"status": "error", "error": why}));
        assert!(!agent.staged() && !agent.adopt());
    }
    let new = sign(authority, csr);
    let text = common::openssl::text_of(&new);
    assert!(text.contains("CN = sim0000.test") || text.contains("CN=sim0000.test"));
    assert_eq!(
        complete(&read(&new)),
        json!({"status": "ok", "reqid": "r3", "staged": true})
    );
    assert!(agent.staged());
    let (_, ping) = call(agent, &ours, "/ping", &json!({}));
    assert_eq!(
        (&ping["staged"], agent.presented_serial()),
        (&json!(true), "31".to_owned())
    );
    assert!(agent.adopt() && !agent.staged());
    assert_eq!(agent.presented_serial(), serial_of(&new));
    let (_, after) = call(agent, &ours, "/ping", &json!({}));
    assert_eq!(after["staged"], false);
    assert_eq!(after["expiry"], common::openssl::expiry_of(&new));
    let client = Client::connect(agent.address(), Some(&ours), TLS13).expect("connected");
    let pem = pem::parse(read(&new)).expect("PEM");
    assert_eq!(client.peer_certificate(), pem.contents());
}

#[test]
fn an_agent_fails_as_it_is_told() {
    let fleet = SimFleet::new(2, Authority::shared(), "2");
    let (agent, ours) = (&fleet[0], leaf("02"));
    agent.set_up(false);
    let refused = try_call(agent, &ours, "/ping", &json!({})).expect_err("down");
    assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    assert!(trusted(&fleet[1], &ours));
    agent.set_up(true);
    assert!(trusted(agent, &ours));

    // Done, but nobody hears of it; the next time somebody does.
    agent.lose_reply_of("/rotate-serial");
    let body = json!({"serial": "beef", "action": "add"});
    let lost = try_call(agent, &ours, "/rotate-serial", &body).expect_err("no answer");
    assert_eq!(lost.kind(), io::ErrorKind::UnexpectedEof, "{lost}");
    assert!(agent.trusts("beef") && !fleet[1].trusts("beef"));
    assert_eq!(rotate(agent, &ours, "add", "beef")["status"], "ok");
    let log = agent.requests_for("/rotate-serial");
    assert_eq!(log.len(), 2);
    assert!(log[0].lost && !log[1].lost && log[0].body == body && log[0].status == 200);

    agent.set_limit(Some(Limit {
        connections: 3,
        block: Duration::from_millis(400),
        ..Limit::default()
    }));
    for _ in 0..3 {
        assert!(trusted(agent, &ours));
    }
    for _ in 0..2 {
        try_call(agent, &ours, "/ping", &json!({})).expect_err("blocked");
    }
    wait_until("the block is over", PATIENCE, || {
        try_call(agent, &ours, "/ping", &json!({})).ok()
    });
    // A rotation clears what the limiter knows.
    for _ in 0..5 {
        assert_eq!(rotate(agent, &ours, "add", "beef")["status"], "ok");
    }
    for _ in 0..3 {
        assert!(trusted(agent, &ours));
    }
    try_call(agent, &ours, "/ping", &json!({})).expect_err("blocked again");
    agent.adopt();
    assert!(trusted(agent, &ours));
}

#[test]
fn runs_are_answered() {
    let plan = Plan {
        map: legacy_map(&[("2", "ctl"), ("5", "other")]),
        ..Plan::new(1, "2")
    };
    let fleet = SimFleet::start(&plan, Authority::shared());
    let (agent, ours, theirs) = (&fleet[0], leaf("02"), leaf("05"));
    let request =
        json!({"script": "hello", "args": ["a b"], "reqid": "r1", "username": "", "token": ""});
    let (status, result) = call(agent, &ours, "/run", &request);
    assert_eq!((status, &result["exit"]), (200, &json!(0)));
    let echo: Value = serde_json::from_str(result["stdout"].as_str().expect("text")).expect("JSON");
    assert_eq!(echo, request);
    assert_eq!(
        call(agent, &ours, "/run", &json!({"args": "x"})).1["error"],
        "args must be an array"
    );

    agent.hold_runs(true);
    let start = |reqid: &str| json!({"script": "long", "args": [], "reqid": reqid, "async": true});
    assert_eq!(
        call(agent, &ours, "/run", &start("r2")),
        (
            202,
            json!({"script": "long", "status": "accepted", "reqid": "r2"})
        )
    );
    assert_eq!(call(agent, &ours, "/run", &start("r3")).0, 409);
    let ask = |leaf: &Leaf| call(agent, leaf, "/result/r2", &Value::Null);
    assert_eq!(ask(&ours).1["status"], "running");
    assert_eq!(
        ask(&theirs),
        (404, json!({"status": "unknown", "reqid": "r2"}))
    );
    agent.hold_runs(false);
    let (_, done) = ask(&ours);
    assert_eq!(
        (&done["status"], &done["exit"]),
        (&json!("done"), &json!(0))
    );
}

#[test]
fn our_dispatcher_works_with_small_and_with_large_fleets() {
    let authority = Authority::shared();
    for count in [20, MANY + 10] {
        let ours = leaf("02");
        let dispatcher = legacy_dispatcher(authority, &ours);
        let fleet = SimFleet::new(count, authority, &left_by_pairing("02"));
        fleet.register_all(&dispatcher);
        let names = fleet.names();
        let words = |verb: &'static str| [&[verb, "--json"], &names[..]].concat();
        let ping = dispatcher.ced(&words("ping")).ok().json();
        let results = ping["results"].as_array().expect("results");
        assert_eq!(results.len(), count);
        for (result, agent) in results.iter().zip(fleet.agents()) {
            assert_eq!(result["status"], "ok", "{result}");
            assert_eq!(result["version"], "0.12.3", "{result}");
            assert_eq!(result["expiry"], agent.expiry(), "{result}");
            let seen = agent.requests_for("/ping");
            assert_eq!((seen.len(), seen[0].serial.as_str()), (1, "2"));
        }
        let run = dispatcher
            .ced(&[&words("run")[..], &["hello", "--", "x"]].concat())
            .ok()
            .json();
        assert_eq!(run["results"].as_array().map(Vec::len), Some(count));

        fleet[3].set_up(false);
        dispatcher
            .ced(&["ping", "--check", names[3]])
            .expect_code(1);
        dispatcher.ced(&["ping", "--check", names[4]]).ok();
    }
}
