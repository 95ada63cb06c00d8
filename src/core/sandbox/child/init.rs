//! The first process of a run's PID namespace: reaps whatever is orphaned there and ends last (spec/executor.md 15.7).
//!
//! It has the script's ids, so that it is nobody the script could not be; it keeps one capability, CAP_KILL, which reaches no further
//! than its namespace, to pass signals on to processes that have changed their ids. Signals of the script cannot end it: the kernel
//! withholds from the first process what it has no handler for.

use std::convert::Infallible;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{
    DumpableBehavior, Pid, Signal, WaitOptions, chdir, getpid, set_dumpable_behavior,
    set_parent_process_death_signal, wait,
};
use rustix::thread::{CapabilitySet, set_keep_capabilities, set_no_new_privs};

use super::steps::{change_ids, script, set_exactly, surroundings};
use super::{News, Run, Step, StepFailed};
use crate::core::sys::process::{Birth, close_all_but, exit_now, signal_namespace, spawn};
use crate::core::sys::{creds, signals};

/// What is passed on. SIGCHLD wakes us up.
const PASSED_ON: [Signal; 6] = [
    Signal::TERM,
    Signal::INT,
    Signal::HUP,
    Signal::QUIT,
    Signal::USR1,
    Signal::USR2,
];

/// The whole life of the init. Returns only when something failed; then everything in the namespace dies with it.
pub(super) fn run(run: &Run<'_>) -> Result<Infallible, StepFailed> {
    if getpid() != Pid::INIT {
        return Err(Step::Init.failed()(Errno::SRCH));
    }
    surroundings(run)?;
    let (gate, opener) = pipe_with(PipeFlags::CLOEXEC).map_err(Step::Init.failed())?;
    let birth = Birth {
        namespaces: 0,
        cgroup: None,
        pidfd: false,
        clone3: run.prepared.clone3,
    };
    // Our signals stay blocked, the script unblocks its own.
    let (child, _) = spawn(birth, || behind_the_gate(run, &gate)).map_err(|error| {
        Step::Init.failed()(Errno::from_io_error(&error).unwrap_or(Errno::AGAIN))
    })?;
    drop_rights(run)?;
    rustix::io::write(&opener, b"!").map_err(Step::Init.failed())?;
    close_all_but(std::os::fd::AsFd::as_fd(&run.io.status), run.highest_fd)
        .map_err(Step::Init.failed())?;
    reap_all(run, child)
}

/// The script begins when nothing is left in us that it could want.
fn behind_the_gate(run: &Run<'_>, gate: &OwnedFd) -> Infallible {
    let mut word = [0];
    // An init that fails takes us with it, so there is always one of both: the word or our end.
    while rustix::io::read(gate, &mut word) != Ok(1) {}
    let failed = match rustix::process::setsid() {
        Ok(_) => script(run),
        Err(errno) => Err(Step::Session.failed()(errno)),
    };
    match failed {
        Err(failed) => run.give_up(failed),
        Ok(never) => never,
    }
}

/// Everything that could be turned against the host goes, before the script starts.
fn drop_rights(run: &Run<'_>) -> Result<(), StepFailed> {
    let prepared = run.prepared;
    chdir(c"/").map_err(Step::Init.failed())?;
    if let Some(rights) = &prepared.rights {
        creds::bound(CapabilitySet::empty(), rights.bounding)
            .map_err(Step::BoundingSet.failed())?;
        change_ids(&prepared.identity, &rights.groups)?;
        // An executor without CAP_KILL has none to keep.
        set_exactly(CapabilitySet::KILL, CapabilitySet::empty())
            .or_else(|_| set_exactly(CapabilitySet::empty(), CapabilitySet::empty()))
            .map_err(Step::Capabilities.failed())?;
        set_keep_capabilities(false).map_err(Step::Capabilities.failed())?;
    }
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(Step::Init.failed())?;
    set_no_new_privs(true).map_err(Step::NoNewPrivileges.failed())?;
    set_parent_process_death_signal(Some(Signal::KILL)).map_err(Step::DeathSignal.failed())?;
    if let Some(supervisor) = &run.supervisor_fd {
        let mut asked = [PollFd::new(supervisor, PollFlags::IN)];
        let at_once = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        if poll(&mut asked, Some(&at_once)).map_err(Step::DeathSignal.failed())? != 0 {
            return Err(Step::DeathSignal.failed()(Errno::SRCH));
        }
    }
    Ok(())
}

fn reap_all(run: &Run<'_>, child: Pid) -> ! {
    let mut awaited = [libc::SIGCHLD; PASSED_ON.len() + 1];
    for (to, from) in awaited.iter_mut().skip(1).zip(PASSED_ON) {
        *to = from.as_raw();
    }
    let awaited = signals::SignalSet::of(&awaited);
    loop {
        match wait(WaitOptions::NOHANG) {
            Ok(Some((pid, status))) if pid == child => run.tell(News::Ended(status.as_raw())),
            Ok(Some(_)) | Err(Errno::INTR) => {}
            Err(_) => exit_now(0),
            Ok(None) => {
                if let Ok(signal) = signals::wait(&awaited) {
                    pass_on(signal);
                }
            }
        }
    }
}

fn pass_on(signal: i32) {
    if let Some(signal) = PASSED_ON.into_iter().find(|known| known.as_raw() == signal) {
        // Nobody there is no failure. What is stopped must go on to notice.
        let _ = signal_namespace(signal);
        let _ = signal_namespace(Signal::CONT);
    }
}
