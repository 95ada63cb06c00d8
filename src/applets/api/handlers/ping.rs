//! `POST /ping` (spec/api.md 5.3). Nothing is stored and nothing renewed.

use std::sync::Arc;

use axum::response::Response;
use serde_json::{Map, Value, json};

use super::common;
use crate::applets::api::call::Call;
use crate::applets::api::fields::PingRequest;
use crate::applets::api::reply;
use crate::core::authhook::{HookAction, HookContext};
use crate::core::dispatch::{HostResult, Job, ask_all, objects};

pub(in crate::applets::api) async fn ping(call: Call) -> Response {
    answer(call).await.unwrap_or_else(|refusal| refusal)
}

async fn answer(call: Call) -> Result<Response, Response> {
    let request =
        PingRequest::read(&call.object()?).map_err(|detail| reply::bad_request(&detail))?;
    let hosts = request.hosts.0;
    let asked = HookContext {
        hosts: hosts.clone(),
        username: request.username,
        token: request.token,
        ..call.asks(HookAction::Ping)
    };
    call.authorise(&asked).await?;
    let targets = common::resolve(&call, hosts).await?;
    let reqid = common::new_reqid()?;
    let place = common::begin(&call)?;
    let client = call.api.client().await;
    let work = async move {
        let _place = place;
        let mut told = |_: usize, result: &Arc<HostResult>| objects::log_ping(result, &reqid);
        let slots = &call.api.exchanges;
        let results = ask_all(&client, targets, slots, &Job::ping(&reqid), &mut told).await;
        call.api.answered(&results);
        let objects: Vec<Map<String, Value>> = results
            .iter()
            .map(|result| objects::ping_object(result, &reqid))
            .collect();
        reply::ok(&json!({"ok": true, "results": objects}))
    };
    Ok(common::see_through(work).await)
}
