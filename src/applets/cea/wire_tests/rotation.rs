//! `/rotate-serial` (spec/agent.md 9.6, 14, 19.2 W9).

use super::*;

fn map(fleet: &Fleet) -> String {
    std::fs::read_to_string(fleet.context().paths.trust_map()).unwrap()
}

#[test]
fn a_dispatcher_overlaps_its_serials_and_drops_the_old_one() {
    let fleet = Fleet::new();
    let next = dispatcher_of(&fleet.authority, "main");
    let (old_serial, new_serial) = (
        fleet.dispatcher.certificate().serial.two_digit_hex(),
        next.certificate().serial.two_digit_hex(),
    );
    let this = &fleet;
    fleet.play(|stage| async move {
        // A connection from before sees the new picture with its next request.
        assert_eq!(stage.post_as(&next, "/ping", json!({})).await.0, 403);
        let (status, answer) = stage
            .post("/rotate-serial", json!({"serial": new_serial}))
            .await;
        assert_eq!(status, 200);
        assert_eq!(
            answer,
            json!({"status": "ok", "action": "add", "serial": new_serial, "dispatcher": "main"})
        );
        assert_eq!(stage.post_as(&next, "/ping", json!({})).await.0, 200);
        let remove = json!({"serial": old_serial, "action": "remove"});
        assert_eq!(
            stage.refused("/rotate-serial", remove.clone()).await,
            "serial in use by this connection"
        );
        let (_, answer) = stage.post_as(&next, "/rotate-serial", remove.clone()).await;
        assert_eq!(answer["status"], "ok", "{answer}");
        assert_eq!(stage.post("/ping", json!({})).await.0, 403);
        // Again: success.
        let (_, answer) = stage.post_as(&next, "/rotate-serial", remove).await;
        assert_eq!(answer["status"], "ok");
        assert!(map(this).ends_with(" main\n"));
        let clock = this.context().paths.agent_state().join("clock");
        assert!(clock.is_file(), "the time is written down beside it");
    });
}

#[test]
fn nothing_but_a_serial_reaches_the_map() {
    let fleet = Fleet::new();
    let other = dispatcher_of(&fleet.authority, "other");
    fleet.trust(&other, "other");
    let theirs = other.certificate().serial.to_string();
    let before = map(&fleet);
    fleet.write("revoked-serials", "beef\n", 0o644);
    let this = &fleet;
    fleet.play(|stage| async move {
        for (request, error) in [
            (json!({}), "serial required"),
            (json!({"serial": ""}), "serial required"),
            (json!({"serial": null}), "serial required"),
            (json!({"serial": ["ab"]}), "serial required"),
            (
                json!({"serial": "ab", "action": "steal"}),
                "invalid action 'steal'",
            ),
            (json!({"serial": "ab", "action": ""}), "invalid action ''"),
            (json!({"serial": "ab\ncd other"}), "invalid serial"),
            (json!({"serial": "ab:\ncd other"}), "invalid serial"),
            (json!({"serial": "ab #"}), "invalid serial"),
            (json!({"serial": "ab other"}), "invalid serial"),
            (json!({"serial": "ab\u{0}"}), "invalid serial"),
            (json!({"serial": "not-a-serial"}), "invalid serial"),
            (json!({"serial": "0"}), "invalid serial"),
            (json!({"serial": "00:00"}), "invalid serial"),
            (json!({"serial": ":"}), "invalid serial"),
            (json!({"serial": "a".repeat(65)}), "invalid serial"),
            (json!({"serial": "0xBE:EF"}), "serial is revoked"),
            (json!({"serial": theirs}), "serial not owned by 'main'"),
            (
                json!({"serial": theirs, "action": "remove"}),
                "serial not owned by 'main'",
            ),
        ] {
            assert_eq!(
                stage.refused("/rotate-serial", request.clone()).await,
                error,
                "{request}"
            );
        }
        for body in ["", "no json", "[]", "7"] {
            let (status, answer) = stage.call("POST", "/rotate-serial", body.as_bytes()).await;
            assert_eq!(
                (status, &answer["error"]),
                (200, &json!("serial required")),
                "{body}"
            );
        }
        assert_eq!(map(this), before);
        // Accepted forms are written in one form.
        for form in ["AB:CD", "0x0ABCD", "serial=abcd"] {
            let (_, answer) = stage.post("/rotate-serial", json!({"serial": form})).await;
            assert_eq!(
                (&answer["status"], &answer["serial"]),
                (&json!("ok"), &json!(form))
            );
        }
        assert_eq!(map(this), format!("{before}abcd main\n"));
        let stranger = this.agent_identity("agent2");
        let (status, answer) = stage
            .post_as(&stranger, "/rotate-serial", json!({"serial": "ab"}))
            .await;
        assert_eq!((status, &answer["error"]), (403, &json!("serial mismatch")));
    });
}

