//! What travels on the executor's socket (spec/executor.md 4): frames of the original, byte for byte, and our optional trailer.

mod bytes;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::time::Duration;

pub(super) use bytes::{MAGIC, MAX_TAGS, MAX_VALUE};
use bytes::{Reader, Tag, put_field, put_length, read_tags, write_tags};

/// Largest request after its first four bytes; a configuration can only lower it (spec/executor.md 3.5).
pub const MAX_FRAME: usize = 16 * 1024 * 1024;
/// Longest stream of a reply: the limit and the mark of a stream that was cut (spec/executor.md 17 item 5).
pub const MAX_STREAM: usize = 16 * 1024 * 1024 + 64;
pub const MAX_ARGS: usize = 256;
pub const MAX_REQID: usize = 128;
pub const MAX_DISPATCHER: usize = 255;
pub const MAX_SCRIPT: usize = 128;
const MAX_USERNAME: usize = 255;
const MAX_PEER_IP: usize = 64;

/// A request, decoded. Nothing of `extras` decides about rights.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Request {
    /// At most [`MAX_REQID`] bytes on the wire, without NUL; what is not UTF-8 there is replaced.
    pub reqid: String,
    /// At most [`MAX_DISPATCHER`] bytes on the wire, as `reqid`.
    pub dispatcher: String,
    /// 1 to [`MAX_SCRIPT`] bytes on the wire; whether it is a name at all is for the resolution to judge.
    pub script: String,
    pub stdin: Vec<u8>,
    /// At most [`MAX_ARGS`], without NUL bytes.
    pub args: Vec<Vec<u8>>,
    pub extras: RequestExtras,
}

/// The request's trailer.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct RequestExtras {
    /// Only ever shortens the profile's. Whole milliseconds travel.
    pub timeout: Option<Duration>,
    /// For the audit line.
    pub username: Option<String>,
    pub peer_ip: Option<String>,
    /// Answer at once and keep the result for [`JobOrder::Wait`].
    pub detach: bool,
    /// With script `.job`: about the detached run `reqid` of `dispatcher`.
    pub job: Option<JobOrder>,
}

/// The script name of requests that concern the executor itself: no script can have it, so an executor of the original refuses.
pub const JOB_SCRIPT: &str = ".job";

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum JobOrder {
    /// What can you do? Answered with features as JSON on stdout.
    Hello,
    /// The result; waits for it at most 30 s.
    Wait,
    /// State and output so far, without waiting.
    Peek,
    /// End the run.
    Cancel,
    /// The result has been stored: drop it.
    Forget,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Kind {
    #[default]
    Exit,
    Signal,
    Timeout,
    /// The sandbox could not be set up.
    Setup,
    /// Refused.
    Denied,
    Oom,
    Cancelled,
    Disconnect,
    Shutdown,
    /// Detached and started (answer to `detach`), or still running (answer to `Wait` and `Peek`).
    Running,
    /// No such job.
    Unknown,
    /// Its supervisor ended before the run did.
    Lost,
}

#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Reply {
    pub exit: i32,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    /// `None`: the executor is one of the original.
    pub extras: Option<ReplyExtras>,
}

#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct ReplyExtras {
    pub kind: Kind,
    pub signal: Option<i32>,
    pub core_dumped: bool,
    pub timed_out: bool,
    pub truncated_stdout: bool,
    pub truncated_stderr: bool,
    /// Whole microseconds travel.
    pub wall: Duration,
    pub cpu: Option<Duration>,
    /// Bytes.
    pub memory_peak: Option<u64>,
    /// Bits of [`crate::core::sandbox::Protection`].
    pub protections: u32,
}

