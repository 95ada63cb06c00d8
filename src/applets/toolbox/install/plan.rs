//! What is missing on the way from the facts to an installation: pure, so a second run finds nothing left to do, and whatever an
//! interrupted one has left is a fact like any other.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::accounts;
use super::facts::Facts;
use super::look::{Entry, What};
use super::manifest::Manifest;
use super::packages::{self, Package};
use super::platform::Init;
use super::step::Step;
use super::table::{self, ACCOUNTS, BINARY, Kind, ROOT, Roles, Row, TABLE};

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Request {
    pub(super) roles: Roles,
    /// Let the firewall of OpenWrt open the agent's port.
    pub(super) open_port: bool,
    /// Replace files of packages of before all the same.
    pub(super) take_over_packages: bool,
}

/// Steps in their order, and what the operator should know then.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) steps: Vec<Step>,
    pub(super) notes: Vec<String>,
}

/// Why nothing was done at all.
#[derive(Debug, Eq, PartialEq, thiserror::Error)]
pub(super) enum Refusal {
    #[error(
        "'{BINARY}' is managed by {manager} (package {name}); upgrade it with {tool}, or remove the package first. Nothing has been changed",
        manager = .0.manager, name = .0.name, tool = .0.tool
    )]
    Managed(Package),
    #[error(
        "'{}' belongs to the package '{package}': upgrade that (its newer version holds this program), or remove it first. \
         --take-over-packages replaces its files all the same, and keeps them; the package manager knows nothing of it. Nothing has been changed",
        .path.display()
    )]
    Packaged { path: PathBuf, package: String },
    #[error("'{}' is in the way: it should be {wanted}. Move it away. Nothing has been changed", .path.display())]
    InTheWay { path: PathBuf, wanted: &'static str },
    #[error(
        "all numbers for system accounts are taken: remove an account, or add user and group '{0}' yourself. Nothing has been changed"
    )]
    NoNumber(&'static str),
    #[error(
        "{service} runs, but would not start again with its present configuration and this release:\n{why}\n\
         Nothing has been changed, and what runs goes on. Mend the configuration, then give the same command again"
    )]
    WouldNotStart { service: &'static str, why: String },
}

/// # Errors
/// See [`Refusal`].
pub(super) fn plan(facts: &Facts, request: Request) -> Result<Plan, Refusal> {
    // Two who keep the same names: our service files would come before the package's, whichever version that has.
    if let Some(package) = packages::of_ours(&facts.owned) {
        return Err(Refusal::Managed(package.clone()));
    }
    let mut planner = Planner {
        facts,
        request,
        steps: Vec::new(),
        notes: Vec::new(),
        manifest: facts.manifest.clone(),
        touched: Roles::default(),
        reload: false,
    };
    planner.manifest.roles = planner.manifest.roles.with(request.roles);
    planner.manifest.pending.clear();
    planner.accounts()?;
    for row in TABLE {
        if row.roles.meets(request.roles) && row.applies(facts.init, request.open_port) {
            planner.row(row)?;
        }
    }
    planner.strays();
    let pending = planner.services()?;
    Ok(planner.finish(pending))
}

pub(super) struct Planner<'a> {
    pub(super) facts: &'a Facts,
    pub(super) request: Request,
    pub(super) steps: Vec<Step>,
    pub(super) notes: Vec<String>,
    pub(super) manifest: Manifest,
    /// Whose programs or service files change.
    pub(super) touched: Roles,
    /// The service manager must read its files anew.
    pub(super) reload: bool,
}

