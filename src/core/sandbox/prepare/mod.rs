//! Everything that the child will need, made before the fork.

mod command;
mod limits;
#[cfg(test)]
pub(super) mod tests;

use std::ffi::CString;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::time::Duration;

use rustix::fs::Mode;
use rustix::process::{Gid, Resource, Rlimit};
use rustix::thread::CapabilitySet;

use super::cgroup::Leaf;
use super::features::{Feature, Features};
use super::filter::{self, Program};
use super::identity::Identity;
use super::landlock::{self, Ruleset};
use super::script::Checked;
use super::view::{self, MountPlan, Mounts, ViewOrder};
use super::{Level, NotPrepared, ProtectedPaths, Protection, Protections};
use crate::core::config::{Network, ProfileConfig, Scope, Syscalls, Want};
use crate::core::profile::Resolved;
use crate::core::sys::process::namespace;
use command::Command;

/// Why nothing can be had that only root can set up.
const WITHOUT_ROOT: &str = "the executor runs without root";

/// One run as it was decided.
#[derive(Debug)]
pub struct RunOrder<'a> {
    pub script: &'a Resolved,
    pub profile: &'a ProfileConfig,
    pub args: &'a [Vec<u8>],
    /// Valid request id, or empty.
    pub reqid: &'a str,
    pub identity: Identity,
    pub checked: Checked,
    pub protected: &'a ProtectedPaths,
    pub features: &'a Features,
    /// What may be in the bounding set of this process.
    pub bounding: CapabilitySet,
    /// Those of this process.
    pub mounts: &'a Mounts,
    pub leaf: Option<&'a Leaf>,
}

/// Ready to be started.
#[derive(Debug)]
pub struct Prepared {
    pub identity: Identity,
    pub timeout: Option<Duration>,
    pub(super) command: Command,
    pub(super) confinement: Confinement,
    /// Directory of the cgroup leaf.
    pub(super) leaf: Option<OwnedFd>,
    /// Of [`namespace`]; none without root.
    pub(super) namespaces: u64,
    /// Bring `lo` up in the new network namespace.
    pub(super) loopback: bool,
    /// The script gets a first process of our own above it.
    pub(super) init: bool,
    pub(super) limits: Vec<(Resource, Rlimit)>,
    /// `None`: we have nothing to give up, ids and capabilities stay.
    pub(super) rights: Option<Rights>,
    pub(super) no_new_privileges: bool,
    pub(super) cwd: CString,
    pub(super) umask: Mode,
    /// Absolute; `None` = as we are.
    pub(super) nice: Option<i32>,
    /// Text for `/proc/self/oom_score_adj`; `None` = as we are.
    pub(super) oom_score_adj: Option<String>,
    /// Files below `/proc/self/attr` and what is written to them.
    pub(super) labels: Vec<(CString, Vec<u8>)>,
    pub(super) clone3: bool,
    pub(super) pidfd: bool,
    pub(super) close_range: bool,
}

impl Prepared {
    /// What the view leaves out and why, for the log.
    pub fn warnings(&self) -> &[String] {
        self.confinement
            .view
            .as_ref()
            .map_or(&[], |view| view.warnings())
    }
}

/// What other modules prepare.
#[derive(Debug, Default)]
pub(super) struct Confinement {
    pub(super) view: Option<MountPlan>,
    pub(super) ruleset: Option<Ruleset>,
    pub(super) program: Option<Program>,
}

/// What the script may do, in the form that the kernel wants.
#[derive(Debug)]
pub(super) struct Rights {
    pub(super) grant: CapabilitySet,
    pub(super) groups: Vec<Gid>,
    /// What may be in the bounding set when the child begins.
    pub(super) bounding: CapabilitySet,
    /// The kernel has an ambient set.
    pub(super) ambient: bool,
    /// False: uid 0 gets no capabilities at exec.
    pub(super) root_semantics: bool,
}

/// # Errors
/// Something that the profile requires cannot be had, or cannot be made.
pub fn prepare(mut order: RunOrder<'_>, report: &mut Protections) -> Result<Prepared, NotPrepared> {
    let copy = order.checked.copy.take();
    let confinement = confinement(&order, copy, report)?;
    assemble(order, confinement, report)
}

/// View, Landlock and filter.
fn confinement(
    order: &RunOrder<'_>,
    copy: Option<Vec<u8>>,
    report: &mut Protections,
) -> Result<Confinement, NotPrepared> {
    let (profile, features) = (order.profile, order.features);
    if !features.privileged {
        return without_root(profile, report);
    }
    let script = order.script.path.as_path();
    let view = view::plan(
        ViewOrder {
            profile,
            protected: order.protected,
            script,
            copy,
            fresh_proc: private_processes(profile, features),
            features,
            mounts: order.mounts,
        },
        report,
    )?;
    let ruleset = landlock::ruleset(profile, script, features, report)?;
    let program = filter::program(profile, features, report)?;
    Ok(Confinement {
        view: Some(view),
        ruleset,
        program,
    })
}

