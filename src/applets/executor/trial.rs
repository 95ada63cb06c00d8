//! `try`: one run exactly as the service would do it, without the service, for whoever writes a profile.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use super::crew::Admitted;
use super::house::{House, Peer};
use super::policy::Source;
use super::startup::absolute;
use super::{IDENT, operands, supervisor};
use crate::applets::{AppError, Context, Exit};
use crate::complain;
use crate::core::exec::frame::{self, Kind, Reply, ReplyExtras, Request, RequestExtras};
use crate::core::logging;
use crate::core::sandbox::Protection;
use crate::core::sandbox::cgroup::Hierarchy;
use crate::core::sandbox::features::Features;
use crate::core::sandbox::view::Mounts;
use crate::core::sys::fork::{self, Side};
use crate::core::terminal::{stderr_bytes, stdout_bytes};
use crate::core::types::ReqId;

/// # Errors
/// 78 for files that cannot be used, 1 for what the system refuses or when we are not root.
pub(super) fn main(context: &Context, args: Vec<String>) -> Result<Exit, AppError> {
    let ([config, allowlist, script], args) = operands(args)?;
    let context_json = |reqid: &str| {
        // What a script finds on its stdin when the agent has sent it.
        let value = serde_json::json!({
            "script": script, "args": args, "reqid": reqid, "peer_ip": "", "username": "", "token": "",
            "dispatcher": "try", "timestamp": "",
        });
        value.to_string().into_bytes()
    };
    let failed = |text: String| AppError::failed(format!("{IDENT}: {text}"));
    if !rustix::process::geteuid().is_root() {
        return Err(failed(
            "try must run as root, as the service does".to_owned(),
        ));
    }
    let (config, allowlist) = (absolute(config)?, absolute(allowlist)?);
    logging::init(IDENT, context.log_sink());
    let socket = context.paths.resolve("/run/ctrl-exec-agent/exec.sock");
    let mut source = Source::new(context.paths.clone(), config, allowlist, socket);
    let (policy, told) = source.load().map_err(AppError::config)?;
    for warning in told.warnings {
        complain!("{warning}");
    }
    let reqid =
        ReqId::generate().map_err(|_| failed("the system gives no random bytes".to_owned()))?;
    let request = Request {
        reqid: reqid.to_string(),
        dispatcher: "try".to_owned(),
        script: script.clone(),
        stdin: context_json(reqid.as_str()),
        args: args.iter().map(|arg| arg.clone().into_bytes()).collect(),
        extras: RequestExtras::default(),
    };
    let frame = frame::encode_request(&request)
        .map_err(|e| failed(format!("cannot ask for '{}': {e}", script.escape_debug())))?;
    let house = House {
        protected: source.protected(&policy.config, &policy.allowlist),
        policy,
        features: Features::probe(),
        hierarchy: Hierarchy::apart(),
        mounts: Mounts::read(),
        unprivileged: None,
        // Only detached runs keep anything there, and this is none.
        jobs: Path::new("/nonexistent").to_owned(),
    };
    let reply = exchange(&house, &frame);
    // Whatever came of it, nothing of the trial stays.
    if let Ok(hierarchy) = house.hierarchy {
        hierarchy.dissolve();
    }
    let reply = reply.map_err(failed)?;
    stdout_bytes(&reply.stdout);
    stderr_bytes(&reply.stderr);
    complain!("{}", summary(&script, &reply));
    Ok(status(&reply))
}

/// One supervisor, as the listener would make it.
fn exchange(house: &House, frame: &[u8]) -> Result<Reply, String> {
    let cannot = |what: &str, e: std::io::Error| format!("cannot {what}: {e}");
    let (mut ours, theirs) = UnixStream::pair().map_err(|e| cannot("make a socket", e))?;
    let peer = Peer {
        uid: 0,
        pid: rustix::process::getpid().as_raw_pid(),
    };
    let supervisor = match fork::fork().map_err(|e| cannot("fork", e))? {
        Side::Child => {
            drop(ours);
            let admitted = Admitted {
                connection: theirs,
                peer,
                full: false,
            };
            supervisor::supervise(admitted, house, None);
            fork::leave(0)
        }
        Side::Parent(pid) => pid,
    };
    drop(theirs);
    ours.write_all(frame)
        .map_err(|e| cannot("send the request", e))?;
    let mut answer = Vec::new();
    // The supervisor bounds what it answers, and ends.
    ours.read_to_end(&mut answer)
        .map_err(|e| cannot("read the answer", e))?;
    if let Some(pid) = rustix::process::Pid::from_raw(supervisor) {
        let _ = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty());
    }
    if answer.is_empty() {
        return Err("the run's supervisor ended without an answer".to_owned());
    }
    frame::decode_reply(&answer).map_err(|e| format!("the answer cannot be read: {e}"))
}

fn status(reply: &Reply) -> Exit {
    u8::try_from(reply.exit).map_or(Exit::Failure, Exit::Script)
}

/// How it ended, in one line.
fn summary(script: &str, reply: &Reply) -> String {
    let Some(extras) = &reply.extras else {
        return format!("# {script}: exit {}", reply.exit);
    };
    let how = match (extras.kind, extras.signal) {
        (Kind::Exit, _) => "ended by itself".to_owned(),
        (Kind::Signal, Some(signal)) => format!("killed by signal {signal}"),
        (Kind::Signal, None) => "killed by a signal".to_owned(),
        (Kind::Timeout, _) => "ended at its timeout".to_owned(),
        (Kind::Setup, _) if reply.exit == 127 => {
            "not started: the script cannot be executed".to_owned()
        }
        (Kind::Setup, _) => "not started: its profile could not be applied".to_owned(),
        (Kind::Denied, _) => "refused".to_owned(),
        (Kind::Oom, _) => "out of memory (oom): beyond memory_max".to_owned(),
        (other, _) => supervisor::kind_word(other).to_owned(),
    };
    let mut text = format!("# {script}: exit {}, {how}{}", reply.exit, used(extras));
    let names: Vec<&str> = Protection::ALL
        .into_iter()
        .filter(|p| extras.protections & p.bit() != 0)
        .map(Protection::name)
        .collect();
    if !names.is_empty() {
        text.push_str(&format!("\n# in force: {}", names.join(", ")));
    }
    text
}

fn used(extras: &ReplyExtras) -> String {
    let ms = |d: Duration| d.as_millis();
    let mut text = format!("; {} ms", ms(extras.wall));
    if let Some(cpu) = extras.cpu {
        text.push_str(&format!(", cpu {} ms", ms(cpu)));
    }
    if let Some(peak) = extras.memory_peak {
        text.push_str(&format!(", memory {} KiB at most", peak / 1024));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_says_how_it_ended_and_what_was_in_force() {
        let reply = Reply {
            exit: 126,
            extras: Some(ReplyExtras {
                kind: Kind::Timeout,
                wall: Duration::from_millis(1500),
                memory_peak: Some(2 << 20),
                protections: Protection::Capabilities.bit() | Protection::Seccomp.bit(),
                ..ReplyExtras::default()
            }),
            ..Reply::default()
        };
        assert_eq!(
            summary("backup", &reply),
            "# backup: exit 126, ended at its timeout; 1500 ms, memory 2048 KiB at most\n# in force: capabilities, syscalls"
        );
        assert_eq!(status(&reply).code(), 126);
        assert_eq!(status(&Reply { exit: -1, ..reply }), Exit::Failure);
    }
}
