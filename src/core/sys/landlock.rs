//! The two Landlock calls that the child of a run issues itself.

use std::os::fd::{AsRawFd as _, BorrowedFd};

use rustix::io::Errno;

use super::mounts::last_error;

/// `struct landlock_path_beneath_attr` (linux/landlock.h), which has no padding.
#[repr(C, packed)]
struct PathBeneath {
    allowed: u64,
    parent: i32,
}

/// `landlock_add_rule(2)`: permits `allowed` (bits of `LANDLOCK_ACCESS_FS_*`) at and below what `parent` stands for. Allocates nothing.
///
/// # Errors
/// `EINVAL` for rights that the ruleset does not handle or that `parent` cannot have.
pub fn add_path_rule(
    ruleset: BorrowedFd<'_>,
    parent: BorrowedFd<'_>,
    allowed: u64,
) -> Result<(), Errno> {
    const RULE_PATH_BENEATH: libc::c_int = 1;
    let rule = PathBeneath {
        allowed,
        parent: parent.as_raw_fd(),
    };
    // SAFETY: the structure is laid out as the kernel wants it for this kind of rule and lives over the call, which only reads it.
    #[allow(unsafe_code)]
    let done = unsafe {
        libc::syscall(
            libc::SYS_landlock_add_rule,
            ruleset.as_raw_fd(),
            RULE_PATH_BENEATH,
            &raw const rule,
            0_u32,
        )
    };
    if done == 0 { Ok(()) } else { Err(last_error()) }
}

/// `landlock_restrict_self(2)` for the calling thread. Allocates nothing.
///
/// # Errors
/// `EPERM` with neither `no_new_privs` nor `CAP_SYS_ADMIN`, `E2BIG` after 16 of them.
pub fn restrict_self(ruleset: BorrowedFd<'_>) -> Result<(), Errno> {
    // SAFETY: two plain numbers; the call only takes rights from this thread.
    #[allow(unsafe_code)]
    let done =
        unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset.as_raw_fd(), 0_u32) };
    if done == 0 { Ok(()) } else { Err(last_error()) }
}

/// The ABI of this kernel, 0 without Landlock.
#[cfg(test)]
pub fn abi_for_test() -> u32 {
    const VERSION: u32 = 1;
    // SAFETY: with this flag the call takes no structure and only returns a number.
    #[allow(unsafe_code)]
    let abi = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::null::<libc::c_void>(),
            0_usize,
            VERSION,
        )
    };
    u32::try_from(abi).unwrap_or(0)
}
