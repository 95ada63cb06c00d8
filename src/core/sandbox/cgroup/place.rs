//! Where our groups are.

use std::path::{Component, Path, PathBuf};

use super::{cannot, make};

/// `statfs` magic number of a cgroup2 file system (linux/magic.h).
const CGROUP2_MAGIC: u64 = 0x6367_7270;
/// Where we sit ourselves; the name that the service file gives to `DelegateSubgroup`.
const SUPERVISOR: &str = "supervisor";
/// Our place in the root group.
const TOP: &str = "ctrl-exec";

/// The group that the configuration names.
pub(super) fn given(parent: &Path) -> Result<PathBuf, String> {
    if !is_cgroup2(parent.parent().unwrap_or(parent)) {
        return Err(format!(
            "'{}' (cgroup_parent) is not in a cgroup v2 file system",
            parent.display()
        ));
    }
    make(parent).map_err(|e| cannot("make", parent, &e))?;
    // Only if we sit in that very group are we in the way of its controllers.
    if own_group().is_ok_and(|(_, own)| own == parent) {
        step_aside(parent)?;
    }
    Ok(parent.to_owned())
}

/// Our own group, or where it is not ours alone, one of ours in it.
pub(super) fn own() -> Result<PathBuf, String> {
    let (mount, own) = own_group()?;
    // Only the real root has no such file; within a cgroup namespace a delegated group looks like the root.
    if own == mount && !own.join("cgroup.type").exists() {
        super::switch_on(&mount);
        let top = mount.join(TOP);
        make(&top).map_err(|e| cannot("make", &top, &e))?;
        return Ok(top);
    }
    if own.file_name().is_some_and(|name| name == SUPERVISOR)
        && let Some(base) = own.parent().filter(|base| base.starts_with(&mount))
    {
        return Ok(base.to_owned());
    }
    step_aside(&own)?;
    Ok(own)
}

/// A new group at the top, named after this process. The one that we sit in may be a service manager's.
pub(super) fn apart() -> Result<PathBuf, String> {
    let (mount, _) = own_group()?;
    super::switch_on(&mount);
    let group = mount.join(format!("{TOP}-try-{}", std::process::id()));
    make(&group).map_err(|e| cannot("make", &group, &e))?;
    Ok(group)
}

fn step_aside(group: &Path) -> Result<(), String> {
    let aside = group.join(SUPERVISOR);
    make(&aside).map_err(|e| cannot("make", &aside, &e))?;
    let procs = aside.join("cgroup.procs");
    std::fs::write(&procs, "0").map_err(|e| cannot("move ourselves by", &procs, &e))
}

/// The mount of cgroup v2 and our group in it.
fn own_group() -> Result<(PathBuf, PathBuf), String> {
    let read =
        |file: &str| std::fs::read_to_string(file).map_err(|e| cannot("read", Path::new(file), &e));
    let (mount, root) =
        find_mount(&read("/proc/self/mountinfo")?).ok_or("no cgroup v2 file system is mounted")?;
    let own = find_own(&read("/proc/self/cgroup")?).ok_or("we are in no cgroup v2 group")?;
    // With a bind mount of a part of the tree, `root` is what is left out of it.
    let below = own.strip_prefix(&root).map_err(|_| {
        format!(
            "our group '{}' is not below the part of cgroup v2 that is mounted",
            own.display()
        )
    })?;
    if below.components().any(|c| c == Component::ParentDir) {
        return Err("our group is outside our cgroup namespace".to_owned());
    }
    Ok((mount.clone(), mount.join(below)))
}

/// The last cgroup2 mount point in the text of `mountinfo`, and the group that is mounted there.
pub(super) fn find_mount(mountinfo: &str) -> Option<(PathBuf, PathBuf)> {
    mountinfo.lines().rev().find_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        if after.split(' ').next()? != "cgroup2" {
            return None;
        }
        let mut fields = before.split(' ').skip(3);
        let root = unescape(fields.next()?);
        let point = unescape(fields.next()?);
        Some((PathBuf::from(point), PathBuf::from(root)))
    })
}

/// Our group of cgroup v2 in the text of `/proc/self/cgroup`.
pub(super) fn find_own(cgroup: &str) -> Option<PathBuf> {
    let path = cgroup.lines().find_map(|line| line.strip_prefix("0::"))?;
    path.starts_with('/').then(|| PathBuf::from(path))
}

/// `\040` and its like, as the kernel writes blanks in paths.
fn unescape(text: &str) -> String {
    let mut out = Vec::new();
    let bytes = text.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        let octal = text
            .get(at + 1..at + 4)
            .filter(|_| bytes[at] == b'\\')
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match octal {
            Some(byte) => {
                out.push(byte);
                at += 4;
            }
            None => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

fn is_cgroup2(path: &Path) -> bool {
    rustix::fs::statfs(path).is_ok_and(|stat| {
        #[allow(
            clippy::cast_sign_loss,
            reason = "a magic number is a bit pattern, not a quantity"
        )]
        let magic = stat.f_type as u64 & 0xffff_ffff;
        magic == CGROUP2_MAGIC
    })
}
