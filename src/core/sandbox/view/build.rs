//! From a profile to the steps. Apart from looking paths up, a pure function.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};

use caps::Capability;
use rustix::fs::Mode;
use rustix::mount::MountFlags;

use super::lookup::{Found, Lookup};
use super::mountinfo::{self, Mount};
use super::steps::{Op, Planned, Stage};
use super::{MountPlan, ViewOrder};
use crate::core::config::{Baseline, Devices};
use crate::core::sandbox::child::Step;
use crate::core::sandbox::{Level, NotPrepared, Protection, Protections};
use crate::core::sys::mounts::{NOSUID, RDONLY};

const TMP_FLAGS: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV);
const PROC_FLAGS: MountFlags = TMP_FLAGS.union(MountFlags::NOEXEC);

/// Where a script could talk the kernel into running a program as root outside of everything (`core_pattern`, `uevent_helper`,
/// `firmware_class/parameters/path`), or could break the machine.
const PROC_SWITCHES: [&str; 4] = ["/proc/sys", "/proc/sysrq-trigger", "/proc/irq", "/proc/bus"];
/// In `compat` scripts may go on switching LEDs and queues.
const SYS_SWITCHES: [&str; 4] = ["/sys/kernel", "/sys/fs", "/sys/module", "/sys/firmware"];

/// Nodes of a minimal `/dev`.
const NODES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];

/// All that the steps are made from, with real paths.
struct Builder<'a> {
    look: &'a dyn Lookup,
    /// `mount_setattr`, `open_tree`, `move_mount` and `openat2` are there.
    modern: bool,
    /// Only `mount_setattr` is.
    attributes: bool,
    visible: &'a [&'a Mount],
    fresh_proc: bool,
    steps: Vec<Planned>,
    warnings: Vec<String>,
}