#[test]
fn the_hook_may_forbid_it() {
    let fleet = Fleet::new();
    let told = fleet.dir.path().join("told.log");
    let hook = fleet.scripts().join("hook.sh");
    std::fs::write(
        &hook,
        format!(
            "#!/bin/sh\necho \"$ENVEXEC_ACTION $ENVEXEC_ARGS_JSON $ENVEXEC_TOKEN\" >> {}\nexit 3\n",
            told.display()
        ),
    )
    .unwrap();
    std::fs::set_permissions(&hook, std::fs::Permissions::from_mode(0o755)).unwrap();
    // The prefix moves a hook's path, so it is named from below the root.
    fleet.configure("auth_hook = /scripts/hook.sh");
    let before = map(&fleet);
    let (this, fingerprint) = (&fleet, "ab".repeat(32));
    fleet.play(|stage| async move {
        for (path, request) in [
            ("/rotate-serial", json!({"serial": "ab", "token": "t"})),
            ("/revoke", json!({"serials": ["ab", "cd"], "token": "t"})),
            (
                "/ca",
                json!({"action": "remove", "fingerprint": fingerprint, "token": "t"}),
            ),
        ] {
            let (status, answer) = stage.post(path, request).await;
            assert_eq!(
                (status, answer),
                (
                    403,
                    json!({"error": "not authorised: insufficient privilege"})
                )
            );
        }
        assert_eq!(map(this), before);
        assert_eq!(
            std::fs::read_to_string(&told).unwrap(),
            format!(
                "rotate [\"add\",\"ab\"] t\nrevoke [\"2\"] t\nca [\"remove\",\"{fingerprint}\"] t\n"
            )
        );
    });
}

#[test]
fn a_rotation_frees_nobody_and_reads_no_configuration() {
    let fleet = Fleet::new();
    fleet.configure("rate_limit_volume = 2/60/300");
    let stranger = fleet.agent_identity("agent2");
    let this = &fleet;
    fleet.play(|stage| async move {
        let mut open = stage.connect_as(&stage.dispatcher).await.unwrap();
        for _ in 0..2 {
            assert_eq!(stage.post_as(&stranger, "/ping", json!({})).await.0, 403);
        }
        let blocked = |stage: Stage, who: Identity| async move {
            let Ok(mut stream) = stage.connect_as(&who).await else {
                return true;
            };
            let mut answer = Vec::new();
            let _ = stream.write_all(b"POST /ping HTTP/1.0\r\n\r\n").await;
            let _ = stream.read_to_end(&mut answer).await;
            answer.is_empty()
        };
        assert!(blocked(stage.clone(), stranger.clone()).await);
        this.configure("this line is broken");
        let body = json!({"serial": "abcd"}).to_string();
        let request = format!(
            "POST /rotate-serial HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        open.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let _ = open.read_to_end(&mut answer).await;
        assert_eq!(parse(str::from_utf8(&answer).unwrap()).1["status"], "ok");
        assert!(blocked(stage.clone(), stranger).await);
    });
}
