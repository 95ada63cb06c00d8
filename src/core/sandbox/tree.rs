//! All processes of a run, by the best means there is: its cgroup, its init, or the tree below its supervisor (spec/executor.md 15.7).
//!
//! The supervisor is a subreaper: whatever leaves its parent becomes a child of the supervisor, never of somebody else.

use std::fs;
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions};

use super::cgroup::Leaf;
use crate::core::sys::small_files;
use crate::core::sys::wait::{self, Reaped};

/// How long a kill is repeated: the children of a process that was killed show only then.
const KILL_PATIENCE: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(2);

/// The processes of one run.
#[derive(Debug)]
pub struct Tree {
    /// The script, or its init. Stays a zombie until [`Tree::reap_main`], so that its number (and that of its group) is its own.
    main: Pid,
    /// `main` is the init of a PID namespace.
    init: bool,
    leaf: Option<Leaf>,
    reaped: Option<Reaped>,
}

/// A line of `/proc/<pid>/stat`, as far as it matters.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Stat {
    pid: Pid,
    parent: i32,
    zombie: bool,
    /// In clock ticks since boot; with the number, this names a process for good.
    started: u64,
}

impl Tree {
    pub fn new(main: Pid, init: bool, leaf: Option<Leaf>) -> Self {
        Self {
            main,
            init,
            leaf,
            reaped: None,
        }
    }

    pub fn leaf(&self) -> Option<&Leaf> {
        self.leaf.as_ref()
    }

    /// The group, for who is done with the processes.
    pub fn into_leaf(self) -> Option<Leaf> {
        self.leaf
    }

    /// Whether the main process has ended. It is not reaped by this.
    pub fn main_ended(&self) -> bool {
        let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        self.reaped.is_some()
            || !matches!(
                rustix::process::waitid(WaitId::Pid(self.main), look),
                Ok(None)
            )
    }

    /// Takes the main process off the process table, if it has ended. The last thing to do.
    pub fn reap_main(&mut self) -> Option<Reaped> {
        if self.reaped.is_none() {
            self.reaped = wait::reap(self.main).ok().flatten();
        }
        self.reaped
    }

    /// Takes everything else that has ended off the process table.
    pub fn reap_orphans(&self) {
        for child in children() {
            if child.zombie && child.pid != self.main {
                let _ = wait::reap(child.pid);
            }
        }
    }

    /// Whether nothing of it is alive.
    pub fn is_empty(&self) -> bool {
        let in_leaf = self.leaf.as_ref().is_some_and(Leaf::populated);
        !in_leaf && !self.main_alive() && children().iter().all(|child| child.zombie)
    }

    fn main_alive(&self) -> bool {
        self.reaped.is_none() && !self.main_ended()
    }

    /// SIGTERM, once to each process. An init passes it on.
    pub fn terminate(&self) {
        if self.init {
            if self.reaped.is_none() {
                let _ = rustix::process::kill_process(self.main, Signal::TERM);
            }
            return;
        }
        let below = descendants();
        for stat in below.iter().filter(|stat| !stat.zombie) {
            signal_exactly(stat.pid, Signal::TERM, |pid| {
                read_stat(pid).is_some_and(|now| now.started == stat.started)
            });
        }
        if let Some(leaf) = &self.leaf {
            for pid in leaf.processes() {
                if !below.iter().any(|stat| stat.pid == pid) {
                    signal_exactly(pid, Signal::TERM, |pid| leaf.holds(pid));
                }
            }
        }
        // Without /proc there is only the group.
        if below.is_empty() && self.main_alive() {
            let _ = rustix::process::kill_process_group(self.main, Signal::TERM);
        }
    }

