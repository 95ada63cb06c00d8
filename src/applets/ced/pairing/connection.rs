//! One connection of an agent: does what the machine of [`crate::core::pairing::dispatcher`] asks for, and tells it what happened.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until, timeout};

use crate::core::clock::Clock;
use crate::core::hostname;
use crate::core::logging::Action;
use crate::core::pairing::code::{CodeKind, Nonce};
use crate::core::pairing::dispatcher::{
    DispatcherEffect, DispatcherEvent, DispatcherState, NewRequest, Setup,
};
use crate::core::pairing::framing::{self, Direction, FrameError, Framing, Message};
use crate::core::pairing::ids::{Outcome, PairingId, SessionId};
use crate::core::pairing::message::{ReceivedRequest, RequestRefusal};
use crate::core::pairing::queue::{Limits, Queue, QueueError, StoredVerdict, Withdrawal};
use crate::core::pairing::record::{Record, ReverseName};
use crate::core::pairing::{MAX_UNREVEALED, REVERSE_DNS_TIMEOUT, STEP_TIMEOUT};
use crate::core::pki::CertRequest;

/// How often the queue is asked whether somebody has decided.
const POLL: Duration = Duration::from_millis(250);
/// How long an agent may take to hang up after the last message; it needs the time to read it.
const LINGER: Duration = Duration::from_secs(2);

/// What the operator is told while a session runs.
#[derive(Debug)]
pub(super) enum News {
    Queued(Box<Record>),
    Over {
        name: String,
        id: PairingId,
        outcome: Outcome,
    },
}

/// What all connections of a session share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) queue: Queue,
    pub(super) limits: Limits,
    pub(super) session: SessionId,
    pub(super) clock: Clock,
    /// Becomes true when the session ends.
    pub(super) ended: watch::Receiver<bool>,
    pub(super) news: mpsc::UnboundedSender<News>,
    /// Nonces of ours that agents took without revealing theirs.
    pub(super) unrevealed: AtomicUsize,
}

/// Serves one agent to the end. Every wait in here has a deadline.
pub(super) async fn serve<S>(stream: S, source: IpAddr, setup: Setup, shared: Arc<Shared>)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut connection = Connection {
        stream,
        framing: Framing::new(Direction::Requests),
        source,
        shared,
        agent: None,
    };
    connection.run(&setup).await;
}

struct Connection<S> {
    stream: S,
    framing: Framing,
    source: IpAddr,
    shared: Arc<Shared>,
    /// Name and id, once queued; for the log.
    agent: Option<(String, PairingId)>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    async fn run(&mut self, setup: &Setup) {
        let mut state = DispatcherState::AwaitingRequest;
        let mut deadline = Instant::now();
        let mut last = None;
        let mut answers: VecDeque<DispatcherEvent> = VecDeque::new();
        loop {
            let kind = std::mem::discriminant(&state);
            if last != Some(kind) {
                last = Some(kind);
                deadline = Instant::now() + state.deadline().unwrap_or(STEP_TIMEOUT);
            }
            let event = match answers.pop_front() {
                Some(event) => event,
                None => self.wait(&state, deadline).await,
            };
            self.note(&state, &event);
            let (next, effects) = state.next(setup, event);
            state = next;
            for effect in effects {
                match self.perform(effect).await {
                    Performed::Answered(event) => answers.push_back(event),
                    Performed::Done => {}
                    Performed::Closed => return,
                }
            }
        }
    }

    /// The next thing that happens outside.
    async fn wait(&mut self, state: &DispatcherState, deadline: Instant) -> DispatcherEvent {
        let waiting_for = match state {
            DispatcherState::AwaitingVerdict { id, .. } => Some(id.clone()),
            _ => None,
        };
        let mut ended = self.shared.ended.clone();
        let mut buffer = [0; 4096];
        loop {
            match self.framing.next_message() {
                Ok(Some(message)) => return into_event(message),
                Ok(None) => {}
                Err(error) => return DispatcherEvent::BadMessage(refusal_of(error)),
            }
            if let Some(id) = &waiting_for {
                match self.shared.queue.verdict(id) {
                    Ok(Some(StoredVerdict { approved, body })) => {
                        return DispatcherEvent::Verdict { approved, body };
                    }
                    Ok(None) => {}
                    Err(error) => return self.queue_broken(&error),
                }
            }
            let poll = match waiting_for {
                Some(_) => deadline.min(Instant::now() + POLL),
                None => deadline,
            };
            tokio::select! {
                read = self.stream.read(&mut buffer) => match read {
                    Ok(0) | Err(_) => return DispatcherEvent::PeerClosed,
                    Ok(count) => {
                        if let Err(error) = self.framing.feed(buffer.get(..count).unwrap_or_default()) {
                            return DispatcherEvent::BadMessage(refusal_of(error));
                        }
                    }
                },
                _ = ended.wait_for(|ended| *ended) => return DispatcherEvent::SessionEnded,
                () = sleep_until(poll) => {
                    if Instant::now() >= deadline {
                        return DispatcherEvent::Deadline;
                    }
                }
            }
        }
    }

