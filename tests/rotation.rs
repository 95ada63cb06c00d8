//! Rotation of the dispatcher's certificate with the real binary, over agents that apply the original's serial rules to the letter.

mod common;

use common::SimFleet;
use common::fleet::legacy_dispatcher;
use common::openssl::{Authority, Dates};
use serde_json::Value;

/// The serial of the dispatcher's certificate, and what pairing has left in the agents' maps for it. Where the original itself would lock
/// the dispatcher out (16, 20, 1234567890), our form with colons was sent, of which one pass takes the colons.
const AWKWARD: &[(&str, &str)] = &[
    ("02", "2"),
    ("0A", "a"),
    ("10", "10"),
    ("16", "16"),
    ("20", "20"),
    ("00AB12", "ab12"),
    ("1234567890", "1234567890"),
    ("DEADBEEF", "deadbeef"),
];

#[test]
fn agents_of_the_original_follow_whatever_the_old_serial_looks_like() {
    let authority = Authority::shared();
    for (serial, row) in AWKWARD {
        let leaf = authority.issue("ctrl-exec-dispatcher", serial, Dates::Days(825));
        let host = legacy_dispatcher(authority, &leaf);
        let fleet = SimFleet::new(3, authority, row);
        fleet.register_all(&host);
        let names = fleet.names();
        let ping = || {
            let words: Vec<&str> = ["ping", "--check"]
                .into_iter()
                .chain(names.iter().copied())
                .collect();
            host.ced(&words).ok()
        };
        ping();
        fleet.agents()[2].set_up(false);
        let out = host.ced(&["rotate-cert"]).ok().out();
        assert!(
            out.contains("Updated: 2") && out.contains("Failed:  1"),
            "{serial}: {out}"
        );
        let new = host.json("var/lib/ctrl-exec/rotation.json")["current_serial"].clone();
        for round in 0..2 {
            for name in &names[..2] {
                host.ced(&["ping", "--check", name]).ok();
            }
            // The one that was away hears of it at its first contact.
            if round == 0 {
                fleet.agents()[2].set_up(true);
                ping();
            }
        }
        let record = host.json(&format!("var/lib/ctrl-exec/agents/{}.json", names[2]));
        assert_eq!(record["serial_status"], "current", "{serial}");
        assert_eq!(record["dispatcher_serial"], new, "{serial}");
        ping();
        let status: Value = host.ced(&["serial-status", "--json"]).ok().json();
        assert_eq!(status["state"]["current_serial"], new);
    }
}
