//! `[profile NAME]` (spec/agent.md 3.5, spec/executor.md 7.2-7.5, 15.1). What a profile does not say clearly is an error: a profile
//! that is read otherwise than it was meant gives rights away.

#[cfg(test)]
mod baseline_tests;
mod identity;
#[cfg(test)]
mod key_tests;
mod limits;
mod rules;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use super::diagnostics::Report;
use super::raw::{Located, RawProfile, Style};
use super::reader::Reader;
use super::source::SourceFile;
use super::values::Unit;
use super::{
    Baseline, Devices, Leftovers, Network, OnDisconnect, ProfileConfig, Scope, ScriptTrust,
    Syscalls,
};
use crate::core::types::{AbsolutePath, ProfileName};

/// Longest time limit, as of `run_timeout`.
const MAX_TIMEOUT: u64 = 31 * 86_400;

/// What all profiles of a file are judged by.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules {
    pub(super) baseline: Baseline,
    /// Number of the last capability of the running kernel; `None` = not known, then the start of a script will tell.
    pub(super) last_cap: Option<u8>,
}

/// A `writable` path and where it stands, for the check against the protected paths.
pub(super) struct CarveOut {
    pub(super) profile: ProfileName,
    pub(super) path: AbsolutePath,
    pub(super) span: Range<usize>,
}

/// Validates all profiles in the order of their names.
pub(super) fn build(
    raw: BTreeMap<String, RawProfile>,
    style: Style,
    rules: Rules,
    source: &SourceFile,
    report: &mut Report,
) -> (BTreeMap<ProfileName, ProfileConfig>, Vec<CarveOut>) {
    let mut profiles = BTreeMap::new();
    let mut carve_outs = Vec::new();
    for (name, raw) in raw {
        let Ok(valid) = ProfileName::new(&name) else {
            continue; // reported by the front end
        };
        let context = format!("Profile '{name}': ");
        let mut r = Reader::new(source, report, style, raw.table, context);
        if rules.baseline == Baseline::Strict {
            r.refuse_unknown();
        }
        let places = rules::Places::of(&r, &raw.name_span);
        let (profile, writable) = read(&mut r, rules);
        rules::judge(&mut r, &profile, &places);
        r.finish();
        carve_outs.extend(writable.into_iter().map(|path| CarveOut {
            profile: valid.clone(),
            path: path.value,
            span: path.span,
        }));
        profiles.insert(valid, profile);
    }
    (profiles, carve_outs)
}

fn read(r: &mut Reader<'_>, rules: Rules) -> (ProfileConfig, Vec<Located<AbsolutePath>>) {
    let mut p = ProfileConfig::new(rules.baseline);
    p.run_as = identity::run_as(r);
    p.caps = identity::caps(r, rules).unwrap_or_default();
    let writable = r.paths("writable").unwrap_or_default();
    p.writable = plain(&writable);
    p.no_new_privileges = r.boolean("no_new_privileges", true);
    p.settle_defaults();
    p.group = identity::group(r);
    set(&mut p.groups, identity::groups(r));
    supervision(r, &mut p);
    view(r, &mut p);
    confinement(r, &mut p);
    limits::cgroup(r, &mut p);
    limits::rlimits(r, &mut p);
    surroundings(r, &mut p);
    trust(r, &mut p);
    (p, writable)
}

fn set<T>(field: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *field = value;
    }
}

fn plain(paths: &[Located<AbsolutePath>]) -> Vec<AbsolutePath> {
    paths.iter().map(|path| path.value.clone()).collect()
}

fn supervision(r: &mut Reader<'_>, p: &mut ProfileConfig) {
    if let Some(seconds) = r.integer("timeout", 0..=MAX_TIMEOUT, None) {
        p.timeout = (seconds > 0).then_some(Duration::from_secs(seconds));
    }
    p.kill_grace = r.seconds("kill_grace", 0..=3600, p.kill_grace);
    let words = [
        ("kill", OnDisconnect::Kill),
        ("continue", OnDisconnect::Continue),
    ];
    set(&mut p.on_disconnect, r.word("on_disconnect", &words));
    let words = [("kill", Leftovers::Kill), ("keep", Leftovers::Keep)];
    set(&mut p.leftovers, r.word("leftovers", &words));
}

