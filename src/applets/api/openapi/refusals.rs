//! Error answers: one definition for each code, and which of them an operation can give (spec/api.md 7).

use serde_json::{Map, Value, json};

use super::schemas;
use crate::applets::api::routes::Route;

struct Refusal {
    code: u16,
    /// In `components.responses`.
    name: &'static str,
    about: &'static str,
    /// A header that every such answer has, and its meaning.
    header: Option<(&'static str, &'static str)>,
}

const fn refusal(code: u16, name: &'static str, about: &'static str) -> Refusal {
    Refusal {
        code,
        name,
        about,
        header: None,
    }
}

static REFUSALS: &[Refusal] = &[
    refusal(
        400,
        "BadRequest",
        "The request is incomplete, its body is not what the operation takes, or a field of it does not fit; `detail` says which.",
    ),
    refusal(
        403,
        "Forbidden",
        "The auth hook, or the lack of one, does not allow it; or the request comes from a web page.",
    ),
    refusal(
        404,
        "NotFound",
        "There is no such thing, or the caller may not know of it.",
    ),
    Refusal {
        header: Some(("Allow", "Methods that this path has.")),
        ..refusal(405, "MethodNotAllowed", "This path has other methods only.")
    },
    refusal(408, "RequestTimeout", "The body did not arrive in time."),
    refusal(
        409,
        "Conflict",
        "The script runs already on a host: `conflicts`; `code` is 4.",
    ),
    refusal(
        413,
        "PayloadTooLarge",
        "The body is longer than 1 MiB, or the request would be on its way to the agents.",
    ),
    Refusal {
        header: Some(("Retry-After", "Seconds until the next try makes sense.")),
        ..refusal(
            429,
            "TooManyRequests",
            "Too many requests of this address were refused lately.",
        )
    },
    refusal(
        431,
        "HeadersTooLarge",
        "More header lines than 32, or too long ones.",
    ),
    refusal(
        500,
        "ServerError",
        "The dispatcher cannot do its work; its log says why.",
    ),
    refusal(
        503,
        "ServiceUnavailable",
        "Too many requests are being worked on.",
    ),
];

/// What stands before every route can give these, or what stands beside it: another method of the same path.
const ALWAYS: &[u16] = &[400, 403, 405, 408, 413, 429, 431, 503];

/// What works with files and agents can fail.
const WITH_WORK: u16 = 500;

/// The error answers of an operation: codes, and references to their definitions.
pub(super) fn of(route: &Route) -> impl Iterator<Item = (u16, Value)> {
    let works = !route.action.is_empty();
    REFUSALS
        .iter()
        .filter(move |refusal| {
            ALWAYS.contains(&refusal.code)
                || route.errors.contains(&refusal.code)
                || works && refusal.code == WITH_WORK
        })
        .map(|refusal| {
            let reference = format!("#/components/responses/{}", refusal.name);
            (refusal.code, json!({"$ref": reference}))
        })
}

/// All definitions, by name.
pub(super) fn all() -> Map<String, Value> {
    let one = |refusal: &Refusal| {
        let mut answer = json!({
            "description": refusal.about,
            "content": {"application/json": {"schema": schemas::reference("ErrorResponse")}},
        });
        if let Some((name, about)) = refusal.header {
            let header =
                json!({"description": about, "required": true, "schema": {"type": "string"}});
            answer["headers"] = json!({ name: header });
        }
        (refusal.name.to_owned(), answer)
    };
    REFUSALS.iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::applets::api::routes::ROUTES;

    #[test]
    fn every_code_of_the_table_has_a_definition() {
        for route in ROUTES {
            for code in route.errors {
                assert!(REFUSALS.iter().any(|r| r.code == *code), "{code}");
            }
        }
    }
}
