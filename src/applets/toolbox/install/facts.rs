//! What is found on the host. Only looks; everything that a plan depends on is in here.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::accounts::Means;
use super::look::{Entry, What, digest, entry, files_inside, text};
use super::manifest::Manifest;
use super::platform::{Init, System};
use super::services::{self, Needs, Order};
use super::table::{self, Kind, Roles, TABLE, Who};
use super::world::{Failure, World};
use super::{check, packages, platform};
use crate::core::config;
use crate::core::paths::{Paths, Platform};
use crate::core::sys::users;

#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Running {
    pub(super) enabled: bool,
    pub(super) active: bool,
}

#[derive(Clone, Debug)]
pub(super) struct Facts {
    pub(super) system: System,
    pub(super) init: Init,
    /// Below no prefix.
    pub(super) paths: Paths,
    /// The root is that of the running system.
    pub(super) here: bool,
    /// The service manager runs, and may be told something.
    pub(super) live: bool,
    pub(super) means: Means,
    /// Numbers of the accounts that are there.
    pub(super) uids: BTreeMap<String, u32>,
    pub(super) gids: BTreeMap<String, u32>,
    pub(super) taken: BTreeSet<u32>,
    pub(super) entries: BTreeMap<PathBuf, Entry>,
    /// Directories, and the files in them that their service cannot read.
    pub(super) unreadable: BTreeMap<PathBuf, Vec<PathBuf>>,
    /// What belongs to packages.
    pub(super) owned: packages::Owned,
    /// Digest of this program.
    pub(super) binary: [u8; 32],
    pub(super) manifest: Manifest,
    pub(super) services: BTreeMap<&'static str, Running>,
    /// Services that could not start with the present configuration, and why.
    pub(super) problems: BTreeMap<&'static str, String>,
    /// Certificate, key and CA of an agent are there.
    pub(super) paired: bool,
    /// Certificate and key of a dispatcher are there.
    pub(super) set_up: bool,
    /// The dispatcher's key, as configured.
    pub(super) key: PathBuf,
    /// State of 0.12.3 on a RAM disk, and where it belongs; the roles are those that need it.
    pub(super) stranded: Vec<(Roles, PathBuf, PathBuf)>,
    /// What an agent before 0.9 trusted.
    pub(super) old_serial: Option<String>,
}

impl Facts {
    pub(super) fn at(&self, path: &Path) -> &Entry {
        static NOTHING: Entry = Entry {
            what: What::Nothing,
            uid: 0,
            gid: 0,
            mode: 0,
        };
        self.entries.get(path).unwrap_or(&NOTHING)
    }

    pub(super) fn is_there(&self, path: &Path) -> bool {
        self.at(path).what != What::Nothing
    }

    /// Whether it belongs to whom it shall. Accounts that are not there yet own nothing.
    pub(super) fn is_owned(&self, entry: &Entry, owner: Who) -> bool {
        self.uids.get(owner.user) == Some(&entry.uid)
            && self.gids.get(owner.group) == Some(&entry.gid)
    }

    /// Whether the service that it is for can read it, or has what another owner could give it.
    pub(super) fn is_fine(&self, entry: &Entry, owner: Who) -> bool {
        let readable = owner.service().is_none_or(|name| {
            entry.mode & 0o004 != 0
                || self.uids.get(name) == Some(&entry.uid) && entry.mode & 0o400 != 0
                || self.gids.get(name) == Some(&entry.gid) && entry.mode & 0o040 != 0
        });
        readable || self.is_owned(entry, owner)
    }
}

/// What the caller wants to be true whatever is found.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Given {
    pub(super) init: Option<Init>,
    /// From the environment.
    pub(super) platform: Option<Platform>,
}

