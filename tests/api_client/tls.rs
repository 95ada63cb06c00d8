//! `https://`: whose certificate is believed, and under which name.

use std::path::Path;
use std::sync::Arc;

use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use serde_json::json;

use crate::common::Host;
use crate::common::openssl::{Authority, Dates, Leaf};
use crate::stub::{Answer, Stub, api, json};

const FOR_LOCALHOST: &str = "subjectAltName=DNS:localhost\nextendedKeyUsage=serverAuth\n";

fn answer() -> Answer {
    json(200, &json!({"ok": true, "version": "1"}))
}

/// A server with this certificate; `clients`: a certificate of this CA is required.
fn serve(leaf: &Leaf, clients: Option<&Authority>) -> Arc<ServerConfig> {
    let cert =
        CertificateDer::from_pem_slice(leaf.cert_pem().as_bytes()).expect("openssl wrote it");
    let key = PrivateKeyDer::from_pem_slice(leaf.key_pem().as_bytes()).expect("openssl wrote it");
    let provider = Arc::new(ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .expect("ring has both versions");
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(ca) => {
            let mut roots = RootCertStore::empty();
            let pem = ca.cert_pem();
            roots
                .add(CertificateDer::from_pem_slice(pem.as_bytes()).expect("openssl wrote it"))
                .expect("it is a CA");
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            builder.with_client_cert_verifier(verifier.build().expect("there is a CA"))
        }
    };
    Arc::new(
        builder
            .with_single_cert(vec![cert], key)
            .expect("key and certificate belong together"),
    )
}

fn text(path: &Path) -> &str {
    path.to_str().expect("the path is text")
}

#[test]
fn the_certificate_must_be_of_a_trusted_ca_and_for_this_name() {
    let ca = Authority::shared();
    let leaf = ca.issue_v3("whatever", "a1", FOR_LOCALHOST);
    let trusted = ca.path("ca.crt");
    let host = Host::new("client.test");
    let stub = Stub::tls(serve(&leaf, None), "localhost", &[answer()]);
    let words = ["health", "--token", "t0k", "--ca", text(&trusted)];
    api(&host, &stub.url, &words).ok().out_has("STATUS ok");
    assert_eq!(stub.only().header("authorization"), Some("Bearer t0k"));

    // The same server under a name that its certificate does not have.
    let other = stub.url.replace("localhost", "127.0.0.1");
    let run = api(&host, &other, &words).expect_code(1);
    assert!(
        run.err().starts_with(&format!("{other}: TLS failed")),
        "{}",
        run.err()
    );
    assert!(run.err().contains("does not fit its name"), "{}", run.err());
    // Another CA, of the same name.
    let foreign = Authority::foreign().path("ca.crt");
    api(&host, &stub.url, &["health", "--ca", text(&foreign)])
        .expect_code(1)
        .err_has("not from a CA that is trusted here");
    // No system bundle below this root.
    api(&host, &stub.url, &["health"])
        .expect_code(78)
        .err_has("this system has no CA certificates");
    assert_eq!(
        stub.heard().len(),
        1,
        "nothing was sent to a server that was not believed"
    );
}

#[test]
fn the_bundle_of_the_system_and_the_file_name_cas_too() {
    let ca = Authority::shared();
    let leaf = ca.issue_v3("whatever", "a2", FOR_LOCALHOST);
    let stub = Stub::tls(serve(&leaf, None), "localhost", &[answer()]);
    let mut host = Host::new("client.test");
    // Of a system's bundle what we cannot read is left out.
    let bundle = format!(
        "{}-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        ca.cert_pem()
    );
    host.write("etc/ssl/cert.pem", &bundle, 0o644);
    api(&host, &stub.url, &["health"]).ok();
    // Of one that was named it is not.
    let named = host.write("etc/named.pem", &bundle, 0o644);
    api(&host, &stub.url, &["health", "--ca", text(&named)])
        .expect_code(78)
        .err_has("it cannot be the certificate of a CA");
    // The first that is there counts.
    host.write(
        "etc/ssl/certs/ca-certificates.crt",
        Authority::foreign().cert_pem(),
        0o644,
    );
    api(&host, &stub.url, &["health"]).expect_code(1);
    let home = host.path("home");
    host.set_env("HOME", text(&home));
    let file = format!("ca = {}\n", ca.path("ca.crt").display());
    host.write("home/.ctrl-exec-cli.conf", file, 0o600);
    api(&host, &stub.url, &["health"]).ok();
}

