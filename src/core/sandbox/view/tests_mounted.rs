//! Views that are really mounted, each in a mount namespace of the test's own thread.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::StatVfsMountFlags;
use rustix::mount::{MountFlags, mount, mount_bind, mount_remount};

use super::tests::{features, old_features, paths};
use super::{Mounts, ViewOrder, plan};
use crate::core::config::{Baseline, Devices, ProfileConfig, Protected};
use crate::core::sandbox::features::Features;
use crate::core::sandbox::{Level, ProtectedPaths, Protection, Protections};
use crate::core::sys::mounts::own_namespace_for_test;

fn root_or_skip(test: &str) -> bool {
    if rustix::process::geteuid().is_root() {
        return true;
    }
    assert!(
        std::env::var_os("CI").is_none_or(|v| v.is_empty()),
        "{test} needs root, and in CI no test may be left out"
    );
    println!("{test}: left out, it needs root");
    false
}

/// Runs a test once for every way that kernels offer, each in a namespace with a small host in /mnt.
fn on_every_kernel(name: &str, test: impl Fn(&Features) + Sync) {
    if !root_or_skip(name) {
        return;
    }
    let between = Features {
        mount_api: false,
        openat2: false,
        ..features()
    };
    for features in [features(), between, old_features()] {
        let test = &test;
        std::thread::scope(|scope| {
            scope
                .spawn(move || {
                    own_namespace_for_test();
                    host();
                    test(&features);
                })
                .join()
                .unwrap();
        });
    }
}

fn tmpfs(path: &str, flags: MountFlags) {
    fs::create_dir_all(path).unwrap();
    mount("tmpfs", path, "tmpfs", flags, None).unwrap();
}

fn host() {
    tmpfs("/mnt", MountFlags::empty());
    for dir in [
        "/mnt/scripts",
        "/mnt/agent/below",
        "/mnt/socket",
        "/mnt/data/inside",
        "/mnt/other",
        "/mnt/lib",
    ] {
        fs::create_dir_all(dir).unwrap();
    }
    fs::write("/mnt/scripts/backup", "#!/bin/sh\necho $0\n").unwrap();
    fs::set_permissions("/mnt/scripts/backup", fs::Permissions::from_mode(0o750)).unwrap();
    fs::write("/mnt/agent/agent.key", "secret").unwrap();
    fs::write("/mnt/socket/exec.sock", "").unwrap();
    fs::write("/mnt/lib/ld.so", "").unwrap();
}

fn protected() -> ProtectedPaths {
    ProtectedPaths {
        hide: vec![
            "/mnt/socket".into(),
            "/mnt/agent/agent.key".into(),
            "/mnt/absent".into(),
        ],
        read_only: vec!["/mnt/agent".into(), "/mnt/scripts".into()],
    }
}

fn enter(profile: &ProfileConfig, features: &Features, copy: Option<&[u8]>) -> Vec<String> {
    let order = ViewOrder {
        profile,
        protected: &protected(),
        script: Path::new("/mnt/scripts/backup"),
        copy: copy.map(<[u8]>::to_vec),
        fresh_proc: false,
        features,
        mounts: &Mounts::of(&fs::read_to_string("/proc/thread-self/mountinfo").unwrap()),
    };
    let plan = plan(order, &mut Protections::default()).unwrap();
    plan.apply().unwrap();
    plan.warnings().to_vec()
}

fn read_only(path: &str) {
    let error = fs::write(Path::new(path).join("new"), "x").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ReadOnlyFilesystem, "{path}");
}

fn writable(path: &str) {
    fs::write(Path::new(path).join("new"), "x").unwrap_or_else(|e| panic!("{path}: {e}"));
}

/// Mount flags of a path, without the one that the kernel adds by itself.
fn flags(path: &str) -> StatVfsMountFlags {
    rustix::fs::statvfs(path).unwrap().f_flag & !StatVfsMountFlags::from_bits_retain(0x20)
}

