//! `/proc/self/mountinfo` as far as a view needs it.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use rustix::mount::MountFlags;

/// One mount.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Mount {
    pub id: u32,
    pub parent: u32,
    /// `major:minor`
    pub device: (u32, u32),
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
    let (major, minor) = fields.next()?.split_once(':')?;
    let device = (major.parse().ok()?, minor.parse().ok()?);
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
pub(super) fn visible(mounts: Vec<Mount>) -> Vec<Mount> {
    let covered: Vec<bool> = mounts
        .iter()
        .map(|mount| mounts.iter().any(|other| covers(&mounts, other, mount)))
        .collect();
    let each = mounts.into_iter().zip(covered);
    each.filter_map(|(mount, covered)| (!covered).then_some(mount))
        .collect()
}

/// `other` lies over the point of `mount` without being what `mount` was mounted on.
fn covers(mounts: &[Mount], other: &Mount, mount: &Mount) -> bool {
    other.id != mount.id
        && within(&mount.point, &other.point)
        && !ancestors(mounts, mount).any(|id| id == other.id)
        // Of two mounts side by side the one below is reached through the one above only if it came later.
        && (!same(&other.point, &mount.point) || ancestors(mounts, other).any(|id| id == mount.id))
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
pub(super) fn containing<'a>(visible: &'a [Mount], path: &Path) -> Option<&'a Mount> {
    visible
        .iter()
        .filter(|mount| within(path, &mount.point))
        // All of them are beginnings of the path: the longest lies deepest.
        .max_by_key(|mount| mount.point.as_os_str().len())
}

/// Other paths under which the same file can be reached: other mounts of its file system, and the directory that an overlay stores its
/// changes in. Only text: whether anything is there is for the caller to see.
pub(super) fn other_names(visible: &[Mount], path: &Path) -> Vec<PathBuf> {
    let Some(home) = containing(visible, path) else {
        return Vec::new();
    };
    let Some(below) = rest_of(path, &home.point) else {
        return Vec::new();
    };
    let inside = join(&home.root, below);
    let mut names: Vec<PathBuf> = visible
        .iter()
        .filter(|mount| mount.id != home.id && mount.device == home.device)
        .filter_map(|mount| {
            if within(&mount.root, &inside) {
                return Some(mount.point.clone());
            }
            rest_of(&inside, &mount.root).map(|rest| join(&mount.point, rest))
        })
        .collect();
    if let (Some(upper), Some(rest)) = (&home.upper, rest_of(&inside, Path::new("/"))) {
        names.push(join(upper, rest));
    }
    names.retain(|name| !same(name, path));
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

/// The path is `top`, or lies below it. Both as the kernel or a lookup writes them, absolute and with nothing needless in them: then
/// bytes say it, in a tenth of the time that `Path::starts_with` takes for the some thousand questions of one plan.
pub(super) fn within(path: &Path, top: &Path) -> bool {
    rest_of(path, top).is_some()
}

/// They are one path. For paths as in [`within`], and for its reason.
pub(super) fn same(one: &Path, other: &Path) -> bool {
    one.as_os_str() == other.as_os_str()
}

/// What a path adds to `top`, if it is that or lies below it. For paths as in [`within`].
fn rest_of<'a>(path: &'a Path, top: &Path) -> Option<&'a Path> {
    let (path, top) = (path.as_os_str().as_bytes(), top.as_os_str().as_bytes());
    let rest = path.strip_prefix(top.strip_suffix(b"/").unwrap_or(top))?;
    match rest.split_first() {
        None => Some(Path::new("")),
        Some((b'/', rest)) => Some(Path::new(OsStr::from_bytes(rest))),
        Some(_) => None,
    }
}
