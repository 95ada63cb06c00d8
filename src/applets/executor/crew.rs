//! The supervisors of the listener: what each is doing, and which of them is free to serve again.
//!
//! Making a supervisor (a fork, its pages, its rights) costs as much as a small run. So one whose run has left nothing behind is given the
//! next connection, as long as requests follow each other:
//!
//! ```text
//!            fork             word: order
//! (nobody) --------> run -----------------> order --exit--> (reaped)
//!                   ^  |
//!     a connection  |  | word: free
//!                   |  v
//!                   free --desk closed--> (exits, reaped)
//! ```
//!
//! Each has a line to the listener: a socket pair, of which we hold one end and the supervisor the other, its [`Desk`]. What it inherited by the
//! fork (policy, mounts, kept views) holds as long as nothing has changed. When anything has, or nothing has come for a moment, all lines are
//! closed: who is free ends at once, who is busy does after its run. Nobody has to be told, and who loses the listener ends as well.
//!
//! What could go wrong, and what is done:
//! - A run leaves processes, a group, or an allocation behind, was ended from outside, or was detached: its supervisor ends with it.
//! - A word is lost: the supervisor does not wait for a connection that cannot come. Only a supervisor says of itself that it is free.
//! - A connection cannot be handed over: it stays ours, and gets a new supervisor.
//! - The other end dies with a connection in hand: the client sees its connection closed, as whenever a supervisor dies.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Signal, getpid, kill_process};

use super::house::Peer;

/// A connection whose peer may be served.
#[derive(Debug)]
pub(super) struct Admitted {
    pub(super) connection: UnixStream,
    pub(super) peer: Peer,
    /// All places for runs are taken: only orders are served.
    pub(super) full: bool,
}

/// What a supervisor says of itself.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Word {
    /// This is no run: it gives the place of one back.
    Order,
    /// The run is over and has left nothing: the next connection may come.
    Free,
}

impl Word {
    /// Far below `PIPE_BUF`, so each is written whole or not at all.
    const SIZE: usize = 8;

    fn encode(self, of: Pid) -> [u8; Self::SIZE] {
        let [a, b, c, d] = of.as_raw_nonzero().get().to_ne_bytes();
        [a, b, c, d, self as u8, 0, 0, 0]
    }

    fn decode(bytes: &[u8]) -> Option<(Pid, Self)> {
        let [a, b, c, d, word, 0, 0, 0] = *bytes else {
            return None;
        };
        let word = [Self::Order, Self::Free]
            .into_iter()
            .find(|known| *known as u8 == word)?;
        Some((Pid::from_raw(i32::from_ne_bytes([a, b, c, d]))?, word))
    }
}

/// What a supervisor does.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Post {
    Run,
    /// Something that is no run, or a request that is refused because there is no place.
    Order,
    Free,
}

#[derive(Debug)]
struct Supervisor {
    pid: Pid,
    post: Post,
    /// `None`: it ends when it has served what it serves.
    line: Option<OwnedFd>,
}

/// Both ends of a new line: ours, and the supervisor's.
pub(super) type Line = (OwnedFd, OwnedFd);

#[derive(Debug, Default)]
pub(super) struct Crew {
    all: Vec<Supervisor>,
    /// Where supervisors speak: our end, and theirs.
    words: Option<(OwnedFd, OwnedFd)>,
}

