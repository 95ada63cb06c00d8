//! `ced api health`, `ping` and `discovery`.

use hyper::Method;
use serde_json::{Map, Value, json};

use crate::applets::ced::api::result::{label, objects};
use crate::applets::ced::api::session::{Session, print_json};
use crate::applets::ced::api::{Asked, text};
use crate::applets::ced::show;
use crate::applets::{AppError, Context, Exit};
use crate::core::config::diagnostics::printable;
use crate::say;

pub(super) fn health(_: &Context, session: &Session, asked: &Asked) -> Result<Exit, AppError> {
    asked.no_words("ced api health")?;
    let answer = session.object(Method::GET, "/health", None)?;
    if session.json {
        print_json(&answer);
    } else {
        say!("STATUS ok");
        say!("VERSION {}", printable(text(&answer, "version")));
    }
    Ok(Exit::Success)
}

pub(super) fn ping(_: &Context, session: &Session, asked: &Asked) -> Result<Exit, AppError> {
    if asked.words.is_empty() {
        return Err(AppError::usage(
            "Need at least one host: ced api ping HOST...",
        ));
    }
    let answer = session.object(Method::POST, "/ping", hosts(&asked.words))?;
    if session.json {
        print_json(&answer);
    } else {
        say!("{}", show::ping_head());
        for result in objects(&answer, "results") {
            let word = |name| match text(result, name) {
                "" => "?".to_owned(),
                text => printable(text),
            };
            let status = if is_ok(result) { "ok" } else { "error" };
            say!(
                "{}",
                show::ping_row(
                    &label(result),
                    status,
                    &word("rtt"),
                    &word("expiry"),
                    &word("version")
                )
            );
            tell_error(result);
        }
    }
    let all = objects(&answer, "results").count();
    let good = objects(&answer, "results").filter(|r| is_ok(r)).count();
    // A host that the answer leaves out has not answered either.
    Ok(if good == all && all > 0 {
        Exit::Success
    } else {
        Exit::Failure
    })
}

pub(super) fn discovery(_: &Context, session: &Session, asked: &Asked) -> Result<Exit, AppError> {
    // Servers of the original read a token from a body only.
    let answer = if asked.words.is_empty() && !session.has_token() {
        session.object(Method::GET, "/discovery", None)?
    } else {
        session.object(Method::POST, "/discovery", hosts(&asked.words))?
    };
    let none = Map::new();
    let found = answer
        .get("hosts")
        .and_then(Value::as_object)
        .unwrap_or(&none);
    let found: Vec<_> = found
        .iter()
        .filter_map(|(name, fields)| Some((printable(name), fields.as_object()?)))
        .collect();
    if session.json {
        print_json(&answer);
    } else if found.is_empty() {
        say!("No hosts.");
    } else if asked.scripts {
        for (name, fields) in &found {
            scripts(name, fields);
        }
    } else {
        say!("{}", summary("HOST", "STATUS", "RTT", "VERSION", "SCRIPTS"));
        say!("{}", "-".repeat(78));
        for (name, fields) in &found {
            let word = |name| printable(text(fields, name));
            let count = objects(fields, "scripts").count().to_string();
            let (status, count) = if is_ok(fields) {
                ("ok", count.as_str())
            } else {
                ("error", "?")
            };
            say!(
                "{}",
                summary(name, status, &word("rtt"), &word("version"), count)
            );
            tell_error(fields);
        }
    }
    Ok(if found.iter().all(|(_, fields)| is_ok(fields)) {
        Exit::Success
    } else {
        Exit::Failure
    })
}

/// A body that names hosts, or nobody in particular.
fn hosts(names: &[String]) -> Option<Map<String, Value>> {
    let mut body = Map::new();
    if !names.is_empty() {
        body.insert("hosts".to_owned(), json!(names));
    }
    Some(body)
}

fn is_ok(result: &Map<String, Value>) -> bool {
    text(result, "status") == "ok"
}

fn tell_error(result: &Map<String, Value>) {
    match text(result, "error") {
        "" => {}
        error => {
            say!("    {}", printable(error));
        }
    }
}

fn summary(host: &str, status: &str, rtt: &str, version: &str, scripts: &str) -> String {
    format!("{host:<30}  {status:<8}  {rtt:<8}  {version:<16}  {scripts}")
}

fn scripts(name: &str, fields: &Map<String, Value>) {
    if !is_ok(fields) {
        say!("{name}: error");
        tell_error(fields);
        return;
    }
    say!("{name}:");
    for script in objects(fields, "scripts") {
        let word = |name| printable(text(script, name));
        let mark = match script.get("executable") {
            Some(Value::Bool(false)) => "  [not executable]",
            _ => "",
        };
        say!("  {:<28}  {}{mark}", word("name"), word("path"));
    }
}
