//! The effects: one step at a time, each of them whole or not at all, none of them following a link.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;

use super::accounts;
use super::look::{self, What};
use super::platform::System;
use super::services;
use super::step::Step;
use super::table::{ROOT, Who};
use super::world::{Failure, World};
use crate::core::durable::{self, Owner};

/// # Errors
/// See [`Failure`].
pub(super) fn perform(world: &World, system: System, step: &Step) -> Result<(), Failure> {
    match step {
        Step::Record { path, manifest } => {
            put(world, path, manifest.to_string().as_bytes(), 0o600, ROOT)
        }
        Step::AddGroup { name, gid } => {
            let line = accounts::group_line(name, *gid);
            edit(world, "/etc/gshadow", false, |text| {
                accounts::with_line(text, &format!("{name}:!::"))
            })?;
            edit(world, "/etc/group", true, |text| {
                accounts::with_line(text, &line)
            })
        }
        Step::AddUser {
            name,
            uid,
            gid,
            about,
        } => {
            let line = accounts::passwd_line(system, name, *uid, *gid, about);
            // The user appears last, with everything that belongs to him.
            edit(world, "/etc/shadow", false, |text| {
                accounts::with_line(text, &accounts::shadow_line(name))
            })?;
            edit(world, "/etc/passwd", true, |text| {
                accounts::with_line(text, &line)
            })
        }
        Step::DropUser { name } => {
            edit(world, "/etc/shadow", false, |text| {
                accounts::without(text, name)
            })?;
            edit(world, "/etc/passwd", false, |text| {
                accounts::without(text, name)
            })
        }
        Step::DropGroup { name } => {
            edit(world, "/etc/gshadow", false, |text| {
                accounts::without(text, name)
            })?;
            edit(world, "/etc/group", false, |text| {
                accounts::without(text, name)
            })
        }
        Step::Folder { path, mode, owner } => folder(world, &world.at(path)?, *mode, *owner),
        Step::Own { path, mode, owner } => own(world, &world.at(path)?, Some(*mode), *owner),
        Step::OwnFiles { files, owner, .. } => {
            for file in files {
                match own(world, &world.at(file)?, None, *owner) {
                    // Somebody works in that directory.
                    Err(Failure::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                    }
                    other => other?,
                }
            }
            Ok(())
        }
        Step::Keep { path, to } => {
            let to = world.at(to)?;
            parents(&to)?;
            copy(&world.at(path)?, &to)
        }
        Step::Take { path, from, owner } => {
            let path = world.at(path)?;
            parents(&path)?;
            copy(&world.at(from)?, &path)?;
            owner.map_or(Ok(()), |owner| own(world, &path, None, owner))
        }
        Step::Restore { path, from } => {
            let path = world.at(path)?;
            parents(&path)?;
            copy(&world.at(from)?, &path)
        }
        Step::Binary { path, mode } => {
            let target = world.at(path)?;
            parents(&target)?;
            let own = Path::new("/proc/self/exe");
            let mut source =
                fs::File::open(own).map_err(Failure::io("read this program at", own))?;
            durable::remove_leftovers(&target)?;
            durable::prepare_copy(&target, &mut source, *mode, ROOT_OWNER)?.commit()?;
            Ok(())
        }
        Step::Link { path, to } => {
            let path = world.at(path)?;
            parents(&path)?;
            link(Path::new(to), &path)
        }
        Step::Seed {
            path,
            text,
            mode,
            owner,
        } => {
            let full = world.at(path)?;
            parents(&full)?;
            let (uid, gid) = look::numbers(world, *owner)?;
            let owner = Owner {
                uid: Some(uid),
                gid: Some(gid),
            };
            durable::remove_leftovers(&full)?;
            durable::prepare(&full, text.as_bytes(), *mode, owner)?.commit_new()?;
            Ok(())
        }
        Step::Write { path, text, mode } => put(world, path, text.as_bytes(), *mode, ROOT),
        Step::Remove { path } => {
            durable::remove(&world.at(path)?)?;
            Ok(())
        }
        Step::RemoveTree { path } => remove_tree(&world.at(path)?),
        Step::RemoveEmpty { path } => {
            let path = world.at(path)?;
            fs::remove_dir(&path).map_err(Failure::io("remove", &path))
        }
        Step::Run { words, fine } => {
            let ended = world.run(words)?;
            match ended.code {
                Some(code) if code == 0 || fine.contains(&code) => Ok(()),
                code => Err(Failure::Program {
                    words: words.join(" "),
                    why: why(code, &ended.complaint, services::log(words)),
                }),
            }
        }
    }
}

