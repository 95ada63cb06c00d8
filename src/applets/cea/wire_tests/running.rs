//! `/run`: what is run, what is refused, and by whom.

use super::*;

#[test]
fn a_trusted_dispatcher_runs_a_script() {
    let fleet = Fleet::new();
    fleet.script("echo-args", "printf '[%s]' \"$@\"; cat >&2");
    fleet.play(|stage| async move {
        let answer = stage
            .run(json!({"script": "hello", "args": [], "reqid": "r1"}))
            .await;
        assert_eq!(
            answer,
            json!({"script": "hello", "exit": 3, "stdout": "out\n", "stderr": "err\n", "reqid": "r1"})
        );
        let answer = stage
            .run(json!({"script": "echo-args", "args": ["a b", "$(id)", 7, null, "grün"], "reqid": "r2", "username": "eve", "token": "t0k"}))
            .await;
        assert_eq!(answer["stdout"], "[a b][$(id)][7][][grün]");
        let context: Value = serde_json::from_str(answer["stderr"].as_str().unwrap()).unwrap();
        let keys: Vec<_> = context.as_object().unwrap().keys().cloned().collect();
        assert_eq!(
            keys,
            ["args", "dispatcher", "peer_ip", "reqid", "script", "timestamp", "token", "username"]
        );
        assert_eq!(context["dispatcher"], "main");
        assert_eq!(context["peer_ip"], "127.0.0.1");
        assert_eq!(context["token"], "t0k");
        assert_eq!(context["timestamp"].as_str().unwrap().len(), 20);
    });
}

#[test]
fn a_script_that_everybody_may_change_does_not_run() {
    use std::os::unix::fs::PermissionsExt as _;
    let fleet = Fleet::new();
    fleet.script("open", "echo ran");
    let path = fleet.scripts().join("open");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o777)).unwrap();
    fleet.play(|stage| async move {
        let answer = stage.run(json!({"script": "open", "reqid": "r"})).await;
        assert_eq!(answer["error"], "script not permitted");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        let answer = stage.run(json!({"script": "open", "reqid": "r"})).await;
        assert_eq!(answer["stdout"], "ran\n");
    });
}

#[test]
fn refusals_of_a_run_are_answers_with_status_200() {
    let fleet = Fleet::new();
    fleet.play(|stage| async move {
        let refusal = |error: &str| json!({"exit": -1, "error": error});
        for body in [
            "",
            "nonsense",
            "[]",
            "\"x\"",
            "5",
            "[{\"script\":\"hello\"}]",
        ] {
            let (status, answer) = stage.call("POST", "/run", body.as_bytes()).await;
            assert_eq!((status, answer), (200, refusal("invalid JSON")), "{body}");
        }
        for body in ["null", "{}"] {
            let (status, answer) = stage.call("POST", "/run", body.as_bytes()).await;
            assert_eq!(status, 200);
            assert_eq!(
                answer,
                json!({"script": "", "exit": -1, "error": "script not permitted", "reqid": ""})
            );
        }
        for name in ["../hello", "a;b", "a b", "a/b", "unknown", "HELLO"] {
            let answer = stage.run(json!({"script": name, "reqid": "r"})).await;
            assert_eq!(answer["error"], "script not permitted");
            assert_eq!(answer["script"], *name);
        }
        let answer = stage
            .run(json!({"script": "hello", "args": "x", "reqid": "r"}))
            .await;
        assert_eq!(
            answer,
            json!({"exit": -1, "error": "args must be an array", "reqid": "r"})
        );
        let answer = stage.run(json!({"script": "hello", "args": [["x"]]})).await;
        assert!(
            answer["error"]
                .as_str()
                .unwrap()
                .starts_with("args must be an array")
        );
        for reqid in ["", "../evil", "a b", "a.b"] {
            let answer = stage
                .run(json!({"script": "hello", "async": true, "reqid": reqid}))
                .await;
            assert_eq!(
                answer,
                json!({"script": "hello", "exit": -1, "error": "async run requires a valid reqid", "reqid": reqid})
            );
        }
    });
}

