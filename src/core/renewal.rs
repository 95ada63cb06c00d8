//! Renewing the certificate of an agent over its live connection, with its own key (spec/dispatcher.md 15, spec/agent.md 15).
//!
//! ```text
//! answered a ping -> due? -> /renew (its request) -> check, sign -> /renew-complete -> /ping: which certificate does it show now?
//!                                                                                       the new one: live     the old one: staged
//! ```
//!
//! Failure points: nothing is lost at any of them. A certificate that was signed and not delivered is worth nothing to anybody but the holder
//! of the key; one that was delivered is found at the next contact. So the registry follows what the agent *shows*, never what was sent.
//! An agent of the original keeps what it gets for its next start, and says `staged` until then.

use serde_json::{Value, json};

use crate::core::client::fleet::{self, Fleet};
use crate::core::clock::Clock;
use crate::core::durable::crash;
use crate::core::logging::Action;
use crate::core::pki::ca::CaError;
use crate::core::pki::csr::CsrError;
use crate::core::pki::{Authority, CertRequest, Certificate, keys};
use crate::core::registry::{AgentRecord, Target};
use crate::core::task;
use crate::core::types::{AgentName, InvalidValue, ReqId};

const DAY: i64 = 86_400;

/// Why a certificate was not renewed. The agent goes on with the one it has.
#[derive(Debug, thiserror::Error)]
pub enum RenewalError {
    #[error("renew request failed: {0}")]
    Request(String),
    #[error("no CSR in renew response")]
    NoCsr,
    #[error(transparent)]
    Csr(#[from] CsrError),
    #[error(
        "CSR subject CN does not match the expected identity: the agent asks for '{}', its certificate is for '{expected}' (if it was renamed: ced edit-agent NAME --cert-name CN, or pair it again)",
        .asked.escape_debug()
    )]
    OtherName { asked: String, expected: String },
    #[error(
        "the agent asks for a certificate for another key than the one it has shown: pair it again"
    )]
    OtherKey,
    #[error(transparent)]
    Name(#[from] InvalidValue),
    #[error(transparent)]
    Sign(#[from] CaError),
    #[error("the signing task was lost")]
    Lost,
    #[error("renew-complete failed: {0}")]
    Complete(String),
    #[error("the system gives no random bytes for a request id")]
    Random,
}

/// How far a renewal has come.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Renewed {
    /// The agent shows the new certificate.
    Live(Box<Certificate>),
    /// It has the new certificate and adopts it at its next start.
    Staged(Box<Certificate>),
}

/// Whether a certificate that an agent shows should be renewed: more than half of its life is over, or another CA signs now. One that
/// waits for its adoption is not due again. Pure.
pub fn is_due(shown: &Certificate, staged: bool, signing: &Certificate, now: i64) -> bool {
    !staged && (is_past_half_life(shown, now) || shown.issuer_der() != signing.subject_der())
}

/// Whether more than half of a certificate's life is over. Pure.
pub fn is_past_half_life(shown: &Certificate, now: i64) -> bool {
    // Ours begin a day early; that day is no part of their life.
    let life = shown.not_after - shown.not_before - DAY;
    let left = shown.not_after - now;
    left.saturating_mul(2) < life
}

