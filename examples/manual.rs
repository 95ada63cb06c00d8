//! Writes manual pages and shell completions below a folder: `cargo run --example manual -- OUTDIR` (`make manual`).

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use ctrl_exec::complain;
use ctrl_exec::manual::{self, Entry};

fn main() -> ExitCode {
    let Some(out) = std::env::args_os().nth(1).map(PathBuf::from) else {
        complain!("Usage: manual OUTDIR");
        return ExitCode::from(64);
    };
    let done = manual::programs().and_then(|programs| {
        let files = manual::files(&programs);
        files.iter().try_for_each(|(path, entry)| {
            write(&out.join(path), entry)
                .map_err(|e| format!("cannot write '{}': {e}", path.display()))
        })
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            complain!("{why}");
            ExitCode::FAILURE
        }
    }
}

fn write(path: &Path, entry: &Entry) -> io::Result<()> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    match entry {
        Entry::Text(text) => std::fs::write(path, text),
        Entry::Link(target) => std::os::unix::fs::symlink(target, path),
    }
}
