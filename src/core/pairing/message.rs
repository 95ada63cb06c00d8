//! The JSON of the pairing connection, both directions, read as leniently as the original reads it (spec/pairing.md 3).
//!
//! Unknown fields are ignored on both sides; that is how the fields of the bound code reach peers that do not know them.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::code::{Commitment, Nonce};
use crate::core::config::diagnostics::printable;
use crate::core::types::{AgentName, ReqId};
use crate::core::wire::LookupBy;

/// Path of the request that opens the exchange.
pub const PATH_PAIR: &str = "/pair";
/// Path of the message that opens the commitment.
pub const PATH_REVEAL: &str = "/pair/reveal";
/// Path of the agent's receipt.
pub const PATH_DONE: &str = "/pair/done";

/// The two words that say how an agent shall be found; anything else is `None`.
pub fn parse_lookup_by(word: &str) -> Option<LookupBy> {
    [LookupBy::Ip, LookupBy::Hostname]
        .into_iter()
        .find(|l| l.as_str() == word)
}

/// `POST /pair` as an agent sends it.
#[derive(Clone, Debug, Serialize)]
pub struct PairRequest {
    pub hostname: String,
    pub csr: String,
    /// 32 hex digits that come back in the approval.
    pub nonce: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ip: Option<IpAddr>,
    pub port: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lookup_by: Option<&'static str>,
    pub pair_version: u8,
    pub commit: String,
}

/// `POST /pair` as a dispatcher understands it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ReceivedRequest {
    pub hostname: AgentName,
    pub csr: String,
    /// Echoed unchanged; empty when the agent sent none.
    pub nonce: String,
    pub ip: Option<IpAddr>,
    pub port: Option<u16>,
    pub lookup_by: Option<LookupBy>,
    /// Present when the agent speaks the bound code.
    pub commitment: Option<Commitment>,
}

/// Why a request is not queued; `Display` is the `reason` on the wire (spec/pairing.md 3.2).
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum RequestRefusal {
    #[error("request too large")]
    TooLarge,
    #[error("invalid request")]
    Invalid,
    #[error("invalid hostname")]
    InvalidHostname,
    #[error("invalid certificate request")]
    InvalidCsr,
    #[error("pairing queue full")]
    QueueFull,
    #[error("commitment mismatch")]
    CommitmentMismatch,
    #[error("this dispatcher requires a bound pairing code: update ctrl-exec on this host")]
    NotBound,
    #[error("too many unfinished pairing attempts in this session")]
    TooManyAttempts,
    #[error("pairing session ended")]
    SessionEnded,
    #[error("internal error")]
    Internal,
}

/// Longest text that any field but the CSR may have.
const MAX_TEXT: usize = 256;

/// Reads the request of an agent.
///
/// # Errors
/// No JSON object, `hostname` or `csr` missing or false in the original's sense, a host name that is none, or a broken offer of the bound code
/// (which is refused rather than treated as an old agent).
pub fn parse_request(body: &[u8]) -> Result<ReceivedRequest, RequestRefusal> {
    let Ok(Value::Object(fields)) = serde_json::from_slice(body) else {
        return Err(RequestRefusal::Invalid);
    };
    let text = |key: &str| fields.get(key).and_then(text_of);
    let truthy = |key: &str| text(key).filter(|t| !t.is_empty() && t != "0");
    let (Some(csr), Some(hostname)) = (truthy("csr"), truthy("hostname")) else {
        return Err(RequestRefusal::Invalid);
    };
    let hostname = AgentName::new(&hostname).map_err(|_| RequestRefusal::InvalidHostname)?;
    let nonce = text("nonce").unwrap_or_default();
    if nonce.len() > MAX_TEXT {
        return Err(RequestRefusal::Invalid);
    }
    let commitment = match fields.get("pair_version").and_then(text_of) {
        Some(version) if version != "1" => Some(
            text("commit")
                .and_then(|c| Commitment::from_hex(&c))
                .ok_or(RequestRefusal::Invalid)?,
        ),
        _ => None,
    };
    Ok(ReceivedRequest {
        hostname,
        csr,
        nonce,
        ip: text("ip").and_then(|t| parse_ip(&t)),
        port: text("port")
            .and_then(|t| t.parse().ok())
            .filter(|port| *port > 0),
        lookup_by: text("lookup_by").and_then(|t| parse_lookup_by(&t)),
        commitment,
    })
}

/// An IPv4 or IPv6 literal; a mapped IPv4 address counts as the IPv4 address that it is.
pub fn parse_ip(text: &str) -> Option<IpAddr> {
    text.parse::<IpAddr>().ok().map(|ip| ip.to_canonical())
}

