//! What a supervisor needs to know, made by the listener and inherited by the fork.

use std::path::PathBuf;

use crate::core::config::{AgentConfig, Allowlist};
use crate::core::sandbox::ProtectedPaths;
use crate::core::sandbox::cgroup::Hierarchy;
use crate::core::sandbox::features::Features;
use crate::core::sandbox::view::Mounts;

/// Both files, read together.
#[derive(Debug)]
pub(super) struct Policy {
    pub(super) config: AgentConfig,
    pub(super) allowlist: Allowlist,
    /// First 12 hex digits of the SHA-256 over both files.
    pub(super) hash: String,
    /// Set when a file must not be trusted any more (`strict`): every request is refused with this reason.
    pub(super) refuse_all: Option<String>,
}

/// Without root (tests, the demo): profiles with identities or capabilities are refused.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Unprivileged {
    /// `writable` is refused as well.
    Careful,
    /// `writable` is ignored.
    Lax,
}

#[derive(Debug)]
pub(super) struct House {
    pub(super) policy: Policy,
    pub(super) features: Features,
    pub(super) hierarchy: Result<Hierarchy, String>,
    pub(super) protected: ProtectedPaths,
    /// Looked at again before each fork.
    pub(super) mounts: Mounts,
    /// `None`: we are root.
    pub(super) unprivileged: Option<Unprivileged>,
    /// Where detached runs keep their results: `jobs` beside the socket, mode 0700.
    pub(super) jobs: PathBuf,
}

/// Who is at the other end.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Peer {
    pub(super) uid: u32,
    pub(super) pid: i32,
}
