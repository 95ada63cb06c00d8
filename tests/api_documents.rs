//! The descriptions that the API gives of itself, and answers of a real server against them (spec/api.md 8).

mod common;

use common::openapi::{check_answer, fits, validate};
use common::web::{self, ApiServer, Request};
use common::{Paired, fleet};
use serde_json::{Value, json};

// ---- the check itself ----

fn small_document() -> Value {
    let error = json!({"description": "no", "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}});
    json!({
        "paths": {
            "/health": {"get": {"responses": {
                "200": {"description": "ok", "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Thing"}}}},
                "304": {"description": "the same"},
                "403": {"$ref": "#/components/responses/NotFound"},
                "405": {"$ref": "#/components/responses/NotFound"},
            }}},
            "/runs/{reqid}": {"delete": {"responses": {
                "200": {"description": "ok", "content": {"text/plain; charset=utf-8": {"schema": {"type": "string"}}}},
            }}},
        },
        "components": {
            "responses": {"NotFound": error},
            "schemas": {
                "Error": {"type": "object", "required": ["ok"], "properties": {"ok": {"type": "boolean", "const": false}}},
                "Thing": {
                    "type": "object",
                    "required": ["name"],
                    "properties": {
                        "name": {"type": "string", "pattern": "^[a-z]+$"},
                        "kind": {"type": "string", "enum": ["a", "b"]},
                        "count": {"type": "integer", "minimum": 1, "maximum": 3},
                        "list": {"type": "array", "minItems": 1, "maxItems": 2, "items": {"type": ["string", "null"]}},
                        "map": {"type": "object", "additionalProperties": {"type": "boolean"}},
                        "open": {"type": "object", "properties": {"x": {"type": "number"}}, "additionalProperties": true},
                        "either": {"oneOf": [{"type": "integer"}, {"type": "number", "minimum": 5}]},
                        "any": {"anyOf": [{"type": "integer"}, {"type": "number", "minimum": 5}]},
                    },
                },
            },
        },
    })
}

#[test]
fn bodies_that_do_not_fit_are_found() {
    let document = small_document();
    let schema = json!({"$ref": "#/components/schemas/Thing"});
    let fits = |value: Value| validate(&document, &schema, &value);
    for good in [
        json!({"name": "x"}),
        json!({"name": "x", "kind": "b", "count": 3, "list": ["a", null], "map": {"y": true}, "open": {"x": 1, "more": []}}),
        json!({"name": "x", "count": 2.0, "either": 1, "any": 6}),
    ] {
        assert_eq!(fits(good.clone()), Ok(()), "{good}");
    }
    for (bad, word) in [
        (json!([]), "type"),
        (json!({}), "missing"),
        (json!({"name": "X"}), "form"),
        (json!({"name": ""}), "form"),
        (json!({"name": 1}), "type"),
        (json!({"name": "x", "other": 1}), "not described"),
        (json!({"name": "x", "kind": "c"}), "none of"),
        (json!({"name": "x", "count": 0}), "minimum"),
        (json!({"name": "x", "count": 4}), "maximum"),
        (json!({"name": "x", "count": 1.5}), "type"),
        (json!({"name": "x", "list": []}), "minItems"),
        (json!({"name": "x", "list": ["a", "b", "c"]}), "maxItems"),
        (json!({"name": "x", "list": [1]}), "$.list[0]"),
        (json!({"name": "x", "map": {"y": 1}}), "$.map.y"),
        (json!({"name": "x", "open": {"x": "1"}}), "$.open.x"),
        (json!({"name": "x", "either": 6}), "fits 2 of oneOf"),
        (json!({"name": "x", "either": 1.5}), "fits 0 of oneOf"),
        (json!({"name": "x", "any": 1.5}), "fits 0 of anyOf"),
    ] {
        let why = fits(bad.clone()).expect_err("it does not fit");
        assert!(why.contains(word), "{bad}: {why}");
    }
    let odd = validate(
        &document,
        &json!({"type": "string", "maxLength": 1}),
        &json!("x"),
    );
    assert!(odd.expect_err("a keyword").contains("maxLength"));
    let lost = validate(&document, &json!({"$ref": "#/nowhere"}), &json!("x"));
    assert!(lost.expect_err("a reference").contains("nowhere"));
}

