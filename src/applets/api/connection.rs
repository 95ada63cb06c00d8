//! One HTTP/1 connection: at rest it is a bare stream; with the first byte of a request HTTP is set up for it, and taken down again some
//! time after the answers are sent. So a thousand connections at rest cost next to nothing (spec/api.md 2, 16.3), and one whose requests
//! follow each other does not pay for it each time.

use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::response::Response;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONNECTION, HeaderValue, TRANSFER_ENCODING};
use hyper::service::Service;
use hyper::{Request, Version};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::time::{sleep, timeout};

use crate::applets::api::answer::{Answer, Watch};
use crate::applets::api::house::House;
use crate::applets::api::peer::Peer;
use crate::applets::api::places::{Admission, Seat, Turn};
use crate::applets::api::wire::Wire;
use crate::applets::api::{raw, reply};
use crate::core::serving::http1::{self, Answering, Http};
use crate::core::serving::patience::{Deadlines, Patient, Phase};
use crate::core::stream::unboxed;

/// How long HTTP stays set up when there is nothing to do for it: a client that asks again when it has its answer does so sooner, and of many
/// connections that have asked once few have it at the same time.
const PAUSE: Duration = Duration::from_millis(5);
/// How long a peer may go on sending what nobody reads, so that it sees our answer before its connection is reset.
const LINGER: Duration = Duration::from_secs(2);

