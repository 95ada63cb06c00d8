//! The loop of the service: accepts, looks who it is, forks, and buries (spec/executor.md 3.3).
//!
//! It never reads a byte of a request, keeps nothing about a run but the number of its process, and no error of one connection ends it.

use std::io::Write as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{SocketFlags, accept_with};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, wait};

use super::house::{House, Peer};
use super::peer::{self, Rules};
use super::policy::Source;
use super::socket::Place;
use super::{describe, supervisor};
use crate::complain;
use crate::core::exec::frame::{Kind, Reply, ReplyExtras, encode_reply};
use crate::core::logging::Action;
use crate::core::sys::{self, fork, wait as signals};

/// The signals that the loop reads.
pub(super) const SIGNALS: [Signal; 4] = [Signal::CHILD, Signal::TERM, Signal::INT, Signal::HUP];
/// After so long without work the memory that only work needs is given back.
const QUIET: Duration = Duration::from_secs(1);
/// How long nothing is accepted after descriptors or memory have run out.
const PAUSE: Duration = Duration::from_millis(100);
/// How long runs may take to end when the service stops.
const DRAIN: Duration = Duration::from_secs(15);

#[derive(Debug)]
pub(super) struct Listener {
    /// `None` once nothing is accepted any more, and in supervisors.
    socket: Option<OwnedFd>,
    place: Option<Place>,
    signals: OwnedFd,
    peer_uid: u32,
    allow_root: bool,
    source: Source,
    house: House,
    /// The supervisors.
    running: Vec<Pid>,
    /// The last reason for which nothing could be accepted; told once.
    trouble: Option<Errno>,
}

/// What the loop is made of.
#[derive(Debug)]
pub(super) struct Parts {
    pub(super) socket: OwnedFd,
    pub(super) place: Option<Place>,
    pub(super) signals: OwnedFd,
    pub(super) peer_uid: u32,
    pub(super) allow_root: bool,
    pub(super) source: Source,
    pub(super) house: House,
}

impl Listener {
    pub(super) fn new(parts: Parts) -> Self {
        Self {
            socket: Some(parts.socket),
            place: parts.place,
            signals: parts.signals,
            peer_uid: parts.peer_uid,
            allow_root: parts.allow_root,
            source: parts.source,
            house: parts.house,
            running: Vec::new(),
            trouble: None,
        }
    }

    /// Serves until SIGTERM or SIGINT, then lets the runs end.
    pub(super) fn run(mut self) {
        let mut pause = false;
        // Whether our code may still be mapped from the start or from work.
        let mut warm = true;
        loop {
            let deadline = pause.then_some(PAUSE).or(warm.then_some(QUIET));
            let began = Instant::now();
            let connection = self.wait_for_work(deadline, !pause);
            let rest = warm && !pause && began.elapsed() >= QUIET;
            if rest {
                sys::pages::forget_cold_code();
            }
            // Whatever wakes us is work.
            warm = !rest;
            while let Some(signal) = signals::next_signal(&self.signals) {
                match signal {
                    Signal::TERM | Signal::INT => return self.drain(),
                    Signal::HUP => self.reload(),
                    _ => {}
                }
            }
            // Several children may have become one signal.
            self.reap();
            pause = connection && !self.accept();
        }
    }

    /// Sleeps until there is a signal or (if it is wanted) a connection; tells whether there is a connection.
    fn wait_for_work(&self, deadline: Option<Duration>, accepting: bool) -> bool {
        let deadline = deadline.and_then(|d| Timespec::try_from(d).ok());
        let mut fds = vec![PollFd::new(&self.signals, PollFlags::IN)];
        if let Some(socket) = self.socket.as_ref().filter(|_| accepting) {
            fds.push(PollFd::new(socket, PollFlags::IN));
        }
        match poll(&mut fds, deadline.as_ref()) {
            Ok(_) => fds.get(1).is_some_and(|fd| !fd.revents().is_empty()),
            Err(Errno::INTR) => false,
            Err(_) => {
                // Nothing that we can do about it; but never in a circle without a rest.
                std::thread::sleep(PAUSE);
                accepting
            }
        }
    }

    /// Takes one connection. False: none can be taken for the moment.
    fn accept(&mut self) -> bool {
        let Some(socket) = &self.socket else {
            return true;
        };
        match accept_with(socket, SocketFlags::CLOEXEC) {
            Ok(connection) => {
                self.trouble = None;
                self.admit(UnixStream::from(connection));
                true
            }
            Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => true,
            Err(error) => {
                if self.trouble.replace(error) != Some(error) {
                    Action::new("accept-failed").field("ERROR", error).err();
                }
                false
            }
        }
    }

