//! Answers that come piece by piece: `POST /run` and `GET /status/{reqid}` as server-sent events and as one JSON object a line. The client
//! of the test reads event streams as browsers must (the parsing rules of the HTML standard), from whatever pieces arrive.

mod common;

use std::time::{Duration, Instant};

use common::fleet::allow;
use common::web::{Connection, OPEN};
use common::{Agent, ApiServer, PATIENCE, Paired, Request, wait_until};
use serde_json::{Value, json};

const EVENTS: &str = "text/event-stream";
const LINES: &str = "application/x-ndjson";

/// Three agents; `slow` waits for the file `go` of its host.
struct Stage {
    fleet: Paired,
    api: ApiServer,
    _agents: Vec<Agent>,
}

impl Stage {
    fn new() -> Self {
        let fleet = Paired::new(&["web1.test", "web2.test", "web3.test"]);
        for host in &fleet.agents {
            let slow = format!(
                "echo begun; i=0; while [ ! -e {} ] && [ $i -lt 1200 ]; do sleep 0.05; i=$((i+1)); done; echo ended",
                host.path("tmp/go").display()
            );
            allow(host, "slow", &slow);
            allow(host, "talk", "yes \"$1\" | head -c 300000");
            allow(host, "sleep", "sleep $1");
        }
        let agents = fleet.start();
        let api = ApiServer::start(&fleet.dispatcher, OPEN);
        Self {
            fleet,
            api,
            _agents: agents,
        }
    }

    fn go(&self, host: usize) {
        self.fleet.agents[host].write("tmp/go", "", 0o644);
    }

    fn stay(&self, host: usize) {
        let _ = std::fs::remove_file(self.fleet.agents[host].path("tmp/go"));
    }

    fn open(&self, request: Request, accept: &str) -> Stream {
        Stream::open(&self.api, &request.header("Accept", accept), accept)
    }
}

/// One event of a stream.
#[derive(Clone, Debug)]
struct Event {
    name: String,
    data: Value,
}

/// A stream that is being read.
struct Stream {
    connection: Connection,
    /// What has come and is no whole line yet.
    rest: Vec<u8>,
    lines: bool,
    /// The event that is being put together.
    name: String,
    data: String,
    /// Signs of life.
    alive: usize,
}

impl Stream {
    #[track_caller]
    fn open(api: &ApiServer, request: &Request, accept: &str) -> Self {
        let mut connection = api.connect();
        connection.send(&request.bytes());
        let head = connection.head().expect("an answer");
        assert_eq!(head.status, 200);
        assert_eq!(head.header("content-type"), Some(accept));
        assert_eq!(head.header("cache-control"), Some("no-store"));
        assert_eq!(head.header("transfer-encoding"), Some("chunked"));
        assert_eq!(head.header("content-length"), None);
        Self {
            connection,
            rest: Vec::new(),
            lines: accept == LINES,
            name: String::new(),
            data: String::new(),
            alive: 0,
        }
    }

    /// The next event; `None` at the end of the stream.
    #[track_caller]
    fn next(&mut self) -> Option<Event> {
        loop {
            while let Some(end) = self.rest.iter().position(|&b| b == b'\n') {
                let line: Vec<u8> = self.rest.drain(..=end).collect();
                let line = String::from_utf8(line).expect("a stream is UTF-8");
                if let Some(event) = self.line(line.trim_end_matches(['\r', '\n'])) {
                    return Some(event);
                }
            }
            match self.connection.chunk() {
                Some(chunk) => self.rest.extend_from_slice(&chunk),
                None => {
                    assert!(self.rest.is_empty(), "half a line at the end");
                    assert!(self.data.is_empty(), "half an event at the end");
                    return None;
                }
            }
        }
    }

    fn line(&mut self, line: &str) -> Option<Event> {
        if self.lines {
            let mut data: Value = serde_json::from_str(line).expect("a line is JSON");
            let members = data.as_object_mut().expect("an object");
            let name = members.remove("event").expect("its name");
            let name = name.as_str().expect("a text").to_owned();
            if name == "alive" {
                self.alive += 1;
                return None;
            }
            return Some(Event { name, data });
        }
        // An empty line sends off what was collected; a colon begins a comment; one blank after the colon of a field belongs to it.
        if line.is_empty() {
            let (name, data) = (
                std::mem::take(&mut self.name),
                std::mem::take(&mut self.data),
            );
            if data.is_empty() {
                return None;
            }
            let data = data.strip_suffix('\n').unwrap_or(&data);
            return Some(Event {
                name,
                data: serde_json::from_str(data).expect("data is JSON"),
            });
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "" => self.alive += 1,
            "event" => value.clone_into(&mut self.name),
            "data" => {
                self.data.push_str(value);
                self.data.push('\n');
            }
            other => panic!("field {other}"),
        }
        None
    }

    #[track_caller]
    fn expect(&mut self, name: &str) -> Value {
        let event = self.next().expect("another event");
        assert_eq!(event.name, name, "{}", event.data);
        event.data
    }

