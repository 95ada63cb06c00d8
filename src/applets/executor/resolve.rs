//! `ctrl-exec-exec resolve`: the decision about one script, in one line (spec/executor.md 2.2).

use std::path::PathBuf;

use crate::applets::{AppError, Context, Exit};
use crate::core::config::{AgentConfig, Allowlist, ProfileConfig, load_agent, load_allowlist};
use crate::core::profile::{self, Refusal, Resolved};
use crate::{complain, say};

/// # Errors
/// Wrong words (1); a configuration that cannot be read or is invalid (2).
pub(super) fn main(context: &Context, args: Vec<String>) -> Result<Exit, AppError> {
    let ([config, allowlist, script], options) = super::operands(args)?;
    if !options.is_empty() {
        return Err(super::usage());
    }
    let (config, allowlist) = (PathBuf::from(config), PathBuf::from(allowlist));
    let config = load_agent(&context.paths, Some(&config))
        .map_err(|e| AppError::new(Exit::Unresolved, e.to_string()))?
        .value;
    let allowlist = load_allowlist(&context.paths, Some(&allowlist), &config);
    let allowlist = allowlist.map(|l| l.value).unwrap_or_else(|error| {
        // To the original an allowlist that cannot be read allows nothing, and that is a decision.
        complain!("{error}");
        Allowlist::default()
    });
    say!("{}", line(&script, &allowlist, &config));
    Ok(Exit::Success)
}

fn line(script: &str, allowlist: &Allowlist, config: &AgentConfig) -> String {
    match profile::resolve(script, allowlist, config) {
        Ok(resolved) => match config.profiles.get(&resolved.profile) {
            Some(profile) => ok_line(&resolved, profile),
            // The resolution has just found it.
            None => format!("DENY {}", deny_word(Refusal::UndefinedProfile)),
        },
        Err(refusal) => format!("DENY {}", deny_word(refusal)),
    }
}

fn deny_word(refusal: Refusal) -> &'static str {
    match refusal {
        Refusal::NotPermitted => "not-allowlisted",
        Refusal::NotInScriptDirs => "not-in-script-dirs",
        Refusal::UndefinedProfile => "undefined-profile",
    }
}

fn ok_line(resolved: &Resolved, profile: &ProfileConfig) -> String {
    let caps: Vec<String> = profile.caps.iter().map(ToString::to_string).collect();
    let writable: Vec<String> = profile.writable.iter().map(ToString::to_string).collect();
    format!(
        "OK path={}|profile={}|run_as={}|nnp={}|caps={}|writable={}",
        resolved.path,
        resolved.profile,
        profile.run_as.as_deref().unwrap_or_default(),
        u8::from(profile.no_new_privileges),
        caps.join(","),
        writable.join(":")
    )
}
