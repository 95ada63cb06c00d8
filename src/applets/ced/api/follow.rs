//! `ced api status`, `wait`, `runs` and `cancel`: runs that the server has on record (spec/api.md 5.6).

use std::time::{Duration, Instant};

use hyper::Method;
use serde_json::{Map, Value};

use crate::applets::ced::api::result::{HostOutcome, objects};
use crate::applets::ced::api::session::{Answer, Session, Trouble, print_json};
use crate::applets::ced::api::{Asked, text};
use crate::applets::ced::{common, jobs, show};
use crate::applets::{AppError, Context, Exit};
use crate::core::clock;
use crate::core::config::diagnostics::printable;
use crate::core::runs::{Body, Record, State};
use crate::core::terminal;
use crate::core::types::ReqId;
use crate::{complain, say};

/// How long `wait` waits unless told otherwise, seconds.
const PATIENCE: u64 = 300;
/// Pauses between looks: the first, and the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// A record as the server gives it.
struct Seen {
    record: Record,
    object: Map<String, Value>,
}

impl Seen {
    /// # Errors
    /// The answer is no record of this run.
    fn of(reqid: &ReqId, object: Map<String, Value>) -> Result<Self, AppError> {
        // Texts and numbers always serialise.
        let bytes = serde_json::to_vec(&object).unwrap_or_default();
        let record = Record::parse(reqid, &bytes).map_err(|why| {
            AppError::failed(format!(
                "the answer of the server is no record of request {reqid}: {}",
                printable(&why)
            ))
        })?;
        Ok(Self { record, object })
    }

    /// The server knows words for the state of a host that we do not.
    fn is_complete(&self) -> bool {
        match self.object.get("complete") {
            Some(Value::Bool(complete)) => *complete,
            _ => self.record.is_complete(),
        }
    }

    /// As `ced wait` ends.
    fn exit(&self) -> Exit {
        match self.record.state() {
            _ if !self.is_complete() => Exit::TimedOut,
            State::Done => Exit::Success,
            _ => Exit::Failure,
        }
    }

    fn print(&self, as_json: bool) {
        if as_json {
            print_json(&self.object);
            return;
        }
        let record = &self.record;
        say!("reqid: {}", record.reqid);
        say!("script: {}", printable(&record.script));
        let time = match record.time() {
            0 => "unknown".to_owned(),
            time => clock::iso(time),
        };
        match &record.body {
            Body::Sync(run) => {
                say!("hosts: {}", printable(&run.hosts.join(", ")));
                say!("completed: {time}");
            }
            Body::Async(run) => {
                let hosts: Vec<&str> = run.hosts.keys().map(String::as_str).collect();
                say!("hosts: {}", printable(&hosts.join(", ")));
                say!("created: {time}");
                match record.pending() {
                    pending if pending.is_empty() => say!("complete: yes"),
                    pending => say!("pending: {}", printable(&pending.join(", "))),
                };
            }
        }
        // One shape has the one, one the other.
        if let Body::Sync(_) = record.body {
            for result in objects(&self.object, "results") {
                HostOutcome::of_result(result).print();
            }
            return;
        }
        let entries = self.object.get("hosts").and_then(Value::as_object);
        for (name, entry) in entries.into_iter().flatten() {
            if let Some(fields) = entry.as_object() {
                HostOutcome::of_entry(name, fields).print();
            }
        }
    }
}

fn reqid(asked: &Asked, usage: &str) -> Result<ReqId, AppError> {
    let word = asked.only_word(usage)?;
    ReqId::new(word).map_err(|e| AppError::usage(e.to_string()))
}

pub(super) fn status(_: &Context, session: &Session, asked: &Asked) -> Result<Exit, AppError> {
    let reqid = reqid(asked, "ced api status REQID")?;
    let object = session.object(Method::GET, &format!("/status/{reqid}"), None)?;
    let seen = Seen::of(&reqid, object)?;
    seen.print(session.json);
    Ok(match seen.exit() {
        // It was asked how it is doing, and it is doing well.
        Exit::TimedOut => Exit::Success,
        exit => exit,
    })
}

