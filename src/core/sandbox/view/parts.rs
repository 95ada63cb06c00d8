//! The operations that each part of a view takes on this kernel.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::Mode;
use rustix::mount::MountFlags;

use super::build::overlaps;
use super::lookup::{Found, Lookup};
use super::mountinfo::{self, Mount, same, within};
use super::steps::{Op, Planned, Stage};
use crate::core::config::{Baseline, ProfileConfig};
use crate::core::sandbox::child::Step;
use crate::core::sys::mounts::{NOSUID, RDONLY};

pub(super) const TMP_FLAGS: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV);
pub(super) const PROC_FLAGS: MountFlags = TMP_FLAGS.union(MountFlags::NOEXEC);

/// Where a script could talk the kernel into running a program as root outside of everything (`core_pattern`, `uevent_helper`,
/// `firmware_class/parameters/path`), or could break the machine.
pub(super) const PROC_SWITCHES: [&str; 7] = [
    "/proc/sys",
    "/proc/sysrq-trigger",
    "/proc/irq",
    "/proc/bus",
    "/proc/fs",
    "/proc/acpi",
    "/proc/scsi",
];
/// In `compat` scripts may go on switching LEDs and queues.
pub(super) const SYS_SWITCHES: [&str; 4] =
    ["/sys/kernel", "/sys/fs", "/sys/module", "/sys/firmware"];

/// Nodes of a minimal `/dev`.
pub(super) const NODES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];

/// All that the steps are made from, with real paths.
pub(super) struct Builder<'a> {
    pub(super) look: &'a dyn Lookup,
    /// `mount_setattr`, `open_tree`, `move_mount` and `openat2` are there.
    pub(super) modern: bool,
    /// Only `mount_setattr` is.
    pub(super) attributes: bool,
    pub(super) visible: &'a [Mount],
    pub(super) fresh_proc: bool,
    pub(super) steps: Vec<Planned>,
    pub(super) warnings: Vec<String>,
}

