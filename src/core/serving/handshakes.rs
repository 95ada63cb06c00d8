//! A bounded number of handshakes: they cost cryptography before we know who asks for it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Notify, oneshot};
use tokio::time::timeout;

/// Longest time for a handshake.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Handshakes under way at the same time; further connections wait in the kernel, and then for [`HASTE`] at most.
const MAX_HANDSHAKES: usize = 128;
/// A handshake gets at least this long; after it, it gives way to the next connection when there is no place left. Without that,
/// silent clients of a few addresses could keep everybody else waiting.
const HASTE: Duration = Duration::from_millis(500);

/// The handshakes under way, oldest first.
#[derive(Debug, Default)]
pub struct Handshakes {
    under_way: VecDeque<(Instant, oneshot::Sender<()>)>,
    freed: Arc<Notify>,
}

/// The place of one handshake, free again when dropped.
#[derive(Debug)]
pub struct Place {
    give_way: oneshot::Receiver<()>,
    freed: Arc<Notify>,
}

impl Handshakes {
    /// Returns when one more handshake may begin; ends the oldest one if that is what it takes.
    pub async fn make_room(&mut self) {
        loop {
            self.under_way.retain(|(_, over)| !over.is_closed());
            if self.under_way.len() < MAX_HANDSHAKES {
                return;
            }
            let Some((since, _)) = self.under_way.front() else {
                return;
            };
            let left = HASTE.saturating_sub(since.elapsed());
            if left.is_zero() {
                if let Some((_, slowest)) = self.under_way.pop_front() {
                    let _ = slowest.send(());
                }
                return;
            }
            let _ = timeout(left, self.freed.notified()).await;
        }
    }

    /// Takes a place; [`make_room`](Self::make_room) comes before.
    pub fn enter(&mut self) -> Place {
        let (over, give_way) = oneshot::channel();
        self.under_way.push_back((Instant::now(), over));
        Place {
            give_way,
            freed: self.freed.clone(),
        }
    }
}

impl Place {
    /// Returns when somebody else needs the place.
    pub async fn told_to_give_way(&mut self) {
        if (&mut self.give_way).await.is_err() {
            // The queue itself is gone: nobody needs anything any more.
            std::future::pending::<()>().await;
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.give_way.close();
        self.freed.notify_one();
    }
}
