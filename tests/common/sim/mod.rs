//! Many agents of release 0.12.3 in this process, each on a loopback address of its own, for tests of what happens to certificates in
//! a fleet. They keep the original's rules about serials to the letter ([`serials`]) and can be told to fail.
//!
//! Up to [`MANY`] agents have ports of 127.0.0.1 and certificates of version 1 made by openssl; larger fleets share one port on addresses
//! 127.x.y.z, and their certificates cost no process.

mod certificates;
mod connection;
pub mod serials;
mod state;

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use rcgen::{Issuer, KeyPair};
use rustls::ServerConfig;
use serde_json::Value;
use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

use super::fleet::{legacy_map, legacy_record_at, register};
use super::host::Host;
use super::openssl::Authority;
use super::{PATIENCE, free_port, wait_until};
use certificates::{House, Live, Presented};
use serials::TrustFile;
use state::State;
pub use state::{Limit, Request};

/// Largest fleet whose agents have ports of their own and certificates by openssl.
pub const MANY: usize = 50;

/// The dispatcher id that stands in the agents' trust maps.
pub const DISPATCHER: &str = "ctl";

/// A fleet to be made.
#[derive(Clone, Debug)]
pub struct Plan {
    pub count: usize,
    /// Every agent's trust map, as text of the file.
    pub map: String,
    /// Validity of the agents' certificates, from now on.
    pub days: u32,
    /// Serial of the first agent's certificate; the next ones follow.
    pub first_serial: u32,
}

impl Plan {
    /// `trusted` is the dispatcher's serial as it stands in the file, for example what [`serials::left_by_pairing`] says.
    pub fn new(count: usize, trusted: &str) -> Self {
        Self {
            count,
            map: legacy_map(&[(trusted, DISPATCHER)]),
            days: 825,
            first_serial: 3,
        }
    }
}

/// The agents; they end with it.
pub struct SimFleet {
    agents: Vec<SimAgent>,
    house: Arc<House>,
    // Last: the agents' sockets live there.
    _workers: Vec<Worker>,
}

impl SimFleet {
    /// Agents `sim0000.test`, `sim0001.test`, ... that trust this text as dispatcher's serial, all up.
    #[track_caller]
    pub fn new(count: usize, authority: &Authority, trusted: &str) -> Self {
        Self::start(&Plan::new(count, trusted), authority)
    }

    #[track_caller]
    pub fn start(plan: &Plan, authority: &Authority) -> Self {
        let house = Arc::new(House::new(authority));
        let many = plan.count > MANY;
        let workers: Vec<Worker> = (0..if many { 2 } else { 1 })
            .map(|_| Worker::start())
            .collect();
        let addresses = addresses(plan.count);
        let certificates = if many {
            raise_limit_of_files();
            issue_many(plan, authority, &house)
        } else {
            let serials = plan.first_serial..;
            let named = (0..plan.count).zip(serials);
            named
                .map(|(at, serial)| house.issue_v1(authority, &name(at), serial, plan.days))
                .collect()
        };
        let agents = addresses.into_iter().zip(certificates).enumerate();
        let agents = agents
            .map(|(at, (address, live))| {
                let presented = Arc::new(Presented(Mutex::new(live)));
                let config = certificates::server(&house, presented.clone());
                let state = State::new(name(at), TrustFile::new(&plan.map), presented.clone());
                let agent = SimAgent {
                    name: name(at),
                    address,
                    house: house.clone(),
                    presented,
                    config,
                    state: Arc::new(Mutex::new(state)),
                    runtime: workers[at % workers.len()].handle.clone(),
                    accepting: Mutex::new(None),
                };
                agent.set_up(true);
                agent
            })
            .collect();
        Self {
            agents,
            house,
            _workers: workers,
        }
    }

    pub fn agents(&self) -> &[SimAgent] {
        &self.agents
    }

    pub fn names(&self) -> Vec<&str> {
        self.agents.iter().map(|a| a.name.as_str()).collect()
    }

