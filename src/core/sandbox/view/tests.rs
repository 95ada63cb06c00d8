//! The plan itself: what, with which flags, in which order.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use rustix::mount::MountFlags;

use super::lookup::{Found, Lookup};
use super::steps::{Op, Stage};
use super::{MountPlan, Mounts, ViewOrder, build, mountinfo};
use crate::core::config::{Baseline, Devices, ProfileConfig, Protected};
use crate::core::sandbox::child::Step;
use crate::core::sandbox::features::Features;
use crate::core::sandbox::{Level, NotPrepared, ProtectedPaths, Protection, Protections};
use crate::core::types::AbsolutePath;

pub(super) fn features() -> Features {
    Features::modern()
}

pub(super) fn old_features() -> Features {
    Features {
        mount_setattr: false,
        mount_api: false,
        openat2: false,
        ..features()
    }
}

pub(super) fn paths(list: &[&str]) -> Vec<AbsolutePath> {
    list.iter()
        .map(|path| AbsolutePath::new(path).unwrap())
        .collect()
}

const MOUNTS: &str = "\
21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
22 21 0:5 / /proc rw,nosuid,nodev,noexec,relatime shared:2 - proc proc rw
23 21 0:6 / /sys rw,nosuid,nodev,noexec,relatime shared:3 - sysfs sysfs rw
24 23 0:7 / /sys/fs/cgroup ro,nosuid,nodev,noexec - tmpfs tmpfs ro,mode=755
25 24 0:8 / /sys/fs/cgroup/unified rw,nosuid,nodev,noexec,relatime - cgroup2 cgroup2 rw
26 21 0:9 / /dev rw,nosuid,relatime - devtmpfs devtmpfs rw
27 21 8:2 / /srv/my\\040data rw,nosuid,nodev,noexec,noatime,nodiratime shared:9 - xfs /dev/sdb rw
28 27 8:1 /usr /srv/my\\040data/usr ro,relatime - ext4 /dev/sda1 rw
";

