//! How much memory the answers may take that a server holds at the same time.
//!
//! A small answer is free: how many of them there can be is bounded by other limits. A larger one must reserve three times its size before it
//! is read (its text, what is made of it, and what is made of that for the caller) and gives that back when it is dropped.
//!
//! Runs on many hosts hold what they have while they wait for more, so two of them can wait for each other, and one alone can want more than
//! there is. No order of reserving prevents that, because nobody knows beforehand who will say how much. Therefore nobody waits for longer than
//! [`PATIENCE`], then that one answer is given up, with an error that says so; whoever waits holds up the agent meanwhile, which waits for
//! sixty seconds. Places are given in the order of waiting, so a large answer is not overtaken for ever by smaller ones.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::error::ExchangeError;
use crate::core::wire;

/// Answers up to this many bytes are free.
pub(super) const FREE: usize = 256 * 1024;
/// An answer whose length is not known reserves in these steps, bytes.
const STEP: usize = 1024 * 1024;
/// What an answer takes, in its own length.
const FACTOR: usize = 3;
const KIB: usize = 1024;
/// Longest wait for a reservation.
const PATIENCE: Duration = Duration::from_secs(10);

/// The memory of one server. Clones share it.
#[derive(Clone, Debug)]
pub struct Budget {
    room: Arc<Semaphore>,
    /// Longest answer that fits if there is no other, bytes.
    largest: usize,
    patience: Duration,
}

