//! The loopback interface of a network namespace that was just made.

#![allow(
    unsafe_code,
    reason = "SIOCSIFFLAGS has no safe wrapper in std or rustix"
)]

use std::os::fd::AsRawFd as _;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

use super::process::last_errno;

/// Brings `lo` up; the kernel then gives it 127.0.0.1 and ::1 by itself. System calls only.
///
/// # Errors
/// No socket, no such interface, or no right to do it.
pub fn bring_up() -> Result<(), Errno> {
    let socket = socket_with(
        AddressFamily::INET,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    // SAFETY: ifreq is a plain C struct for which all zeros is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(*b"lo") {
        *to = libc::c_char::try_from(from).map_err(|_| Errno::INVAL)?;
    }
    request.ifr_ifru.ifru_flags =
        libc::c_short::try_from(libc::IFF_UP | libc::IFF_RUNNING).map_err(|_| Errno::INVAL)?;
    // SAFETY: the request is an initialised ifreq that the kernel only reads.
    let done = unsafe {
        libc::ioctl(
            socket.as_raw_fd(),
            libc::SIOCSIFFLAGS as _,
            &raw const request,
        )
    };
    if done == 0 { Ok(()) } else { Err(last_errno()) }
}
