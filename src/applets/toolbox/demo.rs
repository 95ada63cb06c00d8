//! `ctrl-exec demo`: the main job on one machine, in a temporary folder, without privileges, through the real programs and the real
//! protocol. Every step is printed as the command that a person would type.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::applets::{APPLETS, AppError, Context, Exit, cli};
use crate::core::terminal::stdout_bytes;
use crate::core::{sys, types};
use crate::say;

/// Pair a dispatcher and an agent in a temporary folder on this machine and run scripts, step by step.
#[derive(argh::FromArgs)]
#[argh(help_triggers("-h", "--help"))]
struct DemoArgs {
    /// leave the folder and the running agent for play
    #[argh(switch)]
    keep: bool,
    /// folder to use (default: a new one below $TMPDIR or /tmp)
    #[argh(option)]
    dir: Option<PathBuf>,
}

/// Longest wait for any single step; a step takes well under a second.
const PATIENCE: Duration = Duration::from_secs(30);
const AGENT: &str = "demo-agent";

const GREET: &str = "#!/bin/sh\n# Arguments arrive as they were typed: no shell has looked at them.\necho \"Hello from $(hostname 2>/dev/null || echo this host)\"\nfor arg in \"$@\"; do echo \"argument: $arg\"; done\n";
const UPTIME: &str = "#!/bin/sh\ncat /proc/uptime\n";
/// Shows what a profile is, from the inside.
const WHOAMI: &str = "#!/bin/sh\nid -un 2>/dev/null || id -u\ngrep -E '^(NoNewPrivs|CapBnd|Seccomp):' /proc/self/status\nif head -c 1 \"$1\" >/dev/null 2>&1; then echo \"the agent's key: within reach\"; else echo \"the agent's key: out of reach\"; fi\n";
const FAIL: &str = "#!/bin/sh\necho 'this goes to stderr' >&2\nexit 3\n";

pub(super) fn main(context: &Context, args: Vec<String>) -> Result<Exit, AppError> {
    const COMMAND: &[&str] = &["ctrl-exec", "demo"];
    let words = cli::normalise(args, &[cli::flag("keep"), cli::value("dir")])?;
    if words.help {
        return Err(cli::help::<DemoArgs>(COMMAND));
    }
    let args: DemoArgs = cli::parse(COMMAND, &words.for_argh(&["keep", "dir"]).0)?;
    let mut demo = Demo::new(context, args.dir, args.keep)?;
    demo.play()?;
    demo.finish();
    Ok(Exit::Success)
}

/// A command that ended.
struct Ran {
    status: Option<i32>,
    /// Everything for the person: stdout, then stderr without action lines.
    said: Vec<u8>,
    stdout: Vec<u8>,
}

/// The folder and what runs in it; both go when it is dropped, unless they shall stay.
struct Demo {
    dir: PathBuf,
    path_variable: String,
    agent: Option<Child>,
    executor: Option<Child>,
    listener: Option<Child>,
    keep: bool,
    created: bool,
}

impl Drop for Demo {
    fn drop(&mut self) {
        for child in [
            self.listener.take(),
            self.agent.take().filter(|_| !self.keep),
            self.executor.take().filter(|_| !self.keep),
        ]
        .into_iter()
        .flatten()
        {
            end(child);
        }
        if !self.keep && self.created {
            let _ = fs::remove_dir_all(&self.dir);
        }
    }
}

fn end(mut child: Child) {
    let _ = child.kill();
    let _ = child.wait();
}

fn failed(what: impl std::fmt::Display) -> AppError {
    AppError::failed(format!("demo: {what}"))
}

