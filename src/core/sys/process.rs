//! Making a process and becoming another program.
//!
//! What runs in the new process before `execve` issues system calls and nothing else: it must not allocate, lock or panic, because the
//! parent may have had other threads.

#![allow(
    unsafe_code,
    reason = "clone3(2), execve(2), close_range(2), _exit(2) have no safe wrapper in std or rustix"
)]

use std::convert::Infallible;
use std::ffi::{CStr, CString, c_char};
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::ptr;

use rustix::io::Errno;
use rustix::process::{Pid, Signal};

use super::signals;

/// Namespaces that a process can be born in, as bits of `clone(2)`.
pub mod namespace {
    pub const MOUNT: u64 = 0x0002_0000;
    pub const IPC: u64 = 0x0800_0000;
    pub const PID: u64 = 0x2000_0000;
    pub const NETWORK: u64 = 0x4000_0000;
}

/// How a process is made.
#[derive(Clone, Copy, Debug)]
pub struct Birth<'a> {
    /// Of [`namespace`].
    pub namespaces: u64,
    /// The cgroup v2 directory to be born in. Only `clone3` can do that.
    pub cgroup: Option<BorrowedFd<'a>>,
    /// Ask for a pidfd with the process.
    pub pidfd: bool,
    /// Use `clone3(2)` instead of `clone(2)`.
    pub clone3: bool,
}

/// The `struct clone_args` of linux/sched.h, version 2 (5.7).
#[repr(C, align(8))]
#[derive(Default)]
pub(super) struct CloneArgs {
    pub(super) flags: u64,
    pub(super) pidfd: u64,
    pub(super) child_tid: u64,
    pub(super) parent_tid: u64,
    pub(super) exit_signal: u64,
    pub(super) stack: u64,
    pub(super) stack_size: u64,
    pub(super) tls: u64,
    pub(super) set_tid: u64,
    pub(super) set_tid_size: u64,
    pub(super) cgroup: u64,
}

const CLONE_PIDFD: u64 = 0x0000_1000;
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Ends the process if what it runs unwinds: a copy must never go on with the work of the original.
struct NeverBack;

impl Drop for NeverBack {
    fn drop(&mut self) {
        exit_now(126);
    }
}

/// Makes a process that runs `child`. All signals are blocked in the child when it begins; in the parent they are again as they were.
///
/// The pidfd, if one was asked for and could be had, is close-on-exec.
///
/// # Errors
/// No process could be made.
pub fn spawn(
    birth: Birth<'_>,
    child: impl FnOnce() -> Infallible,
) -> io::Result<(Pid, Option<OwnedFd>)> {
    let before = signals::block_all();
    let made = clone(birth);
    if matches!(made, Ok((0, _))) {
        be(child);
    }
    signals::restore(&before);
    let (pid, pidfd) = made?;
    let pid = Pid::from_raw(pid).ok_or(Errno::SRCH)?;
    // SAFETY: the kernel made this descriptor for us alone and nobody else knows it.
    let pidfd = (pidfd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(pidfd) });
    Ok((pid, pidfd))
}

#[allow(
    unreachable_code,
    reason = "the guard is for a child that unwinds, which no type can rule out"
)]
fn be(child: impl FnOnce() -> Infallible) -> ! {
    let _never_back = NeverBack;
    match child() {}
}

/// pid and pidfd (-1: none); pid 0 in the child.
fn clone(birth: Birth<'_>) -> io::Result<(i32, RawFd)> {
    let mut pidfd: RawFd = -1;
    let pidfd_at = ptr::from_mut(&mut pidfd);
    let mut flags = birth.namespaces;
    if birth.pidfd {
        flags |= CLONE_PIDFD;
    }
    let made = if birth.clone3 {
        let mut args = CloneArgs {
            flags,
            pidfd: if birth.pidfd { pidfd_at as u64 } else { 0 },
            exit_signal: u64::from(libc::SIGCHLD.unsigned_abs()),
            ..CloneArgs::default()
        };
        if let Some(cgroup) = birth.cgroup {
            args.flags |= CLONE_INTO_CGROUP;
            args.cgroup = u64::from(cgroup.as_raw_fd().unsigned_abs());
        }
        // SAFETY: the structure is initialised and of the size given; without CLONE_VM the child has a copy of everything, so it is
        // as after fork; the kernel writes the pidfd to a place that outlives the call.
        unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<CloneArgs>()) }
    } else {
        let flags = flags | u64::from(libc::SIGCHLD.unsigned_abs());
        let flags = libc::c_ulong::try_from(flags).map_err(|_| Errno::INVAL)?;
        let null = ptr::null_mut::<libc::c_void>();
        // SAFETY: no stack and no CLONE_VM: as fork. The third argument is where the pidfd goes, on every architecture that we build for.
        unsafe { libc::syscall(libc::SYS_clone, flags, null, pidfd_at, null, null) }
    };
    if made < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok((i32::try_from(made).map_err(|_| Errno::SRCH)?, pidfd))
}

/// Ends this process at once: nothing is flushed, no destructor runs.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: _exit has no preconditions.
    unsafe { libc::_exit(code) }
}

/// Strings as `execve` takes them. The pointers stay good when the value moves: they point to the heap.
#[derive(Debug)]
pub struct Strings {
    texts: Vec<CString>,
    pointers: Vec<*const c_char>,
}

