//! The other endpoints, and what is refused before any of them.

use super::*;

#[test]
fn ping_and_capabilities_say_what_the_specification_says() {
    let fleet = Fleet::new();
    let sidecar = fleet.scripts().join("hello.schema.json");
    std::fs::write(&sidecar, "{\"version\":\"2\",\"arguments\":[]}").unwrap();
    fleet.play(|stage| async move {
        let (status, answer) = stage.call("POST", "/ping", b"{\"reqid\":\"p1\"}").await;
        assert_eq!(status, 200);
        assert_eq!(answer["status"], "ok");
        assert_eq!(answer["host"], "agent1.example");
        assert_eq!(answer["staged"], json!(false));
        assert_eq!(answer["reqid"], "p1");
        assert!(answer["expiry"].as_str().unwrap().ends_with(" GMT"));
        for body in ["", "[]", "nonsense"] {
            let (status, answer) = stage.call("POST", "/ping", body.as_bytes()).await;
            assert_eq!((status, &answer["reqid"]), (200, &json!("")));
        }
        let (status, answer) = stage.call("GET", "/capabilities", b"").await;
        assert_eq!(status, 200);
        assert_eq!(answer["tags"], json!({"role": "test"}));
        let script = &answer["scripts"][0];
        assert_eq!(script["name"], "hello");
        assert_eq!(script["executable"], json!(true));
        assert_eq!(script["profile"], "default");
        assert_eq!(script["schema_version"], "2");
        assert_eq!(script["schema"]["arguments"], json!([]));
    });
}

#[test]
fn what_does_not_exist_is_404_whoever_asks_and_a_result_is_unknown() {
    let fleet = Fleet::new();
    let stranger = fleet.agent_identity("agent2");
    fleet.play(|stage| async move {
        for (method, path) in [
            ("GET", "/"),
            ("GET", "/run"),
            ("run", "/run"),
            ("post", "/run"),
            ("POST", "/run/"),
            ("POST", "/RUN"),
            ("POST", "/run?x=1"),
            ("POST", "/capabilities"),
            ("GET", "/rotate-serial"),
            ("GET", "/renew"),
            ("POST", "/renew/complete"),
            ("GET", "/revoke"),
            ("GET", "/ca"),
            ("GET", "/result/"),
            ("GET", "/result/a.b"),
            ("GET", "/result/%61"),
            ("GET", "/result/a/b"),
        ] {
            let (status, answer) = stage.call(method, path, b"{}").await;
            assert_eq!(
                (status, answer),
                (404, json!({"error": "not found"})),
                "{method} {path}"
            );
        }
        let (status, _) = stage.call_as(&stranger, "GET", "/result/a.b", b"").await;
        assert_eq!(status, 404);
        let (status, answer) = stage.call("GET", "/result/abc-1", b"").await;
        assert_eq!(
            (status, answer),
            (404, json!({"status": "unknown", "reqid": "abc-1"}))
        );
    });
}

#[test]
fn who_is_not_a_trusted_dispatcher_gets_403_and_nothing_else() {
    let fleet = Fleet::new();
    let agent = fleet.agent_identity("agent2");
    let other = dispatcher_of(&fleet.authority, "other");
    // An agent whose serial somebody put into the map is still an agent.
    fleet.trust(&agent, "agent2");
    fleet.play(|stage| async move {
        let mismatch = json!({"error": "serial mismatch", "status": "forbidden"});
        for who in [&agent, &other] {
            for (method, path) in [("POST", "/run"), ("POST", "/ping"), ("GET", "/result/r")] {
                let (status, answer) = stage.call_as(who, method, path, b"{}").await;
                assert_eq!((status, &answer), (403, &mismatch), "{path}");
            }
            let (status, answer) = stage.call_as(who, "GET", "/capabilities", b"").await;
            assert_eq!((status, answer), (403, json!({"error": "forbidden"})));
        }
        // A refusal arrives whole although the request is large and unread.
        let body = vec![b' '; 900_000];
        let (status, answer) = stage.call_as(&other, "POST", "/run", &body).await;
        assert_eq!((status, &answer), (403, &mismatch));
    });
}

