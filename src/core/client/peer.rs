//! Is the certificate that answered the one of the agent that was addressed? The check that the original lacks (design.md 5,
//! spec/dispatcher.md 22.1 item 6): without it any agent can impersonate any other.

use crate::core::pki::PeerIdentity;
use crate::core::registry::{AgentRecord, PeerCheck};

/// Says yes, or why not and what to do. Pure.
///
/// A peer is agent H only if its certificate names H (the recorded certificate name, else the registry name; as CN or DNS name), or if
/// its public key is the one pinned in H's record. A dispatcher's certificate is never an agent.
///
/// # Errors
/// The sentence for the operator.
pub fn check(record: &AgentRecord, peer: &PeerIdentity) -> Result<(), String> {
    let name = record.name.as_str();
    if peer.looks_like_dispatcher() {
        return Err(format!(
            "host '{name}' answered with a dispatcher's certificate - this address is not the agent '{name}'"
        ));
    }
    if record.peer_check == PeerCheck::Off {
        return Ok(());
    }
    if record.cert_spki.as_deref() == Some(peer.spki_sha256.as_str()) {
        return Ok(());
    }
    let expected = record.expected_cn();
    let named = peer.common_name.as_deref() == Some(expected)
        || peer.dns_names.iter().any(|d| d == expected);
    if named {
        return Ok(());
    }
    let shown = peer
        .common_name
        .as_deref()
        .unwrap_or("(no name)")
        .escape_debug()
        .to_string();
    Err(format!(
        "address of '{name}' answered with the certificate of '{shown}', expected '{expected}' - wrong address, or another host took it \
         over. If '{name}' was renamed: ced edit-agent {name} --cert-name {shown}; to switch this check off for it: \
         ced edit-agent {name} --peer-check off"
    ))
}
