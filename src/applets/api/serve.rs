//! `ced-api`: start, signals, end (spec/api.md 1).

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use crate::applets::api::house::House;
use crate::applets::api::listener::accept_loop;
use crate::applets::api::places::Places;
use crate::applets::api::sockets::{self, Sockets};
use crate::applets::api::state::{Api, LoadError, Snapshot};
use crate::applets::{AppError, Context, Exit, notify};
use crate::core::activation::Passed;
use crate::core::logging::Action;
use crate::core::sys::pages::ColdCode;
use crate::core::task;
use crate::core::{serving, sys};
use crate::{complain, say};

/// How long requests in progress are waited for after SIGTERM.
const STOP_GRACE: Duration = Duration::from_secs(30);
/// How often agents that were heard of are told what they have missed.
const CATCH_UP_PAUSE: Duration = Duration::from_secs(5);
/// Descriptors beside those of connections: exchanges with agents come on top.
const FILES_BESIDES: usize = 256;

pub(super) fn serve(context: &Context, file: Option<PathBuf>) -> Result<Exit, AppError> {
    let failed = |what: &str, e: io::Error| AppError::failed(format!("{what}: {e}"));
    sys::inherited::close_on_exec().map_err(|e| failed("Cannot mark inherited descriptors", e))?;
    // We hold keys: no other process of our user may look into us.
    set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(|e| failed("Cannot close our memory to others", e.into()))?;
    let passed = sockets::passed(context)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| failed("Cannot start the runtime", e))?;
    let done = task::block_on(&runtime, run(context, file, passed));
    // A name look-up may still hang in a thread of its own; it has nothing to tell us any more.
    runtime.shutdown_background();
    done
}

async fn run(
    context: &Context,
    file: Option<PathBuf>,
    passed: Vec<Passed>,
) -> Result<Exit, AppError> {
    // Before anything else: a reload request during the start must not end the server.
    let mut signals = Signals::new()
        .map_err(|e| AppError::failed(format!("Cannot install signal handlers: {e}")))?;
    let (snapshot, warnings) = Snapshot::load(context, file.as_ref()).map_err(|e| match e {
        LoadError::Config(text) | LoadError::Material(text) => AppError::config(text),
    })?;
    for warning in warnings {
        complain!("{warning}");
    }
    let settings = &snapshot.config.api;
    let sockets = Sockets::open(passed, settings)?;
    let places = Places::new(settings.max_connections, settings.max_children);
    let files = settings.max_connections + snapshot.config.max_parallel + FILES_BESIDES;
    serving::make_room_for_descriptors(files);
    let has_tls = snapshot.tls.is_some();
    let api = Arc::new(Api::new(context.clone(), file, snapshot).map_err(AppError::failed)?);
    let (stop, stopping) = watch::channel(false);
    let (presence, mut all_gone) = mpsc::channel(1);
    let house = House {
        api: api.clone(),
        places,
        complaints: Arc::default(),
        stop: stopping,
        _presence: presence,
    };
    for line in sockets.announce(has_tls) {
        say!("{line}");
    }
    for listening in sockets.listening {
        task::spawn(accept_loop(listening, house.clone()));
    }
    drop(house);
    let caretaker = task::spawn(look_after(api.clone()));
    let manager = context.var("NOTIFY_SOCKET");
    notify::tell(manager, "READY=1");
    // Reading configuration and keys has touched far more code than waiting for requests will.
    ColdCode::of_this_program().forget();

    signals.until_told_to_stop(&api).await;
    notify::tell(manager, "STOPPING=1");
    caretaker.abort();
    let _ = stop.send(true);
    if let Some(place) = sockets.place {
        place.remove();
    }
    let last_words = async {
        // Every connection holds a sender; the channel ends with the last of them.
        let _ = all_gone.recv().await;
        api.work_is_done().await;
    };
    tokio::select! {
        _ = timeout(STOP_GRACE, last_words) => {}
        () = signals.told_to_stop() => {}
    }
    Action::new("api-stop").info();
    Ok(Exit::Success)
}

/// Tells agents what they have missed, some time after they were heard of: a client shall not wait for that.
async fn look_after(api: Arc<Api>) {
    loop {
        tokio::time::sleep(CATCH_UP_PAUSE).await;
        api.catch_up().await;
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

    async fn told_to_stop(&mut self) {
        tokio::select! {
            _ = self.term.recv() => {}
            _ = self.int.recv() => {}
        }
    }

    /// Reloads as often as it is asked to; returns on SIGTERM or SIGINT.
    async fn until_told_to_stop(&mut self, api: &Api) {
        loop {
            tokio::select! {
                _ = self.term.recv() => return,
                _ = self.int.recv() => return,
                _ = self.hup.recv() => api.reload(),
            }
        }
    }
}
