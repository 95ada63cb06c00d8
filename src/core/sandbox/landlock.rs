//! The Landlock ruleset of a profile (spec/executor.md 15.6), made beforehand and entered in the child.
//!
//! Ports are those of TCP only: Landlock says nothing of UDP up to ABI 9, and we use it up to ABI 6.
//!
//! A rule is about an inode, so what exists only in the child's mount namespace (private temporary directories, a fresh `/proc`) cannot be
//! named beforehand: these few rules are added by the child, after its mounts, with calls that allocate nothing.

use std::ffi::CStr;
use std::io::Read as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use caps::Capability;
use landlock::{
    ABI, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible as _, NetPort, PathBeneath,
    Ruleset as Builder, RulesetAttr as _, RulesetCreated, RulesetCreatedAttr as _, Scope as Scoped,
};
use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::features::Features;
use super::{Level, NotPrepared, Protection, Protections};
use crate::core::config::{Devices, Network, Ports, ProfileConfig, Scope, Want};
use crate::core::sys;

/// A ruleset that waits to be entered.
#[derive(Debug)]
pub struct Ruleset {
    fd: OwnedFd,
    late: Vec<Late>,
}

/// A rule about something that the child mounts.
#[derive(Debug, Eq, PartialEq)]
struct Late {
    path: &'static CStr,
    allowed: u64,
}

/// Where dynamic programs find what they are made of.
const LOADER: [&str; 9] = [
    "/lib",
    "/lib32",
    "/lib64",
    "/usr/lib",
    "/usr/lib32",
    "/usr/lib64",
    "/etc/ld.so.cache",
    "/etc/ld.so.preload",
    "/etc/ld.so.conf.d",
];

/// Nodes that every script may use.
const NODES: [&str; 6] = [
    "/dev/null",
    "/dev/zero",
    "/dev/full",
    "/dev/random",
    "/dev/urandom",
    "/dev/tty",
];

/// What a profile asks for, cut to what this kernel has.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Wish {
    files: BitFlags<AccessFs>,
    net: BitFlags<AccessNet>,
    scopes: BitFlags<Scoped>,
    /// What this kernel lacks of what was asked for.
    missing: Vec<&'static str>,
    /// Nothing but the scopes that are a matter of course was asked for.
    only_extras: bool,
}

fn known(abi: u32) -> ABI {
    match abi {
        0 => ABI::Unsupported,
        1 => ABI::V1,
        2 => ABI::V2,
        3 => ABI::V3,
        4 => ABI::V4,
        5 => ABI::V5,
        // What later ones add, no profile asks for.
        _ => ABI::V6,
    }
}

fn wish(profile: &ProfileConfig, abi: u32) -> Wish {
    let version = known(abi);
    let mut files = BitFlags::empty();
    // A domain that handles files may not mount, which a profile with this capability is there for.
    let mounts =
        profile.caps.contains(&Capability::CAP_SYS_ADMIN) && profile.landlock != Want::Require;
    let reads = !profile.read.is_empty() || !profile.execute.is_empty();
    if reads {
        files |= AccessFs::ReadFile | AccessFs::ReadDir;
    }
    if !profile.execute.is_empty() {
        files |= AccessFs::Execute;
    }
    if !profile.writable.is_empty() {
        files |= AccessFs::from_write(ABI::V6);
    }
    if mounts && !reads {
        files = BitFlags::empty();
    }
    let mut net = BitFlags::empty();
    // Without a network there are no ports.
    if profile.network.value != Network::None {
        if profile.tcp_connect != Ports::Any {
            net |= AccessNet::ConnectTcp;
        }
        if profile.tcp_bind != Ports::Any {
            net |= AccessNet::BindTcp;
        }
    }
    let mut scopes = BitFlags::empty();
    if version == ABI::V6 {
        scopes |= Scoped::AbstractUnixSocket;
        // A script that restarts services has to reach processes outside.
        if !profile.caps.contains(&Capability::CAP_KILL)
            && profile.processes.value == Scope::Private
        {
            scopes |= Scoped::Signal;
        }
    }
    let mut missing = Vec::new();
    let have = AccessFs::from_read(version) | AccessFs::from_write(version);
    if !(files & !have).is_empty() {
        if abi == 0 {
            missing.push("files");
        }
        for (right, name) in [
            (AccessFs::Refer, "moving files between directories (ABI 2)"),
            (AccessFs::Truncate, "truncation (ABI 3)"),
            (AccessFs::IoctlDev, "ioctl on devices (ABI 5)"),
        ] {
            if abi > 0 && files.contains(right) && !have.contains(right) {
                missing.push(name);
            }
        }
    }
    if !net.is_empty() && abi < 4 {
        missing.push("TCP ports (ABI 4)");
    }
    let only_extras = files.is_empty() && net.is_empty();
    Wish {
        files: files & have,
        net: if abi < 4 { BitFlags::empty() } else { net },
        scopes,
        missing,
        only_extras,
    }
}

