//! What we issue is accepted by the strictest judges in wide use: `openssl verify -x509_strict` for both purposes, and a TLS context of
//! Python with the flags that 3.13 sets by default (design: certificates that we issue are v3, strict RFC 5280).

mod common;

use std::path::Path;

use common::fleet::{new_dispatcher_with, start_pairing};
use common::openssl::{key_matches, serial_of, text_of, try_openssl};
use common::{Agent, Host, Paired, free_port, python};

/// Fleets with the keys that can be asked for.
fn fleets() -> Vec<(&'static str, Paired)> {
    ["ecdsa-p256", "rsa-2048"]
        .into_iter()
        .map(|kind| {
            let dispatcher = new_dispatcher_with("ctl.test", &["--key-type", kind]);
            (kind, Paired::with(dispatcher, &["web01.test"]))
        })
        .collect()
}

fn text(path: &Path) -> &str {
    path.to_str().expect("text")
}

#[test]
fn openssl_verifies_them_strictly_for_both_purposes() {
    for (kind, fleet) in fleets() {
        let ca = fleet.dispatcher.path("etc/ctrl-exec/ca.crt");
        let (verified, said) =
            try_openssl(&["verify", "-x509_strict", "-CAfile", text(&ca), text(&ca)]);
        assert!(verified, "{kind} CA: {said}");
        for (leaf, name) in [
            (fleet.dispatcher_leaf(), "ctrl-exec-dispatcher"),
            (fleet.agent_leaf(0), "web01.test"),
        ] {
            for purpose in ["sslserver", "sslclient"] {
                let (verified, said) = try_openssl(&[
                    "verify",
                    "-x509_strict",
                    "-purpose",
                    purpose,
                    "-verify_hostname",
                    name,
                    "-CAfile",
                    text(&ca),
                    text(&leaf.cert),
                ]);
                assert!(verified, "{kind} {name} as {purpose}: {said}");
            }
            assert!(key_matches(&leaf.cert, &leaf.key), "{kind} {name}");
        }
    }
}

#[test]
fn they_say_what_they_should_and_no_more() {
    for (kind, fleet) in fleets() {
        let ca = text_of(&fleet.dispatcher.path("etc/ctrl-exec/ca.crt"));
        assert!(
            ca.contains("Version: 3") && ca.contains("Subject: CN = ctrl-exec CA"),
            "{ca}"
        );
        assert!(
            ca.contains("CA:TRUE") && ca.contains("Certificate Sign"),
            "{ca}"
        );
        for (leaf, cn, role) in [
            (
                fleet.dispatcher_leaf(),
                "ctrl-exec-dispatcher",
                "/ctrl-exec/dispatcher/ctl",
            ),
            (fleet.agent_leaf(0), "web01.test", "/ctrl-exec/agent/"),
        ] {
            let shown = text_of(&leaf.cert);
            for part in [
                "Version: 3",
                "Issuer: CN = ctrl-exec CA",
                &format!("Subject: CN = {cn}\n"),
                "CA:FALSE",
                "X509v3 Key Usage: critical\n                Digital Signature\n",
                "TLS Web Server Authentication",
                "TLS Web Client Authentication",
                "X509v3 Subject Key Identifier",
                "X509v3 Authority Key Identifier",
                &format!("DNS:{cn}, URI:spiffe://"),
                role,
            ] {
                assert!(shown.contains(part), "{kind} {cn} lacks {part:?}:\n{shown}");
            }
            // Serials that both worlds read alike: 128 bits, positive, no leading zero nibble, at least one letter.
            let serial = serial_of(&leaf.cert);
            assert_eq!(serial.len(), 32, "{serial}");
            assert!(
                (b'1'..=b'7').contains(&serial.as_bytes()[0])
                    && serial.bytes().any(|b| b.is_ascii_lowercase()),
                "{serial}"
            );
        }
    }
}

#[test]
fn validity_is_back_dated_by_a_day_and_lasts_825() {
    let fleet = Paired::new(&["web01.test"]);
    for leaf in [fleet.dispatcher_leaf(), fleet.agent_leaf(0)] {
        let cert = text(&leaf.cert).to_owned();
        // Valid since 23 hours, not since 25: `-attime` verifies as of a moment.
        let ca = fleet.dispatcher.path("etc/ctrl-exec/ca.crt");
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .expect("after 1970")
            .as_secs();
        for (moment, valid) in [
            (now - 23 * 3600, true),
            (now - 25 * 3600, false),
            (now + 824 * 86_400, true),
            (now + 826 * 86_400, false),
        ] {
            let (verified, said) = try_openssl(&[
                "verify",
                "-attime",
                &moment.to_string(),
                "-CAfile",
                text(&ca),
                &cert,
            ]);
            assert_eq!(verified, valid, "{moment}: {said}");
        }
    }
}

#[test]
fn pythons_strictest_context_talks_to_our_agent() {
    for (kind, fleet) in fleets() {
        let agent = Agent::start(&fleet.agents[0]);
        let (port, leaf) = (agent.port().to_string(), fleet.dispatcher_leaf());
        let ca = fleet.dispatcher.path("etc/ctrl-exec/ca.crt");
        let args = [
            "connect",
            &port,
            text(&leaf.cert),
            text(&leaf.key),
            text(&ca),
            "web01.test",
        ];
        let answer = python::run(&fleet.dispatcher, python::STRICT, &args)
            .ok()
            .json();
        assert_eq!(
            (
                answer["version"].as_str(),
                answer["body"]["status"].as_str()
            ),
            (Some("TLSv1.3"), Some("ok")),
            "{kind}"
        );
        // Under another name it must not be accepted.
        let args = [
            "connect",
            &port,
            text(&leaf.cert),
            text(&leaf.key),
            text(&ca),
            "web02.test",
        ];
        python::run(&fleet.dispatcher, python::STRICT, &args)
            .expect_code(1)
            .err_has("mismatch");
    }
}

#[test]
fn pythons_strictest_context_accepts_our_dispatcher() {
    for (kind, fleet) in fleets() {
        let (port, leaf) = (fleet.ports[0].to_string(), fleet.agent_leaf(0));
        let ca = fleet.agents[0].path("etc/ctrl-exec-agent/ca.crt");
        let mut server = python::start(
            &fleet.agents[0],
            python::STRICT,
            &["serve", &port, text(&leaf.cert), text(&leaf.key), text(&ca)],
        );
        let ping = fleet.ced(&["ping", "--json", "web01.test"]).ok().json();
        assert_eq!(
            ping["results"][0]["status"],
            "ok",
            "{kind}: {ping}\n{}",
            server.err()
        );
        server.wait_for_text("client ctrl-exec-dispatcher");
    }
}

#[test]
fn the_pairing_listener_shows_a_strict_certificate() {
    for kind in ["ecdsa-p256", "rsa-2048"] {
        let dispatcher: Host = new_dispatcher_with("ctl.test", &["--key-type", kind]);
        let port = free_port();
        let _pairing = start_pairing(&dispatcher, port, &[]);
        let ca = dispatcher.path("etc/ctrl-exec/ca.crt");
        let args = ["pair", &port.to_string(), text(&ca), "ctrl-exec-dispatcher"];
        let answer = python::run(&dispatcher, python::STRICT, &args).ok().json();
        assert_eq!(answer["version"], "TLSv1.3", "{kind}");
    }
}
