use super::*;
use crate::core::wire::LookupBy;
use proptest::prelude::*;
use std::os::unix::fs::PermissionsExt as _;

fn name(text: &str) -> AgentName {
    AgentName::new(text).unwrap()
}

fn registry() -> (tempfile::TempDir, Registry) {
    let dir = tempfile::tempdir().unwrap();
    let registry = Registry::new(dir.path().join("agents"));
    (dir, registry)
}

fn add(registry: &Registry, text: &str) -> AgentRecord {
    let record = AgentRecord::new(name(text));
    registry.register(record.clone(), false).unwrap();
    record
}

fn raw(registry: &Registry, text: &str, content: &str) {
    durable::create_dir(registry.dir(), 0o755).unwrap();
    std::fs::write(registry.path_of(&name(text)), content).unwrap();
}

fn json(registry: &Registry, text: &str) -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(registry.path_of(&name(text))).unwrap()).unwrap()
}

#[test]
fn a_new_record_has_the_twelve_fields_and_the_mode_of_the_original() {
    let (_dir, registry) = registry();
    add(&registry, "web01.example.com");
    let expected = serde_json::json!({
        "hostname": "web01.example.com", "ip": "", "paired": "", "expiry": "", "reqid": "", "lookup_by": "hostname", "port": 7443,
        "tags": {}, "dispatcher_serial": "", "serial_status": "unknown", "serial_broadcast": "", "serial_confirmed": ""
    });
    assert_eq!(json(&registry, "web01.example.com"), expected);
    let file = registry.path_of(&name("web01.example.com"));
    assert_eq!(
        file.metadata().unwrap().permissions().mode() & 0o7777,
        RECORD_MODE
    );
    let mode = registry.dir().metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, DIRECTORY_MODE);
}

#[test]
fn records_of_any_age_load() {
    let (_dir, registry) = registry();
    raw(
        &registry,
        "old",
        r#"{"hostname":"old","ip":null,"port":"7450"}"#,
    );
    raw(
        &registry,
        "odd",
        r#"{"port":70000,"lookup_by":"dns","tags":{"a":1,"b":"x","c":[]},"serial_status":"new"}"#,
    );
    raw(
        &registry,
        "odder",
        r#"{"port":"x","tags":[],"hostname":""}"#,
    );
    let get = |text: &str| registry.get(&name(text)).unwrap().unwrap();
    let old = get("old");
    assert_eq!((old.port, old.ip.as_str()), (7450, ""));
    assert_eq!(old.serial_status, SerialStatus::Unknown);
    assert_eq!(old.peer_check, PeerCheck::Strict);
    let odd = get("odd");
    assert_eq!((odd.port, odd.lookup_by), (7443, LookupBy::Hostname));
    assert_eq!(odd.hostname, "odd");
    let tags: Vec<_> = odd
        .tags
        .iter()
        .map(|(k, v)| (k.as_str(), v.as_str()))
        .collect();
    assert_eq!(tags, [("a", "1"), ("b", "x")]);
    assert_eq!(
        (get("odder").port, get("odder").hostname),
        (7443, "odder".to_owned())
    );
    registry.update(&name("old"), |_| {}).unwrap();
    assert_eq!(json(&registry, "old")["port"], 7450);
}

#[test]
fn an_update_keeps_what_it_does_not_know() {
    let (_dir, registry) = registry();
    raw(
        &registry,
        "a",
        r#"{"hostname":"a","expiry":"x","future":{"n":[1,2.5,null]},"note":"keep"}"#,
    );
    let expiry = "Jun  7 16:28:00 2028 GMT";
    let updated = registry
        .update(&name("a"), |r| {
            r.expiry = expiry.to_owned();
            r.name = name("stray");
        })
        .unwrap();
    assert_eq!(updated.name, name("a"));
    let json = json(&registry, "a");
    assert_eq!(json["future"], serde_json::json!({"n": [1, 2.5, null]}));
    assert_eq!(
        (json["note"].as_str(), json["expiry"].as_str()),
        (Some("keep"), Some(expiry))
    );
    assert_eq!(registry.get(&name("stray")).unwrap(), None);
}

