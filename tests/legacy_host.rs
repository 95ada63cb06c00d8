//! A host that was set up by release 0.12.3 - `.conf` files, RSA, X.509 version 1, its registry and trust map - serves and dispatches
//! with this binary as it stands (spec/agent.md 3, 4, 13; spec/dispatcher.md 2, 4, 12, 14).

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::fleet::{
    legacy_agent, legacy_dispatcher, legacy_map, legacy_record, register, start_pairing,
};
use common::openssl::{self, Authority, Dates, expiry_of, openssl, serial_of, text_of};
use common::tls::{self, TLS12, TLS13};
use common::{Agent, Legacy, Paired, free_port, python};
use serde_json::Value;

/// Every regular file below a directory with its bytes and mode.
fn files(dir: &Path) -> BTreeMap<PathBuf, (Vec<u8>, u32)> {
    use std::os::unix::fs::PermissionsExt as _;
    let mut found = BTreeMap::new();
    let mut open = vec![dir.to_owned()];
    while let Some(dir) = open.pop() {
        for entry in std::fs::read_dir(&dir).expect("a directory") {
            let entry = entry.expect("an entry");
            let kind = entry.file_type().expect("a type");
            if kind.is_dir() {
                open.push(entry.path());
            } else if kind.is_file() {
                let mode = entry.metadata().expect("metadata").permissions().mode();
                found.insert(
                    entry.path(),
                    (std::fs::read(entry.path()).expect("readable"), mode),
                );
            }
        }
    }
    found
}

#[test]
fn the_fixtures_are_what_the_original_leaves() {
    let fleet = Legacy::new(&["web01.test"]);
    let text = text_of(&fleet.agent_leaves[0].cert);
    assert!(
        text.contains("Version: 1 (0x0)") && text.contains("Issuer: CN = ctrl-exec CA"),
        "{text}"
    );
    assert!(!text.contains("X509v3"), "{text}");
    assert_eq!(fleet.agent_leaves[0].serial(), "3");
    assert!(
        fleet
            .dispatcher
            .read("etc/ctrl-exec/dispatcher.key")
            .starts_with("-----BEGIN PRIVATE KEY-----")
    );
}

#[test]
fn it_serves_and_dispatches_without_any_change() {
    let fleet = Legacy::new(&["web01.test", "db01.test"]);
    let before: Vec<_> = fleet
        .agents
        .iter()
        .map(|h| (files(&h.path("etc")), files(&h.path("var"))))
        .collect();
    let dispatcher_before = files(&fleet.dispatcher.path("etc"));

    for host in &fleet.agents {
        host.cea(&["paired"]).ok();
        host.cea(&["pairing-status"])
            .ok()
            .out_has("Paired. Certificate expires: ");
        host.cea(&["self-check"]).ok();
    }
    let _agents = fleet.start();
    let ping = fleet
        .ced(&["ping", "--json", "web01.test", "db01.test"])
        .ok()
        .json();
    for (index, name) in ["web01.test", "db01.test"].iter().enumerate() {
        let host = &ping["results"][index];
        assert_eq!(
            (host["host"].as_str(), host["status"].as_str()),
            (Some(*name), Some("ok")),
            "{ping}"
        );
        assert_eq!(host["expiry"], fleet.agent_leaves[index].expiry());
        assert_eq!(host["staged"], false);
    }
    let run = fleet
        .ced(&["run", "web01.test", "db01.test", "hello", "--", "a b", "c"])
        .ok();
    assert_eq!(
        run.out().matches(": [a b] [c]\n").count(),
        2,
        "{}",
        run.out()
    );
    fleet
        .ced(&["run", "web01.test", "fail"])
        .expect_code(1)
        .out_has("exit:42");
    fleet.agents[0].wait_for_log(&["ACTION=run", "DISPATCHER=ctl", "SCRIPT=hello", "EXIT=0"]);
    fleet.agents[0].cea(&["self-ping"]).ok();

    let listed = fleet.ced(&["list-agents", "--json"]).ok().json();
    assert_eq!(listed.as_array().map(Vec::len), Some(2));
    // The twelve fields stand as they were; beside them stands what the contact has shown, which the original keeps and does not read.
    let mut shown = listed[1].as_object().unwrap().clone();
    let learnt: Vec<String> = [
        "cert_ca",
        "cert_serial",
        "cert_spki",
        "trusted_cas",
        "version",
    ]
    .iter()
    .filter(|field| shown.remove(**field).is_some())
    .map(|field| (*field).to_owned())
    .collect();
    assert_eq!(learnt.len(), 5, "{listed}");
    assert_eq!(
        Value::Object(shown),
        legacy_record("web01.test", fleet.ports[0], &fleet.agent_leaves[0], "2"),
        "the twelve fields, no more"
    );
    let table = fleet.ced(&["list-agents"]).ok().out();
    assert!(
        table.starts_with("HOSTNAME") && table.contains(" GMT  82"),
        "{table}"
    );

    // Nothing was rewritten by looking at it.
    for (host, (etc, var)) in fleet.agents.iter().zip(&before) {
        assert_eq!(&files(&host.path("etc")), etc);
        assert_eq!(&files(&host.path("var")), var);
    }
    assert_eq!(files(&fleet.dispatcher.path("etc")), dispatcher_before);
    assert_eq!(records(&fleet), ["db01.test.json", "web01.test.json"]);
}

