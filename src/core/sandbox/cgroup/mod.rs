//! One cgroup v2 leaf per run, or for several in turn (spec/executor.md 15.7, 15.8; [`Hierarchy::keep`]).
//!
//! ```text
//! <base>/               our own group, or `cgroup_parent`; in the root group `/ctrl-exec`
//!   supervisor/         ourselves: a group with controllers for its children must hold no processes
//!   runs/run-<pid>/     one run; <pid> is its supervisor
//! ```

mod leaf;
mod place;

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

use super::{Level, NotPrepared, Protection, Protections};
use crate::core::config::{Baseline, ExecutorConfig, ProfileConfig, Want};

pub use leaf::{Leaf, Spare, Usage};

/// What limits and accounts need.
const CONTROLLERS: [&str; 4] = ["memory", "pids", "cpu", "io"];

/// The group below which runs get theirs.
#[derive(Debug)]
pub struct Hierarchy {
    runs: PathBuf,
    /// Controllers that the groups of runs have.
    controllers: BTreeSet<String>,
}

impl Hierarchy {
    /// Finds or makes our groups, moves ourselves out of the way, and switches controllers on.
    ///
    /// # Errors
    /// Why there is no usable cgroup v2.
    pub fn set_up(config: &ExecutorConfig) -> Result<Self, String> {
        let base = match &config.cgroup_parent {
            Some(parent) => place::given(parent)?,
            None => place::own()?,
        };
        Self::below(&base)
    }

    /// Groups of their own beside those of any service, for one process that tries a run out. To be ended by [`Hierarchy::dissolve`].
    ///
    /// # Errors
    /// Why there is no usable cgroup v2.
    pub fn apart() -> Result<Self, String> {
        Self::below(&place::apart()?)
    }

    /// Removes the groups again; what still runs in one keeps it.
    pub fn dissolve(self) {
        let _ = std::fs::remove_dir(&self.runs);
        if let Some(base) = self.runs.parent() {
            let _ = std::fs::remove_dir(base);
        }
    }

    fn below(base: &Path) -> Result<Self, String> {
        let runs = base.join("runs");
        make(&runs).map_err(|e| cannot("make", &runs, &e))?;
        for group in [base, runs.as_path()] {
            switch_on(group);
        }
        let hierarchy = Self {
            controllers: words(&runs.join("cgroup.subtree_control")),
            runs,
        };
        hierarchy.sweep();
        Ok(hierarchy)
    }

    /// Controllers that limits can be set with.
    pub fn controllers(&self) -> impl Iterator<Item = &str> {
        self.controllers.iter().map(String::as_str)
    }

    /// The directory that holds the groups of all runs.
    pub fn runs(&self) -> &Path {
        &self.runs
    }

    /// The name of a run's group, from the process id of its supervisor.
    pub fn name_of(supervisor: u32) -> String {
        format!("run-{supervisor}")
    }

    /// Makes the group of one run and writes the limits of its profile.
    ///
    /// A group of that name with processes that an earlier run was allowed to leave behind stays theirs; the new one gets a number.
    /// The `spare` one of the same name is taken instead, or removed.
    ///
    /// # Errors
    /// The profile requires its group, and the group cannot be made or a limit not be set.
    pub fn leaf(
        &self,
        name: &str,
        spare: Option<Spare>,
        profile: &ProfileConfig,
        report: &mut Protections,
    ) -> Result<Option<Leaf>, NotPrepared> {
        if profile.cgroup == Want::Off {
            report.set(Protection::Cgroup, Level::Off);
            if spare.is_some() {
                self.remove_spare(name);
            }
            return Ok(None);
        }
        let spare = spare.and_then(|spare| spare.again(self.runs.join(name)));
        let leaf = match spare.map_or_else(|| self.make_leaf(name), Ok) {
            Ok(leaf) => leaf,
            Err(e) => {
                let why = cannot("make", &self.runs.join(name), &e);
                return unavailable(&why, profile, report).map(|()| None);
            }
        };
        let unset = leaf.limit(profile);
        if unset.is_empty() {
            report.set(Protection::Cgroup, Level::Enforced);
            return Ok(Some(leaf));
        }
        let why = format!("cannot set {}", unset.join(", "));
        match unavailable(&why, profile, report) {
            Ok(()) => Ok(Some(leaf)),
            Err(refused) => {
                leaf.remove();
                Err(refused)
            }
        }
    }

    /// What is left of a group for the next run of the same supervisor, after a run that has left nothing in it and that was not able to
    /// change anything about it; making and removing groups is a twentieth of what a short run costs. Not where there are controllers: what
    /// the last run has used of memory would count for the next one.
    ///
    /// # Errors
    /// The group cannot serve again: it is to be removed.
    pub fn keep(&self, name: &str, leaf: Leaf) -> Result<Spare, Leaf> {
        if self.controllers.is_empty() && leaf.dir() == self.runs.join(name) {
            Ok(leaf.into_spare())
        } else {
            Err(leaf)
        }
    }

