//! What this kernel can do, found out by trying (spec/executor.md 15.13).
//!
//! Version numbers say nothing: a vendor kernel may have more, a container less. Each facility is called once, in a child that ends
//! with whatever the call has changed. `EPERM` counts as missing, for that is how containers filter.

use std::path::Path;

use rustix::thread::CapabilitySet;

use crate::core::sys::creds;
use crate::core::sys::probe::{self, Answer, Probe, Refused};

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
    /// The bounding set of this process at the start.
    pub bounding: CapabilitySet,
    pub apparmor: bool,
    pub selinux: bool,
}

/// A row of the feature matrix: name, oldest kernel that has it, and what it is here.
pub type Row = (&'static str, &'static str, String);

impl Features {
    /// Asks the kernel. Takes a few milliseconds and one short-lived process; leaves nothing behind.
    pub fn probe() -> Self {
        Self::from_answers(&probe::run())
    }

    fn from_answers(answers: &[(Probe, Answer)]) -> Self {
        let there = |probe| feature(answers, probe);
        let landlock = value(answers, Probe::Landlock)
            .and_then(|abi| u32::try_from(abi).map_err(|_| Refused::Errno(libc::EINVAL)));
        Self {
            kernel: rustix::system::uname()
                .release()
                .to_string_lossy()
                .into_owned(),
            privileged: privileged(),
            mount_namespace: there(Probe::MountNamespace),
            pid_namespace: there(Probe::PidNamespace),
            net_namespace: there(Probe::NetNamespace),
            ipc_namespace: there(Probe::IpcNamespace),
            seccomp: there(Probe::SeccompFilter),
            seccomp_kill_process: there(Probe::SeccompKillProcess).is_ok(),
            landlock_abi: landlock.unwrap_or(0),
            landlock: landlock.map(|_| ()).map_err(landlock_reason),
            mount_setattr: there(Probe::MountSetattr).is_ok(),
            mount_api: there(Probe::MountApi).is_ok(),
            close_range: there(Probe::CloseRange).is_ok(),
            clone3: there(Probe::Clone3).is_ok(),
            pidfd: there(Probe::PidFd).is_ok(),
            openat2: there(Probe::OpenAt2).is_ok(),
            ambient: there(Probe::Ambient).is_ok(),
            cap_last: probe::last_capability(),
            bounding: bounding(),
            apparmor: std::fs::read_to_string("/sys/module/apparmor/parameters/enabled")
                .is_ok_and(|text| text.starts_with('Y')),
            selinux: Path::new("/sys/fs/selinux/enforce").exists(),
        }
    }

    /// For the test mode without root: nothing that needs rights, and nothing that a test could not rely on everywhere.
    pub fn unprivileged() -> Self {
        let missing = || Err("not used in the unprivileged test mode".to_owned());
        Self {
            kernel: rustix::system::uname()
                .release()
                .to_string_lossy()
                .into_owned(),
            privileged: false,
            mount_namespace: missing(),
            pid_namespace: missing(),
            net_namespace: missing(),
            ipc_namespace: missing(),
            seccomp: missing(),
            seccomp_kill_process: false,
            landlock_abi: 0,
            landlock: missing(),
            mount_setattr: false,
            mount_api: false,
            close_range: false,
            clone3: false,
            pidfd: false,
            openat2: false,
            ambient: false,
            cap_last: probe::last_capability(),
            bounding: CapabilitySet::empty(),
            apparmor: false,
            selinux: false,
        }
    }

