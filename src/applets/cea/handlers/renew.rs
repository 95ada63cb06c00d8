//! `POST /renew` and `POST /renew-complete`: a dispatcher renews the agent's certificate (spec/agent.md 9.7, 9.8, 15). For trusted dispatchers
//! only; in the original every peer of the CA could ask.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use serde_json::json;

use super::permission::failed;
use crate::applets::cea::change::{on_disk, to_the_end};
use crate::applets::cea::gate::{Caller, Payload};
use crate::applets::cea::lenient::{self, Fields};
use crate::applets::cea::state::{Agent, Snapshot};
use crate::applets::cea::{promote, reply};
use crate::core::durable;
use crate::core::logging::Action;
use crate::core::pki::renewal::{self, RenewalError};
use crate::core::pki::{Certificate, csr};
use crate::core::types::AgentName;

/// Longest certificate that is taken, bytes of PEM.
const MAX_PEM: usize = 64 * 1024;

/// A request for the key and the name that are in use.
pub(super) async fn begin(caller: Caller, Payload(body): Payload) -> Response {
    let reqid = lenient::reqid_of(&body);
    let line = || {
        Action::new("renew")
            .field("PEER", &caller.peer.address)
            .field("REQID", &reqid)
    };
    match request(&caller.snapshot) {
        Ok(csr) => {
            line().field("STATUS", "csr-generated").info();
            reply::ok(&json!({ "status": "ok", "csr": csr, "reqid": reqid }))
        }
        Err(error) => {
            line().field("ERROR", error).err();
            failed(error)
        }
    }
}

/// The name is that of the certificate, by which the dispatcher knows this host: its own idea of its name may have changed since.
fn request(snapshot: &Snapshot) -> Result<String, &'static str> {
    if !snapshot.config.key.is_file() {
        return Err("agent key not available");
    }
    let identity = &snapshot.material.identity;
    let name = identity.certificate().subject_cn.as_deref();
    name.and_then(|name| AgentName::new(name).ok())
        .and_then(|name| csr::create_pem(identity.key(), &name).ok())
        .ok_or("could not generate CSR")
}

/// Takes the certificate that was made of it.
pub(super) async fn complete(
    State(agent): State<Arc<Agent>>,
    caller: Caller,
    Payload(body): Payload,
) -> Response {
    let fields = Fields::of(&body);
    let (pem, reqid) = (fields.text("cert"), fields.text("reqid"));
    let peer = caller.peer.address.clone();
    let done = if pem.is_empty() {
        Err("cert required".to_owned())
    } else {
        to_the_end(install(agent, caller, pem)).await
    };
    let line = Action::new("renew-complete")
        .field("PEER", &peer)
        .field("REQID", &reqid);
    match done {
        Ok(()) => {
            line.field("STATUS", "cert-staged").info();
            reply::ok(&json!({ "status": "ok", "reqid": reqid, "staged": true, "live": true }))
        }
        Err(error) => {
            line.field("ERROR", &error).err();
            failed(&error)
        }
    }
}

async fn install(agent: Arc<Agent>, caller: Caller, pem: String) -> Result<(), String> {
    let new = Some(pem)
        .filter(|pem| pem.len() <= MAX_PEM)
        .and_then(|pem| Certificate::from_pem(pem.as_bytes()).ok())
        .ok_or_else(|| RenewalError::Issuer.to_string())?;

    let _one_at_a_time = agent.changes.lock().await;
    let snapshot = agent.snapshot();
    let (config, clock) = (snapshot.config.clone(), snapshot.clock.clone());
    let material = &snapshot.material;
    let in_use = material.identity.certificate();
    renewal::judge(
        &new,
        in_use,
        &material.trusted.cas,
        |serial| snapshot.revoked.contains(serial),
        clock.now(),
    )
    .map_err(|e| e.to_string())?;
    if new.der == in_use.der {
        return Ok(());
    }

    let (text, staged) = (new.to_pem(), config.cert_staging_path.clone());
    on_disk(move || durable::replace(&staged, text.as_bytes(), 0o640))
        .await
        .map_err(|e| format!("could not stage cert: {e}"))?;
    on_disk(move || {
        promote::where_we_may(&config, &clock);
        Ok::<_, String>(())
    })
    .await?;
    let not_in_force = |why: &str| format!("the renewed cert could not be put in force: {why}");
    agent.refresh_material().map_err(|e| not_in_force(&e))?;
    if agent.snapshot().material.identity.certificate().der != new.der {
        return Err(not_in_force("the files have been changed meanwhile"));
    }
    agent.note_time(&caller).await;
    Ok(())
}
