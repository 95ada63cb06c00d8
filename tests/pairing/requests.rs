//! Request, decision, delivery: what both screens show, what is written, who wins.

use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;

use crate::common::fleet::{self, new_agent, new_dispatcher};
use crate::common::openssl::{expiry_of, key_matches, openssl, serial_of};
use crate::common::{Agent, PATIENCE, free_port, root_or_skip, syslog, wait_until};
use crate::kit::{
    CA, CERT, Hall, KEY, MAP, QUEUE, assert_unpaired, basic_request, code_of, configure, fails,
    line_of, map_of, record_path, succeeds, wait_for_action,
};

#[test]
fn a_pairing_from_both_ends() {
    let hall = Hall::open();
    let agent = new_agent("web01.test", free_port());
    let (mut request, id) = hall.ask_and_queue(&agent, &["--lookup-by", "ip"]);

    // Both screens, the list in both forms, and the queue file: one code, of the strong kind.
    let code = code_of(&mut request);
    assert!(
        code.len() == 6 && code.bytes().all(|b| b.is_ascii_digit()),
        "{code}"
    );
    assert_eq!(
        line_of(&request.out(), "Kind of code: ").as_deref(),
        Some("bound")
    );
    assert_eq!(
        line_of(&request.out(), "Request id: ").as_deref(),
        Some(&*id)
    );
    let shown = fleet::requests(&hall.host).remove(0);
    assert_eq!(
        (shown["code"].as_str(), shown["code_kind"].as_str()),
        (Some(&*code), Some("bound"))
    );
    assert!(
        hall.mode
            .out()
            .contains(&format!("{id} code {code} (bound)")),
        "{}",
        hall.mode.out()
    );
    let table = hall.host.ced(&["list-requests"]).ok().out();
    let row = table
        .lines()
        .find(|l| l.starts_with(&id))
        .expect("a row that begins with the id");
    assert!(
        row.contains("web01.test")
            && row.contains("127.0.0.1")
            && row.ends_with(&format!("{code} bound")),
        "{row}"
    );

    // The queue belongs to root alone, whatever the umask.
    assert_eq!(hall.host.mode(QUEUE), 0o700);
    let file = format!("{QUEUE}/{id}.json");
    assert_eq!(hall.host.mode(&file), 0o600);
    let queued = hall.host.json(&file);
    for (field, value) in [
        ("id", id.as_str()),
        ("hostname", "web01.test"),
        ("ip", "127.0.0.1"),
        ("source_ip", "127.0.0.1"),
        ("lookup_by", "ip"),
        ("code", &code),
    ] {
        assert_eq!(queued[field], value, "{field}");
    }
    assert!(
        queued["port"].is_u64()
            && queued["reverse_dns"].is_string()
            && queued["reverse_confirmed"].is_u64(),
        "{queued}"
    );
    assert!(
        queued["received"]
            .as_str()
            .is_some_and(|t| t.len() == 20 && t.ends_with('Z')),
        "{queued}"
    );
    assert!(
        queued["nonce"].as_str().is_some_and(|n| n.len() == 32),
        "{queued}"
    );
    let line = hall.host.wait_for_log(&["ACTION=pair-request", &id]);
    assert_eq!(line.priority, syslog::INFO);
    for (key, value) in [
        ("AGENT", "web01.test"),
        ("IP", "127.0.0.1"),
        ("REPORTED_IP", "127.0.0.1"),
        ("STATUS", "pending"),
    ] {
        assert_eq!(line.field(key).as_deref(), Some(value), "{}", line.text);
    }

    let approved = hall.host.ced(&["approve", &id]).ok();
    let said = approved.out();
    assert!(
        said.contains(&format!("Approved 'web01.test' (request {id}).")),
        "{said}"
    );
    assert!(
        said.contains("lookup_by=ip") && said.contains("addr=127.0.0.1:"),
        "{said}"
    );
    assert!(said.contains("Delivery: paired"), "{said}");
    succeeds(&mut request);
    assert!(
        request.out().contains("Pairing complete") && request.out().contains("self-ping"),
        "{}",
        request.out()
    );

    for (path, mode) in [(CERT, 0o640), (KEY, 0o640), (CA, 0o644), (MAP, 0o644)] {
        assert_eq!(agent.mode(path), mode, "{path}");
    }
    assert!(key_matches(&agent.path(CERT), &agent.path(KEY)));
    assert_eq!(agent.read(CA), hall.host.read("etc/ctrl-exec/ca.crt"));
    let serial = serial_of(&hall.host.path("etc/ctrl-exec/dispatcher.crt"));
    assert_eq!(map_of(&agent), [(serial, "ctl".to_owned())]);
    agent
        .cea(&["pairing-status"])
        .ok()
        .out_has("Paired. Certificate expires: ");
    agent.cea(&["paired"]).ok();

    let done = agent.wait_for_log(&["ACTION=pair-complete"]);
    assert_eq!(
        (done.ident.as_str(), done.priority),
        ("ctrl-exec-agent", syslog::INFO)
    );
    for (key, value) in [
        ("STATUS", "approved"),
        ("DISPATCHER", "ctl"),
        ("DISPATCHER_HOST", "127.0.0.1"),
        ("CODE", "bound"),
    ] {
        assert_eq!(done.field(key).as_deref(), Some(value), "{}", done.text);
    }
    for action in ["pair-approve", "pair-sent", "pair-delivered"] {
        let text = wait_for_action(&hall.host, action, &id);
        assert!(text.contains("AGENT=web01.test"), "{text}");
    }
    // Nothing waits any more, and nothing but the note of the end is left.
    assert!(fleet::requests(&hall.host).is_empty());
    assert_eq!(hall.queue(), [format!("{id}.delivered")]);
    assert!(
        hall.host
            .ced(&["list-requests"])
            .ok()
            .out()
            .contains("No pending pairing requests.")
    );
}

