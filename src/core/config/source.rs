//! A configuration file in memory: opened once, judged by what is open, read within a bound (spec/executor.md 7.6).

use std::fs::File;
use std::io::{self, Read as _};
use std::ops::Range;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use super::diagnostics::{Diagnostic, Excerpt, Position, Severity};
use super::error::ConfigError;
use crate::core::secure_open::{self, OpenError, Trust};

/// Largest configuration file.
pub const MAX_BYTES: u64 = 1024 * 1024;

/// The words of the original in which a file that cannot be opened is reported.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    Config,
    Allowlist,
}

impl Kind {
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Config => "config",
            Self::Allowlist => "allowlist",
        }
    }
}

/// Text of a file with what is needed to say where in it something stands.
#[derive(Debug)]
pub struct SourceFile {
    pub path: PathBuf,
    /// Lossy UTF-8: bytes that are not UTF-8 became U+FFFD.
    pub text: String,
    /// Byte offset of the begin of each line.
    line_starts: Vec<usize>,
    /// Line numbers (from 0) that held bytes that are not UTF-8.
    broken: Vec<usize>,
}

/// One line without its line end.
#[derive(Clone, Copy, Debug)]
pub struct Line<'a> {
    pub text: &'a str,
    /// Byte offset of the line in the file.
    pub start: usize,
    pub not_utf8: bool,
}

impl SourceFile {
    pub fn new(path: &Path, bytes: &[u8]) -> Self {
        let broken = bytes
            .split(|&b| b == b'\n')
            .enumerate()
            .filter(|(_, line)| std::str::from_utf8(line).is_err())
            .map(|(index, _)| index)
            .collect();
        let text = String::from_utf8_lossy(bytes).into_owned();
        let line_starts = std::iter::once(0)
            .chain(text.match_indices('\n').map(|(index, _)| index + 1))
            .collect();
        Self {
            path: path.to_owned(),
            text,
            line_starts,
            broken,
        }
    }

    /// Opens, judges and reads a file. The warnings are about its mode.
    ///
    /// # Errors
    /// The file cannot be opened or read, is not a regular file, is too large, may be written by everybody or belongs to somebody
    /// who has no say here (anyone but root and our own effective user), or everybody may replace it in its directory.
    pub fn read(path: &Path, kind: Kind) -> Result<(Self, Vec<Diagnostic>), ConfigError> {
        let open = |error: &io::Error| ConfigError::Open {
            kind: kind.word(),
            path: path.to_owned(),
            reason: reason(error),
        };
        let untrusted = |reason: String| ConfigError::Untrusted {
            path: path.to_owned(),
            reason,
        };
        // O_NONBLOCK: a FIFO in place of the file must not hold us for ever.
        let file = std::fs::OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC | libc::O_NOCTTY)
            .open(path)
            .map_err(|e| open(&e))?;
        let meta = file.metadata().map_err(|e| open(&e))?;
        if !meta.is_file() {
            return Err(untrusted("it is not a regular file".to_owned()));
        }
        let ours = rustix::process::geteuid().as_raw();
        let mut warnings = Vec::new();
        match judge(meta.uid(), meta.gid(), meta.mode(), ours) {
            Verdict::Trusted => {}
            Verdict::Doubtful(reason) => {
                warnings.push(Diagnostic::of_file(path, Severity::Warning, reason));
            }
            Verdict::Refused(reason) => return Err(untrusted(reason)),
        }
        if let Err(OpenError::OpenDirectory { directory, .. }) =
            secure_open::open_trusted(path, Trust::Public)
        {
            return Err(untrusted(format!(
                "everybody may replace it, because directory '{}' is writable for all (chmod o-w)",
                directory.display()
            )));
        }
        let bytes = read_bounded(&file).map_err(|e| open(&e))?;
        Ok((Self::new(path, &bytes), warnings))
    }

    /// Whether nothing but white space is in it.
    pub fn is_blank(&self) -> bool {
        self.text.trim().is_empty()
    }

    pub fn lines(&self) -> impl Iterator<Item = Line<'_>> {
        (0..self.line_starts.len()).filter_map(|index| self.line(index))
    }

    /// A line by its number from 0.
    fn line(&self, index: usize) -> Option<Line<'_>> {
        let start = *self.line_starts.get(index)?;
        let end = self
            .line_starts
            .get(index + 1)
            .map_or(self.text.len(), |next| next - 1);
        let line = self.text.get(start..end).unwrap_or_default();
        Some(Line {
            text: line.strip_suffix('\r').unwrap_or(line),
            start,
            not_utf8: self.broken.binary_search(&index).is_ok(),
        })
    }

    /// The lines that are not UTF-8.
    pub fn broken_lines(&self) -> impl Iterator<Item = Line<'_>> {
        self.broken.iter().filter_map(|&index| self.line(index))
    }

    /// Line and column of a byte offset; one beyond the end counts as the end.
    pub fn position(&self, offset: usize) -> Position {
        let index = self.line_number(offset) - 1;
        let start = self.line_starts.get(index).copied().unwrap_or(0);
        let rest = self.text.get(start..).unwrap_or_default();
        let column = rest
            .char_indices()
            .take_while(|(at, _)| start + at < offset)
            .count();
        Position {
            line: index + 1,
            column: column + 1,
        }
    }

    /// Number of the line of a byte offset, from 1.
    pub fn line_number(&self, offset: usize) -> usize {
        self.line_starts
            .partition_point(|&start| start <= offset)
            .max(1)
    }

    /// A diagnostic about the text that a span covers.
    pub fn diagnostic(
        &self,
        severity: Severity,
        span: &Range<usize>,
        message: impl Into<String>,
    ) -> Diagnostic {
        let position = self.position(span.start);
        let line = self.line(position.line - 1);
        Diagnostic {
            path: self.path.clone(),
            position: Some(position),
            severity,
            message: message.into(),
            excerpt: line.map(|l| Excerpt::new(l.text, position.column)),
        }
    }

    /// A diagnostic about the file as a whole.
    pub fn of_file(&self, severity: Severity, message: impl Into<String>) -> Diagnostic {
        Diagnostic::of_file(&self.path, severity, message)
    }
}

