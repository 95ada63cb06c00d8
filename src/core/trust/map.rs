//! The trust map: lines `<serial> <id>` (spec/agent.md 13.3), and the rule by which a caller is found in it (19.1 item 3).

use std::path::Path;

use super::{MAX_FILE, TrustError};
use crate::core::pki::identity::PeerIdentity;
use crate::core::secure_open::{self, Trust};
use crate::core::types::{DispatcherId, Serial};

/// One valid line.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Entry {
    /// Serial as written, in minimal lower-case hex: never read as decimal, which would be a second pass of the original's canonicaliser.
    pub serial: String,
    pub id: DispatcherId,
}

/// All valid lines, in the order of the file.
#[derive(Clone, Debug, Default)]
pub struct TrustMap {
    entries: Vec<Entry>,
    skipped: Vec<usize>,
}

impl TrustMap {
    /// Reads the map. An absent file is an empty map: nobody is trusted.
    ///
    /// # Errors
    /// The file is there but cannot be read or must not be trusted. The caller then keeps the map it has.
    pub fn load(path: &Path) -> Result<Self, TrustError> {
        match secure_open::read_trusted(path, MAX_FILE, Trust::State) {
            Ok(bytes) => Ok(Self::parse(&bytes)),
            Err(e) if e.is_not_found() => Ok(Self::default()),
            Err(e) => Err(e.into()),
        }
    }

    /// Reads lines; those that are not valid are skipped and remembered by number.
    pub fn parse(bytes: &[u8]) -> Self {
        let mut map = Self::default();
        for (at, line) in bytes.split(|&b| b == b'\n').enumerate() {
            match parse_line(line) {
                Line::Entry(entry) => map.entries.push(entry),
                Line::Nothing => {}
                Line::Invalid => map.skipped.push(at + 1),
            }
        }
        map
    }

    /// The identity of an authenticated peer, or `None`: not trusted.
    ///
    /// A stored serial counts when it is the peer's true serial, or failing that the text that a Perl dispatcher makes of it. That text
    /// can stand for two certificates, so in any case the peer must not be an ordinary agent. Later lines win.
    pub fn lookup(&self, peer: &PeerIdentity) -> Option<&DispatcherId> {
        if peer.serial.as_bytes().is_empty() || !peer.looks_like_dispatcher() {
            return None;
        }
        self.find(&peer.serial.to_string())
            .or_else(|| self.find(&peer.serial.legacy()))
    }

