//! Client of the root executor's socket: one request per connection, length-prefixed big-endian frames
//! (spec/agent.md 11.3, spec/executor.md 4).

use std::io;
use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::frame::{self, Kind, MAGIC, MAX_STREAM, MAX_TAGS, MAX_VALUE, Reply, Request};
use super::{Outcome, TRUNCATED_MARK};

/// Longest wait for the socket to take the connection and the request.
const SEND_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of an answer that are read at once.
const READ_AHEAD: usize = 2048;
/// How much longer an answer may take than the time that the executor was told to give the script: it lets the script end itself first.
const KILL_GRACE: Duration = Duration::from_secs(15);

/// Why there is no result. The texts are the original's (spec/executor.md 4.5).
#[derive(Debug, thiserror::Error)]
pub enum ExecutorError {
    #[error("executor unreachable: {0}")]
    Unreachable(io::Error),
    #[error("executor write failed: {0}")]
    Write(io::Error),
    #[error("executor closed before responding")]
    Closed,
    #[error("truncated executor response")]
    Truncated,
    /// Ours: the original waits for ever.
    #[error("executor closed before responding: no answer within {0} s")]
    Silent(u64),
}

/// Has the executor run the script. Failures become an [`Outcome`] with exit -1 and the reason on stderr.
///
/// `run_timeout` bounds the run: an executor of ours is told and ends the script; one of the original is not waited for any longer than
/// that and a little. `max_output` is what is kept of each stream.
pub async fn run_by_executor(
    socket: &Path,
    request: &Request,
    run_timeout: Duration,
    max_output: usize,
) -> Outcome {
    let mut request = request.clone();
    let asked = request.extras.timeout.unwrap_or(run_timeout);
    request.extras.timeout = Some(asked.min(run_timeout));
    match call(socket, &request, run_timeout + KILL_GRACE, max_output).await {
        Ok(reply) => outcome(reply),
        Err(error) => Outcome {
            exit: -1,
            stderr: error.to_string().into_bytes(),
            ..Outcome::default()
        },
    }
}

/// One exchange, with the reply as it came: for the orders about detached runs. Each stream is bounded by the executor's own limit.
///
/// # Errors
/// No executor listens, it goes away, or it does not answer within `deadline`.
pub async fn call_raw(
    socket: &Path,
    request: &Request,
    deadline: Duration,
) -> Result<Reply, ExecutorError> {
    call(socket, request, deadline, MAX_STREAM)
        .await
        .map(|cut| cut.reply)
}

/// A reply of which we kept less than was sent.
#[derive(Debug)]
struct Cut {
    reply: Reply,
    cut: bool,
}

fn outcome(Cut { reply, cut }: Cut) -> Outcome {
    // An executor of the original says it in the streams only.
    let marked =
        || reply.stdout.ends_with(TRUNCATED_MARK) || reply.stderr.ends_with(TRUNCATED_MARK);
    let truncated = match &reply.extras {
        Some(extras) => extras.truncated_stdout || extras.truncated_stderr,
        None => marked(),
    };
    let extras = reply.extras.unwrap_or_default();
    Outcome {
        exit: reply.exit,
        truncated: truncated || cut,
        signal: extras.signal,
        timed_out: extras.timed_out || extras.kind == Kind::Timeout,
        cancelled: extras.kind == Kind::Cancelled,
        stdout: reply.stdout,
        stderr: reply.stderr,
        stdin_unsent: None,
    }
}

