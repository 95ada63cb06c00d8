//! Who gets a connection, and who keeps it.

use std::sync::atomic::Ordering;

use super::*;
use crate::core::client::exchange::{Client, Presented};
use crate::core::client::pool::{Counters, Pool};
use crate::core::registry::{AgentRecord, Target};
use crate::core::revocation::Revocations;

/// The API asks the same agents again and again: a handshake costs more than most answers.
#[test]
fn a_dispatcher_that_keeps_its_connection_may_come_back_on_it() {
    let fleet = Fleet::new();
    fleet.play(|stage| async move {
        let clock = Clock::system(0);
        let presented = Presented {
            serial: stage.dispatcher.certificate().serial.clone(),
            tls: tls::client_config(&stage.dispatcher, &stage.cas, clock.clone()).unwrap(),
        };
        let counters = Arc::new(Counters::default());
        let revoked = Revocations::default();
        let client = Client::new(vec![presented], revoked, clock, PATIENCE, PATIENCE)
            .with_pool(Pool::new(counters.clone()));
        let mut record = AgentRecord::new(AgentName::new("agent1").unwrap());
        record.hostname = stage.address.ip().to_string();
        record.port = stage.address.port();
        let target = Target::of(record);
        let run = json!({"script": "hello", "args": [], "reqid": "00000000000000a1", "username": "", "token": ""});
        for (method, path, body, status) in [
            ("POST", "/ping", Some(json!({"reqid": "00000000000000a0"})), Some(200)),
            ("GET", "/capabilities", None, Some(200)),
            ("GET", "/result/00000000000000a2", None, None),
            ("POST", "/run", Some(run), Some(200)),
        ] {
            let body = body.map(|b| b.to_string().into_bytes());
            let answer = client.exchange(&target, method.parse().unwrap(), path, body).await;
            assert_eq!(answer.ok().map(|a| a.status), status, "{path}");
        }
        let count = |of: &std::sync::atomic::AtomicU64| of.load(Ordering::Relaxed);
        let counts = [&counters.fresh, &counters.reused, &counters.idle].map(count);
        assert_eq!(counts, [1, 3, 1]);
    });
}

#[test]
fn a_stranger_cannot_hold_a_connection() {
    let fleet = Fleet::new();
    let stranger = fleet.agent_identity("agent2");
    fleet.play(|stage| async move {
        for path in ["/ping", "/nonsense"] {
            let request =
                format!("POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{{}}");
            let answer = stage.raw_as(&stranger, request.as_bytes()).await;
            assert!(answer.contains("\r\nconnection: close\r\n"), "{answer}");
        }
    });
}

#[test]
fn a_certificate_out_of_its_dates_is_refused_but_is_no_probe() {
    const LONG_AGO: i64 = 1_600_000_000;
    let fleet = Fleet::new();
    let ca_dir = fleet.dir.path().join("old-ca");
    std::fs::create_dir(&ca_dir).unwrap();
    let then = Clock::fixed(LONG_AGO);
    let authority = Authority::create(&ca_dir, KeyType::EcdsaP256, "old CA", 36_500, then).unwrap();
    let expired = dispatcher_of(&authority, "main");
    let now = Authority::load(&ca_dir, Clock::system(0)).unwrap();
    let valid = dispatcher_of(&now, "main");
    fleet.write("ca.crt", &authority.certificate().to_pem(), 0o644);
    fleet.trust(&valid, "main");
    fleet.play(|stage| async move {
        for _ in 0..10 {
            if let Ok(mut stream) = stage.dial_as(&expired).await {
                let mut answer = Vec::new();
                let _ = timeout(PATIENCE, stream.read_to_end(&mut answer))
                    .await
                    .unwrap();
                assert!(answer.is_empty());
            }
        }
        let mut stream = stage.dial_as(&valid).await.unwrap();
        stream
            .write_all(b"POST /ping HTTP/1.0\r\nContent-Length: 2\r\n\r\n{}")
            .await
            .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert_eq!(parse(&answer).0, 200);
    });
}

#[test]
fn nothing_that_happens_before_a_request_ends_or_holds_up_the_daemon() {
    let fleet = Fleet::new();
    fleet.configure("rate_limit_disable = 1");
    let foreign_dir = fleet.dir.path().join("foreign");
    std::fs::create_dir(&foreign_dir).unwrap();
    let foreign_ca = Authority::create(
        &foreign_dir,
        KeyType::EcdsaP256,
        "foreign",
        30,
        Clock::system(0),
    )
    .unwrap();
    let foreign = dispatcher_of(&foreign_ca, "main");
    fleet.play(|stage| async move {
        let mut silent = Vec::new();
        for _ in 0..20 {
            silent.push(TcpStream::connect(stage.address).await.unwrap());
            drop(TcpStream::connect(stage.address).await.unwrap());
            let mut noise = TcpStream::connect(stage.address).await.unwrap();
            let _ = noise.write_all(b"GET / HTTP/1.0\r\n\r\n").await;
            // With TLS 1.3 the client learns of its refusal only when it reads.
            if let Ok(mut stream) = stage.connect_as(&foreign).await {
                let mut answer = Vec::new();
                let _ = timeout(PATIENCE, stream.read_to_end(&mut answer))
                    .await
                    .unwrap();
                assert!(answer.is_empty());
            }
            stage.agent.reload();
        }
        let (status, _) = stage.call("POST", "/ping", b"{}").await;
        assert_eq!(status, 200);
    });
}

