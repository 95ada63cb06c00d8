//! The server as the verbs see it: a request in, a JSON object or a sentence out (spec/api.md 7).

use std::path::PathBuf;
use std::time::Duration;

use hyper::Method;
use serde_json::{Map, Value};

use crate::applets::ced::api::settings::{Given, Settings, settle};
use crate::applets::ced::api::{ApiArgs, file, text};
use crate::applets::ced::common;
use crate::applets::{AppError, Context, Exit};
use crate::core::client::answer;
use crate::core::clock::Clock;
use crate::core::config::diagnostics::printable;
use crate::core::http_client::{Endpoint, HttpClient, HttpError, Reply};
use crate::core::tls::{self, Identity, TlsError, WebRoots};
use crate::core::types::Secret;
use crate::core::wire;
use crate::{complain, say};

/// Longest silence of the server unless told otherwise, seconds: that of the original's client.
const SILENCE: u64 = 120;
/// Where systems keep the CAs that they trust.
const BUNDLES: [&str; 3] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
];

/// One server, and who asks it.
pub(super) struct Session {
    client: HttpClient,
    token: Secret<String>,
    username: String,
    /// Answers are printed as they are.
    pub(super) json: bool,
}

/// What the server said.
#[derive(Debug)]
pub(super) enum Answer {
    /// 2xx and `ok`.
    Good {
        status: u16,
        object: Map<String, Value>,
    },
    Refused {
        status: u16,
        object: Map<String, Value>,
    },
}

/// Why there is no answer of an API server.
#[derive(Debug, thiserror::Error)]
pub(super) enum Trouble {
    #[error("{0}")]
    Http(HttpError),
    #[error("{url}: {why} - is this the URL of a ctrl-exec API?")]
    NotOurs { url: String, why: String },
    #[error(
        "{url}: it wants us to go elsewhere ({location}), which is not done - use the right URL"
    )]
    Redirect { url: String, location: String },
    #[error("the request is too large: {0} bytes, the API takes {max}", max = wire::MAX_REQUEST_BODY)]
    TooLarge(usize),
}

impl Trouble {
    /// The server may have done what it was asked for.
    pub(super) fn may_have_acted(&self) -> bool {
        matches!(self, Self::Http(error) if error.fault.may_have_acted())
    }
}

impl From<Trouble> for AppError {
    fn from(trouble: Trouble) -> Self {
        Self::failed(trouble.to_string())
    }
}

impl Session {
    /// Finds out which server is meant and makes ready to call it. Nothing is sent.
    pub(super) fn open(
        context: &Context,
        args: ApiArgs,
        silence: Option<u64>,
    ) -> Result<Self, AppError> {
        let silence = silence.unwrap_or(SILENCE);
        if !(1..=86_400).contains(&silence) {
            return Err(AppError::usage(
                "--timeout must be a number of seconds from 1 to 86400",
            ));
        }
        let file = file::load(context, args.config.as_deref())?;
        let given = Given {
            url: args.url,
            token: args.token,
            username: args.username,
            ca: args.ca,
            cert: args.cert,
            key: args.key,
            allow_plain_http: args.allow_plain_http,
        };
        let settings = settle(given, |name| context.var(name), file)?;
        if settings.exposed {
            complain!(
                "Warning: {}: the token travels in clear; everybody on the way can read it.",
                settings.endpoint
            );
        }
        let tls = match settings.endpoint {
            Endpoint::Https { .. } => Some(tls_config(context, &settings)?),
            Endpoint::Http { .. } | Endpoint::Unix(_) => None,
        };
        Ok(Self {
            client: HttpClient::new(settings.endpoint, tls, Duration::from_secs(silence)),
            token: settings.token,
            username: settings.username,
            json: args.json,
        })
    }

    /// Whether there is a token to show.
    pub(super) fn has_token(&self) -> bool {
        !self.token.expose().is_empty()
    }