#[test]
fn a_revoked_certificate_is_refused_before_all_else() {
    let fleet = Fleet::new();
    let serial = fleet.dispatcher.certificate().serial.to_string();
    fleet.write(
        "revoked-serials",
        &format!("# lost\n{serial} # stolen\n"),
        0o644,
    );
    fleet.play(|stage| async move {
        for path in ["/ping", "/nonsense"] {
            let (status, answer) = stage.call("POST", path, b"{}").await;
            assert_eq!(
                (status, answer),
                (403, json!({"error": "certificate revoked"}))
            );
        }
    });
}

#[test]
fn framing_follows_the_limits_of_the_specification() {
    let fleet = Fleet::new();
    fleet.play(|stage| async move {
        // Nothing at all.
        let mut stream = stage.connect_as(&stage.dispatcher.clone()).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert_eq!(parse(&answer), (400, json!({"error": "empty request"})));

        let with_headers = |n: usize| {
            let mut request = "POST /ping HTTP/1.0\r\nContent-Length: 2\r\n".to_owned();
            for i in 1..n {
                request.push_str(&format!("X-{i}: y\r\n"));
            }
            request + "\r\n{}"
        };
        assert_eq!(parse(&stage.raw(with_headers(32).as_bytes()).await).0, 200);
        assert_eq!(
            parse(&stage.raw(with_headers(33).as_bytes()).await),
            (431, json!({"error": "too many headers"}))
        );

        let body = |n: usize| {
            let mut body = br#"{"reqid":"x"}"#.to_vec();
            body.resize(n, b' ');
            body
        };
        assert_eq!(stage.call("POST", "/ping", &body(1_048_576)).await.1["reqid"], "x");
        assert_eq!(
            stage.call("POST", "/ping", &body(1_048_577)).await,
            (413, json!({"error": "request too large"}))
        );
        let mut chunked = b"POST /ping HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n".to_vec();
        for _ in 0..20 {
            chunked.extend_from_slice(b"10000\r\n");
            chunked.extend_from_slice(&[b' '; 0x10000]);
            chunked.extend_from_slice(b"\r\n");
        }
        chunked.extend_from_slice(b"0\r\n\r\n");
        assert_eq!(parse(&stage.raw(&chunked).await).0, 413);

        let lines = stage
            .raw(b"POST /ping HTTP/1.0\nContent-Length: 13\n\n{\"reqid\":\"y\"}")
            .await;
        assert!(lines.starts_with("HTTP/1.0 200 OK\r\n"), "{lines}");
        assert_eq!(parse(&lines).1["reqid"], "y");
    });
}

#[test]
fn a_body_may_come_in_pieces_and_a_connection_may_serve_several_requests() {
    let fleet = Fleet::new();
    fleet.play(|stage| async move {
        let mut stream = stage.connect_as(&stage.dispatcher.clone()).await.unwrap();
        for round in 0..3 {
            let body = format!("{{\"reqid\":\"k{round}\"}}");
            let head = format!(
                "POST /ping HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n",
                body.len()
            );
            stream.write_all(head.as_bytes()).await.unwrap();
            stream.flush().await.unwrap();
            for byte in body.as_bytes() {
                sleep(Duration::from_millis(2)).await;
                stream.write_all(&[*byte]).await.unwrap();
            }
            let mut answer = Vec::new();
            let wanted = format!("\"k{round}\"");
            while !String::from_utf8_lossy(&answer).contains(&wanted) {
                let mut chunk = [0; 1024];
                let n = timeout(PATIENCE, stream.read(&mut chunk))
                    .await
                    .unwrap()
                    .unwrap();
                assert!(n > 0, "closed after {round} requests");
                answer.extend_from_slice(&chunk[..n]);
            }
            assert!(answer.starts_with(b"HTTP/1.1 200 OK"));
        }
    });
}
