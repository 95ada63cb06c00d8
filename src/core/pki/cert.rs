//! A certificate, parsed once. Reads the X.509 v1 certificates of the original and the v3 ones of everybody else.

use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use x509_parser::asn1_rs::FromDer as _;
use x509_parser::certificate::{TbsCertificate, X509Certificate};
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::x509::{X509Name, X509Version};

use super::envelope::{Refused, Signed};
use super::expiry;
use super::keys::PEM_STYLE;
use crate::core::clock;
use crate::core::types::{DispatcherId, Serial};

/// Why a certificate is not accepted.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum CertError {
    #[error("this is not a certificate in PEM form (BEGIN CERTIFICATE)")]
    NotPem,
    #[error("the certificate is malformed: {0}")]
    Malformed(&'static str),
    #[error("the certificate carries an invalid role: {0}")]
    Role(&'static str),
    #[error("the certificate was not issued by this CA (another issuer name)")]
    OtherIssuer,
    #[error("the certificate was not issued by this CA (the signature does not fit its key)")]
    BadSignature,
    #[error("the certificate is signed with a weak or unknown algorithm")]
    WeakSignature,
    #[error("the issuer's certificate does not belong to a CA")]
    IssuerIsNoCa,
    #[error("the CA certificate expired at {}", expiry::openssl_text(*.0))]
    IssuerExpired(i64),
    #[error("the certificate of the CA itself cannot be used here")]
    IsTheCa,
    #[error("the certificate is not that of a CA that has signed itself")]
    NotSelfSigned,
    #[error(
        "the certificate is not valid before {}, and the clock of this host says {}: check the clock",
        expiry::openssl_text(*.not_before), clock::iso(*.now)
    )]
    NotYetValid { not_before: i64, now: i64 },
    #[error("the certificate expired at {}: renew it", expiry::openssl_text(*.not_after))]
    Expired { not_after: i64, now: i64 },
}

/// X.509 version. v2 does not occur and is refused.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Version {
    /// No extensions at all: what `openssl x509 -req` wrote before 3.2 (spec/dispatcher.md 14.4).
    V1,
    V3,
}

/// What the holder of a certificate may be. Certificates of the original have none.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Role {
    Agent,
    Dispatcher,
}

impl Role {
    /// The word in the role URI.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::Dispatcher => "dispatcher",
        }
    }
}

/// A parsed certificate. Parsing checks the form only; [`verify_issued_by`](Self::verify_issued_by) checks the rest.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Certificate {
    pub der: Vec<u8>,
    pub version: Version,
    pub serial: Serial,
    /// The subject's CN; `None` if there is none, more than one, or it is not plain text.
    pub subject_cn: Option<String>,
    /// Seconds since 1970.
    pub not_before: i64,
    /// Seconds since 1970.
    pub not_after: i64,
    /// DER SubjectPublicKeyInfo.
    pub spki: Vec<u8>,
    pub role: Option<Role>,
    /// Host id of an agent or id of a dispatcher.
    pub role_id: Option<String>,
    pub san_dns: Vec<String>,
    pub san_uri: Vec<String>,
    /// Whether it may issue certificates: basic constraints say so, or it is a self-issued v1 certificate.
    pub is_ca: bool,
    /// Subject key identifier, if there is one.
    pub subject_key_id: Option<Vec<u8>>,
    issuer: Vec<u8>,
    subject: Vec<u8>,
}

