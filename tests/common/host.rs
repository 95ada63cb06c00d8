//! One host: a temporary root with the links of all program names, a syslog socket, and an environment of its own.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use super::process::{self, Daemon, Run};
use super::syslog::{LogLine, Syslog};
use super::{PATIENCE, binary};

#[derive(Debug)]
pub struct Host {
    name: String,
    links: PathBuf,
    env: BTreeMap<String, String>,
    /// Words before the program: `ip netns exec NAME` for a host in a namespace.
    prefix: Vec<String>,
    log: Syslog,
    // Last: the directory goes when everything that uses it is gone.
    root: TempDir,
}

impl Host {
    /// A host that calls itself `name`.
    pub fn new(name: &str) -> Self {
        let root = tempfile::Builder::new().prefix("ce-").tempdir().unwrap();
        let links = root.path().join("usr/bin");
        for dir in ["usr/bin", "etc", "var/lib", "run", "opt/scripts", "tmp"] {
            std::fs::create_dir_all(root.path().join(dir)).unwrap();
        }
        process::run(Command::new(binary()).arg("links").arg(&links).env_clear()).ok();
        let log = Syslog::bind(&root.path().join("dev/log"));
        Self {
            name: name.to_owned(),
            links,
            env: BTreeMap::new(),
            prefix: Vec::new(),
            log,
            root,
        }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Adds a variable to the environment of everything that this host starts.
    pub fn set_env(&mut self, key: &str, value: &str) {
        self.env.insert(key.to_owned(), value.to_owned());
    }

    /// Words that stand before every program of this host.
    pub fn set_prefix(&mut self, words: &[&str]) {
        self.prefix = words.iter().map(|w| (*w).to_owned()).collect();
    }

    /// Runs its agent as a user who may not write below `/etc`, as its service does.
    pub fn confine_agent(&mut self) {
        let etc = self.path("etc/ctrl-exec-agent");
        if !super::is_root() {
            std::fs::set_permissions(etc, std::fs::Permissions::from_mode(0o555)).unwrap();
            return;
        }
        const NOBODY: u32 = 65_534;
        for open in [
            "",
            "etc",
            "etc/ctrl-exec-agent",
            "var",
            "var/lib",
            "usr",
            "usr/bin",
            "dev",
        ] {
            self.set_mode(open, 0o755);
        }
        self.set_mode("dev/log", 0o777);
        let own = |path: &Path, uid| std::os::unix::fs::chown(path, uid, Some(NOBODY)).unwrap();
        for file in std::fs::read_dir(&etc).unwrap() {
            own(&file.unwrap().path(), Some(0));
        }
        let state = self.path("var/lib/ctrl-exec-agent");
        own(&state, Some(NOBODY));
        for file in std::fs::read_dir(&state).unwrap() {
            own(&file.unwrap().path(), Some(NOBODY));
        }
        self.set_prefix(&[
            "setpriv",
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
            "--",
        ]);
    }

    /// Root comes by.
    pub fn unconfine_agent(&mut self) {
        if super::is_root() {
            self.set_prefix(&[]);
        } else {
            self.set_mode("etc/ctrl-exec-agent", 0o755);
        }
    }

    /// A path of the system below this host's root; `/etc/x` and `etc/x` mean the same.
    pub fn path(&self, path: &str) -> PathBuf {
        self.root.path().join(path.trim_start_matches('/'))
    }

    /// Where the links of the program names lie.
    pub fn links(&self) -> &Path {
        &self.links
    }

    /// Writes a file with a mode, making its directories.
    pub fn write(&self, path: &str, content: impl AsRef<[u8]>, mode: u32) -> PathBuf {
        let path = self.path(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, content)
            .unwrap_or_else(|e| panic!("cannot write {}: {e}", path.display()));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    pub fn read(&self, path: &str) -> String {
        let path = self.path(path);
        std::fs::read_to_string(&path)
            .unwrap_or_else(|e| panic!("cannot read {}: {e}", path.display()))
    }

    pub fn json(&self, path: &str) -> Value {
        serde_json::from_str(&self.read(path)).unwrap_or_else(|e| panic!("{path} is no JSON: {e}"))
    }

    pub fn exists(&self, path: &str) -> bool {
        self.path(path).exists()
    }

    pub fn mode(&self, path: &str) -> u32 {
        std::fs::metadata(self.path(path))
            .unwrap()
            .permissions()
            .mode()
            & 0o7777
    }

    pub fn set_mode(&self, path: &str, mode: u32) {
        std::fs::set_permissions(self.path(path), std::fs::Permissions::from_mode(mode)).unwrap();
    }

    /// An executable shell script below `/opt/scripts`; answers its path in the real file system (script paths are never moved).
    pub fn script(&self, name: &str, body: &str) -> PathBuf {
        self.write(
            &format!("opt/scripts/{name}"),
            format!("#!/bin/sh\n{body}\n"),
            0o755,
        )
    }

    /// A program of the binary by its name, in this host's environment and nothing else.
    pub fn command(&self, program: &str) -> Command {
        let path = self.links.join(program);
        let mut command = match self.prefix.split_first() {
            None => Command::new(path),
            Some((first, rest)) => {
                let mut command = Command::new(first);
                command.args(rest).arg(path);
                command
            }
        };
        command
            .env_clear()
            .env(
                "PATH",
                "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            )
            .env("CTRL_EXEC_ROOT", self.root.path())
            .env("CTRL_EXEC_HOSTNAME", &self.name)
            .env("TMPDIR", self.path("tmp"))
            .envs(&self.env)
            .stdin(Stdio::null());
        command
    }

    #[track_caller]
    pub fn run(&self, program: &str, args: &[&str]) -> Run {
        process::run(self.command(program).args(args))
    }

    /// The dispatcher's command line.
    #[track_caller]
    pub fn ced(&self, args: &[&str]) -> Run {
        self.run("ced", args)
    }

    /// The agent's command line.
    #[track_caller]
    pub fn cea(&self, args: &[&str]) -> Run {
        self.run("cea", args)
    }

    /// The binary by its own name.
    #[track_caller]
    pub fn ctrl_exec(&self, args: &[&str]) -> Run {
        self.run("ctrl-exec", args)
    }

    /// A program in the background.
    #[track_caller]
    pub fn start(&self, program: &str, args: &[&str]) -> Daemon {
        Daemon::start(self.command(program).args(args))
    }

    /// A program in the background whose standard streams are a terminal; what is written to [`Daemon::stdin`] is typed there.
    #[track_caller]
    pub fn start_at_terminal(&self, program: &str, args: &[&str]) -> Daemon {
        const TERMINAL: &str = "import pty, sys; sys.exit(pty.spawn(sys.argv[1:]) >> 8)";
        let inner = self.command(program);
        let mut command = Command::new("python3");
        command
            .args(["-c", TERMINAL])
            .arg(inner.get_program())
            .args(inner.get_args())
            .args(args)
            .env_clear()
            .env("TERM", "dumb")
            .stdin(Stdio::piped());
        for (key, value) in inner.get_envs() {
            command.env(key, value.unwrap_or_default());
        }
        Daemon::start(&mut command)
    }

    pub fn log_lines(&self) -> Vec<LogLine> {
        self.log.lines()
    }

    pub fn clear_log(&self) {
        self.log.clear();
    }

    /// Lines of one action.
    pub fn log_of(&self, action: &str) -> Vec<LogLine> {
        self.log
            .lines()
            .into_iter()
            .filter(|l| l.action() == action)
            .collect()
    }

    /// Waits for a line that holds all the texts.
    #[track_caller]
    pub fn wait_for_log(&self, texts: &[&str]) -> LogLine {
        let found = || {
            self.log
                .lines()
                .into_iter()
                .find(|l| texts.iter().all(|t| l.text.contains(t)))
        };
        let end = std::time::Instant::now() + PATIENCE;
        loop {
            if let Some(line) = found() {
                return line;
            }
            assert!(
                std::time::Instant::now() < end,
                "{}: no log line with {texts:?} among\n{}",
                self.name,
                self.log
                    .lines()
                    .iter()
                    .map(|l| format!("  <{}> {}", l.priority, l.text))
                    .collect::<Vec<_>>()
                    .join("\n")
            );
            std::thread::sleep(std::time::Duration::from_millis(15));
        }
    }
}
