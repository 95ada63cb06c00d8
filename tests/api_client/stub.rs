//! A server that gives recorded answers, one per connection, and keeps what it was asked.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::Value;

use crate::common::{Host, PATIENCE, Run};

/// What a client has sent.
#[derive(Clone, Debug)]
pub struct Heard {
    /// `POST /run`
    pub what: String,
    /// The header lines, names in lower case.
    pub head: String,
    pub body: Vec<u8>,
}

impl Heard {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("the body is JSON")
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            (key == name).then(|| value.trim())
        })
    }
}

/// One answer.
#[derive(Clone, Debug)]
pub enum Answer {
    /// These bytes, then the end.
    Bytes(Vec<u8>),
    /// These bytes, and nothing more for as long as the client likes.
    Hold(Vec<u8>),
}

/// An answer of the API as the original words it.
pub fn json(status: u16, body: &Value) -> Answer {
    let body = body.to_string();
    Answer::Bytes(
        format!(
            "HTTP/1.0 {status} Whatever\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
        .into_bytes(),
    )
}

/// Bytes as they are.
pub fn raw(text: &str) -> Answer {
    Answer::Bytes(text.as_bytes().to_vec())
}

/// The server. Its thread ends with the test's process.
pub struct Stub {
    pub url: String,
    heard: Arc<Mutex<Vec<Heard>>>,
}

/// Answers in order; the last one again and again.
struct Script {
    answers: Vec<Answer>,
    next: usize,
    heard: Arc<Mutex<Vec<Heard>>>,
}

impl Script {
    fn new(answers: &[Answer]) -> (Self, Arc<Mutex<Vec<Heard>>>) {
        let heard = Arc::new(Mutex::new(Vec::new()));
        let script = Self {
            answers: answers.to_vec(),
            next: 0,
            heard: heard.clone(),
        };
        (script, heard)
    }

    fn serve(&mut self, mut stream: impl Read + Write) {
        let Some(heard) = read_request(&mut stream) else {
            return;
        };
        self.heard.lock().expect("no test dies here").push(heard);
        let answer = self.answers[self.next.min(self.answers.len() - 1)].clone();
        self.next += 1;
        // The client may have enough before the end.
        match answer {
            Answer::Bytes(bytes) => {
                let _ = stream.write_all(&bytes);
                let _ = stream.flush();
            }
            Answer::Hold(bytes) => {
                let _ = stream.write_all(&bytes);
                let _ = stream.flush();
                // Until the client goes.
                let _ = stream.read(&mut [0; 16]);
            }
        }
    }
}

impl Stub {
    pub fn new(answers: &[Answer]) -> Self {
        let (mut script, heard) = Script::new(answers);
        let (listener, url) = listen("http", "127.0.0.1");
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                script.serve(patient(stream));
            }
        });
        Self { url, heard }
    }

    /// Over TLS; the URL names `host`.
    pub fn tls(config: Arc<ServerConfig>, host: &str, answers: &[Answer]) -> Self {
        let (mut script, heard) = Script::new(answers);
        let (listener, url) = listen("https", host);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let connection =
                    ServerConnection::new(config.clone()).expect("the configuration is complete");
                let mut stream = StreamOwned::new(connection, patient(stream));
                script.serve(&mut stream);
                stream.conn.send_close_notify();
                let _ = stream.flush();
            }
        });
        Self { url, heard }
    }

    /// On a Unix socket.
    pub fn unix(path: &Path, answers: &[Answer]) -> Self {
        let (mut script, heard) = Script::new(answers);
        let listener = UnixListener::bind(path).expect("the socket is ours");
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                script.serve(stream);
            }
        });
        Self {
            url: format!("unix:{}", path.display()),
            heard,
        }
    }

    pub fn heard(&self) -> Vec<Heard> {
        self.heard.lock().expect("no test dies here").clone()
    }

    /// What was asked, when it was one thing only.
    #[track_caller]
    pub fn only(&self) -> Heard {
        let heard = self.heard();
        assert_eq!(heard.len(), 1, "{heard:?}");
        heard[0].clone()
    }

    /// `ced api` with this server.
    #[track_caller]
    pub fn api(&self, words: &[&str]) -> Run {
        api(&Host::new("client.test"), &self.url, words)
    }
}

/// `ced api` of a host with any URL.
#[track_caller]
pub fn api(host: &Host, url: &str, words: &[&str]) -> Run {
    host.ced(&[&["api", "--url", url], words].concat())
}

fn listen(scheme: &str, host: &str) -> (TcpListener, String) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("loopback has free ports");
    let port = listener.local_addr().expect("it is bound").port();
    (listener, format!("{scheme}://{host}:{port}"))
}

fn patient(stream: TcpStream) -> TcpStream {
    stream
        .set_read_timeout(Some(PATIENCE + Duration::from_secs(40)))
        .expect("a socket takes a timeout");
    stream
}

/// Head and body by `Content-Length`; `None` when the client went away before.
fn read_request(stream: &mut impl Read) -> Option<Heard> {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        if let Some(end) = bytes.windows(4).position(|w| w == b"\r\n\r\n") {
            let whole = String::from_utf8_lossy(&bytes[..end]).into_owned();
            let what = whole.lines().next()?.rsplit_once(' ')?.0.to_owned();
            let mut heard = Heard {
                what,
                head: String::new(),
                body: bytes[end + 4..].to_vec(),
            };
            // Names in lower case, values as they came.
            for line in whole.lines().skip(1) {
                let (name, value) = line.split_once(':')?;
                heard.head.push_str(&name.to_ascii_lowercase());
                heard.head.push(':');
                heard.head.push_str(value);
                heard.head.push('\n');
            }
            let length = heard.header("content-length");
            let length = length.map_or(Some(0), |l| l.parse::<usize>().ok())?;
            while heard.body.len() < length {
                match stream.read(&mut buffer) {
                    Ok(n) if n > 0 => heard.body.extend_from_slice(&buffer[..n]),
                    Err(e) if e.kind() == ErrorKind::Interrupted => {}
                    _ => return None,
                }
            }
            return Some(heard);
        }
        match stream.read(&mut buffer) {
            Ok(n) if n > 0 => bytes.extend_from_slice(&buffer[..n]),
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            _ => return None,
        }
    }
}
