//! From one CA to the next without touching a host by hand: a CA is trusted because one that is trusted already endorses it.
//!
//! An endorsement ([`Authority::endorse`](super::Authority::endorse)) is a certificate of the new CA's name and key that the old CA has
//! signed. It is kept beside the CAs that it speaks for, so that root can judge anew what the agent's user has written down.

use super::cert::{CertError, Certificate};

/// Most CAs that an agent trusts at the same time.
pub const MAX_CAS: usize = 4;
/// Most certificates in a staged file: CAs and what speaks for them.
const MAX_CERTIFICATES: usize = 16;

/// Why a set of CAs is not what follows from the one in force.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum SuccessionError {
    #[error("the new CA is not usable: {0}")]
    NewCa(CertError),
    #[error("the endorsement is not for this CA (another name or key, or no CA)")]
    OtherSubject,
    #[error("the endorsement does not verify against a trusted CA: {0}")]
    NotEndorsed(CertError),
    #[error("at most {MAX_CAS} CAs can be trusted: remove one first")]
    TooMany,
    #[error("no CA would be left")]
    NoneLeft,
    #[error("the CA {0} is not endorsed by any that is trusted")]
    Unendorsed(String),
}

/// The CAs in force and the endorsements that say why.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Trusted {
    /// At least one, at most [`MAX_CAS`]; each has signed itself, or stands in the live file.
    pub cas: Vec<Certificate>,
    pub evidence: Vec<Certificate>,
}

impl Trusted {
    /// What an operator has put there needs no evidence.
    pub fn live(cas: Vec<Certificate>) -> Self {
        Self {
            cas,
            evidence: Vec::new(),
        }
    }

    /// SHA-256 fingerprints of the CAs in hex.
    pub fn fingerprints(&self) -> Vec<String> {
        self.cas.iter().map(Certificate::fingerprint).collect()
    }

    /// One PEM text that [`in_force`] reads back.
    pub fn to_pem(&self) -> String {
        let all = self.cas.iter().chain(&self.evidence);
        all.map(Certificate::to_pem).collect()
    }

    /// With `new`, which `endorsement` speaks for, at `now`. One that is there already changes nothing.
    ///
    /// # Errors
    /// `new` or its endorsement is not what it should be, or there are too many.
    pub fn with(
        &self,
        new: &Certificate,
        endorsement: &Certificate,
        now: i64,
    ) -> Result<Self, SuccessionError> {
        new.verify_self_signed()
            .and_then(|()| new.check_dates(now))
            .map_err(SuccessionError::NewCa)?;
        if !speaks_for(endorsement, new) {
            return Err(SuccessionError::OtherSubject);
        }
        let mut reason = CertError::OtherIssuer;
        let endorsed = self.cas.iter().any(|ca| {
            let verdict = endorsement.verify_issued_by(ca, now);
            if let Err(error) = &verdict
                && *error != CertError::OtherIssuer
            {
                reason = error.clone();
            }
            verdict.is_ok()
        });
        if self.cas.iter().any(|ca| ca.der == new.der) {
            return Ok(self.clone());
        }
        if !endorsed {
            return Err(SuccessionError::NotEndorsed(reason));
        }
        if self.cas.len() >= MAX_CAS {
            return Err(SuccessionError::TooMany);
        }
        let mut next = self.clone();
        next.cas.push(new.clone());
        next.evidence.push(endorsement.clone());
        Ok(next)
    }

    /// Without the CA of this fingerprint; one that is not there changes nothing. Its endorsements of others stay: they say why those
    /// are trusted, as long as the live file still holds it.
    ///
    /// # Errors
    /// None would be left.
    pub fn without(&self, fingerprint: &str) -> Result<Self, SuccessionError> {
        let mut next = self.clone();
        next.cas.retain(|ca| ca.fingerprint() != fingerprint);
        if next.cas.is_empty() {
            return Err(SuccessionError::NoneLeft);
        }
        Ok(next)
    }
}

