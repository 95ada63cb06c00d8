//! `list-requests`, `approve`, `deny` (spec/pairing.md 7.2-7.4).

use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use super::mode::outcome_text;
use super::{ApproveArgs, DenyArgs, ListRequestsArgs};
use crate::applets::ced::common;
use crate::applets::{AppError, Context, Exit};
use crate::core::pairing::approval::{Approved, Choice, Desk};
use crate::core::pairing::code::{CodeKind, PairingCode};
use crate::core::pairing::diagnostics;
use crate::core::pairing::ids::{Outcome, PairingId};
use crate::core::pairing::message::{parse_ip, parse_lookup_by};
use crate::core::pairing::queue::{Listing, Queue};
use crate::core::pairing::record::Record;
use crate::core::wire::LookupBy;
use crate::{complain, say};

/// How long `approve` waits to tell whether the certificate has arrived.
pub(super) const SETTLE: Duration = Duration::from_secs(10);

/// Shows what waits, and what became of the latest.
///
/// # Errors
/// The queue cannot be read.
pub(super) fn list(context: &Context, args: &ListRequestsArgs) -> Result<Exit, AppError> {
    // As in the original no configuration is needed where the default directory is meant.
    let configured = args.config.is_some()
        || context.paths.dispatcher_toml().exists()
        || context.paths.dispatcher_conf().exists();
    let dir = if configured {
        common::load_config(context, args.config.as_deref())?.pairing_dir
    } else {
        context.paths.pairing_dir()
    };
    let queue = Queue::at(&dir);
    let failed = |e: &dyn std::fmt::Display| AppError::failed(e.to_string());
    queue.expire(SystemTime::now()).map_err(|e| failed(&e))?;
    let listing = queue.listing().map_err(|e| failed(&e))?;
    for (id, reason) in &listing.unreadable {
        complain!("Warning: request {id} is left out: {reason}");
    }
    if args.json {
        say!("{}", as_json(&listing));
    } else {
        for line in as_table(&listing) {
            say!("{line}");
        }
    }
    Ok(Exit::Success)
}

fn as_table(listing: &Listing) -> Vec<String> {
    let mut lines = Vec::new();
    if listing.pending.is_empty() {
        lines.push("No pending pairing requests.".to_owned());
    } else {
        lines.push(row("ID", "HOSTNAME", "SOURCE IP", "REVERSE DNS", "CODE"));
        lines.push("-".repeat(98));
        lines.extend(listing.pending.iter().map(|record| {
            let code = format!("{} {}", record.code, record.kind());
            record_row(record, &code)
        }));
        lines.push(String::new());
        lines.push(
            "REVERSE DNS: (ok) = the name resolves back to the address, (?) = it does not."
                .to_owned(),
        );
        lines.push("CODE: compare it with the agent's screen before 'ced approve ID'. bound = protects against an active attacker; basic = older agent, does not.".to_owned());
    }
    if !listing.over.is_empty() {
        lines.push(String::new());
        lines.push("Lately:".to_owned());
        for (record, outcome) in &listing.over {
            lines.push(format!(
                "  {} {}: {}",
                record.id,
                record.hostname,
                outcome_text(*outcome)
            ));
        }
    }
    lines
}

fn row(id: &str, host: &str, source: &str, reverse: &str, code: &str) -> String {
    format!("{id:<16} {host:<24} {source:<16} {reverse:<28} {code}")
}

fn record_row(record: &Record, code: &str) -> String {
    let source = record
        .source
        .map_or_else(|| "unknown".to_owned(), |ip| ip.to_string());
    let reverse = match &record.reverse {
        Some(name) if name.confirmed => format!("{} (ok)", name.name),
        Some(name) => format!("{} (?)", name.name),
        None => "-".to_owned(),
    };
    row(
        record.id.as_str(),
        record.hostname.as_str(),
        &source,
        &reverse,
        code,
    )
}

fn as_json(listing: &Listing) -> Value {
    let over: Vec<Value> = listing
        .over
        .iter()
        .map(|(record, outcome)| {
            let mut value = record_json(record);
            value["state"] = json!(outcome.as_str());
            value
        })
        .collect();
    let unreadable: Vec<Value> = listing
        .unreadable
        .iter()
        .map(|(id, reason)| json!({"id": id.as_str(), "error": reason}))
        .collect();
    let requests: Vec<Value> = listing.pending.iter().map(record_json).collect();
    json!({"requests": requests, "over": over, "unreadable": unreadable})
}

fn record_json(record: &Record) -> Value {
    json!({
        "id": record.id.as_str(),
        "state": "pending",
        "hostname": record.hostname.as_str(),
        "source_ip": record.source,
        "ip": record.ip,
        "port": record.port,
        "lookup_by": record.lookup_by.map(|l| l.as_str()),
        "received": record.received,
        "code": record.code.to_string(),
        "code_kind": record.kind().as_str(),
        "reverse_dns": record.reverse.as_ref().map(|r| &r.name),
        "reverse_confirmed": record.reverse.as_ref().is_some_and(|r| r.confirmed),
    })
}

