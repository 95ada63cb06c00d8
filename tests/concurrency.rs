//! Several programs at once over the same files: two dispatcher hosts of one identity on shared storage, the timer beside the operator, edits
//! beside a rotation. Nothing that one has written is lost by another, and no serial is given twice.

mod common;

use std::collections::BTreeMap;
use std::os::unix::fs::symlink;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use common::fleet::{
    DISPATCHER_CONF, legacy_dispatcher, new_agent, pair, requests, start_pairing, wait_for_request,
};
use common::openssl::{Authority, Dates, openssl, serial_of};
use common::rotating::{kept, record_path};
use common::sim::Plan;
use common::{Agent, Host, PATIENCE, SharedClock, SimFleet, free_port};
use rustix::process::Signal;
use serde_json::{Value, json};

const STATE: &str = "var/lib/ctrl-exec/rotation.json";

/// One identity on two hosts: the second sees the directories of the first.
struct Twins {
    first: Host,
    second: Host,
    clock: SharedClock,
    fleet: SimFleet,
}

impl Twins {
    fn new(count: usize, days: u32) -> Self {
        let authority = Authority::shared();
        let leaf = authority.issue("ctrl-exec-dispatcher", "02", Dates::Days(825));
        let mut first = legacy_dispatcher(authority, &leaf);
        let conf = format!("{DISPATCHER_CONF}dispatcher_id = ctl\n");
        first.write("etc/ctrl-exec/ctrl-exec.conf", conf, 0o640);
        let mut second = Host::new("ctl2.test");
        for dir in ["etc/ctrl-exec", "var/lib/ctrl-exec"] {
            symlink(first.path(dir), second.path(dir)).expect("linked");
        }
        let clock = SharedClock::new();
        clock.give(&mut first);
        clock.give(&mut second);
        let plan = Plan {
            days,
            ..Plan::new(count, "2")
        };
        let fleet = SimFleet::start(&plan, authority);
        fleet.register_all(&first);
        Self {
            first,
            second,
            clock,
            fleet,
        }
    }

    fn pass_days(&self, days: i64) {
        self.clock.pass_days(days);
        self.fleet.set_clock_offset(self.clock.seconds());
    }

    fn record(&self, name: &str) -> Value {
        self.first.json(&record_path(name))
    }

    fn ping_all(&self) {
        let names = self.fleet.names();
        for host in [&self.first, &self.second] {
            host.ced(&[&["ping", "--check"], names.as_slice()].concat())
                .ok();
        }
    }
}

/// Reads a file again and again until it is told to end: at every moment it is whole, or not there yet.
fn watch(host: &Host, path: &str, over: &AtomicBool) -> usize {
    let mut seen = std::collections::BTreeSet::new();
    while !over.load(Ordering::Relaxed) {
        match std::fs::read(host.path(path)) {
            Ok(bytes) => {
                let state: Value = serde_json::from_slice(&bytes)
                    .unwrap_or_else(|e| panic!("{e}: {:?}", String::from_utf8_lossy(&bytes)));
                assert!(state["current_serial"].is_string(), "{state}");
                seen.insert(bytes);
            }
            Err(e) => assert_eq!(e.kind(), std::io::ErrorKind::NotFound, "{e}"),
        }
    }
    seen.len()
}

/// Ends the watching whatever becomes of the others.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Serials of certificates and whose they are; a second owner is the end.
#[derive(Default)]
struct Issued(BTreeMap<String, String>);

impl Issued {
    #[track_caller]
    fn add(&mut self, serial: String, owner: &str) {
        let other = self.0.insert(serial.clone(), owner.to_owned());
        assert!(
            other.as_deref().is_none_or(|o| o == owner),
            "serial {serial} is given to {owner} and to {other:?}"
        );
    }
}

fn serial_of_der(host: &Host, der: &[u8]) -> String {
    let file = host.path("tmp/one.crt");
    let pem = ::pem::encode(&::pem::Pem::new("CERTIFICATE", der));
    std::fs::write(&file, pem).expect("written");
    serial_of(&file)
}

