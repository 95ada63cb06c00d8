//! The three standard streams of a run. None of them can hold up another: every descriptor is non-blocking.

use std::fs::File;
use std::io::{Read as _, Seek as _, Write as _};
use std::os::fd::OwnedFd;

use rustix::io::Errno;

use crate::core::exec::TRUNCATED_MARK;

/// What is read at once.
pub(super) const CHUNK: usize = 64 * 1024;

/// One output stream and what is kept of it.
#[derive(Debug)]
pub(super) struct Output {
    fd: Option<OwnedFd>,
    store: Store,
    kept: usize,
    limit: usize,
    /// Bytes that the script wrote, kept or not.
    seen: u64,
}

/// Where the bytes are kept: a detached run may last for days, so its output is not held in memory.
#[derive(Debug)]
enum Store {
    Memory(Vec<u8>),
    File(File),
}

impl Output {
    pub(super) fn new(fd: OwnedFd, file: Option<File>, limit: usize) -> Self {
        Self {
            fd: Some(fd),
            store: file.map_or(Store::Memory(Vec::new()), Store::File),
            kept: 0,
            limit,
            seen: 0,
        }
    }

    /// `None` once it is closed.
    pub(super) fn fd(&self) -> Option<&OwnedFd> {
        self.fd.as_ref()
    }

    /// Reads once. False when there was nothing.
    pub(super) fn read(&mut self, chunk: &mut [u8]) -> bool {
        let Some(fd) = &self.fd else { return false };
        match rustix::io::read(fd, &mut *chunk) {
            Ok(n @ 1..) => {
                self.keep(&chunk[..n]);
                true
            }
            Err(Errno::AGAIN | Errno::INTR) => false,
            Ok(_) | Err(_) => {
                self.fd = None;
                false
            }
        }
    }

    fn keep(&mut self, bytes: &[u8]) {
        self.seen = self.seen.saturating_add(bytes.len() as u64);
        let bytes = &bytes[..bytes.len().min(self.limit - self.kept)];
        match &mut self.store {
            Store::Memory(kept) => kept.extend_from_slice(bytes),
            Store::File(file) => {
                // A full disk: what does not fit is dropped, and said.
                let room = self.kept + bytes.len() <= ALWAYS || has_room(file);
                if !room || file.write_all(bytes).is_err() {
                    self.limit = self.kept;
                    return;
                }
            }
        }
        self.kept += bytes.len();
    }

    /// Bytes that the script wrote.
    pub(super) fn seen(&self) -> u64 {
        self.seen
    }

    /// What was kept, with the marker if and only if a byte was dropped.
    pub(super) fn finish(self) -> (Vec<u8>, bool) {
        let mut bytes = match self.store {
            Store::Memory(bytes) => bytes,
            Store::File(mut file) => {
                let mut bytes = Vec::new();
                let _ = file.rewind();
                let _ = file.take(self.kept as u64).read_to_end(&mut bytes);
                bytes
            }
        };
        let dropped = self.seen > bytes.len() as u64;
        if dropped {
            bytes.extend_from_slice(TRUNCATED_MARK);
        }
        (bytes, dropped)
    }
}

/// This much is kept of every stream, however little room there is.
const ALWAYS: usize = 64 * 1024;

/// Whether the file system has room for more than the least. Results usually wait on `/run`, a RAM disk that the rest of the system depends
/// on, and many runs write at the same time: an eighth of it stays free for the others.
fn has_room(file: &File) -> bool {
    const TMPFS_MAGIC: u64 = 0x0102_1994;
    let Ok(system) = rustix::fs::fstatfs(file) else {
        return false;
    };
    let word = |number: i128| u64::try_from(number).unwrap_or(0);
    let (kind, all, free) = (
        word(i128::from(system.f_type)),
        word(i128::from(system.f_blocks)),
        word(i128::from(system.f_bavail)),
    );
    // One without a limit says that it has no blocks.
    kind != TMPFS_MAGIC || all == 0 || free > all / 8
}

/// What the script reads.
#[derive(Debug)]
pub(super) struct Input {
    fd: Option<OwnedFd>,
    bytes: Vec<u8>,
    at: usize,
}

