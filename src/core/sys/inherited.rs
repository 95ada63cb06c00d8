//! Descriptors that whoever started us left open.

use std::io;

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
