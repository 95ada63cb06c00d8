//! Connections that have answered and are kept for the next request, for a program that asks the same agents again and again.
//!
//! Only agents that speak HTTP/1.1 keep them; those of the original close after every answer. Every idle connection counts against
//! `max_children` of its agent, so there are few and they do not wait long.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::time::Instant;

use super::connection::Connection;
use crate::core::registry::Target;
use crate::core::types::{AgentName, Serial};

/// What a pool may keep.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) all: usize,
    pub(super) per_agent: usize,
    /// Agents of ours close after 60 s.
    pub(super) idle: Duration,
}

const LIMITS: Limits = Limits {
    all: 128,
    per_agent: 8,
    idle: Duration::from_secs(25),
};

/// How well it goes; shared by the pools that follow one another when the configuration is loaded anew.
#[derive(Debug, Default)]
pub struct Counters {
    /// Requests that were sent over a connection that was there already.
    pub reused: AtomicU64,
    /// Connections that were made.
    pub fresh: AtomicU64,
    /// Connections that wait for a request now.
    pub idle: AtomicU64,
}

/// Which requests may use a connection.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Key {
    agent: AgentName,
    address: String,
    port: u16,
    presented: Serial,
}

impl Key {
    pub(super) fn new(target: &Target, presented: &Serial) -> Self {
        Self {
            agent: target.name.clone(),
            address: target.address.clone(),
            port: target.port,
            presented: presented.clone(),
        }
    }
}

/// The idle connections of one [`Client`](super::exchange::Client): they were made with its identities and its CAs, so another one must not use
/// them. When the last clone is dropped they are closed.
#[derive(Clone)]
pub struct Pool(Arc<Shared>);

struct Shared {
    limits: Limits,
    counters: Arc<Counters>,
    /// The one that has waited longest is first.
    idle: Mutex<VecDeque<(Key, Connection)>>,
}

/// What the task that drives a connection knows of the pool.
#[derive(Clone)]
pub(super) struct PoolHandle(Weak<Shared>);

impl Pool {
    pub fn new(counters: Arc<Counters>) -> Self {
        Self::with_limits(counters, LIMITS)
    }

    pub(super) fn with_limits(counters: Arc<Counters>, limits: Limits) -> Self {
        Self(Arc::new(Shared {
            limits,
            counters,
            idle: Mutex::default(),
        }))
    }

    pub(super) fn handle(&self) -> PoolHandle {
        PoolHandle(Arc::downgrade(&self.0))
    }

    pub(super) fn count_fresh(&self) {
        self.0.counters.fresh.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count_reused(&self) {
        self.0.counters.reused.fetch_add(1, Ordering::Relaxed);
    }

    /// The connection that has waited for the shortest time, so that those that are not needed grow old. It may have been closed by the agent.
    pub(super) fn take(&self, key: &Key) -> Option<Connection> {
        let mut idle = self.0.lock();
        let at = idle.iter().rposition(|(of, _)| of == key)?;
        let (_, connection) = idle.remove(at)?;
        // Still under the lock: whoever finds that the connection is gone from the pool also finds that it is not idle.
        connection.wait_until(None);
        self.0.counters.idle.fetch_sub(1, Ordering::Relaxed);
        Some(connection)
    }

    /// Keeps a connection whose answer has been read to its end. The oldest ones make room.
    pub(super) fn put(&self, key: Key, connection: Connection) {
        let limits = self.0.limits;
        // Dropped after the lock.
        let mut surplus = Vec::new();
        let mut idle = self.0.lock();
        if connection.is_closed() {
            return;
        }
        let same = idle.iter().filter(|(of, _)| of.agent == key.agent).count();
        if same >= limits.per_agent {
            let oldest = idle.iter().position(|(of, _)| of.agent == key.agent);
            surplus.extend(oldest.and_then(|at| idle.remove(at)));
        }
        if idle.len() >= limits.all {
            surplus.extend(idle.pop_front());
        }
        connection.wait_until(Some(Instant::now() + limits.idle));
        idle.push_back((key, connection));
        drop(idle);
        let counter = &self.0.counters.idle;
        counter.fetch_add(1, Ordering::Relaxed);
        counter.fetch_sub(surplus.len() as u64, Ordering::Relaxed);
    }
}

impl PoolHandle {
    /// Takes a connection away that has ended or waited long enough; false if it does not wait.
    pub(super) fn forget(&self, id: u64) -> bool {
        let Some(shared) = self.0.upgrade() else {
            return false;
        };
        let mut idle = shared.lock();
        let at = idle.iter().position(|(_, connection)| connection.id == id);
        let Some(_ended) = at.and_then(|at| idle.remove(at)) else {
            return false;
        };
        drop(idle);
        shared.counters.idle.fetch_sub(1, Ordering::Relaxed);
        true
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, VecDeque<(Key, Connection)>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let left = self.lock().len();
        self.counters.idle.fetch_sub(left as u64, Ordering::Relaxed);
    }
}
