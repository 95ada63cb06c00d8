//! Opens a path one component at a time and collects what is wrong on the way.
//!
//! Each step names a single component and does not follow it (`O_PATH | O_NOFOLLOW`), so the kernel resolves nothing that we have not
//! judged: that is what `openat2` with `RESOLVE_NO_SYMLINKS` and `RESOLVE_NO_MAGICLINKS` gives for a whole path, but with each
//! directory in hand, and on every kernel. Symbolic links are read and walked by us, from a directory that was judged.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::judge::{self, Facts, Finding, Wrong};

/// Links followed in one walk, as many as the kernel follows.
const MAX_LINKS: usize = 40;
/// Components walked, links included.
const MAX_STEPS: usize = 4096;
/// Interpreters of interpreters that the kernel follows.
const MAX_INTERPRETERS: usize = 5;

/// What stands at the end of a path.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Role {
    Script,
    Interpreter,
}

/// The end of a walk.
#[derive(Debug)]
pub(super) struct Walked {
    /// Open for reading.
    pub(super) file: File,
    pub(super) findings: Vec<Finding>,
}

/// The walk did not get to a file.
#[derive(Debug)]
pub(super) struct Lost {
    at: PathBuf,
    why: Why,
}

#[derive(Debug)]
enum Why {
    Errno(Errno),
    Links,
    NotRegular,
    Changed,
}

impl Lost {
    /// The words for a path that leads nowhere.
    pub(super) fn absent(&self) -> Option<&'static str> {
        match self.why {
            Why::Errno(Errno::NOENT) => Some("No such file or directory"),
            Why::Errno(Errno::NOTDIR) => Some("Not a directory"),
            _ => None,
        }
    }
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = self.at.display();
        match &self.why {
            Why::Errno(errno) => write!(
                f,
                "'{at}' cannot be opened: {}",
                std::io::Error::from(*errno)
            ),
            Why::Links => write!(f, "'{at}' leads through too many symbolic links"),
            Why::NotRegular => write!(f, "'{at}' is no regular file"),
            Why::Changed => write!(f, "'{at}' was replaced while it was looked at"),
        }
    }
}

const STEP: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Walks to an absolute path and opens what is there.
pub(super) fn walk(path: &Path, runs_as: u32, role: Role) -> Result<Walked, Lost> {
    let lost = |at: &Path, errno| Lost {
        at: at.to_owned(),
        why: Why::Errno(errno),
    };
    if !path.is_absolute() {
        return Err(lost(path, Errno::NOENT));
    }
    let mut findings = Vec::new();
    // The directories that we stand in, the root first.
    let mut stack = vec![enter_root(runs_as, &mut findings).map_err(|e| lost(Path::new("/"), e))?];
    let mut left = components(path.as_os_str());
    let mut links = 0;
    for _ in 0..MAX_STEPS {
        let Some(name) = left.pop_front() else {
            // It ended in a directory.
            return Err(Lost {
                at: path.to_owned(),
                why: Why::NotRegular,
            });
        };
        if name == ".." {
            if stack.len() > 1 {
                stack.pop();
            }
            continue;
        }
        // The stack keeps the root.
        let Some((directory, at)) = stack.last() else {
            break;
        };
        let here = at.join(&name);
        let fd = rustix::fs::openat(directory, &name, STEP, Mode::empty())
            .map_err(|e| lost(&here, e))?;
        let stat = rustix::fs::fstat(&fd).map_err(|e| lost(&here, e))?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Symlink => {
                links += 1;
                if links > MAX_LINKS {
                    break;
                }
                let target = rustix::fs::readlinkat(&fd, c"", Vec::new())
                    .map_err(|e| lost(&here, e))?
                    .into_bytes();
                if target.starts_with(b"/") {
                    stack.truncate(1);
                }
                let mut steps = components(&OsString::from_vec(target));
                steps.append(&mut left);
                left = steps;
            }
            FileType::Directory => {
                note(
                    &mut findings,
                    &here,
                    judge::directory(facts(&stat), runs_as),
                );
                stack.push((fd, here));
            }
            kind if left.is_empty() => {
                if kind != FileType::RegularFile {
                    return Err(Lost {
                        at: here,
                        why: Why::NotRegular,
                    });
                }
                let file = open(directory, &name, &stat).map_err(|why| Lost {
                    at: here.clone(),
                    why,
                })?;
                note(&mut findings, &here, judge_file(&file, runs_as, role));
                return Ok(Walked { file, findings });
            }
            _ => return Err(lost(&here, Errno::NOTDIR)),
        }
    }
    Err(Lost {
        at: path.to_owned(),
        why: Why::Links,
    })
}

