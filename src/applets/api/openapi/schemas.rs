//! What answers look like: one definition for each name in the document's `components.schemas` (spec/api.md 6, 8.1). Request bodies describe
//! themselves (`fields.rs`).
//!
//! An object that an agent has sent passes through with whatever else is in it: it is `open`, and the document says `additionalProperties`
//! true. An object of our own has the members that stand here and, from this release, no others.

use serde_json::{Map, Value, json};

use crate::applets::api::fields::object_schema;

/// What a member holds.
#[derive(Clone, Copy)]
pub(super) enum Kind {
    Text,
    /// One of these words.
    Word(&'static [&'static str]),
    /// A text of this form.
    Form(&'static str),
    Whole,
    Flag,
    /// Always this value.
    Always(bool),
    /// Texts.
    Texts,
    /// Names to texts.
    Tags,
    Object,
    List(&'static str),
    /// Names to another definition.
    Map(&'static str),
    /// The hosts of a record: what became of each when it is asynchronous, else as they were asked for.
    Hosts,
    /// A text or a number.
    Version,
}

/// Name, what it holds, whether it is always there, what it means.
type Member = (&'static str, Kind, bool, &'static str);

/// One definition.
pub(super) struct Schema {
    pub(super) name: &'static str,
    about: &'static str,
    /// An agent may have sent more members.
    open: bool,
    members: &'static [Member],
}

/// A request id of ours.
pub(super) const REQID: &str = "^[a-f0-9]+$";
/// A place in the list of runs: a time and a reqid, or a reqid alone.
pub(super) const AFTER: &str = "^(-?[0-9]+-)?[a-f0-9]+$";
const RTT: Kind = Form("^[0-9]+ms$");
const ABOUT_RTT: &str = "How long the host took to answer.";
const ABOUT_HOST: &str = "Name of the host in the registry.";
const ABOUT_ERROR: &str = "Why it failed; absent when it did not.";
const ABOUT_REQID: &str = "Id of the request, the same for all of its hosts.";
const ABOUT_REPORTED: &str = "What the agent calls itself, where that is another name.";
const ABOUT_EXIT: &str =
    "Exit status of the script; 126 and 127 when it could not be started, -1 when it was not run.";

use Kind::{
    Always, Flag, Form, Hosts, List, Map as MapOf, Object, Tags, Text, Texts, Version, Whole, Word,
};

pub(super) static SCHEMAS: &[Schema] = &[
    Schema {
        name: "HealthResponse",
        about: "The service is up.",
        open: false,
        members: &[
            ("ok", Always(true), true, "Always true."),
            ("version", Text, true, "Release of the service."),
        ],
    },
    Schema {
        name: "IndexResponse",
        about: "What the service offers.",
        open: false,
        members: &[
            ("name", Text, true, "Name of the program."),
            ("version", Text, true, "Release of the service."),
            ("spec", Text, true, "Path of the description."),
            (
                "live_spec",
                Text,
                true,
                "Path of the description with hosts and scripts.",
            ),
            (
                "endpoints",
                List("Endpoint"),
                true,
                "All routes but this one.",
            ),
        ],
    },
    Schema {
        name: "Endpoint",
        about: "One method of one path.",
        open: false,
        members: &[
            ("method", Text, true, "HTTP method."),
            ("path", Text, true, "Path with its parameter in braces."),
        ],
    },
    Schema {
        name: "PingResult",
        about: "What a host answered to a ping.",
        open: true,
        members: &[
            ("host", Text, true, ABOUT_HOST),
            (
                "status",
                Text,
                true,
                "`ok`, or `error` when the host gave no good answer.",
            ),
            ("error", Text, false, ABOUT_ERROR),
            ("rtt", RTT, false, ABOUT_RTT),
            ("reqid", Text, false, ABOUT_REQID),
            ("reported_hostname", Text, false, ABOUT_REPORTED),
            ("version", Text, false, "Release of the agent."),
            (
                "expiry",
                Text,
                false,
                "When the agent's certificate ends, or `unknown`.",
            ),
            (
                "staged",
                Flag,
                false,
                "A renewed certificate waits for its activation.",
            ),
            (
                "revocations",
                Whole,
                false,
                "Certificates that the agent knows to be revoked.",
            ),
            (
                "cas",
                Texts,
                false,
                "SHA-256 fingerprints of the authorities that the agent trusts.",
            ),
            (
                "time",
                Whole,
                false,
                "The agent's time, seconds since 1970.",
            ),
        ],
    },
    Schema {
        name: "PingResponse",
        about: "One result for each host that was asked.",
        open: false,
        members: &[
            (
                "ok",
                Always(true),
                true,
                "Always true: failures of hosts are in their results.",
            ),
            ("results", List("PingResult"), true, "One for each host."),
        ],
    },
    Schema {
        name: "RunResult",
        about: "What became of the script on one host.",
        open: true,
        members: &[
            ("host", Text, true, ABOUT_HOST),
            ("exit", Whole, true, ABOUT_EXIT),
            ("script", Text, false, "Name of the script."),
            (
                "stdout",
                Text,
                false,
                "What the script wrote to its standard output.",
            ),
            (
                "stderr",
                Text,
                false,
                "What the script wrote to its standard error.",
            ),
            (
                "error",
                Text,
                false,
                "Why the script was not run; absent when it was.",
            ),
            ("reqid", Text, false, ABOUT_REQID),
            ("rtt", RTT, false, ABOUT_RTT),
            ("reported_hostname", Text, false, ABOUT_REPORTED),
            ("signal", Whole, false, "Signal that ended the script."),
            (
                "truncated",
                Flag,
                false,
                "Output beyond the agent's limit was dropped.",
            ),
            (
                "timed_out",
                Flag,
                false,
                "The agent ended the script because it took too long.",
            ),
        ],
    },
    Schema {
        name: "RunResponse",
        about: "The script has ended on every host.",
        open: false,
        members: &[
            (
                "ok",
                Always(true),
                true,
                "Always true: failures of hosts are in their results.",
            ),
            (
                "reqid",
                Form(REQID),
                true,
                "Id of the run, for `/status/{reqid}`.",
            ),
            ("results", List("RunResult"), true, "One for each host."),
        ],
    },
    Schema {
        name: "AsyncSubmitResult",
        about: "What an agent said to an asynchronous run.",
        open: true,
        members: &[
            ("host", Text, true, ABOUT_HOST),
            (
                "status",
                Word(&["accepted", "busy", "error"]),
                true,
                "`accepted`: the agent has the run. `busy`: it runs the script already. `error`: it did not take it.",
            ),
            ("script", Text, false, "Name of the script."),
            ("error", Text, false, "Why the agent has not taken the run."),
            ("exit", Whole, false, "-1 from an agent that refused."),
            ("reqid", Form(REQID), false, ABOUT_REQID),
            ("rtt", RTT, false, ABOUT_RTT),
            ("reported_hostname", Text, false, ABOUT_REPORTED),
        ],
    },
    Schema {
        name: "AsyncSubmitResponse",
        about: "The agents have been asked to take the run over; not necessarily has any.",
        open: false,
        members: &[
            (
                "ok",
                Always(true),
                true,
                "Always true: refusals of agents are in their results.",
            ),
            ("async", Always(true), false, "Always true."),
            (
                "reqid",
                Form(REQID),
                true,
                "Id of the run, for `/status/{reqid}`.",
            ),
            (
                "results",
                List("AsyncSubmitResult"),
                true,
                "One for each host.",
            ),
        ],
    },
    Schema {
        name: "HostStatus",
        about: "What is known of one host of an asynchronous run.",
        open: true,
        members: &[
            (
                "status",
                Text,
                true,
                "`accepted` or `running`: not known to have ended. `done`: see `exit`. `busy`, `error`: the agent did not take the run. \
                 `expired`: the agent has no record of it any more.",
            ),
            ("exit", Whole, false, ABOUT_EXIT),
            (
                "stdout",
                Text,
                false,
                "What the script wrote to its standard output.",
            ),
            (
                "stderr",
                Text,
                false,
                "What the script wrote to its standard error.",
            ),
            ("error", Text, false, "Why the agent has not taken the run."),
            (
                "fetch_error",
                Text,
                false,
                "Why the last question for the result failed; it will be asked again.",
            ),
        ],
    },
    Schema {
        name: "StatusResponse",
        about: "The record of a run.",
        open: true,
        members: &[
            ("ok", Always(true), true, "Always true."),
            ("reqid", Form(REQID), true, "Id of the run."),
            ("script", Text, false, "Name of the script."),
            ("mode", Text, false, "`sync` or `async`."),
            (
                "hosts",
                Hosts,
                false,
                "Of a synchronous run the hosts as they were asked for; of an asynchronous one what became of each.",
            ),
            (
                "results",
                List("RunResult"),
                false,
                "One for each host of a synchronous run.",
            ),
            (
                "completed",
                Whole,
                false,
                "When a synchronous run ended, seconds since 1970.",
            ),
            (
                "created",
                Whole,
                false,
                "When an asynchronous run began, seconds since 1970.",
            ),
            (
                "pending",
                Texts,
                false,
                "Hosts of an asynchronous run that are not known to have ended, sorted.",
            ),
            ("complete", Flag, false, "No host is pending."),
        ],
    },
    Schema {
        name: "RunSummary",
        about: "One run in a list, as it was last seen.",
        open: true,
        members: &[
            ("reqid", Text, true, "Id of the run."),
            ("script", Text, true, "Name of the script."),
            ("mode", Text, true, "`sync` or `async`."),
            (
                "time",
                Whole,
                true,
                "When an asynchronous run began or a synchronous one ended, seconds since 1970.",
            ),
            ("complete", Flag, false, "No host is pending."),
            (
                "state",
                Text,
                true,
                "`running`, `failed`, `expired` or `done`, over all hosts.",
            ),
            ("count", Whole, false, "Hosts of which the state is told."),
            ("hosts", Whole, false, "All hosts of the run."),
        ],
    },
    Schema {
        name: "RunsResponse",
        about: "A page of the caller's runs, newest first.",
        open: false,
        members: &[
            ("ok", Always(true), true, "Always true."),
            ("runs", List("RunSummary"), true, "The runs."),
            (
                "next",
                Text,
                false,
                "What to ask for as `after` to get the next page; absent on the last.",
            ),
        ],
    },
    Schema {
        name: "CancelReply",
        about: "What a host made of the wish to end a run.",
        open: true,
        members: &[
            (
                "status",
                Text,
                true,
                "`cancelling`: the script is being ended. `ended`: it had ended before. `unknown`: the agent knows no such run. \
                 `unsupported`: its release cannot end runs. `error`: see `error`.",
            ),
            ("error", Text, false, "Why the run may still go on."),
        ],
    },
    Schema {
        name: "CancelResponse",
        about: "The record of the run after every pending host was asked to end it.",
        open: true,
        members: &[
            (
                "ok",
                Always(true),
                true,
                "Always true: failures of hosts are in their replies.",
            ),
            ("reqid", Form(REQID), true, "Id of the run."),
            (
                "cancel",
                MapOf("CancelReply"),
                true,
                "One reply for each host that was pending.",
            ),
            ("script", Text, false, "Name of the script."),
            ("mode", Text, false, "`sync` or `async`."),
            ("hosts", Hosts, false, "What became of each host."),
            (
                "created",
                Whole,
                false,
                "When the run began, seconds since 1970.",
            ),
            (
                "pending",
                Texts,
                false,
                "Hosts that are not known to have ended, sorted.",
            ),
            ("complete", Flag, false, "No host is pending."),
        ],
    },
    Schema {
        name: "ScriptEntry",
        about: "A script on the allowlist of a host.",
        open: true,
        members: &[
            ("name", Text, true, "What to call it by."),
            ("path", Text, false, "Its file on the host."),
            (
                "executable",
                Flag,
                false,
                "The file is there and can be executed.",
            ),
            (
                "profile",
                Text,
                false,
                "Security profile that it runs under.",
            ),
            (
                "digest",
                Flag,
                false,
                "The file must have a certain content.",
            ),
            (
                "schema",
                Object,
                false,
                "What its sidecar says about it: purpose, arguments, effects.",
            ),
            (
                "schema_version",
                Version,
                false,
                "Version of the sidecar, or a digest of it.",
            ),
        ],
    },
    Schema {
        name: "HostCapabilities",
        about: "What a host can do.",
        open: true,
        members: &[
            ("host", Text, false, ABOUT_HOST),
            (
                "status",
                Text,
                false,
                "`ok`, or `error` when the host gave no good answer.",
            ),
            ("error", Text, false, ABOUT_ERROR),
            ("rtt", RTT, false, ABOUT_RTT),
            ("reported_hostname", Text, false, ABOUT_REPORTED),
            ("version", Text, false, "Release of the agent."),
            ("scripts", List("ScriptEntry"), false, "Its allowlist."),
            ("tags", Tags, false, "Its tags."),
            (
                "isolation",
                Object,
                false,
                "What the host can enforce on scripts.",
            ),
        ],
    },
    Schema {
        name: "DiscoveryResponse",
        about: "What each host can do, by its name in the registry.",
        open: false,
        members: &[
            (
                "ok",
                Always(true),
                true,
                "Always true: failures of hosts are in their entries.",
            ),
            (
                "hosts",
                MapOf("HostCapabilities"),
                true,
                "All hosts that were asked.",
            ),
        ],
    },
    Schema {
        name: "ErrorResponse",
        about: "Why a request was not served.",
        open: false,
        members: &[
            ("ok", Always(false), true, "Always false."),
            (
                "error",
                Text,
                true,
                "Kind of error; of a denial its reason.",
            ),
            ("detail", Text, false, "What exactly is wrong."),
            (
                "code",
                Whole,
                false,
                "Of a denial the exit status of the hook; 4 of a lock conflict.",
            ),
            (
                "conflicts",
                Texts,
                false,
                "`HOST:SCRIPT` of each lock that somebody else holds.",
            ),
        ],
    },
    Schema {
        name: "Document",
        about: "An OpenAPI 3.1 document.",
        open: true,
        members: &[
            (
                "openapi",
                Text,
                true,
                "Version of the OpenAPI specification.",
            ),
            ("info", Object, true, "Title and version."),
            ("paths", Object, true, "Operations by path."),
            ("components", Object, true, "Schemas and answers by name."),
            (
                "x-ctrl-exec-scripts",
                Object,
                false,
                "Scripts by name, each with its variants by version of the sidecar.",
            ),
        ],
    },
];

impl Schema {
    pub(super) fn render(&self) -> Value {
        let members = self.members.iter();
        let members = members
            .map(|(name, kind, required, about)| (*name, *about, *required, kind.render()))
            .collect();
        let mut schema = object_schema(self.about, members);
        if self.open {
            schema["additionalProperties"] = true.into();
        }
        schema
    }
}

/// All definitions.
pub(super) fn all() -> Map<String, Value> {
    let schemas = SCHEMAS.iter();
    schemas
        .map(|schema| (schema.name.to_owned(), schema.render()))
        .collect()
}

/// A reference to a definition.
pub(super) fn reference(name: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{name}")})
}

fn typed(name: &str) -> Value {
    json!({"type": name})
}

/// A schema of `name` with one keyword more.
fn with(name: &str, keyword: &str, value: Value) -> Value {
    let mut schema = typed(name);
    schema[keyword] = value;
    schema
}

impl Kind {
    fn render(self) -> Value {
        match self {
            Self::Text => typed("string"),
            Self::Word(words) => with("string", "enum", words.into()),
            Self::Form(pattern) => with("string", "pattern", pattern.into()),
            Self::Whole => typed("integer"),
            Self::Flag => typed("boolean"),
            Self::Always(value) => with("boolean", "const", value.into()),
            Self::Texts => with("array", "items", typed("string")),
            Self::Tags => with("object", "additionalProperties", typed("string")),
            Self::Object => with("object", "additionalProperties", true.into()),
            Self::List(name) => with("array", "items", reference(name)),
            Self::Map(name) => with("object", "additionalProperties", reference(name)),
            Self::Hosts => {
                let variants = [Self::Map("HostStatus").render(), Self::Texts.render()];
                json!({"oneOf": variants})
            }
            Self::Version => json!({"type": ["string", "number"]}),
        }
    }
}