    /// Sends one request. The token goes into the header; a body gets it too, with the user name: servers of the original read only that.
    pub(super) async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Option<Map<String, Value>>,
    ) -> Result<Answer, Trouble> {
        let body = body.map(|mut body| {
            for (name, value) in [("username", &self.username), ("token", self.token.expose())] {
                if !value.is_empty() {
                    body.insert(name.to_owned(), value.as_str().into());
                }
            }
            Value::Object(body).to_string().into_bytes()
        });
        if let Some(body) = &body
            && body.len() as u64 > wire::MAX_REQUEST_BODY
        {
            return Err(Trouble::TooLarge(body.len()));
        }
        let bearer = self.has_token().then_some(&self.token);
        let sent = self.client.send(method, path, bearer, body);
        let reply = sent.await.map_err(Trouble::Http)?;
        judge(&self.client.endpoint().to_string(), reply)
    }

    /// The same for a verb that asks once: what the server refuses is told, and the end.
    pub(super) fn object(
        &self,
        method: Method,
        path: &str,
        body: Option<Map<String, Value>>,
    ) -> Result<Map<String, Value>, AppError> {
        match common::block_on(self.ask(method, path, body))?? {
            Answer::Good { object, .. } => Ok(object),
            Answer::Refused { status, object } => Err(self.refused(status, &object)),
        }
    }

    /// Tells what the server refused.
    pub(super) fn refused(&self, status: u16, object: &Map<String, Value>) -> AppError {
        if self.json {
            print_json(object);
        } else {
            complain!("{}", refusal(status, object));
        }
        AppError::silent(Exit::Failure)
    }
}

/// Prints the server's object on one line.
pub(super) fn print_json(object: &Map<String, Value>) {
    // Texts and numbers always serialise.
    say!("{}", serde_json::to_string(object).unwrap_or_default());
}

fn tls_config(
    context: &Context,
    settings: &Settings,
) -> Result<std::sync::Arc<rustls::ClientConfig>, AppError> {
    let failed = |error: TlsError| AppError::config(error.to_string());
    let bundles: Vec<PathBuf> = BUNDLES.iter().map(|b| context.paths.resolve(b)).collect();
    let roots = match &settings.ca {
        Some(path) => WebRoots::load(path).map_err(failed)?,
        None => WebRoots::of_system(&bundles).map_err(|error| match error {
            TlsError::NoCa => AppError::config(format!(
                "this system has no CA certificates (looked for {}): name the file of the server's CA with --ca",
                BUNDLES.join(", ")
            )),
            other => failed(other),
        })?,
    };
    let identity = match &settings.identity {
        Some((cert, key)) => Some(Identity::load(cert, key).map_err(failed)?),
        None => None,
    };
    let own: Vec<_> = settings.identity.iter().map(|(c, _)| c.as_path()).collect();
    let clock = Clock::with_floor_from(&context.time, &own);
    tls::web_client_config(&roots, identity.as_ref(), clock).map_err(failed)
}

/// Whether an answer is one of ours, and what it says.
fn judge(url: &str, reply: Reply) -> Result<Answer, Trouble> {
    let status = reply.status;
    let not_ours = |why: String| Trouble::NotOurs {
        url: url.to_owned(),
        why,
    };
    if let (300..=399, Some(location)) = (status, &reply.location) {
        return Err(Trouble::Redirect {
            url: url.to_owned(),
            location: printable(location),
        });
    }
    if reply.content_type != "application/json" {
        let kind = match reply.content_type.as_str() {
            "" => "nothing that says what it is".to_owned(),
            kind => printable(kind),
        };
        return Err(not_ours(format!(
            "the answer ({status}) is {kind}, not JSON"
        )));
    }
    let object = answer::object(&reply.body).ok_or_else(|| {
        not_ours(format!(
            "the answer ({status}) calls itself JSON and is no object"
        ))
    })?;
    let ok = match object.get("ok") {
        Some(Value::Bool(ok)) => *ok,
        Some(Value::Number(number)) => number.as_i64() != Some(0),
        _ => return Err(not_ours(format!("the answer ({status}) does not say 'ok'"))),
    };
    Ok(if ok && (200..300).contains(&status) {
        Answer::Good { status, object }
    } else {
        Answer::Refused { status, object }
    })
}

