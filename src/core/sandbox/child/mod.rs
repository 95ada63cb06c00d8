//! From the fork to `execve`, in the order of spec/executor.md 9.4: system calls only, nothing is allocated.

mod init;
mod steps;
#[cfg(test)]
mod tests;
mod text;

use std::convert::Infallible;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd, RawFd};

use rustix::io::{Errno, fcntl_dupfd_cloexec};
use rustix::process::{Pid, PidfdFlags, getpid, pidfd_open};

use super::prepare::Prepared;
use crate::core::sys::process::{Birth, exit_now, spawn};

/// What the child was doing when it failed.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
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

impl Step {
    const ALL: [Self; 32] = [
        Self::Session,
        Self::Cgroup,
        Self::Namespaces,
        Self::MountPropagation,
        Self::MountReadOnly,
        Self::MountWritable,
        Self::MountPrivateTmp,
        Self::MountProtect,
        Self::MountHide,
        Self::MountTunables,
        Self::MountDevices,
        Self::MountProc,
        Self::MountScript,
        Self::Limits,
        Self::Landlock,
        Self::BoundingSet,
        Self::Groups,
        Self::Gid,
        Self::Uid,
        Self::Capabilities,
        Self::Ambient,
        Self::SecureBits,
        Self::NoNewPrivileges,
        Self::Filter,
        Self::DeathSignal,
        Self::Descriptors,
        Self::Lsm,
        Self::Directory,
        Self::Loopback,
        Self::Init,
        Self::Executable,
        Self::Exec,
    ];

    /// For `map_err`: this step ended with that errno.
    pub(super) fn failed(self) -> impl Fn(Errno) -> StepFailed {
        move |errno| StepFailed {
            step: self,
            errno: errno.raw_os_error(),
        }
    }

    /// As [`Self::failed`], for modules that hand over the bare number.
    fn failed_raw(self) -> impl Fn(i32) -> StepFailed {
        move |errno| StepFailed { step: self, errno }
    }
}

impl News {
    pub const SIZE: usize = 8;

    pub fn encode(self) -> [u8; Self::SIZE] {
        let (kind, step, number) = match self {
            Self::Failed(failed) => (1, failed.step as u8, failed.errno),
            Self::Ended(status) => (2, 0, status),
        };
        let [a, b, c, d] = number.to_be_bytes();
        [kind, step, 0, 0, a, b, c, d]
    }

    /// `None` for bytes that are no message.
    pub fn decode(bytes: [u8; Self::SIZE]) -> Option<Self> {
        let [kind, step, 0, 0, a, b, c, d] = bytes else {
            return None;
        };
        let number = i32::from_be_bytes([a, b, c, d]);
        match (kind, step) {
            (1, step) => Some(Self::Failed(StepFailed {
                step: *Step::ALL.get(usize::from(step))?,
                errno: number,
            })),
            (2, 0) => Some(Self::Ended(number)),
            _ => None,
        }
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
    /// Forks. To be called by a process with one thread: the script dies with the thread that made it.
    ///
    /// What the child did not live to do comes through the status pipe as [`News::Failed`], after which the process ends with 126
    /// (127 for [`Step::Exec`]). Without an init the pipe is closed by `execve`; with one it lives as long as the init, which sends
    /// [`News::Ended`] for the script in any case.
    ///
    /// # Errors
    /// No process could be made.
    pub fn start(&self, io: ChildIo) -> std::io::Result<Started> {
        let io = io.out_of_the_way()?;
        let run = Run {
            prepared: self,
            io: &io,
            supervisor: getpid(),
            supervisor_fd: (self.init && self.pidfd)
                .then(|| pidfd_open(getpid(), PidfdFlags::empty()))
                .transpose()?,
            highest_fd: (!self.close_range).then(highest_fd),
            placed: false,
        };
        let birth = Birth {
            namespaces: self.namespaces,
            cgroup: None,
            pidfd: self.pidfd,
            clone3: self.clone3,
        };
        let born = match &self.leaf {
            Some(leaf) if self.clone3 => {
                let into = Birth {
                    cgroup: Some(leaf.as_fd()),
                    ..birth
                };
                let run = Run {
                    placed: true,
                    supervisor_fd: match &run.supervisor_fd {
                        Some(fd) => Some(fd.try_clone()?),
                        None => None,
                    },
                    ..run
                };
                spawn(into, || run.live()).ok()
            }
            _ => None,
        };
        // Where the kernel does not place it, the child writes itself into its group.
        let (pid, pidfd) = match born {
            Some(born) => born,
            None => spawn(birth, || run.live())?,
        };
        let pidfd = pidfd.or_else(|| {
            self.pidfd
                .then(|| pidfd_open(pid, PidfdFlags::empty()).ok())
                .flatten()
        });
        Ok(Started {
            pid,
            pidfd,
            init: self.init,
        })
    }
}

/// What the child works with. All of it is the supervisor's, copied by the fork.
struct Run<'a> {
    prepared: &'a Prepared,
    io: &'a ChildIo,
    supervisor: Pid,
    /// Tells an init, which cannot see its parent, whether that still lives.
    supervisor_fd: Option<OwnedFd>,
    /// How far descriptors go, where the kernel lacks `close_range`.
    highest_fd: Option<RawFd>,
    /// Born in its cgroup.
    placed: bool,
}

impl Run<'_> {
    /// The whole life of the child.
    fn live(&self) -> Infallible {
        let failed = if self.prepared.init {
            init::run(self)
        } else {
            steps::surroundings(self).and_then(|()| steps::script(self))
        };
        match failed {
            Err(failed) => self.give_up(failed),
            Ok(never) => never,
        }
    }

    fn give_up(&self, failed: StepFailed) -> ! {
        self.tell(News::Failed(failed));
        exit_now(if failed.step == Step::Exec { 127 } else { 126 })
    }

    /// Messages are small enough to go through the pipe whole or not at all. Whoever has gone is told nothing.
    fn tell(&self, news: News) {
        let _ = rustix::io::write(&self.io.status, &news.encode());
    }
}

impl ChildIo {
    /// With every descriptor above the three that they will become.
    fn out_of_the_way(self) -> std::io::Result<Self> {
        let lift = |fd: OwnedFd| -> std::io::Result<OwnedFd> {
            if fd.as_raw_fd() > 2 {
                Ok(fd)
            } else {
                Ok(fcntl_dupfd_cloexec(&fd, 3)?)
            }
        };
        Ok(Self {
            stdin: lift(self.stdin)?,
            stdout: lift(self.stdout)?,
            stderr: lift(self.stderr)?,
            status: lift(self.status)?,
        })
    }
}

/// Above every descriptor that is open, with room for those that the child opens itself.
fn highest_fd() -> RawFd {
    const ROOM: RawFd = 64;
    const BLINDLY: RawFd = 65_536;
    let Ok(entries) = std::fs::read_dir("/proc/self/fd") else {
        return BLINDLY;
    };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<RawFd>().ok())
        .max()
        .map_or(BLINDLY, |highest| highest.saturating_add(ROOM))
}