fn enter_root(runs_as: u32, findings: &mut Vec<Finding>) -> Result<(OwnedFd, PathBuf), Errno> {
    let fd = rustix::fs::open("/", STEP | OFlags::DIRECTORY, Mode::empty())?;
    let stat = rustix::fs::fstat(&fd)?;
    let root = PathBuf::from("/");
    note(findings, &root, judge::directory(facts(&stat), runs_as));
    Ok((fd, root))
}

fn components(path: &OsStr) -> VecDeque<OsString> {
    path.as_bytes()
        .split(|b| *b == b'/')
        .filter(|name| !name.is_empty() && *name != b".")
        .map(|name| OsStr::from_bytes(name).to_owned())
        .collect()
}

/// Once, by path and kind: a walk may pass a directory again.
fn note(findings: &mut Vec<Finding>, path: &Path, wrong: Vec<Wrong>) {
    for what in wrong {
        let finding = Finding {
            path: path.to_owned(),
            what,
        };
        if !findings.contains(&finding) {
            findings.push(finding);
        }
    }
}

fn facts(stat: &Stat) -> Facts {
    Facts {
        uid: stat.st_uid,
        mode: stat.st_mode,
        ..Facts::default()
    }
}

/// Opens the file that was just looked at for reading. It does not wait for anybody (a FIFO put in its place).
fn open(directory: &OwnedFd, name: &OsStr, seen: &Stat) -> Result<File, Why> {
    let flags =
        OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(directory, name, flags, Mode::empty()).map_err(Why::Errno)?;
    let stat = rustix::fs::fstat(&fd).map_err(Why::Errno)?;
    if (stat.st_dev, stat.st_ino) != (seen.st_dev, seen.st_ino) {
        return Err(Why::Changed);
    }
    Ok(File::from(fd))
}

/// Judges the open file, not what was seen before it was opened.
fn judge_file(file: &File, runs_as: u32, role: Role) -> Vec<Wrong> {
    let Ok(stat) = rustix::fs::fstat(file) else {
        return vec![Wrong::NotRegular];
    };
    // An access list has at most some hundred entries of eight bytes; one that does not fit is taken for the worst.
    let mut list = [0_u8; 8192];
    let access_list_writes =
        match rustix::fs::fgetxattr(file, c"system.posix_acl_access", &mut list) {
            Ok(len) => judge::access_list_writes(&list[..len]),
            Err(Errno::RANGE) => true,
            Err(_) => false,
        };
    let mut none: [u8; 0] = [];
    let capabilities =
        rustix::fs::fgetxattr(file, c"security.capability", &mut none).is_ok_and(|len| len > 0);
    let mut wrong = judge::file(
        Facts {
            capabilities,
            access_list_writes,
            ..facts(&stat)
        },
        runs_as,
    );
    if role == Role::Interpreter {
        // An interpreter of the distribution may hold rights of its own (`ping`, a Python that may bind low ports): no matter of
        // trust in who wrote it, and no_new_privs keeps it from using them.
        wrong.retain(|what| !matches!(what, Wrong::SetId { .. } | Wrong::FileCapabilities));
    }
    wrong
}

/// Judges the `#!` interpreter of an open script, that one's interpreter, and so on.
pub(super) fn interpreters(script: &File, runs_as: u32) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut next = first_line(script);
    for _ in 0..MAX_INTERPRETERS {
        let Some(path) = next else {
            return findings;
        };
        if !path.is_absolute() {
            note(&mut findings, &path, vec![Wrong::RelativeInterpreter]);
            return findings;
        }
        match walk(&path, runs_as, Role::Interpreter) {
            Ok(walked) => {
                for finding in walked.findings {
                    note(&mut findings, &finding.path, vec![finding.what]);
                }
                next = first_line(&walked.file);
            }
            // Not there: the script will not start. Nobody but root can put it there, or the directory was found above.
            Err(lost) if lost.absent().is_some() => return findings,
            Err(lost) => {
                let errno = match lost.why {
                    Why::Errno(errno) => errno.raw_os_error(),
                    Why::Links => libc::ELOOP,
                    Why::NotRegular | Why::Changed => libc::EACCES,
                };
                note(&mut findings, &lost.at, vec![Wrong::Unreachable { errno }]);
                return findings;
            }
        }
    }
    if let Some(path) = next {
        note(&mut findings, &path, vec![Wrong::TooManyInterpreters]);
    }
    findings
}

fn first_line(file: &File) -> Option<PathBuf> {
    // As much as the kernel looks at.
    let mut start = [0_u8; 256];
    let len = rustix::io::pread(file, &mut start[..], 0).ok()?;
    judge::interpreter(&start[..len])
}
