//! From what came of a run to the reply and the lines of the log (spec/executor.md 10, 12).

use std::fmt::Display;
use std::time::Duration;

use super::super::house::Peer;
use super::course::Stop;
use super::decide::Decided;
use super::watch::Ended;
use crate::core::exec::frame::{Kind, Reply, ReplyExtras, Request};
use crate::core::logging::Action;
use crate::core::sandbox::child::Step;
use crate::core::sandbox::identity::Identity;

/// Exit code of everything that is neither the script's own nor a refusal.
pub(super) const NOT_RUN: i32 = 126;
/// The script could not be executed at all.
pub(super) const NOT_EXECUTED: i32 = 127;
/// Refused, or our own failure.
pub(super) const REFUSED: i32 = -1;

/// Longest value of a request in the log.
const LONGEST: usize = 256;

/// An answer without a run: `executor: <text>` on stderr.
pub(super) fn refusal(exit: i32, kind: Kind, text: impl Display) -> Reply {
    Reply {
        exit,
        stdout: Vec::new(),
        stderr: format!("executor: {text}\n").into_bytes(),
        extras: Some(ReplyExtras {
            kind,
            ..ReplyExtras::default()
        }),
    }
}

/// Our own failure before the script: both streams empty, as the original answers.
pub(super) fn internal_failure() -> Reply {
    Reply {
        exit: REFUSED,
        extras: Some(ReplyExtras {
            kind: Kind::Setup,
            ..ReplyExtras::default()
        }),
        ..Reply::default()
    }
}

/// What the parts of a status of `wait(2)` say.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Death {
    exit: i32,
    signal: Option<i32>,
    core: bool,
}

fn death(status: Option<i32>) -> Death {
    match status {
        Some(status) if libc::WIFEXITED(status) => Death {
            exit: libc::WEXITSTATUS(status),
            signal: None,
            core: false,
        },
        Some(status) if libc::WIFSIGNALED(status) => Death {
            exit: NOT_RUN,
            signal: Some(libc::WTERMSIG(status)),
            core: libc::WCOREDUMP(status),
        },
        // Not even SIGKILL ended it in time, or nobody could say how it ended.
        _ => Death {
            exit: NOT_RUN,
            signal: Some(libc::SIGKILL),
            core: false,
        },
    }
}

/// The reply to a run that was started. `failed`: the sentence for a failed step, without `executor: `, and whether it was `execve`.
pub(super) fn settle(
    ended: &mut Ended,
    failed: Option<(String, Step)>,
    timeout: Option<Duration>,
    protections: u32,
) -> Reply {
    let death = death(ended.status);
    let mut extras = ReplyExtras {
        kind: Kind::Exit,
        truncated_stdout: ended.truncated.0,
        truncated_stderr: ended.truncated.1,
        wall: ended.wall,
        cpu: ended.usage.cpu,
        memory_peak: ended.usage.memory_peak,
        protections,
        ..ReplyExtras::default()
    };
    let mut stderr = std::mem::take(&mut ended.stderr);
    let mut exit = death.exit;
    if let Some((text, step)) = failed {
        extras.kind = Kind::Setup;
        // What was not put up cannot have been in force.
        extras.protections = 0;
        exit = if step == Step::Exec {
            NOT_EXECUTED
        } else {
            NOT_RUN
        };
        stderr.extend_from_slice(line(&text).as_bytes());
    } else {
        extras.signal = death.signal;
        extras.core_dumped = death.core;
        if let Some(stop) = ended.stop {
            extras.kind = stop.kind();
            extras.timed_out = stop == Stop::Timeout;
            // A script that ends tidily when it is told to has not done its work either.
            exit = NOT_RUN;
            if let Some(text) = words(stop, timeout) {
                stderr.extend_from_slice(line(&text).as_bytes());
            }
        } else if death.signal == Some(libc::SIGKILL) && ended.usage.oom_killed {
            extras.kind = Kind::Oom;
        } else if death.signal.is_some() {
            extras.kind = Kind::Signal;
        }
    }
    Reply {
        exit,
        stdout: std::mem::take(&mut ended.stdout),
        stderr,
        extras: Some(extras),
    }
}

fn line(text: &str) -> String {
    // The child's own wording of the original has the prefix where the original had it.
    format!("{}\n", text.trim_end_matches('\n'))
}

fn words(stop: Stop, timeout: Option<Duration>) -> Option<String> {
    match stop {
        Stop::Timeout => {
            let seconds = timeout.unwrap_or_default().as_secs_f64();
            Some(format!("executor: timed out after {seconds}s"))
        }
        Stop::Cancelled => Some("executor: cancelled".to_owned()),
        Stop::Shutdown => Some("executor: the executor is stopping".to_owned()),
        // Nobody is there to read it.
        Stop::Disconnect => None,
    }
}

