//! What a script gets and gives back, and how the daemon is steered while it runs (spec/agent.md 6, 9-11, 16).

mod common;

use std::time::{Duration, Instant};

use common::fleet::{allow, allow_path, new_agent, write_agent_toml};
use common::openssl::{Authority, Dates};
use common::syslog::{ERR, INFO, WARNING};
use common::tls::{self, Client, TLS13};
use common::{Agent, PATIENCE, Paired, free_port, wait_until};
use serde_json::Value;

const UNLIMITED: &str = "rate_limit_disable = true\n";

/// A paired host with more scripts, its agent running.
fn scene(scripts: &[(&str, &str)]) -> (Paired, Agent) {
    let fleet = Paired::new(&["web01.test"]);
    for (name, body) in scripts {
        allow(&fleet.agents[0], name, body);
    }
    let agent = Agent::start(&fleet.agents[0]);
    (fleet, agent)
}

/// Runs a script and answers the host's result object.
#[track_caller]
fn result(fleet: &Paired, script: &str, args: &[&str]) -> Value {
    let words = [&["run", "--json", "web01.test", script, "--"], args].concat();
    let run = fleet.ced(&words);
    let json = run.json();
    assert_eq!(json["ok"], 1, "{json}");
    let result = json["results"][0].clone();
    assert_eq!(run.code() == 0, result["exit"] == 0, "{result}");
    assert_eq!(
        (result["host"].as_str(), result["script"].as_str()),
        (Some("web01.test"), Some(script)),
        "{result}"
    );
    result
}

fn stdout(result: &Value) -> &str {
    result["stdout"]
        .as_str()
        .unwrap_or_else(|| panic!("no stdout: {result}"))
}

#[test]
fn output_exit_and_arguments_arrive_as_they_are() {
    let (fleet, _agent) = scene(&[(
        "lines",
        "i=0; while [ $i -lt 10000 ]; do echo \"line $i\"; i=$((i+1)); done",
    )]);

    let both = result(&fleet, "fail", &[]);
    assert_eq!(both["exit"], 42);
    assert_eq!(
        (stdout(&both), both["stderr"].as_str()),
        ("out\n", Some("err\n"))
    );
    assert!(both["rtt"].as_str().expect("rtt").ends_with("ms"), "{both}");
    let reqid = both["reqid"].as_str().expect("reqid");
    assert!(
        reqid.len() == 16 && reqid.bytes().all(|b| b.is_ascii_hexdigit()),
        "{reqid}"
    );

    // No shell looks at the arguments.
    let marker = fleet.agents[0].path("tmp/pwned");
    let inject = format!("$(touch {})", marker.display());
    let backtick = format!("`touch {}`; touch {}", marker.display(), marker.display());
    let args = [
        "a b",
        "",
        &inject,
        &backtick,
        "--root",
        "-x",
        "*",
        "'\"",
        "ünï ☃",
        "line\nbreak",
        "\t",
    ];
    let echoed = result(&fleet, "hello", &args);
    let path = fleet.agents[0].path("opt/scripts/hello");
    let expected: String = args.iter().map(|a| format!(" [{a}]")).collect();
    assert_eq!(
        stdout(&echoed),
        format!("hello from {}:{expected}\n", path.display())
    );
    assert!(!marker.exists());

    let lines = result(&fleet, "lines", &[]);
    assert_eq!(stdout(&lines).lines().count(), 10_000);
    assert_eq!(stdout(&lines).lines().last(), Some("line 9999"));

    // Agent's side of the story, and the dispatcher's.
    let line = fleet.agents[0].wait_for_log(&["ACTION=run", "SCRIPT=fail"]);
    assert_eq!(line.priority, INFO);
    assert_eq!(
        (
            line.field("EXIT").as_deref(),
            line.field("REQID").as_deref()
        ),
        (Some("42"), Some(reqid))
    );
    assert_eq!(line.field("PEER").as_deref(), Some("127.0.0.1"));
    fleet
        .dispatcher
        .wait_for_log(&["ACTION=dispatch", "SCRIPT=fail", &format!("REQID={reqid}")]);
    let line = fleet
        .dispatcher
        .wait_for_log(&["ACTION=run", "SCRIPT=fail"]);
    assert_eq!(
        (line.ident.as_str(), line.field("EXIT").as_deref()),
        ("ctrl-exec-dispatcher", Some("42"))
    );
}

#[test]
fn human_output_has_the_shape_of_the_original() {
    let (fleet, _agent) = scene(&[("silent", "printf '\\n \\n'")]);
    let run = fleet.ced(&["run", "web01.test", "fail"]).expect_code(1);
    let out = run.out();
    let mut lines = out.lines();
    let head = lines.next().expect("a heading");
    assert!(
        head.starts_with("==> web01.test  [FAIL  exit:42  ")
            && head.contains("ms  req:")
            && head.ends_with(']'),
        "{head}"
    );
    assert_eq!(lines.collect::<Vec<_>>(), ["out", "    STDERR: err"]);
    let run = fleet.ced(&["run", "web01.test", "silent"]).ok();
    assert_eq!(run.out().lines().count(), 1, "{}", run.out());
    let run = fleet.ced(&["run", "web01.test", "nonesuch"]).expect_code(1);
    assert!(
        run.out().contains("[FAIL  exit:-1  ")
            && run.out().contains("\n    ERROR: script not permitted\n"),
        "{}",
        run.out()
    );
    let line = fleet.agents[0].wait_for_log(&["ACTION=deny", "SCRIPT=nonesuch"]);
    assert_eq!(line.priority, WARNING);
}

