//! The mounts of this process, read again when the kernel says that they have changed.

use std::fs::File;
use std::os::fd::BorrowedFd;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{pread, retry_on_intr};

use super::kept::Kept;
use super::mountinfo::{self, Mount};
use crate::core::sandbox::NotPrepared;

/// Largest table that is read, in bytes.
const MOST: u64 = 16 * 1024 * 1024;
const PATH: &str = "/proc/self/mountinfo";

/// The mounts that paths lead to. Making the table up, reading and sorting it takes as long as twenty mounts of a view; who forks for
/// every run keeps it, and asks before each fork whether it still holds.
#[derive(Debug, Default)]
pub struct Mounts {
    /// Open since before it was read: the kernel remembers with it which state has been seen.
    table: Option<File>,
    visible: Vec<Mount>,
    /// Why they are not known.
    unknown: Option<String>,
    /// Views made from these mounts.
    kept: Option<Kept>,
}

impl Mounts {
    /// Those of this process, now.
    pub fn read() -> Self {
        let mut mounts = Self::default();
        match File::open(PATH) {
            Ok(table) => {
                mounts.table = Some(table);
                mounts.read_again();
            }
            Err(error) => mounts.unknown = Some(format!("{PATH}: {error}")),
        }
        mounts
    }

    /// For a process that forks for every run: views are used again by later runs where that makes no difference to them, until
    /// [`Self::forget_views`] or until a mount has changed.
    pub fn keep_views(&mut self) {
        self.kept = Kept::new().ok();
    }

    /// Takes in the views that children have built since. True: there are others than before.
    pub fn hear_of_views(&mut self) -> bool {
        self.kept.as_mut().is_some_and(Kept::hear)
    }

    /// Readable when [`Self::hear_of_views`] would hear something.
    pub fn inbox(&self) -> Option<BorrowedFd<'_>> {
        self.kept.as_ref().map(Kept::inbox)
    }

    pub fn forget_views(&mut self) {
        if let Some(kept) = &mut self.kept {
            kept.forget();
        }
    }

    pub(super) fn kept(&self) -> Option<&Kept> {
        self.kept.as_ref()
    }

    /// From the text of a table.
    pub fn of(text: &str) -> Self {
        Self {
            visible: mountinfo::visible(mountinfo::parse(text)),
            ..Self::default()
        }
    }

    /// Reads the table again if a mount was made, changed, moved or removed since it was read last, wherever that was done. True: it was
    /// read. Only for the process that has opened it: what was seen is remembered once for all that have inherited it.
    pub fn refresh(&mut self) -> bool {
        let Some(table) = &self.table else {
            let kept = self.kept.take();
            *self = Self {
                kept,
                ..Self::read()
            };
            return true;
        };
        let mut asked = [PollFd::new(table, PollFlags::PRI)];
        let at_once = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        // `poll` of this file tells of a change once, as an error or urgent. A kernel that cannot say is not believed.
        let unchanged = poll(&mut asked, Some(&at_once)) == Ok(0);
        if unchanged && self.unknown.is_none() {
            return false;
        }
        self.read_again();
        self.forget_views();
        true
    }

    fn read_again(&mut self) {
        let read = self.table.as_ref().map(whole);
        (self.visible, self.unknown) = match read {
            Some(Ok(text)) => (
                mountinfo::visible(mountinfo::parse(&String::from_utf8_lossy(&text))),
                None,
            ),
            Some(Err(why)) => (Vec::new(), Some(format!("{PATH}: {why}"))),
            None => (Vec::new(), None),
        };
    }

    pub(super) fn visible(&self) -> Result<&[Mount], NotPrepared> {
        match &self.unknown {
            None => Ok(&self.visible),
            Some(why) => Err(NotPrepared::new("setup", why.as_str())),
        }
    }
}

/// From the beginning, wherever others who have inherited the file have read to.
fn whole(table: &File) -> Result<Vec<u8>, String> {
    const PIECE: usize = 16 * 1024;
    let (mut text, mut at) = (Vec::new(), 0);
    loop {
        let end = text.len();
        text.resize(end + PIECE, 0);
        let read = retry_on_intr(|| pread(table, text.get_mut(end..).unwrap_or_default(), at));
        let got = read.map_err(|errno| errno.to_string())?;
        text.truncate(end + got);
        at += u64::try_from(got).unwrap_or(0);
        if got == 0 {
            return Ok(text);
        }
        if at > MOST {
            return Err("more mounts than can be handled".to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use rustix::mount::{MountFlags, UnmountFlags, mount, mount_remount, unmount};

    use super::*;
    use crate::core::sys::mounts::own_namespace_for_test;
    use crate::core::sys::wait::in_own_process;

    #[test]
    fn every_change_is_seen_once() {
        if !rustix::process::geteuid().is_root() {
            println!("every_change_is_seen_once: left out, it needs root");
            return;
        }
        in_own_process(|| {
            own_namespace_for_test();
            let dir = tempfile::tempdir().unwrap();
            let at = |mounts: &Mounts, path: &Path| {
                let found = mounts.visible.iter().find(|m| m.point == path);
                found.map(|m| m.flags.contains(MountFlags::RDONLY))
            };
            let mut mounts = Mounts::read();
            assert!(!mounts.refresh());
            assert_eq!(at(&mounts, dir.path()), None);
            mount("tmpfs", dir.path(), "tmpfs", MountFlags::empty(), None).unwrap();
            assert!(mounts.refresh() && !mounts.refresh());
            assert_eq!(at(&mounts, dir.path()), Some(false));
            mount_remount(dir.path(), MountFlags::BIND | MountFlags::RDONLY, "").unwrap();
            assert!(mounts.refresh() && !mounts.refresh());
            assert_eq!(at(&mounts, dir.path()), Some(true));
            unmount(dir.path(), UnmountFlags::empty()).unwrap();
            assert!(mounts.refresh());
            assert_eq!(at(&mounts, dir.path()), None);
        });
    }

    #[test]
    fn without_a_table_nothing_is_planned() {
        let mounts = Mounts {
            unknown: Some("no".to_owned()),
            ..Mounts::default()
        };
        assert_eq!(mounts.visible().unwrap_err().reason, "setup");
        assert!(Mounts::read().visible().is_ok_and(|all| !all.is_empty()));
    }
}
