//! Recorded requests and answers of the API (spec/api.md 3-7), replayed against the real server with agents of both makes. The pairs are in
//! `api_replay/pairs.jsonl`: what the original answers, and where ours is another answer on purpose, that answer and why.
//!
//! The table of `docs/api.md` is made of the same pairs. `CTRL_EXEC_WRITE_DOCS=1` writes it, otherwise the test compares.
//!
//! A pair: `case`; `situation`, one of the servers below (default `open`); `request`, `headers`, `body` (a text is sent as it is), or `raw`;
//! `lines` pads the head to so many header lines, `size` the body to so many bytes, `many` makes so many hosts; `half` ends
//! the sending direction; `held` takes the lock of `true` on a host; `keep` remembers the answer's `reqid` under a name, for `{name}` in later pairs; `sent` is what the agent of 0.12.3 gets;
//! `has` names headers of the answer. In answers `$text` and the like are wildcards; `$more` lets an object or array have more members.

mod common;

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use common::fleet::{self, allow, register};
use common::web::{self, Answer, Connection, HOOKED, OPEN};
use common::{Agent, ApiServer, Daemon, Host, PATIENCE, Paired, Request, free_port, wait_until};
use serde_json::{Map, Value, json};

const PAIRS: &str = include_str!("api_replay/pairs.jsonl");
const BEGIN: &str = "<!-- replay begin -->";
const END: &str = "<!-- replay end -->";

#[test]
fn every_recorded_pair_is_answered_as_recorded() {
    let mut stage = Stage::new();
    let mut wrong = Vec::new();
    let mut rows = Vec::new();
    for line in PAIRS.lines().filter(|line| !line.trim().is_empty()) {
        let pair: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
        let problems = stage.replay(&pair);
        if !problems.is_empty() {
            wrong.push(format!("{line}\n    {}", problems.join("\n    ")));
        }
        rows.push(row(&pair));
    }
    assert!(rows.len() > 100, "the file has been cut");
    assert!(
        wrong.is_empty(),
        "{} of {} pairs:\n{}",
        wrong.len(),
        rows.len(),
        wrong.join("\n")
    );
    compare_table(&rows);
}

/// One dispatcher with servers of several configurations, `web1.test` of ours, `old.test` of 0.12.3, `dead.test` that nobody is.
struct Stage {
    fleet: Paired,
    servers: BTreeMap<&'static str, ApiServer>,
    words: BTreeMap<String, String>,
    _old: Daemon,
    _old_host: Host,
    _agent: Agent,
}

impl Stage {
    fn new() -> Self {
        let dispatcher = fleet::new_dispatcher("ctl.test");
        let (old_host, old) = fleet::old_agent(&dispatcher, "old.test");
        let fleet = Paired::with(dispatcher, &["web1.test"]);
        let host = &fleet.dispatcher;
        let go = fleet.agents[0].path("tmp/go");
        let nap = format!(
            "i=0; while [ ! -e {} ] && [ $i -lt 1200 ]; do sleep 0.05; i=$((i+1)); done; echo rested",
            go.display()
        );
        allow(&fleet.agents[0], "nap", &nap);
        let agent = Agent::start(&fleet.agents[0]);
        let mut dead = host.json("var/lib/ctrl-exec/agents/web1.test.json");
        dead["hostname"] = json!("dead.test");
        dead["port"] = json!(free_port());
        register(host, &dead);
        std::fs::create_dir_all(host.path("var/lib/ctrl-exec/locks")).expect("a directory");
        let damaged = "var/lib/ctrl-exec/runs/00000000000000dd.json";
        host.write(damaged, "{\"reqid\":", 0o640);
        web::hook(
            host,
            "case \"$ENVEXEC_ACTION $ENVEXEC_TOKEN\" in\n\
             \"api gate1-\"*) exit ${ENVEXEC_TOKEN#gate1-} ;;\n\
             \"api \"*) exit 0 ;;\n\
             *\" gate2-\"*) exit ${ENVEXEC_TOKEN#gate2-} ;;\n\
             *\" signal\") kill -SEGV $$ ;;\n\
             esac\nexit 0",
        );
        let closed = "api_port = 0\napi_auth_default = \"deny\"\n";
        let generic = format!("{HOOKED}auth_deny_generic = true\n");
        let hookless = HOOKED.replace("api-hook", "no-hook");
        let empty = format!("{OPEN}registry_dir = \"/var/lib/ctrl-exec/nobody\"\n");
        let servers = [
            ("open", OPEN.to_owned()),
            (
                "closed",
                format!("{closed}api_refusal_limit = \"0/60/60\"\n"),
            ),
            (
                "throttled",
                format!("{closed}api_refusal_limit = \"2/60/60\"\n"),
            ),
            ("hook", HOOKED.to_owned()),
            ("generic", generic),
            ("hookless", hookless),
            ("empty", empty),
            ("crowded", format!("{OPEN}api_max_children = 1\n")),
        ];
        let servers = servers
            .into_iter()
            .map(|(name, lines)| (name, ApiServer::start_beside(host, name, &lines)))
            .collect();
        let missing = host.path("etc/ctrl-exec/no-hook").display().to_string();
        let words = BTreeMap::from([
            ("port".to_owned(), agent.port().to_string()),
            ("hookless".to_owned(), missing),
        ]);
        Self {
            fleet,
            servers,
            words,
            _old: old,
            _old_host: old_host,
            _agent: agent,
        }
    }