    /// Removes the group that a supervisor had kept for another run.
    pub fn remove_spare(&self, name: &str) {
        let _ = std::fs::remove_dir(self.runs.join(name));
    }

    fn make_leaf(&self, name: &str) -> io::Result<Leaf> {
        for number in 0..100 {
            let dir = self.runs.join(numbered(name, number));
            match std::fs::create_dir(&dir) {
                Ok(()) => return Leaf::open(dir),
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                    // Empty: a supervisor with the same number once ended without clearing up.
                    if std::fs::remove_dir(&dir).is_ok() && std::fs::create_dir(&dir).is_ok() {
                        return Leaf::open(dir);
                    }
                }
                Err(e) => return Err(e),
            }
        }
        Err(io::ErrorKind::AlreadyExists.into())
    }

    /// Kills what the run of a supervisor that died has left, and removes its group. For the listener, which knows the number only.
    /// Returns how many processes there were.
    pub fn kill_run(&self, supervisor: u32) -> usize {
        let name = Self::name_of(supervisor);
        let newest = (0..100)
            .map(|number| self.runs.join(numbered(&name, number)))
            .take_while(|dir| dir.is_dir())
            .last();
        let Some(leaf) = newest.and_then(|dir| Leaf::open(dir).ok()) else {
            return 0;
        };
        let killed = leaf.kill();
        leaf.remove();
        killed
    }

    /// Removes groups without processes whose supervisor has gone.
    pub fn sweep(&self) {
        let Ok(entries) = std::fs::read_dir(&self.runs) else {
            return;
        };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let supervisor = name
                .to_str()
                .and_then(|n| n.strip_prefix("run-"))
                .and_then(|n| n.split('.').next())
                .and_then(|n| n.parse::<u32>().ok());
            // A living supervisor may be about to fill its group.
            if supervisor.is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists()) {
                // The kernel refuses to remove one with processes in it.
                let _ = std::fs::remove_dir(entry.path());
            }
        }
    }
}

/// What a profile comes to when there is no group (or not a complete one) for its runs.
///
/// # Errors
/// The profile requires it.
pub fn unavailable(
    why: &str,
    profile: &ProfileConfig,
    report: &mut Protections,
) -> Result<(), NotPrepared> {
    match profile.cgroup {
        Want::Off => report.set(Protection::Cgroup, Level::Off),
        Want::Try => report.set(Protection::Cgroup, Level::Degraded(why.to_owned())),
        Want::Require => {
            let text = format!(
                "the profile requires a cgroup: {why} (enable the controllers, or set 'cgroup = try')"
            );
            return Err(NotPrepared::new("feature-missing", text));
        }
    }
    Ok(())
}

/// Files and values beyond what the profile names, written where they are there.
fn extras_of(profile: &ProfileConfig) -> Vec<(&'static str, &'static str)> {
    let mut extras = Vec::new();
    if profile.baseline == Baseline::Strict {
        // Without this `memory.max` only means that the rest goes to the disk; and half a dead tree is of no use.
        if profile.cgroup_limits.contains_key("memory.max") {
            extras.push(("memory.swap.max", "0"));
        }
        extras.push(("memory.oom.group", "1"));
    }
    extras
}

/// The limits of a profile, as single writes.
fn limits_of(profile: &ProfileConfig) -> impl Iterator<Item = (&'static str, &str)> {
    let limits = profile.cgroup_limits.iter();
    // `io.max` takes one device at a time.
    limits.flat_map(|(file, value)| value.lines().map(|line| (*file, line)))
}

fn numbered(name: &str, number: usize) -> String {
    if number == 0 {
        name.to_owned()
    } else {
        format!("{name}.{number}")
    }
}

fn make(dir: &Path) -> io::Result<()> {
    match std::fs::create_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}

/// One by one: the kernel takes all words of a line or none.
fn switch_on(group: &Path) {
    let available = words(&group.join("cgroup.controllers"));
    for controller in CONTROLLERS.iter().filter(|c| available.contains(**c)) {
        let _ = std::fs::write(
            group.join("cgroup.subtree_control"),
            format!("+{controller}"),
        );
    }
}

fn words(file: &Path) -> BTreeSet<String> {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    text.split_whitespace().map(str::to_owned).collect()
}

fn cannot(what: &str, path: &Path, error: &io::Error) -> String {
    format!("cannot {what} '{}': {error}", path.display())
}

#[cfg(test)]
mod tests;
