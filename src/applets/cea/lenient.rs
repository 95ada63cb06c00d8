//! Reads request bodies the way the original does, leniency and all (spec/agent.md 9.2), but never fails without an answer.

use serde_json::{Map, Value};

use crate::core::types::Secret;

/// `POST /run` as understood. No field is checked yet.
#[derive(Debug, Default, PartialEq)]
pub(super) struct RunRequest {
    pub(super) script: String,
    pub(super) args: Vec<String>,
    pub(super) reqid: String,
    pub(super) username: String,
    pub(super) token: Secret<String>,
    pub(super) asynchronous: bool,
}

/// Why a `/run` body is refused.
#[derive(Debug, PartialEq)]
pub(super) enum BadRun {
    /// Not JSON, or neither an object nor `null`.
    NotJson,
    /// `args` is not an array, or holds arrays or objects. Carries the request id for the answer.
    Args { reqid: String, nested: bool },
}

/// # Errors
/// See [`BadRun`].
pub(super) fn run_request(body: &[u8]) -> Result<RunRequest, BadRun> {
    let object = object(body).ok_or(BadRun::NotJson)?;
    let reqid = text(&object, "reqid");
    let args =
        match object.get("args") {
            None | Some(Value::Null) => Vec::new(),
            Some(Value::Array(items)) => items
                .iter()
                .map(scalar)
                .collect::<Option<_>>()
                .ok_or_else(|| BadRun::Args {
                    reqid: reqid.clone(),
                    nested: true,
                })?,
            Some(_) => {
                return Err(BadRun::Args {
                    reqid,
                    nested: false,
                });
            }
        };
    Ok(RunRequest {
        script: text(&object, "script"),
        args,
        username: text(&object, "username"),
        token: Secret::new(text(&object, "token")),
        asynchronous: object.get("async").is_some_and(truthy),
        reqid,
    })
}

/// The request id of a body of which nothing else matters (`/ping`); an unusable body counts as `{}`.
pub(super) fn reqid_of(body: &[u8]) -> String {
    object(body).map(|o| text(&o, "reqid")).unwrap_or_default()
}

/// The request id of `/cancel`; `None` for a body that is no object. Nothing of the original has to be met here.
pub(super) fn cancel_reqid(body: &[u8]) -> Option<String> {
    object(body).map(|o| text(&o, "reqid"))
}

/// The fields of a body in which nothing is required; one that is no object has none.
pub(super) struct Fields(Map<String, Value>);

impl Fields {
    pub(super) fn of(body: &[u8]) -> Self {
        Self(object(body).unwrap_or_default())
    }

    /// A field as text; absent, `null` and nested values are empty.
    pub(super) fn text(&self, key: &str) -> String {
        text(&self.0, key)
    }

    /// A field as text, unless it is absent or `null`.
    pub(super) fn given(&self, key: &str) -> Option<String> {
        match self.0.get(key) {
            None | Some(Value::Null) => None,
            Some(_) => Some(self.text(key)),
        }
    }

    /// A field that is an array of strings; `None` if it is anything else.
    pub(super) fn strings(&self, key: &str) -> Option<Vec<&str>> {
        self.0
            .get(key)?
            .as_array()?
            .iter()
            .map(Value::as_str)
            .collect()
    }
}

/// A JSON object; `null` counts as the empty one.
fn object(body: &[u8]) -> Option<Map<String, Value>> {
    match serde_json::from_slice(body).ok()? {
        Value::Object(object) => Some(object),
        Value::Null => Some(Map::new()),
        _ => None,
    }
}

/// A field as text; absent, `null` and nested values are empty.
fn text(object: &Map<String, Value>, key: &str) -> String {
    object.get(key).and_then(scalar).unwrap_or_default()
}

/// A scalar as the original's text; `None` for arrays and objects.
fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::Null => Some(String::new()),
        Value::Bool(b) => Some(u8::from(*b).to_string()),
        Value::String(s) => Some(s.clone()),
        Value::Number(n) => Some(number(n)),
        Value::Array(_) | Value::Object(_) => None,
    }
}