    /// The table of spec/executor.md 15.13 as it is on this host. What [`Features`] does not hold is asked here.
    pub fn matrix(&self) -> Vec<Row> {
        let answers = probe::run();
        let there = |probe| state(&feature(&answers, probe));
        let landlock = match &self.landlock {
            Ok(()) => format!("ABI {}", self.landlock_abi),
            Err(why) => why.clone(),
        };
        let lsm = |loaded: bool| if loaded { "loaded" } else { "not loaded" }.to_owned();
        let probed = |has: bool, probe| {
            if has {
                "yes".to_owned()
            } else {
                state(&feature(&answers, probe).and(Err("not used".to_owned())))
            }
        };
        vec![
            ("mount namespace", "2.6.26", state(&self.mount_namespace)),
            ("capabilities", "2.6.26", format!("0 to {}", self.cap_last)),
            ("subreaper", "3.4", there(Probe::Subreaper)),
            ("no_new_privs", "3.5", there(Probe::NoNewPrivileges)),
            ("seccomp filter", "3.5", state(&self.seccomp)),
            ("PID namespace", "3.8", state(&self.pid_namespace)),
            ("network namespace", "3.8", state(&self.net_namespace)),
            ("IPC namespace", "3.8", state(&self.ipc_namespace)),
            ("execveat", "3.19", there(Probe::Execveat)),
            (
                "ambient capabilities",
                "4.3",
                probed(self.ambient, Probe::Ambient),
            ),
            ("cgroup v2 controllers", "4.5", controllers()),
            (
                "seccomp kill-process",
                "4.14",
                probed(self.seccomp_kill_process, Probe::SeccompKillProcess),
            ),
            (
                "open_tree, move_mount",
                "5.2",
                probed(self.mount_api, Probe::MountApi),
            ),
            ("pidfd", "5.3", probed(self.pidfd, Probe::PidFd)),
            ("openat2", "5.6", probed(self.openat2, Probe::OpenAt2)),
            (
                "clone3 into a cgroup",
                "5.7",
                probed(self.clone3, Probe::Clone3),
            ),
            (
                "close_range",
                "5.11",
                probed(self.close_range, Probe::CloseRange),
            ),
            (
                "mount_setattr",
                "5.12",
                probed(self.mount_setattr, Probe::MountSetattr),
            ),
            ("Landlock", "5.13", landlock),
            ("cgroup.kill", "5.14", cgroup_kill()),
            ("nosymfollow mounts", "5.14", there(Probe::NoSymFollow)),
            ("SO_PEERPIDFD", "6.5", there(Probe::PeerPidFd)),
            ("AppArmor", "2.6.36", lsm(self.apparmor)),
            ("SELinux", "2.6.0", lsm(self.selinux)),
        ]
    }
}

fn state(feature: &Feature) -> String {
    match feature {
        Ok(()) => "yes".to_owned(),
        Err(why) => why.clone(),
    }
}

fn value(answers: &[(Probe, Answer)], probe: Probe) -> Result<i32, Refused> {
    match answers.iter().find(|(asked, _)| *asked == probe) {
        Some((_, Answer::Yes(value))) => Ok(*value),
        Some((_, Answer::No(why))) => Err(*why),
        None => Err(Refused::NotAsked(libc::ENOSYS)),
    }
}

fn feature(answers: &[(Probe, Answer)], probe: Probe) -> Feature {
    value(answers, probe).map(|_| ()).map_err(reason)
}

/// The words for a missing facility.
fn reason(refused: Refused) -> String {
    match refused {
        // An unknown namespace flag, kernel option or flag of a call is answered with EINVAL.
        Refused::Errno(libc::ENOSYS | libc::EINVAL) => "not in this kernel".to_owned(),
        Refused::Errno(libc::EOPNOTSUPP | libc::ENOPROTOOPT) => "not in this kernel".to_owned(),
        Refused::Errno(errno @ (libc::EPERM | libc::EACCES)) => {
            format!("refused ({})", errno_name(errno))
        }
        Refused::Errno(errno) => format!("failed ({})", errno_name(errno)),
        Refused::Killed(0) => "no answer".to_owned(),
        Refused::Killed(signal) => format!("answered with signal {signal}"),
        Refused::NotAsked(errno) => {
            format!("could not be tried: no process ({})", errno_name(errno))
        }
    }
}

/// Landlock says `EOPNOTSUPP` when it was built but not chosen.
fn landlock_reason(refused: Refused) -> String {
    match refused {
        Refused::Errno(libc::EOPNOTSUPP) => "switched off at boot (lsm=)".to_owned(),
        other => reason(other),
    }
}

fn errno_name(errno: i32) -> String {
    let name = match errno {
        libc::EPERM => "EPERM",
        libc::EACCES => "EACCES",
        libc::ENOSPC => "ENOSPC",
        libc::ENOMEM => "ENOMEM",
        libc::EAGAIN => "EAGAIN",
        libc::EUSERS => "EUSERS",
        libc::EMFILE => "EMFILE",
        libc::ENODEV => "ENODEV",
        libc::EFAULT => "EFAULT",
        libc::E2BIG => "E2BIG",
        _ => return format!("errno {errno}"),
    };
    name.to_owned()
}

/// What cannot be told counts as there, so that it will be dropped.
fn bounding() -> CapabilitySet {
    let last = probe::last_capability();
    let all = u64::MAX >> 63_u8.saturating_sub(last);
    creds::bounding(last).unwrap_or(CapabilitySet::from_bits_retain(all))
}

fn privileged() -> bool {
    let needed = CapabilitySet::SYS_ADMIN
        | CapabilitySet::SETUID
        | CapabilitySet::SETGID
        | CapabilitySet::SETPCAP;
    rustix::process::geteuid().is_root()
        && rustix::thread::capabilities(None).is_ok_and(|sets| sets.effective.contains(needed))
}

