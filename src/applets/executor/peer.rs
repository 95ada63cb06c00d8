//! Who may speak to the executor: one user, and nothing that we have started ourselves (spec/executor.md 3.2, 15.9).

use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::path::Path;

use super::house::Peer;
use crate::core::sys::{self, small_files};

/// What a peer must be.
#[derive(Debug)]
pub(super) struct Rules<'a> {
    /// Uid of `<peer-user>`.
    pub(super) uid: u32,
    /// `--allow-root-peer`
    pub(super) allow_root: bool,
    /// Where our runs have their cgroups: whoever is in there is a script.
    pub(super) runs: Option<&'a Path>,
    /// The only systemd unit whose processes are served.
    pub(super) unit: Option<&'a str>,
}

/// A peer that is not served, and why. Nothing is sent to it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Rejected {
    /// `None`: the kernel would not even say who it is.
    pub(super) peer: Option<Peer>,
    pub(super) reason: &'static str,
}

/// Looks at who has connected.
pub(super) fn admit(connection: impl AsFd, rules: &Rules<'_>) -> Result<Peer, Rejected> {
    let Ok(found) = sys::peer::credentials(connection.as_fd()) else {
        return Err(Rejected {
            peer: None,
            reason: "no credentials",
        });
    };
    let peer = Peer {
        uid: found.uid,
        pid: found.pid,
    };
    let rejected = |reason| {
        Err(Rejected {
            peer: Some(peer),
            reason,
        })
    };
    if peer.uid != rules.uid && !(peer.uid == 0 && rules.allow_root) {
        return rejected("uid");
    }
    if peer.pid <= 0 {
        return rejected("pid namespace");
    }
    let handle = sys::peer::pidfd(connection.as_fd()).ok();
    let groups = small_files::text(format!("/proc/{}/cgroup", peer.pid));
    // Asked afterwards: while the process that the handle means has the number, so had the one whose groups were read.
    match namespaces(peer.pid, handle.as_ref()) {
        Some(1) => {}
        None if handle.is_some() => return rejected("gone"),
        _ => return rejected("pid namespace"),
    }
    // Where our runs are told by their groups, a process without any cannot be told from one of them.
    let groups = match groups {
        Err(_) if rules.runs.is_some() => return rejected("gone"),
        groups => groups.unwrap_or_default(),
    };
    if rules.runs.is_some_and(|runs| is_run(&groups, runs)) {
        return rejected("a script of ours");
    }
    if rules.unit.is_some_and(|unit| !in_unit(&groups, unit)) {
        return rejected("unit");
    }
    Ok(peer)
}

/// In how many PID namespaces, beginning with ours, the process has a number. `None`: it has gone, or cannot be told.
fn namespaces(pid: i32, handle: Option<&OwnedFd>) -> Option<usize> {
    match handle {
        Some(handle) => namespaces_of(handle),
        // Before Linux 6.5. A kernel without PID namespaces has no such line.
        None => {
            let status = small_files::text(format!("/proc/{pid}/status")).ok()?;
            Some(count(&status).unwrap_or(1))
        }
    }
}

fn namespaces_of(handle: &OwnedFd) -> Option<usize> {
    let info = small_files::text(format!("/proc/self/fdinfo/{}", handle.as_raw_fd())).ok()?;
    if info
        .lines()
        .any(|line| line.split_whitespace().eq(["Pid:", "-1"]))
    {
        return None;
    }
    Some(count(&info).unwrap_or(1))
}

fn count(text: &str) -> Option<usize> {
    let line = text.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    Some(line.split_whitespace().count())
}

