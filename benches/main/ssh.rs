//! The same job by SSH, where it is installed: a client that runs `true` through a server on loopback.

use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::common::process::run;
use crate::common::{Daemon, PATIENCE, free_port, is_root};

/// A running server and how to call it.
pub struct Peer {
    program: PathBuf,
    args: Vec<String>,
    _server: Daemon,
    _dir: TempDir,
}

impl Peer {
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(&self.args)
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("HOME", "/nonexistent");
        command
    }
}

fn find(program: &str) -> Option<PathBuf> {
    ["/usr/sbin", "/usr/bin", "/sbin", "/bin"]
        .iter()
        .map(|dir| PathBuf::from(dir).join(program))
        .find(|p| p.exists())
}

/// Whether the server comes up; where it does not, that is its own affair.
fn listening(server: &mut Daemon, port: u16) -> Result<(), String> {
    let end = Instant::now() + PATIENCE;
    while Instant::now() < end && server.is_running() {
        if TcpStream::connect(("127.0.0.1", port)).is_ok() {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Err("its server does not start here".to_owned())
}

/// `dbclient` towards `dropbear`. The server reads only the user's own `~/.ssh`, so it gets a home of its own in a mount namespace.
pub fn dropbear() -> Result<Peer, String> {
    let (Some(server), Some(client), Some(keygen)) =
        (find("dropbear"), find("dbclient"), find("dropbearkey"))
    else {
        return Err("not installed".to_owned());
    };
    if !is_root() {
        return Err("needs root for its server".to_owned());
    }
    let dir = tempfile::Builder::new().prefix("ce-db-").tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    for key in ["host", "user"] {
        run(Command::new(&keygen).args(["-t", "ed25519", "-f", &at(key)])).ok();
    }
    let shown = run(Command::new(&keygen).args(["-y", "-f", &at("user")]))
        .ok()
        .out();
    let public = shown
        .lines()
        .find(|l| l.starts_with("ssh-"))
        .unwrap()
        .to_owned();
    std::fs::create_dir_all(dir.path().join("home/.ssh")).unwrap();
    std::fs::write(
        dir.path().join("home/.ssh/authorized_keys"),
        format!("{public}\n"),
    )
    .unwrap();
    let port = free_port();
    let script = "mount --bind \"$1\" /root && exec \"$2\" -F -E -s -r \"$3\" -p \"127.0.0.1:$4\"";
    let mut command = Command::new("unshare");
    command
        .args(["-m", "sh", "-c", script, "sh", &at("home")])
        .arg(server)
        .args([&at("host"), &port.to_string()])
        .stdin(Stdio::null());
    let mut server = Daemon::start(&mut command);
    listening(&mut server, port)?;
    let args = [
        "-y",
        "-y",
        "-i",
        &at("user"),
        "-p",
        &port.to_string(),
        "root@127.0.0.1",
        "true",
    ]
    .map(str::to_owned)
    .to_vec();
    checked(Peer {
        program: client,
        args,
        _server: server,
        _dir: dir,
    })
}

/// `ssh` towards `sshd`.
pub fn openssh() -> Result<Peer, String> {
    let (Some(server), Some(client), Some(keygen)) =
        (find("sshd"), find("ssh"), find("ssh-keygen"))
    else {
        return Err("not installed".to_owned());
    };
    if !is_root() {
        return Err("needs root for its server".to_owned());
    }
    let dir = tempfile::Builder::new()
        .prefix("ce-ssh-")
        .tempdir()
        .unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    for key in ["host", "user"] {
        run(Command::new(&keygen).args(["-q", "-t", "ed25519", "-N", "", "-f", &at(key)])).ok();
    }
    std::fs::copy(dir.path().join("user.pub"), dir.path().join("authorized")).unwrap();
    let port = free_port();
    let config = format!(
        "Port {port}\nListenAddress 127.0.0.1\nHostKey {}\nAuthorizedKeysFile {}\nStrictModes no\nUsePAM no\nPidFile none\nPermitRootLogin yes\nPasswordAuthentication no\n",
        at("host"),
        at("authorized")
    );
    std::fs::write(dir.path().join("config"), config).unwrap();
    let _ = std::fs::create_dir_all("/run/sshd");
    let mut server = Daemon::start(
        Command::new(server)
            .args(["-D", "-e", "-f", &at("config")])
            .stdin(Stdio::null()),
    );
    listening(&mut server, port)?;
    let options = [
        "-F",
        "none",
        "-T",
        "-o",
        "StrictHostKeyChecking=no",
        "-o",
        "UserKnownHostsFile=/dev/null",
        "-o",
        "BatchMode=yes",
        "-o",
        "IdentitiesOnly=yes",
    ];
    let args = options
        .iter()
        .copied()
        .chain([
            "-i",
            &at("user"),
            "-p",
            &port.to_string(),
            "root@127.0.0.1",
            "true",
        ])
        .map(str::to_owned)
        .collect();
    checked(Peer {
        program: client,
        args,
        _server: server,
        _dir: dir,
    })
}

/// A peer that does not work here is left out with its reason, not reported as infinitely slow.
fn checked(peer: Peer) -> Result<Peer, String> {
    let first = run(&mut peer.command());
    if first.code() == 0 {
        Ok(peer)
    } else {
        let said = first.err();
        Err(format!(
            "does not work here: {}",
            said.lines()
                .next_back()
                .unwrap_or_default()
                .chars()
                .take(60)
                .collect::<String>()
        ))
    }
}
