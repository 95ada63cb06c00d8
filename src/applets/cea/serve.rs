//! `cea serve`: start-up in the order of spec/agent.md 6.1, signals, shutdown.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::timeout;

use crate::applets::cea::connection::Children;
use crate::applets::cea::listener::{self, House};
use crate::applets::cea::state::{Agent, LoadError, Snapshot};
use crate::applets::cea::{Files, handlers, jobs};
use crate::applets::{AppError, Context, Exit, notify};
use crate::complain;
use crate::core::logging::Action;
use crate::core::sys::pages::ColdCode;
use crate::core::task;
use crate::core::{listen, serving, sys};

/// How long requests in flight are waited for after SIGTERM. Scripts whose requests are not answered by then run on.
const STOP_GRACE: Duration = Duration::from_secs(10);

/// After so long without a connection that has ended, code is given back.
const QUIET: Duration = Duration::from_millis(250);
/// A connection, three pipes, a process handle, and one to spare.
const FILES_OF_A_RUN: usize = 6;
const FILES_BESIDES: usize = 256;

pub(super) fn serve(context: &Context, files: &Files) -> Result<Exit, AppError> {
    let failed = |what: &str, e: io::Error| AppError::failed(format!("{what}: {e}"));
    sys::inherited::close_on_exec().map_err(|e| failed("Cannot mark inherited descriptors", e))?;
    // We hold the key: no other process of our user may look into us, or go through our /proc entry to the executor's socket.
    set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(|e| failed("Cannot close our memory to others", e.into()))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| failed("Cannot start the runtime", e))?;
    let done = task::block_on(&runtime, run(context, files));
    // A name look-up may still hang in a thread of its own; it has nothing to tell us any more.
    runtime.shutdown_background();
    done
}

/// `self-check --files`, for start scripts: whether `serve` could start with these files. Unlike the whole check it minds nothing that a
/// running agent could live with, such as one script of many that is not there: a host must not be lost for that.
///
/// # Errors
/// Status 78 and the message of `serve`.
pub(super) fn could_start(context: &Context, files: &Files) -> Result<Exit, AppError> {
    match Snapshot::load(context, files, None) {
        Ok(_) => Ok(Exit::Success),
        Err(error) => Err(explain(&error, context, files)),
    }
}

async fn run(context: &Context, files: &Files) -> Result<Exit, AppError> {
    // Before anything else: a reload request during the start must not end the daemon.
    let signals = Signals::new()
        .map_err(|e| AppError::failed(format!("Cannot install signal handlers: {e}")))?;
    let daemon = Daemon::start(context, files)?;
    let agent = daemon.agent.clone();
    Action::new("start")
        .field("PORT", daemon.address.port())
        .info();
    complain!("listening on {}", daemon.address);
    let manager = context.var("NOTIFY_SOCKET");
    notify::tell(manager, "READY=1");
    daemon.serve(signals.until_told_to_stop(&agent)).await;
    Ok(Exit::Success)
}

/// The agent, listening.
pub(super) struct Daemon {
    pub(super) agent: Arc<Agent>,
    pub(super) address: SocketAddr,
    listener: TcpListener,
}

impl Daemon {
    /// Reads everything and listens.
    ///
    /// # Errors
    /// Status 78 for what a restart would not mend, 1 when the address cannot be had.
    pub(super) fn start(context: &Context, files: &Files) -> Result<Self, AppError> {
        let snapshot =
            Snapshot::load(context, files, None).map_err(|e| explain(&e, context, files))?;
        let (bind, port) = (snapshot.config.bind, snapshot.config.port);
        let cannot =
            |e: io::Error| AppError::failed(format!("Cannot start server: {e} (port {port})"));
        let listener = listen::listen(bind, port)
            .and_then(TcpListener::from_std)
            .map_err(cannot)?;
        let address = listener.local_addr().map_err(cannot)?;
        let runs = snapshot.config.max_children;
        serving::make_room_for_descriptors(runs.saturating_mul(FILES_OF_A_RUN) + FILES_BESIDES);
        Ok(Self {
            agent: Arc::new(Agent::new(context.clone(), files.clone(), snapshot)),
            address,
            listener,
        })
    }

