//! The identities that a dispatcher can present: the pair at the configured paths, and beside it those of a rotation that is not over
//! (spec/dispatcher.md 22.1 item 1).
//!
//! An agent trusts serials, one by one. So as long as there is an agent that trusts an older serial only, the older pair is kept, and each
//! agent is called with the pair that it is known to trust. A kept pair is one file, key and certificate together, so that no crash
//! can part them.

use std::path::{Path, PathBuf};

use crate::core::config::DispatcherConfig;
use crate::core::durable::{self, DurableError, Owner};
use crate::core::pki::keys::KeyError;
use crate::core::pki::{Certificate, PrivateKey};
use crate::core::registry::AgentRecord;
use crate::core::secure_open::{self, OpenError, Trust};
use crate::core::sys::users;
use crate::core::tls::{Identity, TlsError};
use crate::core::types::Serial;

/// Largest file of a pair: an RSA 4096 key and its certificate take 6 KiB.
const MAX_PAIR: u64 = 64 * 1024;

/// Why kept pairs cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum KeyringError {
    #[error("cannot list '{}': {source}", .path.display())]
    List {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error("'{}' holds no usable key: {source}", .path.display())]
    Key { path: PathBuf, source: KeyError },
    #[error("'{}' holds no certificate that fits its key: remove the file", .path.display())]
    Unfit { path: PathBuf },
    #[error(transparent)]
    Write(#[from] DurableError),
    #[error(transparent)]
    Main(#[from] TlsError),
}

/// Owner of the dispatcher's keys: the service user, so that the API can use them; ourselves where there is no such user or we are not root.
pub fn service_owner(config: &DispatcherConfig) -> Owner {
    if !rustix::process::geteuid().is_root() {
        return Owner::default();
    }
    match users::find_user(&config.service_user) {
        Some((uid, gid)) => Owner {
            uid: Some(uid),
            gid: Some(gid),
        },
        None => Owner::default(),
    }
}

/// The certificate at the configured path.
///
/// # Errors
/// A sentence: it cannot be read or is none.
pub fn configured_certificate(config: &DispatcherConfig) -> Result<Certificate, String> {
    let pem = secure_open::read_trusted(&config.cert, MAX_PAIR, Trust::Public)
        .map_err(|e| e.to_string())?;
    Certificate::from_pem(&pem).map_err(|e| e.to_string())
}

/// Pairs beside the configured one: `identities/<serial>.pem` in the directory of the dispatcher's key.
#[derive(Clone, Debug)]
pub struct PairStore {
    dir: PathBuf,
    owner: Owner,
}

impl PairStore {
    pub fn of(config: &DispatcherConfig) -> Self {
        Self {
            dir: config
                .key
                .parent()
                .unwrap_or(Path::new("/"))
                .join("identities"),
            owner: service_owner(config),
        }
    }

    fn path_of(&self, serial: &Serial) -> PathBuf {
        self.dir.join(format!("{serial}.pem"))
    }

    /// Keeps a pair.
    ///
    /// # Errors
    /// The file or its directory cannot be made.
    pub fn save(&self, identity: &Identity) -> Result<(), KeyringError> {
        if !self.dir.is_dir() {
            durable::create_dir(&self.dir, 0o700)?;
            if self.owner != Owner::default() {
                durable::give_dir(&self.dir, self.owner)?;
            }
        }
        let path = self.path_of(&identity.certificate().serial);
        let mut text = zeroize::Zeroizing::new(String::new());
        text.push_str(identity.key().to_pkcs8_pem().expose());
        text.push_str(&identity.certificate().to_pem());
        durable::prepare(&path, text.as_bytes(), 0o600, self.owner)?.commit()?;
        Ok(())
    }

    /// A kept pair; `None` if there is none of that serial.
    ///
    /// # Errors
    /// The file is there and cannot be used.
    pub fn load(&self, serial: &Serial) -> Result<Option<Identity>, KeyringError> {
        let path = self.path_of(serial);
        let pem = match secure_open::read_trusted(&path, MAX_PAIR, Trust::Secret) {
            Ok(pem) => zeroize::Zeroizing::new(pem),
            Err(e) if e.is_not_found() => return Ok(None),
            Err(e) => return Err(e.into()),
        };
        let key = PrivateKey::from_pem(&pem).map_err(|source| KeyringError::Key {
            path: path.clone(),
            source,
        })?;
        Certificate::from_pem(&pem)
            .ok()
            .filter(|certificate| certificate.serial == *serial)
            .and_then(|certificate| Identity::new(vec![certificate], key))
            .map(Some)
            .ok_or(KeyringError::Unfit { path })
    }

    /// Serials of all kept pairs.
    ///
    /// # Errors
    /// The directory is there and cannot be read.
    pub fn list(&self) -> Result<Vec<Serial>, KeyringError> {
        let failed = |source| KeyringError::List {
            path: self.dir.clone(),
            source,
        };
        let entries = match std::fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(failed(e)),
        };
        let mut serials = Vec::new();
        for entry in entries {
            let name = entry.map_err(failed)?.file_name();
            let name = name.to_string_lossy();
            if let Some(stem) = name.strip_suffix(".pem").filter(|s| !s.starts_with('.'))
                && let Ok(serial) = Serial::parse_hex(stem)
            {
                serials.push(serial);
            }
        }
        serials.sort();
        Ok(serials)
    }

    /// Forgets a pair, its key with it. One that is not there is forgotten already.
    ///
    /// # Errors
    /// The file cannot be removed.
    pub fn remove(&self, serial: &Serial) -> Result<(), KeyringError> {
        durable::remove(&self.path_of(serial))?;
        Ok(())
    }
}

