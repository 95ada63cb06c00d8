//! `ced run --async`: the agents take the script over and answer at once (spec/dispatcher.md 10.2).

use std::collections::BTreeMap;
use std::time::SystemTime;

use serde_json::{Map, Value, json};

use crate::applets::ced::dispatch::{HostResult, Job, dispatch};
use crate::applets::ced::run::Plan;
use crate::applets::ced::{common, show};
use crate::applets::{AppError, Context, Exit};
use crate::core::client::error::ExchangeError;
use crate::core::client::exchange::Answer;
use crate::core::config::DispatcherConfig;
use crate::core::config::diagnostics::printable;
use crate::core::logging::Action;
use crate::core::registry::{self, Registry, Target};
use crate::core::runs::{AsyncRun, Body, Entry, Record, Status};
use crate::core::wire::errors;
use crate::say;

/// A record has one entry for each host, so nobody is asked twice.
pub(super) fn once_each(targets: Vec<Target>) -> Result<Vec<Target>, AppError> {
    let mut chosen: Vec<Target> = Vec::with_capacity(targets.len());
    for target in targets {
        match chosen.iter().find(|t| t.name == target.name) {
            None => chosen.push(target),
            Some(same) if same.port == target.port => {}
            Some(_) => {
                return Err(AppError::usage(format!(
                    "'{}' is named with two ports: an asynchronous run has one result for each host",
                    target.name
                )));
            }
        }
    }
    Ok(chosen)
}

/// What became of one submission.
struct Verdict {
    status: Status,
    /// Empty when accepted.
    error: String,
    /// The agent may have taken the run although its answer did not arrive.
    unknown: bool,
}

/// Only 202 means that the agent has the run.
fn judge(answer: &Result<Answer, ExchangeError>) -> Verdict {
    let (status, error) = match answer {
        Ok(answer) if answer.status == 202 => (Status::Accepted, String::new()),
        Ok(answer) => {
            let exit = answer.body.get("exit").and_then(Value::as_i64);
            let error = match (show::text(&answer.body, "error"), exit) {
                ("", Some(exit)) if exit >= 0 => format!(
                    "the agent does not know asynchronous runs: it ran the script at once (exit {exit})"
                ),
                ("", _) => "the agent did not say that it has accepted the run".to_owned(),
                (error, _) => error.to_owned(),
            };
            (Status::Error, error)
        }
        Err(ExchangeError::Busy(words)) if words.is_empty() => {
            (Status::Busy, errors::SCRIPT_BUSY.to_owned())
        }
        Err(ExchangeError::Busy(words)) => (Status::Busy, words.clone()),
        Err(error) => (Status::Error, error.to_string()),
    };
    let unknown = matches!(
        answer,
        Err(ExchangeError::Closed | ExchangeError::Lost(_) | ExchangeError::ReadTimeout(_))
    );
    Verdict {
        status,
        error,
        unknown,
    }
}

/// Submits, records, prints.
pub(super) fn submit(
    context: &Context,
    config: &DispatcherConfig,
    plan: &Plan,
    job: &Job,
) -> Result<Exit, AppError> {
    let reqid = &plan.reqid;
    let store = common::run_store(config);
    // Ages of files are told by the clock of the kernel, whatever ours says.
    store.purge(SystemTime::now());
    let ports = own_ports(config, &plan.targets);
    let entry = |target: &Target, status: Status| {
        let entry = Entry::new(status);
        match ports.get(target.name.as_str()) {
            Some(&port) => entry.with("port", port),
            None => entry,
        }
    };
    // Before anything is sent: a dispatcher that dies half-way must not leave runs behind that nobody can find.
    let run = AsyncRun {
        hosts: plan
            .targets
            .iter()
            .map(|t| (t.name.to_string(), entry(t, Status::Accepted)))
            .collect(),
        created: common::clock(context, config).now(),
    };
    let record = Record::new(reqid.clone(), plan.script.as_str(), Body::Async(run));
    let recorded = store.create(&record);
    if let Err(error) = &recorded {
        common::warn_not_recorded(error, reqid);
    }
    if !plan.json {
        say!("Submitted async run  req:{reqid}");
    }

    let sent = dispatch(context, config, plan.targets.clone(), job, |result| {
        let verdict = judge(&result.answer);
        log(result, &verdict, plan);
        if !plan.json {
            print(result, &verdict);
        }
    });
    let results = match sent {
        Ok(results) => results,
        Err(error) => {
            let unsent = plan.targets.iter().map(|t| {
                let why = "nothing was sent: the dispatcher could not begin";
                (
                    t.name.to_string(),
                    entry(t, Status::Error).with("error", why),
                )
            });
            store.settle(record, unsent.collect());
            return Err(error);
        }
    };
    let mut submitted = BTreeMap::new();
    let mut accepted = false;
    let mut objects: Vec<Map<String, Value>> = Vec::new();
    for result in &results {
        let verdict = judge(&result.answer);
        accepted |= verdict.status == Status::Accepted;
        // What may run is asked after: a host that does not know of it says so.
        let stored = if verdict.unknown {
            Status::Accepted
        } else {
            verdict.status.clone()
        };
        let mut entry = entry(&result.target, stored);
        let mut object = result.object(reqid.as_str(), |_| json!({"script": plan.script}));
        object.insert("status".to_owned(), verdict.status.as_str().into());
        object.insert("reqid".to_owned(), reqid.as_str().into());
        if !verdict.error.is_empty() {
            let key = if verdict.unknown {
                "fetch_error"
            } else {
                "error"
            };
            entry = entry.with(key, verdict.error.as_str());
            object.insert("error".to_owned(), verdict.error.into());
        }
        submitted.insert(result.host().to_owned(), entry);
        objects.push(object);
    }
    if recorded.is_ok()
        && let Some(error) = store.settle(record, submitted).problem
    {
        common::warn_not_recorded(&error, reqid);
    }
    if plan.json {
        show::results(Some(reqid.as_str()), &objects);
    } else {
        say!("Check progress with: ctrl-exec-dispatcher status {reqid}");
    }
    Ok(if accepted {
        Exit::Success
    } else {
        Exit::Failure
    })
}

