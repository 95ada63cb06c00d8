//! Authorisation of the API (spec/api.md 3, 10, 11, 16): what hooks may do, what they are told, what refusals cost, and what never leaks.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::{Duration, Instant};

use common::fleet::{allow, new_dispatcher};
use common::syslog::{ERR, LogLine, WARNING};
use common::web::{self, HOOK, HOOKED, OPEN};
use common::{Agent, ApiServer, Host, PATIENCE, Paired, Request, wait_until};
use serde_json::{Value, json};

const RUNS: &str = "var/lib/ctrl-exec/runs";

/// A dispatcher without agents, and its API with a hook that gets 2 s.
fn hooked(body: &str) -> (Host, ApiServer) {
    let host = new_dispatcher("ctl.test");
    web::hook(&host, body);
    let lines = HOOKED.replace("timeout = 5", "timeout = 2");
    let api = ApiServer::start(&host, &lines);
    (host, api)
}

fn refusal(reason: &str, code: i64) -> Value {
    json!({"ok": false, "error": reason, "code": code})
}

#[test]
fn only_a_hook_that_ends_with_0_allows() {
    let (host, api) = hooked("exit 0");
    let gate = |body: &str, reason: &str, code: i64| {
        web::hook(&host, body);
        let answer = api.get("/health").expect(403).json();
        assert_eq!(answer, refusal(reason, code), "{body}");
    };
    for (code, reason) in [
        (1, "denied"),
        (2, "bad credentials"),
        (3, "insufficient privilege"),
        (4, "hook exited 4"),
        (126, "hook exited 126"),
        (127, "hook exited 127"),
        (255, "hook exited 255"),
    ] {
        gate(&format!("exit {code}"), reason, code);
    }
    host.wait_for_log(&[
        "ACTION=auth",
        "AUTHACTION=api",
        "REASON=\"hook exited 255\"",
        "RESULT=deny",
    ]);
    for (signal, number) in [("SEGV", 11), ("KILL", 9), ("TERM", 15)] {
        gate(&format!("kill -{signal} $$"), "denied", 1);
        let line = host.wait_for_log(&["REASON=hook-signal", &format!("SIGNAL={number}")]);
        assert_eq!(line.priority, WARNING);
    }

    // Whatever it starts is ended with it.
    let mark = host.path("tmp/alive");
    let hang = format!(
        "(sleep 4; echo late > {0}) & sleep 4; echo late > {0}",
        mark.display()
    );
    let begun = Instant::now();
    gate(&hang, "denied", 1);
    assert!(
        begun.elapsed() >= Duration::from_secs(2),
        "its time was cut short"
    );
    let slow = host.wait_for_log(&["ACTION=auth-hook-timeout"]);
    assert_eq!(
        (slow.priority, slow.field("TIMEOUT").as_deref()),
        (WARNING, Some("2"))
    );

    for pass in [
        "exit 0",
        "exec 0<&-; sleep 0.1; exit 0",
        // A child that holds the pipe is nobody's business once the answer is there.
        "sleep 3 & exit 0",
        "head -c 10000000 /dev/zero; head -c 10000000 /dev/zero >&2; exit 0",
        "i=0; while [ $i -lt 60 ]; do sleep 0.2 & i=$((i+1)); done; wait; exit 0",
    ] {
        web::hook(&host, pass);
        api.get("/health").expect(200);
    }
    std::thread::sleep(Duration::from_secs(2));
    assert!(!mark.exists(), "the hook's child outlived its time");
    let children = format!("/proc/{0}/task/{0}/children", api.pid());
    assert_eq!(std::fs::read_to_string(children).expect("it runs"), "");
}

#[test]
fn only_a_proper_file_is_a_hook() {
    let (host, api) = hooked("exit 0");
    let path = host.path(HOOK);
    let clear = || {
        let _ = std::fs::remove_file(&path);
        let _ = std::fs::remove_dir(&path);
    };
    let refused = |what: &str, log: &str| {
        host.clear_log();
        let answer = api.get("/health").expect(403);
        assert!(!answer.text().contains(HOOK), "{what}: {}", answer.text());
        assert_eq!(answer.json()["code"], 1, "{what}");
        let line = host.wait_for_log(&["ACTION=auth", "RESULT=error", log]);
        assert_eq!(line.priority, ERR, "{what}");
        let hook = line.field("HOOK").unwrap_or_default();
        assert!(hook.ends_with(HOOK), "{what}: {}", line.text);
    };
    let gone = "REASON=hook-not-executable";
    clear();
    refused("deleted", gone);
    std::fs::create_dir(&path).expect("a directory");
    refused("a directory", gone);
    clear();
    symlink("/nowhere/at/all", &path).expect("a link");
    refused("a link to nothing", gone);
    clear();
    host.write(HOOK, "#!/bin/sh\nexit 0\n", 0o644);
    refused("not executable", gone);
    host.write(HOOK, "#!/bin/sh\nexit 0\n", 0o777);
    refused("writable for all", "REASON=hook-not-trusted");
    clear();
    host.write(HOOK, "exit 0\n", 0o755);
    refused("without #!", "REASON=hook-start-failed");
    clear();
    host.write(HOOK, "#!/no/such/interpreter\nexit 0\n", 0o755);
    refused("without its interpreter", "REASON=hook-start-failed");
    clear();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &path,
        rustix::fs::FileType::Fifo,
        0o755.into(),
        0,
    )
    .expect("a FIFO");
    refused("a FIFO", gone);
    clear();
    let real = host.write("etc/ctrl-exec/real-hook", "#!/bin/sh\nexit 0\n", 0o755);
    symlink(&real, &path).expect("a link");
    api.get("/health").expect(200);
    host.set_mode("etc/ctrl-exec/real-hook", 0o666);
    refused(
        "a link to a file that all may write",
        "REASON=hook-not-trusted",
    );
}

