//! `ctrl-exec-exec resolve`: the decision about one script, in one line (spec/executor.md 2.2).

use std::path::PathBuf;

use crate::applets::{AppError, Context, Exit};
use crate::core::config::{AgentConfig, Allowlist, in_force, load_agent, load_allowlist};
use crate::core::profile::{self, Refusal};
use crate::{complain, say};

/// # Errors
/// Wrong words (1); a configuration that cannot be read or is invalid (2).
pub(super) fn main(context: &Context, args: Vec<String>) -> Result<Exit, AppError> {
    let ([config, allowlist, script], options) = super::operands(args)?;
    if !options.is_empty() {
        return Err(super::usage());
    }
    let used = |named: String| in_force(&context.paths, PathBuf::from(named));
    let (config, allowlist) = (used(config), used(allowlist));
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
    let resolved = profile::resolve(script, allowlist, config).and_then(|resolved| {
        let profile = config.profiles.get(&resolved.profile);
        let profile = profile.ok_or(Refusal::UndefinedProfile)?;
        Ok(profile::ok_line(&resolved, profile))
    });
    resolved.unwrap_or_else(|refusal| format!("DENY {}", refusal.deny_word()))
}
