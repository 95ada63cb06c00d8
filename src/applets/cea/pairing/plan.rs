//! Everything that is decided and checked before the dispatcher is asked: options, configuration, names, files (spec/pairing.md 11.1).

use std::io::IsTerminal as _;
use std::path::Path;
use std::time::Duration;

use super::Options;
use super::exchange::Done;
use crate::applets::{AppError, Context};
use crate::core::clock::Clock;
use crate::core::config::{self, AgentConfig};
use crate::core::hostname;
use crate::core::pairing::MAX_WAIT;
use crate::core::pairing::delivery::{Pins, parse_fingerprint};
use crate::core::pairing::install::{self, Owners, Targets};
use crate::core::pairing::message::parse_lookup_by;
use crate::core::pki::{Certificate, KeyType};
use crate::core::secure_open;
use crate::core::types::AgentName;
use crate::core::wire::LookupBy;
use crate::core::wire::{AGENT_PORT, PAIRING_PORT};

/// Longest wait in the background, and the default (spec/agent.md 2.1).
const MAX_TIMEOUT: u64 = 600;
const DEFAULT_TIMEOUT: u64 = 30;
const MAX_CA_FILE: u64 = 256 * 1024;

/// What will be done.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) dispatcher: String,
    pub(super) port: u16,
    pub(super) lookup_by: Option<LookupBy>,
    /// `None`: what the dispatcher can sign.
    pub(super) key_type: Option<KeyType>,
    pub(super) pins: Pins,
    pub(super) replace_ca: bool,
    pub(super) background: bool,
    /// A person can be asked whether the codes agree.
    pub(super) ask: bool,
    /// How long to wait for the decision.
    pub(super) patience: Duration,
    pub(super) name: AgentName,
    pub(super) own_port: u16,
    pub(super) require_bound: bool,
    pub(super) targets: Targets,
    pub(super) owners: Owners,
    pub(super) known_ca: Option<Certificate>,
    pub(super) clock: Clock,
    pub(super) warnings: Vec<String>,
    pub(super) init: Init,
}

/// What starts services on this host.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Init {
    Systemd,
    Script,
    None,
}

impl Plan {
    /// # Errors
    /// An option makes no sense, the configuration is broken, or the files could not be written later.
    pub(super) fn new(context: &Context, options: &Options) -> Result<Self, AppError> {
        let Some(dispatcher) = options.dispatcher.clone().filter(|d| !d.is_empty()) else {
            return Err(AppError::usage(
                "--dispatcher <host> required for request-pairing",
            ));
        };
        let lookup_by = checked(
            options.lookup_by.as_deref(),
            "--lookup-by must be 'ip' or 'hostname'",
            parse_lookup_by,
        )?;
        let port = checked(
            options.port.as_deref(),
            "--port must be a number from 1 to 65535",
            |t| t.parse::<u16>().ok().filter(|p| *p > 0),
        )?;
        let key_type = checked(
            options.key_type.as_deref(),
            "--key-type must be ecdsa-p256, rsa-2048, rsa-3072 or rsa-4096",
            |t| t.parse::<KeyType>().ok(),
        )?;
        let fingerprint = |given: &Option<String>, name: &str| {
            checked(
                given.as_deref(),
                &format!("{name} must be a SHA-256 fingerprint of 64 hex digits"),
                parse_fingerprint,
            )
        };
        let pins = Pins {
            dispatcher: fingerprint(&options.dispatcher_fingerprint, "--dispatcher-fingerprint")?,
            ca: fingerprint(&options.ca_fingerprint, "--ca-fingerprint")?,
        };
        let patience = patience(options)?;
        let (config, mut warnings) = agent_config(context, options.config.as_deref())?;
        let targets = Targets::of(&config, &context.paths);
        let (owners, warning) = Owners::lookup(rustix::process::geteuid().is_root());
        warnings.extend(warning);
        install::check_writable(&targets, owners).map_err(|e| AppError::failed(e.to_string()))?;
        let known_ca = known_ca(&config.ca, options.replace_ca)?;

        let fqdn = hostname::fqdn(context.var("CTRL_EXEC_HOSTNAME"));
        let name = AgentName::new(&fqdn).map_err(|e| {
            AppError::failed(format!(
                "the name of this host cannot be used for pairing: {e}"
            ))
        })?;
        if !fqdn.contains('.') {
            warnings.push(format!(
                "the name of this host is '{fqdn}', without a domain: the dispatcher may not be able to resolve it; configure a domain, or use --lookup-by ip"
            ));
        }
        let terminal = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
        Ok(Self {
            dispatcher,
            port: port.unwrap_or(PAIRING_PORT),
            lookup_by,
            key_type,
            pins,
            replace_ca: options.replace_ca,
            background: options.background,
            ask: terminal && !options.background && !options.yes,
            patience,
            name,
            own_port: if config.port == 0 {
                AGENT_PORT
            } else {
                config.port
            },
            require_bound: config.pairing_require_bound_code,
            clock: Clock::with_floor_from(&context.time, &[&targets.cert, &targets.ca]),
            targets,
            owners,
            known_ca,
            warnings,
            init: init_of(context),
        })
    }
}

