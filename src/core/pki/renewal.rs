//! Whether a new certificate may take the place of the one in use (spec/agent.md 15.2, 19.2 W10): one rule for the request that brings it, for
//! the agent's start, and for root, who puts it into place for good.

use super::cert::{CertError, Certificate, Role};
use crate::core::types::Serial;

/// Why a certificate may not take the place of the one in use; in the original's words where it has words.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum RenewalError {
    #[error("renewed cert does not verify against the agent CA")]
    Issuer,
    #[error("renewed cert public key does not match the agent key")]
    Key,
    #[error("renewed cert is for another name")]
    Name,
    #[error("renewed cert has another role")]
    Role,
    #[error("renewed cert is revoked")]
    Revoked,
    #[error("renewed cert is not newer than the present one")]
    NotNewer,
    #[error("renewed cert cannot be used now: {0}")]
    Dates(CertError),
}

impl RenewalError {
    /// Whether time alone can mend it. A host without a battery boots in the past: what is not valid yet is not wrong for ever.
    pub fn may_pass(&self) -> bool {
        matches!(self, Self::Dates(CertError::NotYetValid { .. }))
    }
}

/// Judges `new` against the certificate in use and the CAs in force, at `now`. Pure.
///
/// The certificate in use itself is always fine: a request that is repeated is no error.
///
/// # Errors
/// Says what is wrong; what only time can mend comes last ([`RenewalError::may_pass`]).
pub fn judge(
    new: &Certificate,
    in_use: &Certificate,
    authorities: &[Certificate],
    is_revoked: impl Fn(&Serial) -> bool,
    now: i64,
) -> Result<(), RenewalError> {
    let issuer = issuer_of(new, authorities)
        .filter(|ca| now <= ca.not_after)
        .ok_or(RenewalError::Issuer)?;
    if new.spki != in_use.spki {
        return Err(RenewalError::Key);
    }
    if new.subject_cn != in_use.subject_cn {
        return Err(RenewalError::Name);
    }
    // The certificates of the original have no role; what our dispatcher renews has that of an agent.
    let gains_role = in_use.role.is_none() && new.role == Some(Role::Agent);
    if new.role != in_use.role && !gains_role {
        return Err(RenewalError::Role);
    }
    if is_revoked(&new.serial) {
        return Err(RenewalError::Revoked);
    }
    if new.der != in_use.der {
        // Old certificates are public; none of them may come back. Another CA may give less time than the one before it.
        let same_ca = issuer_of(in_use, authorities).is_some_and(|old| old.spki == issuer.spki);
        if new.not_before <= in_use.not_before || (same_ca && new.not_after <= in_use.not_after) {
            return Err(RenewalError::NotNewer);
        }
    }
    new.check_dates(now).map_err(RenewalError::Dates)
}

