//! The values of `[executor]` and `[profile NAME]` (spec/executor.md 7.2, 15.1), with the defaults of both baselines.
//!
//! A [`ProfileConfig`] is what counts: keys that a profile does not set have the value of the baseline already.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use caps::Capability;

use crate::core::types::AbsolutePath;

/// Which defaults the keys have that a profile does not set.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Baseline {
    /// What the original does, as far as that is safe. The meaning of a file that does not say.
    #[default]
    Compat,
    /// What new installations ship.
    Strict,
}

impl Baseline {
    /// As it is written.
    pub fn word(self) -> &'static str {
        match self {
            Self::Compat => "compat",
            Self::Strict => "strict",
        }
    }
}

/// How much a protection is wanted.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Want {
    /// Missing: the script is not run.
    Require,
    /// Used where it is there; else the run is logged as degraded, once.
    Try,
    Off,
}

/// A protection and how much it is wanted. A profile that names a value requires it, unless the word `try` follows; what comes from
/// the baseline is tried.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Protected<T> {
    pub value: T,
    /// Never [`Want::Off`]: then `value` says so itself.
    pub required: bool,
}

impl<T> Protected<T> {
    /// From the baseline.
    pub fn tried(value: T) -> Self {
        Self {
            value,
            required: false,
        }
    }

    /// Named in the profile.
    pub fn required(value: T) -> Self {
        Self {
            value,
            required: true,
        }
    }
}

/// `[executor]`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ExecutorConfig {
    pub baseline: Baseline,
    /// Runs at the same time, default 64.
    pub max_runs: usize,
    /// For a whole request to arrive, default 10 s.
    pub request_timeout: Duration,
    /// Largest request after its first four bytes, default and most 16 MiB.
    pub max_frame: usize,
    /// Bytes kept of each stream, default and most 16 MiB.
    pub max_output: usize,
    /// How long output is waited for after the script itself has ended, default 1 s.
    pub drain_grace: Duration,
    /// Only scripts with `digest=` run.
    pub require_digest: bool,
    /// cgroup v2 directory under which runs get their groups; default: the executor's own group.
    pub cgroup_parent: Option<PathBuf>,
    /// The only systemd unit whose processes are served.
    pub executor_peer_unit: Option<String>,
}

impl Default for ExecutorConfig {
    fn default() -> Self {
        Self {
            baseline: Baseline::Compat,
            max_runs: 64,
            request_timeout: Duration::from_secs(10),
            max_frame: 16 * 1024 * 1024,
            max_output: 16 * 1024 * 1024,
            drain_grace: Duration::from_secs(1),
            require_digest: false,
            cgroup_parent: None,
            executor_peer_unit: None,
        }
    }
}

/// Supplementary groups.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Groups {
    /// Those of the account.
    User,
    None,
    /// Names or gids.
    List(Vec<String>),
}

/// What happens to a run whose client has gone.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum OnDisconnect {
    Kill,
    Continue,
}

/// What happens to processes that a script leaves behind.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Leftovers {
    Kill,
    Keep,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Network {
    Host,
    /// A network namespace with nothing in it.
    None,
    /// As `None`, with 127.0.0.1 and ::1.
    Loopback,
}

/// TCP ports.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Ports {
    Any,
    /// Empty: none at all.
    Only(Vec<u16>),
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Syscalls {
    Off,
    /// A list of what is refused.
    Default,
    /// A list of what is allowed.
    Strict,
}

/// The host's, or a namespace of the run's own.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Scope {
    Host,
    Private,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Devices {
    Host,
    /// `/dev` holds null, zero, full, random, urandom, tty, shm, fd and the standard streams.
    Minimal,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ScriptTrust {
    Enforce,
    Warn,
    Off,
}

/// The resources of `setrlimit(2)` that a profile can bound.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum LimitKind {
    Nofile,
    Nproc,
    Fsize,
    As,
    Cpu,
    Stack,
    Memlock,
    Core,
}

impl LimitKind {
    /// All of them, in the order of the documentation.
    pub const ALL: [Self; 8] = [
        Self::Nofile,
        Self::Nproc,
        Self::Fsize,
        Self::As,
        Self::Cpu,
        Self::Stack,
        Self::Memlock,
        Self::Core,
    ];

    /// The key of a profile.
    pub const fn key(self) -> &'static str {
        match self {
            Self::Nofile => "limit_nofile",
            Self::Nproc => "limit_nproc",
            Self::Fsize => "limit_fsize",
            Self::As => "limit_as",
            Self::Cpu => "limit_cpu",
            Self::Stack => "limit_stack",
            Self::Memlock => "limit_memlock",
            Self::Core => "limit_core",
        }
    }
}

