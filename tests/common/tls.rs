//! A blocking TLS client that sends whatever bytes a test wants and shows what comes back. It verifies nothing: it plays the stranger.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ClientConnection, ResolvesClientCert};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::sign::CertifiedKey;
use rustls::{
    ClientConfig, DigitallySignedStruct, SignatureScheme, StreamOwned, SupportedProtocolVersion,
};
use serde_json::Value;

use super::PATIENCE;
use super::openssl::Leaf;

pub const TLS12: &SupportedProtocolVersion = &rustls::version::TLS12;
pub const TLS13: &SupportedProtocolVersion = &rustls::version::TLS13;

/// An HTTP answer.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    /// Status line and headers as sent, without the empty line.
    pub head: String,
    pub body: Vec<u8>,
}

impl Reply {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|e| panic!("no JSON ({e}): {:?}", String::from_utf8_lossy(&self.body)))
    }

    pub fn header(&self, name: &str) -> Option<String> {
        self.head.lines().skip(1).find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name)
                .then(|| value.trim().to_owned())
        })
    }
}

/// A connection after its handshake (under TLS 1.3 the server may still refuse the certificate: the first read tells).
pub struct Client {
    stream: StreamOwned<ClientConnection, TcpStream>,
}

impl Client {
    /// Connects and hand-shakes, with or without a client certificate.
    ///
    /// # Errors
    /// Whatever went wrong, as an IO error; an alert of the server is one of kind `InvalidData`.
    pub fn connect(
        address: SocketAddr,
        identity: Option<&Leaf>,
        version: &'static SupportedProtocolVersion,
    ) -> io::Result<Self> {
        Self::over(
            TcpStream::connect_timeout(&address, PATIENCE)?,
            identity,
            version,
        )
    }

    /// The same over a TCP connection that exists.
    ///
    /// # Errors
    /// As [`Client::connect`].
    pub fn over(
        tcp: TcpStream,
        identity: Option<&Leaf>,
        version: &'static SupportedProtocolVersion,
    ) -> io::Result<Self> {
        Self::offering(tcp, identity, version, &[])
    }