impl Crew {
    pub(super) fn new() -> Self {
        Self {
            all: Vec::new(),
            // Without it an order takes the place of a run for as long as it lasts, and nobody serves twice.
            words: pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).ok(),
        }
    }

    /// For a supervisor that is about to be made. `None`: it will serve once.
    pub(super) fn line(&self) -> Option<Line> {
        self.words.as_ref()?;
        let (family, kind) = (AddressFamily::UNIX, SocketType::SEQPACKET);
        socketpair(family, kind, SocketFlags::CLOEXEC, None).ok()
    }

    /// In the new supervisor: gives up what belongs to the listener. Else no line would ever be seen closed.
    pub(super) fn into_desk(self, line: Option<Line>) -> Option<Desk> {
        let (_, words) = self.words?;
        Some(Desk {
            words,
            line: line.map(|(_, theirs)| theirs),
        })
    }

    /// In the listener, about the new supervisor.
    pub(super) fn joined(&mut self, pid: Pid, full: bool, line: Option<Line>) {
        self.all.push(Supervisor {
            pid,
            post: if full { Post::Order } else { Post::Run },
            line: line.map(|(ours, _)| ours),
        });
    }

    /// Takes in what supervisors have said.
    pub(super) fn hear(&mut self) {
        let Some((words, _)) = &self.words else {
            return;
        };
        let mut buffer = [0; Word::SIZE * 128];
        while let Ok(n @ 1..) = rustix::io::read(words, &mut buffer[..]) {
            for (pid, word) in buffer[..n]
                .chunks_exact(Word::SIZE)
                .filter_map(Word::decode)
            {
                if let Some(found) = self.all.iter_mut().find(|s| s.pid == pid) {
                    found.post = match word {
                        Word::Order => Post::Order,
                        Word::Free => Post::Free,
                    };
                }
            }
        }
    }

    fn count(&self, post: Post) -> usize {
        self.all.iter().filter(|s| s.post == post).count()
    }

    pub(super) fn orders(&self) -> usize {
        self.count(Post::Order)
    }

    pub(super) fn runs(&self) -> usize {
        self.count(Post::Run)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Gives the connection to a supervisor that is free.
    ///
    /// # Errors
    /// Nobody is: the connection comes back.
    pub(super) fn hand_over(&mut self, admitted: Admitted) -> Result<(), Admitted> {
        for supervisor in self.all.iter_mut().filter(|s| s.post == Post::Free) {
            let Some(line) = &supervisor.line else {
                continue;
            };
            match send(line, &admitted) {
                Ok(()) => {
                    supervisor.post = if admitted.full {
                        Post::Order
                    } else {
                        Post::Run
                    };
                    return Ok(());
                }
                Err(_) => supervisor.line = None,
            }
        }
        Err(admitted)
    }

    /// Closes all lines: nobody serves again with what it has inherited.
    pub(super) fn dismiss(&mut self) {
        for supervisor in &mut self.all {
            supervisor.line = None;
        }
    }

    /// Takes one that has been reaped off the list; false if it was not on it.
    pub(super) fn buried(&mut self, pid: Pid) -> bool {
        let Some(at) = self.all.iter().position(|s| s.pid == pid) else {
            return false;
        };
        // Before its number can be another's.
        self.hear();
        self.all.swap_remove(at);
        true
    }

    pub(super) fn signal(&self, signal: Signal) {
        for supervisor in &self.all {
            // Not reaped yet, so the number is still its own.
            let _ = kill_process(supervisor.pid, signal);
        }
    }

    /// Whoever is still there when nobody is waited for any longer.
    pub(super) fn disband(&mut self) -> Vec<Pid> {
        self.all
            .drain(..)
            .map(|supervisor| supervisor.pid)
            .collect()
    }
}

/// A supervisor's side.
#[derive(Debug)]
pub(super) struct Desk {
    words: OwnedFd,
    line: Option<OwnedFd>,
}

impl Desk {
    /// False: it could not be said. An order then takes the place of a run for a while, and nothing worse.
    pub(super) fn say(&self, word: Word) -> bool {
        rustix::io::write(&self.words, &word.encode(getpid())) == Ok(Word::SIZE)
    }

    /// Says that we are free and waits for the next connection. `None`: there will be none.
    ///
    /// This wait has no deadline of its own: the listener closes the line when there is a pause, and the kernel when there is no listener.
    /// Giving up by ourselves could lose a connection that is on its way.
    pub(super) fn next(&self) -> Option<Admitted> {
        let line = self.line.as_ref()?;
        if !self.say(Word::Free) {
            return None;
        }
        receive(line)
    }
}

/// uid and pid of the peer, and whether there is no place.
const LETTER: usize = 9;

fn send(line: &OwnedFd, admitted: &Admitted) -> Result<(), Errno> {
    let mut letter = [0; LETTER];
    letter[..4].copy_from_slice(&admitted.peer.uid.to_ne_bytes());
    letter[4..8].copy_from_slice(&admitted.peer.pid.to_ne_bytes());
    letter[8] = u8::from(admitted.full);
    let fds = [admitted.connection.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(&fds));
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    match sendmsg(line, &[IoSlice::new(&letter)], &mut control, flags)? {
        LETTER => Ok(()),
        _ => Err(Errno::IO),
    }
}

