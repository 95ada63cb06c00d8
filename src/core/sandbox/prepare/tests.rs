use super::*;
use crate::core::config::{Baseline, LimitKind};
use crate::core::types::{AbsolutePath, ProfileName, ScriptName};

/// A kernel that has everything, or, without root, nothing that needs it.
pub(in crate::core::sandbox) fn features(privileged: bool) -> Features {
    Features {
        privileged,
        landlock_abi: 0,
        landlock: Err("not asked".to_owned()),
        cap_last: std::fs::read_to_string("/proc/sys/kernel/cap_last_cap")
            .unwrap()
            .trim()
            .parse()
            .unwrap(),
        ..Features::modern()
    }
}

/// Prepares a run of `path`, all but what other modules contribute.
pub(in crate::core::sandbox) fn assembled(
    path: &str,
    args: &[&str],
    profile: &ProfileConfig,
    identity: Identity,
    features: &Features,
) -> (Result<Prepared, NotPrepared>, Protections) {
    let script = Resolved {
        name: ScriptName::new("check").unwrap(),
        path: AbsolutePath::new(path).unwrap(),
        profile: ProfileName::new("web").unwrap(),
    };
    let args: Vec<Vec<u8>> = args.iter().map(|arg| arg.as_bytes().to_vec()).collect();
    let mut report = Protections::default();
    let prepared = assemble(
        RunOrder {
            script: &script,
            profile,
            args: &args,
            reqid: "r-1",
            identity,
            checked: Checked::default(),
            protected: &ProtectedPaths::default(),
            features,
            bounding: features.bounding,
            mounts: &Mounts::default(),
            leaf: None,
        },
        Confinement::default(),
        &mut report,
    );
    (prepared, report)
}

pub(in crate::core::sandbox) fn root() -> Identity {
    Identity {
        uid: 0,
        gid: 0,
        groups: Vec::new(),
        name: Some("root".to_owned()),
        home: "/root".to_owned(),
    }
}

fn compat() -> ProfileConfig {
    ProfileConfig::new(Baseline::Compat)
}

fn lines(strings: &crate::core::sys::process::Strings) -> Vec<String> {
    strings
        .texts()
        .iter()
        .map(|text| text.to_str().unwrap().to_owned())
        .collect()
}

fn refusal(profile: &ProfileConfig, features: &Features) -> NotPrepared {
    assembled("/bin/true", &[], profile, root(), features)
        .0
        .unwrap_err()
}

#[test]
fn the_environment_is_the_original_s_in_compat_and_a_user_s_in_strict() {
    let (prepared, _) = assembled("/bin/x", &["a", ""], &compat(), root(), &features(true));
    let command = prepared.unwrap().command;
    assert_eq!(lines(&command.argv), ["/bin/x", "a", ""]);
    assert_eq!(
        lines(&command.environment),
        [format!("PATH={}", command::PATH)]
    );

    let mut strict = ProfileConfig::new(Baseline::Strict);
    strict.env = vec![
        ("LANG".to_owned(), "de".to_owned()),
        ("X".to_owned(), "a=b".to_owned()),
    ];
    let (prepared, _) = assembled("/bin/x", &[], &strict, root(), &features(true));
    let mut found = lines(&prepared.unwrap().command.environment);
    assert!(found.remove(0).starts_with("PATH=/usr/local/sbin:"));
    let expected = [
        "HOME=/root",
        "USER=root",
        "LOGNAME=root",
        "SHELL=/bin/sh",
        "LANG=de",
        "TMPDIR=/tmp",
        "ENVEXEC_REQID=r-1",
        "ENVEXEC_SCRIPT=check",
        "ENVEXEC_PROFILE=web",
        "X=a=b",
    ];
    assert_eq!(found, expected);
}

#[test]
fn what_the_kernel_would_not_take_is_refused_with_the_reason() {
    let long = "x".repeat(131_072);
    let (prepared, _) = assembled("/bin/x", &["a", &long], &compat(), root(), &features(true));
    let text = prepared.unwrap_err().text;
    assert_eq!(
        text,
        "argument 2 is 131072 bytes long; the system allows 131071"
    );
    let fits = &long[1..];
    let (prepared, _) = assembled("/bin/x", &[fits], &compat(), root(), &features(true));
    assert!(prepared.is_ok());

    let mut small = compat();
    small.limits.insert(LimitKind::Stack, Some(1 << 20));
    let (prepared, _) = assembled("/bin/x", &[fits; 3], &small, root(), &features(true));
    let text = prepared.unwrap_err().text;
    assert!(text.ends_with("the system allows 262144"), "{text}");

    let (prepared, _) = assembled("/bin/x", &["a\0b"], &compat(), root(), &features(true));
    assert_eq!(prepared.unwrap_err().text, "argument 1 holds a NUL byte");
}

