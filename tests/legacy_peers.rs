//! Peers of release 0.12.3 at the other end of the wire, in both roles: pairing, then work (spec/pairing.md 3, 17; spec/agent.md 19.1).

mod common;

use common::fleet::{new_agent, new_dispatcher_with, start_pairing, wait_for_request};
use common::openssl::{self, Authority, Dates, text_of};
use common::{Agent, Host, PATIENCE, free_port, python};
use serde_json::Value;

/// A directory with a CA of its own counter, so that tests do not share serials.
fn old_dispatcher(serial: &str) -> (Host, openssl::Leaf) {
    let authority = Authority::shared();
    let leaf = authority.issue("ctrl-exec-dispatcher", serial, Dates::Days(825));
    let host = common::fleet::legacy_dispatcher(authority, &leaf);
    (host, leaf)
}

#[test]
fn our_agent_pairs_with_and_serves_an_old_dispatcher() {
    // The dispatcher's serial, what the original sends for it, and how the two answers are framed.
    for (serial, sent, framing) in [
        ("02", "2", "apart"),
        ("10", "a", "together"),
        ("16", "10", "split"),
        ("DEADBEEF", "deadbeef", "apart"),
    ] {
        let (old, leaf) = old_dispatcher(serial);
        let port = free_port();
        let out = old.path("tmp/request.json");
        let ca_dir = old.path("etc/ctrl-exec");
        let args = [
            "pair",
            &port.to_string(),
            python::text(&ca_dir),
            python::text(&leaf.cert),
            python::text(&leaf.key),
            "old-ctl",
            sent,
            python::text(&out),
            framing,
        ];
        let mut listener = python::start(&old, python::LEGACY_DISPATCHER, &args);
        let agent_port = free_port();
        let host = new_agent("new01.test", agent_port);
        let paired = host.cea(&[
            "request-pairing",
            "--dispatcher",
            "127.0.0.1",
            "--port",
            &port.to_string(),
        ]);
        assert!(
            paired.code() == 0,
            "{serial}: {}{}\n{}",
            paired.out(),
            paired.err(),
            listener.err()
        );
        listener.wait_for_text("done");

        // The code on both screens is the original's: the weaker one, and the agent says so aloud.
        let code = listener
            .out()
            .lines()
            .find_map(|l| l.strip_prefix("code ").map(str::to_owned))
            .expect("a code");
        assert!(
            paired.out().contains(&format!("Pairing code: {code}")),
            "{code}: {}",
            paired.out()
        );
        let request: Value =
            serde_json::from_str(&std::fs::read_to_string(&out).expect("written")).expect("JSON");
        assert_eq!(request["hostname"], "new01.test");
        assert_eq!(request["port"], agent_port);
        assert!(
            request["nonce"].as_str().is_some_and(|n| n.len() == 32
                && n.bytes()
                    .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))),
            "{request}"
        );
        assert!(
            request["csr"]
                .as_str()
                .is_some_and(|c| c.starts_with("-----BEGIN CERTIFICATE REQUEST-----\n")
                    && c.ends_with("-----END CERTIFICATE REQUEST-----\n")),
            "{request}"
        );

        let cert = host.path("etc/ctrl-exec-agent/agent.crt");
        assert!(
            text_of(&cert).contains("Version: 1"),
            "the stand-in signs as the original"
        );
        assert!(openssl::key_matches(
            &cert,
            &host.path("etc/ctrl-exec-agent/agent.key")
        ));
        for (file, mode) in [
            ("agent.crt", 0o640),
            ("agent.key", 0o640),
            ("ca.crt", 0o644),
        ] {
            assert_eq!(
                host.mode(&format!("etc/ctrl-exec-agent/{file}")),
                mode,
                "{file}"
            );
        }
        let map = host.read("var/lib/ctrl-exec-agent/ctrl-exec-dispatchers");
        assert!(map.lines().any(|l| l.ends_with(" old-ctl")), "{map}");
        let agent = Agent::start(&host);
        let agent_port = agent.port().to_string();
        let ca = ca_dir.join("ca.crt");
        for version in ["1.2", "1.3"] {
            let args = [
                "call",
                &agent_port,
                version,
                python::text(&leaf.cert),
                python::text(&leaf.key),
                python::text(&ca),
            ];
            let body = r#"{"script":"hello","args":["x y"],"reqid":"00112233445566aa","username":"","token":""}"#;
            let answer = python::run(
                &old,
                python::LEGACY_DISPATCHER,
                &[&args[..], &["POST", "/run", body]].concat(),
            )
            .ok()
            .json();
            let result: Value =
                serde_json::from_str(answer["body"].as_str().expect("a body")).expect("JSON");
            assert_eq!(
                result["exit"], 0,
                "serial {serial}, TLS {version}: {answer}\nmap: {map}"
            );
            let ping = python::run(
                &old,
                python::LEGACY_DISPATCHER,
                &[&args[..], &["POST", "/ping", r#"{"reqid":"1"}"#]].concat(),
            )
            .ok()
            .json();
            let ping: Value =
                serde_json::from_str(ping["body"].as_str().expect("a body")).expect("JSON");
            // The renewal of the original parses this text and takes this for a boolean.
            assert!(
                ping["expiry"]
                    .as_str()
                    .is_some_and(|e| e.ends_with(" GMT") && e.len() == 24),
                "{ping}"
            );
            assert_eq!(ping["staged"], false);
        }
        host.wait_for_log(&["ACTION=run", "DISPATCHER=old-ctl"]);
    }
}

