//! The group of one run.

use std::cell::Cell;
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

use super::{extras_of, limits_of};
use crate::core::config::ProfileConfig;
use crate::core::sys::small_files;

/// How long removal is tried for: the kernel takes a moment to forget processes that were killed.
const REMOVAL_PATIENCE: Duration = Duration::from_millis(500);

/// A run's own group, for as long as it lasts.
#[derive(Debug)]
pub struct Leaf {
    dir: PathBuf,
    fd: OwnedFd,
    /// Processor time of earlier runs in it.
    before: Duration,
    /// Of all runs, when it was read last: the kernel adds it up anew each time.
    until_now: Cell<Duration>,
}

/// An empty group that waits for another run. It has nothing on the heap, which a supervisor begins anew between two runs.
#[derive(Debug)]
pub struct Spare {
    fd: OwnedFd,
    before: Duration,
}

impl Spare {
    /// `None`: somebody has removed it meanwhile.
    pub(super) fn again(self, dir: PathBuf) -> Option<Leaf> {
        let is_there = rustix::fs::accessat(
            &self.fd,
            c"cgroup.events",
            rustix::fs::Access::EXISTS,
            rustix::fs::AtFlags::empty(),
        );
        is_there.is_ok().then_some(Leaf {
            dir,
            fd: self.fd,
            before: self.before,
            until_now: Cell::new(self.before),
        })
    }
}

/// What a run used.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Usage {
    pub cpu: Option<Duration>,
    /// Bytes.
    pub memory_peak: Option<u64>,
    pub oom_killed: bool,
}

impl Leaf {
    pub(super) fn open(dir: PathBuf) -> io::Result<Self> {
        let fd = std::fs::OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_DIRECTORY | libc::O_NOFOLLOW)
            .open(&dir)?
            .into();
        Ok(Self {
            dir,
            fd,
            before: Duration::ZERO,
            until_now: Cell::new(Duration::ZERO),
        })
    }

    /// Once [`Self::usage`] has been asked for.
    pub(super) fn into_spare(self) -> Spare {
        Spare {
            fd: self.fd,
            before: self.until_now.get(),
        }
    }

    /// For `clone3`, and for the child to join by `cgroup.procs` where that is missing.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Writes the limits; answers those that could not be set, with the reason.
    pub(super) fn limit(&self, profile: &ProfileConfig) -> Vec<String> {
        for (file, value) in extras_of(profile) {
            let _ = self.write(file, value);
        }
        limits_of(profile)
            .filter_map(|(file, value)| match self.write(file, value) {
                Ok(()) => None,
                Err(e) if e.kind() == io::ErrorKind::NotFound => {
                    let controller = file.split('.').next().unwrap_or(file);
                    Some(format!("{file} (the {controller} controller is not there)"))
                }
                Err(e) => Some(format!("{file} ({e})")),
            })
            .collect()
    }

    fn write(&self, file: &str, value: &str) -> io::Result<()> {
        std::fs::OpenOptions::new()
            .write(true)
            .open(self.dir.join(file))?
            .write_all(value.as_bytes())
    }

    fn read(&self, file: &str) -> String {
        small_files::text_at(self.fd.as_fd(), file).unwrap_or_default()
    }

    /// What the run has used so far, as far as the controllers are there.
    pub fn usage(&self) -> Usage {
        let all = value_of(&self.read("cpu.stat"), "usage_usec").map(Duration::from_micros);
        if let Some(all) = all {
            self.until_now.set(all);
        }
        Usage {
            cpu: all.map(|all| all.saturating_sub(self.before)),
            memory_peak: self.read("memory.peak").trim().parse().ok(),
            oom_killed: value_of(&self.read("memory.events"), "oom_kill").is_some_and(|n| n > 0),
        }
    }

    /// Whether any process is in it (zombies do not count).
    pub fn populated(&self) -> bool {
        value_of(&self.read("cgroup.events"), "populated") == Some(1)
    }

    /// The processes in it that we can see.
    pub fn processes(&self) -> Vec<Pid> {
        let text = self.read("cgroup.procs");
        text.lines()
            .filter_map(|line| line.parse().ok().filter(|n| *n > 0).and_then(Pid::from_raw))
            .collect()
    }

    /// Whether a process is in it now.
    pub fn holds(&self, pid: Pid) -> bool {
        self.processes().contains(&pid)
    }

    /// SIGKILL to everything in it, also to what is being forked. Returns how many processes there were.
    pub fn kill(&self) -> usize {
        let before = self.processes().len();
        if self.write("cgroup.kill", "1").is_err() {
            // Before 5.14: nothing can fork while it is frozen; the signal takes effect on a frozen process too.
            let _ = self.write("cgroup.freeze", "1");
            for pid in self.processes() {
                let _ = rustix::process::kill_process(pid, Signal::KILL);
            }
            let _ = self.write("cgroup.freeze", "0");
        }
        before
    }

    /// Removes the group. False when processes are still in it; a later sweep will find it.
    pub fn remove(&self) -> bool {
        let end = Instant::now() + REMOVAL_PATIENCE;
        loop {
            match std::fs::remove_dir(&self.dir) {
                Ok(()) => return true,
                Err(e) if e.kind() == io::ErrorKind::NotFound => return true,
                Err(_) if Instant::now() < end => std::thread::sleep(Duration::from_millis(5)),
                Err(_) => return false,
            }
        }
    }
}

/// The number after `key` in a file of lines `key number`.
pub(super) fn value_of(text: &str, key: &str) -> Option<u64> {
    text.lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(' '))
        .and_then(|number| number.trim().parse().ok())
}