#[test]
fn only_what_is_writable_can_be_written() {
    on_every_kernel("only_what_is_writable_can_be_written", |features| {
        tmpfs(
            "/mnt/data/mounted",
            MountFlags::NODEV | MountFlags::NOEXEC | MountFlags::NOATIME,
        );
        tmpfs("/mnt/data/blank name", MountFlags::empty());
        // Part of the host's system inside a carve-out.
        fs::create_dir("/mnt/data/lib").unwrap();
        mount_bind("/mnt/lib", "/mnt/data/lib").unwrap();
        mount_remount("/mnt/data/lib", MountFlags::BIND | MountFlags::RDONLY, c"").unwrap();
        let mut profile = ProfileConfig::new(Baseline::Compat);
        profile.private_tmp = true;
        profile.tmp_size = Some(1 << 20);
        profile.writable = paths(&["/mnt/data", "/tmp/view-test/x", "/mnt/absent"]);
        let warnings = enter(&profile, features, None);
        assert_eq!(
            warnings,
            ["writable path /mnt/absent does not exist, left out"]
        );
        for path in [
            "/",
            "/mnt",
            "/mnt/other",
            "/mnt/data/lib",
            "/dev/shm",
            "/run",
        ] {
            read_only(path);
        }
        for path in [
            "/mnt/data",
            "/mnt/data/inside",
            "/mnt/data/mounted",
            "/mnt/data/blank name",
            "/tmp",
            "/tmp/view-test/x",
            "/var/tmp",
        ] {
            writable(path);
        }
        let kept = flags("/mnt/data/mounted");
        assert!(kept.contains(
            StatVfsMountFlags::NODEV | StatVfsMountFlags::NOEXEC | StatVfsMountFlags::NOSUID
        ));
        assert!(kept.contains(StatVfsMountFlags::NOATIME));
        let carved = flags("/mnt/data");
        assert!(carved.contains(StatVfsMountFlags::NOSUID));
        assert!(!carved.contains(StatVfsMountFlags::NOEXEC));
    });
}

#[test]
fn tmp_is_private_bounded_and_open_to_all() {
    on_every_kernel("tmp_is_private_bounded_and_open_to_all", |features| {
        tmpfs("/tmp", MountFlags::empty());
        fs::write("/tmp/of-the-host", "x").unwrap();
        // Planted by whoever can write to /tmp.
        symlink("/mnt/other", "/tmp/trap").unwrap();
        let mut profile = ProfileConfig::new(Baseline::Compat);
        profile.private_tmp = true;
        profile.tmp_size = Some(64 << 10);
        profile.writable = paths(&["/tmp/trap"]);
        enter(&profile, features, None);
        assert!(!Path::new("/tmp/of-the-host").exists());
        assert!(fs::symlink_metadata("/tmp/trap").unwrap().is_dir());
        read_only("/mnt/other");
        for path in ["/tmp", "/var/tmp", "/tmp/trap"] {
            assert_eq!(
                fs::metadata(path).unwrap().mode() & 0o7777,
                0o1777,
                "{path}"
            );
            assert!(
                flags(path).contains(StatVfsMountFlags::NOSUID | StatVfsMountFlags::NODEV),
                "{path}"
            );
        }
        let error = fs::write("/tmp/big", vec![0; 128 << 10]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::StorageFull);
    });
}

#[test]
fn a_carve_out_does_not_open_what_is_protected() {
    on_every_kernel("a_carve_out_does_not_open_what_is_protected", |features| {
        tmpfs("/mnt/agent/below", MountFlags::NOSUID);
        let mut profile = ProfileConfig::new(Baseline::Compat);
        profile.writable = paths(&["/mnt"]);
        enter(&profile, features, None);
        writable("/mnt/other");
        read_only("/mnt/agent");
        read_only("/mnt/agent/below");
        read_only("/mnt/scripts");
        assert_eq!(fs::read("/mnt/agent/agent.key").unwrap(), b"");
        assert_eq!(fs::read_dir("/mnt/socket").unwrap().count(), 0);
        assert!(fs::rename("/mnt/agent", "/mnt/away").is_err());
    });
}

