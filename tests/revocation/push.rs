//! Telling agents.

use serde_json::{Value, json};

use crate::common::fleet::Paired;
use crate::common::openssl::Leaf;
use crate::common::tls::{self, Client, TLS12, TLS13};
use crate::common::{Agent, Host, Legacy, Rotating};
use crate::{PUSHED, pushed};

fn statuses(ced: &Host) -> Vec<(String, String)> {
    let listing: Value = ced.ced(&["list-revoked", "--json"]).ok().json();
    let agents = listing["agents"].as_array().unwrap();
    let text = |v: &Value| v.as_str().unwrap().to_owned();
    agents
        .iter()
        .map(|a| (text(&a["agent"]), text(&a["status"])))
        .collect()
}

#[test]
fn who_was_away_hears_of_it_at_the_next_contact_whatever_that_is() {
    let fleet = Legacy::new(&["a.test", "b.test", "c.test"]);
    let ced = &fleet.dispatcher;
    let out = ced.ced(&["revoke", "--no-push", "dead"]).ok().out();
    assert!(
        out.contains("No agent was told yet: 'ced maintain' does it.")
            && !out.contains("Agents told"),
        "{out}"
    );
    let out = ced.ced(&["revoke", "beef"]).ok().out();
    assert!(
        out.contains("Agents told: 0 of 3.")
            && out.contains("connection refused")
            && out.contains("told at their next contact and by every 'ced maintain'"),
        "{out}"
    );
    let listed = ced.ced(&["list-revoked"]).ok();
    assert!(
        listed.out().contains("Not confirmed yet by 3 agent(s):")
            && listed.out().contains("has confirmed 0 of 2"),
        "{}",
        listed.out()
    );
    listed.err_has("'ced maintain' tells them");

    let mut agents: Vec<Agent> = fleet.start();
    ced.ced(&["run", "a.test", "hello"]).ok();
    ced.ced(&["ping", "b.test"]).ok();
    for (at, knows) in [(0, 2), (1, 2), (2, 0)] {
        assert_eq!(pushed(&fleet.agents[at]).len(), knows, "{at}");
    }
    let row = |name: &str, status: &str| (name.to_owned(), status.to_owned());
    assert_eq!(
        statuses(ced),
        [
            row("a.test", "confirmed"),
            row("b.test", "confirmed"),
            row("c.test", "late")
        ]
    );
    ced.ced(&["maintain"]).ok();
    assert_eq!(pushed(&fleet.agents[2]), ["beef", "dead"]);
    let listed = ced.ced(&["list-revoked"]).ok().out();
    assert!(!listed.contains("Not confirmed"), "{listed}");

    // Restored from a backup in which there was nothing of it, or only what another dispatcher had said.
    for left in ["", "beef\n"] {
        drop(agents.remove(0));
        std::fs::write(fleet.agents[0].path(PUSHED), left).unwrap();
        agents.insert(0, Agent::start(&fleet.agents[0]));
        ced.ced(&["ping", "a.test"]).ok();
        assert_eq!(pushed(&fleet.agents[0]), ["beef", "dead"], "{left:?}");
    }
    // Nobody is told what he knows.
    fleet.agents.iter().for_each(Host::clear_log);
    ced.ced(&["ping", "a.test", "b.test", "c.test"]).ok();
    ced.ced(&["maintain"]).ok();
    assert!(fleet.agents.iter().all(|a| a.log_of("revoke").is_empty()));
}

#[test]
fn agents_of_the_original_are_told_apart_and_left_alone() {
    let world = Rotating::new(2);
    let (ced, fleet) = (&world.host, &world.fleet);
    world.ping_all();
    let out = ced.ced(&["revoke", "dead"]).ok().out();
    assert!(
        out.contains("Agents told: 0 of 2.")
            && out.contains("runs an older release: add the serial to its 'revoked-serials' by hand, or update it")
            && !out.contains("next contact"),
        "{out}"
    );
    let done: Value = ced.ced(&["revoke", "--json", "beef"]).ok().json();
    assert_eq!(
        done["agents"][1],
        json!({"agent": "sim0001.test", "status": "unable"})
    );
    let listed = ced.ced(&["list-revoked"]).ok();
    assert!(
        listed.out().contains("runs an older release"),
        "{}",
        listed.out()
    );
    assert_eq!(listed.err(), "", "no promise that nobody can keep");
    assert!(statuses(ced).iter().all(|(_, status)| status == "unable"));
    // Their rate limit counts every call.
    fleet[0].forget_requests();
    world.ping_all();
    ced.ced(&["run", fleet[0].name(), "hello"]).ok();
    let paths: Vec<String> = fleet[0].requests().into_iter().map(|r| r.path).collect();
    assert_eq!(paths, ["/ping", "/run"]);
}

