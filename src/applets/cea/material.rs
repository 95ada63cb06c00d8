//! The agent's own key and certificates: what lies in the files, and what of it is in force.
//!
//! The live files may belong to root, so what a dispatcher renews is staged beside the agent's state. A staged certificate or CA that passes
//! the rules of `core::pki::renewal` and `core::pki::succession` is used at once and after every start, whether or not root has put it into
//! place yet; one that does not is as if it were not there.

use std::path::Path;

use crate::core::clock::Clock;
use crate::core::config::AgentConfig;
use crate::core::logging::Action;
use crate::core::pki::Certificate;
use crate::core::pki::renewal::{self, RenewalError};
use crate::core::pki::succession::{self, Trusted};
use crate::core::secure_open::{self, Trust};
use crate::core::tls::Identity;
use crate::core::types::Serial;

/// Largest key or certificate file.
const MAX_FILE: u64 = 256 * 1024;

/// What the agent shows and whom it believes.
pub(super) struct Material {
    /// Certificate in use, and its key.
    pub(super) identity: Identity,
    /// CAs in force.
    pub(super) trusted: Trusted,
    /// A staged certificate is there that will be good later: not valid yet by this host's clock.
    pub(super) waiting: bool,
}

/// What is staged, seen from what is live.
#[derive(Debug)]
pub(super) enum Staged<T> {
    Nothing,
    /// The live file holds it already.
    Same,
    /// To be used in place of the live one.
    Fresh(T),
    /// Not now; the next start may see it differently.
    Later(String),
    /// Wrong for ever.
    Never(String),
}

/// Reads everything and decides what is in force. Says in the log when something staged is ignored. Raises the clock to the beginning of the
/// certificate in use.
///
/// # Errors
/// A sentence for the operator: a live file that cannot be read or must not be trusted, or the two do not belong together.
pub(super) fn load(
    config: &AgentConfig,
    is_revoked: impl Fn(&Serial) -> bool,
    clock: &Clock,
) -> Result<Material, String> {
    let live = identity(config)?;
    clock.raise(live.certificate().not_before);
    let trusted = trusted(config)?;
    let ignored = |error: &str| {
        Action::new("cert-staged-ignored")
            .field("ERROR", error)
            .field("PATH", config.cert_staging_path.display())
            .warning();
    };
    let (mut identity, mut waiting) = (live, false);
    match staged_certificate(config, &identity, &trusted.cas, is_revoked, clock) {
        Staged::Nothing | Staged::Same => {}
        Staged::Fresh(new) => {
            clock.raise(new.not_before);
            identity = Identity::new(vec![new], identity.key().clone())
                .ok_or("the staged certificate does not fit the key")?;
        }
        Staged::Later(error) => {
            ignored(&error);
            waiting = true;
        }
        Staged::Never(error) => ignored(&error),
    }
    Ok(Material {
        identity,
        trusted,
        waiting,
    })
}

/// Certificate and key of the configuration.
///
/// # Errors
/// As [`load`].
pub(super) fn identity(config: &AgentConfig) -> Result<Identity, String> {
    Identity::load(&config.cert, &config.key).map_err(|e| e.to_string())
}

/// The certificates in the CA file; more than one while a CA is replaced.
///
/// # Errors
/// As [`load`].
pub(super) fn authorities(config: &AgentConfig) -> Result<Vec<Certificate>, String> {
    let pem = secure_open::read_trusted(&config.ca, MAX_FILE, Trust::Public)
        .map_err(|e| e.to_string())?;
    Certificate::all_from_pem(&pem).map_err(|e| format!("'{}': {e}", config.ca.display()))
}

/// The CAs in force: the staged ones if the live ones answer for them.
fn trusted(config: &AgentConfig) -> Result<Trusted, String> {
    let live = authorities(config)?;
    match staged_authorities(config, &live) {
        Staged::Nothing | Staged::Same => Ok(Trusted::live(live)),
        Staged::Fresh(trusted) => Ok(trusted),
        Staged::Later(error) | Staged::Never(error) => {
            Action::new("ca-staged-ignored")
                .field("ERROR", error)
                .field("PATH", config.staged_ca().display())
                .warning();
            Ok(Trusted::live(live))
        }
    }
}

/// Judges what lies at `cert_staging_path`.
pub(super) fn staged_certificate(
    config: &AgentConfig,
    live: &Identity,
    authorities: &[Certificate],
    is_revoked: impl Fn(&Serial) -> bool,
    clock: &Clock,
) -> Staged<Certificate> {
    let new = match read_staged(&config.cert_staging_path) {
        Staged::Fresh(mut all) => all.swap_remove(0),
        Staged::Later(error) => return Staged::Later(error),
        Staged::Never(error) => return Staged::Never(error),
        Staged::Nothing | Staged::Same => return Staged::Nothing,
    };
    let old = live.certificate();
    if new.der == old.der {
        return Staged::Same;
    }
    match renewal::judge(&new, old, authorities, is_revoked, clock.now()) {
        Ok(()) => Staged::Fresh(new),
        Err(error) => sorted(&error),
    }
}

fn sorted<T>(error: &RenewalError) -> Staged<T> {
    let text = error.to_string();
    if error.may_pass() {
        Staged::Later(text)
    } else {
        Staged::Never(text)
    }
}

/// Judges what lies at [`AgentConfig::staged_ca`].
pub(super) fn staged_authorities(config: &AgentConfig, live: &[Certificate]) -> Staged<Trusted> {
    let all = match read_staged(&config.staged_ca()) {
        Staged::Fresh(all) => all,
        Staged::Later(error) => return Staged::Later(error),
        Staged::Never(error) => return Staged::Never(error),
        Staged::Nothing | Staged::Same => return Staged::Nothing,
    };
    match succession::in_force(live, &all) {
        Ok(trusted) if trusted.cas == live => Staged::Same,
        Ok(trusted) => Staged::Fresh(trusted),
        Err(error) => Staged::Never(error.to_string()),
    }
}

/// All certificates of a file, whoever wrote it: what they say is judged, not where they lie.
fn read_staged(path: &Path) -> Staged<Vec<Certificate>> {
    match secure_open::read_bounded(path, MAX_FILE) {
        Ok(pem) => match Certificate::all_from_pem(&pem) {
            Ok(all) => Staged::Fresh(all),
            Err(error) => Staged::Never(format!("'{}': {error}", path.display())),
        },
        Err(error) if error.is_not_found() => Staged::Nothing,
        Err(error) => Staged::Later(error.to_string()),
    }
}

/// The certificate in a file, whoever wrote it: for showing, not for trusting.
///
/// # Errors
/// As [`load`].
pub(super) fn shown(path: &Path) -> Result<Certificate, String> {
    let pem = secure_open::read_bounded(path, MAX_FILE).map_err(|e| e.to_string())?;
    Certificate::from_pem(&pem).map_err(|e| format!("'{}': {e}", path.display()))
}