#[test]
fn what_lies_above_something_protected_cannot_be_replaced() {
    on_every_kernel(
        "what_lies_above_something_protected_cannot_be_replaced",
        |features| {
            for dir in ["/mnt/data/app/etc", "/mnt/data/app/deep/scripts"] {
                fs::create_dir_all(dir).unwrap();
            }
            fs::write("/mnt/data/app/etc/agent.key", "secret").unwrap();
            let protected = ProtectedPaths {
                hide: vec!["/mnt/data/app/etc/agent.key".into()],
                read_only: vec!["/mnt/data/app/deep/scripts".into()],
            };
            let mut profile = ProfileConfig::new(Baseline::Compat);
            profile.writable = paths(&["/mnt/data"]);
            let order = ViewOrder {
                profile: &profile,
                protected: &protected,
                script: Path::new("/mnt/scripts/backup"),
                copy: None,
                fresh_proc: false,
                features,
                mounts: &Mounts::of(&fs::read_to_string("/proc/thread-self/mountinfo").unwrap()),
            };
            plan(order, &mut Protections::default())
                .unwrap()
                .apply()
                .unwrap();
            for dir in [
                "/mnt/data/app/deep/scripts",
                "/mnt/data/app/deep",
                "/mnt/data/app/etc",
                "/mnt/data/app",
            ] {
                let error = fs::rename(dir, format!("{dir}-moved")).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::ResourceBusy, "{dir}");
            }
            read_only("/mnt/data/app/deep/scripts");
            for path in [
                "/mnt/data/app/deep",
                "/mnt/data/app/etc",
                "/mnt/data/app",
                "/mnt/data",
            ] {
                writable(path);
            }
            assert_eq!(fs::read("/mnt/data/app/etc/agent.key").unwrap(), b"");
        },
    );
}

#[test]
fn without_writable_secrets_are_hidden_and_sub_mounts_are_protected_too() {
    on_every_kernel("without_writable_secrets_are_hidden", |features| {
        tmpfs("/mnt/agent/below", MountFlags::empty());
        // The same key by another name.
        tmpfs("/mnt/other/chroot", MountFlags::empty());
        fs::create_dir("/mnt/other/chroot/agent").unwrap();
        mount_bind("/mnt/agent", "/mnt/other/chroot/agent").unwrap();
        enter(&ProfileConfig::new(Baseline::Compat), features, None);
        writable("/mnt/other");
        writable("/mnt/data");
        read_only("/mnt/agent");
        read_only("/mnt/agent/below");
        read_only("/mnt/socket");
        read_only("/mnt/other/chroot/agent");
        for key in ["/mnt/agent/agent.key", "/mnt/other/chroot/agent/agent.key"] {
            assert_eq!(fs::read(key).unwrap(), b"", "{key}");
            assert_eq!(fs::metadata(key).unwrap().mode() & 0o7777, 0, "{key}");
            assert!(fs::write(key, "mine").is_err(), "{key}");
            assert!(fs::remove_file(key).is_err(), "{key}");
        }
        assert_eq!(fs::metadata("/mnt/socket").unwrap().mode() & 0o7777, 0);
    });
}

#[test]
fn the_kernels_switches_are_read_only() {
    on_every_kernel("the_kernels_switches_are_read_only", |features| {
        enter(&ProfileConfig::new(Baseline::Compat), features, None);
        for path in [
            "/proc/sys/kernel/core_pattern",
            "/proc/sysrq-trigger",
            "/sys/kernel/uevent_helper",
            "/sys/fs/cgroup/release_agent",
            "/sys/module/firmware_class/parameters/path",
        ] {
            let open = fs::OpenOptions::new().write(true).open(path);
            let kind = open.map_err(|error| error.kind()).err();
            assert!(
                kind == Some(ErrorKind::ReadOnlyFilesystem) || kind == Some(ErrorKind::NotFound),
                "{path}: {kind:?}"
            );
        }
        for path in ["/proc/sys/kernel", "/sys/fs/cgroup", "/sys/kernel"] {
            assert!(
                flags(path).contains(StatVfsMountFlags::RDONLY),
                "{path} is writable"
            );
        }
        fs::write("/proc/self/comm", "x").unwrap();
    });
}

#[test]
fn a_profile_may_keep_the_kernels_switches() {
    on_every_kernel("a_profile_may_keep_the_kernels_switches", |features| {
        let mut profile = ProfileConfig::new(Baseline::Compat);
        profile.kernel_tunables_writable = true;
        profile.writable = paths(&["/mnt/data"]);
        enter(&profile, features, None);
        read_only("/mnt/other");
        assert!(!flags("/proc/sys").contains(StatVfsMountFlags::RDONLY));
        assert!(!flags("/sys").contains(StatVfsMountFlags::RDONLY));
    });
}

