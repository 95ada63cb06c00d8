//! Putting a new pairing into place on the agent so that no crash leaves half of one (spec/pairing.md 12, 18.16).
//!
//! Everything is written and synced beside its target first. Then come the steps of [`plan`], each atomic:
//!
//! ```text
//! first pairing, or the same CA:   trust  > [remove certificate] > key > CA > certificate
//! another CA (--replace-ca):       [remove certificate] > new map > key > CA > certificate
//! ```
//!
//! The certificate goes first and comes last. While it is away, `paired` and `serve` say "not paired" and name the missing file; while it is there, it
//! fits the key, the CA and the map beside it. Before it goes, the old pairing works: an added line in the map names a dispatcher
//! of the same CA that we have just decided to trust.

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::delivery::Accepted;
use crate::core::config::AgentConfig;
use crate::core::durable::{self, DurableError, Owner, Prepared};
use crate::core::paths::Paths;
use crate::core::pki::PrivateKey;
use crate::core::sys::users;
use crate::core::trust::{self, TrustError, TrustMap};

/// User and group of the agent service.
pub const SERVICE: &str = "ctrl-exec-agent";

/// Where the files go.
#[derive(Clone, Debug)]
pub struct Targets {
    pub cert: PathBuf,
    pub key: PathBuf,
    pub ca: PathBuf,
    pub map: PathBuf,
    /// A renewed certificate that waits to be promoted belongs to the old key.
    pub staged: PathBuf,
    /// CAs that were brought by a change of the old CA: what is installed now is what counts.
    pub staged_ca: PathBuf,
    /// The agent's own directory; what is in it belongs to the service.
    pub state_dir: PathBuf,
}

impl Targets {
    /// Where the agent's configuration says that they are.
    pub fn of(config: &AgentConfig, paths: &Paths) -> Self {
        Self {
            state_dir: paths.agent_state(),
            cert: config.cert.clone(),
            key: config.key.clone(),
            ca: config.ca.clone(),
            map: config.trusted_dispatchers_path.clone(),
            staged: config.cert_staging_path.clone(),
            staged_ca: config.staged_ca(),
        }
    }
}

/// Who the files shall belong to.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Owners {
    /// Group of the three files.
    pub group: Option<u32>,
    /// User and group of the state directory.
    pub service: Option<(u32, u32)>,
}

impl Owners {
    /// The service's, when we are root; nobody's when we are not, because then all that we can own is our own.
    /// The second value is a warning.
    pub fn lookup(is_root: bool) -> (Self, Option<String>) {
        if !is_root {
            return (Self::default(), None);
        }
        let owners = Self {
            group: users::find_group(SERVICE),
            service: users::find_user(SERVICE),
        };
        let warning = owners.group.is_none().then(|| {
            format!("group '{SERVICE}' does not exist: the files stay with root, and only an agent that runs as root can read the key")
        });
        (owners, warning)
    }

    fn of_files(self) -> Owner {
        Owner {
            uid: None,
            gid: self.group,
        }
    }

    fn of_state(self) -> Owner {
        Owner {
            uid: self.service.map(|(uid, _)| uid),
            gid: self.service.map(|(_, gid)| gid),
        }
    }
}

