//! Whatever comes in over port 7443, the agent answers or hangs up, and goes on serving (spec/agent.md 7, 8, 19.3).

mod common;

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use common::fleet::status_kib;
use common::openssl::{Authority, Dates, Leaf};
use common::syslog::WARNING;
use common::tls::{self, Client, Reply, TLS12, TLS13};
use common::{Agent, PATIENCE, Paired};

/// A fleet of one agent, running, and the dispatcher's certificate to play the dispatcher by hand.
struct Scene {
    fleet: Paired,
    agent: Agent,
    dispatcher: Leaf,
}

impl Scene {
    fn new() -> Self {
        let fleet = Paired::new(&["web01.test"]);
        let agent = Agent::start(&fleet.agents[0]);
        let dispatcher = fleet.dispatcher_leaf();
        Self {
            fleet,
            agent,
            dispatcher,
        }
    }

    fn address(&self) -> SocketAddr {
        self.agent.address()
    }

    fn connect(&self) -> Client {
        Client::connect(self.address(), Some(&self.dispatcher), TLS13)
            .expect("a trusted dispatcher is let in")
    }

    fn request(&self, method: &str, path: &str, body: &[u8]) -> Reply {
        self.connect()
            .request(method, path, body)
            .unwrap_or_else(|e| panic!("{method} {path}: {e}"))
    }

    /// The daemon is the same one and serves the real dispatcher, at once.
    #[track_caller]
    fn still_serves(&mut self) {
        assert!(
            self.agent.is_running(),
            "the agent ended: {}",
            self.agent.daemon().err()
        );
        let start = Instant::now();
        let ping = self
            .fleet
            .ced(&["ping", "--json", "web01.test"])
            .ok()
            .json();
        assert_eq!(ping["results"][0]["status"], "ok", "{ping}");
        assert!(
            start.elapsed() < Duration::from_secs(8),
            "the agent was blocked for {:?}",
            start.elapsed()
        );
        assert!(
            !self.agent.daemon().err().contains("panicked"),
            "{}",
            self.agent.daemon().err()
        );
    }
}

fn tcp(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).expect("the agent listens");
    stream
        .set_read_timeout(Some(PATIENCE))
        .expect("a socket option");
    stream
        .set_write_timeout(Some(PATIENCE))
        .expect("a socket option");
    stream
}

/// Reads until the other side closes or resets; what it said.
fn drain(mut stream: TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return bytes,
            Ok(n) => bytes.extend_from_slice(&buffer[..n]),
            Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => return bytes,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => panic!("the agent neither answered nor closed: {e}"),
        }
    }
}

#[test]
fn what_is_not_tls_is_hung_up_on_and_booked_on_its_address() {
    let mut scene = Scene::new();
    let garbage: Vec<Vec<u8>> = vec![
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\n".to_vec(),
        b"POST /run HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{}".to_vec(),
        b"SSH-2.0-OpenSSH_9.2\r\n".to_vec(),
        vec![0; 64],
        vec![0xff; 5000],
        // A record of handshake type with a length beyond the limit, and one with nonsense inside.
        [&[0x16, 3, 1, 0xff, 0xff][..], &[1; 600]].concat(),
        [&[0x16, 3, 1, 0, 64][..], &[0xAA; 64]].concat(),
        // An alert, and application data before any handshake.
        vec![0x15, 3, 3, 0, 2, 2, 40],
        vec![0x17, 3, 3, 0, 3, 1, 2, 3],
        // SSL 2 hello.
        vec![0x80, 0x2e, 1, 0, 2, 0, 0x15, 0, 0, 0, 0x10],
    ];
    for bytes in &garbage {
        let mut stream = tcp(scene.address());
        let _ = stream.write_all(bytes);
        let said = drain(stream);
        // At most an alert record; never HTTP.
        assert!(said.is_empty() || said[0] == 0x15, "{bytes:?} -> {said:?}");
    }
    // Connect and close; connect and reset; half a hello and close.
    drop(tcp(scene.address()));
    let mut half = tcp(scene.address());
    half.write_all(&[0x16, 3, 1, 0, 200, 1, 0])
        .expect("a few bytes");
    half.shutdown(Shutdown::Write).expect("an open socket");
    drain(half);
    let line = scene.fleet.agents[0].wait_for_log(&["ACTION=tls-failure", "PEER=127.0.0.1"]);
    assert_eq!(line.priority, WARNING);
    assert!(!line.field("REASON").expect("a reason").is_empty());
    scene.still_serves();
    let failures = scene.fleet.agents[0].log_of("tls-failure").len();
    assert!(
        failures >= garbage.len(),
        "{failures} of {} failures were logged",
        garbage.len()
    );
    assert!(scene.fleet.agents[0].log_of("accept-fatal").is_empty());
}

