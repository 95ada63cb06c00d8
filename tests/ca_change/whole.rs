//! From start to finish.

use serde_json::json;

use crate::common::fleet::Paired;
use crate::common::openssl::Dates;
use crate::common::tls::{self, TLS12, TLS13};
use crate::common::{Agent, Legacy};
use crate::{
    CHANGE, NEXT, assert_over, certificates, lagging, paired, passes, shown, status, stolen_ca,
    text,
};

#[test]
fn a_mixed_fleet_goes_over_and_the_old_key_opens_no_door() {
    let fleet = Legacy::new(&["old1.test"]);
    let ced = &fleet.dispatcher;
    let old = stolen_ca(ced);
    let hosts = [paired(ced, "new1.test"), paired(ced, "new2.test")];
    let one = Agent::start(&fleet.agents[0]);
    let two = Agent::start(&hosts[0]);
    let three = Agent::start(&hosts[1]);
    let out = ced.ced(&["rotate-ca", "start"]).ok().out();
    assert!(
        out.starts_with(
            "The new CA is made and trusted beside the old one.\nPhase:    changed (since "
        ) && out.ends_with("Every agent has followed. Next: ced rotate-ca finish\n"),
        "{out}"
    );
    assert_eq!(certificates(&ced.read("etc/ctrl-exec/ca.crt")), 2);
    for host in hosts.iter().chain(&fleet.agents) {
        assert_eq!(certificates(&host.read("etc/ctrl-exec-agent/ca.crt")), 2);
    }
    ced.ced(&["rotate-ca", "start"])
        .expect_code(1)
        .err_has("(changed): 'ced rotate-ca status' shows it");
    let out = ced.ced(&["rotate-ca", "finish"]).ok().out();
    assert_eq!(
        out,
        "The old CA is not trusted any more, here and on every agent. The change is over.\n"
    );
    let all = [
        (&one, &fleet.agents[0]),
        (&two, &hosts[0]),
        (&three, &hosts[1]),
    ];
    assert_over(ced, &old, &all);
    for word in ["finish", "abort"] {
        ced.ced(&["rotate-ca", word])
            .expect_code(1)
            .err_has("'ced rotate-ca start' begins one");
    }

    // A dispatcher of the old CA under the very serial that is trusted.
    let serial = crate::common::openssl::serial_of(&ced.path("etc/ctrl-exec/dispatcher.crt"));
    let forged = old.issue("ctrl-exec-dispatcher", &serial, Dates::Days(30));
    for (agent, _) in &all {
        for version in [TLS12, TLS13] {
            let entered = tls::Client::connect(agent.address(), Some(&forged), version)
                .and_then(|mut c| c.request("POST", "/ping", b"{}"));
            assert!(entered.is_err());
        }
    }
    // An agent of the old CA in the place of ours.
    let place = &hosts[0];
    drop(two);
    let leaf = old.issue("new1.test", "0777", Dates::Days(30));
    for (file, content) in [
        ("agent.crt", leaf.cert_pem()),
        ("agent.key", leaf.key_pem()),
        ("ca.crt", old.cert_pem()),
    ] {
        place.write(&format!("etc/ctrl-exec-agent/{file}"), content, 0o640);
    }
    let _impostor = Agent::start(place);
    ced.ced(&["ping", "--check", "new1.test"])
        .expect_code(1)
        .out_has("certificate or trust mismatch");

    // What was done once can be done again.
    let again = stolen_ca(ced);
    ced.ced(&[
        "rotate-ca",
        "start",
        "--without",
        "new1.test",
        "--key-type",
        "rsa-2048",
    ])
    .ok();
    passes(ced);
    ced.ced(&["rotate-ca", "finish"])
        .ok()
        .out_has("The change is over.");
    assert_over(
        ced,
        &again,
        &[(&one, &fleet.agents[0]), (&three, &hosts[1])],
    );
}

