//! The live document that was made last: one sweep over the fleet at a time, and its result for a while.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::body::Bytes;
use tokio::sync::Mutex;

use crate::core::task;

/// How long a document is given to others.
const FRESH: Duration = Duration::from_secs(30);
/// A longer document is made anew for everybody instead of being kept in memory.
const MAX_KEPT: usize = 16 * 1024 * 1024;

/// What was made last, and the right to make it anew.
#[derive(Clone, Debug)]
pub(in crate::applets::api) struct Kept {
    fresh: Duration,
    last: Arc<Mutex<Option<Made>>>,
}

#[derive(Debug)]
struct Made {
    /// Whom it is about. Gate 2 was asked about the same hosts, or the document is not for that caller.
    names: Vec<String>,
    at: Instant,
    document: Bytes,
}

impl Default for Kept {
    fn default() -> Self {
        Self {
            fresh: FRESH,
            last: Arc::default(),
        }
    }
}

impl Kept {
    /// The document about these hosts: the last one if it is fresh, else what comes of `make`. Whoever comes while one is being made waits
    /// for it and gets the same.
    ///
    /// `make` ends although the caller goes away, because others may wait for it. A caller that goes away while it waits leaves nothing behind.
    /// `None`: it ended without a result.
    pub(in crate::applets::api) async fn or_make(
        &self,
        names: Vec<String>,
        make: impl Future<Output = Bytes> + Send + 'static,
    ) -> Option<Bytes> {
        let mut last = self.last.clone().lock_owned().await;
        if let Some(made) = &*last
            && made.names == names
            && made.at.elapsed() < self.fresh
        {
            return Some(made.document.clone());
        }
        let making = task::spawn(async move {
            let document = make.await;
            *last = (document.len() <= MAX_KEPT).then(|| Made {
                names,
                at: Instant::now(),
                document: document.clone(),
            });
            document
        });
        making.await.ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tokio::sync::Notify;

    fn names(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    fn kept(fresh: Duration) -> Kept {
        Kept {
            fresh,
            ..Kept::default()
        }
    }

    const LONG: Duration = Duration::from_secs(3600);

    #[tokio::test]
    async fn a_fresh_document_is_given_to_others_if_it_is_about_the_same_hosts() {
        let kept = kept(LONG);
        let get = async |hosts, text: &'static str| {
            let made = async move { Bytes::from_static(text.as_bytes()) };
            kept.or_make(names(hosts), made).await.unwrap()
        };
        assert_eq!(get("a b", "1").await, "1");
        assert_eq!(get("a b", "2").await, "1");
        assert_eq!(get("a", "3").await, "3");
        assert_eq!(get("a b", "4").await, "4");
    }

    #[tokio::test]
    async fn an_old_one_or_a_large_one_is_not() {
        let old = kept(Duration::ZERO);
        for text in ["1", "2"] {
            let made = async move { Bytes::from_static(text.as_bytes()) };
            assert_eq!(old.or_make(names("a"), made).await.unwrap(), text);
        }
        let kept = kept(LONG);
        let large = async { Bytes::from(vec![0; MAX_KEPT + 1]) };
        kept.or_make(names("a"), large).await.unwrap();
        let made = async { Bytes::from_static(b"next") };
        assert_eq!(kept.or_make(names("a"), made).await.unwrap(), "next");
    }

    #[tokio::test]
    async fn one_is_made_at_a_time_and_its_first_caller_may_go_away() {
        static MADE: AtomicUsize = AtomicUsize::new(0);
        let kept = kept(LONG);
        let (begun, go_on) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let ask = || {
            let (kept, begun, go_on) = (kept.clone(), begun.clone(), go_on.clone());
            tokio::spawn(async move {
                let make = async move {
                    begun.notify_one();
                    go_on.notified().await;
                    let number = MADE.fetch_add(1, Ordering::SeqCst) + 1;
                    Bytes::from(number.to_string())
                };
                kept.or_make(names("a"), make).await
            })
        };
        let first = ask();
        begun.notified().await;
        let (second, third) = (ask(), ask());
        first.abort();
        assert!(first.await.unwrap_err().is_cancelled());
        go_on.notify_one();
        assert_eq!(second.await.unwrap().unwrap(), "1");
        assert_eq!(third.await.unwrap().unwrap(), "1");
        assert_eq!(MADE.load(Ordering::SeqCst), 1);
    }
}
