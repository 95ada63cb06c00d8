//! Keys: one type signs requests, certificates and TLS handshakes.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use ring::rand::{SecureRandom as _, SystemRandom};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, alg_id, pem::PemObject as _};
use rustls::{SignatureScheme, sign::SigningKey};
use x509_parser::{asn1_rs::FromDer as _, public_key::RSAPublicKey};
use zeroize::{Zeroize as _, Zeroizing};

use super::{envelope, provider};
use crate::core::types::{Secret, hex, sha256};

/// Why a key cannot be used. Never holds key material.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum KeyError {
    #[error(
        "no usable private key found: expected an unencrypted PEM block PRIVATE KEY, RSA PRIVATE KEY or EC PRIVATE KEY"
    )]
    NoKey,
    #[error(
        "the private key is not usable: use RSA with 2048 to 4096 bits or ECDSA P-256 or P-384"
    )]
    Unsupported,
    #[error("the public key is not usable: use RSA or ECDSA P-256 or P-384")]
    UnsupportedPublic,
    #[error("cannot generate a key: {0}")]
    Generate(String),
    #[error(
        "unknown key type '{}': use one of ecdsa-p256, rsa-2048, rsa-3072, rsa-4096",
        .0.escape_debug()
    )]
    UnknownType(String),
}

/// Kinds of key that we generate. A Perl dispatcher signs only RSA requests (spec/pairing.md 17.1).
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum KeyType {
    #[default]
    EcdsaP256,
    Rsa2048,
    Rsa3072,
    Rsa4096,
}

impl fmt::Display for KeyType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::EcdsaP256 => "ecdsa-p256",
            Self::Rsa2048 => "rsa-2048",
            Self::Rsa3072 => "rsa-3072",
            Self::Rsa4096 => "rsa-4096",
        })
    }
}

impl FromStr for KeyType {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        match text {
            "ecdsa-p256" => Ok(Self::EcdsaP256),
            "rsa-2048" => Ok(Self::Rsa2048),
            "rsa-3072" => Ok(Self::Rsa3072),
            "rsa-4096" => Ok(Self::Rsa4096),
            other => Err(KeyError::UnknownType(other.chars().take(80).collect())),
        }
    }
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Algorithm {
    Rsa,
    P256,
    P384,
}

impl Algorithm {
    fn of_identifier(content: &[u8]) -> Option<Self> {
        match content {
            id if id == alg_id::RSA_ENCRYPTION.as_ref() => Some(Self::Rsa),
            id if id == alg_id::ECDSA_P256.as_ref() => Some(Self::P256),
            id if id == alg_id::ECDSA_P384.as_ref() => Some(Self::P384),
            _ => None,
        }
    }

    /// The scheme for signing certificates and requests.
    fn scheme(self) -> SignatureScheme {
        match self {
            Self::Rsa => SignatureScheme::RSA_PKCS1_SHA256,
            Self::P256 => SignatureScheme::ECDSA_NISTP256_SHA256,
            Self::P384 => SignatureScheme::ECDSA_NISTP384_SHA384,
        }
    }

    fn rcgen(self) -> &'static rcgen::SignatureAlgorithm {
        match self {
            Self::Rsa => &rcgen::PKCS_RSA_SHA256,
            Self::P256 => &rcgen::PKCS_ECDSA_P256_SHA256,
            Self::P384 => &rcgen::PKCS_ECDSA_P384_SHA384,
        }
    }
}

/// A public key: RSA, ECDSA P-256 or P-384 in the one encoding that everybody writes.
#[derive(Clone, Eq, PartialEq)]
pub struct PublicKey {
    algorithm: Algorithm,
    spki: Vec<u8>,
    bits: Vec<u8>,
}

impl PublicKey {
    /// From a DER SubjectPublicKeyInfo.
    ///
    /// # Errors
    /// Another kind of key, or not DER.
    pub fn from_spki(spki: &[u8]) -> Result<Self, KeyError> {
        let (identifier, bits) = envelope::split_spki(spki).ok_or(KeyError::UnsupportedPublic)?;
        let algorithm = Algorithm::of_identifier(identifier).ok_or(KeyError::UnsupportedPublic)?;
        let key = Self {
            algorithm,
            spki: spki.to_vec(),
            bits: bits.to_vec(),
        };
        // What we sign is encoded anew; it must come out as it came in.
        if rcgen::PublicKeyData::subject_public_key_info(&key) == spki {
            Ok(key)
        } else {
            Err(KeyError::UnsupportedPublic)
        }
    }

