//! The journal on the dispatcher: what may stand in it, and what happens when it does not.

use std::time::Duration;

use crate::common::rotating::record_path;
use crate::common::{Legacy, PATIENCE, Rotating, wait_until};
use crate::{JOURNAL, journal, pushed};

#[test]
fn a_serial_is_one_serial_however_it_is_spelt() {
    let fleet = Legacy::new(&[]);
    let ced = &fleet.dispatcher;
    for (at, word) in ["0x03AB", "3ab", "00:03:aB", "serial=3AB", "000000003ab"]
        .iter()
        .enumerate()
    {
        let out = ced.ced(&["revoke", word]).ok().out();
        assert!(out.starts_with("Revoked serial 3ab"), "{word}: {out}");
        assert_eq!(out.contains("(it was already)"), at > 0, "{word}: {out}");
    }
    assert_eq!(journal(ced).len(), 1);
    for word in ["xyz", "", "0", "0x", "-", "3ab 4", &"f".repeat(65), "a\nb"] {
        let run = ced.ced(&["revoke", "--", word]);
        assert_ne!(run.code(), 0, "{word:?}: {}", run.out());
    }
    ced.ced(&["revoke", "web7.test"])
        .expect_code(1)
        .err_has("'web7.test' is neither a registered host ('ced list-agents' shows them) nor a serial in hex");
    assert_eq!(journal(ced).len(), 1);

    // Whatever is given as a reason stays one line, here and in the log.
    let reason = "he said \"no\"\nACTION=forged\tSERIAL=1\u{1b}[2J";
    ced.ced(&["revoke", "4c", "--reason", reason]).ok();
    assert_eq!(journal(ced).len(), 2);
    assert!(ced.log_of("forged").is_empty());
    let line = ced.wait_for_log(&["ACTION=revoke ", "SERIAL=4c"]).text;
    assert!(!line.contains('\n') && line.contains("said"), "{line:?}");
    let shown = ced.ced(&["list-revoked"]).ok().out();
    assert_eq!(shown.lines().count(), 4, "{shown}");
    assert!(!shown.contains('\u{1b}'), "{shown:?}");
}

#[test]
fn while_the_journal_cannot_be_read_nothing_is_sent_to_anybody() {
    let world = Rotating::new(1);
    let (ced, fleet) = (&world.host, &world.fleet);
    world.ping_all();
    ced.ced(&["revoke", "dead"]).ok();
    fleet[0].forget_requests();
    let good = ced.read(JOURNAL);
    let name = fleet[0].name();
    let stolen = |how: &str, expected: &str| {
        for words in [
            &["ping", "--check", name][..],
            &["run", name, "hello"],
            &["rotate-cert"],
            &["revoke", "beef"],
            &["list-revoked"],
            &["rotate-ca", "start", "--without", name],
        ] {
            ced.ced(words).expect_code(1).err_has(expected);
        }
        assert!(!ced.exists("var/lib/ctrl-exec/rotation.json"), "{how}");
        assert!(!ced.exists("etc/ctrl-exec/ca-next"), "{how}");
        ced.ced(&["maintain"]).ok().err_has(expected);
        assert!(fleet[0].requests().is_empty(), "{how}");
    };
    ced.write(JOURNAL, format!("{good}{{\"serial\":\"be\n"), 0o640);
    stolen("damaged", "revoked.jsonl' line 2: ");
    let text = ced.ced(&["list-revoked"]).err();
    assert!(text.contains("mend or remove that line"), "{text}");
    ced.write(JOURNAL, &good, 0o666);
    stolen("anybody may write it", "revoked.jsonl");
    std::fs::remove_file(ced.path(JOURNAL)).unwrap();
    std::os::unix::fs::symlink("/nonexistent/journal", ced.path(JOURNAL)).unwrap();
    stolen("lost", "revoked.jsonl");
    std::fs::remove_file(ced.path(JOURNAL)).unwrap();
    ced.write(JOURNAL, &good, 0o640);
    world.ping_all();
}

#[test]
fn whenever_the_power_goes_maintenance_finishes_what_was_begun() {
    let fleet = Legacy::new(&["web1.test"]);
    let ced = &fleet.dispatcher;
    let _agents = fleet.start();
    ced.ced(&["ping", "--check", "web1.test"]).ok();
    let took = ced.ced(&["revoke", "c0ffee"]).ok().took;
    let mut written = 0;
    for round in 0..16_u32 {
        let serial = format!("{:x}", 0xa00 + round);
        let mut revoke = ced.start("ced", &["revoke", &serial]);
        std::thread::sleep(took * round / 14);
        revoke.signal(rustix::process::Signal::KILL);
        revoke.wait(PATIENCE);
        let stands = journal(ced).iter().any(|e| e["serial"] == *serial);
        written += usize::from(stands);
        if round % 4 == 3 {
            ced.ced(&["maintain"]).ok();
            let told = pushed(&fleet.agents[0]);
            assert_eq!(told.len(), journal(ced).len(), "{told:?}");
        }
    }
    assert!(written > 0, "none came as far as the journal");
    assert_eq!(
        ced.json(&record_path("web1.test"))["revocations"],
        written + 1
    );
}

#[test]
fn of_four_at_once_none_is_lost() {
    let fleet = Legacy::new(&["web1.test"]);
    let ced = &fleet.dispatcher;
    let _agents = fleet.start();
    let serials = ["a1", "b2", "c3", "d4"];
    let mut all: Vec<_> = serials
        .iter()
        .map(|serial| ced.start("ced", &["revoke", serial]))
        .collect();
    for revoke in &mut all {
        let status = revoke.wait(Duration::from_secs(40));
        assert!(status.success(), "{}{}", revoke.out(), revoke.err());
    }
    let mut written: Vec<_> = journal(ced)
        .iter()
        .map(|e| e["serial"].as_str().unwrap().to_owned())
        .collect();
    written.sort();
    assert_eq!(written, serials);
    ced.ced(&["maintain"]).ok();
    wait_until("the agent knows all", PATIENCE, || {
        (pushed(&fleet.agents[0]) == serials).then_some(())
    });
    ced.ced(&["list-revoked", "--json"])
        .ok()
        .out_has("\"not_confirmed\":[]");
}
