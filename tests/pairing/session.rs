//! A session of pairing mode in the foreground: how long it lasts, and the person in front of it.

use std::net::TcpStream;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::common::fleet::{self, new_agent, new_dispatcher};
use crate::common::{PATIENCE, free_port, wait_until};
use crate::kit::{Hall, ask, assert_unpaired, at_terminal, configure, fails, line_of, succeeds};

#[test]
fn the_time_is_checked_before_anything_starts() {
    let host = new_dispatcher("ctl.test");
    let port = free_port().to_string();
    for (bad, text) in [
        ("0", "between 1 and 600"),
        ("601", "between 1 and 600"),
        ("99999999999999999999", "between 1 and 600"),
        ("ten", "an integer number"),
        ("-5", "an integer number"),
        ("1.5", "an integer number"),
        ("", "an integer number"),
    ] {
        for action in [&["pairing-mode"][..], &["pairing-mode", "start"]] {
            let timeout = format!("--timeout={bad}");
            let run = host.ced(&[action, &[timeout.as_str(), "--port", &port]].concat());
            // `--timeout=` needs no second word, `--timeout` does; both must say what is wrong.
            let run = if run.err().contains(text) {
                run
            } else {
                host.ced(&[action, &["--timeout", bad, "--port", &port]].concat())
            };
            assert!(
                run.code() == 64 && run.err().contains(text),
                "{bad:?}: {} {}",
                run.code(),
                run.err()
            );
        }
    }
    assert!(host.log_of("pairing-mode-start").is_empty());
    // The same rule for the configuration.
    configure(&host, "pairing_timeout = 601\n");
    host.ced(&["pairing-mode", "--port", &port])
        .expect_code(78)
        .err_has("pairing_timeout");
    for good in ["1", "600"] {
        let mut mode = host.start("ced", &["pairing-mode", "--timeout", good, "--port", &port]);
        if good == "600" {
            assert_eq!(
                mode.wait(PATIENCE).code(),
                Some(78),
                "the configuration is broken all the same"
            );
        }
    }
}

#[test]
fn one_second_and_ten_minutes_are_times() {
    let host = new_dispatcher("ctl.test");
    let port = free_port().to_string();
    let run = host
        .ced(&["pairing-mode", "--timeout", "1", "--port", &port])
        .ok();
    assert!(
        run.took >= Duration::from_secs(1) && run.took < Duration::from_secs(8),
        "{:?}",
        run.took
    );
    run.out_has("after 1 seconds")
        .out_has("time-out after 1 seconds");
    host.wait_for_log(&["ACTION=pairing-mode-timeout", &format!("PORT={port}")]);
    let mut mode = host.start(
        "ced",
        &["pairing-mode", "--timeout", "600", "--port", &port],
    );
    mode.wait_for_text("after 600 seconds");
    mode.signal(Signal::INT);
    assert!(mode.wait(PATIENCE).success());
    assert!(
        mode.out().contains("Pairing mode stopped (signal)."),
        "{}",
        mode.out()
    );
    host.wait_for_log(&["ACTION=pairing-mode-stop"]);
}

#[test]
fn the_end_comes_in_time_whoever_is_connected() {
    let host = new_dispatcher("ctl.test");
    configure(&host, "pairing_rate_limit_disable = true\n");
    let port = free_port();
    let begin = Instant::now();
    let mut mode = host.start(
        "ced",
        &[
            "pairing-mode",
            "--timeout",
            "3",
            "--port",
            &port.to_string(),
        ],
    );
    mode.wait_for_text("listening on port");
    // One says nothing at all, one nothing after the handshake, one half a request; one waits for the operator.
    let silent = TcpStream::connect(("127.0.0.1", port)).expect("let in");
    let hall_address = silent.peer_addr().expect("connected");
    let connect = || {
        crate::common::tls::Client::connect(hall_address, None, crate::common::tls::TLS13)
            .expect("a handshake")
    };
    let mute = connect();
    let mut half = connect();
    half.send("POST /pair HTTP/1.0\r\nContent-Le")
        .expect("taken");
    let agent = new_agent("web01.test", free_port());
    let mut request = ask(&agent, port, &[]);
    request.wait_for_text("Request id:");
    let status = mode.wait(PATIENCE);
    let took = begin.elapsed();
    assert!(
        status.success() && took >= Duration::from_secs(3),
        "{status} {took:?}"
    );
    assert!(
        took < Duration::from_secs(8),
        "a silent client held up the end: {took:?}"
    );
    assert!(
        mode.out().contains("time-out after 3 seconds"),
        "{}",
        mode.out()
    );
    assert!(fails(&mut request).contains("pairing session ended"));
    assert_unpaired(&agent);
    assert!(std::net::TcpListener::bind(("127.0.0.1", port)).is_ok());
    drop((silent, mute, half));
}

