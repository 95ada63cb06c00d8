//! The root executor under its real name, in a tree that only root can change, and a client of its socket.
//!
//! The executor gets a mount namespace of its own to begin with: whatever it does to mounts, this machine does not see it. Its tree lies
//! below `/var/lib`, because strict script trust refuses `/tmp`; it goes when the test ends.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::process::{self, Daemon, Run};
use super::{PATIENCE, binary, wait_until};

/// Tags of the request's trailer.
pub mod ask {
    /// u64: milliseconds.
    pub const TIMEOUT: u16 = 1;
    pub const DETACH: u16 = 4;
    /// u8: an order of [`super::order`].
    pub const JOB: u16 = 5;
}

/// What is asked about a detached run.
pub mod order {
    pub const HELLO: u8 = 0;
    pub const WAIT: u8 = 1;
    pub const PEEK: u8 = 2;
    pub const CANCEL: u8 = 3;
    pub const FORGET: u8 = 4;
}

/// Tags of the reply's trailer.
pub mod told {
    pub const KIND: u16 = 1;
    pub const SIGNAL: u16 = 2;
    /// Bits: core dumped, timed out, stdout truncated, stderr truncated.
    pub const FLAGS: u16 = 3;
    pub const WALL: u16 = 4;
    pub const CPU: u16 = 5;
    pub const MEMORY_PEAK: u16 = 6;
    pub const PROTECTIONS: u16 = 7;
}

/// Values of [`told::KIND`].
pub mod kind {
    pub const EXIT: u64 = 0;
    pub const SIGNAL: u64 = 1;
    pub const TIMEOUT: u64 = 2;
    pub const SETUP: u64 = 3;
    pub const DENIED: u64 = 4;
    pub const OOM: u64 = 5;
    pub const CANCELLED: u64 = 6;
    pub const DISCONNECT: u64 = 7;
    pub const SHUTDOWN: u64 = 8;
    pub const RUNNING: u64 = 9;
    pub const UNKNOWN: u64 = 10;
    pub const LOST: u64 = 11;
}

/// Longest that one answer may take.
pub const ANSWER_DEADLINE: Duration = Duration::from_secs(60);

/// A request as it goes over the wire (spec/executor.md 4.1, 4.4).
#[derive(Clone, Debug, Default)]
pub struct Ask {
    pub reqid: String,
    pub dispatcher: String,
    pub script: String,
    pub stdin: Vec<u8>,
    pub args: Vec<Vec<u8>>,
    /// Tag, flags, value. Empty: no trailer, a frame of the original.
    pub trailer: Vec<(u16, u16, Vec<u8>)>,
}

impl Ask {
    pub fn new(script: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Self {
            reqid: format!("{:08x}{number:08x}", std::process::id()),
            dispatcher: "control.test".to_owned(),
            script: script.to_owned(),
            ..Self::default()
        }
    }

    pub fn args(mut self, args: &[&str]) -> Self {
        self.args = args.iter().map(|a| a.as_bytes().to_vec()).collect();
        self
    }

    pub fn stdin(mut self, bytes: &[u8]) -> Self {
        self.stdin = bytes.to_vec();
        self
    }

    pub fn reqid(mut self, reqid: &str) -> Self {
        self.reqid = reqid.to_owned();
        self
    }

    pub fn tag(mut self, tag: u16, value: &[u8]) -> Self {
        self.trailer.push((tag, 0, value.to_vec()));
        self
    }

    /// A detached run.
    pub fn detached(self, reqid: &str) -> Self {
        self.reqid(reqid).tag(ask::DETACH, b"")
    }

    /// About the detached run of this id.
    pub fn about(reqid: &str, order: u8) -> Self {
        Self::new(".job").reqid(reqid).tag(ask::JOB, &[order])
    }

    /// The frame.
    pub fn bytes(&self) -> Vec<u8> {
        let mut body = Vec::new();
        for field in [
            self.reqid.as_bytes(),
            self.dispatcher.as_bytes(),
            self.script.as_bytes(),
            &self.stdin,
        ] {
            put(&mut body, field);
        }
        body.extend(length(self.args.len()));
        for arg in &self.args {
            put(&mut body, arg);
        }
        if !self.trailer.is_empty() {
            body.extend(b"CEX1");
            body.extend(length(self.trailer.len()));
            for (tag, flags, value) in &self.trailer {
                body.extend(tag.to_be_bytes());
                body.extend(flags.to_be_bytes());
                put(&mut body, value);
            }
        }
        let mut frame = length(body.len()).to_vec();
        frame.extend(body);
        frame
    }
}

