//! Certificate requests: made by agents, judged by the dispatcher (spec/dispatcher.md 14.4, spec/pairing.md 9.2).
//!
//! Of a request only the key and the name count. Whatever else it asks for (CA rights, alternative names, dates) is never looked at.

use rustls::pki_types::{CertificateSigningRequestDer, pem::PemObject as _};
use x509_parser::asn1_rs::{FromDer as _, Oid};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::oid_registry::OID_X509_COMMON_NAME;
use x509_parser::x509::X509Name;

use super::envelope::{Refused, Signed};
use super::keys::{PrivateKey, PublicKey};
use crate::core::types::AgentName;

/// Longest request in bytes of PEM text.
pub const MAX_CSR_BYTES: usize = 10_240;

const BEGIN: &str = "-----BEGIN CERTIFICATE REQUEST-----";
const END: &str = "-----END CERTIFICATE REQUEST-----";

/// Why a request is refused, in the original's words where it has words.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum CsrError {
    #[error("CSR exceeds maximum size of {MAX_CSR_BYTES} bytes")]
    TooLong,
    #[error("Invalid CSR format: {0}")]
    Format(&'static str),
    #[error("CSR public key too small (need >= 2048 bits)")]
    KeyTooSmall,
    #[error("CSR public key is of an unsupported kind: use RSA or ECDSA P-256 or P-384")]
    KeyKind,
    #[error("CSR uses a weak or unrecognised signature algorithm ({0})")]
    WeakSignature(String),
    #[error("CSR self-signature does not verify: it was not made with the key it carries")]
    BadSignature,
    #[error("CSR subject must consist of one CN and nothing else")]
    Subject,
    #[error("cannot make a CSR: {0}")]
    Make(String),
}

/// A request for a certificate of `name`, PEM. Nothing but key and CN is in it, which a Perl dispatcher copies whole.
///
/// # Errors
/// The key cannot sign.
pub fn create_pem(key: &PrivateKey, name: &AgentName) -> Result<String, CsrError> {
    let failed = |e: rcgen::Error| CsrError::Make(e.to_string());
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name = common_name(name.as_str());
    params
        .serialize_request(key)
        .and_then(|request| request.pem())
        .map_err(failed)
}

/// A name of one CN.
pub(super) fn common_name(cn: &str) -> rcgen::DistinguishedName {
    let mut name = rcgen::DistinguishedName::new();
    name.push(rcgen::DnType::CommonName, cn);
    name
}

/// A request that has passed all checks but one: whether `cn` may have a certificate is for the caller to decide.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct CertRequest {
    /// The CN that the request gives. Compare it with the name that was approved.
    pub cn: String,
    key: PublicKey,
}

impl CertRequest {
    /// # Errors
    /// Too long, not exactly one PEM block from byte 0 on, a weak key or signature, a false self-signature, or a subject beyond one CN.
    pub fn parse_pem(text: &str) -> Result<Self, CsrError> {
        if text.len() > MAX_CSR_BYTES {
            return Err(CsrError::TooLong);
        }
        check_frame(text)?;
        let der = CertificateSigningRequestDer::from_pem_slice(text.as_bytes())
            .map_err(|_| CsrError::Format("the text between the lines is not base64"))?;
        let malformed = CsrError::Format("it is not DER of PKCS#10");
        let signed = Signed::parse(&der).ok_or_else(|| malformed.clone())?;
        let (_, request) = X509CertificationRequest::from_der(&der).map_err(|_| malformed)?;
        let info = &request.certification_request_info;
        let key = PublicKey::from_spki(info.subject_pki.raw).map_err(|_| CsrError::KeyKind)?;
        if key.rsa_bits().is_some_and(|bits| bits < 2048) {
            return Err(CsrError::KeyTooSmall);
        }
        signed.verify(key.spki_der()).map_err(|r| match r {
            Refused::Algorithm => {
                CsrError::WeakSignature(algorithm_name(&request.signature_algorithm.algorithm))
            }
            Refused::Signature => CsrError::BadSignature,
        })?;
        Ok(Self {
            cn: only_common_name(&info.subject).ok_or(CsrError::Subject)?,
            key,
        })
    }

    /// The key that the request proves to hold.
    pub fn key(&self) -> &PublicKey {
        &self.key
    }

