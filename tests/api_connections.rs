//! The connections of `ced-api`: what they may say, how long they may take, how many there may be, and how they end (spec/api.md 1, 2,
//! 16.3, 16.21, 16.23, 17). What is answered is for other tests: here any status will do where the status is not the point.

mod common;

use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd as _};
use std::os::unix::net::UnixListener;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::api::ApiServer;
use common::api::{Conn, configure, get, post};
use common::fleet::{new_dispatcher, status_kib};
use common::{Daemon, Host, PATIENCE, wait_until};

fn dispatcher() -> Host {
    new_dispatcher("ctl.test")
}

fn answers_in(bytes: &[u8]) -> usize {
    bytes.windows(7).filter(|w| w == b"HTTP/1.").count()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn one_connection_carries_many_requests_also_at_once_and_in_pieces() {
    let host = dispatcher();
    let server = ApiServer::start_with(&host, "");
    let mut conn = server.connect();
    for _ in 0..5 {
        conn.send(get("/health")).unwrap();
        let reply = conn.reply().unwrap();
        assert!(reply.head.starts_with("HTTP/1.1 "), "{}", reply.head);
        assert_eq!(reply.header("content-type").unwrap(), "application/json");
        assert_eq!(reply.header("connection"), None);
        reply.json();
    }
    // Three at once, the last one not complete.
    let mut three = [get("/health"), post("/nowhere", b"{}"), get("/health")].concat();
    let rest = three.split_off(three.len() - 9);
    conn.send(three).unwrap();
    conn.reply().unwrap();
    conn.reply().unwrap();
    conn.send(rest).unwrap();
    conn.reply().unwrap();
    conn.finish().unwrap();
    assert_eq!(conn.read_to_end().unwrap(), b"");
    let start = host.wait_for_log(&["ACTION=api-start", "TLS=no", "BIND=127.0.0.1"]);
    assert_eq!(start.ident, "ctrl-exec-api");
    assert_eq!(
        start.field("PORT"),
        Some(server.address().port().to_string())
    );
}

#[test]
fn old_clients_get_their_framing_and_the_connection_ends() {
    let host = dispatcher();
    let server = ApiServer::start_with(&host, "");
    for request in [
        "GET /health HTTP/1.0\r\n\r\n",
        "GET /health HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
        "GET /health HTTP/1.1\r\nConnection: close\r\n\r\n",
        "\r\n\nGET /health HTTP/1.0\n\n",
    ] {
        let mut conn = server.connect();
        conn.send(request).unwrap();
        let all = conn.read_to_end().unwrap();
        let version = &request.trim_start()[12..20];
        assert!(all.starts_with(version.as_bytes()), "{}", text(&all));
        assert_eq!(answers_in(&all), 1);
        assert!(text(&all).to_lowercase().contains("content-length: "));
    }
    let mut conn = server.connect();
    conn.send("GET /health HTTP/1.1\nHost: x\n\n").unwrap();
    conn.reply().unwrap();
    // A client that has said all it wants to say still gets its answer.
    conn.send(get("/health")).unwrap();
    conn.finish().unwrap();
    conn.reply().unwrap();
}

#[test]
fn a_chunked_body_is_framed_and_no_second_request_follows_it() {
    let host = dispatcher();
    let server = ApiServer::start_with(&host, "");
    let mut conn = server.connect();
    conn.send("POST /nowhere HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        .unwrap();
    conn.send("2\r\n{}\r\n0\r\n\r\n").unwrap();
    conn.send(get("/health")).unwrap();
    let all = conn.read_to_end().unwrap();
    assert_eq!(answers_in(&all), 1, "{}", text(&all));
}

#[test]
fn a_large_body_that_nobody_wants_does_not_cost_the_answer() {
    let host = dispatcher();
    let server = ApiServer::start_with(&host, "");
    let mut conn = server.connect();
    conn.send("POST /run HTTP/1.1\r\nHost: x\r\nContent-Length: 4000000\r\n\r\n")
        .unwrap();
    let _ = conn.send(vec![b'x'; 4_000_000]);
    let reply = conn.reply().unwrap();
    assert!((400..500).contains(&reply.status), "{}", reply.head);
}

#[test]
fn what_is_no_request_is_told_so_in_json() {
    let host = dispatcher();
    let server = ApiServer::start_with(&host, "");
    let mut conn = server.connect();
    conn.finish().unwrap();
    let reply = conn.reply().unwrap();
    assert!(reply.head.starts_with("HTTP/1.0 400 Bad Request"));
    let expected =
        serde_json::json!({"ok": false, "error": "bad request", "detail": "empty request"});
    assert_eq!(reply.json(), expected);

    let many = "X: y\r\n".repeat(120);
    let long = "y".repeat(70_000);
    for (request, status) in [
        ("GET /health\r\n\r\n".to_owned(), 400),
        ("GET /health HTTP/3.7\r\n\r\n".to_owned(), 400),
        ("GE\0T / HTTP/1.1\r\n\r\n".to_owned(), 400),
        ("GET / HTTP/1.1\r\nno colon\r\n\r\n".to_owned(), 400),
        ("GET / HTTP/1.1\r\nA: b\r\n folded\r\n\r\n".to_owned(), 400),
        ("GET / HTTP/1.1\r\nA : b\r\n\r\n".to_owned(), 400),
        ("\u{16}\u{3}\u{1}\0\u{a5}\u{1}".to_owned(), 400),
        (format!("GET / HTTP/1.1\r\n{many}\r\n"), 431),
        (format!("GET / HTTP/1.1\r\nX: {long}\r\n\r\n"), 431),
        (format!("GET /{long} HTTP/1.1\r\n\r\n"), 431),
    ] {
        let shown = &request[..request.len().min(60)];
        // After a good request on the same connection as well as before any.
        for before in [false, true] {
            let mut conn = server.connect();
            if before {
                conn.send(get("/health")).unwrap();
                conn.reply().unwrap();
            }
            let _ = conn.send(&request);
            let all = conn.read_to_end().unwrap();
            assert_eq!(answers_in(&all), 1, "{shown:?}: {}", text(&all));
            let (head, body) = text(&all).split_once("\r\n\r\n").map(own).unwrap();
            let line = head.lines().next().unwrap().to_owned();
            assert!(line.contains(&format!(" {status} ")), "{shown:?}: {line}");
            let body: serde_json::Value = serde_json::from_str(&body).unwrap();
            assert_eq!(body["ok"], false);
        }
    }
    server.get("/health");
}

fn own((a, b): (&str, &str)) -> (String, String) {
    (a.to_owned(), b.to_owned())
}

/// Two readers must never find different requests in the same bytes: where the length is told in two ways there is one answer and an end.
#[test]
fn no_shape_of_a_smuggled_request_gets_a_second_answer() {
    let host = dispatcher();
    let server = ApiServer::start_with(&host, "");
    for (version, framing, body) in [
        (
            "1.1",
            "Content-Length: 5\r\nTransfer-Encoding: chunked",
            "0\r\n\r\n",
        ),
        (
            "1.1",
            "Transfer-Encoding: chunked\r\nContent-Length: 5",
            "0\r\n\r\n",
        ),
        ("1.1", "Content-Length: 5\r\nContent-Length: 0", "12345"),
        ("1.1", "Content-Length: 0\r\nContent-Length: 5", "12345"),
        ("1.1", "Content-Length: 5, 0", "12345"),
        ("1.1", "Content-Length: +5", "12345"),
        ("1.1", "Content-Length: -5", "12345"),
        ("1.1", "Content-Length: 0x5", "12345"),
        ("1.1", "Content-Length: 5 5", "12345"),
        ("1.1", "Content-Length: 99999999999999999999", "12345"),
        ("1.1", "Content-Length:", "12345"),
        ("1.1", "Transfer-Encoding: xchunked", "0\r\n\r\n"),
        ("1.1", "Transfer-Encoding: identity", "0\r\n\r\n"),
        ("1.1", "Transfer-Encoding: chunked, identity", "0\r\n\r\n"),
        ("1.1", "Transfer-Encoding: gzip, chunked", "0\r\n\r\n"),
        ("1.1", "Transfer-Encoding: \u{b}chunked", "0\r\n\r\n"),
        ("1.1", "Transfer-Encoding : chunked", "0\r\n\r\n"),
        ("1.1", "X: y\r\n Transfer-Encoding: chunked", "0\r\n\r\n"),
        ("1.1", "Transfer-Encoding:\r\n chunked", "0\r\n\r\n"),
        (
            "1.1",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
            "0\r\n\r\n",
        ),
        ("1.1", "X: y\rTransfer-Encoding: chunked", "0\r\n\r\n"),
        ("1.1", "X: y\0\r\nContent-Length: 5", "12345"),
        ("1.0", "Transfer-Encoding: chunked", "0\r\n\r\n"),
        (
            "1.0",
            "Transfer-Encoding: chunked\r\nContent-Length: 5",
            "0\r\n\r\n",
        ),
        ("1.0", "Connection: keep-alive\r\nContent-Length: 0", ""),
    ] {
        let mut conn = server.connect();
        let mut bytes =
            format!("POST /nowhere HTTP/{version}\r\nHost: x\r\n{framing}\r\n\r\n{body}")
                .into_bytes();
        bytes.extend(get("/smuggled"));
        conn.send(bytes).unwrap();
        let all = conn
            .read_to_end()
            .unwrap_or_else(|e| panic!("{framing:?}: not closed: {e}"));
        assert!(answers_in(&all) <= 1, "{framing:?}: {}", text(&all));
        assert!(
            !text(&all).contains("smuggled"),
            "{framing:?}: {}",
            text(&all)
        );
    }
    // A body that comes after its answer is not a request.
    let mut conn = server.connect();
    let late = get("/smuggled");
    let head = format!(
        "POST /nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n",
        late.len()
    );
    conn.send(head).unwrap();
    std::thread::sleep(Duration::from_millis(200));
    let _ = conn.send(late);
    let _ = conn.finish();
    let all = conn.read_to_end().unwrap();
    assert!(
        answers_in(&all) <= 1 && !text(&all).contains("smuggled"),
        "{}",
        text(&all)
    );
    // Said twice in the same words it is said once.
    let mut conn = server.connect();
    conn.send("POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\n{}")
        .unwrap();
    conn.reply().unwrap();
}

#[test]
fn who_sends_slowly_or_nothing_is_given_up_and_nobody_waits_for_it() {
    let host = dispatcher();
    let server = ApiServer::start_with(&host, "");
    let mut silent = server.connect();
    let mut stalled = server.connect();
    stalled.send("GET /hea").unwrap();
    let mut drip = server.connect();
    let begun = Instant::now();
    let end = begun + Duration::from_secs(40);
    // One header line, for ever.
    drip.send("GET /health HTTP/1.1\r\nX: ").unwrap();
    while drip.send("y").is_ok() {
        assert!(Instant::now() < end, "the drip was never given up");
        server.get("/health");
        std::thread::sleep(Duration::from_millis(300));
    }
    for conn in [&mut silent, &mut stalled, &mut drip] {
        assert_eq!(answers_in(&conn.read_to_end().unwrap()), 0);
    }
}

#[test]
fn requests_above_the_cap_are_told_so_and_idle_connections_do_not_count() {
    let host = dispatcher();
    let server = ApiServer::start_with(&host, "api_max_children = 1\n");
    let mut idle: Vec<_> = (0..20).map(|_| server.connect()).collect();
    for conn in &mut idle {
        conn.send(get("/health")).unwrap();
        assert_ne!(conn.reply().unwrap().status, 503);
    }
    // A request whose headers are not complete takes the only place; it gives way when it takes its time, so: again until it is seen.
    let reply = wait_until("a request is refused", PATIENCE, || {
        let mut dawdler = server.connect();
        dawdler.send("POST /run HTTP/1.1\r\n").unwrap();
        std::thread::sleep(Duration::from_millis(20));
        let mut conn = server.connect();
        conn.send(post("/run", b"{}")).unwrap();
        let reply = conn.reply().unwrap();
        (reply.status == 503).then(|| {
            assert_eq!(conn.read_to_end().unwrap(), b"");
            reply
        })
    });
    let expected = serde_json::json!({
        "ok": false, "error": "service unavailable", "detail": "too many concurrent requests"
    });
    assert_eq!(reply.json(), expected);
    assert_eq!(reply.header("connection").as_deref(), Some("close"));
    let line = host.wait_for_log(&["ACTION=api-overload", "LIVE=1", "PEER=127.0.0.1"]);
    assert!(line.field("COUNT").is_some());

    // Whoever dawdles loses the place to whoever comes.
    let mut dawdler = server.connect();
    dawdler.send("POST /run HTTP/1.1\r\n").unwrap();
    wait_until("the dawdler gives way", PATIENCE, || {
        (server.get("/health").status != 503).then_some(())
    });
    assert_eq!(dawdler.read_to_end().unwrap(), b"");
    for conn in &mut idle {
        conn.send(get("/health")).unwrap();
        conn.reply().unwrap();
    }
}

#[test]
fn a_thousand_idle_connections_cost_little() {
    const MANY: usize = 1000;
    have_many_files();
    let host = dispatcher();
    let server = ApiServer::start_with(&host, "api_max_connections = 2100\n");
    for _ in 0..20 {
        server.get("/health");
    }
    let before = status_kib(server.pid(), "VmRSS:");
    let mut idle: Vec<_> = (0..MANY).map(|_| server.connect()).collect();
    for conn in &mut idle {
        conn.send(get("/health")).unwrap();
        conn.reply().unwrap();
    }
    let after = status_kib(server.pid(), "VmRSS:");
    let each = after.saturating_sub(before) * 1024 / MANY as u64;
    println!("{each} bytes per idle connection ({before} KiB, then {after} KiB)");
    assert!(each < 20 * 1024, "{each} bytes per idle connection");
    server.get("/health");
    for conn in &mut idle {
        conn.send(get("/health")).unwrap();
        conn.reply().unwrap();
    }
}

/// As many open files as this process may have.
fn have_many_files() {
    let limits = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let raised = rustix::process::Rlimit {
        current: limits.maximum,
        maximum: limits.maximum,
    };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, raised)
        .expect("the soft limit follows the hard one");
}

#[test]
fn ten_thousand_connections_of_one_address_keep_nobody_else_out() {
    have_many_files();
    let host = dispatcher();
    let server = ApiServer::start_with(&host, "api_socket = \"/run/api.sock\"\n");
    let path = host.path("run/api.sock");
    let before = status_kib(server.pid(), "VmRSS:");
    let mut held = std::collections::VecDeque::new();
    for n in 1..=10_000 {
        let mut conn = server.connect();
        // Half a request, so that it does not look idle.
        if n % 2 == 0 {
            let _ = conn.send(b"GET /health HTTP/1.1\r\n");
        }
        held.push_back(conn);
        if held.len() > 3000 {
            held.pop_front();
        }
        if n % 1000 == 0 {
            // Half requests hold their places for half a second; after that they give way.
            wait_until("somebody else is served", PATIENCE, || {
                let mut other = Conn::at(&path);
                other.send(get("/health")).ok()?;
                other.reply().ok().filter(|reply| reply.status == 200)
            });
        }
    }
    let files = std::fs::read_dir(format!("/proc/{}/fd", server.pid()))
        .unwrap()
        .count();
    assert!(files < 1024 + 64, "{files} open files");
    let after = status_kib(server.pid(), "VmRSS:");
    assert!(after - before < 32 * 1024, "{before} KiB, then {after} KiB");
    drop(held);
    wait_until("places are free again", PATIENCE, || {
        let mut conn = server.connect();
        conn.send(get("/health")).ok()?;
        conn.reply().ok().filter(|reply| reply.status == 200)
    });
}

#[test]
fn when_all_places_are_taken_the_longest_idle_one_is_given_up() {
    let host = dispatcher();
    // One address may have half of them.
    let server = ApiServer::start_with(&host, "api_max_connections = 8\n");
    let mut conns: Vec<_> = (0..4).map(|_| server.connect()).collect();
    for conn in &mut conns {
        conn.send(get("/health")).unwrap();
        conn.reply().unwrap();
    }
    server.get("/health");
    let mut first = conns.remove(0);
    assert_eq!(first.read_to_end().unwrap(), b"");
    for conn in &mut conns {
        conn.send(get("/health")).unwrap();
        conn.reply().unwrap();
    }
}

#[test]
fn at_the_end_idle_connections_are_closed_and_requests_in_progress_answered() {
    let host = dispatcher();
    let mut server = ApiServer::start_with(&host, "api_socket = \"/run/api.sock\"\n");
    let mut idle = server.connect();
    idle.send(get("/health")).unwrap();
    idle.reply().unwrap();
    let mut fresh = server.connect();
    let mut busy = server.connect();
    busy.send("GET /health HTTP/1.1\r\n").unwrap();
    // It has been read when a later one is answered.
    server.get("/health");
    server.term();
    assert_eq!(idle.read_to_end().unwrap(), b"");
    assert_eq!(fresh.read_to_end().unwrap(), b"");
    assert!(!host.exists("run/api.sock"));
    busy.send("Host: x\r\n\r\n").unwrap();
    let reply = busy.reply().unwrap();
    assert_eq!(reply.header("connection").as_deref(), Some("close"));
    assert_eq!(busy.read_to_end().unwrap(), b"");
    assert!(server.daemon().wait(PATIENCE).success());
    host.wait_for_log(&["ACTION=api-stop"]);
}

#[test]
fn a_second_signal_does_not_wait() {
    let host = dispatcher();
    let mut server = ApiServer::start_with(&host, "");
    let mut busy = server.connect();
    busy.send("GET /health HTTP/1.1\r\n").unwrap();
    let mut idle = server.connect();
    idle.send(get("/health")).unwrap();
    idle.reply().unwrap();
    server.term();
    assert_eq!(idle.read_to_end().unwrap(), b"");
    server.term();
    assert!(server.daemon().wait(PATIENCE).success());
}

#[test]
fn a_reload_is_all_or_nothing() {
    let host = dispatcher();
    let mut server = ApiServer::start_with(&host, "");
    let good = host.read(common::api::CONFIG);
    let mut kept = server.connect();
    kept.send(get("/health")).unwrap();
    kept.reply().unwrap();

    host.write(common::api::CONFIG, "api_max_children = 0\n", 0o640);
    server.hup();
    host.wait_for_log(&["ACTION=config-reload", "ERROR=", "api_max_children"]);
    server.get("/health");

    host.clear_log();
    host.write(
        common::api::CONFIG,
        format!("api_max_children = 5\n{good}"),
        0o640,
    );
    server.hup();
    host.wait_for_log(&["ACTION=config-reload", "KEY=api_max_children", "restart"]);
    host.wait_for_log(&["ACTION=config-reload", "TLS=no"]);
    kept.send(get("/health")).unwrap();
    kept.reply().unwrap();
    assert!(server.daemon().is_running());
}

#[test]
fn the_unix_socket_serves_beside_tcp_and_alone() {
    let host = dispatcher();
    // Left by a server that was killed.
    let stale = UnixListener::bind(host.path("run/api.sock")).unwrap();
    drop(stale);
    let mut server = ApiServer::start_with(&host, "api_socket = \"/run/api.sock\"\n");
    let path = host.path("run/api.sock");
    let mut conn = Conn::at(&path);
    for _ in 0..2 {
        conn.send(get("/health")).unwrap();
        conn.reply().unwrap();
    }
    server.get("/health");
    assert_eq!(host.mode("run/api.sock"), 0o660);
    host.wait_for_log(&["ACTION=api-start", "SOCKET=", "run/api.sock", "TLS=no"]);
    server.term();
    assert!(server.daemon().wait(PATIENCE).success());
    assert!(!path.exists());

    let mut server = ApiServer::start_with(&host, "api_tcp = false\napi_socket_mode = \"0600\"\n");
    assert_eq!(server.address().port(), 0);
    assert_eq!(host.mode("run/api.sock"), 0o600);
    let mut conn = Conn::at(&path);
    conn.send(get("/health")).unwrap();
    conn.reply().unwrap();
    // One that somebody else has put there meanwhile stays.
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, "").unwrap();
    server.term();
    assert!(server.daemon().wait(PATIENCE).success());
    assert!(path.exists());
    let said = host.run("ced-api", &[]).expect_code(1).err();
    assert!(
        said.contains("run/api.sock") && said.contains("something else"),
        "{said}"
    );
}

