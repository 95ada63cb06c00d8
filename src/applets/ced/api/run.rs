//! `ced api run`, waited for or not.

use hyper::Method;
use serde_json::{Map, Value, json};

use crate::applets::ced::api::result::{HostOutcome, objects};
use crate::applets::ced::api::session::{Answer, Session, print_json};
use crate::applets::ced::api::{Asked, text};
use crate::applets::ced::common;
use crate::applets::{AppError, Context, Exit};
use crate::core::config::diagnostics::printable;
use crate::{complain, say};

pub(super) fn main(_: &Context, session: &Session, asked: &Asked) -> Result<Exit, AppError> {
    let mut hosts = asked.words.clone();
    let script = asked.script.clone().or_else(|| hosts.pop());
    let (Some(script), false) = (script, hosts.is_empty()) else {
        return Err(AppError::usage(
            "Need at least one host and a script name: ced api run HOST... SCRIPT [-- ARG...]",
        ));
    };
    let mut body = Map::new();
    body.insert("hosts".to_owned(), json!(hosts));
    body.insert("script".to_owned(), script.into());
    if let Some(args) = &asked.after_dashes {
        body.insert("args".to_owned(), json!(args));
    }
    if asked.asynchronous {
        body.insert("async".to_owned(), true.into());
    }
    let answer = common::block_on(session.ask(Method::POST, "/run", Some(body)))?;
    let (status, object) = match answer {
        Ok(Answer::Good { status, object }) => (status, object),
        Ok(Answer::Refused { status, object }) => return Err(session.refused(status, &object)),
        Err(trouble) if trouble.may_have_acted() => {
            return Err(AppError::failed(format!(
                "{trouble}\nThe request was sent: the script may run all the same. 'ced api runs' shows what the server has on record; \
                 for scripts that take long there is --async."
            )));
        }
        Err(trouble) => return Err(trouble.into()),
    };
    if session.json {
        print_json(&object);
    } else {
        say!("reqid: {}", printable(text(&object, "reqid")));
        if asked.asynchronous && status != 202 {
            complain!("Note: this server does not know asynchronous runs; the script has ended.");
        }
        for result in objects(&object, "results") {
            HostOutcome::of_result(result).print();
        }
    }
    Ok(if all_good(&object) {
        Exit::Success
    } else {
        Exit::Failure
    })
}

/// Every host ended well, or has taken the run.
fn all_good(object: &Map<String, Value>) -> bool {
    let results = object.get("results").and_then(Value::as_array);
    results.is_some_and(|results| {
        !results.is_empty()
            && results.iter().all(|result| {
                result
                    .as_object()
                    .is_some_and(|fields| HostOutcome::of_result(fields).is_good())
            })
    })
}