/// Renews one agent's certificate. `shown` is the one that it has just presented.
///
/// # Errors
/// See [`RenewalError`].
pub async fn renew<F: Fleet>(
    fleet: &F,
    target: &Target,
    shown: &Certificate,
    authority: std::sync::Arc<Authority>,
    days: u32,
) -> Result<Renewed, RenewalError> {
    let reqid = ReqId::generate().map_err(|_| RenewalError::Random)?;
    let line = |name| Action::new(name).field("TARGET", target.authority());
    line("renew")
        .field("REQID", &reqid)
        .field("STATUS", "starting")
        .info();
    let reply = fleet
        .post(target.clone(), "/renew", json!({ "reqid": reqid.as_str() }))
        .await;
    let answer = fleet::accepted(&reply).map_err(RenewalError::Request)?;
    let csr = answer.body.get("csr").and_then(Value::as_str);
    let request = CertRequest::parse_pem(csr.ok_or(RenewalError::NoCsr)?)?;
    let name = judge(&request, &target.record, shown)?;

    let replaced = shown.clone();
    let ca = authority.certificate().to_pem();
    // Waits for the lock on `ca.serial`.
    let power = crash::Line::here();
    let signed = task::spawn_blocking(move || {
        power.feed(|| authority.renew_agent(&request, &name, &replaced, days))
    });
    let certificate = signed.await.map_err(|_| RenewalError::Lost)??;
    let body = json!({ "cert": certificate.to_pem(), "ca": ca, "reqid": reqid.as_str() });
    let reply = fleet.post(target.clone(), "/renew-complete", body).await;
    fleet::accepted(&reply).map_err(RenewalError::Complete)?;

    let reply = fleet
        .post(target.clone(), "/ping", json!({ "reqid": reqid.as_str() }))
        .await;
    let live = reply.is_ok_and(|answer| answer.peer.serial == certificate.serial);
    line("renew-complete")
        .field("EXPIRY", certificate.expiry_text())
        .field("REQID", &reqid)
        .field("STATUS", if live { "live" } else { "staged" })
        .info();
    let certificate = Box::new(certificate);
    Ok(if live {
        Renewed::Live(certificate)
    } else {
        Renewed::Staged(certificate)
    })
}

/// Whether a request may be signed: for the name that the agent's certificate has, and for the key that it has just proved to hold.
fn judge(
    request: &CertRequest,
    record: &AgentRecord,
    shown: &Certificate,
) -> Result<AgentName, RenewalError> {
    let expected = record.expected_cn();
    if request.cn != expected {
        return Err(RenewalError::OtherName {
            asked: request.cn.chars().take(80).collect(),
            expected: expected.to_owned(),
        });
    }
    if request.spki() != shown.spki {
        return Err(RenewalError::OtherKey);
    }
    Ok(AgentName::new(expected)?)
}

/// Writes into a record what a contact has shown: whose certificate it is, until when, and what the agent says of itself.
pub fn learn(
    record: &mut AgentRecord,
    shown: &Certificate,
    ping: Option<&serde_json::Map<String, Value>>,
) {
    record.expiry = shown.expiry_text();
    record.cert_serial = Some(shown.serial.to_string());
    record.cert_spki = Some(keys::spki_sha256(&shown.spki));
    let Some(ping) = ping else { return };
    let text = |name: &str| ping.get(name).and_then(Value::as_str).map(str::to_owned);
    if let Some(version) = text("version").filter(|v| v.len() <= 64) {
        record.version = Some(version);
    }
    if ping.get("staged").and_then(Value::as_bool) == Some(false) {
        record.staged_expiry = None;
    }
    record.trusted_cas = match ping.get("cas") {
        Some(Value::Array(cas)) => cas
            .iter()
            .filter_map(Value::as_str)
            .filter(|ca| ca.len() == 64)
            .take(8)
            .map(str::to_owned)
            .collect(),
        _ => Vec::new(),
    };
    // A host that was restored from an older backup has forgotten some. Which ones a number does not tell, as other dispatchers have sent
    // it theirs: it gets all of ours again.
    if let Some(count) = ping.get("revocations").and_then(Value::as_u64)
        && count < record.revocations
    {
        record.revocations = 0;
    }
}

/// Fingerprint of the CA that issued a certificate, among those that we trust.
pub fn issuer_of(shown: &Certificate, cas: &[Certificate], clock: &Clock) -> Option<String> {
    let now = clock.now();
    cas.iter()
        .find(|ca| shown.verify_issued_by(ca, now).is_ok())
        .map(Certificate::fingerprint)
}