/// Integers as they are, whole floats without their point (`1.0` is `1`, `1e3` is `1000`).
fn number(n: &serde_json::Number) -> String {
    match n.as_f64() {
        Some(f) if n.is_f64() => f.to_string(),
        _ => n.to_string(),
    }
}

/// Truth of the original's language: `false`, `null`, zero, the empty string and `"0"` are false, everything else is true.
fn truthy(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(b) => *b,
        Value::Number(n) => n.as_f64() != Some(0.0),
        Value::String(s) => !s.is_empty() && s != "0",
        Value::Array(_) | Value::Object(_) => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn args(json: &str) -> Result<Vec<String>, BadRun> {
        run_request(json.as_bytes()).map(|r| r.args)
    }

    #[test]
    fn a_whole_request_is_understood() {
        let request = run_request(
            br#"{"script":"s","args":["a","b c"],"reqid":"r","username":"u","token":"t","async":false,"more":[1]}"#,
        )
        .unwrap();
        assert_eq!(
            (request.script.as_str(), request.reqid.as_str()),
            ("s", "r")
        );
        assert_eq!(request.args, ["a", "b c"]);
        assert_eq!(request.username, "u");
        assert_eq!(request.token.expose(), "t");
        assert!(!request.asynchronous);
    }

    #[test]
    fn nothing_is_an_empty_request_and_what_is_not_an_object_is_refused() {
        assert_eq!(run_request(b"null").unwrap(), RunRequest::default());
        assert_eq!(run_request(b"{}").unwrap(), RunRequest::default());
        for bad in [
            "",
            "[]",
            "[1]",
            "\"x\"",
            "5",
            "true",
            "{",
            "\u{feff}{}",
            "{} x",
        ] {
            assert_eq!(run_request(bad.as_bytes()), Err(BadRun::NotJson), "{bad:?}");
        }
        assert_eq!(run_request(b"{\"script\":\"\xff\"}"), Err(BadRun::NotJson));
    }

    #[test]
    fn arguments_become_text_as_in_the_original() {
        assert_eq!(
            args(r#"{"args":[1,-2,1.5,1.0,1e3,null,true,false,"x"]}"#).unwrap(),
            ["1", "-2", "1.5", "1", "1000", "", "1", "0", "x"]
        );
        assert_eq!(args(r#"{"args":null}"#).unwrap(), Vec::<String>::new());
        let refused = |nested| {
            Err(BadRun::Args {
                reqid: "r".to_owned(),
                nested,
            })
        };
        assert_eq!(args(r#"{"reqid":"r","args":"x"}"#), refused(false));
        assert_eq!(args(r#"{"reqid":"r","args":{"a":1}}"#), refused(false));
        assert_eq!(args(r#"{"reqid":"r","args":[["x"]]}"#), refused(true));
        assert_eq!(args(r#"{"reqid":"r","args":[{}]}"#), refused(true));
    }

    #[test]
    fn truth_is_that_of_the_original() {
        let asynchronous = |json: &str| {
            run_request(format!("{{\"async\":{json}}}").as_bytes())
                .unwrap()
                .asynchronous
        };
        for no in ["false", "null", "0", "0.0", "\"\"", "\"0\""] {
            assert!(!asynchronous(no), "{no}");
        }
        for yes in ["true", "1", "\"false\"", "\"00\"", "[]", "{}", "-1"] {
            assert!(asynchronous(yes), "{yes}");
        }
    }

    #[test]
    fn a_ping_needs_no_body() {
        assert_eq!(reqid_of(b"{\"reqid\":\"abc\"}"), "abc");
        for body in [&b""[..], b"[]", b"nonsense", b"{\"reqid\":[1]}"] {
            assert_eq!(reqid_of(body), "");
        }
    }

    proptest! {
        #[test]
        fn no_body_makes_it_panic(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = run_request(&body);
        }
    }
}
