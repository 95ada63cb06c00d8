//! What can be done here: for the log, and for whoever asks over the socket (spec/executor.md 12, 15.1).

use std::collections::BTreeMap;

use rustix::process::{Pid, WaitOptions, waitpid};
use serde_json::{Map, Value, json};

use super::house::House;
use crate::applets::VERSION;
use crate::core::logging::Action;
use crate::core::sandbox::assess::{self, Assessment};
use crate::core::sandbox::features::Feature;
use crate::core::sandbox::{Level, Protection, Protections};
use crate::core::sys::fork::{self, Side};

/// The facilities of the kernel that somebody may ask for, and what each is here.
fn facilities(house: &House) -> Vec<(&'static str, Feature)> {
    let features = &house.features;
    let flag = |there: bool| there.then_some(()).ok_or_else(|| "not there".to_owned());
    let cgroup = house.hierarchy.as_ref().map(|_| ()).map_err(Clone::clone);
    vec![
        ("mount_namespace", features.mount_namespace.clone()),
        ("pid_namespace", features.pid_namespace.clone()),
        ("net_namespace", features.net_namespace.clone()),
        ("ipc_namespace", features.ipc_namespace.clone()),
        ("seccomp", features.seccomp.clone()),
        ("landlock", features.landlock.clone()),
        ("cgroup", cgroup),
        ("mount_setattr", flag(features.mount_setattr)),
        ("clone3", flag(features.clone3)),
        ("pidfd", flag(features.pidfd)),
        ("openat2", flag(features.openat2)),
        ("ambient", flag(features.ambient)),
        ("apparmor", flag(features.apparmor)),
        ("selinux", flag(features.selinux)),
    ]
}

/// The names of what is there, for `exec-start`.
pub(super) fn feature_names(house: &House) -> String {
    let there = facilities(house).into_iter().filter(|(_, f)| f.is_ok());
    let names: Vec<String> = there
        .map(|(name, _)| match name {
            "landlock" => format!("landlock:{}", house.features.landlock_abi),
            other => other.to_owned(),
        })
        .collect();
    names.join(",")
}

/// The answer to [`crate::core::exec::frame::JobOrder::Hello`], one line of JSON.
pub(super) fn features_json(house: &House) -> String {
    let config = &house.policy.config;
    let state = |feature: Feature| match feature {
        Ok(()) => Value::from("available"),
        Err(why) => Value::from(why),
    };
    let features: Map<String, Value> = facilities(house)
        .into_iter()
        .map(|(name, feature)| (name.to_owned(), state(feature)))
        .collect();
    let profiles: Map<String, Value> = assessments(house)
        .into_iter()
        .map(|script| (script.profile, levels(&script.protections)))
        .collect();
    json!({
        "version": VERSION,
        "baseline": config.executor.baseline.word(),
        "kernel": house.features.kernel,
        "privileged": house.unprivileged.is_none(),
        "policy": house.policy.hash,
        "landlock_abi": house.features.landlock_abi,
        "features": features,
        "profiles": profiles,
    })
    .to_string()
}

fn levels(protections: &Protections) -> Value {
    let named = protections.0.iter().map(|(protection, level)| {
        let level = match level {
            Level::Enforced => "enforced".to_owned(),
            Level::Degraded(why) => format!("degraded: {why}"),
            Level::Off => "off".to_owned(),
        };
        (protection.name().to_owned(), Value::from(level))
    });
    Value::Object(named.collect())
}

/// The scripts of the allowlist on the way of a real run, as far as the fork.
fn assessments(house: &House) -> Vec<Assessment> {
    let controllers = match &house.hierarchy {
        Ok(hierarchy) => Ok(hierarchy.controllers().map(str::to_owned).collect()),
        Err(why) => Err(why.clone()),
    };
    assess::assess_all(assess::House {
        config: &house.policy.config,
        allowlist: &house.policy.allowlist,
        features: &house.features,
        protected: &house.protected,
        controllers: &controllers,
    })
}

/// Says once for each protection which profiles have to do without it.
///
/// In a process of its own: whoever listens keeps none of the memory that this takes.
pub(super) fn log_degraded(house: &House) {
    match fork::fork() {
        Ok(Side::Child) => {
            log_all_degraded(house);
            fork::leave(0)
        }
        Ok(Side::Parent(pid)) => {
            if let Some(pid) = Pid::from_raw(pid) {
                let _ = waitpid(Some(pid), WaitOptions::empty());
            }
        }
        Err(_) => log_all_degraded(house),
    }
}

fn log_all_degraded(house: &House) {
    for (protection, (why, profiles)) in degraded(house) {
        Action::new("exec-degraded")
            .field("ERROR", why)
            .field("FEATURE", protection.name())
            .field("KERNEL", &house.features.kernel)
            .field("PROFILES", profiles.join(","))
            .warning();
    }
}

fn degraded(house: &House) -> BTreeMap<Protection, (String, Vec<String>)> {
    let mut found: BTreeMap<Protection, (String, Vec<String>)> = BTreeMap::new();
    for script in assessments(house) {
        for (protection, why) in script.protections.degraded() {
            let entry = found.entry(protection);
            let (_, profiles) = entry.or_insert_with(|| (why.to_owned(), Vec::new()));
            if !profiles.contains(&script.profile) {
                profiles.push(script.profile.clone());
            }
        }
    }
    found
}
