//! THE TABLE of what an installation consists of: install, uninstall and the dry run all read it and nothing else
//! (spec/operations.md 3, 17.1).

use std::path::{Path, PathBuf};

use super::platform::Init;
use crate::core::paths::{Paths, Platform};

/// A set of roles.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Roles(u8);

pub(super) const AGENT: Roles = Roles(1);
pub(super) const DISPATCHER: Roles = Roles(2);
pub(super) const API: Roles = Roles(4);
pub(super) const ALL: Roles = Roles(7);
/// Whatever the command line and the API share.
pub(super) const SENDING: Roles = Roles(2 | 4);

pub(super) static ROLES: &[(&str, Roles)] =
    &[("agent", AGENT), ("dispatcher", DISPATCHER), ("api", API)];

impl Roles {
    pub(super) fn meets(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    pub(super) fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub(super) fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    pub(super) fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// `agent`, `dispatcher`, `api`, `all`, or several with commas.
    pub(super) fn parse(text: &str) -> Option<Self> {
        text.split(',').try_fold(Self::default(), |sum, word| {
            let one = match word {
                "all" => ALL,
                _ => ROLES.iter().find(|(name, _)| *name == word)?.1,
            };
            Some(sum.with(one))
        })
    }

    pub(super) fn names(self) -> impl Iterator<Item = &'static str> {
        ROLES
            .iter()
            .filter(move |(_, role)| self.meets(*role))
            .map(|(name, _)| *name)
    }
}

/// Owner and group, by name: accounts have their numbers only once they are there.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Who {
    pub(super) user: &'static str,
    pub(super) group: &'static str,
}

impl Who {
    /// The account of the service that shall be able to read what is owned so; `None` where only root counts.
    pub(super) fn service(self) -> Option<&'static str> {
        [self.user, self.group]
            .into_iter()
            .find(|name| *name != "root")
    }
}

const fn who(user: &'static str, group: &'static str) -> Who {
    Who { user, group }
}

pub(super) const ROOT: Who = who("root", "root");
const FOR_AGENT: Who = who("root", "ctrl-exec-agent");
pub(super) const OF_AGENT: Who = who("ctrl-exec-agent", "ctrl-exec-agent");
pub(super) const FOR_DISPATCHER: Who = who("root", "ctrl-exec");
pub(super) const OF_DISPATCHER: Who = who("ctrl-exec", "ctrl-exec");

/// Accounts: who needs them, name of user and group, comment.
pub(super) static ACCOUNTS: &[(Roles, &str, &str)] = &[
    (AGENT, "ctrl-exec-agent", "ctrl-exec agent service user"),
    (SENDING, "ctrl-exec", "ctrl-exec dispatcher service user"),
];

