//! What goes on behind the caller's back: `request-pairing --background` and `pairing-mode start` and `stop`.

use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::Signal;

use crate::common::fleet::{self, new_agent, new_dispatcher};
use crate::common::{Daemon, Host, PATIENCE, free_port, process, syslog, wait_until};
use crate::kit::{
    CERT, Hall, PID_FILE, Started, ask, assert_unpaired, configure, lives, processes, succeeds,
};

/// `x=$(cea request-pairing --background ...)` in a shell that is killed after five seconds.
#[track_caller]
fn substitute(agent: &Host, port: u16, options: &str) -> process::Run {
    let real = agent.command("cea");
    let mut command = Command::new("timeout");
    command.args(["5", "sh", "-c"]).arg(format!(
        r#"x=$("$0" request-pairing --background --dispatcher 127.0.0.1 --port {port} {options}); s=$?; printf '<%s>%s\n' "$x" "$s""#
    ));
    command
        .arg(real.get_program())
        .env_clear()
        .stdin(Stdio::null());
    for (key, value) in real.get_envs() {
        command.env(key, value.unwrap_or_default());
    }
    process::run(&mut command).ok()
}

/// The id out of what [`substitute`] printed.
#[track_caller]
fn reqid(run: &process::Run) -> String {
    let out = run.out();
    let id = out
        .strip_prefix('<')
        .and_then(|o| o.strip_suffix(">0\n"))
        .unwrap_or_else(|| panic!("{out:?}\n{}", run.err()));
    assert!(
        id.len() == 16 && id.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')),
        "{id:?}"
    );
    id.to_owned()
}

#[test]
fn command_substitution_returns_at_once_and_pairs_later() {
    let hall = Hall::open();
    let agent = new_agent("web01.test", free_port());
    let run = substitute(&agent, hall.port, "--timeout 50 --lookup-by ip");
    let id = reqid(&run);
    assert!(run.took < Duration::from_secs(5), "{:?}", run.took);
    // What is left behind holds none of our streams: the harness has seen the end of both.
    let child = left_behind(&agent);
    assert_eq!(child.len(), 1);
    let pid = child[0];
    for stream in 0..3 {
        let target = std::fs::read_link(format!("/proc/{pid}/fd/{stream}")).expect("open");
        assert_eq!(target.to_str(), Some("/dev/null"));
    }
    assert_eq!(hall.id_of("web01.test"), id);
    // The code is on stderr, where no substitution looks.
    let code = fleet::requests(&hall.host).remove(0)["code"]
        .as_str()
        .expect("a code")
        .to_owned();
    assert!(
        run.err().contains(&format!("Pairing code: {code} (bound)")),
        "{}",
        run.err()
    );

    assert_unpaired(&agent);
    hall.host.ced(&["approve", &id]).ok();
    agent.wait_for_log(&["ACTION=pair-complete", "STATUS=approved"]);
    wait_until("the process in the background ends", PATIENCE, || {
        (!lives(pid)).then_some(())
    });
    agent.cea(&["pairing-status"]).ok();
}

#[test]
fn nobody_decides_and_somebody_denies() {
    let hall = Hall::open();
    let late = new_agent("late.test", free_port());
    let id = reqid(&substitute(&late, hall.port, "--timeout 1"));
    let line = late.wait_for_log(&["ACTION=pair-timeout", &id]);
    assert_eq!(line.priority, syslog::WARNING);
    assert_unpaired(&late);
    // The dispatcher's side notices.
    hall.host
        .wait_for_log(&["ACTION=pair-withdrawn", &id, "REASON=abandoned"]);
    hall.host.ced(&["approve", &id]).expect_code(1);

    let refused = new_agent("refused.test", free_port());
    let id = reqid(&substitute(&refused, hall.port, "--timeout 50"));
    assert_eq!(hall.id_of("refused.test"), id);
    hall.host.ced(&["deny", &id]).ok();
    let line = refused.wait_for_log(&["ACTION=pair-denied", &id]);
    assert_eq!(
        (line.priority, line.field("REASON").as_deref()),
        (syslog::WARNING, Some("rejected by operator"))
    );
    assert_unpaired(&refused);
}

/// Processes of a host that still ask.
fn left_behind(agent: &Host) -> Vec<i32> {
    let root = agent.path("").display().to_string();
    processes(&[root.trim_end_matches('/'), "request-pairing"])
}