#[test]
fn big_output_on_both_streams_does_not_deadlock() {
    let (fleet, _agent) = scene(&[
        (
            "errfirst",
            "head -c 204800 /dev/zero | tr '\\0' e >&2; head -c 204800 /dev/zero | tr '\\0' o",
        ),
        (
            "interleaved",
            "i=0; while [ $i -lt 300 ]; do head -c 1000 /dev/zero | tr '\\0' o; head -c 1000 /dev/zero | tr '\\0' e >&2; i=$((i+1)); done",
        ),
    ]);
    for (script, size) in [("errfirst", 204_800), ("interleaved", 300_000)] {
        let both = result(&fleet, script, &[]);
        assert_eq!(both["exit"], 0);
        assert!(
            stdout(&both).len() == size && stdout(&both).bytes().all(|b| b == b'o'),
            "{script}"
        );
        let err = both["stderr"].as_str().expect("stderr");
        assert!(
            err.len() == size && err.bytes().all(|b| b == b'e'),
            "{script}"
        );
    }
}

#[test]
fn output_is_capped_and_said_to_be() {
    let (fleet, agent) = scene(&[(
        "flood",
        "head -c 100000000 /dev/zero | tr '\\0' x; echo done >&2",
    )]);
    drop(agent);
    let host = &fleet.agents[0];
    write_agent_toml(
        host,
        fleet.ports[0],
        &format!("{UNLIMITED}max_output = 65536\n"),
    );
    let agent = Agent::start(host);
    let flood = result(&fleet, "flood", &[]);
    assert_eq!(
        (flood["exit"].as_i64(), flood["truncated"].as_bool()),
        (Some(0), Some(true)),
        "{}",
        flood["stderr"]
    );
    assert!(
        stdout(&flood).len() <= 65_536 + 100,
        "{}",
        stdout(&flood).len()
    );
    assert_eq!(flood["stderr"], "done\n");
    assert!(
        agent.peak_rss_kib() < 40 * 1024,
        "{} KiB",
        agent.peak_rss_kib()
    );
    fleet
        .ced(&["run", "web01.test", "flood"])
        .ok()
        .out_has("NOTE: output beyond the agent's max_output was dropped");
}

#[test]
fn the_ways_a_script_can_fail_have_their_codes() {
    let (fleet, _agent) = scene(&[
        ("term", "kill -TERM $$"),
        ("segv", "kill -SEGV $$"),
        ("high", "exit 255"),
    ]);
    let host = &fleet.agents[0];
    allow_path(host, "missing", &host.path("opt/scripts/not-there"));
    host.write("opt/scripts/plain", "#!/bin/sh\necho no\n", 0o644);
    allow_path(host, "plain", &host.path("opt/scripts/plain"));
    host.write(
        "opt/scripts/interpreter",
        "#!/nonexistent/interpreter\n",
        0o755,
    );
    allow_path(host, "interpreter", &host.path("opt/scripts/interpreter"));
    drop(_agent);
    let _agent = Agent::start(host);
    for (script, exit, signal) in [
        ("term", 126, Some(15)),
        ("segv", 126, Some(11)),
        ("high", 255, None),
    ] {
        let answer = result(&fleet, script, &[]);
        assert_eq!(
            (answer["exit"].as_i64(), answer["signal"].as_i64()),
            (Some(exit), signal),
            "{script}"
        );
    }
    for script in ["missing", "plain", "interpreter"] {
        let answer = result(&fleet, script, &[]);
        assert_eq!(answer["exit"], 127, "{script}: {answer}");
        let err = answer["stderr"].as_str().expect("stderr");
        assert!(err.contains("opt/scripts/"), "{script}: {err}");
    }
}

#[test]
fn the_context_is_complete_and_a_script_need_not_read_it() {
    let (fleet, _agent) = scene(&[
        ("closes", "exec <&-; exit 7"),
        ("eof", "cat >/dev/null; echo eof"),
    ]);
    let mut dispatcher = fleet.dispatcher.command("ced");
    dispatcher
        .env("ENVEXEC_TOKEN", "s3cret \"x\"")
        .env("USER", "operator");
    let run = common::process::run(dispatcher.args([
        "run",
        "--json",
        "web01.test",
        "context",
        "--",
        "a b",
        "ü",
    ]))
    .ok();
    let answer = run.json()["results"][0].clone();
    let context: Value = serde_json::from_str(stdout(&answer)).expect("one JSON object on stdin");
    assert!(!stdout(&answer).ends_with('\n'));
    let keys: Vec<&str> = context
        .as_object()
        .expect("object")
        .keys()
        .map(String::as_str)
        .collect();
    assert_eq!(
        keys,
        [
            "args",
            "dispatcher",
            "peer_ip",
            "reqid",
            "script",
            "timestamp",
            "token",
            "username"
        ]
    );
    assert_eq!(context["args"], serde_json::json!(["a b", "ü"]));
    assert_eq!(context["script"], "context");
    assert_eq!(
        (context["username"].as_str(), context["token"].as_str()),
        (Some("operator"), Some("s3cret \"x\""))
    );
    assert_eq!(context["peer_ip"], "127.0.0.1");
    assert_eq!(context["reqid"], answer["reqid"]);
    assert_eq!(context["dispatcher"], "ctl");
    let time = context["timestamp"].as_str().expect("timestamp");
    assert!(
        time.len() == 20 && time.ends_with('Z') && time.as_bytes()[10] == b'T',
        "{time}"
    );
    // The token is in no log.
    for line in fleet.agents[0]
        .log_lines()
        .iter()
        .chain(&fleet.dispatcher.log_lines())
    {
        assert!(!line.text.contains("s3cret"), "{}", line.text);
    }

    assert_eq!(stdout(&result(&fleet, "eof", &[])), "eof\n");
    // A script that ends before its stdin was written loses neither its exit nor its log line (W4).
    let leaf = fleet.dispatcher_leaf();
    let mut client = Client::connect(_agent.address(), Some(&leaf), TLS13).expect("let in");
    for round in 0..100 {
        let body = format!(
            "{{\"script\":\"closes\",\"args\":[\"{}\"],\"reqid\":\"r{round}\"}}",
            "x".repeat(90_000)
        );
        let reply = client
            .request("POST", "/run", body.as_bytes())
            .unwrap_or_else(|e| panic!("round {round}: {e}"));
        let json = reply.json();
        assert_eq!(
            (json["exit"].as_i64(), json["reqid"].as_str()),
            (Some(7), Some(format!("r{round}").as_str())),
            "{json}"
        );
    }
    let logged = fleet.agents[0]
        .log_of("run")
        .iter()
        .filter(|l| l.text.contains("SCRIPT=closes"))
        .count();
    assert_eq!(logged, 100);
}

