//! The local syslog socket (RFC 3164), or one of the standard streams in its place.

use std::fmt::Write as _;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ::syslog::{Facility, Severity};

use super::{Sink, is_ours};
use crate::core::clock;
use crate::core::sys::datagrams;

/// Writes each line at once, to wherever lines go.
pub(super) struct Logger {
    ident: &'static str,
    sink: Sink,
    syslog: Mutex<SyslogState>,
}

impl Logger {
    pub(super) fn new(ident: &'static str, sink: Sink) -> Self {
        Self {
            ident,
            sink,
            syslog: Mutex::default(),
        }
    }

    pub(super) fn write(&self, level: log::Level, line: &str) {
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

impl Logger {
    /// Writes lines at once, with as few calls as possible.
    pub(super) fn write_all<'a>(&self, lines: impl Iterator<Item = (log::Level, &'a str)>) {
        let Sink::Syslog(path) = &self.sink else {
            return lines.for_each(|(level, line)| self.write(level, line));
        };
        let mut state = self.syslog.lock().unwrap_or_else(|e| e.into_inner());
        let mut waiting = Vec::with_capacity(BATCH);
        for line in lines {
            waiting.push(line);
            if waiting.len() == BATCH {
                self.write_some(&mut state, path, &mut waiting);
            }
        }
        self.write_some(&mut state, path, &mut waiting);
    }

    fn write_some(
        &self,
        state: &mut SyslogState,
        path: &Path,
        lines: &mut Vec<(log::Level, &str)>,
    ) {
        let sent = state.send_at_once(self.ident, lines);
        // What was not taken has the patience and the second attempt of a single line.
        for (level, line) in lines.drain(..).skip(sent) {
            if !state.send(path, self.ident, level, line) {
                crate::core::terminal::stderr_line(&format!("{}: {line}", self.ident));
            }
        }
    }
}

/// Lines that are sent with one call.
const BATCH: usize = 32;

/// A socket is opened anew after an error, at most once a second, and what was lost in between is counted and told.
#[derive(Default)]
struct SyslogState {
    socket: Option<UnixDatagram>,
    last_attempt: Option<Instant>,
    dropped: u64,
    head: Head,
    /// Kept for its room.
    datagram: String,
}

/// What every line of one second, urgency and process begins with. Making it costs more than everything else about a line, and a server writes
/// several lines for each request.
#[derive(Default)]
struct Head {
    made_for: Option<(Moment, log::Level)>,
    text: String,
}

/// When a line is written, and by which process.
#[derive(Clone, Copy, Eq, PartialEq)]
struct Moment {
    second: u64,
    pid: u32,
}

impl Moment {
    /// `None`: it cannot be told what time it is.
    fn now() -> Option<Self> {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
        Some(Self {
            second: since.as_secs(),
            // The executor forks: a child has another number than the one that has made the head.
            pid: std::process::id(),
        })
    }
}

const MONTHS: [&str; 12] = [
    "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
];

impl Head {
    /// The time is UTC; the daemon that takes the line knows its own. `None`: that time is in no calendar.
    fn of(&mut self, ident: &str, level: log::Level, moment: Moment) -> Option<&str> {
        let Moment { second, pid } = moment;
        let wanted = Some((moment, level));
        if self.made_for != wanted {
            let severity = match level {
                log::Level::Error => Severity::LOG_ERR,
                log::Level::Warn => Severity::LOG_WARNING,
                _ => Severity::LOG_INFO,
            };
            let priority = Facility::LOG_DAEMON as u8 | severity as u8;
            let now = clock::calendar(i64::try_from(second).ok()?);
            let month = MONTHS.get(usize::from(u8::from(now.month())) - 1)?;
            let (day, (hour, minute, second)) = (now.day(), now.to_hms());
            self.text.clear();
            write!(
                self.text,
                "<{priority}>{month} {day:>2} {hour:02}:{minute:02}:{second:02} {ident}[{pid}]: "
            )
            .ok()?;
            self.made_for = wanted;
        }
        Some(&self.text)
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
    fn send(&mut self, path: &Path, ident: &str, level: log::Level, line: &str) -> bool {
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

    /// Number of lines, from the first, that the daemon has taken.
    fn send_at_once(&mut self, ident: &str, lines: &[(log::Level, &str)]) -> usize {
        let (Some(socket), Some(now)) = (&self.socket, Moment::now()) else {
            return 0;
        };
        self.datagram.clear();
        let mut pieces = Vec::with_capacity(lines.len());
        for (level, line) in lines {
            let Some(head) = self.head.of(ident, *level, now) else {
                return 0;
            };
            let start = self.datagram.len();
            self.datagram.push_str(head);
            self.datagram.push_str(line);
            pieces.push(start..self.datagram.len());
        }
        datagrams::send(socket, self.datagram.as_bytes(), &pieces).unwrap_or(0)
    }

    fn send_once(&mut self, ident: &str, level: log::Level, line: &str) -> bool {
        let head = Moment::now().and_then(|now| self.head.of(ident, level, now));
        let (Some(socket), Some(head)) = (&self.socket, head) else {
            return false;
        };
        self.datagram.clear();
        self.datagram.push_str(head);
        self.datagram.push_str(line);
        socket.send(self.datagram.as_bytes()).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let now = Moment::now().unwrap();
        let mut of = |level| head.of("t", level, now).unwrap().to_owned();
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
        head.text = "old".to_owned();
        head.made_for = Some((now, log::Level::Info));
        assert_eq!(head.of("t", log::Level::Info, now), Some("old"));
        let then = Moment { second: 1, ..now };
        let said = head.of("t", log::Level::Info, then).unwrap();
        assert!(said.starts_with("<30>Jan  1 00:00:01 t["), "{said}");
    }
}