#[test]
fn two_hosts_of_one_identity_maintain_rotate_and_approve_at_once() {
    const JOINING: usize = 4;
    let twins = Twins::new(12, 100);
    let (first, second, fleet) = (&twins.first, &twins.second, &twins.fleet);
    // All certificates of the agents are due, the dispatcher's is not: rotations are the operator's.
    twins.pass_days(60);
    let port = free_port();
    let mut pairing = start_pairing(first, port, &[]);
    let joining: Vec<Host> = (0..JOINING)
        .map(|at| {
            let mut host = new_agent(&format!("join{at}.test"), free_port());
            twins.clock.give(&mut host);
            host
        })
        .collect();
    let over = AtomicBool::new(false);
    let refused = Mutex::new(Vec::new());
    let too_late = &refused;
    let states = std::thread::scope(|scope| {
        let watcher = scope.spawn(|| watch(first, STATE, &over));
        let mut jobs = Vec::new();
        for host in [first, second] {
            jobs.push(scope.spawn(move || {
                for _ in 0..3 {
                    let done = host.ced(&["maintain", "--json"]).ok().json();
                    assert!(
                        done["busy"] == true || done["failed"] == json!([]),
                        "{done}"
                    );
                }
            }));
            jobs.push(scope.spawn(move || {
                for _ in 0..2 {
                    host.ced(&["rotate-cert", "--json"]).ok();
                }
            }));
            jobs.push(scope.spawn(move || {
                for name in fleet.names() {
                    host.ced(&["ping", "--check", name]).ok();
                }
            }));
        }
        for (at, host) in joining.iter().enumerate() {
            let approving = if at % 2 == 0 { first } else { second };
            jobs.push(scope.spawn(move || {
                let port = port.to_string();
                let words = [
                    "request-pairing",
                    "--dispatcher",
                    "127.0.0.1",
                    "--port",
                    &port,
                ];
                let mut request = host.start("cea", &[&words, &["--lookup-by", "ip"][..]].concat());
                let id = wait_for_request(approving, host.name())["id"].clone();
                let id = id.as_str().expect("an id");
                let approved = approving.ced(&["approve", id]);
                if approved.code() == 0 {
                    let status = request.wait(PATIENCE * 2);
                    assert!(status.success(), "{}{}", request.out(), request.err());
                    return;
                }
                // A code is bound to the dispatcher's certificate: after a rotation in between it is good for nothing.
                let said = approved.err();
                assert!(said.contains("was replaced since"), "{said}");
                approving.ced(&["deny", id]).ok();
                request.wait(PATIENCE * 2);
                too_late.lock().expect("no job fails").push(host);
            }));
        }
        let end = Over(&over);
        for job in jobs {
            job.join().expect("no job fails");
        }
        drop(end);
        watcher.join().expect("always whole")
    });
    assert!(states > 4, "{states} states were seen");
    pairing.signal(Signal::TERM);
    assert!(pairing.wait(PATIENCE).success());
    assert_eq!(requests(first).len(), 0);
    // A new pairing mode shows the certificate that is in force now.
    let port = free_port();
    let mut pairing = start_pairing(second, port, &[]);
    for host in refused.into_inner().expect("no job fails") {
        pair(second, host, port);
    }
    pairing.signal(Signal::TERM);
    assert!(pairing.wait(PATIENCE).success());

    // Everybody is served, from both hosts.
    let agents: Vec<Agent> = joining.iter().map(Agent::start).collect();
    first.ced(&["maintain"]).ok();
    twins.ping_all();
    for host in &joining {
        second.ced(&["ping", "--check", host.name()]).ok();
    }
    drop(agents);
    let rotated: Vec<String> = [first, second]
        .iter()
        .flat_map(|h| h.log_of("cert-rotated"))
        .filter_map(|l| l.field("NEW_SERIAL"))
        .collect();
    assert_eq!(rotated.len(), 4, "each rotate-cert is one rotation");

    // No serial twice: dispatcher, agents, what waits for its adoption, registry.
    let mut issued = Issued::default();
    for (at, serial) in rotated.into_iter().enumerate() {
        issued.add(serial, &format!("rotation {at}"));
    }
    issued.add("2".to_owned(), "the first certificate");
    for agent in fleet.agents() {
        issued.add(
            agent.presented_serial(),
            &format!("{} before", agent.name()),
        );
        let staged = agent.staged_certificate().expect("it was due");
        let serial = serial_of_der(first, &staged);
        issued.add(serial, &format!("{} after", agent.name()));
        // Asked by many, renewed once.
        assert_eq!(agent.requests_for("/renew-complete").len(), 1);
    }
    for host in &joining {
        let serial = serial_of(&host.path("etc/ctrl-exec-agent/agent.crt"));
        assert_eq!(twins.record(host.name())["cert_serial"], serial);
        issued.add(serial, host.name());
    }
    assert_eq!(issued.0.len(), 4 + 1 + 2 * 12 + JOINING);
    let key = |file: &str| {
        let path = first.path(file);
        openssl(&["pkey", "-in", path.to_str().expect("UTF-8"), "-pubout"])
    };
    let shown = first.path("etc/ctrl-exec/dispatcher.crt");
    let of_cert = openssl(&[
        "x509",
        "-in",
        shown.to_str().expect("UTF-8"),
        "-noout",
        "-pubkey",
    ]);
    assert_eq!(key("etc/ctrl-exec/dispatcher.key"), of_cert);

    // The end of it, by both timers at once.
    twins.pass_days(31);
    std::thread::scope(|scope| {
        for host in [first, second] {
            scope.spawn(move || host.ced(&["maintain"]).ok());
        }
    });
    assert_eq!(
        fleet
            .agents()
            .iter()
            .filter(|a| a.trusted().len() == 1)
            .count(),
        12
    );
    twins.ping_all();
}

