//! The loop of the service: accepts, looks who it is, hands over, and buries (spec/executor.md 3.3).
//!
//! It never reads a byte of a request, keeps nothing about a run but the number of its process, and no error of one connection ends it.

use std::io::Write as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{SocketFlags, accept_with};
use rustix::process::{Pid, Signal, WaitOptions, wait};

use super::crew::{Admitted, Crew};
use super::house::{House, Peer};
use super::peer::{self, Rules};
use super::policy::Source;
use super::{describe, supervisor};
use crate::complain;
use crate::core::exec::frame::{Kind, Reply, ReplyExtras, encode_reply};
use crate::core::logging::Action;
use crate::core::sys::pages::ColdCode;
use crate::core::sys::{arena, fork, wait as signals};
use crate::core::unix_socket::Place;

/// The signals that the loop reads.
pub(super) const SIGNALS: [Signal; 4] = [Signal::CHILD, Signal::TERM, Signal::INT, Signal::HUP];
/// After so long without work the memory that only work needs is given back.
const QUIET: Duration = Duration::from_millis(250);
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
    crew: Crew,
    /// The last reason for which nothing could be accepted; told once.
    trouble: Option<Errno>,
}

/// Orders (wait, cancel) are served while all places for runs are taken: else runs that wait for their end would keep each other from
/// ever hearing of it. They have a limit of their own.
fn most_orders(runs: usize) -> usize {
    runs.saturating_mul(2).saturating_add(16)
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
            crew: Crew::new(),
            trouble: None,
        }
    }

    /// Serves until SIGTERM or SIGINT, then lets the runs end.
    pub(super) fn run(mut self) {
        let mut pause = false;
        let cold_code = ColdCode::of_this_program();
        loop {
            let mut connection =
                self.wait_for_work(Some(if pause { PAUSE } else { QUIET }), !pause, None);
            if connection.is_none() && !pause {
                self.house.mounts.forget_views();
                self.crew.dismiss();
                connection = self.wait_for_work(None, true, Some(&cold_code));
            }
            let connection = connection.unwrap_or(false);
            while let Some(signal) = signals::next_signal(&self.signals) {
                match signal {
                    Signal::TERM | Signal::INT => return self.drain(),
                    Signal::HUP => self.reload(),
                    _ => {}
                }
            }
            self.hear_of_views();
            // Several children may have become one signal.
            self.reap();
            pause = connection && !self.accept();
        }
    }

    /// Sleeps until there is a signal or (if it is wanted) a connection, and tells whether there is a connection; `None` when there was
    /// nothing until the deadline. Before a long sleep, cold code is given back.
    fn wait_for_work(
        &self,
        deadline: Option<Duration>,
        accepting: bool,
        cold: Option<&ColdCode>,
    ) -> Option<bool> {
        let deadline = deadline.and_then(|d| Timespec::try_from(d).ok());
        let mut fds = vec![PollFd::new(&self.signals, PollFlags::IN)];
        let socket = self.socket.as_ref().filter(|_| accepting);
        let connections = socket.is_some();
        if let Some(socket) = socket {
            fds.push(PollFd::new(socket, PollFlags::IN));
        }
        // Last, because the socket is looked for at its place.
        if let Some(inbox) = self.house.mounts.inbox() {
            fds.push(PollFd::from_borrowed_fd(inbox, PollFlags::IN));
        }
        if let Some(cold) = cold {
            cold.forget();
        }
        match poll(&mut fds, deadline.as_ref()) {
            Ok(0) => None,
            Ok(_) => Some(connections && fds.get(1).is_some_and(|fd| !fd.revents().is_empty())),
            Err(Errno::INTR) => Some(false),
            Err(_) => {
                // Nothing that we can do about it; but never in a circle without a rest.
                std::thread::sleep(PAUSE);
                Some(accepting)
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
        if self.house.unprivileged.is_none() {
            if self.house.mounts.refresh() {
                self.crew.dismiss();
            }
            self.hear_of_views();
        }
        let most = self.house.policy.config.executor.max_runs;
        self.crew.hear();
        if self.crew.orders() >= most_orders(most) {
            let text = format!("executor: {}\n", supervisor::too_many(most));
            refuse(connection, peer, "limit", text);
            return;
        }
        let admitted = Admitted {
            connection,
            peer,
            full: self.crew.runs() >= most,
        };
        if let Err(admitted) = self.crew.hand_over(admitted) {
            self.fork(admitted);
        }
    }

    /// Who was made before a view was kept does not know it.
    fn hear_of_views(&mut self) {
        if self.house.mounts.hear_of_views() {
            self.crew.dismiss();
        }
    }

    fn fork(&mut self, admitted: Admitted) {
        let line = self.crew.line();
        match fork::fork() {
            Ok(fork::Side::Child) => {
                // Whatever happens in there: this process never comes back into the loop.
                let _end = LeaveOnUnwind;
                arena::begin();
                self.socket = None;
                let desk = std::mem::take(&mut self.crew).into_desk(line);
                supervisor::supervise(admitted, &self.house, desk.as_ref());
                fork::leave(0)
            }
            Ok(fork::Side::Parent(pid)) => {
                if let Some(pid) = Pid::from_raw(pid) {
                    self.crew.joined(pid, admitted.full, line);
                }
            }
            // As the original: exit -1 without a word. The reason is for the log.
            Err(error) => {
                Action::new("accept-failed")
                    .field("ERROR", &error)
                    .field("PEER_PID", admitted.peer.pid)
                    .err();
                refuse(admitted.connection, admitted.peer, "fork", String::new());
            }
        }
    }

    /// Takes the ended supervisors off the list. One that did not end by itself has left a run without an owner.
    fn reap(&mut self) {
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            if self.crew.buried(pid) && status.exit_status() != Some(0) {
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
        self.house.mounts.forget_views();
        self.crew.dismiss();
        describe::log_degraded(&self.house);
    }

    /// Takes no more, asks the runs to end, and does not wait for ever.
    fn drain(mut self) {
        self.socket = None;
        if let Some(place) = &self.place {
            place.remove();
        }
        self.crew.dismiss();
        self.crew.signal(Signal::TERM);
        let end = Instant::now() + DRAIN;
        self.bury_until(end);
        self.crew.signal(Signal::KILL);
        for supervisor in self.crew.disband() {
            self.clear_up(supervisor, "shutdown");
        }
    }

    fn bury_until(&mut self, end: Instant) {
        loop {
            self.reap();
            let left = end.saturating_duration_since(Instant::now());
            if self.crew.is_empty() || left.is_zero() {
                return;
            }
            self.wait_for_work(Some(left), false, None);
            self.house.mounts.hear_of_views();
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
