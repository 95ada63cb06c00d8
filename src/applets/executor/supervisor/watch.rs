//! The one loop that watches a run (spec/executor.md 10): client, streams, status pipe, main process, signals, time.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::Signal;

use super::connection::{has_gone, timespec};
use super::course::{Course, Effect, Stop, after};
use super::streams::{CHUNK, Input, Output};
use crate::core::config::{Leftovers, OnDisconnect};
use crate::core::sandbox::cgroup::{Leaf, Usage};
use crate::core::sandbox::child::{ChildIo, News, Started, StepFailed};
use crate::core::sandbox::tree::Tree;
use crate::core::sys::wait;

/// Our ends of the pipes.
#[derive(Debug)]
pub(super) struct Ends {
    stdin: OwnedFd,
    stdout: OwnedFd,
    stderr: OwnedFd,
    status: OwnedFd,
}

/// Four pipes. Only our ends are non-blocking: a script does not expect that.
pub(super) fn pipes() -> io::Result<(Ends, ChildIo)> {
    let pair = || pipe_with(PipeFlags::CLOEXEC);
    let (script_in, stdin) = pair()?;
    let (stdout, script_out) = pair()?;
    let (stderr, script_err) = pair()?;
    let (status, script_status) = pair()?;
    for fd in [&stdin, &stdout, &stderr, &status] {
        rustix::io::ioctl_fionbio(fd, true)?;
    }
    let ends = Ends {
        stdin,
        stdout,
        stderr,
        status,
    };
    let io = ChildIo {
        stdin: script_in,
        stdout: script_out,
        stderr: script_err,
        status: script_status,
    };
    Ok((ends, io))
}

/// How a run is to be watched.
#[derive(Debug)]
pub(super) struct Rules {
    pub(super) timeout: Option<Duration>,
    pub(super) kill_grace: Duration,
    pub(super) drain_grace: Duration,
    pub(super) on_disconnect: OnDisconnect,
    pub(super) leftovers: Leftovers,
    pub(super) max_output: usize,
    pub(super) stdin: Vec<u8>,
    /// Where a detached run keeps its streams.
    pub(super) files: Option<(File, File)>,
}

/// What came of it.
#[derive(Debug, Default)]
pub(super) struct Ended {
    /// Why it was ended, if it was.
    pub(super) stop: Option<Stop>,
    /// The script was not started.
    pub(super) failed: Option<StepFailed>,
    /// Raw status of `wait(2)`; `None` when it did not end even after SIGKILL, or ended without anybody learning how.
    pub(super) status: Option<i32>,
    /// Processes that were left when SIGKILL came, of a run that was ended.
    pub(super) left: usize,
    pub(super) usage: Usage,
    pub(super) wall: Duration,
    pub(super) stdout: Vec<u8>,
    pub(super) stderr: Vec<u8>,
    pub(super) truncated: (bool, bool),
    /// Bytes that the script wrote.
    pub(super) written: (u64, u64),
}

#[derive(Clone, Copy, Eq, PartialEq)]
enum Source {
    Client,
    Stdin,
    Stdout,
    Stderr,
    Status,
    Main,
    Signals,
}

struct Watch {
    tree: Tree,
    init: bool,
    pidfd: Option<OwnedFd>,
    client: Option<UnixStream>,
    input: Input,
    outputs: [Output; 2],
    status: Option<OwnedFd>,
    partial: Vec<u8>,
    course: Course,
    ended: Ended,
    on_disconnect: OnDisconnect,
    main_over: bool,
}

/// What is left to do after a run, when the client has its answer.
#[must_use = "the group of the run stays until it is cleared"]
pub(super) enum Left {
    Nothing,
    /// Processes that may stay, in their group.
    Processes,
    /// The group of the run, with nothing in it that may not stay.
    Group {
        leaf: Leaf,
        /// Nothing had to be killed for that.
        empty: bool,
    },
    /// Processes that may stay, and whose init dies with us: see [`linger`].
    Init(Tree),
}

impl Left {
    /// Removes the group, or stays with what an init keeps until it has gone. True: it had ended, and its group is no more.
    pub(super) fn clear(self, kill_grace: Duration, signals: &OwnedFd) -> bool {
        match self {
            Self::Nothing => true,
            Self::Processes => false,
            Self::Group { leaf, .. } => leaf.remove(),
            Self::Init(tree) => {
                linger(tree, kill_grace, signals);
                false
            }
        }
    }
}

