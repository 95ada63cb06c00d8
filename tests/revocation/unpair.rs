//! `ced unpair`, which may shut the host out.

use crate::common::fleet::Legacy;
use crate::common::rotating::record_path;
use crate::common::{Host, PATIENCE};
use crate::journal;

/// `ced unpair` at a terminal, answered so. Everything on the screen.
fn asked(ced: &Host, name: &str, answer: &str) -> String {
    let mut talk = ced.start_at_terminal("ced", &["unpair", name]);
    talk.wait_for_text("[y/N]: ");
    talk.type_line(answer);
    let status = talk.wait(PATIENCE);
    assert!(status.success(), "{}{}", talk.out(), talk.err());
    talk.out()
}

#[test]
fn it_revokes_if_it_is_told_to_and_asks_where_somebody_can_answer() {
    let names = ["a.test", "b.test", "c.test", "d.test", "e.test"];
    let fleet = Legacy::new(&names);
    let ced = &fleet.dispatcher;
    // As records are once the hosts have answered: the serials are known.
    for (name, leaf) in names.iter().zip(&fleet.agent_leaves) {
        let mut record = ced.json(&record_path(name));
        record["cert_serial"] = leaf.serial().into();
        ced.write(&record_path(name), record.to_string(), 0o644);
    }
    let revoked = || {
        let mut agents: Vec<String> = journal(ced)
            .iter()
            .map(|e| e["agent"].as_str().unwrap().to_owned())
            .collect();
        agents.sort();
        agents
    };
    ced.ced(&["unpair", "--revoke", "--keep-certificate", "a.test"])
        .expect_code(64)
        .err_has("exclude each other");
    assert!(ced.exists(&record_path("a.test")));

    ced.ced(&["unpair", "--revoke", "a.test"])
        .ok()
        .out_has("Unregistered 'a.test'.\nIts certificate is revoked.");
    assert_eq!(revoked(), ["a.test"]);
    assert_eq!(journal(ced)[0]["reason"], "unpaired");

    for (name, words) in [
        ("b.test", &["unpair", "--keep-certificate", "b.test"][..]),
        ("c.test", &["unpair", "c.test"]),
    ] {
        let out = ced.ced(words).ok().out();
        assert!(
            out.contains("Warning: its certificate stays valid until")
                && out.contains("To shut it out: ced revoke 0x"),
            "{out}"
        );
        assert!(!ced.exists(&record_path(name)));
    }
    assert_eq!(revoked(), ["a.test"]);
    // What it says to type can be typed.
    ced.ced(&["revoke", "0x4"]).ok();
    assert_eq!(journal(ced)[1]["serial"], "4");

    let out = asked(ced, "d.test", "n");
    assert!(out.contains("stays valid until"), "{out}");
    assert_eq!(journal(ced).len(), 2);
    let out = asked(ced, "e.test", "y");
    assert!(out.contains("Its certificate is revoked."), "{out}");
    assert_eq!(journal(ced)[2]["agent"], "e.test");
    for name in names {
        assert!(!ced.exists(&record_path(name)), "{name}");
    }
    ced.ced(&["unpair", "--revoke", "nobody.test"])
        .expect_code(1)
        .err_has("nobody.test");
    let said = ced.ced(&["unpair", "--revoke", "nobody.test"]).err();
    assert!(!said.contains("ced revoke nobody.test"), "{said}");
}
