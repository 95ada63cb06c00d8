//! `ctrl-exec-exec check` (spec/executor.md 15.12).

use crate::applets::{AppError, Context, Exit};

/// # Errors
/// Whatever keeps it from its work.
pub(super) fn main(_context: &Context, _args: Vec<String>) -> Result<Exit, AppError> {
    todo!()
}
