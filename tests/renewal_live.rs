//! Renewal of our own agents: the new certificate is in force at once, without a restart, and after one.

mod common;

use common::fleet::Legacy;
use common::openssl::{Leaf, key_matches, text_of};
use common::rotating::record_path;
use common::tls::{Client, TLS13};
use common::{Agent, Host, Paired, SharedClock};
use serde_json::{Value, json};

const CERT: &str = "etc/ctrl-exec-agent/agent.crt";
const KEY: &str = "etc/ctrl-exec-agent/agent.key";
/// A little more than half of the life of any certificate here.
const HALF: i64 = 420;

/// The certificate that new connections are shown, DER.
fn shown(agent: &Agent, identity: &Leaf) -> Vec<u8> {
    Client::connect(agent.address(), Some(identity), TLS13)
        .expect("connected")
        .peer_certificate()
}

fn on_disk(host: &Host) -> Vec<u8> {
    ::pem::parse(host.read(CERT)).expect("PEM").into_contents()
}

/// Lines of openssl's text that hold one of the words.
fn lines(host: &Host, words: &[&str]) -> Vec<String> {
    text_of(&host.path(CERT))
        .lines()
        .filter(|l| words.iter().any(|w| l.contains(w)))
        .map(|l| l.trim().to_owned())
        .collect()
}

fn maintain(dispatcher: &Host) -> Value {
    dispatcher.ced(&["maintain", "--json"]).ok().json()
}

#[test]
fn a_paired_agent_shows_the_new_certificate_without_a_restart_and_after_one() {
    let mut fleet = Paired::new(&["web.test"]);
    let clock = SharedClock::new();
    clock.give(&mut fleet.dispatcher);
    clock.give(&mut fleet.agents[0]);
    let identity = fleet.dispatcher_leaf();
    let host = &fleet.agents[0];
    let mut agent = Agent::start(host);
    let (before, pid) = (shown(&agent, &identity), agent.pid());
    assert_eq!(before, on_disk(host));
    let names = lines(host, &["URI:", "Subject:"]);
    let mut open = Client::connect(agent.address(), Some(&identity), TLS13).expect("connected");

    clock.pass_days(HALF);
    let done = maintain(&fleet.dispatcher);
    assert_eq!(
        (&done["renewed"], &done["staged"], &done["renewal_failed"]),
        (&json!(1), &json!(0), &json!([])),
        "{done}"
    );
    assert!(agent.is_running() && agent.pid() == pid);
    let after = shown(&agent, &identity);
    assert_ne!(after, before);
    assert_eq!(after, on_disk(host));
    assert!(key_matches(&host.path(CERT), &host.path(KEY)));
    assert_eq!(
        lines(host, &["URI:", "Subject:"]),
        names,
        "it is the same one"
    );
    // Who was connected is not thrown out.
    assert_eq!(
        open.request("POST", "/ping", b"{}").expect("served").status,
        200
    );
    let record = fleet.dispatcher.json(&record_path("web.test"));
    assert_eq!(record["expiry"], fleet.agent_leaf(0).expiry());
    assert!(record.get("staged_expiry").is_none());
    assert_eq!(maintain(&fleet.dispatcher)["renewed"], 0, "once is enough");

    drop(agent);
    let agent = Agent::start(host);
    assert_eq!(shown(&agent, &identity), after);
    fleet.ced(&["ping", "--check", "web.test"]).ok();
}

#[test]
fn an_agent_that_the_original_has_paired_gets_a_strict_certificate_for_its_old_key() {
    let mut fleet = Legacy::new(&["old.test"]);
    let clock = SharedClock::new();
    clock.give(&mut fleet.dispatcher);
    clock.give(&mut fleet.agents[0]);
    let host = &fleet.agents[0];
    let agent = Agent::start(host);
    let key = host.read(KEY);
    assert_eq!(lines(host, &["Version:"]), ["Version: 1 (0x0)"]);
    clock.pass_days(HALF);
    // Any contact will do.
    fleet.ced(&["ping", "--check", "old.test"]).ok();
    assert_eq!(lines(host, &["Version:"]), ["Version: 3 (0x2)"]);
    assert_eq!(host.read(KEY), key);
    assert!(key_matches(&host.path(CERT), &host.path(KEY)));
    for word in ["DNS:old.test", "TLS Web Server Authentication", "URI:"] {
        assert_eq!(lines(host, &[word]).len(), 1, "{word}");
    }
    assert_eq!(shown(&agent, &fleet.dispatcher_leaf), on_disk(host));
    let strict = on_disk(host);

    drop(agent);
    let agent = Agent::start(host);
    assert_eq!(shown(&agent, &fleet.dispatcher_leaf), strict);
    fleet.ced(&["ping", "--check", "old.test"]).ok();
    assert_eq!(host.log_of("renew-complete").len(), 1);

    // And from ours to ours, when its time has come.
    let renewed = |dispatcher: &Host| {
        dispatcher.ced(&["rotate-cert"]).ok();
        maintain(dispatcher)["renewed"].clone()
    };
    clock.pass_days(HALF - 20);
    assert_eq!(renewed(&fleet.dispatcher), 0);
    clock.pass_days(20);
    assert_eq!(maintain(&fleet.dispatcher)["renewed"], 1);
    assert_ne!(on_disk(host), strict);
}
