//! What an agent checks before it believes a dispatcher and before it writes anything (spec/pairing.md 17.5, 18.3).

use super::message::Approval;
use crate::core::pki::cert::CertError;
use crate::core::pki::{Certificate, PeerIdentity, Role};
use crate::core::types::{self, DispatcherId, Serial};

/// A host whose clock is slow by less than this may pair; the certificates become valid for it soon. One day, as far as we back-date ours.
const CLOCK_TOLERANCE: i64 = 86_400;

/// What the agent knows by itself.
#[derive(Clone, Debug)]
pub struct Expectation<'a> {
    /// DER SubjectPublicKeyInfo of the key that was made for this pairing.
    pub own_spki: &'a [u8],
    pub hostname: &'a str,
    /// The certificate that the dispatcher showed in the TLS handshake.
    pub peer: &'a Certificate,
    /// The CA that this host has from an earlier pairing.
    pub known_ca: Option<&'a Certificate>,
    /// `--replace-ca`: another CA may take its place.
    pub replace_ca: bool,
    pub pins: Pins,
    /// Seconds since 1970.
    pub now: i64,
}

/// SHA-256 of certificates (DER) that the operator gave on the command line.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Pins {
    /// `--ca-fingerprint`.
    pub ca: Option<[u8; 32]>,
    /// `--dispatcher-fingerprint`.
    pub dispatcher: Option<[u8; 32]>,
}

impl Pins {
    pub fn any(self) -> bool {
        self.ca.is_some() || self.dispatcher.is_some()
    }
}

/// Reads a fingerprint as OpenSSL and we print it: 64 hex digits, colons allowed, `sha256:` or `SHA256:` before it allowed.
pub fn parse_fingerprint(text: &str) -> Option<[u8; 32]> {
    let lower = text.trim().to_ascii_lowercase();
    let digits = lower.strip_prefix("sha256:").unwrap_or(&lower);
    super::code::unhex(&digits.replace(':', ""))
}

/// SHA-256 of a certificate as people see it: 64 hex digits.
pub fn fingerprint(certificate: &Certificate) -> String {
    types::hex(&digest(certificate))
}

fn digest(certificate: &Certificate) -> [u8; 32] {
    types::sha256(&[&certificate.der])
}

/// Why a dispatcher or its delivery is refused.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum DeliveryError {
    #[error(
        "the dispatcher's certificate has the fingerprint {0}, not the one given with --dispatcher-fingerprint: this is another dispatcher, or somebody is in between"
    )]
    DispatcherPin(String),
    #[error(
        "the delivered CA has the fingerprint {0}, not the one given with --ca-fingerprint: this is another fleet, or somebody is in between"
    )]
    CaPin(String),
    #[error(
        "this host belongs to another CA already, which the dispatcher is not of ({0}): give --replace-ca if this host shall leave that fleet"
    )]
    OtherCa(String),
    #[error("the delivered certificate cannot be read: {0}")]
    Unreadable(CertError),
    #[error("the delivered CA certificate cannot be read: {0}")]
    CaUnreadable(CertError),
    #[error("the delivered CA certificate does not belong to a CA")]
    NotACa,
    #[error("the delivered certificate is for another key than ours")]
    OtherKey,
    #[error("the delivered certificate is for '{}', but this host is '{wanted}'", .found.escape_debug())]
    OtherName { found: String, wanted: String },
    #[error("the delivered certificate has a role or right that no agent has")]
    NotAnAgent,
    #[error("the delivered certificate does not fit the delivered CA: {0}")]
    Chain(CertError),
    #[error(
        "the dispatcher's own certificate does not fit the delivered CA ({0}): somebody may be in between, or 'cert' on the dispatcher is from another CA"
    )]
    PeerChain(CertError),
    #[error(
        "the certificate that the dispatcher shows is not that of a dispatcher: an agent of the fleet may be posing as one"
    )]
    NotADispatcher,
    #[error("the delivered dispatcher id is not valid: {0}")]
    DispatcherId(String),
}

