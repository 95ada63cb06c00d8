//! Bodies of requests: read within limits of size and time, or swallowed when nobody wants them.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper::body::{Body as _, Bytes, Frame, Incoming, SizeHint};
use tokio::time::timeout;

/// Why there is no body.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum BodyError {
    TooLarge,
    /// The peer has stopped in the middle, or its framing makes no sense.
    Incomplete,
    /// It did not come in time.
    Late,
}

/// The whole body of a request.
///
/// # Errors
/// See [`BodyError`].
pub async fn read(body: Incoming, limit: u64, patience: Duration) -> Result<Bytes, BodyError> {
    if body.is_end_stream() {
        return Ok(Bytes::new());
    }
    let most = usize::try_from(limit).unwrap_or(usize::MAX);
    let body = Limited::new(Polite::new(body, 4 * limit), most);
    match timeout(patience, body.collect()).await {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(BodyError::TooLarge),
        Ok(Err(_)) => Err(BodyError::Incomplete),
        Err(_) => Err(BodyError::Late),
    }
}

/// A body that is read to its end, within reason, although nobody wants it: closing a connection on unread bytes makes the kernel
/// send a reset, which can destroy the refusal before the peer has read it.
#[derive(Debug)]
pub struct Polite {
    body: Option<Incoming>,
    /// Bytes that are taken when it is dropped.
    unwanted: u64,
}

/// How long an unwanted body is read.
const UNWANTED_TIME: Duration = Duration::from_secs(5);

impl Polite {
    /// `unwanted`: bytes that are taken of it at most when it is dropped before its end.
    pub fn new(body: Incoming, unwanted: u64) -> Self {
        Self {
            body: Some(body),
            unwanted,
        }
    }
}

impl hyper::body::Body for Polite {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match &mut self.body {
            Some(body) => Pin::new(body).poll_frame(cx),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body
            .as_ref()
            .is_none_or(hyper::body::Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body
            .as_ref()
            .map_or_else(SizeHint::default, hyper::body::Body::size_hint)
    }
}

impl Drop for Polite {
    fn drop(&mut self) {
        let Some(body) = self.body.take().filter(|body| !body.is_end_stream()) else {
            return;
        };
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(timeout(UNWANTED_TIME, swallow(body, self.unwanted)));
        }
    }
}

async fn swallow(mut body: Incoming, most: u64) {
    let mut taken = 0;
    while let Some(Ok(frame)) = body.frame().await {
        taken += frame.data_ref().map_or(0, |data| data.len() as u64);
        if taken > most {
            return;
        }
    }
}
