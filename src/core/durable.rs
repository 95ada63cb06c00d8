//! The only way state reaches the disk: whole files, replaced atomically, on the platter before we say so (spec/swarm.md COM-2).
//!
//! Steps of [`replace`]: create a temporary file beside the target with the final mode (`O_EXCL`, `O_NOFOLLOW`), write, `fsync`,
//! rename, `fsync` of the directory. After a crash at any point the target is either the old file or the new one. A left-over
//! temporary file begins with a dot and ends in `.tmp`; readers ignore such names.

pub(crate) mod crash;

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use crate::core::types;

/// What failed, at which path.
#[derive(Debug, thiserror::Error)]
pub enum DurableError {
    #[error("cannot create '{}': {source}", .path.display())]
    Create { path: PathBuf, source: io::Error },
    #[error("cannot write '{}': {source}", .path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("cannot put '{}' in place: {source}", .path.display())]
    Rename { path: PathBuf, source: io::Error },
    #[error("cannot remove '{}': {source}", .path.display())]
    Remove { path: PathBuf, source: io::Error },
    #[error("cannot lock '{}': {source}", .path.display())]
    Lock { path: PathBuf, source: io::Error },
    #[error("cannot change the owner of '{}': {source}", .path.display())]
    Owner { path: PathBuf, source: io::Error },
}

/// Numeric owner and group that a file shall get; `None` leaves that half as it is.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Owner {
    pub uid: Option<u32>,
    pub gid: Option<u32>,
}

/// A file that is written and synced but not yet in place. Dropping it removes the temporary file.
///
/// Several can be prepared before the first is committed, so that a set of files changes with the fewest possible steps in between.
#[derive(Debug)]
#[must_use = "a prepared file appears only when it is committed"]
pub struct Prepared {
    temporary: PathBuf,
    target: PathBuf,
    committed: bool,
}

/// Writes and syncs the new content beside `target`, with `mode` (exact, the umask does not apply) and `owner`.
///
/// # Errors
/// Any step fails; nothing is left behind.
pub fn prepare(
    target: &Path,
    bytes: &[u8],
    mode: u32,
    owner: Owner,
) -> Result<Prepared, DurableError> {
    let (prepared, file) = write_beside(target, bytes, mode, owner)?;
    file.sync_all().map_err(|source| DurableError::Write {
        path: target.to_owned(),
        source,
    })?;
    Ok(prepared)
}

/// Replaces many files of one directory, each atomically; all are on the platter when this returns. Two syncs instead of two per file.
///
/// # Errors
/// A file cannot be written: none is replaced then. A rename fails: those before it are replaced.
pub fn replace_all(
    dir: &Path,
    files: impl IntoIterator<Item = (PathBuf, Vec<u8>)>,
    mode: u32,
) -> Result<(), DurableError> {
    let prepared = files
        .into_iter()
        .map(|(target, bytes)| {
            write_beside(&target, &bytes, mode, Owner::default()).map(|(prepared, _)| prepared)
        })
        .collect::<Result<Vec<_>, _>>()?;
    if prepared.is_empty() {
        return Ok(());
    }
    let failed = |source| DurableError::Write {
        path: dir.to_owned(),
        source,
    };
    let directory = File::open(dir).map_err(failed)?;
    rustix::fs::syncfs(&directory).map_err(|e| failed(e.into()))?;
    for file in prepared {
        file.rename()?;
    }
    sync_dir(&directory).map_err(failed)
}

fn write_beside(
    target: &Path,
    bytes: &[u8],
    mode: u32,
    owner: Owner,
) -> Result<(Prepared, File), DurableError> {
    fill_beside(target, mode, owner, |file| file.write_all(bytes))
}

/// As [`prepare`], with the content of an open file, from its beginning.
///
/// # Errors
/// As [`prepare`]; the source cannot be read.
pub fn prepare_copy(
    target: &Path,
    source: &mut File,
    mode: u32,
    owner: Owner,
) -> Result<Prepared, DurableError> {
    let (prepared, file) = fill_beside(target, mode, owner, |file| {
        io::copy(source, file).map(|_| ())
    })?;
    file.sync_all().map_err(|source| DurableError::Write {
        path: target.to_owned(),
        source,
    })?;
    Ok(prepared)
}

