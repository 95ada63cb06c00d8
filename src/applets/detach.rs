//! Running the same binary again as a process that outlives its parent's terminal. No `fork`: the child is a fresh process that has read nothing
//! but its arguments, reports through its stdout, then cuts itself loose.

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::applets::{AppError, Context};

/// Environment variable that tells the child what it is.
pub(crate) const VARIABLE: &str = "CTRL_EXEC_DETACHED";
/// Begins the line of the child's report.
pub(crate) const READY: &str = "ready ";

/// Whether this process is such a child.
pub(crate) fn is_detached(context: &Context) -> bool {
    context.var(VARIABLE) == Some("1")
}

/// This program again, with these words, its stdout a pipe to us, its stdin empty.
///
/// # Errors
/// The path of the running binary cannot be told.
pub(crate) fn again(context: &Context, args: &[String]) -> Result<Command, AppError> {
    let mut binary = std::env::current_exe()
        .map_err(|e| AppError::failed(format!("cannot find the running program: {e}")))?;
    if !binary.exists() {
        // Replaced or removed since our start: the kernel still has it.
        binary = PathBuf::from("/proc/self/exe");
    }
    let mut command = Command::new(binary);
    command
        .arg0(context.program)
        .args(args)
        .env(VARIABLE, "1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    if context.paths.root() != Path::new("/") {
        command.arg("--root").arg(context.paths.root());
    }
    Ok(command)
}

/// Leaves the parent's session, directory, stdout and stderr. Whoever waits for the end of our output goes on.
///
/// # Errors
/// `/dev/null` cannot be opened or put in place.
pub(crate) fn cut_loose() -> Result<(), AppError> {
    let failed =
        |e: std::io::Error| AppError::failed(format!("cannot detach from the terminal: {e}"));
    // Refused only for the leader of a process group, which then has no terminal to lose but its own.
    let _ = rustix::process::setsid();
    let null = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")
        .map_err(failed)?;
    rustix::stdio::dup2_stdin(&null).map_err(|e| failed(e.into()))?;
    rustix::stdio::dup2_stdout(&null).map_err(|e| failed(e.into()))?;
    rustix::stdio::dup2_stderr(&null).map_err(|e| failed(e.into()))?;
    let _ = std::env::set_current_dir("/");
    Ok(())
}