/// Whether a profile that allows no TCP port at all has to get a network namespace instead, since this kernel's Landlock knows no ports
/// and the profile only tries.
pub fn needs_network_namespace(profile: &ProfileConfig, features: &Features) -> bool {
    let none = Ports::Only(Vec::new());
    profile.landlock == Want::Try
        && features.landlock_abi < 4
        && profile.network.value == Network::Host
        && profile.tcp_connect == none
        && profile.tcp_bind == none
}

/// `None`: the profile asks for nothing that Landlock does, or it is off, or it was tried and is not there.
///
/// # Errors
/// It is required and cannot be had, wholly.
pub fn ruleset(
    profile: &ProfileConfig,
    script: &Path,
    features: &Features,
    report: &mut Protections,
) -> Result<Option<Ruleset>, NotPrepared> {
    if profile.landlock == Want::Off {
        report.set(Protection::Landlock, Level::Off);
        return Ok(None);
    }
    let required = profile.landlock == Want::Require;
    let refused = |why: &str| {
        NotPrepared::new(
            "feature-missing",
            format!("profile key landlock = require: {why}"),
        )
    };
    if features.landlock_abi == 0 {
        let why = features
            .landlock
            .as_ref()
            .err()
            .map_or("not in this kernel", String::as_str);
        if required {
            return Err(refused(why));
        }
        let level = if wish(profile, 0).only_extras {
            Level::Off
        } else {
            Level::Degraded(why.to_owned())
        };
        report.set(Protection::Landlock, level);
        return Ok(None);
    }
    let wish = wish(profile, features.landlock_abi);
    let lacks = (!wish.missing.is_empty()).then(|| {
        format!(
            "Landlock of this kernel (ABI {}) lacks {}",
            features.landlock_abi,
            wish.missing.join(", ")
        )
    });
    if let (true, Some(why)) = (required, &lacks) {
        return Err(refused(why));
    }
    let nothing = wish.files.is_empty() && wish.net.is_empty() && wish.scopes.is_empty();
    let made = if nothing {
        Ok(None)
    } else {
        make(profile, script, &wish)
    };
    let (made, level) = match (made, lacks) {
        (Err(why), _) if required => return Err(refused(&why)),
        (Err(why), _) => (None, Level::Degraded(why)),
        (Ok(made), Some(why)) => (made, Level::Degraded(why)),
        (Ok(Some(made)), None) => (Some(made), Level::Enforced),
        (Ok(None), None) => (None, Level::Off),
    };
    report.set(Protection::Landlock, level);
    Ok(made)
}

fn make(profile: &ProfileConfig, script: &Path, wish: &Wish) -> Result<Option<Ruleset>, String> {
    let failed = |error: &dyn std::fmt::Display| format!("no Landlock ruleset: {error}");
    // Only what this kernel has is asked for, so nothing may be left out silently.
    let mut builder = Builder::default().set_compatibility(CompatLevel::HardRequirement);
    if !wish.files.is_empty() {
        builder = builder.handle_access(wish.files).map_err(|e| failed(&e))?;
    }
    if !wish.net.is_empty() {
        builder = builder.handle_access(wish.net).map_err(|e| failed(&e))?;
    }
    if !wish.scopes.is_empty() {
        builder = builder.scope(wish.scopes).map_err(|e| failed(&e))?;
    }
    let mut rules = builder.create().map_err(|e| failed(&e))?;
    // Nothing about files is asked for in the usual case: then no file need be looked at.
    let about_files = match wish.files.is_empty() {
        true => Vec::new(),
        false => rules_beforehand(profile, script),
    };
    for (path, access) in about_files {
        rules = allow(rules, &path, access & wish.files)
            .map_err(|error| format!("no Landlock rule for {}: {error}", path.display()))?;
    }
    for (ports, access) in [
        (&profile.tcp_connect, AccessNet::ConnectTcp),
        (&profile.tcp_bind, AccessNet::BindTcp),
    ] {
        if let (Ports::Only(ports), true) = (ports, wish.net.contains(access)) {
            for port in ports {
                rules = rules
                    .add_rule(NetPort::new(*port, access))
                    .map_err(|e| failed(&e))?;
            }
        }
    }
    let late = rules_in_the_child(profile)
        .into_iter()
        .map(|(path, access)| Late {
            path,
            allowed: (access & wish.files).bits(),
        })
        .filter(|late| late.allowed != 0)
        .collect();
    let fd: Option<OwnedFd> = rules.into();
    Ok(fd.map(|fd| Ruleset { fd, late }))
}

