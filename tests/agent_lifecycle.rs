//! What a dispatcher changes on an agent without anybody visiting it: serials, certificate, revocations, the time. The dispatcher is played by
//! hand, with openssl for a CA, as a peer of 0.12.3 would do it; the agent is the real one, also as the unprivileged user that it usually is.

#![allow(clippy::unwrap_used, reason = "helpers of tests stop as tests do")]

mod common;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use common::openssl::{Authority, Dates, Leaf, openssl, serial_of};
use common::tls::{Client, TLS12, TLS13};
use common::{Agent, Host, Legacy, Paired, tls};
use serde_json::{Value, json};

const DAY: i64 = 86_400;

fn post(agent: &Agent, who: &Leaf, path: &str, body: &Value) -> (u16, Value) {
    let reply = tls::request(
        agent.address(),
        Some(who),
        "POST",
        path,
        body.to_string().as_bytes(),
    )
    .unwrap_or_else(|e| panic!("{path}: {e}"));
    (reply.status, reply.json())
}

/// Serial of the certificate that the agent shows to a new connection.
fn shown(agent: &Agent, who: &Leaf, host: &Host) -> String {
    let client = Client::connect(agent.address(), Some(who), TLS13).unwrap();
    let der = host.path("tmp/shown.der");
    std::fs::write(&der, client.peer_certificate()).unwrap();
    let pem = host.path("tmp/shown.pem");
    openssl(&[
        "x509",
        "-inform",
        "DER",
        "-in",
        der.to_str().unwrap(),
        "-out",
        pem.to_str().unwrap(),
    ]);
    serial_of(&pem)
}

/// What a Perl dispatcher does to renew: asks, signs with openssl, sends.
fn renew(agent: &Agent, host: &Host, who: &Leaf, serial: &str) -> Value {
    // A certificate of openssl begins in the second in which it is made.
    std::thread::sleep(Duration::from_millis(1100));
    let (status, answer) = post(agent, who, "/renew", &json!({"reqid": "0123456789abcdef"}));
    assert_eq!((status, &answer["status"]), (200, &json!("ok")), "{answer}");
    let csr = host.write("tmp/renew.csr", answer["csr"].as_str().unwrap(), 0o600);
    let text = openssl(&[
        "req",
        "-in",
        csr.to_str().unwrap(),
        "-noout",
        "-verify",
        "-subject",
    ]);
    assert!(text.contains(host.name()), "{text}");
    let cert = Authority::shared().sign(&csr, serial, Dates::Days(900));
    let pem = std::fs::read_to_string(cert).unwrap();
    let body = json!({"cert": pem, "ca": Authority::shared().cert_pem(), "reqid": "r"});
    let (status, answer) = post(agent, who, "/renew-complete", &body);
    assert_eq!(status, 200);
    answer
}

#[test]
fn a_dispatcher_of_the_original_renews_and_rotates() {
    let fleet = Legacy::new(&["web1"]);
    let (host, leaf) = (&fleet.agents[0], &fleet.dispatcher_leaf);
    let agent = Agent::start(host);
    let answer = renew(&agent, host, leaf, "0A0B");
    assert_eq!(
        answer,
        json!({"status": "ok", "reqid": "r", "staged": true, "live": true})
    );
    assert_eq!(shown(&agent, leaf, host), "a0b");
    host.wait_for_log(&[
        "ACTION=renew ",
        "REQID=0123456789abcdef",
        "STATUS=csr-generated",
    ]);
    host.wait_for_log(&["ACTION=renew-complete", "REQID=r", "STATUS=cert-staged"]);
    host.wait_for_log(&["ACTION=cert-promote", "STATUS=installed"]);
    host.cea(&["cert-staged"]).expect_code(1);

    // Its next certificate has 0x16, which it calls 10.
    let next = Authority::shared().issue("ctrl-exec-dispatcher", "16", Dates::Days(825));
    let (_, answer) = post(
        &agent,
        leaf,
        "/rotate-serial",
        &json!({"serial": "10", "action": "add"}),
    );
    assert_eq!(
        answer,
        json!({"status": "ok", "action": "add", "serial": "10", "dispatcher": "ctl"})
    );
    assert_eq!(post(&agent, &next, "/ping", &json!({})).0, 200);
    let line = host.wait_for_log(&["ACTION=rotate ", "SERIAL_ACTION=add"]);
    assert_eq!(line.field("DISPATCHER").as_deref(), Some("ctl"));
    // Neither can lock itself out, the old one goes at the word of the new one.
    for (who, own) in [(leaf, "2"), (&next, "10"), (&next, "16")] {
        let remove = json!({"serial": own, "action": "remove"});
        let (_, answer) = post(&agent, who, "/rotate-serial", &remove);
        assert_eq!(answer["error"], "serial in use by this connection", "{own}");
    }
    host.wait_for_log(&["ACTION=rotate-fail", "in use"]);
    let (_, answer) = post(
        &agent,
        &next,
        "/rotate-serial",
        &json!({"serial": "2", "action": "remove"}),
    );
    assert_eq!(answer["status"], "ok", "{answer}");
    assert_eq!(post(&agent, leaf, "/ping", &json!({})).0, 403);
    assert_eq!(post(&agent, &next, "/ping", &json!({})).0, 200);
}

