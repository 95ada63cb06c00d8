//! What we write into certificates: v3, strict RFC 5280, everything from here and nothing from a request (spec/swarm.md 3.5.1).

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, DnValue,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyUsagePurpose, SanType, SerialNumber,
};
use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, DnsName};
use rustls::server::ParsedCertificate;
use x509_parser::asn1_rs::{FromDer as _, Tag};
use x509_parser::certificate::X509Certificate;

use super::cert::{self, CertError, Certificate, Role};
use super::csr::common_name;
use super::keys::{PrivateKey, PublicKey};
use super::provider;
use crate::core::clock;
use crate::core::types::Serial;

/// Why signing failed, as a sentence.
#[derive(Debug)]
pub(super) struct Failed(pub(super) String);

impl From<CertError> for Failed {
    fn from(error: CertError) -> Self {
        Self(error.to_string())
    }
}

impl From<rcgen::Error> for Failed {
    fn from(error: rcgen::Error) -> Self {
        Self(error.to_string())
    }
}

impl From<rustls::Error> for Failed {
    fn from(error: rustls::Error) -> Self {
        Self(error.to_string())
    }
}

fn not_as_ordered() -> Failed {
    Failed("the result is not what was ordered".to_owned())
}

/// A leaf to be signed. Dates are seconds since 1970: not before, not after.
pub(super) struct Leaf<'a> {
    pub(super) cn: &'a str,
    pub(super) key: &'a PublicKey,
    pub(super) role: Role,
    pub(super) id: &'a str,
    pub(super) serial: &'a Serial,
    pub(super) dates: (i64, i64),
}

/// A self-signed CA certificate.
pub(super) fn ca(
    key: &PrivateKey,
    cn: &str,
    serial: &Serial,
    dates: (i64, i64),
) -> Result<Certificate, Failed> {
    let mut params = basics(cn, key.public(), serial, dates);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let made = Certificate::from_der(params.self_signed(key)?.der())?;
    if made.is_ca && made.spki == key.spki_der() {
        Ok(made)
    } else {
        Err(not_as_ordered())
    }
}

/// The certificate of another CA's name and key, signed by `ca`: an endorsement.
pub(super) fn cross(
    other: &Certificate,
    ca: &Certificate,
    ca_key: &PrivateKey,
    serial: &Serial,
    dates: (i64, i64),
) -> Result<Certificate, Failed> {
    let key = PublicKey::from_spki(&other.spki).map_err(|e| Failed(e.to_string()))?;
    let mut params = basics("", &key, serial, dates);
    params.distinguished_name = name_of(other)?;
    if let Some(id) = &other.subject_key_id {
        params.key_identifier_method = KeyIdMethod::PreSpecified(id.clone());
    }
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let issuer = Issuer::from_ca_cert_der(&der_of(ca), ca_key)?;
    let made = Certificate::from_der(params.signed_by(&key, &issuer)?.der())?;
    made.verify_signed_by(ca)?;
    // The name must come out byte for byte, or nobody would find the CA that is meant.
    let as_ordered =
        made.is_ca && made.spki == other.spki && made.subject_der() == other.subject_der();
    if as_ordered {
        Ok(made)
    } else {
        Err(not_as_ordered())
    }
}

/// Signs a leaf, reads it back and verifies it at `now` as a peer would.
pub(super) fn leaf(
    leaf: &Leaf<'_>,
    ca: &Certificate,
    ca_key: &PrivateKey,
    now: i64,
) -> Result<Certificate, Failed> {
    let mut params = basics(leaf.cn, leaf.key, leaf.serial, leaf.dates);
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    // Both for both: a dispatcher is a server when pairing, an agent a client when it asks itself. The role separates them.
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    if let Some(name) = dns_name(leaf.cn) {
        let name = SanType::DnsName(name.try_into()?);
        params.subject_alt_names.push(name);
    }
    let uri = cert::role_uri(&trust_domain(ca, ca_key), leaf.role, leaf.id);
    params.subject_alt_names.push(SanType::URI(uri.try_into()?));

    let issuer = Issuer::from_ca_cert_der(&der_of(ca), ca_key)?;
    let issued = Certificate::from_der(params.signed_by(leaf.key, &issuer)?.der())?;
    issued.verify_issued_by(ca, now)?;
    verify_by_webpki(&issued, ca, now)?;
    let as_ordered = !issued.is_ca
        && issued.spki == leaf.key.spki_der()
        && issued.serial == *leaf.serial
        && issued.subject_cn.as_deref() == Some(leaf.cn)
        && (issued.role, issued.role_id.as_deref()) == (Some(leaf.role), Some(leaf.id));
    if as_ordered {
        Ok(issued)
    } else {
        Err(not_as_ordered())
    }
}

