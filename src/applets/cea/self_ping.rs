//! `cea self-ping`: a request over loopback with the agent's own certificate (spec/agent.md 2.6).

use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::applets::cea::revocations::Revocations;
use crate::applets::cea::{Files, checks, material, timekeeping};
use crate::applets::{AppError, Context, Exit};
use crate::core::config::{self, AgentConfig};
use crate::core::task;
use crate::core::tls;
use crate::core::types::ReqId;
use crate::core::wire::errors;
use crate::say;

/// Longest time for connecting, for the handshake and for the answer, each.
const PATIENCE: Duration = Duration::from_secs(5);
/// Longest answer that is read.
const MAX_ANSWER: u64 = 64 * 1024;

pub(super) fn self_ping(context: &Context, files: &Files) -> Result<Exit, AppError> {
    let loaded = config::load_agent(&context.paths, files.config.as_deref())
        .map_err(|e| AppError::failed(e.to_string()))?;
    let config = loaded.value;
    checks::pairing(&config)
        .map_err(|reason| AppError::failed(format!("Not paired. Reason: {reason}")))?;
    if config.port == 0 {
        return Err(AppError::failed(format!(
            "self-ping: '{}' says port 0, so the running agent's port is not known",
            config.source.display()
        )));
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| AppError::failed(format!("cannot start the runtime: {e}")))?;
    let answer = task::block_on(&runtime, ask(context, &config))?;
    match classify(&answer) {
        Some(text) => {
            say!("{text}");
            Ok(Exit::Success)
        }
        None => Err(AppError::failed(format!(
            "Self-ping: unexpected answer: {}",
            answer.chars().take(300).collect::<String>().escape_debug()
        ))),
    }
}

async fn ask(context: &Context, config: &AgentConfig) -> Result<String, AppError> {
    let clock = timekeeping::clock(context, config);
    // What the running agent uses, which may still be staged.
    let revoked = Revocations::load(config).unwrap_or_default();
    let own = material::load(config, |serial| revoked.contains(serial), &clock)
        .map_err(AppError::failed)?;
    let client = tls::client_config(&own.identity, &own.trusted.cas, clock)
        .map_err(|e| AppError::failed(e.to_string()))?;

    let address = SocketAddr::new(own_address(config.bind), config.port);
    let stream = in_time(TcpStream::connect(address)).await.map_err(|e| {
        AppError::failed(format!(
            "Self-ping: the agent is not listening on {address}: {e}"
        ))
    })?;
    let name = rustls::pki_types::ServerName::IpAddress(address.ip().into());
    let handshake = TlsConnector::from(client).connect(name, stream);
    let mut stream = in_time(handshake).await.map_err(|e| {
        AppError::failed(format!(
            "Self-ping: TLS handshake with {address} failed: {e}"
        ))
    })?;

    let reqid = ReqId::generate()
        .map_err(|_| AppError::failed("the system gives no random bytes for a request id"))?;
    let body = format!("{{\"reqid\":\"{}\"}}", &reqid.as_str()[..8]);
    let request = format!(
        "POST /ping HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let exchange = async {
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        // With TLS 1.3 a refused certificate shows only here.
        match (&mut stream)
            .take(MAX_ANSWER)
            .read_to_end(&mut answer)
            .await
        {
            Err(error) if answer.is_empty() => Err(error),
            _ => Ok(answer),
        }
    };
    let answer = in_time(exchange)
        .await
        .map_err(|e| AppError::failed(format!("Self-ping: no answer from {address}: {e}")))?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

async fn in_time<T>(future: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    timeout(PATIENCE, future)
        .await
        .unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut)))
}

/// Where the running agent is reached from here.
fn own_address(bind: Option<IpAddr>) -> IpAddr {
    match bind {
        None => Ipv4Addr::LOCALHOST.into(),
        Some(IpAddr::V4(all)) if all.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        Some(IpAddr::V6(all)) if all.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        Some(address) => address,
    }
}

/// What a raw answer means; `None` when it is not one of the two good ones.
fn classify(answer: &str) -> Option<&'static str> {
    let squeezed: String = answer.chars().filter(|c| !c.is_whitespace()).collect();
    if squeezed.contains("\"status\":\"ok\"") {
        Some("Self-ping OK: the agent answers.")
    } else if answer.contains(errors::SERIAL_MISMATCH) || answer.contains("serial-reject") {
        Some(
            "Self-ping OK: the agent answers; it refused its own certificate, as it should (only dispatchers are trusted).",
        )
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_told_apart() {
        assert!(classify("HTTP/1.0 200 OK\r\n\r\n{\"status\" : \"ok\"}").is_some());
        assert!(
            classify("HTTP/1.0 403 Forbidden\r\n\r\n{\"error\":\"serial mismatch\"}").is_some()
        );
        for bad in [
            "",
            "HTTP/1.0 403 Forbidden\r\n\r\n{\"error\":\"certificate revoked\"}",
            "\0\0",
        ] {
            assert_eq!(classify(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_bound_agent_is_asked_where_it_is_bound() {
        for (bind, expected) in [
            (None, "127.0.0.1"),
            (Some("0.0.0.0"), "127.0.0.1"),
            (Some("::"), "::1"),
            (Some("192.0.2.7"), "192.0.2.7"),
        ] {
            let bind = bind.map(|b| b.parse().unwrap());
            assert_eq!(own_address(bind), expected.parse::<IpAddr>().unwrap());
        }
    }
}
