//! What is to be logged of a request, until it is known whether anybody has vouched for it.
//!
//! Every stranger may ask for what everybody may know, as often as the network carries it, and gate 1 lets everybody in where gate 2 is what
//! counts. So the lines of a request (`api-request`, and `auth` of gate 1) wait. Gate 2 says yes: all of them are written, each time. It says
//! no, or the request ends without having asked it: they are written as far as there is room for strangers ([`Throttle::may_tell`]).
//!
//! [`Throttle::may_tell`]: crate::applets::api::throttle::Throttle::may_tell

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use crate::applets::api::state::Api;
use crate::applets::api::throttle::Stranger;
use crate::core::authhook::Ruling;
use crate::core::logging::Action;

/// Lines that wait. Dropped, they are those of a stranger whom gate 2 was not asked about: so nothing is lost when a client goes.
pub(super) struct Untold {
    api: Arc<Api>,
    lines: Mutex<Lines>,
}

#[derive(Default)]
struct Lines {
    request: Option<Action>,
    rulings: Vec<Ruling>,
}

impl Untold {
    pub(super) fn new(api: &Arc<Api>, request: Action) -> Self {
        let lines = Lines {
            request: Some(request),
            rulings: Vec::new(),
        };
        Self {
            api: api.clone(),
            lines: Mutex::new(lines),
        }
    }

    /// The lines of a ruling, behind those that wait.
    pub(super) fn add(&self, ruling: Ruling) {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines.rulings.push(ruling);
    }

    /// Nothing more is said of this request.
    pub(super) fn forget(&self) {
        drop(self.take());
    }

    /// Somebody has vouched for it.
    pub(super) fn tell(&self) {
        let Lines { request, rulings } = self.take();
        if let Some(line) = request {
            line.info();
        }
        for ruling in rulings {
            ruling.tell();
        }
    }

    /// Nobody has: as far as there is room, after a word about the requests for which there was none.
    pub(super) fn tell_of(&self, stranger: Stranger) {
        let room = self.api.throttle().may_tell(stranger, Instant::now());
        let Some(suppressed) = room else {
            return self.forget();
        };
        if suppressed > 0 {
            Action::new("api-log-suppressed")
                .field("COUNT", suppressed)
                .field("OF", stranger.as_str())
                .warning();
        }
        self.tell();
    }

    fn take(&self) -> Lines {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *lines)
    }
}

impl Drop for Untold {
    fn drop(&mut self) {
        let lines = self.lines.get_mut().unwrap_or_else(PoisonError::into_inner);
        if lines.request.is_some() {
            self.tell_of(Stranger::Unasked);
        }
    }
}
