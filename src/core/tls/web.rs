//! For calling a server by its name, as a browser does: any CA that is trusted here may have issued its certificate, the name must fit.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};

use super::{Identity, TlsError, VERSIONS, resolver, suites, unusable};
use crate::core::clock::Clock;
use crate::core::pki::cert::CertError;
use crate::core::secure_open::{self, Trust};

/// A system's bundle has 150 certificates in a quarter of a megabyte.
const MAX_BUNDLE_BYTES: u64 = 4 * 1024 * 1024;

/// The CAs that may have issued a server's certificate.
#[derive(Clone, Debug)]
pub struct WebRoots(Arc<RootCertStore>);

impl WebRoots {
    /// Opens, judges and reads a file of CA certificates in PEM form. Every one of them must be usable.
    ///
    /// # Errors
    /// It cannot be read or trusted, or holds anything else.
    pub fn load(path: &Path) -> Result<Self, TlsError> {
        let bad = |source| TlsError::Certificate {
            path: path.to_owned(),
            source,
        };
        let pem = secure_open::read_trusted(path, MAX_BUNDLE_BYTES, Trust::Public)
            .map_err(TlsError::Open)?;
        let mut roots = RootCertStore::empty();
        for der in CertificateDer::pem_slice_iter(&pem) {
            let der = der.map_err(|_| bad(CertError::NotPem))?;
            roots
                .add(der)
                .map_err(|_| bad(CertError::Malformed("it cannot be the certificate of a CA")))?;
        }
        if roots.is_empty() {
            return Err(bad(CertError::NotPem));
        }
        Ok(Self(Arc::new(roots)))
    }

    /// The first of these bundles that is there. What the system trusts and we cannot read is left out.
    ///
    /// # Errors
    /// None is there, or the first cannot be read or trusted or holds no usable certificate.
    pub fn of_system(bundles: &[PathBuf]) -> Result<Self, TlsError> {
        for path in bundles {
            let pem = match secure_open::read_trusted(path, MAX_BUNDLE_BYTES, Trust::Public) {
                Err(error) if error.is_not_found() => continue,
                other => other.map_err(TlsError::Open)?,
            };
            let mut roots = RootCertStore::empty();
            roots.add_parsable_certificates(CertificateDer::pem_slice_iter(&pem).flatten());
            if roots.is_empty() {
                return Err(TlsError::Certificate {
                    path: path.clone(),
                    source: CertError::NotPem,
                });
            }
            return Ok(Self(Arc::new(roots)));
        }
        Err(TlsError::NoCa)
    }
}

/// For calling a server whose certificate comes from one of `roots` and is made out for the name in the URL; rustls' own verifier looks
/// at both. `identity` is shown to servers that ask for a certificate.
///
/// # Errors
/// `roots` cannot be used.
pub fn web_client_config(
    roots: &WebRoots,
    identity: Option<&Identity>,
    clock: Clock,
) -> Result<Arc<ClientConfig>, TlsError> {
    let verifier = WebPkiServerVerifier::builder_with_provider(roots.0.clone(), suites())
        .build()
        .map_err(|e| TlsError::Config(e.to_string()))?;
    let builder = ClientConfig::builder_with_details(suites(), Arc::new(clock))
        .with_protocol_versions(VERSIONS)
        .map_err(unusable)?
        .with_webpki_verifier(verifier);
    let mut config = match identity {
        Some(identity) => builder.with_client_cert_resolver(resolver(identity)),
        None => builder.with_no_client_auth(),
    };
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}