#[test]
fn a_dispatcher_that_answers_nonsense_leaves_the_agent_as_it_was() {
    // A certificate for another key, from another CA than the one delivered: the original installs both.
    let (old, leaf) = old_dispatcher("02");
    let port = free_port();
    let ca_dir = old.path("etc/ctrl-exec");
    // The CA that is delivered is not the one that signs.
    let text = python::LEGACY_DISPATCHER.replace(
        "authority = f.read()",
        "authority = open(ca_dir + '/foreign.crt').read()",
    );
    old.write(
        "etc/ctrl-exec/foreign.crt",
        Authority::foreign().cert_pem(),
        0o644,
    );
    let args = [
        "pair",
        &port.to_string(),
        python::text(&ca_dir),
        python::text(&leaf.cert),
        python::text(&leaf.key),
        "old",
        "2",
        "/dev/null",
    ];
    let _listener = python::start(&old, &text, &args);
    let host = new_agent("new01.test", free_port());
    let run = host
        .cea(&[
            "request-pairing",
            "--dispatcher",
            "127.0.0.1",
            "--port",
            &port.to_string(),
        ])
        .expect_code(1);
    assert!(run.err().contains("Pairing failed"), "{}", run.err());
    for file in [
        "etc/ctrl-exec-agent/agent.crt",
        "etc/ctrl-exec-agent/agent.key",
        "etc/ctrl-exec-agent/ca.crt",
        "var/lib/ctrl-exec-agent/ctrl-exec-dispatchers",
    ] {
        assert!(!host.exists(file), "{file} was written");
    }
}

#[test]
fn the_weaker_code_can_be_forbidden_by_configuration() {
    let (old, leaf) = old_dispatcher("02");
    let port = free_port();
    let ca_dir = old.path("etc/ctrl-exec");
    let args = [
        "pair",
        &port.to_string(),
        python::text(&ca_dir),
        python::text(&leaf.cert),
        python::text(&leaf.key),
        "old",
        "2",
        "/dev/null",
    ];
    let _listener = python::start(&old, python::LEGACY_DISPATCHER, &args);
    let host = new_agent("new01.test", free_port());
    common::fleet::write_agent_toml(&host, 7443, "pairing_require_bound_code = true\n");
    host.cea(&[
        "request-pairing",
        "--dispatcher",
        "127.0.0.1",
        "--port",
        &port.to_string(),
    ])
    .expect_code(1)
    .err_has("pairing_require_bound_code");
    assert!(!host.exists("etc/ctrl-exec-agent/agent.crt"));
}