    /// What is wrong with the answer.
    fn replay(&mut self, pair: &Value) -> Vec<String> {
        let mut situation = pair["situation"].as_str().unwrap_or("open");
        if situation == "ended" {
            situation = "open";
            let agent = &self.fleet.agents[0];
            agent.write("tmp/go", "", 0o644);
            // Not by its log: that line comes before the record says so.
            let path = self.fill("/status/{async}");
            wait_until("the nap has ended", PATIENCE, || {
                let told = self.servers["open"].get(&path).json();
                (told["hosts"]["web1.test"]["status"] == "done").then_some(())
            });
        }
        let _crowd = (situation == "crowded").then(|| self.crowd());
        let _held = pair["held"].as_str().map(|host| self.hold(host));
        let bytes = self.bytes(pair);
        let method = pair["request"].as_str().unwrap_or("GET").split(' ').next();
        let server = self
            .servers
            .get(situation)
            .unwrap_or_else(|| panic!("no situation {situation}"));
        let mut connection = server.connect();
        connection.send(&bytes);
        if pair["half"] == true {
            connection.finish_sending();
        }
        let Some(answer) = connection.try_answer(method.unwrap_or_default()) else {
            return vec!["no answer".to_owned()];
        };
        let mut wrong = self.judge(pair, &answer);
        if let Some(name) = pair["keep"].as_str() {
            let reqid = answer.json()["reqid"]
                .as_str()
                .unwrap_or_default()
                .to_owned();
            self.words.insert(name.to_owned(), reqid);
        }
        if let Some(sent) = pair.get("sent") {
            let echo = &answer.json()["results"][0]["stdout"];
            match serde_json::from_str(echo.as_str().unwrap_or_default()) {
                Ok(told) => differences(sent, &told, "sent", &mut wrong),
                Err(error) => wrong.push(format!("the agent got {echo}: {error}")),
            }
        }
        wrong
    }

    /// Takes the one place that the server has, with a request that does not come to its end.
    fn crowd(&self) -> Connection {
        let server = &self.servers["crowded"];
        let mut begun = server.connect();
        begun.send(b"POST /ping HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n");
        wait_until("the server is full", PATIENCE, || {
            (server.get("/health").status == 503).then_some(())
        });
        begun
    }