/// Judges the dispatcher by its certificate alone, before anything is sent. True when a key that we already trust vouches for it.
///
/// # Errors
/// It is not the pinned one, or not of the CA that this host has (unless that may be replaced).
pub fn check_peer(expectation: &Expectation<'_>) -> Result<bool, DeliveryError> {
    let peer = expectation.peer;
    if expectation
        .pins
        .dispatcher
        .is_some_and(|pin| pin != digest(peer))
    {
        return Err(DeliveryError::DispatcherPin(fingerprint(peer)));
    }
    // The pinned CA shows only in the approval, but nothing is stored without it.
    let pinned = expectation.pins.any();
    let Some(known) = expectation.known_ca.filter(|_| !expectation.replace_ca) else {
        return Ok(pinned);
    };
    match tolerant(peer.verify_issued_by(known, expectation.now)) {
        Ok(_) if PeerIdentity::from_certificate(peer).looks_like_dispatcher() => Ok(true),
        Ok(_) => Err(DeliveryError::NotADispatcher),
        Err(error) => Err(DeliveryError::OtherCa(error.to_string())),
    }
}

/// A delivery that passed every check.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Accepted {
    pub certificate: Certificate,
    pub ca: Certificate,
    /// Serials to trust as this dispatcher: the one that we saw, and one that the dispatcher is about to use.
    pub serials: Vec<Serial>,
    pub dispatcher: DispatcherId,
    /// The CA differs from the one that this host has.
    pub new_ca: bool,
    /// What should be said although it is no reason to refuse.
    pub warnings: Vec<String>,
}

/// Judges the delivery. The echo of the nonce has been checked by the machine.
///
/// # Errors
/// The first thing that does not fit. Nothing may be stored then.
pub fn check(
    approval: &Approval,
    expectation: &Expectation<'_>,
) -> Result<Accepted, DeliveryError> {
    let mut warnings = Vec::new();
    let certificate =
        Certificate::from_pem(approval.cert.as_bytes()).map_err(DeliveryError::Unreadable)?;
    let candidates =
        Certificate::all_from_pem(approval.ca.as_bytes()).map_err(DeliveryError::CaUnreadable)?;
    let ca = candidates
        .iter()
        .find(|ca| ca.subject_der() == certificate.issuer_der())
        .or_else(|| candidates.first())
        .ok_or(DeliveryError::CaUnreadable(CertError::NotPem))?
        .clone();
    if !ca.is_ca {
        return Err(DeliveryError::NotACa);
    }
    if expectation.pins.ca.is_some_and(|pin| pin != digest(&ca)) {
        return Err(DeliveryError::CaPin(fingerprint(&ca)));
    }
    // The key counts, not the bytes: the same CA may have got a new certificate.
    let new_ca = expectation
        .known_ca
        .is_some_and(|known| known.spki != ca.spki);
    if new_ca && !expectation.replace_ca {
        return Err(DeliveryError::OtherCa(format!(
            "the delivered one is {}",
            fingerprint(&ca)
        )));
    }

    if certificate.spki != expectation.own_spki {
        return Err(DeliveryError::OtherKey);
    }
    if certificate.subject_cn.as_deref() != Some(expectation.hostname) {
        return Err(DeliveryError::OtherName {
            found: certificate
                .subject_cn
                .clone()
                .unwrap_or_else(|| "nobody".to_owned()),
            wanted: expectation.hostname.to_owned(),
        });
    }
    if certificate.is_ca || certificate.role == Some(Role::Dispatcher) {
        return Err(DeliveryError::NotAnAgent);
    }
    let own_dates = tolerant(certificate.verify_issued_by(&ca, expectation.now))
        .map_err(DeliveryError::Chain)?;
    warnings.extend(own_dates);

    let peer = expectation.peer;
    if let Err(error) = tolerant(peer.verify_issued_by(&ca, expectation.now)) {
        return Err(DeliveryError::PeerChain(error));
    }
    if !PeerIdentity::from_certificate(peer).looks_like_dispatcher() {
        return Err(DeliveryError::NotADispatcher);
    }
    let (serials, warning) = serials(&peer.serial, &approval.dispatcher_serial);
    warnings.extend(warning);
    let dispatcher = match approval.dispatcher_id.as_str() {
        "" => DispatcherId::sanitise(&peer.serial.to_string()),
        id => DispatcherId::new(id).map_err(|e| DeliveryError::DispatcherId(e.to_string()))?,
    };
    Ok(Accepted {
        certificate,
        ca,
        serials,
        dispatcher,
        new_ca,
        warnings,
    })
}