/// Names of the files in the registry that hold a record.
fn records(fleet: &Legacy) -> Vec<String> {
    let all = files(&fleet.dispatcher.path("var/lib/ctrl-exec/agents"));
    all.keys()
        .filter_map(|path| path.file_name()?.to_str())
        .filter(|name| name.ends_with(".json"))
        .map(str::to_owned)
        .collect()
}

#[test]
fn digits_only_serials_match_as_the_original_stored_them_and_collide_no_more() {
    let authority = Authority::shared();
    // The dispatcher's serial in its certificate (hex), the text in the map, and whether that dispatcher may come in. Stored texts are
    // what one pass (sent by the dispatcher) or two passes (stored again) of the original's canonicaliser make of the serial.
    let rows = [
        ("02", "2", true),
        ("0A", "a", true),
        ("10", "a", true),
        ("12", "c", true),
        ("20", "14", true),
        ("16", "10", true),
        ("1A", "1a", true),
        ("64", "40", true),
        ("DEADBEEF01", "deadbeef01", true),
        // As we store it: true hex.
        ("16", "16", true),
        ("10", "10", true),
        // Two passes: this dispatcher was locked out by the original as well, and the text is another's serial.
        ("16", "a", false),
        ("20", "e", false),
        ("0B", "a", false),
        ("10", "16", false),
    ];
    let port = free_port();
    let leaf = authority.issue("web01.test", "03", Dates::Days(825));
    let key = authority
        .issue("ctrl-exec-dispatcher", "02", Dates::Days(825))
        .key;
    let host = legacy_agent("web01.test", authority, &leaf, port, &legacy_map(&[]));
    let agent = Agent::start(&host);
    for (reloads, (serial, row, admitted)) in (1..).zip(rows) {
        host.write(
            "var/lib/ctrl-exec-agent/ctrl-exec-dispatchers",
            legacy_map(&[(row, "ctl")]),
            0o644,
        );
        agent.hup();
        common::wait_until("the reload", common::PATIENCE, || {
            (host.log_of("config-reload").len() == reloads).then_some(())
        });
        for (cn, expected) in [
            ("ctrl-exec-dispatcher", admitted),
            ("ctrl-exec", admitted),
            ("web09.test", false),
        ] {
            let caller = authority.issue_for(&key, cn, serial, Dates::Days(10));
            let reply = tls::request(agent.address(), Some(&caller), "POST", "/ping", b"{}")
                .expect("an answer");
            assert_eq!(
                reply.status == 200,
                expected,
                "{cn} with serial {serial} against the row '{row}': {}",
                reply.status
            );
            if !expected {
                assert_eq!(reply.json()["error"], "serial mismatch");
            }
        }
    }
}