#[test]
fn the_registry_record_has_the_twelve_fields_with_their_types() {
    let hall = Hall::open();
    let agent = new_agent("web01.test", 7555);
    let (mut request, id) = hall.ask_and_queue(&agent, &["--lookup-by", "ip"]);
    // What the agent wished for is what the record gets, unless the operator says otherwise.
    let wished = hall.host.json(&format!("{QUEUE}/{id}.json"));
    assert_eq!(
        (wished["port"].as_u64(), wished["lookup_by"].as_str()),
        (Some(7555), Some("ip"))
    );
    let said = hall
        .host
        .ced(&[
            "approve",
            &id,
            "--json",
            "--lookup-by",
            "hostname",
            "--ip",
            "192.0.2.7",
            "--agent-port",
            "7600",
        ])
        .ok()
        .json();
    assert_eq!(
        (said["id"].as_str(), said["delivery"].as_str()),
        (Some(&*id), Some("delivered")),
        "{said}"
    );
    succeeds(&mut request);

    let path = record_path("web01.test");
    assert_eq!(hall.host.mode(&path), 0o644);
    let record = hall.host.json(&path);
    let serial = serial_of(&hall.host.path("etc/ctrl-exec/dispatcher.crt"));
    for (field, value) in [
        ("hostname", "web01.test"),
        ("ip", "192.0.2.7"),
        ("reqid", id.as_str()),
        ("lookup_by", "hostname"),
        ("dispatcher_serial", serial.as_str()),
        ("serial_status", "current"),
        ("serial_broadcast", ""),
        ("expiry", expiry_of(&agent.path(CERT)).as_str()),
    ] {
        assert_eq!(record[field], value, "{field} in {record}");
    }
    assert_eq!(record["port"].as_u64(), Some(7600), "a number: {record}");
    assert_eq!(record["tags"], serde_json::json!({}));
    for field in ["paired", "serial_confirmed"] {
        let text = record[field].as_str().unwrap_or_default();
        assert!(
            text.len() == 20 && text.contains('T') && text.ends_with('Z'),
            "{field} in {record}"
        );
    }

    // The flags are checked before anything is touched.
    for bad in [
        ["--lookup-by", "dns"],
        ["--ip", "999.1.1.1"],
        ["--agent-port", "0"],
        ["--agent-port", "65536"],
        ["--code", "12345"],
    ] {
        let run = hall.host.ced(&["approve", &id, bad[0], bad[1]]);
        assert_eq!(run.code(), 64, "{bad:?}: {}", run.err());
    }
}

