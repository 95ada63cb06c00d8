//! Pairing once more, with the same dispatcher, a second one, one of another fleet; and where the files go.

use std::os::unix::fs::MetadataExt as _;

use crate::common::fleet::{self, new_agent, write_agent_toml};
use crate::common::openssl::{key_matches, serial_of};
use crate::common::process;
use crate::common::tls::{Client, TLS13};
use crate::common::{Agent, Host, PATIENCE, free_port, is_root, wait_until};
use crate::kit::{
    CA, CERT, Hall, KEY, MAP, ask_now, assert_unpaired, configure, fails, map_of, pairing_of,
    record_path, succeeds,
};

/// A second dispatcher host of the fleet of the first: the same CA, an identity of its own.
#[track_caller]
fn sister(of: &Host, name: &str) -> Host {
    let host = Host::new(name);
    for (file, mode) in [("ca.crt", 0o644), ("ca.key", 0o600), ("ca.serial", 0o600)] {
        let path = format!("etc/ctrl-exec/{file}");
        host.write(&path, of.read(&path), mode);
    }
    host.set_mode("etc/ctrl-exec", 0o755);
    host.ced(&["setup-ctrl-exec"]).ok();
    configure(&host, "pairing_rate_limit_disable = true\n");
    host
}

#[test]
fn a_name_that_is_taken_needs_a_word() {
    let hall = Hall::open();
    let agent = new_agent("web01.test", free_port());
    hall.pair(&agent, &["--lookup-by", "ip"]);
    let before = (
        pairing_of(&agent),
        hall.host.json(&record_path("web01.test")),
    );

    let (mut request, id) = hall.ask_and_queue(&agent, &["--lookup-by", "ip"]);
    let said = hall.host.ced(&["approve", &id]).expect_code(1).err();
    for text in [
        "web01.test",
        "--replace",
        before.1["paired"].as_str().expect("a time"),
    ] {
        assert!(said.contains(text), "{text}: {said}");
    }
    assert_eq!(hall.host.json(&record_path("web01.test")), before.1);
    assert_eq!(pairing_of(&agent), before.0);
    assert!(request.is_running());
    hall.host.ced(&["approve", &id, "--replace"]).ok();
    succeeds(&mut request);
    let after = hall.host.json(&record_path("web01.test"));
    assert_eq!(after["reqid"], id.as_str());
    assert_ne!(after["cert_serial"], before.1["cert_serial"]);
    let now = pairing_of(&agent);
    assert!(
        now[CERT] != before.0[CERT] && now[KEY] != before.0[KEY],
        "always a new key"
    );
    assert!(now[CA] == before.0[CA] && now[MAP] == before.0[MAP]);
    assert!(key_matches(&agent.path(CERT), &agent.path(KEY)));

    // A re-pairing that is denied costs nothing.
    let (mut request, id) = hall.ask_and_queue(&agent, &[]);
    hall.host.ced(&["deny", &id]).ok();
    fails(&mut request);
    assert_eq!(pairing_of(&agent), now);
    assert_eq!(hall.host.json(&record_path("web01.test")), after);
    let _agent = Agent::start(&agent);
    hall.host.ced(&["run", "web01.test", "hello"]).ok();
}

#[test]
fn dispatchers_of_one_fleet_are_added_to_the_map() {
    let first = Hall::open();
    let second = Hall::of(sister(&first.host, "two.test"), &[]);
    let agent = new_agent("web01.test", free_port());
    first.pair(&agent, &["--lookup-by", "ip"]);
    // Somebody else's line, as a rotation or a hand may have left it.
    let text = agent.read(MAP);
    agent.write(MAP, format!("{text}abcdef0123456789 elsewhere\n"), 0o644);
    let served = Agent::start(&agent);
    first.host.ced(&["run", "web01.test", "hello"]).ok();
    let shown = || {
        Client::connect(served.address(), Some(&leaf_of(&first.host)), TLS13)
            .expect("let in")
            .peer_certificate()
    };
    let old = shown();

    second.pair(&agent, &["--lookup-by", "ip"]);
    let serial = |hall: &Hall| serial_of(&hall.host.path("etc/ctrl-exec/dispatcher.crt"));
    let mut expected = vec![
        (serial(&first), "ctl".to_owned()),
        (serial(&second), "two".to_owned()),
        ("abcdef0123456789".to_owned(), "elsewhere".to_owned()),
    ];
    expected.sort();
    let mut found = map_of(&agent);
    found.sort();
    assert_eq!(found, expected);
    // The CA that it has vouches for the second one.
    agent.wait_for_log(&["ACTION=pair-complete", "DISPATCHER=two", "VOUCHED=key"]);

    // The running agent takes it up when told.
    served.hup();
    wait_until("the new certificate is served", PATIENCE, || {
        (shown() != old).then_some(())
    });
    for hall in [&first, &second] {
        hall.host.ced(&["run", "web01.test", "hello"]).ok();
    }
    agent.cea(&["self-ping"]).ok().out_has("OK");
}

