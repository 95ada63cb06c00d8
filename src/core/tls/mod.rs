//! The only place that builds a TLS configuration: TLS 1.2 and 1.3, AEAD suites, `ring` (spec/dispatcher.md 8, spec/agent.md 7.1).
//!
//! A finished handshake proves that the peer's certificate is from our CA and within its dates, not who the peer is: names are not
//! compared (the original's certificates have none that could be). Callers take [`peer_identity`] and ask the trust map or the registry.

mod failure;
mod identity;
mod verifier;
#[cfg(feature = "dispatcher")]
mod web;

use std::sync::Arc;

use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, ring::cipher_suite as suite};
use rustls::server::NoServerSessionStorage;
use rustls::sign::SingleCertAndKey;
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, CommonState, ServerConfig, SupportedProtocolVersion};

use crate::core::clock::Clock;
use crate::core::pki::{self, Certificate, PeerIdentity};

pub use failure::{TlsFailure, classify};
pub use identity::{Identity, TlsError};
#[cfg(feature = "dispatcher")]
pub use web::{WebRoots, web_client_config};

/// ALPN name of our pairing protocol; a peer of the original offers none.
pub const PAIRING_ALPN: &[u8] = b"ctrl-exec-pair/2";

/// ALPN name of HTTP/2.
pub const HTTP2_ALPN: &[u8] = b"h2";

const VERSIONS: &[&SupportedProtocolVersion] = &[&TLS13, &TLS12];

/// The suites of spec/dispatcher.md 8 and nothing else; the key exchanges of ring (X25519, P-256, P-384).
fn suites() -> Arc<CryptoProvider> {
    Arc::new(CryptoProvider {
        cipher_suites: vec![
            suite::TLS13_AES_256_GCM_SHA384,
            suite::TLS13_CHACHA20_POLY1305_SHA256,
            suite::TLS13_AES_128_GCM_SHA256,
            suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
            suite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
            suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
            suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
        ],
        ..pki::provider::provider().clone()
    })
}

fn unusable(error: rustls::Error) -> TlsError {
    TlsError::Config(error.to_string())
}

/// For calling agents on 7443: presents `identity`, accepts servers with a certificate from one of `cas` that is not a dispatcher's.
///
/// # Errors
/// `cas` is empty or holds a certificate that cannot be a trust anchor.
pub fn client_config(
    identity: &Identity,
    cas: &[Certificate],
    clock: Clock,
) -> Result<Arc<ClientConfig>, TlsError> {
    client_of_versions(identity, cas, clock, VERSIONS)
}

fn client_of_versions(
    identity: &Identity,
    cas: &[Certificate],
    clock: Clock,
    versions: &[&'static SupportedProtocolVersion],
) -> Result<Arc<ClientConfig>, TlsError> {
    let verifier = verifier::Agents::new(cas)?;
    let mut config = ClientConfig::builder_with_details(suites(), Arc::new(clock))
        .with_protocol_versions(versions)
        .map_err(unusable)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_cert_resolver(resolver(identity));
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

/// For serving on 7443: a client certificate from one of `cas` is required. What its holder may do is for the trust map to say.
///
/// # Errors
/// `cas` is empty or holds a certificate that cannot be a trust anchor.
pub fn server_config(
    identity: &Identity,
    cas: &[Certificate],
    clock: Clock,
) -> Result<Arc<ServerConfig>, TlsError> {
    let verifier = verifier::Clients::new(cas, true)?;
    let config = ServerConfig::builder_with_details(suites(), Arc::new(clock))
        .with_protocol_versions(VERSIONS)
        .map_err(unusable)?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(resolver(identity));
    Ok(Arc::new(without_resumption(config)))
}

/// Who may show a certificate to [`api_server_config`].
#[derive(Clone, Copy, Debug)]
pub struct ClientAuthority<'a> {
    pub cas: &'a [Certificate],
    /// A client without a certificate is refused.
    pub required: bool,
}

/// For serving the API: HTTP/2 or HTTP/1.1, by ALPN. What the holder of a certificate may do is for others to say.
///
/// # Errors
/// The list of CAs is empty or holds a certificate that cannot be a trust anchor.
pub fn api_server_config(
    identity: &Identity,
    clients: Option<ClientAuthority<'_>>,
    clock: Clock,
) -> Result<Arc<ServerConfig>, TlsError> {
    let builder = ServerConfig::builder_with_details(suites(), Arc::new(clock))
        .with_protocol_versions(VERSIONS)
        .map_err(unusable)?;
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(clients) => {
            let verifier = verifier::Clients::new(clients.cas, clients.required)?;
            builder.with_client_cert_verifier(Arc::new(verifier))
        }
    };
    let mut config = builder.with_cert_resolver(resolver(identity));
    config.alpn_protocols = vec![HTTP2_ALPN.to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(without_resumption(config)))
}

