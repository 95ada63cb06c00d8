//! The certificate authority of a fleet: makes itself once, then signs by our policy alone (spec/dispatcher.md 14, spec/swarm.md 3.5.1).

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::cert::{CertError, Certificate, Role};
use super::csr::CertRequest;
use super::identity;
use super::keys::{KeyError, KeyType, PrivateKey, PublicKey};
use super::policy::{self, Failed, Leaf};
use super::serial_file::{SerialFile, random_serial};
use crate::core::clock::Clock;
use crate::core::durable::{self, DurableError, Owner};
use crate::core::secure_open::{self, OpenError, Trust};
use crate::core::types::{self, AgentName, DispatcherId, Serial};

/// Subject CN of a CA unless the operator gives one.
pub const DEFAULT_CN: &str = "ctrl-exec CA";
/// Days that a CA certificate is valid unless the operator says otherwise.
pub const DEFAULT_CA_DAYS: u32 = 3650;

const KEY_FILE: &str = "ca.key";
const CERT_FILE: &str = "ca.crt";
const SERIAL_FILE: &str = "ca.serial";
const MAX_DAYS: u32 = 36_500;
const MAX_FILE_BYTES: u64 = 64 * 1024;
const LOCK_PATIENCE: Duration = Duration::from_secs(30);

