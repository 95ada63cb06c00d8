//! `ced list-agents`, `edit-agent`, `unpair`: the registry as the operator sees it (spec/dispatcher.md 10.6-10.8).

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use argh::FromArgs;

use crate::applets::ced::{Call, common, revocation};
use crate::applets::{AppError, Context, Exit};
use crate::core::clock::Clock;
use crate::core::logging::Action;
use crate::core::pki::expiry;
use crate::core::registry::{AgentRecord, PeerCheck, Registry};
use crate::core::revocation::{Entry, Revocations};
use crate::core::types::AgentName;
use crate::core::wire::LookupBy;
use crate::{complain, say};

/// List the paired hosts.
#[derive(FromArgs)]
#[argh(help_triggers("-h", "--help"))]
struct ListArgs {
    /// configuration file (default /etc/ctrl-exec/ctrl-exec.toml, else ctrl-exec.conf; none is needed)
    #[argh(option)]
    config: Option<PathBuf>,
    /// print a JSON array of the records
    #[argh(switch)]
    json: bool,
    /// only hosts whose cached tags hold all of KEY=VALUE[,KEY=VALUE...]
    #[argh(option)]
    tags: Option<String>,
}

pub(super) fn list(context: &Context, call: &Call) -> Result<Exit, AppError> {
    let args: ListArgs = call.parse()?;
    let filter = args
        .tags
        .as_deref()
        .map(parse_tags)
        .transpose()
        .map_err(|why| AppError::usage(format!("Invalid --tags filter: {why}")))?;
    let registry = open(context, args.config)?;
    let listing = registry
        .list()
        .map_err(|e| AppError::failed(e.to_string()))?;
    for problem in &listing.unreadable {
        complain!("Warning: {problem}");
    }
    let chosen: Vec<&AgentRecord> = listing
        .agents
        .iter()
        .filter(|a| filter.as_ref().is_none_or(|wanted| has_tags(a, wanted)))
        .collect();
    if args.json {
        let records = serde_json::to_string(&chosen)
            .map_err(|e| AppError::failed(format!("cannot encode the registry: {e}")))?;
        say!("{records}");
        return Ok(Exit::Success);
    }
    if listing.agents.is_empty() {
        say!("No registered agents.");
        return Ok(Exit::Success);
    }
    if chosen.is_empty() {
        say!("No agents match the tag filter.");
        return Ok(Exit::Success);
    }
    say!(
        "{:<30}  {:<16}  {:<5}  {:<8}  {:<22}  {:<24}  DAYS LEFT",
        "HOSTNAME",
        "IP",
        "PORT",
        "LOOKUP",
        "PAIRED",
        "CERT EXPIRY"
    );
    say!("{}", "-".repeat(112));
    let now = Clock::with_floor_from(&context.time, &[]).now();
    let shown = |text: &str| {
        if text.is_empty() {
            "?".to_owned()
        } else {
            text.escape_debug().to_string()
        }
    };
    for agent in chosen {
        let days =
            expiry::days_left(&agent.expiry, now).map_or_else(|| "?".to_owned(), |d| d.to_string());
        say!(
            "{:<30}  {:<16}  {:<5}  {:<8}  {:<22}  {:<24}  {days}",
            shown(&agent.hostname),
            shown(&agent.ip),
            agent.port,
            agent.lookup_by.as_str(),
            shown(&agent.paired),
            shown(&agent.expiry),
        );
    }
    Ok(Exit::Success)
}

fn parse_tags(filter: &str) -> Result<BTreeMap<&str, &str>, String> {
    let mut wanted = BTreeMap::new();
    for part in filter.split(',').map(str::trim).filter(|p| !p.is_empty()) {
        match part.split_once('=') {
            Some((key, value)) if !key.is_empty() => {
                wanted.insert(key, value);
            }
            _ => {
                return Err(format!(
                    "invalid tag filter '{}' (expected key=value)",
                    part.escape_debug()
                ));
            }
        }
    }
    if wanted.is_empty() {
        return Err("empty tag filter (expected key=value[,key=value...])".to_owned());
    }
    Ok(wanted)
}

fn has_tags(agent: &AgentRecord, wanted: &BTreeMap<&str, &str>) -> bool {
    wanted
        .iter()
        .all(|(key, value)| agent.tags.get(*key).map(String::as_str) == Some(*value))
}

fn open(context: &Context, config: Option<PathBuf>) -> Result<Registry, AppError> {
    // The original needs no configuration here; neither do we where the default directory is meant.
    let configured = config.is_some()
        || context.paths.dispatcher_toml().exists()
        || context.paths.dispatcher_conf().exists();
    let dir = if configured {
        common::load_config(context, config.as_deref())?.registry_dir
    } else {
        context.paths.registry_dir()
    };
    Ok(Registry::new(dir))
}

