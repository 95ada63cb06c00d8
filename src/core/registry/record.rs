//! One agent as the registry knows it (spec/dispatcher.md 12.2). Reading is lenient field by field, so that records of any age load;
//! what is not known here survives a rewrite.

use std::collections::BTreeMap;

use serde::{Serialize, Serializer};
use serde_json::{Map, Value};

use crate::core::types::AgentName;
use crate::core::wire::{AGENT_PORT, LookupBy};

/// Renames that count within one overlap; more would be somebody's loop.
const MAX_FORMER_NAMES: usize = 8;

/// How far the agent is known to trust our present serial.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum SerialStatus {
    Current,
    Pending,
    Stale,
    #[default]
    Unknown,
}

impl SerialStatus {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Current => "current",
            Self::Pending => "pending",
            Self::Stale => "stale",
            Self::Unknown => "unknown",
        }
    }
}

/// Whether the certificate that answers must be this agent's (ours).
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum PeerCheck {
    /// Any value but `off` reads as this.
    #[default]
    Strict,
    /// As in the original: any certificate of the CA will do.
    Off,
}

impl PeerCheck {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Strict => "strict",
            Self::Off => "off",
        }
    }
}

/// A record. Texts are empty when unknown; times are `YYYY-MM-DDTHH:MM:SSZ`.
#[derive(Clone, Debug, PartialEq)]
pub struct AgentRecord {
    /// The key: the file's name. Not in the file itself.
    pub name: AgentName,
    /// What is resolved by DNS with [`LookupBy::Hostname`]; equals `name` unless somebody edited the file.
    pub hostname: String,
    pub ip: String,
    pub paired: String,
    /// OpenSSL's notAfter text, or `unknown`.
    pub expiry: String,
    /// Id of the pairing request.
    pub reqid: String,
    pub lookup_by: LookupBy,
    /// 1..=65535; anything else in the file reads as 7443.
    pub port: u16,
    /// The agent's tags when it was last discovered.
    pub tags: BTreeMap<String, String>,
    /// Our serial that the agent trusts, as it was sent.
    pub dispatcher_serial: String,
    pub serial_status: SerialStatus,
    pub serial_broadcast: String,
    pub serial_confirmed: String,
    /// CN of the agent's certificate where it is not `name` (ours).
    pub cert_cn: Option<String>,
    /// Serial of the agent's certificate, minimal hex (ours).
    pub cert_serial: Option<String>,
    /// SHA-256 of the agent's SubjectPublicKeyInfo, lower-case hex (ours).
    pub cert_spki: Option<String>,
    pub peer_check: PeerCheck,
    /// Release that the agent reported last (ours).
    pub version: Option<String>,
    /// End of a renewed certificate that the agent has and does not use yet, OpenSSL's text (ours).
    pub staged_expiry: Option<String>,
    /// Fingerprint of the CA that issued the agent's certificate (ours).
    pub cert_ca: Option<String>,
    /// Fingerprints of the CAs that the agent trusts, as it reported them; empty: it did not say (ours).
    pub trusted_cas: Vec<String>,
    /// How many entries of our revocation journal the agent has confirmed (ours).
    pub revocations: u64,
    /// Names that it had here before, the last one last (ours): what was written down under them is still about it.
    pub formerly: Vec<AgentName>,
    /// Fields of other versions.
    extra: Map<String, Value>,
}

impl AgentRecord {
    /// A record that knows nothing but the name.
    pub fn new(name: AgentName) -> Self {
        Self::from_map(name, Map::new())
    }

    /// Remembers a name that it gives up; the oldest ones are forgotten.
    pub(super) fn was(&mut self, old: AgentName) {
        self.formerly.retain(|name| *name != old);
        self.formerly.push(old);
        let surplus = self.formerly.len().saturating_sub(MAX_FORMER_NAMES);
        self.formerly.drain(..surplus);
    }

    /// Whether its last answer to a ping was that of an older release: it named its version, but not which CAs it trusts.
    pub fn is_older_release(&self) -> bool {
        self.version.is_some() && self.trusted_cas.is_empty()
    }

    /// The CN that the agent's certificate must have.
    pub fn expected_cn(&self) -> &str {
        self.cert_cn.as_deref().unwrap_or(self.name.as_str())
    }

    /// Reads the content of `<name>.json`; a field of the wrong type counts as absent.
    ///
    /// # Errors
    /// It is not one JSON object. The text says so without showing any of it.
    pub(super) fn parse(name: &AgentName, bytes: &[u8]) -> Result<Self, String> {
        if bytes.iter().all(u8::is_ascii_whitespace) {
            return Err("the file is empty".to_owned());
        }
        match serde_json::from_slice(bytes) {
            Ok(Value::Object(map)) => Ok(Self::from_map(name.clone(), map)),
            Ok(_) => Err("it holds no JSON object".to_owned()),
            Err(e) => Err(format!("invalid JSON: {e}")),
        }
    }

