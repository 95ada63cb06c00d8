//! An HTTP client for one server: plain, over TLS, or over a Unix socket. It never follows a redirect, and every wait of it has a deadline.

mod endpoint;
mod error;
pub(crate) mod transport;

use std::sync::Arc;
use std::time::{Duration, Instant};

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{CONTENT_TYPE, HeaderValue, LOCATION};
use hyper::{HeaderMap, Method, Request};
use rustls::pki_types::ServerName;
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;

use crate::core::tls;
use crate::core::types::Secret;

use crate::core::stream::BoxedStream;
pub use endpoint::{Endpoint, EndpointError};
pub use error::{Fault, HttpError};

/// Name look-up, connecting and the handshake together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// One server, and how patient we are with it.
#[derive(Clone)]
pub struct HttpClient {
    endpoint: Endpoint,
    tls: Option<Arc<rustls::ClientConfig>>,
    silence: Duration,
}

/// A whole answer, of any status.
#[derive(Clone, Debug)]
pub struct Reply {
    pub status: u16,
    /// Media type in lower case without its parameters; empty when there is none.
    pub content_type: String,
    /// Where the server would rather have us go.
    pub location: Option<String>,
    pub body: Vec<u8>,
}

impl HttpClient {
    /// `tls` is needed for an `https://` endpoint and used for no other. `silence` is the longest time without a byte of the server.
    pub fn new(
        endpoint: Endpoint,
        tls: Option<Arc<rustls::ClientConfig>>,
        silence: Duration,
    ) -> Self {
        Self {
            endpoint,
            tls,
            silence,
        }
    }

    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Sends one request on a connection of its own and reads the whole answer. `body` is sent as JSON; `None` sends none.
    ///
    /// # Errors
    /// There is no whole answer: see [`Fault`]. A status that says no is an answer.
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        bearer: Option<&Secret<String>>,
        body: Option<Vec<u8>>,
    ) -> Result<Reply, HttpError> {
        self.sent(method, path, bearer, body)
            .await
            .map_err(|fault| HttpError {
                url: self.endpoint.to_string(),
                fault,
            })
    }

    async fn sent(
        &self,
        method: Method,
        path: &str,
        bearer: Option<&Secret<String>>,
        body: Option<Vec<u8>>,
    ) -> Result<Reply, Fault> {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header("Host", self.endpoint.authority())
            .header("Connection", "close")
            .header("Accept", "application/json")
            .header(
                "User-Agent",
                concat!("ctrl-exec/", env!("CARGO_PKG_VERSION")),
            );
        if let Some(token) = bearer {
            let mut value = HeaderValue::try_from(format!("Bearer {}", token.expose()))
                .map_err(|_| Fault::Token)?;
            value.set_sensitive(true);
            request = request.header("Authorization", value);
        }
        if body.is_some() {
            request = request.header("Content-Type", "application/json");
        }
        let request = request
            .body(Full::new(Bytes::from(body.unwrap_or_default())))
            .map_err(|e| Fault::Lost(e.to_string()))?;
        let stream = tokio::time::timeout(CONNECT_TIMEOUT, self.connect())
            .await
            .map_err(|_| Fault::ConnectTimeout(CONNECT_TIMEOUT))??;
        let raw = transport::round_trip(stream, request, self.silence).await?;
        Ok(Reply {
            status: raw.status.as_u16(),
            content_type: media_type(&raw.headers),
            location: header(&raw.headers, LOCATION.as_str()).map(str::to_owned),
            body: raw.body,
        })
    }

    async fn connect(&self) -> Result<BoxedStream, Fault> {
        match &self.endpoint {
            Endpoint::Unix(path) => match UnixStream::connect(path).await {
                Ok(stream) => Ok(Box::new(stream)),
                Err(error) => Err(Fault::Socket(error.kind(), error.to_string())),
            },
            Endpoint::Http { host, port } => Ok(Box::new(tcp(host, *port).await?)),
            Endpoint::Https { host, port } => {
                let config = self.tls.clone().ok_or_else(|| {
                    Fault::Lost("there is no TLS configuration for it".to_owned())
                })?;
                let name = ServerName::try_from(host.clone()).map_err(|_| Fault::NoTlsName)?;
                let stream = tcp(host, *port).await?;
                let stream = TlsConnector::from(config)
                    .connect(name, stream)
                    .await
                    .map_err(|e| Fault::Tls(tls::classify(&e)))?;
                Ok(Box::new(stream))
            }
        }
    }
}

/// The first address of the host that takes the connection. A silent one among several has its share of the time only.
async fn tcp(host: &str, port: u16) -> Result<TcpStream, Fault> {
    let end = Instant::now() + CONNECT_TIMEOUT;
    let addresses: Vec<_> = tokio::net::lookup_host((host, port))
        .await
        .map_err(|_| Fault::Unresolved)?
        .collect();
    let mut fault = Fault::Unresolved;
    for (at, address) in addresses.iter().enumerate() {
        let others = u32::try_from(addresses.len() - at).unwrap_or(1);
        let share = end.saturating_duration_since(Instant::now()) / others;
        match tokio::time::timeout(share, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => {
                let _ = stream.set_nodelay(true);
                return Ok(stream);
            }
            Ok(Err(error)) => fault = Fault::of_connect(&error),
            Err(_) => fault = Fault::ConnectTimeout(CONNECT_TIMEOUT),
        }
    }
    Err(fault)
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

fn media_type(headers: &HeaderMap) -> String {
    let whole = header(headers, CONTENT_TYPE.as_str()).unwrap_or_default();
    let kind = whole.split(';').next().unwrap_or_default();
    kind.trim().to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_media_type_is_read_without_its_parameters() {
        let typed = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(CONTENT_TYPE, HeaderValue::from_str(text).unwrap());
            media_type(&headers)
        };
        assert_eq!(typed("application/json"), "application/json");
        assert_eq!(
            typed("Application/JSON ; charset=utf-8"),
            "application/json"
        );
        assert_eq!(typed("text/html"), "text/html");
        assert_eq!(media_type(&HeaderMap::new()), "");
    }
}
