//! A client of plain HTTP that keeps its connection: blocking, and cheap beside any server.

use std::io::{Read, Write as _};
use std::net::{SocketAddr, TcpStream};

use crate::common::RUN_DEADLINE;

/// One connection.
pub struct Client {
    stream: TcpStream,
    buffer: Box<[u8]>,
}

/// Bytes that are read at once.
const READ: usize = 64 * 1024;

impl Client {
    pub fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(RUN_DEADLINE)).unwrap();
        Self {
            stream,
            buffer: vec![0; READ].into_boxed_slice(),
        }
    }

    pub fn send(&mut self, request: &[u8]) {
        self.stream.write_all(request).unwrap();
    }

    /// Reads an answer, which must be a 200, forgets its body and tells how long that was, and its end.
    pub fn answer(&mut self) -> (usize, String) {
        let mut filled = 0;
        let (begin, length) = loop {
            let n = read(&self.stream, &mut self.buffer[filled..]);
            filled += n;
            let said = &self.buffer[..filled];
            assert!(n > 0, "closed after {}", String::from_utf8_lossy(said));
            if let Some(end) = said.windows(4).position(|w| w == b"\r\n\r\n") {
                break (end + 4, length(&said[..end]));
            }
        };
        let mut left = (begin + length)
            .checked_sub(filled)
            .expect("one answer for each request");
        let mut tail = begin..filled;
        while left > 0 {
            let n = read(&self.stream, &mut self.buffer);
            assert!(n > 0, "closed {left} bytes before the end");
            left -= n;
            tail = 0..n;
        }
        let tail = &self.buffer[tail];
        let tail = &tail[tail.len().saturating_sub(200)..];
        (length, String::from_utf8_lossy(tail).into_owned())
    }
}

/// Reads what is there, or waits for it. Such a wait, which has a deadline, ends early where the machine was stopped for a moment.
pub fn read(mut from: impl Read, into: &mut [u8]) -> usize {
    loop {
        match from.read(into) {
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            read => return read.unwrap(),
        }
    }
}

/// What a good answer announces.
fn length(head: &[u8]) -> usize {
    let head = String::from_utf8_lossy(head);
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    head.lines()
        .find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("content-length")
                .then(|| value.trim().parse().ok())?
        })
        .expect("a length is announced")
}

/// The bytes of a request without a body.
pub fn get(path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n").into_bytes()
}

/// The bytes of a run of one script on one host.
pub fn run(host: &str, script: &str) -> Vec<u8> {
    let body = format!("{{\"hosts\":[\"{host}\"],\"script\":\"{script}\"}}");
    format!(
        "POST /run HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}
