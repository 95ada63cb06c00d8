//! The outer shape that certificates and requests share: what is signed, with which algorithm, and the signature.

use x509_parser::asn1_rs::{Any, FromDer as _, Tag};

use super::provider;

/// A signed DER structure, taken apart but not yet believed.
pub(super) struct Signed<'a> {
    /// The signed bytes, with their header.
    tbs: &'a [u8],
    /// Content of the AlgorithmIdentifier.
    algorithm: &'a [u8],
    signature: &'a [u8],
}

/// Why a signature is not accepted.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Refused {
    /// The algorithm is weak, unknown, or does not fit the key.
    Algorithm,
    /// The bytes were not signed by this key.
    Signature,
}

impl<'a> Signed<'a> {
    /// `None` if the bytes are not exactly one such structure.
    pub(super) fn parse(der: &'a [u8]) -> Option<Self> {
        let (after, outer) = Any::from_der(der).ok()?;
        if !after.is_empty() || outer.tag() != Tag::Sequence {
            return None;
        }
        let (rest, tbs) = Any::from_der(outer.data).ok()?;
        let (algorithm, signature) = algorithm_and_bits(rest)?;
        if tbs.tag() != Tag::Sequence {
            return None;
        }
        Some(Self {
            tbs: &outer.data[..outer.data.len() - rest.len()],
            algorithm,
            signature,
        })
    }

    /// Checks the signature with the key of the signer. SHA-1, MD5 and RSA keys below 2048 bits are not among the algorithms.
    pub(super) fn verify(&self, signer_spki: &[u8]) -> Result<(), Refused> {
        let (key_algorithm, key) = split_spki(signer_spki).ok_or(Refused::Algorithm)?;
        let known = provider::algorithms().all;
        let algorithm = known
            .iter()
            .find(|a| {
                a.signature_alg_id().as_ref() == self.algorithm
                    && a.public_key_alg_id().as_ref() == key_algorithm
            })
            .ok_or(Refused::Algorithm)?;
        algorithm
            .verify_signature(key, self.tbs, self.signature)
            .map_err(|_| Refused::Signature)
    }
}

/// Splits a SubjectPublicKeyInfo into the content of its AlgorithmIdentifier and the key bits.
pub(super) fn split_spki(spki: &[u8]) -> Option<(&[u8], &[u8])> {
    let (after, outer) = Any::from_der(spki).ok()?;
    if !after.is_empty() || outer.tag() != Tag::Sequence {
        return None;
    }
    algorithm_and_bits(outer.data)
}

fn algorithm_and_bits(der: &[u8]) -> Option<(&[u8], &[u8])> {
    let (rest, algorithm) = Any::from_der(der).ok()?;
    let (after, bits) = Any::from_der(rest).ok()?;
    let fits = after.is_empty()
        && algorithm.tag() == Tag::Sequence
        && bits.tag() == Tag::BitString
        && bits.data.first() == Some(&0);
    fits.then(|| (algorithm.data, &bits.data[1..]))
}
