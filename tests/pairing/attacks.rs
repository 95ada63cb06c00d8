//! Somebody in between who speaks the protocol as well as we do, and peers whose code is too weak to stop him (spec/pairing.md 18.2, 18.3).

use std::process::Command;

use crate::common::fleet::{self, new_agent, new_dispatcher_with, write_agent_toml};
use crate::common::openssl::{Authority, Dates, Leaf, openssl};
use crate::common::python;
use crate::common::{Daemon, Host, PATIENCE, free_port, syslog};
use crate::kit::{
    CA, CERT, Hall, ask, ask_now, assert_unpaired, at_terminal, code_of, configure, fails, line_of,
};

const MITM: &str = include_str!("mitm.py");

/// The man in the middle before a dispatcher; answers where he listens.
#[track_caller]
fn between(home: &Host, hall: &Hall, leaf: &Leaf, mode: &str) -> (Daemon, u16) {
    let port = free_port();
    let args = [
        &*port.to_string(),
        &*hall.port.to_string(),
        python::text(&leaf.cert),
        python::text(&leaf.key),
        mode,
    ];
    (python::start(home, MITM, &args), port)
}

/// A certificate that looks like a dispatcher's.
fn his_leaf() -> Leaf {
    Authority::foreign().issue("ctrl-exec-dispatcher", "ABCDEF01", Dates::Days(100))
}

fn fingerprint(hall: &Hall) -> String {
    let path = hall.host.path("etc/ctrl-exec/dispatcher.crt");
    let text = openssl(&[
        "x509",
        "-noout",
        "-fingerprint",
        "-sha256",
        "-in",
        python::text(&path),
    ]);
    text.trim()
        .rsplit('=')
        .next()
        .unwrap_or_default()
        .to_owned()
}

#[test]
fn the_codes_on_the_two_screens_differ() {
    let hall = Hall::open();
    let home = Host::new("evil.test");
    let (mut evil, port) = between(&home, &hall, &his_leaf(), "swap");
    let agent = new_agent("web01.test", free_port());
    let mut request = ask(&agent, port, &[]);
    let on_agent = code_of(&mut request);
    let waiting = fleet::wait_for_request(&hall.host, "web01.test");
    let (id, on_dispatcher) = (
        waiting["id"].as_str().expect("an id"),
        waiting["code"].as_str().expect("a code"),
    );
    assert_eq!(waiting["code_kind"], "bound");
    assert_ne!(
        on_agent, on_dispatcher,
        "one in a million, or a broken code"
    );
    evil.wait_for_text("saw the request of web01.test");

    // The operator who types what the agent shows signs nothing.
    hall.host
        .ced(&["approve", id, "--code", &on_agent])
        .expect_code(1)
        .err_has("another code");
    assert!(!hall.registered("web01.test"));
    // One who approves without looking: the agent refuses a certificate that is not for its key.
    hall.host.ced(&["approve", id]);
    let said = fails(&mut request);
    assert!(
        said.contains("nothing was stored") && said.contains("another key"),
        "{said}"
    );
    assert_unpaired(&agent);
}

#[test]
fn a_relay_is_noticed_before_anybody_looks() {
    let hall = Hall::open();
    let home = Host::new("evil.test");
    let (_evil, port) = between(&home, &hall, &his_leaf(), "relay");
    let agent = new_agent("web01.test", free_port());
    let mut request = ask(&agent, port, &[]);
    fails(&mut request);
    assert_unpaired(&agent);
    assert!(fleet::requests(&hall.host).is_empty());
    let line = hall
        .host
        .wait_for_log(&["ACTION=pair-reject", "REASON=commitment-mismatch"]);
    assert_eq!(line.priority, syslog::INFO);
}

