//! What the tests of pairing share: a dispatcher in pairing mode, an agent that asks, and a stranger who speaks the protocol by hand.

// Helpers of tests stop as tests do; clippy's exceptions for tests reach only the test functions themselves.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::process::Command;
use std::sync::Mutex;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::common::fleet::{self, new_dispatcher, start_pairing};
use crate::common::openssl::openssl;
use crate::common::process::{self, Run};
use crate::common::tls::{Client, TLS13};
use crate::common::{Daemon, Host, PATIENCE, free_port, wait_until};

pub const CERT: &str = "etc/ctrl-exec-agent/agent.crt";
pub const KEY: &str = "etc/ctrl-exec-agent/agent.key";
pub const CA: &str = "etc/ctrl-exec-agent/ca.crt";
pub const MAP: &str = "var/lib/ctrl-exec-agent/ctrl-exec-dispatchers";
pub const QUEUE: &str = "var/lib/ctrl-exec/pairing";
pub const PID_FILE: &str = "var/lib/ctrl-exec/pairing-mode.pid";

/// Runs a program in a terminal of its own: `terminal.py [PATTERN ANSWER]... -- PROGRAM ARGS`.
pub const TERMINAL: &str = include_str!("terminal.py");

/// A dispatcher in pairing mode in the foreground.
pub struct Hall {
    pub host: Host,
    pub port: u16,
    pub mode: Daemon,
}

impl Hall {
    /// Without a rate limit: every test comes from the same address.
    #[track_caller]
    pub fn open() -> Self {
        Self::open_with("pairing_rate_limit_disable = true\n", &[])
    }

    /// With these lines in `ctrl-exec.toml` and options of `pairing-mode`.
    #[track_caller]
    pub fn open_with(lines: &str, options: &[&str]) -> Self {
        let host = new_dispatcher("ctl.test");
        configure(&host, lines);
        Self::of(host, options)
    }

    #[track_caller]
    pub fn of(host: Host, options: &[&str]) -> Self {
        let port = free_port();
        let mode = start_pairing(&host, port, options);
        Self { host, port, mode }
    }

    /// An agent that asks, in the background of the test.
    #[track_caller]
    pub fn ask(&self, agent: &Host, options: &[&str]) -> Daemon {
        ask(agent, self.port, options)
    }

    /// The same, waiting until the request is in the queue; answers its id too.
    #[track_caller]
    pub fn ask_and_queue(&self, agent: &Host, options: &[&str]) -> (Daemon, String) {
        let request = self.ask(agent, options);
        let id = self.id_of(agent.name());
        (request, id)
    }

    #[track_caller]
    pub fn id_of(&self, name: &str) -> String {
        let waiting = fleet::wait_for_request(&self.host, name);
        waiting["id"].as_str().unwrap().to_owned()
    }

    /// Pairs to the end.
    #[track_caller]
    pub fn pair(&self, agent: &Host, options: &[&str]) {
        let (mut request, id) = self.ask_and_queue(agent, options);
        self.host.ced(&["approve", "--replace", &id]).ok();
        succeeds(&mut request);
    }

    /// A stranger on the pairing port, after the handshake.
    pub fn knock(&self) -> io::Result<Client> {
        Client::connect(self.address(), None, TLS13)
    }

    pub fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.port))
    }

    /// Sends one body as an older agent does and reads the answer.
    #[track_caller]
    pub fn post(&self, body: &[u8]) -> (Client, Value) {
        let mut client = self.knock().unwrap();
        client.send(message(body)).unwrap();
        let reply = client.reply().unwrap();
        assert_eq!(reply.status, 200, "{}", reply.head);
        let answer = reply.json();
        (client, answer)
    }

    /// Ends the session as `stop` does.
    #[track_caller]
    pub fn close(&mut self) {
        self.mode.signal(Signal::TERM);
        assert!(self.mode.wait(PATIENCE).success());
    }

    pub fn registered(&self, name: &str) -> bool {
        self.host.exists(&record_path(name))
    }

    /// Names in the queue directory, without those that begin with a dot.
    pub fn queue(&self) -> Vec<String> {
        names(&self.host, QUEUE)
            .into_iter()
            .filter(|n| !n.starts_with('.'))
            .collect()
    }
}

/// Adds lines before everything else in `ctrl-exec.toml`.
pub fn configure(host: &Host, lines: &str) {
    let path = "etc/ctrl-exec/ctrl-exec.toml";
    let text = format!("{lines}{}", host.read(path));
    host.write(path, text, 0o640);
}

pub fn record_path(name: &str) -> String {
    format!("var/lib/ctrl-exec/agents/{name}.json")
}

#[track_caller]
pub fn ask(agent: &Host, port: u16, options: &[&str]) -> Daemon {
    agent.start("cea", &words(&port.to_string(), options))
}

/// The same, to its end.
#[track_caller]
pub fn ask_now(agent: &Host, port: u16, options: &[&str]) -> Run {
    agent.cea(&words(&port.to_string(), options))
}

