//! Where a path really leads.

use std::collections::VecDeque;
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

/// The file system of this process.
pub(super) struct Host;

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
            let Ok(meta) = next.symlink_metadata() else {
                return Found::Nothing;
            };
            if !meta.is_symlink() {
                directory = meta.is_dir();
                real = next;
                continue;
            }
            // Links below /proc are no text but jumps.
            links += 1;
            if meta.uid() != 0 || links > 40 || real.starts_with("/proc") {
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
            dir.symlink_metadata().is_ok_and(|meta| {
                meta.is_dir()
                    && meta.uid() == 0
                    && (meta.mode() & 0o022 == 0 || meta.mode() & 0o1000 != 0)
            })
        }) && path.symlink_metadata().is_ok_and(|meta| meta.uid() == 0)
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
