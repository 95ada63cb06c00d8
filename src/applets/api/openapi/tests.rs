//! What must hold for the document: it agrees with the table, with the names that generated clients know, and with OpenAPI.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{QUERIES, build, document, schemas};
use crate::applets::VERSION;
use crate::applets::api::routes::ROUTES;

const METHODS: [&str; 8] = [
    "get", "put", "post", "delete", "options", "head", "patch", "trace",
];

/// Path, method and definition of every operation.
fn operations(document: &Value) -> Vec<(String, String, Value)> {
    let mut operations = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            assert!(METHODS.contains(&method.as_str()), "{path}: {method}");
            operations.push((path.clone(), method.clone(), operation.clone()));
        }
    }
    operations
}

fn walk(value: &Value, see: &mut dyn FnMut(&Value)) {
    see(value);
    match value {
        Value::Object(members) => members.values().for_each(|v| walk(v, see)),
        Value::Array(items) => items.iter().for_each(|v| walk(v, see)),
        _ => {}
    }
}

#[test]
fn document_and_table_agree_in_both_directions() {
    let document = build();
    let described: BTreeSet<(String, String, String)> = operations(&document)
        .into_iter()
        .map(|(path, method, operation)| {
            (
                path,
                method,
                operation["operationId"].as_str().unwrap().to_owned(),
            )
        })
        .collect();
    let served: BTreeSet<(String, String, String)> = ROUTES
        .iter()
        .map(|route| {
            let method = route.method.as_str().to_ascii_lowercase();
            (route.path.to_owned(), method, route.operation.to_owned())
        })
        .collect();
    assert_eq!(described, served);
    for route in ROUTES {
        let method = route.method.as_str().to_ascii_lowercase();
        let operation = &document["paths"][route.path][method];
        assert_eq!(operation.get("requestBody").is_some(), route.body.is_some());
        let codes: BTreeSet<&str> = operation["responses"]
            .as_object()
            .unwrap()
            .keys()
            .map(String::as_str)
            .collect();
        for success in route.success {
            assert!(
                codes.contains(success.code.to_string().as_str()),
                "{route:?}"
            );
        }
        for code in route.errors {
            assert!(codes.contains(code.to_string().as_str()), "{route:?}");
        }
    }
    for query in QUERIES {
        assert!(
            ROUTES
                .iter()
                .any(|route| route.operation == query.operation),
            "{}",
            query.operation
        );
    }
}

#[test]
fn references_lead_somewhere_and_nothing_is_defined_for_nobody() {
    let document = build();
    let mut targets = BTreeSet::new();
    walk(&document, &mut |value| {
        if let Some(target) = value.get("$ref").and_then(Value::as_str) {
            let pointer = target.strip_prefix('#').expect("a local reference");
            assert!(document.pointer(pointer).is_some(), "{target}");
            targets.insert(target.to_owned());
            assert_eq!(value.as_object().unwrap().len(), 1, "{target} has siblings");
        }
    });
    for part in ["schemas", "responses"] {
        for name in document["components"][part].as_object().unwrap().keys() {
            assert!(
                targets.contains(&format!("#/components/{part}/{name}")),
                "{name} is not used"
            );
        }
    }
}

#[test]
fn rules_of_openapi_hold() {
    let document = build();
    assert_eq!(document["openapi"], "3.1.0");
    assert_eq!(document["info"]["title"], "ctrl-exec API");
    assert_eq!(document["info"]["version"], VERSION);
    let mut ids = BTreeSet::new();
    for (path, method, operation) in operations(&document) {
        assert!(path.starts_with('/'), "{path}");
        assert!(
            ids.insert(operation["operationId"].to_string()),
            "{path} {method}: its id is not unique"
        );
        let responses = operation["responses"].as_object().unwrap();
        assert!(
            responses.keys().any(|code| code.starts_with('2')),
            "{path} {method}"
        );
        for response in responses.values() {
            let response = match response.get("$ref").and_then(Value::as_str) {
                Some(target) => document.pointer(&target[1..]).unwrap(),
                None => response,
            };
            assert!(response["description"].is_string());
        }
        let mut seen = BTreeSet::new();
        let mut in_path = BTreeSet::new();
        for parameter in operation["parameters"].as_array().into_iter().flatten() {
            let (name, place) = (
                parameter["name"].as_str().unwrap(),
                parameter["in"].as_str().unwrap(),
            );
            assert!(seen.insert((name, place)), "{path}: {name} twice");
            assert!(parameter["schema"].is_object());
            if place == "path" {
                assert_eq!(parameter["required"], true);
                in_path.insert(name);
            }
        }
        let named: BTreeSet<&str> = path
            .split('{')
            .skip(1)
            .map(|part| part.split('}').next().unwrap())
            .collect();
        assert_eq!(in_path, named, "{path} {method}");
    }
    // Every schema says of what type it is, and what it requires it describes.
    walk(&document["components"]["schemas"], &mut |value| {
        if let Some(required) = value.get("required").and_then(Value::as_array) {
            for name in required {
                assert!(
                    value["properties"].get(name.as_str().unwrap()).is_some(),
                    "{name}"
                );
            }
        }
        if value.get("properties").is_some_and(Value::is_object) && value.get("type").is_some() {
            assert_eq!(value["type"], "object");
        }
    });
    for (url, server) in ["http://{host}:{port}", "https://{host}:{port}"]
        .iter()
        .zip(document["servers"].as_array().unwrap())
    {
        assert_eq!(server["url"], *url);
        assert_eq!(server["variables"]["host"]["default"], "localhost");
        assert_eq!(server["variables"]["port"]["default"], "7445");
    }
}

