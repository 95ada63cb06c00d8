//! Whole handshakes in memory, between every kind of certificate that a fleet may have.

use std::io::{Read as _, Write as _};

use rustls::sign::CertifiedKey;
use rustls::{ClientConnection, Error, ServerConnection};

use super::*;
use crate::core::pki::fixtures::{LeafVersion, OpenSsl, agent, new_ca};
use crate::core::pki::{Authority, CertRequest, KeyType, PrivateKey, Version, csr};
use crate::core::types::DispatcherId;

const TLS_VERSIONS: [&SupportedProtocolVersion; 2] = [&TLS12, &TLS13];

struct Outcome {
    client: ClientConnection,
    server: ServerConnection,
    client_error: Option<Error>,
    server_error: Option<Error>,
}

impl Outcome {
    fn succeeded(&self) -> bool {
        let finished = !self.client.is_handshaking() && !self.server.is_handshaking();
        finished && self.client_error.is_none() && self.server_error.is_none()
    }

    fn client_failure(&self) -> TlsFailure {
        classify(self.client_error.as_ref().expect("the client fails"))
    }

    fn server_failure(&self) -> TlsFailure {
        classify(self.server_error.as_ref().expect("the server fails"))
    }
}

/// Shakes hands and lets a byte follow each way, so that TLS 1.3's late refusal of a client shows.
fn shake(client: Arc<ClientConfig>, server: Arc<ServerConfig>) -> Outcome {
    let name = "any.example".try_into().unwrap();
    let mut o = Outcome {
        client: ClientConnection::new(client, name).unwrap(),
        server: ServerConnection::new(server).unwrap(),
        client_error: None,
        server_error: None,
    };
    o.client.writer().write_all(b"?").unwrap();
    o.server.writer().write_all(b"!").unwrap();
    for _ in 0..10 {
        let mut wire = Vec::new();
        while o.client.wants_write() {
            o.client.write_tls(&mut wire).unwrap();
        }
        let mut rest = wire.as_slice();
        while !rest.is_empty() && o.server_error.is_none() {
            o.server.read_tls(&mut rest).unwrap();
            o.server_error = o.server.process_new_packets().err();
        }
        wire.clear();
        while o.server.wants_write() {
            o.server.write_tls(&mut wire).unwrap();
        }
        let mut rest = wire.as_slice();
        while !rest.is_empty() && o.client_error.is_none() {
            o.client.read_tls(&mut rest).unwrap();
            o.client_error = o.client.process_new_packets().err();
        }
    }
    if o.succeeded() {
        let mut byte = [0];
        o.server.reader().read_exact(&mut byte).unwrap();
        assert_eq!(&byte, b"?");
        o.client.reader().read_exact(&mut byte).unwrap();
        assert_eq!(&byte, b"!");
    }
    o
}

fn system() -> Clock {
    Clock::system(0)
}

/// Openssl's clock and ours may differ by a second.
fn soon() -> Clock {
    Clock::fixed(system().now() + 60)
}

fn identity(openssl: &OpenSsl, name: &str) -> Identity {
    Identity::load(
        &openssl.path(&format!("{name}.crt")),
        &openssl.path(&format!("{name}.key")),
    )
    .unwrap()
}

/// Both sides trust the one CA.
fn meet(
    version: &'static SupportedProtocolVersion,
    ca: &Certificate,
    client: &Identity,
    server: &Identity,
    clock: &Clock,
) -> Outcome {
    let cas = std::slice::from_ref(ca);
    shake(
        client_of_versions(client, cas, clock.clone(), &[version]).unwrap(),
        server_config(server, cas, clock.clone()).unwrap(),
    )
}

fn ours(ca: &Authority, kind: KeyType, name: &str) -> Identity {
    let key = PrivateKey::generate(kind).unwrap();
    let issued = if name == "ctrl-exec-dispatcher" {
        let id = DispatcherId::new("main").unwrap();
        ca.issue_dispatcher(key.public(), &id, 30)
    } else {
        let name = agent(name);
        let request = CertRequest::parse_pem(&csr::create_pem(&key, &name).unwrap()).unwrap();
        ca.issue_agent(&request, &name, 30)
    };
    Identity::new(vec![issued.unwrap()], key).unwrap()
}