/// Looks at everything.
///
/// # Errors
/// Something is there and cannot be looked at, or lies outside of the root.
pub(super) fn gather(world: &World, given: Given, host_name: &str) -> Result<Facts, Failure> {
    let root = world.root();
    let system = platform::system(root);
    let init = given.init.unwrap_or_else(|| platform::init(root, system));
    let platform = given.platform.unwrap_or_else(|| {
        if world.is_here() {
            Platform::detect()
        } else if system == System::OpenWrt {
            // `/var` is a link into a RAM disk there; below a prefix nothing is mounted to tell it by.
            Platform::VolatileVar
        } else {
            Platform::Standard
        }
    });
    let paths = Paths::new("/", platform);
    let rooted = Paths::new(root, platform);
    let here = world.is_here();
    let exe = Path::new("/proc/self/exe");
    let binary = std::fs::File::open(exe)
        .and_then(digest)
        .map_err(Failure::io("read this program at", exe))?;

    let mut facts = Facts {
        system,
        init,
        here,
        live: here && platform::is_live(init),
        means: Means::of(root, system),
        uids: BTreeMap::from([("root".to_owned(), 0)]),
        gids: BTreeMap::from([("root".to_owned(), 0)]),
        taken: BTreeSet::new(),
        entries: BTreeMap::new(),
        unreadable: BTreeMap::new(),
        owned: packages::owned(world)?,
        binary,
        manifest: Manifest::parse(&text(world, &table::manifest(&paths))?.unwrap_or_default()),
        services: BTreeMap::new(),
        problems: BTreeMap::new(),
        paired: false,
        set_up: false,
        key: PathBuf::from("/etc/ctrl-exec/dispatcher.key"),
        stranded: Vec::new(),
        old_serial: text(world, Path::new(table::OLD_SERIAL))?.map(|text| {
            let digits = text.chars().filter(char::is_ascii_hexdigit).take(64);
            digits.collect::<String>().to_ascii_lowercase()
        }),
        paths,
    };
    facts.accounts(world)?;
    facts.configuration(&rooted, host_name);
    facts.files(world)?;
    facts.stranded(world)?;
    if here {
        facts.supervision(world, &rooted, host_name)?;
    }
    Ok(facts)
}

impl Facts {
    fn accounts(&mut self, world: &World) -> Result<(), Failure> {
        for (file, groups) in [("/etc/passwd", false), ("/etc/group", true)] {
            for line in text(world, Path::new(file))?.unwrap_or_default().lines() {
                let mut fields = line.split(':');
                let name = fields.next().unwrap_or_default().to_owned();
                let Some(id) = fields.nth(1).and_then(users::number) else {
                    continue;
                };
                self.taken.insert(id);
                let map = if groups {
                    &mut self.gids
                } else {
                    &mut self.uids
                };
                // As the C library has it: the first line counts.
                map.entry(name).or_insert(id);
            }
        }
        Ok(())
    }

    fn configuration(&mut self, rooted: &Paths, host_name: &str) {
        // A configuration with mistakes is told of elsewhere, and moves nothing from its usual place.
        let etc = rooted.agent_etc();
        let files = match config::load_agent(rooted, None) {
            Ok(loaded) => [loaded.value.cert, loaded.value.key, loaded.value.ca],
            Err(_) => ["agent.crt", "agent.key", "ca.crt"].map(|name| etc.join(name)),
        };
        self.paired = files.iter().all(|file| file.is_file());
        let etc = rooted.dispatcher_etc();
        let (cert, key) = match config::load_dispatcher(rooted, None, host_name) {
            Ok(loaded) => (loaded.value.cert, loaded.value.key),
            Err(_) => (etc.join("dispatcher.crt"), etc.join("dispatcher.key")),
        };
        self.set_up = cert.is_file() && key.is_file();
        if let Ok(below) = key.strip_prefix(rooted.root()) {
            self.key = Path::new("/").join(below);
        }
    }

