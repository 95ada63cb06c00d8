//! Real processes, watched as a supervisor watches them: from a process with one thread.

use super::*;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use rustix::process::Pid;

use crate::core::config::{Baseline, ExecutorConfig, ProfileConfig};
use crate::core::exec::TRUNCATED_MARK;
use crate::core::sandbox::Protections;
use crate::core::sandbox::cgroup::{Hierarchy, Leaf};
use crate::core::sys::wait::{in_own_process, take_over_signals, unblock_signals};

fn rules() -> Rules {
    Rules {
        timeout: Some(Duration::from_secs(30)),
        kill_grace: Duration::from_secs(5),
        drain_grace: Duration::from_millis(200),
        on_disconnect: OnDisconnect::Continue,
        leftovers: Leftovers::Keep,
        max_output: 1 << 20,
        stdin: Vec::new(),
        files: None,
    }
}

fn signals() -> OwnedFd {
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).unwrap();
    take_over_signals(&[Signal::TERM, Signal::USR1, Signal::CHILD]).unwrap()
}

/// Starts what the child of the sandbox would have become.
#[allow(clippy::zombie_processes, reason = "reaped by what is tested")]
fn start(script: &str, leaf: Option<&Leaf>) -> (Started, Ends) {
    let (ends, io) = pipes().unwrap();
    let join = leaf.map_or(String::new(), |leaf| {
        format!("echo $$ > {}/cgroup.procs; ", leaf.dir().display())
    });
    let child = Command::new("/bin/sh")
        .args(["-c", &format!("{join}{script}")])
        .stdin(Stdio::from(io.stdin))
        .stdout(Stdio::from(io.stdout))
        .stderr(Stdio::from(io.stderr))
        .process_group(0)
        .spawn()
        .unwrap();
    let pid = Pid::from_child(&child);
    let started = Started {
        pid,
        pidfd: rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).ok(),
        init: false,
    };
    (started, ends)
}

fn go_with(script: &str, rules: Rules, client: Option<&UnixStream>, leaf: Option<Leaf>) -> Ended {
    drop(signals());
    // Std hands the mask on.
    unblock_signals();
    let (started, ends) = start(script, leaf.as_ref());
    let signals = signals();
    let tree = Tree::new(started.pid, false, leaf);
    let (ended, left) = watch(started, tree, ends, rules, client, &signals);
    assert!(!matches!(left, Left::Init(_)));
    left.clear(Duration::ZERO, &signals);
    ended
}

fn go(script: &str, rules: Rules) -> Ended {
    go_with(script, rules, None, None)
}

/// Processes with this word in their command line.
fn with_word(word: &str) -> usize {
    let found = std::fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter(|entry| {
            std::fs::read(entry.path().join("cmdline"))
                .is_ok_and(|line| String::from_utf8_lossy(&line).contains(word))
        });
    // The shell of a script has it in its own text.
    found.count()
}

#[test]
fn status_and_streams_are_those_of_the_script() {
    in_own_process(|| {
        let ended = go(
            "cat; echo err >&2; exit 7",
            Rules {
                stdin: b"hello".to_vec(),
                ..rules()
            },
        );
        assert_eq!(ended.status, Some(7 << 8));
        assert_eq!(
            (ended.stdout, ended.stderr),
            (b"hello".to_vec(), b"err\n".to_vec())
        );
        assert_eq!(
            (ended.stop, ended.truncated, ended.written),
            (None, (false, false), (5, 4))
        );
        assert!(ended.usage.cpu.is_some() && ended.usage.memory_peak.is_some());
    });
}

#[test]
fn input_and_output_do_not_wait_for_each_other() {
    in_own_process(|| {
        let ended = go(
            "head -c 1000000 /dev/zero; head -c 1000000 /dev/zero >&2; cat >&2; exit 3",
            Rules {
                stdin: vec![b'x'; 1_000_000],
                max_output: 4 << 20,
                ..rules()
            },
        );
        assert_eq!(ended.status, Some(3 << 8));
        assert_eq!(
            (ended.stdout.len(), ended.stderr.len()),
            (1_000_000, 2_000_000)
        );
        let ended = go(
            "exec 0<&-; head -c 1000000 /dev/zero",
            Rules {
                stdin: vec![b'x'; 1_000_000],
                ..rules()
            },
        );
        assert_eq!((ended.status, ended.stdout.len()), (Some(0), 1_000_000));
    });
}

#[test]
fn much_output_is_cut_and_the_script_goes_on() {
    in_own_process(|| {
        let ended = go(
            "head -c 3000000 /dev/zero; echo x >&2; exit 5",
            Rules {
                max_output: 1000,
                ..rules()
            },
        );
        assert_eq!(ended.status, Some(5 << 8));
        assert_eq!(ended.stdout.len(), 1000 + TRUNCATED_MARK.len());
        assert_eq!(
            (ended.truncated, ended.written),
            ((true, false), (3_000_000, 2))
        );
    });
}

#[test]
fn a_background_child_does_not_hold_the_reply_and_stays_only_if_it_may() {
    in_own_process(|| {
        let word = format!("0.{}1", std::process::id());
        let script = format!("(setsid sleep 300 {word} &); echo before; exit 4");
        let ended = go(&script, rules());
        assert_eq!(
            (ended.status, ended.stdout.as_slice()),
            (Some(4 << 8), &b"before\n"[..])
        );
        assert_eq!(with_word(&word), 1);
        let ended = go(
            &script,
            Rules {
                leftovers: Leftovers::Kill,
                ..rules()
            },
        );
        assert_eq!((ended.status, ended.stop), (Some(4 << 8), None));
        // The first one as well: it was a child of ours.
        assert_eq!(with_word(&word), 0);
    });
}

