//! `ced setup-ca` and `ced setup-ctrl-exec` (spec/dispatcher.md 10.11, 10.12, 14).

use std::io::BufRead as _;
use std::path::{Path, PathBuf};

use argh::FromArgs;

use crate::applets::ced::{Call, common};
use crate::applets::{AppError, Context, Exit};
use crate::core::clock::Clock;
use crate::core::config::DispatcherConfig;
use crate::core::durable::{self, Owner};
use crate::core::keyring;
use crate::core::pki::{Authority, KeyType, PrivateKey, ca};
use crate::core::registry::Registry;
use crate::{complain, say};

/// Days that the dispatcher's own certificate lasts (spec/dispatcher.md 14.2).
const DISPATCHER_DAYS: u32 = 825;

/// Create the private certificate authority of this fleet. An existing one is never overwritten.
#[derive(FromArgs)]
#[argh(help_triggers("-h", "--help"))]
struct SetupCaArgs {
    /// configuration file (default /etc/ctrl-exec/ctrl-exec.toml, else ctrl-exec.conf; none is needed)
    #[argh(option)]
    config: Option<PathBuf>,
    /// key: ecdsa-p256 (default), rsa-2048, rsa-3072 or rsa-4096
    #[argh(option, default = "KeyType::EcdsaP256")]
    key_type: KeyType,
}

pub(super) fn setup_ca(context: &Context, call: &Call) -> Result<Exit, AppError> {
    let args: SetupCaArgs = call.parse()?;
    let configured = args.config.is_some()
        || context.paths.dispatcher_toml().exists()
        || context.paths.dispatcher_conf().exists();
    let dir = if configured {
        common::load_config(context, args.config.as_deref())?.ca_dir
    } else {
        context.paths.dispatcher_etc()
    };
    durable::create_dir(&dir, 0o750).map_err(|e| AppError::failed(e.to_string()))?;
    let authority = Authority::create(
        &dir,
        args.key_type,
        ca::DEFAULT_CN,
        ca::DEFAULT_CA_DAYS,
        Clock::with_floor_from(&context.time, &[]),
    )
    .map_err(|e| AppError::failed(e.to_string()))?;
    say!("CA key:         {}", dir.join("ca.key").display());
    say!("CA certificate: {}", dir.join("ca.crt").display());
    say!("Valid until:    {}", authority.certificate().expiry_text());
    say!("Fingerprint:    {}", authority.certificate().fingerprint());
    say!(
        "Guard the key: whoever holds it controls every paired host. Keep a copy off this machine."
    );
    if !configured {
        say!("Next: ced setup-ctrl-exec");
    }
    Ok(Exit::Success)
}

/// Create this dispatcher's own key and certificate at the configured paths, replacing existing ones.
#[derive(FromArgs)]
#[argh(help_triggers("-h", "--help"))]
struct SetupArgs {
    /// configuration file (default /etc/ctrl-exec/ctrl-exec.toml, else ctrl-exec.conf; a minimal one is written if there is none)
    #[argh(option)]
    config: Option<PathBuf>,
    /// key: ecdsa-p256 (default), rsa-2048, rsa-3072 or rsa-4096
    #[argh(option, default = "KeyType::EcdsaP256")]
    key_type: KeyType,
    /// do not ask before replacing a certificate that agents trust
    #[argh(switch)]
    yes: bool,
}

pub(super) fn setup_dispatcher(context: &Context, call: &Call) -> Result<Exit, AppError> {
    let args: SetupArgs = call.parse()?;
    let failed = |e: &dyn std::fmt::Display| AppError::failed(e.to_string());
    if args.config.is_none()
        && !context.paths.dispatcher_toml().exists()
        && !context.paths.dispatcher_conf().exists()
    {
        seed_config(&context.paths.dispatcher_toml())?;
    }
    let config = common::load_config(context, args.config.as_deref())?;
    let authority = Authority::load(&config.ca_dir, common::clock(context, &config))
        .map_err(|e| AppError::failed(format!("{e}")))?;

    if config.cert.exists() && !args.yes && !confirmed(&config)? {
        say!("Aborted.");
        return Ok(Exit::Success);
    }
    for dir in [config.registry_dir.as_path(), config.pairing_dir.as_path()] {
        durable::create_dir(dir, 0o750).map_err(|e| failed(&e))?;
    }
    let key = PrivateKey::generate(args.key_type).map_err(|e| failed(&e))?;
    let certificate = authority
        .issue_dispatcher(key.public(), &config.dispatcher_id, DISPATCHER_DAYS)
        .map_err(|e| failed(&e))?;

    let owner = keyring::service_owner(&config);
    let new_key = durable::prepare(
        &config.key,
        key.to_pkcs8_pem().expose().as_bytes(),
        0o600,
        owner,
    )
    .map_err(|e| failed(&e))?;
    let new_cert = durable::prepare(
        &config.cert,
        certificate.to_pem().as_bytes(),
        0o644,
        Owner::default(),
    )
    .map_err(|e| failed(&e))?;
    new_key.commit().map_err(|e| failed(&e))?;
    new_cert.commit().map_err(|e| failed(&e))?;
    if !config.ca.exists() {
        durable::replace(
            &config.ca,
            authority.certificate().to_pem().as_bytes(),
            0o644,
        )
        .map_err(|e| failed(&e))?;
    }

    say!("Dispatcher id:   {}", config.dispatcher_id);
    say!("Key:             {}", config.key.display());
    say!("Certificate:     {}", config.cert.display());
    say!("Serial:          {}", certificate.serial);
    say!("Valid until:     {}", certificate.expiry_text());
    say!("Fingerprint:     {}", certificate.fingerprint());
    say!("Next: ced pairing-mode");
    Ok(Exit::Success)
}

/// The least that a new dispatcher needs; every other key has a default (docs/configuration.md).
fn seed_config(path: &Path) -> Result<(), AppError> {
    const SEED: &str = "# ctrl-exec dispatcher. Every key is optional; docs/configuration.md lists them all.\n\
                        cert = \"/etc/ctrl-exec/dispatcher.crt\"\n\
                        key = \"/etc/ctrl-exec/dispatcher.key\"\n\
                        ca = \"/etc/ctrl-exec/ca.crt\"\n";
    if let Some(dir) = path.parent() {
        durable::create_dir(dir, 0o750).map_err(|e| AppError::failed(e.to_string()))?;
    }
    durable::replace(path, SEED.as_bytes(), 0o640).map_err(|e| AppError::failed(e.to_string()))?;
    say!("Wrote {}", path.display());
    Ok(())
}

/// Agents trust the serial of the present certificate: replacing it cuts them off until they are paired again.
fn confirmed(config: &DispatcherConfig) -> Result<bool, AppError> {
    let listing = Registry::new(config.registry_dir.clone())
        .list()
        .map_err(|e| AppError::failed(e.to_string()))?;
    let agents = listing.agents.len() + listing.unreadable.len();
    if agents == 0 {
        return Ok(true);
    }
    complain!(
        "Warning: {agents} registered agent(s) trust the present certificate '{}' and must be paired again after this.",
        config.cert.display()
    );
    complain!("Proceed? [y/N]: ");
    let mut answer = String::new();
    std::io::stdin()
        .lock()
        .read_line(&mut answer)
        .map_err(|e| AppError::failed(format!("cannot read the answer: {e}")))?;
    Ok(matches!(answer.trim(), "y" | "Y"))
}
