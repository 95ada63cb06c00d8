//! The pairing port: accepts raw connections, shakes hands in bounded tasks, hands finished streams to [`super::connection`].

use std::collections::HashMap;
use std::fs::Metadata;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use super::connection::{self, Shared};
use crate::core::config::DispatcherConfig;
use crate::core::logging::Action;
use crate::core::pairing::STEP_TIMEOUT;
use crate::core::pairing::dispatcher::Setup;
use crate::core::pki::Certificate;
use crate::core::ratelimit::{RateLimiter, Verdict, source_key};
use crate::core::task::Work;
use crate::core::tls::{self, Identity, TlsError};
use crate::core::types;

/// Connections in all: the queue's depth is far below, the rest are handshakes and refusals.
const MAX_CONNECTIONS: usize = 128;
/// Connections of one source (this host itself is not limited), so that one cannot take all.
const MAX_PER_SOURCE: usize = 32;
/// How long connections may take to say good-bye when the session ends.
const FAREWELL: Duration = Duration::from_secs(15);

/// The certificate that is presented, loaded anew when a rotation replaced the file.
pub(super) struct Presented {
    cert: PathBuf,
    key: PathBuf,
    stamp: Option<(i64, i64, u64)>,
    pub(super) certificate: Certificate,
    acceptor: TlsAcceptor,
    setup: Setup,
}

impl Presented {
    /// # Errors
    /// Certificate or key are missing or do not fit.
    pub(super) fn load(config: &DispatcherConfig) -> Result<Self, TlsError> {
        let stamp = stamp(&config.cert);
        let identity = Identity::load(&config.cert, &config.key)?;
        let certificate = identity.certificate().clone();
        Ok(Self {
            cert: config.cert.clone(),
            key: config.key.clone(),
            stamp,
            acceptor: TlsAcceptor::from(tls::pairing_server_config(&identity)?),
            setup: Setup {
                server_cert: types::sha256(&[&certificate.der]),
                require_bound: config.pairing_require_bound_code,
            },
            certificate,
        })
    }

    /// A rotation in progress leaves a pair that does not fit for a moment; the old one serves until the new one is whole.
    fn refresh(&mut self) {
        let now = stamp(&self.cert);
        if now == self.stamp {
            return;
        }
        let loaded = Identity::load(&self.cert, &self.key)
            .and_then(|identity| Ok((tls::pairing_server_config(&identity)?, identity)));
        if let Ok((config, identity)) = loaded {
            self.stamp = now;
            self.certificate = identity.certificate().clone();
            self.setup.server_cert = types::sha256(&[&self.certificate.der]);
            self.acceptor = TlsAcceptor::from(config);
        }
    }
}

fn stamp(path: &Path) -> Option<(i64, i64, u64)> {
    let of = |m: Metadata| (m.mtime(), m.mtime_nsec(), m.ino());
    std::fs::metadata(path).ok().map(of)
}

/// Who is connected, and who was lately.
struct Guests {
    limiter: RateLimiter,
    started: Instant,
    /// By [`source_key`]: whoever owns an IPv6 network must not count as many.
    present: HashMap<String, usize>,
}

impl Guests {
    /// Whether this source may go on. `record`: it is through the handshake, which is what counts.
    fn admit(&mut self, source: IpAddr, record: bool) -> bool {
        let (key, now) = (source_key(source), self.started.elapsed());
        let verdict = self.limiter.check(&key, now);
        if let Verdict::BlockStarts(reason) = verdict {
            Action::new("rate-block")
                .field("PEER", source)
                .field("REASON", reason)
                .warning();
        }
        if verdict != Verdict::Allow {
            return false;
        }
        if record {
            self.limiter.record_connection(&key, now);
            if let Some(evicted) = self.limiter.take_eviction() {
                Action::new("rate-evict")
                    .field("COUNT", evicted.count)
                    .warning();
            }
        }
        true
    }
}