/// Whether rcgen writes the CA's name into what it signs byte for byte as the CA has it; nothing that we sign would verify otherwise.
/// It loses repeated attributes and refuses multi-valued ones.
pub(super) fn can_write_name_of(ca: &Certificate, key: &PrivateKey) -> bool {
    let written = || {
        let issuer = Issuer::from_ca_cert_der(&der_of(ca), Unsigned(key)).ok()?;
        let params = basics("probe", key.public(), &Serial::from_be_bytes(&[1]), (0, 0));
        let probe = params.signed_by(key.public(), &issuer).ok()?;
        Certificate::from_der(probe.der()).ok()
    };
    written().is_some_and(|probe| probe.issuer_der() == ca.subject_der())
}

/// The subject of a certificate for writing it again. Kinds of text that no CA of ours or of OpenSSL uses are refused.
fn name_of(certificate: &Certificate) -> Result<DistinguishedName, Failed> {
    let strange = || Failed("the name of that CA cannot be written again".to_owned());
    let (_, x509) = X509Certificate::from_der(&certificate.der).map_err(|_| strange())?;
    let mut name = DistinguishedName::new();
    for rdn in x509.subject().iter() {
        let mut attributes = rdn.iter();
        let (Some(attribute), None) = (attributes.next(), attributes.next()) else {
            return Err(strange());
        };
        let kind = attribute.attr_type().iter().ok_or_else(strange)?.collect();
        let text = attribute.as_str().map_err(|_| strange())?;
        let value = match attribute.attr_value().header.tag() {
            Tag::Utf8String => DnValue::Utf8String(text.to_owned()),
            Tag::PrintableString => DnValue::PrintableString(text.try_into()?),
            Tag::Ia5String => DnValue::Ia5String(text.try_into()?),
            _ => return Err(strange()),
        };
        name.push(DnType::CustomDnType(kind), value);
    }
    Ok(name)
}

/// What every certificate has. rcgen's own defaults (dates until 4096, serial made of the key) are all overwritten.
fn basics(
    cn: &str,
    key: &PublicKey,
    serial: &Serial,
    (not_before, not_after): (i64, i64),
) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.not_before = clock::calendar(not_before);
    params.not_after = clock::calendar(not_after);
    params.serial_number = Some(SerialNumber::from_slice(serial.as_bytes()));
    params.distinguished_name = common_name(cn);
    params.use_authority_key_identifier_extension = true;
    params.key_identifier_method = KeyIdMethod::PreSpecified(key.key_id());
    params
}

/// The name as DNS SAN if it is one. An underscore is no host name, and digits with dots would be an address.
fn dns_name(name: &str) -> Option<&str> {
    let valid = !name.contains('_') && DnsName::try_from(name).is_ok();
    valid.then_some(name)
}

fn trust_domain(ca: &Certificate, key: &PrivateKey) -> Vec<u8> {
    match &ca.subject_key_id {
        Some(id) if id.len() >= 8 => id.clone(),
        _ => key.public().key_id(),
    }
}

fn der_of(certificate: &Certificate) -> CertificateDer<'_> {
    CertificateDer::from(certificate.der.as_slice())
}

fn verify_by_webpki(issued: &Certificate, ca: &Certificate, now: i64) -> Result<(), Failed> {
    let mut roots = RootCertStore::empty();
    roots.add(der_of(ca))?;
    let der = der_of(issued);
    rustls::client::verify_server_cert_signed_by_trust_anchor(
        &ParsedCertificate::try_from(&der)?,
        &roots,
        &[],
        clock::unix_time(now),
        provider::algorithms().all,
    )?;
    Ok(())
}

/// A key that signs nothing, for probes.
struct Unsigned<'a>(&'a PrivateKey);

impl rcgen::PublicKeyData for Unsigned<'_> {
    fn der_bytes(&self) -> &[u8] {
        self.0.der_bytes()
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        rcgen::PublicKeyData::algorithm(self.0)
    }
}

