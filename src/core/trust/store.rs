//! Changing the trust map: whole-file replacement under a lock, every other line kept as it stands.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::map::{Entry, Line, TrustMap, parse_line};
use super::{MAX_FILE, TrustError};
use crate::core::durable::{self, Lock};
use crate::core::pki::PeerIdentity;
use crate::core::secure_open::{self, Trust};
use crate::core::types::{DispatcherId, Serial};

/// Longest wait for another writer; a write takes milliseconds.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);
/// Mode of the map (spec/agent.md 13.3).
const MODE: u32 = 0o644;
const HEADER: &str = "# Dispatchers that this agent trusts: <certificate serial, hex> <dispatcher id>\n\
                      # Written by ctrl-exec; lines of other dispatchers and comments are kept.\n";

/// Trusts `serial` as dispatcher `id`. Returns whether the map changed; a pair that is there already is left as it is.
///
/// Other serials of the same id stay: they overlap during a rotation.
///
/// # Errors
/// The serial, or what a Perl dispatcher makes of it, stands there for another id; the map cannot be read, locked or written.
pub fn add(path: &Path, serial: &Serial, id: &DispatcherId) -> Result<bool, TrustError> {
    refuse_zero(path, serial)?;
    change(path, |lines| {
        let true_text = serial.to_string();
        if entries(lines).any(|(_, e)| e.id != *id && same_in_some_reading(&e, serial)) {
            return Err(not_owned(path, serial, id));
        }
        if entries(lines).any(|(_, e)| e.serial == true_text) {
            return Ok(false);
        }
        lines.push(format!("{true_text} {id}").into_bytes());
        Ok(true)
    })
}

/// Stops trusting `serial` as dispatcher `id`. Returns whether the map changed; a serial that is not there is no error.
///
/// A Perl dispatcher names its serial in the original's lossy form, so if the serial itself is not there, lines of this id that
/// mean the same in that form go.
///
/// # Errors
/// The serial belongs to another id; the map cannot be read, locked or written.
pub fn remove(path: &Path, serial: &Serial, id: &DispatcherId) -> Result<bool, TrustError> {
    take_out(path, serial, id, |_| true)
}

/// As [`remove`], but `caller`, who asks for it, must stay trusted: a dispatcher must not lock itself out.
///
/// # Errors
/// As [`remove`]; also when the serial is the caller's own in one of its readings, or the line by which the caller is known would go.
pub fn remove_but_keep(
    path: &Path,
    serial: &Serial,
    id: &DispatcherId,
    caller: &PeerIdentity,
) -> Result<bool, TrustError> {
    let own = *serial == caller.serial || serial.to_string() == caller.serial.legacy();
    if own {
        return Err(in_use(path, serial));
    }
    take_out(path, serial, id, |left| left.lookup(caller).is_some())
}

fn take_out(
    path: &Path,
    serial: &Serial,
    id: &DispatcherId,
    may_be: impl FnOnce(&TrustMap) -> bool,
) -> Result<bool, TrustError> {
    refuse_zero(path, serial)?;
    if !path.exists() {
        return Ok(false);
    }
    change(path, |lines| {
        let true_text = serial.to_string();
        let exact: Vec<_> = entries(lines)
            .filter(|(_, e)| e.serial == true_text)
            .collect();
        // Later lines win: the last one says whose it is.
        if exact.last().is_some_and(|(_, e)| e.id != *id) {
            return Err(not_owned(path, serial, id));
        }
        let doomed: Vec<usize> = if exact.is_empty() {
            entries(lines)
                .filter(|(_, e)| e.id == *id && same_in_some_reading(e, serial))
                .map(|(at, _)| at)
                .collect()
        } else {
            exact.into_iter().map(|(at, _)| at).collect()
        };
        for at in doomed.iter().rev() {
            lines.remove(*at);
        }
        if !doomed.is_empty() && !may_be(&TrustMap::parse(&lines.join(&b'\n'))) {
            return Err(in_use(path, serial));
        }
        Ok(!doomed.is_empty())
    })
}

fn in_use(path: &Path, serial: &Serial) -> TrustError {
    TrustError::InUse {
        path: path.to_owned(),
        serial: serial.clone(),
    }
}

/// Whether an entry and a serial can be meant for the same certificate: equal, or one is the lossy form of the other.
fn same_in_some_reading(entry: &Entry, serial: &Serial) -> bool {
    let true_text = serial.to_string();
    entry.serial == true_text
        || entry.serial == serial.legacy()
        || Serial::parse_hex(&entry.serial).is_ok_and(|stored| stored.legacy() == true_text)
}

