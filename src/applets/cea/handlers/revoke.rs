//! `POST /revoke` `{"serials":[hex...],"reqid"}`: certificates that are refused from now on, whatever the chain says. Ours; an agent of the
//! original answers 404 `not found`.
//!
//! The list grows only, and says the same twice. It lies beside the agent's state; the one of the administrator below `/etc` is not touched.
//! The hook is told how many serials there are, not which: thousands of them fit into no environment.

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use serde_json::json;

use super::permission::{self, failed};
use crate::applets::cea::change::{on_disk, to_the_end};
use crate::applets::cea::gate::{Caller, Payload};
use crate::applets::cea::lenient::Fields;
use crate::applets::cea::reply;
use crate::applets::cea::state::Agent;
use crate::core::authhook::HookAction;
use crate::core::logging::Action;
use crate::core::trust::{self, TrustError};
use crate::core::types::{Secret, Serial};

/// Most serials of one request.
const MAX_SERIALS: usize = 10_000;

pub(super) async fn handle(
    State(agent): State<Arc<Agent>>,
    caller: Caller,
    Payload(body): Payload,
) -> Response {
    let fields = Fields::of(&body);
    let (reqid, serials) = (fields.text("reqid"), serials_of(&fields));
    let count = serials.as_ref().map_or(0, BTreeSet::len);
    let told = vec![count.to_string()];
    let token = Secret::new(fields.text("token"));
    if let Err(refusal) = permission::ask(&caller, HookAction::Revoke, told, token).await {
        return refusal;
    }
    let (dispatcher, peer) = (caller.dispatcher.clone(), caller.peer.address.clone());
    let line = |name| {
        Action::new(name)
            .field("COUNT", count)
            .field("DISPATCHER", &dispatcher)
            .field("PEER", &peer)
    };
    let done = match serials {
        Ok(serials) => to_the_end(change(agent, caller, serials)).await,
        Err(error) => Err(error),
    };
    match done {
        Ok(revocations) => {
            line("revoke").info();
            reply::ok(&json!({ "status": "ok", "reqid": reqid, "revocations": revocations }))
        }
        Err(error) => {
            line("revoke-fail").field("ERROR", &error).err();
            failed(&error)
        }
    }
}

/// All of them or nothing.
fn serials_of(fields: &Fields) -> Result<BTreeSet<Serial>, String> {
    let texts = fields
        .strings("serials")
        .ok_or("serials must be an array of strings")?;
    if texts.len() > MAX_SERIALS {
        return Err(format!("at most {MAX_SERIALS} serials at once"));
    }
    texts
        .into_iter()
        .map(|text| Serial::parse_hex(text).map_err(|e| e.to_string()))
        .collect()
}

/// The number of serials in the list afterwards.
async fn change(
    agent: Arc<Agent>,
    caller: Caller,
    serials: BTreeSet<Serial>,
) -> Result<usize, String> {
    if serials.contains(&caller.peer.identity.serial) {
        return Err("serial in use by this connection".to_owned());
    }
    let _one_at_a_time = agent.changes.lock().await;
    let snapshot = agent.snapshot();
    let (config, trusted) = (snapshot.config.clone(), snapshot.trust.clone());
    let (id, who) = (caller.dispatcher.clone(), caller.peer.identity.clone());
    on_disk(move || {
        trust::push(&config.pushed_revocations(), &serials)?;
        // What is revoked need not stand in the map either; only what is the caller's own, and not what it is known by.
        let map = &config.trusted_dispatchers_path;
        for entry in trusted.entries().iter().filter(|e| e.id == id) {
            let Ok(serial) = Serial::parse_hex(&entry.serial) else {
                continue;
            };
            if serials.contains(&serial) {
                match trust::remove_but_keep(map, &serial, &id, &who) {
                    Ok(_) | Err(TrustError::InUse { .. } | TrustError::NotOwned { .. }) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    })
    .await?;
    agent.refresh_revoked().map_err(|e| e.to_string())?;
    agent.refresh_trust().map_err(|e| e.to_string())?;
    Ok(agent.snapshot().revoked.pushed.len())
}
