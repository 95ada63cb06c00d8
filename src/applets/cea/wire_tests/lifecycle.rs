//! Start, reload, stop.

use super::*;

#[test]
fn a_reload_takes_all_or_nothing() {
    let fleet = Fleet::new();
    let second = dispatcher_of(&fleet.authority, "second");
    let this = &fleet;
    fleet.play(|stage| async move {
        assert_eq!(stage.call_as(&second, "POST", "/ping", b"{}").await.0, 403);
        this.trust(&second, "second");
        this.script("later", "echo later");
        this.configure("allowed_ips = 127.0.0.0/8");
        stage.agent.reload();
        assert_eq!(stage.call_as(&second, "POST", "/ping", b"{}").await.0, 200);
        assert_eq!(
            stage.run(json!({"script": "later"})).await["stdout"],
            "later\n"
        );

        // A broken file changes nothing, not even the parts that are in order.
        this.script("latest", "echo latest");
        this.configure("this line is broken");
        stage.agent.reload();
        assert_eq!(
            stage.run(json!({"script": "latest"})).await["error"],
            "script not permitted"
        );
        assert_eq!(stage.run(json!({"script": "later"})).await["exit"], 0);

        this.configure("");
        std::fs::write(this.etc("agent.key"), "no key").unwrap();
        stage.agent.reload();
        assert_eq!(stage.run(json!({"script": "later"})).await["exit"], 0);

        // A new certificate is in force without a restart.
        let renewed = this.agent_identity("agent1");
        let serial = renewed.certificate().serial.clone();
        this.write("agent.crt", &renewed.certificate().to_pem(), 0o640);
        this.write("agent.key", renewed.key().to_pkcs8_pem().expose(), 0o640);
        stage.agent.reload();
        let stream = stage.connect_as(&second).await.unwrap();
        assert_eq!(
            tls::peer_identity(stream.get_ref().1).unwrap().serial,
            serial
        );
    });
}

#[test]
fn a_stop_waits_for_the_request_in_flight_and_a_client_that_left_does_not_stop_its_script() {
    let fleet = Fleet::new();
    let marker = fleet.dir.path().join("finished");
    fleet.script("slow", "sleep 1; echo slow");
    fleet.script("mark", &format!("sleep 0.5; touch {}", marker.display()));
    let answer = Arc::new(std::sync::Mutex::new(None));
    let keep = answer.clone();
    fleet.play(|stage| async move {
        let mut gone = stage.connect_as(&stage.dispatcher.clone()).await.unwrap();
        gone.write_all(b"POST /run HTTP/1.0\r\nContent-Length: 17\r\n\r\n{\"script\":\"mark\"}")
            .await
            .unwrap();
        sleep(Duration::from_millis(200)).await;
        drop(gone);
        sleep(Duration::from_millis(800)).await;
        assert!(marker.exists());
        tokio::spawn(async move {
            let reply = stage.run(json!({"script": "slow"})).await;
            *keep.lock().unwrap() = Some(reply);
        });
        sleep(Duration::from_millis(300)).await;
    });
    let answer = answer.lock().unwrap().take();
    assert_eq!(
        answer.expect("the request in flight got no answer")["stdout"],
        "slow\n"
    );
}

#[test]
fn a_start_that_cannot_be_is_status_78_and_says_why() {
    let fleet = Fleet::new();
    for (file, word) in [
        ("agent.crt", "certificate"),
        ("agent.key", "key"),
        ("ca.crt", "CA"),
    ] {
        let path = fleet.etc(file);
        let saved = std::fs::read(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let (exit, message) = fleet.refused_start();
        assert_eq!(exit, Exit::Config);
        assert!(message.contains("not been paired yet"), "{message}");
        assert!(
            message.contains(word) && message.contains(file),
            "{message}"
        );
        assert!(message.contains("request-pairing"), "{message}");
        std::fs::write(&path, saved).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
    }
    fleet.configure("nonsense");
    let (exit, message) = fleet.refused_start();
    assert_eq!(exit, Exit::Config);
    assert!(
        message.contains("cannot start - configuration error"),
        "{message}"
    );
    assert!(
        message.contains("inline '#' comments are not supported"),
        "{message}"
    );
    assert!(
        message.contains("scripts.conf") && message.contains("agent.conf"),
        "{message}"
    );

    fleet.configure("");
    let hello = fleet.scripts().join("hello");
    fleet.write(
        "scripts.conf",
        &format!("hello = {} profile=none\n", hello.display()),
        0o640,
    );
    let (exit, message) = fleet.refused_start();
    assert_eq!(exit, Exit::Config);
    assert!(message.contains("hello -> none"), "{message}");

    fleet.script("hello", "true");
    let other = fleet.agent_identity("agent1");
    fleet.write("agent.key", other.key().to_pkcs8_pem().expose(), 0o640);
    assert_eq!(fleet.refused_start().0, Exit::Config);
    fleet.write("agent.key", other.key().to_pkcs8_pem().expose(), 0o644);
    let (exit, message) = fleet.refused_start();
    assert_eq!(exit, Exit::Config);
    assert!(message.contains("agent.key"), "{message}");
}

#[test]
fn the_root_prefix_holds_a_whole_agent() {
    let fleet = Fleet::new();
    let root: &Path = fleet.dir.path();
    fleet.play(|stage| async move {
        assert!(stage.agent.snapshot().config.cert.starts_with(root));
    });
}