#[test]
fn a_namespace_that_is_missing_degrades_or_refuses() {
    let mut poor = features(true);
    poor.pid_namespace = Err("not in this kernel".to_owned());
    let mut strict = ProfileConfig::new(Baseline::Strict);
    let (prepared, report) = assembled("/bin/x", &[], &strict, root(), &poor);
    let prepared = prepared.unwrap();
    assert!(!prepared.init);
    assert_eq!(prepared.namespaces, namespace::MOUNT | namespace::IPC);
    assert_eq!(
        report.0[&Protection::PrivateProcesses],
        Level::Degraded("not in this kernel".to_owned())
    );
    assert_eq!(report.0[&Protection::PrivateIpc], Level::Enforced);
    assert_eq!(report.0[&Protection::Network], Level::Off);

    strict.processes.required = true;
    let refused = refusal(&strict, &poor);
    assert_eq!(refused.reason, "feature-missing");
    assert_eq!(
        refused.text,
        "the profile requires processes: not in this kernel"
    );
}

#[test]
fn a_security_module_that_is_named_must_be_there() {
    let mut named = compat();
    named.apparmor = Some("web".to_owned());
    assert_eq!(refusal(&named, &features(true)).reason, "feature-missing");
    let mut there = features(true);
    there.apparmor = true;
    let (prepared, report) = assembled("/bin/x", &[], &named, root(), &there);
    assert_eq!(prepared.unwrap().labels[0].1, b"exec web");
    assert_eq!(report.0[&Protection::AppArmor], Level::Enforced);
    named.apparmor = None;
    named.selinux = Some("u:r:t:s0".to_owned());
    assert_eq!(refusal(&named, &there).reason, "feature-missing");
}

#[test]
fn capabilities_that_cannot_be_had_refuse() {
    let mut with_caps = compat();
    with_caps.caps = vec![caps::Capability::CAP_BPF];
    let mut old = features(true);
    old.cap_last = 36;
    assert!(refusal(&with_caps, &old).text.contains("CAP_BPF"));
    old.cap_last = 40;
    old.ambient = false;
    let nobody = Identity {
        uid: 65_534,
        ..root()
    };
    let (prepared, _) = assembled("/bin/x", &[], &with_caps, nobody, &old);
    assert_eq!(prepared.unwrap_err().reason, "feature-missing");
    assert!(assembled("/bin/x", &[], &with_caps, root(), &old).0.is_ok());
    let unprivileged = refusal(&with_caps, &features(false));
    assert_eq!(unprivileged.reason, "feature-missing");
}

#[test]
fn without_root_nothing_is_claimed_and_what_is_required_refuses() {
    let mut strict = ProfileConfig::new(Baseline::Strict);
    let mut report = Protections::default();
    without_root(&strict, &mut report).unwrap();
    assert_eq!(report.degraded().count(), 2);
    strict.landlock = Want::Require;
    assert!(without_root(&strict, &mut report).is_err());
    let (prepared, report) = assembled("/bin/x", &[], &strict, root(), &features(false));
    let prepared = prepared.unwrap();
    assert_eq!((prepared.namespaces, prepared.init), (0, false));
    assert!(prepared.rights.is_none());
    assert_eq!(
        report.enforced_bits()
            & !(Protection::NoNewPrivileges.bit() | Protection::ResourceLimits.bit()),
        0
    );
}

#[test]
fn a_limit_that_does_not_bind_root_says_so() {
    let mut profile = compat();
    profile.limits.insert(LimitKind::Nproc, Some(10));
    let (_, report) = assembled("/bin/x", &[], &profile, root(), &features(true));
    assert!(matches!(
        report.0[&Protection::ResourceLimits],
        Level::Degraded(_)
    ));
    let (_, report) = assembled("/bin/x", &[], &compat(), root(), &features(true));
    assert_eq!(report.0[&Protection::ResourceLimits], Level::Enforced);
}