#[test]
fn the_trust_map_is_read_with_all_its_liberties() {
    let authority = Authority::shared();
    let leaf = authority.issue("web01.test", "03", Dates::Days(825));
    let caller = authority.issue("ctrl-exec-dispatcher", "ABCDEF", Dates::Days(10));
    let other = authority.issue("ctrl-exec-dispatcher", "0ABCDE", Dates::Days(10));
    let map = "# head\n\n   \n\tAB:CD:EF   second-id # who\nnonsense\n00abcde first\r\n12 bad id\n13 -bad\n14 a/b\n15\nabcdef ctl\n";
    let host = legacy_agent("web01.test", authority, &leaf, free_port(), map);
    let agent = Agent::start(&host);
    for (leaf, id) in [(&caller, "ctl"), (&other, "first")] {
        let reply =
            tls::request(agent.address(), Some(leaf), "POST", "/ping", b"{}").expect("an answer");
        assert_eq!(reply.status, 200, "{id}");
        // The last of several rows wins.
        host.wait_for_log(&["ACTION=ping", &format!("DISPATCHER={id}")]);
    }
    for serial in ["12", "13", "14", "15"] {
        let caller =
            authority.issue_for(&caller.key, "ctrl-exec-dispatcher", serial, Dates::Days(10));
        let reply = tls::request(agent.address(), Some(&caller), "POST", "/ping", b"{}")
            .expect("an answer");
        assert_eq!(reply.status, 403, "{serial}");
    }
}

#[test]
fn revocation_entries_mean_what_the_operator_may_have_meant() {
    let authority = Authority::shared();
    let leaf = authority.issue("web01.test", "03", Dates::Days(825));
    let key = authority
        .issue("ctrl-exec-dispatcher", "02", Dates::Days(10))
        .key;
    let rows = [
        ("12", "ctl"),
        ("c", "c"),
        ("abcd12", "x"),
        ("77aa", "y"),
        ("deadbeef", "z"),
    ];
    let host = legacy_agent(
        "web01.test",
        authority,
        &leaf,
        free_port(),
        &legacy_map(&rows),
    );
    // Ambiguous digits revoke both readings; anything clear revokes one.
    host.write(
        "etc/ctrl-exec-agent/revoked-serials",
        "# list\n12\n  AB:CD:12 # stolen\n0x77AA\nserial=DEADBEEF\njunk!\n",
        0o644,
    );
    let agent = Agent::start(&host);
    for (serial, revoked) in [
        ("12", true),
        ("0C", true),
        ("ABCD12", true),
        ("77AA", true),
        ("DEADBEEF", true),
        ("02", false),
    ] {
        let caller = authority.issue_for(&key, "ctrl-exec-dispatcher", serial, Dates::Days(10));
        let reply = tls::request(agent.address(), Some(&caller), "POST", "/ping", b"{}")
            .expect("an answer");
        assert_eq!(reply.status, 403, "{serial}");
        let expected = if revoked {
            "certificate revoked"
        } else {
            "serial mismatch"
        };
        assert_eq!(reply.json()["error"], expected, "{serial}");
    }
}

