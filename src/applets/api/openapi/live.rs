//! The document with what there is: names of hosts and scripts (spec/api.md 8.2).

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

/// Operations whose bodies name hosts.
const WITH_HOSTS: [&str; 3] = ["/ping", "/run", "/discovery"];

/// What one version of a script's sidecar is like.
#[derive(Default)]
struct Variant<'a> {
    hosts: BTreeSet<&'a str>,
    version: Option<&'a Value>,
    schema: Option<&'a Value>,
    conflict: bool,
}

/// The document for a fleet at a time.
///
/// `names`: all hosts of the registry. `capabilities`: what hosts said, by name; who said nothing good is left out of the scripts. `epoch`:
/// seconds since 1970, for the version, because a fleet with other scripts is another API.
///
/// Ours: without hosts there is no `enum` (the original's null is no schema), and a variant whose hosts have different bodies under the same
/// version says `conflict`.
pub(in crate::applets::api) fn live(
    mut base: Value,
    names: &[String],
    capabilities: &[(String, Map<String, Value>)],
    epoch: i64,
) -> Value {
    if !names.is_empty() {
        let sorted: BTreeSet<&str> = names.iter().map(String::as_str).collect();
        name_hosts(&mut base, &json!(sorted));
    }
    let scripts = scripts(capabilities);
    if !scripts.is_empty() {
        let names: Vec<&str> = scripts.keys().copied().collect();
        if let Some(script) = base.pointer_mut("/components/schemas/RunRequest/properties/script") {
            script["enum"] = json!(names);
        }
        let told: Map<String, Value> = scripts
            .into_iter()
            .map(|(name, variants)| {
                let variants: Vec<Value> = variants.into_values().map(Variant::told).collect();
                (name.to_owned(), variants.into())
            })
            .collect();
        base["x-ctrl-exec-scripts"] = told.into();
    }
    if let Some(version) = base.pointer_mut("/info/version") {
        *version = dated(version.as_str().unwrap_or_default(), epoch).into();
    }
    base
}

/// Puts the hosts into the bodies that name some, there where they are defined.
fn name_hosts(base: &mut Value, hosts: &Value) {
    for path in WITH_HOSTS {
        for method in ["post", "get"] {
            let path = path.replace('/', "~1");
            let mut at =
                format!("/paths/{path}/{method}/requestBody/content/application~1json/schema");
            let reference = base.pointer(&format!("{at}/$ref"));
            if let Some(target) = reference.and_then(Value::as_str) {
                at = target.trim_start_matches('#').to_owned();
            }
            if let Some(items) = base.pointer_mut(&format!("{at}/properties/hosts/items")) {
                items["enum"] = hosts.clone();
            }
        }
    }
}

/// By name, then by text of the version: none comes first.
fn scripts(
    capabilities: &[(String, Map<String, Value>)],
) -> BTreeMap<&str, BTreeMap<Option<String>, Variant<'_>>> {
    let mut scripts: BTreeMap<&str, BTreeMap<Option<String>, Variant>> = BTreeMap::new();
    for (host, said) in capabilities {
        if said.get("status").and_then(Value::as_str) != Some("ok") {
            continue;
        }
        let Some(Value::Array(entries)) = said.get("scripts") else {
            continue;
        };
        for entry in entries {
            let Some(name) = entry.get("name").and_then(Value::as_str) else {
                continue;
            };
            let version = entry.get("schema_version").filter(|v| !v.is_null());
            let text = version.map(|version| match version {
                Value::String(text) => text.clone(),
                other => other.to_string(),
            });
            let variant = scripts.entry(name).or_default().entry(text).or_default();
            variant.hosts.insert(host);
            variant.version = variant.version.or(version);
            let schema = entry.get("schema").filter(|s| !s.is_null());
            if let (Some(known), Some(schema)) = (variant.schema, schema) {
                variant.conflict |= known != schema;
            }
            variant.schema = variant.schema.or(schema);
        }
    }
    scripts
}

impl Variant<'_> {
    fn told(self) -> Value {
        let mut told = json!({"hosts": self.hosts});
        if let Some(version) = self.version {
            told["schema_version"] = version.clone();
        }
        if let Some(schema) = self.schema {
            told["schema"] = schema.clone();
        }
        if self.conflict {
            told["conflict"] = true.into();
        }
        told
    }
}

