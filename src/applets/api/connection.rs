//! One HTTP/1 connection: at rest it is a bare stream; with the first byte of a request HTTP is set up for it, and taken down again when
//! the answers are sent. So a thousand connections at rest cost next to nothing (spec/api.md 2, 16.3).

use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::response::Response;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONNECTION, HeaderValue, TRANSFER_ENCODING};
use hyper::service::Service;
use hyper::{Request, Version};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::time::timeout;

use crate::applets::api::answer::{Answer, Watch};
use crate::applets::api::house::House;
use crate::applets::api::peer::Peer;
use crate::applets::api::places::{Admission, Seat, Turn};
use crate::applets::api::wire::Wire;
use crate::applets::api::{raw, reply};
use crate::core::serving::http1::{self, Answering, Http};
use crate::core::serving::patience::{Deadlines, Patient, Phase};
use crate::core::stream::unboxed;

/// How long a peer may go on sending what nobody reads, so that it sees our answer before its connection is reset.
const LINGER: Duration = Duration::from_secs(2);

/// Serves one peer until either side has had enough.
pub(super) async fn serve(house: House, mut wire: Wire, peer: Peer, seat: Seat) {
    let _open = house.api.metrics.connection();
    let deadlines = Deadlines::default();
    let mut first = true;
    let mut begun = Bytes::new();
    loop {
        if begun.is_empty() {
            let patience = if first {
                deadlines.header
            } else {
                deadlines.idle
            };
            let Some(bytes) = first_bytes(&house, &mut wire, &seat, patience).await else {
                return;
            };
            if bytes.is_empty() {
                if first {
                    farewell(&mut wire, &raw::empty_request()).await;
                }
                return;
            }
            begun = bytes;
        }
        let (turn, overloaded) = match house.places.begin(Some(&seat), Instant::now()) {
            Admission::Welcome(turn) => (turn, false),
            Admission::Overloaded { turn, live } => {
                house.say_overloaded(live, &peer);
                (turn, true)
            }
            Admission::Crowded { live } => return house.say_overloaded(live, &peer),
        };
        let exchange = Exchange {
            house: house.clone(),
            peer: peer.clone(),
            turn: Arc::new(turn),
            overloaded,
            phase: Phase::new(),
        };
        match Box::pin(exchange.run(wire, begun, &seat, deadlines)).await {
            End::AtRest(same, rest) => (wire, begun) = (same, rest),
            End::Over(mut same, refusal) => {
                seat.rest();
                let last = async {
                    if let Some(status) = refusal {
                        same.write_all(&raw::refusal(status)).await?;
                    }
                    same.shutdown().await
                };
                if matches!(timeout(deadlines.send, last).await, Ok(Ok(()))) {
                    linger(&house, same, &seat).await;
                }
                return;
            }
            End::Dismissed => return,
        }
        first = false;
    }
}

/// The next bytes of a connection at rest; `None`: it is over.
async fn first_bytes(
    house: &House,
    wire: &mut Wire,
    seat: &Seat,
    patience: Duration,
) -> Option<Bytes> {
    seat.rest();
    let mut stop = house.stop.clone();
    let bytes = tokio::select! {
        bytes = timeout(patience, wire.first_bytes()) => bytes.ok()?.ok(),
        () = seat.told_to_leave() => None,
        () = House::told_to_stop(&mut stop) => None,
    };
    seat.wake();
    bytes
}

async fn farewell(wire: &mut Wire, bytes: &[u8]) {
    let last = async {
        wire.write_all(bytes).await?;
        wire.shutdown().await
    };
    let _ = timeout(LINGER, last).await;
}

/// A connection that is closed while unread bytes lie in it is reset, and the answer may be lost with it.
async fn linger(house: &House, mut wire: Wire, seat: &Seat) {
    let mut stop = house.stop.clone();
    tokio::select! {
        _ = timeout(LINGER, wire.drain()) => {}
        () = seat.told_to_leave() => {}
        () = House::told_to_stop(&mut stop) => {}
    }
}

/// How a series of requests without a pause between them ended.
enum End {
    /// All answered; the bytes are the beginning of the next request.
    AtRest(Wire, Bytes),
    /// The last answer is sent, or the status is still to be told.
    Over(Wire, Option<u16>),
    /// Others needed the place.
    Dismissed,
}

struct Exchange {
    house: House,
    peer: Peer,
    turn: Arc<Turn>,
    overloaded: bool,
    phase: Phase,
}