impl Builder<'_> {
    /// A directory that can be covered for a while: best one that is to be hidden, since it stays covered and need not be uncovered, which
    /// costs more than all other steps (the kernel waits for all processors). Never one that its owner could move away while things are
    /// prepared on it: they would be prepared where he likes.
    pub(super) fn stage(&self, hidden: &[PathBuf], used: &[&Path]) -> Option<PathBuf> {
        let directory = |path: &Path| match self.look.find(path) {
            Found::Directory(real) => Some(real),
            _ => None,
        };
        let hidden = hidden.iter().filter_map(|path| directory(path));
        let hidden = hidden.filter(|dir| {
            self.look.is_fixed(dir)
                && !used
                    .iter()
                    .any(|path| within(path, dir) && !same(path, dir))
        });
        let others = ["/proc", "/sys", "/run", "/mnt", "/srv", "/media"]
            .iter()
            .filter_map(|path| directory(Path::new(path)))
            .filter(|dir| !used.iter().any(|path| within(path, dir)));
        hidden.chain(others).next()
    }

    pub(super) fn prepare_stage(
        &mut self,
        stage: &Path,
        copy: Option<&[u8]>,
        dev: bool,
        keep: Option<bool>,
    ) {
        let size = copy.map_or(0, <[u8]>::len) + (256 << 10);
        let mut ops = vec![
            tmpfs(stage, TMP_FLAGS, &format!("mode=0700,size={size}")),
            directory(&stage.join("nothing"), Mode::empty()),
            file(&stage.join("empty"), Mode::empty(), Vec::new()),
        ];
        if dev {
            ops.push(directory(&stage.join("dev"), plain_mode()));
        }
        match keep {
            Some(true) => ops.push(directory(&stage.join("keep"), plain_mode())),
            Some(false) => ops.push(file(&stage.join("keep"), Mode::empty(), Vec::new())),
            None => {}
        }
        if let Some(bytes) = copy {
            let mode = Mode::RUSR | Mode::RGRP | Mode::ROTH | Mode::XUSR | Mode::XGRP | Mode::XOTH;
            ops.push(file(&stage.join("script"), mode, bytes.to_vec()));
        }
        // What is bound from here is read-only from the first moment.
        ops.push(Op::Freeze {
            target: text(stage),
            flags: TMP_FLAGS,
        });
        self.steps.push(Planned {
            step: Step::MountHide,
            ops,
            otherwise: Vec::new(),
            stage: Stage::Makes,
        });
    }

    pub(super) fn read_only_root(&self) -> Vec<Op> {
        if self.attributes {
            return vec![Op::Attributes {
                path: c"/".to_owned(),
                set: RDONLY,
            }];
        }
        self.visible
            .iter()
            .filter(|mount| !mount.flags.contains(MountFlags::RDONLY))
            .map(|mount| Op::Flags {
                target: text(&mount.point),
                flags: mount.flags | MountFlags::RDONLY,
                lenient: mount.point != Path::new("/"),
            })
            .collect()
    }

    /// Mounts strictly below a path.
    pub(super) fn below(&self, path: &Path) -> impl Iterator<Item = &Mount> {
        self.visible.iter().filter(move |mount| {
            within(&mount.point, path) && !same(&mount.point, path) && !self.is_anew(path)
        })
    }

    /// It lies on the `/proc` that is mounted for this script: nothing of what the host (or what manages this container, which likes to
    /// lay read-only mounts over parts of it) has mounted there is below it.
    fn is_anew(&self, path: &Path) -> bool {
        self.fresh_proc && path.starts_with("/proc")
    }

    pub(super) fn own_flags(&self, path: &Path) -> MountFlags {
        if self.is_anew(path) {
            return PROC_FLAGS | MountFlags::RELATIME;
        }
        mountinfo::containing(self.visible, path).map_or(MountFlags::RELATIME, |mount| mount.flags)
    }

    /// Makes a path and all mounts below it read-only.
    pub(super) fn read_only(&self, path: &Path) -> Vec<Op> {
        let is_mounted =
            !self.is_anew(path) && self.visible.iter().any(|mount| same(&mount.point, path));
        if self.attributes && is_mounted {
            return vec![Op::Attributes {
                path: text(path),
                set: RDONLY,
            }];
        }
        if self.modern {
            return vec![Op::Over {
                path: text(path),
                set: RDONLY,
                clear: 0,
                still_read_only: Vec::new(),
            }];
        }
        let mut ops = vec![
            bind(path, path, true),
            Op::Flags {
                target: text(path),
                flags: self.own_flags(path) | MountFlags::RDONLY,
                lenient: false,
            },
        ];
        ops.extend(self.below(path).map(|mount| Op::Flags {
            target: text(&mount.point),
            flags: mount.flags | MountFlags::RDONLY,
            lenient: true,
        }));
        ops
    }

    /// Makes a directory a mount point and changes nothing else about it.
    pub(super) fn pin(&self, path: &Path) -> Vec<Op> {
        if self.modern {
            return vec![Op::Over {
                path: text(path),
                set: 0,
                clear: 0,
                still_read_only: Vec::new(),
            }];
        }
        vec![bind(path, path, true)]
    }

    /// Takes a path and the mounts below it out of the read-only root. What the host has mounted read-only below stays so.
    pub(super) fn carve(&self, path: &Path, nosuid: bool) -> Vec<Op> {
        if self.modern {
            return vec![Op::Over {
                path: text(path),
                set: if nosuid { NOSUID } else { 0 },
                clear: RDONLY,
                still_read_only: self
                    .below(path)
                    .filter(|mount| mount.flags.contains(MountFlags::RDONLY))
                    .filter_map(|mount| mount.point.strip_prefix(path).ok())
                    .map(text)
                    .collect(),
            }];
        }
        let extra = if nosuid {
            MountFlags::NOSUID
        } else {
            MountFlags::empty()
        };
        let mut ops = vec![
            bind(path, path, true),
            Op::Flags {
                target: text(path),
                flags: self.own_flags(path).difference(MountFlags::RDONLY) | extra,
                lenient: false,
            },
        ];
        ops.extend(self.below(path).map(|mount| Op::Flags {
            target: text(&mount.point),
            flags: mount.flags | extra,
            lenient: true,
        }));
        ops
    }

    /// A `/dev` that holds nothing that reaches hardware. Its nodes are the host's: nobody but the host may make any.
    pub(super) fn devices(&self, dev: &Path, made: &Path, world: &str) -> Vec<Op> {
        let flags = TMP_FLAGS | MountFlags::NOEXEC;
        let mut ops = vec![tmpfs(made, flags, "mode=0755,size=64k")];
        for node in NODES {
            let host = dev.join(node);
            if matches!(self.look.find(&host), Found::File(_)) {
                ops.push(file(&made.join(node), plain_mode(), Vec::new()));
                ops.push(bind(&host, &made.join(node), false));
            }
        }
        for (name, to) in [
            ("fd", c"/proc/self/fd"),
            ("stdin", c"/proc/self/fd/0"),
            ("stdout", c"/proc/self/fd/1"),
            ("stderr", c"/proc/self/fd/2"),
        ] {
            ops.push(Op::Link {
                path: text(&made.join(name)),
                to,
            });
        }
        ops.push(directory(&made.join("shm"), world_mode()));
        ops.push(Op::Freeze {
            target: text(made),
            flags,
        });
        ops.push(tmpfs(&made.join("shm"), flags, world));
        ops.push(Op::Move {
            source: text(made),
            target: text(dev),
        });
        ops
    }

    /// `/proc` and `/sys`.
    pub(super) fn kernel(
        &mut self,
        profile: &ProfileConfig,
        read_only_root: bool,
        carved: &[PathBuf],
    ) {
        let switches_writable = profile.kernel_tunables_writable;
        let is_there = |look: &dyn Lookup, path: &str| match look.find(Path::new(path)) {
            Found::Directory(real) | Found::File(real) if same(&real, Path::new(path)) => {
                Some(real)
            }
            _ => None,
        };
        // All of it is read-only already, or will be.
        let closed = |path: &Path| read_only_root && !overlaps(carved, path);
        let proc = is_there(self.look, "/proc");
        let closed_proc = closed(Path::new("/proc"));
        if self.fresh_proc
            && let Some(proc) = &proc
        {
            let mut flags = PROC_FLAGS;
            if closed_proc && !switches_writable {
                flags |= MountFlags::RDONLY;
            }
            self.push(
                Step::MountProc,
                vec![Op::Mount {
                    kind: c"proc",
                    target: text(proc),
                    flags,
                    data: None,
                }],
            );
        }
        if switches_writable {
            for path in ["/proc", "/sys"] {
                let opened = self.fresh_proc && path == "/proc";
                if closed(Path::new(path))
                    && !opened
                    && let Some(real) = is_there(self.look, path)
                {
                    let ops = self.carve(&real, false);
                    self.push(Step::MountTunables, ops);
                }
            }
            return;
        }
        let mut switches: Vec<&str> = Vec::new();
        if !closed_proc {
            switches.extend(PROC_SWITCHES);
        }
        if !closed(Path::new("/sys")) {
            match profile.baseline {
                Baseline::Strict => switches.push("/sys"),
                Baseline::Compat => switches.extend(SYS_SWITCHES),
            }
        }
        let ops = switches
            .into_iter()
            .filter_map(|path| is_there(self.look, path))
            .flat_map(|path| self.read_only(&path))
            .collect();
        self.push(Step::MountTunables, ops);
    }
}

