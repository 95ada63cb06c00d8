//! Files that decide about rights are opened first, then judged by what is open: kind, owner, mode, the directories above
//! (spec/api.md 16.11, spec/executor.md 7.5). A name that passes a test and is opened afterwards proves nothing.

use std::fs::{File, Metadata};
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

/// What a file must withstand.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Trust {
    /// Configuration, certificates, hooks: of root or ourselves, and not writable by everybody.
    Public,
    /// What a service writes for itself and root edits (trust map): as [`Trust::Public`], but root also accepts the owner of the directory,
    /// who could put another file in its place anyway. For that reason it must lie there itself: a link, symbolic or hard, out of a directory
    /// of somebody else could make root read (and a rewrite publish) what its owner may not see.
    State,
    /// Scripts of the allowlist: of whoever deploys them, but not writable by everybody.
    Script,
    /// What root decides by (the executor's files, spec/executor.md 7.6): the file itself, no link to it, and every directory above belong
    /// to root (or ourselves) and neither group nor others may write to any of them; a sticky bit does not help.
    Policy,
    /// Keys: closed to "other" altogether and not writable by the group, which may read. Root accepts any owner: a service user owns its
    /// key, and what a key says is proved by the certificate it belongs to.
    Secret,
}

/// Why a file was not used. Every sentence names the path and the remedy.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("cannot open '{}': {source}", .path.display())]
    Open { path: PathBuf, source: io::Error },
    #[error("cannot read '{}': {source}", .path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("'{}' is not a regular file", .path.display())]
    NotRegular { path: PathBuf },
    #[error("'{}' belongs to uid {uid}: it must belong to root or to the user that runs this program (chown it)", .path.display())]
    ForeignOwner { path: PathBuf, uid: u32 },
    #[error("'{}' can be written by others (mode {mode:04o}): remove that right with chmod", .path.display())]
    Writable { path: PathBuf, mode: u32 },
    #[error("'{}' is a secret that others can read (mode {mode:04o}): run chmod o-rwx on it", .path.display())]
    Exposed { path: PathBuf, mode: u32 },
    #[error("everybody can replace '{}' because directory '{}' is writable for all: remove that right with chmod", .path.display(), .directory.display())]
    OpenDirectory { path: PathBuf, directory: PathBuf },
    #[error("'{}' is a link in a directory of uid {uid}, who could choose what it leads to: put a plain file there", .path.display())]
    ForeignLink { path: PathBuf, uid: u32 },
    #[error("'{}' is a symbolic link: name the file that it leads to", .path.display())]
    Link { path: PathBuf },
    #[error("'{}' can be replaced by others because of directory '{}' (uid {uid}, mode {mode:04o}): it must belong to root and be writable for root alone", .path.display(), .directory.display())]
    LooseDirectory {
        path: PathBuf,
        directory: PathBuf,
        uid: u32,
        mode: u32,
    },
    #[error("'{}' changed while it was being checked: try again", .path.display())]
    Changed { path: PathBuf },
    #[error("'{}' is larger than {max} bytes", .path.display())]
    TooLarge { path: PathBuf, max: u64 },
    #[error("'{}' is not executable for the user that runs this program (chmod it)", .path.display())]
    NotExecutable { path: PathBuf },
}

impl OpenError {
    /// The file that it is about.
    pub fn path(&self) -> &Path {
        match self {
            Self::Open { path, .. }
            | Self::Read { path, .. }
            | Self::NotRegular { path }
            | Self::ForeignOwner { path, .. }
            | Self::Writable { path, .. }
            | Self::Exposed { path, .. }
            | Self::OpenDirectory { path, .. }
            | Self::ForeignLink { path, .. }
            | Self::Link { path }
            | Self::LooseDirectory { path, .. }
            | Self::Changed { path }
            | Self::TooLarge { path, .. }
            | Self::NotExecutable { path } => path,
        }
    }

