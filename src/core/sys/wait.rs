//! What a process that watches others needs: signals as a descriptor, and the end of a child with what it used.

use std::io;
use std::os::fd::{AsFd, FromRawFd as _, OwnedFd};
use std::time::Duration;

use rustix::process::{Pid, Signal};

use super::signals;

/// A child that has ended and was taken off the process table.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Reaped {
    pub pid: Pid,
    /// The raw status of `wait(2)`.
    pub status: i32,
    /// User and system time of it and of all that it waited for.
    pub cpu: Duration,
    /// Largest resident size of any of them, bytes.
    pub memory_peak: u64,
}

/// Gives every signal its default action, ignores SIGPIPE, and blocks exactly those `taken`, which are then read from the descriptor
/// (close-on-exec, non-blocking). For a process with one thread: masks belong to threads.
///
/// # Errors
/// No descriptor could be made.
pub fn take_over_signals(taken: &[Signal]) -> io::Result<OwnedFd> {
    // SAFETY: an all-zero sigset_t is a valid value to hand to sigemptyset, which then initialises it.
    #[allow(unsafe_code)]
    let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: `set` is a live sigset_t of our own; signal numbers come from `Signal` and are valid.
    #[allow(unsafe_code)]
    unsafe {
        libc::sigemptyset(&mut set);
        for signal in taken {
            libc::sigaddset(&mut set, signal.as_raw());
        }
    }
    // SAFETY: `set` is initialised; the descriptor is new and owned by nobody else.
    #[allow(unsafe_code)]
    let fd = unsafe {
        // Blocked before the actions change: nothing that arrives now is lost or ends us.
        if libc::sigprocmask(libc::SIG_SETMASK, &set, std::ptr::null_mut()) != 0 {
            return Err(io::Error::last_os_error());
        }
        let fd = libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        OwnedFd::from_raw_fd(fd)
    };
    signals::settle_dispositions();
    Ok(fd)
}

/// The next signal that waits in a descriptor of [`take_over_signals`].
pub fn next_signal(fd: impl AsFd) -> Option<Signal> {
    // signalfd_siginfo is 128 bytes and begins with the number of the signal.
    let mut record = [0_u8; 128];
    match rustix::io::read(fd, &mut record) {
        Ok(128) => {
            let number = i32::from_ne_bytes([record[0], record[1], record[2], record[3]]);
            Signal::from_named_raw(number)
        }
        _ => None,
    }
}

/// Takes a child that has ended off the process table, without waiting. `None`: it has not ended.
///
/// # Errors
/// It is no child of ours (any more).
pub fn reap(pid: Pid) -> io::Result<Option<Reaped>> {
    let mut status = 0;
    // SAFETY: an all-zero rusage is a valid value of that plain struct.
    #[allow(unsafe_code)]
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are to live values of the right types.
    #[allow(unsafe_code)]
    let done = unsafe {
        libc::wait4(
            pid.as_raw_nonzero().get(),
            &mut status,
            libc::WNOHANG,
            &mut usage,
        )
    };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok((done != 0).then(|| Reaped {
        pid,
        status,
        cpu: duration(usage.ru_utime) + duration(usage.ru_stime),
        memory_peak: u64::try_from(usage.ru_maxrss).unwrap_or(0) * 1024,
    }))
}

fn duration(time: libc::timeval) -> Duration {
    Duration::from_secs(u64::try_from(time.tv_sec).unwrap_or(0))
        + Duration::from_micros(u64::try_from(time.tv_usec).unwrap_or(0))
}

/// Runs `body` in a process of its own that has one thread, as supervisors have, and fails with its failure. For tests: a test program
/// has many threads and many children.
#[cfg(test)]
#[track_caller]
pub fn in_own_process(body: impl FnOnce()) {
    let (mut heard, told) = io::pipe().unwrap();
    // SAFETY: the C library makes its allocator usable in the child of a process with threads; the child takes no lock of ours and ends
    // by _exit below.
    #[allow(unsafe_code)]
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0);
    if pid == 0 {
        drop(heard);
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body));
        if let Err(panic) = &result {
            let text = panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| panic.downcast_ref::<&str>().copied());
            let _ = io::Write::write_all(&mut &told, text.unwrap_or("?").as_bytes());
        }
        // SAFETY: ends this process without the destructors of a copy that is not ours.
        #[allow(unsafe_code)]
        unsafe {
            libc::_exit(i32::from(result.is_err()))
        }
    }
    drop(told);
    let pid = Pid::from_raw(pid).unwrap();
    let end = std::time::Instant::now() + Duration::from_secs(60);
    let reaped = loop {
        if let Some(reaped) = reap(pid).unwrap() {
            break reaped;
        }
        if std::time::Instant::now() >= end {
            let _ = rustix::process::kill_process(pid, Signal::KILL);
            panic!("the process of a test did not end");
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    if reaped.status != 0 {
        let mut text = String::new();
        let _ = io::Read::read_to_string(&mut heard, &mut text);
        panic!("status {:#x}: {text}", reaped.status);
    }
}

/// Blocks no signal any more. For tests whose children are not made by the sandbox, which does this.
#[cfg(test)]
pub fn unblock_signals() {
    // SAFETY: `set` is a live sigset_t of our own that sigemptyset initialises; all-zero is a valid value to begin with.
    #[allow(unsafe_code)]
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigprocmask(libc::SIG_SETMASK, &set, std::ptr::null_mut());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[allow(clippy::zombie_processes, reason = "reaped by what is tested")]
    fn a_child_is_reaped_with_its_status_and_what_it_used() {
        let child = std::process::Command::new("/bin/sh")
            .args([
                "-c",
                "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; exit 7",
            ])
            .spawn()
            .unwrap();
        let pid = Pid::from_child(&child);
        let end = std::time::Instant::now() + Duration::from_secs(20);
        let reaped = loop {
            if let Some(reaped) = reap(pid).unwrap() {
                break reaped;
            }
            assert!(std::time::Instant::now() < end);
            std::thread::sleep(Duration::from_millis(5));
        };
        assert_eq!(libc::WEXITSTATUS(reaped.status), 7);
        assert!(reaped.cpu > Duration::ZERO);
        assert!(reaped.memory_peak > 100_000);
        assert!(reap(pid).is_err());
    }
}