#[test]
fn a_timeout_ends_a_script_that_obeys_with_sigterm() {
    in_own_process(|| {
        let ended = go(
            "trap 'echo bye; exit 0' TERM; while :; do sleep 0.05; done",
            Rules {
                timeout: Some(Duration::from_millis(200)),
                kill_grace: Duration::from_secs(30),
                ..rules()
            },
        );
        assert_eq!((ended.stop, ended.status), (Some(Stop::Timeout), Some(0)));
        assert_eq!((ended.stdout.as_slice(), ended.left), (&b"bye\n"[..], 0));
    });
}

/// Fifty that ignore SIGTERM and have left parent, group and session.
fn fifty(word: &str) -> String {
    format!(
        "trap '' TERM; i=0; while [ $i -lt 50 ]; do (setsid sleep 300 {word} &); i=$((i+1)); done; sleep 300 {word}"
    )
}

fn fifty_are_gone(leaf: Option<Leaf>, stop: impl FnOnce(&str) -> Rules) {
    let word = format!("0.{}2", std::process::id());
    let dir = leaf.as_ref().map(|leaf| leaf.dir().to_owned());
    let ended = go_with(&fifty(&word), stop(&word), None, leaf);
    assert_eq!(ended.stop, Some(Stop::Timeout));
    assert!(ended.left > 50, "{}", ended.left);
    assert_eq!(ended.status, Some(9));
    assert_eq!(with_word(&word), 0);
    assert!(!dir.is_some_and(|dir| dir.exists()));
}

fn short() -> Rules {
    Rules {
        timeout: Some(Duration::from_secs(2)),
        kill_grace: Duration::from_millis(300),
        ..rules()
    }
}

#[test]
fn fifty_stubborn_processes_are_gone_by_being_their_subreaper() {
    in_own_process(|| fifty_are_gone(None, |_| short()));
}

#[test]
fn fifty_stubborn_processes_are_gone_with_their_cgroup() {
    if !rustix::process::geteuid().is_root() {
        assert!(std::env::var_os("CI").is_none(), "this test needs root");
        return;
    }
    let Some((parent, hierarchy)) = own_hierarchy() else {
        return;
    };
    in_own_process(|| {
        let profile = ProfileConfig::new(Baseline::Compat);
        let name = Hierarchy::name_of(std::process::id());
        let leaf = hierarchy
            .leaf(&name, None, &profile, &mut Protections::default())
            .unwrap();
        fifty_are_gone(leaf, |_| short());
    });
    let _ = std::fs::remove_dir(hierarchy.runs());
    let _ = std::fs::remove_dir(parent);
}

/// `None` where the host has no cgroup v2 that we may write to.
fn own_hierarchy() -> Option<(PathBuf, Hierarchy)> {
    let mountinfo = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let line = mountinfo.lines().find(|l| l.contains(" - cgroup2 "))?;
    let mount = PathBuf::from(line.split(' ').nth(4)?);
    let parent = mount.join(format!("ctrl-exec-test-watch-{}", std::process::id()));
    let config = ExecutorConfig {
        cgroup_parent: Some(parent.clone()),
        ..ExecutorConfig::default()
    };
    Some((parent, Hierarchy::set_up(&config).ok()?))
}

#[test]
fn signals_end_the_run_and_say_why() {
    in_own_process(|| {
        for (signal, stop) in [("TERM", Stop::Shutdown), ("USR1", Stop::Cancelled)] {
            let script = format!(
                "sleep 0.3; kill -{signal} {}; exec sleep 300",
                std::process::id()
            );
            let ended = go(&script, rules());
            assert_eq!((ended.stop, ended.status), (Some(stop), Some(15)));
        }
    });
}

#[test]
fn only_a_client_that_has_gone_for_good_has_gone() {
    in_own_process(|| {
        let kill = || Rules {
            on_disconnect: OnDisconnect::Kill,
            ..rules()
        };
        let (ours, theirs) = UnixStream::pair().unwrap();
        theirs.shutdown(std::net::Shutdown::Write).unwrap();
        let ended = go_with("sleep 0.3; exit 6", kill(), Some(&ours), None);
        assert_eq!((ended.stop, ended.status), (None, Some(6 << 8)));

        drop(theirs);
        let ended = go_with("exec sleep 300", kill(), Some(&ours), None);
        assert_eq!(
            (ended.stop, ended.status),
            (Some(Stop::Disconnect), Some(15))
        );
        let ended = go_with("sleep 0.3; exit 6", rules(), Some(&ours), None);
        assert_eq!((ended.stop, ended.status), (None, Some(6 << 8)));
    });
}

#[test]
fn a_script_that_stops_itself_is_ended_all_the_same() {
    in_own_process(|| {
        let ended = go(
            "kill -STOP $$; exit 0",
            Rules {
                timeout: Some(Duration::from_millis(200)),
                kill_grace: Duration::from_millis(100),
                ..rules()
            },
        );
        assert_eq!((ended.stop, ended.status), (Some(Stop::Timeout), Some(9)));
    });
}

#[test]
fn a_detached_run_keeps_its_streams_in_files() {
    in_own_process(|| {
        let (out, err) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        let kept = out.try_clone().unwrap();
        let ended = go(
            "echo one; echo two >&2",
            Rules {
                files: Some((out, err)),
                ..rules()
            },
        );
        assert_eq!(
            (ended.stdout.as_slice(), ended.stderr.as_slice()),
            (&b"one\n"[..], &b"two\n"[..])
        );
        assert_eq!(kept.metadata().unwrap().len(), 4);
    });
}
