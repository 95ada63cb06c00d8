//! Who is at the other end of a unix socket, as the kernel knows it.

#![allow(
    unsafe_code,
    reason = "SO_PEERPIDFD is not in rustix, and its SO_PEERCRED cannot express the pid 0 of a process that we cannot see"
)]

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd};

/// Credentials at the time of `connect`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Credentials {
    /// 0: a process outside our PID namespace.
    pub pid: i32,
    pub uid: u32,
}

/// `SO_PEERCRED`.
///
/// # Errors
/// Not a connected unix socket.
pub fn credentials(socket: impl AsFd) -> io::Result<Credentials> {
    // SAFETY: ucred is three integers: every answer of the kernel is a value.
    let answer: libc::ucred = unsafe { option(socket, libc::SO_PEERCRED) }?;
    Ok(Credentials {
        pid: answer.pid,
        uid: answer.uid,
    })
}

/// `SO_PEERPIDFD` (Linux 6.5): a handle that keeps meaning the same process.
///
/// # Errors
/// An older kernel, or the process has been reaped.
pub fn pidfd(socket: impl AsFd) -> io::Result<OwnedFd> {
    const SO_PEERPIDFD: libc::c_int = 77;
    // SAFETY: the answer is an integer.
    let fd: libc::c_int = unsafe { option(socket, SO_PEERPIDFD) }?;
    if fd < 0 {
        return Err(io::Error::from_raw_os_error(libc::ESRCH));
    }
    // SAFETY: the kernel has just made this descriptor for us; nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// # Safety
/// Every bit pattern must be a value of `T`.
unsafe fn option<T>(socket: impl AsFd, name: libc::c_int) -> io::Result<T> {
    let mut value = MaybeUninit::<T>::zeroed();
    let size = size_of::<T>();
    let mut length = libc::socklen_t::try_from(size).map_err(io::Error::other)?;
    // SAFETY: the descriptor is open for the call; value is writable for length bytes.
    let status = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            name,
            value.as_mut_ptr().cast(),
            &mut length,
        )
    };
    if status != 0 {
        return Err(io::Error::last_os_error());
    }
    if usize::try_from(length) != Ok(size) {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    // SAFETY: it was zeroed and then written by the kernel; the caller vouches that any bits are a T.
    Ok(unsafe { value.assume_init() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    #[test]
    fn we_are_our_own_peer() {
        let (one, _other) = UnixStream::pair().unwrap();
        let peer = credentials(&one).unwrap();
        assert_eq!(peer.uid, rustix::process::getuid().as_raw());
        assert_eq!(u32::try_from(peer.pid), Ok(std::process::id()));
        if let Ok(fd) = pidfd(&one) {
            let path = format!("/proc/self/fdinfo/{}", fd.as_raw_fd());
            let info = std::fs::read_to_string(path).unwrap();
            assert!(info.contains("NSpid:") && info.contains("Pid:"), "{info}");
        }
    }
}
