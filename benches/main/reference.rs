//! The least that a remote run can cost: a process that connects by mutual TLS 1.3 with the same keys to a server that starts
//! `/bin/true` by `posix_spawn` and answers one byte. Client and server are this bench program, started anew under a word.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;

use rustls::{ServerConnection, StreamOwned};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::common::{Daemon, Paired, free_port};
use crate::load::{Files, Keys, Session};

const SERVER: &str = "reference-server";
const CLIENT: &str = "reference-client";

pub struct Reference {
    spawning: u16,
    bare: u16,
    client: Vec<String>,
    servers: [Daemon; 2],
}

impl Reference {
    /// Starts two servers with the agent's certificate: one that spawns, one that only hand-shakes.
    pub fn start(fleet: &Paired) -> Self {
        let (agent, dispatcher) = (fleet.agent_leaf(0), fleet.dispatcher_leaf());
        let ca = fleet
            .dispatcher
            .path("etc/ctrl-exec/ca.crt")
            .display()
            .to_string();
        let files = |leaf: &crate::common::openssl::Leaf| {
            vec![
                leaf.cert.display().to_string(),
                leaf.key.display().to_string(),
                ca.clone(),
            ]
        };
        let serve = |what: &str| {
            let port = free_port();
            let mut command = Command::new(std::env::current_exe().unwrap());
            command
                .arg(SERVER)
                .args([what, &port.to_string()])
                .args(files(&agent))
                .stdin(Stdio::null());
            let mut daemon = Daemon::start(&mut command);
            daemon.wait_for_text("ready");
            (port, daemon)
        };
        let (spawning, first) = serve("spawn");
        let (bare, second) = serve("bare");
        Self {
            spawning,
            bare,
            client: files(&dispatcher),
            servers: [first, second],
        }
    }

    /// The server that only hand-shakes.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.bare))
    }

    /// Process of the server that only hand-shakes.
    pub fn pid(&self) -> u32 {
        self.servers[1].pid()
    }

    /// One cold call.
    pub fn command(&self) -> Command {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .arg(CLIENT)
            .arg(self.spawning.to_string())
            .args(&self.client);
        command
    }
}

/// Plays one of the two parts when the command line asks for it.
pub fn play(words: &[String]) -> Option<ExitCode> {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        [SERVER, what, port, cert, key, ca] => serve(
            what == "spawn",
            port.parse().unwrap(),
            &files(cert, key, ca),
        ),
        [CLIENT, port, cert, key, ca] => {
            let address = SocketAddr::from(([127, 0, 0, 1], port.parse().unwrap()));
            Session::connect(&Keys::new(&files(cert, key, ca), "web01.test"), address).read_byte();
            Some(ExitCode::SUCCESS)
        }
        _ => None,
    }
}

fn files(cert: &str, key: &str, ca: &str) -> Files {
    Files {
        cert: cert.to_owned(),
        key: key.to_owned(),
        ca: ca.to_owned(),
    }
}

fn serve(spawns: bool, port: u16, files: &Files) -> ! {
    let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
    let config = files.server();
    println!("ready");
    if !spawns {
        shake_hands(listener, config);
    }
    loop {
        let Ok((socket, _)) = listener.accept() else {
            continue;
        };
        let connection = ServerConnection::new(config.clone()).unwrap();
        // A client that breaks off is no reason to stop.
        let _ = spawn_and_answer(StreamOwned::new(connection, socket));
    }
}

fn spawn_and_answer(mut stream: StreamOwned<ServerConnection, TcpStream>) -> std::io::Result<()> {
    stream.sock.set_nodelay(true)?;
    while stream.conn.is_handshaking() {
        stream.conn.complete_io(&mut stream.sock)?;
    }
    Command::new("/bin/true")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()?;
    stream.write_all(b"0")?;
    stream.flush()?;
    // Until the client has gone, so that it is the one that closes.
    let _ = stream.sock.read(&mut [0; 16]);
    Ok(())
}

/// Hand-shakes with many clients at once in one thread, as the agent does, and nothing else.
fn shake_hands(listener: TcpListener, config: Arc<rustls::ServerConfig>) -> ! {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    listener.set_nonblocking(true).unwrap();
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(config);
        loop {
            let Ok((socket, _)) = listener.accept().await else {
                continue;
            };
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let _ = socket.set_nodelay(true);
                let mut stream = acceptor.accept(socket).await?;
                stream.write_all(b"0").await?;
                stream.flush().await?;
                stream.read(&mut [0; 16]).await
            });
        }
    })
}