#[test]
fn every_kind_of_certificate_meets_every_other() {
    let openssl = OpenSsl::new();
    for ca_kind in ["rsa:4096", "ec"] {
        openssl.make_ca("ca", ca_kind, "/CN=ctrl-exec CA");
        let ca = Authority::load(openssl.dir(), soon()).unwrap();
        let of = |cn: &str| {
            let mut all = Vec::new();
            for (kind, version) in [
                ("rsa:2048", LeafVersion::V1),
                ("ec", LeafVersion::V1),
                ("rsa:2048", LeafVersion::V3),
                ("ec", LeafVersion::V3),
            ] {
                openssl.make_leaf("leaf", kind, &format!("/CN={cn}"), "ca", version);
                all.push(identity(&openssl, "leaf"));
            }
            all.push(ours(&ca, KeyType::EcdsaP256, cn));
            all.push(ours(&ca, KeyType::Rsa2048, cn));
            all
        };
        let (dispatchers, agents) = (of("ctrl-exec-dispatcher"), of("web1"));
        assert_eq!(agents[0].certificate().version, Version::V1);
        assert_eq!(agents[2].certificate().version, Version::V3);
        for version in TLS_VERSIONS {
            for dispatcher in &dispatchers {
                for agent in &agents {
                    let o = meet(version, ca.certificate(), dispatcher, agent, &soon());
                    let errors = (&o.client_error, &o.server_error);
                    assert!(o.succeeded(), "{errors:?} {dispatcher:?} {agent:?}");
                    assert_eq!(o.server.protocol_version(), Some(version.version));
                    let seen = peer_identity(&o.server).unwrap();
                    assert!(seen.looks_like_dispatcher());
                    assert_eq!(seen.serial, dispatcher.certificate().serial);
                    let seen = peer_identity(&o.client).unwrap();
                    assert_eq!(seen.common_name.as_deref(), Some("web1"));
                    assert_eq!(seen.serial, agent.certificate().serial);
                    assert_eq!(o.client.tls13_tickets_received(), 0);
                }
            }
        }
    }
}

/// A CA with `dispatcher`, `agent` (v1) and `agent3` (v3 of OpenSSL).
fn fleet() -> (OpenSsl, Certificate) {
    let openssl = OpenSsl::new();
    openssl.make_ca("ca", "rsa:2048", "/CN=ctrl-exec CA");
    for (name, cn, version) in [
        ("dispatcher", "ctrl-exec-dispatcher", LeafVersion::V1),
        ("dispatcher3", "ctrl-exec-dispatcher", LeafVersion::V3),
        ("agent", "web1", LeafVersion::V1),
        ("agent3", "web1", LeafVersion::V3),
    ] {
        openssl.make_leaf(name, "rsa:2048", &format!("/CN={cn}"), "ca", version);
    }
    let ca = openssl.certificate("ca.crt");
    (openssl, ca)
}

#[test]
fn another_ca_of_the_same_name_is_refused_on_both_sides() {
    let (openssl, ca) = fleet();
    let (foreign, foreign_ca) = fleet();
    for version in TLS_VERSIONS {
        for suffix in ["", "3"] {
            let dispatcher = format!("dispatcher{suffix}");
            let agent = format!("agent{suffix}");
            let o = meet(
                version,
                &ca,
                &identity(&openssl, &dispatcher),
                &identity(&foreign, &agent),
                &soon(),
            );
            assert_eq!(o.client_failure(), TlsFailure::UnknownIssuer, "{suffix}");
            let told = TlsFailure::RefusedByPeer("not from its CA".to_owned());
            assert_eq!(o.server_failure(), told);
            let o = shake(
                client_of_versions(
                    &identity(&foreign, &dispatcher),
                    std::slice::from_ref(&ca),
                    soon(),
                    &[version],
                )
                .unwrap(),
                server_config(
                    &identity(&openssl, &agent),
                    std::slice::from_ref(&ca),
                    soon(),
                )
                .unwrap(),
            );
            assert_eq!(o.server_failure(), TlsFailure::UnknownIssuer, "{suffix}");
            assert_eq!(o.client_failure(), told);
        }
    }
    let both = [foreign_ca, ca];
    let o = shake(
        client_config(&identity(&openssl, "dispatcher"), &both, soon()).unwrap(),
        server_config(&identity(&foreign, "agent3"), &both, soon()).unwrap(),
    );
    assert!(o.succeeded(), "either CA of a list will do");
}

