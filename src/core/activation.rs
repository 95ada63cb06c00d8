//! Listening sockets that a service manager opens for us (`LISTEN_FDS`, sd_listen_fds(3)).

use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;

use rustix::net::sockopt::{socket_acceptconn, socket_domain, socket_type};
use rustix::net::{AddressFamily, SocketType};

use crate::core::sys;

/// A socket that was passed to us, not blocking.
#[derive(Debug)]
pub enum Passed {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// How many sockets there are for the process `own_pid`, as the variables `LISTEN_PID` and `LISTEN_FDS` say.
pub fn count(own_pid: u32, listen_pid: Option<&str>, listen_fds: Option<&str>) -> u16 {
    let ours = listen_pid.and_then(|pid| pid.parse().ok()) == Some(own_pid);
    listen_fds
        .filter(|_| ours)
        .and_then(|count| count.parse().ok())
        .unwrap_or(0)
}

/// Takes the sockets. To be called once, and before anything else opens a file.
///
/// # Errors
/// A sentence: one of them is not open, or not a stream socket that listens for TCP or in the file system.
pub fn take(count: u16) -> Result<Vec<Passed>, String> {
    let unusable = |e: &dyn std::fmt::Display| {
        format!("the descriptors passed by LISTEN_FDS cannot be used: {e}")
    };
    let all = sys::inherited::passed(count).map_err(|e| unusable(&e))?;
    all.into_iter()
        .map(|fd| {
            let listens =
                socket_type(&fd) == Ok(SocketType::STREAM) && socket_acceptconn(&fd) == Ok(true);
            let family = socket_domain(&fd).ok().filter(|_| listens);
            rustix::io::ioctl_fionbio(&fd, true).map_err(|e| unusable(&e))?;
            classify(fd, family).ok_or_else(|| unusable(&"not a listening stream socket"))
        })
        .collect()
}

fn classify(fd: OwnedFd, family: Option<AddressFamily>) -> Option<Passed> {
    match family? {
        AddressFamily::INET | AddressFamily::INET6 => Some(Passed::Tcp(fd.into())),
        AddressFamily::UNIX => Some(Passed::Unix(fd.into())),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_meant_for_us_counts() {
        assert_eq!(count(7, Some("7"), Some("2")), 2);
        for (pid, fds) in [
            (Some("8"), Some("2")),
            (None, Some("2")),
            (Some("7"), None),
            (Some("7"), Some("-1")),
            (Some("x"), Some("1")),
        ] {
            assert_eq!(count(7, pid, fds), 0, "{pid:?} {fds:?}");
        }
    }
}