    /// Registers all agents as pairing with the original leaves them.
    pub fn register_all(&self, dispatcher: &Host) {
        for agent in &self.agents {
            register(dispatcher, &agent.record());
        }
    }

    /// The agents' clock is off by this many seconds, for the validity of what they are shown.
    pub fn set_clock_offset(&self, seconds: i64) {
        self.house.set_clock_offset(seconds);
    }

    /// All agents at once.
    pub fn set_up(&self, up: bool) {
        for agent in &self.agents {
            agent.set_up(up);
        }
    }

    /// Names of the agents that would let a certificate of this serial (hex) in as dispatcher.
    pub fn trusting(&self, serial: &str) -> Vec<&str> {
        let of = |a: &&SimAgent| a.trusts(serial);
        self.agents
            .iter()
            .filter(of)
            .map(|a| a.name.as_str())
            .collect()
    }
}

impl std::ops::Index<usize> for SimFleet {
    type Output = SimAgent;

    fn index(&self, at: usize) -> &SimAgent {
        &self.agents[at]
    }
}

/// One simulated agent.
pub struct SimAgent {
    name: String,
    address: SocketAddr,
    house: Arc<House>,
    presented: Arc<Presented>,
    config: Arc<ServerConfig>,
    state: Arc<Mutex<State>>,
    runtime: Handle,
    accepting: Mutex<Option<tokio::task::JoinHandle<()>>>,
}

impl SimAgent {
    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its registry record, as pairing leaves it.
    pub fn record(&self) -> Value {
        let serial = self.trusted().into_keys().next().unwrap_or_default();
        let expiry = self.presented.0.lock().unwrap().expiry();
        legacy_record_at(&self.name, self.address, &expiry, &serial)
    }

    /// Down: connections are refused, those that are open go on. What it knows stays.
    #[track_caller]
    pub fn set_up(&self, up: bool) {
        let mut accepting = self.accepting.lock().unwrap();
        if up == accepting.is_some() {
            return;
        }
        if let Some(task) = accepting.take() {
            task.abort();
            wait_until("the listener is closed", PATIENCE, || {
                task.is_finished().then_some(())
            });
            return;
        }
        let listener = TcpListener::bind(self.address)
            .unwrap_or_else(|e| panic!("{}: cannot listen on {}: {e}", self.name, self.address));
        listener.set_nonblocking(true).unwrap();
        let (config, state, house) = (self.config.clone(), self.state.clone(), self.house.clone());
        *accepting = Some(
            self.runtime
                .spawn(connection::accept(listener, config, state, house)),
        );
    }

    /// The trust map as it stands in the file: serial to dispatcher id, before any pass.
    pub fn trusted(&self) -> BTreeMap<String, String> {
        self.state.lock().unwrap().map.raw()
    }

    /// Replaces the text of the trust map, as an operator would.
    pub fn write_map(&self, text: &str) {
        self.state.lock().unwrap().map = TrustFile::new(text);
    }

    /// Would a certificate of this serial (hex) be let in as dispatcher?
    pub fn trusts(&self, serial: &str) -> bool {
        let even = if serial.len() % 2 == 1 {
            format!("0{serial}")
        } else {
            serial.to_ascii_lowercase()
        };
        let key = serials::canonical(&even);
        self.state.lock().unwrap().map.find(&key).is_some()
    }

    /// What came in so far, refused or not, in order.
    pub fn requests(&self) -> Vec<Request> {
        self.state.lock().unwrap().requests.clone()
    }

    /// The requests for one path.
    pub fn requests_for(&self, path: &str) -> Vec<Request> {
        let mut requests = self.requests();
        requests.retain(|r| r.path == path);
        requests
    }

    pub fn forget_requests(&self) {
        self.state.lock().unwrap().requests.clear();
    }

    /// The next request for this path is carried out, and the connection closed without an answer. Once per call.
    pub fn lose_reply_of(&self, path: &str) {
        self.state.lock().unwrap().losing.push(path.to_owned());
    }

    /// The next request for renewal is answered with this text in place of a request for a certificate.
    pub fn request_with(&self, pem: &str) {
        self.state.lock().unwrap().request = Some(pem.to_owned());
    }