fn leaf_of(dispatcher: &Host) -> crate::common::openssl::Leaf {
    crate::common::openssl::Leaf {
        cert: dispatcher.path("etc/ctrl-exec/dispatcher.crt"),
        key: dispatcher.path("etc/ctrl-exec/dispatcher.key"),
        cn: "ctrl-exec-dispatcher".to_owned(),
    }
}

#[test]
fn another_fleet_is_refused_unless_it_is_meant() {
    let ours = Hall::open();
    let theirs = Hall::open();
    let agent = new_agent("web01.test", free_port());
    ours.pair(&agent, &[]);
    let before = pairing_of(&agent);
    let run = ask_now(&agent, theirs.port, &[]).expect_code(1);
    assert!(
        run.err().contains("--replace-ca") && run.err().contains("Pairing failed"),
        "{}",
        run.err()
    );
    assert_eq!(pairing_of(&agent), before);
    assert!(
        fleet::requests(&theirs.host).is_empty() && theirs.host.log_of("pair-request").is_empty(),
        "it was asked"
    );

    let (mut request, id) = theirs.ask_and_queue(&agent, &["--replace-ca"]);
    theirs.host.ced(&["approve", &id]).ok();
    succeeds(&mut request);
    assert_eq!(agent.read(CA), theirs.host.read("etc/ctrl-exec/ca.crt"));
    assert!(key_matches(&agent.path(CERT), &agent.path(KEY)));
    // Whoever was trusted for the other CA is not any more.
    assert_eq!(map_of(&agent).len(), 1, "{:?}", map_of(&agent));
    assert_eq!(
        map_of(&agent)[0].0,
        serial_of(&theirs.host.path("etc/ctrl-exec/dispatcher.crt"))
    );
    let _agent = Agent::start(&agent);
    ours.host
        .ced(&["edit-agent", "web01.test", "--lookup-by", "ip"])
        .ok();
    theirs
        .host
        .ced(&["edit-agent", "web01.test", "--lookup-by", "ip"])
        .ok();
    theirs.host.ced(&["run", "web01.test", "hello"]).ok();
    assert_ne!(ours.host.ced(&["run", "web01.test", "hello"]).code(), 0);
}

#[test]
fn a_damaged_ca_file_is_not_replaced_without_a_word() {
    let hall = Hall::open();
    let agent = new_agent("web01.test", free_port());
    agent.write(CA, "damaged\n", 0o644);
    ask_now(&agent, hall.port, &[])
        .expect_code(1)
        .err_has("--replace-ca");
    assert_eq!(agent.read(CA), "damaged\n");
    hall.pair(&agent, &["--replace-ca"]);
    agent.cea(&["pairing-status"]).ok();
}

#[test]
fn the_files_go_where_the_configuration_says() {
    let hall = Hall::open();
    let port = free_port();
    let agent = new_agent("web01.test", port);
    let paths = [
        ("cert", "etc/elsewhere/own.crt", 0o640),
        ("key", "etc/secret/own.key", 0o640),
        ("ca", "etc/elsewhere/root.crt", 0o644),
        ("trusted_dispatchers_path", "srv/state/trusted", 0o644),
    ];
    let lines: String = paths
        .iter()
        .map(|(key, path, _)| format!("{key} = \"/{path}\"\n"))
        .collect();
    write_agent_toml(&agent, port, &format!("rate_limit_disable = true\n{lines}"));
    agent.cea(&["paired"]).expect_code(1);
    hall.pair(&agent, &["--lookup-by", "ip"]);
    for (key, path, mode) in paths {
        assert_eq!(agent.mode(path), mode, "{key}");
    }
    for (path, content) in pairing_of(&agent) {
        assert!(content.is_none(), "{path} was written all the same");
    }
    agent.cea(&["paired"]).ok();
    agent.cea(&["pairing-status"]).ok();
    let _agent = Agent::start(&agent);
    hall.host.ced(&["run", "web01.test", "hello"]).ok();
    agent.cea(&["self-ping"]).ok().out_has("OK");

    // Another file of the configuration, named on the command line.
    let other = agent.write("etc/other.toml", format!("port = {port}\ncert = \"/etc/third/own.crt\"\nkey = \"/etc/third/own.key\"\nca = \"/etc/third/ca.crt\"\n"), 0o640);
    hall.pair(&agent, &["--config", other.to_str().expect("text")]);
    assert!(agent.exists("etc/third/own.crt") && agent.exists("etc/third/own.key"));
}