#[test]
fn silent_clients_keep_nobody_waiting_and_are_hung_up_on() {
    let mut scene = Scene::new();
    scene.still_serves();
    let silent: Vec<TcpStream> = (0..60).map(|_| tcp(scene.address())).collect();
    // Of these some have sent the beginning of a hello, byte by byte.
    for mut stream in silent.iter().take(20) {
        let _ = stream.write_all(&[0x16, 3, 1]);
    }
    scene.still_serves();
    let start = Instant::now();
    for stream in silent {
        drain(stream);
    }
    assert!(
        start.elapsed() < Duration::from_secs(20),
        "silent clients were kept for {:?}",
        start.elapsed()
    );
    scene.still_serves();
}

/// A TCP connection from another address of the loopback network.
fn tcp_from(source: [u8; 4], address: SocketAddr) -> TcpStream {
    use rustix::net::{AddressFamily, SocketType, bind, connect, socket};
    let socket = socket(AddressFamily::INET, SocketType::STREAM, None).expect("a socket");
    bind(&socket, &SocketAddr::from((source, 0))).expect("every address of 127/8 is ours");
    connect(&socket, &address).expect("the agent listens");
    TcpStream::from(socket)
}

#[test]
fn silent_clients_from_many_addresses_keep_nobody_waiting_either() {
    let mut scene = Scene::new();
    scene.still_serves();
    let mut silent = Vec::new();
    for host in 1..=25 {
        for _ in 0..12 {
            silent.push(tcp_from([127, 0, 77, host], scene.address()));
        }
    }
    scene.still_serves();
    scene.still_serves();
    drop(silent);
    scene.still_serves();
}

#[test]
fn slow_requests_are_given_up() {
    let mut scene = Scene::new();
    let mut drips: Vec<(&str, Client)> = vec![];
    for (name, begin) in [
        ("nothing after the handshake", ""),
        ("half a request line", "POST /pi"),
        ("headers without end", "POST /ping HTTP/1.1\r\nHost: a\r\n"),
        (
            "a body that does not come",
            "POST /ping HTTP/1.1\r\nHost: a\r\nContent-Length: 50\r\n\r\n{\"reqid\":",
        ),
    ] {
        let mut client = scene.connect();
        if !begin.is_empty() {
            client.send(begin).expect("an open connection");
        }
        drips.push((name, client));
    }
    scene.still_serves();
    let waits: Vec<_> = drips
        .into_iter()
        .map(|(name, mut client)| {
            std::thread::spawn(move || {
                // One more byte now and then must not extend the wait for ever.
                let start = Instant::now();
                let dripping = name == "headers without end";
                while start.elapsed() < Duration::from_secs(45) {
                    if dripping && client.send("x").is_err() {
                        break;
                    }
                    std::thread::sleep(Duration::from_millis(400));
                    if !dripping {
                        let answer = client.read_to_end();
                        if !matches!(&answer, Err(e) if e.kind() == std::io::ErrorKind::WouldBlock)
                        {
                            break;
                        }
                    }
                }
                (name, start.elapsed())
            })
        })
        .collect();
    for wait in waits {
        let (name, took) = wait.join().expect("the thread measures");
        assert!(took < Duration::from_secs(44), "{name}: kept for {took:?}");
    }
    scene.still_serves();
}