#[test]
fn answers_that_are_not_described_are_found() {
    let document = small_document();
    let check = |method, path, status, kind, body: &str| {
        check_answer(&document, method, path, status, kind, body.as_bytes())
    };
    let json_type = Some("application/json");
    let (thing, error) = (r#"{"name":"x"}"#, r#"{"ok":false}"#);
    for (method, path, status, kind, body) in [
        ("GET", "/health", 200, json_type, thing),
        (
            "GET",
            "/health?x=1",
            200,
            Some("Application/JSON; charset=utf-8"),
            thing,
        ),
        ("HEAD", "/health", 200, json_type, ""),
        ("GET", "/health", 304, None, ""),
        ("GET", "/health", 403, json_type, error),
        ("PUT", "/health", 405, json_type, error),
        ("OPTIONS", "/health", 204, None, ""),
        ("GET", "/other", 404, json_type, error),
        ("GET", "/runs/XY", 404, json_type, error),
        ("DELETE", "/runs/00ff", 200, Some("text/plain"), "x"),
    ] {
        assert_eq!(
            check(method, path, status, kind, body),
            Ok(()),
            "{method} {path} {status}"
        );
    }
    for (method, path, status, kind, body) in [
        ("GET", "/health", 201, json_type, thing),
        ("GET", "/health", 200, Some("text/html"), thing),
        ("GET", "/health", 200, None, thing),
        ("GET", "/health", 200, json_type, error),
        ("GET", "/health", 200, json_type, "{"),
        ("GET", "/health", 304, None, "x"),
        ("HEAD", "/health", 500, json_type, ""),
        ("PUT", "/health", 200, json_type, thing),
        ("PUT", "/health", 404, json_type, error),
        ("OPTIONS", "/health", 405, json_type, error),
        ("GET", "/other", 200, json_type, thing),
        ("GET", "/other", 405, json_type, error),
        ("DELETE", "/runs/00ff", 404, json_type, error),
    ] {
        assert!(
            check(method, path, status, kind, body).is_err(),
            "{method} {path} {status}"
        );
    }
    let bytes = check_answer(
        &document,
        "DELETE",
        "/runs/0",
        200,
        Some("text/plain"),
        b"\xff",
    );
    assert!(bytes.is_err(), "not UTF-8");
}

#[test]
fn forms_are_told_apart() {
    for (pattern, text, fitting) in [
        ("^[a-f0-9]+$", "00ff", true),
        ("^[a-f0-9]+$", "00fg", false),
        ("^[a-f0-9]+$", "", false),
        ("^[0-9]+ms$", "12ms", true),
        ("^[0-9]+ms$", "ms", false),
        ("^[0-9]+ms$", "12ms ", false),
        ("^[A-Za-z0-9_-]+$", "a-_Z", true),
        ("^[a-z]+b$", "aab", true),
    ] {
        assert_eq!(fits(pattern, text), Ok(fitting), "{pattern} {text}");
    }
    for odd in [
        "a", "^a", "^(a)$", "^a*$", "^[^a]$", "^a.$", r"^\d$", "^[a$",
    ] {
        assert!(fits(odd, "a").is_err(), "{odd}");
    }
}

// ---- a real server ----

/// Sends a request, and fails unless the answer is as the server's own document says.
#[track_caller]
fn checked(api: &ApiServer, document: &Value, request: &Request) -> web::Answer {
    let answer = api.send(request);
    let kind = answer.header("content-type");
    let (method, status) = (request.method.as_str(), answer.status);
    if let Err(why) = check_answer(
        document,
        method,
        &request.target,
        status,
        kind,
        &answer.body,
    ) {
        panic!("{why}");
    }
    answer
}

#[test]
fn answers_are_as_the_document_says() {
    let fleet = Paired::new(&["web1", "web2"]);
    let _agents = fleet.start();
    let api = ApiServer::start(&fleet.dispatcher, web::OPEN);
    let document = api.get("/openapi.json").expect(200).json();
    let get = |path: &str| checked(&api, &document, &Request::new("GET", path));
    let post =
        |path: &str, body: Value| checked(&api, &document, &Request::new("POST", path).json(&body));

    for path in [
        "/",
        "/health",
        "/discovery",
        "/discovery?tag=env=test",
        "/runs",
        "/metrics",
        "/openapi.json",
        "/openapi-live.json",
    ] {
        get(path).expect(200);
    }
    get("/nothing").expect(404);
    get("/runs?limit=0").expect(400);
    get("/discovery?tag=x").expect(400);
    get("/status/00ff").expect(404);
    checked(&api, &document, &Request::new("PUT", "/run")).expect(405);
    checked(&api, &document, &Request::new("OPTIONS", "/run")).expect(204);
    checked(&api, &document, &Request::new("HEAD", "/health")).expect(200);
    let page = Request::new("GET", "/health").header("Origin", "http://x");
    checked(&api, &document, &page).expect(403);
    let long = Request::new("POST", "/ping").header("Content-Length", "1048577");
    checked(&api, &document, &long).expect(413);
    let many = (0..40).fold(Request::new("GET", "/health"), |r, n| {
        r.header(&format!("X-{n}"), "y")
    });
    checked(&api, &document, &many).expect(431);

    post("/ping", json!({"hosts": ["web1", "web2"]})).expect(200);
    post("/ping", json!({"hosts": []})).expect(400);
    post("/ping", json!({"hosts": ["other"]})).expect(404);
    post("/discovery", json!({"hosts": ["web1"]})).expect(200);
    let run = post(
        "/run",
        json!({"hosts": ["web1", "web2"], "script": "hello", "args": ["x"]}),
    );
    let reqid = run.expect(200).json()["reqid"]
        .as_str()
        .expect("an id")
        .to_owned();
    get(&format!("/status/{reqid}")).expect(200);
    post("/run", json!({"hosts": ["web1"], "script": "fail"})).expect(200);
    post("/run", json!({"hosts": ["web1"], "script": "unknown"})).expect(200);
    let run = post(
        "/run",
        json!({"hosts": ["web1"], "script": "hello", "async": true}),
    );
    let reqid = run.expect(202).json()["reqid"]
        .as_str()
        .expect("an id")
        .to_owned();
    get(&format!("/status/{reqid}")).expect(200);
    get("/runs").expect(200);
    checked(
        &api,
        &document,
        &Request::new("DELETE", &format!("/runs/{reqid}")),
    )
    .expect(200);
    for kind in ["text/event-stream", "application/x-ndjson"] {
        let request = Request::new("POST", "/run")
            .header("Accept", kind)
            .json(&json!({"hosts": ["web1"], "script": "hello"}));
        let answer = checked(&api, &document, &request).expect(200);
        assert_eq!(answer.header("content-type"), Some(kind));
        let status = Request::new("GET", &format!("/status/{reqid}")).header("Accept", kind);
        checked(&api, &document, &status).expect(200);
    }
}

#[test]
fn hosts_that_do_not_answer_are_described_too() {
    // Nobody is at home.
    let fleet = Paired::new(&["web1"]);
    let api = ApiServer::start(&fleet.dispatcher, web::OPEN);
    let document = api.get("/openapi.json").expect(200).json();
    for (path, body) in [
        ("/ping", json!({"hosts": ["web1"]})),
        ("/run", json!({"hosts": ["web1"], "script": "hello"})),
        ("/discovery", json!({})),
    ] {
        checked(&api, &document, &Request::new("POST", path).json(&body)).expect(200);
    }
    let body = json!({"hosts": ["web1"], "script": "hello", "async": true});
    checked(&api, &document, &Request::new("POST", "/run").json(&body)).expect(202);
    let live = api.get("/openapi-live.json").expect(200).json();
    let hosts = "/components/schemas/RunRequest/properties/hosts/items/enum";
    assert_eq!(live.pointer(hosts), Some(&json!(["web1"])));
    assert!(live.get("x-ctrl-exec-scripts").is_none());
}

#[test]
fn the_document_is_sent_only_to_who_has_another() {
    let host = fleet::new_dispatcher("ctl.test");
    let api = ApiServer::start(&host, web::OPEN);
    let first = api.get("/openapi.json").expect(200);
    let etag = first.header("etag").expect("a tag").to_owned();
    assert!(etag.starts_with('"'), "{etag}");
    let ask = |value: &str| {
        let request = Request::new("GET", "/openapi.json").header("If-None-Match", value);
        api.send(&request)
    };
    let same = ask(&format!("\"other\", {etag}")).expect(304);
    assert!(same.body.is_empty());
    assert_eq!(same.header("etag"), Some(etag.as_str()));
    assert_eq!(ask("\"other\"").expect(200).body, first.body);
    // No agents: nothing to choose from, but a description of the same form.
    let mut live = api.get("/openapi-live.json").expect(200).json();
    let base = first.json();
    let version = live["info"]["version"]
        .as_str()
        .expect("a version")
        .to_owned();
    let plain = base["info"]["version"].as_str().expect("a version");
    let date = version.strip_prefix(&format!("{plain}+")).expect("a date");
    assert!(date.bytes().all(|b| b.is_ascii_digit()), "{version}");
    live["info"]["version"] = plain.into();
    assert_eq!(live, base);
}

#[test]
fn the_live_document_tells_what_there_is_to_whom_it_may() {
    let fleet = Paired::new(&["web1", "web2"]);
    for (agent, purpose) in fleet.agents.iter().zip(["one", "two"]) {
        let script = agent.path("opt/scripts/hello");
        let sidecar = format!("{}.schema.json", script.display());
        let body = json!({"version": "1", "description": purpose});
        std::fs::write(sidecar, body.to_string()).expect("a sidecar");
    }
    let _agents = fleet.start();
    // Gate 1 lets everybody in, gate 2 only the token, and it is asked about all hosts.
    web::hook(
        &fleet.dispatcher,
        r#"[ "$ENVEXEC_ACTION" = api ] && exit 0
[ "$ENVEXEC_ACTION $ENVEXEC_HOSTS $ENVEXEC_TOKEN" = "ping web1,web2 secret" ]"#,
    );
    let api = ApiServer::start(&fleet.dispatcher, web::HOOKED);
    for agent in &fleet.agents {
        agent.clear_log();
    }
    api.get("/openapi-live.json").expect(403);
    api.get_as("wrong", "/openapi-live.json").expect(403);
    for agent in &fleet.agents {
        assert!(agent.log_of("capabilities").is_empty(), "nobody was asked");
    }
    let first = api.get_as("secret", "/openapi-live.json").expect(200);
    assert_eq!(first.header("cache-control"), Some("no-store"));
    let live = first.json();
    assert_eq!(
        live["x-ctrl-exec-scripts"]["hello"],
        json!([{
            "hosts": ["web1", "web2"],
            "schema_version": "1",
            "schema": {"version": "1", "description": "one"},
            "conflict": true,
        }])
    );
    assert_eq!(
        live["x-ctrl-exec-scripts"]["true"],
        json!([{"hosts": ["web1", "web2"]}])
    );
    let script = "/components/schemas/RunRequest/properties/script/enum";
    assert_eq!(
        live.pointer(script),
        Some(&json!(["context", "environment", "fail", "hello", "true"]))
    );
    // What was heard is told again, and only to whom it may be.
    let again = api.get_as("secret", "/openapi-live.json").expect(200);
    assert_eq!(again.body, first.body);
    api.get_as("wrong", "/openapi-live.json").expect(403);
    for agent in &fleet.agents {
        assert_eq!(agent.log_of("capabilities").len(), 1, "{}", agent.name());
    }
    let document = api.get("/openapi.json").expect(200).json();
    let told = check_answer(
        &document,
        "GET",
        "/openapi-live.json",
        200,
        first.header("content-type"),
        &first.body,
    );
    assert_eq!(told, Ok(()));
}
