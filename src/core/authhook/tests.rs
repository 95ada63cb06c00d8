use super::*;
use serde_json::json;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Generous: no test waits for it but those that hang on purpose, which set their own.
const PATIENCE: Duration = Duration::from_secs(60);
const NOW: &str = "2026-01-02T03:04:05Z";

struct Hook {
    dir: tempfile::TempDir,
    config: HookConfig,
}

fn hook(body: &str) -> Hook {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("auth-hook");
    let text = format!("#!/bin/sh\nout='{}'\n{body}\n", dir.path().display());
    crate::core::durable::replace(&path, text.as_bytes(), 0o755).unwrap();
    let config = HookConfig {
        path,
        timeout: PATIENCE,
    };
    Hook { dir, config }
}

fn run_context() -> HookContext {
    let mut context = HookContext::new(HookAction::Run);
    context.script = "check-disk".to_owned();
    context.hosts = vec!["web01".to_owned(), "web02:7450".to_owned()];
    context.args = vec!["a b".to_owned(), "\"ü\"\n".to_owned()];
    context.username = "alice".to_owned();
    context.token = Secret::new("s3cret".to_owned());
    context.source_ip = "192.0.2.1".to_owned();
    context
}

fn clock() -> Clock {
    Clock::fixed(crate::core::clock::parse_iso(NOW).unwrap())
}

fn block_on<F: Future>(future: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(future)
}

fn ask(hook: &HookConfig, context: &HookContext) -> Decision {
    block_on(authorise(Some(hook), Caller::Agent, context, &clock()))
}

fn deny(reason: &str, code: i32) -> Decision {
    let reason = reason.to_owned();
    Decision::Denied { reason, code }
}

fn told(ruling: Ruling) -> Vec<(Priority, String)> {
    told_of(ruling, &run_context())
}

fn told_of(ruling: Ruling, context: &HookContext) -> Vec<(Priority, String)> {
    let lines = ruling.into_lines(context).into_iter();
    lines.map(|(p, line)| (p, line.to_string())).collect()
}

fn ruling(outcome: Outcome) -> Ruling {
    let hook = HookConfig {
        path: PathBuf::from("/h"),
        timeout: Duration::from_secs(10),
    };
    with_hook(&hook, &run_context(), outcome)
}

#[test]
fn the_exit_status_decides() {
    assert_eq!(
        ask(&hook("exit 0").config, &run_context()),
        Decision::Allowed
    );
    for (code, reason) in [
        (1, "denied"),
        (2, "bad credentials"),
        (3, "insufficient privilege"),
        (42, "hook exited 42"),
    ] {
        let hook = hook(&format!("exit {code}"));
        assert_eq!(ask(&hook.config, &run_context()), deny(reason, code));
    }
}

#[test]
fn death_by_a_signal_denies() {
    for signal in ["KILL", "SEGV", "TERM"] {
        let hook = hook(&format!("kill -{signal} $$"));
        assert_eq!(ask(&hook.config, &run_context()), deny("denied", 1));
    }
}

#[test]
fn the_hook_sees_exactly_the_context() {
    let hook = hook(
        "cat > \"$out/json\"; env > \"$out/env\"; printf %s \"$ENVEXEC_ARGS_JSON\" > \"$out/args\"; echo $# \"$0\" > \"$out/argv\"",
    );
    let mut context = run_context();
    context.submitter = Some(Submitter {
        username: "bob".to_owned(),
        source_ip: "192.0.2.9".to_owned(),
    });
    assert_eq!(ask(&hook.config, &context), Decision::Allowed);
    let read = |file: &str| std::fs::read_to_string(hook.dir.path().join(file)).unwrap();
    let text = read("json");
    assert!(!text.contains('\n'), "{text}");
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    let expected = json!({
        "action": "run", "script": "check-disk", "hosts": ["web01", "web02:7450"], "args": ["a b", "\"ü\"\n"], "username": "alice",
        "token": "s3cret", "source_ip": "192.0.2.1", "dispatcher": "", "dispatcher_serial": "", "reqid": "",
        "submitter": {"username": "bob", "source_ip": "192.0.2.9"}, "timestamp": NOW
    });
    assert_eq!(json, expected);
    let args: Vec<String> = serde_json::from_str(&read("args")).unwrap();
    assert_eq!(args, context.args);
    assert_eq!(read("argv"), format!("0 {}\n", hook.config.path.display()));
    let env = read("env");
    for line in [
        "ENVEXEC_ACTION=run",
        "ENVEXEC_SCRIPT=check-disk",
        "ENVEXEC_HOSTS=web01,web02:7450",
        "ENVEXEC_USERNAME=alice",
        "ENVEXEC_TOKEN=s3cret",
        "ENVEXEC_SOURCE_IP=192.0.2.1",
        "ENVEXEC_DISPATCHER=",
        "ENVEXEC_DISPATCHER_SERIAL=",
        "ENVEXEC_REQID=",
        "ENVEXEC_SUBMITTER=bob",
        "ENVEXEC_SUBMITTER_IP=192.0.2.9",
        "ENVEXEC_TIMESTAMP=2026-01-02T03:04:05Z",
    ] {
        assert!(env.lines().any(|l| l == line), "{line} in {env}");
    }
    // Nothing of ours: the test runner has plenty, the shell adds these three by itself.
    let foreign = |l: &&str| {
        l.contains('=')
            && !["ENVEXEC_", "PATH=", "PWD=", "SHLVL=", "_="]
                .iter()
                .any(|p| l.starts_with(p))
    };
    assert_eq!(env.lines().find(foreign), None);
}