#[test]
fn the_environment_of_a_script_is_a_short_list() {
    let fleet = Paired::new(&["web01.test"]);
    let mut command = fleet.agents[0].command("cea");
    for (key, value) in [
        ("LD_PRELOAD", "/tmp/evil.so"),
        ("LD_LIBRARY_PATH", "/tmp"),
        ("BASH_ENV", "/tmp/evil.sh"),
        ("ENV", "/tmp/evil.sh"),
        ("IFS", "x"),
        ("PERL5LIB", "/tmp"),
        ("SECRET", "value"),
        ("ENVEXEC_TOKEN", "value"),
        ("PATH", "/tmp:/usr/bin:/bin"),
        ("HOME", "/home/agent"),
        ("LANG", "C.UTF-8"),
        ("TZ", "UTC"),
        ("NOTIFY_SOCKET", "@nobody"),
    ] {
        command.env(key, value);
    }
    let mut daemon = common::Daemon::start(command.arg("serve"));
    daemon.wait_for_text("listening on ");
    let answer = result(&fleet, "environment", &[]);
    let mut seen: Vec<&str> = stdout(&answer).lines().collect();
    // What the shell of the script adds by itself.
    seen.retain(|l| {
        !["PWD=", "SHLVL=", "_=", "OLDPWD="]
            .iter()
            .any(|own| l.starts_with(own))
    });
    assert_eq!(
        seen,
        [
            "HOME=/home/agent",
            "LANG=C.UTF-8",
            "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "TZ=UTC"
        ]
    );
}

#[test]
fn a_script_inherits_no_descriptors() {
    let (fleet, _agent) = scene(&[("fds", "ls /proc/$$/fd")]);
    let answer = result(&fleet, "fds", &[]);
    let open: Vec<&str> = stdout(&answer).split_whitespace().collect();
    // The shell holds its own script as 10 or 255.
    let foreign: Vec<&&str> = open
        .iter()
        .filter(|fd| !["0", "1", "2", "10", "255"].contains(*fd))
        .collect();
    assert!(foreign.is_empty(), "{open:?}");
}

#[test]
fn bytes_that_are_no_utf8_become_replacement_characters() {
    let (fleet, _agent) = scene(&[("binary", r"printf 'a\377\376b\000c'; printf '\303' >&2")]);
    let answer = result(&fleet, "binary", &[]);
    assert_eq!(stdout(&answer), "a\u{fffd}\u{fffd}b\0c");
    assert_eq!(answer["stderr"], "\u{fffd}");
    fleet.ced(&["run", "web01.test", "binary"]).ok();
}

#[test]
fn a_background_child_does_not_hold_the_answer_for_ever() {
    let (fleet, _agent) = scene(&[("daemonises", "sleep 40 & echo started")]);
    let start = Instant::now();
    let answer = result(&fleet, "daemonises", &[]);
    assert_eq!(
        (answer["exit"].as_i64(), stdout(&answer)),
        (Some(0), "started\n")
    );
    assert!(
        start.elapsed() < Duration::from_secs(20),
        "{:?}",
        start.elapsed()
    );
}

#[test]
fn a_script_that_runs_too_long_is_ended_with_its_children() {
    let (fleet, agent) = scene(&[
        ("forever", "echo begin; sleep 300 & echo $!; wait"),
        (
            "stubborn",
            "trap '' TERM; echo begin; while :; do sleep 1; done",
        ),
    ]);
    drop(agent);
    let host = &fleet.agents[0];
    write_agent_toml(
        host,
        fleet.ports[0],
        &format!("{UNLIMITED}run_timeout = 1\n"),
    );
    let _agent = Agent::start(host);
    let answer = result(&fleet, "forever", &[]);
    assert_eq!(
        (answer["timed_out"].as_bool(), answer["exit"] == 0),
        (Some(true), false),
        "{answer}"
    );
    let mut lines = stdout(&answer).lines();
    assert_eq!(lines.next(), Some("begin"));
    let child = lines.next().expect("the pid of the child").to_owned();
    wait_until("the child is gone", PATIENCE, || {
        let stat = std::fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
        (stat.is_empty() || stat.contains(") Z ")).then_some(())
    });
    let start = Instant::now();
    let answer = result(&fleet, "stubborn", &[]);
    assert_eq!(answer["timed_out"], true, "{answer}");
    assert!(start.elapsed() < Duration::from_secs(15));
}

#[test]
fn capabilities_list_scripts_and_sidecars() {
    let (fleet, agent) = scene(&[("with-schema", "exit 0")]);
    let host = &fleet.agents[0];
    host.write(
        "opt/scripts/with-schema.schema.json",
        r#"{"version":"v7","arguments":[]}"#,
        0o644,
    );
    host.write("opt/scripts/hello.schema.json", "not json", 0o644);
    agent.hup();
    host.wait_for_log(&["ACTION=schema-skip", "SCRIPT=hello"]);
    let leaf = fleet.dispatcher_leaf();
    let reply = tls::request(agent.address(), Some(&leaf), "GET", "/capabilities", b"")
        .expect("an answer")
        .json();
    assert_eq!(
        (reply["status"].as_str(), reply["host"].as_str()),
        (Some("ok"), Some("web01.test"))
    );
    assert_eq!(reply["tags"], serde_json::json!({"env": "test"}));
    let names: Vec<&str> = reply["scripts"]
        .as_array()
        .expect("array")
        .iter()
        .filter_map(|s| s["name"].as_str())
        .collect();
    assert_eq!(
        names,
        [
            "context",
            "environment",
            "fail",
            "hello",
            "true",
            "with-schema"
        ]
    );
    for script in reply["scripts"].as_array().expect("array") {
        assert_eq!(
            (script["executable"].as_bool(), script["profile"].as_str()),
            (Some(true), Some("default")),
            "{script}"
        );
        assert_eq!(
            script.get("schema").is_some(),
            script["name"] == "with-schema",
            "{script}"
        );
    }
    let described = reply["scripts"]
        .as_array()
        .and_then(|s| s.last())
        .expect("the last");
    assert_eq!(described["schema_version"], "v7");
    host.wait_for_log(&["ACTION=capabilities", "DISPATCHER=ctl", "SCRIPTS=6"]);
}

