//! Which rights a profile comes to, and that they are really in force: each in a thread of its own.

use std::fs;
use std::io::ErrorKind;
use std::net::{TcpListener, TcpStream};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};

use super::*;
use crate::core::config::{Baseline, Protected};
use crate::core::sandbox::view::Mounts;
use crate::core::types::AbsolutePath;

fn features(abi: u32) -> Features {
    Features {
        landlock_abi: abi,
        landlock: match abi {
            0 => Err("not in this kernel".to_owned()),
            _ => Ok(()),
        },
        ..Features::modern()
    }
}

fn compat() -> ProfileConfig {
    ProfileConfig::new(Baseline::Compat)
}

fn absolute(path: &Path) -> AbsolutePath {
    AbsolutePath::new(path.to_str().unwrap()).unwrap()
}

fn level(profile: &ProfileConfig, abi: u32) -> (Result<bool, NotPrepared>, Option<Level>) {
    let mut report = Protections::default();
    let made = ruleset(profile, Path::new("/bin/sh"), &features(abi), &mut report);
    (
        made.map(|made| made.is_some()),
        report.0.remove(&Protection::Landlock),
    )
}

/// Whether this kernel has Landlock with at least this ABI; one without says nothing about our rules.
fn there(abi: u32) -> bool {
    let have = sys::landlock::abi_for_test();
    if have < abi {
        println!("left out: Landlock ABI {have} here, {abi} needed");
    }
    have >= abi
}

/// Enters the ruleset of a profile in a thread that ends, and does something there.
fn inside<T: Send>(profile: &ProfileConfig, test: impl FnOnce() -> T + Send) -> T {
    let mut report = Protections::default();
    let abi = sys::landlock::abi_for_test();
    let rules = ruleset(profile, Path::new("/bin/sh"), &features(abi), &mut report)
        .unwrap()
        .unwrap();
    if abi >= 5 {
        assert_eq!(report.0[&Protection::Landlock], Level::Enforced);
    }
    std::thread::scope(|scope| {
        scope
            .spawn(|| {
                rustix::thread::set_no_new_privs(true).unwrap();
                rules.enter().unwrap();
                test()
            })
            .join()
            .unwrap()
    })
}

#[test]
fn a_profile_that_asks_for_nothing_handles_nothing() {
    let wish = wish(&compat(), 5);
    assert!(wish.only_extras && wish.missing.is_empty());
    assert!(wish.files.is_empty() && wish.net.is_empty() && wish.scopes.is_empty());
    if there(1) {
        assert_eq!(level(&compat(), 5), (Ok(false), Some(Level::Off)));
    }
    assert_eq!(level(&compat(), 0), (Ok(false), Some(Level::Off)));
    let mut off = compat();
    off.landlock = Want::Off;
    off.tcp_bind = Ports::Only(Vec::new());
    assert_eq!(level(&off, 7), (Ok(false), Some(Level::Off)));
}

#[test]
fn writable_alone_restricts_writing_alone() {
    let mut profile = compat();
    profile.writable = vec![AbsolutePath::new("/srv").unwrap()];
    let all = wish(&profile, 6);
    assert_eq!(all.files, AccessFs::from_write(ABI::V6));
    assert!(all.missing.is_empty());
    let old = wish(&profile, 2);
    assert_eq!(old.files, AccessFs::from_write(ABI::V2));
    assert_eq!(
        old.missing,
        ["truncation (ABI 3)", "ioctl on devices (ABI 5)"]
    );
    profile.caps = vec![Capability::CAP_SYS_ADMIN];
    assert!(wish(&profile, 6).files.is_empty());
    profile.landlock = Want::Require;
    assert!(!wish(&profile, 6).files.is_empty());
}

#[test]
fn reading_and_executing_are_restricted_as_far_as_lists_are_there() {
    let mut profile = compat();
    profile.read = vec![AbsolutePath::new("/srv").unwrap()];
    assert_eq!(wish(&profile, 6).files, reading());
    profile.execute = vec![AbsolutePath::new("/usr").unwrap()];
    assert_eq!(wish(&profile, 6).files, reading() | AccessFs::Execute);
    assert!(!writing().contains(AccessFs::Execute));
    assert!(!writing().intersects(AccessFs::MakeChar | AccessFs::MakeBlock));
}