#[test]
fn both_tls_versions_work_in_both_directions() {
    let fleet = Legacy::new(&["web01.test"]);
    let agent = Agent::start(&fleet.agents[0]);
    let port = agent.port().to_string();
    let ca = fleet.dispatcher.path("etc/ctrl-exec/ca.crt");
    let leaf = &fleet.dispatcher_leaf;
    for version in ["1.2", "1.3"] {
        // OpenSSL as the dispatcher, as libwww-perl speaks.
        let body = r#"{"script":"hello","args":["x"],"reqid":"0123456789abcdef","username":"u","token":""}"#;
        let args = [
            "call",
            &port,
            version,
            python::text(&leaf.cert),
            python::text(&leaf.key),
            python::text(&ca),
            "POST",
            "/run",
            body,
        ];
        let answer = python::run(&fleet.dispatcher, python::LEGACY_DISPATCHER, &args)
            .ok()
            .json();
        let line = answer["status_line"].as_str().expect("a status line");
        assert!(
            line.starts_with("HTTP/1.") && line.ends_with(" 200 OK"),
            "{answer}"
        );
        let result: Value =
            serde_json::from_str(answer["body"].as_str().expect("a body")).expect("JSON");
        assert_eq!(
            (result["exit"].as_i64(), result["reqid"].as_str()),
            (Some(0), Some("0123456789abcdef"))
        );
        assert_eq!(
            result["stdout"].as_str().map(|s| s.ends_with(": [x]\n")),
            Some(true)
        );
    }
    for version in [TLS12, TLS13] {
        let mut client =
            tls::Client::connect(agent.address(), Some(leaf), version).expect("let in");
        let reply = client.request("POST", "/ping", b"{}").expect("an answer");
        assert_eq!(reply.status, 200);
    }
    // A cipher suite without forward secrecy or without AEAD, and TLS 1.1, are refused.
    for options in [
        &["-tls1_2", "-cipher", "AES128-SHA:@SECLEVEL=0"][..],
        &["-tls1_2", "-cipher", "ECDHE-RSA-AES128-SHA:@SECLEVEL=0"],
        &["-tls1_1", "-cipher", "ALL:@SECLEVEL=0"],
    ] {
        let connect = format!("127.0.0.1:{port}");
        let mut command = Command::new("openssl");
        command
            .args(["s_client", "-connect", &connect, "-cert"])
            .arg(&leaf.cert)
            .arg("-key")
            .arg(&leaf.key)
            .args(options);
        let run = common::process::run(&mut command);
        assert_ne!(run.code(), 0, "{options:?} was accepted: {}", run.out());
    }
}

#[test]
fn the_certificate_must_be_the_addressed_hosts_also_among_old_ones() {
    let fleet = Legacy::new(&["web01.test", "web02.test"]);
    let _agents = fleet.start();
    let mut record = legacy_record("web02.test", fleet.ports[0], &fleet.agent_leaves[1], "2");
    register(&fleet.dispatcher, &record);
    let answer = fleet
        .ced(&["run", "--json", "web02.test", "hello"])
        .expect_code(1)
        .json();
    let error = answer["results"][0]["error"].as_str().expect("an error");
    assert!(
        error.contains("web02.test") && error.contains("web01.test"),
        "{error}"
    );
    assert!(
        fleet.agents[0].log_of("run").is_empty(),
        "the request was sent to the wrong host"
    );
    // A dispatcher's certificate is nobody's agent.
    record["port"] = free_port().into();
    let imposter = legacy_agent(
        "web02.test",
        Authority::shared(),
        &fleet.dispatcher_leaf,
        u16::try_from(record["port"].as_u64().expect("number")).expect("a port"),
        &legacy_map(&[("2", "ctl")]),
    );
    let _imposter = Agent::start(&imposter);
    register(&fleet.dispatcher, &record);
    fleet
        .ced(&["run", "web02.test", "hello"])
        .expect_code(1)
        .out_has("belongs to a dispatcher, not to an agent");
}

