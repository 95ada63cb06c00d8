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
