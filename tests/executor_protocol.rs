//! The socket of the root executor, byte by byte, and the command line that others depend on (spec/executor.md 2, 3, 4, 19).

#![allow(clippy::unwrap_used, reason = "helpers of tests stop as tests do")]

mod common;

use std::io::Write as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use common::executor::{Ask, Executor, Told, Waiting, kind};
use common::process::{Daemon, run};
use common::{Host, PATIENCE, root_or_skip, wait_until};

const MIB: usize = 1024 * 1024;

/// An executor with a script that echoes, under the profile `default` as the tests of the original have it: empty.
fn started(house: &str) -> Executor {
    let mut executor = Executor::new("compat");
    executor.house(house).profile("default", "");
    executor.shell("hello", "default", "echo hello");
    executor.shell(
        "echo",
        "default",
        "read line; echo \"$line/$1\"; echo err >&2; exit 7",
    );
    executor.shell(
        "large",
        "default",
        "head -c 17000000 /dev/zero; echo done >&2",
    );
    executor.start();
    executor
}

/// Sends these bytes and nothing more; `None`: closed without a word.
#[track_caller]
fn raw(executor: &Executor, bytes: &[u8]) -> Option<Told> {
    let stream = UnixStream::connect(executor.socket()).unwrap();
    // What is refused by its length may be closed before all of it is written.
    let _ = (&stream).write_all(bytes);
    let _ = stream.shutdown(std::net::Shutdown::Write);
    Waiting::of(stream).answer_within(PATIENCE)
}

#[track_caller]
fn refused(told: Option<Told>, text: &str) {
    let told = told.expect("an answer");
    assert_eq!((told.exit, told.err().as_str()), (-1, text));
    assert!(told.stdout.is_empty());
}

#[test]
fn a_round_trip_and_the_socket_it_goes_through() {
    if !root_or_skip("a_round_trip_and_the_socket_it_goes_through") {
        return;
    }
    let mut executor = started("");
    let meta = std::fs::symlink_metadata(executor.socket()).unwrap();
    assert!(meta.file_type().is_socket());
    assert_eq!((meta.mode() & 0o7777, meta.uid()), (0o600, 0));
    let left: Vec<_> = std::fs::read_dir(executor.path("run"))
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .filter(|name| name != "exec.sock" && name != "jobs")
        .collect();
    assert!(left.is_empty(), "{left:?}");

    let told = executor.ask(&Ask::new("echo").stdin(b"line\n").args(&["arg"]));
    assert_eq!((told.exit, told.out().as_str()), (7, "line/arg\n"));
    assert_eq!(
        (told.err().as_str(), told.kind()),
        ("err\n", Some(kind::EXIT))
    );
    // Exactly the frame of the specification, which the original sends.
    let frame =
        b"\0\0\0\x24\0\0\0\x02r1\0\0\0\x02d1\0\0\0\x04echo\0\0\0\x03hi\n\0\0\0\x01\0\0\0\x01a";
    let told = raw(&executor, frame).unwrap().exit(7);
    assert_eq!(told.out(), "hi/a\n");

    assert_eq!(executor.stop(), 0);
    assert!(!executor.socket().exists());
}

#[test]
fn refusals_have_the_texts_of_the_original() {
    if !root_or_skip("refusals_have_the_texts_of_the_original") {
        return;
    }
    let mut executor = Executor::new("compat");
    executor.profile("default", "");
    executor.shell("hello", "default", "echo hello");
    executor.shell("lost", "nowhere", "echo hello");
    executor.entry("outside", "/bin/true");
    executor.start();
    for (script, text) in [
        ("unknown", "executor: script not permitted\n"),
        ("a name", "executor: script not permitted\n"),
        ("../hello", "executor: script not permitted\n"),
        ("outside", "executor: script not in script_dirs\n"),
        ("lost", "executor: undefined profile\n"),
    ] {
        refused(raw(&executor, &Ask::new(script).bytes()), text);
    }
    executor.run("hello").exit(0);
}

