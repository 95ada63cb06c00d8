//! Real runs. The test process has many threads: that is safe because the child issues system calls only.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::time::{Duration, Instant};

use caps::Capability;
use proptest::prelude::*;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Signal, WaitOptions, kill_process, waitpid};

use super::*;
use crate::core::config::{Baseline, LimitKind, Network, ProfileConfig, Protected, Scope};
use crate::core::profile::Resolved;
use crate::core::sandbox::features::Features;
use crate::core::sandbox::identity::Identity;
use crate::core::sandbox::prepare::tests::{assembled, features, root};
use crate::core::sandbox::prepare::{RunOrder, prepare};
use crate::core::sandbox::script::Checked;
use crate::core::sandbox::view::Mounts;
use crate::core::sandbox::{Level, ProtectedPaths, Protection, Protections};
use crate::core::types::{AbsolutePath, ProfileName, ScriptName};

const PATIENCE: Duration = Duration::from_secs(20);

/// As in the suites: in CI nothing may be left out.
fn root_or_skip(test: &str) -> bool {
    if rustix::process::geteuid().is_root() {
        return true;
    }
    assert!(
        std::env::var_os("CI").is_none_or(|value| value.is_empty()),
        "{test} needs root, and in CI no test may be left out"
    );
    false
}

/// A run in flight. Dropped, it is killed.
struct Live {
    started: Started,
    prepared: Prepared,
    stdout: File,
    stderr: File,
    status: File,
    reaped: bool,
}

#[derive(Debug)]
struct Ended {
    /// As `wait` reports it for the process that was started.
    code: Option<i32>,
    signal: Option<i32>,
    stdout: String,
    stderr: String,
    news: Vec<News>,
}

fn begin(prepared: Prepared) -> Live {
    let pipe = || pipe_with(PipeFlags::CLOEXEC).unwrap();
    let (stdin, input) = pipe();
    let ((stdout, out), (stderr, err), (status, told)) = (pipe(), pipe(), pipe());
    File::from(input).write_all(b"the context").unwrap();
    let started = prepared
        .start(ChildIo {
            stdin,
            stdout: out,
            stderr: err,
            status: told,
        })
        .unwrap();
    Live {
        started,
        prepared,
        stdout: stdout.into(),
        stderr: stderr.into(),
        status: status.into(),
        reaped: false,
    }
}

fn readable(file: &File) {
    let deadline = Timespec {
        tv_sec: 20,
        tv_nsec: 0,
    };
    let mut asked = [PollFd::new(file, PollFlags::IN)];
    // Children of other tests end while we wait.
    let came = loop {
        match poll(&mut asked, Some(&deadline)) {
            Err(Errno::INTR) => {}
            other => break other,
        }
    };
    assert_eq!(came, Ok(1), "nothing came");
}

fn to_end(file: &mut File) -> Vec<u8> {
    let mut all = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        readable(file);
        match file.read(&mut chunk).unwrap() {
            0 => return all,
            n => all.extend_from_slice(&chunk[..n]),
        }
    }
}

impl Live {
    fn next_news(&mut self) -> News {
        readable(&self.status);
        let mut bytes = [0; News::SIZE];
        self.status.read_exact(&mut bytes).unwrap();
        News::decode(bytes).unwrap()
    }

    fn line(&mut self) -> String {
        let mut line = Vec::new();
        let mut byte = [0];
        while line.last() != Some(&b'\n') {
            readable(&self.stdout);
            assert_eq!(self.stdout.read(&mut byte).unwrap(), 1, "no line");
            line.push(byte[0]);
        }
        String::from_utf8(line).unwrap().trim().to_owned()
    }

