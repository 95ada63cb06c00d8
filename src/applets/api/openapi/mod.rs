//! The OpenAPI 3.1 document (spec/api.md 8.1), made of THE TABLE of routes, of the request bodies (`fields.rs`) and of `schemas`; and with what
//! the fleet says, the live document (`live`).
//!
//! Names of paths, operations, schemas and answers are those that generated clients of the original are built on.

pub(super) mod kept;
pub(super) mod live;
mod refusals;
mod schemas;
#[cfg(test)]
mod tests;

use std::sync::OnceLock;

use hyper::body::Bytes;
use ring::digest;
use serde_json::{Map, Value, json};

use crate::applets::VERSION;
use crate::applets::api::routes::{ROUTES, Route, Success};
use crate::core::types::hex;

/// The document as it is sent.
pub(super) struct Document {
    pub(super) bytes: Bytes,
    /// With its quotes: a strong one.
    pub(super) etag: String,
}

/// The document of this release; made at the first call.
pub(super) fn document() -> &'static Document {
    static DOCUMENT: OnceLock<Document> = OnceLock::new();
    DOCUMENT.get_or_init(|| {
        let bytes = build().to_string().into_bytes();
        let digest = digest::digest(&digest::SHA256, &bytes);
        Document {
            etag: format!("\"{}\"", hex(&digest.as_ref()[..16])),
            bytes: bytes.into(),
        }
    })
}

/// Makes the document.
pub(super) fn build() -> Value {
    let mut paths = Map::new();
    let mut schemas = schemas::all();
    for route in ROUTES {
        if let Some(body) = &route.body {
            schemas.insert(body.name.to_owned(), (body.schema)());
        }
        let path = paths.entry(route.path).or_insert_with(|| json!({}));
        path[route.method.as_str().to_ascii_lowercase()] = operation(route);
    }
    let mut responses = refusals::all();
    for (name, success) in NAMED {
        responses.insert((*name).to_owned(), answer(success, false));
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "ctrl-exec API",
            "version": VERSION,
            "description": "Runs allowlisted scripts on the hosts that are paired with this dispatcher. An auth hook decides about every request: \
                once with action `api` before anything else, then with the action of the operation. Members of a request that are not \
                described are ignored.",
        },
        "servers": [server("http", "Without TLS: for clients on the same host."), server("https", "With TLS.")],
        // Whether a token is needed is for the hook to say.
        "security": [{}, {"bearer": []}],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "responses": responses,
            "securitySchemes": {
                "bearer": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "A token that the auth hook knows. A request with a body may have it as the member `token` instead.",
                },
            },
        },
    })
}

fn server(scheme: &str, about: &str) -> Value {
    json!({
        "url": format!("{scheme}://{{host}}:{{port}}"),
        "description": about,
        "variables": {
            "host": {"default": "localhost", "description": "The dispatcher's host."},
            "port": {"default": "7445", "description": "Port of the API (`api_port`)."},
        },
    })
}

/// Answers that are no errors and have a name in `components.responses`.
static NAMED: &[(&str, Success)] = &[(
    "DiscoverySuccess",
    Success {
        code: 200,
        schema: "DiscoveryResponse",
        about: "Scripts and tags of each host.",
    },
)];

fn operation(route: &Route) -> Value {
    let mut responses = Map::new();
    for success in route.success {
        let named = NAMED
            .iter()
            .find(|(_, named)| named.schema == success.schema);
        let answer = match named {
            Some((name, _)) => json!({"$ref": format!("#/components/responses/{name}")}),
            None => answer(success, route.streams && success.code == 200),
        };
        responses.insert(success.code.to_string(), answer);
    }
    for (code, reference) in refusals::of(route) {
        responses.insert(code.to_string(), reference);
    }
    if responses.contains_key("304") {
        for code in ["200", "304"] {
            responses[code]["headers"] = json!({
                "ETag": {"description": "Names this state of the document.", "required": true, "schema": {"type": "string"}},
            });
        }
    }
    let mut operation = json!({
        "operationId": route.operation,
        "summary": route.summary,
        "responses": responses,
    });
    if !route.action.is_empty() {
        operation["description"] = format!(
            "The auth hook is asked about the action `{}`.",
            route.action
        )
        .into();
    }
    let parameters = parameters(route);
    if !parameters.is_empty() {
        operation["parameters"] = parameters.into();
    }
    if let Some(body) = &route.body {
        operation["requestBody"] = json!({
            "required": body.required,
            "content": {"application/json": {"schema": schemas::reference(body.name)}},
        });
    }
    operation
}

/// An answer that is no error.
fn answer(success: &Success, streams: bool) -> Value {
    let mut answer = json!({"description": success.about});
    let mut content = Map::new();
    if success.schema.contains('/') {
        content.insert(success.schema.to_owned(), media(json!({"type": "string"})));
    } else if !success.schema.is_empty() {
        content.insert(
            "application/json".to_owned(),
            media(schemas::reference(success.schema)),
        );
    }
    if streams {
        content.insert("text/event-stream".to_owned(), media(pieces(EVENTS)));
        content.insert("application/x-ndjson".to_owned(), media(pieces(LINES)));
    }
    if !content.is_empty() {
        answer["content"] = content.into();
    }
    answer
}

const EVENTS: &str = "Server-sent events, one for each thing that happens, its data a JSON object; comments while nothing does.";
const LINES: &str =
    "One JSON object a line for each thing that happens; its member `event` says what.";

fn pieces(about: &str) -> Value {
    json!({"type": "string", "description": about})
}

fn media(schema: Value) -> Value {
    json!({"schema": schema})
}

/// A parameter of a query: operation, name, schema, meaning.
struct Query {
    operation: &'static str,
    name: &'static str,
    schema: fn() -> Value,
    about: &'static str,
}

static QUERIES: &[Query] = &[
    Query {
        operation: "listRuns",
        name: "limit",
        schema: || json!({"type": "integer", "minimum": 1, "maximum": 500, "default": 50}),
        about: "Most runs of a page.",
    },
    Query {
        operation: "listRuns",
        name: "after",
        schema: || json!({"type": "string", "pattern": schemas::AFTER}),
        about: "Only runs that come after this place in the list: `next` of the page before (it holds when that page's runs are gone), or the reqid of a run of the list.",
    },
    Query {
        operation: "discoverAgentsGet",
        name: "tag",
        schema: || json!({"type": "array", "items": {"type": "string", "pattern": "="}}),
        about: "`NAME=VALUE`: only hosts that had this tag when they were last discovered; of several, all.",
    },
];

fn parameters(route: &Route) -> Vec<Value> {
    let mut parameters = Vec::new();
    if route.path.contains("{reqid}") {
        parameters.push(json!({
            "name": "reqid",
            "in": "path",
            "required": true,
            "description": "Id of a run.",
            "schema": {"type": "string", "pattern": schemas::REQID},
        }));
    }
    if route.operation == "getRunStatus" {
        // Generated clients of the original have it as an argument.
        parameters.push(json!({
            "name": "Authorization",
            "in": "header",
            "required": false,
            "description": "`Bearer TOKEN`.",
            "schema": {"type": "string"},
        }));
    }
    let queries = QUERIES
        .iter()
        .filter(|query| query.operation == route.operation);
    parameters.extend(queries.map(|query| {
        json!({
            "name": query.name,
            "in": "query",
            "required": false,
            "description": query.about,
            "schema": (query.schema)(),
        })
    }));
    parameters
}
