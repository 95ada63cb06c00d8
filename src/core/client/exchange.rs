//! One HTTPS exchange with one agent (spec/dispatcher.md 7-9): connect, hand-shake, check who answered, send, read; each with a deadline.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http_body_util::{BodyExt as _, Full};
use hyper::body::{Body as _, Bytes};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use serde_json::{Map, Value};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::core::client::error::{ExchangeError, of_connect};
use crate::core::client::peer;
use crate::core::clock::{self, Clock};
use crate::core::keyring;
use crate::core::pki::{Certificate, PeerIdentity, keys};
use crate::core::registry::Target;
use crate::core::revocation::{Entry, Revocations};
use crate::core::tls;
use crate::core::types::Serial;
use crate::core::wire;

/// An answer that has begun must be complete within this many read timeouts: an agent that sends a byte now and then is not waited for.
const WHOLE_BODY: u32 = 5;

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
        }
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
        }
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
        let serials: Vec<&Serial> = self.presented.iter().map(|p| &p.serial).collect();
        let mut first = None;
        for at in keyring::order(&serials, &target.record) {
            let presented = &self.presented[at];
            let sent = self.once(target, presented, &method, path, body.clone());
            match sent.await {
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
        let sent = self.once(target, presented, &Method::POST, path, Some(body));
        Some(sent.await)
    }

    async fn once(
        &self,
        target: &Target,
        presented: &Presented,
        method: &Method,
        path: &str,
        body: Option<Vec<u8>>,
    ) -> Result<Answer, ExchangeError> {
        let (stream, peer) = self.connect(target, &presented.tls).await?;
        // The answer's headers come when the script has ended, so silence is measured over the whole wait, as in the original.
        let (status, bytes) = self
            .round_trip(target, stream, method.clone(), path, body)
            .await?;
        let body = judge(status, &bytes)?;
        Ok(Answer {
            status: status.as_u16(),
            body,
            peer: Arc::new(peer),
            presented: presented.serial.clone(),
        })
    }

    async fn connect(
        &self,
        target: &Target,
        tls: &Arc<rustls::ClientConfig>,
    ) -> Result<(TlsStream<TcpStream>, Certificate), ExchangeError> {
        let host = target.address.as_str();
        let deadline = Instant::now() + self.connect_timeout;
        let too_late = || ExchangeError::ConnectTimeout {
            host: host.to_owned(),
        };
        let left = || deadline.saturating_duration_since(Instant::now());

        let addresses = tokio::time::timeout(left(), tokio::net::lookup_host((host, target.port)))
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
            match tokio::time::timeout(left(), TcpStream::connect(address)).await {
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
        let stream = tokio::time::timeout(
            left(),
            TlsConnector::from(tls.clone()).connect(name, stream),
        )
        .await
        .map_err(|_| too_late())?
        .map_err(|e| ExchangeError::Tls {
            host: host.to_owned(),
            failure: tls::classify(&e),
        })?;
        let certificate = tls::peer_certificate(stream.get_ref().1)
            .map_err(|e| ExchangeError::WrongPeer(e.to_string()))?;
        let identity = PeerIdentity::from_certificate(&certificate);
        peer::check(&target.record, &identity).map_err(ExchangeError::WrongPeer)?;
        self.revoked
            .check(&target.name, &identity)
            .map_err(ExchangeError::Revoked)?;
        Ok((stream, certificate))
    }

    async fn round_trip(
        &self,
        target: &Target,
        stream: TlsStream<TcpStream>,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
    ) -> Result<(StatusCode, Vec<u8>), ExchangeError> {
        let silent = |_| ExchangeError::ReadTimeout(self.read_timeout);
        let lost = |e: &hyper::Error| of_http(&target.address, e);

        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|e| lost(&e))?;
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header("Host", target.authority())
            .header("Connection", "close")
            .header(
                "User-Agent",
                concat!("ctrl-exec/", env!("CARGO_PKG_VERSION")),
            );
        if body.is_some() {
            request = request.header("Content-Type", "application/json");
        }
        // An agent without a clock of its own takes it from us (spec/swarm.md COM-8).
        request = request.header("Date", clock::http_date(self.clock.now()));
        let request = request
            .body(Full::new(Bytes::from(body.unwrap_or_default())))
            .map_err(|e| ExchangeError::Lost(e.to_string()))?;

        let exchange = async {
            let reply = tokio::time::timeout(self.read_timeout, sender.send_request(request))
                .await
                .map_err(silent)?
                .map_err(|e| lost(&e))?;
            let status = reply.status();
            let mut incoming = reply.into_body();
            if incoming.size_hint().lower() > wire::MAX_REPLY_BODY as u64 {
                return Err(ExchangeError::ReplyTooLarge(wire::MAX_REPLY_BODY));
            }
            let mut bytes = Vec::new();
            let whole = self.read_timeout * WHOLE_BODY;
            let end = Instant::now() + whole;
            loop {
                let left = end.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Err(ExchangeError::ReadTimeout(whole));
                }
                let next = tokio::time::timeout(self.read_timeout.min(left), incoming.frame());
                let Some(frame) = next.await.map_err(silent)? else {
                    break;
                };
                if let Ok(data) = frame.map_err(|e| lost(&e))?.into_data() {
                    if bytes.len() + data.len() > wire::MAX_REPLY_BODY {
                        return Err(ExchangeError::ReplyTooLarge(wire::MAX_REPLY_BODY));
                    }
                    bytes.extend_from_slice(&data);
                }
            }
            Ok((status, bytes))
        };
        let mut connection = std::pin::pin!(connection);
        let mut exchange = std::pin::pin!(exchange);
        let mut driving = true;
        loop {
            tokio::select! {
                result = &mut exchange => return result,
                // The driver ends when the agent closes; what it left in the buffers is still read by the exchange.
                _ = &mut connection, if driving => driving = false,
            }
        }
    }
}