#[test]
fn a_hup_reloads_everything_and_keeps_pid_and_listener() {
    let (fleet, mut agent) = scene(&[]);
    let host = &fleet.agents[0];
    let leaf = fleet.dispatcher_leaf();
    // A connection that is open during the reload keeps working.
    let mut open = Client::connect(agent.address(), Some(&leaf), TLS13).expect("let in");
    assert_eq!(
        open.request("POST", "/ping", b"{}")
            .expect("an answer")
            .status,
        200
    );
    let pid = agent.pid();

    let first = result(&fleet, "added", &[]);
    assert_eq!(first["error"], "script not permitted");
    allow(host, "added", "echo now");
    host.clear_log();
    agent.hup();
    host.wait_for_log(&["ACTION=config-reload", "SCRIPTS=6"]);
    assert_eq!(stdout(&result(&fleet, "added", &[])), "now\n");
    assert_eq!(
        open.request("POST", "/ping", b"{}")
            .expect("an answer")
            .status,
        200
    );

    // Every broken file keeps the old picture in force, and says why.
    let good_toml = host.read("etc/ctrl-exec-agent/agent.toml");
    let good_scripts = host.read("etc/ctrl-exec-agent/scripts.toml");
    let good_cert = host.read("etc/ctrl-exec-agent/agent.crt");
    let good_map = host.read("var/lib/ctrl-exec-agent/ctrl-exec-dispatchers");
    for (path, broken, good, mode) in [
        (
            "etc/ctrl-exec-agent/agent.toml",
            "port = \"no\"\n",
            &good_toml,
            0o640,
        ),
        (
            "etc/ctrl-exec-agent/agent.toml",
            "allowed_ips = [\"nonsense\"]\n",
            &good_toml,
            0o640,
        ),
        (
            "etc/ctrl-exec-agent/scripts.toml",
            "[scripts.added\n",
            &good_scripts,
            0o640,
        ),
        (
            "etc/ctrl-exec-agent/scripts.toml",
            "[scripts.x]\npath = \"relative\"\n",
            &good_scripts,
            0o640,
        ),
        (
            "etc/ctrl-exec-agent/agent.crt",
            "-----BEGIN CERTIFICATE-----\n",
            &good_cert,
            0o640,
        ),
    ] {
        host.clear_log();
        host.write(path, broken, mode);
        agent.hup();
        let line = host.wait_for_log(&["ACTION=config-reload", "ERROR="]);
        assert_eq!(line.priority, ERR, "{}", line.text);
        let name = path.rsplit('/').next().expect("a file name");
        assert!(
            line.text.contains(name),
            "the file is not named: {}",
            line.text
        );
        assert_eq!(stdout(&result(&fleet, "added", &[])), "now\n", "{path}");
        host.write(path, good, mode);
    }

    // The trust map: gone means nobody is trusted, from the next request on, on open connections too.
    host.clear_log();
    host.write(
        "var/lib/ctrl-exec-agent/ctrl-exec-dispatchers",
        "# nobody\n",
        0o644,
    );
    agent.hup();
    host.wait_for_log(&["ACTION=config-reload", "TRUSTED=0"]);
    assert_eq!(
        open.request("POST", "/ping", b"{}")
            .expect("an answer")
            .status,
        403
    );
    let answer = result(&fleet, "hello", &[]);
    assert_eq!(answer["error"], "forbidden: serial mismatch");
    host.clear_log();
    host.write(
        "var/lib/ctrl-exec-agent/ctrl-exec-dispatchers",
        &good_map,
        0o644,
    );
    agent.hup();
    host.wait_for_log(&["ACTION=config-reload", "TRUSTED=1"]);
    assert_eq!(result(&fleet, "true", &[])["exit"], 0);

    // Revocation of the dispatcher itself.
    host.clear_log();
    host.write(
        "etc/ctrl-exec-agent/revoked-serials",
        format!("# gone\n{}  # note\n", leaf.serial()),
        0o644,
    );
    agent.hup();
    host.wait_for_log(&["ACTION=config-reload"]);
    let answer = result(&fleet, "true", &[]);
    assert_eq!(answer["error"], "forbidden: certificate revoked");
    let line = host.wait_for_log(&["ACTION=revoked-cert"]);
    assert_eq!(
        (line.priority, line.field("SERIAL")),
        (WARNING, Some(leaf.serial()))
    );
    // An unreadable list (a directory) must not mean that nothing is revoked.
    std::fs::remove_file(host.path("etc/ctrl-exec-agent/revoked-serials")).expect("it is there");
    std::fs::create_dir(host.path("etc/ctrl-exec-agent/revoked-serials")).expect("a free name");
    host.clear_log();
    agent.hup();
    host.wait_for_log(&["ACTION=config-reload", "ERROR=", "revoked-serials"]);
    assert_eq!(
        result(&fleet, "true", &[])["error"],
        "forbidden: certificate revoked"
    );
    std::fs::remove_dir(host.path("etc/ctrl-exec-agent/revoked-serials")).expect("it is there");

    // Many at once.
    for _ in 0..50 {
        agent.hup();
    }
    wait_until("revocation is lifted", PATIENCE, || {
        (result(&fleet, "true", &[])["exit"] == 0).then_some(())
    });
    assert!(agent.is_running());
    assert_eq!(agent.pid(), pid);
}

