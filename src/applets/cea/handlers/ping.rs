//! `POST /ping` (spec/agent.md 9.3).

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;

use crate::applets::VERSION;
use crate::applets::cea::gate::{Caller, Payload};
use crate::applets::cea::state::Agent;
use crate::applets::cea::{lenient, reply};
use crate::core::logging::Action;
use crate::core::wire::PingReply;

pub(super) async fn handle(
    State(agent): State<Arc<Agent>>,
    caller: Caller,
    Payload(body): Payload,
) -> Response {
    let config = &caller.snapshot.config;
    let reqid = lenient::reqid_of(&body);
    // The file, not the certificate in use: the dispatcher asks whether a renewal has reached this host.
    let expiry = agent.expiry_of(&config.cert);
    Action::new("ping")
        .field("DISPATCHER", &caller.dispatcher)
        .field("PEER", &caller.peer.address)
        .field("REQID", &reqid)
        .info();
    reply::ok(&PingReply {
        status: "ok",
        host: agent.host().await.to_owned(),
        version: VERSION.to_owned(),
        expiry,
        staged: config.cert_staging_path.is_file(),
        reqid,
    })
}
