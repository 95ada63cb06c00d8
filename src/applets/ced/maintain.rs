//! `ced maintain`: the work of the timer, once, or for as long as the program runs (spec/dispatcher.md 10.16, 17).

use std::path::PathBuf;
use std::time::Duration;

use argh::FromArgs;
use serde_json::json;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::applets::ced::{Call, common, revocation};
use crate::applets::{AppError, Context, Exit, notify};
use crate::core::config::DispatcherConfig;
use crate::core::config::diagnostics::printable;
use crate::core::logging::Action;
use crate::core::maintenance::{Maintenance, MaintenanceError, Schedule, Summary, Told};
use crate::{complain, say};

/// Look after the fleet: ping every agent, renew certificates, rotate the dispatcher's own, tell late agents what they have missed.
#[derive(FromArgs)]
#[argh(help_triggers("-h", "--help"))]
struct MaintainArgs {
    /// configuration file (default /etc/ctrl-exec/ctrl-exec.toml, else ctrl-exec.conf)
    #[argh(option)]
    config: Option<PathBuf>,
    /// print one JSON object instead of text
    #[argh(switch)]
    json: bool,
    /// stay, and do it again and again: every cert_check_interval (default four hours), spread at random. For hosts without a timer
    #[argh(switch)]
    daemon: bool,
}

pub(super) fn main(context: &Context, call: &Call) -> Result<Exit, AppError> {
    let args: MaintainArgs = call.parse()?;
    let config = common::load_config(context, args.config.as_deref())?;
    if args.daemon {
        return common::block_on(stay(context, &args, config))?;
    }
    let result = common::block_on(pass(context, &config, true))?;
    match result {
        Ok(summary) => {
            if args.json {
                say!("{}", as_json(&summary));
            } else {
                print(&summary);
            }
        }
        // The other one does the work; a timer that fails for that would alarm somebody for nothing.
        Err(MaintenanceError::Busy(error)) => {
            if args.json {
                say!(
                    "{}",
                    json!({ "ok": 1, "agents": 0, "pinged": 0, "busy": true })
                );
            } else {
                say!("Another maintenance is under way and does the same work ({error}).");
            }
        }
    }
    Ok(Exit::Success)
}

/// One pass.
pub(crate) async fn pass(
    context: &Context,
    config: &DispatcherConfig,
    rotate: bool,
) -> Result<Summary, MaintenanceError> {
    let (clock, network) = common::network(context, config);
    let maintenance = Maintenance {
        config,
        clock: &clock,
        network: &network,
    };
    maintenance.pass(rotate).await
}

fn as_json(summary: &Summary) -> serde_json::Value {
    let failed: Vec<_> = summary
        .failed
        .iter()
        .map(|(phase, error)| json!({ "phase": phase, "error": error }))
        .collect();
    let renewal_failed: Vec<_> = summary
        .renewal_failed
        .iter()
        .map(|(agent, error)| json!({ "agent": agent, "error": error }))
        .collect();
    let rotation = &summary.rotation;
    json!({
        "ok": 1,
        "agents": summary.agents,
        "pinged": summary.pinged,
        "answered": summary.answered,
        "renewed": summary.renewed,
        "staged": summary.staged,
        "renewal_failed": renewal_failed,
        "rotated": rotation.promoted.as_ref().map(ToString::to_string),
        "announced": rotation.announced.iter().filter(|a| a.result.is_ok()).count(),
        "withdrawn": rotation.withdrawn.len(),
        "revocations_told": summary.revoked.iter().filter(|(_, t)| *t == Told::Confirmed).count(),
        "ca_told": summary.ca.told.iter().filter(|(_, r)| r.is_ok()).count(),
        "purged": summary.purged,
        "failed": failed,
    })
}

