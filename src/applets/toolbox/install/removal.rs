//! The way back: pure like the way there, and by the same table.

use std::collections::BTreeSet;
use std::path::Path;

use super::accounts;
use super::facts::Facts;
use super::look::What;
use super::manifest::Manifest;
use super::packages;
use super::plan::{Plan, is_our_link};
use super::platform::Init;
use super::services::{self, Order};
use super::step::Step;
use super::table::{self, ACCOUNTS, ALL, Kind, Roles, Row, TABLE};

/// `roles`: `None` for all. `purge`: configuration, keys, state and accounts too, and what was kept of the programs before.
pub(super) fn plan(facts: &Facts, roles: Option<Roles>, purge: bool) -> Plan {
    let installed = facts.manifest.roles;
    let wanted = roles.unwrap_or(ALL);
    let left = installed.without(wanted);
    let mut remover = Remover {
        facts,
        purge,
        left,
        // A purge also removes what an installation by hand has left.
        gone: if purge {
            wanted
        } else {
            installed.without(left)
        },
        steps: Vec::new(),
        last: Vec::new(),
        manifest: facts.manifest.clone(),
        pending: BTreeSet::new(),
    };
    remover.manifest.roles = left;
    remover.stop();
    remover.note_pending();
    // Names before what they lead to.
    for row in TABLE.iter().rev() {
        if remover.goes(row.roles) {
            remover.row(row);
        }
    }
    remover.finish()
}

struct Remover<'a> {
    facts: &'a Facts,
    purge: bool,
    /// Roles that stay, and that go.
    left: Roles,
    gone: Roles,
    steps: Vec<Step>,
    /// What comes when all files are in their places.
    last: Vec<Step>,
    manifest: Manifest,
    /// Services of before that go on afterwards.
    pending: BTreeSet<String>,
}

