//! Is the certificate that answered the one of the agent that was addressed? The check that the original lacks (docs/security.md,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::pki::{Role, Version};
    use crate::core::types::{AgentName, Serial};

    fn peer(cn: &str, role: Option<Role>) -> PeerIdentity {
        PeerIdentity {
            serial: Serial::from_be_bytes(&[7]),
            common_name: Some(cn.to_owned()),
            role,
            role_id: None,
            dns_names: Vec::new(),
            version: Version::V3,
            spki_sha256: "aa".to_owned(),
            fingerprint: "bb".to_owned(),
        }
    }

    fn record(name: &str) -> AgentRecord {
        AgentRecord::new(AgentName::new(name).unwrap())
    }

    #[test]
    fn only_the_certificate_of_the_agent_addressed_will_do() {
        assert_eq!(check(&record("web1"), &peer("web1", None)), Ok(()));
        assert_eq!(
            check(&record("web1"), &peer("web1", Some(Role::Agent))),
            Ok(())
        );
        let error = check(&record("web1"), &peer("db1", Some(Role::Agent))).unwrap_err();
        assert!(
            error.contains("certificate of 'db1'") && error.contains("--cert-name db1"),
            "{error}"
        );
    }

    #[test]
    fn a_dns_name_a_recorded_name_or_a_pinned_key_will_do() {
        let mut by_dns = peer("x", None);
        by_dns.dns_names = vec!["web1".to_owned()];
        assert_eq!(check(&record("web1"), &by_dns), Ok(()));

        let mut renamed = record("web1");
        renamed.cert_cn = Some("old-name".to_owned());
        assert_eq!(check(&renamed, &peer("old-name", None)), Ok(()));
        assert!(
            check(&renamed, &peer("web1", None)).is_err(),
            "the recorded name replaces the registry name"
        );

        let mut pinned = record("web1");
        pinned.cert_spki = Some("aa".to_owned());
        assert_eq!(check(&pinned, &peer("anything", None)), Ok(()));
        pinned.cert_spki = Some("ab".to_owned());
        assert!(check(&pinned, &peer("anything", None)).is_err());
    }

    #[test]
    fn the_check_can_be_switched_off_but_a_dispatcher_is_never_an_agent() {
        let mut lax = record("web1");
        lax.peer_check = PeerCheck::Off;
        assert_eq!(check(&lax, &peer("db1", None)), Ok(()));
        assert!(check(&lax, &peer("ctrl-exec-dispatcher", None)).is_err());
        assert!(check(&lax, &peer("web1", Some(Role::Dispatcher))).is_err());
    }

    #[test]
    fn a_hostile_name_does_not_reach_the_terminal_as_it_is() {
        let error = check(&record("web1"), &peer("\u{1b}[2J", None)).unwrap_err();
        assert!(!error.contains('\u{1b}'), "{error:?}");
    }
}