    async fn perform(&mut self, effect: DispatcherEffect) -> Performed {
        match effect {
            DispatcherEffect::CheckRoom(request) => {
                Performed::Answered(self.check_room(*request).await)
            }
            DispatcherEffect::Enqueue(new) => Performed::Answered(self.enqueue(*new).await),
            DispatcherEffect::Withdraw(id, why) => {
                let queue = self.shared.queue.clone();
                let result = blocking(move || queue.withdraw(&id, why)).await;
                Performed::Answered(match result {
                    Ok(Withdrawal::Withdrawn) => {
                        self.tell(why);
                        DispatcherEvent::Withdrawn
                    }
                    Ok(Withdrawal::Overtaken(StoredVerdict { approved, body })) => {
                        DispatcherEvent::Verdict { approved, body }
                    }
                    Err(error) => self.queue_broken(&error),
                })
            }
            DispatcherEffect::Send(body) => {
                // What does not arrive shows as a closed connection.
                let _ = self.send(&body).await;
                Performed::Done
            }
            DispatcherEffect::Deliver(body) => Performed::Answered(match self.send(&body).await {
                Ok(()) => DispatcherEvent::Sent,
                Err(_) => DispatcherEvent::SendFailed,
            }),
            DispatcherEffect::Conclude(id, outcome) => {
                let queue = self.shared.queue.clone();
                if let Err(error) = blocking(move || queue.conclude(&id, outcome)).await {
                    self.queue_broken(&error);
                }
                self.tell(outcome);
                Performed::Done
            }
            DispatcherEffect::CountUnrevealed => {
                self.shared.unrevealed.fetch_add(1, Ordering::Relaxed);
                Performed::Done
            }
            DispatcherEffect::Refused(refusal) => {
                Action::new("pair-reject")
                    .field("IP", self.source)
                    .field("REASON", reason_word(refusal))
                    .info();
                Performed::Done
            }
            DispatcherEffect::Close => {
                self.close().await;
                Performed::Closed
            }
        }
    }

    /// Cheap refusals first: nothing is looked up or locked for a request that cannot be queued.
    async fn check_room(&self, request: ReceivedRequest) -> DispatcherEvent {
        let bound = request.commitment.is_some();
        if bound && self.shared.unrevealed.load(Ordering::Relaxed) >= MAX_UNREVEALED {
            return DispatcherEvent::NoRoom(RequestRefusal::TooManyAttempts);
        }
        let (queue, limits, source) = (self.shared.queue.clone(), self.shared.limits, self.source);
        let checked = blocking(move || {
            queue.expire(SystemTime::now())?;
            queue.check_room(limits, source)?;
            Ok(CertRequest::parse_pem(&request.csr)
                .is_ok_and(|csr| csr.cn == request.hostname.as_str()))
        })
        .await;
        match (checked, PairingId::generate(), Nonce::generate()) {
            (Ok(true), Ok(id), Ok(dispatcher_nonce)) => DispatcherEvent::Room {
                id,
                dispatcher_nonce,
            },
            (Ok(false), ..) => DispatcherEvent::NoRoom(RequestRefusal::InvalidCsr),
            (Ok(true), ..) => DispatcherEvent::NoRoom(RequestRefusal::Internal),
            (Err(error), ..) => DispatcherEvent::NoRoom(self.refused_by_queue(&error)),
        }
    }

    async fn enqueue(&mut self, new: NewRequest) -> DispatcherEvent {
        let source = self.source;
        let reverse =
            tokio::task::spawn_blocking(move || hostname::reverse(source, REVERSE_DNS_TIMEOUT))
                .await
                .ok()
                .flatten()
                .map(|(name, confirmed)| ReverseName { name, confirmed });
        let reported = new.request.ip;
        let received = self.shared.clock.iso_now();
        let record = Record::new(new, source, received, reverse, self.shared.session.clone());
        let (queue, limits, stored) = (
            self.shared.queue.clone(),
            self.shared.limits,
            record.clone(),
        );
        if let Err(error) =
            blocking(move || queue.enqueue(&stored, limits, SystemTime::now())).await
        {
            return DispatcherEvent::NotQueued(self.refused_by_queue(&error));
        }
        let mut action = Action::new("pair-request")
            .field("AGENT", &record.hostname)
            .field("CODE", record.kind())
            .field("IP", source)
            .field("REQID", &record.id)
            .field("STATUS", "pending");
        if let Some(ip) = reported {
            action = action.field("REPORTED_IP", ip);
        }
        action.info();
        self.agent = Some((record.hostname.to_string(), record.id.clone()));
        let _ = self.shared.news.send(News::Queued(Box::new(record)));
        DispatcherEvent::Queued
    }

