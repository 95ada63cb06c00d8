//! Routers' builds have no texts for panics (`-Cpanic=immediate-abort`, dist/static.sh): such a program ends at an instruction that traps, without
//! a word. This says at least that it did, and at which address, which the same build before stripping knows by name.

#![allow(
    unsafe_code,
    reason = "sigaction(2) has no safe wrapper in std or rustix"
)]

use std::ffi::{c_int, c_void};
use std::ptr;

const BEFORE: &[u8] = concat!(
    "ctrl-exec ",
    env!("CARGO_PKG_VERSION"),
    " ends: internal error at 0x"
)
.as_bytes();
const AFTER: &[u8] = b". Please report this line.\n";
const DIGITS: usize = 2 * size_of::<usize>();

/// From now on a trap of this process is told on its stderr before it ends it. Another program that it becomes has the default again.
pub fn tell() {
    // SAFETY: all zeros is an empty mask and no flags; the handler has the signature that SA_SIGINFO asks for, and does only what a handler may.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_trap as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_RESETHAND | libc::SA_NODEFER;
        // Which of them the instruction of a panic gives depends on the processor.
        for signal in [libc::SIGILL, libc::SIGTRAP] {
            libc::sigaction(signal, &raw const action, ptr::null_mut());
        }
    }
}

extern "C" fn on_trap(signal: c_int, about: *mut libc::siginfo_t, _: *mut c_void) {
    // SAFETY: the kernel gives a filled structure.
    let address = unsafe { (*about).si_addr() } as usize;
    let mut line = [0; BEFORE.len() + DIGITS + AFTER.len()];
    let rest = line.split_at_mut(BEFORE.len());
    rest.0.copy_from_slice(BEFORE);
    let (digits, after) = rest.1.split_at_mut(DIGITS);
    for (at, digit) in digits.iter_mut().enumerate() {
        *digit = b"0123456789abcdef"[(address >> (4 * (DIGITS - 1 - at))) & 15];
    }
    after.copy_from_slice(AFTER);
    // SAFETY: both may be called in a handler. The disposition is the default again, so the second ends the process as if nobody had looked.
    unsafe {
        libc::write(libc::STDERR_FILENO, line.as_ptr().cast(), line.len());
        libc::raise(signal);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;
    use std::process::Command;

    /// Starts itself, in which it traps.
    #[test]
    fn a_trap_is_told_and_ends_the_process() {
        const WORD: &str = "CTRL_EXEC_TEST_TRAP";
        if std::env::var_os(WORD).is_some() {
            super::tell();
            // SAFETY: ends this process, which exists for that.
            unsafe {
                libc::raise(libc::SIGILL);
            }
        }
        let said = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "core::sys::trap::tests::a_trap_is_told_and_ends_the_process",
                "--nocapture",
            ])
            .env(WORD, "1")
            .output()
            .unwrap();
        assert_eq!(said.status.signal(), Some(libc::SIGILL));
        let text = String::from_utf8(said.stderr).unwrap();
        assert!(text.contains(" ends: internal error at 0x"), "{text}");
        assert!(text.contains(". Please report this line.\n"), "{text}");
    }
}