/// Where cgroup v2 is mounted, by itself or beside v1.
fn cgroup_root() -> Option<&'static Path> {
    ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"]
        .into_iter()
        .map(Path::new)
        .find(|dir| dir.join("cgroup.controllers").exists())
}

/// The controllers that this host's cgroup v2 has; a host with v1 only has none.
///
/// # Errors
/// There is no cgroup v2, or it cannot be read.
pub fn cgroup_controllers() -> Result<Vec<String>, String> {
    let root = cgroup_root().ok_or("this host has no cgroup v2")?;
    let file = root.join("cgroup.controllers");
    let text = std::fs::read_to_string(&file).map_err(|e| format!("{}: {e}", file.display()))?;
    Ok(text.split_whitespace().map(str::to_owned).collect())
}

fn controllers() -> String {
    match cgroup_controllers() {
        Ok(list) if list.is_empty() => "cgroup v2 without controllers".to_owned(),
        Ok(list) => list.join(" "),
        Err(why) => why,
    }
}

/// Every group but the root has the file; where there is only the root, nothing can be said.
fn cgroup_kill() -> String {
    let Some(root) = cgroup_root() else {
        return "no cgroup v2".to_owned();
    };
    let groups = std::fs::read_dir(root).into_iter().flatten().flatten();
    let mut files = groups.filter(|e| e.file_type().is_ok_and(|t| t.is_dir()));
    match files.next() {
        Some(group) if group.path().join("cgroup.kill").exists() => "yes".to_owned(),
        Some(_) => "not in this kernel".to_owned(),
        None => "unknown: there is no group to look at".to_owned(),
    }
}

#[cfg(test)]
impl Features {
    /// A kernel of today that has everything but security modules, whatever the machine of the tests has.
    pub(super) fn modern() -> Self {
        Self {
            kernel: "6.18".to_owned(),
            privileged: true,
            mount_namespace: Ok(()),
            pid_namespace: Ok(()),
            net_namespace: Ok(()),
            ipc_namespace: Ok(()),
            seccomp: Ok(()),
            seccomp_kill_process: true,
            landlock_abi: 7,
            landlock: Ok(()),
            mount_setattr: true,
            mount_api: true,
            close_range: true,
            clone3: true,
            pidfd: true,
            openat2: true,
            ambient: true,
            cap_last: 40,
            bounding: bounding(),
            apparmor: false,
            selinux: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_become_features_with_reasons() {
        let answers = [
            (Probe::Landlock, Answer::Yes(4)),
            (
                Probe::NetNamespace,
                Answer::No(Refused::Errno(libc::EINVAL)),
            ),
            (Probe::PidNamespace, Answer::No(Refused::Errno(libc::EPERM))),
            (Probe::MountSetattr, Answer::No(Refused::Errno(libc::EPERM))),
            (Probe::SeccompFilter, Answer::No(Refused::Killed(31))),
            (Probe::Clone3, Answer::Yes(0)),
        ];
        let features = Features::from_answers(&answers);
        assert_eq!(features.landlock_abi, 4);
        assert_eq!(features.landlock, Ok(()));
        assert_eq!(features.net_namespace, Err("not in this kernel".to_owned()));
        assert_eq!(features.pid_namespace, Err("refused (EPERM)".to_owned()));
        assert_eq!(features.seccomp, Err("answered with signal 31".to_owned()));
        assert!(!features.mount_setattr);
        assert!(features.clone3);
    }

    #[test]
    fn landlock_that_is_switched_off_says_so() {
        let off = [(
            Probe::Landlock,
            Answer::No(Refused::Errno(libc::EOPNOTSUPP)),
        )];
        let features = Features::from_answers(&off);
        assert_eq!(features.landlock_abi, 0);
        assert!(features.landlock.unwrap_err().contains("lsm="));
    }

    #[test]
    fn probing_leaves_descriptors_and_namespaces_as_they_were() {
        let namespace = || std::fs::read_link("/proc/thread-self/ns/mnt").unwrap();
        let before = namespace();
        let features = Features::probe();
        assert_eq!(before, namespace());
        assert!(!features.kernel.is_empty());
        assert!(features.cap_last >= 37);
        if rustix::process::geteuid().is_root() {
            assert_eq!(features.privileged, privileged());
        }
    }

    #[test]
    fn the_matrix_has_every_row_and_no_empty_cell() {
        for features in [Features::probe(), Features::unprivileged()] {
            let rows = features.matrix();
            assert_eq!(rows.len(), 24);
            assert!(rows.iter().all(|(name, kernel, state)| {
                !name.is_empty() && !kernel.is_empty() && !state.is_empty()
            }));
        }
    }
}
