//! Requests that concern the executor itself: what can it do, and what became of a detached run.

use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::process::Signal;

use super::super::describe;
use super::super::house::House;
use super::super::jobs::{Seen, State, answer};
use super::connection::{has_gone, timespec};
use super::report::REFUSED;
use crate::core::exec::frame::{JobOrder, Kind, Reply, Request, encode_reply};
use crate::core::sys::wait;

/// How long `Wait` waits.
const PATIENCE: Duration = Duration::from_secs(30);
const FIRST_LOOK: Duration = Duration::from_millis(20);
const LOOK: Duration = Duration::from_millis(250);

/// The encoded answer; `None` when nobody is there any more to read it.
pub(super) fn obey(
    order: JobOrder,
    request: &Request,
    house: &House,
    client: &UnixStream,
    signals: &OwnedFd,
) -> Option<Vec<u8>> {
    let seen = Seen::of(&house.jobs, request);
    let state = match order {
        JobOrder::Hello => {
            let hello = Reply {
                stdout: describe::features_json(house).into_bytes(),
                ..answer(0, Kind::Exit)
            };
            return Some(encode_reply(&hello));
        }
        JobOrder::Wait => wait_for(&seen, client, signals)?,
        JobOrder::Peek | JobOrder::Cancel | JobOrder::Forget => seen.state(),
    };
    Some(match (order, state) {
        (_, State::Unknown) => encode_reply(&said(Kind::Unknown, "no such detached run")),
        (JobOrder::Forget, State::Over(_) | State::Lost) => {
            seen.forget();
            encode_reply(&answer(0, Kind::Exit))
        }
        (JobOrder::Forget, State::Running) => {
            encode_reply(&said(Kind::Running, "the run is still going"))
        }
        (JobOrder::Cancel, State::Running) => {
            seen.cancel();
            encode_reply(&answer(0, Kind::Running))
        }
        (JobOrder::Peek, State::Running) => encode_reply(&seen.peek()),
        (_, State::Running) => encode_reply(&answer(0, Kind::Running)),
        // Its supervisor was killed: what it wrote so far is all there is.
        (_, State::Lost) => {
            let so_far = seen.peek();
            let mut lost = said(Kind::Lost, "the run was lost: its supervisor ended first");
            lost.stdout = so_far.stdout;
            lost.stderr = [so_far.stderr, lost.stderr].concat();
            encode_reply(&lost)
        }
        (_, State::Over(reply)) => reply,
    })
}

fn said(kind: Kind, text: &str) -> Reply {
    Reply {
        stderr: format!("executor: {text}\n").into_bytes(),
        ..answer(REFUSED, kind)
    }
}

/// Looks now and then: a lock cannot be polled. `None`: the client has gone, or we have to.
fn wait_for(seen: &Seen, client: &UnixStream, signals: &OwnedFd) -> Option<State> {
    let deadline = Instant::now() + PATIENCE;
    let mut look = FIRST_LOOK;
    loop {
        let state = seen.state();
        let left = deadline.saturating_duration_since(Instant::now());
        if state != State::Running || left.is_zero() {
            return Some(state);
        }
        let mut polled = [
            PollFd::from_borrowed_fd(client.as_fd(), PollFlags::empty()),
            PollFd::from_borrowed_fd(signals.as_fd(), PollFlags::IN),
        ];
        let ready = rustix::event::poll(&mut polled, Some(&timespec(look.min(left))));
        if ready.is_ok_and(|n| n > 0) {
            let told = std::iter::from_fn(|| wait::next_signal(signals));
            if told.filter(|signal| *signal == Signal::TERM).count() > 0 || has_gone(client) {
                return None;
            }
            // Not in a circle without a rest, whatever it was.
            std::thread::sleep(look);
        }
        look = (look * 2).min(LOOK);
    }
}