#[test]
fn a_pinned_fingerprint_stops_him_at_the_door() {
    let hall = Hall::open();
    let home = Host::new("evil.test");
    let pin = fingerprint(&hall);
    assert!(
        hall.mode
            .out()
            .to_lowercase()
            .contains(&pin.replace(':', "").to_lowercase()),
        "pairing-mode shows it: {}",
        hall.mode.out()
    );
    let agent = new_agent("web01.test", free_port());
    for mode in ["swap", "old", "impostor"] {
        let (evil, port) = between(&home, &hall, &his_leaf(), mode);
        let run = ask_now(&agent, port, &["--dispatcher-fingerprint", &pin]).expect_code(1);
        assert!(
            run.err().contains("--dispatcher-fingerprint") && run.err().contains("in between"),
            "{mode}: {}",
            run.err()
        );
        assert!(
            !evil.out().contains("saw"),
            "{mode}: something was sent: {}",
            evil.out()
        );
    }
    assert!(hall.host.log_of("pair-request").is_empty());
    assert_unpaired(&agent);
    // In every form that people copy, the right one lets through; also where bound codes are required and nobody sits there.
    write_agent_toml(&agent, 7443, "pairing_require_bound_code = true\n");
    for form in [
        pin.clone(),
        pin.replace(':', "").to_lowercase(),
        format!("SHA256:{pin}"),
    ] {
        hall.pair(&agent, &["--dispatcher-fingerprint", &form]);
    }
    agent.wait_for_log(&["ACTION=pair-complete", "VOUCHED=key"]);

    // The CA's fingerprint does the same, later.
    let other = new_agent("web02.test", free_port());
    let (mut request, id) = hall.ask_and_queue(&other, &["--ca-fingerprint", &pin]);
    hall.host
        .ced(&["approve", &id])
        .expect_code(1)
        .out_has("the agent refused");
    assert!(fails(&mut request).contains("--ca-fingerprint"));
    assert_unpaired(&other);
    assert!(!hall.registered("web02.test"), "taken back");
}

#[test]
fn he_cannot_talk_either_side_down_in_silence() {
    let hall = Hall::open();
    let home = Host::new("evil.test");
    let agent = new_agent("web01.test", free_port());
    // Whoever chose the bound protocol is held to it.
    let (_evil, port) = between(&home, &hall, &his_leaf(), "downgrade");
    let run = ask_now(&agent, port, &[]).expect_code(1);
    assert!(
        run.err().contains("somebody may be in between"),
        "{}",
        run.err()
    );
    assert_unpaired(&agent);

    // Posing as an older release works as long as that is allowed, and both sides say what such a code is worth.
    let (_evil, port) = between(&home, &hall, &his_leaf(), "old");
    let mut request = ask(&agent, port, &[]);
    code_of(&mut request);
    assert!(
        request.err().contains("does not protect"),
        "{}",
        request.err()
    );
    assert_eq!(
        line_of(&request.out(), "Kind of code: ").as_deref(),
        Some("basic")
    );
    let waiting = fleet::wait_for_request(&hall.host, "web01.test");
    assert_eq!(waiting["code_kind"], "basic");
    assert!(
        hall.host
            .ced(&["list-requests"])
            .ok()
            .out()
            .contains(" basic")
    );
    hall.host
        .ced(&["deny", waiting["id"].as_str().expect("an id")])
        .ok();
    fails(&mut request);

    // Forbidden on the agent, forbidden on the dispatcher.
    write_agent_toml(&agent, 7443, "pairing_require_bound_code = true\n");
    let words = [
        "request-pairing",
        "--dispatcher",
        "127.0.0.1",
        "--port",
        &port.to_string(),
    ];
    let mut request = at_terminal(&agent, "cea", &[], &words);
    assert_eq!(request.wait(PATIENCE).code(), Some(1));
    assert!(
        request.out().contains("pairing_require_bound_code is set"),
        "{}",
        request.out()
    );
    assert_unpaired(&agent);
}

