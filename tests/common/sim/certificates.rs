//! Keys and certificates of simulated agents, and TLS as the original serves it.

use std::path::PathBuf;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{SystemTime, UNIX_EPOCH};

use rcgen::{
    CertificateParams, DistinguishedName, DnType, Issuer, KeyPair, PublicKeyData as _, SerialNumber,
};
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{ring, verify_tls13_signature_with_raw_key};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, SubjectPublicKeyInfoDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::{CertifiedKey, SigningKey};
use rustls::{
    CertificateError, DigitallySignedStruct, Error, PeerMisbehaved, ServerConfig, SignatureScheme,
};
use tempfile::TempDir;
use time::OffsetDateTime;
use x509_parser::certificate::X509Certificate;
use x509_parser::parse_x509_certificate;

use super::super::openssl::{Authority, Dates, openssl};
use super::serials::two_digit_hex;

/// The RSA key that all simulated agents of this process have: making one takes a tenth of a second.
fn shared_key() -> &'static str {
    static KEY: OnceLock<String> = OnceLock::new();
    KEY.get_or_init(|| {
        // PKCS#8 with every release of openssl.
        openssl(&[
            "genpkey",
            "-algorithm",
            "RSA",
            "-pkeyopt",
            "rsa_keygen_bits:2048",
        ])
    })
}

/// What the agents of a fleet have in common: their CA, their key, and the time that they think it is.
pub struct House {
    ca: CertificateDer<'static>,
    signing: Arc<dyn SigningKey>,
    pair: KeyPair,
    offset: AtomicI64,
    dir: TempDir,
}

impl House {
    pub fn new(authority: &Authority) -> Self {
        let pem = shared_key();
        let key = PrivateKeyDer::from_pem_slice(pem.as_bytes()).unwrap();
        Self {
            ca: CertificateDer::from_pem_slice(authority.cert_pem().as_bytes()).unwrap(),
            signing: ring::sign::any_supported_type(&key).unwrap(),
            pair: KeyPair::from_pem(pem).unwrap(),
            offset: AtomicI64::new(0),
            dir: tempfile::Builder::new()
                .prefix("ce-sim-")
                .tempdir()
                .unwrap(),
        }
    }

    /// Seconds since 1970, as the agents see it.
    pub fn now(&self) -> i64 {
        let system = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        i64::try_from(system.as_secs()).unwrap() + self.offset.load(Ordering::Relaxed)
    }

    pub fn set_clock_offset(&self, seconds: i64) {
        self.offset.store(seconds, Ordering::Relaxed);
    }

    fn key_file(&self) -> PathBuf {
        let path = self.dir.path().join("agent.key");
        if !path.exists() {
            std::fs::write(&path, shared_key()).unwrap();
        }
        path
    }

    /// A certificate as the original has it: version 1, by openssl.
    pub fn issue_v1(&self, authority: &Authority, cn: &str, serial: u32, days: u32) -> Live {
        let serial = format!("{serial:02X}");
        let leaf = authority.issue_for(&self.key_file(), cn, &serial, Dates::Days(days));
        self.live(CertificateDer::from_pem_slice(leaf.cert_pem().as_bytes()).unwrap())
    }

    /// One that costs no process: version 3 with nothing but a CN.
    pub fn issue_v3(&self, issuer: &Issuer<'_, KeyPair>, cn: &str, serial: u32, days: u32) -> Live {
        let mut params = CertificateParams::default();
        params.distinguished_name = named(cn);
        params.serial_number = Some(SerialNumber::from(u64::from(serial)));
        let at = |unix| OffsetDateTime::from_unix_timestamp(unix).unwrap();
        params.not_before = at(self.now() - 60);
        params.not_after = at(self.now() + i64::from(days) * 86_400);
        let certificate = params.signed_by(&self.pair, issuer).unwrap();
        self.live(certificate.der().clone())
    }

    /// A request for a certificate with the agents' key: subject and nothing else (spec/agent.md 15.1).
    pub fn request(&self, cn: &str) -> String {
        let mut params = CertificateParams::default();
        params.distinguished_name = named(cn);
        params.serialize_request(&self.pair).unwrap().pem().unwrap()
    }