#[test]
fn what_is_no_frame_is_closed_without_a_word() {
    if !root_or_skip("what_is_no_frame_is_closed_without_a_word") {
        return;
    }
    let executor = started("request_timeout = 3");
    for silent in [
        &b""[..],
        b"\0\0\0",
        b"\0\0\0\0",
        b"\0\0\0\x64abcd",
        &17_000_000_u32.to_be_bytes(),
        &16_777_217_u32.to_be_bytes(),
        &u32::MAX.to_be_bytes(),
    ] {
        assert!(raw(&executor, silent).is_none(), "{silent:?}");
    }
    executor.run("hello").exit(0);
}

#[test]
fn what_is_a_bad_frame_is_malformed() {
    if !root_or_skip("what_is_a_bad_frame_is_malformed") {
        return;
    }
    let executor = started("");
    let malformed = |what: &str, bytes: &[u8]| {
        let told = raw(&executor, bytes).unwrap_or_else(|| panic!("{what}: no answer"));
        let seen = (told.exit, told.err());
        assert_eq!(seen, (-1, "executor: malformed request\n".into()), "{what}");
    };
    let whole = Ask::new("hello").args(&["x"]).bytes();
    let announce = |bytes: &mut Vec<u8>| {
        let total = u32::try_from(bytes.len() - 4).unwrap();
        bytes[..4].copy_from_slice(&total.to_be_bytes());
    };
    for cut in 5..whole.len() {
        let mut short = whole[..cut].to_vec();
        announce(&mut short);
        malformed("cut short", &short);
    }
    for length in [1000, 0x7fff_ffff, u32::MAX] {
        let mut long = whole.clone();
        long[4..8].copy_from_slice(&length.to_be_bytes());
        malformed("field past the end", &long);
    }
    let mut behind = whole.clone();
    behind.push(b'x');
    announce(&mut behind);
    malformed("a byte behind", &behind);
    for (what, ask) in [
        ("257 arguments", Ask::new("hello").args(&["a"; 257])),
        ("NUL in an argument", Ask::new("hello").args(&["a\0b"])),
        ("NUL in the name", Ask::new("hello\0x")),
        ("NUL in the id", Ask::new("hello").reqid("a\0")),
        ("no name", Ask::new("")),
        ("name of 129 bytes", Ask::new(&"x".repeat(129))),
        ("id of 129 bytes", Ask::new("hello").reqid(&"x".repeat(129))),
        ("job without an order", Ask::new(".job")),
        ("timeout of another size", Ask::new("hello").tag(1, b"123")),
    ] {
        malformed(what, &ask.bytes());
    }
    let mut critical = Ask::new("hello");
    critical.trailer.push((999, 1, Vec::new()));
    malformed("unknown critical tag", &critical.bytes());

    // And what looks odd but is right.
    executor.ask(&Ask::new("hello").args(&["a"; 256])).exit(0);
    executor.ask(&Ask::new("hello").reqid("")).exit(0);
    executor.ask(&Ask::new("hello").tag(999, b"x")).exit(0);
    let mut bytes = Ask::new("echo").stdin(b"l\n");
    bytes.args = vec![b"\xff\xfe".to_vec()];
    assert_eq!(executor.ask(&bytes).stdout, b"l/\xff\xfe\n");
}

#[test]
fn the_largest_frame_is_taken_and_large_output_is_cut() {
    if !root_or_skip("the_largest_frame_is_taken_and_large_output_is_cut") {
        return;
    }
    let executor = started("");
    let bare = Ask::new("hello").bytes().len() - 4;
    let most = Ask::new("hello").stdin(&vec![b'x'; 16 * MIB - bare]);
    assert_eq!(most.bytes()[..4], 16_777_216_u32.to_be_bytes());
    executor.ask(&most).exit(0);
    let told = executor.run("large").exit(0);
    let text = b"[output truncated]";
    assert!(told.stdout.len() > 16 * MIB && told.stdout.len() <= 16 * MIB + 64);
    assert!(
        told.stdout[16 * MIB..]
            .windows(text.len())
            .any(|w| w == text)
    );
    assert_eq!(told.err(), "done\n");
}

