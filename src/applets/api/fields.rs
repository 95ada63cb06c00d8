//! The fields of request bodies: one definition reads them and describes them, so that the OpenAPI document cannot tell anything else than
//! what the server takes. Texts of refusals are those of spec/api.md 7 where it has one.

use serde_json::{Map, Value, json};

use crate::core::types::Secret;
use crate::core::wire;

/// One kind of field.
pub(super) trait Field: Sized {
    const REQUIRED: bool = false;

    /// JSON Schema.
    fn schema() -> Value;

    /// `value` is `None` when the member is absent.
    ///
    /// # Errors
    /// The detail of a 400.
    fn read(name: &'static str, value: Option<&Value>) -> Result<Self, String>;
}

/// A request body: a struct whose fields read and describe themselves.
macro_rules! request_body {
    ($(#[doc = $about:literal])* $name:ident { $($(#[doc = $doc:literal])+ $field:ident = $key:literal : $kind:ty,)* }) => {
        $(#[doc = $about])*
        #[derive(Debug)]
        pub(super) struct $name { $($(#[doc = $doc])+ pub(super) $field: $kind,)* }

        impl $name {
            /// Reads the members; others are ignored.
            ///
            /// # Errors
            /// The detail of a 400, for the first field that does not fit.
            pub(super) fn read(body: &Map<String, Value>) -> Result<Self, String> {
                Ok(Self { $($field: <$kind as Field>::read($key, body.get($key))?,)* })
            }

            /// JSON Schema of the body.
            pub(super) fn schema() -> Value {
                object_schema(
                    concat!($($about,)*).trim(),
                    vec![$(($key, concat!($($doc,)+).trim(), <$kind as Field>::REQUIRED, <$kind as Field>::schema()),)*],
                )
            }
        }
    };
}

/// A schema of type object: name, description, whether it is required, schema of each member.
pub(super) fn object_schema(about: &str, members: Vec<(&str, &str, bool, Value)>) -> Value {
    let mut properties = Map::new();
    let mut required = Vec::new();
    for (name, doc, needed, mut schema) in members {
        if let Value::Object(schema) = &mut schema
            && !schema.contains_key("$ref")
        {
            schema.insert("description".to_owned(), doc.into());
        }
        properties.insert(name.to_owned(), schema);
        if needed {
            required.push(name.to_owned());
        }
    }
    let mut schema = json!({"type": "object", "properties": properties});
    if !about.is_empty() {
        schema["description"] = about.into();
    }
    if !required.is_empty() {
        schema["required"] = required.into();
    }
    schema
}

fn strings(name: &str, values: &[Value]) -> Result<Vec<String>, String> {
    let one = |(at, value): (usize, &Value)| match value {
        Value::String(text) => Ok(text.clone()),
        _ => Err(format!("{name}[{at}] must be a string")),
    };
    values.iter().enumerate().map(one).collect()
}

/// At least one host, at most 500.
#[derive(Debug)]
pub(super) struct Hosts(pub(super) Vec<String>);

impl Field for Hosts {
    const REQUIRED: bool = true;

    fn schema() -> Value {
        json!({"type": "array", "minItems": 1, "maxItems": wire::MAX_HOSTS, "items": {"type": "string"}})
    }

    fn read(name: &'static str, value: Option<&Value>) -> Result<Self, String> {
        match value {
            Some(Value::Array(values)) if !values.is_empty() => Ok(Self(bounded(name, values)?)),
            _ => Err(format!("{name} must be a non-empty array")),
        }
    }
}

fn bounded(name: &'static str, values: &[Value]) -> Result<Vec<String>, String> {
    if values.len() > wire::MAX_HOSTS {
        return Err(format!("too many hosts (max {})", wire::MAX_HOSTS));
    }
    strings(name, values)
}

/// Hosts, or all: anything but an array with something in it means all, as ever.
#[derive(Debug)]
pub(super) struct HostsOrAll(pub(super) Option<Vec<String>>);

impl Field for HostsOrAll {
    fn schema() -> Value {
        json!({"type": "array", "maxItems": wire::MAX_HOSTS, "items": {"type": "string"}})
    }

    fn read(name: &'static str, value: Option<&Value>) -> Result<Self, String> {
        match value {
            Some(Value::Array(values)) if !values.is_empty() => {
                bounded(name, values).map(|hosts| Self(Some(hosts)))
            }
            _ => Ok(Self(None)),
        }
    }
}

/// Name of a script as it may stand in an allowlist.
#[derive(Debug)]
pub(super) struct Script(pub(super) String);

impl Field for Script {
    const REQUIRED: bool = true;

    fn schema() -> Value {
        json!({"type": "string", "pattern": "^[A-Za-z0-9_-]+$"})
    }

    fn read(name: &'static str, value: Option<&Value>) -> Result<Self, String> {
        let plain = |text: &&str| {
            !text.is_empty()
                && text
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
        };
        value
            .and_then(Value::as_str)
            .filter(plain)
            .map(|text| Self(text.to_owned()))
            .ok_or_else(|| format!("{name} name required (alphanumeric and hyphens only)"))
    }
}

/// Arguments. Numbers and booleans are taken as their text, which is what a script would get anyway.
#[derive(Debug)]
pub(super) struct Args(pub(super) Vec<String>);

impl Field for Args {
    fn schema() -> Value {
        json!({"type": "array", "items": {"type": ["string", "number", "boolean"]}})
    }

    fn read(name: &'static str, value: Option<&Value>) -> Result<Self, String> {
        let one = |(at, value): (usize, &Value)| match value {
            Value::String(text) => Ok(text.clone()),
            Value::Number(_) | Value::Bool(_) => Ok(value.to_string()),
            _ => Err(format!("{name}[{at}] must be a string or a number")),
        };
        match value {
            None | Some(Value::Null) => Ok(Self(Vec::new())),
            Some(Value::Array(values)) => {
                let args: Result<_, _> = values.iter().enumerate().map(one).collect();
                args.map(Self)
            }
            Some(_) => Err(format!("{name} must be an array")),
        }
    }
}

/// A text, empty when absent.
impl Field for String {
    fn schema() -> Value {
        json!({"type": ["string", "null"]})
    }

    fn read(name: &'static str, value: Option<&Value>) -> Result<Self, String> {
        match value {
            None | Some(Value::Null) => Ok(Self::new()),
            Some(Value::String(text)) => Ok(text.clone()),
            Some(_) => Err(format!("{name} must be a string")),
        }
    }
}

impl Field for Secret<String> {
    fn schema() -> Value {
        json!({"type": ["string", "null"], "format": "password"})
    }

    fn read(name: &'static str, value: Option<&Value>) -> Result<Self, String> {
        String::read(name, value).map(Self::new)
    }
}

/// True by the rules of the original's language: a number that is not 0, a text other than "" and "0", any array or object.
#[derive(Debug)]
pub(super) struct Truthy(pub(super) bool);

impl Field for Truthy {
    fn schema() -> Value {
        json!({"type": ["boolean", "number", "string", "array", "object", "null"], "default": false})
    }

    fn read(_: &'static str, value: Option<&Value>) -> Result<Self, String> {
        Ok(Self(match value {
            None | Some(Value::Null) => false,
            Some(Value::Bool(yes)) => *yes,
            Some(Value::Number(number)) => number.as_f64() != Some(0.0),
            Some(Value::String(text)) => !text.is_empty() && text != "0",
            Some(Value::Array(_) | Value::Object(_)) => true,
        }))
    }
}

/// Tags that a host must have, all of them.
#[derive(Debug, Default)]
pub(super) struct Tags(pub(super) Vec<(String, String)>);

impl Field for Tags {
    fn schema() -> Value {
        json!({"type": ["object", "null"], "additionalProperties": {"type": "string"}})
    }

    fn read(name: &'static str, value: Option<&Value>) -> Result<Self, String> {
        let one = |(key, value): (&String, &Value)| match value {
            Value::String(text) => Ok((key.clone(), text.clone())),
            _ => Err(format!("{name}: the value of a tag must be a string")),
        };
        match value {
            None | Some(Value::Null) => Ok(Self::default()),
            Some(Value::Object(tags)) => {
                let tags: Result<_, _> = tags.iter().map(one).collect();
                tags.map(Self)
            }
            Some(_) => Err(format!("{name} must be an object of strings")),
        }
    }
}

request_body! {
    /// Which hosts to ask whether they are there.
    PingRequest {
        /// Registered agents, each with an optional `:PORT`.
        hosts = "hosts": Hosts,
        /// Name that the caller claims; handed to the auth hook, never verified by the server.
        username = "username": String,
        /// Credential for the auth hook.
        token = "token": Secret<String>,
    }
}

request_body! {
    /// A script to run and where.
    RunRequest {
        /// Registered agents, each with an optional `:PORT`.
        hosts = "hosts": Hosts,
        /// Name of the script in the allowlists of the hosts.
        script = "script": Script,
        /// Arguments of the script, handed over one by one; no shell sees them.
        args = "args": Args,
        /// Name that the caller claims; handed to the hooks and to the script, never verified by the server.
        username = "username": String,
        /// Credential for the hooks of the dispatcher and of the agents.
        token = "token": Secret<String>,
        /// Answer at once with 202; the result is to be had from `/status/{reqid}`.
        background = "async": Truthy,
    }
}

request_body! {
    /// Which hosts to ask for their scripts.
    DiscoveryRequest {
        /// Registered agents, each with an optional `:PORT`; absent or empty means all.
        hosts = "hosts": HostsOrAll,
        /// Name that the caller claims; handed to the auth hook, never verified by the server.
        username = "username": String,
        /// Credential for the auth hook.
        token = "token": Secret<String>,
        /// Only hosts that had all these tags when they were last discovered.
        tags = "tags": Tags,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(body: Value) -> Result<RunRequest, String> {
        RunRequest::read(body.as_object().unwrap())
    }

    #[test]
    fn fields_are_judged_in_the_order_of_the_catalogue() {
        let told = |body: Value| run(body).unwrap_err();
        for hosts in [json!(null), json!([]), json!("web1"), json!({})] {
            assert_eq!(
                told(json!({"hosts": hosts, "script": "!", "args": 1})),
                "hosts must be a non-empty array"
            );
        }
        for script in [
            json!(null),
            json!(""),
            json!("a b"),
            json!("é"),
            json!("x\n"),
            json!(7),
        ] {
            assert_eq!(
                told(json!({"hosts": ["a"], "script": script, "args": 1})),
                "script name required (alphanumeric and hyphens only)"
            );
        }
        assert_eq!(
            told(json!({"hosts": ["a"], "script": "x", "args": "y"})),
            "args must be an array"
        );
        assert_eq!(
            told(json!({"hosts": [1], "script": "x"})),
            "hosts[0] must be a string"
        );
        assert_eq!(
            told(json!({"hosts": ["a"], "script": "x", "args": ["a", {}]})),
            "args[1] must be a string or a number"
        );
        assert_eq!(
            told(json!({"hosts": ["a"], "script": "x", "token": {}})),
            "token must be a string"
        );
        let many: Vec<String> = (0..501).map(|n| format!("h{n}")).collect();
        assert_eq!(
            told(json!({"hosts": many, "script": "x"})),
            "too many hosts (max 500)"
        );
    }

    #[test]
    fn what_is_given_arrives() {
        let request = run(
            json!({"hosts": ["a", "b:1"], "script": "s_1-x", "args": ["x", 2, true], "more": 1}),
        )
        .unwrap();
        assert_eq!(request.hosts.0, ["a", "b:1"]);
        assert_eq!(request.args.0, ["x", "2", "true"]);
        assert!(request.username.is_empty() && !request.background.0);
        for (value, truth) in [
            (json!(true), true),
            (json!(0), false),
            (json!(0.0), false),
            (json!(-1), true),
            (json!("0"), false),
            (json!("no"), true),
            (json!(""), false),
            (json!([]), true),
            (json!(null), false),
        ] {
            let read = run(json!({"hosts": ["a"], "script": "x", "async": value})).unwrap();
            assert_eq!(read.background.0, truth, "{value}");
        }
    }

    #[test]
    fn schemas_name_what_is_required() {
        let schema = RunRequest::schema();
        assert_eq!(schema["required"], json!(["hosts", "script"]));
        assert_eq!(schema["properties"]["hosts"]["minItems"], 1);
        assert!(schema["properties"]["async"]["description"].is_string());
        assert!(DiscoveryRequest::schema().get("required").is_none());
    }
}
