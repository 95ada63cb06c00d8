//! `ca.serial`: the lock around signing, and a counter that the original's OpenSSL may go on counting (spec/dispatcher.md 14.3, 21.10).
//!
//! Our own serials are random. The file keeps the highest number that was ever written, as valid hex, and is rewritten in place:
//! a rename would leave another process waiting on a lock of a file that is gone.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::core::durable::crash;
use crate::core::types::{self, Serial};

/// The locked file. The lock ends when this is dropped or the process ends.
#[derive(Debug)]
pub(super) struct SerialFile(File);

impl SerialFile {
    /// Opens the file (making it if it is missing) and waits for the lock.
    pub(super) fn lock(path: &Path, patience: Duration) -> io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)?;
        let deadline = Instant::now() + patience;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Self(file)),
                Err(TryLockError::WouldBlock) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                Err(TryLockError::WouldBlock) => {
                    return Err(io::Error::new(
                        io::ErrorKind::TimedOut,
                        "another process holds its lock",
                    ));
                }
                Err(TryLockError::Error(e)) => return Err(e),
            }
        }
    }

    /// Notes that `used` has been issued. The number in the file never becomes lower; content that is no number is replaced.
    pub(super) fn record(&mut self, used: &Serial) -> io::Result<()> {
        let mut old = String::new();
        let readable = (&self.0).take(256).read_to_string(&mut old).is_ok();
        let kept = Serial::parse_hex(&old).ok().filter(|_| readable);
        let highest = match &kept {
            Some(old) if number(old) > number(used) => old,
            _ => used,
        };
        let text = format!("{}\n", highest.two_digit_hex().to_ascii_uppercase());
        crash::effect()?;
        self.0.write_all_at(text.as_bytes(), 0)?;
        self.0
            .set_len(u64::try_from(text.len()).map_err(io::Error::other)?)?;
        self.0.sync_all()
    }
}

/// Orders serials as numbers.
fn number(serial: &Serial) -> (usize, &[u8]) {
    (serial.as_bytes().len(), serial.as_bytes())
}

/// A fresh serial: 128 bits, first byte 0x10 to 0x7f, and not all digits in hex, so that both the original's canonicaliser and a
/// decimal reading leave it alone (spec/dispatcher.md 21.3).
pub(super) fn random_serial() -> Result<Serial, ring::error::Unspecified> {
    loop {
        let bytes = types::random::<16>()?;
        let has_letter = bytes.iter().any(|b| b & 0x0f > 9 || b >> 4 > 9);
        if (0x10..=0x7f).contains(&bytes[0]) && has_letter {
            return Ok(Serial::from_be_bytes(&bytes));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn serials_mean_the_same_to_the_original() {
        let mut seen = std::collections::HashSet::new();
        for _ in 0..2000 {
            let serial = random_serial().unwrap();
            let text = serial.to_string();
            assert_eq!(text.len(), 32);
            assert!(matches!(serial.as_bytes()[0], 0x10..=0x7f));
            assert!(text.bytes().any(|b| b.is_ascii_lowercase()));
            assert_eq!(serial.legacy(), text);
            assert_eq!(types::legacy_canonical(&text), text);
            assert!(seen.insert(serial));
        }
    }

    #[test]
    fn the_counter_never_falls_and_stays_hex() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ca.serial");
        let patience = Duration::from_secs(5);
        let big = Serial::parse_hex("7000000000000000000000000000000a").unwrap();
        for (before, used, after) in [
            ("01", "0abc", "0ABC\n"),
            ("0ABC\n", "02", "0ABC\n"),
            ("ffff", "010000", "010000\n"),
            ("", "0a", "0A\n"),
            ("no number at all, and long", "0a", "0A\n"),
            ("01", &big.to_string(), "7000000000000000000000000000000A\n"),
        ] {
            std::fs::write(&path, before).unwrap();
            let used = Serial::parse_hex(used).unwrap();
            let mut file = SerialFile::lock(&path, patience).unwrap();
            file.record(&used).unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), after);
        }
    }

    #[test]
    fn the_lock_is_on_the_file_itself() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ca.serial");
        std::fs::write(&path, "01").unwrap();
        let perl = File::open(&path).unwrap();
        perl.lock().unwrap();
        let error = SerialFile::lock(&path, Duration::from_millis(30)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        drop(perl);
        SerialFile::lock(&path, Duration::from_millis(30)).unwrap();
    }
}