/// Without root, no_new_privs and rlimits are all there is (spec/executor.md 2.4).
fn without_root(
    profile: &ProfileConfig,
    report: &mut Protections,
) -> Result<Confinement, NotPrepared> {
    let missing: Feature = Err(WITHOUT_ROOT.to_owned());
    let wanted = [
        (
            Protection::Landlock,
            profile.landlock != Want::Off,
            profile.landlock == Want::Require,
        ),
        (
            Protection::Seccomp,
            profile.syscalls.value != Syscalls::Off,
            profile.syscalls.required,
        ),
    ];
    for (protection, is_wanted, required) in wanted {
        level(protection, is_wanted, required, &missing, report)?;
    }
    Ok(Confinement::default())
}

/// Everything else.
fn assemble(
    order: RunOrder<'_>,
    confinement: Confinement,
    report: &mut Protections,
) -> Result<Prepared, NotPrepared> {
    let (profile, features) = (order.profile, order.features);
    let command = command::command(&order)?;
    let (mut namespaces, init) = namespaces(profile, features, report)?;
    if confinement
        .view
        .as_ref()
        .is_some_and(|view| !view.needs_namespace())
    {
        namespaces &= !namespace::MOUNT;
    }
    filter_level(profile, &confinement, report)?;
    let labels = labels(profile, features, report)?;
    let rights = rights(&order, report)?;
    let no_new_privileges = profile.no_new_privileges;
    let on = if no_new_privileges {
        Level::Enforced
    } else {
        Level::Off
    };
    report.set(Protection::NoNewPrivileges, on);
    let limits = limits::limits(&order, report);
    let leaf = match order.leaf {
        None => None,
        Some(leaf) => Some(
            leaf.fd()
                .try_clone_to_owned()
                .map_err(|error| refused(format!("cgroup of the run: {error}")))?,
        ),
    };
    let cwd = CString::new(profile.cwd.as_path().as_os_str().as_bytes())
        .map_err(|_| refused("cwd of the profile holds a NUL byte"))?;
    Ok(Prepared {
        timeout: profile.timeout,
        command,
        confinement,
        leaf,
        namespaces,
        loopback: namespaces & namespace::NETWORK != 0
            && profile.network.value == Network::Loopback,
        init,
        limits,
        rights,
        no_new_privileges,
        cwd,
        umask: Mode::from_raw_mode(profile.umask & 0o777),
        nice: (profile.nice != 0).then_some(profile.nice),
        oom_score_adj: limits::oom_score_adj(profile.oom_score_adj, features.privileged),
        labels,
        clone3: features.clone3,
        pidfd: features.pidfd,
        close_range: features.close_range,
        identity: order.identity,
    })
}

fn private_processes(profile: &ProfileConfig, features: &Features) -> bool {
    profile.processes.value == Scope::Private
        && features.privileged
        && features.pid_namespace.is_ok()
}

/// The namespaces to be born in, and whether there is a PID namespace, which needs an init.
fn namespaces(
    profile: &ProfileConfig,
    features: &Features,
    report: &mut Protections,
) -> Result<(u64, bool), NotPrepared> {
    let kinds = [
        (
            Protection::PrivateProcesses,
            profile.processes.value == Scope::Private,
            profile.processes.required,
            &features.pid_namespace,
            namespace::PID,
        ),
        (
            Protection::PrivateIpc,
            profile.ipc.value == Scope::Private,
            profile.ipc.required,
            &features.ipc_namespace,
            namespace::IPC,
        ),
        (
            Protection::Network,
            profile.network.value != Network::Host
                || landlock::needs_network_namespace(profile, features),
            profile.network.required && profile.network.value != Network::Host,
            &features.net_namespace,
            namespace::NETWORK,
        ),
    ];
    let missing: Feature = Err(WITHOUT_ROOT.to_owned());
    let mut flags = 0;
    if features.privileged {
        flags |= namespace::MOUNT;
    }
    for (protection, wanted, required, there, flag) in kinds {
        let there = if features.privileged { there } else { &missing };
        // The filter has taken the namespace's place, as far as it can, and said so.
        if protection == Protection::Network
            && !required
            && there.is_err()
            && matches!(report.0.get(&protection), Some(Level::Degraded(_)))
        {
            continue;
        }
        if level(protection, wanted, required, there, report)? {
            flags |= flag;
        }
    }
    Ok((flags, flags & namespace::PID != 0))
}