#[test]
fn sizes_are_judged_before_anything_is_read() {
    let mut scene = Scene::new();
    let before = scene.agent.peak_rss_kib();

    // Announced, never sent: the answer comes at once.
    for length in ["1048577", "4294967296", "9223372036854775807"] {
        let mut client = scene.connect();
        client
            .send(format!(
                "POST /run HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n"
            ))
            .expect("sent");
        let start = Instant::now();
        let reply = client.reply().unwrap_or_else(|e| panic!("{length}: {e}"));
        assert_eq!(reply.status, 413, "{length}");
        assert_eq!(reply.json()["error"], "request too large");
        assert!(start.elapsed() < Duration::from_secs(5));
    }
    // Sent whole, one byte too many.
    let mut client = scene.connect();
    let mut request = b"POST /ping HTTP/1.1\r\nHost: a\r\nContent-Length: 1048577\r\n\r\n".to_vec();
    request.resize(request.len() + 1_048_577, b' ');
    let _ = client.send(&request);
    let reply = client
        .reply()
        .expect("the refusal reaches a client that was still sending");
    assert_eq!(reply.status, 413);

    // Exactly the limit passes.
    let padding = " ".repeat(1_048_576 - "{\"reqid\":\"big\"}".len());
    let body = format!("{{\"reqid\":\"big\"}}{padding}");
    assert_eq!(body.len(), 1_048_576);
    let reply = scene.request("POST", "/ping", body.as_bytes());
    assert_eq!(
        (reply.status, reply.json()["reqid"].as_str()),
        (200, Some("big"))
    );

    // Headers: 32 pass, 33 do not; 10 000 and a single one of 10 MB end within bounds.
    for (count, status) in [(32, 200), (33, 431), (100, 431)] {
        let mut request = String::from("POST /ping HTTP/1.1\r\nContent-Length: 2\r\n");
        for number in 1..count {
            request.push_str(&format!("X-{number}: v\r\n"));
        }
        let mut client = scene.connect();
        client.send(format!("{request}\r\n{{}}")).expect("sent");
        let reply = client
            .reply()
            .unwrap_or_else(|e| panic!("{count} headers: {e}"));
        assert_eq!(reply.status, status, "{count} headers");
        if status == 431 {
            assert_eq!(reply.json()["error"], "too many headers");
        }
    }
    let many: String = (0..10_000)
        .map(|n| format!("X-Header-{n}: {n}\r\n"))
        .collect();
    let long = format!("X-Long: {}\r\n", "a".repeat(10_000_000));
    let line = format!("GET /{} HTTP/1.1\r\n", "a".repeat(1_000_000));
    for head in [
        format!("POST /ping HTTP/1.1\r\n{many}\r\n"),
        format!("POST /ping HTTP/1.1\r\n{long}\r\n"),
        format!("{line}\r\n"),
    ] {
        let mut client = scene.connect();
        let _ = client.send(&head);
        match client.reply() {
            Ok(reply) => assert!([400, 414, 431].contains(&reply.status), "{}", reply.head),
            // The refusal can be lost under the bytes that are still on their way.
            Err(e) => assert!(
                !matches!(
                    e.kind(),
                    std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
                ),
                "no answer, no close: {e}"
            ),
        }
    }
    let grown = scene.agent.peak_rss_kib() - before;
    assert!(grown < 12 * 1024, "the agent grew by {grown} KiB");
    scene.still_serves();
}

