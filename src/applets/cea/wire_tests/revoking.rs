//! `/revoke`.

use super::*;

#[test]
fn a_revoked_serial_is_refused_at_once_also_on_open_connections_and_after_a_start() {
    let fleet = Fleet::new();
    let (lost, second) = (
        dispatcher_of(&fleet.authority, "main"),
        dispatcher_of(&fleet.authority, "second"),
    );
    fleet.trust(&lost, "main");
    fleet.trust(&second, "second");
    let serial = |who: &Identity| who.certificate().serial.two_digit_hex();
    let (this, lost, second) = (&fleet, &lost, &second);
    fleet.play(|stage| async move {
        let mut open = stage.connect_as(lost).await.unwrap();
        assert_eq!(stage.post_as(lost, "/ping", json!({})).await.0, 200);
        let request = json!({"serials": [serial(lost), serial(second), "0A:B"], "reqid": "r"});
        for _ in 0..2 {
            let (status, answer) = stage.post("/revoke", request.clone()).await;
            assert_eq!(status, 200);
            assert_eq!(
                answer,
                json!({"status": "ok", "reqid": "r", "revocations": 3})
            );
        }
        open.write_all(b"POST /ping HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{}")
            .await
            .unwrap();
        let mut answer = Vec::new();
        let _ = open.read_to_end(&mut answer).await;
        let (status, answer) = parse(str::from_utf8(&answer).unwrap());
        assert_eq!(
            (status, &answer["error"]),
            (403, &json!("certificate revoked"))
        );
        assert_eq!(stage.post_as(second, "/ping", json!({})).await.0, 403);
        let map = std::fs::read_to_string(this.context().paths.trust_map()).unwrap();
        assert!(
            !map.contains(&lost.certificate().serial.to_string()),
            "the caller's own goes"
        );
        assert!(
            map.contains(&second.certificate().serial.to_string()),
            "another's stays"
        );
        let (_, ping) = stage.post("/ping", json!({})).await;
        assert_eq!(ping["revocations"], 3);
        assert!(
            !this.etc("revoked-serials").exists(),
            "the administrator's list"
        );
    });
    fleet.play(|stage| async move {
        assert_eq!(stage.post_as(second, "/ping", json!({})).await.0, 403);
        stage.agent.reload();
        assert_eq!(stage.post_as(lost, "/ping", json!({})).await.0, 403);
        assert_eq!(stage.post("/ping", json!({})).await.1["revocations"], 3);
    });
}

#[test]
fn a_list_is_taken_whole_or_not_at_all() {
    let fleet = Fleet::new();
    let own = fleet.dispatcher.certificate().serial.to_string();
    fleet.play(|stage| async move {
        let array = "serials must be an array of strings";
        for (request, error) in [
            (json!({}), array),
            (json!({"serials": "ab"}), array),
            (json!({"serials": ["ab", 7]}), array),
            (
                json!({"serials": ["ab", own]}),
                "serial in use by this connection",
            ),
            (
                json!({"serials": vec!["ab"; 10_001]}),
                "at most 10000 serials at once",
            ),
        ] {
            assert_eq!(stage.refused("/revoke", request).await, error);
        }
        for bad in ["", "xyz", "ab\ncd", "ab #", &"a".repeat(65)] {
            let error = stage
                .refused("/revoke", json!({"serials": ["ab", bad]}))
                .await;
            assert!(error.starts_with("invalid serial"), "{error}");
        }
        assert_eq!(stage.post("/ping", json!({})).await.1["revocations"], 0);
        let most: Vec<_> = (1..=10_000).map(|n| format!("{n:x}")).collect();
        let (_, answer) = stage.post("/revoke", json!({"serials": most})).await;
        assert_eq!(answer["revocations"], 10_000);
        let (_, answer) = stage.post("/revoke", json!({"serials": []})).await;
        assert_eq!(answer["revocations"], 10_000);
    });
}