#[test]
fn a_hup_during_a_run_does_not_disturb_it() {
    let (fleet, agent) = scene(&[("slow", "sleep 1.5; echo finished")]);
    let running = std::thread::scope(|scope| {
        let run = scope.spawn(|| result(&fleet, "slow", &[]));
        std::thread::sleep(Duration::from_millis(500));
        agent.hup();
        run.join().expect("the run ends")
    });
    assert_eq!(stdout(&running), "finished\n");
}

#[test]
fn a_hook_decides_and_its_crash_denies() {
    let fleet = Paired::new(&["web01.test"]);
    let host = &fleet.agents[0];
    let hook = |body: &str| {
        host.write(
            "etc/ctrl-exec-agent/hook",
            format!("#!/bin/sh\n{body}\n"),
            0o755,
        );
    };
    hook("exit 0");
    write_agent_toml(
        host,
        fleet.ports[0],
        &format!("{UNLIMITED}auth_hook = \"/etc/ctrl-exec-agent/hook\"\nauth_hook_timeout = 1\n"),
    );
    let mut command = host.command("cea");
    command
        .env("LD_LIBRARY_PATH", "/nonexistent")
        .env("SECRET", "value");
    let mut daemon = common::Daemon::start(command.arg("serve"));
    daemon.wait_for_text("listening on ");

    assert_eq!(result(&fleet, "true", &[])["exit"], 0);
    let line = host.wait_for_log(&["ACTION=auth", "AUTHACTION=run", "RESULT=pass"]);
    assert_eq!(line.priority, INFO);
    for (body, reason) in [
        ("exit 1", "denied"),
        ("exit 2", "bad credentials"),
        ("exit 3", "insufficient privilege"),
        ("exit 77", "hook exited 77"),
    ] {
        hook(body);
        host.clear_log();
        let answer = result(&fleet, "true", &[]);
        assert_eq!(
            answer["error"],
            format!("not authorised: {reason}"),
            "{body}"
        );
        let line = host.wait_for_log(&["ACTION=deny", "SCRIPT=true"]);
        assert_eq!(
            (line.priority, line.field("REASON").as_deref()),
            (WARNING, Some(reason))
        );
        host.wait_for_log(&["ACTION=auth", "RESULT=deny"]);
    }
    // A hook that dies, hangs, is gone, or may be written by everybody does not let anyone in (W6).
    for body in [
        "kill -KILL $$",
        "kill -SEGV $$",
        "sleep 30",
        "exec /nonexistent",
    ] {
        hook(body);
        let start = Instant::now();
        let answer = result(&fleet, "true", &[]);
        assert!(
            answer["error"]
                .as_str()
                .is_some_and(|e| e.starts_with("not authorised: ")),
            "{body}: {answer}"
        );
        assert!(
            start.elapsed() < Duration::from_secs(10),
            "{body}: {:?}",
            start.elapsed()
        );
    }
    host.wait_for_log(&["ACTION=auth-hook-timeout"]);
    hook("exit 0");
    host.set_mode("etc/ctrl-exec-agent/hook", 0o757);
    assert_ne!(
        result(&fleet, "true", &[])["exit"],
        0,
        "a world-writable hook was asked"
    );
    host.set_mode("etc/ctrl-exec-agent/hook", 0o644);
    assert_ne!(
        result(&fleet, "true", &[])["exit"],
        0,
        "a hook that is not executable let someone in"
    );
    let line = host.wait_for_log(&["ACTION=auth", "REASON=hook-not-executable"]);
    assert_eq!(
        (line.priority, line.field("RESULT").as_deref()),
        (ERR, Some("error"))
    );
    std::fs::remove_file(host.path("etc/ctrl-exec-agent/hook")).expect("it is there");
    assert_ne!(
        result(&fleet, "true", &[])["exit"],
        0,
        "a missing hook let someone in"
    );

    // What it is told.
    let seen = host.path("tmp/seen");
    hook(&format!(
        "cat > {0}.stdin; env | sort > {0}.env; exit 0",
        seen.display()
    ));
    let mut dispatcher = fleet.dispatcher.command("ced");
    dispatcher
        .env("ENVEXEC_TOKEN", "tok")
        .env("USER", "operator");
    common::process::run(dispatcher.args([
        "run",
        "--json",
        "web01.test",
        "hello",
        "--",
        "a b",
        "c",
    ]))
    .ok();
    let env = std::fs::read_to_string(seen.with_extension("env")).expect("the hook ran");
    let serial = fleet.dispatcher_leaf().serial();
    for expected in [
        "ENVEXEC_ACTION=run",
        "ENVEXEC_SCRIPT=hello",
        "ENVEXEC_ARGS=a b c",
        "ENVEXEC_ARGS_JSON=[\"a b\",\"c\"]",
        "ENVEXEC_USERNAME=operator",
        "ENVEXEC_TOKEN=tok",
        "ENVEXEC_SOURCE_IP=127.0.0.1",
        "ENVEXEC_DISPATCHER=ctl",
        &format!("ENVEXEC_DISPATCHER_SERIAL={serial}"),
        "ENVEXEC_HOSTS=",
        "ENVEXEC_REQID=",
    ] {
        assert!(
            env.lines().any(|l| l == expected),
            "{expected} is missing among\n{env}"
        );
    }
    assert!(
        !env.contains("SECRET") && !env.contains("LD_LIBRARY_PATH"),
        "{env}"
    );
    let stdin: Value = serde_json::from_str(
        &std::fs::read_to_string(seen.with_extension("stdin")).expect("the hook ran"),
    )
    .expect("JSON");
    assert_eq!(
        (stdin["action"].as_str(), stdin["args"].clone()),
        (Some("run"), serde_json::json!(["a b", "c"]))
    );
    assert_eq!(
        (stdin["dispatcher"].as_str(), stdin["submitter"].is_null()),
        (Some("ctl"), true)
    );

    // Discovery asks it too.
    hook("exit 1");
    let leaf = fleet.dispatcher_leaf();
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], fleet.ports[0]));
    let reply = tls::request(address, Some(&leaf), "GET", "/capabilities", b"").expect("an answer");
    assert_eq!(
        (reply.status, reply.json()["error"].as_str()),
        (403, Some("not authorised"))
    );
    // A ping does not.
    assert_eq!(
        tls::request(address, Some(&leaf), "POST", "/ping", b"{}")
            .expect("an answer")
            .status,
        200
    );
}

