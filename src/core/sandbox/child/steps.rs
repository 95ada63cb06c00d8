//! The steps of spec/executor.md 9.4, in their order. System calls only: nothing here may allocate or panic.

use std::convert::Infallible;

use rustix::fs::{Access, AtFlags, CWD, Mode, OFlags, accessat, open, openat};
use rustix::io::{Errno, write};
use rustix::process::{
    DumpableBehavior, Gid, Pid, Signal, Uid, chdir, getppid, set_dumpable_behavior,
    set_parent_process_death_signal, setpriority_process, setrlimit, setsid, umask,
};
use rustix::thread::{
    CapabilitiesSecureBits, CapabilitySet, CapabilitySets, capabilities, set_capabilities,
    set_capabilities_secure_bits, set_keep_capabilities, set_no_new_privs, set_thread_groups,
    set_thread_res_gid, set_thread_res_uid,
};

use super::{Run, Step, StepFailed};
use crate::core::sandbox::identity::Identity;
use crate::core::sandbox::prepare::Rights;
use crate::core::sys::{creds, loopback, process, signals};

type Done = Result<(), StepFailed>;

/// What holds for the script and for an init above it: session, signals, cgroup, what is inside the namespaces.
pub(super) fn surroundings(run: &Run<'_>) -> Done {
    let prepared = run.prepared;
    setsid().map_err(Step::Session.failed())?;
    signals::reset_dispositions();
    umask(prepared.umask);
    if let Some(leaf) = &prepared.leaf
        && !run.placed
    {
        openat(
            leaf,
            c"cgroup.procs",
            OFlags::WRONLY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .and_then(|file| write(file, b"0"))
        .map_err(Step::Cgroup.failed())?;
    }
    // By the host's `/proc`, which the view may make read-only or cover. Both go through a fork to the script.
    if let Some(text) = &prepared.oom_score_adj {
        write_to(c"/proc/self/oom_score_adj", text.as_bytes()).map_err(Step::Limits.failed())?;
    }
    for (file, label) in &prepared.labels {
        write_to(file, label).map_err(Step::Lsm.failed())?;
    }
    if let Some(nice) = prepared.nice {
        setpriority_process(None, nice).map_err(Step::Limits.failed())?;
    }
    if prepared.loopback {
        loopback::bring_up().map_err(Step::Loopback.failed())?;
    }
    match &prepared.confinement.view {
        Some(view) => view.apply(),
        None => Ok(()),
    }
}

/// From there to the script. Returns only when that failed.
pub(super) fn script(run: &Run<'_>) -> Result<Infallible, StepFailed> {
    let prepared = run.prepared;
    standard_streams(run).map_err(Step::Descriptors.failed())?;
    signals::restore(&signals::SignalSet::empty());
    for (resource, limit) in &prepared.limits {
        setrlimit(*resource, *limit).map_err(Step::Limits.failed())?;
    }
    // Without no_new_privs both need CAP_SYS_ADMIN, which is about to go.
    if !prepared.no_new_privileges {
        landlock_and_filter(run)?;
    }
    if let Some(rights) = &prepared.rights {
        become_user(&prepared.identity, rights)?;
    }
    // Until `execve` we are a copy of the supervisor, in the hands of another uid.
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(Step::Uid.failed())?;
    if prepared.no_new_privileges {
        set_no_new_privs(true).map_err(Step::NoNewPrivileges.failed())?;
        landlock_and_filter(run)?;
    }
    // After the change of ids, which clears it. Below an init there is no need: the namespace ends with it.
    if !prepared.init {
        die_with(run.supervisor).map_err(Step::DeathSignal.failed())?;
    }
    process::close_on_exec(run.highest_fd).map_err(Step::Descriptors.failed())?;
    chdir(prepared.cwd.as_c_str()).map_err(Step::Directory.failed())?;
    let command = &prepared.command;
    // As the real user, so that the answer is the script's own.
    accessat(
        CWD,
        command.path.as_c_str(),
        Access::EXEC_OK,
        AtFlags::empty(),
    )
    .map_err(Step::Executable.failed())?;
    Err(Step::Exec.failed()(process::exec(
        &command.path,
        &command.argv,
        &command.environment,
    )))
}

fn standard_streams(run: &Run<'_>) -> Result<(), Errno> {
    rustix::stdio::dup2_stdin(&run.io.stdin)?;
    rustix::stdio::dup2_stdout(&run.io.stdout)?;
    rustix::stdio::dup2_stderr(&run.io.stderr)
}

fn landlock_and_filter(run: &Run<'_>) -> Done {
    let confinement = &run.prepared.confinement;
    if let Some(ruleset) = &confinement.ruleset {
        ruleset.enter().map_err(Step::Landlock.failed_raw())?;
    }
    if let Some(program) = &confinement.program {
        program.install().map_err(Step::Filter.failed_raw())?;
    }
    Ok(())
}

fn die_with(supervisor: Pid) -> Result<(), Errno> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    // It may have died before we asked.
    if getppid() == Some(supervisor) {
        Ok(())
    } else {
        Err(Errno::SRCH)
    }
}