/// Watches a run to its end. Everything of it that must not stay is killed when this returns.
pub(super) fn watch(
    started: Started,
    tree: Tree,
    ends: Ends,
    rules: Rules,
    client: Option<&UnixStream>,
    signals: &OwnedFd,
) -> (Ended, Left) {
    let begin = Instant::now();
    let (out_file, err_file) = match rules.files {
        Some((out, err)) => (Some(out), Some(err)),
        None => (None, None),
    };
    let mut watch = Watch {
        tree,
        init: started.init,
        pidfd: started.pidfd,
        // A copy of the descriptor: no longer looking at the client must not close its connection.
        client: client.and_then(|c| c.try_clone().ok()),
        input: Input::new(ends.stdin, rules.stdin),
        outputs: [
            Output::new(ends.stdout, out_file, rules.max_output),
            Output::new(ends.stderr, err_file, rules.max_output),
        ],
        status: Some(ends.status),
        partial: Vec::new(),
        course: Course::new(begin, rules.timeout, rules.kill_grace, rules.drain_grace),
        ended: Ended::default(),
        on_disconnect: rules.on_disconnect,
        main_over: false,
    };
    watch.run(signals);
    watch.finish(rules.leftovers, begin)
}

impl Watch {
    fn run(&mut self, signals: &OwnedFd) {
        let mut chunk = vec![0; CHUNK];
        // What fits into the pipe needs no waiting.
        self.input.write();
        loop {
            self.look_at_main();
            let now = Instant::now();
            let closed = self.outputs.iter().all(|output| output.fd().is_none());
            let effect = self.course.due(now, closed, || self.tree.is_empty());
            match effect {
                Effect::Finish => return,
                Effect::Nothing => {}
                other => {
                    self.carry_out(other);
                    continue;
                }
            }
            for source in self.wait(signals, self.course.patience(now)) {
                match source {
                    Source::Client => self.look_at_client(),
                    Source::Stdin => self.input.write(),
                    Source::Stdout => {
                        self.outputs[0].read(&mut chunk);
                    }
                    Source::Stderr => {
                        self.outputs[1].read(&mut chunk);
                    }
                    Source::Status => self.read_news(),
                    Source::Main => self.pidfd = None,
                    Source::Signals => self.read_signals(signals),
                }
            }
        }
    }