    /// Whether the file is simply not there.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Open { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

/// A file that passed, and what is doubtful but common in existing installations.
#[derive(Debug)]
pub struct Opened {
    pub file: File,
    /// Sentences for a person: group-writable file, directory of somebody else.
    pub warnings: Vec<String>,
}

/// Opens a file and judges what is open. Symbolic links are followed: their target and every directory on either way must pass.
///
/// # Errors
/// It cannot be opened, or must not be trusted.
pub fn open_trusted(path: &Path, trust: Trust) -> Result<Opened, OpenError> {
    open_judged(path, trust, libc::O_NONBLOCK | libc::O_NOCTTY)
}

/// An atomic replacement in the middle of the judgement looks like a trick; it is over before the next attempt.
const ATTEMPTS: usize = 20;

fn open_judged(path: &Path, trust: Trust, flags: i32) -> Result<Opened, OpenError> {
    let mut result = judge_once(path, trust, flags);
    for _ in 1..ATTEMPTS {
        match result {
            Err(OpenError::Changed { .. }) => result = judge_once(path, trust, flags),
            other => return other,
        }
    }
    result
}

fn judge_once(path: &Path, trust: Trust, flags: i32) -> Result<Opened, OpenError> {
    let file = open_regular(path, flags)?;
    let read = |source| OpenError::Read {
        path: path.to_owned(),
        source,
    };
    let meta = file.metadata().map_err(read)?;
    let moved = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => OpenError::Changed {
            path: path.to_owned(),
        },
        _ => read(source),
    };
    let real = std::fs::canonicalize(path).map_err(moved)?;
    let there = std::fs::symlink_metadata(&real).map_err(moved)?;
    if (there.dev(), there.ino()) != (meta.dev(), meta.ino()) {
        return Err(OpenError::Changed {
            path: path.to_owned(),
        });
    }
    let euid = rustix::process::geteuid().as_raw();
    let directory = real.parent().and_then(|p| std::fs::metadata(p).ok());
    let facts = Facts::of(&meta);
    let mut warnings = Vec::new();
    warnings.extend(judge_file(
        path,
        facts,
        euid,
        directory.map(|d| d.uid()),
        trust,
    )?);
    let named = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    if trust == Trust::State
        && let Some(uid) = led_away(&named, &real, meta.nlink(), euid).map_err(moved)?
    {
        return Err(OpenError::ForeignLink {
            path: path.to_owned(),
            uid,
        });
    }
    let mut seen: Vec<&Path> = Vec::new();
    for above in real
        .ancestors()
        .skip(1)
        .chain(named.ancestors().skip(1))
        .filter(|p| !p.as_os_str().is_empty())
    {
        if seen.contains(&above) {
            continue;
        }
        seen.push(above);
        let meta = std::fs::metadata(above).map_err(read)?;
        warnings.extend(judge_directory(path, above, Facts::of(&meta), euid, trust)?);
    }
    Ok(Opened { file, warnings })
}

/// The owner of a directory on the way who is neither root nor we, and out of whose hands a link leads.
fn led_away(named: &Path, real: &Path, links: u64, euid: u32) -> io::Result<Option<u32>> {
    for above in named.ancestors().skip(1) {
        let owner = std::fs::metadata(above)?.uid();
        if owner == 0 || owner == euid {
            continue;
        }
        let below = named.strip_prefix(above).map_err(io::Error::other)?;
        if links > 1 || std::fs::canonicalize(above)?.join(below) != real {
            return Ok(Some(owner));
        }
    }
    Ok(None)
}

/// Opens, judges and reads a whole file.
///
/// # Errors
/// As [`open_trusted`], and when it is longer than `max_bytes`.
pub fn read_trusted(path: &Path, max_bytes: u64, trust: Trust) -> Result<Vec<u8>, OpenError> {
    let opened = open_trusted(path, trust)?;
    read_all(&opened.file, path, max_bytes)
}

