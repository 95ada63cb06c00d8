//! Signals as something to read: blocked, and taken from a descriptor (`signalfd(2)`).

#![allow(unsafe_code, reason = "signal masks and signalfd(2) have no safe wrapper in std or rustix")]

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd, BorrowedFd, FromRawFd as _, OwnedFd};

/// The signals of a set, blocked since [`SignalFd::new`].
#[derive(Debug)]
pub struct SignalFd {
    file: File,
}

impl SignalFd {
    /// Blocks these signals in this thread and makes them readable. Children inherit the mask: they call [`restore`].
    ///
    /// # Errors
    /// The kernel has no descriptor left, or no `signalfd`.
    pub fn new(signals: &[i32]) -> io::Result<Self> {
        let set = set_of(signals);
        mask(libc::SIG_BLOCK, &set)?;
        // SAFETY: -1 asks for a new descriptor; the set is initialised and only read.
        let fd = unsafe { libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just made this descriptor; nobody else knows it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self {
            file: File::from(fd),
        })
    }

    /// The number of the next signal; `None` when none is pending. Several of one kind may have become one.
    pub fn next(&self) -> Option<i32> {
        let mut record = [0; size_of::<libc::signalfd_siginfo>()];
        let read = (&self.file).read(&mut record).ok()?;
        // The record begins with the number, as u32 (signalfd(2)).
        let number = record.first_chunk().filter(|_| read == record.len())?;
        i32::try_from(u32::from_ne_bytes(*number)).ok()
    }
}

impl AsFd for SignalFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Unblocks all signals of this thread.
///
/// # Errors
/// Never for a valid call; the kernel's answer is handed on.
pub fn restore() -> io::Result<()> {
    mask(libc::SIG_SETMASK, &set_of(&[]))
}

/// A closed pipe or connection shall be an error, not a death.
pub fn ignore_broken_pipes() {
    // SAFETY: SIG_IGN is no handler of ours; nothing runs when the signal comes.
    unsafe {
        libc::signal(libc::SIGPIPE, libc::SIG_IGN);
    }
}

/// A signal that whoever started us had set to be ignored works again. (An ignored SIGCHLD would take away our children's status.)
pub fn set_default(signal: i32) {
    // SAFETY: SIG_DFL is no handler of ours.
    unsafe {
        libc::signal(signal, libc::SIG_DFL);
    }
}

fn set_of(signals: &[i32]) -> libc::sigset_t {
    // SAFETY: sigset_t is plain data for which zeros are a value; sigemptyset makes it the empty set on every platform.
    let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: the set is ours and writable.
    unsafe {
        libc::sigemptyset(&mut set);
    }
    for &signal in signals {
        // SAFETY: as above; a number that is no signal is refused by the call and leaves the set as it is.
        unsafe {
            libc::sigaddset(&mut set, signal);
        }
    }
    set
}

fn mask(how: i32, set: &libc::sigset_t) -> io::Result<()> {
    // SAFETY: the set is initialised and only read; the old mask is not asked for.
    match unsafe { libc::pthread_sigmask(how, set, std::ptr::null_mut()) } {
        0 => Ok(()),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blocked_signal_is_read() {
        std::thread::spawn(|| {
            let signals = SignalFd::new(&[libc::SIGWINCH]).unwrap();
            assert_eq!(signals.next(), None);
            // SAFETY: sends a signal to this thread, which has it blocked.
            unsafe {
                libc::pthread_kill(libc::pthread_self(), libc::SIGWINCH);
            }
            assert_eq!(signals.next(), Some(libc::SIGWINCH));
            assert_eq!(signals.next(), None);
            restore().unwrap();
        })
        .join()
        .unwrap();
    }
}