/// A string, or a number as the text that Perl would make of it.
fn text_of(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

/// `POST /pair/reveal` and `POST /pair/done`, from the agent.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Reveal {
    pub reqid: String,
    pub agent_nonce: String,
}

/// What became of an approval on the agent.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Receipt {
    pub reqid: String,
    /// `stored` or `refused`.
    pub status: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
}

impl Receipt {
    pub const STORED: &str = "stored";
    pub const REFUSED: &str = "refused";
}

/// A response of the dispatcher that ends the exchange without a certificate: `denied` and `error`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Refusal {
    pub status: String,
    pub reason: String,
}

impl Refusal {
    /// The request was not queued.
    pub fn error(reason: &str) -> Self {
        Self {
            status: "error".to_owned(),
            reason: reason.to_owned(),
        }
    }

    /// The request was queued, and decided against.
    pub fn denied(reason: &str) -> Self {
        Self {
            status: "denied".to_owned(),
            reason: reason.to_owned(),
        }
    }
}

/// Reason of a denial by the operator, matched by peers (spec/pairing.md 3.2).
pub const REJECTED: &str = "rejected by operator";
/// Reason when nobody decided within the window.
pub const APPROVAL_TIMEOUT: &str = "approval timeout";
/// Reason when the session ended while the request waited.
pub const SESSION_ENDED: &str = "pairing session ended";

/// The first response.
#[derive(Clone, Debug, Serialize)]
pub struct Pending {
    pub status: &'static str,
    pub reqid: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pair_version: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dispatcher_nonce: Option<String>,
}

impl Pending {
    /// To an agent of the original, or with a nonce to one of ours.
    pub fn new(reqid: &str, dispatcher_nonce: Option<&Nonce>) -> Self {
        Self {
            status: "pending",
            reqid: reqid.to_owned(),
            pair_version: dispatcher_nonce.map(|_| 2),
            dispatcher_nonce: dispatcher_nonce.map(Nonce::to_hex),
        }
    }
}

/// The approval, also the content of `<id>.approved` (spec/pairing.md 3.2, 5).
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Approval {
    pub status: String,
    pub cert: String,
    pub ca: String,
    #[serde(default)]
    pub nonce: String,
    /// Serial that the dispatcher presents; may be empty, may be in the original's lossy form.
    #[serde(default)]
    pub dispatcher_serial: String,
    #[serde(default)]
    pub dispatcher_id: String,
}

/// The first response as an agent understands it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Acknowledgement {
    /// A dispatcher of the original.
    Basic { reqid: ReqId },
    Bound {
        reqid: ReqId,
        dispatcher_nonce: Nonce,
    },
    /// Not queued, with the reason given.
    Refused(String),
}

/// What the dispatcher sent is none of the responses of the protocol. The texts are those of the original (spec/pairing.md 3.3).
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ResponseError {
    #[error("empty acknowledgement body")]
    EmptyAcknowledgement,
    #[error("bad JSON in acknowledgement: {0}")]
    BadAcknowledgement(String),
    #[error("unexpected acknowledgement: {0}")]
    UnexpectedAcknowledgement(String),
    #[error("empty result body")]
    EmptyResult,
    #[error("bad JSON in result: {0}")]
    BadResult(String),
}

/// Reads the first response.
///
/// # Errors
/// It is none.
pub fn parse_acknowledgement(body: &[u8]) -> Result<Acknowledgement, ResponseError> {
    if body.is_empty() {
        return Err(ResponseError::EmptyAcknowledgement);
    }
    let value: Value = serde_json::from_slice(body)
        .map_err(|e| ResponseError::BadAcknowledgement(e.to_string()))?;
    let unexpected = |what: &str| ResponseError::UnexpectedAcknowledgement(clip(what));
    let text = |key: &str| value.get(key).and_then(text_of);
    match text("status").as_deref() {
        Some("error" | "denied") => Ok(Acknowledgement::Refused(reason_of(&value))),
        Some("pending") => {
            let reqid = text("reqid").ok_or_else(|| unexpected("no reqid"))?;
            let reqid = ReqId::new(&reqid).map_err(|e| unexpected(&e.to_string()))?;
            match text("pair_version") {
                Some(version) if version != "1" => Ok(Acknowledgement::Bound {
                    reqid,
                    dispatcher_nonce: text("dispatcher_nonce")
                        .and_then(|n| Nonce::from_hex(&n))
                        .ok_or_else(|| unexpected("no dispatcher_nonce"))?,
                }),
                _ => Ok(Acknowledgement::Basic { reqid }),
            }
        }
        other => Err(unexpected(other.unwrap_or("no status"))),
    }
}

