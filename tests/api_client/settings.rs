//! Where the URL, the token and the user name come from, and what is refused (spec/integrations.md 3).

use serde_json::json;

use crate::common::Host;
use crate::stub::{Heard, Stub, json};

const FILE: &str = "home/.ctrl-exec-cli.conf";

fn stub() -> Stub {
    Stub::new(&[json(
        200,
        &json!({"ok": true, "version": "1", "results": []}),
    )])
}

fn client() -> Host {
    let mut host = Host::new("client.test");
    let home = host.path("home");
    host.set_env("HOME", home.to_str().expect("the path is text"));
    host
}

fn said(heard: &Heard) -> (Option<&str>, String) {
    let username = heard.json()["username"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    (heard.header("authorization"), username)
}

#[test]
fn option_before_environment_before_file() {
    let (of_file, of_env, of_option) = (stub(), stub(), stub());
    let mut host = client();
    host.write(
        FILE,
        format!(
            "# mine\nurl = {}\ntoken = file\nusername = file\n",
            of_file.url
        ),
        0o600,
    );
    host.ced(&["api", "ping", "a"]);
    assert_eq!(
        said(&of_file.only()),
        (Some("Bearer file"), "file".to_owned())
    );
    host.set_env("USER", "user");
    host.ced(&["api", "ping", "a"]);
    assert_eq!(
        said(&of_file.heard()[1]),
        (Some("Bearer file"), "user".to_owned())
    );

    host.set_env("CTRL_EXEC_API_URL", &of_env.url);
    host.set_env("CTRL_EXEC_TOKEN", "env");
    host.set_env("CTRL_EXEC_USERNAME", "env");
    host.ced(&["api", "ping", "a"]);
    assert_eq!(said(&of_env.only()), (Some("Bearer env"), "env".to_owned()));

    // Before the word api, before the verb, behind it.
    let option = of_option.url.as_str();
    let words = [
        "--url",
        option,
        "api",
        "--token=option",
        "ping",
        "a",
        "--user",
        "option",
    ];
    host.ced(&words);
    assert_eq!(
        said(&of_option.only()),
        (Some("Bearer option"), "option".to_owned())
    );
    assert_eq!(of_file.heard().len(), 2);
}

#[test]
fn another_file_and_that_of_the_original() {
    let (named, original) = (stub(), stub());
    let host = client();
    host.write(
        "root/.ctrl-exec-cli.conf",
        format!("url = {}\n", original.url),
        0o600,
    );
    host.ced(&["api", "health"]).ok();
    assert_eq!(original.heard().len(), 1);
    let file = host.write(
        "etc/named.conf",
        format!("url = {}\nnonsense\n", named.url),
        0o644,
    );
    let file = file.to_str().expect("the path is text").to_owned();
    host.ced(&["api", "health", "--config", &file])
        .ok()
        .err_has("line 2: ignored");
    assert_eq!(named.heard().len(), 1);
    // One's own comes before that of root.
    host.write(FILE, "url = nonsense\n", 0o600);
    host.ced(&["api", "health"])
        .expect_code(64)
        .err_has(".ctrl-exec-cli.conf': 'nonsense' cannot be used");
    host.ced(&["api", "health", "--config", "/nowhere/at/all"])
        .expect_code(78)
        .err_has("/nowhere/at/all");
    assert_eq!(original.heard().len(), 1);
}

#[test]
fn a_file_with_a_token_that_others_can_read_is_refused() {
    let stub = stub();
    let host = client();
    host.write(FILE, format!("url = {}\ntoken = t0k\n", stub.url), 0o644);
    let run = host.ced(&["api", "health"]).expect_code(78);
    assert!(
        run.err().contains("secret that others can read"),
        "{}",
        run.err()
    );
    assert!(!run.err().contains("t0k"));
    assert!(stub.heard().is_empty());
    host.set_mode(FILE, 0o600);
    host.ced(&["api", "health"]).ok();
    // Whoever can write it could send the token anywhere.
    host.write(FILE, format!("url = {}\n", stub.url), 0o666);
    host.ced(&["api", "health"])
        .expect_code(78)
        .err_has("can be written by others");
}

#[test]
fn a_token_does_not_travel_in_clear_unless_told_so() {
    let host = client();
    let words = [
        "api",
        "health",
        "--url",
        "http://nowhere.invalid:1",
        "--token",
        "t0k",
    ];
    let run = host.ced(&words).expect_code(64);
    assert!(run.err().contains("--allow-plain-http"), "{}", run.err());
    let run = host
        .ced(&[&words[..], &["--allow-plain-http"]].concat())
        .expect_code(1);
    assert!(
        run.err()
            .contains("Warning: http://nowhere.invalid:1: the token travels in clear")
    );
    assert!(run.err().contains("does not resolve"));
    assert!(!run.err().contains("t0k"));
    // Without a token there is nothing to warn of.
    let run = host.ced(&words[..4]).expect_code(1);
    assert!(!run.err().contains("Warning"), "{}", run.err());
}

#[test]
fn a_unix_socket_serves_as_well() {
    let host = client();
    let answer = json(200, &json!({"ok": true, "version": "1"}));
    let stub = Stub::unix(&host.path("run/api.sock"), &[answer]);
    host.ced(&["api", "--url", &stub.url, "--token", "t0k", "health"])
        .ok()
        .out_has("STATUS ok");
    let heard = stub.only();
    assert_eq!(heard.header("host"), Some("localhost"));
    assert_eq!(heard.header("authorization"), Some("Bearer t0k"));
    // The binary's own name takes the verb too.
    host.ctrl_exec(&["api", "--url", &stub.url, "health"]).ok();
}
