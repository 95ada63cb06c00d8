//! `POST /cancel` `{"reqid": ...}`: ends an asynchronous run of the caller's own. Ours; an agent of the original answers 404 `not found`.
//!
//! Whoever may have begun a run may end it: no hook is asked, only the dispatcher that began it gets this far. The answer comes before the
//! script has ended; `/result` then tells how (`cancelled`).
//!
//! | condition | status | body |
//! |---|---|---|
//! | no JSON object, or no request id in it | 400 | `{"error": ...}` |
//! | no such run, or another dispatcher's | 404 | `{"status":"unknown","reqid":R}`, as `/result` |
//! | it has ended | 409 | `{"status":"done","reqid":R,"error":"run already ended"}` |
//! | it is being ended | 202 | `{"status":"cancelling","reqid":R}` |
//! | it cannot be ended | 503 | `{"status":"running","reqid":R,"error":...}` |

use std::sync::Arc;

use axum::response::Response;
use hyper::StatusCode;
use serde_json::json;

use super::result::{About, unknown};
use crate::applets::cea::gate::{Caller, Payload};
use crate::applets::cea::jobs::{self, Cancelled};
use crate::applets::cea::{lenient, reply};
use crate::core::jobs::Key;
use crate::core::types::ReqId;
use crate::core::wire::errors;

pub(super) async fn handle(caller: Caller, Payload(body): Payload) -> Response {
    let Some(text) = lenient::cancel_reqid(&body) else {
        return reply::error(StatusCode::BAD_REQUEST, errors::INVALID_JSON);
    };
    let Ok(reqid) = ReqId::new(&text) else {
        return reply::error(StatusCode::BAD_REQUEST, errors::CANCEL_REQID);
    };
    let key = Key {
        owner: caller.dispatcher.clone(),
        reqid,
    };
    let snapshot: Arc<_> = caller.snapshot.clone();
    let about = About {
        caller: &caller,
        reqid: &key.reqid,
    };
    let line = |status: &str| about.line("cancel").field("STATUS", status);
    let answer = |code, status: &str, error: Option<&str>| {
        let mut body = json!({ "status": status, "reqid": key.reqid.as_str() });
        if let Some(error) = error {
            body["error"] = error.into();
        }
        reply::json(code, &body)
    };
    match jobs::cancel(&snapshot, &key).await {
        Ok(Cancelled::Cancelling) => {
            line("cancelling").info();
            answer(StatusCode::ACCEPTED, "cancelling", None)
        }
        Ok(Cancelled::Done) => {
            line("done").info();
            answer(StatusCode::CONFLICT, "done", Some(errors::RUN_ENDED))
        }
        Ok(Cancelled::Unknown) => {
            line("unknown").info();
            unknown(&key.reqid)
        }
        Ok(Cancelled::Failed(why)) => {
            line("failed").field("REASON", &why).warning();
            answer(StatusCode::SERVICE_UNAVAILABLE, "running", Some(&why))
        }
        Err(error) => about.unusable("cancel-deny", &error),
    }
}
