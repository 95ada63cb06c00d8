//! A supervisor serves runs that follow each other, as long as each leaves it as it was (spec/executor.md 3.3, 10).

#![allow(clippy::unwrap_used, reason = "helpers of tests stop as tests do")]

mod common;

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::time::Duration;

use common::executor::{Ask, Executor, ask, cgroup_root, kind};
use common::{PATIENCE, root_or_skip, wait_until};
use rustix::process::{Pid, Signal, kill_process};

/// After which the executor has sent its supervisors home, with room for a busy machine.
const A_WHILE: Duration = Duration::from_millis(600);

/// What a supervisor needs after its answer.
const A_MOMENT: Duration = Duration::from_millis(40);

/// With scripts that tell who supervises them.
fn started() -> Executor {
    let mut executor = Executor::new("compat");
    executor.profile("default", "kill_grace = 1");
    executor.profile("kill", "leftovers = kill\nkill_grace = 1");
    // Counted by the shell itself: another process could see the pipe to it.
    executor.shell(
        "who",
        "default",
        "set -- /proc/$PPID/fd/*; echo $PPID $# $(cat)",
    );
    executor.shell("leave", "default", "sleep 30 >/dev/null 2>&1 & echo $PPID");
    executor.shell(
        "leave-kill",
        "kill",
        "sleep 30 >/dev/null 2>&1 & echo $PPID",
    );
    executor.shell("sleep", "default", "echo $PPID; exec sleep 30");
    executor.shell("fail", "default", "echo $PPID; exit 3");
    executor.shell("signal", "default", "echo $PPID; kill -KILL $$");
    executor.shell("flood", "default", "echo $PPID; head -c 300000 /dev/zero");
    executor.start();
    executor
}

fn supervisor(out: &str) -> u32 {
    out.split_whitespace().next().unwrap().parse().unwrap()
}

/// It may have gone home already.
fn kill(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    let _ = kill_process(pid, signal);
}

/// Runs until two in a row had the same supervisor; who that is.
#[track_caller]
fn wait_for_a_burst(executor: &Executor) -> u32 {
    wait_until("two runs share a supervisor", PATIENCE, || {
        let of = || supervisor(&executor.run("who").exit(0).out());
        let (one, other) = (of(), of());
        (one == other).then_some(one)
    })
}

/// Who has supervised before the script, who the script, and who the run that comes when its supervisor has had time to say that it is free.
#[track_caller]
fn next_after(executor: &Executor, script: &str, exit: i32) -> (u32, u32, u32) {
    let before = wait_for_a_burst(executor);
    let its = supervisor(&executor.run(script).exit(exit).out());
    std::thread::sleep(A_MOMENT);
    (before, its, supervisor(&executor.run("who").exit(0).out()))
}

#[test]
fn a_burst_shares_supervisors_that_keep_nothing_and_do_not_last() {
    if !root_or_skip("a_burst_shares_supervisors_that_keep_nothing_and_do_not_last") {
        return;
    }
    let executor = started();
    let mut seen: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for n in 0..300 {
        let input = format!("input {n}");
        let told = executor
            .ask(&Ask::new("who").stdin(input.as_bytes()))
            .exit(0)
            .out();
        let words: Vec<&str> = told.split_whitespace().collect();
        assert_eq!(words[2..], ["input", &n.to_string()], "{told}");
        let descriptors = words[1].parse().unwrap();
        seen.entry(supervisor(&told)).or_default().push(descriptors);
    }
    assert!(seen.values().any(|runs| runs.len() > 8), "{seen:?}");
    for (supervisor, descriptors) in &seen {
        assert!(descriptors.len() <= 64, "{supervisor} serves without end");
        // The ends of the pipes that are the script's may be there still, or not.
        let (least, most) = (descriptors.iter().min(), descriptors.iter().max());
        let more = most.unwrap() - least.unwrap();
        assert!(more <= 8, "{supervisor} keeps descriptors: {descriptors:?}");
    }
    // What it is like for the script: nothing of the one before.
    for script in ["fail", "signal", "flood"] {
        executor.run(script);
        std::thread::sleep(A_MOMENT);
        let told = executor.run("fail").exit(3);
        let out = told.out();
        assert_eq!((told.err().as_str(), out.lines().count()), ("", 1), "{out}");
        assert_eq!(told.kind(), Some(kind::EXIT), "after {script}");
    }
    std::thread::sleep(A_WHILE);
    executor.wait_until_idle();
    assert_eq!(groups_of_runs(&executor), 0, "a kept group does not last");
}

/// Groups that runs have, or have had and that wait for another one.
fn groups_of_runs(executor: &Executor) -> usize {
    let Some(group) = executor.cgroup() else {
        return 0;
    };
    let runs = std::fs::read_dir(group.join("runs")).into_iter();
    let runs = runs.flatten().flatten();
    runs.filter(|entry| entry.path().is_dir()).count()
}

