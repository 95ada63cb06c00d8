//! Descriptors that whoever started us left open.

use std::io;
use std::os::fd::{FromRawFd as _, OwnedFd};

/// Marks every descriptor from 3 upwards close-on-exec, so that none of them reaches a script (spec/agent.md 11.2).
///
/// To be called at the start of a daemon, before it opens anything that a child is meant to inherit (we have no such thing).
///
/// # Errors
/// The kernel knows neither way of doing it: no `close_range` and no `/proc`.
pub fn close_on_exec() -> io::Result<()> {
    const FIRST: libc::c_uint = 3;
    const CLOSE_RANGE_CLOEXEC: libc::c_uint = 4;
    // SAFETY: the call takes three plain numbers and changes nothing but the close-on-exec flag of descriptors.
    #[allow(unsafe_code)]
    let done =
        unsafe { libc::syscall(libc::SYS_close_range, FIRST, u32::MAX, CLOSE_RANGE_CLOEXEC) };
    if done == 0 {
        return Ok(());
    }
    // Before Linux 5.11, or in a container that does not know the call.
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let number = entry?.file_name().to_str().and_then(|n| n.parse().ok());
        if let Some(fd @ 3..) = number {
            // SAFETY: sets a flag on a descriptor number; a number that is not open makes the call fail, which is as good.
            #[allow(unsafe_code)]
            unsafe {
                libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC);
            }
        }
    }
    Ok(())
}

/// Closes every descriptor from `first` upwards: a daemon that opens nothing before (spec/executor.md 15.2).
///
/// # Errors
/// The kernel knows neither way of doing it: no `close_range` and no `/proc`.
pub fn close_from(first: i32) -> io::Result<()> {
    let from = libc::c_uint::try_from(first).map_err(io::Error::other)?;
    // SAFETY: closes descriptors that nothing in this process owns yet; the caller has just been started.
    #[allow(unsafe_code)]
    let done = unsafe { libc::syscall(libc::SYS_close_range, from, u32::MAX, 0) };
    if done == 0 {
        return Ok(());
    }
    // The list first: reading the directory needs a descriptor itself.
    let mut open = Vec::new();
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let number = entry?.file_name().to_str().and_then(|n| n.parse().ok());
        open.extend(number.filter(|&fd: &i32| fd >= first));
    }
    for fd in open {
        // SAFETY: as above; the one that read the directory is closed already and the call fails, which is as good.
        #[allow(unsafe_code)]
        unsafe {
            libc::close(fd);
        }
    }
    Ok(())
}

/// The descriptors that a service manager passes (`LISTEN_FDS`), from now on ours and closed by exec.
///
/// # Errors
/// One of them is not open.
pub fn passed(count: u16) -> io::Result<Vec<OwnedFd>> {
    const FIRST: i32 = 3;
    let numbers = FIRST..FIRST + i32::from(count);
    for number in numbers.clone() {
        // SAFETY: asks for the flags of a number; one that is not open makes the call fail.
        #[allow(unsafe_code)]
        if unsafe { libc::fcntl(number, libc::F_GETFD) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    numbers
        .map(|number| {
            // SAFETY: it is open, and by the convention of LISTEN_FDS it is ours to own; the caller asks once.
            #[allow(unsafe_code)]
            let fd = unsafe { OwnedFd::from_raw_fd(number) };
            rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::CLOEXEC)?;
            Ok(fd)
        })
        .collect()
}

/// Empties the environment, for us and for what we start. Whoever needs a variable has read it before.
pub fn clear_environment() {
    // SAFETY: called at the start of a process with one thread, before anything keeps a pointer into the environment.
    #[allow(unsafe_code)]
    unsafe {
        libc::clearenv();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd as _;

    #[test]
    fn an_inherited_descriptor_is_marked() {
        let file = std::fs::File::open("/dev/null").unwrap();
        rustix::io::fcntl_setfd(file.as_fd(), rustix::io::FdFlags::empty()).unwrap();
        close_on_exec().unwrap();
        let flags = rustix::io::fcntl_getfd(file.as_fd()).unwrap();
        assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
    }
}