fn length(count: usize) -> [u8; 4] {
    u32::try_from(count).unwrap().to_be_bytes()
}

fn put(body: &mut Vec<u8>, field: &[u8]) {
    body.extend(length(field.len()));
    body.extend(field);
}

/// An answer (spec/executor.md 4.2).
#[derive(Clone, Debug, Default)]
pub struct Told {
    pub exit: i32,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    pub trailer: BTreeMap<u16, Vec<u8>>,
    pub took: Duration,
}

impl Told {
    pub fn out(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    pub fn err(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    #[track_caller]
    pub fn exit(self, code: i32) -> Self {
        assert!(
            self.exit == code,
            "exit {} instead of {code}\n--- stdout\n{:.4000}\n--- stderr\n{:.4000}",
            self.exit,
            self.out(),
            self.err()
        );
        self
    }

    #[track_caller]
    pub fn err_has(self, text: &str) -> Self {
        assert!(
            self.err().contains(text),
            "stderr lacks {text:?}: {:.4000}",
            self.err()
        );
        self
    }

    /// A tag's value as a number, however wide.
    pub fn number(&self, tag: u16) -> Option<u64> {
        let bytes = self.trailer.get(&tag)?;
        Some(bytes.iter().fold(0, |sum, b| sum << 8 | u64::from(*b)))
    }

    pub fn kind(&self) -> Option<u64> {
        self.number(told::KIND)
    }

    /// `None`: closed without a word.
    fn parse(bytes: &[u8], took: Duration) -> Option<Self> {
        if bytes.is_empty() {
            return None;
        }
        let mut rest = bytes;
        let exit = i32::from_be_bytes(take(&mut rest, 4).try_into().unwrap());
        let stdout = field(&mut rest);
        let stderr = field(&mut rest);
        let mut trailer = BTreeMap::new();
        if !rest.is_empty() {
            assert_eq!(take(&mut rest, 4), b"CEX1", "what follows is no trailer");
            for _ in 0..number(&mut rest) {
                let tag = u16::from_be_bytes(take(&mut rest, 2).try_into().unwrap());
                let _flags = take(&mut rest, 2);
                trailer.insert(tag, field(&mut rest));
            }
            assert!(rest.is_empty(), "bytes after the trailer: {rest:?}");
        }
        Some(Self {
            exit,
            stdout,
            stderr,
            trailer,
            took,
        })
    }
}

#[track_caller]
fn take<'a>(rest: &mut &'a [u8], count: usize) -> &'a [u8] {
    assert!(rest.len() >= count, "the answer ends early");
    let (head, tail) = rest.split_at(count);
    *rest = tail;
    head
}

fn number(rest: &mut &[u8]) -> usize {
    u32::from_be_bytes(take(rest, 4).try_into().unwrap()) as usize
}

fn field(rest: &mut &[u8]) -> Vec<u8> {
    let count = number(rest);
    take(rest, count).to_vec()
}

/// An executor and its tree.
#[derive(Debug)]
pub struct Executor {
    daemon: Option<Daemon>,
    tree: PathBuf,
    cgroup: Option<PathBuf>,
    /// Lines of `[executor]`.
    house: String,
    top: String,
    profiles: Vec<(String, String)>,
    scripts: Vec<(String, String)>,
    /// Shell lines that run before the executor, in its mount namespace; `$T` is the tree.
    before: String,
    /// Words before the executor's own.
    prefix: Vec<String>,
}

