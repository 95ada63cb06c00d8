//! Who the programs of a container are. Root starts them, and only the executor and the maintenance stay root.
//!
//! An image without `/etc/passwd` has built-in accounts (`core::sys::users`). One of a distribution gets the lines that it lacks, as a
//! package would have added them.

use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, lchown};
use std::path::Path;

use crate::applets::{AppError, Context};
use crate::core::sys::users::{self, Database};

/// How deep the state of a service is; `runs/<dispatcher>/<run>` is three.
const DEPTH: u8 = 4;
/// Ours is the first free number from here.
const FIRST: u32 = 9443;
const LAST: u32 = 9943;

/// The account of a service, as uid and gid; `None`: we are not root, or below a root prefix, and everything runs as whoever we are.
///
/// # Errors
/// `/etc/passwd` lacks it and cannot be changed: nothing is run as root that should not be.
pub(super) fn service(context: &Context, name: &str) -> Result<Option<(u32, u32)>, AppError> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    if let Some(found) = users::find_user(name) {
        return Ok(Some(found));
    }
    if context.paths.root() != Path::new("/") {
        return Ok(None);
    }
    add(name).map(Some).map_err(|e| {
        AppError::config(format!(
            "container: this image has no user '{name}', and none can be added to /etc/passwd ({e}): add it when the image is made"
        ))
    })
}

/// Group first: a user whose group is not there yet would be half an account.
fn add(name: &str) -> io::Result<(u32, u32)> {
    let accounts = Database::load()?;
    let free = |id: &u32| accounts.by_uid(*id).is_none() && accounts.group_name(*id).is_none();
    let id = (FIRST..LAST)
        .find(free)
        .ok_or_else(|| io::Error::other("no number is free"))?;
    let gid = match accounts.group(name) {
        Some(gid) => gid,
        None => {
            append("/etc/group", &format!("{name}:x:{id}:\n"))?;
            id
        }
    };
    let line = format!("{name}:x:{id}:{gid}:ctrl-exec service:/nonexistent:/sbin/nologin\n");
    append("/etc/passwd", &line)?;
    Ok((id, gid))
}

fn append(path: &str, line: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().append(true).create(true).open(path)?;
    // In one piece, and not at the end of somebody's unfinished line.
    let whole = match std::fs::read(path)?.last() {
        Some(b'\n') | None => line.to_owned(),
        Some(_) => format!("\n{line}"),
    };
    file.write_all(whole.as_bytes())
}

/// Gives a file to the group of a service, if it is root's alone: on a volume of the original's images everything is.
pub(super) fn share(path: &Path, gid: u32) {
    if let Ok(meta) = std::fs::symlink_metadata(path)
        && !meta.is_symlink()
        && meta.uid() == 0
        && meta.gid() == 0
    {
        let _ = lchown(path, None, Some(gid));
    }
}

/// Gives a file of root's to a service.
pub(super) fn give(path: &Path, (uid, gid): (u32, u32)) {
    if let Ok(meta) = std::fs::symlink_metadata(path)
        && !meta.is_symlink()
        && meta.uid() == 0
    {
        let _ = lchown(path, Some(uid), Some(gid));
    }
}

/// The same for a directory with all that is in it. Only as long as it is root's: afterwards somebody else could put something there that
/// is not theirs.
pub(super) fn give_tree(dir: &Path, owner: (u32, u32)) {
    if std::fs::symlink_metadata(dir).is_ok_and(|meta| meta.is_dir() && meta.uid() == 0) {
        give_below(dir, owner, DEPTH);
        // The directory last: until then nobody else can change it.
        give(dir, owner);
    }
}

fn give_below(dir: &Path, owner: (u32, u32), depth: u8) {
    let Some(depth) = depth.checked_sub(1) else {
        return;
    };
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            give_below(&path, owner, depth);
        }
        give(&path, owner);
    }
}