#[test]
fn an_older_certificate_of_our_own_is_refused_by_agents_on_connections_that_are_open_too() {
    let fleet = Paired::new(&["web1.test", "web2.test"]);
    let (ced, web1) = (&fleet.dispatcher, &fleet.agents[0]);
    let agent = Agent::start(web1);
    let present = fleet.dispatcher_leaf();
    let old = Leaf {
        cert: ced.write("tmp/old.crt", present.cert_pem(), 0o600),
        key: ced.write("tmp/old.key", present.key_pem(), 0o600),
        cn: present.cn,
    };
    let serial = old.serial();
    ced.ced(&["revoke", &serial])
        .expect_code(1)
        .err_has("uses itself: replace it first ('ced rotate-cert'), then revoke the old serial");
    ced.ced(&["rotate-cert"]).ok().out_has("Updated: 1");
    ced.ced(&["revoke", &serial])
        .expect_code(1)
        .err_has("1 agent(s) trust this older serial")
        .err_has("web2.test. Let 'ced maintain' reach them first, or revoke it with --force");
    let other = Agent::start(&fleet.agents[1]);
    ced.ced(&["maintain"]).ok();

    let mut open: Vec<Client> = [TLS12, TLS13]
        .into_iter()
        .map(|version| Client::connect(agent.address(), Some(&old), version).unwrap())
        .collect();
    for client in &mut open {
        assert_eq!(client.request("POST", "/ping", b"{}").unwrap().status, 200);
    }
    ced.ced(&["revoke", &serial])
        .ok()
        .out_has("Agents told: 2 of 2.");
    for client in &mut open {
        let reply = client.request("POST", "/ping", b"{}").unwrap();
        assert_eq!(
            (reply.status, &reply.json()["error"]),
            (403, &json!("certificate revoked"))
        );
        client.wait_for_close();
    }
    for agent in [&agent, &other] {
        let reply = tls::request(agent.address(), Some(&old), "POST", "/run", b"{}").unwrap();
        assert_eq!(reply.json()["error"], "certificate revoked");
    }
    let map = web1.read("var/lib/ctrl-exec-agent/ctrl-exec-dispatchers");
    assert_eq!(
        map.lines().filter(|l| !l.starts_with('#')).count(),
        1,
        "{map}"
    );
    assert!(
        !ced.path("etc/ctrl-exec/identities")
            .join(format!("{serial}.pem"))
            .exists()
    );
    for words in [
        &["ping", "--check", "web1.test", "web2.test"][..],
        &["rotate-cert"],
        &["maintain"],
    ] {
        ced.ced(words).ok();
    }
}

#[test]
fn an_older_certificate_that_an_agent_depends_on_goes_only_by_force() {
    let fleet = Paired::new(&["web1.test", "web2.test"]);
    let ced = &fleet.dispatcher;
    let _one = Agent::start(&fleet.agents[0]);
    let serial = fleet.dispatcher_leaf().serial();
    ced.ced(&["rotate-cert"]).ok();
    ced.ced(&["revoke", "--force", &serial]).ok();
    let _other = Agent::start(&fleet.agents[1]);
    ced.ced(&["maintain"]).ok();
    ced.ced(&["ping", "--check", "web1.test"]).ok();
    // It has heard of no other, and is not called by that one.
    let said = ced
        .ced(&["ping", "--check", "web2.test"])
        .expect_code(1)
        .out();
    assert!(
        said.contains("serial mismatch") || said.contains("forbidden"),
        "{said}"
    );
}
