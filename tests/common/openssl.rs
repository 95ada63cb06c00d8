//! Keys and certificates by the openssl command line, in the shapes that the original leaves in the field (spec/dispatcher.md 14):
//! RSA, X.509 version 1 leaves without any extension, small serials that count up, CN only.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock};

use tempfile::TempDir;

use super::process;

/// Runs openssl with a deadline; its failure is a failure of the test.
#[track_caller]
pub fn openssl(args: &[&str]) -> String {
    let run = process::run(Command::new("openssl").args(args).stdin(Stdio::null())).ok();
    run.out()
}

/// The same, answering whether it succeeded, with everything it said.
#[track_caller]
pub fn try_openssl(args: &[&str]) -> (bool, String) {
    let run = process::run(Command::new("openssl").args(args).stdin(Stdio::null()));
    (run.code() == 0, format!("{}{}", run.out(), run.err()))
}

/// Validity of a certificate to be issued.
#[derive(Clone, Copy, Debug)]
pub enum Dates {
    /// From now on.
    Days(u32),
    /// The whole of 2020.
    Expired,
    /// From 2090 on.
    Future,
}

/// A certificate with its key, as PEM files.
#[derive(Clone, Debug)]
pub struct Leaf {
    pub cert: PathBuf,
    pub key: PathBuf,
    pub cn: String,
}

impl Leaf {
    pub fn cert_pem(&self) -> String {
        std::fs::read_to_string(&self.cert).unwrap()
    }

    pub fn key_pem(&self) -> String {
        std::fs::read_to_string(&self.key).unwrap()
    }

    /// Minimal lower-case hex.
    pub fn serial(&self) -> String {
        serial_of(&self.cert)
    }

    pub fn expiry(&self) -> String {
        expiry_of(&self.cert)
    }
}

/// Serial of a certificate file as minimal lower-case hex, as openssl sees it.
pub fn serial_of(cert: &Path) -> String {
    let text = openssl(&["x509", "-in", cert.to_str().unwrap(), "-noout", "-serial"]);
    let hex = text
        .trim()
        .trim_start_matches("serial=")
        .to_ascii_lowercase();
    let minimal = hex.trim_start_matches('0');
    if minimal.is_empty() { "0" } else { minimal }.to_owned()
}

/// notAfter of a certificate file in OpenSSL's text form.
pub fn expiry_of(cert: &Path) -> String {
    let text = openssl(&["x509", "-in", cert.to_str().unwrap(), "-noout", "-enddate"]);
    text.trim().trim_start_matches("notAfter=").to_owned()
}

/// Everything openssl says about a certificate file.
pub fn text_of(cert: &Path) -> String {
    openssl(&["x509", "-in", cert.to_str().unwrap(), "-noout", "-text"])
}

/// A CA directory as `setup-ca` of the original leaves it: `ca.key` 0600, `ca.crt`, `ca.serial`.
#[derive(Debug)]
pub struct Authority {
    /// Where `ca.key`, `ca.crt` and `ca.serial` lie.
    home: PathBuf,
    /// Where everything that it issues lies.
    dir: TempDir,
    made: AtomicU32,
    database: Mutex<()>,
}

