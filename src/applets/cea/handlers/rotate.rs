//! `POST /rotate-serial`: the caller changes under which serials it is trusted (spec/agent.md 9.6, 14).
//!
//! Whose serial it is follows from the certificate of the caller alone. What reaches the map is a [`Serial`], never text.

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
use crate::core::trust;
use crate::core::types::{Secret, Serial};

pub(super) async fn handle(
    State(agent): State<Arc<Agent>>,
    caller: Caller,
    Payload(body): Payload,
) -> Response {
    let fields = Fields::of(&body);
    let text = fields.text("serial");
    if text.is_empty() {
        return failed("serial required");
    }
    let action = fields.given("action").unwrap_or_else(|| "add".to_owned());
    let add = match action.as_str() {
        "add" => true,
        "remove" => false,
        other => return failed(&format!("invalid action '{other}'")),
    };
    let token = Secret::new(fields.text("token"));
    let told = vec![action.clone(), text.clone()];
    if let Err(refusal) = permission::ask(&caller, HookAction::Rotate, told, token).await {
        return refusal;
    }

    let dispatcher = caller.dispatcher.clone();
    let peer = caller.peer.address.clone();
    let done = match Serial::parse_hex(&text) {
        Ok(serial) if !serial.as_bytes().is_empty() => {
            to_the_end(change(agent, caller, serial, add)).await
        }
        // Zero is no serial of a certificate (RFC 5280 4.1.2.2).
        _ => Err("invalid serial".to_owned()),
    };
    if let Err(error) = done {
        Action::new("rotate-fail")
            .field("DISPATCHER", &dispatcher)
            .field("ERROR", &error)
            .err();
        return failed(&error);
    }
    Action::new("rotate")
        .field("DISPATCHER", &dispatcher)
        .field("PEER", &peer)
        .field("SERIAL", &text)
        .field("SERIAL_ACTION", &action)
        .info();
    reply::ok(&json!({
        "status": "ok",
        "action": action,
        "serial": text,
        "dispatcher": dispatcher.as_str(),
    }))
}

async fn change(
    agent: Arc<Agent>,
    caller: Caller,
    serial: Serial,
    add: bool,
) -> Result<(), String> {
    let _one_at_a_time = agent.changes.lock().await;
    let snapshot = agent.snapshot();
    if add && snapshot.revoked.contains(&serial) {
        return Err("serial is revoked".to_owned());
    }
    let map = snapshot.config.trusted_dispatchers_path.clone();
    let (id, who) = (caller.dispatcher.clone(), caller.peer.identity.clone());
    on_disk(move || {
        if add {
            trust::add(&map, &serial, &id)
        } else {
            trust::remove_but_keep(&map, &serial, &id, &who)
        }
    })
    .await?;
    agent.refresh_trust().map_err(|e| e.to_string())?;
    if add {
        agent.note_time(&caller).await;
    }
    Ok(())
}
