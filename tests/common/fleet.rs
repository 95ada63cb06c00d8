//! Fleets: laid down as the original leaves them ([`Legacy`]), or really paired by our own programs ([`Paired`]).

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use super::host::Host;
use super::openssl::{Authority, Dates, Leaf};
use super::process::{Daemon, Run};
use super::{PATIENCE, free_port, python, wait_until};

/// A running `cea serve`; killed when dropped.
#[derive(Debug)]
pub struct Agent {
    daemon: Daemon,
    address: SocketAddr,
}

impl Agent {
    /// Starts the agent of a host and waits until it listens.
    #[track_caller]
    pub fn start(host: &Host) -> Self {
        let mut daemon = host.start("cea", &["serve"]);
        daemon.wait_for_text("listening on ");
        let said = daemon.err();
        let at = said.find("listening on ").expect("waited for it") + "listening on ".len();
        let text = said[at..].split_whitespace().next().unwrap_or_default();
        let address: SocketAddr = text
            .parse()
            .unwrap_or_else(|e| panic!("'listening on {text}': {e}"));
        let start = host.wait_for_log(&["ACTION=start", &format!("PORT={}", address.port())]);
        assert_eq!(start.ident, "ctrl-exec-agent");
        Self { daemon, address }
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Where to reach it over loopback.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.port()))
    }

    /// What it told to listen on.
    pub fn bound(&self) -> SocketAddr {
        self.address
    }

    pub fn pid(&self) -> u32 {
        self.daemon.pid()
    }

    pub fn hup(&self) {
        self.daemon.signal(rustix::process::Signal::HUP);
    }

    pub fn term(&self) {
        self.daemon.signal(rustix::process::Signal::TERM);
    }

    pub fn is_running(&mut self) -> bool {
        self.daemon.is_running()
    }

    pub fn daemon(&mut self) -> &mut Daemon {
        &mut self.daemon
    }

    /// Peak resident memory so far, KiB.
    pub fn peak_rss_kib(&self) -> u64 {
        status_kib(self.pid(), "VmHWM:")
    }

    /// Open file descriptors.
    pub fn open_files(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.pid()))
            .unwrap()
            .count()
    }
}

