//! Schema sidecars: `<script path>.schema.json`, carried and never interpreted (spec/agent.md 4.4, spec/integrations.md 1).

use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;

use serde_json::{Number, Value};

use crate::core::types::{AbsolutePath, hex, sha256};

/// Largest sidecar.
pub const MAX_BYTES: u64 = 65_536;
/// `REASON` of the log line `schema-version-derive`.
pub const DERIVE_REASON: &str = "explicit version invalid or reserved - deriving hash";

/// A usable sidecar.
#[derive(Clone, Debug, PartialEq)]
pub struct Schema {
    /// The object as parsed.
    pub body: Value,
    /// The body's own version as it stands there (a text or a number), or `sha256:` and 12 hex digits.
    pub version: Value,
    /// The body had a `version` that cannot be used: log `schema-version-derive` with [`DERIVE_REASON`].
    pub version_derived: bool,
}

/// What became of a sidecar.
#[derive(Clone, Debug, PartialEq)]
pub enum Sidecar {
    /// There is none: nothing to say.
    Absent,
    /// Treated as absent: log `schema-skip` with this reason.
    Skipped {
        reason: String,
    },
    Loaded(Schema),
}

/// Where the sidecar of a script is looked up. Links are followed and `script_dirs` does not matter.
pub fn sidecar_path(script: &AbsolutePath) -> PathBuf {
    let mut path = script.as_path().as_os_str().to_owned();
    path.push(".schema.json");
    PathBuf::from(path)
}

/// Reads the sidecar of a script: the file of its annotation `schema=`, else the one beside it. Never fails: a bad sidecar must not
/// harm its script.
pub fn load(script: &AbsolutePath, annotated: Option<&AbsolutePath>) -> Sidecar {
    let path = annotated.map_or_else(|| sidecar_path(script), |path| path.as_path().to_owned());
    match read(&path) {
        Ok(bytes) => judge(&bytes),
        // A file that somebody has named should be there.
        Err(Unreadable::Absent) if annotated.is_some() => Sidecar::Skipped {
            reason: format!("cannot read: '{}' does not exist", path.display()),
        },
        Err(Unreadable::Absent) => Sidecar::Absent,
        Err(Unreadable::Because(reason)) => Sidecar::Skipped { reason },
    }
}

enum Unreadable {
    Absent,
    Because(String),
}

impl From<io::Error> for Unreadable {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Self::Absent,
            _ => Self::Because(format!("cannot read: {error}")),
        }
    }
}

fn read(path: &std::path::Path) -> Result<Vec<u8>, Unreadable> {
    // O_NONBLOCK: a FIFO in place of the sidecar must not hold us for ever.
    let file = std::fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)?;
    let meta = file.metadata()?;
    if !meta.is_file() {
        return Err(Unreadable::Because(
            "cannot read: not a regular file".to_owned(),
        ));
    }
    let oversize = |n: u64| Unreadable::Because(format!("oversize: {n} > {MAX_BYTES} bytes"));
    if meta.len() > MAX_BYTES {
        return Err(oversize(meta.len()));
    }
    let mut bytes = Vec::new();
    let read = file.take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
    if read as u64 > MAX_BYTES {
        return Err(oversize(read as u64));
    }
    Ok(bytes)
}

/// Judges the content of a sidecar.
pub fn judge(bytes: &[u8]) -> Sidecar {
    let body: Value = match serde_json::from_slice(bytes) {
        Ok(body) => body,
        Err(error) => {
            return Sidecar::Skipped {
                reason: format!("invalid JSON: {error}"),
            };
        }
    };
    let Value::Object(fields) = &body else {
        return Sidecar::Skipped {
            reason: "not a JSON object".to_owned(),
        };
    };
    let given = fields.get("version").filter(|v| !v.is_null());
    let explicit = given.filter(|version| match version {
        Value::String(text) => is_version(text),
        Value::Number(number) => is_version(&number_text(number)),
        _ => false,
    });
    let version_derived = given.is_some() && explicit.is_none();
    let version = match explicit {
        Some(version) => version.clone(),
        None => Value::String(derived_version(&body)),
    };
    Sidecar::Loaded(Schema {
        version,
        version_derived,
        body,
    })
}

fn is_version(text: &str) -> bool {
    let fits = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    (1..=64).contains(&text.len()) && text.bytes().all(fits)
}

/// `sha256:` and the first 12 hex digits of the digest of the canonical form.
fn derived_version(body: &Value) -> String {
    let digest = hex(&sha256(&[&canonical_bytes(body)]));
    format!("sha256:{}", &digest[..12])
}