    /// DER SubjectPublicKeyInfo of the key.
    pub fn spki(&self) -> &[u8] {
        self.key.spki_der()
    }
}

fn check_frame(text: &str) -> Result<(), CsrError> {
    let rest = text
        .strip_prefix(BEGIN)
        .ok_or(CsrError::Format("it does not begin with the header line"))?;
    let (_, after) = rest
        .split_once(END)
        .ok_or(CsrError::Format("the closing line is missing"))?;
    match after {
        "" | "\n" | "\r\n" => Ok(()),
        _ => Err(CsrError::Format("text follows the closing line")),
    }
}

fn only_common_name(subject: &X509Name<'_>) -> Option<String> {
    let mut rdns = subject.iter_rdn();
    let mut attributes = rdns.next()?.iter();
    let attribute = attributes.next()?;
    let alone = rdns.next().is_none() && attributes.next().is_none();
    if !alone || *attribute.attr_type() != OID_X509_COMMON_NAME {
        return None;
    }
    let cn = attribute.as_str().ok()?;
    (!cn.is_empty()).then(|| cn.to_owned())
}

fn algorithm_name(oid: &Oid<'_>) -> String {
    let number = oid.to_id_string();
    match number.as_str() {
        "1.2.840.113549.1.1.2" => "md2WithRSAEncryption".to_owned(),
        "1.2.840.113549.1.1.4" => "md5WithRSAEncryption".to_owned(),
        "1.2.840.113549.1.1.5" => "sha1WithRSAEncryption".to_owned(),
        "1.2.840.10045.4.1" => "ecdsa-with-SHA1".to_owned(),
        _ => number,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::pki::fixtures::OpenSsl;
    use crate::core::pki::keys::KeyType;
    use proptest::prelude::*;

    fn openssl_request(openssl: &OpenSsl, options: &str) -> String {
        openssl.run(&format!(
            "req -new -nodes -keyout k.pem -subj /CN=web1 -out r.csr {options}"
        ));
        openssl.read("r.csr")
    }

    #[test]
    fn our_request_passes_our_checks_and_those_of_openssl() {
        let openssl = OpenSsl::new();
        let name = AgentName::new("web1.example.com").unwrap();
        for kind in [KeyType::EcdsaP256, KeyType::Rsa2048] {
            let key = PrivateKey::generate(kind).unwrap();
            let pem = create_pem(&key, &name).unwrap();
            assert!(pem.starts_with("-----BEGIN CERTIFICATE REQUEST-----\n"));
            assert!(pem.ends_with("-----END CERTIFICATE REQUEST-----\n"));
            let request = CertRequest::parse_pem(&pem).unwrap();
            assert_eq!(request.cn, "web1.example.com");
            assert_eq!(request.spki(), key.spki_der());
            openssl.write("ours.csr", &pem);
            openssl.run("req -in ours.csr -verify -noout");
            let text = openssl.run_text("req -in ours.csr -noout -text -subject");
            assert!(text.contains("CN = web1.example.com"), "{text}");
            assert!(text.contains("bit)"), "{text}");
        }
    }

    #[test]
    fn requests_of_openssl_are_read() {
        let openssl = OpenSsl::new();
        for options in [
            "-newkey rsa:2048",
            "-newkey rsa:2048 -sha512",
            "-newkey ec -pkeyopt ec_paramgen_curve:P-256",
            "-newkey ec -pkeyopt ec_paramgen_curve:P-384 -sha384",
            "-newkey rsa:2048 -addext basicConstraints=critical,CA:TRUE -addext subjectAltName=DNS:other",
        ] {
            let text = openssl_request(&openssl, options);
            assert_eq!(
                CertRequest::parse_pem(&text).unwrap().cn,
                "web1",
                "{options}"
            );
            let crlf = text.replace('\n', "\r\n");
            assert_eq!(
                CertRequest::parse_pem(&crlf).unwrap().cn,
                "web1",
                "{options}"
            );
        }
    }

    #[test]
    fn weak_requests_are_refused() {
        let openssl = OpenSsl::new();
        for (options, expected) in [
            ("-newkey rsa:1024", CsrError::KeyTooSmall),
            (
                "-newkey rsa:2048 -sha1",
                CsrError::WeakSignature("sha1WithRSAEncryption".to_owned()),
            ),
            (
                "-newkey rsa:2048 -md5",
                CsrError::WeakSignature("md5WithRSAEncryption".to_owned()),
            ),
            (
                "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -sha1",
                CsrError::WeakSignature("ecdsa-with-SHA1".to_owned()),
            ),
            (
                "-newkey ec -pkeyopt ec_paramgen_curve:P-521",
                CsrError::KeyKind,
            ),
            ("-newkey ed25519", CsrError::KeyKind),
        ] {
            let text = openssl_request(&openssl, options);
            assert_eq!(CertRequest::parse_pem(&text), Err(expected), "{options}");
        }
    }

    #[test]
    fn the_subject_is_one_cn_alone() {
        let openssl = OpenSsl::new();
        for subject in [
            "/O=evil/CN=web1",
            "/CN=web1/O=evil",
            "/CN=web1/CN=web2",
            "/CN=web1+O=evil",
            "/O=web1",
        ] {
            openssl.make_key("k", "ec");
            let output = std::process::Command::new("openssl")
                .args(["req", "-new", "-key", "k.key", "-out", "r.csr"])
                .args(["-multivalue-rdn", "-subj", subject])
                .current_dir(openssl.dir())
                .output()
                .unwrap();
            assert!(output.status.success(), "{output:?}");
            let text = openssl.read("r.csr");
            assert_eq!(
                CertRequest::parse_pem(&text),
                Err(CsrError::Subject),
                "{subject}"
            );
        }
    }

    fn good() -> String {
        let key = PrivateKey::generate(KeyType::EcdsaP256).unwrap();
        create_pem(&key, &AgentName::new("web1").unwrap()).unwrap()
    }

    #[test]
    fn the_frame_is_exact() {
        let pem = good();
        let body = pem.trim_end();
        assert!(CertRequest::parse_pem(body).is_ok());
        assert!(CertRequest::parse_pem(&format!("{body}\r\n")).is_ok());
        for bad in [
            String::new(),
            format!(" {pem}"),
            format!("\n{pem}"),
            format!("{pem}\n"),
            format!("{pem}x"),
            format!("{pem}{pem}"),
            pem.replace("-----END CERTIFICATE REQUEST-----", ""),
            pem.replace("CERTIFICATE REQUEST", "NEW CERTIFICATE REQUEST"),
            pem.replace('M', "*"),
        ] {
            let error = CertRequest::parse_pem(&bad).unwrap_err();
            assert!(matches!(error, CsrError::Format(_)), "{bad}: {error}");
        }
        assert!(
            CertRequest::parse_pem("x")
                .unwrap_err()
                .to_string()
                .starts_with("Invalid CSR format")
        );
    }

    #[test]
    fn size_is_counted_in_bytes_and_first() {
        let over = "é".repeat(MAX_CSR_BYTES / 2) + "x";
        assert_eq!(over.len(), 10_241);
        assert_eq!(CertRequest::parse_pem(&over), Err(CsrError::TooLong));
        let at = "x".repeat(MAX_CSR_BYTES);
        assert!(matches!(
            CertRequest::parse_pem(&at),
            Err(CsrError::Format(_))
        ));
    }

    #[test]
    fn a_false_self_signature_is_refused() {
        let pem = good();
        let der = CertificateSigningRequestDer::from_pem_slice(pem.as_bytes()).unwrap();
        let mut der = der.to_vec();
        let at = der.windows(4).position(|w| w == b"web1").unwrap();
        der[at + 3] = b'2';
        let forged = pem::encode_config(
            &pem::Pem::new("CERTIFICATE REQUEST", der),
            super::super::keys::PEM_STYLE,
        );
        assert_eq!(CertRequest::parse_pem(&forged), Err(CsrError::BadSignature));
    }

    proptest! {
        #[test]
        fn any_text_is_survived(text in "\\PC{0,200}") {
            prop_assert!(CertRequest::parse_pem(&text).is_err());
        }

        #[test]
        fn any_bytes_in_the_frame_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let framed = pem::encode(&pem::Pem::new("CERTIFICATE REQUEST", bytes));
            prop_assert!(CertRequest::parse_pem(&framed).is_err());
        }
    }
}
