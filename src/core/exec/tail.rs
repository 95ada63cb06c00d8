//! The latest output of a script that still runs, for whoever asks how it is doing.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What is kept of each stream, bytes.
pub const TAIL: usize = 64 * 1024;

/// One of the two output streams.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Which {
    Out,
    Err,
}

/// At most [`TAIL`] bytes of the end of both streams. Shared: the runner writes, somebody else reads.
#[derive(Clone, Debug, Default)]
pub struct Tails(Arc<Mutex<Kept>>);

#[derive(Debug, Default)]
struct Kept {
    out: Vec<u8>,
    err: Vec<u8>,
    /// Bytes that ever came; tells whether there is news.
    total: u64,
}

impl Tails {
    pub fn push(&self, which: Which, bytes: &[u8]) {
        let mut kept = self.lock();
        kept.total = kept.total.saturating_add(bytes.len() as u64);
        let stream = match which {
            Which::Out => &mut kept.out,
            Which::Err => &mut kept.err,
        };
        stream.extend_from_slice(bytes);
        // Moved down only now and then: twice the room, a fraction of the copying.
        if stream.len() > 2 * TAIL {
            stream.drain(..stream.len() - TAIL);
        }
    }

    /// Bytes that came so far, both streams together.
    pub fn total(&self) -> u64 {
        self.lock().total
    }

    /// The end of stdout and of stderr.
    pub fn latest(&self) -> (Vec<u8>, Vec<u8>) {
        let kept = self.lock();
        let end = |stream: &[u8]| stream[stream.len().saturating_sub(TAIL)..].to_vec();
        (end(&kept.out), end(&kept.err))
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_each_stream_is_kept_and_no_more() {
        let tails = Tails::default();
        for number in 0..40_000_u32 {
            tails.push(Which::Out, format!("{number}\n").as_bytes());
        }
        tails.push(Which::Err, b"oh\n");
        let (out, err) = tails.latest();
        assert_eq!(out.len(), TAIL);
        assert!(out.ends_with(b"39998\n39999\n"));
        assert_eq!(err, b"oh\n");
        assert!(tails.lock().out.len() <= 2 * TAIL);
        assert_eq!(
            tails.total(),
            10 * 2 + 90 * 3 + 900 * 4 + 9000 * 5 + 30_000 * 6 + 3
        );
    }
}
