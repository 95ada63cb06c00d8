//! The six digits that a person compares, and what they are made of (spec/pairing.md 4; the bound form: module [`super`]).

use std::fmt;
use std::str::FromStr;

use crate::core::types::{self, InvalidValue};

/// What a code proves when it is the same on both screens.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum CodeKind {
    /// Hash of the certificate request alone, as in 0.12.3: an active attacker can make another request with the same code.
    Basic,
    /// Covers both certificates and both nonces, fixed by a commitment.
    Bound,
}

impl CodeKind {
    /// The word that people and JSON see.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Basic => "basic",
            Self::Bound => "bound",
        }
    }
}

impl fmt::Display for CodeKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A confirmation code, 0..=999999, written as six digits.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct PairingCode(u32);

impl PairingCode {
    fn from_digest(digest: [u8; 32]) -> Self {
        let [a, b, c, d, ..] = digest;
        Self(u32::from_be_bytes([a, b, c, d]) % 1_000_000)
    }

    /// The original's code, over the PEM text exactly as it is carried (final newline included).
    pub fn basic(csr_pem: &str) -> Self {
        Self::from_digest(types::sha256(&[csr_pem.as_bytes()]))
    }

    /// The bound code.
    pub fn bound(
        exchange: &Exchange<'_>,
        agent_nonce: &Nonce,
        dispatcher_nonce: &Nonce,
        hostname: &str,
    ) -> Self {
        Self::from_digest(types::sha256(&[
            b"ctrl-exec pairing code v2\0",
            &types::sha256(&[exchange.csr_pem.as_bytes()]),
            exchange.server_cert,
            &agent_nonce.0,
            &dispatcher_nonce.0,
            hostname.as_bytes(),
        ]))
    }
}

impl fmt::Display for PairingCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:06}", self.0)
    }
}

impl FromStr for PairingCode {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        if text.len() == 6
            && text.bytes().all(|b| b.is_ascii_digit())
            && let Ok(number) = text.parse()
        {
            return Ok(Self(number));
        }
        Err(InvalidValue {
            what: "pairing code",
            value: text.chars().take(80).collect(),
            rule: "use exactly six digits",
        })
    }
}

/// What both ends must agree on: the request and the certificate under which it travelled.
#[derive(Clone, Copy, Debug)]
pub struct Exchange<'a> {
    /// The PEM text as carried.
    pub csr_pem: &'a str,
    /// SHA-256 of the DER of the TLS server certificate: on the agent the one it saw, on the dispatcher its own.
    pub server_cert: &'a [u8; 32],
}

/// 32 random bytes of one side.
#[derive(Clone, Eq, PartialEq)]
pub struct Nonce([u8; 32]);

impl Nonce {
    /// # Errors
    /// The operating system gave no random bytes; there is no weaker fallback.
    pub fn generate() -> Result<Self, ring::error::Unspecified> {
        Ok(Self(types::random()?))
    }

    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Reads 64 hex digits.
    pub fn from_hex(text: &str) -> Option<Self> {
        unhex(text).map(Self)
    }

    pub fn to_hex(&self) -> String {
        types::hex(&self.0)
    }
}

impl fmt::Debug for Nonce {
    /// The agent's nonce must not be known before it is revealed, so no log or panic message shows one.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[nonce]")
    }
}

/// What the agent says about its nonce before it knows the dispatcher's.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Commitment([u8; 32]);

impl Commitment {
    pub fn new(exchange: &Exchange<'_>, agent_nonce: &Nonce) -> Self {
        Self(types::sha256(&[
            b"ctrl-exec pairing commit v2\0",
            &types::sha256(&[exchange.csr_pem.as_bytes()]),
            exchange.server_cert,
            &agent_nonce.0,
        ]))
    }

    /// Reads 64 hex digits.
    pub fn from_hex(text: &str) -> Option<Self> {
        unhex(text).map(Self)
    }

    pub fn to_hex(&self) -> String {
        types::hex(&self.0)
    }
}

/// Exactly N bytes from 2N hex digits of either case.
pub(super) fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    if text.len() != 2 * N || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, at) in bytes.iter_mut().zip((0..).step_by(2)) {
        *byte = u8::from_str_radix(text.get(at..at + 2)?, 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CSR: &str =
        "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n";

    fn counting(from: u8) -> Nonce {
        let mut bytes = [0; 32];
        for (byte, value) in bytes.iter_mut().zip(from..) {
            *byte = value;
        }
        Nonce::from_bytes(bytes)
    }

    /// Values computed with another implementation of SHA-256.
    #[test]
    fn the_basic_code_is_that_of_the_original_bit_for_bit() {
        for (text, expected) in [
            (CSR.to_owned(), "179552"),
            (CSR.trim_end().to_owned(), "586129"),
            (CSR.replace('\n', "\r\n"), "071596"),
            ("x339".to_owned(), "000065"),
        ] {
            assert_eq!(PairingCode::basic(&text).to_string(), expected);
        }
    }

    #[test]
    fn the_worked_example_of_the_specification_keeps_its_leading_zeros() {
        let mut digest = [0xff; 32];
        digest[..4].copy_from_slice(&[0x00, 0x0f, 0x42, 0x41]);
        assert_eq!(PairingCode::from_digest(digest).to_string(), "000001");
    }

    #[test]
    fn the_bound_code_and_its_commitment_have_fixed_vectors() {
        let server_cert = types::sha256(&[b"certificate"]);
        let exchange = Exchange {
            csr_pem: CSR,
            server_cert: &server_cert,
        };
        let (agent, dispatcher) = (counting(0), counting(32));
        assert_eq!(
            Commitment::new(&exchange, &agent).to_hex(),
            "9de05999790c940c5c79d912238dd2595f094bbaebfea08a1ab4ed439a3c78a3"
        );
        let code = PairingCode::bound(&exchange, &agent, &dispatcher, "web01.example.org");
        assert_eq!(code.to_string(), "846366");
        assert_ne!(
            code,
            PairingCode::bound(&exchange, &dispatcher, &agent, "web01.example.org")
        );
        assert_ne!(
            code,
            PairingCode::bound(&exchange, &agent, &dispatcher, "web02.example.org")
        );
    }

    #[test]
    fn a_code_reads_back_and_nothing_else_is_one() {
        assert_eq!("000065".parse::<PairingCode>(), Ok(PairingCode(65)));
        for bad in ["", "65", "0000065", "00006a", "+00065", "00 065", "٠٠٠٠٦٥"] {
            assert!(bad.parse::<PairingCode>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_nonce_does_not_print() {
        assert_eq!(format!("{:?}", counting(1)), "[nonce]");
    }

    proptest! {
        #[test]
        fn hex_round_trips_and_every_other_text_is_refused(bytes: [u8; 32], text in ".*") {
            let nonce = Nonce::from_bytes(bytes);
            prop_assert_eq!(Nonce::from_hex(&nonce.to_hex()), Some(nonce));
            let valid = text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit());
            prop_assert_eq!(Nonce::from_hex(&text).is_some(), valid);
        }

        #[test]
        fn every_input_changes_the_commitment(cert: [u8; 32], other: [u8; 32], nonce: [u8; 32]) {
            prop_assume!(cert != other);
            let nonce = Nonce::from_bytes(nonce);
            let of = |csr_pem, server_cert| Commitment::new(&Exchange { csr_pem, server_cert }, &nonce);
            prop_assert_ne!(of(CSR, &cert), of(CSR, &other));
            prop_assert_ne!(of(CSR, &cert), of(CSR.trim_end(), &cert));
        }
    }
}