    /// Everything to its end.
    fn end(mut self) -> Ended {
        let stdout = String::from_utf8(to_end(&mut self.stdout)).unwrap();
        let stderr = String::from_utf8(to_end(&mut self.stderr)).unwrap();
        let news = to_end(&mut self.status)
            .chunks(News::SIZE)
            .map(|bytes| News::decode(bytes.try_into().unwrap()).unwrap())
            .collect();
        let status = self.wait();
        Ended {
            code: status.exit_status(),
            signal: status.terminating_signal(),
            stdout,
            stderr,
            news,
        }
    }

    fn wait(&mut self) -> rustix::process::WaitStatus {
        let begun = Instant::now();
        loop {
            if let Some((_, status)) = waitpid(Some(self.started.pid), WaitOptions::NOHANG).unwrap()
            {
                self.reaped = true;
                return status;
            }
            assert!(begun.elapsed() < PATIENCE, "does not end");
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        if !self.reaped {
            let _ = kill_process(self.started.pid, Signal::KILL);
            let _ = waitpid(Some(self.started.pid), WaitOptions::empty());
        }
    }
}

fn prepared(profile: &ProfileConfig, who: Identity, features: &Features, text: &str) -> Prepared {
    assembled("/bin/sh", &["-c", text], profile, who, features)
        .0
        .unwrap()
}

fn sh(profile: &ProfileConfig, who: Identity, text: &str) -> Ended {
    begin(prepared(profile, who, &features(true), text)).end()
}

fn compat() -> ProfileConfig {
    ProfileConfig::new(Baseline::Compat)
}

fn own_namespace() -> ProfileConfig {
    ProfileConfig {
        processes: Protected::required(Scope::Private),
        ..compat()
    }
}

fn nobody() -> Identity {
    Identity {
        uid: 65_534,
        gid: 65_533,
        groups: vec![65_533, 4_242],
        name: Some("nobody".to_owned()),
        home: "/".to_owned(),
    }
}

/// The value of a field of `/proc/self/status`.
fn field<'a>(status: &'a str, name: &str) -> &'a str {
    status
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        .unwrap_or_else(|| panic!("no {name} in {status}"))
        .trim()
}

const SETS: [&str; 5] = ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"];

fn sets(status: &str) -> [u64; 5] {
    SETS.map(|set| u64::from_str_radix(field(status, set), 16).unwrap())
}

const STATUS: &str = "while read -r line; do echo \"$line\"; done < /proc/self/status";

#[test]
fn a_user_has_exactly_what_is_granted() {
    if !root_or_skip("a_user_has_exactly_what_is_granted") {
        return;
    }
    for private in [false, true] {
        let mut profile = if private { own_namespace() } else { compat() };
        let ended = sh(&profile, nobody(), STATUS);
        assert_eq!(sets(&ended.stdout), [0; 5], "{ended:?}");
        assert_eq!(field(&ended.stdout, "NoNewPrivs"), "1");
        assert_eq!(field(&ended.stdout, "Uid"), "65534\t65534\t65534\t65534");
        assert_eq!(field(&ended.stdout, "Gid"), "65533\t65533\t65533\t65533");
        assert_eq!(field(&ended.stdout, "Groups"), "4242 65533");

        profile.caps = vec![Capability::CAP_NET_BIND_SERVICE];
        profile.no_new_privileges = false;
        let ended = sh(&profile, nobody(), STATUS);
        assert_eq!(sets(&ended.stdout), [0x400; 5], "{ended:?}");
        assert_eq!(field(&ended.stdout, "NoNewPrivs"), "0");
    }
}

#[test]
fn root_is_bounded_and_can_lose_its_meaning() {
    if !root_or_skip("root_is_bounded_and_can_lose_its_meaning") {
        return;
    }
    let mut profile = compat();
    let ended = sh(&profile, root(), STATUS);
    assert_eq!(sets(&ended.stdout), [0; 5], "{ended:?}");
    assert_eq!(field(&ended.stdout, "Uid"), "0\t0\t0\t0");
    assert_eq!(field(&ended.stdout, "Groups"), "");
    for semantics in [true, false] {
        profile.root_semantics = semantics;
        profile.caps = vec![Capability::CAP_CHOWN, Capability::CAP_SETPCAP];
        let ended = sh(&profile, root(), STATUS);
        assert_eq!(sets(&ended.stdout), [0x101; 5], "{ended:?}");
        profile.caps.clear();
        for who in [root(), nobody()] {
            let ended = sh(&profile, who, STATUS);
            assert_eq!(sets(&ended.stdout), [0; 5], "{ended:?}");
        }
    }
}