/// The version with a date; an earlier one goes.
fn dated(version: &str, epoch: i64) -> String {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let bare = match version.rsplit_once('+') {
        Some((bare, date)) if digits(date) => bare,
        _ => version,
    };
    format!("{bare}+{epoch}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::applets::api::openapi;

    fn said(value: Value) -> Map<String, Value> {
        value.as_object().unwrap().clone()
    }

    fn of(capabilities: &[(&str, Value)]) -> Value {
        let names: Vec<String> = capabilities.iter().map(|(n, _)| (*n).to_owned()).collect();
        let capabilities: Vec<_> = capabilities
            .iter()
            .map(|(name, value)| ((*name).to_owned(), said(value.clone())))
            .collect();
        live(openapi::build(), &names, &capabilities, 1_700_000_000)
    }

    #[test]
    fn hosts_stand_where_bodies_name_them() {
        let document = of(&[("b", json!({})), ("a", json!({}))]);
        for body in ["PingRequest", "RunRequest", "DiscoveryRequest"] {
            let at = format!("/components/schemas/{body}/properties/hosts/items/enum");
            assert_eq!(document.pointer(&at), Some(&json!(["a", "b"])), "{body}");
        }
        assert!(document.get("x-ctrl-exec-scripts").is_none());
        let script = "/components/schemas/RunRequest/properties/script/enum";
        assert_eq!(document.pointer(script), None);
    }

    #[test]
    fn a_body_that_stands_in_its_operation_is_found_too() {
        let inner = json!({"properties": {"hosts": {"items": {"type": "string"}}}});
        let content = json!({"application/json": {"schema": inner}});
        let base = json!({
            "info": {"version": "1"},
            "paths": {"/ping": {"get": {"requestBody": {"content": content}}}},
        });
        let document = live(base, &["a".to_owned()], &[], 7);
        let at = "/paths/~1ping/get/requestBody/content/application~1json/schema/properties/hosts/items/enum";
        assert_eq!(document.pointer(at), Some(&json!(["a"])));
    }

    #[test]
    fn without_agents_only_the_version_differs() {
        let mut document = of(&[]);
        assert_eq!(
            document["info"]["version"],
            format!("{}+1700000000", crate::applets::VERSION)
        );
        document["info"]["version"] = crate::applets::VERSION.into();
        assert_eq!(document, openapi::build());
    }

    #[test]
    fn scripts_have_a_variant_for_each_version() {
        let entry = |name: &str, version: Value, schema: Value| json!({"name": name, "schema_version": version, "schema": schema});
        let ok = |scripts: Value| json!({"status": "ok", "scripts": scripts});
        let document = of(&[
            (
                "c",
                ok(json!([entry("s", json!("2"), json!({"x": 1})), {"name": "plain"}])),
            ),
            (
                "b",
                ok(
                    json!([entry("s", json!("10"), json!({"x": 0})), {"name": "s"}, {"noname": 1}, 7]),
                ),
            ),
            ("a", ok(json!([entry("s", json!(2), json!({"x": 1}))]))),
            (
                "down",
                json!({"status": "error", "scripts": [{"name": "never"}]}),
            ),
            ("odd", json!({"status": "ok", "scripts": {"name": "never"}})),
        ]);
        assert_eq!(
            document["x-ctrl-exec-scripts"],
            json!({
                "plain": [{"hosts": ["c"]}],
                "s": [
                    {"hosts": ["b"]},
                    {"hosts": ["b"], "schema_version": "10", "schema": {"x": 0}},
                    {"hosts": ["a", "c"], "schema_version": "2", "schema": {"x": 1}},
                ],
            })
        );
        assert_eq!(
            document.pointer("/components/schemas/RunRequest/properties/script/enum"),
            Some(&json!(["plain", "s"]))
        );
        let hosts = "/components/schemas/RunRequest/properties/hosts/items/enum";
        assert_eq!(
            document.pointer(hosts),
            Some(&json!(["a", "b", "c", "down", "odd"]))
        );
    }

    #[test]
    fn two_bodies_of_one_version_are_said_to_be_in_conflict() {
        let host = |n: i32| json!({"status": "ok", "scripts": [{"name": "s", "schema_version": "1", "schema": {"n": n}}]});
        let document = of(&[("first", host(1)), ("second", host(2)), ("third", host(1))]);
        assert_eq!(
            document["x-ctrl-exec-scripts"]["s"],
            json!([{"hosts": ["first", "second", "third"], "schema_version": "1", "schema": {"n": 1}, "conflict": true}])
        );
    }

    #[test]
    fn dates_are_not_stacked() {
        assert_eq!(dated("1.0", 5), "1.0+5");
        assert_eq!(dated("1.0+4", 5), "1.0+5");
        assert_eq!(dated("1.0+git", 5), "1.0+git+5");
        assert_eq!(dated("1.0+", 5), "1.0++5");
        let once = live(openapi::build(), &[], &[], 1);
        let twice = live(once.clone(), &[], &[], 2);
        let version = format!("{}+2", crate::applets::VERSION);
        assert_eq!(twice["info"]["version"], version);
    }
}
