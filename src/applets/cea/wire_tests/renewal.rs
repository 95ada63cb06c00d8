//! `/renew` and `/renew-complete` (spec/agent.md 9.7, 9.8, 15, 19.2 W10).

use super::*;
use crate::applets::cea::promote;
use crate::core::types::Serial;

/// The agent's request, signed by this CA as it is.
async fn renewed(stage: &Stage, authority: &Authority, days: u32) -> Certificate {
    let (status, answer) = stage.post("/renew", json!({"reqid": "r1"})).await;
    assert_eq!((status, &answer["status"]), (200, &json!("ok")), "{answer}");
    assert_eq!(answer["reqid"], "r1");
    let request = CertRequest::parse_pem(answer["csr"].as_str().unwrap()).unwrap();
    assert_eq!(
        request.cn, "agent1",
        "the name of the certificate, not of the host"
    );
    let name = AgentName::new("agent1").unwrap();
    authority.issue_agent(&request, &name, days).unwrap()
}

fn order(certificate: &Certificate) -> Value {
    json!({"cert": certificate.to_pem(), "ca": "ignored", "reqid": "r2"})
}

fn live(fleet: &Fleet) -> Certificate {
    Certificate::from_pem(&std::fs::read(fleet.etc("agent.crt")).unwrap()).unwrap()
}

#[test]
fn a_renewed_certificate_is_shown_at_once_and_open_connections_go_on() {
    let fleet = Fleet::new();
    let this = &fleet;
    fleet.play(|stage| async move {
        let mut open = stage.connect_as(&stage.dispatcher).await.unwrap();
        let new = renewed(&stage, &this.authority_in(5), 20).await;
        let (status, answer) = stage.post("/renew-complete", order(&new)).await;
        assert_eq!(status, 200);
        let done = json!({"status": "ok", "reqid": "r2", "staged": true, "live": true});
        assert_eq!(answer, done);
        assert_eq!(stage.shown().await, new.serial);
        assert_eq!(
            live(this).serial,
            new.serial,
            "it may write the live file, so it does"
        );
        let staged = this.context().paths.staged_cert();
        assert!(!staged.exists());
        let (_, ping) = stage.post("/ping", json!({})).await;
        assert_eq!(ping["expiry"], json!(new.expiry_text()));
        assert_eq!(ping["staged"], json!(false));
        // The same once more: a reply that got lost.
        assert_eq!(stage.post("/renew-complete", order(&new)).await.1, done);
        assert!(!staged.exists());
        let request =
            b"POST /ping HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}";
        open.write_all(request).await.unwrap();
        let mut answer = Vec::new();
        let _ = open.read_to_end(&mut answer).await;
        assert_eq!(parse(str::from_utf8(&answer).unwrap()).0, 200);
    });
}

