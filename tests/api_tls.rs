//! TLS of `ced-api`: its certificate, those of its clients, HTTP/2 (spec/api.md 1, 16.3, 16.4, 17).

mod common;

use std::io::ErrorKind;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use common::api::ApiServer;
use common::api::{CONFIG, configure, get, post};
use common::fleet::{new_dispatcher, status_kib};
use common::openssl::{Authority, Dates, Leaf};
use common::tls::{Client, TLS12, TLS13};
use common::{Host, PATIENCE, wait_until};

const TLS_LINES: &str =
    "api_cert = \"/etc/ctrl-exec/api.crt\"\napi_key = \"/etc/ctrl-exec/api.key\"\n";
const CLIENT_CA: &str = "api_client_ca = \"/etc/ctrl-exec/clients.crt\"\n";
const SERVER: &str = "subjectAltName=DNS:api.test\nextendedKeyUsage=serverAuth\n";

/// A dispatcher host with a certificate for its API, of a CA that is not the fleet's.
fn dispatcher() -> Host {
    let host = new_dispatcher("ctl.test");
    put(
        &host,
        &Authority::shared().issue_v3("api.test", "51", SERVER),
    );
    host
}

fn put(host: &Host, leaf: &Leaf) {
    host.write("etc/ctrl-exec/api.crt", leaf.cert_pem(), 0o644);
    host.write("etc/ctrl-exec/api.key", leaf.key_pem(), 0o600);
}

fn connect(server: &ApiServer, identity: Option<&Leaf>) -> std::io::Result<Client> {
    Client::connect(server.address(), identity, TLS13)
}

/// Whether a request is answered; under TLS 1.3 a refused certificate shows only then.
fn is_served(server: &ApiServer, identity: Option<&Leaf>) -> bool {
    let ask = || {
        let mut client = connect(server, identity)?;
        client.send(get("/health"))?;
        client.reply()
    };
    ask().is_ok_and(|reply| reply.status != 403)
}

#[test]
fn requests_are_served_over_both_versions_and_the_connection_is_kept() {
    let host = dispatcher();
    let server = ApiServer::start_with(&host, TLS_LINES);
    for version in [TLS12, TLS13] {
        let mut client = Client::connect(server.address(), None, version).unwrap();
        assert_eq!(client.protocol(), None);
        for request in [get("/health"), post("/nowhere", b"{}"), get("/health")] {
            client.send(request).unwrap();
            client.reply().unwrap().json();
        }
    }
    host.wait_for_log(&["ACTION=api-start", "TLS=yes"]);
    // Plain HTTP gets no answer, and is no trouble.
    let mut plain = server.connect();
    plain.send(get("/health")).unwrap();
    let said = plain.read_to_end().unwrap();
    assert!(!said.starts_with(b"HTTP"), "answered in clear");
    host.wait_for_log(&["ACTION=tls-failure", "PEER=127.0.0.1"]);
    assert!(is_served(&server, None));
}

#[test]
fn a_chain_is_sent_and_every_encoding_of_a_key_is_read() {
    let host = dispatcher();
    let root = Authority::new("some root", 2048);
    let ca = "basicConstraints=critical,CA:TRUE\nkeyUsage=keyCertSign\n";
    let between = root.issue_v3("in between", "61", ca);
    host.write("ca/ca.crt", between.cert_pem(), 0o644);
    host.write("ca/ca.key", between.key_pem(), 0o600);
    let between = (Authority::at(&host.path("ca")), between);
    let leaf = between.0.issue_v3("api.test", "62", SERVER);
    let chain = format!("{}{}", leaf.cert_pem(), between.1.cert_pem());
    host.write("etc/ctrl-exec/api.crt", chain, 0o644);
    let sec1 = common::openssl::openssl(&["ec", "-in", leaf.key.to_str().unwrap()]);
    assert!(sec1.contains("BEGIN EC PRIVATE KEY"));
    host.write("etc/ctrl-exec/api.key", sec1, 0o600);
    let server = ApiServer::start_with(&host, TLS_LINES);
    let (fine, said) = common::openssl::try_openssl(&[
        "s_client",
        "-connect",
        &server.address().to_string(),
        "-CAfile",
        root.path("ca.crt").to_str().unwrap(),
        "-verify_hostname",
        "api.test",
        "-verify_return_error",
    ]);
    assert!(
        fine && said.contains("Verify return code: 0 (ok)"),
        "{said}"
    );
}

