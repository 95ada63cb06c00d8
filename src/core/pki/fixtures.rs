//! Certificates for tests: made by the `openssl` program, as fleets in the field have them, and by ourselves.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::ca::{DEFAULT_CA_DAYS, DEFAULT_CN};
use super::cert::Certificate;
use super::{Authority, CertRequest, KeyType, PrivateKey, csr};
use crate::core::clock::Clock;
use crate::core::types::AgentName;

/// A scratch directory in which `openssl` runs.
pub(crate) struct OpenSsl(tempfile::TempDir);

/// What `openssl x509 -req` writes: v1 up to OpenSSL 3.1, v3 with key identifiers alone from 3.2.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum LeafVersion {
    V1,
    V3,
}

impl OpenSsl {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn dir(&self) -> &Path {
        self.0.path()
    }

    pub(crate) fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap()
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::write(self.path(name), text).unwrap();
        // Keys that others can read are refused.
        std::fs::set_permissions(self.path(name), std::fs::Permissions::from_mode(0o600)).unwrap();
    }

    /// Runs `openssl` with blank-separated words; `+` within a word stands for a blank.
    pub(crate) fn output(&self, words: &str) -> std::process::Output {
        Command::new("openssl")
            .args(words.split_ascii_whitespace().map(|w| w.replace('+', " ")))
            .current_dir(self.0.path())
            .output()
            .expect("the tests need the openssl program")
    }

    pub(crate) fn run_bytes(&self, words: &str) -> Vec<u8> {
        let output = self.output(words);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "openssl {words}: {stderr}");
        output.stdout
    }

    pub(crate) fn run_text(&self, words: &str) -> String {
        String::from_utf8(self.run_bytes(words)).unwrap()
    }

    pub(crate) fn run(&self, words: &str) {
        self.run_bytes(words);
    }

    pub(crate) fn certificate(&self, name: &str) -> Certificate {
        Certificate::from_pem(self.read(name).as_bytes()).unwrap()
    }

    /// `NAME.key` of the kind `rsa:BITS` or `ec`.
    pub(crate) fn make_key(&self, name: &str, kind: &str) {
        match kind.split_once(':') {
            Some((_, bits)) => self.run(&format!("genrsa -out {name}.key {bits}")),
            None => self.run(&format!(
                "genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out {name}.key"
            )),
        }
    }

    /// `NAME.key` and a self-signed `NAME.crt` the way the original makes a CA (spec/dispatcher.md 14.1).
    pub(crate) fn make_ca(&self, name: &str, kind: &str, subject: &str) {
        self.make_key(name, kind);
        let subject = subject.replace(' ', "+");
        self.run(&format!(
            "req -x509 -new -key {name}.key -sha256 -days 3650 -subj {subject} -out {name}.crt"
        ));
    }

    /// `NAME.key`, `NAME.csr` and `NAME.crt`, signed by `CA.crt` the way the original signs (spec/dispatcher.md 14.4).
    pub(crate) fn make_leaf(
        &self,
        name: &str,
        kind: &str,
        subject: &str,
        ca: &str,
        version: LeafVersion,
    ) {
        self.make_key(name, kind);
        let subject = subject.replace(' ', "+");
        self.run(&format!(
            "req -new -key {name}.key -subj {subject} -out {name}.csr"
        ));
        let extensions = match version {
            LeafVersion::V1 => String::new(),
            LeafVersion::V3 => {
                self.write(
                    "v3.ext",
                    "subjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n",
                );
                "-extfile v3.ext".to_owned()
            }
        };
        self.run(&format!(
            "x509 -req -in {name}.csr -CA {ca}.crt -CAkey {ca}.key -CAcreateserial -sha256 -days 825 {extensions} -out {name}.crt"
        ));
    }
}

pub(crate) fn agent(name: &str) -> AgentName {
    AgentName::new(name).unwrap()
}

/// What an agent with a fresh key would send.
pub(crate) fn request(kind: KeyType, name: &str) -> CertRequest {
    let key = PrivateKey::generate(kind).unwrap();
    CertRequest::parse_pem(&csr::create_pem(&key, &agent(name)).unwrap()).unwrap()
}

/// A CA of ours in `dir`.
pub(crate) fn new_ca(dir: &Path) -> Authority {
    Authority::create(
        dir,
        KeyType::EcdsaP256,
        DEFAULT_CN,
        DEFAULT_CA_DAYS,
        Clock::system(0),
    )
    .unwrap()
}