/// Where a row applies.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum On {
    Everywhere,
    Init(Init),
    /// Only with `--open-port`, under procd.
    OpenPort,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Place {
    At(&'static str),
    Of(fn(&Paths) -> PathBuf),
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    /// A directory. `exact`: one that is there already gets owner and mode too.
    Folder { exact: bool },
    /// A file of the host: only if its service cannot read it, it gets owner and mode.
    Mend,
    /// The same for all files in a directory, which keep their modes.
    MendInside,
    /// This program.
    Binary,
    /// A name of it.
    Link,
    /// A name of it, if a 0.12.3 tarball put a program there: old units and cron lines go on working.
    OldName,
    /// Configuration to begin with; never written over anything, nor beside the older form of the same file.
    Seed {
        text: &'static str,
        unless: Option<&'static str>,
    },
    /// For the service manager. Ours: renewed with each release.
    Service { text: &'static str },
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Row {
    pub(super) roles: Roles,
    pub(super) on: On,
    place: Place,
    pub(super) kind: Kind,
    pub(super) mode: u32,
    pub(super) owner: Who,
}

impl Row {
    /// Below no prefix.
    pub(super) fn path(&self, paths: &Paths) -> PathBuf {
        match self.place {
            Place::At(path) => PathBuf::from(path),
            Place::Of(path) => path(paths),
        }
    }

    pub(super) fn applies(&self, init: Init, open_port: bool) -> bool {
        match self.on {
            On::Everywhere => true,
            On::Init(wanted) => wanted == init,
            On::OpenPort => init == Init::Procd && open_port,
        }
    }
}

pub(super) const BINARY: &str = "/usr/bin/ctrl-exec";
/// A sandbox of releases before 0.10, inert or in the way now.
pub(super) const STALE_DROP_IN: &str =
    "/etc/systemd/system/ctrl-exec-agent.service.d/50-ctrl-exec-sandbox.conf";
/// The serial that agents before 0.9 trusted.
pub(super) const OLD_SERIAL: &str = "/etc/ctrl-exec-agent/ctrl-exec-serial";
/// Library of a 0.12.3 tarball; of no use without its programs.
pub(super) const OLD_LIBRARY: &str = "/usr/local/lib/ctrl-exec";
/// Links of a 0.12.3 tarball to its programs, which lead to ours now; dangling without.
pub(super) static OLD_ALIASES: &[(Roles, &str)] = &[
    (SENDING, "/usr/local/bin/ced"),
    (AGENT, "/usr/local/bin/cea"),
];
pub(super) const SCRIPTS: &str = "/opt/ctrl-exec-scripts";

/// Where install notes what it has done, and keeps what it has replaced.
pub(super) fn own_state(paths: &Paths) -> PathBuf {
    PathBuf::from(match paths.platform() {
        Platform::Standard => "/var/lib/ctrl-exec-install",
        Platform::VolatileVar => "/etc/ctrl-exec-install",
    })
}

pub(super) fn manifest(paths: &Paths) -> PathBuf {
    own_state(paths).join("manifest")
}

/// Where the file that a program of ours takes the place of is kept.
pub(super) fn kept(paths: &Paths, path: &Path) -> PathBuf {
    own_state(paths)
        .join("kept")
        .join(path.strip_prefix("/").unwrap_or(path))
}

/// What `--purge` removes with all that is in it. Those below `/var/run` are only looked for where there is no `/run`.
pub(super) static TREES: &[(Roles, &str)] = &[
    (AGENT, "/etc/ctrl-exec-agent"),
    (AGENT, "/var/lib/ctrl-exec-agent"),
    (AGENT, "/run/ctrl-exec-agent"),
    (AGENT, "/var/run/ctrl-exec-agent"),
    (SENDING, "/etc/ctrl-exec"),
    (SENDING, "/var/lib/ctrl-exec"),
    (SENDING, "/run/ctrl-exec"),
    (SENDING, "/var/run/ctrl-exec"),
];

const fn row(roles: Roles, place: Place, kind: Kind, mode: u32, owner: Who) -> Row {
    Row {
        roles,
        on: On::Everywhere,
        place,
        kind,
        mode,
        owner,
    }
}

const fn folder(roles: Roles, place: Place, mode: u32, owner: Who) -> Row {
    row(roles, place, Kind::Folder { exact: true }, mode, owner)
}

const fn mend(roles: Roles, path: &'static str, mode: u32, owner: Who) -> Row {
    row(roles, Place::At(path), Kind::Mend, mode, owner)
}

const fn link(roles: Roles, path: &'static str) -> Row {
    row(roles, Place::At(path), Kind::Link, 0, ROOT)
}

const fn old_name(roles: Roles, path: &'static str) -> Row {
    row(roles, Place::At(path), Kind::OldName, 0, ROOT)
}

const fn seed(
    roles: Roles,
    path: &'static str,
    text: &'static str,
    unless: Option<&'static str>,
    owner: Who,
) -> Row {
    row(
        roles,
        Place::At(path),
        Kind::Seed { text, unless },
        0o640,
        owner,
    )
}

const fn on(init: On, roles: Roles, mode: u32, path: &'static str, kind: Kind) -> Row {
    Row {
        roles,
        on: init,
        place: Place::At(path),
        kind,
        mode,
        owner: ROOT,
    }
}

/// A file of the repository for the service manager.
macro_rules! ours {
    ($file:literal) => {
        Kind::Service {
            text: include_str!(concat!("../../../../", $file)),
        }
    };
}

/// One that the operator edits.
macro_rules! settings {
    ($file:literal) => {
        Kind::Seed {
            text: include_str!(concat!("../../../../", $file)),
            unless: None,
        }
    };
}

const SYSTEMD: On = On::Init(Init::Systemd);
const OPENRC: On = On::Init(Init::Openrc);
const PROCD: On = On::Init(Init::Procd);

/// In the order in which it is made.
#[rustfmt::skip]
pub(super) static TABLE: &[Row] = &[
    // The group sticks to new files, so that the API can read what root writes later (a journal of revocations, say).
    folder(SENDING, Place::Of(Paths::dispatcher_etc), 0o2750, FOR_DISPATCHER),
    folder(SENDING, Place::At("/var/lib/ctrl-exec"), 0o2770, FOR_DISPATCHER),
    folder(SENDING, Place::Of(Paths::dispatcher_state), 0o2770, FOR_DISPATCHER),
    folder(SENDING, Place::Of(Paths::registry_dir), 0o2770, FOR_DISPATCHER),
    folder(SENDING, Place::Of(Paths::locks_dir), 0o2770, FOR_DISPATCHER),
    folder(SENDING, Place::Of(Paths::runs_dir), 0o2770, FOR_DISPATCHER),
    // Closed: `pairing-mode` insists on it.
    row(SENDING, Place::Of(Paths::pairing_dir), Kind::Folder { exact: false }, 0o700, ROOT),
    folder(AGENT, Place::Of(Paths::agent_etc), 0o750, FOR_AGENT),
    folder(AGENT, Place::Of(Paths::agent_state), 0o750, OF_AGENT),
    folder(AGENT, Place::Of(Paths::async_runs_dir), 0o750, OF_AGENT),
    // Open for reading: a script that runs as nobody, which is what the seed says, must get there.
    row(AGENT, Place::At(SCRIPTS), Kind::Folder { exact: false }, 0o755, FOR_AGENT),

    mend(SENDING, "/etc/ctrl-exec/ctrl-exec.toml", 0o640, FOR_DISPATCHER),
    mend(SENDING, "/etc/ctrl-exec/ctrl-exec.conf", 0o640, FOR_DISPATCHER),
    mend(SENDING, "/etc/ctrl-exec/revoked.jsonl", 0o640, FOR_DISPATCHER),
    row(SENDING, Place::Of(|paths| paths.dispatcher_state().join("rotation.json")), Kind::Mend, 0o640, FOR_DISPATCHER),
    row(SENDING, Place::Of(|paths| paths.dispatcher_state().join("ca-change.json")), Kind::Mend, 0o640, FOR_DISPATCHER),
    row(SENDING, Place::Of(Paths::registry_dir), Kind::MendInside, 0, FOR_DISPATCHER),
    row(SENDING, Place::Of(Paths::locks_dir), Kind::MendInside, 0, FOR_DISPATCHER),
    row(SENDING, Place::Of(Paths::runs_dir), Kind::MendInside, 0, FOR_DISPATCHER),
    mend(SENDING, "/etc/ctrl-exec/identities", 0o700, OF_DISPATCHER),
    row(SENDING, Place::At("/etc/ctrl-exec/identities"), Kind::MendInside, 0, OF_DISPATCHER),
    mend(AGENT, "/etc/ctrl-exec-agent/agent.toml", 0o640, FOR_AGENT),
    mend(AGENT, "/etc/ctrl-exec-agent/agent.conf", 0o640, FOR_AGENT),
    mend(AGENT, "/etc/ctrl-exec-agent/scripts.toml", 0o640, FOR_AGENT),
    mend(AGENT, "/etc/ctrl-exec-agent/scripts.conf", 0o640, FOR_AGENT),
    mend(AGENT, "/etc/ctrl-exec-agent/agent.key", 0o640, FOR_AGENT),
    mend(AGENT, "/etc/ctrl-exec-agent/agent.crt", 0o640, FOR_AGENT),
    mend(AGENT, "/etc/ctrl-exec-agent/ca.crt", 0o644, FOR_AGENT),

    seed(SENDING, "/etc/ctrl-exec/ctrl-exec.toml", include_str!("seeds/ctrl-exec.toml"), Some("/etc/ctrl-exec/ctrl-exec.conf"), FOR_DISPATCHER),
    seed(SENDING, "/etc/ctrl-exec/auth-hook.example", include_str!("seeds/auth-hook.example"), None, FOR_DISPATCHER),
    seed(AGENT, "/etc/ctrl-exec-agent/agent.toml", include_str!("seeds/agent.toml"), Some("/etc/ctrl-exec-agent/agent.conf"), FOR_AGENT),
    seed(AGENT, "/etc/ctrl-exec-agent/scripts.toml", include_str!("seeds/scripts.toml"), Some("/etc/ctrl-exec-agent/scripts.conf"), FOR_AGENT),

    row(ALL, Place::At(BINARY), Kind::Binary, 0o755, ROOT),
    link(SENDING, "/usr/bin/ced"),
    link(SENDING, "/usr/bin/ctrl-exec-dispatcher"),
    link(AGENT, "/usr/bin/cea"),
    link(AGENT, "/usr/bin/ctrl-exec-agent"),
    link(API, "/usr/bin/ced-api"),
    link(API, "/usr/bin/ctrl-exec-api"),
    link(AGENT, "/usr/sbin/ctrl-exec-exec"),
    old_name(SENDING, "/usr/local/bin/ctrl-exec-dispatcher"),
    old_name(AGENT, "/usr/local/bin/ctrl-exec-agent"),
    old_name(API, "/usr/local/bin/ctrl-exec-api"),
    old_name(AGENT, "/usr/local/sbin/ctrl-exec-exec"),

    on(SYSTEMD, AGENT, 0o644, "/etc/systemd/system/ctrl-exec-exec.service", ours!("init/ctrl-exec-exec.service")),
    on(SYSTEMD, AGENT, 0o644, "/etc/systemd/system/ctrl-exec-agent.service", ours!("init/ctrl-exec-agent.service")),
    on(SYSTEMD, AGENT, 0o644, "/etc/systemd/system/ctrl-exec-agent-renew.service", ours!("init/ctrl-exec-agent-renew.service")),
    on(SYSTEMD, AGENT, 0o644, "/etc/systemd/system/ctrl-exec-agent-renew.timer", ours!("init/ctrl-exec-agent-renew.timer")),
    on(SYSTEMD, DISPATCHER, 0o644, "/etc/systemd/system/ctrl-exec-maintenance.service", ours!("init/ctrl-exec-maintenance.service")),
    on(SYSTEMD, DISPATCHER, 0o644, "/etc/systemd/system/ctrl-exec-maintenance.timer", ours!("init/ctrl-exec-maintenance.timer")),
    on(SYSTEMD, API, 0o644, "/etc/systemd/system/ctrl-exec-api.service", ours!("init/ctrl-exec-api.service")),
    on(SYSTEMD, API, 0o644, "/etc/systemd/system/ctrl-exec-api.socket", ours!("init/ctrl-exec-api.socket")),

    on(OPENRC, AGENT, 0o755, "/etc/init.d/ctrl-exec-exec", ours!("openrc/ctrl-exec-exec")),
    on(OPENRC, AGENT, 0o755, "/etc/init.d/ctrl-exec-agent", ours!("openrc/ctrl-exec-agent")),
    on(OPENRC, DISPATCHER, 0o755, "/etc/init.d/ctrl-exec-maintenance", ours!("openrc/ctrl-exec-maintenance")),
    on(OPENRC, API, 0o755, "/etc/init.d/ctrl-exec-api", ours!("openrc/ctrl-exec-api")),
    on(OPENRC, AGENT, 0o644, "/etc/conf.d/ctrl-exec-exec", settings!("openrc/conf.d/ctrl-exec-exec")),
    on(OPENRC, AGENT, 0o644, "/etc/conf.d/ctrl-exec-agent", settings!("openrc/conf.d/ctrl-exec-agent")),
    on(OPENRC, API, 0o644, "/etc/conf.d/ctrl-exec-api", settings!("openrc/conf.d/ctrl-exec-api")),

    on(PROCD, AGENT, 0o755, "/etc/init.d/ctrl-exec-exec", ours!("procd/ctrl-exec-exec")),
    on(PROCD, AGENT, 0o755, "/etc/init.d/ctrl-exec-agent", ours!("procd/ctrl-exec-agent")),
    on(PROCD, DISPATCHER, 0o755, "/etc/init.d/ctrl-exec-maintenance", ours!("procd/ctrl-exec-maintenance")),
    on(PROCD, API, 0o755, "/etc/init.d/ctrl-exec-api", ours!("procd/ctrl-exec-api")),
    on(PROCD, ALL, 0o644, "/etc/config/ctrl-exec", settings!("procd/ctrl-exec.config")),
    on(PROCD, ALL, 0o644, "/lib/upgrade/keep.d/ctrl-exec", ours!("procd/keep.d/ctrl-exec")),
    on(PROCD, AGENT, 0o755, "/etc/hotplug.d/ntp/90-ctrl-exec", ours!("procd/hotplug-ntp/90-ctrl-exec")),
    on(On::OpenPort, AGENT, 0o755, FIREWALL, ours!("procd/uci-defaults/99-ctrl-exec-firewall")),
];

/// Runs once and removes itself.
pub(super) const FIREWALL: &str = "/etc/uci-defaults/99-ctrl-exec-firewall";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_are_words_with_commas() {
        assert_eq!(Roles::parse("all"), Some(ALL));
        assert_eq!(Roles::parse("agent,api"), Some(AGENT.with(API)));
        for bad in ["", "agents", "agent,", "Agent"] {
            assert_eq!(Roles::parse(bad), None, "{bad:?}");
        }
        assert_eq!(
            ALL.without(API).names().collect::<Vec<_>>(),
            ["agent", "dispatcher"]
        );
    }

    #[test]
    fn paths_are_absolute_and_made_once_per_system() {
        for platform in [Platform::Standard, Platform::VolatileVar] {
            let paths = Paths::new("/", platform);
            for init in [Init::Systemd, Init::Openrc, Init::Procd, Init::None] {
                let mut seen = std::collections::BTreeSet::new();
                for row in TABLE.iter().filter(|row| row.applies(init, true)) {
                    let path = row.path(&paths);
                    assert!(path.is_absolute(), "{}", path.display());
                    let makes = !matches!(
                        row.kind,
                        Kind::Mend | Kind::MendInside | Kind::Folder { .. }
                    );
                    assert!(
                        !makes || seen.insert(path.clone()),
                        "{} twice",
                        path.display()
                    );
                }
            }
        }
    }
}
