//! The power goes out after every effect of every change: records are the old ones or the new ones, and the same command can be given again.

use super::*;
use crate::core::durable::crash;

fn name(text: &str) -> AgentName {
    AgentName::new(text).unwrap()
}

/// Two agents, one with everything that a record can hold.
fn registry() -> (tempfile::TempDir, Registry) {
    let dir = tempfile::tempdir().unwrap();
    let registry = Registry::new(dir.path().join("agents"));
    registry
        .register(AgentRecord::new(name("other")), false)
        .unwrap();
    let text = r#"{"ip":"192.0.2.7","paired":"2027-01-01T00:00:00Z","reqid":"0a","port":7500,"tags":{"site":"x"},
        "dispatcher_serial":"ab","serial_status":"current","cert_serial":"cd","cert_spki":"ef","revocations":3,"later":[1]}"#;
    std::fs::write(registry.path_of(&name("web1")), text).unwrap();
    (dir, registry)
}

fn all(registry: &Registry) -> Vec<AgentRecord> {
    let listing = registry.list().unwrap();
    assert!(listing.unreadable.is_empty());
    listing.agents
}

/// After each cut `fine` says whether what is left is allowed; then `work` is done again, which must lead to the same as without a cut.
fn every_prefix(
    work: impl Fn(&Registry) -> Result<(), RegistryError>,
    fine: impl Fn(&[AgentRecord]) -> bool,
) {
    let (_dir, whole) = registry();
    work(&whole).unwrap();
    let wanted = all(&whole);
    for effects in 0.. {
        let (_dir, registry) = registry();
        let before = all(&registry);
        let (result, cut) = crash::after(effects, || work(&registry));
        let left = all(&registry);
        let done = left == wanted;
        assert!(done || left == before || fine(&left), "{effects}: {left:?}");
        assert!(done || result.is_err(), "{effects}");
        if !done {
            work(&registry).unwrap_or_else(|e| panic!("{effects}: {e}"));
        }
        assert_eq!(all(&registry), wanted, "{effects}");
        if !cut {
            assert!(effects > 0);
            return;
        }
    }
}

#[test]
fn every_prefix_of_a_change_of_one_record() {
    every_prefix(
        |r| r.update(&name("web1"), |a| a.port = 1).map(drop),
        |_| false,
    );
}

#[test]
fn every_prefix_of_a_change_of_many_records() {
    let change = |r: &Registry| {
        let both = ["other", "web1"].map(name);
        r.update_many(both, |a| a.serial_status = SerialStatus::Stale)
            .map(drop)
    };
    let one_of_two =
        |left: &[AgentRecord]| left.len() == 2 && left[0].serial_status == SerialStatus::Stale;
    every_prefix(change, one_of_two);
}

#[test]
fn every_prefix_of_a_removal() {
    every_prefix(|r| r.remove(&name("web1")).map(drop), |_| false);
}

#[test]
fn every_prefix_of_a_rename_leaves_the_agent_under_one_name_or_both() {
    every_prefix(
        |r| r.rename(&name("web1"), &name("web2")).map(drop),
        |left| {
            let names: Vec<&str> = left.iter().map(|a| a.name.as_str()).collect();
            names == ["other", "web1", "web2"] && left[2].expected_cn() == "web1"
        },
    );
    // What is another agent stays another agent.
    let (_dir, registry) = registry();
    let error = registry.rename(&name("web1"), &name("other")).unwrap_err();
    assert!(matches!(error, RegistryError::Exists { .. }), "{error}");
    assert_eq!(all(&registry).len(), 2);
}

#[test]
fn every_prefix_of_a_pairing_that_replaces_another_keeps_what_it_does_not_know() {
    let again = |r: &Registry| {
        let mut record = AgentRecord::new(name("web1"));
        record.reqid = "0b".to_owned();
        r.register(record, true)
    };
    every_prefix(again, |_| false);
    let (_dir, registry) = registry();
    again(&registry).unwrap();
    let record = registry.get(&name("web1")).unwrap().unwrap();
    assert_eq!(record.tags["site"], "x");
    assert_eq!(record.to_map()["later"], serde_json::json!([1]));
    assert_eq!((record.revocations, record.cert_spki), (0, None));
}
