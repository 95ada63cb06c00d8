//! Whatever a script does, its run ends when it must, everything it started ends with it, and the executor stays
//! (spec/executor.md 10, 15.7, 19 "supervision").

#![allow(clippy::unwrap_used, reason = "helpers of tests stop as tests do")]

mod common;

use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use common::executor::{Ask, Executor, ask, kind, order, told, with_words};
use common::{PATIENCE, process, root_or_skip, wait_until};
use rustix::process::{Pid, Signal, kill_process};

/// The ways of killing a whole tree; the names of their profiles.
const WAYS: [(&str, &str); 3] = [
    ("group", "run_as = nobody\nleftovers = kill\ncgroup = try"),
    (
        "subreaper",
        "run_as = nobody\nleftovers = kill\ncgroup = off",
    ),
    (
        "namespace",
        "run_as = nobody\nleftovers = kill\ncgroup = off\nprocesses = private",
    ),
];

fn executor(more: &str) -> Executor {
    let mut executor = Executor::new("compat");
    for (name, lines) in WAYS {
        executor.profile(name, &format!("{lines}\n{more}"));
    }
    executor
}

/// A number of seconds that no other test sleeps.
fn mark() -> String {
    static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    format!(
        "3600.{}{:03}",
        std::process::id(),
        NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
    )
}

