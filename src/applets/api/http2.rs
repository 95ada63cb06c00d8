//! One HTTP/2 connection. Streams are requests and count as such; the connection is at rest when it has none.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::response::Response;
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper::{Request, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::sync::Notify;
use tokio::time::sleep;

use crate::applets::api::answer::{Answer, Watch};
use crate::applets::api::house::House;
use crate::applets::api::peer::Peer;
use crate::applets::api::places::{Admission, Seat, Turn};
use crate::applets::api::reply;
use crate::applets::api::wire::Wire;
use crate::core::serving::patience::{Deadlines, Patient, Phase};
use crate::core::task;

/// Requests of one connection at the same time.
const MAX_STREAMS: u32 = 64;
/// Headers of one request, in bytes.
const MAX_HEAD: u32 = 64 * 1024;
/// Bytes of one body that may be on their way.
const STREAM_WINDOW: u32 = 64 * 1024;
/// Bytes of all bodies of a connection that may be on their way.
const CONNECTION_WINDOW: u32 = 128 * 1024;
/// Bytes of one answer that are kept for a peer that is slow.
const SEND_BUFFER: usize = 64 * 1024;
/// Streams that a peer opens and resets before we saw them, and those that we had to reset; then the connection ends.
const MAX_RESETS: usize = 20;
/// A peer that is alive answers to a ping.
const PING_INTERVAL: Duration = Duration::from_secs(20);
const PING_TIMEOUT: Duration = Duration::from_secs(10);
/// How often the deadlines are looked at.
const TICK: Duration = Duration::from_secs(1);
/// A peer that has nothing under way gets this long to take leave.
const LEAVE: Duration = Duration::from_secs(1);

/// Serves one peer until either side has had enough.
pub(super) async fn serve(house: House, wire: Wire, peer: Peer, seat: Seat) {
    let _open = house.api.metrics.connection();
    let deadlines = Deadlines::default();
    let streams = Arc::new(Streams::new());
    let phase = Phase::new();
    // The headers of each request are the protocol's affair; what counts here is that the peer takes our bytes.
    phase.request_begins();
    let io = TokioIo::new(Patient::new(wire, phase, deadlines));
    let service = {
        let (house, streams) = (house.clone(), streams.clone());
        service_fn(move |request| {
            let stream = streams.open();
            let (house, peer) = (house.clone(), peer.clone());
            async move { Ok::<_, Infallible>(answer(house, peer, request, stream).await) }
        })
    };
    let mut connection = Box::pin(
        http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .auto_date_header(false)
            .max_concurrent_streams(MAX_STREAMS)
            .max_header_list_size(MAX_HEAD)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_send_buf_size(SEND_BUFFER)
            .max_pending_accept_reset_streams(MAX_RESETS)
            .max_local_error_reset_streams(MAX_RESETS)
            .keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_TIMEOUT)
            .serve_connection(io, service),
    );
    let mut stop = house.stop.clone();
    let mut leaving: Option<Instant> = None;
    seat.rest();
    loop {
        tokio::select! {
            _ = connection.as_mut() => return,
            () = seat.told_to_leave() => return,
            () = House::told_to_stop(&mut stop), if leaving.is_none() => {
                leaving = Some(Instant::now());
                connection.as_mut().graceful_shutdown();
            }
            () = streams.changed.notified() => match streams.is_quiet() {
                true => seat.rest(),
                false => seat.wake(),
            },
            () = sleep(TICK) => {
                let now = Instant::now();
                match streams.judge(now, deadlines) {
                    Verdict::Stuck => return,
                    Verdict::Quiet if leaving.is_some_and(|at| now - at > LEAVE) => return,
                    Verdict::Tired if leaving.is_none() => {
                        leaving = Some(now);
                        connection.as_mut().graceful_shutdown();
                    }
                    _ => {}
                }
            }
        }
    }
}