/// The CAs in force when `live` is what root has put there and `staged` what the agent's user has: each staged CA is a live one, or endorsed
/// through a chain that begins with a live one. Pure.
///
/// Dates are judged when an endorsement comes in ([`Trusted::with`]), not here: it must not lapse on a host that has not been restarted by
/// root before the old CA ended, and a host that boots in the past has no time to judge by.
///
/// # Errors
/// A staged CA is not endorsed, or there are none or too many: then the staged file counts for nothing.
pub fn in_force(live: &[Certificate], staged: &[Certificate]) -> Result<Trusted, SuccessionError> {
    if staged.len() > MAX_CERTIFICATES {
        return Err(SuccessionError::TooMany);
    }
    let is_live = |c: &Certificate| live.iter().any(|l| l.der == c.der);
    let (cas, evidence): (Vec<_>, Vec<_>) = staged
        .iter()
        .cloned()
        .partition(|c| is_live(c) || c.verify_self_signed().is_ok());
    if cas.is_empty() {
        return Err(SuccessionError::NoneLeft);
    }
    if cas.len() > MAX_CAS.max(live.len()) {
        return Err(SuccessionError::TooMany);
    }
    // What a link of the chain says counts also when the CA itself has been removed since; hence by name and key, not by certificate.
    let mut believed: Vec<&Certificate> = live.iter().collect();
    let mut open: Vec<&Certificate> = evidence.iter().collect();
    loop {
        let (endorsed, rest): (Vec<_>, Vec<_>) = open
            .into_iter()
            .partition(|e| e.is_ca && believed.iter().any(|ca| e.verify_signed_by(ca).is_ok()));
        open = rest;
        if endorsed.is_empty() {
            break;
        }
        believed.extend(endorsed);
    }
    for ca in &cas {
        if !is_live(ca) && !believed.iter().any(|b| speaks_for(b, ca)) {
            return Err(SuccessionError::Unendorsed(ca.fingerprint()));
        }
    }
    Ok(Trusted { cas, evidence })
}

