//! The root executor: what a confined run costs beside bubblewrap and beside no confinement at all, and what thousands of runs leave.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::common::executor::Executor;
use crate::common::is_root;
use crate::memory::kib;
use crate::{Report, median, millis, precise, ratio};

/// Rounds of the comparison.
const ROUNDS: usize = 150;
/// Runs between the two looks at the executor's memory.
const RUNS: usize = 10_000;
const PSS_BOUND_KIB: u64 = 1024;
/// What 10 000 runs may add: nothing but what the allocator rounds.
const GROWTH_BOUND_KIB: u64 = 128;
const SCRIPT: &str = "#!/bin/sh\nread context\necho done\n";
const CONTEXT: &[u8] = b"{\"script\":\"bench\"}\n";

pub fn all(report: &mut Report) {
    if !is_root() {
        report.line(
            "executor: run under a strict profile",
            "-",
            "needs root",
            "-",
            "",
        );
        return;
    }
    runs(report);
    long_life(report);
}

/// One script, three ways.
fn runs(report: &mut Report) {
    let mut executor = Executor::new("strict");
    executor.profile("strict", "run_as = nobody");
    executor.script("bench", "strict", SCRIPT);
    executor.start();
    let script = executor.path("scripts/bench");

    // The nearest that bubblewrap does: namespaces, mounts, no capabilities, no_new_privs; another program changes the identity.
    let mut bwrap = Command::new("bwrap");
    bwrap
        .args([
            "--unshare-pid",
            "--unshare-ipc",
            "--die-with-parent",
            "--new-session",
        ])
        .args([
            "--ro-bind",
            "/",
            "/",
            "--tmpfs",
            "/tmp",
            "--dev",
            "/dev",
            "--proc",
            "/proc",
        ])
        .args([
            "--cap-drop",
            "ALL",
            "--cap-add",
            "CAP_SETUID",
            "--cap-add",
            "CAP_SETGID",
            "--",
        ])
        .args([
            "setpriv",
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
            "--no-new-privs",
            "--",
        ])
        .arg(&script);
    let mut bare = Command::new(&script);

    let with_bwrap = match spawn(&mut bwrap) {
        Ok(_) => Ok(()),
        Err(why) => Err(why),
    };
    let mut times: [Vec<Duration>; 3] = Default::default();
    for round in 0..=ROUNDS {
        let start = Instant::now();
        let told = executor
            .ask(&crate::common::executor::Ask::new("bench").stdin(CONTEXT))
            .exit(0);
        let ours = start.elapsed();
        assert_eq!(told.stdout, b"done\n");
        let unconfined = spawn(&mut bare).unwrap();
        // The first round warms the caches.
        if round > 0 {
            times[0].push(ours);
            times[2].push(unconfined);
        }
        if with_bwrap.is_ok() {
            let took = spawn(&mut bwrap).unwrap();
            if round > 0 {
                times[1].push(took);
            }
        }
    }
    let [ours, others, bare] = times;
    let (ours, bare) = (median(ours), median(bare));
    match with_bwrap {
        Ok(()) => {
            let others = median(others);
            let shown = format!("bwrap + setpriv {}", millis(others));
            report.line(
                "executor: run under a strict profile",
                &millis(ours),
                &shown,
                &ratio(ours.as_secs_f64(), others.as_secs_f64()),
                "<= 2",
            );
        }
        Err(why) => report.line(
            "executor: run under a strict profile",
            &millis(ours),
            &why,
            "-",
            "(<= 2 of bwrap: NOT MEASURED)",
        ),
    }
    report.line(
        "executor: the same against no sandbox",
        &millis(ours),
        &format!("fork + exec {}", millis(bare)),
        &ratio(ours.as_secs_f64(), bare.as_secs_f64()),
        "<= 4",
    );
}

/// Runs a command with the context on stdin and reads what it prints.
fn spawn(command: &mut Command) -> Result<Duration, String> {
    use std::io::Write as _;
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let start = Instant::now();
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            return Err("bwrap is not installed (bubblewrap)".to_owned());
        }
        Err(e) => return Err(e.to_string()),
    };
    let _ = child.stdin.take().unwrap().write_all(CONTEXT);
    let output = child.wait_with_output().unwrap();
    let took = start.elapsed();
    if output.status.success() && output.stdout == b"done\n" {
        Ok(took)
    } else {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let line = said.lines().next_back().unwrap_or_default();
        Err(format!("does not work here: {line:.60}"))
    }
}

/// Idle memory, and what many runs add to it.
fn long_life(report: &mut Report) {
    let mut executor = Executor::new("compat");
    executor.profile("plain", "run_as = nobody");
    std::fs::copy("/bin/true", executor.path("scripts/true")).unwrap();
    executor.entry(
        "true",
        &format!("{} profile=plain", executor.text("scripts/true")),
    );
    executor.start();
    let look = |executor: &Executor| {
        std::thread::sleep(Duration::from_millis(1500));
        let path = format!("/proc/{}/smaps_rollup", executor.pid());
        let fds = std::fs::read_dir(format!("/proc/{}/fd", executor.pid()))
            .unwrap()
            .count();
        (
            kib(&path, "Pss:").unwrap(),
            kib(&path, "Pss_Anon:").unwrap_or(0),
            fds,
        )
    };
    for _ in 0..20 {
        executor.run("true").exit(0);
    }
    executor.wait_until_idle();
    let (pss, own, fds) = look(&executor);
    report.line(
        "ctrl-exec-exec serve, idle: PSS",
        &format!("{pss} KiB"),
        &format!("of which not from the file: {own} KiB"),
        &ratio(precise(pss), precise(PSS_BOUND_KIB)),
        "<= 1 MiB",
    );
    let is_static = std::env::var_os("CTRL_EXEC_TEST_BIN").is_some();
    report.must(
        !is_static || pss <= PSS_BOUND_KIB,
        "ctrl-exec-exec serve uses more than 1 MiB when idle",
    );

    let start = Instant::now();
    for _ in 0..RUNS {
        executor.run("true").exit(0);
    }
    let rate = precise(u64::try_from(RUNS).unwrap()) / start.elapsed().as_secs_f64();
    executor.wait_until_idle();
    let (_, own_after, fds_after) = look(&executor);
    report.line(
        "ctrl-exec-exec: memory after 10 000 runs",
        &format!("{own_after} KiB"),
        &format!("before {own} KiB; {rate:.0} runs/s one by one"),
        "-",
        "+ 128 KiB",
    );
    report.must(
        own_after <= own + GROWTH_BOUND_KIB,
        "ctrl-exec-exec grows with the number of runs",
    );
    report.must(fds_after == fds, "ctrl-exec-exec loses descriptors");
}
