//! `ctrl-exec-exec check`: what each script of the allowlist would come to on this host (spec/executor.md 15.12).

use std::collections::BTreeSet;

use caps::Capability;
use serde_json::json;

use super::policy::Source;
use super::startup;
use crate::applets::{AppError, Context, Exit};
use crate::core::config::AgentConfig;
use crate::core::profile::lint;
use crate::core::sandbox::assess::{self, Assessment, wrapped};
use crate::core::sandbox::features::{Features, Row, cgroup_controllers};
use crate::core::sandbox::own;
use crate::{complain, say};

/// Where units put the socket.
const DEFAULT_SOCKET: &str = "/run/ctrl-exec-agent/exec.sock";

/// What to show.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
enum Show {
    #[default]
    Text,
    Json,
    /// A drop-in for systemd.
    Unit,
    /// The feature matrix.
    Kernel,
    /// Nothing: only whether the service could start with these files.
    Files,
}

/// Exit 0: nothing to say; 1: warnings; 78: something would not run.
///
/// # Errors
/// Wrong words (1); a configuration that cannot be used (78).
pub(super) fn main(context: &Context, args: Vec<String>) -> Result<Exit, AppError> {
    let (words, options): (Vec<String>, Vec<String>) =
        args.into_iter().partition(|word| !word.starts_with("--"));
    let show = match options.as_slice() {
        [] => Show::Text,
        [one] => match one.as_str() {
            "--json" => Show::Json,
            "--unit" => Show::Unit,
            "--kernel" => Show::Kernel,
            "--files" => Show::Files,
            _ => return Err(super::usage()),
        },
        _ => return Err(super::usage()),
    };
    if show == Show::Kernel && words.is_empty() {
        // The kernel is the same whatever the configuration says.
        kernel(&Features::probe());
        return Ok(Exit::Success);
    }
    let ([config, allowlist], rest) = super::operands(words)?;
    if !rest.is_empty() {
        return Err(super::usage());
    }
    let socket = context.paths.resolve(DEFAULT_SOCKET);
    let mut source = Source::new(
        context.paths.clone(),
        startup::absolute(config)?,
        startup::absolute(allowlist)?,
        socket,
    );
    let (policy, told) = source.load().map_err(AppError::config)?;
    match show {
        Show::Kernel => {
            kernel(&Features::probe());
            return Ok(Exit::Success);
        }
        Show::Unit => {
            for line in drop_in(&policy.config) {
                say!("{line}");
            }
            return Ok(Exit::Success);
        }
        Show::Files => {
            for warning in told.warnings {
                complain!("{warning}");
            }
            return Ok(Exit::Success);
        }
        Show::Text | Show::Json => {}
    }
    let features = Features::probe();
    let protected = source.protected(&policy.config, &policy.allowlist);
    let scripts = assess::assess_all(assess::House {
        config: &policy.config,
        allowlist: &policy.allowlist,
        features: &features,
        protected: &protected,
        controllers: &cgroup_controllers(),
    });
    let mut result = Checked {
        features,
        warnings: told.warnings,
        errors: Vec::new(),
        scripts,
    };
    if !result.features.privileged {
        let text = "this was not asked as root: an executor that runs as root enforces more than is shown here";
        result.warnings.push(text.to_owned());
    }
    result.lint(&policy.config);
    match show {
        Show::Json => {
            say!("{}", result.to_json());
        }
        _ => result.lines().iter().for_each(|line| {
            say!("{line}");
        }),
    }
    Ok(result.exit())
}

/// Everything that was found.
#[derive(Debug)]
struct Checked {
    features: Features,
    /// About the files and the profiles.
    warnings: Vec<String>,
    errors: Vec<String>,
    scripts: Vec<Assessment>,
}

impl Checked {
    fn lint(&mut self, config: &AgentConfig) {
        for (name, profile) in &config.profiles {
            for finding in lint::findings(name, profile) {
                match finding.level {
                    lint::Level::Error => self.errors.push(finding.text),
                    lint::Level::Warning => self.warnings.push(finding.text),
                }
            }
        }
    }

    fn count(&self, of: fn(&Assessment) -> &Vec<String>) -> usize {
        self.scripts.iter().map(|script| of(script).len()).sum()
    }

    fn errors(&self) -> usize {
        self.errors.len() + self.count(|script| &script.errors)
    }

    fn warnings(&self) -> usize {
        self.warnings.len() + self.count(|script| &script.warnings)
    }

    fn exit(&self) -> Exit {
        match (self.errors(), self.warnings()) {
            (0, 0) => Exit::Success,
            (0, _) => Exit::Failure,
            _ => Exit::Config,
        }
    }

    fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for script in &self.scripts {
            lines.extend(script.lines());
            lines.push(String::new());
        }
        if !self.errors.is_empty() || !self.warnings.is_empty() {
            lines.push("Configuration and profiles".to_owned());
            for text in &self.warnings {
                // With its own word, its line of the file and its caret.
                if text.contains('\n') {
                    lines.extend(text.lines().map(|line| format!("  {line}")));
                } else {
                    lines.extend(wrapped("warning", text));
                }
            }
            for text in &self.errors {
                lines.extend(wrapped("ERROR", text));
            }
            lines.push(String::new());
        }
        lines.push(format!(
            "Kernel {}: {} script(s), {} error(s), {} warning(s).",
            self.features.kernel,
            self.scripts.len(),
            self.errors(),
            self.warnings()
        ));
        lines
    }

    fn to_json(&self) -> serde_json::Value {
        let scripts: Vec<_> = self.scripts.iter().map(Assessment::to_json).collect();
        json!({
            "kernel": self.features.kernel,
            "privileged": self.features.privileged,
            "scripts": scripts,
            "errors": self.errors,
            "warnings": self.warnings,
            "error_count": self.errors(),
            "warning_count": self.warnings(),
        })
    }
}

fn kernel(features: &Features) {
    say!("Kernel {}", features.kernel);
    for line in matrix(&features.matrix()) {
        say!("{line}");
    }
}

fn matrix(rows: &[Row]) -> Vec<String> {
    let mut lines = vec![format!("{:<24}{:<9}{}", "facility", "since", "here")];
    for (name, since, state) in rows {
        lines.push(format!("{name:<24}{since:<9}{state}"));
    }
    lines
}

/// Lines of the shipped unit that would take a capability away from every script.
const IN_THE_WAY: [(Capability, &str); 5] = [
    (Capability::CAP_SYS_TIME, "ProtectClock"),
    (Capability::CAP_WAKE_ALARM, "ProtectClock"),
    (Capability::CAP_SYS_MODULE, "ProtectKernelModules"),
    (Capability::CAP_SYSLOG, "ProtectKernelLogs"),
    (Capability::CAP_SYS_NICE, "RestrictRealtime"),
];

/// The drop-in for the executor's unit.
fn drop_in(config: &AgentConfig) -> Vec<String> {
    let granted: Vec<Capability> = config
        .profiles
        .values()
        .flat_map(|profile| profile.caps.iter().copied())
        .collect();
    let names: Vec<String> = own::needed(config)
        .iter()
        .map(ToString::to_string)
        .collect();
    let mut lines = vec![
        "# /etc/systemd/system/ctrl-exec-exec.service.d/profiles.conf".to_owned(),
        "# Made from the profiles: make it anew when a profile gets another capability.".to_owned(),
        "[Service]".to_owned(),
        "CapabilityBoundingSet=".to_owned(),
        format!("CapabilityBoundingSet={}", names.join(" ")),
    ];
    let mut said = BTreeSet::new();
    for (capability, setting) in IN_THE_WAY {
        if granted.contains(&capability) && said.insert(setting) {
            lines.push(format!("# A profile holds {capability}."));
            lines.push(format!("{setting}=no"));
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::core::config::{Baseline, ProfileConfig};
    use crate::core::paths::{Paths, Platform};
    use crate::core::types::ProfileName;

    fn config(caps: &[Capability]) -> AgentConfig {
        let paths = Paths::new("/", Platform::Standard);
        let mut config = AgentConfig::defaults(&paths, Path::new("agent.conf"));
        let profile = ProfileConfig {
            caps: caps.to_vec(),
            ..ProfileConfig::new(Baseline::Strict)
        };
        let name = ProfileName::new("default").unwrap();
        config.profiles.insert(name, profile);
        config
    }

    #[test]
    fn the_drop_in_holds_what_profiles_need_and_nothing_twice() {
        let plain = drop_in(&config(&[Capability::CAP_CHOWN]));
        assert_eq!(plain.len(), 5);
        assert_eq!(
            plain[4],
            "CapabilityBoundingSet=CAP_CHOWN CAP_DAC_READ_SEARCH CAP_KILL CAP_SETGID CAP_SETUID CAP_SETPCAP CAP_NET_ADMIN CAP_SYS_CHROOT CAP_SYS_ADMIN CAP_SYS_NICE CAP_SYS_RESOURCE"
        );
        let clock = drop_in(&config(&[
            Capability::CAP_SYS_TIME,
            Capability::CAP_WAKE_ALARM,
        ]));
        assert!(clock[4].contains("CAP_SYS_TIME CAP_WAKE_ALARM"));
        assert_eq!(clock.iter().filter(|l| *l == "ProtectClock=no").count(), 1);
    }

    #[test]
    fn the_worst_finding_decides_the_status() {
        let mut checked = Checked {
            features: Features::unprivileged(),
            warnings: Vec::new(),
            errors: Vec::new(),
            scripts: Vec::new(),
        };
        assert_eq!(checked.exit(), Exit::Success);
        checked.warnings.push("w".to_owned());
        assert_eq!(checked.exit(), Exit::Failure);
        checked.errors.push("e".to_owned());
        assert_eq!(checked.exit(), Exit::Config);
        assert_eq!(checked.to_json()["error_count"], 1);
        let last = checked.lines().pop().unwrap();
        assert!(last.ends_with("1 error(s), 1 warning(s)."), "{last}");
    }

    #[test]
    fn the_matrix_stands_in_columns() {
        let rows = [("Landlock", "5.13", "ABI 7".to_owned())];
        let lines = matrix(&rows);
        assert_eq!(lines[0].find("here"), lines[1].find("ABI 7"));
    }
}
