//! Detached runs: what is known of them lies in files, so that it outlives the agent (spec/agent.md 12).
//!
//! Layout below `async_runs_dir`, all of it private to the agent's user and group:
//!
//! ```text
//! .locks/SCRIPT.lock       flock: somebody runs this script detached (the same file as the original's)
//! OWNER/REQID.json         the record, and the body of `/result` (the original's format with fields of ours)
//! OWNER/REQID.live         flock: somebody answers for this run; holds the number of that process
//! OWNER/REQID.out, .err    the latest output of a script that still runs
//! ```
//!
//! A record that says `running` while nobody holds its `.live` is of a run that was lost: its supervisor crashed, or the host was switched
//! off. Whoever notices first writes that down. Deciding needs no clock and no process table, only the lock, which the kernel frees
//! however its holder ends.

mod live;
mod order;
mod record;
mod store;
mod sweep;
#[cfg(test)]
mod tests;

pub use live::{Hold, signal_holder};
pub use order::{Answer, Order, OrderError};
pub use record::{Head, Key, Record, Status, Via};
pub use store::{Claim, Found, JobError, Refusal, Store};
pub use sweep::{KEPT, Swept};
