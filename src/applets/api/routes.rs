//! THE TABLE of routes: the router, the index and the OpenAPI document are made of it.

use std::future::Future;
use std::pin::Pin;

use axum::response::Response;
use hyper::Method;
use serde_json::Value;

use crate::applets::api::call::Call;
use crate::applets::api::fields::{DiscoveryRequest, PingRequest, RunRequest};
use crate::applets::api::handlers;

/// A handler: it gets the request as far as every route needs it.
pub(super) type Handler = fn(Call) -> Pin<Box<dyn Future<Output = Response> + Send>>;

/// The JSON body of a request.
pub(super) struct RequestBody {
    /// Name in the document's `components.schemas`.
    pub(super) name: &'static str,
    pub(super) schema: fn() -> Value,
    pub(super) required: bool,
}

/// An answer that is no error.
pub(super) struct Success {
    pub(super) code: u16,
    /// Name in the document's `components.schemas`; for another type than JSON, that type; empty for no body.
    pub(super) schema: &'static str,
    pub(super) about: &'static str,
}

/// One method of one path.
pub(super) struct Route {
    pub(super) method: Method,
    /// As in the document; at most one parameter, `{reqid}`.
    pub(super) path: &'static str,
    /// `operationId`: generated clients call their functions by it.
    pub(super) operation: &'static str,
    pub(super) summary: &'static str,
    /// What gate 2 asks about; empty for none.
    pub(super) action: &'static str,
    pub(super) body: Option<RequestBody>,
    pub(super) success: &'static [Success],
    /// Codes of the error answers that only this route gives; those that all give are the document's business.
    pub(super) errors: &'static [u16],
    /// `Accept: text/event-stream` or `application/x-ndjson` gets the answer piece by piece.
    pub(super) streams: bool,
    pub(super) handler: Handler,
}

const fn success(code: u16, schema: &'static str, about: &'static str) -> Success {
    Success {
        code,
        schema,
        about,
    }
}

/// Not JSON: the text format of Prometheus.
pub(super) const METRICS_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// In the order of the index (spec/api.md 5.1), then ours.
pub(super) static ROUTES: &[Route] = &[
    Route {
        method: Method::GET,
        path: "/health",
        operation: "getHealth",
        summary: "Tell that the service is up, and its release.",
        action: "",
        body: None,
        success: &[success(200, "HealthResponse", "The service is up.")],
        errors: &[],
        streams: false,
        handler: |call| Box::pin(handlers::health(call)),
    },
    Route {
        method: Method::POST,
        path: "/ping",
        operation: "pingAgents",
        summary: "Ask agents whether they are there.",
        action: "ping",
        body: Some(RequestBody {
            name: "PingRequest",
            schema: PingRequest::schema,
            required: true,
        }),
        success: &[success(
            200,
            "PingResponse",
            "What each host answered; a host that did not is an entry with status `error`.",
        )],
        errors: &[400, 404],
        streams: false,
        handler: |call| Box::pin(handlers::ping::ping(call)),
    },
    Route {
        method: Method::POST,
        path: "/run",
        operation: "runScript",
        summary: "Run an allowlisted script on agents.",
        action: "run",
        body: Some(RequestBody {
            name: "RunRequest",
            schema: RunRequest::schema,
            required: true,
        }),
        success: &[
            success(200, "RunResponse", "The script has ended on every host."),
            success(
                202,
                "AsyncSubmitResponse",
                "What each agent said to an asynchronous run; ask `/status/{reqid}` for the results.",
            ),
        ],
        errors: &[400, 404, 409],
        streams: true,
        handler: |call| Box::pin(handlers::run::run(call)),
    },
    Route {
        method: Method::GET,
        path: "/discovery",
        operation: "discoverAgentsGet",
        summary: "List the scripts and tags of all agents.",
        action: "ping",
        body: None,
        success: &[success(
            200,
            "DiscoveryResponse",
            "Scripts and tags of each host.",
        )],
        errors: &[400, 404],
        streams: false,
        handler: |call| Box::pin(handlers::discovery::discovery(call)),
    },
    Route {
        method: Method::POST,
        path: "/discovery",
        operation: "discoverAgentsPost",
        summary: "List the scripts and tags of some agents, or of all.",
        action: "ping",
        body: Some(RequestBody {
            name: "DiscoveryRequest",
            schema: DiscoveryRequest::schema,
            required: false,
        }),
        success: &[success(
            200,
            "DiscoveryResponse",
            "Scripts and tags of each host.",
        )],
        errors: &[400, 404],
        streams: false,
        handler: |call| Box::pin(handlers::discovery::discovery(call)),
    },
    Route {
        method: Method::GET,
        path: "/status/{reqid}",
        operation: "getRunStatus",
        summary: "Tell what became of a run.",
        action: "status",
        body: None,
        success: &[success(200, "StatusResponse", "The record of the run.")],
        errors: &[404],
        streams: true,
        handler: |call| Box::pin(handlers::status::status(call)),
    },
    Route {
        method: Method::GET,
        path: "/openapi.json",
        operation: "getOpenapi",
        summary: "This description.",
        action: "",
        body: None,
        success: &[
            success(200, "Document", "An OpenAPI 3.1 document."),
            success(304, "", "What the client has is still the document."),
        ],
        errors: &[],
        streams: false,
        handler: |call| Box::pin(handlers::documents::openapi(call)),
    },
    Route {
        method: Method::GET,
        path: "/openapi-live.json",
        operation: "getOpenapiLive",
        summary: "This description with the hosts and scripts that there are.",
        action: "ping",
        body: None,
        success: &[success(200, "Document", "An OpenAPI 3.1 document.")],
        errors: &[],
        streams: false,
        handler: |call| Box::pin(handlers::documents::live(call)),
    },
    Route {
        method: Method::GET,
        path: "/",
        operation: "getIndex",
        summary: "List the routes.",
        action: "",
        body: None,
        success: &[success(200, "IndexResponse", "The routes.")],
        errors: &[],
        streams: false,
        handler: |call| Box::pin(handlers::index(call)),
    },
    Route {
        method: Method::GET,
        path: "/runs",
        operation: "listRuns",
        summary: "List the caller's own runs, newest first.",
        action: "status",
        body: None,
        success: &[success(200, "RunsResponse", "A page of runs.")],
        errors: &[400],
        streams: false,
        handler: |call| Box::pin(handlers::runs::list(call)),
    },
    Route {
        method: Method::DELETE,
        path: "/runs/{reqid}",
        operation: "cancelRun",
        summary: "End one of the caller's own asynchronous runs on every host where it still goes on.",
        action: "cancel",
        body: None,
        success: &[success(
            200,
            "CancelResponse",
            "The record of the run, and what each host said.",
        )],
        errors: &[404],
        streams: false,
        handler: |call| Box::pin(handlers::runs::cancel(call)),
    },
    Route {
        method: Method::GET,
        path: "/metrics",
        operation: "getMetrics",
        summary: "Measurements in the text format of Prometheus.",
        action: "metrics",
        body: None,
        success: &[success(200, METRICS_TYPE, "All families.")],
        errors: &[404],
        streams: false,
        handler: |call| Box::pin(handlers::metrics::metrics(call)),
    },
];