/// Reading without executing.
fn reading() -> BitFlags<AccessFs> {
    AccessFs::ReadFile | AccessFs::ReadDir
}

/// What may be done in a writable place: what is written there can be read, but not be run, and is no device.
fn writing() -> BitFlags<AccessFs> {
    reading() | (AccessFs::from_write(ABI::V6) & !(AccessFs::MakeChar | AccessFs::MakeBlock))
}

/// Rules about the host's files. What does not exist needs none.
fn rules_beforehand(profile: &ProfileConfig, script: &Path) -> Vec<(PathBuf, BitFlags<AccessFs>)> {
    let running = reading() | AccessFs::Execute;
    let mut rules: Vec<(PathBuf, BitFlags<AccessFs>)> = Vec::new();
    let mut add = |path: &Path, access| rules.push((path.to_owned(), access));
    for path in &profile.read {
        add(path.as_path(), reading());
    }
    for path in &profile.execute {
        add(path.as_path(), running);
    }
    for path in &profile.writable {
        // In a private /tmp the path is another one, and the directory itself has a rule.
        let private = profile.private_tmp
            && ["/tmp", "/var/tmp"]
                .iter()
                .any(|top| path.as_path().starts_with(top));
        if !private {
            add(path.as_path(), writing());
        }
    }
    // The real place, for a script that is a link; and the directory too, since a checked copy is another file than the script.
    let real = std::fs::canonicalize(script).unwrap_or_else(|_| script.to_owned());
    for script in [script, &real] {
        add(script, running);
        if let Some(parent) = script.parent() {
            add(parent, running);
        }
    }
    if let Some(interpreter) = interpreter(script) {
        add(&interpreter, running);
    }
    for path in LOADER {
        add(Path::new(path), running);
    }
    for path in std::fs::read_dir("/etc").into_iter().flatten().flatten() {
        if path.file_name().as_encoded_bytes().starts_with(b"ld-musl-") {
            add(&path.path(), reading());
        }
    }
    for path in NODES {
        add(
            Path::new(path),
            reading() | AccessFs::WriteFile | AccessFs::IoctlDev,
        );
    }
    if profile.kernel_tunables_writable {
        add(Path::new("/sys"), writing());
    }
    rules
}

/// Rules about what the child may have mounted.
fn rules_in_the_child(profile: &ProfileConfig) -> Vec<(&'static CStr, BitFlags<AccessFs>)> {
    let mut rules = vec![(
        c"/proc",
        if profile.kernel_tunables_writable {
            writing()
        } else {
            reading()
        },
    )];
    if profile.private_tmp {
        rules.push((c"/tmp", writing()));
        rules.push((c"/var/tmp", writing()));
    }
    if profile.devices.value == Devices::Minimal {
        rules.push((c"/dev/shm", writing()));
    }
    rules
}

/// The program of the `#!` line.
fn interpreter(script: &Path) -> Option<PathBuf> {
    let mut head = Vec::new();
    std::fs::File::open(script)
        .ok()?
        .take(256)
        .read_to_end(&mut head)
        .ok()?;
    let line = head.strip_prefix(b"#!")?.split(|&b| b == b'\n').next()?;
    let name = std::str::from_utf8(line).ok()?.split_whitespace().next()?;
    Some(PathBuf::from(name))
}

fn allow(
    rules: RulesetCreated,
    path: &Path,
    mut access: BitFlags<AccessFs>,
) -> Result<RulesetCreated, String> {
    let Ok(place) = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()) else {
        return Ok(rules);
    };
    let directory = rustix::fs::fstat(&place)
        .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory);
    if !directory {
        access &= AccessFs::from_file(ABI::V6);
    }
    if access.is_empty() {
        return Ok(rules);
    }
    rules
        .add_rule(PathBeneath::new(place, access))
        .map_err(|error| error.to_string())
}

impl Ruleset {
    /// Adds the rules that could not be made before the mounts, and enters. In the child: a few system calls, nothing is allocated.
    ///
    /// # Errors
    /// The errno.
    pub fn enter(&self) -> Result<(), i32> {
        self.run().map_err(Errno::raw_os_error)
    }

    fn run(&self) -> Result<(), Errno> {
        for late in &self.late {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            // What is not there, or not for this user, needs no rule.
            if let Ok(place) = rustix::fs::openat(CWD, late.path, flags, Mode::empty()) {
                sys::landlock::add_path_rule(self.fd.as_fd(), place.as_fd(), late.allowed)?;
            }
        }
        sys::landlock::restrict_self(self.fd.as_fd())
    }
}

#[cfg(test)]
#[path = "landlock_tests.rs"]
mod tests;