#[test]
fn a_request_of_a_dead_session_cannot_be_approved() {
    let hall = Hall::open();
    let agent = new_agent("web01.test", free_port());
    let (mut request, id) = hall.ask_and_queue(&agent, &[]);
    hall.mode.signal(Signal::KILL);
    let said = fails(&mut request);
    assert!(
        said.contains("closed the connection before it decided"),
        "{said}"
    );
    hall.host
        .ced(&["approve", &id])
        .expect_code(1)
        .err_has("session");
    assert!(!hall.registered("web01.test"));
    // It takes no place in the next session, which is not kept from working.
    let next = Hall::of(hall.host, &[]);
    assert!(fleet::requests(&next.host).is_empty());
    assert!(next.queue().contains(&format!("{id}.session-ended")));
    next.pair(&agent, &[]);
}

#[test]
fn the_operator_at_the_terminal() {
    let host = new_dispatcher("ctl.test");
    configure(&host, "pairing_rate_limit_disable = true\n");
    let port = free_port();
    let (one, two) = (
        new_agent("one.test", free_port()),
        new_agent("two.test", free_port()),
    );
    let talk = [
        "type q to stop",
        "a",
        "No request is waiting.",
        "nonsense",
        "Unknown command.",
        "",
        "Approve, deny or skip? [a/d/s]",
        "a",
        "one.test (",
        "",
        "Approve, deny or skip? [a/d/s]",
        "a7",
        "There is no request number 7.",
        "d1",
        "Denied request",
        "l",
        "No pending pairing requests.",
        "q",
    ];
    let words = [
        "pairing-mode",
        "--timeout",
        "50",
        "--port",
        &port.to_string(),
    ];
    let mut mode = at_terminal(&host, "ced", &talk, &words);
    mode.wait_for_text("Unknown command.");
    let mut first = ask(&one, port, &[]);
    first.wait_for_text("Request id:");
    let code = line_of(&first.out(), "Pairing code: ").expect("a code");
    mode.wait_for_text(&format!("{code} (bound)"));
    succeeds(&mut first);
    mode.wait_for_text("paired, the agent has its certificate");
    let mut second = ask(&two, port, &[]);
    assert!(fails(&mut second).contains("rejected by operator"));
    assert!(mode.wait(PATIENCE).success(), "{}", mode.out());
    assert!(
        mode.out().contains("Pairing mode stopped (quit)."),
        "{}",
        mode.out()
    );
    assert!(host.exists("var/lib/ctrl-exec/agents/one.test.json"));
    assert!(!host.exists("var/lib/ctrl-exec/agents/two.test.json"));
    assert_unpaired(&two);
}

#[test]
fn the_end_of_the_keyboard_is_not_the_end_of_the_session() {
    let host = new_dispatcher("ctl.test");
    let port = free_port();
    let words = [
        "pairing-mode",
        "--timeout",
        "50",
        "--port",
        &port.to_string(),
    ];
    let mut mode = at_terminal(&host, "ced", &["type q to stop", "^D"], &words);
    mode.wait_for_text("type q to stop");
    let agent = new_agent("web01.test", free_port());
    let mut request = ask(&agent, port, &[]);
    let waiting = fleet::wait_for_request(&host, "web01.test");
    assert!(mode.is_running());
    host.ced(&["approve", waiting["id"].as_str().expect("an id")])
        .ok();
    succeeds(&mut request);
    wait_until("it is told", PATIENCE, || {
        mode.out().contains("paired, the agent has").then_some(())
    });
}

#[test]
fn the_person_at_the_agent_compares_too() {
    let hall = Hall::open();
    let port = hall.port.to_string();
    let words = [
        "request-pairing",
        "--dispatcher",
        "127.0.0.1",
        "--port",
        &port,
    ];
    let agent = new_agent("web01.test", free_port());
    let mut request = at_terminal(&agent, "cea", &["[y/N]: ", "n"], &words);
    let id = hall.id_of("web01.test");
    let run = hall.host.ced(&["approve", &id]).expect_code(1);
    run.out_has("the agent refused");
    assert_eq!(request.wait(PATIENCE).code(), Some(1));
    assert!(
        request
            .out()
            .contains("the code was not confirmed: nothing was stored"),
        "{}",
        request.out()
    );
    assert_unpaired(&agent);
    // What the dispatcher had written is taken back.
    assert!(!hall.registered("web01.test"));

    let mut request = at_terminal(&agent, "cea", &["[y/N]: ", "yes"], &words);
    let id = hall.id_of("web01.test");
    hall.host.ced(&["approve", &id]).ok();
    assert!(request.wait(PATIENCE).success(), "{}", request.out());
    agent.wait_for_log(&["ACTION=pair-complete", "VOUCHED=person"]);
    assert!(hall.registered("web01.test"));
}