/// What a path and a method lead to.
#[derive(Debug)]
pub(super) enum Found {
    Route(&'static Route, Option<String>),
    /// The path is known, with these methods.
    OtherMethods(Vec<&'static str>),
    Nothing,
}

impl std::fmt::Debug for Route {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.method, self.path)
    }
}

/// Finds the route. HEAD is answered as GET; the connection leaves the body out.
pub(super) fn find(method: &Method, path: &str) -> Found {
    let wanted = if method == Method::HEAD {
        &Method::GET
    } else {
        method
    };
    let mut methods = Vec::new();
    for route in ROUTES {
        let Some(parameter) = matches(route.path, path) else {
            continue;
        };
        if route.method == *wanted {
            return Found::Route(route, parameter);
        }
        methods.push(route.method.as_str());
    }
    if methods.is_empty() {
        return Found::Nothing;
    }
    if methods.contains(&"GET") {
        methods.push("HEAD");
    }
    methods.push("OPTIONS");
    Found::OtherMethods(methods)
}

/// `None`: another path. `Some(None)`: this one, and it has no parameter.
fn matches(template: &str, path: &str) -> Option<Option<String>> {
    let Some(prefix) = template.strip_suffix("{reqid}") else {
        return (template == path).then_some(None);
    };
    let reqid = path.strip_prefix(prefix)?;
    let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    (!reqid.is_empty() && reqid.bytes().all(hex)).then(|| Some(reqid.to_owned()))
}

/// The template for a metric, whatever was asked for.
pub(super) fn template(path: &str) -> &'static str {
    ROUTES
        .iter()
        .find(|route| matches(route.path, path).is_some())
        .map_or("none", |route| route.path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_found_as_the_original_finds_them() {
        let route = |method, path| match find(&method, path) {
            Found::Route(route, parameter) => Some((route.operation, parameter)),
            _ => None,
        };
        assert_eq!(route(Method::GET, "/health"), Some(("getHealth", None)));
        assert_eq!(route(Method::HEAD, "/health"), Some(("getHealth", None)));
        assert_eq!(
            route(Method::GET, "/status/00ff"),
            Some(("getRunStatus", Some("00ff".to_owned())))
        );
        for nothing in [
            "/health/",
            "//health",
            "/status/",
            "/status/XY",
            "/status/00FF",
            "/status/a/b",
            "/capabilities",
            "",
        ] {
            assert!(
                matches!(find(&Method::GET, nothing), Found::Nothing),
                "{nothing}"
            );
        }
        let Found::OtherMethods(methods) = find(&Method::PUT, "/discovery") else {
            panic!("no methods");
        };
        assert_eq!(methods, ["GET", "POST", "HEAD", "OPTIONS"]);
    }

    #[test]
    fn operations_are_unique() {
        let names: std::collections::BTreeSet<_> = ROUTES.iter().map(|r| r.operation).collect();
        assert_eq!(names.len(), ROUTES.len());
    }
}