#[test]
fn an_impostor_needs_a_host_where_nobody_looks() {
    let hall = Hall::open();
    let home = Host::new("evil.test");
    let leaf = his_leaf();
    // Beside his certificate lies his CA.
    let place = Leaf {
        cert: home.write("tmp/pki/d.crt", leaf.cert_pem(), 0o644),
        key: home.write("tmp/pki/d.key", leaf.key_pem(), 0o600),
        cn: leaf.cn.clone(),
    };
    home.write("tmp/pki/ca.crt", Authority::foreign().cert_pem(), 0o644);
    home.write("tmp/pki/ca.key", Authority::foreign().key_pem(), 0o600);
    let (mut evil, port) = between(&home, &hall, &place, "impostor");
    let text = port.to_string();
    let words = [
        "request-pairing",
        "--dispatcher",
        "127.0.0.1",
        "--port",
        &text,
    ];

    // The person compares with the dispatcher, which shows nothing, and says no.
    let agent = new_agent("web01.test", free_port());
    let mut request = at_terminal(&agent, "cea", &["[y/N]: ", "n"], &words);
    assert_eq!(request.wait(PATIENCE).code(), Some(1));
    assert!(
        request.out().contains("nothing was stored"),
        "{}",
        request.out()
    );
    evil.wait_for_text("refused");
    assert_unpaired(&agent);
    assert!(fleet::requests(&hall.host).is_empty());

    // Nobody there, and bound codes required: refused before anything is sent.
    let strict = new_agent("web02.test", free_port());
    write_agent_toml(&strict, 7443, "pairing_require_bound_code = true\n");
    let run = ask_now(&strict, port, &[]).expect_code(1);
    assert!(
        run.err()
            .contains("nobody can vouch for the dispatcher here"),
        "{}",
        run.err()
    );
    assert!(!evil.out().contains("web02.test"), "{}", evil.out());

    // A host that belongs to the fleet already knows better.
    let known = new_agent("web03.test", free_port());
    hall.pair(&known, &[]);
    let before = crate::kit::pairing_of(&known);
    ask_now(&known, port, &[])
        .expect_code(1)
        .err_has("--replace-ca");
    assert_eq!(crate::kit::pairing_of(&known), before);

    // Unattended as the automation of the original does it: stored, and said aloud.
    let trusting = new_agent("web04.test", free_port());
    let run = ask_now(&trusting, port, &[]).ok();
    assert!(
        run.err()
            .contains("nobody on this host has confirmed the dispatcher"),
        "{}",
        run.err()
    );
    trusting.wait_for_log(&["ACTION=pair-complete", "VOUCHED=nobody"]);
    assert_eq!(trusting.read(CA), Authority::foreign().cert_pem());
}

#[test]
fn an_agent_of_the_fleet_cannot_pose_as_the_dispatcher() {
    let hall = Hall::open();
    let home = Host::new("evil.test");
    let traitor = new_agent("web66.test", free_port());
    hall.pair(&traitor, &[]);
    let leaf = Leaf {
        cert: traitor.path(CERT),
        key: traitor.path(crate::kit::KEY),
        cn: "web66.test".to_owned(),
    };
    let (evil, port) = between(&home, &hall, &leaf, "swap");
    let victim = new_agent("web01.test", free_port());
    hall.pair(&victim, &[]);
    let before = crate::kit::pairing_of(&victim);
    let run = ask_now(&victim, port, &[]).expect_code(1);
    assert!(
        run.err().contains("not that of a dispatcher"),
        "{}",
        run.err()
    );
    assert!(!evil.out().contains("saw"), "{}", evil.out());
    assert_eq!(crate::kit::pairing_of(&victim), before);
}

/// An agent of release 0.12.3.
fn old_agent(home: &Host, port: u16, name: &str) -> Daemon {
    let script = home.write("tmp/old_agent.py", python::LEGACY_AGENT, 0o644);
    let mut command = Command::new("python3");
    command.arg("-u").arg(script);
    command.args([
        "pair",
        &port.to_string(),
        name,
        python::text(&home.path("tmp")),
        "7443",
    ]);
    Daemon::start(&mut command)
}

