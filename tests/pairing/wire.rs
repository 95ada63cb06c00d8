//! The pairing port and strangers on it: limits, nonsense, silence (spec/pairing.md 3.1, 6, 18.6, 18.11).

use std::io::Write as _;
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::common::fleet::{self, new_agent, status_kib};
use crate::common::tls::Client;
use crate::common::{Host, PATIENCE, free_port, syslog, wait_until};
use crate::kit::{Hall, ask_now, basic_request, csr, csr_with, message};

fn reason(answer: &Value) -> &str {
    assert_eq!(answer["status"], "error", "{answer}");
    answer["reason"].as_str().expect("a reason")
}

/// Waits until as many refusals with this reason are in the log; more are a failure.
#[track_caller]
fn assert_rejected(host: &Host, reason: &str, times: usize) {
    let count = || {
        host.log_of("pair-reject")
            .iter()
            .filter(|l| l.field("REASON").as_deref() == Some(reason))
            .count()
    };
    wait_until(&format!("{times} times {reason}"), PATIENCE, || {
        (count() >= times).then_some(())
    });
    assert_eq!(count(), times, "{reason}");
}

#[test]
fn bodies_up_to_the_limit_and_one_byte_more() {
    let hall = Hall::open();
    let mut request = basic_request("big.test").to_string();
    let room = 65_536 - request.len();
    request.truncate(request.len() - 1);
    request.push_str(&format!(r#","x":"{}"}}"#, "y".repeat(room - 7)));
    assert_eq!(request.len(), 65_536);
    let (client, answer) = hall.post(request.as_bytes());
    assert_eq!(answer["status"], "pending", "{answer}");
    assert!(
        answer["reqid"].as_str().is_some_and(|r| r.len() == 16),
        "{answer}"
    );
    assert_eq!(
        answer.as_object().map(serde_json::Map::len),
        Some(2),
        "nothing an older agent does not know: {answer}"
    );
    drop(client);
    request.insert(1, ' ');
    // Refused by what is declared, before the body is read.
    let mut client = hall.knock().expect("a handshake");
    client
        .send("POST /pair HTTP/1.0\r\nContent-Length: 65537\r\n\r\n")
        .expect("taken");
    assert_eq!(
        reason(&client.reply().expect("an answer").json()),
        "request too large"
    );
    let (_client, answer) = hall.post(request.as_bytes());
    assert_eq!(reason(&answer), "request too large");
    assert_rejected(&hall.host, "body-too-large", 2);
}

#[test]
fn what_is_no_request_is_refused_in_the_words_of_the_original() {
    let hall = Hall::open();
    let good = basic_request("web01.test");
    let with = |field: &str, value: Value| {
        let mut request = good.clone();
        request[field] = value;
        request
    };
    let mut invalid = vec![
        String::new(),
        "not json".to_owned(),
        "[1,2]".to_owned(),
        "7".to_owned(),
        "null".to_owned(),
        "\"text\"".to_owned(),
        "{}".to_owned(),
    ];
    invalid.push(good.to_string().replace('}', ""));
    for field in ["hostname", "csr"] {
        for value in [
            json!(""),
            json!(0),
            json!("0"),
            json!(null),
            json!(false),
            json!([]),
            json!({}),
        ] {
            invalid.push(with(field, value).to_string());
        }
    }
    invalid.push("[".repeat(60_000));
    let count = invalid.len();
    for body in invalid {
        let (_client, answer) = hall.post(body.as_bytes());
        assert_eq!(
            reason(&answer),
            "invalid request",
            "{}",
            &body[..body.len().min(80)]
        );
    }
    assert_rejected(&hall.host, "invalid-request", count);

    let long = "a".repeat(300);
    let names = [
        "../../etc/passwd",
        "-web",
        ".web",
        "_web",
        "a b",
        "a/b",
        "web\n",
        "web\u{0}",
        "wéb",
        "web;id",
        "$(id)",
        &long,
    ];
    for name in names {
        let (_client, answer) = hall.post(with("hostname", json!(name)).to_string().as_bytes());
        assert_eq!(reason(&answer), "invalid hostname", "{name:?}");
    }
    assert_rejected(&hall.host, "invalid-hostname", names.len());

    let rsa = ["-newkey", "rsa:1024"];
    let csrs = [
        "x".to_owned(),
        format!(" {}", csr("web01.test")),
        format!("{}trailing", csr("web01.test")),
        csr("web02.test"),
        csr("ctrl-exec-dispatcher"),
        csr_with("/CN=web01.test", &rsa),
        csr_with("/O=Evil/CN=web01.test", &["-newkey", "rsa:2048"]),
        csr_with(
            "/CN=web01.test/CN=ctrl-exec-dispatcher",
            &["-newkey", "rsa:2048"],
        ),
        csr_with("/CN=web01.test", &["-newkey", "rsa:2048", "-sha1"]),
        csr("web01.test").replace("CERTIFICATE REQUEST", "NEW CERTIFICATE REQUEST"),
        format!("{}{}", csr("web01.test"), "\n".repeat(10_240)),
    ];
    for (at, text) in csrs.iter().enumerate() {
        let (_client, answer) = hall.post(with("csr", json!(text)).to_string().as_bytes());
        assert_eq!(reason(&answer), "invalid certificate request", "{at}");
    }
    assert_rejected(&hall.host, "invalid-csr", csrs.len());
    assert!(hall.queue().is_empty(), "{:?}", hall.queue());

    // What the original takes is taken: numbers as text, odd hints ignored, any method, path and version, any case of the header.
    let mut odd = basic_request("odd.test");
    for (field, value) in [
        ("nonce", json!(12)),
        ("ip", json!("999.1.1.1")),
        ("port", json!("70000")),
        ("lookup_by", json!("dns")),
        ("extra", json!({"a": [1]})),
    ] {
        odd[field] = value;
    }
    let body = odd.to_string();
    let mut client = hall.knock().expect("a handshake");
    client
        .send(format!(
            "BREW /coffee?x=1 HTTP/9.9\r\ncOnTeNt-LeNgTh:{}\r\nX: y\r\n\r\n{body}",
            body.len()
        ))
        .expect("taken");
    let answer = client.reply().expect("an answer").json();
    assert_eq!(answer["status"], "pending", "{answer}");
    let waiting = fleet::wait_for_request(&hall.host, "odd.test");
    assert_eq!(
        (
            waiting["ip"].as_str(),
            &waiting["port"],
            &waiting["lookup_by"]
        ),
        (Some("127.0.0.1"), &Value::Null, &Value::Null)
    );
}

#[test]
fn an_agent_with_an_impossible_name_asks_nobody() {
    for name in ["web 01", "-web", "", "a/b", &"a".repeat(300)] {
        let agent = Host::new(name);
        let run = agent.cea(&[
            "request-pairing",
            "--dispatcher",
            "127.0.0.1",
            "--port",
            "9",
        ]);
        assert!(
            run.code() != 0 && !run.err().contains("panicked"),
            "{name:?}: {}",
            run.err()
        );
        assert!(
            name.is_empty() || run.err().contains("name of this host"),
            "{name:?}: {}",
            run.err()
        );
    }
}

#[test]
fn silent_and_slow_clients_hold_up_nobody() {
    let hall = Hall::open();
    let pid = hall.mode.pid();
    let silent: Vec<TcpStream> = (0..20)
        .map(|_| TcpStream::connect(hall.address()).expect("let in"))
        .collect();
    let mut mute: Vec<Client> = (0..10)
        .map(|_| hall.knock().expect("a handshake"))
        .collect();
    let mut lines = hall.knock().expect("a handshake");
    let body = basic_request("lf.test").to_string();
    lines
        .send(format!(
            "POST /pair HTTP/1.0\nContent-Length: {}\n\n{body}",
            body.len()
        ))
        .expect("taken");
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let dripping = scope.spawn(|| {
            let mut client = hall.knock().expect("a handshake");
            let start = Instant::now();
            for byte in message(basic_request("drip.test").to_string().as_bytes()) {
                if stop.load(Ordering::Relaxed) || client.send([byte]).is_err() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(150));
            }
            start.elapsed()
        });
        // Half a handshake, byte by byte.
        let _half = scope.spawn(|| {
            let mut tcp = TcpStream::connect(hall.address()).expect("let in");
            for byte in [0x16, 0x03, 0x01, 0x02, 0x00, 0x01] {
                let _ = tcp.write_all(&[byte]);
                std::thread::sleep(Duration::from_millis(200));
            }
        });

        let agent = new_agent("web01.test", free_port());
        let begin = Instant::now();
        hall.pair(&agent, &[]);
        assert!(
            begin.elapsed() < Duration::from_secs(8),
            "held up: {:?}",
            begin.elapsed()
        );

        // Every one of them is shown the door in the end.
        for client in &mut mute {
            assert!(client.wait_for_close() < Duration::from_secs(14));
        }
        lines.wait_for_close();
        for stream in &silent {
            stream
                .set_read_timeout(Some(Duration::from_secs(5)))
                .expect("a socket");
            let read = std::io::Read::read(&mut &*stream, &mut [0; 16]);
            assert!(
                matches!(read, Ok(0))
                    || read
                        .as_ref()
                        .is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionReset),
                "{read:?}"
            );
        }
        let took = dripping.join().expect("no panic");
        assert!(took < Duration::from_secs(14), "a drip lasted {took:?}");
        stop.store(true, Ordering::Relaxed);
    });
    let sockets = || {
        std::fs::read_dir(format!("/proc/{pid}/fd"))
            .expect("it runs")
            .count()
    };
    wait_until("all are closed", Duration::from_secs(5), || {
        (sockets() < 25).then_some(())
    });
    let names: Vec<Value> = fleet::requests(&hall.host);
    assert!(names.is_empty(), "{names:?}");
}

