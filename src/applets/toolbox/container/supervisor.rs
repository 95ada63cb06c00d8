//! The first process of a container: starts the programs of a role, passes signals on, buries whatever is orphaned, starts again what has
//! crashed, and ends with the status of the program that the container is about (spec/operations.md 16.4).
//!
//! One thread, no runtime. Signals are blocked from the very beginning and read from a descriptor, so that none is lost: the kernel drops
//! those that the first process of a PID namespace neither blocks nor handles.

use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus, kill_process, wait};

use super::restart::{self, Ended, Next, Record};
use crate::applets::{AppError, Context, Exit};
use crate::complain;
use crate::core::logging::Action;
use crate::core::sys;

/// Longest time from the wish to end until everything is killed: the API waits 30 s for requests in progress, the executor 15 s for runs.
const STOP_GRACE: Duration = Duration::from_secs(35);

const SIGNALS: [Signal; 5] = [
    Signal::TERM,
    Signal::INT,
    Signal::QUIT,
    Signal::HUP,
    Signal::CHILD,
];

/// One program of the role, as another process of this binary.
#[derive(Clone, Debug)]
pub(super) struct Service {
    /// Its name in the table of applets.
    pub(super) applet: &'static str,
    pub(super) words: Vec<String>,
    /// Who it is; `None`: the same as we.
    pub(super) user: Option<(u32, u32)>,
    /// Variables beside our own.
    pub(super) env: Vec<(&'static str, String)>,
    /// The container is about this one: it ends with it.
    pub(super) is_main: bool,
}

/// A service and how it is doing.
struct Place<'a> {
    service: &'a Service,
    pid: Option<Pid>,
    record: Record,
    /// When it is to be started (again).
    due: Option<Instant>,
    told_to_stop: bool,
}

/// How the whole comes to its end.
struct Stop {
    exit: Exit,
    deadline: Instant,
}

pub(super) struct Supervisor<'a> {
    context: &'a Context,
    signals: OwnedFd,
    /// `CTRL_EXEC_LOG` of everything that we start.
    log: Option<&'static str>,
}

impl<'a> Supervisor<'a> {
    /// To be called before anything else: from here on no signal is lost.
    ///
    /// # Errors
    /// The kernel gives no descriptor.
    pub(super) fn new(context: &'a Context) -> Result<Self, AppError> {
        let signals = sys::wait::take_over_signals(&SIGNALS)
            .map_err(|e| AppError::failed(format!("container: cannot take over signals: {e}")))?;
        // In an image there is seldom a syslog daemon; who runs the container reads our output.
        let silent = context.var("CTRL_EXEC_LOG").is_none();
        let log = (silent && !context.paths.syslog_socket().exists()).then_some("stdout");
        Ok(Self {
            context,
            signals,
            log,
        })
    }

    /// Where the lines of all of us go.
    pub(super) fn sink(&self) -> crate::core::logging::Sink {
        match self.log {
            Some(word) => {
                let socket = self.context.paths.syslog_socket();
                crate::core::logging::Sink::from_word(Some(word), socket)
            }
            None => self.context.log_sink(),
        }
    }

