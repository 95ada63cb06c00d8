//! One session of pairing mode (spec/pairing.md 7.1): the listener, and the operator in front of it if there is one.

use std::io::{BufRead as _, IsTerminal as _};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::connection::{News, Shared};
use super::listener::{self, Presented};
use super::prompt::{self, Command};
use super::requests;
use crate::applets::AppError;
use crate::core::client::fleet::Live;
use crate::core::config::DispatcherConfig;
use crate::core::listen;
use crate::core::logging::Action;
use crate::core::maintenance::Maintenance;
use crate::core::pairing::RECEIPT_TIMEOUT;
use crate::core::pairing::approval::{ApproveError, Approved, Choice, Desk};
use crate::core::pairing::delivery;
use crate::core::pairing::ids::Outcome;
use crate::core::pairing::queue::{Limits, Queue, Session};
use crate::core::pairing::record::Record;
use crate::core::task;
use crate::{complain, say};

/// How long a session goes on before it looks after the fleet.
const BEFORE_MAINTENANCE: Duration = Duration::from_secs(5);

/// How a session is run.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) desk: Desk,
    /// 0 lets the kernel pick.
    pub(super) port: u16,
    pub(super) timeout: Duration,
    /// In the background nobody is asked and nothing is printed.
    pub(super) detached: bool,
}

/// Everything that can fail before the first connection is accepted, done.
pub(super) struct Bound {
    listener: std::net::TcpListener,
    presented: Presented,
    queue: Queue,
    session: Session,
    pub(super) port: u16,
}

/// Loads the certificate, opens the queue, binds the port.
///
/// # Errors
/// Any of it fails; the text says what to do.
pub(super) fn bind(plan: &Plan) -> Result<Bound, AppError> {
    let config = &plan.desk.config;
    require_certificate(config)?;
    let presented = Presented::load(config).map_err(|e| AppError::failed(e.to_string()))?;
    let queue = Queue::create(&config.pairing_dir).map_err(|e| AppError::failed(e.to_string()))?;
    let listener = listen::listen(config.pairing_bind, plan.port).map_err(|e| {
        let place = config
            .pairing_bind
            .map_or_else(|| "all addresses".to_owned(), |ip| ip.to_string());
        AppError::failed(format!(
            "cannot listen on port {} ({place}): {e}. Is pairing mode running already? 'ced pairing-mode stop' ends one in the background",
            plan.port
        ))
    })?;
    let port = listener
        .local_addr()
        .map_err(|e| AppError::failed(format!("cannot listen: {e}")))?
        .port();
    queue
        .expire(std::time::SystemTime::now())
        .map_err(|e| AppError::failed(e.to_string()))?;
    let session = queue
        .session()
        .map_err(|e| AppError::failed(e.to_string()))?;
    Ok(Bound {
        listener,
        presented,
        queue,
        session,
        port,
    })
}

/// Both files exist (spec/pairing.md 7.1 `start`).
pub(super) fn require_certificate(config: &DispatcherConfig) -> Result<(), AppError> {
    for (what, path) in [("certificate", &config.cert), ("key", &config.key)] {
        if !path.exists() {
            return Err(AppError::failed(format!(
                "the dispatcher's {what} '{}' does not exist: make it with 'ced setup-ctrl-exec'",
                path.display()
            )));
        }
    }
    Ok(())
}

/// Why a session ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Ending {
    Signal,
    Quit,
    Timeout,
}

/// Serves until time-out, signal or `quit`.
///
/// # Errors
/// The runtime or the signal handlers cannot be set up.
pub(super) fn run(plan: &Plan, bound: Bound) -> Result<(), AppError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| AppError::failed(format!("cannot start the runtime: {e}")))?;
    let result = task::block_on(&runtime, session(plan, bound));
    // A look-up that hangs in the resolver must not hold up the end.
    runtime.shutdown_background();
    result
}

