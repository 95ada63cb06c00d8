//! What cannot begin, and what is taken back.

use crate::common::fleet::Paired;
use crate::common::rotating::kept;
use crate::common::{Agent, Rotating};
use crate::{CHANGE, NEXT, assert_over, certificates, lagging, paired, passes, status, stolen_ca};

#[test]
fn as_long_as_nobody_has_followed_it_can_be_taken_back() {
    let fleet = Paired::new(&["a.test", "b.test"]);
    let ced = &fleet.dispatcher;
    let before = [
        ced.read("etc/ctrl-exec/ca.crt"),
        ced.read("etc/ctrl-exec/ca.key"),
    ];
    let old = stolen_ca(ced);
    let agents = fleet.start();
    ced.ced(&["ping", "--check", "a.test", "b.test"]).ok();
    drop(agents);
    let out = ced.ced(&["rotate-ca", "start"]).ok().out();
    assert!(
        out.contains("Phase:    announcing") && out.contains("2 agent(s) have not followed yet:"),
        "{out}"
    );
    ced.ced(&["rotate-ca", "finish"])
        .expect_code(1)
        .err_has("the new CA does not sign yet")
        .err_has("run 'ced maintain' when agents answer");
    ced.ced(&["rotate-ca", "start"])
        .expect_code(1)
        .err_has("(announcing)");
    // Somebody is paired meanwhile, under the CA that signs.
    let fresh = paired(ced, "c.test");
    assert_eq!(fresh.read("etc/ctrl-exec-agent/ca.crt"), before[0]);
    let serial = ced.read("etc/ctrl-exec/dispatcher.crt");

    // Whoever was called may have heard of it, whatever came back: only a host's own word ends the waiting for it.
    let out = ced.ced(&["rotate-ca", "abort"]).ok().out();
    assert!(
        out.starts_with("The change is being taken back; some agents have not dropped the new CA yet.\n  a.test ")
            && out.contains("\n  b.test ")
            && out.ends_with("'ced maintain' goes on until every agent has confirmed.\n"),
        "{out}"
    );
    assert_eq!(
        [
            ced.read("etc/ctrl-exec/ca.crt"),
            ced.read("etc/ctrl-exec/ca.key")
        ],
        before
    );
    assert_eq!(ced.read("etc/ctrl-exec/dispatcher.crt"), serial);
    let agents = fleet.start();
    let c = Agent::start(&fresh);
    ced.ced(&["ping", "--check", "a.test", "b.test", "c.test"])
        .ok();
    ced.ced(&["maintain"])
        .ok()
        .out_has("The change of the CA is over.");
    assert!(!ced.exists(CHANGE) && !ced.exists(NEXT));
    assert!(kept(ced).is_empty(), "{:?}", kept(ced));
    ced.ced(&["rotate-cert"]).ok().out_has("Updated: 3");

    // With everybody there it is done at once, and then it is too late.
    ced.ced(&["rotate-ca", "start"]).ok();
    ced.ced(&["rotate-ca", "abort"])
        .expect_code(1)
        .err_has("too late: the new CA signs already. Finish this change");
    passes(ced);
    ced.ced(&["rotate-ca", "finish"]).ok();
    let hosts = &fleet.agents;
    assert_over(
        ced,
        &old,
        &[
            (&agents[0], &hosts[0]),
            (&agents[1], &hosts[1]),
            (&c, &fresh),
        ],
    );
}