impl Certificate {
    /// # Errors
    /// Not exactly one v1 or v3 certificate, or one whose alternative names contradict themselves.
    pub fn from_der(der: &[u8]) -> Result<Self, CertError> {
        let (rest, x509) = X509Certificate::from_der(der)
            .map_err(|_| CertError::Malformed("it is not DER of X.509"))?;
        if !rest.is_empty() {
            return Err(CertError::Malformed("bytes follow the certificate"));
        }
        let tbs = &x509.tbs_certificate;
        let version = match tbs.version {
            X509Version::V1 if tbs.extensions().is_empty() => Version::V1,
            X509Version::V3 => Version::V3,
            _ => return Err(CertError::Malformed("its version is neither v1 nor v3")),
        };
        if tbs.signature != x509.signature_algorithm {
            return Err(CertError::Malformed("two different signature algorithms"));
        }
        let (san_dns, san_uri) = alternative_names(tbs)?;
        let (role, role_id) = match role_of(&san_uri)? {
            Some((role, id)) => (Some(role), Some(id)),
            None => (None, None),
        };
        let subject = tbs.subject.as_raw().to_vec();
        let issuer = tbs.issuer.as_raw().to_vec();
        let is_ca = match version {
            Version::V1 => subject == issuer,
            Version::V3 => may_issue(tbs)?,
        };
        Ok(Self {
            der: der.to_vec(),
            version,
            serial: serial(tbs.raw_serial())?,
            subject_cn: single_common_name(&tbs.subject),
            not_before: tbs.validity.not_before.timestamp(),
            not_after: tbs.validity.not_after.timestamp(),
            spki: tbs.subject_pki.raw.to_vec(),
            role,
            role_id,
            san_dns,
            san_uri,
            is_ca,
            subject_key_id: tbs
                .iter_extensions()
                .find_map(|e| match e.parsed_extension() {
                    ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0.to_vec()),
                    _ => None,
                }),
            issuer,
            subject,
        })
    }

    /// The first certificate of a PEM text; text around it is skipped.
    ///
    /// # Errors
    /// There is none, or as [`from_der`](Self::from_der).
    pub fn from_pem(pem: &[u8]) -> Result<Self, CertError> {
        let der = CertificateDer::from_pem_slice(pem).map_err(|_| CertError::NotPem)?;
        Self::from_der(&der)
    }

    /// All certificates of a PEM text, at least one.
    ///
    /// # Errors
    /// There is none, or any of them is not readable.
    pub fn all_from_pem(pem: &[u8]) -> Result<Vec<Self>, CertError> {
        let all: Vec<Self> = CertificateDer::pem_slice_iter(pem)
            .map(|der| Self::from_der(&der.map_err(|_| CertError::NotPem)?))
            .collect::<Result<_, _>>()?;
        if all.is_empty() {
            return Err(CertError::NotPem);
        }
        Ok(all)
    }

    /// One PEM block, as OpenSSL writes it.
    pub fn to_pem(&self) -> String {
        pem::encode_config(
            &pem::Pem::new("CERTIFICATE", self.der.as_slice()),
            PEM_STYLE,
        )
    }

    /// SHA-256 of the whole certificate, lower-case hex, as `openssl x509 -fingerprint -sha256` has it without the colons.
    pub fn fingerprint(&self) -> String {
        crate::core::types::hex(&crate::core::types::sha256(&[&self.der]))
    }

    /// notAfter as OpenSSL prints it.
    pub fn expiry_text(&self) -> String {
        expiry::openssl_text(self.not_after)
    }

    /// DER of the subject name.
    pub fn subject_der(&self) -> &[u8] {
        &self.subject
    }

    /// DER of the issuer name.
    pub fn issuer_der(&self) -> &[u8] {
        &self.issuer
    }

    /// Checks that `ca` issued this certificate directly and that both are within their dates at `now`.
    ///
    /// The start date of the CA is not checked: a CA made by OpenSSL a minute ago must not lock out a host whose clock is two minutes slow.
    ///
    /// # Errors
    /// Says what does not fit; the dates come last, so a date error means that everything else is right.
    pub fn verify_issued_by(&self, ca: &Certificate, now: i64) -> Result<(), CertError> {
        self.verify_signed_by(ca)?;
        if now > ca.not_after {
            return Err(CertError::IssuerExpired(ca.not_after));
        }
        self.check_dates(now)
    }

    /// Checks that `ca` issued this certificate directly, whatever the dates of both.
    ///
    /// # Errors
    /// Says what does not fit.
    pub fn verify_signed_by(&self, ca: &Certificate) -> Result<(), CertError> {
        if self.issuer != ca.subject {
            return Err(CertError::OtherIssuer);
        }
        if self.spki == ca.spki {
            return Err(CertError::IsTheCa);
        }
        if !ca.is_ca {
            return Err(CertError::IssuerIsNoCa);
        }
        self.verify_signature(&ca.spki)
    }

    /// Checks that this is a CA that has signed itself: a trust anchor, if somebody trusts it. Dates are not looked at.
    ///
    /// # Errors
    /// It is no CA, names another issuer, or the signature is not of its own key.
    pub fn verify_self_signed(&self) -> Result<(), CertError> {
        if !self.is_ca || self.issuer != self.subject {
            return Err(CertError::NotSelfSigned);
        }
        match self.verify_signature(&self.spki) {
            Err(CertError::BadSignature) => Err(CertError::NotSelfSigned),
            other => other,
        }
    }

    fn verify_signature(&self, signer_spki: &[u8]) -> Result<(), CertError> {
        Signed::parse(&self.der)
            .ok_or(CertError::Malformed("it is not a signed structure"))?
            .verify(signer_spki)
            .map_err(|refused| match refused {
                Refused::Algorithm => CertError::WeakSignature,
                Refused::Signature => CertError::BadSignature,
            })
    }

    /// Checks that `now` lies within the certificate's own dates.
    ///
    /// # Errors
    /// Not yet valid, or expired.
    pub fn check_dates(&self, now: i64) -> Result<(), CertError> {
        if now < self.not_before {
            return Err(CertError::NotYetValid {
                not_before: self.not_before,
                now,
            });
        }
        if now > self.not_after {
            return Err(CertError::Expired {
                not_after: self.not_after,
                now,
            });
        }
        Ok(())
    }
}

