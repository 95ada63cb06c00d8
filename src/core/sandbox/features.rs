//! What this kernel can do, found out by trying (spec/executor.md 15.13).

/// A kernel facility: there, or why not (`not in this kernel`, `refused (EPERM)`).
pub type Feature = Result<(), String>;

/// Everything that a profile may ask for. Probed once, at the start.
#[derive(Clone, Debug)]
pub struct Features {
    /// `uname -r`
    pub kernel: String,
    /// We may make namespaces, mount, and change identity.
    pub privileged: bool,
    pub mount_namespace: Feature,
    pub pid_namespace: Feature,
    pub net_namespace: Feature,
    pub ipc_namespace: Feature,
    pub seccomp: Feature,
    /// Kill the process instead of the thread (4.14).
    pub seccomp_kill_process: bool,
    /// 0 = none.
    pub landlock_abi: u32,
    /// Why `landlock_abi` is 0.
    pub landlock: Feature,
    pub mount_setattr: bool,
    /// fsopen, fsmount, move_mount.
    pub mount_api: bool,
    pub close_range: bool,
    pub clone3: bool,
    pub pidfd: bool,
    pub openat2: bool,
    pub ambient: bool,
    /// Number of the last capability that the kernel knows.
    pub cap_last: u8,
    pub apparmor: bool,
    pub selinux: bool,
}

impl Features {
    pub fn probe() -> Self {
        todo!()
    }

    pub fn unprivileged() -> Self {
        todo!()
    }
}
