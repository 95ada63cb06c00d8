//! The plan as a function of made-up facts: what services are told, what is refused, and that every interruption leads to the same end.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::accounts::Means;
use super::facts::{Facts, Running};
use super::look::{Entry, What};
use super::manifest::Manifest;
use super::packages::Package;
use super::plan::{Refusal, Request, plan};
use super::platform::{Init, System};
use super::step::Step;
use super::table::{self, AGENT, ALL, BINARY, DISPATCHER, Roles, Who};
use super::{removal, services};
use crate::core::paths::{Paths, Platform};
use crate::core::types;

const OURS: [u8; 32] = [7; 32];

fn facts(system: System, init: Init) -> Facts {
    Facts {
        system,
        init,
        paths: Paths::new("/", Platform::Standard),
        here: true,
        live: true,
        means: Means::Files,
        uids: BTreeMap::from([("root".to_owned(), 0)]),
        gids: BTreeMap::from([("root".to_owned(), 0)]),
        taken: BTreeSet::from([0]),
        entries: BTreeMap::new(),
        unreadable: BTreeMap::new(),
        owned: BTreeMap::new(),
        binary: OURS,
        manifest: Manifest::default(),
        services: BTreeMap::new(),
        problems: BTreeMap::new(),
        paired: false,
        set_up: false,
        key: PathBuf::from("/etc/ctrl-exec/dispatcher.key"),
        stranded: Vec::new(),
        old_serial: None,
    }
}

fn debian() -> Facts {
    facts(System::Debian, Init::Systemd)
}

fn request(roles: Roles) -> Request {
    Request {
        roles,
        ..Request::default()
    }
}

fn file(content: &str) -> Entry {
    Entry {
        what: What::File(Some(types::sha256(&[content.as_bytes()]))),
        mode: 0o755,
        ..Entry::default()
    }
}

/// What the host looks like after a step.
fn apply(facts: &mut Facts, step: &Step) {
    let ids = |facts: &Facts, who: &Who| (facts.uids[who.user], facts.gids[who.group]);
    match step {
        Step::Record { path, manifest } => {
            facts.entries.insert(path.clone(), file(""));
            facts.manifest = Manifest::parse(&manifest.to_string());
        }
        Step::AddGroup { name, gid } => {
            facts.gids.insert((*name).to_owned(), *gid);
            facts.taken.insert(*gid);
        }
        Step::AddUser { name, uid, .. } => {
            facts.uids.insert((*name).to_owned(), *uid);
            facts.taken.insert(*uid);
        }
        Step::DropUser { name } => drop(facts.uids.remove(*name)),
        Step::DropGroup { name } => drop(facts.gids.remove(*name)),
        Step::Folder { path, mode, owner } | Step::Own { path, mode, owner } => {
            let (uid, gid) = ids(facts, owner);
            let entry = facts.entries.entry(path.clone()).or_default();
            if entry.what == What::Nothing {
                entry.what = What::Folder { empty: true };
            }
            (entry.uid, entry.gid, entry.mode) = (uid, gid, *mode);
        }
        Step::OwnFiles { path, .. } => drop(facts.unreadable.remove(path)),
        Step::Keep { path, to }
        | Step::Restore {
            path: to,
            from: path,
        }
        | Step::Take {
            path: to,
            from: path,
            ..
        } => {
            let entry = facts.at(path).clone();
            facts.entries.insert(to.clone(), entry);
        }
        Step::Binary { path, mode } => {
            let mut entry = file("");
            (entry.what, entry.mode) = (What::File(Some(OURS)), *mode);
            facts.entries.insert(path.clone(), entry);
        }
        Step::Link { path, to } => {
            let mut entry = file("");
            entry.what = What::Link(to.into());
            facts.entries.insert(path.clone(), entry);
        }
        Step::Seed {
            path,
            text,
            mode,
            owner,
        } => {
            let mut entry = file(text);
            (entry.uid, entry.gid) = ids(facts, owner);
            entry.mode = *mode;
            facts.entries.insert(path.clone(), entry);
        }
        Step::Write { path, text, mode } => {
            let mut entry = file(text);
            entry.mode = *mode;
            facts.entries.insert(path.clone(), entry);
        }
        Step::Remove { path } | Step::RemoveTree { path } | Step::RemoveEmpty { path } => {
            if *path == table::own_state(&facts.paths) {
                facts.manifest = Manifest::default();
            }
            facts.entries.retain(|other, _| !other.starts_with(path));
        }
        Step::Run { words, .. } => {
            for service in services::of(facts.init) {
                let is = |order| *words == services::words(facts.init, order, service.name);
                let now = facts.services.entry(service.name).or_default();
                now.enabled |= is(services::Order::Enable);
                now.enabled &= !is(services::Order::Disable);
                now.active |= is(services::Order::Start);
                now.active &= !is(services::Order::Stop);
            }
        }
    }
}

