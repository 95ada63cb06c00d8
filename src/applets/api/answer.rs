//! The body of an answer, on its way: whoever waits for it to be gone learns when it is.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use axum::body::Body;
use hyper::body::{Body as HttpBody, Bytes, Frame, SizeHint};

/// Bytes that are handed over at once: so the pace shows whether the peer takes any.
const PIECE: usize = 16 * 1024;

/// Learns of the progress of an answer.
pub(super) trait Watch: Send + Unpin {
    /// The peer has taken what was handed over before.
    fn moves(&mut self);
    /// All of it is handed over, or nobody wants it any more.
    fn is_over(&mut self);
}

/// A body that tells how far it is.
pub(super) struct Answer<W: Watch> {
    inner: Body,
    rest: Bytes,
    watch: W,
}

impl<W: Watch> Answer<W> {
    pub(super) fn new(inner: Body, watch: W) -> Self {
        Self {
            inner,
            rest: Bytes::new(),
            watch,
        }
    }
}

impl<W: Watch> HttpBody for Answer<W> {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = &mut *self;
        this.watch.moves();
        if this.rest.is_empty() {
            match ready!(Pin::new(&mut this.inner).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => this.rest = data,
                    Err(other) => return Poll::Ready(Some(Ok(other))),
                },
                other => return Poll::Ready(other),
            }
        }
        let piece = this.rest.split_to(PIECE.min(this.rest.len()));
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let mut hint = self.inner.size_hint();
        let rest = self.rest.len() as u64;
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper + rest);
        }
        hint.set_lower(hint.lower() + rest);
        hint
    }
}

impl<W: Watch> Drop for Answer<W> {
    fn drop(&mut self) {
        self.watch.is_over();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Notes(Arc<Mutex<(usize, usize)>>);

    impl Watch for Notes {
        fn moves(&mut self) {
            self.0.lock().unwrap().0 += 1;
        }

        fn is_over(&mut self) {
            self.0.lock().unwrap().1 += 1;
        }
    }

    #[test]
    fn it_goes_in_pieces_its_length_stays_true_and_its_end_is_told() {
        let notes = Notes::default();
        let length = 2 * PIECE + 5;
        let mut answer = Answer::new(Body::from(vec![b'x'; length]), notes.clone());
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let mut left = length;
        while !answer.is_end_stream() {
            assert_eq!(answer.size_hint().exact(), Some(left as u64));
            let Poll::Ready(Some(Ok(frame))) = Pin::new(&mut answer).poll_frame(&mut cx) else {
                panic!("there is more");
            };
            let data = frame.into_data().unwrap();
            assert!(data.len() <= PIECE);
            left -= data.len();
        }
        assert_eq!(left, 0);
        assert_eq!(*notes.0.lock().unwrap(), (3, 0));
        drop(answer);
        assert_eq!(*notes.0.lock().unwrap(), (3, 1));
    }
}
