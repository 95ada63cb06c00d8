//! What a plan is made of, and how it is carried out: system calls only, nothing is allocated.

use std::ffi::{CStr, CString};
use std::os::fd::AsFd as _;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount,
    mount_bind, mount_bind_recursive, mount_change, mount_move, mount_remount, move_mount,
    open_tree, unmount,
};

use crate::core::sandbox::child::{Step, StepFailed};
use crate::core::sys::mounts;

/// One thing to do.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(super) enum Op {
    /// The host's unmounts reach us, ours do not reach the host.
    Slave,
    /// A new file system.
    Mount {
        kind: &'static CStr,
        target: CString,
        flags: MountFlags,
        data: Option<CString>,
    },
    Bind {
        source: CString,
        target: CString,
        recursive: bool,
    },
    Move {
        source: CString,
        target: CString,
    },
    /// Lays the tree at `path` over itself, so that it can have attributes of its own, and sets and clears them on all of it. The path may
    /// have no symbolic link any more. `still_read_only` are mount points below it, relative to it, that keep `RDONLY`.
    Over {
        path: CString,
        set: u64,
        clear: u64,
        still_read_only: Vec<CString>,
    },
    /// Sets attributes of the mount at `path` and of all below.
    Attributes {
        path: CString,
        set: u64,
    },
    /// Gives one mount exactly these flags. `lenient`: it need not be reachable.
    Flags {
        target: CString,
        flags: MountFlags,
        lenient: bool,
    },
    /// Makes a file system read-only for all who mount it.
    Freeze {
        target: CString,
        flags: MountFlags,
    },
    /// Made unless it is there.
    Directory {
        path: CString,
        mode: Mode,
    },
    File {
        path: CString,
        mode: Mode,
        content: Vec<u8>,
    },
    Link {
        path: CString,
        to: &'static CStr,
    },
    /// Takes away what was only needed on the way.
    Detach {
        target: CString,
    },
}

/// Operations that belong together.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(super) struct Planned {
    pub step: Step,
    pub ops: Vec<Op>,
    /// What is done instead if they fail.
    pub otherwise: Vec<Op>,
    pub stage: Stage,
}

/// What operations have to do with the file system on which things are prepared.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(super) enum Stage {
    /// They make it. Their failure is one of those who need it.
    Makes,
    Needs,
    /// They take it away, if there is any.
    Removes,
    Unrelated,
}

impl Planned {
    /// The paths over which something is laid that shall stay there.
    pub(super) fn covers(&self) -> impl Iterator<Item = &CStr> {
        self.ops.iter().filter_map(|op| match op {
            Op::Over { path, .. } => Some(path.as_c_str()),
            Op::Bind { target, .. } => Some(target.as_c_str()),
            _ => None,
        })
    }

    pub(super) fn run(&self, stage: &mut Result<(), Errno>) -> Result<(), StepFailed> {
        let ready = match self.stage {
            Stage::Removes if stage.is_err() => return Ok(()),
            Stage::Needs | Stage::Removes => *stage,
            Stage::Makes | Stage::Unrelated => Ok(()),
        };
        let mut done = ready.and_then(|()| self.ops.iter().try_for_each(Op::run));
        if done.is_err() && !self.otherwise.is_empty() {
            done = self.otherwise.iter().try_for_each(Op::run);
        }
        match (done, self.stage) {
            (Err(errno), Stage::Makes) => {
                *stage = Err(errno);
                Ok(())
            }
            (Err(errno), _) => Err(StepFailed {
                step: self.step,
                errno: errno.raw_os_error(),
            }),
            (Ok(()), _) => Ok(()),
        }
    }
}