#[test]
fn the_auth_hook_of_the_dispatcher_is_asked() {
    let fleet = Legacy::new(&["web01.test"]);
    let _agents = fleet.start();
    fleet.dispatcher.write(
        "etc/ctrl-exec/auth-hook",
        "#!/bin/sh\n[ \"$ENVEXEC_SCRIPT\" = hello ] || exit 3\n",
        0o755,
    );
    fleet.ced(&["run", "web01.test", "hello"]).ok();
    let denied = fleet.ced(&["run", "web01.test", "true"]).expect_code(1);
    assert_eq!(denied.err().trim(), "Denied: insufficient privilege");
    let denied = fleet
        .ced(&["run", "--json", "web01.test", "true"])
        .expect_code(1)
        .json();
    assert_eq!(
        denied,
        serde_json::json!({"ok": 0, "error": "insufficient privilege", "code": 3})
    );
    assert_eq!(fleet.agents[0].log_of("run").len(), 1);
    fleet
        .dispatcher
        .wait_for_log(&["ACTION=auth", "RESULT=deny", "AUTHACTION=run"]);
}

#[test]
fn keys_in_the_older_form_and_with_crlf_are_read() {
    let fleet = Legacy::new(&["web01.test"]);
    for host in [
        (&fleet.dispatcher, "etc/ctrl-exec/dispatcher", 0o600),
        (&fleet.agents[0], "etc/ctrl-exec-agent/agent", 0o640),
    ] {
        let (host, stem, mode) = host;
        let key = host.path(&format!("{stem}.key"));
        let traditional = openssl(&["rsa", "-in", key.to_str().expect("text"), "-traditional"]);
        assert!(
            traditional.starts_with("-----BEGIN RSA PRIVATE KEY-----"),
            "{traditional}"
        );
        host.write(
            &format!("{stem}.key"),
            traditional.replace('\n', "\r\n"),
            mode,
        );
        let cert = host.read(&format!("{stem}.crt"));
        // OpenSSL may leave its text form before the PEM.
        let text = text_of(&host.path(&format!("{stem}.crt")));
        host.write(
            &format!("{stem}.crt"),
            format!("{text}{}", cert.replace('\n', "\r\n")),
            0o644,
        );
    }
    let _agents = fleet.start();
    fleet.ced(&["run", "web01.test", "hello"]).ok();
}

#[test]
fn configuration_quirks_of_the_original_are_kept_and_warned_about() {
    let fleet = Legacy::new(&["web01.test"]);
    let mut conf = fleet
        .dispatcher
        .read("etc/ctrl-exec/ctrl-exec.conf")
        .replace('\n', "\r\n");
    conf.push_str("[section]\nread_timeout=5\nread_timeout = 7\nfuture_key = 1\n");
    fleet
        .dispatcher
        .write("etc/ctrl-exec/ctrl-exec.conf", conf, 0o640);
    let mut conf = fleet.agents[0].read("etc/ctrl-exec-agent/agent.conf");
    conf = format!("future_key = x\n{conf}\n[other]\nport = 1\n");
    fleet.agents[0].write(
        "etc/ctrl-exec-agent/agent.conf",
        conf.replace('\n', "\r\n"),
        0o640,
    );
    let mut scripts = fleet.agents[0].read("etc/ctrl-exec-agent/scripts.conf");
    scripts.push_str("relative = bin/x\ntwo = /a /b\nmalformed line\nnopath = profile=default\nafter = profile=default note=1 /bin/true\n");
    fleet.agents[0].write("etc/ctrl-exec-agent/scripts.conf", scripts, 0o640);
    let mut agent = Agent::start(&fleet.agents[0]);
    for text in [
        "future_key",
        "more than one path",
        "path must be absolute",
        "malformed",
        "no script path",
    ] {
        let said = agent.daemon().err();
        assert!(said.contains(text), "no warning with {text:?}:\n{said}");
    }
    fleet
        .ced(&["ping", "web01.test"])
        .ok()
        .err_has("future_key");
    fleet
        .ced(&["run", "web01.test", "two"])
        .expect_code(1)
        .out_has("script not permitted");
    // Outside script_dirs: listed, but not run.
    fleet
        .ced(&["run", "web01.test", "after"])
        .expect_code(1)
        .out_has("script not permitted");
}