impl Planner<'_> {
    fn accounts(&mut self) -> Result<(), Refusal> {
        let facts = self.facts;
        let mut taken = facts.taken.clone();
        for (roles, name, about) in ACCOUNTS {
            if !roles.meets(self.request.roles) {
                continue;
            }
            let (uid, gid) = (facts.uids.get(*name), facts.gids.get(*name));
            let mut free = || {
                let id = accounts::free_id(facts.system, &taken).ok_or(Refusal::NoNumber(name))?;
                taken.insert(id);
                Ok(id)
            };
            let gid = match gid {
                Some(gid) => *gid,
                None => {
                    let gid = free()?;
                    match accounts::add_group(facts.means, name) {
                        Some(words) => self.steps.push(Step::Run { words, fine: &[] }),
                        None => self.steps.push(Step::AddGroup { name, gid }),
                    }
                    gid
                }
            };
            if uid.is_none() {
                self.steps.push(
                    match accounts::add_user(facts.means, facts.system, name, about) {
                        Some(words) => Step::Run { words, fine: &[] },
                        // The group's number, if nobody has it as his own.
                        None => Step::AddUser {
                            name,
                            uid: if facts.uids.values().any(|uid| *uid == gid) {
                                free()?
                            } else {
                                gid
                            },
                            gid,
                            about,
                        },
                    },
                );
            }
        }
        Ok(())
    }

    fn row(&mut self, row: &Row) -> Result<(), Refusal> {
        let facts = self.facts;
        let path = row.path(&facts.paths);
        let entry = facts.at(&path);
        match row.kind {
            Kind::Folder { exact } => self.folder(row, path, entry, exact)?,
            Kind::Mend => {
                let there = matches!(entry.what, What::File(_) | What::Folder { .. });
                if there && !facts.is_fine(entry, row.owner) {
                    self.own(path, row);
                }
            }
            Kind::MendInside => {
                if let Some(files) = facts.unreadable.get(&path) {
                    self.steps.push(Step::OwnFiles {
                        files: files.clone(),
                        path,
                        owner: row.owner,
                    });
                }
            }
            Kind::Seed { text, unless } => {
                let older = unless.is_some_and(|other| facts.is_there(Path::new(other)));
                if entry.what == What::Nothing && !older {
                    self.made(&path);
                    self.steps.push(Step::Seed {
                        path,
                        text: self.fitting(text),
                        mode: row.mode,
                        owner: row.owner,
                    });
                }
            }
            Kind::OldName => {
                if matches!(entry.what, What::File(_)) {
                    self.replace(row, &path, entry)?;
                    self.steps.push(Step::Link {
                        path,
                        to: BINARY.to_owned(),
                    });
                }
            }
            Kind::Link => {
                if !is_our_link(&entry.what) {
                    self.replace(row, &path, entry)?;
                    let to = link_target(&path);
                    self.steps.push(Step::Link { path, to });
                }
            }
            Kind::Binary => {
                if entry.what != What::File(Some(facts.binary)) {
                    self.replace(row, &path, entry)?;
                    self.steps.push(Step::Binary {
                        path,
                        mode: row.mode,
                    });
                } else if entry.mode != row.mode || !facts.is_owned(entry, ROOT) {
                    self.own(path, row);
                }
            }
            Kind::Service { text } => self.service_file(row, path, entry, text)?,
        }
        Ok(())
    }

    fn folder(
        &mut self,
        row: &Row,
        path: PathBuf,
        entry: &Entry,
        exact: bool,
    ) -> Result<(), Refusal> {
        let step = |path| Step::Folder {
            path,
            mode: row.mode,
            owner: row.owner,
        };
        match entry.what {
            // The same place may stand for two rows.
            What::Nothing if self.steps.contains(&step(path.clone())) => {}
            What::Nothing => self.steps.push(step(path)),
            What::Folder { .. } => {
                let right = entry.mode == row.mode && self.facts.is_owned(entry, row.owner);
                if exact && !right {
                    self.own(path, row);
                }
            }
            // The operator has moved it elsewhere.
            What::Link(_) => {}
            What::File(_) | What::Other => {
                return Err(Refusal::InTheWay {
                    path,
                    wanted: "a directory",
                });
            }
        }
        Ok(())
    }

    fn own(&mut self, path: PathBuf, row: &Row) {
        let step = Step::Own {
            path,
            mode: row.mode,
            owner: row.owner,
        };
        if !self.steps.contains(&step) {
            self.steps.push(step);
        }
    }

    fn service_file(
        &mut self,
        row: &Row,
        path: PathBuf,
        entry: &Entry,
        text: &'static str,
    ) -> Result<(), Refusal> {
        // Done and gone: it removes itself. Unless it was only about to be done.
        let once = path == Path::new(table::FIREWALL);
        if once
            && self.manifest.made.contains(table::FIREWALL)
            && !self.facts.manifest.pending.contains(table::FIREWALL)
        {
            return Ok(());
        }
        let wanted = crate::core::types::sha256(&[text.as_bytes()]);
        match &entry.what {
            // Masked, or the operator's own arrangement.
            What::Link(to) => {
                self.notes.push(format!(
                    "Left alone: '{}' is a link to '{}'",
                    path.display(),
                    to.display()
                ));
                return Ok(());
            }
            What::File(Some(found)) if *found == wanted => {
                if entry.mode != row.mode || !self.facts.is_owned(entry, ROOT) {
                    self.own(path, row);
                }
                return Ok(());
            }
            _ => self.replace(row, &path, entry)?,
        }
        self.reload |= self.facts.init == Init::Systemd;
        let name = path.display().to_string();
        self.steps.push(Step::Write {
            path,
            text,
            mode: row.mode,
        });
        if once && self.facts.live {
            self.steps.push(Step::run(&["sh", &name]));
            self.steps.push(Step::Remove { path: name.into() });
        }
        Ok(())
    }

    /// What is at `path` is about to make room: it is kept, unless it is ours.
    fn replace(&mut self, row: &Row, path: &Path, entry: &Entry) -> Result<(), Refusal> {
        let facts = self.facts;
        let package = facts.owned.get(path).filter(|_| facts.is_there(path));
        if let Some(package) = package.filter(|_| !self.request.take_over_packages) {
            return Err(Refusal::Packaged {
                path: path.to_owned(),
                package: package.name.clone(),
            });
        }
        let name = path.display().to_string();
        let to = table::kept(&facts.paths, path);
        // What was to be kept, and is not yet, is not ours yet: a run was interrupted in between.
        let begun = self.manifest.kept.contains(&name) && !facts.is_there(&to);
        let ours = self.manifest.made.contains(&name) && !begun || is_our_link(&entry.what);
        match entry.what {
            What::Folder { .. } | What::Other => {
                return Err(Refusal::InTheWay {
                    path: path.to_owned(),
                    wanted: "a file",
                });
            }
            What::Nothing => {}
            What::File(_) | What::Link(_) if ours && !matches!(row.kind, Kind::OldName) => {}
            What::File(_) | What::Link(_) => {
                if facts.at(&to).what != entry.what {
                    self.steps.push(Step::Keep {
                        path: path.to_owned(),
                        to,
                    });
                }
                self.manifest.kept.insert(name);
            }
        }
        self.made(path);
        self.touched = self.touched.with(row.roles);
        Ok(())
    }

    fn made(&mut self, path: &Path) {
        self.manifest.made.insert(path.display().to_string());
    }

    /// Seeds name the executor's socket where this system has it.
    fn fitting(&self, text: &'static str) -> Cow<'static, str> {
        if self.facts.init == Init::Procd {
            Cow::Owned(text.replace("\"/run/", "\"/var/run/"))
        } else {
            Cow::Borrowed(text)
        }
    }

    /// What has no row: the dispatcher's key, wherever it is configured to lie, and what releases of long ago have left.
    fn strays(&mut self) {
        let facts = self.facts;
        for (roles, from, path) in &facts.stranded {
            if roles.meets(self.request.roles) {
                self.steps.push(Step::Take {
                    path: path.clone(),
                    from: from.clone(),
                    owner: roles.meets(table::SENDING).then_some(table::FOR_DISPATCHER),
                });
            }
        }
        if self.request.roles.meets(table::SENDING) {
            let entry = facts.at(&facts.key);
            if matches!(entry.what, What::File(_)) && !facts.is_fine(entry, table::OF_DISPATCHER) {
                self.steps.push(Step::Own {
                    path: facts.key.clone(),
                    mode: 0o600,
                    owner: table::OF_DISPATCHER,
                });
            }
        }
        if !self.request.roles.meets(table::AGENT) {
            return;
        }
        let map = facts.paths.trust_map();
        if let Some(serial) = facts
            .old_serial
            .as_ref()
            .filter(|serial| !serial.is_empty())
            && !facts.is_there(&map)
            && !facts.stranded.iter().any(|(_, _, to)| *to == map)
        {
            self.steps.push(Step::Seed {
                path: map,
                text: Cow::Owned(format!(
                    "# From {}\n{serial} dispatcher\n",
                    table::OLD_SERIAL
                )),
                mode: 0o644,
                owner: table::OF_AGENT,
            });
        }
        if facts.is_there(Path::new(table::STALE_DROP_IN)) {
            self.notes.push(format!(
                "Remove '{}': it is of a release before 0.10, and binds the agent to a sandbox that is not meant any more",
                table::STALE_DROP_IN
            ));
        }
    }

    fn finish(mut self, pending: BTreeSet<String>) -> Plan {
        let facts = self.facts;
        let record = |manifest: &Manifest| Step::Record {
            path: table::manifest(&facts.paths),
            manifest: manifest.clone(),
        };
        let mut steps = Vec::new();
        let done = self.manifest.clone();
        let mut begun = done.clone();
        begun.pending = pending;
        if begun != facts.manifest {
            let own = table::own_state(&facts.paths);
            if !facts.is_there(&own) {
                steps.push(Step::Folder {
                    path: own,
                    mode: 0o700,
                    owner: ROOT,
                });
            }
            steps.push(record(&begun));
        }
        steps.append(&mut self.steps);
        if begun != done {
            steps.push(record(&done));
        }
        self.hints();
        Plan {
            steps,
            notes: self.notes,
        }
    }
}

/// How a name leads to the binary: relative beside it, so that it also works below a prefix.
fn link_target(path: &Path) -> String {
    match path.parent().and_then(Path::to_str) {
        Some("/usr/bin") => "ctrl-exec",
        Some("/usr/sbin") => "../bin/ctrl-exec",
        _ => BINARY,
    }
    .to_owned()
}

pub(super) fn is_our_link(what: &What) -> bool {
    matches!(what, What::Link(to) if [BINARY, "ctrl-exec", "../bin/ctrl-exec"].iter().any(|ours| to == Path::new(ours)))
}
