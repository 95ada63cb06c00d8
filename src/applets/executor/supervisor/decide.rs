//! May it run, and how: refusals in the order of the original (spec/executor.md 5), then our own.

use std::borrow::Cow;

use super::super::house::{House, Unprivileged};
use super::report::{NOT_EXECUTED, NOT_RUN, REFUSED};
use crate::core::config::{Annotations, ProfileConfig};
use crate::core::exec::frame::{Kind, Request};
use crate::core::profile::{self, Refusal, Resolved};

/// `MAX_ARG_STRLEN` of the kernel, without the final NUL.
const LONGEST_ARG: usize = 131_071;

/// A run as it was decided.
#[derive(Debug)]
pub(super) struct Decided<'a> {
    pub(super) script: Resolved,
    pub(super) profile: Cow<'a, ProfileConfig>,
    pub(super) annotations: &'a Annotations,
}

/// A refusal: what the caller reads and what the log says.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Refused {
    pub(super) exit: i32,
    pub(super) kind: Kind,
    /// REASON of `exec-deny`.
    pub(super) reason: &'static str,
    pub(super) text: String,
}

impl Refused {
    pub(super) fn new(exit: i32, reason: &'static str, text: impl Into<String>) -> Self {
        Self {
            exit,
            kind: Kind::Denied,
            reason,
            text: text.into(),
        }
    }
}

pub(super) fn decide<'a>(request: &Request, house: &'a House) -> Result<Decided<'a>, Refused> {
    let policy = &house.policy;
    if let Some(why) = &policy.refuse_all {
        return Err(Refused::new(REFUSED, "untrusted-policy", why));
    }
    let script = profile::resolve(&request.script, &policy.allowlist, &policy.config).map_err(
        |refusal| {
            let reason = match refusal {
                Refusal::NotPermitted => "not-allowlisted",
                Refusal::NotInScriptDirs => "not-in-script-dirs",
                Refusal::UndefinedProfile => "undefined-profile",
            };
            Refused::new(REFUSED, reason, refusal.to_string())
        },
    )?;
    // Both are there: this is what the resolution has just looked at.
    let entry = policy.allowlist.scripts.get(&script.name);
    let profile = policy.config.profiles.get(&script.profile);
    let (Some(entry), Some(profile)) = (entry, profile) else {
        let text = Refusal::NotPermitted.to_string();
        return Err(Refused::new(REFUSED, "not-allowlisted", text));
    };
    if let Some(at) = request.args.iter().position(|arg| arg.len() > LONGEST_ARG) {
        let text = format!("argument {} is longer than {LONGEST_ARG} bytes", at + 1);
        return Err(Refused::new(NOT_EXECUTED, "limit", text));
    }
    let profile = match house.unprivileged {
        None => Cow::Borrowed(profile),
        Some(mode) => without_root(profile, mode).map_err(|key| {
            let text = format!(
                "profile '{}' sets '{key}', which this unprivileged executor cannot apply",
                script.profile
            );
            Refused::new(NOT_RUN, "feature-missing", text)
        })?,
    };
    Ok(Decided {
        script,
        profile,
        annotations: &entry.annotations,
    })
}

/// What is left of a profile without root (spec/executor.md 2.4).
///
/// # Errors
/// The key that cannot be applied.
fn without_root(
    profile: &ProfileConfig,
    mode: Unprivileged,
) -> Result<Cow<'_, ProfileConfig>, &'static str> {
    if profile.run_as.is_some() {
        return Err("run_as");
    }
    if !profile.caps.is_empty() {
        return Err("caps");
    }
    match (profile.writable.is_empty(), mode) {
        (true, _) => Ok(Cow::Borrowed(profile)),
        (false, Unprivileged::Careful) => Err("writable"),
        (false, Unprivileged::Lax) => Ok(Cow::Owned(ProfileConfig {
            writable: Vec::new(),
            ..profile.clone()
        })),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::types::AbsolutePath;

    #[test]
    fn without_root_only_what_needs_none_runs() {
        let plain = ProfileConfig::default();
        let decide =
            |profile: &ProfileConfig, mode| without_root(profile, mode).map(Cow::into_owned);
        for mode in [Unprivileged::Careful, Unprivileged::Lax] {
            assert_eq!(decide(&plain, mode), Ok(plain.clone()));
            let named = ProfileConfig {
                run_as: Some("nobody".to_owned()),
                ..plain.clone()
            };
            assert_eq!(decide(&named, mode), Err("run_as"));
            let capable = ProfileConfig {
                caps: vec![caps::Capability::CAP_KILL],
                ..plain.clone()
            };
            assert_eq!(decide(&capable, mode), Err("caps"));
        }
        let carved = ProfileConfig {
            writable: vec![AbsolutePath::root()],
            ..plain.clone()
        };
        assert_eq!(decide(&carved, Unprivileged::Careful), Err("writable"));
        assert_eq!(decide(&carved, Unprivileged::Lax), Ok(plain));
    }
}