impl rcgen::SigningKey for Unsigned<'_> {
    fn sign(&self, _: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        Ok(vec![0])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::clock::Clock;
    use crate::core::pki::fixtures::{OpenSsl, agent, new_ca, request};
    use crate::core::pki::{Authority, CertRequest, KeyType, PeerIdentity, Version};
    use crate::core::types::DispatcherId;

    fn system() -> Clock {
        Clock::system(0)
    }

    fn verify_strictly(openssl: &OpenSsl, name: &str, certificate: &Certificate) {
        openssl.write(name, &certificate.to_pem());
        for purpose in ["sslserver", "sslclient"] {
            openssl.run(&format!(
                "verify -x509_strict -purpose {purpose} -CAfile ca.crt {name}"
            ));
        }
    }

    #[test]
    fn what_a_new_ca_issues_is_strict() {
        let openssl = OpenSsl::new();
        let ca = new_ca(openssl.dir());
        for kind in [KeyType::EcdsaP256, KeyType::Rsa2048] {
            let issued = ca
                .issue_agent(
                    &request(kind, "web1.example.com"),
                    &agent("web1.example.com"),
                    90,
                )
                .unwrap();
            verify_strictly(&openssl, "leaf.crt", &issued);
            assert_eq!(
                (issued.version, issued.role),
                (Version::V3, Some(Role::Agent))
            );
            assert_eq!(issued.san_dns, ["web1.example.com"]);
            assert_eq!(issued.san_uri.len(), 1);
            assert_eq!(issued.serial.legacy(), issued.serial.to_string());
            let text = openssl.run_text("x509 -in leaf.crt -noout -text");
            for expected in [
                "CA:FALSE",
                "Digital Signature",
                "TLS Web Server Authentication, TLS Web Client Authentication",
                "Version: 3",
            ] {
                assert!(text.contains(expected), "{expected}: {text}");
            }
        }
        let key = PrivateKey::generate(KeyType::EcdsaP256).unwrap();
        let id = DispatcherId::new("main-1").unwrap();
        let issued = ca.issue_dispatcher(key.public(), &id, 825).unwrap();
        verify_strictly(&openssl, "dispatcher.crt", &issued);
        let peer = PeerIdentity::from_certificate(&issued);
        assert!(peer.looks_like_dispatcher());
        assert_eq!(peer.role_id.as_deref(), Some("main-1"));
        assert_eq!(peer.common_name.as_deref(), Some("ctrl-exec-dispatcher"));
        assert_eq!(peer.dns_names, ["ctrl-exec-dispatcher"]);
    }

    #[test]
    fn cas_made_by_openssl_are_taken_over() {
        for (kind, subject) in [
            ("rsa:2048", "/CN=ctrl-exec CA"),
            ("ec", "/O=Example/CN=my fleet"),
            ("rsa:2048", "/C=DE/ST=x/L=y/O=Example/OU=ops/CN=ca"),
        ] {
            let openssl = OpenSsl::new();
            openssl.make_ca("ca", kind, subject);
            openssl.write("ca.serial", "01");
            let ca = Authority::load(openssl.dir(), system()).unwrap();
            let issued = ca
                .issue_agent(&request(KeyType::EcdsaP256, "web1"), &agent("web1"), 825)
                .unwrap();
            openssl.write("leaf.crt", &issued.to_pem());
            // The original's CA certificate has no key usage, so the strict check is not for it.
            openssl.run("verify -purpose sslserver -CAfile ca.crt leaf.crt");
            let text = openssl.run_text("x509 -in leaf.crt -noout -ext authorityKeyIdentifier");
            let ski = openssl.run_text("x509 -in ca.crt -noout -ext subjectKeyIdentifier");
            assert_eq!(text.lines().last(), ski.lines().last());
        }
    }

    #[test]
    fn a_v1_ca_without_key_id_signs_too() {
        let openssl = OpenSsl::new();
        openssl.make_key("ca", "rsa:2048");
        openssl.run("req -new -key ca.key -subj /CN=old -out ca.csr");
        openssl.run("x509 -req -in ca.csr -signkey ca.key -days 100 -out ca.crt");
        let ca = Authority::load(openssl.dir(), system()).unwrap();
        assert_eq!(ca.certificate().version, Version::V1);
        let issued = ca
            .issue_agent(&request(KeyType::EcdsaP256, "web1"), &agent("web1"), 10)
            .unwrap();
        openssl.write("leaf.crt", &issued.to_pem());
        openssl.run("verify -purpose sslserver -CAfile ca.crt leaf.crt");
        let text = openssl.run_text("x509 -in leaf.crt -noout -ext authorityKeyIdentifier");
        assert_eq!(
            text.trim().lines().last().unwrap().trim().len(),
            59,
            "{text}"
        );
    }

    #[test]
    fn nothing_of_the_request_but_the_key_is_signed() {
        let openssl = OpenSsl::new();
        let ca = new_ca(openssl.dir());
        openssl.run(
            "req -new -newkey rsa:2048 -nodes -keyout k.pem -subj /CN=web1 -out r.csr \
             -addext basicConstraints=critical,CA:TRUE -addext keyUsage=keyCertSign \
             -addext subjectAltName=DNS:other,URI:spiffe://x.ctrl-exec.internal/ctrl-exec/dispatcher/x",
        );
        let request = CertRequest::parse_pem(&openssl.read("r.csr")).unwrap();
        let issued = ca.issue_agent(&request, &agent("web2"), 30).unwrap();
        assert!(!issued.is_ca);
        assert_eq!(issued.subject_cn.as_deref(), Some("web2"));
        assert_eq!(issued.san_dns, ["web2"]);
        assert_eq!(issued.role, Some(Role::Agent));
        verify_strictly(&openssl, "leaf.crt", &issued);
    }

    #[test]
    fn only_host_names_become_dns_names() {
        let openssl = OpenSsl::new();
        let ca = new_ca(openssl.dir());
        for (name, expected) in [
            ("web1", true),
            ("WEB-1.example.com", true),
            ("web_1", false),
            ("10.0.0.1", false),
            ("web-.example", false),
            ("a..b", false),
        ] {
            let issued = ca
                .issue_agent(&request(KeyType::EcdsaP256, "x"), &agent(name), 30)
                .unwrap();
            assert_eq!(issued.san_dns.len(), usize::from(expected), "{name}");
            assert_eq!(issued.san_uri.len(), 1);
            verify_strictly(&openssl, "leaf.crt", &issued);
        }
    }
}