async fn call(
    socket: &Path,
    request: &Request,
    deadline: Duration,
    max_output: usize,
) -> Result<Cut, ExecutorError> {
    let late = || io::Error::from_raw_os_error(libc::ETIMEDOUT);
    let too_long = |_| ExecutorError::Write(io::Error::from_raw_os_error(libc::EMSGSIZE));
    let frame = frame::encode_request(request).map_err(too_long)?;
    let mut stream = timeout(SEND_TIMEOUT, UnixStream::connect(socket))
        .await
        .unwrap_or_else(|_| Err(late()))
        .map_err(ExecutorError::Unreachable)?;
    let written = timeout(SEND_TIMEOUT, stream.write_all(&frame))
        .await
        .unwrap_or_else(|_| Err(late()));
    if let Err(error) = written {
        // An executor with too many runs answers without reading; its word says more than the broken pipe.
        let answer = timeout(SEND_TIMEOUT, read_reply(stream, max_output)).await;
        return match answer {
            Ok(Ok(reply)) => Ok(reply),
            _ => Err(ExecutorError::Write(error)),
        };
    }
    timeout(deadline, read_reply(stream, max_output))
        .await
        .unwrap_or(Err(ExecutorError::Silent(deadline.as_secs())))
}

async fn read_reply(
    stream: impl AsyncRead + Unpin,
    max_output: usize,
) -> Result<Cut, ExecutorError> {
    // A usual answer is some hundred bytes in a dozen fields: one call instead of seventeen.
    let stream = &mut BufReader::with_capacity(READ_AHEAD, stream);
    let mut exit = [0; 4];
    if fill(stream, &mut exit).await < exit.len() {
        return Err(ExecutorError::Closed);
    }
    let (stdout, cut_out) = read_stream(stream, max_output).await?;
    let (stderr, cut_err) = read_stream(stream, max_output).await?;
    let extras = match read_trailer(stream).await? {
        Some(trailer) => {
            let extras = frame::decode_reply_trailer(&trailer);
            Some(extras.map_err(|_| ExecutorError::Truncated)?)
        }
        None => None,
    };
    Ok(Cut {
        reply: Reply {
            exit: i32::from_be_bytes(exit),
            stdout,
            stderr,
            extras,
        },
        cut: cut_out || cut_err,
    })
}

/// Reads until the buffer is full or nothing more comes; says how much of it is full.
async fn fill(stream: &mut (impl AsyncRead + Unpin), buffer: &mut [u8]) -> usize {
    let mut got = 0;
    while got < buffer.len() {
        match stream.read(&mut buffer[got..]).await {
            Ok(n @ 1..) => got += n,
            _ => break,
        }
    }
    got
}

/// Reads one stream, keeping at most `keep` bytes of it. The memory grows with what arrives, not with what is announced.
async fn read_stream(
    stream: &mut (impl AsyncRead + Unpin),
    keep: usize,
) -> Result<(Vec<u8>, bool), ExecutorError> {
    let truncated = |_| ExecutorError::Truncated;
    let announced = stream.read_u32().await.map_err(truncated)?;
    let mut left = usize::try_from(announced)
        .ok()
        .filter(|&n| n <= MAX_STREAM)
        .ok_or(ExecutorError::Truncated)?;
    let cut = left > keep;
    let mut kept = Vec::new();
    let mut chunk = vec![0; left.min(16 * 1024)];
    while left > 0 {
        let want = left.min(chunk.len());
        let n = stream.read(&mut chunk[..want]).await.map_err(truncated)?;
        if n == 0 {
            return Err(ExecutorError::Truncated);
        }
        left -= n;
        let room = keep - kept.len();
        kept.extend_from_slice(&chunk[..n.min(room)]);
    }
    if cut {
        kept.extend_from_slice(TRUNCATED_MARK);
    }
    Ok((kept, cut))
}

