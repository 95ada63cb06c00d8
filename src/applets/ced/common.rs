//! What every verb needs: the configuration, the TLS client, a runtime, the authorisation check.

use std::future::Future;
use std::path::Path;

use crate::applets::{AppError, Context};
use crate::complain;
use crate::core::authhook::{self, Caller, Decision, HookAction, HookContext};
use crate::core::client::exchange::Client;
use crate::core::client::fleet::Live;
use crate::core::clock::Clock;
use crate::core::config::{self, DispatcherConfig};
use crate::core::hostname;
use crate::core::maintenance::Maintenance;
use crate::core::registry::{self, Registry, Target};
use crate::core::runs::{RunError, Store};
use crate::core::task;
use crate::core::types::{ReqId, Secret};
use crate::core::wire;

/// Loads `ctrl-exec.toml` or `ctrl-exec.conf`, printing its warnings.
pub(crate) fn load_config(
    context: &Context,
    explicit: Option<&Path>,
) -> Result<DispatcherConfig, AppError> {
    let loaded = config::load_dispatcher(
        &context.paths,
        explicit,
        &hostname::short(context.var("CTRL_EXEC_HOSTNAME")),
    )
    .map_err(|e| AppError::config(e.to_string()))?;
    for warning in &loaded.warnings {
        complain!("{warning}");
    }
    Ok(loaded.value)
}

/// The clock of this dispatcher: never behind the newest of its own certificate files (spec/operations.md 16.1).
pub(crate) fn clock(context: &Context, config: &DispatcherConfig) -> Clock {
    Clock::with_floor_from(&context.time, &[&config.cert, &config.ca])
}

/// The client of port 7443, with every identity that this dispatcher holds.
pub(crate) fn client(context: &Context, config: &DispatcherConfig) -> Result<Client, AppError> {
    let (client, warnings) = Client::load(config, clock(context, config))
        .map_err(|e| AppError::failed(e.to_string()))?;
    for warning in warnings {
        complain!("Warning: {warning}");
    }
    Ok(client)
}

/// The agents, as the long protocols reach them, and the clock that goes with it.
pub(crate) fn network(context: &Context, config: &DispatcherConfig) -> (Clock, Live) {
    let clock = clock(context, config);
    let live = Live {
        config: config.clone(),
        clock: clock.clone(),
    };
    (clock, live)
}

/// Tells those of the targets that have answered what they have missed: a serial of ours, a revocation.
pub(crate) fn catch_up<'a>(
    context: &Context,
    config: &DispatcherConfig,
    answered: impl IntoIterator<Item = &'a Target>,
) -> Result<(), AppError> {
    let (clock, network) = network(context, config);
    let maintenance = Maintenance {
        config,
        clock: &clock,
        network: &network,
    };
    let records = answered.into_iter().map(|target| &target.record);
    // What fails is in the log, and tried again at the next contact.
    block_on(maintenance.after_contact(records)).map(drop)
}

/// Runs a future to its end on one thread.
pub(crate) fn block_on<F: Future>(future: F) -> Result<F::Output, AppError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| AppError::failed(format!("cannot start the runtime: {e}")))?;
    let output = task::block_on(&runtime, future);
    // A look-up that hangs in the resolver has met its deadline already and must not hold up the end.
    runtime.shutdown_background();
    Ok(output)
}

/// The records of runs.
pub(crate) fn run_store(config: &DispatcherConfig) -> Store {
    Store::new(&config.runs_dir, config.run_retention)
}

/// A record that cannot be written: the run goes on all the same. The log has it already.
pub(crate) fn warn_not_recorded(error: &RunError, reqid: &ReqId) {
    complain!("Warning: what is known of request {reqid} could not be recorded: {error}");
}

pub(crate) fn new_reqid() -> Result<ReqId, AppError> {
    ReqId::generate()
        .map_err(|_| AppError::failed("the system gives no random bytes for a request id"))
}

/// Looks every name up before anything is authorised or sent; one unknown name refuses the whole call.
pub(crate) fn resolve(
    config: &DispatcherConfig,
    hosts: &[String],
    port: Option<u16>,
) -> Result<Vec<Target>, AppError> {
    if hosts.len() > wire::MAX_HOSTS {
        return Err(AppError::failed(format!(
            "too many hosts (max {})",
            wire::MAX_HOSTS
        )));
    }
    registry::resolve(hosts, &Registry::new(config.registry_dir.clone()), port).map_err(|e| {
        AppError::failed(format!(
            "Error: {e}\nOnly registered agents can be addressed; 'ced list-agents' shows them."
        ))
    })
}

/// Who calls, as the hook and the agents are told (spec/dispatcher.md 1.2).
pub(crate) struct Claims {
    pub(crate) username: String,
    pub(crate) token: Secret<String>,
}

impl Claims {
    pub(crate) fn new(context: &Context, username: Option<String>, token: Option<String>) -> Self {
        Self {
            username: username
                .or_else(|| context.var("USER").map(str::to_owned))
                .unwrap_or_default(),
            token: Secret::new(
                token
                    .or_else(|| context.var("ENVEXEC_TOKEN").map(str::to_owned))
                    .unwrap_or_default(),
            ),
        }
    }
}

/// Asks the auth hook, as the CLI (spec/dispatcher.md 18).
pub(crate) async fn authorise(
    context: &Context,
    config: &DispatcherConfig,
    claims: &Claims,
    action: HookAction,
    script: &str,
    hosts: &[String],
    args: &[String],
) -> Decision {
    let asked = HookContext {
        script: script.to_owned(),
        hosts: hosts.to_vec(),
        args: args.to_vec(),
        username: claims.username.clone(),
        token: claims.token.clone(),
        source_ip: "127.0.0.1".to_owned(),
        ..HookContext::new(action)
    };
    authhook::authorise(
        config.auth_hook.as_ref(),
        Caller::Cli,
        &asked,
        &clock(context, config),
    )
    .await
}
