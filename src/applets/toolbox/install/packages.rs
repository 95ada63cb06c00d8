//! Which of our paths belong to a package of ours, by the files that package managers keep: what is theirs is not overwritten silently.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};

use super::table::BINARY;
use super::world::{Failure, World};

/// Most lines of one file that are looked at.
const LINES: usize = 4_000_000;

/// A package, who keeps it, and what upgrades it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Package {
    pub(super) name: String,
    pub(super) manager: &'static str,
    pub(super) tool: &'static str,
}

/// What belongs to packages.
pub(super) type Owned = BTreeMap<PathBuf, Package>;

/// The package of this program's own kind that keeps the host. Those of 0.12.3 are told from it by this: they have no such file.
pub(super) fn of_ours(owned: &Owned) -> Option<&Package> {
    owned.get(Path::new(BINARY))
}

/// Path of the system and its package. Only packages whose name begins with `ctrl-exec` are looked at.
///
/// # Errors
/// A link leads out of the root.
pub(super) fn owned(world: &World) -> Result<Owned, Failure> {
    let mut found = Owned::new();
    // One list of files per package.
    for (dir, manager, tool) in [
        ("/var/lib/dpkg/info", "dpkg", "apt"),
        ("/usr/lib/opkg/info", "opkg", "opkg"),
    ] {
        let dir = world.at(&Path::new(dir).join("x"))?;
        let entries = dir.parent().map(std::fs::read_dir);
        for entry in entries.into_iter().flatten().flatten().flatten() {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if let Some(package) = name
                .strip_suffix(".list")
                .filter(|n| n.starts_with("ctrl-exec"))
            {
                // `name:arch` where several architectures are installed.
                let package = Package {
                    name: package.split(':').next().unwrap_or(package).to_owned(),
                    manager,
                    tool,
                };
                for line in lines(&entry.path()) {
                    found.insert(PathBuf::from(line), package.clone());
                }
            }
        }
    }
    // apk: one file for all of them. It lies below `/usr` where that has been merged.
    for database in ["/lib/apk/db/installed", "/usr/lib/apk/db/installed"] {
        let database = world.at(Path::new(database))?;
        found.extend(of_apk(lines(&database)));
    }
    Ok(found)
}

fn lines(path: &Path) -> impl Iterator<Item = String> {
    std::fs::File::open(path)
        .into_iter()
        .flat_map(|file| BufReader::new(file).lines().map_while(Result::ok))
        .take(LINES)
}

/// `P:` begins a package, `F:` a directory, `R:` is a file in it.
fn of_apk(lines: impl Iterator<Item = String>) -> Owned {
    let mut found = Owned::new();
    let mut package = None;
    let mut dir = PathBuf::new();
    for line in lines {
        match (line.get(..2), line.get(2..)) {
            (Some("P:"), Some(name)) => {
                package = name.starts_with("ctrl-exec").then(|| Package {
                    name: name.to_owned(),
                    manager: "apk",
                    tool: "apk",
                });
            }
            (Some("F:"), Some(name)) => dir = Path::new("/").join(name),
            (Some("R:"), Some(name)) => {
                if let Some(package) = &package {
                    found.insert(dir.join(name), package.clone());
                }
            }
            _ => {}
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_manager_says_what_is_its_own() {
        let dir = tempfile::tempdir().unwrap();
        for (file, text) in [
            ("etc/x", ""),
            (
                "var/lib/dpkg/info/ctrl-exec-agent:amd64.list",
                "/.\n/usr/bin/ctrl-exec-agent\n",
            ),
            ("var/lib/dpkg/info/coreutils.list", "/usr/bin/cea\n"),
            ("usr/lib/opkg/info/ctrl-exec.list", "/usr/bin/ced\n"),
            (
                "lib/apk/db/installed",
                "C:Q1\nP:busybox\nF:usr/sbin\nR:ctrl-exec-exec\n\nP:ctrl-exec\nF:usr/bin\nR:ctrl-exec\nR:cea-x\n",
            ),
        ] {
            let path = dir.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let found = owned(&World::new(dir.path()).unwrap()).unwrap();
        let of = |path: &str| {
            found
                .get(Path::new(path))
                .map(|package| (package.name.as_str(), package.manager))
        };
        assert_eq!(
            of("/usr/bin/ctrl-exec-agent"),
            Some(("ctrl-exec-agent", "dpkg"))
        );
        assert_eq!(of("/usr/bin/ced"), Some(("ctrl-exec", "opkg")));
        assert_eq!(of("/usr/bin/ctrl-exec"), Some(("ctrl-exec", "apk")));
        assert_eq!(
            of_ours(&found).map(|package| package.tool),
            Some("apk"),
            "the one that has the program itself"
        );
        assert_eq!(of("/usr/bin/cea"), None);
        assert_eq!(of("/usr/sbin/ctrl-exec-exec"), None);
    }
}
