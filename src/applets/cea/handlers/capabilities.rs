//! `GET /capabilities` (spec/agent.md 9.4).

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use hyper::StatusCode;

use crate::applets::VERSION;
use crate::applets::cea::gate::Caller;
use crate::applets::cea::state::{Agent, Snapshot};
use crate::applets::cea::{reply, scripts};
use crate::core::authhook::{self, Decision, HookAction, HookContext};
use crate::core::config::ScriptEntry;
use crate::core::logging::Action;
use crate::core::metrics::AgentRefusal;
use crate::core::profile;
use crate::core::types::ScriptName;
use crate::core::wire::{Capabilities, ScriptCapability, errors};

pub(super) async fn handle(State(agent): State<Arc<Agent>>, caller: Caller) -> Response {
    let snapshot = &caller.snapshot;
    let context = HookContext {
        source_ip: caller.peer.address.to_string(),
        dispatcher: caller.dispatcher.to_string(),
        dispatcher_serial: caller.peer.serial(),
        ..HookContext::new(HookAction::Discovery)
    };
    let hook = snapshot.config.auth_hook.as_ref();
    let decision =
        authhook::authorise(hook, authhook::Caller::Agent, &context, &snapshot.clock).await;
    if let Decision::Denied { reason, .. } = decision {
        Action::new("capabilities-deny")
            .field("DISPATCHER", &caller.dispatcher)
            .field("PEER", &caller.peer.address)
            .field("REASON", reason)
            .warning();
        caller.metrics.refused(AgentRefusal::Hook);
        return reply::error(StatusCode::FORBIDDEN, errors::NOT_AUTHORISED);
    }

    let scripts: Vec<_> = snapshot
        .allowlist
        .scripts
        .iter()
        .filter_map(|(name, entry)| capability(snapshot, name, entry))
        .collect();
    Action::new("capabilities")
        .field("DISPATCHER", &caller.dispatcher)
        .field("PEER", &caller.peer.address)
        .field("SCRIPTS", scripts.len())
        .info();
    let isolation = match &snapshot.config.executor_socket {
        Some(socket) => agent.isolation.of(socket).await,
        None => None,
    };
    reply::ok(&Capabilities {
        status: "ok",
        host: agent.host().await.to_owned(),
        version: VERSION.to_owned(),
        tags: snapshot.config.tags.clone(),
        scripts,
        isolation,
    })
}

/// `None` for a script that `script_dirs` would refuse anyway.
fn capability(
    snapshot: &Snapshot,
    name: &ScriptName,
    entry: &ScriptEntry,
) -> Option<ScriptCapability> {
    profile::resolve(name.as_str(), &snapshot.allowlist, &snapshot.config).ok()?;
    let sidecar = snapshot.sidecars.get(name);
    Some(ScriptCapability {
        name: name.to_string(),
        path: entry.path.to_string(),
        executable: scripts::is_executable(entry, &snapshot.config),
        profile: entry.profile.to_string(),
        // Only the executor looks at it.
        digest: entry.annotations.digest.is_some() && snapshot.config.executor_socket.is_some(),
        schema: sidecar.map(|s| s.body.clone()),
        schema_version: sidecar.map(|s| s.version.clone()),
    })
}