impl Demo {
    fn new(context: &Context, dir: Option<PathBuf>, keep: bool) -> Result<Self, AppError> {
        let suffix =
            types::random::<6>().map_err(|_| failed("the system gives no random bytes"))?;
        // Root's scripts must lie where nobody else can replace them: not below /tmp.
        let usual = if is_root() && Path::new("/var/lib").is_dir() {
            "/var/lib"
        } else {
            "/tmp"
        };
        let parent = PathBuf::from(context.var("TMPDIR").unwrap_or(usual));
        let dir =
            dir.unwrap_or_else(|| parent.join(format!("ctrl-exec-demo-{}", types::hex(&suffix))));
        // Made by us or not at all: nobody else's folder is filled or removed.
        fs::create_dir(&dir)
            .map_err(|e| failed(format!("cannot create the folder '{}': {e}", dir.display())))?;
        let demo = Self {
            path_variable: format!(
                "{}:{}",
                dir.join("bin").display(),
                context.var("PATH").unwrap_or("/usr/bin:/bin")
            ),
            dir,
            agent: None,
            executor: None,
            listener: None,
            keep,
            created: true,
        };
        // Root's scripts run as another user, who must be able to reach them; keys have modes of their own.
        let mode = if is_root() { 0o755 } else { 0o700 };
        fs::set_permissions(&demo.dir, fs::Permissions::from_mode(mode)).map_err(failed)?;
        Ok(demo)
    }

    fn play(&mut self) -> Result<(), AppError> {
        let pairing_port = free_port()?.to_string();
        let agent_port = free_port()?;

        say!("# Two hosts in one folder: {}", self.dir.display());
        self.install()?;
        self.write_agent_files(agent_port)?;

        headline("1. The dispatcher makes its private CA and its own certificate");
        self.show("dispatcher", &["ced", "setup-ca"], 0)?;
        let made = self.show("dispatcher", &["ced", "setup-ctrl-exec"], 0)?;
        let fingerprint = String::from_utf8_lossy(&made)
            .lines()
            .find_map(|line| line.strip_prefix("Fingerprint:"))
            .map(|text| text.trim().to_owned())
            .ok_or_else(|| failed("setup-ctrl-exec shows no fingerprint"))?;

        headline("2. Pairing: the agent asks, both screens show a code, a person compares them");
        say!(
            "# Nobody sits at this agent's terminal to confirm the code, so it is told whom to expect: --dispatcher-fingerprint."
        );
        self.pair(&pairing_port, &fingerprint)?;

        headline(
            "3. The host's own files say what may run, and as whom; the root executor and the agent start",
        );
        self.print_file("agent", "etc/ctrl-exec-agent/scripts.toml")?;
        self.print_file("agent", "etc/ctrl-exec-agent/agent.toml")?;
        self.start_executor()?;
        self.start_agent()?;

        headline("4. The dispatcher uses it");
        self.show("dispatcher", &["ced", "list-agents"], 0)?;
        self.show("dispatcher", &["ced", "ping", AGENT], 0)?;
        self.show(
            "dispatcher",
            &[
                "ced",
                "run",
                AGENT,
                "greet",
                "--",
                "two words",
                "$(not a shell)",
            ],
            0,
        )?;
        self.show("dispatcher", &["ced", "run", AGENT, "uptime", "--json"], 0)?;

        let key = self
            .root("agent")
            .join("etc/ctrl-exec-agent/agent.key")
            .display()
            .to_string();
        say!(
            "{}",
            if is_root() {
                "# In its profile a script is what the profile says, and no more:"
            } else {
                "# Without root there is hardly a profile: the script is the same user as the agent. As root, the demo shows the difference."
            }
        );
        self.show(
            "dispatcher",
            &["ced", "run", AGENT, "whoami", "--", &key],
            0,
        )?;

        headline("5. What is refused, and what fails");
        self.show("dispatcher", &["ced", "run", AGENT, "not-listed"], 1)?;
        self.show("dispatcher", &["ced", "run", "unknown-host", "greet"], 1)?;
        self.show("dispatcher", &["ced", "run", AGENT, "fail"], 1)?;
        Ok(())
    }

    fn root(&self, host: &str) -> PathBuf {
        self.dir.join(host)
    }

    fn install(&self) -> Result<(), AppError> {
        let bin = self.dir.join("bin");
        fs::create_dir(&bin).map_err(failed)?;
        let binary = std::env::current_exe().map_err(failed)?;
        for name in APPLETS
            .iter()
            .flat_map(|a| std::iter::once(&a.name).chain(a.aliases))
        {
            std::os::unix::fs::symlink(&binary, bin.join(name)).map_err(failed)?;
        }
        say!("$ export PATH={}:$PATH", bin.display());
        Ok(())
    }