impl Executor {
    /// Not yet started. `baseline` is `compat` or `strict`.
    pub fn new(baseline: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("ce-test-{}-{number}", std::process::id());
        let tree = Path::new("/var/lib").join(&name);
        for dir in [
            "", "bin", "etc", "etc/sub", "scripts", "run", "data", "data/w", "state",
        ] {
            let dir = tree.join(dir);
            std::fs::create_dir(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
            std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        std::os::unix::fs::symlink(binary(), tree.join("bin/ctrl-exec-exec")).unwrap();
        let cgroup = cgroup_root()
            .map(|root| root.join(&name))
            .filter(|dir| std::fs::create_dir(dir).is_ok());
        let executor = Self {
            daemon: None,
            tree,
            cgroup,
            house: format!("baseline = {baseline}\n"),
            top: String::new(),
            profiles: Vec::new(),
            scripts: Vec::new(),
            before: String::new(),
            prefix: Vec::new(),
        };
        executor.write("etc/agent.key", "SECRET-KEY\n", 0o600);
        executor.write("etc/agent.crt", "certificate\n", 0o644);
        executor.write("etc/ca.crt", "certificate\n", 0o644);
        executor.write("data/root-file", "root's\n", 0o644);
        executor
    }

    pub fn path(&self, path: &str) -> PathBuf {
        self.tree.join(path)
    }

    pub fn text(&self, path: &str) -> String {
        self.path(path).display().to_string()
    }

    pub fn write(&self, path: &str, content: impl AsRef<[u8]>, mode: u32) -> PathBuf {
        let path = self.path(path);
        std::fs::write(&path, content).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    pub fn socket(&self) -> PathBuf {
        self.path("run/exec.sock")
    }

    /// The cgroup that this test made, if it can.
    pub fn cgroup(&self) -> Option<&Path> {
        self.cgroup.as_deref()
    }

    /// Adds lines to `[executor]`.
    pub fn house(&mut self, lines: &str) -> &mut Self {
        self.house.push_str(lines);
        self.house.push('\n');
        self
    }

    /// Adds lines above all sections.
    pub fn top(&mut self, lines: &str) -> &mut Self {
        self.top.push_str(lines);
        self.top.push('\n');
        self
    }

    /// Adds a profile; `$T` in it is the tree.
    pub fn profile(&mut self, name: &str, lines: &str) -> &mut Self {
        let lines = lines.replace("$T", self.tree.to_str().unwrap());
        self.profiles.push((name.to_owned(), lines));
        self
    }

    /// Adds a script of its own file, mode 0755.
    pub fn script(&mut self, name: &str, profile: &str, content: &str) -> &mut Self {
        let path = self.write(&format!("scripts/{name}"), content, 0o755);
        self.entry(name, &format!("{} profile={profile}", path.display()))
    }

    /// Adds a shell script.
    pub fn shell(&mut self, name: &str, profile: &str, body: &str) -> &mut Self {
        self.script(name, profile, &format!("#!/bin/sh\n{body}\n"))
    }

    /// Adds a line of `scripts.conf`.
    pub fn entry(&mut self, name: &str, value: &str) -> &mut Self {
        self.scripts.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Shell lines that run before the executor, in its mount namespace; `$T` is the tree.
    pub fn before(&mut self, lines: &str) -> &mut Self {
        self.before.push_str(lines);
        self.before.push('\n');
        self
    }

    /// Words that stand before the executor's own: a program that ends with exec.
    pub fn prefix(&mut self, words: &[&str]) -> &mut Self {
        self.prefix = words.iter().map(|w| (*w).to_owned()).collect();
        self
    }

    /// Writes both files as they stand now.
    pub fn write_config(&self) {
        let tree = self.tree.display();
        let mut text = format!(
            "port = 7443\ncert = {tree}/etc/agent.crt\nkey = {tree}/etc/agent.key\nca = {tree}/etc/ca.crt\n\
             script_dirs = {tree}/scripts\nasync_runs_dir = {tree}/state\nexecutor_socket = {tree}/run/exec.sock\n{}\n[executor]\n{}",
            self.top, self.house
        );
        if let Some(group) = &self.cgroup
            && !self.house.contains("cgroup_parent")
        {
            text.push_str(&format!("cgroup_parent = {}\n", group.display()));
        }
        for (name, lines) in &self.profiles {
            text.push_str(&format!("\n[profile {name}]\n{lines}\n"));
        }
        let scripts: String = self
            .scripts
            .iter()
            .map(|(name, value)| format!("{name} = {value}\n"))
            .collect();
        // Each in one step: a running executor must never see half of one.
        for (name, text) in [("etc/agent.conf", text), ("etc/scripts.conf", scripts)] {
            let new = self.write(&format!("{name}.new"), text, 0o640);
            std::fs::rename(new, self.path(name)).unwrap();
        }
    }

    fn command(&self) -> Command {
        let mut command = Command::new("unshare");
        let script = format!("set -e\n{}\nexec \"$@\"", self.before);
        command.args([
            "--mount",
            "--propagation",
            "private",
            "sh",
            "-c",
            &script,
            "sh",
        ]);
        command
            .args(&self.prefix)
            .arg(self.path("bin/ctrl-exec-exec"))
            .arg("serve")
            .args([
                self.socket(),
                self.path("etc/agent.conf"),
                self.path("etc/scripts.conf"),
            ])
            .arg("root")
            .env_clear()
            .env(
                "PATH",
                "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            )
            .env("T", &self.tree)
            .env("LANG", "C.UTF-8")
            .env("CTRL_EXEC_LOG", "stderr")
            .stdin(Stdio::null());
        command
    }

    /// Writes the configuration and starts; waits for the socket.
    #[track_caller]
    pub fn start(&mut self) -> &mut Self {
        self.write_config();
        let mut daemon = Daemon::start(&mut self.command());
        let end = Instant::now() + PATIENCE;
        while UnixStream::connect(self.socket()).is_err() {
            assert!(
                daemon.is_running() && Instant::now() < end,
                "the executor does not listen: {}",
                daemon.err()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
        self.daemon = Some(daemon);
        self
    }

    /// Starts an executor that is expected to end by itself.
    #[track_caller]
    pub fn start_and_end(&mut self) -> Run {
        self.write_config();
        process::run(&mut self.command())
    }

    /// The program with other words: `check`, `resolve`.
    #[track_caller]
    pub fn call(&self, words: &[&str]) -> Run {
        self.write_config();
        process::run(
            Command::new(self.path("bin/ctrl-exec-exec"))
                .args(words)
                .env_clear()
                .env("CTRL_EXEC_LOG", "stderr"),
        )
    }

    #[track_caller]
    pub fn daemon(&mut self) -> &mut Daemon {
        self.daemon.as_mut().expect("the executor was started")
    }

    pub fn pid(&self) -> u32 {
        self.daemon
            .as_ref()
            .expect("the executor was started")
            .pid()
    }

    /// What it logged.
    pub fn log(&self) -> String {
        self.daemon
            .as_ref()
            .expect("the executor was started")
            .err()
    }

    /// Waits for a log line that holds all words.
    #[track_caller]
    pub fn wait_for_log(&self, words: &[&str]) -> String {
        let end = Instant::now() + PATIENCE;
        loop {
            let log = self.log();
            if let Some(line) = log
                .lines()
                .find(|line| words.iter().all(|w| line.contains(w)))
            {
                return line.to_owned();
            }
            assert!(Instant::now() < end, "no log line with {words:?}:\n{log}");
            std::thread::sleep(Duration::from_millis(15));
        }
    }

    /// Runs a script.
    #[track_caller]
    pub fn run(&self, script: &str) -> Told {
        self.ask(&Ask::new(script))
    }

    #[track_caller]
    pub fn run_with(&self, script: &str, args: &[&str]) -> Told {
        self.ask(&Ask::new(script).args(args))
    }

    /// Sends a request and waits for the answer.
    #[track_caller]
    pub fn ask(&self, ask: &Ask) -> Told {
        let waiting = self.send(ask);
        waiting.answer().unwrap_or_else(|| {
            panic!(
                "closed without a word on {}; log:\n{}",
                ask.script,
                self.log()
            )
        })
    }

    /// Sends a request.
    #[track_caller]
    pub fn send(&self, ask: &Ask) -> Waiting {
        let start = Instant::now();
        let stream = UnixStream::connect(self.socket()).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        match (&stream).write_all(&ask.bytes()) {
            // A service that cannot make a process closes without reading; what there is of an answer says so.
            Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => {}
            sent => sent.unwrap(),
        }
        Waiting { stream, start }
    }

    /// Processes below the executor, itself not counted.
    pub fn descendants(&self) -> Vec<u32> {
        let mut found = vec![self.pid()];
        let all = processes();
        let mut at = 0;
        while at < found.len() {
            let parent = found[at];
            found.extend(
                all.iter()
                    .filter(|(_, p)| *p == parent)
                    .map(|(pid, _)| *pid),
            );
            at += 1;
        }
        found.split_off(1)
    }

    /// Waits until no run is in progress.
    #[track_caller]
    pub fn wait_until_idle(&self) {
        wait_until("no run is in progress", PATIENCE, || {
            self.descendants().is_empty().then_some(())
        });
    }

    /// SIGTERM, and the end of it.
    #[track_caller]
    pub fn stop(&mut self) -> i32 {
        let daemon = self.daemon();
        daemon.signal(rustix::process::Signal::TERM);
        daemon.wait(PATIENCE).code().unwrap_or(-1)
    }
}

impl Drop for Executor {
    fn drop(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            if daemon.is_running() {
                daemon.signal(rustix::process::Signal::TERM);
                let end = Instant::now() + Duration::from_secs(16);
                while daemon.is_running() && Instant::now() < end {
                    std::thread::sleep(Duration::from_millis(5));
                }
            }
            drop(daemon);
        }
        if let Some(group) = &self.cgroup {
            let _ = std::fs::write(group.join("cgroup.kill"), "1");
            let end = Instant::now() + Duration::from_secs(5);
            while !remove_group(group) && Instant::now() < end {
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        let _ = std::fs::remove_dir_all(&self.tree);
    }
}

/// A request under way.
#[derive(Debug)]
pub struct Waiting {
    pub stream: UnixStream,
    start: Instant,
}

impl Waiting {
    /// For bytes that the test itself has sent.
    pub fn of(stream: UnixStream) -> Self {
        Self {
            stream,
            start: Instant::now(),
        }
    }

    /// `None`: closed without a word.
    #[track_caller]
    pub fn answer(self) -> Option<Told> {
        self.answer_within(ANSWER_DEADLINE)
    }

    #[track_caller]
    pub fn answer_within(self, deadline: Duration) -> Option<Told> {
        let end = Instant::now() + deadline;
        let mut bytes = Vec::new();
        let mut buffer = vec![0; 65_536];
        loop {
            let left = end.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "no answer within {deadline:?}");
            self.stream.set_read_timeout(Some(left)).unwrap();
            match (&self.stream).read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => bytes.extend_from_slice(&buffer[..n]),
                Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => break,
                // A wait with a deadline is not taken up again after the whole machine was stopped for a moment.
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => panic!("no answer within {deadline:?}: {e}"),
            }
        }
        Told::parse(&bytes, self.start.elapsed())
    }

    /// Sends no more.
    pub fn half_close(&self) {
        self.stream.shutdown(Shutdown::Write).unwrap();
    }
}

/// Where cgroup v2 is mounted, if groups can be made there.
pub fn cgroup_root() -> Option<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
    let line = mounts.lines().find(|line| line.contains(" - cgroup2 "))?;
    Some(PathBuf::from(line.split(' ').nth(4)?))
}

/// Does this kernel's cgroup v2 offer the controller to us?
pub fn controller(name: &str) -> bool {
    let listed = cgroup_root()
        .and_then(|root| std::fs::read_to_string(root.join("cgroup.controllers")).ok());
    listed.is_some_and(|text| text.split_whitespace().any(|word| word == name))
}

/// Removes a group with all groups below it; false while something lives there.
fn remove_group(dir: &Path) -> bool {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_group(&entry.path());
        }
    }
    match std::fs::remove_dir(dir) {
        Ok(()) => true,
        Err(e) => e.kind() == std::io::ErrorKind::NotFound,
    }
}

/// Every process with its parent.
pub fn processes() -> Vec<(u32, u32)> {
    let parent = |pid: u32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let rest = stat.rsplit_once(')')?.1;
        rest.split_whitespace().nth(1)?.parse().ok()
    };
    std::fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(|pid| Some((pid, parent(pid)?)))
        .collect()
}

/// Processes whose command line holds the text.
pub fn with_words(text: &str) -> Vec<u32> {
    let holds = |pid: &u32| {
        std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| {
            String::from_utf8_lossy(&line)
                .replace('\0', " ")
                .contains(text)
        })
    };
    processes()
        .into_iter()
        .map(|(pid, _)| pid)
        .filter(holds)
        .collect()
}

/// Version of Landlock that this kernel has; 0 = none.
pub fn landlock_abi() -> u32 {
    let ask = "import ctypes; print(max(0, ctypes.CDLL(None, use_errno=True).syscall(444, None, ctypes.c_size_t(0), 1)))";
    let run = process::run(Command::new("/usr/bin/python3").args(["-c", ask])).ok();
    run.out().trim().parse().unwrap()
}