#[test]
fn nothing_is_inherited_but_the_three_streams() {
    if !root_or_skip("nothing_is_inherited_but_the_three_streams") {
        return;
    }
    // One that nobody marked.
    let leaked = File::open("/dev/null").unwrap();
    rustix::io::fcntl_setfd(&leaked, rustix::io::FdFlags::empty()).unwrap();
    let mut old = features(true);
    (old.close_range, old.clone3, old.pidfd) = (false, false, false);
    for features in [features(true), old] {
        for profile in [compat(), own_namespace()] {
            let text = "read -r pid rest < /proc/self/stat; ls /proc/$pid/fd; cat; while read -r l; do echo \"$l\"; done < /proc/self/status";
            let run = begin(prepared(&profile, nobody(), &features, text)).end();
            assert!(run.stdout.starts_with("0\n1\n2\nthe context"), "{run:?}");
            for mask in ["SigBlk", "SigIgn"] {
                assert_eq!(field(&run.stdout, mask), "0000000000000000", "{mask}");
            }
            assert_eq!(run.stderr, "");
        }
    }
}

#[test]
fn the_rest_of_the_profile_is_applied() {
    if !root_or_skip("the_rest_of_the_profile_is_applied") {
        return;
    }
    let mut profile = compat();
    profile.umask = 0o027;
    profile.cwd = AbsolutePath::new("/usr").unwrap();
    profile.limits.insert(LimitKind::Nofile, Some(77));
    profile.limits.insert(LimitKind::Fsize, Some(512 * 1024));
    profile.nice = 3;
    profile.oom_score_adj = 700;
    for processes in [Scope::Host, Scope::Private] {
        profile.processes = Protected::required(processes);
        let text = "umask; pwd; ulimit -n; ulimit -Hn; ulimit -c; ulimit -f; read -r a < /proc/self/oom_score_adj; echo $a; nice; \
                    read -r pid comm state ppid group session rest < /proc/self/stat; echo $((pid - session)) $((pid - group))";
        let ended = sh(&profile, nobody(), text);
        let lines: Vec<&str> = ended.stdout.lines().collect();
        assert_eq!(
            lines,
            ["0027", "/usr", "77", "77", "0", "1024", "700", "3", "0 0"],
            "{ended:?}"
        );
    }
}

#[test]
fn the_environment_is_exact() {
    if !root_or_skip("the_environment_is_exact") {
        return;
    }
    let (prepared, _) = assembled("/usr/bin/env", &[], &compat(), nobody(), &features(true));
    let ended = begin(prepared.unwrap()).end();
    assert_eq!(
        ended.stdout,
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n"
    );
    assert_eq!((ended.code, ended.news), (Some(0), vec![]));
}

fn failure(path: &str, profile: &ProfileConfig) -> (Option<i32>, StepFailed, String) {
    let (prepared, _) = assembled(path, &[], profile, nobody(), &features(true));
    let mut run = begin(prepared.unwrap());
    let News::Failed(failed) = run.next_news() else {
        panic!("no failure");
    };
    let text = failed.text(&run.prepared);
    let ended = run.end();
    assert_eq!(ended.stdout + &ended.stderr, "");
    (ended.code, failed, text)
}