#[test]
fn what_the_agent_may_not_put_into_place_is_in_force_all_the_same_until_root_does_it() {
    let mut fleet = Legacy::new(&["web1"]);
    let leaf = fleet.dispatcher_leaf.clone();
    fleet.agents[0].confine_agent();
    let host = &fleet.agents[0];
    let before = host.read("etc/ctrl-exec-agent/agent.crt");
    let agent = Agent::start(host);
    assert_eq!(renew(&agent, host, &leaf, "0abc")["live"], true);
    assert_eq!(shown(&agent, &leaf, host), "abc");
    assert_eq!(host.read("etc/ctrl-exec-agent/agent.crt"), before);
    let staged = "var/lib/ctrl-exec-agent/agent.crt.staged";
    assert_eq!(host.mode(staged), 0o640);
    host.cea(&["cert-staged"]).ok();
    let (_, ping) = post(&agent, &leaf, "/ping", &json!({}));
    assert_eq!(
        ping["staged"], false,
        "it is in use, and must not keep anybody from renewing"
    );
    host.cea(&["self-check"])
        .out_has("Renewed certificate in use");
    let (_, answer) = post(
        &agent,
        &leaf,
        "/revoke",
        &json!({"serials": ["dead"], "reqid": "r"}),
    );
    assert_eq!(answer["revocations"], 1);
    assert_eq!(host.mode("var/lib/ctrl-exec-agent/revoked-serials"), 0o640);
    host.wait_for_log(&["ACTION=revoke ", "COUNT=1", "DISPATCHER=ctl"]);
    drop(agent);

    let agent = Agent::start(host);
    assert_eq!(shown(&agent, &leaf, host), "abc", "without root");
    assert_eq!(post(&agent, &leaf, "/ping", &json!({})).1["revocations"], 1);
    drop(agent);

    fleet.agents[0].unconfine_agent();
    fleet.agents[0].cea(&["promote-cert"]).ok();
    let host = &fleet.agents[0];
    assert_eq!(
        serial_of(&host.path("etc/ctrl-exec-agent/agent.crt")),
        "abc"
    );
    assert!(!host.exists(staged));
    host.cea(&["cert-staged"]).expect_code(1);
    host.cea(&["promote-cert"]).ok();
    fleet.agents[0].confine_agent();
    let host = &fleet.agents[0];
    let agent = Agent::start(host);
    assert_eq!(shown(&agent, &leaf, host), "abc");
    drop(agent);
    fleet.agents[0].unconfine_agent();
}

fn now() -> i64 {
    let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    i64::try_from(unix.as_secs()).unwrap()
}

/// A ping that says what time it is.
fn ping_at(agent: &Agent, who: &Leaf, unix: i64) -> Value {
    let time = UNIX_EPOCH + Duration::from_secs(u64::try_from(unix).unwrap());
    let date = httpdate::fmt_http_date(time);
    let mut client = Client::connect(agent.address(), Some(who), TLS13).unwrap();
    client
        .send(format!(
            "POST /ping HTTP/1.1\r\nHost: a\r\nDate: {date}\r\nContent-Length: 2\r\n\r\n{{}}"
        ))
        .unwrap();
    client.reply().unwrap().json()
}

