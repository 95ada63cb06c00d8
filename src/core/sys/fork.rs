//! `fork(2)` for a process that has one thread and keeps it that way (spec/executor.md 1).

#![allow(unsafe_code, reason = "fork(2) and _exit(2) have no safe wrapper")]

use std::io;

/// Which of the two processes this is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Side {
    /// With the pid of the child.
    Parent(i32),
    Child,
}

/// Splits the process. The child is a whole process with everything the parent had; it must end with [`leave`].
///
/// # Errors
/// No process or memory is left, or there is a second thread: the child could then wait for ever for a lock that nobody holds.
pub fn fork() -> io::Result<Side> {
    if threads().is_some_and(|n| n != 1) {
        return Err(io::Error::other("there is more than one thread"));
    }
    // SAFETY: there is one thread, so that no lock is held and no structure half changed by another; both sides go on as they are.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Side::Child),
        pid => Ok(Side::Parent(pid)),
    }
}

/// Ends this process at once: no destructors, no buffers flushed that the parent has as well.
pub fn leave(code: i32) -> ! {
    // SAFETY: the call takes a number and does not return.
    unsafe { libc::_exit(code) }
}

/// `None` without `/proc`.
fn threads() -> Option<usize> {
    // The link count of the directory is the number of its entries and itself, its parent.
    let links = rustix::fs::stat("/proc/self/task").ok()?.st_nlink;
    usize::try_from(links).ok()?.checked_sub(2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_with_threads_is_not_split() {
        // The test harness itself has at least two.
        assert!(threads().unwrap() > 1);
        assert!(fork().is_err());
    }
}
