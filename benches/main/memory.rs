//! Memory of our processes, read from /proc.

use std::process::{Command, Stdio};
use std::time::Duration;

use crate::common::Agent;
use crate::{Report, precise, ratio};

const PSS_BOUND_KIB: u64 = 4096;

/// Proportional set size of an agent that has served a little and rests.
pub fn idle(report: &mut Report, agent: &Agent) {
    std::thread::sleep(Duration::from_millis(500));
    let pss = kib(&format!("/proc/{}/smaps_rollup", agent.pid()), "Pss:").unwrap();
    let own = kib(&format!("/proc/{}/smaps_rollup", agent.pid()), "Pss_Anon:").unwrap_or(0);
    report.line(
        "cea serve, idle: PSS",
        &format!("{pss} KiB"),
        &format!("of which not from the file: {own} KiB"),
        &ratio(precise(pss), precise(PSS_BOUND_KIB)),
        "<= 4 MiB",
    );
    let is_static = std::env::var_os("CTRL_EXEC_TEST_BIN").is_some();
    report.must(
        !is_static || pss <= PSS_BOUND_KIB,
        "cea serve uses more than 4 MiB when idle",
    );
}

/// Highest resident memory that a command reaches, KiB. Sampled, because what the kernel reports at the end also counts the moment
/// between fork and exec, when the child is as large as this program.
pub fn peak_kib(command: &mut Command) -> u64 {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let status = format!("/proc/{}/status", child.id());
    let mut peak = 0;
    while child.try_wait().unwrap().is_none() {
        // A process that is not yet, or no longer, our program has no such line or another name.
        if std::fs::read_to_string(&status).is_ok_and(|s| s.starts_with("Name:\tced")) {
            peak = peak.max(kib(&status, "VmHWM:").unwrap_or(0));
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    peak
}

/// A line of a file of /proc that counts KiB.
pub fn kib(path: &str, key: &str) -> Option<u64> {
    let text = std::fs::read_to_string(path).ok()?;
    let line = text.lines().find(|l| l.starts_with(key))?;
    line.split_whitespace().nth(1)?.parse().ok()
}
