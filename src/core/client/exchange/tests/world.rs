//! An agent on loopback, over real TLS, that behaves in every way that agents behave.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::super::*;
use crate::core::client::pool::Counters;
use crate::core::pki::fixtures::{agent, new_ca};
use crate::core::pki::{Authority, CertRequest, KeyType, PrivateKey, csr};
use crate::core::registry::AgentRecord;
use crate::core::tls::{self, Identity};
use crate::core::types::DispatcherId;

pub(super) const PATIENCE: Duration = Duration::from_secs(20);
pub(super) const KEPT: &str = "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n{\"exit\":0}";

/// What an agent does with the nth request (from 0) of a connection.
#[derive(Clone)]
pub(super) enum Act {
    /// Answers, and waits for the next one.
    Say(String),
    /// Answers, and closes.
    Last(String),
    /// Closes without a word.
    Die,
    /// Says nothing until the other side has had enough.
    Hang,
}

pub(super) type Manner = fn(usize, &str) -> Act;

pub(super) fn keeps(_: usize, _: &str) -> Act {
    Act::Say(KEPT.to_owned())
}

#[derive(Default)]
pub(super) struct Seen {
    /// Heads of the requests, as they came.
    pub(super) requests: Mutex<Vec<String>>,
    pub(super) connections: AtomicUsize,
    pub(super) open: AtomicUsize,
}

pub(super) struct World {
    pub(super) home: tempfile::TempDir,
    pub(super) ca: Authority,
    pub(super) dispatcher: Identity,
    pub(super) agent: Identity,
    pub(super) port: u16,
    pub(super) seen: Arc<Seen>,
    pub(super) _server: JoinSet<()>,
}

pub(super) fn identity(ca: &Authority, name: &str) -> Identity {
    let key = PrivateKey::generate(KeyType::EcdsaP256).unwrap();
    let issued = if name == "dispatcher" {
        ca.issue_dispatcher(key.public(), &DispatcherId::new("main").unwrap(), 30)
    } else {
        let pem = csr::create_pem(&key, &agent(name)).unwrap();
        ca.issue_agent(&CertRequest::parse_pem(&pem).unwrap(), &agent(name), 30)
    };
    Identity::new(vec![issued.unwrap()], key).unwrap()
}

impl World {
    /// An agent `web1` that behaves like that.
    pub(super) async fn new(manner: Manner) -> Self {
        let home = tempfile::tempdir().unwrap();
        let ca = new_ca(home.path());
        let (dispatcher, agent) = (identity(&ca, "dispatcher"), identity(&ca, "web1"));
        let cas = [ca.certificate().clone()];
        let tls = tls::server_config(&agent, &cas, Clock::system(0)).unwrap();
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let seen = Arc::new(Seen::default());
        let mut server = JoinSet::new();
        let watched = seen.clone();
        server.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (tls, seen) = (tls.clone(), watched.clone());
                connections.spawn(async move {
                    if let Ok(stream) = TlsAcceptor::from(tls).accept(stream).await {
                        seen.connections.fetch_add(1, Ordering::SeqCst);
                        seen.open.fetch_add(1, Ordering::SeqCst);
                        let _ = converse(stream, &seen, manner).await;
                        seen.open.fetch_sub(1, Ordering::SeqCst);
                    }
                });
            }
        });
        Self {
            home,
            ca,
            dispatcher,
            agent,
            port,
            seen,
            _server: server,
        }
    }

    pub(super) fn client_at(&self, revoked: Revocations, clock: Clock) -> Client {
        let cas = [self.ca.certificate().clone()];
        let presented = Presented {
            serial: self.dispatcher.certificate().serial.clone(),
            tls: tls::client_config(&self.dispatcher, &cas, clock.clone()).unwrap(),
        };
        Client::new(vec![presented], revoked, clock, PATIENCE, PATIENCE)
    }

    pub(super) fn client(&self) -> Client {
        self.client_at(Revocations::default(), Clock::system(0))
    }

    pub(super) fn target(&self) -> Target {
        let mut record = AgentRecord::new(agent("web1"));
        record.hostname = "127.0.0.1".to_owned();
        record.port = self.port;
        Target::of(record)
    }

    pub(super) async fn run(&self, client: &Client) -> Result<Answer, ExchangeError> {
        let body = Some(b"{\"script\":\"job\"}".to_vec());
        client
            .exchange(&self.target(), Method::POST, "/run", body)
            .await
    }

    pub(super) async fn result(&self, client: &Client) -> Result<Answer, ExchangeError> {
        client
            .exchange(&self.target(), Method::GET, "/result/1", None)
            .await
    }

    pub(super) fn requests(&self) -> Vec<String> {
        let all = self.seen.requests.lock().unwrap();
        let line = |head: &String| head.lines().next().unwrap_or_default().to_owned();
        all.iter().map(line).collect()
    }

    pub(super) fn connections(&self) -> usize {
        self.seen.connections.load(Ordering::SeqCst)
    }

    pub(super) async fn until_open(&self, number: usize) {
        eventually(|| self.seen.open.load(Ordering::SeqCst) == number).await;
    }
}

async fn converse(
    mut stream: TlsStream<TcpStream>,
    seen: &Seen,
    manner: Manner,
) -> std::io::Result<()> {
    for turn in 0.. {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await?);
        }
        let head = String::from_utf8_lossy(&head).into_owned();
        let length = head.lines().find_map(|l| {
            let (name, value) = l.split_once(": ")?;
            name.eq_ignore_ascii_case("content-length")
                .then(|| value.parse().ok())?
        });
        let mut body = vec![0; length.unwrap_or(0)];
        stream.read_exact(&mut body).await?;
        let act = manner(turn, &head);
        seen.requests.lock().unwrap().push(head);
        match act {
            Act::Say(text) => stream.write_all(text.as_bytes()).await?,
            Act::Last(text) => {
                stream.write_all(text.as_bytes()).await?;
                return stream.shutdown().await;
            }
            Act::Die => return Ok(()),
            Act::Hang => drop(stream.read_u8().await?),
        }
    }
    Ok(())
}

pub(super) async fn eventually(is_so: impl Fn() -> bool) {
    let wait = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, wait).await.expect("it becomes so");
}

pub(super) fn pool() -> (Arc<Counters>, Pool) {
    let counters = Arc::new(Counters::default());
    (counters.clone(), Pool::new(counters))
}

/// `reused`, `fresh`, `idle`.
pub(super) fn counts(counters: &Counters) -> [u64; 3] {
    [&counters.reused, &counters.fresh, &counters.idle].map(|c| c.load(Ordering::Relaxed))
}
