//! Who may act as a dispatcher on this agent: the trust map, and the revocation list (spec/agent.md 13).

mod map;
mod pushed;
mod revocation;
mod store;

pub use map::{Entry, TrustMap};
pub use pushed::{MAX_PUSHED, load_pushed, push};
pub use revocation::RevocationList;
pub use store::{add, lock_path, remove, remove_but_keep};

use std::path::PathBuf;

use crate::core::durable::DurableError;
use crate::core::secure_open::OpenError;
use crate::core::types::{DispatcherId, Serial};

/// Largest map or list that is read; a line is some 60 bytes.
const MAX_FILE: u64 = 4 * 1024 * 1024;

/// Why the map or the list could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    #[error(transparent)]
    Read(#[from] OpenError),
    #[error(transparent)]
    Write(#[from] DurableError),
    /// Zero is no serial number of a certificate (RFC 5280 4.1.2.2).
    #[error("invalid dispatcher serial '0' for '{}'", .path.display())]
    ZeroSerial { path: PathBuf },
    /// The serial, in one of its readings, stands in the map for somebody else (spec/agent.md 14, 19.2 W9).
    #[error("serial not owned by '{id}'")]
    NotOwned {
        path: PathBuf,
        serial: Serial,
        id: DispatcherId,
    },
    /// Without it the caller itself would not be trusted any more.
    #[error("serial in use by this connection")]
    InUse { path: PathBuf, serial: Serial },
    #[error("'{}' would hold more than {MAX_PUSHED} serials: revoke the CA instead", .path.display())]
    TooManyRevoked { path: PathBuf },
}