#[track_caller]
fn none_left(mark: &str, what: &str) {
    // The last ones may be on their way out when the answer comes.
    let end = Instant::now() + Duration::from_secs(1);
    loop {
        let left = with_words(mark);
        if left.is_empty() {
            return;
        }
        if Instant::now() > end {
            for pid in &left {
                kill(*pid, Signal::KILL);
            }
            panic!("{what}: processes {left:?} outlive their run");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn kill(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    let _ = kill_process(pid, signal);
}

#[test]
fn fifty_processes_that_hide_and_ignore_signals_go_with_the_timeout() {
    if !root_or_skip("fifty_processes_that_hide_and_ignore_signals_go_with_the_timeout") {
        return;
    }
    let mut executor = executor("timeout = 2\nkill_grace = 1");
    for (way, _) in WAYS {
        executor.shell(
            way,
            way,
            "trap '' TERM\ni=0\nwhile [ $i -lt 50 ]; do setsid sh -c \"(exec sleep $1) &\" & i=$((i+1)); done\nwait\nexec sleep $1",
        );
    }
    executor.start();
    for (way, _) in WAYS {
        let mark = mark();
        let waiting = executor.send(&Ask::new(way).args(&[&mark]));
        wait_until("all have started", PATIENCE, || {
            (with_words(&format!("sleep {mark}")).len() >= 51).then_some(())
        });
        let answer = waiting
            .answer()
            .unwrap()
            .exit(126)
            .err_has("executor: timed out after 2s\n");
        assert_eq!(answer.kind(), Some(kind::TIMEOUT), "{way}");
        // timeout + kill_grace + 1 s, and what a loaded machine adds.
        assert!(
            answer.took < Duration::from_secs(12),
            "{way}: {:?}",
            answer.took
        );
        none_left(&mark, way);
        executor.wait_for_log(&["ACTION=exec-kill", "REASON=timeout"]);
    }
    executor.wait_until_idle();
    assert_no_leaf(&executor);
}

/// Groups of runs are removed with them.
#[track_caller]
fn assert_no_leaf(executor: &Executor) {
    let Some(group) = executor.cgroup() else {
        return;
    };
    let leaves = || {
        let mut found = Vec::new();
        let mut dirs = vec![group.to_owned()];
        while let Some(dir) = dirs.pop() {
            for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
                if entry.file_type().is_ok_and(|t| t.is_dir()) {
                    dirs.push(entry.path());
                    found.push(entry.path());
                }
            }
        }
        found
    };
    // Two stay: where the executor itself is and where runs get theirs.
    wait_until("the groups of runs are gone", PATIENCE, || {
        (leaves().len() <= 2).then_some(())
    });
}

#[test]
fn a_killed_supervisor_takes_its_run_along() {
    if !root_or_skip("a_killed_supervisor_takes_its_run_along") {
        return;
    }
    let mut executor = executor("");
    for (way, _) in WAYS {
        executor.shell(
            way,
            way,
            "sleep $1 &\nsetsid sh -c \"(exec sleep $1) &\"\nexec sleep $1",
        );
    }
    executor.start();
    for (way, _) in WAYS {
        let mark = mark();
        let waiting = executor.send(&Ask::new(way).args(&[&mark]));
        wait_until("it runs", PATIENCE, || {
            (with_words(&format!("sleep {mark}")).len() == 3).then_some(())
        });
        let supervisor = supervisor_of(&executor);
        kill(supervisor, Signal::KILL);
        assert!(
            waiting.answer().is_none(),
            "{way}: nobody can answer any more"
        );
        if way == "subreaper" || (way == "group" && executor.cgroup().is_none()) {
            // Without a group or a namespace only the script itself is sure to end.
            wait_until("the script ends", PATIENCE, || {
                (with_words(&format!("sleep {mark}")).len() == 2).then_some(())
            });
            with_words(&mark)
                .into_iter()
                .for_each(|pid| kill(pid, Signal::KILL));
        } else {
            wait_until("everything ends", PATIENCE, || {
                with_words(&mark).is_empty().then_some(())
            });
        }
        executor.run_with(way, &["0"]).exit(0);
    }
    assert_no_leaf(&executor);
}

/// That of the one run: one that is free, or about to be, has no child.
#[track_caller]
fn supervisor_of(executor: &Executor) -> u32 {
    let processes = common::executor::processes();
    let found: Vec<u32> = processes
        .iter()
        .filter(|(pid, parent)| {
            *parent == executor.pid() && processes.iter().any(|(_, above)| above == pid)
        })
        .map(|(pid, _)| *pid)
        .collect();
    assert_eq!(found.len(), 1, "one run is in progress: {found:?}");
    found[0]
}

#[test]
fn the_end_of_the_executor_ends_its_runs_and_says_so() {
    if !root_or_skip("the_end_of_the_executor_ends_its_runs_and_says_so") {
        return;
    }
    let mut executor = executor("kill_grace = 1");
    for (way, _) in WAYS {
        executor.shell(
            way,
            way,
            "trap '' TERM\nsetsid sh -c \"(exec sleep $1) &\"\nsleep $1",
        );
    }
    executor.start();
    let mark = mark();
    let waiting: Vec<_> = WAYS
        .iter()
        .map(|(way, _)| executor.send(&Ask::new(way).args(&[&mark])))
        .collect();
    wait_until("they run", PATIENCE, || {
        (with_words(&format!("sleep {mark}")).len() >= 6).then_some(())
    });
    assert_eq!(executor.stop(), 0);
    for one in waiting {
        let answer = one.answer().expect("an answer even so").exit(126);
        assert_eq!(answer.kind(), Some(kind::SHUTDOWN));
    }
    none_left(&mark, "shutdown");
    assert!(!executor.socket().exists());
}

#[test]
fn running_out_of_descriptors_or_processes_does_not_end_the_service() {
    if !root_or_skip("running_out_of_descriptors_or_processes_does_not_end_the_service") {
        return;
    }
    let mut executor = executor("");
    executor.shell("hello", "group", "echo hello");
    executor.start();
    executor.run("hello").exit(0);
    let pid = executor.pid().to_string();
    let limit = |n: &str| {
        process::run(Command::new("prlimit").args(["--pid", &pid, &format!("--nofile={n}:")])).ok()
    };
    limit("3");
    let stuck = executor.send(&Ask::new("hello"));
    std::thread::sleep(Duration::from_millis(500));
    assert!(
        executor.daemon().is_running(),
        "EMFILE on accept ends nothing"
    );
    limit("1024");
    // Whether this one is still served is left open; the next one is.
    drop(stuck.answer());
    executor.run("hello").exit(0);
    // No process more: by a limit on its group, because root has no other.
    let Some(group) = ProcessLimit::around(&mut executor) else {
        assert!(
            std::env::var_os("CI").is_none_or(|v| v.is_empty()),
            "no pids controller here, and in CI nothing may be left out"
        );
        println!("no pids controller here: the failing fork is left out");
        return;
    };
    // A supervisor that is free would need no fork.
    executor.wait_until_idle();
    group.set("1");
    for _ in 0..3 {
        let answer = executor.send(&Ask::new("hello")).answer_within(PATIENCE);
        assert!(answer.is_none_or(|a| a.exit == -1), "nothing can run");
    }
    assert!(executor.daemon().is_running(), "a failed fork ends nothing");
    executor.wait_for_log(&["ACTION=accept-failed", "ERROR="]);
    group.set("max");
    executor.run("hello").exit(0);
}

/// A cgroup with the pids controller around an executor.
struct ProcessLimit(std::path::PathBuf);

impl ProcessLimit {
    /// `None`: neither version of cgroup has the controller here.
    fn around(executor: &mut Executor) -> Option<Self> {
        if common::executor::controller("pids") {
            // Its own group, where it went by itself.
            let own = std::fs::read_to_string(format!("/proc/{}/cgroup", executor.pid())).ok()?;
            let place = own
                .lines()
                .find_map(|line| line.strip_prefix("0::/"))?
                .to_owned();
            let dir = common::executor::cgroup_root()?.join(place);
            return dir.join("pids.max").exists().then_some(Self(dir));
        }
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let line = mounts
            .lines()
            .find(|line| line.contains(" - cgroup ") && line.ends_with(",pids"))?;
        let dir = Path::new(line.split(' ').nth(4)?).join(executor.path("").file_name()?);
        std::fs::create_dir(&dir).ok()?;
        std::fs::write(dir.join("cgroup.procs"), executor.pid().to_string()).unwrap();
        Some(Self(dir))
    }

    fn set(&self, limit: &str) {
        std::fs::write(self.0.join("pids.max"), limit).unwrap();
    }
}

impl Drop for ProcessLimit {
    fn drop(&mut self) {
        self.set("max");
        // Back to where it came from, so that the group can go.
        if let (Some(parent), Ok(members)) = (
            self.0.parent(),
            std::fs::read_to_string(self.0.join("cgroup.procs")),
        ) {
            for pid in members.lines() {
                let _ = std::fs::write(parent.join("cgroup.procs"), pid);
            }
        }
        let _ = std::fs::remove_dir(&self.0);
    }
}

#[test]
fn without_a_writable_cgroup_runs_go_on_unless_it_is_required() {
    if !root_or_skip("without_a_writable_cgroup_runs_go_on_unless_it_is_required") {
        return;
    }
    let Some(root) = common::executor::cgroup_root() else {
        println!("no cgroup v2 here: every other test runs without");
        return;
    };
    for missing in [
        format!("mount -o remount,bind,ro {0}", root.display()),
        format!("mount -t tmpfs tmpfs {}", root.display()),
    ] {
        let mut executor = Executor::new("strict");
        executor.profile("try", "run_as = nobody");
        executor.profile("must", "run_as = nobody\ncgroup = require");
        executor.shell("try", "try", "echo ran");
        executor.shell("must", "must", "echo ran");
        executor.before(&missing);
        executor.start();
        assert_eq!(executor.run("try").exit(0).out(), "ran\n");
        let refused = executor.run("must").exit(126).err_has("cgroup");
        assert_eq!(refused.out(), "");
        executor.wait_for_log(&["ACTION=exec-degraded", "FEATURE=cgroup"]);
        executor.wait_for_log(&["ACTION=exec-deny", "REASON=feature-missing"]);
    }
}

#[test]
fn what_cannot_be_executed_says_why() {
    if !root_or_skip("what_cannot_be_executed_says_why") {
        return;
    }
    let mut executor = Executor::new("compat");
    executor.profile("p", "run_as = nobody");
    executor.script("no-shebang", "p", "echo not a program\n");
    executor.script("no-interpreter", "p", "#!/nonexistent/interpreter\n");
    executor.shell("gone", "p", "echo here");
    executor.shell("private", "p", "echo here");
    executor.entry(
        "noexec",
        &format!("{} profile=p", executor.text("scripts/mount/script")),
    );
    std::fs::create_dir(executor.path("scripts/mount")).unwrap();
    executor.before("mount -t tmpfs -o noexec,mode=755 tmpfs \"$T/scripts/mount\"; printf '#!/bin/sh\\necho ran\\n' >\"$T/scripts/mount/script\"; chmod 755 \"$T/scripts/mount/script\"");
    std::fs::set_permissions(
        executor.path("scripts/private"),
        std::os::unix::fs::PermissionsExt::from_mode(0o750),
    )
    .unwrap();
    std::fs::remove_file(executor.path("scripts/gone")).unwrap();
    executor.start();
    for (name, exit, text) in [
        ("no-shebang", 127, "failed: Exec format error"),
        ("no-interpreter", 127, "failed: No such file or directory"),
        (
            "private",
            126,
            "is not executable by the profile's run_as user",
        ),
        (
            "noexec",
            126,
            "is not executable by the profile's run_as user",
        ),
    ] {
        let answer = executor.run(name).exit(exit).err_has(text);
        assert!(
            answer.err().contains("executor: ") && answer.out().is_empty(),
            "{name}"
        );
        assert_eq!(answer.kind(), Some(kind::SETUP), "{name}");
    }
    // A script that is not there resolves to nothing in its directories.
    let gone = executor.run("gone");
    assert!(gone.exit == -1 || gone.exit == 126, "{}", gone.exit);
}

#[test]
fn a_script_that_changes_under_way_runs_as_it_was_checked() {
    if !root_or_skip("a_script_that_changes_under_way_runs_as_it_was_checked") {
        return;
    }
    let mut executor = Executor::new("strict");
    std::fs::set_permissions(
        executor.path("data/w"),
        std::os::unix::fs::PermissionsExt::from_mode(0o777),
    )
    .unwrap();
    executor.profile("p", "run_as = nobody\nwritable = $T/data/w");
    // A shell reads its script piece by piece: what follows the wait is not yet read.
    let padding = "# nothing happens here\n".repeat(4000);
    let body = |word: &str| {
        format!(
            "touch \"$1/started\"; while [ ! -e \"$1/go\" ]; do sleep 0.02; done\n{padding}echo {word}"
        )
    };
    executor.shell("long", "p", &body("checked!"));
    executor.shell("open", "p", "echo ran");
    executor.shell("pinned", "p", "echo ran");
    executor.entry(
        "wrong",
        &format!(
            "{} profile=p digest=sha256:{}",
            executor.text("scripts/pinned"),
            "0".repeat(64)
        ),
    );
    let sum = process::run(Command::new("sha256sum").arg(executor.path("scripts/pinned")))
        .ok()
        .out();
    let sum = sum.split(' ').next().unwrap().to_owned();
    executor.entry(
        "right",
        &format!(
            "{} profile=p digest=sha256:{sum}",
            executor.text("scripts/pinned")
        ),
    );
    std::fs::set_permissions(
        executor.path("scripts/open"),
        std::os::unix::fs::PermissionsExt::from_mode(0o775),
    )
    .unwrap();
    executor.start();
    let dir = executor.text("data/w");
    let waiting = executor.send(&Ask::new("long").args(&[&dir]));
    wait_until("it has started", PATIENCE, || {
        Path::new(&dir).join("started").exists().then_some(())
    });
    let changed = format!("#!/bin/sh\n{}\n", body("changed!"));
    std::fs::write(executor.path("scripts/long"), changed).unwrap();
    std::fs::write(Path::new(&dir).join("go"), "").unwrap();
    assert_eq!(waiting.answer().unwrap().exit(0).out(), "checked!\n");
    executor.run("open").exit(126).err_has("scripts/open");
    executor.wait_for_log(&["ACTION=exec-deny", "REASON=untrusted-script"]);
    executor.run("wrong").exit(126);
    executor.wait_for_log(&["ACTION=exec-deny", "REASON=digest-mismatch"]);
    assert_eq!(executor.run("right").exit(0).out(), "ran\n");
    // Pinned means pinned: the same name, another content.
    executor.write("scripts/pinned", "#!/bin/sh\necho other\n", 0o755);
    executor.run("right").exit(126);
}

#[test]
fn stopping_itself_does_not_outwit_the_timeout() {
    if !root_or_skip("stopping_itself_does_not_outwit_the_timeout") {
        return;
    }
    let mut executor = executor("timeout = 1\nkill_grace = 1");
    for (way, _) in WAYS {
        executor.shell(way, way, "sleep $1 &\nkill -STOP $!\nkill -STOP $$");
    }
    executor.start();
    for (way, _) in WAYS {
        let mark = mark();
        executor
            .run_with(way, &[&mark])
            .exit(126)
            .err_has("executor: timed out after 1s\n");
        none_left(&mark, way);
    }
}

#[test]
fn streams_are_bounded_and_never_block() {
    if !root_or_skip("streams_are_bounded_and_never_block") {
        return;
    }
    let mut executor = executor("timeout = 20");
    executor.profile(
        "short",
        "run_as = nobody\ntimeout = 1\nkill_grace = 1\nleftovers = kill",
    );
    executor.shell(
        "large",
        "group",
        "head -c 17000000 /dev/zero; echo end >&2; exit 5",
    );
    executor.shell("endless", "short", "yes out & yes err >&2");
    executor.shell("deaf", "group", "head -c 1048576 /dev/zero; exit 4");
    executor.shell("echo", "group", "head -c 1048576 /dev/zero; cat; exit 6");
    executor.shell("holds", "namespace", "sleep $1 & echo done; exit 7");
    executor.shell("holds-group", "group", "sleep $1 & echo done; exit 7");
    executor.start();
    let answer = executor.run("large").exit(5);
    assert!(
        answer.stdout.len() <= 16_777_216 + 64 && answer.stdout.len() > 16_777_000,
        "{}",
        answer.stdout.len()
    );
    assert!(answer.stdout.ends_with(b"\n[output truncated]\n"));
    assert_eq!(answer.err(), "end\n");
    assert_eq!(
        answer.number(told::FLAGS),
        Some(4),
        "stdout is truncated, stderr is not"
    );

    let answer = executor.run("endless").exit(126);
    assert!(answer.stdout.len() <= 16_777_216 + 64 && answer.stderr.len() <= 16_777_216 + 128);
    assert!(answer.err().contains("executor: timed out after 1s\n"));

    let megabyte = vec![b'x'; 1 << 20];
    let answer = executor.ask(&Ask::new("deaf").stdin(&megabyte)).exit(4);
    assert_eq!(answer.stdout.len(), 1 << 20);
    let answer = executor.ask(&Ask::new("echo").stdin(&megabyte)).exit(6);
    assert_eq!(answer.stdout.len(), 2 << 20);
    assert!(answer.stdout.ends_with(&megabyte));

    for name in ["holds", "holds-group"] {
        let mark = mark();
        let answer = executor.run_with(name, &[&mark]).exit(7);
        assert_eq!(answer.out(), "done\n");
        assert!(
            answer.took < Duration::from_secs(15),
            "{name}: {:?}",
            answer.took
        );
        none_left(&mark, name);
    }
}

#[test]
fn daemons_go_or_stay_as_the_profile_says() {
    if !root_or_skip("daemons_go_or_stay_as_the_profile_says") {
        return;
    }
    let mut executor = executor("");
    executor.profile("keep", "run_as = nobody\nleftovers = keep");
    for name in ["group", "subreaper", "namespace", "keep"] {
        executor.shell(
            name,
            name,
            "setsid sh -c \"exec sleep $1 >/dev/null 2>&1 </dev/null\" &\nexec >&- 2>&-\nexit 3",
        );
    }
    executor.start();
    for (way, _) in WAYS {
        let mark = mark();
        executor.run_with(way, &[&mark]).exit(3);
        none_left(&mark, way);
    }
    let mark = mark();
    executor.run_with("keep", &[&mark]).exit(3);
    std::thread::sleep(Duration::from_millis(300));
    let left = with_words(&format!("sleep {mark}"));
    left.iter().for_each(|pid| kill(*pid, Signal::KILL));
    assert_eq!(left.len(), 1, "leftovers = keep lets it live");
}

#[test]
fn deaths_by_signal_and_lost_clients() {
    if !root_or_skip("deaths_by_signal_and_lost_clients") {
        return;
    }
    let mut executor = executor("kill_grace = 1\non_disconnect = kill");
    executor.profile("continue", "run_as = nobody\non_disconnect = continue");
    std::fs::set_permissions(
        executor.path("data/w"),
        std::os::unix::fs::PermissionsExt::from_mode(0o777),
    )
    .unwrap();
    for (way, _) in WAYS {
        executor.shell(&format!("signal-{way}"), way, "kill -SEGV $$");
        executor.shell(&format!("sleep-{way}"), way, "exec sleep $1");
    }
    executor.shell("continue", "continue", "sleep 0.5; touch $1/done");
    executor.shell("half", "group", "sleep 0.5; echo done");
    executor.start();
    for (way, _) in WAYS {
        let answer = executor.run(&format!("signal-{way}")).exit(126);
        assert_eq!(
            (answer.kind(), answer.number(told::SIGNAL)),
            (Some(kind::SIGNAL), Some(11)),
            "{way}"
        );
        let mark = mark();
        let waiting = executor.send(&Ask::new(&format!("sleep-{way}")).args(&[&mark]));
        wait_until("it runs", PATIENCE, || {
            (!with_words(&mark).is_empty()).then_some(())
        });
        drop(waiting);
        wait_until("it is killed", PATIENCE, || {
            with_words(&mark).is_empty().then_some(())
        });
    }
    executor.wait_for_log(&["ACTION=exec-kill", "REASON=disconnect"]);
    let dir = executor.text("data/w");
    drop(executor.send(&Ask::new("continue").args(&[&dir])));
    wait_until("it goes on alone", PATIENCE, || {
        Path::new(&dir).join("done").exists().then_some(())
    });
    let waiting = executor.send(&Ask::new("half"));
    waiting.half_close();
    assert_eq!(waiting.answer().unwrap().exit(0).out(), "done\n");
}

#[test]
fn bad_frames_get_what_the_original_gives() {
    if !root_or_skip("bad_frames_get_what_the_original_gives") {
        return;
    }
    let mut executor = executor("");
    executor.house("request_timeout = 2");
    executor.shell("hello", "group", "echo hello");
    executor.start();
    let raw = |bytes: &[u8]| {
        let stream = UnixStream::connect(executor.socket()).unwrap();
        // A frame that is refused by its length may be closed before it is all written.
        let _ = (&stream).write_all(bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        common::executor::Waiting::of(stream).answer_within(PATIENCE)
    };
    for silent in [
        &b"\0\0\0\0"[..],
        &17_000_000_u32.to_be_bytes(),
        b"\0\0\0",
        b"",
        b"\0\0\0\x64abcd",
    ] {
        assert!(raw(silent).is_none(), "{silent:?}");
    }
    let mut overrun = Ask::new("hello").bytes();
    overrun[4..8].copy_from_slice(&1000_u32.to_be_bytes());
    let mut endless = overrun.clone();
    endless[4..8].copy_from_slice(&u32::MAX.to_be_bytes());
    let mut count = Ask::new("hello").bytes();
    let at = count.len() - 4;
    count[at..].copy_from_slice(&9999_u32.to_be_bytes());
    let mut one_missing = Ask::new("hello").bytes();
    one_missing[at..].copy_from_slice(&1_u32.to_be_bytes());
    let mut trailing = Ask::new("hello").bytes();
    trailing.push(0);
    let length = u32::try_from(trailing.len() - 4).unwrap();
    trailing[..4].copy_from_slice(&length.to_be_bytes());
    let many = Ask::new("hello").args(&["a"; 257]).bytes();
    let nul = Ask::new("hello").args(&["a\0b"]).bytes();
    let nameless = Ask::new("").bytes();
    let mut critical = Ask::new("hello");
    critical.trailer.push((999, 1, vec![]));
    for (bad, bytes) in [
        ("field past the end", overrun),
        ("field of 4 GiB", endless),
        ("9999 arguments", count),
        ("argument missing", one_missing),
        ("a byte behind", trailing),
        ("257 arguments", many),
        ("NUL", nul),
        ("no name", nameless),
        ("unknown critical tag", critical.bytes()),
    ] {
        let answer = raw(&bytes).unwrap_or_else(|| panic!("{bad}: closed without a word"));
        assert_eq!(
            (answer.exit, answer.err().as_str()),
            (-1, "executor: malformed request\n"),
            "{bad}"
        );
    }
    executor.ask(&Ask::new("hello").args(&["a"; 256])).exit(0);
    executor
        .ask(&Ask::new("hello").tag(999, b"unknown"))
        .exit(0);
    // Slow, but in time.
    let stream = UnixStream::connect(executor.socket()).unwrap();
    for byte in Ask::new("hello").bytes() {
        (&stream).write_all(&[byte]).unwrap();
        std::thread::sleep(Duration::from_millis(2));
    }
    common::executor::Waiting::of(stream)
        .answer_within(PATIENCE)
        .unwrap()
        .exit(0);
    // Those who say nothing do not keep the others out for longer than the deadline.
    let idle: Vec<UnixStream> = (0..100)
        .filter_map(|_| UnixStream::connect(executor.socket()).ok())
        .collect();
    let answer = executor.send(&Ask::new("hello")).answer_within(PATIENCE);
    drop(idle);
    assert!(answer.is_none_or(|a| a.exit == 0 || a.exit == -1));
    wait_until("it serves again", PATIENCE, || {
        executor
            .send(&Ask::new("hello"))
            .answer_within(PATIENCE)
            .filter(|a| a.exit == 0)
    });
}

#[test]
fn detached_runs() {
    if !root_or_skip("detached_runs") {
        return;
    }
    let mut executor = executor("kill_grace = 1");
    std::fs::set_permissions(
        executor.path("data/w"),
        std::os::unix::fs::PermissionsExt::from_mode(0o777),
    )
    .unwrap();
    for (way, _) in WAYS {
        executor.shell(way, way, "echo first; echo problem >&2; while [ ! -e $1/go ]; do sleep 0.05; done; echo last; exit 9");
    }
    executor.shell("sleep", "group", "echo asleep; exec sleep $1");
    executor.start();
    let dir = executor.text("data/w");
    let about = |id: &str, what: u8| executor.ask(&Ask::about(id, what));
    for (index, (way, _)) in WAYS.iter().enumerate() {
        let id = format!("00000000000000{index:02x}");
        let start = Ask::new(way).args(&[&dir]).detached(&id);
        let started = executor.ask(&start).exit(0);
        assert_eq!(
            (started.kind(), started.out().as_str()),
            (Some(kind::RUNNING), ""),
            "{way}"
        );
        // The same once more is refused, and does not touch the first.
        assert_ne!(executor.ask(&start).exit, 0, "{way}");
        wait_until("its output so far", PATIENCE, || {
            let seen = about(&id, order::PEEK);
            assert_eq!(seen.kind(), Some(kind::RUNNING));
            (seen.out() == "first\n" && seen.err() == "problem\n").then_some(())
        });
        // It belongs to the dispatcher that started it.
        let mut other = Ask::about(&id, order::PEEK);
        other.dispatcher = "other.test".to_owned();
        assert_eq!(executor.ask(&other).kind(), Some(kind::UNKNOWN));
        std::fs::write(Path::new(&dir).join("go"), "").unwrap();
        let done = about(&id, order::WAIT).exit(9);
        assert_eq!(
            (done.kind(), done.out().as_str(), done.err().as_str()),
            (Some(kind::EXIT), "first\nlast\n", "problem\n")
        );
        // It stays until it is told to go.
        about(&id, order::WAIT).exit(9);
        about(&id, order::FORGET);
        assert_eq!(about(&id, order::WAIT).kind(), Some(kind::UNKNOWN));
        std::fs::remove_file(Path::new(&dir).join("go")).unwrap();
    }
    // Cancelled.
    let mark1 = mark();
    executor
        .ask(
            &Ask::new("sleep")
                .args(&[&mark1])
                .detached("00000000000000c0"),
        )
        .exit(0);
    wait_until("it runs", PATIENCE, || {
        (!with_words(&mark1).is_empty()).then_some(())
    });
    about("00000000000000c0", order::CANCEL);
    let done = about("00000000000000c0", order::WAIT);
    assert_eq!(
        (done.kind(), done.out().as_str()),
        (Some(kind::CANCELLED), "asleep\n")
    );
    none_left(&mark1, "cancel");
    // Its supervisor dies.
    let mark2 = mark();
    executor
        .ask(
            &Ask::new("sleep")
                .args(&[&mark2])
                .detached("00000000000000c1"),
        )
        .exit(0);
    wait_until("it runs", PATIENCE, || {
        (!with_words(&mark2).is_empty()).then_some(())
    });
    kill(supervisor_of(&executor), Signal::KILL);
    wait_until("it is lost", PATIENCE, || {
        (about("00000000000000c1", order::PEEK).kind() == Some(kind::LOST)).then_some(())
    });
    wait_until("it ends", PATIENCE, || {
        with_words(&mark2).is_empty().then_some(())
    });
    // A wait is bounded only by the run, a peek by nothing; both need the right name.
    assert_eq!(
        about("ffffffffffffffff", order::PEEK).kind(),
        Some(kind::UNKNOWN)
    );
    about("", order::HELLO).exit(0);
    // The request can only shorten the time of a run.
    let mark3 = mark();
    let short = executor
        .ask(
            &Ask::new("sleep")
                .args(&[&mark3])
                .tag(ask::TIMEOUT, &1000_u64.to_be_bytes()),
        )
        .exit(126);
    assert_eq!(short.kind(), Some(kind::TIMEOUT));
    none_left(&mark3, "timeout of the request");
}

/// 2 000 runs here; `make bench` does 10 000.
#[test]
fn thousands_of_runs_leave_nothing_behind() {
    if !root_or_skip("thousands_of_runs_leave_nothing_behind") {
        return;
    }
    let mut executor = executor("");
    std::fs::copy("/bin/true", executor.path("scripts/true")).unwrap();
    executor.entry(
        "true",
        &format!("{} profile=group", executor.text("scripts/true")),
    );
    executor.start();
    let figures = || {
        let fds = std::fs::read_dir(format!("/proc/{}/fd", executor.pid()))
            .unwrap()
            .count();
        let status = std::fs::read_to_string(format!("/proc/{}/status", executor.pid())).unwrap();
        let line = status
            .lines()
            .find_map(|l| l.strip_prefix("VmRSS:"))
            .unwrap();
        let rss: u64 = line.split_whitespace().next().unwrap().parse().unwrap();
        (fds, rss)
    };
    let rounds = |count: usize| {
        for _ in 0..count {
            executor.run("true").exit(0);
        }
        executor.wait_until_idle();
    };
    rounds(200);
    let before = figures();
    rounds(2000);
    let after = figures();
    assert_eq!(before.0, after.0, "descriptors");
    assert!(
        after.1 <= before.1 + 128,
        "resident memory grew from {} to {} KiB",
        before.1,
        after.1
    );
    assert_no_leaf(&executor);
    assert_eq!(
        std::fs::read_dir(executor.path("run"))
            .unwrap()
            .filter(|e| e.as_ref().unwrap().file_type().unwrap().is_file())
            .count(),
        0
    );
}
