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
use crate::core::pairing::{MAX_UNFINISHED, REVERSE_DNS_TIMEOUT, STEP_TIMEOUT};
use crate::core::pki::CertRequest;
use crate::core::task;

/// How often the queue is asked whether somebody has decided.
const POLL: Duration = Duration::from_millis(250);
/// How long the connection is looked at before a verdict is sent.
const LAST_LOOK: Duration = Duration::from_millis(20);
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
    pub(super) unfinished: AtomicUsize,
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
                        // An older agent sends no receipt: one that has gone must be noticed before the verdict counts as delivered.
                        match timeout(LAST_LOOK, self.stream.read(&mut buffer)).await {
                            Err(_) => return DispatcherEvent::Verdict { approved, body },
                            Ok(Ok(0) | Err(_)) => return DispatcherEvent::PeerClosed,
                            Ok(Ok(count)) => {
                                if let Err(error) =
                                    self.framing.feed(buffer.get(..count).unwrap_or_default())
                                {
                                    return DispatcherEvent::BadMessage(refusal_of(error));
                                }
                                continue;
                            }
                        }
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
            DispatcherEffect::CountUnfinished => {
                self.shared.unfinished.fetch_add(1, Ordering::Relaxed);
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
        if bound && self.shared.unfinished.load(Ordering::Relaxed) >= MAX_UNFINISHED {
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
        let reverse = task::spawn_blocking(move || hostname::reverse(source, REVERSE_DNS_TIMEOUT))
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
    match task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(QueueError::Io {
            path: std::path::PathBuf::new(),
            source: std::io::Error::other(error),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::pairing::code::{Commitment, Exchange};
    use crate::core::pairing::message::{
        self, PATH_DONE, PATH_PAIR, PATH_REVEAL, PairRequest, Receipt, Reveal,
    };
    use crate::core::pairing::queue::Session;
    use crate::core::pki::{KeyType, PrivateKey, csr};
    use crate::core::types::AgentName;
    use serde_json::Value;
    use tokio::io::DuplexStream;
    use tokio::task::JoinHandle;

    const SETUP: Setup = Setup {
        server_cert: [7; 32],
        require_bound: false,
    };

    struct Bench {
        _dir: tempfile::TempDir,
        _session: Session,
        queue: Queue,
        shared: Arc<Shared>,
        end: watch::Sender<bool>,
        news: mpsc::UnboundedReceiver<News>,
    }

    /// The agent's end of a connection.
    struct Agent {
        stream: DuplexStream,
        framing: Framing,
        server: JoinHandle<()>,
    }

    impl Bench {
        fn new(depth: usize) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let queue = Queue::create(&dir.path().join("pairing")).unwrap();
            let session = queue.session().unwrap();
            let (end, ended) = watch::channel(false);
            let (sender, news) = mpsc::unbounded_channel();
            let shared = Arc::new(Shared {
                queue: queue.clone(),
                limits: Limits { depth },
                session: session.id.clone(),
                clock: Clock::system(0),
                ended,
                news: sender,
                unfinished: AtomicUsize::new(0),
            });
            Self {
                _dir: dir,
                _session: session,
                queue,
                shared,
                end,
                news,
            }
        }

        fn connect(&self) -> Agent {
            let (near, far) = tokio::io::duplex(64 * 1024);
            let source = IpAddr::from([127, 0, 0, 1]);
            let server = tokio::spawn(serve(far, source, SETUP, Arc::clone(&self.shared)));
            Agent {
                stream: near,
                framing: Framing::new(Direction::Responses),
                server,
            }
        }

        fn approve(&self, id: &PairingId, body: &str) {
            let claim = self.queue.claim(id, SystemTime::now()).unwrap();
            claim
                .prepare_approval(body.as_bytes())
                .unwrap()
                .commit()
                .unwrap();
        }

        async fn news(&mut self) -> News {
            let patience = Duration::from_secs(30);
            timeout(patience, self.news.recv()).await.unwrap().unwrap()
        }

        async fn over(&mut self) -> Outcome {
            loop {
                if let News::Over { outcome, .. } = self.news().await {
                    return outcome;
                }
            }
        }
    }

    impl Agent {
        async fn write(&mut self, bytes: &[u8]) {
            self.stream.write_all(bytes).await.unwrap();
        }

        async fn say<T: serde::Serialize>(&mut self, path: &str, value: &T) {
            self.write(&framing::request(path, &message::to_json(value)))
                .await;
        }

        /// The next response; `Null` when the connection ends.
        async fn hear(&mut self) -> Value {
            loop {
                if let Some(message) = self.framing.next_message().unwrap() {
                    return serde_json::from_slice(&message.body).unwrap();
                }
                let mut buffer = [0; 512];
                let read = timeout(Duration::from_secs(30), self.stream.read(&mut buffer));
                match read.await.unwrap() {
                    Ok(0) | Err(_) => return Value::Null,
                    Ok(count) => self.framing.feed(&buffer[..count]).unwrap(),
                }
            }
        }
    }

    fn csr_of(name: &str) -> String {
        let key = PrivateKey::generate(KeyType::EcdsaP256).unwrap();
        csr::create_pem(&key, &AgentName::new(name).unwrap()).unwrap()
    }

    fn old_request(name: &str) -> Value {
        serde_json::json!({"hostname": name, "csr": csr_of(name), "nonce": "ab", "port": 7443})
    }

    fn new_request(name: &str, agent_nonce: &Nonce) -> PairRequest {
        let csr = csr_of(name);
        let exchange = Exchange {
            csr_pem: &csr,
            server_cert: &SETUP.server_cert,
        };
        let commit = Commitment::new(&exchange, agent_nonce).to_hex();
        PairRequest {
            hostname: name.to_owned(),
            nonce: "ab".to_owned(),
            ip: None,
            port: 7443,
            lookup_by: None,
            pair_version: 2,
            commit,
            csr,
        }
    }

    fn id_of(acknowledgement: &Value) -> PairingId {
        assert_eq!(acknowledgement["status"], "pending");
        PairingId::new(acknowledgement["reqid"].as_str().unwrap()).unwrap()
    }

    #[tokio::test]
    async fn an_old_agent_is_queued_and_gets_the_verdict_byte_for_byte() {
        let mut bench = Bench::new(10);
        let mut agent = bench.connect();
        let request = framing::request(PATH_PAIR, old_request("web01").to_string().as_bytes());
        for byte in request {
            agent.write(&[byte]).await;
        }
        let id = id_of(&agent.hear().await);
        assert!(matches!(bench.news().await, News::Queued(record) if record.id == id));
        bench.approve(&id, r#"{"status":"approved","x":1}"#);
        assert_eq!(
            agent.hear().await,
            serde_json::json!({"status": "approved", "x": 1})
        );
        assert_eq!(bench.over().await, Outcome::Delivered);
        assert_eq!(bench.queue.outcome(&id), Some(Outcome::Delivered));
        assert_eq!(bench.queue.verdict(&id).unwrap(), None);
        drop(agent.stream);
        agent.server.await.unwrap();
    }

    #[tokio::test]
    async fn a_new_agent_is_queued_only_after_its_reveal_and_ends_with_its_receipt() {
        let mut bench = Bench::new(10);
        let mut agent = bench.connect();
        let nonce = Nonce::from_bytes([3; 32]);
        agent.say(PATH_PAIR, &new_request("web01", &nonce)).await;
        let acknowledgement = agent.hear().await;
        let id = id_of(&acknowledgement);
        assert_eq!(acknowledgement["pair_version"], 2);
        assert!(!bench.queue.is_open(&id));
        let reveal = Reveal {
            reqid: id.to_string(),
            agent_nonce: nonce.to_hex(),
        };
        agent.say(PATH_REVEAL, &reveal).await;
        assert!(
            matches!(bench.news().await, News::Queued(record) if record.kind() == CodeKind::Bound)
        );
        bench.approve(&id, r#"{"status":"approved"}"#);
        agent.hear().await;
        let receipt = Receipt {
            reqid: id.to_string(),
            status: Receipt::REFUSED.to_owned(),
            reason: String::new(),
        };
        agent.say(PATH_DONE, &receipt).await;
        assert_eq!(bench.over().await, Outcome::RefusedByAgent);
    }

    #[tokio::test]
    async fn refusals_have_the_texts_of_the_original() {
        let bench = Bench::new(0);
        let large = b"POST /pair HTTP/1.0\r\nContent-Length: 65537\r\n\r\n".to_vec();
        let of = |value: Value| framing::request(PATH_PAIR, value.to_string().as_bytes());
        let mut foreign = old_request("web01");
        foreign["hostname"] = "web02".into();
        for (bytes, reason) in [
            (large, "request too large"),
            (of(serde_json::json!([1])), "invalid request"),
            (
                of(serde_json::json!({"hostname": "../x", "csr": "c"})),
                "invalid hostname",
            ),
            (of(old_request("web01")), "pairing queue full"),
        ] {
            let mut agent = bench.connect();
            agent.write(&bytes).await;
            let expected = serde_json::json!({"status": "error", "reason": reason});
            assert_eq!(agent.hear().await, expected);
        }
        let bench = Bench::new(10);
        let mut agent = bench.connect();
        agent.write(&of(foreign)).await;
        assert_eq!(agent.hear().await["reason"], "invalid certificate request");
    }

    #[tokio::test]
    async fn an_agent_that_hangs_up_frees_its_place() {
        let mut bench = Bench::new(1);
        let mut agent = bench.connect();
        agent.say(PATH_PAIR, &old_request("web01")).await;
        let id = id_of(&agent.hear().await);
        drop(agent.stream);
        assert_eq!(bench.over().await, Outcome::Abandoned);
        assert_eq!(bench.queue.outcome(&id), Some(Outcome::Abandoned));
        let mut next = bench.connect();
        next.say(PATH_PAIR, &old_request("web02")).await;
        id_of(&next.hear().await);
    }

    #[tokio::test]
    async fn the_end_of_the_session_reaches_everybody() {
        let mut bench = Bench::new(10);
        let (mut waiting, mut silent) = (bench.connect(), bench.connect());
        waiting.say(PATH_PAIR, &old_request("web01")).await;
        id_of(&waiting.hear().await);
        bench.end.send(true).unwrap();
        let expected = serde_json::json!({"status": "denied", "reason": "pairing session ended"});
        assert_eq!(waiting.hear().await, expected);
        assert_eq!(silent.hear().await["reason"], "pairing session ended");
        assert_eq!(bench.over().await, Outcome::SessionEnded);
    }

    #[tokio::test]
    async fn nonces_that_are_not_revealed_run_out() {
        let bench = Bench::new(10);
        let nonce = Nonce::from_bytes([3; 32]);
        let mut agent = bench.connect();
        agent.say(PATH_PAIR, &new_request("web01", &nonce)).await;
        id_of(&agent.hear().await);
        drop(agent.stream);
        agent.server.await.unwrap();
        assert_eq!(bench.shared.unfinished.load(Ordering::Relaxed), 1);
        bench
            .shared
            .unfinished
            .store(MAX_UNFINISHED, Ordering::Relaxed);
        let mut agent = bench.connect();
        agent.say(PATH_PAIR, &new_request("web01", &nonce)).await;
        let reason = agent.hear().await["reason"].as_str().unwrap().to_owned();
        assert!(reason.starts_with("too many unfinished"), "{reason}");
    }
}
