use proptest::prelude::*;

use super::*;

fn example() -> Request {
    Request {
        reqid: "r1".into(),
        dispatcher: "d1".into(),
        script: "echo".into(),
        stdin: b"hi\n".to_vec(),
        args: vec![b"a".to_vec()],
        extras: RequestExtras::default(),
    }
}

fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    let pair = |p: &[u8]| u8::from_str_radix(std::str::from_utf8(p).unwrap(), 16).unwrap();
    digits.chunks(2).map(pair).collect()
}

fn body(request: &Request) -> Vec<u8> {
    encode_request(request).unwrap()[4..].to_vec()
}

/// The body of the example with one tag behind it.
fn tagged(tag: u16, flags: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = body(&example());
    bytes.extend_from_slice(b"CEX1\0\0\0\x01");
    bytes.extend_from_slice(&tag.to_be_bytes());
    bytes.extend_from_slice(&flags.to_be_bytes());
    put_field(&mut bytes, value);
    bytes
}

#[track_caller]
fn malformed(body: &[u8]) {
    let result = decode_request(body);
    assert!(matches!(result, Err(Malformed(_))), "{result:?}");
}

#[test]
fn the_examples_of_the_specification() {
    let frame = unhex(
        "00000024 00000002 7231 00000002 6431 00000004 6563686f 00000003 68690a 00000001 00000001 61",
    );
    assert_eq!(encode_request(&example()).unwrap(), frame);
    assert_eq!(decode_request(&frame[4..]), Ok(example()));

    let reply = |exit, stdout: &[u8], stderr: &[u8]| Reply {
        exit,
        stdout: stdout.to_vec(),
        stderr: stderr.to_vec(),
        extras: None,
    };
    let seven = unhex("00000007 00000003 6f6b0a 00000000");
    assert_eq!(encode_reply(&reply(7, b"ok\n", b"")), seven);
    assert_eq!(decode_reply(&seven), Ok(reply(7, b"ok\n", b"")));
    let mut refusal = unhex("ffffffff 00000000 0000001f");
    refusal.extend_from_slice(b"executor: script not permitted\n");
    let refused = reply(-1, b"", b"executor: script not permitted\n");
    assert_eq!(encode_reply(&refused), refusal);
    assert_eq!(decode_reply(&refusal), Ok(refused));
}

#[test]
fn the_total_decides_whether_it_is_a_frame() {
    let length = |n: u32| request_length(n.to_be_bytes(), MAX_FRAME);
    assert_eq!(length(1), Ok(1));
    assert_eq!(length(16_777_216), Ok(MAX_FRAME));
    for n in [0, 16_777_217, 17_000_000, u32::MAX] {
        assert!(matches!(length(n), Err(FrameError::NoFrame(_))), "{n}");
    }
    assert_eq!(request_length([0, 0, 0, 9], 9), Ok(9));
    assert!(request_length([0, 0, 0, 10], 9).is_err());
}

#[test]
fn whatever_breaks_off_or_runs_past_the_body_is_malformed() {
    let whole = body(&example());
    for cut in 0..whole.len() {
        malformed(&whole[..cut]);
    }
    for at in [0, 6, 12, 20, 31] {
        for length in [1000_u32, u32::MAX] {
            let mut bytes = whole.clone();
            bytes[at..at + 4].copy_from_slice(&length.to_be_bytes());
            malformed(&bytes);
        }
    }
    let mut bytes = whole;
    let argc = bytes.len() - 9;
    bytes[argc..argc + 4].copy_from_slice(&9999_u32.to_be_bytes());
    malformed(&bytes);
}

#[test]
fn the_smallest_body_is_refused_for_its_empty_name_only() {
    malformed(&[0; 20]);
    let smallest = Request {
        script: "s".into(),
        ..Request::default()
    };
    assert_eq!(decode_request(&body(&smallest)), Ok(smallest));
}

#[test]
fn counts_and_lengths_have_limits() {
    let with = |change: &dyn Fn(&mut Request)| {
        let mut request = example();
        change(&mut request);
        decode_request(&body(&request)).is_ok()
    };
    assert!(with(&|r| r.args = vec![Vec::new(); 256]));
    assert!(!with(&|r| r.args = vec![Vec::new(); 257]));
    assert!(with(&|r| r.reqid = "x".repeat(128)));
    assert!(!with(&|r| r.reqid = "x".repeat(129)));
    assert!(with(&|r| r.dispatcher = "x".repeat(255)));
    assert!(!with(&|r| r.dispatcher = "x".repeat(256)));
    assert!(with(&|r| r.script = "x".repeat(128)));
    assert!(!with(&|r| r.script = "x".repeat(129)));
    assert!(!with(&|r| r.reqid = "a\0b".into()));
    assert!(!with(&|r| r.dispatcher = "a\0b".into()));
    assert!(!with(&|r| r.script = "echo\0".into()));
    assert!(!with(&|r| r.args = vec![b"a\0".to_vec()]));
    assert!(with(&|r| r.stdin = b"a\0b".to_vec()));
    assert!(with(&|r| r.args = vec![b"\xff\xfe".to_vec()]));
    assert!(!with(&|r| r.script = ".job".into()));
}

