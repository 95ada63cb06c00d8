//! `pairing-mode start` and `stop` (spec/pairing.md 7.1): the same binary once more, in a session of its own.
//!
//! The child reports through its stdout, a pipe of ours, and only after the port is bound; errors before that go to the terminal.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use super::mode::{self, Plan};
use super::pid_file::{self, Found, PidFile};
use crate::applets::detach::{self, READY};
use crate::applets::{AppError, Context, Exit};
use crate::core::durable;
use crate::core::logging::Action;
use crate::say;

/// How long `stop` waits for the session to end; those who wait are told first.
const STOP_PATIENCE: Duration = Duration::from_secs(20);

fn unusable(context: &Context, error: &std::io::Error) -> AppError {
    AppError::failed(format!(
        "cannot use '{}': {error}",
        context.paths.pairing_pid_file().display()
    ))
}

/// Starts a session and waits until it listens.
///
/// # Errors
/// One runs already, the certificate is missing, the port is taken, or the child cannot be started.
pub(super) fn start(context: &Context, plan: &Plan, args: &[String]) -> Result<Exit, AppError> {
    let path = context.paths.pairing_pid_file();
    match pid_file::find(&path).map_err(|e| unusable(context, &e))? {
        Found::Running(pid) => {
            return Err(AppError::failed(format!(
                "Pairing mode is already running in the background (PID {pid})."
            )));
        }
        Found::Stale | Found::Nobody => {}
    }
    mode::require_certificate(&plan.desk.config)?;
    let mut command = detach::again(context, args)?;
    command.stderr(Stdio::inherit());
    let (pid, port) = wait_until_ready(&mut command)?;
    let seconds = plan.timeout.as_secs();
    Action::new("pairing-mode-start")
        .field("PID", pid)
        .field("PORT", &port)
        .field("TIMEOUT", seconds)
        .info();
    say!(
        "Pairing mode runs in the background: port {port}, PID {pid}, stops by itself after {seconds} seconds."
    );
    say!("To stop it: ced pairing-mode stop");
    Ok(Exit::Success)
}

/// PID and port of the child.
fn wait_until_ready(command: &mut Command) -> Result<(u32, String), AppError> {
    let mut child = command
        .spawn()
        .map_err(|e| AppError::failed(format!("cannot start the background process: {e}")))?;
    let failed = |text: String| AppError::failed(text);
    let Some(stdout) = child.stdout.take() else {
        return Err(failed("the background process has no output".to_owned()));
    };
    // No deadline is needed: the child binds or dies, and either ends this loop.
    for line in BufReader::new(stdout).lines() {
        let line =
            line.map_err(|e| failed(format!("the background process cannot be read: {e}")))?;
        match line.strip_prefix(READY) {
            Some(port) => return Ok((child.id(), port.trim().to_owned())),
            None => {
                say!("{line}");
            }
        }
    }
    let _ = child.wait();
    // It has said why on the terminal.
    Err(AppError::silent(Exit::Failure))
}

/// The child: holds the pid file, binds, reports, cuts itself loose, serves.
///
/// # Errors
/// Anything before the report; afterwards there is nobody to tell but the log.
pub(super) fn serve(context: &Context, plan: &Plan) -> Result<Exit, AppError> {
    let path = context.paths.pairing_pid_file();
    if let Some(dir) = path.parent() {
        durable::create_dir(dir, 0o750).map_err(|e| AppError::failed(e.to_string()))?;
    }
    let pid_file = PidFile::take(&path).map_err(|e| unusable(context, &e))?;
    let bound = mode::bind(plan)?;
    say!("{READY}{}", bound.port);
    detach::cut_loose()?;
    let result = mode::run(plan, bound);
    drop(pid_file);
    result.map(|()| Exit::Success)
}

/// Ends a background session.
///
/// # Errors
/// The file cannot be used, or the process not be signalled.
pub(super) fn stop(context: &Context) -> Result<Exit, AppError> {
    let path = context.paths.pairing_pid_file();
    match pid_file::find(&path).map_err(|e| unusable(context, &e))? {
        Found::Nobody => {
            say!("Pairing mode is not running in the background.");
        }
        Found::Stale => {
            pid_file::remove_stale(&path).map_err(|e| unusable(context, &e))?;
            say!(
                "Pairing mode is not running in the background (removed a stale '{}').",
                path.display()
            );
        }
        Found::Running(pid) => match pid_file::stop(&path, pid, STOP_PATIENCE) {
            Ok(true) => {
                Action::new("pairing-mode-stop").field("PID", pid).info();
                say!("Pairing mode stopped (PID {pid}).");
            }
            Ok(false) => {
                say!("Pairing mode (PID {pid}) was told to stop but still runs.");
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                say!("Pairing mode is not running in the background any more.");
            }
            Err(e) => {
                return Err(AppError::failed(format!(
                    "cannot signal the background process {pid}: {e}"
                )));
            }
        },
    }
    Ok(Exit::Success)
}
