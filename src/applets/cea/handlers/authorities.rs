//! `POST /ca`: a dispatcher changes which CAs this host believes. Ours; an agent of the original answers 404 `not found`.
//!
//! | request | does |
//! |---|---|
//! | `{"action":"add","ca":PEM,"endorsement":PEM,"reqid"}` | believes one more CA, for which one that is believed already speaks |
//! | `{"action":"remove","fingerprint":SHA-256 in hex,"reqid"}` | believes one less; never the last one, nor one that the host or the caller needs |
//!
//! Both may be repeated. The agent's user can seldom write `ca.crt`, so the CAs are staged with what speaks for them, and judged again at every
//! start and by root.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use serde_json::json;

use super::permission::{self, failed};
use crate::applets::cea::change::{on_disk, to_the_end};
use crate::applets::cea::gate::{Caller, Payload};
use crate::applets::cea::lenient::Fields;
use crate::applets::cea::state::{Agent, Snapshot};
use crate::applets::cea::{promote, reply};
use crate::core::authhook::HookAction;
use crate::core::durable;
use crate::core::logging::Action;
use crate::core::pki::Certificate;
use crate::core::pki::succession::Trusted;
use crate::core::types::Secret;

/// Longest certificate that is taken, bytes of PEM.
const MAX_PEM: usize = 64 * 1024;

/// What is asked for.
enum Order {
    Add {
        ca: Box<Certificate>,
        endorsement: Box<Certificate>,
    },
    Remove {
        fingerprint: String,
    },
}

impl Order {
    fn of(fields: &Fields) -> Result<Self, String> {
        let certificate = |key: &str| {
            let text = fields.text(key);
            if text.is_empty() {
                return Err(format!("{key} required"));
            }
            if text.len() > MAX_PEM {
                return Err(format!("{key} is longer than {MAX_PEM} bytes"));
            }
            match Certificate::all_from_pem(text.as_bytes()) {
                Ok(mut all) if all.len() == 1 => Ok(all.swap_remove(0)),
                Ok(_) => Err(format!("{key} must be one certificate")),
                Err(error) => Err(format!("{key}: {error}")),
            }
        };
        match fields.text("action").as_str() {
            "add" => Ok(Self::Add {
                ca: Box::new(certificate("ca")?),
                endorsement: Box::new(certificate("endorsement")?),
            }),
            "remove" => {
                let text = fields.text("fingerprint").replace(':', "").to_lowercase();
                let hex = text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit());
                hex.then_some(Self::Remove { fingerprint: text })
                    .ok_or_else(|| "fingerprint must be SHA-256 in hex".to_owned())
            }
            other => Err(format!("invalid action '{other}'")),
        }
    }

    fn words(&self) -> [String; 2] {
        match self {
            Self::Add { ca, .. } => ["add".to_owned(), ca.fingerprint()],
            Self::Remove { fingerprint } => ["remove".to_owned(), fingerprint.clone()],
        }
    }

    /// The CAs that shall be in force afterwards. Pure.
    fn apply(&self, snapshot: &Snapshot, caller: &Certificate) -> Result<Trusted, String> {
        let trusted = &snapshot.material.trusted;
        match self {
            Self::Add { ca, endorsement } => trusted
                .with(ca, endorsement, snapshot.clock.now())
                .map_err(|e| e.to_string()),
            Self::Remove { fingerprint } => {
                let next = trusted.without(fingerprint).map_err(|e| e.to_string())?;
                let orphaned = |leaf: &Certificate| {
                    !next.cas.iter().any(|ca| leaf.verify_signed_by(ca).is_ok())
                };
                if orphaned(snapshot.material.identity.certificate()) {
                    return Err("this CA has issued the certificate of the agent".to_owned());
                }
                if orphaned(caller) {
                    return Err("this CA has issued the certificate of this connection".to_owned());
                }
                Ok(next)
            }
        }
    }
}

pub(super) async fn handle(
    State(agent): State<Arc<Agent>>,
    caller: Caller,
    Payload(body): Payload,
) -> Response {
    let fields = Fields::of(&body);
    let reqid = fields.text("reqid");
    let order = match Order::of(&fields) {
        Ok(order) => order,
        Err(error) => {
            Action::new("ca-change")
                .field("DISPATCHER", &caller.dispatcher)
                .field("ERROR", &error)
                .field("PEER", &caller.peer.address)
                .err();
            return failed(&error);
        }
    };
    let [action, fingerprint] = order.words();
    let told = vec![action.clone(), fingerprint.clone()];
    let token = Secret::new(fields.text("token"));
    if let Err(refusal) = permission::ask(&caller, HookAction::Ca, told, token).await {
        return refusal;
    }
    let line = Action::new("ca-change")
        .field("CA", fingerprint)
        .field("CA_ACTION", action)
        .field("DISPATCHER", &caller.dispatcher)
        .field("PEER", &caller.peer.address);
    match to_the_end(change(agent, caller, order)).await {
        Ok(cas) => {
            line.field("STATUS", "in-force").info();
            reply::ok(&json!({ "status": "ok", "reqid": reqid, "cas": cas, "live": true }))
        }
        Err(error) => {
            line.field("ERROR", &error).err();
            failed(&error)
        }
    }
}

/// Fingerprints of the CAs in force afterwards.
async fn change(agent: Arc<Agent>, caller: Caller, order: Order) -> Result<Vec<String>, String> {
    let _one_at_a_time = agent.changes.lock().await;
    let snapshot = agent.snapshot();
    let next = order.apply(&snapshot, &caller.peer.certificate)?;
    if next == snapshot.material.trusted {
        return Ok(next.fingerprints());
    }
    let (config, clock) = (snapshot.config.clone(), snapshot.clock.clone());
    let (path, text) = (config.staged_ca(), next.to_pem());
    on_disk(move || {
        durable::replace(&path, text.as_bytes(), 0o640)?;
        promote::where_we_may(&config, &clock);
        Ok::<_, durable::DurableError>(())
    })
    .await
    .map_err(|e| format!("could not stage the CAs: {e}"))?;
    let not_in_force = |why: &str| format!("the CAs could not be put in force: {why}");
    agent.refresh_material().map_err(|e| not_in_force(&e))?;
    let now = agent.snapshot().material.trusted.fingerprints();
    if now != next.fingerprints() {
        return Err(not_in_force("the files have been changed meanwhile"));
    }
    agent.note_time(&caller).await;
    Ok(now)
}
