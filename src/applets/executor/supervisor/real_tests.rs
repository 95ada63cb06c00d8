//! Whole requests over a socket pair: decided, confined, run, answered. As root as the service does it, else in its unprivileged mode.

use super::*;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use super::super::crew::Crew;
use super::super::house::{Peer, Policy, Unprivileged};
use crate::core::config::{
    AgentConfig, Allowlist, Annotations, Leftovers, OnDisconnect, ProfileConfig, Protected, Scope,
    ScriptEntry,
};
use crate::core::exec::frame::{JobOrder, RequestExtras, decode_reply, encode_request};
use crate::core::paths::{Paths, Platform};
use crate::core::sandbox::ProtectedPaths;
use crate::core::sandbox::features::Features;
use crate::core::sandbox::view::Mounts;
use crate::core::sys::fork::{Side, fork, leave};
use crate::core::sys::wait::in_own_process;
use crate::core::types::{AbsolutePath, ProfileName, ScriptName};

struct Bench {
    dir: tempfile::TempDir,
    house: House,
    full: bool,
    desk: Option<Desk>,
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

impl Bench {
    fn new(script: &str, change: impl FnOnce(&mut ProfileConfig)) -> Self {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let executable = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(dir.path(), executable.clone()).unwrap();
        let path = dir.path().join("script");
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&path, executable).unwrap();

        let paths = Paths::new("/", Platform::Standard);
        let mut config = AgentConfig::defaults(&paths, Path::new("agent.conf"));
        let mut profile = ProfileConfig {
            kill_grace: Duration::from_millis(300),
            ..ProfileConfig::default()
        };
        change(&mut profile);
        let name = ProfileName::new("default").unwrap();
        let entry = ScriptEntry {
            path: AbsolutePath::new(path.to_str().unwrap()).unwrap(),
            profile: name.clone(),
            annotations: Annotations::default(),
        };
        config.profiles.insert(name, profile);
        config.executor.drain_grace = Duration::from_millis(200);
        config.executor.request_timeout = Duration::from_secs(1);
        let mut allowlist = Allowlist::default();
        let name = ScriptName::new("script").unwrap();
        allowlist.scripts.insert(name, entry);
        let house = House {
            policy: Policy {
                config,
                allowlist,
                hash: String::new(),
                refuse_all: None,
            },
            features: if is_root() {
                Features::probe()
            } else {
                Features::unprivileged()
            },
            hierarchy: Err("not in this test".to_owned()),
            protected: ProtectedPaths::default(),
            mounts: Mounts::read(),
            unprivileged: (!is_root()).then_some(Unprivileged::Careful),
            jobs: dir.path().join("jobs"),
        };
        Self {
            dir,
            house,
            full: false,
            desk: None,
        }
    }

    /// What a client reads that sends these bytes and then no more.
    fn exchange(&self, bytes: &[u8]) -> Vec<u8> {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        ours.write_all(bytes).unwrap();
        ours.shutdown(std::net::Shutdown::Write).unwrap();
        let first = Admitted {
            full: self.full,
            ..admitted(theirs)
        };
        supervise(first, &self.house, self.desk.as_ref());
        let mut answer = Vec::new();
        ours.read_to_end(&mut answer).unwrap();
        answer
    }

    fn ask(&self, request: &Request) -> Reply {
        decode_reply(&self.exchange(&encode_request(request).unwrap())).unwrap()
    }

    fn order(&self, order: JobOrder) -> Reply {
        let mut request = request(".job");
        request.extras.job = Some(order);
        self.ask(&request)
    }
}

fn admitted(connection: UnixStream) -> Admitted {
    Admitted {
        connection,
        peer: Peer { uid: 0, pid: 1 },
        full: false,
    }
}

fn request(script: &str) -> Request {
    Request {
        reqid: "r1".to_owned(),
        dispatcher: "d1".to_owned(),
        script: script.to_owned(),
        stdin: b"{}".to_vec(),
        args: vec![b"a b".to_vec()],
        extras: RequestExtras::default(),
    }
}