#[test]
fn a_certificate_whose_time_is_over_and_one_without_names_are_refused() {
    let ca = Authority::shared();
    let trusted = ca.path("ca.crt");
    let host = Host::new("client.test");
    for (leaf, told) in [
        (ca.issue("localhost", "a3", Dates::Days(10)), "TLS failed"),
        (
            ca.issue_v3("localhost", "a4", "extendedKeyUsage=serverAuth\n"),
            "does not fit its name",
        ),
        (
            ca.issue_v3(
                "localhost",
                "a5",
                "subjectAltName=DNS:localhost\nextendedKeyUsage=clientAuth\n",
            ),
            "TLS failed",
        ),
    ] {
        let stub = Stub::tls(serve_anything(&leaf), "localhost", &[answer()]);
        api(&host, &stub.url, &["health", "--ca", text(&trusted)])
            .expect_code(1)
            .err_has(told);
        assert!(stub.heard().is_empty());
    }
    let mut late = Host::new("client.test");
    let offset = late.write("tmp/offset", format!("{}", 200 * 86_400), 0o644);
    late.set_env("CTRL_EXEC_CLOCK_OFFSET_FILE", text(&offset));
    let leaf = ca.issue_v3("whatever", "a6", FOR_LOCALHOST);
    let stub = Stub::tls(serve(&leaf, None), "localhost", &[answer()]);
    api(&late, &stub.url, &["health", "--ca", text(&trusted)])
        .expect_code(1)
        .err_has("has expired");
}

/// Also with a certificate that rustls would not take itself.
fn serve_anything(leaf: &Leaf) -> Arc<ServerConfig> {
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("ring has both versions")
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(
            crate::common::tls::certified(leaf),
        )));
    Arc::new(config)
}

#[test]
fn a_client_certificate_is_shown_to_who_asks() {
    let ca = Authority::shared();
    let leaf = ca.issue_v3("whatever", "a7", FOR_LOCALHOST);
    let mine = ca.issue_v3("me", "a8", "extendedKeyUsage=clientAuth\n");
    let trusted = ca.path("ca.crt");
    let host = Host::new("client.test");
    let stub = Stub::tls(serve(&leaf, Some(ca)), "localhost", &[answer()]);
    let words = ["health", "--ca", text(&trusted)];
    let run = api(&host, &stub.url, &words).expect_code(1);
    assert!(
        run.err().contains("refused our certificate"),
        "{}",
        run.err()
    );
    let key = host.write("etc/client.key", mine.key_pem(), 0o600);
    let pair = ["--cert", text(&mine.cert), "--key", text(&key)];
    api(&host, &stub.url, &[&words[..], &pair].concat()).ok();
    api(&host, &stub.url, &[&words[..], &pair[..2]].concat()).expect_code(64);
    host.set_mode("etc/client.key", 0o644);
    api(&host, &stub.url, &[&words[..], &pair].concat())
        .expect_code(78)
        .err_has("secret that others can read");
    assert_eq!(stub.heard().len(), 1);
}

#[test]
fn http_and_https_are_told_apart() {
    let ca = Authority::shared();
    let leaf = ca.issue_v3("whatever", "a9", FOR_LOCALHOST);
    let trusted = ca.path("ca.crt");
    let host = Host::new("client.test");
    let plain = Stub::new(&[answer()]);
    // The plain server waits for the end of a head that never comes, or answers what is no TLS.
    let url = plain.url.replace("http://127.0.0.1", "https://localhost");
    let run = api(&host, &url, &["health", "--ca", text(&trusted)]).expect_code(1);
    assert!(run.err().starts_with(&url), "{}", run.err());
    let secure = Stub::tls(serve(&leaf, None), "localhost", &[answer()]);
    let url = secure.url.replace("https", "http");
    let run = api(&host, &url, &["health"]).expect_code(1);
    assert!(run.err().starts_with(&url), "{}", run.err());
    api(&host, &url, &["health", "--ca", text(&trusted)])
        .expect_code(64)
        .err_has("are for https:// URLs");
}