fn refuse_zero(path: &Path, serial: &Serial) -> Result<(), TrustError> {
    if serial.as_bytes().is_empty() {
        return Err(TrustError::ZeroSerial {
            path: path.to_owned(),
        });
    }
    Ok(())
}

fn not_owned(path: &Path, serial: &Serial, id: &DispatcherId) -> TrustError {
    TrustError::NotOwned {
        path: path.to_owned(),
        serial: serial.clone(),
        id: id.clone(),
    }
}

fn entries(lines: &[Vec<u8>]) -> impl Iterator<Item = (usize, Entry)> + '_ {
    lines
        .iter()
        .enumerate()
        .filter_map(|(at, line)| match parse_line(line) {
            Line::Entry(entry) => Some((at, entry)),
            _ => None,
        })
}

/// The lock that every writer of the map takes.
pub fn lock_path(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.lock"))
}

fn change(
    path: &Path,
    edit: impl FnOnce(&mut Vec<Vec<u8>>) -> Result<bool, TrustError>,
) -> Result<bool, TrustError> {
    let _lock = Lock::exclusive(&lock_path(path), 0o660, PATIENCE)?;
    let bytes = match secure_open::read_trusted(path, MAX_FILE, Trust::State) {
        Ok(bytes) => bytes,
        Err(e) if e.is_not_found() => HEADER.into(),
        Err(e) => return Err(e.into()),
    };
    let mut lines: Vec<Vec<u8>> = bytes.split(|&b| b == b'\n').map(<[u8]>::to_vec).collect();
    if lines.last().is_some_and(Vec::is_empty) {
        lines.pop();
    }
    if !edit(&mut lines)? {
        return Ok(false);
    }
    let mut out = lines.join(&b'\n');
    if !lines.is_empty() {
        out.push(b'\n');
    }
    durable::replace_keeping_owner(path, &out, MODE)?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::durable::crash;
    use crate::core::pki::Version;

    fn serial(hex: &str) -> Serial {
        Serial::parse_hex(hex).unwrap()
    }

    fn id(text: &str) -> DispatcherId {
        DispatcherId::new(text).unwrap()
    }

    fn map_with(text: &str) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ctrl-exec-dispatchers");
        if !text.is_empty() {
            durable::replace(&path, text.as_bytes(), MODE).unwrap();
        }
        (dir, path)
    }

    #[test]
    fn the_first_entry_makes_the_file() {
        let (_dir, path) = map_with("");
        assert!(add(&path, &serial("0A1b"), &id("main")).unwrap());
        assert!(!add(&path, &serial("a1b"), &id("main")).unwrap());
        assert!(add(&path, &serial("ff"), &id("main")).unwrap());
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("# "), "{text}");
        assert!(text.ends_with("\na1b main\nff main\n"), "{text}");
        let mode = std::os::unix::fs::PermissionsExt::mode(&path.metadata().unwrap().permissions());
        assert_eq!(mode & 0o7777, MODE);
    }

    #[test]
    fn other_lines_stay_byte_for_byte() {
        let before = "# mine\n00:AB  other # keep\nnonsense here and there\n\n10 third\n";
        let (_dir, path) = map_with(before);
        add(&path, &serial("cd"), &id("main")).unwrap();
        assert_eq!(
            std::fs::read_to_string(&path).unwrap(),
            format!("{before}cd main\n")
        );
        assert!(remove(&path, &serial("cd"), &id("main")).unwrap());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), before);
    }

    #[test]
    fn a_last_line_without_newline_does_not_swallow_the_new_entry() {
        let (_dir, path) = map_with("ab other");
        add(&path, &serial("cd"), &id("main")).unwrap();
        assert_eq!(
            std::fs::read_to_string(&path).unwrap(),
            "ab other\ncd main\n"
        );
    }

    #[test]
    fn nobody_takes_or_removes_the_serial_of_another() {
        let before = "ab other\nc other\n16 other\n";
        let (_dir, path) = map_with(before);
        // 12 is what `c` can stand for, and 10 is what a Perl dispatcher with 0x16 calls itself.
        for taken in ["ab", "c", "12", "16", "10"] {
            let error = add(&path, &serial(taken), &id("main")).unwrap_err();
            assert_eq!(error.to_string(), "serial not owned by 'main'", "{taken}");
        }
        for taken in ["ab", "c", "16"] {
            let error = remove(&path, &serial(taken), &id("main")).unwrap_err();
            assert_eq!(error.to_string(), "serial not owned by 'main'", "{taken}");
        }
        for absent in ["12", "10"] {
            assert!(!remove(&path, &serial(absent), &id("main")).unwrap());
        }
        assert_eq!(std::fs::read_to_string(&path).unwrap(), before);
    }

    #[test]
    fn removal_understands_the_form_of_a_perl_dispatcher() {
        let (_dir, path) = map_with("16 main\n17 main\n20 other\n");
        assert!(remove(&path, &serial("10"), &id("main")).unwrap());
        assert_eq!(
            std::fs::read_to_string(&path).unwrap(),
            "17 main\n20 other\n"
        );
        let (_dir, path) = map_with("a main\n");
        assert!(remove(&path, &serial("10"), &id("main")).unwrap());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "");
        assert!(TrustMap::load(&path).unwrap().is_empty());
    }

    #[test]
    fn nobody_takes_out_the_line_by_which_it_is_known() {
        let caller = |live: &str| PeerIdentity {
            serial: serial(live),
            common_name: Some("ctrl-exec-dispatcher".to_owned()),
            role: None,
            role_id: None,
            dns_names: Vec::new(),
            version: Version::V1,
            spki_sha256: String::new(),
            fingerprint: String::new(),
        };
        // (map, serial of the caller, serial to remove, what is left)
        for (map, live, gone, left) in [
            ("ab main\ncd main\n", "ab", "ab", None),
            ("ab main\ncd main\n", "ab", "cd", Some("ab main\n")),
            ("ab main\ncd main\n", "ab", "ef", Some("ab main\ncd main\n")),
            // What a Perl dispatcher with 0x16 calls itself, and what it is called in the map.
            ("10 main\na main\n", "16", "10", None),
            ("10 main\na main\n", "16", "16", None),
            ("10 main\na main\n", "16", "0a", Some("10 main\n")),
            // 0x10 is known by the text of 0x0a.
            ("a main\n", "10", "0a", None),
            ("16 main\n", "16", "22", Some("16 main\n")),
        ] {
            let (_dir, path) = map_with(map);
            let result = remove_but_keep(&path, &serial(gone), &id("main"), &caller(live));
            let text = std::fs::read_to_string(&path).unwrap();
            match left {
                Some(left) => assert_eq!(text, left, "{map} {live} {gone} {result:?}"),
                None => {
                    let error = result.unwrap_err().to_string();
                    assert_eq!(error, "serial in use by this connection", "{map} {gone}");
                    assert_eq!(text, map);
                }
            }
        }
    }

    #[test]
    fn removing_what_is_absent_succeeds_and_zero_is_refused() {
        let (_dir, path) = map_with("");
        assert!(!remove(&path, &serial("ab"), &id("main")).unwrap());
        assert!(!path.exists());
        assert!(matches!(
            add(&path, &serial("00"), &id("main")),
            Err(TrustError::ZeroSerial { .. })
        ));
    }

    #[test]
    fn an_unreadable_map_is_not_replaced() {
        let (dir, path) = map_with("");
        std::fs::create_dir(&path).unwrap();
        assert!(add(&path, &serial("ab"), &id("main")).is_err());
        assert!(path.is_dir());
        drop(dir);
    }

    #[test]
    fn a_power_cut_leaves_the_old_map_or_the_new_one() {
        let before = "# mine\nab main\n00:CD other # keep\n";
        let after_add = format!("{before}ef main\n");
        type Change = fn(&Path) -> Result<bool, TrustError>;
        let changes: [(Change, &str); 3] = [
            (|p| add(p, &serial("ef"), &id("main")), &after_add),
            (
                |p| remove(p, &serial("ab"), &id("main")),
                "# mine\n00:CD other # keep\n",
            ),
            (|p| add(p, &serial("ab"), &id("main")), before),
        ];
        for (change, wanted) in changes {
            for effects in 0.. {
                let (_dir, path) = map_with(before);
                let (_, cut) = crash::after(effects, || change(&path));
                let left = std::fs::read_to_string(&path).unwrap();
                assert!(left == before || left == wanted, "{effects}: {left}");
                change(&path).unwrap();
                assert_eq!(std::fs::read_to_string(&path).unwrap(), wanted);
                if !cut {
                    break;
                }
            }
        }
    }

    #[test]
    fn writers_at_the_same_time_lose_nothing() {
        let (dir, path) = map_with("");
        std::thread::scope(|scope| {
            for writer in 0..8_u8 {
                let path = &path;
                scope.spawn(move || {
                    for n in 1..=6_u8 {
                        let serial = Serial::from_be_bytes(&[0xa0 + writer, 0xf0 + n]);
                        assert!(add(path, &serial, &id(&format!("d{writer}"))).unwrap());
                        // Readers see a whole map at any time.
                        assert!(!TrustMap::load(path).unwrap().is_empty());
                    }
                });
            }
        });
        assert_eq!(TrustMap::load(&path).unwrap().entries().len(), 48);
        // The map and its lock, no temporary file.
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
    }
}
