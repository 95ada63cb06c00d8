//! Runs that follow each other share what they see of the file system, as long as that makes no difference (spec/executor.md 15.4).

#![allow(clippy::unwrap_used, reason = "helpers of tests stop as tests do")]

mod common;

use std::process::Command;
use std::time::Duration;

use common::executor::Executor;
use common::{PATIENCE, root_or_skip, wait_until};

/// After which the executor has forgotten its views, with room for a busy machine.
const A_WHILE: Duration = Duration::from_millis(600);

/// With scripts that tell in which mount namespace they are, and what they can read of a file that is hidden from them.
fn started(lines: &str) -> Executor {
    let mut executor = Executor::new("compat");
    let hidden = executor.text("etc/sub/secret");
    let later = executor.text("etc/sub/later");
    executor.write("etc/sub/secret", "SECRET\n", 0o600);
    executor.profile("default", &format!("hide = {hidden}:{later}\n{lines}"));
    executor.shell("where", "default", "readlink /proc/self/ns/mnt");
    executor.shell("read", "default", "cat \"$1\" 2>/dev/null; exit 0");
    executor.shell("touch", "default", "touch \"$1\"");
    executor.start();
    executor
}

/// Runs until two in a row were in the same namespace: until a view is kept.
#[track_caller]
fn wait_for_a_view(executor: &Executor) -> String {
    wait_until("two runs share a view", PATIENCE, || {
        let (one, other) = (executor.run("where"), executor.run("where"));
        let same = one.exit(0).out() == other.out();
        same.then(|| other.exit(0).out())
    })
}

#[test]
fn runs_in_a_burst_share_a_view_and_nothing_hidden_is_seen_in_it() {
    if !root_or_skip("runs_in_a_burst_share_a_view_and_nothing_hidden_is_seen_in_it") {
        return;
    }
    let executor = started("");
    let (secret, later) = (
        executor.text("etc/sub/secret"),
        executor.text("etc/sub/later"),
    );
    let ours = std::fs::read_link("/proc/self/ns/mnt").unwrap();
    for round in 0..20 {
        assert_ne!(wait_for_a_view(&executor).trim(), ours.to_str().unwrap());
        // Both are in the view that is kept now, or in a new one: it must not matter.
        match round % 4 {
            // Another file under the name, which takes away what covers the old one.
            0 => {
                executor.write("etc/sub/new", "SECRET\n", 0o600);
                std::fs::rename(executor.path("etc/sub/new"), &secret).unwrap();
            }
            // The same file, gone and back.
            1 => {
                std::fs::hard_link(&secret, executor.path("etc/sub/other")).unwrap();
                std::fs::remove_file(&secret).unwrap();
                std::fs::rename(executor.path("etc/sub/other"), &secret).unwrap();
            }
            // A directory above it is another one.
            2 => {
                std::fs::rename(executor.path("etc/sub"), executor.path("etc/old")).unwrap();
                std::fs::create_dir(executor.path("etc/sub")).unwrap();
                executor.write("etc/sub/secret", "SECRET\n", 0o600);
                std::fs::remove_dir_all(executor.path("etc/old")).unwrap();
            }
            // One that was not there before.
            _ => {
                executor.write("etc/sub/later", "SECRET\n", 0o600);
            }
        }
        for path in [&secret, &later] {
            let told = executor.run_with("read", &[path]).exit(0);
            assert_eq!(told.out(), "", "round {round}, {path}");
        }
        let _ = std::fs::remove_file(&later);
    }
}

#[test]
fn a_change_of_mounts_is_seen_by_the_next_run_and_views_keep_no_file_system_busy() {
    if !root_or_skip(
        "a_change_of_mounts_is_seen_by_the_next_run_and_views_keep_no_file_system_busy",
    ) {
        return;
    }
    let executor = started("");
    let there = executor.text("data/w");
    let file = format!("{there}/file");
    let inside = |words: &[&str]| {
        let target = executor.pid().to_string();
        let done = Command::new("nsenter")
            .args(["-t", &target, "-m", "--"])
            .args(words)
            .status()
            .unwrap();
        assert!(done.success(), "{words:?}");
    };
    wait_for_a_view(&executor);
    inside(&["mount", "-t", "tmpfs", "test", &there]);
    inside(&["sh", "-c", "echo new >\"$0\"", &file]);
    assert_eq!(executor.run_with("read", &[&file]).exit(0).out(), "new\n");
    wait_for_a_view(&executor);
    inside(&["umount", &there]);
    assert_eq!(executor.run_with("read", &[&file]).exit(0).out(), "");

    // No view outlives the burst: only what holds the file system itself could keep this from being made anew with another mode.
    inside(&["mount", "-t", "tmpfs", "test", &there]);
    wait_for_a_view(&executor);
    std::thread::sleep(A_WHILE);
    let namespaces = || -> Vec<String> {
        std::fs::read_dir(format!("/proc/{}/fd", executor.pid()))
            .unwrap()
            .filter_map(|fd| std::fs::read_link(fd.ok()?.path()).ok())
            .map(|to| to.to_string_lossy().into_owned())
            .filter(|to| to.starts_with("mnt:"))
            .collect()
    };
    // Its own, to find back.
    assert_eq!(namespaces().len(), 1, "{:?}", namespaces());
    inside(&["umount", &there]);
}

#[test]
fn what_is_a_runs_own_is_shared_with_nobody() {
    if !root_or_skip("what_is_a_runs_own_is_shared_with_nobody") {
        return;
    }
    let executor = started("private_tmp = yes");
    for _ in 0..5 {
        executor.run_with("touch", &["/tmp/mark"]).exit(0);
        assert_eq!(executor.run_with("read", &["/tmp/mark"]).exit(0).out(), "");
        executor.run_with("touch", &["/tmp/mark/below"]).exit(1);
    }
}
