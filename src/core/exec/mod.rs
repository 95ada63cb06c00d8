//! Running a script: directly (`runner`) or by way of the root executor (`executor_client`). Both yield an [`Outcome`].

pub mod executor_client;
pub mod frame;
pub mod runner;
pub mod tail;

/// Appended to a stream of which at least one byte was dropped (spec/executor.md 10).
pub const TRUNCATED_MARK: &[u8] = b"\n[output truncated]\n";

/// How a run ended, in bytes as the script wrote them. [`lossy`] makes text of them at the rim.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Outcome {
    /// 0..=255 the script's own; 126 killed by a signal or cut short at its deadline; 127 could not be executed; -1 not run at all.
    pub exit: i32,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    /// Signal that ended the script.
    pub signal: Option<i32>,
    /// Bytes beyond the limit were dropped from stdout or stderr; the stream then ends in [`TRUNCATED_MARK`].
    pub truncated: bool,
    /// The script was ended at its deadline.
    pub timed_out: bool,
    /// The script was ended before, because somebody wished it.
    pub cancelled: bool,
    /// `Some(bytes)` when the script did not read its context in time: so many bytes were not written.
    pub stdin_unsent: Option<usize>,
}

impl Outcome {
    /// A run that did not come to pass, with the reason where the caller of a script looks for it.
    pub fn failed(exit: i32, reason: impl AsRef<str>) -> Self {
        let mut stderr = reason.as_ref().as_bytes().to_vec();
        stderr.push(b'\n');
        Self {
            exit,
            stderr,
            ..Self::default()
        }
    }
}

/// Output as text for JSON: what is not UTF-8 becomes the replacement character.
pub fn lossy(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_that_is_not_utf8_is_decoded_lossily() {
        assert_eq!(lossy(b"a\xffb".to_vec()), "a\u{fffd}b");
        assert_eq!(lossy("grün".as_bytes().to_vec()), "grün");
    }
}
