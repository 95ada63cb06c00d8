//! What the benches of the API start: the API of a dispatcher, its reference, a log that keeps nothing.

use std::net::SocketAddr;
use std::os::unix::net::UnixDatagram;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::common::{Daemon, Host, free_port};

/// A word of the bench's own command line: play the reference.
pub const BARE: &str = "bare-http";
/// Where the reference lies that was built as the binary was.
const BARE_BINARY: &str = "CTRL_EXEC_BENCH_BARE";

/// A running server on loopback.
pub struct Server {
    daemon: Daemon,
    pub address: SocketAddr,
}

impl Server {
    pub fn pid(&self) -> u32 {
        self.daemon.pid()
    }

    /// `ced-api` of a dispatcher that allows everything, with these lines in a configuration file of its own.
    pub fn api(dispatcher: &Host, lines: &str) -> Self {
        let port = free_port();
        let text = format!("api_port = {port}\napi_auth_default = \"allow\"\n{lines}");
        let path = format!("etc/ctrl-exec/bench-{port}.toml");
        let file = dispatcher.write(&path, text, 0o640);
        let mut command = dispatcher.command("ced-api");
        command.arg("--config").arg(file);
        Self::start(&mut command, port, "listening on ")
    }

    /// The reference, and in which way it was built.
    pub fn bare() -> (Self, &'static str) {
        let port = free_port();
        let built = std::env::var_os(BARE_BINARY);
        let how = match built {
            Some(_) => "built alike",
            None => "opt-level 3, glibc",
        };
        let mut command = match built {
            Some(path) => Command::new(path),
            None => {
                let mut command = Command::new(std::env::current_exe().unwrap());
                command.arg(BARE);
                command
            }
        };
        command.arg(port.to_string()).stdin(Stdio::null());
        (Self::start(&mut command, port, "ready"), how)
    }

    fn start(command: &mut Command, port: u16, sign: &str) -> Self {
        let mut daemon = Daemon::start(command);
        daemon.wait_for_text(sign);
        Self {
            daemon,
            address: SocketAddr::from(([127, 0, 0, 1], port)),
        }
    }
}

/// A syslog socket in the place of the harness's: lines are taken and forgotten, so that what the log costs is the server's part of it.
pub struct QuietLog {
    stop: Arc<AtomicBool>,
    reader: Option<JoinHandle<()>>,
}

impl QuietLog {
    pub fn of(host: &Host) -> Self {
        let path = host.path("dev/log");
        std::fs::remove_file(&path).unwrap();
        let socket = UnixDatagram::bind(&path).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_millis(100)))
            .unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let end = stop.clone();
        let reader = std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while !end.load(Ordering::Relaxed) {
                let _ = socket.recv(&mut buffer);
            }
        });
        Self {
            stop,
            reader: Some(reader),
        }
    }
}

impl Drop for QuietLog {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}
