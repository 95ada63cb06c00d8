//! What the caller of a script reads when it could not be started: the original's words where it has any (spec/executor.md 9.2).

use std::io;

use super::{Step, StepFailed};
use crate::core::sandbox::prepare::Prepared;

impl Step {
    /// As logs spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Session => "session",
            Self::Cgroup => "cgroup",
            Self::Namespaces => "namespaces",
            Self::MountPropagation => "mount propagation",
            Self::MountReadOnly => "read-only filesystem",
            Self::MountWritable => "writable paths",
            Self::MountPrivateTmp => "private /tmp",
            Self::MountProtect => "protected paths",
            Self::MountHide => "hidden paths",
            Self::MountTunables => "kernel tunables",
            Self::MountDevices => "devices",
            Self::MountProc => "proc",
            Self::MountScript => "script file",
            Self::Limits => "limits",
            Self::Landlock => "landlock",
            Self::BoundingSet => "bounding set",
            Self::Groups => "groups",
            Self::Gid => "gid",
            Self::Uid => "uid",
            Self::Capabilities => "capabilities",
            Self::Ambient => "ambient capabilities",
            Self::SecureBits => "securebits",
            Self::NoNewPrivileges => "no_new_privileges",
            Self::Filter => "system call filter",
            Self::DeathSignal => "parent-death signal",
            Self::Descriptors => "descriptors",
            Self::Lsm => "security label",
            Self::Directory => "working directory",
            Self::Loopback => "loopback interface",
            Self::Init => "init",
            Self::Executable => "executable",
            Self::Exec => "exec",
        }
    }
}

impl StepFailed {
    /// One line for stderr, without a newline.
    pub fn text(&self, prepared: &Prepared) -> String {
        let errno = self.errno_text();
        let path = || prepared.command.path.to_string_lossy();
        match self.step {
            Step::Namespaces => format!("unshare: {errno}"),
            Step::MountPropagation => format!("mount private: {errno}"),
            Step::MountReadOnly => format!("executor: read-only filesystem: {errno}"),
            Step::MountWritable => format!("executor: bind writable: {errno}"),
            Step::MountPrivateTmp => format!("executor: private /tmp: {errno}"),
            Step::MountProtect => format!("bind control: {errno}"),
            Step::Groups => format!("initgroups: {errno}"),
            Step::Gid => format!("setgid: {errno}"),
            Step::Uid => format!("setuid: {errno}"),
            Step::Capabilities => format!("cap_set_proc: {errno}"),
            Step::Directory => format!(
                "executor: working directory '{}': {errno}",
                prepared.cwd.to_string_lossy()
            ),
            Step::Executable => format!(
                "executor: '{}' is not executable by the profile's run_as user ({errno}); check owner, group and mode of the file \
                 and of the directories above it",
                path()
            ),
            Step::Exec => format!("executor: exec '{}' failed: {errno}", path()),
            other => format!("executor: {}: {errno}", other.name()),
        }
    }

    /// The system's words for the errno, without the number.
    pub fn errno_text(&self) -> String {
        let text = io::Error::from_raw_os_error(self.errno).to_string();
        match text.find(" (os error") {
            Some(end) => text[..end].to_owned(),
            None => text,
        }
    }
}