#[test]
fn the_wishes_of_the_agent_land_in_the_record() {
    let hall = Hall::open();
    for (name, port, wish, expected) in [
        ("ip.test", 7501, &["--lookup-by", "ip"][..], "ip"),
        ("name.test", 7502, &["--lookup-by", "hostname"], "hostname"),
        ("none.test", 7503, &[], "hostname"),
    ] {
        let agent = new_agent(name, port);
        let (mut request, id) = hall.ask_and_queue(&agent, wish);
        hall.host.ced(&["approve", &id]).ok();
        succeeds(&mut request);
        let record = hall.host.json(&record_path(name));
        assert_eq!(
            (
                record["lookup_by"].as_str(),
                record["port"].as_u64(),
                record["ip"].as_str()
            ),
            (Some(expected), Some(u64::from(port)), Some("127.0.0.1"))
        );
    }
}

#[test]
fn a_denied_agent_is_told_and_has_nothing() {
    let hall = Hall::open();
    let agent = new_agent("web01.test", free_port());
    let (mut request, id) = hall.ask_and_queue(&agent, &[]);
    let run = hall.host.ced(&["deny", &id]).ok();
    assert_eq!(run.out(), format!("Denied request '{id}'.\n"));
    assert_eq!(
        fails(&mut request).lines().last(),
        Some("Pairing failed: rejected by operator")
    );
    assert_unpaired(&agent);
    assert!(!hall.registered("web01.test"));
    let line = wait_for_action(&hall.host, "pair-deny", &id);
    assert!(line.contains("AGENT=web01.test"), "{line}");
    // Decided is decided.
    for verb in ["approve", "deny"] {
        hall.host.ced(&[verb, &id]).expect_code(1).err_has(&id);
    }
    assert!(
        hall.queue().iter().all(|n| n == &format!("{id}.rejected")),
        "{:?}",
        hall.queue()
    );
}

#[test]
fn ids_that_are_none_touch_nothing() {
    let hall = Hall::open();
    hall.host
        .write("var/lib/ctrl-exec/victim.json", "{}", 0o600);
    for bad in ["0123456789abcdef", "00"] {
        for verb in ["approve", "deny"] {
            hall.host
                .ced(&[verb, bad])
                .expect_code(1)
                .err_has(&format!("No pending request '{bad}'"));
        }
    }
    for bad in [
        "../victim",
        "/etc/passwd",
        "..",
        "",
        "00FF",
        "abc.json",
        "a b",
        "0/1",
        "g",
    ] {
        for verb in ["approve", "deny"] {
            let run = hall.host.ced(&[verb, bad]);
            assert!(
                matches!(run.code(), 1 | 64),
                "{verb} {bad:?}: {} {}",
                run.code(),
                run.err()
            );
            assert!(
                !run.err().is_empty() && !run.err().contains("panicked"),
                "{}",
                run.err()
            );
        }
    }
    assert_eq!(hall.host.read("var/lib/ctrl-exec/victim.json"), "{}");
    assert_eq!(hall.queue(), Vec::<String>::new());
}

#[test]
fn a_request_that_is_too_old_is_refused_and_swept() {
    let hall = Hall::open();
    let agent = new_agent("web01.test", free_port());
    let (mut request, id) = hall.ask_and_queue(&agent, &[]);
    let file = hall.host.path(&format!("{QUEUE}/{id}.json"));
    crate::common::process::run(
        Command::new("touch")
            .args(["-d", "601 seconds ago"])
            .arg(&file),
    )
    .ok();
    hall.host
        .ced(&["approve", &id])
        .expect_code(1)
        .err_has("older than 10 minutes");
    assert!(!hall.registered("web01.test") && request.is_running());
    assert!(fleet::requests(&hall.host).is_empty());
    hall.host.ced(&["approve", &id]).expect_code(1).err_has(&id);
}

