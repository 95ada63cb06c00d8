//! `make bench`: what our programs cost, each as a ratio to a reference measured in the same run on the same machine.
//!
//! Timings are reported, never asserted: a loaded machine is no bug. Memory and size do not depend on load; breaking their bounds ends
//! the bench with an error. `cargo bench --bench main -- scale` is the part about the number of records alone, `-- api` that about the HTTP API.

// A bench prints; it is its own program and not part of the product.
#![allow(clippy::print_stdout, clippy::unwrap_used)]

mod api;
mod bare;
#[path = "../../tests/common/mod.rs"]
mod common;
mod executor;
mod load;
mod memory;
mod reference;
mod scale;
mod ssh;

use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use common::fleet::{allow_path, write_agent_toml};
use common::{Agent, Host, Paired, binary};
use reference::Reference;

/// Rounds of a comparison of whole commands.
const ROUNDS: usize = 60;
/// How long a rate is measured, and how often.
const RATE_TIME: Duration = Duration::from_millis(800);
const RATE_ROUNDS: usize = 7;
/// Threads of the client that keeps a server busy.
const CLIENTS: usize = 3;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().collect();
    if let Some(exit) = reference::play(&words[1..]) {
        return exit;
    }
    if words.iter().any(|w| w == api::stage::BARE) {
        bare::main();
        return ExitCode::SUCCESS;
    }
    let mut report = Report::default();
    println!("binary: {}", binary().display());
    if words.iter().any(|w| w == "scale") {
        scale::state_files(&mut report);
        scale::rotation_of_a_fleet(&mut report);
        return report.finish();
    }
    if words.iter().any(|w| w == "api") {
        api::all(&mut report);
        return report.finish();
    }
    size(&mut report);

    let fleet = Paired::new(&["web01.test"]);
    write_agent_toml(
        &fleet.agents[0],
        fleet.ports[0],
        "rate_limit_disable = true\n",
    );
    allow_path(&fleet.agents[0], "bin-true", Path::new("/bin/true"));
    let agent = Agent::start(&fleet.agents[0]);
    memory::idle(&mut report, &agent);
    start_up(&mut report, &fleet.dispatcher);

    let reference = Reference::start(&fleet);
    one_command(&mut report, &fleet, &reference);
    rates(&mut report, &fleet, &agent, &reference);
    fan_out(&mut report, &fleet, &agent);
    executor::all(&mut report);
    api::all(&mut report);
    scale::state_files(&mut report);
    scale::rotation_of_a_fleet(&mut report);
    report.finish()
}

/// The table in the making.
#[derive(Default)]
pub struct Report {
    broken: Vec<String>,
    begun: bool,
}

impl Report {
    /// One line: what, our figure, the reference and its figure, how they relate, and the bound of the specification.
    pub fn line(&mut self, what: &str, ours: &str, reference: &str, ratio: &str, bound: &str) {
        if !self.begun {
            self.begun = true;
            println!(
                "{:<44} {:>14}  {:<38} {:>8}  BOUND",
                "WHAT", "OURS", "REFERENCE", "RATIO"
            );
            println!("{}", "-".repeat(126));
        }
        println!("{what:<44} {ours:>14}  {reference:<38} {ratio:>8}  {bound}");
    }

    /// A bound that holds on every machine.
    pub fn must(&mut self, holds: bool, what: &str) {
        if !holds {
            self.broken.push(what.to_owned());
        }
    }

    fn finish(self) -> ExitCode {
        for broken in &self.broken {
            println!("BROKEN: {broken}");
        }
        if self.broken.is_empty() {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        }
    }
}

pub fn millis(time: Duration) -> String {
    format!("{:.2} ms", time.as_secs_f64() * 1000.0)
}

pub fn ratio(ours: f64, reference: f64) -> String {
    format!("{:.2}", ours / reference)
}

pub fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