/// An agent that refuses our certificate under TLS 1.3 says so only now, in place of an answer.
fn of_http(host: &str, error: &hyper::Error) -> ExchangeError {
    use std::error::Error as _;
    let mut source = error.source();
    while let Some(cause) = source {
        if let Some(io) = cause.downcast_ref::<std::io::Error>() {
            return match io
                .get_ref()
                .and_then(|inner| inner.downcast_ref::<rustls::Error>())
            {
                Some(failure) => ExchangeError::Tls {
                    host: host.to_owned(),
                    failure: tls::classify(failure),
                },
                None if matches!(
                    io.kind(),
                    std::io::ErrorKind::UnexpectedEof
                        | std::io::ErrorKind::ConnectionReset
                        | std::io::ErrorKind::BrokenPipe
                ) =>
                {
                    ExchangeError::Closed
                }
                None => ExchangeError::Lost(io.to_string()),
            };
        }
        source = cause.source();
    }
    if error.is_incomplete_message() || error.is_canceled() || error.is_closed() {
        ExchangeError::Closed
    } else {
        ExchangeError::Lost(error.to_string())
    }
}

/// Most values in one answer. A parsed value takes more than ten times the memory of its shortest text, so the limit of bytes alone would
/// let one agent take gigabytes; honest answers have few values, some of them long.
const MAX_PARTS: usize = 1_000_000;

/// Values in a JSON text, roughly: what begins or separates them, outside strings.
fn parts(json: &[u8]) -> usize {
    let (mut count, mut in_string, mut escaped) = (0, false, false);
    for byte in json {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'[' | b'{' | b',' if !in_string => count += 1,
            _ => {}
        }
    }
    count
}

/// Decides what an answer means (spec/dispatcher.md 9.1): any 2xx with a JSON object is success.
fn judge(status: StatusCode, bytes: &[u8]) -> Result<Map<String, Value>, ExchangeError> {
    let parsed: Option<Map<String, Value>> = if parts(bytes) > MAX_PARTS {
        None
    } else {
        serde_json::from_slice(bytes).ok()
    };
    if status.is_success() {
        return parsed.ok_or(ExchangeError::InvalidJson);
    }
    let words = parsed
        .as_ref()
        .and_then(|b| b.get("error"))
        .and_then(Value::as_str);
    let line = || match status.canonical_reason() {
        Some(reason) => format!("{} {reason}", status.as_u16()),
        None => status.as_u16().to_string(),
    };
    Err(match status.as_u16() {
        403 => ExchangeError::Forbidden(words.map_or_else(line, str::to_owned)),
        404 => ExchangeError::NotFound {
            words: words.unwrap_or_default().to_owned(),
            no_run: parsed
                .as_ref()
                .is_some_and(|b| b.get("status").and_then(Value::as_str) == Some("unknown")),
        },
        409 => ExchangeError::Busy(words.unwrap_or_default().to_owned()),
        413 => ExchangeError::TooLarge,
        _ => ExchangeError::Status(words.map_or_else(line, |w| format!("{}: {w}", line()))),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_of_too_many_values_is_not_taken_apart() {
        assert_eq!(parts(br#"{"a,[{":"\",[","b":[1,2]}"#), 4);
        let long = format!(r#"{{"stdout":"{}"}}"#, "[,".repeat(MAX_PARTS));
        assert!(judge(StatusCode::OK, long.as_bytes()).is_ok());
        let many = format!(r#"{{"x":[{}0]}}"#, "0,".repeat(MAX_PARTS));
        assert_eq!(
            judge(StatusCode::OK, many.as_bytes()).unwrap_err(),
            ExchangeError::InvalidJson
        );
    }

    #[test]
    fn answers_are_judged_by_status_and_body() {
        assert_eq!(judge(StatusCode::OK, b"{\"exit\":0}").unwrap()["exit"], 0);
        assert_eq!(
            judge(StatusCode::OK, b"[1]").unwrap_err(),
            ExchangeError::InvalidJson
        );
        assert_eq!(
            judge(StatusCode::OK, b"").unwrap_err(),
            ExchangeError::InvalidJson
        );
        assert_eq!(
            judge(StatusCode::FORBIDDEN, b"{\"error\":\"serial mismatch\"}").unwrap_err(),
            ExchangeError::Forbidden("serial mismatch".into())
        );
        assert_eq!(
            judge(StatusCode::FORBIDDEN, b"garbage").unwrap_err(),
            ExchangeError::Forbidden("403 Forbidden".into())
        );
        assert_eq!(
            judge(StatusCode::PAYLOAD_TOO_LARGE, b"").unwrap_err(),
            ExchangeError::TooLarge
        );
        assert_eq!(
            judge(StatusCode::NOT_FOUND, b"{\"error\":\"not found\"}")
                .unwrap_err()
                .to_string(),
            "404 Not Found: not found"
        );
        assert_eq!(
            judge(StatusCode::NOT_FOUND, b"{\"status\":\"unknown\"}").unwrap_err(),
            ExchangeError::NotFound {
                words: String::new(),
                no_run: true
            }
        );
        let busy = judge(
            StatusCode::CONFLICT,
            b"{\"error\":\"script already running\"}",
        )
        .unwrap_err();
        assert_eq!(busy, ExchangeError::Busy("script already running".into()));
        assert_eq!(
            busy.to_string(),
            "409 Conflict: script already running",
            "as other statuses read"
        );
    }
}