/// The CA that issued a certificate. By signature, not by name: all CAs of the original have the same.
fn issuer_of<'a>(leaf: &Certificate, authorities: &'a [Certificate]) -> Option<&'a Certificate> {
    authorities
        .iter()
        .find(|ca| leaf.verify_signed_by(ca).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::clock::Clock;
    use crate::core::pki::fixtures::{OpenSsl, agent};
    use crate::core::pki::{Authority, CertRequest, KeyType, PrivateKey, csr};

    const NOW: i64 = 1_900_000_000;
    const DAY: i64 = 86_400;

    /// What it shows, the new certificate, the CAs in force, the time, the verdict.
    type Case<'a> = (
        &'a str,
        Certificate,
        &'a [Certificate],
        i64,
        Result<(), RenewalError>,
    );

    struct House {
        openssl: OpenSsl,
        key: PrivateKey,
    }

    impl House {
        fn new() -> Self {
            let openssl = OpenSsl::new();
            for name in ["one", "two"] {
                std::fs::create_dir(openssl.path(name)).unwrap();
                let dir = openssl.path(name);
                Authority::create(&dir, KeyType::EcdsaP256, "CA", 3000, Clock::fixed(NOW)).unwrap();
            }
            let key = PrivateKey::generate(KeyType::EcdsaP256).unwrap();
            Self { openssl, key }
        }

        fn ca(&self, ca: &str, now: i64) -> Authority {
            Authority::load(&self.openssl.path(ca), Clock::fixed(now)).unwrap()
        }

        fn issue_for(
            &self,
            key: &PrivateKey,
            ca: &str,
            name: &str,
            now: i64,
            days: u32,
        ) -> Certificate {
            let request =
                CertRequest::parse_pem(&csr::create_pem(key, &agent(name)).unwrap()).unwrap();
            let ca = self.ca(ca, now);
            ca.issue_agent(&request, &agent(name), days).unwrap()
        }

        fn issue(&self, ca: &str, name: &str, now: i64, days: u32) -> Certificate {
            self.issue_for(&self.key, ca, name, now, days)
        }
    }

    #[test]
    fn only_a_newer_certificate_of_the_same_key_name_and_role_may_follow() {
        let house = House::new();
        let old = house.issue("one", "web1", NOW - 300 * DAY, 400);
        let in_use = house.issue("one", "web1", NOW - 100 * DAY, 400);
        let good = house.issue("one", "web1", NOW, 400);
        let stranger = PrivateKey::generate(KeyType::EcdsaP256).unwrap();
        let both = [
            house.ca("one", NOW).certificate().clone(),
            house.ca("two", NOW).certificate().clone(),
        ];
        let of_role = |certificate: &Certificate, role| {
            let mut certificate = certificate.clone();
            certificate.role = role;
            certificate
        };
        let with_role = |role| of_role(&good, role);
        let other_ca_shorter = house.issue("two", "web1", NOW, 10);
        let cases: Vec<Case<'_>> = vec![
            ("a renewal", good.clone(), &both[..1], NOW, Ok(())),
            (
                "the one in use, again",
                in_use.clone(),
                &both[..1],
                NOW,
                Ok(()),
            ),
            (
                "an older one",
                old,
                &both[..1],
                NOW,
                Err(RenewalError::NotNewer),
            ),
            (
                "a shorter one",
                house.issue("one", "web1", NOW, 10),
                &both[..1],
                NOW,
                Err(RenewalError::NotNewer),
            ),
            (
                "back-dated but longer",
                house.issue("one", "web1", NOW - 101 * DAY, 900),
                &both[..1],
                NOW,
                Err(RenewalError::NotNewer),
            ),
            (
                "a foreign CA",
                other_ca_shorter.clone(),
                &both[..1],
                NOW,
                Err(RenewalError::Issuer),
            ),
            (
                "another CA of ours",
                other_ca_shorter.clone(),
                &both,
                NOW,
                Ok(()),
            ),
            (
                "another CA of ours, older",
                house.issue("two", "web1", NOW - 101 * DAY, 900),
                &both,
                NOW,
                Err(RenewalError::NotNewer),
            ),
            (
                "the old CA has gone",
                other_ca_shorter,
                &both[1..],
                NOW,
                Ok(()),
            ),
            (
                "no CA at all",
                good.clone(),
                &[],
                NOW,
                Err(RenewalError::Issuer),
            ),
            (
                "another key",
                house.issue_for(&stranger, "one", "web1", NOW, 400),
                &both,
                NOW,
                Err(RenewalError::Key),
            ),
            (
                "another name",
                house.issue("one", "web2", NOW, 400),
                &both,
                NOW,
                Err(RenewalError::Name),
            ),
            (
                "a dispatcher",
                with_role(Some(Role::Dispatcher)),
                &both,
                NOW,
                Err(RenewalError::Role),
            ),
            (
                "no role any more",
                with_role(None),
                &both,
                NOW,
                Err(RenewalError::Role),
            ),
        ];
        for (what, new, authorities, now, expected) in cases {
            let verdict = judge(&new, &in_use, authorities, |_| false, now);
            assert_eq!(verdict, expected, "{what}");
        }
        let without_role = of_role(&in_use, None);
        for (role, fine) in [
            (None, true),
            (Some(Role::Agent), true),
            (Some(Role::Dispatcher), false),
        ] {
            let verdict = judge(&with_role(role), &without_role, &both, |_| false, NOW);
            assert_eq!(verdict.is_ok(), fine, "{role:?}");
        }
        let revoked = |serial: &Serial| *serial == good.serial;
        assert_eq!(
            judge(&good, &in_use, &both, revoked, NOW),
            Err(RenewalError::Revoked)
        );
    }

    #[test]
    fn what_time_can_mend_is_told_from_what_it_cannot() {
        let house = House::new();
        let in_use = house.issue("one", "web1", NOW - 100 * DAY, 400);
        let new = house.issue("one", "web1", NOW, 400);
        let cas = [house.ca("one", NOW).certificate().clone()];
        let at = |now| judge(&new, &in_use, &cas, |_| false, now);
        assert!(at(0).unwrap_err().may_pass());
        assert_eq!(at(NOW), Ok(()));
        let late = at(NOW + 401 * DAY).unwrap_err();
        assert!(
            !late.may_pass() && late.to_string().contains("expired"),
            "{late}"
        );
        assert_eq!(at(NOW + 3001 * DAY), Err(RenewalError::Issuer));
    }
}