/// Ports of hosts that were not addressed at the one of the registry: whoever asks for the result later must know them.
fn own_ports(config: &DispatcherConfig, targets: &[Target]) -> BTreeMap<String, u16> {
    let registry = Registry::new(config.registry_dir.clone());
    targets
        .iter()
        .filter(|target| {
            let usual = registry::resolve(&[target.name.to_string()], &registry, None);
            usual.is_ok_and(|usual| usual.iter().any(|u| u.port != target.port))
        })
        .map(|target| (target.name.to_string(), target.port))
        .collect()
}

fn log(result: &HostResult, verdict: &Verdict, plan: &Plan) {
    let line = Action::new("run-async")
        .field("REQID", &plan.reqid)
        .field("RTT", &result.rtt)
        .field("SCRIPT", &plan.script)
        .field("TARGET", result.target.authority());
    match verdict.status {
        Status::Accepted => line.field("STATUS", "accepted").info(),
        Status::Busy => line.field("STATUS", "busy").warning(),
        _ => line.field("ERROR", &verdict.error).err(),
    }
}

fn print(result: &HostResult, verdict: &Verdict) {
    let error = printable(&verdict.error);
    let told = match verdict.status {
        Status::Accepted => format!("accepted  {}", result.rtt),
        Status::Busy => format!("BUSY: {error}"),
        _ if verdict.unknown => {
            format!("ERROR: {error} - it may run all the same; 'ced status' asks the host")
        }
        _ => format!("ERROR: {error}"),
    };
    say!("==> {}  [{told}]", result.label());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(answer: Result<(u16, Value), ExchangeError>) -> (String, String) {
        let answer = answer.map(|(status, body)| {
            Answer::of_somebody(status, body.as_object().cloned().unwrap_or_default())
        });
        let verdict = judge(&answer);
        (verdict.status.as_str().to_owned(), verdict.error)
    }

    #[test]
    fn only_202_is_accepted() {
        let said = |status: &str, error: &str| (status.to_owned(), error.to_owned());
        assert_eq!(
            verdict(Ok((202, json!({"status": "accepted"})))),
            said("accepted", "")
        );
        assert_eq!(
            verdict(Ok((
                200,
                json!({"exit": -1, "error": "script not permitted"})
            ))),
            said("error", "script not permitted")
        );
        let (status, error) = verdict(Ok((200, json!({"exit": 0, "stdout": "x"}))));
        assert!(status == "error" && error.contains("ran the script at once (exit 0)"));
        assert_eq!(verdict(Ok((200, json!({"status": "accepted"})))).0, "error");
        assert_eq!(
            verdict(Err(ExchangeError::Busy(String::new()))),
            said("busy", "script already running")
        );
        assert_eq!(
            verdict(Err(ExchangeError::Busy("mine".into()))),
            said("busy", "mine")
        );
        assert_eq!(verdict(Err(ExchangeError::Closed)).0, "error");
    }
}