#[test]
fn a_router_that_boots_in_1970_serves_its_dispatcher_at_once_and_believes_it() {
    let mut fleet = Paired::new(&["router.test"]);
    let leaf = fleet.dispatcher_leaf();
    let offset = fleet.agents[0].write("tmp/offset", format!("-{}", now() - 100), 0o644);
    fleet.agents[0].set_env("CTRL_EXEC_CLOCK_OFFSET_FILE", offset.to_str().unwrap());
    let host = &fleet.agents[0];
    // Nothing on it is younger than 2020; only its certificate tells that time has passed, and the program, if it knows when it was built.
    let long_ago = UNIX_EPOCH + Duration::from_secs(1_577_836_800);
    for dir in ["etc/ctrl-exec-agent", "var/lib/ctrl-exec-agent"] {
        for file in std::fs::read_dir(host.path(dir)).unwrap() {
            let file = std::fs::File::open(file.unwrap().path()).unwrap();
            file.set_modified(long_ago).unwrap();
        }
    }
    let agent = Agent::start(host);
    host.wait_for_log(&["ACTION=clock-unsynced"]);
    for version in [TLS12, TLS13] {
        let mut client = Client::connect(agent.address(), Some(&leaf), version).unwrap();
        let reply = client.request("POST", "/ping", b"{}").unwrap();
        assert_eq!(reply.status, 200);
        let time = reply.json()["time"].as_i64().unwrap();
        assert!(
            (now() - DAY - 300..=now()).contains(&time),
            "from its certificate, or from the program: {time}"
        );
    }
    agent.hup();
    host.wait_for_log(&["ACTION=config-reload"]);
    assert_eq!(host.log_of("clock-unsynced").len(), 1, "said once");

    // The dispatcher knows better, but not beyond the end of its own certificate.
    let later = now() + 20 * DAY;
    let said = ping_at(&agent, &leaf, later);
    assert_eq!(said["time"].as_i64(), Some(later));
    host.wait_for_log(&["ACTION=clock-floor", "TIME="]);
    let (_, answer) = post(&agent, &leaf, "/rotate-serial", &json!({"serial": "abcd"}));
    assert_eq!(answer["status"], "ok");
    let written = host.read("var/lib/ctrl-exec-agent/clock");
    assert!(written.ends_with("Z\n"), "{written}");
    drop(agent);
    let agent = Agent::start(host);
    let (_, ping) = post(&agent, &leaf, "/ping", &json!({}));
    assert_eq!(ping["time"].as_i64(), Some(later), "written down");
    let far = ping_at(&agent, &leaf, now() + 9999 * DAY);
    assert!(far["time"].as_i64().unwrap() < now() + 900 * DAY, "{far}");
}

#[test]
fn a_sound_clock_is_not_moved_and_a_wrong_one_blocks_nobody() {
    let fleet = Legacy::new(&["web1"]);
    let (host, leaf) = (&fleet.agents[0], &fleet.dispatcher_leaf);
    let conf = host.read("etc/ctrl-exec-agent/agent.conf");
    let strict: String = conf
        .lines()
        .filter(|line| !line.starts_with("rate_limit"))
        .map(|line| format!("{line}\n"))
        .collect();
    host.write("etc/ctrl-exec-agent/agent.conf", strict, 0o640);
    let agent = Agent::start(host);
    let ping = ping_at(&agent, leaf, now() + 20 * DAY);
    assert!(
        (ping["time"].as_i64().unwrap() - now()).abs() < 60,
        "{ping}"
    );
    assert!(host.log_of("clock-floor").is_empty());
    // Certificates whose time is over or has not come: refused, and no reason to refuse the address.
    for dates in [Dates::Expired, Dates::Future] {
        let late = Authority::shared().issue("ctrl-exec-dispatcher", "77", dates);
        for version in [TLS12, TLS13] {
            for _ in 0..3 {
                let refused = Client::connect(agent.address(), Some(&late), version)
                    .and_then(|mut client| client.request("POST", "/ping", b"{}"));
                assert!(refused.is_err());
            }
        }
    }
    assert_eq!(post(&agent, leaf, "/ping", &json!({})).0, 200);
    assert!(host.log_of("rate-block").is_empty());
}
