//! The file that is about to run: who could have changed it, and is it the one that was pinned (spec/executor.md 15.10).
//!
//! - `walk` opens a path component by component and hands what it finds to
//! - `judge`, the rules. Pure.
//! - `digest` is the SHA-256 of the open file.
//!
//! The file is opened once. What is judged, hashed and copied is that open file, never the path again.

pub mod digest;
pub mod executable;
mod judge;
mod walk;

#[cfg(test)]
mod tests;

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use super::{Level, NotPrepared, Protection, Protections};
use crate::core::config::{Annotations, Baseline, ExecutorConfig, ProfileConfig, ScriptTrust};

pub use judge::Finding;

/// A script that passed.
#[derive(Debug, Default)]
pub struct Checked {
    /// What was read and judged, when a verified copy shall run.
    pub copy: Option<Vec<u8>>,
    /// Findings of `script_trust = warn`.
    pub warnings: Vec<String>,
}

/// Largest script that is copied; a larger one runs from its own file.
pub const MAX_COPY: u64 = 16 * 1024 * 1024;

/// Judges the script at `path` for a run as `uid`.
///
/// # Errors
/// `untrusted-script` or `digest-mismatch`, with the file or directory and what to do; `setup` when it is not there at all.
pub fn check(
    path: &Path,
    uid: u32,
    profile: &ProfileConfig,
    annotations: &Annotations,
    executor: &ExecutorConfig,
    report: &mut Protections,
) -> Result<Checked, NotPrepared> {
    let pinned = annotations.digest;
    if pinned.is_none() && executor.require_digest {
        return Err(NotPrepared::new(
            "digest-mismatch",
            format!(
                "no digest is pinned for '{}', but require_digest is on: add what 'ctrl-exec-exec digest {}' prints to its line in the allowlist",
                path.display(),
                path.display()
            ),
        ));
    }
    report.set(Protection::ScriptTrust, Level::Off);
    report.set(Protection::Digest, Level::Off);
    report.set(Protection::VerifiedCopy, Level::Off);
    let copy = wants_copy(profile, pinned.is_some());
    let trust = profile.script_trust;
    if trust == ScriptTrust::Off && pinned.is_none() && !copy {
        return Ok(Checked::default());
    }

    let walked = match walk::walk(path, uid, walk::Role::Script) {
        Ok(walked) => walked,
        Err(lost) => return without_file(path, &lost, trust, pinned.is_some()),
    };
    let mut findings = walked.findings;
    if trust != ScriptTrust::Off {
        findings.extend(walk::interpreters(&walked.file, uid));
    }
    let warnings = settle_trust(trust, &findings, report)?;

    let mut checked = Checked {
        copy: None,
        warnings,
    };
    if pinned.is_none() && !copy {
        return Ok(checked);
    }
    let bytes = read_bounded(&walked.file, path)?;
    if let Some(pinned) = pinned {
        let found = match &bytes {
            Some(bytes) => digest::of_bytes(bytes),
            None => digest::of_file(&walked.file).map_err(|e| unreadable(path, &e))?,
        };
        if !digest::equal(&found, &pinned) {
            return Err(NotPrepared::new(
                "digest-mismatch",
                format!(
                    "'{}' is not the file that was pinned: its digest is sha256:{} (if the change is yours, pin it anew)",
                    path.display(),
                    digest::hex(&found)
                ),
            ));
        }
        report.set(Protection::Digest, Level::Enforced);
    }
    if copy {
        let level = if bytes.is_some() {
            Level::Enforced
        } else {
            let mib = MAX_COPY >> 20;
            Level::Degraded(format!("the script is larger than {mib} MiB"))
        };
        report.set(Protection::VerifiedCopy, level);
        checked.copy = bytes;
    }
    Ok(checked)
}

/// The key, else: always in `strict`, and with a digest in `compat`.
fn wants_copy(profile: &ProfileConfig, pinned: bool) -> bool {
    profile
        .verified_copy
        .unwrap_or(pinned || profile.baseline == Baseline::Strict)
}