#[test]
fn without_a_submitter_the_object_holds_null() {
    let input = Input::new(&HookContext::new(HookAction::Api), NOW).unwrap();
    let json: serde_json::Value = serde_json::from_slice(&input.stdin).unwrap();
    assert!(json["submitter"].is_null());
    assert_eq!(json.as_object().unwrap().len(), 12);
    assert_eq!(input.environment.len(), 14);
    assert_eq!(input.environment["ENVEXEC_ARGS_JSON"].as_str(), "[]");
}

#[test]
fn a_hook_that_does_not_read_is_not_waited_for() {
    let mut context = run_context();
    // Two values below the limit of one variable, together more than a pipe holds.
    context.script = "x".repeat(100_000);
    context.username = "y".repeat(100_000);
    assert_eq!(ask(&hook("exit 0").config, &context), Decision::Allowed);
    assert_eq!(
        ask(&hook("exec <&-; exit 2").config, &context),
        deny("bad credentials", 2)
    );
    let all = hook("test $(wc -c) -gt 200000");
    assert_eq!(ask(&all.config, &context), Decision::Allowed);
}

#[test]
fn a_child_that_keeps_the_pipe_cannot_hold_us() {
    let mut context = run_context();
    context.script = "x".repeat(100_000);
    let hook = hook("exec 3<&0; sleep 600 & echo $! > \"$out/pid\"; exit 3");
    let start = Instant::now();
    assert_eq!(
        ask(&hook.config, &context),
        deny("insufficient privilege", 3)
    );
    assert!(start.elapsed() < PATIENCE, "the child was waited for");
    kill_left_over(&hook);
}

fn kill_left_over(hook: &Hook) {
    let pid = std::fs::read_to_string(hook.dir.path().join("pid")).unwrap();
    let pid = rustix::process::Pid::from_raw(pid.trim().parse().unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

/// Whether a process is there and not merely waiting to be reaped.
fn alive(pid: &str) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(')').next().is_some_and(|s| s.starts_with(" Z")))
}

fn wait_until_dead(hook: &Hook) {
    let pid = std::fs::read_to_string(hook.dir.path().join("pid")).unwrap();
    let deadline = Instant::now() + PATIENCE;
    while alive(pid.trim()) {
        assert!(Instant::now() < deadline, "process {pid} is still alive");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn at_the_deadline_the_whole_group_dies() {
    let mut hook =
        hook("sleep 600 & echo $! > \"$out/pid.tmp\"; mv \"$out/pid.tmp\" \"$out/pid\"; wait");
    // On a busy machine the hook may not get anywhere in two seconds; then it gets more.
    for seconds in [2, 10, 40] {
        hook.config.timeout = Duration::from_secs(seconds);
        assert_eq!(ask(&hook.config, &run_context()), deny("denied", 1));
        if hook.dir.path().join("pid").exists() {
            break;
        }
    }
    wait_until_dead(&hook);
}

#[test]
fn a_dropped_question_kills_the_whole_group() {
    let hook =
        hook("sleep 600 & echo $! > \"$out/pid.tmp\"; mv \"$out/pid.tmp\" \"$out/pid\"; wait");
    block_on(async {
        let context = run_context();
        let clock = clock();
        let question = authorise(Some(&hook.config), Caller::Agent, &context, &clock);
        let started = async {
            while !hook.dir.path().join("pid").exists() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::select! {
            decision = question => panic!("the hook answered: {decision:?}"),
            () = started => {}
        }
    });
    wait_until_dead(&hook);
}

#[test]
fn a_hook_that_is_missing_or_not_executable_denies() {
    let hook = hook("exit 0");
    let path = &hook.config.path;
    let reason = format!("auth hook not found or not executable: {}", path.display());
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o644)).unwrap();
    assert_eq!(ask(&hook.config, &run_context()), deny(&reason, 1));
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o757)).unwrap();
    assert_eq!(ask(&hook.config, &run_context()), deny(&reason, 1));
    std::fs::remove_file(path).unwrap();
    assert_eq!(ask(&hook.config, &run_context()), deny(&reason, 1));
    std::fs::create_dir(path).unwrap();
    assert_eq!(ask(&hook.config, &run_context()), deny(&reason, 1));
}