/// Why a frame is none. The executor closes without a word on [`FrameError::NoFrame`], answers `malformed request` on the other.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum FrameError {
    #[error("{0}")]
    NoFrame(&'static str),
    #[error("{0}")]
    Malformed(&'static str),
}

use FrameError::Malformed;

/// What stands in trailers (spec/executor.md 4.4). A number is never given a second meaning.
mod tag {
    /// u64: milliseconds.
    pub(super) const TIMEOUT: u16 = 1;
    pub(super) const USERNAME: u16 = 2;
    pub(super) const PEER_IP: u16 = 3;
    /// Empty.
    pub(super) const DETACH: u16 = 4;
    /// u8: number of the order.
    pub(super) const JOB: u16 = 5;

    // Of replies.

    /// u8: number of the kind.
    pub(super) const KIND: u16 = 1;
    /// u32
    pub(super) const SIGNAL: u16 = 2;
    /// u8, bits: core dumped, timed out, stdout truncated, stderr truncated.
    pub(super) const FLAGS: u16 = 3;
    /// u64: microseconds.
    pub(super) const WALL: u16 = 4;
    /// u64: microseconds.
    pub(super) const CPU: u16 = 5;
    /// u64: bytes.
    pub(super) const MEMORY_PEAK: u16 = 6;
    /// u32
    pub(super) const PROTECTIONS: u16 = 7;
}

impl JobOrder {
    const ALL: [Self; 5] = [
        Self::Hello,
        Self::Wait,
        Self::Peek,
        Self::Cancel,
        Self::Forget,
    ];

    fn number(self) -> u8 {
        self as u8
    }

    fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|o| o.number() == number)
    }
}

impl Kind {
    const ALL: [Self; 12] = [
        Self::Exit,
        Self::Signal,
        Self::Timeout,
        Self::Setup,
        Self::Denied,
        Self::Oom,
        Self::Cancelled,
        Self::Disconnect,
        Self::Shutdown,
        Self::Running,
        Self::Unknown,
        Self::Lost,
    ];

    fn number(self) -> u8 {
        self as u8
    }

    fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|k| k.number() == number)
    }
}

/// The length of a request from its first four bytes.
///
/// # Errors
/// [`FrameError::NoFrame`]: nothing, or more than `max`.
pub fn request_length(total: [u8; 4], max: usize) -> Result<usize, FrameError> {
    match usize::try_from(u32::from_be_bytes(total)) {
        Ok(0) => Err(FrameError::NoFrame("an empty request")),
        Ok(n) if n <= max.min(MAX_FRAME) => Ok(n),
        _ => Err(FrameError::NoFrame("a request beyond the limit")),
    }
}

/// Decodes what follows the first four bytes.
///
/// # Errors
/// [`FrameError::Malformed`]
pub fn decode_request(body: &[u8]) -> Result<Request, FrameError> {
    let mut reader = Reader::new(body);
    let reqid = text(reader.field()?, MAX_REQID, "request id")?;
    let dispatcher = text(reader.field()?, MAX_DISPATCHER, "dispatcher id")?;
    let script = text(reader.field()?, MAX_SCRIPT, "script name")?;
    if script.is_empty() {
        return Err(Malformed("empty script name"));
    }
    let stdin = reader.field()?.to_vec();
    let argc = reader.length()?;
    if argc > MAX_ARGS {
        return Err(Malformed("too many arguments"));
    }
    let mut args = Vec::with_capacity(argc);
    for _ in 0..argc {
        let arg = reader.field()?;
        if arg.contains(&0) {
            return Err(Malformed("NUL in an argument"));
        }
        args.push(arg.to_vec());
    }
    let extras = match reader.rest() {
        [] => RequestExtras::default(),
        trailer => request_extras(trailer)?,
    };
    // Jobs are kept by these names: two that differ must not become one.
    let names_a_job = extras.detach || extras.job.is_some();
    let exact = |name: &Cow<'_, str>| matches!(name, Cow::Borrowed(_));
    if names_a_job && !(exact(&reqid) && exact(&dispatcher)) {
        return Err(Malformed("a name that is not UTF-8"));
    }
    if (script == JOB_SCRIPT) != extras.job.is_some() || (extras.job.is_some() && extras.detach) {
        return Err(Malformed("a job order that is none"));
    }
    Ok(Request {
        reqid: reqid.into_owned(),
        dispatcher: dispatcher.into_owned(),
        script: script.into_owned(),
        stdin,
        args,
        extras,
    })
}

