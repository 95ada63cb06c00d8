//! What serves a connection: reads the request, decides, starts, watches, answers (spec/executor.md 10, 15.7). A process that serves one at a
//! time, and another one only after a run that has left nothing behind (see [`super::crew`]).

mod connection;
mod course;
mod decide;
mod orders;
mod report;
mod streams;
mod watch;

use std::cell::Cell;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::process::Signal;
use rustix::thread::CapabilitySet;

use super::crew::{Admitted, Desk, Word};
use super::house::{House, Peer};
use super::jobs::{Job, JobError, answer};
use connection::{NoFrame, REPLY_PATIENCE, read_frame, write_reply};
use course::shortest;
use decide::{Decided, Refused, decide};
pub(super) use report::word as kind_word;
use report::{NOT_RUN, REFUSED};
use watch::{Left, Rules, pipes, watch};

use crate::core::config::ProfileConfig;
use crate::core::exec::frame::{self, FrameError, Kind, Reply, Request, encode_reply};
use crate::core::sandbox::cgroup::{self, Hierarchy, Leaf, Spare};
use crate::core::sandbox::identity::{self, Identity};
use crate::core::sandbox::prepare::{Prepared, RunOrder, prepare};
use crate::core::sandbox::tree::{self, Tree};
use crate::core::sandbox::{NotPrepared, Protections, own, script};
use crate::core::sys::arena;
use crate::core::sys::wait::{self, take_over_signals};

/// Connections that one supervisor serves at most: what a run may have left in it that we do not know of does not last.
const MOST_CONNECTIONS: usize = 64;

/// What becomes of a supervisor when it has served a connection.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum After {
    /// It is as it was before.
    Again,
    End,
}

/// The name of our runs' groups.
fn our_group() -> String {
    Hierarchy::name_of(std::process::id())
}

/// The words for a refusal because `most` runs are going on.
pub(super) fn too_many(most: usize) -> String {
    format!("too many runs at the same time ({most})")
}

/// Serves a connection in a process of its own, and those that it is given afterwards. Returns when everything is done and logged; the
/// caller exits. Without a `desk` there is one connection.
pub(super) fn supervise(first: Admitted, house: &House, desk: Option<&Desk>) {
    let Some(office) = Office::set_up(house, desk) else {
        return;
    };
    office.serve_all(first);
    office.close();
}

/// What a supervisor has for all its connections.
struct Office<'a> {
    house: &'a House,
    desk: Option<&'a Desk>,
    signals: OwnedFd,
    /// What may be in our bounding set.
    bounding: CapabilitySet,
    /// The group of the last run, for the next one.
    spare: Cell<Option<Spare>>,
}

impl<'a> Office<'a> {
    /// Signals, orphans, rights. `None`: it failed, and that is logged.
    fn set_up(house: &'a House, desk: Option<&'a Desk>) -> Option<Self> {
        // A hang-up or an interrupt of the whole service is for the listener: it says what becomes of the runs.
        let taken = [
            Signal::TERM,
            Signal::USR1,
            Signal::CHILD,
            Signal::HUP,
            Signal::INT,
        ];
        let signals = take_over_signals(&taken).ok()?;
        // What a script leaves behind becomes our child. Before Linux 3.4 only its process group can be killed.
        let _ = rustix::process::set_child_subreaper(Some(rustix::process::getpid()));
        let had = house.features.bounding;
        let bounding = match house.unprivileged {
            None => own::give_up_the_rest(&house.policy.config, had),
            Some(_) => Ok(had),
        };
        match bounding {
            Ok(bounding) => Some(Self {
                house,
                desk,
                signals,
                bounding,
                spare: Cell::new(None),
            }),
            Err(errno) => {
                report::own_failure("capabilities", errno).err();
                None
            }
        }
    }

    fn serve_all(&self, first: Admitted) {
        let mut admitted = first;
        for left in (0..MOST_CONNECTIONS).rev() {
            // What came while nothing was going on was for a run that is over.
            while wait::next_signal(&self.signals).is_some() {}
            if self.serve(admitted) == After::End || !arena::begin_again() {
                return;
            }
            // Who asks for a connection must serve it.
            let Some(next) = self.desk.filter(|_| left > 0).and_then(Desk::next) else {
                return;
            };
            admitted = next;
        }
    }

    fn close(self) {
        if let (Some(_), Ok(hierarchy)) = (self.spare.take(), &self.house.hierarchy) {
            hierarchy.remove_spare(&our_group());
        }
    }

    fn serve(&self, admitted: Admitted) -> After {
        if admitted.connection.set_nonblocking(true).is_err() {
            return After::End;
        }
        let served = Served {
            connection: Some(admitted.connection),
            peer: admitted.peer,
            full: admitted.full,
            house: self.house,
            office: self,
        };
        served.serve()
    }
}

