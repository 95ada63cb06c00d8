//! The API as its clients see it: a running `ced-api`, and a small HTTP/1 client that shows everything that comes over the wire.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::Value;

use super::host::Host;
use super::process::Daemon;
use super::{PATIENCE, wait_until};

/// Lines of `ctrl-exec.toml` that let a test come from one address as often as it likes.
pub const OPEN: &str =
    "api_port = 0\napi_auth_default = \"allow\"\napi_refusal_limit = \"0/60/60\"\n";
/// Where [`hook`] puts the auth hook.
pub const HOOK: &str = "etc/ctrl-exec/api-hook";
/// The same in `ctrl-exec.toml`, with a kernel-chosen port and without a throttle.
pub const HOOKED: &str = "api_port = 0\napi_refusal_limit = \"0/60/60\"\nauth_hook = \"/etc/ctrl-exec/api-hook\"\nauth_hook_timeout = 5\n";
/// Longest silence of the server; the tests' own slow scripts are quicker.
const SILENCE: Duration = Duration::from_secs(40);

/// Writes an auth hook that is a shell script; it is executed anew for every question, so this may be done while the server runs.
pub fn hook(host: &Host, body: &str) {
    // By rename: a hook that is being executed cannot be written to.
    let fresh = host.write("etc/ctrl-exec/.hook", format!("#!/bin/sh\n{body}\n"), 0o755);
    std::fs::rename(fresh, host.path(HOOK)).expect("the hook can be put into place");
}

/// A running `ced-api`; killed when dropped.
#[derive(Debug)]
pub struct ApiServer {
    daemon: Daemon,
    address: SocketAddr,
}

impl ApiServer {
    /// Adds lines to the dispatcher's configuration, TOML or the original's, and starts the API with it.
    #[track_caller]
    pub fn start(host: &Host, lines: &str) -> Self {
        let toml = "etc/ctrl-exec/ctrl-exec.toml";
        if host.exists(toml) {
            configure(host, toml, lines);
        } else {
            // The original's grammar knows no quotes.
            let plain = lines.replace('"', "");
            configure(host, "etc/ctrl-exec/ctrl-exec.conf", &plain);
        }
        Self::run(host, &[])
    }

    /// The same with a configuration of its own, beside that of the command line: several servers of one host.
    #[track_caller]
    pub fn start_beside(host: &Host, name: &str, lines: &str) -> Self {
        let file = format!("etc/ctrl-exec/{name}.toml");
        host.write(&file, host.read("etc/ctrl-exec/ctrl-exec.toml"), 0o640);
        configure(host, &file, lines);
        let path = host.path(&file);
        Self::run(host, &["--config", path.to_str().expect("a plain path")])
    }

    /// Starts the API as it is configured and waits until it listens.
    #[track_caller]
    pub fn run(host: &Host, words: &[&str]) -> Self {
        let mut daemon = host.start("ced-api", words);
        daemon.wait_for_text("listening on ");
        let line = wait_until("the whole line", PATIENCE, || {
            let said = daemon.out();
            let (_, rest) = said.split_once("listening on ")?;
            rest.split_once('\n').map(|(line, _)| line.to_owned())
        });
        let text = line.split_whitespace().next().unwrap_or_default();
        let address = text
            .parse()
            .unwrap_or_else(|e| panic!("'listening on {text}': {e}"));
        Self { daemon, address }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn pid(&self) -> u32 {
        self.daemon.pid()
    }

    pub fn daemon(&mut self) -> &mut Daemon {
        &mut self.daemon
    }

    #[track_caller]
    pub fn get(&self, path: &str) -> Answer {
        self.send(&Request::new("GET", path))
    }

    #[track_caller]
    pub fn get_as(&self, token: &str, path: &str) -> Answer {
        self.send(&Request::new("GET", path).bearer(token))
    }

    #[track_caller]
    pub fn post(&self, path: &str, body: &Value) -> Answer {
        self.send(&Request::new("POST", path).json(body))
    }

    /// One request on a connection of its own.
    #[track_caller]
    pub fn send(&self, request: &Request) -> Answer {
        let mut connection = self.connect();
        connection.send(&request.bytes());
        connection.answer(&request.method)
    }

    #[track_caller]
    pub fn connect(&self) -> Connection {
        let stream = TcpStream::connect(self.address).expect("the API listens");
        stream
            .set_read_timeout(Some(SILENCE))
            .expect("a socket has a deadline");
        let _ = stream.set_nodelay(true);
        Connection {
            stream: BufReader::new(stream),
        }
    }

    /// Open file descriptors.
    pub fn open_files(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.pid()))
            .expect("it runs")
            .count()
    }
}

fn configure(host: &Host, file: &str, lines: &str) {
    let old = host.read(file);
    let ours = |line: &&str| {
        let key = |l: &str| l.split('=').next().unwrap_or_default().trim().to_owned();
        !lines.lines().any(|new| key(new) == key(line))
    };
    // Before the first table, if there is one.
    let kept: Vec<&str> = old.lines().filter(ours).collect();
    host.write(file, format!("{lines}\n{}\n", kept.join("\n")), 0o640);
}

/// A request in the making.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: String,
    pub target: String,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    pub version: &'static str,
}

impl Request {
    pub fn new(method: &str, target: &str) -> Self {
        Self {
            method: method.to_owned(),
            target: target.to_owned(),
            headers: Vec::new(),
            body: Vec::new(),
            version: "HTTP/1.1",
        }
    }

    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    pub fn bearer(self, token: &str) -> Self {
        self.header("Authorization", &format!("Bearer {token}"))
    }

