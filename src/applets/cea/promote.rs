//! `promote-cert`: the step of root before `serve` that puts a renewed certificate, staged by an agent of the original, into place
//! (spec/agent.md 15.3). Never fails the unit that calls it: whatever happens, the status is 0 and the log says why.

use std::fmt::Display;
use std::path::Path;

use crate::applets::cea::{Files, material};
use crate::applets::{Context, Exit};
use crate::complain;
use crate::core::clock::{Clock, TimeSource};
use crate::core::config::{self, AgentConfig};
use crate::core::durable;
use crate::core::logging::Action;
use crate::core::pki::cert::CertError;
use crate::core::pki::{Certificate, Role};
use crate::core::tls::Identity;

pub(super) fn promote(context: &Context, files: &Files) -> Exit {
    match config::load_agent(&context.paths, files.config.as_deref()) {
        Ok(loaded) => adopt(&context.time, &loaded.value),
        Err(error) => complain!("Warning: no staged certificate was looked for: {error}"),
    }
    Exit::Success
}

fn adopt(time: &TimeSource, config: &AgentConfig) {
    let staged = config.cert_staging_path.as_path();
    if std::fs::symlink_metadata(staged).is_err() {
        return;
    }
    let live = match material::identity(config) {
        Ok(live) => live,
        Err(error) => return keep(staged, &error),
    };
    let authorities = match material::authorities(config) {
        Ok(authorities) => authorities,
        Err(error) => return keep(staged, &error),
    };
    let clock = Clock::with_floor_from(time, &[&config.cert, &config.ca]);
    let new = match material::shown(staged)
        .and_then(|new| judge(&new, &live, &authorities, clock.now()).map(|()| new))
    {
        Ok(new) => new,
        Err(error) => return discard(staged, &error),
    };
    if let Err(error) = new.check_dates(clock.now()) {
        return keep(staged, &error);
    }
    // Written anew from what was judged: the staged file belongs to the agent's user, who could change it in between.
    match durable::replace_keeping_owner(&config.cert, new.to_pem().as_bytes(), 0o640) {
        Ok(()) => {
            Action::new("cert-promote")
                .field("STATUS", "installed")
                .info();
            let _ = durable::remove(staged);
        }
        Err(error) => keep(staged, &error),
    }
}

/// What could be right at the next start stays.
fn keep(staged: &Path, error: &dyn Display) {
    complain!(
        "Warning: the staged certificate '{}' was not installed: {error}",
        staged.display()
    );
    Action::new("cert-promote").field("ERROR", error).warning();
}

/// What is wrong for ever goes.
fn discard(staged: &Path, error: &dyn Display) {
    complain!(
        "Warning: the staged certificate '{}' is removed: {error}",
        staged.display()
    );
    Action::new("cert-promote").field("ERROR", error).warning();
    let _ = durable::remove(staged);
}