fn fill_beside(
    target: &Path,
    mode: u32,
    owner: Owner,
    fill: impl FnOnce(&mut File) -> io::Result<()>,
) -> Result<(Prepared, File), DurableError> {
    let suffix = types::random::<8>().map_err(|_| DurableError::Create {
        path: target.to_owned(),
        source: io::Error::other("the system gives no random bytes"),
    })?;
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    let temporary = target.with_file_name(format!(".{name}.{}.tmp", types::hex(&suffix)));
    let prepared = Prepared {
        temporary,
        target: target.to_owned(),
        committed: false,
    };
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode & 0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(&prepared.temporary)
        .map_err(|source| DurableError::Create {
            path: target.to_owned(),
            source,
        })?;
    let write = |source| DurableError::Write {
        path: target.to_owned(),
        source,
    };
    fill(&mut file).map_err(write)?;
    if owner != Owner::default() {
        std::os::unix::fs::fchown(&file, owner.uid, owner.gid).map_err(|source| {
            DurableError::Owner {
                path: target.to_owned(),
                source,
            }
        })?;
    }
    file.set_permissions(std::fs::Permissions::from_mode(mode))
        .map_err(write)?;
    Ok((prepared, file))
}

impl Prepared {
    /// Renames the file into place and syncs the directory.
    ///
    /// # Errors
    /// The rename or the sync of the directory fails.
    pub fn commit(self) -> Result<(), DurableError> {
        let target = self.target.clone();
        self.rename()?;
        sync_parent(&target).map_err(|source| DurableError::Rename {
            path: target,
            source,
        })
    }

    fn rename(mut self) -> Result<(), DurableError> {
        crash::effect()
            .and_then(|()| std::fs::rename(&self.temporary, &self.target))
            .map_err(|source| DurableError::Rename {
                path: self.target.clone(),
                source,
            })?;
        self.committed = true;
        Ok(())
    }
}

impl Prepared {
    /// Puts the file in place only if nothing is there yet; whatever is there stays untouched.
    ///
    /// # Errors
    /// The target exists (`AlreadyExists`), or cannot be made, or the directory cannot be synced.
    pub fn commit_new(self) -> Result<(), DurableError> {
        // A link, unlike a rename, never replaces; dropping `self` then removes the temporary name.
        crash::effect()
            .and_then(|()| std::fs::hard_link(&self.temporary, &self.target))
            .and_then(|()| sync_parent(&self.target))
            .map_err(|source| DurableError::Create {
                path: self.target.clone(),
                source,
            })
    }
}

impl Drop for Prepared {
    fn drop(&mut self) {
        // Whoever has lost its power clears nothing away.
        if !self.committed && !crash::is_out() {
            let _ = std::fs::remove_file(&self.temporary);
        }
    }
}

/// Replaces the whole content of `target`.
///
/// # Errors
/// Any step fails; the old file is then still there, whole.
pub fn replace(target: &Path, bytes: &[u8], mode: u32) -> Result<(), DurableError> {
    prepare(target, bytes, mode, Owner::default())?.commit()
}

/// Puts a small new file in place. Unlike [`replace`] nothing is synced: nobody ever finds half of it, but after a power cut within the
/// seconds that the file system takes to write it down, it may not be there, or be empty. For what nobody has been promised, and what
/// would not be missed.
///
/// # Errors
/// Any step fails; the old file is then still there, whole.
pub fn place(target: &Path, bytes: &[u8], mode: u32) -> Result<(), DurableError> {
    let (prepared, _) = write_beside(target, bytes, mode, Owner::default())?;
    prepared.rename()
}

