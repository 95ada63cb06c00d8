//! The offline modes: `pairing-status`, `self-check`, `paired`, `cert-staged` (spec/agent.md 2.4, 2.5, 2.7).
//!
//! All of them look where the configuration says, not at fixed paths.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::applets::cea::revocations::Revocations;
use crate::applets::cea::{Files, material, scripts, state, timekeeping};
use crate::applets::{AppError, Context, Exit};
use crate::core::config::{self, AgentConfig, Allowlist};
use crate::core::profile;
use crate::core::sandbox::ProtectedPaths;
use crate::core::sandbox::assess::{self, Assessment};
use crate::core::sandbox::features::{Features, cgroup_controllers};
use crate::core::secure_open;
use crate::core::trust::TrustMap;
use crate::core::types::ScriptName;
use crate::{complain, say};

/// Whether the three files of a pairing are there and make sense together; the end of the certificate, or the reason.
pub(super) fn pairing(config: &AgentConfig) -> Result<String, String> {
    pairing_of(&config.cert, &config.key, &config.ca)
}

fn pairing_of(
    cert: &std::path::Path,
    key: &std::path::Path,
    ca: &std::path::Path,
) -> Result<String, String> {
    for path in [cert, key, ca] {
        if !path.is_file() {
            return Err(format!("missing file: {}", path.display()));
        }
    }
    material::shown(cert)
        .map(|certificate| certificate.expiry_text())
        .map_err(|_| format!("cannot parse cert: {}", cert.display()))
}

pub(super) fn pairing_status(context: &Context, files: &Files) -> Result<Exit, AppError> {
    let status = match config::load_agent(&context.paths, files.config.as_deref()) {
        Ok(loaded) => pairing(&loaded.value),
        // Whether a host is paired does not depend on a configuration that someone is just editing.
        Err(_) if files.config.is_none() => {
            let etc = context.paths.agent_etc();
            let file = |name| etc.join(name);
            pairing_of(&file("agent.crt"), &file("agent.key"), &file("ca.crt"))
        }
        Err(error) => return Err(AppError::failed(error.to_string())),
    };
    match status {
        Ok(expiry) => {
            say!("Paired. Certificate expires: {expiry}");
            Ok(Exit::Success)
        }
        Err(reason) => {
            say!("Not paired. Reason: {reason}");
            Ok(Exit::Failure)
        }
    }
}

/// Exit status only: 0 when certificate, key and CA are regular files.
pub(super) fn paired(context: &Context, files: &Files) -> Exit {
    probe(context, files, |config| state::missing(config).is_none())
}

/// Exit status only: 0 when a renewed certificate waits to be adopted.
pub(super) fn cert_staged(context: &Context, files: &Files) -> Exit {
    probe(context, files, |config| config.cert_staging_path.is_file())
}

fn probe(context: &Context, files: &Files, question: fn(&AgentConfig) -> bool) -> Exit {
    match config::load_agent(&context.paths, files.config.as_deref()) {
        Ok(loaded) if question(&loaded.value) => Exit::Success,
        _ => Exit::Failure,
    }
}

/// Looks at everything that `serve` would need. Status 1 if anything would not work (the original says 0 to most of it).
pub(super) fn self_check(context: &Context, files: &Files) -> Result<Exit, AppError> {
    say!("ctrl-exec-agent self-check");
    let loaded = config::load_agent(&context.paths, files.config.as_deref())
        .map_err(|e| AppError::failed(format!("Config error: {e}")))?;
    for warning in &loaded.warnings {
        complain!("{warning}");
    }
    let config = loaded.value;
    say!(
        "Config OK: {} (port {})",
        config.source.display(),
        config.port
    );

    let loaded = config::load_allowlist(&context.paths, files.allowlist.as_deref(), &config)
        .map_err(|e| AppError::failed(format!("Allowlist error: {e}")))?;
    for warning in &loaded.warnings {
        complain!("{warning}");
    }
    let allowlist = loaded.value;
    say!(
        "Allowlist OK: {} ({} script{})",
        allowlist.source.display(),
        allowlist.scripts.len(),
        if allowlist.scripts.len() == 1 {
            ""
        } else {
            "s"
        }
    );

    let mut findings = Findings::default();
    findings.certificates(context, &config);
    findings.serials(&config);
    findings.scripts(&config, &allowlist);
    findings.helpers(&config);
    match findings.count {
        0 => say!("Self-check complete: no problems."),
        1 => say!("Self-check complete: 1 problem."),
        n => say!("Self-check complete: {n} problems."),
    };
    Ok(if findings.count == 0 {
        Exit::Success
    } else {
        Exit::Failure
    })
}

/// What the executor would make of each script. Only root sees what the executor sees.
fn assessed(config: &AgentConfig, allowlist: &Allowlist) -> BTreeMap<ScriptName, Assessment> {
    if config.executor_socket.is_none() {
        return BTreeMap::new();
    }
    let features = Features::probe();
    if !features.privileged {
        say!("Profiles: not looked at - run self-check or 'ctrl-exec-exec check' as root");
        return BTreeMap::new();
    }
    let controllers = cgroup_controllers();
    let all = assess::assess_all(assess::House {
        config,
        allowlist,
        features: &features,
        protected: &ProtectedPaths::default(),
        controllers: &controllers,
    });
    let named = all.into_iter().map(|script| (script.name.clone(), script));
    named.collect()
}

