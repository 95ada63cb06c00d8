//! `ced run --async`: the agents take the script over and answer at once (spec/dispatcher.md 10.2).

use std::time::SystemTime;

use crate::applets::ced::dispatch::{dispatch, label};
use crate::applets::ced::run::Plan;
use crate::applets::ced::{common, show};
use crate::applets::{AppError, Context, Exit};
use crate::core::config::DispatcherConfig;
use crate::core::config::diagnostics::printable;
use crate::core::dispatch::submit::{Submission, Verdict, judge, log_submit};
use crate::core::dispatch::{HostResult, Job};
use crate::core::registry::Registry;
use crate::core::runs::Status;
use crate::say;

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
    let mut submission = Submission::new(
        &Registry::new(config.registry_dir.clone()),
        plan.targets.clone(),
        reqid.clone(),
        &plan.script,
        common::clock(context, config).now(),
    );
    if let Err(error) = submission.record(&store) {
        common::warn_not_recorded(&error, reqid);
    }
    if !plan.json {
        say!("Submitted async run  req:{reqid}");
    }

    let sent = dispatch(context, config, plan.targets.clone(), job, |result| {
        let verdict = judge(&result.answer);
        log_submit(result, &verdict, &plan.script, reqid);
        if !plan.json {
            print(result, &verdict);
        }
    });
    let results = match sent {
        Ok(results) => results,
        Err(error) => {
            let why = "nothing was sent: the dispatcher could not begin";
            submission.abandon(&store, why);
            return Err(error);
        }
    };
    let settled = submission.settle(&store, &results);
    if let Some(error) = &settled.problem {
        common::warn_not_recorded(error, reqid);
    }
    if plan.json {
        show::results(Some(reqid.as_str()), &settled.objects);
    } else {
        say!("Check progress with: ctrl-exec-dispatcher status {reqid}");
    }
    Ok(if settled.accepted {
        Exit::Success
    } else {
        Exit::Failure
    })
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
    say!("==> {}  [{told}]", label(result));
}