    fn write_agent_files(&self, port: u16) -> Result<(), AppError> {
        let etc = self.root("agent").join("etc/ctrl-exec-agent");
        let scripts = self.root("agent").join("scripts");
        for dir in [&etc, &scripts, &self.root("dispatcher")] {
            fs::create_dir_all(dir).map_err(failed)?;
        }
        let mut list = String::new();
        for (name, text) in [
            ("greet", GREET),
            ("uptime", UPTIME),
            ("whoami", WHOAMI),
            ("fail", FAIL),
        ] {
            let path = scripts.join(format!("{name}.sh"));
            fs::write(&path, text).map_err(failed)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).map_err(failed)?;
            list.push_str(&format!(
                "[scripts.{name}]\npath = \"{}\"\n",
                path.display()
            ));
        }
        fs::write(etc.join("scripts.toml"), list).map_err(failed)?;
        fs::write(
            etc.join("agent.toml"),
            format!(
                "port = {port}\nbind = \"127.0.0.1\"\nscript_dirs = [\"{}\"]\nexecutor_socket = \"/run/ctrl-exec-agent/exec.sock\"\n{}",
                scripts.display(),
                self.profiles()
            ),
        )
        .map_err(failed)
    }

    /// What the executor can apply here.
    fn profiles(&self) -> &'static str {
        if !is_root() {
            "\n# Without root the executor cannot change the user: its test mode takes profiles without an identity only.\n[profile.default]\n"
        } else if only_root_can_change(&self.dir) {
            "\n[executor]\nbaseline = \"strict\"\n\n[profile.default]\nrun_as = \"nobody\"\n"
        } else {
            "\n# The strict baseline would refuse files in this folder: others can write to a directory above it.\n[executor]\nbaseline = \"compat\"\n\n[profile.default]\nrun_as = \"nobody\"\n"
        }
    }

    fn start_executor(&mut self) -> Result<(), AppError> {
        let root = self.root("agent");
        let run = root.join("run/ctrl-exec-agent");
        fs::create_dir_all(&run).map_err(failed)?;
        let text = |path: PathBuf| path.display().to_string();
        let socket = text(run.join("exec.sock"));
        let etc = root.join("etc/ctrl-exec-agent");
        let (config, scripts) = (text(etc.join("agent.toml")), text(etc.join("scripts.toml")));
        let uid = rustix::process::geteuid().as_raw();
        let user = sys::users::Database::load()
            .ok()
            .and_then(|db| db.by_uid(uid))
            .map_or_else(|| uid.to_string(), |account| account.name);
        let mut serve = vec!["ctrl-exec-exec", "serve", &socket, &config, &scripts, &user];
        if !is_root() {
            serve.push("--unprivileged-test");
        }
        say!("agent$ {} &", self.typed("agent", &serve));
        let log = fs::File::create(self.dir.join("executor.log")).map_err(failed)?;
        let log_too = log.try_clone().map_err(failed)?;
        self.executor = Some(self.spawn("agent", &serve, log.into(), log_too.into())?);
        let path = PathBuf::from(&socket);
        wait_for("the executor", || {
            if let Some(executor) = &mut self.executor
                && let Some(status) = executor.try_wait().map_err(failed)?
            {
                let log = fs::read_to_string(self.dir.join("executor.log")).unwrap_or_default();
                return Err(failed(format!("the executor ended ({status}):\n{log}")));
            }
            Ok(path.exists().then_some(()))
        })
    }

    fn pair(&mut self, port: &str, fingerprint: &str) -> Result<(), AppError> {
        let listen = ["ced", "pairing-mode", "--port", port, "--timeout", "120"];
        say!("dispatcher$ {} &", self.typed("dispatcher", &listen));
        self.listener = Some(self.spawn("dispatcher", &listen, Stdio::null(), Stdio::null())?);
        wait_for("the pairing listener", || {
            Ok(std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port.parse().unwrap_or(0))).ok())
        })?;

        let request = [
            "cea",
            "request-pairing",
            "--dispatcher",
            "127.0.0.1",
            "--port",
            port,
            "--lookup-by",
            "ip",
            "--dispatcher-fingerprint",
            fingerprint,
        ];
        say!("agent$ {} &", self.typed("agent", &request));
        let mut requesting = self.spawn("agent", &request, Stdio::piped(), Stdio::inherit())?;
        let mut lines = BufReader::new(
            requesting
                .stdout
                .take()
                .ok_or_else(|| failed("no output of the agent"))?,
        );
        let mut shown = String::new();
        let agent_code = loop {
            let mut line = String::new();
            if lines.read_line(&mut line).map_err(failed)? == 0 {
                end(requesting);
                return Err(failed(format!(
                    "the agent ended without showing a code:\n{shown}"
                )));
            }
            stdout_bytes(line.as_bytes());
            shown.push_str(&line);
            if let Some(code) = line.strip_prefix("Pairing code: ") {
                break code.trim().to_owned();
            }
        };

        let (id, code) = wait_for("the request on the dispatcher's side", || {
            let listing = self
                .run("dispatcher", &["ced", "list-requests", "--json"])?
                .stdout;
            let requests: Value = serde_json::from_slice(&listing).unwrap_or_default();
            let first = requests
                .get("requests")
                .and_then(|r| r.get(0))
                .or_else(|| requests.get(0));
            let text = |name: &str| {
                first
                    .and_then(|r| r.get(name))
                    .and_then(Value::as_str)
                    .map(str::to_owned)
            };
            Ok(text("id").zip(text("code")))
        })?;
        self.show("dispatcher", &["ced", "list-requests"], 0)?;
        if id.is_empty() || code != agent_code {
            return Err(failed(format!(
                "the codes differ: agent {agent_code}, dispatcher {code}"
            )));
        }
        say!("# Both screens show {code}: it is the same agent, so the operator approves.");
        self.show("dispatcher", &["ced", "approve", &id], 0)?;

        let mut rest = String::new();
        lines.read_to_string(&mut rest).map_err(failed)?;
        stdout_bytes(rest.as_bytes());
        let status = requesting.wait().map_err(failed)?;
        if !status.success() {
            return Err(failed(format!(
                "the agent did not finish pairing ({status})"
            )));
        }
        if let Some(listener) = self.listener.take() {
            end(listener);
        }
        self.show("agent", &["cea", "pairing-status"], 0)?;
        Ok(())
    }

    fn start_agent(&mut self) -> Result<(), AppError> {
        let serve = ["cea", "serve"];
        say!("agent$ {} &", self.typed("agent", &serve));
        let log = fs::File::create(self.dir.join("agent.log")).map_err(failed)?;
        let log_too = log.try_clone().map_err(failed)?;
        self.agent = Some(self.spawn("agent", &serve, log.into(), log_too.into())?);
        wait_for("the agent", || {
            if let Some(agent) = &mut self.agent
                && let Some(status) = agent.try_wait().map_err(failed)?
            {
                let log = fs::read_to_string(self.dir.join("agent.log")).unwrap_or_default();
                return Err(failed(format!("the agent ended ({status}):\n{log}")));
            }
            let log = fs::read_to_string(self.dir.join("agent.log")).unwrap_or_default();
            Ok(log.contains("ACTION=start").then_some(()))
        })
    }

    /// The command as a person would type it.
    fn typed(&self, host: &str, words: &[&str]) -> String {
        let mut text = format!("CTRL_EXEC_ROOT={}", self.root(host).display());
        if host == "agent" {
            text.push_str(&format!(" CTRL_EXEC_HOSTNAME={AGENT}"));
        }
        for word in words {
            let plain = word
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"-_./:".contains(&b));
            text.push(' ');
            text.push_str(&if plain {
                (*word).to_owned()
            } else {
                format!("'{}'", word.replace('\'', "'\\''"))
            });
        }
        text
    }

    fn command(&self, host: &str, words: &[&str]) -> Command {
        let mut command = Command::new(self.dir.join("bin").join(words[0]));
        command
            .args(&words[1..])
            .env_clear()
            .env("PATH", &self.path_variable)
            .env("CTRL_EXEC_ROOT", self.root(host))
            .env(
                "CTRL_EXEC_LOG",
                if words[1] == "serve" { "stdout" } else { "" },
            );
        if host == "agent" {
            command.env("CTRL_EXEC_HOSTNAME", AGENT);
        }
        command
    }

    fn spawn(
        &self,
        host: &str,
        words: &[&str],
        stdout: Stdio,
        stderr: Stdio,
    ) -> Result<Child, AppError> {
        self.command(host, words)
            .stdin(Stdio::null())
            .stdout(stdout)
            .stderr(stderr)
            .spawn()
            .map_err(|e| failed(format!("cannot start {}: {e}", words[0])))
    }

    /// Runs to the end.
    fn run(&self, host: &str, words: &[&str]) -> Result<Ran, AppError> {
        let output = self
            .command(host, words)
            .stdin(Stdio::null())
            .output()
            .map_err(|e| failed(format!("cannot start {}: {e}", words[0])))?;
        // With no syslog daemon below the prefix, action lines come to stderr; they belong to the log, not to the show.
        let stderr: String = String::from_utf8_lossy(&output.stderr)
            .lines()
            .filter(|line| !line.contains(": ACTION="))
            .map(|line| format!("{line}\n"))
            .collect();
        Ok(Ran {
            status: output.status.code(),
            said: [output.stdout.clone(), stderr.into_bytes()].concat(),
            stdout: output.stdout,
        })
    }

    /// Prints the command, runs it, prints what it said, and insists on its exit status.
    fn show(&self, host: &str, words: &[&str], expected: i32) -> Result<Vec<u8>, AppError> {
        say!("{host}$ {}", self.typed(host, words));
        let Ran { status, said, .. } = self.run(host, words)?;
        stdout_bytes(&said);
        if status == Some(expected) {
            if expected != 0 {
                say!("# refused or failed, as it should: exit status {expected}");
            }
            return Ok(said);
        }
        Err(failed(format!(
            "'{}' ended with {status:?}, expected {expected}",
            words.join(" ")
        )))
    }

    fn print_file(&self, host: &str, file: &str) -> Result<(), AppError> {
        let path = self.root(host).join(file);
        say!("{host}$ cat {}", path.display());
        stdout_bytes(&fs::read(&path).map_err(failed)?);
        Ok(())
    }

    fn finish(&mut self) {
        headline("Done");
        if !self.keep {
            say!("# Everything is removed again. To play with it: ctrl-exec demo --keep");
            return;
        }
        let pid = self.agent.as_ref().map_or(0, Child::id);
        let executor = self.executor.as_ref().map_or(0, Child::id);
        say!("# The agent (pid {pid}) keeps running. Try:");
        say!("# The executor (pid {executor}) too.");
        say!("export PATH={}:$PATH", self.dir.join("bin").display());
        say!(
            "{}",
            self.typed("dispatcher", &["ced", "run", AGENT, "greet", "--", "you"])
        );
        say!(
            "# Their logs: {0}/agent.log, {0}/executor.log",
            self.dir.display()
        );
        say!(
            "# To end it: kill {pid} {executor} && rm -r {}",
            self.dir.display()
        );
    }
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Whether every directory down to this one belongs to root and can be written by root alone.
fn only_root_can_change(dir: &Path) -> bool {
    dir.ancestors().all(|dir| {
        fs::metadata(dir)
            .is_ok_and(|meta| meta.uid() == 0 && meta.permissions().mode() & 0o022 == 0)
    })
}