/// How it ended, what it said itself, and where there is more.
fn why(code: Option<i32>, complaint: &str, more: Option<String>) -> String {
    let mut why = match code {
        Some(code) => format!("exit {code}"),
        None => "ended by a signal".to_owned(),
    };
    for part in [
        Some(complaint.to_owned()),
        more.map(|more| format!("See: {more}")),
    ] {
        let part = part.unwrap_or_default();
        if !part.is_empty() {
            why = format!("{why}\n{part}");
        }
    }
    why
}

const ROOT_OWNER: Owner = Owner {
    uid: Some(0),
    gid: Some(0),
};

/// A whole file in place of whatever was there.
fn put(world: &World, path: &Path, bytes: &[u8], mode: u32, owner: Who) -> Result<(), Failure> {
    let full = world.at(path)?;
    parents(&full)?;
    let (uid, gid) = look::numbers(world, owner)?;
    let owner = Owner {
        uid: Some(uid),
        gid: Some(gid),
    };
    durable::remove_leftovers(&full)?;
    durable::prepare(&full, bytes, mode, owner)?.commit()?;
    Ok(())
}

/// It appears with its owner and mode: nobody can tell later which of those an interruption has left out.
fn folder(world: &World, path: &Path, mode: u32, owner: Who) -> Result<(), Failure> {
    parents(path)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let beside = path.with_file_name(format!(".{name}.new"));
    let failed = |e| Failure::io("create", path)(e);
    match fs::remove_dir(&beside) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed(e)),
        _ => fs::create_dir(&beside).map_err(failed)?,
    }
    own(world, &beside, Some(mode), owner)?;
    fs::rename(&beside, path).map_err(failed)
}

/// Directories that have no row of their own: `/usr/sbin` in an image that has none yet.
fn parents(path: &Path) -> Result<(), Failure> {
    match path.parent() {
        Some(parent) if !parent.is_dir() => {
            fs::create_dir_all(parent).map_err(Failure::io("create", parent))
        }
        _ => Ok(()),
    }
}

/// Owner first: a change of it takes away set-gid bits.
fn own(world: &World, path: &Path, mode: Option<u32>, owner: Who) -> Result<(), Failure> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let (uid, gid) = look::numbers(world, owner)?;
    let failed = |e| Failure::io("change owner and mode of", path)(e);
    let file = fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)
        .map_err(failed)?;
    let meta = file.metadata().map_err(failed)?;
    // A second name in somebody else's directory would be changed with it.
    if !meta.is_dir() && (!meta.is_file() || meta.nlink() > 1) {
        return Err(failed(io::Error::other(
            "it is no plain file with one name",
        )));
    }
    std::os::unix::fs::fchown(&file, Some(uid), Some(gid)).map_err(failed)?;
    if let Some(mode) = mode {
        file.set_permissions(fs::Permissions::from_mode(mode))
            .map_err(failed)?;
    }
    Ok(())
}

/// A file with owner and mode, or a link as a link.
fn copy(from: &Path, to: &Path) -> Result<(), Failure> {
    let entry = look::entry(from, false)?;
    if let What::Link(target) = &entry.what {
        return link(target, to);
    }
    let mut source = look::open(from).map_err(Failure::io("read", from))?;
    let owner = Owner {
        uid: Some(entry.uid),
        gid: Some(entry.gid),
    };
    durable::remove_leftovers(to)?;
    durable::prepare_copy(to, &mut source, entry.mode, owner)?.commit()?;
    Ok(())
}

/// Beside, then renamed: the name is never missing in between.
fn link(target: &Path, path: &Path) -> Result<(), Failure> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let beside = Path::new(&beside);
    let failed = |e| Failure::io("make the link", path)(e);
    durable::remove(beside)?;
    symlink(target, beside).map_err(failed)?;
    fs::rename(beside, path).map_err(failed)
}

/// A file of accounts, changed as a whole. `create`: one that is not there is made.
fn edit(
    world: &World,
    path: &str,
    create: bool,
    change: impl FnOnce(&[u8]) -> Vec<u8>,
) -> Result<(), Failure> {
    let path = world.at(Path::new(path))?;
    durable::remove_leftovers(&path)?;
    match fs::read(&path) {
        Ok(text) => {
            let mode = fs::metadata(&path)
                .map(|meta| look::rights(&meta))
                .map_err(Failure::io("look at", &path))?;
            let changed = change(&text);
            if changed != text {
                durable::replace_keeping_owner(&path, &changed, mode)?;
            }
            Ok(())
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound && create => {
            durable::replace(&path, &change(b""), 0o644)?;
            Ok(())
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(Failure::io("read", &path)(e)),
    }
}

/// `remove_dir_all` does not follow links; of a link in its place only the link goes.
fn remove_tree(path: &Path) -> Result<(), Failure> {
    match look::entry(path, false)?.what {
        What::Folder { .. } => fs::remove_dir_all(path).map_err(Failure::io("remove", path)),
        _ => {
            durable::remove(path)?;
            Ok(())
        }
    }
}