impl Authority {
    /// The CA of this test binary: making one takes a second, so its tests share it.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Authority> = OnceLock::new();
        SHARED.get_or_init(|| Self::make("ctrl-exec CA", 3072, lasting()))
    }

    /// Another CA of the same name, which nobody trusts.
    pub fn foreign() -> &'static Self {
        static FOREIGN: OnceLock<Authority> = OnceLock::new();
        FOREIGN.get_or_init(|| Self::make("ctrl-exec CA", 2048, lasting()))
    }

    pub fn new(cn: &str, bits: u32) -> Self {
        let dir = tempfile::Builder::new().prefix("ce-ca-").tempdir().unwrap();
        Self::make(cn, bits, dir)
    }

    fn make(cn: &str, bits: u32, dir: TempDir) -> Self {
        let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        openssl(&["genrsa", "-out", &at("ca.key"), &bits.to_string()]);
        let subject = format!("/CN={cn}");
        openssl(&[
            "req",
            "-x509",
            "-new",
            "-sha256",
            "-days",
            "3650",
            "-subj",
            &subject,
            "-key",
            &at("ca.key"),
            "-out",
            &at("ca.crt"),
        ]);
        std::fs::write(dir.path().join("ca.serial"), "01").unwrap();
        Self {
            home: dir.path().to_owned(),
            dir,
            made: AtomicU32::new(0),
            database: Mutex::new(()),
        }
    }

    /// A CA that exists, for example the one that `ced setup-ca` made; its serial counter is not touched.
    pub fn at(home: &Path) -> Self {
        Self {
            home: home.to_owned(),
            dir: tempfile::Builder::new().prefix("ce-ca-").tempdir().unwrap(),
            made: AtomicU32::new(0),
            database: Mutex::new(()),
        }
    }

    /// A file of the CA itself.
    pub fn path(&self, name: &str) -> PathBuf {
        self.home.join(name)
    }

    pub fn cert_pem(&self) -> String {
        std::fs::read_to_string(self.path("ca.crt")).unwrap()
    }

    pub fn key_pem(&self) -> String {
        std::fs::read_to_string(self.path("ca.key")).unwrap()
    }

    fn fresh(&self, suffix: &str) -> PathBuf {
        let number = self.made.fetch_add(1, Ordering::Relaxed);
        self.dir.path().join(format!("{number}.{suffix}"))
    }

    /// Issues a certificate of version 1 with this serial (hex) for a fresh RSA-2048 key.
    #[track_caller]
    pub fn issue(&self, cn: &str, serial: &str, dates: Dates) -> Leaf {
        let key = self.fresh("key");
        openssl(&["genrsa", "-out", key.to_str().unwrap(), "2048"]);
        self.issue_for(&key, cn, serial, dates)
    }

    /// The same for a key that exists.
    #[track_caller]
    pub fn issue_for(&self, key: &Path, cn: &str, serial: &str, dates: Dates) -> Leaf {
        let csr = self.fresh("csr");
        let subject = format!("/CN={cn}");
        openssl(&[
            "req",
            "-new",
            "-sha256",
            "-subj",
            &subject,
            "-key",
            key.to_str().unwrap(),
            "-out",
            csr.to_str().unwrap(),
        ]);
        let cert = self.sign(&csr, serial, dates);
        Leaf {
            cert,
            key: key.to_owned(),
            cn: cn.to_owned(),
        }
    }

    /// Signs a CSR file as the original does: whole subject, no extensions.
    #[track_caller]
    pub fn sign(&self, csr: &Path, serial: &str, dates: Dates) -> PathBuf {
        let cert = self.fresh("crt");
        let (ca_cert, ca_key) = (self.path("ca.crt"), self.path("ca.key"));
        let (csr, out) = (csr.to_str().unwrap(), cert.to_str().unwrap());
        let (ca_cert, ca_key) = (ca_cert.to_str().unwrap(), ca_key.to_str().unwrap());
        let (from, to) = match dates {
            Dates::Days(days) => {
                let (days, serial) = (days.to_string(), format!("0x{serial}"));
                openssl(&[
                    "x509",
                    "-req",
                    "-sha256",
                    "-in",
                    csr,
                    "-CA",
                    ca_cert,
                    "-CAkey",
                    ca_key,
                    "-set_serial",
                    &serial,
                    "-days",
                    &days,
                    "-out",
                    out,
                ]);
                return cert;
            }
            Dates::Expired => ("20200101000000Z", "20201231235959Z"),
            Dates::Future => ("20900101000000Z", "20991231235959Z"),
        };
        // `openssl x509` has no start date; `openssl ca` has, and wants a database for it.
        let _alone = self.database.lock().unwrap();
        let even = if serial.len() % 2 == 1 {
            format!("0{serial}")
        } else {
            serial.to_owned()
        };
        std::fs::write(self.dir.path().join("db.serial"), even).unwrap();
        std::fs::write(self.dir.path().join("db"), "").unwrap();
        std::fs::write(
            self.dir.path().join("ca.cnf"),
            format!(
                "[ca]\ndefault_ca = own\n[own]\ndatabase = {0}/db\nserial = {0}/db.serial\nnew_certs_dir = {0}\npolicy = any\nunique_subject = no\n[any]\ncommonName = supplied\n",
                self.dir.path().display()
            ),
        )
        .unwrap();
        let config = self.dir.path().join("ca.cnf");
        openssl(&[
            "ca",
            "-batch",
            "-notext",
            "-md",
            "sha256",
            "-config",
            config.to_str().unwrap(),
            "-cert",
            ca_cert,
            "-keyfile",
            ca_key,
            "-startdate",
            from,
            "-enddate",
            to,
            "-in",
            csr,
            "-out",
            out,
        ]);
        cert
    }

    /// Issues a version 3 certificate with the given lines of an openssl extension section, for a fresh P-256 key.
    #[track_caller]
    pub fn issue_v3(&self, cn: &str, serial: &str, extensions: &str) -> Leaf {
        let (key, csr, cert, ext) = (
            self.fresh("key"),
            self.fresh("csr"),
            self.fresh("crt"),
            self.fresh("ext"),
        );
        let (subject, serial) = (format!("/CN={cn}"), format!("0x{serial}"));
        std::fs::write(&ext, extensions).unwrap();
        openssl(&[
            "genpkey",
            "-algorithm",
            "EC",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-out",
            key.to_str().unwrap(),
        ]);
        openssl(&[
            "req",
            "-new",
            "-sha256",
            "-subj",
            &subject,
            "-key",
            key.to_str().unwrap(),
            "-out",
            csr.to_str().unwrap(),
        ]);
        openssl(&[
            "x509",
            "-req",
            "-sha256",
            "-in",
            csr.to_str().unwrap(),
            "-CA",
            self.path("ca.crt").to_str().unwrap(),
            "-CAkey",
            self.path("ca.key").to_str().unwrap(),
            "-set_serial",
            &serial,
            "-days",
            "100",
            "-extfile",
            ext.to_str().unwrap(),
            "-out",
            cert.to_str().unwrap(),
        ]);
        Leaf {
            cert,
            key,
            cn: cn.to_owned(),
        }
    }

    /// A certificate that nobody but itself signed.
    #[track_caller]
    pub fn self_signed(&self, cn: &str) -> Leaf {
        let (key, cert) = (self.fresh("key"), self.fresh("crt"));
        let subject = format!("/CN={cn}");
        openssl(&[
            "req",
            "-x509",
            "-new",
            "-sha256",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-days",
            "100",
            "-subj",
            &subject,
            "-keyout",
            key.to_str().unwrap(),
            "-out",
            cert.to_str().unwrap(),
        ]);
        Leaf {
            cert,
            key,
            cn: cn.to_owned(),
        }
    }
}

/// A directory that lasts as long as this process. Nothing is dropped at its end, so the next one removes what dead ones left behind.
fn lasting() -> TempDir {
    const PREFIX: &str = "ce-shared-";
    for entry in std::fs::read_dir(std::env::temp_dir()).unwrap().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let owner = name
            .strip_prefix(PREFIX)
            .and_then(|rest| rest.split('-').next());
        if owner.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
    tempfile::Builder::new()
        .prefix(&format!("{PREFIX}{}-", std::process::id()))
        .tempdir()
        .unwrap()
}

/// Do the public key of a certificate file and a private key file belong together?
pub fn key_matches(cert: &Path, key: &Path) -> bool {
    let of_cert = openssl(&["x509", "-in", cert.to_str().unwrap(), "-noout", "-pubkey"]);
    let of_key = openssl(&["pkey", "-in", key.to_str().unwrap(), "-pubout"]);
    of_cert == of_key
}
