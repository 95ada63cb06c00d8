//! Clients that were written against the documents of 0.12.3, run as they are against this server: a shell script with curl, and a small
//! command line in Python (spec/api.md 15.2, spec/integrations.md 3).

mod common;

use std::process::Command;

use common::fleet::allow;
use common::process::{self, Run};
use common::web::{self, HOOKED, OPEN};
use common::{Agent, ApiServer, Paired};

const SHELL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients/fleet.sh");
const PYTHON: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients/cli.py");

fn fleet() -> (Paired, Vec<Agent>) {
    let fleet = Paired::new(&["web1.test", "web2.test"]);
    allow(
        &fleet.agents[0],
        "echo",
        "printf '[%s]' \"$@\" | head -c 100",
    );
    allow(&fleet.agents[0], "slow", "sleep 2; echo slept");
    let agents = fleet.start();
    (fleet, agents)
}

#[test]
fn a_shell_script_with_curl() {
    let (fleet, _agents) = fleet();
    let api = ApiServer::start(&fleet.dispatcher, OPEN);
    let mut command = Command::new("sh");
    command
        .arg(SHELL)
        .args([&api.url(), "web1.test", "echo", "slow"])
        .current_dir(fleet.dispatcher.path("tmp"));
    let out = process::run(&mut command).ok().out();
    let wanted = [
        "health ok",
        "ping ok",
        "stdout [one][two words]",
        "exit 0",
        "status ok",
        "long ok",
        "async slept",
        "conflict 409 4 web1.test:slow",
        "unknown unknown agent: not a registered agent: nobody",
        "hosts web1.test,web2.test",
        "done",
    ];
    assert_eq!(out.lines().collect::<Vec<_>>(), wanted);
}

#[test]
fn a_command_line_in_python() {
    let (fleet, agents) = fleet();
    let host = &fleet.dispatcher;
    web::hook(
        host,
        "case $ENVEXEC_ACTION in run) [ \"$ENVEXEC_USERNAME:$ENVEXEC_TOKEN\" = alice:s3same ] || exit 2 ;; esac; exit 0",
    );
    let api = ApiServer::start(host, HOOKED);
    let url = api.url();
    let cli = |words: &[&str], token: &str| -> Run {
        let mut command = Command::new("python3");
        command
            .arg(PYTHON)
            .arg(&url)
            .args(words)
            .env("USERNAME", "alice")
            .env("TOKEN", token);
        process::run(&mut command)
    };
    let good = |words: &[&str]| cli(words, "s3same");
    good(&["health"]).ok().out_has("STATUS ok\nVERSION ");
    let pings = good(&["ping", "web2.test", "web1.test"]).ok().out();
    let names: Vec<&str> = pings
        .lines()
        .filter_map(|line| line.split('\t').next())
        .collect();
    assert_eq!(names, ["web2.test", "web1.test"]);
    assert!(
        pings.contains(" GMT\t"),
        "the expiry is OpenSSL's text: {pings}"
    );
    let ran = good(&[
        "run",
        "web1.test",
        "--script",
        "echo",
        "--",
        "a b",
        "--script",
    ])
    .ok()
    .out_has("==> web1.test [ok ")
    .out_has("\n[a b][--script]");
    let out = ran.out();
    let reqid = out
        .lines()
        .next()
        .and_then(|line| line.strip_prefix("reqid: "))
        .expect("the id");
    // GET carries no credentials.
    good(&["status", reqid])
        .ok()
        .out_has(&format!(
            "reqid: {reqid}\nscript: echo\nhosts: web1.test\ncompleted: 1"
        ))
        .out_has("[a b][--script]");
    good(&["run", "web1.test", "web2.test", "--script", "fail"])
        .expect_code(1)
        .out_has("==> web1.test [exit:42 ")
        .out_has("==> web2.test [exit:42 ")
        .err_has("err\n");
    good(&["run", "web1.test", "--script", "nothing"])
        .expect_code(1)
        .err_has("script not permitted");
    good(&["discovery"])
        .ok()
        .out_has("web1.test echo")
        .out_has("web2.test hello");
    let some = good(&["discovery", "web2.test"]).ok();
    assert!(!some.out().contains("web1.test"));

    let error = |run: Run, text: &str| assert_eq!(run.expect_code(1).err(), format!("{text}\n"));
    error(
        cli(&["run", "web1.test", "--script", "true"], "wrong"),
        "error: bad credentials",
    );
    error(
        good(&["run", "nobody", "--script", "true"]),
        "error: unknown agent: not a registered agent: nobody",
    );
    error(
        good(&["run", "web1.test", "--script", "a b"]),
        "error: bad request: script name required (alphanumeric and hyphens only)",
    );
    error(
        good(&["status", "00ff"]),
        "error: not found: no result for reqid 00ff",
    );
    let mut by_hand = host.command("ced");
    by_hand.args([
        "run",
        "web1.test",
        "slow",
        "--token",
        "s3same",
        "--username",
        "alice",
    ]);
    let mut by_hand = common::Daemon::start(&mut by_hand);
    common::wait_until("the lock is held", common::PATIENCE, || {
        let held = host.ced(&["list-locks", "--json"]).ok().json();
        (held["locks"] != serde_json::json!([])).then_some(())
    });
    error(
        good(&["run", "web1.test", "web2.test", "--script", "slow"]),
        "locked: web1.test:slow",
    );
    assert!(
        by_hand.wait(common::PATIENCE).success(),
        "{}",
        by_hand.err()
    );

    // A host that is down is told by its entry.
    drop(agents);
    good(&["ping", "web1.test"])
        .expect_code(1)
        .out_has("web1.test\terror\t");
    good(&["run", "web1.test", "--script", "true"])
        .expect_code(1)
        .out_has("==> web1.test [error ");
    good(&["discovery"]).ok();
    assert!(!api.get("/health").text().contains("s3same"));
}