/// Change how a paired host is addressed. Only the registry changes; the host's certificate stays.
#[derive(FromArgs)]
#[argh(help_triggers("-h", "--help"))]
struct EditArgs {
    /// configuration file (default /etc/ctrl-exec/ctrl-exec.toml, else ctrl-exec.conf; none is needed)
    #[argh(option)]
    config: Option<PathBuf>,
    /// print the changed record as JSON
    #[argh(switch)]
    json: bool,
    /// new name in the registry
    #[argh(option)]
    rename: Option<String>,
    /// address to connect to when looked up by ip
    #[argh(option)]
    ip: Option<String>,
    /// port of the agent
    #[argh(option)]
    agent_port: Option<String>,
    /// connect to the ip or to the hostname
    #[argh(option)]
    lookup_by: Option<String>,
    /// name that the agent's certificate carries, if it is not the registry name
    #[argh(option)]
    cert_name: Option<String>,
    /// strict (default): the certificate must be this host's; off: any agent of this CA may answer
    #[argh(option)]
    peer_check: Option<String>,
    /// registry name of the host
    #[argh(positional)]
    name: String,
}

pub(super) fn edit(context: &Context, call: &Call) -> Result<Exit, AppError> {
    let args: EditArgs = call.parse()?;
    let usage = |text: &str| AppError::usage(text.to_owned());
    let lookup_by = match args.lookup_by.as_deref() {
        None => None,
        Some("ip") => Some(LookupBy::Ip),
        Some("hostname") => Some(LookupBy::Hostname),
        Some(_) => return Err(usage("--lookup-by must be 'ip' or 'hostname'")),
    };
    let port = match args.agent_port.as_deref().map(str::parse::<u16>) {
        None => None,
        Some(Ok(port)) if port > 0 => Some(port),
        Some(_) => return Err(usage("--agent-port must be a port number (1-65535)")),
    };
    let ip = match args.ip.as_deref() {
        None => None,
        Some("") => return Err(usage("--ip must not be empty")),
        Some(text) => Some(
            text.parse::<IpAddr>()
                .map_err(|_| usage("--ip must be an IPv4 or IPv6 address"))?
                .to_string(),
        ),
    };
    let peer_check = match args.peer_check.as_deref() {
        None => None,
        Some("strict") => Some(PeerCheck::Strict),
        Some("off") => Some(PeerCheck::Off),
        Some(_) => return Err(usage("--peer-check must be 'strict' or 'off'")),
    };
    let parse_name = |text: &str| {
        text.parse::<AgentName>()
            .map_err(|e| AppError::failed(format!("Edit failed: {e}")))
    };
    let rename = args.rename.as_deref().map(parse_name).transpose()?;
    let cert_name = args.cert_name.as_deref().map(parse_name).transpose()?;
    if rename.is_none()
        && lookup_by.is_none()
        && port.is_none()
        && ip.is_none()
        && peer_check.is_none()
        && cert_name.is_none()
    {
        return Err(usage(
            "Nothing to change. Use --rename, --ip, --agent-port, --lookup-by, --cert-name or --peer-check.",
        ));
    }
    let name = parse_name(&args.name)?;
    let registry = open(context, args.config)?;
    let edit_failed = |e: &dyn std::fmt::Display| AppError::failed(format!("Edit failed: {e}"));

    let mut line = Action::new("edit-agent");
    let mut current = name.clone();
    if let Some(new) = rename.filter(|new| *new != name) {
        registry.rename(&name, &new).map_err(|e| edit_failed(&e))?;
        line = line.field("RENAMED_FROM", &name);
        current = new;
    }
    let record = registry
        .update(&current, |record| {
            if let Some(ip) = &ip {
                record.ip.clone_from(ip);
            }
            if let Some(port) = port {
                record.port = port;
            }
            if let Some(lookup_by) = lookup_by {
                record.lookup_by = lookup_by;
            }
            if let Some(cert_name) = &cert_name {
                record.cert_cn = Some(cert_name.to_string());
            }
            if let Some(check) = peer_check {
                record.peer_check = check;
            }
        })
        .map_err(|e| edit_failed(&e))?;
    line = line.field("AGENT", &current);
    if let Some(ip) = &ip {
        line = line.field("IP", ip);
    }
    if let Some(port) = port {
        line = line.field("PORT", port);
    }
    if lookup_by.is_some() {
        line = line.field("LOOKUP_BY", record.lookup_by.as_str());
    }
    if let Some(cert_name) = &cert_name {
        line = line.field("CERT_NAME", cert_name);
    }
    if peer_check.is_some() {
        line = line.field("PEER_CHECK", record.peer_check.as_str());
    }
    line.info();

    if args.json {
        let text = serde_json::to_string(&record)
            .map_err(|e| AppError::failed(format!("cannot encode the record: {e}")))?;
        say!("{text}");
        return Ok(Exit::Success);
    }
    say!("Updated agent '{current}'.");
    if current != name {
        say!("  renamed from: {name}");
    }
    say!("  ip:         {}", record.ip.escape_debug());
    say!("  port:       {}", record.port);
    say!("  lookup_by:  {}", record.lookup_by.as_str());
    if record.peer_check == PeerCheck::Off {
        say!("  peer_check: off (any agent of this CA may answer for '{current}')");
    }
    Ok(Exit::Success)
}