#[test]
fn who_has_heard_of_the_new_ca_is_told_to_forget_it() {
    let fleet = Paired::new(&["a.test"]);
    let ced = &fleet.dispatcher;
    let agent = Agent::start(&fleet.agents[0]);
    ced.ced(&["ping", "--check", "a.test"]).ok();
    drop(agent);
    ced.ced(&["rotate-ca", "start"]).ok();
    // It takes the CA, and the power goes before the certificate is announced: as the files would be.
    let state = ced.json(CHANGE);
    let mut record = ced.json("var/lib/ctrl-exec/agents/a.test.json");
    let both = [state["old"].clone(), state["new"].clone()];
    record["trusted_cas"] = both.to_vec().into();
    ced.write(
        "var/lib/ctrl-exec/agents/a.test.json",
        record.to_string(),
        0o644,
    );
    let out = ced.ced(&["rotate-ca", "abort"]).ok().out();
    assert!(
        out.contains("some agents have not dropped the new CA yet")
            && out.contains("a.test                          has not dropped the new CA yet")
            && out.ends_with("'ced maintain' goes on until every agent has confirmed.\n"),
        "{out}"
    );
    assert_eq!(lagging(ced), ["a.test: has not dropped the new CA yet"]);
    ced.ced(&["rotate-ca", "finish"])
        .expect_code(1)
        .err_has("the change is being taken back: 'ced maintain' goes on");
    // A rotation that begins now is of the CA that stays, and nobody takes it back.
    ced.ced(&["rotate-cert"])
        .ok()
        .out_has("announced, not in use yet");
    let next = ced.json("var/lib/ctrl-exec/rotation.json")["next_serial"].clone();
    ced.ced(&["maintain"]).ok();
    assert_eq!(
        ced.json("var/lib/ctrl-exec/rotation.json")["next_serial"],
        next
    );
    let _agent = Agent::start(&fleet.agents[0]);
    ced.ced(&["maintain"]).ok();
    ced.ced(&["maintain"]).ok();
    assert_eq!(status(ced)["phase"], serde_json::Value::Null);
    assert_eq!(
        certificates(&fleet.agents[0].read("etc/ctrl-exec-agent/ca.crt")),
        1
    );
    assert_eq!(
        ced.json("var/lib/ctrl-exec/rotation.json")["current_serial"],
        next
    );
    ced.ced(&["ping", "--check", "a.test"]).ok();
}

#[test]
fn agents_of_the_original_keep_a_change_from_beginning_and_a_rotation_does() {
    let world = Rotating::new(2);
    let (ced, fleet) = (&world.host, &world.fleet);
    let refused = ced.ced(&["rotate-ca", "start"]).expect_code(1).err();
    assert!(
        refused
            .contains("sim0000.test (runs 0.12.3), sim0001.test (runs 0.12.3). Update ctrl-exec"),
        "{refused}"
    );
    assert!(!ced.exists(CHANGE) && !ced.exists(NEXT));
    ced.ced(&["rotate-ca", "stop"])
        .expect_code(64)
        .err_has("use 'ced rotate-ca start', 'status', 'finish' or 'abort'");

    fleet.set_up(false);
    ced.ced(&["rotate-cert"]).ok();
    ced.ced(&[
        "rotate-ca",
        "start",
        "--without",
        "sim0000.test,sim0001.test",
    ])
    .expect_code(1)
    .err_has("the dispatcher's certificate is being rotated")
    .err_has("run 'ced maintain', then try again");
    fleet.set_up(true);
    ced.ced(&["maintain"]).ok();

    let host = paired(ced, "new1.test");
    let agent = Agent::start(&host);
    let old = stolen_ca(ced);
    let out = ced
        .ced(&[
            "rotate-ca",
            "start",
            "--without",
            "sim0000.test, sim0001.test",
        ])
        .ok()
        .out();
    assert!(
        out.contains("Given up: sim0000.test, sim0001.test (pair again)")
            && out.ends_with("Every agent has followed. Next: ced rotate-ca finish\n"),
        "{out}"
    );
    // Until the end they are served.
    world.ping_all();
    assert!(fleet[0].requests_for("/ca").is_empty());
    ced.ced(&["rotate-ca", "finish"]).ok();
    ced.ced(&["ping", "--check", "sim0000.test"]).expect_code(1);
    assert_over(ced, &old, &[(&agent, &host)]);
}