    fn files(&mut self, world: &World) -> Result<(), Failure> {
        let mut wanted: BTreeMap<PathBuf, bool> = BTreeMap::new();
        let mut want = |path: PathBuf, content: bool| {
            let known = wanted.entry(path).or_default();
            *known |= content;
        };
        for row in TABLE {
            let path = row.path(&self.paths);
            match row.kind {
                Kind::Binary | Kind::Link | Kind::OldName | Kind::Service { .. } => {
                    want(table::kept(&self.paths, &path), true);
                    want(path, true);
                }
                Kind::Seed { unless, .. } => {
                    want(path, false);
                    if let Some(other) = unless {
                        want(PathBuf::from(other), false);
                    }
                }
                Kind::Folder { .. } | Kind::Mend => want(path, false),
                Kind::MendInside => {
                    let closed = |entry: &Entry| !self.is_fine(entry, row.owner);
                    let files = files_inside(world, &path, closed)?;
                    if !files.is_empty() {
                        self.unreadable.insert(path, files);
                    }
                }
            }
        }
        // Elsewhere it is the same as `/run`.
        let volatile = self.paths.platform() == Platform::VolatileVar;
        for (_, path) in table::TREES.iter().chain(table::OLD_ALIASES) {
            if volatile || !path.starts_with("/var/run/") {
                want(PathBuf::from(path), false);
            }
        }
        for path in [table::STALE_DROP_IN, table::OLD_LIBRARY] {
            want(PathBuf::from(path), false);
        }
        want(self.key.clone(), false);
        want(self.paths.trust_map(), false);
        want(table::own_state(&self.paths), false);
        for (path, content) in wanted {
            let entry = entry(&world.at(&path)?, content)?;
            if entry.what != What::Nothing {
                self.entries.insert(path, entry);
            }
        }
        Ok(())
    }

    /// 0.12.3 keeps its state below `/var` on OpenWrt too: still there as long as nobody has restarted the host.
    fn stranded(&mut self, world: &World) -> Result<(), Failure> {
        if self.paths.platform() == Platform::Standard {
            return Ok(());
        }
        let before = Paths::new("/", Platform::Standard);
        let rotation = |paths: &Paths| paths.dispatcher_state().join("rotation.json");
        let mut pairs = vec![
            (table::AGENT, before.trust_map(), self.paths.trust_map()),
            (table::AGENT, before.staged_cert(), self.paths.staged_cert()),
            (table::SENDING, rotation(&before), rotation(&self.paths)),
        ];
        for record in files_inside(world, &before.registry_dir(), |_| true)? {
            if record.extension().is_some_and(|end| end == "json")
                && let Some(name) = record.file_name()
            {
                let to = self.paths.registry_dir().join(name);
                pairs.push((table::SENDING, record.clone(), to));
            }
        }
        for (roles, from, to) in pairs {
            let there = matches!(entry(&world.at(&from)?, false)?.what, What::File(_));
            if there && entry(&world.at(&to)?, false)?.what == What::Nothing {
                self.stranded.push((roles, from, to));
            }
        }
        Ok(())
    }

    fn supervision(
        &mut self,
        world: &World,
        rooted: &Paths,
        host_name: &str,
    ) -> Result<(), Failure> {
        for service in services::of(self.init) {
            let known = self.init == Init::Systemd
                || Path::new(&services::file(self.init, service.name)).exists();
            let ask = |order| -> bool {
                known
                    && world
                        .run(&services::words(self.init, order, service.name))
                        .is_ok_and(|ended| ended.code == Some(0))
            };
            let running = Running {
                enabled: ask(Order::IsEnabled),
                active: self.live && ask(Order::IsActive),
            };
            self.services.insert(service.name, running);
            if let Some(problem) = check::problem(world, rooted, host_name, service.needs)? {
                self.problems.insert(service.name, problem);
            }
        }
        Ok(())
    }

    /// Whether a service could start.
    pub(super) fn is_ready(&self, needs: Needs) -> bool {
        match needs {
            Needs::Nothing => true,
            // Nobody asks the one without the other.
            Needs::Executor | Needs::Agent => self.paired,
            Needs::Dispatcher => self.set_up,
        }
    }
}