#[test]
fn senders_may_be_slow_close_their_half_or_say_too_much() {
    if !root_or_skip("senders_may_be_slow_close_their_half_or_say_too_much") {
        return;
    }
    let executor = started("");
    let frame = Ask::new("hello").bytes();
    let slow = UnixStream::connect(executor.socket()).unwrap();
    for byte in &frame {
        (&slow).write_all(std::slice::from_ref(byte)).unwrap();
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(Waiting::of(slow).answer().unwrap().exit(0).out(), "hello\n");
    assert_eq!(raw(&executor, &frame).unwrap().exit(0).out(), "hello\n");
    // One request per connection: the second is never looked at, and the answer is one.
    let two = [frame.clone(), frame].concat();
    assert_eq!(raw(&executor, &two).unwrap().exit(0).out(), "hello\n");
}

#[test]
fn a_hundred_silent_connections_keep_nobody_out() {
    if !root_or_skip("a_hundred_silent_connections_keep_nobody_out") {
        return;
    }
    let mut executor = started("max_runs = 101");
    let idle: Vec<UnixStream> = (0..100)
        .map(|_| UnixStream::connect(executor.socket()).unwrap())
        .collect();
    executor.run("hello").exit(0);
    drop(idle);
    assert_eq!(executor.stop(), 0);
}

#[test]
fn more_runs_than_allowed_are_refused_at_once() {
    if !root_or_skip("more_runs_than_allowed_are_refused_at_once") {
        return;
    }
    let executor = started("max_runs = 1");
    // The connection by which its start was noticed has the only place until it is served.
    wait_until("the place is free", PATIENCE, || {
        (executor.run("hello").exit == 0).then_some(())
    });
    executor.wait_until_idle();
    let idle = UnixStream::connect(executor.socket()).unwrap();
    wait_until("it is taken", PATIENCE, || {
        (!executor.descendants().is_empty()).then_some(())
    });
    let text = "executor: too many runs at the same time (1)\n";
    refused(raw(&executor, &Ask::new("hello").bytes()), text);
    executor.wait_for_log(&["ACTION=exec-deny", "REASON=limit"]);
    drop(idle);
    executor.wait_until_idle();
    executor.run("hello").exit(0);
}

#[test]
fn a_changed_file_counts_for_the_next_request() {
    if !root_or_skip("a_changed_file_counts_for_the_next_request") {
        return;
    }
    let executor = started("");
    executor.run("hello").exit(0);
    let (config, scripts) = ("etc/agent.conf", "etc/scripts.conf");
    let good = std::fs::read_to_string(executor.path(config)).unwrap();
    // All within a second, and without a change of the size where that is possible.
    let other = good.replace("[profile default]", "[profile defauld]");
    executor.write(config, other, 0o640);
    refused(
        raw(&executor, &Ask::new("hello").bytes()),
        "executor: undefined profile\n",
    );
    executor.write(config, &good, 0o640);
    executor.run("hello").exit(0);
    // A mistake leaves the last good state in force and is told.
    executor.write(config, "[profile\n", 0o640);
    executor.run("hello").exit(0);
    executor.wait_for_log(&["ACTION=policy-reload-failed"]);
    executor.write(config, &good, 0o640);
    let list = std::fs::read_to_string(executor.path(scripts)).unwrap();
    executor.write(scripts, list.replace("hello =", "hullo ="), 0o640);
    refused(
        raw(&executor, &Ask::new("hello").bytes()),
        "executor: script not permitted\n",
    );
    executor.run("hullo").exit(0);
}

#[test]
fn only_the_user_of_the_socket_is_served() {
    if !root_or_skip("only_the_user_of_the_socket_is_served") {
        return;
    }
    let executor = started("");
    // The mode keeps others out; without it the credentials do.
    Command::new("chmod")
        .arg("0666")
        .arg(executor.socket())
        .status()
        .unwrap();
    let ask = format!(
        "import os,socket,sys\nos.setgid(65534); os.setuid(65534)\ns=socket.socket(socket.AF_UNIX)\n\
         s.connect({:?})\nsys.stdout.write(repr(s.recv(9)))",
        executor.text("run/exec.sock")
    );
    let told = run(Command::new("/usr/bin/python3").args(["-c", &ask])).ok();
    assert_eq!(told.out(), "b''");
    executor.wait_for_log(&["ACTION=peer-reject", "PEER_UID=65534", "REASON=uid"]);
    executor.run("hello").exit(0);
}

#[test]
fn nothing_but_a_socket_is_replaced() {
    if !root_or_skip("nothing_but_a_socket_is_replaced") {
        return;
    }
    let mut executor = Executor::new("compat");
    executor.profile("default", "");
    executor.shell("hello", "default", "echo hello");
    let precious = executor.write("run/exec.sock", "precious", 0o600);
    executor.start_and_end().expect_code(1).err_has("exec.sock");
    assert_eq!(std::fs::read_to_string(&precious).unwrap(), "precious");
    std::fs::remove_file(&precious).unwrap();
    // What a crash leaves is replaced.
    drop(std::os::unix::net::UnixListener::bind(&precious).unwrap());
    executor.start();
    executor.run("hello").exit(0);
}

#[test]
fn a_start_that_cannot_be_leaves_no_socket() {
    if !root_or_skip("a_start_that_cannot_be_leaves_no_socket") {
        return;
    }
    let mut executor = Executor::new("compat");
    executor.top("max_children = many").profile("default", "");
    executor.shell("hello", "default", "echo hello");
    executor
        .start_and_end()
        .expect_code(78)
        .err_has("max_children");
    assert!(!executor.socket().exists());
}

const HEAD: &str = "port = 7443\ncert = /c\nkey = /k\nca = /a\n";

fn executor_words(host: &Host, words: &[&str]) -> common::Run {
    host.run("ctrl-exec-exec", words)
}

#[test]
fn the_command_line_is_that_of_the_original() {
    let host = Host::new("h.test");
    for words in [
        &[][..],
        &["nonsense"],
        &["serve"],
        &["serve", "a", "b", "c"],
        &["serve", "a", "b", "c", "d", "e"],
        &["resolve", "a", "b"],
        &["resolve", "a", "b", "c", "d"],
    ] {
        executor_words(&host, words)
            .expect_code(1)
            .err_has("Usage:");
    }
    executor_words(&host, &["--help"]).ok().out_has("resolve");
    executor_words(&host, &["--version"])
        .ok()
        .out_has("ctrl-exec-exec ");
    let missing = host.path("nowhere.conf").display().to_string();
    executor_words(&host, &["resolve", &missing, &missing, "a"])
        .expect_code(2)
        .err_has("Cannot open config");
}

/// The fixtures of the original's conformance test: configuration, allowlist, script, answer.
#[test]
fn resolve_answers_in_the_words_of_the_original() {
    let host = Host::new("h.test");
    let dir = host.path("opt/scripts");
    let script = host.script("s", "exit 0").display().to_string();
    let dirs = format!("script_dirs = {}\n", dir.display());
    let plain = "[profile default]\nrun_as = nobody\n";
    let web = "[profile web]\nrun_as = 1000\ncaps = CAP_CHOWN, CAP_KILL CAP_NET_BIND_SERVICE\n# a line\nwritable = /srv:/data\nno_new_privileges = off\n";
    let all = format!("{dirs}{plain}{web}");
    let ok = |profile: &str, rest: &str| format!("OK path={script}|profile={profile}|{rest}\n");
    let default = ok("default", "run_as=nobody|nnp=1|caps=|writable=");
    let full = ok(
        "web",
        "run_as=1000|nnp=0|caps=CAP_CHOWN,CAP_KILL,CAP_NET_BIND_SERVICE|writable=/srv:/data",
    );
    let deny = |word: &str| format!("DENY {word}\n");
    let cases: Vec<(&str, String, String, String)> = vec![
        (
            "unannotated",
            all.clone(),
            format!("s = {script}\n"),
            default.clone(),
        ),
        (
            "no default",
            format!("{dirs}{web}"),
            format!("s = {script}\n"),
            deny("undefined-profile"),
        ),
        (
            "profile behind",
            all.clone(),
            format!("s = {script} profile=web\n"),
            full.clone(),
        ),
        (
            "profile before",
            all.clone(),
            format!("s = profile=web {script}\n"),
            full,
        ),
        (
            "outside",
            all.clone(),
            "s = /bin/true\n".into(),
            deny("not-in-script-dirs"),
        ),
        (
            "undefined",
            all.clone(),
            format!("s = {script} profile=x\n"),
            deny("undefined-profile"),
        ),
        (
            "relative",
            all.clone(),
            "s = bin/true\n".into(),
            deny("not-allowlisted"),
        ),
        (
            "missing",
            all.clone(),
            format!("t = {script}\n"),
            deny("not-allowlisted"),
        ),
        (
            "two paths",
            all.clone(),
            format!("s = {script} {script}\n"),
            deny("not-allowlisted"),
        ),
        ("no dirs", plain.into(), format!("s = {script}\n"), default),
        (
            "nnp off",
            "[profile default]\nno_new_privileges = no\n".into(),
            format!("s = {script}\n"),
            ok("default", "run_as=|nnp=0|caps=|writable="),
        ),
    ];
    for (what, config, list, answer) in cases {
        let config = host.write("etc/a.conf", format!("{HEAD}{config}"), 0o644);
        let list = host.write("etc/s.conf", list, 0o644);
        let words = [
            "resolve",
            config.to_str().unwrap(),
            list.to_str().unwrap(),
            "s",
        ];
        let out = executor_words(&host, &words).ok().out();
        assert_eq!(out, answer, "{what}");
    }
    for (bad, text) in [
        ("[profile default]\ncaps = NET_RAW\n", "invalid capability"),
        (
            "[profile default]\nrun_as = 99999999999999999999\n",
            "run_as",
        ),
    ] {
        let config = host.write("etc/a.conf", format!("{HEAD}{bad}"), 0o644);
        let words = ["resolve", config.to_str().unwrap(), "/nonexistent", "s"];
        executor_words(&host, &words).expect_code(2).err_has(text);
    }
    let config = host.write("etc/a.conf", format!("{HEAD}{plain}"), 0o644);
    let words = ["resolve", config.to_str().unwrap(), "/nonexistent", "s"];
    assert_eq!(
        executor_words(&host, &words).ok().out(),
        deny("not-allowlisted")
    );
}

/// The mode in which the tests of the original run: no root, one user, an empty profile.
#[test]
fn without_root_it_serves_tests_and_refuses_what_needs_rights() {
    if !root_or_skip("without_root_it_serves_tests_and_refuses_what_needs_rights") {
        return;
    }
    let dir = tempfile::Builder::new().prefix("ce-").tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let write = |name: &str, text: &str, mode: u32| {
        std::fs::write(at(name), text).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(mode);
        std::fs::set_permissions(at(name), mode).unwrap();
    };
    write("hello", "#!/bin/sh\necho hello\n", 0o755);
    write(
        "agent.conf",
        &format!("{HEAD}[profile default]\n[profile caps]\ncaps = CAP_KILL\n"),
        0o644,
    );
    let script = at("hello");
    let script = script.display();
    let list = format!("a = {script}\nb = {script} profile=caps\n");
    write("scripts.conf", &list, 0o644);
    std::fs::copy(common::binary(), at("ctrl-exec-exec")).unwrap();
    for name in ["", "run"] {
        let _ = std::fs::create_dir(at(name));
        std::os::unix::fs::chown(at(name), Some(65_534), Some(65_534)).unwrap();
    }
    let socket = at("run/exec.sock");
    let serve = |allow: bool| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]);
        command.arg(at("ctrl-exec-exec")).arg("serve");
        command.args([&socket, &at("agent.conf"), &at("scripts.conf")]);
        command.args(["nobody", "--allow-root-peer"]);
        command.env("CTRL_EXEC_LOG", "stderr");
        if allow {
            command.env("CTRL_EXEC_EXEC_ALLOW_UNPRIV", "");
        }
        command
    };
    run(&mut serve(false))
        .expect_code(1)
        .err_has("ctrl-exec-exec: serve must run as root");
    let mut daemon = Daemon::start(&mut serve(true));
    daemon.wait_for_text("ACTION=exec-start");
    let ask = |script: &str| ask_at(&socket, script);
    assert_eq!(ask("a").exit(0).out(), "hello\n");
    ask("b").exit(126);
    ask("c").exit(-1).err_has("script not permitted");
}

fn ask_at(socket: &Path, script: &str) -> Told {
    let stream = UnixStream::connect(socket).unwrap();
    (&stream).write_all(&Ask::new(script).bytes()).unwrap();
    Waiting::of(stream).answer_within(PATIENCE).unwrap()
}
