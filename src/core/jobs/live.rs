//! The sign of life of a run: a lock on a file that holds the number of the process that answers for it.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal};

/// Somebody may look whether the lock is held in the very moment in which we want it.
const PATIENCE: Duration = Duration::from_millis(500);
const PAUSE: Duration = Duration::from_millis(5);

/// The lock, held until this is dropped or the process ends.
#[derive(Debug)]
pub struct Hold {
    file: File,
    path: PathBuf,
}

impl Hold {
    /// Takes the lock and writes our number into its file. `None`: somebody else holds it.
    ///
    /// # Errors
    /// The file cannot be made, is no plain file, or cannot be locked.
    pub fn take(path: &Path) -> io::Result<Option<Self>> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let mut file = open(path, true)?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) if Instant::now() < deadline => {
                    std::thread::sleep(PAUSE);
                    continue;
                }
                Err(TryLockError::WouldBlock) => return Ok(None),
                Err(TryLockError::Error(error)) => return Err(error),
            }
            // Whoever held it before us may have removed the file between our open and our lock.
            let ours = file.metadata()?;
            if std::fs::symlink_metadata(path)
                .is_ok_and(|there| (there.dev(), there.ino()) == (ours.dev(), ours.ino()))
            {
                file.set_len(0)?;
                file.rewind()?;
                writeln!(file, "{}", std::process::id())?;
                return Ok(Some(Self {
                    file,
                    path: path.to_owned(),
                }));
            }
        }
    }

    /// Whether anybody holds the lock.
    ///
    /// # Errors
    /// The file is there and cannot be opened or is no plain file.
    pub fn is_held(path: &Path) -> io::Result<bool> {
        match open(path, false) {
            Ok(file) => held(&file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Removes the file while the lock is held, so that nobody can have taken it over.
    pub fn retire(self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        // Closing alone would leave the lock to a child that was forked in this moment, until its exec.
        let _ = self.file.unlock();
    }
}

/// Sends a signal to the process that holds the lock. False: nobody does.
///
/// The number in the file is only believed while the lock is held, and the signal goes through a descriptor of the process: a number that
/// was given to somebody else in the meantime is never hit.
///
/// # Errors
/// The holder has not written its number yet, the number is of no process that could be meant, or the signal is refused.
pub fn signal_holder(path: &Path, signal: Signal) -> io::Result<bool> {
    let mut file = match open(path, false) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    if !held(&file)? {
        return Ok(false);
    }
    let pid = holder(&mut file)?;
    let process = match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
        Ok(process) => Some(process),
        Err(rustix::io::Errno::SRCH) => return Ok(false),
        // Before Linux 5.3, or in a container that does not know the call.
        Err(_) => None,
    };
    if !held(&file)? {
        return Ok(false);
    }
    match process {
        Some(process) => rustix::process::pidfd_send_signal(process, signal)?,
        None => rustix::process::kill_process(pid, signal)?,
    }
    Ok(true)
}

fn holder(file: &mut File) -> io::Result<Pid> {
    let mut text = String::new();
    file.rewind()?;
    file.take(32).read_to_string(&mut text)?;
    let own = rustix::process::getpid();
    text.trim()
        .parse()
        .ok()
        .filter(|&number: &i32| number > 1)
        .and_then(Pid::from_raw)
        .filter(|&pid| pid != own)
        .ok_or_else(|| io::Error::other("the supervisor of the run has not said who it is"))
}

/// A shared lock is asked for, so that two who look do not take each other for the holder.
fn held(file: &File) -> io::Result<bool> {
    match file.try_lock_shared() {
        Ok(()) => {
            file.unlock()?;
            Ok(false)
        }
        Err(TryLockError::WouldBlock) => Ok(true),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

fn open(path: &Path, create: bool) -> io::Result<File> {
    // A script of the same user can put anything here: a FIFO must not hold us, a link not lead us away.
    let file = OpenOptions::new()
        .read(true)
        .write(create)
        .create(create)
        .truncate(false)
        .mode(0o640)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)?;
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(io::Error::other("it is not a plain file: remove it"))
    }
}
