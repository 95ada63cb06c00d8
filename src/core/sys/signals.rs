//! Signal masks and dispositions, straight from the kernel: the C library hides its own signals, a script must not inherit even those.

#![allow(
    unsafe_code,
    reason = "rt_sigaction(2), rt_sigprocmask(2) and rt_sigtimedwait(2) have no safe wrapper in std or rustix"
)]

use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::Errno;

use super::process::last_errno;

/// Bytes of the kernel's `sigset_t`, and the highest signal.
#[cfg(any(
    target_arch = "mips",
    target_arch = "mips32r6",
    target_arch = "mips64",
    target_arch = "mips64r6"
))]
const SET_BYTES: usize = 16;
#[cfg(not(any(
    target_arch = "mips",
    target_arch = "mips32r6",
    target_arch = "mips64",
    target_arch = "mips64r6"
)))]
const SET_BYTES: usize = 8;

/// A set of signals as the kernel has it.
#[derive(Clone, Copy, Debug)]
pub struct SignalSet([libc::c_ulong; SET_BYTES / size_of::<libc::c_ulong>()]);

impl SignalSet {
    pub fn empty() -> Self {
        Self([0; SET_BYTES / size_of::<libc::c_ulong>()])
    }

    fn full() -> Self {
        Self([libc::c_ulong::MAX; SET_BYTES / size_of::<libc::c_ulong>()])
    }

    /// With these signals, which must be real ones (from 1).
    pub fn of(signals: &[i32]) -> Self {
        let mut set = Self::empty();
        let width = libc::c_ulong::BITS;
        for signal in signals {
            let Some(bit) = u32::try_from(*signal).ok().and_then(|n| n.checked_sub(1)) else {
                continue;
            };
            if let Some(word) = usize::try_from(bit / width)
                .ok()
                .and_then(|at| set.0.get_mut(at))
            {
                *word |= 1 << (bit % width);
            }
        }
        set
    }
}

/// Blocks every signal of this thread and returns what was blocked before.
pub fn block_all() -> SignalSet {
    let mut before = SignalSet::empty();
    let full = SignalSet::full();
    // SAFETY: both sets are of the size given; the kernel reads one and writes the other.
    unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
            &raw const full,
            &raw mut before,
            SET_BYTES,
        );
    }
    before
}

/// Makes this the set of blocked signals of this thread.
pub fn restore(set: &SignalSet) {
    // SAFETY: the set is of the size given; the kernel only reads it.
    unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
            ptr::from_ref(set),
            ptr::null_mut::<SignalSet>(),
            SET_BYTES,
        );
    }
}

/// In this process, and what it was forked from, [`settle_dispositions`] was called.
static SETTLED: AtomicBool = AtomicBool::new(false);

/// Gives every signal its default disposition but SIGPIPE, which is ignored from here on, as nothing else is. Of a process that has done
/// so, and of all that are forked from it, nothing remains to be done: 95 calls less for each run.
pub fn settle_dispositions() {
    if SETTLED.load(Ordering::Relaxed) {
        return;
    }
    reset_dispositions();
    // SAFETY: sets one of the two predefined actions.
    unsafe {
        libc::signal(libc::SIGPIPE, libc::SIG_IGN);
    }
    #[cfg(panic = "immediate-abort")]
    super::trap::tell();
    SETTLED.store(true, Ordering::Relaxed);
}

/// Gives every signal its default disposition, ignored ones too. For a process that is about to become another program.
pub fn reset_dispositions() {
    // Larger than any kernel's `struct sigaction`; all zeros is SIG_DFL without flags, whatever the order of its fields.
    let default = [0_u64; 16];
    let highest = i32::try_from(SET_BYTES * 8).unwrap_or(64);
    let signals = if SETTLED.load(Ordering::Relaxed) {
        libc::SIGPIPE..=libc::SIGPIPE
    } else {
        1..=highest
    };
    for signal in signals {
        // SAFETY: the kernel reads its structure from a larger, initialised buffer. SIGKILL and SIGSTOP are refused, which is right.
        unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                default.as_ptr(),
                ptr::null_mut::<u64>(),
                SET_BYTES,
            );
        }
    }
}

/// Has the child begin with no signal blocked: a process that reads its signals from a descriptor has them blocked, and what it starts
/// would inherit that. SIGHUP is ignored until the child says what it means: it must not end a program that has not come so far. With
/// `confined` nothing that the child starts can gain rights that it has not (`no_new_privs`).
pub fn prepare_child(command: &mut std::process::Command, confined: bool) {
    use std::os::unix::process::CommandExt as _;
    let arrange = move || -> std::io::Result<()> {
        if confined {
            rustix::thread::set_no_new_privs(true)?;
        }
        // SAFETY: sets one of the two predefined actions.
        unsafe {
            libc::signal(libc::SIGHUP, libc::SIG_IGN);
        }
        restore(&SignalSet::empty());
        Ok(())
    };
    // SAFETY: between fork and exec the closure makes three system calls and neither allocates nor locks.
    unsafe {
        command.pre_exec(arrange);
    }
}

/// Waits, without end, for one of these signals; they must be blocked.
///
/// # Errors
/// `EINTR` when another signal came in between.
pub fn wait(set: &SignalSet) -> Result<i32, Errno> {
    // SAFETY: the set is of the size given; null means that neither details nor a deadline are wanted.
    let signal = unsafe {
        libc::syscall(
            libc::SYS_rt_sigtimedwait,
            ptr::from_ref(set),
            ptr::null_mut::<libc::siginfo_t>(),
            ptr::null::<libc::timespec>(),
            SET_BYTES,
        )
    };
    if signal > 0 {
        i32::try_from(signal).map_err(|_| Errno::INVAL)
    } else {
        Err(last_errno())
    }
}
