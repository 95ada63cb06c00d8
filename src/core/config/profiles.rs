//! `[profile NAME]` (spec/agent.md 3.5, spec/executor.md 7.2-7.5). What a profile does not say clearly is an error: a profile that
//! is read otherwise than it was meant gives rights away.

use std::collections::BTreeMap;

use super::ProfileConfig;
use super::diagnostics::{Report, Severity};
use super::raw::{Located, RawProfile, RawValue, Style};
use super::reader::Reader;
use super::source::SourceFile;
use crate::core::types::{AbsolutePath, ProfileName};

/// Longest user name and capability token (spec/executor.md 3.5).
const MAX_TOKEN: usize = 127;
/// Largest uid; 4294967295 is -1 to the kernel.
const MAX_UID: u64 = 4_294_967_294;

/// Names of `linux/capability.h` in the order of their numbers.
const CAPABILITIES: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// Validates all profiles in the order of their names.
pub(super) fn build(
    raw: BTreeMap<String, RawProfile>,
    style: Style,
    source: &SourceFile,
    report: &mut Report,
) -> BTreeMap<ProfileName, ProfileConfig> {
    let mut profiles = BTreeMap::new();
    for (name, raw) in raw {
        let Ok(valid) = ProfileName::new(&name) else {
            continue; // reported by the front end
        };
        let context = format!("Profile '{name}': ");
        let mut r = Reader::new(source, report, style, raw.table, context);
        let named_user = r.has("run_as");
        let profile = ProfileConfig {
            run_as: run_as(&mut r),
            caps: caps(&mut r).unwrap_or_default(),
            writable: writable(&mut r).unwrap_or_default(),
            no_new_privileges: r.boolean("no_new_privileges", true),
        };
        r.finish();
        if !named_user {
            let message = format!(
                "Profile '{name}': run_as is not set: under the executor its scripts run as root; write run_as = root if that is meant"
            );
            report.add(source.diagnostic(Severity::Warning, &raw.name_span, message));
        }
        profiles.insert(valid, profile);
    }
    profiles
}

fn run_as(r: &mut Reader<'_>) -> Option<String> {
    r.read("run_as", |r, value| {
        let user = match &value.value {
            RawValue::Text(text) => text.clone(),
            RawValue::Integer(uid) => uid.to_string(),
            other => {
                let message = format!(
                    "'run_as' must be a user name or a uid, not {}",
                    other.kind()
                );
                r.error(&value.span, &message);
                return None;
            }
        };
        let fault = if user.bytes().all(|b| b.is_ascii_digit()) && !user.is_empty() {
            let fits = user.parse::<u64>().is_ok_and(|uid| uid <= MAX_UID);
            (!fits).then(|| format!("run_as '{user}' out of range {}", r.in_file()))
        } else {
            (!is_user_name(&user)).then(|| format!("invalid run_as '{user}' {}", r.in_file()))
        };
        match fault {
            None => Some(user),
            Some(message) => {
                r.error(&value.span, &message);
                None
            }
        }
    })
}

fn is_user_name(text: &str) -> bool {
    let rest = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
    text.len() <= MAX_TOKEN
        && text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && text.bytes().all(rest)
}

fn caps(r: &mut Reader<'_>) -> Option<Vec<String>> {
    let separator = |c| matches!(c, ',' | ' ' | '\t');
    r.list("caps", separator, |r, items| {
        for item in &items.value {
            judge_capability(r, item);
        }
        Some(items.value.into_iter().map(|item| item.value).collect())
    })
}

fn judge_capability(r: &mut Reader<'_>, item: &Located<String>) {
    let cap = item.value.as_str();
    if CAPABILITIES.contains(&cap) {
        return;
    }
    let well_formed = cap.len() <= MAX_TOKEN
        && cap.strip_prefix("CAP_").is_some_and(|rest| {
            !rest.is_empty()
                && rest
                    .bytes()
                    .all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_')
        });
    let near = super::reader::closest_capability(cap, &CAPABILITIES)
        .map_or(String::new(), |near| format!("; did you mean {near}?"));
    let message = if well_formed {
        format!(
            "invalid capability '{cap}' (unknown to Linux) {}{near}",
            r.in_file()
        )
    } else {
        format!(
            "invalid capability '{cap}' (expected CAP_*) {}{near}",
            r.in_file()
        )
    };
    r.error(&item.span, &message);
}

fn writable(r: &mut Reader<'_>) -> Option<Vec<AbsolutePath>> {
    r.list(
        "writable",
        |c| c == ':',
        |r, items| {
            let mut dirs = Vec::new();
            for item in &items.value {
                if item.value.starts_with('/') {
                    dirs.extend(r.absolute(item, "writable path"));
                } else {
                    let message = format!(
                        "writable path must be absolute: '{}' {}",
                        item.value,
                        r.in_file()
                    );
                    r.error(&item.span, &message);
                }
            }
            Some(dirs)
        },
    )
}