impl Remover<'_> {
    fn goes(&self, roles: Roles) -> bool {
        roles.meets(self.gone) && !roles.meets(self.left)
    }

    /// Whether programs of before come back for some role.
    fn comes_back(&self, roles: Roles) -> bool {
        let kept = |row: &Row| {
            let path = row.path(&self.facts.paths).display().to_string();
            self.facts.manifest.kept.contains(&path)
        };
        let program = |row: &&Row| matches!(row.kind, Kind::OldName | Kind::Link);
        !self.purge
            && TABLE
                .iter()
                .filter(program)
                .any(|row| row.roles.meets(roles) && kept(row))
    }

    fn stop(&mut self) {
        let facts = self.facts;
        // The agent before the executor, which it asks.
        for service in services::of(facts.init).iter().rev() {
            if !self.goes(service.roles) {
                continue;
            }
            let now = facts
                .services
                .get(service.name)
                .copied()
                .unwrap_or_default();
            let ours = self.manifest.enabled.remove(service.name);
            let was_active = now.active || self.manifest.pending.remove(service.name);
            let packaged = packages::of_ours(&facts.owned).is_some();
            let back = packaged || self.comes_back(service.roles) && !ours;
            let order = |order| Step::Run {
                words: services::words(facts.init, order, service.name),
                fine: &[],
            };
            if now.active {
                self.steps.push(order(Order::Stop));
            }
            if was_active && back {
                self.pending.insert(service.name.to_owned());
                self.last.insert(0, order(Order::Start));
            }
            if now.enabled && !back {
                self.steps.push(order(Order::Disable));
            }
        }
    }

    /// An interrupted run must not forget whom it has stopped.
    fn note_pending(&mut self) {
        if !self.pending.is_empty() && self.pending != self.facts.manifest.pending {
            let mut manifest = self.facts.manifest.clone();
            manifest.pending.clone_from(&self.pending);
            let path = table::manifest(&self.facts.paths);
            self.steps.insert(0, Step::Record { path, manifest });
        }
    }

    fn row(&mut self, row: &Row) {
        let path = row.path(&self.facts.paths);
        let entry = self.facts.at(&path);
        let name = path.display().to_string();
        let made = self.manifest.made.contains(&name);
        let ours = match row.kind {
            Kind::Link | Kind::OldName => made && is_our_link(&entry.what),
            Kind::Binary | Kind::Service { .. } => made && matches!(entry.what, What::File(_)),
            // Configuration stays, without a purge; with it goes what earlier installations have left, too.
            Kind::Seed { .. } => self.purge && matches!(entry.what, What::File(_)),
            Kind::Folder { .. } | Kind::Mend | Kind::MendInside => return,
        };
        if matches!(row.kind, Kind::Seed { .. }) && !self.purge {
            return;
        }
        let from = table::kept(&self.facts.paths, &path);
        let kept = self.manifest.kept.remove(&name);
        self.manifest.made.remove(&name);
        // Packages that have come after us keep their files.
        if packages::of_ours(&self.facts.owned).is_some() && self.facts.owned.contains_key(&path) {
            return;
        }
        if kept && !self.purge && self.facts.is_there(&from) {
            if self.facts.at(&from).what != entry.what {
                self.steps.push(Step::Restore { path, from });
            }
        } else if ours && !self.in_tree(&path) {
            self.steps.push(Step::Remove { path });
        }
    }

    /// Whether it goes with a whole tree anyway.
    fn in_tree(&self, path: &Path) -> bool {
        self.purge
            && table::TREES
                .iter()
                .any(|(roles, tree)| self.goes(*roles) && path.starts_with(tree))
    }

    fn finish(mut self) -> Plan {
        let facts = self.facts;
        let mut notes = Vec::new();
        let ran = |step: &Step| matches!(step, Step::Remove { path } | Step::Restore { path, .. } if path.starts_with("/etc/systemd"));
        if facts.live && facts.init == Init::Systemd && self.steps.iter().any(ran) {
            self.steps.push(Step::run(&["systemctl", "daemon-reload"]));
        }
        self.steps.append(&mut self.last);
        if self.purge {
            self.purge();
        } else {
            let kept: Vec<&str> = table::TREES
                .iter()
                .filter(|(roles, tree)| self.goes(*roles) && facts.is_there(Path::new(tree)))
                .map(|(_, tree)| *tree)
                .filter(|tree| !tree.contains("/run/"))
                .collect();
            if !kept.is_empty() {
                notes.push(format!(
                    "Kept, with the accounts: {} (--purge removes them)",
                    kept.join(", ")
                ));
            }
        }
        if facts.manifest.made.contains(table::FIREWALL) && self.goes(table::AGENT) {
            notes.push(
                "The firewall's rule for the agent's port stays: uci show firewall | grep ctrl-exec"
                    .to_owned(),
            );
        }
        let own = table::own_state(&facts.paths);
        if self.left.is_empty() {
            if facts.is_there(&own) {
                self.steps.push(Step::RemoveTree { path: own });
            }
        } else if self.manifest != facts.manifest {
            self.steps.push(Step::Record {
                path: table::manifest(&facts.paths),
                manifest: self.manifest,
            });
        }
        Plan {
            steps: self.steps,
            notes,
        }
    }

    fn purge(&mut self) {
        let facts = self.facts;
        for (roles, tree) in table::TREES {
            if self.goes(*roles) && facts.is_there(Path::new(tree)) {
                self.steps.push(Step::RemoveTree { path: tree.into() });
            }
        }
        let scripts = Path::new(table::SCRIPTS);
        if self.goes(table::AGENT) && facts.at(scripts).what == (What::Folder { empty: true }) {
            self.steps.push(Step::RemoveEmpty {
                path: scripts.to_owned(),
            });
        }
        let taken_over = !facts.manifest.kept.is_empty();
        for (roles, alias) in table::OLD_ALIASES {
            let there = matches!(facts.at(Path::new(alias)).what, What::Link(_));
            if taken_over && there && self.goes(*roles) {
                self.steps.push(Step::Remove { path: alias.into() });
            }
        }
        let library = Path::new(table::OLD_LIBRARY);
        if self.left.is_empty() && taken_over && facts.is_there(library) {
            self.steps.push(Step::RemoveTree {
                path: library.to_owned(),
            });
        }
        for (roles, name, _) in ACCOUNTS {
            if !self.goes(*roles) {
                continue;
            }
            let user = facts.uids.contains_key(*name);
            let group = facts.gids.contains_key(*name);
            match accounts::remove(facts.means, name) {
                Some([(of_user, fine), (of_group, fine_too)]) => {
                    if user {
                        self.steps.push(Step::Run {
                            words: of_user,
                            fine,
                        });
                    }
                    if group {
                        self.steps.push(Step::Run {
                            words: of_group,
                            fine: fine_too,
                        });
                    }
                }
                None => {
                    if user {
                        self.steps.push(Step::DropUser { name });
                    }
                    if group {
                        self.steps.push(Step::DropGroup { name });
                    }
                }
            }
        }
    }
}