#[test]
fn a_self_signed_certificate_is_refused() {
    let (openssl, ca) = fleet();
    openssl.make_ca("self", "rsa:2048", "/CN=ctrl-exec CA");
    openssl.make_key("self1", "rsa:2048");
    openssl.run("req -new -key self1.key -subj /CN=ctrl-exec+CA -out self1.csr");
    openssl.run("x509 -req -in self1.csr -signkey self1.key -days 10 -out self1.crt");
    for version in TLS_VERSIONS {
        for name in ["self", "self1"] {
            let bad = identity(&openssl, name);
            let good = identity(&openssl, "agent");
            let o = meet(version, &ca, &good, &bad, &soon());
            assert!(o.client_error.is_some() && !o.succeeded(), "{name}");
            let o = meet(version, &ca, &bad, &good, &soon());
            assert!(o.server_error.is_some() && !o.succeeded(), "{name}");
        }
    }
}

#[test]
fn wrong_dates_are_told_apart_and_only_for_our_own() {
    let (openssl, ca) = fleet();
    let (foreign, _) = fleet();
    let start = system().now();
    for (now, expected) in [
        (0, TlsFailure::ClockNotYetValid),
        (start - 86_400, TlsFailure::ClockNotYetValid),
        (start + 826 * 86_400, TlsFailure::Expired),
    ] {
        for (dispatcher, agent) in [("dispatcher", "agent"), ("dispatcher3", "agent3")] {
            let (dispatcher, agent) = (identity(&openssl, dispatcher), identity(&openssl, agent));
            let cas = std::slice::from_ref(&ca);
            for version in [&TLS12, &TLS13] {
                let client =
                    |clock| client_of_versions(&dispatcher, cas, clock, &[version]).unwrap();
                // Whoever of the two is wrong about the time: for the server it is about time, and no reason to block the client.
                let o = shake(
                    client(Clock::fixed(now)),
                    server_config(&agent, cas, soon()).unwrap(),
                );
                assert_eq!(o.client_failure(), expected, "{now}");
                assert_eq!(o.server_failure(), TlsFailure::ExpiredThere, "{now}");
                assert!(o.server_failure().is_about_time());
                let o = shake(
                    client(soon()),
                    server_config(&agent, cas, Clock::fixed(now)).unwrap(),
                );
                assert_eq!(o.server_failure(), expected, "{now}");
                assert!(o.server_failure().is_about_time());
            }
        }
        for agent in ["agent", "agent3"] {
            let o = meet(
                &TLS13,
                &ca,
                &identity(&openssl, "dispatcher"),
                &identity(&foreign, agent),
                &Clock::fixed(now),
            );
            assert_eq!(o.client_failure(), TlsFailure::UnknownIssuer, "{now}");
        }
    }
}

#[test]
fn an_expired_ca_is_the_end_for_v1_and_v3_alike() {
    let (openssl, ca) = fleet();
    openssl.run("x509 -req -in agent.csr -CA ca.crt -CAkey ca.key -days 9000 -out agent.crt");
    openssl.run(
        "x509 -req -in agent3.csr -CA ca.crt -CAkey ca.key -days 9000 -extfile v3.ext -out agent3.crt",
    );
    let late = Clock::fixed(ca.not_after + 1);
    for agent in ["agent", "agent3"] {
        let agent = identity(&openssl, agent);
        let o = meet(
            &TLS13,
            &ca,
            &identity(&openssl, "dispatcher"),
            &agent,
            &late,
        );
        let text = o.client_failure().to_string();
        assert!(text.starts_with("the CA certificate expired"), "{text}");
    }
}