#[test]
fn what_generated_clients_know_is_there() {
    let document = build();
    for (path, method, id) in [
        ("/health", "get", "getHealth"),
        ("/", "get", "getIndex"),
        ("/openapi.json", "get", "getOpenapi"),
        ("/openapi-live.json", "get", "getOpenapiLive"),
        ("/ping", "post", "pingAgents"),
        ("/run", "post", "runScript"),
        ("/status/{reqid}", "get", "getRunStatus"),
        ("/discovery", "get", "discoverAgentsGet"),
        ("/discovery", "post", "discoverAgentsPost"),
    ] {
        assert_eq!(document["paths"][path][method]["operationId"], id);
    }
    for (name, required) in [
        ("HealthResponse", json!(["ok", "version"])),
        ("PingRequest", json!(["hosts"])),
        ("PingResult", json!(["host", "status"])),
        ("PingResponse", json!(["ok", "results"])),
        ("RunRequest", json!(["hosts", "script"])),
        ("RunResult", json!(["host", "exit"])),
        ("RunResponse", json!(["ok", "reqid", "results"])),
        ("AsyncSubmitResult", json!(["host", "status"])),
        ("AsyncSubmitResponse", json!(["ok", "reqid", "results"])),
        ("HostStatus", json!(["status"])),
        ("StatusResponse", json!(["ok", "reqid"])),
        ("DiscoveryResponse", json!(["ok", "hosts"])),
        ("ErrorResponse", json!(["ok", "error"])),
    ] {
        assert_eq!(
            document["components"]["schemas"][name]["required"], required,
            "{name}"
        );
    }
    for name in ["DiscoveryRequest", "ScriptEntry", "HostCapabilities"] {
        assert!(
            document["components"]["schemas"][name].is_object(),
            "{name}"
        );
    }
    for name in [
        "BadRequest",
        "Forbidden",
        "Conflict",
        "NotFound",
        "DiscoverySuccess",
    ] {
        assert!(
            document["components"]["responses"][name].is_object(),
            "{name}"
        );
    }
    let hosts =
        &document["components"]["schemas"]["StatusResponse"]["properties"]["hosts"]["oneOf"];
    assert_eq!(
        hosts[0]["additionalProperties"]["$ref"],
        "#/components/schemas/HostStatus"
    );
    assert_eq!(hosts[1]["items"]["type"], "string");
    let status = document["paths"]["/status/{reqid}"]["get"]["parameters"]
        .as_array()
        .unwrap();
    assert!(
        status
            .iter()
            .any(|p| p["name"] == "reqid" && p["schema"]["pattern"] == "^[a-f0-9]+$")
    );
    assert!(
        status
            .iter()
            .any(|p| p["name"] == "Authorization" && p["required"] == false)
    );
    let run = &document["components"]["schemas"]["RunRequest"]["properties"];
    assert_eq!(run["hosts"]["minItems"], 1);
    assert!(run["script"]["pattern"].is_string());
}

#[test]
fn streams_are_said_to_be_there() {
    let document = build();
    for route in ROUTES {
        let method = route.method.as_str().to_ascii_lowercase();
        let content = &document["paths"][route.path][method]["responses"]["200"]["content"];
        for kind in ["text/event-stream", "application/x-ndjson"] {
            assert_eq!(
                content.get(kind).is_some(),
                route.streams,
                "{route:?} {kind}"
            );
        }
    }
}

#[test]
fn names_of_schemas_are_unique() {
    let names: BTreeSet<&str> = schemas::SCHEMAS.iter().map(|schema| schema.name).collect();
    assert_eq!(names.len(), schemas::SCHEMAS.len());
    for body in ROUTES.iter().filter_map(|route| route.body.as_ref()) {
        assert!(!names.contains(body.name), "{}", body.name);
    }
}

#[test]
fn the_document_is_served_as_it_was_made() {
    let served: Value = serde_json::from_slice(&document().bytes).unwrap();
    assert_eq!(served, build());
    let etag = &document().etag;
    assert!(
        etag.starts_with('"') && etag.ends_with('"') && etag.len() == 34,
        "{etag}"
    );
}