/// The bytes of a trailer, exactly: the end of the connection is not waited for. `None`: the executor closed instead, or says something
/// that is none; the original stops reading here as well.
async fn read_trailer(
    stream: &mut (impl AsyncRead + Unpin),
) -> Result<Option<Vec<u8>>, ExecutorError> {
    let mut trailer = vec![0; MAGIC.len()];
    match fill(stream, &mut trailer).await {
        0 => return Ok(None),
        n if n < MAGIC.len() => return Err(ExecutorError::Truncated),
        _ if trailer != MAGIC => return Ok(None),
        _ => {}
    }
    let count = more(stream, &mut trailer, 4, MAX_TAGS).await?;
    for _ in 0..count {
        // Tag and flags, then the length of the value.
        let length = more(stream, &mut trailer, 8, MAX_VALUE).await?;
        let start = trailer.len();
        trailer.resize(start + length, 0);
        if fill(stream, &mut trailer[start..]).await < length {
            return Err(ExecutorError::Truncated);
        }
    }
    Ok(Some(trailer))
}

/// Appends `n` bytes, of which the last four are a number of at most `max`; answers that number.
async fn more(
    stream: &mut (impl AsyncRead + Unpin),
    trailer: &mut Vec<u8>,
    n: usize,
    max: usize,
) -> Result<usize, ExecutorError> {
    let start = trailer.len();
    trailer.resize(start + n, 0);
    if fill(stream, &mut trailer[start..]).await < n {
        return Err(ExecutorError::Truncated);
    }
    let number = trailer
        .last_chunk()
        .and_then(|word| usize::try_from(u32::from_be_bytes(*word)).ok());
    number.filter(|&n| n <= max).ok_or(ExecutorError::Truncated)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    use super::frame::ReplyExtras;

    fn request() -> Request {
        Request {
            reqid: "r1".into(),
            dispatcher: "d1".into(),
            script: "echo".into(),
            stdin: b"hi\n".to_vec(),
            args: vec![b"a".to_vec()],
            ..Request::default()
        }
    }

    fn block<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
            .block_on(future)
    }

    /// An executor that reads one whole request and answers with these bytes.
    fn exchange(answer: Vec<u8>) -> Outcome {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("exec.sock");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let server = std::thread::spawn(move || {
            use std::io::{Read as _, Write as _};
            let (mut stream, _) = listener.accept().unwrap();
            let mut total = [0; 4];
            stream.read_exact(&mut total).unwrap();
            let mut body = vec![0; usize::try_from(u32::from_be_bytes(total)).unwrap()];
            stream.read_exact(&mut body).unwrap();
            stream.write_all(&answer).unwrap();
            body
        });
        let outcome = block(run_by_executor(
            &path,
            &request(),
            Duration::from_secs(5),
            1000,
        ));
        let mut sent = request();
        sent.extras.timeout = Some(Duration::from_secs(5));
        assert_eq!(frame::decode_request(&server.join().unwrap()), Ok(sent));
        outcome
    }

    fn reply(exit: i32, stdout: &[u8], stderr: &[u8]) -> Vec<u8> {
        frame::encode_reply(&Reply {
            exit,
            stdout: stdout.to_vec(),
            stderr: stderr.to_vec(),
            extras: None,
        })
    }

    #[test]
    fn exit_and_streams_come_back_and_the_exit_is_signed() {
        let outcome = exchange(reply(7, b"ok\n", "grün\n".as_bytes()));
        assert_eq!(
            (outcome.exit, outcome.stdout.as_slice()),
            (7, b"ok\n".as_slice())
        );
        assert_eq!(outcome.stderr, "grün\n".as_bytes());
        let refused = exchange(reply(-1, b"", b"executor: script not permitted\n"));
        assert_eq!(refused.exit, -1);
    }

    #[test]
    fn every_way_to_break_off_has_its_text() {
        assert_eq!(
            exchange(Vec::new()).stderr,
            b"executor closed before responding"
        );
        assert_eq!(
            exchange(vec![0, 0]).stderr,
            b"executor closed before responding"
        );
        let whole = reply(0, b"abc", b"def");
        for cut in 4..whole.len() {
            let outcome = exchange(whole[..cut].to_vec());
            assert_eq!(outcome.exit, -1);
            assert_eq!(outcome.stderr, b"truncated executor response", "cut {cut}");
        }
        let dir = tempfile::tempdir().unwrap();
        let nobody = dir.path().join("none.sock");
        let outcome = block(run_by_executor(
            &nobody,
            &request(),
            Duration::from_secs(5),
            1000,
        ));
        let text = String::from_utf8(outcome.stderr).unwrap();
        assert!(
            text.starts_with("executor unreachable: No such file"),
            "{text}"
        );
    }

    #[test]
    fn a_silent_executor_is_not_waited_for_without_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("exec.sock");
        let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let error = block(call_raw(&path, &request(), Duration::from_millis(50))).unwrap_err();
        assert!(error.to_string().starts_with("executor closed"));
    }

    #[test]
    fn the_trailer_tells_what_the_numbers_do_not() {
        let answer = |extras| Reply {
            exit: 126,
            stdout: b"o".to_vec(),
            stderr: b"e".to_vec(),
            extras: Some(extras),
        };
        let told = answer(ReplyExtras {
            kind: Kind::Timeout,
            signal: Some(15),
            truncated_stderr: true,
            ..ReplyExtras::default()
        });
        let bytes = frame::encode_reply(&told);
        let outcome = exchange(bytes.clone());
        assert_eq!((outcome.exit, outcome.signal), (126, Some(15)));
        assert!(outcome.timed_out && outcome.truncated);
        let bare = bytes.len() - frame_trailer_length(&told);
        for cut in bare + 1..bytes.len() {
            let outcome = exchange(bytes[..cut].to_vec());
            assert_eq!(outcome.stderr, b"truncated executor response", "cut {cut}");
        }
        let plain = exchange(frame::encode_reply(&answer(ReplyExtras::default())));
        assert!(!plain.timed_out && !plain.truncated && plain.signal.is_none());
    }

    fn frame_trailer_length(reply: &Reply) -> usize {
        let bare = Reply {
            extras: None,
            ..reply.clone()
        };
        frame::encode_reply(reply).len() - frame::encode_reply(&bare).len()
    }

    #[test]
    fn an_answer_that_comes_before_the_request_is_read_is_heard() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("exec.sock");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let server = std::thread::spawn(move || {
            use std::io::Write as _;
            let (mut stream, _) = listener.accept().unwrap();
            stream
                .write_all(&reply(-1, b"", b"executor: full\n"))
                .unwrap();
        });
        let mut large = request();
        large.stdin = vec![b'x'; 4 << 20];
        let outcome = block(run_by_executor(&path, &large, Duration::from_secs(5), 1000));
        server.join().unwrap();
        assert_eq!(outcome.stderr, b"executor: full\n");
    }

    #[test]
    fn an_absurd_length_is_refused_and_long_output_is_cut() {
        let mut absurd = 0_i32.to_be_bytes().to_vec();
        absurd.extend_from_slice(&u32::MAX.to_be_bytes());
        assert_eq!(exchange(absurd).stderr, b"truncated executor response");
        let long = exchange(reply(0, &[b'x'; 5000], b""));
        assert!(long.truncated);
        assert_eq!(long.stdout.len(), 1000 + TRUNCATED_MARK.len());
        let marked = exchange(reply(0, TRUNCATED_MARK, b""));
        assert!(marked.truncated);
        assert_eq!(marked.stdout, TRUNCATED_MARK);
    }

    proptest! {
        #[test]
        fn any_reply_that_fits_comes_back_as_sent(exit: i32, out in proptest::collection::vec(any::<u8>(), 0..500), err in proptest::collection::vec(any::<u8>(), 0..500)) {
            let bytes = reply(exit, &out, &err);
            let reply = block(read_reply(&mut bytes.as_slice(), 1000)).unwrap().reply;
            prop_assert_eq!((reply.exit, reply.stdout, reply.stderr), (exit, out, err));
        }

        #[test]
        fn no_reply_makes_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = block(read_reply(&mut bytes.as_slice(), 16));
        }
    }
}
