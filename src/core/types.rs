//! Values that carry proof: each can only be made by validating, so a function that takes one cannot forget the check.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use zeroize::Zeroize;

/// Why a text is not the value that its field asks for. Says what is allowed.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("invalid {what} '{}': {rule}", .value.escape_debug())]
pub struct InvalidValue {
    /// The kind of value, in the words of the user ("agent name").
    pub what: &'static str,
    /// What was given, at most 80 characters of it.
    pub value: String,
    /// What would have been accepted.
    pub rule: &'static str,
}

impl InvalidValue {
    fn new(what: &'static str, value: &str, rule: &'static str) -> Self {
        Self {
            what,
            value: value.chars().take(80).collect(),
            rule,
        }
    }
}

fn name_like(text: &str, max: usize, first: fn(u8) -> bool, rest: fn(u8) -> bool) -> bool {
    let bytes = text.as_bytes();
    matches!(bytes.first(), Some(&b) if first(b))
        && bytes.len() <= max
        && bytes[1..].iter().all(|&b| rest(b))
}

macro_rules! validated_name {
    ($(#[$doc:meta])* $name:ident, $what:literal, $rule:literal, $check:expr) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// # Errors
            /// The text does not follow the rule of this kind of name.
            pub fn new(text: &str) -> Result<Self, InvalidValue> {
                let check: fn(&str) -> bool = $check;
                if check(text) {
                    Ok(Self(text.to_owned()))
                } else {
                    Err(InvalidValue::new($what, text, $rule))
                }
            }

            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = InvalidValue;
            fn from_str(text: &str) -> Result<Self, InvalidValue> {
                Self::new(text)
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidValue;
            fn try_from(text: String) -> Result<Self, InvalidValue> {
                Self::new(&text)
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
    };
}

validated_name!(
    /// Name of an agent: registry key, file name and certificate CN (spec/pairing.md 3.1; at most 64 bytes because a CN holds no more).
    AgentName,
    "agent name",
    "use 1 to 64 letters, digits, '.', '-', '_', beginning with a letter or digit",
    |t| name_like(t, 64, |b| b.is_ascii_alphanumeric(), |b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
);

validated_name!(
    /// Name of an allowlisted script (spec/agent.md 4.2; at most 128 bytes, spec/executor.md 5).
    ScriptName,
    "script name",
    "use 1 to 128 letters, digits, '-', '_'",
    |t| name_like(t, 128, |b| b.is_ascii_alphanumeric() || b"_-".contains(&b), |b| b.is_ascii_alphanumeric() || b"_-".contains(&b))
);

validated_name!(
    /// Stable identity of a dispatcher, also a directory name on the agent (spec/agent.md 13.3).
    DispatcherId,
    "dispatcher id",
    "use 1 to 64 letters, digits, '.', '-', '_', beginning with a letter or digit",
    |t| name_like(t, 64, |b| b.is_ascii_alphanumeric(), |b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
);

validated_name!(
    /// Name of a security profile in `agent.conf` or `agent.toml` (spec/agent.md 3.1; shorter than 128 bytes, spec/executor.md 8).
    ProfileName,
    "profile name",
    "use 1 to 127 letters, digits, '.', '-', '_'",
    |t| name_like(t, 127, |b| b.is_ascii_alphanumeric() || b"._-".contains(&b), |b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
);

validated_name!(
    /// Identifier of one request; ours are 16 lower-case hex digits, stored ones may be any word (spec/dispatcher.md 13, 21.16).
    ReqId,
    "request id",
    "use 1 to 128 letters, digits, '-', '_'",
    |t| name_like(t, 128, |b| b.is_ascii_alphanumeric() || b"_-".contains(&b), |b| b.is_ascii_alphanumeric() || b"_-".contains(&b))
);

impl DispatcherId {
    /// Makes a valid id of any text the way the original does (spec/dispatcher.md 19.1).
    pub fn sanitise(text: &str) -> Self {
        let mapped: String = text
            .chars()
            .map(|c| {
                if c.is_ascii_alphanumeric() || "._-".contains(c) {
                    c
                } else {
                    '-'
                }
            })
            .collect();
        let trimmed = mapped.trim_start_matches(|c: char| !c.is_ascii_alphanumeric());
        let cut: String = trimmed.chars().take(64).collect();
        Self::new(&cut).unwrap_or_else(|_| Self("dispatcher".to_owned()))
    }
}

impl ReqId {
    /// A fresh id: 8 random bytes as 16 lower-case hex digits.
    ///
    /// # Errors
    /// The operating system gave no random bytes; there is no weaker fallback.
    pub fn generate() -> Result<Self, ring::error::Unspecified> {
        Ok(Self(hex(&random::<8>()?)))
    }
}

/// A path that begins with `/` and holds no NUL.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct AbsolutePath(PathBuf);

impl AbsolutePath {
    /// # Errors
    /// The text is relative, empty or holds a NUL byte.
    pub fn new(text: &str) -> Result<Self, InvalidValue> {
        if text.starts_with('/') && !text.contains('\0') {
            Ok(Self(PathBuf::from(text)))
        } else {
            Err(InvalidValue::new(
                "path",
                text,
                "path must be absolute (begin with '/')",
            ))
        }
    }

    /// `/`
    pub fn root() -> Self {
        Self(PathBuf::from("/"))
    }

    pub fn as_path(&self) -> &Path {
        &self.0
    }
}

impl fmt::Display for AbsolutePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.display().fmt(f)
    }
}

/// Serial number of a certificate as the number it is: big-endian bytes without leading zeros (RFC 5280 4.1.2.2).
///
/// Equality is equality of numbers. The original's lossy text form exists only as [`Serial::legacy`].
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Serial(Vec<u8>);

impl Serial {
    /// From the DER INTEGER content or any big-endian bytes.
    pub fn from_be_bytes(bytes: &[u8]) -> Self {
        let start = bytes.iter().position(|&b| b != 0).unwrap_or(bytes.len());
        Self(bytes[start..].to_vec())
    }

    /// Reads hexadecimal, with optional `0x` or `serial=` prefix and colons. Hex is hex: `10` is sixteen.
    ///
    /// # Errors
    /// Anything that is not 1 to 64 hex digits.
    pub fn parse_hex(text: &str) -> Result<Self, InvalidValue> {
        const RULE: &str = "use 1 to 64 hex digits, colons allowed";
        let bad = || InvalidValue::new("serial", text, RULE);
        let lower = text.trim().to_ascii_lowercase();
        let lower = lower.strip_prefix("serial=").unwrap_or(&lower);
        let lower = lower.strip_prefix("0x").unwrap_or(lower);
        let digits: String = lower.chars().filter(|&c| c != ':').collect();
        if digits.is_empty() || digits.len() > 64 || !digits.bytes().all(|b| b.is_ascii_hexdigit())
        {
            return Err(bad());
        }
        let even = if digits.len() % 2 == 1 {
            format!("0{digits}")
        } else {
            digits
        };
        let bytes: Option<Vec<u8>> = (0..even.len())
            .step_by(2)
            .map(|i| u8::from_str_radix(&even[i..i + 2], 16).ok())
            .collect();
        Ok(Self::from_be_bytes(&bytes.ok_or_else(bad)?))
    }

    /// Big-endian bytes without leading zeros (empty for zero).
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Two lower-case hex digits per byte, as TLS libraries print it: twelve is `0c` (spec/api.md 11).
    pub fn two_digit_hex(&self) -> String {
        if self.0.is_empty() {
            "00".to_owned()
        } else {
            hex(&self.0)
        }
    }

    /// As text that agents of every kind understand when they are told to trust it. An agent of the original reads its map through the lossy
    /// function once more than it should (spec/pairing.md 4.1), which locks out all-digit serials; the form with colons survives the
    /// first pass unchanged.
    pub fn for_agents(&self) -> String {
        let text = self.to_string();
        if text.bytes().any(|b| b.is_ascii_alphabetic()) {
            return text;
        }
        let pairs: Vec<String> = self.0.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("00:{}", pairs.join(":"))
    }

    /// The trust key that a Perl peer computes from this certificate: one pass of [`legacy_canonical`] over the two-digit form
    /// (spec/agent.md 13.1, 13.2). Not injective; never decide by it alone.
    pub fn legacy(&self) -> String {
        legacy_canonical(&self.two_digit_hex())
    }
}

impl fmt::Display for Serial {
    /// Minimal lower-case hex.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let full = self.two_digit_hex();
        let trimmed = full.trim_start_matches('0');
        f.write_str(if trimmed.is_empty() { "0" } else { trimmed })
    }
}

/// One pass of the original's serial canonicaliser (spec/agent.md 13.1), bug for bug: all-digit text is read as decimal.
pub fn legacy_canonical(text: &str) -> String {
    let mut s = text.trim().to_ascii_lowercase();
    if let Some(rest) = s.strip_prefix("0x") {
        s = rest.to_owned();
    }
    if let Some(rest) = s.strip_prefix("serial=") {
        s = rest.to_owned();
    }
    if s.is_empty() {
        return s;
    }
    let strip = |t: &str| {
        let trimmed = t.trim_start_matches('0');
        if trimmed.is_empty() { "0" } else { trimmed }.to_owned()
    };
    if s.contains(':') {
        return strip(&s.replace(':', ""));
    }
    if s.bytes().all(|b| b.is_ascii_digit()) {
        return strip(&decimal_to_hex(&s));
    }
    if s.bytes().all(|b| b.is_ascii_hexdigit()) {
        return strip(&s);
    }
    "nan".to_owned()
}

fn decimal_to_hex(digits: &str) -> String {
    let mut bytes: Vec<u8> = vec![0];
    for digit in digits.bytes().map(|b| u16::from(b - b'0')) {
        let mut carry = digit;
        for byte in bytes.iter_mut().rev() {
            let v = u16::from(*byte) * 10 + carry;
            *byte = v.to_be_bytes()[1];
            carry = v >> 8;
        }
        if carry > 0 {
            bytes.insert(0, carry.to_be_bytes()[1]);
        }
    }
    hex(&bytes)
}

/// Lower-case hex of bytes.
pub fn hex(bytes: &[u8]) -> String {
    use fmt::Write as _;
    bytes.iter().fold(String::new(), |mut out, b| {
        let _ = write!(out, "{b:02x}");
        out
    })
}

/// N bytes of the operating system's generator.
///
/// # Errors
/// The generator is not available.
pub fn random<const N: usize>() -> Result<[u8; N], ring::error::Unspecified> {
    use ring::rand::SecureRandom as _;
    let mut bytes = [0; N];
    ring::rand::SystemRandom::new().fill(&mut bytes)?;
    Ok(bytes)
}

/// SHA-256 of the parts, one after another.
pub fn sha256(parts: &[&[u8]]) -> [u8; 32] {
    let mut context = ring::digest::Context::new(&ring::digest::SHA256);
    for part in parts {
        context.update(part);
    }
    let mut out = [0; 32];
    out.copy_from_slice(context.finish().as_ref());
    out
}

/// A secret: does not print, is wiped when dropped.
#[derive(Clone, Default, Eq, PartialEq)]
pub struct Secret<T: Zeroize>(T);

impl<T: Zeroize> Secret<T> {
    pub fn new(value: T) -> Self {
        Self(value)
    }

    /// The value itself. Every call is a place to review.
    pub fn expose(&self) -> &T {
        &self.0
    }
}

impl<T: Zeroize> Drop for Secret<T> {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl<T: Zeroize> fmt::Debug for Secret<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

impl<T: Zeroize + Serialize> Serialize for Secret<T> {
    /// Secrets go over the wire (a token in a request), so they serialise; they do not print.
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de, T: Zeroize + Deserialize<'de>> Deserialize<'de> for Secret<T> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        T::deserialize(deserializer).map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn legacy_canonical_follows_the_table_of_the_original() {
        for (input, expected) in [
            ("deadbeef", "deadbeef"),
            ("DEADBEEF", "deadbeef"),
            ("0xDEADBEEF", "deadbeef"),
            ("serial=DEADBEEF", "deadbeef"),
            ("DE:AD:BE:EF", "deadbeef"),
            ("00:DE:AD:BE:EF", "deadbeef"),
            ("3735928559", "deadbeef"),
            ("00aabbccdd", "aabbccdd"),
            ("0000aabbccdd", "aabbccdd"),
            ("00:0a", "a"),
            ("0a", "a"),
            ("00", "0"),
            ("0", "0"),
            ("255", "ff"),
            ("256", "100"),
            (
                "1234567890123456789012345678901234567890",
                "3a0c92075c0dbf3b8acbc5f96ce3f0ad2",
            ),
            ("1234", "4d2"),
            ("12:34", "1234"),
            ("not-a-serial", "nan"),
            ("", ""),
            ("16", "10"),
            ("10", "a"),
            ("4096", "1000"),
        ] {
            assert_eq!(legacy_canonical(input), expected, "{input}");
        }
    }

    #[test]
    fn pairs_that_collide_in_the_original_stay_distinct() {
        for (a, b) in [("0a", "10"), ("0b", "11"), ("0c", "12"), ("16", "10")] {
            let (a, b) = (Serial::parse_hex(a).unwrap(), Serial::parse_hex(b).unwrap());
            assert_ne!(a, b);
        }
        let twelve = Serial::parse_hex("0C").unwrap();
        let eighteen = Serial::parse_hex("12").unwrap();
        assert_eq!(twelve.legacy(), eighteen.legacy());
    }

    #[test]
    fn names_refuse_what_would_leave_their_directory() {
        for bad in ["", "../x", "a/b", "-a", ".a", "a b", "a\n", "é"] {
            assert!(AgentName::new(bad).is_err(), "{bad:?}");
        }
        assert!(AgentName::new(&"a".repeat(64)).is_ok());
        assert!(AgentName::new(&"a".repeat(65)).is_err());
        for bad in ["", "../etc/passwd", "foo;bar", "a b", "foo/bar"] {
            assert!(ScriptName::new(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn dispatcher_id_is_sanitised_as_in_the_original() {
        for (input, expected) in [
            ("", "dispatcher"),
            ("...", "dispatcher"),
            (".a b", "a-b"),
            ("hóst", "h-st"),
        ] {
            assert_eq!(DispatcherId::sanitise(input).as_str(), expected);
        }
        assert_eq!(DispatcherId::sanitise(&"x".repeat(70)).as_str().len(), 64);
    }

    #[test]
    fn a_secret_does_not_print() {
        assert_eq!(
            format!("{:?}", Secret::new("hunter2".to_owned())),
            "[secret]"
        );
    }

    proptest! {
        #[test]
        fn serial_text_round_trips(bytes in proptest::collection::vec(any::<u8>(), 0..20)) {
            let serial = Serial::from_be_bytes(&bytes);
            prop_assert_eq!(&Serial::parse_hex(&serial.to_string()).unwrap(), &serial);
            prop_assert_eq!(&Serial::parse_hex(&serial.two_digit_hex()).unwrap(), &serial);
        }
    }
}
