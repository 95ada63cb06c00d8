//! What is known of runs on the dispatcher's side (spec/dispatcher.md 13): one file `<reqid>.json` for each in `runs_dir`, in the original's
//! format, which the API and a program of the original beside us read and write too.
//!
//! An agent is asked without any lock; what it said is then merged into the record as it stands on the disk by then, under `.runs.lock`.
//! Merging only ever goes forward, so it does not matter who asked first and who wrote last.

mod advance;
mod record;
mod store;
#[cfg(test)]
mod tests;

pub use advance::Fetched;
pub use record::{AsyncRun, Body, Entry, Record, State, Status, SyncRun};
pub use store::{Listing, Merged, RunError, Store, Tally};