/// Bounding set, groups, ids, the other capability sets; each is read back.
fn become_user(identity: &Identity, rights: &Rights) -> Done {
    creds::bound(rights.grant, rights.bounding).map_err(Step::BoundingSet.failed())?;
    change_ids(identity, &rights.groups)?;
    if !rights.root_semantics {
        lock_root_semantics(rights.grant).map_err(Step::SecureBits.failed())?;
    }
    set_exactly(rights.grant, rights.grant).map_err(Step::Capabilities.failed())?;
    // Otherwise it is off and locked already.
    if rights.root_semantics {
        set_keep_capabilities(false).map_err(Step::Capabilities.failed())?;
    }
    creds::make_ambient(
        if rights.ambient {
            rights.grant
        } else {
            CapabilitySet::empty()
        },
        rights.ambient,
    )
    .map_err(Step::Ambient.failed())
}

/// Groups, gid and uid, for good; the permitted capabilities survive it until they are set.
pub(super) fn change_ids(identity: &Identity, groups: &[Gid]) -> Done {
    set_thread_groups(groups).map_err(Step::Groups.failed())?;
    let gid = Gid::from_raw(identity.gid);
    set_thread_res_gid(gid, gid, gid).map_err(Step::Gid.failed())?;
    set_keep_capabilities(true).map_err(Step::Uid.failed())?;
    let uid = Uid::from_raw(identity.uid);
    set_thread_res_uid(uid, uid, uid).map_err(Step::Uid.failed())?;
    let gids = creds::group_ids().map_err(Step::Gid.failed())?;
    if gids != [identity.gid; 3] {
        return Err(Step::Gid.failed()(Errno::PERM));
    }
    let uids = creds::user_ids().map_err(Step::Uid.failed())?;
    let way_back = identity.uid != 0 && set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT).is_ok();
    if uids != [identity.uid; 3] || way_back {
        return Err(Step::Uid.failed()(Errno::PERM));
    }
    Ok(())
}

/// uid 0 is a number like any other from here on (spec/executor.md 15.5). Takes CAP_SETPCAP, which goes right afterwards.
fn lock_root_semantics(grant: CapabilitySet) -> Result<(), Errno> {
    set_exactly(grant | CapabilitySet::SETPCAP, grant)?;
    set_keep_capabilities(false)?;
    set_capabilities_secure_bits(
        CapabilitiesSecureBits::NO_ROOT
            | CapabilitiesSecureBits::NO_ROOT_LOCKED
            | CapabilitiesSecureBits::NO_SETUID_FIXUP
            | CapabilitiesSecureBits::NO_SETUID_FIXUP_LOCKED
            | CapabilitiesSecureBits::KEEP_CAPS_LOCKED,
    )
}

/// Sets permitted and effective, and inheritable, and reads them back.
pub(super) fn set_exactly(held: CapabilitySet, inheritable: CapabilitySet) -> Result<(), Errno> {
    let sets = CapabilitySets {
        effective: held,
        permitted: held,
        inheritable,
    };
    set_capabilities(None, sets)?;
    if capabilities(None)? == sets {
        Ok(())
    } else {
        Err(Errno::PERM)
    }
}

fn write_to(file: &std::ffi::CStr, bytes: &[u8]) -> Result<(), Errno> {
    let file = open(file, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    if write(file, bytes)? == bytes.len() {
        Ok(())
    } else {
        Err(Errno::IO)
    }
}