/// Wall time of a command that must succeed.
#[track_caller]
pub fn time(command: &mut Command) -> Duration {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let start = Instant::now();
    let status = command
        .status()
        .unwrap_or_else(|e| panic!("cannot start {command:?}: {e}"));
    let took = start.elapsed();
    assert!(status.success(), "{command:?} failed: {status}");
    took
}

/// Medians of several commands, measured in turns so that a change of the machine's mood hits all of them.
#[track_caller]
pub fn in_turns(rounds: usize, commands: &mut [Command]) -> Vec<Duration> {
    let mut times = vec![Vec::with_capacity(rounds); commands.len()];
    for round in 0..=rounds {
        for (command, times) in commands.iter_mut().zip(&mut times) {
            let took = time(command);
            // The first round warms the caches.
            if round > 0 {
                times.push(took);
            }
        }
    }
    times.into_iter().map(median).collect()
}

fn size(report: &mut Report) {
    let bytes = std::fs::metadata(binary()).unwrap().len();
    // As in dist/size.sh.
    let bound = 4096 * 1024;
    let is_static = std::env::var_os("CTRL_EXEC_TEST_BIN").is_some();
    report.line(
        "size of the binary",
        &format!("{bytes} B"),
        "-",
        &ratio(precise(bytes), precise(bound)),
        if is_static {
            "<= 4096 KiB"
        } else {
            "(static build only)"
        },
    );
    report.must(
        !is_static || bytes <= bound,
        "the static binary is larger than 4096 KiB",
    );
}

fn start_up(report: &mut Report, host: &Host) {
    let mut version = host.command("ced");
    version.arg("--version");
    let times = in_turns(200, &mut [version, Command::new("/bin/true")]);
    report.line(
        "start-up: ced --version",
        &millis(times[0]),
        &format!("/bin/true {}", millis(times[1])),
        &ratio(times[0].as_secs_f64(), times[1].as_secs_f64()),
        "",
    );
}

/// One `ced run` and one `ced ping` against the reference and against SSH.
fn one_command(report: &mut Report, fleet: &Paired, reference: &Reference) {
    let mut run = fleet.dispatcher.command("ced");
    run.args(["run", "web01.test", "bin-true"]);
    let mut ping = fleet.dispatcher.command("ced");
    ping.args(["ping", "--check", "web01.test"]);
    let mut commands = vec![run, ping, reference.command()];
    let mut peers = vec![];
    for (name, peer) in [("dropbear", ssh::dropbear()), ("OpenSSH", ssh::openssh())] {
        match peer {
            Ok(peer) => {
                commands.push(peer.command());
                peers.push((name, Ok(peer)));
            }
            Err(why) => peers.push((name, Err(why))),
        }
    }
    let times = in_turns(ROUNDS, &mut commands);
    let seconds = |index: usize| times[index].as_secs_f64();
    let shown = format!("mutual TLS 1.3 + posix_spawn {}", millis(times[2]));
    report.line(
        "ced run of /bin/true",
        &millis(times[0]),
        &shown,
        &ratio(seconds(0), seconds(2)),
        "<= 2",
    );
    report.line(
        "ced ping",
        &millis(times[1]),
        &shown,
        &ratio(seconds(1), seconds(2)),
        "",
    );
    let mut next = 3;
    for (name, peer) in &peers {
        let what = format!("ced run against {name}");
        match peer {
            Ok(_) => {
                let bound = if *name == "dropbear" { "<= 0.5" } else { "" };
                report.line(
                    &what,
                    &millis(times[0]),
                    &format!("{name} client, 'true' {}", millis(times[next])),
                    &ratio(seconds(0), seconds(next)),
                    bound,
                );
                next += 1;
            }
            Err(why) => report.line(&what, &millis(times[0]), why, "-", ""),
        }
    }
}

