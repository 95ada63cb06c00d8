//! One run of a script on a host at a time (spec/dispatcher.md 11): files and semantics of the original, but really held.
//!
//! `<host>--<script>.lock` in `locks_dir` is empty and stays; what counts is who holds its `flock(2)`. The kernel frees it however the holder
//! ends. The host is the name of the registry, not the word that was typed, so `web1` and `web1:7450` are the same.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::core::durable::{self, DurableError, Lock};
use crate::core::logging::Action;

const FILE_MODE: u32 = 0o660;
const EXTENSION: &str = ".lock";
const SEPARATOR: &str = "--";
/// Whoever lists locks may hold one for a moment, so a conflict is believed only when it lasts.
const LOOKS: u32 = 5;
const PAUSE: Duration = Duration::from_millis(10);
/// Longest script part of a file name; with a host of 64 bytes the name stays below the 255 that file systems take.
const MAX_SCRIPT: usize = 180;

/// One script on one host.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Pair {
    pub host: String,
    pub script: String,
}

impl fmt::Display for Pair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.script)
    }
}

impl Pair {
    fn file_name(&self) -> String {
        let script: String = sanitise(&self.script).chars().take(MAX_SCRIPT).collect();
        format!("{}{SEPARATOR}{script}{EXTENSION}", sanitise(&self.host))
    }

    /// Names with dashes of their own: the last two are the separator.
    fn from_file_name(name: &str) -> Option<Self> {
        let (host, script) = name.strip_suffix(EXTENSION)?.rsplit_once(SEPARATOR)?;
        (!host.is_empty() && !script.is_empty()).then(|| Self {
            host: host.to_owned(),
            script: script.to_owned(),
        })
    }
}

fn sanitise(text: &str) -> String {
    text.chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() || "_.-".contains(c) {
                c
            } else {
                '_'
            }
        })
        .collect()
}

/// Why there are no locks.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Somebody runs these already, in the order in which they were asked for. Nothing is held.
    #[error("already running: {}", .0.iter().map(Pair::to_string).collect::<Vec<_>>().join(", "))]
    Held(Vec<Pair>),
    #[error("{0}\nWithout its locks a run could meet itself; 'locks_dir' names their directory.")]
    Durable(#[from] DurableError),
    #[error("cannot read '{}': {source}", .path.display())]
    List { path: PathBuf, source: io::Error },
}

/// Locks of one script, held until this is dropped.
#[derive(Debug)]
#[must_use = "the locks are freed when this is dropped"]
pub struct Held {
    locks: Vec<Lock>,
    hosts: Vec<String>,
    script: String,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.locks.clear();
        Action::new("lock-release")
            .field("HOSTS", self.hosts.join(","))
            .field("SCRIPT", &self.script)
            .info();
    }
}

/// Takes the locks of one script on all these hosts (names of the registry), or none. Does not wait.
///
/// # Errors
/// Another process holds some of them, or a file cannot be locked.
pub fn acquire<'a>(
    dir: &Path,
    hosts: impl IntoIterator<Item = &'a str>,
    script: &str,
) -> Result<Held, LockError> {
    durable::create_shared_dir(dir)?;
    // Keyed by file: words that name the same lock must not meet themselves. Sorted, so that nobody takes two in different orders.
    let mut wanted: BTreeMap<String, (usize, Pair)> = BTreeMap::new();
    for (index, host) in hosts.into_iter().enumerate() {
        let pair = Pair {
            host: host.to_owned(),
            script: script.to_owned(),
        };
        wanted.entry(pair.file_name()).or_insert((index, pair));
    }
    let mut taken = BTreeMap::new();
    for look in 1..=LOOKS {
        for name in wanted.keys() {
            if !taken.contains_key(name)
                && let Some(lock) = try_lock(&dir.join(name))?
            {
                taken.insert(name.clone(), lock);
            }
        }
        if taken.len() == wanted.len() {
            break;
        }
        if look < LOOKS {
            std::thread::sleep(PAUSE);
        }
    }
    let mut pairs: Vec<(usize, Pair, bool)> = wanted
        .into_iter()
        .map(|(name, (index, pair))| (index, pair, taken.contains_key(&name)))
        .collect();
    pairs.sort_by_key(|(index, ..)| *index);
    if taken.len() < pairs.len() {
        drop(taken);
        let conflicts: Vec<Pair> = pairs
            .into_iter()
            .filter(|(.., ours)| !ours)
            .map(|(_, pair, _)| pair)
            .collect();
        let words: Vec<String> = conflicts.iter().map(Pair::to_string).collect();
        Action::new("lock-conflict")
            .field("CONFLICTS", words.join(","))
            .warning();
        return Err(LockError::Held(conflicts));
    }
    let hosts: Vec<String> = pairs.into_iter().map(|(_, pair, _)| pair.host).collect();
    for host in &hosts {
        Action::new("lock-acquire")
            .field("HOST", host)
            .field("SCRIPT", script)
            .info();
    }
    Ok(Held {
        locks: taken.into_values().collect(),
        hosts,
        script: script.to_owned(),
    })
}