#[test]
fn damaged_records_are_named_and_hide_nobody() {
    let (_dir, registry) = registry();
    for good in ["c", "a", "b"] {
        add(&registry, good);
    }
    raw(&registry, "cut", r#"{"hostname":"cu"#);
    raw(&registry, "empty", "");
    raw(&registry, "list", "[]");
    std::fs::create_dir(registry.path_of(&name("dir"))).unwrap();
    std::fs::write(registry.dir().join("bad name.json"), "{}").unwrap();
    for ignored in [".a.json.0123.tmp", ".hidden.json", "notes.txt"] {
        std::fs::write(registry.dir().join(ignored), "x").unwrap();
    }
    let listing = registry.list().unwrap();
    let names: Vec<_> = listing.agents.iter().map(|r| r.name.as_str()).collect();
    assert_eq!(names, ["a", "b", "c"]);
    let told: Vec<_> = listing.unreadable.iter().map(ToString::to_string).collect();
    assert_eq!(told.len(), 5, "{told:?}");
    for file in [
        "cut.json",
        "empty.json",
        "list.json",
        "dir.json",
        "bad name.json",
    ] {
        assert!(told.iter().any(|t| t.contains(file)), "{file}: {told:?}");
    }
    assert!(registry.get(&name("cut")).is_err());
    assert!(registry.update(&name("cut"), |_| {}).is_err());
}

#[test]
fn no_directory_is_no_agent() {
    let (_dir, registry) = registry();
    assert!(registry.list().unwrap().agents.is_empty());
    assert_eq!(registry.get(&name("a")).unwrap(), None);
    let missing = |result| matches!(result, Err(RegistryError::Missing { .. }));
    assert!(missing(registry.update(&name("a"), |_| {})));
    assert!(missing(registry.remove(&name("a"))));
    assert!(missing(registry.rename(&name("a"), &name("b"))));
    assert!(!registry.dir().exists());
}

#[test]
fn many_records_change_under_one_lock() {
    let dir = tempfile::tempdir().unwrap();
    let registry = Registry::new(dir.path());
    let names: Vec<AgentName> = ["a", "b", "c"]
        .iter()
        .map(|n| AgentName::new(n).unwrap())
        .collect();
    for name in &names[..2] {
        registry
            .register(AgentRecord::new(name.clone()), false)
            .unwrap();
    }
    std::fs::write(registry.path_of(&names[2]), "damaged").unwrap();
    let absent = AgentName::new("absent").unwrap();
    let all = names.iter().cloned().chain([absent.clone()]);
    let set = |record: &mut AgentRecord| record.version = Some("1".to_owned());
    assert_eq!(registry.update_many(all.clone(), set).unwrap(), 2);
    assert_eq!(registry.update_many(all, set).unwrap(), 0, "unchanged");
    let read = registry.get(&names[1]).unwrap().unwrap();
    assert_eq!(read.version.as_deref(), Some("1"));
    assert!(!registry.path_of(&absent).exists());
}

#[test]
fn an_update_brings_nobody_back_to_life() {
    let (_dir, registry) = registry();
    add(&registry, "a");
    assert_eq!(registry.remove(&name("a")).unwrap().hostname, "a");
    let error = registry.update(&name("a"), |r| r.ip = "x".to_owned());
    assert!(matches!(error, Err(RegistryError::Missing { .. })));
    assert!(!registry.path_of(&name("a")).exists());
    assert!(matches!(
        registry.remove(&name("a")),
        Err(RegistryError::Missing { .. })
    ));
}

#[test]
fn a_taken_name_needs_replacement_which_keeps_tags_and_unknown_fields() {
    let (_dir, registry) = registry();
    raw(
        &registry,
        "a",
        r#"{"ip":"10.0.0.1","paired":"2026-01-02T03:04:05Z","tags":{"env":"prod"},"x":1,"peer_check":"off"}"#,
    );
    let mut new = AgentRecord::new(name("a"));
    new.ip = "10.0.0.2".to_owned();
    let error = registry
        .register(new.clone(), false)
        .unwrap_err()
        .to_string();
    for part in ["'a'", "2026-01-02T03:04:05Z", "10.0.0.1"] {
        assert!(error.contains(part), "{error}");
    }
    registry.register(new, true).unwrap();
    let json = json(&registry, "a");
    assert_eq!(
        (json["ip"].as_str(), json["paired"].as_str()),
        (Some("10.0.0.2"), Some(""))
    );
    assert_eq!(
        (json["tags"]["env"].as_str(), json["x"].as_i64()),
        (Some("prod"), Some(1))
    );
    assert_eq!(json.get("peer_check"), None);
}

#[test]
fn a_damaged_record_can_be_replaced_and_removed() {
    let (_dir, registry) = registry();
    raw(&registry, "a", "{");
    let record = AgentRecord::new(name("a"));
    assert!(matches!(
        registry.register(record.clone(), false),
        Err(RegistryError::Exists { .. })
    ));
    registry.register(record, true).unwrap();
    raw(&registry, "a", "{");
    registry.remove(&name("a")).unwrap();
    assert_eq!(registry.get(&name("a")).unwrap(), None);
}

#[test]
fn a_renamed_agent_remembers_the_name_in_its_certificate() {
    let (_dir, registry) = registry();
    add(&registry, "a");
    add(&registry, "taken");
    assert!(matches!(
        registry.rename(&name("a"), &name("taken")),
        Err(RegistryError::Exists { .. })
    ));
    assert_eq!(
        registry.rename(&name("a"), &name("a")).unwrap().cert_cn,
        None
    );
    registry.rename(&name("a"), &name("b")).unwrap();
    let record = registry.rename(&name("b"), &name("c")).unwrap();
    assert_eq!((record.hostname.as_str(), record.expected_cn()), ("c", "a"));
    assert_eq!(registry.get(&name("c")).unwrap(), Some(record));
    assert_eq!(registry.get(&name("a")).unwrap(), None);
    assert_eq!(registry.get(&name("b")).unwrap(), None);
}

#[test]
fn without_the_lock_nothing_is_written() {
    let (_dir, registry) = registry();
    add(&registry, "a");
    let lock = registry.dir().join(".registry.lock");
    std::fs::remove_file(&lock).unwrap();
    std::fs::create_dir(&lock).unwrap();
    let result = registry.update(&name("a"), |r| r.ip = "x".to_owned());
    assert!(matches!(result, Err(RegistryError::Write(_))));
    assert_eq!(registry.get(&name("a")).unwrap().unwrap().ip, "");
}

#[test]
fn updates_at_the_same_time_lose_nothing() {
    let (_dir, registry) = registry();
    add(&registry, "shared");
    std::thread::scope(|scope| {
        for writer in 0..8 {
            let registry = &registry;
            scope.spawn(move || {
                add(registry, &format!("own{writer}"));
                for n in 0..6 {
                    let tag = format!("w{writer}-{n}");
                    let change = |r: &mut AgentRecord| {
                        r.tags.insert(tag, "x".to_owned());
                    };
                    registry.update(&name("shared"), change).unwrap();
                    // Readers see a whole record at any time.
                    assert!(registry.list().unwrap().unreadable.is_empty());
                }
            });
        }
    });
    let shared = registry.get(&name("shared")).unwrap().unwrap();
    assert_eq!(shared.tags.len(), 48);
    assert_eq!(registry.list().unwrap().agents.len(), 9);
}

fn any_json() -> impl Strategy<Value = serde_json::Value> {
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<i64>().prop_map(Into::into),
        ".{0,12}".prop_map(Into::into),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Into::into),
            proptest::collection::btree_map("[a-z_]{0,6}", inner, 0..4)
                .prop_map(|m| serde_json::Value::Object(m.into_iter().collect())),
        ]
    })
}