#[test]
fn a_script_that_cannot_start_says_why() {
    if !root_or_skip("a_script_that_cannot_start_says_why") {
        return;
    }
    let (code, failed, text) = failure("/etc/passwd", &compat());
    assert_eq!((code, failed.step), (Some(126), Step::Executable));
    assert!(
        text.starts_with(
            "executor: '/etc/passwd' is not executable by the profile's run_as user (Permission denied)"
        ),
        "{text}"
    );
    let (code, failed, text) = failure("/", &compat());
    assert_eq!((code, failed.step), (Some(127), Step::Exec));
    assert_eq!(text, "executor: exec '/' failed: Permission denied");

    let mut profile = compat();
    profile.cwd = AbsolutePath::new("/nonexistent").unwrap();
    let (code, failed, text) = failure("/bin/true", &profile);
    assert_eq!((code, failed.step), (Some(126), Step::Directory));
    assert_eq!(
        text,
        "executor: working directory '/nonexistent': No such file or directory"
    );
    // The init itself ends well; what the script could not do was reported before.
    profile.processes = Protected::required(Scope::Private);
    let (prepared, _) = assembled("/bin/true", &[], &profile, nobody(), &features(true));
    let ended = begin(prepared.unwrap()).end();
    let [News::Failed(failed), News::Ended(status)] = ended.news[..] else {
        panic!("{ended:?}");
    };
    assert_eq!((failed.step, status), (Step::Directory, 126 << 8));
    assert_eq!(ended.code, Some(0));
}

#[test]
fn a_child_that_was_not_placed_joins_its_group_itself() {
    if !root_or_skip("a_child_that_was_not_placed_joins_its_group_itself") {
        return;
    }
    // No cgroup, so that the kernel refuses to place anything there; what is written to it can be read.
    let group = tempfile::tempdir().unwrap();
    let procs = group.path().join("cgroup.procs");
    for profile in [compat(), own_namespace()] {
        let leaf = || Some(OwnedFd::from(File::open(group.path()).unwrap()));
        let mut run = prepared(&profile, nobody(), &features(true), "exit 4");
        run.leaf = leaf();
        let [News::Failed(failed)] = begin(run).end().news[..] else {
            panic!("it has joined what is not there");
        };
        assert_eq!((failed.step, failed.errno), (Step::Cgroup, libc::ENOENT));

        std::fs::write(&procs, "").unwrap();
        let mut run = prepared(&profile, nobody(), &features(true), "exit 4");
        run.leaf = leaf();
        assert!(matches!(
            begin(run).end().news[..],
            [] | [News::Ended(1024)]
        ));
        assert_eq!(std::fs::read_to_string(&procs).unwrap(), "0");
        std::fs::remove_file(&procs).unwrap();
    }
}

#[test]
fn a_label_that_cannot_be_set_is_fatal() {
    if !root_or_skip("a_label_that_cannot_be_set_is_fatal") {
        return;
    }
    let mut run = prepared(&compat(), nobody(), &features(true), "exit 4");
    run.labels = vec![(c"/proc/self/attr/nosuch".to_owned(), b"exec x".to_vec())];
    let ended = begin(run).end();
    assert_eq!(ended.code, Some(126));
    assert!(
        matches!(ended.news[..], [News::Failed(failed)] if failed.step == Step::Lsm),
        "{ended:?}"
    );
}

/// Everything that every module contributes, on this kernel.
fn whole(profile: &ProfileConfig, who: Identity, text: &str) -> (Ended, Protections) {
    let script = Resolved {
        name: ScriptName::new("check").unwrap(),
        path: AbsolutePath::new("/bin/sh").unwrap(),
        profile: ProfileName::new("web").unwrap(),
    };
    let mut report = Protections::default();
    let features = Features::probe();
    let prepared = prepare(
        RunOrder {
            script: &script,
            profile,
            args: &[b"-c".to_vec(), text.as_bytes().to_vec()],
            reqid: "",
            identity: who,
            checked: Checked::default(),
            protected: &ProtectedPaths {
                hide: vec!["/var/tmp".into()],
                read_only: vec!["/etc".into()],
            },
            features: &features,
            bounding: features.bounding,
            mounts: &Mounts::read(),
            leaf: None,
        },
        &mut report,
    )
    .unwrap();
    (begin(prepared).end(), report)
}

