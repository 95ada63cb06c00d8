//! `ctrl-exec install` and `ctrl-exec uninstall`: [`facts`] are gathered, a pure function makes a [`plan`] of them, and its steps are
//! printed and performed one by one. A dry run leaves out the performing.

mod accounts;
mod check;
mod facts;
mod look;
mod manifest;
mod packages;
mod perform;
mod plan;
#[cfg(test)]
mod plan_tests;
mod platform;
mod removal;
mod services;
mod step;
mod supervise;
mod table;
mod world;

use facts::{Facts, Given};
use plan::{Plan, Refusal, Request};
use platform::Init;
use table::Roles;
use world::World;

use crate::applets::{AppError, Context, Exit, cli};
use crate::core::hostname;
use crate::core::paths::Platform;
use crate::say;

/// Make this host an agent, a dispatcher, an API server or all of them: accounts, folders, configuration to begin with, programs and services. What is there stays as it is; a second run finds nothing to do. An installation of 0.12.3 is taken over.
#[derive(argh::FromArgs)]
#[argh(help_triggers("-h", "--help"))]
struct InstallArgs {
    /// agent, dispatcher, api or all; several with commas
    #[argh(option)]
    role: String,
    /// who supervises services: auto (default), systemd, openrc, procd or none
    #[argh(option, default = "\"auto\".to_owned()")]
    init: String,
    /// print what would be done, and do nothing
    #[argh(switch)]
    dry_run: bool,
    /// on OpenWrt, add a rule for the agent's port to the firewall
    #[argh(switch)]
    open_port: bool,
    /// replace files that belong to packages of 0.12.3 (they are kept, and come back with uninstall)
    #[argh(switch)]
    take_over_packages: bool,
}

pub(super) fn install(context: &Context, args: Vec<String>) -> Result<Exit, AppError> {
    const COMMAND: &[&str] = &["ctrl-exec", "install"];
    const OPTIONS: &[cli::Opt] = &[
        cli::value("role"),
        cli::value("init"),
        cli::flag("dry-run"),
        cli::flag("open-port"),
        cli::flag("take-over-packages"),
    ];
    let words = cli::normalise(args, OPTIONS)?;
    if words.help {
        return Err(cli::help::<InstallArgs>(COMMAND));
    }
    let names: Vec<&str> = OPTIONS.iter().map(|option| option.name).collect();
    let args: InstallArgs = cli::parse(COMMAND, &words.for_argh(&names).0)?;
    let request = Request {
        roles: roles(&args.role)?,
        open_port: args.open_port,
        take_over_packages: args.take_over_packages,
    };
    let init = Init::from_word(&args.init).map_err(|()| {
        AppError::usage(format!(
            "'{}' is no service manager that this program knows: use auto, systemd, openrc, procd or none",
            args.init.escape_debug()
        ))
    })?;
    let (world, facts) = look(context, init, args.dry_run)?;
    let plan = plan::plan(&facts, request).map_err(|refusal| match refusal {
        Refusal::WouldNotStart { .. } => AppError::config(refusal.to_string()),
        _ => AppError::failed(refusal.to_string()),
    })?;
    carry_out(&world, &facts, &plan, args.dry_run)
}

/// Take away what install has put here, and put back what it has replaced. Configuration, keys, state and accounts stay.
#[derive(argh::FromArgs)]
#[argh(help_triggers("-h", "--help"))]
struct UninstallArgs {
    /// agent, dispatcher, api or all (default); several with commas
    #[argh(option)]
    role: Option<String>,
    /// remove configuration, keys, state and accounts too, and what was kept of an older release
    #[argh(switch)]
    purge: bool,
    /// print what would be done, and do nothing
    #[argh(switch)]
    dry_run: bool,
}

pub(super) fn uninstall(context: &Context, args: Vec<String>) -> Result<Exit, AppError> {
    const COMMAND: &[&str] = &["ctrl-exec", "uninstall"];
    let words = cli::normalise(
        args,
        &[cli::value("role"), cli::flag("purge"), cli::flag("dry-run")],
    )?;
    if words.help {
        return Err(cli::help::<UninstallArgs>(COMMAND));
    }
    let args: UninstallArgs =
        cli::parse(COMMAND, &words.for_argh(&["role", "purge", "dry-run"]).0)?;
    let wanted = args.role.as_deref().map(roles).transpose()?;
    let (world, facts) = look(context, None, args.dry_run)?;
    // Whoever was installed by packages goes with them.
    let package = match packages::of_ours(&facts.owned) {
        None if facts.manifest.roles.is_empty() => facts.owned.values().next(),
        ours => ours,
    };
    if let (true, Some(package)) = (args.purge, package) {
        return Err(AppError::failed(format!(
            "what is here was put here by the package '{}': purge that, after 'ctrl-exec uninstall' without --purge if install was used too. Nothing has been changed",
            package.name
        )));
    }
    let plan = removal::plan(&facts, wanted, args.purge);
    carry_out(&world, &facts, &plan, args.dry_run)
}

fn roles(text: &str) -> Result<Roles, AppError> {
    Roles::parse(text).ok_or_else(|| {
        AppError::usage(format!(
            "'{}' is no role: use agent, dispatcher, api or all; several with commas",
            text.escape_debug()
        ))
    })
}

fn look(context: &Context, init: Option<Init>, dry_run: bool) -> Result<(World, Facts), AppError> {
    if !dry_run && !rustix::process::geteuid().is_root() {
        return Err(AppError::failed(
            "only root can do this: accounts, owners and services are root's (--dry-run shows what would be done)",
        ));
    }
    let failed = |e: world::Failure| AppError::failed(e.to_string());
    let world = World::new(context.paths.root()).map_err(failed)?;
    let given = Given {
        init,
        platform: context
            .var("CTRL_EXEC_PLATFORM")
            .and_then(Platform::from_word),
    };
    let name = hostname::short(context.var("CTRL_EXEC_HOSTNAME"));
    let facts = facts::gather(&world, given, &name).map_err(failed)?;
    Ok((world, facts))
}

fn carry_out(world: &World, facts: &Facts, plan: &Plan, dry_run: bool) -> Result<Exit, AppError> {
    // What is made on the way shall be readable, whoever calls.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    if plan.steps.is_empty() {
        say!("Nothing to do.");
    }
    for step in &plan.steps {
        say!("{step}");
        if !dry_run {
            perform::perform(world, facts.system, step)
                .map_err(|e| AppError::failed(e.to_string()))?;
        }
    }
    for note in &plan.notes {
        say!("{note}");
    }
    Ok(Exit::Success)
}
