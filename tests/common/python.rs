//! Peers written in Python: OpenSSL at the other end of the wire, and stand-ins for programs of release 0.12.3.

use std::path::Path;
use std::process::Command;

use super::host::Host;
use super::process::{self, Daemon, Run};

/// A dispatcher of release 0.12.3: pairing listener, then client of port 7443.
pub const LEGACY_DISPATCHER: &str = include_str!("legacy_dispatcher.py");
/// An agent of release 0.12.3: pairing client, then server of port 7443.
pub const LEGACY_AGENT: &str = include_str!("legacy_agent.py");
/// TLS servers that misbehave.
pub const STUB_SERVER: &str = include_str!("stub_server.py");
/// A root executor: one of the original, or one that keeps detached runs as ours does.
pub const STUB_EXECUTOR: &str = include_str!("stub_executor.py");
/// Handshakes with every strict flag of Python's ssl module.
pub const STRICT: &str = include_str!("strict.py");

fn command(host: &Host, program: &str, args: &[&str]) -> Command {
    let path = host.write(&format!("tmp/{}.py", fingerprint(program)), program, 0o644);
    let mut command = Command::new("python3");
    command
        .arg("-u")
        .arg(path)
        .args(args)
        .current_dir(host.path("tmp"));
    command
}

/// A name for the file of a program, the same for the same text.
fn fingerprint(program: &str) -> String {
    use std::hash::{DefaultHasher, Hash as _, Hasher as _};
    let mut hasher = DefaultHasher::new();
    program.hash(&mut hasher);
    format!("{:x}", hasher.finish())
}

/// Runs a Python program to its end.
#[track_caller]
pub fn run(host: &Host, program: &str, args: &[&str]) -> Run {
    process::run(&mut command(host, program, args))
}

/// Starts a Python program and waits until it says `ready`.
#[track_caller]
pub fn start(host: &Host, program: &str, args: &[&str]) -> Daemon {
    let mut daemon = Daemon::start(&mut command(host, program, args));
    daemon.wait_for_text("ready");
    daemon
}

/// A path as an argument.
pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}