/// `None`: somebody else holds it.
fn try_lock(path: &Path) -> Result<Option<Lock>, DurableError> {
    match Lock::exclusive(path, FILE_MODE, Duration::ZERO) {
        Ok(lock) => Ok(Some(lock)),
        Err(DurableError::Lock { source, .. }) if source.kind() == io::ErrorKind::WouldBlock => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Locks that somebody holds now, sorted by host and script as they stand in the file names. Files that cannot be opened are passed over.
///
/// # Errors
/// The directory is there and cannot be read.
pub fn held(dir: &Path) -> Result<Vec<Pair>, LockError> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => {
            return Err(LockError::List {
                path: dir.to_owned(),
                source,
            });
        }
    };
    let mut pairs: Vec<Pair> = entries
        .filter_map(Result::ok)
        .filter_map(|entry| {
            let pair = Pair::from_file_name(entry.file_name().to_str()?)?;
            is_held(&entry.path()).then_some(pair)
        })
        .collect();
    pairs.sort_by_key(Pair::to_string);
    Ok(pairs)
}

/// A shared lock is asked for, so that two who look do not take each other for the holder.
fn is_held(path: &Path) -> bool {
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path);
    let Ok(file) = opened else { return false };
    if !file.metadata().is_ok_and(|about| about.is_file()) {
        return false;
    }
    match file.try_lock_shared() {
        Ok(()) => {
            let _ = file.unlock();
            false
        }
        Err(TryLockError::WouldBlock) => true,
        Err(TryLockError::Error(_)) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt as _;

    fn names(pairs: &[Pair]) -> Vec<String> {
        pairs.iter().map(Pair::to_string).collect()
    }

    fn conflicts(result: Result<Held, LockError>) -> Vec<String> {
        match result {
            Err(LockError::Held(pairs)) => names(&pairs),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn names_of_files_are_those_of_the_original() {
        for (host, script, file) in [
            ("web01", "backup", "web01--backup.lock"),
            ("web01", "a b/c:é", "web01--a_b_c__.lock"),
            ("a.b-c_d", "x", "a.b-c_d--x.lock"),
        ] {
            let pair = Pair {
                host: host.to_owned(),
                script: script.to_owned(),
            };
            assert_eq!(pair.file_name(), file);
        }
        let long = Pair {
            host: "h".repeat(64),
            script: "s".repeat(1000),
        };
        assert!(long.file_name().len() <= 255);
    }

    #[test]
    fn listed_names_are_split_at_the_last_two_dashes() {
        let read = |name| Pair::from_file_name(name).map(|pair| (pair.host, pair.script));
        let pair = |host: &str, script: &str| Some((host.to_owned(), script.to_owned()));
        assert_eq!(read("a--b.lock"), pair("a", "b"));
        assert_eq!(read("a--b--c.lock"), pair("a--b", "c"));
        assert_eq!(read("a---b.lock"), pair("a-", "b"));
        for none in ["a-b.lock", "--b.lock", "a--.lock", "a--b", ".runs.lock"] {
            assert_eq!(read(none), None, "{none}");
        }
    }

    #[test]
    fn all_or_nothing_and_conflicts_in_the_order_asked_for() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("state/locks");
        let first = acquire(&dir, ["b", "a"], "s").unwrap();
        assert_eq!(std::fs::metadata(&dir).unwrap().mode() & 0o7777, 0o2770);
        let file = std::fs::metadata(dir.join("a--s.lock")).unwrap();
        assert_eq!((file.mode() & 0o7777, file.len()), (0o660, 0));

        assert_eq!(
            conflicts(acquire(&dir, ["c", "b", "d", "a", "b"], "s")),
            ["b:s", "a:s"]
        );
        // What was taken on the way is free again; other scripts and hosts never were in the way.
        assert_eq!(names(&held(&dir).unwrap()), ["a:s", "b:s"]);
        let second = acquire(&dir, ["c", "d"], "s").unwrap();
        let third = acquire(&dir, ["a"], "other").unwrap();
        assert_eq!(
            names(&held(&dir).unwrap()),
            ["a:other", "a:s", "b:s", "c:s", "d:s"]
        );
        drop((first, second, third));
        assert!(held(&dir).unwrap().is_empty());
        drop(acquire(&dir, ["a", "b", "c"], "s").unwrap());
    }

    #[test]
    fn what_has_the_same_name_does_not_meet_itself() {
        let dir = tempfile::tempdir().unwrap();
        let both = acquire(dir.path(), ["a", "a"], "x").unwrap();
        drop(both);
        let one = acquire(dir.path(), ["a"], "x y").unwrap();
        assert_eq!(conflicts(acquire(dir.path(), ["a"], "x/y")), ["a:x/y"]);
        drop(one);
    }

    #[test]
    fn whoever_looks_is_in_nobodys_way() {
        let dir = tempfile::tempdir().unwrap();
        drop(acquire(dir.path(), ["a"], "s").unwrap());
        std::thread::scope(|scope| {
            let looking = scope.spawn(|| {
                for _ in 0..100 {
                    held(dir.path()).unwrap();
                    std::thread::sleep(Duration::from_millis(1));
                }
            });
            while !looking.is_finished() {
                drop(acquire(dir.path(), ["a"], "s").unwrap());
            }
        });
    }

    #[test]
    fn a_missing_directory_holds_no_locks_and_one_that_cannot_be_made_is_named() {
        assert!(held(Path::new("/nonexistent/locks")).unwrap().is_empty());
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = acquire(&file.path().join("locks"), ["a"], "s").unwrap_err();
        let said = error.to_string();
        assert!(
            said.contains("locks'") && said.contains("locks_dir"),
            "{said}"
        );
    }

    #[test]
    fn foreign_files_are_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("a--b.lock")).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", dir.path().join("c--d.lock")).unwrap();
        std::fs::write(dir.path().join("README"), "").unwrap();
        assert!(held(dir.path()).unwrap().is_empty());
        assert!(matches!(
            acquire(dir.path(), ["c"], "d"),
            Err(LockError::Durable(_))
        ));
    }
}