/// The text of an operating system error as Perl prints it: without the number.
pub(super) fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    match text.find(" (os error") {
        Some(end) => text[..end].to_owned(),
        None => text,
    }
}

fn read_bounded(file: &File) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(io::Error::other(format!(
            "it is larger than {MAX_BYTES} bytes"
        )));
    }
    Ok(bytes)
}

#[derive(Debug, Eq, PartialEq)]
enum Verdict {
    Trusted,
    Doubtful(String),
    Refused(String),
}

/// Decides by owner, group and mode whether a file may tell us what to run.
fn judge(uid: u32, gid: u32, mode: u32, our_uid: u32) -> Verdict {
    if uid != 0 && uid != our_uid {
        return Verdict::Refused(format!(
            "it belongs to user {uid}: a configuration must belong to root or to the user who reads it (chown root)"
        ));
    }
    if mode & 0o002 != 0 {
        return Verdict::Refused(format!(
            "everybody may write it (mode {:04o}): whoever writes it decides what runs here (chmod o-w)",
            mode & 0o7777
        ));
    }
    if mode & 0o020 != 0 && gid != 0 {
        return Verdict::Doubtful(format!(
            "group {gid} may write it (mode {:04o}): whoever writes it decides what runs here (chmod g-w)",
            mode & 0o7777
        ));
    }
    Verdict::Trusted
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn owner_and_mode_decide() {
        assert_eq!(judge(0, 990, 0o100_640, 1000), Verdict::Trusted);
        assert_eq!(judge(1000, 1000, 0o100_600, 1000), Verdict::Trusted);
        assert_eq!(judge(0, 0, 0o100_664, 1000), Verdict::Trusted);
        assert!(matches!(
            judge(0, 5, 0o100_660, 0),
            Verdict::Doubtful(t) if t.contains("0660")
        ));
        assert!(matches!(
            judge(0, 0, 0o100_666, 0),
            Verdict::Refused(t) if t.contains("everybody")
        ));
        assert!(matches!(
            judge(1001, 0, 0o100_600, 1000),
            Verdict::Refused(_)
        ));
        assert!(matches!(judge(1001, 0, 0o100_600, 0), Verdict::Refused(_)));
    }

    #[test]
    fn what_cannot_be_trusted_is_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.conf");
        let read = |p: &Path| SourceFile::read(p, Kind::Config).map(|(s, w)| (s.text, w.len()));
        assert!(read(&path).unwrap_err().to_string().contains(&format!(
            "Cannot open config '{}': No such file",
            path.display()
        )));
        std::fs::write(&path, "x").unwrap();
        let mode = |m| std::fs::set_permissions(&path, std::fs::Permissions::from_mode(m)).unwrap();
        mode(0o666);
        assert!(read(&path).unwrap_err().to_string().contains("everybody"));
        mode(0o640);
        assert_eq!(read(&path).unwrap(), ("x".to_owned(), 0));
        let open_dir = |m| std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(m));
        open_dir(0o777).unwrap();
        let error = read(&path).unwrap_err().to_string();
        assert!(error.contains("directory"), "{error}");
        open_dir(0o700).unwrap();
        std::fs::write(&path, vec![b'a'; 1024 * 1024 + 1]).unwrap();
        assert!(read(&path).unwrap_err().to_string().contains("larger"));
        let fifo = dir.path().join("fifo");
        rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, 0o600.into()).unwrap();
        assert!(read(&fifo).unwrap_err().to_string().contains("regular"));
        assert!(
            read(dir.path())
                .unwrap_err()
                .to_string()
                .contains("regular")
        );
    }

    #[test]
    fn positions_count_characters() {
        let source = SourceFile::new(Path::new("f"), "é = 1\r\nzwei\n".as_bytes());
        assert_eq!(source.position(3), Position { line: 1, column: 3 });
        assert_eq!(source.position(8), Position { line: 2, column: 1 });
        assert_eq!(source.position(9999).line, 3);
        let lines: Vec<&str> = source.lines().map(|l| l.text).collect();
        assert_eq!(lines, ["é = 1", "zwei", ""]);
    }

    #[test]
    fn lines_that_are_not_utf8_are_known_by_number() {
        let source = SourceFile::new(Path::new("f"), b"ok\nb\xffd\nok");
        let broken: Vec<bool> = source.lines().map(|l| l.not_utf8).collect();
        assert_eq!(broken, [false, true, false]);
    }

    proptest! {
        #[test]
        fn any_bytes_and_any_offset_are_fine(bytes in proptest::collection::vec(any::<u8>(), 0..200), offset in 0usize..300) {
            let source = SourceFile::new(Path::new("f"), &bytes);
            let d = source.diagnostic(Severity::Error, &(offset..offset), "m");
            prop_assert!(d.position.unwrap().line <= source.lines().count());
            let _ = d.to_string();
        }
    }
}
