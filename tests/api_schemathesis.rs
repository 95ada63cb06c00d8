//! schemathesis against a real server with two agents: requests made up from the server's own documents, answers checked against them.
//!
//! Not part of `cargo test`, because it needs a tool from PyPI: `make api-fuzz` gets that, and says where it is in `CTRL_EXEC_SCHEMATHESIS`.

mod common;

use std::process::Command;
use std::time::Duration;

use common::web::{self, ApiServer};
use common::{Daemon, Paired};

/// What the tool may take for one document, seconds; the static one and the live one together stay below three minutes.
const BUDGET: &str = "75";
/// After this the test fails: the tool finishes what it has begun.
const DEADLINE: Duration = Duration::from_secs(180);
const CHECKS: &str = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance,\
                      response_headers_conformance";

#[test]
fn schemathesis_finds_nothing() {
    let tool = std::env::var_os("CTRL_EXEC_SCHEMATHESIS")
        .expect("CTRL_EXEC_SCHEMATHESIS says where the tool is: run `make api-fuzz`");
    let fleet = Paired::new(&["web1", "web2"]);
    let _agents = fleet.start();
    let mut api = ApiServer::start(&fleet.dispatcher, web::OPEN);
    // The static document leads to names that nobody has; the live one to hosts and scripts that there are.
    for document in ["/openapi.json", "/openapi-live.json"] {
        let url = api.url();
        let mut command = Command::new(&tool);
        command
            .args(["run", &format!("{url}{document}"), "--url", &url])
            .args(["--checks", CHECKS, "--max-time", BUDGET])
            .args(["--request-timeout", "30", "--continue-on-failure"])
            .args(["--max-failures", "200", "--no-color"])
            // What it finds once it would remember in the directory that it is called in.
            .current_dir(fleet.dispatcher.path("tmp"));
        let mut run = Daemon::start(&mut command);
        let status = run.wait(DEADLINE);
        let said = run.out();
        assert!(
            status.success(),
            "schemathesis has findings with {document}:\n{said}\n{}",
            run.err()
        );
        // It ends well, too, if it had nothing to do.
        assert!(said.contains("Tested: "), "nothing was tested:\n{said}");
        println!("{document}:\n{said}");
    }
    assert!(api.daemon().is_running(), "the server has ended");
    api.get("/health").expect(200);
}
