//! Two hosts with a network between them: each in a network namespace of its own, joined by a virtual cable. The commands are those of
//! the README's ten-minute start.

mod common;

use std::process::Command;

use common::fleet::{allow, new_agent, new_dispatcher, wait_for_request};
use common::process::run;
use common::{Agent, Host, PATIENCE, root_or_skip};

/// What the agent asks before it takes what it got.
const QUESTION: &str = "Did the dispatcher show the code";

/// Two namespaces and the cable; gone when dropped.
struct Network {
    names: [String; 2],
}

impl Network {
    fn new() -> Self {
        let id = std::process::id();
        let names = [format!("ce-ctl-{id}"), format!("ce-web-{id}")];
        let network = Self { names };
        let [left, right] = &network.names;
        let (a, b) = (
            format!("cea{}", id % 100_000),
            format!("ceb{}", id % 100_000),
        );
        ip(&["netns", "add", left]);
        ip(&["netns", "add", right]);
        ip(&[
            "link", "add", &a, "netns", left, "type", "veth", "peer", "name", &b, "netns", right,
        ]);
        for (name, link, addresses) in [
            (left, &a, ["10.77.0.1/24", "fd77::1/64"]),
            (right, &b, ["10.77.0.2/24", "fd77::2/64"]),
        ] {
            for address in addresses {
                let v6 = address.contains(':');
                let words = ["-n", name, "address", "add", address, "dev", link];
                let nodad = ["-n", name, "address", "add", address, "dev", link, "nodad"];
                let added = run(Command::new("ip").args(if v6 { &nodad[..] } else { &words[..] }));
                assert!(added.code() == 0 || v6, "{}", added.err());
            }
            ip(&["-n", name, "link", "set", link, "up"]);
            ip(&["-n", name, "link", "set", "lo", "up"]);
        }
        network
    }

    fn enter(&self, host: &mut Host, side: usize) {
        host.set_prefix(&["ip", "netns", "exec", &self.names[side]]);
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for name in &self.names {
            let _ = Command::new("ip").args(["netns", "delete", name]).output();
        }
    }
}

#[track_caller]
fn ip(words: &[&str]) {
    run(Command::new("ip").args(words)).ok();
}