#[test]
fn the_group_of_a_run_is_kept_for_the_next_one_if_the_script_could_not_change_it() {
    if !root_or_skip(
        "the_group_of_a_run_is_kept_for_the_next_one_if_the_script_could_not_change_it",
    ) {
        return;
    }
    let mut executor = Executor::new("compat");
    executor.profile("nobody", "run_as = nobody");
    executor.profile("root", "run_as = root");
    executor.profile("gain", "run_as = nobody\nno_new_privileges = no");
    executor.profile("free", "run_as = nobody\ncgroup = off");
    let root = cgroup_root().unwrap_or_default();
    let in_group = format!("{}$(sed -n s/^0:://p /proc/self/cgroup)", root.display());
    executor.shell("nobody", "nobody", "echo $PPID");
    executor.shell("root", "root", &format!("echo $PPID $(ls -di {in_group})"));
    executor.shell("gain", "gain", "echo $PPID");
    executor.shell("free", "free", "echo $PPID");
    executor.start();
    let Some(group) = executor.cgroup().map(std::path::Path::to_owned) else {
        return;
    };
    let bare = std::fs::read_to_string(group.join("runs/cgroup.subtree_control"));
    let bare = bare.is_ok_and(|all| all.trim().is_empty());
    // Supervisor and inode of the group, which is not given out again: what the script has said of it, or what is there afterwards.
    let tell = |script: &str| {
        let out = executor.run(script).exit(0).out();
        std::thread::sleep(A_MOMENT);
        let supervisor = supervisor(&out);
        let kept = std::fs::metadata(group.join(format!("runs/run-{supervisor}")));
        let said = out
            .split_whitespace()
            .nth(1)
            .map(|word| word.parse().unwrap());
        (supervisor, said.or(kept.ok().map(|kept| kept.ino())))
    };
    // Of two runs that share a supervisor. Who has gone home meanwhile has kept nothing.
    let groups = |first: &str, second: &str| {
        wait_until("two runs share a supervisor", PATIENCE, || {
            let (one, other) = (tell(first), tell(second));
            let known = !bare || one.1.is_some() && (other.1.is_some() || second == "free");
            (one.0 == other.0 && known).then_some((one.1, other.1))
        })
    };
    let (one, other) = groups("nobody", "nobody");
    assert_eq!((one.is_some(), one), (bare, other));
    let (one, other) = groups("root", "nobody");
    assert_ne!(one, other, "root could change it");
    let (before, after) = wait_until("three runs share a supervisor", PATIENCE, || {
        let (one, between, other) = (tell("nobody"), tell("gain"), tell("nobody"));
        let known = !bare || one.1.is_some() && other.1.is_some();
        (one.0 == between.0 && between.0 == other.0 && known).then_some((one.1, other.1))
    });
    assert!(!bare || before != after, "a setuid program could change it");
    assert_eq!(groups("nobody", "free").1, None, "nobody wants it");
    std::thread::sleep(A_WHILE);
    executor.wait_until_idle();
    assert_eq!(groups_of_runs(&executor), 0);
    // Whoever is killed with a kept group leaves none behind.
    let free = wait_until("a supervisor waits with a group", PATIENCE, || {
        let (supervisor, kept) = tell("nobody");
        (kept.is_some() || !bare).then_some(supervisor)
    });
    kill(free, Signal::KILL);
    wait_until("the listener clears up", PATIENCE, || {
        (groups_of_runs(&executor) == 0).then_some(())
    });
}

#[test]
fn whoever_has_something_left_of_a_run_or_was_told_to_stop_serves_no_other() {
    if !root_or_skip("whoever_has_something_left_of_a_run_or_was_told_to_stop_serves_no_other") {
        return;
    }
    let executor = started();
    // A failure of the script is its own affair.
    wait_until("a failure changes nothing", PATIENCE, || {
        let (before, its, next) = next_after(&executor, "fail", 3);
        (before == its && its == next).then_some(())
    });
    wait_until("what is killed with the run is gone", PATIENCE, || {
        let (before, its, next) = next_after(&executor, "leave-kill", 0);
        (before == its && its == next).then_some(())
    });
    let (_, its, next) = next_after(&executor, "leave", 0);
    assert_ne!(its, next, "its process is a child of the supervisor");
    wait_for_a_burst(&executor);
    let ended = executor.ask(&Ask::new("sleep").tag(ask::TIMEOUT, &100_u64.to_be_bytes()));
    std::thread::sleep(A_MOMENT);
    assert_eq!((ended.exit, ended.kind()), (126, Some(kind::TIMEOUT)));
    let next = supervisor(&executor.run("who").exit(0).out());
    assert_ne!(supervisor(&ended.out()), next, "it ended a run");
    // A signal between two runs is meant for neither.
    let free = wait_for_a_burst(&executor);
    for signal in [Signal::TERM, Signal::USR1, Signal::HUP] {
        kill(free, signal);
        executor.run("who").exit(0);
    }
}

#[test]
fn what_is_new_holds_for_the_next_run_of_a_burst() {
    if !root_or_skip("what_is_new_holds_for_the_next_run_of_a_burst") {
        return;
    }
    let mut executor = started();
    for round in 0..5 {
        let before = wait_for_a_burst(&executor);
        std::thread::sleep(A_MOMENT);
        let name = format!("new-{round}");
        executor.shell(&name, "default", "echo $PPID");
        executor.write_config();
        let after = supervisor(&executor.run(&name).exit(0).out());
        assert_ne!(before, after, "it does not know the new list");
    }
    wait_for_a_burst(&executor);
    std::thread::sleep(A_MOMENT);
    std::fs::remove_file(executor.path("etc/scripts.conf")).unwrap();
    assert_eq!(executor.run("who").exit, -1);
}

#[test]
fn a_free_supervisor_that_is_killed_takes_nothing_along() {
    if !root_or_skip("a_free_supervisor_that_is_killed_takes_nothing_along") {
        return;
    }
    let executor = started();
    for _ in 0..5 {
        let free = wait_for_a_burst(&executor);
        std::thread::sleep(A_MOMENT);
        kill(free, Signal::KILL);
        // Until it has gone, a connection could be put into its hands.
        std::thread::sleep(A_MOMENT);
        let next = supervisor(&executor.run("who").exit(0).out());
        assert_ne!(free, next);
    }
}