    /// What has something to say, at latest after `patience`.
    fn wait(&self, signals: &OwnedFd, patience: Option<Duration>) -> Vec<Source> {
        let mut sources = Vec::with_capacity(7);
        let mut polled = Vec::with_capacity(7);
        let mut add = |source, fd, flags| {
            sources.push(source);
            polled.push(PollFd::from_borrowed_fd(fd, flags));
        };
        add(Source::Signals, signals.as_fd(), PollFlags::IN);
        if let Some(client) = &self.client {
            add(Source::Client, client.as_fd(), PollFlags::empty());
        }
        if let Some(fd) = self.input.fd() {
            add(Source::Stdin, fd.as_fd(), PollFlags::OUT);
        }
        for (source, output) in [Source::Stdout, Source::Stderr].iter().zip(&self.outputs) {
            if let Some(fd) = output.fd() {
                add(*source, fd.as_fd(), PollFlags::IN);
            }
        }
        // Without an init the pipe tells only why the script was not started, and then its end follows, which is asked for what it has said. A
        // script that has started closes it: that alone is no reason to wake up.
        if let Some(fd) = self.status.as_ref().filter(|_| self.init) {
            add(Source::Status, fd.as_fd(), PollFlags::IN);
        }
        if let Some(fd) = &self.pidfd {
            add(Source::Main, fd.as_fd(), PollFlags::IN);
        }
        let timeout = patience.map(timespec);
        match rustix::event::poll(&mut polled, timeout.as_ref()) {
            Ok(1..) => {}
            Ok(0) | Err(Errno::INTR) => return Vec::new(),
            // Out of kernel memory, most likely: everything is non-blocking, so ask all of them, a little later.
            Err(_) => {
                std::thread::sleep(Duration::from_millis(20));
                return sources;
            }
        }
        let ready = polled.iter().map(|p| !p.revents().is_empty());
        let mut ready = ready.collect::<Vec<_>>().into_iter();
        sources.retain(|_| ready.next().unwrap_or(false));
        sources
    }

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Terminate => self.tree.terminate(),
            Effect::Kill => self.ended.left = self.tree.kill(),
            Effect::Nothing | Effect::Finish => {}
        }
    }

    fn stop(&mut self, why: Stop) {
        let effect = self.course.stop(why, Instant::now());
        self.carry_out(effect);
    }

    fn look_at_main(&mut self) {
        if !self.main_over && (self.ended.status.is_some() || self.tree.main_ended()) {
            self.main_over = true;
            // What it said last may still be in the pipe.
            self.read_news();
            self.course.main_ended(Instant::now());
        }
    }

    fn look_at_client(&mut self) {
        let gone = self.client.as_ref().is_some_and(has_gone);
        self.client = None;
        if gone && self.on_disconnect == OnDisconnect::Kill {
            self.stop(Stop::Disconnect);
        }
    }

    fn read_news(&mut self) {
        let mut buffer = [0; 4 * News::SIZE];
        while let Some(fd) = &self.status {
            match rustix::io::read(fd, &mut buffer[..]) {
                Ok(n @ 1..) => self.partial.extend_from_slice(&buffer[..n]),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Ok(_) | Err(_) => self.status = None,
            }
            while let Some((message, rest)) = self.partial.split_first_chunk::<{ News::SIZE }>() {
                let news = News::decode(*message);
                self.partial = rest.to_vec();
                match news {
                    Some(News::Failed(failed)) => {
                        self.ended.failed.get_or_insert(failed);
                    }
                    Some(News::Ended(status)) if self.init => {
                        self.ended.status.get_or_insert(status);
                    }
                    Some(News::Ended(_)) | None => {}
                }
            }
        }
    }

    fn read_signals(&mut self, signals: &OwnedFd) {
        while let Some(signal) = wait::next_signal(signals) {
            match signal {
                Signal::TERM => self.stop(Stop::Shutdown),
                Signal::USR1 => self.stop(Stop::Cancelled),
                // The end of the main process itself, most often. What ended along with it is looked for when all is over.
                Signal::CHILD if !self.main_over && self.tree.main_ended() => {}
                Signal::CHILD => self.tree.reap_orphans(),
                _ => {}
            }
        }
    }

    fn finish(mut self, leftovers: Leftovers, begin: Instant) -> (Ended, Left) {
        self.ended.stop = self.course.stopped();
        let must_go = self.ended.stop.is_some() || leftovers == Leftovers::Kill;
        let empty = must_go && self.tree.is_empty();
        if must_go && !empty {
            let left = self.tree.kill();
            self.ended.left = self.ended.left.max(left);
        }
        let leaf = self.tree.leaf().map(|leaf| leaf.usage());
        let reaped = self.tree.reap_main();
        self.tree.reap_orphans();
        if self.ended.status.is_none() {
            self.ended.status = reaped.map(|reaped| reaped.status);
        }
        let leaf = leaf.unwrap_or_default();
        self.ended.usage = Usage {
            cpu: leaf.cpu.or(reaped.map(|reaped| reaped.cpu)),
            memory_peak: leaf.memory_peak.or(reaped.map(|r| r.memory_peak)),
            oom_killed: leaf.oom_killed,
        };
        self.ended.wall = begin.elapsed();
        let [stdout, stderr] = self.outputs;
        self.ended.written = (stdout.seen(), stderr.seen());
        (self.ended.stdout, self.ended.truncated.0) = stdout.finish();
        (self.ended.stderr, self.ended.truncated.1) = stderr.finish();
        let left = if self.init && reaped.is_none() && !must_go {
            Left::Init(self.tree)
        } else if let Some(leaf) = self.tree.into_leaf() {
            if must_go || !leaf.populated() {
                let empty = empty || !must_go;
                Left::Group { leaf, empty }
            } else {
                Left::Processes
            }
        } else {
            Left::Nothing
        };
        (self.ended, left)
    }
}

/// Stays with what an init was allowed to keep, until nothing of it is left or we are told to go.
fn linger(mut tree: Tree, kill_grace: Duration, signals: &OwnedFd) {
    let mut told: Option<Instant> = None;
    while !tree.main_ended() {
        let now = Instant::now();
        let patience = match told {
            Some(kill_at) if now >= kill_at => {
                tree.kill();
                break;
            }
            Some(kill_at) => Some(kill_at.saturating_duration_since(now)),
            None => None,
        };
        let mut polled = [PollFd::new(signals, PollFlags::IN)];
        let _ = rustix::event::poll(&mut polled, patience.map(timespec).as_ref());
        while let Some(signal) = wait::next_signal(signals) {
            match signal {
                Signal::TERM | Signal::USR1 if told.is_none() => {
                    tree.terminate();
                    told = Some(after(now, kill_grace));
                }
                Signal::CHILD => tree.reap_orphans(),
                _ => {}
            }
        }
    }
    tree.reap_main();
    if let Some(leaf) = tree.leaf() {
        leaf.remove();
    }
}

#[cfg(test)]
#[path = "watch_tests.rs"]
mod tests;