#[test]
fn the_hook_has_the_last_word_and_a_generic_denial_hides_the_script() {
    let fleet = Fleet::new();
    let hook = fleet.etc("hook");
    std::fs::write(
        &hook,
        "#!/bin/sh\n[ \"$ENVEXEC_ACTION/$ENVEXEC_USERNAME/$ENVEXEC_DISPATCHER\" = run/alice/main ] || exit 3\n[ \"$ENVEXEC_TOKEN\" != kill ] || kill -9 $$\n",
    )
    .unwrap();
    std::fs::set_permissions(&hook, std::fs::Permissions::from_mode(0o755)).unwrap();
    fleet.configure("auth_hook = /etc/ctrl-exec-agent/hook");
    let this = &fleet;
    fleet.play(|stage| async move {
        let ask = |user: &str, token: &str| {
            json!({"script": "hello", "reqid": "r", "username": user, "token": token})
        };
        assert_eq!(stage.run(ask("alice", "")).await["exit"], 3);
        let denied = stage.run(ask("bob", "")).await;
        assert_eq!(
            denied,
            json!({"script": "hello", "exit": -1, "error": "not authorised: insufficient privilege", "reqid": "r"})
        );
        let killed = stage.run(ask("alice", "kill")).await;
        assert!(
            killed["error"].as_str().unwrap().starts_with("not authorised: "),
            "{killed}"
        );
        // An unknown script is refused without asking the hook.
        let unknown = stage.run(json!({"script": "unknown", "username": "bob"})).await;
        assert_eq!(unknown["error"], "script not permitted");
        assert_eq!(
            stage.call("GET", "/capabilities", b"").await,
            (403, json!({"error": "not authorised"}))
        );
        assert_eq!(stage.call("POST", "/ping", b"{}").await.0, 200);

        this.configure("auth_hook = /etc/ctrl-exec-agent/hook\nauth_deny_generic = yes");
        stage.agent.reload();
        let hidden = stage.run(ask("bob", "")).await;
        assert_eq!(hidden["error"], "script not permitted");
    });
}

#[test]
fn with_an_executor_the_script_is_never_run_by_the_agent_itself() {
    let fleet = Fleet::new();
    fleet.configure("executor_socket = /run/exec.sock");
    let socket = fleet.context().paths.resolve("/run/exec.sock");
    std::fs::create_dir_all(socket.parent().unwrap()).unwrap();
    fleet.play(|stage| async move {
        let answer = stage.run(json!({"script": "hello", "reqid": "r"})).await;
        assert_eq!(
            (&answer["exit"], &answer["stdout"]),
            (&json!(-1), &json!(""))
        );
        let reason = answer["stderr"].as_str().unwrap();
        assert!(reason.starts_with("executor unreachable: "), "{reason}");

        let listener = tokio::net::UnixListener::bind(&socket).unwrap();
        let executor = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let total = stream.read_u32().await.unwrap();
            let mut frame = vec![0; usize::try_from(total).unwrap()];
            stream.read_exact(&mut frame).await.unwrap();
            stream
                .write_all(b"\0\0\0\x05\0\0\0\x02o\xff\0\0\0\0")
                .await
                .unwrap();
            frame
        });
        let answer = stage
            .run(json!({"script": "hello", "args": ["x"], "reqid": "r2"}))
            .await;
        assert_eq!(answer["exit"], 5);
        assert_eq!(answer["stdout"], "o\u{fffd}");
        let frame = executor.await.unwrap();
        assert!(frame.starts_with(b"\0\0\0\x02r2\0\0\0\x04main\0\0\0\x05hello"));
        // Behind the arguments only what an executor of the original does not read.
        let arguments = b"\0\0\0\x01\0\0\0\x01xCEX1";
        assert!(frame.windows(arguments.len()).any(|w| w == arguments));
    });
}