#[test]
fn what_may_not_follow_is_refused_in_the_words_of_the_original() {
    let fleet = Fleet::new();
    let foreign = fleet.other_authority("foreign");
    let old = live(&fleet);
    let this = &fleet;
    fleet.play(|stage| async move {
        let later = this.authority_in(5);
        let stranger_key = this.agent_identity("agent1");
        let own = |serial: &Serial| *serial == old.serial;
        let same_day = renewed(&stage, &this.authority_in(-3600), 20).await;
        let shorter = renewed(&stage, &later, 5).await;
        let not_yet = renewed(&stage, &this.authority_in(3 * 86_400), 20).await;
        let not_ours = renewed(&stage, &foreign, 20).await;
        let as_dispatcher = later
            .issue_dispatcher(
                &crate::core::pki::PublicKey::from_spki(&old.spki).unwrap(),
                &DispatcherId::new("evil").unwrap(),
                20,
            )
            .unwrap();
        let dates = format!(
            "renewed cert cannot be used now: {}",
            not_yet.check_dates(Clock::system(0).now()).unwrap_err()
        );
        let issuer = "renewed cert does not verify against the agent CA";
        let not_newer = "renewed cert is not newer than the present one";
        for (request, error) in [
            (json!({"reqid": "r"}), "cert required"),
            (json!({"cert": ""}), "cert required"),
            (json!({"cert": "junk"}), issuer),
            (
                json!({"cert": "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"}),
                issuer,
            ),
            (order(&not_ours), issuer),
            (order(this.authority.certificate()), issuer),
            (
                order(stranger_key.certificate()),
                "renewed cert public key does not match the agent key",
            ),
            (order(&as_dispatcher), "renewed cert is for another name"),
            (order(&same_day), not_newer),
            (order(&shorter), not_newer),
        ] {
            assert_eq!(stage.refused("/renew-complete", request).await, error);
        }
        let told = stage.refused("/renew-complete", order(&not_yet)).await;
        assert_eq!(told[..60], dates[..60]);
        let revoked = renewed(&stage, &later, 20).await;
        let (_, answer) = stage
            .post("/revoke", json!({"serials": [revoked.serial.to_string()]}))
            .await;
        assert_eq!(answer["status"], "ok");
        assert_eq!(
            stage.refused("/renew-complete", order(&revoked)).await,
            "renewed cert is revoked"
        );
        assert!(own(&stage.shown().await));
        assert_eq!(live(this), old);
        assert!(!this.context().paths.staged_cert().exists());

        // A replay: what was in use before the last renewal.
        let new = renewed(&stage, &later, 20).await;
        assert_eq!(
            stage.post("/renew-complete", order(&new)).await.1["status"],
            "ok"
        );
        assert_eq!(
            stage.refused("/renew-complete", order(&old)).await,
            not_newer
        );

        let stranger = this.agent_identity("agent2");
        for path in ["/renew", "/renew-complete", "/revoke", "/ca"] {
            let (status, answer) = stage.post_as(&stranger, path, order(&new)).await;
            assert_eq!(
                (status, &answer["error"]),
                (403, &json!("serial mismatch")),
                "{path}"
            );
        }
        std::fs::rename(this.etc("agent.key"), this.etc("away.key")).unwrap();
        assert_eq!(
            stage.refused("/renew", json!({})).await,
            "agent key not available"
        );
    });
}

#[test]
fn a_staged_certificate_is_used_by_the_next_start_and_put_into_place_by_root() {
    let fleet = Fleet::new();
    let staged = fleet.context().paths.staged_cert();
    let (this, path) = (&fleet, &staged);
    let new = std::cell::RefCell::new(None);
    let keep = &new;
    fleet.play(|stage| async move {
        *keep.borrow_mut() = Some(renewed(&stage, &this.authority_in(5), 20).await);
    });
    let new = new.take().unwrap();
    let old = live(&fleet);
    std::fs::write(&staged, new.to_pem()).unwrap();
    let serial = &new.serial;
    fleet.play(|stage| async move {
        assert_eq!(stage.shown().await, *serial);
        let (_, ping) = stage.post("/ping", json!({})).await;
        assert_eq!(ping["staged"], json!(false), "it is in use");
        stage.agent.reload();
        assert_eq!(stage.shown().await, *serial);
        // What is no good is as if it were not there, and does not keep a dispatcher from renewing.
        std::fs::write(path, "junk").unwrap();
        stage.agent.reload();
        assert_ne!(stage.shown().await, *serial);
        let (_, ping) = stage.post("/ping", json!({})).await;
        assert_eq!(ping["staged"], json!(false));
        std::fs::write(path, this.authority_in(3 * 86_400).certificate().to_pem()).unwrap();
        stage.agent.reload();
        assert_ne!(stage.shown().await, *serial);
    });
    assert_eq!(live(&fleet), old, "a start writes nothing");
    std::fs::write(&staged, new.to_pem()).unwrap();
    promote::promote(&fleet.context(), &Files::default());
    assert_eq!(live(&fleet), new);
    assert!(!staged.exists());
}
