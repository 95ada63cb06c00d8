//! `/proc/self/mountinfo` as far as a view needs it.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use rustix::mount::MountFlags;

/// One mount.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Mount {
    pub id: u32,
    pub parent: u32,
    /// `major:minor`
    pub device: String,
    /// Which directory of its file system is mounted.
    pub root: PathBuf,
    pub point: PathBuf,
    /// Its own flags, not those of the file system.
    pub flags: MountFlags,
    /// Only of an overlay: where its changes are stored.
    pub upper: Option<PathBuf>,
}

/// All mounts, in the kernel's order. Lines that make no sense are left out.
pub(super) fn parse(text: &str) -> Vec<Mount> {
    text.lines().filter_map(line).collect()
}

fn line(text: &str) -> Option<Mount> {
    let (left, right) = text.split_once(" - ")?;
    let mut fields = left.split(' ');
    let id = fields.next()?.parse().ok()?;
    let parent = fields.next()?.parse().ok()?;
    let device = fields.next()?.to_owned();
    let root = unescape(fields.next()?);
    let point = unescape(fields.next()?);
    let flags = flags(fields.next()?);
    let mut right = right.split(' ');
    let kind = right.next()?;
    let options = right.nth(1).unwrap_or_default();
    let upper = (kind == "overlay")
        .then(|| {
            options
                .split(',')
                .find_map(|option| option.strip_prefix("upperdir="))
        })
        .flatten()
        .map(unescape);
    Some(Mount {
        id,
        parent,
        device,
        root,
        point,
        flags,
        upper,
    })
}

/// Blank, tab, newline and backslash are written as `\` and three octal digits.
fn unescape(text: &str) -> PathBuf {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let octal = (byte == b'\\')
            .then(|| bytes.get(at + 1..at + 4))
            .flatten()
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        out.push(octal.unwrap_or(byte));
        at += if octal.is_some() { 4 } else { 1 };
    }
    PathBuf::from(OsString::from_vec(out))
}

fn flags(options: &str) -> MountFlags {
    let mut flags = MountFlags::empty();
    for option in options.split(',') {
        flags |= match option {
            "ro" => MountFlags::RDONLY,
            "nosuid" => MountFlags::NOSUID,
            "nodev" => MountFlags::NODEV,
            "noexec" => MountFlags::NOEXEC,
            "noatime" => MountFlags::NOATIME,
            "nodiratime" => MountFlags::NODIRATIME,
            "relatime" => MountFlags::RELATIME,
            "nosymfollow" => MountFlags::NOSYMFOLLOW,
            _ => MountFlags::empty(),
        };
    }
    // The kernel says nothing of a mount that updates access times always; a remount that says nothing would change it.
    if !flags.intersects(MountFlags::NOATIME | MountFlags::RELATIME) {
        flags |= MountFlags::STRICTATIME;
    }
    flags
}

/// Those that a path leads to: not covered by another mount at the same point or above it.
pub(super) fn visible(mounts: &[Mount]) -> Vec<&Mount> {
    mounts
        .iter()
        .filter(|mount| !mounts.iter().any(|other| covers(mounts, other, mount)))
        .collect()
}

/// `other` lies over the point of `mount` without being what `mount` was mounted on.
fn covers(mounts: &[Mount], other: &Mount, mount: &Mount) -> bool {
    other.id != mount.id
        && mount.point.starts_with(&other.point)
        && !ancestors(mounts, mount).any(|id| id == other.id)
        // Of two mounts side by side the one below is reached through the one above only if it came later.
        && (other.point != mount.point || ancestors(mounts, other).any(|id| id == mount.id))
}

/// Ids of what a mount is mounted on, upwards. Bounded, since the text is not ours.
fn ancestors<'a>(mounts: &'a [Mount], mount: &Mount) -> impl Iterator<Item = u32> + 'a {
    let mut next = Some((mount.id, mount.parent));
    std::iter::from_fn(move || {
        let (id, parent) = next?;
        if id == parent {
            return None;
        }
        next = mounts
            .iter()
            .find(|m| m.id == parent)
            .map(|m| (m.id, m.parent));
        Some(parent)
    })
    .take(256)
}

/// The mount that a path lies on.
pub(super) fn containing<'a>(visible: &[&'a Mount], path: &Path) -> Option<&'a Mount> {
    visible
        .iter()
        .copied()
        .filter(|mount| path.starts_with(&mount.point))
        .max_by_key(|mount| mount.point.components().count())
}

/// Other paths under which the same file can be reached: other mounts of its file system, and the directory that an overlay stores its
/// changes in. Only text: whether anything is there is for the caller to see.
pub(super) fn other_names(visible: &[&Mount], path: &Path) -> Vec<PathBuf> {
    let Some(home) = containing(visible, path) else {
        return Vec::new();
    };
    let Ok(below) = path.strip_prefix(&home.point) else {
        return Vec::new();
    };
    let inside = home.root.join(below);
    let mut names: Vec<PathBuf> = visible
        .iter()
        .filter(|mount| mount.id != home.id && mount.device == home.device)
        .filter_map(|mount| {
            if mount.root.starts_with(&inside) {
                return Some(mount.point.clone());
            }
            let rest = inside.strip_prefix(&mount.root).ok()?;
            Some(join(&mount.point, rest))
        })
        .collect();
    if let (Some(upper), Ok(rest)) = (&home.upper, inside.strip_prefix("/")) {
        names.push(join(upper, rest));
    }
    names.retain(|name| name != path);
    names
}

/// As `Path::join`, without the slash that joining nothing leaves at the end.
fn join(base: &Path, rest: &Path) -> PathBuf {
    if rest.as_os_str().is_empty() {
        base.to_owned()
    } else {
        base.join(rest)
    }
}