    /// What the original asks about a renewed certificate (15.2), and no more.
    pub fn acceptable(&self, pem: &str) -> Result<CertificateDer<'static>, String> {
        const CHAIN: &str = "renewed cert does not verify against the agent CA";
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|_| CHAIN)?;
        self.issued(&der).map_err(|_| CHAIN)?;
        let (_, certificate) = parse_x509_certificate(&der).map_err(|_| CHAIN)?;
        if certificate.public_key().raw != self.pair.subject_public_key_info() {
            return Err("renewed cert public key does not match the agent key".to_owned());
        }
        Ok(der)
    }

    pub fn live(&self, der: CertificateDer<'static>) -> Live {
        // Not through `CertifiedKey::from_der`: it refuses certificates of version 1.
        let certified = CertifiedKey::new(vec![der.clone()], self.signing.clone());
        Live {
            der,
            certified: Arc::new(certified),
        }
    }

    /// Does the CA's signature hold, and is it a day of its validity? Names, uses and versions say nothing, as in the original.
    fn issued(&self, der: &CertificateDer<'_>) -> Result<(), CertificateError> {
        let (_, ca) =
            parse_x509_certificate(&self.ca).map_err(|_| CertificateError::BadEncoding)?;
        let certificate = parsed(der)?;
        if certificate.issuer().as_raw() != ca.subject().as_raw()
            || certificate.verify_signature(Some(ca.public_key())).is_err()
        {
            return Err(CertificateError::UnknownIssuer);
        }
        let validity = certificate.validity();
        if self.now() < validity.not_before.timestamp() {
            return Err(CertificateError::NotValidYet);
        }
        if self.now() > validity.not_after.timestamp() {
            return Err(CertificateError::Expired);
        }
        Ok(())
    }
}

fn named(cn: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, cn);
    name
}

fn parsed<'a>(der: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, CertificateError> {
    parse_x509_certificate(der)
        .map(|(_, certificate)| certificate)
        .map_err(|_| CertificateError::BadEncoding)
}

/// Serial of a certificate, two digits per byte.
pub fn serial_of(der: &CertificateDer<'_>) -> String {
    two_digit_hex(parsed(der).unwrap().raw_serial())
}

/// A certificate in use or waiting to be.
#[derive(Clone, Debug)]
pub struct Live {
    der: CertificateDer<'static>,
    certified: Arc<CertifiedKey>,
}

impl Live {
    /// Minimal lower-case hex.
    pub fn serial(&self) -> String {
        let text = serial_of(&self.der);
        text.trim_start_matches('0').to_owned()
    }

    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// notAfter as openssl prints it.
    pub fn expiry(&self) -> String {
        const MONTHS: [&str; 12] = [
            "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
        ];
        let end = parsed(&self.der)
            .unwrap()
            .validity()
            .not_after
            .to_datetime();
        let (hour, minute, second) = end.to_hms();
        format!(
            "{} {:2} {hour:02}:{minute:02}:{second:02} {} GMT",
            MONTHS[usize::from(u8::from(end.month())) - 1],
            end.day(),
            end.year()
        )
    }
}

/// The certificate that new connections are shown.
#[derive(Debug)]
pub struct Presented(pub Mutex<Live>);

impl ResolvesServerCert for Presented {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.lock().unwrap().certified.clone())
    }
}

/// Verifies the chain if a certificate is sent, and lets in who sends none.
struct Clients(Arc<House>);

impl std::fmt::Debug for Clients {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Clients")
    }
}

pub fn server(house: &Arc<House>, presented: Arc<Presented>) -> Arc<ServerConfig> {
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS12, &rustls::version::TLS13])
        .unwrap()
        .with_client_cert_verifier(Arc::new(Clients(house.clone())))
        .with_cert_resolver(presented);
    // Every connection proves its certificate anew.
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Arc::new(config)
}

impl ClientCertVerifier for Clients {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[rustls::DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.0.issued(end_entity)?;
        Ok(ClientCertVerified::assertion())
    }

    // rustls' own way to the key refuses version 1; the bare key will do.
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let certificate = parsed(cert)?;
        let spki = SubjectPublicKeyInfoDer::from(certificate.public_key().raw);
        let algorithms = ring::default_provider().signature_verification_algorithms;
        verify_tls13_signature_with_raw_key(message, &spki, dss, &algorithms)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let certificate = parsed(cert)?;
        let key = certificate.public_key();
        let known = ring::default_provider().signature_verification_algorithms;
        let of_scheme = known.mapping.iter().find(|(s, _)| *s == dss.scheme);
        let holds = of_scheme.is_some_and(|(_, algorithms)| {
            algorithms.iter().any(|algorithm| {
                algorithm
                    .verify_signature(&key.subject_public_key.data, message, dss.signature())
                    .is_ok()
            })
        });
        if holds {
            Ok(HandshakeSignatureValid::assertion())
        } else {
            Err(PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme.into())
        }
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        ring::default_provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}
