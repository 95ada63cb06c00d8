//! One HTTPS exchange with one agent (spec/dispatcher.md 7-9): take a connection or make one, check who is at its other end, send, read; each
//! with a deadline.
//!
//! A request is never sent twice unless doing it twice is as good as doing it once: what may have left is not repeated, because nobody knows
//! whether the script has run.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http_body_util::{BodyExt as _, Full};
use hyper::body::{Body as _, Bytes, Incoming};
use hyper::{Method, Request, Response, StatusCode, Version, header};
use serde_json::{Map, Value};
use tokio::time::timeout;

use crate::core::client::answer::{judge, of_http};
use crate::core::client::budget::{Budget, Held, Reservation};
use crate::core::client::connection::{Connection, SendError};
use crate::core::client::error::ExchangeError;
use crate::core::client::peer;
use crate::core::client::pool::{Key, Pool};
use crate::core::clock::{self, Clock};
use crate::core::keyring;
use crate::core::pki::{Certificate, keys};
use crate::core::registry::Target;
use crate::core::revocation::{Entry, Revocations};
use crate::core::types::Serial;

/// An answer that has begun must be complete within this many read timeouts: an agent that sends a byte now and then is not waited for.
const WHOLE_BODY: u32 = 5;

/// A kept connection is not used for longer than this: a renewed certificate, another address and what the agent has learnt of us meanwhile
/// should show.
const MAX_AGE: Duration = Duration::from_secs(600);

/// One identity of ours, ready for handshakes.
#[derive(Clone)]
pub struct Presented {
    pub serial: Serial,
    pub tls: Arc<rustls::ClientConfig>,
}

/// What every exchange of a dispatch shares.
#[derive(Clone)]
pub struct Client {
    presented: Arc<[Presented]>,
    revoked: Arc<Revocations>,
    clock: Clock,
    connect_timeout: Duration,
    read_timeout: Duration,
    pool: Option<Pool>,
    budget: Option<Budget>,
}

/// An answer with status 2xx.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    pub body: Map<String, Value>,
    /// The certificate that the agent has shown.
    pub peer: Arc<Certificate>,
    /// The serial of ours that the agent trusts.
    pub presented: Serial,
    /// What a large answer has reserved of the [`Budget`].
    pub held: Option<Held>,
}

#[cfg(test)]
impl Answer {
    /// An answer of some agent, for tests of what is made of answers.
    pub(crate) fn of_somebody(status: u16, body: Map<String, Value>) -> Self {
        let home = tempfile::tempdir().unwrap();
        let somebody = crate::core::pki::fixtures::new_ca(home.path());
        Self {
            status,
            body,
            peer: Arc::new(somebody.certificate().clone()),
            presented: Serial::from_be_bytes(&[1]),
            held: None,
        }
    }
}

/// What is asked, of whom.
struct Call<'a> {
    target: &'a Target,
    method: Method,
    path: &'a str,
    body: Option<Bytes>,
}

impl<'a> Call<'a> {
    fn new(target: &'a Target, method: Method, path: &'a str, body: Option<Vec<u8>>) -> Self {
        Self {
            target,
            method,
            path,
            body: body.map(Bytes::from),
        }
    }

    /// Whether an agent that is asked twice does nothing that it would not do once.
    fn may_be_repeated(&self) -> bool {
        self.method == Method::GET || self.path == "/ping"
    }

    /// `keep`: the agent may keep the connection open.
    fn request(&self, now: i64, keep: bool) -> Result<Request<Full<Bytes>>, ExchangeError> {
        let mut request = Request::builder()
            .method(self.method.clone())
            .uri(self.path)
            .header("Host", self.target.authority());
        if !keep {
            request = request.header("Connection", "close");
        }
        request = request.header(
            "User-Agent",
            concat!("ctrl-exec/", env!("CARGO_PKG_VERSION")),
        );
        if self.body.is_some() {
            request = request.header("Content-Type", "application/json");
        }
        // An agent without a clock of its own takes it from us (spec/swarm.md COM-8).
        request = request.header("Date", clock::http_date(now));
        request
            .body(Full::new(self.body.clone().unwrap_or_default()))
            .map_err(|e| ExchangeError::Lost(e.to_string()))
    }
}

