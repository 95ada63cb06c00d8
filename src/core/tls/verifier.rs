//! Verifies peers. v3 certificates are judged by webpki; the v1 certificates of the original, which webpki refuses to read, by
//! [`Certificate::verify_issued_by`] (spec/dispatcher.md 21.1). Names are never compared.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{
    WebPkiSupportedAlgorithms, verify_tls13_signature, verify_tls13_signature_with_raw_key,
};
use rustls::pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, PeerMisbehaved,
    RootCertStore, SignatureScheme,
};

use super::TlsError;
use crate::core::pki::cert::CertError;
use crate::core::pki::{Certificate, PeerIdentity, Version, keys, provider};

/// Servers that a dispatcher calls: certificates from our CA, but not those of dispatchers.
#[derive(Debug)]
pub(super) struct Agents {
    anchors: Anchors,
}

/// Clients that an agent or the API serves: certificates from the CA.
#[derive(Debug)]
pub(super) struct Clients {
    anchors: Anchors,
    required: bool,
    webpki: Arc<dyn ClientCertVerifier>,
}

/// Servers that are not known yet: any certificate, but its key must be proven.
#[derive(Debug)]
pub(super) struct Anybody;

/// A certificate that is good but not for this.
#[derive(Debug, thiserror::Error)]
#[error(
    "the certificate on the other side belongs to a dispatcher, not to an agent: check the address"
)]
pub(super) struct NotAnAgent;

/// What all three verifiers share: the traits of rustls name these methods alike but have no common one.
macro_rules! handshake_signatures {
    () => {
        fn verify_tls12_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            tls12_signature(message, cert, dss)
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            tls13_signature(message, cert, dss)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            algorithms().supported_schemes()
        }
    };
}

#[derive(Debug)]
struct Anchors {
    cas: Vec<Certificate>,
    roots: Arc<RootCertStore>,
}

impl Anchors {
    fn new(cas: &[Certificate]) -> Result<Self, TlsError> {
        if cas.is_empty() {
            return Err(TlsError::NoCa);
        }
        let mut roots = RootCertStore::empty();
        for ca in cas {
            if !ca.is_ca {
                return Err(TlsError::Config(
                    "a certificate in the CA file does not belong to a CA".to_owned(),
                ));
            }
            roots
                .add(CertificateDer::from(ca.der.as_slice()))
                .map_err(super::unusable)?;
        }
        Ok(Self {
            cas: cas.to_vec(),
            roots: Arc::new(roots),
        })
    }

    /// The peer's certificate if it is acceptable at `now`. `by_webpki` judges a v3 chain.
    fn verify(
        &self,
        der: &CertificateDer<'_>,
        now: UnixTime,
        by_webpki: impl FnOnce() -> Result<(), Error>,
    ) -> Result<Certificate, Error> {
        let seconds = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        let peer = Certificate::from_der(der).map_err(refused)?;
        match peer.version {
            Version::V1 => self.direct(&peer, seconds).map_err(refused)?,
            Version::V3 => {
                by_webpki().map_err(|error| self.believable(error, &peer, seconds))?;
                // webpki takes the anchors for granted, whatever their dates: with an expired one among them we look who signed.
                if self.cas.iter().any(|ca| seconds > ca.not_after) {
                    self.direct(&peer, seconds).map_err(refused)?;
                }
            }
        }
        Ok(peer)
    }

    /// Issued by one of the CAs itself; of several reasons against it, the one that got furthest.
    fn direct(&self, peer: &Certificate, now: i64) -> Result<(), CertError> {
        let mut reason = CertError::OtherIssuer;
        for ca in &self.cas {
            match peer.verify_issued_by(ca, now) {
                Ok(()) => return Ok(()),
                Err(CertError::OtherIssuer) => {}
                Err(CertError::BadSignature) if reason != CertError::OtherIssuer => {}
                Err(other) => reason = other,
            }
        }
        Err(reason)
    }

    /// webpki looks at the dates before it looks for the issuer. A date must not excuse a certificate that nobody of ours signed.
    fn believable(&self, error: Error, peer: &Certificate, now: i64) -> Error {
        use CertificateError as C;
        match &error {
            Error::InvalidCertificate(
                C::Expired
                | C::ExpiredContext { .. }
                | C::NotValidYet
                | C::NotValidYetContext { .. },
            ) => refused(
                self.direct(peer, now)
                    .err()
                    .unwrap_or(CertError::OtherIssuer),
            ),
            Error::InvalidCertificate(C::BadSignature) => C::UnknownIssuer.into(),
            _ => error,
        }
    }
}