/// The sentence for what the server refuses (spec/api.md 7).
fn refusal(status: u16, object: &Map<String, Value>) -> String {
    let word = |name| printable(text(object, name));
    let (error, detail) = (word("error"), word("detail"));
    if object.get("code").and_then(Value::as_i64) == Some(4) && error == "locked" {
        let conflicts = object.get("conflicts").and_then(Value::as_array);
        let conflicts: Vec<String> = conflicts
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .map(printable)
            .collect();
        return format!("Locked: already running: {}", conflicts.join(", "));
    }
    let told = match (error.is_empty(), detail.is_empty()) {
        (false, false) => format!("{error}: {detail}"),
        (false, true) => error,
        (true, false) => detail,
        (true, true) => "no reason given".to_owned(),
    };
    match status {
        401 | 403 => format!("Denied: {told}"),
        404 if told.contains("no route for") => {
            format!("{told} - this server is of a release that does not know it")
        }
        429 | 503 => format!("{told} - try again in a moment"),
        _ => format!("{told} ({status})"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn reply(status: u16, kind: &str, body: &str) -> Reply {
        Reply {
            status,
            content_type: kind.to_owned(),
            location: None,
            body: body.as_bytes().to_vec(),
        }
    }

    fn judged(status: u16, kind: &str, body: &str) -> Result<Answer, String> {
        judge("http://h", reply(status, kind, body)).map_err(|e| e.to_string())
    }

    #[test]
    fn only_a_json_object_that_says_ok_is_an_answer() {
        let json = "application/json";
        let good = |a: Result<Answer, String>| matches!(a, Ok(Answer::Good { .. }));
        let refused = |a: Result<Answer, String>| matches!(a, Ok(Answer::Refused { .. }));
        assert!(good(judged(200, json, r#"{"ok":true}"#)));
        assert!(good(judged(202, json, r#"{"ok":1}"#)));
        assert!(refused(judged(200, json, r#"{"ok":false}"#)));
        assert!(refused(judged(403, json, r#"{"ok":0}"#)));
        // A status that says no is not outweighed by the body.
        assert!(refused(judged(500, json, r#"{"ok":true}"#)));
        for (kind, body) in [
            ("text/html", r#"{"ok":true}"#),
            ("", r#"{"ok":true}"#),
            (json, "[1]"),
            (json, "<html>"),
            (json, r#"{"hello":1}"#),
            (json, r#"{"ok":"true"}"#),
        ] {
            let told = judged(200, kind, body).unwrap_err();
            assert!(told.starts_with("http://h: "), "{told}");
            assert!(told.contains("is this the URL"), "{told}");
        }
        let mut moved = reply(301, "text/html", "");
        moved.location = Some("http://e\u{1b}vil/".to_owned());
        let told = judge("http://h", moved).unwrap_err().to_string();
        assert!(told.contains("(http://e\\u{1b}vil/)"), "{told}");
    }

    #[test]
    fn refusals_read_like_those_of_ced() {
        let told = |status, object: Value| refusal(status, object.as_object().unwrap());
        assert_eq!(
            told(
                409,
                json!({"error": "locked", "code": 4, "conflicts": ["a:s", "b:s\u{7}"]})
            ),
            "Locked: already running: a:s, b:s\\u{7}"
        );
        assert_eq!(
            told(403, json!({"error": "bad token", "code": 2})),
            "Denied: bad token"
        );
        assert_eq!(
            told(
                404,
                json!({"error": "not found", "detail": "no result for reqid a1"})
            ),
            "not found: no result for reqid a1 (404)"
        );
        assert!(
            told(
                404,
                json!({"error": "not found", "detail": "no route for GET /runs"})
            )
            .contains("release that does not know it")
        );
        assert!(told(503, json!({"error": "service unavailable"})).contains("try again"));
        assert_eq!(told(500, json!({})), "no reason given (500)");
    }
}