/// Forget a paired host, and revoke its certificate if you say so.
#[derive(FromArgs)]
#[argh(help_triggers("-h", "--help"))]
struct UnpairArgs {
    /// configuration file (default /etc/ctrl-exec/ctrl-exec.toml, else ctrl-exec.conf; none is needed)
    #[argh(option)]
    config: Option<PathBuf>,
    /// revoke its certificate too, without asking
    #[argh(switch)]
    revoke: bool,
    /// leave its certificate alone, without asking (without a terminal this is the default)
    #[argh(switch)]
    keep_certificate: bool,
    /// registry name of the host
    #[argh(positional)]
    name: String,
}

pub(super) fn unpair(context: &Context, call: &Call) -> Result<Exit, AppError> {
    let args: UnpairArgs = call.parse()?;
    if args.revoke && args.keep_certificate {
        return Err(AppError::usage(
            "--revoke and --keep-certificate exclude each other",
        ));
    }
    let failed = |e: &dyn std::fmt::Display| AppError::failed(format!("Unpair failed: {e}"));
    let name: AgentName = args.name.parse().map_err(|e| failed(&e))?;
    let registry = open(context, args.config.clone())?;
    let known = registry.get(&name).ok().flatten();
    let serial = known.as_ref().and_then(|r| r.cert_serial.clone());
    let revoke = match &serial {
        _ if args.keep_certificate => None,
        None if args.revoke && known.is_some() => {
            return Err(failed(&format!(
                "the registry does not know the serial of '{name}': 'ced revoke {name}' asks the host for it; then unpair it"
            )));
        }
        None => None,
        Some(serial) if args.revoke || wants_revocation(&name)? => Some(serial),
        Some(_) => None,
    };
    // First shut out, then forgotten: a crash in between leaves a host that is registered and refused.
    let mut told = None;
    if let (Some(serial), Some(record)) = (revoke, &known) {
        let config = common::load_config(context, args.config.as_deref())?;
        let entry = Entry {
            serial: serial.clone(),
            spki: record.cert_spki.clone(),
            agent: Some(name.clone()),
            time: Clock::with_floor_from(&context.time, &[]).iso_now(),
            reason: Some("unpaired".to_owned()),
        };
        revocation::write_down(&config, &entry)?;
        told = Some(config);
    }
    let record = registry.remove(&name).map_err(|e| failed(&e))?;
    Action::new("unpair")
        .field("AGENT", &name)
        .field("EXPIRY", &record.expiry)
        .info();
    say!("Unregistered '{name}'.");
    if let Some(config) = told {
        say!("Its certificate is revoked.");
        revocation::print_told(&revocation::push(context, &config)?);
        return Ok(Exit::Success);
    }
    if is_revoked(context, args.config.as_deref(), &record) {
        say!("Its certificate is revoked already.");
        return Ok(Exit::Success);
    }
    let until = if record.expiry.is_empty() {
        "an unknown date".to_owned()
    } else {
        record.expiry.escape_debug().to_string()
    };
    say!("Warning: its certificate stays valid until {until}; the host itself was not contacted.");
    let serial = serial.unwrap_or_else(|| "SERIAL".to_owned());
    say!("To shut it out: ced revoke 0x{serial}");
    Ok(Exit::Success)
}

/// As far as the journal can be read; whoever has none has revoked nothing.
fn is_revoked(context: &Context, config: Option<&Path>, record: &AgentRecord) -> bool {
    common::load_config(context, config)
        .ok()
        .and_then(|config| Revocations::load(&config.revoked_file).ok())
        .is_some_and(|revoked| revoked.concerns(record))
}

/// Asks the person at the terminal; where there is none, the certificate stays, as in the original.
fn wants_revocation(name: &AgentName) -> Result<bool, AppError> {
    use std::io::{BufRead as _, IsTerminal as _};
    if !std::io::stdin().is_terminal() {
        return Ok(false);
    }
    complain!(
        "Revoke the certificate of '{name}' too, so that nobody can use it any more? [y/N]: "
    );
    let mut answer = String::new();
    std::io::stdin()
        .lock()
        .read_line(&mut answer)
        .map_err(|e| AppError::failed(format!("cannot read the answer: {e}")))?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tag_filters_are_read_as_in_the_original() {
        assert_eq!(
            parse_tags("a=1,,b=x=y").unwrap(),
            BTreeMap::from([("a", "1"), ("b", "x=y")])
        );
        assert_eq!(parse_tags("a=1,a=2").unwrap(), BTreeMap::from([("a", "2")]));
        assert_eq!(
            parse_tags("web").unwrap_err(),
            "invalid tag filter 'web' (expected key=value)"
        );
        assert_eq!(
            parse_tags("=x").unwrap_err(),
            "invalid tag filter '=x' (expected key=value)"
        );
        assert!(parse_tags(",").unwrap_err().starts_with("empty tag filter"));
    }
}