#[test]
fn large_and_odd_contexts_reach_the_hook_whole_or_are_refused() {
    let (host, api) = hooked("exit 0");
    let run = |args: &Value| {
        api.post(
            "/run",
            &json!({"hosts": ["nowhere.test"], "script": "s", "args": args}),
        )
    };
    // 404: gate 2 was passed. The hook does not read more than a pipe holds, at once or ever.
    let hundred = json!(["x".repeat(100_000)]);
    for body in [
        "exit 0",
        "sleep 0.2; exit 0",
        "exec 0<&-; sleep 0.2; exit 0",
    ] {
        web::hook(&host, body);
        run(&hundred).expect(404);
    }
    // A value of which a process could be told only half.
    for large in [
        json!(["x".repeat(200_000)]),
        json!(vec!["é".repeat(500); 1000]),
    ] {
        let answer = run(&large).expect(403).json();
        assert_eq!(answer["error"], "context too large for the auth hook");
    }
    host.wait_for_log(&[
        "ACTION=auth",
        "AUTHACTION=run",
        "REASON=context-too-large",
        "RESULT=deny",
    ]);
    let answer = run(&json!(["a\u{0}b"])).expect(403).json();
    assert_eq!(answer["error"], "a value contains a NUL character");
    api.get("/%00").expect(403);
    let nested = format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000));
    api.send(&Request::new("POST", "/run").body(format!("{{\"token\":{nested}}}")))
        .expect(400);
}

/// What a hook was told: its environment and standard input.
struct Told {
    environment: BTreeMap<String, String>,
    stdin: Value,
}

impl Told {
    fn read(dir: &Path, action: &str) -> Self {
        let bytes = |name: &str| {
            let path = dir.join(format!("{name}.{action}"));
            std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
        };
        let environment = String::from_utf8(bytes("env")).expect("UTF-8");
        let environment = environment
            .split_terminator('\0')
            .filter_map(|pair| pair.split_once('='))
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect();
        let stdin = bytes("stdin");
        assert_ne!(stdin.last(), Some(&b'\n'), "no newline at the end");
        Self {
            environment,
            stdin: serde_json::from_slice(&stdin).expect("JSON"),
        }
    }

    #[track_caller]
    fn has(&self, pairs: &[(&str, &str)]) {
        for (name, value) in pairs {
            let found = self.environment.get(&format!("ENVEXEC_{name}"));
            assert_eq!(found.map(String::as_str), Some(*value), "{name}");
        }
    }
}

/// Writes down what it is told, by action, and allows. Dies of any name that is not set.
fn recorder(dir: &Path) -> String {
    let names: Vec<String> = NAMES
        .iter()
        .map(|name| format!("$ENVEXEC_{name}"))
        .collect();
    format!(
        "set -eu\n: \"{}\"\n[ $# -eq 0 ]\ncd {}\nenv -0 > env.$ENVEXEC_ACTION\ncat > stdin.$ENVEXEC_ACTION\nexit 0",
        names.join(""),
        dir.display()
    )
}

const NAMES: [&str; 21] = [
    "ACTION",
    "SCRIPT",
    "HOSTS",
    "ARGS",
    "ARGS_JSON",
    "USERNAME",
    "TOKEN",
    "SOURCE_IP",
    "DISPATCHER",
    "DISPATCHER_SERIAL",
    "REQID",
    "SUBMITTER",
    "SUBMITTER_IP",
    "TIMESTAMP",
    "METHOD",
    "PATH",
    "ROUTE_ACTION",
    "BEARER",
    "CLIENT_NAME",
    "CLIENT_FINGERPRINT",
    "PEER_USER",
];
const MEMBERS: [&str; 19] = [
    "action",
    "script",
    "hosts",
    "args",
    "username",
    "token",
    "source_ip",
    "dispatcher",
    "dispatcher_serial",
    "reqid",
    "submitter",
    "timestamp",
    "method",
    "path",
    "route_action",
    "bearer",
    "client_name",
    "client_fingerprint",
    "peer_user",
];