    fn judge(&self, pair: &Value, answer: &Answer) -> Vec<String> {
        let expected = pair.get("ours").unwrap_or(&pair["original"]);
        let mut wrong = Vec::new();
        if expected[0] != answer.status {
            wrong.push(format!("status {}: {}", answer.status, answer.text()));
            return wrong;
        }
        let body = self.fill(&expected[1].to_string());
        match serde_json::from_str::<Value>(&body).expect("filled in JSON is JSON") {
            Value::Null if answer.body.is_empty() => {}
            Value::Null => wrong.push(format!("a body: {}", answer.text())),
            body => {
                differences(&body, &answer.json(), "", &mut wrong);
                if answer.header("content-type") != Some("application/json") {
                    wrong.push(format!("headers {:?}", answer.headers));
                }
                // An exact length, no chunks: clients of the original know nothing else.
                if answer.header("content-length") != Some(&answer.body.len().to_string()) {
                    wrong.push(format!("headers {:?}", answer.headers));
                }
            }
        }
        for (name, value) in pair["has"].as_object().into_iter().flatten() {
            let found = answer.header(name).unwrap_or_default();
            let fits = match value.as_str() {
                Some("$number") => found.parse::<u32>().is_ok(),
                value => value == Some(found),
            };
            if !fits {
                wrong.push(format!("{name} is {found:?}"));
            }
        }
        wrong
    }

    fn bytes(&self, pair: &Value) -> Vec<u8> {
        if let Some(raw) = pair["raw"].as_str() {
            return raw.as_bytes().to_vec();
        }
        let line = self.fill(pair["request"].as_str().expect("a request"));
        let (method, target) = line.split_once(' ').expect("a method and a path");
        let mut request = Request::new(method, target);
        if pair["version"] == "HTTP/1.0" {
            request.version = "HTTP/1.0";
        }
        for header in pair["headers"].as_array().into_iter().flatten() {
            let word = |at: usize| header[at].as_str().expect("a text");
            request = request.header(word(0), word(1));
        }
        request = match &pair["body"] {
            Value::Null => request,
            Value::String(text) => request.body(text.as_bytes()),
            body => {
                let mut body = body.clone();
                if let Some(many) = pair["many"].as_u64() {
                    body["hosts"] = vec!["web1.test"; usize::try_from(many).expect("few")].into();
                }
                request.body(self.fill(&body.to_string()))
            }
        };
        if let Some(size) = pair["size"].as_u64() {
            request
                .body
                .resize(usize::try_from(size).expect("small"), b' ');
        }
        if let Some(lines) = pair["lines"].as_u64() {
            // `Host` is one of them.
            for n in request.headers.len() + 1..usize::try_from(lines).expect("few") {
                request = request.header(&format!("X-{n}"), "x");
            }
        }
        request.bytes()
    }

    /// Puts what is known into `{name}`.
    fn fill(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for (name, word) in &self.words {
            text = text.replace(&format!("{{{name}}}"), word);
        }
        text
    }

    fn hold(&self, host: &str) -> File {
        let name = format!("var/lib/ctrl-exec/locks/{host}--true.lock");
        let path = self.fleet.dispatcher.path(&name);
        let file = File::options()
            .create(true)
            .append(true)
            .open(path)
            .expect("the directory of locks is there");
        file.lock().expect("nobody runs `true`");
        file
    }
}

/// Where an answer is another than the expected one.
fn differences(expected: &Value, found: &Value, at: &str, wrong: &mut Vec<String>) {
    let fits = match (expected, found) {
        (Value::String(word), found) if word.starts_with('$') => wildcard(word, found),
        (Value::Object(expected), Value::Object(found)) => {
            return members(expected, found, at, wrong);
        }
        (Value::Array(expected), Value::Array(found)) => {
            let open = expected.last() == Some(&json!("$more"));
            let expected = &expected[..expected.len() - usize::from(open)];
            for (n, (expected, found)) in expected.iter().zip(found).enumerate() {
                differences(expected, found, &format!("{at}[{n}]"), wrong);
            }
            expected.len() == found.len() || (open && expected.len() < found.len())
        }
        (expected, found) => expected == found,
    };
    if !fits {
        wrong.push(format!("{at}: {found} instead of {expected}"));
    }
}

fn members(
    expected: &Map<String, Value>,
    found: &Map<String, Value>,
    at: &str,
    wrong: &mut Vec<String>,
) {
    for (name, value) in expected.iter().filter(|(name, _)| *name != "$more") {
        match found.get(name) {
            Some(found) => differences(value, found, &format!("{at}.{name}"), wrong),
            None => wrong.push(format!(
                "{at}.{name} is missing: {}",
                Value::from(found.clone())
            )),
        }
    }
    if !expected.contains_key("$more") {
        for (name, value) in found
            .iter()
            .filter(|(name, _)| !expected.contains_key(*name))
        {
            wrong.push(format!("{at}.{name} is too much: {value}"));
        }
    }
}