fn lines(steps: &[Step]) -> Vec<String> {
    steps.iter().map(ToString::to_string).collect()
}

fn runs(steps: &[Step]) -> Vec<String> {
    lines(steps)
        .into_iter()
        .filter_map(|line| line.strip_prefix("run     ").map(str::to_owned))
        .collect()
}

/// A paired 0.12.3 agent of a tarball, running.
fn old_agent() -> Facts {
    let mut facts = debian();
    for path in [
        "/usr/local/bin/ctrl-exec-agent",
        "/etc/systemd/system/ctrl-exec-agent.service",
        "/etc/ctrl-exec-agent/agent.conf",
        "/etc/ctrl-exec-agent/scripts.conf",
    ] {
        facts.entries.insert(path.into(), file(path));
    }
    for map in [&mut facts.uids, &mut facts.gids] {
        map.insert("ctrl-exec-agent".to_owned(), 120);
    }
    facts.paired = true;
    facts.services.insert(
        "ctrl-exec-agent.service",
        Running {
            enabled: true,
            active: true,
        },
    );
    facts
}

#[test]
fn a_fresh_agent_is_enabled_with_its_executor_and_not_started() {
    let plan = plan(&debian(), request(AGENT)).unwrap();
    assert_eq!(
        runs(&plan.steps),
        [
            "systemctl daemon-reload",
            "systemctl enable ctrl-exec-exec.service",
            "systemctl enable ctrl-exec-agent.service",
            "systemctl enable ctrl-exec-agent-renew.timer",
            "systemctl start ctrl-exec-agent-renew.timer",
        ]
    );
    let notes = plan.notes.join("\n");
    assert!(
        notes.contains("Enabled: ctrl-exec-exec.service, ctrl-exec-agent.service"),
        "{notes}"
    );
    assert!(notes.contains("request-pairing"), "{notes}");
}

#[test]
fn what_runs_is_restarted_executor_first_and_the_rest_started() {
    let mut facts = old_agent();
    let done = plan(&facts, request(AGENT)).unwrap();
    assert_eq!(
        runs(&done.steps)[1..],
        [
            "systemctl enable ctrl-exec-exec.service",
            "systemctl enable ctrl-exec-agent-renew.timer",
            "systemctl start ctrl-exec-exec.service",
            "systemctl restart ctrl-exec-agent.service",
            "systemctl start ctrl-exec-agent-renew.timer",
        ]
    );
    let text = lines(&done.steps).join("\n");
    assert!(!text.contains("seed    /etc/ctrl-exec-agent/"), "{text}");
    assert!(
        text.contains("link    /usr/local/bin/ctrl-exec-agent -> /usr/bin/ctrl-exec"),
        "{text}"
    );
    for step in &done.steps {
        apply(&mut facts, step);
    }
    assert_eq!(lines(&plan(&facts, request(AGENT)).unwrap().steps), [""; 0]);
}

#[test]
fn a_running_service_that_would_not_start_again_stops_everything() {
    let mut facts = old_agent();
    facts
        .problems
        .insert("ctrl-exec-agent.service", "no [profile default]".to_owned());
    let refused = plan(&facts, request(AGENT)).unwrap_err();
    assert!(
        matches!(&refused, Refusal::WouldNotStart { service: "ctrl-exec-agent.service", why } if why == "no [profile default]"),
        "{refused}"
    );
    // The other role's service shares the binary.
    assert!(plan(&facts, request(DISPATCHER)).is_ok());
    facts.manifest.roles = AGENT;
    assert!(plan(&facts, request(DISPATCHER)).is_err());
    // One that does not run can be mended in peace.
    facts.manifest.roles = Roles::default();
    facts.services.clear();
    let plan = plan(&facts, request(AGENT)).unwrap();
    assert!(
        !runs(&plan.steps)
            .iter()
            .any(|run| run.ends_with("start ctrl-exec-agent.service"))
    );
    assert!(
        plan.notes
            .iter()
            .any(|note| note.starts_with("Not started: ctrl-exec-agent"))
    );
}