/// Requests per second of the agent. Both servers have one thread; they are measured in turns, and by the processor time that they take
/// as well, which other work on the machine changes less.
fn rates(report: &mut Report, fleet: &Paired, agent: &Agent, reference: &Reference) {
    let keys = load::Keys::of(fleet);
    let handshake = || load::Session::connect(&keys, reference.address()).read_byte();
    let ping = || load::Session::connect(&keys, agent.address()).ping();
    let (mut bare, mut ours) = (vec![], vec![]);
    for _ in 0..RATE_ROUNDS {
        bare.push(load::rate(RATE_TIME, CLIENTS, reference.pid(), handshake));
        ours.push(load::rate(RATE_TIME, CLIENTS, agent.pid(), ping));
    }
    let (bare, ours) = (load::middle(bare), load::middle(ours));
    let shown = format!("bare TLS handshakes {:.0} /s", bare.per_second);
    report.line(
        "agent: pings/s, new connection each",
        &format!("{:.0} /s", ours.per_second),
        &shown,
        &ratio(ours.per_second, bare.per_second),
        ">= 0.80",
    );
    report.line(
        "agent: the same per second of processor",
        &format!("{:.0}", ours.per_cpu_second),
        &format!("bare TLS handshakes {:.0}", bare.per_cpu_second),
        &ratio(ours.per_cpu_second, bare.per_cpu_second),
        "",
    );
    let kept = load::rate_with(
        RATE_TIME,
        CLIENTS,
        agent.pid(),
        || load::Session::connect(&keys, agent.address()),
        load::Session::ping_again,
    );
    report.line(
        "agent: pings/s, connection kept",
        &format!("{:.0} /s", kept.per_second),
        &shown,
        &ratio(kept.per_second, bare.per_second),
        "",
    );
}

/// Many hosts: loopback addresses in front of one agent.
fn fan_out(report: &mut Report, fleet: &Paired, agent: &Agent) {
    let names: Vec<String> = (0..500).map(|n| format!("h{n:03}.test")).collect();
    for (index, name) in names.iter().enumerate() {
        let address = format!("127.0.{}.{}", 10 + index / 250, 1 + index % 250);
        let record = serde_json::json!({
            "hostname": name, "ip": address, "lookup_by": "ip", "port": agent.port(), "cert_cn": "web01.test",
            "paired": "2026-01-02T03:04:05Z", "expiry": "Jun  7 16:28:00 2028 GMT", "reqid": "0123456789abcdef",
        });
        fleet.dispatcher.write(
            &format!("var/lib/ctrl-exec/agents/{name}.json"),
            record.to_string(),
            0o644,
        );
    }
    let keys = load::Keys::of(fleet);
    let one_by_one = load::rate(Duration::from_secs(1), 1, agent.pid(), || {
        load::Session::connect(&keys, agent.address()).ping();
    })
    .per_second;
    let mut peaks = vec![];
    for (count, rounds) in [(1, 15), (50, 9), (500, 3)] {
        let command = || {
            let mut ping = fleet.dispatcher.command("ced");
            ping.args(["ping", "--check"]).args(&names[..count]);
            ping
        };
        let times = in_turns(rounds, &mut [command()]);
        let sequential = f64::from(u32::try_from(count).unwrap()) / one_by_one;
        report.line(
            &format!("fan-out: ced ping, {count} host(s)"),
            &millis(times[0]),
            &format!("one after another {:.2} ms", sequential * 1000.0),
            &ratio(times[0].as_secs_f64(), sequential),
            "",
        );
        peaks.push(memory::peak_kib(&mut command()));
    }
    let growth = (precise(peaks[2]) - precise(peaks[0])) / 499.0;
    report.line(
        "fan-out: memory of ced per host",
        &format!("{growth:.1} KiB"),
        &format!("peak {} KiB of 1, {} KiB of 500", peaks[0], peaks[2]),
        "-",
        "< 64 KiB",
    );
    report.must(growth < 64.0, "ced grows by 64 KiB per host or more");
}

/// Counts stay far below 2^52.
#[allow(clippy::cast_precision_loss)]
pub fn precise(count: u64) -> f64 {
    count as f64
}
