//! Who a script runs as: `run_as`, `group`, `groups`, `caps`.

use caps::Capability;

use super::Rules;
use crate::core::config::diagnostics::Severity;
use crate::core::config::raw::{Located, RawValue, Style};
use crate::core::config::reader::{Reader, split};
use crate::core::config::values::digits;
use crate::core::config::{Groups, words};

/// Longest user name, group name and capability token (spec/executor.md 3.5).
const MAX_TOKEN: usize = 127;
/// Largest uid and gid; 4294967295 is -1 to the kernel.
const MAX_ID: u64 = 4_294_967_294;

/// A user name or uid as written (spec/executor.md 7.2).
pub(super) fn run_as(r: &mut Reader<'_>) -> Option<String> {
    r.read("run_as", |r, value| {
        let user = account_text(r, "run_as", "a user name or a uid", value)?;
        account(r, "run_as", &user)
    })
}

/// A group name or gid as written.
pub(super) fn group(r: &mut Reader<'_>) -> Option<String> {
    r.read("group", |r, value| {
        let group = account_text(r, "group", "a group name or a gid", value)?;
        account(r, "group", &group)
    })
}

/// `user`, `none`, or names and gids.
pub(super) fn groups(r: &mut Reader<'_>) -> Option<Groups> {
    const WHAT: &str = "'user', 'none' or group names and gids";
    r.read("groups", |r, value| {
        let items = match &value.value {
            RawValue::Text(text) if text == "user" => return Some(Groups::User),
            RawValue::Text(text) if text == "none" => return Some(Groups::None),
            RawValue::Text(text) if r.style == Style::Conf => {
                split(text, value.span.start, is_separator)
            }
            RawValue::List(items) => items
                .iter()
                .filter_map(|item| account_text(r, "groups", WHAT, item))
                .collect(),
            _ => return r.expected("groups", value, "\"user\", \"none\" or an array"),
        };
        if items.is_empty() {
            r.error(
                &value.span,
                "'groups' names no group: write 'none' if that is meant",
            );
            return None;
        }
        let mut list = Vec::new();
        for item in &items {
            if matches!(item.value.as_str(), "user" | "none") {
                let message = format!("'groups': '{}' stands alone, not in a list", item.value);
                r.error(&item.span, &message);
            } else if let Some(group) = account(r, "groups", item) {
                list.push(group);
            }
        }
        Some(Groups::List(list))
    })
}

fn account_text(
    r: &mut Reader<'_>,
    key: &str,
    what: &str,
    value: &Located<RawValue>,
) -> Option<Located<String>> {
    let text = match &value.value {
        RawValue::Text(text) => text.clone(),
        RawValue::Integer(id) => id.to_string(),
        other => {
            let message = format!("'{key}' must be {what}, not {}", other.kind());
            r.error(&value.span, &message);
            return None;
        }
    };
    Some(Located::new(text, value.span.clone()))
}

/// Judges one name or number; the words are the original's (spec/executor.md 7.3).
fn account(r: &mut Reader<'_>, key: &str, text: &Located<String>) -> Option<String> {
    let name = &text.value;
    let fault = if name.bytes().all(|b| b.is_ascii_digit()) && !name.is_empty() {
        let fits = digits(name).is_some_and(|id| id <= MAX_ID);
        (!fits).then(|| format!("{key} '{name}' out of range {}", r.in_file()))
    } else {
        (!is_account_name(name)).then(|| format!("invalid {key} '{name}' {}", r.in_file()))
    };
    match fault {
        None => Some(name.clone()),
        Some(message) => {
            r.error(&text.span, &message);
            None
        }
    }
}

fn is_account_name(text: &str) -> bool {
    let rest = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
    text.len() <= MAX_TOKEN
        && text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && text.bytes().all(rest)
}

fn is_separator(c: char) -> bool {
    matches!(c, ',' | ' ' | '\t')
}

/// Capabilities in the order of the file.
pub(super) fn caps(r: &mut Reader<'_>, rules: Rules) -> Option<Vec<Capability>> {
    r.list("caps", is_separator, |r, items| {
        if items.value.is_empty() && r.style == Style::Conf {
            r.error(&items.span, "'caps' names no capability");
        }
        let list = items.value.iter();
        Some(list.filter_map(|item| capability(r, item, rules)).collect())
    })
}

fn capability(r: &mut Reader<'_>, item: &Located<String>, rules: Rules) -> Option<Capability> {
    let cap = item.value.as_str();
    if let Ok(known) = cap.parse::<Capability>() {
        if rules.last_cap.is_none_or(|last| known.index() <= last) {
            return Some(known);
        }
        let message = format!(
            "invalid capability '{cap}' (the running kernel does not have it) {}",
            r.in_file()
        );
        r.error(&item.span, &message);
        return None;
    }
    let well_formed = cap.len() <= MAX_TOKEN
        && cap.strip_prefix("CAP_").is_some_and(|rest| {
            !rest.is_empty()
                && rest
                    .bytes()
                    .all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_')
        });
    if r.report.is_full() {
        r.report.count_only(Severity::Error);
        return None;
    }
    let names: Vec<String> = caps::all().iter().map(ToString::to_string).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let near = words::closest_capability(cap, &names)
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
    None
}