/// Reports a protection that is either there or not; true: it is wanted and there.
fn level(
    protection: Protection,
    wanted: bool,
    required: bool,
    there: &Feature,
    report: &mut Protections,
) -> Result<bool, NotPrepared> {
    match there {
        _ if !wanted => {
            report.set(protection, Level::Off);
            Ok(false)
        }
        Ok(()) => {
            report.set(protection, Level::Enforced);
            Ok(true)
        }
        Err(why) if required => Err(missing(protection, why)),
        Err(why) => {
            report.set(protection, Level::Degraded(why.clone()));
            Ok(false)
        }
    }
}

/// User namespaces are kept from scripts by the filter; its maker may have said so already.
fn filter_level(
    profile: &ProfileConfig,
    confinement: &Confinement,
    report: &mut Protections,
) -> Result<(), NotPrepared> {
    let protection = Protection::NoUserNamespaces;
    if report.0.contains_key(&protection) {
        return Ok(());
    }
    let there = match confinement.program {
        Some(_) => Ok(()),
        None => Err("needs a system call filter".to_owned()),
    };
    let wanted = profile.deny_userns;
    level(protection, wanted.value, wanted.required, &there, report).map(|_| ())
}

/// What is written to `/proc/self/attr`: a security module that is named but absent refuses.
fn labels(
    profile: &ProfileConfig,
    features: &Features,
    report: &mut Protections,
) -> Result<Vec<(CString, Vec<u8>)>, NotPrepared> {
    let mut labels = Vec::new();
    let absent = |there: bool| -> Feature {
        if there {
            Ok(())
        } else {
            Err("this kernel does not have it switched on".to_owned())
        }
    };
    let apparmor = absent(features.apparmor);
    let name = profile.apparmor.as_deref();
    if level(
        Protection::AppArmor,
        name.is_some(),
        true,
        &apparmor,
        report,
    )? {
        let text = format!("exec {}", name.unwrap_or_default());
        // Before 5.1 there was one file for whichever module came first.
        let file = if Path::new("/proc/self/attr/apparmor/exec").exists() {
            c"/proc/self/attr/apparmor/exec"
        } else {
            c"/proc/self/attr/exec"
        };
        labels.push((file.to_owned(), text.into_bytes()));
    }
    let selinux = absent(features.selinux);
    let context = profile.selinux.as_deref();
    if level(
        Protection::SeLinux,
        context.is_some(),
        true,
        &selinux,
        report,
    )? {
        labels.push((
            c"/proc/self/attr/exec".to_owned(),
            context.unwrap_or_default().as_bytes().to_vec(),
        ));
    }
    Ok(labels)
}

fn rights(order: &RunOrder<'_>, report: &mut Protections) -> Result<Option<Rights>, NotPrepared> {
    let (profile, features) = (order.profile, order.features);
    if !features.privileged {
        if !profile.caps.is_empty() {
            return Err(missing(Protection::Capabilities, WITHOUT_ROOT));
        }
        report.set(
            Protection::Capabilities,
            Level::Degraded(WITHOUT_ROOT.to_owned()),
        );
        return Ok(None);
    }
    let mut grant = CapabilitySet::empty();
    for capability in &profile.caps {
        if capability.index() > features.cap_last {
            return Err(missing(
                Protection::Capabilities,
                &format!("{capability} is not in this kernel"),
            ));
        }
        grant |= CapabilitySet::from_bits_retain(capability.bitmask());
    }
    if !grant.is_empty() && order.identity.uid != 0 && !features.ambient {
        return Err(missing(
            Protection::Capabilities,
            "this kernel has no ambient capabilities, without which only root can have any",
        ));
    }
    let identity = &order.identity;
    if identity.uid == u32::MAX || identity.gid == u32::MAX || identity.groups.contains(&u32::MAX) {
        return Err(refused("4294967295 is no user and no group"));
    }
    report.set(Protection::Capabilities, Level::Enforced);
    Ok(Some(Rights {
        grant,
        groups: identity
            .groups
            .iter()
            .map(|gid| Gid::from_raw(*gid))
            .collect(),
        bounding: order.bounding,
        ambient: features.ambient,
        root_semantics: profile.root_semantics,
    }))
}

fn missing(protection: Protection, why: &str) -> NotPrepared {
    NotPrepared::new(
        "feature-missing",
        format!("the profile requires {}: {why}", protection.name()),
    )
}

fn refused(text: impl Into<String>) -> NotPrepared {
    NotPrepared::new("setup", text)
}