fn wildcard(word: &str, found: &Value) -> bool {
    let text = found.as_str().unwrap_or_default();
    match word {
        "$any" => true,
        "$text" => !text.is_empty(),
        "$reqid" => {
            text.len() == 16
                && text
                    .bytes()
                    .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
        }
        "$rtt" => text
            .strip_suffix("ms")
            .is_some_and(|n| n.parse::<u32>().is_ok()),
        "$epoch" => found.as_i64().is_some_and(|n| n > 1_700_000_000),
        other => panic!("no wildcard {other}"),
    }
}

// ---- the table ----

fn row(pair: &Value) -> String {
    let request = pair["request"].as_str().unwrap_or("GET /health");
    let request = match pair["raw"].as_str() {
        Some("") => "(nothing)".to_owned(),
        Some(raw) => raw.split([' ', '\r']).take(2).collect::<Vec<_>>().join(" "),
        None => request.to_owned(),
    };
    let case = pair["case"].as_str().expect("a case");
    let about = if case.is_empty() {
        String::new()
    } else {
        format!(" - {case}")
    };
    let original = short(&pair["original"]);
    let (ours, same) = match (pair.get("ours"), pair["why"].as_str()) {
        (None, _) => (original.clone(), "yes".to_owned()),
        (Some(ours), Some(why)) => (short(ours), format!("no: {why}")),
        (Some(_), None) => panic!("{pair} differs without a reason"),
    };
    format!(
        "| `{}`{about} | {original} | {ours} | {same} |",
        known(&request)
    )
}

/// Names that stand for what only a run of the test knows.
fn known(text: &str) -> String {
    let mut text = text.replace("{hookless}", "PATH").replace("{port}", "PORT");
    for name in ["sync", "three", "async", "busy", "refused", "down"] {
        text = text.replace(&format!("{{{name}}}"), "ID");
    }
    text
}

fn short(answer: &Value) -> String {
    let code = &answer[0];
    let Some(body) = answer[1].as_object() else {
        return if code == 0 {
            "no answer".to_owned()
        } else {
            format!("{code}, no body")
        };
    };
    let text = |name: &str| body.get(name).and_then(Value::as_str).map(known);
    match (text("error"), text("detail")) {
        (Some(error), Some(detail)) if detail != "$text" => format!("{code} `{error}`: {detail}"),
        (Some(error), _) => match body.get("code") {
            Some(number) => format!("{code} `{error}`, `code` {number}"),
            None => format!("{code} `{error}`"),
        },
        _ => {
            let names = body.keys().filter(|name| *name != "$more");
            let names: Vec<String> = names.map(|name| format!("`{name}`")).collect();
            format!("{code} {}", names.join(", "))
        }
    }
}

fn compare_table(rows: &[String]) {
    let same = rows.iter().filter(|row| row.ends_with("| yes |")).count();
    let table = format!(
        "{BEGIN}\n{} of {} requests are answered as 0.12.3 answers them by its specification, more members or entries beside the \
         original ones included; every other row says why not.\n\n\
         | request | original | ours | same? |\n|---|---|---|---|\n{}\n{END}",
        same,
        rows.len(),
        rows.join("\n")
    );
    let path: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/api.md");
    let text = std::fs::read_to_string(&path).expect("docs/api.md can be read");
    let found = text.split_once(BEGIN).zip(text.split_once(END));
    let ((before, _), (_, after)) = found.expect("docs/api.md has both markers");
    let wanted = format!("{before}{table}{after}");
    if text == wanted {
        return;
    }
    if std::env::var_os("CTRL_EXEC_WRITE_DOCS").is_some() {
        std::fs::write(&path, wanted).expect("docs/api.md can be written");
        return;
    }
    panic!("docs/api.md does not hold this table (CTRL_EXEC_WRITE_DOCS=1 writes it):\n{table}");
}
