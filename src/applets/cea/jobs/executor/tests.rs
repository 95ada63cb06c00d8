//! What answers of an executor mean.

use super::watcher::{Answer, judge as judge_wait};
use super::*;
use crate::core::exec::TRUNCATED_MARK;

fn reply(kind: Option<Kind>, exit: i32, stdout: &[u8], stderr: &[u8]) -> Reply {
    Reply {
        exit,
        stdout: stdout.to_vec(),
        stderr: stderr.to_vec(),
        extras: kind.map(|kind| ReplyExtras {
            kind,
            signal: (kind == Kind::Signal).then_some(9),
            ..ReplyExtras::default()
        }),
    }
}

#[test]
fn every_kind_of_answer_to_a_wait_has_its_meaning() {
    let of = |kind| judge_wait(reply(Some(kind), 7, b"out", b"err"), 1000);
    assert_eq!(of(Kind::Running), Answer::Running);
    for kind in [Kind::Unknown, Kind::Lost] {
        let (stdout, stderr) = (b"out".to_vec(), b"err".to_vec());
        assert_eq!(of(kind), Answer::Lost { stdout, stderr });
    }
    assert_eq!(of(Kind::Denied), Answer::Busy("err".to_owned()));
    let original = judge_wait(
        reply(None, -1, b"", b"executor: script not permitted\n"),
        1000,
    );
    assert_eq!(
        original,
        Answer::Puzzling("executor: script not permitted".to_owned())
    );
    let plain = Outcome {
        exit: 7,
        stdout: b"out".to_vec(),
        stderr: b"err".to_vec(),
        ..Outcome::default()
    };
    for kind in [
        Kind::Exit,
        Kind::Setup,
        Kind::Oom,
        Kind::Disconnect,
        Kind::Shutdown,
    ] {
        assert_eq!(of(kind), Answer::Ended(plain.clone()), "{kind:?}");
    }
    let with = |change: fn(&mut Outcome)| {
        let mut outcome = plain.clone();
        change(&mut outcome);
        Answer::Ended(outcome)
    };
    assert_eq!(of(Kind::Signal), with(|o| o.signal = Some(9)));
    assert_eq!(of(Kind::Timeout), with(|o| o.timed_out = true));
    assert_eq!(of(Kind::Cancelled), with(|o| o.cancelled = true));
}

#[test]
fn more_than_the_agent_keeps_is_cut() {
    let Answer::Ended(outcome) =
        judge_wait(reply(Some(Kind::Exit), 0, &[b'x'; 5000], b"short"), 1000)
    else {
        panic!("not ended");
    };
    assert!(outcome.truncated);
    assert_eq!(outcome.stdout.len(), 1000 + TRUNCATED_MARK.len());
    assert!(outcome.stdout.ends_with(TRUNCATED_MARK));
    assert_eq!(outcome.stderr, b"short");
}

#[test]
fn a_refusal_is_told_in_the_words_of_the_executor() {
    assert_eq!(reason(reply(None, -1, b"", b" no \n")), "no");
    assert_eq!(
        reason(reply(None, -1, b"", b"")),
        "executor: refused (exit -1)"
    );
}
