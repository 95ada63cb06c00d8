//! `seccomp(2)`, which neither std nor rustix has.

use std::io;

/// Action words of `linux/seccomp.h`.
pub const KILL_PROCESS: u32 = 0x8000_0000;
pub const KILL_THREAD: u32 = 0;
pub const ERRNO: u32 = 0x0005_0000;
pub const ALLOW: u32 = 0x7fff_0000;

/// Largest program that the kernel takes (`BPF_MAXINSNS`).
pub const MAX_INSTRUCTIONS: usize = 4096;

/// Puts the calling thread under a filter, for good. Allocates nothing: it is called between fork and exec.
///
/// # Errors
/// `EACCES` without no_new_privs and `CAP_SYS_ADMIN`, `EINVAL` for a program that the kernel does not take, `ENOSYS`.
pub fn install(program: &[libc::sock_filter]) -> io::Result<()> {
    let Ok(len) = u16::try_from(program.len()) else {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    };
    let filter = libc::sock_fprog {
        len,
        filter: program.as_ptr().cast_mut(),
    };
    // SAFETY: the kernel copies `len` instructions from a slice of that length and writes nothing.
    #[allow(unsafe_code)]
    let done = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            0_u32,
            &raw const filter,
        )
    };
    if done == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