/// Why the CA cannot be made, loaded, or sign.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    #[error("'{}' exists already: a CA is made only once; to start over, move the old one away first", .0.display())]
    Exists(PathBuf),
    #[error("CA {what} not found at '{}' - run setup-ca first, or restore it if there was one (docs/recovery.md)", .path.display())]
    Missing { what: &'static str, path: PathBuf },
    #[error("{0}")]
    Open(OpenError),
    #[error("'{}': {source}", .path.display())]
    Key { path: PathBuf, source: KeyError },
    #[error("'{}': {source}", .path.display())]
    Certificate { path: PathBuf, source: CertError },
    #[error("the key '{}' does not belong to the certificate '{}': one of them was replaced; restore the pair", .key.display(), .certificate.display())]
    Mismatch { key: PathBuf, certificate: PathBuf },
    #[error("'{}' is not the certificate of a CA", .0.display())]
    NotACa(PathBuf),
    #[error("'{}': we cannot write the name of this CA as its certificate has it (a repeated or multi-valued attribute), so nothing that we sign would verify: sign with openssl, or set up a new CA", .0.display())]
    Name(PathBuf),
    #[error("Invalid CN '{}': use 1 to 64 letters, digits, blanks, '_', '-', '.'", .0.escape_debug())]
    InvalidCn(String),
    #[error("days must be a positive integer, at most {MAX_DAYS}")]
    Days,
    #[error("cannot lock or write '{}': {source}", .path.display())]
    Serial { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Write(#[from] DurableError),
    #[error("cannot generate a key: {0}")]
    Generate(KeyError),
    #[error("the system gives no random bytes")]
    Random,
    #[error("cannot sign with '{}': {reason}", .path.display())]
    Sign { path: PathBuf, reason: String },
}

impl CaError {
    /// Whether there is no CA for this user: no file, or none that may be read.
    pub fn is_absent_or_forbidden(&self) -> bool {
        match self {
            Self::Missing { .. } => true,
            Self::Open(OpenError::Open { source, .. }) => {
                source.kind() == io::ErrorKind::PermissionDenied
            }
            _ => false,
        }
    }
}

/// A CA that can sign: `ca.key`, `ca.crt` and `ca.serial` of one directory.
#[derive(Debug)]
pub struct Authority {
    dir: PathBuf,
    key: PrivateKey,
    certificate: Certificate,
    clock: Clock,
}

impl Authority {
    /// Makes a new CA in `dir`, which must exist. A `ca.serial` that is there already is kept.
    ///
    /// # Errors
    /// `ca.key` or `ca.crt` exists (both stay as they are), the CN or the days are not allowed, or a file cannot be written.
    pub fn create(
        dir: &Path,
        kind: KeyType,
        cn: &str,
        days: u32,
        clock: Clock,
    ) -> Result<Self, CaError> {
        let [key_path, cert_path, serial_path] =
            [KEY_FILE, CERT_FILE, SERIAL_FILE].map(|f| dir.join(f));
        for path in [&key_path, &cert_path] {
            if path.symlink_metadata().is_ok() {
                return Err(CaError::Exists(path.clone()));
            }
        }
        check_cn(cn)?;
        let key = PrivateKey::generate(kind).map_err(CaError::Generate)?;
        let serial = random_serial().map_err(|_| CaError::Random)?;
        let dates = dates(days, &clock)?;
        let certificate =
            policy::ca(&key, cn, &serial, dates).map_err(|e| sign_error(&cert_path, e))?;

        let pem = key.to_pkcs8_pem();
        let key_file =
            durable::prepare(&key_path, pem.expose().as_bytes(), 0o600, Owner::default())?;
        let cert_file = durable::prepare(
            &cert_path,
            certificate.to_pem().as_bytes(),
            0o644,
            Owner::default(),
        )?;
        let serial_file = durable::prepare(&serial_path, b"01", 0o600, Owner::default())?;
        let exists = |e| match e {
            DurableError::Create { path, source }
                if source.kind() == io::ErrorKind::AlreadyExists =>
            {
                CaError::Exists(path)
            }
            other => CaError::Write(other),
        };
        match serial_file.commit_new().map_err(exists) {
            Ok(()) | Err(CaError::Exists(_)) => {}
            Err(other) => return Err(other),
        }
        // The key decides between two that start at once; only its winner writes the certificate.
        key_file.commit_new().map_err(exists)?;
        if let Err(error) = cert_file.commit_new() {
            durable::remove(&key_path)?;
            return Err(exists(error));
        }
        Ok(Self {
            dir: dir.to_owned(),
            key,
            certificate,
            clock,
        })
    }

    /// Loads the CA of `dir`: ours, or one made by OpenSSL, RSA or ECDSA, v1 or v3.
    ///
    /// `ca.crt` may hold the certificates of several CAs, in any order; the one that signs is the one whose key is `ca.key`. So a CA is
    /// changed by one rename, that of `ca.key`.
    ///
    /// # Errors
    /// A file is missing or unreadable, the key does not belong to any of the certificates, or its name is one that we cannot reproduce.
    pub fn load(dir: &Path, clock: Clock) -> Result<Self, CaError> {
        let (key_path, cert_path) = (dir.join(KEY_FILE), dir.join(CERT_FILE));
        let key_pem = zeroize::Zeroizing::new(read(&key_path, "key", Trust::Secret)?);
        let key = PrivateKey::from_pem(&key_pem).map_err(|source| CaError::Key {
            path: key_path.clone(),
            source,
        })?;
        let certificate = Certificate::all_from_pem(&read(&cert_path, "cert", Trust::Public)?)
            .map_err(|source| CaError::Certificate {
                path: cert_path.clone(),
                source,
            })?
            .into_iter()
            .find(|certificate| certificate.spki == key.spki_der())
            .ok_or_else(|| CaError::Mismatch {
                key: key_path,
                certificate: cert_path.clone(),
            })?;
        if !certificate.is_ca {
            return Err(CaError::NotACa(cert_path));
        }
        if !policy::can_write_name_of(&certificate, &key) {
            return Err(CaError::Name(cert_path));
        }
        Ok(Self {
            dir: dir.to_owned(),
            key,
            certificate,
            clock,
        })
    }

    /// The CA's own certificate: the trust anchor of the fleet.
    pub fn certificate(&self) -> &Certificate {
        &self.certificate
    }

    /// Signs a certificate for an agent, with a fresh host id. The caller has compared `request.cn` with what was approved.
    ///
    /// Waits for the lock on `ca.serial` (blocking, at most half a minute).
    ///
    /// # Errors
    /// Days out of range, the lock is held too long, or signing fails.
    pub fn issue_agent(
        &self,
        request: &CertRequest,
        name: &AgentName,
        days: u32,
    ) -> Result<Certificate, CaError> {
        let dates = dates(days, &self.clock)?;
        self.issue(
            name.as_str(),
            request.key(),
            Role::Agent,
            &fresh_id()?,
            dates,
        )
    }

    /// Signs the successor of an agent's certificate: the same host id, and never one that begins earlier than the one it replaces, because
    /// agents take that for a replay. Ours begin a day early, those of the original do not.
    ///
    /// # Errors
    /// As [`issue_agent`](Self::issue_agent).
    pub fn renew_agent(
        &self,
        request: &CertRequest,
        name: &AgentName,
        replaced: &Certificate,
        days: u32,
    ) -> Result<Certificate, CaError> {
        let id = match &replaced.role_id {
            Some(id) => id.clone(),
            None => fresh_id()?,
        };
        let (begins, ends) = dates(days, &self.clock)?;
        let begins = begins.max(replaced.not_before + 1).min(self.clock.now());
        let dates = (begins, ends);
        self.issue(name.as_str(), request.key(), Role::Agent, &id, dates)
    }

    /// Endorses another CA: a certificate of its name and key, signed by this one, valid until the first of both ends.
    ///
    /// It is evidence for those who trust this CA ([`succession`](super::succession)), nothing that a chain is built with.
    ///
    /// # Errors
    /// `other` is no CA of another key that has signed itself, its name is one that we cannot reproduce, or signing fails.
    pub fn endorse(&self, other: &Certificate) -> Result<Certificate, CaError> {
        const DAY: i64 = 86_400;
        let failed = |e| sign_error(&self.dir.join(CERT_FILE), e);
        other
            .verify_self_signed()
            .map_err(|e| failed(Failed::from(e)))?;
        let now = self.clock.now();
        let dates = (now - DAY, other.not_after.min(self.certificate.not_after));
        let (serial, mut lock, serial_error) = self.next_serial()?;
        let made =
            policy::cross(other, &self.certificate, &self.key, &serial, dates).map_err(failed)?;
        made.check_dates(now).map_err(|e| failed(Failed::from(e)))?;
        lock.record(&serial).map_err(serial_error)?;
        Ok(made)
    }

    /// Signs a certificate for a dispatcher: TLS client towards agents, TLS server on the pairing port.
    ///
    /// # Errors
    /// As [`issue_agent`](Self::issue_agent).
    pub fn issue_dispatcher(
        &self,
        key: &PublicKey,
        id: &DispatcherId,
        days: u32,
    ) -> Result<Certificate, CaError> {
        self.issue(
            identity::DISPATCHER_NAMES[0],
            key,
            Role::Dispatcher,
            id.as_str(),
            dates(days, &self.clock)?,
        )
    }

    fn issue(
        &self,
        cn: &str,
        key: &PublicKey,
        role: Role,
        id: &str,
        dates: (i64, i64),
    ) -> Result<Certificate, CaError> {
        let (serial, mut lock, serial_error) = self.next_serial()?;
        let leaf = Leaf {
            cn,
            key,
            role,
            id,
            serial: &serial,
            dates,
        };
        let issued = policy::leaf(&leaf, &self.certificate, &self.key, self.clock.now())
            .map_err(|e| sign_error(&self.dir.join(CERT_FILE), e))?;
        lock.record(&serial).map_err(serial_error)?;
        Ok(issued)
    }

    /// A fresh serial and the lock under which it is to be used and recorded; what a failure of that means.
    fn next_serial(&self) -> Result<(Serial, SerialFile, impl Fn(io::Error) -> CaError), CaError> {
        let path = self.dir.join(SERIAL_FILE);
        let failed = move |source| CaError::Serial {
            path: path.clone(),
            source,
        };
        let lock = SerialFile::lock(&self.dir.join(SERIAL_FILE), LOCK_PATIENCE).map_err(&failed)?;
        let serial = random_serial().map_err(|_| CaError::Random)?;
        Ok((serial, lock, failed))
    }
}

fn fresh_id() -> Result<String, CaError> {
    let bytes = types::random::<16>().map_err(|_| CaError::Random)?;
    Ok(types::hex(&bytes))
}

fn sign_error(path: &Path, Failed(reason): Failed) -> CaError {
    CaError::Sign {
        path: path.to_owned(),
        reason,
    }
}

fn check_cn(cn: &str) -> Result<(), CaError> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "_-. ".contains(c);
    if cn.trim() == cn && (1..=64).contains(&cn.len()) && cn.chars().all(allowed) {
        Ok(())
    } else {
        Err(CaError::InvalidCn(cn.chars().take(80).collect()))
    }
}

/// From a day ago, for hosts whose clock is slow (spec/operations.md 16.1), until `days` from now.
fn dates(days: u32, clock: &Clock) -> Result<(i64, i64), CaError> {
    const DAY: i64 = 86_400;
    if !(1..=MAX_DAYS).contains(&days) {
        return Err(CaError::Days);
    }
    let now = clock.now();
    Ok((now - DAY, now + i64::from(days) * DAY))
}

fn read(path: &Path, what: &'static str, trust: Trust) -> Result<Vec<u8>, CaError> {
    secure_open::read_trusted(path, MAX_FILE_BYTES, trust).map_err(|source| {
        if source.is_not_found() {
            CaError::Missing {
                what,
                path: path.to_owned(),
            }
        } else {
            CaError::Open(source)
        }
    })
}

#[cfg(test)]
mod tests;