/// Like [`replace`], keeping owner and group of the file that is replaced (where there is one and we may).
///
/// # Errors
/// As [`replace`]. A refused change of owner is not an error: an unprivileged writer can only own its files itself.
pub fn replace_keeping_owner(target: &Path, bytes: &[u8], mode: u32) -> Result<(), DurableError> {
    let old = std::fs::metadata(target).ok().map(|m| Owner {
        uid: Some(m.uid()),
        gid: Some(m.gid()),
    });
    match old {
        Some(owner) => match prepare(target, bytes, mode, owner) {
            Err(DurableError::Owner { .. }) => replace(target, bytes, mode),
            other => other?.commit(),
        },
        None => replace(target, bytes, mode),
    }
}

/// Removes temporary files of a target that a crash has left: there may be a key in them. Nobody may be writing the target now.
///
/// # Errors
/// One of them cannot be removed.
pub fn remove_leftovers(target: &Path) -> Result<(), DurableError> {
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    let prefix = format!(".{name}.");
    let dir = target.parent().unwrap_or(Path::new("/"));
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let file = entry.file_name();
        let file = file.to_string_lossy();
        if file.starts_with(&prefix) && file.ends_with(".tmp") {
            remove(&entry.path())?;
        }
    }
    Ok(())
}

/// Removes a file; one that is not there counts as removed. Returns whether it was there.
///
/// # Errors
/// The file is there and cannot be removed, or the directory cannot be synced.
pub fn remove(path: &Path) -> Result<bool, DurableError> {
    let failed = |source| DurableError::Remove {
        path: path.to_owned(),
        source,
    };
    match crash::effect().and_then(|()| std::fs::remove_file(path)) {
        Ok(()) => sync_parent(path).map(|()| true).map_err(failed),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(failed(e)),
    }
}

/// Removes a directory of plain files with all that is in it, left-over temporary files included; one that is not there counts as removed.
///
/// # Errors
/// Something in it, or the directory itself, cannot be removed.
pub fn remove_dir(path: &Path) -> Result<(), DurableError> {
    let failed = |source| DurableError::Remove {
        path: path.to_owned(),
        source,
    };
    let entries = match std::fs::read_dir(path) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(failed(e)),
    };
    for entry in entries {
        remove(&entry.map_err(failed)?.path())?;
    }
    crash::effect()
        .and_then(|()| std::fs::remove_dir(path))
        .and_then(|()| sync_parent(path))
        .map_err(failed)
}

fn sync_parent(path: &Path) -> io::Result<()> {
    let parent = path
        .parent()
        .filter(|p| !p.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    sync_dir(&File::open(parent)?)
}

fn sync_dir(directory: &File) -> io::Result<()> {
    match directory.sync_all() {
        // Some file systems cannot sync a directory and say so this way; EIO and ENOSPC are real.
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => Ok(()),
        other => other,
    }
}

/// Creates a directory with its parents; the last one gets `mode` if it is made now.
///
/// # Errors
/// It cannot be created.
pub fn create_dir(path: &Path, mode: u32) -> Result<(), DurableError> {
    let failed = |source| DurableError::Create {
        path: path.to_owned(),
        source,
    };
    if path.is_dir() {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(failed)?;
    }
    match std::fs::create_dir(path) {
        // Through a descriptor: the owner of the parent could put a link in the place of the new directory.
        Ok(()) => open_dir(path)
            .and_then(|dir| dir.set_permissions(std::fs::Permissions::from_mode(mode)))
            .map_err(failed),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(e) => Err(failed(e)),
    }
}

/// Creates a directory that everybody of its group shares (2770). One that root makes now gets the group of its parent: the API's user works
/// in it too.
///
/// # Errors
/// It cannot be created, or not be given to the group.
pub fn create_shared_dir(path: &Path) -> Result<(), DurableError> {
    if path.is_dir() {
        return Ok(());
    }
    create_dir(path, 0o2770)?;
    match path.parent().and_then(|parent| parent.metadata().ok()) {
        Some(parent) if rustix::process::geteuid().is_root() => give_dir(
            path,
            Owner {
                uid: None,
                gid: Some(parent.gid()),
            },
        ),
        _ => Ok(()),
    }
}

/// Gives a directory to somebody, unless there is a link in its place.
///
/// # Errors
/// It is no directory, or its owner cannot be changed.
pub fn give_dir(path: &Path, owner: Owner) -> Result<(), DurableError> {
    open_dir(path)
        .and_then(|dir| std::os::unix::fs::fchown(&dir, owner.uid, owner.gid))
        .map_err(|source| DurableError::Owner {
            path: path.to_owned(),
            source,
        })
}

fn open_dir(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_DIRECTORY)
        .open(path)
}