    fn admit(&mut self, connection: UnixStream) {
        let executor = &self.house.policy.config.executor;
        let rules = Rules {
            uid: self.peer_uid,
            allow_root: self.allow_root,
            runs: self.house.hierarchy.as_ref().ok().map(|h| h.runs()),
            unit: executor.executor_peer_unit.as_deref(),
        };
        let peer = match peer::admit(connection.as_fd(), &rules) {
            Ok(peer) => peer,
            Err(rejected) => {
                let mut line = Action::new("peer-reject").field("REASON", rejected.reason);
                if let Some(peer) = rejected.peer {
                    line = line.field("PEER_PID", peer.pid).field("PEER_UID", peer.uid);
                }
                line.warning();
                return;
            }
        };
        if self.source.has_changed(&self.house.policy) {
            self.reload();
        }
        let most = self.house.policy.config.executor.max_runs;
        if self.running.len() >= most {
            let text = format!("executor: too many runs at the same time ({most})\n");
            refuse(connection, peer, "limit", text);
            return;
        }
        self.fork(connection, peer);
    }

    fn fork(&mut self, connection: UnixStream, peer: Peer) {
        match fork::fork() {
            Ok(fork::Side::Child) => {
                // Whatever happens in there: this process never comes back into the loop.
                let _end = LeaveOnUnwind;
                self.socket = None;
                supervisor::supervise(connection, peer, &self.house);
                fork::leave(0)
            }
            Ok(fork::Side::Parent(pid)) => self.running.extend(Pid::from_raw(pid)),
            // As the original: exit -1 without a word. The reason is for the log.
            Err(error) => {
                Action::new("accept-failed")
                    .field("ERROR", &error)
                    .field("PEER_PID", peer.pid)
                    .err();
                refuse(connection, peer, "fork", String::new());
            }
        }
    }

    /// Takes the ended supervisors off the list. One that did not end by itself has left a run without an owner.
    fn reap(&mut self) {
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            let Some(at) = self.running.iter().position(|p| *p == pid) else {
                continue;
            };
            self.running.swap_remove(at);
            if status.exit_status() != Some(0) {
                self.clear_up(pid, "supervisor-died");
            }
        }
    }

    fn clear_up(&self, supervisor: Pid, reason: &str) {
        let number = u32::try_from(supervisor.as_raw_pid()).unwrap_or_default();
        let left = self.house.hierarchy.as_ref();
        let left = left.map_or(0, |hierarchy| hierarchy.kill_run(number));
        Action::new("exec-kill")
            .field("LEFT", left)
            .field("REASON", reason)
            .field("SUPERVISOR", number)
            .warning();
    }

    fn reload(&mut self) {
        let told = self.source.reload(&mut self.house.policy);
        for warning in &told.warnings {
            complain!("{warning}");
        }
        let policy = &self.house.policy;
        if told.failures.is_empty() {
            Action::new("policy-reload")
                .field("POLICY", &policy.hash)
                .info();
        }
        for failure in &told.failures {
            Action::new("policy-reload-failed")
                .field("ERROR", failure)
                .field("POLICY", &policy.hash)
                .err();
        }
        self.house.protected = self.source.protected(&policy.config, &policy.allowlist);
        describe::log_degraded(&self.house);
    }

    /// Takes no more, asks the runs to end, and does not wait for ever.
    fn drain(mut self) {
        self.socket = None;
        if let Some(place) = &self.place {
            place.remove();
        }
        self.signal_all(Signal::TERM);
        let end = Instant::now() + DRAIN;
        self.bury_until(end);
        if self.running.is_empty() {
            return;
        }
        self.signal_all(Signal::KILL);
        for supervisor in std::mem::take(&mut self.running) {
            self.clear_up(supervisor, "shutdown");
        }
    }

    fn signal_all(&self, signal: Signal) {
        for supervisor in &self.running {
            // Not reaped yet, so the number is still its own.
            let _ = kill_process(*supervisor, signal);
        }
    }

    fn bury_until(&mut self, end: Instant) {
        loop {
            self.reap();
            let left = end.saturating_duration_since(Instant::now());
            if self.running.is_empty() || left.is_zero() {
                return;
            }
            self.wait_for_work(Some(left), false);
            while signals::next_signal(&self.signals).is_some() {}
        }
    }
}

/// Ends the process of a supervisor that panics in a build that unwinds.
struct LeaveOnUnwind;

impl Drop for LeaveOnUnwind {
    fn drop(&mut self) {
        fork::leave(101)
    }
}

/// Answers without having read. What does not fit into the socket at once is lost.
fn refuse(mut connection: UnixStream, peer: Peer, reason: &str, text: String) {
    let reply = Reply {
        exit: -1,
        stderr: text.into_bytes(),
        extras: Some(ReplyExtras {
            kind: Kind::Denied,
            ..ReplyExtras::default()
        }),
        ..Reply::default()
    };
    if connection.set_nonblocking(true).is_ok() {
        let _ = connection.write_all(&encode_reply(&reply));
    }
    Action::new("exec-deny")
        .field("PEER_PID", peer.pid)
        .field("REASON", reason)
        .warning();
}
