//! What kind of system this is, by what lies in it (spec/operations.md 4).

use std::path::Path;

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum System {
    Debian,
    Alpine,
    OpenWrt,
    Other,
}

/// Who supervises services.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Init {
    Systemd,
    Openrc,
    Procd,
    /// Nobody that we know: no service files.
    None,
}

impl Init {
    /// `None` for `auto`.
    ///
    /// # Errors
    /// Any other word.
    pub(super) fn from_word(word: &str) -> Result<Option<Self>, ()> {
        Ok(Some(match word {
            "auto" => return Ok(None),
            "systemd" => Self::Systemd,
            "openrc" => Self::Openrc,
            "procd" => Self::Procd,
            "none" => Self::None,
            _ => return Err(()),
        }))
    }
}

pub(super) fn system(root: &Path) -> System {
    let there = |path: &str| root.join(path).symlink_metadata().is_ok();
    if there("etc/openwrt_release") {
        System::OpenWrt
    } else if there("etc/alpine-release") {
        System::Alpine
    } else if there("etc/debian_version") {
        System::Debian
    } else {
        System::Other
    }
}

/// Whoever runs now, else whoever is installed; below a prefix the platform's own.
pub(super) fn init(root: &Path, system: System) -> Init {
    const SIGNS: &[(&str, Init)] = &[
        ("run/systemd/system", Init::Systemd),
        ("run/openrc", Init::Openrc),
        ("sbin/procd", Init::Procd),
        ("usr/lib/systemd/systemd", Init::Systemd),
        ("lib/systemd/systemd", Init::Systemd),
        ("sbin/openrc-run", Init::Openrc),
    ];
    let found = SIGNS
        .iter()
        .find(|(path, _)| root.join(path).symlink_metadata().is_ok());
    match (found, system) {
        (Some((_, init)), _) => *init,
        (None, _) if root == Path::new("/") => Init::None,
        (None, System::Debian) => Init::Systemd,
        (None, System::Alpine) => Init::Openrc,
        (None, System::OpenWrt) => Init::Procd,
        (None, System::Other) => Init::None,
    }
}

/// Whether the service manager runs, so that it can be told to start something.
pub(super) fn is_live(init: Init) -> bool {
    match init {
        Init::Systemd => Path::new("/run/systemd/system").is_dir(),
        Init::Openrc => Path::new("/run/openrc").is_dir(),
        Init::Procd => {
            std::fs::read_to_string("/proc/1/comm").is_ok_and(|name| name.trim() == "procd")
        }
        Init::None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(files: &[&str]) -> (System, Init) {
        let dir = tempfile::tempdir().unwrap();
        for file in files {
            let path = dir.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        let system = system(dir.path());
        (system, init(dir.path(), system))
    }

    #[test]
    fn release_files_decide_and_what_is_installed_supervises() {
        assert_eq!(of(&["etc/debian_version"]), (System::Debian, Init::Systemd));
        assert_eq!(of(&["etc/alpine-release"]), (System::Alpine, Init::Openrc));
        // OpenWrt has no debian_version, but derivatives of both have been seen with more than one file.
        assert_eq!(
            of(&["etc/openwrt_release", "etc/alpine-release"]),
            (System::OpenWrt, Init::Procd)
        );
        assert_eq!(of(&[]), (System::Other, Init::None));
        assert_eq!(
            of(&["usr/lib/systemd/systemd"]),
            (System::Other, Init::Systemd)
        );
        assert_eq!(
            of(&["etc/debian_version", "sbin/openrc-run"]),
            (System::Debian, Init::Openrc)
        );
        assert_eq!(
            of(&[
                "etc/debian_version",
                "sbin/openrc-run",
                "lib/systemd/systemd"
            ]),
            (System::Debian, Init::Systemd)
        );
    }
}
