//! Names of requests, sessions and endings: what may become part of a file name in the queue.

use std::fmt;

use crate::core::types::{self, InvalidValue};

/// Id of a request: 1 to 64 lower-case hex digits, because it becomes a file name.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct PairingId(String);

impl PairingId {
    /// # Errors
    /// Not lower-case hex of that length.
    pub fn new(text: &str) -> Result<Self, InvalidValue> {
        if is_hex_word(text) {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidValue {
                what: "pairing request id",
                value: text.chars().take(80).collect(),
                rule: "use the id that list-requests shows: lower-case hex digits",
            })
        }
    }

    /// A fresh id, 16 digits.
    ///
    /// # Errors
    /// The operating system gave no random bytes.
    pub fn generate() -> Result<Self, ring::error::Unspecified> {
        Ok(Self(types::hex(&types::random::<8>()?)))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PairingId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn is_hex_word(text: &str) -> bool {
    (1..=64).contains(&text.len()) && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// One run of a listener.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SessionId(String);

impl SessionId {
    pub fn from_bytes(bytes: [u8; 8]) -> Self {
        Self(types::hex(&bytes))
    }

    /// Reads what a record says.
    pub fn from_hex(text: &str) -> Option<Self> {
        is_hex_word(text).then(|| Self(text.to_owned()))
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// How a request ended. The word is the extension of its file from then on.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Outcome {
    /// The agent has the certificate (a receipt, or an old agent that took all bytes).
    Delivered,
    /// Sent to an agent of ours that never said whether it stored it.
    Unconfirmed,
    /// Approved, but the agent was gone.
    Undelivered,
    /// Approved, and the agent refused what it got.
    RefusedByAgent,
    /// Denied by the operator.
    Denied,
    /// The agent hung up before anybody decided.
    Abandoned,
    TimedOut,
    SessionEnded,
}

impl Outcome {
    pub const ALL: [Self; 8] = [
        Self::Delivered,
        Self::Unconfirmed,
        Self::Undelivered,
        Self::RefusedByAgent,
        Self::Denied,
        Self::Abandoned,
        Self::TimedOut,
        Self::SessionEnded,
    ];

    /// The word in file names, lists and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Delivered => "delivered",
            Self::Unconfirmed => "unconfirmed",
            Self::Undelivered => "undelivered",
            Self::RefusedByAgent => "refused-by-agent",
            // Not "denied": that name is taken by the verdict.
            Self::Denied => "rejected",
            Self::Abandoned => "abandoned",
            Self::TimedOut => "timed-out",
            Self::SessionEnded => "session-ended",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_cannot_leave_the_directory_or_collide_with_other_files() {
        for bad in ["", "../x", "0A", "a.json", "queue", "a/b", &"a".repeat(65)] {
            assert!(PairingId::new(bad).is_err(), "{bad:?}");
        }
        let id = PairingId::generate().unwrap();
        assert_eq!(id.as_str().len(), 16);
        assert_eq!(PairingId::new(id.as_str()), Ok(id));
    }

    #[test]
    fn the_words_of_outcomes_are_distinct_and_never_those_of_live_files() {
        let mut words: Vec<_> = Outcome::ALL.iter().map(|o| o.as_str()).collect();
        words.extend(["json", "approved", "denied"]);
        let count = words.len();
        words.sort_unstable();
        words.dedup();
        assert_eq!(words.len(), count);
    }
}