/// See [`super::plan`].
pub(super) fn build(
    order: ViewOrder<'_>,
    look: &dyn Lookup,
    report: &mut Protections,
) -> Result<MountPlan, NotPrepared> {
    let ViewOrder {
        profile, features, ..
    } = order;
    if let Err(why) = &features.mount_namespace {
        return Err(NotPrepared::new(
            "feature-missing",
            format!(
                "paths cannot be protected (profile keys hide, writable): no mount namespace: {why}"
            ),
        ));
    }
    let mounts = mountinfo::parse(order.mountinfo);
    let visible = mountinfo::visible(&mounts);
    let mut b = Builder {
        look,
        modern: features.mount_setattr && features.mount_api && features.openat2,
        attributes: features.mount_setattr,
        visible: &visible,
        fresh_proc: order.fresh_proc,
        steps: Vec::new(),
        warnings: Vec::new(),
    };
    let (Found::File(script) | Found::Directory(script)) = look.find(order.script) else {
        return Err(NotPrepared::new(
            "setup",
            format!("{}: no such file", order.script.display()),
        ));
    };

    let tmp =
        if profile.private_tmp {
            outermost(["/tmp", "/var/tmp"].iter().filter_map(
                |path| match look.find(Path::new(path)) {
                    Found::Directory(real) => Some(real),
                    _ => None,
                },
            ))
        } else {
            Vec::new()
        };
    let (mut carved, mut inside_tmp) = b.writable(profile, &tmp);
    if profile.private_tmp {
        let cwd = profile.cwd.as_path();
        inside_tmp.extend(in_tmp(cwd, &tmp));
    }
    let everything = carved.iter().any(|path| path == Path::new("/"));
    if everything {
        carved.clear();
        b.warnings
            .push("writable = / leaves nothing to protect".to_owned());
    }
    let read_only_root = !profile.writable.is_empty() && !everything;

    // What a script in /tmp needs of it stays.
    let kept = tmp
        .iter()
        .find(|top| script.starts_with(top))
        .map(|top| match script.parent() {
            Some(parent) if parent != top => (top.clone(), parent.to_owned(), true),
            _ => (top.clone(), script.clone(), false),
        });
    let gone = |path: &Path| {
        tmp.iter().any(|top| path.starts_with(top))
            && !kept
                .as_ref()
                .is_some_and(|(_, keep, _)| path.starts_with(keep))
    };
    let mut hidden = b.protected(
        order
            .protected
            .hide
            .iter()
            .map(PathBuf::as_path)
            .chain(profile.hide.iter().map(|path| path.as_path())),
    )?;
    hidden.retain(|path| !gone(path));
    if let Some(path) = hidden.iter().find(|path| script.starts_with(path)) {
        return Err(NotPrepared::new(
            "setup",
            format!(
                "{} lies in {}, which is hidden from scripts (built-in, or profile key hide): move the script",
                script.display(),
                path.display()
            ),
        ));
    }
    let mut guarded = b.protected(order.protected.read_only.iter().map(PathBuf::as_path))?;
    guarded.retain(|path| !gone(path) && !hidden.iter().any(|h| path.starts_with(h)));

    let dev = match (profile.devices.value, look.find(Path::new("/dev"))) {
        (Devices::Host, _) => None,
        (Devices::Minimal, Found::Directory(dev)) => Some(dev),
        (Devices::Minimal, _) if profile.devices.required => {
            return Err(NotPrepared::new(
                "feature-missing",
                "profile key devices = minimal: there is no directory /dev",
            ));
        }
        (Devices::Minimal, _) => None,
    };

    let stage = if hidden.is_empty() && order.copy.is_none() && kept.is_none() && dev.is_none() {
        None
    } else {
        let used: Vec<&Path> = [&carved, &guarded, &hidden, &tmp]
            .into_iter()
            .flatten()
            .chain([&script])
            .map(PathBuf::as_path)
            .collect();
        Some(b.stage(&hidden, &used).ok_or_else(|| {
            NotPrepared::new(
                "setup",
                "there is no directory (/proc, /sys, /run, /mnt, /srv, /media) to prepare a view on",
            )
        })?)
    };
    // Never used without one.
    let on = |name: &str| stage.as_deref().unwrap_or(Path::new("/proc")).join(name);

    b.push(Step::MountPropagation, vec![Op::Slave]);
    if read_only_root {
        let ops = b.read_only_root();
        b.push(Step::MountReadOnly, ops);
    }
    if let Some(stage) = &stage {
        let keep = kept.as_ref().map(|(_, _, directory)| *directory);
        b.prepare_stage(stage, order.copy.as_deref(), dev.is_some(), keep);
    }
    if let Some((_, keep, directory)) = &kept {
        b.needs_stage(
            Step::MountPrivateTmp,
            vec![bind(keep, &on("keep"), *directory)],
        );
    }
    let size = profile
        .tmp_size
        .map_or_else(|| "25%".to_owned(), |bytes| bytes.to_string());
    let world = format!("mode=1777,size={size}");
    for top in &tmp {
        b.push(Step::MountPrivateTmp, vec![tmpfs(top, TMP_FLAGS, &world)]);
    }
    for path in inside_tmp {
        let ops = directories(&tmp, &path, world_mode());
        b.push(Step::MountPrivateTmp, ops);
    }
    if let Some((_, keep, directory)) = &kept {
        let mut ops = if *directory {
            directories(&tmp, keep, plain_mode())
        } else {
            vec![file(keep, Mode::empty(), Vec::new())]
        };
        ops.push(bind(&on("keep"), keep, *directory));
        b.needs_stage(Step::MountPrivateTmp, ops);
        // Writable to nobody: it is the host's.
        let ops = b.read_only(keep);
        b.push(Step::MountPrivateTmp, ops);
    }
    for path in &carved {
        let ops = b.carve(path, true);
        b.push(Step::MountWritable, ops);
    }
    if let Some(dev) = &dev {
        let ops = b.devices(dev, &on("dev"), &world);
        b.needs_stage(Step::MountDevices, ops);
    }
    for path in &guarded {
        if dev.as_ref().is_some_and(|dev| path.starts_with(dev)) {
            continue;
        }
        if !read_only_root || overlaps(&carved, path) {
            let ops = b.read_only(path);
            b.push(Step::MountProtect, ops);
        }
    }
    for path in &hidden {
        if Some(path) == stage.as_ref() {
            continue;
        }
        if dev.as_ref().is_some_and(|dev| path.starts_with(dev)) {
            continue;
        }
        let source = match look.find(path) {
            Found::Directory(_) => on("nothing"),
            _ => on("empty"),
        };
        let otherwise = b.read_only(path);
        b.steps.push(Planned {
            step: Step::MountHide,
            ops: vec![bind(&source, path, false)],
            otherwise,
            stage: Stage::Needs,
        });
    }
    if order.copy.is_some() {
        b.needs_stage(Step::MountScript, vec![bind(&on("script"), &script, false)]);
    }
    if let Some(stage) = &stage {
        let last = if hidden.contains(stage) {
            Planned {
                step: Step::MountHide,
                ops: vec![bind(&on("nothing"), stage, false)],
                otherwise: b.read_only(stage),
                stage: Stage::Needs,
            }
        } else {
            Planned {
                step: Step::MountHide,
                ops: vec![Op::Detach {
                    target: text(stage),
                }],
                otherwise: Vec::new(),
                stage: Stage::Removes,
            }
        };
        b.steps.push(last);
    }
    b.kernel(profile, read_only_root, &carved);

    let strength = if profile.caps.contains(&Capability::CAP_SYS_ADMIN) {
        Level::Degraded("a script with CAP_SYS_ADMIN can undo mounts".to_owned())
    } else {
        Level::Enforced
    };
    let when = |on: bool| if on { strength.clone() } else { Level::Off };
    report.set(Protection::FileSystemView, strength.clone());
    report.set(Protection::ReadOnlyRoot, when(read_only_root));
    report.set(
        Protection::KernelTunables,
        when(!profile.kernel_tunables_writable),
    );
    report.set(
        Protection::PrivateTmp,
        if profile.private_tmp && tmp.is_empty() {
            Level::Degraded("there is no directory /tmp".to_owned())
        } else {
            when(profile.private_tmp)
        },
    );
    report.set(
        Protection::MinimalDevices,
        if profile.devices.value == Devices::Minimal && dev.is_none() {
            Level::Degraded("there is no directory /dev".to_owned())
        } else {
            when(dev.is_some())
        },
    );
    if order.copy.is_some() {
        report.set(Protection::VerifiedCopy, strength);
    } else {
        report
            .0
            .entry(Protection::VerifiedCopy)
            .or_insert(Level::Off);
    }
    Ok(MountPlan {
        steps: b.steps,
        warnings: b.warnings,
    })
}