/// Whether a staged certificate may replace the live one, now or later: our CA, our key, our name, and not older
/// (spec/agent.md 15.2, 19.2 W10). Pure.
fn judge(
    new: &Certificate,
    live: &Identity,
    authorities: &[Certificate],
    now: i64,
) -> Result<(), String> {
    // A host without a battery boots in the past: what is not valid yet is not wrong for ever.
    let issued_by = |ca: &Certificate| {
        matches!(
            new.verify_issued_by(ca, now),
            Ok(()) | Err(CertError::NotYetValid { .. })
        )
    };
    if !authorities.iter().any(issued_by) {
        return Err("renewed cert does not verify against the agent CA".to_owned());
    }
    if new.spki != live.key().spki_der() {
        return Err("renewed cert public key does not match the agent key".to_owned());
    }
    let old = live.certificate();
    // The certificates of the original have no role; what our dispatcher renews has that of an agent.
    let fits = new.role == old.role || (old.role.is_none() && new.role == Some(Role::Agent));
    if new.subject_cn != old.subject_cn || !fits {
        return Err("renewed cert is for another name or role".to_owned());
    }
    if new.not_after <= old.not_after {
        return Err("renewed cert does not last longer than the present one".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::paths::{Paths, Platform};
    use crate::core::pki::fixtures::{LeafVersion, OpenSsl};

    /// An agent as the original leaves it: `agent.key`, `agent.crt` (825 days), `ca.crt`; and a config that points there.
    fn host() -> (OpenSsl, AgentConfig) {
        let openssl = OpenSsl::new();
        openssl.make_ca("ca", "rsa:2048", "/CN=ctrl-exec CA");
        openssl.make_leaf("agent", "rsa:2048", "/CN=web1", "ca", LeafVersion::V1);
        let paths = Paths::new(openssl.dir(), Platform::Standard);
        let mut config = AgentConfig::defaults(&paths, &openssl.path("agent.conf"));
        config.cert = openssl.path("agent.crt");
        config.key = openssl.path("agent.key");
        config.ca = openssl.path("ca.crt");
        config.cert_staging_path = openssl.path("staged");
        openssl.run("x509 -in agent.crt -out before.crt");
        (openssl, config)
    }

    fn stage(openssl: &OpenSsl, request: &str, ca: &str, days: u32) {
        openssl.run(&format!(
            "x509 -req -in {request}.csr -CA {ca}.crt -CAkey {ca}.key -CAcreateserial -sha256 -days {days} -out staged"
        ));
    }

    #[test]
    fn a_longer_certificate_for_the_same_key_and_name_is_installed_and_consumed() {
        let (openssl, config) = host();
        adopt(&TimeSource::System, &config);
        assert_eq!(
            openssl.read("agent.crt"),
            openssl.read("before.crt"),
            "nothing staged, nothing changed"
        );
        stage(&openssl, "agent", "ca", 900);
        let staged = openssl.certificate("staged");
        adopt(&TimeSource::System, &config);
        assert_eq!(openssl.certificate("agent.crt").serial, staged.serial);
        assert!(!openssl.path("staged").exists());
    }

    #[test]
    fn what_is_wrong_for_ever_is_removed_and_the_live_certificate_stays() {
        let (openssl, config) = host();
        openssl.make_ca("other", "rsa:2048", "/CN=ctrl-exec CA");
        openssl.make_leaf("stranger", "rsa:2048", "/CN=web1", "ca", LeafVersion::V1);
        openssl.run("req -new -key agent.key -subj /CN=web2 -out renamed.csr");
        for (request, ca, days) in [
            ("agent", "other", 900),
            ("stranger", "ca", 900),
            ("agent", "ca", 800),
            ("renamed", "ca", 900),
        ] {
            stage(&openssl, request, ca, days);
            adopt(&TimeSource::System, &config);
            assert!(!openssl.path("staged").exists(), "{request} {ca} {days}");
            assert_eq!(
                openssl.read("agent.crt"),
                openssl.read("before.crt"),
                "{request} {ca} {days}"
            );
        }
    }

    #[test]
    fn a_renewal_may_bring_the_role_of_an_agent_and_no_other() {
        let (openssl, config) = host();
        let live = material::identity(&config).unwrap();
        let authorities = material::authorities(&config).unwrap();
        let now = live.certificate().not_before + 60;
        stage(&openssl, "agent", "ca", 900);
        let mut new = openssl.certificate("staged");
        for (role, fine) in [
            (None, true),
            (Some(Role::Agent), true),
            (Some(Role::Dispatcher), false),
        ] {
            new.role = role;
            let verdict = judge(&new, &live, &authorities, now);
            assert_eq!(verdict.is_ok(), fine, "{role:?} {verdict:?}");
        }
        new.role = None;
        assert!(judge(&new, &live, &authorities, now - 86_400).is_ok());
        assert!(judge(&new, &live, &authorities, new.not_after + 1).is_err());
    }

    #[test]
    fn what_could_be_installed_later_is_kept() {
        let (openssl, mut config) = host();
        stage(&openssl, "agent", "ca", 900);
        config.key = openssl.path("absent.key");
        adopt(&TimeSource::System, &config);
        assert!(openssl.path("staged").exists());
    }
}