/// The original falls back to plain HTTP: tokens would travel in clear.
#[test]
fn a_certificate_or_key_that_cannot_be_used_keeps_the_server_from_starting() {
    let host = dispatcher();
    configure(&host, TLS_LINES);
    let refused = |what: &str| {
        let run = host.run("ced-api", &[]).expect_code(78);
        assert!(run.err().contains(what), "{what}: {}", run.err());
        assert!(!run.out().contains("listening"));
    };
    let key = host.read("etc/ctrl-exec/api.key");
    std::fs::remove_file(host.path("etc/ctrl-exec/api.key")).unwrap();
    refused("etc/ctrl-exec/api.key");
    host.write("etc/ctrl-exec/api.key", "no key", 0o600);
    refused("etc/ctrl-exec/api.key");
    host.write("etc/ctrl-exec/api.key", &key, 0o644);
    refused("etc/ctrl-exec/api.key");
    let other = Authority::shared().issue_v3("api.test", "52", SERVER);
    host.write("etc/ctrl-exec/api.key", other.key_pem(), 0o600);
    refused("does not belong to the certificate");
    host.write("etc/ctrl-exec/api.key", key, 0o600);
    host.write("etc/ctrl-exec/api.crt", "no certificate", 0o644);
    refused("etc/ctrl-exec/api.crt");
    std::fs::remove_file(host.path("etc/ctrl-exec/api.crt")).unwrap();
    refused("etc/ctrl-exec/api.crt");

    put(&host, &other);
    host.write(
        CONFIG,
        format!("{TLS_LINES}{CLIENT_CA}api_port = 0\n"),
        0o640,
    );
    refused("etc/ctrl-exec/clients.crt");
    host.write("etc/ctrl-exec/clients.crt", "no certificate", 0o644);
    refused("etc/ctrl-exec/clients.crt");
    host.write("etc/ctrl-exec/clients.crt", other.cert_pem(), 0o644);
    refused("etc/ctrl-exec/clients.crt");
}

#[test]
fn client_certificates_are_verified_and_can_be_required() {
    let host = dispatcher();
    let clients = Authority::new("people", 2048);
    host.write("etc/ctrl-exec/clients.crt", clients.cert_pem(), 0o644);
    let alice = clients.issue_v3("alice", "71", "extendedKeyUsage=clientAuth\n");
    let late = clients.issue("late", "72", Dates::Expired);
    let mallory = Authority::foreign().issue_v3("alice", "71", "extendedKeyUsage=clientAuth\n");

    let lines = format!("{TLS_LINES}{CLIENT_CA}");
    let server = ApiServer::start_with(&host, &lines);
    assert!(is_served(&server, None));
    assert!(is_served(&server, Some(&alice)));
    assert!(!is_served(&server, Some(&late)));
    assert!(!is_served(&server, Some(&mallory)));
    drop(server);

    let server = ApiServer::start_with(&host, "api_client_cert = \"required\"\n");
    assert!(!is_served(&server, None));
    assert!(is_served(&server, Some(&alice)));
    assert!(!is_served(&server, Some(&mallory)));

    // A journal that cannot be read is no reason to forget what was known.
    host.write("etc/ctrl-exec/revoked.jsonl", "no journal\n", 0o640);
    wait_until("the journal is looked at", PATIENCE, || {
        assert!(is_served(&server, Some(&alice)));
        let said = host.log_of("identity-reload");
        said.iter().any(|l| l.text.contains("ERROR=")).then_some(())
    });
    // A revocation counts without a word to the server, for connections that exist as well.
    let mut kept = connect(&server, Some(&alice)).unwrap();
    kept.send(get("/health")).unwrap();
    assert_ne!(kept.reply().unwrap().status, 403);
    let entry = "{\"serial\":\"71\",\"time\":\"2026-01-02T03:04:05Z\"}\n";
    host.write("etc/ctrl-exec/revoked.jsonl", entry, 0o640);
    wait_until("the revocation counts", PATIENCE, || {
        (!is_served(&server, Some(&alice))).then_some(())
    });
    kept.send(get("/health")).unwrap();
    assert_eq!(kept.reply().unwrap().status, 403);
    assert_eq!(kept.read_to_end().unwrap(), b"");
    host.wait_for_log(&["ACTION=tls-failure", "revoked"]);
}