pub(super) fn wait(_: &Context, session: &Session, asked: &Asked) -> Result<Exit, AppError> {
    let reqid = reqid(asked, "ced api wait REQID [--timeout SECONDS]")?;
    let timeout = Duration::from_secs(asked.timeout.unwrap_or(PATIENCE));
    match common::block_on(poll(session, &reqid, timeout))?? {
        Some(seen) => {
            seen.print(session.json);
            Ok(seen.exit())
        }
        None => Err(AppError::new(
            Exit::TimedOut,
            format!("the server did not answer within {}s", timeout.as_secs()),
        )),
    }
}

/// Looks again and again until the run has ended or the time is over, and answers what was seen last. A server that is away for a while
/// after it has once shown the run (a restart) is asked again; one that is only busy, from the beginning.
async fn poll(
    session: &Session,
    reqid: &ReqId,
    timeout: Duration,
) -> Result<Option<Seen>, AppError> {
    let path = format!("/status/{reqid}");
    let begun = Instant::now();
    let mut pause = FIRST_PAUSE;
    let mut seen: Option<Seen> = None;
    let mut told = false;
    loop {
        let left = timeout.saturating_sub(begun.elapsed());
        let look = session.ask(Method::GET, &path, None);
        let looked = if timeout.is_zero() {
            look.await
        } else {
            match tokio::time::timeout(left, look).await {
                Ok(looked) => looked,
                Err(_) => return Ok(seen),
            }
        };
        let hitch = match looked {
            Ok(Answer::Good { object, .. }) => {
                let now = seen.insert(Seen::of(reqid, object)?);
                if now.is_complete() {
                    return Ok(seen);
                }
                None
            }
            Ok(Answer::Refused { status: 503, .. }) if !timeout.is_zero() => {
                Some("the server is busy".to_owned())
            }
            Ok(Answer::Refused { status, object }) => return Err(session.refused(status, &object)),
            Err(trouble @ Trouble::Http(_)) if seen.is_some() => Some(trouble.to_string()),
            Err(trouble) => return Err(trouble.into()),
        };
        if let Some(why) = hitch
            && !told
        {
            complain!("Note: {why}; asking again.");
            told = true;
        }
        let left = timeout.saturating_sub(begun.elapsed());
        if left.is_zero() {
            return Ok(seen);
        }
        tokio::time::sleep(before_next(pause, left)).await;
        pause = (pause * 3 / 2).min(LONGEST_PAUSE);
    }
}

/// The time until the next look. Near the end one more is taken, so that a run that ends just in time is seen.
fn before_next(pause: Duration, left: Duration) -> Duration {
    let reserve = (left / 4).min(Duration::from_millis(500));
    let last = left - reserve;
    // After the last look nothing is left but to wait for the end.
    if left <= Duration::from_millis(100) {
        left
    } else {
        pause.min(last)
    }
}

pub(super) fn runs(context: &Context, session: &Session, asked: &Asked) -> Result<Exit, AppError> {
    asked.no_words("ced api runs")?;
    let answer = session.object(Method::GET, "/runs?limit=500", None)?;
    if session.json {
        print_json(&answer);
        return Ok(Exit::Success);
    }
    let now = context.time.now();
    let rows: Vec<String> = objects(&answer, "runs").map(|run| row(run, now)).collect();
    if rows.is_empty() {
        say!("No runs on record.");
        return Ok(Exit::Success);
    }
    say!("{}", jobs::row("REQID", "AGE", "MODE", "SCRIPT", "STATE"));
    say!("{}", "-".repeat(78));
    for row in &rows {
        say!("{row}");
    }
    if answer.contains_key("next") {
        complain!(
            "Note: the server has more runs on record than these {}.",
            rows.len()
        );
    }
    Ok(Exit::Success)
}

/// One run in the columns of `ced jobs`; the fields have its names.
fn row(run: &Map<String, Value>, now: i64) -> String {
    let word = |name| printable(text(run, name));
    let number = |name: &str| run.get(name).and_then(Value::as_i64);
    let time = number("time").map(|time| now.saturating_sub(time));
    let age = number("age").or(time);
    let age = age.map_or_else(|| "?".to_owned(), jobs::age);
    let state = match (word("state").as_str(), number("count"), number("hosts")) {
        (state @ ("running" | "failed" | "expired"), Some(some), Some(all)) => {
            format!("{state} {some}/{all}")
        }
        (state, ..) => state.to_owned(),
    };
    jobs::row(&word("reqid"), &age, &word("mode"), &word("script"), &state)
}