#[test]
fn two_hosts_pair_work_and_part() {
    if !root_or_skip("two_hosts_pair_work_and_part") {
        return;
    }
    let network = Network::new();
    let mut control = new_dispatcher("control.test");
    let mut web = new_agent("web01.test", 7443);
    network.enter(&mut control, 0);
    network.enter(&mut web, 1);

    // Nobody listens yet.
    let early = web
        .cea(&["request-pairing", "--dispatcher", "10.77.0.1"])
        .expect_code(1);
    assert!(
        early.err().contains("Pairing failed") && early.err().contains("pairing-mode"),
        "{}",
        early.err()
    );

    // Pair at two terminals, comparing the code on both screens.
    let mut pairing = control.start_at_terminal("ced", &["pairing-mode"]);
    control.wait_for_log(&["ACTION=pairing-mode-start", "PORT=7444"]);
    let words = [
        "request-pairing",
        "--dispatcher",
        "10.77.0.1",
        "--lookup-by",
        "ip",
    ];
    let mut request = web.start_at_terminal("cea", &words);
    request.wait_for_text("Pairing code: ");
    let said = request.out();
    let code = said
        .split("Pairing code: ")
        .nth(1)
        .and_then(|rest| rest.get(..6))
        .expect("six digits");
    assert!(code.bytes().all(|b| b.is_ascii_digit()), "{said}");
    assert!(said.contains("Kind of code: bound"), "{said}");
    pairing.wait_for_text(code);
    let waiting = wait_for_request(&control, "web01.test");
    assert_eq!(
        (waiting["source_ip"].as_str(), waiting["ip"].as_str()),
        (Some("10.77.0.2"), Some("10.77.0.2"))
    );
    pairing.type_line("a");
    request.wait_for_text(QUESTION);
    request.type_line("y");
    assert!(
        request.wait(PATIENCE).success(),
        "{}{}",
        request.out(),
        request.err()
    );
    pairing.type_line("q");
    assert!(
        pairing.wait(PATIENCE).success(),
        "{}{}",
        pairing.out(),
        pairing.err()
    );
    control
        .ced(&["list-agents"])
        .ok()
        .out_has("web01.test")
        .out_has("10.77.0.2");

    // Run and ping, over both families.
    let mut agent = Agent::start(&web);
    control.ced(&["ping", "--check", "web01.test"]).ok();
    control
        .ced(&["run", "web01.test", "hello", "--", "over", "the cable"])
        .ok()
        .out_has("[over] [the cable]");
    web.wait_for_log(&["ACTION=run", "PEER=10.77.0.1", "SCRIPT=hello"]);
    control
        .ced(&["edit-agent", "web01.test", "--ip", "fd77::2"])
        .ok();
    if run(Command::new("ip").args([
        "-n",
        &network.names[1],
        "-6",
        "address",
        "show",
        "scope",
        "global",
    ]))
    .out()
    .contains("fd77::2")
    {
        control.ced(&["run", "web01.test", "true"]).ok();
        web.wait_for_log(&["ACTION=run", "PEER=fd77::1"]);
    }
    control
        .ced(&["edit-agent", "web01.test", "--ip", "10.77.0.2"])
        .ok();

    // A new script takes a HUP.
    control
        .ced(&["run", "web01.test", "uptime-like"])
        .expect_code(1)
        .out_has("script not permitted");
    allow(&web, "uptime-like", "echo up");
    agent.hup();
    web.wait_for_log(&["ACTION=config-reload"]);
    control
        .ced(&["run", "web01.test", "uptime-like"])
        .ok()
        .out_has("up\n");
    assert!(agent.is_running());

    // Revoke the dispatcher on the agent, and take it back.
    let serial = common::openssl::serial_of(&control.path("etc/ctrl-exec/dispatcher.crt"));
    web.write(
        "etc/ctrl-exec-agent/revoked-serials",
        format!("{serial}\n"),
        0o640,
    );
    web.clear_log();
    agent.hup();
    web.wait_for_log(&["ACTION=config-reload"]);
    control
        .ced(&["run", "web01.test", "true"])
        .expect_code(1)
        .out_has("forbidden: certificate revoked");
    std::fs::remove_file(web.path("etc/ctrl-exec-agent/revoked-serials")).expect("it is there");
    web.clear_log();
    agent.hup();
    web.wait_for_log(&["ACTION=config-reload"]);
    control.ced(&["run", "web01.test", "true"]).ok();

    // A cable that is pulled ends in a sentence, not in a hang.
    ip(&["-n", &network.names[1], "link", "set", "lo", "up"]);
    let link = format!("ceb{}", std::process::id() % 100_000);
    ip(&["-n", &network.names[1], "link", "set", &link, "down"]);
    let mut toml = control.read("etc/ctrl-exec/ctrl-exec.toml");
    toml.push_str("connect_timeout = 2\n");
    control.write("etc/ctrl-exec/ctrl-exec.toml", toml, 0o640);
    let cut = control
        .ced(&["run", "web01.test", "true"])
        .expect_code(1)
        .out();
    assert!(
        cut.contains("host '10.77.0.2' did not respond - connection timed out")
            || cut.contains("host '10.77.0.2' is unreachable"),
        "{cut}"
    );
    ip(&["-n", &network.names[1], "link", "set", &link, "up"]);
    common::wait_until("the cable is back", PATIENCE, || {
        (control.ced(&["ping", "--check", "web01.test"]).code() == 0).then_some(())
    });

    // Unpair: forgotten here, and nothing is sent there any more.
    control
        .ced(&["unpair", "web01.test"])
        .ok()
        .out_has("Unregistered 'web01.test'.");
    control
        .ced(&["run", "web01.test", "true"])
        .expect_code(1)
        .err_has("Error: unknown agent: web01.test");
    agent.term();
    assert_eq!(agent.daemon().wait(PATIENCE).code(), Some(0));
}
