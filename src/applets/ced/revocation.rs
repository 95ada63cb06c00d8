//! `ced revoke` and `ced list-revoked`: shutting a certificate out (spec/swarm.md 3.5.3).

use std::path::PathBuf;

use argh::FromArgs;
use serde_json::{Value, json};

use crate::applets::ced::{Call, common};
use crate::applets::{AppError, Context, Exit};
use crate::core::client::fleet::Network as _;
use crate::core::config::DispatcherConfig;
use crate::core::config::diagnostics::printable;
use crate::core::keyring::{self, PairStore, names_serial};
use crate::core::logging::Action;
use crate::core::maintenance::{Maintenance, Seen, Told, ping_all};
use crate::core::registry::{AgentRecord, PeerCheck, Registry, Target};
use crate::core::revocation::{self, Entry, Revocations};
use crate::core::rotation::State;
use crate::core::types::{AgentName, Serial};
use crate::{complain, say};

/// Shut a certificate out for good: this dispatcher talks to it no more, and every agent is told its serial.
#[derive(FromArgs)]
#[argh(help_triggers("-h", "--help"))]
struct RevokeArgs {
    /// configuration file (default /etc/ctrl-exec/ctrl-exec.toml, else ctrl-exec.conf)
    #[argh(option)]
    config: Option<PathBuf>,
    /// print one JSON object instead of text
    #[argh(switch)]
    json: bool,
    /// why, for the journal
    #[argh(option)]
    reason: Option<String>,
    /// only write it down; 'ced maintain' tells the agents later
    #[argh(switch)]
    no_push: bool,
    /// revoke an older serial of this dispatcher although agents still depend on it
    #[argh(switch)]
    force: bool,
    /// registry name of a host, or a serial in hex (0x... if it could be a name)
    #[argh(positional)]
    what: String,
}

pub(super) fn revoke(context: &Context, call: &Call) -> Result<Exit, AppError> {
    let args: RevokeArgs = call.parse()?;
    let config = common::load_config(context, args.config.as_deref())?;
    let clock = common::clock(context, &config);
    let subject = subject(context, &config, &args.what)?;
    refuse_own(&config, &subject.serial, args.force)?;
    let reason = args
        .reason
        .as_deref()
        .map(|text| printable(text).to_string());
    let entry = Entry {
        serial: subject.serial.to_string(),
        spki: subject.spki,
        agent: subject.agent,
        time: clock.iso_now(),
        reason,
    };
    let new = write_down(&config, &entry)?;
    forget_own(&config, &subject.serial)?;
    let told = if args.no_push {
        Vec::new()
    } else {
        push(context, &config)?
    };
    report(&args, &entry, new, &told);
    Ok(Exit::Success)
}

/// What is to be shut out.
struct Subject {
    serial: Serial,
    spki: Option<String>,
    agent: Option<AgentName>,
}

/// A registered name first; what is none is a serial.
fn subject(context: &Context, config: &DispatcherConfig, word: &str) -> Result<Subject, AppError> {
    let registry = Registry::new(config.registry_dir.clone());
    if let Ok(name) = AgentName::new(word)
        && let Some(record) = registry
            .get(&name)
            .map_err(|e| AppError::failed(e.to_string()))?
    {
        return of_agent(context, config, record);
    }
    let serial = Serial::parse_hex(word)
        .ok()
        .filter(|s| !s.as_bytes().is_empty());
    let serial = serial.ok_or_else(|| {
        AppError::failed(format!(
            "'{}' is neither a registered host ('ced list-agents' shows them) nor a serial in hex",
            word.escape_debug()
        ))
    })?;
    // Whose it is, if the registry knows; then its key is shut out too.
    let owner = registry
        .list()
        .map_err(|e| AppError::failed(e.to_string()))?
        .agents
        .into_iter()
        .find(|a| {
            let known = a.cert_serial.as_deref().map(Serial::parse_hex);
            known.is_some_and(|s| s.as_ref() == Ok(&serial))
        });
    Ok(Subject {
        spki: owner.as_ref().and_then(|a| a.cert_spki.clone()),
        agent: owner.map(|a| a.name),
        serial,
    })
}