impl Client {
    /// The entry by which a certificate is revoked.
    pub fn revocation_of(&self, certificate: &Certificate) -> Option<&Entry> {
        let key = keys::spki_sha256(&certificate.spki);
        self.revoked.find(&certificate.serial, &key)
    }

    /// `connect_timeout` covers name resolution, TCP and TLS; `read_timeout` is the longest silence of the agent afterwards.
    ///
    /// `presented` holds the identity to begin with first, and at least one.
    pub fn new(
        presented: Vec<Presented>,
        revoked: Revocations,
        clock: Clock,
        connect_timeout: Duration,
        read_timeout: Duration,
    ) -> Self {
        Self {
            presented: presented.into(),
            revoked: Arc::new(revoked),
            clock,
            connect_timeout,
            read_timeout,
            pool: None,
            budget: None,
        }
    }

    /// Keeps connections for the next request. Without a pool every request has a connection of its own, and the agent is told so.
    #[must_use]
    pub fn with_pool(mut self, pool: Pool) -> Self {
        self.pool = Some(pool);
        self
    }

    /// Bounds the memory for answers. The budget outlives this client: give the same one to the next.
    #[must_use]
    pub fn with_budget(mut self, budget: Budget) -> Self {
        self.budget = Some(budget);
        self
    }

    /// Sends one request and reads the whole answer. `body` is sent as JSON; `None` sends none.
    ///
    /// Begins with the identity that the agent is known to trust. An agent that turns it down before it looks at the request is asked again
    /// with the next one.
    ///
    /// # Errors
    /// See [`ExchangeError`]; an answer that is not 2xx is one too. When every identity was turned down, what was said to the first.
    pub async fn exchange(
        &self,
        target: &Target,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
    ) -> Result<Answer, ExchangeError> {
        let call = Call::new(target, method, path, body);
        let serials: Vec<&Serial> = self.presented.iter().map(|p| &p.serial).collect();
        let mut first = None;
        for at in keyring::order(&serials, &target.record) {
            let presented = &self.presented[at];
            match self.once(&call, presented).await {
                Err(error) if error.is_about_our_identity() => {
                    first.get_or_insert(error);
                }
                other => return other,
            }
        }
        Err(first.unwrap_or_else(|| ExchangeError::Lost("there is no identity to present".into())))
    }

    /// The same with one identity only; `None` if we do not hold it.
    ///
    /// # Errors
    /// As [`exchange`](Self::exchange).
    pub async fn exchange_as(
        &self,
        serial: &Serial,
        target: &Target,
        path: &str,
        body: Vec<u8>,
    ) -> Option<Result<Answer, ExchangeError>> {
        let presented = self.presented.iter().find(|p| p.serial == *serial)?;
        let call = Call::new(target, Method::POST, path, Some(body));
        Some(self.once(&call, presented).await)
    }

    async fn once(&self, call: &Call<'_>, presented: &Presented) -> Result<Answer, ExchangeError> {
        let key = Key::new(call.target, &presented.serial);
        while let Some(mut kept) = self.pool.as_ref().and_then(|pool| pool.take(&key)) {
            if !self.may_use(call.target, &kept) || !kept.is_ready().await {
                continue;
            }
            match self.send(call, &mut kept).await {
                Err(SendError::Unsent(_)) => {}
                Ok(reply) => {
                    self.count_reused();
                    return self.receive(call, presented, kept, key, reply).await;
                }
                Err(SendError::Sent(error)) => {
                    self.count_reused();
                    if matches!(error, ExchangeError::ReadTimeout(_)) {
                        return Err(error);
                    }
                    // It was closed while the request was on its way. Whatever was said to that, it is no word about our identity: that
                    // was good enough before.
                    if !call.may_be_repeated() {
                        return Err(ExchangeError::Closed);
                    }
                    break;
                }
            }
        }
        let mut fresh = self.connect(call.target, presented).await?;
        match self.send(call, &mut fresh).await {
            Ok(reply) => self.receive(call, presented, fresh, key, reply).await,
            Err(SendError::Unsent(error) | SendError::Sent(error)) => Err(error),
        }
    }

    fn count_reused(&self) {
        if let Some(pool) = &self.pool {
            pool.count_reused();
        }
    }