/// The process in the background by itself, for its exit code.
#[track_caller]
fn child(agent: &Host, port: u16, timeout: &str) -> Daemon {
    let mut command = agent.command("cea");
    command.env("CTRL_EXEC_DETACHED", "1");
    command.args([
        "request-pairing",
        "--background",
        "--dispatcher",
        "127.0.0.1",
        "--timeout",
        timeout,
        "--port",
    ]);
    command.arg(port.to_string());
    Daemon::start(&mut command)
}

#[test]
fn the_process_in_the_background_ends_with_the_codes_of_the_original() {
    let hall = Hall::open();
    let agents =
        ["paired.test", "late.test", "denied.test", "lost.test"].map(|n| new_agent(n, free_port()));
    let mut children: Vec<Daemon> = agents
        .iter()
        .zip(["50", "1", "50", "0"])
        .map(|(a, t)| child(a, hall.port, t))
        .collect();
    assert_eq!(children[1].wait(PATIENCE).code(), Some(2), "time over");
    hall.host.ced(&["approve", &hall.id_of("paired.test")]).ok();
    assert_eq!(children[0].wait(PATIENCE).code(), Some(0), "paired");
    hall.host.ced(&["deny", &hall.id_of("denied.test")]).ok();
    assert_eq!(children[2].wait(PATIENCE).code(), Some(3), "denied");
    hall.id_of("lost.test");
    hall.mode.signal(Signal::KILL);
    assert_eq!(
        children[3].wait(PATIENCE).code(),
        Some(3),
        "connection lost"
    );
    agents[3].wait_for_log(&["ACTION=pair-denied"]);
    for agent in &agents[1..] {
        assert_unpaired(agent);
    }
    assert!(agents[0].exists(CERT));
}

#[test]
fn what_fails_before_there_is_an_id_fails_in_the_foreground() {
    let agent = new_agent("web01.test", free_port());
    let run = substitute(&agent, free_port(), "");
    assert_eq!(run.out(), "<>1\n");
    assert!(
        run.err().contains("is pairing mode running"),
        "{}",
        run.err()
    );
    let run = substitute(&agent, free_port(), "--timeout 601");
    assert_eq!(run.out(), "<>64\n", "{}", run.err());
    assert_unpaired(&agent);
    assert!(left_behind(&agent).is_empty());
}

#[test]
fn start_serves_and_stop_ends_it() {
    let host = new_dispatcher("ctl.test");
    configure(&host, "pairing_rate_limit_disable = true\n");
    let port = free_port();
    let run = host
        .ced(&[
            "pairing-mode",
            "start",
            "--timeout",
            "60",
            "--port",
            &port.to_string(),
        ])
        .ok();
    let started = Started(&host);
    let pid = started.pid();
    assert!(run.took < Duration::from_secs(10), "{:?}", run.took);
    for text in [
        format!("port {port}"),
        format!("PID {pid}"),
        "60 seconds".to_owned(),
        "ced pairing-mode stop".to_owned(),
    ] {
        assert!(run.out().contains(&text), "{text}: {}", run.out());
    }
    assert!(lives(pid));
    assert_eq!(host.read(PID_FILE), format!("{pid}\n"));
    let line = host.wait_for_log(&["ACTION=pairing-mode-start", &format!("PID={pid}")]);
    assert_eq!(
        (line.field("PORT"), line.field("TIMEOUT").as_deref()),
        (Some(port.to_string()), Some("60"))
    );

    // A second one is refused, whatever its port, and does not disturb the first.
    host.ced(&["pairing-mode", "start", "--port", &free_port().to_string()])
        .expect_code(1)
        .err_has(&format!("already running in the background (PID {pid})"));
    let agent = new_agent("web01.test", free_port());
    let mut request = ask(&agent, port, &[]);
    let waiting = fleet::wait_for_request(&host, "web01.test");
    host.ced(&["approve", waiting["id"].as_str().expect("an id")])
        .ok();
    succeeds(&mut request);

    // One that waits is told when it stops.
    let other = new_agent("web02.test", free_port());
    let mut request = ask(&other, port, &[]);
    fleet::wait_for_request(&host, "web02.test");
    let run = host.ced(&["pairing-mode", "stop"]).ok();
    assert_eq!(run.out(), format!("Pairing mode stopped (PID {pid}).\n"));
    assert!(!lives(pid) && !host.exists(PID_FILE));
    host.wait_for_log(&["ACTION=pairing-mode-stop", &format!("PID={pid}")]);
    assert!(crate::kit::fails(&mut request).contains("Pairing failed: pairing session ended"));
    assert!(
        TcpListener::bind(("127.0.0.1", port)).is_ok(),
        "the port is free again"
    );
    assert!(fleet::requests(&host).is_empty());
}