#[test]
fn toml_wins_over_conf_and_says_so() {
    let fleet = Legacy::new(&["web01.test"]);
    let _agents = fleet.start();
    fleet.dispatcher.write(
        "etc/ctrl-exec/ctrl-exec.toml",
        "auth_hook = \"/etc/ctrl-exec/other-hook\"\n",
        0o640,
    );
    fleet
        .dispatcher
        .write("etc/ctrl-exec/other-hook", "#!/bin/sh\nexit 2\n", 0o755);
    fleet
        .ced(&["run", "web01.test", "hello"])
        .expect_code(1)
        .err_has("ctrl-exec.conf")
        .err_has("Denied: bad credentials");
}

#[test]
fn fail_open_spots_of_the_original_stop_the_start() {
    let authority = Authority::shared();
    let leaf = authority.issue("web01.test", "03", Dates::Days(825));
    for (change, complaint) in [
        (
            ("no_new_privileges = yes", "no_new_privileges = maybe"),
            "no_new_privileges",
        ),
        (
            ("no_new_privileges = yes", "caps = CAP_KILL # note"),
            "inline",
        ),
        (("no_new_privileges = yes", "run_as = 4294967296"), "run_as"),
        (
            ("[profile default]", "[profile other]"),
            "undefined profile",
        ),
        (
            ("[profile default]", "[profile]"),
            "Profile section needs a name",
        ),
        (
            ("[tags]", "allowed_ips = 10.0.0.0/33\n[tags]"),
            "allowed_ips",
        ),
        (("port = ", "port = x"), "port must be numeric"),
        (("cert = ", "#"), "Missing required config key 'cert'"),
        (("[tags]", "broken line\n[tags]"), "Malformed config line"),
    ] {
        let host = legacy_agent(
            "web01.test",
            authority,
            &leaf,
            free_port(),
            &legacy_map(&[]),
        );
        let conf = host.read("etc/ctrl-exec-agent/agent.conf");
        let changed = conf.replace(change.0, change.1);
        assert_ne!(conf, changed);
        host.write("etc/ctrl-exec-agent/agent.conf", changed, 0o640);
        let run = host
            .cea(&["serve"])
            .expect_code(78)
            .err_has("configuration error")
            .err_has(complaint);
        assert!(run.err().contains("agent.conf"), "{}", run.err());
        host.cea(&["self-check"]).expect_code(1);
    }
}

#[test]
fn a_new_agent_joins_the_old_ca() {
    let fleet = Legacy::new(&["web01.test"]);
    let _old = fleet.start();
    let new = Paired::with(fleet.dispatcher, &["new01.test"]);
    let _agent = Agent::start(&new.agents[0]);
    let run = new.ced(&["run", "web01.test", "new01.test", "hello"]).ok();
    assert_eq!(run.out().matches("[OK ").count(), 2, "{}", run.out());

    let cert = new.agents[0].path("etc/ctrl-exec-agent/agent.crt");
    let ca = new.dispatcher.path("etc/ctrl-exec/ca.crt");
    let text = text_of(&cert);
    assert!(text.contains("Version: 3"), "{text}");
    for purpose in ["sslserver", "sslclient"] {
        let (verified, said) = openssl::try_openssl(&[
            "verify",
            "-purpose",
            purpose,
            "-CAfile",
            ca.to_str().expect("text"),
            cert.to_str().expect("text"),
        ]);
        assert!(verified, "{said}");
    }
    let serial = serial_of(&cert);
    assert!(
        serial.len() >= 16 && serial.bytes().any(|b| b.is_ascii_alphabetic()),
        "{serial}"
    );
    // A Perl dispatcher could go on signing with this directory: the counter is a hex number and never lower than before.
    let counter = new.dispatcher.read("etc/ctrl-exec/ca.serial");
    let counter = counter.trim();
    assert!(
        counter.bytes().all(|b| b.is_ascii_hexdigit()) && counter.len().is_multiple_of(2),
        "{counter:?}"
    );
    assert!(
        u128::from_str_radix(counter, 16).expect("hex") >= 0x0F,
        "{counter}"
    );
    assert_eq!(new.dispatcher.mode("etc/ctrl-exec/ca.serial"), 0o600);

    // The record has all twelve fields as before, and the map carries the dispatcher's true serial.
    let record = new
        .dispatcher
        .json("var/lib/ctrl-exec/agents/new01.test.json");
    for field in [
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
    ] {
        assert!(record.get(field).is_some(), "{field} is missing: {record}");
    }
    assert_eq!(record["port"], new.ports[0]);
    assert_eq!(record["expiry"], expiry_of(&cert));
    assert_eq!(
        (
            record["dispatcher_serial"].as_str(),
            record["serial_status"].as_str()
        ),
        (Some("2"), Some("current"))
    );
    assert!(
        new.agents[0]
            .read("var/lib/ctrl-exec-agent/ctrl-exec-dispatchers")
            .lines()
            .any(|l| l.starts_with("2 "))
    );
}

