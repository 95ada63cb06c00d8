//! One waiting request as it stands in the queue (spec/pairing.md 5), and what is checked whenever it is read.
//!
//! The field names are the original's, so that its `approve` can read our records and ours can read those of its listener. Fields of ours
//! are optional. A record proves itself on reading: its id is its file name, and the code in it is the code of what is in it.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::code::{CodeKind, Exchange, Nonce, PairingCode, unhex};
use super::dispatcher::{Binding, NewRequest};
use super::ids::{PairingId, SessionId};
use super::message::{parse_ip, parse_lookup_by};
use crate::core::clock;
use crate::core::types::{self, AgentName};
use crate::core::wire::LookupBy;

/// A name that the source address resolves to.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ReverseName {
    pub name: String,
    /// The name resolves back to the address.
    pub confirmed: bool,
}

/// A request that waits for the operator.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Record {
    pub id: PairingId,
    pub hostname: AgentName,
    /// Address that the agent reported, else the source.
    pub ip: Option<IpAddr>,
    /// Where the connection came from.
    pub source: Option<IpAddr>,
    pub csr: String,
    pub nonce: String,
    pub lookup_by: Option<LookupBy>,
    pub port: Option<u16>,
    /// UTC, `YYYY-MM-DDTHH:MM:SSZ`.
    pub received: String,
    pub reverse: Option<ReverseName>,
    pub code: PairingCode,
    pub binding: Option<Binding>,
    /// The listener that holds the connection; `None` for one of the original.
    pub session: Option<SessionId>,
}

/// Why a record is not acted upon.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum RecordError {
    #[error("the queue file is not a pairing request: {0}")]
    Unreadable(String),
    #[error("the queue file of request '{file}' holds request '{}'", .inside.escape_debug())]
    WrongId { file: String, inside: String },
    #[error(
        "the queue file was changed after the request came in: its code no longer fits its content; deny it and find out who writes to the queue"
    )]
    Changed,
}

impl Record {
    /// Completes a new request by what only the listener knows.
    pub fn new(
        new: NewRequest,
        source: IpAddr,
        received: String,
        reverse: Option<ReverseName>,
        session: SessionId,
    ) -> Self {
        let request = new.request;
        Self {
            id: new.id,
            hostname: request.hostname,
            ip: request.ip.or(Some(source)),
            source: Some(source),
            csr: request.csr,
            nonce: request.nonce,
            lookup_by: request.lookup_by,
            port: request.port,
            received,
            reverse,
            code: new.code,
            binding: new.binding,
            session: Some(session),
        }
    }

    pub fn kind(&self) -> CodeKind {
        match self.binding {
            Some(_) => CodeKind::Bound,
            None => CodeKind::Basic,
        }
    }

    /// The address that the agent reported, when it is not where it came from.
    pub fn differing_ip(&self) -> Option<IpAddr> {
        self.ip.filter(|ip| Some(*ip) != self.source)
    }

    /// Reads the content of `<id>.json`.
    ///
    /// # Errors
    /// [`RecordError`]; the caller shows it and leaves the request alone.
    pub fn parse(id: &PairingId, bytes: &[u8]) -> Result<Self, RecordError> {
        let stored: Stored =
            serde_json::from_slice(bytes).map_err(|e| RecordError::Unreadable(e.to_string()))?;
        if stored.id != id.as_str() {
            return Err(RecordError::WrongId {
                file: id.to_string(),
                inside: stored.id.chars().take(64).collect(),
            });
        }
        let hostname =
            AgentName::new(&stored.hostname).map_err(|e| RecordError::Unreadable(e.to_string()))?;
        let binding = stored.binding()?;
        let code = match &binding {
            None => PairingCode::basic(&stored.csr),
            Some(b) => PairingCode::bound(
                &Exchange {
                    csr_pem: &stored.csr,
                    server_cert: &b.server_cert,
                },
                &b.agent_nonce,
                &b.dispatcher_nonce,
                hostname.as_str(),
            ),
        };
        if code.to_string() != stored.code {
            return Err(RecordError::Changed);
        }
        Ok(Self {
            id: id.clone(),
            hostname,
            ip: parse_ip(&stored.ip),
            source: parse_ip(&stored.source_ip),
            csr: stored.csr,
            nonce: stored.nonce,
            lookup_by: stored.lookup_by.as_deref().and_then(parse_lookup_by),
            port: stored.port.as_ref().and_then(port_of),
            received: Some(stored.received)
                .filter(|time| clock::parse_iso(time).is_some())
                .unwrap_or_else(|| "unknown".to_owned()),
            // Whoever owns the reverse zone wrote this text, and the original passes it on as it is.
            reverse: Some(stored.reverse_dns)
                .filter(|name| !name.is_empty() && name.bytes().all(is_name_byte))
                .map(|name| ReverseName {
                    name,
                    confirmed: stored.reverse_confirmed != 0,
                }),
            code,
            binding,
            session: stored.session.as_deref().and_then(SessionId::from_hex),
        })
    }