#[test]
fn what_runs_is_what_was_checked() {
    on_every_kernel("what_runs_is_what_was_checked", |features| {
        let path = "/mnt/scripts/backup";
        let checked = b"#!/bin/sh\necho checked $0; ls ${0%/*}\n";
        let edit = |content: &str| fs::write(path, content).unwrap();
        // Another view of the same directory stands for the host.
        mount_bind("/mnt/scripts", "/mnt/other").unwrap();
        edit("#!/bin/sh\necho edited\n");
        let before = ProtectedPaths::default();
        let profile = ProfileConfig::new(Baseline::Compat);
        let order = ViewOrder {
            profile: &profile,
            protected: &before,
            script: Path::new(path),
            copy: Some(checked.to_vec()),
            fresh_proc: false,
            features,
            mounts: &Mounts::of(&fs::read_to_string("/proc/thread-self/mountinfo").unwrap()),
        };
        plan(order, &mut Protections::default())
            .unwrap()
            .apply()
            .unwrap();
        fs::write("/mnt/other/backup", "#!/bin/sh\necho edited again\n").unwrap();
        assert_eq!(fs::read(path).unwrap(), checked);
        assert_eq!(fs::metadata(path).unwrap().mode() & 0o7777, 0o555);
        assert!(fs::write(path, "x").is_err());
        let out = std::process::Command::new(path).output().unwrap();
        assert_eq!(
            String::from_utf8(out.stdout).unwrap(),
            "checked /mnt/scripts/backup\nbackup\n"
        );
        // Nothing is left of where it was prepared.
        assert!(Path::new("/proc/self/status").exists());
    });
}

#[test]
fn a_checked_script_in_tmp_runs_although_tmp_is_private() {
    on_every_kernel("a_checked_script_in_tmp_runs", |features| {
        tmpfs("/tmp", MountFlags::empty());
        for (script, directory) in [
            ("/tmp/demo/scripts/x", "/tmp/demo/scripts"),
            ("/tmp/x", "/tmp"),
        ] {
            fs::create_dir_all(directory).unwrap();
            fs::write(script, "host").unwrap();
        }
        // Twice, to see both: a directory that stays, and a file alone.
        for script in ["/tmp/demo/scripts/x", "/tmp/x"] {
            let script = script.to_owned();
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    own_namespace_for_test();
                    let mut profile = ProfileConfig::new(Baseline::Compat);
                    profile.private_tmp = true;
                    let order = ViewOrder {
                        profile: &profile,
                        protected: &ProtectedPaths::default(),
                        script: Path::new(&script),
                        copy: Some(b"checked".to_vec()),
                        fresh_proc: false,
                        features,
                        mounts: &Mounts::of(
                            &fs::read_to_string("/proc/thread-self/mountinfo").unwrap(),
                        ),
                    };
                    plan(order, &mut Protections::default())
                        .unwrap()
                        .apply()
                        .unwrap();
                    assert_eq!(fs::read(&script).unwrap(), b"checked");
                    writable("/tmp");
                    if script.contains("demo") {
                        read_only("/tmp/demo/scripts");
                    }
                });
            });
        }
    });
}

#[test]
fn minimal_devices_hold_nothing_else() {
    on_every_kernel("minimal_devices_hold_nothing_else", |features| {
        let mut profile = ProfileConfig::new(Baseline::Compat);
        profile.devices = Protected::required(Devices::Minimal);
        profile.writable = paths(&["/mnt/data"]);
        enter(&profile, features, None);
        let mut names: Vec<_> = fs::read_dir("/dev")
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name != "tty")
            .collect();
        names.sort();
        assert_eq!(
            names,
            [
                "fd", "full", "null", "random", "shm", "stderr", "stdin", "stdout", "urandom",
                "zero"
            ]
        );
        fs::write("/dev/null", "x").unwrap();
        assert_eq!(
            fs::read_link("/dev/fd").unwrap(),
            PathBuf::from("/proc/self/fd")
        );
        writable("/dev/shm");
        read_only("/dev");
        for path in ["/dev", "/dev/shm"] {
            assert!(
                flags(path).contains(StatVfsMountFlags::NOSUID | StatVfsMountFlags::NOEXEC),
                "{path}"
            );
        }
    });
}

