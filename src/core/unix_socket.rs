//! A listening unix socket in the file system, made so that nobody ever meets it half made (spec/executor.md 2.4, 3.1).

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// `sun_path` with its NUL.
const MAX_PATH: usize = 108;
/// A client does not wait when the queue is full, it fails.
const BACKLOG: i32 = 128;

/// Who may connect.
#[derive(Clone, Copy, Debug)]
pub struct Access {
    /// uid and gid; `None` leaves it with us.
    pub owner: Option<(u32, u32)>,
    /// Permission bits.
    pub mode: u32,
}

/// Our socket in the file system.
#[derive(Debug)]
pub struct Place {
    path: PathBuf,
    inode: (u64, u64),
}

impl Place {
    /// Removes the socket, unless it is another one by now.
    pub fn remove(&self) {
        if inode(&self.path) == Some(self.inode) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn inode(path: &Path) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt as _;
    let meta = std::fs::symlink_metadata(path).ok()?;
    Some((meta.dev(), meta.ino()))
}

/// Makes the socket under another name, gives it to whom it is for, and puts it in its place when it listens; a stale one is replaced.
/// For the start of a program: for a moment the working directory and the umask of the whole process are others.
///
/// # Errors
/// A sentence with the path.
pub fn bind(path: &Path, access: Access) -> Result<(OwnedFd, Place), String> {
    if path.as_os_str().len() >= MAX_PATH {
        return Err(format!("socket path too long: '{}'", path.display()));
    }
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(format!(
            "'{}' cannot be the path of a socket",
            path.display()
        ));
    };
    let here = rustix::fs::open(".", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| format!("cannot open the working directory: {e}"))?;
    // From within, because the other name may be longer than an address can be.
    let bound = std::env::set_current_dir(directory)
        .map_err(|e| {
            format!(
                "no directory for the socket: '{}': {e}",
                directory.display()
            )
        })
        .and_then(|()| {
            bind_here(Path::new(name), access).map_err(|(step, error)| {
                format!("cannot {step} the socket '{}': {error}", path.display())
            })
        });
    let back = rustix::process::fchdir(here)
        .map_err(|e| format!("cannot go back to the working directory: {e}"));
    let (fd, inode) = bound?;
    back?;
    let place = Place {
        path: path.to_owned(),
        inode,
    };
    Ok((fd, place))
}

type Failed = (&'static str, io::Error);

fn bind_here(name: &Path, access: Access) -> Result<(OwnedFd, (u64, u64)), Failed> {
    let step = |what: &'static str| move |e: Errno| (what, io::Error::from(e));
    check_directory()?;
    check_target(name)?;
    let other = PathBuf::from(format!(".ctrl-exec.{}", std::process::id()));
    check_target(&other)?;
    let _ = rustix::fs::unlink(&other);
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let fd = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
        .map_err(step("make"))?;
    let address = SocketAddrUnix::new(&other).map_err(step("name"))?;
    let before = rustix::process::umask(Mode::from_raw_mode(0o177));
    let bound = rustix::net::bind(&fd, &address);
    rustix::process::umask(before);
    bound.map_err(step("bind"))?;
    let placed = || {
        if let Some((uid, gid)) = access.owner {
            let (user, group) = (Uid::from_raw(uid), Gid::from_raw(gid));
            let nofollow = AtFlags::SYMLINK_NOFOLLOW;
            rustix::fs::chownat(CWD, &other, Some(user), Some(group), nofollow)
                .map_err(step("chown"))?;
        }
        let mode = Mode::from_raw_mode(access.mode);
        rustix::fs::chmodat(CWD, &other, mode, AtFlags::empty()).map_err(step("chmod"))?;
        rustix::net::listen(&fd, BACKLOG).map_err(step("listen on"))?;
        rustix::fs::rename(&other, name).map_err(step("put into place"))
    };
    if let Err(failed) = placed() {
        let _ = rustix::fs::unlink(&other);
        return Err(failed);
    }
    let inode = inode(name).ok_or_else(|| ("find", io::ErrorKind::NotFound.into()))?;
    Ok((fd, inode))
}

/// Nothing but an old socket is replaced.
fn check_target(name: &Path) -> Result<(), Failed> {
    match rustix::fs::lstat(name) {
        Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Socket => Ok(()),
        Ok(_) => Err((
            "replace",
            io::Error::other("something else than a socket is there; move it away"),
        )),
        Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(("look at", error.into())),
    }
}

fn check_directory() -> Result<(), Failed> {
    let stat = rustix::fs::stat(".").map_err(|e| ("look at", e.into()))?;
    let mode = stat.st_mode & 0o7777;
    if mode & 0o002 != 0 && mode & 0o1000 == 0 {
        let why = "everybody may write to its directory and so replace it (chmod o-w)";
        return Err(("make", io::Error::other(why)));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_stale_socket_is_replaced_anything_else_is_not_and_only_ours_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let access = Access {
            owner: None,
            mode: 0o660,
        };
        let (first, old) = bind(&path, access).unwrap();
        drop(first);
        assert!(UnixStream::connect(&path).is_err());
        let (_fd, place) = bind(&path, access).unwrap();
        assert!(UnixStream::connect(&path).is_ok());
        let mode = path.symlink_metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o660);
        old.remove();
        assert!(path.exists(), "a socket of somebody else was removed");
        place.remove();
        assert!(!path.exists());
        std::fs::write(&path, "x").unwrap();
        assert!(bind(&path, access).unwrap_err().contains("something else"));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