#[test]
fn four_passes_that_all_find_it_due_rotate_once() {
    let twins = Twins::new(5, 3000);
    twins.pass_days(740);
    std::thread::scope(|scope| {
        for host in [&twins.first, &twins.second, &twins.first, &twins.second] {
            scope.spawn(move || host.ced(&["maintain", "--json"]).ok());
        }
    });
    let rotations = |host: &Host| host.log_of("cert-rotated").len();
    assert_eq!(rotations(&twins.first) + rotations(&twins.second), 1);
    assert_eq!(kept(&twins.first), ["2"]);
    twins.ping_all();
}

#[test]
fn eight_edit_the_registry_while_a_rotation_goes_on_and_no_field_is_lost() {
    const EDITORS: usize = 8;
    const ROUNDS: usize = 12;
    let twins = Twins::new(EDITORS, 100);
    let fleet = &twins.fleet;
    for name in fleet.names() {
        let mut record = twins.record(name);
        record["owner"] = format!("team of {name}").into();
        record["tags"] = json!({"env": "prod", "name": name});
        twins
            .first
            .write(&record_path(name), record.to_string(), 0o644);
    }
    let before: Vec<Value> = fleet.names().iter().map(|n| twins.record(n)).collect();
    // Their keys are known from here on, whatever name is written down. Renewals will be due as well.
    twins.ping_all();
    twins.pass_days(60);
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watcher = scope.spawn(|| watch(&twins.first, STATE, &over));
        let worker = scope.spawn(|| {
            let mut passes = 0;
            while !over.load(Ordering::Relaxed) || passes < 2 {
                twins.first.ced(&["rotate-cert"]).ok();
                twins.second.ced(&["maintain"]).ok();
                passes += 1;
            }
        });
        let editors: Vec<_> = (0..EDITORS)
            .map(|editor| {
                let (twins, names) = (&twins, fleet.names());
                // Two at each record, each with fields of its own.
                scope.spawn(move || {
                    let host = if editor % 2 == 0 {
                        &twins.first
                    } else {
                        &twins.second
                    };
                    for round in 0..ROUNDS {
                        let name = names[editor];
                        let cn = format!("cn-{editor}-{round}.test");
                        host.ced(&["edit-agent", name, "--cert-name", &cn]).ok();
                        let other = names[(editor + 1) % EDITORS];
                        let check = if round % 2 == 0 { "off" } else { "strict" };
                        host.ced(&["edit-agent", other, "--peer-check", check]).ok();
                    }
                })
            })
            .collect();
        let end = Over(&over);
        for editor in editors {
            editor.join().expect("no edit fails");
        }
        drop(end);
        worker.join().expect("no pass fails");
        watcher.join().expect("always whole");
    });
    // Each has the name that its editor gave it last; so a renewal under it would be refused, and the name goes back.
    for (editor, name) in fleet.names().into_iter().enumerate() {
        let record = twins.record(name);
        assert_eq!(
            record["cert_cn"],
            format!("cn-{editor}-{}.test", ROUNDS - 1)
        );
        assert!(record.get("peer_check").is_none(), "{record}");
        for field in [
            "owner",
            "tags",
            "ip",
            "port",
            "lookup_by",
            "hostname",
            "paired",
            "reqid",
        ] {
            assert_eq!(record[field], before[editor][field], "{name}: {field}");
        }
        twins
            .second
            .ced(&["edit-agent", name, "--cert-name", name])
            .ok();
    }
    twins.first.ced(&["maintain"]).ok();
    let wanted = json!(serial_of(&twins.first.path("etc/ctrl-exec/dispatcher.crt")));
    for name in fleet.names() {
        let record = twins.record(name);
        assert_eq!(record["serial_status"], "current", "{record}");
        assert_eq!(record["dispatcher_serial"], wanted, "{record}");
    }
    twins.ping_all();
    let files = std::fs::read_dir(twins.first.path("var/lib/ctrl-exec/agents")).expect("listed");
    let left: Vec<_> = files
        .filter_map(|f| f.ok()?.file_name().into_string().ok())
        .filter(|name| name.ends_with(".tmp"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}