    fn refused_by_queue(&self, error: &QueueError) -> RequestRefusal {
        match error {
            QueueError::Full | QueueError::SourceFull => RequestRefusal::QueueFull,
            other => {
                self.queue_broken(other);
                RequestRefusal::Internal
            }
        }
    }

    fn queue_broken(&self, error: &QueueError) -> DispatcherEvent {
        Action::new("pair-queue-fail").field("ERROR", error).err();
        DispatcherEvent::QueueBroken
    }

    async fn send(&mut self, body: &[u8]) -> std::io::Result<()> {
        let bytes = framing::response(body);
        timeout(STEP_TIMEOUT, async {
            self.stream.write_all(&bytes).await?;
            self.stream.flush().await
        })
        .await?
    }

    /// Leaves it to the agent to hang up, because what it has not read yet could be lost otherwise (spec/pairing.md 17.3).
    async fn close(&mut self) {
        let _ = timeout(LINGER, async {
            let mut buffer = [0; 1024];
            while matches!(self.stream.read(&mut buffer).await, Ok(count) if count > 0) {}
            self.stream.shutdown().await
        })
        .await;
    }

    /// For the log: a receipt says more than the outcome.
    fn note(&self, state: &DispatcherState, event: &DispatcherEvent) {
        if let (
            DispatcherState::Delivering {
                kind: CodeKind::Bound,
                approved: true,
                ..
            },
            DispatcherEvent::Sent,
        ) = (state, event)
            && let Some((name, id)) = &self.agent
        {
            Action::new("pair-sent")
                .field("AGENT", name)
                .field("REQID", id)
                .info();
        }
    }

    /// The end of a queued request, for log and operator.
    fn tell(&self, outcome: Outcome) {
        let Some((name, id)) = &self.agent else {
            return;
        };
        let action = |word| Action::new(word).field("AGENT", name).field("REQID", id);
        match outcome {
            Outcome::Delivered => action("pair-delivered").info(),
            Outcome::Unconfirmed | Outcome::Undelivered | Outcome::RefusedByAgent => {
                action("pair-undelivered")
                    .field("REASON", outcome.as_str())
                    .warning();
            }
            Outcome::Abandoned | Outcome::TimedOut | Outcome::SessionEnded => {
                action("pair-withdrawn")
                    .field("REASON", outcome.as_str())
                    .info();
            }
            // Logged as pair-deny by whoever denied.
            Outcome::Denied => {}
        }
        let _ = self.shared.news.send(News::Over {
            name: name.clone(),
            id: id.clone(),
            outcome,
        });
    }
}

enum Performed {
    Answered(DispatcherEvent),
    Done,
    Closed,
}

fn into_event(message: Message) -> DispatcherEvent {
    DispatcherEvent::Message {
        path: message.path().to_owned(),
        body: message.body,
    }
}

fn refusal_of(error: FrameError) -> RequestRefusal {
    match error {
        FrameError::BodyTooLarge | FrameError::HeadTooLarge | FrameError::TooMuch => {
            RequestRefusal::TooLarge
        }
        FrameError::NoLength | FrameError::BadLength | FrameError::TransferCoding => {
            RequestRefusal::Invalid
        }
    }
}

/// REASON of the `pair-reject` line (spec/pairing.md 14; the first three are the original's).
fn reason_word(refusal: RequestRefusal) -> &'static str {
    match refusal {
        RequestRefusal::TooLarge => "body-too-large",
        RequestRefusal::InvalidHostname => "invalid-hostname",
        RequestRefusal::QueueFull => "queue-full",
        RequestRefusal::Invalid => "invalid-request",
        RequestRefusal::InvalidCsr => "invalid-csr",
        RequestRefusal::CommitmentMismatch => "commitment-mismatch",
        RequestRefusal::NotBound => "code-not-bound",
        RequestRefusal::TooManyAttempts => "too-many-attempts",
        RequestRefusal::SessionEnded => "session-ended",
        RequestRefusal::Internal => "internal",
    }
}

/// Runs work on files away from the thread that serves connections.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, QueueError> + Send + 'static,
) -> Result<T, QueueError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(QueueError::Io {
            path: std::path::PathBuf::new(),
            source: std::io::Error::other(error),
        }),
    }
}
