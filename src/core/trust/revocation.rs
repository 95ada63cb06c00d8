//! Serials of certificates that are refused whatever the chain says (spec/agent.md 13.4).

use std::collections::HashSet;
use std::path::Path;

use super::{MAX_FILE, TrustError};
use crate::core::secure_open::{self, Trust};
use crate::core::types::{Serial, legacy_canonical};

/// The list as it was when it was read.
#[derive(Clone, Debug, Default)]
pub struct RevocationList {
    serials: HashSet<Serial>,
    skipped: Vec<usize>,
}

impl RevocationList {
    /// Reads the list; `None` when there is no file, which is common and revokes nothing.
    ///
    /// # Errors
    /// The file is there but cannot be read or must not be trusted. The caller then keeps the list it has.
    pub fn load(path: &Path) -> Result<Option<Self>, TrustError> {
        match secure_open::read_trusted(path, MAX_FILE, Trust::Public) {
            Ok(bytes) => Ok(Some(Self::parse(&bytes))),
            // A link that leads nowhere is a list that got lost (a mount that is missing), not a host without one.
            Err(e) if e.is_not_found() && path.symlink_metadata().is_err() => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// One serial per line, `#` begins a comment. Lines that hold no serial are skipped and remembered by number.
    pub fn parse(bytes: &[u8]) -> Self {
        let mut list = Self::default();
        for (at, line) in bytes.split(|&b| b == b'\n').enumerate() {
            let line = String::from_utf8_lossy(line);
            let text = line.split('#').next().unwrap_or_default().trim();
            if text.is_empty() {
                continue;
            }
            let readings: Vec<Serial> = readings(text).collect();
            if readings.is_empty() {
                list.skipped.push(at + 1);
            }
            list.serials.extend(readings);
        }
        list
    }

    pub fn contains(&self, serial: &Serial) -> bool {
        self.serials.contains(serial)
    }

    /// Every serial that is refused, in no order.
    pub fn serials(&self) -> impl Iterator<Item = &Serial> {
        self.serials.iter()
    }

    pub fn len(&self) -> usize {
        self.serials.len()
    }

    pub fn is_empty(&self) -> bool {
        self.serials.is_empty()
    }

    /// Numbers (from 1) of the lines that hold no serial: somebody wanted to revoke something there, so tell.
    pub fn skipped(&self) -> &[usize] {
        &self.skipped
    }
}

/// Hex is hex. Digits alone are also read as the decimal number that the original took them for: a revocation fails closed.
fn readings(text: &str) -> impl Iterator<Item = Serial> {
    let hex = Serial::parse_hex(text).ok();
    let decimal = text
        .bytes()
        .all(|b| b.is_ascii_digit())
        .then(|| Serial::parse_hex(&legacy_canonical(text)).ok())
        .flatten();
    hex.into_iter().chain(decimal)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn revoked(list: &str, live: &str) -> bool {
        RevocationList::parse(list.as_bytes()).contains(&Serial::parse_hex(live).unwrap())
    }

    #[test]
    fn every_accepted_form_matches_the_live_serial() {
        for form in [
            "deadbeef",
            "  DEADBEEF  ",
            "0xDeadBeef",
            "0XDEADBEEF",
            "serial=DEADBEEF",
            "Serial=DEADBEEF",
            "DE:AD:BE:EF",
            "00:DE:AD:BE:EF",
            "0000deadbeef # stolen laptop",
            "3735928559",
        ] {
            assert!(
                revoked(&format!("# head\n\n{form}\r\n"), "deadbeef"),
                "{form}"
            );
        }
        assert!(!revoked("# deadbeef\n", "deadbeef"));
    }

    #[test]
    fn digits_alone_revoke_both_readings_and_marked_hex_only_one() {
        assert!(revoked("12", "12") && revoked("12", "0c"));
        assert!(revoked("00:12", "12") && !revoked("00:12", "0c"));
        assert!(revoked("0x12", "12") && !revoked("0x12", "0c"));
        assert!(!revoked("0c", "12"));
    }

    #[test]
    fn a_list_that_got_lost_is_not_an_absent_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("revoked-serials");
        assert!(RevocationList::load(&path).unwrap().is_none());
        std::os::unix::fs::symlink("/nonexistent/list", &path).unwrap();
        let error = RevocationList::load(&path).unwrap_err().to_string();
        assert!(error.contains("revoked-serials"), "{error}");
    }

    #[test]
    fn junk_is_told_and_hurts_nothing() {
        let list = RevocationList::parse(b"ab\nnot-a-serial\n\xff\xfe\ncd\n");
        assert_eq!(list.skipped(), [2, 3]);
        assert!(list.contains(&Serial::parse_hex("cd").unwrap()));
        assert!(!list.is_empty());
    }

    #[test]
    fn an_absent_list_is_none_and_an_unreadable_one_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("revoked-serials");
        assert!(RevocationList::load(&path).unwrap().is_none());
        std::fs::write(&path, "ab\n").unwrap();
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o644))
            .unwrap();
        assert!(!RevocationList::load(&path).unwrap().unwrap().is_empty());
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        assert!(RevocationList::load(&path).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_upset_the_parser(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = RevocationList::parse(&bytes);
        }

        #[test]
        fn a_revoked_serial_is_found(bytes in proptest::collection::vec(any::<u8>(), 1..20)) {
            let serial = Serial::from_be_bytes(&bytes);
            prop_assert!(revoked(&serial.two_digit_hex(), &serial.to_string()));
        }
    }
}