#[test]
fn whatever_interrupts_it_the_next_run_comes_to_the_same_end() {
    for (name, begin) in [
        ("fresh debian", debian()),
        ("fresh alpine", facts(System::Alpine, Init::Openrc)),
        ("fresh openwrt", facts(System::OpenWrt, Init::Procd)),
        ("0.12.3", old_agent()),
    ] {
        let steps = plan(&begin, request(ALL)).unwrap().steps;
        let mut whole = begin.clone();
        steps.iter().for_each(|step| apply(&mut whole, step));
        assert_eq!(plan(&whole, request(ALL)).unwrap().steps, [], "{name}");
        for cut in 0..steps.len() {
            let mut host = begin.clone();
            steps[..cut].iter().for_each(|step| apply(&mut host, step));
            let rest = plan(&host, request(ALL)).unwrap().steps;
            // A restart that was cut off is not forgotten.
            if name == "0.12.3" {
                let restart = "systemctl restart ctrl-exec-agent.service";
                let did = |steps: &[Step]| runs(steps).iter().any(|run| run == restart);
                assert!(
                    did(&steps[..cut]) || did(&rest),
                    "{cut}: {:?}",
                    lines(&rest)
                );
            }
            rest.iter().for_each(|step| apply(&mut host, step));
            assert!(host.entries == whole.entries, "{name}, cut at {cut}");
            assert!(host.manifest == whole.manifest, "{name}, cut at {cut}");
            assert!(host.services == whole.services, "{name}, cut at {cut}");
            assert_eq!(
                plan(&host, request(ALL)).unwrap().steps,
                [],
                "{name}, cut at {cut}"
            );
        }
    }
}

#[test]
fn an_interrupted_way_back_comes_to_the_same_end_too() {
    for purge in [false, true] {
        let mut begin = old_agent();
        plan(&begin, request(ALL))
            .unwrap()
            .steps
            .iter()
            .for_each(|step| apply(&mut begin, step));
        let steps = removal::plan(&begin, None, purge).steps;
        let mut whole = begin.clone();
        steps.iter().for_each(|step| apply(&mut whole, step));
        assert_eq!(removal::plan(&whole, None, purge).steps, []);
        let agent = whole.at(Path::new("/usr/local/bin/ctrl-exec-agent"));
        if purge {
            let left: Vec<_> = whole.entries.keys().collect();
            assert!(left.is_empty(), "{left:?}");
            assert_eq!(whole.uids.len(), 1);
        } else {
            assert_eq!(*agent, file("/usr/local/bin/ctrl-exec-agent"));
            assert!(!whole.is_there(Path::new("/usr/bin/ctrl-exec")));
            let now = whole.services["ctrl-exec-agent.service"];
            assert!(now.active && now.enabled, "the old agent goes on");
            assert!(!whole.services["ctrl-exec-exec.service"].enabled);
        }
        for cut in 0..steps.len() {
            let mut host = begin.clone();
            steps[..cut].iter().for_each(|step| apply(&mut host, step));
            let rest = removal::plan(&host, None, purge).steps;
            rest.iter().for_each(|step| apply(&mut host, step));
            assert!(host.entries == whole.entries, "cut at {cut}");
            assert!(host.uids == whole.uids, "cut at {cut}");
            assert!(host.services == whole.services, "cut at {cut}");
        }
    }
}

fn package(name: &str) -> Package {
    Package {
        name: name.to_owned(),
        manager: "dpkg",
        tool: "apt",
    }
}

#[test]
fn a_host_of_our_packages_is_left_to_them() {
    let mut host = debian();
    host.entries.insert(BINARY.into(), {
        let mut entry = file("");
        entry.what = What::File(Some(OURS));
        entry
    });
    host.owned
        .insert(BINARY.into(), package("ctrl-exec-runtime"));
    for take_over_packages in [false, true] {
        let asked = Request {
            take_over_packages,
            ..request(AGENT)
        };
        let refused = plan(&host, asked).unwrap_err();
        assert_eq!(refused, Refusal::Managed(package("ctrl-exec-runtime")));
    }
    // They came after an installation: that goes, theirs stays and runs.
    let owned = std::mem::take(&mut host.owned);
    plan(&host, request(AGENT))
        .unwrap()
        .steps
        .iter()
        .for_each(|step| apply(&mut host, step));
    host.owned = owned;
    let agent = "ctrl-exec-agent.service";
    host.services.entry(agent).or_default().active = true;
    for step in removal::plan(&host, None, false).steps {
        apply(&mut host, &step);
    }
    assert!(host.is_there(Path::new(BINARY)));
    assert!(!host.is_there(Path::new("/etc/systemd/system/ctrl-exec-agent.service")));
    let now = host.services[agent];
    assert!(now.active && now.enabled);
}