#[test]
fn allowed_ips_filters_before_the_handshake() {
    let (fleet, agent) = scene(&[]);
    drop(agent);
    let host = &fleet.agents[0];
    for (list, allowed) in [
        ("\"127.0.0.1\"", true),
        ("\"10.0.0.0/8\", \"127.0.0.0/25\"", true),
        ("\"127.0.0.128/25\"", false),
        ("\"::1\", \"fe80::/10\"", false),
        ("\"0.0.0.0/0\"", true),
    ] {
        write_agent_toml(
            host,
            fleet.ports[0],
            &format!("{UNLIMITED}allowed_ips = [{list}]\n"),
        );
        host.clear_log();
        let agent = Agent::start(host);
        let answer = result(&fleet, "true", &[]);
        assert_eq!(answer["exit"] == 0, allowed, "{list}: {answer}");
        if !allowed {
            let line = host.wait_for_log(&["ACTION=ip-block", "PEER=127.0.0.1"]);
            assert_eq!(line.priority, WARNING);
            assert!(host.log_of("tls-failure").is_empty());
        }
        drop(agent);
    }
    // A list of which nothing can be understood must not let everybody in.
    write_agent_toml(
        host,
        fleet.ports[0],
        "allowed_ips = [\"300.1.1.1\", \"10.0.0.0/33\"]\n",
    );
    host.cea(&["serve"])
        .expect_code(78)
        .err_has("allowed_ips")
        .err_has("agent.toml:");
}

#[test]
fn strangers_are_limited_and_the_dispatcher_has_a_budget_of_its_own() {
    let (fleet, agent) = scene(&[]);
    drop(agent);
    let host = &fleet.agents[0];
    write_agent_toml(
        host,
        fleet.ports[0],
        "rate_limit_volume = \"5/60/300\"\nrate_limit_probe = \"3/60/2\"\n",
    );
    let agent = Agent::start(host);
    let leaf = fleet.dispatcher_leaf();
    // Polling every two seconds, `ced wait` of the original was blocked by its own agent (W11).
    for _ in 0..30 {
        assert_eq!(
            tls::request(agent.address(), Some(&leaf), "POST", "/ping", b"{}")
                .expect("an answer")
                .status,
            200
        );
    }
    // A stranger with a certificate of the CA: five connections, then the block.
    let ca = Authority::at(&fleet.dispatcher.path("etc/ctrl-exec"));
    let stranger = ca.issue("ctrl-exec-dispatcher", "7A01", Dates::Days(5));
    let answers: Vec<Option<u16>> = (0..7)
        .map(|_| {
            tls::request(agent.address(), Some(&stranger), "POST", "/ping", b"{}")
                .ok()
                .map(|r| r.status)
        })
        .collect();
    assert_eq!(
        answers,
        [
            Some(403),
            Some(403),
            Some(403),
            Some(403),
            Some(403),
            None,
            None
        ]
    );
    let line = host.wait_for_log(&["ACTION=rate-block", "REASON=volume", "PEER=127.0.0.1"]);
    assert_eq!(line.priority, WARNING);
    assert_eq!(
        host.log_of("rate-block").len(),
        1,
        "a block is logged when it begins"
    );

    // A HUP forgets. Three failed handshakes are probes; the block ends by itself.
    agent.hup();
    host.wait_for_log(&["ACTION=config-reload"]);
    for _ in 0..3 {
        let _ = Client::connect(agent.address(), None, tls::TLS12);
    }
    host.wait_for_log(&["ACTION=rate-block", "REASON=probe"]);
    assert!(
        tls::request(agent.address(), Some(&leaf), "POST", "/ping", b"{}").is_err(),
        "a blocked address was let in"
    );
    wait_until("the block ends", PATIENCE, || {
        tls::request(agent.address(), Some(&leaf), "POST", "/ping", b"{}")
            .is_ok_and(|r| r.status == 200)
            .then_some(())
    });
}

#[test]
fn the_dispatchers_budget_ends_too() {
    let (fleet, agent) = scene(&[]);
    drop(agent);
    write_agent_toml(
        &fleet.agents[0],
        fleet.ports[0],
        "rate_limit_dispatcher = \"5/60/60\"\n",
    );
    let agent = Agent::start(&fleet.agents[0]);
    let leaf = fleet.dispatcher_leaf();
    let statuses: Vec<u16> = (0..7)
        .map(|_| {
            tls::request(agent.address(), Some(&leaf), "POST", "/ping", b"{}")
                .expect("an answer")
                .status
        })
        .collect();
    assert_eq!(statuses, [200, 200, 200, 200, 200, 429, 429]);
    fleet.agents[0].wait_for_log(&["ACTION=rate-block", "DISPATCHER=ctl"]);
}

