//! Running programs with a deadline, and keeping daemons in the background with their output.

use std::io::Read;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::{PATIENCE, RUN_DEADLINE};

/// What a program ended as.
#[derive(Debug)]
pub struct Run {
    pub status: ExitStatus,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    pub took: Duration,
    words: String,
}

impl Run {
    /// Exit code; a death by signal is -1.
    pub fn code(&self) -> i32 {
        self.status.code().unwrap_or(-1)
    }

    pub fn out(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    pub fn err(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    /// Fails the test unless the program ended with this code.
    #[track_caller]
    pub fn expect_code(self, code: i32) -> Self {
        assert!(
            self.status.code() == Some(code),
            "'{}' ended with {} (signal {:?}), expected {code}\n--- stdout\n{}\n--- stderr\n{}",
            self.words,
            self.code(),
            self.status.signal(),
            self.out(),
            self.err()
        );
        // Whatever happens, the user never sees a Rust panic.
        assert!(
            !self.err().contains("panicked at"),
            "'{}' panicked: {}",
            self.words,
            self.err()
        );
        self
    }

    #[track_caller]
    pub fn ok(self) -> Self {
        self.expect_code(0)
    }

    /// The only line of stdout as JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.stdout).unwrap_or_else(|e| {
            panic!(
                "'{}' printed no JSON ({e}): {}\n{}",
                self.words,
                self.out(),
                self.err()
            )
        })
    }

    /// Fails unless stderr holds the text.
    #[track_caller]
    pub fn err_has(self, text: &str) -> Self {
        assert!(
            self.err().contains(text),
            "'{}': stderr lacks {text:?}:\n{}",
            self.words,
            self.err()
        );
        self
    }

    /// Fails unless stdout holds the text.
    #[track_caller]
    pub fn out_has(self, text: &str) -> Self {
        assert!(
            self.out().contains(text),
            "'{}': stdout lacks {text:?}:\n{}",
            self.words,
            self.out()
        );
        self
    }
}

/// Runs a command to its end. Fails the test when it, or anything that still holds its output, is not done within a minute.
#[track_caller]
pub fn run(command: &mut Command) -> Run {
    run_with_input(command, b"")
}

/// The same with bytes on stdin.
#[track_caller]
pub fn run_with_input(command: &mut Command, input: &[u8]) -> Run {
    let words = words(command);
    let start = Instant::now();
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command.stdin(if input.is_empty() {
        Stdio::null()
    } else {
        Stdio::piped()
    });
    let mut child = command
        .spawn()
        .unwrap_or_else(|e| panic!("cannot start '{words}': {e}"));
    if let Some(mut stdin) = child.stdin.take() {
        use std::io::Write as _;
        // The program may end without reading all of it.
        let _ = stdin.write_all(input);
    }
    let stdout = collect(child.stdout.take().unwrap());
    let stderr = collect(child.stderr.take().unwrap());
    let Some(status) = wait(&mut child, RUN_DEADLINE) else {
        let _ = child.kill();
        let _ = child.wait();
        panic!(
            "'{words}' did not end within {RUN_DEADLINE:?}; stderr: {:?}",
            stderr
                .recv_timeout(PATIENCE)
                .map(|b| String::from_utf8_lossy(&b).into_owned())
        );
    };
    let took = start.elapsed();
    let output = |from: Receiver<Vec<u8>>, name: &str| {
        from.recv_timeout(PATIENCE).unwrap_or_else(|_| {
            panic!("'{words}' ended, but something still holds its {name} open")
        })
    };
    Run {
        status,
        stdout: output(stdout, "stdout"),
        stderr: output(stderr, "stderr"),
        took,
        words,
    }
}

fn words(command: &Command) -> String {
    let mut text = command
        .get_program()
        .to_string_lossy()
        .rsplit('/')
        .next()
        .unwrap_or_default()
        .to_owned();
    for arg in command.get_args() {
        let arg = arg.to_string_lossy();
        text.push(' ');
        text.extend(arg.chars().take(60));
    }
    text
}

fn collect(mut from: impl Read + Send + 'static) -> Receiver<Vec<u8>> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = from.read_to_end(&mut bytes);
        let _ = sender.send(bytes);
    });
    receiver
}

fn wait(child: &mut Child, deadline: Duration) -> Option<ExitStatus> {
    let end = Instant::now() + deadline;
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return Some(status);
        }
        if Instant::now() >= end {
            return None;
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

/// A program in the background; killed when dropped.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    stdout: Arc<Mutex<Vec<u8>>>,
    stderr: Arc<Mutex<Vec<u8>>>,
    words: String,
}

impl Daemon {
    /// Starts the command with stdin as it was set up (default: empty).
    #[track_caller]
    pub fn start(command: &mut Command) -> Self {
        let words = words(command);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command
            .spawn()
            .unwrap_or_else(|e| panic!("cannot start '{words}': {e}"));
        let stdout = stream(child.stdout.take().unwrap());
        let stderr = stream(child.stderr.take().unwrap());
        Self {
            child,
            stdout,
            stderr,
            words,
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn out(&self) -> String {
        String::from_utf8_lossy(&self.stdout.lock().unwrap()).into_owned()
    }

    pub fn err(&self) -> String {
        String::from_utf8_lossy(&self.stderr.lock().unwrap()).into_owned()
    }

    /// The pipe to its stdin, if the command was given one.
    pub fn stdin(&mut self) -> &mut std::process::ChildStdin {
        self.child
            .stdin
            .as_mut()
            .expect("the command was given a pipe")
    }

    /// Types a line.
    pub fn type_line(&mut self, line: &str) {
        use std::io::Write as _;
        self.stdin()
            .write_all(format!("{line}\n").as_bytes())
            .unwrap();
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).unwrap();
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Waits until stdout and stderr together hold the text.
    #[track_caller]
    pub fn wait_for_text(&mut self, text: &str) {
        let words = self.words.clone();
        let end = Instant::now() + PATIENCE;
        loop {
            if self.out().contains(text) || self.err().contains(text) {
                return;
            }
            let over = !self.is_running() || Instant::now() >= end;
            // Once more: what it wrote last may have come after the look above.
            std::thread::sleep(Duration::from_millis(15));
            if over && !self.out().contains(text) && !self.err().contains(text) {
                panic!(
                    "'{words}' never said {text:?}\n--- stdout\n{}\n--- stderr\n{}",
                    self.out(),
                    self.err()
                );
            }
        }
    }

    /// Waits for the end of the program.
    #[track_caller]
    pub fn wait(&mut self, deadline: Duration) -> ExitStatus {
        match wait(&mut self.child, deadline) {
            Some(status) => {
                // The readers see the end of the pipes a moment later.
                std::thread::sleep(Duration::from_millis(30));
                status
            }
            None => panic!(
                "'{}' did not end within {deadline:?}\n{}{}",
                self.words,
                self.out(),
                self.err()
            ),
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            println!(
                "--- '{}' stdout\n{}\n--- stderr\n{}",
                self.words,
                self.out(),
                self.err()
            );
        }
    }
}

fn stream(mut from: impl Read + Send + 'static) -> Arc<Mutex<Vec<u8>>> {
    let kept = Arc::new(Mutex::new(Vec::new()));
    let sink = kept.clone();
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        loop {
            match from.read(&mut buffer) {
                Ok(n @ 1..) => sink.lock().unwrap().extend_from_slice(&buffer[..n]),
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Ok(0) | Err(_) => break,
            }
        }
    });
    kept
}