#[test]
fn signals_are_scoped_only_where_nothing_outside_has_to_be_reached() {
    let mut profile = compat();
    assert_eq!(wish(&profile, 6).scopes, Scoped::AbstractUnixSocket);
    profile.processes = Protected::tried(Scope::Private);
    assert!(wish(&profile, 6).scopes.contains(Scoped::Signal));
    profile.caps = vec![Capability::CAP_KILL];
    assert!(!wish(&profile, 6).scopes.contains(Scoped::Signal));
    assert!(wish(&profile, 5).scopes.is_empty());
}

#[test]
fn what_is_required_and_missing_is_refused_and_what_is_tried_is_degraded() {
    let mut profile = compat();
    profile.tcp_connect = Ports::Only(vec![443]);
    assert_eq!(
        level(&profile, 0),
        (
            Ok(false),
            Some(Level::Degraded("not in this kernel".to_owned()))
        )
    );
    if there(3) {
        let (made, Some(Level::Degraded(why))) = level(&profile, 3) else {
            panic!("ports need ABI 4");
        };
        assert_eq!(made, Ok(false));
        assert!(why.contains("TCP ports"), "{why}");
    }
    profile.landlock = Want::Require;
    for abi in [0, 3] {
        let error = level(&profile, abi).0.unwrap_err();
        assert_eq!(error.reason, "feature-missing");
        assert!(error.text.contains("landlock = require"), "{}", error.text);
    }
}

#[test]
fn no_ports_at_all_can_be_had_by_a_namespace_where_landlock_is_old() {
    let mut profile = compat();
    profile.tcp_connect = Ports::Only(Vec::new());
    assert!(!needs_network_namespace(&profile, &features(3)));
    profile.tcp_bind = Ports::Only(Vec::new());
    assert!(needs_network_namespace(&profile, &features(3)));
    assert!(!needs_network_namespace(&profile, &features(4)));
    profile.landlock = Want::Require;
    assert!(!needs_network_namespace(&profile, &features(3)));
}

#[test]
fn only_what_is_listed_can_be_read() {
    if !there(1) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    for name in ["open", "closed"] {
        fs::create_dir(dir.path().join(name)).unwrap();
        fs::write(dir.path().join(name).join("file"), name).unwrap();
    }
    let mut profile = compat();
    profile.read = vec![absolute(&dir.path().join("open"))];
    let (open, closed, proc, null, run) = inside(&profile, || {
        (
            fs::read_to_string(dir.path().join("open/file")).unwrap(),
            fs::read(dir.path().join("closed/file")).unwrap_err().kind(),
            fs::read_to_string("/proc/self/stat").is_ok(),
            fs::read("/dev/null").is_ok(),
            std::process::Command::new("/bin/sh")
                .args(["-c", "exit 7"])
                .status()
                .unwrap()
                .code(),
        )
    });
    assert_eq!(open, "open");
    assert_eq!(closed, ErrorKind::PermissionDenied);
    assert!(proc && null);
    assert_eq!(run, Some(7));
}

#[test]
fn only_what_is_writable_can_be_written_and_nothing_there_be_run() {
    if !there(1) {
        return;
    }
    let dir = tempfile::tempdir_in("/var")
        .or_else(|_| tempfile::tempdir())
        .unwrap();
    for name in ["open", "closed"] {
        fs::create_dir(dir.path().join(name)).unwrap();
    }
    let mut profile = compat();
    profile.writable = vec![absolute(&dir.path().join("open"))];
    profile.execute = vec![AbsolutePath::new("/usr/bin").unwrap()];
    profile.read = vec![AbsolutePath::new("/").unwrap()];
    let program = dir.path().join("open/program");
    let (written, refused, run) = inside(&profile, || {
        let written = fs::copy("/bin/sh", &program).is_ok();
        (
            written,
            fs::write(dir.path().join("closed/x"), "x")
                .unwrap_err()
                .kind(),
            std::process::Command::new(&program)
                .args(["-c", "exit 0"])
                .status()
                .unwrap_err()
                .kind(),
        )
    });
    assert!(written);
    assert_eq!(refused, ErrorKind::PermissionDenied);
    assert_eq!(run, ErrorKind::PermissionDenied);
}

