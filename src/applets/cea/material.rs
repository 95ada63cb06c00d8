//! The agent's own key and certificates, read from files that only the right people could have written.

use std::path::Path;

use crate::core::config::AgentConfig;
use crate::core::pki::Certificate;
use crate::core::secure_open::{self, Trust};
use crate::core::tls::Identity;

/// Largest key or certificate file.
const MAX_FILE: u64 = 256 * 1024;

/// Certificate and key of the configuration.
///
/// # Errors
/// A sentence for the operator: a file that cannot be read or must not be trusted, or the two do not belong together.
pub(super) fn identity(config: &AgentConfig) -> Result<Identity, String> {
    Identity::load(&config.cert, &config.key).map_err(|e| e.to_string())
}

/// The certificates of the CA that is trusted; more than one while a CA is replaced.
///
/// # Errors
/// As [`identity`].
pub(super) fn authorities(config: &AgentConfig) -> Result<Vec<Certificate>, String> {
    let pem = secure_open::read_trusted(&config.ca, MAX_FILE, Trust::Public)
        .map_err(|e| e.to_string())?;
    Certificate::all_from_pem(&pem).map_err(|e| format!("'{}': {e}", config.ca.display()))
}

/// The certificate in a file, whoever wrote it: for showing, not for trusting.
///
/// # Errors
/// As [`identity`].
pub(super) fn shown(path: &Path) -> Result<Certificate, String> {
    let pem = secure_open::read_bounded(path, MAX_FILE).map_err(|e| e.to_string())?;
    Certificate::from_pem(&pem).map_err(|e| format!("'{}': {e}", path.display()))
}