    /// Whether a connection that was made for an earlier request would be made today. If not, a new one tells why.
    fn may_use(&self, target: &Target, kept: &Connection) -> bool {
        kept.born.elapsed() < MAX_AGE
            && kept.peer.check_dates(self.clock.now()).is_ok()
            && self.judge_peer(target, kept).is_ok()
    }

    fn judge_peer(&self, target: &Target, connection: &Connection) -> Result<(), ExchangeError> {
        let identity = &connection.identity;
        peer::check(&target.record, identity).map_err(ExchangeError::WrongPeer)?;
        self.revoked
            .check(&target.name, identity)
            .map_err(ExchangeError::Revoked)
    }

    async fn connect(
        &self,
        target: &Target,
        presented: &Presented,
    ) -> Result<Connection, ExchangeError> {
        let pool = self.pool.as_ref().map(Pool::handle);
        let made = Connection::open(target, &presented.tls, self.connect_timeout, pool).await?;
        self.judge_peer(target, &made)?;
        if let Some(pool) = &self.pool {
            pool.count_fresh();
        }
        Ok(made)
    }

    /// Sends, and waits for the headers. They come when the script has ended, so silence is measured over the whole wait, as in the original.
    async fn send(
        &self,
        call: &Call<'_>,
        connection: &mut Connection,
    ) -> Result<Response<Incoming>, SendError> {
        let request = call.request(self.clock.now(), self.pool.is_some());
        let request = request.map_err(SendError::Sent)?;
        timeout(
            self.read_timeout,
            connection.send(&call.target.address, request),
        )
        .await
        .unwrap_or_else(|_| {
            let silent = ExchangeError::ReadTimeout(self.read_timeout);
            Err(SendError::Sent(silent))
        })
    }

    /// Reads the rest of the answer and says what it means. The connection is kept if both sides may go on with it.
    async fn receive(
        &self,
        call: &Call<'_>,
        presented: &Presented,
        connection: Connection,
        key: Key,
        reply: Response<Incoming>,
    ) -> Result<Answer, ExchangeError> {
        let status = reply.status();
        // Who is turned down comes back with another identity, if at all.
        let keep = stays_open(&reply) && status != StatusCode::FORBIDDEN;
        let (bytes, held) = self.read(&call.target.address, reply.into_body()).await?;
        let peer = connection.peer.clone();
        if let Some(pool) = self.pool.as_ref().filter(|_| keep) {
            pool.put(key, connection);
        }
        Ok(Answer {
            status: status.as_u16(),
            body: judge(status, &bytes)?,
            peer,
            presented: presented.serial.clone(),
            held,
        })
    }

    async fn read(
        &self,
        host: &str,
        mut incoming: Incoming,
    ) -> Result<(Vec<u8>, Option<Held>), ExchangeError> {
        let whole = self.read_timeout * WHOLE_BODY;
        let end = Instant::now() + whole;
        let left = || {
            self.read_timeout
                .min(end.saturating_duration_since(Instant::now()))
        };
        let mut reservation = Reservation::new(self.budget.as_ref());
        let announced = usize::try_from(incoming.size_hint().lower()).unwrap_or(usize::MAX);
        reservation.cover(announced, left()).await?;
        let mut bytes = Vec::new();
        loop {
            let patience = left();
            if patience.is_zero() {
                return Err(ExchangeError::ReadTimeout(whole));
            }
            let next = timeout(patience, incoming.frame());
            let Some(frame) = next
                .await
                .map_err(|_| ExchangeError::ReadTimeout(self.read_timeout))?
            else {
                break;
            };
            if let Ok(data) = frame.map_err(|e| of_http(host, &e))?.into_data() {
                reservation.grow(bytes.len() + data.len(), left()).await?;
                bytes.extend_from_slice(&data);
            }
        }
        Ok((bytes, reservation.held()))
    }
}

/// Whether the agent will take another request on this connection: those of the original speak HTTP/1.0 and close.
fn stays_open(reply: &Response<Incoming>) -> bool {
    let closes = |value: &header::HeaderValue| {
        let words = value.to_str().unwrap_or("close").split(',');
        words
            .into_iter()
            .any(|word| word.trim().eq_ignore_ascii_case("close"))
    };
    let mut said = reply.headers().get_all(header::CONNECTION).iter();
    reply.version() >= Version::HTTP_11 && !said.any(closes)
}

#[cfg(test)]
mod tests;