/// A record as the API leaves it.
fn record(host: &Host, reqid: &str) {
    let record = json!({
        "reqid": reqid, "script": "s", "mode": "sync", "hosts": ["web1.test"], "results": [], "completed": 1_700_000_000,
        "complete": true, "submitter": {"username": "bob", "source_ip": "192.0.2.9"},
    });
    host.write(&format!("{RUNS}/{reqid}.json"), record.to_string(), 0o640);
}

#[test]
fn the_hook_is_told_everything_and_nothing_else() {
    let mut host = new_dispatcher("ctl.test");
    host.set_env("LD_PRELOAD", "/nowhere/evil.so");
    host.set_env("BASH_ENV", "/nowhere/evil.sh");
    host.set_env("ENVEXEC_TOKEN", "of the server");
    let dir = host.path("tmp/told");
    std::fs::create_dir(&dir).expect("a directory");
    web::hook(&host, &recorder(&dir));
    let api = ApiServer::start(&host, HOOKED);
    record(&host, "00000000000000aa");
    let odd = json!([
        "a b",
        "\"q\" 'q' \\",
        "line\nline",
        "ü€😀",
        "$(id) `id`",
        ""
    ]);
    let body = json!({
        "hosts": ["web1.test", "web2.test:7450"], "script": "check-disk", "args": odd, "username": "älice \"x\"", "token": "tökén",
    });
    let bearer = |request: Request| request.bearer("b3arer");
    api.send(&bearer(Request::new("POST", "/run")).json(&body))
        .expect(404);
    let api_told = Told::read(&dir, "api");
    let ping = json!({"hosts": ["web1.test"], "username": "carol"});
    api.post("/ping", &ping).expect(404);
    api.send(&bearer(Request::new("GET", "/status/00000000000000aa")))
        .expect(200);
    api.send(&bearer(Request::new("DELETE", "/runs/00000000000000aa")))
        .expect(404);
    api.send(&bearer(Request::new("GET", "/metrics?x=1")))
        .expect(200);

    let told: BTreeMap<&str, Told> = ["run", "ping", "status", "cancel", "metrics"]
        .into_iter()
        .map(|action| (action, Told::read(&dir, action)))
        .chain([("api", api_told)])
        .collect();
    for (action, told) in &told {
        let names: BTreeSet<&str> = told
            .environment
            .keys()
            .filter_map(|name| name.strip_prefix("ENVEXEC_"))
            .collect();
        assert_eq!(names, BTreeSet::from(NAMES), "{action}");
        // A shell adds the last ones by itself.
        let other = ["PATH", "PWD", "OLDPWD", "SHLVL", "_"];
        for name in told.environment.keys() {
            assert!(
                name.starts_with("ENVEXEC_") || other.contains(&name.as_str()),
                "{action}: {name}"
            );
        }
        let members: BTreeSet<&str> = told
            .stdin
            .as_object()
            .expect("an object")
            .keys()
            .map(String::as_str)
            .collect();
        assert_eq!(members, BTreeSet::from(MEMBERS), "{action}");
        told.has(&[
            ("ACTION", action),
            ("SOURCE_IP", "127.0.0.1"),
            ("DISPATCHER", ""),
            ("DISPATCHER_SERIAL", ""),
            ("CLIENT_NAME", ""),
            ("CLIENT_FINGERPRINT", ""),
            ("PEER_USER", ""),
        ]);
        let time = &told.environment["ENVEXEC_TIMESTAMP"];
        assert_eq!(
            (time.len(), &time[10..11], &time[19..]),
            (20, "T", "Z"),
            "{time}"
        );
        assert_eq!(told.stdin["timestamp"], **time);
        for (name, member) in [
            ("METHOD", "method"),
            ("PATH", "path"),
            ("ROUTE_ACTION", "route_action"),
            ("BEARER", "bearer"),
            ("TOKEN", "token"),
        ] {
            assert_eq!(
                told.stdin[member],
                *told.environment[&format!("ENVEXEC_{name}")],
                "{action}"
            );
        }
    }
    // Gate 1: the original's empty fields, and ours beside them.
    told["api"].has(&[
        ("SCRIPT", ""),
        ("HOSTS", ""),
        ("ARGS", ""),
        ("ARGS_JSON", "[]"),
        ("USERNAME", ""),
        ("TOKEN", "tökén"),
        ("REQID", ""),
        ("SUBMITTER", ""),
        ("SUBMITTER_IP", ""),
        ("METHOD", "POST"),
        ("PATH", "/run"),
        ("ROUTE_ACTION", "run"),
        ("BEARER", "b3arer"),
    ]);
    assert_eq!(told["api"].stdin["hosts"], json!([]));
    assert_eq!(told["api"].stdin["submitter"], Value::Null);
    told["run"].has(&[
        ("SCRIPT", "check-disk"),
        ("HOSTS", "web1.test,web2.test:7450"),
        ("USERNAME", "älice \"x\""),
        ("TOKEN", "tökén"),
        ("ARGS", "a b \"q\" 'q' \\ line\nline ü€😀 $(id) `id` "),
        ("BEARER", "b3arer"),
        ("REQID", ""),
        ("METHOD", "POST"),
    ]);
    let args = &told["run"].environment["ENVEXEC_ARGS_JSON"];
    assert_eq!(serde_json::from_str::<Value>(args).expect("JSON"), odd);
    assert_eq!(told["run"].stdin["args"], odd);
    assert_eq!(told["run"].stdin["hosts"], body["hosts"]);
    told["ping"].has(&[
        ("SCRIPT", ""),
        ("HOSTS", "web1.test"),
        ("USERNAME", "carol"),
        ("TOKEN", ""),
        ("ARGS_JSON", "[]"),
        ("BEARER", ""),
        ("ROUTE_ACTION", "ping"),
    ]);
    for (action, method, path) in [
        ("status", "GET", "/status/00000000000000aa"),
        ("cancel", "DELETE", "/runs/00000000000000aa"),
    ] {
        told[action].has(&[
            ("SCRIPT", ""),
            ("HOSTS", ""),
            ("USERNAME", ""),
            ("TOKEN", "b3arer"),
            ("REQID", "00000000000000aa"),
            ("SUBMITTER", "bob"),
            ("SUBMITTER_IP", "192.0.2.9"),
            ("METHOD", method),
            ("PATH", path),
            ("ROUTE_ACTION", action),
        ]);
        assert_eq!(
            told[action].stdin["submitter"],
            json!({"username": "bob", "source_ip": "192.0.2.9"})
        );
    }
    told["metrics"].has(&[
        ("TOKEN", "b3arer"),
        ("METHOD", "GET"),
        ("PATH", "/metrics"),
        ("ROUTE_ACTION", "metrics"),
    ]);

    // Unknown paths and ids have their gate too.
    api.get("/no/%2e/where").expect(404);
    Told::read(&dir, "api").has(&[("PATH", "/no/./where"), ("ROUTE_ACTION", "")]);
    api.get("/status/00000000000000bb").expect(404);
    let absent = Told::read(&dir, "status");
    absent.has(&[("REQID", "00000000000000bb"), ("SUBMITTER", "")]);
    assert_eq!(absent.stdin["submitter"], Value::Null);
    // The token of gate 1 is that of a body that begins with an object.
    api.send(&Request::new("GET", "/health").json(&json!({"token": "of the body"})))
        .expect(200);
    Told::read(&dir, "api").has(&[("TOKEN", "of the body"), ("BEARER", "")]);
    for body in [
        " {\"token\":\"t\"}",
        "[{\"token\":\"t\"}]",
        "{\"token\":\"t\"",
        "{\"token\":7}",
    ] {
        api.send(&bearer(Request::new("POST", "/nowhere")).body(body))
            .expect(404);
        Told::read(&dir, "api").has(&[("TOKEN", ""), ("BEARER", "b3arer")]);
    }
}

