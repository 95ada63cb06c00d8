//! Structured action lines (spec/operations.md 11): `ACTION=name`, then the other keys in ascending order.
//!
//! A value that is plain (no blanks, quotes, backslashes or control characters) stands as it is. Any other value is put in double
//! quotes and escaped, so that no value can forge a key or a line: that is the one deviation from the original's format.

use std::fmt::{Display, Write as _};
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How urgent a line is; the names of the original.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Priority {
    Info,
    Warning,
    Err,
}

impl Priority {
    fn level(self) -> log::Level {
        match self {
            Self::Info => log::Level::Info,
            Self::Warning => log::Level::Warn,
            Self::Err => log::Level::Error,
        }
    }
}

/// One line in the making. Nothing is written before [`Action::info`], [`Action::warning`] or [`Action::err`].
#[derive(Clone, Debug)]
#[must_use = "an action line is written by .info(), .warning() or .err()"]
pub struct Action {
    name: &'static str,
    /// Sorted by key, each key once.
    fields: Vec<(&'static str, String)>,
}

/// Longest value that is written; the rest is replaced by `...` (a line stays below what syslog daemons take).
const MAX_VALUE: usize = 480;

impl Action {
    pub fn new(name: &'static str) -> Self {
        Self {
            name,
            fields: Vec::new(),
        }
    }

    /// Adds `KEY=value`. Keys are upper-case words.
    pub fn field(mut self, key: &'static str, value: impl Display) -> Self {
        debug_assert!(key.bytes().all(|b| b.is_ascii_uppercase() || b == b'_'));
        let value = value.to_string();
        match self.fields.binary_search_by_key(&key, |(key, _)| key) {
            Ok(at) => self.fields[at].1 = value,
            Err(at) => self.fields.insert(at, (key, value)),
        }
        self
    }

    pub fn info(self) {
        self.emit(Priority::Info);
    }

    pub fn warning(self) {
        self.emit(Priority::Warning);
    }

    pub fn err(self) {
        self.emit(Priority::Err);
    }

    pub fn emit(self, priority: Priority) {
        log::log!(target: "action", priority.level(), "{}", self.render());
    }

