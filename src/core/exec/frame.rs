//! What travels on the executor's socket (spec/executor.md 4): frames of the original, byte for byte, and our optional trailer.

use std::time::Duration;

/// A request, decoded. Nothing of `extras` decides about rights.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Request {
    /// At most 128 bytes.
    pub reqid: String,
    /// At most 255 bytes.
    pub dispatcher: String,
    /// At most 128 bytes; judged by the resolution, not here.
    pub script: String,
    pub stdin: Vec<u8>,
    /// Without NUL bytes.
    pub args: Vec<Vec<u8>>,
    pub extras: RequestExtras,
}

/// The request's trailer.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct RequestExtras {
    /// Only ever shortens the profile's.
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

/// Decodes what follows the first four bytes.
///
/// # Errors
/// [`FrameError::Malformed`]
pub fn decode_request(_body: &[u8]) -> Result<Request, FrameError> {
    todo!()
}

/// The whole reply, trailer included if there are extras.
pub fn encode_reply(_reply: &Reply) -> Vec<u8> {
    todo!()
}