#[test]
fn without_a_hook_the_default_decides() {
    let host = new_dispatcher("ctl.test");
    let open = ApiServer::start_beside(&host, "open", OPEN);
    open.get("/health").expect(200);
    open.get("/metrics").expect(200);
    let pass = host.wait_for_log(&[
        "ACTION=auth",
        "AUTHACTION=metrics",
        "REASON=no-hook-allow",
        "RESULT=pass",
    ]);
    assert_eq!(pass.field("USER").as_deref(), Some("(none)"));
    host.clear_log();
    // Deny is also what is meant by saying nothing.
    for (name, default) in [("said", "api_auth_default = \"Deny\"\n"), ("unsaid", "")] {
        let lines = format!("api_port = 0\napi_refusal_limit = \"0/60/60\"\n{default}");
        let closed = ApiServer::start_beside(&host, name, &lines);
        for path in [
            "/health",
            "/",
            "/openapi.json",
            "/openapi-live.json",
            "/metrics",
            "/nowhere",
            "/status/00ff",
        ] {
            let answer = closed.get(path).expect(403).json();
            assert_eq!(answer, refusal("no auth hook configured", 1), "{path}");
        }
        let deny = host.wait_for_log(&["ACTION=auth", "REASON=no-hook-deny", "RESULT=deny"]);
        assert_eq!(deny.priority, WARNING);
        host.clear_log();
    }
    let mut toml = host.read("etc/ctrl-exec/ctrl-exec.toml");
    toml.insert_str(0, "api_port = 0\napi_auth_default = \"maybe\"\n");
    host.write("etc/ctrl-exec/ctrl-exec.toml", toml, 0o640);
    host.run("ced-api", &[])
        .expect_code(78)
        .err_has("allow or deny");
}