    /// The end, after which nothing comes, and the connection serves the next request.
    #[track_caller]
    fn expect_end(&mut self) -> Value {
        let end = self.expect("end");
        assert!(self.next().is_none(), "something after the end");
        self.connection
            .send(&Request::new("GET", "/health").bytes());
        assert_eq!(self.connection.answer("GET").status, 200);
        end
    }
}

fn run(hosts: &[&str], script: &str, args: &[&str]) -> Request {
    Request::new("POST", "/run").json(&json!({"hosts": hosts, "script": script, "args": args}))
}

#[test]
fn results_come_when_they_are_there() {
    let stage = Stage::new();
    for accept in [EVENTS, LINES] {
        let hosts = ["web1.test", "web2.test", "web3.test"];
        let mut stream = stage.open(run(&hosts, "slow", &[]), accept);
        let started = stream.expect("started");
        let reqid = started["reqid"].as_str().expect("an id").to_owned();
        assert_eq!(
            started,
            json!({"reqid": reqid, "script": "slow", "hosts": hosts})
        );
        // While others still run, and in the order in which they end.
        let mut results = Vec::new();
        for host in [1, 2, 0] {
            stage.go(host);
            let result = stream.expect("result");
            assert_eq!(result["host"], hosts[host]);
            assert_eq!(
                (&result["exit"], &result["stdout"]),
                (&json!(0), &json!("begun\nended\n"))
            );
            if host != 0 {
                // Nobody finds a record of a run that goes on.
                stage.api.get(&format!("/status/{reqid}")).expect(404);
            }
            results.push(result);
        }
        assert_eq!(
            stream.expect_end(),
            json!({"ok": true, "reqid": reqid, "recorded": true})
        );
        // The record has the same results in the order of the request.
        let told = stage
            .api
            .get(&format!("/status/{reqid}"))
            .expect(200)
            .json();
        results.sort_by_key(|result| result["host"].as_str().map(str::to_owned));
        assert_eq!(told["results"], Value::from(results));
        // The locks are free as soon as the end is told.
        stage.api.send(&run(&hosts, "slow", &[])).expect(200);
        for host in 0..3 {
            stage.stay(host);
        }
    }
}

#[test]
fn large_results_come_whole_and_failures_are_results() {
    let stage = Stage::new();
    let odd = "ü \\ \" 😀";
    for accept in [EVENTS, LINES] {
        let mut stream = stage.open(run(&["web1.test", "web2.test"], "talk", &[odd]), accept);
        stream.expect("started");
        for _ in 0..2 {
            let result = stream.expect("result");
            let out = result["stdout"].as_str().expect("text");
            assert!(
                out.len() >= 299_990 && out.starts_with(&format!("{odd}\n{odd}\n")),
                "{}",
                out.len()
            );
        }
        stream.expect_end();
        let mut stream = stage.open(run(&["web1.test"], "nothing", &[]), accept);
        stream.expect("started");
        let result = stream.expect("result");
        assert_eq!(
            (&result["exit"], &result["error"]),
            (&json!(-1), &json!("script not permitted"))
        );
        assert_eq!(stream.expect_end()["ok"], true);
    }
}

#[test]
fn the_status_of_a_run_is_told_until_its_end() {
    let stage = Stage::new();
    for accept in [EVENTS, LINES] {
        let hosts = json!(["web1.test", "web2.test"]);
        let body = json!({"hosts": hosts, "script": "slow", "async": true});
        let told = stage.api.post("/run", &body).expect(202).json();
        let reqid = told["reqid"].as_str().expect("an id").to_owned();
        let path = format!("/status/{reqid}");
        let mut stream = stage.open(Request::new("GET", &path), accept);
        let status = stream.expect("status");
        assert_eq!(
            (&status["complete"], &status["pending"]),
            (&json!(false), &hosts)
        );
        assert_eq!(status.get("submitter"), None);
        stage.go(0);
        // A host may be told as running before it is told as done.
        let done = |stream: &mut Stream, name: &str| loop {
            let host = stream.expect("host");
            if host["host"] == name && host["status"] == "done" {
                assert_eq!(
                    (&host["exit"], &host["stdout"]),
                    (&json!(0), &json!("begun\nended\n"))
                );
                return;
            }
            assert_eq!(host["status"], "running", "{host}");
        };
        done(&mut stream, "web1.test");
        stage.go(1);
        done(&mut stream, "web2.test");
        assert_eq!(
            stream.expect_end(),
            json!({"ok": true, "reqid": reqid, "complete": true})
        );
        // Of what has ended there is nothing more to tell; the same for a run that was waited for.
        let mut stream = stage.open(Request::new("GET", &path), accept);
        assert_eq!(stream.expect("status")["complete"], true);
        assert_eq!(stream.expect_end()["complete"], true);
        let sync = stage.api.send(&run(&["web1.test"], "true", &[])).json();
        let sync = format!("/status/{}", sync["reqid"].as_str().expect("an id"));
        let mut stream = stage.open(Request::new("GET", &sync), accept);
        assert_eq!(stream.expect("status")["results"][0]["exit"], 0);
        stream.expect_end();
        stage.stay(0);
        stage.stay(1);
    }
}