/// Starts the server as a service manager does that has opened its sockets: descriptors 3 and 4.
fn activated(host: &Host, one: &impl AsFd, two: &impl AsFd) -> Daemon {
    const MANAGER: &str = "\
import fcntl, os, sys
one, two = [fcntl.fcntl(int(n), fcntl.F_DUPFD_CLOEXEC, 100) for n in sys.argv[1:3]]
os.dup2(one, 3)
os.dup2(two, 4)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='2')
os.execv(sys.argv[3], sys.argv[3:])
";
    let inner = host.command("ced-api");
    let mut command = Command::new("python3");
    command.args(["-c", MANAGER]).env_clear();
    for socket in [one.as_fd(), two.as_fd()] {
        rustix::io::fcntl_setfd(socket, rustix::io::FdFlags::empty()).expect("an open socket");
        command.arg(socket.as_raw_fd().to_string());
    }
    command.arg(inner.get_program()).stdin(Stdio::null());
    for (key, value) in inner.get_envs() {
        command.env(key, value.unwrap_or_default());
    }
    Daemon::start(&mut command)
}

#[test]
fn sockets_that_a_service_manager_has_opened_are_used_as_they_are() {
    let host = dispatcher();
    configure(&host, "api_socket = \"/run/mine.sock\"\n");
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let unix = UnixListener::bind(host.path("run/theirs.sock")).unwrap();
    let mut server = activated(&host, &tcp, &unix);
    let mut conn = Conn::new(TcpStream::connect(tcp.local_addr().unwrap()).unwrap());
    conn.send(get("/health")).unwrap();
    conn.reply().unwrap();
    let mut conn = Conn::at(&host.path("run/theirs.sock"));
    conn.send(get("/health")).unwrap();
    conn.reply().unwrap();
    server.wait_for_text("run/theirs.sock");
    assert!(!host.exists("run/mine.sock"));
    server.signal(rustix::process::Signal::TERM);
    assert!(server.wait(PATIENCE).success());
    assert!(host.exists("run/theirs.sock"), "it was not ours to remove");

    // What is not a listening socket is refused.
    let file = std::fs::File::open("/dev/null").unwrap();
    let mut server = activated(&host, &tcp, &file);
    assert_eq!(server.wait(PATIENCE).code(), Some(1));
    assert!(server.err().contains("LISTEN_FDS"), "{}", server.err());
}