struct Served<'a> {
    /// `None` once a detached run has been answered.
    connection: Option<UnixStream>,
    peer: Peer,
    full: bool,
    house: &'a House,
    office: &'a Office<'a>,
}

/// Ready to start.
struct Ready {
    prepared: Prepared,
    identity: Identity,
    leaf: Option<Leaf>,
}

impl Served<'_> {
    /// Only a run can leave us as we were: what else comes is rare.
    fn serve(mut self) -> After {
        let executor = &self.house.policy.config.executor;
        let Some(connection) = &self.connection else {
            return After::End;
        };
        let frame = read_frame(
            connection.as_fd(),
            executor.request_timeout,
            executor.max_frame,
        );
        let body = match frame {
            Ok(body) => body,
            Err(NoFrame::Silence) => return After::End,
            Err(other) => {
                report::malformed(self.peer, other.word()).warning();
                return After::End;
            }
        };
        let mut request = match frame::decode_request(&body) {
            Ok(request) => request,
            Err(FrameError::NoFrame(why)) => {
                report::malformed(self.peer, why).warning();
                return After::End;
            }
            Err(FrameError::Malformed(why)) => {
                report::malformed(self.peer, why).warning();
                let reply = report::refusal(REFUSED, Kind::Denied, "malformed request");
                self.answer(&reply);
                return After::End;
            }
        };
        drop(body);
        if let Some(order) = request.extras.job {
            if let Some(desk) = self.office.desk {
                desk.say(Word::Order);
            }
            let signals = &self.office.signals;
            let answer = orders::obey(order, &request, self.house, connection, signals);
            if let Some(answer) = answer {
                write_reply(connection.as_fd(), &answer, REPLY_PATIENCE);
            }
            return After::End;
        }
        let house = self.house;
        let decided = if self.full {
            let text = too_many(executor.max_runs);
            Err(Refused::new(REFUSED, "limit", text))
        } else {
            decide(&request, house)
        };
        match decided {
            Ok(decided) => self.run(&mut request, &decided),
            Err(refused) => {
                self.refuse(&request, &refused);
                After::End
            }
        }
    }

    fn answer(&self, reply: &Reply) {
        if let Some(connection) = &self.connection {
            write_reply(connection.as_fd(), &encode_reply(reply), REPLY_PATIENCE);
        }
    }

    fn refuse(&self, request: &Request, refused: &Refused) {
        report::denied(request, refused.reason).warning();
        self.answer(&report::refusal(refused.exit, refused.kind, &refused.text));
    }

    fn run(&mut self, request: &mut Request, decided: &Decided<'_>) -> After {
        let job = if request.extras.detach {
            match Job::begin(&self.house.jobs, request) {
                Ok(job) => Some(job),
                Err(e @ JobError::Io { .. }) => {
                    report::setup_failed(request, decided, "job", &e.to_string()).err();
                    self.answer(&report::refusal(REFUSED, Kind::Setup, e));
                    return After::End;
                }
                Err(e) => {
                    let refused = Refused::new(REFUSED, "limit", e.to_string());
                    self.refuse(request, &refused);
                    return After::End;
                }
            }
        } else {
            None
        };
        let mut report = Protections::default();
        match self.ready(request, decided, &mut report) {
            Ok(ready) => self.start(request, decided, ready, &report, job),
            Err(not) => {
                if let Some(job) = job {
                    job.drop_it();
                }
                let kind = if not.reason == "setup" {
                    report::setup_failed(request, decided, "prepare", &not.text).err();
                    Kind::Setup
                } else {
                    report::denied(request, not.reason).warning();
                    Kind::Denied
                };
                self.answer(&report::refusal(NOT_RUN, kind, &not.text));
                After::End
            }
        }
    }

    /// Everything before the fork.
    fn ready(
        &self,
        request: &Request,
        decided: &Decided<'_>,
        report: &mut Protections,
    ) -> Result<Ready, NotPrepared> {
        let (house, profile) = (self.house, decided.profile.as_ref());
        let identity = match house.unprivileged {
            None => identity::resolve(profile)?,
            Some(_) => ourselves(),
        };
        let checked = script::check(
            decided.script.path.as_path(),
            identity.uid,
            profile,
            decided.annotations,
            &house.policy.config.executor,
            report,
        )?;
        for warning in &checked.warnings {
            report::noticed(request, warning).warning();
        }
        let leaf = match &house.hierarchy {
            Ok(hierarchy) => {
                let spare = self.office.spare.take();
                hierarchy.leaf(&our_group(), spare, profile, report)?
            }
            Err(why) => cgroup::unavailable(why, profile, report).map(|()| None)?,
        };
        let order = RunOrder {
            script: &decided.script,
            profile,
            args: &request.args,
            reqid: &request.reqid,
            identity: identity.clone(),
            checked,
            protected: &house.protected,
            features: &house.features,
            bounding: self.office.bounding,
            mounts: &house.mounts,
            leaf: leaf.as_ref(),
        };
        match prepare(order, report) {
            Ok(prepared) => {
                for warning in prepared.warnings() {
                    report::noticed(request, warning).warning();
                }
                Ok(Ready {
                    prepared,
                    identity,
                    leaf,
                })
            }
            Err(not) => {
                if let Some(leaf) = leaf {
                    leaf.remove();
                }
                Err(not)
            }
        }
    }

    fn start(
        &mut self,
        request: &mut Request,
        decided: &Decided<'_>,
        ready: Ready,
        protections: &Protections,
        job: Option<Job>,
    ) -> After {
        let profile = decided.profile.as_ref();
        let files = job.as_ref().map(Job::files).transpose();
        let born = files.and_then(|files| {
            let (ends, io) = pipes()?;
            Ok((ready.prepared.start(io)?, ends, files))
        });
        let (started, ends, files) = match born {
            Ok(born) => born,
            Err(e) => {
                if let Some(leaf) = ready.leaf {
                    leaf.remove();
                }
                if let Some(job) = job {
                    job.drop_it();
                }
                report::setup_failed(request, decided, "fork", &e.to_string()).err();
                self.answer(&report::internal_failure());
                return After::End;
            }
        };
        if job.is_some() {
            self.answer(&answer(0, Kind::Running));
            self.connection = None;
        }
        let executor = &self.house.policy.config.executor;
        let timeout = shortest(&[
            profile.timeout,
            decided.annotations.timeout,
            request.extras.timeout,
        ]);
        let rules = Rules {
            timeout,
            kill_grace: profile.kill_grace,
            drain_grace: executor.drain_grace,
            on_disconnect: profile.on_disconnect,
            leftovers: profile.leftovers,
            max_output: executor.max_output,
            stdin: std::mem::take(&mut request.stdin),
            files,
        };
        let tree = Tree::new(started.pid, started.init, ready.leaf);
        let client = self.connection.as_ref();
        let signals = &self.office.signals;
        let detached = job.is_some();
        let (mut ended, left) = watch(started, tree, ends, rules, client, signals);
        let by_itself = ended.stop.is_none() && ended.failed.is_none();

        let failed = ended.failed.map(|failed| {
            let text = failed.text(&ready.prepared);
            report::setup_failed(request, decided, failed.step.name(), &failed.errno_text()).err();
            (text, failed.step)
        });
        let (written, killed) = (ended.written, ended.left);
        let bits = protections.enforced_bits();
        let reply = report::settle(&mut ended, failed, timeout, bits);
        let kind = reply.extras.unwrap_or_default().kind;
        // The answer first: the client need not wait for our log and for what is cleared away.
        let unanswered = match job {
            None => {
                self.answer(&reply);
                None
            }
            Some(job) => job.end(&reply).err(),
        };
        self.connection = None;
        report::ran(
            request,
            &decided.script.path.to_string(),
            decided.script.profile.as_str(),
            &ready.identity,
            self.peer,
            &reply,
            written,
        )
        .info();
        if let Some(reason) = report::kill_reason(kind) {
            report::about("exec-kill", request)
                .field("REASON", reason)
                .field("LEFT", killed)
                .warning();
        }
        if let Some(e) = unanswered {
            report::setup_failed(request, decided, "result", &e.to_string()).err();
        }
        let again = by_itself && !detached && tree::is_childless();
        let left = match left {
            Left::Group { leaf, empty: true }
                if again && self.is_powerless(&ready.identity, profile) =>
            {
                self.keep(leaf)
            }
            other => other,
        };
        let grace = profile.kill_grace.max(Duration::from_millis(100));
        if left.clear(grace, signals) && again {
            After::Again
        } else {
            After::End
        }
    }

    /// The script was not able to change anything about its group, which is root's, nor to become somebody who is.
    fn is_powerless(&self, script: &Identity, profile: &ProfileConfig) -> bool {
        self.house.unprivileged.is_none()
            && script.uid != 0
            && profile.caps.is_empty()
            && profile.no_new_privileges
    }

    /// Keeps the group for the next run, if that can be; answers what is left to do.
    fn keep(&self, leaf: Leaf) -> Left {
        let Ok(hierarchy) = &self.house.hierarchy else {
            return Left::Group { leaf, empty: true };
        };
        match hierarchy.keep(&our_group(), leaf) {
            Ok(spare) => {
                self.office.spare.set(Some(spare));
                Left::Nothing
            }
            Err(leaf) => Left::Group { leaf, empty: true },
        }
    }
}

/// Without root there is nobody else that a script could run as.
fn ourselves() -> Identity {
    Identity {
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
        groups: Vec::new(),
        name: None,
        home: "/".to_owned(),
    }
}

#[cfg(test)]
mod real_tests;
