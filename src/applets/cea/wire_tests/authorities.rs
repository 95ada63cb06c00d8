//! `/ca`: a whole change of the CA, step by step, and what is refused on the way.

use super::*;
use crate::applets::cea::promote;

fn add(ca: &Authority, endorsement: &Certificate) -> Value {
    json!({
        "action": "add",
        "ca": ca.certificate().to_pem(),
        "endorsement": endorsement.to_pem(),
        "reqid": "r",
    })
}

fn remove(ca: &Authority) -> Value {
    json!({"action": "remove", "fingerprint": ca.certificate().fingerprint(), "reqid": "r"})
}

fn fingerprints(cas: &[&Authority]) -> Value {
    cas.iter()
        .map(|ca| ca.certificate().fingerprint())
        .collect()
}

fn identity_of(authority: &Authority, fleet: &Fleet, id: &str) -> Identity {
    let who = dispatcher_of(authority, id);
    fleet.trust(&who, id);
    who
}

/// The agent's certificate, signed by another CA.
async fn renew_by(stage: &Stage, authority: &Authority) {
    let (_, answer) = stage.post("/renew", json!({})).await;
    let request = CertRequest::parse_pem(answer["csr"].as_str().unwrap()).unwrap();
    let name = AgentName::new("agent1").unwrap();
    let new = authority.issue_agent(&request, &name, 5).unwrap();
    let (_, answer) = stage
        .post("/renew-complete", json!({"cert": new.to_pem()}))
        .await;
    assert_eq!(answer["status"], "ok", "{answer}");
}

#[test]
fn a_fleet_goes_over_to_a_new_ca_without_a_visit() {
    let fleet = Fleet::new();
    let new = fleet.other_authority("new");
    let next = identity_of(&new, &fleet, "main");
    let (this, new, next) = (&fleet, &new, &next);
    fleet.play(|stage| async move {
        let old = &this.authority;
        let done = |cas: &[&Authority]| {
            json!({"status": "ok", "reqid": "r", "cas": fingerprints(cas), "live": true})
        };
        let mut stage = stage;
        stage.cas.push(new.certificate().clone());
        assert!(stage.post("/ping", json!({})).await.1["cas"] == fingerprints(&[old]));
        let endorsement = old.endorse(new.certificate()).unwrap();
        for _ in 0..2 {
            let (_, answer) = stage.post("/ca", add(new, &endorsement)).await;
            assert_eq!(answer, done(&[old, new]));
        }
        assert_eq!(stage.post_as(next, "/ping", json!({})).await.0, 200);

        // Nothing that is still needed can be removed.
        assert_eq!(
            stage.refused("/ca", remove(old)).await,
            "this CA has issued the certificate of the agent"
        );
        renew_by(&stage, &Authority::load(&this.dir.path().join("new"), Clock::fixed(Clock::system(0).now() + 5)).unwrap()).await;
        assert_eq!(
            stage.refused("/ca", remove(old)).await,
            "this CA has issued the certificate of this connection"
        );
        for _ in 0..2 {
            let (_, answer) = stage.post_as(next, "/ca", remove(old)).await;
            assert_eq!(answer, done(&[new]));
        }
        let (_, answer) = stage.post_as(next, "/ca", remove(new)).await;
        assert_eq!(answer["error"], "no CA would be left");
        assert!(stage.dial_as(&stage.dispatcher.clone()).await.is_err() || {
            // Under TLS 1.3 the refusal comes after the client's handshake.
            let mut stream = stage.dial_as(&stage.dispatcher.clone()).await.unwrap();
            let _ = stream.write_all(b"POST /ping HTTP/1.0\r\n\r\n").await;
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).await.is_err()
        });
        assert_eq!(stage.post_as(next, "/ping", json!({})).await.1["cas"], fingerprints(&[new]));
    });
    // It may write the live file here, so nothing is left staged.
    let text = std::fs::read(fleet.etc("ca.crt")).unwrap();
    assert_eq!(
        Certificate::all_from_pem(&text).unwrap(),
        [new.certificate().clone()]
    );
    assert!(
        !fleet
            .context()
            .paths
            .agent_state()
            .join("ca.crt.staged")
            .exists()
    );
}