/// What could not be put into place.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    #[error("'{}' cannot be written by this user ({source}): run this as root (sudo)", .path.display())]
    NotWritable { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Durable(#[from] DurableError),
    #[error(transparent)]
    Trust(#[from] TrustError),
}

/// Makes sure, before anything is asked of the dispatcher, that every file can be written later; creates the directories.
///
/// # Errors
/// A directory does not exist and cannot be made, or we may not write there.
pub fn check_writable(targets: &Targets, owners: Owners) -> Result<(), InstallError> {
    for (path, owner) in [
        (&targets.cert, owners.of_files()),
        (&targets.key, owners.of_files()),
        (&targets.ca, owners.of_files()),
        (&targets.map, owners.of_state()),
    ] {
        let Some(dir) = path.parent() else { continue };
        let refused = |source| InstallError::NotWritable {
            path: dir.to_owned(),
            source,
        };
        let made = !dir.exists();
        if made {
            durable::create_dir(dir, 0o750).map_err(|e| match e {
                DurableError::Create { source, .. } => refused(source),
                other => other.into(),
            })?;
        }
        // A package may have made the service's directory for root; only that one is given away, whatever else the map may lie in.
        let given_away = made || (*dir == targets.state_dir && owned_by_root(dir));
        if given_away && owner != Owner::default() {
            // The state directory itself may be a link of the administrator; one that we have just made is none.
            let real = std::fs::canonicalize(dir).ok().filter(|_| !made);
            durable::give_dir(real.as_deref().unwrap_or(dir), owner)?;
        }
        rustix::fs::access(
            dir,
            rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK,
        )
        .map_err(|e| refused(e.into()))?;
    }
    Ok(())
}

fn owned_by_root(dir: &Path) -> bool {
    std::fs::metadata(dir).is_ok_and(|m| m.uid() == 0)
}

/// One atomic step.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Step {
    /// Adds the dispatcher to the map.
    AddTrust,
    /// Forgets the dispatchers of the other CA.
    DropMap,
    RemoveCertificate,
    /// Removes a renewed certificate of the old key, and CAs that were brought while the old pairing lasted.
    RemoveStaged,
    PlaceKey,
    PlaceCa,
    PlaceCertificate,
}

/// The steps, in order.
pub fn plan(new_ca: bool) -> Vec<Step> {
    use Step::{
        AddTrust, DropMap, PlaceCa, PlaceCertificate, PlaceKey, RemoveCertificate, RemoveStaged,
    };
    let rest = [RemoveStaged, PlaceKey, PlaceCa, PlaceCertificate];
    if new_ca {
        [&[RemoveCertificate, DropMap, AddTrust], &rest[..]].concat()
    } else {
        [&[AddTrust, RemoveCertificate], &rest[..]].concat()
    }
}

/// Everything that will be put into place, on the disk already but not visible.
#[derive(Debug)]
pub struct Installation<'a> {
    targets: &'a Targets,
    accepted: &'a Accepted,
    key: Option<Prepared>,
    ca: Option<Prepared>,
    certificate: Option<Prepared>,
}

impl<'a> Installation<'a> {
    /// Writes the three files beside their targets (modes and owners: spec/pairing.md 12).
    ///
    /// # Errors
    /// One cannot be written; nothing is left behind.
    pub fn prepare(
        targets: &'a Targets,
        owners: Owners,
        accepted: &'a Accepted,
        key: &PrivateKey,
    ) -> Result<Self, InstallError> {
        let owner = owners.of_files();
        let prepare = |path: &Path, bytes: &[u8], mode| durable::prepare(path, bytes, mode, owner);
        Ok(Self {
            key: Some(prepare(
                &targets.key,
                key.to_pkcs8_pem().expose().as_bytes(),
                0o640,
            )?),
            ca: Some(prepare(
                &targets.ca,
                accepted.ca.to_pem().as_bytes(),
                0o644,
            )?),
            certificate: Some(prepare(
                &targets.cert,
                accepted.certificate.to_pem().as_bytes(),
                0o640,
            )?),
            targets,
            accepted,
        })
    }

    /// All steps.
    ///
    /// # Errors
    /// The first step that fails; what follows from stopping there is described above.
    pub fn commit(mut self) -> Result<(), InstallError> {
        plan(self.accepted.new_ca)
            .into_iter()
            .try_for_each(|step| self.apply(step))
    }

    fn apply(&mut self, step: Step) -> Result<(), InstallError> {
        let place = |file: &mut Option<Prepared>| match file.take() {
            Some(prepared) => prepared.commit(),
            None => Ok(()),
        };
        match step {
            Step::AddTrust => self.add_trust()?,
            Step::DropMap => drop(durable::remove(&self.targets.map)?),
            Step::RemoveCertificate => drop(durable::remove(&self.targets.cert)?),
            Step::RemoveStaged => {
                durable::remove(&self.targets.staged)?;
                durable::remove(&self.targets.staged_ca)?;
            }
            Step::PlaceKey => place(&mut self.key)?,
            Step::PlaceCa => place(&mut self.ca)?,
            Step::PlaceCertificate => place(&mut self.certificate)?,
        }
        Ok(())
    }