/// For serving on 7444: nobody has a certificate yet, so none is asked for. Clients may offer [`PAIRING_ALPN`] or no ALPN at all.
///
/// # Errors
/// None that a caller could cause.
pub fn pairing_server_config(identity: &Identity) -> Result<Arc<ServerConfig>, TlsError> {
    let mut config = ServerConfig::builder_with_provider(suites())
        .with_protocol_versions(VERSIONS)
        .map_err(unusable)?
        .with_no_client_auth()
        .with_cert_resolver(resolver(identity));
    config.alpn_protocols = vec![PAIRING_ALPN.to_vec()];
    Ok(Arc::new(without_resumption(config)))
}

/// For pairing as a client: accepts whatever certificate the server shows, but makes it prove that it holds the key. The pairing
/// protocol itself says whose key that is.
///
/// # Errors
/// None that a caller could cause.
pub fn pairing_client_config() -> Result<Arc<ClientConfig>, TlsError> {
    pairing_client_of_versions(VERSIONS)
}

/// For a look at our own API on this host: accepts whatever certificate it shows, because nothing is told to it and its answer decides
/// nothing.
///
/// # Errors
/// None that a caller could cause.
pub fn local_client_config() -> Result<Arc<ClientConfig>, TlsError> {
    let mut config = ClientConfig::builder_with_provider(suites())
        .with_protocol_versions(VERSIONS)
        .map_err(unusable)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier::Anybody))
        .with_no_client_auth();
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

fn pairing_client_of_versions(
    versions: &[&'static SupportedProtocolVersion],
) -> Result<Arc<ClientConfig>, TlsError> {
    let mut config = ClientConfig::builder_with_provider(suites())
        .with_protocol_versions(versions)
        .map_err(unusable)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier::Anybody))
        .with_no_client_auth();
    config.alpn_protocols = vec![PAIRING_ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

/// Who the peer of a finished handshake is.
///
/// # Errors
/// The peer has shown no certificate (or the handshake is not finished), or it cannot be read.
pub fn peer_identity(connection: &CommonState) -> Result<PeerIdentity, TlsError> {
    peer_certificate(connection).map(|c| PeerIdentity::from_certificate(&c))
}

/// The certificate that the peer of a finished handshake has shown.
///
/// # Errors
/// As [`peer_identity`].
pub fn peer_certificate(connection: &CommonState) -> Result<Certificate, TlsError> {
    let leaf = connection
        .peer_certificates()
        .and_then(<[_]>::first)
        .ok_or(TlsError::NoPeerCertificate)?;
    Certificate::from_der(leaf).map_err(TlsError::PeerCertificate)
}

/// A resolver, because rustls would parse our own certificate otherwise and refuse v1.
fn resolver(identity: &Identity) -> Arc<SingleCertAndKey> {
    Arc::new(SingleCertAndKey::from(identity.certified()))
}

/// Every connection is a full handshake: a resumed one would carry a certificate that was verified before it was revoked or expired.
fn without_resumption(mut config: ServerConfig) -> ServerConfig {
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config
}

#[cfg(test)]
mod tests;
