//! How results of runs look, fresh ones and recorded ones (spec/dispatcher.md 10.1, 10.3).

use serde::Serialize;
use serde_json::{Map, Value};

use crate::core::config::diagnostics::printable;
pub(super) use crate::core::dispatch::text;
use crate::core::runs::{Body, Entry, Record, Status};
use crate::say;

/// Prints `{"ok":1,"results":[...]}`, with the request id where it stands for all.
pub(super) fn results(reqid: Option<&str>, results: &[Map<String, Value>]) {
    #[derive(Serialize)]
    struct Results<'a> {
        ok: u8,
        #[serde(skip_serializing_if = "Option::is_none")]
        reqid: Option<&'a str>,
        results: &'a [Map<String, Value>],
    }
    let whole = Results {
        ok: 1,
        reqid,
        results,
    };
    // Texts and numbers always serialise.
    say!("{}", serde_json::to_string(&whole).unwrap_or_default());
}

/// The line over the result of a host. `label` and `rtt` must be fit for a terminal.
pub(super) fn heading(label: &str, exit: i64, rtt: &str, reqid: &str) -> String {
    let verdict = if exit == 0 { "OK" } else { "FAIL" };
    format!("==> {label}  [{verdict}  exit:{exit}  {rtt}  req:{reqid}]\n")
}

/// The line with an error, if there is one. It may quote an agent.
pub(super) fn error(text: &str) -> String {
    if text.is_empty() {
        String::new()
    } else {
        format!("    ERROR: {}\n", printable(text))
    }
}

/// Both streams of a result, and what else should be known of it.
pub(super) fn output(result: &Map<String, Value>) -> String {
    let mut out = String::new();
    for (name, prefix) in [("stdout", ""), ("stderr", "    STDERR: ")] {
        let stream = text(result, name);
        if !stream.trim().is_empty() {
            out.push_str(prefix);
            out.push_str(stream);
            if !stream.ends_with('\n') {
                out.push('\n');
            }
        }
    }
    out.push_str(&notes(result));
    out
}

/// What else should be known of a result.
pub(super) fn notes(result: &Map<String, Value>) -> String {
    let mut out = String::new();
    let mut note = |text: &str| out.push_str(&format!("    NOTE: {text}\n"));
    if let Some(signal) = result.get("signal").and_then(Value::as_i64) {
        note(&format!("ended by signal {signal}"));
    }
    let flags = [
        (
            "timed_out",
            "the agent stopped the script at its run_timeout",
        ),
        ("cancelled", "cancelled on request"),
        (
            "lost",
            "the agent lost the run: nobody knows how it ended, or whether it did",
        ),
        (
            "truncated",
            "output beyond the agent's max_output was dropped",
        ),
    ];
    for (name, meaning) in flags {
        if result.get(name) == Some(&Value::Bool(true)) {
            note(meaning);
        }
    }
    out
}

/// Head of the table of `ping`, and the line below it.
pub(super) fn ping_head() -> String {
    let head = ping_row("HOST", "STATUS", "RTT", "CERT EXPIRY", "VERSION");
    format!("{head}\n{}", "-".repeat(85))
}

/// One host in the table of `ping`. Everything must be fit for a terminal.
pub(super) fn ping_row(host: &str, status: &str, rtt: &str, expiry: &str, version: &str) -> String {
    format!("{host:<30}  {status:<8}  {rtt:<8}  {expiry:<28}  {version}")
}

/// A whole record, for a person.
pub(super) fn record(record: &Record) -> String {
    let complete = if record.is_complete() {
        "COMPLETE"
    } else {
        "PENDING"
    };
    let mut out = format!(
        "Request {}  (script: {})  [{complete}]\n",
        record.reqid,
        printable(&record.script)
    );
    match &record.body {
        Body::Sync(run) => {
            for result in run.results.iter().filter_map(Value::as_object) {
                out.push_str(&recorded(result, record.reqid.as_str()));
            }
        }
        Body::Async(run) => {
            for (host, entry) in &run.hosts {
                out.push_str(&pending_or_ended(host, entry));
            }
        }
    }
    out
}

