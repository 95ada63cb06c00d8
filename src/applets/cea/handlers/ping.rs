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
    let snapshot = &caller.snapshot;
    let reqid = lenient::reqid_of(&body);
    Action::new("ping")
        .field("DISPATCHER", &caller.dispatcher)
        .field("PEER", &caller.peer.address)
        .field("REQID", &reqid)
        .info();
    reply::ok(&PingReply {
        status: "ok",
        host: agent.host().await.to_owned(),
        version: VERSION.to_owned(),
        expiry: snapshot.material.identity.certificate().expiry_text(),
        // A Perl dispatcher does not renew while this is true: a staged certificate that is used already, or never will be, must not keep it.
        staged: snapshot.material.waiting,
        reqid,
        revocations: snapshot.revoked.pushed.len(),
        cas: snapshot.material.trusted.fingerprints(),
        time: snapshot.clock.now(),
    })
}
