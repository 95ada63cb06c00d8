//! `ctrl-exec-exec digest`: the annotation that pins a script to its content (spec/executor.md 15.10).

use std::path::{Path, absolute};

use crate::applets::{AppError, Context, Exit};
use crate::core::sandbox::script::{self, digest};
use crate::say;

/// # Errors
/// Wrong words (1), or a file that cannot be read (1).
pub(super) fn main(_context: &Context, args: Vec<String>) -> Result<Exit, AppError> {
    let ([path], options) = super::operands(args)?;
    if !options.is_empty() {
        return Err(super::usage());
    }
    say!(
        "{}",
        annotation(Path::new(&path)).map_err(AppError::failed)?
    );
    Ok(Exit::Success)
}

/// What belongs into the script's line of the allowlist.
fn annotation(path: &Path) -> Result<String, String> {
    let path = absolute(path).map_err(|e| format!("'{}': {e}", path.display()))?;
    let digest = script::digest_of(&path)?;
    Ok(format!("digest=sha256:{}", digest::hex(&digest)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_annotation_is_what_the_allowlist_takes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        std::fs::write(&path, "abc").unwrap();
        assert_eq!(
            annotation(&path).unwrap(),
            "digest=sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }

    #[test]
    fn errors_name_the_file() {
        for bad in ["/nowhere/s", "/", "/dev/null"] {
            let why = annotation(Path::new(bad)).unwrap_err();
            assert!(why.contains(bad.trim_end_matches("/s")), "{why}");
        }
    }
}