/// A start date that is not much in the future is a slow clock: worth a warning, not a refusal.
fn tolerant(result: Result<(), CertError>) -> Result<Option<String>, CertError> {
    match result {
        Err(CertError::NotYetValid { not_before, now }) if not_before - now <= CLOCK_TOLERANCE => {
            Ok(Some(CertError::NotYetValid { not_before, now }.to_string()))
        }
        other => other.map(|()| None),
    }
}

/// Which serials to trust: the true one of the certificate that we saw, whatever text was delivered for it. A delivered one that is neither it nor
/// its lossy form (spec/pairing.md 4.1) is another certificate, which a dispatcher in the middle of its rotation has; it is taken
/// when it can be read in one way only.
fn serials(seen: &Serial, delivered: &str) -> (Vec<Serial>, Option<String>) {
    let text = delivered.trim().to_ascii_lowercase();
    if text.is_empty() || text == seen.to_string() || text == seen.legacy() {
        return (vec![seen.clone()], None);
    }
    match Serial::parse_hex(&text) {
        Ok(serial) if serial == *seen => (vec![seen.clone()], None),
        Ok(serial) if text.bytes().any(|b| b.is_ascii_alphabetic()) => {
            let warning = format!(
                "the dispatcher names another certificate (serial {serial}) than the one it shows (serial {seen}); both are trusted, as during a rotation"
            );
            (vec![seen.clone(), serial], Some(warning))
        }
        _ => {
            let warning = format!(
                "the dispatcher names a serial ('{}') that is not that of its certificate ({seen}); only the certificate's is trusted",
                text.chars().take(80).collect::<String>().escape_debug()
            );
            (vec![seen.clone()], Some(warning))
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::core::clock::Clock;
    use crate::core::pki::fixtures::{LeafVersion, OpenSsl};
    use crate::core::pki::{Authority, CertRequest, KeyType, PrivateKey, csr};
    use crate::core::types::AgentName;

    pub(in crate::core::pairing) const HOST: &str = "web01.example.org";
    pub(in crate::core::pairing) const NOW: i64 = 1_800_000_000;

    /// A fleet: its CA, its dispatcher's certificate, and what it delivers to an agent with this key.
    pub(in crate::core::pairing) struct Fleet {
        _dir: tempfile::TempDir,
        authority: Authority,
        pub(in crate::core::pairing) peer: Certificate,
    }

    impl Fleet {
        pub(in crate::core::pairing) fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let clock = Clock::fixed(NOW);
            let authority =
                Authority::create(dir.path(), KeyType::EcdsaP256, "ctrl-exec CA", 3650, clock)
                    .unwrap();
            let key = PrivateKey::generate(KeyType::EcdsaP256).unwrap();
            let id = DispatcherId::new("hq").unwrap();
            let peer = authority.issue_dispatcher(key.public(), &id, 825).unwrap();
            Self {
                _dir: dir,
                authority,
                peer,
            }
        }

        pub(in crate::core::pairing) fn sign(&self, key: &PrivateKey, name: &str) -> Certificate {
            let name = AgentName::new(name).unwrap();
            let request = CertRequest::parse_pem(&csr::create_pem(key, &name).unwrap()).unwrap();
            self.authority.issue_agent(&request, &name, 825).unwrap()
        }

        pub(in crate::core::pairing) fn deliver(&self, certificate: &Certificate) -> Approval {
            Approval {
                status: "approved".to_owned(),
                cert: certificate.to_pem(),
                ca: self.authority.certificate().to_pem(),
                nonce: String::new(),
                dispatcher_serial: self.peer.serial.to_string(),
                dispatcher_id: "hq".to_owned(),
            }
        }

        pub(in crate::core::pairing) fn ca(&self) -> &Certificate {
            self.authority.certificate()
        }
    }

    fn expectation<'a>(spki: &'a [u8], peer: &'a Certificate) -> Expectation<'a> {
        Expectation {
            own_spki: spki,
            hostname: HOST,
            peer,
            known_ca: None,
            replace_ca: false,
            pins: Pins::default(),
            now: NOW,
        }
    }

    fn key() -> PrivateKey {
        PrivateKey::generate(KeyType::EcdsaP256).unwrap()
    }

    #[test]
    fn a_name_in_a_certificate_cannot_speak_to_the_terminal() {
        let error = DeliveryError::OtherName {
            found: "web\u{1b}[2J\u{202e}".to_owned(),
            wanted: HOST.to_owned(),
        };
        let text = error.to_string();
        assert!(text.contains(r"web\u{1b}[2J\u{202e}"), "{text}");
    }

    #[test]
    fn a_proper_delivery_is_accepted_first_and_again() {
        let (fleet, key) = (Fleet::new(), key());
        let spki = key.spki_der();
        let approval = fleet.deliver(&fleet.sign(&key, HOST));
        let mut expected = expectation(&spki, &fleet.peer);
        assert_eq!(check_peer(&expected), Ok(false));
        let accepted = check(&approval, &expected).unwrap();
        assert_eq!(accepted.serials, vec![fleet.peer.serial.clone()]);
        assert_eq!(accepted.dispatcher.as_str(), "hq");
        assert_eq!((accepted.new_ca, accepted.warnings.len()), (false, 0));

        expected.known_ca = Some(fleet.ca());
        assert_eq!(check_peer(&expected), Ok(true));
        assert!(!check(&approval, &expected).unwrap().new_ca);
    }

    #[test]
    fn a_foreign_key_name_chain_or_role_is_refused() {
        let (fleet, foreign, key) = (Fleet::new(), Fleet::new(), key());
        let spki = key.spki_der();
        let expected = expectation(&spki, &fleet.peer);
        let good = fleet.deliver(&fleet.sign(&key, HOST));

        let other_key = fleet.deliver(&fleet.sign(&self::key(), HOST));
        assert_eq!(check(&other_key, &expected), Err(DeliveryError::OtherKey));
        let other_name = fleet.deliver(&fleet.sign(&key, "web02"));
        assert!(matches!(
            check(&other_name, &expected),
            Err(DeliveryError::OtherName { .. })
        ));
        let mut other_chain = good.clone();
        other_chain.cert = foreign.sign(&key, HOST).to_pem();
        assert!(matches!(
            check(&other_chain, &expected),
            Err(DeliveryError::Chain(_))
        ));
        // The man in the middle delivers what is whole in itself, but he is not the one whom he shows.
        let foreign_set = foreign.deliver(&foreign.sign(&key, HOST));
        assert!(matches!(
            check(&foreign_set, &expected),
            Err(DeliveryError::PeerChain(_))
        ));
        let mut no_ca = good.clone();
        no_ca.ca = fleet.peer.to_pem();
        assert_eq!(check(&no_ca, &expected), Err(DeliveryError::NotACa));
        let mut bad_id = good.clone();
        bad_id.dispatcher_id = "../x".to_owned();
        assert!(matches!(
            check(&bad_id, &expected),
            Err(DeliveryError::DispatcherId(_))
        ));
        for broken in [
            "",
            "PEM",
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        ] {
            let mut approval = good.clone();
            approval.cert = broken.to_owned();
            assert!(matches!(
                check(&approval, &expected),
                Err(DeliveryError::Unreadable(_))
            ));
        }

        // An agent of the same fleet opens a pairing listener of its own.
        let posing = fleet.sign(&self::key(), "web66");
        let mut expected = expectation(&spki, &posing);
        assert_eq!(check(&good, &expected), Err(DeliveryError::NotADispatcher));
        expected.known_ca = Some(fleet.ca());
        assert_eq!(check_peer(&expected), Err(DeliveryError::NotADispatcher));
    }

    #[test]
    fn another_ca_needs_a_word_from_the_operator() {
        let (old, new, key) = (Fleet::new(), Fleet::new(), key());
        let spki = key.spki_der();
        let approval = new.deliver(&new.sign(&key, HOST));
        let mut expected = expectation(&spki, &new.peer);
        expected.known_ca = Some(old.ca());
        assert!(matches!(
            check_peer(&expected),
            Err(DeliveryError::OtherCa(_))
        ));
        assert!(matches!(
            check(&approval, &expected),
            Err(DeliveryError::OtherCa(_))
        ));
        expected.replace_ca = true;
        assert_eq!(check_peer(&expected), Ok(false));
        assert!(check(&approval, &expected).unwrap().new_ca);
    }

    #[test]
    fn pins_hold() {
        let (fleet, key) = (Fleet::new(), key());
        let spki = key.spki_der();
        let approval = fleet.deliver(&fleet.sign(&key, HOST));
        let mut expected = expectation(&spki, &fleet.peer);
        let pin = |c: &Certificate| parse_fingerprint(&fingerprint(c));
        expected.pins = Pins {
            ca: pin(fleet.ca()),
            dispatcher: pin(&fleet.peer),
        };
        assert_eq!(check_peer(&expected), Ok(true));
        assert!(check(&approval, &expected).is_ok());
        expected.pins = Pins {
            ca: pin(&fleet.peer),
            dispatcher: None,
        };
        assert!(matches!(
            check(&approval, &expected),
            Err(DeliveryError::CaPin(_))
        ));
        expected.pins = Pins {
            ca: None,
            dispatcher: pin(fleet.ca()),
        };
        assert!(matches!(
            check_peer(&expected),
            Err(DeliveryError::DispatcherPin(_))
        ));
    }

    #[test]
    fn fingerprints_are_read_in_every_usual_spelling() {
        let plain = "ab".repeat(32);
        let colons = vec!["AB"; 32].join(":");
        for text in [
            &plain,
            &colons,
            &format!("SHA256:{plain}"),
            &format!(" sha256:{colons} "),
        ] {
            assert_eq!(parse_fingerprint(text), Some([0xab; 32]), "{text}");
        }
        for bad in ["", "ab", &plain[1..], "sha1:00"] {
            assert_eq!(parse_fingerprint(bad), None);
        }
    }

    #[test]
    fn a_slow_clock_is_told_and_a_wrong_one_is_refused() {
        let (fleet, key) = (Fleet::new(), key());
        let spki = key.spki_der();
        let approval = fleet.deliver(&fleet.sign(&key, HOST));
        let at = |now| {
            let expected = Expectation {
                now,
                ..expectation(&spki, &fleet.peer)
            };
            check(&approval, &expected).map(|a| a.warnings.len())
        };
        assert_eq!(at(NOW - 3_600), Ok(0));
        assert_eq!(at(NOW - 100_000), Ok(1));
        assert!(matches!(
            at(0),
            Err(DeliveryError::Chain(CertError::NotYetValid { .. }))
        ));
        let late = NOW + 900 * 86_400;
        assert!(matches!(
            at(late),
            Err(DeliveryError::Chain(CertError::Expired { .. }))
        ));
    }

    #[test]
    fn the_true_serial_is_trusted_whatever_the_original_makes_of_it() {
        let serial = |text: &str| Serial::parse_hex(text).unwrap();
        for (seen, delivered) in [
            ("10", "a"),
            ("16", "10"),
            ("0c", "c"),
            ("ab12", "ab12"),
            ("10", ""),
            ("10", "10"),
        ] {
            let (trusted, warning) = serials(&serial(seen), delivered);
            assert_eq!(
                (trusted, warning),
                (vec![serial(seen)], None),
                "{seen} {delivered}"
            );
        }
        let (trusted, warning) = serials(&serial("ab12"), "cd34");
        assert_eq!(trusted, [serial("ab12"), serial("cd34")]);
        assert!(warning.is_some());
        let (trusted, warning) = serials(&serial("ab12"), "17");
        assert_eq!((trusted.len(), warning.is_some()), (1, true));
    }

    #[test]
    fn the_version_1_certificates_of_the_original_are_accepted() {
        let openssl = OpenSsl::new();
        openssl.make_ca("ca", "ec", "/CN=ctrl-exec CA");
        openssl.make_leaf(
            "dispatcher",
            "rsa:2048",
            "/CN=ctrl-exec-dispatcher",
            "ca",
            LeafVersion::V1,
        );
        openssl.make_leaf(
            "agent",
            "rsa:2048",
            &format!("/CN={HOST}"),
            "ca",
            LeafVersion::V1,
        );
        let (peer, own) = (
            openssl.certificate("dispatcher.crt"),
            openssl.certificate("agent.crt"),
        );
        let approval = Approval {
            cert: openssl.read("agent.crt"),
            ca: openssl.read("ca.crt"),
            dispatcher_serial: peer.serial.legacy(),
            dispatcher_id: "old".to_owned(),
            ..Approval::default()
        };
        let now = own.not_before + 60;
        let expected = Expectation {
            now,
            ..expectation(&own.spki, &peer)
        };
        assert_eq!(
            check(&approval, &expected).unwrap().serials,
            vec![peer.serial.clone()]
        );
    }
}
