//! The examples of docs/api.md, run against a real server with two agents: what the document shows is what comes.

mod common;

use std::process::{Command, Stdio};

use common::Paired;
use common::fleet::allow;
use common::web::{ApiServer, OPEN};
use serde_json::{Deserializer, Value};

/// A shell script and the answer that the document shows to it.
struct Example {
    line: usize,
    script: String,
    expected: String,
}

/// Every ```` ```sh example ```` with the ```` ```json ```` behind it.
fn examples(document: &str) -> Vec<Example> {
    let mut examples: Vec<Example> = Vec::new();
    let mut lines = document.lines().enumerate();
    let block = |lines: &mut dyn Iterator<Item = (usize, &str)>| {
        let inside = lines
            .map(|(_, line)| line)
            .take_while(|line| *line != "```");
        inside.collect::<Vec<_>>().join("\n")
    };
    while let Some((at, line)) = lines.next() {
        if line != "```sh example" {
            continue;
        }
        let script = block(&mut lines);
        let next = lines.next().map(|(_, line)| line);
        assert_eq!(next, Some("```json"), "line {}: no answer follows", at + 1);
        examples.push(Example {
            line: at + 1,
            script,
            expected: block(&mut lines),
        });
    }
    examples
}

/// `"..."` stands for any value, a member `"..."` for any further members.
fn fits(expected: &Value, real: &Value) -> bool {
    match (expected, real) {
        (Value::String(any), _) if any == "..." => true,
        (Value::Object(expected), Value::Object(real)) => {
            let open = expected.contains_key("...");
            let known = |name: &String| expected.contains_key(name);
            expected
                .iter()
                .filter(|(name, _)| *name != "...")
                .all(|(name, value)| real.get(name).is_some_and(|real| fits(value, real)))
                && (open || real.keys().all(known))
        }
        (Value::Array(expected), Value::Array(real)) => {
            expected.len() == real.len() && expected.iter().zip(real).all(|(e, r)| fits(e, r))
        }
        _ => expected == real,
    }
}

fn values(text: &str, what: &str) -> Vec<Value> {
    let values: Result<Vec<Value>, _> = Deserializer::from_str(text).into_iter().collect();
    values.unwrap_or_else(|e| panic!("{what} is no JSON ({e}): {text}"))
}

#[test]
fn what_the_document_shows_is_what_comes() {
    let fleet = Paired::new(&["web1", "web2"]);
    for agent in &fleet.agents {
        agent.write("etc/ctrl-exec-agent/scripts.toml", "", 0o640);
        allow(agent, "greet", "echo \"hello${1:+ }$*\"\n");
        allow(agent, "slow", "exec sleep \"${1:-1}\"\n");
    }
    let _agents = fleet.start();
    let server = ApiServer::start(&fleet.dispatcher, OPEN);
    let place = tempfile::tempdir().unwrap();
    let examples = examples(include_str!("../docs/api.md"));
    assert!(examples.len() >= 12, "only {} examples", examples.len());
    for example in examples {
        let out = Command::new("sh")
            .args(["-eu", "-c", &example.script])
            .env("API", server.url())
            .current_dir(place.path())
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&out.stdout).into_owned();
        let errors = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(
            out.status.success(),
            "docs/api.md:{}: {} {said}{errors}",
            example.line,
            out.status
        );
        let expected = values(&example.expected, "the document's answer");
        let real = values(&said, "the real answer");
        let all_fit =
            expected.len() == real.len() && expected.iter().zip(&real).all(|(e, r)| fits(e, r));
        assert!(
            all_fit,
            "docs/api.md:{}: the document shows\n{}\nbut this came:\n{said}",
            example.line, example.expected
        );
    }
}

#[test]
fn the_comparison_sees_differences() {
    let fits = |expected: &str, real: &str| {
        fits(
            &serde_json::from_str(expected).unwrap(),
            &serde_json::from_str(real).unwrap(),
        )
    };
    assert!(fits(
        r#"{"a": "...", "b": [1]}"#,
        r#"{"a": {"x": 1}, "b": [1]}"#
    ));
    assert!(!fits(r#"{"a": "..."}"#, r#"{"a": 1, "b": 2}"#));
    assert!(fits(r#"{"a": 1, "...": "..."}"#, r#"{"a": 1, "b": 2}"#));
    assert!(!fits(r#"{"a": 1}"#, "{}"));
    assert!(!fits("[1]", "[1, 2]"));
    assert!(!fits("1", "2"));
}
