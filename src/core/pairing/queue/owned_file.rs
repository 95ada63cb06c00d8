//! Reading a file of the queue, judging it by what is open.

use std::fs::OpenOptions;
use std::io::{self, Read as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use super::QueueError;
use crate::core::pairing::MAX_BODY;

/// Largest file of the queue: a body's worth of JSON, escaped at worst.
const MAX_FILE: u64 = 8 * MAX_BODY as u64;

pub(super) fn own_uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// Reads a file that only root or we ourselves can have written; `None` when it is not there.
pub(super) fn read_owned(path: &Path) -> Result<Option<Vec<u8>>, QueueError> {
    let failed = |source| QueueError::Io {
        path: path.to_owned(),
        source,
    };
    let untrusted = |reason| QueueError::Untrusted {
        path: path.to_owned(),
        reason,
    };
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path);
    let file = match file {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(failed)?,
    };
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Err(untrusted("it is not a plain file"));
    }
    if metadata.uid() != 0 && metadata.uid() != own_uid() {
        return Err(untrusted("it belongs to another user"));
    }
    if metadata.mode() & 0o022 != 0 {
        return Err(untrusted("others can write to it"));
    }
    let mut bytes = Vec::new();
    file.take(MAX_FILE + 1)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(untrusted("it is too large"));
    }
    Ok(Some(bytes))
}
