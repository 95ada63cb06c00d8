//! Files that are read whole and at once: what the kernel makes up under `/proc` and in cgroups, and short tables under `/etc`.
//!
//! Of files without a size `std` feels for the end with ever larger pieces, and the C library marks what it has opened close-on-exec a
//! second time: eight calls where four do, for some ten files per run.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::{read as read_some, retry_on_intr};
use rustix::path::Arg;

/// Room for a piece, in bytes: more than nearly all of these files have.
const FIRST: usize = 4096;

/// Reads a file as text; bytes that are none become replacement characters.
///
/// # Errors
/// It cannot be opened or read.
pub fn text(path: impl Arg) -> io::Result<String> {
    text_at(CWD, path)
}

/// As [`text`], by a path from an open directory.
///
/// # Errors
/// As [`text`].
pub fn text_at(directory: BorrowedFd<'_>, path: impl Arg) -> io::Result<String> {
    let bytes = bytes(directory, path, usize::MAX)?;
    Ok(String::from_utf8(bytes)
        .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned()))
}

/// Reads a file of at most `most` bytes.
///
/// # Errors
/// It cannot be opened or read, or is larger (`FileTooLarge`).
pub fn bytes(directory: BorrowedFd<'_>, path: impl Arg, most: usize) -> io::Result<Vec<u8>> {
    let file = openat(
        directory,
        path,
        OFlags::RDONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    rest_of(file, most)
}

/// What is left in an open file, at most `most` bytes.
///
/// # Errors
/// As [`bytes`].
pub fn rest_of(file: impl AsFd, most: usize) -> io::Result<Vec<u8>> {
    // Not on the heap: a block of that size would be a page of its own, new each time.
    let mut first = [0; FIRST];
    let mut bytes = Vec::new();
    loop {
        let mut got = 0;
        while let Some(room @ [_, ..]) = first.get_mut(got..) {
            match retry_on_intr(|| read_some(&file, &mut *room))? {
                0 => break,
                n => got += n,
            }
        }
        bytes.extend_from_slice(first.get(..got).unwrap_or_default());
        if bytes.len() > most {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        if got < FIRST {
            return Ok(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_whole_whatever_its_size() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        for size in [0, 1, FIRST - 1, FIRST, FIRST + 1, 5 * FIRST] {
            std::fs::write(&path, "x".repeat(size)).unwrap();
            assert_eq!(text(&path).unwrap().len(), size);
            assert_eq!(bytes(CWD, &path, size).unwrap().len(), size);
            if size > 0 {
                let error = bytes(CWD, &path, size - 1).unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
            }
        }
        std::fs::write(&path, b"a\xff").unwrap();
        let directory = std::fs::File::open(dir.path()).unwrap();
        assert_eq!(text_at(directory.as_fd(), "file").unwrap(), "a\u{fffd}");
        let missing = text_at(directory.as_fd(), "none").unwrap_err();
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
        assert!(text("/proc/self/status").unwrap().contains("Pid:"));
    }
}