fn receive(line: &OwnedFd) -> Option<Admitted> {
    let mut letter = [0; LETTER];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let got = loop {
        let mut pieces = [IoSliceMut::new(&mut letter)];
        match recvmsg(line, &mut pieces, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Ok(got) => break got.bytes,
            Err(Errno::INTR) => {}
            Err(_) => return None,
        }
    };
    let mut fds = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(fds) => Some(fds),
        _ => None,
    });
    let connection = fds.next()?.next()?;
    let (uid, rest) = letter.split_first_chunk()?;
    let (pid, full) = rest.split_first_chunk()?;
    (got == LETTER).then(|| Admitted {
        connection: connection.into(),
        peer: Peer {
            uid: u32::from_ne_bytes(*uid),
            pid: i32::from_ne_bytes(*pid),
        },
        full: full != [0],
    })
}

#[cfg(test)]
impl Crew {
    /// A supervisor's side, in the process of the listener.
    pub(super) fn desk_for_test(&self, line: Option<OwnedFd>) -> Option<Desk> {
        let words = self.words.as_ref()?.1.try_clone().ok()?;
        Some(Desk { words, line })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read as _, Write as _};

    /// A crew of one, which is this process, and its desk.
    fn one() -> (Crew, Desk) {
        let mut crew = Crew::new();
        let (ours, theirs) = crew.line().unwrap();
        let desk = crew.desk_for_test(Some(theirs.try_clone().unwrap()));
        crew.joined(getpid(), false, Some((ours, theirs)));
        (crew, desk.unwrap())
    }

    fn admitted(full: bool) -> (Admitted, UnixStream) {
        let (connection, client) = UnixStream::pair().unwrap();
        let peer = Peer {
            uid: 65534,
            pid: 77,
        };
        let admitted = Admitted {
            connection,
            peer,
            full,
        };
        (admitted, client)
    }

    #[test]
    fn who_is_free_gets_the_next_connection() {
        let (mut crew, desk) = one();
        let (first, _) = admitted(false);
        let first = crew.hand_over(first).unwrap_err();
        assert_eq!((crew.runs(), crew.orders()), (1, 0), "it is busy");
        for full in [false, true] {
            assert!(desk.say(Word::Free));
            crew.hear();
            assert_eq!((crew.runs(), crew.orders()), (0, 0));
            let (next, mut client) = admitted(full);
            crew.hand_over(next).unwrap();
            assert_eq!(
                (crew.runs(), crew.orders()),
                (usize::from(!full), usize::from(full))
            );
            let mut got = receive(desk.line.as_ref().unwrap()).unwrap();
            assert_eq!((got.peer, got.full), (first.peer, full));
            got.connection.write_all(b"hello").unwrap();
            drop(got);
            let mut text = String::new();
            client.read_to_string(&mut text).unwrap();
            assert_eq!(text, "hello");
        }
        assert!(desk.say(Word::Order));
        crew.hear();
        assert_eq!((crew.runs(), crew.orders()), (0, 1));
    }

    #[test]
    fn who_is_dismissed_waits_for_nothing_and_gets_nothing() {
        let (mut crew, desk) = one();
        crew.dismiss();
        assert!(desk.next().is_none());
        crew.hear();
        assert!(crew.hand_over(admitted(false).0).is_err());
        assert!(crew.buried(getpid()) && crew.is_empty());
        assert!(!crew.buried(getpid()));
        // A word of somebody who has gone.
        assert!(desk.say(Word::Free));
        crew.hear();
        assert!(crew.is_empty());
    }

    #[test]
    fn who_cannot_be_reached_loses_no_connection() {
        let (mut crew, desk) = one();
        assert!(desk.say(Word::Free));
        drop(desk);
        crew.hear();
        let (next, mut client) = admitted(false);
        let mut back = crew.hand_over(next).unwrap_err();
        back.connection.write_all(b"still here").unwrap();
        let mut got = [0; 10];
        client.read_exact(&mut got).unwrap();
        assert_eq!((&got, crew.runs()), (b"still here", 0));
        // Without anybody to hear it there is no wait.
        let desk = Desk {
            words: std::fs::File::open("/dev/null").unwrap().into(),
            line: Some(UnixStream::pair().unwrap().0.into()),
        };
        assert!(desk.next().is_none());
    }

    #[test]
    fn words_are_what_they_say_or_nothing() {
        for word in [Word::Order, Word::Free] {
            assert_eq!(Word::decode(&word.encode(getpid())), Some((getpid(), word)));
        }
        for none in [
            &[1, 0, 0, 0, 9, 0, 0, 0][..],
            &[0; 8],
            &[1, 0, 0, 0, 1, 0, 0, 1],
            b"short",
        ] {
            assert_eq!(Word::decode(none), None);
        }
    }
}