#[test]
fn who_does_not_ask_for_a_stream_gets_none() {
    let stage = Stage::new();
    let body = run(&["web1.test"], "true", &[]);
    for accept in [
        "",
        "*/*",
        "application/json",
        "text/html",
        "application/json, text/event-stream",
        "text/plain;q=0.9, */*;q=0.8",
    ] {
        let request = if accept.is_empty() {
            body.clone()
        } else {
            body.clone().header("Accept", accept)
        };
        let answer = stage.api.send(&request).expect(200);
        assert_eq!(
            answer.header("content-type"),
            Some("application/json"),
            "{accept}"
        );
        assert_eq!(
            answer.header("content-length"),
            Some(answer.body.len().to_string().as_str()),
            "{accept}"
        );
        assert_eq!(answer.json()["results"][0]["exit"], 0);
    }
    // Nor do refusals, routes that have none, and asynchronous runs.
    for (request, status) in [
        (Request::new("POST", "/run"), 400),
        (run(&["nowhere.test"], "true", &[]), 404),
        (Request::new("GET", "/status/00ff"), 404),
        (Request::new("GET", "/health"), 200),
        (
            Request::new("POST", "/ping").json(&json!({"hosts": ["web1.test"]})),
            200,
        ),
        (
            Request::new("POST", "/run")
                .json(&json!({"hosts": ["web1.test"], "script": "true", "async": true})),
            202,
        ),
    ] {
        let answer = stage
            .api
            .send(&request.header("Accept", EVENTS))
            .expect(status);
        assert_eq!(answer.header("content-type"), Some("application/json"));
        answer.json();
    }
    // HEAD of a stream is a head.
    let sync = stage.api.send(&body).json();
    let path = format!("/status/{}", sync["reqid"].as_str().expect("an id"));
    let answer = stage
        .api
        .send(&Request::new("HEAD", &path).header("Accept", EVENTS))
        .expect(200);
    assert_eq!(answer.header("content-type"), Some(EVENTS));
    // A client that knows no chunks reads to the end of the connection.
    let mut old = body.header("Accept", LINES);
    old.version = "HTTP/1.0";
    let answer = stage.api.send(&old).expect(200);
    assert_eq!(
        (
            answer.header("transfer-encoding"),
            answer.header("content-length")
        ),
        (None, None)
    );
    let names: Vec<String> = answer
        .text()
        .lines()
        .map(|line| {
            serde_json::from_str::<Value>(line).expect("JSON")["event"]
                .as_str()
                .expect("a name")
                .to_owned()
        })
        .collect();
    assert_eq!(names, ["started", "result", "end"]);
}

#[test]
fn a_client_that_goes_away_in_the_middle_ends_nothing() {
    let stage = Stage::new();
    let before = stage.api.open_files();
    for accept in [EVENTS, LINES] {
        let mut stream = stage.open(run(&["web1.test", "web2.test"], "slow", &[]), accept);
        let started = stream.expect("started");
        let reqid = started["reqid"].as_str().expect("an id").to_owned();
        stage.go(0);
        stream.expect("result");
        drop(stream);
        std::thread::sleep(Duration::from_millis(200));
        stage.go(1);
        let told = wait_until("the record is there", PATIENCE, || {
            let answer = stage.api.get(&format!("/status/{reqid}"));
            (answer.status == 200).then(|| answer.json())
        });
        assert_eq!(told["results"].as_array().map(Vec::len), Some(2));
        assert_eq!(told["results"][1]["stdout"], "begun\nended\n");
        stage.stay(0);
        stage.stay(1);
    }
    // A look at a run that goes on, given up: the server notices at the latest when it gives a sign of life, and stops asking the agent, which
    // it would do 1, 3, 6, 16 and 26 s after the beginning.
    let body = json!({"hosts": ["web3.test"], "script": "slow", "async": true});
    let told = stage.api.post("/run", &body).expect(202).json();
    let path = format!("/status/{}", told["reqid"].as_str().expect("an id"));
    let mut stream = stage.open(Request::new("GET", &path), EVENTS);
    stream.expect("status");
    drop(stream);
    std::thread::sleep(Duration::from_secs(18));
    stage.fleet.agents[2].clear_log();
    std::thread::sleep(Duration::from_secs(9));
    let asked = stage.fleet.agents[2].log_of("result");
    assert_eq!(asked.len(), 0, "it is still asked about");
    stage.go(2);
    // Connections to agents may be kept for a while; the clients' are gone.
    let after = stage.api.open_files();
    assert!(after <= before + 6, "{before} open files, then {after}");
}

#[test]
fn silence_is_filled() {
    let stage = Stage::new();
    let begun = Instant::now();
    let streams: Vec<Stream> = [EVENTS, LINES]
        .into_iter()
        .zip(["web1.test", "web2.test"])
        .map(|(accept, host)| stage.open(run(&[host], "sleep", &["20"]), accept))
        .collect();
    for mut stream in streams {
        stream.expect("started");
        let result = stream.expect("result");
        assert_eq!(result["exit"], 0);
        assert_eq!(stream.alive, 1, "one sign of life in 20 s");
        stream.expect_end();
    }
    assert!(begun.elapsed() >= Duration::from_secs(20));
}