    /// Serves until the future ends, then waits a while for the requests in flight.
    pub(super) async fn serve(self, until: impl Future<Output = ()>) {
        let (stop, stopping) = watch::channel(false);
        let (presence, mut all_gone) = mpsc::channel(1);
        let work = Arc::new(Notify::new());
        let house = House {
            router: handlers::router(self.agent.clone()),
            agent: self.agent.clone(),
            children: Children::default(),
            stop: stopping,
            work: work.clone(),
            _presence: presence,
        };
        let caretaker = task::spawn(jobs::look_after(self.agent.clone()));
        let thrift = task::spawn(give_back_code(work));
        tokio::select! {
            () = listener::accept_loop(self.listener, house) => {}
            () = until => {}
        }
        notify::tell(self.agent.context.var("NOTIFY_SOCKET"), "STOPPING=1");
        caretaker.abort();
        thrift.abort();
        let _ = stop.send(true);
        // Every connection holds a sender; the channel ends with the last of them.
        let _ = timeout(STOP_GRACE, all_gone.recv()).await;
    }
}

/// Gives back the code that only the start, or serving, needs, whenever nobody has been served for a while: waiting touches little of it.
async fn give_back_code(work: Arc<Notify>) {
    let cold_code = ColdCode::of_this_program();
    loop {
        cold_code.forget();
        work.notified().await;
        while timeout(QUIET, work.notified()).await.is_ok() {}
    }
}

struct Signals {
    hup: Signal,
    term: Signal,
    int: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            hup: signal(SignalKind::hangup())?,
            term: signal(SignalKind::terminate())?,
            int: signal(SignalKind::interrupt())?,
        })
    }

    /// Reloads as often as it is asked to; returns on SIGTERM or SIGINT.
    async fn until_told_to_stop(mut self, agent: &Agent) {
        loop {
            tokio::select! {
                _ = self.term.recv() => return,
                _ = self.int.recv() => return,
                _ = self.hup.recv() => agent.reload(),
            }
        }
    }
}

/// The message and status of a start that cannot be: 78, because a restart would not help (spec/agent.md 2.3).
fn explain(error: &LoadError, context: &Context, files: &Files) -> AppError {
    let config = files
        .config
        .clone()
        .unwrap_or_else(|| first_existing(context.paths.agent_toml(), context.paths.agent_conf()));
    let allowlist = files.allowlist.clone().unwrap_or_else(|| {
        first_existing(context.paths.scripts_toml(), context.paths.scripts_conf())
    });
    let older = [&config, &allowlist]
        .iter()
        .any(|file| file.extension().is_none_or(|end| end != "toml"));
    let syntax = if older {
        "\n\nIn a .conf file a comment needs a line of its own: inline '#' comments are not supported."
    } else {
        ""
    };
    let where_to_look = format!(
        "\n\nConfiguration: {}\nAllowlist:     {}",
        config.display(),
        allowlist.display()
    );
    AppError::config(match error {
        LoadError::Config(text) => format!(
            "ctrl-exec-agent: cannot start - configuration error\n\n{text}{where_to_look}{syntax}"
        ),
        LoadError::Material(text) => {
            format!("ctrl-exec-agent: cannot start - configuration error\n\n{text}{where_to_look}")
        }
        LoadError::Unpaired { what, path } => format!(
            "ctrl-exec-agent: cannot start - this agent has not been paired yet\n\nMissing {what}: {}\n\nPair it with: ctrl-exec-agent request-pairing --dispatcher HOST",
            path.display()
        ),
    })
}

fn first_existing(toml: std::path::PathBuf, conf: std::path::PathBuf) -> std::path::PathBuf {
    if !toml.exists() && conf.exists() {
        conf
    } else {
        toml
    }
}