/// Reads plain state: a regular file of at most `max_bytes`, whoever owns it.
///
/// # Errors
/// It cannot be opened or read, is no regular file, or is too long.
pub fn read_bounded(path: &Path, max_bytes: u64) -> Result<Vec<u8>, OpenError> {
    let file = open_regular(path, libc::O_NONBLOCK | libc::O_NOCTTY)?;
    read_all(&file, path, max_bytes)
}

/// As [`read_bounded`], but a link is refused: for files in directories that a service may write to, where a link could make root read
/// (and a rewrite publish) what the service may not see.
///
/// # Errors
/// As [`read_bounded`], and it is a symbolic link.
pub fn read_plain(path: &Path, max_bytes: u64) -> Result<Vec<u8>, OpenError> {
    let file = open_regular(path, libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY)?;
    read_all(&file, path, max_bytes)
}

/// Judges a program that we are about to start: everything of [`Trust::Public`], and we may execute it.
///
/// Whoever could still swap it between this check and the start may write to a directory that has just been judged.
///
/// # Errors
/// It cannot be opened, must not be trusted, or is not executable for us.
pub fn check_executable(path: &Path) -> Result<Vec<String>, OpenError> {
    // A program may be executable without being readable: O_PATH opens it for the judgement alone.
    let opened = open_judged(path, Trust::Public, libc::O_PATH)?;
    rustix::fs::accessat(
        rustix::fs::CWD,
        path,
        rustix::fs::Access::EXEC_OK,
        rustix::fs::AtFlags::empty(),
    )
    .map_err(|_| OpenError::NotExecutable {
        path: path.to_owned(),
    })?;
    Ok(opened.warnings)
}

/// Judges a file that decides what runs as root: everything of [`Trust::Policy`].
///
/// # Errors
/// It cannot be opened, or others could have written it.
pub fn check_policy(path: &Path) -> Result<(), OpenError> {
    // O_PATH with O_NOFOLLOW would open a link itself.
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY;
    match open_judged(path, Trust::Policy, flags) {
        Ok(_) => Ok(()),
        Err(OpenError::Open { path, source }) if source.raw_os_error() == Some(libc::ELOOP) => {
            Err(OpenError::Link { path })
        }
        Err(error) => Err(error),
    }
}

/// Judges a script of the allowlist: nobody but the few who may must be able to change what runs.
///
/// # Errors
/// Everybody may write to it, or replace it in its directory. That it is absent or not executable is for whoever starts it to say.
pub fn check_script(path: &Path) -> Result<(), OpenError> {
    match open_judged(path, Trust::Script, libc::O_PATH) {
        Err(error @ (OpenError::Writable { .. } | OpenError::OpenDirectory { .. })) => Err(error),
        _ => Ok(()),
    }
}

/// `flags` hold O_NONBLOCK or O_PATH: a FIFO in the place of a file must not hold us.
fn open_regular(path: &Path, flags: i32) -> Result<File, OpenError> {
    // Not by the standard library: where libc is musl it takes O_PATH for a part of the access mode and drops it.
    let flags = OFlags::from_bits_retain(flags.cast_unsigned()) | OFlags::CLOEXEC;
    let opened = rustix::fs::open(path, flags | OFlags::RDONLY, Mode::empty());
    let file = File::from(opened.map_err(|error| OpenError::Open {
        path: path.to_owned(),
        source: error.into(),
    })?);
    let meta = file.metadata().map_err(|source| OpenError::Read {
        path: path.to_owned(),
        source,
    })?;
    if meta.is_file() {
        Ok(file)
    } else {
        Err(OpenError::NotRegular {
            path: path.to_owned(),
        })
    }
}

fn read_all(file: &File, path: &Path, max: u64) -> Result<Vec<u8>, OpenError> {
    // One read instead of many small ones: the agent reads its certificate for every ping.
    let size = file.metadata().map_or(0, |m| m.len()).min(max);
    let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or(0).saturating_add(1));
    file.take(max.saturating_add(1))
        .read_to_end(&mut bytes)
        .map_err(|source| OpenError::Read {
            path: path.to_owned(),
            source,
        })?;
    if u64::try_from(bytes.len()).is_ok_and(|n| n <= max) {
        Ok(bytes)
    } else {
        Err(OpenError::TooLarge {
            path: path.to_owned(),
            max,
        })
    }
}

