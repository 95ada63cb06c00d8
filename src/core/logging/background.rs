//! Lines written by a thread of their own: a server that answers everybody on one thread waits for no syslog daemon.

use std::fmt::Write as _;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::is_ours;
use super::syslog::Logger;

/// Lines that wait to be written; who logs more waits.
const QUEUE: usize = 1024;
const FLUSH_PATIENCE: Duration = Duration::from_secs(1);
/// Lines are gathered for so long: waking a thread for each of them costs more than writing it.
const GATHER: Duration = Duration::from_millis(1);

/// Hands lines over.
pub(super) struct Background(Arc<Shared>);

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    /// There is a line, or nobody will log any more.
    wake: Condvar,
    /// There is room again, and what was there before is written.
    written: Condvar,
}

#[derive(Default)]
struct Queue {
    lines: Lines,
    /// The writer sleeps until it is woken.
    is_asleep: bool,
    /// Numbers since the start: lines handed over, and lines written.
    taken: u64,
    written: u64,
    is_over: bool,
}

/// Lines one behind the other in one text: they are handed over without an allocation for each.
#[derive(Default)]
struct Lines {
    text: String,
    /// How urgent each is and where it ends.
    ends: Vec<(log::Level, usize)>,
}

impl Lines {
    fn iter(&self) -> impl Iterator<Item = (log::Level, &str)> {
        let mut start = 0;
        self.ends.iter().map(move |&(level, end)| {
            let line = self.text.get(start..end).unwrap_or_default();
            start = end;
            (level, line)
        })
    }

    fn clear(&mut self) {
        self.text.clear();
        self.ends.clear();
        // A burst of long lines must not keep its room for ever.
        self.text.shrink_to(16 * 1024);
    }
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_all(&self, logger: &Logger) {
        let mut taken = Lines::default();
        loop {
            let mut queue = self.queue();
            while queue.lines.ends.is_empty() {
                if queue.is_over {
                    return;
                }
                queue.is_asleep = true;
                queue = self
                    .wake
                    .wait(queue)
                    .unwrap_or_else(PoisonError::into_inner);
            }
            queue.is_asleep = false;
            drop(queue);
            std::thread::sleep(GATHER);
            std::mem::swap(&mut taken, &mut self.queue().lines);
            let count = taken.ends.len();
            logger.write_all(taken.iter());
            taken.clear();
            self.queue().written += count as u64;
            self.written.notify_all();
        }
    }
}

impl Background {
    /// # Errors
    /// There is no thread to be had.
    pub(super) fn start(logger: Logger) -> std::io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let writers = shared.clone();
        std::thread::Builder::new()
            .name("log".to_owned())
            .spawn(move || writers.write_all(&logger))?;
        Ok(Self(shared))
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.0.queue().is_over = true;
        self.0.wake.notify_one();
    }
}

impl log::Log for Background {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        is_ours(metadata)
    }

    fn log(&self, record: &log::Record<'_>) {
        if !is_ours(record.metadata()) {
            return;
        }
        let mut queue = self.0.queue();
        // The writer gives up a daemon that takes nothing, so there will be room.
        while queue.lines.ends.len() >= QUEUE {
            queue = self
                .0
                .written
                .wait(queue)
                .unwrap_or_else(PoisonError::into_inner);
        }
        // Only a value that cannot be shown fails, and the rest of its line is left out.
        let _ = write!(queue.lines.text, "{}", record.args());
        let end = queue.lines.text.len();
        queue.lines.ends.push((record.level(), end));
        queue.taken += 1;
        if std::mem::take(&mut queue.is_asleep) {
            self.0.wake.notify_one();
        }
    }

    fn flush(&self) {
        let queue = self.0.queue();
        let wanted = queue.taken;
        let _ = self
            .0
            .written
            .wait_timeout_while(queue, FLUSH_PATIENCE, |queue| queue.written < wanted);
    }
}

#[cfg(test)]
mod tests {
    use super::super::Sink;
    use super::*;
    use std::os::unix::net::UnixDatagram;

    #[test]
    fn lines_written_in_the_background_keep_their_order_and_are_there_after_a_flush() {
        use log::Log as _;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let daemon = UnixDatagram::bind(&path).unwrap();
        let background = Background::start(Logger::new("t", Sink::Syslog(path))).unwrap();
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
    }
}
