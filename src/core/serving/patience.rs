//! Deadlines on the bytes of one connection. hyper has one timer for headers that also runs while a connection is idle; here the
//! two are apart, and a peer that takes no bytes is given up as well.

use std::future::Future as _;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

/// Longest time between the first byte of a request and the end of its headers; also for the first byte of a connection.
pub const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest silence between two requests of one connection.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// Longest time without progress while we send.
pub const SEND_TIMEOUT: Duration = Duration::from_secs(60);

/// The three waits.
#[derive(Clone, Copy, Debug)]
pub struct Deadlines {
    pub header: Duration,
    pub idle: Duration,
    pub send: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self {
            header: HEADER_TIMEOUT,
            idle: IDLE_TIMEOUT,
            send: SEND_TIMEOUT,
        }
    }
}

/// Where a connection is between two requests. Shared with the service, which alone sees requests begin and answers appear.
#[derive(Clone, Debug)]
pub struct Phase(Arc<AtomicU8>);

const IDLE: u8 = 0;
const HEADERS: u8 = 1;
const HANDLING: u8 = 2;
const ANSWERING: u8 = 3;

impl Phase {
    /// A connection whose first byte has arrived.
    #[allow(
        clippy::new_without_default,
        reason = "a default would not say which phase"
    )]
    pub fn new() -> Self {
        Self(Arc::new(AtomicU8::new(HEADERS)))
    }

    /// The headers are complete; the handler has its own deadlines.
    pub fn request_begins(&self) {
        self.set(HANDLING);
    }

    /// The answer is ready; once it is sent the connection is idle.
    pub fn answer_is_ready(&self) {
        self.set(ANSWERING);
    }

    /// Whether the last answer is sent and nothing of another request has come.
    pub fn is_idle(&self) -> bool {
        self.get() == IDLE
    }

    /// Whether a request has begun to arrive and its headers are not complete.
    pub fn is_in_headers(&self) -> bool {
        self.get() == HEADERS
    }

    fn get(&self) -> u8 {
        self.0.load(Ordering::Relaxed)
    }

    fn set(&self, phase: u8) {
        self.0.store(phase, Ordering::Relaxed);
    }
}

/// A stream that fails with `TimedOut` instead of waiting for ever.
#[derive(Debug)]
pub struct Patient<S> {
    inner: S,
    phase: Phase,
    deadlines: Deadlines,
    receiving: Pin<Box<Sleep>>,
    sending: Option<Pin<Box<Sleep>>>,
}

impl<S> Patient<S> {
    pub fn new(inner: S, phase: Phase, deadlines: Deadlines) -> Self {
        Self {
            inner,
            phase,
            deadlines,
            receiving: Box::pin(sleep(deadlines.header)),
            sending: None,
        }
    }

    /// The stream, without its deadlines.
    pub fn into_inner(self) -> S {
        self.inner
    }

    fn rest(&mut self) {
        self.phase.set(IDLE);
        self.receiving
            .as_mut()
            .reset(Instant::now() + self.deadlines.idle);
    }

    fn sent<T>(
        &mut self,
        cx: &mut Context<'_>,
        result: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if result.is_ready() {
            self.sending = None;
            return result;
        }
        let patience = self.deadlines.send;
        let timer = self
            .sending
            .get_or_insert_with(|| Box::pin(sleep(patience)));
        ready!(timer.as_mut().poll(cx));
        Poll::Ready(Err(late("the peer takes no bytes")))
    }
}

fn late(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, what)
}

impl<S: AsyncRead + Unpin> AsyncRead for Patient<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let phase = this.phase.get();
        match Pin::new(&mut this.inner).poll_read(cx, buf) {
            Poll::Ready(done) => {
                if phase == IDLE {
                    this.phase.set(HEADERS);
                    let deadline = Instant::now() + this.deadlines.header;
                    this.receiving.as_mut().reset(deadline);
                }
                Poll::Ready(done)
            }
            Poll::Pending if phase == IDLE || phase == HEADERS => {
                ready!(this.receiving.as_mut().poll(cx));
                Poll::Ready(Err(late("the peer sends no request")))
            }
            Poll::Pending => Poll::Pending,
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Patient<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.inner).poll_write(cx, bytes);
        self.sent(cx, result)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.inner).poll_flush(cx);
        let result = ready!(self.sent(cx, result));
        if self.phase.get() == ANSWERING {
            self.rest();
        }
        Poll::Ready(result)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.inner).poll_shutdown(cx);
        self.sent(cx, result)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    const SHORT: Deadlines = Deadlines {
        header: Duration::from_secs(1),
        idle: Duration::from_secs(6),
        send: Duration::from_secs(3),
    };

    fn block(test: impl Future<Output = ()>) {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
            .block_on(test);
    }

    #[test]
    fn headers_must_be_complete_in_time_but_a_handler_may_take_longer() {
        block(async {
            let (mut peer, ours) = duplex(64);
            let phase = Phase::new();
            let mut short = SHORT;
            short.header = Duration::from_millis(50);
            let mut ours = Patient::new(ours, phase.clone(), short);
            peer.write_all(b"POST /run").await.unwrap();
            let mut buffer = [0; 64];
            assert_eq!(ours.read(&mut buffer).await.unwrap(), 9);
            let error = ours.read(&mut buffer).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::TimedOut);

            phase.request_begins();
            let waiting = tokio::time::timeout(Duration::from_millis(150), ours.read(&mut buffer));
            assert!(waiting.await.is_err(), "a handler was cut short");
        });
    }

    #[test]
    fn after_an_answer_the_idle_deadline_counts_and_a_first_byte_starts_the_header_deadline() {
        block(async {
            let (mut peer, ours) = duplex(64);
            let phase = Phase::new();
            let deadlines = Deadlines {
                header: Duration::from_millis(50),
                idle: Duration::from_millis(300),
                send: Duration::from_secs(3),
            };
            let mut ours = Patient::new(ours, phase.clone(), deadlines);
            phase.request_begins();
            phase.answer_is_ready();
            ours.write_all(b"200").await.unwrap();
            ours.flush().await.unwrap();
            let mut buffer = [0; 64];
            let waiting = tokio::time::timeout(Duration::from_millis(150), ours.read(&mut buffer));
            assert!(waiting.await.is_err(), "idle ended at the header deadline");
            peer.write_all(b"G").await.unwrap();
            assert_eq!(ours.read(&mut buffer).await.unwrap(), 1);
            assert!(ours.read(&mut buffer).await.is_err());
        });
    }

    #[test]
    fn a_peer_that_takes_no_bytes_is_given_up() {
        block(async {
            let (_peer, ours) = duplex(16);
            let mut deadlines = SHORT;
            deadlines.send = Duration::from_millis(50);
            let mut ours = Patient::new(ours, Phase::new(), deadlines);
            let error = ours.write_all(&[0; 64]).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        });
    }
}