#[test]
fn an_expired_ca_does_not_live_on_beside_its_successor() {
    let (openssl, ca) = fleet();
    openssl.make_key("next", "rsa:2048");
    openssl.run("req -x509 -new -key next.key -days 9000 -subj /CN=next -out next.crt");
    let next = openssl.certificate("next.crt");
    for (issuer, name) in [("ca", "old"), ("next", "new")] {
        openssl.run(&format!(
            "x509 -req -in agent3.csr -CA {issuer}.crt -CAkey {issuer}.key -set_serial 7 -days 8000 -extfile v3.ext -out {name}.crt"
        ));
        std::fs::copy(
            openssl.path("agent3.key"),
            openssl.path(&format!("{name}.key")),
        )
        .unwrap();
    }
    let late = Clock::fixed(ca.not_after + 1);
    let cas = [ca, next];
    let dispatcher = identity(&openssl, "dispatcher");
    let client = client_of_versions(&dispatcher, &cas, late.clone(), &[&TLS13]).unwrap();
    for (name, text) in [("old", "the CA certificate expired"), ("new", "")] {
        let server = server_config(&identity(&openssl, name), &cas, late.clone()).unwrap();
        let outcome = shake(client.clone(), server);
        // The dispatcher's own certificate has ended too: the agent refuses it in any case.
        let failure = outcome.client_error.as_ref().map(classify);
        let failure = failure.map(|f| f.to_string()).unwrap_or_default();
        assert!(failure.starts_with(text), "{failure}");
        let refused_by_us = !failure.is_empty() && !failure.starts_with("the peer refused");
        assert_eq!(refused_by_us, !text.is_empty(), "{failure}");
    }
}

#[test]
fn a_dispatcher_is_not_an_agent_but_an_agent_may_knock() {
    let (openssl, ca) = fleet();
    openssl.make_leaf("older", "rsa:2048", "/CN=ctrl-exec", "ca", LeafVersion::V1);
    let authority = Authority::load(openssl.dir(), soon()).unwrap();
    let dispatcher = ours(&authority, KeyType::EcdsaP256, "ctrl-exec-dispatcher");
    let mut impostors: Vec<_> = ["dispatcher", "dispatcher3", "older"]
        .map(|n| identity(&openssl, n))
        .into();
    impostors.push(dispatcher.clone());
    for version in TLS_VERSIONS {
        for impostor in &impostors {
            let o = meet(version, &ca, &dispatcher, impostor, &soon());
            let text = o.client_failure().to_string();
            assert!(text.contains("belongs to a dispatcher"), "{text}");
        }
        let agent = ours(&authority, KeyType::EcdsaP256, "web1");
        for agent in [&agent, &identity(&openssl, "agent")] {
            let o = meet(version, &ca, agent, agent, &soon());
            assert!(o.succeeded(), "self-ping: {:?}", o.server_error);
            assert!(!peer_identity(&o.server).unwrap().looks_like_dispatcher());
        }
    }
}

#[test]
fn extended_key_usage_and_roles_are_enforced_on_v3() {
    let (openssl, ca) = fleet();
    let sign = |extensions: &str| -> Vec<u8> {
        openssl.write("x.ext", extensions);
        openssl.run(
            "x509 -req -in agent.csr -CA ca.crt -CAkey ca.key -days 9 -extfile x.ext -out x.crt",
        );
        openssl.run_bytes("x509 -in x.crt -outform DER")
    };
    let agent = identity(&openssl, "agent");
    let uri = "URI:spiffe://0123456789abcdef.ctrl-exec.internal/ctrl-exec";
    let unknown = format!("subjectAltName={uri}/logd/x");
    let two = format!("subjectAltName={uri}/dispatcher/a,{uri}/dispatcher/b");
    for (extensions, as_server, as_client) in [
        ("extendedKeyUsage=serverAuth", true, false),
        ("extendedKeyUsage=clientAuth", false, true),
        ("basicConstraints=CA:TRUE", false, false),
        (&unknown, false, false),
        (&two, false, false),
        ("1.2.3.4=critical,ASN1:NULL", false, false),
    ] {
        let x = CertifiedKey::new(vec![sign(extensions).into()], agent.key().signing_key());
        let cas = std::slice::from_ref(&ca);
        let o = shake(
            client_config(&agent, cas, soon()).unwrap(),
            raw_server(x.clone()),
        );
        assert_eq!(o.succeeded(), as_server, "{extensions}");
        let o = shake(
            raw_client(x, &TLS13),
            server_config(&agent, cas, soon()).unwrap(),
        );
        assert_eq!(o.succeeded(), as_client, "{extensions}");
    }
}