/// Longest time between an agent's showing its request id and the request's being in the queue.
const QUEUEING: Duration = Duration::from_secs(3);

/// Signs and registers, and tells whether it arrived.
///
/// # Errors
/// The words make no sense, or [`crate::core::pairing::approval::ApproveError`].
pub(super) fn approve(context: &Context, args: &ApproveArgs) -> Result<Exit, AppError> {
    let choice = choice(args)?;
    let id = PairingId::new(&args.reqid).map_err(|e| AppError::failed(e.to_string()))?;
    let desk = desk(context, args.config.as_deref())?;
    desk.queue().await_known(&id, QUEUEING);
    let approved = desk
        .approve(&id, &choice)
        .map_err(|e| AppError::failed(e.to_string()))?;
    if approved.record.kind() == CodeKind::Basic && !args.json {
        complain!("Note: {}", diagnostics::BASIC_APPROVED);
    }
    if !args.json {
        for line in approved_lines(&approved) {
            say!("{line}");
        }
    }
    let outcome = desk.settle(&approved, SETTLE);
    if args.json {
        say!("{}", approved_json(&approved, outcome));
    } else {
        say!(
            "Delivery: {}",
            match outcome {
                Some(outcome) => outcome_text(outcome),
                None =>
                    "the agent has not confirmed yet (a person may have to, on its terminal); 'ced list-requests' tells",
            }
        );
    }
    Ok(match outcome {
        Some(Outcome::Undelivered | Outcome::RefusedByAgent) => Exit::Failure,
        _ => Exit::Success,
    })
}

fn choice(args: &ApproveArgs) -> Result<Choice, AppError> {
    let lookup_by = match args.lookup_by.as_deref() {
        None => None,
        Some(word) => Some(
            parse_lookup_by(word)
                .ok_or_else(|| AppError::usage("--lookup-by must be 'ip' or 'hostname'"))?,
        ),
    };
    let port = match args.agent_port.as_deref() {
        None => None,
        Some(word) => Some(
            word.parse()
                .ok()
                .filter(|port| *port > 0)
                .ok_or_else(|| AppError::usage("--agent-port must be a number from 1 to 65535"))?,
        ),
    };
    let ip = match args.ip.as_deref() {
        None => None,
        Some(word) => Some(
            parse_ip(word)
                .ok_or_else(|| AppError::usage("--ip must be an IPv4 or IPv6 address"))?,
        ),
    };
    let code = match args.code.as_deref() {
        None => None,
        Some(word) => Some(
            word.parse::<PairingCode>()
                .map_err(|e| AppError::usage(e.to_string()))?,
        ),
    };
    Ok(Choice {
        lookup_by,
        ip,
        port,
        replace: args.replace,
        code,
        shown: None,
    })
}

fn desk(context: &Context, config: Option<&std::path::Path>) -> Result<Desk, AppError> {
    let config = common::load_config(context, config)?;
    let clock = common::clock(context, &config);
    Ok(Desk { config, clock })
}

/// What the operator reads after an approval (spec/pairing.md 7.3).
pub(super) fn approved_lines(approved: &Approved) -> Vec<String> {
    let (record, agent) = (&approved.record, &approved.agent);
    let mut lines = vec![
        format!("Approved '{}' (request {}).", agent.name, record.id),
        format!(
            "Registered as '{}': lookup_by={}, addr={}",
            agent.name,
            agent.lookup_by.as_str(),
            address_of(approved),
        ),
    ];
    if let (Some(reported), Some(source)) = (record.differing_ip(), record.source) {
        lines.push(format!(
            "Note: the agent reported address {reported} but came from {source}."
        ));
    }
    if agent.lookup_by == LookupBy::Ip {
        return lines;
    }
    if let Some(source) = record.source {
        lines.push(format!(
            "If the name does not resolve here: ced edit-agent {} --lookup-by ip --ip {source}",
            agent.name
        ));
    }
    let local = record.source.is_some_and(|ip| ip.is_loopback());
    if let Some(reverse) = record.reverse.as_ref().filter(|r| r.confirmed && !local)
        && !reverse.name.eq_ignore_ascii_case(agent.name.as_str())
    {
        lines.push(format!(
            "Or, as the address is '{}': ced edit-agent {} --rename {}",
            reverse.name, agent.name, reverse.name
        ));
    }
    lines
}