/// One place of its source, given back when dropped.
struct Seat {
    guests: Arc<Mutex<Guests>>,
    source: IpAddr,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Seat {
    fn drop(&mut self) {
        let key = source_key(self.source);
        let mut guests = lock(&self.guests);
        if let Some(count) = guests.present.get_mut(&key) {
            *count -= 1;
            if *count == 0 {
                guests.present.remove(&key);
            }
        }
    }
}

fn lock(guests: &Mutex<Guests>) -> std::sync::MutexGuard<'_, Guests> {
    guests
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Accepts until the session ends, then lets every connection say good-bye.
pub(super) async fn serve(
    listener: TcpListener,
    mut presented: Presented,
    config: &DispatcherConfig,
    shared: Arc<Shared>,
) {
    let guests = Arc::new(Mutex::new(Guests {
        limiter: RateLimiter::new(config.pairing_rate_limit, None),
        started: Instant::now(),
        present: HashMap::new(),
    }));
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut tasks = JoinSet::<()>::new();
    let mut ended = shared.ended.clone();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = ended.wait_for(|ended| *ended) => break,
            // Finished tasks are collected as they end.
            Some(_) = tasks.join_next() => continue,
        };
        let Ok((stream, address)) = accepted else {
            // Out of descriptors or memory: do not spin.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let source = address.ip().to_canonical();
        let Some(seat) = take_seat(&guests, &places, source) else {
            continue;
        };
        presented.refresh();
        let (acceptor, setup) = (presented.acceptor.clone(), presented.setup);
        let work: Work<()> = Box::pin(welcome(stream, acceptor, setup, seat, Arc::clone(&shared)));
        tasks.spawn(work);
    }
    // Nobody new while the others say good-bye.
    drop(listener);
    let _ = timeout(FAREWELL, async {
        while tasks.join_next().await.is_some() {}
    })
    .await;
    tasks.shutdown().await;
}

/// Cheap refusals, without a byte to the peer.
fn take_seat(guests: &Arc<Mutex<Guests>>, places: &Arc<Semaphore>, source: IpAddr) -> Option<Seat> {
    let permit = Arc::clone(places).try_acquire_owned().ok()?;
    let mut held = lock(guests);
    if !held.admit(source, false) {
        return None;
    }
    let count = held.present.entry(source_key(source)).or_default();
    if *count >= MAX_PER_SOURCE && !source.is_loopback() {
        return None;
    }
    *count += 1;
    Some(Seat {
        guests: Arc::clone(guests),
        source,
        _permit: permit,
    })
}