#[test]
fn a_client_without_certificate_is_refused_and_so_is_what_is_not_tls() {
    let (openssl, ca) = fleet();
    let server = server_config(&identity(&openssl, "agent"), &[ca], soon()).unwrap();
    for version in TLS_VERSIONS {
        let mut bare = pairing_client_of_versions(&[version]).unwrap();
        Arc::get_mut(&mut bare).unwrap().alpn_protocols.clear();
        let o = shake(bare, server.clone());
        assert_eq!(o.server_failure(), TlsFailure::NoCertificate);
        assert!(!o.succeeded());
        assert!(matches!(
            peer_identity(&o.server),
            Err(TlsError::NoPeerCertificate)
        ));
    }
    let mut http = ServerConnection::new(server).unwrap();
    http.read_tls(&mut &b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..])
        .unwrap();
    let error = http.process_new_packets().unwrap_err();
    assert_eq!(classify(&error), TlsFailure::NotTls);
}

/// A server that shows whatever it is given, with any key.
fn raw_server(shown: CertifiedKey) -> Arc<ServerConfig> {
    let config = ServerConfig::builder_with_provider(suites())
        .with_protocol_versions(VERSIONS)
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(shown)));
    Arc::new(config)
}

/// Likewise a client.
fn raw_client(
    shown: CertifiedKey,
    version: &'static SupportedProtocolVersion,
) -> Arc<ClientConfig> {
    let config = ClientConfig::builder_with_provider(suites())
        .with_protocol_versions(&[version])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier::Anybody))
        .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(shown)));
    Arc::new(config)
}

/// The certificate of `name` with another key.
fn stolen(openssl: &OpenSsl, name: &str, key: KeyType) -> CertifiedKey {
    let der = openssl.certificate(&format!("{name}.crt")).der;
    let key = PrivateKey::generate(key).unwrap();
    CertifiedKey::new(vec![der.into()], key.signing_key())
}

#[test]
fn a_certificate_without_its_key_is_worthless() {
    let (openssl, ca) = fleet();
    let dispatcher = identity(&openssl, "dispatcher");
    openssl.make_leaf("ec", "ec", "/CN=web2", "ca", LeafVersion::V1);
    for version in TLS_VERSIONS {
        for (shown, key) in [
            ("agent", KeyType::Rsa2048),
            ("agent3", KeyType::Rsa2048),
            ("ec", KeyType::EcdsaP256),
            ("agent", KeyType::EcdsaP256),
        ] {
            let server = raw_server(stolen(&openssl, shown, key));
            let cas = std::slice::from_ref(&ca);
            for client in [
                client_of_versions(&dispatcher, cas, soon(), &[version]).unwrap(),
                pairing_client_of_versions(&[version]).unwrap(),
            ] {
                let o = shake(client, server.clone());
                assert!(o.client_error.is_some() && !o.succeeded());
            }
        }
        let cas = std::slice::from_ref(&ca);
        let client = raw_client(stolen(&openssl, "dispatcher", KeyType::Rsa2048), version);
        let server = server_config(&identity(&openssl, "agent"), cas, soon()).unwrap();
        let o = shake(client, server);
        let text = o.server_failure().to_string();
        assert!(text.contains("could not prove"), "{text}");
    }
}

#[test]
fn pairing_takes_any_certificate_with_and_without_alpn() {
    let (openssl, _) = fleet();
    openssl.make_ca("self", "ec", "/CN=whoever");
    for version in TLS_VERSIONS {
        for name in ["dispatcher", "dispatcher3", "self"] {
            let server = pairing_server_config(&identity(&openssl, name)).unwrap();
            let o = shake(
                pairing_client_of_versions(&[version]).unwrap(),
                server.clone(),
            );
            assert!(o.succeeded(), "{:?}", o.client_error);
            assert_eq!(o.client.alpn_protocol(), Some(PAIRING_ALPN));
            assert_eq!(o.server.alpn_protocol(), Some(PAIRING_ALPN));
            let shown = openssl.certificate(&format!("{name}.crt"));
            assert_eq!(peer_identity(&o.client).unwrap().serial, shown.serial);

            let mut old_client = pairing_client_of_versions(&[version]).unwrap();
            Arc::get_mut(&mut old_client)
                .unwrap()
                .alpn_protocols
                .clear();
            let o = shake(old_client, server);
            assert!(o.succeeded(), "{:?}", o.client_error);
            assert_eq!(o.server.alpn_protocol(), None);

            let mut old_server = pairing_server_config(&identity(&openssl, name)).unwrap();
            Arc::get_mut(&mut old_server)
                .unwrap()
                .alpn_protocols
                .clear();
            let o = shake(pairing_client_of_versions(&[version]).unwrap(), old_server);
            assert!(o.succeeded(), "{:?}", o.client_error);
            assert_eq!(o.client.alpn_protocol(), None);
        }
    }
}

