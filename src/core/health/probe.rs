//! What has to be tried out: may we write there, can the hook be started, does the API answer.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{Access, AtFlags, CWD, accessat};
use rustls::pki_types::ServerName;
use rustls::{ClientConnection, StreamOwned};

use super::Probes;
use crate::core::config::{ApiSettings, DispatcherConfig};
use crate::core::{secure_open, tls};

/// Longest time for the API to answer.
const API_TIMEOUT: Duration = Duration::from_secs(5);
/// What is read of its answer.
const MAX_HEAD: usize = 4096;

/// Tries out everything but the API.
pub fn probe(config: &DispatcherConfig) -> Probes {
    Probes {
        directories: vec![
            ("runs-directory", writable(&config.runs_dir)),
            ("locks-directory", writable(&config.locks_dir)),
        ],
        hook: config.auth_hook.as_ref().map(|hook| {
            let usable = secure_open::check_executable(&hook.path);
            usable.map(drop).map_err(|e| e.to_string())
        }),
        api: None,
    }
}

/// Whether this user may make files in a directory; one that does not exist yet is made when it is needed, so its nearest parent counts.
fn writable(dir: &Path) -> Result<(), String> {
    let there = dir.ancestors().find(|d| d.symlink_metadata().is_ok());
    let there = there.unwrap_or(dir);
    if !there.is_dir() {
        return Err(format!("'{}' is not a directory", there.display()));
    }
    let wanted = Access::WRITE_OK | Access::EXEC_OK;
    accessat(CWD, there, wanted, AtFlags::EACCESS).map_err(|errno| {
        let error = io::Error::from(errno);
        format!("'{}' cannot be written: {error}", there.display())
    })
}

/// Asks the API on this host whether it is well. A refusal by its hook is an answer too: it is there.
///
/// # Errors
/// A sentence: it cannot be reached, is silent, or says something else.
pub fn ask_api(api: &ApiSettings) -> Result<String, String> {
    let (place, status) = match &api.socket {
        // What it is asked about most surely: TLS may want a certificate that we have not got.
        Some(path) => (path.display().to_string(), ask_socket(path)),
        None => {
            let address = SocketAddr::new(reachable(api.bind), api.port);
            (address.to_string(), exchange(address, api.tls.is_some()))
        }
    };
    let wants_certificate =
        api.socket.is_none() && api.clients.as_ref().is_some_and(|c| c.required);
    match status {
        Ok(200) => Ok(format!("answers at {place}")),
        Ok(status @ (401 | 403)) => Ok(format!(
            "answers at {place} (HTTP {status}: its hook lets nobody in without a token)"
        )),
        Ok(429) => Ok(format!(
            "answers at {place} (HTTP 429: too many refused requests of this host lately)"
        )),
        Ok(other) => Err(format!("the API at {place} answers HTTP {other}")),
        // It hangs up on us in the handshake, which it could not if it were not there.
        Err(error) if wants_certificate && is_tls_alert(&error) => Ok(format!(
            "answers at {place} (it wants a client certificate)"
        )),
        Err(error) => Err(format!("the API at {place} does not answer: {error}")),
    }
}

fn is_tls_alert(error: &io::Error) -> bool {
    error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<rustls::Error>())
        .is_some_and(|error| matches!(error, rustls::Error::AlertReceived(_)))
}

fn ask_socket(path: &Path) -> io::Result<u16> {
    let stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(API_TIMEOUT))?;
    stream.set_write_timeout(Some(API_TIMEOUT))?;
    ask(stream, Instant::now() + API_TIMEOUT)
}

fn reachable(bind: IpAddr) -> IpAddr {
    match bind {
        IpAddr::V4(all) if all.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(all) if all.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        own => own,
    }
}

fn exchange(address: SocketAddr, encrypted: bool) -> io::Result<u16> {
    let deadline = Instant::now() + API_TIMEOUT;
    let stream = TcpStream::connect_timeout(&address, API_TIMEOUT)?;
    stream.set_read_timeout(Some(API_TIMEOUT))?;
    stream.set_write_timeout(Some(API_TIMEOUT))?;
    if !encrypted {
        return ask(stream, deadline);
    }
    let config = tls::local_client_config().map_err(io::Error::other)?;
    let name = ServerName::IpAddress(address.ip().into());
    let connection = ClientConnection::new(config, name).map_err(io::Error::other)?;
    ask(StreamOwned::new(connection, stream), deadline)
}

fn ask(mut stream: impl Read + Write, deadline: Instant) -> io::Result<u16> {
    stream.write_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    stream.flush()?;
    let mut head = Vec::new();
    let mut buffer = [0; 512];
    while !head.contains(&b'\n') && head.len() < MAX_HEAD {
        // A byte now and then must not keep us.
        if Instant::now() >= deadline {
            return Err(io::ErrorKind::TimedOut.into());
        }
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => head.extend_from_slice(&buffer[..count]),
            // A wait with a deadline ends early where the process, or its machine, was stopped for a moment.
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    let line = head.split(|&b| b == b'\n').next().unwrap_or_default();
    status_of(line).ok_or_else(|| io::Error::other("that is no HTTP"))
}

/// The code of a status line.
fn status_of(line: &[u8]) -> Option<u16> {
    let line = std::str::from_utf8(line).ok()?;
    let (version, rest) = line.split_once(' ')?;
    let code = rest.split_ascii_whitespace().next()?;
    (version.starts_with("HTTP/1.") && code.len() == 3).then(|| code.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_lines() {
        assert_eq!(status_of(b"HTTP/1.1 200 OK\r"), Some(200));
        assert_eq!(status_of(b"HTTP/1.0 403 "), Some(403));
        for bad in [
            &b""[..],
            b"HTTP/1.1",
            b"HTTP/1.1 2000",
            b"SSH-2.0-x 200",
            b"\xff 200",
        ] {
            assert_eq!(status_of(bad), None);
        }
    }

    #[test]
    fn every_address_is_reached_by_loopback() {
        assert_eq!(reachable(Ipv4Addr::UNSPECIFIED.into()), Ipv4Addr::LOCALHOST);
        assert_eq!(reachable(Ipv6Addr::UNSPECIFIED.into()), Ipv6Addr::LOCALHOST);
        let own = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
        assert_eq!(reachable(own), own);
    }

    #[test]
    fn a_directory_that_is_to_be_made_is_judged_by_its_parent() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(writable(&dir.path().join("a/b/c")), Ok(()));
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        for path in [file.clone(), file.join("below")] {
            assert!(writable(&path).unwrap_err().contains("not a directory"));
        }
    }
}