/// The bytes that the original hashes: Latin-1 where that can express everything, else UTF-8.
fn canonical_bytes(body: &Value) -> Vec<u8> {
    let mut text = String::new();
    write_canonical(&mut text, body);
    let latin1: Option<Vec<u8>> = text
        .chars()
        .map(|c| u8::try_from(u32::from(c)).ok())
        .collect();
    latin1.unwrap_or_else(|| text.into_bytes())
}

/// Compact JSON with sorted keys and numbers as Perl prints them.
fn write_canonical(out: &mut String, value: &Value) {
    match value {
        Value::Null => out.push_str("null"),
        Value::Bool(true) => out.push_str("true"),
        Value::Bool(false) => out.push_str("false"),
        Value::Number(number) => out.push_str(&number_text(number)),
        Value::String(text) => write_string(out, text),
        Value::Array(items) => {
            out.push('[');
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    out.push(',');
                }
                write_canonical(out, item);
            }
            out.push(']');
        }
        Value::Object(fields) => {
            let mut fields: Vec<_> = fields.iter().collect();
            fields.sort_by_key(|(key, _)| key.as_str());
            out.push('{');
            for (index, (key, item)) in fields.into_iter().enumerate() {
                if index > 0 {
                    out.push(',');
                }
                write_string(out, key);
                out.push(':');
                write_canonical(out, item);
            }
            out.push('}');
        }
    }
}

/// A JSON string: quote, backslash and control characters escaped, nothing else.
fn write_string(out: &mut String, text: &str) {
    out.push_str(&Value::from(text).to_string());
}

/// Integers as they are, others like C's `%.15g`, which is how Perl turns a float into text.
fn number_text(number: &Number) -> String {
    if number.is_i64() || number.is_u64() {
        return number.to_string();
    }
    number
        .as_f64()
        .map_or_else(|| number.to_string(), float_text)
}