/// An exclusive `flock(2)`, held until dropped. The kernel frees it when the process ends, however it ends.
#[derive(Debug)]
pub struct Lock {
    file: File,
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing alone would leave the lock to a child that was forked in this moment, until its exec.
        let _ = self.file.unlock();
    }
}

impl Lock {
    /// Opens (creating it with exactly `mode` if needed) and locks the file, waiting at most `patience`.
    ///
    /// The lock is only as good as everybody's access to its file, so a new one that root makes gets owner and group of its directory, and
    /// one that we may only read is locked all the same (`flock(2)` asks for no write access).
    ///
    /// # Errors
    /// The file cannot be opened, or somebody else held the lock all the time.
    pub fn exclusive(
        path: &Path,
        mode: u32,
        patience: std::time::Duration,
    ) -> Result<Self, DurableError> {
        let failed = |source| DurableError::Lock {
            path: path.to_owned(),
            source,
        };
        let file = open_lock_file(path, mode).map_err(failed)?;
        let deadline = std::time::Instant::now() + patience;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Self { file }),
                Err(std::fs::TryLockError::WouldBlock) if std::time::Instant::now() < deadline => {
                    std::thread::sleep(std::time::Duration::from_millis(10));
                }
                Err(std::fs::TryLockError::WouldBlock) => {
                    return Err(failed(io::Error::new(
                        io::ErrorKind::WouldBlock,
                        "another process holds it",
                    )));
                }
                Err(std::fs::TryLockError::Error(e)) => return Err(failed(e)),
            }
        }
    }
}

/// Whoever owns the directory of a lock can put anything there: a FIFO must not hold us, a link not lead us away.
const LOCK_FLAGS: i32 = libc::O_NOFOLLOW | libc::O_NONBLOCK;

fn open_lock_file(path: &Path, mode: u32) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.append(true).custom_flags(LOCK_FLAGS);
    // There already, but for the first time: whoever asks for a new one first waits for the directory, as if to change it.
    match open_existing(&options, path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        found => return found,
    }
    match options.clone().create_new(true).mode(mode).open(path) {
        Ok(file) => {
            if rustix::process::geteuid().is_root()
                && let Some(directory) = path.parent().and_then(|p| std::fs::metadata(p).ok())
            {
                let (uid, gid) = (directory.uid(), directory.gid());
                std::os::unix::fs::fchown(&file, Some(uid), Some(gid))?;
            }
            file.set_permissions(std::fs::Permissions::from_mode(mode))?;
            Ok(file)
        }
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => open_existing(&options, path),
        Err(e) => Err(e),
    }
}