fn serial(raw: &[u8]) -> Result<Serial, CertError> {
    // RFC 5280 allows 20 octets; text forms hold 32. A negative number would print like another, positive one.
    if raw.len() > 32 || raw.first().is_none_or(|b| b & 0x80 != 0) {
        return Err(CertError::Malformed("its serial is negative or too long"));
    }
    Ok(Serial::from_be_bytes(raw))
}

fn single_common_name(name: &X509Name<'_>) -> Option<String> {
    let mut names = name.iter_common_name();
    let first = names.next()?;
    if names.next().is_some() {
        return None;
    }
    first.as_str().ok().map(str::to_owned)
}

fn alternative_names(tbs: &TbsCertificate<'_>) -> Result<(Vec<String>, Vec<String>), CertError> {
    let (mut dns, mut uri) = (Vec::new(), Vec::new());
    let names = tbs
        .subject_alternative_name()
        .map_err(|_| CertError::Malformed("its alternative names are unreadable or given twice"))?;
    for name in names.iter().flat_map(|n| &n.value.general_names) {
        match name {
            GeneralName::DNSName(text) => dns.push((*text).to_owned()),
            GeneralName::URI(text) => uri.push((*text).to_owned()),
            GeneralName::Invalid(..) => {
                return Err(CertError::Malformed("an alternative name is unreadable"));
            }
            _ => {}
        }
    }
    Ok((dns, uri))
}

fn may_issue(tbs: &TbsCertificate<'_>) -> Result<bool, CertError> {
    let constraints = tbs
        .basic_constraints()
        .map_err(|_| CertError::Malformed("its basic constraints are unreadable"))?;
    let usage = tbs
        .key_usage()
        .map_err(|_| CertError::Malformed("its key usage is unreadable"))?;
    Ok(constraints.is_some_and(|c| c.value.ca) && usage.is_none_or(|u| u.value.key_cert_sign()))
}

/// The role URI of a leaf: `spiffe://<16 hex of the CA's key id>.ctrl-exec.internal/ctrl-exec/<role>/<id>` (spec/swarm.md 3.5.1).
#[cfg(feature = "dispatcher")]
pub(super) fn role_uri(ca_key_id: &[u8], role: Role, id: &str) -> String {
    let domain = crate::core::types::hex(&ca_key_id[..ca_key_id.len().min(8)]);
    format!(
        "spiffe://{domain}{TRUST_DOMAIN}/ctrl-exec/{}/{id}",
        role.as_str()
    )
}

const TRUST_DOMAIN: &str = ".ctrl-exec.internal";

/// The role among the URIs of a certificate. A URI that is not ours at all gives no role; one that is ours must be the only one and whole.
fn role_of(uris: &[String]) -> Result<Option<(Role, String)>, CertError> {
    let ours = |uri: &str| {
        let lower = uri.to_ascii_lowercase();
        lower.starts_with("spiffe:") && lower.contains("ctrl-exec")
    };
    match uris {
        [] => Ok(None),
        [one] if !ours(one) => Ok(None),
        [one] => parse_role_uri(one)
            .map(Some)
            .ok_or(CertError::Role("its role URI is not of our form")),
        several if several.iter().any(|u| ours(u)) => {
            Err(CertError::Role("it has more than one URI"))
        }
        _ => Ok(None),
    }
}