#[test]
fn the_code_can_be_given_and_must_fit() {
    let hall = Hall::open();
    let agent = new_agent("web01.test", free_port());
    let (mut request, id) = hall.ask_and_queue(&agent, &[]);
    let code = code_of(&mut request);
    let wrong = format!(
        "{:06}",
        (code.parse::<u32>().expect("digits") + 1) % 1_000_000
    );
    hall.host
        .ced(&["approve", &id, "--code", &wrong])
        .expect_code(1)
        .err_has("another code");
    assert!(request.is_running() && !hall.registered("web01.test"));
    assert_eq!(fleet::requests(&hall.host).len(), 1, "it still waits");
    hall.host.ced(&["approve", &id, "--code", &code]).ok();
    succeeds(&mut request);
}

#[test]
fn of_several_approvals_at_once_exactly_one_wins() {
    let hall = Hall::open();
    let agent = new_agent("web01.test", free_port());
    let (mut request, id) = hall.ask_and_queue(&agent, &[]);
    let runs: Vec<_> = std::thread::scope(|scope| {
        let running: Vec<_> = (0..5)
            .map(|n| {
                let (host, id) = (&hall.host, &id);
                // One of the five operators says no.
                scope.spawn(move || (n, host.ced(&[if n == 4 { "deny" } else { "approve" }, id])))
            })
            .collect();
        running
            .into_iter()
            .map(|r| r.join().expect("no panic"))
            .collect()
    });
    let won: Vec<_> = runs.iter().filter(|(_, r)| r.code() == 0).collect();
    assert_eq!(won.len(), 1, "{runs:?}");
    for (_, lost) in runs.iter().filter(|(_, r)| r.code() != 0) {
        assert_eq!(lost.code(), 1, "{lost:?}");
        assert!(
            lost.err().contains("already decided")
                || lost.err().contains("is over")
                || lost.err().contains("No pending request"),
            "{}",
            lost.err()
        );
    }
    let approved = won[0].0 != 4;
    assert_eq!(request.wait(PATIENCE).success(), approved);
    assert_eq!(hall.registered("web01.test"), approved);
    let verdicts = || {
        let of = |action| hall.host.log_of(action).len();
        (of("pair-approve"), of("pair-deny"))
    };
    wait_until("the one verdict is logged", PATIENCE, || {
        (verdicts() == (usize::from(approved), usize::from(!approved))).then_some(())
    });
}

#[test]
fn two_agents_at_once_get_each_their_own() {
    let hall = Hall::open();
    let agents = ["one.test", "two.test"].map(|name| new_agent(name, free_port()));
    let mut requests: Vec<_> = agents
        .iter()
        .map(|a| hall.ask(a, &["--lookup-by", "ip"]))
        .collect();
    let ids: Vec<String> = agents.iter().map(|a| hall.id_of(a.name())).collect();
    assert_eq!(fleet::requests(&hall.host).len(), 2);
    // Decided in the other order, at the same time.
    std::thread::scope(|scope| {
        for id in ids.iter().rev() {
            scope.spawn(|| hall.host.ced(&["approve", id]).ok());
        }
    });
    for (request, agent) in requests.iter_mut().zip(&agents) {
        succeeds(request);
        assert!(key_matches(&agent.path(CERT), &agent.path(KEY)));
        let subject = openssl(&[
            "x509",
            "-noout",
            "-subject",
            "-in",
            agent.path(CERT).to_str().expect("text"),
        ]);
        assert!(subject.contains(agent.name()), "{subject}");
    }
    assert_ne!(
        serial_of(&agents[0].path(CERT)),
        serial_of(&agents[1].path(CERT))
    );
    let running: Vec<_> = agents.iter().map(Agent::start).collect();
    assert_eq!(running.len(), 2);
    for agent in &agents {
        let out = hall.host.ced(&["ping", agent.name(), "--json"]).ok().json();
        let result = &out["results"][0];
        assert_eq!(result["status"], "ok", "{out}");
    }
}

