//! `promote-cert`: the step of root before `serve` that puts renewed certificates and CAs into place (spec/agent.md 15.3). Never fails the unit
//! that calls it: whatever happens, the status is 0 and the log says why. An agent that may write the live files does the same for itself.
//!
//! Order: CAs, then the certificate, each replaced before its staged file goes. A crash in between leaves something staged that the next start
//! uses or clears away; at every point the host shows a certificate of a CA that it trusts.

use std::fmt::Display;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, access};

use crate::applets::cea::material::{self, Staged};
use crate::applets::cea::revocations::Revocations;
use crate::applets::cea::{Files, timekeeping};
use crate::applets::{Context, Exit};
use crate::complain;
use crate::core::clock::Clock;
use crate::core::config::{self, AgentConfig};
use crate::core::durable;
use crate::core::logging::Action;
use crate::core::pki::Certificate;

pub(super) fn promote(context: &Context, files: &Files) -> Exit {
    match config::load_agent(&context.paths, files.config.as_deref()) {
        Ok(loaded) => {
            let clock = timekeeping::clock(context, &loaded.value);
            adopt(&loaded.value, &clock, |_| true);
        }
        Err(error) => complain!("Warning: no staged certificate was looked for: {error}"),
    }
    Exit::Success
}

/// The same for the agent itself, as far as it may write the live files. Where it may not, everything stays staged until root comes by.
pub(super) fn where_we_may(config: &AgentConfig, clock: &Clock) {
    adopt(config, clock, |live| {
        let directory = live.parent().unwrap_or(Path::new("/"));
        access(directory, Access::WRITE_OK | Access::EXEC_OK).is_ok()
    });
}

fn adopt(config: &AgentConfig, clock: &Clock, may_write: impl Fn(&Path) -> bool) {
    let work = [config.cert_staging_path.clone(), config.staged_ca()];
    if work.iter().all(|p| std::fs::symlink_metadata(p).is_err()) {
        return;
    }
    let Some(cas) = adopt_authorities(config, may_write(&config.ca)) else {
        return;
    };
    if may_write(&config.cert) {
        adopt_certificate(config, &cas, clock);
    }
}

/// The CAs in force afterwards; `None` if that cannot be told.
fn adopt_authorities(config: &AgentConfig, may_write: bool) -> Option<Vec<Certificate>> {
    let place = Place {
        what: "CA",
        action: "ca-promote",
        staged: config.staged_ca(),
    };
    let live = match material::authorities(config) {
        Ok(live) => live,
        Err(error) => {
            place.keep(&error);
            return None;
        }
    };
    match material::staged_authorities(config, &live) {
        Staged::Nothing => Some(live),
        Staged::Fresh(trusted) => {
            if may_write {
                let pem: String = trusted.cas.iter().map(Certificate::to_pem).collect();
                place.install(&config.ca, &pem, 0o644);
            }
            Some(trusted.cas)
        }
        _ if !may_write => Some(live),
        Staged::Same => {
            place.clear();
            Some(live)
        }
        Staged::Later(error) => {
            place.keep(&error);
            Some(live)
        }
        Staged::Never(error) => {
            place.discard(&error);
            Some(live)
        }
    }
}

fn adopt_certificate(config: &AgentConfig, cas: &[Certificate], clock: &Clock) {
    let place = Place {
        what: "certificate",
        action: "cert-promote",
        staged: config.cert_staging_path.clone(),
    };
    if std::fs::symlink_metadata(&place.staged).is_err() {
        return;
    }
    let live = match material::identity(config) {
        Ok(live) => live,
        Err(error) => return place.keep(&error),
    };
    let revoked = match Revocations::load(config) {
        Ok(revoked) => revoked,
        Err(error) => return place.keep(&error),
    };
    clock.raise(live.certificate().not_before);
    let is_revoked = |serial: &_| revoked.contains(serial);
    match material::staged_certificate(config, &live, cas, is_revoked, clock) {
        Staged::Nothing => {}
        Staged::Same => place.clear(),
        Staged::Fresh(new) => place.install(&config.cert, &new.to_pem(), 0o640),
        Staged::Later(error) => place.keep(&error),
        Staged::Never(error) => place.discard(&error),
    }
}

/// One staged file on its way.
struct Place {
    what: &'static str,
    action: &'static str,
    staged: PathBuf,
}

impl Place {
    /// Written anew from what was judged: the staged file belongs to the agent's user, who could change it in between.
    fn install(&self, live: &Path, pem: &str, mode: u32) {
        match durable::replace_keeping_owner(live, pem.as_bytes(), mode) {
            Ok(()) => {
                Action::new(self.action).field("STATUS", "installed").info();
                self.clear();
            }
            Err(error) => self.keep(&error),
        }
    }

    fn clear(&self) {
        // One that cannot be removed says the same as the live file, and is taken for that.
        let _ = durable::remove(&self.staged);
    }

    /// What could be right at the next start stays.
    fn keep(&self, error: &dyn Display) {
        complain!(
            "Warning: the staged {} '{}' was not installed: {error}",
            self.what,
            self.staged.display()
        );
        Action::new(self.action).field("ERROR", error).warning();
    }