#[test]
fn too_many_connections_are_told_so() {
    let (fleet, agent) = scene(&[]);
    drop(agent);
    write_agent_toml(
        &fleet.agents[0],
        fleet.ports[0],
        &format!("{UNLIMITED}max_children = 3\n"),
    );
    let agent = Agent::start(&fleet.agents[0]);
    let leaf = fleet.dispatcher_leaf();
    let mut held: Vec<Client> = (0..3)
        .map(|_| Client::connect(agent.address(), Some(&leaf), TLS13).expect("let in"))
        .collect();
    for client in &mut held {
        assert_eq!(
            client
                .request("POST", "/ping", b"{}")
                .expect("an answer")
                .status,
            200
        );
    }
    let over = tls::request(agent.address(), Some(&leaf), "POST", "/ping", b"{}");
    match over {
        Ok(reply) => assert_eq!(reply.status, 503),
        Err(e) => assert!(
            !matches!(e.kind(), std::io::ErrorKind::WouldBlock),
            "no answer, no close"
        ),
    }
    let line = fleet.agents[0].wait_for_log(&["ACTION=overload", "LIVE=3"]);
    assert_eq!(line.priority, WARNING);
    held.pop();
    wait_until("a place is free", PATIENCE, || {
        tls::request(agent.address(), Some(&leaf), "POST", "/ping", b"{}")
            .is_ok_and(|r| r.status == 200)
            .then_some(())
    });
}

#[test]
fn a_stop_lets_the_request_in_flight_finish_and_takes_no_new_one() {
    let (fleet, mut agent) = scene(&[("slow", "sleep 2; echo finished")]);
    let address = agent.address();
    let leaf = fleet.dispatcher_leaf();
    let (answer, refused) = std::thread::scope(|scope| {
        let run = scope.spawn(|| result(&fleet, "slow", &[]));
        std::thread::sleep(Duration::from_millis(700));
        agent.term();
        std::thread::sleep(Duration::from_millis(300));
        let refused = tls::request(address, Some(&leaf), "POST", "/ping", b"{}").is_err();
        (run.join().expect("the run ends"), refused)
    });
    assert_eq!(stdout(&answer), "finished\n");
    assert!(refused, "a stopping agent took a new connection");
    let status = agent.daemon().wait(Duration::from_secs(12));
    assert_eq!(status.code(), Some(0));
    // The port is free again at once.
    let agent = Agent::start(&fleet.agents[0]);
    assert_eq!(agent.port(), fleet.ports[0]);
}

#[test]
fn an_idle_agent_stops_at_once_even_with_idle_connections() {
    let (fleet, mut agent) = scene(&[]);
    let leaf = fleet.dispatcher_leaf();
    let mut idle = Client::connect(agent.address(), Some(&leaf), TLS13).expect("let in");
    assert_eq!(
        idle.request("POST", "/ping", b"{}")
            .expect("an answer")
            .status,
        200
    );
    let _silent = std::net::TcpStream::connect(agent.address()).expect("it listens");
    let start = Instant::now();
    agent.term();
    assert_eq!(agent.daemon().wait(PATIENCE).code(), Some(0));
    assert!(
        start.elapsed() < Duration::from_secs(11),
        "{:?}",
        start.elapsed()
    );
}

#[test]
fn both_address_families_and_the_bind_key() {
    let (fleet, agent) = scene(&[]);
    let leaf = fleet.dispatcher_leaf();
    assert_eq!(
        tls::request(agent.address(), Some(&leaf), "POST", "/ping", b"{}")
            .expect("IPv4")
            .status,
        200
    );
    let v6 = std::net::SocketAddr::from((std::net::Ipv6Addr::LOCALHOST, agent.port()));
    let have_v6 = std::net::TcpListener::bind("[::1]:0").is_ok();
    if have_v6 {
        assert_eq!(
            tls::request(v6, Some(&leaf), "POST", "/ping", b"{}")
                .expect("IPv6")
                .status,
            200
        );
        fleet
            .dispatcher
            .ced(&["edit-agent", "web01.test", "--ip", "::1"])
            .ok();
        assert_eq!(result(&fleet, "true", &[])["exit"], 0);
        fleet.agents[0].wait_for_log(&["ACTION=run", "PEER=::1"]);
        fleet
            .dispatcher
            .ced(&["edit-agent", "web01.test", "--ip", "127.0.0.1"])
            .ok();
    }
    drop(agent);
    write_agent_toml(
        &fleet.agents[0],
        0,
        &format!("{UNLIMITED}bind = \"127.0.0.1\"\n"),
    );
    let agent = Agent::start(&fleet.agents[0]);
    assert_ne!(agent.port(), 0);
    assert_eq!(agent.bound().ip().to_string(), "127.0.0.1");
    assert_eq!(
        tls::request(agent.address(), Some(&leaf), "POST", "/ping", b"{}")
            .expect("IPv4")
            .status,
        200
    );
    if have_v6 {
        let v6 = std::net::SocketAddr::from((std::net::Ipv6Addr::LOCALHOST, agent.port()));
        assert!(
            std::net::TcpStream::connect(v6).is_err(),
            "bind was not respected"
        );
    }
    // The port of a running agent.
    write_agent_toml(
        &fleet.agents[0],
        agent.port(),
        &format!("{UNLIMITED}bind = \"127.0.0.1\"\n"),
    );
    fleet.agents[0]
        .cea(&["serve"])
        .expect_code(1)
        .err_has("Cannot start server")
        .err_has(&agent.port().to_string());
}

