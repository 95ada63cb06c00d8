//! What can be done here: for the log, and for whoever asks over the socket (spec/executor.md 12, 15.1).

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::house::House;
use crate::applets::VERSION;
use crate::core::config::{
    Baseline, Devices, Network, Ports, ProfileConfig, Scope, Syscalls, Want,
};
use crate::core::logging::Action;
use crate::core::sandbox::features::{Feature, Features};
use crate::core::sandbox::{Level, Protection, Protections};

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
    let profiles: Map<String, Value> = config
        .profiles
        .iter()
        .map(|(name, profile)| (name.to_string(), levels(&forecast(profile, house))))
        .collect();
    let baseline = match config.executor.baseline {
        Baseline::Compat => "compat",
        Baseline::Strict => "strict",
    };
    json!({
        "version": VERSION,
        "baseline": baseline,
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

/// What a profile will come to on this kernel, as far as that can be told without a run.
pub(super) fn forecast(profile: &ProfileConfig, house: &House) -> Protections {
    let features = &house.features;
    let mut report = Protections::default();
    let mut set = |protection, wanted: bool, feature: &Feature| {
        let level = match (wanted, feature) {
            (false, _) => Level::Off,
            (true, Ok(())) => Level::Enforced,
            (true, Err(why)) => Level::Degraded(why.clone()),
        };
        report.set(protection, level);
    };
    let always: Feature = Ok(());
    let identity = match features.privileged {
        true => Ok(()),
        false => Err("the executor is not root".to_owned()),
    };
    let lsm = |there: bool| there.then_some(()).ok_or_else(|| "not loaded".to_owned());
    let view = &features.mount_namespace;
    set(
        Protection::NoNewPrivileges,
        profile.no_new_privileges,
        &always,
    );
    set(Protection::Capabilities, true, &identity);
    set(Protection::FileSystemView, true, view);
    set(Protection::ReadOnlyRoot, !profile.writable.is_empty(), view);
    set(Protection::PrivateTmp, profile.private_tmp, view);
    set(
        Protection::KernelTunables,
        !profile.kernel_tunables_writable,
        view,
    );
    let minimal = profile.devices.value == Devices::Minimal;
    set(Protection::MinimalDevices, minimal, view);
    let landlock = profile.landlock != Want::Off;
    set(
        Protection::Landlock,
        landlock,
        &landlock_state(profile, features),
    );
    let filter = profile.syscalls.value != Syscalls::Off;
    set(Protection::Seccomp, filter, &features.seccomp);
    let no_userns = profile.deny_userns.value;
    set(Protection::NoUserNamespaces, no_userns, &features.seccomp);
    let private = |scope| scope == Scope::Private;
    set(
        Protection::PrivateProcesses,
        private(profile.processes.value),
        &features.pid_namespace,
    );
    set(
        Protection::PrivateIpc,
        private(profile.ipc.value),
        &features.ipc_namespace,
    );
    let own_network = profile.network.value != Network::Host;
    set(Protection::Network, own_network, &features.net_namespace);
    let cgroup = house.hierarchy.as_ref().map(|_| ()).map_err(Clone::clone);
    set(Protection::Cgroup, profile.cgroup != Want::Off, &cgroup);
    set(
        Protection::ResourceLimits,
        !profile.limits.is_empty(),
        &always,
    );
    set(
        Protection::AppArmor,
        profile.apparmor.is_some(),
        &lsm(features.apparmor),
    );
    set(
        Protection::SeLinux,
        profile.selinux.is_some(),
        &lsm(features.selinux),
    );
    report
}

fn landlock_state(profile: &ProfileConfig, features: &Features) -> Feature {
    /// The first version with TCP ports.
    const PORTS: u32 = 4;
    features.landlock.clone()?;
    let any = profile.tcp_connect == Ports::Any && profile.tcp_bind == Ports::Any;
    if any || features.landlock_abi >= PORTS {
        Ok(())
    } else {
        Err(format!(
            "this kernel's Landlock (ABI {}) knows no ports",
            features.landlock_abi
        ))
    }
}

/// Says once for each protection which profiles have to do without it.
pub(super) fn log_degraded(house: &House) {
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
    for (name, profile) in &house.policy.config.profiles {
        for (protection, why) in forecast(profile, house).degraded() {
            let entry = found.entry(protection);
            let entry = entry.or_insert_with(|| (why.to_owned(), Vec::new()));
            entry.1.push(name.to_string());
        }
    }
    found
}