// SAFETY: the pointers go to text that the value itself owns and never changes.
unsafe impl Send for Strings {}

impl Strings {
    pub fn new(texts: Vec<CString>) -> Self {
        let pointers = texts
            .iter()
            .map(|text| text.as_ptr())
            .chain([ptr::null()])
            .collect();
        Self { texts, pointers }
    }

    pub fn texts(&self) -> &[CString] {
        &self.texts
    }
}

/// Becomes another program; returns only when that failed.
pub fn exec(path: &CStr, argv: &Strings, environment: &Strings) -> Errno {
    // SAFETY: the path ends in NUL; both lists end in a null pointer and every other entry points to text owned by the value, which
    // nothing changes after it was made.
    unsafe {
        libc::execve(
            path.as_ptr(),
            argv.pointers.as_ptr(),
            environment.pointers.as_ptr(),
        );
    }
    last_errno()
}

/// Marks every descriptor from 3 upwards close-on-exec. `highest` is only looked at where the kernel lacks `close_range`.
///
/// # Errors
/// Never where `highest` says how far to go.
pub fn close_on_exec(highest: Option<RawFd>) -> Result<(), Errno> {
    const CLOSE_RANGE_CLOEXEC: libc::c_uint = 4;
    let Some(highest) = highest else {
        return close_range(3, libc::c_uint::MAX, CLOSE_RANGE_CLOEXEC);
    };
    for fd in 3..=highest {
        // SAFETY: sets a flag on a number; one that is not open makes the call fail, which is as good.
        unsafe {
            libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC);
        }
    }
    Ok(())
}

/// Closes every descriptor but one. For a process that was just made and owns nothing but that one; `highest` as in
/// [`close_on_exec`].
///
/// # Errors
/// Never where `highest` says how far to go.
pub fn close_all_but(kept: BorrowedFd<'_>, highest: Option<RawFd>) -> Result<(), Errno> {
    let kept = kept.as_raw_fd();
    let Some(highest) = highest else {
        let number = kept.unsigned_abs();
        if number > 0 {
            close_range(0, number - 1, 0)?;
        }
        return close_range(number + 1, libc::c_uint::MAX, 0);
    };
    for fd in (0..=highest).filter(|fd| *fd != kept) {
        // SAFETY: the caller is a process of its own that never returns to the owners of these descriptors.
        unsafe {
            libc::close(fd);
        }
    }
    Ok(())
}

fn close_range(first: libc::c_uint, last: libc::c_uint, flags: libc::c_uint) -> Result<(), Errno> {
    // SAFETY: three plain numbers. Closing is asked for only by `close_all_but`, see there.
    let done = unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) };
    if done == 0 { Ok(()) } else { Err(last_errno()) }
}

/// Sends a signal to every other process of our PID namespace. Refused to all but its first process, so that it can never reach the
/// host's processes.
///
/// # Errors
/// We are not the first process of a namespace, or there is nobody else.
pub fn signal_namespace(signal: Signal) -> Result<(), Errno> {
    if rustix::process::getpid() != Pid::INIT {
        return Err(Errno::PERM);
    }
    // SAFETY: kill takes two numbers and touches no memory of ours.
    let sent = unsafe { libc::kill(-1, signal.as_raw()) };
    if sent == 0 { Ok(()) } else { Err(last_errno()) }
}

pub(super) fn last_errno() -> Errno {
    Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::process::{WaitOptions, waitpid};

    fn plain() -> Birth<'static> {
        Birth {
            namespaces: 0,
            cgroup: None,
            pidfd: true,
            clone3: false,
        }
    }

    fn status_of(birth: Birth<'_>, child: impl FnOnce() -> Infallible) -> (i32, bool) {
        let (pid, pidfd) = spawn(birth, child).unwrap();
        let (_, status) = waitpid(Some(pid), WaitOptions::empty()).unwrap().unwrap();
        (status.exit_status().unwrap(), pidfd.is_some())
    }

    #[test]
    fn both_ways_make_a_process_with_a_pidfd() {
        for clone3 in [false, true] {
            let birth = Birth { clone3, ..plain() };
            assert_eq!(status_of(birth, || exit_now(7)), (7, true));
        }
        let birth = Birth {
            pidfd: false,
            ..plain()
        };
        assert_eq!(status_of(birth, || exit_now(8)), (8, false));
    }

    #[test]
    fn the_whole_namespace_is_signalled_by_its_first_process_only() {
        assert_eq!(signal_namespace(Signal::CONT), Err(Errno::PERM));
    }

    #[test]
    fn a_kernel_without_close_range_is_served_too() {
        let file = std::fs::File::open("/dev/null").unwrap();
        let fd = file.as_raw_fd();
        let (status, _) = status_of(plain(), || {
            // SAFETY: asks whether a number is an open descriptor, in a copy of this process.
            let open = |fd| unsafe { libc::fcntl(fd, libc::F_GETFD) } >= 0;
            let kept = rustix::io::fcntl_dupfd_cloexec(&file, fd + 20);
            let Ok(kept) = kept else { exit_now(1) };
            if close_all_but(std::os::fd::AsFd::as_fd(&kept), Some(fd + 40)).is_err() {
                exit_now(2);
            }
            let good = open(kept.as_raw_fd()) && !open(fd) && !open(0);
            exit_now(if good { 0 } else { 3 })
        });
        assert_eq!(status, 0);
    }
}
