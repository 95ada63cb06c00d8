//! What `ring` does for us: the only place that asks rustls for it.
//!
//! `ring::default_provider()` names code that loads Ed25519 keys and signs with them, which the linker then has to keep: some 10 KB on ARM that
//! nobody can reach, since we use RSA and ECDSA keys only. Signatures by Ed25519 keys of others are verified as before.

use std::sync::{Arc, LazyLock};

use rustls::crypto::ring::{default_provider, sign};
use rustls::crypto::{CryptoProvider, KeyProvider, WebPkiSupportedAlgorithms};
use rustls::pki_types::PrivateKeyDer;
use rustls::sign::SigningKey;
use zeroize::Zeroizing;

static PROVIDER: LazyLock<CryptoProvider> = LazyLock::new(|| CryptoProvider {
    key_provider: &RsaAndEcdsa,
    ..default_provider()
});

#[derive(Debug)]
struct RsaAndEcdsa;

impl KeyProvider for RsaAndEcdsa {
    fn load_private_key(
        &self,
        der: PrivateKeyDer<'static>,
    ) -> Result<Arc<dyn SigningKey>, rustls::Error> {
        private_key(&Zeroizing::new(der))
    }
}

/// Everything of `ring`, with all its cipher suites.
pub fn provider() -> &'static CryptoProvider {
    &PROVIDER
}

/// The signatures that are verified.
pub fn algorithms() -> WebPkiSupportedAlgorithms {
    PROVIDER.signature_verification_algorithms
}

/// RSA or ECDSA, in any of the three wrappings.
pub(super) fn private_key(der: &PrivateKeyDer<'_>) -> Result<Arc<dyn SigningKey>, rustls::Error> {
    match sign::RsaSigningKey::new(der) {
        Ok(key) => Ok(Arc::new(key)),
        Err(_) => sign::any_ecdsa_type(der),
    }
}