fn parse_role_uri(uri: &str) -> Option<(Role, String)> {
    let lower_hex = |t: &str| t.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let rest = uri.strip_prefix("spiffe://")?;
    let (domain, path) = rest.split_once('/')?;
    let ca = domain.strip_suffix(TRUST_DOMAIN)?;
    let (role, id) = path.strip_prefix("ctrl-exec/")?.split_once('/')?;
    let role = match role {
        "agent" if id.len() == 32 && lower_hex(id) => Role::Agent,
        "dispatcher" if DispatcherId::new(id).is_ok() => Role::Dispatcher,
        _ => return None,
    };
    (ca.len() == 16 && lower_hex(ca)).then(|| (role, id.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::pki::fixtures::{LeafVersion, OpenSsl};
    use proptest::prelude::*;

    const NOW_SLACK: i64 = 10;

    fn now() -> i64 {
        clock::Clock::system(0).now()
    }

    #[test]
    fn a_v1_certificate_of_openssl_is_read_and_verified() {
        let openssl = OpenSsl::new();
        openssl.make_ca("ca", "rsa:2048", "/CN=ctrl-exec CA");
        openssl.make_leaf(
            "leaf",
            "rsa:2048",
            "/CN=web1.example.com",
            "ca",
            LeafVersion::V1,
        );
        let ca = openssl.certificate("ca.crt");
        let leaf = openssl.certificate("leaf.crt");
        assert_eq!(leaf.version, Version::V1);
        assert_eq!(leaf.subject_cn.as_deref(), Some("web1.example.com"));
        assert_eq!((leaf.role, leaf.is_ca, ca.is_ca), (None, false, true));
        let serial = openssl.run_text("x509 -in leaf.crt -noout -serial");
        assert_eq!(Serial::parse_hex(serial.trim()).unwrap(), leaf.serial);
        let end = openssl.run_text("x509 -in leaf.crt -noout -enddate");
        assert_eq!(end.trim(), format!("notAfter={}", leaf.expiry_text()));
        let spki = openssl.run_bytes("pkey -in leaf.key -pubout -outform DER");
        assert_eq!(leaf.spki, spki);
        assert_eq!(leaf.verify_issued_by(&ca, now() + NOW_SLACK), Ok(()));
        assert_eq!(openssl.read("leaf.crt"), leaf.to_pem());
    }

    #[test]
    fn what_the_ca_did_not_sign_is_refused() {
        let openssl = OpenSsl::new();
        openssl.make_ca("ca", "rsa:2048", "/CN=ctrl-exec CA");
        openssl.make_ca("twin", "rsa:2048", "/CN=ctrl-exec CA");
        openssl.make_ca("other", "rsa:2048", "/CN=other CA");
        openssl.make_leaf("leaf", "rsa:2048", "/CN=web1", "ca", LeafVersion::V1);
        let [ca, twin, other, leaf] =
            ["ca.crt", "twin.crt", "other.crt", "leaf.crt"].map(|n| openssl.certificate(n));
        let at = now() + NOW_SLACK;
        assert_eq!(
            leaf.verify_issued_by(&twin, at),
            Err(CertError::BadSignature)
        );
        assert_eq!(
            leaf.verify_issued_by(&other, at),
            Err(CertError::OtherIssuer)
        );
        assert_eq!(ca.verify_issued_by(&ca, at), Err(CertError::IsTheCa));
        assert!(matches!(
            leaf.verify_issued_by(&ca, leaf.not_before - 1),
            Err(CertError::NotYetValid { .. })
        ));
        assert!(matches!(
            leaf.verify_issued_by(&ca, leaf.not_after + 1),
            Err(CertError::Expired { .. })
        ));
        assert!(matches!(
            leaf.verify_issued_by(&ca, ca.not_after + 1),
            Err(CertError::IssuerExpired(_))
        ));
    }

    #[test]
    fn a_leaf_cannot_issue() {
        let openssl = OpenSsl::new();
        openssl.make_ca("ca", "rsa:2048", "/CN=ctrl-exec CA");
        openssl.make_leaf("leaf", "rsa:2048", "/CN=web1", "ca", LeafVersion::V1);
        openssl.make_leaf("below", "rsa:2048", "/CN=web2", "leaf", LeafVersion::V1);
        let (leaf, below) = (
            openssl.certificate("leaf.crt"),
            openssl.certificate("below.crt"),
        );
        assert_eq!(
            below.verify_issued_by(&leaf, now() + NOW_SLACK),
            Err(CertError::IssuerIsNoCa)
        );
    }

    #[test]
    fn a_sha1_signature_is_refused() {
        let openssl = OpenSsl::new();
        openssl.make_ca("ca", "rsa:2048", "/CN=ctrl-exec CA");
        openssl.run("req -newkey rsa:2048 -nodes -keyout k.pem -subj /CN=x -out x.csr");
        openssl.run("x509 -req -sha1 -in x.csr -CA ca.crt -CAkey ca.key -set_serial 5 -out x.crt");
        assert_eq!(
            openssl
                .certificate("x.crt")
                .verify_issued_by(&openssl.certificate("ca.crt"), now() + NOW_SLACK),
            Err(CertError::WeakSignature)
        );
    }

    fn with_uris(uris: &[&str]) -> Result<Certificate, CertError> {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::default();
        for uri in uris {
            let uri = (*uri).try_into().unwrap();
            params.subject_alt_names.push(rcgen::SanType::URI(uri));
        }
        Certificate::from_der(params.self_signed(&key).unwrap().der())
    }

    #[test]
    fn the_role_comes_from_exactly_one_whole_uri() {
        let agent = role_uri(&[0xab; 20], Role::Agent, &"0f".repeat(16));
        let dispatcher = role_uri(&[0xab; 20], Role::Dispatcher, "main-1");
        assert_eq!(
            dispatcher,
            "spiffe://abababababababab.ctrl-exec.internal/ctrl-exec/dispatcher/main-1"
        );
        let parsed = with_uris(&[&agent]).unwrap();
        assert_eq!(parsed.role, Some(Role::Agent));
        assert_eq!(parsed.role_id, Some("0f".repeat(16)));
        assert_eq!(
            with_uris(&[&dispatcher]).unwrap().role,
            Some(Role::Dispatcher)
        );
        for none in [&[][..], &["https://example.com/"], &["a:b", "c:d"]] {
            assert_eq!(with_uris(none).unwrap().role, None);
        }
        let broken = [
            dispatcher.replace("dispatcher/", "root/"),
            dispatcher.replace("spiffe", "SPIFFE"),
            dispatcher.replace("main-1", "../x"),
            dispatcher.replace("main-1", ""),
            dispatcher.replace("internal", "external"),
            dispatcher.replacen("ab", "", 1),
            format!("{dispatcher}/x"),
            agent.replace("0f0f", "0F0f"),
        ];
        for uri in &broken {
            assert!(
                matches!(with_uris(&[uri]), Err(CertError::Role(_))),
                "{uri}"
            );
        }
        for two in [[&*agent, &*dispatcher], [&agent, "https://example.com/"]] {
            assert!(matches!(with_uris(&two), Err(CertError::Role(_))));
        }
    }

    #[test]
    fn an_ambiguous_common_name_is_none() {
        let openssl = OpenSsl::new();
        openssl.make_ca("two", "rsa:2048", "/CN=ctrl-exec-dispatcher/CN=web1");
        openssl.make_ca("none", "rsa:2048", "/O=nobody");
        assert_eq!(openssl.certificate("two.crt").subject_cn, None);
        assert_eq!(openssl.certificate("none.crt").subject_cn, None);
    }

    #[test]
    fn several_certificates_in_one_file_are_all_read() {
        let openssl = OpenSsl::new();
        openssl.make_ca("a", "rsa:2048", "/CN=a");
        openssl.make_ca("b", "rsa:2048", "/CN=b");
        let both = format!(
            "{}\n# text\n{}",
            openssl.read("a.crt"),
            openssl.read("b.crt")
        );
        let all = Certificate::all_from_pem(both.replace('\n', "\r\n").as_bytes()).unwrap();
        let names: Vec<_> = all.iter().map(|c| c.subject_cn.as_deref()).collect();
        assert_eq!(names, [Some("a"), Some("b")]);
        assert_eq!(Certificate::all_from_pem(b"x"), Err(CertError::NotPem));
    }

    proptest! {
        #[test]
        fn a_damaged_certificate_is_survived(at in 0_usize..400, byte in any::<u8>()) {
            let key = rcgen::KeyPair::generate().unwrap();
            let cert = rcgen::CertificateParams::new(vec!["a.example".to_owned()])
                .unwrap().self_signed(&key).unwrap();
            let mut der = cert.der().to_vec();
            let at = at % der.len();
            der[at] = byte;
            if let Ok(parsed) = Certificate::from_der(&der) {
                let _ = parsed.verify_issued_by(&parsed, 0);
            }
        }
    }
}
