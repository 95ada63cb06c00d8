//! `GET|POST /discovery` (spec/api.md 5.5): what the agents can run, and their tags.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::response::Response;
use serde_json::{Map, Value, json};

use super::common;
use crate::applets::api::call::Call;
use crate::applets::api::fields::{DiscoveryRequest, Tags};
use crate::applets::api::{path, reply};
use crate::core::authhook::{HookAction, HookContext};
use crate::core::dispatch::{HostResult, Job, ask_all, blocking, objects, tags};
use crate::core::registry::Target;

pub(in crate::applets::api) async fn discovery(call: Call) -> Response {
    answer(call).await.unwrap_or_else(|refusal| refusal)
}

async fn answer(call: Call) -> Result<Response, Response> {
    // A body that is no JSON counts as none, as in the original; one that is something else than an object is an error.
    let body = match serde_json::from_slice(&call.body) {
        Ok(Value::Object(body)) => body,
        Ok(_) if &call.body[..] != b"0" => return Err(reply::bad_request("invalid JSON body")),
        Ok(_) | Err(_) => Map::new(),
    };
    let request = DiscoveryRequest::read(&body).map_err(|detail| reply::bad_request(&detail))?;
    let mut wanted = request.tags;
    wanted.0.extend(tags_of_query(&call.query)?);
    let (hosts, everybody) = match request.hosts.0 {
        Some(hosts) => (hosts, false),
        None => (all(&call).await?, true),
    };
    if hosts.is_empty() {
        return Ok(reply::ok(&json!({"ok": true, "hosts": {}})));
    }
    let asked = HookContext {
        hosts: hosts.clone(),
        username: request.username,
        token: request.token,
        ..call.asks(HookAction::Ping)
    };
    call.authorise(&asked).await?;
    let (targets, damaged) = if everybody {
        registered(&call).await?
    } else {
        (common::resolve(&call, hosts).await?, BTreeMap::new())
    };
    let targets: Vec<Target> = targets
        .into_iter()
        .filter(|target| has(&target.record.tags, &wanted))
        .collect();
    let place = common::begin(&call)?;
    let client = call.api.client().await;
    let work = async move {
        let _place = place;
        let mut told = |_: usize, result: &Arc<HostResult>| objects::log_capabilities(result);
        let slots = &call.api.exchanges;
        let results = ask_all(&client, targets, slots, &Job::capabilities(), &mut told).await;
        call.api.answered(&results);
        let mut hosts = damaged;
        for result in &results {
            let object = objects::capabilities_object(result);
            hosts.insert(result.host().to_owned(), Value::Object(object));
        }
        let registry = common::registry(&call.snapshot.config);
        blocking(move || tags::learn_tags(&registry, &results)).await;
        reply::ok(&json!({"ok": true, "hosts": hosts}))
    };
    Ok(common::see_through(work).await)
}

/// `?tag=NAME=VALUE`, as often as wanted.
fn tags_of_query(query: &str) -> Result<Vec<(String, String)>, Response> {
    path::values(query, "tag")
        .into_iter()
        .map(|tag| match tag.split_once('=') {
            Some((name, value)) => Ok((name.to_owned(), value.to_owned())),
            None => Err(reply::bad_request("tag must be NAME=VALUE")),
        })
        .collect()
}

fn has(tags: &BTreeMap<String, String>, wanted: &Tags) -> bool {
    wanted
        .0
        .iter()
        .all(|(name, value)| tags.get(name) == Some(value))
}

/// Names of all agents, in ascending order.
async fn all(call: &Call) -> Result<Vec<String>, Response> {
    let (targets, damaged) = registered(call).await?;
    let mut names: Vec<String> = targets.iter().map(|t| t.name.to_string()).collect();
    names.extend(damaged.into_keys());
    names.sort_unstable();
    Ok(names)
}

/// All agents, and an entry for each whose record cannot be read.
async fn registered(call: &Call) -> Result<(Vec<Target>, BTreeMap<String, Value>), Response> {
    let registry = common::registry(&call.snapshot.config);
    let listing = blocking(move || registry.list())
        .await
        .map_err(|_| common::server_error("the registry cannot be read"))?;
    let damaged = listing
        .unreadable
        .iter()
        .filter_map(|problem| Some(problem.path()?.file_stem()?.to_str()?.to_owned()))
        .map(|name| {
            let entry = json!({"host": name, "status": "error", "error": "its registry record cannot be read", "rtt": "0ms"});
            (name, entry)
        })
        .collect();
    Ok((
        listing.agents.into_iter().map(Target::of).collect(),
        damaged,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_must_have_all_tags() {
        let tags = BTreeMap::from([
            ("env".to_owned(), "prod".to_owned()),
            ("os".to_owned(), String::new()),
        ]);
        let wanted = |query: &str| Tags(tags_of_query(query).unwrap());
        assert!(has(&tags, &wanted("")));
        assert!(has(&tags, &wanted("tag=env%3Dprod&tag=os=")));
        assert!(!has(&tags, &wanted("tag=env=prod&tag=os=linux")));
        assert!(tags_of_query("tag=env").is_err());
    }
}
