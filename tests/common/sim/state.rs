//! What one simulated agent knows, and what it answers (spec/agent.md 9, 12, 14 to 16). No bytes are read or sent here.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

use super::certificates::{House, Live, Presented};
use super::serials::{TrustFile, live};

pub const VERSION: &str = "0.12.3";

/// A request that was answered, or whose answer was lost.
#[derive(Clone, Debug)]
pub struct Request {
    /// Serial of the caller's certificate, minimal lower-case hex; empty without one.
    pub serial: String,
    pub method: String,
    pub path: String,
    /// `Null` if it was no JSON.
    pub body: Value,
    /// Status of the answer; 0 if the handler died without one, as the original's do.
    pub status: u16,
    /// [`lose_reply_of`](super::SimAgent::lose_reply_of) took the answer away.
    pub lost: bool,
}

/// Volume limit of the original (spec/agent.md 16); its values are the default.
#[derive(Clone, Copy, Debug)]
pub struct Limit {
    pub connections: usize,
    pub window: Duration,
    pub block: Duration,
}

impl Default for Limit {
    fn default() -> Self {
        Self {
            connections: 10,
            window: Duration::from_secs(60),
            block: Duration::from_secs(300),
        }
    }
}

/// What the limiter knows of one address.
#[derive(Debug, Default)]
struct Source {
    seen: Vec<Instant>,
    blocked_until: Option<Instant>,
}

#[derive(Debug)]
struct Job {
    script: String,
    done: bool,
}

/// Status and body; `None`: the handler dies without a word.
pub type Answer = Option<(u16, Value)>;

#[derive(Debug)]
pub struct State {
    pub map: TrustFile,
    pub fqdn: String,
    pub staged: Option<Live>,
    pub requests: Vec<Request>,
    /// What the next `/renew` answers in place of a request of its own.
    pub request: Option<String>,
    /// Paths whose next answer gets lost.
    pub losing: Vec<String>,
    pub hold_runs: bool,
    pub limit: Option<Limit>,
    presented: Arc<Presented>,
    sources: BTreeMap<IpAddr, Source>,
    /// By owner and reqid.
    jobs: BTreeMap<(String, String), Job>,
}

impl State {
    pub fn new(fqdn: String, map: TrustFile, presented: Arc<Presented>) -> Self {
        Self {
            map,
            fqdn,
            staged: None,
            requests: Vec::new(),
            request: None,
            losing: Vec::new(),
            hold_runs: false,
            limit: None,
            presented,
            sources: BTreeMap::new(),
            jobs: BTreeMap::new(),
        }
    }

    /// Whether a connection of this address, its handshake done, is served (spec/agent.md 16).
    pub fn admit(&mut self, from: IpAddr, now: Instant) -> bool {
        let Some(limit) = self.limit else {
            return true;
        };
        let source = self.sources.entry(from).or_default();
        if let Some(end) = source.blocked_until {
            if now < end {
                return false;
            }
            // The entry goes, and this once nothing more is asked.
            *source = Source::default();
        } else {
            source.seen.retain(|&at| now - at < limit.window);
            if source.seen.len() >= limit.connections {
                source.blocked_until = Some(now + limit.block);
                return false;
            }
        }
        source.seen.push(now);
        true
    }

    /// What a restart or SIGHUP forgets.
    pub fn forget_sources(&mut self) {
        self.sources.clear();
    }

    /// Start with a staged certificate (spec/agent.md 15.3): installed, or deleted if it is no good.
    pub fn restart(&mut self) -> bool {
        self.forget_sources();
        match self.staged.take() {
            None => false,
            Some(new) => {
                *self.presented.0.lock().unwrap() = new;
                true
            }
        }
    }

    pub fn finish_runs(&mut self) {
        for job in self.jobs.values_mut() {
            job.done = true;
        }
    }

    /// Routes and answers one request. `serial` is that of the caller's certificate, as bytes; empty without one.
    pub fn answer(
        &mut self,
        house: &House,
        serial: &[u8],
        method: &str,
        path: &str,
        body: &[u8],
    ) -> Answer {
        let open = matches!((method, path), ("POST", "/renew" | "/renew-complete"));
        let result = path.strip_prefix("/result/").filter(|id| is_reqid(id));
        let known =
            open || matches!(
                (method, path),
                ("POST", "/run" | "/ping" | "/rotate-serial") | ("GET", "/capabilities")
            ) || (method == "GET" && result.is_some());
        if !known {
            return Some((404, json!({"error": "not found"})));
        }
        let caller = match self.map.find(&live(serial)) {
            Some(id) => id,
            None if open => String::new(),
            None if path == "/capabilities" => return Some((403, json!({"error": "forbidden"}))),
            None => {
                return Some((
                    403,
                    json!({"error": "serial mismatch", "status": "forbidden"}),
                ));
            }
        };
        if let Some(reqid) = result {
            return Some(self.result(&caller, reqid));
        }
        if path == "/capabilities" {
            return Some((200, self.capabilities()));
        }
        let parsed = match serde_json::from_slice(body) {
            Ok(Value::Object(map)) => Some(map),
            Ok(Value::Null) => Some(Map::new()),
            Ok(_) => return None,
            Err(_) => None,
        };
        if path == "/run" {
            return Some(match parsed {
                None => (200, json!({"exit": -1, "error": "invalid JSON"})),
                Some(request) => self.run(&caller, &request),
            });
        }
        let request = parsed.unwrap_or_default();
        let reqid = request.get("reqid").cloned().unwrap_or(Value::Null);
        let reply = match path {
            "/ping" => json!({
                "status": "ok",
                "host": self.fqdn,
                "version": VERSION,
                "expiry": self.presented.0.lock().unwrap().expiry(),
                "staged": self.staged.is_some(),
                "reqid": reqid,
            }),
            "/rotate-serial" => self.rotate(&caller, &request),
            "/renew" => {
                let made = || house.request(&self.fqdn);
                json!({"status": "ok", "csr": self.request.take().unwrap_or_else(made), "reqid": reqid})
            }
            _ => match self.renew_complete(house, text(&request, "cert")) {
                Ok(()) => json!({"status": "ok", "reqid": reqid, "staged": true}),
                Err(why) => json!({"status": "error", "error": why}),
            },
        };
        Some((200, reply))
    }