#[test]
fn a_fresh_proc_has_its_switches_closed() {
    on_every_kernel("a_fresh_proc_has_its_switches_closed", |features| {
        let profile = ProfileConfig::new(Baseline::Strict);
        let order = ViewOrder {
            profile: &profile,
            protected: &protected(),
            script: Path::new("/mnt/scripts/backup"),
            copy: Some(b"checked".to_vec()),
            fresh_proc: true,
            features,
            mounts: &Mounts::of(&fs::read_to_string("/proc/thread-self/mountinfo").unwrap()),
        };
        plan(order, &mut Protections::default())
            .unwrap()
            .apply()
            .unwrap();
        assert!(flags("/proc").contains(StatVfsMountFlags::NOSUID | StatVfsMountFlags::NOEXEC));
        assert!(!flags("/proc").contains(StatVfsMountFlags::RDONLY));
        assert!(flags("/proc/sys").contains(
            StatVfsMountFlags::RDONLY | StatVfsMountFlags::NOSUID | StatVfsMountFlags::NOEXEC
        ));
        assert!(flags("/sys").contains(StatVfsMountFlags::RDONLY));
        assert!(flags("/sys/fs/cgroup").contains(StatVfsMountFlags::RDONLY));
    });
}

#[test]
fn what_is_laid_over_proc_beforehand_does_no_harm() {
    on_every_kernel("what_is_laid_over_proc_beforehand", |features| {
        // As systemd-nspawn and others do with the containers that they make.
        for path in ["/proc/sys", "/proc/fs"] {
            mount_bind(path, path).unwrap();
            let flags = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID;
            mount_remount(path, flags, c"").unwrap();
        }
        mount_bind("/dev/null", "/proc/sys/kernel/random/boot_id").unwrap();
        let mounts = Mounts::of(&fs::read_to_string("/proc/thread-self/mountinfo").unwrap());
        // On the container's own, then on a fresh one over it.
        for fresh_proc in [false, true] {
            let profile = ProfileConfig::new(Baseline::Strict);
            let order = ViewOrder {
                profile: &profile,
                protected: &protected(),
                script: Path::new("/mnt/scripts/backup"),
                copy: Some(b"checked".to_vec()),
                fresh_proc,
                features,
                mounts: &mounts,
            };
            let mut report = Protections::default();
            plan(order, &mut report).unwrap().apply().unwrap();
            assert_eq!(report.0[&Protection::KernelTunables], Level::Enforced);
            for path in ["/proc/sys", "/proc/sys/kernel", "/proc/fs"] {
                assert!(flags(path).contains(StatVfsMountFlags::RDONLY), "{path}");
            }
        }
    });
}

#[test]
fn links_of_root_are_followed_and_those_of_others_are_not() {
    on_every_kernel("links_of_root_are_followed", |features| {
        symlink("/mnt/data", "/mnt/link").unwrap();
        symlink("/mnt/other", "/mnt/foreign").unwrap();
        std::os::unix::fs::lchown("/mnt/foreign", Some(65534), Some(65534)).unwrap();
        let mut profile = ProfileConfig::new(Baseline::Compat);
        profile.writable = paths(&["/mnt/link/inside", "/mnt/foreign"]);
        let warnings = enter(&profile, features, None);
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        assert!(warnings[0].contains("/mnt/foreign"), "{warnings:?}");
        writable("/mnt/data/inside");
        read_only("/mnt/data");
        read_only("/mnt/other");
    });
}

#[test]
fn a_link_put_in_place_of_a_carve_out_opens_nothing() {
    if !root_or_skip("a_link_put_in_place_of_a_carve_out_opens_nothing") {
        return;
    }
    std::thread::scope(|scope| {
        scope.spawn(|| {
            own_namespace_for_test();
            host();
            let features = features();
            let mut profile = ProfileConfig::new(Baseline::Compat);
            profile.writable = paths(&["/mnt/data"]);
            let order = ViewOrder {
                profile: &profile,
                protected: &protected(),
                script: Path::new("/mnt/scripts/backup"),
                copy: None,
                fresh_proc: false,
                features: &features,
                mounts: &Mounts::of(&fs::read_to_string("/proc/thread-self/mountinfo").unwrap()),
            };
            let plan = plan(order, &mut Protections::default()).unwrap();
            fs::rename("/mnt/data", "/mnt/was").unwrap();
            symlink("/mnt/other", "/mnt/data").unwrap();
            let failed = plan.apply().unwrap_err();
            assert_eq!(
                failed.step,
                crate::core::sandbox::child::Step::MountWritable
            );
            assert_eq!(failed.errno, libc::ELOOP);
            read_only("/mnt/other");
        });
    });
}