#[test]
fn an_agent_that_is_gone_frees_its_place_and_is_not_registered() {
    let hall = Hall::open_with(
        "pairing_rate_limit_disable = true\npairing_max_queue = 1\n",
        &[],
    );
    let gone = new_agent("gone.test", free_port());
    let (request, id) = hall.ask_and_queue(&gone, &[]);
    let next = new_agent("next.test", free_port());
    crate::kit::ask_now(&next, hall.port, &[])
        .expect_code(1)
        .err_has("Pairing failed: pairing queue full");
    request.signal(Signal::KILL);
    let line = wait_for_action(&hall.host, "pair-withdrawn", &id);
    assert!(line.contains("REASON=abandoned"), "{line}");
    hall.host
        .ced(&["approve", &id])
        .expect_code(1)
        .err_has("abandoned");
    assert!(!hall.registered("gone.test"));
    assert!(fleet::requests(&hall.host).is_empty());
    hall.pair(&next, &[]);
    assert!(hall.registered("next.test") && !hall.registered("gone.test"));
}

#[test]
fn an_approval_that_nobody_collects_is_told_and_taken_back() {
    let hall = Hall::open();
    // An older agent, which goes in the very moment of the approval: the listener still holds its connection, stopped.
    let (client, answer) = hall.post(basic_request("old.test").to_string().as_bytes());
    let id = answer["reqid"].as_str().expect("an id").to_owned();
    hall.mode.signal(Signal::STOP);
    let mut approve = hall.host.start("ced", &["approve", &id]);
    hall.host.wait_for_log(&["ACTION=pair-approve", &id]);
    drop(client);
    std::thread::sleep(Duration::from_millis(100));
    hall.mode.signal(Signal::CONT);
    assert_eq!(approve.wait(PATIENCE).code(), Some(1), "{}", approve.out());
    assert!(approve.out().contains("not delivered"), "{}", approve.out());
    let line = wait_for_action(&hall.host, "pair-undelivered", &id);
    assert!(line.contains("AGENT=old.test"), "{line}");
    assert!(
        !hall.registered("old.test"),
        "it would name a certificate that nobody has"
    );
    assert_eq!(hall.queue(), [format!("{id}.undelivered")]);
}

/// The directory of a package is open to the group of the API server (spec/pairing.md 18.5).
#[test]
fn nobody_else_can_write_a_verdict() {
    let host = new_dispatcher("ctl.test");
    host.set_mode(QUEUE, 0o2770);
    let hall = Hall::of(host, &[]);
    assert_eq!(hall.host.mode(QUEUE) & 0o777, 0o700);
    if !root_or_skip("nobody_else_can_write_a_verdict") {
        return;
    }
    let body = r#"{"status":"approved","cert":"x","ca":"x","nonce":"x","dispatcher_serial":"1","dispatcher_id":"evil"}"#;
    for (mode, owner) in [(0o600, Some(65_534)), (0o622, None)] {
        let agent = new_agent("web01.test", free_port());
        let (mut request, id) = hall.ask_and_queue(&agent, &[]);
        let ready = hall.host.write("tmp/verdict", body, mode);
        std::os::unix::fs::chown(&ready, owner, None).expect("we are root");
        let place = hall.host.path(&format!("{QUEUE}/{id}.approved"));
        std::fs::rename(&ready, &place).expect("one file system");
        assert!(
            fails(&mut request).contains("internal error"),
            "{}",
            request.err()
        );
        hall.host
            .wait_for_log(&["ACTION=pair-queue-fail", "not trusted"]);
        assert_unpaired(&agent);
        for file in [place, hall.host.path(&format!("{QUEUE}/{id}.json"))] {
            std::fs::remove_file(file).expect("still there");
        }
        hall.host.clear_log();
    }
}