#[test]
fn bytes_behind_the_end_need_the_magic() {
    let mut bytes = body(&example());
    bytes.push(0);
    malformed(&bytes);
    bytes.extend_from_slice(b"CEX1\0\0\0\0");
    malformed(&bytes);
    let mut bytes = body(&example());
    bytes.extend_from_slice(b"CEX2\0\0\0\0");
    malformed(&bytes);
    let mut bytes = body(&example());
    bytes.extend_from_slice(b"CEX1\0\0\0\0");
    assert_eq!(decode_request(&bytes), Ok(example()));
    bytes.push(b'x');
    malformed(&bytes);
}

#[test]
fn unknown_tags_are_passed_over_unless_they_are_critical() {
    assert_eq!(decode_request(&tagged(999, 0, b"x")), Ok(example()));
    assert_eq!(decode_request(&tagged(999, 0xfffe, b"x")), Ok(example()));
    malformed(&tagged(999, 1, b"x"));
    malformed(&tagged(999, 3, b""));
    assert!(decode_request(&tagged(999, 0, &[0; 4096])).is_ok());
    malformed(&tagged(999, 0, &[0; 4097]));
}

#[test]
fn trailers_are_bounded_and_exact() {
    let whole = tagged(tag::USERNAME, 0, b"anna");
    assert_eq!(
        decode_request(&whole).unwrap().extras.username.as_deref(),
        Some("anna")
    );
    for cut in body(&example()).len() + 1..whole.len() {
        malformed(&whole[..cut]);
    }
    let mut many = body(&example());
    many.extend_from_slice(b"CEX1\0\0\0\x41");
    for tag in 1000..1065_u16 {
        many.extend_from_slice(&tag.to_be_bytes());
        many.extend_from_slice(&[0; 6]);
    }
    malformed(&many);
    let mut huge = body(&example());
    huge.extend_from_slice(b"CEX1\xff\xff\xff\xff");
    malformed(&huge);
    let mut twice = body(&example());
    twice.extend_from_slice(b"CEX1\0\0\0\x02\0\x04\0\0\0\0\0\0\0\x04\0\0\0\0\0\0");
    malformed(&twice);
}

#[test]
fn values_of_another_shape_are_malformed() {
    malformed(&tagged(tag::TIMEOUT, 0, b"123"));
    malformed(&tagged(tag::DETACH, 0, b"1"));
    malformed(&tagged(tag::JOB, 0, b""));
    malformed(&tagged(tag::JOB, 0, &[200]));
    malformed(&tagged(tag::USERNAME, 0, b"a\0b"));
    malformed(&tagged(tag::USERNAME, 0, &[b'x'; 256]));
}

#[test]
fn a_job_order_and_its_script_name_come_together() {
    let order = |script: &str, job, detach| Request {
        script: script.into(),
        extras: RequestExtras {
            job,
            detach,
            ..RequestExtras::default()
        },
        ..example()
    };
    let good = order(JOB_SCRIPT, Some(JobOrder::Peek), false);
    assert_eq!(decode_request(&body(&good)), Ok(good));
    malformed(&body(&order(JOB_SCRIPT, None, false)));
    malformed(&body(&order(JOB_SCRIPT, None, true)));
    malformed(&body(&order("echo", Some(JobOrder::Wait), false)));
    malformed(&body(&order(JOB_SCRIPT, Some(JobOrder::Wait), true)));
}

#[test]
fn names_that_are_not_utf8_are_replaced_but_never_name_a_job() {
    let mut plain = body(&example());
    plain[4] = 0xe9;
    assert_eq!(decode_request(&plain).unwrap().reqid, "\u{fffd}1");
    let mut job = body(&Request {
        extras: RequestExtras {
            detach: true,
            ..RequestExtras::default()
        },
        ..example()
    });
    job[4] = 0xe9;
    malformed(&job);
}

#[test]
fn too_long_a_user_name_is_cut_and_not_refused() {
    let mut request = example();
    request.extras.username = Some("ü".repeat(200));
    let read = decode_request(&body(&request)).unwrap();
    assert_eq!(read.extras.username, Some("ü".repeat(127)));
}

#[test]
fn a_request_beyond_the_limit_is_not_sent() {
    let mut request = example();
    request.stdin = vec![0; MAX_FRAME];
    assert!(encode_request(&request).is_err());
}