#[test]
fn nothing_reaches_an_agent_before_the_hook_has_allowed_it() {
    let fleet = Paired::new(&["web1.test"]);
    let host = &fleet.dispatcher;
    allow(&fleet.agents[0], "nap", "sleep 30");
    let _agent = Agent::start(&fleet.agents[0]);
    web::hook(host, "exit 0");
    let api = ApiServer::start(host, HOOKED);
    let nap = json!({"hosts": ["web1.test"], "script": "nap", "async": true});
    let reqid = api.post("/run", &nap).expect(202).json()["reqid"]
        .as_str()
        .expect("an id")
        .to_owned();
    let before = host.read(&format!("{RUNS}/{reqid}.json"));

    web::hook(host, "[ $ENVEXEC_ACTION = api ]");
    fleet.agents[0].clear_log();
    host.clear_log();
    let hosts = json!({"hosts": ["web1.test"], "script": "true"});
    for (method, path) in [
        ("POST", "/ping"),
        ("POST", "/run"),
        ("POST", "/discovery"),
        ("GET", "/discovery"),
        ("GET", "/metrics"),
    ] {
        let request = Request::new(method, path);
        let request = if method == "POST" {
            request.json(&hosts)
        } else {
            request
        };
        assert_eq!(
            api.send(&request).expect(403).json(),
            refusal("denied", 1),
            "{path}"
        );
    }
    let status = format!("/status/{reqid}");
    api.get(&status).expect(404);
    api.send(&Request::new("GET", &status).header("Accept", "text/event-stream"))
        .expect(404);
    api.send(&Request::new("DELETE", &format!("/runs/{reqid}")))
        .expect(404);
    api.get("/runs").expect(403);
    // What a hook that lets `api` pass leaves open.
    api.get("/health").expect(200);
    api.get("/").expect(200);
    api.get("/nowhere").expect(404);

    // A run of the command line is the last thing that the agent hears of; before it there was nothing.
    fleet
        .ced(&["run", "web1.test", "true"])
        .expect_code(1)
        .err_has("denied");
    web::hook(host, "exit 0");
    fleet.ced(&["run", "web1.test", "true"]).ok();
    fleet.agents[0].wait_for_log(&["ACTION=run", "SCRIPT=true"]);
    let heard = fleet.agents[0].log_lines();
    assert_eq!(heard.len(), 1, "{heard:?}");
    assert_eq!(
        host.read(&format!("{RUNS}/{reqid}.json")),
        before,
        "a refused look changes nothing"
    );
}

#[test]
fn refusals_have_a_price_and_good_credentials_do_not_pay_it() {
    let host = new_dispatcher("ctl.test");
    let calls = host.path("tmp/calls");
    let hook = format!(
        "echo . >> {}\n[ $ENVEXEC_ACTION = api ] && exit 0\ncase $ENVEXEC_TOKEN in good) exit 0 ;; few) exit 3 ;; esac\nexit 2",
        calls.display()
    );
    web::hook(&host, &hook);
    // The limit is the default: 20 refusals in 60 s.
    let lines = HOOKED.replace("api_refusal_limit = \"0/60/60\"\n", "");
    let api = ApiServer::start(&host, &lines);
    let asked = || std::fs::read_to_string(&calls).unwrap_or_default().len();
    let ping = |token: &str| api.post("/ping", &json!({"hosts": ["a.test"], "token": token}));
    // Whoever may run scripts is known for everything.
    let run = json!({"hosts": ["a.test"], "script": "s", "token": "good"});
    api.post("/run", &run).expect(404);
    // Whoever may not do something shows no wrong credential.
    for _ in 0..25 {
        assert_eq!(ping("few").expect(403).json()["code"], 3);
    }
    for n in 0..20 {
        assert_eq!(ping(&format!("guess {n}")).expect(403).json()["code"], 2);
    }
    let blocked = host.wait_for_log(&["ACTION=api-throttle"]);
    assert_eq!(
        (blocked.priority, blocked.field("PEER").as_deref()),
        (WARNING, Some("127.0.0.1"))
    );
    let before = asked();
    for _ in 0..30 {
        let answer = ping("another guess").expect(429);
        let wait: u64 = answer
            .header("retry-after")
            .and_then(|n| n.parse().ok())
            .expect("a number");
        assert!((1..=60).contains(&wait), "{wait}");
        assert_eq!(answer.json()["error"], "too many requests");
        assert!(
            answer.json()["detail"]
                .as_str()
                .expect("a text")
                .contains(&format!("{wait} s"))
        );
    }
    api.get("/health").expect(429);
    api.get_as("another guess", "/status/00ff").expect(429);
    assert_eq!(asked(), before, "nobody is asked about them");
    ping("good").expect(404);
    // The same credential in the header.
    api.get_as("good", "/status/00ff").expect(404);
    ping("another guess").expect(429);
    // A known credential is no cover for a guess beside it.
    let both = Request::new("POST", "/ping").bearer("a guess in the header");
    api.send(&both.json(&json!({"hosts": ["a.test"], "token": "good"})))
        .expect(429);
    assert_eq!(host.log_of("api-throttle").len(), 1);
}

