//! Tells a service manager how we are (sd_notify protocol), where there is one that wants to know.

use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Sends one state line (`READY=1`) to the socket that `NOTIFY_SOCKET` names; a name that begins with `@` is abstract.
/// Nobody listening is not an error: the service runs all the same.
pub(crate) fn tell(socket: Option<&str>, state: &str) {
    let Some(name) = socket.filter(|name| !name.is_empty()) else {
        return;
    };
    let address = match name.strip_prefix('@') {
        Some(abstract_name) => SocketAddr::from_abstract_name(abstract_name),
        None => SocketAddr::from_pathname(name),
    };
    let _ = address.and_then(|address| {
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        socket.send_to_addr(state.as_bytes(), &address)
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn received(address: &SocketAddr, name: &str) {
        let manager = UnixDatagram::bind_addr(address).unwrap();
        tell(Some(name), "READY=1");
        let mut buffer = [0; 32];
        let n = manager.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..n], b"READY=1");
    }

    #[test]
    fn both_kinds_of_socket_are_reached() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        received(
            &SocketAddr::from_pathname(&path).unwrap(),
            path.to_str().unwrap(),
        );
        let name = format!("ctrl-exec-test-{}", std::process::id());
        received(
            &SocketAddr::from_abstract_name(&name).unwrap(),
            &format!("@{name}"),
        );
        tell(None, "READY=1");
        tell(Some("/nonexistent/notify"), "READY=1");
    }
}
