//! The syslog socket of a host: a datagram socket at `<root>/dev/log` whose lines are kept.

use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

/// One line of the action log.
#[derive(Clone, Debug)]
pub struct LogLine {
    /// Facility and severity as one number: 30 = daemon.info, 28 = daemon.warning, 27 = daemon.err.
    pub priority: u8,
    pub ident: String,
    /// From `ACTION=` on.
    pub text: String,
}

pub const INFO: u8 = 30;
pub const WARNING: u8 = 28;
pub const ERR: u8 = 27;

impl LogLine {
    /// Value of `KEY=`, without its quotes.
    pub fn field(&self, key: &str) -> Option<String> {
        let at = if self.text.starts_with(&format!("{key}=")) {
            0
        } else {
            self.text.find(&format!(" {key}="))? + 1
        };
        let value = &self.text[at + key.len() + 1..];
        match value.strip_prefix('"') {
            Some(quoted) => {
                let mut out = String::new();
                let mut chars = quoted.chars();
                while let Some(c) = chars.next() {
                    match c {
                        '"' => break,
                        '\\' => out.extend(chars.next()),
                        c => out.push(c),
                    }
                }
                Some(out)
            }
            None => Some(value.split(' ').next().unwrap_or_default().to_owned()),
        }
    }

    pub fn action(&self) -> String {
        self.field("ACTION").unwrap_or_default()
    }
}

#[derive(Debug)]
pub struct Syslog {
    lines: Arc<Mutex<Vec<LogLine>>>,
    stop: Arc<AtomicBool>,
    reader: Option<JoinHandle<()>>,
}

impl Syslog {
    pub fn bind(path: &Path) -> Self {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let socket = UnixDatagram::bind(path)
            .unwrap_or_else(|e| panic!("cannot bind {}: {e}", path.display()));
        socket
            .set_read_timeout(Some(Duration::from_millis(100)))
            .unwrap();
        let lines = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let (sink, end) = (lines.clone(), stop.clone());
        let reader = std::thread::spawn(move || {
            let mut buffer = [0; 65_536];
            while !end.load(Ordering::Relaxed) {
                if let Ok(n) = socket.recv(&mut buffer) {
                    sink.lock()
                        .unwrap()
                        .push(parse(&String::from_utf8_lossy(&buffer[..n])));
                }
            }
        });
        Self {
            lines,
            stop,
            reader: Some(reader),
        }
    }

    pub fn lines(&self) -> Vec<LogLine> {
        self.lines.lock().unwrap().clone()
    }

    pub fn clear(&self) {
        self.lines.lock().unwrap().clear();
    }
}

impl Drop for Syslog {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

/// `<30>Nov 22 20:00:00 ident[123]: ACTION=...`; a line of another shape is a failure of the product.
fn parse(datagram: &str) -> LogLine {
    let parsed = (|| {
        let (priority, rest) = datagram.strip_prefix('<')?.split_once('>')?;
        let (head, text) = rest.split_once(": ")?;
        let ident = head.rsplit(' ').next()?.split('[').next()?;
        assert!(text.starts_with("ACTION="), "{datagram:?}");
        assert!(!text.chars().any(char::is_control), "{datagram:?}");
        Some(LogLine {
            priority: priority.parse().ok()?,
            ident: ident.to_owned(),
            text: text.to_owned(),
        })
    })();
    parsed.unwrap_or_else(|| LogLine {
        priority: 0,
        ident: "MALFORMED".to_owned(),
        text: datagram.to_owned(),
    })
}
