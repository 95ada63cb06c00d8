//! Keys, certificates, requests and the authority that signs them (docs/architecture.md; spec/dispatcher.md 14, spec/swarm.md 3.5).

#[cfg(feature = "dispatcher")]
pub mod ca;
pub mod cert;
pub mod csr;
mod envelope;
pub mod expiry;
pub mod identity;
pub mod keys;
#[cfg(feature = "dispatcher")]
mod policy;
pub mod provider;
pub mod renewal;
#[cfg(feature = "dispatcher")]
mod serial_file;
pub mod succession;

#[cfg(feature = "dispatcher")]
pub use ca::Authority;
pub use cert::{Certificate, Role, Version};
pub use csr::CertRequest;
pub use identity::PeerIdentity;
pub use keys::{KeyType, PrivateKey, PublicKey};

#[cfg(test)]
pub(crate) mod fixtures;