#[test]
fn endless_headers_cost_no_memory() {
    let hall = Hall::open();
    let pid = hall.mode.pid();
    let _ = hall.post(b"{}");
    let before = status_kib(pid, "VmHWM:");
    let mut client = hall.knock().expect("a handshake");
    client.send("POST /pair HTTP/1.0\r\n").expect("taken");
    let line = format!("X-Padding: {}\r\n", "a".repeat(1000)).repeat(100);
    let mut sent = 0;
    while sent < 10 * 1024 * 1024 && client.send(&line).is_ok() {
        sent += line.len();
    }
    // Whatever of it was swallowed, it was thrown away, and not for long.
    assert!(client.wait_for_close() < Duration::from_secs(5));
    // One line that never ends, and a header whose end never comes.
    for text in [
        "a".repeat(20_000),
        format!("POST / HTTP/1.0\r\n{}", "X: y\r\n".repeat(3000)),
    ] {
        let mut client = hall.knock().expect("a handshake");
        let _ = client.send(text);
        assert_eq!(
            reason(&client.reply().expect("an answer").json()),
            "request too large"
        );
    }
    let grown = status_kib(pid, "VmHWM:") - before;
    assert!(grown < 4096, "grew by {grown} KiB");
    let agent = new_agent("web01.test", free_port());
    hall.pair(&agent, &[]);
}