    /// The DER SubjectPublicKeyInfo.
    pub fn spki_der(&self) -> &[u8] {
        &self.spki
    }

    /// Size of the modulus in bits of an RSA key, `None` for other kinds; 0 if the key is malformed.
    pub fn rsa_bits(&self) -> Option<usize> {
        (self.algorithm == Algorithm::Rsa).then(|| {
            RSAPublicKey::from_der(&self.bits).map_or(0, |(_, key)| {
                let modulus = key.modulus;
                let start = modulus
                    .iter()
                    .position(|&b| b != 0)
                    .unwrap_or(modulus.len());
                let zeros = modulus.get(start).map_or(0, |b| b.leading_zeros());
                (modulus.len() - start) * 8 - usize::try_from(zeros).unwrap_or(0)
            })
        })
    }

    /// Key identifier: the first 160 bits of SHA-256 over the key bits (RFC 7093 method 1, spec/swarm.md PKI-1).
    pub fn key_id(&self) -> Vec<u8> {
        sha256(&[&self.bits])[..20].to_vec()
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "PublicKey({:?} {})",
            self.algorithm,
            spki_sha256(&self.spki)
        )
    }
}

impl rcgen::PublicKeyData for PublicKey {
    fn der_bytes(&self) -> &[u8] {
        &self.bits
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        self.algorithm.rcgen()
    }
}

/// Splits a DER SubjectPublicKeyInfo into the content of its AlgorithmIdentifier and the key bits; `None` if it is not one.
pub fn split_spki(spki: &[u8]) -> Option<(&[u8], &[u8])> {
    envelope::split_spki(spki)
}

/// SHA-256 of a SubjectPublicKeyInfo in lower-case hex: the name of a key, as the registry pins it.
pub fn spki_sha256(spki: &[u8]) -> String {
    hex(&sha256(&[spki]))
}

/// A private key. Does not print; its bytes are wiped when the last clone goes.
#[derive(Clone)]
pub struct PrivateKey {
    signer: Arc<dyn SigningKey>,
    pkcs8: Arc<Zeroizing<Vec<u8>>>,
    public: PublicKey,
}

impl PrivateKey {
    /// A fresh key. RSA takes seconds, on a small router minutes.
    ///
    /// # Errors
    /// The system gives no random bytes.
    pub fn generate(kind: KeyType) -> Result<Self, KeyError> {
        let pkcs8 = match kind {
            KeyType::EcdsaP256 => {
                let algorithm = &ring::signature::ECDSA_P256_SHA256_ASN1_SIGNING;
                let document =
                    ring::signature::EcdsaKeyPair::generate_pkcs8(algorithm, &SystemRandom::new())
                        .map_err(|_| {
                            KeyError::Generate("the system gives no random bytes".to_owned())
                        })?;
                Zeroizing::new(document.as_ref().to_vec())
            }
            KeyType::Rsa2048 => generate_rsa(2048)?,
            KeyType::Rsa3072 => generate_rsa(3072)?,
            KeyType::Rsa4096 => generate_rsa(4096)?,
        };
        Self::from_der(&PrivatePkcs8KeyDer::from(pkcs8.as_slice()).into())
    }

    /// Reads the first key of a PEM text: PKCS#8, PKCS#1 or SEC1, with any line ends; other blocks around it are skipped.
    ///
    /// # Errors
    /// There is no unencrypted key, or it is of a kind or size that we do not use.
    pub fn from_pem(pem: &[u8]) -> Result<Self, KeyError> {
        let mut der = PrivateKeyDer::from_pem_slice(pem).map_err(|_| KeyError::NoKey)?;
        let key = Self::from_der(&der);
        der.zeroize();
        key
    }