fn speaks_for(endorsement: &Certificate, ca: &Certificate) -> bool {
    endorsement.is_ca
        && endorsement.subject_der() == ca.subject_der()
        && endorsement.spki == ca.spki
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::clock::Clock;
    use crate::core::pki::fixtures::{LeafVersion, OpenSsl};
    use crate::core::pki::{Authority, KeyType};

    const NOW: i64 = 1_900_000_000;
    const DAY: i64 = 86_400;

    fn authority(openssl: &OpenSsl, name: &str) -> Authority {
        let dir = openssl.path(name);
        std::fs::create_dir(&dir).unwrap();
        Authority::create(&dir, KeyType::EcdsaP256, "CA", 100, Clock::fixed(NOW)).unwrap()
    }

    #[test]
    fn a_ca_comes_in_only_with_an_endorsement_of_one_that_is_trusted() {
        let openssl = OpenSsl::new();
        let [one, two, three] = ["1", "2", "3"].map(|n| authority(&openssl, n));
        let trusted = Trusted::live(vec![one.certificate().clone()]);
        let new = two.certificate();
        let good = one.endorse(new).unwrap();
        assert!(good.is_ca && good.spki == new.spki && good.subject_der() == new.subject_der());
        let next = trusted.with(new, &good, NOW).unwrap();
        assert_eq!(next.cas, [one.certificate().clone(), new.clone()]);
        assert_eq!(next.with(new, &good, NOW), Ok(next.clone()), "again");
        assert_eq!(
            in_force(
                &trusted.cas,
                &Certificate::all_from_pem(next.to_pem().as_bytes()).unwrap()
            ),
            Ok(next.clone())
        );

        let foreign = three.endorse(new).unwrap();
        for (what, new, endorsement, now) in [
            ("endorsed by a stranger", new, &foreign, NOW),
            ("endorsement of another", three.certificate(), &good, NOW),
            ("the CA as its own endorsement", new, new, NOW),
            ("an endorsement as the CA", &good, &good, NOW),
            ("too early", new, &good, NOW - 2 * DAY),
            ("too late", new, &good, NOW + 101 * DAY),
        ] {
            assert!(trusted.with(new, endorsement, now).is_err(), "{what}");
        }
        // Whoever is trusted may endorse, also one that came in so.
        let third = two.endorse(three.certificate()).unwrap();
        assert!(trusted.with(three.certificate(), &third, NOW).is_err());
        assert!(next.with(three.certificate(), &third, NOW).is_ok());
    }

    #[test]
    fn there_are_never_more_than_four_nor_none() {
        let openssl = OpenSsl::new();
        let all: Vec<_> = (0..5)
            .map(|n| authority(&openssl, &n.to_string()))
            .collect();
        let mut trusted = Trusted::live(vec![all[0].certificate().clone()]);
        for next in &all[1..4] {
            let new = next.certificate();
            trusted = trusted
                .with(new, &all[0].endorse(new).unwrap(), NOW)
                .unwrap();
        }
        let fifth = all[4].certificate();
        let endorsement = all[0].endorse(fifth).unwrap();
        assert_eq!(
            trusted.with(fifth, &endorsement, NOW),
            Err(SuccessionError::TooMany)
        );
        for ca in &all[..3] {
            trusted = trusted.without(&ca.certificate().fingerprint()).unwrap();
        }
        assert_eq!(trusted.without("ab"), Ok(trusted.clone()));
        let last = all[3].certificate().fingerprint();
        assert_eq!(trusted.without(&last), Err(SuccessionError::NoneLeft));
        // The live file still holds the first, so root comes to the same.
        let staged = Certificate::all_from_pem(trusted.to_pem().as_bytes()).unwrap();
        assert_eq!(
            in_force(&[all[0].certificate().clone()], &staged),
            Ok(trusted)
        );
    }

    #[test]
    fn a_staged_file_counts_only_as_far_as_the_live_one_answers_for_it() {
        let openssl = OpenSsl::new();
        let [one, two, three, four] = ["1", "2", "3", "4"].map(|n| authority(&openssl, n));
        let cert = |a: &Authority| a.certificate().clone();
        let live = [cert(&one)];
        let two_by_one = one.endorse(two.certificate()).unwrap();
        let three_by_two = two.endorse(three.certificate()).unwrap();
        let three_by_four = four.endorse(three.certificate()).unwrap();
        let ok = |staged: &[Certificate]| in_force(&live, staged).is_ok();
        assert!(ok(&[cert(&one)]));
        assert!(ok(&[cert(&two), two_by_one.clone()]));
        assert!(
            ok(&[cert(&three), three_by_two.clone(), two_by_one.clone()]),
            "a chain, the middle removed"
        );
        assert!(
            !ok(&[cert(&three), three_by_two]),
            "a chain without its beginning"
        );
        assert!(!ok(&[cert(&one), cert(&two)]), "no evidence");
        assert!(
            !ok(&[cert(&three), three_by_four, cert(&four)]),
            "two strangers"
        );
        assert!(!ok(std::slice::from_ref(&two_by_one)), "evidence alone");
        assert!(!ok(&[]));
        openssl.make_ca("root", "ec", "/CN=CA");
        openssl.make_leaf("leaf", "ec", "/CN=CA", "root", LeafVersion::V3);
        let leaf = openssl.certificate("leaf.crt");
        assert!(
            !ok(std::slice::from_ref(&leaf)) && ok(&[cert(&one), leaf]),
            "what is no CA speaks for nobody"
        );
        // An old CA of OpenSSL can be endorsed, and its v3 leaf with the same name cannot take its place.
        let old = openssl.certificate("root.crt");
        let cross = one.endorse(&old).unwrap();
        assert!(ok(&[old, cross]));
    }

    #[test]
    fn cas_of_openssl_with_any_plain_name_can_be_endorsed() {
        let openssl = OpenSsl::new();
        let one = authority(&openssl, "1");
        for (kind, subject) in [
            ("rsa:2048", "/CN=ctrl-exec CA"),
            ("ec", "/C=DE/O=Example/CN=ctrl-exec CA"),
        ] {
            openssl.make_ca("other", kind, subject);
            let other = openssl.certificate("other.crt");
            let cross = one.endorse(&other).unwrap();
            assert_eq!(cross.subject_der(), other.subject_der());
            assert_eq!(
                cross.not_after,
                other.not_after.min(one.certificate().not_after)
            );
        }
        openssl.make_leaf("leaf", "ec", "/CN=x", "other", LeafVersion::V3);
        assert!(one.endorse(&openssl.certificate("leaf.crt")).is_err());
        assert!(one.endorse(one.certificate()).is_err(), "itself");
    }
}
