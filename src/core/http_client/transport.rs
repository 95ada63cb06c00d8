//! One request and its answer on a connection that stands: every wait and the answer have their bounds. Shared by everything that calls
//! an HTTP server.

use std::time::{Duration, Instant};

use http_body_util::{BodyExt as _, Full};
use hyper::body::{Body as _, Bytes};
use hyper::{HeaderMap, Request, StatusCode};
use hyper_util::rt::TokioIo;

use crate::core::stream::BoxedStream;
use crate::core::tls::{self, TlsFailure};
use crate::core::wire::MAX_REPLY_BODY;

/// An answer that has begun must be complete within this many times the longest silence: a server that sends a byte now and then is not
/// waited for.
const WHOLE_BODY: u32 = 5;

/// What came back.
#[derive(Debug)]
pub struct RawReply {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
}

/// Why nothing usable came back. The caller knows the sentences.
#[derive(Clone, Debug, PartialEq)]
pub enum TransportError {
    Silence(Duration),
    /// Larger than so many bytes.
    TooLarge(usize),
    /// A server that refuses our certificate under TLS 1.3 says so only in place of an answer.
    Tls(TlsFailure),
    /// Before the answer was complete.
    Closed,
    NotHttp(String),
    Lost(String),
}

/// Sends the request and reads the whole answer, of at most [`MAX_REPLY_BODY`] bytes. `silence` is the longest time without progress.
///
/// # Errors
/// See [`TransportError`].
pub async fn round_trip(
    stream: BoxedStream,
    request: Request<Full<Bytes>>,
    silence: Duration,
) -> Result<RawReply, TransportError> {
    let silent = |_| TransportError::Silence(silence);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|e| of_http(&e))?;
    let exchange = async {
        let reply = tokio::time::timeout(silence, sender.send_request(request))
            .await
            .map_err(silent)?
            .map_err(|e| of_http(&e))?;
        let (head, mut incoming) = reply.into_parts();
        if incoming.size_hint().lower() > MAX_REPLY_BODY as u64 {
            return Err(TransportError::TooLarge(MAX_REPLY_BODY));
        }
        let mut body = Vec::new();
        let whole = silence.saturating_mul(WHOLE_BODY);
        let begun = Instant::now();
        loop {
            let left = whole.saturating_sub(begun.elapsed());
            if left.is_zero() {
                return Err(TransportError::Silence(whole));
            }
            let next = tokio::time::timeout(silence.min(left), incoming.frame());
            let Some(frame) = next.await.map_err(silent)? else {
                break;
            };
            if let Ok(data) = frame.map_err(|e| of_http(&e))?.into_data() {
                if body.len() + data.len() > MAX_REPLY_BODY {
                    return Err(TransportError::TooLarge(MAX_REPLY_BODY));
                }
                body.extend_from_slice(&data);
            }
        }
        Ok(RawReply {
            status: head.status,
            headers: head.headers,
            body,
        })
    };
    let mut connection = std::pin::pin!(connection);
    let mut exchange = std::pin::pin!(exchange);
    let mut driving = true;
    loop {
        tokio::select! {
            result = &mut exchange => return result,
            // The driver ends when the server closes; what it left in the buffers is still read by the exchange.
            _ = &mut connection, if driving => driving = false,
        }
    }
}

/// How a connection broke.
pub fn of_http(error: &hyper::Error) -> TransportError {
    use std::error::Error as _;
    let mut source = error.source();
    while let Some(cause) = source {
        if let Some(io) = cause.downcast_ref::<std::io::Error>() {
            return match io
                .get_ref()
                .and_then(|inner| inner.downcast_ref::<rustls::Error>())
            {
                Some(failure) => TransportError::Tls(tls::classify(failure)),
                None if matches!(
                    io.kind(),
                    std::io::ErrorKind::UnexpectedEof
                        | std::io::ErrorKind::ConnectionReset
                        | std::io::ErrorKind::BrokenPipe
                ) =>
                {
                    TransportError::Closed
                }
                None => TransportError::Lost(io.to_string()),
            };
        }
        source = cause.source();
    }
    if error.is_parse() {
        TransportError::NotHttp(error.to_string())
    } else if error.is_incomplete_message() || error.is_canceled() || error.is_closed() {
        TransportError::Closed
    } else {
        TransportError::Lost(error.to_string())
    }
}