#[test]
fn starts_that_cannot_be_end_with_78_and_say_why() {
    let host = new_agent("web01.test", free_port());
    host.cea(&["paired"]).expect_code(1);
    host.cea(&["pairing-status"])
        .expect_code(1)
        .out_has("Not paired. Reason: missing file: ")
        .out_has("agent.crt");
    host.cea(&["serve"])
        .expect_code(78)
        .err_has("cannot start - this agent has not been paired yet")
        .err_has("agent.crt")
        .err_has("request-pairing");
    host.cea(&["self-check"])
        .expect_code(1)
        .out_has("NOT paired");
    host.cea(&["self-check", "--files"])
        .expect_code(78)
        .err_has("has not been paired yet");
    host.cea(&["self-ping"]).expect_code(1);

    let fleet = Paired::new(&["web02.test"]);
    let host = &fleet.agents[0];
    host.cea(&["paired"]).ok();
    host.cea(&["pairing-status"])
        .ok()
        .out_has("Paired. Certificate expires: ")
        .out_has(" GMT");
    host.cea(&["self-check"]).ok();
    host.cea(&["cert-staged"]).expect_code(1);
    host.cea(&["self-ping"])
        .expect_code(1)
        .err_has("not listening");
    for (path, missing) in [
        ("agent.crt", "certificate"),
        ("agent.key", "key"),
        ("ca.crt", "CA"),
    ] {
        let path = format!("etc/ctrl-exec-agent/{path}");
        std::fs::rename(host.path(&path), host.path("tmp/away")).expect("it is there");
        host.cea(&["paired"]).expect_code(1);
        host.cea(&["serve"])
            .expect_code(78)
            .err_has("has not been paired yet")
            .err_has(missing)
            .err_has(&path);
        std::fs::rename(host.path("tmp/away"), host.path(&path)).expect("it is there");
    }
    let agent = Agent::start(host);
    host.cea(&["self-ping"]).ok().out_has("OK");
    drop(agent);

    // A script that is not there keeps nobody from serving the others.
    let mut scripts = host.read("etc/ctrl-exec-agent/scripts.toml");
    let absent = "[scripts.absent]\npath = \"/bin/nothing-here\"\n";
    host.write(
        "etc/ctrl-exec-agent/scripts.toml",
        format!("{scripts}{absent}"),
        0o640,
    );
    host.cea(&["self-check"]).expect_code(1);
    let told = host.cea(&["self-check", "--files"]).ok();
    assert!(
        told.stdout.is_empty(),
        "a start script has no use for words"
    );
    // Scripts whose profile does not exist.
    scripts.push_str("[scripts.other]\npath = \"/bin/true\"\nprofile = \"webops\"\n");
    host.write("etc/ctrl-exec-agent/scripts.toml", scripts, 0o640);
    host.cea(&["serve"])
        .expect_code(78)
        .err_has("script(s) reference an undefined profile")
        .err_has("other -> webops");
    host.cea(&["self-check"]).expect_code(1);
    host.cea(&["self-check", "--files"])
        .expect_code(78)
        .err_has("other -> webops");
    // All mistakes of a file in one run, each with its place.
    host.write(
        "etc/ctrl-exec-agent/agent.toml",
        "port = 70000\nnonsense = 1\nmax_children = 0\n",
        0o640,
    );
    host.cea(&["serve"])
        .expect_code(78)
        .err_has("configuration error")
        .err_has("agent.toml:1:")
        .err_has("agent.toml:2:")
        .err_has("agent.toml:3:");
    std::fs::remove_file(host.path("etc/ctrl-exec-agent/agent.toml")).expect("it is there");
    host.cea(&["serve"]).expect_code(78).err_has("agent.");
}

#[test]
fn a_client_that_goes_away_does_not_stop_the_script() {
    let (fleet, agent) = scene(&[("marks", "sleep 1; touch \"$1\"")]);
    let marker = fleet.agents[0].path("tmp/marker");
    let leaf = fleet.dispatcher_leaf();
    let mut client = Client::connect(agent.address(), Some(&leaf), TLS13).expect("let in");
    let body = format!(
        "{{\"script\":\"marks\",\"args\":[\"{}\"],\"reqid\":\"gone\"}}",
        marker.display()
    );
    client
        .send(format!(
            "POST /run HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        ))
        .expect("sent");
    std::thread::sleep(Duration::from_millis(300));
    drop(client);
    fleet.agents[0].wait_for_log(&["ACTION=run", "EXIT=0", "REQID=gone"]);
    assert!(marker.exists());
}

#[test]
fn replies_are_framed_for_simple_parsers() {
    let (fleet, agent) = scene(&[]);
    let leaf = fleet.dispatcher_leaf();
    let mut client = Client::connect(agent.address(), Some(&leaf), TLS13).expect("let in");
    client
        .send("POST /ping HTTP/1.1\r\nTE: deflate,gzip;q=0.3\r\nConnection: TE, close\r\nHost: a:7443\r\nUser-Agent: libwww-perl/6.68\r\nContent-Length: 13\r\nContent-Type: application/json\r\n\r\n{\"reqid\":\"x\"}")
        .expect("sent");
    let bytes = client
        .read_to_end()
        .expect("the agent closes after the answer");
    let text = String::from_utf8(bytes).expect("text");
    let (head, body) = text.split_once("\r\n\r\n").expect("a head");
    assert!(head.starts_with("HTTP/1."), "{head}");
    assert_eq!(
        head.lines().next().and_then(|l| l.get(8..)),
        Some(" 200 OK")
    );
    let lower = head.to_ascii_lowercase();
    assert!(
        lower.contains(&format!("content-length: {}", body.len())),
        "{head}"
    );
    assert!(lower.contains("content-type: application/json"), "{head}");
    assert!(
        !lower.contains("transfer-encoding") && !lower.contains("content-encoding"),
        "{head}"
    );
    assert!(serde_json::from_str::<Value>(body).is_ok());
    assert!(
        !body.contains("\": ") && !body.contains('\n'),
        "not compact: {body}"
    );
}

#[test]
fn a_host_without_syslog_still_serves() {
    let fleet = Paired::new(&["web01.test"]);
    std::fs::remove_file(fleet.agents[0].path("dev/log")).expect("the socket is there");
    let mut daemon = fleet.agents[0].start("cea", &["serve"]);
    daemon.wait_for_text("ACTION=start");
    assert_eq!(result(&fleet, "true", &[])["exit"], 0);
    daemon.wait_for_text("ACTION=run");
}
