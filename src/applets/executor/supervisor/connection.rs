//! The client's side: one request in, one reply out, both with a deadline.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;

use super::course::after;

/// A client that does not take its reply is not waited for longer than this.
pub(super) const REPLY_PATIENCE: Duration = Duration::from_secs(30);
/// Grown by this much at once, so that a length alone costs nothing.
const STEP: usize = 64 * 1024;

/// Why there is no frame. Nothing is answered.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum NoFrame {
    /// Closed without a word.
    Silence,
    /// Closed, or too late, in the middle.
    Cut,
    /// Empty, or larger than allowed.
    Length,
}

impl NoFrame {
    /// REASON in the log.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Silence => "silence",
            Self::Cut => "cut-short",
            Self::Length => "length",
        }
    }
}

/// Reads a frame without its first four bytes, all of it within `patience`.
pub(super) fn read_frame(
    connection: BorrowedFd<'_>,
    patience: Duration,
    max: usize,
) -> Result<Vec<u8>, NoFrame> {
    let deadline = after(Instant::now(), patience);
    let mut head = Vec::new();
    if read_exactly(connection, &mut head, 4, deadline).is_none() {
        return Err(if head.is_empty() {
            NoFrame::Silence
        } else {
            NoFrame::Cut
        });
    }
    let total = head
        .try_into()
        .ok()
        .and_then(|head| usize::try_from(u32::from_be_bytes(head)).ok())
        .filter(|total| (1..=max).contains(total))
        .ok_or(NoFrame::Length)?;
    let mut body = Vec::new();
    read_exactly(connection, &mut body, total, deadline).ok_or(NoFrame::Cut)?;
    Ok(body)
}

fn read_exactly(
    connection: BorrowedFd<'_>,
    into: &mut Vec<u8>,
    total: usize,
    deadline: Instant,
) -> Option<()> {
    while into.len() < total {
        let have = into.len();
        into.resize(total.min(have + STEP), 0);
        let got = rustix::io::read(connection, &mut into[have..]);
        into.truncate(have + got.unwrap_or(0));
        match got {
            Ok(0) => return None,
            Ok(_) => {}
            Err(Errno::AGAIN) => ready(connection, PollFlags::IN, deadline)?,
            Err(Errno::INTR) => {}
            Err(_) => return None,
        }
        // A sender that always has one more byte does not get more time.
        if into.len() < total && Instant::now() >= deadline {
            return None;
        }
    }
    Some(())
}

/// Writes a reply. False when the client did not take all of it in time.
pub(super) fn write_reply(connection: BorrowedFd<'_>, reply: &[u8], patience: Duration) -> bool {
    let deadline = after(Instant::now(), patience);
    let mut rest = reply;
    while !rest.is_empty() {
        match rustix::io::write(connection, rest) {
            Ok(n) => rest = &rest[n..],
            Err(Errno::AGAIN) => {
                if ready(connection, PollFlags::OUT, deadline).is_none() {
                    return false;
                }
            }
            Err(Errno::INTR) => {}
            Err(_) => return false,
        }
    }
    true
}

fn ready(fd: BorrowedFd<'_>, what: PollFlags, deadline: Instant) -> Option<()> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return None;
        }
        match rustix::event::poll(&mut [PollFd::new(&fd, what)], Some(&timespec(left))) {
            Ok(1..) => return Some(()),
            Ok(0) | Err(Errno::INTR) => {}
            Err(_) => return None,
        }
    }
}

/// Whether the client has gone for good. One that has only said that it will send no more is still there.
pub(super) fn has_gone(fd: impl AsFd) -> bool {
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    let mut polled = [PollFd::new(&fd, PollFlags::empty())];
    rustix::event::poll(&mut polled, Some(&now)).is_ok()
        && polled[0].revents().contains(PollFlags::HUP)
}

pub(super) fn timespec(wait: Duration) -> Timespec {
    // How wide its fields are depends on the machine. What does not fit is for ever.
    Timespec::try_from(wait).unwrap_or(Timespec {
        tv_sec: i64::MAX,
        tv_nsec: 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read as _, Write as _};
    use std::os::unix::net::UnixStream;

    const PATIENCE: Duration = Duration::from_millis(200);

    fn pair() -> (UnixStream, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        (ours, theirs)
    }

    fn sent(bytes: &[u8], close: bool) -> Result<Vec<u8>, NoFrame> {
        let (ours, mut theirs) = pair();
        theirs.write_all(bytes).unwrap();
        if close {
            theirs.shutdown(std::net::Shutdown::Write).unwrap();
        }
        read_frame(ours.as_fd(), PATIENCE, 100)
    }

    #[test]
    fn a_frame_is_read_and_what_is_none_is_not() {
        assert_eq!(sent(b"\0\0\0\x03abc", false).unwrap(), b"abc");
        assert_eq!(sent(b"\0\0\0\x03abcd", true).unwrap(), b"abc");
        for (none, why) in [
            (&b""[..], NoFrame::Silence),
            (b"\0\0", NoFrame::Cut),
            (b"\0\0\0\0", NoFrame::Length),
            (b"\0\0\0\x65", NoFrame::Length),
            (b"\xff\xff\xff\xff", NoFrame::Length),
            (b"\0\0\0\x64abc", NoFrame::Cut),
        ] {
            assert_eq!(sent(none, true), Err(why), "{none:?}");
        }
    }

    #[test]
    fn silence_and_single_bytes_meet_one_deadline() {
        let begin = Instant::now();
        assert_eq!(sent(b"\0\0\0\x64abc", false), Err(NoFrame::Cut));
        assert!(begin.elapsed() >= PATIENCE);
        let (ours, mut theirs) = pair();
        let sender = std::thread::spawn(move || {
            let _ = theirs.write_all(b"\0\0\0\x64");
            for _ in 0..100 {
                std::thread::sleep(Duration::from_millis(20));
                if theirs.write_all(b"x").is_err() {
                    return;
                }
            }
        });
        assert_eq!(read_frame(ours.as_fd(), PATIENCE, 100), Err(NoFrame::Cut));
        drop(ours);
        sender.join().unwrap();
    }

    #[test]
    fn a_client_that_does_not_read_is_given_up() {
        let (ours, mut theirs) = pair();
        let big = vec![7; 4 << 20];
        assert!(!write_reply(ours.as_fd(), &big, PATIENCE));
        let reader = std::thread::spawn(move || {
            let mut all = Vec::new();
            theirs.read_to_end(&mut all).unwrap();
            all.len()
        });
        assert!(write_reply(ours.as_fd(), b"rest", Duration::from_secs(20)));
        drop(ours);
        assert!(reader.join().unwrap() > 4);
    }

    #[test]
    fn half_closed_is_not_gone() {
        let (ours, theirs) = pair();
        assert!(!has_gone(&ours));
        theirs.shutdown(std::net::Shutdown::Write).unwrap();
        assert!(!has_gone(&ours));
        drop(theirs);
        assert!(has_gone(&ours));
    }
}
