//! Who the peer of a connection is: taken from its certificate once, then handed around.

use super::cert::{Certificate, Role, Version};
use super::keys;
use crate::core::types::Serial;

/// Common names of dispatcher certificates; the second one is from before 0.8 (spec/agent.md 19.1 item 3).
pub const DISPATCHER_NAMES: [&str; 2] = ["ctrl-exec-dispatcher", "ctrl-exec"];

/// What a certificate says about its holder. It proves nothing until the certificate has been verified.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PeerIdentity {
    pub serial: Serial,
    /// The subject's CN; `None` if it has none or more than one.
    pub common_name: Option<String>,
    /// `None` for certificates of the original, which know no roles.
    pub role: Option<Role>,
    /// Host id of an agent or dispatcher id, as the role URI has it.
    pub role_id: Option<String>,
    pub dns_names: Vec<String>,
    pub version: Version,
    /// SHA-256 of the SubjectPublicKeyInfo, lower-case hex: stays the same when a certificate is renewed with the same key.
    pub spki_sha256: String,
    /// SHA-256 of the certificate, lower-case hex.
    pub fingerprint: String,
}

impl PeerIdentity {
    pub fn from_certificate(certificate: &Certificate) -> Self {
        Self {
            serial: certificate.serial.clone(),
            common_name: certificate.subject_cn.clone(),
            role: certificate.role,
            role_id: certificate.role_id.clone(),
            dns_names: certificate.san_dns.clone(),
            version: certificate.version,
            spki_sha256: keys::spki_sha256(&certificate.spki),
            fingerprint: certificate.fingerprint(),
        }
    }

    /// Whether this cannot be an ordinary agent: the role says dispatcher or, without a role, the CN is a dispatcher's (spec/agent.md 19.1 item 3).
    pub fn looks_like_dispatcher(&self) -> bool {
        match self.role {
            Some(role) => role == Role::Dispatcher,
            None => self
                .common_name
                .as_deref()
                .is_some_and(|cn| DISPATCHER_NAMES.contains(&cn)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(cn: &str, role: Option<Role>) -> PeerIdentity {
        PeerIdentity {
            serial: Serial::from_be_bytes(&[1]),
            common_name: Some(cn.to_owned()),
            role,
            role_id: None,
            dns_names: Vec::new(),
            version: Version::V1,
            spki_sha256: String::new(),
            fingerprint: String::new(),
        }
    }

    #[test]
    fn the_role_decides_and_the_name_only_without_a_role() {
        for (cn, role, expected) in [
            ("ctrl-exec-dispatcher", None, true),
            ("ctrl-exec", None, true),
            ("web1", None, false),
            ("ctrl-exec-dispatcher", Some(Role::Agent), false),
            ("web1", Some(Role::Dispatcher), true),
        ] {
            assert_eq!(peer(cn, role).looks_like_dispatcher(), expected, "{cn}");
        }
    }
}