#[test]
fn start_fails_visibly() {
    let host = new_dispatcher("ctl.test");
    let port = free_port();
    let taken = TcpListener::bind(("0.0.0.0", port)).expect("a free port");
    host.ced(&["pairing-mode", "start", "--port", &port.to_string()])
        .expect_code(1)
        .err_has(&format!("cannot listen on port {port}"));
    host.ced(&["pairing-mode", "--port", &port.to_string()])
        .expect_code(1)
        .err_has(&format!("cannot listen on port {port}"));
    drop(taken);
    for file in ["dispatcher.key", "dispatcher.crt"] {
        let path = format!("etc/ctrl-exec/{file}");
        let content = host.read(&path);
        std::fs::remove_file(host.path(&path)).expect("it is there");
        let run = host
            .ced(&["pairing-mode", "start", "--port", &port.to_string()])
            .expect_code(1);
        assert!(
            run.err().contains(file) && run.err().contains("setup-ctrl-exec"),
            "{}",
            run.err()
        );
        host.write(&path, content, 0o600);
    }
    assert!(!host.exists(PID_FILE));
    assert!(host.log_of("pairing-mode-start").is_empty());
    host.ced(&["pairing-mode", "begin"])
        .expect_code(64)
        .err_has("pairing-mode start");
}

#[test]
fn stop_touches_nobody_else() {
    let host = new_dispatcher("ctl.test");
    let nobody = "Pairing mode is not running in the background";
    host.ced(&["pairing-mode", "stop"]).ok().out_has(nobody);
    // A process of somebody else has the number.
    let mut bystander = Daemon::start(Command::new("sleep").arg("50"));
    host.write(PID_FILE, format!("{}\n", bystander.pid()), 0o600);
    host.ced(&["pairing-mode", "stop"]).ok().out_has(nobody);
    assert!(bystander.is_running() && !host.exists(PID_FILE));
    // A number that nobody has, and texts that are none.
    for text in ["4194303\n", "", "1\n", "-1\n", "nonsense\n"] {
        host.write(PID_FILE, text, 0o600);
        host.ced(&["pairing-mode", "stop"]).ok().out_has(nobody);
        assert!(!host.exists(PID_FILE), "{text:?}");
    }
    // What was left behind does not keep a new session from starting.
    host.write(PID_FILE, format!("{}\n", bystander.pid()), 0o600);
    host.ced(&[
        "pairing-mode",
        "start",
        "--timeout",
        "60",
        "--port",
        &free_port().to_string(),
    ])
    .ok();
    let started = Started(&host);
    assert!(lives(started.pid()) && i64::from(started.pid()) != i64::from(bystander.pid()));
    // Killed, it leaves a file behind that fools nobody.
    let pid = rustix::process::Pid::from_raw(started.pid()).expect("a pid");
    rustix::process::kill_process(pid, Signal::KILL).expect("ours");
    wait_until("it is gone", PATIENCE, || {
        (!lives(pid.as_raw_nonzero().get())).then_some(())
    });
    host.ced(&["pairing-mode", "stop"]).ok().out_has("stale");
    assert!(!host.exists(PID_FILE));
}

#[test]
fn a_session_in_the_background_ends_by_itself() {
    let host = new_dispatcher("ctl.test");
    let port = free_port();
    host.ced(&[
        "pairing-mode",
        "start",
        "--timeout",
        "1",
        "--port",
        &port.to_string(),
    ])
    .ok();
    let _started = Started(&host);
    host.wait_for_log(&["ACTION=pairing-mode-timeout", &format!("PORT={port}")]);
    wait_until("the pid file goes", PATIENCE, || {
        (!host.exists(PID_FILE)).then_some(())
    });
    assert!(TcpListener::bind(("127.0.0.1", port)).is_ok());
}