#[test]
fn a_file_that_no_kernel_can_start_denies() {
    let hook = hook("");
    crate::core::durable::replace(&hook.config.path, b"no interpreter\n", 0o755).unwrap();
    assert_eq!(ask(&hook.config, &run_context()), deny("denied", 1));
}

#[test]
fn what_no_environment_can_hold_denies() {
    let hook = hook("exit 0");
    let mut context = run_context();
    context.username = "a\0b".to_owned();
    let reason = "a value contains a NUL character";
    assert_eq!(ask(&hook.config, &context), deny(reason, 1));
    // A NUL among the arguments is escaped in the JSON form but not in the old one.
    let mut context = run_context();
    context.args = vec!["\0".to_owned()];
    assert_eq!(ask(&hook.config, &context), deny(reason, 1));
    let reason = "context too large for the auth hook";
    let mut context = run_context();
    context.script = "x".repeat(MAX_VARIABLE);
    assert_eq!(ask(&hook.config, &context), deny(reason, 1));
    context.script = "x".repeat(MAX_VARIABLE - "ENVEXEC_SCRIPT=".len());
    assert_eq!(ask(&hook.config, &context), Decision::Allowed);
}

#[test]
fn without_a_hook_the_caller_decides() {
    let mut context = run_context();
    context.username = String::new();
    let line = |reason: &str, result: &str| {
        format!(
            "ACTION=auth AUTHACTION=run DISPATCHER= IP=192.0.2.1 REASON={reason} RESULT={result} USER=(none)"
        )
    };
    let cli = without_hook(Caller::Cli, &context);
    assert_eq!(cli.decision, Decision::Allowed);
    assert_eq!(
        told_of(cli, &context),
        [(Priority::Info, line("no-hook-cli", "pass"))]
    );
    let agent = without_hook(Caller::Agent, &context);
    assert_eq!(agent.decision, Decision::Allowed);
    assert_eq!(told_of(agent, &context), []);
    let default_allow = true;
    let allow = without_hook(Caller::Api { default_allow }, &context);
    assert_eq!(allow.decision, Decision::Allowed);
    assert_eq!(
        told_of(allow, &context),
        [(Priority::Info, line("no-hook-allow", "pass"))]
    );
    let default_allow = false;
    let no = without_hook(Caller::Api { default_allow }, &context);
    assert_eq!(no.decision, deny("no auth hook configured", 1));
    assert_eq!(
        block_on(authorise(
            None,
            Caller::Api { default_allow },
            &context,
            &clock()
        )),
        no.decision
    );
    assert_eq!(
        told_of(no, &context),
        [(Priority::Warning, line("no-hook-deny", "deny"))]
    );
}

#[test]
fn the_lines_are_those_of_the_reference() {
    let deny_line = |reason: &str| {
        format!("ACTION=auth AUTHACTION=run IP=192.0.2.1 REASON={reason} RESULT=deny USER=alice")
    };
    let warning = |line: String| vec![(Priority::Warning, line)];
    assert_eq!(
        told(ruling(Outcome::Exited(0))),
        [(
            Priority::Info,
            "ACTION=auth AUTHACTION=run IP=192.0.2.1 RESULT=pass USER=alice".to_owned()
        )]
    );
    for (code, reason) in [
        (1, "denied"),
        (2, "\"bad credentials\""),
        (3, "\"insufficient privilege\""),
        (9, "\"hook exited 9\""),
    ] {
        assert_eq!(
            told(ruling(Outcome::Exited(code))),
            warning(deny_line(reason))
        );
    }
    assert_eq!(
        told(ruling(Outcome::Signalled(11))),
        warning("ACTION=auth AUTHACTION=run IP=192.0.2.1 REASON=hook-signal RESULT=deny SIGNAL=11 USER=alice".to_owned())
    );
    assert_eq!(
        told(ruling(Outcome::TimedOut)),
        [
            (
                Priority::Warning,
                "ACTION=auth-hook-timeout TIMEOUT=10".to_owned()
            ),
            (Priority::Warning, deny_line("denied")),
        ]
    );
    assert_eq!(
        told(ruling(Outcome::Unspeakable(BadContext::TooLarge))),
        warning(deny_line("context-too-large"))
    );
    let path = PathBuf::from("/h");
    assert_eq!(
        told(ruling(Outcome::Unusable(OpenError::NotExecutable { path }))),
        [(
            Priority::Err,
            "ACTION=auth HOOK=/h REASON=hook-not-executable RESULT=error".to_owned()
        )]
    );
    let path = PathBuf::from("/h");
    let doubtful = told(ruling(Outcome::Unusable(OpenError::Writable {
        path,
        mode: 0o777,
    })));
    assert!(
        doubtful[0]
            .1
            .contains("REASON=hook-not-trusted RESULT=error"),
        "{doubtful:?}"
    );
    for outcome in [Outcome::Exited(2), Outcome::TimedOut, Outcome::Signalled(9)] {
        for (_, line) in told(ruling(outcome)) {
            assert!(!line.contains("s3cret"), "{line}");
        }
    }
}
