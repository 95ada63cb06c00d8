//! The file system as a script sees it (spec/executor.md 15.4): a plan made beforehand, carried out in the child by system calls alone.
//!
//! Order: nothing reaches the host any more; everything read-only (with `writable`); private temporary directories; carve-outs; devices;
//! protected paths; hidden paths; the checked copy of the script; a fresh `/proc`; the kernel's switches.
//!
//! With `writable` all of `/proc` is read-only too, as in the original: what the child itself has to write there (`oom_score_adj`,
//! `attr/apparmor/exec`) it must have open before [`MountPlan::apply`].

mod build;
mod kept;
mod lookup;
mod mountinfo;
mod mounts;
mod parts;
mod steps;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_mounted;

use std::path::Path;

pub use mounts::Mounts;

use super::features::Features;
use super::{NotPrepared, ProtectedPaths, Protections};
use crate::core::config::ProfileConfig;
use crate::core::sandbox::child::{Step, StepFailed};
use crate::core::sys::mounts::own_namespace;

/// What a view is made from.
#[derive(Debug)]
pub struct ViewOrder<'a> {
    pub profile: &'a ProfileConfig,
    pub protected: &'a ProtectedPaths,
    pub script: &'a Path,
    /// The bytes that were checked, when exactly these shall run.
    pub copy: Option<Vec<u8>>,
    /// The script runs in a PID namespace of its own: `/proc` must be mounted anew.
    pub fresh_proc: bool,
    pub features: &'a Features,
    /// Those of this process.
    pub mounts: &'a Mounts,
}

/// The steps, ready to be carried out.
#[derive(Debug)]
pub struct MountPlan {
    steps: Vec<steps::Planned>,
    warnings: Vec<String>,
    /// Only for a view that the script cannot change and in which nothing is its own.
    shared: Option<kept::Shared>,
}

/// Looks up which of the paths exist and where they really are, and plans from that.
///
/// # Errors
/// Something that the profile requires cannot be had, a path to be protected leads through somebody else's symbolic link, or the script
/// would be hidden from itself.
pub fn plan(order: ViewOrder<'_>, report: &mut Protections) -> Result<MountPlan, NotPrepared> {
    build::build(order, &lookup::Host::default(), report)
}

impl MountPlan {
    /// What the plan leaves out and why, such as a writable path that does not exist.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Whether the child is to be born in a mount namespace of its own. Else there is one for it already.
    pub fn needs_namespace(&self) -> bool {
        self.shared.as_ref().is_none_or(|view| !view.is_found())
    }

    /// Carries the plan out, in the child, right after it got its mount namespace, if it [needs](Self::needs_namespace) one. System calls
    /// only.
    ///
    /// # Errors
    /// The first step that failed.
    pub fn apply(&self) -> Result<(), StepFailed> {
        let Some(shared) = &self.shared else {
            return self.build();
        };
        if shared.is_found() {
            let failed = Step::Namespaces.failed();
            match shared.enter(&self.steps).map_err(&failed)? {
                kept::Entered::View => return Ok(()),
                kept::Entered::Home => own_namespace().map_err(&failed)?,
            }
        }
        self.build()?;
        shared.offer(&self.steps);
        Ok(())
    }

    fn build(&self) -> Result<(), StepFailed> {
        let mut stage = Ok(());
        self.steps
            .iter()
            .try_for_each(|planned| planned.run(&mut stage))
    }
}