async fn session(plan: &Plan, bound: Bound) -> Result<(), AppError> {
    let deadline = Instant::now() + plan.timeout;
    let interactive = !plan.detached && std::io::stdin().is_terminal();
    let signals = Signals::install()?;
    let (end, ended) = watch::channel(false);
    let (news_sender, news) = mpsc::unbounded_channel();
    let config = &plan.desk.config;
    let shared = Arc::new(Shared {
        queue: bound.queue,
        limits: Limits {
            depth: config.pairing_max_queue,
        },
        session: bound.session.id.clone(),
        clock: plan.desk.clock.clone(),
        ended,
        news: news_sender,
        unfinished: AtomicUsize::new(0),
    });
    let socket = tokio::net::TcpListener::from_std(bound.listener)
        .map_err(|e| AppError::failed(format!("cannot listen: {e}")))?;
    if !plan.detached {
        greet(plan, bound.port, &bound.presented, interactive);
    }
    Action::new("pairing-mode-start")
        .field("PORT", bound.port)
        .info();

    let mut operator = Operator {
        desk: plan.desk.clone(),
        news,
        keys: if interactive { Some(keyboard()) } else { None },
        interactive,
        silent: plan.detached,
        shown: Vec::new(),
        work: JoinSet::new(),
    };
    look_after_fleet(&plan.desk);
    let serving = listener::serve(socket, bound.presented, config, Arc::clone(&shared));
    tokio::pin!(serving);
    let ending = tokio::select! {
        () = &mut serving => Ending::Signal,
        ending = operator.attend(signals, deadline) => ending,
    };
    let _ = end.send(true);
    // Those who wait are told; approvals that were begun are finished.
    serving.await;
    operator.finish().await;
    match ending {
        Ending::Timeout => {
            Action::new("pairing-mode-timeout")
                .field("PORT", bound.port)
                .info();
        }
        Ending::Signal | Ending::Quit => Action::new("pairing-mode-stop").info(),
    }
    if !plan.detached {
        let why = match ending {
            Ending::Timeout => format!("time-out after {} seconds", plan.timeout.as_secs()),
            Ending::Quit => "quit".to_owned(),
            Ending::Signal => "signal".to_owned(),
        };
        say!("Pairing mode stopped ({why}).");
    }
    drop(bound.session);
    Ok(())
}

/// As the original does, a session looks after the fleet while it is there; a rotation does not begin under the hands of somebody who pairs.
///
/// In a thread of its own, because it waits for files and locks. It can be cut off anywhere: the next pass goes on.
fn look_after_fleet(desk: &Desk) {
    let desk = desk.clone();
    std::thread::spawn(move || {
        std::thread::sleep(BEFORE_MAINTENANCE);
        let Ok(runtime) = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
        else {
            return;
        };
        let network = Live {
            config: desk.config.clone(),
            clock: desk.clock.clone(),
        };
        let maintenance = Maintenance {
            config: &desk.config,
            clock: &desk.clock,
            network: &network,
        };
        // What fails is in the log; who is busy with it already does the same work.
        let _ = task::block_on(&runtime, maintenance.pass(false));
    });
}

fn greet(plan: &Plan, port: u16, presented: &Presented, interactive: bool) {
    say!(
        "Pairing mode: listening on port {port}, stops by itself after {} seconds.",
        plan.timeout.as_secs()
    );
    say!(
        "Certificate fingerprint (SHA-256): {}",
        delivery::fingerprint(&presented.certificate)
    );
    say!("  An agent can insist on it: cea request-pairing --dispatcher-fingerprint ...");
    if interactive {
        say!(
            "Press Ctrl-C or type q to stop. Requests are shown as they come in; l shows them again."
        );
    } else {
        say!(
            "Press Ctrl-C to stop. In another terminal: ced list-requests, ced approve ID, ced deny ID."
        );
    }
}

struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn install() -> Result<Self, AppError> {
        let failed = |e| AppError::failed(format!("cannot catch signals: {e}"));
        Ok(Self {
            interrupt: signal(SignalKind::interrupt()).map_err(failed)?,
            terminate: signal(SignalKind::terminate()).map_err(failed)?,
        })
    }

    async fn any(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// Lines of stdin, read in a thread of its own: a blocking read cannot be cancelled, so nothing waits for this thread.
fn keyboard() -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel(16);
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines() {
            let Ok(line) = line else { break };
            if sender.blocking_send(line).is_err() {
                break;
            }
        }
    });
    receiver
}

/// Work that blocks and ran in another thread.
enum Done {
    Approved(Box<Approved>),
    Told(String),
    Settled,
}

/// The person at the terminal, or nobody.
struct Operator {
    desk: Desk,
    news: mpsc::UnboundedReceiver<News>,
    keys: Option<mpsc::Receiver<String>>,
    interactive: bool,
    silent: bool,
    /// What was shown last; commands are about these.
    shown: Vec<Record>,
    /// Approvals and their aftermath under way.
    work: JoinSet<Done>,
}

