//! `ced jobs`: the runs that are on record, as they were last seen. No agent is asked.

use std::path::PathBuf;

use argh::FromArgs;
use serde_json::json;

use crate::applets::ced::{Call, common};
use crate::applets::{AppError, Context, Exit};
use crate::core::config::diagnostics::printable;
use crate::core::runs::{Record, State};
use crate::{complain, say};

/// List the runs that are on record, newest first, as they were last seen; 'ced status REQID' asks the agents.
#[derive(FromArgs)]
#[argh(help_triggers("-h", "--help"))]
struct JobsArgs {
    /// configuration file (default /etc/ctrl-exec/ctrl-exec.toml, else ctrl-exec.conf)
    #[argh(option)]
    config: Option<PathBuf>,
    /// print one JSON object instead of a table
    #[argh(switch)]
    json: bool,
}

/// What the list shows of a run.
struct Job {
    reqid: String,
    script: String,
    mode: &'static str,
    time: i64,
    state: State,
    hosts: usize,
}

impl Job {
    fn of(record: &Record) -> Self {
        Self {
            reqid: record.reqid.to_string(),
            script: record.script.clone(),
            mode: record.mode(),
            time: record.time(),
            state: record.state(),
            hosts: record.size(),
        }
    }
}

pub(super) fn main(context: &Context, call: &Call) -> Result<Exit, AppError> {
    let args: JobsArgs = call.parse()?;
    let config = common::load_config(context, args.config.as_deref())?;
    let listing = common::run_store(&config)
        .list(Job::of)
        .map_err(|e| AppError::failed(e.to_string()))?;
    for problem in &listing.damaged {
        complain!("Warning: {problem}");
    }
    let now = common::clock(context, &config).now();
    if args.json {
        let jobs: Vec<_> = listing
            .runs
            .iter()
            .map(|job| {
                let count = match job.state {
                    State::Running(n) | State::Failed(n) | State::Expired(n) => n,
                    State::Done => job.hosts,
                };
                json!({"reqid": job.reqid, "script": job.script, "mode": job.mode, "time": job.time, "age": (now - job.time).max(0),
                       "state": job.state.as_str(), "count": count, "hosts": job.hosts})
            })
            .collect();
        say!("{}", json!({"ok": 1, "jobs": jobs}));
        return Ok(Exit::Success);
    }
    if listing.runs.is_empty() {
        say!("No runs on record.");
        return Ok(Exit::Success);
    }
    say!("{}", row("REQID", "AGE", "MODE", "SCRIPT", "STATE"));
    say!("{}", "-".repeat(78));
    for job in listing.runs {
        say!(
            "{}",
            row(
                &job.reqid,
                &age(now - job.time),
                job.mode,
                &printable(&job.script),
                &job.state.told(job.hosts)
            )
        );
    }
    Ok(Exit::Success)
}

pub(super) fn row(reqid: &str, age: &str, mode: &str, script: &str, state: &str) -> String {
    format!("{reqid:<16}  {age:>5}  {mode:<5}  {script:<28}  {state}")
}

/// Seconds in the largest unit of which there are two or more.
pub(super) fn age(seconds: i64) -> String {
    match seconds.max(0) {
        s @ ..120 => format!("{s}s"),
        s @ ..7200 => format!("{}m", s / 60),
        s @ ..172_800 => format!("{}h", s / 3600),
        s => format!("{}d", s / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_short() {
        for (seconds, text) in [
            (-5, "0s"),
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (7199, "119m"),
            (7200, "2h"),
            (172_800, "2d"),
            (31_622_400, "366d"),
        ] {
            assert_eq!(age(seconds), text);
        }
    }
}