    fn find(&self, serial: &str) -> Option<&DispatcherId> {
        let found = self.entries.iter().rev().find(|e| e.serial == serial);
        found.map(|e| &e.id)
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Numbers (from 1) of the lines that say nothing valid, for a warning.
    pub fn skipped(&self) -> &[usize] {
        &self.skipped
    }
}

/// What one line says.
#[derive(Debug, Eq, PartialEq)]
pub(super) enum Line {
    Entry(Entry),
    /// Blank or comment.
    Nothing,
    Invalid,
}

pub(super) fn parse_line(line: &[u8]) -> Line {
    let Ok(text) = str::from_utf8(line) else {
        return Line::Invalid;
    };
    let text = text.split('#').next().unwrap_or_default().trim();
    if text.is_empty() {
        return Line::Nothing;
    }
    // All that follows the first blank is the id, so an id with blanks is invalid rather than cut.
    let (serial, id) = text
        .split_once(|c: char| c.is_ascii_whitespace())
        .unwrap_or((text, ""));
    match (Serial::parse_hex(serial), DispatcherId::new(id.trim())) {
        (Ok(serial), Ok(id)) => Line::Entry(Entry {
            serial: serial.to_string(),
            id,
        }),
        _ => Line::Invalid,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::pki::cert::{Role, Version};
    use proptest::prelude::*;

    fn lookup(map: &str, live: &str, cn: Option<&str>, role: Option<Role>) -> Option<String> {
        let peer = PeerIdentity {
            serial: Serial::parse_hex(live).unwrap(),
            common_name: cn.map(str::to_owned),
            role,
            role_id: None,
            dns_names: Vec::new(),
            version: Version::V1,
            spki_sha256: String::new(),
            fingerprint: String::new(),
        };
        let map = TrustMap::parse(map.as_bytes());
        map.lookup(&peer).map(ToString::to_string)
    }

    fn old_dispatcher(map: &str, live: &str) -> Option<String> {
        lookup(map, live, Some("ctrl-exec-dispatcher"), None)
    }

    #[test]
    fn lines_are_read_as_the_original_reads_them() {
        let id64 = "x".repeat(64);
        let text = format!(
            "# head\n\n  00:DE:AD:BE:EF  main # note\n0c\tb\r\n0xAB c.d-e_f\nserial=CD e\nef {id64}\n\
             bad\nf0 two words\nf1 a/b\nf2 -x\nf3 {id64}x\nxyz a\n#f4 commented\n"
        );
        let map = TrustMap::parse(text.as_bytes());
        let read: Vec<_> = map
            .entries()
            .iter()
            .map(|e| (e.serial.as_str(), e.id.as_str()))
            .collect();
        assert_eq!(
            read,
            [
                ("deadbeef", "main"),
                ("c", "b"),
                ("ab", "c.d-e_f"),
                ("cd", "e"),
                ("ef", id64.as_str()),
            ]
        );
        assert_eq!(map.skipped(), [8, 9, 10, 11, 12, 13]);
    }

    #[test]
    fn a_line_that_is_not_text_spoils_only_itself() {
        let map = TrustMap::parse(b"ab \xff\ncd main");
        assert_eq!(map.entries().len(), 1);
        assert_eq!(map.skipped(), [1]);
    }

    #[test]
    fn values_that_a_perl_agent_stored_are_found() {
        // (serial of the live certificate, what a Perl dispatcher sends and a Perl or Rust agent stores)
        for (live, stored) in [
            ("02", "2"),
            ("0A", "a"),
            ("10", "a"),
            ("12", "c"),
            ("16", "10"),
            ("20", "14"),
            ("64", "40"),
            ("4096", "1000"),
            ("1a", "1a"),
            ("deadbeef", "deadbeef"),
        ] {
            let map = format!("{stored} main\n");
            assert_eq!(
                old_dispatcher(&map, live).as_deref(),
                Some("main"),
                "{live}"
            );
        }
        // The true serial in the file counts as well, also in the colon form that survives the original's passes.
        assert_eq!(old_dispatcher("16 main", "16").as_deref(), Some("main"));
        assert_eq!(old_dispatcher("00:16 main", "16").as_deref(), Some("main"));
    }

    #[test]
    fn stored_text_is_never_canonicalised_a_second_time() {
        // "16" stored is 0x16, or what is sent for 0x22 (decimal 22 is hex 16): not "10", which the original would make of it.
        assert_eq!(old_dispatcher("16 main", "10"), None);
        assert_eq!(old_dispatcher("16 main", "22").as_deref(), Some("main"));
    }

    #[test]
    fn an_ordinary_agent_never_acts_as_dispatcher() {
        // 0x12 and 0x0C collide in the original; neither agent certificate passes here, whatever the map says.
        for live in ["12", "0c", "c"] {
            for (cn, role) in [
                (Some("web01"), None),
                (None, None),
                (Some("CTRL-EXEC-DISPATCHER"), None),
                (Some("ctrl-exec-dispatcher"), Some(Role::Agent)),
                (Some("ctrl-exec"), Some(Role::Agent)),
            ] {
                assert_eq!(lookup("c main\n12 main\n", live, cn, role), None);
            }
        }
        let dispatcher = Some(Role::Dispatcher);
        assert_eq!(
            lookup("c main", "c", None, dispatcher).as_deref(),
            Some("main")
        );
        assert_eq!(
            lookup("c main", "c", Some("ctrl-exec"), None).as_deref(),
            Some("main")
        );
    }

    #[test]
    fn the_true_serial_beats_the_text_and_later_lines_beat_earlier_ones() {
        assert_eq!(old_dispatcher("c a\n12 b", "12").as_deref(), Some("b"));
        assert_eq!(old_dispatcher("12 b\nc a", "12").as_deref(), Some("b"));
        assert_eq!(old_dispatcher("ab a\nAB b", "ab").as_deref(), Some("b"));
    }

    #[test]
    fn nobody_is_found_by_an_empty_serial_or_in_an_empty_map() {
        assert_eq!(old_dispatcher("", "ab"), None);
        assert_eq!(old_dispatcher("0 main\n00 main", "0"), None);
    }

    #[test]
    fn an_absent_map_is_empty_and_an_unreadable_one_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        assert!(TrustMap::load(&dir.path().join("map")).unwrap().is_empty());
        let error = TrustMap::load(dir.path()).unwrap_err();
        assert!(matches!(error, TrustError::Read(_)), "{error}");
        let path = dir.path().join("open");
        std::fs::write(&path, "ab main\n").unwrap();
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o666))
            .unwrap();
        assert!(TrustMap::load(&path).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_upset_the_parser(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let map = TrustMap::parse(&bytes);
            for entry in map.entries() {
                prop_assert_eq!(Serial::parse_hex(&entry.serial).unwrap().to_string(), entry.serial.clone());
            }
        }

        #[test]
        fn what_is_written_is_found(
            bytes in proptest::collection::vec(any::<u8>(), 1..20),
            id in "[A-Za-z0-9][A-Za-z0-9._-]{0,63}",
            blanks in "[ \t]{1,3}",
            comment in "(#[ -~]{0,20})?",
        ) {
            let serial = Serial::from_be_bytes(&bytes);
            prop_assume!(!serial.as_bytes().is_empty());
            for stored in [serial.to_string(), serial.two_digit_hex().to_uppercase(), serial.legacy()] {
                let line = format!("{blanks}{stored}{blanks}{id}{blanks}{comment}");
                prop_assert_eq!(old_dispatcher(&line, &serial.to_string()), Some(id.clone()));
            }
        }
    }
}
