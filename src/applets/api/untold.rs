//! What is to be logged of a request, until it is known whether anybody has vouched for it.
//!
//! Every stranger may ask for what everybody may know, as often as the network carries it, and gate 1 lets everybody in where gate 2 is what
//! counts. So the lines of a request (`api-request`, and `auth` of gate 1) wait. Gate 2 says yes: all of them are written, each time. It says
//! no, the route has none, or the request ends without having asked it: they are written as far as there is room for strangers
//! ([`Throttle::may_tell`]).
//!
//! [`Throttle::may_tell`]: crate::applets::api::throttle::Throttle::may_tell

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use hyper::http::request::Parts;

use crate::applets::api::peer::Peer;
use crate::applets::api::state::Api;
use crate::applets::api::throttle::Stranger;
use crate::core::logging::{Action, Priority};

type Lines = Vec<(Priority, Action)>;

impl Api {
    /// Whether the lines of a stranger's request are written; says how many were not, if there were any.
    pub(super) fn may_tell(&self, stranger: Stranger) -> bool {
        let room = self.throttle().may_tell(stranger, Instant::now());
        if let Some(suppressed) = room.filter(|n| *n > 0) {
            Action::new("api-log-suppressed")
                .field("COUNT", suppressed)
                .field("OF", stranger.as_str())
                .warning();
        }
        room.is_some()
    }
}

/// A request of which nothing is said yet. Dropped (the client has gone), it is that of a stranger.
pub(super) struct Begun<'a> {
    api: &'a Arc<Api>,
    head: &'a Parts,
    peer: &'a Peer,
    /// Of its body, as announced.
    length: u64,
    is_done: bool,
}

impl<'a> Begun<'a> {
    pub(super) fn new(api: &'a Arc<Api>, head: &'a Parts, peer: &'a Peer, length: u64) -> Self {
        Self {
            api,
            head,
            peer,
            length,
            is_done: false,
        }
    }

    fn line(&self) -> Action {
        Action::new("api-request")
            .field("LEN", self.length)
            .field("METHOD", &self.head.method)
            .field("PATH", self.head.uri.path())
            .field("PEER", self.peer.source_ip())
    }

    /// Nothing is said of it.
    pub(super) fn forget(mut self) {
        self.is_done = true;
    }

    /// Nobody has vouched for it, and nobody will be asked to. Whether there is room for more lines about it.
    pub(super) fn tell_of(mut self, stranger: Stranger) -> bool {
        self.tell(stranger)
    }

    fn tell(&mut self, stranger: Stranger) -> bool {
        self.is_done = true;
        let room = self.api.may_tell(stranger);
        if room {
            self.line().info();
        }
        room
    }

    /// Gate 2 will be asked, and its line and these wait for that.
    pub(super) fn wait(mut self, gate_1: Lines) -> Untold {
        self.is_done = true;
        let mut lines = vec![(Priority::Info, self.line())];
        lines.extend(gate_1);
        Untold {
            api: self.api.clone(),
            lines: Mutex::new(lines),
        }
    }
}

impl Drop for Begun<'_> {
    fn drop(&mut self) {
        if !self.is_done {
            self.tell(Stranger::Unasked);
        }
    }
}

/// Lines that wait for gate 2. Dropped, they are those of a stranger whom it was not asked about.
pub(super) struct Untold {
    api: Arc<Api>,
    lines: Mutex<Lines>,
}

impl Untold {
    /// There are none: all is said, and gate 2 will not be asked.
    pub(super) fn nothing(api: &Arc<Api>) -> Self {
        Self {
            api: api.clone(),
            lines: Mutex::default(),
        }
    }

    /// Nothing is said of them.
    pub(super) fn forget(&self) {
        drop(self.take());
    }

    /// They are written.
    pub(super) fn tell(&self) {
        for (priority, line) in self.take() {
            line.emit(priority);
        }
    }

    fn take(&self) -> Lines {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *lines)
    }
}

impl Drop for Untold {
    fn drop(&mut self) {
        let lines = self.lines.get_mut().unwrap_or_else(PoisonError::into_inner);
        if !lines.is_empty() && self.api.may_tell(Stranger::Unasked) {
            self.tell();
        }
    }
}
