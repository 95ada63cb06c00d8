//! The socket: passed by a service manager, or made by us so that nobody ever meets it half made (spec/executor.md 2.4, 3.1).

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, Uid};
use rustix::io::Errno;
use rustix::net::sockopt::{socket_acceptconn, socket_domain, socket_type};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::applets::Context;
use crate::core::sys;

/// `sun_path` with its NUL.
const MAX_PATH: usize = 108;
/// More than runs at the same time: the agent does not wait when the queue is full, it fails.
const BACKLOG: i32 = 128;

/// A socket that listens.
#[derive(Debug)]
pub(super) struct Bound {
    pub(super) fd: OwnedFd,
    /// `None`: it was passed to us and is not ours to remove.
    pub(super) place: Option<Place>,
}

/// Our socket in the file system.
#[derive(Debug)]
pub(super) struct Place {
    path: PathBuf,
    inode: (u64, u64),
}

impl Place {
    /// Removes the socket, unless it is another one by now.
    pub(super) fn remove(&self) {
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

/// Whether a service manager says that descriptor 3 is a socket for us.
pub(super) fn is_passed(context: &Context) -> bool {
    let pid = std::process::id().to_string();
    context.var("LISTEN_PID") == Some(pid.as_str()) && context.var("LISTEN_FDS") == Some("1")
}

/// Takes the socket that was passed.
///
/// # Errors
/// It is not a listening unix stream socket.
pub(super) fn passed() -> Result<Bound, String> {
    let what = "the descriptor passed by LISTEN_FDS";
    let fd = sys::inherited::passed().map_err(|e| format!("{what} cannot be used: {e}"))?;
    let fits = socket_domain(&fd) == Ok(AddressFamily::UNIX)
        && socket_type(&fd) == Ok(SocketType::STREAM)
        && socket_acceptconn(&fd) == Ok(true);
    if !fits {
        return Err(format!("{what} is not a listening unix stream socket"));
    }
    rustix::io::ioctl_fionbio(&fd, true).map_err(|e| format!("{what} cannot be used: {e}"))?;
    Ok(Bound { fd, place: None })
}

/// Makes the socket under another name, gives it to its user, and puts it in its place when it listens.
///
/// # Errors
/// A sentence with the path.
pub(super) fn bind(path: &Path, uid: u32, gid: u32) -> Result<Bound, String> {
    if path.as_os_str().len() >= MAX_PATH {
        return Err(format!("socket path too long: '{}'", path.display()));
    }
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(format!(
            "'{}' cannot be the path of a socket",
            path.display()
        ));
    };
    // From within, because the other name may be longer than an address can be.
    let bound = std::env::set_current_dir(directory)
        .map_err(|e| {
            format!(
                "no directory for the socket: '{}': {e}",
                directory.display()
            )
        })
        .and_then(|()| {
            bind_here(Path::new(name), uid, gid).map_err(|(step, error)| {
                format!("cannot {step} the socket '{}': {error}", path.display())
            })
        });
    let back = std::env::set_current_dir("/").map_err(|e| format!("cannot enter '/': {e}"));
    let (fd, inode) = bound?;
    back?;
    Ok(Bound {
        fd,
        place: Some(Place {
            path: path.to_owned(),
            inode,
        }),
    })
}

type Failed = (&'static str, io::Error);

fn bind_here(name: &Path, uid: u32, gid: u32) -> Result<(OwnedFd, (u64, u64)), Failed> {
    let step = |what: &'static str| move |e: Errno| (what, io::Error::from(e));
    check_directory()?;
    check_target(name)?;
    let other = PathBuf::from(format!(".ctrl-exec-exec.{}", std::process::id()));
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
        let (user, group) = (Uid::from_raw(uid), Gid::from_raw(gid));
        let nofollow = AtFlags::SYMLINK_NOFOLLOW;
        rustix::fs::chownat(CWD, &other, Some(user), Some(group), nofollow)
            .map_err(step("chown"))?;
        let mode = Mode::RUSR | Mode::WUSR;
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