/// Our reasons in the words of rustls, which chooses the alert by them.
fn refused(reason: CertError) -> Error {
    use crate::core::clock::unix_time;
    match reason {
        CertError::NotYetValid { not_before, now } => CertificateError::NotValidYetContext {
            time: unix_time(now),
            not_before: unix_time(not_before),
        },
        CertError::Expired { not_after, now } => CertificateError::ExpiredContext {
            time: unix_time(now),
            not_after: unix_time(not_after),
        },
        // All CAs of the original have the same name, so a false signature is just another CA.
        CertError::OtherIssuer | CertError::BadSignature => CertificateError::UnknownIssuer,
        CertError::NotPem | CertError::Malformed(_) => CertificateError::BadEncoding,
        other => CertificateError::Other(OtherError(Arc::new(other))),
    }
    .into()
}

fn algorithms() -> WebPkiSupportedAlgorithms {
    provider::algorithms()
}

impl Agents {
    pub(super) fn new(cas: &[Certificate]) -> Result<Self, TlsError> {
        Ok(Self {
            anchors: Anchors::new(cas)?,
        })
    }
}

impl ServerCertVerifier for Agents {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let peer = self.anchors.verify(end_entity, now, || {
            rustls::client::verify_server_cert_signed_by_trust_anchor(
                &ParsedCertificate::try_from(end_entity)?,
                &self.anchors.roots,
                intermediates,
                now,
                algorithms().all,
            )
        })?;
        if PeerIdentity::from_certificate(&peer).looks_like_dispatcher() {
            return Err(CertificateError::Other(OtherError(Arc::new(NotAnAgent))).into());
        }
        Ok(ServerCertVerified::assertion())
    }

    handshake_signatures!();
}

impl Clients {
    /// `required`: a client without a certificate is refused.
    pub(super) fn new(cas: &[Certificate], required: bool) -> Result<Self, TlsError> {
        let anchors = Anchors::new(cas)?;
        let webpki =
            WebPkiClientVerifier::builder_with_provider(anchors.roots.clone(), super::suites())
                .build()
                .map_err(|e| TlsError::Config(e.to_string()))?;
        Ok(Self {
            anchors,
            required,
            webpki,
        })
    }
}

impl ClientCertVerifier for Clients {
    fn client_auth_mandatory(&self) -> bool {
        self.required
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.webpki.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.anchors.verify(end_entity, now, || {
            self.webpki
                .verify_client_cert(end_entity, intermediates, now)
                .map(|_| ())
        })?;
        Ok(ClientCertVerified::assertion())
    }

    handshake_signatures!();
}

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Certificate::from_der(end_entity).map_err(refused)?;
        Ok(ServerCertVerified::assertion())
    }

    handshake_signatures!();
}

fn key_of(cert: &CertificateDer<'_>) -> Result<SubjectPublicKeyInfoDer<'static>, Error> {
    let certificate = Certificate::from_der(cert).map_err(refused)?;
    Ok(SubjectPublicKeyInfoDer::from(certificate.spki))
}

/// rustls checks that the scheme is one of TLS 1.3 (no PKCS#1 v1.5) and fits the curve. Its own reader of certificates is the quick way,
/// which a v1 certificate cannot go; the bare key can.
fn tls13_signature(
    message: &[u8],
    cert: &CertificateDer<'_>,
    dss: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, Error> {
    match verify_tls13_signature(message, cert, dss, &algorithms()) {
        Ok(valid) => Ok(valid),
        Err(_) => verify_tls13_signature_with_raw_key(message, &key_of(cert)?, dss, &algorithms()),
    }
}

/// TLS 1.2 does not bind the curve to the scheme: any algorithm of the scheme that fits the key will do.
fn tls12_signature(
    message: &[u8],
    cert: &CertificateDer<'_>,
    dss: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, Error> {
    let spki = key_of(cert)?;
    let (key_algorithm, key) = keys::split_spki(&spki).ok_or(CertificateError::BadEncoding)?;
    let supported = algorithms();
    let (_, candidates) = supported
        .mapping
        .iter()
        .find(|(scheme, _)| *scheme == dss.scheme)
        .ok_or(PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme)?;
    let algorithm = candidates
        .iter()
        .find(|a| a.public_key_alg_id().as_ref() == key_algorithm)
        .ok_or(PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme)?;
    algorithm
        .verify_signature(key, message, dss.signature())
        .map_err(|_| CertificateError::BadSignature)?;
    Ok(HandshakeSignatureValid::assertion())
}