fn kind(reply: &Reply) -> Kind {
    reply.extras.unwrap().kind
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn a_request_is_run_and_answered() {
    in_own_process(|| {
        let bench = Bench::new("cat; printf '[%s]' \"$@\"; echo err >&2; exit 42", |_| {});
        let reply = bench.ask(&request("script"));
        assert_eq!(
            (reply.exit, text(&reply.stdout), text(&reply.stderr)),
            (42, "{}[a b]".to_owned(), "err\n".to_owned())
        );
        assert_eq!(kind(&reply), Kind::Exit);
    });
}

#[test]
fn a_script_finds_three_descriptors_and_a_clean_signal_state() {
    in_own_process(|| {
        let script = "ls /proc/$$/fd; grep -E '^Sig(Blk|Ign)' /proc/$$/status | tr -d '\\n\\t'";
        let reply = Bench::new(script, |_| {}).ask(&request("script"));
        let out = text(&reply.stdout);
        // 10 and 255 are a shell's own hold on its script.
        let numbers = out.split("Sig").next().unwrap().split_whitespace();
        let left: Vec<_> = numbers.filter(|n| !["10", "255"].contains(n)).collect();
        assert_eq!(left, ["0", "1", "2"], "{out} {}", text(&reply.stderr));
        assert!(
            out.contains("SigBlk:0000000000000000SigIgn:0000000000000000"),
            "{out}"
        );
    });
}

#[test]
fn what_is_no_request_gets_what_the_original_gives_it() {
    in_own_process(|| {
        let bench = Bench::new("exit 0", |_| {});
        for silent in [
            &b""[..],
            b"\0\0\0\0",
            b"\x01\x03\x66\x40",
            b"\0\0\0\x64abcd",
        ] {
            assert_eq!(bench.exchange(silent), b"");
        }
        let malformed = bench.exchange(b"\0\0\0\x08\0\0\x03\xe8abcd");
        let reply = decode_reply(&malformed).unwrap();
        assert_eq!(
            (reply.exit, text(&reply.stderr)),
            (-1, "executor: malformed request\n".to_owned())
        );
        let reply = bench.ask(&request("other"));
        assert_eq!(
            (reply.exit, text(&reply.stderr)),
            (-1, "executor: script not permitted\n".to_owned())
        );
        assert_eq!(kind(&reply), Kind::Denied);
    });
}

#[test]
fn a_policy_that_is_not_trusted_any_more_refuses_everything() {
    in_own_process(|| {
        let mut bench = Bench::new("exit 0", |_| {});
        bench.house.policy.refuse_all = Some("the file has changed hands".to_owned());
        let reply = bench.ask(&request("script"));
        assert_eq!(reply.exit, -1);
        assert_eq!(
            text(&reply.stderr),
            "executor: the file has changed hands\n"
        );
    });
}

#[test]
fn the_shortest_timeout_ends_the_run() {
    in_own_process(|| {
        let bench = Bench::new("exec sleep 300", |p| {
            p.timeout = Some(Duration::from_secs(200))
        });
        let mut request = request("script");
        request.extras.timeout = Some(Duration::from_secs(1));
        let reply = bench.ask(&request);
        assert_eq!(reply.exit, 126);
        assert!(text(&reply.stderr).ends_with("executor: timed out after 1s\n"));
        let extras = reply.extras.unwrap();
        assert!(extras.timed_out && extras.kind == Kind::Timeout);
    });
}

#[test]
fn a_script_that_cannot_be_executed_is_told_apart() {
    in_own_process(|| {
        let bench = Bench::new("exit 0", |p| {
            p.script_trust = crate::core::config::ScriptTrust::Off
        });
        std::fs::write(
            bench.dir.path().join("script"),
            "#!/nonexistent/interpreter\n",
        )
        .unwrap();
        let reply = bench.ask(&request("script"));
        assert_eq!(
            (reply.exit, kind(&reply)),
            (127, Kind::Setup),
            "{}",
            text(&reply.stderr)
        );
        assert!(text(&reply.stderr).contains("executor: exec '"));
    });
}

#[test]
fn fifty_stubborn_processes_are_gone_with_their_init() {
    if !is_root() {
        assert!(std::env::var_os("CI").is_none(), "this test needs root");
        return;
    }
    in_own_process(|| {
        let word = format!("0.{}3", std::process::id());
        let script = format!(
            "trap '' TERM; i=0; while [ $i -lt 50 ]; do (setsid sleep 300 {word} &); i=$((i+1)); done; sleep 300 {word}"
        );
        let bench = Bench::new(&script, |p| {
            p.processes = Protected::required(Scope::Private);
            p.timeout = Some(Duration::from_secs(2));
        });
        let reply = bench.ask(&request("script"));
        assert_eq!(
            (reply.exit, kind(&reply)),
            (126, Kind::Timeout),
            "{}",
            text(&reply.stderr)
        );
        assert_eq!(with_word(&word), 0);
    });
}

#[test]
fn an_init_lets_stay_what_may_and_we_stay_with_it() {
    if !is_root() {
        assert!(std::env::var_os("CI").is_none(), "this test needs root");
        return;
    }
    in_own_process(|| {
        let word = format!("1.{}4", std::process::id());
        let script = format!("(setsid sleep {word} </dev/null >/dev/null 2>&1 &); exit 3");
        for (leftovers, stays) in [(Leftovers::Keep, true), (Leftovers::Kill, false)] {
            let bench = Bench::new(&script, |p| {
                p.processes = Protected::required(Scope::Private);
                p.leftovers = leftovers;
            });
            let begin = std::time::Instant::now();
            let reply = bench.ask(&request("script"));
            assert_eq!(
                (reply.exit, kind(&reply)),
                (3, Kind::Exit),
                "{}",
                text(&reply.stderr)
            );
            // `supervise` returns when the last one has gone by itself.
            assert_eq!(begin.elapsed() >= Duration::from_secs(1), stays);
            assert_eq!(with_word(&word), 0);
        }
    });
}

#[test]
fn a_client_that_has_gone_ends_the_run_where_the_profile_says_so() {
    in_own_process(|| {
        let bench = Bench::new("exec sleep 300", |p| p.on_disconnect = OnDisconnect::Kill);
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        ours.write_all(&encode_request(&request("script")).unwrap())
            .unwrap();
        drop(ours);
        supervise(admitted(theirs), &bench.house, None);
    });
}

#[test]
fn a_detached_run_is_answered_at_once_and_its_result_is_kept() {
    in_own_process(|| {
        let bench = Bench::new("echo out; echo err >&2; sleep 1; exit 9", |_| {});
        assert_eq!(kind(&bench.order(JobOrder::Wait)), Kind::Unknown);
        let mut detached = request("script");
        detached.extras.detach = true;
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        ours.write_all(&encode_request(&detached).unwrap()).unwrap();
        match fork().unwrap() {
            Side::Child => {
                drop(ours);
                supervise(admitted(theirs), &bench.house, None);
                leave(0)
            }
            Side::Parent(_) => drop(theirs),
        }
        let mut answer = Vec::new();
        ours.read_to_end(&mut answer).unwrap();
        let started = decode_reply(&answer).unwrap();
        assert_eq!(
            (started.exit, kind(&started)),
            (0, Kind::Running),
            "{}",
            text(&started.stderr)
        );

        let again = bench.ask(&detached);
        assert_eq!((again.exit, kind(&again)), (-1, Kind::Denied));
        std::thread::sleep(Duration::from_millis(500));
        let peeked = bench.order(JobOrder::Peek);
        assert_eq!(
            (kind(&peeked), text(&peeked.stdout)),
            (Kind::Running, "out\n".to_owned())
        );
        assert_eq!(kind(&bench.order(JobOrder::Forget)), Kind::Running);
        let result = bench.order(JobOrder::Wait);
        assert_eq!((result.exit, kind(&result)), (9, Kind::Exit));
        assert_eq!(
            (text(&result.stdout), text(&result.stderr)),
            ("out\n".to_owned(), "err\n".to_owned())
        );
        assert_eq!(bench.order(JobOrder::Forget).exit, 0);
        assert_eq!(kind(&bench.order(JobOrder::Peek)), Kind::Unknown);
    });
}

#[test]
fn a_detached_run_can_be_cancelled() {
    in_own_process(|| {
        let bench = Bench::new("exec sleep 300", |_| {});
        let mut detached = request("script");
        detached.extras.detach = true;
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        ours.write_all(&encode_request(&detached).unwrap()).unwrap();
        match fork().unwrap() {
            Side::Child => {
                drop(ours);
                supervise(admitted(theirs), &bench.house, None);
                leave(0)
            }
            Side::Parent(_) => drop(theirs),
        }
        ours.read_to_end(&mut Vec::new()).unwrap();
        assert_eq!(kind(&bench.order(JobOrder::Cancel)), Kind::Running);
        let result = bench.order(JobOrder::Wait);
        assert_eq!((result.exit, kind(&result)), (126, Kind::Cancelled));
        assert!(text(&result.stderr).ends_with("executor: cancelled\n"));
    });
}

/// Processes with this word in their command line.
fn with_word(word: &str) -> usize {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    processes
        .filter(|entry| {
            std::fs::read(entry.path().join("cmdline")).is_ok_and(|line| text(&line).contains(word))
        })
        .count()
}

#[test]
fn when_all_places_are_taken_orders_are_served_and_runs_are_not() {
    in_own_process(|| {
        let us = rustix::process::getpid();
        let mut crew = Crew::new();
        crew.joined(us, false, None);
        let mut bench = Bench::new("echo no", |_| {});
        bench.full = true;
        bench.desk = crew.desk_for_test(None);
        let refused = bench.ask(&request("script"));
        assert_eq!(refused.exit, REFUSED);
        assert_eq!(refused.extras.unwrap().kind, Kind::Denied);
        assert!(refused.stderr.starts_with(b"executor: too many runs"));
        crew.hear();
        assert_eq!((crew.runs(), crew.orders()), (1, 0));
        let told = bench.order(JobOrder::Cancel);
        assert_eq!(told.extras.unwrap().kind, Kind::Unknown);
        // It gives back the place of a run.
        crew.hear();
        assert_eq!((crew.runs(), crew.orders()), (0, 1));
    });
}

#[test]
fn a_hang_up_of_the_whole_service_ends_no_run() {
    in_own_process(|| {
        let bench = Bench::new(
            "kill -HUP $PPID; kill -INT $PPID; sleep 0.2; echo done",
            |_| {},
        );
        let reply = bench.ask(&request("script"));
        assert_eq!((reply.exit, reply.stdout.as_slice()), (0, &b"done\n"[..]));
    });
}
