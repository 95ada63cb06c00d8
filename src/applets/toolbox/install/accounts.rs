//! Accounts, the platform's way (spec/operations.md 2, 16.1): its own programs where they are, else its files, edited whole.

use std::collections::BTreeSet;
use std::path::Path;

use super::platform::System;

/// How accounts are made and removed here.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Means {
    /// `useradd` and its relatives.
    Shadow,
    Sysusers,
    Busybox,
    /// The files themselves: OpenWrt, which has no program for it, and every root that is not the running system's.
    Files,
}

impl Means {
    pub(super) fn of(root: &Path, system: System) -> Self {
        let has = |names: &[&str]| {
            names.iter().all(|name| {
                ["usr/sbin", "usr/bin", "sbin", "bin"]
                    .iter()
                    .any(|dir| root.join(dir).join(name).exists())
            })
        };
        if root != Path::new("/") || system == System::OpenWrt {
            Self::Files
        } else if system == System::Alpine && has(&["adduser", "addgroup"]) {
            Self::Busybox
        } else if has(&["useradd", "groupadd"]) {
            Self::Shadow
        } else if has(&["systemd-sysusers"]) {
            Self::Sysusers
        } else {
            Self::Files
        }
    }
}

const NO_HOME: &str = "/nonexistent";

pub(super) fn no_shell(system: System) -> &'static str {
    match system {
        System::OpenWrt => "/bin/false",
        System::Alpine => "/sbin/nologin",
        System::Debian | System::Other => "/usr/sbin/nologin",
    }
}

/// The command that makes a group; `None` where files are edited.
pub(super) fn add_group(means: Means, name: &str) -> Option<Vec<String>> {
    match means {
        Means::Shadow => Some(words(&["groupadd", "--system", name])),
        Means::Busybox => Some(words(&["addgroup", "-S", name])),
        Means::Sysusers => Some(words(&[
            "systemd-sysusers",
            "--inline",
            &format!("g {name} -"),
        ])),
        Means::Files => None,
    }
}

/// The command that makes a user, its group being there.
pub(super) fn add_user(
    means: Means,
    system: System,
    name: &str,
    about: &str,
) -> Option<Vec<String>> {
    let shell = no_shell(system);
    match means {
        Means::Shadow => Some(words(&[
            "useradd",
            "--system",
            "--no-create-home",
            "--home-dir",
            NO_HOME,
            "--shell",
            shell,
            "--gid",
            name,
            "--comment",
            about,
            name,
        ])),
        Means::Busybox => Some(words(&[
            "adduser", "-S", "-D", "-H", "-h", NO_HOME, "-s", shell, "-G", name, "-g", about, name,
        ])),
        Means::Sysusers => {
            let line = format!("u {name} - \"{about}\" {NO_HOME} {shell}");
            Some(words(&["systemd-sysusers", "--inline", &line]))
        }
        Means::Files => None,
    }
}

/// The commands that remove user and group, and the exit codes that are as good as 0: the first may have taken the group along.
pub(super) fn remove(means: Means, name: &str) -> Option<[(Vec<String>, &'static [i32]); 2]> {
    match means {
        Means::Shadow => Some([
            (words(&["userdel", name]), &[]),
            (words(&["groupdel", name]), &[6]),
        ]),
        Means::Busybox => Some([
            (words(&["deluser", name]), &[]),
            (words(&["delgroup", name]), &[1]),
        ]),
        Means::Sysusers | Means::Files => None,
    }
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// A number that no user and no group has. On OpenWrt from 65536 up, where it numbers accounts itself that no package has numbered;
/// elsewhere the highest of the system's own range.
pub(super) fn free_id(system: System, taken: &BTreeSet<u32>) -> Option<u32> {
    let free = |id: &u32| !taken.contains(id);
    match system {
        System::OpenWrt => (65_536..=131_071).find(free),
        _ => (100..=999).rev().find(free),
    }
}

/// Lines for the account files, without the name.
pub(super) fn passwd_line(system: System, name: &str, uid: u32, gid: u32, about: &str) -> String {
    format!(
        "{name}:x:{uid}:{gid}:{about}:{NO_HOME}:{}",
        no_shell(system)
    )
}

pub(super) fn group_line(name: &str, gid: u32) -> String {
    format!("{name}:x:{gid}:")
}

/// Locked: no password opens it.
pub(super) fn shadow_line(name: &str) -> String {
    format!("{name}:!:0:0:99999:7:::")
}

/// The file with one more line; as it is if the account has a line already.
pub(super) fn with_line(file: &[u8], line: &str) -> Vec<u8> {
    let name = line.split(':').next().unwrap_or_default();
    let mut text = file.to_vec();
    if file.split(|b| *b == b'\n').any(|old| is_of(old, name)) {
        return text;
    }
    if text.last().is_some_and(|last| *last != b'\n') {
        text.push(b'\n');
    }
    text.extend_from_slice(line.as_bytes());
    text.push(b'\n');
    text
}

/// The file without the lines of an account.
pub(super) fn without(file: &[u8], name: &str) -> Vec<u8> {
    file.split_inclusive(|b| *b == b'\n')
        .filter(|line| !is_of(line, name))
        .flatten()
        .copied()
        .collect()
}

fn is_of(line: &[u8], name: &str) -> bool {
    line.strip_prefix(name.as_bytes())
        .is_some_and(|rest| rest.first() == Some(&b':'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_and_go_and_nothing_else_changes() {
        let file = b"root:x:0:0::/:/bin/sh\nctrl-exec-agent:x:9:9::/:\nlast:x:1:1";
        let more = with_line(file, "ctrl-exec:x:999:999:c:/n:/s");
        assert_eq!(
            more,
            b"root:x:0:0::/:/bin/sh\nctrl-exec-agent:x:9:9::/:\nlast:x:1:1\nctrl-exec:x:999:999:c:/n:/s\n"
        );
        assert_eq!(with_line(&more, "ctrl-exec:x:1:1:::"), more);
        assert_eq!(
            without(&more, "ctrl-exec"),
            b"root:x:0:0::/:/bin/sh\nctrl-exec-agent:x:9:9::/:\nlast:x:1:1\n"
        );
        assert_eq!(with_line(b"", "a:x:1:"), b"a:x:1:\n");
    }

    #[test]
    fn numbers_are_free_and_differ() {
        let mut taken = BTreeSet::from([0, 999, 998, 65_534]);
        assert_eq!(free_id(System::Debian, &taken), Some(997));
        assert_eq!(free_id(System::OpenWrt, &taken), Some(65_536));
        taken.insert(65_536);
        assert_eq!(free_id(System::OpenWrt, &taken), Some(65_537));
        taken.extend(100..=999);
        assert_eq!(free_id(System::Alpine, &taken), None);
    }

    #[test]
    fn each_platform_has_its_programs() {
        let first = |means| add_user(means, System::Alpine, "a", "b").map(|words| words[0].clone());
        assert_eq!(first(Means::Shadow).as_deref(), Some("useradd"));
        assert_eq!(first(Means::Busybox).as_deref(), Some("adduser"));
        assert_eq!(first(Means::Sysusers).as_deref(), Some("systemd-sysusers"));
        assert_eq!(first(Means::Files), None);
        assert_eq!(add_group(Means::Files, "a"), None);
    }
}
