//! The pid file of a background session. Its lock, not its number, says whether the session lives: the kernel frees it with the process, so
//! a recycled number is never taken for ours (spec/pairing.md 18.5, 18.17).

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal};

/// Who is behind the file.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Found {
    Nobody,
    /// A file without a living session.
    Stale,
    Running(i32),
}

/// The file, held by a running session. Dropping it removes the file.
#[derive(Debug)]
pub(super) struct PidFile {
    path: PathBuf,
    _locked: File,
}

impl PidFile {
    /// Takes the place of the one session, writing our pid.
    ///
    /// # Errors
    /// Somebody else has it (`WouldBlock`), or the file cannot be written.
    pub(super) fn take(path: &Path) -> io::Result<Self> {
        loop {
            let mut file = open(path, true)?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Err(io::ErrorKind::WouldBlock.into()),
                Err(TryLockError::Error(error)) => return Err(error),
            }
            // The one before us may have removed the file between our opening and our lock.
            if !is_at(&file, path) {
                continue;
            }
            file.set_len(0)?;
            file.write_all(format!("{}\n", std::process::id()).as_bytes())?;
            file.sync_all()?;
            return Ok(Self {
                path: path.to_owned(),
                _locked: file,
            });
        }
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

fn open(path: &Path, create: bool) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(create)
        .truncate(false)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)?;
    let euid = rustix::process::geteuid().as_raw();
    accept_owner(file.metadata()?.uid(), euid)?;
    Ok(file)
}

/// Whoever may write to the directory could name any process in a file of his, for root to end.
fn accept_owner(owner: u32, euid: u32) -> io::Result<()> {
    if owner == 0 || owner == euid {
        return Ok(());
    }
    Err(io::Error::other(format!(
        "it belongs to uid {owner}: find out why, and remove it"
    )))
}

fn is_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), std::fs::symlink_metadata(path)) {
        (Ok(open), Ok(there)) => (open.dev(), open.ino()) == (there.dev(), there.ino()),
        _ => false,
    }
}

/// Looks whether a session runs.
///
/// # Errors
/// The file cannot be opened, or a running session has not written its number yet.
pub(super) fn find(path: &Path) -> io::Result<Found> {
    let mut file = match open(path, false) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Found::Nobody),
        other => other?,
    };
    match file.try_lock() {
        Ok(()) => Ok(Found::Stale),
        Err(TryLockError::WouldBlock) => read_pid(&mut file).map(Found::Running),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

fn read_pid(file: &mut File) -> io::Result<i32> {
    let mut text = String::new();
    file.take(32).read_to_string(&mut text)?;
    text.trim()
        .parse()
        .ok()
        .filter(|pid| *pid > 1)
        .ok_or_else(|| io::Error::other("it holds no process number"))
}

/// Removes a file that nobody holds.
///
/// # Errors
/// It cannot be removed, or somebody has taken it meanwhile.
pub(super) fn remove_stale(path: &Path) -> io::Result<()> {
    let file = open(path, false)?;
    match file.try_lock() {
        Ok(()) => std::fs::remove_file(path),
        Err(TryLockError::WouldBlock) => Err(io::ErrorKind::WouldBlock.into()),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// Asks the session to end and waits for it. False: it still runs after `patience`.
///
/// # Errors
/// There is no session any more, or we may not signal it.
pub(super) fn stop(path: &Path, pid: i32, patience: Duration) -> io::Result<bool> {
    let target = Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidInput)?;
    let handle = rustix::process::pidfd_open(target, PidfdFlags::empty())?;
    // The handle is of the process that has this number now; still holding the lock, that is the session.
    if find(path)? != Found::Running(pid) {
        return Err(io::ErrorKind::NotFound.into());
    }
    rustix::process::pidfd_send_signal(&handle, Signal::TERM)?;
    let deadline = Instant::now() + patience;
    while Instant::now() < deadline {
        if !matches!(find(path), Ok(Found::Running(running)) if running == pid) {
            return Ok(true);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lock_says_who_lives() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pid");
        assert_eq!(find(&path).unwrap(), Found::Nobody);
        let held = PidFile::take(&path).unwrap();
        let own = i32::try_from(std::process::id()).unwrap();
        assert_eq!(find(&path).unwrap(), Found::Running(own));
        let second = PidFile::take(&path).unwrap_err();
        assert_eq!(second.kind(), io::ErrorKind::WouldBlock);
        drop(held);
        assert_eq!(find(&path).unwrap(), Found::Nobody);
    }

    #[test]
    fn a_foreign_process_is_never_taken_for_a_session() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pid");
        // Process 1 lives, but it does not hold the lock.
        std::fs::write(&path, "1\n").unwrap();
        assert_eq!(find(&path).unwrap(), Found::Stale);
        let error = stop(&path, 1, Duration::ZERO).unwrap_err();
        assert!(matches!(
            error.kind(),
            io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied
        ));
        remove_stale(&path).unwrap();
        assert!(!path.exists());
        let taken = PidFile::take(&path).unwrap();
        assert!(remove_stale(&path).is_err());
        drop(taken);
    }

    #[test]
    fn a_file_of_somebody_else_says_nothing() {
        assert!(accept_owner(0, 1000).is_ok());
        assert!(accept_owner(1000, 1000).is_ok());
        assert!(accept_owner(1000, 0).is_err());
        if rustix::process::geteuid().is_root() {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("pid");
            std::fs::write(&path, "1\n").unwrap();
            std::os::unix::fs::chown(&path, Some(54_321), None).unwrap();
            assert!(find(&path).is_err());
            assert!(PidFile::take(&path).is_err());
        }
    }

    #[test]
    fn a_link_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pid");
        let victim = dir.path().join("victim");
        std::fs::write(&victim, "precious").unwrap();
        std::os::unix::fs::symlink(&victim, &path).unwrap();
        assert!(PidFile::take(&path).is_err());
        assert_eq!(std::fs::read_to_string(&victim).unwrap(), "precious");
    }
}
