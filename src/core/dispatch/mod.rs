//! Asking agents and what becomes of their answers (spec/dispatcher.md 6, 10, 13; spec/api.md 5, 6), as the command line and the API both do it:
//! the requests, one result for each host (`ask`), the objects that results are told as (`objects`), asynchronous runs (`submit`, `follow`,
//! `cancel`) and what a discovery leaves in the registry (`tags`).
//!
//! Nothing here prints. What is worth a line in the log is logged here, so that both programs log the same.
//!
//! Functions that are not `async` and take a [`Store`](crate::core::runs::Store) or a [`Registry`](crate::core::registry::Registry) work on
//! files and may wait up to ten seconds for another writer: a server calls them within [`blocking`]. The `async` ones do so by themselves.
//! Their futures are `Send`. One that is dropped gives up what it waits for; the agents that were asked go on with what they do.

mod ask;
pub mod cancel;
pub mod follow;
pub mod objects;
pub mod submit;
pub mod tags;

pub use ask::{HostResult, Job, TooLarge, ask_all, exchange, text};

use crate::core::logging::Action;
use crate::core::runs::{Record, RunError, Store};
use crate::core::task;
use crate::core::types::ReqId;

/// Runs work on files on a thread that nobody else waits for.
///
/// A panic in it is handed on. Does not return when the runtime ends first: then the caller ends with it.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => std::future::pending().await,
        },
    }
}

/// Writes the record of a run, or says in the log why not: the run itself goes on all the same. Works on files.
///
/// # Errors
/// It cannot be written; that is in the log already.
pub fn keep(store: &Store, record: &Record) -> Result<(), RunError> {
    store
        .create(record)
        .inspect_err(|error| log_not_recorded(error, &record.reqid))
}

fn log_not_recorded(error: &RunError, reqid: &ReqId) {
    Action::new("run-store-fail")
        .field("ERROR", error)
        .field("REQID", reqid)
        .warning();
}

#[cfg(test)]
mod tests;