#[test]
fn files_of_packages_are_not_touched_silently() {
    let mut facts = debian();
    let path = Path::new("/usr/bin/ctrl-exec-agent");
    facts.entries.insert(path.into(), file("perl"));
    facts.owned.insert(path.into(), package("ctrl-exec-agent"));
    let refused = plan(&facts, request(AGENT)).unwrap_err();
    assert!(matches!(refused, Refusal::Packaged { .. }), "{refused}");
    assert!(plan(&facts, request(DISPATCHER)).is_ok());
    let plan = plan(
        &facts,
        Request {
            take_over_packages: true,
            ..request(AGENT)
        },
    )
    .unwrap();
    let text = lines(&plan.steps).join("\n");
    assert!(
        text.contains("keep    /usr/bin/ctrl-exec-agent in /var/lib/ctrl-exec-install/kept/"),
        "{text}"
    );
}

#[test]
fn the_operator_keeps_his_arrangements() {
    let mut facts = debian();
    let link = |to: &str| Entry {
        what: What::Link(to.into()),
        ..Entry::default()
    };
    facts.entries.insert(
        "/etc/systemd/system/ctrl-exec-agent.service".into(),
        link("/dev/null"),
    );
    facts
        .entries
        .insert("/var/lib/ctrl-exec-agent".into(), link("/srv/state"));
    facts.entries.insert(table::STALE_DROP_IN.into(), file(""));
    let found = plan(&facts, request(AGENT)).unwrap();
    let text = lines(&found.steps).join("\n");
    assert!(!text.contains("ctrl-exec-agent.service"), "{text}");
    assert!(
        !text.contains("folder  /var/lib/ctrl-exec-agent "),
        "{text}"
    );
    let notes = found.notes.join("\n");
    assert!(
        notes.contains("Left alone: '/etc/systemd/system/ctrl-exec-agent.service'"),
        "{notes}"
    );
    assert!(notes.contains(table::STALE_DROP_IN), "{notes}");
    facts
        .entries
        .insert("/etc/ctrl-exec-agent".into(), file(""));
    let refused = plan(&facts, request(AGENT)).unwrap_err();
    assert!(matches!(refused, Refusal::InTheWay { .. }), "{refused}");
}

#[test]
fn one_role_goes_and_the_other_stays() {
    let mut host = debian();
    plan(&host, request(ALL))
        .unwrap()
        .steps
        .iter()
        .for_each(|step| apply(&mut host, step));
    for step in removal::plan(&host, Some(AGENT), true).steps {
        apply(&mut host, &step);
    }
    let there = |path: &str| host.is_there(Path::new(path));
    assert!(there("/usr/bin/ctrl-exec") && there("/usr/bin/ced") && there("/etc/ctrl-exec"));
    assert!(
        !there("/usr/bin/cea")
            && !there("/etc/ctrl-exec-agent")
            && !there("/usr/sbin/ctrl-exec-exec")
    );
    assert!(host.uids.contains_key("ctrl-exec") && !host.uids.contains_key("ctrl-exec-agent"));
    let rest = request(ALL.without(AGENT));
    assert_eq!(plan(&host, rest).unwrap().steps, []);
}

#[test]
fn the_firewall_is_asked_once_and_only_on_request() {
    let mut host = facts(System::OpenWrt, Init::Procd);
    let asked = Request {
        open_port: true,
        ..request(AGENT)
    };
    assert!(
        !runs(&plan(&host, request(AGENT)).unwrap().steps)
            .iter()
            .any(|run| run.contains("firewall"))
    );
    let steps = plan(&host, asked).unwrap().steps;
    let sh = format!("sh {}", table::FIREWALL);
    assert!(runs(&steps).contains(&sh));
    let mut cut = host.clone();
    steps[..2].iter().for_each(|step| apply(&mut cut, step));
    assert!(runs(&plan(&cut, asked).unwrap().steps).contains(&sh));
    steps.iter().for_each(|step| apply(&mut host, step));
    assert_eq!(plan(&host, asked).unwrap().steps, []);
}

#[test]
fn the_serial_of_long_ago_becomes_a_map() {
    let mut facts = old_agent();
    facts.old_serial = Some("0a1b".to_owned());
    let map = facts.paths.trust_map();
    let steps = plan(&facts, request(AGENT)).unwrap().steps;
    let made = steps.iter().any(|step| {
        matches!(step, Step::Seed { path, text, .. } if *path == map && text.ends_with("\n0a1b dispatcher\n"))
    });
    assert!(made, "{:?}", lines(&steps));
    facts.entries.insert(map.clone(), file(""));
    let steps = plan(&facts, request(AGENT)).unwrap().steps;
    assert!(!lines(&steps).join("\n").contains("ctrl-exec-dispatchers"));
}
