//! From the words of an operator to addresses (spec/dispatcher.md 5). Only registered agents can be addressed, never a bare DNS name.

use std::fmt;
use std::net::IpAddr;

use super::{AgentRecord, Registry};
use crate::core::types::AgentName;
use crate::core::wire::LookupBy;

/// Where one request goes.
#[derive(Clone, Debug, PartialEq)]
pub struct Target {
    /// Labels the result.
    pub name: AgentName,
    /// Host name or IP address without brackets; names are resolved when connecting.
    pub address: String,
    pub port: u16,
    pub record: AgentRecord,
}

impl Target {
    /// A registered agent at its own address and port.
    pub fn of(record: AgentRecord) -> Self {
        Self::at(record, None)
    }

    /// The port is the first of: `port`, the one in the record's address, the record's.
    fn at(record: AgentRecord, port: Option<u16>) -> Self {
        let stored = match record.lookup_by {
            LookupBy::Ip if !record.ip.is_empty() => record.ip.as_str(),
            _ => record.hostname.as_str(),
        };
        let stored = split_host_port(stored).unwrap_or(HostPort {
            host: stored,
            port: None,
        });
        Self {
            name: record.name.clone(),
            address: stored.host.to_owned(),
            port: port.or(stored.port).unwrap_or(record.port),
            record,
        }
    }

    /// `address:port`, with brackets around an IPv6 address: TARGET of the log lines, and the Host header.
    pub fn authority(&self) -> String {
        match self.address.parse() {
            Ok(IpAddr::V6(v6)) => format!("[{v6}]:{}", self.port),
            _ => format!("{}:{}", self.address, self.port),
        }
    }
}

/// Why a word names no target.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum NotAnAgent {
    NotRegistered,
    /// It cannot be a name of an agent, so no file was looked for.
    InvalidName,
    /// What follows the colon is not 1..=65535.
    InvalidPort,
    /// It is registered, but the record cannot be read: the error's text.
    Unreadable(String),
}

/// One word that names no target.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct UnknownAgent {
    /// As typed, with its port.
    pub word: String,
    pub why: NotAnAgent,
}

/// All words that name no target. Then nothing is contacted. The text begins as in the original: `unknown agent: a` or
/// `unknown agents: a, b`; reasons other than "not registered" follow in parentheses.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct UnknownAgents {
    pub unknown: Vec<UnknownAgent>,
}

impl fmt::Display for UnknownAgents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plural = if self.unknown.len() == 1 { "" } else { "s" };
        let words: Vec<String> = self
            .unknown
            .iter()
            .map(|u| u.word.escape_debug().to_string())
            .collect();
        write!(f, "unknown agent{plural}: {}", words.join(", "))?;
        let reasons: Vec<String> = self
            .unknown
            .iter()
            .zip(&words)
            .filter_map(|(unknown, word)| match &unknown.why {
                NotAnAgent::NotRegistered => None,
                NotAnAgent::InvalidName => Some(format!("'{word}' is not a valid name")),
                NotAnAgent::InvalidPort => Some(format!("the port of '{word}' is not 1 to 65535")),
                NotAnAgent::Unreadable(error) => Some(error.clone()),
            })
            .collect();
        if reasons.is_empty() {
            Ok(())
        } else {
            write!(f, " ({})", reasons.join("; "))
        }
    }
}

impl std::error::Error for UnknownAgents {}

/// Finds the target of every word, in the order given. A name given twice is two requests, as in the original.
///
/// The port is the first of: the one in the word, `default_port` (option `--port`), the one in the record's address, the record's.
///
/// # Errors
/// At least one word names no registered agent; all such words are listed.
pub fn resolve(
    words: &[String],
    registry: &Registry,
    default_port: Option<u16>,
) -> Result<Vec<Target>, UnknownAgents> {
    let mut targets = Vec::with_capacity(words.len());
    let mut unknown = Vec::new();
    for word in words {
        match resolve_word(word, registry, default_port) {
            Ok(target) => targets.push(target),
            Err(why) => unknown.push(UnknownAgent {
                word: word.clone(),
                why,
            }),
        }
    }
    if unknown.is_empty() {
        Ok(targets)
    } else {
        Err(UnknownAgents { unknown })
    }
}

fn resolve_word(
    word: &str,
    registry: &Registry,
    default_port: Option<u16>,
) -> Result<Target, NotAnAgent> {
    let parts = split_host_port(word).ok_or(NotAnAgent::InvalidPort)?;
    let name = AgentName::new(parts.host).map_err(|_| NotAnAgent::InvalidName)?;
    let record = match registry.get(&name) {
        Ok(Some(record)) => record,
        Ok(None) => return Err(NotAnAgent::NotRegistered),
        Err(e) => return Err(NotAnAgent::Unreadable(e.to_string())),
    };
    Ok(Target::at(record, parts.port.or(default_port)))
}

/// Host and port of a text, without brackets.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct HostPort<'a> {
    pub host: &'a str,
    pub port: Option<u16>,
}

