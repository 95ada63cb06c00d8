//! Certificate and key of the API itself, and the CA of its clients: they come from anywhere, not from our own CA.

use std::sync::Arc;

use rustls::ServerConfig;

use crate::core::clock::Clock;
use crate::core::config::ApiSettings;
use crate::core::pki::Certificate;
use crate::core::secure_open::{self, Trust};
use crate::core::tls::{self, ClientAuthority, Identity};

/// Largest file of CA certificates.
const MAX_PEM: u64 = 1024 * 1024;

/// What TLS is served with; `None` where none is configured.
///
/// # Errors
/// A sentence that names the file which cannot be used: there is no way back to plain HTTP (spec/api.md 16.4).
pub(super) fn tls(
    settings: &ApiSettings,
    clock: &Clock,
) -> Result<Option<Arc<ServerConfig>>, String> {
    let Some(files) = &settings.tls else {
        return Ok(None);
    };
    let identity = Identity::load(&files.cert, &files.key)
        .map_err(|e| format!("the API cannot speak TLS: {e}"))?;
    let mut cas = Vec::new();
    let clients = match &settings.clients {
        None => None,
        Some(clients) => {
            let file = clients.ca.display();
            let unusable = |e: &dyn std::fmt::Display| {
                format!("the API cannot verify client certificates: '{file}': {e}")
            };
            let pem = secure_open::read_trusted(&clients.ca, MAX_PEM, Trust::Public)
                .map_err(|e| format!("the API cannot verify client certificates: {e}"))?;
            cas = Certificate::all_from_pem(&pem).map_err(|e| unusable(&e))?;
            Some(clients.required)
        }
    };
    let clients = clients.map(|required| ClientAuthority {
        cas: &cas,
        required,
    });
    tls::api_server_config(&identity, clients, clock.clone())
        .map(Some)
        .map_err(|e| match &settings.clients {
            Some(clients) => format!("'{}': {e}", clients.ca.display()),
            None => e.to_string(),
        })
}
