//! How much the API gets done.

use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::client::{self, Client};
use super::stage::{QuietLog, Server};
use crate::common::executor::Executor;
use crate::common::fleet::{allow_path, write_agent_toml};
use crate::common::{Agent, Paired, is_root};
use crate::{Report, load, precise, ratio};

const TIME: Duration = Duration::from_millis(500);
const ROUNDS: usize = 9;
/// Connections that one thread of the client keeps busy: it sends on all of them, then reads from all.
const CONNECTIONS: usize = 16;
/// Connections that run something, each with a thread and a script of its own, because a script runs once at a time on a host.
const RUNNERS: usize = 8;
/// A file system that is not on a disk, on every Linux that a bench runs on.
const MEMORY: &str = "/dev/shm";

fn middle(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

/// `GET /health` beside the same by axum alone.
pub fn health(report: &mut Report, api: &Server) {
    let (bare, how) = Server::bare();
    let request = client::get("/health");
    let measure = |server: &Server| {
        let make = || -> Vec<Client> {
            (0..CONNECTIONS)
                .map(|_| Client::connect(server.address))
                .collect()
        };
        load::rate_with(TIME, 1, server.pid(), make, |clients| {
            for client in clients.iter_mut() {
                client.send(&request);
            }
            for client in clients.iter_mut() {
                client.answer();
            }
        })
    };
    let (mut ours, mut theirs) = (vec![], vec![]);
    for _ in 0..ROUNDS {
        theirs.push(measure(&bare));
        ours.push(measure(api));
    }
    let ratios = |figure: fn(&load::Rate) -> f64| {
        let pairs = ours.iter().zip(&theirs);
        middle(pairs.map(|(a, b)| figure(a) / figure(b)).collect())
    };
    let (by_time, by_processor) = (ratios(|r| r.per_second), ratios(|r| r.per_cpu_second));
    let each = precise(CONNECTIONS as u64);
    let (ours, theirs) = (load::middle(ours), load::middle(theirs));
    report.line(
        "ced-api: GET /health, connection kept",
        &format!("{:.0} /s", ours.per_second * each),
        &format!("bare axum ({how}) {:.0} /s", theirs.per_second * each),
        &format!("{by_time:.2}"),
        ">= 0.70",
    );
    report.line(
        "ced-api: the same per second of processor",
        &format!("{:.0}", ours.per_cpu_second * each),
        &format!("bare axum {:.0}", theirs.per_cpu_second * each),
        &format!("{by_processor:.2}"),
        "",
    );
}

/// `POST /run` of `/bin/true` through agent and executor, beside a loop that does nothing but start it and wait.
///
/// Each run makes a file, the record. For some minutes after many files were deleted, ext4 passes over their inodes one by one whenever it makes
/// one (`recently_deleted`): a second bench right after the first showed up to a third fewer runs. The reference makes no file, so the records
/// of what it is compared with lie in memory; the same with records on the disk is shown beside it.
pub fn runs(report: &mut Report) {
    const WHAT: &str = "ced-api: POST /run of /bin/true by executor";
    if !is_root() {
        return report.line(WHAT, "-", "needs root", "-", ">= 0.50");
    }
    let names: Vec<String> = (0..RUNNERS).map(|n| format!("true-{n}")).collect();
    let mut executor = Executor::new("compat");
    executor.profile("plain", "run_as = nobody");
    std::fs::copy("/bin/true", executor.path("scripts/true")).unwrap();
    let script = executor.path("scripts/true");
    let fleet = Paired::new(&["web01.test"]);
    let host = &fleet.agents[0];
    for name in &names {
        executor.entry(name, &format!("{} profile=plain", script.display()));
        allow_path(host, name, &script);
    }
    executor.start();
    let lines = "rate_limit_disable = true\nexecutor_socket = \"/run/exec.sock\"\n";
    write_agent_toml(host, fleet.ports[0], lines);
    std::os::unix::fs::symlink(executor.socket(), host.path("run/exec.sock")).unwrap();
    let _agent = Agent::start(host);
    let _log = QuietLog::of(&fleet.dispatcher);
    // A path of the configuration lies below the root of the test: only by a link does it lead out.
    let memory = tempfile::tempdir_in(MEMORY).unwrap();
    std::os::unix::fs::symlink(memory.path(), fleet.dispatcher.path("memory")).unwrap();
    let api = Server::api(&fleet.dispatcher, "runs_dir = \"/memory/runs\"\n");
    let disk = Server::api(&fleet.dispatcher, "");

    let next = AtomicUsize::new(0);
    let make = |server: &Server| {
        let name = &names[next.fetch_add(1, Ordering::Relaxed) % RUNNERS];
        (
            Client::connect(server.address),
            client::run(host.name(), name),
        )
    };
    let ask = |(client, request): &mut (Client, Vec<u8>)| {
        client.send(request);
        let (_, end) = client.answer();
        assert!(end.contains("\"exit\":0"), "{end}");
    };
    let (mut ours, mut on_disk, mut theirs) = (vec![], vec![], vec![]);
    for _ in 0..ROUNDS {
        theirs.push(load::rate(TIME, 1, std::process::id(), || {
            let mut command = Command::new(&script);
            command.stdin(Stdio::null()).stdout(Stdio::null());
            assert!(command.status().unwrap().success());
        }));
        let measure =
            |server: &Server| load::rate_with(TIME, RUNNERS, server.pid(), || make(server), ask);
        ours.push(measure(&api));
        on_disk.push(measure(&disk));
    }
    let records = std::fs::read_dir(memory.path().join("runs")).unwrap();
    assert!(records.count() > 100, "the records lie somewhere else");
    let ratios = |figures: &[load::Rate]| {
        let pairs = figures.iter().zip(&theirs);
        middle(pairs.map(|(a, b)| a.per_second / b.per_second).collect())
    };
    let (by_time, by_time_on_disk) = (ratios(&ours), ratios(&on_disk));
    let on_disk = load::middle(on_disk);
    let (ours, theirs) = (load::middle(ours), load::middle(theirs));
    report.line(
        WHAT,
        &format!("{:.0} /s", ours.per_second),
        &format!("fork + exec, one by one {:.0} /s", theirs.per_second),
        &format!("{by_time:.2}"),
        ">= 0.50",
    );
    report.line(
        "ced-api: the same, records on the disk",
        &format!("{:.0} /s", on_disk.per_second),
        "-",
        &format!("{by_time_on_disk:.2}"),
        "",
    );
    report.line(
        "ced-api: the same per second of its processor",
        &format!("{:.0}", ours.per_cpu_second),
        "-",
        &ratio(ours.per_cpu_second, theirs.per_second),
        "",
    );
}
