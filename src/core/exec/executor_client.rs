//! Client of the root executor's socket: one request per connection, length-prefixed big-endian frames
//! (spec/agent.md 11.3, spec/executor.md 4).

use std::io;
use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::{Outcome, TRUNCATED_MARK, frame};

/// Longest stream that an executor may send: its own limit of 16 MiB and its mark (spec/executor.md 3.5, 17 item 5).
const MAX_FIELD: usize = 16 * 1024 * 1024 + 64;
/// Longest wait for the socket to take the connection and the request.
const SEND_TIMEOUT: Duration = Duration::from_secs(10);

/// What to run. The path is never sent: the executor finds it itself.
#[derive(Clone, Debug)]
pub struct ExecutorRequest {
    pub reqid: String,
    pub dispatcher: String,
    pub script: String,
    pub stdin: Vec<u8>,
    pub args: Vec<String>,
}

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
/// `run_timeout` bounds the wait for the answer, `max_output` what is kept of each stream.
pub async fn run_by_executor(
    socket: &Path,
    request: &ExecutorRequest,
    run_timeout: Duration,
    max_output: usize,
) -> Outcome {
    match call(socket, request, run_timeout, max_output).await {
        Ok(outcome) => outcome,
        Err(error) => Outcome {
            exit: -1,
            stderr: error.to_string().into_bytes(),
            ..Outcome::default()
        },
    }
}

/// One exchange with all that an executor of ours understands; an executor of the original answers it like any other request.
///
/// # Errors
/// No executor listens, it goes away, or it does not answer within `deadline`.
pub async fn call_raw(
    socket: &Path,
    request: &frame::Request,
    deadline: Duration,
) -> Result<frame::Reply, ExecutorError> {
    let plain = ExecutorRequest {
        reqid: request.reqid.clone(),
        dispatcher: request.dispatcher.clone(),
        script: request.script.clone(),
        stdin: request.stdin.clone(),
        args: request.args.iter().cloned().map(super::lossy).collect(),
    };
    let outcome = call(socket, &plain, deadline, MAX_FIELD).await?;
    Ok(frame::Reply {
        exit: outcome.exit,
        stdout: outcome.stdout,
        stderr: outcome.stderr,
        extras: None,
    })
}

/// The exchange itself.
///
/// # Errors
/// No executor listens, it goes away, or it does not answer within `run_timeout`.
pub async fn call(
    socket: &Path,
    request: &ExecutorRequest,
    run_timeout: Duration,
    max_output: usize,
) -> Result<Outcome, ExecutorError> {
    let late = || io::Error::from_raw_os_error(libc::ETIMEDOUT);
    let mut stream = timeout(SEND_TIMEOUT, UnixStream::connect(socket))
        .await
        .unwrap_or_else(|_| Err(late()))
        .map_err(ExecutorError::Unreachable)?;
    let frame = encode(request).map_err(ExecutorError::Write)?;
    timeout(SEND_TIMEOUT, stream.write_all(&frame))
        .await
        .unwrap_or_else(|_| Err(late()))
        .map_err(ExecutorError::Write)?;
    timeout(run_timeout, read_reply(&mut stream, max_output))
        .await
        .unwrap_or(Err(ExecutorError::Silent(run_timeout.as_secs())))
}

/// `u32 total`, then the fields.
fn encode(request: &ExecutorRequest) -> io::Result<Vec<u8>> {
    let mut frame = vec![0; 4];
    for field in [
        request.reqid.as_bytes(),
        request.dispatcher.as_bytes(),
        request.script.as_bytes(),
        &request.stdin,
    ] {
        put_field(&mut frame, field)?;
    }
    frame.extend_from_slice(&length(request.args.len())?);
    for arg in &request.args {
        put_field(&mut frame, arg.as_bytes())?;
    }
    let total = length(frame.len() - 4)?;
    frame[..4].copy_from_slice(&total);
    Ok(frame)
}

fn put_field(frame: &mut Vec<u8>, field: &[u8]) -> io::Result<()> {
    frame.extend_from_slice(&length(field.len())?);
    frame.extend_from_slice(field);
    Ok(())
}

fn length(n: usize) -> io::Result<[u8; 4]> {
    u32::try_from(n)
        .map(u32::to_be_bytes)
        .map_err(|_| io::Error::from_raw_os_error(libc::EMSGSIZE))
}

async fn read_reply(
    stream: &mut (impl AsyncRead + Unpin),
    max_output: usize,
) -> Result<Outcome, ExecutorError> {
    let mut exit = [0; 4];
    let mut got = 0;
    while got < exit.len() {
        match stream.read(&mut exit[got..]).await {
            Ok(n @ 1..) => got += n,
            _ => return Err(ExecutorError::Closed),
        }
    }
    let (stdout, cut_out) = read_field(stream, max_output).await?;
    let (stderr, cut_err) = read_field(stream, max_output).await?;
    Ok(Outcome {
        exit: i32::from_be_bytes(exit),
        stdout,
        stderr,
        truncated: cut_out || cut_err,
        ..Outcome::default()
    })
}

/// Reads one field, keeping at most `keep` bytes of it. The memory grows with what arrives, not with what is announced.
async fn read_field(
    stream: &mut (impl AsyncRead + Unpin),
    keep: usize,
) -> Result<(Vec<u8>, bool), ExecutorError> {
    let truncated = |_| ExecutorError::Truncated;
    let announced = stream.read_u32().await.map_err(truncated)?;
    let mut left = usize::try_from(announced)
        .ok()
        .filter(|&n| n <= MAX_FIELD)
        .ok_or(ExecutorError::Truncated)?;
    let cut_here = left > keep;
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
    let cut_there = kept.ends_with(TRUNCATED_MARK);
    if cut_here {
        kept.extend_from_slice(TRUNCATED_MARK);
    }
    Ok((kept, cut_here || cut_there))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn request() -> ExecutorRequest {
        ExecutorRequest {
            reqid: "r1".into(),
            dispatcher: "d1".into(),
            script: "echo".into(),
            stdin: b"hi\n".to_vec(),
            args: vec!["a".into()],
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
        assert_eq!(server.join().unwrap(), encode(&request()).unwrap()[4..]);
        outcome
    }

    fn reply(exit: i32, stdout: &[u8], stderr: &[u8]) -> Vec<u8> {
        let mut bytes = exit.to_be_bytes().to_vec();
        put_field(&mut bytes, stdout).unwrap();
        put_field(&mut bytes, stderr).unwrap();
        bytes
    }

    #[test]
    fn the_frame_is_the_one_of_the_specification() {
        let mut words = Vec::new();
        words.extend_from_slice(&0x24_u32.to_be_bytes());
        words.extend_from_slice(b"\0\0\0\x02r1\0\0\0\x02d1\0\0\0\x04echo\0\0\0\x03hi\n\0\0\0\x01");
        words.extend_from_slice(b"\0\0\0\x01a");
        assert_eq!(encode(&request()).unwrap(), words);
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
        let outcome = block(run_by_executor(
            &path,
            &request(),
            Duration::from_millis(50),
            1000,
        ));
        assert_eq!(outcome.exit, -1);
        assert!(outcome.stderr.starts_with(b"executor closed"));
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
            let outcome = block(read_reply(&mut bytes.as_slice(), 1000)).unwrap();
            prop_assert_eq!((outcome.exit, outcome.stdout, outcome.stderr), (exit, out, err));
        }

        #[test]
        fn no_reply_makes_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = block(read_reply(&mut bytes.as_slice(), 16));
        }
    }
}