fn view(r: &mut Reader<'_>, p: &mut ProfileConfig) {
    set(&mut p.hide, r.paths("hide").map(|list| plain(&list)));
    set(&mut p.read, r.paths("read").map(|list| plain(&list)));
    set(&mut p.execute, r.paths("execute").map(|list| plain(&list)));
    p.private_tmp = r.boolean("private_tmp", p.private_tmp);
    let size = r.amount("tmp_size", Unit::Bytes, 4096..=1 << 50);
    p.tmp_size = size.or(p.tmp_size);
    let words = [("ro", false), ("rw", true)];
    set(
        &mut p.kernel_tunables_writable,
        r.word("kernel_tunables", &words),
    );
    let words = [("host", Devices::Host), ("minimal", Devices::Minimal)];
    set(&mut p.devices, r.protected("devices", &words));
}

fn confinement(r: &mut Reader<'_>, p: &mut ProfileConfig) {
    set(&mut p.landlock, r.want("landlock"));
    let words = [
        ("host", Network::Host),
        ("none", Network::None),
        ("loopback", Network::Loopback),
    ];
    set(&mut p.network, r.protected("network", &words));
    set(&mut p.tcp_connect, r.ports("tcp_connect", 1));
    // To bind to port 0 is to ask for any free one.
    set(&mut p.tcp_bind, r.ports("tcp_bind", 0));
    let words = [
        ("off", Syscalls::Off),
        ("default", Syscalls::Default),
        ("strict", Syscalls::Strict),
    ];
    set(&mut p.syscalls, r.protected("syscalls", &words));
    let words = [("allow", false), ("deny", true)];
    set(&mut p.deny_userns, r.protected("userns", &words));
    let words = [("host", Scope::Host), ("private", Scope::Private)];
    set(&mut p.processes, r.protected("processes", &words));
    set(&mut p.ipc, r.protected("ipc", &words));
}

fn surroundings(r: &mut Reader<'_>, p: &mut ProfileConfig) {
    let cwd = r.text("cwd").and_then(|text| r.absolute(&text, "'cwd'"));
    set(&mut p.cwd, cwd);
    set(&mut p.umask, r.octal("umask", 0o777));
    set(&mut p.nice, r.signed("nice", -20..=19));
    set(
        &mut p.oom_score_adj,
        r.signed("oom_score_adj", -1000..=1000),
    );
    set(&mut p.env, limits::env(r));
}

fn trust(r: &mut Reader<'_>, p: &mut ProfileConfig) {
    let words = [
        ("enforce", ScriptTrust::Enforce),
        ("warn", ScriptTrust::Warn),
        ("off", ScriptTrust::Off),
    ];
    set(&mut p.script_trust, r.word("script_trust", &words));
    p.apparmor = label(r, "apparmor");
    p.selinux = label(r, "selinux");
    p.allow_setuid = r.boolean("allow_setuid", p.allow_setuid);
    p.root_semantics = r.boolean("root_semantics", p.root_semantics);
    // Read in any case, so that the key is known.
    let named = r.has("verified_copy");
    let copy = r.boolean("verified_copy", false);
    p.verified_copy = named.then_some(copy);
    p.i_understand_unconfined = r.boolean("i_understand_unconfined", p.i_understand_unconfined);
}

/// The name of an AppArmor profile or an SELinux context: one word, written to the kernel as it is.
fn label(r: &mut Reader<'_>, key: &'static str) -> Option<String> {
    r.read(key, |r, value| {
        let text = r.as_text(key, value)?;
        let word = text.value.bytes().all(|b| b.is_ascii_graphic());
        let parts = text
            .value
            .split(':')
            .filter(|part| !part.is_empty())
            .count();
        if !word || text.value.len() > 255 {
            return r.not(key, &text, "one word of at most 255 characters");
        }
        if key == "selinux" && parts < 3 {
            return r.not(key, &text, "a context such as user:role:type");
        }
        Some(text.value)
    })
}