impl Input {
    pub(super) fn new(fd: OwnedFd, bytes: Vec<u8>) -> Self {
        let fd = (!bytes.is_empty()).then_some(fd);
        Self { fd, bytes, at: 0 }
    }

    /// `None` once everything is written, or nobody reads.
    pub(super) fn fd(&self) -> Option<&OwnedFd> {
        self.fd.as_ref()
    }

    /// Writes once.
    pub(super) fn write(&mut self) {
        let Some(fd) = &self.fd else { return };
        match rustix::io::write(fd, &self.bytes[self.at..]) {
            Ok(n) => self.at += n,
            Err(Errno::AGAIN | Errno::INTR) => return,
            // A script need not read what it gets.
            Err(_) => self.at = self.bytes.len(),
        }
        if self.at == self.bytes.len() {
            self.fd = None;
            self.bytes = Vec::new();
            self.at = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::pipe::{PipeFlags, pipe_with};

    fn output(limit: usize, file: Option<File>, bytes: &[u8]) -> (Vec<u8>, bool) {
        let (read, write) = pipe_with(PipeFlags::NONBLOCK | PipeFlags::CLOEXEC).unwrap();
        let mut output = Output::new(read, file, limit);
        let mut chunk = vec![0; CHUNK];
        for part in bytes.chunks(1000) {
            assert_eq!(rustix::io::write(&write, part).unwrap(), part.len());
            assert!(output.read(&mut chunk));
            assert!(!output.read(&mut chunk));
        }
        assert!(output.fd().is_some());
        drop(write);
        assert!(!output.read(&mut chunk));
        assert!(output.fd().is_none());
        assert_eq!(output.seen(), bytes.len() as u64);
        output.finish()
    }

    #[test]
    fn the_marker_is_there_exactly_when_a_byte_was_dropped() {
        let bytes = vec![b'x'; 5000];
        for limit in [4999, 5000, 5001, 0, 1] {
            for in_file in [false, true] {
                let file = in_file.then(|| tempfile::tempfile().unwrap());
                let (kept, truncated) = output(limit, file, &bytes);
                assert_eq!(truncated, limit < 5000);
                let mark = if truncated { TRUNCATED_MARK } else { b"" };
                assert_eq!(kept.len(), limit.min(5000) + mark.len());
                assert!(kept.ends_with(mark));
            }
        }
        assert_eq!(output(10, None, b""), (Vec::new(), false));
    }

    #[test]
    fn input_is_written_whole_and_ends() {
        let (read, write) = pipe_with(PipeFlags::NONBLOCK | PipeFlags::CLOEXEC).unwrap();
        let mut input = Input::new(write, vec![b'y'; 200_000]);
        let (mut got, mut chunk) = (0, vec![0; CHUNK]);
        loop {
            input.write();
            match rustix::io::read(&read, &mut chunk[..]) {
                Ok(0) => break,
                Ok(n) => got += n,
                Err(e) => assert_eq!(e, Errno::AGAIN),
            }
        }
        assert_eq!(got, 200_000);
        assert!(input.fd().is_none());
        let (_, write) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        assert!(Input::new(write, Vec::new()).fd().is_none());
    }

    #[test]
    fn a_ram_disk_is_not_filled_to_the_brim() {
        let room = || {
            let file = tempfile::tempfile_in("/dev/shm").ok()?;
            let system = rustix::fs::fstatfs(&file).ok()?;
            Some(has_room(&file) == (system.f_blocks == 0 || system.f_bavail > system.f_blocks / 8))
        };
        assert_ne!(room(), Some(false));
        let disk = File::open("/proc/self/stat").unwrap();
        assert!(has_room(&disk));
    }

    #[test]
    fn nobody_reading_is_no_accident() {
        let (read, write) = pipe_with(PipeFlags::NONBLOCK | PipeFlags::CLOEXEC).unwrap();
        drop(read);
        // Test programs ignore SIGPIPE, as the supervisor does.
        let mut input = Input::new(write, b"abc".to_vec());
        input.write();
        assert!(input.fd().is_none());
    }
}