    /// Is a renewed certificate waiting for the next start?
    pub fn staged(&self) -> bool {
        self.state.lock().unwrap().staged.is_some()
    }

    /// The certificate that waits, DER.
    pub fn staged_certificate(&self) -> Option<Vec<u8>> {
        let state = self.state.lock().unwrap();
        state.staged.as_ref().map(|s| s.der().to_vec())
    }

    /// A restart: installs what is staged and forgets whom the limiter counted. Answers whether anything was staged.
    pub fn adopt(&self) -> bool {
        self.state.lock().unwrap().restart()
    }

    /// Serial of the certificate that new connections are shown, minimal lower-case hex.
    pub fn presented_serial(&self) -> String {
        self.presented.0.lock().unwrap().serial()
    }

    /// notAfter of that certificate, in openssl's words.
    pub fn expiry(&self) -> String {
        self.presented.0.lock().unwrap().expiry()
    }

    /// What the host calls itself: `host` of answers and the CN of requests for renewal. At first the agent's name.
    pub fn set_fqdn(&self, name: &str) {
        self.state.lock().unwrap().fqdn = name.to_owned();
    }

    /// Limits connections per address; at first there is no limit. Forgets whom it counted.
    pub fn set_limit(&self, limit: Option<Limit>) {
        let mut state = self.state.lock().unwrap();
        state.limit = limit;
        state.forget_sources();
    }

    /// Asynchronous runs go on until this is taken back; at first they are over as soon as they began.
    pub fn hold_runs(&self, hold: bool) {
        let mut state = self.state.lock().unwrap();
        state.hold_runs = hold;
        if !hold {
            state.finish_runs();
        }
    }
}

fn name(at: usize) -> String {
    format!("sim{at:04}.test")
}

fn addresses(count: usize) -> Vec<SocketAddr> {
    if count <= MANY {
        let here = Ipv4Addr::LOCALHOST;
        return (0..count).map(|_| (here, free_port()).into()).collect();
    }
    let port = free_port();
    let octet = |n: usize| u8::try_from(n).unwrap();
    let at = |n: usize| {
        Ipv4Addr::new(
            127,
            octet(20 + n / 62_500),
            octet(n / 250 % 250),
            octet(1 + n % 250),
        )
    };
    (0..count).map(|n| (at(n), port).into()).collect()
}

/// Signatures of a CA with an RSA key take milliseconds: on both processors.
fn issue_many(plan: &Plan, authority: &Authority, house: &House) -> Vec<Live> {
    let key = KeyPair::from_pem(&authority.key_pem()).unwrap();
    let issuer = Issuer::from_ca_cert_pem(&authority.cert_pem(), key).unwrap();
    let issue = |at: usize| {
        let serial = plan.first_serial + u32::try_from(at).unwrap();
        house.issue_v3(&issuer, &name(at), serial, plan.days)
    };
    let half = plan.count / 2;
    std::thread::scope(|scope| {
        let second = scope.spawn(|| (half..plan.count).map(issue).collect::<Vec<_>>());
        let mut all: Vec<Live> = (0..half).map(issue).collect();
        all.extend(second.join().unwrap());
        all
    })
}

/// A thread with a runtime of its own; ends when it is dropped.
struct Worker {
    handle: Handle,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    fn start() -> Self {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::spawn(move || {
            let _ = runtime.block_on(stopped);
            runtime.shutdown_timeout(Duration::ZERO);
        });
        Self {
            handle,
            stop: Some(stop),
            thread: Some(thread),
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A listener per agent.
fn raise_limit_of_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    static RAISED: AtomicBool = AtomicBool::new(false);
    if RAISED.swap(true, Ordering::Relaxed) {
        return;
    }
    let maximum = getrlimit(Resource::Nofile).maximum;
    let raised = Rlimit {
        current: maximum,
        maximum,
    };
    setrlimit(Resource::Nofile, raised)
        .map_err(io::Error::from)
        .unwrap();
}