/// What an answer has reserved; given back when the last clone is dropped.
#[derive(Clone, Debug)]
pub struct Held(#[expect(dead_code, reason = "it is held, not read")] Arc<OwnedSemaphorePermit>);

impl Budget {
    /// `bytes` in all, in whole KiB; at most 4 TiB count.
    pub fn new(bytes: usize) -> Self {
        let kib = (bytes / KIB).min(u32::MAX as usize);
        Self {
            room: Arc::new(Semaphore::new(kib)),
            largest: kib * KIB / FACTOR,
            patience: PATIENCE,
        }
    }

    #[cfg(test)]
    pub(super) fn impatient(bytes: usize) -> Self {
        Self {
            patience: Duration::from_millis(50),
            ..Self::new(bytes)
        }
    }
}

/// What one answer has reserved while it comes.
pub(super) struct Reservation {
    budget: Option<Budget>,
    permit: Option<OwnedSemaphorePermit>,
    covered: usize,
}

impl Reservation {
    /// Without a budget only the limit of the wire counts.
    pub(super) fn new(budget: Option<&Budget>) -> Self {
        Self {
            budget: budget.cloned(),
            permit: None,
            covered: FREE,
        }
    }

    /// Waits until there is room for an answer of `length` bytes, at most for `left`.
    ///
    /// # Errors
    /// It never fits, or not now.
    pub(super) async fn cover(
        &mut self,
        length: usize,
        left: Duration,
    ) -> Result<(), ExchangeError> {
        if length > wire::MAX_REPLY_BODY {
            return Err(ExchangeError::ReplyTooLarge(wire::MAX_REPLY_BODY));
        }
        let Some(budget) = self.budget.as_ref().filter(|_| length > self.covered) else {
            return Ok(());
        };
        if length > budget.largest {
            return Err(ExchangeError::ReplyTooLarge(budget.largest));
        }
        let held = self.permit.as_ref().map_or(0, |p| p.num_permits());
        let more = (length * FACTOR).div_ceil(KIB).saturating_sub(held);
        // `largest` fits, and so does what is shorter.
        let more = u32::try_from(more).map_err(|_| ExchangeError::NoRoom)?;
        let wait = budget.room.clone().acquire_many_owned(more);
        let Ok(Ok(permit)) = tokio::time::timeout(left.min(budget.patience), wait).await else {
            return Err(ExchangeError::NoRoom);
        };
        match &mut self.permit {
            Some(held) => held.merge(permit),
            None => self.permit = Some(permit),
        }
        self.covered = length;
        Ok(())
    }

    /// The same for an answer of which `length` bytes have come and more may follow.
    ///
    /// # Errors
    /// As [`cover`](Self::cover).
    pub(super) async fn grow(
        &mut self,
        length: usize,
        left: Duration,
    ) -> Result<(), ExchangeError> {
        if length <= self.covered {
            return Ok(());
        }
        let largest = self.budget.as_ref().map_or(usize::MAX, |b| b.largest);
        let largest = largest.min(wire::MAX_REPLY_BODY);
        let step = length.next_multiple_of(STEP).min(largest).max(length);
        self.cover(step, left).await
    }

    pub(super) fn held(self) -> Option<Held> {
        self.permit.map(|permit| Held(Arc::new(permit)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1024 * 1024;
    const LONG: Duration = Duration::from_secs(3600);

    async fn reserve(budget: &Budget, length: usize) -> Result<Option<Held>, ExchangeError> {
        let mut reservation = Reservation::new(Some(budget));
        reservation.cover(length, LONG).await?;
        Ok(reservation.held())
    }

    #[tokio::test]
    async fn small_answers_are_free_and_large_ones_give_back_what_they_took() {
        let budget = Budget::impatient(6 * MIB);
        assert!(reserve(&budget, FREE).await.unwrap().is_none());
        let first = reserve(&budget, MIB).await.unwrap();
        let shared = first.clone();
        let second = reserve(&budget, MIB).await.unwrap();
        assert!(reserve(&budget, FREE).await.unwrap().is_none());
        assert_eq!(budget.room.available_permits(), 0);
        drop(first);
        assert_eq!(
            reserve(&budget, MIB).await.unwrap_err(),
            ExchangeError::NoRoom
        );
        drop(shared);
        let _third = reserve(&budget, MIB).await.unwrap();
        drop(second);
        assert_eq!(budget.room.available_permits(), 3 * 1024);
    }

    #[tokio::test]
    async fn what_never_fits_is_refused_at_once_and_what_grows_pays_in_steps() {
        let budget = Budget::impatient(6 * MIB);
        let too_large = ExchangeError::ReplyTooLarge(2 * MIB);
        assert_eq!(reserve(&budget, 2 * MIB + 1).await.unwrap_err(), too_large);
        let mut growing = Reservation::new(Some(&budget));
        for (length, taken) in [
            (FREE, 0),
            (FREE + 1, 3),
            (MIB, 3),
            (MIB + 1, 6),
            (2 * MIB, 6),
        ] {
            growing.grow(length, LONG).await.unwrap();
            assert_eq!(
                budget.room.available_permits(),
                (6 - taken) * 1024,
                "{length}"
            );
        }
        assert_eq!(
            growing.grow(2 * MIB + 1, LONG).await.unwrap_err(),
            too_large
        );
        drop(growing);
        assert_eq!(budget.room.available_permits(), 6 * 1024);
    }

    /// Both hold one half and want the other.
    #[tokio::test]
    async fn two_that_wait_for_each_other_end() {
        let budget = Budget::impatient(6 * MIB);
        let run = || async {
            let first = reserve(&budget, MIB).await.unwrap();
            tokio::task::yield_now().await;
            let second = reserve(&budget, MIB).await;
            drop(first);
            second.map(drop)
        };
        let (a, b) = tokio::join!(run(), run());
        assert!(a.is_err() || b.is_err());
        assert_eq!(budget.room.available_permits(), 6 * 1024);
    }

    #[tokio::test]
    async fn the_deadline_of_the_exchange_counts_and_without_a_budget_the_wire_does() {
        let budget = Budget::new(3 * MIB);
        let _all = reserve(&budget, MIB).await.unwrap();
        let mut waiting = Reservation::new(Some(&budget));
        let short = Duration::from_millis(1);
        assert_eq!(waiting.cover(MIB, short).await, Err(ExchangeError::NoRoom));

        let mut free = Reservation::new(None);
        free.grow(wire::MAX_REPLY_BODY, LONG).await.unwrap();
        let too_large = Err(ExchangeError::ReplyTooLarge(wire::MAX_REPLY_BODY));
        assert_eq!(free.grow(wire::MAX_REPLY_BODY + 1, LONG).await, too_large);
        assert!(free.held().is_none());
    }
}