impl Builder<'_> {
    fn push(&mut self, step: Step, ops: Vec<Op>) {
        if !ops.is_empty() {
            self.steps.push(Planned {
                step,
                ops,
                otherwise: Vec::new(),
                stage: Stage::Unrelated,
            });
        }
    }

    fn needs_stage(&mut self, step: Step, ops: Vec<Op>) {
        self.push(step, ops);
        if let Some(last) = self.steps.last_mut() {
            last.stage = Stage::Needs;
        }
    }

    /// Real paths of the carve-outs, and directories to be made in the private temporary ones.
    fn writable(
        &mut self,
        profile: &crate::core::config::ProfileConfig,
        tmp: &[PathBuf],
    ) -> (Vec<PathBuf>, Vec<PathBuf>) {
        let (mut carved, mut inside) = (Vec::new(), Vec::new());
        for path in &profile.writable {
            // Not looked up: in the host's /tmp anybody can put a link.
            if let Some(path) = in_tmp(path.as_path(), tmp) {
                inside.push(path);
                continue;
            }
            match self.look.find(path.as_path()) {
                Found::Directory(real) | Found::File(real) => match in_tmp(&real, tmp) {
                    Some(real) => inside.push(real),
                    None => carved.push(real),
                },
                Found::Nothing => self
                    .warnings
                    .push(format!("writable path {path} does not exist, left out")),
                Found::ForeignLink(link) => self.warnings.push(format!(
                    "writable path {path} leads through {}, a symbolic link that does not belong to root, left out",
                    link.display()
                )),
            }
        }
        (outermost(carved.into_iter()), inside)
    }

    /// Real paths of what exists, under all names that it has.
    fn protected<'p>(
        &self,
        paths: impl Iterator<Item = &'p Path>,
    ) -> Result<Vec<PathBuf>, NotPrepared> {
        let mut real: Vec<PathBuf> = Vec::new();
        for path in paths {
            match self.look.find(path) {
                Found::Nothing => {}
                Found::Directory(found) | Found::File(found) => real.push(found),
                Found::ForeignLink(link) => {
                    return Err(NotPrepared::new(
                        "setup",
                        format!(
                            "{} cannot be protected: {} is a symbolic link that does not belong to root; replace it",
                            path.display(),
                            link.display()
                        ),
                    ));
                }
            }
        }
        // Other names may have other names: those of an overlay's store.
        let mut at = 0;
        while let Some(path) = real.get(at) {
            at += 1;
            for name in mountinfo::other_names(self.visible, path) {
                if let Found::Directory(other) | Found::File(other) = self.look.find(&name)
                    && !real.contains(&other)
                {
                    real.push(other);
                }
            }
        }
        Ok(outermost(real.into_iter()))
    }

    /// A directory that can be covered for a while: best one that is to be hidden, since it stays covered and need not be uncovered, which
    /// costs more than all other steps (the kernel waits for all processors).
    fn stage(&self, hidden: &[PathBuf], used: &[&Path]) -> Option<PathBuf> {
        let directory = |path: &Path| match self.look.find(path) {
            Found::Directory(real) => Some(real),
            _ => None,
        };
        let hidden = hidden.iter().filter_map(|path| directory(path));
        let hidden = hidden.filter(|dir| {
            !used
                .iter()
                .any(|path| *path != dir && path.starts_with(dir))
        });
        let others = ["/proc", "/sys", "/run", "/mnt", "/srv", "/media"]
            .iter()
            .filter_map(|path| directory(Path::new(path)))
            .filter(|dir| !used.iter().any(|path| path.starts_with(dir)));
        hidden.chain(others).next()
    }

    fn prepare_stage(&mut self, stage: &Path, copy: Option<&[u8]>, dev: bool, keep: Option<bool>) {
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

    fn read_only_root(&self) -> Vec<Op> {
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
    fn below(&self, path: &Path) -> impl Iterator<Item = &Mount> {
        self.visible.iter().copied().filter(move |mount| {
            mount.point != path
                && mount.point.starts_with(path)
                && !(self.fresh_proc && path.starts_with("/proc"))
        })
    }

    fn own_flags(&self, path: &Path) -> MountFlags {
        if self.fresh_proc && path.starts_with("/proc") {
            return PROC_FLAGS | MountFlags::RELATIME;
        }
        mountinfo::containing(self.visible, path).map_or(MountFlags::RELATIME, |mount| mount.flags)
    }

    /// Makes a path and all mounts below it read-only.
    fn read_only(&self, path: &Path) -> Vec<Op> {
        if self.attributes && self.visible.iter().any(|mount| mount.point == path) {
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

    /// Takes a path and the mounts below it out of the read-only root. What the host has mounted read-only below stays so.
    fn carve(&self, path: &Path, nosuid: bool) -> Vec<Op> {
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
    fn devices(&self, dev: &Path, made: &Path, world: &str) -> Vec<Op> {
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
    fn kernel(
        &mut self,
        profile: &crate::core::config::ProfileConfig,
        read_only_root: bool,
        carved: &[PathBuf],
    ) {
        let switches_writable = profile.kernel_tunables_writable;
        let is_there = |look: &dyn Lookup, path: &str| match look.find(Path::new(path)) {
            Found::Directory(real) | Found::File(real) if real == Path::new(path) => Some(real),
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

/// Without what lies below another of them.
fn outermost(paths: impl Iterator<Item = PathBuf>) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = paths.collect();
    paths.sort();
    let mut kept: Vec<PathBuf> = Vec::new();
    for path in paths {
        if !kept.iter().any(|outer| path.starts_with(outer)) {
            kept.push(path);
        }
    }
    kept
}

/// One of them lies above or below the path.
fn overlaps(paths: &[PathBuf], path: &Path) -> bool {
    paths
        .iter()
        .any(|other| other.starts_with(path) || path.starts_with(other))
}

/// The path, if it is one in a private temporary directory that can be made there.
fn in_tmp(path: &Path, tmp: &[PathBuf]) -> Option<PathBuf> {
    let plain = !path
        .components()
        .any(|component| component == Component::ParentDir);
    (plain && tmp.iter().any(|top| path.starts_with(top))).then(|| path.to_owned())
}

/// All directories from a private temporary one down to `path`; the last one gets `mode`.
fn directories(tmp: &[PathBuf], path: &Path, mode: Mode) -> Vec<Op> {
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

fn plain_mode() -> Mode {
    Mode::from_raw_mode(0o755)
}

fn world_mode() -> Mode {
    Mode::from_raw_mode(0o1777)
}

/// For the kernel. A path with a NUL byte cannot exist, so none comes here; it would become the root of nothing.
fn text(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).unwrap_or_default()
}

fn bind(source: &Path, target: &Path, recursive: bool) -> Op {
    Op::Bind {
        source: text(source),
        target: text(target),
        recursive,
    }
}

fn tmpfs(target: &Path, flags: MountFlags, data: &str) -> Op {
    Op::Mount {
        kind: c"tmpfs",
        target: text(target),
        flags,
        data: CString::new(data).ok(),
    }
}

fn directory(path: &Path, mode: Mode) -> Op {
    Op::Directory {
        path: text(path),
        mode,
    }
}

fn file(path: &Path, mode: Mode, content: Vec<u8>) -> Op {
    Op::File {
        path: text(path),
        mode,
        content,
    }
}
