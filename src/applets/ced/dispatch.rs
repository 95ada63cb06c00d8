//! What the verbs that ask agents share: when each host is printed, and as whom.
//!
//! Order: results come in the order asked for. On a terminal, where a person waits, each host is printed as soon as it answers;
//! otherwise a host is printed as soon as all hosts before it have answered.

use std::io::IsTerminal as _;
use std::sync::Arc;

use tokio::sync::Semaphore;

use crate::applets::ced::common;
use crate::applets::{AppError, Context};
use crate::core::config::DispatcherConfig;
use crate::core::dispatch::{HostResult, Job, ask_all};
use crate::core::registry::Target;

/// Sends the job to every target and calls `show` for each result, in the order described above.
pub(crate) fn dispatch(
    context: &Context,
    config: &DispatcherConfig,
    targets: Vec<Target>,
    job: &Job,
    mut show: impl FnMut(&HostResult) + Send,
) -> Result<Vec<Arc<HostResult>>, AppError> {
    let client = common::client(context, config)?;
    let live = std::io::stdout().is_terminal();
    let mut waiting: Vec<Option<Arc<HostResult>>> = targets.iter().map(|_| None).collect();
    let mut next = 0;
    let mut on_result = |index: usize, result: &Arc<HostResult>| {
        if live {
            show(result);
            return;
        }
        waiting[index] = Some(result.clone());
        while let Some(ready) = waiting.get_mut(next).and_then(Option::take) {
            show(&ready);
            next += 1;
        }
    };
    let slots = slots(config);
    common::block_on(ask_all(&client, targets, &slots, job, &mut on_result))
}

/// How many hosts are asked at a time.
pub(super) fn slots(config: &DispatcherConfig) -> Arc<Semaphore> {
    Arc::new(Semaphore::new(config.max_parallel.max(1)))
}

/// `name` or `name (what the agent calls itself)`.
pub(crate) fn label(result: &HostResult) -> String {
    match result.reported() {
        Some(name) => format!("{} ({})", result.host(), name.escape_debug()),
        None => result.host().to_owned(),
    }
}
