//! Many exchanges at once, in one process, with a bound (spec/dispatcher.md 6).

use std::future::Future;
use std::sync::Arc;

use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::core::task::{Parcel, Work, pack, unpack};

/// Runs `work` for every item, at most `parallel` at a time, and hands each result with its index to `done` as it comes.
/// Returns the results in the order of the items. A failed item never stops the others.
///
/// `lost` makes the result of an item whose task ended without one (it was cancelled or panicked).
pub async fn fan_out<T, R, F, W>(
    items: Vec<T>,
    parallel: usize,
    work: W,
    lost: impl Fn(usize) -> R,
    done: impl FnMut(usize, &R),
) -> Vec<R>
where
    T: Send + 'static,
    R: Send + 'static,
    F: Future<Output = R> + Send + 'static,
    W: Fn(T) -> F,
{
    let slots = Arc::new(Semaphore::new(parallel.max(1)));
    fan_out_within(items, &slots, work, lost, done).await
}

/// The same with slots that other calls may share: all of them together run at most that many tasks. A call waits for one slot at a time, and
/// slots are given in the order of waiting, so that calls take turns. Dropping the future ends its tasks.
pub async fn fan_out_within<T, R, F, W>(
    items: Vec<T>,
    slots: &Arc<Semaphore>,
    work: W,
    lost: impl Fn(usize) -> R,
    mut done: impl FnMut(usize, &R),
) -> Vec<R>
where
    T: Send + 'static,
    R: Send + 'static,
    F: Future<Output = R> + Send + 'static,
    W: Fn(T) -> F,
{
    let mut results: Vec<Option<R>> = items.iter().map(|_| None).collect();
    let mut items = items.into_iter().enumerate();
    let mut running = JoinSet::<(usize, Parcel)>::new();
    // One wait over many turns of the loop: whoever began anew after every result would lose its place to the other calls.
    let mut slot = std::pin::pin!(slots.clone().acquire_owned());
    loop {
        // A task is made only when it may run, so memory follows the slots and not the number of hosts.
        tokio::select! {
            biased;
            Some(ended) = running.join_next() => {
                if let Ok((index, result)) = ended {
                    let result = unpack(result);
                    done(index, &result);
                    results[index] = Some(result);
                }
            }
            held = &mut slot, if items.len() > 0 => {
                // Nobody closes it; if somebody did, what is left would be lost.
                let (Ok(held), Some((index, item))) = (held, items.next()) else {
                    break;
                };
                let job = work(item);
                let job: Work<_> = Box::pin(async move {
                    let _held = held;
                    (index, pack(job.await))
                });
                running.spawn(job);
                if items.len() > 0 {
                    slot.set(slots.clone().acquire_owned());
                }
            }
            else => break,
        }
    }
    results
        .into_iter()
        .enumerate()
        .map(|(index, result)| result.unwrap_or_else(|| lost(index)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    #[tokio::test]
    async fn order_is_kept_the_bound_holds_and_a_dead_worker_hurts_nobody() {
        static RUNNING: AtomicUsize = AtomicUsize::new(0);
        static MOST: AtomicUsize = AtomicUsize::new(0);
        let mut finished = Vec::new();
        let results = fan_out(
            (0_u64..7).collect(),
            2,
            |n| async move {
                let now = RUNNING.fetch_add(1, Ordering::SeqCst) + 1;
                MOST.fetch_max(now, Ordering::SeqCst);
                tokio::time::sleep(Duration::from_millis(10 * (7 - n))).await;
                RUNNING.fetch_sub(1, Ordering::SeqCst);
                assert_ne!(n, 3, "this worker dies");
                format!("result {n}")
            },
            |index| format!("lost {index}"),
            |index, _| finished.push(index),
        )
        .await;
        assert_eq!(results[2], "result 2");
        assert_eq!(results[3], "lost 3");
        assert_eq!(results.len(), 7);
        assert_eq!(finished.len(), 6);
        assert!(MOST.load(Ordering::SeqCst) <= 2);
    }

    #[tokio::test]
    async fn calls_that_share_their_slots_take_turns_within_one_bound() {
        static RUNNING: AtomicUsize = AtomicUsize::new(0);
        let slots = Arc::new(Semaphore::new(3));
        let call = |hosts: usize| {
            let slots = slots.clone();
            async move {
                let work = |_| async {
                    let now = RUNNING.fetch_add(1, Ordering::SeqCst) + 1;
                    tokio::time::sleep(Duration::from_millis(2)).await;
                    RUNNING.fetch_sub(1, Ordering::SeqCst);
                    now
                };
                fan_out_within(vec![(); hosts], &slots, work, |_| 0, |_, _| {}).await
            }
        };
        let large = tokio::spawn(call(200));
        tokio::task::yield_now().await;
        let small = call(2).await;
        assert!(!large.is_finished(), "two hosts waited for two hundred");
        let large = large.await.unwrap();
        assert!(small.iter().chain(&large).all(|now| (1..=3).contains(now)));
        assert_eq!((small.len(), large.len()), (2, 200));
        assert_eq!(slots.available_permits(), 3);
    }

    #[tokio::test]
    async fn nothing_in_nothing_out() {
        let results: Vec<u8> =
            fan_out(Vec::<u8>::new(), 0, |n| async move { n }, |_| 0, |_, _| {}).await;
        assert!(results.is_empty());
    }
}
