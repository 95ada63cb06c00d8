//! SHA-256 of a script.

use std::fmt::Write as _;
use std::io::{self, Read as _};

use ring::digest::{Context, SHA256, digest};

/// Largest file that is hashed.
const MAX: u64 = 1 << 30;

/// Of what is in memory.
pub fn of_bytes(bytes: &[u8]) -> [u8; 32] {
    fixed(digest(&SHA256, bytes).as_ref())
}

/// Of an open file, from its beginning.
///
/// # Errors
/// It cannot be read, or is larger than 1 GiB.
pub fn of_file(file: &std::fs::File) -> io::Result<[u8; 32]> {
    rustix::fs::seek(file, rustix::fs::SeekFrom::Start(0))?;
    let mut context = Context::new(&SHA256);
    let mut buffer = vec![0; 64 * 1024];
    let mut total = 0_u64;
    let mut limited = file.take(MAX + 1);
    loop {
        match limited.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => {
                total += u64::try_from(n).unwrap_or(u64::MAX);
                context.update(&buffer[..n]);
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    if total > MAX {
        return Err(io::Error::other("the file is larger than 1 GiB"));
    }
    Ok(fixed(context.finish().as_ref()))
}

fn fixed(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    for (to, from) in out.iter_mut().zip(bytes) {
        *to = *from;
    }
    out
}

/// Whether two digests are the same, in a time that does not depend on where they differ.
pub fn equal(one: &[u8; 32], other: &[u8; 32]) -> bool {
    let difference = one.iter().zip(other).fold(0, |all, (a, b)| all | (a ^ b));
    std::hint::black_box(difference) == 0
}

/// 64 lower-case digits.
pub fn hex(digest: &[u8; 32]) -> String {
    digest.iter().fold(String::with_capacity(64), |mut out, b| {
        // Writing to a string cannot fail.
        let _ = write!(out, "{b:02x}");
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_those_of_sha256() {
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(hex(&of_bytes(b"")), empty);
        let file = tempfile::tempfile().unwrap();
        assert_eq!(of_file(&file).unwrap(), of_bytes(b""));
        let text = vec![7; 200_000];
        io::Write::write_all(&mut &file, &text).unwrap();
        assert_eq!(of_file(&file).unwrap(), of_bytes(&text));
    }

    #[test]
    fn every_bit_counts() {
        let one = of_bytes(b"a");
        assert!(equal(&one, &one));
        for bit in 0..256 {
            let mut other = one;
            other[bit / 8] ^= 1 << (bit % 8);
            assert!(!equal(&one, &other));
        }
    }
}
