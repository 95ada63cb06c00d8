//! What we present: a certificate chain and its key.

use std::path::{Path, PathBuf};

use rustls::pki_types::CertificateDer;
use rustls::sign::CertifiedKey;

use crate::core::pki::cert::CertError;
use crate::core::pki::keys::KeyError;
use crate::core::pki::{Certificate, PrivateKey};
use crate::core::secure_open::{self, OpenError, Trust};

const MAX_FILE_BYTES: u64 = 256 * 1024;

/// Why TLS cannot be set up, or a peer not be named.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("{0}")]
    Open(OpenError),
    #[error("'{}': {source}", .path.display())]
    Certificate { path: PathBuf, source: CertError },
    #[error("'{}': {source}", .path.display())]
    Key { path: PathBuf, source: KeyError },
    #[error("the key '{}' does not belong to the certificate '{}': one of them was replaced; restore the pair or pair again", .key.display(), .certificate.display())]
    Mismatch { key: PathBuf, certificate: PathBuf },
    #[error("there is no CA certificate to trust: check 'ca' in the configuration")]
    NoCa,
    #[error("TLS cannot be set up: {0}")]
    Config(String),
    #[error("the peer has shown no certificate")]
    NoPeerCertificate,
    #[error("the peer's certificate cannot be used: {0}")]
    PeerCertificate(CertError),
}

/// Our certificate (first), what the file holds besides it, and the key. The key does not print.
#[derive(Clone, Debug)]
pub struct Identity {
    chain: Vec<Certificate>,
    key: PrivateKey,
}

impl Identity {
    /// Opens, judges and reads both files: the key must be closed to others.
    ///
    /// # Errors
    /// A file cannot be read, or as [`from_pem`](Self::from_pem).
    pub fn load(certificate: &Path, key: &Path) -> Result<Self, TlsError> {
        let certificate_pem = read(certificate, Trust::Public)?;
        let key_pem = zeroize::Zeroizing::new(read(key, Trust::Secret)?);
        Self::from_pem(&certificate_pem, certificate, &key_pem, key)
    }

    /// From the content of both files; the paths are for messages.
    ///
    /// # Errors
    /// A file does not hold what it should, or the key does not belong to the certificate.
    pub fn from_pem(
        certificate_pem: &[u8],
        certificate: &Path,
        key_pem: &[u8],
        key: &Path,
    ) -> Result<Self, TlsError> {
        let chain =
            Certificate::all_from_pem(certificate_pem).map_err(|source| TlsError::Certificate {
                path: certificate.to_owned(),
                source,
            })?;
        let private = PrivateKey::from_pem(key_pem).map_err(|source| TlsError::Key {
            path: key.to_owned(),
            source,
        })?;
        Self::new(chain, private).ok_or_else(|| TlsError::Mismatch {
            key: key.to_owned(),
            certificate: certificate.to_owned(),
        })
    }

    /// From values; `None` if the chain is empty or the key is not that of its first certificate.
    pub fn new(chain: Vec<Certificate>, key: PrivateKey) -> Option<Self> {
        let fits = chain.first()?.spki == key.spki_der();
        fits.then_some(Self { chain, key })
    }

    /// Our own certificate.
    pub fn certificate(&self) -> &Certificate {
        &self.chain[0]
    }

    /// The key of [`certificate`](Self::certificate).
    pub fn key(&self) -> &PrivateKey {
        &self.key
    }

    pub(super) fn certified(&self) -> CertifiedKey {
        let chain = self
            .chain
            .iter()
            .map(|c| CertificateDer::from(c.der.clone()))
            .collect();
        CertifiedKey::new(chain, self.key.signing_key())
    }
}

fn read(path: &Path, trust: Trust) -> Result<Vec<u8>, TlsError> {
    secure_open::read_trusted(path, MAX_FILE_BYTES, trust).map_err(TlsError::Open)
}
