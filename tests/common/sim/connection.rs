//! Connections of a simulated agent: one request each, an answer in HTTP/1.0, a close without close_notify (spec/agent.md 7, 8).

use std::io;
use std::net::{IpAddr, TcpListener};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustls::ServerConfig;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use x509_parser::parse_x509_certificate;

use super::certificates::House;
use super::serials::two_digit_hex;
use super::state::{Answer, Request, State};

/// Longest that one connection may take; a test that needs more has hung.
const PATIENCE: Duration = Duration::from_secs(60);
const MAX_HEADERS: usize = 32;
const MAX_BODY: usize = 1_048_576;

/// Accepts until it is aborted; connections that are open then go on.
pub async fn accept(
    listener: TcpListener,
    config: Arc<ServerConfig>,
    state: Arc<Mutex<State>>,
    house: Arc<House>,
) {
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    loop {
        let Ok((socket, from)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        let (config, state, house) = (config.clone(), state.clone(), house.clone());
        tokio::spawn(async move {
            // Whoever hangs up or says nothing sensible has none to tell.
            let _ =
                tokio::time::timeout(PATIENCE, serve(socket, from.ip(), config, &state, &house))
                    .await;
        });
    }
}

async fn serve(
    socket: TcpStream,
    from: IpAddr,
    config: Arc<ServerConfig>,
    state: &Mutex<State>,
    house: &House,
) -> io::Result<()> {
    socket.set_nodelay(true)?;
    let mut stream = TlsAcceptor::from(config).accept(socket).await?;
    if !state.lock().unwrap().admit(from, Instant::now()) {
        return Ok(());
    }
    let serial = peer_serial(&stream);
    let reply = match read(&mut stream).await? {
        Err(refusal) => Some(refusal),
        Ok((method, path, body)) => {
            let mut state = state.lock().unwrap();
            let answer = state.answer(house, &serial, &method, &path, &body);
            let losing = state.losing.iter().position(|p| *p == path);
            if let Some(at) = losing {
                state.losing.remove(at);
            }
            let text = two_digit_hex(&serial);
            state.requests.push(Request {
                serial: text.trim_start_matches('0').to_owned(),
                method,
                path,
                body: serde_json::from_slice(&body).unwrap_or(Value::Null),
                status: answer.as_ref().map_or(0, |(status, _)| *status),
                lost: losing.is_some(),
            });
            answer.filter(|_| losing.is_none())
        }
    };
    write(&mut stream, reply).await
    // The socket goes without close_notify.
}

/// Empty without a certificate.
fn peer_serial(stream: &TlsStream<TcpStream>) -> Vec<u8> {
    let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
    chain.first().map_or_else(Vec::new, |der| {
        let (_, certificate) = parse_x509_certificate(der).unwrap();
        certificate.raw_serial().to_vec()
    })
}

type Parts = (String, String, Vec<u8>);

/// Method, path and body, or the refusal.
async fn read(stream: &mut TlsStream<TcpStream>) -> io::Result<Result<Parts, (u16, Value)>> {
    let refusal = |status, text: &str| Ok(Err((status, json!({"error": text}))));
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(at) = bytes.windows(4).position(|w| w == b"\r\n\r\n") {
            break at;
        }
        if stream.read_buf(&mut bytes).await? == 0 {
            return refusal(400, "empty request");
        }
    };
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let mut lines = head.split("\r\n");
    let mut words = lines.next().unwrap_or_default().split_whitespace();
    let (method, path) = (words.next(), words.next());
    let headers: Vec<(&str, &str)> = lines.filter_map(|l| l.split_once(':')).collect();
    if headers.len() > MAX_HEADERS {
        return refusal(431, "too many headers");
    }
    let of_length = headers
        .iter()
        .rev()
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    let length: usize = of_length.map_or(0, |(_, value)| value.trim().parse().unwrap_or(0));
    if length > MAX_BODY {
        return refusal(413, "request too large");
    }
    let mut body = bytes.split_off(end + 4);
    while body.len() < length {
        // A short body is taken as it is.
        if stream.read_buf(&mut body).await? == 0 {
            break;
        }
    }
    body.truncate(length);
    let own = |word: Option<&str>| word.unwrap_or_default().to_owned();
    Ok(Ok((own(method), own(path), body)))
}

async fn write(stream: &mut TlsStream<TcpStream>, reply: Answer) -> io::Result<()> {
    let Some((status, body)) = reply else {
        return Ok(());
    };
    let phrase = match status {
        200 => "OK",
        202 => "Accepted",
        400 => "Bad Request",
        403 => "Forbidden",
        404 => "Not Found",
        409 => "Conflict",
        413 => "Content Too Large",
        _ => "Request Header Fields Too Large",
    };
    let body = body.to_string();
    let text = format!(
        "HTTP/1.0 {status} {phrase}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(text.as_bytes()).await?;
    stream.flush().await
}