#[test]
fn an_agent_without_its_group_is_told() {
    let hall = Hall::open();
    let agent = new_agent("web01.test", free_port());
    let (mut request, id) = hall.ask_and_queue(&agent, &[]);
    hall.host.ced(&["approve", &id]).ok();
    succeeds(&mut request);
    let entry =
        process::run(std::process::Command::new("getent").args(["group", "ctrl-exec-agent"])).out();
    let group = entry
        .split(':')
        .nth(2)
        .and_then(|gid| gid.parse::<u32>().ok());
    let warned = request
        .err()
        .contains("group 'ctrl-exec-agent' does not exist");
    assert_eq!(warned, is_root() && group.is_none(), "{}", request.err());
    for path in [CERT, KEY, CA] {
        let file = std::fs::metadata(agent.path(path)).expect("stored");
        assert_eq!(file.uid(), rustix::process::geteuid().as_raw(), "{path}");
        if let Some(group) = group.filter(|_| is_root()) {
            assert_eq!(file.gid(), group, "{path}");
        }
    }
    agent.cea(&["pairing-status"]).ok();
}

#[test]
fn an_agent_that_may_not_write_asks_nobody() {
    let hall = Hall::open();
    let agent = new_agent("web01.test", free_port());
    // Where a directory should be, there is a file.
    agent.write("etc/blocked", "", 0o644);
    write_agent_toml(&agent, 7443, "cert = \"/etc/blocked/agent.crt\"\n");
    let run = ask_now(&agent, hall.port, &[]).expect_code(1);
    assert!(run.err().contains("etc/blocked"), "{}", run.err());
    assert!(hall.host.log_of("pair-request").is_empty());
    assert_unpaired(&agent);
}

#[test]
fn before_and_after_the_first_pairing() {
    let hall = Hall::open();
    let agent = new_agent("web01.test", free_port());
    agent
        .cea(&["serve"])
        .expect_code(78)
        .err_has("request-pairing")
        .err_has("agent.crt");
    agent
        .cea(&["pairing-status"])
        .expect_code(1)
        .out_has("Not paired. Reason: missing file: ");
    let quiet = agent.cea(&["paired"]).expect_code(1);
    assert!(
        quiet.out().is_empty() && quiet.err().is_empty(),
        "{quiet:?}"
    );

    hall.pair(&agent, &["--lookup-by", "ip"]);
    let _agent = Agent::start(&agent);
    agent.cea(&["self-ping"]).ok().out_has("OK");
    hall.host.ced(&["run", "web01.test", "hello"]).ok();
    let quiet = agent.cea(&["paired"]).ok();
    assert!(
        quiet.out().is_empty() && quiet.err().is_empty(),
        "{quiet:?}"
    );
}

#[test]
fn a_dispatcher_that_is_not_in_pairing_mode() {
    let agent = new_agent("web01.test", free_port());
    let port = free_port();
    let run = ask_now(&agent, port, &[]).expect_code(1);
    assert!(
        run.err().contains(&format!("'127.0.0.1' port {port}"))
            && run.err().contains("pairing mode"),
        "{}",
        run.err()
    );
    // Another service has the port.
    let other = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    let port = other.local_addr().expect("bound").port();
    let talk = std::thread::spawn(move || {
        let (mut stream, _) = other.accept()?;
        std::io::Write::write_all(&mut stream, b"SSH-2.0-OpenSSH_9.2\r\n")
    });
    ask_now(&agent, port, &[])
        .expect_code(1)
        .err_has("not a pairing listener");
    let _ = talk.join();
    // A name that nobody has.
    agent
        .cea(&["request-pairing", "--dispatcher", "no-such-host.invalid"])
        .expect_code(1)
        .err_has("cannot be resolved");
    for (bad, text) in [
        (&["request-pairing"][..], "--dispatcher"),
        (
            &["request-pairing", "--dispatcher", "x", "--lookup-by", "dns"],
            "--lookup-by",
        ),
        (
            &["request-pairing", "--dispatcher", "x", "--port", "0"],
            "--port",
        ),
        (
            &[
                "request-pairing",
                "--dispatcher",
                "x",
                "--dispatcher-fingerprint",
                "12",
            ],
            "--dispatcher-fingerprint",
        ),
    ] {
        agent.cea(bad).expect_code(64).err_has(text);
    }
    assert_unpaired(&agent);
}
