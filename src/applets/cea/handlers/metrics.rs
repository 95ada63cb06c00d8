//! `GET /metrics`: numbers for a monitoring system, where the host's `metrics` key opens them. Ours; an agent of the original answers 404.
//!
//! | `metrics` | who gets them | everybody else |
//! |---|---|---|
//! | `off` | nobody | 404, as for a path that does not exist |
//! | `dispatchers` | trusted dispatchers | 403, as on any other route |
//! | `ca` | every certificate of the CA that is not revoked | - |

use std::sync::Arc;

use crate::core::task::spawn_blocking;
use axum::body::Body;
use axum::extract::{FromRequestParts, State};
use axum::response::Response;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::http::request::Parts;

use crate::applets::cea::gate::{Caller, Peer};
use crate::applets::cea::handlers;
use crate::applets::cea::jobs;
use crate::applets::cea::state::{Agent, Snapshot};
use crate::core::config::MetricsAudience;
use crate::core::metrics::{self, AgentNow};

/// Somebody who may see the numbers.
pub(super) struct Scraper(Arc<Snapshot>);

impl FromRequestParts<Arc<Agent>> for Scraper {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, agent: &Arc<Agent>) -> Result<Self, Response> {
        let extensions = &parts.extensions;
        let (Some(peer), Some(snapshot)) =
            (extensions.get::<Peer>(), extensions.get::<Arc<Snapshot>>())
        else {
            return Err(handlers::not_found());
        };
        let stranger = snapshot.dispatcher(&peer.identity).is_none();
        match snapshot.config.metrics {
            MetricsAudience::Off => Err(handlers::not_found()),
            // The gate has looked for revocations; the address's budget pays for the connection, which ends with the answer.
            MetricsAudience::Ca if stranger => Ok(Self(snapshot.clone())),
            MetricsAudience::Ca | MetricsAudience::Dispatchers => {
                let caller = Caller::from_request_parts(parts, agent).await?;
                Ok(Self(caller.snapshot))
            }
        }
    }
}

pub(super) async fn handle(
    State(agent): State<Arc<Agent>>,
    Scraper(snapshot): Scraper,
) -> Response {
    let store = jobs::store_of(&snapshot);
    let jobs_running = spawn_blocking(move || store.count_running()).await;
    let revoked = &snapshot.revoked;
    let now = AgentNow {
        certificate: snapshot.material.identity.certificate().not_after,
        cas: snapshot
            .material
            .trusted
            .cas
            .iter()
            .map(|ca| ca.not_after)
            .collect(),
        jobs_running: jobs_running.unwrap_or(0),
        trusted_dispatchers: snapshot.trust.entries().len(),
        revoked_serials: revoked.pushed.len() + revoked.local.as_ref().map_or(0, |l| l.len()),
        clock_behind: snapshot.clock.is_behind(),
    };
    let mut response = Response::new(Body::from(agent.metrics.render(&now)));
    response.headers_mut().insert(
        CONTENT_TYPE,
        HeaderValue::from_static(metrics::CONTENT_TYPE),
    );
    response
}