#[derive(Default)]
struct Findings {
    count: usize,
}

impl Findings {
    fn problem(&mut self, text: impl AsRef<str>) {
        self.count += 1;
        say!("{}", text.as_ref());
    }

    fn certificates(&mut self, context: &Context, config: &AgentConfig) {
        let expiry = match pairing(config) {
            Ok(expiry) => expiry,
            Err(reason) => return self.problem(format!("Certs: NOT paired - {reason}")),
        };
        let clock = timekeeping::clock(context, config);
        // An unreadable list is told of below.
        let revoked = Revocations::load(config).unwrap_or_default();
        let own = match material::load(config, |serial| revoked.contains(serial), &clock) {
            Ok(own) => own,
            Err(reason) => return self.problem(format!("Certs: {reason}")),
        };
        let certificate = own.identity.certificate();
        let mut verified = Err(format!("no CA certificate in '{}'", config.ca.display()));
        for ca in &own.trusted.cas {
            verified = certificate
                .verify_issued_by(ca, clock.now())
                .map_err(|e| e.to_string());
            if verified.is_ok() {
                break;
            }
        }
        let in_use = certificate.expiry_text();
        match verified {
            Ok(()) => {
                say!("Certs OK (expires {in_use})");
            }
            Err(reason) => self.problem(format!("Certs: {reason} (expires {in_use})")),
        }
        if in_use != expiry {
            say!(
                "Renewed certificate in use from '{}'; 'cea promote-cert' (root) puts it into place",
                config.cert_staging_path.display()
            );
        } else if config.cert_staging_path.is_file() {
            say!(
                "Staged certificate '{}' is not in use: see the log for the reason",
                config.cert_staging_path.display()
            );
        }
        if !own.trusted.evidence.is_empty() {
            say!(
                "CAs in force from '{}' ({}); 'cea promote-cert' (root) puts them into place",
                config.staged_ca().display(),
                own.trusted.cas.len()
            );
        }
        if clock.is_behind() {
            say!(
                "Clock: behind - it is at least {}: set the clock of this host",
                clock.iso_now()
            );
        }
    }

    fn serials(&mut self, config: &AgentConfig) {
        match TrustMap::load(&config.trusted_dispatchers_path) {
            Ok(trust) if trust.is_empty() => {
                say!(
                    "Trusted dispatchers: none yet in '{}' - every request will be refused",
                    config.trusted_dispatchers_path.display()
                );
            }
            Ok(trust) => {
                say!(
                    "Trusted dispatchers OK: {} serial(s)",
                    trust.entries().len()
                );
            }
            Err(error) => self.problem(format!("Trusted dispatchers: {error}")),
        }
        match Revocations::load(config) {
            Ok(lists) => {
                match &lists.local {
                    Some(_) => say!("Revocation list OK: {}", config.revoked_serials.display()),
                    None => say!("Revocation list: none - no serials revoked"),
                };
                if !lists.pushed.is_empty() {
                    say!(
                        "Revocation list of dispatchers OK: {} ({} serial(s))",
                        config.pushed_revocations().display(),
                        lists.pushed.len()
                    );
                }
            }
            Err(error) => self.problem(format!("Revocation list: {error}")),
        }
    }

    fn scripts(&mut self, config: &AgentConfig, allowlist: &Allowlist) {
        let mut assessed = assessed(config, allowlist);
        for (name, entry) in &allowlist.scripts {
            let verdict = match profile::resolve(name.as_str(), allowlist, config) {
                Err(reason) => format!("[REFUSED: {reason}]"),
                Ok(allowed) if secure_open::check_script(allowed.path.as_path()).is_err() => {
                    "[REFUSED: writable for everybody]".to_owned()
                }
                Ok(_) if scripts::is_executable(entry, config) => "[ok]".to_owned(),
                Ok(_) => "[NOT EXECUTABLE]".to_owned(),
            };
            let line = format!(
                "  {name}  {}  profile={}  {verdict}",
                entry.path, entry.profile
            );
            if verdict == "[ok]" {
                say!("{line}");
            } else {
                self.problem(line);
            }
            if let Some(script) = assessed.remove(name) {
                // Its name and path stand there already.
                for line in script.lines().iter().skip(1) {
                    say!("  {line}");
                }
                if !script.errors.is_empty() {
                    self.problem(format!(
                        "Profile error: {name} would not run: {}",
                        script.errors.join("; ")
                    ));
                }
            }
        }
        if let Err(undefined) = config::check_profiles(allowlist, config) {
            self.problem(format!("Profile error: {undefined}"));
        }
    }

    fn helpers(&mut self, config: &AgentConfig) {
        let executor: Option<&PathBuf> = config.executor_socket.as_ref();
        match executor {
            Some(socket) if socket.exists() => {
                say!("Executor socket OK: {}", socket.display());
            }
            Some(socket) => {
                // The executor may simply not be running yet; that is not this configuration's fault.
                say!(
                    "Executor socket: '{}' is not there - is ctrl-exec-exec running?",
                    socket.display()
                );
            }
            None => {
                say!(
                    "Executor: not configured - scripts run as the agent's user, profiles are not enforced"
                );
            }
        }
    }
}