/// The last response as an agent understands it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Verdict {
    Approved(Box<Approval>),
    /// Denied, or refused after the acknowledgement, with the reason given.
    Denied(String),
}

/// Reads the last response.
///
/// # Errors
/// It is no JSON object, or an approval without its parts.
pub fn parse_verdict(body: &[u8]) -> Result<Verdict, ResponseError> {
    if body.is_empty() {
        return Err(ResponseError::EmptyResult);
    }
    let bad = |e: serde_json::Error| ResponseError::BadResult(e.to_string());
    let value: Value = serde_json::from_slice(body).map_err(bad)?;
    if value.get("status").and_then(Value::as_str) == Some("approved") {
        let approval = serde_json::from_value(value).map_err(bad)?;
        return Ok(Verdict::Approved(Box::new(approval)));
    }
    Ok(Verdict::Denied(reason_of(&value)))
}

fn reason_of(value: &Value) -> String {
    value
        .get("reason")
        .and_then(text_of)
        .filter(|reason| !reason.is_empty())
        .map_or_else(|| "denied".to_owned(), |reason| clip(&reason))
}

/// Text of a peer, short enough to show and without anything that a terminal would obey or hide.
fn clip(text: &str) -> String {
    let text: String = text
        .chars()
        .take(MAX_TEXT)
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    printable(&text)
}