    /// A serial that stands there for another id is the same dispatcher under its old name: it has just shown that certificate.
    fn add_trust(&self) -> Result<(), InstallError> {
        let (map, id) = (&self.targets.map, &self.accepted.dispatcher);
        for serial in &self.accepted.serials {
            for entry in TrustMap::load(map)?.entries() {
                if entry.serial == serial.to_string() && entry.id != *id {
                    trust::remove(map, serial, &entry.id)?;
                }
            }
            trust::add(map, serial, id)?;
        }
        // The lock, which the service takes itself when its dispatcher rotates, is made for the owner of the directory. It must not be given away
        // here by its name: whoever owns the directory could put a link to any file of the system in its place.
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::pairing::delivery::tests::{Fleet, HOST, NOW};
    use crate::core::pairing::delivery::{Expectation, Pins, check};
    use crate::core::pki::{Certificate, KeyType};

    struct Host {
        dir: tempfile::TempDir,
        targets: Targets,
    }

    /// What an observer finds after a crash.
    #[derive(Debug, Eq, PartialEq)]
    enum Found {
        NotPaired,
        /// Key, certificate and CA fit, and the map knows that many dispatchers.
        Paired {
            ca: Vec<u8>,
            cert: Vec<u8>,
            trusted: usize,
        },
        Broken,
    }

    impl Host {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let at = |name: &str| dir.path().join(name);
            let targets = Targets {
                cert: at("etc/agent.crt"),
                key: at("etc/agent.key"),
                ca: at("etc/ca.crt"),
                map: at("var/ctrl-exec-dispatchers"),
                staged: at("var/agent.crt.staged"),
                staged_ca: at("var/ca.crt.staged"),
                state_dir: at("var"),
            };
            check_writable(&targets, Owners::default()).unwrap();
            Self { dir, targets }
        }

        fn accept(&self, fleet: &Fleet, known: Option<&Certificate>) -> (PrivateKey, Accepted) {
            let key = PrivateKey::generate(KeyType::EcdsaP256).unwrap();
            let spki = key.spki_der();
            let approval = fleet.deliver(&fleet.sign(&key, HOST));
            let expectation = Expectation {
                own_spki: &spki,
                hostname: HOST,
                peer: &fleet.peer,
                known_ca: known,
                replace_ca: true,
                pins: Pins::default(),
                now: NOW,
            };
            let accepted = check(&approval, &expectation).unwrap();
            (key, accepted)
        }

        /// Applies the first steps only, as if the power failed then.
        fn install(&self, key: &PrivateKey, accepted: &Accepted, steps: usize) {
            let mut installation =
                Installation::prepare(&self.targets, Owners::default(), accepted, key).unwrap();
            for step in plan(accepted.new_ca).into_iter().take(steps) {
                installation.apply(step).unwrap();
            }
        }

        fn look(&self) -> Found {
            let read = |path: &Path| std::fs::read(path).ok();
            let (Some(cert), Some(key), Some(ca)) = (
                read(&self.targets.cert),
                read(&self.targets.key),
                read(&self.targets.ca),
            ) else {
                return Found::NotPaired;
            };
            let own = Certificate::from_pem(&cert).unwrap();
            let authority = Certificate::from_pem(&ca).unwrap();
            let key = PrivateKey::from_pem(&key).unwrap();
            if own.spki != key.spki_der() || own.verify_issued_by(&authority, NOW).is_err() {
                return Found::Broken;
            }
            let trusted = TrustMap::load(&self.targets.map).unwrap().entries().len();
            Found::Paired { ca, cert, trusted }
        }
    }

    #[test]
    fn what_the_service_put_in_the_place_of_the_lock_is_not_given_to_it() {
        use std::os::unix::fs::MetadataExt as _;
        let host = Host::new();
        let (key, accepted) = host.accept(&Fleet::new(), None);
        let victim = host.dir.path().join("victim");
        std::fs::write(&victim, "root's").unwrap();
        let lock = trust::lock_path(&host.targets.map);
        std::os::unix::fs::symlink(&victim, &lock).unwrap();
        let somebody = 54_321;
        let owners = Owners {
            group: None,
            service: Some((somebody, somebody)),
        };
        let mut installation =
            Installation::prepare(&host.targets, owners, &accepted, &key).unwrap();
        assert!(installation.apply(Step::AddTrust).is_err());
        assert_ne!(victim.metadata().unwrap().uid(), somebody);
    }