    /// The content of `<id>.json`: one line of JSON.
    pub fn to_json(&self) -> Vec<u8> {
        let text = |ip: Option<IpAddr>| ip.map_or_else(String::new, |ip| ip.to_string());
        let binding = self.binding.as_ref();
        super::message::to_json(&Stored {
            id: self.id.to_string(),
            hostname: self.hostname.to_string(),
            ip: text(self.ip),
            source_ip: self
                .source
                .map_or_else(|| "unknown".to_owned(), |ip| ip.to_string()),
            csr: self.csr.clone(),
            nonce: self.nonce.clone(),
            lookup_by: self.lookup_by.map(|l| l.as_str().to_owned()),
            port: self.port.map(Value::from),
            received: self.received.clone(),
            code: self.code.to_string(),
            reverse_dns: self
                .reverse
                .as_ref()
                .map(|r| r.name.clone())
                .unwrap_or_default(),
            reverse_confirmed: u8::from(self.reverse.as_ref().is_some_and(|r| r.confirmed)),
            pair_version: binding.map(|_| 2),
            agent_nonce: binding.map(|b| b.agent_nonce.to_hex()),
            dispatcher_nonce: binding.map(|b| b.dispatcher_nonce.to_hex()),
            server_cert_sha256: binding.map(|b| types::hex(&b.server_cert)),
            session: self.session.as_ref().map(ToString::to_string),
        })
    }
}

/// The file, field by field.
#[derive(Deserialize, Serialize)]
struct Stored {
    id: String,
    hostname: String,
    #[serde(default)]
    ip: String,
    #[serde(default)]
    source_ip: String,
    csr: String,
    #[serde(default)]
    nonce: String,
    #[serde(default)]
    lookup_by: Option<String>,
    /// A number, or a string when an agent of the original read it from its configuration.
    #[serde(default)]
    port: Option<Value>,
    #[serde(default)]
    received: String,
    #[serde(default)]
    code: String,
    #[serde(default)]
    reverse_dns: String,
    #[serde(default)]
    reverse_confirmed: u8,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pair_version: Option<u8>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    agent_nonce: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    dispatcher_nonce: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    server_cert_sha256: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    session: Option<String>,
}

impl Stored {
    /// The parts of the bound code: all of them, or none where no version says that there should be some.
    fn binding(&self) -> Result<Option<Binding>, RecordError> {
        if self.pair_version.is_none_or(|v| v < 2) {
            return Ok(None);
        }
        let nonce = |text: &Option<String>| text.as_deref().and_then(Nonce::from_hex);
        match (
            nonce(&self.agent_nonce),
            nonce(&self.dispatcher_nonce),
            self.server_cert_sha256.as_deref().and_then(unhex),
        ) {
            (Some(agent_nonce), Some(dispatcher_nonce), Some(server_cert)) => Ok(Some(Binding {
                agent_nonce,
                dispatcher_nonce,
                server_cert,
            })),
            _ => Err(RecordError::Changed),
        }
    }
}

fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"._-".contains(&byte)
}

fn port_of(value: &Value) -> Option<u16> {
    let port = match value {
        Value::String(text) => text.parse().ok(),
        other => other.as_u64().and_then(|n| u16::try_from(n).ok()),
    };
    port.filter(|port| *port > 0)
}