    /// What is wrong for ever goes.
    fn discard(&self, error: &dyn Display) {
        complain!(
            "Warning: the staged {} '{}' is removed: {error}",
            self.what,
            self.staged.display()
        );
        Action::new(self.action).field("ERROR", error).warning();
        let _ = durable::remove(&self.staged);
    }
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
        // OpenSSL counts in seconds, and what follows must be later.
        std::thread::sleep(std::time::Duration::from_millis(1100));
        openssl.run(&format!(
            "x509 -req -in {request}.csr -CA {ca}.crt -CAkey {ca}.key -CAcreateserial -sha256 -days {days} -out staged"
        ));
    }

    #[test]
    fn a_longer_certificate_for_the_same_key_and_name_is_installed_and_consumed() {
        let (openssl, config) = host();
        adopt(&config, &Clock::system(0), |_| true);
        assert_eq!(
            openssl.read("agent.crt"),
            openssl.read("before.crt"),
            "nothing staged, nothing changed"
        );
        stage(&openssl, "agent", "ca", 900);
        let staged = openssl.certificate("staged");
        adopt(&config, &Clock::system(0), |_| true);
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
            adopt(&config, &Clock::system(0), |_| true);
            assert!(!openssl.path("staged").exists(), "{request} {ca} {days}");
            assert_eq!(
                openssl.read("agent.crt"),
                openssl.read("before.crt"),
                "{request} {ca} {days}"
            );
        }
    }

    #[test]
    fn what_could_be_installed_later_is_kept() {
        let (openssl, mut config) = host();
        stage(&openssl, "agent", "ca", 900);
        config.key = openssl.path("absent.key");
        adopt(&config, &Clock::system(0), |_| true);
        assert!(openssl.path("staged").exists());
    }

    /// A power cut after any step of staging and promoting: the next start has a certificate of a CA that it trusts, old or new, and root
    /// comes to the new one in the end.
    #[test]
    fn after_a_power_cut_at_any_point_the_host_has_a_certificate_that_its_cas_stand_for() {
        use crate::core::durable::crash;
        use crate::core::pki::succession::Trusted;
        let (openssl, config) = host();
        openssl.make_ca("next", "ec", "/CN=next CA");
        let agent_pem = openssl.read("before.crt");
        let old_ca = openssl.read("ca.crt");
        stage(&openssl, "agent", "next", 900);
        let new = openssl.certificate("staged");
        // The old CA speaks for the next one, and is removed again once the certificate is of the next one.
        openssl.write(
            "ca.ext",
            "basicConstraints=critical,CA:TRUE\nkeyUsage=keyCertSign\n",
        );
        openssl.run("req -new -key next.key -subj /CN=next+CA -out next.csr");
        openssl.run("x509 -req -in next.csr -CA ca.crt -CAkey ca.key -CAcreateserial -sha256 -days 30 -extfile ca.ext -out cross.crt");
        let both = Trusted {
            cas: vec![
                openssl.certificate("ca.crt"),
                openssl.certificate("next.crt"),
            ],
            evidence: vec![openssl.certificate("cross.crt")],
        };
        let only_next = both.without(&both.cas[0].fingerprint()).unwrap();
        let clock = Clock::system(0);
        let staged_ca = config.staged_ca();
        let steps = || -> Result<(), durable::DurableError> {
            durable::replace(&staged_ca, both.to_pem().as_bytes(), 0o640)?;
            durable::replace(&config.cert_staging_path, new.to_pem().as_bytes(), 0o640)?;
            durable::replace(&staged_ca, only_next.to_pem().as_bytes(), 0o640)?;
            adopt(&config, &clock, |_| true);
            Ok(())
        };
        let start = || material::load(&config, |_| false, &clock).unwrap();
        let sound = |effects: u32| {
            let own = start();
            let certificate = own.identity.certificate();
            let cas = &own.trusted.cas;
            assert!(
                cas.iter()
                    .any(|ca| certificate.verify_signed_by(ca).is_ok()),
                "after {effects} effects"
            );
        };
        for effects in 0.. {
            openssl.write("agent.crt", &agent_pem);
            openssl.write("ca.crt", &old_ca);
            let _ = std::fs::remove_file(&config.cert_staging_path);
            let _ = std::fs::remove_file(&staged_ca);
            let (_, cut) = crash::after(effects, steps);
            sound(effects);
            // Root comes by, perhaps twice.
            for _ in 0..2 {
                adopt(&config, &clock, |_| true);
                sound(effects);
            }
            assert!(!config.cert_staging_path.exists() && !staged_ca.exists());
            if !cut {
                assert_eq!(start().identity.certificate().serial, new.serial);
                assert_eq!(start().trusted.cas, only_next.cas);
                assert!(effects > 6);
                break;
            }
        }
    }

    #[test]
    fn an_agent_that_may_not_write_the_live_files_leaves_all_of_it_staged() {
        let (openssl, config) = host();
        stage(&openssl, "agent", "ca", 900);
        let clock = Clock::system(0);
        adopt(&config, &clock, |_| false);
        assert!(config.cert_staging_path.exists());
        assert_eq!(openssl.read("agent.crt"), openssl.read("before.crt"));
        let own = material::load(&config, |_| false, &clock).unwrap();
        let staged = openssl.certificate("staged");
        assert_eq!(own.identity.certificate().serial, staged.serial);
        // What is revoked is not used, and root clears it away.
        let own = material::load(&config, |s| *s == staged.serial, &clock).unwrap();
        assert_ne!(own.identity.certificate().serial, staged.serial);
        assert!(!own.waiting);
        // A host that boots in the past waits.
        let own = material::load(&config, |_| false, &Clock::fixed(0)).unwrap();
        assert!(own.waiting);
        openssl.write("staged", "no certificate");
        let own = material::load(&config, |_| false, &clock).unwrap();
        assert!(!own.waiting);
        adopt(&config, &clock, |_| true);
        assert!(!config.cert_staging_path.exists());
    }
}
