//! From a profile to the steps. Apart from looking paths up, a pure function.

use std::path::{Component, Path, PathBuf};

use caps::Capability;
use rustix::fs::Mode;

use super::lookup::{Found, Lookup};
use super::mountinfo::{self, same, within};
use super::parts::{
    Builder, TMP_FLAGS, bind, directories, file, plain_mode, text, tmpfs, world_mode,
};
use super::steps::{Op, Planned, Stage};
use super::{MountPlan, ViewOrder};
use crate::core::config::{Baseline, Devices, ProfileConfig};
use crate::core::sandbox::child::Step;
use crate::core::sandbox::{Level, NotPrepared, Protection, Protections};

/// Sockets of service managers, which obey whoever is uid 0 (spec/executor.md 11.3, 20): out of sight of root scripts in `strict`, unless
/// the profile says that it knows what it does.
fn managers(profile: &ProfileConfig) -> &'static [&'static str] {
    const SOCKETS: [&str; 6] = [
        "/run/systemd/private",
        "/run/systemd/io.systemd.Manager",
        "/run/dbus/system_bus_socket",
        "/run/ubus/ubus.sock",
        "/var/run/ubus/ubus.sock",
        "/var/run/ubus.sock",
    ];
    let meant = profile.i_understand_unconfined;
    match profile.baseline {
        Baseline::Strict if profile.runs_as_root() && !meant => &SOCKETS,
        _ => &[],
    }
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
    let visible = order.mounts.visible()?;
    let mut b = Builder {
        look,
        modern: features.mount_setattr && features.mount_api && features.openat2,
        attributes: features.mount_setattr,
        visible,
        fresh_proc: order.fresh_proc,
        steps: Vec::new(),
        warnings: Vec::new(),
    };
    let script = script(&order, look)?;
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
        .find(|top| within(&script, top))
        .map(|top| match script.parent() {
            Some(parent) if parent != top => (top.clone(), parent.to_owned(), true),
            _ => (top.clone(), script.clone(), false),
        });
    let gone = |path: &Path| {
        tmp.iter().any(|top| within(path, top))
            && !kept.as_ref().is_some_and(|(_, keep, _)| within(path, keep))
    };
    let mut hidden = b.protected(
        order
            .protected
            .hide
            .iter()
            .map(PathBuf::as_path)
            .chain(profile.hide.iter().map(|path| path.as_path()))
            .chain(managers(profile).iter().map(Path::new)),
    )?;
    hidden.retain(|path| !gone(path));
    if let Some(path) = hidden.iter().find(|path| within(&script, path)) {
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
    guarded.retain(|path| !gone(path) && !hidden.iter().any(|h| within(path, h)));

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
    for path in pins(&carved, &guarded, &hidden) {
        let ops = b.pin(&path);
        b.push(Step::MountProtect, ops);
    }
    for path in &guarded {
        if dev.as_ref().is_some_and(|dev| within(path, dev)) {
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
        if dev.as_ref().is_some_and(|dev| within(path, dev)) {
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
        report.set(Protection::VerifiedCopy, strength.clone());
    } else {
        report
            .0
            .entry(Protection::VerifiedCopy)
            .or_insert(Level::Off);
    }
    // Nothing in it is this run's alone, and the script cannot mount.
    let lasts = b.modern
        && tmp.is_empty()
        && dev.is_none()
        && order.copy.is_none()
        && !order.fresh_proc
        && matches!(strength, Level::Enforced);
    let shared = order.mounts.kept().filter(|_| lasts);
    Ok(MountPlan {
        shared: shared.map(|kept| kept.for_plan(&b.steps)),
        steps: b.steps,
        warnings: b.warnings,
    })
}

/// Where the script really is.
fn script(order: &ViewOrder<'_>, look: &dyn Lookup) -> Result<PathBuf, NotPrepared> {
    let path = order.script.display();
    match look.find(order.script) {
        Found::File(real) | Found::Directory(real) => Ok(real),
        // Whoever owns the link decides what runs: fine for a profile that trusts it, not for a checked copy.
        Found::ForeignLink(_) if order.copy.is_none() => Ok(order.script.to_owned()),
        Found::ForeignLink(link) => Err(NotPrepared::new(
            "untrusted-script",
            format!(
                "{path} leads through {}, a symbolic link that does not belong to root; name the real path",
                link.display()
            ),
        )),
        Found::Nothing => Err(NotPrepared::new("setup", format!("{path}: no such file"))),
    }
}

impl Builder<'_> {
    pub(super) fn push(&mut self, step: Step, ops: Vec<Op>) {
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
        profile: &ProfileConfig,
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
                    && !real.iter().any(|known| same(known, &other))
                {
                    real.push(other);
                }
            }
        }
        Ok(outermost(real.into_iter()))
    }
}

/// Without what lies below another of them.
pub(super) fn outermost(paths: impl Iterator<Item = PathBuf>) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = paths.collect();
    paths.sort_unstable_by(|a, b| a.as_os_str().cmp(b.as_os_str()));
    let mut kept: Vec<PathBuf> = Vec::new();
    for path in paths {
        if !kept.iter().any(|outer| within(&path, outer)) {
            kept.push(path);
        }
    }
    kept
}

/// One of them lies above or below the path.
pub(super) fn overlaps(paths: &[PathBuf], path: &Path) -> bool {
    paths
        .iter()
        .any(|other| within(other, path) || within(path, other))
}

/// The directories between a carve-out and what is protected below it, the outermost first. Protecting the end of a path is not enough:
/// whoever may rename a directory above it can put another one in its place, and with it another file under the same name. Mount points
/// cannot be renamed.
pub(super) fn pins(carved: &[PathBuf], guarded: &[PathBuf], hidden: &[PathBuf]) -> Vec<PathBuf> {
    if carved.is_empty() {
        return Vec::new();
    }
    let mut between: Vec<PathBuf> = guarded
        .iter()
        .chain(hidden)
        .flat_map(|path| path.ancestors().skip(1))
        .filter(|dir| {
            let below = |outer: &PathBuf| within(dir, outer) && !same(dir, outer);
            // What is read-only keeps its names anyway.
            carved.iter().any(below) && !guarded.iter().any(|path| within(dir, path))
        })
        .map(Path::to_owned)
        .collect();
    between.sort();
    between.dedup();
    between
}

/// The path, if it is one in a private temporary directory that can be made there.
pub(super) fn in_tmp(path: &Path, tmp: &[PathBuf]) -> Option<PathBuf> {
    let plain = !path
        .components()
        .any(|component| component == Component::ParentDir);
    (plain && tmp.iter().any(|top| path.starts_with(top))).then(|| path.to_owned())
}