    pub fn json(self, body: &Value) -> Self {
        self.body(body.to_string())
    }

    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    pub fn bytes(&self) -> Vec<u8> {
        let has = |name: &str| {
            self.headers
                .iter()
                .any(|(key, _)| key.eq_ignore_ascii_case(name))
        };
        let mut head = format!("{} {} {}\r\n", self.method, self.target, self.version);
        if !has("host") && self.version != "HTTP/1.0" {
            head.push_str("Host: localhost\r\n");
        }
        for (key, value) in &self.headers {
            head.push_str(&format!("{key}: {value}\r\n"));
        }
        if !self.body.is_empty() && !has("content-length") && !has("transfer-encoding") {
            head.push_str(&format!("Content-Length: {}\r\n", self.body.len()));
        }
        let mut bytes = format!("{head}\r\n").into_bytes();
        bytes.extend_from_slice(&self.body);
        bytes
    }
}

/// An answer as it came.
#[derive(Clone, Debug)]
pub struct Answer {
    pub version: String,
    pub status: u16,
    pub phrase: String,
    /// In the order of the wire, names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(key, _)| key == name);
        found.map(|(_, value)| value.as_str())
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|e| panic!("{} is no JSON ({e}): {:?}", self.status, self.text()))
    }

    /// Fails unless it has this status.
    #[track_caller]
    pub fn expect(self, status: u16) -> Self {
        assert!(
            self.status == status,
            "status {} instead of {status}: {}",
            self.status,
            self.text()
        );
        self
    }

    /// Everything but the date, which moves.
    pub fn without_date(&self) -> (u16, Vec<(String, String)>, Vec<u8>) {
        let headers = self.headers.iter().filter(|(key, _)| key != "date");
        (self.status, headers.cloned().collect(), self.body.clone())
    }
}

/// One connection.
#[derive(Debug)]
pub struct Connection {
    stream: BufReader<TcpStream>,
}

impl Connection {
    /// Sends bytes; a server that has answered and closed already is no failure, for its answer can still be read.
    pub fn send(&mut self, bytes: &[u8]) {
        let _ = self.stream.get_mut().write_all(bytes);
    }

    /// The other direction stays open.
    pub fn finish_sending(&mut self) {
        let _ = self.stream.get_mut().shutdown(Shutdown::Write);
    }

    #[track_caller]
    pub fn answer(&mut self, method: &str) -> Answer {
        self.try_answer(method).expect("an answer")
    }

    /// `None`: the connection ended before anything came.
    #[track_caller]
    pub fn try_answer(&mut self, method: &str) -> Option<Answer> {
        let mut answer = self.head()?;
        let bodiless = method == "HEAD" || matches!(answer.status, 204 | 304);
        if bodiless {
            return Some(answer);
        }
        let chunked = answer.header("transfer-encoding") == Some("chunked");
        let length = answer.header("content-length").map(|text| {
            text.parse::<usize>()
                .unwrap_or_else(|e| panic!("Content-Length {text:?}: {e}"))
        });
        if chunked {
            while let Some(chunk) = self.chunk() {
                answer.body.extend_from_slice(&chunk);
            }
        } else if let Some(length) = length {
            answer.body = vec![0; length];
            self.stream
                .read_exact(&mut answer.body)
                .expect("the whole body");
        } else {
            self.stream
                .read_to_end(&mut answer.body)
                .expect("a body to the end of the connection");
        }
        Some(answer)
    }

    /// Status and headers of the next answer that is not provisional.
    #[track_caller]
    pub fn head(&mut self) -> Option<Answer> {
        loop {
            let line = self.line()?;
            let mut words = line.splitn(3, ' ');
            let mut word = || words.next().unwrap_or_default().to_owned();
            let (version, status, phrase) = (word(), word(), word());
            let mut answer = Answer {
                version,
                status: status
                    .parse()
                    .unwrap_or_else(|e| panic!("status line {line:?}: {e}")),
                phrase,
                headers: Vec::new(),
                body: Vec::new(),
            };
            loop {
                let line = self.line().expect("headers to their end");
                if line.is_empty() {
                    break;
                }
                let (key, value) = line
                    .split_once(':')
                    .unwrap_or_else(|| panic!("header line {line:?}"));
                let value = value.trim().to_owned();
                answer.headers.push((key.to_ascii_lowercase(), value));
            }
            if answer.status >= 200 {
                return Some(answer);
            }
        }
    }

    /// The next piece of a chunked body; `None` at its end.
    #[track_caller]
    pub fn chunk(&mut self) -> Option<Vec<u8>> {
        let line = self.line().expect("a chunk");
        let size = usize::from_str_radix(line.split(';').next().unwrap_or_default(), 16)
            .unwrap_or_else(|e| panic!("chunk {line:?}: {e}"));
        let mut bytes = vec![0; size + 2];
        self.stream.read_exact(&mut bytes).expect("a whole chunk");
        assert!(bytes.ends_with(b"\r\n"), "end of a chunk");
        bytes.truncate(size);
        (size > 0).then_some(bytes)
    }

    fn line(&mut self) -> Option<String> {
        let mut bytes = Vec::new();
        match self.stream.read_until(b'\n', &mut bytes) {
            Ok(0) => None,
            Ok(_) => {
                let text = String::from_utf8(bytes).expect("heads are text");
                Some(text.trim_end_matches(['\r', '\n']).to_owned())
            }
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => None,
            Err(error) => panic!("no answer: {error}"),
        }
    }
}