    /// Runs one program to its end, with the signals of the container.
    ///
    /// # Errors
    /// It cannot be started, or ended with another status than 0: that becomes the container's.
    pub(super) fn run(&self, service: &Service) -> Result<(), AppError> {
        let pid = self.start(service)?;
        let mut stop: Option<Instant> = None;
        loop {
            if let Some(ended) = bury(|dead| dead == pid) {
                return match (stop, ended.status()) {
                    (None, 0) => Ok(()),
                    // Whoever ended it wanted the container to end.
                    (Some(_), _) => Err(AppError::silent(Exit::Script(ended.status()))),
                    (None, status) => Err(AppError::silent(Exit::Script(status))),
                };
            }
            self.wait(stop);
            while let Some(signal) = sys::wait::next_signal(&self.signals) {
                if signal == Signal::CHILD || signal == Signal::HUP {
                    continue;
                }
                // A second one, and a first one that does not help, end it at once.
                let how = if stop.is_some() {
                    Signal::KILL
                } else {
                    Signal::TERM
                };
                let _ = kill_process(pid, how);
                stop.get_or_insert(Instant::now() + STOP_GRACE);
            }
            if stop.is_some_and(|end| Instant::now() >= end) {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
    }

    /// Keeps the services running until the container is told to end or cannot go on. They are stopped in reverse order, each when those
    /// after it are gone.
    ///
    /// # Errors
    /// One cannot be started at all.
    pub(super) fn supervise(&self, services: &[Service]) -> Result<Exit, AppError> {
        let now = Instant::now();
        let mut places: Vec<Place<'_>> = services
            .iter()
            .map(|service| Place {
                service,
                pid: None,
                record: Record::default(),
                due: Some(now),
                told_to_stop: false,
            })
            .collect();
        let mut stop: Option<Stop> = None;
        loop {
            self.bury_all(&mut places, &mut stop);
            let now = Instant::now();
            match &stop {
                None => self.start_due(&mut places, now)?,
                Some(end) => {
                    if stop_next(&mut places, now >= end.deadline) {
                        Action::new("container-stop")
                            .field("EXIT", end.exit.code())
                            .info();
                        return Ok(end.exit);
                    }
                }
            }
            let next = places.iter().filter_map(|place| place.due).min();
            self.wait(match &stop {
                None => next,
                Some(stop) => Some(stop.deadline),
            });
            while let Some(signal) = sys::wait::next_signal(&self.signals) {
                obey(signal, &places, &mut stop);
            }
        }
    }

    fn start_due(&self, places: &mut [Place<'_>], now: Instant) -> Result<(), AppError> {
        for place in places.iter_mut() {
            if place.due.is_some_and(|due| due <= now) {
                place.due = None;
                place.pid = Some(self.start(place.service)?);
                place.record.started(now);
            }
        }
        Ok(())
    }

    /// Takes every process off the table that has ended: ours, and orphans that the kernel has made ours.
    fn bury_all(&self, places: &mut [Place<'_>], stop: &mut Option<Stop>) {
        let now = Instant::now();
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            let Some(place) = places.iter_mut().find(|place| place.pid == Some(pid)) else {
                continue;
            };
            place.pid = None;
            if stop.is_some() {
                continue;
            }
            let ended = Ended::of(status);
            let next = place.record.ended(ended, place.service.is_main, now);
            let applet = place.service.applet;
            let line = Action::new("child-end").field("CHILD", applet);
            let line = match ended {
                Ended::Status(code) => line.field("EXIT", code),
                Ended::Signal(number) => line.field("SIGNAL", number),
            };
            match next {
                Next::Restart(pause) => {
                    line.field("RESTART", pause.as_secs()).warning();
                    place.due = Some(now + pause);
                }
                Next::End => {
                    if ended.status() == 0 {
                        line.info();
                    } else {
                        line.err();
                        complain!(
                            "container: {applet} ended ({ended}): the container ends with status {}",
                            ended.status()
                        );
                    }
                    *stop = Some(Stop {
                        exit: Exit::Script(ended.status()),
                        deadline: now + STOP_GRACE,
                    });
                }
            }
        }
    }

    fn start(&self, service: &Service) -> Result<Pid, AppError> {
        let failed = |e: std::io::Error| {
            AppError::failed(format!("container: cannot start {}: {e}", service.applet))
        };
        let mut command = Command::new("/proc/self/exe");
        command
            .arg0(service.applet)
            .args(&service.words)
            .stdin(Stdio::null())
            // Theirs are for whoever has started this process itself.
            .env_remove("LISTEN_PID")
            .env_remove("LISTEN_FDS")
            .envs(service.env.iter().map(|(key, value)| (key, value)));
        if !service.is_main {
            command.env_remove("NOTIFY_SOCKET");
        }
        if let Some(word) = self.log {
            command.env("CTRL_EXEC_LOG", word);
        }
        if self.context.paths.root() != Path::new("/") {
            command.arg("--root").arg(self.context.paths.root());
        }
        if let Some((uid, gid)) = service.user {
            command.gid(gid).uid(uid);
        }
        sys::signals::prepare_child(&mut command, service.user.is_some());
        // Reaped with everything else, by its number.
        let child = command.spawn().map_err(failed)?;
        Action::new("child-start")
            .field("CHILD", service.applet)
            .field("PID", child.id())
            .info();
        Ok(Pid::from_child(&child))
    }

    /// Until there is a signal, or that moment has come.
    fn wait(&self, until: Option<Instant>) {
        let left = until.map(|end| end.saturating_duration_since(Instant::now()));
        // A little later rather than a little earlier, which would be once more around.
        let left = left.and_then(|left| Timespec::try_from(left + Duration::from_millis(1)).ok());
        let mut fds = [PollFd::new(&self.signals, PollFlags::IN)];
        let _ = poll(&mut fds, left.as_ref());
    }
}

/// Buries everything that has ended; answers how the one that is asked about did.
fn bury(wanted: impl Fn(Pid) -> bool) -> Option<Ended> {
    let mut found = None;
    while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
        if wanted(pid) {
            found = Some(Ended::of(status));
        }
    }
    found
}

/// HUP goes to everybody; what ends a program ends the container. A second one does not wait for anybody.
fn obey(signal: Signal, places: &[Place<'_>], stop: &mut Option<Stop>) {
    match signal {
        Signal::HUP => {
            for pid in places.iter().filter_map(|place| place.pid) {
                let _ = kill_process(pid, Signal::HUP);
            }
        }
        Signal::TERM | Signal::INT | Signal::QUIT => {
            let now = Instant::now();
            match stop {
                Some(stop) => stop.deadline = now,
                None => {
                    *stop = Some(Stop {
                        exit: Exit::Success,
                        deadline: now + STOP_GRACE,
                    });
                }
            }
        }
        _ => {}
    }
}

/// The last that runs is told to stop, or killed if it has had its time. True: none runs any more.
fn stop_next(places: &mut [Place<'_>], too_late: bool) -> bool {
    let mut running = places.iter_mut().filter(|place| place.pid.is_some());
    if too_late {
        for place in running {
            if let Some(pid) = place.pid {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
        // As the first process of the namespace we take everybody with us; there is nothing left to wait for.
        return true;
    }
    match running.next_back() {
        None => true,
        Some(place) => {
            if let (Some(pid), false) = (place.pid, place.told_to_stop) {
                place.told_to_stop = true;
                let _ = kill_process(pid, Signal::TERM);
            }
            false
        }
    }
}

impl Ended {
    fn of(status: WaitStatus) -> Self {
        let code = |number: i32| u8::try_from(number).unwrap_or(u8::MAX);
        match (status.exit_status(), status.terminating_signal()) {
            (Some(exit), _) => Self::Status(code(exit)),
            (None, Some(signal)) => Self::Signal(code(signal)),
            (None, None) => Self::Status(restart::FAILURE),
        }
    }
}