pub(super) fn cancel(_: &Context, session: &Session, asked: &Asked) -> Result<Exit, AppError> {
    let reqid = reqid(asked, "ced api cancel REQID")?;
    let object = session.object(Method::DELETE, &format!("/runs/{reqid}"), None)?;
    let none = Map::new();
    let replies = object.get("cancel").and_then(Value::as_object);
    let replies: Vec<_> = replies
        .unwrap_or(&none)
        .iter()
        .map(|(host, reply)| (host, reply.as_object().unwrap_or(&none)))
        .collect();
    let seen = Seen::of(&reqid, object.clone())?;
    // A server that names no host has asked nobody: that is right only when all have ended.
    let nobody = replies.is_empty();
    let good = replies.iter().all(|(_, reply)| ends(reply)) && (!nobody || seen.is_complete());
    if session.json {
        print_json(&object);
    } else {
        for (host, reply) in &replies {
            let status = printable(text(reply, "status"));
            let why = show::error(text(reply, "error"));
            let told = format!("==> {} [{status}]\n{why}", printable(host));
            terminal::stdout_bytes(told.as_bytes());
        }
        match (nobody, good) {
            (true, true) => say!("Nothing to cancel: the run has ended on every host."),
            (true, false) => say!("NOT CANCELLED: the server has asked nobody."),
            _ => true,
        };
        seen.print(false);
    }
    Ok(if good { Exit::Success } else { Exit::Failure })
}

/// The run is being ended on that host, or had ended before.
fn ends(reply: &Map<String, Value>) -> bool {
    matches!(text(reply, "status"), "cancelling" | "ended")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn both_shapes_of_a_record_end_as_wait_does() {
        let reqid = ReqId::new("a1").unwrap();
        let exit = |object: Value| {
            let object = object.as_object().cloned().unwrap();
            Seen::of(&reqid, object).map(|seen| seen.exit().code())
        };
        let sync = |code| {
            json!({"ok": true, "reqid": "a1", "script": "s", "mode": "sync", "hosts": ["h"], "completed": 1, "complete": true,
                   "results": [{"host": "h", "exit": code}]})
        };
        let entry = |entry: Value, complete: bool| json!({"ok": true, "reqid": "a1", "script": "s", "mode": "async", "hosts": {"h": entry}, "created": 1, "complete": complete});
        assert_eq!(exit(sync(0)).unwrap(), 0);
        assert_eq!(exit(sync(3)).unwrap(), 1);
        assert_eq!(
            exit(entry(json!({"status": "done", "exit": 0}), true)).unwrap(),
            0
        );
        assert_eq!(exit(entry(json!({"status": "expired"}), true)).unwrap(), 1);
        assert_eq!(exit(entry(json!({"status": "running"}), false)).unwrap(), 2);
        // What the server says counts, also about words that we do not know.
        assert_eq!(exit(entry(json!({"status": "new"}), false)).unwrap(), 2);
        assert!(exit(json!({"ok": true, "reqid": "b2"})).is_err());
    }

    #[test]
    fn the_last_look_comes_before_the_end() {
        let ms = Duration::from_millis;
        assert_eq!(before_next(ms(500), ms(60_000)), ms(500));
        assert_eq!(before_next(ms(5000), ms(4000)), ms(3500));
        assert_eq!(before_next(ms(5000), ms(400)), ms(300));
        assert_eq!(before_next(ms(5000), ms(100)), ms(100));
    }

    #[test]
    fn a_run_has_one_line() {
        let run = json!({"reqid": "a1", "script": "s\u{7}", "mode": "async", "time": 100, "state": "failed", "count": 1, "hosts": 3});
        let line = row(run.as_object().unwrap(), 160);
        assert!(line.starts_with("a1 ") && line.contains(" 60s "), "{line}");
        assert!(line.contains("s\\u{7}") && line.ends_with("failed 1/3"));
    }
}
