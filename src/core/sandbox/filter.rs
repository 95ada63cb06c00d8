//! The system call filter of a profile (spec/executor.md 15.9) as a classic BPF program.

use super::features::Features;
use super::{NotPrepared, Protections};
use crate::core::config::ProfileConfig;

/// A program that waits to be installed.
#[derive(Debug)]
pub struct Program(pub Vec<libc::sock_filter>);

/// `None`: the profile asks for no filter, or it was tried and is not there.
///
/// # Errors
/// It is required and cannot be had.
pub fn program(
    _profile: &ProfileConfig,
    _features: &Features,
    _report: &mut Protections,
) -> Result<Option<Program>, NotPrepared> {
    todo!()
}

impl Program {
    /// One system call, for the child.
    ///
    /// # Errors
    /// The errno.
    pub fn install(&self) -> Result<(), i32> {
        todo!()
    }
}