fn open_existing(options: &OpenOptions, path: &Path) -> io::Result<File> {
    let file = match options.open(path) {
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => OpenOptions::new()
            .read(true)
            .custom_flags(LOCK_FLAGS)
            .open(path),
        other => other,
    }?;
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(io::Error::other("it is not a plain file: remove it"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replaced_file_has_exactly_the_mode_and_leaves_nothing_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("key");
        replace(&target, b"one", 0o640).unwrap();
        replace(&target, b"two", 0o600).unwrap();
        assert_eq!(std::fs::read(&target).unwrap(), b"two");
        assert_eq!(std::fs::metadata(&target).unwrap().mode() & 0o7777, 0o600);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn an_uncommitted_file_vanishes_and_the_old_one_stays() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("state");
        replace(&target, b"old", 0o644).unwrap();
        drop(prepare(&target, b"new", 0o644, Owner::default()).unwrap());
        assert_eq!(std::fs::read(&target).unwrap(), b"old");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_new_file_never_replaces_one() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("ca.key");
        let new = |bytes: &[u8]| {
            prepare(&target, bytes, 0o600, Owner::default()).and_then(Prepared::commit_new)
        };
        new(b"first").unwrap();
        assert!(matches!(new(b"second"), Err(DurableError::Create { .. })));
        assert_eq!(std::fs::read(&target).unwrap(), b"first");
        assert_eq!(std::fs::metadata(&target).unwrap().mode() & 0o7777, 0o600);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn many_files_are_replaced_at_once_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let all = |names: &[&str]| {
            let files = names
                .iter()
                .map(|n| (dir.path().join(n), n.as_bytes().to_vec()));
            replace_all(dir.path(), files, 0o644)
        };
        replace(&dir.path().join("a"), b"old", 0o600).unwrap();
        all(&["a", "b", "c"]).unwrap();
        assert_eq!(std::fs::read(dir.path().join("a")).unwrap(), b"a");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 3);
        // The last one cannot be written, so none is.
        assert!(all(&["d", "nodir/e"]).is_err());
        assert!(!dir.path().join("d").exists());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 3);
    }

    #[test]
    fn a_power_cut_lets_the_first_effects_happen_and_no_more() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        let both = || replace(&a, b"1", 0o600).and_then(|()| replace(&b, b"1", 0o600));
        let (result, cut) = crash::after(1, both);
        assert!(result.is_err() && cut && a.exists() && !b.exists());
        let (result, cut) = crash::after(9, both);
        assert!(result.is_ok() && !cut && b.exists());
    }

    #[test]
    fn a_file_that_is_placed_is_whole_or_not_there() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("a");
        let (result, cut) = crash::after(0, || place(&target, b"new", 0o640));
        assert!(result.is_err() && cut && !target.exists());
        place(&target, b"new", 0o640).unwrap();
        assert_eq!(std::fs::read(&target).unwrap(), b"new");
        assert_eq!(std::fs::metadata(&target).unwrap().mode() & 0o7777, 0o640);
    }

    #[test]
    fn a_missing_directory_is_named() {
        let error = replace(Path::new("/nonexistent/dir/file"), b"", 0o600).unwrap_err();
        assert!(
            error.to_string().contains("/nonexistent/dir/file"),
            "{error}"
        );
    }

    #[test]
    fn a_lock_excludes_and_is_freed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let patience = std::time::Duration::from_millis(30);
        let held = Lock::exclusive(&path, 0o600, patience).unwrap();
        assert!(Lock::exclusive(&path, 0o600, patience).is_err());
        drop(held);
        assert!(Lock::exclusive(&path, 0o600, patience).is_ok());
    }

    #[test]
    fn what_lies_in_the_place_of_a_lock_neither_holds_nor_misleads_us() {
        let dir = tempfile::tempdir().unwrap();
        let (fifo, link) = (dir.path().join("fifo"), dir.path().join("link"));
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        std::os::unix::fs::symlink(dir.path().join("elsewhere"), &link).unwrap();
        for path in [&fifo, &link] {
            let patience = std::time::Duration::from_millis(30);
            assert!(Lock::exclusive(path, 0o600, patience).is_err());
        }
        assert!(!dir.path().join("elsewhere").exists());
        assert!(give_dir(&link, Owner::default()).is_err());
        assert!(give_dir(dir.path(), Owner::default()).is_ok());
    }

    #[test]
    fn a_lock_has_exactly_its_mode_and_works_for_who_may_only_read_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let patience = std::time::Duration::from_millis(30);
        drop(Lock::exclusive(&path, 0o660, patience).unwrap());
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o7777, 0o660);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o444)).unwrap();
        let _held = Lock::exclusive(&path, 0o660, patience).unwrap();
        assert!(Lock::exclusive(&path, 0o660, patience).is_err());
    }
}
