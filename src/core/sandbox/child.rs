//! From the fork to `execve`, in the order of spec/executor.md 9.4: system calls only, nothing is allocated.

use std::os::fd::OwnedFd;

use rustix::process::Pid;

use super::prepare::Prepared;

/// What the child was doing when it failed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
pub enum Step {
    Session = 0,
    Cgroup,
    Namespaces,
    MountPropagation,
    MountReadOnly,
    MountWritable,
    MountPrivateTmp,
    MountProtect,
    MountHide,
    MountTunables,
    MountDevices,
    MountProc,
    MountScript,
    Limits,
    Landlock,
    BoundingSet,
    Groups,
    Gid,
    Uid,
    Capabilities,
    Ambient,
    SecureBits,
    NoNewPrivileges,
    Filter,
    DeathSignal,
    Descriptors,
    Lsm,
    Directory,
    Loopback,
    Init,
    Executable,
    Exec,
}

/// A step and the errno it ended with.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct StepFailed {
    pub step: Step,
    pub errno: i32,
}

/// What comes through the status pipe: fixed messages of [`News::SIZE`] bytes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum News {
    /// The script was not started.
    Failed(StepFailed),
    /// Only with an init: the script itself has ended; the raw status of `wait(2)`.
    Ended(i32),
}

impl News {
    pub const SIZE: usize = 8;

    pub fn encode(self) -> [u8; Self::SIZE] {
        todo!()
    }

    /// `None` for bytes that are no message.
    pub fn decode(_bytes: [u8; Self::SIZE]) -> Option<Self> {
        todo!()
    }
}

/// The child's ends of the pipes.
#[derive(Debug)]
pub struct ChildIo {
    pub stdin: OwnedFd,
    pub stdout: OwnedFd,
    pub stderr: OwnedFd,
    pub status: OwnedFd,
}

/// A started run.
#[derive(Debug)]
pub struct Started {
    /// The script itself, or its init when there is a PID namespace.
    pub pid: Pid,
    pub pidfd: Option<OwnedFd>,
    /// `pid` is an init: it passes SIGTERM on to everything in the namespace, ends when nothing is left, and reports the script's
    /// end as [`News::Ended`]; killing it kills all.
    pub init: bool,
}

impl Prepared {
    /// Forks.
    ///
    /// # Errors
    /// No process could be made.
    pub fn start(&self, _io: ChildIo) -> std::io::Result<Started> {
        todo!()
    }
}

impl Step {
    /// As logs spell it.
    pub fn name(self) -> &'static str {
        todo!()
    }
}

impl StepFailed {
    /// One line for stderr, without a newline.
    pub fn text(&self, _prepared: &Prepared) -> String {
        todo!()
    }

    /// The system's words for the errno, without the number.
    pub fn errno_text(&self) -> String {
        todo!()
    }
}