#[test]
fn numbers_of_orders_and_kinds_stay() {
    for (number, order) in JobOrder::ALL.into_iter().enumerate() {
        assert_eq!(usize::from(order.number()), number);
    }
    for (number, kind) in Kind::ALL.into_iter().enumerate() {
        assert_eq!(usize::from(kind.number()), number);
        assert_eq!(Kind::from_number(kind.number()), Some(kind));
    }
    assert_eq!((JobOrder::Hello.number(), Kind::Lost.number()), (0, 11));
    assert_eq!(
        (JobOrder::from_number(5), Kind::from_number(12)),
        (None, None)
    );
}

#[test]
fn a_reply_that_breaks_off_says_where() {
    let reply = Reply {
        stdout: b"out".to_vec(),
        extras: Some(ReplyExtras::default()),
        ..Reply::default()
    };
    let whole = encode_reply(&reply);
    let bare = encode_reply(&Reply {
        extras: None,
        ..reply.clone()
    });
    for cut in 0..whole.len() {
        let read = decode_reply(&whole[..cut]);
        if cut < 4 {
            assert!(matches!(read, Err(FrameError::NoFrame(_))), "{cut}");
        } else if cut == bare.len() {
            assert_eq!(read.unwrap().extras, None);
        } else {
            assert!(matches!(read, Err(Malformed(_))), "{cut}");
        }
    }
    assert_eq!(decode_reply(&whole), Ok(reply));
}

fn name(max: usize) -> impl Strategy<Value = String> {
    proptest::collection::vec("[a-z0-9._é-]", 0..max / 2).prop_map(|v| v.concat())
}

prop_compose! {
    fn requests()(
        reqid in name(MAX_REQID), dispatcher in name(MAX_DISPATCHER), script in "[A-Za-z0-9_-]{1,128}",
        stdin in proptest::collection::vec(any::<u8>(), 0..300),
        args in proptest::collection::vec(proptest::collection::vec(1_u8.., 0..40), 0..8),
        timeout in proptest::option::of(any::<u32>()), username in proptest::option::of(name(MAX_USERNAME)),
        peer_ip in proptest::option::of("[0-9a-f:.]{0,45}"), detach: bool, job in 0_usize..8,
    ) -> Request {
        let job = JobOrder::ALL.get(job).copied();
        Request {
            reqid,
            dispatcher,
            script: if job.is_some() { JOB_SCRIPT.to_owned() } else { script },
            stdin,
            args,
            extras: RequestExtras {
                timeout: timeout.map(|ms| Duration::from_millis(ms.into())),
                username,
                peer_ip,
                detach: detach && job.is_none(),
                job,
            },
        }
    }
}

prop_compose! {
    fn replies()(
        exit: i32, stdout in proptest::collection::vec(any::<u8>(), 0..300),
        stderr in proptest::collection::vec(any::<u8>(), 0..300), kind in 0_usize..12, trailer: bool,
        signal in proptest::option::of(0..65_i32), flags: (bool, bool, bool, bool), wall: u32,
        cpu in proptest::option::of(any::<u32>()), memory_peak: Option<u64>, protections: u32,
    ) -> Reply {
        let extras = ReplyExtras {
            kind: Kind::ALL[kind],
            signal,
            core_dumped: flags.0,
            timed_out: flags.1,
            truncated_stdout: flags.2,
            truncated_stderr: flags.3,
            wall: Duration::from_micros(wall.into()),
            cpu: cpu.map(|us| Duration::from_micros(us.into())),
            memory_peak,
            protections,
        };
        Reply { exit, stdout, stderr, extras: trailer.then_some(extras) }
    }
}

proptest! {
    #[test]
    fn a_request_comes_back_as_it_was(request in requests()) {
        prop_assert_eq!(decode_request(&body(&request)), Ok(request));
    }

    #[test]
    fn a_reply_comes_back_as_it_was(reply in replies()) {
        prop_assert_eq!(decode_reply(&encode_reply(&reply)), Ok(reply));
    }

    #[test]
    fn no_bytes_make_the_decoders_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = decode_request(&bytes);
        let _ = decode_reply(&bytes);
        let _ = decode_reply_trailer(&bytes);
    }

    #[test]
    fn no_change_of_a_byte_makes_the_decoders_panic(request in requests(), reply in replies(), at: prop::sample::Index, to: u8) {
        let mut bytes = body(&request);
        let place = at.index(bytes.len());
        bytes[place] = to;
        let _ = decode_request(&bytes);
        let mut bytes = encode_reply(&reply);
        let place = at.index(bytes.len());
        bytes[place] = to;
        let _ = decode_reply(&bytes);
    }
}