#[test]
fn a_reload_brings_a_new_certificate_and_never_an_unusable_one() {
    let host = dispatcher();
    let server = ApiServer::start_with(&host, TLS_LINES);
    let shown = || connect(&server, None).unwrap().peer_certificate();
    let first = shown();
    let mut kept = connect(&server, None).unwrap();

    host.write("etc/ctrl-exec/api.crt", "half a certifi", 0o644);
    server.hup();
    host.wait_for_log(&["ACTION=config-reload", "ERROR=", "api.crt"]);
    assert_eq!(shown(), first);

    put(
        &host,
        &Authority::shared().issue_v3("api.test", "53", SERVER),
    );
    server.hup();
    host.wait_for_log(&["ACTION=config-reload", "TLS=yes"]);
    assert_ne!(shown(), first);
    kept.send(get("/health")).unwrap();
    kept.reply().unwrap();

    host.clear_log();
    host.write(CONFIG, "api_port = 0\n", 0o640);
    server.hup();
    host.wait_for_log(&[
        "ACTION=config-reload",
        "ERROR=",
        "only a restart turns TLS off",
    ]);
    assert!(is_served(&server, None));
}

#[test]
fn who_says_nothing_in_the_handshake_keeps_nobody_waiting() {
    let host = dispatcher();
    let server = ApiServer::start_with(&host, TLS_LINES);
    let mut silent: Vec<_> = (0..5).map(|_| server.connect()).collect();
    // More than there are places for handshakes.
    let many: Vec<_> = (0..140).map(|_| server.connect()).collect();
    assert!(is_served(&server, None));
    drop(many);
    let end = Instant::now() + Duration::from_secs(40);
    for conn in &mut silent {
        let _ = conn.read_to_end().unwrap();
        assert!(Instant::now() < end);
    }
    host.wait_for_log(&["ACTION=tls-failure", "PEER=127.0.0.1"]);
}

#[test]
fn an_idle_connection_is_small_with_tls_too() {
    const MANY: usize = 200;
    let host = dispatcher();
    let server = ApiServer::start_with(&host, TLS_LINES);
    for _ in 0..20 {
        assert!(is_served(&server, None));
    }
    // What a connection needs is memory of the process; the code that serves it is there once, and comes when it is first needed.
    let own = || {
        std::thread::sleep(Duration::from_millis(200));
        status_kib(server.pid(), "RssAnon:")
    };
    let before = own();
    let mut idle: Vec<_> = (0..MANY).map(|_| connect(&server, None).unwrap()).collect();
    for client in &mut idle {
        client.send(get("/health")).unwrap();
        client.reply().unwrap();
    }
    let after = own();
    let each = after.saturating_sub(before) * 1024 / MANY as u64;
    println!("{each} bytes per idle TLS connection ({before} KiB, then {after} KiB)");
    assert!(each < 24 * 1024, "{each} bytes per idle TLS connection");
}

// ---- HTTP/2, by hand ----