    #[test]
    fn every_crash_leaves_the_old_pairing_the_new_one_or_a_host_that_says_it_is_not_paired() {
        let (old_fleet, new_fleet) = (Fleet::new(), Fleet::new());
        for fleet in [None, Some(&old_fleet), Some(&new_fleet)] {
            let steps = plan(fleet.is_some_and(|f| f.ca() == new_fleet.ca())).len();
            for crash_after in 0..=steps {
                let host = Host::new();
                let before = fleet.map(|_| {
                    let (key, accepted) = host.accept(&old_fleet, None);
                    host.install(&key, &accepted, usize::MAX);
                    std::fs::write(&host.targets.staged, "renewed").unwrap();
                    host.look()
                });
                let target = fleet.unwrap_or(&new_fleet);
                let known = fleet.map(|_| old_fleet.ca());
                let (key, accepted) = host.accept(target, known);
                host.install(&key, &accepted, crash_after);
                let found = host.look();
                let new = Found::Paired {
                    ca: accepted.ca.to_pem().into_bytes(),
                    cert: accepted.certificate.to_pem().into_bytes(),
                    trusted: 1,
                };
                if crash_after == steps {
                    assert_eq!(found, new);
                    assert!(!host.targets.staged.exists());
                } else {
                    let fine = found == Found::NotPaired || Some(&found) == before.as_ref();
                    assert!(fine, "after {crash_after} steps: {found:?}");
                }
            }
        }
    }

    #[test]
    fn modes_are_those_of_the_specification_and_nothing_is_left_beside_the_files() {
        let (fleet, host) = (Fleet::new(), Host::new());
        let (key, accepted) = host.accept(&fleet, None);
        Installation::prepare(&host.targets, Owners::default(), &accepted, &key)
            .unwrap()
            .commit()
            .unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().mode() & 0o7777;
        assert_eq!(mode(&host.targets.key), 0o640);
        assert_eq!(mode(&host.targets.cert), 0o640);
        assert_eq!(mode(&host.targets.ca), 0o644);
        assert_eq!(mode(&host.targets.map), 0o644);
        assert_eq!(mode(&host.dir.path().join("var")), 0o750);
        assert_eq!(
            std::fs::read_dir(host.dir.path().join("etc"))
                .unwrap()
                .count(),
            3
        );
    }

    #[test]
    fn other_dispatchers_of_the_fleet_stay_and_those_of_another_ca_go() {
        let (fleet, other, host) = (Fleet::new(), Fleet::new(), Host::new());
        let (key, accepted) = host.accept(&fleet, None);
        host.install(&key, &accepted, usize::MAX);
        let second = crate::core::types::DispatcherId::new("second").unwrap();
        let serial = crate::core::types::Serial::parse_hex("abcdef").unwrap();
        trust::add(&host.targets.map, &serial, &second).unwrap();

        let (key, again) = host.accept(&fleet, Some(fleet.ca()));
        host.install(&key, &again, usize::MAX);
        assert_eq!(
            TrustMap::load(&host.targets.map).unwrap().entries().len(),
            2
        );
        // The dispatcher was renamed since: its serial gets the new id.
        let renamed = Accepted {
            dispatcher: crate::core::types::DispatcherId::new("renamed").unwrap(),
            ..again
        };
        host.install(&key, &renamed, usize::MAX);
        let map = TrustMap::load(&host.targets.map).unwrap();
        let ids: Vec<&str> = map.entries().iter().map(|e| e.id.as_str()).collect();
        assert_eq!(ids.len(), 2, "{ids:?}");
        assert!(
            ids.contains(&"renamed") && ids.contains(&"second"),
            "{ids:?}"
        );

        let (key, moved) = host.accept(&other, Some(fleet.ca()));
        host.install(&key, &moved, usize::MAX);
        let map = TrustMap::load(&host.targets.map).unwrap();
        assert_eq!(map.entries().len(), 1);
    }

    #[test]
    fn a_directory_that_cannot_be_written_is_found_before_anything_is_asked() {
        if rustix::process::geteuid().is_root() {
            // Root may write anywhere but below what is no directory.
            let dir = tempfile::tempdir().unwrap();
            let file = dir.path().join("file");
            std::fs::write(&file, "").unwrap();
            let mut targets = Host::new().targets;
            targets.key = file.join("agent.key");
            assert!(check_writable(&targets, Owners::default()).is_err());
        } else {
            let mut targets = Host::new().targets;
            targets.key = PathBuf::from("/proc/agent.key");
            let error = check_writable(&targets, Owners::default()).unwrap_err();
            assert!(error.to_string().contains("sudo"), "{error}");
        }
    }

    #[test]
    fn without_root_nothing_is_given_away() {
        assert_eq!(Owners::lookup(false), (Owners::default(), None));
    }
}