fn float_text(value: f64) -> String {
    const DIGITS: i32 = 15;
    if value == 0.0 {
        return "0".to_owned();
    }
    // "d.dddddddddddddde<exponent>", rounded to 15 significant digits.
    let scientific = format!("{value:.14e}");
    let Some((mantissa, exponent)) = scientific.split_once('e') else {
        return scientific;
    };
    let Ok(exponent) = exponent.parse::<i32>() else {
        return scientific;
    };
    let trim = |text: &str| match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text.to_owned(),
    };
    if !(-4..DIGITS).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{}e{sign}{:02}", trim(mantissa), exponent.abs());
    }
    let decimals = usize::try_from(DIGITS - 1 - exponent).unwrap_or(0);
    trim(&format!("{value:.decimals$}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn loaded(text: &str) -> Schema {
        match judge(text.as_bytes()) {
            Sidecar::Loaded(schema) => schema,
            other => panic!("{text}: {other:?}"),
        }
    }

    fn canonical(text: &str) -> Vec<u8> {
        canonical_bytes(&serde_json::from_str(text).unwrap())
    }

    #[test]
    fn an_explicit_version_is_kept_as_it_is() {
        for (body, version) in [
            (r#"{"version":"1.2-a_B"}"#, json!("1.2-a_B")),
            (r#"{"version":2}"#, json!(2)),
            (r#"{"version":-1.5}"#, json!(-1.5)),
        ] {
            let schema = loaded(body);
            assert_eq!(schema.version, version);
            assert!(!schema.version_derived);
        }
    }

    #[test]
    fn an_unusable_version_is_derived_and_said() {
        let long = format!(r#"{{"version":"{}"}}"#, "v".repeat(65));
        for body in [
            r#"{"version":"sha256:abc"}"#,
            r#"{"version":""}"#,
            r#"{"version":"a b"}"#,
            r#"{"version":1e20}"#,
            r#"{"version":true}"#,
            r#"{"version":{}}"#,
            &long,
        ] {
            let schema = loaded(body);
            assert!(schema.version_derived, "{body}");
            let text = schema.version.as_str().unwrap().to_owned();
            assert!(text.starts_with("sha256:") && text.len() == 19, "{text}");
        }
        assert!(!loaded("{}").version_derived);
        assert!(!loaded(r#"{"version":null}"#).version_derived);
    }

    #[test]
    fn the_derived_version_is_the_digest_of_the_canonical_form() {
        // printf '{}' | sha256sum
        assert_eq!(loaded("{}").version, json!("sha256:44136fa355b3"));
        // printf '{"a":1}' | sha256sum
        assert_eq!(loaded(r#"{"a":1}"#).version, json!("sha256:015abd7f5cc5"));
        let one = loaded("{\"b\": [1.0, 1e3],\n \"a\": \"x/y\"}");
        let two = loaded(r#"{"a":"x\/y","b":[1,1000]}"#);
        assert_eq!(one.version, two.version);
        assert_ne!(one.version, loaded(r#"{"a":"x/y","b":[1,1001]}"#).version);
    }

    #[test]
    fn canonical_form() {
        assert_eq!(
            canonical("{\"b\":null,\"a\":{\"z\":true,\"y\":\"\\u0001\\n\\/\\\"\\\\\\u007f\"}}"),
            b"{\"a\":{\"y\":\"\\u0001\\n/\\\"\\\\\x7f\",\"z\":true},\"b\":null}"
        );
        assert_eq!(canonical("[\"\u{e9}\"]"), b"[\"\xe9\"]");
        assert_eq!(
            canonical("[\"\u{e9}\u{20ac}\"]"),
            "[\"\u{e9}\u{20ac}\"]".as_bytes()
        );
    }

    #[test]
    fn numbers_are_printed_as_perl_prints_them() {
        for (json, text) in [
            ("1.0", "1"),
            ("1e3", "1000"),
            ("0.1", "0.1"),
            ("-0.5", "-0.5"),
            ("1.5e-7", "1.5e-07"),
            ("0.0001", "0.0001"),
            ("0.00001", "1e-05"),
            ("1e14", "100000000000000"),
            ("1e15", "1e+15"),
            ("1e100", "1e+100"),
            ("123456789.125", "123456789.125"),
            ("0.30000000000000004", "0.3"),
            ("9007199254740993", "9007199254740993"),
            ("18446744073709551615", "18446744073709551615"),
            ("-9223372036854775808", "-9223372036854775808"),
            ("0.0", "0"),
        ] {
            let number: Number = serde_json::from_str(json).unwrap();
            assert_eq!(number_text(&number), text, "{json}");
        }
    }

    #[test]
    fn bad_sidecars_are_skipped_with_the_reason_of_the_original() {
        let reason = |bytes: &[u8]| match judge(bytes) {
            Sidecar::Skipped { reason } => reason,
            other => panic!("{other:?}"),
        };
        assert!(reason(b"{").starts_with("invalid JSON: "));
        assert!(reason(b"").starts_with("invalid JSON: "));
        assert!(reason(b"{\"a\":\"\xff\"}").starts_with("invalid JSON: "));
        assert_eq!(reason(b"[1]"), "not a JSON object");
        let deep = "[".repeat(100_000);
        assert!(reason(deep.as_bytes()).starts_with("invalid JSON: "));
    }

    #[test]
    fn files_are_bounded_and_absence_is_silent() {
        let dir = tempfile::tempdir().unwrap();
        let script = dir.path().join("check.sh");
        let script = AbsolutePath::new(&script.to_string_lossy()).unwrap();
        assert_eq!(load(&script, None), Sidecar::Absent);
        let path = dir.path().join("check.sh.schema.json");
        let fill = |n: usize| format!("{{\"d\":\"{}\"}}", "x".repeat(n - 8));
        std::fs::write(&path, fill(65_536)).unwrap();
        assert!(matches!(load(&script, None), Sidecar::Loaded(_)));
        std::fs::write(&path, fill(65_537)).unwrap();
        let reason = "oversize: 65537 > 65536 bytes".to_owned();
        assert_eq!(load(&script, None), Sidecar::Skipped { reason });
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        assert!(matches!(
            load(&script, None),
            Sidecar::Skipped { reason } if reason.starts_with("cannot read:")
        ));
    }

    #[test]
    fn an_annotation_names_another_file_which_must_be_there() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| AbsolutePath::new(&dir.path().join(name).to_string_lossy()).unwrap();
        let script = at("check.sh");
        std::fs::write(
            dir.path().join("check.sh.schema.json"),
            "{\"version\":\"beside\"}",
        )
        .unwrap();
        std::fs::write(dir.path().join("other.json"), "{\"version\":\"named\"}").unwrap();
        let version = |annotated: Option<&AbsolutePath>| match load(&script, annotated) {
            Sidecar::Loaded(schema) => schema.version,
            other => panic!("{other:?}"),
        };
        assert_eq!(version(None), json!("beside"));
        assert_eq!(version(Some(&at("other.json"))), json!("named"));
        assert!(matches!(
            load(&script, Some(&at("absent.json"))),
            Sidecar::Skipped { reason } if reason.contains("absent.json' does not exist")
        ));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = judge(&bytes);
        }

        #[test]
        fn floats_keep_fifteen_digits(value in proptest::num::f64::NORMAL) {
            let back: f64 = float_text(value).parse().unwrap();
            prop_assert!(((back - value) / value).abs() < 1e-14);
        }
    }
}
