//! Whether a user could start a script: mode bits along its path, for `check` (spec/executor.md 15.10, 15.12).
//!
//! A forecast. Access lists and mount options are left to the kernel, which has the last word in the child.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use caps::Capability;

use crate::core::sandbox::identity::Identity;

const READ: u32 = 4;
const EXECUTE: u32 = 1;

/// Whom to ask for.
#[derive(Clone, Copy, Debug)]
pub struct Runner<'a> {
    pub identity: &'a Identity,
    pub caps: &'a [Capability],
    /// A copy with mode 0555 stands in the place of the file: only the way counts.
    pub copied: bool,
}

/// # Errors
/// What stops the user, with the path and its mode.
pub fn executable(path: &Path, runner: Runner<'_>) -> Result<(), String> {
    let real = std::fs::canonicalize(path)
        .map_err(|e| format!("'{}' cannot be found: {e}", path.display()))?;
    for directory in directories(path, &real) {
        let meta = std::fs::metadata(&directory)
            .map_err(|e| format!("'{}' cannot be looked at: {e}", directory.display()))?;
        if !may(runner, meta.uid(), meta.gid(), meta.mode(), EXECUTE, true) {
            return Err(stopped("directory", &directory, meta.mode(), runner));
        }
    }
    let meta = std::fs::metadata(&real)
        .map_err(|e| format!("'{}' cannot be looked at: {e}", real.display()))?;
    if !meta.is_file() {
        return Err(format!("'{}' is no regular file", real.display()));
    }
    if runner.copied {
        return Ok(());
    }
    let mut wanted = EXECUTE;
    if is_text(&real) {
        // The interpreter opens it.
        wanted |= READ;
    }
    if !may(runner, meta.uid(), meta.gid(), meta.mode(), wanted, false) {
        return Err(stopped("file", &real, meta.mode(), runner));
    }
    Ok(())
}

fn stopped(kind: &str, path: &Path, mode: u32, runner: Runner<'_>) -> String {
    format!(
        "{kind} '{}' (mode {:04o}) is closed to uid {}",
        path.display(),
        mode & 0o7777,
        runner.identity.uid
    )
}

/// Every directory on the way: of the path as it is written, and of where its links lead.
fn directories(path: &Path, real: &Path) -> BTreeSet<PathBuf> {
    let mut all: BTreeSet<PathBuf> = real.ancestors().skip(1).map(Path::to_owned).collect();
    for ancestor in path.ancestors().skip(1) {
        if let Ok(ancestor) = std::fs::canonicalize(ancestor) {
            all.extend(ancestor.ancestors().map(Path::to_owned));
        }
    }
    all
}

fn is_text(path: &Path) -> bool {
    use std::io::Read as _;
    let mut start = [0; 2];
    std::fs::File::open(path).is_ok_and(|mut f| f.read_exact(&mut start).is_ok()) && start == *b"#!"
}

/// The kernel's rule: the first class that fits decides, then the capabilities.
fn may(runner: Runner<'_>, uid: u32, gid: u32, mode: u32, wanted: u32, directory: bool) -> bool {
    let who = runner.identity;
    let class = if who.uid == uid {
        mode >> 6
    } else if who.gid == gid || who.groups.contains(&gid) {
        mode >> 3
    } else {
        mode
    };
    if class & wanted == wanted {
        return true;
    }
    let has = |capability| runner.caps.contains(&capability);
    // Even the override executes only what somebody may execute.
    (has(Capability::CAP_DAC_OVERRIDE) && (directory || mode & 0o111 != 0))
        || (directory && has(Capability::CAP_DAC_READ_SEARCH))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(uid: u32, gid: u32, groups: &[u32]) -> Identity {
        Identity {
            uid,
            gid,
            groups: groups.to_vec(),
            name: None,
            home: "/".to_owned(),
        }
    }

    #[test]
    fn the_first_class_that_fits_decides() {
        let asked = |uid, gid, groups: &[u32], mode, wanted| {
            let identity = identity(uid, gid, groups);
            let runner = Runner {
                identity: &identity,
                caps: &[],
                copied: false,
            };
            may(runner, 0, 50, mode, wanted, false)
        };
        assert!(asked(0, 0, &[], 0o700, 1));
        assert!(!asked(0, 0, &[], 0o077, 1));
        assert!(asked(7, 50, &[], 0o750, 5));
        assert!(asked(7, 7, &[50], 0o750, 5));
        assert!(!asked(7, 7, &[], 0o750, 1));
        assert!(!asked(7, 50, &[], 0o705, 1));
        assert!(asked(7, 7, &[], 0o711, 1));
        assert!(!asked(7, 7, &[], 0o711, 5));
    }

    #[test]
    fn capabilities_open_what_they_open() {
        let who = identity(7, 7, &[]);
        let asked = |caps: &[Capability], mode, directory| {
            let runner = Runner {
                identity: &who,
                caps,
                copied: false,
            };
            may(runner, 0, 0, mode, EXECUTE, directory)
        };
        let over = [Capability::CAP_DAC_OVERRIDE];
        let search = [Capability::CAP_DAC_READ_SEARCH];
        assert!(asked(&over, 0o700, false) && !asked(&over, 0o600, false));
        assert!(asked(&search, 0o700, true) && !asked(&search, 0o700, false));
        assert!(!asked(&[], 0o700, true));
    }

    #[test]
    fn the_trap_of_the_default_mode_is_seen() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        std::fs::write(&path, "#!/bin/sh\n").unwrap();
        let mode = |path: &Path, mode| {
            std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
        };
        mode(dir.path(), 0o755);
        mode(&path, 0o750);
        let stranger = identity(54_321, 54_321, &[]);
        let runner = |copied| Runner {
            identity: &stranger,
            caps: &[],
            copied,
        };
        let why = executable(&path, runner(false)).unwrap_err();
        assert!(
            why.contains("mode 0750") && why.contains("uid 54321"),
            "{why}"
        );
        assert_eq!(executable(&path, runner(true)), Ok(()));
        mode(&path, 0o755);
        assert_eq!(executable(&path, runner(false)), Ok(()));
        mode(dir.path(), 0o750);
        assert!(
            executable(&path, runner(true))
                .unwrap_err()
                .contains("directory")
        );
    }
}