#[test]
fn what_everybody_may_do_is_no_ticket() {
    let host = new_dispatcher("ctl.test");
    // As the documents of the original advise: status is open, everything else has a token.
    web::hook(
        &host,
        "case $ENVEXEC_ACTION in api|status) exit 0 ;; esac\n[ \"$ENVEXEC_TOKEN$ENVEXEC_BEARER\" = good ] || exit 2",
    );
    let lines = HOOKED.replace("0/60/60", "5/60/60");
    let api = ApiServer::start(&host, &lines);
    let ping = |token: &str| {
        let request = Request::new("POST", "/ping").bearer(token);
        api.send(&request.json(&json!({"hosts": ["a.test"]})))
    };
    let guesses: Vec<String> = (0..20)
        .map(|n| format!("guess {n}").replace(' ', "-"))
        .collect();
    for guess in &guesses {
        api.get_as(guess, "/status/00ff").expect(404);
    }
    let run = json!({"hosts": ["a.test"], "script": "s", "token": "good"});
    api.post("/run", &run).expect(404);
    let answers: Vec<u16> = guesses.iter().map(|guess| ping(guess).status).collect();
    assert_eq!(answers[..5], [403; 5]);
    assert_eq!(answers[5..], [429; 15]);
    // Who reads results goes on reading, and who runs scripts goes on with everything.
    api.get_as(&guesses[0], "/status/00ff").expect(404);
    ping("good").expect(404);
    api.get_as("good", "/status/00ff").expect(404);
}

#[test]
fn two_thousand_refusals_are_told_in_a_few_lines() {
    let host = new_dispatcher("ctl.test");
    let api = ApiServer::start(&host, "api_port = 0\napi_refusal_limit = \"0/60/60\"\n");
    let mut connection = api.connect();
    let request = Request::new("GET", "/nowhere").bytes();
    let begun = Instant::now();
    for _ in 0..2000 {
        connection.send(&request);
        assert_eq!(connection.answer("GET").status, 403);
    }
    // 200 at once and 5 a second, two lines each (`api-request`, `auth`), and a word about those that are missing.
    let seconds = usize::try_from(begun.elapsed().as_secs()).expect("few") + 1;
    host.wait_for_log(&["ACTION=auth"]);
    std::thread::sleep(Duration::from_millis(1200));
    api.get("/nowhere").expect(403);
    let missing = host.wait_for_log(&["ACTION=api-log-suppressed"]);
    assert!(
        missing
            .field("COUNT")
            .and_then(|n| n.parse::<u32>().ok())
            .is_some_and(|n| n > 0)
    );
    let lines = host.log_lines().len();
    let most = 2 * (200 + 5 * (seconds + 2)) + 5 * (seconds + 2) + 10;
    assert!(
        (300..=most).contains(&lines),
        "{lines} lines, at most {most}"
    );
}

/// Waits until `total` requests have each left a line or are counted among those that left none; the lines.
fn told_or_counted(host: &Host, of: &str, total: usize) -> Vec<LogLine> {
    wait_until("each request is told or counted", PATIENCE, || {
        let counted = host.log_of("api-log-suppressed").into_iter();
        let counted: usize = counted
            .filter(|line| line.field("OF").as_deref() == Some(of))
            .filter_map(|line| line.field("COUNT")?.parse::<usize>().ok())
            .sum();
        let told = host.log_of("api-request");
        (told.len() + counted == total).then_some(told)
    })
}

#[test]
fn what_everybody_may_ask_for_is_told_in_a_few_lines_and_what_gate_2_allows_always() {
    let host = new_dispatcher("ctl.test");
    let api = ApiServer::start(&host, OPEN);
    let mut connection = api.connect();
    let begun = Instant::now();
    for (method, path, code) in [
        ("GET", "/health", 200),
        ("GET", "/nowhere", 404),
        ("PUT", "/run", 405),
        ("POST", "/run", 400),
    ] {
        let request = Request::new(method, path).header("Authorization", "Bearer made-up");
        for _ in 0..500 {
            connection.send(&request.bytes());
            assert_eq!(connection.answer(method).status, code, "{method} {path}");
        }
    }
    let ping = json!({"hosts": ["a.test"]});
    for _ in 0..3 {
        api.post("/ping", &ping).expect(404);
    }
    let seconds = usize::try_from(begun.elapsed().as_secs()).expect("few") + 1;
    std::thread::sleep(Duration::from_millis(1200));
    api.get("/health").expect(200);
    let told = told_or_counted(&host, "unasked", 2004);
    let few = 200 + 5 * (seconds + 2) + 3;
    assert!((200..=few).contains(&told.len()), "{} lines", told.len());
    // One was let in where there was no room for strangers any more.
    let of = |lines: Vec<LogLine>, text: &str| {
        let lines = lines.into_iter();
        lines.filter(|line| line.text.contains(text)).count()
    };
    assert_eq!(of(told, "PATH=/ping"), 3);
    let rulings = host.log_of("auth");
    assert!(rulings.len() <= few + 3, "{} lines", rulings.len());
    assert_eq!(of(rulings, "AUTHACTION=ping"), 3);
}