fn address_of(approved: &Approved) -> String {
    let agent = &approved.agent;
    match (agent.lookup_by, agent.ip.parse::<std::net::IpAddr>()) {
        (LookupBy::Ip, Ok(ip)) => std::net::SocketAddr::new(ip, agent.port).to_string(),
        _ => format!("{}:{}", agent.hostname, agent.port),
    }
}

fn approved_json(approved: &Approved, outcome: Option<Outcome>) -> Value {
    let (record, agent) = (&approved.record, &approved.agent);
    json!({
        "id": record.id.as_str(),
        "name": agent.name.as_str(),
        "code": record.code.to_string(),
        "code_kind": record.kind().as_str(),
        "lookup_by": agent.lookup_by.as_str(),
        "ip": agent.ip,
        "port": agent.port,
        "expiry": agent.expiry,
        "cert_serial": agent.cert_serial,
        "delivery": outcome.map(Outcome::as_str),
    })
}

/// Refuses a request.
///
/// # Errors
/// There is no such request, or it is over.
pub(super) fn deny(context: &Context, args: &DenyArgs) -> Result<Exit, AppError> {
    let id = PairingId::new(&args.reqid).map_err(|e| AppError::failed(e.to_string()))?;
    let desk = desk(context, args.config.as_deref())?;
    desk.queue().await_known(&id, QUEUEING);
    desk.deny(&id)
        .map_err(|e| AppError::failed(e.to_string()))?;
    say!("Denied request '{id}'.");
    Ok(Exit::Success)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::pairing::record::{ReverseName, sample};

    fn listing() -> Listing {
        let mut first = sample("00aa", "web01", true);
        first.reverse = Some(ReverseName {
            name: "web01.example.org".to_owned(),
            confirmed: true,
        });
        Listing {
            pending: vec![first, sample("00bb", "web02", false)],
            over: vec![(sample("00cc", "web03", false), Outcome::Abandoned)],
            unreadable: vec![(PairingId::new("00dd").unwrap(), "damaged".to_owned())],
        }
    }

    #[test]
    fn the_table_has_the_id_first_and_lines_up() {
        let lines = as_table(&listing());
        assert!(lines[0].starts_with(
            "ID               HOSTNAME                 SOURCE IP        REVERSE DNS                  CODE"
        ));
        assert_eq!(lines[1], "-".repeat(98));
        assert_eq!(lines[2].split_whitespace().next(), Some("00aa"));
        assert!(lines[2].contains("web01.example.org (ok)") && lines[2].ends_with(" bound"));
        assert!(lines[3].contains(" - ") && lines[3].ends_with(" basic"));
        assert!(
            lines
                .iter()
                .any(|l| l.contains("00cc web03: the agent hung up"))
        );
        let empty = Listing {
            pending: Vec::new(),
            over: Vec::new(),
            unreadable: Vec::new(),
        };
        assert_eq!(as_table(&empty), ["No pending pairing requests."]);
    }

    #[test]
    fn the_json_has_what_scripts_need() {
        let value = as_json(&listing());
        let first = &value["requests"][0];
        assert_eq!(first["id"], "00aa");
        assert_eq!(first["code_kind"], "bound");
        assert_eq!(first["code"].as_str().map(str::len), Some(6));
        assert_eq!(first["reverse_confirmed"], true);
        assert_eq!(value["requests"].as_array().map(Vec::len), Some(2));
        assert_eq!(value["over"][0]["state"], "abandoned");
        assert_eq!(value["unreadable"][0]["id"], "00dd");
    }

    #[test]
    fn flags_are_checked_before_anything_is_touched() {
        let args = |f: fn(&mut ApproveArgs)| {
            let mut args = ApproveArgs {
                reqid: "00aa".to_owned(),
                ..ApproveArgs::default()
            };
            f(&mut args);
            choice(&args)
        };
        assert!(args(|_| {}).is_ok());
        assert!(args(|a| a.lookup_by = Some("dns".to_owned())).is_err());
        for bad in ["0", "65536", "x", "-1"] {
            let args = ApproveArgs {
                agent_port: Some(bad.to_owned()),
                ..ApproveArgs::default()
            };
            assert!(choice(&args).is_err(), "{bad}");
        }
        let error = args(|a| a.ip = Some("999.1.1.1".to_owned())).unwrap_err();
        assert_eq!(
            error.message(),
            Some("--ip must be an IPv4 or IPv6 address")
        );
        assert!(args(|a| a.code = Some("12345".to_owned())).is_err());
        let full = args(|a| {
            a.lookup_by = Some("ip".to_owned());
            a.ip = Some("::ffff:192.0.2.1".to_owned());
            a.agent_port = Some("7500".to_owned());
            a.code = Some("000042".to_owned());
            a.replace = true;
        });
        let full = full.unwrap();
        assert_eq!(
            (full.ip, full.port, full.replace),
            (parse_ip("192.0.2.1"), Some(7500), true)
        );
    }
}