/// A record of the original does not tell the certificate's serial: then the host is asked for its certificate.
fn of_agent(
    context: &Context,
    config: &DispatcherConfig,
    record: AgentRecord,
) -> Result<Subject, AppError> {
    let name = record.name.clone();
    let known = record.cert_serial.as_deref().map(Serial::parse_hex);
    if let Some(Ok(serial)) = known {
        return Ok(Subject {
            serial,
            spki: record.cert_spki,
            agent: Some(name),
        });
    }
    if record.peer_check == PeerCheck::Off {
        return Err(AppError::failed(format!(
            "the registry does not know the serial of '{name}', and with its peer check off anybody may answer for it: give the serial itself, as in: ced revoke 0xSERIAL (openssl x509 -noout -serial -in its agent.crt)"
        )));
    }
    let (_, network) = common::network(context, config);
    let contacts = common::block_on(ping_all(&network, config, vec![Target::of(record)]))?
        .map_err(|e| AppError::failed(e.to_string()))?;
    let reply = contacts.into_iter().next();
    let failure = reply
        .as_ref()
        .and_then(|c| c.reply.as_ref().err())
        .map(ToString::to_string);
    match reply.and_then(crate::core::maintenance::Contact::seen) {
        Some(Seen { shown, .. }) => Ok(Subject {
            serial: shown.serial.clone(),
            spki: Some(crate::core::pki::keys::spki_sha256(&shown.spki)),
            agent: Some(name),
        }),
        None => Err(AppError::failed(format!(
            "the registry does not know the serial of '{name}', and the host cannot be asked ({}): give the serial itself (on the host: openssl x509 -noout -serial -in agent.crt), as in: ced revoke 0xSERIAL",
            failure.unwrap_or_else(|| "it did not answer as an agent".to_owned())
        ))),
    }
}

/// Revoking what we are called by ourselves would lock us out.
fn refuse_own(config: &DispatcherConfig, serial: &Serial, force: bool) -> Result<(), AppError> {
    let failed = |e: &dyn std::fmt::Display| AppError::failed(e.to_string());
    let present = keyring::configured_certificate(config)
        .map(|c| c.serial)
        .ok();
    let state = State::load(&config.rotation.file)
        .map_err(|e| failed(&e))?
        .unwrap_or_default();
    let announced = state.next_serial.as_deref().map(Serial::parse_hex);
    if present.as_ref() == Some(serial) || announced.is_some_and(|s| s.as_ref() == Ok(serial)) {
        return Err(failed(
            &"that is the certificate which this dispatcher uses itself: replace it first ('ced rotate-cert'), then revoke the old serial",
        ));
    }
    let depend: Vec<String> = Registry::new(config.registry_dir.clone())
        .list()
        .map_err(|e| failed(&e))?
        .agents
        .into_iter()
        .filter(|a| names_serial(&a.dispatcher_serial, serial))
        .map(|a| a.name.to_string())
        .collect();
    if depend.is_empty() || force {
        return Ok(());
    }
    Err(failed(&format!(
        "{} agent(s) trust this older serial of the dispatcher and have not heard of the new one: {}. Let 'ced maintain' reach them first, or revoke it with --force and pair them again",
        depend.len(),
        depend.join(", ")
    )))
}

/// Appends to the journal. False: it stood there already.
pub(super) fn write_down(config: &DispatcherConfig, entry: &Entry) -> Result<bool, AppError> {
    let new = revocation::append(&config.revoked_file, entry)
        .map_err(|e| AppError::failed(format!("not revoked: {e}")))?;
    let mut line = Action::new("revoke").field("SERIAL", &entry.serial);
    if let Some(agent) = &entry.agent {
        line = line.field("AGENT", agent);
    }
    if let Some(reason) = &entry.reason {
        line = line.field("REASON", reason);
    }
    line.field("NEW", new).info();
    Ok(new)
}

/// A pair of our own that is revoked is of no use any more.
fn forget_own(config: &DispatcherConfig, serial: &Serial) -> Result<(), AppError> {
    PairStore::of(config)
        .remove(serial)
        .map_err(|e| AppError::failed(e.to_string()))
}

/// Tells all agents what they lack.
pub(super) fn push(
    context: &Context,
    config: &DispatcherConfig,
) -> Result<Vec<(AgentName, Told)>, AppError> {
    let failed = |e: &dyn std::fmt::Display| {
        AppError::failed(format!(
            "It is revoked on this host, but no agent was told: {e}\n'ced maintain' tells them later."
        ))
    };
    let (clock, network) = common::network(context, config);
    let revoked = Revocations::load(&config.revoked_file).map_err(|e| failed(&e))?;
    let fleet = network.open().map_err(|e| failed(&e))?;
    let maintenance = Maintenance {
        config,
        clock: &clock,
        network: &network,
    };
    common::block_on(maintenance.push_revocations(&revoked, None, &fleet))?.map_err(|e| failed(&e))
}

fn word(told: &Told) -> &'static str {
    match told {
        Told::Confirmed => "confirmed",
        Told::Unable => "unable",
        Told::Failed(_) => "failed",
    }
}