#[test]
fn a_whole_strict_profile_holds_with_and_without_no_new_privileges() {
    if !root_or_skip("a_whole_strict_profile_holds_with_and_without_no_new_privileges") {
        return;
    }
    let mut profile = ProfileConfig::new(Baseline::Strict);
    profile.writable = vec![AbsolutePath::new("/usr/local").unwrap()];
    profile.network = Protected::required(Network::Loopback);
    for (nnp, processes) in [
        (true, Scope::Private),
        (false, Scope::Private),
        (true, Scope::Host),
        (false, Scope::Host),
    ] {
        profile.no_new_privileges = nnp;
        profile.processes = Protected::required(processes);
        for who in [root(), nobody()] {
            let (ended, report) = whole(&profile, who, STATUS);
            assert_eq!(ended.stderr, "", "{ended:?}");
            assert_eq!(sets(&ended.stdout), [0; 5], "{ended:?}");
            assert_eq!(field(&ended.stdout, "Seccomp"), "2");
            assert_eq!(
                field(&ended.stdout, "NoNewPrivs"),
                if nnp { "1" } else { "0" }
            );
            assert_eq!(report.0[&Protection::Seccomp], Level::Enforced);
            assert_eq!(report.0[&Protection::NoUserNamespaces], Level::Enforced);
            if processes == Scope::Private {
                assert_eq!(field(&ended.stdout, "Pid"), "2");
                assert_eq!(ended.news, [News::Ended(0)]);
            }
        }
    }
}

#[test]
fn a_network_of_its_own_is_empty_or_has_loopback() {
    if !root_or_skip("a_network_of_its_own_is_empty_or_has_loopback") {
        return;
    }
    let text = "while read -r l; do echo \"$l\"; done < /proc/net/fib_trie";
    for (network, there) in [(Network::None, false), (Network::Loopback, true)] {
        let mut profile = compat();
        profile.network = Protected::required(network);
        let ended = sh(&profile, nobody(), text);
        assert_eq!(ended.code, Some(0), "{ended:?}");
        assert_eq!(ended.stdout.contains("127.0.0.1"), there, "{ended:?}");
    }
}

/// Leaves a process behind that has a session of its own and no parent.
fn with_daemon(who: Identity) -> Live {
    let text = "(setsid sh -c 'echo up; exec sleep 300' &) ; exit 3";
    let mut run = begin(prepared(&own_namespace(), who, &features(true), text));
    assert!(run.started.init);
    assert_eq!(run.line(), "up");
    assert_eq!(run.next_news(), News::Ended(3 << 8));
    run
}

#[test]
fn an_init_outlives_the_script_and_passes_the_end_on() {
    if !root_or_skip("an_init_outlives_the_script_and_passes_the_end_on") {
        return;
    }
    for who in [root(), nobody()] {
        let run = with_daemon(who);
        let end = waitpid(Some(run.started.pid), WaitOptions::NOHANG).unwrap();
        assert!(end.is_none(), "something is left, so it stays");
        kill_process(run.started.pid, Signal::TERM).unwrap();
        let ended = run.end();
        assert_eq!(ended.code, Some(0), "{ended:?}");
    }
}

#[test]
fn killing_the_init_kills_all() {
    if !root_or_skip("killing_the_init_kills_all") {
        return;
    }
    let run = with_daemon(nobody());
    kill_process(run.started.pid, Signal::KILL).unwrap();
    // That the streams end is the proof that nobody holds them.
    assert_eq!(run.end().signal, Some(libc::SIGKILL));
}