#[test]
fn a_client_without_a_certificate_reaches_nothing() {
    let fleet = Fleet::new();
    fleet.play(|stage| async move {
        let config = tls::pairing_client_config().unwrap();
        let stream = TcpStream::connect(stage.address).await.unwrap();
        let name = ServerName::IpAddress(IpAddr::V4(Ipv4Addr::LOCALHOST).into());
        if let Ok(mut stream) = TlsConnector::from(config).connect(name, stream).await {
            let _ = stream.write_all(b"POST /ping HTTP/1.0\r\n\r\n").await;
            let mut answer = Vec::new();
            let _ = timeout(PATIENCE, stream.read_to_end(&mut answer))
                .await
                .unwrap();
            assert!(answer.is_empty(), "{}", String::from_utf8_lossy(&answer));
        }
    });
}

#[test]
fn an_address_outside_the_list_is_not_even_shaken_hands_with() {
    let fleet = Fleet::new();
    fleet.configure("allowed_ips = 192.0.2.0/24");
    fleet.play(|stage| async move {
        assert!(stage.connect_as(&stage.dispatcher.clone()).await.is_err());
    });
}

#[test]
fn over_the_limit_of_connections_a_client_is_told_so() {
    let fleet = Fleet::new();
    fleet.configure("max_children = 1");
    fleet.script("slow", "sleep 1; echo slow");
    fleet.play(|stage| async move {
        let first = tokio::spawn({
            let stage = stage.clone();
            async move { stage.run(json!({"script": "slow"})).await }
        });
        sleep(Duration::from_millis(300)).await;
        assert_eq!(
            stage.call("POST", "/ping", b"{}").await,
            (503, json!({"error": "agent overloaded"}))
        );
        assert_eq!(first.await.unwrap()["stdout"], "slow\n");
        assert_eq!(stage.call("POST", "/ping", b"{}").await.0, 200);
    });
}

#[test]
fn a_dispatcher_over_its_budget_is_told_so_and_strangers_are_cut_off() {
    let fleet = Fleet::new();
    fleet.configure("rate_limit_dispatcher = 15/60/60\nrate_limit_volume = 4/60/60");
    let stranger = fleet.agent_identity("agent2");
    fleet.play(|stage| async move {
        for _ in 0..15 {
            assert_eq!(stage.call("POST", "/ping", b"{}").await.0, 200);
        }
        assert_eq!(
            stage.call("POST", "/ping", b"{}").await,
            (429, json!({"error": "rate limit exceeded"}))
        );
        for _ in 0..4 {
            assert_eq!(
                stage.call_as(&stranger, "POST", "/ping", b"{}").await.0,
                403
            );
        }
        assert!(stage.connect_as(&stranger).await.is_err());
    });
}

#[test]
fn probes_block_their_address() {
    let fleet = Fleet::new();
    fleet.play(|stage| async move {
        for _ in 0..3 {
            let mut noise = TcpStream::connect(stage.address).await.unwrap();
            noise.write_all(b"GET / HTTP/1.0\r\n\r\n").await.unwrap();
            let mut answer = Vec::new();
            let _ = timeout(PATIENCE, noise.read_to_end(&mut answer))
                .await
                .unwrap();
        }
        assert!(stage.connect_as(&stage.dispatcher.clone()).await.is_err());
        stage.agent.reload();
        assert_eq!(stage.call("POST", "/ping", b"{}").await.0, 200);
    });
}

/// An agent that has just started knows no address yet; a dispatcher that calls it often at once must not be sent away.
#[test]
fn a_burst_of_a_dispatcher_comes_in_whole() {
    let fleet = Fleet::new();
    fleet.play(|stage| async move {
        let mut burst = Vec::new();
        for _ in 0..64 {
            burst.push(TcpStream::connect(stage.address).await.unwrap());
        }
        // The first one makes its address known.
        for stream in burst {
            let mut stream = stage.connect_over(stream, &stage.dispatcher).await.unwrap();
            let request = b"POST /ping HTTP/1.0\r\nContent-Length: 2\r\n\r\n{}";
            stream.write_all(request).await.unwrap();
            let mut answer = String::new();
            let read = timeout(PATIENCE, stream.read_to_string(&mut answer)).await;
            read.unwrap().unwrap();
            assert_eq!(parse(&answer).0, 200);
        }
    });
}

#[test]
fn a_connection_waits_for_others_of_its_address_and_too_many_are_closed() {
    let fleet = Fleet::new();
    fleet.configure("rate_limit_disable = 1");
    fleet.play(|stage| async move {
        let mut silent = Vec::new();
        for _ in 0..32 {
            silent.push(TcpStream::connect(stage.address).await.unwrap());
        }
        let mut call = std::pin::pin!(stage.dial_as(&stage.dispatcher));
        assert!(
            timeout(Duration::from_millis(300), &mut call)
                .await
                .is_err()
        );
        silent.pop();
        let dialled = timeout(Duration::from_secs(3), &mut call).await;
        drop(dialled.expect("a place is free").expect("a handshake"));
    });

    let fleet = Fleet::new();
    fleet.configure("rate_limit_disable = 1");
    fleet.play(|stage| async move {
        let mut silent = Vec::new();
        for _ in 0..64 {
            silent.push(TcpStream::connect(stage.address).await.unwrap());
        }
        let refused = timeout(Duration::from_secs(3), stage.dial_as(&stage.dispatcher)).await;
        assert!(refused.expect("closed at once").is_err());
    });
}