impl Op {
    fn run(&self) -> Result<(), Errno> {
        match self {
            Self::Slave => mount_change(
                c"/",
                MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC,
            ),
            Self::Mount {
                kind,
                target,
                flags,
                data,
            } => mount(*kind, target.as_c_str(), *kind, *flags, data.as_deref()),
            Self::Bind {
                source,
                target,
                recursive,
            } => bind(source, target, *recursive),
            Self::Move { source, target } => mount_move(source.as_c_str(), target.as_c_str()),
            Self::Over {
                path,
                set,
                clear,
                still_read_only,
            } => over(path, *set, *clear, still_read_only),
            Self::Attributes { path, set } => mounts::set_attributes(CWD, path, true, *set, 0),
            Self::Flags {
                target,
                flags,
                lenient,
            } => match mount_remount(target.as_c_str(), MountFlags::BIND | *flags, c"") {
                Err(Errno::ACCESS | Errno::NOENT) if *lenient => Ok(()),
                done => done,
            },
            Self::Freeze { target, flags } => {
                mount_remount(target.as_c_str(), MountFlags::RDONLY | *flags, c"")
            }
            Self::Directory { path, mode } => {
                match rustix::fs::mkdir(path.as_c_str(), Mode::RWXU) {
                    // The mode is given afterwards because of the umask, and only to what is ours.
                    Ok(()) => rustix::fs::chmod(path.as_c_str(), *mode),
                    Err(Errno::EXIST) => Ok(()),
                    Err(errno) => Err(errno),
                }
            }
            Self::File {
                path,
                mode,
                content,
            } => file(path, *mode, content),
            Self::Link { path, to } => rustix::fs::symlink(*to, path.as_c_str()),
            Self::Detach { target } => unmount(target.as_c_str(), UnmountFlags::DETACH),
        }
    }
}

/// Lays what is at `source` over `target`. Both were looked up before and have no symbolic link any more: one that is there now was put
/// there by the owner of a directory above, who must not choose what is covered, or with what.
fn bind(source: &CStr, target: &CStr, recursive: bool) -> Result<(), Errno> {
    let place = |path: &CStr| {
        rustix::fs::openat2(
            CWD,
            path,
            OFlags::PATH | OFlags::CLOEXEC,
            Mode::empty(),
            ResolveFlags::NO_SYMLINKS,
        )
    };
    let modern = || {
        let (from, to) = (place(source)?, place(target)?);
        let mut flags = OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_EMPTY_PATH;
        if recursive {
            flags |= OpenTreeFlags::AT_RECURSIVE;
        }
        let tree = open_tree(&from, c"", flags)?;
        move_mount(
            &tree,
            c"",
            &to,
            c"",
            MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH,
        )
    };
    match modern() {
        // Before 5.6, or in a container that filters these calls.
        Err(Errno::NOSYS | Errno::PERM) if recursive => mount_bind_recursive(source, target),
        Err(Errno::NOSYS | Errno::PERM) => mount_bind(source, target),
        done => done,
    }
}

fn over(path: &CStr, set: u64, clear: u64, still_read_only: &[CString]) -> Result<(), Errno> {
    let place = rustix::fs::openat2(
        CWD,
        path,
        OFlags::PATH | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::NO_SYMLINKS,
    )?;
    let tree = open_tree(
        &place,
        c"",
        OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_EMPTY_PATH
            | OpenTreeFlags::AT_RECURSIVE,
    )?;
    mounts::set_attributes(tree.as_fd(), c"", true, set, clear)?;
    move_mount(
        &tree,
        c"",
        &place,
        c"",
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH,
    )?;
    // Only now: what hangs below a detached tree cannot be changed.
    still_read_only
        .iter()
        .try_for_each(|point| mounts::set_attributes(tree.as_fd(), point, false, mounts::RDONLY, 0))
}

fn file(path: &CStr, mode: Mode, content: &[u8]) -> Result<(), Errno> {
    let file = rustix::fs::open(
        path,
        OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::RUSR | Mode::WUSR,
    )?;
    let mut rest = content;
    while !rest.is_empty() {
        match rustix::io::write(&file, rest) {
            Ok(0) => return Err(Errno::NOSPC),
            Ok(written) => rest = rest.get(written..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    rustix::fs::fchmod(&file, mode)
}
