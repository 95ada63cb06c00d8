//! From the configuration to a [`Client`]: every identity that we hold, the CAs that we trust, what we have revoked.

use super::exchange::{Client, Presented};
use crate::core::clock::Clock;
use crate::core::config::DispatcherConfig;
use crate::core::keyring::{Keyring, KeyringError};
use crate::core::pki::cert::CertError;
use crate::core::pki::{Certificate, keys};
use crate::core::revocation::{RevocationError, Revocations};
use crate::core::secure_open::{self, OpenError, Trust};
use crate::core::tls::{self, Identity, TlsError};

/// Largest CA file that is read; a handful of certificates.
const MAX_PEM: u64 = 256 * 1024;

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("{0} (the dispatcher's own certificate is made by: ced setup-ctrl-exec)")]
    Keyring(#[from] KeyringError),
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error("'{path}': {source}")]
    Ca { path: String, source: CertError },
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error(
        "this dispatcher's own certificate is revoked: make a new one (ced setup-ctrl-exec) and pair the agents again"
    )]
    Revoked,
    #[error(transparent)]
    Revocations(#[from] RevocationError),
}

/// The CA certificates that agents are verified against.
///
/// # Errors
/// The file cannot be read or holds something else.
pub fn load_cas(config: &DispatcherConfig) -> Result<Vec<Certificate>, ClientError> {
    let pem = secure_open::read_trusted(&config.ca, MAX_PEM, Trust::Public)?;
    Certificate::all_from_pem(&pem).map_err(|source| ClientError::Ca {
        path: config.ca.display().to_string(),
        source,
    })
}

impl Client {
    /// Reads everything that the configuration names. The texts are warnings about kept pairs that cannot be used.
    ///
    /// # Errors
    /// There is no identity, no CA, or the revocation journal cannot be read.
    pub fn load(
        config: &DispatcherConfig,
        clock: Clock,
    ) -> Result<(Self, Vec<String>), ClientError> {
        let keyring = Keyring::load(config)?;
        let authorities = load_cas(config)?;
        let revoked = Revocations::load(&config.revoked_file)?;
        let usable = |identity: &&Identity| {
            let certificate = identity.certificate();
            let key = keys::spki_sha256(&certificate.spki);
            revoked.find(&certificate.serial, &key).is_none()
        };
        let presented: Vec<Presented> = keyring
            .identities()
            .iter()
            .filter(usable)
            .map(|identity| {
                let tls = tls::client_config(identity, &authorities, clock.clone())?;
                Ok(Presented {
                    serial: identity.certificate().serial.clone(),
                    tls,
                })
            })
            .collect::<Result<_, TlsError>>()?;
        if presented.is_empty() {
            return Err(ClientError::Revoked);
        }
        let client = Self::new(
            presented,
            revoked,
            clock,
            config.connect_timeout,
            config.read_timeout,
        );
        Ok((client, keyring.unusable))
    }
}
