//! The key that makes names of run owners out of their tokens: the name must not help anybody to find the token.

use std::fs::OpenOptions;
use std::io::Read as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use ring::hmac;
use zeroize::Zeroizing;

use crate::core::durable;
use crate::core::logging::Action;

const FILE: &str = ".owner.key";
const LENGTH: usize = 32;

/// Reads the key in `runs_dir`, or makes it. Where nothing can be kept there, which is in the log, the key is one for this process alone: runs
/// cannot be recorded there either, and are answered all the same.
///
/// # Errors
/// The system gives no random bytes.
pub(super) fn key(runs_dir: &Path) -> Result<hmac::Key, String> {
    let bytes = match kept(runs_dir) {
        Ok(bytes) => bytes,
        Err(error) => {
            Action::new("run-store-fail")
                .field("ERROR", error)
                .warning();
            random()?
        }
    };
    Ok(hmac::Key::new(hmac::HMAC_SHA256, &bytes))
}

fn random() -> Result<Zeroizing<Vec<u8>>, String> {
    let mut bytes = Zeroizing::new(vec![0; LENGTH]);
    let random = ring::rand::SystemRandom::new();
    ring::rand::SecureRandom::fill(&random, &mut bytes)
        .map_err(|_| "the system gives no random bytes".to_owned())?;
    Ok(bytes)
}

fn kept(runs_dir: &Path) -> Result<Zeroizing<Vec<u8>>, String> {
    durable::create_shared_dir(runs_dir).map_err(|e| e.to_string())?;
    let path = runs_dir.join(FILE);
    let mut bytes = Zeroizing::new(Vec::with_capacity(LENGTH + 1));
    // A FIFO in its place must not hold us, a link not lead us away.
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(&path);
    match opened {
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
        bytes = random()?;
        durable::replace(&path, &bytes, 0o600).map_err(|e| e.to_string())?;
    }
    Ok(bytes)
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