#[test]
fn only_listed_ports_can_be_reached_or_offered() {
    if !there(4) {
        return;
    }
    let allowed = TcpListener::bind("127.0.0.1:0").unwrap();
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut profile = compat();
    profile.tcp_connect = Ports::Only(vec![allowed.local_addr().unwrap().port()]);
    profile.tcp_bind = Ports::Only(Vec::new());
    let (yes, no, bind) = inside(&profile, || {
        (
            TcpStream::connect(allowed.local_addr().unwrap()).is_ok(),
            TcpStream::connect(other.local_addr().unwrap())
                .unwrap_err()
                .kind(),
            TcpListener::bind("127.0.0.1:0").unwrap_err().kind(),
        )
    });
    assert!(yes);
    assert_eq!(no, ErrorKind::PermissionDenied);
    assert_eq!(bind, ErrorKind::PermissionDenied);
}

#[test]
fn abstract_sockets_outside_cannot_be_reached() {
    if !there(6) {
        return;
    }
    let name = format!("ctrl-exec-test-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(name.as_bytes()).unwrap();
    let _outside = UnixListener::bind_addr(&address).unwrap();
    assert!(UnixStream::connect_addr(&address).is_ok());
    let refused = inside(&compat(), || {
        UnixStream::connect_addr(&address).unwrap_err().kind()
    });
    assert_eq!(refused, ErrorKind::PermissionDenied);
}

fn root_and_landlock() -> bool {
    let both = there(1) && rustix::process::geteuid().is_root();
    assert!(
        both || std::env::var_os("CI").is_none_or(|v| v.is_empty()),
        "this test needs root and Landlock, and in CI no test may be left out"
    );
    both
}

#[test]
fn what_the_child_mounts_gets_its_rule_there() {
    if !root_and_landlock() {
        return;
    }
    let dir = tempfile::tempdir_in("/var").unwrap();
    let script = dir.path().join("script");
    fs::write(&script, "#!/bin/sh\nexit 1\n").unwrap();
    let mut profile = ProfileConfig::new(Baseline::Strict);
    profile.writable = vec![AbsolutePath::new("/nowhere").unwrap()];
    profile.read = vec![AbsolutePath::new("/nowhere").unwrap()];
    profile.execute = vec![AbsolutePath::new("/nowhere").unwrap()];
    let features = features(sys::landlock::abi_for_test());
    let mut report = Protections::default();
    let order = super::super::view::ViewOrder {
        profile: &profile,
        protected: &super::super::ProtectedPaths::default(),
        script: &script,
        copy: Some(
            b"#!/bin/sh\necho x >/tmp/x || exit 2; echo x >/dev/shm/x || exit 3; read -r a </proc/version || exit 4
echo x >/dev/null || exit 5; test -r /proc/self/stat || exit 6; ( read -r a </etc/passwd ) 2>/dev/null && exit 7; exit 42\n"
                .to_vec(),
        ),
        fresh_proc: true,
        features: &features,
        mounts: &Mounts::of(&fs::read_to_string("/proc/self/mountinfo").unwrap()),
    };
    let plan = super::super::view::plan(order, &mut report).unwrap();
    let rules = ruleset(&profile, &script, &features, &mut report)
        .unwrap()
        .unwrap();
    let out = std::thread::scope(|scope| {
        scope
            .spawn(|| {
                sys::mounts::own_namespace_for_test();
                plan.apply().unwrap();
                rustix::thread::set_no_new_privs(true).unwrap();
                rules.enter().unwrap();
                std::process::Command::new(&script)
                    .stdin(std::process::Stdio::null())
                    .output()
                    .unwrap()
            })
            .join()
            .unwrap()
    });
    assert_eq!(out.status.code(), Some(42), "{out:?}");
}
