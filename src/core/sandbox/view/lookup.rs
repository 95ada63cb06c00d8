//! Where a path really leads.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::FileType;

/// What is at a path.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Found {
    Nothing,
    /// With its real path.
    Directory(PathBuf),
    /// Anything else, with its real path.
    File(PathBuf),
    /// The path leads through this symbolic link, which does not belong to root and so could point anywhere at any time.
    ForeignLink(PathBuf),
}

pub(super) trait Lookup {
    fn find(&self, path: &Path) -> Found;

    /// Whether nobody but root can put something else where a real path leads.
    fn is_fixed(&self, _path: &Path) -> bool {
        true
    }
}

/// What matters about one name.
#[derive(Clone, Copy)]
struct Facts {
    link: bool,
    directory: bool,
    uid: u32,
    mode: u32,
}

/// The file system of this process, as it is while one plan is made: most paths of a plan share most of their directories, and each is
/// looked at once.
///
/// Paths are bytes here: a plan looks at some hundred, and taking each apart as `Path` does was a tenth of a supervisor's own time.
#[derive(Default)]
pub(super) struct Host {
    seen: RefCell<BTreeMap<Vec<u8>, Option<Facts>>>,
}

impl Host {
    fn facts(&self, path: &[u8]) -> Option<Facts> {
        if let Some(known) = self.seen.borrow().get(path) {
            return *known;
        }
        let facts = rustix::fs::lstat(path).ok().map(|stat| {
            let kind = FileType::from_raw_mode(stat.st_mode);
            Facts {
                link: kind == FileType::Symlink,
                directory: kind == FileType::Directory,
                uid: stat.st_uid,
                mode: stat.st_mode,
            }
        });
        self.seen.borrow_mut().insert(path.to_owned(), facts);
        facts
    }

    /// The directory above a path, if it has been looked at: only real paths are, one name after the other.
    fn known_above<'a>(&self, path: &'a [u8]) -> &'a [u8] {
        let end = path.iter().rposition(|b| *b == b'/').unwrap_or(0);
        let above = path.get(..end).unwrap_or_default();
        match self.seen.borrow().get(above) {
            Some(Some(facts)) if facts.directory => above,
            _ => &[],
        }
    }
}

impl Lookup for Host {
    fn find(&self, path: &Path) -> Found {
        let mut rest = path.as_os_str().as_bytes().to_owned();
        // Empty: the root. What is already known for a real directory is not walked through again.
        let mut real: Vec<u8> = Vec::with_capacity(rest.len());
        real.extend_from_slice(self.known_above(&rest));
        let mut at = real.len();
        let mut links = 0;
        let mut directory = true;
        while let Some(name) = next_name(&rest, &mut at) {
            let parent = real.len();
            if name == b".." {
                real.truncate(real.iter().rposition(|b| *b == b'/').unwrap_or(0));
                continue;
            }
            real.push(b'/');
            real.extend_from_slice(name);
            let Some(facts) = self.facts(&real) else {
                return Found::Nothing;
            };
            if !facts.link {
                directory = facts.directory;
                continue;
            }
            // Links below /proc are no text but jumps.
            links += 1;
            if facts.uid != 0 || links > 40 || real.starts_with(b"/proc/") {
                return Found::ForeignLink(absolute(real));
            }
            let Ok(to) = rustix::fs::readlink(real.as_slice(), Vec::new()) else {
                return Found::Nothing;
            };
            let mut to = to.into_bytes();
            real.truncate(if to.starts_with(b"/") { 0 } else { parent });
            to.push(b'/');
            to.extend_from_slice(rest.get(at..).unwrap_or_default());
            (rest, at) = (to, 0);
        }
        if directory {
            Found::Directory(absolute(real))
        } else {
            Found::File(absolute(real))
        }
    }

    fn is_fixed(&self, path: &Path) -> bool {
        let path = path.as_os_str().as_bytes();
        above(path).all(|dir| {
            // A sticky directory keeps what is root's in its place.
            self.facts(dir).is_some_and(|facts| {
                facts.directory
                    && facts.uid == 0
                    && (facts.mode & 0o022 == 0 || facts.mode & 0o1000 != 0)
            })
        }) && self.facts(path).is_some_and(|facts| facts.uid == 0)
    }
}

/// The directories above a real path, the root first.
fn above(real: &[u8]) -> impl Iterator<Item = &[u8]> {
    let names = real.iter().enumerate().skip(1);
    let ends = names.filter_map(|(at, byte)| (*byte == b'/').then_some(at));
    let root = (real.len() > 1).then_some(1);
    let dirs = root.into_iter().chain(ends);
    dirs.filter_map(|end| real.get(..end))
}

/// The next name of a path that counts, from `at` on, which moves behind it.
fn next_name<'a>(path: &'a [u8], at: &mut usize) -> Option<&'a [u8]> {
    loop {
        let rest = path.get(*at..)?;
        let end = rest.iter().position(|b| *b == b'/').unwrap_or(rest.len());
        *at += end + 1;
        match rest.get(..end)? {
            b"" | b"." => {}
            name => return Some(name),
        }
    }
}

fn absolute(mut real: Vec<u8>) -> PathBuf {
    if real.is_empty() {
        real.push(b'/');
    }
    PathBuf::from(OsString::from_vec(real))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_been_seen_changes_no_answer() {
        let dir = tempfile::tempdir().unwrap();
        let base = std::fs::canonicalize(dir.path()).unwrap();
        std::fs::create_dir_all(base.join("a/b")).unwrap();
        std::fs::write(base.join("a/b/file"), "").unwrap();
        std::os::unix::fs::symlink("b/file", base.join("a/link")).unwrap();
        std::os::unix::fs::symlink("b", base.join("a/dir")).unwrap();
        let ways = [
            "",
            "a",
            "a/",
            "a/b",
            "a//b/./file",
            "a/b/file",
            "a/b/none",
            "a/link",
            "a/dir",
            "a/dir/file",
            "a/dir/../b/file",
            "a/b/..",
            "a/b/../link",
            "a/b/file/",
            "a/none/..",
            "..",
        ];
        let used = Host::default();
        // The other way round too: what is seen first differs.
        for way in ways.iter().chain(ways.iter().rev()) {
            let path = base.join(way);
            assert_eq!(used.find(&path), Host::default().find(&path), "{way}");
        }
        let found = used.find(&base.join("a/b/file"));
        assert_eq!(found, Found::File(base.join("a/b/file")));
        assert_eq!(
            used.find(&base.join("a/b")),
            Found::Directory(base.join("a/b"))
        );
        assert_eq!(used.find(Path::new("/")), Found::Directory("/".into()));
    }

    #[test]
    fn the_directories_above_are_those_of_the_path() {
        for path in ["/", "/a", "/a/b", "/a/bc/d"] {
            let mut ours: Vec<&[u8]> = above(path.as_bytes()).collect();
            ours.reverse();
            let all = Path::new(path).ancestors().skip(1);
            let all: Vec<&[u8]> = all.map(|dir| dir.as_os_str().as_bytes()).collect();
            assert_eq!(ours, all, "{path}");
        }
    }
}
