//! Shared harness of the end-to-end tests: the real binary under its real names, each host in a temporary root, over loopback.
//!
//! A test makes [`Host`]s, pairs them ([`fleet::Paired`]) or lays them down as the original leaves them ([`fleet::Legacy`]), starts
//! [`Agent`]s and asserts on files, exit codes, wire bytes and log lines. Every wait has a deadline; every process that a test starts is
//! ended with it.

// Each test file is a crate of its own and uses its part of the harness.
#![allow(dead_code, unused_imports)]
// Helpers of tests stop and speak as tests do; clippy's exceptions for tests reach only the test functions themselves.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

pub mod api;
pub mod executor;
pub mod fate;
pub mod fleet;
pub mod host;
pub mod openapi;
pub mod openssl;
pub mod process;
pub mod prometheus;
pub mod python;
pub mod rotating;
pub mod sim;
pub mod syslog;
pub mod tls;
pub mod web;

use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

pub use executor::Executor;
pub use fate::Fate;
pub use fleet::{Agent, Legacy, Paired};
pub use host::Host;
pub use process::{Daemon, Run};
pub use rotating::{Rotating, SharedClock};
pub use sim::SimFleet;
pub use web::{ApiServer, Request};

/// Longest that one program of ours may take before the test fails: it may wait a minute for another's lock, then do its work.
pub const RUN_DEADLINE: Duration = Duration::from_secs(90);
/// Longest that a condition may take to come true on a loaded machine.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// The binary under test: `CTRL_EXEC_TEST_BIN` (the static one), else the build of this workspace.
pub fn binary() -> PathBuf {
    std::env::var_os("CTRL_EXEC_TEST_BIN").map_or_else(
        || PathBuf::from(env!("CARGO_BIN_EXE_ctrl-exec")),
        PathBuf::from,
    )
}

/// A TCP port that nobody listens on, below the range from which the kernel takes ports of outgoing connections.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    const FIRST: u16 = 18_000;
    const SPAN: u16 = 14_000;
    // Test binaries that run side by side begin at different places.
    let begin = u16::try_from(std::process::id() * 61 % u32::from(SPAN)).unwrap();
    for _ in 0..SPAN {
        let step = NEXT.fetch_add(1, Ordering::Relaxed) % SPAN;
        let port = FIRST + (begin + step) % SPAN;
        if TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok() {
            return port;
        }
    }
    panic!("no free port between {FIRST} and {}", FIRST + SPAN);
}

/// Calls `check` until it answers `Some`, at most `deadline` long.
pub fn wait_until<T>(what: &str, deadline: Duration, mut check: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + deadline;
    loop {
        if let Some(value) = check() {
            return value;
        }
        assert!(Instant::now() < end, "gave up after {deadline:?}: {what}");
        std::thread::sleep(Duration::from_millis(15));
    }
}

/// Is this test run by root? Some promises can only be tested then.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// What only root can do: says so and answers false for a plain user; in CI nothing may be left out.
pub fn root_or_skip(test: &str) -> bool {
    if is_root() {
        return true;
    }
    assert!(
        std::env::var_os("CI").is_none_or(|v| v.is_empty()),
        "{test} needs root, and in CI no test may be left out"
    );
    println!("{test}: left out, it needs root");
    false
}
