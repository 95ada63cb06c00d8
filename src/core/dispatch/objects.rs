//! Results as they are told (spec/dispatcher.md 6.1, spec/api.md 6.1-6.4), and their lines in the log (spec/operations.md 11.2).

use serde_json::{Map, Value};

use super::ask::{HostResult, text};
use crate::core::client::error::ExchangeError;
use crate::core::client::fleet;
use crate::core::logging::Action;
use crate::core::maintenance;
use crate::core::types::ReqId;

/// A host of a run that was waited for.
pub fn run_object(result: &HostResult, script: &str, reqid: &ReqId) -> Map<String, Value> {
    result.object(Some(reqid.as_str()), |error| not_run(error, script, reqid))
}

/// The same without a copy of what the script has written.
pub fn into_run_object(result: HostResult, script: &str, reqid: &ReqId) -> Map<String, Value> {
    result.into_object(Some(reqid.as_str()), |error| not_run(error, script, reqid))
}

fn not_run(error: &ExchangeError, script: &str, reqid: &ReqId) -> Map<String, Value> {
    fields([
        ("script", script.into()),
        ("exit", (-1).into()),
        ("error", error.to_string().into()),
        ("reqid", reqid.as_str().into()),
    ])
}

/// A host that was pinged.
pub fn ping_object(result: &HostResult, reqid: &ReqId) -> Map<String, Value> {
    result.object(Some(reqid.as_str()), |error| failed(&error.to_string()))
}

/// A host that was asked what it can do. Without `"status":"ok"` it has failed, and says why.
pub fn capabilities_object(result: &HostResult) -> Map<String, Value> {
    let mut object = result.object(None, |error| failed(&error.to_string()));
    if result.answer.is_ok()
        && let Err(why) = fleet::accepted(&result.answer)
    {
        object.append(&mut failed(&why));
    }
    object
}

fn failed(error: &str) -> Map<String, Value> {
    fields([("status", "error".into()), ("error", error.into())])
}

pub(super) fn fields<const N: usize>(all: [(&str, Value); N]) -> Map<String, Value> {
    all.map(|(name, value)| (name.to_owned(), value))
        .into_iter()
        .collect()
}

/// The line of one host of a run that was waited for.
pub fn log_run(result: &HostResult, script: &str, reqid: &ReqId) {
    let line = Action::new("run")
        .field("REQID", reqid)
        .field("RTT", &result.rtt)
        .field("SCRIPT", script)
        .field("TARGET", result.target.authority());
    match &result.answer {
        Ok(_) => line.field("EXIT", result.exit()).info(),
        Err(error) => line.field("ERROR", error).err(),
    }
}

/// The line of one ping.
pub fn log_ping(result: &HostResult, reqid: &ReqId) {
    maintenance::log_ping(&result.target, &result.answer, &result.rtt, reqid.as_str());
}

/// The line of one host that was asked what it can do.
pub fn log_capabilities(result: &HostResult) {
    let line = Action::new("capabilities")
        .field("RTT", &result.rtt)
        .field("TARGET", result.target.authority());
    match fleet::accepted(&result.answer) {
        Ok(answer) => {
            let scripts = answer.body.get("scripts").and_then(Value::as_array);
            line.field("SCRIPTS", scripts.map_or(0, Vec::len)).info();
        }
        Err(error) => line.field("ERROR", error).err(),
    }
}

/// Whether a host answered as an agent does that is well.
pub fn is_ok(result: &HostResult) -> bool {
    let answer = result.answer.as_ref();
    answer.is_ok_and(|answer| text(&answer.body, "status") == "ok")
}
