//! A revoked host, and who has its key.

use std::net::SocketAddr;

use serde_json::json;

use crate::common::fleet::{Paired, requests, start_pairing};
use crate::common::openssl::{Authority, Dates, openssl};
use crate::common::rotating::record_path;
use crate::common::tls::{Client, TLS13};
use crate::common::{Agent, Host, Legacy, PATIENCE, free_port};
use crate::{PUSHED, journal, pushed};

/// Actions of an agent that has been asked for something.
const SERVED: &[&str] = &[
    "ping",
    "run",
    "run-async",
    "result",
    "rotate",
    "revoke",
    "renew",
    "ca-change",
];

#[track_caller]
fn assert_asked_nothing(agent: &Host) {
    let lines = agent.log_lines();
    let asked = lines.iter().find(|l| SERVED.contains(&&*l.action()));
    assert!(asked.is_none(), "{}", asked.unwrap().text);
}

const REFUSED: &str = "host 'web1.test' answered with a revoked certificate (serial ";

#[test]
fn a_revoked_host_is_refused_by_every_verb_until_it_is_paired_with_a_new_key() {
    let fleet = Paired::new(&["web1.test", "web2.test"]);
    let (ced, web1) = (&fleet.dispatcher, &fleet.agents[0]);
    let agents = fleet.start();
    let begun = ced
        .ced(&["run", "--async", "--json", "web1.test", "true"])
        .ok()
        .json();
    let reqid = begun["reqid"].as_str().unwrap().to_owned();
    web1.wait_for_log(&["ACTION=run-async-done"]);
    let out = ced
        .ced(&["revoke", "web1.test", "--reason", "stolen"])
        .ok()
        .out();
    assert!(
        out.contains(" of 'web1.test'.\nThis dispatcher does not talk to it any more.\n")
            && out.contains("Agents told: 1 of 1."),
        "{out}"
    );
    assert_eq!(pushed(&fleet.agents[1]).len(), 1);
    assert!(!web1.exists(PUSHED));
    web1.clear_log();

    for words in [
        &["ping", "--check", "web1.test"][..],
        &["run", "web1.test", "hello"],
        &["run", "--async", "web1.test", "hello"],
        &["status", &reqid],
        &["maintain"],
        &["rotate-cert"],
    ] {
        let run = ced.ced(words);
        let said = format!("{}{}", run.out(), run.err());
        // A rotation leaves out who is revoked; the maintenance tells it in the log.
        if words[0] == "rotate-cert" {
            assert!(!said.contains("web1.test"), "{words:?}: {said}");
        } else if words[0] != "maintain" {
            assert!(said.contains(REFUSED), "{words:?}: {said}");
            assert!(
                said.contains("nothing was sent; pair the host again with a new key"),
                "{words:?}: {said}"
            );
        }
        if !matches!(words[0], "maintain" | "rotate-cert" | "status") {
            run.expect_code(1);
        }
    }
    assert_asked_nothing(web1);
    ced.ced(&["ping", "--check", "web2.test"]).ok();

    // Another certificate for the same key is no way around it.
    let stolen = web1.path("etc/ctrl-exec-agent/agent.key");
    let ca = Authority::at(&ced.path("etc/ctrl-exec"));
    let renewed = ca.issue_for(&stolen, "web1.test", "0777", Dates::Days(100));
    web1.write("etc/ctrl-exec-agent/agent.crt", renewed.cert_pem(), 0o640);
    agents[0].hup();
    web1.wait_for_log(&["ACTION=config-reload"]);
    ced.ced(&["ping", "--check", "web1.test"])
        .expect_code(1)
        .out_has(REFUSED);
    assert_asked_nothing(web1);

    // Nor is a pairing with it.
    let port = free_port();
    let pairing = start_pairing(ced, port, &[]);
    let csr = openssl(&[
        "req",
        "-new",
        "-subj",
        "/CN=web9.test",
        "-key",
        stolen.to_str().unwrap(),
    ]);
    let asks = json!({
        "hostname": "web9.test", "csr": csr, "nonce": "00112233445566778899aabbccddeeff",
        "ip": "127.0.0.1", "port": 7443, "lookup_by": "ip",
    })
    .to_string();
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let mut thief = Client::connect(address, None, TLS13).unwrap();
    let head = format!(
        "POST /pair HTTP/1.0\r\nContent-Length: {}\r\n\r\n",
        asks.len()
    );
    thief.send(head + &asks).unwrap();
    let waiting = crate::common::fleet::wait_for_request(ced, "web9.test");
    let id = waiting["id"].as_str().unwrap();
    ced.ced(&["approve", id])
        .expect_code(1)
        .err_has("'web9.test' asks with a key that is revoked")
        .err_has("deny it");
    assert!(!ced.exists(&record_path("web9.test")));
    ced.ced(&["deny", id]).ok();
    assert!(requests(ced).is_empty());

    // The host itself makes a new key.
    let port_text = port.to_string();
    let words = [
        "request-pairing",
        "--dispatcher",
        "127.0.0.1",
        "--port",
        &port_text,
        "--lookup-by",
        "ip",
    ];
    let mut request = web1.start("cea", &words);
    let waiting = crate::common::fleet::wait_for_request(ced, "web1.test");
    ced.ced(&["approve", "--replace", waiting["id"].as_str().unwrap()])
        .ok();
    assert!(request.wait(PATIENCE).success(), "{}", request.err());
    drop(pairing);
    drop(agents);
    let _agents = fleet.start();
    ced.ced(&["run", "web1.test", "hello"])
        .ok()
        .out_has("hello from");
    assert_eq!(pushed(web1).len(), 1, "it hears of its own past too");
}

#[test]
fn a_host_whose_serial_is_not_known_is_asked_for_it() {
    let fleet = Legacy::new(&["old1.test"]);
    let ced = &fleet.dispatcher;
    let failed = ced.ced(&["revoke", "old1.test"]).expect_code(1).err();
    assert!(
        failed.contains(
            "the registry does not know the serial of 'old1.test', and the host cannot be asked ("
        ) && failed.contains("connection refused")
            && failed.contains("ced revoke 0xSERIAL"),
        "{failed}"
    );
    // Not knowing it, nobody can revoke it by the way either.
    ced.ced(&["unpair", "--revoke", "old1.test"])
        .expect_code(1)
        .err_has("'ced revoke old1.test' asks the host for it");
    assert!(journal(ced).is_empty());
    assert!(ced.exists(&record_path("old1.test")));

    // Anybody of this CA could answer.
    ced.ced(&["edit-agent", "old1.test", "--peer-check", "off"])
        .ok();
    let _agents: Vec<Agent> = fleet.start();
    ced.ced(&["revoke", "old1.test"])
        .expect_code(1)
        .err_has("anybody may answer for it");
    ced.ced(&["edit-agent", "old1.test", "--peer-check", "strict"])
        .ok();
    ced.ced(&["revoke", "old1.test"])
        .ok()
        .out_has("Revoked serial 3 of 'old1.test'.");
    let entry = &journal(ced)[0];
    assert_eq!(
        (&entry["serial"], &entry["agent"]),
        (&json!("3"), &json!("old1.test"))
    );
    assert_eq!(entry["spki"].as_str().unwrap().len(), 64);
    ced.ced(&["ping", "--check", "old1.test"])
        .expect_code(1)
        .out_has("revoked certificate (serial 3,");
}
