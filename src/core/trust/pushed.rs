//! The revocation list that dispatchers push: grows only, whole-file replacement under a lock.

use std::collections::BTreeSet;
use std::path::Path;

use super::{MAX_FILE, RevocationList, TrustError, lock_path, store::PATIENCE};
use crate::core::durable::{self, Lock};
use crate::core::secure_open::{self, Trust};
use crate::core::types::Serial;

/// Most serials in the list: with the longest serials it stays below the size that is read.
pub const MAX_PUSHED: usize = 50_000;
const MODE: u32 = 0o640;
const HEADER: &str = "# Serials of revoked certificates, pushed by dispatchers. Written by ctrl-exec; the administrator's own list is another file.\n";

/// Reads the list; no file is an empty list.
///
/// # Errors
/// The file is there but cannot be read or must not be trusted. The caller then keeps the list it has.
pub fn load_pushed(path: &Path) -> Result<RevocationList, TrustError> {
    match secure_open::read_trusted(path, MAX_FILE, Trust::State) {
        Ok(bytes) => Ok(RevocationList::parse(&bytes)),
        Err(e) if e.is_not_found() => Ok(RevocationList::default()),
        Err(e) => Err(e.into()),
    }
}

/// Adds serials to the list. Whether it changed.
///
/// # Errors
/// The list cannot be read, locked or written, or would hold more than [`MAX_PUSHED`].
pub fn push(path: &Path, serials: &BTreeSet<Serial>) -> Result<bool, TrustError> {
    let _lock = Lock::exclusive(&lock_path(path), 0o660, PATIENCE)?;
    let old = load_pushed(path)?;
    let mut all: BTreeSet<&Serial> = old.serials().collect();
    let before = all.len();
    all.extend(serials);
    if all.len() == before {
        return Ok(false);
    }
    if all.len() > MAX_PUSHED {
        return Err(TrustError::TooManyRevoked {
            path: path.to_owned(),
        });
    }
    // With its prefix no serial of digits alone can be read as a decimal number.
    let lines = all.iter().map(|serial| format!("0x{serial}\n"));
    let text: String = std::iter::once(HEADER.to_owned()).chain(lines).collect();
    durable::replace_keeping_owner(path, text.as_bytes(), MODE)?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::durable::crash;

    fn set(serials: &[&str]) -> BTreeSet<Serial> {
        serials
            .iter()
            .map(|s| Serial::parse_hex(s).unwrap())
            .collect()
    }

    #[test]
    fn the_list_is_a_union_and_says_the_same_twice() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("revoked-serials");
        assert!(load_pushed(&path).unwrap().is_empty());
        assert!(push(&path, &set(&["12", "ab"])).unwrap());
        assert!(push(&path, &set(&["ab", "00"])).unwrap());
        assert!(!push(&path, &set(&["12", "0ab", "0"])).unwrap());
        assert!(!push(&path, &set(&[])).unwrap());
        let list = load_pushed(&path).unwrap();
        assert_eq!(list.len(), 3);
        assert!(list.contains(&Serial::parse_hex("12").unwrap()));
        assert!(
            !list.contains(&Serial::parse_hex("0c").unwrap()),
            "hex is hex"
        );
        let mode = std::os::unix::fs::PermissionsExt::mode(&path.metadata().unwrap().permissions());
        assert_eq!(mode & 0o7777, MODE);
    }

    #[test]
    fn the_list_stays_readable_however_much_is_pushed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("revoked-serials");
        let many = |first: u32, count: u32| -> BTreeSet<Serial> {
            (first..first + count)
                .map(|n| {
                    let mut bytes = [0xff; 32];
                    bytes[28..].copy_from_slice(&n.to_be_bytes());
                    Serial::from_be_bytes(&bytes)
                })
                .collect()
        };
        let most = u32::try_from(MAX_PUSHED).unwrap();
        assert!(push(&path, &many(0, most)).unwrap());
        assert!(std::fs::metadata(&path).unwrap().len() < MAX_FILE);
        let error = push(&path, &many(most, 1)).unwrap_err();
        assert!(
            matches!(error, TrustError::TooManyRevoked { .. }),
            "{error}"
        );
        assert_eq!(load_pushed(&path).unwrap().len(), MAX_PUSHED);
    }

    #[test]
    fn a_power_cut_leaves_the_old_list_or_the_new_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("revoked-serials");
        push(&path, &set(&["ab"])).unwrap();
        for effects in 0.. {
            let (_, cut) = crash::after(effects, || push(&path, &set(&["cd"])));
            let length = load_pushed(&path).unwrap().len();
            assert!(length == 1 || length == 2);
            if !cut {
                assert_eq!(length, 2);
                break;
            }
        }
    }
}