#[test]
fn five_hundred_refusals_of_gate_2_are_each_told_whole_or_counted() {
    let host = new_dispatcher("ctl.test");
    web::hook(&host, "test \"$ENVEXEC_ACTION\" != run || exit 3");
    let api = ApiServer::start(&host, HOOKED);
    let mut connection = api.connect();
    let body = json!({"hosts": ["a.test"], "script": "s"}).to_string();
    let request = Request::new("POST", "/run").body(body.as_bytes());
    let begun = Instant::now();
    for _ in 0..500 {
        connection.send(&request.bytes());
        assert_eq!(connection.answer("POST").status, 403);
    }
    let seconds = usize::try_from(begun.elapsed().as_secs()).expect("few") + 1;
    std::thread::sleep(Duration::from_millis(1200));
    api.send(&request).expect(403);
    let told = told_or_counted(&host, "refused", 501).len();
    let few = 200 + 5 * (seconds + 2);
    assert!((200..=few).contains(&told), "{told} lines");
    // With each the rulings of both gates.
    let rulings = wait_until("all rulings", PATIENCE, || {
        let rulings = host.log_of("auth");
        (rulings.len() >= 2 * told).then_some(rulings)
    });
    let denied = rulings
        .iter()
        .filter(|line| line.field("RESULT").as_deref() == Some("deny"));
    assert_eq!((rulings.len(), denied.count()), (2 * told, told));
}

#[test]
fn web_pages_are_turned_away_before_anybody_is_asked_and_the_log_says_so() {
    let host = new_dispatcher("ctl.test");
    let calls = host.path("tmp/calls");
    web::hook(&host, &format!("echo . >> {}", calls.display()));
    let api = ApiServer::start(&host, HOOKED);
    let mut connection = api.connect();
    let request = Request::new("GET", "/from-a-page").header("Origin", "null");
    for _ in 0..400 {
        connection.send(&request.bytes());
        assert_eq!(connection.answer("GET").status, 403);
    }
    let line = host.wait_for_log(&["ACTION=api-request", "PATH=/from-a-page"]);
    assert_eq!(line.field("PEER").as_deref(), Some("127.0.0.1"));
    assert!(!calls.exists(), "the hook was asked");
    // What a person types into a browser comes from no page.
    let typed = Request::new("GET", "/health").header("Sec-Fetch-Site", "none");
    api.send(&typed).expect(200);
    let lines = host.log_of("api-request").len();
    assert!((100..=350).contains(&lines), "{lines} lines");
}