#[test]
fn an_old_agent_is_paired_anew_in_place() {
    let fleet = Legacy::new(&["web01.test"]);
    let port = free_port();
    let _pairing = start_pairing(&fleet.dispatcher, port, &[]);
    // Its name is taken: replacing a registered host is never silent.
    let host = &fleet.agents[0];
    let port_text = port.to_string();
    let mut request = host.start(
        "cea",
        &[
            "request-pairing",
            "--dispatcher",
            "127.0.0.1",
            "--port",
            &port_text,
            "--lookup-by",
            "ip",
        ],
    );
    let waiting = common::fleet::wait_for_request(&fleet.dispatcher, "web01.test");
    let id = waiting["id"].as_str().expect("an id");
    fleet
        .ced(&["approve", id])
        .expect_code(1)
        .err_has("web01.test")
        .err_has("--replace");
    fleet.ced(&["approve", id, "--replace"]).ok();
    assert!(
        request.wait(common::PATIENCE).success(),
        "{}{}",
        request.out(),
        request.err()
    );
    // Other dispatchers in the map stay.
    let map = host.read("var/lib/ctrl-exec-agent/ctrl-exec-dispatchers");
    assert_eq!(
        map.lines().filter(|l| l.starts_with("2 ")).count(),
        1,
        "{map}"
    );
    let _agent = Agent::start(host);
    fleet.ced(&["run", "web01.test", "hello"]).ok();
}

#[test]
fn rsa_4096_everywhere_as_the_original_really_makes_them() {
    let authority = Authority::new("ctrl-exec CA", 4096);
    let (keys, cas) = (
        tempfile::tempdir().expect("a directory"),
        authority.path("ca.crt"),
    );
    let key = |name: &str| {
        let path = keys.path().join(name);
        openssl(&["genrsa", "-out", path.to_str().expect("text"), "4096"]);
        path
    };
    let dispatcher_leaf =
        authority.issue_for(&key("d"), "ctrl-exec-dispatcher", "02", Dates::Days(825));
    let agent_leaf = authority.issue_for(&key("a"), "web01.test", "03", Dates::Days(825));
    assert!(text_of(&cas).contains("4096 bit"));
    let dispatcher = legacy_dispatcher(&authority, &dispatcher_leaf);
    let port = free_port();
    let host = legacy_agent(
        "web01.test",
        &authority,
        &agent_leaf,
        port,
        &legacy_map(&[("2", "ctl")]),
    );
    register(
        &dispatcher,
        &legacy_record("web01.test", port, &agent_leaf, "2"),
    );
    let agent = Agent::start(&host);
    dispatcher.ced(&["run", "web01.test", "hello"]).ok();
    for version in [TLS12, TLS13] {
        let mut client =
            tls::Client::connect(agent.address(), Some(&dispatcher_leaf), version).expect("let in");
        assert_eq!(
            client
                .request("POST", "/ping", b"{}")
                .expect("an answer")
                .status,
            200
        );
    }
}
