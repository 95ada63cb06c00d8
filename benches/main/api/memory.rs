//! What the API holds in memory.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::client::{self, Client};
use super::stage::{QuietLog, Server};
use crate::common::fleet::{allow, status_kib, write_agent_toml};
use crate::common::{Agent, Paired, tls};
use crate::memory::kib;
use crate::{Report, precise, ratio};

const IDLE_BOUND_KIB: u64 = 5 * 1024;
/// Connections that are open and wait, and what each may cost.
const WAITING: usize = 1000;
const EACH_BOUND_KIB: f64 = 20.0;
/// Runs at the same time, and what each says: as long as the whole is.
const RUNS: usize = 64;
const OUTPUT: usize = 10_000_000;
/// Three times the memory that the API has for long answers (`api_answer_memory`, 128 MiB): what is reserved, what is written and kept of it,
/// and what an allocator does not give back at once.
const PEAK_BOUND_KIB: u64 = 384 * 1024;

fn is_static() -> bool {
    std::env::var_os("CTRL_EXEC_TEST_BIN").is_some()
}

fn pss(server: &Server) -> u64 {
    kib(&format!("/proc/{}/smaps_rollup", server.pid()), "Pss:").unwrap()
}

/// After some requests and a second of rest.
pub fn idle(report: &mut Report, api: &Server) {
    let mut client = Client::connect(api.address);
    for path in ["/health", "/", "/metrics", "/runs"].repeat(25) {
        client.send(&client::get(path));
        client.answer();
    }
    drop(client);
    std::thread::sleep(Duration::from_secs(1));
    let pss = pss(api);
    let own = kib(&format!("/proc/{}/smaps_rollup", api.pid()), "Pss_Anon:").unwrap_or(0);
    report.line(
        "ced-api, idle: PSS",
        &format!("{pss} KiB"),
        &format!("of which not from the file: {own} KiB"),
        &ratio(precise(pss), precise(IDLE_BOUND_KIB)),
        "<= 5 MiB",
    );
    report.must(
        !is_static() || pss <= IDLE_BOUND_KIB,
        "ced-api uses more than 5 MiB when idle",
    );
}

/// Many connections that have asked something once and stay.
pub fn connections(report: &mut Report, api: &Server, kind: &str) {
    let request = client::get("/health");
    let mut plain = Vec::new();
    let mut secure = Vec::new();
    let mut open = || {
        if kind == "TLS" {
            let mut client = tls::Client::connect(api.address, None, tls::TLS13).unwrap();
            assert_eq!(client.request("GET", "/health", b"").unwrap().status, 200);
            secure.push(client);
        } else {
            let mut client = Client::connect(api.address);
            client.send(&request);
            client.answer();
            plain.push(client);
        }
    };
    // What the first ones need is needed once.
    (0..10).for_each(|_| open());
    std::thread::sleep(Duration::from_millis(500));
    // The code that serves them is there once, and comes into memory when it is first needed: only the process's own pages count.
    let own = || kib(&format!("/proc/{}/smaps_rollup", api.pid()), "Pss_Anon:").unwrap_or(0);
    let before = own();
    (0..WAITING).for_each(|_| open());
    std::thread::sleep(Duration::from_millis(500));
    let after = own();
    let each = precise(after.saturating_sub(before)) / precise(WAITING as u64);
    report.line(
        &format!("ced-api: an idle connection, {kind}"),
        &format!("{each:.1} KiB"),
        &format!("own pages {before} KiB, with {WAITING} more {after} KiB"),
        &format!("{:.2}", each / EACH_BOUND_KIB),
        "<= 20 KiB",
    );
    // Pages, not bytes, are counted: a twentieth more is no other program.
    report.must(
        each <= EACH_BOUND_KIB * 1.05,
        &format!("an idle connection of ced-api ({kind}) costs clearly more than 20 KiB"),
    );
}

/// Many runs at once that say a lot.
pub fn long_answers(report: &mut Report) {
    let fleet = Paired::new(&["web01.test"]);
    let host = &fleet.agents[0];
    let line = [b"x".repeat(79), b"\n".to_vec()].concat();
    let text = host.write("tmp/text", line.repeat(OUTPUT / line.len()), 0o644);
    let names: Vec<String> = (0..RUNS).map(|n| format!("long-{n}")).collect();
    for name in &names {
        allow(host, name, &format!("exec cat '{}'", text.display()));
    }
    let lines = "rate_limit_disable = true\nmax_output = 16777216\n";
    write_agent_toml(host, fleet.ports[0], lines);
    let _agent = Agent::start(host);
    let _log = QuietLog::of(&fleet.dispatcher);
    let api = Server::api(&fleet.dispatcher, "");
    // An agent that has just started lets only some strangers of one address into the handshake at a time.
    let mut first = Client::connect(api.address);
    first.send(&client::run(host.name(), &names[0]));
    let (length, end) = first.answer();
    assert!(length > OUTPUT, "{end}");
    drop(first);
    let start = Instant::now();
    let done = AtomicBool::new(false);
    let (answers, highest) = std::thread::scope(|scope| {
        let runs: Vec<_> = names
            .iter()
            .map(|name| {
                let request = client::run(host.name(), name);
                let address = api.address;
                scope.spawn(move || {
                    let mut client = Client::connect(address);
                    client.send(&request);
                    client.answer()
                })
            })
            .collect();
        let watcher = scope.spawn(|| {
            let mut highest = 0;
            while !done.load(Ordering::Relaxed) {
                highest = highest.max(pss(&api));
                std::thread::sleep(Duration::from_millis(20));
            }
            highest
        });
        let answers: Vec<_> = runs.into_iter().map(|run| run.join().unwrap()).collect();
        done.store(true, Ordering::Relaxed);
        (answers, watcher.join().unwrap())
    });
    let took = start.elapsed();
    // Whoever waits for too long for room gets an error in the place of the output: never a part of it.
    let (whole, given_up): (Vec<_>, Vec<_>) =
        answers.iter().partition(|(length, _)| *length > OUTPUT);
    for (length, end) in given_up {
        let told = end.contains("only its output is lost") && end.contains("\"exit\":-1");
        assert!(*length < 1000 && told, "{end}");
    }
    let peak = status_kib(api.pid(), "VmHWM:");
    std::thread::sleep(Duration::from_secs(1));
    report.line(
        &format!("ced-api: {RUNS} runs at once, 10 MB each: peak"),
        &format!("{} MiB", peak / 1024),
        &format!(
            "{} whole, {:.1} s; PSS {}, then {} MiB",
            whole.len(),
            took.as_secs_f64(),
            highest / 1024,
            pss(&api) / 1024
        ),
        &ratio(precise(peak), precise(PEAK_BOUND_KIB)),
        "<= 384 MiB",
    );
    report.must(
        peak <= PEAK_BOUND_KIB,
        "ced-api needs more than 384 MiB for 64 long answers",
    );
}
