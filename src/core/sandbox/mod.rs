//! Everything between the decision that a script may run and its `execve` (spec/executor.md 9, 11, 15).
//!
//! All data is prepared before the fork; the child only issues system calls and reports a failure as a step and an errno.

pub mod assess;
pub mod cgroup;
pub mod child;
pub mod features;
pub mod filter;
pub mod identity;
pub mod landlock;
pub mod own;
pub mod prepare;
pub mod script;
pub mod tree;
pub mod view;

use std::collections::BTreeMap;
use std::path::PathBuf;

/// What can keep a script from doing harm. The number is the bit in the reply's trailer.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
#[repr(u8)]
pub enum Protection {
    NoNewPrivileges = 0,
    /// Bounding set and the four others hold the granted capabilities and nothing else.
    Capabilities = 1,
    /// A mount namespace of its own, protected paths read-only or hidden.
    FileSystemView = 2,
    /// Everything but the carve-outs is read-only.
    ReadOnlyRoot = 3,
    PrivateTmp = 4,
    KernelTunables = 5,
    MinimalDevices = 6,
    Landlock = 7,
    Seccomp = 8,
    NoUserNamespaces = 9,
    PrivateProcesses = 10,
    PrivateIpc = 11,
    Network = 12,
    Cgroup = 13,
    ResourceLimits = 14,
    ScriptTrust = 15,
    Digest = 16,
    VerifiedCopy = 17,
    AppArmor = 18,
    SeLinux = 19,
}

impl Protection {
    /// In the order of their bits.
    pub const ALL: [Self; 20] = [
        Self::NoNewPrivileges,
        Self::Capabilities,
        Self::FileSystemView,
        Self::ReadOnlyRoot,
        Self::PrivateTmp,
        Self::KernelTunables,
        Self::MinimalDevices,
        Self::Landlock,
        Self::Seccomp,
        Self::NoUserNamespaces,
        Self::PrivateProcesses,
        Self::PrivateIpc,
        Self::Network,
        Self::Cgroup,
        Self::ResourceLimits,
        Self::ScriptTrust,
        Self::Digest,
        Self::VerifiedCopy,
        Self::AppArmor,
        Self::SeLinux,
    ];

    /// As logs, `check` and `/capabilities` spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::NoNewPrivileges => "no_new_privileges",
            Self::Capabilities => "capabilities",
            Self::FileSystemView => "file_system_view",
            Self::ReadOnlyRoot => "read_only_root",
            Self::PrivateTmp => "private_tmp",
            Self::KernelTunables => "kernel_tunables",
            Self::MinimalDevices => "devices",
            Self::Landlock => "landlock",
            Self::Seccomp => "syscalls",
            Self::NoUserNamespaces => "userns",
            Self::PrivateProcesses => "processes",
            Self::PrivateIpc => "ipc",
            Self::Network => "network",
            Self::Cgroup => "cgroup",
            Self::ResourceLimits => "limits",
            Self::ScriptTrust => "script_trust",
            Self::Digest => "digest",
            Self::VerifiedCopy => "verified_copy",
            Self::AppArmor => "apparmor",
            Self::SeLinux => "selinux",
        }
    }

    pub fn bit(self) -> u32 {
        1 << (self as u8)
    }
}

/// How far a protection is in force.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Level {
    Enforced,
    /// Wanted and tried, not (or only in part) to be had, with the reason.
    Degraded(String),
    Off,
}

/// What a profile comes to on this kernel.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Protections(pub BTreeMap<Protection, Level>);

impl Protections {
    pub fn set(&mut self, protection: Protection, level: Level) {
        self.0.insert(protection, level);
    }

    /// Bits of everything in force, for the trailer.
    pub fn enforced_bits(&self) -> u32 {
        self.0
            .iter()
            .filter(|(_, level)| **level == Level::Enforced)
            .fold(0, |bits, (protection, _)| bits | protection.bit())
    }

    pub fn degraded(&self) -> impl Iterator<Item = (Protection, &str)> {
        self.0.iter().filter_map(|(protection, level)| match level {
            Level::Degraded(why) => Some((*protection, why.as_str())),
            _ => None,
        })
    }
}

/// What scripts must not see or change, computed from the paths that are really in use (spec/executor.md 15.4).
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct ProtectedPaths {
    /// Made inaccessible: the directory of the executor's socket, the agent's key, the store of asynchronous runs, the dispatcher's
    /// directory if the host is one too.
    pub hide: Vec<PathBuf>,
    /// Read-only: configuration directories, the trust map, the hook, the revocation list, our own binary, the script directories.
    pub read_only: Vec<PathBuf>,
}

/// Why a run was not even started: exit 126 for the caller, with the text on stderr.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct NotPrepared {
    /// REASON of `exec-deny`: `untrusted-script`, `digest-mismatch`, `feature-missing`; or `setup` for what is no refusal.
    pub reason: &'static str,
    /// One line for stderr, without `executor: ` and newline.
    pub text: String,
}

impl NotPrepared {
    pub fn new(reason: &'static str, text: impl Into<String>) -> Self {
        Self {
            reason,
            text: text.into(),
        }
    }
}