/// All identities, the configured one first, then the kept ones, the newest first.
#[derive(Clone, Debug)]
pub struct Keyring {
    identities: Vec<Identity>,
    /// Kept pairs that cannot be used, for a warning; they hide nobody else.
    pub unusable: Vec<String>,
}

impl Keyring {
    /// Reads the configured pair and all kept ones. A configured pair of which a crash left only one half new is no error as long as
    /// there is a kept pair for the certificate.
    ///
    /// # Errors
    /// There is no identity at all.
    pub fn load(config: &DispatcherConfig) -> Result<Self, KeyringError> {
        let store = PairStore::of(config);
        let mut identities = Vec::new();
        let mut unusable = Vec::new();
        let main = Identity::load(&config.cert, &config.key);
        let serials = match store.list() {
            Ok(serials) => serials,
            Err(error) => {
                unusable.push(error.to_string());
                Vec::new()
            }
        };
        for serial in serials {
            match store.load(&serial) {
                Ok(Some(identity)) => identities.push(identity),
                Ok(None) => {}
                Err(error) => unusable.push(error.to_string()),
            }
        }
        identities.sort_by_key(|i| std::cmp::Reverse(i.certificate().not_before));
        // Key and certificate are two files: between the two renames of a change they do not fit. The kept pair of the certificate does.
        let main = main.or_else(|error| {
            configured_certificate(config)
                .ok()
                .and_then(|shown| {
                    identities
                        .iter()
                        .find(|i| i.certificate().serial == shown.serial)
                })
                .cloned()
                .ok_or(error)
        });
        match main {
            Ok(main) => {
                identities.retain(|i| i.certificate().serial != main.certificate().serial);
                identities.insert(0, main);
            }
            Err(error) if identities.is_empty() => return Err(error.into()),
            Err(error) => unusable.push(error.to_string()),
        }
        Ok(Self {
            identities,
            unusable,
        })
    }

    /// At least one.
    pub fn identities(&self) -> &[Identity] {
        &self.identities
    }
}

/// Whether a text of the registry or the rotation state stands for this serial: the number itself, or what the original makes of it.
pub fn names_serial(text: &str, serial: &Serial) -> bool {
    !text.is_empty() && (text == serial.to_string() || text == serial.legacy())
}

/// The order in which to try `serials` on an agent: the one that it is known to trust, then as they stand.
pub fn order(serials: &[&Serial], record: &AgentRecord) -> Vec<usize> {
    let known = |at: &usize| names_serial(&record.dispatcher_serial, serials[*at]);
    let mut order: Vec<usize> = (0..serials.len()).collect();
    order.sort_by_key(|at| !known(at));
    order
}