/// Owner and mode, apart from the file system so that every combination can be tested.
#[derive(Clone, Copy, Debug)]
struct Facts {
    uid: u32,
    mode: u32,
}

impl Facts {
    fn of(meta: &Metadata) -> Self {
        Self {
            uid: meta.uid(),
            mode: meta.mode() & 0o7777,
        }
    }
}

fn judge_file(
    path: &Path,
    facts: Facts,
    euid: u32,
    directory_owner: Option<u32>,
    trust: Trust,
) -> Result<Option<String>, OpenError> {
    let own = facts.uid == 0 || facts.uid == euid;
    let owner_is_fine = match trust {
        Trust::Public | Trust::Policy => own,
        Trust::State => own || (euid == 0 && directory_owner == Some(facts.uid)),
        Trust::Script => true,
        Trust::Secret => own || euid == 0,
    };
    let (path, mode) = (path.to_owned(), facts.mode);
    if !owner_is_fine {
        return Err(OpenError::ForeignOwner {
            path,
            uid: facts.uid,
        });
    }
    let closed_to_group = matches!(trust, Trust::Secret | Trust::Policy);
    if mode & 0o002 != 0 || (closed_to_group && mode & 0o020 != 0) {
        return Err(OpenError::Writable { path, mode });
    }
    if trust == Trust::Secret && mode & 0o007 != 0 {
        return Err(OpenError::Exposed { path, mode });
    }
    Ok((mode & 0o020 != 0).then(|| {
        format!(
            "'{}' can be written by its group (mode {mode:04o})",
            path.display()
        )
    }))
}