/// One host of a synchronous run, as `run` has shown it.
fn recorded(result: &Map<String, Value>, reqid: &str) -> String {
    let word = |name| printable(text(result, name));
    let label = match word("reported_hostname") {
        reported if reported.is_empty() => word("host"),
        reported => format!("{} ({reported})", word("host")),
    };
    let exit = result.get("exit").and_then(Value::as_i64).unwrap_or(-1);
    let heading = heading(&label, exit, &word("rtt"), reqid);
    format!(
        "{heading}{}{}",
        error(text(result, "error")),
        output(result)
    )
}

/// One host of an asynchronous run.
fn pending_or_ended(host: &str, entry: &Entry) -> String {
    let host = printable(host);
    let status = printable(entry.status.as_str());
    let (verdict, more) = match entry.status {
        Status::Done => (
            format!("done  exit:{}", entry.exit()),
            output(&entry.fields),
        ),
        Status::Accepted | Status::Running => {
            let more = match entry.text("fetch_error") {
                "" => String::new(),
                error => format!("    (fetch pending: {})\n", printable(error)),
            };
            (status, more)
        }
        _ => {
            let more = match (entry.text("error"), &entry.status) {
                ("", Status::Expired) => {
                    "    the agent has no record of this run (any more): its result is gone\n"
                        .to_owned()
                }
                ("", _) => String::new(),
                (error, _) => format!("    {}\n", printable(error)),
            };
            (status.to_uppercase(), more)
        }
    };
    format!("==> {host}  [{verdict}]\n{more}")
}

/// A whole record, for a program: its fields beside `ok`.
pub(super) fn record_json(record: &Record) -> Value {
    let mut object = record.to_object();
    object.insert("ok".to_owned(), 1.into());
    Value::Object(object)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn parsed(value: &Value) -> Record {
        let reqid = crate::core::types::ReqId::new("r1").unwrap();
        Record::parse(&reqid, value.to_string().as_bytes()).unwrap()
    }

    #[test]
    fn an_asynchronous_record_reads_as_in_the_original() {
        let shown = record(&parsed(
            &json!({"reqid": "r1", "script": "s", "mode": "async", "created": 1, "hosts": {
                "a": {"status": "done", "exit": 3, "stdout": "out", "stderr": "err\n", "signal": 15, "cancelled": true},
                "b": {"status": "running", "fetch_error": "no\u{1b}pe"},
                "c": {"status": "accepted"},
                "d": {"status": "busy", "error": "script already running"},
                "e": {"status": "error", "error": "why"},
                "f": {"status": "expired"},
                "g": {"status": "new\u{7}"},
            }}),
        ));
        assert_eq!(
            shown,
            "Request r1  (script: s)  [PENDING]\n\
             ==> a  [done  exit:3]\nout\n    STDERR: err\n    NOTE: ended by signal 15\n    NOTE: cancelled on request\n\
             ==> b  [running]\n    (fetch pending: no\\u{1b}pe)\n\
             ==> c  [accepted]\n\
             ==> d  [BUSY]\n    script already running\n\
             ==> e  [ERROR]\n    why\n\
             ==> f  [EXPIRED]\n    the agent has no record of this run (any more): its result is gone\n\
             ==> g  [NEW\\U{7}]\n"
        );
    }

    #[test]
    fn a_synchronous_record_reads_like_the_run() {
        let shown = record(&parsed(
            &json!({"reqid": "r1", "script": "s", "mode": "sync", "completed": 1, "hosts": ["a", "b"], "results": [
                {"host": "a", "reported_hostname": "x", "exit": 0, "stdout": "0", "rtt": "5ms", "lost": true},
                {"host": "b", "exit": -1, "error": "no", "rtt": "1ms"}, 7,
            ]}),
        ));
        assert_eq!(
            shown,
            "Request r1  (script: s)  [COMPLETE]\n\
             ==> a (x)  [OK  exit:0  5ms  req:r1]\n0\n    NOTE: the agent lost the run: nobody knows how it ended, or whether it did\n\
             ==> b  [FAIL  exit:-1  1ms  req:r1]\n    ERROR: no\n"
        );
    }
}