/// `[profile NAME]`, complete.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ProfileConfig {
    pub baseline: Baseline,
    /// User name or decimal uid, as written; `None` = not set: root, in `compat` only.
    pub run_as: Option<String>,
    /// Group name or gid; `None` = the primary one of the account.
    pub group: Option<String>,
    pub groups: Groups,
    /// In the order of the file.
    pub caps: Vec<Capability>,
    /// In the order of the file; empty = no restriction beyond the protected paths.
    pub writable: Vec<AbsolutePath>,
    pub no_new_privileges: bool,
    /// Default: none in `compat`, 300 s in `strict`.
    pub timeout: Option<Duration>,
    /// Between SIGTERM and SIGKILL, default 5 s.
    pub kill_grace: Duration,
    pub on_disconnect: OnDisconnect,
    pub leftovers: Leftovers,
    /// Paths made inaccessible, beside the built-in ones.
    pub hide: Vec<AbsolutePath>,
    /// Landlock: what can be read.
    pub read: Vec<AbsolutePath>,
    /// Landlock: what can be read and executed.
    pub execute: Vec<AbsolutePath>,
    pub landlock: Want,
    pub network: Protected<Network>,
    pub tcp_connect: Ports,
    pub tcp_bind: Ports,
    pub syscalls: Protected<Syscalls>,
    /// True: user namespaces cannot be made.
    pub deny_userns: Protected<bool>,
    pub processes: Protected<Scope>,
    pub ipc: Protected<Scope>,
    pub private_tmp: bool,
    /// Bytes; `None` = a quarter of the memory.
    pub tmp_size: Option<u64>,
    /// True: `/proc/sys` and the like can be written to.
    pub kernel_tunables_writable: bool,
    pub devices: Protected<Devices>,
    /// The cgroup files `memory.max`, `memory.high`, `pids.max`, `cpu.max`, `io.max` and what is written to them, validated. The kernel
    /// takes one device at a time: each line of `io.max` is a write of its own.
    pub cgroup_limits: BTreeMap<&'static str, String>,
    pub cgroup: Want,
    /// `None` = unlimited.
    pub limits: BTreeMap<LimitKind, Option<u64>>,
    /// Default `/`.
    pub cwd: AbsolutePath,
    /// 0..=0o777
    pub umask: u32,
    /// -20..=19
    pub nice: i32,
    /// -1000..=1000
    pub oom_score_adj: i32,
    /// Names and values beyond the fixed environment; never `PATH` nor `ENVEXEC_...`, each name once. They replace what the baseline
    /// sets under the same name.
    pub env: Vec<(String, String)>,
    pub script_trust: ScriptTrust,
    pub apparmor: Option<String>,
    pub selinux: Option<String>,
    /// Permits `no_new_privileges = no` in `strict`.
    pub allow_setuid: bool,
    /// False: uid 0 gets no capabilities at exec.
    pub root_semantics: bool,
    /// `None` = by the baseline and whether the script has a digest.
    pub verified_copy: Option<bool>,
    pub i_understand_unconfined: bool,
}

impl ProfileConfig {
    /// A profile that sets nothing.
    pub fn new(baseline: Baseline) -> Self {
        let strict = baseline == Baseline::Strict;
        let mut limits = BTreeMap::from([(LimitKind::Core, Some(0))]);
        let mut cgroup_limits = BTreeMap::new();
        if strict {
            limits.insert(LimitKind::Nofile, Some(1024));
            cgroup_limits.insert("memory.max", (512_u64 << 20).to_string());
            cgroup_limits.insert("pids.max", "256".to_owned());
        }
        let private = Protected::tried(if strict { Scope::Private } else { Scope::Host });
        Self {
            baseline,
            run_as: None,
            group: None,
            groups: Groups::User,
            caps: Vec::new(),
            writable: Vec::new(),
            no_new_privileges: true,
            timeout: strict.then_some(Duration::from_secs(300)),
            kill_grace: Duration::from_secs(5),
            on_disconnect: if strict {
                OnDisconnect::Kill
            } else {
                OnDisconnect::Continue
            },
            leftovers: if strict {
                Leftovers::Kill
            } else {
                Leftovers::Keep
            },
            hide: Vec::new(),
            read: Vec::new(),
            execute: Vec::new(),
            landlock: Want::Try,
            network: Protected::tried(Network::Host),
            tcp_connect: Ports::Any,
            tcp_bind: Ports::Any,
            syscalls: Protected::tried(if strict {
                Syscalls::Default
            } else {
                Syscalls::Off
            }),
            deny_userns: Protected::tried(strict),
            // The reader of profiles takes this back for a profile with CAP_KILL.
            processes: private,
            ipc: private,
            // The reader of profiles sets it in `compat` when `writable` is there.
            private_tmp: strict,
            tmp_size: strict.then_some(64 << 20),
            kernel_tunables_writable: false,
            devices: Protected::tried(if strict {
                Devices::Minimal
            } else {
                Devices::Host
            }),
            cgroup_limits,
            cgroup: Want::Try,
            limits,
            cwd: AbsolutePath::root(),
            umask: if strict { 0o077 } else { 0o022 },
            nice: 0,
            oom_score_adj: if strict { 500 } else { 0 },
            env: Vec::new(),
            script_trust: if strict {
                ScriptTrust::Enforce
            } else {
                ScriptTrust::Warn
            },
            apparmor: None,
            selinux: None,
            allow_setuid: false,
            root_semantics: true,
            verified_copy: None,
            i_understand_unconfined: false,
        }
    }
}

impl ProfileConfig {
    /// Gives the keys their default that hangs on `caps` and `writable`.
    pub(super) fn settle_defaults(&mut self) {
        if self.caps.contains(&Capability::CAP_KILL) {
            // A script that is there to signal others must see them.
            self.processes = Protected::tried(Scope::Host);
        }
        if self.baseline == Baseline::Compat {
            self.private_tmp = !self.writable.is_empty();
        }
    }

    /// Whether scripts run with uid 0, as far as the text tells: another account may have that uid too.
    pub fn runs_as_root(&self) -> bool {
        match self.run_as.as_deref() {
            None | Some("root") => true,
            Some(user) => user.parse::<u64>() == Ok(0),
        }
    }
}

impl Default for ProfileConfig {
    fn default() -> Self {
        Self::new(Baseline::Compat)
    }
}

/// A script's own annotations (spec/executor.md 6): each only narrows.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Annotations {
    /// SHA-256 of the file.
    pub digest: Option<[u8; 32]>,
    /// Only ever shortens the profile's.
    pub timeout: Option<Duration>,
    /// Instead of the sidecar beside the script.
    pub schema: Option<AbsolutePath>,
}