#[test]
fn a_dispatcher_can_insist_on_the_strong_code() {
    let hall = Hall::open_with(
        "pairing_rate_limit_disable = true\npairing_require_bound_code = true\n",
        &[],
    );
    let old = Host::new("old.test");
    let mut request = old_agent(&old, hall.port, "old.test");
    assert!(!request.wait(PATIENCE).success());
    let line = hall
        .host
        .wait_for_log(&["ACTION=pair-reject", "REASON=code-not-bound"]);
    assert_eq!(line.field("IP").as_deref(), Some("127.0.0.1"));
    assert!(fleet::requests(&hall.host).is_empty());
    let (_client, answer) = hall.post(crate::kit::basic_request("old.test").to_string().as_bytes());
    assert_eq!(
        (
            answer["status"].as_str(),
            answer["reason"]
                .as_str()
                .is_some_and(|r| r.contains("update ctrl-exec"))
        ),
        (Some("error"), true),
        "{answer}"
    );
    let agent = new_agent("new.test", free_port());
    hall.pair(&agent, &[]);
}

#[test]
fn what_was_queued_before_the_strong_code_was_required_is_not_approved() {
    let hall = Hall::open();
    let old = Host::new("old.test");
    let mut request = old_agent(&old, hall.port, "old.test");
    let id = hall.id_of("old.test");
    configure(&hall.host, "pairing_require_bound_code = true\n");
    hall.host
        .ced(&["approve", &id])
        .expect_code(1)
        .err_has("basic code");
    assert!(!hall.registered("old.test") && request.is_running());
    hall.host.ced(&["deny", &id]).ok();
    request.wait_for_text("refused rejected by operator");
}

#[test]
fn an_agent_can_insist_on_the_strong_code_towards_an_old_dispatcher() {
    let authority = Authority::shared();
    let leaf = authority.issue("ctrl-exec-dispatcher", "02", Dates::Days(825));
    let old = fleet::legacy_dispatcher(authority, &leaf);
    let port = free_port();
    let (out, ca_dir) = (old.path("tmp/request.json"), old.path("etc/ctrl-exec"));
    let args = [
        "pair",
        &port.to_string(),
        python::text(&ca_dir),
        python::text(&leaf.cert),
        python::text(&leaf.key),
        "old",
        "2",
        python::text(&out),
    ];
    let _listener = python::start(&old, python::LEGACY_DISPATCHER, &args);
    let agent = new_agent("web01.test", free_port());
    write_agent_toml(&agent, 7443, "pairing_require_bound_code = true\n");
    let pin = openssl(&[
        "x509",
        "-noout",
        "-fingerprint",
        "-sha256",
        "-in",
        python::text(&leaf.cert),
    ]);
    let pin = pin.trim().rsplit('=').next().expect("a value");
    // A pin vouches for the dispatcher, not for the code.
    ask_now(&agent, port, &["--dispatcher-fingerprint", pin])
        .expect_code(1)
        .err_has("older release");
    assert_unpaired(&agent);
}

#[test]
fn giving_up_on_codes_is_counted() {
    // An attacker who does not like the code goes and tries again; there are only so many tries in a session.
    let hall = Hall::of(
        {
            let host = new_dispatcher_with("ctl.test", &[]);
            configure(&host, "pairing_rate_limit_disable = true\n");
            host
        },
        &[],
    );
    let mut request = crate::kit::basic_request("web01.test");
    request["pair_version"] = 2.into();
    request["commit"] = "ab".repeat(32).into();
    let mut refused = None;
    for attempt in 0..70 {
        let (client, answer) = hall.post(request.to_string().as_bytes());
        drop(client);
        if answer["status"] == "error" {
            refused = Some((
                attempt,
                answer["reason"].as_str().unwrap_or_default().to_owned(),
            ));
            break;
        }
        assert!(
            answer["dispatcher_nonce"]
                .as_str()
                .is_some_and(|n| n.len() == 64),
            "{answer}"
        );
        // The listener notices the hang-up a moment later.
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let (attempt, reason) = refused.expect("never refused");
    assert!((64..70).contains(&attempt), "after {attempt}");
    assert!(reason.contains("too many unfinished"), "{reason}");
    hall.host
        .wait_for_log(&["ACTION=pair-reject", "REASON=too-many-attempts"]);
    let mut request = hall.ask(&new_agent("web02.test", free_port()), &[]);
    assert!(fails(&mut request).contains("too many unfinished"));
}