/// Splits `h`, `h:9000`, `10.0.0.1:8080`, `[::1]:7450`, `[::1]` and a bare `::1`. `None`: the port is not 1..=65535.
pub fn split_host_port(text: &str) -> Option<HostPort<'_>> {
    let whole = HostPort {
        host: text,
        port: None,
    };
    // A bare IPv6 address is full of colons, none of which begins a port.
    if text.parse::<std::net::Ipv6Addr>().is_ok() {
        return Some(whole);
    }
    let bracketed = text.strip_prefix('[').and_then(|t| t.split_once(']'));
    let (host, port) = match bracketed {
        Some((host, "")) => return Some(HostPort { host, port: None }),
        Some((host, rest)) => (host, rest.strip_prefix(':')?),
        None => match text.rsplit_once(':') {
            Some((host, port)) if !host.is_empty() => (host, port),
            _ => return Some(whole),
        },
    };
    // u16's own parser takes a plus sign.
    let digits = !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
    let port = port.parse().ok().filter(|&port| digits && port > 0)?;
    Some(HostPort {
        host,
        port: Some(port),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fleet(records: &[(&str, &str, &str, u16)]) -> (tempfile::TempDir, Registry) {
        let dir = tempfile::tempdir().unwrap();
        let registry = Registry::new(dir.path());
        for (name, ip, by, port) in records {
            let mut record = AgentRecord::new(AgentName::new(name).unwrap());
            record.ip = (*ip).to_owned();
            record.port = *port;
            if *by == "ip" {
                record.lookup_by = LookupBy::Ip;
            }
            registry.register(record, false).unwrap();
        }
        (dir, registry)
    }

    fn authorities(registry: &Registry, words: &[&str], port: Option<u16>) -> Vec<String> {
        let words: Vec<String> = words.iter().map(ToString::to_string).collect();
        let targets = resolve(&words, registry, port).unwrap();
        targets.iter().map(Target::authority).collect()
    }

    #[test]
    fn hosts_and_ports_are_told_apart() {
        for (text, host, port) in [
            ("h", "h", None),
            ("h:9000", "h", Some(9000)),
            ("10.0.0.1:8080", "10.0.0.1", Some(8080)),
            ("[::1]:7450", "::1", Some(7450)),
            ("[::1]", "::1", None),
            ("::1", "::1", None),
            ("2001:db8::7443", "2001:db8::7443", None),
            ("::ffff:192.0.2.1", "::ffff:192.0.2.1", None),
            (":80", ":80", None),
        ] {
            assert_eq!(
                split_host_port(text),
                Some(HostPort { host, port }),
                "{text}"
            );
        }
        for bad in ["h:", "h:0", "h:65536", "h:+1", "h:x", "[::1]x", "[::1]:"] {
            assert_eq!(split_host_port(bad), None, "{bad}");
        }
    }

    #[test]
    fn address_and_port_come_from_the_record() {
        let (_dir, registry) = fleet(&[
            ("a", "10.0.0.1", "hostname", 7443),
            ("b", "10.0.0.2", "ip", 7450),
            ("c", "", "ip", 7443),
            ("v6", "::1", "ip", 7450),
            ("v6b", "[2001:db8::1]:9000", "ip", 7443),
        ]);
        assert_eq!(
            authorities(&registry, &["a", "b", "c", "v6", "v6b"], None),
            [
                "a:7443",
                "10.0.0.2:7450",
                "c:7443",
                "[::1]:7450",
                "[2001:db8::1]:9000"
            ]
        );
    }

    #[test]
    fn the_port_in_the_word_beats_the_option_which_beats_the_record() {
        let (_dir, registry) = fleet(&[("a", "", "", 7450), ("b", "", "", 7443)]);
        assert_eq!(
            authorities(&registry, &["a", "b", "a:7443", "b:9"], Some(8000)),
            ["a:8000", "b:8000", "a:7443", "b:9"]
        );
        assert_eq!(authorities(&registry, &["a:7443"], None), ["a:7443"]);
    }

    #[test]
    fn results_keep_the_name_and_nobody_is_merged() {
        let (_dir, registry) = fleet(&[("a", "10.0.0.1", "ip", 7443)]);
        let words = ["a:9000".to_owned(), "a".to_owned(), "a".to_owned()];
        let targets = resolve(&words, &registry, None).unwrap();
        assert_eq!(targets.len(), 3);
        assert!(targets.iter().all(|t| t.name.as_str() == "a"));
        assert_eq!(targets[0].port, 9000);
    }

    #[test]
    fn one_unknown_word_fails_all_and_only_unknown_words_are_listed() {
        let (dir, registry) = fleet(&[("a", "", "", 7443)]);
        std::fs::write(dir.path().join("broken.json"), "{").unwrap();
        let error = |words: &[&str]| {
            let words: Vec<String> = words.iter().map(ToString::to_string).collect();
            resolve(&words, &registry, None).unwrap_err()
        };
        assert_eq!(error(&["a", "x"]).to_string(), "unknown agent: x");
        assert_eq!(
            error(&["x:9000", "a", "y"]).to_string(),
            "unknown agents: x:9000, y"
        );
        let whys = error(&[
            "../outside",
            "/etc/passwd",
            "",
            "[::1]:7450",
            "a:99999",
            "broken",
        ]);
        let whys: Vec<_> = whys.unknown.into_iter().map(|u| u.why).collect();
        assert_eq!(whys[..4], [const { NotAnAgent::InvalidName }; 4]);
        assert_eq!(whys[4], NotAnAgent::InvalidPort);
        assert!(matches!(&whys[5], NotAnAgent::Unreadable(e) if e.contains("broken.json")));
    }

    #[test]
    fn nothing_asked_is_nothing_found() {
        let (_dir, registry) = fleet(&[]);
        assert_eq!(resolve(&[], &registry, None), Ok(Vec::new()));
    }
}