fn checked<T>(
    given: Option<&str>,
    rule: &str,
    parse: impl FnOnce(&str) -> Option<T>,
) -> Result<Option<T>, AppError> {
    match given {
        None => Ok(None),
        Some(text) => match parse(text) {
            Some(value) => Ok(Some(value)),
            None => Err(AppError::usage(format!(
                "{rule}, not '{}'",
                text.escape_debug()
            ))),
        },
    }
}

/// `--timeout` counts in the background only; 0 means as long as a dispatcher can take.
fn patience(options: &Options) -> Result<Duration, AppError> {
    if !options.background {
        return Ok(MAX_WAIT);
    }
    let seconds = match options.timeout.as_deref() {
        None => DEFAULT_TIMEOUT,
        Some(text) => text
            .parse::<u64>()
            .ok()
            .filter(|s| *s <= MAX_TIMEOUT)
            .ok_or_else(|| AppError::usage("--timeout must be a number of seconds, at most 600"))?,
    };
    Ok(match seconds {
        0 => MAX_WAIT,
        seconds => Duration::from_secs(seconds),
    })
}

/// A host that is being set up may have no configuration yet; a broken one is not guessed at, because it says where the files go.
fn agent_config(
    context: &Context,
    explicit: Option<&Path>,
) -> Result<(AgentConfig, Vec<String>), AppError> {
    let (toml, conf) = (context.paths.agent_toml(), context.paths.agent_conf());
    if explicit.is_none() && !toml.exists() && !conf.exists() {
        return Ok((AgentConfig::defaults(&context.paths, &toml), Vec::new()));
    }
    let loaded = config::load_agent(&context.paths, explicit)
        .map_err(|e| AppError::config(e.to_string()))?;
    let warnings = loaded.warnings.iter().map(ToString::to_string).collect();
    Ok((loaded.value, warnings))
}

fn known_ca(path: &Path, replace: bool) -> Result<Option<Certificate>, AppError> {
    let bytes = match secure_open::read_bounded(path, MAX_CA_FILE) {
        Err(e) if e.is_not_found() => return Ok(None),
        other => other.map_err(|e| AppError::failed(e.to_string()))?,
    };
    match Certificate::from_pem(&bytes) {
        Ok(certificate) => Ok(Some(certificate)),
        Err(_) if replace => Ok(None),
        Err(error) => Err(AppError::failed(format!(
            "the CA certificate '{}' that this host has cannot be read ({error}); give --replace-ca to replace it",
            path.display()
        ))),
    }
}

fn init_of(context: &Context) -> Init {
    let exists = |path: &str| context.paths.resolve(path).exists();
    if exists("/run/systemd/system") {
        Init::Systemd
    } else if exists("/etc/init.d/ctrl-exec-agent") {
        Init::Script
    } else {
        Init::None
    }
}