    /// The same, offering protocols by ALPN.
    ///
    /// # Errors
    /// As [`Client::connect`].
    pub fn offering(
        tcp: TcpStream,
        identity: Option<&Leaf>,
        version: &'static SupportedProtocolVersion,
        protocols: &[&[u8]],
    ) -> io::Result<Self> {
        tcp.set_read_timeout(Some(PATIENCE))?;
        tcp.set_write_timeout(Some(PATIENCE))?;
        tcp.set_nodelay(true)?;
        let provider = Arc::new(ring::default_provider());
        let resolver = Resolver(identity.map(|leaf| Arc::new(certified(leaf))));
        let mut config = ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[version])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AcceptAny(provider)))
            .with_client_cert_resolver(Arc::new(resolver));
        config.enable_sni = false;
        config.alpn_protocols = protocols.iter().map(|p| p.to_vec()).collect();
        let connection =
            ClientConnection::new(Arc::new(config), ServerName::try_from("agent").unwrap())
                .unwrap();
        let mut stream = StreamOwned::new(connection, tcp);
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock)?;
        }
        Ok(Self { stream })
    }

    /// The protocol that the server has chosen.
    pub fn protocol(&self) -> Option<Vec<u8>> {
        self.stream.conn.alpn_protocol().map(<[u8]>::to_vec)
    }

    /// Reads exactly so many bytes.
    ///
    /// # Errors
    /// The server closed before, or fell silent.
    pub fn read_exact(&mut self, bytes: &mut [u8]) -> io::Result<()> {
        self.stream.read_exact(bytes)
    }

    /// Certificate of the server.
    pub fn peer_certificate(&self) -> Vec<u8> {
        self.stream.conn.peer_certificates().unwrap()[0].to_vec()
    }

    /// Sends bytes and flushes them as a record of their own.
    ///
    /// # Errors
    /// The server closed.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.stream.write_all(bytes.as_ref())?;
        self.stream.flush()
    }

    /// Says that nothing more will be sent; answers can still be read.
    ///
    /// # Errors
    /// The server closed.
    pub fn finish(&mut self) -> io::Result<()> {
        self.stream.conn.send_close_notify();
        self.stream.flush()?;
        self.stream.sock.shutdown(std::net::Shutdown::Write)
    }

    /// Reads until the server closes; a close without close_notify counts as a close.
    ///
    /// # Errors
    /// An alert, a reset, or silence beyond the patience of the tests.
    pub fn read_to_end(&mut self) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let mut buffer = [0; 16_384];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => return Ok(bytes),
                Ok(n) => bytes.extend_from_slice(&buffer[..n]),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(bytes),
                // The server closes while our unread request bytes are still under way: what it said before counts.
                Err(e) if e.kind() == io::ErrorKind::ConnectionReset && !bytes.is_empty() => {
                    return Ok(bytes);
                }
                Err(e) => return Err(e),
            }
        }
    }

    /// Reads one answer: head, then exactly `Content-Length` bytes. The connection may stay open.
    ///
    /// # Errors
    /// The server closed, sent an alert, or fell silent before the answer was complete.
    pub fn reply(&mut self) -> io::Result<Reply> {
        let mut bytes = Vec::new();
        let mut buffer = [0; 16_384];
        let mut wanted = None;
        loop {
            if wanted.is_none()
                && let Some(end) = find(&bytes, b"\r\n\r\n")
            {
                let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
                let reply = Reply {
                    status: head
                        .split(' ')
                        .nth(1)
                        .and_then(|s| s.parse().ok())
                        .unwrap_or(0),
                    head,
                    body: Vec::new(),
                };
                let length: usize = reply
                    .header("content-length")
                    .and_then(|l| l.parse().ok())
                    .unwrap_or(0);
                wanted = Some((reply, end + 4, length));
            }
            if let Some((reply, start, length)) = &mut wanted
                && bytes.len() >= *start + *length
            {
                reply.body = bytes[*start..*start + *length].to_vec();
                return Ok(wanted.take().unwrap().0);
            }
            match self.stream.read(&mut buffer) {
                Ok(0) => {
                    return Err(io::Error::new(
                        io::ErrorKind::UnexpectedEof,
                        format!("closed after {} bytes", bytes.len()),
                    ));
                }
                Ok(n) => bytes.extend_from_slice(&buffer[..n]),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }

    /// Waits until the server closes the connection and says how long that took.
    pub fn wait_for_close(&mut self) -> Duration {
        let start = Instant::now();
        let mut buffer = [0; 4096];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(n) if n > 0 => {}
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e)
                    if matches!(
                        e.kind(),
                        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
                    ) =>
                {
                    panic!("the server never closed")
                }
                _ => return start.elapsed(),
            }
        }
    }

    /// Sends a complete request and reads the answer.
    ///
    /// # Errors
    /// As [`Client::reply`].
    pub fn request(&mut self, method: &str, path: &str, body: &[u8]) -> io::Result<Reply> {
        let mut request = format!("{method} {path} HTTP/1.1\r\nHost: agent\r\n");
        if !body.is_empty() {
            request.push_str(&format!(
                "Content-Type: application/json\r\nContent-Length: {}\r\n",
                body.len()
            ));
        }
        request.push_str("\r\n");
        let mut bytes = request.into_bytes();
        bytes.extend_from_slice(body);
        // The server may answer and close before it has read everything; the answer tells why.
        let sent = self.send(&bytes);
        match self.reply() {
            Ok(reply) => Ok(reply),
            Err(e) => Err(sent.err().unwrap_or(e)),
        }
    }
}

/// One request on a connection of its own.
///
/// # Errors
/// As [`Client::connect`] and [`Client::reply`].
pub fn request(
    address: SocketAddr,
    identity: Option<&Leaf>,
    method: &str,
    path: &str,
    body: &[u8],
) -> io::Result<Reply> {
    Client::connect(address, identity, TLS13)?.request(method, path, body)
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|w| w == needle)
}

/// Key and certificate for a configuration, of whatever version.
pub fn certified(leaf: &Leaf) -> CertifiedKey {
    let cert = CertificateDer::from_pem_slice(leaf.cert_pem().as_bytes()).unwrap();
    let key = PrivateKeyDer::from_pem_slice(leaf.key_pem().as_bytes()).unwrap();
    // Not through `CertifiedKey::from_der`: it refuses certificates of version 1.
    CertifiedKey::new(vec![cert], ring::sign::any_supported_type(&key).unwrap())
}

#[derive(Debug)]
struct Resolver(Option<Arc<CertifiedKey>>);

impl ResolvesClientCert for Resolver {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.0.clone()
    }

    fn has_certs(&self) -> bool {
        self.0.is_some()
    }
}

#[derive(Debug)]
struct AcceptAny(Arc<CryptoProvider>);

impl ServerCertVerifier for AcceptAny {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    // Certificates of version 1 are refused by rustls' own signature check; a stranger does not care.
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
