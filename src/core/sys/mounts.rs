//! Mount calls that rustix lacks.

use std::ffi::CStr;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use rustix::io::Errno;

/// `MOUNT_ATTR_RDONLY`
pub const RDONLY: u64 = 0x1;
/// `MOUNT_ATTR_NOSUID`
pub const NOSUID: u64 = 0x2;

/// `struct mount_attr` (linux/mount.h).
#[repr(C)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    userns_fd: u64,
}

/// `mount_setattr(2)` (Linux 5.12): sets and clears [`RDONLY`] and [`NOSUID`] of the mount at `path`, and with `recursive` of all below it.
/// An empty path means `dir` itself. Allocates nothing.
///
/// # Errors
/// `ENOSYS` on older kernels, `EINVAL` when there is no mount point at `path`, `EBUSY` when somebody has a file open for writing.
pub fn set_attributes(
    dir: BorrowedFd<'_>,
    path: &CStr,
    recursive: bool,
    set: u64,
    clear: u64,
) -> Result<(), Errno> {
    let attr = MountAttr {
        set,
        clear,
        propagation: 0,
        userns_fd: 0,
    };
    let mut flags = libc::AT_SYMLINK_NOFOLLOW;
    if path.is_empty() {
        flags |= libc::AT_EMPTY_PATH;
    }
    if recursive {
        flags |= libc::AT_RECURSIVE;
    }
    // SAFETY: the path is a C string and the structure has the size that is passed; both live over the call, which only reads them.
    #[allow(unsafe_code)]
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            dir.as_raw_fd(),
            path.as_ptr(),
            flags,
            &raw const attr,
            size_of::<MountAttr>(),
        )
    };
    if done == 0 { Ok(()) } else { Err(last_error()) }
}

/// The errno of the call that has just failed.
pub(super) fn last_error() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

/// Gives the calling thread, with its root and working directory, a mount namespace of its own: a copy of the one that it is in. Allocates nothing.
///
/// # Errors
/// Not allowed, or no memory.
pub fn own_namespace() -> Result<(), Errno> {
    // SAFETY: the flag concerns mounts, root and working directory; descriptors and memory stay as they are.
    #[allow(unsafe_code)]
    unsafe {
        rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS)
    }
}

/// Gives the calling thread a mount namespace of its own from which nothing reaches the host, so that a test can mount as it likes.
#[cfg(test)]
pub fn own_namespace_for_test() {
    own_namespace().unwrap();
    rustix::mount::mount_change(
        c"/",
        rustix::mount::MountPropagationFlags::PRIVATE | rustix::mount::MountPropagationFlags::REC,
    )
    .unwrap();
}