/// What to do next (spec/pairing.md 11.4).
pub(super) fn advice(plan: &Plan, done: &Done) -> Vec<String> {
    let mut lines = vec![format!(
        "Pairing complete: dispatcher '{}', certificate valid until {}.",
        done.dispatcher, done.expiry
    )];
    match plan.init {
        Init::Systemd => {
            lines.push("Start the agent:   systemctl enable --now ctrl-exec-agent".to_owned());
            lines.push("If it runs already: systemctl restart ctrl-exec-agent".to_owned());
        }
        Init::Script => {
            lines.push("Start the agent:   /etc/init.d/ctrl-exec-agent enable && /etc/init.d/ctrl-exec-agent start".to_owned());
            lines.push("If it runs already: /etc/init.d/ctrl-exec-agent restart".to_owned());
        }
        Init::None => lines.push(
            "Start the agent:   ctrl-exec-agent serve (restart it if it runs already)".to_owned(),
        ),
    }
    lines.push("Then check it:     ctrl-exec-agent self-ping".to_owned());
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::paths::{Paths, Platform};

    fn context(root: &Path) -> Context {
        Context {
            time: crate::core::clock::TimeSource::System,
            program: "cea",
            env: [(
                "CTRL_EXEC_HOSTNAME".to_owned(),
                "web01.example.org".to_owned(),
            )]
            .into(),
            paths: Paths::new(root, Platform::Standard),
        }
    }

    fn options() -> Options {
        Options {
            dispatcher: Some("hq".to_owned()),
            ..Options::default()
        }
    }

    fn plan(change: impl FnOnce(&mut Options)) -> Result<Plan, AppError> {
        let dir = tempfile::tempdir().unwrap();
        let mut options = options();
        change(&mut options);
        Plan::new(&context(dir.path()), &options)
    }

    fn refusal(change: impl FnOnce(&mut Options)) -> String {
        plan(change).unwrap_err().message().unwrap().to_owned()
    }

    #[test]
    fn the_defaults_are_those_of_the_specification() {
        let plan = plan(|_| {}).unwrap();
        assert_eq!((plan.port, plan.own_port), (7444, 7443));
        assert_eq!(plan.name.as_str(), "web01.example.org");
        assert_eq!((plan.patience, plan.key_type), (MAX_WAIT, None));
        assert!(!plan.pins.any() && !plan.ask && plan.known_ca.is_none());
    }

    #[test]
    fn bad_options_are_refused_with_the_known_texts() {
        let missing = refusal(|o| o.dispatcher = None);
        assert_eq!(missing, "--dispatcher <host> required for request-pairing");
        assert!(
            refusal(|o| o.lookup_by = Some("dns".to_owned()))
                .starts_with("--lookup-by must be 'ip' or 'hostname'")
        );
        assert!(refusal(|o| o.port = Some("0".to_owned())).starts_with("--port"));
        assert!(refusal(|o| o.key_type = Some("ed25519".to_owned())).starts_with("--key-type"));
        assert!(
            refusal(|o| o.ca_fingerprint = Some("ab".to_owned())).starts_with("--ca-fingerprint")
        );
        let late = |o: &mut Options| (o.background, o.timeout) = (true, Some("601".to_owned()));
        assert!(refusal(late).starts_with("--timeout"));
        // Ignored in the foreground.
        assert!(plan(|o| o.timeout = Some("601".to_owned())).is_ok());
    }

    #[test]
    fn the_background_waits_as_told() {
        let wait = |timeout: Option<&str>| {
            let timeout = timeout.map(str::to_owned);
            plan(|o| (o.background, o.timeout) = (true, timeout))
                .unwrap()
                .patience
                .as_secs()
        };
        assert_eq!(
            (wait(None), wait(Some("600")), wait(Some("0"))),
            (30, 600, MAX_WAIT.as_secs())
        );
    }

    #[test]
    fn a_short_name_is_warned_about_and_an_impossible_one_refused() {
        let dir = tempfile::tempdir().unwrap();
        let named = |name: &str| {
            let mut context = context(dir.path());
            context
                .env
                .insert("CTRL_EXEC_HOSTNAME".to_owned(), name.to_owned());
            Plan::new(&context, &options())
        };
        assert!(
            named("web01")
                .unwrap()
                .warnings
                .iter()
                .any(|w| w.contains("without a domain"))
        );
        assert!(named("web 01").is_err());
    }

    #[test]
    fn configured_paths_are_honoured_and_a_broken_configuration_is_not_guessed_at() {
        let dir = tempfile::tempdir().unwrap();
        let context = context(dir.path());
        std::fs::create_dir_all(context.paths.agent_etc()).unwrap();
        std::fs::write(
            context.paths.agent_toml(),
            "port = 7500\ncert = \"/etc/elsewhere/a.crt\"\n",
        )
        .unwrap();
        let plan = Plan::new(&context, &options()).unwrap();
        assert_eq!(plan.own_port, 7500);
        assert_eq!(plan.targets.cert, dir.path().join("etc/elsewhere/a.crt"));
        std::fs::write(context.paths.agent_toml(), "port = \"x\"\n").unwrap();
        assert!(Plan::new(&context, &options()).is_err());
    }

    #[test]
    fn a_damaged_ca_needs_a_word_from_the_operator() {
        let dir = tempfile::tempdir().unwrap();
        let context = context(dir.path());
        std::fs::create_dir_all(context.paths.agent_etc()).unwrap();
        std::fs::write(context.paths.agent_etc().join("ca.crt"), "damaged").unwrap();
        assert!(Plan::new(&context, &options()).is_err());
        let replace = Options {
            replace_ca: true,
            ..options()
        };
        assert!(Plan::new(&context, &replace).unwrap().known_ca.is_none());
    }
}
