//! `ctrl-exec links [DIR]`: the symbolic links through which one file answers to all its names.

use std::io;
use std::path::{Path, PathBuf};

use crate::applets::{APPLETS, AppError, Context, Exit, cli};
use crate::say;

/// Create the symbolic links of all program names beside this file, or in DIR.
#[derive(argh::FromArgs)]
#[argh(help_triggers("-h", "--help"))]
struct LinksArgs {
    /// replace files of these names that are not links to this binary
    #[argh(switch)]
    force: bool,
    /// directory of the links (default: where this file lies)
    #[argh(positional)]
    dir: Option<PathBuf>,
}

pub(super) fn main(_context: &Context, args: Vec<String>) -> Result<Exit, AppError> {
    const COMMAND: &[&str] = &["ctrl-exec", "links"];
    let words = cli::normalise(args, &[cli::flag("force")])?;
    if words.help {
        return Err(cli::help::<LinksArgs>(COMMAND));
    }
    let args: LinksArgs = cli::parse(COMMAND, &words.for_argh(&["force"]).0)?;
    let binary = std::env::current_exe()
        .map_err(|e| AppError::failed(format!("cannot tell where this program lies: {e}")))?;
    let home = binary.parent().unwrap_or(Path::new("/"));
    let dir = args.dir.unwrap_or_else(|| home.to_owned());
    // Compared with where this file lies, so it must not be relative.
    let dir = dir.canonicalize().unwrap_or(dir);
    // A relative target keeps working when the whole directory is moved or lies below a root prefix.
    let same_place = dir.canonicalize().ok() == home.canonicalize().ok();
    let target = match binary.file_name() {
        Some(name) if same_place => PathBuf::from(name),
        _ => binary.clone(),
    };
    for name in APPLETS
        .iter()
        .flat_map(|a| std::iter::once(&a.name).chain(a.aliases))
    {
        let link = dir.join(name);
        if link == binary {
            continue;
        }
        make(&link, &target, args.force).map_err(|e| {
            AppError::failed(format!("cannot create the link '{}': {e}", link.display()))
        })?;
        say!("{} -> {}", link.display(), target.display());
    }
    Ok(Exit::Success)
}

fn make(link: &Path, target: &Path, force: bool) -> io::Result<()> {
    match std::fs::symlink_metadata(link) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(e),
        Ok(old) => {
            let ours =
                old.is_symlink() && std::fs::read_link(link)?.file_name() == target.file_name();
            if !ours && !force {
                return Err(io::Error::new(
                    io::ErrorKind::AlreadyExists,
                    "there is something else of this name (use --force to replace it)",
                ));
            }
            if old.is_dir() {
                return Err(io::Error::new(
                    io::ErrorKind::IsADirectory,
                    "it is a directory",
                ));
            }
        }
    }
    // Link beside, then rename: the name is never missing in between.
    let mut temporary = link.as_os_str().to_owned();
    temporary.push(".new");
    let _ = std::fs::remove_file(&temporary);
    std::os::unix::fs::symlink(target, &temporary)?;
    std::fs::rename(&temporary, link)
}