#[test]
fn a_full_queue_refuses_and_recovers() {
    let hall = Hall::open_with(
        "pairing_rate_limit_disable = true\npairing_max_queue = 3\n",
        &[],
    );
    let mut waiting = Vec::new();
    for name in ["a.test", "b.test", "c.test"] {
        let (client, answer) = hall.post(basic_request(name).to_string().as_bytes());
        assert_eq!(answer["status"], "pending", "{answer}");
        waiting.push(client);
    }
    let (_client, answer) = hall.post(basic_request("d.test").to_string().as_bytes());
    assert_eq!(reason(&answer), "pairing queue full");
    let agent = new_agent("web01.test", free_port());
    let run = ask_now(&agent, hall.port, &[]).expect_code(1);
    assert!(
        run.err().contains("Pairing failed: pairing queue full"),
        "{}",
        run.err()
    );
    assert_rejected(&hall.host, "queue-full", 2);
    let line = hall.host.wait_for_log(&["ACTION=pair-reject"]);
    assert_eq!(
        (line.priority, line.field("IP").as_deref()),
        (syslog::INFO, Some("127.0.0.1"))
    );
    assert_eq!(fleet::requests(&hall.host).len(), 3);
    // Six at the same time for the one place that gets free.
    drop(waiting.pop());
    wait_until("the place is free", Duration::from_secs(10), || {
        (fleet::requests(&hall.host).len() == 2).then_some(())
    });
    let answers: Vec<(Client, Value)> = std::thread::scope(|scope| {
        let asking: Vec<_> = (0..6)
            .map(|n| {
                let request = basic_request(&format!("n{n}.test")).to_string();
                let hall = &hall;
                scope.spawn(move || hall.post(request.as_bytes()))
            })
            .collect();
        asking
            .into_iter()
            .map(|a| a.join().expect("no panic"))
            .collect()
    });
    let taken = answers
        .iter()
        .filter(|(_, a)| a["status"] == "pending")
        .count();
    assert_eq!(
        taken,
        1,
        "{:?}",
        answers.iter().map(|(_, a)| a).collect::<Vec<_>>()
    );
    assert_eq!(fleet::requests(&hall.host).len(), 3);
}