#[test]
fn an_identity_is_a_pair_that_fits() {
    let (openssl, _) = fleet();
    openssl.write("crossed.crt", &openssl.read("agent.crt"));
    openssl.write("crossed.key", &openssl.read("dispatcher.key"));
    let load = |certificate: &str, key: &str| {
        Identity::load(&openssl.path(certificate), &openssl.path(key)).map(|_| ())
    };
    assert!(matches!(
        load("crossed.crt", "crossed.key"),
        Err(TlsError::Mismatch { .. })
    ));
    assert!(matches!(
        load("agent.key", "agent.key"),
        Err(TlsError::Certificate { .. })
    ));
    openssl.write("not-a.key", &openssl.read("agent.crt"));
    assert!(matches!(
        load("agent.crt", "not-a.key"),
        Err(TlsError::Key { .. })
    ));
    let error = load("absent.crt", "agent.key").unwrap_err().to_string();
    assert!(error.contains("absent.crt"), "{error}");
    let printed = format!("{:?}", identity(&openssl, "agent"));
    assert!(!printed.contains("PRIVATE"), "{printed}");
}

#[test]
fn there_is_no_tls_without_a_ca() {
    let (openssl, _) = fleet();
    let agent = identity(&openssl, "agent");
    assert!(matches!(
        server_config(&agent, &[], soon()),
        Err(TlsError::NoCa)
    ));
    let leaf = openssl.certificate("agent3.crt");
    assert!(matches!(
        client_config(&agent, &[leaf], soon()),
        Err(TlsError::Config(_))
    ));
}

#[test]
fn a_client_of_openssl_is_served() {
    let openssl = OpenSsl::new();
    let ca = new_ca(openssl.dir());
    let agent = ours(&ca, KeyType::EcdsaP256, "web1");
    openssl.make_leaf(
        "old",
        "rsa:2048",
        "/CN=ctrl-exec-dispatcher",
        "ca",
        LeafVersion::V1,
    );
    let new = ours(&ca, KeyType::EcdsaP256, "ctrl-exec-dispatcher");
    openssl.write("new.crt", &new.certificate().to_pem());
    openssl.write("new.key", new.key().to_pkcs8_pem().expose());
    let config = server_config(&agent, &[ca.certificate().clone()], soon()).unwrap();
    for client in ["old", "new"] {
        for options in [
            "-tls1_2 -cipher ECDHE-ECDSA-AES128-GCM-SHA256",
            "-tls1_3 -ciphersuites TLS_CHACHA20_POLY1305_SHA256",
        ] {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let port = listener.local_addr().unwrap().port();
            let config = config.clone();
            let served = std::thread::spawn(move || {
                let (mut socket, _) = listener.accept().unwrap();
                let deadline = std::time::Duration::from_secs(20);
                socket.set_read_timeout(Some(deadline)).unwrap();
                let mut tls = ServerConnection::new(config).unwrap();
                let mut stream = rustls::Stream::new(&mut tls, &mut socket);
                stream.write_all(b"served\n").unwrap();
                stream.conn.send_close_notify();
                stream.flush().unwrap();
                peer_identity(&tls).unwrap()
            });
            let said = openssl.run_text(&format!(
                "s_client -connect 127.0.0.1:{port} -quiet -verify_return_error -x509_strict \
                 -purpose sslserver -verify_hostname web1 -CAfile ca.crt -cert {client}.crt -key {client}.key {options}"
            ));
            assert_eq!(said, "served\n");
            assert!(served.join().unwrap().looks_like_dispatcher());
        }
    }
}
