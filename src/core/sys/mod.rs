//! The only place that may hold `unsafe`, and the thin wrappers over system calls that the rest of the house uses.

pub mod arena;
pub mod creds;
pub mod datagrams;
pub mod fork;
pub mod inherited;
pub mod landlock;
pub mod loopback;
pub mod mounts;
pub mod pages;
pub mod parent_death;
pub mod peer;
pub mod probe;
pub mod process;
pub mod seccomp;
pub mod signals;
pub mod small_files;
#[cfg(any(test, panic = "immediate-abort"))]
pub mod trap;
pub mod users;
pub mod wait;

pub mod resolver;

use std::path::Path;

/// `statfs` magic numbers of file systems that do not survive a reboot (linux/magic.h).
const TMPFS_MAGIC: u64 = 0x0102_1994;
const RAMFS_MAGIC: u64 = 0x8584_58f6;

/// Whether a path lies on a file system that a reboot empties. False when that cannot be told.
pub fn is_ram_disk(path: &Path) -> bool {
    rustix::fs::statfs(path).is_ok_and(|stat| {
        #[allow(
            clippy::cast_sign_loss,
            reason = "a magic number is a bit pattern, not a quantity"
        )]
        let magic = stat.f_type as u64 & 0xffff_ffff;
        magic == TMPFS_MAGIC || magic == RAMFS_MAGIC
    })
}