#[test]
fn who_is_away_catches_up_and_is_waited_for() {
    let fleet = Paired::new(&["a.test", "b.test"]);
    let ced = &fleet.dispatcher;
    let old = stolen_ca(ced);
    // Nobody has ever heard from the one.
    let a = Agent::start(&fleet.agents[0]);
    let refused = ced.ced(&["rotate-ca", "start"]).expect_code(1).err();
    assert!(
        refused.contains("not known to be able to take a new CA: b.test (has not answered yet)")
            && refused.contains("let 'ced maintain' reach the others first")
            && refused.contains("--without"),
        "{refused}"
    );
    assert!(!ced.exists(CHANGE) && !ced.exists(NEXT));
    ced.ced(&["rotate-ca", "start", "--without", "c.test"])
        .expect_code(1)
        .err_has("--without: 'c.test' is no registered host");
    drop(Agent::start(&fleet.agents[1]));
    let b = Agent::start(&fleet.agents[1]);
    ced.ced(&["ping", "--check", "b.test"]).ok();
    drop(b);

    ced.ced(&["rotate-ca", "start"]).ok();
    assert_eq!(status(ced)["phase"], "changed");
    assert_eq!(lagging(ced), ["b.test: does not trust the new CA yet"]);
    let said = ced.ced(&["rotate-ca", "status"]).ok().out();
    assert!(
        said.contains("1 agent(s) have not followed yet:\n  b.test ")
            && said.ends_with("'ced maintain' goes on with them whenever they answer. Then: ced rotate-ca finish\n"),
        "{said}"
    );
    let refused = ced.ced(&["rotate-ca", "finish"]).expect_code(1).err();
    assert!(
        refused.contains("not everybody has followed yet: b.test (does not trust the new CA yet).")
            && refused.contains("--without HOST gives a host up (it must be paired again)"),
        "{refused}"
    );
    assert_eq!(certificates(&ced.read("etc/ctrl-exec/ca.crt")), 2);

    // In between: pairing, and a rotation of our own certificate.
    let fresh = paired(ced, "c.test");
    assert_eq!(certificates(&fresh.read("etc/ctrl-exec-agent/ca.crt")), 1);
    let c = Agent::start(&fresh);
    ced.ced(&["run", "c.test", "hello"]).ok();
    ced.ced(&["rotate-cert"]).ok().out_has("Updated: 2");
    ced.ced(&["ping", "--check", "a.test", "c.test"]).ok();

    let b = Agent::start(&fleet.agents[1]);
    // Called with the oldest certificate of ours, then told of all that it has missed.
    ced.ced(&["run", "b.test", "hello"]).ok();
    let needed = passes(ced);
    assert!((1..=2).contains(&needed), "{needed} passes");
    ced.ced(&["rotate-ca", "finish"])
        .ok()
        .out_has("The change is over.");
    let hosts = &fleet.agents;
    assert_over(ced, &old, &[(&a, &hosts[0]), (&b, &hosts[1]), (&c, &fresh)]);
}

#[test]
fn who_is_given_up_is_left_behind_and_who_is_away_at_the_end_is_named() {
    let fleet = Paired::new(&["a.test", "b.test", "c.test"]);
    let ced = &fleet.dispatcher;
    let old = stolen_ca(ced);
    let mut agents = fleet.start();
    ced.ced(&["ping", "--check", "a.test", "b.test", "c.test"])
        .ok();
    drop(agents.remove(2));
    ced.ced(&["rotate-ca", "start"]).ok();
    // It goes away after it has followed.
    drop(agents.remove(1));
    ced.ced(&["revoke", "c.test"]).ok();
    assert_eq!(
        lagging(ced),
        ["c.test: is revoked: unpair it, or pair it again"]
    );
    let out = ced
        .ced(&["rotate-ca", "finish", "--without", "c.test"])
        .ok()
        .out();
    assert!(
        out.contains("some agents have not dropped it yet")
            && out.contains("Phase:    withdrawing")
            && out.contains("Given up: c.test (pair again)")
            && out.contains("b.test                          has not dropped the old CA yet")
            && out.ends_with("'ced maintain' goes on until every agent has confirmed.\n"),
        "{out}"
    );
    assert_eq!(lagging(ced), ["b.test: has not dropped the old CA yet"]);
    assert_eq!(status(ced)["given_up"], json!(["c.test"]));
    assert_eq!(certificates(&ced.read("etc/ctrl-exec/ca.crt")), 1);
    ced.ced(&["rotate-ca", "abort"])
        .expect_code(1)
        .err_has("too late");
    let b = Agent::start(&fleet.agents[1]);
    // Asking again is not wrong: it ends what only waited for this agent.
    ced.ced(&["rotate-ca", "finish"])
        .ok()
        .out_has("The change is over.");
    assert_over(
        ced,
        &old,
        &[(&agents[0], &fleet.agents[0]), (&b, &fleet.agents[1])],
    );
    let (alone, _) = crate::common::openssl::try_openssl(&[
        "verify",
        "-CAfile",
        text(&ced.path("etc/ctrl-exec/ca.crt")),
        text(&shown(&Agent::start(&fleet.agents[2]), &fleet.agents[2])),
    ]);
    assert!(!alone, "it was given up");
}
