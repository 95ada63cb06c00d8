//! Where it all happens: the root directory, and programs of the host.

use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::process::{ChildStderr, Command, Stdio};
use std::time::{Duration, Instant};

use crate::core::config::diagnostics::printable;
use crate::core::durable::DurableError;

/// Longest that a program of the host may take: a service that is restarted may first see its requests through.
const DEADLINE: Duration = Duration::from_secs(180);
/// Most that is kept of what a program complains about, in bytes.
const COMPLAINT: usize = 4 * 1024;
const SEARCH_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Why it stopped, at which path, and what to do. What was done before stays; the same command goes on from there.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error("{0}; mend that and give the same command again")]
    Durable(#[from] DurableError),
    #[error("cannot {what} '{}': {source}; mend that and give the same command again", .path.display())]
    Io {
        what: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("'{}' leads out of '{}' by a symbolic link: install inside that system (chroot), or mend the link", .path.display(), .root.display())]
    Escapes { path: PathBuf, root: PathBuf },
    #[error("there is no account '{name}' in '{}': it should just have been made; give the same command again", .file.display())]
    NoAccount { name: &'static str, file: PathBuf },
    #[error("'{words}' failed: {why}\nMend that and give the same command again")]
    Program { words: String, why: String },
}

impl Failure {
    pub(super) fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::Io { what, path, source }
    }
}

#[derive(Clone, Debug)]
pub(super) struct World {
    root: PathBuf,
    /// The same without links.
    real: PathBuf,
}

/// How a program of the host has ended.
pub(super) struct Ended {
    /// `None`: by a signal.
    pub(super) code: Option<i32>,
    /// Safe to show; may have several lines.
    pub(super) complaint: String,
}

/// What a program complains about, as far as it is kept. The rest is read too, so that the pipe never keeps it waiting.
struct Complaint {
    from: Option<ChildStderr>,
    bytes: Vec<u8>,
}

impl Complaint {
    /// A daemon that was started may hold the pipe open for ever: nobody waits for its end.
    fn new(from: Option<ChildStderr>) -> Self {
        Self {
            from: from.filter(|pipe| rustix::io::ioctl_fionbio(pipe, true).is_ok()),
            bytes: Vec::new(),
        }
    }

    /// What is there by now, and not for ever, of who never stops.
    fn read(&mut self) {
        let Some(from) = &mut self.from else { return };
        let mut piece = [0; 1024];
        for _ in 0..1024 {
            let Ok(got @ 1..) = from.read(&mut piece) else {
                return;
            };
            let room = COMPLAINT.saturating_sub(self.bytes.len()).min(got);
            self.bytes.extend(piece.iter().take(room));
        }
    }

    fn text(mut self) -> String {
        self.read();
        let text = String::from_utf8_lossy(&self.bytes);
        let lines: Vec<String> = text.trim().lines().map(printable).collect();
        lines.join("\n")
    }
}

impl World {
    /// # Errors
    /// There is no such directory, or nothing in it that looks like the root of a system.
    pub(super) fn new(root: &Path) -> Result<Self, Failure> {
        let etc = root.join("etc");
        std::fs::metadata(&etc).map_err(Failure::io("use as the root of a system: no", &etc))?;
        Ok(Self {
            root: root.to_owned(),
            real: root.canonicalize().map_err(Failure::io("use", root))?,
        })
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// Whether this is the running system itself.
    pub(super) fn is_here(&self) -> bool {
        self.real == Path::new("/")
    }

    /// Where a path of the system lies. The last part is not followed, the directories above it must not lead out of the root.
    ///
    /// # Errors
    /// They do.
    pub(super) fn at(&self, path: &Path) -> Result<PathBuf, Failure> {
        let full = self.root.join(path.strip_prefix("/").unwrap_or(path));
        let mut above = full.parent();
        while let Some(dir) = above.filter(|_| !self.is_here()) {
            match dir.canonicalize() {
                Ok(real) if real.starts_with(&self.real) => break,
                // A link to nowhere, as far as the host is concerned, may lead somewhere inside that system.
                Err(_) if dir.symlink_metadata().is_err() => above = dir.parent(),
                _ => {
                    return Err(Failure::Escapes {
                        path: dir.to_owned(),
                        root: self.root.clone(),
                    });
                }
            }
        }
        Ok(full)
    }

    /// Runs a program of the host to its end.
    ///
    /// # Errors
    /// It cannot be started, or takes too long; it is killed then.
    pub(super) fn run(&self, words: &[String]) -> Result<Ended, Failure> {
        let failed = |why: String| Failure::Program {
            words: words.join(" "),
            why,
        };
        let (program, rest) = words
            .split_first()
            .ok_or_else(|| failed("no words".to_owned()))?;
        let mut child = Command::new(program)
            .args(rest)
            .env("PATH", SEARCH_PATH)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|e| failed(e.to_string()))?;
        let mut complaint = Complaint::new(child.stderr.take());
        let end = Instant::now() + DEADLINE;
        let mut pause = Duration::from_millis(1);
        let status = loop {
            if let Some(status) = child.try_wait().map_err(|e| failed(e.to_string()))? {
                break status;
            }
            if Instant::now() >= end {
                let _ = child.kill();
                let _ = child.wait();
                let said = complaint.text();
                return Err(failed(
                    format!("not done after {} s\n{said}", DEADLINE.as_secs())
                        .trim_end()
                        .to_owned(),
                ));
            }
            complaint.read();
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(50));
        };
        Ok(Ended {
            code: status.code(),
            complaint: complaint.text(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_link_leads_out_of_the_root() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        std::fs::create_dir_all(root.join("etc")).unwrap();
        std::fs::create_dir_all(root.join("tmp")).unwrap();
        let link = |to: &str, name: &str| std::os::unix::fs::symlink(to, root.join(name)).unwrap();
        link("tmp", "var");
        link("/tmp", "opt");
        link("/nowhere-at-all", "srv");
        link("../..", "up");
        let world = World::new(&root).unwrap();
        let at = |path: &str| world.at(Path::new(path));
        assert_eq!(at("/var/lib/x").unwrap(), root.join("var/lib/x"));
        assert_eq!(at("/opt").unwrap(), root.join("opt"));
        for bad in ["/opt/x", "/opt/x/y/z", "/srv/x", "/up/x"] {
            let error = at(bad).unwrap_err().to_string();
            assert!(error.contains("leads out of"), "{bad}: {error}");
        }
        assert!(World::new(&dir.path().join("nothing")).is_err());
    }

    #[test]
    fn programs_end_with_their_code_and_what_they_complain_about() {
        let world = World::new(Path::new("/")).unwrap();
        let words = |script: &str| ["sh", "-c", script].map(str::to_owned);
        let ended = world.run(&words("echo out; echo no >&2; exit 6")).unwrap();
        assert_eq!((ended.code, ended.complaint.as_str()), (Some(6), "no"));
        // Nothing that a terminal would obey, and not without end.
        let ended = world
            .run(&words(r"printf 'a\033[2J\nb\n' >&2; exit 1"))
            .unwrap();
        assert_eq!(ended.complaint, "a\\u{1b}[2J\nb");
        let ended = world
            .run(&words("head -c 1000000 /dev/zero | tr '\\0' x >&2; exit 3"))
            .unwrap();
        assert_eq!((ended.code, ended.complaint.len()), (Some(3), COMPLAINT));
        // What it leaves running does not keep us.
        let ended = world.run(&words("sleep 5 & exit 0")).unwrap();
        assert_eq!(ended.code, Some(0));
        assert!(world.run(&["no-such-program-here".to_owned()]).is_err());
    }
}