fn text<'a>(bytes: &'a [u8], max: usize, what: &'static str) -> Result<Cow<'a, str>, FrameError> {
    if bytes.len() > max || bytes.contains(&0) {
        return Err(Malformed(what));
    }
    Ok(String::from_utf8_lossy(bytes))
}

fn request_extras(trailer: &[u8]) -> Result<RequestExtras, FrameError> {
    let mut extras = RequestExtras::default();
    for Tag {
        tag,
        critical,
        value,
    } in read_tags(trailer)?
    {
        match tag {
            tag::TIMEOUT => extras.timeout = Some(Duration::from_millis(number(value)?)),
            tag::USERNAME => {
                extras.username = Some(text(value, MAX_USERNAME, "user name")?.into_owned());
            }
            tag::PEER_IP => {
                extras.peer_ip = Some(text(value, MAX_PEER_IP, "peer address")?.into_owned());
            }
            tag::DETACH if value.is_empty() => extras.detach = true,
            tag::JOB => {
                let &[order] = value else {
                    return Err(Malformed("a job order that is none"));
                };
                let order = JobOrder::from_number(order);
                extras.job = Some(order.ok_or(Malformed("an unknown job order"))?);
            }
            tag::DETACH => return Err(Malformed("a mark with a value")),
            _ if critical => return Err(Malformed("an unknown demand")),
            _ => {}
        }
    }
    Ok(extras)
}

fn number(value: &[u8]) -> Result<u64, FrameError> {
    let bytes = value.try_into();
    bytes
        .map(u64::from_be_bytes)
        .map_err(|_| Malformed("a number of another size"))
}

fn small_number(value: &[u8]) -> Result<u32, FrameError> {
    let bytes = value.try_into();
    bytes
        .map(u32::from_be_bytes)
        .map_err(|_| Malformed("a number of another size"))
}

/// The whole request with its first four bytes; a trailer only if there are extras. What must not be passed over (detach, job) is marked
/// so; the timeout is not, because the caller watches the time as well.
///
/// # Errors
/// [`FrameError::NoFrame`]: it would be longer than [`MAX_FRAME`]. Whatever else is beyond a limit is for the executor to refuse.
pub fn encode_request(request: &Request) -> Result<Vec<u8>, FrameError> {
    let mut frame = vec![0; 4];
    for field in [
        request.reqid.as_bytes(),
        request.dispatcher.as_bytes(),
        request.script.as_bytes(),
        &request.stdin,
    ] {
        put_field(&mut frame, field);
    }
    put_length(&mut frame, request.args.len());
    for arg in &request.args {
        put_field(&mut frame, arg);
    }
    let extras = &request.extras;
    let mut tags: Vec<(u16, bool, Vec<u8>)> = Vec::new();
    if let Some(timeout) = extras.timeout {
        let millis = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
        tags.push((tag::TIMEOUT, false, millis.to_be_bytes().to_vec()));
    }
    for (name, value, max) in [
        (tag::USERNAME, &extras.username, MAX_USERNAME),
        (tag::PEER_IP, &extras.peer_ip, MAX_PEER_IP),
    ] {
        if let Some(value) = value {
            tags.push((name, false, audit_text(value, max).into_bytes()));
        }
    }
    if extras.detach {
        tags.push((tag::DETACH, true, Vec::new()));
    }
    if let Some(order) = extras.job {
        tags.push((tag::JOB, true, vec![order.number()]));
    }
    write_tags(&mut frame, &tags);
    let total = frame.len() - 4;
    match u32::try_from(total) {
        Ok(announced) if total <= MAX_FRAME => {
            frame[..4].copy_from_slice(&announced.to_be_bytes());
            Ok(frame)
        }
        _ => Err(FrameError::NoFrame("a request beyond the limit")),
    }
}

/// A name from outside, cut to what the audit line takes: too long a name of a user is no reason to refuse a run.
fn audit_text(value: &str, max: usize) -> String {
    let mut text = value.replace('\0', "\u{fffd}");
    let fits = text.char_indices().map(|(at, c)| at + c.len_utf8());
    let end = fits.take_while(|end| *end <= max).last();
    text.truncate(end.unwrap_or(0));
    text
}

