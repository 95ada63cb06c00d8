//! Where a path really leads.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::ffi::OsString;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Component, Path, PathBuf};

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
#[derive(Default)]
pub(super) struct Host {
    seen: RefCell<BTreeMap<PathBuf, Option<Facts>>>,
}

impl Host {
    fn facts(&self, path: &Path) -> Option<Facts> {
        if let Some(known) = self.seen.borrow().get(path) {
            return *known;
        }
        let facts = path.symlink_metadata().ok().map(|meta| Facts {
            link: meta.is_symlink(),
            directory: meta.is_dir(),
            uid: meta.uid(),
            mode: meta.mode(),
        });
        self.seen.borrow_mut().insert(path.to_owned(), facts);
        facts
    }
}

impl Lookup for Host {
    fn find(&self, path: &Path) -> Found {
        let mut real = PathBuf::from("/");
        let mut rest: VecDeque<OsString> = names(path);
        let mut links = 0;
        let mut directory = true;
        while let Some(name) = rest.pop_front() {
            if name == ".." {
                real.pop();
                continue;
            }
            let next = real.join(&name);
            let Some(facts) = self.facts(&next) else {
                return Found::Nothing;
            };
            if !facts.link {
                directory = facts.directory;
                real = next;
                continue;
            }
            // Links below /proc are no text but jumps.
            links += 1;
            if facts.uid != 0 || links > 40 || real.starts_with("/proc") {
                return Found::ForeignLink(next);
            }
            let Ok(to) = std::fs::read_link(&next) else {
                return Found::Nothing;
            };
            if to.is_absolute() {
                real = PathBuf::from("/");
            }
            for name in names(&to).into_iter().rev() {
                rest.push_front(name);
            }
        }
        if directory {
            Found::Directory(real)
        } else {
            Found::File(real)
        }
    }

    fn is_fixed(&self, path: &Path) -> bool {
        path.ancestors().skip(1).all(|dir| {
            // A sticky directory keeps what is root's in its place.
            self.facts(dir).is_some_and(|facts| {
                facts.directory
                    && facts.uid == 0
                    && (facts.mode & 0o022 == 0 || facts.mode & 0o1000 != 0)
            })
        }) && self.facts(path).is_some_and(|facts| facts.uid == 0)
    }
}

fn names(path: &Path) -> VecDeque<OsString> {
    path.components()
        .filter_map(|component| match component {
            Component::Normal(name) => Some(name.to_owned()),
            Component::ParentDir => Some("..".into()),
            _ => None,
        })
        .collect()
}
