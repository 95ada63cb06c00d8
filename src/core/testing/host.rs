//! An agent in memory: what it trusts, what it shows, and what it refuses.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use crate::core::client::error::ExchangeError;
use crate::core::durable::crash;
use crate::core::pki::succession::Trusted;
use crate::core::pki::{Certificate, PrivateKey, csr, renewal};
use crate::core::types::{AgentName, Serial};
use crate::core::wire::errors;

/// What its software knows.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Release {
    Ours,
    /// No `/ca`, no `/revoke`; a renewed certificate waits for the next start.
    Original,
}

#[derive(Clone, Debug)]
pub(crate) struct Host {
    /// CN of its certificate.
    pub(crate) name: AgentName,
    pub(crate) release: Release,
    pub(crate) up: bool,
    /// It is being unpaired or has been given up: nobody need reach it.
    pub(crate) leaving: bool,
    /// Its record had tags from the beginning.
    pub(crate) tagged: bool,
    pub(crate) serials: BTreeSet<Serial>,
    pub(crate) trusted: Trusted,
    pub(crate) key: PrivateKey,
    pub(crate) certificate: Certificate,
    pub(crate) staged: Option<Certificate>,
    /// What dispatchers have told it to refuse.
    pub(crate) revoked: BTreeSet<Serial>,
}

type Body = Map<String, Value>;

impl Host {
    /// Whether a dispatcher with this certificate gets in.
    pub(crate) fn admits(&self, by: &Certificate, now: i64) -> bool {
        self.believes(by, now) && self.serials.contains(&by.serial)
    }

    /// Whether a handshake with it succeeds as far as this host is concerned.
    pub(crate) fn believes(&self, by: &Certificate, now: i64) -> bool {
        let cas = &self.trusted.cas;
        cas.iter().any(|ca| by.verify_issued_by(ca, now).is_ok())
    }

    /// A request after the handshake.
    pub(super) fn serve(
        &mut self,
        by: &Certificate,
        path: &str,
        body: &Value,
        now: i64,
    ) -> Result<Body, ExchangeError> {
        let forbidden = |words: &str| Err(ExchangeError::Forbidden(words.to_owned()));
        if self.revoked.contains(&by.serial) {
            return forbidden(errors::CERTIFICATE_REVOKED);
        }
        if !self.serials.contains(&by.serial) {
            return forbidden(errors::SERIAL_MISMATCH);
        }
        let mut next = self.clone();
        let ours = self.release == Release::Ours;
        let done = match path {
            "/ping" => return Ok(self.ping()),
            "/renew" => return Ok(self.request()),
            "/renew-complete" => next.renewed(body, now),
            "/rotate-serial" => next.rotate(by, body),
            "/ca" if ours => next.authorities(by, body, now),
            "/revoke" if ours => next.revoke(by, body),
            _ => {
                return Err(ExchangeError::NotFound {
                    words: errors::NOT_FOUND.to_owned(),
                    no_run: false,
                });
            }
        };
        let lost = |_| ExchangeError::Lost("the power is out".to_owned());
        let answer = match done {
            Ok(()) => {
                crash::effect().map_err(lost)?;
                *self = next;
                json!({ "status": "ok", "cas": self.trusted.fingerprints() })
            }
            Err(error) => json!({ "status": "error", "error": error }),
        };
        crash::effect().map_err(lost)?;
        Ok(fields(answer))
    }

    fn ping(&self) -> Body {
        let mut answer = json!({ "status": "ok", "staged": self.staged.is_some() });
        if self.release == Release::Ours {
            answer["version"] = json!("1");
            answer["revocations"] = json!(self.revoked.len());
            answer["cas"] = json!(self.trusted.fingerprints());
        }
        fields(answer)
    }

    fn request(&self) -> Body {
        let csr = csr::create_pem(&self.key, &self.name).unwrap();
        fields(json!({ "status": "ok", "csr": csr }))
    }

    fn renewed(&mut self, body: &Value, now: i64) -> Result<(), String> {
        let new = Certificate::from_pem(text(body, "cert").as_bytes()).unwrap();
        let revoked = |serial: &Serial| self.revoked.contains(serial);
        renewal::judge(&new, &self.certificate, &self.trusted.cas, revoked, now)
            .map_err(|e| e.to_string())?;
        match self.release {
            Release::Ours => self.certificate = new,
            Release::Original => self.staged = Some(new),
        }
        Ok(())
    }

    /// An agent of the original adopts what is staged when it starts.
    pub(crate) fn restart(&mut self) {
        if let Some(staged) = self.staged.take() {
            self.certificate = staged;
        }
    }

    fn rotate(&mut self, by: &Certificate, body: &Value) -> Result<(), String> {
        let serial = Serial::parse_hex(&text(body, "serial")).unwrap();
        match text(body, "action").as_str() {
            "add" if self.revoked.contains(&serial) => Err("serial is revoked".to_owned()),
            "add" => {
                self.serials.insert(serial);
                Ok(())
            }
            "remove" if serial == by.serial => Err(IN_USE.to_owned()),
            "remove" => {
                self.serials.remove(&serial);
                Ok(())
            }
            other => panic!("{other}"),
        }
    }

    fn authorities(&mut self, by: &Certificate, body: &Value, now: i64) -> Result<(), String> {
        let certificate = |key| Certificate::from_pem(text(body, key).as_bytes()).unwrap();
        if text(body, "action") == "add" {
            self.trusted = self
                .trusted
                .with(&certificate("ca"), &certificate("endorsement"), now)
                .map_err(|e| e.to_string())?;
            return Ok(());
        }
        let next = self
            .trusted
            .without(&text(body, "fingerprint"))
            .map_err(|e| e.to_string())?;
        let orphaned =
            |leaf: &Certificate| !next.cas.iter().any(|ca| leaf.verify_signed_by(ca).is_ok());
        if orphaned(&self.certificate) {
            return Err("this CA has issued the certificate of the agent".to_owned());
        }
        if orphaned(by) {
            return Err("this CA has issued the certificate of this connection".to_owned());
        }
        self.trusted = next;
        Ok(())
    }

    fn revoke(&mut self, by: &Certificate, body: &Value) -> Result<(), String> {
        let serials: Vec<Serial> = body["serials"]
            .as_array()
            .unwrap()
            .iter()
            .map(|s| Serial::parse_hex(s.as_str().unwrap()).unwrap())
            .collect();
        if serials.contains(&by.serial) {
            return Err(IN_USE.to_owned());
        }
        for serial in serials {
            self.serials.remove(&serial);
            self.revoked.insert(serial);
        }
        Ok(())
    }
}

pub(super) const IN_USE: &str = "serial in use by this connection";

fn text(body: &Value, key: &str) -> String {
    body[key].as_str().unwrap_or_default().to_owned()
}

fn fields(value: Value) -> Body {
    match value {
        Value::Object(map) => map,
        other => panic!("{other}"),
    }
}
