//! One process per connection: reads the request, decides, starts, watches, answers (spec/executor.md 10, 15.7).

use std::os::unix::net::UnixStream;

use super::house::{House, Peer};

/// Serves one connection in a process of its own. Returns when everything is done and logged; the caller exits.
pub(super) fn supervise(_connection: UnixStream, _peer: Peer, _house: &House) {
    todo!()
}