/// A line of `/proc/PID/status`, KiB.
pub fn status_kib(pid: u32, key: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|l| l.starts_with(key)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Rate limits would block the one loopback address that every test comes from; tests about them set their own.
const UNLIMITED_CONF: &str = "rate_limit_disable = 1\n";
const UNLIMITED_TOML: &str = "rate_limit_disable = true\n";

// ---- as the original leaves it ----

/// `ctrl-exec.conf` as the original ships it.
pub const DISPATCHER_CONF: &str = "\
# ctrl-exec configuration

cert = /etc/ctrl-exec/dispatcher.crt
key  = /etc/ctrl-exec/dispatcher.key
ca   = /etc/ctrl-exec/ca.crt
auth_hook = /etc/ctrl-exec/auth-hook
# read_timeout = 60
";

/// A dispatcher host of the original: configuration, CA, certificate, hook, empty registry.
pub fn legacy_dispatcher(authority: &Authority, leaf: &Leaf) -> Host {
    let host = Host::new("ctl.test");
    host.write("etc/ctrl-exec/ctrl-exec.conf", DISPATCHER_CONF, 0o640);
    host.write("etc/ctrl-exec/ca.key", authority.key_pem(), 0o600);
    host.write("etc/ctrl-exec/ca.crt", authority.cert_pem(), 0o644);
    host.write("etc/ctrl-exec/ca.serial", "0F\n", 0o600);
    host.write("etc/ctrl-exec/dispatcher.crt", leaf.cert_pem(), 0o644);
    host.write("etc/ctrl-exec/dispatcher.key", leaf.key_pem(), 0o600);
    host.write("etc/ctrl-exec/auth-hook", "#!/bin/sh\nexit 0\n", 0o755);
    for dir in ["agents", "pairing", "locks", "runs"] {
        std::fs::create_dir_all(host.path("var/lib/ctrl-exec").join(dir)).unwrap();
    }
    host
}

/// An agent host of the original. `map` is the trust map as it stands in the file.
pub fn legacy_agent(name: &str, authority: &Authority, leaf: &Leaf, port: u16, map: &str) -> Host {
    let host = Host::new(name);
    let conf = format!(
        "# ctrl-exec-agent configuration\n\
         port = {port}\n\
         cert = /etc/ctrl-exec-agent/agent.crt\n\
         key = /etc/ctrl-exec-agent/agent.key\n\
         ca = /etc/ctrl-exec-agent/ca.crt\n\
         script_dirs = {}\n\
         {UNLIMITED_CONF}\
         \n\
         [tags]\n\
         env = test\n\
         \n\
         [profile default]\n\
         no_new_privileges = yes\n",
        host.path("opt/scripts").display()
    );
    host.write("etc/ctrl-exec-agent/agent.conf", conf, 0o640);
    host.write("etc/ctrl-exec-agent/agent.crt", leaf.cert_pem(), 0o640);
    host.write("etc/ctrl-exec-agent/agent.key", leaf.key_pem(), 0o640);
    host.write("etc/ctrl-exec-agent/ca.crt", authority.cert_pem(), 0o644);
    host.write("var/lib/ctrl-exec-agent/ctrl-exec-dispatchers", map, 0o644);
    let mut scripts = String::from("# name = path\n");
    for (script, path) in standard_scripts(&host) {
        scripts.push_str(&format!("{script} = {path}\n"));
    }
    host.write("etc/ctrl-exec-agent/scripts.conf", scripts, 0o640);
    host
}

/// The trust map as the original writes it.
pub fn legacy_map(rows: &[(&str, &str)]) -> String {
    let mut text = String::from("# ctrl-exec trusted dispatchers\n# <serial> <dispatcher id>\n");
    for (serial, id) in rows {
        text.push_str(&format!("{serial} {id}\n"));
    }
    text
}

/// The twelve fields of a registry record as pairing of the original writes them.
pub fn legacy_record(name: &str, port: u16, leaf: &Leaf, dispatcher_serial: &str) -> Value {
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    legacy_record_at(name, address, &leaf.expiry(), dispatcher_serial)
}

/// The same for an agent at any address.
pub fn legacy_record_at(
    name: &str,
    address: SocketAddr,
    expiry: &str,
    dispatcher_serial: &str,
) -> Value {
    json!({
        "hostname": name,
        "ip": address.ip().to_string(),
        "paired": "2026-01-02T03:04:05Z",
        "expiry": expiry,
        "reqid": "0123456789abcdef",
        "lookup_by": "ip",
        "port": address.port(),
        "tags": {},
        "dispatcher_serial": dispatcher_serial,
        "serial_status": "current",
        "serial_broadcast": "",
        "serial_confirmed": "2026-01-02T03:04:05Z",
    })
}

pub fn register(dispatcher: &Host, record: &Value) {
    let name = record["hostname"].as_str().unwrap();
    dispatcher.write(
        &format!("var/lib/ctrl-exec/agents/{name}.json"),
        record.to_string(),
        0o644,
    );
}

/// A dispatcher and agents made by openssl and by hand, as 0.12.3 leaves them; the agents are not started.
#[derive(Debug)]
pub struct Legacy {
    pub dispatcher: Host,
    pub dispatcher_leaf: Leaf,
    pub agents: Vec<Host>,
    pub agent_leaves: Vec<Leaf>,
    pub ports: Vec<u16>,
}

impl Legacy {
    /// Serials as the original hands them out: the dispatcher has 2, the agents 3, 4, ...
    pub fn new(names: &[&str]) -> Self {
        Self::with_dispatcher_serial(names, "02", "2")
    }

    /// The dispatcher's serial (hex, as in its certificate) and the text that stands for it in the agents' trust maps.
    pub fn with_dispatcher_serial(names: &[&str], serial: &str, row: &str) -> Self {
        let authority = Authority::shared();
        let dispatcher_leaf = authority.issue("ctrl-exec-dispatcher", serial, Dates::Days(825));
        let dispatcher = legacy_dispatcher(authority, &dispatcher_leaf);
        let (mut agents, mut agent_leaves, mut ports) = (Vec::new(), Vec::new(), Vec::new());
        for (index, name) in names.iter().enumerate() {
            let leaf = authority.issue(name, &format!("{:02X}", index + 3), Dates::Days(825));
            let port = free_port();
            agents.push(legacy_agent(
                name,
                authority,
                &leaf,
                port,
                &legacy_map(&[(row, "ctl")]),
            ));
            register(&dispatcher, &legacy_record(name, port, &leaf, row));
            agent_leaves.push(leaf);
            ports.push(port);
        }
        Self {
            dispatcher,
            dispatcher_leaf,
            agents,
            agent_leaves,
            ports,
        }
    }

    #[track_caller]
    pub fn start(&self) -> Vec<Agent> {
        self.agents.iter().map(Agent::start).collect()
    }

    #[track_caller]
    pub fn ced(&self, args: &[&str]) -> Run {
        self.dispatcher.ced(args)
    }
}

/// Scripts that every agent of the tests allows.
fn standard_scripts(host: &Host) -> Vec<(&'static str, String)> {
    [
        (
            "hello",
            r#"printf 'hello from %s:' "$0"; printf ' [%s]' "$@"; echo"#,
        ),
        ("fail", "echo out; echo err >&2; exit 42"),
        ("context", "cat"),
        ("environment", "env | sort"),
        ("true", "exit 0"),
    ]
    .into_iter()
    .map(|(name, body)| (name, host.script(name, body).display().to_string()))
    .collect()
}

// ---- ours ----

/// A dispatcher host set up by `ced setup-ca` and `ced setup-ctrl-exec`.
#[track_caller]
pub fn new_dispatcher(name: &str) -> Host {
    new_dispatcher_with(name, &[])
}

/// The same with options for both commands (`--key-type rsa-2048`).
#[track_caller]
pub fn new_dispatcher_with(name: &str, options: &[&str]) -> Host {
    let host = Host::new(name);
    host.ced(&[&["setup-ca"], options].concat()).ok();
    host.ced(&[&["setup-ctrl-exec"], options].concat()).ok();
    host
}

/// An agent host that is not paired yet.
pub fn new_agent(name: &str, port: u16) -> Host {
    let host = Host::new(name);
    write_agent_toml(&host, port, UNLIMITED_TOML);
    let mut scripts = String::new();
    for (script, path) in standard_scripts(&host) {
        scripts.push_str(&format!("[scripts.{script}]\npath = \"{path}\"\n\n"));
    }
    host.write("etc/ctrl-exec-agent/scripts.toml", scripts, 0o640);
    host
}

/// Writes `agent.toml` with these lines beside the necessary ones.
pub fn write_agent_toml(host: &Host, port: u16, lines: &str) {
    let text = format!("port = {port}\n{lines}\n[tags]\nenv = \"test\"\n\n[profile.default]\n");
    host.write("etc/ctrl-exec-agent/agent.toml", text, 0o640);
}

/// Adds a script to the allowlist of a host that [`new_agent`] made.
pub fn allow(host: &Host, name: &str, body: &str) {
    let path = host.script(name, body);
    allow_path(host, name, &path);
}

/// The same for a path that need not exist.
pub fn allow_path(host: &Host, name: &str, path: &Path) {
    let mut scripts = host.read("etc/ctrl-exec-agent/scripts.toml");
    scripts.push_str(&format!(
        "[scripts.{name}]\npath = \"{}\"\n\n",
        path.display()
    ));
    host.write("etc/ctrl-exec-agent/scripts.toml", scripts, 0o640);
}

/// `ced pairing-mode` in the foreground, without a terminal; waits until it listens.
#[track_caller]
pub fn start_pairing(dispatcher: &Host, port: u16, options: &[&str]) -> Daemon {
    let port_text = port.to_string();
    let words = [
        &["pairing-mode", "--timeout", "60", "--port", &port_text],
        options,
    ]
    .concat();
    let mut daemon = dispatcher.start("ced", &words);
    let line = format!("PORT={port}");
    wait_until("pairing-mode listens", PATIENCE, || {
        let listening = dispatcher
            .log_of("pairing-mode-start")
            .iter()
            .any(|l| l.text.contains(&line));
        assert!(
            daemon.is_running(),
            "pairing-mode ended: {}{}",
            daemon.out(),
            daemon.err()
        );
        listening.then_some(())
    });
    daemon
}

/// The waiting pairing requests, as `list-requests --json` shows them.
#[track_caller]
pub fn requests(dispatcher: &Host) -> Vec<Value> {
    match dispatcher.ced(&["list-requests", "--json"]).ok().json() {
        Value::Object(mut listing) => match listing.remove("requests") {
            Some(Value::Array(requests)) => requests,
            other => panic!("no requests in {other:?}"),
        },
        other => panic!("list-requests --json is not an object: {other}"),
    }
}

/// Waits for the request of a host and answers its record.
#[track_caller]
pub fn wait_for_request(dispatcher: &Host, name: &str) -> Value {
    wait_until(&format!("request of {name}"), PATIENCE, || {
        requests(dispatcher)
            .into_iter()
            .find(|r| r["hostname"] == name)
    })
}

/// Pairs an agent host with a dispatcher that is in pairing mode on `port`, approving by id.
#[track_caller]
pub fn pair(dispatcher: &Host, agent: &Host, port: u16) {
    let port = port.to_string();
    let mut request = agent.start(
        "cea",
        &[
            "request-pairing",
            "--dispatcher",
            "127.0.0.1",
            "--port",
            &port,
            "--lookup-by",
            "ip",
        ],
    );
    let waiting = wait_for_request(dispatcher, agent.name());
    let id = waiting["id"].as_str().unwrap().to_owned();
    dispatcher.ced(&["approve", &id]).ok();
    let status = request.wait(PATIENCE + Duration::from_secs(10));
    assert!(
        status.success(),
        "request-pairing failed: {}{}",
        request.out(),
        request.err()
    );
}

/// Pairs the stand-in for an agent of 0.12.3 by this name and starts it; it calls itself `legacy.test`.
#[track_caller]
pub fn old_agent(dispatcher: &Host, name: &str) -> (Host, Daemon) {
    let old = Host::new(name);
    let (port, agent_port) = (free_port(), free_port().to_string());
    let dir = old.path("tmp");
    let _pairing = start_pairing(dispatcher, port, &[]);
    let script = old.write("tmp/agent.py", python::LEGACY_AGENT, 0o644);
    let mut request = Daemon::start(
        std::process::Command::new("python3")
            .arg("-u")
            .arg(script)
            .args(["pair", &port.to_string(), name])
            .arg(&dir)
            .arg(&agent_port),
    );
    let waiting = wait_for_request(dispatcher, name);
    let id = waiting["id"].as_str().unwrap();
    dispatcher.ced(&["approve", id]).ok();
    assert!(
        request.wait(PATIENCE).success(),
        "{}{}",
        request.out(),
        request.err()
    );
    let words = ["serve", &agent_port, python::text(&dir)];
    let agent = python::start(&old, python::LEGACY_AGENT, &words);
    (old, agent)
}

/// A dispatcher and agents that were paired through the real protocol; the agents are not started.
#[derive(Debug)]
pub struct Paired {
    pub dispatcher: Host,
    pub agents: Vec<Host>,
    pub ports: Vec<u16>,
}

impl Paired {
    #[track_caller]
    pub fn new(names: &[&str]) -> Self {
        let dispatcher = new_dispatcher("ctl.test");
        Self::with(dispatcher, names)
    }

    #[track_caller]
    pub fn with(dispatcher: Host, names: &[&str]) -> Self {
        let port = free_port();
        let mut pairing = start_pairing(&dispatcher, port, &[]);
        let (mut agents, mut ports) = (Vec::new(), Vec::new());
        for name in names {
            let agent_port = free_port();
            let agent = new_agent(name, agent_port);
            pair(&dispatcher, &agent, port);
            agents.push(agent);
            ports.push(agent_port);
        }
        pairing.signal(rustix::process::Signal::TERM);
        assert!(
            pairing.wait(PATIENCE).success(),
            "{}{}",
            pairing.out(),
            pairing.err()
        );
        Self {
            dispatcher,
            agents,
            ports,
        }
    }

    #[track_caller]
    pub fn start(&self) -> Vec<Agent> {
        self.agents.iter().map(Agent::start).collect()
    }

    #[track_caller]
    pub fn ced(&self, args: &[&str]) -> Run {
        self.dispatcher.ced(args)
    }

    /// The dispatcher's own certificate and key, to play the dispatcher by hand.
    pub fn dispatcher_leaf(&self) -> Leaf {
        Leaf {
            cert: self.dispatcher.path("etc/ctrl-exec/dispatcher.crt"),
            key: self.dispatcher.path("etc/ctrl-exec/dispatcher.key"),
            cn: "ctrl-exec-dispatcher".to_owned(),
        }
    }

    /// An agent's certificate and key.
    pub fn agent_leaf(&self, index: usize) -> Leaf {
        Leaf {
            cert: self.agents[index].path("etc/ctrl-exec-agent/agent.crt"),
            key: self.agents[index].path("etc/ctrl-exec-agent/agent.key"),
            cn: self.agents[index].name().to_owned(),
        }
    }
}