#[test]
fn tokens_are_nowhere_but_where_they_must_be() {
    const BODY: &str = "S3CRET-OF-THE-BODY";
    const BEARER: &str = "S3CRET-OF-THE-HEADER";
    let fleet = Paired::new(&["web1.test"]);
    let host = &fleet.dispatcher;
    // Everything that it can see of others' command lines, without the text itself in its own.
    allow(
        &fleet.agents[0],
        "look",
        "for f in /proc/[0-9]*/cmdline; do tr '\\0' ' ' < $f; echo; done 2>/dev/null | grep -c S3CRE[T]-OF",
    );
    let agent = Agent::start(&fleet.agents[0]);
    let hook = "case \"$ENVEXEC_USERNAME\" in no) exit 2 ;; slow) sleep 9 ;; dead) kill -ABRT $$ ;; esac; exit 0";
    web::hook(host, hook);
    let lines = HOOKED.replace("timeout = 5", "timeout = 1");
    let mut api = ApiServer::start(host, &lines);
    let mut answers = String::new();
    let mut ask = |api: &ApiServer, method: &str, path: &str, body: Value| {
        let request = Request::new(method, path).bearer(BEARER);
        let request = if body.is_null() {
            request
        } else {
            request.json(&body)
        };
        let answer = api.send(&request);
        answers.push_str(&format!("{:?}{}\n", answer.headers, answer.text()));
        answer
    };
    let mut reqids = Vec::new();
    for username in ["alice", "no", "slow", "dead"] {
        for (path, more) in [
            ("/ping", json!({})),
            ("/run", json!({"script": "look"})),
            ("/run", json!({"script": "look", "async": true})),
            ("/run", json!({"script": "nothing"})),
            ("/run", json!({"script": "bad name"})),
            ("/discovery", json!({})),
        ] {
            let mut body = json!({"hosts": ["web1.test"], "username": username, "token": BODY});
            if username != "alice" && path != "/ping" {
                continue;
            }
            for (name, value) in more.as_object().expect("an object") {
                body[name] = value.clone();
            }
            let answer = ask(&api, "POST", path, body);
            if let Some(reqid) = answer.json()["reqid"].as_str() {
                reqids.push(reqid.to_owned());
            }
        }
    }
    assert_eq!(reqids.len(), 3);
    ask(
        &api,
        "POST",
        "/run",
        json!({"hosts": ["web1.test"], "script": "look", "token": {"x": BODY}}),
    );
    ask(
        &api,
        "POST",
        "/run",
        json!({"hosts": ["nowhere.test"], "script": "look", "token": BODY}),
    );
    for reqid in &reqids {
        ask(&api, "GET", &format!("/status/{reqid}"), Value::Null);
        ask(&api, "DELETE", &format!("/runs/{reqid}"), Value::Null);
    }
    for path in ["/runs", "/metrics", "/nowhere"] {
        ask(&api, "GET", path, Value::Null);
    }
    let look = json!({"hosts": ["web1.test"], "script": "look", "token": BODY});
    let seen = || api.post("/run", &look).expect(200).json()["results"][0]["stdout"].clone();
    assert_eq!(seen(), "0\n", "on a command line");
    // The script does see such a word when it is there.
    let mut control = std::process::Command::new("sh")
        .args(["-c", "sleep 30; :", "S3CRET-OF-NOBODY"])
        .spawn()
        .expect("a shell");
    let counted = seen();
    control.kill().expect("it runs");
    control.wait().expect("it has ended");
    assert_eq!(counted, "1\n");

    let mut places = vec![
        ("answers", answers),
        ("stdout", api.daemon().out()),
        ("stderr", api.daemon().err()),
    ];
    for (name, side) in [
        ("the dispatcher's log", host),
        ("the agent's log", &fleet.agents[0]),
    ] {
        let text = side
            .log_lines()
            .iter()
            .map(|line| format!("{}\n", line.text))
            .collect();
        places.push((name, text));
    }
    for pid in [api.pid(), agent.pid()] {
        let words = std::fs::read(format!("/proc/{pid}/cmdline")).expect("it runs");
        places.push(("command line", String::from_utf8_lossy(&words).into_owned()));
    }
    for (name, text) in &places {
        assert!(!text.contains("S3CRET"), "{name}: {text}");
    }
    let mut files = 0;
    for side in [host, &fleet.agents[0]] {
        files += search(&side.path("var"), b"S3CRET") + search(&side.path("etc"), b"S3CRET");
    }
    assert!(files > 10, "{files} files were looked at");
}

/// Looks through all files; answers how many there were.
fn search(dir: &Path, word: &[u8]) -> usize {
    let mut files = 0;
    for entry in std::fs::read_dir(dir).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            files += search(&path, word);
        } else if let Ok(bytes) = std::fs::read(&path) {
            files += 1;
            let found = bytes.windows(word.len()).any(|part| part == word);
            assert!(!found, "{}", path.display());
        }
    }
    files
}

#[test]
fn no_value_can_forge_a_line() {
    let (host, api) = hooked("[ $ENVEXEC_ACTION = api ] && exit 0; exit 1");
    let forged = "x\" RESULT=pass IP=\"10.0.0.1\nACTION=auth RESULT=pass \u{202e}\u{1b}[2J";
    let body = json!({"hosts": ["web1.test"], "script": "s", "username": forged});
    api.post("/run", &body).expect(403);
    let line = host.wait_for_log(&["ACTION=auth", "AUTHACTION=run"]);
    assert_eq!(line.field("RESULT").as_deref(), Some("deny"));
    assert_eq!(line.field("IP").as_deref(), Some("127.0.0.1"));
    assert!(
        line.field("USER")
            .is_some_and(|user| user.starts_with("x\" RESULT=pass IP=\"10.0.0.1")),
        "{}",
        line.text
    );

    host.clear_log();
    for target in [
        "/%22%20RESULT=pass%0AACTION=auth",
        "/\"RESULT=pass",
        "/%1b%5b2J",
        &format!("/{}", "x".repeat(4000)),
    ] {
        let answer = api.get(target);
        assert!(
            [400, 404].contains(&answer.status),
            "{target}: {}",
            answer.status
        );
    }
    host.wait_for_log(&["ACTION=api-request", "PATH=\"/xxx"]);
    for line in host.log_lines() {
        assert_ne!(line.ident, "MALFORMED", "{}", line.text);
        let action = line.action();
        assert!(
            ["api-request", "auth"].contains(&action.as_str()),
            "{}",
            line.text
        );
        assert!(line.text.len() < 1000, "{}", line.text);
        if action == "api-request" {
            assert_eq!(line.field("RESULT"), None, "{}", line.text);
            assert_eq!(line.field("PEER").as_deref(), Some("127.0.0.1"));
        }
    }
}