/// The path of each line of `/proc/<pid>/cgroup` (`0::/path`, and one per hierarchy of version 1).
fn paths(groups: &str) -> impl Iterator<Item = (&str, &Path)> {
    groups.lines().filter_map(|line| {
        let mut parts = line.splitn(3, ':');
        let (_, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
        Some((controllers, Path::new(path)))
    })
}

/// Whether the unified group lies below `runs`, a directory somewhere in a mounted cgroup file system. Where that is mounted does not
/// matter: the path that the kernel shows is the end of the directory's.
fn is_run(groups: &str, runs: &Path) -> bool {
    let unified = paths(groups).find(|(controllers, _)| controllers.is_empty());
    unified.is_some_and(|(_, path)| {
        let below_root = |above: &Path| above.strip_prefix("/").unwrap_or(above).to_owned();
        // The group of runs has a name of its own, so that an ancestor is never "everything".
        path.ancestors().map(below_root).any(|above| {
            above.components().count() > 0
                && runs.ends_with(&above)
                && above.file_name() == runs.file_name()
        })
    })
}

/// Whether systemd has put the process into this unit of the system: slices, then the unit. Below a user's manager anybody can make a
/// group of any name.
fn in_unit(groups: &str, unit: &str) -> bool {
    paths(groups)
        .filter(|(controllers, _)| matches!(*controllers, "" | "name=systemd"))
        .any(|(_, path)| {
            let mut names = path.iter().skip(1).filter_map(|name| name.to_str());
            let after_slices = names.find(|name| !name.ends_with(".slice"));
            after_slices == Some(unit) && !path.starts_with("/user.slice")
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    fn rules() -> Rules<'static> {
        Rules {
            uid: rustix::process::getuid().as_raw(),
            allow_root: false,
            runs: None,
            unit: None,
        }
    }

    #[test]
    fn the_user_is_served_and_nobody_else() {
        let (one, _other) = UnixStream::pair().unwrap();
        let me = admit(&one, &rules()).unwrap();
        assert_eq!(u32::try_from(me.pid), Ok(std::process::id()));
        let other = Rules {
            uid: rules().uid + 1,
            ..rules()
        };
        let rejected = admit(&one, &other).unwrap_err();
        assert_eq!((rejected.peer, rejected.reason), (Some(me), "uid"));
        let root_too = Rules {
            allow_root: true,
            ..other
        };
        assert_eq!(admit(&one, &root_too).is_ok(), me.uid == 0);
    }

    #[test]
    fn a_process_with_a_number_of_its_own_is_a_script() {
        assert_eq!(count("Name:\tx\nNSpid:\t12\n"), Some(1));
        assert_eq!(count("NSpid:\t12\t1\n"), Some(2));
        assert_eq!(count("Name:\tx\n"), None);
        assert_eq!(namespaces(i32::MAX, None), None);
    }

    #[test]
    fn groups_below_the_runs_are_scripts() {
        let runs = Path::new("/sys/fs/cgroup/system.slice/ctrl-exec-exec.service/runs");
        let inside = "0::/system.slice/ctrl-exec-exec.service/runs/run-77\n";
        assert!(is_run(inside, runs));
        assert!(is_run(
            "1:name=systemd:/\n0::/system.slice/ctrl-exec-exec.service/runs/a/b\n",
            runs
        ));
        for outside in [
            "0::/\n",
            "0::/system.slice/ctrl-exec-agent.service\n",
            "0::/system.slice/ctrl-exec-exec.service/supervisor\n",
            "0::/other/runs/x\n",
            "1:name=systemd:/system.slice/ctrl-exec-exec.service/runs/run-77\n",
            "",
        ] {
            assert!(!is_run(outside, runs), "{outside}");
        }
        assert!(is_run(
            "0::/ctrl-exec/runs/run-1",
            Path::new("/sys/fs/cgroup/unified/ctrl-exec/runs")
        ));
    }

    #[test]
    fn a_unit_is_one_of_the_system() {
        let unit = "ctrl-exec-agent.service";
        for inside in [
            "0::/system.slice/ctrl-exec-agent.service\n",
            "0::/system.slice/ctrl-exec-agent.service/sub\n",
            "5:memory:/x\n1:name=systemd:/system.slice/ctrl-exec-agent.service\n",
            "0::/a.slice/a-b.slice/ctrl-exec-agent.service",
        ] {
            assert!(in_unit(inside, unit), "{inside}");
        }
        for outside in [
            "",
            "0::/\n",
            "0::/system.slice/other.service/ctrl-exec-agent.service\n",
            "0::/user.slice/ctrl-exec-agent.service\n",
            "0::/user.slice/user-1.slice/user@1.service/ctrl-exec-agent.service\n",
            "5:memory:/system.slice/ctrl-exec-agent.service\n",
        ] {
            assert!(!in_unit(outside, unit), "{outside}");
        }
    }
}