/// The bytes of a message body.
pub fn to_json<T: Serialize>(value: &T) -> Vec<u8> {
    // None of the types above can fail to serialise: they hold strings and numbers only.
    serde_json::to_vec(value).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn refused(value: Value) -> RequestRefusal {
        parse_request(value.to_string().as_bytes()).unwrap_err()
    }

    #[test]
    fn a_reason_is_shown_without_what_a_terminal_would_obey_or_hide() {
        let body = "{\"status\":\"denied\",\"reason\":\"no\\u001b[2J\\u202eyes\"}".as_bytes();
        let Ok(Verdict::Denied(reason)) = parse_verdict(body) else {
            panic!("not denied");
        };
        assert_eq!(reason, r"no [2J\u{202e}yes");
    }

    #[test]
    fn a_request_of_the_original_is_understood() {
        let request = parse_request(
            json!({"hostname": "web01.example.org", "csr": "PEM\n", "nonce": "ab", "ip": "192.0.2.7",
                   "port": "7443", "lookup_by": "ip", "new_field": [1]})
            .to_string()
            .as_bytes(),
        )
        .unwrap();
        assert_eq!(request.hostname.as_str(), "web01.example.org");
        assert_eq!(
            (request.csr.as_str(), request.nonce.as_str()),
            ("PEM\n", "ab")
        );
        assert_eq!(request.ip, parse_ip("192.0.2.7"));
        assert_eq!(
            (request.port, request.lookup_by),
            (Some(7443), Some(LookupBy::Ip))
        );
        assert_eq!(request.commitment, None);
    }

    #[test]
    fn what_is_missing_or_false_in_the_original_is_invalid() {
        for bad in [
            json!(""),
            json!(0),
            json!("0"),
            json!(null),
            json!(false),
            json!([]),
            json!({}),
        ] {
            assert_eq!(
                refused(json!({"hostname": "a", "csr": bad})),
                RequestRefusal::Invalid
            );
            assert_eq!(
                refused(json!({"hostname": bad, "csr": "c"})),
                RequestRefusal::Invalid
            );
        }
        for bad in [&b""[..], b"[]", b"1", b"null", b"{", b"\xff"] {
            assert_eq!(parse_request(bad), Err(RequestRefusal::Invalid));
        }
        for bad in ["../x", "-a", "a b", "a\n", &"a".repeat(65)] {
            let refusal = refused(json!({"hostname": bad, "csr": "c"}));
            assert_eq!(refusal, RequestRefusal::InvalidHostname, "{bad:?}");
        }
    }

    #[test]
    fn odd_addresses_ports_and_words_are_ignored() {
        for (key, bad) in [
            ("ip", json!("999.1.1.1")),
            ("ip", json!("web01")),
            ("port", json!(0)),
            ("port", json!(65_536)),
            ("port", json!("https")),
            ("lookup_by", json!("dns")),
        ] {
            let mut fields = json!({"hostname": "a", "csr": "c"});
            fields[key] = bad;
            let request = parse_request(fields.to_string().as_bytes()).unwrap();
            assert_eq!(
                (request.ip, request.port, request.lookup_by),
                (None, None, None)
            );
        }
        assert_eq!(parse_ip("::ffff:192.0.2.1"), parse_ip("192.0.2.1"));
    }

    #[test]
    fn a_broken_offer_of_the_bound_code_is_not_taken_for_an_old_agent() {
        for commit in [json!(null), json!("abc"), json!("g".repeat(64))] {
            let fields = json!({"hostname": "a", "csr": "c", "pair_version": 2, "commit": commit});
            assert_eq!(refused(fields), RequestRefusal::Invalid);
        }
    }

    #[test]
    fn acknowledgements_of_both_kinds_are_told_apart() {
        let nonce = Nonce::from_bytes([7; 32]);
        let basic = to_json(&Pending::new("00ff", None));
        assert_eq!(
            String::from_utf8(basic.clone()).unwrap(),
            r#"{"status":"pending","reqid":"00ff"}"#
        );
        let reqid = ReqId::new("00ff").unwrap();
        assert_eq!(
            parse_acknowledgement(&basic),
            Ok(Acknowledgement::Basic {
                reqid: reqid.clone()
            })
        );
        let bound = to_json(&Pending::new("00ff", Some(&nonce)));
        assert_eq!(
            parse_acknowledgement(&bound),
            Ok(Acknowledgement::Bound {
                reqid,
                dispatcher_nonce: nonce
            })
        );
        assert_eq!(
            parse_acknowledgement(&to_json(&Refusal::error("pairing queue full"))),
            Ok(Acknowledgement::Refused("pairing queue full".to_owned()))
        );
    }

    #[test]
    fn errors_of_the_agent_carry_the_texts_of_the_original() {
        let text = |body: &[u8]| parse_acknowledgement(body).unwrap_err().to_string();
        assert_eq!(text(b""), "empty acknowledgement body");
        assert!(text(b"<html>").starts_with("bad JSON in acknowledgement: "));
        assert_eq!(text(b"{}"), "unexpected acknowledgement: no status");
        assert_eq!(
            text(br#"{"status":"pending","reqid":"a","pair_version":2}"#),
            "unexpected acknowledgement: no dispatcher_nonce"
        );
        assert_eq!(
            parse_verdict(b"").unwrap_err().to_string(),
            "empty result body"
        );
        assert!(
            parse_verdict(b"x")
                .unwrap_err()
                .to_string()
                .starts_with("bad JSON in result: ")
        );
        assert!(parse_verdict(br#"{"status":"approved"}"#).is_err());
    }

    #[test]
    fn a_denial_without_a_reason_has_one_and_no_reason_reaches_a_terminal_raw() {
        assert_eq!(
            parse_verdict(b"{}"),
            Ok(Verdict::Denied("denied".to_owned()))
        );
        assert_eq!(
            parse_verdict(br#"{"status":"denied","reason":"a\u001b[2Jb"}"#),
            Ok(Verdict::Denied("a [2Jb".to_owned()))
        );
    }

    proptest! {
        #[test]
        fn no_body_breaks_the_parsers(body in proptest::collection::vec(any::<u8>(), 0..300), text in ".*") {
            let _ = (parse_request(&body), parse_acknowledgement(&body), parse_verdict(&body));
            let fields = json!({"hostname": text, "csr": text, "nonce": text, "ip": text, "port": text}).to_string();
            if let Ok(request) = parse_request(fields.as_bytes()) {
                prop_assert_eq!(request.csr, text);
            }
        }

        #[test]
        fn our_own_requests_are_understood(port in 1_u16.., nonce: [u8; 32], csr in "[ -~]{1,80}\n") {
            let exchange = super::super::code::Exchange { csr_pem: &csr, server_cert: &[1; 32] };
            let commitment = Commitment::new(&exchange, &Nonce::from_bytes(nonce));
            let sent = PairRequest {
                hostname: "a".to_owned(), csr: csr.clone(), nonce: "n".to_owned(), ip: parse_ip("2001:db8::1"), port,
                lookup_by: Some("hostname"), pair_version: 2, commit: commitment.to_hex(),
            };
            let received = parse_request(&to_json(&sent)).unwrap();
            prop_assert_eq!(received.csr, csr);
            prop_assert_eq!(received.port, Some(port));
            prop_assert_eq!(received.ip, parse_ip("2001:db8::1"));
            prop_assert_eq!(received.commitment, Some(commitment));
        }
    }
}
