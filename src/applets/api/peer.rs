//! The other end of a connection, as the listener knows it.

use std::net::IpAddr;
use std::sync::Arc;

use crate::core::pki::Certificate;

/// Where a connection comes from.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Origin {
    Inet(IpAddr),
    /// The unix socket; the kernel vouches for the user.
    Local {
        uid: u32,
        /// `None`: the user has no name on this host.
        user: Option<String>,
    },
}

/// The other end of a connection.
#[derive(Clone, Debug)]
pub(super) struct Peer {
    pub(super) origin: Origin,
    /// Shown in the TLS handshake and verified against `api_client_ca`.
    pub(super) certificate: Option<Arc<Certificate>>,
}

impl Peer {
    /// The address as hooks and log lines show it; `127.0.0.1` for the unix socket, as for the command line.
    pub(super) fn source_ip(&self) -> String {
        match &self.origin {
            Origin::Inet(address) => address.to_string(),
            Origin::Local { .. } => "127.0.0.1".to_owned(),
        }
    }

    /// What refusals are counted by: an IPv6 host has a whole network of addresses.
    pub(super) fn source(&self) -> String {
        match &self.origin {
            Origin::Inet(IpAddr::V6(address)) => {
                let s = address.segments();
                format!("{:x}:{:x}:{:x}:{:x}::/64", s[0], s[1], s[2], s[3])
            }
            Origin::Inet(address) => address.to_string(),
            Origin::Local { uid, .. } => format!("uid {uid}"),
        }
    }
}
