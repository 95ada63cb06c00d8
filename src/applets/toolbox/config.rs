//! `ctrl-exec config convert WHICH [FILE]`: prints the TOML of a `.conf` of the original (docs/configuration.md).

use std::path::PathBuf;

use crate::applets::{AppError, Context, Exit, cli};
use crate::core::config::{self, Loaded};
#[cfg(feature = "dispatcher")]
use crate::core::hostname;
use crate::core::terminal;
use crate::{complain, say};

const KNOWN: &str = if cfg!(feature = "dispatcher") {
    "dispatcher, agent or scripts"
} else {
    "agent or scripts"
};

/// Read one configuration file, check it, and print it as TOML: ctrl-exec config convert|check dispatcher|agent|scripts [FILE]
#[derive(argh::FromArgs)]
#[argh(help_triggers("-h", "--help"))]
struct ConfigArgs {
    /// convert (print the TOML) or check (print only what is wrong)
    #[argh(positional)]
    verb: String,
    /// which file: dispatcher (in builds that hold it), agent or scripts
    #[argh(positional)]
    which: String,
    /// the file, if it is not at its usual place
    #[argh(positional)]
    file: Option<PathBuf>,
}

pub(super) fn main(context: &Context, args: Vec<String>) -> Result<Exit, AppError> {
    const COMMAND: &[&str] = &["ctrl-exec", "config"];
    let words = cli::normalise(args, &[])?;
    if words.help {
        return Err(cli::help::<ConfigArgs>(COMMAND));
    }
    let args: ConfigArgs = cli::parse(COMMAND, &words.for_argh(&[]).0)?;
    let file = args.file.as_deref();
    let paths = &context.paths;
    let invalid = |e: config::ConfigError| AppError::config(e.to_string());
    let toml = match args.which.as_str() {
        #[cfg(feature = "dispatcher")]
        "dispatcher" => {
            let name = hostname::short(context.var("CTRL_EXEC_HOSTNAME"));
            let config = heed(config::load_dispatcher(paths, file, &name).map_err(invalid)?);
            config::convert_dispatcher(&config, paths)
        }
        "agent" => {
            let config = heed(config::load_agent(paths, file).map_err(invalid)?);
            config::convert_agent(&config, paths)
        }
        "scripts" => {
            // What a list may hold depends on the agent's own file: its script_dirs and profiles.
            let agent = config::load_agent(paths, None).map_err(invalid)?.value;
            let list = heed(config::load_allowlist(paths, file, &agent).map_err(invalid)?);
            config::check_profiles(&list, &agent).map_err(|e| AppError::config(e.to_string()))?;
            config::convert_allowlist(&list)
        }
        other => {
            return Err(AppError::usage(format!(
                "'{}' is no configuration of this binary: use {KNOWN}",
                other.escape_debug()
            )));
        }
    };
    match args.verb.as_str() {
        "convert" => {
            terminal::stdout_bytes(toml.as_bytes());
        }
        "check" => {
            say!("Configuration of the {} is valid.", args.which);
        }
        other => {
            return Err(AppError::usage(format!(
                "unknown word '{}': use convert or check",
                other.escape_debug()
            )));
        }
    }
    Ok(Exit::Success)
}

fn heed<T>(loaded: Loaded<T>) -> T {
    for warning in &loaded.warnings {
        complain!("{warning}");
    }
    loaded.value
}
