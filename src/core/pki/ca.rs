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
    #[error("CA {what} not found at '{}' - run setup-ca first", .path.display())]
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
        self.issue_agent_with_id(request, name, None, days)
    }

    /// As [`issue_agent`](Self::issue_agent), keeping the host id that the agent has (renewal); `None` makes a fresh one.
    ///
    /// # Errors
    /// As [`issue_agent`](Self::issue_agent); also an id that does not fit into the role URI.
    pub fn issue_agent_with_id(
        &self,
        request: &CertRequest,
        name: &AgentName,
        id: Option<&str>,
        days: u32,
    ) -> Result<Certificate, CaError> {
        let id = match id {
            Some(id) => id.to_owned(),
            None => types::hex(&types::random::<16>().map_err(|_| CaError::Random)?),
        };
        self.issue(name.as_str(), request.key(), Role::Agent, &id, days)
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
            days,
        )
    }

    fn issue(
        &self,
        cn: &str,
        key: &PublicKey,
        role: Role,
        id: &str,
        days: u32,
    ) -> Result<Certificate, CaError> {
        let dates = dates(days, &self.clock)?;
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
mod tests {
    use super::*;
    use crate::core::pki::fixtures::{LeafVersion, OpenSsl, agent, new_ca, request};
    use std::os::unix::fs::MetadataExt as _;

    fn system() -> Clock {
        Clock::system(0)
    }

    #[test]
    fn a_new_ca_is_three_files_that_load_again() {
        let openssl = OpenSsl::new();
        let made = new_ca(openssl.dir());
        for (name, mode) in [("ca.key", 0o600), ("ca.crt", 0o644), ("ca.serial", 0o600)] {
            let meta = std::fs::metadata(openssl.path(name)).unwrap();
            assert_eq!(meta.mode() & 0o7777, mode, "{name}");
        }
        assert_eq!(openssl.read("ca.serial"), "01");
        assert_eq!(std::fs::read_dir(openssl.dir()).unwrap().count(), 3);
        let loaded = Authority::load(openssl.dir(), system()).unwrap();
        assert_eq!(loaded.certificate(), made.certificate());
        let text = openssl.run_text("x509 -in ca.crt -noout -text");
        for expected in [
            "CN = ctrl-exec CA",
            "CA:TRUE, pathlen:0",
            "Certificate Sign, CRL Sign",
            "Subject Key Identifier",
            "Authority Key Identifier",
        ] {
            assert!(text.contains(expected), "{expected}: {text}");
        }
        openssl.run("verify -x509_strict -CAfile ca.crt ca.crt");
    }

    #[test]
    fn a_ca_is_never_made_over_another() {
        for present in [KEY_FILE, CERT_FILE] {
            let openssl = OpenSsl::new();
            openssl.write(present, "precious");
            let error = Authority::create(
                openssl.dir(),
                KeyType::EcdsaP256,
                DEFAULT_CN,
                DEFAULT_CA_DAYS,
                system(),
            )
            .unwrap_err();
            assert!(matches!(error, CaError::Exists(_)), "{error}");
            assert_eq!(openssl.read(present), "precious");
            assert_eq!(std::fs::read_dir(openssl.dir()).unwrap().count(), 1);
        }
    }

    #[test]
    fn of_two_that_start_at_once_one_makes_the_ca() {
        let openssl = OpenSsl::new();
        let made: Vec<_> = std::thread::scope(|scope| {
            let make = || {
                Authority::create(
                    openssl.dir(),
                    KeyType::EcdsaP256,
                    DEFAULT_CN,
                    DEFAULT_CA_DAYS,
                    system(),
                )
            };
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(make)).collect();
            threads
                .into_iter()
                .filter_map(|t| t.join().unwrap().ok())
                .collect()
        });
        assert_eq!(made.len(), 1);
        let loaded = Authority::load(openssl.dir(), system()).unwrap();
        assert_eq!(loaded.certificate(), made[0].certificate());
    }

    #[test]
    fn bad_names_and_days_are_refused_before_anything_is_written() {
        let openssl = OpenSsl::new();
        let create = |cn: &str, days| {
            Authority::create(openssl.dir(), KeyType::EcdsaP256, cn, days, system()).unwrap_err()
        };
        for cn in ["", "a/b", "a=b", "a\0b", " a", "é", &"a".repeat(65)] {
            assert!(matches!(create(cn, 1), CaError::InvalidCn(_)), "{cn:?}");
        }
        for days in [0, 36_501, u32::MAX] {
            assert!(matches!(create("x", days), CaError::Days));
        }
        assert_eq!(std::fs::read_dir(openssl.dir()).unwrap().count(), 0);
    }

    #[test]
    fn a_missing_or_foreign_half_is_named() {
        let openssl = OpenSsl::new();
        let load = || {
            Authority::load(openssl.dir(), system())
                .unwrap_err()
                .to_string()
        };
        assert!(
            load().contains("ca.key' - run setup-ca first"),
            "{}",
            load()
        );
        new_ca(openssl.dir());
        openssl.make_key("other", "ec");
        openssl.write("ca.key", &openssl.read("other.key"));
        assert!(load().contains("does not belong"), "{}", load());
        std::fs::remove_file(openssl.path("ca.crt")).unwrap();
        assert!(
            load().contains("ca.crt' - run setup-ca first"),
            "{}",
            load()
        );
    }

    #[test]
    fn of_several_certificates_the_one_of_the_key_signs() {
        let openssl = OpenSsl::new();
        let one = new_ca(openssl.dir());
        std::fs::create_dir(openssl.path("next")).unwrap();
        let two = new_ca(&openssl.path("next"));
        let (first, second) = (one.certificate().to_pem(), two.certificate().to_pem());
        openssl.write("ca.crt", &format!("{second}{first}"));
        let signing = || Authority::load(openssl.dir(), system()).map(|a| a.certificate().clone());
        assert_eq!(signing().unwrap(), *one.certificate());
        // A CA change is one rename.
        openssl.write("ca.key", &openssl.read("next/ca.key"));
        assert_eq!(signing().unwrap(), *two.certificate());
        openssl.write("ca.crt", &first);
        assert!(matches!(signing(), Err(CaError::Mismatch { .. })));
    }

    #[test]
    fn a_host_keeps_its_id_and_no_other_text_gets_into_the_role() {
        let openssl = OpenSsl::new();
        let ca = new_ca(openssl.dir());
        let request = request(KeyType::EcdsaP256, "web1");
        let issue = |id| ca.issue_agent_with_id(&request, &agent("web1"), id, 30);
        let first = issue(None).unwrap();
        let again = issue(first.role_id.as_deref()).unwrap();
        assert_eq!(again.role_id, first.role_id);
        assert_ne!(issue(None).unwrap().role_id, first.role_id);
        for bad in ["", "a/b", "../x", "a b", "A"] {
            assert!(issue(Some(bad)).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_name_that_would_be_written_differently_is_refused_on_loading() {
        let openssl = OpenSsl::new();
        openssl.make_ca("ca", "ec", "/DC=com/DC=example/CN=ca");
        let error = Authority::load(openssl.dir(), system()).unwrap_err();
        assert!(matches!(error, CaError::Name(_)), "{error}");
        openssl.make_leaf("x", "ec", "/CN=x", "ca", LeafVersion::V3);
        openssl.write("ca.crt", &openssl.read("x.crt"));
        openssl.write("ca.key", &openssl.read("x.key"));
        let error = Authority::load(openssl.dir(), system()).unwrap_err();
        assert!(matches!(error, CaError::NotACa(_)), "{error}");
    }

    #[test]
    fn dates_are_back_dated_a_day_and_end_exactly() {
        let openssl = OpenSsl::new();
        let now = 1_900_000_000;
        let ca = Authority::create(
            openssl.dir(),
            KeyType::EcdsaP256,
            DEFAULT_CN,
            100,
            Clock::fixed(now),
        )
        .unwrap();
        let request = request(KeyType::EcdsaP256, "x");
        let issued = ca.issue_agent(&request, &agent("x"), 1).unwrap();
        assert_eq!(
            (issued.not_before, issued.not_after),
            (now - 86_400, now + 86_400)
        );
        assert!(matches!(
            ca.issue_agent(&request, &agent("x"), 0),
            Err(CaError::Days)
        ));
        let late = Authority::load(openssl.dir(), Clock::fixed(now + 101 * 86_400)).unwrap();
        let error = late.issue_agent(&request, &agent("x"), 1).unwrap_err();
        assert!(
            error.to_string().contains("CA certificate expired"),
            "{error}"
        );
    }

    #[test]
    fn many_may_sign_at_once() {
        let openssl = OpenSsl::new();
        new_ca(openssl.dir());
        let request = request(KeyType::EcdsaP256, "web1");
        let serials: Vec<Serial> = std::thread::scope(|scope| {
            let sign = || {
                let ca = Authority::load(openssl.dir(), system()).unwrap();
                let issue = |_| ca.issue_agent(&request, &agent("web1"), 30).unwrap().serial;
                (0..10).map(issue).collect::<Vec<_>>()
            };
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(sign)).collect();
            threads
                .into_iter()
                .flat_map(|t| t.join().unwrap())
                .collect()
        });
        let distinct: std::collections::HashSet<_> = serials.iter().collect();
        assert_eq!(distinct.len(), 40);
        let highest = serials.iter().map(Serial::two_digit_hex).max().unwrap();
        assert_eq!(
            openssl.read("ca.serial"),
            format!("{}\n", highest.to_ascii_uppercase())
        );
        openssl.run("req -new -newkey rsa:2048 -nodes -keyout k.pem -subj /CN=perl -out r.csr");
        openssl.run("x509 -req -in r.csr -CA ca.crt -CAkey ca.key -CAserial ca.serial -out p.crt");
        let next = openssl.certificate("p.crt").serial.two_digit_hex();
        assert_eq!(
            u128::from_str_radix(&next, 16),
            u128::from_str_radix(&highest, 16).map(|n| n + 1)
        );
    }
}