impl Exchange {
    async fn run(self, wire: Wire, begun: Bytes, seat: &Seat, deadlines: Deadlines) -> End {
        let phase = self.phase.clone();
        let mut stop = self.house.stop.clone();
        let refused = Arc::new(AtomicU16::new(0));
        let watched = Watched {
            wire,
            begun,
            phase: phase.clone(),
            refused: refused.clone(),
            turn: self.turn.clone(),
            waiting: None,
        };
        let handler = Handler(Arc::new(self));
        let stream = Patient::new(watched, phase.clone(), deadlines);
        let mut connection = http1::speak(Box::new(stream), Box::new(handler));
        let mut stopping = false;
        let at_rest = loop {
            let progress = std::future::poll_fn(|cx| poll_to_rest(&mut connection, &phase, cx));
            tokio::select! {
                // A request that has lost its place must not begin all the same.
                biased;
                () = seat.told_to_leave() => return End::Dismissed,
                () = House::told_to_stop(&mut stop), if !stopping => stopping = true,
                at_rest = progress => break at_rest,
            }
            Pin::new(&mut connection).graceful_shutdown();
        };
        let parts = connection.into_parts();
        let Some(stream) = unboxed::<Patient<Watched>>(parts.io.into_inner()) else {
            return End::Dismissed;
        };
        let wire = stream.into_inner().wire;
        match (at_rest, refused.load(Ordering::Relaxed)) {
            (true, _) if !stopping => End::AtRest(wire, parts.read_buf),
            (_, 0) => End::Over(wire, None),
            (_, status) => End::Over(wire, Some(status)),
        }
    }

    async fn answer(&self, request: Request<Incoming>) -> Response {
        // Where the length of a body is told in two ways, two readers may find two different next requests: there is none after it.
        let ambiguous = request.version() == Version::HTTP_10
            || request.headers().contains_key(TRANSFER_ENCODING);
        let (mut response, last) = match self.overloaded {
            true => (reply::overloaded(), true),
            false => self.house.answer(self.peer.clone(), request).await,
        };
        if last || ambiguous {
            response
                .headers_mut()
                .insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response.map(|body| Body::new(Answer::new(body, self.phase.clone())))
    }
}

/// The requests of one exchange, as HTTP finds them.
struct Handler(Arc<Exchange>);

impl Service<Request<Incoming>> for Handler {
    type Response = Response;
    type Error = Infallible;
    type Future = Answering;

    fn call(&self, request: Request<Incoming>) -> Answering {
        self.0.phase.request_begins();
        self.0.turn.is_busy();
        let exchange = self.0.clone();
        Box::pin(async move { Ok(exchange.answer(request).await) })
    }
}

/// Whether it has come to rest with every request answered and every body read (true) or is over (false).
///
/// An answer may be sent while bytes of its request's body are still to come: those must never be taken for the next request. So HTTP
/// itself is asked: told to end, it ends at once only if it waits for the head of a request.
fn poll_to_rest(connection: &mut Http, phase: &Phase, cx: &mut Context<'_>) -> Poll<bool> {
    // Twice: a body that nobody wants any more is noticed, and given up, the second time.
    for _ in 0..2 {
        if connection.poll_without_shutdown(cx).is_ready() {
            return Poll::Ready(false);
        }
        if !phase.is_idle() {
            return Poll::Pending;
        }
    }
    Pin::new(&mut *connection).graceful_shutdown();
    connection.poll_without_shutdown(cx).map(|_| true)
}

impl Watch for Phase {
    // The bytes themselves have a deadline here.
    fn moves(&mut self) {}

    fn is_over(&mut self) {
        self.answer_is_ready();
    }
}

/// The stream below HTTP. First come the bytes that were there before HTTP was; and what HTTP answers by itself to what it cannot read
/// is held back, because it has no body: we answer instead.
struct Watched {
    wire: Wire,
    begun: Bytes,
    phase: Phase,
    refused: Arc<AtomicU16>,
    turn: Arc<Turn>,
    /// Since when the body of a request has been waited for.
    waiting: Option<Instant>,
}

impl Watched {
    /// HTTP reads while a request is worked on only if its handler wants more of the body.
    fn mind_body(&mut self, has_come: bool) {
        if self.phase.is_in_headers() || self.phase.is_idle() {
            self.waiting = None;
        } else if has_come {
            self.turn.is_busy();
        } else {
            let since = *self.waiting.get_or_insert_with(Instant::now);
            self.turn.waits_for_body(since);
        }
    }

    /// The status of an answer that no handler has given.
    fn refusal(&self, bytes: &[u8]) -> Option<u16> {
        if !(self.phase.is_in_headers() || self.phase.is_idle()) {
            return None;
        }
        let status = bytes.strip_prefix(b"HTTP/1.")?.get(2..5)?;
        std::str::from_utf8(status).ok()?.parse().ok()
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.begun.is_empty() {
            let read = Pin::new(&mut self.wire).poll_read(cx, buffer);
            self.mind_body(read.is_ready());
            return read;
        }
        let piece = self.begun.len().min(buffer.remaining());
        buffer.put_slice(&self.begun.split_to(piece));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if let Some(status) = self.refusal(bytes) {
            self.refused.store(status, Ordering::Relaxed);
            return Poll::Ready(Ok(bytes.len()));
        }
        Pin::new(&mut self.wire).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.wire).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.wire).poll_shutdown(cx)
    }
}