async fn welcome(
    stream: TcpStream,
    acceptor: TlsAcceptor,
    setup: Setup,
    seat: Seat,
    shared: Arc<Shared>,
) {
    let mut ended = shared.ended.clone();
    let shaken = tokio::select! {
        shaken = timeout(STEP_TIMEOUT, acceptor.accept(stream)) => shaken,
        // Somebody who says nothing must not hold up the end of the session.
        _ = ended.wait_for(|ended| *ended) => return,
    };
    // A mere probe of the port ends here, and does not count.
    let Ok(Ok(stream)) = shaken else {
        return;
    };
    if !lock(&seat.guests).admit(seat.source, true) {
        return;
    }
    connection::serve(stream, seat.source, setup, shared).await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::clock::Clock;
    use crate::core::config::RateSpec;
    use crate::core::pairing::framing::{self, Direction, Framing};
    use crate::core::pairing::queue::{Limits, Queue};
    use crate::core::paths::{Paths, Platform};
    use crate::core::pki::{Authority, KeyType, PrivateKey};
    use crate::core::types::DispatcherId;
    use rustls::pki_types::ServerName;
    use std::net::SocketAddr;
    use std::sync::atomic::AtomicUsize;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::sync::{mpsc, watch};
    use tokio_rustls::TlsConnector;

    fn configured(dir: &Path) -> DispatcherConfig {
        let paths = Paths::new(dir, Platform::Standard);
        let config = DispatcherConfig::defaults(&paths, &paths.dispatcher_toml(), "hq");
        std::fs::create_dir_all(&config.ca_dir).unwrap();
        config
    }

    fn new_certificate(config: &DispatcherConfig) {
        let authority = Authority::load(&config.ca_dir, Clock::system(0)).unwrap();
        let key = PrivateKey::generate(KeyType::EcdsaP256).unwrap();
        let id = DispatcherId::new("hq").unwrap();
        let certificate = authority.issue_dispatcher(key.public(), &id, 825).unwrap();
        let write = |path: &Path, text: &str| {
            crate::core::durable::replace(path, text.as_bytes(), 0o600).unwrap();
        };
        write(&config.key, key.to_pkcs8_pem().expose());
        write(&config.cert, &certificate.to_pem());
    }

    fn new_ca(config: &DispatcherConfig) {
        let clock = Clock::system(0);
        Authority::create(&config.ca_dir, KeyType::EcdsaP256, "CA", 30, clock).unwrap();
        new_certificate(config);
    }

    /// The reason that a listener gives for a request that is none; `None`: closed without a word.
    async fn ask(address: SocketAddr) -> Option<String> {
        let tcp = TcpStream::connect(address).await.unwrap();
        let connector = TlsConnector::from(tls::pairing_client_config().unwrap());
        let name = ServerName::IpAddress(address.ip().into());
        let mut stream = connector.connect(name, tcp).await.ok()?;
        stream
            .write_all(&framing::request("/pair", b"[]"))
            .await
            .ok()?;
        let mut framing = Framing::new(Direction::Responses);
        let mut buffer = [0; 512];
        loop {
            if let Some(message) = framing.next_message().unwrap() {
                return Some(String::from_utf8(message.body).unwrap());
            }
            match stream.read(&mut buffer).await {
                Ok(0) | Err(_) => return None,
                Ok(count) => framing.feed(&buffer[..count]).unwrap(),
            }
        }
    }

    #[tokio::test]
    async fn a_silent_guest_holds_up_nobody_and_who_comes_too_often_is_blocked() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = configured(dir.path());
        config.pairing_rate_limit = Some(RateSpec::new(3, 60, 300));
        new_ca(&config);
        let queue = Queue::create(&config.pairing_dir).unwrap();
        let session = queue.session().unwrap();
        let (end, ended) = watch::channel(false);
        let (news, _news) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared {
            queue,
            limits: Limits { depth: 10 },
            session: session.id.clone(),
            clock: Clock::system(0),
            ended,
            news,
            unfinished: AtomicUsize::new(0),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let presented = Presented::load(&config).unwrap();
        let serving =
            tokio::spawn(async move { serve(listener, presented, &config, shared).await });

        let silent = TcpStream::connect(address).await.unwrap();
        for _ in 0..3 {
            let answer = timeout(Duration::from_secs(30), ask(address))
                .await
                .unwrap();
            assert!(answer.unwrap().contains("invalid request"));
        }
        assert_eq!(
            timeout(Duration::from_secs(30), ask(address))
                .await
                .unwrap(),
            None
        );
        end.send(true).unwrap();
        drop(silent);
        timeout(Duration::from_secs(60), serving)
            .await
            .unwrap()
            .unwrap();
    }

    #[test]
    fn a_rotated_certificate_is_taken_up_when_it_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        let config = configured(dir.path());
        new_ca(&config);
        let mut presented = Presented::load(&config).unwrap();
        let first = presented.certificate.clone();
        presented.refresh();
        assert_eq!(presented.certificate, first);
        let key = std::fs::read(&config.key).unwrap();
        new_certificate(&config);
        let new_key = std::fs::read(&config.key).unwrap();
        std::fs::write(&config.key, key).unwrap();
        presented.refresh();
        assert_eq!(
            presented.certificate, first,
            "key and certificate do not fit yet"
        );
        std::fs::write(&config.key, new_key).unwrap();
        presented.refresh();
        assert_ne!(presented.certificate, first);
        assert_eq!(
            presented.setup.server_cert,
            types::sha256(&[&presented.certificate.der])
        );
    }

    #[test]
    fn one_source_cannot_take_every_place_and_gives_its_own_back() {
        let guests = Arc::new(Mutex::new(Guests {
            limiter: RateLimiter::new(None, None),
            started: Instant::now(),
            present: HashMap::new(),
        }));
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let (one, other) = (IpAddr::from([192, 0, 2, 1]), IpAddr::from([192, 0, 2, 2]));
        let seats: Vec<Seat> = (0..MAX_PER_SOURCE)
            .map(|_| take_seat(&guests, &places, one).unwrap())
            .collect();
        assert!(take_seat(&guests, &places, one).is_none());
        assert!(take_seat(&guests, &places, other).is_some());
        drop(seats);
        assert!(lock(&guests).present.is_empty());
        assert!(take_seat(&guests, &places, one).is_some());
    }
}