#[test]
fn the_init_cannot_be_hurt_from_inside_and_has_nothing_to_take() {
    if !root_or_skip("the_init_cannot_be_hurt_from_inside_and_has_nothing_to_take") {
        return;
    }
    for who in [root(), nobody()] {
        let uid = who.uid;
        let text = "echo $$; for s in KILL STOP ABRT SEGV ALRM CHLD; do kill -$s 1; done; read -r go; exit 5";
        let mut run = begin(prepared(&own_namespace(), who, &features(true), text));
        assert_eq!(run.line(), "2");
        let at = |file: &str| format!("/proc/{}/{file}", run.started.pid.as_raw_pid());
        let status = std::fs::read_to_string(at("status")).unwrap();
        assert_eq!(field(&status, "Uid"), format!("{uid}\t{uid}\t{uid}\t{uid}"));
        assert_eq!(sets(&status), [0, 0x20, 0x20, 0, 0]);
        assert_eq!(field(&status, "NoNewPrivs"), "1");
        // What it has open and where it is belongs to root alone: not dumpable.
        use std::os::unix::fs::MetadataExt as _;
        assert_eq!(std::fs::metadata(at("status")).unwrap().uid(), 0);
        let ended = run.end();
        assert_eq!((ended.code, ended.signal), (Some(0), None), "{ended:?}");
        assert_eq!(ended.news, [News::Ended(5 << 8)]);
    }
}

#[test]
fn the_init_holds_the_status_pipe_and_nothing_else() {
    if !root_or_skip("the_init_holds_the_status_pipe_and_nothing_else") {
        return;
    }
    let mut old = features(true);
    old.close_range = false;
    for features in [features(true), old] {
        let text = "echo up; exec sleep 300";
        let mut run = begin(prepared(&own_namespace(), nobody(), &features, text));
        assert_eq!(run.line(), "up");
        let fds = format!("/proc/{}/fd", run.started.pid.as_raw_pid());
        let begun = Instant::now();
        while std::fs::read_dir(&fds).unwrap().count() != 1 {
            assert!(begun.elapsed() < PATIENCE, "holds more than one");
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

#[test]
fn a_run_does_not_survive_its_supervisor() {
    if !root_or_skip("a_run_does_not_survive_its_supervisor") {
        return;
    }
    for profile in [compat(), own_namespace()] {
        // The kernel means the thread that made the child.
        let run = std::thread::spawn(move || {
            let text = "echo up; exec sleep 300";
            let mut run = begin(prepared(&profile, nobody(), &features(true), text));
            assert_eq!(run.line(), "up");
            run
        })
        .join()
        .unwrap();
        assert_eq!(run.end().signal, Some(libc::SIGKILL));
    }
}

#[test]
fn without_root_the_same_steps_leave_ids_alone() {
    let me = Identity {
        uid: rustix::process::geteuid().as_raw(),
        ..nobody()
    };
    let (prepared, _) = assembled(
        "/bin/sh",
        &["-c", STATUS],
        &compat(),
        me.clone(),
        &features(false),
    );
    let ended = begin(prepared.unwrap()).end();
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(field(&ended.stdout, "NoNewPrivs"), "1");
    let uid = me.uid;
    assert_eq!(
        field(&ended.stdout, "Uid"),
        format!("{uid}\t{uid}\t{uid}\t{uid}")
    );
}

#[test]
fn steps_are_numbered_as_they_are_listed() {
    for (number, step) in Step::ALL.into_iter().enumerate() {
        assert_eq!(usize::from(step as u8), number);
        let failed = News::Failed(StepFailed { step, errno: 13 });
        assert_eq!(News::decode(failed.encode()), Some(failed));
        assert!(!step.name().is_empty());
    }
}

proptest! {
    #[test]
    fn news_are_what_was_sent_or_nothing(bytes: [u8; News::SIZE], status: i32) {
        let ended = News::Ended(status);
        prop_assert_eq!(News::decode(ended.encode()), Some(ended));
        if let Some(news) = News::decode(bytes) {
            prop_assert_eq!(news.encode(), bytes);
        }
    }
}
