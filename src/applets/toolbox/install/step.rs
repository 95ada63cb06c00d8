//! One effect each, and the line that tells of it: the dry run prints what the real run does, because both print this.

use std::borrow::Cow;
use std::fmt;
use std::path::{Path, PathBuf};

use super::manifest::Manifest;
use super::table::Who;

#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Step {
    /// Note what this run is about, or that it is done.
    Record {
        path: PathBuf,
        manifest: Manifest,
    },
    AddGroup {
        name: &'static str,
        gid: u32,
    },
    AddUser {
        name: &'static str,
        uid: u32,
        gid: u32,
        about: &'static str,
    },
    DropUser {
        name: &'static str,
    },
    DropGroup {
        name: &'static str,
    },
    Folder {
        path: PathBuf,
        mode: u32,
        owner: Who,
    },
    /// Owner and mode of what is there.
    Own {
        path: PathBuf,
        mode: u32,
        owner: Who,
    },
    /// Owner of the files of a directory that their service cannot read.
    OwnFiles {
        path: PathBuf,
        files: Vec<PathBuf>,
        owner: Who,
    },
    /// Copy what is about to be replaced.
    Keep {
        path: PathBuf,
        to: PathBuf,
    },
    /// Copy state from where a reboot would lose it.
    Take {
        path: PathBuf,
        from: PathBuf,
        /// `None`: whoever has it already.
        owner: Option<Who>,
    },
    /// Put it back.
    Restore {
        path: PathBuf,
        from: PathBuf,
    },
    Binary {
        path: PathBuf,
        mode: u32,
    },
    Link {
        path: PathBuf,
        to: String,
    },
    /// Only where nothing is.
    Seed {
        path: PathBuf,
        text: Cow<'static, str>,
        mode: u32,
        owner: Who,
    },
    Write {
        path: PathBuf,
        text: &'static str,
        mode: u32,
    },
    Remove {
        path: PathBuf,
    },
    RemoveTree {
        path: PathBuf,
    },
    /// If nothing is in it.
    RemoveEmpty {
        path: PathBuf,
    },
    /// `fine`: exit codes that are as good as 0.
    Run {
        words: Vec<String>,
        fine: &'static [i32],
    },
}

impl Step {
    pub(super) fn run(words: &[&str]) -> Self {
        Self::Run {
            words: words.iter().map(|word| (*word).to_owned()).collect(),
            fine: &[],
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut line = |word: &str, path: &Path, rest: &dyn fmt::Display| {
            write!(f, "{word:<8}{}{rest}", path.display())
        };
        let owned = |owner: &Who, mode: &u32| format!(" {}:{} {mode:04o}", owner.user, owner.group);
        match self {
            Self::Record { path, manifest } if manifest.pending.is_empty() => {
                line("record", path, &"")
            }
            Self::Record { path, .. } => line("record", path, &" (with what is to be started)"),
            Self::AddGroup { name, gid } => line("group", Path::new(name), &format_args!(" {gid}")),
            Self::AddUser { name, uid, gid, .. } => {
                line("user", Path::new(name), &format_args!(" {uid}:{gid}"))
            }
            Self::DropUser { name } => line("remove", Path::new("user"), &format_args!(" {name}")),
            Self::DropGroup { name } => {
                line("remove", Path::new("group"), &format_args!(" {name}"))
            }
            Self::Folder { path, mode, owner } => line("folder", path, &owned(owner, mode)),
            Self::Own { path, mode, owner } => line("own", path, &owned(owner, mode)),
            Self::OwnFiles { path, files, owner } => {
                let rest = format_args!(
                    ": {} of its files {}:{}",
                    files.len(),
                    owner.user,
                    owner.group
                );
                line("own", path, &rest)
            }
            Self::Keep { path, to } => line("keep", path, &format_args!(" in {}", to.display())),
            Self::Take { path, from, .. } => {
                line("take", path, &format_args!(" from {}", from.display()))
            }
            Self::Restore { path, from } => {
                line("restore", path, &format_args!(" from {}", from.display()))
            }
            Self::Binary { path, mode } => line("binary", path, &format_args!(" {mode:04o}")),
            Self::Link { path, to } => line("link", path, &format_args!(" -> {to}")),
            Self::Seed {
                path, mode, owner, ..
            } => line("seed", path, &owned(owner, mode)),
            Self::Write { path, mode, .. } => line("write", path, &format_args!(" {mode:04o}")),
            Self::Remove { path } => line("remove", path, &""),
            Self::RemoveTree { path } => line("remove", path, &" and all that is in it"),
            Self::RemoveEmpty { path } => line("remove", path, &" (empty)"),
            Self::Run { words, .. } => {
                write!(f, "{:<8}", "run")?;
                for (at, word) in words.iter().enumerate() {
                    let gap = if at == 0 { "" } else { " " };
                    if word.contains([' ', '"']) {
                        write!(f, "{gap}'{word}'")?;
                    } else {
                        write!(f, "{gap}{word}")?;
                    }
                }
                Ok(())
            }
        }
    }
}