/// KIND of `exec-run`.
pub(in crate::applets::executor) fn word(kind: Kind) -> &'static str {
    match kind {
        Kind::Exit => "exit",
        Kind::Signal => "signal",
        Kind::Timeout => "timeout",
        Kind::Setup => "setup",
        Kind::Denied => "denied",
        Kind::Oom => "oom",
        Kind::Cancelled => "cancelled",
        Kind::Disconnect => "disconnect",
        Kind::Shutdown => "shutdown",
        Kind::Running => "running",
        Kind::Unknown => "unknown",
        Kind::Lost => "lost",
    }
}

/// Values of a request are cut; the log itself escapes them.
pub(super) fn cut(value: &str) -> &str {
    let mut end = value.len().min(LONGEST);
    while !value.is_char_boundary(end) {
        end -= 1;
    }
    &value[..end]
}

/// A line about a request.
pub(super) fn about(name: &'static str, request: &Request) -> Action {
    Action::new(name)
        .field("REQID", cut(&request.reqid))
        .field("SCRIPT", cut(&request.script))
}

/// `exec-deny`
pub(super) fn denied(request: &Request, reason: &str) -> Action {
    about("exec-deny", request)
        .field("DISPATCHER", cut(&request.dispatcher))
        .field("REASON", reason)
}

/// `exec-setup-fail`
pub(super) fn setup_failed(
    request: &Request,
    decided: &Decided<'_>,
    step: &str,
    error: &str,
) -> Action {
    about("exec-setup-fail", request)
        .field("PROFILE", &decided.script.profile)
        .field("STEP", step)
        .field("ERROR", cut(error))
}

/// `exec-warn`: the run goes on, and somebody should know.
pub(super) fn noticed(request: &Request, warning: &str) -> Action {
    about("exec-warn", request).field("REASON", cut(warning))
}

/// `exec-setup-fail` without a request: the supervisor itself could not be set up.
pub(super) fn own_failure(step: &str, error: impl Display) -> Action {
    Action::new("exec-setup-fail")
        .field("STEP", step)
        .field("ERROR", error)
}

/// `exec-malformed`
pub(super) fn malformed(peer: Peer, reason: &str) -> Action {
    Action::new("exec-malformed")
        .field("PEER_UID", peer.uid)
        .field("PEER_PID", peer.pid)
        .field("REASON", reason)
}

/// REASON of `exec-kill`, if the run was killed by us or the kernel.
pub(super) fn kill_reason(kind: Kind) -> Option<&'static str> {
    matches!(
        kind,
        Kind::Timeout | Kind::Disconnect | Kind::Oom | Kind::Shutdown | Kind::Cancelled
    )
    .then(|| word(kind))
}

