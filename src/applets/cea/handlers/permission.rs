//! The host's own hook has a say in what dispatchers change (spec/agent.md 10).

use axum::response::Response;
use hyper::StatusCode;
use serde_json::json;

use crate::applets::cea::gate::Caller;
use crate::applets::cea::reply;
use crate::core::authhook::{self, Decision, HookAction, HookContext};
use crate::core::logging::Action;
use crate::core::metrics::AgentRefusal;
use crate::core::types::Secret;
use crate::core::wire::errors;

/// Asks the hook.
///
/// # Errors
/// It says no: 403, and a line `<action>-deny`.
pub(super) async fn ask(
    caller: &Caller,
    action: HookAction,
    args: Vec<String>,
    token: Secret<String>,
) -> Result<(), Response> {
    let context = HookContext {
        args,
        token,
        source_ip: caller.peer.address.to_string(),
        dispatcher: caller.dispatcher.to_string(),
        dispatcher_serial: caller.peer.serial(),
        ..HookContext::new(action)
    };
    let snapshot = &caller.snapshot;
    let hook = snapshot.config.auth_hook.as_ref();
    match authhook::authorise(hook, authhook::Caller::Agent, &context, &snapshot.clock).await {
        Decision::Allowed => Ok(()),
        Decision::Denied { reason, .. } => {
            let line = match action {
                HookAction::Revoke => "revoke-deny",
                HookAction::Ca => "ca-deny",
                _ => "rotate-deny",
            };
            Action::new(line)
                .field("DISPATCHER", &caller.dispatcher)
                .field("PEER", &caller.peer.address)
                .field("REASON", &reason)
                .warning();
            caller.metrics.refused(AgentRefusal::Hook);
            let error = format!("{}: {reason}", errors::NOT_AUTHORISED);
            Err(reply::error(StatusCode::FORBIDDEN, &error))
        }
    }
}

/// `200` with `{"status":"error","error":text}`: what the original answers when a change cannot be made.
pub(super) fn failed(error: &str) -> Response {
    reply::ok(&json!({ "status": "error", "error": error }))
}
