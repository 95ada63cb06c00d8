//! Writing to stdout and stderr without ever panicking: a reader that went away is not an error of ours.

use std::io::Write as _;

/// Writes a line to stdout. Returns false when nobody reads any more.
pub fn stdout_line(line: &str) -> bool {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush()).is_ok()
}

/// Writes a line to stderr, if anybody reads it.
#[allow(
    clippy::print_stderr,
    reason = "in tests only: the test runner captures nothing else"
)]
pub fn stderr_line(line: &str) {
    if cfg!(test) {
        eprintln!("{line}");
    } else {
        // In one piece: other processes write there too.
        stderr_bytes(format!("{line}\n").as_bytes());
    }
}

/// Writes bytes as they are to stdout. Returns false when nobody reads any more.
pub fn stdout_bytes(bytes: &[u8]) -> bool {
    let mut out = std::io::stdout().lock();
    out.write_all(bytes).and_then(|()| out.flush()).is_ok()
}

/// Writes bytes as they are to stderr, if anybody reads it.
pub fn stderr_bytes(bytes: &[u8]) {
    let _ = std::io::stderr().lock().write_all(bytes);
}

/// `println!` that ignores a closed pipe.
#[macro_export]
macro_rules! say {
    () => { $crate::core::terminal::stdout_line("") };
    ($($arg:tt)*) => { $crate::core::terminal::stdout_line(&format!($($arg)*)) };
}

/// `eprintln!` that ignores a closed pipe.
#[macro_export]
macro_rules! complain {
    ($($arg:tt)*) => { $crate::core::terminal::stderr_line(&format!($($arg)*)) };
}