async fn answer(
    house: House,
    peer: Peer,
    request: Request<Incoming>,
    stream: Stream,
) -> hyper::Response<Answer<Stream>> {
    let response = match house.places.begin(None, Instant::now()) {
        Admission::Welcome(turn) => {
            // A peer that resets its stream does not get its place back before the work is done.
            task::spawn(work(house, peer, request, turn))
                .await
                .unwrap_or_else(|_| {
                    reply::error(StatusCode::INTERNAL_SERVER_ERROR, "server error", "")
                })
        }
        Admission::Overloaded { live, .. } | Admission::Crowded { live } => {
            house.say_overloaded(live, &peer);
            reply::overloaded()
        }
    };
    response.map(|body| Answer::new(body, stream))
}

async fn work(house: House, peer: Peer, request: Request<Incoming>, _turn: Turn) -> Response {
    house.answer(peer, Box::new(request)).await.0
}

/// The streams of one connection.
#[derive(Debug)]
struct Streams {
    table: Mutex<Table>,
    changed: Notify,
}

#[derive(Debug)]
struct Table {
    next: u64,
    /// When the peer last took a piece of the answer; `None` while there is no answer.
    open: HashMap<u64, Option<Instant>>,
    quiet_since: Instant,
    served: bool,
}

#[derive(Debug, Eq, PartialEq)]
enum Verdict {
    Busy,
    Quiet,
    /// Nothing for so long that the peer may go.
    Tired,
    /// There is an answer that the peer does not take.
    Stuck,
}

/// One stream, from the end of its headers to the end of its answer.
#[derive(Debug)]
struct Stream {
    streams: Arc<Streams>,
    id: u64,
}

impl Streams {
    fn new() -> Self {
        Self {
            table: Mutex::new(Table {
                next: 0,
                open: HashMap::new(),
                quiet_since: Instant::now(),
                served: false,
            }),
            changed: Notify::new(),
        }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open(self: &Arc<Self>) -> Stream {
        let mut table = self.table();
        table.next += 1;
        let id = table.next;
        table.open.insert(id, None);
        table.served = true;
        self.changed.notify_one();
        Stream {
            streams: self.clone(),
            id,
        }
    }

    fn is_quiet(&self) -> bool {
        self.table().open.is_empty()
    }

    fn judge(&self, now: Instant, deadlines: Deadlines) -> Verdict {
        let table = self.table();
        if table.open.is_empty() {
            let patience = match table.served {
                true => deadlines.idle,
                false => deadlines.header,
            };
            return match now.saturating_duration_since(table.quiet_since) > patience {
                true => Verdict::Tired,
                false => Verdict::Quiet,
            };
        }
        let stuck = |moved: &Instant| now.saturating_duration_since(*moved) > deadlines.send;
        match table.open.values().flatten().any(stuck) {
            true => Verdict::Stuck,
            false => Verdict::Busy,
        }
    }
}

impl Watch for Stream {
    fn moves(&mut self) {
        self.streams
            .table()
            .open
            .insert(self.id, Some(Instant::now()));
    }

    fn is_over(&mut self) {}
}

impl Drop for Stream {
    fn drop(&mut self) {
        let mut table = self.streams.table();
        table.open.remove(&self.id);
        if table.open.is_empty() {
            table.quiet_since = Instant::now();
        }
        self.streams.changed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quiet_connection_tires_and_one_whose_answers_nobody_takes_is_stuck() {
        let deadlines = Deadlines::default();
        let streams = Arc::new(Streams::new());
        let start = Instant::now();
        let second = Duration::from_secs(1);
        assert_eq!(streams.judge(start, deadlines), Verdict::Quiet);
        assert_eq!(
            streams.judge(start + deadlines.header + second, deadlines),
            Verdict::Tired
        );

        let mut one = streams.open();
        let two = streams.open();
        // A handler may take its time.
        let late = start + 1000 * second;
        assert_eq!(streams.judge(late, deadlines), Verdict::Busy);
        one.moves();
        let now = Instant::now();
        assert_eq!(
            streams.judge(now + deadlines.send - second, deadlines),
            Verdict::Busy
        );
        assert_eq!(
            streams.judge(now + deadlines.send + second, deadlines),
            Verdict::Stuck
        );
        drop((one, two));
        assert!(streams.is_quiet());
        let now = Instant::now();
        assert_eq!(
            streams.judge(now + deadlines.header + second, deadlines),
            Verdict::Quiet
        );
        assert_eq!(
            streams.judge(now + deadlines.idle + second, deadlines),
            Verdict::Tired
        );
    }
}