    /// The line as it is written, without program name and priority.
    pub fn render(&self) -> String {
        let mut line = String::with_capacity(256);
        line.push_str("ACTION=");
        escape(self.name, &mut line);
        for (key, value) in &self.fields {
            line.push(' ');
            line.push_str(key);
            line.push('=');
            escape(value, &mut line);
        }
        line
    }
}

fn escape(value: &str, out: &mut String) {
    // Besides control characters: what reorders or hides text (bidirectional overrides, zero-width characters, line separators).
    let visible = |c: char| matches!(c, '"' | '\'' | '\\' | ' ') || c.escape_debug().len() == 1;
    let plain = |c: char| {
        // Nearly everything is ASCII, and that is told without tables.
        let shown = match c.is_ascii() {
            true => c.is_ascii_graphic(),
            false => !c.is_whitespace() && visible(c),
        };
        shown && c != '"' && c != '\\'
    };
    if value.len() <= MAX_VALUE && value.chars().all(plain) {
        return out.push_str(value);
    }
    out.push('"');
    for (at, c) in value.char_indices() {
        if at >= MAX_VALUE {
            out.push_str("...");
            break;
        }
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if !visible(c) => {
                let _ = write!(out, "\\u{{{:x}}}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

/// Where lines go.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Sink {
    /// The local syslog socket, with stderr as the fallback.
    Syslog(PathBuf),
    /// One line on stdout (`CTRL_EXEC_LOG=stdout`, for containers).
    Stdout,
    /// One line on stderr (`CTRL_EXEC_LOG=stderr`).
    Stderr,
}

impl Sink {
    /// Reads the value of `CTRL_EXEC_LOG`; anything but the two words means the syslog socket at `socket`.
    pub fn from_word(word: Option<&str>, socket: PathBuf) -> Self {
        match word {
            Some("stdout") => Self::Stdout,
            Some("stderr") => Self::Stderr,
            _ => Self::Syslog(socket),
        }
    }
}

/// Program name on every line: `ctrl-exec-agent`, `ctrl-exec-dispatcher` or `ctrl-exec-api`.
pub fn init(ident: &'static str, sink: Sink) {
    install(Box::new(Logger::new(ident, sink)));
}

/// The same for a server that answers everybody on one thread: lines are written by another one, so that a syslog daemon that takes its time
/// holds up nobody. Whoever ends calls [`flush`].
///
/// # Errors
/// There is no thread to be had; then nothing is installed.
pub fn init_in_background(ident: &'static str, sink: Sink) -> std::io::Result<()> {
    let (queue, lines) = sync_channel(QUEUE);
    let logger = Logger::new(ident, sink);
    std::thread::Builder::new()
        .name("log".to_owned())
        .spawn(move || write_lines(&logger, &lines))?;
    install(Box::new(Background(queue)));
    Ok(())
}

/// Waits until all lines are written that were logged so far, but no longer than a second.
pub fn flush() {
    log::logger().flush();
}

fn install(logger: Box<dyn log::Log>) {
    // A second call in one process (tests) keeps the first logger.
    if log::set_boxed_logger(logger).is_ok() {
        log::set_max_level(log::LevelFilter::Info);
    }
}

/// Lines that wait to be written; who logs more waits.
const QUEUE: usize = 1024;
const FLUSH_PATIENCE: Duration = Duration::from_secs(1);

enum Job {
    Line(log::Level, String),
    /// All before it is written.
    Mark(SyncSender<()>),
}

/// Lines are gathered for so long: waking a thread for each of them costs more than writing it.
const GATHER: Duration = Duration::from_millis(1);

fn write_lines(logger: &Logger, jobs: &Receiver<Job>) {
    let take = |job| match job {
        Job::Line(level, line) => logger.write(level, &line),
        Job::Mark(reached) => {
            let _ = reached.send(());
        }
    };
    while let Ok(job) = jobs.recv() {
        std::thread::sleep(GATHER);
        take(job);
        jobs.try_iter().for_each(take);
    }
}

/// Hands lines over.
struct Background(SyncSender<Job>);

impl log::Log for Background {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        is_ours(metadata)
    }

    fn log(&self, record: &log::Record<'_>) {
        if is_ours(record.metadata()) {
            // The writer lives as long as the process.
            let _ = self
                .0
                .send(Job::Line(record.level(), record.args().to_string()));
        }
    }

    fn flush(&self) {
        let (mark, reached) = sync_channel(1);
        if self.0.send(Job::Mark(mark)).is_ok() {
            let _ = reached.recv_timeout(FLUSH_PATIENCE);
        }
    }
}

/// Libraries (rustls, hyper) may log through the same façade; only our own lines belong to the audit trail.
fn is_ours(metadata: &log::Metadata<'_>) -> bool {
    metadata.target() == "action"
}

struct Logger {
    ident: &'static str,
    sink: Sink,
    syslog: Mutex<SyslogState>,
}

impl Logger {
    fn new(ident: &'static str, sink: Sink) -> Self {
        Self {
            ident,
            sink,
            syslog: Mutex::default(),
        }
    }

    fn write(&self, level: log::Level, line: &str) {
        match &self.sink {
            Sink::Stdout => {
                crate::core::terminal::stdout_line(&format!("{}: {line}", self.ident));
            }
            Sink::Stderr => {
                crate::core::terminal::stderr_line(&format!("{}: {line}", self.ident));
            }
            Sink::Syslog(path) => {
                let mut state = self.syslog.lock().unwrap_or_else(|e| e.into_inner());
                if !state.send(path, self.ident, level, line) {
                    crate::core::terminal::stderr_line(&format!("{}: {line}", self.ident));
                }
            }
        }
    }
}

/// A socket is opened anew after an error, at most once a second, and what was lost in between is counted and told.
#[derive(Default)]
struct SyslogState {
    socket: Option<UnixDatagram>,
    last_attempt: Option<Instant>,
    dropped: u64,
    head: Head,
}

/// What every line of one second, urgency and process begins with. Making it costs more than everything else about a line, and a server writes
/// several lines for each request.
#[derive(Default)]
struct Head {
    made_for: Option<(u64, log::Level, u32)>,
    bytes: Vec<u8>,
}

impl Head {
    /// `None`: it cannot be told what time it is.
    fn of(&mut self, ident: &str, level: log::Level) -> Option<&[u8]> {
        use syslog::LogFormat as _;
        // The executor forks: a child has another number than the one that has made the head.
        let pid = std::process::id();
        let second = SystemTime::now().duration_since(UNIX_EPOCH).ok()?.as_secs();
        let wanted = Some((second, level, pid));
        if self.made_for != wanted {
            let formatter = syslog::Formatter3164 {
                facility: syslog::Facility::LOG_DAEMON,
                hostname: None,
                process: ident.to_owned(),
                pid,
            };
            let severity = match level {
                log::Level::Error => syslog::Severity::LOG_ERR,
                log::Level::Warn => syslog::Severity::LOG_WARNING,
                _ => syslog::Severity::LOG_INFO,
            };
            self.made_for = None;
            self.bytes.clear();
            formatter.format(&mut self.bytes, severity, "").ok()?;
            self.made_for = wanted;
        }
        Some(&self.bytes)
    }
}

const RECONNECT_PAUSE: Duration = Duration::from_secs(1);
/// Longest wait for a syslog daemon that takes no lines; everything else on this thread waits as long.
const WRITE_PATIENCE: Duration = Duration::from_millis(200);

impl log::Log for Logger {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        is_ours(metadata)
    }

    fn log(&self, record: &log::Record<'_>) {
        if is_ours(record.metadata()) {
            self.write(record.level(), &record.args().to_string());
        }
    }

    fn flush(&self) {}
}

impl SyslogState {
    fn send(&mut self, path: &std::path::Path, ident: &str, level: log::Level, line: &str) -> bool {
        for _ in 0..2 {
            let fresh = self.socket.is_none();
            if fresh {
                if self
                    .last_attempt
                    .is_some_and(|at| at.elapsed() < RECONNECT_PAUSE)
                {
                    break;
                }
                self.last_attempt = Some(Instant::now());
                self.socket = UnixDatagram::unbound()
                    .and_then(|s| {
                        s.connect(path)?;
                        s.set_write_timeout(Some(WRITE_PATIENCE))?;
                        Ok(s)
                    })
                    .ok();
                if self.socket.is_some() && self.dropped > 0 {
                    let lost = std::mem::take(&mut self.dropped);
                    let note = format!("ACTION=log-lost COUNT={lost}");
                    let _ = self.send_once(ident, log::Level::Warn, &note);
                }
            }
            if self.socket.is_some() {
                if self.send_once(ident, level, line) {
                    return true;
                }
                self.socket = None;
                // An old socket is replaced at once. A daemon that does not take a line from a new one either must not hold up every line.
                if !fresh {
                    self.last_attempt = None;
                }
            }
        }
        self.dropped += 1;
        false
    }

    fn send_once(&mut self, ident: &str, level: log::Level, line: &str) -> bool {
        let (Some(socket), Some(head)) = (&self.socket, self.head.of(ident, level)) else {
            return false;
        };
        socket.send(&[head, line.as_bytes()].concat()).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn action_stands_first_and_the_other_keys_are_sorted() {
        let line = Action::new("run")
            .field("SCRIPT", "check-disk")
            .field("EXIT", 0)
            .field("PEER", "10.0.0.1")
            .render();
        assert_eq!(line, "ACTION=run EXIT=0 PEER=10.0.0.1 SCRIPT=check-disk");
    }

    #[test]
    fn a_value_cannot_forge_a_key_or_a_line() {
        let line = Action::new("deny")
            .field("SCRIPT", "x\" ACTION=run\nACTION=run EXIT=0")
            .render();
        assert_eq!(
            line,
            "ACTION=deny SCRIPT=\"x\\\" ACTION=run\\nACTION=run EXIT=0\""
        );
        assert_eq!(Action::new("a").field("K", "").render(), "ACTION=a K=");
        let line = Action::new("a")
            .field("K", "it's\u{202e}\u{200b}ü")
            .render();
        assert_eq!(line, "ACTION=a K=\"it's\\u{202e}\\u{200b}ü\"");
    }

    #[test]
    fn lines_written_in_the_background_keep_their_order_and_are_there_after_a_flush() {
        use log::Log as _;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let daemon = UnixDatagram::bind(&path).unwrap();
        let (queue, lines) = sync_channel(4);
        let logger = Logger::new("t", Sink::Syslog(path));
        let writer = std::thread::spawn(move || write_lines(&logger, &lines));
        let background = Background(queue);
        for n in 0..9 {
            let text = format!("ACTION=line N={n}");
            for target in ["action", "rustls"] {
                background.log(
                    &log::Record::builder()
                        .level(log::Level::Info)
                        .target(target)
                        .args(format_args!("{text}"))
                        .build(),
                );
            }
        }
        background.flush();
        daemon.set_nonblocking(true).unwrap();
        let mut buffer = [0; 512];
        for n in 0..9 {
            let length = daemon.recv(&mut buffer).unwrap();
            assert!(buffer[..length].ends_with(format!("N={n}").as_bytes()));
        }
        assert!(daemon.recv(&mut buffer).is_err(), "a line of a library");
        drop(background);
        writer.join().unwrap();
    }

    #[test]
    fn lines_reach_the_socket_again_after_the_daemon_was_restarted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut state = SyslogState::default();
        let first = UnixDatagram::bind(&path).unwrap();
        assert!(state.send(&path, "t", log::Level::Info, "ACTION=one"));
        let mut buffer = [0; 512];
        let n = first.recv(&mut buffer).unwrap();
        let text = String::from_utf8_lossy(&buffer[..n]).into_owned();
        assert!(text.starts_with("<30>"), "{text}");
        assert!(text.ends_with(": ACTION=one"), "{text}");

        drop(first);
        std::fs::remove_file(&path).unwrap();
        assert!(!state.send(&path, "t", log::Level::Info, "ACTION=lost"));

        let second = UnixDatagram::bind(&path).unwrap();
        state.last_attempt = None;
        assert!(state.send(&path, "t", log::Level::Error, "ACTION=two"));
        let n = second.recv(&mut buffer).unwrap();
        let note = String::from_utf8_lossy(&buffer[..n]).into_owned();
        assert!(note.contains("ACTION=log-lost COUNT=1"), "{note}");
        let n = second.recv(&mut buffer).unwrap();
        assert!(String::from_utf8_lossy(&buffer[..n]).starts_with("<27>"));
    }

    #[test]
    fn the_head_of_a_line_tells_its_urgency_process_and_second() {
        let mut head = Head::default();
        let mut of = |level| String::from_utf8(head.of("t", level).unwrap().to_vec()).unwrap();
        let end = format!(" t[{}]: ", std::process::id());
        for (level, begin) in [
            (log::Level::Info, "<30>"),
            (log::Level::Info, "<30>"),
            (log::Level::Error, "<27>"),
            (log::Level::Warn, "<28>"),
        ] {
            let said = of(level);
            assert!(said.starts_with(begin) && said.ends_with(&end), "{said}");
        }
        head.made_for = Some((1, log::Level::Info, std::process::id()));
        head.bytes = b"old".to_vec();
        assert_ne!(head.of("t", log::Level::Info), Some(b"old".as_slice()));
    }

    proptest! {
        #[test]
        fn no_value_breaks_the_line(value in ".*") {
            let line = Action::new("a").field("K", &value).render();
            let splits = |c: char| c.is_control() || ['\u{2028}', '\u{2029}'].contains(&c);
            prop_assert!(!line.chars().any(splits));
            // Outside the quotes there is exactly one blank: the one before K.
            let mut outside = 0;
            let (mut quoted, mut escaped) = (false, false);
            for c in line.chars() {
                match c {
                    _ if escaped => escaped = false,
                    '\\' if quoted => escaped = true,
                    '"' => quoted = !quoted,
                    c if c.is_whitespace() && !quoted => outside += 1,
                    _ => {}
                }
            }
            prop_assert_eq!(outside, 1);
            prop_assert!(!quoted);
        }
    }
}
