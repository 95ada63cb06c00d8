//! schemathesis against a real server with two agents: requests made up from the server's own documents, answers checked against them.
//!
//! Not part of `cargo test`, because it needs a tool from PyPI: `make api-fuzz` gets that, and says where it is in `CTRL_EXEC_SCHEMATHESIS`.

mod common;

use std::process::Command;
use std::time::Duration;

use common::web::{self, ApiServer};
use common::{Daemon, Host, Paired};
use serde_json::{Value, json};

/// What the tool may take for one document, seconds; the static one and the live one together stay below three minutes.
const BUDGET: &str = "75";
/// After this the test fails: the tool finishes what it has begun.
const DEADLINE: Duration = Duration::from_secs(180);
const CHECKS: &str = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance,\
                      response_headers_conformance,unsupported_method,allow_header_conformance";

/// Runs the tool; whether it found nothing, and what it said.
fn schemathesis(host: &Host, url: &str, document: &str, words: &[&str]) -> (bool, String) {
    let tool = std::env::var_os("CTRL_EXEC_SCHEMATHESIS")
        .expect("CTRL_EXEC_SCHEMATHESIS says where the tool is: run `make api-fuzz`");
    let mut command = Command::new(&tool);
    command
        .args(["run", document, "--url", url, "--checks", CHECKS])
        .args(["--request-timeout", "30", "--continue-on-failure"])
        .args(["--max-failures", "200", "--no-color"])
        .args(words)
        // It remembers what it has found in the directory that it is called in.
        .current_dir(host.path("tmp"));
    let mut run = Daemon::start(&mut command);
    let status = run.wait(DEADLINE);
    (status.success(), format!("{}\n{}", run.out(), run.err()))
}

fn operations(document: &Value) -> usize {
    let paths = document["paths"].as_object().expect("paths");
    let methods = paths.values().filter_map(Value::as_object);
    methods.map(serde_json::Map::len).sum()
}

#[test]
fn schemathesis_finds_nothing() {
    let fleet = Paired::new(&["web1", "web2"]);
    let _agents = fleet.start();
    let host = &fleet.dispatcher;
    let mut api = ApiServer::start(host, web::OPEN);
    let url = api.url();
    // The static document leads to names that nobody has; the live one to hosts and scripts that there are.
    for path in ["/openapi.json", "/openapi-live.json"] {
        let document = api.get(path).expect(200).json();
        let (well, said) =
            schemathesis(host, &url, &format!("{url}{path}"), &["--max-time", BUDGET]);
        println!("{path}:\n{said}");
        assert!(well, "findings with {path}, see above");
        // The tool leaves out the document that it reads; with the other one it is tried.
        let tested = format!("Tested: {}\n", operations(&document) - 1);
        assert!(said.contains(&tested), "{path}: not all was tested");
    }
    assert!(api.daemon().is_running(), "the server has ended");
    api.get("/health").expect(200);
}

#[test]
fn schemathesis_finds_what_is_not_as_described() {
    let host = common::fleet::new_dispatcher("ctl.test");
    let api = ApiServer::start(&host, web::OPEN);
    let mut document = api.get("/openapi.json").expect(200).json();
    document["components"]["schemas"]["HealthResponse"]["required"] = json!(["mood"]);
    let status = &mut document["paths"]["/status/{reqid}"]["get"]["responses"];
    let status = status.as_object_mut().expect("answers");
    status.remove("404").expect("it was described");
    let file = host.write("tmp/false.json", document.to_string(), 0o644);
    let (well, said) = schemathesis(
        &host,
        &api.url(),
        file.to_str().expect("a plain path"),
        &[
            // By number, not by time: both operations must have their turn on a slow machine, too.
            "--phases",
            "fuzzing",
            "--max-examples",
            "5",
            "--include-operation-id",
            "getHealth",
            "--include-operation-id",
            "getRunStatus",
        ],
    );
    assert!(!well, "it believes a false document:\n{said}");
    for word in ["Undocumented status code", "mood"] {
        assert!(said.contains(word), "{word:?} is not in:\n{said}");
    }
}