#[test]
fn a_request_that_was_swapped_in_the_queue_is_refused() {
    let hall = Hall::open();
    let agent = new_agent("web01.test", free_port());
    let (mut request, id) = hall.ask_and_queue(&agent, &[]);
    let path = format!("{QUEUE}/{id}.json");
    let original = hall.host.read(&path);
    let swap = |field: &str, value: Value| {
        let mut record: Value = serde_json::from_str(&original).expect("JSON");
        record[field] = value;
        hall.host.write(&path, record.to_string(), 0o600);
        let run = hall.host.ced(&["approve", &id]).expect_code(1);
        assert!(!hall.registered("web01.test"), "{field}: {}", run.out());
        run.err()
    };
    let said = swap("csr", crate::kit::csr("web01.test").into());
    assert!(said.contains("was changed"), "{said}");
    for (field, value) in [
        ("hostname", Value::from("web02.test")),
        ("code", "000000".into()),
        ("agent_nonce", "00".repeat(32).into()),
        ("server_cert_sha256", "00".repeat(32).into()),
        ("id", "0123456789abcdef".into()),
        // As if it had been a basic one all the time.
        ("pair_version", Value::Null),
    ] {
        swap(field, value);
    }
    // A file that others can write to says nothing.
    hall.host.write(&path, &original, 0o666);
    hall.host
        .ced(&["approve", &id])
        .expect_code(1)
        .err_has("others can write");
    // A file in place of a verdict from somebody else is none either.
    hall.host.write(&path, &original, 0o600);
    assert!(request.is_running());
    hall.host.ced(&["approve", &id]).ok();
    succeeds(&mut request);
}

#[test]
fn what_cannot_be_signed_goes_on_waiting() {
    let hall = Hall::open();
    let agent = new_agent("web01.test", free_port());
    let (mut request, id) = hall.ask_and_queue(&agent, &[]);
    for (file, mode) in [
        ("ca.key", 0o600),
        ("ca.crt", 0o644),
        ("dispatcher.crt", 0o644),
    ] {
        let path = format!("etc/ctrl-exec/{file}");
        let content = hall.host.read(&path);
        std::fs::remove_file(hall.host.path(&path)).expect("it is there");
        hall.host
            .ced(&["approve", &id])
            .expect_code(1)
            .err_has(file);
        hall.host.write(&path, content, mode);
        assert!(
            request.is_running() && !hall.registered("web01.test"),
            "{file}"
        );
        assert_eq!(fleet::requests(&hall.host).len(), 1, "{file}");
    }
    // A configuration that is broken says so, in its own code.
    let toml = hall.host.read("etc/ctrl-exec/ctrl-exec.toml");
    configure(&hall.host, "cert_days = \"many\"\n");
    hall.host
        .ced(&["approve", &id])
        .expect_code(78)
        .err_has("ctrl-exec.toml:1");
    hall.host.write("etc/ctrl-exec/ctrl-exec.toml", toml, 0o640);

    // A request file that is none is named and left out, and can be denied.
    hall.host
        .write(&format!("{QUEUE}/00ff.json"), "{broken", 0o600);
    let listed = hall.host.ced(&["list-requests"]).ok();
    assert!(
        listed.err().contains("00ff")
            && listed.out().contains(&id)
            && !listed.out().contains("00ff"),
        "{listed:?}"
    );
    hall.host.ced(&["approve", "00ff"]).expect_code(1);
    hall.host.ced(&["deny", "00ff"]).ok();
    hall.host
        .wait_for_log(&["ACTION=pair-deny", "AGENT=?", "REQID=00ff"]);

    // The code that was compared covers the dispatcher's certificate: with a new one it means nothing.
    hall.host.ced(&["setup-ctrl-exec", "--yes"]).ok();
    hall.host
        .ced(&["approve", &id])
        .expect_code(1)
        .err_has("was replaced since");
    assert!(!hall.registered("web01.test"));
    hall.host.ced(&["deny", &id]).ok();
    fails(&mut request);
    // The listener has taken the new one up by itself.
    hall.pair(&agent, &[]);
    let serial = serial_of(&hall.host.path("etc/ctrl-exec/dispatcher.crt"));
    assert_eq!(map_of(&agent), [(serial, "ctl".to_owned())]);
}
