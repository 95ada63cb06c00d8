//! `GET /metrics`: behind gate 1 and gate 2 (action `metrics`, token of the header), for it tells names of hosts and scripts.

use std::sync::atomic::Ordering;

use axum::response::Response;
use hyper::StatusCode;
use hyper::header::{CONTENT_TYPE, HeaderValue};

use super::common;
use crate::applets::api::call::Call;
use crate::applets::api::reply;
use crate::applets::api::routes::METRICS_TYPE;
use crate::core::authhook::{HookAction, HookContext};
use crate::core::dispatch::blocking;
use crate::core::metrics;

pub(in crate::applets::api) async fn metrics(call: Call) -> Response {
    answer(call).await.unwrap_or_else(|refusal| refusal)
}

async fn answer(call: Call) -> Result<Response, Response> {
    if !call.snapshot.config.api.metrics {
        return Err(reply::not_found("metrics are switched off (api_metrics)"));
    }
    let asked = HookContext {
        token: call.bearer.clone(),
        ..call.asks(HookAction::Metrics)
    };
    call.authorise(&asked).await?;
    // Reads the registry and the records: one at a time.
    let Ok(_turn) = call.api.listing.acquire().await else {
        return Err(common::server_error("the server is about to stop"));
    };
    let (config, clock) = (call.snapshot.config.clone(), call.snapshot.clock.clone());
    let fleet = blocking(move || metrics::fleet(&config, &clock)).await;
    let counters = &call.api.connections;
    call.api.metrics.agent_connections(
        counters.fresh.load(Ordering::Relaxed),
        counters.reused.load(Ordering::Relaxed),
        counters.idle.load(Ordering::Relaxed),
    );
    let text = call.api.metrics.render(&fleet);
    let mut response = reply::stored(StatusCode::OK, text.into_bytes());
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(METRICS_TYPE));
    Ok(response)
}
