//! `ctrl-exec-exec`: the root executor (spec/executor.md).

mod describe;
mod house;
mod jobs;
mod supervisor;

use crate::applets::{AppError, Context, Exit};

/// # Errors
/// Whatever keeps it from its work.
pub fn main(_context: &Context, _args: Vec<String>) -> Result<Exit, AppError> {
    todo!()
}