    fn from_der(der: &PrivateKeyDer<'_>) -> Result<Self, KeyError> {
        let signer = provider::private_key(der).map_err(|_| KeyError::Unsupported)?;
        let spki = signer.public_key().ok_or(KeyError::Unsupported)?;
        let public = PublicKey::from_spki(spki.as_ref()).map_err(|_| KeyError::Unsupported)?;
        let pkcs8 = match der {
            PrivateKeyDer::Pkcs8(inner) => inner.secret_pkcs8_der().to_vec(),
            PrivateKeyDer::Pkcs1(inner) => wrap_pkcs8(&public, inner.secret_pkcs1_der())?,
            PrivateKeyDer::Sec1(inner) => wrap_pkcs8(&public, inner.secret_sec1_der())?,
            _ => return Err(KeyError::Unsupported),
        };
        Ok(Self {
            signer,
            pkcs8: Arc::new(Zeroizing::new(pkcs8)),
            public,
        })
    }

    /// The key as a PEM block `PRIVATE KEY`, which every OpenSSL since 1.0 reads.
    pub fn to_pkcs8_pem(&self) -> Secret<String> {
        let block = pem::Pem::new("PRIVATE KEY", self.pkcs8.as_slice());
        let text = pem::encode_config(&block, PEM_STYLE);
        block.into_contents().zeroize();
        Secret::new(text)
    }

    /// The public half.
    pub fn public(&self) -> &PublicKey {
        &self.public
    }

    /// DER SubjectPublicKeyInfo of the public half.
    pub fn spki_der(&self) -> Vec<u8> {
        self.public.spki.clone()
    }

    /// The key as TLS uses it.
    pub fn signing_key(&self) -> Arc<dyn SigningKey> {
        self.signer.clone()
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PrivateKey")
            .field("public", &self.public)
            .finish_non_exhaustive()
    }
}

impl rcgen::PublicKeyData for PrivateKey {
    fn der_bytes(&self) -> &[u8] {
        &self.public.bits
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        self.public.algorithm.rcgen()
    }
}

impl rcgen::SigningKey for PrivateKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        self.signer
            .choose_scheme(&[self.public.algorithm.scheme()])
            .and_then(|signer| signer.sign(message).ok())
            .ok_or(rcgen::Error::RemoteKeyError)
    }
}

/// 64 columns and plain newlines, as OpenSSL writes it.
pub(super) const PEM_STYLE: pem::EncodeConfig =
    pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF);

fn wrap_pkcs8(public: &PublicKey, inner: &[u8]) -> Result<Vec<u8>, KeyError> {
    use rsa::pkcs8::{PrivateKeyInfo, der::Encode as _, spki};
    let info = spki::SubjectPublicKeyInfoRef::try_from(public.spki.as_slice())
        .map_err(|_| KeyError::Unsupported)?;
    PrivateKeyInfo::new(info.algorithm, inner)
        .to_der()
        .map_err(|_| KeyError::Unsupported)
}

fn generate_rsa(bits: usize) -> Result<Zeroizing<Vec<u8>>, KeyError> {
    use rsa::pkcs8::EncodePrivateKey as _;
    let failed = |e: &dyn fmt::Display| KeyError::Generate(e.to_string());
    let mut first = [0; 32];
    SystemRandom::new()
        .fill(&mut first)
        .map_err(|_| KeyError::Generate("the system gives no random bytes".to_owned()))?;
    let key = rsa::RsaPrivateKey::new(&mut SystemRng, bits).map_err(|e| failed(&e))?;
    let document = key.to_pkcs8_der().map_err(|e| failed(&e))?;
    Ok(Zeroizing::new(document.as_bytes().to_vec()))
}

/// The operating system's generator in the shape that the `rsa` crate takes.
struct SystemRng;

impl rsa::rand_core::CryptoRng for SystemRng {}

impl rsa::rand_core::RngCore for SystemRng {
    fn next_u32(&mut self) -> u32 {
        let mut bytes = [0; 4];
        self.fill_bytes(&mut bytes);
        u32::from_ne_bytes(bytes)
    }

    fn next_u64(&mut self) -> u64 {
        let mut bytes = [0; 8];
        self.fill_bytes(&mut bytes);
        u64::from_ne_bytes(bytes)
    }