#[test]
fn an_old_agent_pairs_with_and_answers_our_dispatcher() {
    for kind in ["ecdsa-p256", "rsa-2048"] {
        let dispatcher = new_dispatcher_with("ctl.test", &["--key-type", kind]);
        let old = Host::new("old01.test");
        let port = free_port();
        let _pairing = start_pairing(&dispatcher, port, &[]);
        let agent_port = free_port();
        let dir = old.path("tmp");
        let mut request = common::Daemon::start(
            std::process::Command::new("python3")
                .arg("-u")
                .arg(old.write("tmp/agent.py", python::LEGACY_AGENT, 0o644))
                .args([
                    "pair",
                    &port.to_string(),
                    "old01.test",
                    python::text(&dir),
                    &agent_port.to_string(),
                ]),
        );
        let waiting = wait_for_request(&dispatcher, "old01.test");
        request.wait_for_text("reqid ");
        // Both compute the original's code over the same text.
        let code = request
            .out()
            .lines()
            .find_map(|l| l.strip_prefix("code ").map(str::to_owned))
            .expect("a code");
        assert_eq!(waiting["code"].as_str(), Some(code.as_str()));
        dispatcher
            .ced(&["approve", waiting["id"].as_str().expect("an id")])
            .ok();
        assert!(
            request.wait(PATIENCE).success(),
            "{kind}: {}{}",
            request.out(),
            request.err()
        );
        assert!(openssl::key_matches(
            &old.path("tmp/agent.crt"),
            &old.path("tmp/agent.key")
        ));

        // What was sent as the dispatcher's serial is what the original computes from the live certificate: the stand-in checks it.
        for version in ["1.2", "1.3"] {
            let mut agent = python::start(
                &old,
                python::LEGACY_AGENT,
                &[
                    "serve",
                    &agent_port.to_string(),
                    python::text(&dir),
                    version,
                ],
            );
            let ping = dispatcher
                .ced(&["ping", "--json", "old01.test"])
                .ok()
                .json();
            let result = &ping["results"][0];
            assert_eq!(
                (result["status"].as_str(), result["version"].as_str()),
                (Some("ok"), Some("0.12.3")),
                "{kind}: {ping}\n{}",
                agent.out()
            );
            assert_eq!(result["reported_hostname"], "legacy.test");
            let run = dispatcher
                .ced(&["run", "--json", "old01.test", "anything", "--", "a b", "ü"])
                .ok()
                .json();
            let request: Value =
                serde_json::from_str(run["results"][0]["stdout"].as_str().expect("stdout"))
                    .expect("JSON");
            assert_eq!(request["args"], serde_json::json!(["a b", "ü"]));
            for field in ["username", "token", "reqid", "script"] {
                assert!(request[field].is_string(), "{field}: {request}");
            }
            agent.wait_for_text(&format!(
                "request POST /run HTTP/1.1 over TLSv{}",
                if version == "1.2" { "1.2" } else { "1.3" }
            ));
        }
        let record = dispatcher.json("var/lib/ctrl-exec/agents/old01.test.json");
        assert_eq!(
            (
                record["ip"].as_str(),
                record["lookup_by"].as_str(),
                record["port"].as_u64()
            ),
            (Some("127.0.0.1"), Some("ip"), Some(u64::from(agent_port)))
        );
    }
}

#[test]
fn an_old_agent_is_told_the_verdict_in_its_own_words() {
    let dispatcher = new_dispatcher_with("ctl.test", &[]);
    let old = Host::new("old01.test");
    let port = free_port();
    let _pairing = start_pairing(&dispatcher, port, &[]);
    let mut request = common::Daemon::start(
        std::process::Command::new("python3")
            .arg("-u")
            .arg(old.write("tmp/agent.py", python::LEGACY_AGENT, 0o644))
            .args([
                "pair",
                &port.to_string(),
                "old01.test",
                python::text(&old.path("tmp")),
                "7443",
            ]),
    );
    let waiting = wait_for_request(&dispatcher, "old01.test");
    dispatcher
        .ced(&["deny", waiting["id"].as_str().expect("an id")])
        .ok();
    request.wait_for_text("refused rejected by operator");
    assert_eq!(request.wait(PATIENCE).code(), Some(3));
    assert!(common::fleet::requests(&dispatcher).is_empty());
    assert!(!dispatcher.exists("var/lib/ctrl-exec/agents/old01.test.json"));
}
