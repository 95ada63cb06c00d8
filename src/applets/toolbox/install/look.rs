//! Looking at one thing: what lies at a path, whose it is, what is in it.

use std::fs::{self, Metadata};
use std::io::{self, Read as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use super::table::{self, Who};
use super::world::{Failure, World};
use crate::core::sys::users::Database;
use crate::core::types;

/// Largest program that is compared, in bytes.
const PROGRAM: u64 = 256 * 1024 * 1024;
/// Largest text that is read.
const TEXT: u64 = 1024 * 1024;

#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) enum What {
    #[default]
    Nothing,
    /// With the digest, where the content counts.
    File(Option<[u8; 32]>),
    Folder {
        empty: bool,
    },
    Link(PathBuf),
    Other,
}

#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Entry {
    pub(super) what: What,
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// The twelve bits of rights.
    pub(super) mode: u32,
}

/// The regular files directly in a directory that `which` is true of, as paths of the system.
///
/// # Errors
/// The directory is there and cannot be read.
pub(super) fn files_inside(
    world: &World,
    inside: &Path,
    which: impl Fn(&Entry) -> bool,
) -> Result<Vec<PathBuf>, Failure> {
    let dir = world.at(inside)?;
    let mut found = Vec::new();
    if !matches!(entry(&dir, false)?.what, What::Folder { .. }) {
        return Ok(found);
    }
    for file in fs::read_dir(&dir)
        .map_err(Failure::io("read", &dir))?
        .flatten()
    {
        let entry = entry(&file.path(), false)?;
        if matches!(entry.what, What::File(_)) && which(&entry) {
            found.push(inside.join(file.file_name()));
        }
    }
    Ok(found)
}

/// What lies at a real path. Links are not followed.
///
/// # Errors
/// Something is there and cannot be looked at.
pub(super) fn entry(path: &Path, content: bool) -> Result<Entry, Failure> {
    let meta = match fs::symlink_metadata(path) {
        Ok(meta) => meta,
        Err(e)
            if matches!(
                e.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            return Ok(Entry::default());
        }
        Err(e) => return Err(Failure::io("look at", path)(e)),
    };
    let what = if meta.is_file() {
        let digest = content.then(|| open(path).and_then(digest)).transpose();
        What::File(digest.map_err(Failure::io("read", path))?)
    } else if meta.is_dir() {
        let first = fs::read_dir(path)
            .map_err(Failure::io("read", path))?
            .next();
        What::Folder {
            empty: first.is_none(),
        }
    } else if meta.is_symlink() {
        What::Link(fs::read_link(path).map_err(Failure::io("read the link", path))?)
    } else {
        What::Other
    };
    Ok(Entry {
        what,
        uid: meta.uid(),
        gid: meta.gid(),
        mode: rights(&meta),
    })
}

pub(super) fn rights(meta: &Metadata) -> u32 {
    meta.mode() & 0o7777
}

/// A regular file, not a link, not anything that would block.
pub(super) fn open(path: &Path) -> io::Result<fs::File> {
    let file = fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)?;
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(io::Error::other("it is no regular file"))
    }
}

pub(super) fn digest(file: fs::File) -> io::Result<[u8; 32]> {
    let mut bytes = Vec::new();
    file.take(PROGRAM).read_to_end(&mut bytes)?;
    Ok(types::sha256(&[&bytes]))
}

/// A small file of the system; `None` where there is none.
pub(super) fn text(world: &World, path: &Path) -> Result<Option<String>, Failure> {
    let path = world.at(path)?;
    let mut bytes = Vec::new();
    match open(&path).and_then(|file| file.take(TEXT).read_to_end(&mut bytes)) {
        Ok(_) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Failure::io("read", &path)(e)),
    }
}

/// Numbers of owner and group, as they are now.
///
/// # Errors
/// An account is not there.
pub(super) fn numbers(world: &World, who: Who) -> Result<(u32, u32), Failure> {
    let passwd = world.at(Path::new("/etc/passwd"))?;
    let group = world.at(Path::new("/etc/group"))?;
    if who == table::ROOT {
        return Ok((0, 0));
    }
    let database =
        Database::load_from(&passwd, &group).map_err(Failure::io("read accounts of", &passwd))?;
    let uid = match who.user {
        "root" => Some(0),
        name => database.by_name(name).map(|account| account.uid),
    };
    let missing = |name, file: &Path| Failure::NoAccount {
        name,
        file: file.to_owned(),
    };
    Ok((
        uid.ok_or_else(|| missing(who.user, &passwd))?,
        database
            .group(who.group)
            .ok_or_else(|| missing(who.group, &group))?,
    ))
}