const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len())
        .expect("a short frame")
        .to_be_bytes();
    let mut bytes = length[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// `GET https://x/health` in the words of the static table.
fn request(stream: u32) -> Vec<u8> {
    let block = b"\x82\x87\x04\x07/health\x01\x01x";
    frame(HEADERS, END_HEADERS | END_STREAM, stream, block)
}

fn http2(server: &ApiServer) -> Client {
    let tcp = TcpStream::connect(server.address()).expect("an open connection");
    let mut client =
        Client::offering(tcp, None, TLS13, &[b"h2", b"http/1.1"]).expect("an open connection");
    assert_eq!(client.protocol().as_deref(), Some(&b"h2"[..]));
    client
        .send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        .expect("an open connection");
    client
        .send(frame(SETTINGS, 0, 0, &[]))
        .expect("an open connection");
    client
}

/// The next frame: kind, flags, stream, payload.
fn next(client: &mut Client) -> std::io::Result<(u8, u8, u32, Vec<u8>)> {
    let mut head = [0; 9];
    client.read_exact(&mut head)?;
    let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
    let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
    let mut payload = vec![0; usize::try_from(length).expect("a length")];
    client.read_exact(&mut payload)?;
    Ok((head[3], head[4], stream, payload))
}

/// The bodies of so many answers.
fn bodies(client: &mut Client, mut many: usize) -> Vec<serde_json::Value> {
    let mut open = std::collections::BTreeMap::<u32, Vec<u8>>::new();
    let mut done = Vec::new();
    while many > 0 {
        let (kind, flags, stream, payload) = next(client).expect("whole JSON answers");
        assert_ne!(kind, RST_STREAM);
        if kind == DATA {
            open.entry(stream).or_default().extend(payload);
        }
        if matches!(kind, DATA | HEADERS) && flags & END_STREAM != 0 {
            many -= 1;
            let body = open.remove(&stream).unwrap_or_default();
            done.push(serde_json::from_slice(&body).expect("whole JSON answers"));
        }
    }
    done
}

#[test]
fn http2_is_spoken_with_whoever_offers_it() {
    let host = dispatcher();
    let mut server = ApiServer::start_with(&host, TLS_LINES);
    let mut client = http2(&server);
    client
        .send([request(1), request(3), request(5)].concat())
        .unwrap();
    for body in bodies(&mut client, 3) {
        assert!(body["ok"].is_boolean(), "{body}");
    }
    client.send(request(7)).unwrap();
    bodies(&mut client, 1);

    // Whoever offers only HTTP/1.1 gets that.
    let tcp = TcpStream::connect(server.address()).unwrap();
    let mut old = Client::offering(tcp, None, TLS13, &[b"http/1.1"]).unwrap();
    assert_eq!(old.protocol().as_deref(), Some(&b"http/1.1"[..]));
    old.send(get("/health")).unwrap();
    old.reply().unwrap();

    // At the end the connection is taken leave of.
    server.term();
    let mut farewell = false;
    while let Ok((kind, ..)) = next(&mut client) {
        farewell |= kind == GOAWAY;
    }
    assert!(farewell);
    assert!(server.daemon().wait(PATIENCE).success());
}

#[test]
fn a_flood_of_streams_that_are_reset_ends_the_connection() {
    let host = dispatcher();
    let server = ApiServer::start_with(&host, TLS_LINES);
    let mut client = http2(&server);
    let cancel = 8u32.to_be_bytes();
    for burst in 0..400u32 {
        let mut bytes = Vec::new();
        for stream in 0..50 {
            let id = 2 * (burst * 50 + stream) + 1;
            bytes.extend(request(id));
            bytes.extend(frame(RST_STREAM, 0, id, &cancel));
        }
        if client.send(bytes).is_err() {
            break;
        }
    }
    let end = loop {
        if let Err(end) = next(&mut client) {
            break end.kind();
        }
    };
    let silence = [ErrorKind::WouldBlock, ErrorKind::TimedOut];
    assert!(!silence.contains(&end), "twenty thousand resets were borne");
    assert!(is_served(&server, None));
}