/// Serves one peer until either side has had enough.
pub(super) async fn serve(house: House, mut wire: Wire, peer: Peer, seat: Seat) {
    let _open = house.api.metrics.connection();
    let deadlines = Deadlines::default();
    let seat = Arc::new(seat);
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
        let exchange = Exchange {
            house: house.clone(),
            peer: peer.clone(),
            seat: seat.clone(),
            turn: Mutex::default(),
            overloaded: AtomicBool::new(false),
            crowded: AtomicBool::new(false),
            phase: Phase::new(),
        };
        if !exchange.begins() {
            return;
        }
        match Box::pin(exchange.run(wire, begun, deadlines)).await {
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

/// How a series of requests without a long pause between them ended.
enum End {
    /// All answered; the bytes are the beginning of the next request.
    AtRest(Wire, Bytes),
    /// The last answer is sent, or the status is still to be told.
    Over(Wire, Option<u16>),
    /// Others needed the place.
    Dismissed,
}

/// A series of requests without a long pause between them. In a pause it has a seat and no turn.
struct Exchange {
    house: House,
    peer: Peer,
    seat: Arc<Seat>,
    turn: Mutex<Option<Turn>>,
    /// This request is to be told that there are too many.
    overloaded: AtomicBool,
    /// There is no place even for telling it.
    crowded: AtomicBool,
    phase: Phase,
}

impl Exchange {
    fn turn(&self) -> MutexGuard<'_, Option<Turn>> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A request begins to arrive. False: there is no place even for telling that there is none.
    fn begins(&self) -> bool {
        let (turn, overloaded) = match self.house.places.begin(Some(&self.seat), Instant::now()) {
            Admission::Welcome(turn) => (turn, false),
            Admission::Overloaded { turn, live } => {
                self.house.say_overloaded(live, &self.peer);
                (turn, true)
            }
            Admission::Crowded { live } => {
                self.house.say_overloaded(live, &self.peer);
                self.crowded.store(true, Ordering::Relaxed);
                return false;
            }
        };
        self.seat.wake();
        self.overloaded.store(overloaded, Ordering::Relaxed);
        *self.turn() = Some(turn);
        true
    }

    /// All is answered, and nothing has come yet: the place is for others.
    fn pauses(&self) {
        *self.turn() = None;
        self.seat.rest();
    }

    async fn run(self, wire: Wire, begun: Bytes, deadlines: Deadlines) -> End {
        let exchange = Arc::new(self);
        let phase = exchange.phase.clone();
        let seat = exchange.seat.clone();
        let mut stop = exchange.house.stop.clone();
        let refused = Arc::new(AtomicU16::new(0));
        let watched = Watched {
            wire,
            begun,
            exchange: exchange.clone(),
            refused: refused.clone(),
            waiting: None,
        };
        let stream = Patient::new(watched, phase.clone(), deadlines);
        let handler = Handler(exchange.clone());
        let mut connection = http1::speak(Box::new(stream), Box::new(handler));
        let (mut stopping, mut ending) = (false, false);
        let at_rest = loop {
            let progress = std::future::poll_fn(|cx| poll_to_pause(&mut connection, &phase, cx));
            tokio::select! {
                // A request that has lost its place must not begin all the same.
                biased;
                () = seat.told_to_leave() => return End::Dismissed,
                () = House::told_to_stop(&mut stop), if !stopping => stopping = true,
                is_over = progress => match is_over {
                    true => break false,
                    false => {
                        exchange.pauses();
                        let more = std::future::poll_fn(|cx| poll_for_more(&mut connection, &phase, cx));
                        tokio::select! {
                            biased;
                            () = seat.told_to_leave() => return End::Dismissed,
                            () = House::told_to_stop(&mut stop), if !stopping => stopping = true,
                            is_over = more => match is_over {
                                true => break false,
                                false => continue,
                            },
                            () = sleep(PAUSE), if !ending => {}
                        }
                    }
                }
            }
            // An answer may be sent while bytes of its request's body are still to come: those must never be taken for the next request. So
            // HTTP itself is asked: told to end, it ends at once only if it waits for the head of a request.
            ending = true;
            Pin::new(&mut connection).graceful_shutdown();
            let at_once = std::future::poll_fn(|cx| Poll::Ready(poll_over(&mut connection, cx)));
            if at_once.await {
                break phase.is_idle();
            }
        };
        if exchange.crowded.load(Ordering::Relaxed) {
            return End::Dismissed;
        }
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

    async fn answer(&self, request: Box<Request<Incoming>>) -> Response {
        // Where the length of a body is told in two ways, two readers may find two different next requests: there is none after it.
        let ambiguous = request.version() == Version::HTTP_10
            || request.headers().contains_key(TRANSFER_ENCODING);
        let (mut response, last) = match self.overloaded.load(Ordering::Relaxed) {
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
        if let Some(turn) = &*self.0.turn() {
            turn.is_busy();
        }
        let (exchange, request) = (self.0.clone(), Box::new(request));
        Box::pin(async move { Ok(exchange.answer(request).await) })
    }
}

fn poll_over(connection: &mut Http, cx: &mut Context<'_>) -> bool {
    connection.poll_without_shutdown(cx).is_ready()
}

/// Goes on until it is over (true) or every request is answered and nothing more has come (false).
fn poll_to_pause(connection: &mut Http, phase: &Phase, cx: &mut Context<'_>) -> Poll<bool> {
    // Twice: a body that nobody wants any more is noticed, and given up, the second time.
    for _ in 0..2 {
        if poll_over(connection, cx) {
            return Poll::Ready(true);
        }
        if !phase.is_idle() {
            return Poll::Pending;
        }
    }
    Poll::Ready(false)
}

/// Waits until it is over (true) or something has come (false).
fn poll_for_more(connection: &mut Http, phase: &Phase, cx: &mut Context<'_>) -> Poll<bool> {
    match poll_over(connection, cx) {
        true => Poll::Ready(true),
        false if phase.is_idle() => Poll::Pending,
        false => Poll::Ready(false),
    }
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
    exchange: Arc<Exchange>,
    refused: Arc<AtomicU16>,
    /// Since when the body of a request has been waited for.
    waiting: Option<Instant>,
}

impl Watched {
    /// HTTP reads while a request is worked on only if its handler wants more of the body.
    fn mind_body(&mut self, has_come: bool) {
        let exchange = &self.exchange;
        if exchange.phase.is_in_headers() || exchange.phase.is_idle() {
            self.waiting = None;
            return;
        }
        let turn = exchange.turn();
        let Some(turn) = &*turn else { return };
        if has_come {
            turn.is_busy();
        } else {
            let since = *self.waiting.get_or_insert_with(Instant::now);
            turn.waits_for_body(since);
        }
    }

    /// The status of an answer that no handler has given.
    fn refusal(&self, bytes: &[u8]) -> Option<u16> {
        let phase = &self.exchange.phase;
        if !(phase.is_in_headers() || phase.is_idle()) {
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
            let before = buffer.filled().len();
            let read = Pin::new(&mut self.wire).poll_read(cx, buffer);
            // The end of the connection is no request.
            let has_begun = self.exchange.phase.is_idle() && buffer.filled().len() > before;
            if has_begun && !self.exchange.begins() {
                return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
            }
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