#[test]
fn framing_is_read_leniently_where_peers_need_it() {
    let mut scene = Scene::new();

    // No bytes at all.
    let address = scene.address();
    let mut client = scene.connect();
    client.finish().expect("a close_notify");
    let reply = client.reply().expect("an answer to nothing");
    assert_eq!(
        (reply.status, reply.json()["error"].as_str()),
        (400, Some("empty request"))
    );

    // Lines that end with LF only.
    let mut client = scene.connect();
    client
        .send("POST /ping HTTP/1.0\nContent-Length: 13\n\n{\"reqid\":\"x\"}")
        .expect("sent");
    let reply = client.reply().expect("LF-only lines are understood");
    assert_eq!(
        (reply.status, reply.json()["reqid"].as_str()),
        (200, Some("x"))
    );

    // Head and body byte by byte, each in a TLS record of its own.
    let mut client = scene.connect();
    for byte in b"POST /ping HTTP/1.1\r\nHost: a\r\ncontent-LENGTH: 13\r\n\r\n{\"reqid\":\"y\"}" {
        client.send([*byte]).expect("sent");
    }
    assert_eq!(client.reply().expect("an answer").json()["reqid"], "y");

    // 300 KiB of body in records, with a pause in the middle.
    let arg = "a".repeat(300 * 1024);
    let body = format!("{{\"script\":\"nonesuch\",\"args\":[\"{arg}\"],\"reqid\":\"z\"}}");
    let mut client = scene.connect();
    client
        .send(format!(
            "POST /run HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n",
            body.len()
        ))
        .expect("sent");
    client.send(&body[..100_000]).expect("sent");
    std::thread::sleep(Duration::from_millis(300));
    client.send(&body[100_000..]).expect("sent");
    let reply = client.reply().expect("an answer").json();
    assert_eq!(
        (reply["error"].as_str(), reply["reqid"].as_str()),
        (Some("script not permitted"), Some("z"))
    );

    // Chunks: understood or refused, never cut and never without an end.
    let mut client = scene.connect();
    client.send("POST /ping HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nd\r\n{\"reqid\":\"c\"}\r\n0\r\n\r\n").expect("sent");
    let reply = client.reply().expect("an answer");
    match reply.status {
        200 => assert_eq!(reply.json()["reqid"], "c"),
        status => assert!([400, 411, 501].contains(&status), "{}", reply.head),
    }
    let mut client = scene.connect();
    client
        .send("POST /run HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
        .expect("sent");
    let chunk = format!("10000\r\n{}\r\n", "a".repeat(0x10000));
    let refused = (0..64).any(|_| client.send(&chunk).is_err());
    if !refused {
        let reply = client
            .reply()
            .expect("four megabytes in chunks are refused");
        assert!(
            [400, 411, 413, 501].contains(&reply.status),
            "{}",
            reply.head
        );
    }

    // Content-Length that is no length, or two of them.
    for header in [
        "Content-Length: abc",
        "Content-Length: -1",
        "Content-Length: 2\r\nContent-Length: 13",
        "Content-Length: 99999999999999999999999",
    ] {
        let mut client = Client::connect(address, Some(&scene.dispatcher), TLS13).expect("let in");
        client
            .send(format!(
                "POST /ping HTTP/1.1\r\nHost: a\r\n{header}\r\n\r\n{{\"reqid\":\"y\"}}"
            ))
            .expect("sent");
        // Smuggling begins where two readers disagree about a length: refuse.
        let status = client.reply().map(|r| r.status);
        assert!(matches!(status, Ok(400 | 413)), "{header}: {status:?}");
    }

    // Not HTTP, HTTP/2, wrong versions.
    for bytes in [
        "\0\0\0\0\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "POST\r\n\r\n",
        "POST /ping HTTP/9.9\r\n\r\n",
        "\r\n\r\n\r\n\r\n",
    ] {
        let mut client = scene.connect();
        client.send(bytes).expect("sent");
        let _ = client.finish();
        let end = client.reply().map(|r| r.status);
        assert!(
            match &end {
                Ok(status) => (400..=505).contains(status),
                Err(e) => !matches!(
                    e.kind(),
                    std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
                ),
            },
            "{bytes:?}: {end:?}"
        );
    }
    scene.still_serves();
}

#[test]
fn only_the_exact_routes_exist() {
    let mut scene = Scene::new();
    for (method, path) in [
        ("GET", "/ping"),
        ("GET", "/run"),
        ("post", "/ping"),
        ("POST", "/ping/"),
        ("POST", "/ping?x=1"),
        ("POST", "/PING"),
        ("POST", "/%70ing"),
        ("POST", "/capabilities"),
        ("POST", "/"),
        ("GET", "/"),
        ("GET", "/result"),
        ("GET", "/result/../ping"),
        ("GET", "/result/a/b"),
        ("GET", "/result/a%2fb"),
        ("PUT", "/run"),
        ("DELETE", "/run"),
        ("OPTIONS", "/run"),
        ("POST", "/../etc/passwd"),
    ] {
        let reply = scene.request(method, path, b"{}");
        assert_eq!(reply.status, 404, "{method} {path}");
        assert_eq!(reply.json()["error"], "not found", "{method} {path}");
    }
    scene.still_serves();
}

#[test]
fn bodies_that_make_no_sense_get_an_answer() {
    let mut scene = Scene::new();
    let error = |body: &[u8]| {
        let reply = scene.request("POST", "/run", body);
        // Refusals of /run are HTTP 200: dispatchers of the original show anything else as a transport error.
        assert_eq!(reply.status, 200, "{:?}", String::from_utf8_lossy(body));
        let json = reply.json();
        assert_eq!(json["exit"], -1, "{json}");
        assert!(json.get("stdout").is_none(), "{json}");
        json["error"].as_str().expect("an error").to_owned()
    };
    for bad in [
        &b""[..],
        b"{",
        b"[]",
        b"7",
        b"\"x\"",
        b"true",
        b"\xff\xfe{}",
        b"{\"script\":\"\xff\"}",
        b"{} {}",
    ] {
        assert_eq!(
            error(bad),
            "invalid JSON",
            "{:?}",
            String::from_utf8_lossy(bad)
        );
    }
    for bad in [
        "null",
        "{}",
        r#"{"script":null}"#,
        r#"{"script":7}"#,
        r#"{"script":["hello"]}"#,
    ] {
        assert_eq!(error(bad.as_bytes()), "script not permitted", "{bad}");
    }
    for name in [
        "",
        "../hello",
        "hello;id",
        "hello id",
        "hello/x",
        "./hello",
        "HELLO",
        "hello\\n",
        "hello\\u0000",
        "-hello",
    ] {
        let body = format!("{{\"script\":\"{name}\",\"args\":[]}}");
        assert_eq!(error(body.as_bytes()), "script not permitted", "{name:?}");
    }
    for args in [r#""x""#, "7", "{}", r#"{"0":"x"}"#, "true"] {
        let body = format!("{{\"script\":\"hello\",\"args\":{args},\"reqid\":\"r\"}}");
        assert!(
            error(body.as_bytes()).starts_with("args must be an array"),
            "{args}"
        );
    }
    // Deeply nested JSON must not exhaust the stack.
    let deep = format!(
        "{{\"script\":{}{}}}",
        "[".repeat(100_000),
        "]".repeat(100_000)
    );
    assert_eq!(error(deep.as_bytes()), "invalid JSON");
    // A NUL can stand in JSON, never in an argument of a process.
    let reply = scene
        .request(
            "POST",
            "/run",
            br#"{"script":"hello","args":["a\u0000b"],"reqid":"nul"}"#,
        )
        .json();
    assert_ne!(reply["exit"], 0, "{reply}");
    assert!(
        !reply["stdout"].as_str().unwrap_or_default().contains("[a]"),
        "{reply}"
    );

    // A ping needs no sensible body.
    for body in [&b""[..], b"[]", b"nonsense", b"null"] {
        let reply = scene.request("POST", "/ping", body);
        assert_eq!(
            (reply.status, reply.json()["status"].as_str()),
            (200, Some("ok"))
        );
    }
    // A value of the request can neither forge a log line nor a key.
    scene.request(
        "POST",
        "/run",
        br#"{"script":"x\" EXIT=0\nACTION=run","reqid":"r\nACTION=run SCRIPT=x"}"#,
    );
    let line = scene.fleet.agents[0].wait_for_log(&["ACTION=deny", "EXIT=0"]);
    assert_eq!(line.action(), "deny");
    for line in scene.fleet.agents[0].log_lines() {
        assert_ne!(line.priority, 0, "{}", line.text);
        assert!(
            line.action() != "run" || line.field("SCRIPT").as_deref() == Some("hello"),
            "{}",
            line.text
        );
    }
    scene.still_serves();
}

#[test]
fn strangers_do_not_get_past_the_handshake_and_ordinary_agents_not_past_the_gate() {
    let mut scene = Scene::new();
    let address = scene.address();
    let ours = Authority::at(&scene.fleet.dispatcher.path("etc/ctrl-exec"));
    let foreign = Authority::foreign();

    let client_auth = "extendedKeyUsage=clientAuth\n";
    let strangers = [
        ("no certificate", None),
        (
            "expired",
            Some(ours.issue("ctrl-exec-dispatcher", "5A11", Dates::Expired)),
        ),
        (
            "not yet valid",
            Some(ours.issue("ctrl-exec-dispatcher", "5A12", Dates::Future)),
        ),
        (
            "foreign CA of the same name, v1",
            Some(foreign.issue("ctrl-exec-dispatcher", "5A13", Dates::Days(10))),
        ),
        (
            "foreign CA of the same name, v3",
            Some(foreign.issue_v3("ctrl-exec-dispatcher", "5A14", client_auth)),
        ),
        (
            "self-signed",
            Some(ours.self_signed("ctrl-exec-dispatcher")),
        ),
        (
            "for servers only",
            Some(ours.issue_v3(
                "ctrl-exec-dispatcher",
                "5A15",
                "extendedKeyUsage=serverAuth\n",
            )),
        ),
    ];
    for (what, leaf) in &strangers {
        for version in [TLS12, TLS13] {
            scene.fleet.agents[0].clear_log();
            // Under TLS 1.3 the refusal arrives in place of the answer.
            let answer = Client::connect(address, leaf.as_ref(), version)
                .and_then(|mut c| c.request("POST", "/ping", b"{}"));
            assert!(answer.is_err(), "{what} got an answer: {answer:?}");
            let line =
                scene.fleet.agents[0].wait_for_log(&["ACTION=tls-failure", "PEER=127.0.0.1"]);
            assert!(!line.field("REASON").expect("a reason").is_empty());
        }
    }
    assert!(scene.fleet.agents[0].log_of("ping").is_empty());

    // Of our CA but not trusted: the gate refuses, before the body is looked at.
    let own = scene.fleet.agent_leaf(0);
    let insiders = [
        ("the agent itself", own),
        (
            "v1 of an untrusted serial",
            ours.issue("ctrl-exec-dispatcher", "5A16", Dates::Days(10)),
        ),
        (
            "v3 without a role",
            ours.issue_v3("ctrl-exec-dispatcher", "5A17", client_auth),
        ),
    ];
    for (what, leaf) in &insiders {
        for version in [TLS12, TLS13] {
            let mut client = Client::connect(address, Some(leaf), version)
                .unwrap_or_else(|e| panic!("{what}: {e}"));
            let reply = client
                .request("POST", "/run", br#"{"script":"hello"}"#)
                .unwrap_or_else(|e| panic!("{what}: {e}"));
            assert_eq!(reply.status, 403, "{what}");
            assert_eq!(
                reply.json(),
                serde_json::json!({"error": "serial mismatch", "status": "forbidden"}),
                "{what}"
            );
            let reply =
                tls::request(address, Some(leaf), "GET", "/capabilities", b"").expect("an answer");
            assert_eq!(
                (reply.status, reply.json()["error"].as_str()),
                (403, Some("forbidden")),
                "{what}"
            );
        }
        let serial = leaf.serial();
        let line = scene.fleet.agents[0].wait_for_log(&["ACTION=serial-reject", &serial]);
        assert_eq!(
            (line.priority, line.field("REQID").as_deref()),
            (WARNING, Some("(none)"))
        );
        scene.fleet.agents[0].wait_for_log(&[
            "ACTION=capabilities-deny",
            "REASON=serial-mismatch",
            &serial,
        ]);
    }
    assert!(scene.fleet.agents[0].log_of("run").is_empty());
    scene.still_serves();
}

#[test]
fn hundreds_of_bad_connections_leak_nothing() {
    let mut scene = Scene::new();
    scene.still_serves();
    let (files, memory) = (
        scene.agent.open_files(),
        status_kib(scene.agent.pid(), "VmRSS:"),
    );
    for round in 0..150 {
        let mut stream = tcp(scene.address());
        let _ = stream.write_all(b"GET / HTTP/1.1\r\n\r\n");
        if round % 3 == 0 {
            drain(stream);
        }
        let _ = Client::connect(scene.address(), None, TLS12);
        if round % 5 == 0 {
            let mut client = scene.connect();
            let _ = client.send("POST /run HTTP/1.1\r\nContent-Length: 100\r\n\r\n{");
        }
    }
    scene.still_serves();
    // Connections that were left open by the client above are gone with it; ours must follow.
    common::wait_until("descriptors are back", PATIENCE, || {
        (scene.agent.open_files() <= files + 4).then_some(())
    });
    let grown = status_kib(scene.agent.pid(), "VmRSS:").saturating_sub(memory);
    assert!(grown < 4096, "the agent grew by {grown} KiB");
}
