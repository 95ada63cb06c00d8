//! What install has done, one word and one name a line. It is written before anything is done, so that an interrupted installation
//! knows what it was about; `uninstall` removes nothing that is not both in here and in the table.

use std::collections::BTreeSet;
use std::fmt;

use super::table::{ROLES, Roles};

#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Manifest {
    pub(super) roles: Roles,
    /// Files that install has put there.
    pub(super) made: BTreeSet<String>,
    /// Files that were there before, and are kept.
    pub(super) kept: BTreeSet<String>,
    /// Services that install has enabled.
    pub(super) enabled: BTreeSet<String>,
    /// Services that are to be started or restarted when everything is in place.
    pub(super) pending: BTreeSet<String>,
}

impl Manifest {
    /// Lines that make no sense are of a later release, and left out.
    pub(super) fn parse(text: &str) -> Self {
        let mut found = Self::default();
        for line in text.lines() {
            let Some((word, name)) = line.split_once(' ') else {
                continue;
            };
            let set = match word {
                "role" => {
                    if let Some((_, role)) = ROLES.iter().find(|(role, _)| *role == name) {
                        found.roles = found.roles.with(*role);
                    }
                    continue;
                }
                "made" => &mut found.made,
                "kept" => &mut found.kept,
                "enabled" => &mut found.enabled,
                "pending" => &mut found.pending,
                _ => continue,
            };
            set.insert(name.to_owned());
        }
        found
    }
}

impl fmt::Display for Manifest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("# Written by ctrl-exec install; ctrl-exec uninstall goes by it.\n")?;
        for name in self.roles.names() {
            writeln!(f, "role {name}")?;
        }
        for (word, names) in [
            ("made", &self.made),
            ("kept", &self.kept),
            ("enabled", &self.enabled),
            ("pending", &self.pending),
        ] {
            for name in names {
                writeln!(f, "{word} {name}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::table::{AGENT, API};
    use super::*;

    #[test]
    fn it_is_read_as_it_was_written() {
        let set = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect();
        let manifest = Manifest {
            roles: AGENT.with(API),
            made: set(&["/usr/bin/cea", "/usr/bin/ctrl-exec"]),
            kept: set(&["/usr/local/bin/ctrl-exec-agent"]),
            enabled: set(&["ctrl-exec-agent.service"]),
            pending: BTreeSet::new(),
        };
        assert_eq!(Manifest::parse(&manifest.to_string()), manifest);
        assert_eq!(
            Manifest::parse("# x\nrole king\nnonsense\nfuture /x\n"),
            Manifest::default()
        );
    }
}