    /// SIGKILL to all of it, until nothing is left or the patience is over. Returns how many processes it met.
    pub fn kill(&self) -> usize {
        let end = Instant::now() + KILL_PATIENCE;
        if self.init && self.main_alive() {
            // The kernel kills the whole namespace with it, and lets it go last.
            let met = self.below_init();
            let _ = rustix::process::kill_process(self.main, Signal::KILL);
            self.await_main(end);
            if self.is_empty() {
                return met;
            }
        }
        let met = self.alive();
        loop {
            if let Some(leaf) = &self.leaf {
                leaf.kill();
            }
            if self.main_alive() {
                let _ = rustix::process::kill_process(self.main, Signal::KILL);
                let _ = rustix::process::kill_process_group(self.main, Signal::KILL);
            }
            for child in children() {
                if child.zombie {
                    if child.pid != self.main {
                        let _ = wait::reap(child.pid);
                    }
                } else {
                    // A child of ours keeps its number until we reap it.
                    let _ = rustix::process::kill_process(child.pid, Signal::KILL);
                }
            }
            if self.is_empty() || Instant::now() >= end {
                return met;
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// Sleeps until the main process has ended, at most until then.
    fn await_main(&self, end: Instant) {
        let Ok(held) = rustix::process::pidfd_open(self.main, PidfdFlags::empty()) else {
            // Before 5.3.
            while self.main_alive() && Instant::now() < end {
                std::thread::sleep(PAUSE);
            }
            return;
        };
        let mut asked = [PollFd::new(&held, PollFlags::IN)];
        while self.main_alive() && Instant::now() < end {
            let left = Timespec::try_from(end.saturating_duration_since(Instant::now())).ok();
            let _ = poll(&mut asked, left.as_ref());
        }
    }

    /// How many processes an init has below it. None in the usual case, in which nothing but one small file is read.
    fn below_init(&self) -> usize {
        let init = self.main.as_raw_nonzero();
        if let Some(leaf) = &self.leaf {
            return leaf.processes().len().saturating_sub(1);
        }
        match small_files::text(format!("/proc/{init}/task/{init}/children")) {
            Ok(list) if list.trim().is_empty() => 0,
            _ => descendants()
                .iter()
                .filter(|s| !s.zombie && s.pid != self.main)
                .count(),
        }
    }

    fn alive(&self) -> usize {
        let below = descendants().iter().filter(|stat| !stat.zombie).count();
        let in_leaf = self.leaf.as_ref().map_or(0, |l| l.processes().len());
        below.max(in_leaf)
    }
}

/// Signals the process that has the number now, if `is_it` still says so after we have hold of it.
fn signal_exactly(pid: Pid, signal: Signal, is_it: impl Fn(Pid) -> bool) {
    match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
        Ok(held) => {
            if is_it(pid) {
                let _ = rustix::process::pidfd_send_signal(held.as_fd(), signal);
            }
        }
        Err(rustix::io::Errno::SRCH) => {}
        // Before 5.3.
        Err(_) => {
            if is_it(pid) {
                let _ = rustix::process::kill_process(pid, signal);
            }
        }
    }
}

/// Whether this process has no child at all, living or ended; told by one call.
pub fn is_childless() -> bool {
    let any = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    matches!(
        rustix::process::waitid(WaitId::All, any),
        Err(rustix::io::Errno::CHILD)
    )
}

/// Our own children.
fn children() -> Vec<Stat> {
    // The usual case after a run: reading a list of none takes six calls and makes the kernel build four entries of `/proc`.
    if is_childless() {
        return Vec::new();
    }
    let us = std::process::id();
    let Ok(list) = small_files::text(format!("/proc/self/task/{us}/children")) else {
        let us = rustix::process::getpid().as_raw_nonzero().get();
        let mut all = all();
        all.retain(|stat| stat.parent == us);
        return all;
    };
    list.split_ascii_whitespace()
        .filter_map(|word| word.parse().ok().and_then(Pid::from_raw))
        .filter_map(read_stat)
        .collect()
}

/// Everything below us.
fn descendants() -> Vec<Stat> {
    below(rustix::process::getpid().as_raw_nonzero().get(), all())
}

fn below(root: i32, mut rest: Vec<Stat>) -> Vec<Stat> {
    let mut found: Vec<Stat> = Vec::new();
    let mut parents = std::collections::BTreeSet::from([root]);
    loop {
        let (next, others): (Vec<_>, Vec<_>) = rest
            .into_iter()
            .partition(|stat| parents.contains(&stat.parent));
        if next.is_empty() {
            return found;
        }
        parents = next.iter().map(|s| s.pid.as_raw_nonzero().get()).collect();
        found.extend(next);
        rest = others;
    }
}

fn all() -> Vec<Stat> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(Pid::from_raw)
        .filter_map(read_stat)
        .collect()
}

fn read_stat(pid: Pid) -> Option<Stat> {
    let bytes = fs::read(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?;
    parse_stat(pid, &String::from_utf8_lossy(&bytes))
}

/// The name stands in parentheses and may hold anything, also parentheses.
fn parse_stat(pid: Pid, text: &str) -> Option<Stat> {
    let (_, after) = text.rsplit_once(')')?;
    let fields: Vec<&str> = after.split_ascii_whitespace().collect();
    Some(Stat {
        pid,
        parent: fields.get(1)?.parse().ok()?,
        zombie: matches!(*fields.first()?, "Z" | "X" | "x"),
        started: fields.get(19)?.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pid(number: i32) -> Pid {
        Pid::from_raw(number).unwrap()
    }

    #[test]
    fn a_name_cannot_forge_the_fields_behind_it() {
        let tail = "0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0";
        let text = format!("12 (x) Z 1 (y) S 34 {tail} 9988 0");
        let stat = parse_stat(pid(12), &text);
        let fields: Vec<_> = text
            .rsplit_once(')')
            .unwrap()
            .1
            .split_whitespace()
            .collect();
        assert_eq!(fields[0], "S");
        assert_eq!(
            stat,
            Some(Stat {
                pid: pid(12),
                parent: 34,
                zombie: false,
                started: 9988
            })
        );
        assert_eq!(parse_stat(pid(1), "1 (sh"), None);
        assert_eq!(parse_stat(pid(1), "1 (sh) S"), None);
    }

    #[test]
    fn the_tree_is_followed_through_every_generation() {
        let stat = |number, parent| Stat {
            pid: pid(number),
            parent,
            zombie: false,
            started: 0,
        };
        let all = vec![stat(9, 8), stat(8, 5), stat(7, 1), stat(6, 5), stat(5, 1)];
        let mut found: Vec<i32> = below(5, all)
            .iter()
            .map(|s| s.pid.as_raw_nonzero().get())
            .collect();
        found.sort_unstable();
        assert_eq!(found, [6, 8, 9]);
    }

    #[test]
    fn we_find_a_child_and_its_child() {
        let mut child = std::process::Command::new("/bin/sh")
            .args(["-c", "sleep 300 & echo $!; wait"])
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        use std::io::BufRead as _;
        std::io::BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let grandchild = pid(line.trim().parse().unwrap());
        assert!(descendants().iter().any(|s| s.pid == grandchild));
        let stat = read_stat(grandchild).unwrap();
        signal_exactly(grandchild, Signal::KILL, |_| false);
        assert!(read_stat(grandchild).is_some_and(|s| !s.zombie));
        signal_exactly(grandchild, Signal::KILL, |p| {
            read_stat(p).is_some_and(|now| now.started == stat.started)
        });
        child.wait().unwrap();
    }
}