/// `exec-run`
pub(super) fn ran(
    request: &Request,
    path: &str,
    profile: &str,
    identity: &Identity,
    peer: Peer,
    reply: &Reply,
    written: (u64, u64),
) -> Action {
    let extras = reply.extras.unwrap_or_default();
    let mut action = about("exec-run", request)
        .field("DISPATCHER", cut(&request.dispatcher))
        .field("PATH", cut(path))
        .field("PROFILE", profile)
        .field("UID", identity.uid)
        .field("GID", identity.gid)
        .field("EXIT", reply.exit)
        .field("KIND", word(extras.kind))
        .field("DUR_MS", extras.wall.as_millis())
        .field("OUT", written.0)
        .field("ERR", written.1)
        .field(
            "TRUNC",
            u8::from(extras.truncated_stdout || extras.truncated_stderr),
        )
        .field("PEER_PID", peer.pid);
    if let Some(signal) = extras.signal {
        action = action.field("SIGNAL", signal);
    }
    if let Some(cpu) = extras.cpu {
        action = action.field("CPU_MS", cpu.as_millis());
    }
    if let Some(peak) = extras.memory_peak {
        action = action.field("MEM_PEAK", peak);
    }
    if let Some(user) = &request.extras.username {
        action = action.field("USERNAME", cut(user));
    }
    if let Some(ip) = &request.extras.peer_ip {
        action = action.field("PEER", cut(ip));
    }
    action
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::sandbox::cgroup::Usage;

    fn ended(status: i32) -> Ended {
        Ended {
            status: Some(status),
            stdout: b"out".to_vec(),
            stderr: b"err\n".to_vec(),
            wall: Duration::from_millis(1500),
            written: (3, 4),
            ..Ended::default()
        }
    }

    fn settled(mut ended: Ended) -> (i32, Kind, Option<i32>, String) {
        let timeout = Some(Duration::from_secs(3));
        let reply = settle(&mut ended, None, timeout, 5);
        let extras = reply.extras.unwrap();
        assert_eq!(reply.stdout, b"out");
        assert_eq!(extras.protections, 5);
        (
            reply.exit,
            extras.kind,
            extras.signal,
            String::from_utf8(reply.stderr).unwrap(),
        )
    }

    #[test]
    fn the_exit_code_is_the_scripts_and_a_signal_is_126() {
        let err = || "err\n".to_owned();
        assert_eq!(settled(ended(0)), (0, Kind::Exit, None, err()));
        assert_eq!(settled(ended(255 << 8)), (255, Kind::Exit, None, err()));
        assert_eq!(settled(ended(15)), (126, Kind::Signal, Some(15), err()));
        let mut segv = ended(11 | 0x80);
        let reply = settle(&mut segv, None, None, 0);
        assert!(reply.extras.unwrap().core_dumped);
        let mut unknown = ended(0);
        unknown.status = None;
        assert_eq!(settled(unknown), (126, Kind::Signal, Some(9), err()));
    }

    #[test]
    fn the_kernels_memory_killer_is_named_only_when_it_met_the_script() {
        let oom = |status| {
            let mut ended = ended(status);
            ended.usage = Usage {
                oom_killed: true,
                ..Usage::default()
            };
            settled(ended).1
        };
        assert_eq!(oom(9), Kind::Oom);
        assert_eq!(oom(15), Kind::Signal);
        assert_eq!(oom(1 << 8), Kind::Exit);
    }

    #[test]
    fn a_run_that_was_ended_is_126_whatever_it_says_and_tells_why() {
        let stopped = |stop, status| {
            let mut ended = ended(status);
            ended.stop = Some(stop);
            settled(ended)
        };
        let (exit, kind, signal, stderr) = stopped(Stop::Timeout, 0);
        assert_eq!((exit, kind, signal), (126, Kind::Timeout, None));
        assert_eq!(stderr, "err\nexecutor: timed out after 3s\n");
        let (exit, kind, signal, _) = stopped(Stop::Cancelled, 15);
        assert_eq!((exit, kind, signal), (126, Kind::Cancelled, Some(15)));
        assert_eq!(stopped(Stop::Shutdown, 9).1, Kind::Shutdown);
        assert_eq!(stopped(Stop::Disconnect, 9).3, "err\n");
    }

    #[test]
    fn a_failed_step_is_126_and_a_failed_exec_127() {
        let failed = |step| {
            let text = "executor: exec '/x' failed: No such file".to_owned();
            settle(&mut ended(126 << 8), Some((text, step)), None, 5)
        };
        let reply = failed(Step::Exec);
        assert_eq!(reply.exit, 127);
        assert_eq!(reply.extras.unwrap().kind, Kind::Setup);
        assert_eq!(reply.extras.unwrap().protections, 0);
        assert!(reply.stderr.ends_with(b"failed: No such file\n"));
        assert_eq!(failed(Step::Uid).exit, 126);
    }

    #[test]
    fn the_line_of_a_run_has_every_field_and_nothing_of_its_content() {
        let request = Request {
            reqid: "r1".to_owned(),
            dispatcher: "d 1".to_owned(),
            script: "backup".to_owned(),
            stdin: b"secret-in".to_vec(),
            args: vec![b"secret-arg".to_vec()],
            ..Request::default()
        };
        let mut ended = ended(15);
        ended.usage.cpu = Some(Duration::from_millis(20));
        ended.usage.memory_peak = Some(4096);
        let reply = settle(&mut ended, None, None, 0);
        let identity = Identity {
            uid: 5,
            gid: 6,
            groups: Vec::new(),
            name: None,
            home: "/".to_owned(),
        };
        let peer = Peer { uid: 1, pid: 99 };
        let line = ran(&request, "/opt/b", "p", &identity, peer, &reply, (3, 4)).to_string();
        assert_eq!(
            line,
            "ACTION=exec-run CPU_MS=20 DISPATCHER=\"d 1\" DUR_MS=1500 ERR=4 EXIT=126 GID=6 KIND=signal MEM_PEAK=4096 OUT=3 \
             PATH=/opt/b PEER_PID=99 PROFILE=p REQID=r1 SCRIPT=backup SIGNAL=15 TRUNC=0 UID=5"
        );
    }

    #[test]
    fn values_are_cut_between_characters() {
        let long = "é".repeat(200);
        assert_eq!(cut(&long).len(), 256);
        assert_eq!(cut(&format!("x{long}")).len(), 255);
        assert_eq!(cut("abc"), "abc");
    }
}