fn words<'a>(port: &'a str, options: &[&'a str]) -> Vec<&'a str> {
    let fixed = [
        "request-pairing",
        "--dispatcher",
        "127.0.0.1",
        "--port",
        port,
    ];
    [&fixed[..], options].concat()
}

#[track_caller]
pub fn succeeds(request: &mut Daemon) {
    let status = request.wait(PATIENCE);
    assert!(
        status.success(),
        "{status}\n{}{}",
        request.out(),
        request.err()
    );
}

/// Waits for the end with code 1; answers what it said on stderr.
#[track_caller]
pub fn fails(request: &mut Daemon) -> String {
    let status = request.wait(PATIENCE);
    assert_eq!(status.code(), Some(1), "{}{}", request.out(), request.err());
    request.err()
}

/// The value behind a label at the beginning of a line.
pub fn line_of(text: &str, label: &str) -> Option<String> {
    text.lines()
        .find_map(|l| l.strip_prefix(label))
        .map(|v| v.trim().to_owned())
}

/// The code on the agent's screen.
#[track_caller]
pub fn code_of(request: &mut Daemon) -> String {
    request.wait_for_text("Request id:");
    line_of(&request.out(), "Pairing code: ").unwrap()
}

/// Everything in a directory of a host, sorted; a missing one is empty.
pub fn names(host: &Host, dir: &str) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(host.path(dir)) else {
        return Vec::new();
    };
    let mut names: Vec<String> = entries
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// The files of a pairing on the agent, as bytes.
pub fn pairing_of(agent: &Host) -> BTreeMap<&'static str, Option<Vec<u8>>> {
    [CERT, KEY, CA, MAP]
        .into_iter()
        .map(|path| (path, std::fs::read(agent.path(path)).ok()))
        .collect()
}

#[track_caller]
pub fn assert_unpaired(agent: &Host) {
    for (path, content) in pairing_of(agent) {
        assert!(content.is_none(), "{path} was written");
    }
    agent.cea(&["paired"]).expect_code(1);
}

/// Pairs `<serial> <id>` of the trust map.
pub fn map_of(agent: &Host) -> Vec<(String, String)> {
    let text = agent.read(MAP);
    text.lines()
        .filter(|l| !l.starts_with('#'))
        .filter_map(|l| l.split_once(' '))
        .map(|(serial, id)| (serial.to_owned(), id.to_owned()))
        .collect()
}

/// An HTTP request as an older agent frames it.
pub fn message(body: &[u8]) -> Vec<u8> {
    let mut bytes = format!(
        "POST /pair HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    )
    .into_bytes();
    bytes.extend_from_slice(body);
    bytes
}

/// A certificate request for a name, made once per name.
pub fn csr(name: &str) -> String {
    static MADE: Mutex<BTreeMap<String, String>> = Mutex::new(BTreeMap::new());
    let mut made = MADE.lock().unwrap();
    made.entry(name.to_owned())
        .or_insert_with(|| {
            csr_with(
                &format!("/CN={name}"),
                &["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"],
            )
        })
        .clone()
}

/// A certificate request for a subject with these options of `openssl req`.
pub fn csr_with(subject: &str, options: &[&str]) -> String {
    let key = tempfile::NamedTempFile::new().unwrap();
    let path = key.path().to_str().unwrap();
    let fixed = ["req", "-new", "-nodes", "-keyout", path, "-subj", subject];
    openssl(&[&fixed[..], options].concat())
}

/// The request of an older agent.
pub fn basic_request(name: &str) -> Value {
    json!({
        "hostname": name, "csr": csr(name), "nonce": "00112233445566778899aabbccddeeff",
        "ip": "127.0.0.1", "port": 7443, "lookup_by": "ip",
    })
}

/// Runs one of our programs at a terminal, answering what it asks.
#[track_caller]
pub fn at_terminal(host: &Host, program: &str, talk: &[&str], args: &[&str]) -> Daemon {
    let script = host.write("tmp/terminal.py", TERMINAL, 0o644);
    let real = host.command(program);
    let mut command = Command::new("python3");
    command.arg("-u").arg(script).args(talk).arg("--");
    command.arg(real.get_program()).args(args).env_clear();
    for (key, value) in real.get_envs() {
        command.env(key, value.unwrap_or_default());
    }
    command.stdin(std::process::Stdio::null());
    Daemon::start(&mut command)
}

/// A background session of `pairing-mode start`, ended with the test.
pub struct Started<'a>(pub &'a Host);

impl Started<'_> {
    pub fn pid(&self) -> i32 {
        self.0.read(PID_FILE).trim().parse().unwrap()
    }
}

impl Drop for Started<'_> {
    fn drop(&mut self) {
        let _ = process::run(self.0.command("ced").args(["pairing-mode", "stop"]));
    }
}

/// Does a process exist, not counting one that only waits to be collected?
pub fn lives(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        !stat
            .rsplit(')')
            .next()
            .unwrap_or_default()
            .starts_with(" Z")
    })
}

/// Processes whose command line holds all the texts.
pub fn processes(texts: &[&str]) -> Vec<i32> {
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .filter_map(|e| e.ok()?.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| {
            let words = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let words = String::from_utf8_lossy(&words).replace('\0', " ");
            texts.iter().all(|t| words.contains(t)) && lives(*pid)
        })
        .collect()
}

/// Waits until the request has ended one way or the other in the dispatcher's log.
#[track_caller]
pub fn wait_for_action(host: &Host, action: &str, id: &str) -> String {
    wait_until(&format!("{action} of {id}"), PATIENCE, || {
        host.log_of(action)
            .into_iter()
            .find(|l| l.field("REQID").as_deref() == Some(id))
            .map(|l| l.text)
    })
}
