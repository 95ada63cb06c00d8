//! `cea job-supervisor`: the process that answers for one run. The agent starts it, hears one word from it and forgets it.
//!
//! It takes the locks, writes the `running` record, says `accepted`, leaves the agent's session, runs the script and writes the `done`
//! record. SIGUSR1 ends the script because somebody asked for it, SIGTERM because the host stops; either way the record says so.

use std::io::Write as _;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use crate::applets::{AppError, Context, Exit, detach};
use crate::core::clock::{self, Clock};
use crate::core::exec::Outcome;
use crate::core::exec::runner::{RunSpec, Watch, run_watched};
use crate::core::exec::tail::Tails;
use crate::core::jobs::{Answer, Claim, Order, Record, Refusal, Store, Via};
use crate::core::logging::Action;
use crate::core::sys;
use crate::core::task;

/// The mode, which no person needs.
pub(in crate::applets::cea) const MODE: &str = "job-supervisor";

const CANCELLED: &str = "cancelled";
const STOPPED: &str = "ended: its supervisor was told to stop, the host may be shutting down";

/// Progress is written down at most this often, and less often the longer a run lasts: every write wears a flash memory.
const PROGRESS_PAUSE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(15));

/// Entry of the mode.
///
/// # Errors
/// There is no order on stdin, or the runtime cannot be had. That the run may not begin is no error but an answer.
pub(in crate::applets::cea) fn supervise(context: &Context) -> Result<Exit, AppError> {
    if !detach::is_detached(context) {
        return Err(AppError::usage(
            "job-supervisor is started by the agent itself, never by hand",
        ));
    }
    let failed = |what: &str, e: &dyn std::fmt::Display| AppError::failed(format!("{what}: {e}"));
    sys::inherited::close_on_exec().map_err(|e| failed("Cannot mark inherited descriptors", &e))?;
    let order = Order::read(std::io::stdin().lock()).map_err(|e| failed("No order", &e))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| failed("Cannot start the runtime", &e))?;
    let exit = task::block_on(&runtime, begin(order));
    runtime.shutdown_background();
    exit
}

async fn begin(order: Order) -> Result<Exit, AppError> {
    let signals = match Signals::new() {
        Ok(signals) => signals,
        Err(error) => return say(&Answer::Failed(error.to_string())),
    };
    let store = Store::new(&order.runs, order.max_output);
    let key = order.key();
    let claim = match store.claim(&key, &order.script) {
        Ok(claim) => claim,
        Err(Refusal::Busy) => return say(&Answer::Busy),
        Err(Refusal::Used) => return say(&Answer::Used),
        Err(Refusal::Failed(error)) => return say(&Answer::Failed(error.to_string())),
    };
    let record = Record::running(&key, &order.script, order.started.clone(), Via::Agent);
    if let Err(error) = claim.write(&record) {
        claim.withdraw();
        return say(&Answer::Failed(error.to_string()));
    }
    // Out of the agent's session before anybody relies on us.
    let _ = rustix::process::setsid();
    if say(&Answer::Accepted).is_err() {
        // The agent is gone, or does not listen any more: it has told its caller that there is no such run.
        claim.withdraw();
        return Ok(Exit::Failure);
    }
    detach::cut_loose()?;
    let clock = Clock::system(clock::parse_iso(&order.started).unwrap_or(0));
    let outcome = run(&claim, order.into_spec(), signals).await;
    // For the agent's count, if it is still there to hear it.
    let exit = match outcome.exit {
        0 => Exit::Success,
        _ => Exit::Failure,
    };
    finish(claim, record, outcome, &clock);
    Ok(exit)
}

/// One line to the agent.
fn say(answer: &Answer) -> Result<Exit, AppError> {
    let mut stdout = std::io::stdout().lock();
    stdout
        .write_all(answer.to_line().as_bytes())
        .and_then(|()| stdout.flush())
        .map(|()| Exit::Success)
        .map_err(|e| AppError::failed(format!("Cannot answer the agent: {e}")))
}

async fn run(claim: &Claim, spec: RunSpec, signals: Signals) -> Outcome {
    let tails = Tails::default();
    let (wish, stop) = watch::channel(None);
    let watch = Watch {
        tails: tails.clone(),
        stop,
    };
    tokio::select! {
        outcome = run_watched(spec, Some(watch)) => outcome,
        never = async { tokio::join!(signals.pass_on(wish), write_down(claim, &tails)).0 } => match never {},
    }
}

enum Never {}

/// The output so far, for `/result`.
async fn write_down(claim: &Claim, tails: &Tails) -> Never {
    let began = Instant::now();
    let mut written = 0;
    loop {
        sleep((began.elapsed() / 10).clamp(PROGRESS_PAUSE.0, PROGRESS_PAUSE.1)).await;
        let total = tails.total();
        if total == written {
            continue;
        }
        written = total;
        let (stdout, stderr) = tails.latest();
        // Nobody is worse off without it.
        let _ = claim.store().write_progress(claim.key(), &stdout, &stderr);
    }
}

fn finish(claim: Claim, running: Record, outcome: Outcome, clock: &Clock) {
    let exit = outcome.exit;
    let unsent = outcome.stdin_unsent;
    let done = running.done(outcome, clock.iso_now());
    if let Some(bytes) = unsent {
        Action::new("stdin-timeout")
            .field("BYTES", bytes)
            .field("REQID", &done.reqid)
            .field("SCRIPT", &done.script)
            .warning();
    }
    Action::new("run-async-done")
        .field("DISPATCHER", &done.owner)
        .field("EXIT", exit)
        .field("REQID", &done.reqid)
        .field("SCRIPT", &done.script)
        .info();
    super::store_done(claim, done);
}

struct Signals {
    cancel: Signal,
    term: Signal,
    int: Signal,
    hup: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            cancel: signal(SignalKind::user_defined1())?,
            term: signal(SignalKind::terminate())?,
            int: signal(SignalKind::interrupt())?,
            hup: signal(SignalKind::hangup())?,
        })
    }

    /// The first wish counts.
    async fn pass_on(mut self, wish: watch::Sender<Option<&'static str>>) -> Never {
        loop {
            let why = tokio::select! {
                _ = self.cancel.recv() => CANCELLED,
                _ = self.term.recv() => STOPPED,
                _ = self.int.recv() => STOPPED,
                // A terminal that goes away, or a reload that was meant for the agent.
                _ = self.hup.recv() => continue,
            };
            wish.send_if_modified(|wish| {
                let first = wish.is_none();
                wish.get_or_insert(why);
                first
            });
        }
    }
}
