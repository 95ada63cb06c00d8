//! The key that makes names of run owners out of their tokens: the name must not help anybody to find the token.

use std::io::Read as _;
use std::path::Path;

use ring::hmac;
use zeroize::Zeroizing;

use crate::core::durable;

const FILE: &str = ".owner.key";
const LENGTH: usize = 32;

/// Reads the key in `runs_dir`, or makes it.
///
/// # Errors
/// A sentence with the path.
pub(super) fn key(runs_dir: &Path) -> Result<hmac::Key, String> {
    durable::create_shared_dir(runs_dir).map_err(|e| e.to_string())?;
    let path = runs_dir.join(FILE);
    let mut bytes = Zeroizing::new(Vec::with_capacity(LENGTH + 1));
    match std::fs::File::open(&path) {
        Ok(file) => {
            file.take(LENGTH as u64 + 1)
                .read_to_end(&mut bytes)
                .map_err(|e| format!("cannot read '{}': {e}", path.display()))?;
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(format!("cannot read '{}': {error}", path.display())),
    }
    if bytes.len() != LENGTH {
        // Damaged or new: records name owners for a day, so nothing of worth is lost.
        bytes.resize(LENGTH, 0);
        let random = ring::rand::SystemRandom::new();
        ring::rand::SecureRandom::fill(&random, &mut bytes)
            .map_err(|_| "the system gives no random bytes".to_owned())?;
        durable::replace(&path, &bytes, 0o600).map_err(|e| e.to_string())?;
    }
    Ok(hmac::Key::new(hmac::HMAC_SHA256, &bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_stays_and_a_damaged_one_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let tag = |key: &hmac::Key| hmac::sign(key, b"t").as_ref().to_vec();
        let first = tag(&key(dir.path()).unwrap());
        assert_eq!(tag(&key(dir.path()).unwrap()), first);
        std::fs::write(dir.path().join(FILE), "short").unwrap();
        let second = tag(&key(dir.path()).unwrap());
        assert_ne!(second, first);
        assert_eq!(tag(&key(dir.path()).unwrap()), second);
    }
}