    fn fill_bytes(&mut self, bytes: &mut [u8]) {
        SystemRandom::new()
            .fill(bytes)
            .expect("getrandom(2) cannot fail any more once it has delivered, and it has at the start of generate_rsa");
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), rsa::rand_core::Error> {
        self.fill_bytes(bytes);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::pki::fixtures::OpenSsl;
    use proptest::prelude::*;

    #[test]
    fn names_of_key_types_round_trip() {
        for kind in [
            KeyType::EcdsaP256,
            KeyType::Rsa2048,
            KeyType::Rsa3072,
            KeyType::Rsa4096,
        ] {
            assert_eq!(kind.to_string().parse(), Ok(kind));
        }
        let error = KeyType::from_str("dsa").unwrap_err().to_string();
        assert!(error.contains("ecdsa-p256"), "{error}");
    }

    #[test]
    fn generated_keys_come_back_from_their_pem_and_openssl_reads_them() {
        let openssl = OpenSsl::new();
        for kind in [KeyType::EcdsaP256, KeyType::Rsa2048] {
            let key = PrivateKey::generate(kind).unwrap();
            let pem = key.to_pkcs8_pem();
            let again = PrivateKey::from_pem(pem.expose().as_bytes()).unwrap();
            assert_eq!(again.spki_der(), key.spki_der());
            openssl.write("key.pem", pem.expose());
            openssl.run("pkey -in key.pem -check -noout");
            let spki = openssl.run_bytes("pkey -in key.pem -pubout -outform DER");
            assert_eq!(spki, key.spki_der());
            assert!(!format!("{key:?}").contains("PRIVATE"));
        }
    }

    #[test]
    fn every_pem_form_of_openssl_is_read() {
        let openssl = OpenSsl::new();
        openssl.run("genrsa -out rsa.pem 2048");
        openssl.run("rsa -in rsa.pem -traditional -out pkcs1.pem");
        openssl.run("ecparam -genkey -name prime256v1 -out sec1.pem");
        openssl.run("pkcs8 -topk8 -nocrypt -in sec1.pem -out ec.pem");
        openssl.run("ecparam -genkey -name secp384r1 -noout -out p384.pem");
        for name in ["rsa.pem", "pkcs1.pem", "sec1.pem", "ec.pem", "p384.pem"] {
            let spki = openssl.run_bytes(&format!("pkey -in {name} -pubout -outform DER"));
            let text = openssl.read(name);
            for variant in [
                text.clone(),
                text.replace('\n', "\r\n"),
                format!("x\n\n{text}"),
            ] {
                let key = PrivateKey::from_pem(variant.as_bytes()).unwrap();
                assert_eq!(key.spki_der(), spki, "{name}");
                openssl.write("again.pem", key.to_pkcs8_pem().expose());
                let again = openssl.run_bytes("pkey -in again.pem -pubout -outform DER");
                assert_eq!(again, spki, "{name}");
            }
        }
    }

    #[test]
    fn what_we_cannot_use_is_refused() {
        let openssl = OpenSsl::new();
        openssl.run("genrsa -out small.pem 1024");
        openssl.run("genpkey -algorithm ed25519 -out ed.pem");
        openssl.run("ecparam -genkey -name secp521r1 -noout -out p521.pem");
        openssl.run("genrsa -aes128 -passout pass:x -out locked.pem 2048");
        for (name, expected) in [
            ("small.pem", KeyError::Unsupported),
            ("ed.pem", KeyError::Unsupported),
            ("p521.pem", KeyError::Unsupported),
            ("locked.pem", KeyError::NoKey),
        ] {
            let error = PrivateKey::from_pem(openssl.read(name).as_bytes()).unwrap_err();
            assert_eq!(error, expected, "{name}");
        }
        assert_eq!(PrivateKey::from_pem(b"").map(|_| ()), Err(KeyError::NoKey));
    }

    #[test]
    fn rsa_size_is_that_of_the_modulus() {
        let openssl = OpenSsl::new();
        for bits in [1024, 2047, 2048] {
            openssl.run(&format!("genrsa -out k.pem {bits}"));
            let spki = openssl.run_bytes("pkey -in k.pem -pubout -outform DER");
            let key = PublicKey::from_spki(&spki).unwrap();
            assert_eq!(key.rsa_bits(), Some(bits));
        }
        let ec = PrivateKey::generate(KeyType::EcdsaP256).unwrap();
        assert_eq!(ec.public().rsa_bits(), None);
    }

    proptest! {
        #[test]
        fn garbage_is_refused_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(PublicKey::from_spki(&bytes).is_err());
            prop_assert!(PrivateKey::from_pem(&bytes).is_err());
        }
    }
}
