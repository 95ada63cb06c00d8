//! Revocation end to end: who is revoked is refused by everything here, and every agent hears of it, whenever it comes by (spec/swarm.md
//! 3.5.3).

// Helpers of tests stop as tests do; clippy's exceptions for tests reach only the test functions themselves.
#![allow(clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;

mod journal;
mod push;
mod refused;
mod unpair;

use common::Host;

pub const JOURNAL: &str = "etc/ctrl-exec/revoked.jsonl";
/// What an agent has been told.
pub const PUSHED: &str = "var/lib/ctrl-exec-agent/revoked-serials";

/// Lines of the journal.
pub fn journal(host: &Host) -> Vec<serde_json::Value> {
    let Ok(text) = std::fs::read_to_string(host.path(JOURNAL)) else {
        return Vec::new();
    };
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// Serials that an agent has been told, sorted.
pub fn pushed(agent: &Host) -> Vec<String> {
    let text = std::fs::read_to_string(agent.path(PUSHED)).unwrap_or_default();
    let mut serials: Vec<String> = text
        .lines()
        .filter(|l| !l.starts_with('#') && !l.trim().is_empty())
        .map(|l| l.trim_start_matches("0x"))
        .map(str::to_owned)
        .collect();
    serials.sort();
    serials
}