    fn rotate(&mut self, caller: &str, request: &Map<String, Value>) -> Value {
        let error = |why: &str| json!({"status": "error", "error": why});
        let serial = text(request, "serial");
        if serial.is_empty() {
            return error("serial required");
        }
        let action = match text(request, "action") {
            "" => "add",
            action => action,
        };
        let done = match action {
            "add" => self.map.add(serial, caller),
            "remove" => self.map.remove(serial, caller),
            other => Err(format!("invalid action '{other}'")),
        };
        match done {
            Ok(()) => {
                // SIGHUP to the parent.
                self.forget_sources();
                json!({"status": "ok", "action": action, "serial": serial, "dispatcher": caller})
            }
            Err(why) => error(&why),
        }
    }

    fn renew_complete(&mut self, house: &House, cert: &str) -> Result<(), String> {
        if cert.is_empty() {
            return Err("cert required".to_owned());
        }
        self.staged = Some(house.live(house.acceptable(cert)?));
        Ok(())
    }

    /// Every script exists, ends with 0 and prints the request that it came with.
    fn run(&mut self, caller: &str, request: &Map<String, Value>) -> (u16, Value) {
        let (script, reqid) = (text(request, "script"), text(request, "reqid"));
        if request.get("args").is_some_and(|args| !args.is_array()) {
            let error = json!({"exit": -1, "error": "args must be an array", "reqid": reqid});
            return (200, error);
        }
        if !is_true(request.get("async")) {
            let stdout = format!("{}\n", Value::Object(request.clone()));
            return (
                200,
                json!({"script": script, "exit": 0, "stdout": stdout, "stderr": "", "reqid": reqid}),
            );
        }
        if !is_reqid(reqid) {
            return (
                200,
                json!({"script": script, "exit": -1, "reqid": reqid, "error": "async run requires a valid reqid"}),
            );
        }
        if self.jobs.values().any(|j| !j.done && j.script == script) {
            return (
                409,
                json!({"script": script, "status": "busy", "reqid": reqid, "error": "script already running"}),
            );
        }
        let job = Job {
            script: script.to_owned(),
            done: !self.hold_runs,
        };
        self.jobs.insert((caller.to_owned(), reqid.to_owned()), job);
        (
            202,
            json!({"script": script, "status": "accepted", "reqid": reqid}),
        )
    }

    fn result(&self, caller: &str, reqid: &str) -> (u16, Value) {
        let key = (caller.to_owned(), reqid.to_owned());
        let Some(job) = self.jobs.get(&key) else {
            return (404, json!({"status": "unknown", "reqid": reqid}));
        };
        let mut record = json!({
            "reqid": reqid, "script": job.script, "owner": caller,
            "status": "running", "started": "2026-01-02T03:04:05Z",
        });
        if job.done {
            record["status"] = "done".into();
            record["finished"] = "2026-01-02T03:04:06Z".into();
            record["exit"] = 0.into();
            record["stdout"] = "".into();
            record["stderr"] = "".into();
        }
        (200, record)
    }

    fn capabilities(&self) -> Value {
        json!({
            "status": "ok",
            "host": self.fqdn,
            "version": VERSION,
            "tags": {"env": "sim"},
            "scripts": [{"name": "hello", "path": "/opt/scripts/hello", "executable": true, "profile": "default"}],
        })
    }
}

/// The text of a field; empty when it is not there or something else.
fn text<'a>(request: &'a Map<String, Value>, key: &str) -> &'a str {
    request.get(key).and_then(Value::as_str).unwrap_or_default()
}

fn is_reqid(text: &str) -> bool {
    !text.is_empty()
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
}

/// Truth as Perl has it.
fn is_true(value: Option<&Value>) -> bool {
    match value {
        None | Some(Value::Null) => false,
        Some(Value::Bool(flag)) => *flag,
        Some(Value::Number(number)) => number.as_f64() != Some(0.0),
        Some(Value::String(text)) => !text.is_empty() && text != "0",
        Some(Value::Array(_) | Value::Object(_)) => true,
    }
}
