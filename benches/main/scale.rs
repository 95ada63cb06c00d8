//! Fleets of thousands: does what one record costs stay what it is when there are a hundred times as many?

use std::path::Path;
use std::time::{Duration, Instant};

use ctrl_exec::core::registry::Registry;
use ctrl_exec::core::trust::{self, TrustMap};
use ctrl_exec::core::types::{AgentName, DispatcherId, Serial, hex};

use crate::common::Rotating;
use crate::common::fleet::{legacy_map, legacy_record_at};
use crate::common::sim::Plan;
use crate::common::sim::serials::left_by_pairing;
use crate::{Report, median, millis, precise, ratio, time};

const SIZES: [u32; 3] = [100, 1000, 10_000];
/// Median of so many, or of as many as this time allows.
const ROUNDS: u8 = 7;
const ENOUGH: Duration = Duration::from_secs(2);
/// Agents of the simulated fleet, and how many one call may name.
const FLEET: usize = 1000;
const ONE_CALL: usize = 500;

/// An operation on so many records: how often it is done, and how long it took (median).
struct Measured {
    what: &'static str,
    times: Vec<Duration>,
    /// Touches every record, so that its time is shared among them.
    shared: bool,
}

/// Registry and trust map with 100, 1000 and 10000 records.
pub fn state_files(report: &mut Report) {
    let mut all: Vec<Measured> = [
        ("registry: list", true),
        ("registry: update of one", false),
        ("registry: update_many of all", true),
        ("trust map: load", true),
        ("trust map: add of one", true),
    ]
    .map(|(what, shared)| Measured {
        what,
        times: Vec::new(),
        shared,
    })
    .into();
    for size in SIZES {
        let dir = tempfile::tempdir().unwrap();
        let registry = registry(&dir.path().join("agents"), size);
        let map = dir.path().join("ctrl-exec-dispatchers");
        write_map(&map, size);
        for (measured, took) in all.iter_mut().zip(operations(&registry, &map, size)) {
            measured.times.push(took);
        }
    }
    for measured in &all {
        let each: Vec<f64> = SIZES
            .iter()
            .zip(&measured.times)
            .map(|(&size, took)| {
                let share = if measured.shared { size } else { 1 };
                took.as_secs_f64() * 1e6 / f64::from(share)
            })
            .collect();
        let (per, bound) = if measured.shared {
            ("each of 10000", "linear")
        } else {
            ("among 10000", "constant")
        };
        report.line(
            &format!("{}, {per}", measured.what),
            &format!("{:.2} us", each[2]),
            &format!("of 100 {:.2} us, of 1000 {:.2} us", each[0], each[1]),
            &ratio(each[2], each[0]),
            bound,
        );
    }
}

/// In the order of the table.
fn operations(registry: &Registry, map: &Path, size: u32) -> [Duration; 5] {
    let names: Vec<AgentName> = (0..size).map(name).collect();
    let middle = &names[names.len() / 2];
    let id = DispatcherId::new("ctl").unwrap();
    let wanted = usize::try_from(size).unwrap();
    [
        rounds(|_| {
            let listing = registry.list().unwrap();
            assert_eq!(listing.agents.len(), wanted);
        }),
        rounds(|round| {
            let change = format!("round {round}");
            registry
                .update(middle, |r| r.serial_broadcast = change)
                .unwrap();
        }),
        rounds(|round| {
            let change = format!("all, round {round}");
            let written = registry
                .update_many(names.clone(), |r| r.serial_broadcast.clone_from(&change))
                .unwrap();
            assert_eq!(written, wanted);
        }),
        rounds(|_| {
            let loaded = TrustMap::load(map).unwrap();
            assert!(loaded.entries().len() >= wanted);
        }),
        rounds(|round| {
            let new = Serial::parse_hex(&hex(&[0xFE, 0xED, round])).unwrap();
            assert!(trust::add(map, &new, &id).unwrap());
        }),
    ]
}

fn rounds(mut job: impl FnMut(u8)) -> Duration {
    let begun = Instant::now();
    let mut times = Vec::new();
    for round in 0..=ROUNDS {
        let start = Instant::now();
        job(round);
        times.push(start.elapsed());
        if begun.elapsed() > ENOUGH {
            break;
        }
    }
    // The first one warms the caches; of what takes seconds it is all there is.
    if times.len() > 1 {
        times.remove(0);
    }
    median(times)
}

fn name(at: u32) -> AgentName {
    AgentName::new(&format!("host{at:05}.test")).unwrap()
}

/// As pairing with the original leaves it.
fn registry(dir: &Path, size: u32) -> Registry {
    std::fs::create_dir(dir).unwrap();
    for at in 0..size {
        let name = name(at);
        let address = ([127, 0, 0, 1], 7443).into();
        let record = legacy_record_at(name.as_str(), address, "Jun  7 16:28:00 2028 GMT", "2");
        std::fs::write(dir.join(format!("{name}.json")), record.to_string()).unwrap();
    }
    Registry::new(dir)
}

/// Serials of 20 bytes, as ours are.
fn write_map(path: &Path, size: u32) {
    let serial = |at: u32| {
        let mut bytes = [0xA5; 20];
        bytes[16..].copy_from_slice(&at.to_be_bytes());
        hex(&bytes)
    };
    let serials: Vec<String> = (0..size).map(serial).collect();
    let rows: Vec<(&str, &str)> = serials.iter().map(|s| (s.as_str(), "ctl")).collect();
    std::fs::write(path, legacy_map(&rows)).unwrap();
}

/// A thousand agents of release 0.12.3: a ping of all of them, then the maintenance that rotates the dispatcher's certificate and tells
/// all of them.
pub fn rotation_of_a_fleet(report: &mut Report) {
    let start = Instant::now();
    // The agents' certificates last as long as it takes: only the dispatcher's is due.
    let plan = Plan {
        days: 3000,
        ..Plan::new(FLEET, &left_by_pairing("02"))
    };
    let world = Rotating::with("02", &plan);
    let started = start.elapsed();
    let names = world.fleet.names();
    let ping = || {
        let calls = names.chunks(ONE_CALL).map(|some| {
            let mut command = world.host.command("ced");
            time(command.args(["ping", "--check"]).args(some))
        });
        calls.sum::<Duration>()
    };
    // The first one writes down what every agent has shown; the second one finds nothing new, as on any other day.
    let first = ping();
    let pings = ping();
    let count = precise(u64::try_from(FLEET).unwrap());
    report.line(
        &format!("fleet: ced ping of {FLEET} agents"),
        &millis(pings),
        &format!(
            "the first one {}; agents up in {}",
            millis(first),
            millis(started)
        ),
        &format!("{:.0} /s", count / pings.as_secs_f64()),
        "",
    );

    world.pass_days(740);
    let maintenance = time(world.host.command("ced").args(["maintain", "--json"]));
    let new = world.serial();
    let told = world.fleet.trusting(&new).len();
    let times = maintenance.as_secs_f64() / pings.as_secs_f64();
    report.line(
        &format!("fleet: ced maintain, rotation for {FLEET}"),
        &millis(maintenance),
        &format!("ced ping of all {}; told {told}", millis(pings)),
        &format!("{times:.2}"),
        "< 20",
    );
    report.must(
        new != "2",
        "ced maintain did not rotate a certificate that was due",
    );
    report.must(
        told == FLEET,
        "after ced maintain not all agents trust the new certificate",
    );
}
