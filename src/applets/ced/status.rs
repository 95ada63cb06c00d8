//! `ced status` and `ced wait` (spec/dispatcher.md 10.3, 10.4).

use std::path::PathBuf;
use std::time::{Duration, Instant};

use argh::FromArgs;

use crate::applets::ced::{Call, common, follow, show};
use crate::applets::{AppError, Context, Exit};
use crate::core::dispatch::follow::Agents;
use crate::core::runs::{Record, State, Store};
use crate::core::terminal;
use crate::say;

/// How long `wait` waits unless told otherwise, seconds.
const PATIENCE: u64 = 300;

/// Show how a run is doing: ced status REQID. Agents that have not told their end yet are asked.
#[derive(FromArgs)]
#[argh(help_triggers("-h", "--help"))]
struct StatusArgs {
    /// configuration file (default /etc/ctrl-exec/ctrl-exec.toml, else ctrl-exec.conf)
    #[argh(option)]
    config: Option<PathBuf>,
    /// print the record as one JSON object
    #[argh(switch)]
    json: bool,
    /// request id, as 'ced run' and 'ced jobs' show it
    #[argh(positional)]
    reqid: String,
}

/// Wait until a run has ended on every host, then show it: ced wait REQID. Status 2 when the time is over before that.
#[derive(FromArgs)]
#[argh(help_triggers("-h", "--help"))]
struct WaitArgs {
    /// configuration file (default /etc/ctrl-exec/ctrl-exec.toml, else ctrl-exec.conf)
    #[argh(option)]
    config: Option<PathBuf>,
    /// print the record as one JSON object
    #[argh(switch)]
    json: bool,
    /// seconds to wait at most (default 300); 0 asks once
    #[argh(option, default = "PATIENCE")]
    timeout: u64,
    /// request id, as 'ced run' and 'ced jobs' show it
    #[argh(positional)]
    reqid: String,
}

pub(super) fn status(context: &Context, call: &Call) -> Result<Exit, AppError> {
    let args: StatusArgs = call.parse()?;
    let config = common::load_config(context, args.config.as_deref())?;
    let store = common::run_store(&config);
    let mut record = follow::find(&store, &args.reqid, args.json)?;
    if !record.is_complete() {
        let agents = follow::agents(context, &config)?;
        record = common::block_on(follow::refresh(&agents, &store, record, None))?;
    }
    print(&record, args.json);
    Ok(Exit::Success)
}

pub(super) fn wait(context: &Context, call: &Call) -> Result<Exit, AppError> {
    let args: WaitArgs = call.parse()?;
    let config = common::load_config(context, args.config.as_deref())?;
    let store = common::run_store(&config);
    let mut record = follow::find(&store, &args.reqid, args.json)?;
    if !record.is_complete() {
        let agents = follow::agents(context, &config)?;
        let timeout = Duration::from_secs(args.timeout);
        record = common::block_on(poll(&agents, &store, record, timeout))?;
    }
    print(&record, args.json);
    Ok(match record.state() {
        State::Running(_) => Exit::TimedOut,
        State::Failed(_) | State::Expired(_) => Exit::Failure,
        State::Done => Exit::Success,
    })
}

fn print(record: &Record, as_json: bool) {
    if as_json {
        say!("{}", show::record_json(record));
    } else {
        terminal::stdout_bytes(show::record(record).as_bytes());
    }
}

/// Asks again and again until all have ended or the time is over. What is still being asked then is given up; only a single look
/// (`--timeout 0`) takes the time that an exchange takes.
async fn poll(agents: &Agents, store: &Store, mut record: Record, timeout: Duration) -> Record {
    let start = Instant::now();
    let mut begun = Duration::ZERO;
    for polls in 1.. {
        let left = timeout.saturating_sub(start.elapsed());
        let limit = (!timeout.is_zero()).then_some(left);
        record = follow::refresh(agents, store, record, limit).await;
        if record.is_complete() {
            break;
        }
        let Some(next) = next_poll(polls, begun, timeout) else {
            tokio::time::sleep(timeout.saturating_sub(start.elapsed())).await;
            break;
        };
        tokio::time::sleep(next.saturating_sub(start.elapsed())).await;
        begun = start.elapsed();
        if begun >= timeout {
            break;
        }
    }
    record
}

/// When to ask next, after so many polls of which the last began at `last`; `None`: not again.
///
/// At 0, 1, 3 and 6 s, then every 10 s: an agent of the original blocks whoever connects more than ten times in a minute, and the submission
/// was one of these. Near the end one more look is taken, so that a run that ends just in time is seen.
fn next_poll(polls: u32, last: Duration, timeout: Duration) -> Option<Duration> {
    let gap = match polls {
        1..=3 => u64::from(polls),
        _ => 10,
    };
    let next = last + Duration::from_secs(gap);
    let closing = timeout - (timeout / 4).min(Duration::from_secs(1));
    if next <= closing {
        return Some(next);
    }
    let worth = closing > last && (polls <= 4 || closing - last >= Duration::from_secs(5));
    worth.then_some(closing)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Polls begin at these times, seconds, when asking takes none.
    fn times(timeout: u64) -> Vec<f64> {
        let timeout = Duration::from_secs(timeout);
        let mut times = vec![0.0];
        let mut last = Duration::ZERO;
        for polls in 1.. {
            match next_poll(polls, last, timeout) {
                Some(next) => last = next,
                None => break,
            }
            times.push(last.as_secs_f64());
        }
        times
    }

    #[test]
    fn polls_are_rare_and_the_last_one_is_near_the_end() {
        assert_eq!(times(0), [0.0]);
        assert_eq!(times(1), [0.0, 0.75]);
        assert_eq!(times(2), [0.0, 1.0, 1.5]);
        assert_eq!(times(9), [0.0, 1.0, 3.0, 6.0, 8.0]);
        assert_eq!(times(30), [0.0, 1.0, 3.0, 6.0, 16.0, 26.0]);
        assert_eq!(times(35), [0.0, 1.0, 3.0, 6.0, 16.0, 26.0, 34.0]);
        assert!(next_poll(5, Duration::from_secs(16), Duration::from_secs(u64::MAX)).is_some());
    }

    #[test]
    fn no_wait_runs_into_the_rate_limit_of_an_agent() {
        for timeout in 0..=180 {
            // The submission came first.
            let mut connections = vec![0.0];
            connections.extend(times(timeout));
            for (index, begin) in connections.iter().enumerate() {
                let within = connections[index..]
                    .iter()
                    .filter(|at| **at - begin < 60.0)
                    .count();
                assert!(within <= 10, "{timeout}: {within} from {begin}");
            }
        }
    }
}
