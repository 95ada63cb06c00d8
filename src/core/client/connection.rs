//! One connection to one agent: made and checked, driven by a task of its own, and asked over.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::answer::of_http;
use super::error::{ExchangeError, of_connect};
use super::pool::PoolHandle;
use crate::core::pki::{Certificate, PeerIdentity};
use crate::core::registry::Target;
use crate::core::stream::BoxedStream;
use crate::core::task;
use crate::core::tls;

/// Longest head of an answer, and what is read at a time.
const BUFFER: usize = 64 * 1024;
/// Time for saying goodbye to an agent.
const GOODBYE: Duration = Duration::from_secs(1);
/// A connection that has just been idle is ready at once, or something is wrong with it.
const READY: Duration = Duration::from_millis(250);

type Sender = http1::SendRequest<Full<Bytes>>;

/// A connection that is up. Whoever drops it ends it, and with it what is under way on it.
pub(super) struct Connection {
    pub(super) id: u64,
    pub(super) born: Instant,
    /// The certificate that the agent has shown.
    pub(super) peer: Arc<Certificate>,
    pub(super) identity: PeerIdentity,
    sender: Sender,
    /// Until when it waits for a request in a pool.
    idle: watch::Sender<Option<Instant>>,
}

/// Why there are no headers of an answer.
pub(super) enum SendError {
    /// Not one byte of the request has left.
    Unsent(ExchangeError),
    /// The request may have arrived.
    Sent(ExchangeError),
}

impl Connection {
    /// Connects and shakes hands within `patience`. Who has answered is for the caller to judge before anything is sent.
    ///
    /// # Errors
    /// The agent cannot be reached, or does not shake hands.
    pub(super) async fn open(
        target: &Target,
        tls: &Arc<rustls::ClientConfig>,
        patience: Duration,
        pool: Option<PoolHandle>,
    ) -> Result<Self, ExchangeError> {
        static LAST: AtomicU64 = AtomicU64::new(0);
        let stream = connect(target, tls, patience).await?;
        let peer = tls::peer_certificate(stream.get_ref().1)
            .map_err(|e| ExchangeError::WrongPeer(e.to_string()))?;
        let (sender, driver) = http1::Builder::new()
            .max_buf_size(BUFFER)
            .handshake(TokioIo::new(Box::new(stream) as BoxedStream))
            .await
            .map_err(|e| of_http(&target.address, &e))?;
        let id = LAST.fetch_add(1, Ordering::Relaxed);
        let (idle, watched) = watch::channel(None);
        task::spawn(async move {
            drive(driver, watched, id, pool.as_ref()).await;
            // Only now nobody can take it any more.
            if let Some(pool) = pool {
                pool.forget(id);
            }
        });
        Ok(Self {
            id,
            born: Instant::now(),
            identity: PeerIdentity::from_certificate(&peer),
            peer: Arc::new(peer),
            sender,
            idle,
        })
    }

    pub(super) fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }

    pub(super) fn wait_until(&self, end: Option<Instant>) {
        self.idle.send_replace(end);
    }

    /// Whether the next request can be sent; waits until the driver has dealt with the end of the last one.
    pub(super) async fn is_ready(&mut self) -> bool {
        matches!(timeout(READY, self.sender.ready()).await, Ok(Ok(())))
    }

    /// Sends the request and waits for the headers of the answer.
    ///
    /// # Errors
    /// There are none, see [`SendError`].
    pub(super) async fn send(
        &mut self,
        host: &str,
        request: Request<Full<Bytes>>,
    ) -> Result<Response<Incoming>, SendError> {
        let sent = self.sender.try_send_request(request).await;
        sent.map_err(|mut failure| {
            let given_back = failure.take_message().is_some();
            let error = of_http(host, &failure.into_error());
            if given_back {
                SendError::Unsent(error)
            } else {
                SendError::Sent(error)
            }
        })
    }
}

/// Moves the bytes until the agent closes, the connection was dropped, or it has waited long enough in the pool.
async fn drive(
    driver: http1::Connection<TokioIo<BoxedStream>, Full<Bytes>>,
    mut idle: watch::Receiver<Option<Instant>>,
    id: u64,
    pool: Option<&PoolHandle>,
) {
    let mut driver = std::pin::pin!(driver);
    loop {
        let end = *idle.borrow_and_update();
        tokio::select! {
            _ = &mut driver => return,
            changed = idle.changed() => if changed.is_err() {
                break;
            },
            () = sleep_until(end.unwrap_or_else(Instant::now)), if end.is_some() => {
                // Somebody who took it in this moment keeps it.
                if pool.is_some_and(|pool| pool.forget(id)) {
                    break;
                }
            }
        }
    }
    // With nobody left who could send anything it closes by itself.
    let _ = timeout(GOODBYE, driver).await;
}

async fn connect(
    target: &Target,
    tls: &Arc<rustls::ClientConfig>,
    patience: Duration,
) -> Result<TlsStream<TcpStream>, ExchangeError> {
    let host = target.address.as_str();
    let deadline = Instant::now() + patience;
    let too_late = || ExchangeError::ConnectTimeout {
        host: host.to_owned(),
    };
    let left = || deadline.saturating_duration_since(Instant::now());

    let addresses = timeout(left(), tokio::net::lookup_host((host, target.port)))
        .await
        .map_err(|_| too_late())?
        .map_err(|_| ExchangeError::Unresolved {
            host: host.to_owned(),
        })?;
    let mut failure = ExchangeError::Unresolved {
        host: host.to_owned(),
    };
    let mut connected = None;
    for address in addresses {
        match timeout(left(), TcpStream::connect(address)).await {
            Err(_) => return Err(too_late()),
            Ok(Err(e)) => failure = of_connect(host, target.port, &e),
            Ok(Ok(stream)) => {
                connected = Some(stream);
                break;
            }
        }
    }
    let stream = connected.ok_or(failure)?;
    let _ = stream.set_nodelay(true);

    // Never checked against the certificate (its names are the registry's business); it only fills SNI.
    let name = ServerName::try_from(host.to_owned())
        .or_else(|_| ServerName::try_from("ctrl-exec-agent"))
        .map_err(|e| ExchangeError::Lost(e.to_string()))?;
    timeout(
        left(),
        TlsConnector::from(tls.clone()).connect(name, stream),
    )
    .await
    .map_err(|_| too_late())?
    .map_err(|e| ExchangeError::Tls {
        host: host.to_owned(),
        failure: tls::classify(&e),
    })
}