fn judge_directory(
    path: &Path,
    directory: &Path,
    facts: Facts,
    euid: u32,
    trust: Trust,
) -> Result<Option<String>, OpenError> {
    let foreign = facts.uid != 0 && facts.uid != euid;
    if trust == Trust::Policy && (foreign || facts.mode & 0o022 != 0) {
        return Err(OpenError::LooseDirectory {
            path: path.to_owned(),
            directory: directory.to_owned(),
            uid: facts.uid,
            mode: facts.mode,
        });
    }
    // In a sticky directory only the owner of an entry can replace it, and that owner is judged one step further down.
    if facts.mode & 0o002 != 0 && facts.mode & 0o1000 == 0 {
        return Err(OpenError::OpenDirectory {
            path: path.to_owned(),
            directory: directory.to_owned(),
        });
    }
    Ok(foreign.then(|| {
        format!(
            "'{}' can be replaced by uid {}, who owns directory '{}'",
            path.display(),
            facts.uid,
            directory.display()
        )
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    const ME: u32 = 1000;

    fn judge(
        uid: u32,
        mode: u32,
        euid: u32,
        directory: u32,
        trust: Trust,
    ) -> Result<Option<String>, OpenError> {
        let facts = Facts { uid, mode };
        judge_file(Path::new("/f"), facts, euid, Some(directory), trust)
    }

    #[test]
    fn owners_are_root_and_ourselves() {
        for trust in [Trust::Public, Trust::State, Trust::Secret] {
            assert!(judge(0, 0o600, ME, 0, trust).is_ok());
            assert!(judge(ME, 0o600, ME, 0, trust).is_ok());
            assert!(matches!(
                judge(7, 0o600, ME, 7, trust),
                Err(OpenError::ForeignOwner { uid: 7, .. })
            ));
        }
    }

    #[test]
    fn root_reads_the_key_and_the_map_of_a_service_user_but_not_its_configuration() {
        assert!(judge(7, 0o600, 0, 0, Trust::Secret).is_ok());
        assert!(judge(7, 0o644, 0, 7, Trust::State).is_ok());
        assert!(judge(7, 0o644, 0, 8, Trust::State).is_err());
        assert!(judge(7, 0o644, 0, 7, Trust::Public).is_err());
    }

    #[test]
    fn what_root_decides_by_is_writable_for_root_alone() {
        let dir = |uid, mode| {
            let facts = Facts { uid, mode };
            judge_directory(Path::new("/d/f"), Path::new("/d"), facts, 0, Trust::Policy)
        };
        assert!(dir(0, 0o755).is_ok() && dir(0, 0o750).is_ok());
        for (uid, mode) in [(0, 0o775), (0, 0o1777), (7, 0o755), (0, 0o757)] {
            let loose = matches!(dir(uid, mode), Err(OpenError::LooseDirectory { .. }));
            assert!(loose, "{uid} {mode:o}");
        }
        assert!(judge(0, 0o640, 0, 0, Trust::Policy).is_ok());
        assert!(judge(0, 0o660, 0, 0, Trust::Policy).is_err());
        assert!(judge(7, 0o640, 0, 0, Trust::Policy).is_err());
        // The directory for temporary files is sticky, and that is not enough.
        let dir = tempfile::tempdir().unwrap();
        let (file, link) = (dir.path().join("file"), dir.path().join("link"));
        std::fs::write(&file, "").unwrap();
        symlink(&file, &link).unwrap();
        assert!(matches!(check_policy(&link), Err(OpenError::Link { .. })));
        assert!(check_policy(&file).is_err());
        assert!(
            check_policy(Path::new("/nonexistent/x"))
                .unwrap_err()
                .is_not_found()
        );
    }

    #[test]
    fn links_lead_nowhere_out_of_the_directory_of_somebody_else() {
        let dir = tempfile::tempdir().unwrap();
        let theirs = dir.path().join("theirs");
        std::fs::create_dir_all(theirs.join("below")).unwrap();
        let (secret, plain) = (dir.path().join("secret"), theirs.join("plain"));
        std::fs::write(&secret, "x").unwrap();
        std::fs::write(&plain, "x").unwrap();
        let (soft, through) = (theirs.join("soft"), theirs.join("dir"));
        symlink(&secret, &soft).unwrap();
        symlink(dir.path(), &through).unwrap();
        // Root gives the directory away; anybody else pretends to be another user.
        let me = rustix::process::geteuid();
        let (euid, owner) = if me.is_root() {
            std::os::unix::fs::chown(&theirs, Some(54_321), None).unwrap();
            (0, 54_321)
        } else {
            (me.as_raw() + 1, me.as_raw())
        };
        let led = |path: &Path, links, euid| {
            let real = std::fs::canonicalize(path).unwrap();
            led_away(path, &real, links, euid).unwrap()
        };
        assert_eq!(led(&soft, 1, euid), Some(owner));
        assert_eq!(led(&through.join("secret"), 1, euid), Some(owner));
        assert_eq!(led(&plain, 2, euid), Some(owner));
        assert_eq!(led(&soft, 1, owner), None);
        if me.is_root() {
            assert_eq!(led(&plain, 1, euid), None);
            assert!(matches!(
                read_trusted(&soft, 9, Trust::State),
                Err(OpenError::ForeignLink { uid: 54_321, .. })
            ));
            assert_eq!(read_trusted(&plain, 9, Trust::State).unwrap(), b"x");
        }
    }

    #[test]
    fn modes_decide() {
        assert!(judge(0, 0o644, ME, 0, Trust::Public).unwrap().is_none());
        assert!(judge(0, 0o664, ME, 0, Trust::Public).unwrap().is_some());
        assert!(matches!(
            judge(0, 0o646, ME, 0, Trust::Public),
            Err(OpenError::Writable { mode: 0o646, .. })
        ));
        assert!(judge(0, 0o640, ME, 0, Trust::Secret).unwrap().is_none());
        for bad in [0o644, 0o604, 0o601, 0o660, 0o620] {
            assert!(judge(0, bad, ME, 0, Trust::Secret).is_err(), "{bad:o}");
        }
    }

    #[test]
    fn directories_decide_too() {
        let judge = |uid, mode| {
            judge_directory(
                Path::new("/d/f"),
                Path::new("/d"),
                Facts { uid, mode },
                ME,
                Trust::Public,
            )
        };
        assert!(judge(0, 0o755).unwrap().is_none());
        assert!(judge(0, 0o1777).unwrap().is_none());
        assert!(judge(0, 0o777).is_err());
        assert!(judge(7, 0o755).unwrap().unwrap().contains("uid 7"));
    }

    #[test]
    fn real_files_are_read_within_bounds() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, b"12345").unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
        assert_eq!(read_trusted(&path, 5, Trust::Secret).unwrap(), b"12345");
        assert!(matches!(
            read_bounded(&path, 4),
            Err(OpenError::TooLarge { max: 4, .. })
        ));
        let link = dir.path().join("link");
        symlink(&path, &link).unwrap();
        assert_eq!(read_trusted(&link, 5, Trust::Secret).unwrap(), b"12345");
        assert_eq!(read_plain(&path, 5).unwrap(), b"12345");
        assert!(matches!(read_plain(&link, 5), Err(OpenError::Open { .. })));
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).unwrap();
        assert!(matches!(
            read_trusted(&link, 5, Trust::Secret),
            Err(OpenError::Exposed { .. })
        ));
        let absent = read_bounded(&dir.path().join("absent"), 9).unwrap_err();
        assert!(absent.is_not_found(), "{absent}");
    }

    #[test]
    fn what_is_no_regular_file_is_refused_without_waiting_for_it() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(
            read_bounded(dir.path(), 9),
            Err(OpenError::NotRegular { .. })
        ));
        let fifo = dir.path().join("fifo");
        let mode = Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        assert!(matches!(
            read_bounded(&fifo, 9),
            Err(OpenError::NotRegular { .. })
        ));
    }

    #[test]
    fn a_directory_that_everybody_writes_spoils_what_lies_below_and_what_links_through_it() {
        let dir = tempfile::tempdir().unwrap();
        let open = dir.path().join("open");
        std::fs::create_dir(&open).unwrap();
        let inside = open.join("f");
        std::fs::write(&inside, b"x").unwrap();
        std::fs::set_permissions(&inside, PermissionsExt::from_mode(0o644)).unwrap();
        std::fs::set_permissions(&open, PermissionsExt::from_mode(0o777)).unwrap();
        assert!(matches!(
            read_trusted(&inside, 9, Trust::Public),
            Err(OpenError::OpenDirectory { .. })
        ));
        let good = dir.path().join("good");
        std::fs::write(&good, b"x").unwrap();
        std::fs::set_permissions(&good, PermissionsExt::from_mode(0o644)).unwrap();
        let link = open.join("link");
        symlink(&good, &link).unwrap();
        assert!(read_trusted(&good, 9, Trust::Public).is_ok());
        assert!(matches!(
            read_trusted(&link, 9, Trust::Public),
            Err(OpenError::OpenDirectory { .. })
        ));
    }

    #[test]
    fn a_script_that_everybody_may_change_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("script");
        assert!(check_script(&path).is_ok());
        std::fs::write(&path, "x").unwrap();
        let mode = |path: &Path, mode| {
            std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
        };
        mode(&path, 0o775);
        assert!(check_script(&path).is_ok());
        assert!(judge(7, 0o755, ME, 7, Trust::Script).is_ok());
        mode(&path, 0o757);
        assert!(matches!(
            check_script(&path),
            Err(OpenError::Writable { .. })
        ));
        mode(&path, 0o755);
        mode(dir.path(), 0o777);
        assert!(matches!(
            check_script(&path),
            Err(OpenError::OpenDirectory { .. })
        ));
    }

    #[test]
    fn a_program_must_be_executable() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hook");
        std::fs::write(&path, b"#!/bin/sh\n").unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).unwrap();
        assert!(matches!(
            check_executable(&path),
            Err(OpenError::NotExecutable { .. })
        ));
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
        assert!(check_executable(&path).is_ok());
    }
}
