//! A client that keeps one server busy: blocking rustls with the fleet's own keys.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustls::client::Resumption;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, StreamOwned};

use crate::api::client::read;
use crate::common::{PATIENCE, Paired};
use crate::precise;

/// PEM files of one side.
pub struct Files {
    pub cert: String,
    pub key: String,
    pub ca: String,
}

impl Files {
    pub fn chain(&self) -> Vec<CertificateDer<'static>> {
        vec![CertificateDer::from_pem_file(&self.cert).unwrap()]
    }

    pub fn private_key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::from_pem_file(&self.key).unwrap()
    }

    pub fn roots(&self) -> Arc<RootCertStore> {
        let mut roots = RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_file(&self.ca).unwrap())
            .unwrap();
        Arc::new(roots)
    }

    /// TLS 1.3 only, certificates of both sides, no resumption: every connection is a whole handshake.
    pub fn client(&self) -> Arc<ClientConfig> {
        let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(self.roots())
            .with_client_auth_cert(self.chain(), self.private_key())
            .unwrap();
        config.resumption = Resumption::disabled();
        Arc::new(config)
    }

    pub fn server(&self) -> Arc<ServerConfig> {
        let provider = Arc::new(ring::default_provider());
        let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(
            self.roots(),
            provider.clone(),
        )
        .build()
        .unwrap();
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_client_cert_verifier(verifier)
            .with_single_cert(self.chain(), self.private_key())
            .unwrap();
        config.send_tls13_tickets = 0;
        Arc::new(config)
    }
}

/// The dispatcher's side of a fleet, ready to connect.
#[derive(Clone)]
pub struct Keys {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
}

impl Keys {
    pub fn of(fleet: &Paired) -> Self {
        let leaf = fleet.dispatcher_leaf();
        let files = Files {
            cert: leaf.cert.display().to_string(),
            key: leaf.key.display().to_string(),
            ca: fleet
                .dispatcher
                .path("etc/ctrl-exec/ca.crt")
                .display()
                .to_string(),
        };
        Self::new(&files, fleet.agents[0].name())
    }

    pub fn new(files: &Files, name: &str) -> Self {
        Self {
            config: files.client(),
            name: ServerName::try_from(name.to_owned()).unwrap(),
        }
    }
}

/// One connection.
pub struct Session(StreamOwned<ClientConnection, TcpStream>);

impl Session {
    pub fn connect(keys: &Keys, address: SocketAddr) -> Self {
        let socket = TcpStream::connect(address).unwrap();
        socket.set_nodelay(true).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let connection = ClientConnection::new(keys.config.clone(), keys.name.clone()).unwrap();
        Self(StreamOwned::new(connection, socket))
    }

    /// What the reference server says when the handshake is over.
    pub fn read_byte(mut self) {
        self.0.read_exact(&mut [0]).unwrap();
    }

    /// One request, then the end.
    pub fn ping(mut self) {
        self.request("Connection: close\r\n");
    }

    /// One request on a connection that stays.
    pub fn ping_again(&mut self) {
        self.request("");
    }

    fn request(&mut self, header: &str) {
        let body = "{\"reqid\":\"0123456789abcdef\"}";
        let request = format!(
            "POST /ping HTTP/1.1\r\nHost: a\r\n{header}Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        self.0.write_all(request.as_bytes()).unwrap();
        let mut answer = Vec::new();
        let mut buffer = [0; 2048];
        loop {
            let n = read(&mut self.0, &mut buffer);
            answer.extend_from_slice(&buffer[..n]);
            // The body is one object of known fields that ends the answer.
            if answer.ends_with(b"}") {
                assert!(
                    answer.starts_with(b"HTTP/1.1 200"),
                    "{}",
                    String::from_utf8_lossy(&answer)
                );
                return;
            }
            assert!(n > 0, "closed after {}", String::from_utf8_lossy(&answer));
        }
    }
}

/// How much a server got done.
#[derive(Clone, Copy)]
pub struct Rate {
    pub per_second: f64,
    /// Per second of processor time of the server.
    pub per_cpu_second: f64,
}

/// The median of each figure.
pub fn middle(rates: Vec<Rate>) -> Rate {
    let median = |figure: fn(&Rate) -> f64| {
        let mut figures: Vec<f64> = rates.iter().map(figure).collect();
        figures.sort_by(f64::total_cmp);
        figures[figures.len() / 2]
    };
    Rate {
        per_second: median(|r| r.per_second),
        per_cpu_second: median(|r| r.per_cpu_second),
    }
}

/// Lets `threads` threads do `job` again and again towards the server that is process `server`.
pub fn rate(time: Duration, threads: usize, server: u32, job: impl Fn() + Sync) -> Rate {
    rate_with(time, threads, server, || (), |()| job())
}

/// The same for a job that works on something made once per thread.
pub fn rate_with<T>(
    time: Duration,
    threads: usize,
    server: u32,
    make: impl Fn() -> T + Sync,
    job: impl Fn(&mut T) + Sync,
) -> Rate {
    let (done, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let mut thing = make();
                while !stop.load(Ordering::Relaxed) {
                    job(&mut thing);
                    done.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        // Not counted: the first connections.
        std::thread::sleep(Duration::from_millis(200));
        done.store(0, Ordering::Relaxed);
        let (start, cpu) = (Instant::now(), processor_seconds(server));
        std::thread::sleep(time);
        let counted = precise(done.load(Ordering::Relaxed));
        let (took, cpu) = (start.elapsed(), processor_seconds(server) - cpu);
        stop.store(true, Ordering::Relaxed);
        Rate {
            per_second: counted / took.as_secs_f64(),
            per_cpu_second: counted / cpu,
        }
    })
}

/// Processor time of the main thread of a process so far; the servers have no other that counts. No number where the kernel keeps none.
fn processor_seconds(pid: u32) -> f64 {
    std::fs::read_to_string(format!("/proc/{pid}/schedstat"))
        .ok()
        .and_then(|text| text.split_whitespace().next()?.parse().ok())
        .map_or(f64::NAN, |nanoseconds: u64| precise(nanoseconds) / 1e9)
}