const FIELDS: [&str; 16] = [
    "hostname",
    "ip",
    "paired",
    "expiry",
    "reqid",
    "lookup_by",
    "port",
    "tags",
    "dispatcher_serial",
    "serial_status",
    "serial_broadcast",
    "serial_confirmed",
    "cert_cn",
    "cert_serial",
    "cert_spki",
    "peer_check",
];

proptest! {
    #[test]
    fn any_object_loads_and_then_round_trips(
        known in proptest::collection::btree_map(proptest::sample::select(FIELDS.to_vec()), any_json(), 0..16),
        unknown in proptest::collection::btree_map("x_[a-z]{0,6}", any_json(), 0..4),
    ) {
        let mut map = serde_json::Map::new();
        map.extend(known.into_iter().map(|(k, v)| (k.to_owned(), v)));
        map.extend(unknown.clone());
        let bytes = serde_json::to_vec(&map).unwrap();
        let record = AgentRecord::parse(&name("a"), &bytes).unwrap();
        let again = AgentRecord::parse(&name("a"), &record.to_bytes()).unwrap();
        prop_assert_eq!(&again, &record);
        let written = record.to_map();
        for (key, value) in &unknown {
            prop_assert_eq!(&written[key], value);
        }
        prop_assert!(FIELDS[..12].iter().all(|f| written.contains_key(*f)));
    }

    #[test]
    fn no_bytes_upset_the_reader(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
        let _ = AgentRecord::parse(&name("a"), &bytes);
    }

    #[test]
    fn no_text_upsets_the_splitter(text in ".{0,20}") {
        if let Some(parts) = split_host_port(&text) {
            prop_assert!(text.contains(parts.host));
        }
    }
}