#[test]
fn nobody_is_believed_without_an_endorsement() {
    let fleet = Fleet::new();
    let [new, foreign] = ["new", "foreign"].map(|name| fleet.other_authority(name));
    let this = &fleet;
    fleet.play(|stage| async move {
        let good = this.authority.endorse(new.certificate()).unwrap();
        let pem = new.certificate().to_pem();
        for (request, error) in [
            (json!({}), "invalid action ''"),
            (json!({"action": "replace"}), "invalid action 'replace'"),
            (json!({"action": "add"}), "ca required"),
            (json!({"action": "add", "ca": pem}), "endorsement required"),
            (
                json!({"action": "add", "ca": "junk", "endorsement": pem}),
                "ca: ",
            ),
            (
                json!({"action": "add", "ca": format!("{pem}{pem}"), "endorsement": pem}),
                "ca must be one certificate",
            ),
            (add(&foreign, &good), "the endorsement is not for this CA"),
            (
                add(&new, &foreign.endorse(new.certificate()).unwrap()),
                "the endorsement does not verify",
            ),
            (
                add(&new, new.certificate()),
                "the endorsement does not verify",
            ),
            (
                json!({"action": "add", "ca": good.to_pem(), "endorsement": good.to_pem()}),
                "the new CA is not usable",
            ),
            (json!({"action": "remove"}), "fingerprint must be"),
            (
                json!({"action": "remove", "fingerprint": "ab"}),
                "fingerprint must be",
            ),
        ] {
            let told = stage.refused("/ca", request.clone()).await;
            assert!(told.starts_with(error), "{request}: {told}");
        }
        assert_eq!(
            stage.refused("/ca", remove(&this.authority)).await,
            "no CA would be left"
        );
        let (_, answer) = stage.post("/ca", remove(&new)).await;
        assert_eq!(answer["status"], "ok", "it is not there");
        assert!(
            !this
                .context()
                .paths
                .agent_state()
                .join("ca.crt.staged")
                .exists()
        );
    });
}

#[test]
fn a_staged_ca_is_in_force_after_a_start_and_forged_ones_are_not() {
    let fleet = Fleet::new();
    let [new, foreign] = ["new", "foreign"].map(|name| fleet.other_authority(name));
    let staged = fleet.context().paths.agent_state().join("ca.crt.staged");
    let endorsement = fleet.authority.endorse(new.certificate()).unwrap();
    let pem = |parts: &[&Certificate]| parts.iter().map(|c| c.to_pem()).collect::<String>();
    let old = fleet.authority.certificate();
    let cas_of = |text: String| {
        std::fs::write(&staged, text).unwrap();
        let seen = std::cell::RefCell::new(Value::Null);
        let keep = &seen;
        fleet.play(|stage| async move {
            *keep.borrow_mut() = stage.post("/ping", json!({})).await.1["cas"].clone();
        });
        seen.take()
    };
    let only_old = fingerprints(&[&fleet.authority]);
    assert_eq!(
        cas_of(pem(&[old, new.certificate(), &endorsement])),
        fingerprints(&[&fleet.authority, &new])
    );
    assert_eq!(cas_of(pem(&[old, new.certificate()])), only_old);
    let forged = foreign.endorse(new.certificate()).unwrap();
    assert_eq!(cas_of(pem(&[old, new.certificate(), &forged])), only_old);
    assert_eq!(cas_of("junk".to_owned()), only_old);
    promote::promote(&fleet.context(), &Files::default());
    assert!(!staged.exists(), "root clears away what is wrong for ever");

    std::fs::write(&staged, pem(&[old, new.certificate(), &endorsement])).unwrap();
    promote::promote(&fleet.context(), &Files::default());
    assert!(!staged.exists());
    let text = std::fs::read(fleet.etc("ca.crt")).unwrap();
    assert_eq!(
        Certificate::all_from_pem(&text).unwrap(),
        [old.clone(), new.certificate().clone()]
    );
}
