//! What the executor says it can enforce, for `/capabilities` (spec/executor.md 15.1 item 4).

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::core::exec::executor_client::call_raw;
use crate::core::exec::frame::{JOB_SCRIPT, JobOrder, Reply, Request, RequestExtras};

/// How long an answer counts, also that there was none.
const KNOWN_FOR: Duration = Duration::from_secs(60);
/// The executor answers this without running anything.
const DEADLINE: Duration = Duration::from_secs(2);
/// Longest answer that is passed on, in bytes.
const LONGEST: usize = 256 * 1024;

/// An answer, whose it is and when it came.
type Known = (PathBuf, Instant, Option<Value>);

/// The last answer.
#[derive(Debug, Default)]
pub(super) struct Isolation(Mutex<Option<Known>>);

impl Isolation {
    /// `None`: no executor answers, or it is one of the original, which does not say.
    pub(super) async fn of(&self, socket: &Path) -> Option<Value> {
        if let Some(known) = self.recall(socket, Instant::now()) {
            return known;
        }
        let request = Request {
            reqid: "capabilities".to_owned(),
            dispatcher: "agent".to_owned(),
            script: JOB_SCRIPT.to_owned(),
            extras: RequestExtras {
                job: Some(JobOrder::Hello),
                ..RequestExtras::default()
            },
            ..Request::default()
        };
        let reply = call_raw(socket, &request, DEADLINE).await.ok();
        let answer = reply.and_then(understood);
        *self.slot() = Some((socket.to_owned(), Instant::now(), answer.clone()));
        answer
    }

    fn recall(&self, socket: &Path, now: Instant) -> Option<Option<Value>> {
        let slot = self.slot();
        let (of, at, answer) = slot.as_ref()?;
        let fresh = of == socket && now.saturating_duration_since(*at) < KNOWN_FOR;
        fresh.then(|| answer.clone())
    }

    fn slot(&self) -> MutexGuard<'_, Option<Known>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Only an object, and only from an executor that knows the question: one of the original refuses without a trailer.
fn understood(reply: Reply) -> Option<Value> {
    if reply.extras.is_none() || reply.exit != 0 || reply.stdout.len() > LONGEST {
        return None;
    }
    serde_json::from_slice(&reply.stdout)
        .ok()
        .filter(Value::is_object)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::exec::frame::ReplyExtras;

    fn reply(exit: i32, stdout: &str, ours: bool) -> Reply {
        Reply {
            exit,
            stdout: stdout.into(),
            extras: ours.then(ReplyExtras::default),
            ..Reply::default()
        }
    }

    #[test]
    fn only_an_object_of_our_executor_counts() {
        assert!(understood(reply(0, "{\"kernel\":\"6\"}", true)).is_some());
        for (exit, text, ours) in [
            (0, "{}", false),
            (-1, "{}", true),
            (0, "[]", true),
            (0, "", true),
        ] {
            assert_eq!(understood(reply(exit, text, ours)), None);
        }
    }

    #[test]
    fn an_answer_is_kept_for_its_socket_and_a_minute() {
        let (kept, now) = (Isolation::default(), Instant::now());
        let (socket, answer) = (Path::new("/s"), Some(Value::from(1)));
        *kept.slot() = Some((socket.to_owned(), now, answer.clone()));
        assert_eq!(kept.recall(socket, now), Some(answer));
        assert_eq!(kept.recall(Path::new("/other"), now), None);
        assert_eq!(kept.recall(socket, now + KNOWN_FOR), None);
    }
}