impl Operator {
    async fn attend(&mut self, mut signals: Signals, deadline: Instant) -> Ending {
        loop {
            let line = async {
                match &mut self.keys {
                    Some(keys) => keys.recv().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = sleep_until(deadline) => return Ending::Timeout,
                () = signals.any() => return Ending::Signal,
                Some(news) = self.news.recv() => self.report(news),
                Some(done) = self.work.join_next() => self.follow_up(done.unwrap_or(Done::Settled)),
                line = line => match line {
                    Some(line) => {
                        if self.obey(&line) {
                            return Ending::Quit;
                        }
                    }
                    // End of file: go on without the person.
                    None => {
                        self.keys = None;
                        self.interactive = false;
                    }
                },
            }
        }
    }

    fn report(&mut self, news: News) {
        if self.silent {
            return;
        }
        match news {
            News::Queued(record) => {
                if self.interactive {
                    return self.show();
                }
                let ip = record.source.map_or_else(String::new, |ip| ip.to_string());
                say!(
                    "Pairing request from {} ({ip}): {} code {} ({})",
                    record.hostname,
                    record.id,
                    record.code,
                    record.kind()
                );
            }
            News::Over { name, id, outcome } => {
                say!("{name} ({id}): {}", outcome_text(outcome));
            }
        }
    }

    fn show(&mut self) {
        match self.desk.queue().listing() {
            Ok(listing) => {
                for (id, reason) in &listing.unreadable {
                    complain!("Request {id}: {reason}");
                }
                self.shown = listing.pending;
                print(prompt::show(&self.shown));
            }
            Err(error) => complain!("{error}"),
        }
    }

    /// True: the operator quits.
    fn obey(&mut self, line: &str) -> bool {
        match prompt::parse(line, &self.shown) {
            Command::Quit => return true,
            Command::Nothing => {}
            Command::List => self.show(),
            Command::Hint(text, list) => {
                say!("{text}");
                if list {
                    self.show();
                }
            }
            Command::Approve { shown, replace } => {
                let desk = self.desk.clone();
                self.set_about(move || {
                    let choice = Choice {
                        replace,
                        shown: Some((*shown).clone()),
                        ..Choice::default()
                    };
                    match desk.approve(&shown.id, &choice) {
                        Ok(approved) => Done::Approved(Box::new(approved)),
                        Err(error @ ApproveError::Registered(_)) => Done::Told(format!(
                            "Not approved: {error} (here: a!, or with its number a1!)"
                        )),
                        Err(error) => Done::Told(format!("Not approved: {error}")),
                    }
                });
            }
            // Not here: it may wait for the lock that an approval holds, and this thread serves the agents.
            Command::Deny { shown } => {
                let desk = self.desk.clone();
                self.set_about(move || {
                    Done::Told(match desk.deny(&shown.id) {
                        Ok(_) => format!("Denied request '{}'.", shown.id),
                        Err(error) => format!("Not denied: {error}"),
                    })
                });
            }
        }
        false
    }

    /// Work that may wait for a lock. Boxed, so that the runtime is compiled for one kind of it.
    fn set_about(&mut self, errand: impl FnOnce() -> Done + Send + 'static) {
        let errand: Box<dyn FnOnce() -> Done + Send> = Box::new(errand);
        self.work.spawn_blocking(errand);
    }

    fn follow_up(&mut self, done: Done) {
        match done {
            Done::Approved(approved) => {
                print(requests::approved_lines(&approved));
                // What becomes of it is told as news; this puts the registry right if it comes to nothing.
                let desk = self.desk.clone();
                self.set_about(move || {
                    desk.settle(&approved, RECEIPT_TIMEOUT + requests::SETTLE);
                    Done::Settled
                });
            }
            Done::Told(text) => {
                say!("{text}");
            }
            Done::Settled => {}
        }
    }

    async fn finish(&mut self) {
        while let Some(done) = self.work.join_next().await {
            self.follow_up(done.unwrap_or(Done::Settled));
        }
        while let Ok(news) = self.news.try_recv() {
            self.report(news);
        }
    }
}

fn print(lines: Vec<String>) {
    for line in lines {
        say!("{line}");
    }
}

/// What became of a request, for people.
pub(super) fn outcome_text(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Delivered => "paired, the agent has its certificate",
        Outcome::Unconfirmed => {
            "approved and sent, but the agent did not confirm that it stored the certificate"
        }
        Outcome::Undelivered => "approved, but the agent was gone: not delivered; let it ask again",
        Outcome::RefusedByAgent => {
            "approved, but the agent refused what it got: see its message; not paired"
        }
        Outcome::Denied => "denied",
        Outcome::Abandoned => "the agent hung up",
        Outcome::TimedOut => "nobody decided in time",
        Outcome::SessionEnded => "pairing mode ended before anybody decided",
    }
}