/// What follows from the findings.
fn settle_trust(
    trust: ScriptTrust,
    findings: &[Finding],
    report: &mut Protections,
) -> Result<Vec<String>, NotPrepared> {
    let Some(first) = findings.first() else {
        if trust != ScriptTrust::Off {
            report.set(Protection::ScriptTrust, Level::Enforced);
        }
        return Ok(Vec::new());
    };
    match trust {
        ScriptTrust::Off => Ok(Vec::new()),
        ScriptTrust::Warn => {
            report.set(Protection::ScriptTrust, Level::Degraded(first.to_string()));
            Ok(findings.iter().map(ToString::to_string).collect())
        }
        ScriptTrust::Enforce => {
            let more = match findings.len() - 1 {
                0 => String::new(),
                n => format!(" (and {n} more: see 'ctrl-exec-exec check')"),
            };
            Err(NotPrepared::new(
                "untrusted-script",
                format!("{first}{more}"),
            ))
        }
    }
}

/// The file could not be reached.
fn without_file(
    path: &Path,
    lost: &walk::Lost,
    trust: ScriptTrust,
    pinned: bool,
) -> Result<Checked, NotPrepared> {
    if let Some(errno) = lost.absent() {
        // The words of the original, which meets this only when it tries to run the file.
        return Err(NotPrepared::new(
            "setup",
            format!(
                "'{}' is not executable by the profile's run_as user ({errno})",
                path.display()
            ),
        ));
    }
    if pinned {
        return Err(NotPrepared::new("digest-mismatch", lost.to_string()));
    }
    match trust {
        ScriptTrust::Enforce => Err(NotPrepared::new("untrusted-script", lost.to_string())),
        // The script starts as it would without us looking, or it does not: the child will see.
        ScriptTrust::Warn | ScriptTrust::Off => Ok(Checked {
            copy: None,
            warnings: vec![lost.to_string()],
        }),
    }
}

fn unreadable(path: &Path, error: &std::io::Error) -> NotPrepared {
    NotPrepared::new(
        "setup",
        format!("'{}' cannot be read: {error}", path.display()),
    )
}

/// The bytes, read once; `None` when there are more than [`MAX_COPY`].
fn read_bounded(file: &File, path: &Path) -> Result<Option<Vec<u8>>, NotPrepared> {
    let size = file.metadata().map_err(|e| unreadable(path, &e))?.len();
    if size > MAX_COPY {
        return Ok(None);
    }
    let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or_default());
    // It may grow while it is read.
    file.take(MAX_COPY + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| unreadable(path, &e))?;
    let whole = u64::try_from(bytes.len()).is_ok_and(|len| len <= MAX_COPY);
    if !whole {
        rustix::fs::seek(file, rustix::fs::SeekFrom::Start(0))
            .map_err(|e| unreadable(path, &e.into()))?;
    }
    Ok(whole.then_some(bytes))
}

/// What the trust walk finds wrong with a script, whatever the profile says to that. For `check`.
///
/// # Errors
/// The file cannot be reached or read.
pub fn findings(path: &Path, uid: u32) -> Result<Vec<Finding>, String> {
    let walked = walk::walk(path, uid, walk::Role::Script).map_err(|lost| lost.to_string())?;
    let mut findings = walked.findings;
    findings.extend(walk::interpreters(&walked.file, uid));
    Ok(findings)
}

/// Opens a script as it would be opened for a run and computes its digest.
///
/// # Errors
/// One sentence that names the file.
pub fn digest_of(path: &Path) -> Result<[u8; 32], String> {
    let walked = walk::walk(path, 0, walk::Role::Script).map_err(|lost| lost.to_string())?;
    digest::of_file(&walked.file).map_err(|e| format!("'{}' cannot be read: {e}", path.display()))
}