#[test]
fn the_eleventh_connection_of_a_minute_is_one_too_many() {
    let hall = Hall::open_with("", &[]);
    // Mere probes do not count.
    for _ in 0..15 {
        drop(TcpStream::connect(hall.address()).expect("let in"));
    }
    for n in 0..10 {
        let (_client, answer) = hall.post(b"{}");
        assert_eq!(reason(&answer), "invalid request", "connection {n}");
    }
    // Closed without a byte, and so are those that follow; one line in the log for all of them.
    for n in 0..4 {
        if let Ok(mut client) = hall.knock() {
            let _ = client.send(message(b"{}"));
            assert!(
                client.read_to_end().map_or(0, |b| b.len()) == 0,
                "blocked connection {n} got an answer"
            );
        }
    }
    let agent = new_agent("web01.test", free_port());
    ask_now(&agent, hall.port, &[])
        .expect_code(1)
        .err_has("refuses this host for a while");
    hall.host.wait_for_log(&["ACTION=rate-block"]);
    let lines = hall.host.log_of("rate-block");
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert_eq!(
        (
            lines[0].priority,
            lines[0].field("PEER").as_deref(),
            lines[0].field("REASON").as_deref()
        ),
        (syslog::WARNING, Some("127.0.0.1"), Some("volume"))
    );
    // Another address is not concerned.
    let other = TcpStream::connect(("127.0.0.1", hall.port)).expect("let in");
    drop(other);
}

#[test]
fn the_rate_limit_can_be_set_and_switched_off() {
    let off = Hall::open();
    for _ in 0..14 {
        let (_client, answer) = off.post(b"{}");
        assert_eq!(reason(&answer), "invalid request");
    }
    assert!(off.host.log_of("rate-block").is_empty());
    // Two in a minute, blocked for one second: the block passes.
    let short = Hall::open_with("pairing_rate_limit_volume = \"2/1/1\"\n", &[]);
    let served = || {
        short
            .knock()
            .is_ok_and(|mut c| c.send(message(b"{}")).is_ok() && c.reply().is_ok())
    };
    assert!(served() && served());
    let blocked = (0..3).any(|_| !served());
    assert!(blocked, "never blocked");
    wait_until("the block passes", Duration::from_secs(10), || {
        served().then_some(())
    });
}