fn report(args: &RevokeArgs, entry: &Entry, new: bool, told: &[(AgentName, Told)]) {
    if args.json {
        let agents: Vec<Value> = told
            .iter()
            .map(|(agent, told)| match told {
                Told::Failed(error) => {
                    json!({ "agent": agent, "status": word(told), "error": error })
                }
                _ => json!({ "agent": agent, "status": word(told) }),
            })
            .collect();
        say!(
            "{}",
            json!({ "ok": 1, "new": new, "entry": entry, "agents": agents })
        );
        return;
    }
    let whose = entry
        .agent
        .as_ref()
        .map_or_else(String::new, |a| format!(" of '{a}'"));
    let already = if new { "" } else { " (it was already)" };
    say!("Revoked serial {}{whose}{already}.", entry.serial);
    say!("This dispatcher does not talk to it any more.");
    if args.no_push {
        say!("No agent was told yet: 'ced maintain' does it.");
    }
    print_told(told);
}

/// How many agents know, and who does not and why.
pub(super) fn print_told(told: &[(AgentName, Told)]) {
    if told.is_empty() {
        return;
    }
    let confirmed = told.iter().filter(|(_, t)| *t == Told::Confirmed).count();
    say!("Agents told: {confirmed} of {}.", told.len());
    let mut late = false;
    for (agent, told) in told {
        match told {
            Told::Confirmed => {}
            Told::Unable => {
                say!(
                    "  {agent:<30}  runs an older release: add the serial to its 'revoked-serials' by hand, or update it"
                );
            }
            Told::Failed(error) => {
                late = true;
                say!("  {agent:<30}  {}", printable(error));
            }
        }
    }
    if late {
        say!("Those are told at their next contact and by every 'ced maintain'.");
    }
}

/// Show what is revoked, and which agents have not confirmed it yet.
#[derive(FromArgs)]
#[argh(help_triggers("-h", "--help"))]
struct ListArgs {
    /// configuration file (default /etc/ctrl-exec/ctrl-exec.toml, else ctrl-exec.conf)
    #[argh(option)]
    config: Option<PathBuf>,
    /// print one JSON object instead of text
    #[argh(switch)]
    json: bool,
}

pub(super) fn list(context: &Context, call: &Call) -> Result<Exit, AppError> {
    let args: ListArgs = call.parse()?;
    let config = common::load_config(context, args.config.as_deref())?;
    let failed = |e: &dyn std::fmt::Display| AppError::failed(e.to_string());
    let revoked = Revocations::load(&config.revoked_file).map_err(|e| failed(&e))?;
    let listing = Registry::new(config.registry_dir.clone())
        .list()
        .map_err(|e| failed(&e))?;
    let late: Vec<&AgentRecord> = listing
        .agents
        .iter()
        .filter(|a| a.revocations != revoked.count() && !revoked.concerns(a))
        .collect();
    if args.json {
        let agents: Vec<Value> = listing
            .agents
            .iter()
            .map(|a| {
                let status = if revoked.concerns(a) {
                    "revoked"
                } else if a.revocations >= revoked.count() {
                    "confirmed"
                } else if a.is_older_release() {
                    "unable"
                } else {
                    "late"
                };
                let confirmed = a.revocations.min(revoked.count());
                json!({ "agent": a.name, "status": status, "confirmed": confirmed })
            })
            .collect();
        let late: Vec<&AgentName> = late.iter().map(|a| &a.name).collect();
        say!(
            "{}",
            json!({ "ok": 1, "revoked": revoked.entries(), "not_confirmed": late, "agents": agents })
        );
        return Ok(Exit::Success);
    }
    if revoked.count() == 0 {
        say!("Nothing is revoked.");
        return Ok(Exit::Success);
    }
    say!(
        "{:<34}  {:<22}  {:<30}  REASON",
        "SERIAL",
        "REVOKED",
        "HOST"
    );
    say!("{}", "-".repeat(98));
    for entry in revoked.entries() {
        say!(
            "{:<34}  {:<22}  {:<30}  {}",
            entry.serial,
            entry.time.escape_debug().to_string(),
            entry.agent.as_ref().map_or("-", AgentName::as_str),
            printable(entry.reason.as_deref().unwrap_or("-"))
        );
    }
    if !late.is_empty() {
        say!("");
        say!("Not confirmed yet by {} agent(s):", late.len());
        let mut waiting = false;
        for agent in late {
            let count = revoked.count();
            if agent.is_older_release() {
                say!(
                    "  {:<30}  runs an older release: add the serials to its 'revoked-serials' by hand, or update it",
                    agent.name
                );
            } else {
                waiting = true;
                let known = agent.revocations.min(count);
                say!("  {:<30}  has confirmed {known} of {count}", agent.name);
            }
        }
        if waiting {
            complain!("'ced maintain' tells them as soon as they answer.");
        }
    }
    Ok(Exit::Success)
}
