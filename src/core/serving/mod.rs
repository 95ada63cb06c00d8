//! What every server of ours needs, whatever it serves: deadlines on the bytes of a connection (`patience`), a bounded number of handshakes
//! (`handshakes`), HTTP/1 (`http1`), and descriptors for all of it.

pub mod handshakes;
pub mod http1;
pub mod patience;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the soft limit of open files to `wanted`, as far as the hard limit allows. Children inherit it, so callers do not simply ask for
/// all there is.
pub fn make_room_for_descriptors(wanted: usize) {
    let wanted = u64::try_from(wanted).unwrap_or(u64::MAX);
    let limits = getrlimit(Resource::Nofile);
    let reachable = wanted.min(limits.maximum.unwrap_or(u64::MAX));
    if limits.current.is_some_and(|current| current < reachable) {
        let raised = Rlimit {
            current: Some(reachable),
            maximum: limits.maximum,
        };
        // Without it accept pauses when descriptors run out; that is no reason not to start.
        let _ = setrlimit(Resource::Nofile, raised);
    }
}