struct Fake(BTreeMap<&'static str, bool>);

impl Fake {
    /// Names with a slash at the end are directories.
    fn new(extra: &[&'static str]) -> Self {
        let host = [
            "/",
            "/proc/",
            "/proc/sys/",
            "/proc/irq/",
            "/sys/",
            "/sys/kernel/",
            "/sys/fs/",
            "/dev/",
            "/dev/null",
            "/dev/urandom",
            "/tmp/",
            "/var/tmp/",
            "/run/",
            "/opt/scripts/",
            "/opt/scripts/backup",
            "/etc/agent/",
            "/etc/agent/agent.key",
            "/srv/my data/",
            "/run/exec/",
        ];
        Self(
            host.iter()
                .chain(extra)
                .map(|path| (path.trim_end_matches('/'), path.ends_with('/')))
                .collect(),
        )
    }
}

impl Lookup for Fake {
    fn find(&self, path: &Path) -> Found {
        let text = path.to_str().unwrap().trim_end_matches('/');
        match self.0.get(text) {
            Some(true) => Found::Directory(path.to_owned()),
            Some(false) => Found::File(path.to_owned()),
            None => Found::Nothing,
        }
    }
}

fn protected() -> ProtectedPaths {
    ProtectedPaths {
        hide: vec![
            "/run/exec".into(),
            "/etc/agent/agent.key".into(),
            "/etc/ctrl-exec".into(),
        ],
        read_only: vec!["/etc/agent".into(), "/opt/scripts".into()],
    }
}

struct Case {
    profile: ProfileConfig,
    features: Features,
    copy: Option<Vec<u8>>,
    fresh_proc: bool,
    look: Fake,
    mounts: &'static str,
}

impl Case {
    fn new(profile: ProfileConfig) -> Self {
        Self {
            profile,
            features: features(),
            copy: None,
            fresh_proc: false,
            look: Fake::new(&[]),
            mounts: MOUNTS,
        }
    }

    fn plan(self, report: &mut Protections) -> Result<MountPlan, NotPrepared> {
        let order = ViewOrder {
            profile: &self.profile,
            protected: &protected(),
            script: Path::new("/opt/scripts/backup"),
            copy: self.copy,
            fresh_proc: self.fresh_proc,
            features: &self.features,
            mounts: &Mounts::of(self.mounts),
        };
        build::build(order, &self.look, report)
    }

    fn done(self) -> (MountPlan, Protections) {
        let mut report = Protections::default();
        let plan = self.plan(&mut report).unwrap();
        (plan, report)
    }
}

fn steps(plan: &MountPlan) -> Vec<Step> {
    plan.steps.iter().map(|planned| planned.step).collect()
}

fn ops(plan: &MountPlan, step: Step) -> Vec<&Op> {
    plan.steps
        .iter()
        .filter(|planned| planned.step == step)
        .flat_map(|planned| &planned.ops)
        .collect()
}

fn set(op: &Op) -> Option<(&str, u64, u64)> {
    match op {
        Op::Over {
            path, set, clear, ..
        } => Some((path.to_str().unwrap(), *set, *clear)),
        Op::Attributes { path, set } => Some((path.to_str().unwrap(), *set, 0)),
        _ => None,
    }
}

#[test]
fn compat_without_writable_hides_protects_and_closes_switches() {
    let (plan, report) = Case::new(ProfileConfig::new(Baseline::Compat)).done();
    assert_eq!(
        steps(&plan),
        [
            Step::MountPropagation,
            Step::MountHide, // the stage
            Step::MountProtect,
            Step::MountProtect,
            Step::MountHide,
            Step::MountHide, // and stays covered
            Step::MountTunables,
        ]
    );
    assert_eq!(plan.steps[0].ops, [Op::Slave]);
    assert_eq!(plan.steps[1].stage, Stage::Makes);
    let protect: Vec<_> = ops(&plan, Step::MountProtect)
        .into_iter()
        .filter_map(set)
        .collect();
    assert_eq!(protect, [("/etc/agent", 1, 0), ("/opt/scripts", 1, 0)]);
    let tunables: Vec<_> = ops(&plan, Step::MountTunables)
        .into_iter()
        .filter_map(set)
        .collect();
    assert_eq!(
        tunables,
        [
            ("/proc/sys", 1, 0),
            ("/proc/irq", 1, 0),
            ("/sys/kernel", 1, 0),
            ("/sys/fs", 1, 0)
        ]
    );
    assert_eq!(report.0[&Protection::FileSystemView], Level::Enforced);
    assert_eq!(report.0[&Protection::ReadOnlyRoot], Level::Off);
    assert_eq!(report.0[&Protection::KernelTunables], Level::Enforced);
    assert_eq!(report.0[&Protection::VerifiedCopy], Level::Off);
}

#[test]
fn a_file_and_a_directory_are_hidden_by_their_likes_and_else_made_read_only() {
    let (plan, _) = Case::new(ProfileConfig::new(Baseline::Compat)).done();
    let hidden: Vec<_> = plan
        .steps
        .iter()
        .filter(|planned| planned.step == Step::MountHide && planned.stage == Stage::Needs)
        .collect();
    let bound: Vec<_> = hidden
        .iter()
        .map(|planned| match &planned.ops[..] {
            [Op::Bind { source, target, .. }] => {
                (source.to_str().unwrap(), target.to_str().unwrap())
            }
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(
        bound,
        [
            ("/run/exec/empty", "/etc/agent/agent.key"),
            ("/run/exec/nothing", "/run/exec")
        ]
    );
    assert!(hidden.iter().all(|planned| !planned.otherwise.is_empty()));
}

#[test]
fn with_writable_the_order_is_root_tmp_carve_outs_protected_hidden() {
    let mut profile = ProfileConfig::new(Baseline::Compat);
    profile.private_tmp = true;
    profile.writable = paths(&["/srv/my data", "/tmp/work/deep", "/absent", "/etc"]);
    let mut case = Case::new(profile);
    case.look = Fake::new(&["/etc/"]);
    let (plan, report) = case.done();
    let mut order = steps(&plan);
    order.dedup();
    assert_eq!(
        order,
        [
            Step::MountPropagation,
            Step::MountReadOnly,
            Step::MountHide,
            Step::MountPrivateTmp,
            Step::MountWritable,
            Step::MountProtect,
            Step::MountHide,
        ]
    );
    // The script directory is read-only with the root; what the carve-out opened is closed again.
    let protect: Vec<_> = ops(&plan, Step::MountProtect)
        .into_iter()
        .filter_map(set)
        .collect();
    assert_eq!(protect, [("/etc/agent", 1, 0)]);
    let carved = ops(&plan, Step::MountWritable);
    assert_eq!(set(carved[0]), Some(("/etc", 2, 1)));
    // A part of the host's system below a carve-out does not become writable with it.
    assert_eq!(
        *carved[1],
        Op::Over {
            path: c"/srv/my data".to_owned(),
            set: 2,
            clear: 1,
            still_read_only: vec![c"usr".to_owned()]
        }
    );
    let tmp = ops(&plan, Step::MountPrivateTmp);
    assert!(matches!(tmp[0], Op::Mount { target, flags, data, .. }
        if target.as_c_str() == c"/tmp"
        && *flags == MountFlags::NOSUID | MountFlags::NODEV
        && data.as_deref() == Some(c"mode=1777,size=25%")));
    let made: Vec<_> = tmp
        .iter()
        .filter_map(|op| match op {
            Op::Directory { path, mode } => Some((path.to_str().unwrap(), mode.as_raw_mode())),
            _ => None,
        })
        .collect();
    assert_eq!(made, [("/tmp/work", 0o755), ("/tmp/work/deep", 0o1777)]);
    assert_eq!(
        plan.warnings(),
        ["writable path /absent does not exist, left out"]
    );
    assert_eq!(report.0[&Protection::ReadOnlyRoot], Level::Enforced);
    assert_eq!(report.0[&Protection::PrivateTmp], Level::Enforced);
}

#[test]
fn an_old_kernel_gets_each_mount_with_the_flags_that_it_has() {
    let mut profile = ProfileConfig::new(Baseline::Compat);
    profile.writable = paths(&["/srv/my data"]);
    let mut case = Case::new(profile);
    case.features = old_features();
    let (plan, _) = case.done();
    let root = ops(&plan, Step::MountReadOnly);
    let points: Vec<_> = root
        .iter()
        .map(|op| match op {
            Op::Flags {
                target,
                flags,
                lenient,
            } => {
                assert!(flags.contains(MountFlags::RDONLY));
                assert_eq!(*lenient, target.as_c_str() != c"/");
                target.to_str().unwrap()
            }
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(
        points,
        [
            "/",
            "/proc",
            "/sys",
            "/sys/fs/cgroup/unified",
            "/dev",
            "/srv/my data"
        ]
    );
    let host = MountFlags::NOSUID
        | MountFlags::NODEV
        | MountFlags::NOEXEC
        | MountFlags::NOATIME
        | MountFlags::NODIRATIME;
    assert_eq!(
        ops(&plan, Step::MountWritable)[1..],
        [
            &Op::Flags {
                target: c"/srv/my data".to_owned(),
                flags: host,
                lenient: false
            },
            &Op::Flags {
                target: c"/srv/my data/usr".to_owned(),
                flags: MountFlags::RDONLY | MountFlags::RELATIME | MountFlags::NOSUID,
                lenient: true
            }
        ]
    );
}

#[test]
fn strict_has_devices_private_tmp_and_all_of_sys() {
    let mut case = Case::new(ProfileConfig::new(Baseline::Strict));
    case.copy = Some(b"#!/bin/sh\n".to_vec());
    case.fresh_proc = true;
    let (plan, report) = case.done();
    let mut order = steps(&plan);
    order.dedup();
    assert_eq!(
        order,
        [
            Step::MountPropagation,
            Step::MountHide,
            Step::MountPrivateTmp,
            Step::MountDevices,
            Step::MountProtect,
            Step::MountHide,
            Step::MountScript,
            Step::MountHide,
            Step::MountProc,
            Step::MountTunables,
        ]
    );
    let tunables: Vec<_> = ops(&plan, Step::MountTunables)
        .into_iter()
        .filter_map(set)
        .collect();
    assert_eq!(
        tunables,
        [("/proc/sys", 1, 0), ("/proc/irq", 1, 0), ("/sys", 1, 0)]
    );
    for protection in [
        Protection::MinimalDevices,
        Protection::PrivateTmp,
        Protection::VerifiedCopy,
    ] {
        assert_eq!(report.0[&protection], Level::Enforced);
    }
}

#[test]
fn nothing_is_planned_for_what_is_not_there() {
    let mut profile = ProfileConfig::new(Baseline::Strict);
    profile.writable = paths(&["/var/lib/x"]);
    let mut case = Case::new(profile);
    case.look = Fake(BTreeMap::from([
        ("", true),
        ("/proc", true),
        ("/opt/scripts/backup", false),
    ]));
    case.mounts = "";
    let (plan, report) = case.done();
    assert_eq!(steps(&plan), [Step::MountPropagation, Step::MountReadOnly]);
    assert!(matches!(
        report.0[&Protection::MinimalDevices],
        Level::Degraded(_)
    ));
    assert!(matches!(
        report.0[&Protection::PrivateTmp],
        Level::Degraded(_)
    ));
}

#[test]
fn what_cannot_be_is_refused() {
    let mut case = Case::new(ProfileConfig::new(Baseline::Compat));
    case.features.mount_namespace = Err("refused (EPERM)".to_owned());
    let error = case.plan(&mut Protections::default()).unwrap_err();
    assert_eq!(error.reason, "feature-missing");
    assert!(error.text.contains("EPERM"), "{}", error.text);

    let mut profile = ProfileConfig::new(Baseline::Compat);
    profile.devices = Protected::required(Devices::Minimal);
    let mut case = Case::new(profile);
    case.look.0.remove("/dev");
    let error = case.plan(&mut Protections::default()).unwrap_err();
    assert_eq!(error.reason, "feature-missing");
    assert!(error.text.contains("devices"), "{}", error.text);

    let mut profile = ProfileConfig::new(Baseline::Compat);
    profile.hide = paths(&["/opt/scripts"]);
    let error = Case::new(profile)
        .plan(&mut Protections::default())
        .unwrap_err();
    assert_eq!(error.reason, "setup");
    assert!(error.text.contains("/opt/scripts/backup"), "{}", error.text);
}

#[test]
fn a_script_below_a_private_tmp_stays() {
    let mut profile = ProfileConfig::new(Baseline::Compat);
    profile.private_tmp = true;
    let look = Fake::new(&["/tmp/demo/", "/tmp/demo/scripts/", "/tmp/demo/scripts/x"]);
    let order = ViewOrder {
        profile: &profile,
        protected: &ProtectedPaths::default(),
        script: Path::new("/tmp/demo/scripts/x"),
        copy: None,
        fresh_proc: false,
        features: &features(),
        mounts: &Mounts::of(MOUNTS),
    };
    let plan = build::build(order, &look, &mut Protections::default()).unwrap();
    let tmp = ops(&plan, Step::MountPrivateTmp);
    assert!(matches!(tmp[0], Op::Bind { source, .. } if source.as_c_str() == c"/tmp/demo/scripts"));
    assert!(tmp.iter().any(
        |op| matches!(op, Op::Bind { target, .. } if target.as_c_str() == c"/tmp/demo/scripts")
    ));
    assert_eq!(set(tmp[tmp.len() - 1]), Some(("/tmp/demo/scripts", 1, 0)));
}

#[test]
fn a_view_without_a_hidden_directory_is_prepared_on_proc_and_leaves_it() {
    let mut case = Case::new(ProfileConfig::new(Baseline::Compat));
    case.look.0.remove("/run/exec");
    let (plan, _) = case.done();
    let last = plan
        .steps
        .iter()
        .rfind(|planned| planned.step == Step::MountHide)
        .unwrap();
    assert_eq!(last.stage, Stage::Removes);
    assert_eq!(
        last.ops,
        [Op::Detach {
            target: c"/proc".to_owned()
        }]
    );
}

#[test]
fn cap_sys_admin_is_told() {
    let mut profile = ProfileConfig::new(Baseline::Compat);
    profile.caps = vec![caps::Capability::CAP_SYS_ADMIN];
    let (_, report) = Case::new(profile).done();
    assert!(matches!(
        report.0[&Protection::FileSystemView],
        Level::Degraded(_)
    ));
}

#[test]
fn a_covered_mount_is_not_visible() {
    let text = "\
1 0 8:1 / / rw - ext4 a rw
2 1 8:2 / /a/b rw - ext4 b rw
3 1 8:3 / /a rw - ext4 c rw
4 3 8:4 / /a/c ro - ext4 d rw
5 4 8:5 / /a/c rw - ext4 e rw
nonsense
6 6 8:6 / /loop rw - ext4 f rw
";
    let visible = mountinfo::visible(mountinfo::parse(text));
    let points: Vec<_> = visible
        .iter()
        .map(|mount| (mount.id, mount.point.to_str().unwrap()))
        .collect();
    assert_eq!(points[..3], [(1, "/"), (3, "/a"), (5, "/a/c")]);
}

#[test]
fn other_names_of_a_file_are_found() {
    let text = "\
1 0 0:20 / / rw - overlay overlay rw,lowerdir=/,upperdir=/overlay/upper,workdir=/overlay/work
2 1 8:2 / /overlay rw - ext4 b rw
3 1 8:2 /upper/srv /mnt/x rw - ext4 b rw
4 1 8:2 /upper/etc/agent /mnt/y rw - ext4 b rw
";
    let mounts = mountinfo::parse(text);
    let visible = mountinfo::visible(mounts.clone());
    assert_eq!(
        mountinfo::other_names(&visible, Path::new("/etc/agent/key")),
        [PathBuf::from("/overlay/upper/etc/agent/key")]
    );
    assert_eq!(
        mountinfo::other_names(&visible, Path::new("/overlay/upper/etc/agent/key")),
        [PathBuf::from("/mnt/y/key")]
    );
    assert_eq!(
        mountinfo::other_names(&visible, Path::new("/overlay/upper/etc")),
        [PathBuf::from("/mnt/y")]
    );
}

proptest! {
    #[test]
    fn any_text_can_be_read(text in "[0-9 :/\\\\a-z,\n-]{0,400}") {
        let mounts = mountinfo::parse(&text);
        let visible = mountinfo::visible(mounts.clone());
        prop_assert!(visible.len() <= mounts.len());
        let _ = mountinfo::other_names(&visible, Path::new("/a"));
    }

    #[test]
    fn a_mount_point_comes_back_from_its_escapes(name in "[a-z \t\n\\\\]{1,20}") {
        let escaped: String = name
            .bytes()
            .map(|byte| if b" \t\n\\".contains(&byte) { format!("\\{byte:03o}") } else { char::from(byte).to_string() })
            .collect();
        let mounts = mountinfo::parse(&format!("1 0 8:1 / /{escaped} rw - ext4 a rw"));
        prop_assert_eq!(&mounts[0].point, &PathBuf::from(format!("/{name}")));
    }
}