fn print(summary: &Summary) {
    let rotation = &summary.rotation;
    let announced = rotation
        .announced
        .iter()
        .filter(|a| a.result.is_ok())
        .count();
    say!(
        "Maintenance run: {}/{} agents pinged, {} answered, {} renewed, {} told of the dispatcher's serial.",
        summary.pinged,
        summary.agents,
        summary.answered,
        summary.renewed + summary.staged,
        announced,
    );
    if let Some(serial) = &rotation.promoted {
        say!("The dispatcher's certificate was rotated: serial {serial}.");
    } else if let Some(serial) = &rotation.began {
        say!("A new certificate of the dispatcher is announced: serial {serial}.");
    }
    if summary.staged > 0 {
        say!(
            "  {} of the renewed certificates count from the agent's next start.",
            summary.staged
        );
    }
    if !rotation.withdrawn.is_empty() {
        say!(
            "  {} agent(s) have dropped an old serial.",
            rotation.withdrawn.len()
        );
    }
    if summary.ca.changed {
        say!("The new CA signs from now on. Next: ced rotate-ca status");
    }
    if summary.ca.over {
        say!("The change of the CA is over.");
    }
    for (agent, result) in &summary.ca.told {
        if let Err(error) = result {
            say!(
                "  {agent:<30}  not told of the change of the CA: {}",
                printable(error)
            );
        }
    }
    revocation::print_told(&summary.revoked);
    for (agent, error) in &summary.renewal_failed {
        say!("  {agent:<30}  not renewed: {}", printable(error));
    }
    for told in &rotation.announced {
        if let Err(error) = &told.result {
            say!(
                "  {:<30}  not told of the serial: {}",
                told.agent,
                printable(error)
            );
        }
    }
    for (agent, error) in &rotation.withdraw_failed {
        say!(
            "  {agent:<30}  still trusts an old serial: {}",
            printable(error)
        );
    }
    for agent in &rotation.stale {
        say!(
            "  {agent:<30}  stale: it has not heard of the dispatcher's serial within the overlap"
        );
    }
    for (phase, error) in &summary.failed {
        complain!("Warning: {phase}: {}", printable(error));
    }
}

/// What ends or hastens the wait between two passes.
struct Signals {
    hup: Signal,
    term: Signal,
    int: Signal,
}

impl Signals {
    fn install() -> Result<Self, AppError> {
        let failed = |e| AppError::failed(format!("cannot catch signals: {e}"));
        Ok(Self {
            hup: signal(SignalKind::hangup()).map_err(failed)?,
            term: signal(SignalKind::terminate()).map_err(failed)?,
            int: signal(SignalKind::interrupt()).map_err(failed)?,
        })
    }

    /// False: it is time to end. Waits at most `pause`.
    async fn wait(&mut self, pause: Duration) -> bool {
        tokio::select! {
            () = tokio::time::sleep(pause) => true,
            _ = self.hup.recv() => true,
            _ = self.term.recv() => false,
            _ = self.int.recv() => false,
        }
    }

    async fn end(&mut self) {
        tokio::select! {
            _ = self.term.recv() => {}
            _ = self.int.recv() => {}
        }
    }
}

/// Pass after pass until SIGTERM; SIGHUP asks for one at once. The configuration is read before each; while it has a mistake the last
/// good one counts. A pass can be stopped anywhere: the next one, whoever makes it, goes on.
async fn stay(
    context: &Context,
    args: &MaintainArgs,
    mut config: DispatcherConfig,
) -> Result<Exit, AppError> {
    let mut signals = Signals::install()?;
    let manager = context.var("NOTIFY_SOCKET");
    notify::tell(manager, "READY=1");
    let schedule = |config: &DispatcherConfig| Schedule {
        every: config.rotation.check_interval,
    };
    let mut pause = schedule(&config).first();
    Action::new("maintain-start")
        .field("EVERY", config.rotation.check_interval.as_secs())
        .info();
    while signals.wait(pause).await {
        match common::load_config(context, args.config.as_deref()) {
            Ok(fresh) => config = fresh,
            Err(error) => {
                let text = error.message().unwrap_or_default().to_owned();
                complain!("the last good configuration stays in force: {text}");
                Action::new("maintain")
                    .field("ERROR", text)
                    .field("PHASE", "config")
                    .err();
            }
        }
        tokio::select! {
            done = pass(context, &config, true) => match done {
                Ok(summary) if args.json => {
                    say!("{}", as_json(&summary));
                }
                Ok(summary) => print(&summary),
                Err(error) => {
                    complain!("{error}");
                }
            },
            () = signals.end() => break,
        }
        pause = schedule(&config).next();
    }
    notify::tell(manager, "STOPPING=1");
    Action::new("maintain-stop").info();
    Ok(Exit::Success)
}
