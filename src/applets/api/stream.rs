//! Answers that come piece by piece: server-sent events (`text/event-stream`) or one JSON object a line (`application/x-ndjson`).
//!
//! An event has a name and an object. As NDJSON the name is the member `event` of the object. While nothing happens a sign of life is sent, so
//! that proxies and clients can tell a long run from a dead connection.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use hyper::body::{Bytes, Frame};
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::time::{Instant, Sleep, sleep};

use crate::applets::api::call::Wanted;
use crate::core::client::budget::Held;

/// Longest silence.
const SIGN_OF_LIFE: Duration = Duration::from_secs(15);

/// Where events go in. A client that has gone away is not an error: the run goes on.
///
/// Not bounded by number: a run tells as many events as it has hosts, whose results it holds anyway.
#[derive(Clone, Debug)]
pub(super) struct Sender {
    queue: mpsc::UnboundedSender<(Bytes, Option<Held>)>,
    lines: bool,
}

impl Sender {
    pub(super) fn send(&self, event: &str, data: Value) {
        self.send_holding(event, data, None);
    }

    /// `held` is kept until the client has taken everything, or has gone.
    pub(super) fn send_holding(&self, event: &str, data: Value, held: Option<Held>) {
        let _ = self.queue.send((render(self.lines, event, data), held));
    }

    /// Nobody listens any more.
    pub(super) fn is_over(&self) -> bool {
        self.queue.is_closed()
    }
}

fn render(lines: bool, event: &str, mut data: Value) -> Bytes {
    let text = if lines {
        if let Value::Object(members) = &mut data {
            members.insert("event".to_owned(), event.into());
        }
        format!("{data}\n")
    } else {
        // JSON has no line breaks of its own.
        format!("event: {event}\ndata: {data}\n\n")
    };
    text.into()
}

/// The answer, and where its events go in. It ends when the sender is dropped.
pub(super) fn open(wanted: Wanted) -> (Sender, Response) {
    open_with(wanted, SIGN_OF_LIFE)
}

fn open_with(wanted: Wanted, longest_silence: Duration) -> (Sender, Response) {
    let lines = wanted == Wanted::Lines;
    let (queue, events) = mpsc::unbounded_channel();
    let body = Events {
        events,
        held: Vec::new(),
        lines,
        longest_silence,
        silence: Box::pin(sleep(longest_silence)),
        ready: VecDeque::new(),
    };
    let mut response = Response::new(Body::new(body));
    let kind = if lines {
        "application/x-ndjson"
    } else {
        "text/event-stream"
    };
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    (Sender { queue, lines }, response)
}

struct Events {
    events: mpsc::UnboundedReceiver<(Bytes, Option<Held>)>,
    held: Vec<Held>,
    lines: bool,
    longest_silence: Duration,
    silence: Pin<Box<Sleep>>,
    /// Pieces of a long event.
    ready: VecDeque<Bytes>,
}

/// Longest piece: what is handed to the connection at once.
const PIECE: usize = 64 * 1024;

impl Events {
    fn next_piece(&mut self) -> Option<Bytes> {
        self.ready.pop_front()
    }
}

impl hyper::body::Body for Events {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let this = &mut *self;
        if let Some(piece) = this.next_piece() {
            return Poll::Ready(Some(Ok(Frame::data(piece))));
        }
        let event = match this.events.poll_recv(cx) {
            Poll::Ready(None) => return Poll::Ready(None),
            Poll::Ready(Some((event, held))) => {
                this.held.extend(held);
                event
            }
            Poll::Pending => {
                if this.silence.as_mut().poll(cx).is_pending() {
                    return Poll::Pending;
                }
                Bytes::from_static(if this.lines {
                    b"{\"event\":\"alive\"}\n"
                } else {
                    b": alive\n\n"
                })
            }
        };
        let next = Instant::now() + this.longest_silence;
        this.silence.as_mut().reset(next);
        // A timer that was reset must be looked at once to wake us; the next poll does that, because a frame is returned now.
        let mut rest = event;
        while rest.len() > PIECE {
            this.ready.push_back(rest.split_to(PIECE));
        }
        this.ready.push_back(rest);
        let piece = this.next_piece().unwrap_or_default();
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt as _;
    use serde_json::json;

    async fn all(wanted: Wanted, events: &[(&str, Value)]) -> String {
        let (sender, response) = open(wanted);
        for (name, data) in events {
            sender.send(name, data.clone());
        }
        drop(sender);
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        String::from_utf8(bytes.to_vec()).unwrap()
    }

    #[tokio::test]
    async fn both_forms() {
        let events = [
            ("started", json!({"reqid": "ab"})),
            ("result", json!({"stdout": "a\nb"})),
        ];
        assert_eq!(
            all(Wanted::Events, &events).await,
            "event: started\ndata: {\"reqid\":\"ab\"}\n\nevent: result\ndata: {\"stdout\":\"a\\nb\"}\n\n"
        );
        let lines = all(Wanted::Lines, &events).await;
        let lines: Vec<Value> = lines
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert_eq!(lines[0], json!({"event": "started", "reqid": "ab"}));
        assert_eq!(lines[1], json!({"event": "result", "stdout": "a\nb"}));
    }

    #[tokio::test]
    async fn a_long_event_comes_whole_and_silence_is_filled() {
        let long = "x".repeat(3 * PIECE);
        let text = all(Wanted::Lines, &[("result", json!({"stdout": long}))]).await;
        assert!(text.contains(&long) && text.ends_with("}\n"));

        let (sender, response) = open_with(Wanted::Events, Duration::from_millis(20));
        let mut body = response.into_body();
        for _ in 0..3 {
            let frame = body.frame().await.unwrap().unwrap();
            assert_eq!(frame.into_data().unwrap(), ": alive\n\n");
        }
        drop(body);
        assert!(sender.is_over());
    }
}