#[cfg(test)]
pub(crate) use tests::sample;

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::core::pairing::message::ReceivedRequest;
    use serde_json::json;

    /// A record as our listener writes it.
    pub(crate) fn sample(id: &str, host: &str, bound: bool) -> Record {
        let request = ReceivedRequest {
            hostname: AgentName::new(host).unwrap(),
            csr: "-----BEGIN CERTIFICATE REQUEST-----\n".to_owned(),
            nonce: "00".repeat(16),
            ip: None,
            port: Some(7443),
            lookup_by: None,
            commitment: None,
        };
        let binding = bound.then(|| Binding {
            agent_nonce: Nonce::from_bytes([1; 32]),
            dispatcher_nonce: Nonce::from_bytes([2; 32]),
            server_cert: [3; 32],
        });
        let code = match &binding {
            None => PairingCode::basic(&request.csr),
            Some(b) => {
                let exchange = Exchange {
                    csr_pem: &request.csr,
                    server_cert: &b.server_cert,
                };
                PairingCode::bound(&exchange, &b.agent_nonce, &b.dispatcher_nonce, host)
            }
        };
        let new = NewRequest {
            id: PairingId::new(id).unwrap(),
            request,
            code,
            binding,
        };
        Record::new(
            new,
            parse_ip("192.0.2.7").unwrap(),
            "2026-11-22T20:00:00Z".to_owned(),
            None,
            SessionId::from_hex("00112233445566ff").unwrap(),
        )
    }

    #[test]
    fn a_record_reads_back() {
        for bound in [false, true] {
            let record = sample("00ff", "web01", bound);
            assert_eq!(
                Record::parse(&record.id, &record.to_json()),
                Ok(record.clone())
            );
            assert_eq!(record.kind() == CodeKind::Bound, bound);
        }
    }

    #[test]
    fn the_fields_are_those_of_the_original() {
        let value: Value =
            serde_json::from_slice(&sample("00ff", "web01", false).to_json()).unwrap();
        let mut expected = json!({
            "id": "00ff", "hostname": "web01", "ip": "192.0.2.7", "source_ip": "192.0.2.7",
            "csr": "-----BEGIN CERTIFICATE REQUEST-----\n", "nonce": "00".repeat(16), "lookup_by": null, "port": 7443,
            "received": "2026-11-22T20:00:00Z", "reverse_dns": "", "reverse_confirmed": 0, "session": "00112233445566ff",
        });
        expected["code"] = json!(sample("00ff", "web01", false).code.to_string());
        assert_eq!(value, expected);
    }

    #[test]
    fn a_record_of_the_original_is_understood() {
        let csr = "x339";
        let record = Record::parse(
            &PairingId::new("0a").unwrap(),
            json!({"id": "0a", "hostname": "db1", "ip": "10.0.0.5", "source_ip": "unknown", "csr": csr, "nonce": "n",
                   "lookup_by": "ip", "port": "7500", "received": "2026-01-01T00:00:00Z", "code": "000065",
                   "reverse_dns": "db1.example.org", "reverse_confirmed": 1})
            .to_string()
            .as_bytes(),
        )
        .unwrap();
        assert_eq!((record.source, record.port), (None, Some(7500)));
        assert_eq!(record.differing_ip(), parse_ip("10.0.0.5"));
        assert!(record.reverse.unwrap().confirmed);
        assert_eq!(record.session, None);
    }

    #[test]
    fn no_text_of_a_record_reaches_a_terminal_raw() {
        let mut value: Value =
            serde_json::from_slice(&sample("00ff", "web01", false).to_json()).unwrap();
        value["reverse_dns"] = json!("a\u{1b}[2Jb.example.org");
        value["received"] = json!("\u{1b}[2J");
        let id = PairingId::new("00ff").unwrap();
        let record = Record::parse(&id, value.to_string().as_bytes()).unwrap();
        assert_eq!(
            (record.reverse, record.received.as_str()),
            (None, "unknown")
        );
    }

    #[test]
    fn whatever_is_swapped_in_the_file_is_noticed() {
        for bound in [false, true] {
            let record = sample("00ff", "web01", bound);
            let value: Value = serde_json::from_slice(&record.to_json()).unwrap();
            let mut swaps = vec![("csr", json!("other"), RecordError::Changed)];
            if bound {
                swaps.push(("hostname", json!("web02"), RecordError::Changed));
                swaps.push((
                    "server_cert_sha256",
                    json!("04".repeat(32)),
                    RecordError::Changed,
                ));
                swaps.push(("agent_nonce", json!("04".repeat(32)), RecordError::Changed));
                swaps.push(("dispatcher_nonce", json!(null), RecordError::Changed));
                swaps.push(("pair_version", json!(null), RecordError::Changed));
            }
            let inside = "0100".to_owned();
            let wrong = RecordError::WrongId {
                file: "00ff".to_owned(),
                inside,
            };
            swaps.push(("id", json!("0100"), wrong));
            for (key, other, error) in swaps {
                let mut changed = value.clone();
                changed[key] = other;
                let bytes = changed.to_string().into_bytes();
                assert_eq!(Record::parse(&record.id, &bytes), Err(error), "{key}");
            }
        }
    }
}
