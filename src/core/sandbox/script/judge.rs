//! The rules of the trust walk (spec/executor.md 15.10): who may own and write what lies on the way to a script.

use std::fmt;
use std::path::PathBuf;

/// What something on the way is wrong with, and how to put it right.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Finding {
    pub path: PathBuf,
    pub what: Wrong,
}

/// What is wrong.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Wrong {
    /// Owner of a directory or file; the flag says that it is the user the script runs as.
    Owner {
        uid: u32,
        runs_as: bool,
    },
    /// Mode bits, group or others may write.
    Writable {
        mode: u32,
        directory: bool,
    },
    NotRegular,
    NotExecutable {
        mode: u32,
    },
    SetId {
        mode: u32,
    },
    FileCapabilities,
    /// An access list lets somebody write whom the mode does not show.
    AccessList,
    RelativeInterpreter,
    /// Interpreters of interpreters, beyond what the kernel follows.
    TooManyInterpreters,
    /// An interpreter that is there but cannot be opened.
    Unreachable {
        errno: i32,
    },
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.display();
        match self.what {
            Wrong::Owner { uid, runs_as } => {
                let who = if runs_as {
                    ", the user that the script runs as"
                } else {
                    ""
                };
                write!(
                    f,
                    "'{path}' belongs to uid {uid}{who}, not to root: chown root '{path}'"
                )
            }
            Wrong::Writable { mode, directory } => {
                let (who, bits) = writers(mode);
                let sticky = if directory && mode & 0o1000 != 0 {
                    " (the sticky bit does not help)"
                } else {
                    ""
                };
                let kind = if directory { "directory" } else { "file" };
                write!(
                    f,
                    "{kind} '{path}' is writable by {who} (mode {:04o}){sticky}: chmod {bits} '{path}'",
                    mode & 0o7777
                )
            }
            Wrong::NotRegular => write!(f, "'{path}' is no regular file"),
            Wrong::NotExecutable { mode } => write!(
                f,
                "'{path}' is executable by nobody (mode {:04o}): chmod 0755 '{path}'",
                mode & 0o7777
            ),
            Wrong::SetId { mode } => write!(
                f,
                "'{path}' has set-id bits (mode {:04o}): chmod ug-s '{path}'",
                mode & 0o7777
            ),
            Wrong::FileCapabilities => {
                write!(f, "'{path}' has file capabilities: setcap -r '{path}'")
            }
            Wrong::AccessList => write!(
                f,
                "'{path}' has an access list that lets others write: setfacl -b '{path}'"
            ),
            Wrong::RelativeInterpreter => write!(
                f,
                "'{path}' names an interpreter without an absolute path in its first line"
            ),
            Wrong::TooManyInterpreters => {
                write!(f, "'{path}' is an interpreter of too many interpreters")
            }
            Wrong::Unreachable { errno } => write!(
                f,
                "the interpreter '{path}' cannot be judged: {}",
                std::io::Error::from_raw_os_error(errno)
            ),
        }
    }
}

fn writers(mode: u32) -> (&'static str, &'static str) {
    match (mode & 0o020 != 0, mode & 0o002 != 0) {
        (true, true) => ("its group and others", "go-w"),
        (true, false) => ("its group", "g-w"),
        _ => ("others", "o-w"),
    }
}

/// What `fstat` says, and what the extended attributes do.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Facts {
    pub(super) uid: u32,
    /// With the file's type.
    pub(super) mode: u32,
    pub(super) capabilities: bool,
    pub(super) access_list_writes: bool,
}

const TYPE: u32 = 0o170_000;
const REGULAR: u32 = 0o100_000;

fn owner(facts: Facts, runs_as: u32) -> Option<Wrong> {
    (facts.uid != 0).then_some(Wrong::Owner {
        uid: facts.uid,
        runs_as: facts.uid == runs_as,
    })
}

/// A directory: owner root, and nobody else writes. The sticky bit keeps others from replacing an entry, not from adding one before
/// root does; it excuses nothing. An access list shows in the group bits, which are its mask.
pub(super) fn directory(facts: Facts, runs_as: u32) -> Vec<Wrong> {
    let writable = (facts.mode & 0o022 != 0).then_some(Wrong::Writable {
        mode: facts.mode,
        directory: true,
    });
    owner(facts, runs_as).into_iter().chain(writable).collect()
}

/// A script or an interpreter.
pub(super) fn file(facts: Facts, runs_as: u32) -> Vec<Wrong> {
    let mode = facts.mode;
    if mode & TYPE != REGULAR {
        return vec![Wrong::NotRegular];
    }
    let mut wrong: Vec<_> = owner(facts, runs_as).into_iter().collect();
    let mut unless = |good: bool, what: Wrong| {
        if !good {
            wrong.push(what);
        }
    };
    unless(
        mode & 0o022 == 0,
        Wrong::Writable {
            mode,
            directory: false,
        },
    );
    unless(mode & 0o111 != 0, Wrong::NotExecutable { mode });
    unless(mode & 0o6000 == 0, Wrong::SetId { mode });
    unless(!facts.capabilities, Wrong::FileCapabilities);
    unless(!facts.access_list_writes, Wrong::AccessList);
    wrong
}

/// Whether an access list (the attribute `system.posix_acl_access`) lets a named user or group write. What cannot be understood does.
pub(super) fn access_list_writes(attribute: &[u8]) -> bool {
    const VERSION: u32 = 2;
    const USER: u16 = 0x02;
    const GROUP: u16 = 0x08;
    const MASK: u16 = 0x10;
    const WRITE: u16 = 0x02;
    let Some((head, entries)) = attribute.split_first_chunk::<4>() else {
        return true;
    };
    if u32::from_le_bytes(*head) != VERSION || entries.len() % 8 != 0 {
        return true;
    }
    let entries = entries.chunks_exact(8).map(|entry| {
        let word = |at: usize| u16::from_le_bytes([entry[at], entry[at + 1]]);
        (word(0), word(2))
    });
    let mask = entries
        .clone()
        .find(|(tag, _)| *tag == MASK)
        .map_or(WRITE, |(_, permissions)| permissions);
    entries
        .into_iter()
        .any(|(tag, permissions)| matches!(tag, USER | GROUP) && permissions & mask & WRITE != 0)
}

/// The interpreter of a script, from the first bytes of the file: `None` for what is no `#!` line. Read as the kernel reads it.
pub(super) fn interpreter(start: &[u8]) -> Option<PathBuf> {
    use std::os::unix::ffi::OsStrExt as _;
    let line = start.strip_prefix(b"#!")?;
    let line = line.split(|b| *b == b'\n').next().unwrap_or_default();
    let blank = |b: &u8| matches!(*b, b' ' | b'\t');
    let from = line.iter().position(|b| !blank(b))?;
    let name = line[from..]
        .split(|b| blank(b) || *b == 0)
        .next()
        .unwrap_or_default();
    (!name.is_empty()).then(|| PathBuf::from(std::ffi::OsStr::from_bytes(name)))
}