    fn from_map(name: AgentName, mut map: Map<String, Value>) -> Self {
        let map = &mut map;
        Self {
            hostname: optional_text(map, "hostname").unwrap_or_else(|| name.to_string()),
            ip: text(map, "ip"),
            paired: text(map, "paired"),
            expiry: text(map, "expiry"),
            reqid: text(map, "reqid"),
            lookup_by: match text(map, "lookup_by").as_str() {
                "ip" => LookupBy::Ip,
                _ => LookupBy::Hostname,
            },
            port: match text(map, "port").parse() {
                Ok(port) if port > 0 => port,
                _ => AGENT_PORT,
            },
            tags: match map.remove("tags") {
                Some(Value::Object(tags)) => Self::tags_of(tags),
                _ => BTreeMap::new(),
            },
            dispatcher_serial: text(map, "dispatcher_serial"),
            serial_status: match text(map, "serial_status").as_str() {
                "current" => SerialStatus::Current,
                "pending" => SerialStatus::Pending,
                "stale" => SerialStatus::Stale,
                _ => SerialStatus::Unknown,
            },
            serial_broadcast: text(map, "serial_broadcast"),
            serial_confirmed: text(map, "serial_confirmed"),
            cert_cn: optional_text(map, "cert_cn"),
            cert_serial: optional_text(map, "cert_serial"),
            cert_spki: optional_text(map, "cert_spki"),
            peer_check: match text(map, "peer_check").as_str() {
                "off" => PeerCheck::Off,
                _ => PeerCheck::Strict,
            },
            version: optional_text(map, "version"),
            staged_expiry: optional_text(map, "staged_expiry"),
            cert_ca: optional_text(map, "cert_ca"),
            trusted_cas: match map.remove("trusted_cas") {
                Some(Value::Array(all)) => all.into_iter().filter_map(plain).collect(),
                _ => Vec::new(),
            },
            revocations: text(map, "revocations").parse().unwrap_or(0),
            formerly: match map.remove("formerly") {
                Some(Value::Array(all)) => all
                    .into_iter()
                    .filter_map(|name| AgentName::new(&plain(name)?).ok())
                    .collect(),
                _ => Vec::new(),
            },
            extra: std::mem::take(map),
            name,
        }
    }

    /// Tags as a record keeps them; what is neither text, number nor truth value is left out.
    pub fn tags_of(tags: Map<String, Value>) -> BTreeMap<String, String> {
        tags.into_iter()
            .filter_map(|(key, value)| Some((key, plain(value)?)))
            .collect()
    }

    /// The twelve fields of the original, ours where they say something, and what else the file held.
    pub fn to_map(&self) -> Map<String, Value> {
        let mut map = self.extra.clone();
        let texts = [
            ("hostname", self.hostname.as_str()),
            ("ip", &self.ip),
            ("paired", &self.paired),
            ("expiry", &self.expiry),
            ("reqid", &self.reqid),
            ("lookup_by", self.lookup_by.as_str()),
            ("dispatcher_serial", &self.dispatcher_serial),
            ("serial_status", self.serial_status.as_str()),
            ("serial_broadcast", &self.serial_broadcast),
            ("serial_confirmed", &self.serial_confirmed),
        ];
        for (key, value) in texts {
            map.insert(key.to_owned(), value.into());
        }
        map.insert("port".to_owned(), self.port.into());
        let tags: Map<String, Value> = self
            .tags
            .iter()
            .map(|(key, value)| (key.clone(), value.as_str().into()))
            .collect();
        map.insert("tags".to_owned(), tags.into());
        let ours = [
            ("cert_cn", &self.cert_cn),
            ("cert_serial", &self.cert_serial),
            ("cert_spki", &self.cert_spki),
            ("version", &self.version),
            ("staged_expiry", &self.staged_expiry),
            ("cert_ca", &self.cert_ca),
        ];
        for (key, value) in ours {
            if let Some(value) = value {
                map.insert(key.to_owned(), value.as_str().into());
            }
        }
        if self.peer_check == PeerCheck::Off {
            map.insert("peer_check".to_owned(), self.peer_check.as_str().into());
        }
        if !self.trusted_cas.is_empty() {
            map.insert("trusted_cas".to_owned(), self.trusted_cas.clone().into());
        }
        if !self.formerly.is_empty() {
            let names: Vec<&str> = self.formerly.iter().map(AgentName::as_str).collect();
            map.insert("formerly".to_owned(), names.into());
        }
        if self.revocations > 0 {
            map.insert("revocations".to_owned(), self.revocations.into());
        }
        map
    }

    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut text = format!("{:#}", Value::Object(self.to_map()));
        text.push('\n');
        text.into_bytes()
    }

    /// Whether both stand for one pairing of one host. Of two agents at most one has the other's name in its certificate.
    pub(super) fn is_same_pairing(&self, other: &Self) -> bool {
        self.cert_cn == other.cert_cn
            && self.cert_spki == other.cert_spki
            && self.reqid == other.reqid
            && self.paired == other.paired
    }

    /// Takes over from a replaced record what pairing does not know. How to check the peer is not among it: a new pairing is strict.
    pub(super) fn inherit(&mut self, old: Self) {
        if self.tags.is_empty() {
            self.tags = old.tags;
        }
        for (key, value) in old.extra {
            self.extra.entry(key).or_insert(value);
        }
    }
}

impl Serialize for AgentRecord {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.to_map().serialize(serializer)
    }
}

fn plain(value: Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(flag) => Some(flag.to_string()),
        _ => None,
    }
}

fn text(map: &mut Map<String, Value>, key: &str) -> String {
    map.remove(key).and_then(plain).unwrap_or_default()
}

fn optional_text(map: &mut Map<String, Value>, key: &str) -> Option<String> {
    map.remove(key).and_then(plain).filter(|t| !t.is_empty())
}