fn headline(text: &str) {
    say!("\n## {text}");
}

/// A port that is free now; taken again a moment later, which is good enough on one's own loopback.
fn free_port() -> Result<u16, AppError> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|l| l.local_addr())
        .map(|a| a.port())
        .map_err(failed)
}

fn wait_for<T>(
    what: &str,
    mut ready: impl FnMut() -> Result<Option<T>, AppError>,
) -> Result<T, AppError> {
    let start = Instant::now();
    while start.elapsed() < PATIENCE {
        if let Some(value) = ready()? {
            return Ok(value);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Err(failed(format!(
        "{what} did not come within {} s",
        PATIENCE.as_secs()
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_that_never_comes_is_named() {
        let mut tries = 0;
        let got = wait_for("x", || {
            tries += 1;
            Ok((tries == 3).then_some(7))
        });
        assert_eq!(got.ok(), Some(7));
        let error = wait_for::<()>("x", || Err(failed("broken"))).unwrap_err();
        assert_eq!(error.message(), Some("demo: broken"));
    }

    #[test]
    fn the_sample_scripts_are_scripts() {
        for text in [GREET, UPTIME, FAIL] {
            assert!(text.starts_with("#!/bin/sh\n"));
        }
        assert!(PathBuf::from("/bin/sh").exists());
    }
}