/// The whole reply, trailer included if there are extras.
pub fn encode_reply(reply: &Reply) -> Vec<u8> {
    let mut frame = reply.exit.to_be_bytes().to_vec();
    put_field(&mut frame, &reply.stdout);
    put_field(&mut frame, &reply.stderr);
    let Some(extras) = &reply.extras else {
        return frame;
    };
    let micros = |d: Duration| {
        let micros = u64::try_from(d.as_micros()).unwrap_or(u64::MAX);
        micros.to_be_bytes().to_vec()
    };
    let marks = [
        extras.core_dumped,
        extras.timed_out,
        extras.truncated_stdout,
        extras.truncated_stderr,
    ];
    let flags = marks
        .iter()
        .enumerate()
        .fold(0_u8, |bits, (at, set)| bits | (u8::from(*set) << at));
    let mut tags = vec![
        (tag::KIND, true, vec![extras.kind.number()]),
        (tag::FLAGS, false, vec![flags]),
        (tag::WALL, false, micros(extras.wall)),
        (
            tag::PROTECTIONS,
            false,
            extras.protections.to_be_bytes().to_vec(),
        ),
    ];
    if let Some(signal) = extras.signal {
        tags.push((tag::SIGNAL, false, signal.to_be_bytes().to_vec()));
    }
    if let Some(cpu) = extras.cpu {
        tags.push((tag::CPU, false, micros(cpu)));
    }
    if let Some(peak) = extras.memory_peak {
        tags.push((tag::MEMORY_PEAK, false, peak.to_be_bytes().to_vec()));
    }
    write_tags(&mut frame, &tags);
    frame
}

/// Decodes a whole reply, as [`encode_reply`] made it or as the original sends it.
///
/// # Errors
/// [`FrameError::NoFrame`] when not even the exit word is there, [`FrameError::Malformed`] when it breaks off later or is none.
pub fn decode_reply(bytes: &[u8]) -> Result<Reply, FrameError> {
    let mut reader = Reader::new(bytes);
    let exit = reader
        .word()
        .map_err(|_| FrameError::NoFrame("no exit word"))?;
    let stdout = reader.field()?.to_vec();
    let stderr = reader.field()?.to_vec();
    let extras = match reader.rest() {
        [] => None,
        trailer => Some(decode_reply_trailer(trailer)?),
    };
    Ok(Reply {
        exit: i32::from_be_bytes(exit),
        stdout,
        stderr,
        extras,
    })
}

/// Decodes what follows stderr.
///
/// # Errors
/// [`FrameError::Malformed`]
pub fn decode_reply_trailer(trailer: &[u8]) -> Result<ReplyExtras, FrameError> {
    let mut extras = ReplyExtras::default();
    for Tag {
        tag,
        critical,
        value,
    } in read_tags(trailer)?
    {
        match tag {
            tag::KIND => {
                let &[kind] = value else {
                    return Err(Malformed("a kind that is none"));
                };
                extras.kind = Kind::from_number(kind).ok_or(Malformed("an unknown kind"))?;
            }
            tag::SIGNAL => {
                let signal = i32::try_from(small_number(value)?);
                extras.signal = Some(signal.map_err(|_| Malformed("a signal that is none"))?);
            }
            tag::FLAGS => {
                let &[flags] = value else {
                    return Err(Malformed("flags of another size"));
                };
                extras.core_dumped = flags & 1 != 0;
                extras.timed_out = flags & 2 != 0;
                extras.truncated_stdout = flags & 4 != 0;
                extras.truncated_stderr = flags & 8 != 0;
            }
            tag::WALL => extras.wall = Duration::from_micros(number(value)?),
            tag::CPU => extras.cpu = Some(Duration::from_micros(number(value)?)),
            tag::MEMORY_PEAK => extras.memory_peak = Some(number(value)?),
            tag::PROTECTIONS => extras.protections = small_number(value)?,
            _ if critical => return Err(Malformed("an unknown demand")),
            _ => {}
        }
    }
    Ok(extras)
}
