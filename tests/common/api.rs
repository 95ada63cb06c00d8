//! `ced-api` of a dispatcher host, and a plain HTTP client that sends whatever bytes a test wants.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use super::host::Host;
use super::process::{Daemon, Run};
use super::tls::Reply;
use super::{PATIENCE, wait_until};

/// Where the dispatcher's configuration lies in a host.
pub const CONFIG: &str = "etc/ctrl-exec/ctrl-exec.toml";

/// Sets keys (one `key = value` per line) in `ctrl-exec.toml`; the port is the kernel's choice.
pub fn configure(host: &Host, lines: &str) {
    let before = match host.exists(CONFIG) {
        true => host.read(CONFIG),
        false => String::new(),
    };
    let key = |line: &str| line.split('=').next().unwrap_or_default().trim().to_owned();
    let mut text = format!("api_port = 0\napi_auth_default = \"allow\"\n{lines}\n");
    let set: Vec<String> = text.lines().map(key).collect();
    for line in before.lines() {
        if !set.contains(&key(line)) {
            text.push_str(&format!("{line}\n"));
        }
    }
    host.write(CONFIG, text, 0o640);
}

/// A running `ced-api`; killed when dropped.
#[derive(Debug)]
pub struct ApiServer {
    daemon: Daemon,
    address: SocketAddr,
}

impl ApiServer {
    /// Adds these lines to the configuration, starts the server and waits until it listens.
    #[track_caller]
    pub fn start_with(host: &Host, lines: &str) -> Self {
        configure(host, lines);
        Self::start(host)
    }

    /// Starts the server with the configuration as it is.
    #[track_caller]
    pub fn start(host: &Host) -> Self {
        let mut daemon = host.start("ced-api", &[]);
        daemon.wait_for_text("listening on ");
        // The whole line.
        let line = wait_until("the address", PATIENCE, || {
            let said = daemon.out();
            let at = said.find("listening on ")? + "listening on ".len();
            said[at..].split_once('\n').map(|(line, _)| line.to_owned())
        });
        let text = line.split_whitespace().next().unwrap_or_default();
        let address = text.parse().unwrap_or(SocketAddr::from(([0, 0, 0, 0], 0)));
        Self { daemon, address }
    }

    /// A start that must fail.
    #[track_caller]
    pub fn refuses(host: &Host, lines: &str) -> Run {
        configure(host, lines);
        host.run("ced-api", &[])
    }

    /// Where it listens for TCP; port 0 when it does not.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn pid(&self) -> u32 {
        self.daemon.pid()
    }

    pub fn hup(&self) {
        self.daemon.signal(rustix::process::Signal::HUP);
    }

    pub fn term(&self) {
        self.daemon.signal(rustix::process::Signal::TERM);
    }

    pub fn daemon(&mut self) -> &mut Daemon {
        &mut self.daemon
    }

    /// A plain connection.
    #[track_caller]
    pub fn connect(&self) -> Conn<TcpStream> {
        Conn::new(TcpStream::connect_timeout(&self.address, PATIENCE).expect("connect"))
    }

    /// One request on a connection of its own.
    #[track_caller]
    pub fn get(&self, path: &str) -> Reply {
        let mut conn = self.connect();
        conn.send(get(path)).expect("send");
        conn.reply().expect("an answer")
    }

    /// The same with a JSON body.
    #[track_caller]
    pub fn post(&self, path: &str, body: &[u8]) -> Reply {
        let mut conn = self.connect();
        conn.send(post(path, body)).expect("send");
        conn.reply().expect("an answer")
    }
}

/// A request without a body.
pub fn get(path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nHost: api.test\r\n\r\n").into_bytes()
}

/// A request with a JSON body.
pub fn post(path: &str, body: &[u8]) -> Vec<u8> {
    let mut bytes = format!(
        "POST {path} HTTP/1.1\r\nHost: api.test\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    )
    .into_bytes();
    bytes.extend_from_slice(body);
    bytes
}

/// What both kinds of plain stream can do beside reading and writing.
pub trait Stream: Read + Write {
    fn patience(&self, patience: Duration) -> io::Result<()>;
    fn finish(&self) -> io::Result<()>;
}

impl Stream for TcpStream {
    fn patience(&self, patience: Duration) -> io::Result<()> {
        self.set_nodelay(true)?;
        self.set_write_timeout(Some(patience))?;
        self.set_read_timeout(Some(patience))
    }

    fn finish(&self) -> io::Result<()> {
        self.shutdown(Shutdown::Write)
    }
}

impl Stream for UnixStream {
    fn patience(&self, patience: Duration) -> io::Result<()> {
        self.set_write_timeout(Some(patience))?;
        self.set_read_timeout(Some(patience))
    }

    fn finish(&self) -> io::Result<()> {
        self.shutdown(Shutdown::Write)
    }
}

/// A connection without TLS. Bytes beyond an answer stay for the next one.
#[derive(Debug)]
pub struct Conn<S: Stream> {
    stream: S,
    read: Vec<u8>,
}

impl Conn<UnixStream> {
    #[track_caller]
    pub fn at(path: &Path) -> Self {
        Self::new(UnixStream::connect(path).expect("connect"))
    }
}

impl<S: Stream> Conn<S> {
    pub fn new(stream: S) -> Self {
        stream.patience(PATIENCE).expect("timeouts");
        Self {
            stream,
            read: Vec::new(),
        }
    }

    /// # Errors
    /// The server has closed.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.stream.write_all(bytes.as_ref())
    }

    /// Says that nothing more will be sent; answers can still be read.
    ///
    /// # Errors
    /// The server has closed.
    pub fn finish(&self) -> io::Result<()> {
        self.stream.finish()
    }

    /// Reads more; false: the server has closed.
    fn more(&mut self) -> io::Result<bool> {
        let mut buffer = [0; 16_384];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(n) => {
                    self.read.extend_from_slice(&buffer[..n]);
                    return Ok(n > 0);
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }

    /// The next answer: its head, then exactly `Content-Length` bytes. An interim answer (100) is an answer too.
    ///
    /// # Errors
    /// The server closed or fell silent before it was complete.
    pub fn reply(&mut self) -> io::Result<Reply> {
        loop {
            if let Some((reply, length)) = whole_reply(&self.read) {
                self.read.drain(..length);
                return Ok(reply);
            }
            if !self.more()? {
                let what = format!("closed after {} bytes", self.read.len());
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, what));
            }
        }
    }

    /// Everything until the server closes; a reset counts as a close.
    ///
    /// # Errors
    /// The server fell silent but did not close.
    pub fn read_to_end(&mut self) -> io::Result<Vec<u8>> {
        loop {
            match self.more() {
                Ok(true) => {}
                Ok(false) => return Ok(std::mem::take(&mut self.read)),
                Err(e) if e.kind() == io::ErrorKind::ConnectionReset => {
                    return Ok(std::mem::take(&mut self.read));
                }
                Err(e) => return Err(e),
            }
        }
    }
}

/// The first answer in some bytes and its length there.
fn whole_reply(bytes: &[u8]) -> Option<(Reply, usize)> {
    let end = bytes.windows(4).position(|w| w == b"\r\n\r\n")?;
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let status = head.split(' ').nth(1).and_then(|s| s.parse().ok());
    let mut reply = Reply {
        status: status.unwrap_or(0),
        head,
        body: Vec::new(),
    };
    let length = reply.header("content-length").and_then(|l| l.parse().ok());
    let start = end + 4;
    let whole = start + length.unwrap_or(0);
    reply.body = bytes.get(start..whole)?.to_vec();
    Some((reply, whole))
}