/// All directories from a private temporary one down to `path`; the last one gets `mode`.
pub(super) fn directories(tmp: &[PathBuf], path: &Path, mode: Mode) -> Vec<Op> {
    let mut chain: Vec<&Path> = path
        .ancestors()
        .take_while(|dir| !tmp.iter().any(|top| top == dir))
        .collect();
    chain.reverse();
    let last = chain.len().saturating_sub(1);
    chain
        .into_iter()
        .enumerate()
        .map(|(at, dir)| directory(dir, if at == last { mode } else { plain_mode() }))
        .collect()
}

pub(super) fn plain_mode() -> Mode {
    Mode::from_raw_mode(0o755)
}

pub(super) fn world_mode() -> Mode {
    Mode::from_raw_mode(0o1777)
}

/// For the kernel. A path with a NUL byte cannot exist, so none comes here; it would become the root of nothing.
pub(super) fn text(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).unwrap_or_default()
}

pub(super) fn bind(source: &Path, target: &Path, recursive: bool) -> Op {
    Op::Bind {
        source: text(source),
        target: text(target),
        recursive,
    }
}

pub(super) fn tmpfs(target: &Path, flags: MountFlags, data: &str) -> Op {
    Op::Mount {
        kind: c"tmpfs",
        target: text(target),
        flags,
        data: CString::new(data).ok(),
    }
}

pub(super) fn directory(path: &Path, mode: Mode) -> Op {
    Op::Directory {
        path: text(path),
        mode,
    }
}

pub(super) fn file(path: &Path, mode: Mode, content: Vec<u8>) -> Op {
    Op::File {
        path: text(path),
        mode,
        content,
    }
}
