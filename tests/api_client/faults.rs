//! Servers that are not there, are others, or do not finish. Every sentence names the URL.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::common::{Host, free_port};
use crate::stub::{Answer, Stub, api, json, raw};

#[test]
fn nobody_is_there() {
    let host = Host::new("client.test");
    let url = format!("http://127.0.0.1:{}", free_port());
    let run = api(&host, &url, &["health"]).expect_code(1);
    assert!(
        run.err().starts_with(&format!("{url}: connection refused")),
        "{}",
        run.err()
    );
    api(&host, "http://nowhere.invalid", &["health"])
        .expect_code(1)
        .err_has("http://nowhere.invalid:80: the name of the host does not resolve");
    let socket = format!("unix:{}", host.path("run/none.sock").display());
    api(&host, &socket, &["health"])
        .expect_code(1)
        .err_has("there is no such socket");
    host.write("run/file.sock", "", 0o644);
    let file = format!("unix:{}", host.path("run/file.sock").display());
    api(&host, &file, &["health"])
        .expect_code(1)
        .err_has("nothing listens at this socket");
}

#[test]
fn somebody_else_is_there() {
    let html = "<html>login</html>";
    let page = |status: &str, more: &str| {
        raw(&format!(
            "HTTP/1.1 {status}\r\nContent-Type: text/html\r\n{more}Content-Length: {}\r\n\r\n{html}",
            html.len()
        ))
    };
    let bare = raw("HTTP/1.0 200 OK\r\n\r\n{\"ok\":true}");
    let liar =
        raw("HTTP/1.0 200 OK\r\nContent-Type: application/json\r\nContent-Length: 3\r\n\r\n{\"o");
    for (answer, told) in [
        (
            page("200 OK", ""),
            "the answer (200) is text/html, not JSON",
        ),
        (
            page("502 Bad", ""),
            "the answer (502) is text/html, not JSON",
        ),
        (
            page("302 Found", "Location: http://elsewhere/\r\n"),
            "go elsewhere (http://elsewhere/), which is not done",
        ),
        (bare, "nothing that says what it is"),
        (liar, "calls itself JSON and is no object"),
        (json(200, &json!([1])), "is no object"),
        (json(200, &json!({"hello": 1})), "does not say 'ok'"),
        (raw("SSH-2.0-OpenSSH_9.9\r\n"), "does not speak HTTP"),
    ] {
        let stub = Stub::new(&[answer]);
        // Nobody is sent on with a token.
        let run = stub.api(&["health", "--token", "t0k"]).expect_code(1);
        let err = run.err();
        assert!(err.starts_with(&format!("{}: ", stub.url)), "{err}");
        assert!(err.contains(told), "{told}: {err}");
        assert!(!err.contains("t0k"), "{err}");
        assert_eq!(stub.heard().len(), 1);
    }
}

#[test]
fn answers_that_do_not_end() {
    let head = "HTTP/1.0 200 OK\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n";
    let begun = format!("{head}{{\"ok\":true,");
    let none = raw("");
    for cut in [none, raw(&head[..40]), raw(&begun)] {
        let stub = Stub::new(&[cut]);
        let run = stub.api(&["run", "a", "s"]).expect_code(1);
        let err = run.err();
        assert!(
            err.contains("closed before the answer was complete"),
            "{err}"
        );
        assert!(err.contains("may run all the same"), "{err}");
    }
    for held in [String::new(), head.to_owned(), begun] {
        let stub = Stub::new(&[Answer::Hold(held.into_bytes())]);
        let start = Instant::now();
        stub.api(&["health", "--timeout", "1"])
            .expect_code(1)
            .err_has("no word for 1s");
        assert!(start.elapsed() < Duration::from_secs(30));
    }
    let stub = Stub::new(&[Answer::Hold(Vec::new())]);
    stub.api(&["wait", "a1", "--timeout", "1"])
        .expect_code(2)
        .err_has("did not answer within 1s");
}

#[test]
fn huge_answers_are_not_swallowed() {
    // 97 MiB announced, and the same without an announcement.
    let huge = 97 * 1024 * 1024;
    let announced = raw(&format!(
        "HTTP/1.0 200 OK\r\nContent-Type: application/json\r\nContent-Length: {huge}\r\n\r\n"
    ));
    let mut endless = b"HTTP/1.0 200 OK\r\nContent-Type: application/json\r\n\r\n\"".to_vec();
    endless.resize(endless.len() + huge, b'x');
    for answer in [announced, Answer::Bytes(endless)] {
        let stub = Stub::new(&[answer]);
        stub.api(&["health"])
            .expect_code(1)
            .err_has("the answer is larger than");
    }
    // Headers without an end have a bound too.
    let mut headers = b"HTTP/1.0 200 OK\r\nX: ".to_vec();
    headers.resize(headers.len() + 4 * 1024 * 1024, b'x');
    Stub::new(&[Answer::Bytes(headers)])
        .api(&["health"])
        .expect_code(1);
}

#[test]
fn a_request_that_is_too_large_is_not_sent() {
    let stub = Stub::new(&[json(200, &json!({"ok": true}))]);
    let long = "x".repeat(100_000);
    let mut words = vec!["run", "a", "s", "--"];
    words.extend(std::iter::repeat_n(long.as_str(), 11));
    stub.api(&words)
        .expect_code(1)
        .err_has("the request is too large");
    assert!(stub.heard().is_empty());
}
